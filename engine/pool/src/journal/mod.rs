//! The journal: what changed since the last checkpoint, in a ring of blocks on one device or two.
//!
//! Records are appended to blocks in memory. A commit makes all that were appended before it durable;
//! whoever asks for one while another is under way shares the next. How it is told what was durable from
//! what was torn is in [`layout::journal`](crate::layout::journal), and why the order of writes is right in
//! `docs/decisions/pool.md`.
//!
//! Invariants:
//! - Blocks have consecutive sequences. `tail <= durable <= write <= open`, and `open - tail` is less than
//!   the ring is long: a block that may be replayed is never written over.
//! - A block is written once. The one that a commit takes is sealed, however little is in it.
//! - Before a block is written, every device with a volatile cache was flushed after the last record of the
//!   block was appended: records are appended when their data is written, so none is durable before its data.
//! - A block says that those before it are durable only when they are on every copy that is in use.
//! - Nothing is durable on fewer copies than before until whoever was named for it was told, and is done.
//! - A commit goes on when nobody waits for it any more.

mod commit;
mod ring;
mod scan;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use arrayvec::ArrayVec;
use pollux_device::IoError;
use uuid::Uuid;

use crate::device::PoolDevice;
use crate::layout::journal::{JournalBlock, RECORD_BYTES_MAX, RECORDS_BYTES_MAX, Record};
use crate::layout::slot::Slot;
pub use ring::{Ring, RingPosition};
pub use scan::{ScanError, Scanned, Scanner};

/// Copies of the journal, on a device each.
pub const COPIES_MAX: usize = 2;

/// Blocks that a ring must have.
pub const RING_BLOCKS_MIN: u64 = 128;

/// Blocks of the ring that only a checkpoint uses: to write again what must outlive the part that it ends.
pub const RESERVED_BLOCKS: u64 = 32;

/// Records that are sure to fit one block.
pub const RECORDS_TOGETHER_MAX: usize = RECORDS_BYTES_MAX / RECORD_BYTES_MAX;

const _: () = assert!(RECORDS_TOGETHER_MAX >= 2);

/// Why a record could not be made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// There is no room in the ring until a checkpoint is durable.
    #[error("the journal is full until the next checkpoint")]
    Full,
    /// No copy could be written, or a device could not be flushed. Nothing becomes durable any more.
    #[error("the journal cannot be written: {0}; export the pool, see to the device and import it again")]
    Failed(IoError),
}

/// Where a copy of the journal is.
#[derive(Clone)]
pub struct JournalCopy {
    /// The device.
    pub device: PoolDevice,
    /// The blocks of it.
    pub ring: Ring,
}

/// Sees to what has to be durable before a copy of the journal may be given up: the one on this device.
pub(crate) type GivesUp = Rc<dyn Fn(PoolDevice) -> Pin<Box<dyn Future<Output = Result<(), IoError>>>>>;

/// What a record is appended for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFor {
    /// A change: some room is left for checkpoints.
    Change,
    /// A checkpoint.
    Checkpoint,
}

/// What the blocks of a journal have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalIdentity {
    /// The pool.
    pub pool: Uuid,
    /// Of the superblock since the last import.
    pub incarnation: u64,
}

/// How much of the ring is used, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingUse {
    /// Blocks that a replay would read, or that are about to be written.
    pub used: u64,
    /// Blocks of the ring.
    pub blocks: u64,
}

/// See the module.
pub struct Journal {
    identity: JournalIdentity,
    /// Where a sequence is in the ring follows from where one of them is.
    origin: RingPosition,
    ring_blocks: u64,
    gives_up: RefCell<Option<GivesUp>>,
    state: RefCell<State>,
}

struct State {
    copies: ArrayVec<JournalCopy, COPIES_MAX>,
    /// Devices to flush before records are durable.
    data_devices: Vec<PoolDevice>,
    /// Blocks before this are in a checkpoint.
    tail: u64,
    /// Blocks before this are durable.
    durable: u64,
    /// The first block that no write has taken.
    write: u64,
    /// The block that records are appended to.
    open: u64,
    /// It, if there is one; there is none while the ring has no room.
    block: Option<JournalBlock>,
    /// Blocks from `write` up to `open`.
    full: VecDeque<JournalBlock>,
    /// Blocks before this are to be durable.
    wanted: u64,
    is_writing: bool,
    /// The last durable checkpoint.
    checkpoint: u64,
    failed: Option<IoError>,
    /// Wait for blocks to be durable.
    committing: Vec<Waker>,
    /// Wait for room.
    waiting: Vec<Waker>,
}

impl Journal {
    /// A journal whose next block is at `start`; all before it is in `checkpoint`. The rings of all copies
    /// are as long as the shortest.
    pub fn new(
        identity: JournalIdentity,
        copies: ArrayVec<JournalCopy, COPIES_MAX>,
        start: RingPosition,
        checkpoint: u64,
    ) -> Rc<Self> {
        let ring_blocks = copies.iter().map(|copy| copy.ring.blocks).min().unwrap_or(0);
        let data_devices = copies.iter().map(|copy| copy.device.clone()).collect();
        Rc::new(Self {
            identity,
            origin: start,
            ring_blocks,
            gives_up: RefCell::default(),
            state: RefCell::new(State {
                copies,
                data_devices,
                tail: start.sequence,
                durable: start.sequence,
                write: start.sequence,
                open: start.sequence,
                block: None,
                full: VecDeque::new(),
                wanted: start.sequence,
                is_writing: false,
                checkpoint,
                failed: None,
                committing: Vec::new(),
                waiting: Vec::new(),
            }),
        })
    }

    /// Names who is to be told of a copy that is given up, before anything is durable without it.
    pub(crate) fn set_gives_up(&self, gives_up: GivesUp) {
        *self.gives_up.borrow_mut() = Some(gives_up);
    }

    /// Blocks of the ring.
    pub fn ring_blocks(&self) -> u64 {
        self.ring_blocks
    }

    /// The copies that are in use.
    pub fn copies(&self) -> ArrayVec<JournalCopy, COPIES_MAX> {
        self.state.borrow().copies.clone()
    }

    /// Adds a copy that is as long as the others: all blocks from the next cut on are in it.
    pub fn add_copy(&self, copy: JournalCopy) {
        debug_assert!(
            copy.ring.blocks >= self.ring_blocks,
            "blocks would have two places"
        );
        let mut state = self.state.borrow_mut();
        if copy.ring.blocks >= self.ring_blocks {
            // There is room as long as the callers count.
            let _ = state.copies.try_push(copy);
        }
    }

    /// Blocks do not go to a device any more.
    pub fn remove_copy(&self, device: &PoolDevice) {
        let mut state = self.state.borrow_mut();
        state.copies.retain(|copy| !copy.device.is_same(device));
    }

    /// A device has taken the place of another one, and has all of its blocks.
    pub fn replace_device(&self, old: &PoolDevice, new: &PoolDevice) {
        let mut state = self.state.borrow_mut();
        for copy in &mut state.copies {
            if copy.device.is_same(old) {
                copy.device = new.clone();
            }
        }
    }

    /// Whether no write is under way, nor any that was asked for.
    pub(crate) fn is_idle(&self) -> bool {
        !self.state.borrow().is_writing
    }

    /// Sets which devices hold data: those with a volatile cache are flushed before records are durable.
    pub fn set_data_devices(&self, devices: Vec<PoolDevice>) {
        self.state.borrow_mut().data_devices = devices;
    }

    /// Appends a record, in memory. It is durable once [`Journal::durable`] has reached the sequence that is
    /// returned.
    ///
    /// # Errors
    ///
    /// [`JournalError::Full`]: nothing was appended, see [`Journal::room`]. [`JournalError::Failed`].
    pub fn append(&self, record: &Record, purpose: AppendFor) -> Result<u64, JournalError> {
        self.append_together(std::slice::from_ref(record), purpose)
    }

    /// Appends records to one block, so that all of them become durable or none: at most
    /// [`RECORDS_TOGETHER_MAX`].
    ///
    /// # Errors
    ///
    /// As [`Journal::append`].
    pub fn append_together(&self, records: &[Record], purpose: AppendFor) -> Result<u64, JournalError> {
        debug_assert!(records.len() <= RECORDS_TOGETHER_MAX, "they may not fit a block");
        let mut state = self.state.borrow_mut();
        if let Some(error) = state.failed {
            return Err(JournalError::Failed(error));
        }
        if state.block.as_mut().is_some_and(|block| block.push_all(records)) {
            return Ok(state.open + 1);
        }
        let next = state.open + u64::from(state.block.is_some());
        if !self.has_block(&state, next, purpose) {
            return Err(JournalError::Full);
        }
        if let Some(full) = state.block.take() {
            state.full.push_back(full);
            state.open += 1;
        }
        let mut block = JournalBlock::new();
        let fits = block.push_all(records);
        debug_assert!(fits, "so many of the longest records fit an empty block");
        state.block = Some(block);
        Ok(state.open + 1)
    }

    /// Appends the record of a slot, given its 128 bytes; see [`Journal::append`].
    ///
    /// # Errors
    ///
    /// As [`Journal::append`].
    pub(crate) fn append_slot(&self, volume: u64, index: u64, slot: &[u8]) -> Result<u64, JournalError> {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if state.failed.is_none()
                && let Some(block) = &mut state.block
                && block.push_slot(volume, index, slot)
            {
                return Ok(state.open + 1);
            }
        }
        let slot = Slot::decode(slot).map_err(|_| JournalError::Failed(IoError::Internal))?;
        self.append(&Record::Slot { volume, index, slot }, AppendFor::Change)
    }

    /// Appends the record of a block that was overwritten in place; see [`Journal::append`].
    ///
    /// # Errors
    ///
    /// As [`Journal::append`].
    #[inline]
    pub(crate) fn append_checksum(
        &self,
        volume: u64,
        index: u64,
        block: u8,
        checksum: u32,
    ) -> Result<u64, JournalError> {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if state.failed.is_none()
                && let Some(open) = &mut state.block
                && open.push_checksum(volume, index, block, checksum)
            {
                return Ok(state.open + 1);
            }
        }
        let record = Record::Checksum {
            volume,
            index,
            block,
            checksum,
        };
        self.append(&record, AppendFor::Change)
    }

    /// Whether a change can be appended now.
    pub(crate) fn has_room(&self) -> bool {
        self.durable_with_room().is_some()
    }

    /// As [`Journal::durable`], if a change can be appended now.
    #[inline]
    pub(crate) fn durable_with_room(&self) -> Option<u64> {
        let state = self.state.borrow();
        let has_room = state.failed.is_none() && self.has_block(&state, state.open + 1, AppendFor::Change);
        has_room.then_some(state.durable)
    }

    /// Blocks before this sequence were begun.
    #[inline]
    pub(crate) fn begun(&self) -> u64 {
        let state = self.state.borrow();
        state.open + u64::from(state.block.is_some())
    }

    /// Whether a block of this sequence may be begun.
    fn has_block(&self, state: &State, sequence: u64, purpose: AppendFor) -> bool {
        let reserved = match purpose {
            AppendFor::Change => RESERVED_BLOCKS,
            AppendFor::Checkpoint => 0,
        };
        sequence - state.tail < self.ring_blocks.saturating_sub(reserved)
    }

    /// Waits until a change can be appended.
    ///
    /// # Errors
    ///
    /// [`JournalError::Failed`].
    pub async fn room(&self) -> Result<(), JournalError> {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if let Some(error) = state.failed {
                return Poll::Ready(Err(JournalError::Failed(error)));
            }
            // A whole block, so that any record fits.
            if self.has_block(&state, state.open + 1, AppendFor::Change) {
                return Poll::Ready(Ok(()));
            }
            remember(&mut state.waiting, context.waker());
            Poll::Pending
        })
        .await
    }

    /// Makes all that was appended before durable.
    ///
    /// # Errors
    ///
    /// [`JournalError::Failed`].
    pub async fn commit(self: &Rc<Self>) -> Result<(), JournalError> {
        let wanted = {
            let state = self.state.borrow();
            state.open + u64::from(state.block.is_some())
        };
        self.request(wanted);
        self.reached(wanted).await
    }

    /// Waits until the blocks before `sequence` are durable, without asking for it.
    ///
    /// # Errors
    ///
    /// [`JournalError::Failed`].
    pub async fn reached(&self, sequence: u64) -> Result<(), JournalError> {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.durable >= sequence {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = state.failed {
                return Poll::Ready(Err(JournalError::Failed(error)));
            }
            remember(&mut state.committing, context.waker());
            Poll::Pending
        })
        .await
    }

    /// Why nothing can be written to it any more, if so.
    pub fn failure(&self) -> Option<IoError> {
        self.state.borrow().failed
    }

    /// Blocks before this sequence are durable.
    pub fn durable(&self) -> u64 {
        self.state.borrow().durable
    }

    /// The block that the next record goes to, as a place from which a replay can begin. Whoever lets a
    /// checkpoint begin here has all earlier records in it.
    pub fn position(&self) -> RingPosition {
        let state = self.state.borrow();
        let started = state.block.as_ref().is_some_and(|block| !block.is_empty());
        self.position_of(state.open + u64::from(started))
    }

    /// Ends the block that records are appended to, so that the next one begins another: where the part of
    /// the journal begins that a checkpoint leaves.
    pub fn cut(&self) -> RingPosition {
        let mut state = self.state.borrow_mut();
        if let Some(block) = state.block.take() {
            state.full.push_back(block);
            state.open += 1;
        }
        self.position_of(state.open)
    }

    fn position_of(&self, sequence: u64) -> RingPosition {
        self.origin
            .advanced(sequence - self.origin.sequence, self.ring_blocks)
    }

    /// Whether there are records that no write has taken yet.
    pub fn has_unwritten(&self) -> bool {
        let state = self.state.borrow();
        state.failed.is_none() && state.write < state.open + u64::from(state.block.is_some())
    }

    /// How much of the ring is used.
    pub fn used(&self) -> RingUse {
        let state = self.state.borrow();
        RingUse {
            used: state.open + u64::from(state.block.is_some()) - state.tail,
            blocks: self.ring_blocks,
        }
    }

    /// Whether it is time for a checkpoint: so much room is left that changes go on while it is made.
    pub fn is_checkpoint_due(&self) -> bool {
        let RingUse { used, blocks } = self.used();
        used >= blocks.saturating_sub(RESERVED_BLOCKS) / 2
    }

    /// A checkpoint is durable that holds all before `sequence`: those blocks can be written over.
    pub fn release(&self, sequence: u64, checkpoint: u64) {
        let waiting = {
            let mut state = self.state.borrow_mut();
            state.tail = state.tail.max(sequence.min(state.durable));
            state.checkpoint = state.checkpoint.max(checkpoint);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}
