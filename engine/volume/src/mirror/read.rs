//! Reads: from the local replica, from another when that one fails, and what was bad is written anew.

use std::rc::Rc;

use pollux_device::{Gather, IoError, Reply, Request};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::{Unabandoned, buffers, sleep};

use super::Core;
use super::connection::is_session_lost;
use crate::locks::Mode;
use crate::members::Failed;
use crate::membership::{SlotNumber, SlotSet};

/// Memory that is never waited for: those who hold the pool's may wait for this.
pub(super) fn memory(bytes: usize) -> Buffer {
    buffers()
        .allocate(bytes)
        .unwrap_or_else(|| Buffer::from_heap(bytes))
}

/// What was read, and who could not.
struct Found {
    data: Slice,
    bad: SlotSet,
}

impl Core {
    /// Reads blocks.
    pub(super) async fn read(self: &Rc<Self>, block: u64, into: Buffer) -> Result<Buffer, IoError> {
        let bytes = into.len();
        let blocks = self
            .geometry
            .get()
            .blocks_of(bytes)
            .ok_or(IoError::InvalidField)?;
        self.check_whole()?;
        let before = self.roll_back();
        self.settled(block, blocks).await?;
        let found = {
            let _lock = self.locks.lock(block..block + blocks, Mode::Shared).await;
            let found = self.read_any(block, Some(into), bytes).await?;
            self.confirm_lease().await?;
            found
        };
        if self.roll_back() != before {
            // Some of it may be of before, and some not.
            return Err(IoError::NotReady);
        }
        if !found.bad.is_empty() {
            // Whoever reads may go away; what was begun on a replica has to be ended before anything else is
            // written there.
            let (core, bad) = (self.clone(), found.bad);
            Unabandoned::new(async move { core.repair(block, blocks, bad).await }).await;
        }
        match found.data.try_into_buffer() {
            Ok(buffer) => Ok(buffer),
            // Shared with the device.
            Err(data) => {
                let mut buffer = memory(bytes);
                buffer.copy_from_slice(&data);
                Ok(buffer)
            }
        }
    }

    /// Compares blocks with data.
    pub(super) async fn compare(self: &Rc<Self>, block: u64, with: &Gather) -> Result<(), IoError> {
        let data = self.read(block, memory(with.len_bytes())).await?;
        let mut at = 0;
        for piece in with.pieces() {
            if data.get(at..at + piece.len()) != Some(&piece[..]) {
                return Err(IoError::CompareFailed);
            }
            at += piece.len();
        }
        Ok(())
    }

    /// The replica to read from: a local one if there is one.
    pub(super) fn source(&self, tried: SlotSet) -> Option<SlotNumber> {
        let candidates = self.members.borrow().readable().without(tried);
        let fast = candidates.without(self.slow.get());
        let candidates = if fast.is_empty() { candidates } else { fast };
        let is_local = |slot: &SlotNumber| self.connection(*slot).is_some_and(|found| found.is_local);
        candidates
            .iter()
            .find(is_local)
            .or_else(|| candidates.iter().next())
    }

    /// Reads blocks that are locked from any replica of the set.
    async fn read_any(&self, block: u64, into: Option<Buffer>, bytes: usize) -> Result<Found, IoError> {
        let mut into = into;
        let mut bad = SlotSet::EMPTY;
        let mut first_error = None;
        loop {
            self.check_serving()?;
            let source = self
                .source(bad)
                .and_then(|slot| Some((slot, self.connection(slot)?)));
            let Some((slot, connection)) = source else {
                if let Some(error) = first_error {
                    return Err(error);
                }
                self.changed
                    .until(|| {
                        let ready = self.source(bad).is_some() || self.stopped().is_some();
                        ready.then_some(())
                    })
                    .await;
                continue;
            };
            let into = into.take().unwrap_or_else(|| memory(bytes));
            let read = Request::Read { block, into };
            let result = connection.send(read, self.options.request_timeout).await;
            match result.and_then(Reply::into_slice) {
                Ok(data) if data.len() == bytes => return Ok(Found { data, bad }),
                // Nonsense.
                Ok(_) => {
                    first_error = first_error.or(Some(IoError::Internal));
                    bad.insert(slot);
                }
                Err(IoError::ResourceShortage | IoError::NotReady) => sleep(self.options.retry_pause).await,
                Err(error) if error == IoError::Fenced || is_session_lost(error) => {
                    self.judge(slot, &connection, error);
                }
                Err(error) => {
                    first_error = first_error.or(Some(error));
                    bad.insert(slot);
                }
            }
        }
    }

    /// Reads blocks that are locked alone.
    pub(super) async fn read_locked(&self, block: u64, bytes: usize) -> Result<Slice, IoError> {
        Ok(self.read_any(block, None, bytes).await?.data)
    }

    /// Writes blocks that some replicas could not read anew, from one that can. One that cannot write them
    /// either is out.
    pub(super) async fn repair(&self, block: u64, blocks: u64, bad: SlotSet) {
        let end = block + blocks;
        let mut at = block;
        while at < end {
            let piece_end = end.min((self.region_of(at) + 1) * self.region_blocks);
            let Ok(_passage) = self.pass_gate().await else {
                return;
            };
            let _lock = self.locks.lock(at..piece_end, Mode::Exclusive).await;
            let act = async || self.repair_piece(at, piece_end - at, bad).await;
            if self.with_intent(at, act).await.is_err() {
                return;
            }
            at = piece_end;
        }
        self.count(|counters| counters.repairs += 1);
    }

    async fn repair_piece(&self, block: u64, blocks: u64, bad: SlotSet) -> Result<(), IoError> {
        let bytes = blocks as usize * self.geometry.get().block_bytes as usize;
        let data = self.read_locked(block, bytes).await?;
        let mut left = bad;
        loop {
            self.check_serving()?;
            left = left.and(self.members.borrow().readable());
            if left.is_empty() {
                return Ok(());
            }
            let write = || Request::Write {
                block,
                from: Gather::from(data.clone()),
                force_unit_access: false,
            };
            for (slot, connection, result) in self.send_all(left, write).await {
                match result {
                    // Without room it stays as bad as it was, which is no fault of it.
                    Ok(_) | Err(IoError::CapacityExceeded) => left.remove(slot),
                    Err(IoError::ResourceShortage | IoError::NotReady) => {}
                    Err(error) if is_session_lost(error) || error == IoError::Fenced => {
                        self.judge(slot, &connection, error);
                    }
                    Err(error) => match self.fail(slot) {
                        Failed::Last => return Err(error),
                        Failed::Out | Failed::Ignored => {}
                    },
                }
            }
            if !left.is_empty() {
                sleep(self.options.retry_pause).await;
            }
        }
    }
}
