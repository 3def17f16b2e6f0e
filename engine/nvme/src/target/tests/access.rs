//! Access states: what hosts are told, which commands are refused, and what a move of access waits for.

use super::io::{block_entry, read, write};
use super::*;
use crate::target::{ControllerIds, SubsystemError, TargetError};
use crate::wire::command::{AdminOpcode, Fuse, IoOpcode};
use crate::wire::features::AsyncEvent;
use crate::wire::identify::{AnaCapabilities, IdentifyController, MultipathCapabilities};
use crate::wire::log::{AnaGroup, AnaLog, AnaState};
use pollux_sim::{Fault, Operation};

const ANA_CHANGE: u32 = 1 << 11;

fn config() -> SubsystemConfig {
    SubsystemConfig {
        asymmetric_access: true,
        ..SubsystemConfig::new(SUBSYSTEM)
    }
}

/// Two reactors, and a namespace on a drive.
fn fixture(drive: SimDriveOptions) -> (Fixture, Arc<SimDrive>) {
    let fixture = Fixture::with_subsystem(2, TargetConfig::default(), &config());
    let drive = fixture.add_drive("disk0", drive);
    (fixture, drive)
}

fn access_log(fixture: &Fixture, admin: &TestQueue) -> AnaLog {
    let bytes = AnaLog::bytes_max(1024) as usize;
    AnaLog::parse(&fixture.log(admin, LogPageId::Ana, bytes).unwrap()).unwrap()
}

fn group(id: u32, change_count: u64, state: AnaState) -> AnaGroup {
    AnaGroup {
        group_id: id,
        change_count,
        state,
        namespaces: vec![id],
    }
}

#[test]
fn hosts_are_told_of_every_change() {
    let (fixture, _drive) = fixture(Fixture::instant(BLOCK as u32));
    let config = NamespaceConfig {
        id: Some(7),
        access: Some(AnaState::Inaccessible),
        ..NamespaceConfig::default()
    };
    let standby = fixture.drive("disk1", Geometry::new(4 << 20, 4096).unwrap());
    fixture.subsystem.add_namespace(standby, &config).unwrap();
    let admin = fixture.enabled();
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::AsyncEventConfiguration, ANA_CHANGE),
        Ok(0)
    );
    let mut expected = AnaLog {
        change_count: 0,
        groups: vec![
            group(1, 0, AnaState::Optimized),
            group(7, 0, AnaState::Inaccessible),
        ],
    };
    assert_eq!(access_log(&fixture, &admin), expected);

    let request = |id| {
        let entry = SubmissionEntry::new(AdminOpcode::AsynchronousEventRequest.to_wire(), id, 0);
        let task = fixture.start(&admin, plain(entry));
        fixture.run_for(Duration::from_millis(1));
        task
    };
    let waiting = request(1);
    fixture.subsystem.set_access(1, AnaState::Optimized).unwrap();
    fixture.run_for(Duration::from_millis(1));
    assert!(!waiting.is_ended(), "nothing changed");
    fixture.subsystem.set_access(1, AnaState::Change).unwrap();
    fixture.run_for(Duration::from_millis(1));
    let told = waiting.take().unwrap().unwrap().entry;
    assert_eq!(told.result_low(), AsyncEvent::ANA_CHANGED.to_dword());
    fixture.subsystem.set_access(1, AnaState::Inaccessible).unwrap();
    fixture.subsystem.set_access(7, AnaState::Optimized).unwrap();
    let waiting = request(2);
    assert!(!waiting.is_ended(), "the log was not read yet");
    expected.change_count = 3;
    expected.groups = vec![
        group(1, 2, AnaState::Inaccessible),
        group(7, 1, AnaState::Optimized),
    ];
    assert_eq!(access_log(&fixture, &admin), expected);
    fixture.run_for(Duration::from_millis(1));
    assert!(
        waiting.is_ended(),
        "the change before the log was read is told too"
    );
    assert_eq!(fixture.subsystem.access(7), Ok(AnaState::Optimized));

    // Groups only, and identify.
    let mut get = GetLogPage::new(LogPageId::Ana, 0, 16 + 2 * 32);
    get.specific_parameter = AnaLog::GROUPS_ONLY;
    let bytes = fixture
        .read_admin(&admin, get.to_entry(5, 0), 16 + 2 * 32)
        .unwrap();
    let groups = AnaLog::parse(&bytes).unwrap().groups;
    assert!(groups.iter().all(|group| group.namespaces.is_empty()) && groups.len() == 2);
    let bytes = fixture
        .identify(&admin, IdentifyStructure::Controller, 0)
        .unwrap();
    let controller = IdentifyController::from_bytes(&bytes);
    assert!(
        controller
            .multipath
            .contains(MultipathCapabilities::ANA_REPORTING)
    );
    assert!(
        controller
            .ana_capabilities
            .contains(AnaCapabilities::INACCESSIBLE)
    );
    assert_eq!((controller.ana_group_id_max, controller.ana_groups), (1024, 1024));
    let bytes = fixture.identify(&admin, IdentifyStructure::Namespace, 7).unwrap();
    assert_eq!(bytes[92..96], [7, 0, 0, 0]);
}

#[test]
fn commands_are_refused_without_access_and_the_host_is_to_try_another_path() {
    let (fixture, drive) = fixture(Fixture::instant(BLOCK as u32));
    let (_admin, io) = fixture.both();
    let states = [
        (AnaState::NonOptimized, Status::SUCCESS),
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::Change, Status::ANA_TRANSITION),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Optimized, Status::SUCCESS),
    ];
    for (state, expected) in states {
        fixture.subsystem.set_access(1, state).unwrap();
        let before = drive.counters();
        for command in [
            write(0, 1, 1),
            read(0, 1),
            plain(SubmissionEntry::new(0, 1, 1)),
            plain(block_entry(IoOpcode::WriteZeroes, 0, 1)),
            plain(block_entry(IoOpcode::Verify, 0, 1)),
        ] {
            let opcode = command.entry.opcode;
            let status = fixture.run(&io, command).entry.status();
            assert_eq!(status.without_flags(), expected, "{state:?} {opcode}");
            assert!(!status.do_not_retry());
        }
        assert_eq!(drive.counters() == before, expected != Status::SUCCESS);
    }
    fixture.subsystem.set_access(1, AnaState::Inaccessible).unwrap();
    let flush_all = plain(SubmissionEntry::new(0, 1, u32::MAX));
    assert_eq!(fixture.status(&io, flush_all), Status::ANA_INACCESSIBLE);
}

/// After access was taken away and what was under way has landed, nothing reaches the device any more.
#[test]
fn a_move_waits_for_what_is_at_the_device() {
    let (fixture, drive) = fixture(Fixture::slow(BLOCK as u32));
    let (admin, io) = fixture.both();
    let other = fixture.io_queue(&admin, 2);
    // A command that waits to be tried again, one at the device, and a fused pair behind both.
    for nth in 1..=2 {
        let shortage = pollux_device::IoError::ResourceShortage;
        drive.fail_nth(Operation::Write, nth, Fault::Error(shortage));
    }
    let retried = fixture.start(&io, write(0, 1, 1));
    fixture.run_for(Duration::from_micros(300));
    let first = fixture.start(&other, write(1, 2, 1));
    let mut compare = writing(block_entry(IoOpcode::Compare, 1, 1), &[2; BLOCK]);
    compare.entry = compare.entry.with_fuse(Fuse::First);
    let mut fused = write(1, 3, 1);
    fused.entry = fused.entry.with_fuse(Fuse::Second);
    let pair = [fixture.start(&io, compare), fixture.start(&io, fused)];
    fixture.run_for(Duration::from_micros(5));
    fixture.subsystem.set_access(1, AnaState::Change).unwrap();
    let (subsystem, reactor) = (fixture.subsystem.clone(), fixture.reactor());
    let quiet = fixture.world.block_on(reactor, async move {
        subsystem.quiesce(1, Duration::from_secs(5)).await
    });
    assert_eq!(quiet, Ok(()));
    let before = drive.counters();
    let ended: Vec<_> = [&retried, &pair[0], &pair[1]]
        .map(|task| fixture.world.finish(task).entry.status())
        .to_vec();
    let landed = fixture.world.finish(&first).entry.status();
    assert_eq!(landed, Status::SUCCESS, "it was at the device");
    assert_eq!(drive.counters(), before, "nothing came after: {ended:?}");
    assert_eq!(ended[0], Status::ANA_INACCESSIBLE);
    // With access again, all goes on.
    fixture.subsystem.set_access(1, AnaState::Optimized).unwrap();
    assert_eq!(fixture.status(&io, write(1, 4, 1)), Status::SUCCESS);
}

#[test]
fn a_subsystem_without_access_states_tells_of_none() {
    let (fixture, drive) = Fixture::with_drive();
    let (admin, _io) = fixture.both();
    assert!(matches!(
        fixture.subsystem.set_access(1, AnaState::Inaccessible),
        Err(SubsystemError::NoAccessStates { .. })
    ));
    let config = NamespaceConfig {
        access: Some(AnaState::Inaccessible),
        ..NamespaceConfig::default()
    };
    assert!(matches!(
        fixture.subsystem.add_namespace(drive, &config),
        Err(SubsystemError::NoAccessStates { .. })
    ));
    assert_eq!(
        fixture.log(&admin, LogPageId::Ana, 4096),
        Err(Status::INVALID_LOG_PAGE)
    );
    let bytes = fixture
        .identify(&admin, IdentifyStructure::Controller, 0)
        .unwrap();
    let controller = IdentifyController::from_bytes(&bytes);
    assert!(
        !controller
            .multipath
            .contains(MultipathCapabilities::ANA_REPORTING)
    );
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::AsyncEventConfiguration, ANA_CHANGE),
        Err(Status::INVALID_FIELD)
    );
}

#[test]
fn controllers_get_identifiers_of_their_range() {
    let config = SubsystemConfig {
        controller_ids: ControllerIds {
            first: 300,
            last: 302,
        },
        ..config()
    };
    let fixture = Fixture::with_subsystem(1, TargetConfig::default(), &config);
    let mut controllers: Vec<_> = (0..3).map(|_| fixture.admin()).collect();
    let ids: Vec<_> = controllers.iter().map(TestQueue::controller_id).collect();
    assert_eq!(ids, [300, 301, 302]);
    let data = data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER);
    assert!(fixture.admit(&connect(0), &data).is_err(), "the range is used up");
    controllers.remove(1).close(&fixture);
    fixture.run_for(Duration::from_secs(1));
    assert_eq!(fixture.admin().controller_id(), 301);
}

#[test]
fn settings_out_of_bounds_are_errors() {
    let fixture = Fixture::new(1);
    let refused = |config: SubsystemConfig| fixture.target.add_subsystem(&config).err();
    for (first, last) in [(0, 5), (6, 5), (1, 0xfff0)] {
        let config = SubsystemConfig {
            controller_ids: ControllerIds { first, last },
            ..SubsystemConfig::new("nqn.2026-11.io.pollux:other")
        };
        let error = refused(config);
        assert!(
            matches!(
                error,
                Some(TargetError::Subsystem(SubsystemError::ControllerIds { .. }))
            ),
            "{error:?}"
        );
    }
    let many = TargetConfig {
        namespaces_max: 65_536,
        ..TargetConfig::default()
    };
    let handle = fixture.world.handle(fixture.reactor()).unwrap();
    let target = Target::new(many, vec![handle]).unwrap();
    assert!(matches!(
        target.add_subsystem(&config()),
        Err(TargetError::Subsystem(SubsystemError::AccessLog { .. }))
    ));
}
