//! Flush, write zeroes, verify and dataset management.

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDeviceExt, Gather, IoError, Request, ZeroOptions};
use pollux_reactor::sleep;

use super::attached::Attached;
use super::decode::Plan;
use super::gate::{BlockRange, Entered};
use super::in_device::InDevice;
use super::loss;
use super::queue::Shared;
use super::slow::Patience;
use super::view::View;
use crate::target::queue::{Execution, Outcome};
use crate::target::refusal::{Refusal, field};
use crate::target::reservation::Access;
use crate::target::subsystem::Subsystem;
use crate::wire::command::{
    BlockCommand, BlockFlags, DatasetAttributes, DatasetManagement, DatasetRange, SubmissionEntry,
};
use crate::wire::status::Status;

/// What Verify reads at a time.
const VERIFY_BYTES: u32 = 256 << 10;

/// Starts anything but a transfer.
pub(super) fn start(queue: &Rc<Shared>, entry: SubmissionEntry, plan: Plan, data: Gather) -> Execution {
    if let Plan::Flush(Some(attached)) = &plan
        && !attached.has_lost_caches()
        && let Some(device) = attached.device()
    {
        return match device.submit(Request::Flush).try_take() {
            Ok(Ok(_)) => Outcome::done(entry.command_id.get()).into(),
            // Nothing was flushed, so that asking again hides nothing. Any other error may have lost writes
            // that a second flush would no longer know of: the host has to hear of it.
            Ok(Err(IoError::ResourceShortage)) => run_later(queue, entry, plan, data),
            Ok(Err(error)) => queue.fail(&entry, error.into()).into(),
            Err(completion) => {
                let in_device = InDevice::new(completion, Entered::new(attached), queue, false);
                let queue = queue.clone();
                Execution::from_future(async move {
                    match in_device.await {
                        Ok(_) => Outcome::done(entry.command_id.get()),
                        Err(IoError::ResourceShortage) => {
                            pollux_reactor::PooledFuture::new(run(queue, entry, plan, data)).await
                        }
                        Err(error) => queue.fail(&entry, error.into()),
                    }
                })
            }
        };
    }
    run_later(queue, entry, plan, data)
}

fn run_later(queue: &Rc<Shared>, entry: SubmissionEntry, plan: Plan, data: Gather) -> Execution {
    Execution::from_future(run(queue.clone(), entry, plan, data))
}

async fn run(queue: Rc<Shared>, entry: SubmissionEntry, plan: Plan, data: Gather) -> Outcome {
    let patience = Patience::new(&queue, &entry);
    let result = match plan {
        Plan::Flush(Some(attached)) => flush_heard(&patience, &attached).await,
        Plan::Flush(None) => flush_each(&patience, queue.view.all()).await,
        // No user data is written, so that the SMART log does not count it.
        Plan::WriteZeroes {
            attached,
            command,
            stamp,
        } => write_zeroes(&patience.since(stamp), &attached, command)
            .await
            .map_err(Refusal::from),
        Plan::Verify { attached, command } => {
            let result = verify(&patience, &attached, command).await;
            if result.is_ok() {
                queue
                    .link()
                    .counters
                    .read(u64::from(command.blocks) << attached.block_shift);
            }
            result.map_err(Refusal::from)
        }
        Plan::Dataset {
            attached,
            command,
            stamp,
        } => dataset(&patience.since(stamp), &attached, command, &data).await,
        // These have their own modules.
        Plan::Transfer(_) | Plan::Reservation { .. } => Err(Refusal::of(Status::INTERNAL_ERROR)),
    };
    match result {
        Ok(()) => Outcome::done(entry.command_id.get()),
        Err(refusal) => queue.fail(&entry, refusal),
    }
}

/// Flushes, unless its host has to hear of something that was lost.
async fn flush_heard(patience: &Patience<'_>, attached: &Rc<Attached>) -> Result<(), Refusal> {
    if attached.has_lost_caches() {
        loss::check(patience.queue, attached).await?;
    }
    Ok(flush(patience, attached).await?)
}

async fn flush(patience: &Patience<'_>, attached: &Rc<Attached>) -> Result<(), IoError> {
    patience
        .retry(async || {
            // A flush changes nothing that a fused command compares.
            let (device, entered) = patience.enter(attached, BlockRange::new(0, 0)).await?;
            patience
                .submit(&*device, Request::Flush, &entered)
                .await
                .map(drop)
        })
        .await
}

/// Flushes every one, even when some fail; the first error counts.
async fn flush_each(patience: &Patience<'_>, all: Vec<Rc<Attached>>) -> Result<(), Refusal> {
    let mut result = Ok(());
    for attached in all {
        let flushed = match attached.permits(patience.queue.host(), Access::Write) {
            Some(_) => flush_heard(patience, &attached).await,
            None => Err(IoError::ReservationConflict.into()),
        };
        result = result.and(flushed);
    }
    result
}

async fn write_zeroes(
    patience: &Patience<'_>,
    attached: &Rc<Attached>,
    command: BlockCommand,
) -> Result<(), IoError> {
    let forced = patience
        .queue
        .controller()
        .forces_unit_access(attached.volatile_write_cache);
    let options = ZeroOptions {
        force_unit_access: forced || command.flags.contains(BlockFlags::FORCE_UNIT_ACCESS),
        may_deallocate: command.flags.contains(BlockFlags::DEALLOCATE),
    };
    let (block, blocks) = (command.starting_block, u64::from(command.blocks));
    patience
        .retry(async || {
            let (device, entered) = patience.enter(attached, BlockRange::new(block, blocks)).await?;
            let request = Request::WriteZeroes {
                block,
                blocks,
                options,
            };
            patience.submit(&*device, request, &entered).await.map(drop)
        })
        .await
}

async fn verify(
    patience: &Patience<'_>,
    attached: &Rc<Attached>,
    command: BlockCommand,
) -> Result<(), IoError> {
    let blocks_max = (VERIFY_BYTES >> attached.block_shift).clamp(1, attached.transfer_blocks_max);
    let (mut block, mut left) = (command.starting_block, command.blocks);
    while left > 0 {
        let blocks = left.min(blocks_max);
        patience
            .retry(async || {
                let into = patience.buffer((blocks as usize) << attached.block_shift).await?;
                let range = BlockRange::new(block, blocks.into());
                let (device, entered) = patience.enter(attached, range).await?;
                patience
                    .submit(&*device, Request::Read { block, into }, &entered)
                    .await
                    .map(drop)
            })
            .await?;
        block += u64::from(blocks);
        left -= blocks;
    }
    Ok(())
}

/// Deallocates ranges; the other attributes are hints and do nothing. All ranges are checked before any is
/// touched.
async fn dataset(
    patience: &Patience<'_>,
    attached: &Rc<Attached>,
    command: DatasetManagement,
    data: &Gather,
) -> Result<(), Refusal> {
    let mut bytes = vec![0; command.data_bytes()];
    data.copy_to(&mut bytes);
    let Some(ranges) = command.parse(&bytes) else {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    };
    let size = attached.namespace.blocks();
    if !ranges.iter().all(|range| range.is_within(size)) {
        return Err(Refusal::at(Status::LBA_OUT_OF_RANGE, field::DATA));
    }
    // A device that cannot give space back would write zeros, which nobody asked for; a host must not rely on
    // deallocated blocks being deallocated (NVM 1.0, 3.2.3.2).
    if !command.attributes.contains(DatasetAttributes::DEALLOCATE) || !attached.deallocates {
        return Ok(());
    }
    for range in ranges.iter().filter(|range| range.blocks.get() > 0) {
        deallocate(patience, attached, range).await?;
    }
    if patience
        .queue
        .controller()
        .forces_unit_access(attached.volatile_write_cache)
    {
        flush(patience, attached).await?;
    }
    Ok(())
}

async fn deallocate(
    patience: &Patience<'_>,
    attached: &Rc<Attached>,
    range: &DatasetRange,
) -> Result<(), IoError> {
    let (block, blocks) = (range.starting_block.get(), u64::from(range.blocks.get()));
    patience
        .retry(async || {
            let (device, entered) = patience.enter(attached, BlockRange::new(block, blocks)).await?;
            let request = Request::Deallocate { block, blocks };
            patience.submit(&*device, request, &entered).await.map(drop)
        })
        .await
}

/// Flushes every namespace of a subsystem on the current reactor, as for a shutdown; says whether all
/// succeeded.
pub(crate) async fn flush_all(subsystem: &Arc<Subsystem>) -> bool {
    const ATTEMPTS_MAX: u32 = 50;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
    let view = View::obtain(subsystem);
    let mut flushed = true;
    for attached in view.all() {
        if attached.check_access().is_err() {
            // Whoever has access flushes it.
            continue;
        }
        let mut attempts = 0;
        let result = loop {
            attempts += 1;
            let result = match attached.ready().await {
                Ok(device) => device.flush().await,
                Err(error) => Err(error),
            };
            match result {
                // The device did nothing: see above.
                Err(IoError::ResourceShortage | IoError::NotReady) if attempts < ATTEMPTS_MAX => {
                    sleep(PAUSE).await
                }
                result => break result,
            }
        };
        if let Err(error) = result {
            let device = attached.namespace.device.name();
            tracing::error!(device, namespace = attached.namespace.id, %error, "could not flush the device");
            flushed = false;
        }
    }
    flushed
}
