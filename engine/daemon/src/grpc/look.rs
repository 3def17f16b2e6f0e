//! Scrubs and checks of a pool, as calls that tell how far they are.

use std::rc::Rc;
use std::sync::Arc;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::check_pool_response::What as CheckWhat;
use pollux_api::engine::v1::scrub_pool_response::What;
use pollux_pool::layout::BLOCK_BYTES;
use pollux_pool::layout::scrub::ScrubState;
use pollux_pool::{CheckProgress, CheckReport, Pool, ScrubOptions, ScrubProgress, ScrubReport};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::progress::{Caller, stream};
use crate::pools::Pools;

/// Bad blocks that are told one by one.
const BAD_BLOCKS_MAX: usize = 100;

/// Things that a check tells one by one.
const FINDINGS_MAX: usize = 100;

/// Scrubs a pool, and streams how that gets on.
pub(super) fn scrub(
    pools: Arc<Pools>,
    name: String,
    options: ScrubOptions,
) -> ReceiverStream<Result<api::ScrubPoolResponse, Status>> {
    let act = async move |caller: Caller<ScrubProgress>| {
        let scrubbed = pools.with(&name, move |pool: Rc<Pool>| async move {
            let report = caller
                .wait_for(async |tell| pool.scrub(options, tell).await)
                .await?;
            Ok(describe(&pool, &report))
        });
        scrubbed.await
    };
    stream(act, scrub_progress, |report| api::ScrubPoolResponse {
        what: Some(What::Report(report)),
    })
}

/// Checks a pool, and streams how that gets on.
pub(super) fn check(
    pools: Arc<Pools>,
    name: String,
) -> ReceiverStream<Result<api::CheckPoolResponse, Status>> {
    let act = async move |caller: Caller<CheckProgress>| {
        let check = |pool: Rc<Pool>| async move {
            caller
                .wait_for(async |tell| pool.check_and_tell(tell).await)
                .await
        };
        pools.check(&name, check).await
    };
    stream(act, check_progress, |report| api::CheckPoolResponse {
        what: Some(CheckWhat::Report(describe_check(&report))),
    })
}

fn describe_check(report: &CheckReport) -> api::CheckReport {
    let findings = findings(report);
    api::CheckReport {
        pages: report.pages,
        extents: report.extents,
        findings_count: findings.len() as u64,
        findings: findings.into_iter().take(FINDINGS_MAX).collect(),
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
        // Of a read-only pool none is written again.
        lost_pages: report.lost_pages + report.unrepaired_pages,
    }
}

fn scrub_progress(progress: ScrubProgress) -> api::ScrubPoolResponse {
    let progress = api::ScrubProgress {
        volumes_done: progress.volumes_done as u64,
        volumes: progress.volumes as u64,
        read_bytes: progress.read_bytes,
    };
    api::ScrubPoolResponse {
        what: Some(What::Progress(progress)),
    }
}

fn check_progress(progress: CheckProgress) -> api::CheckPoolResponse {
    let progress = api::CheckProgress {
        volumes_done: progress.volumes_done as u64,
        volumes: progress.volumes as u64,
        pages: progress.pages,
    };
    api::CheckPoolResponse {
        what: Some(CheckWhat::Progress(progress)),
    }
}

/// What a check found, a line each.
fn findings(report: &CheckReport) -> Vec<String> {
    let misplaced = report.misplaced.iter().map(|found| {
        let (device, extent) = (found.extent.device(), found.extent.number());
        format!(
            "extent {extent} of device {device}: blocks {:#06x} are reached, and {:#06x} are marked as used",
            found.reached, found.marked
        )
    });
    let twice = report.claimed_twice.iter().map(|extent| {
        let (device, extent) = (extent.device(), extent.number());
        format!("extent {extent} of device {device} is claimed by two")
    });
    let miscounted = report.miscounted.iter().map(|(volume, counted, kept)| {
        format!("volume {volume} has {counted} extents of its own, and says {kept}")
    });
    misplaced.chain(twice).chain(miscounted).collect()
}
