//! Reservations that several engines keep together: each serves the namespace in turn.

use std::sync::Mutex;

use super::reservations::Member;
use super::*;
use crate::target::{ReservationStore, Saving, StoreError, SubsystemError};
use crate::wire::identify::{
    IdentifyController, IdentifyNamespace, IoCommandSupport, ReservationCapabilities,
};
use crate::wire::log::{AnaState, ReservationNotificationType as Kind};
use crate::wire::reservation::ReservationType as Type;

/// What all engines have in common, and who of them may change it.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) record: Option<Vec<u8>>,
    served_by: usize,
    /// Nothing can be kept at all.
    pub(super) fails: bool,
    /// The last loss of caches.
    pub(super) caches_lost: Option<u64>,
}

#[derive(Debug)]
struct SharedStore {
    engine: usize,
    common: Arc<Mutex<Common>>,
}

impl ReservationStore for SharedStore {
    fn is_shared(&self) -> bool {
        true
    }

    fn load(&self, _namespace: Uuid) -> Result<Option<Vec<u8>>, StoreError> {
        panic!("it is adopted, and not loaded")
    }

    fn save(&self, namespace: Uuid, record: Option<Vec<u8>>) -> Saving {
        let mut common = self.common.lock().unwrap();
        let result = match (common.served_by == self.engine, common.fails) {
            (false, _) => Err(StoreError::Superseded { namespace }),
            (true, true) => Err(StoreError::Io {
                what: "could not write",
                place: "memory".to_owned(),
                error: "told to fail".to_owned(),
            }),
            (true, false) => {
                common.record = record;
                Ok(())
            }
        };
        Box::pin(std::future::ready(result))
    }
}

/// Engines that serve a volume in turn.
pub(super) struct Engines {
    pub(super) common: Arc<Mutex<Common>>,
    pub(super) engines: [Fixture; 2],
}

impl Engines {
    pub(super) fn new() -> Self {
        let common = Arc::new(Mutex::new(Common::default()));
        let engines = [0, 1].map(|engine| {
            let config = SubsystemConfig {
                asymmetric_access: true,
                ..SubsystemConfig::new(SUBSYSTEM)
            };
            let store = SharedStore {
                engine,
                common: common.clone(),
            };
            let fixture = Fixture::sharing(&config, Arc::new(store));
            fixture.add_drive("disk0", Fixture::instant(BLOCK as u32));
            fixture
        });
        let engines = Self { common, engines };
        engines.give(0).unwrap();
        engines
    }

    /// Gives the namespace to an engine.
    pub(super) fn give(&self, engine: usize) -> Result<(), SubsystemError> {
        let [one, other] = [engine, 1 - engine].map(|engine| &self.engines[engine]);
        other.subsystem.set_access(1, AnaState::Inaccessible).unwrap();
        let (record, caches_lost) = {
            let mut common = self.common.lock().unwrap();
            common.served_by = engine;
            (common.record.clone(), common.caches_lost)
        };
        let subsystem = one.subsystem.clone();
        let adopted = one.world.block_on(one.reactors[0].1, async move {
            subsystem
                .adopt_reservations(1, record.as_deref(), caches_lost)
                .await
        });
        adopted?;
        one.subsystem.set_access(1, AnaState::Optimized)
    }

    pub(super) fn members(&self, number: u8) -> [Member; 2] {
        [0, 1].map(|engine| Member::connect(&self.engines[engine], number))
    }
}

#[test]
fn the_next_engine_knows_who_is_kept_out() {
    let engines = Engines::new();
    let [first, second] = &engines.engines;
    let [one, one_there] = engines.members(1);
    let [other, other_there] = engines.members(2);
    assert_eq!(one.register(first), Status::SUCCESS);
    // Hosts were not asked whether it persists, and it has to be known all the same.
    assert_eq!(one.acquire(first, Type::WriteExclusive), Status::SUCCESS);
    assert_eq!(other.write(first), Status::RESERVATION_CONFLICT);
    assert_eq!(other_there.register(second), Status::ANA_INACCESSIBLE);

    engines.give(1).unwrap();
    assert_eq!(one.write(first), Status::ANA_INACCESSIBLE);
    assert_eq!(other_there.write(second), Status::RESERVATION_CONFLICT);
    assert_eq!(other_there.read(second), Status::SUCCESS);
    assert_eq!(one_there.write(second), Status::SUCCESS);
    let report = one_there.report(second);
    assert_eq!((report.registrants.len(), report.persist), (1, false));
    assert_eq!(other_there.register(second), Status::SUCCESS);
    assert_eq!(
        other_there.preempt(second, Type::ExclusiveAccess, &one_there),
        Status::SUCCESS
    );

    engines.give(0).unwrap();
    assert_eq!(one.read(first), Status::RESERVATION_CONFLICT);
    assert_eq!(other.write(first), Status::SUCCESS);
    let generation = report.generation;
    let report = other.report(first);
    let holders = report.registrants.iter().map(|registrant| registrant.key);
    assert_eq!(holders.collect::<Vec<_>>(), [other.key()]);
    assert_eq!(report.generation, generation + 2, "it counts on");
}

#[test]
fn what_cannot_be_kept_is_not_done() {
    let engines = Engines::new();
    let [first, _] = &engines.engines;
    let [one, _] = engines.members(1);
    engines.common.lock().unwrap().fails = true;
    assert_eq!(one.register(first), Status::INTERNAL_ERROR);
    engines.common.lock().unwrap().fails = false;
    assert_eq!(one.register(first), Status::SUCCESS);
    // Another engine serves it, which this one was not told yet: hosts try that one.
    engines.common.lock().unwrap().served_by = 1;
    assert_eq!(
        one.acquire(first, Type::ExclusiveAccess),
        Status::ANA_INACCESSIBLE
    );
    let report = one.report(first);
    assert_eq!((report.registrants.len(), report.reservation), (1, None));
}

#[test]
fn nobody_is_let_in_by_what_makes_no_sense() {
    let engines = Engines::new();
    let [first, second] = &engines.engines;
    let [one, one_there] = engines.members(1);
    assert_eq!(one.register(first), Status::SUCCESS);
    let whole = engines.common.lock().unwrap().record.clone().unwrap();
    let mut damaged = whole.clone();
    damaged[20] ^= 4;
    engines.common.lock().unwrap().record = Some(damaged);
    second.subsystem.set_access(1, AnaState::Inaccessible).unwrap();
    assert!(matches!(
        engines.give(1),
        Err(SubsystemError::Reservations {
            id: 1,
            error: StoreError::Damaged { .. }
        })
    ));
    assert_eq!(one_there.read(second), Status::ANA_INACCESSIBLE);
    engines.common.lock().unwrap().record = Some(whole);
    engines.give(1).unwrap();
    assert_eq!(one_there.read(second), Status::SUCCESS);
    let subsystem = second.subsystem.clone();
    let unknown = second.world.block_on(second.reactors[0].1, async move {
        subsystem.adopt_reservations(9, None, None).await
    });
    assert!(matches!(unknown, Err(SubsystemError::NoNamespace { id: 9, .. })));
}

#[test]
fn hosts_are_told_that_there_are_reservations() {
    let engines = Engines::new();
    for (fixture, member) in engines.engines.iter().zip(engines.members(1)) {
        let bytes = fixture
            .identify(member.admin(), IdentifyStructure::Controller, 0)
            .unwrap();
        let support = IdentifyController::from_bytes(&bytes).io_commands;
        assert!(support.contains(IoCommandSupport::RESERVATIONS));
        let bytes = fixture
            .identify(member.admin(), IdentifyStructure::Namespace, 1)
            .unwrap();
        let reservations = IdentifyNamespace::from_bytes(&bytes).reservations;
        assert!(reservations.contains(ReservationCapabilities::PERSIST));
        assert!(reservations.contains(ReservationCapabilities::EXCLUSIVE_ACCESS_ALL));
    }
}

#[test]
fn hosts_can_read_what_they_are_told_of_reservations() {
    let engines = Engines::new();
    let [first, _] = &engines.engines;
    let [one, _] = engines.members(1);
    let [two, _] = engines.members(2);
    one.register(first);
    two.register(first);
    assert_eq!(one.preempt(first, Type::WriteExclusive, &two), Status::SUCCESS);
    assert_eq!(two.told(first), [Kind::RegistrationPreempted]);
}
