//! Asynchronous events, and what namespaces do live.

use std::sync::Barrier;

use super::*;
use crate::target::SubsystemError;
use crate::wire::command::{Abort, AdminOpcode};
use crate::wire::features::AsyncEvent;
use crate::wire::log::changed_namespaces;
use pollux_sim::{PowerLoss, SimDrive};

fn request(fixture: &Fixture, admin: &TestQueue, command_id: u16) -> SimTask<Outcome> {
    let entry = SubmissionEntry::new(AdminOpcode::AsynchronousEventRequest.to_wire(), command_id, 0);
    let task = fixture.start(admin, plain(entry));
    fixture.run_for(Duration::from_millis(1));
    task
}

fn event(fixture: &Fixture, task: &SimTask<Outcome>) -> Option<(Status, u32)> {
    fixture.run_for(Duration::from_millis(1));
    let outcome = task.take()?.unwrap();
    Some((outcome.entry.status(), outcome.entry.result_low()))
}

const CHANGED: Option<(Status, u32)> = Some((
    Status::SUCCESS,
    AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED.to_dword(),
));

fn list(ids: &[u32]) -> Vec<u8> {
    let mut bytes = [0; IDENTIFY_BYTES];
    changed_namespaces(ids.iter().copied(), &mut bytes);
    bytes.to_vec()
}

/// An enabled controller that wants namespace events.
fn listening(fixture: &Fixture) -> TestQueue {
    let admin = fixture.enabled();
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::AsyncEventConfiguration, 1 << 8),
        Ok(0)
    );
    admin
}

fn changed(fixture: &Fixture, admin: &TestQueue) -> Vec<u8> {
    fixture
        .log(admin, LogPageId::ChangedNamespaces, IDENTIFY_BYTES)
        .unwrap()
}

#[test]
fn a_host_hears_of_added_grown_and_removed_namespaces() {
    let fixture = Fixture::new(2);
    let admin = listening(&fixture);
    let io = fixture.io_queue(&admin, 1);
    let waiting = request(&fixture, &admin, 1);
    assert_eq!(event(&fixture, &waiting), None);

    let drive = fixture.add_drive("disk0", Fixture::instant(BLOCK as u32));
    assert_eq!(event(&fixture, &waiting), CHANGED);
    assert_eq!(changed(&fixture, &admin), list(&[1]));
    assert_eq!(changed(&fixture, &admin), list(&[]));
    assert_eq!(fixture.status(&io, super::io::write(1023, 1, 1)), Status::SUCCESS);
    assert_eq!(
        fixture.status(&io, super::io::write(1024, 1, 1)),
        Status::LBA_OUT_OF_RANGE
    );

    let waiting = request(&fixture, &admin, 2);
    drive.grow(2048);
    assert_eq!(event(&fixture, &waiting), CHANGED);
    assert_eq!(changed(&fixture, &admin), list(&[1]));
    assert_eq!(fixture.status(&io, super::io::write(2047, 1, 1)), Status::SUCCESS);
    assert_eq!(fixture.run(&io, super::io::read(1023, 1)).bytes(), vec![1; BLOCK]);

    let waiting = request(&fixture, &admin, 3);
    fixture.subsystem.remove_namespace(1).unwrap();
    assert_eq!(event(&fixture, &waiting), CHANGED);
    assert_eq!(fixture.status(&io, super::io::read(0, 1)), Status::INVALID_FIELD);
    assert!(matches!(
        fixture.subsystem.remove_namespace(1),
        Err(SubsystemError::NoNamespace { id: 1, .. })
    ));
}

#[test]
fn the_next_event_waits_until_the_log_is_read() {
    let fixture = Fixture::new(1);
    let admin = listening(&fixture);
    let waiting = request(&fixture, &admin, 1);
    fixture.add_drive("disk0", Fixture::instant(BLOCK as u32));
    assert_eq!(event(&fixture, &waiting), CHANGED);
    let waiting = request(&fixture, &admin, 2);
    fixture.add_drive("disk1", Fixture::instant(BLOCK as u32));
    assert_eq!(event(&fixture, &waiting), None);
    let retained = GetLogPage {
        retain_event: true,
        ..GetLogPage::new(LogPageId::ChangedNamespaces, 0, 4096)
    };
    assert_eq!(
        fixture.read_admin(&admin, retained.to_entry(1, 0), 4096),
        Ok(list(&[1, 2]))
    );
    assert_eq!(event(&fixture, &waiting), None);
    assert_eq!(changed(&fixture, &admin), list(&[1, 2]));
    assert_eq!(event(&fixture, &waiting), None);
    fixture.add_drive("disk2", Fixture::instant(BLOCK as u32));
    assert_eq!(event(&fixture, &waiting), CHANGED);
}

#[test]
fn a_change_while_the_log_is_read_is_told_of() {
    let fixture = Fixture::new(1);
    let admin = listening(&fixture);
    let controller = fixture.subsystem.controllers().remove(0);
    // Some of these fall between what is read and what is done then.
    for round in 0..3000u32 {
        let waiting = request(&fixture, &admin, 1);
        controller.namespace_changed(1);
        assert_eq!(event(&fixture, &waiting), CHANGED);
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                (0..round % 1500).for_each(|_| std::hint::spin_loop());
                controller.namespace_changed(2);
            });
            barrier.wait();
            changed(&fixture, &admin);
        });
        let waiting = request(&fixture, &admin, 2);
        let is_told = event(&fixture, &waiting).is_some();
        let is_listed = changed(&fixture, &admin) != list(&[]);
        assert_eq!(is_told, is_listed, "round {round}");
        if !is_told {
            controller.namespace_changed(1);
            assert_eq!(event(&fixture, &waiting), CHANGED);
            changed(&fixture, &admin);
        }
    }
}

#[test]
fn too_many_changes_overflow_the_list() {
    let fixture = Fixture::with(
        1,
        TargetConfig {
            namespaces_max: 2000,
            ..TargetConfig::default()
        },
    );
    let admin = fixture.enabled();
    for id in 1..=1025 {
        fixture.subsystem.namespaces_changed(id);
    }
    let mut expected = vec![0; IDENTIFY_BYTES];
    expected[..4].fill(0xff);
    assert_eq!(changed(&fixture, &admin), expected);
}

#[test]
fn requests_have_a_limit_and_can_be_aborted() {
    let fixture = Fixture::new(1);
    let admin = listening(&fixture);
    let waiting: Vec<_> = (0..8).map(|id| request(&fixture, &admin, id)).collect();
    let ninth = request(&fixture, &admin, 8);
    assert_eq!(
        event(&fixture, &ninth),
        Some((Status::ASYNC_EVENT_LIMIT_EXCEEDED.without_retry(), 0))
    );
    let abort = |command_id| {
        let outcome = fixture.run(
            &admin,
            plain(
                Abort {
                    queue_id: 0,
                    command_id,
                }
                .to_entry(50),
            ),
        );
        outcome.entry.result_low()
    };
    assert_eq!((abort(3), abort(3)), (0, 1));
    assert_eq!(event(&fixture, &waiting[3]), Some((Status::ABORT_REQUESTED, 0)));
    fixture.set_cc(&admin, 0);
    assert_eq!(
        event(&fixture, &waiting[0]),
        Some((Status::ABORTED_QUEUE_DELETED, 0))
    );
}

#[test]
fn namespaces_that_cannot_be_are_refused() {
    let fixture = Fixture::with(
        1,
        TargetConfig {
            namespaces_max: 2,
            ..TargetConfig::default()
        },
    );
    let device = |name: &str| fixture.drive(name, Geometry::new(1 << 20, 4096).unwrap());
    let with_id = |id| NamespaceConfig {
        id: Some(id),
        ..NamespaceConfig::default()
    };
    let add = |name: &str, config: &NamespaceConfig| fixture.subsystem.add_namespace(device(name), config);
    assert_eq!(add("a", &with_id(2)), Ok(2));
    assert!(matches!(
        add("b", &with_id(2)),
        Err(SubsystemError::NamespaceExists { id: 2, .. })
    ));
    for id in [0, 3, u32::MAX] {
        assert!(matches!(
            add("b", &with_id(id)),
            Err(SubsystemError::NamespaceId { .. })
        ));
    }
    let twin = NamespaceConfig::default();
    assert!(matches!(
        add("a", &twin),
        Err(SubsystemError::IdentifierTaken { id: 2, .. })
    ));
    assert_eq!(add("b", &NamespaceConfig::default()), Ok(1));
    assert!(matches!(
        add("c", &NamespaceConfig::default()),
        Err(SubsystemError::Full { .. })
    ));
    assert_eq!(fixture.subsystem.served().len(), 2);
}

#[test]
fn a_device_that_comes_back_serves_again() {
    let fixture = Fixture::new(1);
    let drive: Arc<SimDrive> = fixture.add_drive("disk0", Fixture::instant(BLOCK as u32));
    let (_admin, io) = fixture.both();
    assert_eq!(fixture.status(&io, super::io::write(0, 1, 1)), Status::SUCCESS);
    drive.remove(PowerLoss::KeepAll);
    assert_eq!(
        fixture.status(&io, super::io::read(0, 1)),
        Status::INTERNAL_PATH_ERROR
    );
    drive.restore();
    fixture.run_for(Duration::from_millis(10));
    assert_eq!(fixture.run(&io, super::io::read(0, 1)).bytes(), vec![1; BLOCK]);
}

#[test]
fn a_namespace_that_was_removed_is_let_go_of() {
    let fixture = Fixture::new(2);
    let device = fixture.drive("disk0", Geometry::new(1 << 20, 4096).unwrap());
    let id = fixture
        .subsystem
        .add_namespace(device.clone(), &NamespaceConfig::default())
        .unwrap();
    let hosts = [fixture.both(), fixture.both()];
    fixture.run_for(Duration::from_millis(1));
    fixture.subsystem.remove_namespace(id).unwrap();
    fixture.run_for(Duration::from_millis(1));
    // The machine's own, and this one.
    assert_eq!(Arc::strong_count(&device), 2);
    drop(hosts);
}
