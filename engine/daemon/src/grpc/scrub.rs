//! A scrub of a pool, as a call that tells how far it is.
//!
//! The scrub runs on the owner of the pool. What it tells is dropped if nobody takes it in time; a caller
//! that hangs up ends it.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::scrub_pool_response::What;
use pollux_pool::layout::BLOCK_BYTES;
use pollux_pool::layout::scrub::ScrubState;
use pollux_pool::{Pool, PoolError, ScrubOptions, ScrubProgress, ScrubReport};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::pools::failed;
use crate::pools::Pools;

/// Answers on their way to a caller.
const ANSWERS_ON_THE_WAY: usize = 4;

/// Bad blocks that are told one by one.
const BAD_BLOCKS_MAX: usize = 100;

type Answer = Result<api::ScrubPoolResponse, Status>;

/// Scrubs a pool, and streams how that gets on.
pub(super) fn stream(pools: Arc<Pools>, name: String, options: ScrubOptions) -> ReceiverStream<Answer> {
    let (sender, receiver) = mpsc::channel(ANSWERS_ON_THE_WAY);
    tokio::spawn(async move {
        let (tell, mut told) = futures_channel::mpsc::channel(ANSWERS_ON_THE_WAY);
        // Its end, when this task ends, is that of the scrub.
        let (_wanted, unwanted) = oneshot::channel();
        let mut scrub = pin!(pools.with(&name, move |pool| scrub(pool, options, tell, unwanted)));
        let outcome = loop {
            tokio::select! {
                outcome = &mut scrub => break outcome,
                Some(progress) = told.next() => {
                    if sender.send(Ok(answer(progress))).await.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        };
        let last = outcome.map(|report| api::ScrubPoolResponse {
            what: Some(What::Report(report)),
        });
        // The caller may have hung up meanwhile.
        let _ = sender.send(last.map_err(failed)).await;
    });
    ReceiverStream::new(receiver)
}

async fn scrub(
    pool: Rc<Pool>,
    options: ScrubOptions,
    mut sender: futures_channel::mpsc::Sender<ScrubProgress>,
    unwanted: oneshot::Receiver<Infallible>,
) -> Result<api::ScrubReport, PoolError> {
    let mut tell = |progress| {
        // What is not taken in time is old soon.
        let _ = sender.try_send(progress);
    };
    let scrubbing = pin!(pool.scrub(options, &mut tell));
    match select(scrubbing, unwanted).await {
        Either::Left((report, _)) => Ok(describe(&pool, &report?)),
        // Nobody takes the answer.
        Either::Right(_) => Err(PoolError::Closed),
    }
}

/// The scrub that a pool remembers.
pub(super) fn last(pool: &Pool) -> Option<api::LastScrub> {
    let record = pool.last_scrub();
    let ended_unix_s = match record.state {
        ScrubState::Never => return None,
        ScrubState::UnderWay { .. } => None,
        ScrubState::Ended { seconds } => Some(seconds),
    };
    Some(api::LastScrub {
        started_unix_s: record.started_seconds,
        ended_unix_s,
        report: Some(describe(pool, &ScrubReport::from(&record))),
    })
}

fn describe(pool: &Pool, report: &ScrubReport) -> api::ScrubReport {
    let bad = report.bad_blocks.iter().take(BAD_BLOCKS_MAX);
    api::ScrubReport {
        blocks: report.blocks,
        unchecked_blocks: report.unchecked_blocks,
        bad_block_count: report.bad_block_count,
        bad_blocks: bad
            .map(|bad| api::BadBlock {
                volume: pool.name_of(bad.volume).unwrap_or_default(),
                offset_bytes: bad.block * BLOCK_BYTES as u64,
            })
            .collect(),
        pages: report.pages,
        repaired_pages: report.repaired_pages,
        lost_pages: report.lost_pages,
    }
}

fn answer(progress: ScrubProgress) -> api::ScrubPoolResponse {
    let progress = api::ScrubProgress {
        volumes_done: progress.volumes_done as u64,
        volumes: progress.volumes as u64,
        read_bytes: progress.read_bytes,
    };
    api::ScrubPoolResponse {
        what: Some(What::Progress(progress)),
    }
}
