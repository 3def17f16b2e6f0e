//! What a run has exercised: how often the rare things came, for whoever wants to know whether a scenario
//! can find anything at all.
//!
//! What mirrors count is read as often as a target looks after its mirror; what comes between the last look
//! and a crash is not in it.

use std::cell::RefCell;

use pollux_volume::mirror::MirrorCounters;

use crate::Reached;

/// Something that a run may exercise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A target opened the volume.
    Opened,
    /// It did so with fewer replicas in sync than there are.
    OpenedDegraded,
    /// A target found out while it opened the volume that a newer one has it.
    OpeningSuperseded,
    /// A target that served found out.
    Superseded,
    /// A target stopped since its last replica may have lost what it had in a cache.
    CacheLost,
    /// A target opened the volume by replicas that may all have lost what they had in a cache.
    CachesLost,
    /// Another target was wanted while data was copied to a replica.
    TakenOverInResync,
    /// A replica on another machine told of a hole.
    HoleTold,
    /// A snapshot was cut and is on record.
    SnapshotCut,
    /// One was deleted.
    SnapshotDeleted,
    /// The volume grew.
    Grown,
    /// A target opened a volume that the one before had begun to take back to a snapshot.
    RollBackTakenOver,
    /// A block that nobody could read was written anew, when the faults had stopped.
    UnreadableRewritten,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Opened => "volume opened",
            Self::OpenedDegraded => "volume opened with replicas behind",
            Self::OpeningSuperseded => "opening superseded",
            Self::Superseded => "target superseded",
            Self::CacheLost => "target stopped for a lost cache",
            Self::CachesLost => "volume opened after caches were lost",
            Self::TakenOverInResync => "taken over during a resync",
            Self::HoleTold => "hole told by a remote replica",
            Self::SnapshotCut => "snapshot cut",
            Self::SnapshotDeleted => "snapshot deleted",
            Self::Grown => "volume grown",
            Self::RollBackTakenOver => "roll-back taken over",
            Self::UnreadableRewritten => "unreadable block rewritten",
        }
    }

    /// Those that come in every scenario, and those of snapshots.
    fn all(with_snapshots: bool) -> impl Iterator<Item = Self> {
        let always = [
            Self::Opened,
            Self::OpenedDegraded,
            Self::OpeningSuperseded,
            Self::Superseded,
            Self::CacheLost,
            Self::CachesLost,
            Self::TakenOverInResync,
            Self::HoleTold,
        ];
        let snapshots = [
            Self::SnapshotCut,
            Self::SnapshotDeleted,
            Self::Grown,
            Self::RollBackTakenOver,
            Self::UnreadableRewritten,
        ];
        always
            .into_iter()
            .chain(snapshots.into_iter().filter(move |_| with_snapshots))
    }
}

const LAST_FAILED: &str = "last replica failed";

/// What mirrors count, by what it is called here.
fn counted(counters: &MirrorCounters, with_snapshots: bool) -> Vec<(&'static str, u64)> {
    let mut counted = vec![
        ("replica failed", counters.failures),
        ("replica joined", counters.joins),
        ("bad blocks repaired", counters.repairs),
        ("replica out for being slow", counters.slow),
        (LAST_FAILED, counters.last_failures),
        ("replica without room", counters.no_room),
        ("write taken back", counters.taken_back),
        ("replicas differed at open", counters.differences),
        ("blocks copied as holes", counters.holes),
    ];
    if with_snapshots {
        counted.extend([
            ("blocks of snapshots given as holes", counters.snapshot_holes),
            ("snapshot given", counters.snapshots_given),
            ("snapshot forgiven", counters.snapshots_forgiven),
            ("roll-back done", counters.roll_backs),
        ]);
    }
    counted
}

/// See the module.
#[derive(Debug)]
pub(super) struct Coverage {
    reached: RefCell<Reached>,
    with_snapshots: bool,
}

impl Coverage {
    pub(super) fn new(with_snapshots: bool) -> Self {
        let events = Event::all(with_snapshots).map(|event| (event.name(), 0));
        let counted = counted(&MirrorCounters::default(), with_snapshots);
        Self {
            reached: RefCell::new(events.chain(counted).collect()),
            with_snapshots,
        }
    }

    pub(super) fn reach(&self, event: Event) {
        *self.reached.borrow_mut().entry(event.name()).or_default() += 1;
    }

    /// What a mirror has counted since it was looked at last.
    pub(super) fn look(&self, before: &mut MirrorCounters, now: MirrorCounters) {
        let old = counted(before, self.with_snapshots);
        let mut reached = self.reached.borrow_mut();
        for ((name, now), (_, old)) in counted(&now, self.with_snapshots).into_iter().zip(old) {
            *reached.entry(name).or_default() += now.saturating_sub(old);
        }
        *before = now;
    }

    /// Whether the last replica of a set has failed.
    pub(super) fn has_failed_last(&self) -> bool {
        self.reached
            .borrow()
            .get(LAST_FAILED)
            .is_some_and(|times| *times > 0)
    }

    pub(super) fn reached(&self) -> Reached {
        self.reached.borrow().clone()
    }
}
