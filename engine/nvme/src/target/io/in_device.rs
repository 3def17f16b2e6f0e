//! A request at the device.
//!
//! Dropping the command that waits for it, as happens when its connection is lost, does not take a write
//! back. It is still waited for then, so that a fused command or a controller reset that comes later knows
//! when it has landed. One that the device holds, and has not begun, is taken back, and can be aborted.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pollux_device::{BlockDevice, Completion, IoError, Reply, Request};
use pollux_reactor::Reactor;

use super::gate::Entered;
use super::queue::Shared;
use crate::target::sync::{Either, either};

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

    /// Submits a request of a command and waits for its reply.
    pub(super) async fn submit(
        device: &dyn BlockDevice,
        request: Request,
        entered: &Entered,
        queue: &Rc<Shared>,
        command_id: u16,
    ) -> Result<Reply, IoError> {
        let mutates = request.is_mutation();
        match device.submit(request).try_take() {
            Ok(result) => result,
            Err(completion) => {
                let mut in_device = Self::new(completion, entered.again(), queue, mutates);
                if in_device.is_held() {
                    in_device = in_device.begun(queue, command_id).await?;
                }
                in_device.await
            }
        }
    }

    /// Whether the device holds it, and has not begun.
    pub(super) fn is_held(&self) -> bool {
        self.completion.as_ref().is_some_and(Completion::is_held)
    }

    /// Waits until the device has begun with it.
    ///
    /// # Errors
    ///
    /// [`IoError::Aborted`] if the command was aborted before that.
    pub(super) async fn begun(mut self, queue: &Rc<Shared>, command_id: u16) -> Result<Self, IoError> {
        let abortable = queue.link().abortable(command_id);
        let begun = std::future::poll_fn(|context| match &mut self.completion {
            Some(completion) => completion.poll_begun(context),
            None => Poll::Ready(()),
        });
        match either(begun, abortable).await {
            Either::First(()) => Ok(self),
            Either::Second(()) => Err(IoError::Aborted),
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
        let lands = self.mutates && !completion.is_held();
        if let Some(reactor) = Reactor::try_current().filter(|_| lands) {
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
