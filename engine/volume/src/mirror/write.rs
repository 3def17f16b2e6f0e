//! Changes: writes, zeros, deallocations, flushes.

use pollux_device::{Gather, IoError, Reply, Request, ZeroOptions};
use pollux_reactor::sleep;

use super::asked::Answers;
use super::connection::{Patience, Verdict, is_session_lost};
use super::read::memory;
use super::{Core, StopReason};
use crate::locks::Mode;
use crate::membership::{SlotNumber, SlotSet};

/// What is done to a range.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Data(Gather, bool),
    Zeroes(ZeroOptions),
    Deallocated,
}

impl Content {
    pub(super) fn request(&self, block: u64, blocks: u64) -> Request {
        match self {
            Self::Data(from, force_unit_access) => Request::Write {
                block,
                from: from.clone(),
                force_unit_access: *force_unit_access,
            },
            Self::Zeroes(options) => Request::WriteZeroes {
                block,
                blocks,
                options: *options,
            },
            Self::Deallocated => Request::Deallocate { block, blocks },
        }
    }

    /// The part for some of the blocks, counted from the start of the whole.
    fn part(&self, from_bytes: usize, bytes: usize) -> Self {
        match self {
            Self::Data(data, force_unit_access) => {
                Self::Data(data.range(from_bytes, bytes), *force_unit_access)
            }
            Self::Zeroes(options) => Self::Zeroes(*options),
            Self::Deallocated => Self::Deallocated,
        }
    }
}

impl Core {
    /// Does a request that changes something, or a flush.
    pub(super) async fn change(&self, request: Request) -> Result<(), IoError> {
        let (block, blocks) = request.range(&self.geometry.get()).unwrap_or_default();
        let content = match request {
            Request::Flush => return self.flush().await,
            Request::Write {
                from,
                force_unit_access,
                ..
            } => Content::Data(from, force_unit_access),
            Request::WriteZeroes { options, .. } => Content::Zeroes(options),
            Request::Deallocate { .. } => Content::Deallocated,
            Request::Read { .. } | Request::Compare { .. } => return Err(IoError::Internal),
        };
        self.enough_in_sync().await?;
        let passage = self.pass_gate().await?;
        self.check_whole()?;
        let end = block + blocks;
        let mut at = block;
        // Region by region: each has an intent of its own, and a resync of its own.
        while at < end {
            let piece_end = end.min((self.region_of(at) + 1) * self.region_blocks);
            let block_bytes = self.geometry.get().block_bytes as usize;
            let part = match at == block && piece_end == end {
                true => content.clone(),
                false => content.part(
                    (at - block) as usize * block_bytes,
                    (piece_end - at) as usize * block_bytes,
                ),
            };
            self.change_piece(at, piece_end - at, part).await?;
            at = piece_end;
        }
        drop(passage);
        self.acknowledge().await
    }

    /// Waits until hosts may be told of a change that was done.
    pub(super) async fn acknowledge(&self) -> Result<(), IoError> {
        self.enough_in_sync().await?;
        // It may have waited for the record, and a newer target may have found by now that caches were
        // lost, with what was done here in them.
        self.confirm_lease().await
    }

    /// Waits while fewer replicas are in sync than writes need.
    async fn enough_in_sync(&self) -> Result<(), IoError> {
        self.changed
            .until(|| {
                let is_short = self.members.borrow().is_short();
                (!is_short || self.stopped().is_some()).then_some(())
            })
            .await;
        self.check_serving()
    }

    async fn change_piece(&self, block: u64, blocks: u64, content: Content) -> Result<(), IoError> {
        let _lock = self.locks.lock(block..block + blocks, Mode::Exclusive).await;
        self.with_intent(block, async || {
            self.replicate(block, blocks, &content, None).await
        })
        .await
    }

    /// Does something to blocks of one region once their intent is durable.
    pub(super) async fn with_intent<T>(
        &self,
        block: u64,
        act: impl AsyncFnOnce() -> Result<T, IoError>,
    ) -> Result<T, IoError> {
        let region = self.region_of(block);
        let absent = self.members.borrow().absent();
        self.regions.borrow_mut().begin_write(region, absent);
        let result = match self.established(region).await {
            Ok(()) => act().await,
            Err(error) => Err(error),
        };
        self.regions.borrow_mut().end_write(region);
        result
    }

    async fn established(&self, region: u64) -> Result<(), IoError> {
        if self.regions.borrow().is_established(region) {
            return self.check_serving();
        }
        self.map_changed.wake();
        self.map_written
            .until(|| {
                let established = self.regions.borrow().is_established(region);
                (established || self.stopped().is_some()).then_some(())
            })
            .await;
        self.check_serving()
    }

    /// Those that have to do a change of a region, or of the whole volume.
    pub(super) fn targets(&self, region: Option<u64>) -> SlotSet {
        let members = self.members.borrow();
        let mut targets = members.required().and(members.live());
        if let Some(slot) = members.syncing() {
            let regions = self.regions.borrow();
            if region.is_none_or(|region| regions.takes_writes(region, slot)) {
                targets.insert(slot);
            }
        }
        targets
    }

    /// Waits until there is somebody to send to, or nobody needs to have it any more.
    async fn targets_changed(&self, region: Option<u64>, done: SlotSet) {
        self.changed
            .until(|| {
                let more = !self.targets(region).without(done).is_empty();
                let enough = self.members.borrow().may_acknowledge(done);
                (more || enough || self.stopped().is_some()).then_some(())
            })
            .await;
    }

    /// Has all of the set do a change of one region, and the replica under resync if it is to. Some may have
    /// answered already.
    pub(super) async fn replicate(
        &self,
        block: u64,
        blocks: u64,
        content: &Content,
        mut answered: Option<Answers>,
    ) -> Result<(), IoError> {
        let region = Some(self.region_of(block));
        let mut done = SlotSet::EMPTY;
        let mut patience = Patience::default();
        loop {
            self.check_serving()?;
            let answers = match answered.take() {
                Some(answers) => answers,
                None => {
                    let missing = self.targets(region).without(done);
                    if missing.is_empty() {
                        if self.members.borrow().may_acknowledge(done) {
                            return Ok(());
                        }
                        self.targets_changed(region, done).await;
                        continue;
                    }
                    self.send_all(missing, || content.request(block, blocks)).await
                }
            };
            let mut again = false;
            let mut full = None;
            for (slot, connection, result) in answers {
                let Err(error) = result else {
                    done.insert(slot);
                    continue;
                };
                match self.judge(slot, &connection, error) {
                    Verdict::Again => {
                        again = true;
                        self.bear(slot, &mut patience);
                    }
                    Verdict::NoSpace => full = Some(slot),
                    Verdict::Changed => {}
                    Verdict::Final(error) => return Err(self.undone(error)),
                }
            }
            if let Some(slot) = full {
                self.count(|counters| counters.no_room += 1);
                if Box::pin(self.take_back(slot, block, blocks)).await? {
                    self.count(|counters| counters.taken_back += 1);
                    return Err(IoError::CapacityExceeded);
                }
                // Others may have been given back what was there before: they have the change no more.
                done = SlotSet::EMPTY;
            }
            if again || full.is_some() {
                sleep(self.options.retry_pause).await;
            }
        }
    }

    /// The last replica of the set did not do a change, and hosts are told. One under resync may have done
    /// it, and would have something else then: it begins anew.
    fn undone(&self, error: IoError) -> IoError {
        let syncing = self.members.borrow().syncing();
        if let Some(slot) = syncing {
            self.fail(slot);
        }
        error
    }

    /// A replica has no room for a write: what it has there is put on the others, which have room. Whether
    /// they are the same again; if not, somebody failed, and the write is to be tried again.
    async fn take_back(&self, source: SlotNumber, block: u64, blocks: u64) -> Result<bool, IoError> {
        let bytes = blocks as usize * self.geometry.get().block_bytes as usize;
        let mut data: Option<Gather> = None;
        let mut done = SlotSet::EMPTY;
        let mut patience = Patience::default();
        done.insert(source);
        loop {
            self.check_serving()?;
            if !self.members.borrow().readable().contains(source) {
                return Ok(false);
            }
            let Some(data) = data.clone() else {
                let Some(connection) = self.connection(source) else {
                    return Ok(false);
                };
                let read = Request::Read {
                    block,
                    into: memory(bytes),
                };
                let result = connection.send(read, self.options.request_timeout).await;
                match result.and_then(Reply::into_slice) {
                    Ok(slice) => data = Some(slice.into()),
                    Err(error) => match self.judge(source, &connection, error) {
                        Verdict::Again | Verdict::NoSpace => sleep(self.options.retry_pause).await,
                        Verdict::Changed => return Ok(false),
                        Verdict::Final(error) => return Err(self.undone(error)),
                    },
                }
                continue;
            };
            let missing = self.targets(Some(self.region_of(block))).without(done);
            if missing.is_empty() {
                return Ok(true);
            }
            // The write may be on the medium of some by now. Hosts are told that it failed: no power cut
            // brings it back.
            let write = || Request::Write {
                block,
                from: data.clone(),
                force_unit_access: true,
            };
            let mut again = false;
            for (slot, connection, result) in self.send_all(missing, write).await {
                let Err(error) = result else {
                    done.insert(slot);
                    continue;
                };
                match self.judge(slot, &connection, error) {
                    Verdict::Again => {
                        again = true;
                        self.bear(slot, &mut patience);
                    }
                    // It has no room either. If it is the same without that, all is well.
                    Verdict::NoSpace => {
                        let into = memory(bytes);
                        let read = Request::Read { block, into };
                        let result = connection.send(read, self.options.request_timeout).await;
                        let held = result.and_then(Reply::into_slice);
                        if held.is_ok_and(|held| data.pieces().iter().all(|piece| piece[..] == held[..])) {
                            done.insert(slot);
                        } else {
                            self.fail(slot);
                        }
                    }
                    Verdict::Changed => {}
                    Verdict::Final(error) => return Err(self.undone(error)),
                }
            }
            if again {
                sleep(self.options.retry_pause).await;
            }
        }
    }

    /// Flushes all of the set, and the replica under resync.
    pub(super) async fn flush(&self) -> Result<(), IoError> {
        let mut done = SlotSet::EMPTY;
        let mut patience = Patience::default();
        loop {
            self.check_serving()?;
            let missing = self.targets(None).without(done);
            if missing.is_empty() {
                if self.members.borrow().may_acknowledge(done) {
                    return Ok(());
                }
                self.targets_changed(None, done).await;
                continue;
            }
            let mut again = false;
            for (slot, connection, result) in self.send_all(missing, || Request::Flush).await {
                let Err(error) = result else {
                    done.insert(slot);
                    continue;
                };
                match self.judge(slot, &connection, error) {
                    Verdict::Again => {
                        again = true;
                        self.bear(slot, &mut patience);
                    }
                    Verdict::Changed => {}
                    // What it had in its cache may be gone, and a second flush would say that all is well.
                    Verdict::Final(error) => {
                        debug_assert!(!is_session_lost(error), "a lost session is no answer");
                        self.stop(StopReason::CacheLost);
                        return Err(error);
                    }
                    Verdict::NoSpace => {
                        if self.fail(slot) == crate::members::Failed::Last {
                            self.stop(StopReason::CacheLost);
                        }
                    }
                }
            }
            if again {
                sleep(self.options.retry_pause).await;
            }
        }
    }
}
