//! What takes long on the owner of a pool, as a call that tells how far it is.
//!
//! What is told is dropped if nobody takes it in time; a caller that hangs up ends it.

use std::convert::Infallible;
use std::pin::pin;

use futures_channel::{mpsc as told, oneshot};
use futures_util::future::{Either, select};
use pollux_pool::PoolError;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::pools::failed;
use crate::pools::PoolsError;

/// Answers on their way to a caller.
const ANSWERS_ON_THE_WAY: usize = 4;

/// Who waits: is told how far it is, and ends it by going away.
pub(super) struct Caller<P> {
    tell: told::Sender<P>,
    unwanted: oneshot::Receiver<Infallible>,
}

impl<P> Caller<P> {
    /// Does something for the caller, on the owner of a pool: `act` is given what to tell it with.
    pub(super) async fn wait_for<T>(
        mut self,
        act: impl AsyncFnOnce(&mut dyn FnMut(P)) -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        let mut tell = |progress| {
            // What is not taken in time is old soon.
            let _ = self.tell.try_send(progress);
        };
        let acting = pin!(act(&mut tell));
        match select(acting, self.unwanted).await {
            Either::Left((result, _)) => result,
            // Nobody takes the answer.
            Either::Right(_) => Err(PoolError::Closed),
        }
    }
}

/// Does something, and streams how that gets on: with `progress` and with `last` as answers.
pub(super) fn stream<P, R, A, F>(
    act: impl FnOnce(Caller<P>) -> F + Send + 'static,
    progress: fn(P) -> A,
    last: fn(R) -> A,
) -> ReceiverStream<Result<A, Status>>
where
    P: Send + 'static,
    R: Send + 'static,
    A: Send + 'static,
    F: Future<Output = Result<R, PoolsError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(ANSWERS_ON_THE_WAY);
    tokio::spawn(async move {
        let (tell, mut told) = told::channel(ANSWERS_ON_THE_WAY);
        // Its end, when this task ends, is that of what is done.
        let (_wanted, unwanted) = oneshot::channel();
        let mut acting = pin!(act(Caller { tell, unwanted }));
        let outcome = loop {
            tokio::select! {
                outcome = &mut acting => break outcome,
                Some(how_far) = told.next() => {
                    if sender.send(Ok(progress(how_far))).await.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        };
        // The caller may have hung up meanwhile.
        let _ = sender.send(outcome.map(last).map_err(failed)).await;
    });
    ReceiverStream::new(receiver)
}
