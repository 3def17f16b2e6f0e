//! Whichever of several futures is ready first.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

/// Which of two was first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First<A, B> {
    Left(A),
    Right(B),
}

/// Waits for the first of two; the left one if both are ready. The other is dropped.
pub(super) async fn race<A: Future, B: Future>(left: A, right: B) -> First<A::Output, B::Output> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    std::future::poll_fn(move |context| {
        if let Poll::Ready(output) = Pin::new(&mut left).poll(context) {
            return Poll::Ready(First::Left(output));
        }
        Pin::new(&mut right).poll(context).map(First::Right)
    })
    .await
}
