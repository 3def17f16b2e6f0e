//! What must hold of a target for any bytes of a host, in any state of a connection.
//!
//! An input is two bytes of settings, then what a host sends:
//!
//! ```text
//! 0 bits 1:0 how far the connection is when the bytes come: new, initialized, admin queue, I/O queue
//!   bit 2 header digests, 3 data digests, 4 mend header digests of PDUs that are there whole, 5 the host has
//!   to authenticate, on its admin queue at most
//! 1 seed of the world: how the network cuts the bytes
//! ```
//!
//! The target is a whole one, with a namespace in memory. It must neither panic nor hang: the connection ends
//! once the host ends it, and another host can still connect and read.

use std::sync::Arc;

use pollux_device::{MallocDevice, MallocOptions};
use pollux_nvme::auth::{Credentials, Methods, Secret};
use pollux_nvme::target::connection::{TransportSettings, listen};
use pollux_nvme::target::{NamespaceConfig, SubsystemConfig, Target, TargetConfig};
use pollux_nvme::wire::command::{
    CONNECT_DATA_BYTES, Connect, ConnectAttributes, ConnectData, DYNAMIC_CONTROLLER, PropertySet,
    PropertySize, SglDescriptor, SubmissionEntry,
};
use pollux_nvme::wire::digest::{DIGEST_BYTES, crc32c};
use pollux_nvme::wire::nqn::Nqn;
use pollux_nvme::wire::pdu::{
    DataAlignment, Digests, Framing, HEADER_BYTES_MAX, encode_command, encode_initialize_request,
};
use pollux_reactor::net::{self, Address, Stream};
use pollux_sim::World;
use zerocopy::IntoBytes;

use crate::mend::mend_header_digests;

const SETTINGS_BYTES: usize = 2;
const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:fuzz";
const HOST: &str = "nqn.2026-11.io.pollux:host";
const OTHER_HOST: &str = "nqn.2026-11.io.pollux:other";
const SECRET: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
const AUTHENTICATE: u8 = 1 << 5;
const DEVICE_BYTES: u64 = 1 << 20;
const QUEUE_ENTRIES: u16 = 32;

/// CC with EN set, 64-byte and 16-byte entries (NVMe Base, Controller Configuration).
const CONFIGURATION_ENABLED: u64 = 0x0046_0001;
const CONFIGURATION_OFFSET: u32 = 0x14;

/// Panics if the target breaks a promise on `input`.
pub fn check(input: &[u8]) {
    let Some((&[switches, seed], bytes)) = input.split_first_chunk::<SETTINGS_BYTES>() else {
        return;
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
    let handle = world.handle(reactor).expect("the machine is up");
    let listen_at = address.clone();
    world.block_on(reactor, async move {
        let target = Target::new(TargetConfig::default(), vec![handle]).expect("the settings are good");
        let subsystem = target
            .add_subsystem(&SubsystemConfig::new(SUBSYSTEM))
            .expect("the name is good");
        let device = MallocDevice::new("fuzz", &MallocOptions::new(DEVICE_BYTES)).expect("memory");
        subsystem
            .add_namespace(device, &NamespaceConfig::default())
            .expect("the first namespace");
        if switches & AUTHENTICATE != 0 {
            let credentials = Credentials {
                host: Secret::parse(SECRET).expect("a good secret"),
                controller: Secret::parse(SECRET).ok(),
                methods: Methods::default(),
            };
            subsystem
                .set_credentials(HOST, Some(credentials))
                .expect("a good name");
        }
        let listening = listen(&listen_at, target, Arc::new(TransportSettings::default()));
        listening.expect("the address is free").1.detach();
    });
    let machine = world.add_machine("host");
    let reactor = world.add_reactor(machine);
    world.block_on(reactor, async move {
        let stage = switches & 3;
        let stage = if switches & AUTHENTICATE != 0 {
            stage.min(2)
        } else {
            stage
        };
        let mut connections = open(&address, stage, digests, HOST).await;
        if let Some(last) = connections.last_mut() {
            // The target may have had enough already.
            let _ = net::send_all(&mut **last, &bytes).await;
            let _ = last.shutdown();
            drain(&mut **last).await;
        }
        drop(connections);
        // Somebody else still gets through.
        let mut connections = open(&address, 3, Digests::empty(), OTHER_HOST).await;
        let last = connections.last_mut().expect("connections were opened");
        let read = SubmissionEntry::new(0x02, 7, 1).with_data(SglDescriptor::transport(4096));
        send_command(&mut **last, &read, &[], Digests::empty()).await;
        let header = receive(&mut **last, 24).await;
        assert_eq!(
            (header[0], header[8]),
            (0x07, 7),
            "a read after the bytes is answered"
        );
    });
}

/// Connections as far as asked; the last is the one for the bytes.
async fn open(address: &Address, stage: u8, digests: Digests, host: &str) -> Vec<Box<dyn Stream>> {
    let mut admin = net::connect(address).await.expect("the target listens");
    if stage == 0 {
        return vec![admin];
    }
    initialize(&mut *admin, digests).await;
    if stage == 1 {
        return vec![admin];
    }
    let controller = connect_queue(&mut *admin, 0, DYNAMIC_CONTROLLER, digests, host).await;
    if stage == 2 {
        return vec![admin];
    }
    let enable = PropertySet {
        size: PropertySize::Four,
        offset: CONFIGURATION_OFFSET,
        value: CONFIGURATION_ENABLED,
    };
    send_command(&mut *admin, &enable.to_entry(2), &[], digests).await;
    response(&mut *admin, digests).await;
    let mut io = net::connect(address).await.expect("the target listens");
    initialize(&mut *io, digests).await;
    connect_queue(&mut *io, 1, controller, digests, host).await;
    vec![admin, io]
}

async fn initialize(stream: &mut dyn Stream, digests: Digests) {
    let mut request = [0; 128];
    let len =
        encode_initialize_request(DataAlignment::NONE, digests, 1, &mut request).expect("128 bytes suffice");
    net::send_all(stream, &request[..len])
        .await
        .expect("a target takes an ICReq");
    let answer = receive(stream, 128).await;
    assert_eq!(answer[0], 0x01, "an ICReq is answered with an ICResp");
}

/// Connects a queue and returns the controller's identifier.
async fn connect_queue(
    stream: &mut dyn Stream,
    queue_id: u16,
    controller: u16,
    digests: Digests,
    host: &str,
) -> u16 {
    let connect = Connect {
        record_format: 0,
        queue_id,
        queue_size_minus_one: QUEUE_ENTRIES - 1,
        attributes: ConnectAttributes::DISABLE_QUEUE_FLOW_CONTROL,
        keep_alive_ms: 0,
    };
    let host: Nqn = host.parse().expect("a good name");
    let subsystem: Nqn = SUBSYSTEM.parse().expect("a good name");
    let data = ConnectData::new(uuid::Uuid::from_u128(1), &host, &subsystem, controller);
    let entry = connect
        .to_entry(1)
        .with_data(SglDescriptor::in_capsule(CONNECT_DATA_BYTES as u32));
    send_command(stream, &entry, data.as_bytes(), digests).await;
    let response = response(stream, digests).await;
    assert_eq!(response[14..16], [0, 0], "a good Connect succeeds");
    u16::from_le_bytes([response[0], response[1]])
}

async fn send_command(stream: &mut dyn Stream, entry: &SubmissionEntry, data: &[u8], digests: Digests) {
    let framing = Framing {
        header_digest: digests.contains(Digests::HEADER),
        data_digest: digests.contains(Digests::DATA),
        data_alignment: DataAlignment::NONE,
    };
    let mut bytes = vec![0; HEADER_BYTES_MAX];
    let len = encode_command(entry, data.len() as u32, &framing, &mut bytes).expect("there is room");
    bytes.truncate(len);
    bytes.extend_from_slice(data);
    if framing.data_digest && !data.is_empty() {
        bytes.extend_from_slice(&crc32c(data).to_le_bytes());
    }
    net::send_all(stream, &bytes)
        .await
        .expect("a target takes a good command");
}

/// The completion entry of the next response capsule.
async fn response(stream: &mut dyn Stream, digests: Digests) -> Vec<u8> {
    let digest_bytes = if digests.contains(Digests::HEADER) {
        DIGEST_BYTES
    } else {
        0
    };
    let capsule = receive(stream, 24 + digest_bytes).await;
    assert_eq!(capsule[0], 0x05, "a command is answered with a response capsule");
    capsule[8..24].to_vec()
}

async fn receive(stream: &mut dyn Stream, len: usize) -> Vec<u8> {
    let mut into = vec![0; len];
    net::receive_exact(stream, &mut into)
        .await
        .expect("the target answers");
    into
}

/// Receives until the target closes.
async fn drain(stream: &mut dyn Stream) {
    let mut into = vec![0; 4096];
    while net::receive(stream, &mut into)
        .await
        .is_ok_and(|received| received > 0)
    {}
}
