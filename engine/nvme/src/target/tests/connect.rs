//! Connect, properties, queues and where they live.

use super::*;
use crate::wire::command::{ConnectRefusal, FabricsCommandType};
use pollux_sim::{Fault, Operation};

fn refusal(fixture: &Fixture, connect: &Connect, data: &ConnectData) -> (Status, u32) {
    let entry = fixture.admit(connect, data).map(drop).unwrap_err();
    assert_eq!(entry.command_id.get(), 1);
    (entry.status(), entry.result_low())
}

fn invalid(refusal: ConnectRefusal) -> (Status, u32) {
    (
        Status::CONNECT_INVALID_PARAMETERS.without_retry(),
        refusal.to_result() as u32,
    )
}

fn command(offset: u16) -> (Status, u32) {
    invalid(ConnectRefusal::Command { offset })
}

fn data(offset: u16) -> (Status, u32) {
    invalid(ConnectRefusal::Data { offset })
}

#[test]
fn a_host_gets_a_controller_and_queues() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    assert_eq!(admin.response.status(), Status::SUCCESS);
    assert_eq!(admin.response.result_low(), 1);
    assert_eq!(io.response.result_low(), 1);
    assert_eq!((admin.queue.depth(), io.queue.depth()), (128, 128));
    let second = fixture.enabled();
    assert_eq!(second.controller_id(), 2);
}

#[test]
fn each_bad_parameter_is_named() {
    let fixture = Fixture::new(1);
    let good = data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER);
    let unknown = data_for("nqn.2026-11.io.pollux:other", HOST, DYNAMIC_CONTROLLER);
    assert_eq!(refusal(&fixture, &connect(0), &unknown), data(256));
    let mut nonsense = good;
    nonsense.subsystem_field = [b'x'; 256];
    assert_eq!(refusal(&fixture, &connect(0), &nonsense), data(256));
    let mut nonsense = good;
    nonsense.host_field = [0xff; 256];
    assert_eq!(refusal(&fixture, &connect(0), &nonsense), data(512));
    for id in [0, 1, 0xfffe] {
        assert_eq!(
            refusal(&fixture, &connect(0), &data_for(SUBSYSTEM, HOST, id)),
            data(16)
        );
    }
    for size in [0, 256, u16::MAX] {
        let sized = Connect {
            queue_size_minus_one: size,
            ..connect(0)
        };
        assert_eq!(refusal(&fixture, &sized, &good), command(44), "{size}");
    }
    let eternal = Connect {
        keep_alive_ms: 3_600_001,
        ..connect(0)
    };
    assert_eq!(refusal(&fixture, &eternal, &good), command(48));
    let format = Connect {
        record_format: 1,
        ..connect(0)
    };
    let incompatible = (Status::CONNECT_INCOMPATIBLE_FORMAT.without_retry(), 0);
    assert_eq!(refusal(&fixture, &format, &good), incompatible);
}

#[test]
fn each_bad_parameter_of_an_io_queue_is_named() {
    let fixture = Fixture::with(
        1,
        TargetConfig {
            io_queues_max: 4,
            queue_depth_max: 256,
            ..TargetConfig::default()
        },
    );
    let admin = fixture.enabled();
    let id = admin.controller_id();
    let good = data_for(SUBSYSTEM, HOST, id);
    assert_eq!(refusal(&fixture, &connect(5), &good), command(42));
    assert_eq!(refusal(&fixture, &connect(u16::MAX), &good), command(42));
    for size in [0, 256] {
        let sized = Connect {
            queue_size_minus_one: size,
            ..connect(1)
        };
        assert_eq!(refusal(&fixture, &sized, &good), command(44));
    }
    for other in [0, id + 1, DYNAMIC_CONTROLLER] {
        assert_eq!(
            refusal(&fixture, &connect(1), &data_for(SUBSYSTEM, HOST, other)),
            data(16)
        );
    }
    let stranger = data_for(SUBSYSTEM, "nqn.2026-11.io.pollux:stranger", id);
    assert_eq!(refusal(&fixture, &connect(1), &stranger), data(512));
    let mut twin = good;
    twin.host_id = [9; 16];
    assert_eq!(refusal(&fixture, &connect(1), &twin), data(0));
    let queue = fixture.connect(&connect(1), &good);
    assert_eq!(
        refusal(&fixture, &connect(1), &good),
        (Status::COMMAND_SEQUENCE_ERROR.without_retry(), 0)
    );
    queue.close(&fixture);
    assert_eq!(
        fixture.connect(&connect(1), &good).response.status(),
        Status::SUCCESS
    );
}

#[test]
fn an_io_queue_needs_an_enabled_controller() {
    let fixture = Fixture::new(1);
    let admin = fixture.admin();
    let good = data_for(SUBSYSTEM, HOST, admin.controller_id());
    let sequence = (Status::COMMAND_SEQUENCE_ERROR.without_retry(), 0);
    assert_eq!(refusal(&fixture, &connect(1), &good), sequence);
    fixture.enable(&admin);
    let _queue = fixture.connect(&connect(1), &good);
}

#[test]
fn a_connect_of_the_wrong_shape_is_refused() {
    let fixture = Fixture::new(1);
    let good = data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER);
    let short = fixture
        .admit_bytes(connect(0).to_entry(1), &good.as_bytes()[..1023])
        .map(drop)
        .unwrap_err();
    assert_eq!(short.status().without_flags(), Status::DATA_SGL_LENGTH_INVALID);
    let other = SubmissionEntry::fabrics(FabricsCommandType::PropertyGet, 1);
    let other = fixture.admit_bytes(other, good.as_bytes()).map(drop).unwrap_err();
    assert_eq!(other.status().without_flags(), Status::COMMAND_SEQUENCE_ERROR);
}

#[test]
fn controller_identifiers_are_not_used_again_soon() {
    let fixture = Fixture::new(1);
    for expected in 1..=5 {
        let admin = fixture.admin();
        assert_eq!(admin.controller_id(), expected);
        admin.close(&fixture);
    }
}

#[test]
fn a_subsystem_has_a_limit_of_controllers() {
    let fixture = Fixture::with(
        1,
        TargetConfig {
            controllers_max: 1,
            ..TargetConfig::default()
        },
    );
    let first = fixture.admin();
    let good = data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER);
    assert_eq!(
        refusal(&fixture, &connect(0), &good),
        (Status::CONNECT_CONTROLLER_BUSY, 0)
    );
    first.close(&fixture);
    fixture.admin();
}

#[test]
fn only_hosts_on_the_list_connect() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let hosts = crate::target::Hosts {
        allow_any: false,
        allowed: vec![HOST.to_owned()],
    };
    fixture.subsystem.set_hosts(&hosts).unwrap();
    assert_eq!(fixture.subsystem.hosts(), hosts);
    assert_eq!(admin.ended(), None);
    let stranger = data_for(SUBSYSTEM, "nqn.2026-11.io.pollux:stranger", DYNAMIC_CONTROLLER);
    let invalid_host = (Status::CONNECT_INVALID_HOST.without_retry(), 0);
    assert_eq!(refusal(&fixture, &connect(0), &stranger), invalid_host);
    fixture
        .subsystem
        .add_host("nqn.2026-11.io.pollux:stranger")
        .unwrap();
    let second = fixture.connect(&connect(0), &stranger);
    fixture.subsystem.remove_host(HOST).unwrap();
    assert_eq!(admin.ended(), Some("the host may no longer connect"));
    assert_eq!(second.ended(), None);
    assert!(fixture.subsystem.add_host("nonsense").is_err());
}

#[test]
fn a_host_without_a_name_goes_by_its_identifier() {
    let fixture = Fixture::new(1);
    let mut nameless = data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER);
    nameless.host_field = [0; 256];
    assert!(fixture.admit(&connect(0), &nameless).is_ok());
    let identifier = uuid::Uuid::from_bytes(nameless.host_id);
    let name = format!("nqn.2014-08.org.nvmexpress:uuid:{identifier}");
    let other = "nqn.2014-08.org.nvmexpress:uuid:99999999-0000-0000-0000-000000000001".to_owned();
    let hosts = crate::target::Hosts {
        allow_any: false,
        allowed: vec![other],
    };
    fixture.subsystem.set_hosts(&hosts).unwrap();
    let refused = (Status::CONNECT_INVALID_HOST.without_retry(), 0);
    assert_eq!(refusal(&fixture, &connect(0), &nameless), refused);
    fixture.subsystem.add_host(&name).unwrap();
    assert!(fixture.admit(&connect(0), &nameless).is_ok());
}

#[test]
fn queues_are_spread_and_counted() {
    let fixture = Fixture::new(2);
    let hosts: Vec<_> = (0..4).map(|_| fixture.both()).collect();
    let loads = fixture.target.loads();
    assert_eq!(
        loads.iter().map(|load| load.io_queues).collect::<Vec<_>>(),
        [2, 2]
    );
    assert_eq!(loads.iter().map(|load| load.connections).sum::<usize>(), 8);
    for (admin, io) in hosts {
        io.close(&fixture);
        admin.close(&fixture);
    }
    assert!(
        fixture
            .target
            .loads()
            .iter()
            .all(|load| load.connections == 0 && load.io_queues == 0)
    );
    // A queue that was promised and never made is not counted.
    let promised = fixture.admit(&connect(0), &data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER));
    assert_eq!(fixture.target.loads()[0].connections, 1);
    drop(promised);
    assert_eq!(fixture.target.loads()[0].connections, 0);
    assert_eq!(fixture.subsystem.queues(), 0);
}

#[test]
fn admin_queues_go_where_the_fewest_connections_are() {
    let fixture = Fixture::new(3);
    let admins: Vec<_> = (0..3).map(|_| fixture.admin()).collect();
    assert!(fixture.target.loads().iter().all(|load| load.connections == 1));
    drop(admins);
}

#[test]
fn losing_the_admin_queue_ends_the_controller() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    let id = admin.controller_id();
    admin.close(&fixture);
    assert_eq!(io.ended(), Some("the admin queue is gone"));
    assert_eq!(
        refusal(&fixture, &connect(2), &data_for(SUBSYSTEM, HOST, id)),
        data(16)
    );
}

#[test]
fn a_reset_ends_the_io_queues_and_is_done_when_they_are_gone() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    assert_eq!(fixture.csts(&admin), 1);
    assert_eq!(fixture.set_cc(&admin, ENABLE & !1), Status::SUCCESS);
    assert_eq!(io.ended(), Some("the controller was reset"));
    assert_eq!(admin.ended(), None);
    assert_eq!(fixture.csts(&admin), 1);
    let again = data_for(SUBSYSTEM, HOST, admin.controller_id());
    assert_eq!(
        refusal(&fixture, &connect(2), &again).0.without_flags(),
        Status::COMMAND_SEQUENCE_ERROR
    );
    io.close(&fixture);
    assert_eq!(fixture.csts(&admin), 0);
    fixture.enable(&admin);
    assert_eq!(fixture.io_queue(&admin, 1).response.status(), Status::SUCCESS);
}

#[test]
fn a_shutdown_flushes_before_it_is_complete() {
    let fixture = Fixture::new(1);
    let drives = [
        fixture.add_drive("disk0", Fixture::slow(512)),
        fixture.add_drive("disk1", Fixture::slow(4096)),
    ];
    let admin = fixture.enabled();
    fixture.set_cc(&admin, ENABLE | 1 << 14);
    assert_eq!(fixture.csts(&admin), 0b0101);
    fixture.run_for(Duration::from_millis(100));
    assert_eq!(fixture.csts(&admin), 0b1001);
    assert_eq!(drives.map(|drive| drive.counters().flushes), [1, 1]);
}

#[test]
fn a_shutdown_whose_flush_fails_is_never_complete() {
    let (fixture, drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    let error = pollux_device::IoError::MediaWrite;
    drive.fail_nth(pollux_sim::Operation::Flush, 1, pollux_sim::Fault::Error(error));
    fixture.set_cc(&admin, ENABLE | 2 << 14);
    fixture.run_for(Duration::from_secs(10));
    assert_eq!(fixture.csts(&admin), 0b0111);
    assert_eq!(drive.counters().flushes, 1);
}

#[test]
fn a_target_shuts_down() {
    let (fixture, drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    let target = fixture.target.clone();
    let task = fixture
        .world
        .spawn(fixture.reactor(), async move { target.shut_down().await });
    fixture.run_for(Duration::from_millis(50));
    assert!(!task.is_ended());
    assert_eq!(admin.ended(), Some("the target shuts down"));
    io.close(&fixture);
    admin.close(&fixture);
    assert!(fixture.world.finish(&task));
    assert_eq!(drive.counters().flushes, 1);
    let busy = refusal(
        &fixture,
        &connect(0),
        &data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER),
    );
    assert_eq!(busy, (Status::CONNECT_CONTROLLER_BUSY, 0));
}

#[test]
fn a_subsystem_is_removed_with_its_controllers() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    assert!(
        fixture
            .target
            .remove_subsystem("nqn.2026-11.io.pollux:other")
            .is_err()
    );
    fixture.target.remove_subsystem(SUBSYSTEM).unwrap();
    assert_eq!(admin.ended(), Some("the subsystem was removed"));
    assert_eq!(
        refusal(
            &fixture,
            &connect(0),
            &data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER)
        ),
        data(256)
    );
    assert!(fixture.target.subsystem(SUBSYSTEM).is_none());
    fixture
        .target
        .add_subsystem(&SubsystemConfig::new(SUBSYSTEM))
        .unwrap();
    assert!(
        fixture
            .target
            .add_subsystem(&SubsystemConfig::new(SUBSYSTEM))
            .is_err()
    );
    let discovery = SubsystemConfig::new(Nqn::discovery().as_str());
    assert!(fixture.target.add_subsystem(&discovery).is_err());
}

#[test]
fn a_shutdown_is_complete_when_its_own_flush_is() {
    const SHUT_DOWN: u64 = ENABLE | 1 << 14;
    const READY: u64 = 1;
    const OCCURRING: u64 = 1 << 2;
    const COMPLETE: u64 = 2 << 2;
    let (fixture, drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    let shut_down_slowly = |seconds| {
        drive.fail_nth(Operation::Flush, 1, Fault::Delay(Duration::from_secs(seconds)));
        assert_eq!(fixture.set_cc(&admin, SHUT_DOWN), Status::SUCCESS);
        fixture.run_for(Duration::from_millis(1));
        assert_eq!(fixture.csts(&admin), READY | OCCURRING);
    };
    shut_down_slowly(1);
    assert_eq!(fixture.set_cc(&admin, 0), Status::SUCCESS);
    assert_eq!(fixture.csts(&admin), 0);
    assert_eq!(fixture.set_cc(&admin, ENABLE), Status::SUCCESS);
    shut_down_slowly(3);
    fixture.run_for(Duration::from_secs(2));
    assert_eq!(fixture.csts(&admin), READY | OCCURRING, "the first one ended");
    fixture.run_for(Duration::from_secs(2));
    assert_eq!(fixture.csts(&admin), READY | COMPLETE);
}
