//! A request at the device.
//!
//! Dropping the command that waits for it, as happens when its connection is lost, does not take a write
//! back. It is still waited for then, so that a fused command or a controller reset that comes later knows
//! when it has landed.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pollux_device::{BlockDevice, Completion, IoError, Reply, Request};
use pollux_reactor::Reactor;

use super::gate::Entered;
use super::queue::Shared;

/// See the module.
pub(super) struct InDevice {
    completion: Option<Completion>,
    /// What is kept until the device is done: the place behind the gate, and the queue's registration.
    kept: Option<(Entered, Rc<Shared>)>,
    mutates: bool,
}

impl InDevice {
    /// A request that the device did not answer at once.
    pub(super) fn new(completion: Completion, entered: Entered, queue: &Rc<Shared>, mutates: bool) -> Self {
        Self {
            completion: Some(completion),
            kept: Some((entered, queue.clone())),
            mutates,
        }
    }

    /// Submits a request and waits for its reply.
    pub(super) async fn submit(
        device: &dyn BlockDevice,
        request: Request,
        entered: &Entered,
        queue: &Rc<Shared>,
    ) -> Result<Reply, IoError> {
        let mutates = request.is_mutation();
        match device.submit(request).try_take() {
            Ok(result) => result,
            Err(completion) => Self::new(completion, entered.again(), queue, mutates).await,
        }
    }
}

impl Future for InDevice {
    type Output = Result<Reply, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(completion) = &mut self.completion else {
            return Poll::Ready(Err(IoError::Internal));
        };
        let result = std::task::ready!(Pin::new(completion).poll(context));
        self.completion = None;
        self.kept = None;
        Poll::Ready(result)
    }
}

impl Drop for InDevice {
    fn drop(&mut self) {
        let (Some(completion), Some(kept)) = (self.completion.take(), self.kept.take()) else {
            return;
        };
        if let Some(reactor) = Reactor::try_current().filter(|_| self.mutates) {
            reactor
                .spawn(async move {
                    // Nobody is left to be told how it ended.
                    let _ = completion.await;
                    drop(kept);
                })
                .detach();
        }
    }
}
