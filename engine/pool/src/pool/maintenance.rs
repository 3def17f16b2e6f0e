//! What a pool does by itself: commits what nobody flushes, makes checkpoints, and gives back the space of
//! what was deleted.

use std::rc::{Rc, Weak};
use std::time::Duration;

use pollux_reactor::{sleep, spawn};

use super::{Pool, PoolError, ScrubOptions, State};
use crate::allocator::NoSpace;
use crate::layout::scrub::ScrubState;
use crate::layout::volume::VolumeState;
use crate::layout::{BLOCK_BYTES, EXTENT_BLOCKS, ExtentId};

/// Blocks for pages that a write may need: every level of a map, both copies.
const WRITE_PAGES: u64 = 2 * (super::MAP_SHAPE.height as u64 + 1);

/// Blocks that are always left for a checkpoint, and what it needs for each page of the allocation state and
/// each volume that has changed: the pages on the way, both copies.
const CHECKPOINT_PAGES: u64 = 64;
const CHECKPOINT_PAGES_EACH: u64 = 4;

/// How long it takes at most until a scrub by itself sees that the pool was closed, and the pause after one
/// that failed.
const SCRUB_LOOK: Duration = Duration::from_secs(60);

/// How often a write waits for a checkpoint to free space before there is none.
const SPACE_ROUNDS_MAX: u32 = 3;

/// What a change may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// What is not set aside for thick volumes.
    Rest,
    /// That too: the change is one of a thick volume, or gives back space.
    SetAside,
}

/// Room for the pages that a write changes, until it is dropped.
pub(crate) struct Admitted(Rc<Pool>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.state.borrow_mut().writes_admitted -= 1;
        self.0.admission.wake();
    }
}

impl State {
    /// Blocks for pages that writes under way and a checkpoint were promised.
    pub(super) fn pages_spoken_for(&self) -> u64 {
        self.writes_admitted * WRITE_PAGES + self.pages_for_checkpoint()
    }

    fn pages_for_checkpoint(&self) -> u64 {
        let changed = self.space.dirty_leaf_count() + self.table.dirty_count();
        CHECKPOINT_PAGES + CHECKPOINT_PAGES_EACH * changed as u64
    }

    /// Whether one more write is sure to find room for the pages it changes, and a checkpoint after it too.
    pub(crate) fn has_room_for_write(&self, claim: Claim) -> bool {
        self.space.free_pages() >= self.pages_for_write(claim) + self.writes_admitted * WRITE_PAGES
    }

    /// The same if no other write were under way: what others were promised is for the worst case, and
    /// most of it is left when they have ended.
    fn has_room_for_write_alone(&self, claim: Claim) -> bool {
        self.space.free_pages() >= self.pages_for_write(claim)
    }

    /// What has to be left for one more write beside what those under way were promised.
    fn pages_for_write(&self, claim: Claim) -> u64 {
        let not_its = match claim {
            Claim::Rest => self.pages_set_aside(),
            Claim::SetAside => 0,
        };
        not_its + WRITE_PAGES + self.pages_for_checkpoint()
    }

    /// Blocks of the extents that are set aside.
    pub(super) fn pages_set_aside(&self) -> u64 {
        self.table.set_aside() * EXTENT_BLOCKS as u64
    }

    /// Takes an extent for data.
    ///
    /// # Errors
    ///
    /// [`NoSpace`].
    pub(crate) fn take_extent(&mut self, claim: Claim) -> Result<ExtentId, NoSpace> {
        match claim {
            Claim::Rest if self.space.free_extents() <= self.table.set_aside() => Err(NoSpace),
            Claim::Rest => self.space.take_extent(),
            Claim::SetAside => match self.space.take_extent() {
                Ok(extent) => Ok(extent),
                // Pages have gone beyond what only they may use. They have room in those extents now.
                Err(NoSpace) if self.space.free_pages() >= EXTENT_BLOCKS as u64 + self.pages_spoken_for() => {
                    self.space.take_reserved_extent()
                }
                Err(NoSpace) => Err(NoSpace),
            },
        }
    }
}

impl Pool {
    /// Waits until a write is sure to have room for its pages and its record. Who holds something that a
    /// write under way may wait for is not to wait for that in turn: locks come before this.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoSpace`] and those of a pool that is stopped.
    pub(crate) async fn admit(self: &Rc<Self>, claim: Claim) -> Result<Admitted, PoolError> {
        for _ in 0..SPACE_ROUNDS_MAX {
            self.check_changes()?;
            // Also who may use what is set aside does so only if nothing else is left: extents with pages are
            // seldom ones for data again.
            if let Some(admitted) = self.admitted(Claim::Rest).await {
                return Ok(admitted);
            }
            match self.free_space().await {
                Err(PoolError::NoSpace) => break,
                freed => freed?,
            }
        }
        let admitted = self.admitted(claim).await;
        if admitted.is_none() {
            self.look_for_space();
        }
        admitted.ok_or(PoolError::NoSpace)
    }

    /// Waits for those that are admitted, as long as there is room without them; `None` if there is none.
    async fn admitted(self: &Rc<Self>, claim: Claim) -> Option<Admitted> {
        self.admission
            .until(|| match self.try_admit(claim) {
                Some(admitted) => Some(Some(admitted)),
                None => {
                    let waits = self.state.borrow().has_room_for_write_alone(claim);
                    (!waits || self.check_changes().is_err()).then_some(None)
                }
            })
            .await
    }

    /// Has a write admitted if there is room now.
    pub(crate) fn try_admit(self: &Rc<Self>, claim: Claim) -> Option<Admitted> {
        let mut state = self.state.borrow_mut();
        let has_room = state.has_room_for_write(claim);
        state.writes_admitted += u64::from(has_room);
        has_room.then(|| Admitted(self.clone()))
    }

    /// Makes what was freed usable, if there is any.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoSpace`] if there is nothing.
    pub(crate) async fn free_space(self: &Rc<Self>) -> Result<(), PoolError> {
        if !self.state.borrow().space.is_freeing() {
            return Err(PoolError::NoSpace);
        }
        self.checkpoint().await
    }

    /// Makes extents that were freed usable, if there are any: those of data, and for a thick volume those of
    /// pages too.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoSpace`] if there are none.
    pub(crate) async fn free_extents(self: &Rc<Self>, claim: Claim) -> Result<(), PoolError> {
        if claim == Claim::SetAside {
            return self.free_space().await;
        }
        if self.state.borrow().space.counts().freeing == 0 {
            self.look_for_space();
            return Err(PoolError::NoSpace);
        }
        self.checkpoint().await
    }

    /// Waits for room in the journal.
    pub(crate) async fn make_room(self: &Rc<Self>) -> Result<(), PoolError> {
        self.checkpoint().await?;
        self.journal.room().await?;
        Ok(())
    }

    /// Waits for a checkpoint that is under way, without asking for one.
    pub(super) async fn checkpoint_idle(&self) {
        self.checkpoint_done
            .until(|| (!self.state.borrow().checkpoint_running).then_some(()))
            .await;
    }

    /// Makes a checkpoint if there is little memory or room left until one is.
    pub(super) async fn checkpoint_if_short(self: &Rc<Self>) -> Result<(), PoolError> {
        if self.is_checkpoint_due() || !self.state.borrow().has_room_for_write(Claim::Rest) {
            self.checkpoint().await?;
        }
        Ok(())
    }

    fn is_checkpoint_due(&self) -> bool {
        let state = self.state.borrow();
        let dirty_bytes = state.cache.dirty_pages() * BLOCK_BYTES;
        let intents = state.intents.len() * 2 > super::intents::INTENTS_MAX;
        // Half of the memory is for what comes while the checkpoint is written.
        self.journal.is_checkpoint_due() || dirty_bytes * 2 > self.options.dirty_bytes || intents
    }

    /// Looks after what a change may have made due. To be called after each that left a record.
    #[inline]
    pub(crate) fn changed(self: &Rc<Self>) {
        self.recorded.wake();
        if self.options.background && self.is_checkpoint_due() {
            let pool = self.clone();
            let idle = !self.state.borrow().checkpoint_running;
            if idle {
                spawn(async move {
                    // It is told where it fails, and the pool is stopped then.
                    let _ = pool.checkpoint().await;
                })
                .detach();
            }
        }
    }

    /// Begins what is done in the background, until the pool is closed.
    pub(super) fn start_maintenance(self: &Rc<Self>) {
        if !self.options.background {
            return;
        }
        let pool = self.clone();
        spawn(async move {
            loop {
                let is_closed = pool
                    .recorded
                    .until(|| {
                        if pool.closed.get() {
                            return Some(true);
                        }
                        pool.journal.has_unwritten().then_some(false)
                    })
                    .await;
                if is_closed {
                    return;
                }
                sleep(pool.options.commit_interval).await;
                if pool.closed.get() || pool.journal.commit().await.is_err() {
                    return;
                }
            }
        })
        .detach();
        if !self.options.scrub_interval.is_zero() {
            spawn(Self::scrub_by_itself(Rc::downgrade(self))).detach();
        }
        spawn(Self::look_for_space_if_short(Rc::downgrade(self))).detach();
        let pool = self.clone();
        spawn(async move {
            loop {
                let is_closed = pool
                    .wanted
                    .until(|| {
                        if pool.closed.get() || pool.state.borrow().stopped.is_some() {
                            return Some(true);
                        }
                        pool.has_deleted().then_some(false)
                    })
                    .await;
                if is_closed {
                    return;
                }
                if let Err(error) = pool.reclaim().await {
                    if !matches!(error, PoolError::Closed) {
                        tracing::error!(pool = %pool.name, %error, "space of a deleted volume stays used");
                    }
                    sleep(pool.options.commit_interval * 100).await;
                }
            }
        })
        .detach();
    }

    /// What time it is, in seconds since 1970.
    pub(super) fn now_seconds(&self) -> u64 {
        let since = pollux_reactor::now() - self.opened;
        self.options.opened_seconds.saturating_add(since.as_secs())
    }

    /// How long it is until a scrub begins by itself.
    fn until_scrub(&self) -> Duration {
        let due = match self.last_scrub().state {
            ScrubState::Never | ScrubState::UnderWay { .. } => 0,
            ScrubState::Ended { seconds } => seconds.saturating_add(self.options.scrub_interval.as_secs()),
        };
        Duration::from_secs(due.saturating_sub(self.now_seconds()))
    }

    /// Scrubs again and again, until the pool is closed. Whoever closed it finds the devices free: what waits
    /// holds no pool.
    async fn scrub_by_itself(pool: Weak<Self>) {
        let mut pause = Duration::ZERO;
        loop {
            sleep(pause).await;
            let Some(pool) = pool.upgrade().filter(|pool| !pool.closed.get()) else {
                return;
            };
            pause = pool.until_scrub().min(SCRUB_LOOK);
            if !pause.is_zero() {
                continue;
            }
            let options = ScrubOptions {
                bytes_per_second: pool.options.scrub_bytes_per_second,
                begin_anew: false,
            };
            match pool.scrub(options, &mut |_| {}).await {
                Ok(report) => tracing::info!(
                    pool = %pool.name,
                    blocks = report.blocks,
                    bad_blocks = report.bad_block_count,
                    repaired_pages = report.repaired_pages,
                    lost_pages = report.lost_pages,
                    "the pool was scrubbed"
                ),
                Err(PoolError::Closed) => return,
                Err(error) => {
                    if !matches!(error, PoolError::Busy { .. }) {
                        tracing::error!(pool = %pool.name, %error, "a scrub did not come to its end");
                    }
                    pause = SCRUB_LOOK;
                }
            }
        }
    }

    /// Whether something waits to be given back, or to be counted.
    fn has_deleted(&self) -> bool {
        let state = self.state.borrow();
        let mut entries = state.table.entries();
        entries.any(|entry| {
            if entry.state == VolumeState::InUse {
                return state.is_to_be_counted(entry);
            }
            state.table.child_count(entry.id) <= 1 || !state.is_trimmed(entry)
        })
    }
}
