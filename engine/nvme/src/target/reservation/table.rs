//! Who is registered with a namespace, which reservation is held, and what each command makes of it (NVMe
//! Base 2.2, 8.1.22).
//!
//! Invariants:
//! - `registrants` are sorted by host, each there once, at most [`REGISTRANTS_MAX`].
//! - Who holds a reservation is a registrant; a reservation that all registrants hold has one at least.
//! - The types that all registrants hold are in [`Held::ByAll`] only.
//!
//! A command makes a new table of the old one, or is refused and changes nothing.

use super::losses::CacheLoss;
use crate::wire::log::ReservationNotificationType;
use crate::wire::reservation::ReservationType;

/// Registrants a namespace can have.
pub(crate) const REGISTRANTS_MAX: usize = 128;

/// A host identifier; not all zeros.
pub(crate) type HostId = [u8; 16];

/// What a command does to the blocks of a namespace (NVMe Base 2.2, Figure 647, and its counterpart in the
/// specification of the NVM command set).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read, Compare, Verify.
    Read,
    /// Write, Write Zeroes, Dataset Management, Flush.
    Write,
}

/// A host and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registrant {
    pub(crate) host: HostId,
    pub(crate) key: u64,
}

/// The reservation that is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Held {
    /// None.
    #[default]
    Nothing,
    /// One of a type that one host holds.
    ByOne { kind: ReservationType, holder: HostId },
    /// One of a type that every registrant holds.
    ByAll { kind: ReservationType },
}

impl Held {
    fn new(kind: ReservationType, holder: HostId) -> Self {
        if kind.is_held_by_all() {
            Self::ByAll { kind }
        } else {
            Self::ByOne { kind, holder }
        }
    }

    pub(crate) fn kind(self) -> Option<ReservationType> {
        match self {
            Self::Nothing => None,
            Self::ByOne { kind, .. } | Self::ByAll { kind } => Some(kind),
        }
    }
}

/// What a host asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Registers a key.
    Register { key: u64 },
    /// Takes its registration back; without a key, whatever it is.
    Unregister { key: Option<u64> },
    /// Replaces its key; without the current one, whatever it is, and even if there is none.
    Replace { current: Option<u64>, new: u64 },
    /// Takes a reservation.
    Acquire { key: u64, kind: ReservationType },
    /// Takes registrations of others, and perhaps the reservation.
    Preempt {
        key: u64,
        preempted: u64,
        kind: ReservationType,
    },
    /// Gives the reservation of this type back; the type is a number of the host's.
    Release { key: u64, type_field: u8 },
    /// Takes the reservation and every registration back.
    Clear { key: u64 },
}

/// Why a command changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Reservation Conflict.
    Conflict,
    /// The key to preempt means nobody, or the type is not the one that is held.
    InvalidField,
    /// There are as many registrants as there can be.
    Full,
}

/// Something that a host is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) host: HostId,
    pub(crate) kind: ReservationNotificationType,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) table: Table,
    /// What others are told.
    pub(crate) notices: Vec<Notice>,
    /// Those whose registration or reservation was preempted.
    pub(crate) preempted: Vec<HostId>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// Counts the changes, and wraps (GEN).
    pub(crate) generation: u32,
    /// Whether the table is kept through a loss of power (PTPL).
    pub(crate) persist: bool,
    pub(crate) registrants: Vec<Registrant>,
    pub(crate) held: Held,
    /// Which hosts have heard of lost caches.
    pub(crate) loss: CacheLoss,
}

impl Table {
    /// Whether a host may access the namespace now.
    pub(crate) fn allows(&self, host: &HostId, access: Access) -> bool {
        use ReservationType as Type;
        let Some(kind) = self.held.kind() else {
            return true;
        };
        match (kind, access) {
            (
                Type::WriteExclusive
                | Type::WriteExclusiveRegistrantsOnly
                | Type::WriteExclusiveAllRegistrants,
                Access::Read,
            ) => true,
            (Type::WriteExclusive, Access::Write) | (Type::ExclusiveAccess, Access::Read | Access::Write) => {
                self.holds(host)
            }
            (Type::WriteExclusiveRegistrantsOnly | Type::WriteExclusiveAllRegistrants, Access::Write)
            | (
                Type::ExclusiveAccessRegistrantsOnly | Type::ExclusiveAccessAllRegistrants,
                Access::Read | Access::Write,
            ) => self.key_of(host).is_some(),
        }
    }

    /// Whether a host holds the reservation.
    pub(crate) fn holds(&self, host: &HostId) -> bool {
        match &self.held {
            Held::Nothing => false,
            Held::ByOne { holder, .. } => holder == host,
            Held::ByAll { .. } => self.key_of(host).is_some(),
        }
    }

    fn position(&self, host: &HostId) -> Result<usize, usize> {
        self.registrants
            .binary_search_by(|registrant| registrant.host.cmp(host))
    }

    fn key_of(&self, host: &HostId) -> Option<u64> {
        let index = self.position(host).ok()?;
        self.registrants.get(index).map(|registrant| registrant.key)
    }

    /// Whether what outlives a loss of power is valid.
    pub(super) fn is_valid(&self) -> bool {
        let sorted = self.registrants.is_sorted_by(|one, two| one.host < two.host);
        let held = match self.held {
            Held::Nothing => true,
            Held::ByOne { kind, holder } => !kind.is_held_by_all() && self.key_of(&holder).is_some(),
            Held::ByAll { kind } => kind.is_held_by_all() && !self.registrants.is_empty(),
        };
        sorted && held && self.registrants.len() <= REGISTRANTS_MAX
    }

    /// What a host's command makes of the table.
    ///
    /// # Errors
    ///
    /// [`Refused`]: nothing changes.
    pub(crate) fn apply(&self, host: HostId, action: Action) -> Result<Change, Refused> {
        let mut change = Change {
            table: self.clone(),
            notices: Vec::new(),
            preempted: Vec::new(),
        };
        match action {
            Action::Register { key } => change.register(host, key)?,
            Action::Unregister { key } => change.unregister(host, key)?,
            Action::Replace { current, new } => change.replace(host, current, new)?,
            Action::Acquire { key, kind } => {
                self.check_key(&host, key)?;
                change.acquire(host, kind)?;
            }
            Action::Preempt { key, preempted, kind } => {
                self.check_key(&host, key)?;
                change.preempt(host, preempted, kind)?;
            }
            Action::Release { key, type_field } => {
                self.check_key(&host, key)?;
                change.release(host, type_field)?;
            }
            Action::Clear { key } => {
                self.check_key(&host, key)?;
                change.clear(host);
            }
        }
        if action.counts() {
            change.table.generation = change.table.generation.wrapping_add(1);
        }
        Ok(change)
    }

    fn check_key(&self, host: &HostId, key: u64) -> Result<(), Refused> {
        if self.key_of(host) == Some(key) {
            Ok(())
        } else {
            Err(Refused::Conflict)
        }
    }
}

impl Action {
    /// Whether the command counts as a change (Base 2.2, Figure 582, GEN).
    fn counts(self) -> bool {
        match self {
            Self::Register { .. }
            | Self::Unregister { .. }
            | Self::Replace { .. }
            | Self::Preempt { .. }
            | Self::Clear { .. } => true,
            Self::Acquire { .. } | Self::Release { .. } => false,
        }
    }
}

impl Change {
    fn tell(&mut self, host: HostId, kind: ReservationNotificationType) {
        self.notices.push(Notice { host, kind });
    }

    /// Tells every registrant but one.
    fn tell_others(&mut self, but: HostId, kind: ReservationNotificationType) {
        let others = self.table.registrants.iter().map(|registrant| registrant.host);
        let others = others.filter(|other| *other != but);
        self.notices.extend(others.map(|host| Notice { host, kind }));
    }

    /// Base 2.2, 8.1.22.3.
    fn register(&mut self, host: HostId, key: u64) -> Result<(), Refused> {
        match self.table.key_of(&host) {
            Some(current) if current == key => Ok(()),
            Some(_) => Err(Refused::Conflict),
            None => self.insert(host, key),
        }
    }

    fn insert(&mut self, host: HostId, key: u64) -> Result<(), Refused> {
        if self.table.registrants.len() >= REGISTRANTS_MAX {
            return Err(Refused::Full);
        }
        let (Ok(index) | Err(index)) = self.table.position(&host);
        self.table.registrants.insert(index, Registrant { host, key });
        Ok(())
    }

    /// Base 2.2, 8.1.22.3.
    fn replace(&mut self, host: HostId, current: Option<u64>, new: u64) -> Result<(), Refused> {
        if let Some(current) = current {
            self.table.check_key(&host, current)?;
        }
        let found = self.table.position(&host).ok();
        match found.and_then(|index| self.table.registrants.get_mut(index)) {
            Some(registrant) => {
                registrant.key = new;
                Ok(())
            }
            None => self.insert(host, new),
        }
    }

    /// Base 2.2, 8.1.22.4.
    fn unregister(&mut self, host: HostId, key: Option<u64>) -> Result<(), Refused> {
        let registered = self.table.key_of(&host).ok_or(Refused::Conflict)?;
        if key.is_some_and(|key| key != registered) {
            return Err(Refused::Conflict);
        }
        let held = self.table.held;
        self.remove(|registrant| registrant.host == host);
        if let Held::ByOne { kind, .. } = held
            && self.table.held == Held::Nothing
            && is_for_registrants(kind)
        {
            self.tell_others(host, ReservationNotificationType::ReservationReleased);
        }
        Ok(())
    }

    /// Removes registrants; what nobody holds any more is released. Returns the hosts.
    fn remove(&mut self, which: impl Fn(&Registrant) -> bool) -> Vec<HostId> {
        let gone = self
            .table
            .registrants
            .extract_if(.., |registrant| which(registrant));
        let gone: Vec<_> = gone.map(|registrant| registrant.host).collect();
        let released = match self.table.held {
            Held::Nothing => false,
            Held::ByOne { holder, .. } => gone.contains(&holder),
            Held::ByAll { .. } => self.table.registrants.is_empty(),
        };
        if released {
            self.table.held = Held::Nothing;
        }
        gone
    }

    /// Base 2.2, 8.1.22.5.
    fn acquire(&mut self, host: HostId, kind: ReservationType) -> Result<(), Refused> {
        match self.table.held {
            Held::Nothing => {
                self.table.held = Held::new(kind, host);
                Ok(())
            }
            held if self.table.holds(&host) && held.kind() == Some(kind) => Ok(()),
            Held::ByOne { .. } | Held::ByAll { .. } => Err(Refused::Conflict),
        }
    }

    /// Base 2.2, 8.1.22.6.
    fn release(&mut self, host: HostId, type_field: u8) -> Result<(), Refused> {
        let Some(kind) = self.table.held.kind().filter(|_| self.table.holds(&host)) else {
            return Ok(());
        };
        if kind.to_wire() != type_field {
            return Err(Refused::InvalidField);
        }
        self.table.held = Held::Nothing;
        if kind.is_held_by_all() || is_for_registrants(kind) {
            self.tell_others(host, ReservationNotificationType::ReservationReleased);
        }
        Ok(())
    }

    /// Base 2.2, 8.1.22.8.
    fn clear(&mut self, host: HostId) {
        self.tell_others(host, ReservationNotificationType::ReservationPreempted);
        self.table.registrants.clear();
        self.table.held = Held::Nothing;
    }

    /// Base 2.2, 8.1.22.7.
    fn preempt(&mut self, host: HostId, preempted: u64, kind: ReservationType) -> Result<(), Refused> {
        let holder_key = match self.table.held {
            Held::ByOne { holder, .. } => self.table.key_of(&holder),
            Held::Nothing | Held::ByAll { .. } => None,
        };
        match self.table.held {
            Held::ByOne { .. } if holder_key == Some(preempted) => {
                self.take(host, kind, |registrant| registrant.key == preempted);
                Ok(())
            }
            Held::ByOne { .. } if preempted == 0 => Err(Refused::InvalidField),
            Held::ByAll { .. } if preempted == 0 => {
                self.take(host, kind, |_| true);
                Ok(())
            }
            Held::Nothing | Held::ByOne { .. } | Held::ByAll { .. } => {
                let gone = self.remove(|registrant| registrant.key == preempted);
                if gone.is_empty() {
                    return Err(Refused::Conflict);
                }
                self.preempted(host, gone);
                Ok(())
            }
        }
    }

    /// Unregisters others and takes the reservation.
    fn take(&mut self, host: HostId, kind: ReservationType, which: impl Fn(&Registrant) -> bool) {
        let before = self.table.held.kind();
        let gone = self.remove(|registrant| registrant.host != host && which(registrant));
        self.table.held = Held::new(kind, host);
        self.preempted(host, gone);
        if before != Some(kind) {
            self.tell_others(host, ReservationNotificationType::ReservationReleased);
        }
    }

    fn preempted(&mut self, host: HostId, gone: Vec<HostId>) {
        for other in gone.iter().filter(|other| **other != host) {
            self.tell(*other, ReservationNotificationType::RegistrationPreempted);
        }
        self.preempted = gone;
    }
}

/// Whether the rights of the type are those of one holder and of all registrants.
fn is_for_registrants(kind: ReservationType) -> bool {
    matches!(
        kind,
        ReservationType::WriteExclusiveRegistrantsOnly | ReservationType::ExclusiveAccessRegistrantsOnly
    )
}
