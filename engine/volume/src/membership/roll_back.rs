//! Going back to a snapshot, as the record of a volume has it.
//!
//! From when the record has a roll-back until it says that it is over the volume holds some of both, and no
//! target lets anybody read or write it: each goes on with what the one before began. So a crash at any
//! moment ends in the volume as it was, or as the snapshot has it.
//!
//! Invariants of a change:
//! - A roll-back comes as one that is not over, of a snapshot that there is. It may take the place of one
//!   that is not over: of what the volume holds then nothing is needed.
//! - It is over once, and never forgotten: whoever does not know of it cannot end it unawares.

use uuid::Uuid;

use super::{Membership, MembershipError};

/// A roll-back of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RollBack {
    /// Its name, given by whoever asked for it: it is done once.
    pub id: Uuid,
    /// The snapshot that it goes back to, by its name.
    pub snapshot: Uuid,
    /// The volume is what the snapshot was; what is written since stays.
    pub is_done: bool,
}

impl Membership {
    /// The roll-back that is under way.
    pub fn rolling_back(&self) -> Option<RollBack> {
        self.roll_back.filter(|roll_back| !roll_back.is_done)
    }

    pub(super) fn check_roll_back(&self) -> Result<(), MembershipError> {
        let is_named = |roll_back: RollBack| !roll_back.id.is_nil() && !roll_back.snapshot.is_nil();
        match self.roll_back.is_none_or(is_named) {
            true => Ok(()),
            false => Err(MembershipError::Field("the roll-back")),
        }
    }

    pub(super) fn check_roll_back_follows(&self, before: &Self) -> Result<(), MembershipError> {
        let is_legal = match (before.roll_back, self.roll_back) {
            (before, now) if before == now => true,
            (Some(before), Some(now)) if before.id == now.id => {
                let ended = RollBack {
                    is_done: true,
                    ..before
                };
                now == ended
            }
            (_, Some(now)) => !now.is_done && self.snapshot(now.snapshot).is_some(),
            (_, None) => false,
        };
        match is_legal {
            true => Ok(()),
            false => Err(MembershipError::Order("the roll-back")),
        }
    }
}
