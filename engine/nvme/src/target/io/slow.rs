//! Commands that cannot be done at once: a device that is still being attached, a range that a fused
//! command holds, memory or the device short of resources, more blocks than the device takes at a time,
//! data that is not aligned.
//!
//! Short of resources is not broken: a command waits, for a bounded time, before the host is told to try
//! again. A command that waits can be aborted; one that is at the device cannot.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, Gather, IoError, Reply, Request};
use pollux_hugepages::Buffer;
use pollux_reactor::{Instant, now, sleep, timeout};
use smallvec::SmallVec;

use super::attached::Attached;
use super::decode::{Direction, Transfer};
use super::gate::{BlockRange, Entered};
use super::in_device::InDevice;
use super::queue::Shared;
use super::transfer::{payload_of, succeed};
use crate::target::queue::{Execution, Outcome, Payload};
use crate::target::sync::{Either, either};
use crate::wire::command::SubmissionEntry;

/// The first pause before a device that was short of resources is asked again; each next one is twice as
/// long.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Whether what was written has to be brought to stable media before the command may read it (FUA of a read).
pub(super) fn needs_flush_before(transfer: &Transfer) -> bool {
    transfer.direction != Direction::Write
        && transfer.force_unit_access
        && transfer.attached.volatile_write_cache
}

/// Starts a transfer that has to wait.
#[cold]
pub(super) fn start(
    queue: &Rc<Shared>,
    entry: SubmissionEntry,
    transfer: Transfer,
    data: Gather,
) -> Execution {
    Execution::from_future(run(queue.clone(), entry, transfer, data))
}

/// Runs a transfer to its end.
pub(super) async fn run(
    queue: Rc<Shared>,
    entry: SubmissionEntry,
    transfer: Transfer,
    data: Gather,
) -> Outcome {
    let patience = Patience::new(&queue, &entry).since(transfer.stamp);
    let result = patience
        .retry(async || attempt(&patience, &transfer, &data).await)
        .await;
    match result {
        Ok(payload) => succeed(&queue, &entry, &transfer, payload),
        Err(error) => queue.fail(&entry, error.into()),
    }
}

async fn attempt(patience: &Patience<'_>, transfer: &Transfer, data: &Gather) -> Result<Payload, IoError> {
    let attached = &transfer.attached;
    let into = match transfer.direction {
        Direction::Read => Some(patience.buffer(transfer.bytes()).await?),
        Direction::Write | Direction::Compare => None,
    };
    let data = patience.aligned(attached, data).await?;
    let (device, entered) = patience.enter(attached, transfer.range()).await?;
    if needs_flush_before(transfer) {
        patience.submit(&*device, Request::Flush, &entered).await?;
    }
    let mut into = into.unwrap_or_default();
    let (mut block, mut left) = (transfer.block, transfer.blocks);
    let mut pieces = Vec::new();
    while left > 0 {
        let blocks = left.min(attached.transfer_blocks_max);
        let bytes = (blocks as usize) << attached.block_shift;
        let done = (block - transfer.block) << attached.block_shift;
        let piece = || data.range(done as usize, bytes);
        let request = match transfer.direction {
            Direction::Read => Request::Read {
                block,
                into: into.split_to(bytes.min(into.len())),
            },
            Direction::Write => Request::Write {
                block,
                from: piece(),
                force_unit_access: transfer.force_unit_access,
            },
            Direction::Compare => Request::Compare { block, with: piece() },
        };
        let reply = patience.submit(&*device, request, &entered).await?;
        if transfer.direction == Direction::Read {
            pieces.push(payload_of(reply, bytes)?);
        }
        block += u64::from(blocks);
        left -= blocks;
    }
    Ok(join(pieces))
}

/// One payload of several.
fn join(mut pieces: Vec<Payload>) -> Payload {
    if pieces.len() == 1 {
        return pieces.pop().unwrap_or_default();
    }
    let mut slices = SmallVec::new();
    for piece in pieces {
        match piece {
            Payload::Empty => {}
            Payload::Buffer(buffer) => slices.push(buffer.freeze()),
            Payload::Slices(more) => slices.extend(more),
        }
    }
    if slices.is_empty() {
        Payload::Empty
    } else {
        Payload::Slices(slices)
    }
}

/// How a command waits: until its deadline, and only as long as it is not aborted.
pub(super) struct Patience<'a> {
    pub(super) queue: &'a Rc<Shared>,
    command_id: u16,
    deadline: Instant,
    /// The stamp of the reservations that the command was checked under, if it must not go to the device
    /// after its host was purged.
    stamp: Option<u64>,
}

impl<'a> Patience<'a> {
    pub(super) fn new(queue: &'a Rc<Shared>, entry: &SubmissionEntry) -> Self {
        Self {
            queue,
            command_id: entry.command_id.get(),
            deadline: now() + queue.wait_max,
            stamp: None,
        }
    }

    /// The same, for a command that ends when its host is purged.
    pub(super) fn since(self, stamp: u64) -> Self {
        Self {
            stamp: Some(stamp),
            ..self
        }
    }

    /// Waits for something.
    ///
    /// # Errors
    ///
    /// [`IoError::Aborted`], or `late` at the deadline.
    async fn wait<T>(&self, future: impl Future<Output = T>, late: IoError) -> Result<T, IoError> {
        let abortable = self.queue.link().abortable(self.command_id);
        let span = self.deadline.saturating_since(now());
        match either(timeout(span, future), abortable).await {
            Either::First(result) => result.map_err(|_| late),
            Either::Second(()) => Err(IoError::Aborted),
        }
    }

    /// Repeats what fails for want of resources, with growing pauses.
    pub(super) async fn retry<T>(
        &self,
        mut act: impl AsyncFnMut() -> Result<T, IoError>,
    ) -> Result<T, IoError> {
        let mut pause = PAUSE_MIN;
        loop {
            match act().await {
                Err(IoError::ResourceShortage) if now() < self.deadline => {}
                result => return result,
            }
            self.wait(sleep(pause), IoError::ResourceShortage).await?;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Submits a request and waits for its reply.
    pub(super) async fn submit(
        &self,
        device: &dyn BlockDevice,
        request: Request,
        entered: &Entered,
    ) -> Result<Reply, IoError> {
        InDevice::submit(device, request, entered, self.queue, self.command_id).await
    }

    /// A buffer, once there is one.
    pub(super) async fn buffer(&self, bytes: usize) -> Result<Buffer, IoError> {
        let memory = self.queue.pool.wait_for(bytes);
        let buffer = self.wait(memory, IoError::ResourceShortage).await?;
        buffer.map_err(|_| IoError::ResourceShortage)
    }

    /// The data in memory that the device can take.
    pub(super) async fn aligned(&self, attached: &Attached, data: &Gather) -> Result<Gather, IoError> {
        let align_bytes = attached.memory_align_bytes as usize;
        if align_bytes == 1 || data.is_aligned(align_bytes) {
            return Ok(data.clone());
        }
        let mut copy = self.buffer(data.len_bytes()).await?;
        if data.copy_to(&mut copy) != data.len_bytes() {
            return Err(IoError::Internal);
        }
        Ok(copy.into())
    }

    /// The device of a namespace, once it is attached.
    pub(super) async fn device(&self, attached: &Rc<Attached>) -> Result<Rc<dyn BlockDevice>, IoError> {
        match attached.device() {
            Some(device) => Ok(device),
            None => self.wait(attached.ready(), IoError::NotReady).await?,
        }
    }

    /// The device of a namespace, with the gate passed.
    pub(super) async fn enter(
        &self,
        attached: &Rc<Attached>,
        range: BlockRange,
    ) -> Result<(Rc<dyn BlockDevice>, Entered), IoError> {
        // A namespace that other engines serve may have no device here.
        attached.check_access()?;
        let device = self.device(attached).await?;
        if !attached.admits(range) {
            self.wait(attached.gate.admitted(range), IoError::ResourceShortage)
                .await?;
        }
        attached.check_access()?;
        if let Some(stamp) = self.stamp {
            let reservations = &attached.namespace.reservations;
            reservations.check_purge(self.queue.host(), stamp)?;
        }
        Ok((device, Entered::new(attached)))
    }
}
