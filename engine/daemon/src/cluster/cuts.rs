//! Snapshots of several volumes, some of which other engines serve: each volume that is served here is held
//! and cut, and its snapshot committed when the control plane has seen that all are held.
//!
//! Invariants:
//! - A volume is held for an attempt once. So what is committed for an attempt is of the one time at which
//!   the volume was held for it.
//! - A cut is committed only while its hold is in force: then it is of the instant at which all were held.
//! - A hold ends by itself; what was cut is nothing then, and is swept away by the mirror.
//! - What is remembered of attempts is bounded: by time, and by number.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pollux_api::control::v1::{CutPhase, CutReport, CutState, CutTarget, CutTargets};
use pollux_pool::shared::Owned;
use pollux_reactor::RemoteCallError;
use pollux_volume::mirror::{Cut, Hold, Mirror, SnapshotError};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::record::{RecordError, uuid};

/// The longest that a volume is held, whatever the control plane says.
const HOLD_MAX: Duration = Duration::from_secs(5);

/// For how long an attempt that has ended is remembered: longer than any command for it may come late.
const KEPT: Duration = Duration::from_secs(60);

/// Volumes of attempts that are remembered at most; more are refused.
const ENTRIES_MAX: usize = 4096;

/// Why a volume was not held, or its snapshot not committed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutError {
    /// What was told makes no sense.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The volume is not served here.
    #[error("volume {0} is not served here")]
    NotServed(Uuid),
    /// The volume was held for this attempt, and is no more.
    #[error("volume {volume} is not held for attempt {attempt}")]
    NotHeld {
        /// The volume.
        volume: Uuid,
        /// The attempt.
        attempt: Uuid,
    },
    /// Too many are remembered.
    #[error("more than {ENTRIES_MAX} volumes were held within a minute: try again later")]
    TooMany,
    /// The mirror could not do it.
    #[error("volume {volume}: {error}")]
    Snapshot {
        /// The volume.
        volume: Uuid,
        /// Why not.
        error: SnapshotError,
    },
    /// The reactor of the mirror does not answer.
    #[error(transparent)]
    Reactor(#[from] RemoteCallError),
    /// The task that did it ended by itself.
    #[error("a volume was not held: {0}")]
    Lost(#[from] tokio::task::JoinError),
}

/// A volume that is held and cut, on the reactor of its mirror.
struct HeldCut(RefCell<Option<(Hold, Cut)>>);

impl HeldCut {
    async fn begin(mirror: Rc<Mirror>, limit: Duration) -> Result<Arc<Owned<Self>>, SnapshotError> {
        let hold = mirror.hold(limit).await?;
        let cut = hold.cut().await?;
        Ok(Owned::new(Rc::new(Self(RefCell::new(Some((hold, cut)))))))
    }

    /// Makes it a snapshot, if it is held still, and releases the volume.
    async fn commit(self: Rc<Self>, snapshot: Uuid) -> Result<(), SnapshotError> {
        let Some((hold, cut)) = self.0.borrow_mut().take() else {
            return Err(SnapshotError::Expired);
        };
        if !hold.is_in_force() {
            return Err(SnapshotError::Expired);
        }
        // It was held when all others were too: it need not be any longer.
        drop(hold);
        cut.commit(snapshot).await
    }
}

enum State {
    Holding,
    Held(Arc<Owned<HeldCut>>),
    Committing,
    Committed,
    Ended,
}

struct Entry {
    state: State,
    since: Instant,
}

/// An attempt and a volume.
type Key = (Uuid, Uuid);

/// See the module.
pub(super) struct Cuts {
    entries: Mutex<BTreeMap<Key, Entry>>,
    /// Told when a report would say something else.
    changed: Arc<Notify>,
}

impl Cuts {
    /// No attempts yet.
    pub(super) fn new(changed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            entries: Mutex::default(),
            changed,
        })
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        // Nothing that is done with the lock held can leave it half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far attempts are, of not long ago.
    pub(super) fn report(&self) -> Vec<CutReport> {
        let mut entries = self.entries();
        forget_old(&mut entries);
        let reports = entries.iter().map(|((attempt, volume), entry)| {
            let state = match entry.state {
                State::Holding => CutState::Holding,
                State::Held(_) | State::Committing => CutState::Held,
                State::Committed => CutState::Committed,
                State::Ended => CutState::Ended,
            };
            CutReport {
                attempt: attempt.to_string(),
                volume_uid: volume.to_string(),
                state: state.into(),
            }
        });
        reports.collect()
    }

    /// Does a step for all volumes that are named, side by side. `mirror_of` tells which are served here.
    ///
    /// # Errors
    ///
    /// [`CutError`], the first of them; the others are done.
    pub(super) async fn step(
        self: &Arc<Self>,
        told: &CutTargets,
        mirror_of: impl Fn(Uuid) -> Option<Arc<Owned<Mirror>>>,
    ) -> Result<(), CutError> {
        let attempt = uuid(&told.attempt)?;
        let limit = Duration::from_micros(told.hold_us).min(HOLD_MAX);
        let mut wanted = Vec::with_capacity(told.targets.len());
        for CutTarget {
            volume_uid,
            snapshot_uid,
        } in &told.targets
        {
            wanted.push(((attempt, uuid(volume_uid)?), uuid(snapshot_uid)?));
        }
        let mut first = Ok(());
        let mut steps: JoinSet<Result<(), CutError>> = JoinSet::new();
        for (key, snapshot) in wanted {
            let cuts = self.clone();
            match (told.phase(), mirror_of(key.1)) {
                (CutPhase::Unspecified, _) => first = Err(RecordError::Field("the phase").into()),
                (CutPhase::Hold, Some(mirror)) => {
                    steps.spawn(async move { cuts.hold(key, mirror, limit).await });
                }
                (CutPhase::Hold, None) => first = Err(CutError::NotServed(key.1)),
                (CutPhase::Commit, _) => {
                    steps.spawn(async move { cuts.commit(key, snapshot).await });
                }
                (CutPhase::Release, _) => self.end(key),
            }
        }
        while let Some(done) = steps.join_next().await {
            first = first.and(done.map_err(CutError::from).and_then(|done| done));
        }
        self.changed.notify_one();
        first
    }

    async fn hold(
        self: Arc<Self>,
        key: Key,
        mirror: Arc<Owned<Mirror>>,
        limit: Duration,
    ) -> Result<(), CutError> {
        if !self.begin(key)? {
            return Ok(());
        }
        let held = mirror.call(move |mirror| HeldCut::begin(mirror, limit)).await;
        let held = match held {
            Ok(Ok(held)) => held,
            failed => {
                self.end(key);
                failed?.map_err(|error| CutError::Snapshot { volume: key.1, error })?;
                return Ok(());
            }
        };
        if !self.advance(key, State::Held(held), |state| matches!(state, State::Holding)) {
            // It was released meanwhile, and so this is dropped.
            return Ok(());
        }
        tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            if self.advance(key, State::Ended, |state| matches!(state, State::Held(_))) {
                tracing::warn!(volume = %key.1, attempt = %key.0, "a hold has ended by itself");
                self.changed.notify_one();
            }
        });
        Ok(())
    }

    async fn commit(self: Arc<Self>, key: Key, snapshot: Uuid) -> Result<(), CutError> {
        let held = {
            let mut entries = self.entries();
            let entry = entries.get_mut(&key);
            match entry.map(|entry| std::mem::replace(&mut entry.state, State::Committing)) {
                Some(State::Held(held)) => held,
                before => {
                    let is_done = matches!(before, Some(State::Committing | State::Committed));
                    if let (Some(entry), Some(before)) = (entries.get_mut(&key), before) {
                        entry.state = before;
                    }
                    return match is_done {
                        true => Ok(()),
                        false => Err(CutError::NotHeld {
                            volume: key.1,
                            attempt: key.0,
                        }),
                    };
                }
            }
        };
        let committed = held.call(move |held| held.commit(snapshot)).await;
        let is_done = matches!(committed, Ok(Ok(())));
        let next = match is_done {
            true => State::Committed,
            false => State::Ended,
        };
        self.advance(key, next, |state| matches!(state, State::Committing));
        self.changed.notify_one();
        committed?.map_err(|error| CutError::Snapshot { volume: key.1, error })
    }

    /// Whether a volume is to be held for an attempt: the first time.
    fn begin(&self, key: Key) -> Result<bool, CutError> {
        let mut entries = self.entries();
        forget_old(&mut entries);
        if entries.contains_key(&key) {
            return Ok(false);
        }
        if entries.len() >= ENTRIES_MAX {
            return Err(CutError::TooMany);
        }
        let since = Instant::now();
        let state = State::Holding;
        entries.insert(key, Entry { state, since });
        Ok(true)
    }

    /// Sets a state if the one before is as it should be. Whether it was.
    fn advance(&self, key: Key, next: State, from: impl Fn(&State) -> bool) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&key).filter(|entry| from(&entry.state)) else {
            return false;
        };
        *entry = Entry {
            state: next,
            since: Instant::now(),
        };
        true
    }

    /// Releases a volume, unless its snapshot is being committed.
    fn end(&self, key: Key) {
        self.advance(key, State::Ended, |state| {
            matches!(state, State::Holding | State::Held(_))
        });
    }
}

/// Forgets what has not changed for long: nothing is held for so long, whatever became of it.
fn forget_old(entries: &mut BTreeMap<Key, Entry>) {
    let now = Instant::now();
    entries.retain(|_, entry| now.duration_since(entry.since) < KEPT);
}
