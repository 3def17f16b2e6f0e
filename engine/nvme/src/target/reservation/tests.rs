//! The table against a model that is slow and plain, written from the rules and figures of NVMe Base 2.2,
//! 8.1.22.

use std::collections::BTreeMap;

use super::record::{decode, encode};
use super::table::{Access, Action, Change, Held, HostId, Notice, REGISTRANTS_MAX, Refused, Table};
use crate::wire::log::ReservationNotificationType as Kind;
use crate::wire::reservation::ReservationType;
use proptest::prelude::*;
use uuid::Uuid;

/// Figure 646: for each type, whether holder, other registrant and non-registrant may read and write.
///
/// ```text
///                                    holder       registrant   neither
///                                    read  write  read  write  read  write
/// ```
#[rustfmt::skip]
const RIGHTS: [(ReservationType, [bool; 6]); 6] = [
    (ReservationType::WriteExclusive,                 [true, true, true,  false, true,  false]),
    (ReservationType::ExclusiveAccess,                [true, true, false, false, false, false]),
    (ReservationType::WriteExclusiveRegistrantsOnly,  [true, true, true,  true,  true,  false]),
    (ReservationType::ExclusiveAccessRegistrantsOnly, [true, true, true,  true,  false, false]),
    (ReservationType::WriteExclusiveAllRegistrants,   [true, true, true,  true,  true,  false]),
    (ReservationType::ExclusiveAccessAllRegistrants,  [true, true, true,  true,  false, false]),
];

fn all_registrants(kind: ReservationType) -> bool {
    kind.to_wire() >= 5
}

/// The model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    keys: BTreeMap<HostId, u64>,
    /// The type, and the one who took it. With a type for all registrants the latter means nothing.
    reservation: Option<(ReservationType, HostId)>,
    generation: u32,
}

/// What the model says a command does: those who are told, by host, or why it is refused.
type Told = Vec<(HostId, Kind)>;

impl Model {
    fn of(table: &Table) -> Self {
        let reservation = match table.held {
            Held::Nothing => None,
            Held::ByOne { kind, holder } => Some((kind, holder)),
            Held::ByAll { kind } => Some((kind, HostId::default())),
        };
        Self {
            keys: table.registrants.iter().map(|one| (one.host, one.key)).collect(),
            reservation,
            generation: table.generation,
        }
    }

    fn holders(&self) -> Vec<HostId> {
        match self.reservation {
            None => Vec::new(),
            Some((kind, _)) if all_registrants(kind) => self.keys.keys().copied().collect(),
            Some((_, holder)) => vec![holder],
        }
    }

    fn may(&self, host: HostId, write: bool) -> bool {
        let Some((kind, _)) = self.reservation else {
            return true;
        };
        let (_, rights) = RIGHTS.iter().find(|(row, _)| *row == kind).unwrap();
        let column = if self.holders().contains(&host) {
            0
        } else if self.keys.contains_key(&host) {
            2
        } else {
            4
        };
        rights[column + usize::from(write)]
    }

    fn others(&self, host: HostId) -> Vec<HostId> {
        self.keys.keys().copied().filter(|other| *other != host).collect()
    }

    /// Takes registrations back; the reservation goes with its last holder.
    fn unregister(&mut self, gone: &[HostId]) {
        let before = self.holders();
        self.keys.retain(|host, _| !gone.contains(host));
        if before.iter().all(|holder| gone.contains(holder)) {
            self.reservation = None;
        }
        if self.keys.is_empty() {
            self.reservation = None;
        }
    }

    fn step(&mut self, host: HostId, action: Action) -> Result<Told, Refused> {
        let registered = self.keys.get(&host).copied();
        // Everything but a registration needs the right key.
        let key = match action {
            Action::Acquire { key, .. }
            | Action::Preempt { key, .. }
            | Action::Release { key, .. }
            | Action::Clear { key } => Some(key),
            Action::Unregister { key } => {
                if registered.is_none() {
                    return Err(Refused::Conflict);
                }
                key
            }
            Action::Replace { current, .. } => current,
            Action::Register { .. } => None,
        };
        if key.is_some() && registered != key {
            return Err(Refused::Conflict);
        }
        let mut told = Told::new();
        match action {
            Action::Register { key } => {
                if registered.is_some_and(|before| before != key) {
                    return Err(Refused::Conflict);
                }
                self.add(host, key)?;
            }
            Action::Replace { new, .. } => self.add(host, new)?,
            Action::Unregister { .. } => {
                let before = self.reservation;
                self.unregister(&[host]);
                if let (Some((kind, _)), None) = (before, self.reservation)
                    && matches!(kind.to_wire(), 3 | 4)
                {
                    told = self.all_told(host, Kind::ReservationReleased);
                }
            }
            Action::Acquire { kind, .. } => match self.reservation {
                None => self.reservation = Some((kind, host)),
                Some((held, _)) if held == kind && self.holders().contains(&host) => {}
                Some(_) => return Err(Refused::Conflict),
            },
            Action::Release { type_field, .. } => {
                if self.holders().contains(&host) {
                    let (kind, _) = self.reservation.unwrap();
                    if kind.to_wire() != type_field {
                        return Err(Refused::InvalidField);
                    }
                    self.reservation = None;
                    if !matches!(kind.to_wire(), 1 | 2) {
                        told = self.all_told(host, Kind::ReservationReleased);
                    }
                }
            }
            Action::Clear { .. } => {
                told = self.all_told(host, Kind::ReservationPreempted);
                self.keys.clear();
                self.reservation = None;
            }
            Action::Preempt { preempted, kind, .. } => told = self.preempt(host, preempted, kind)?,
        }
        let counts = !matches!(action, Action::Acquire { .. } | Action::Release { .. });
        self.generation = self.generation.wrapping_add(counts.into());
        Ok(told)
    }

    fn add(&mut self, host: HostId, key: u64) -> Result<(), Refused> {
        if self.keys.len() == 128 && !self.keys.contains_key(&host) {
            return Err(Refused::Full);
        }
        self.keys.insert(host, key);
        Ok(())
    }

    fn all_told(&self, host: HostId, kind: Kind) -> Told {
        self.others(host).into_iter().map(|other| (other, kind)).collect()
    }

    fn preempt(&mut self, host: HostId, preempted: u64, kind: ReservationType) -> Result<Told, Refused> {
        let matching: Vec<_> = self.keys.iter().filter(|(_, key)| **key == preempted).collect();
        let matching: Vec<_> = matching.into_iter().map(|(host, _)| *host).collect();
        let before = self.reservation;
        let (gone, taken) = match before {
            Some((held, _)) if all_registrants(held) && preempted == 0 => (self.others(host), true),
            Some((held, holder)) if !all_registrants(held) && self.keys[&holder] == preempted => (
                matching.into_iter().filter(|other| *other != host).collect(),
                true,
            ),
            Some((held, _)) if !all_registrants(held) && preempted == 0 => {
                return Err(Refused::InvalidField);
            }
            _ if matching.is_empty() => return Err(Refused::Conflict),
            _ => (matching, false),
        };
        self.unregister(&gone);
        let mut told: Told = gone
            .iter()
            .filter(|other| **other != host)
            .map(|other| (*other, Kind::RegistrationPreempted))
            .collect();
        if taken {
            self.reservation = Some((kind, host));
            if before.is_none_or(|(held, _)| held != kind) {
                told.extend(self.all_told(host, Kind::ReservationReleased));
            }
        }
        Ok(told)
    }
}

/// What is compared: a type for all registrants has no holder of its own.
fn plain(model: &Model) -> Model {
    let mut plain = model.clone();
    if let Some((kind, holder)) = &mut plain.reservation
        && all_registrants(*kind)
    {
        *holder = HostId::default();
    }
    plain
}

fn host() -> impl Strategy<Value = HostId> {
    (1u8..6).prop_map(|number| [number; 16])
}

fn key() -> impl Strategy<Value = u64> {
    0u64..4
}

fn kind() -> impl Strategy<Value = ReservationType> {
    prop::sample::select(ReservationType::ALL)
}

fn action() -> impl Strategy<Value = Action> {
    let some_key = || prop::option::weighted(0.8, key());
    prop_oneof![
        3 => key().prop_map(|key| Action::Register { key }),
        1 => some_key().prop_map(|key| Action::Unregister { key }),
        1 => (some_key(), key()).prop_map(|(current, new)| Action::Replace { current, new }),
        4 => (key(), kind()).prop_map(|(key, kind)| Action::Acquire { key, kind }),
        4 => (key(), key(), kind())
            .prop_map(|(key, preempted, kind)| Action::Preempt { key, preempted, kind }),
        2 => (key(), 0u8..8).prop_map(|(key, type_field)| Action::Release { key, type_field }),
        1 => key().prop_map(|key| Action::Clear { key }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_table_does_what_the_specification_says(
        steps in prop::collection::vec((host(), action(), prop::bool::weighted(0.7)), 1..60),
    ) {
        let mut table = Table::default();
        let mut model = Model::default();
        for (host, action, with_its_key) in steps {
            // A random key is mostly wrong: mostly the right one is taken.
            let action = match model.keys.get(&host) {
                Some(key) if with_its_key => with_key(action, *key),
                _ => action,
            };
            let before = table.clone();
            let (result, expected) = (table.apply(host, action), model.clone().step(host, action));
            match (result, expected) {
                (Ok(change), Ok(mut told)) => {
                    model.step(host, action).unwrap();
                    let mut notices: Told =
                        change.notices.iter().map(|Notice { host, kind }| (*host, *kind)).collect();
                    let order = |one: &(HostId, Kind)| (one.0, one.1.to_wire());
                    notices.sort_by_key(order);
                    told.sort_by_key(order);
                    prop_assert_eq!(notices, told);
                    prop_assert!(change.preempted.iter().all(|gone| !change.table.registrants
                        .iter().any(|one| one.host == *gone)));
                    table = change.table;
                }
                (Err(refused), Err(why)) => prop_assert_eq!(refused, why),
                (result, expected) => {
                    prop_assert!(false, "{:?} by {:?} on {:?}: {:?}, not {:?}",
                        action, host, before, result, expected);
                }
            }
            prop_assert_eq!(&Model::of(&table), &plain(&model));
            prop_assert!(table.is_valid());
            for host in 0..7 {
                let host = [host; 16];
                prop_assert_eq!(table.allows(&host, Access::Read), model.may(host, false));
                prop_assert_eq!(table.allows(&host, Access::Write), model.may(host, true));
                prop_assert_eq!(table.holds(&host), model.holders().contains(&host));
            }
            let kept = Table { persist: true, ..table.clone() };
            prop_assert_eq!(decode(Uuid::nil(), &encode(&kept)), Ok(kept));
        }
    }
}

fn with_key(action: Action, its: u64) -> Action {
    match action {
        Action::Acquire { kind, .. } => Action::Acquire { key: its, kind },
        Action::Preempt { preempted, kind, .. } => Action::Preempt {
            key: its,
            preempted,
            kind,
        },
        Action::Release { type_field, .. } => Action::Release { key: its, type_field },
        Action::Clear { .. } => Action::Clear { key: its },
        other @ (Action::Register { .. } | Action::Unregister { .. } | Action::Replace { .. }) => other,
    }
}

fn apply(table: &mut Table, host: u8, action: Action) -> Result<Change, Refused> {
    let change = table.apply([host; 16], action)?;
    *table = change.table.clone();
    Ok(change)
}

#[test]
fn the_129th_host_is_refused_and_a_place_that_gets_free_is_taken() {
    let mut table = Table::default();
    for host in 1..=REGISTRANTS_MAX as u8 {
        apply(&mut table, host, Action::Register { key: 1 }).unwrap();
    }
    let one_more = Action::Register { key: 1 };
    assert_eq!(apply(&mut table, 200, one_more), Err(Refused::Full));
    let replace = Action::Replace {
        current: None,
        new: 2,
    };
    assert_eq!(apply(&mut table, 200, replace), Err(Refused::Full));
    apply(&mut table, 7, replace).unwrap();
    apply(&mut table, 7, Action::Unregister { key: Some(2) }).unwrap();
    apply(&mut table, 200, one_more).unwrap();
    assert_eq!(table.registrants.len(), REGISTRANTS_MAX);
}

#[test]
fn the_generation_wraps() {
    let mut table = Table {
        generation: u32::MAX,
        ..Table::default()
    };
    apply(&mut table, 1, Action::Register { key: 1 }).unwrap();
    assert_eq!(table.generation, 0);
}
