//! A target that is a script: what the initiator says to one that breaks the rules, and how it ends.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use pollux_hugepages::Buffer;
use pollux_nvme::initiator::InitiatorError;
use pollux_nvme::initiator::connection::{
    CommandError, ConnectionError, ConnectionOptions, QueuePair, RefusedReason, Transfer,
};
use pollux_nvme::initiator::controller::{Controller, ControllerOptions};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::wire::command::{CompletionEntry, IoOpcode, SubmissionEntry};
use pollux_nvme::wire::pdu::{
    ConnectionLimits, DataAlignment, DataEnd, DataRange, Decoded, Digests, Direction, FatalErrorStatus,
    Framing, Header, PduType, Phase, Violation, decode_header, encode_controller_data,
    encode_initialize_response, encode_response, encode_terminate_request,
};
use pollux_nvme::wire::properties::{Capabilities, CommandSetSupport};
use pollux_nvme::wire::status::Status;
use pollux_reactor::net::{self, Address, Stream, receive, send_all};
use pollux_reactor::sleep;
use pollux_sim::World;
use proptest::prelude::*;

use super::lab::{SUBSYSTEM, ms};

/// The target's end of a connection.
struct Fake {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
    limits: ConnectionLimits,
}

/// What came from the host.
#[derive(Debug)]
enum Heard {
    Command(SubmissionEntry),
    Terminate {
        status: Option<FatalErrorStatus>,
        information: u32,
        offender: Vec<u8>,
    },
    Initialize {
        digests: u8,
        ready_to_transfers: u32,
    },
    Closed,
}

fn encoded(encode: impl FnOnce(&mut [u8]) -> Option<usize>) -> Vec<u8> {
    let mut out = vec![0; 512];
    let length = encode(&mut out).expect("there is room");
    out.truncate(length);
    out
}

fn response(entry: &CompletionEntry) -> Vec<u8> {
    encoded(|out| encode_response(entry, &Framing::default(), out))
}

fn agree() -> Vec<u8> {
    encoded(|out| encode_initialize_response(DataAlignment::NONE, Digests::empty(), 65_536, out))
}

impl Fake {
    fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            received: Vec::new(),
            limits: ConnectionLimits {
                phase: Phase::Initializing,
                header_digest: false,
                data_digest: false,
                data_alignment: DataAlignment::NONE,
                in_capsule_data_bytes_max: 8192,
                host_data_bytes_max: 65_536,
                controller_data_bytes_max: 0,
            },
        }
    }

    async fn say(&mut self, bytes: &[u8]) {
        // A host that has closed hears nothing more.
        let _ = send_all(&mut *self.stream, bytes).await;
    }

    async fn hear(&mut self) -> Heard {
        loop {
            if let Some((heard, length)) = self.decode() {
                self.received.drain(..length);
                return heard;
            }
            let mut into = [0; 4096];
            match receive(&mut *self.stream, &mut into).await {
                Ok(0) | Err(_) => return Heard::Closed,
                Ok(length) => self.received.extend_from_slice(&into[..length]),
            }
        }
    }

    fn decode(&self) -> Option<(Heard, usize)> {
        let decoded = decode_header(&self.received, Direction::HostToController, &self.limits);
        let Decoded::Pdu(pdu) = decoded.expect("the host keeps the rules") else {
            return None;
        };
        if self.received.len() < pdu.pdu_bytes {
            return None;
        }
        let heard = match pdu.header {
            Header::InitializeRequest(request) => Heard::Initialize {
                digests: request.digests,
                ready_to_transfers: request.max_ready_to_transfer_minus_one.get() + 1,
            },
            Header::Command(capsule) => Heard::Command(capsule.entry),
            Header::Terminate(request) => Heard::Terminate {
                status: request.status(),
                information: request.information.get(),
                offender: self.received[pdu.data_offset..pdu.pdu_bytes].to_vec(),
            },
            other => panic!("not expected: {other:?}"),
        };
        Some((heard, pdu.pdu_bytes))
    }

    /// Sets the connection up.
    async fn initialize(&mut self) {
        let Heard::Initialize {
            digests,
            ready_to_transfers,
        } = self.hear().await
        else {
            panic!("a host begins with ICReq")
        };
        assert_eq!((digests, ready_to_transfers), (0, 4));
        self.limits.phase = Phase::Established;
        self.say(&agree()).await;
    }

    async fn command(&mut self) -> SubmissionEntry {
        match self.hear().await {
            Heard::Command(entry) => entry,
            other => panic!("not a command: {other:?}"),
        }
    }

    async fn complete(&mut self, entry: &SubmissionEntry, status: Status, result: u64) {
        let completion = CompletionEntry::new(entry.command_id.get(), status, result);
        self.say(&response(&completion)).await;
    }
}

/// Runs a host against a scripted target in a world of its own.
fn against<T, H, R>(seed: u64, target: impl FnOnce(Fake) -> T + 'static, host: impl FnOnce(Address) -> H) -> R
where
    T: Future<Output = ()> + 'static,
    H: Future<Output = R> + 'static,
    R: 'static,
{
    let world = World::new(seed);
    let machine = world.add_machine("target");
    let reactor = world.add_reactor(machine);
    let address = world.tcp(machine, 4420);
    let at = address.clone();
    let _script = world.spawn(reactor, async move {
        let mut listener = net::listen(&at).unwrap();
        let accepted = net::accept(&mut *listener).await.unwrap();
        target(Fake::new(net::attach(accepted).unwrap())).await;
    });
    let machine = world.add_machine("host");
    let reactor = world.add_reactor(machine);
    // The listener is there once the target has run for a moment.
    world.run_for(ms(1));
    world.block_on(reactor, host(address))
}

fn options() -> ConnectionOptions {
    ConnectionOptions {
        connect_timeout: Duration::from_secs(2),
        ..ConnectionOptions::default()
    }
}

async fn connect_fails(address: Address) -> ConnectionError {
    QueuePair::connect(&address, &options())
        .await
        .expect_err("the target is no good")
}

#[test]
fn a_target_that_is_not_there_or_says_nothing() {
    let closing = |mut fake: Fake| async move {
        fake.hear().await;
    };
    let error = against(1, closing, connect_fails);
    assert!(
        matches!(error, ConnectionError::Closed | ConnectionError::Failed { .. }),
        "{error}"
    );
    let silent = |mut fake: Fake| async move {
        fake.hear().await;
        sleep(Duration::from_secs(100)).await;
    };
    let error = against(2, silent, connect_fails);
    assert!(matches!(error, ConnectionError::TimedOut { .. }), "{error}");
    let world = World::new(3);
    let machine = world.add_machine("host");
    let reactor = world.add_reactor(machine);
    let nobody = world.tcp(machine, 1);
    let error = world.block_on(reactor, connect_fails(nobody.clone()));
    assert_eq!(
        error.to_string(),
        format!("could not connect to {nobody}: connection refused; check that the target listens there")
    );
}

#[test]
fn an_answer_to_the_first_request_that_makes_no_sense() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(Damage, FatalErrorStatus); 8] = [
        (|pdu| pdu[0] = 0x00, FatalErrorStatus::InvalidHeaderField), // ICReq
        (|pdu| pdu[0] = 0x05, FatalErrorStatus::SequenceError),      // a completion
        (|pdu| pdu[2] = 24, FatalErrorStatus::InvalidHeaderField),   // HLEN
        (|pdu| pdu[4] = 129, FatalErrorStatus::InvalidHeaderField),  // PLEN
        (|pdu| pdu[8] = 1, FatalErrorStatus::UnsupportedParameter),  // PFV
        (|pdu| pdu[10] = 32, FatalErrorStatus::InvalidHeaderField),  // CPDA
        (|pdu| pdu[11] = 1, FatalErrorStatus::SequenceError),        // a digest not asked for
        (|pdu| pdu[12..16].fill(0), FatalErrorStatus::InvalidHeaderField), // MAXH2CDATA
    ];
    for (seed, (damage, expected)) in (0..).zip(cases) {
        let told = Rc::new(std::cell::Cell::new(None));
        let telling = told.clone();
        let target = move |mut fake: Fake| async move {
            fake.hear().await;
            let mut pdu = agree();
            damage(&mut pdu);
            fake.say(&pdu).await;
            fake.limits.phase = Phase::Established;
            if let Heard::Terminate { status, offender, .. } = fake.hear().await {
                assert_eq!(offender, pdu[..offender.len()]);
                telling.set(status);
            }
        };
        let error = against(seed, target, |address| async move {
            let error = connect_fails(address).await;
            // The termination request goes out after the error is known.
            sleep(ms(100)).await;
            error
        });
        assert_eq!(told.get(), Some(expected), "{error}");
    }
}

#[test]
fn digests_are_had_or_the_target_is_not() {
    let target = |mut fake: Fake| async move {
        let Heard::Initialize { digests, .. } = fake.hear().await else {
            panic!()
        };
        assert_eq!(digests, 3);
        fake.say(&agree()).await;
    };
    let error = against(1, target, |address| async move {
        let options = ConnectionOptions {
            header_digest: true,
            data_digest: true,
            ..options()
        };
        QueuePair::connect(&address, &options).await.unwrap_err()
    });
    assert_eq!(
        error.to_string(),
        "the target does not do the digests asked for; \
         change the target or the parameters `hdgst` and `ddgst`"
    );
}

fn flush() -> SubmissionEntry {
    SubmissionEntry::new(IoOpcode::Flush.to_wire(), 0, 1)
}

fn read() -> SubmissionEntry {
    SubmissionEntry::new(IoOpcode::Read.to_wire(), 0, 1)
}

#[test]
fn a_violation_ends_the_connection_settles_everything_and_is_told() {
    let target = |mut fake: Fake| async move {
        fake.initialize().await;
        let first = fake.command().await;
        let second = fake.command().await;
        fake.complete(&first, Status::SUCCESS, 0).await;
        let wrong = CompletionEntry::new(second.command_id.get() ^ 0x0400, Status::SUCCESS, 0);
        let wrong = response(&wrong);
        fake.say(&wrong).await;
        let Heard::Terminate {
            status,
            information,
            offender,
        } = fake.hear().await
        else {
            panic!("the host says why")
        };
        assert_eq!(
            (status, information),
            (Some(FatalErrorStatus::InvalidHeaderField), 20)
        );
        assert_eq!(offender, wrong);
        assert!(matches!(fake.hear().await, Heard::Closed));
    };
    against(1, target, |address| async move {
        let queue = QueuePair::connect(&address, &options()).await.unwrap();
        let first = queue.submit(&flush(), Transfer::None).unwrap();
        let second = queue
            .submit(&read(), Transfer::Receive(Buffer::from_heap(512)))
            .unwrap();
        assert!(first.await.outcome.is_ok());
        let lost = second.await;
        assert_eq!(lost.outcome, Err(CommandError::ConnectionLost { sent: true }));
        assert_eq!(lost.transfer.len_bytes(), 512, "the buffer comes back");
        let ended = queue.ended().await;
        assert!(matches!(*ended.error, ConnectionError::UnknownCommand { .. }));
        assert!(!ended.unsettled_mutation);
        let refused = queue.submit(&flush(), Transfer::None).unwrap_err();
        assert_eq!(refused.reason, RefusedReason::Ended);
        assert_eq!(queue.outstanding(), 0);
        sleep(ms(100)).await;
    });
}

#[test]
fn what_the_target_says_when_it_ends_the_connection_is_known() {
    let target = |mut fake: Fake| async move {
        fake.initialize().await;
        fake.command().await;
        let violation = Violation::DataOutOfRange {
            pdu_type: PduType::HostData,
        };
        let bytes =
            encoded(|out| encode_terminate_request(Direction::ControllerToHost, &violation, &[0; 24], out));
        fake.say(&bytes).await;
        assert!(
            matches!(fake.hear().await, Heard::Closed),
            "a termination is not answered"
        );
    };
    let error = against(1, target, |address| async move {
        let queue = QueuePair::connect(&address, &options()).await.unwrap();
        let write = SubmissionEntry::new(IoOpcode::Write.to_wire(), 0, 1);
        let data = Buffer::from_heap(512).into();
        let lost = queue.submit(&write, Transfer::Send(data)).unwrap().await;
        assert_eq!(lost.outcome, Err(CommandError::ConnectionLost { sent: true }));
        let ended = queue.ended().await;
        assert!(ended.unsettled_mutation);
        ended.error.to_string()
    });
    assert_eq!(
        error,
        "the target terminated the connection: DataOutOfRange, information 0x0"
    );
}

#[test]
fn a_full_queue_refuses_and_tells_when_there_is_room() {
    let target = |mut fake: Fake| async move {
        fake.initialize().await;
        let (first, second) = (fake.command().await, fake.command().await);
        sleep(ms(10)).await;
        fake.complete(&second, Status::SUCCESS, 0).await;
        let third = fake.command().await;
        fake.complete(&third, Status::SUCCESS, 0).await;
        fake.complete(&first, Status::SUCCESS, 0).await;
        fake.hear().await;
    };
    against(1, target, |address| async move {
        let options = ConnectionOptions {
            depth: 2,
            ..options()
        };
        let queue = QueuePair::connect(&address, &options).await.unwrap();
        let first = queue.submit(&flush(), Transfer::None).unwrap();
        // Abandoned: its slot is free when the target has answered, not before.
        drop(queue.submit(&flush(), Transfer::None).unwrap());
        let refused = queue.submit(&flush(), Transfer::None).unwrap_err();
        assert_eq!((refused.reason, queue.outstanding()), (RefusedReason::Full, 2));
        queue.ready().await;
        let third = queue.submit(&flush(), Transfer::None).unwrap();
        assert!(third.await.outcome.is_ok());
        assert!(first.await.outcome.is_ok());
    });
}

fn controller_options(address: Address) -> ControllerOptions {
    ControllerOptions {
        address,
        subsystem: SUBSYSTEM.parse().unwrap(),
        host: HostIdentity::from_name("nqn.2026-11.io.pollux:host".parse().unwrap()),
        connection: options(),
        queues: 1,
        keep_alive: Duration::from_secs(5),
        admin_timeout: Duration::from_secs(3),
        credentials: None,
    }
}

async fn controller_fails(address: Address) -> InitiatorError {
    Controller::connect(controller_options(address))
        .await
        .expect_err("the controller is no good")
}

/// Answers a Connect, the read of CAP and the write of CC, then says each time that CSTS is `status`.
async fn controller_with_status(mut fake: Fake, status: u64) {
    fake.initialize().await;
    let capabilities = Capabilities {
        max_queue_entries_minus_one: 127,
        ready_timeout_500ms: 2,
        command_sets: CommandSetSupport::NVM,
        ..Capabilities::default()
    };
    for result in [1, capabilities.to_bits(), 0] {
        let entry = fake.command().await;
        fake.complete(&entry, Status::SUCCESS, result).await;
    }
    loop {
        match fake.hear().await {
            Heard::Command(entry) => fake.complete(&entry, Status::SUCCESS, status).await,
            _ => return,
        }
    }
}

#[test]
fn controllers_that_cannot_be_used() {
    let error = against(1, |fake| controller_with_status(fake, 0), controller_fails);
    assert_eq!(
        error.to_string(),
        "the controller did not become ready within 1000 ms, which is what it said it needs"
    );
    let error = against(2, |fake| controller_with_status(fake, 2), controller_fails);
    assert_eq!(error, InitiatorError::Fatal);
    for (status, result, says) in [
        (
            Status::CONNECT_INVALID_HOST.without_retry(),
            0,
            "the target refused the Connect command: the subsystem does not admit this host; allow this host \
             at the target",
        ),
        (
            Status::CONNECT_INVALID_PARAMETERS.without_retry(),
            0,
            "the target refused the Connect command: the target has no subsystem of this name, or no such \
             controller or queue of it; check the name of the subsystem",
        ),
        (
            Status::CONNECT_CONTROLLER_BUSY,
            0,
            "no room for another controller or queue now; try again later",
        ),
        (
            Status::INVALID_FIELD,
            0,
            "the target refused the Connect command: invalid field in command",
        ),
        (Status::SUCCESS, 0x0002_0001, "wants this host to authenticate"),
    ] {
        let refuse = move |mut fake: Fake| async move {
            fake.initialize().await;
            let entry = fake.command().await;
            fake.complete(&entry, status, result).await;
            fake.hear().await;
        };
        let error = against(3, refuse, controller_fails).to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains("read only range"), "{error}");
    }
    let silent = |mut fake: Fake| async move {
        fake.initialize().await;
        fake.command().await;
        assert!(matches!(fake.hear().await, Heard::Closed));
    };
    let error = against(4, silent, controller_fails).to_string();
    assert_eq!(
        error,
        "the target did not answer the Connect command within 3000 ms"
    );
}

#[test]
fn an_unanswered_keep_alive_ends_the_controller() {
    let target = |mut fake: Fake| async move {
        fake.initialize().await;
        let mut answered = 0;
        loop {
            match fake.hear().await {
                Heard::Command(entry) if entry.opcode == 0x18 && answered == 3 => {}
                Heard::Command(entry) => {
                    answered += u32::from(entry.opcode == 0x18);
                    // Any property is this number; the discovery controller is ready with it.
                    let result = if entry.opcode == 0x18 {
                        0
                    } else {
                        0x0000_0020_0200_007f
                    };
                    if entry.opcode == 0x06 {
                        let range = DataRange {
                            command_id: entry.command_id.get(),
                            offset_bytes: 0,
                            length_bytes: 4096,
                        };
                        let mut bytes = encoded(|out| {
                            encode_controller_data(range, DataEnd::LastAndSuccess, &Framing::default(), out)
                        });
                        let mut identify = vec![0; 4096];
                        identify[111] = 2;
                        bytes.extend(identify);
                        fake.say(&bytes).await;
                    } else {
                        fake.complete(&entry, Status::SUCCESS, result).await;
                    }
                }
                _ => return,
            }
        }
    };
    against(1, target, |address| async move {
        let options = ControllerOptions {
            keep_alive: Duration::from_secs(2),
            ..controller_options(address)
        };
        let start = pollux_reactor::now();
        let controller = Controller::connect(options).await.unwrap();
        let ended = controller.admin().queue().ended().await;
        let lived = pollux_reactor::now().saturating_since(start);
        assert!(lived > ms(5_500) && lived < ms(6_500), "{lived:?}");
        assert_eq!(
            ended.error.to_string(),
            "the connection was closed here: an admin command was not answered in time"
        );
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a target says once a connection is set up, in whatever pieces it arrives: every command is
    /// settled.
    #[test]
    fn any_bytes_settle_every_command(
        seed: u64, bytes in prop::collection::vec(any::<u8>(), 0..400), valid: bool,
    ) {
        let target = move |mut fake: Fake| async move {
            fake.initialize().await;
            let entry = fake.command().await;
            let mut said = Vec::new();
            if valid {
                let range = DataRange {
                    command_id: entry.command_id.get(),
                    offset_bytes: 0,
                    length_bytes: 2048,
                };
                said = encoded(|out| encode_controller_data(range, DataEnd::More, &Framing::default(), out));
                said.extend([7; 2048]);
            }
            said.extend(&bytes);
            fake.say(&said).await;
            sleep(ms(100)).await;
        };
        against(seed, target, |address| async move {
            let queue = QueuePair::connect(&address, &options()).await.unwrap();
            let lost = queue.submit(&read(), Transfer::Receive(Buffer::from_heap(4096))).unwrap().await;
            assert!(lost.outcome.is_err());
            assert_eq!(lost.transfer.len_bytes(), 4096);
            assert_eq!(queue.outstanding(), 0);
        });
    }
}
