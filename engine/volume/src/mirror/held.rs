//! Reading a snapshot from the replicas that have it, whichever of them fail or say nothing meanwhile.
//!
//! All that have a snapshot have the same: each read may be answered by another one, and what was read before
//! counts. Who never answers, or is lost, is not read from any more for as long as the snapshot is held here,
//! and is the last to be asked for the next one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError};
use pollux_hugepages::Slice;
use pollux_reactor::{sleep, timeout};
use uuid::Uuid;

use super::Core;
use super::connection::{clock, is_session_lost};
use super::holes::tells_hole;
use super::read::memory;
use crate::membership::{SlotNumber, SnapshotEntry};
use crate::replica::CommandError;

/// A snapshot on one replica of the set.
struct Source {
    slot: SlotNumber,
    device: Rc<dyn BlockDevice>,
    /// Where its data begins, in its blocks.
    first_block: u64,
}

impl Source {
    /// The blocks of the volume that it has: the volume may have grown since.
    fn blocks(&self) -> u64 {
        self.device.geometry().blocks.saturating_sub(self.first_block)
    }
}

/// A snapshot that is read: see the module.
pub(super) struct Held {
    cut: Uuid,
    blocks: u64,
    /// The best first.
    sources: RefCell<Vec<Rc<Source>>>,
    /// Those that may have it, and were not needed yet.
    others: RefCell<VecDeque<SlotNumber>>,
    /// What somebody said who could not be asked, and may be later.
    lost: Cell<Option<IoError>>,
}

impl Held {
    /// The blocks of the volume that it has: the volume may have grown since.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    fn source(&self, at: usize) -> Option<Rc<Source>> {
        self.sources.borrow().get(at).cloned()
    }

    fn give_up(&self, source: &Rc<Source>) {
        let mut sources = self.sources.borrow_mut();
        sources.retain(|other| !Rc::ptr_eq(other, source));
    }
}

impl Core {
    /// A snapshot to read; `None` when nobody of the set has it.
    ///
    /// # Errors
    ///
    /// Why those that have it cannot be asked now.
    pub(super) async fn hold_of(&self, entry: &SnapshotEntry) -> Result<Option<Held>, CommandError> {
        let holders = entry.held_by.and(self.members.borrow().readable());
        self.silent.ask_again();
        let (silent, slow) = (self.silent.slots(), self.slow.get());
        let is_local = |slot: SlotNumber| self.connection(slot).is_some_and(|found| found.is_local);
        let mut others: Vec<SlotNumber> = holders.iter().collect();
        others.sort_by_key(|&slot| (silent.contains(slot), slow.contains(slot), !is_local(slot)));
        let mut others = VecDeque::from(others);
        let mut last = None;
        while let Some(slot) = others.pop_front() {
            match self.open_source(slot, entry.cut).await {
                Ok(source) => {
                    return Ok(Some(Held {
                        cut: entry.cut,
                        blocks: source.blocks(),
                        sources: RefCell::new(vec![Rc::new(source)]),
                        others: RefCell::new(others),
                        lost: Cell::new(last.map(|_| IoError::PathDown)),
                    }));
                }
                Err(CommandError::Unsupported | CommandError::NoSnapshot(_)) => {}
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(None), Err)
    }

    async fn open_source(&self, slot: SlotNumber, cut: Uuid) -> Result<Source, CommandError> {
        let port = self.port(slot).ok_or(CommandError::Unreachable)?;
        let connection = self.connection(slot).ok_or(CommandError::Unreachable)?;
        let opening = port.open_snapshot(self.epoch, cut);
        let opened = timeout(self.options.promise_timeout, opening).await;
        Ok(Source {
            slot,
            device: opened.unwrap_or(Err(CommandError::Unreachable))?,
            first_block: connection.first_block(),
        })
    }

    /// The source at a place, which is opened if it has to be.
    async fn source_of(&self, held: &Held, at: usize) -> Option<Rc<Source>> {
        loop {
            if let Some(source) = held.source(at) {
                return Some(source);
            }
            let slot = held.others.borrow_mut().pop_front()?;
            match self.open_source(slot, held.cut).await {
                Ok(source) => held.sources.borrow_mut().push(Rc::new(source)),
                Err(CommandError::Unsupported | CommandError::NoSnapshot(_)) => {}
                Err(_) => held.lost.set(Some(IoError::PathDown)),
            }
        }
    }

    /// What a snapshot holds, from whoever can tell.
    ///
    /// # Errors
    ///
    /// That of a source which may be able to later, if there is one; [`IoError::TimedOut`] when those that
    /// are left never answer.
    pub(super) async fn read_held(&self, held: &Held, block: u64, bytes: usize) -> Result<Slice, IoError> {
        let blocks = bytes as u64 / u64::from(self.geometry.get().block_bytes);
        let wait_max = self.options.request_timeout;
        let tried_until = clock() + wait_max;
        loop {
            self.check_serving()?;
            let (mut later, mut last) = (None, None);
            let mut at = 0;
            while let Some(source) = self.source_of(held, at).await {
                if block + blocks > source.blocks() {
                    at += 1;
                    continue;
                }
                let reading = source.device.read(source.first_block + block, memory(bytes));
                match timeout(wait_max, reading).await.unwrap_or(Err(IoError::TimedOut)) {
                    Ok(data) => return Ok(data.freeze()),
                    Err(error @ (IoError::ResourceShortage | IoError::NotReady)) => {
                        later = Some(error);
                        at += 1;
                    }
                    Err(error) if error == IoError::Fenced || is_session_lost(error) => {
                        tracing::debug!(block, %error, "a snapshot is not read from a replica any more");
                        held.give_up(&source);
                        match error {
                            IoError::TimedOut => self.silent.insert(source.slot),
                            error => held.lost.set(Some(error)),
                        }
                    }
                    Err(error) => {
                        tracing::error!(block, %error, "a block of a snapshot cannot be read");
                        last = Some(error);
                        at += 1;
                    }
                }
            }
            match later {
                Some(_) if clock() < tried_until => sleep(self.options.retry_pause).await,
                _ => return Err(later.or(held.lost.get()).or(last).unwrap_or(IoError::TimedOut)),
            }
        }
    }

    /// Whether a snapshot holds nothing there, as one of those says that have it. Who never answers is not
    /// asked again for a while.
    pub(super) async fn is_held_hole(&self, held: &Held, block: u64, blocks: u64) -> bool {
        let mut at = 0;
        while let Some(source) = held.source(at) {
            at += 1;
            if self.mutes.slots().contains(source.slot) || block + blocks > source.blocks() {
                continue;
            }
            let (device, first) = (&*source.device, source.first_block + block);
            match tells_hole(device, first, blocks, self.options.request_timeout).await {
                Some(is_hole) => return is_hole,
                None => self.mutes.insert(source.slot),
            }
        }
        false
    }
}
