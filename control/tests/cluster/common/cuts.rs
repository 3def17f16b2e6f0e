//! Snapshots of several volumes, as an engine in memory takes part in them.

use std::collections::BTreeMap;

use pollux_api::control::v1::{CutPhase, CutReport, CutState, CutTargets};

/// Ticks that a hold lasts at most, if nothing else is said.
pub const HOLD_TICKS: u64 = 12;

/// How far a volume is in an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    pub state: CutState,
    /// It is to be on record.
    is_committing: bool,
    pub snapshot_uid: String,
    held_at: u64,
}

impl Cut {
    /// Whether changes of the volume are held.
    pub fn is_held(&self) -> bool {
        self.state == CutState::Held && !self.is_committing
    }

    /// Whether its snapshot is to be on record.
    pub fn is_committing(&self) -> bool {
        self.is_committing && self.state == CutState::Held
    }

    /// Whether what was cut is kept.
    pub fn is_kept(&self) -> bool {
        self.state == CutState::Held
    }
}

/// What an engine remembers of attempts, by attempt and volume.
#[derive(Debug, Clone, Default)]
pub struct Cuts(BTreeMap<(String, String), Cut>);

/// Between which ticks volumes were held for snapshots that were committed, by UUID.
pub type Instants = BTreeMap<String, (u64, u64)>;

impl Cuts {
    /// All of one volume.
    pub fn of<'a>(&'a self, volume: &'a str) -> impl Iterator<Item = &'a Cut> {
        let of = self.0.iter().filter(move |((_, other), _)| other == volume);
        of.map(|(_, cut)| cut)
    }

    pub fn report(&self) -> Vec<CutReport> {
        let reports = self.0.iter().map(|((attempt, volume), cut)| CutReport {
            attempt: attempt.clone(),
            volume_uid: volume.clone(),
            state: cut.state.into(),
        });
        reports.collect()
    }

    /// A command. `serves` tells which volumes are served.
    pub fn step(
        &mut self,
        told: &CutTargets,
        now: u64,
        serves: impl Fn(&str) -> bool,
        instants: &mut Instants,
    ) -> Result<(), &'static str> {
        for target in &told.targets {
            let key = (told.attempt.clone(), target.volume_uid.clone());
            match told.phase() {
                CutPhase::Hold if !serves(&target.volume_uid) => return Err("it is not served here"),
                CutPhase::Hold => {
                    self.0.entry(key).or_insert_with(|| Cut {
                        state: CutState::Held,
                        is_committing: false,
                        snapshot_uid: target.snapshot_uid.clone(),
                        held_at: now,
                    });
                }
                CutPhase::Commit => {
                    let held = self.0.get_mut(&key).filter(|cut| cut.is_kept());
                    let held = held.ok_or("it is not held")?;
                    if !held.is_committing {
                        held.is_committing = true;
                        instants.insert(target.snapshot_uid.clone(), (held.held_at, now));
                    }
                }
                CutPhase::Release => {
                    if let Some(cut) = self.0.get_mut(&key).filter(|cut| cut.is_held()) {
                        cut.state = CutState::Ended;
                    }
                }
                CutPhase::Unspecified => return Err("there is no such phase"),
            }
        }
        Ok(())
    }

    /// Holds end that have lasted for so many ticks. Whether one did.
    pub fn tick(&mut self, now: u64, hold_ticks: u64) -> bool {
        let mut ended = false;
        for cut in self.0.values_mut() {
            if cut.is_held() && now > cut.held_at + hold_ticks {
                cut.state = CutState::Ended;
                ended = true;
            }
        }
        ended
    }

    /// A snapshot is on record.
    pub fn committed(&mut self, snapshot_uid: &str) {
        for cut in self.0.values_mut() {
            if cut.snapshot_uid == snapshot_uid && cut.is_committing() {
                cut.state = CutState::Committed;
            }
        }
    }
}
