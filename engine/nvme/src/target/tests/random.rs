//! Any bytes as a command, on every kind of queue: never a panic, always an outcome, nothing touched out of
//! range.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use zerocopy::FromBytes;

use super::*;
use crate::wire::command::{AdminOpcode, IoOpcode};
use pollux_device::{Attaching, BlockDevice, Completion, Health, Reply, Request, events};

/// A device that fails the test when it is asked for anything that it should not be.
struct Guarded {
    geometry: Geometry,
}

struct GuardedQueue(Geometry);

impl Device for Guarded {
    fn name(&self) -> &str {
        "guarded"
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn attach(self: Arc<Self>) -> Attaching {
        let queue: Rc<dyn BlockDevice> = Rc::new(GuardedQueue(self.geometry));
        Box::pin(async move { Ok(queue) })
    }

    fn subscribe(&self) -> events::Subscription {
        events::Publisher::default().subscribe()
    }

    fn health(&self) -> Health {
        Health::default()
    }
}

impl BlockDevice for GuardedQueue {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn submit(&self, request: Request) -> Completion {
        assert_eq!(request.check(&self.0), Ok(()), "{request:?}");
        match request {
            Request::Read { into, .. } => Completion::ready(Ok(Reply::Data(into))),
            _ => Completion::done(),
        }
    }
}

/// Mostly commands that exist, with fields that are sometimes in range.
fn entries(opcodes: &'static [u8]) -> impl Strategy<Value = SubmissionEntry> {
    let small = prop_oneof![Just(0u32), Just(1), 0..2000u32, any::<u32>()];
    (
        any::<[u8; 64]>(),
        any::<bool>(),
        prop::sample::select(opcodes),
        prop::array::uniform6(small),
        0..4u32,
    )
        .prop_map(|(bytes, shaped, opcode, dwords, id)| {
            let mut entry = SubmissionEntry::read_from_bytes(&bytes).unwrap();
            if shaped {
                entry.opcode = opcode;
                entry.flags = 0x40 | (entry.flags & if entry.flags & 4 == 0 { 3 } else { 0 });
                entry.namespace_id = id.into();
                let [ten, eleven, twelve, thirteen, fourteen, fifteen] = dwords;
                entry.cdw10 = ten.into();
                entry.cdw11 = eleven.into();
                entry.cdw12 = twelve.into();
                entry.cdw13 = thirteen.into();
                entry.cdw14 = fourteen.into();
                entry.cdw15 = fifteen.into();
            }
            entry
        })
}

const ADMIN: &[u8] = &[
    AdminOpcode::Identify.to_wire(),
    AdminOpcode::GetLogPage.to_wire(),
    AdminOpcode::GetFeatures.to_wire(),
    AdminOpcode::SetFeatures.to_wire(),
    AdminOpcode::Abort.to_wire(),
    AdminOpcode::KeepAlive.to_wire(),
    AdminOpcode::AsynchronousEventRequest.to_wire(),
    AdminOpcode::Fabrics.to_wire(),
];

const IO: &[u8] = &[
    IoOpcode::Read.to_wire(),
    IoOpcode::Write.to_wire(),
    IoOpcode::Compare.to_wire(),
    IoOpcode::Flush.to_wire(),
    IoOpcode::WriteZeroes.to_wire(),
    IoOpcode::Verify.to_wire(),
    IoOpcode::DatasetManagement.to_wire(),
    IoOpcode::Fabrics.to_wire(),
];

/// Data of a command: none, as much as one or more blocks, or anything.
fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        (1..4usize).prop_map(|blocks| vec![0; blocks * BLOCK]),
        prop::collection::vec(any::<u8>(), 0..5000),
    ]
}

type Case = (SubmissionEntry, Vec<u8>, u32, bool);

fn cases(opcodes: &'static [u8]) -> impl Strategy<Value = Vec<Case>> {
    let room = prop_oneof![Just(0u32), Just(4096), Just(512), 0..10_000u32];
    prop::collection::vec((entries(opcodes), data(), room, any::<bool>()), 1..40)
}

/// Runs commands side by side; each ends, but those that are to wait.
fn run(fixture: &Fixture, queue: &TestQueue, commands: Vec<Case>) {
    let waits = |entry: &SubmissionEntry| entry.fuse() == crate::wire::command::Fuse::First;
    let is_event = |entry: &SubmissionEntry| entry.opcode == AdminOpcode::AsynchronousEventRequest.to_wire();
    let mut tasks = Vec::new();
    for (entry, data, room, early) in commands {
        if early {
            let refused = queue.queue.refuse_early(&entry, data.len() as u32);
            assert!(refused.is_none_or(|entry| !entry.status().is_success()));
            let _ = queue.queue.data_align_bytes(&entry);
        }
        let command = Command {
            entry,
            data: Slice::copy_from(&data).into(),
            transfer_bytes_max: room,
        };
        tasks.push((entry, room, fixture.start(queue, command)));
        fixture.run_for(Duration::from_micros(5));
    }
    fixture.run_for(Duration::from_secs(20));
    for (entry, room, task) in tasks {
        match task.take() {
            Some(outcome) => {
                let outcome = outcome.unwrap();
                assert_eq!(outcome.entry.command_id, entry.command_id);
                assert!(outcome.bytes().len() <= room as usize, "{entry:?}");
                assert!(outcome.entry.status().is_success() || outcome.bytes().is_empty());
            }
            None => assert!(waits(&entry) || is_event(&entry), "{entry:?} has no outcome"),
        }
    }
}

/// Checks many cases on one fixture: what the cases before left behind is part of the test.
fn check<S: Strategy>(strategy: S, act: impl Fn(&Fixture, S::Value)) {
    let fixture = Fixture::new(2);
    let small = Geometry {
        transfer_blocks_max: 2,
        ..Geometry::new(1 << 20, 4096).unwrap()
    };
    for (number, geometry) in [(1, Geometry::new(1 << 20, 512).unwrap()), (2, small)] {
        // Both devices have one name, so that they need identifiers.
        let config = NamespaceConfig {
            uuid: Some(Uuid::from_u128(number.into())),
            eui64: Some([number; 8]),
            ..NamespaceConfig::default()
        };
        fixture
            .subsystem
            .add_namespace(Arc::new(Guarded { geometry }), &config)
            .unwrap();
    }
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(60)
    };
    let result = TestRunner::new(config).run(&strategy, |case| {
        act(&fixture, case);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn admin_queues_take_anything() {
    check((cases(ADMIN), any::<bool>()), |fixture, (commands, discovery)| {
        let admin = if discovery {
            fixture.discovery(HOST)
        } else {
            fixture.enabled()
        };
        run(fixture, &admin, commands);
        admin.close(fixture);
    });
}

#[test]
fn io_queues_take_anything() {
    check(cases(IO), |fixture, commands| {
        let (admin, io) = fixture.both();
        run(fixture, &io, commands);
        io.close(fixture);
        admin.close(fixture);
    });
}

#[test]
fn connect_takes_anything() {
    let data = prop::collection::vec(any::<u8>(), 0..1100);
    check(
        (any::<[u8; 64]>(), data, any::<bool>(), 0..3u16),
        |fixture, (entry, data, shaped, queue_id)| {
            let mut entry = SubmissionEntry::read_from_bytes(&entry).unwrap();
            let mut data = data;
            if shaped {
                entry = Connect {
                    queue_id,
                    ..connect(0)
                }
                .to_entry(1);
                let mut bytes = data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER).as_bytes().to_vec();
                data.truncate(256);
                bytes[..data.len()].copy_from_slice(&data);
                data = bytes;
            }
            match fixture.admit_bytes(entry, &data) {
                Ok(admitted) => {
                    let queue = fixture.make(admitted);
                    assert!(queue.response.status().is_success());
                    queue.close(fixture);
                }
                Err(response) => {
                    assert!(!response.status().is_success());
                    assert_eq!(response.command_id, entry.command_id);
                }
            }
            assert!(fixture.target.loads().iter().all(|load| load.connections == 0));
        },
    );
}
