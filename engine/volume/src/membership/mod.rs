//! Who takes part in a volume: the record that the store holds, and which changes of it are legal.
//!
//! Invariants of a record, [`Membership::check`]:
//! - One replica at least is in sync; no two slots hold the same replica.
//! - `epoch` and `version` are 1 at least.
//!
//! Invariants of a change, [`Membership::check_follows`]:
//! - `version` rises by one, `epoch` by one or not at all. A change of epoch changes nothing else.
//! - A replica that was in sync stays so: sets that follow each other share a replica.
//! - A replica comes in empty, must be behind before it is in sync, and must be out of sync before it goes.
//! - The volume, its block size stay, and it never shrinks.
//! - Caches were lost at the opening that says so, and that is never forgotten.
//!
//! Those of snapshots are in [`snapshots`], those of going back to one in [`roll_back`].

mod memory;
pub mod roll_back;
pub mod snapshots;
mod store;
#[cfg(test)]
mod tests;

use uuid::Uuid;

pub use memory::MemoryStore;
pub use roll_back::RollBack;
pub use snapshots::{SNAPSHOTS_MAX, SnapshotEntry};
pub use store::{MembershipStore, StoreError, StoreFuture};

/// Replicas that a volume can have.
pub const REPLICAS_MAX: usize = 5;

/// Blocks of a volume, at most: the largest number that fits every signed offset in bytes.
pub const VOLUME_BYTES_MAX: u64 = 1 << 56;

/// The number of an opening of a volume; the newest is the one that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A place in the record, 0 to 4. It stays with a replica, and is its bit in the region maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNumber(u8);

impl SlotNumber {
    /// The slot of an index, if there is one.
    pub fn new(index: usize) -> Option<Self> {
        (index < REPLICAS_MAX).then_some(Self(index as u8))
    }

    /// Every slot.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..REPLICAS_MAX as u8).map(Self)
    }

    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Some of the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct SlotSet(u8);

impl SlotSet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// Puts a slot in.
    pub fn insert(&mut self, slot: SlotNumber) {
        self.0 |= 1 << slot.0;
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: SlotNumber) {
        self.0 &= !(1 << slot.0);
    }

    /// Whether a slot is in it.
    pub fn contains(self, slot: SlotNumber) -> bool {
        self.0 & 1 << slot.0 != 0
    }

    /// Whether every slot of `other` is in it.
    pub fn contains_all(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those in one or both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The slots, in order.
    pub fn iter(self) -> impl Iterator<Item = SlotNumber> {
        SlotNumber::all().filter(move |&slot| self.contains(slot))
    }

    /// One bit a slot, slot 0 lowest.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The slots of such bits; `None` if one of them is of no slot.
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits >> REPLICAS_MAX == 0).then_some(Self(bits))
    }
}

impl FromIterator<SlotNumber> for SlotSet {
    fn from_iter<I: IntoIterator<Item = SlotNumber>>(slots: I) -> Self {
        let mut set = Self::EMPTY;
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

/// What a replica is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaState {
    /// It has every acknowledged write.
    InSync,
    /// It was in sync once, or copied in part; the region maps of those in sync tell what it missed.
    Behind,
    /// Nothing of it counts.
    Empty,
}

/// A replica of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplicaEntry {
    /// Which one: the name in the label of its device.
    pub id: Uuid,
    /// What it is worth.
    pub state: ReplicaState,
}

/// The record of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Which volume.
    pub volume: Uuid,
    /// Raised with each opening.
    pub epoch: Epoch,
    /// Raised with each change.
    pub version: u64,
    /// Size, in blocks of `block_bytes`.
    pub size_blocks: u64,
    /// Block size: 512 or 4096.
    pub block_bytes: u32,
    /// Writes wait while fewer replicas than this are in sync.
    pub min_in_sync: u8,
    /// The replicas, each in its slot.
    pub replicas: [Option<ReplicaEntry>; REPLICAS_MAX],
    /// The snapshots, oldest first.
    pub snapshots: Vec<SnapshotEntry>,
    /// The last roll-back that was begun.
    pub roll_back: Option<RollBack>,
    /// The last opening that had to rely on a replica which may have lost what was in its cache: what hosts
    /// had been acknowledged before, and nobody had flushed, may be gone, and they have to hear of it.
    pub caches_lost: Option<Epoch>,
}

/// A record, or a change of one, that must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// No replica would be in sync, so that no data of the volume would count.
    #[error("no replica is in sync: keep one that is")]
    NoneInSync,
    /// Two slots hold the same replica.
    #[error("replica {0} is in two slots: use each once")]
    Duplicate(Uuid),
    /// A number that is out of range.
    #[error("{0} of the record is out of range")]
    Field(&'static str),
    /// A number that does not follow from the record before.
    #[error("{0} does not follow from the record before: read it again")]
    Order(&'static str),
    /// A replica cannot become what it is to be in one step.
    #[error("replica {id} cannot go from {from:?} to {to:?}")]
    Step {
        /// Which replica.
        id: Uuid,
        /// What it was; `None` for not there.
        from: Option<ReplicaState>,
        /// What it was to be; `None` for not there.
        to: Option<ReplicaState>,
    },
    /// A snapshot that must not be, or a change of one.
    #[error("snapshot {id}: {problem}")]
    Snapshot {
        /// Which one.
        id: Uuid,
        /// What is wrong.
        problem: &'static str,
    },
    /// More snapshots than a record has room for.
    #[error("a volume has {SNAPSHOTS_MAX} snapshots at most: delete one")]
    SnapshotCount,
}

impl Membership {
    /// The replica in a slot.
    pub fn replica(&self, slot: SlotNumber) -> Option<ReplicaEntry> {
        self.replicas.get(slot.index()).copied().flatten()
    }

    /// The slots whose replica is in a state.
    pub fn slots_in(&self, state: ReplicaState) -> SlotSet {
        let has = |slot: &SlotNumber| self.replica(*slot).is_some_and(|entry| entry.state == state);
        SlotNumber::all().filter(has).collect()
    }

    /// The in-sync set.
    pub fn in_sync(&self) -> SlotSet {
        self.slots_in(ReplicaState::InSync)
    }

    /// Every slot that is taken.
    pub fn members(&self) -> SlotSet {
        SlotNumber::all()
            .filter(|&slot| self.replica(slot).is_some())
            .collect()
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_blocks.saturating_mul(u64::from(self.block_bytes))
    }

    /// The next record, the same otherwise.
    #[must_use]
    pub fn next(&self) -> Self {
        Self {
            version: self.version.saturating_add(1),
            ..self.clone()
        }
    }

    /// The next record, with the next epoch.
    #[must_use]
    pub fn next_epoch(&self) -> Self {
        Self {
            epoch: Epoch(self.epoch.0.saturating_add(1)),
            ..self.next()
        }
    }

    /// The same record with another state of the replica in a slot; nothing changes in an empty slot.
    #[must_use]
    pub fn with_state(mut self, slot: SlotNumber, state: ReplicaState) -> Self {
        if let Some(Some(entry)) = self.replicas.get_mut(slot.index()) {
            entry.state = state;
            self.forget_snapshots_of(slot, state);
        }
        self
    }

    /// The same record without the replica in a slot, and without the snapshots that it alone had.
    #[must_use]
    pub fn without_replica(mut self, slot: SlotNumber) -> Self {
        if let Some(entry) = self.replicas.get_mut(slot.index()) {
            *entry = None;
            self.forget_snapshots_of(slot, ReplicaState::Empty);
        }
        self
    }

    /// Checks the invariants of a record.
    ///
    /// # Errors
    ///
    /// [`MembershipError`] for the first that does not hold.
    pub fn check(&self) -> Result<(), MembershipError> {
        let require = |valid: bool, field| {
            if valid {
                Ok(())
            } else {
                Err(MembershipError::Field(field))
            }
        };
        require(!self.volume.is_nil(), "the volume")?;
        require((1..u64::MAX).contains(&self.epoch.0), "the epoch")?;
        require((1..u64::MAX).contains(&self.version), "the version")?;
        require(matches!(self.block_bytes, 512 | 4096), "the block size")?;
        let sizes = 1..=VOLUME_BYTES_MAX / u64::from(self.block_bytes.max(1));
        require(sizes.contains(&self.size_blocks), "the size")?;
        let counts = 1..=REPLICAS_MAX as u8;
        require(counts.contains(&self.min_in_sync), "min_in_sync")?;
        for (index, entry) in self.replicas.iter().enumerate() {
            let Some(entry) = entry else { continue };
            require(!entry.id.is_nil(), "a replica")?;
            let others = self.replicas.iter().skip(index + 1).flatten();
            if others.into_iter().any(|other| other.id == entry.id) {
                return Err(MembershipError::Duplicate(entry.id));
            }
        }
        if self.in_sync().is_empty() {
            return Err(MembershipError::NoneInSync);
        }
        let is_opening = |epoch: Epoch| (1..=self.epoch.0).contains(&epoch.0);
        require(self.caches_lost.is_none_or(is_opening), "the loss of caches")?;
        self.check_roll_back()?;
        self.check_snapshots()
    }

    /// Checks that this may be what comes after `before`.
    ///
    /// # Errors
    ///
    /// [`MembershipError`] for the first invariant that does not hold, those of the record itself included.
    pub fn check_follows(&self, before: &Self) -> Result<(), MembershipError> {
        self.check()?;
        let require = |valid: bool, field| {
            if valid {
                Ok(())
            } else {
                Err(MembershipError::Order(field))
            }
        };
        require(self.volume == before.volume, "the volume")?;
        require(self.block_bytes == before.block_bytes, "the block size")?;
        require(self.size_blocks >= before.size_blocks, "the size")?;
        require(Some(self.version) == before.version.checked_add(1), "the version")?;
        if self.epoch != before.epoch {
            let opened = before.next_epoch();
            return require(*self == opened, "the epoch");
        }
        let is_known = self.caches_lost == before.caches_lost || self.caches_lost == Some(self.epoch);
        require(is_known, "the loss of caches")?;
        for slot in SlotNumber::all() {
            check_step(before.replica(slot), self.replica(slot))?;
        }
        if self.in_sync().and(before.in_sync()).is_empty() {
            return Err(MembershipError::NoneInSync);
        }
        self.check_roll_back_follows(before)?;
        self.check_snapshots_follow(before)
    }
}

/// Which steps one slot may make.
fn check_step(before: Option<ReplicaEntry>, after: Option<ReplicaEntry>) -> Result<(), MembershipError> {
    use ReplicaState::{Behind, Empty, InSync};
    let refused = |id| {
        let (from, to) = (before.map(|entry| entry.state), after.map(|entry| entry.state));
        Err(MembershipError::Step { id, from, to })
    };
    match (before, after) {
        (None, None) => Ok(()),
        (None, Some(new)) => match new.state {
            Empty => Ok(()),
            InSync | Behind => refused(new.id),
        },
        (Some(old), None) => match old.state {
            InSync => refused(old.id),
            Behind | Empty => Ok(()),
        },
        // What the bits of the slot say is about the old replica, and so one may not follow on the other.
        (Some(old), Some(new)) if old.id != new.id => refused(new.id),
        (Some(old), Some(new)) => match (old.state, new.state) {
            (InSync | Behind, InSync | Behind | Empty) | (Empty, Empty | Behind) => Ok(()),
            (Empty, InSync) => refused(new.id),
        },
    }
}
