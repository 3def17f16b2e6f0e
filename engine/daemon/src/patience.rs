//! Waiting for what an engine that was just killed still holds.
//!
//! The kernel takes an io_uring apart after its process has ended, and until then keeps the sockets and files
//! that were in use by it: for milliseconds, and longer on a busy machine. Whoever starts an engine again at
//! once, as service managers do, would find its address or its file in use.

use std::time::{Duration, Instant};

/// How long to wait for what is in use.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// How long to wait for volumes whose users are leaving: hosts that were told let go of them at once.
const PATIENCE_WITH_USERS: Duration = Duration::from_millis(500);

/// [`while_in_use`] for volumes, whose users leave sooner than the kernel lets go of what a process had.
pub(crate) async fn while_users_leave<T, E, F>(
    attempt: impl FnMut() -> F,
    is_in_use: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    wait(PATIENCE_WITH_USERS, attempt, is_in_use).await
}

/// Tries until it works, fails for another reason than that something is in use, or patience is at its end.
pub(crate) async fn while_in_use<T, E, F>(
    attempt: impl FnMut() -> F,
    is_in_use: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    wait(PATIENCE, attempt, is_in_use).await
}

async fn wait<T, E, F>(
    patience: Duration,
    mut attempt: impl FnMut() -> F,
    is_in_use: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    loop {
        match attempt().await {
            Err(error) if is_in_use(&error) && started.elapsed() < patience => {
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn what_is_in_use_is_waited_for() {
        let mut attempts = 0;
        let result = while_in_use(
            || {
                attempts += 1;
                ready(if attempts < 4 { Err("in use") } else { Ok(attempts) })
            },
            |error| *error == "in use",
        )
        .await;
        assert_eq!(result, Ok(4));
    }

    #[tokio::test]
    async fn other_errors_are_not() {
        let mut attempts = 0;
        let result: Result<(), _> = while_in_use(
            || {
                attempts += 1;
                ready(Err("no"))
            },
            |error| *error == "in use",
        )
        .await;
        assert_eq!((result, attempts), (Err("no"), 1));
    }

    #[tokio::test]
    async fn patience_ends() {
        let started = Instant::now();
        let result: Result<(), _> = while_in_use(|| ready(Err("in use")), |_| true).await;
        assert_eq!(result, Err("in use"));
        assert!(started.elapsed() >= PATIENCE);
    }
}
