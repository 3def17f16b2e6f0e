//! Which replicas take part in what, as a state machine apart from all I/O.
//!
//! Invariants:
//! - `record` is what the store has confirmed and what the in-sync replicas have a copy of. `proposal` is
//!   on its way to the store: it may have been accepted, and is never exchanged for another before that is
//!   known.
//! - What must have a write before it is acknowledged, [`Members::required`], is the in-sync set of both.
//! - The last live replica of the set is never proposed to be dropped.
//! - Once stopped, nothing changes any more.

mod change;

use uuid::Uuid;

use crate::membership::{Membership, ReplicaState, SlotNumber, SlotSet};
pub(crate) use change::Change;
use change::owe_all;

/// Why a target does no more I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A newer target has the volume.
    Superseded,
    /// The last replica may have lost acknowledged writes from its cache: the volume has to be opened anew,
    /// as after a power loss.
    CacheLost,
    /// The last replica does not come back, and another one of the set, which failed before, has all that was
    /// acknowledged: the volume has to be opened anew.
    LastLost,
    /// The store has another record than it can have, or none.
    StoreRefused,
    /// It was closed.
    Closed,
}

/// What became of a replica that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It had no part in anything.
    Ignored,
    /// It takes no more part.
    Out,
    /// It is the last of the set, and stays.
    Last,
}

/// What a replica under resync wants of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// From empty to behind: the region maps say that it missed everything.
    Behind(SlotNumber),
    /// From behind to empty: it was made anew, and nothing of it counts.
    Empty(SlotNumber),
    /// Into the set.
    Join(SlotNumber),
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    record: Membership,
    proposal: Option<Membership>,
    /// Those with a session that works.
    live: SlotSet,
    /// The one that is brought back; live, and not in the set of `record`.
    syncing: Option<SlotNumber>,
    wish: Option<Wish>,
    /// Other changes of the record, in the order in which they came.
    changes: Vec<Change>,
    /// Snapshots that are attempted: no replica joins, and none begins to take writes.
    cutting: usize,
    stopped: Option<StopReason>,
}

impl Members {
    /// A target with sessions of `live`, which are all of the set.
    pub(crate) fn new(record: Membership, live: SlotSet) -> Self {
        Self {
            record,
            proposal: None,
            live,
            syncing: None,
            wish: None,
            changes: Vec::new(),
            cutting: 0,
            stopped: None,
        }
    }

    pub(crate) fn record(&self) -> &Membership {
        &self.record
    }

    pub(crate) fn stopped(&self) -> Option<StopReason> {
        self.stopped
    }

    pub(crate) fn live(&self) -> SlotSet {
        self.live
    }

    pub(crate) fn syncing(&self) -> Option<SlotNumber> {
        self.syncing
    }

    /// Those that must have a write before it is acknowledged, and an intent before it is relied on.
    pub(crate) fn required(&self) -> SlotSet {
        let proposed = self.proposal.as_ref().map(Membership::in_sync);
        self.record.in_sync().or(proposed.unwrap_or_default())
    }

    /// Those that are read from.
    pub(crate) fn readable(&self) -> SlotSet {
        self.record.in_sync().and(self.live)
    }

    /// Replicas that are behind and take no writes, so that they can be given a snapshot that is cut now.
    pub(crate) fn without_writes(&self) -> SlotSet {
        let behind = self.record.slots_in(ReplicaState::Behind);
        behind.without(self.live).without(self.required())
    }

    /// Members that writes do not reach.
    pub(crate) fn absent(&self) -> SlotSet {
        self.record.members().without(self.live)
    }

    /// Whether a write that these have done may be acknowledged.
    pub(crate) fn may_acknowledge(&self, done: SlotSet) -> bool {
        self.stopped.is_none() && done.contains_all(self.required())
    }

    /// Whether so few are in sync that writes wait.
    pub(crate) fn is_short(&self) -> bool {
        self.record.in_sync().len() < usize::from(self.record.min_in_sync)
    }

    /// The set has no live replica: I/O waits until one of them is back.
    pub(crate) fn is_lost(&self) -> bool {
        self.stopped.is_none() && self.readable().is_empty()
    }

    pub(crate) fn stop(&mut self, reason: StopReason) {
        self.stopped = self.stopped.or(Some(reason));
    }

    /// A replica did something that no healthy one does.
    pub(crate) fn fail(&mut self, slot: SlotNumber) -> Failed {
        if !self.live.contains(slot) || self.stopped.is_some() {
            return Failed::Ignored;
        }
        if self.record.in_sync().contains(slot) && self.readable().len() == 1 {
            return Failed::Last;
        }
        self.lose(slot);
        Failed::Out
    }

    /// The session of a replica is gone, be it the last.
    pub(crate) fn lose(&mut self, slot: SlotNumber) {
        self.live.remove(slot);
        if self.syncing == Some(slot) {
            self.syncing = None;
            self.wish = None;
        }
    }

    /// A replica of the set is back that lost nothing meanwhile, while there was none.
    pub(crate) fn recover(&mut self, slot: SlotNumber) {
        if self.is_lost() && self.record.in_sync().contains(slot) {
            self.live.insert(slot);
        }
    }

    /// A snapshot is attempted.
    pub(crate) fn begin_cut(&mut self) {
        self.cutting += 1;
    }

    /// It came to nothing, or is a matter of [`Change::AddSnapshot`].
    pub(crate) fn end_cut(&mut self) {
        self.cutting = self.cutting.saturating_sub(1);
    }

    fn is_cutting(&self) -> bool {
        let is_open = |change: &Change| self.proposal.is_some() || self.would_change(change);
        let is_added = |change: &Change| matches!(change, Change::AddSnapshot(_)) && is_open(change);
        self.cutting > 0 || self.changes.iter().any(is_added)
    }

    /// Wants a change of the record.
    pub(crate) fn want(&mut self, change: Change) {
        if let Change::RemoveSnapshot(id) = change {
            self.changes
                .retain(|other| !matches!(other, Change::AddSnapshot(entry) if entry.id == id));
        }
        // What a proposal does cannot be told from the record.
        let is_open = self.proposal.is_some() || self.would_change(&change);
        if self.stopped.is_none() && !self.changes.contains(&change) && is_open {
            self.changes.push(change);
        }
    }

    /// Whether a change is still wanted, and not made.
    pub(crate) fn wants(&self, change: &Change) -> bool {
        self.changes.contains(change) && (self.proposal.is_some() || self.would_change(change))
    }

    fn would_change(&self, change: &Change) -> bool {
        let mut changed = self.record.clone();
        change.apply(&mut changed, self.writing());
        changed != self.record
    }

    /// Whether a cut is of a snapshot that there is, or may be.
    pub(crate) fn knows_cut(&self, cut: Uuid) -> bool {
        let has = |record: &Membership| record.snapshots.iter().any(|entry| entry.cut == cut);
        let is_added = |change: &Change| matches!(change, Change::AddSnapshot(entry) if entry.cut == cut);
        has(&self.record) || self.proposal.as_ref().is_some_and(has) || self.changes.iter().any(is_added)
    }

    /// Those that take writes and are not in sync.
    fn writing(&self) -> SlotSet {
        self.syncing.into_iter().collect()
    }

    /// A replica that is behind takes writes from now on; whether it may.
    pub(crate) fn begin_sync(&mut self, slot: SlotNumber, id: Uuid) -> bool {
        let is_behind = self
            .record
            .replica(slot)
            .is_some_and(|entry| entry.state == ReplicaState::Behind && entry.id == id);
        let may = is_behind
            && !self.is_cutting()
            && self.record.owed(slot).next().is_none()
            && self.stopped.is_none()
            && self.syncing.is_none()
            && !self.required().contains(slot)
            && !self.live.contains(slot);
        if may {
            self.syncing = Some(slot);
            self.live.insert(slot);
        }
        may
    }

    /// The region maps say that an empty replica missed everything: it may be called behind.
    pub(crate) fn wish_behind(&mut self, slot: SlotNumber) {
        self.wish = Some(Wish::Behind(slot));
    }

    /// A replica that is behind turned out to have nothing.
    pub(crate) fn wish_empty(&mut self, slot: SlotNumber) {
        self.wish = Some(Wish::Empty(slot));
    }

    /// The replica under resync has everything, also the region map.
    pub(crate) fn wish_join(&mut self, slot: SlotNumber) {
        if self.syncing == Some(slot) {
            self.wish = Some(Wish::Join(slot));
        }
    }

    /// The record that the store is to have next; the same one until its fate is known.
    pub(crate) fn propose(&mut self) -> Option<Membership> {
        if self.stopped.is_some() {
            return None;
        }
        if self.proposal.is_none() {
            let changes = std::mem::take(&mut self.changes);
            self.changes = changes
                .into_iter()
                .filter(|change| self.would_change(change))
                .collect();
            self.proposal = self.desired();
        }
        self.proposal.clone()
    }

    /// Whether [`Members::propose`] would give something.
    pub(crate) fn has_proposal(&self) -> bool {
        self.stopped.is_none() && (self.proposal.is_some() || self.desired().is_some())
    }

    fn desired(&self) -> Option<Membership> {
        let mut next = self.record.next();
        // With none left there is nothing to be gained: one of them has to come back.
        if !self.readable().is_empty() {
            for slot in self.record.in_sync().without(self.live).iter() {
                next = next.with_state(slot, ReplicaState::Behind);
            }
        }
        match self.wish {
            Some(Wish::Join(slot)) if self.syncing == Some(slot) && !self.is_cutting() => {
                next = next.with_state(slot, ReplicaState::InSync);
            }
            Some(Wish::Behind(slot)) if self.has_state(slot, ReplicaState::Empty) => {
                next = next.with_state(slot, ReplicaState::Behind);
                owe_all(&mut next, slot);
            }
            Some(Wish::Empty(slot)) if self.has_state(slot, ReplicaState::Behind) => {
                next = next.with_state(slot, ReplicaState::Empty);
            }
            Some(_) | None => {}
        }
        for change in &self.changes {
            change.apply(&mut next, self.writing());
        }
        (next != self.record.next()).then_some(next)
    }

    /// The store has the proposal, and the replicas that are in its set have a copy.
    pub(crate) fn accepted(&mut self) {
        let Some(record) = self.proposal.take() else {
            return;
        };
        self.replace(record);
        if self
            .syncing
            .is_some_and(|slot| self.record.in_sync().contains(slot))
        {
            self.syncing = None;
        }
        // What was wished for after the proposal was made stays.
        self.wish = match self.wish {
            Some(Wish::Join(slot)) if self.syncing != Some(slot) => None,
            Some(Wish::Behind(slot)) if !self.has_state(slot, ReplicaState::Empty) => None,
            Some(Wish::Empty(slot)) if !self.has_state(slot, ReplicaState::Behind) => None,
            wish => wish,
        };
        let changes = std::mem::take(&mut self.changes);
        self.changes = changes
            .into_iter()
            .filter(|change| self.would_change(change))
            .collect();
    }

    fn has_state(&self, slot: SlotNumber, state: ReplicaState) -> bool {
        let entry = self.record.replica(slot);
        entry.is_some_and(|entry| entry.state == state)
    }

    /// Whether a proposal is on its way to the store.
    pub(crate) fn is_proposing(&self) -> bool {
        self.proposal.is_some()
    }

    /// The store has another record. Whether the proposal was accepted unheard; it is that record then.
    pub(crate) fn refused(&mut self, current: Membership) -> bool {
        if current.epoch > self.record.epoch {
            self.stop(StopReason::Superseded);
            return false;
        }
        if self.proposal.as_ref() == Some(&current) {
            return true;
        }
        let set = current.in_sync();
        let is_newer = |proposal: &Membership| proposal.version < current.version;
        let accepted = self.proposal.as_ref();
        let is_like = |proposal: &Membership| {
            is_newer(proposal) && proposal.in_sync() == set && proposal.size_blocks == current.size_blocks
        };
        let is_changed = set != self.record.in_sync() || current.size_blocks != self.record.size_blocks;
        if accepted.is_some_and(is_like) && is_changed && current.epoch == self.record.epoch {
            // It was accepted, and then others changed what is theirs.
            self.proposal = Some(current);
            return true;
        }
        self.adopt(current);
        false
    }

    /// The store has another record, of others: they may add replicas, and take those away that do not count.
    /// The set and the size are the target's.
    pub(crate) fn adopt(&mut self, current: Membership) {
        let same_set =
            current.in_sync() == self.record.in_sync() && current.size_blocks == self.record.size_blocks;
        let follows = current.epoch == self.record.epoch && current.version > self.record.version;
        if same_set && follows {
            self.proposal = None;
            self.replace(current);
        } else {
            self.stop(StopReason::StoreRefused);
        }
    }

    /// Another record counts from now on. Slots that have no replica any more, or another one, are lost.
    fn replace(&mut self, record: Membership) {
        let before = std::mem::replace(&mut self.record, record);
        let id = |record: &Membership, slot| record.replica(slot).map(|entry| entry.id);
        for slot in SlotNumber::all() {
            if id(&before, slot) != id(&self.record, slot) {
                // Nothing that was wanted for the old one is true of a new one in its place.
                self.lose(slot);
                self.changes.retain(|change| !change.is_of(slot));
                let of_slot = [Wish::Behind(slot), Wish::Empty(slot)];
                self.wish = self.wish.filter(|wish| !of_slot.contains(wish));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::membership::{Epoch, MemoryStore, ReplicaEntry, SnapshotEntry, StoreError};

    const VOLUME: Uuid = Uuid::from_u128(0x77);

    fn record() -> Membership {
        let entry = |id: u128| {
            let (id, state) = (Uuid::from_u128(id), ReplicaState::InSync);
            Some(ReplicaEntry { id, state })
        };
        Membership {
            volume: VOLUME,
            epoch: Epoch(1),
            version: 1,
            size_blocks: 1 << 20,
            block_bytes: 4096,
            min_in_sync: 1,
            replicas: [entry(1), entry(2), entry(3), None, None],
            snapshots: Vec::new(),
            roll_back: None,
            caches_lost: None,
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Fail(usize, bool),
        Recover(usize),
        Sync(usize),
        Join,
        /// A snapshot is cut on all of the set, and attempted for a while.
        Cut(u128),
        EndCut,
        /// A replica gets what is owed to it, or does not.
        Give(usize, bool),
        /// The store gets the proposal: and answers, or does not.
        Propose {
            arrives: bool,
            answered: bool,
        },
        /// A swap that was sent long ago arrives now.
        Late,
        Supersede,
        /// A write begins, and all live targets do it.
        Write,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..3_usize, any::<bool>()).prop_map(|(slot, lost)| Event::Fail(slot, lost)),
            2 => (0..3_usize).prop_map(Event::Recover),
            2 => (0..3_usize).prop_map(Event::Sync),
            2 => Just(Event::Join),
            2 => (1..4_u128).prop_map(Event::Cut),
            2 => Just(Event::EndCut),
            2 => (0..3_usize, any::<bool>()).prop_map(|(slot, given)| Event::Give(slot, given)),
            8 => any::<(bool, bool)>()
                .prop_map(|(arrives, answered)| Event::Propose { arrives, answered }),
            1 => Just(Event::Late),
            1 => Just(Event::Supersede),
            8 => Just(Event::Write),
        ]
    }

    proptest! {
        /// Whatever fails and however the store answers: at the moment a write is acknowledged, every replica
        /// that the store calls in sync has it; what is copied from is in sync in the store; and nothing is
        /// acknowledged once the store knows a newer target and one of the set has promised to it.
        #[test]
        fn an_acknowledged_write_is_on_all_of_the_set(events in proptest::collection::vec(event(), 1..80)) {
            let store = MemoryStore::default();
            store.swap(record()).unwrap();
            let mut members = Members::new(record(), record().in_sync());
            let mut late: Option<Membership> = None;
            let mut superseded = false;
            let mut cut: Option<SnapshotEntry> = None;
            let mut attempts = 0_u128;
            // The newest attempt before each replica last took writes without being in sync.
            let mut took_writes = [0_u128; 3];
            let slot = |index| SlotNumber::new(index).unwrap();
            for event in events {
                match event {
                    Event::Fail(index, lost) => {
                        if members.fail(slot(index)) == Failed::Last && lost {
                            members.lose(slot(index));
                        }
                    }
                    Event::Recover(index) => members.recover(slot(index)),
                    Event::Sync(index) => {
                        if members.begin_sync(slot(index), Uuid::from_u128(index as u128 + 1)) {
                            // What is cut from here on it never gets.
                            took_writes[index] = attempts;
                        }
                    }
                    Event::Cut(id) => {
                        let all = members.required();
                        if cut.is_none() && members.live().contains_all(all) && members.stopped().is_none() {
                            members.begin_cut();
                            attempts += 1;
                            cut = Some(SnapshotEntry {
                                id: Uuid::from_u128(id),
                                cut: Uuid::from_u128(attempts),
                                held_by: all,
                                owed_to: members.without_writes(),
                            });
                        }
                    }
                    Event::EndCut => if let Some(entry) = cut.take() {
                        members.want(Change::AddSnapshot(entry));
                        members.end_cut();
                    },
                    Event::Give(index, given) => {
                        let owed = members.record().owed(slot(index)).next();
                        match owed {
                            Some(entry) if given => {
                                let before = took_writes[index];
                                prop_assert!(entry.cut.as_u128() > before, "it took writes since");
                                members.want(Change::Given(slot(index), entry.cut));
                            }
                            Some(_) => members.want(Change::Forgiven(slot(index))),
                            None => {}
                        }
                    }
                    Event::Join => if let Some(slot) = members.syncing() {
                        members.wish_join(slot);
                    },
                    Event::Propose { arrives, answered } => if let Some(next) = members.propose() {
                        late = Some(next.clone());
                        if arrives {
                            let result = store.swap(next);
                            match result {
                                Ok(()) if answered => members.accepted(),
                                Err(StoreError::Conflict(current)) if answered => {
                                    if members.refused(*current) {
                                        members.accepted();
                                    }
                                }
                                Ok(()) | Err(StoreError::Conflict(_)) => {}
                                Err(other) => prop_assert!(false, "{other}"),
                            }
                        }
                    },
                    Event::Late => if let Some(next) = &late {
                        // It arrives a second time, or at last.
                        let _ = store.swap(next.clone());
                    },
                    Event::Supersede => if !superseded {
                        superseded = true;
                        store.swap(store.get(VOLUME).unwrap().next_epoch()).unwrap();
                    },
                    Event::Write => {
                        let done = members.required().and(members.live());
                        let set = store.get(VOLUME).unwrap().in_sync();
                        if members.may_acknowledge(done) {
                            prop_assert!(done.contains_all(set), "{done:?} of {set:?}");
                        }
                        // A new target takes a part of the set as it is in the store; the old one needs one
                        // of them at least, which refuses.
                        prop_assert!(!members.required().and(set).is_empty());
                    }
                }
                prop_assert!(members.record().in_sync().contains_all(members.readable()));
                if let Some(slot) = members.syncing() {
                    prop_assert!(members.live().contains(slot));
                    prop_assert!(!members.record().in_sync().contains(slot));
                }
            }
        }
    }

    #[test]
    fn the_last_replica_stays_in_the_set() {
        let mut members = Members::new(record(), record().in_sync());
        let slot = |index| SlotNumber::new(index).unwrap();
        assert_eq!(members.fail(slot(0)), Failed::Out);
        assert_eq!(members.fail(slot(1)), Failed::Out);
        assert_eq!(members.fail(slot(2)), Failed::Last);
        let next = members.propose().unwrap();
        assert_eq!(next.in_sync().iter().collect::<Vec<_>>(), [slot(2)]);
        assert!(
            !members.may_acknowledge([slot(2)].into_iter().collect()),
            "not confirmed yet"
        );
        members.accepted();
        assert!(members.may_acknowledge([slot(2)].into_iter().collect()));
        members.lose(slot(2));
        assert!(members.is_lost() && !members.has_proposal());
        members.recover(slot(1));
        assert!(members.is_lost(), "one that is not of the set does not help");
        members.recover(slot(2));
        assert!(!members.is_lost());
    }
}
