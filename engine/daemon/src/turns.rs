//! Turns: what is done to one thing is done one after the other, beside what is done to others.
//!
//! Invariants:
//! - At a time there is one turn for a key, and as many altogether as it was made for.
//! - A turn that is for two keys has that of a replica first, and then that of its device: nobody waits for
//!   somebody who waits for them.
//! - Once it is closed, nothing is under way and nobody gets a turn any more.
//! - A key is forgotten when nobody has it or waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedMutexGuard, Semaphore, SemaphorePermit};

type Keys = BTreeMap<String, Arc<tokio::sync::Mutex<()>>>;

/// See the module.
pub(crate) struct Turns {
    keys: Mutex<Keys>,
    /// Turns at a time.
    at_once: u32,
    /// Closed when there are no more turns.
    permits: Semaphore,
}

/// Something is done to the thing of a key as long as this is there.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    /// Each with what is given back before the key is looked at.
    keys: Vec<(String, Option<OwnedMutexGuard<()>>)>,
    _permit: SemaphorePermit<'a>,
}

impl Turn<'_> {
    /// Waits for one more key.
    pub(crate) async fn also(&mut self, key: &str) {
        let lock = self.turns.keys().entry(key.to_owned()).or_default().clone();
        // Noted before it is waited for: whoever gives up waiting does not leave it behind.
        self.keys.push((key.to_owned(), None));
        let guard = lock.lock_owned().await;
        if let Some((_, place)) = self.keys.last_mut() {
            *place = Some(guard);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        for (key, guard) in self.keys.drain(..) {
            drop(guard);
            self.turns.forget(&key);
        }
    }
}

impl Turns {
    /// Nobody has a turn yet; so many will have one at a time at most, those that wait for theirs included.
    pub(crate) fn new(at_once: u32) -> Self {
        Self {
            keys: Mutex::default(),
            at_once,
            permits: Semaphore::new(at_once as usize),
        }
    }

    /// Waits for the turn of a key; `None` once it is closed.
    pub(crate) async fn take(&self, key: &str) -> Option<Turn<'_>> {
        let mut turn = Turn {
            turns: self,
            keys: Vec::new(),
            _permit: self.permits.acquire().await.ok()?,
        };
        turn.also(key).await;
        Some(turn)
    }

    /// Waits for what is under way, and gives no more turns.
    pub(crate) async fn close(&self) {
        // The semaphore is closed by nobody else.
        let all = self.permits.acquire_many(self.at_once).await;
        self.permits.close();
        drop(all);
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        // Nothing that is done with the lock held can leave it half done.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key that nobody has or waits for is not kept.
    fn forget(&self, key: &str) {
        let mut keys = self.keys();
        if keys.get(key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    /// Whether a turn is there at once; it is given back.
    async fn is_free(turns: &Turns, key: &str) -> bool {
        let mut taken = pin!(turns.take(key));
        poll_fn(|context| Poll::Ready(taken.as_mut().poll(context).is_ready())).await
    }

    #[tokio::test]
    async fn one_key_has_one_turn() {
        let turns = Turns::new(4);
        let first = turns.take("a").await.expect("it is open");
        assert!(!is_free(&turns, "a").await);
        assert!(is_free(&turns, "b").await);
        drop(first);
        assert!(is_free(&turns, "a").await);
        drop(turns.take("c").await);
        assert!(!turns.keys().contains_key("c"), "what nobody has is kept");
    }

    #[tokio::test]
    async fn closing_waits_and_refuses() {
        let turns = Arc::new(Turns::new(4));
        let first = turns.take("a").await.expect("it is open");
        let closing = tokio::spawn({
            let turns = turns.clone();
            async move { turns.close().await }
        });
        tokio::task::yield_now().await;
        assert!(!closing.is_finished());
        drop(first);
        closing.await.expect("it ends");
        assert!(turns.take("a").await.is_none());
        assert!(turns.take("b").await.is_none());
    }
}
