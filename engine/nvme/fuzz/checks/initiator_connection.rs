//! What must hold of the initiator for any bytes of a target, in any state of a connection.
//!
//! An input is two bytes of settings, then what a target sends:
//!
//! ```text
//! 0 bits 1:0 what they answer: ICReq, commands of a queue pair, those of a controller being set up (2, 3)
//!   bit 2 header digests, 3 data digests, 4 mend header digests of PDUs that are there whole
//! 1 seed of the world: how the network cuts the bytes
//! ```
//!
//! The initiator must neither panic nor hang. Once the target has closed, every command is settled, no
//! command is settled twice, and the memory of each comes back as large as it was; what was to be sent is as
//! it was.

use std::time::Duration;

use pollux_hugepages::{Buffer, Slice};
use pollux_nvme::initiator::connection::{ConnectionOptions, Finished, QueuePair, Submission, Transfer};
use pollux_nvme::initiator::controller::{Controller, ControllerOptions};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::wire::command::{IoOpcode, SubmissionEntry};
use pollux_nvme::wire::pdu::{DataAlignment, Digests, HEADER_BYTES_MAX, encode_initialize_response};
use pollux_reactor::net::{self, Address, Stream};
use pollux_sim::World;

use crate::mend::mend_header_digests;

const SETTINGS_BYTES: usize = 2;
const REQUEST_BYTES: usize = 128;
const READ_BYTES: usize = 8192;
const WRITE_BYTES: usize = 16_384;
const HOST_DATA_BYTES_MAX: u32 = 4096;

/// What the bytes of an input answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Initialize,
    Queue,
    Controller,
}

/// Panics if the initiator breaks a promise on `input`.
pub fn check(input: &[u8]) {
    let Some((&[switches, seed], bytes)) = input.split_first_chunk::<SETTINGS_BYTES>() else {
        return;
    };
    let stage = match switches & 3 {
        0 => Stage::Initialize,
        1 => Stage::Queue,
        _ => Stage::Controller,
    };
    let mut digests = Digests::empty();
    digests.set(Digests::HEADER, switches & 4 != 0);
    digests.set(Digests::DATA, switches & 8 != 0);
    let mut bytes = bytes.to_vec();
    if switches & 16 != 0 && digests.contains(Digests::HEADER) {
        mend_header_digests(&mut bytes);
    }

    let world = World::new(u64::from(seed));
    let machine = world.add_machine("target");
    let reactor = world.add_reactor(machine);
    let address = world.tcp(machine, 4420);
    let listen_at = address.clone();
    let listening = world.spawn(reactor, async move {
        let mut listener = net::listen(&listen_at).expect("the address is free");
        let accepted = net::accept(&mut *listener).await.expect("somebody connects");
        let stream = net::attach(accepted).expect("it is of this world");
        answer(stream, stage, digests, &bytes).await;
    });
    // The target listens once it has run for a moment.
    world.run_for(Duration::from_millis(1));
    let machine = world.add_machine("host");
    let reactor = world.add_reactor(machine);
    let options = ConnectionOptions {
        depth: 8,
        header_digest: digests.contains(Digests::HEADER),
        data_digest: digests.contains(Digests::DATA),
        connect_timeout: Duration::from_secs(1),
    };
    world.block_on(reactor, async move {
        match stage {
            Stage::Initialize | Stage::Queue => use_queue(&address, &options).await,
            Stage::Controller => use_controller(address, options).await,
        }
    });
    drop(listening);
}

/// The target: says the bytes when they are due, and closes.
async fn answer(mut stream: Box<dyn Stream>, stage: Stage, digests: Digests, bytes: &[u8]) {
    let mut request = [0; REQUEST_BYTES];
    net::receive_exact(&mut *stream, &mut request)
        .await
        .expect("a host begins with an ICReq");
    if stage != Stage::Initialize {
        let mut response = [0; HEADER_BYTES_MAX];
        let length =
            encode_initialize_response(DataAlignment::NONE, digests, HOST_DATA_BYTES_MAX, &mut response)
                .expect("there is room");
        net::send_all(&mut *stream, &response[..length])
            .await
            .expect("the host listens");
        // The bytes are answers: a command has to be there first.
        let mut command = [0; 72];
        net::receive_exact(&mut *stream, &mut command)
            .await
            .expect("a host goes on with a command");
    }
    // The host may have had enough already.
    let _ = net::send_all(&mut *stream, bytes).await;
    pollux_reactor::sleep(Duration::from_millis(20)).await;
}

fn entry(opcode: IoOpcode) -> SubmissionEntry {
    SubmissionEntry::new(opcode.to_wire(), 0, 1)
}

/// Several commands at once, of every kind that data goes with.
async fn use_queue(address: &Address, options: &ConnectionOptions) {
    let Ok(queue) = QueuePair::connect(address, options).await else {
        return;
    };
    queue.set_in_capsule_bytes_max(4096);
    let read = |bytes: usize| Transfer::Receive(Buffer::from_heap(bytes));
    let write = |bytes: usize| Transfer::Send(Slice::copy_from(&vec![0x5a; bytes]).into());
    let submit = |opcode, transfer| -> Submission {
        let submitted = queue.submit(&entry(opcode), transfer);
        submitted.expect("there is room, and the target has not spoken")
    };
    let commands = [
        (submit(IoOpcode::Read, read(READ_BYTES)), READ_BYTES),
        (submit(IoOpcode::Write, write(WRITE_BYTES)), WRITE_BYTES),
        (submit(IoOpcode::Write, write(512)), 512),
        (submit(IoOpcode::Flush, Transfer::None), 0),
    ];
    drop(submit(IoOpcode::Read, read(READ_BYTES)));
    for (submission, bytes) in commands {
        let Finished { transfer, .. } = submission.await;
        assert_eq!(transfer.len_bytes(), bytes, "the memory of a command comes back");
        if let Transfer::Send(data) = transfer {
            let unchanged = data
                .pieces()
                .iter()
                .all(|piece| piece.iter().all(|&byte| byte == 0x5a));
            assert!(unchanged, "what is sent is never written");
        }
    }
    queue.ended().await;
    assert_eq!(queue.outstanding(), 0, "the end settles everything");
    assert_eq!(
        queue.room(),
        usize::from(queue.depth()),
        "every slot is free again"
    );
}

async fn use_controller(address: Address, connection: ConnectionOptions) {
    let options = ControllerOptions {
        address,
        subsystem: "nqn.2026-11.io.pollux:fuzz".parse().expect("a good name"),
        host: HostIdentity::from_id(uuid::Uuid::from_u128(1)),
        connection,
        queues: 2,
        keep_alive: Duration::from_secs(1),
        admin_timeout: Duration::from_secs(1),
        credentials: None,
    };
    if let Ok(controller) = Controller::connect(options).await {
        // It answers all that is asked of it, up to here.
        let _ = controller.shut_down().await;
    }
}
