//! Locks and waiting for several things, for what is off the data path.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

/// Locks; what a panic elsewhere left behind is consistent, as every change of guarded state is one
/// assignment at its end.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one of two futures returned first.
pub(crate) enum Either<A, B> {
    /// The first one.
    First(A),
    /// The second one.
    Second(B),
}

/// Runs two futures until one is ready; the first one wins a tie.
pub(crate) async fn either<A: Future, B: Future>(first: A, second: B) -> Either<A::Output, B::Output> {
    let mut first = std::pin::pin!(first);
    let mut second = std::pin::pin!(second);
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(output));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// Runs futures side by side until all are ready; the results stand in their order.
pub(crate) async fn all<T>(futures: Vec<Pin<Box<dyn Future<Output = T>>>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(Some).collect();
    let mut results: Vec<Option<T>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        let mut pending = false;
        for (slot, result) in running.iter_mut().zip(&mut results) {
            if let Some(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => {
                        *result = Some(output);
                        *slot = None;
                    }
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return Poll::Pending;
        }
        Poll::Ready(results.iter_mut().filter_map(Option::take).collect())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Waker};

    #[test]
    fn all_keeps_the_order() {
        let (sender, receiver) = futures_channel::oneshot::channel();
        let futures: Vec<Pin<Box<dyn Future<Output = u8>>>> = vec![
            Box::pin(async { receiver.await.unwrap_or(0) }),
            Box::pin(async { 2 }),
        ];
        let mut both = std::pin::pin!(all(futures));
        let mut context = Context::from_waker(Waker::noop());
        assert!(both.as_mut().poll(&mut context).is_pending());
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(both.as_mut().poll(&mut context), Poll::Ready(vec![1, 2]));
    }
}
