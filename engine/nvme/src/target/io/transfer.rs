//! Read, write and compare: the way that most commands take.

use std::rc::Rc;

use pollux_device::{Gather, IoError, Reply, Request};
use pollux_reactor::PooledFuture;
use smallvec::smallvec;

use super::decode::{Direction, Transfer};
use super::gate::Entered;
use super::in_device::InDevice;
use super::queue::Shared;
use super::slow;
use crate::target::queue::{Execution, Outcome, Payload};
use crate::wire::command::SubmissionEntry;

/// Starts a transfer; when all it needs is there it is at the device, or done, on return.
pub(super) fn start(
    queue: &Rc<Shared>,
    entry: SubmissionEntry,
    mut transfer: Transfer,
    data: Gather,
) -> Execution {
    let attached = &transfer.attached;
    if transfer.direction == Direction::Write {
        transfer.force_unit_access |= queue
            .controller()
            .forces_unit_access(attached.volatile_write_cache);
    }
    let simple = !slow::needs_flush_before(&transfer)
        && transfer.blocks <= attached.transfer_blocks_max
        && attached.admits(transfer.range())
        && (attached.memory_align_bytes == 1 || data.is_aligned(attached.memory_align_bytes as usize));
    let Some(device) = attached.device().filter(|_| simple) else {
        return slow::start(queue, entry, transfer, data);
    };
    let request = match transfer.direction {
        Direction::Read => match queue.pool.allocate(transfer.bytes()) {
            Some(into) => Request::Read {
                block: transfer.block,
                into,
            },
            None => return slow::start(queue, entry, transfer, data),
        },
        // The data is kept too: short of resources, the device is asked again.
        Direction::Write => Request::Write {
            block: transfer.block,
            from: data.clone(),
            force_unit_access: transfer.force_unit_access,
        },
        Direction::Compare => Request::Compare {
            block: transfer.block,
            with: data.clone(),
        },
    };
    let completion = match device.submit(request).try_take() {
        Ok(Err(IoError::ResourceShortage)) => return slow::start(queue, entry, transfer, data),
        Ok(result) => return finish(queue, &entry, &transfer, result).into(),
        Err(completion) => completion,
    };
    let mutates = transfer.direction == Direction::Write;
    let in_device = InDevice::new(completion, Entered::new(attached), queue, mutates);
    let queue = queue.clone();
    if in_device.is_held() {
        return held(queue, entry, transfer, data, in_device);
    }
    Execution::from_future(async move {
        match in_device.await {
            // Boxed on its own, so that the memory of every command is not as large as this rare one's.
            Err(IoError::ResourceShortage) => {
                PooledFuture::new(slow::run(queue, entry, transfer, data)).await
            }
            result => finish(&queue, &entry, &transfer, result),
        }
    })
}

/// A transfer that the device has not begun: until then it can be aborted.
fn held(
    queue: Rc<Shared>,
    entry: SubmissionEntry,
    transfer: Transfer,
    data: Gather,
    in_device: InDevice,
) -> Execution {
    Execution::from_future(async move {
        let result = match in_device.begun(&queue, entry.command_id.get()).await {
            Ok(in_device) => in_device.await,
            Err(error) => Err(error),
        };
        match result {
            Err(IoError::ResourceShortage) => {
                PooledFuture::new(slow::run(queue, entry, transfer, data)).await
            }
            result => finish(&queue, &entry, &transfer, result),
        }
    })
}

/// The outcome of a transfer that the device answered.
fn finish(
    queue: &Shared,
    entry: &SubmissionEntry,
    transfer: &Transfer,
    result: Result<Reply, IoError>,
) -> Outcome {
    let payload = match (transfer.direction, result) {
        (_, Err(error)) => return queue.fail(entry, error.into()),
        (Direction::Read, Ok(reply)) => match payload_of(reply, transfer.bytes()) {
            Ok(payload) => payload,
            Err(error) => return queue.fail(entry, error.into()),
        },
        (Direction::Write | Direction::Compare, Ok(_)) => Payload::Empty,
    };
    succeed(queue, entry, transfer, payload)
}

/// The outcome of a transfer that succeeded, which is counted.
pub(super) fn succeed(
    queue: &Shared,
    entry: &SubmissionEntry,
    transfer: &Transfer,
    payload: Payload,
) -> Outcome {
    let (counters, bytes) = (&queue.link().counters, transfer.bytes() as u64);
    match transfer.direction {
        // A compare reads (NVMe Base 2.0, 5.16.1.3, Data Units Read).
        Direction::Read | Direction::Compare => counters.read(bytes),
        Direction::Write => counters.written(bytes),
    }
    Outcome::data(entry.command_id.get(), payload)
}

/// The data of a read, which has to be as long as was asked for.
pub(super) fn payload_of(reply: Reply, bytes: usize) -> Result<Payload, IoError> {
    let payload = match reply {
        Reply::Data(buffer) if buffer.len() == bytes => Payload::Buffer(buffer),
        Reply::Shared { data, .. } if data.len() == bytes => Payload::Slices(smallvec![data]),
        Reply::Data(_) | Reply::Shared { .. } | Reply::Done => return Err(IoError::Internal),
    };
    Ok(payload)
}
