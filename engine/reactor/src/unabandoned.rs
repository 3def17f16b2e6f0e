//! Futures that are finished by a task of their own when those who waited for them go away.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::context::Reactor;
use crate::pooled::PooledFuture;

/// A future that goes on when it is dropped, as long as its reactor runs.
pub struct Unabandoned<T: 'static>(Option<PooledFuture<T>>);

impl<T: 'static> Unabandoned<T> {
    /// The future, not begun.
    pub fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self(Some(PooledFuture::new(future)))
    }
}

impl<T: 'static> Future for Unabandoned<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.0 else {
            return Poll::Pending;
        };
        let output = std::task::ready!(Pin::new(future).poll(context));
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<T: 'static> Drop for Unabandoned<T> {
    fn drop(&mut self) {
        if let Some(future) = self.0.take()
            && let Some(reactor) = Reactor::try_current()
        {
            reactor.spawn(future).detach();
        }
    }
}
