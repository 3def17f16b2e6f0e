//! Changes of the devices of a pool that take long, as calls that tell how far they are.
//!
//! A caller that hangs up ends the change, as far as it can be ended: what the pool has then is noted all the
//! same, by a task of its own.

use futures_channel::oneshot;
use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::pool_device_change::What;
use pollux_pool::Replaced;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::pools::finished;
use crate::pools::{HowFar, PoolsError, Waiting};

/// Answers on their way to a caller.
const ANSWERS_ON_THE_WAY: usize = 4;

pub(super) type Answer = Result<api::PoolDeviceChange, Status>;

/// Does something, and streams how that gets on.
pub(super) fn stream<F>(act: impl FnOnce(Waiting) -> F) -> ReceiverStream<Answer>
where
    F: Future<Output = Result<api::PoolDeviceDone, PoolsError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(ANSWERS_ON_THE_WAY);
    let (tell, mut told) = futures_channel::mpsc::channel(ANSWERS_ON_THE_WAY);
    // Its end, when the task below ends, is that of the change.
    let (wanted, unwanted) = oneshot::channel();
    let mut changing = tokio::spawn(act(Waiting { tell, unwanted }));
    tokio::spawn(async move {
        let _wanted = wanted;
        let outcome = loop {
            tokio::select! {
                outcome = &mut changing => break outcome,
                Some(how_far) = told.next() => {
                    if sender.send(Ok(progress(how_far))).await.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        };
        let last = finished(outcome).map(|done| api::PoolDeviceChange {
            what: Some(What::Done(done)),
        });
        // The caller may have hung up meanwhile.
        let _ = sender.send(last).await;
    });
    ReceiverStream::new(receiver)
}

/// A device was replaced.
pub(super) fn replaced(replaced: Replaced) -> api::PoolDeviceDone {
    api::PoolDeviceDone {
        keeps_label: replaced.keeps_label,
        ..api::PoolDeviceDone::default()
    }
}

fn progress(how_far: HowFar) -> api::PoolDeviceChange {
    let progress = api::PoolDeviceProgress {
        done_bytes: how_far.done_bytes,
        total_bytes: how_far.total_bytes,
    };
    api::PoolDeviceChange {
        what: Some(What::Progress(progress)),
    }
}
