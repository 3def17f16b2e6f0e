//! Reservations through the queues of two and more hosts: who is kept out of what, what survives, who is
//! told.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::io::{block_entry, read, write};
use super::*;
use crate::target::{ReservationStore, Saving, StoreError, SubsystemError};
use crate::wire::command::{
    AcquireAction, AcquireKeys, AdminOpcode, DatasetAttributes, DatasetManagement, Fuse, IoOpcode,
    PersistChange, RegisterAction, RegisterKeys, ReleaseAction, ReservationChange, ReservationRegister,
    ReservationReport,
};
use crate::wire::features::AsyncEvent;
use crate::wire::identify::{
    IdentifyController, IdentifyNamespace, IoCommandSupport, ReservationCapabilities,
};
use crate::wire::log::{ReservationNotification, ReservationNotificationType as Kind};
use crate::wire::reservation::{RegistrantStatus, ReservationStatus, ReservationType as Type};
use pollux_sim::{Fault, Operation};

const DATA: [u8; BLOCK] = [7; BLOCK];

/// A host: its controller and a queue.
pub(super) struct Member {
    admin: TestQueue,
    io: TestQueue,
    number: u8,
}

impl Member {
    pub(super) fn connect(fixture: &Fixture, number: u8) -> Self {
        let name = format!("nqn.2026-11.io.pollux:host-{number}");
        let data = |controller| {
            ConnectData::new(
                Uuid::from_bytes([number; 16]),
                &name.parse().unwrap(),
                &SUBSYSTEM.parse().unwrap(),
                controller,
            )
        };
        let admin = fixture.connect(&connect(0), &data(DYNAMIC_CONTROLLER));
        fixture.enable(&admin);
        let io = fixture.connect(&connect(1), &data(admin.controller_id()));
        Self { admin, io, number }
    }

    pub(super) fn admin(&self) -> &TestQueue {
        &self.admin
    }

    pub(super) fn key(&self) -> u64 {
        u64::from(self.number) * 11
    }

    fn register_with(
        &self,
        fixture: &Fixture,
        action: RegisterAction,
        keys: RegisterKeys,
        persist: PersistChange,
    ) -> Status {
        let register = ReservationRegister {
            action_field: action.to_wire(),
            ignore_existing_key: false,
            persist_field: persist.to_wire(),
        };
        let entry = register.to_entry(9, 1, SglDescriptor::in_capsule(16));
        fixture.status(&self.io, writing(entry, &keys.to_bytes()))
    }

    pub(super) fn register(&self, fixture: &Fixture) -> Status {
        let keys = RegisterKeys {
            current: 0,
            new: self.key(),
        };
        self.register_with(fixture, RegisterAction::Register, keys, PersistChange::None)
    }

    fn unregister(&self, fixture: &Fixture) -> Status {
        let keys = RegisterKeys {
            current: self.key(),
            new: 0,
        };
        self.register_with(fixture, RegisterAction::Unregister, keys, PersistChange::None)
    }

    fn acquire_command(&self, action: AcquireAction, kind: Type, preempted: u64) -> Command {
        let keys = AcquireKeys {
            current: self.key(),
            preempted,
        };
        let entry = ReservationChange::acquire(action, kind).to_acquire(9, 1, SglDescriptor::in_capsule(16));
        writing(entry, &keys.to_bytes())
    }

    pub(super) fn acquire(&self, fixture: &Fixture, kind: Type) -> Status {
        fixture.status(&self.io, self.acquire_command(AcquireAction::Acquire, kind, 0))
    }

    pub(super) fn preempt(&self, fixture: &Fixture, kind: Type, other: &Self) -> Status {
        fixture.status(
            &self.io,
            self.acquire_command(AcquireAction::Preempt, kind, other.key()),
        )
    }

    fn release(&self, fixture: &Fixture, action: ReleaseAction, kind: Type) -> Status {
        let entry =
            ReservationChange::release(action, Some(kind)).to_release(9, 1, SglDescriptor::in_capsule(8));
        fixture.status(&self.io, writing(entry, &self.key().to_le_bytes()))
    }

    pub(super) fn report(&self, fixture: &Fixture) -> ReservationStatus {
        let entry = ReservationReport::new(4096).to_entry(9, 1);
        let outcome = fixture.run(&self.io, reading(entry, 4096));
        assert_eq!(outcome.entry.status(), Status::SUCCESS);
        assert_eq!(outcome.bytes().len(), 4096);
        ReservationStatus::parse(&outcome.bytes()).unwrap()
    }

    pub(super) fn write(&self, fixture: &Fixture) -> Status {
        fixture.status(&self.io, write(0, 7, 1))
    }

    pub(super) fn flush(&self, fixture: &Fixture) -> Status {
        fixture.status(&self.io, plain(SubmissionEntry::new(0, 1, 1)))
    }

    pub(super) fn flush_all(&self, fixture: &Fixture) -> Status {
        fixture.status(&self.io, plain(SubmissionEntry::new(0, 1, u32::MAX)))
    }

    pub(super) fn read(&self, fixture: &Fixture) -> Status {
        fixture.status(&self.io, read(0, 1))
    }

    fn notification(&self, fixture: &Fixture) -> ReservationNotification {
        let page = LogPageId::ReservationNotification;
        let bytes = fixture.log(&self.admin, page, ReservationNotification::BYTES);
        ReservationNotification::from_bytes(&bytes.unwrap())
    }

    /// What it was told, oldest first.
    pub(super) fn told(&self, fixture: &Fixture) -> Vec<Kind> {
        std::iter::from_fn(|| match self.notification(fixture).notification_type() {
            Some(Kind::Empty) | None => None,
            kind => kind,
        })
        .collect()
    }
}

fn members<const N: usize>(fixture: &Fixture) -> [Member; N] {
    std::array::from_fn(|index| Member::connect(fixture, index as u8 + 1))
}

fn fixture() -> Fixture {
    Fixture::with_drive().0
}

#[test]
fn hosts_are_told_what_there_is() {
    let fixture = fixture();
    let [one] = members(&fixture);
    let bytes = fixture
        .identify(&one.admin, IdentifyStructure::Controller, 0)
        .unwrap();
    let controller = IdentifyController::from_bytes(&bytes);
    assert!(controller.io_commands.contains(IoCommandSupport::RESERVATIONS));
    let bytes = fixture
        .identify(&one.admin, IdentifyStructure::Namespace, 1)
        .unwrap();
    let namespace = IdentifyNamespace::from_bytes(&bytes);
    assert_eq!(namespace.reservations.bits(), 0b1111_1110, "all but persistence");
}

/// Every command of the two groups, by a host that is kept out of it, is refused before it does anything.
#[test]
fn every_command_is_in_its_group() {
    let fixture = fixture();
    let [one, other] = members(&fixture);
    assert_eq!(one.register(&fixture), Status::SUCCESS);
    let ranges = DatasetManagement {
        ranges: 1,
        attributes: DatasetAttributes::DEALLOCATE,
    };
    let block = |opcode: IoOpcode| block_entry(opcode, 0, 1);
    let writes = || {
        [
            write(0, 7, 1),
            plain(block(IoOpcode::WriteZeroes)),
            writing(ranges.to_entry(3, 1, SglDescriptor::in_capsule(16)), &[0; 16]),
            plain(SubmissionEntry::new(IoOpcode::Flush.to_wire(), 3, 1)),
            plain(SubmissionEntry::new(IoOpcode::Flush.to_wire(), 3, u32::MAX)),
        ]
    };
    let reads = || {
        [
            read(0, 1),
            plain(block(IoOpcode::Verify)),
            writing(block(IoOpcode::Compare), &[0; BLOCK]),
        ]
    };
    for kind in Type::ALL {
        assert_eq!(one.acquire(&fixture, *kind), Status::SUCCESS);
        let exclusive = kind.to_wire().is_multiple_of(2);
        for command in writes() {
            assert_eq!(
                fixture.status(&other.io, command),
                Status::RESERVATION_CONFLICT,
                "{kind:?}"
            );
        }
        for command in reads() {
            let expected = if exclusive {
                Status::RESERVATION_CONFLICT
            } else {
                Status::SUCCESS
            };
            assert_eq!(fixture.status(&other.io, command), expected, "{kind:?}");
        }
        assert_eq!(
            one.release(&fixture, ReleaseAction::Release, *kind),
            Status::SUCCESS
        );
    }
    for command in writes().into_iter().chain(reads()) {
        let status = fixture.status(&other.io, command);
        assert!(
            status == Status::SUCCESS || status == Status::COMPARE_FAILURE,
            "{status}"
        );
    }
}

#[test]
fn a_refused_command_may_not_be_tried_again_and_its_data_is_not_fetched() {
    let fixture = fixture();
    let [one, other] = members(&fixture);
    one.register(&fixture);
    one.acquire(&fixture, Type::WriteExclusive);
    let outcome = fixture.run(&other.io, write(0, 7, 1));
    assert_eq!(
        outcome.entry.status(),
        Status::RESERVATION_CONFLICT.without_retry()
    );
    let entry = block_entry(IoOpcode::Write, 0, 1);
    let early = other.io.queue.refuse_early(&entry, BLOCK as u32).unwrap();
    assert!(early.status().is(Status::RESERVATION_CONFLICT));
}

#[test]
fn a_fused_pair_of_a_host_that_is_kept_out_does_nothing() {
    let (fixture, drive) = Fixture::with_drive();
    let [one, other] = members(&fixture);
    one.register(&fixture);
    one.acquire(&fixture, Type::WriteExclusive);
    let compare = block_entry(IoOpcode::Compare, 0, 1).with_fuse(Fuse::First);
    let second = block_entry(IoOpcode::Write, 0, 1).with_fuse(Fuse::Second);
    let first = fixture.start(&other.io, writing(compare, &[0; BLOCK]));
    let second = fixture.start(&other.io, writing(second, &DATA));
    fixture.run_for(Duration::from_millis(1));
    let status = |task: SimTask<Outcome>| task.take().unwrap().unwrap().entry.status().without_flags();
    assert_eq!(status(first), Status::ABORTED_FAILED_FUSED);
    assert_eq!(status(second), Status::RESERVATION_CONFLICT);
    assert_eq!(one.read(&fixture), Status::SUCCESS);
    drop(drive);
    let read = fixture.run(&one.io, read(0, 1));
    assert_eq!(read.bytes(), [0; BLOCK]);
}

#[test]
fn registrations_and_reservations_come_and_go() {
    let fixture = fixture();
    let [one, two, three] = members(&fixture);
    assert_eq!(
        one.acquire(&fixture, Type::WriteExclusive),
        Status::RESERVATION_CONFLICT
    );
    assert_eq!(one.register(&fixture), Status::SUCCESS);
    assert_eq!(two.register(&fixture), Status::SUCCESS);
    assert_eq!(
        one.acquire(&fixture, Type::WriteExclusiveRegistrantsOnly),
        Status::SUCCESS
    );
    assert_eq!(
        two.acquire(&fixture, Type::WriteExclusiveRegistrantsOnly),
        Status::RESERVATION_CONFLICT
    );
    assert_eq!(
        (one.write(&fixture), two.write(&fixture), three.write(&fixture)),
        (Status::SUCCESS, Status::SUCCESS, Status::RESERVATION_CONFLICT)
    );
    assert_eq!(
        two.preempt(&fixture, Type::ExclusiveAccess, &one),
        Status::SUCCESS
    );
    assert_eq!(
        (one.read(&fixture), two.write(&fixture), three.read(&fixture)),
        (
            Status::RESERVATION_CONFLICT,
            Status::SUCCESS,
            Status::RESERVATION_CONFLICT
        )
    );
    let report = three.report(&fixture);
    assert_eq!(report.generation, 3);
    assert_eq!(
        (report.reservation, report.persist),
        (Some(Type::ExclusiveAccess), false)
    );
    assert_eq!(
        report.registrants,
        [RegistrantStatus {
            controller_id: two.admin.controller_id(),
            status: RegistrantStatus::HOLDS,
            key: 22,
            host: [2; 16],
        }]
    );
    assert_eq!(
        two.release(&fixture, ReleaseAction::Release, Type::WriteExclusive),
        Status::INVALID_FIELD
    );
    assert_eq!(two.unregister(&fixture), Status::SUCCESS);
    assert_eq!(one.write(&fixture), Status::SUCCESS);
    let report = one.report(&fixture);
    assert_eq!((report.generation, report.reservation), (4, None));
    assert!(report.registrants.is_empty());
}

/// A host is known by its identifier: another controller of it has the same rights, and so it has when it
/// comes back.
#[test]
fn a_reservation_is_one_of_a_host_and_outlives_its_controllers() {
    let fixture = fixture();
    let [one, other] = members(&fixture);
    one.register(&fixture);
    one.acquire(&fixture, Type::ExclusiveAccess);
    let second = Member::connect(&fixture, 1);
    assert_eq!(
        (second.write(&fixture), other.read(&fixture)),
        (Status::SUCCESS, Status::RESERVATION_CONFLICT)
    );
    for member in [one, second] {
        member.io.close(&fixture);
        member.admin.close(&fixture);
    }
    fixture.run_for(Duration::from_millis(10));
    assert_eq!(other.read(&fixture), Status::RESERVATION_CONFLICT);
    let report = other.report(&fixture);
    assert_eq!(
        report.registrants[0].controller_id,
        RegistrantStatus::NO_CONTROLLER
    );
    let again = Member::connect(&fixture, 1);
    assert_eq!(again.write(&fixture), Status::SUCCESS);
}

#[test]
fn others_are_told_what_happened_to_them() {
    let fixture = fixture();
    let [one, two, three] = members(&fixture);
    for member in [&one, &two, &three] {
        assert_eq!(member.register(&fixture), Status::SUCCESS);
    }
    let entry = SubmissionEntry::new(AdminOpcode::AsynchronousEventRequest.to_wire(), 5, 0);
    let event = |member: &Member| {
        let task = fixture.start(&member.admin, plain(entry));
        fixture.run_for(Duration::from_millis(1));
        task
    };
    let (waiting, nothing) = (event(&two), event(&one));
    one.acquire(&fixture, Type::WriteExclusiveRegistrantsOnly);
    one.release(
        &fixture,
        ReleaseAction::Release,
        Type::WriteExclusiveRegistrantsOnly,
    );
    fixture.run_for(Duration::from_millis(1));
    let told = waiting.take().unwrap().unwrap().entry;
    assert_eq!(told.result_low(), AsyncEvent::RESERVATION_NOTIFICATION.to_dword());
    assert!(!nothing.is_ended(), "who did it is not told");

    // What comes before the log is read makes no event; what is left after it does.
    let waiting = event(&two);
    one.acquire(&fixture, Type::WriteExclusiveAllRegistrants);
    one.release(
        &fixture,
        ReleaseAction::Release,
        Type::WriteExclusiveAllRegistrants,
    );
    fixture.run_for(Duration::from_millis(1));
    assert!(!waiting.is_ended());
    let first = two.notification(&fixture);
    assert_eq!(
        (
            first.log_page_count,
            first.notification_type(),
            first.waiting,
            first.namespace_id
        ),
        (1, Some(Kind::ReservationReleased), 1, 1)
    );
    fixture.run_for(Duration::from_millis(1));
    assert!(waiting.is_ended());
    assert_eq!(two.told(&fixture), [Kind::ReservationReleased]);

    // What is masked does not come; the masks are each namespace's.
    let mask = |id: u32, value| {
        let entry = SetFeatures::new(FeatureId::ReservationNotificationMask, value);
        let entry = entry.to_entry(7, id, SglDescriptor::transport(0));
        fixture.status(&three.admin, plain(entry))
    };
    three.told(&fixture);
    assert_eq!(mask(1, 1 << 1), Status::SUCCESS);
    assert_eq!(
        mask(2, 1 << 1),
        Status::INVALID_FIELD,
        "there is no such namespace"
    );
    let get = |id| {
        let get = GetFeatures::current(FeatureId::ReservationNotificationMask, 0).to_entry(6, id, 0);
        let outcome = fixture.run(&three.admin, plain(get));
        (outcome.entry.status().without_flags(), outcome.entry.result_low())
    };
    assert_eq!(get(1), (Status::SUCCESS, 1 << 1));
    assert_eq!(get(u32::MAX).0, Status::INVALID_NAMESPACE_OR_FORMAT);
    one.acquire(&fixture, Type::WriteExclusive);
    one.preempt(&fixture, Type::WriteExclusive, &three);
    assert_eq!(one.preempt(&fixture, Type::WriteExclusive, &two), Status::SUCCESS);
    assert_eq!(two.told(&fixture), [Kind::RegistrationPreempted]);
    assert_eq!(three.told(&fixture), []);
    assert_eq!(mask(u32::MAX, 0), Status::SUCCESS);
    assert_eq!(get(1), (Status::SUCCESS, 0));
    three.register(&fixture);
    one.release(&fixture, ReleaseAction::Clear, Type::WriteExclusive);
    assert_eq!(three.told(&fixture), [Kind::ReservationPreempted]);
    assert_eq!(one.told(&fixture), []);
}

/// Preempt and Abort: what its host had under way has landed or never will.
#[test]
fn a_preemption_that_aborts_waits_for_what_is_at_the_device() {
    let fixture = Fixture::new(2);
    let drive = fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
    let [one, two] = members(&fixture);
    one.register(&fixture);
    two.register(&fixture);
    one.acquire(&fixture, Type::WriteExclusive);
    drive.fail_nth(Operation::Write, 1, Fault::Delay(Duration::from_secs(1)));
    let under_way = fixture.start(&one.io, write(0, 7, 1));
    fixture.run_for(Duration::from_millis(1));
    let command = two.acquire_command(AcquireAction::PreemptAndAbort, Type::WriteExclusive, one.key());
    let preempt = fixture.start(&two.io, command);
    fixture.run_for(Duration::from_millis(500));
    assert!(!under_way.is_ended() && !preempt.is_ended());
    // It came before the preemption, and waits for it.
    let late = fixture.start(&one.io, write(1, 7, 1));
    fixture.run_for(Duration::from_secs(1));
    let status = |task: SimTask<Outcome>| task.take().unwrap().unwrap().entry.status().without_flags();
    assert_eq!(status(under_way), Status::SUCCESS);
    assert_eq!(status(preempt), Status::SUCCESS);
    assert_eq!(status(late), Status::ABORTED_BY_PREEMPT);
    assert_eq!(one.write(&fixture), Status::RESERVATION_CONFLICT);
    assert_eq!(fixture.run(&two.io, read(1, 1)).bytes(), [0; BLOCK]);
    // Rights that it gets later do not bring old commands back, and new ones go through.
    one.register(&fixture);
    two.release(&fixture, ReleaseAction::Release, Type::WriteExclusive);
    assert_eq!(one.write(&fixture), Status::SUCCESS);
}

#[test]
fn a_preemption_that_cannot_wait_for_the_device_changes_nothing() {
    let fixture = Fixture::new(1);
    let drive = fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
    let [one, two] = members(&fixture);
    one.register(&fixture);
    two.register(&fixture);
    one.acquire(&fixture, Type::WriteExclusive);
    drive.fail_nth(Operation::Write, 1, Fault::Delay(Duration::from_secs(60)));
    let under_way = fixture.start(&one.io, write(0, 7, 1));
    fixture.run_for(Duration::from_millis(1));
    let command = two.acquire_command(AcquireAction::PreemptAndAbort, Type::WriteExclusive, one.key());
    assert_eq!(fixture.status(&two.io, command), Status::COMMAND_INTERRUPTED);
    assert_eq!(two.report(&fixture).registrants.len(), 2);
    drop(under_way);
}

#[test]
fn fields_that_make_no_sense_are_refused() {
    let fixture = fixture();
    let [one] = members(&fixture);
    one.register(&fixture);
    let keys = [0; 16];
    let data = SglDescriptor::in_capsule(16);
    let run = |entry: SubmissionEntry, data: &[u8]| fixture.status(&one.io, writing(entry, data));
    let register = |action_field, persist_field| {
        let register = ReservationRegister {
            action_field,
            ignore_existing_key: false,
            persist_field,
        };
        register.to_entry(3, 1, data)
    };
    for entry in [register(3, 0), register(7, 0), register(0, 1), register(0, 3)] {
        assert_eq!(run(entry, &keys), Status::INVALID_FIELD);
    }
    assert_eq!(run(register(0, 0), &keys[..15]), Status::DATA_SGL_LENGTH_INVALID);
    let change = |action_field, type_field, ignore_existing_key| ReservationChange {
        action_field,
        ignore_existing_key,
        type_field,
    };
    for fields in [
        change(3, 1, false),
        change(0, 0, false),
        change(0, 7, false),
        change(0, 1, true),
    ] {
        assert_eq!(run(fields.to_acquire(3, 1, data), &keys), Status::INVALID_FIELD);
    }
    for fields in [change(2, 1, false), change(0, 1, true)] {
        assert_eq!(run(fields.to_release(3, 1, data), &keys), Status::INVALID_FIELD);
    }
    for id in [0, 5000, u32::MAX] {
        let entry = ReservationReport::new(64).to_entry(3, id);
        let status = fixture.status(&one.io, reading(entry, 64));
        assert_eq!(status, Status::INVALID_NAMESPACE_OR_FORMAT);
    }
    let short = ReservationReport {
        extended: false,
        ..ReservationReport::new(64)
    };
    assert_eq!(
        fixture.status(&one.io, reading(short.to_entry(3, 1), 64)),
        Status::HOST_IDENTIFIER_INCONSISTENT
    );
    let entry = ReservationReport::new(4096).to_entry(3, 1);
    assert_eq!(
        fixture.status(&one.io, reading(entry, 64)),
        Status::DATA_SGL_LENGTH_INVALID
    );
    let entry = ReservationReport::new(2 << 20).to_entry(3, 1);
    assert_eq!(
        fixture.status(&one.io, reading(entry, 2 << 20)),
        Status::INVALID_FIELD
    );
    let nobody = Member::connect(&fixture, 0);
    assert_eq!(nobody.register(&fixture), Status::HOST_IDENTIFIER_NOT_INITIALIZED);
}

#[test]
fn where_access_states_are_told_there_are_none() {
    let config = SubsystemConfig {
        asymmetric_access: true,
        ..SubsystemConfig::new(SUBSYSTEM)
    };
    let fixture = Fixture::with_subsystem(1, TargetConfig::default(), &config);
    fixture.add_drive("disk0", Fixture::instant(BLOCK as u32));
    let [one] = members(&fixture);
    assert_eq!(one.register(&fixture), Status::INVALID_OPCODE);
    let bytes = fixture
        .identify(&one.admin, IdentifyStructure::Namespace, 1)
        .unwrap();
    assert_eq!(
        IdentifyNamespace::from_bytes(&bytes).reservations,
        ReservationCapabilities::empty()
    );
    let page = LogPageId::ReservationNotification;
    assert_eq!(fixture.log(&one.admin, page, 64), Err(Status::INVALID_LOG_PAGE));
    let mask = FeatureId::ReservationNotificationMask;
    assert_eq!(
        fixture.set_feature(&one.admin, mask, 0),
        Err(Status::INVALID_FIELD)
    );
}

/// A store in memory, that outlives its target, and fails when told to.
#[derive(Debug, Default)]
struct MemoryStore {
    records: Mutex<BTreeMap<Uuid, Vec<u8>>>,
    fails: Mutex<bool>,
}

impl ReservationStore for MemoryStore {
    fn load(&self, namespace: Uuid) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records.lock().unwrap().get(&namespace).cloned())
    }

    fn save(&self, namespace: Uuid, record: Option<Vec<u8>>) -> Saving {
        if *self.fails.lock().unwrap() {
            return Box::pin(async {
                Err(StoreError::Io {
                    what: "could not write",
                    place: "memory".to_owned(),
                    error: "told to fail".to_owned(),
                })
            });
        }
        let mut records = self.records.lock().unwrap();
        match record {
            Some(record) => records.insert(namespace, record),
            None => records.remove(&namespace),
        };
        Box::pin(async { Ok(()) })
    }
}

fn with_store(store: &Arc<MemoryStore>) -> Fixture {
    let fixture = Fixture::with_store(store.clone());
    fixture.add_drive("disk0", Fixture::instant(BLOCK as u32));
    fixture
}

#[test]
fn what_persists_is_there_after_a_restart_and_what_does_not_is_not() {
    let store = Arc::new(MemoryStore::default());
    let persistence = |fixture: &Fixture, member: &Member, value: u32| {
        let set = SetFeatures::new(FeatureId::ReservationPersistence, value);
        let entry = set.to_entry(7, 1, SglDescriptor::transport(0));
        fixture.status(&member.admin, plain(entry))
    };
    {
        let fixture = with_store(&store);
        let [one] = members(&fixture);
        one.register(&fixture);
        one.acquire(&fixture, Type::WriteExclusive);
        assert!(store.records.lock().unwrap().is_empty());
    }
    {
        let fixture = with_store(&store);
        let [one, two] = members(&fixture);
        assert_eq!(one.report(&fixture), ReservationStatus::default());
        let bytes = fixture
            .identify(&one.admin, IdentifyStructure::Namespace, 1)
            .unwrap();
        assert_eq!(IdentifyNamespace::from_bytes(&bytes).reservations.bits(), 0xff);
        let keys = RegisterKeys { current: 0, new: 11 };
        let status = one.register_with(&fixture, RegisterAction::Register, keys, PersistChange::Set);
        assert_eq!(status, Status::SUCCESS);
        one.acquire(&fixture, Type::ExclusiveAccess);
        two.register(&fixture);
    }
    {
        let fixture = with_store(&store);
        let [two, one] = [2, 1].map(|number| Member::connect(&fixture, number));
        assert_eq!(two.read(&fixture), Status::RESERVATION_CONFLICT);
        let report = two.report(&fixture);
        assert!(report.persist && report.registrants.len() == 2 && report.generation == 2);
        let get = GetFeatures::current(FeatureId::ReservationPersistence, 0).to_entry(6, 1, 0);
        assert_eq!(fixture.run(&one.admin, plain(get)).entry.result_low(), 1);
        assert_eq!(
            two.preempt(&fixture, Type::ExclusiveAccess, &one),
            Status::SUCCESS
        );
    }
    {
        let fixture = with_store(&store);
        let [one, two] = members(&fixture);
        assert_eq!(
            (one.read(&fixture), two.read(&fixture)),
            (Status::RESERVATION_CONFLICT, Status::SUCCESS)
        );
        assert_eq!(persistence(&fixture, &two, 0), Status::SUCCESS);
        assert!(store.records.lock().unwrap().is_empty());
        assert_eq!(one.read(&fixture), Status::RESERVATION_CONFLICT);
    }
    let fixture = with_store(&store);
    let [one] = members(&fixture);
    assert_eq!(one.read(&fixture), Status::SUCCESS);
    assert_eq!(persistence(&fixture, &one, 1), Status::SUCCESS);
    assert_eq!(store.records.lock().unwrap().len(), 1);
}

#[test]
fn what_could_not_be_kept_did_not_happen() {
    let store = Arc::new(MemoryStore::default());
    let fixture = with_store(&store);
    let [one, two] = members(&fixture);
    let keys = RegisterKeys { current: 0, new: 11 };
    one.register_with(&fixture, RegisterAction::Register, keys, PersistChange::Set);
    *store.fails.lock().unwrap() = true;
    assert_eq!(
        one.acquire(&fixture, Type::ExclusiveAccess),
        Status::INTERNAL_ERROR
    );
    assert_eq!(two.write(&fixture), Status::SUCCESS);
    assert_eq!(one.report(&fixture).reservation, None);
    *store.fails.lock().unwrap() = false;
    assert_eq!(one.acquire(&fixture, Type::ExclusiveAccess), Status::SUCCESS);
    assert_eq!(two.write(&fixture), Status::RESERVATION_CONFLICT);
}

#[test]
fn a_namespace_whose_record_is_damaged_is_not_served() {
    let store = Arc::new(MemoryStore::default());
    let fixture = Fixture::with_store(store.clone());
    let config = NamespaceConfig {
        uuid: Some(Uuid::from_u128(5)),
        ..NamespaceConfig::default()
    };
    store
        .records
        .lock()
        .unwrap()
        .insert(Uuid::from_u128(5), vec![1; 50]);
    let drive = fixture.drive("disk0", Geometry::new(4 << 20, 4096).unwrap());
    let error = fixture.subsystem.add_namespace(drive, &config).unwrap_err();
    assert!(
        matches!(error, SubsystemError::Reservations { id: 1, .. }),
        "{error}"
    );
    assert!(fixture.subsystem.served().is_empty());
}
