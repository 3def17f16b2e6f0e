//! A host that speaks bytes, and a queue that keeps them in memory.

use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use pollux_hugepages::Slice;
use pollux_nvme::target::connection::{TransportSettings, listen};
use pollux_nvme::target::queue::{
    Admission, Admitted, Command, ConnectRequest, Execution, Outcome, Payload, Queue,
};
use pollux_nvme::target::{NamespaceConfig, SubsystemConfig, Target, TargetConfig};
use pollux_nvme::wire::command::{
    CONNECT_DATA_BYTES, CompletionEntry, Connect, ConnectAttributes, ConnectData, ConnectResult,
    DYNAMIC_CONTROLLER, PropertySet, PropertySize, SglDescriptor, SubmissionEntry,
};
use pollux_nvme::wire::digest::crc32c;
use pollux_nvme::wire::pdu::{
    ConnectionLimits, DataAlignment, DataRange, Decoded, Digests, Direction, FatalErrorStatus, Framing,
    HEADER_BYTES_MAX, Header, Phase, decode_header, encode_command, encode_host_data,
    encode_initialize_request,
};
use pollux_nvme::wire::properties::Property;
use pollux_nvme::wire::status::Status;
use pollux_reactor::net::{Address, Stream, connect, receive, send_all};
use pollux_reactor::{ReactorHandle, random_u64, sleep};
use pollux_sim::{MachineId, SimDriveOptions, World};
use uuid::Uuid;
use zerocopy::IntoBytes;

/// Entries of the queue.
pub const DEPTH: u16 = 16;

/// The opcode of a write.
pub const WRITE: u8 = 0x01;
const READ: u8 = 0x02;

/// The opcode of a compare.
pub const COMPARE: u8 = 0x05;

const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:serve";

const STORE_BYTES: usize = 4 << 20;
const SECTOR_BYTES: usize = 512;
const TRANSFER_BYTES_MAX: u32 = 1 << 20;

/// A read of `bytes` from sector `sector` on.
pub fn read(id: u16, sector: u64, bytes: u32) -> SubmissionEntry {
    at(
        SubmissionEntry::new(READ, id, 1).with_data(SglDescriptor::transport(bytes)),
        sector,
    )
}

/// A write whose data is in the capsule.
pub fn write_in_capsule(id: u16, sector: u64, bytes: u32) -> SubmissionEntry {
    at(
        SubmissionEntry::new(WRITE, id, 1).with_data(SglDescriptor::in_capsule(bytes)),
        sector,
    )
}

/// A write whose data is asked for.
pub fn write_transport(id: u16, sector: u64, bytes: u32) -> SubmissionEntry {
    at(
        SubmissionEntry::new(WRITE, id, 1).with_data(SglDescriptor::transport(bytes)),
        sector,
    )
}

fn at(mut entry: SubmissionEntry, sector: u64) -> SubmissionEntry {
    entry.cdw10 = (sector as u32).into();
    entry.cdw11 = ((sector >> 32) as u32).into();
    entry
}

struct MemoryQueue(Arc<Mutex<Vec<u8>>>);

impl MemoryQueue {
    fn execute(store: &Mutex<Vec<u8>>, command: &Command) -> Outcome {
        let entry = &command.entry;
        let start = (entry.cdw10.get() as usize).saturating_mul(SECTOR_BYTES);
        let length = command.data.len_bytes().max(command.transfer_bytes_max as usize);
        let mut store = store.lock().unwrap();
        let mut payload = Payload::Empty;
        let status = match (entry.opcode, store.get_mut(start..start.saturating_add(length))) {
            (WRITE, Some(range)) => {
                command.data.copy_to(range);
                Status::SUCCESS
            }
            (READ, Some(range)) => {
                payload = Payload::Slices([Slice::copy_from(range)].into_iter().collect());
                Status::SUCCESS
            }
            (WRITE | READ, None) => Status::LBA_OUT_OF_RANGE,
            _ => Status::INVALID_OPCODE,
        };
        let entry = CompletionEntry::new(entry.command_id.get(), status, 0);
        Outcome {
            entry,
            payload,
            disconnect: false,
        }
    }
}

impl Queue for MemoryQueue {
    fn submit(&self, command: Command) -> Execution {
        if random_u64().is_multiple_of(2) || command.entry.flags & 3 != 0 {
            return Execution::ready(Self::execute(&self.0, &command));
        }
        let store = self.0.clone();
        Execution::from_future(async move {
            sleep(Duration::from_micros(random_u64() % 500)).await;
            Self::execute(&store, &command)
        })
    }

    fn refuse_early(&self, entry: &SubmissionEntry, transfer_bytes: u32) -> Option<CompletionEntry> {
        (transfer_bytes > TRANSFER_BYTES_MAX)
            .then(|| CompletionEntry::new(entry.command_id.get(), Status::INVALID_FIELD, 0))
    }

    fn data_align_bytes(&self, _: &SubmissionEntry) -> usize {
        if random_u64().is_multiple_of(2) { 1 } else { 512 }
    }

    fn depth(&self) -> u16 {
        DEPTH
    }

    fn touch(&self) {}

    fn poll_terminated(&self, _: &mut Context<'_>) -> Poll<&'static str> {
        Poll::Pending
    }

    fn closed(&self) {}
}

/// Admits every Connect, to the reactors in turn.
struct AdmitAll {
    store: Arc<Mutex<Vec<u8>>>,
    reactors: Vec<ReactorHandle>,
    next: Mutex<usize>,
}

impl Admission for AdmitAll {
    fn connect(&self, request: ConnectRequest) -> Result<Admitted, CompletionEntry> {
        assert_eq!(request.data.len(), CONNECT_DATA_BYTES);
        let store = self.store.clone();
        let mut next = self.next.lock().unwrap();
        *next += 1;
        let reactor = self.reactors[*next % self.reactors.len()].clone();
        let id = request.entry.command_id.get();
        let result = ConnectResult {
            controller_id: 1,
            authentication: 0,
        }
        .to_result();
        Ok(Admitted {
            reactor,
            make_queue: Box::new(move || {
                (
                    Rc::new(MemoryQueue(store)),
                    CompletionEntry::new(id, Status::SUCCESS, result),
                )
            }),
        })
    }
}

/// A simulated target with two reactors and a host.
pub struct Setup {
    world: World,
}

impl Setup {
    pub fn new(seed: u64) -> Self {
        Self {
            world: World::new(seed),
        }
    }

    /// Runs the host's side to its end, against queues that are memory.
    pub fn run<F: Future<Output = ()> + 'static>(self, host: impl FnOnce(Address) -> F) {
        let admit_all = |_: &World, _, reactors| -> Arc<dyn Admission> {
            Arc::new(AdmitAll {
                store: Arc::new(Mutex::new(vec![0; STORE_BYTES])),
                reactors,
                next: Mutex::new(0),
            })
        };
        self.run_with(admit_all, host);
    }

    /// Runs the host's side to its end, against a whole target that serves a drive.
    pub fn run_with_target<F: Future<Output = ()> + 'static>(self, host: impl FnOnce(Address) -> F) {
        let serve = |world: &World, machine, reactors| -> Arc<dyn Admission> {
            let target = Target::new(TargetConfig::default(), reactors).unwrap();
            let subsystem = target.add_subsystem(&SubsystemConfig::new(SUBSYSTEM)).unwrap();
            let drive = SimDriveOptions::new(1 << 20, SECTOR_BYTES as u32).unwrap();
            let drive = world.add_drive(machine, "disk", drive.instant());
            subsystem
                .add_namespace(drive, &NamespaceConfig::default())
                .unwrap();
            target
        };
        self.run_with(serve, host);
    }

    fn run_with<F: Future<Output = ()> + 'static>(
        self,
        admission: impl FnOnce(&World, MachineId, Vec<ReactorHandle>) -> Arc<dyn Admission>,
        host: impl FnOnce(Address) -> F,
    ) {
        let world = self.world;
        let target = world.add_machine("target");
        let reactors = [world.add_reactor(target), world.add_reactor(target)];
        let address = world.tcp(target, 4420);
        let handles = reactors
            .iter()
            .map(|&reactor| world.handle(reactor).unwrap())
            .collect();
        let admission = admission(&world, target, handles);
        let listen_at = address.clone();
        world.block_on(reactors[0], async move {
            let settings = Arc::new(TransportSettings::default());
            listen(&listen_at, admission, settings).unwrap().1.detach();
        });
        let machine = world.add_machine("host");
        let reactor = world.add_reactor(machine);
        world.block_on(reactor, host(address));
    }
}

/// One PDU from the target.
#[derive(Debug, Default)]
pub struct Pdu {
    pub data_offset: usize,
    pub data: Vec<u8>,
    pub command_id: u16,
    pub transfer_tag: u16,
    pub last: bool,
    pub success: bool,
    pub response: Option<CompletionEntry>,
    pub terminate: Option<(Option<FatalErrorStatus>, u32, Vec<u8>)>,
    digest: Option<u32>,
}

/// The host's end of a connection.
pub struct Host {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
    digests: Digests,
    alignment: DataAlignment,
    corrupt: bool,
    limits: ConnectionLimits,
}

fn framing(digests: Digests) -> Framing {
    Framing {
        header_digest: digests.contains(Digests::HEADER),
        data_digest: digests.contains(Digests::DATA),
        data_alignment: DataAlignment::NONE,
    }
}

/// The header of a command capsule.
pub fn encode(entry: &SubmissionEntry, data_bytes: u32, digests: Digests) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES_MAX];
    let len = encode_command(entry, data_bytes, &framing(digests), &mut out).unwrap();
    out.truncate(len);
    out
}

/// The header of an H2CData PDU without digests.
pub fn encode_data(command_id: u16, tag: u16, offset_bytes: u32, length_bytes: u32, last: bool) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES_MAX];
    let range = DataRange {
        command_id,
        offset_bytes,
        length_bytes,
    };
    let len = encode_host_data(range, tag, last, &Framing::default(), &mut out).unwrap();
    out.truncate(len);
    out
}

impl Host {
    /// Connects and exchanges ICReq and ICResp.
    pub async fn initialize(address: &Address, digests: Digests, alignment: DataAlignment) -> Self {
        let stream = connect(address).await.unwrap();
        let mut host = Self {
            stream,
            received: Vec::new(),
            digests,
            alignment,
            corrupt: false,
            limits: ConnectionLimits {
                phase: Phase::Initializing,
                header_digest: false,
                data_digest: false,
                data_alignment: alignment,
                in_capsule_data_bytes_max: 0,
                host_data_bytes_max: 0,
                controller_data_bytes_max: 2 << 20,
            },
        };
        let mut out = [0; 128];
        let len = encode_initialize_request(alignment, digests, 1, &mut out).unwrap();
        host.send(&out[..len]).await;
        host.next().await.unwrap();
        host.limits.phase = Phase::Established;
        host.limits.header_digest = digests.contains(Digests::HEADER);
        host.limits.data_digest = digests.contains(Digests::DATA);
        host
    }

    /// Connects a queue without flow control.
    pub async fn connect(address: &Address, digests: Digests) -> Self {
        Self::connect_with(address, digests, DataAlignment::NONE, true).await
    }

    pub async fn connect_with(
        address: &Address,
        digests: Digests,
        alignment: DataAlignment,
        no_flow_control: bool,
    ) -> Self {
        let mut host = Self::initialize(address, digests, alignment).await;
        let mut attributes = ConnectAttributes::empty();
        attributes.set(ConnectAttributes::DISABLE_QUEUE_FLOW_CONTROL, no_flow_control);
        let connect = Connect {
            record_format: 0,
            queue_id: 1,
            queue_size_minus_one: DEPTH - 1,
            attributes,
            keep_alive_ms: 0,
        };
        let entry = connect
            .to_entry(77)
            .with_data(SglDescriptor::in_capsule(CONNECT_DATA_BYTES as u32));
        host.command(entry, &[0; CONNECT_DATA_BYTES]).await;
        let response = host.response().await;
        assert_eq!(
            (response.command_id.get(), response.status()),
            (77, Status::SUCCESS)
        );
        if no_flow_control {
            assert_eq!(response.submission_queue_head.get(), 0xffff);
        }
        host
    }

    /// Connects a controller of a whole target, and an I/O queue of it.
    pub async fn connect_controller(address: &Address, digests: Digests) -> [Self; 2] {
        let mut admin = Self::initialize(address, digests, DataAlignment::NONE).await;
        let controller_id = admin.connect_queue(0, DYNAMIC_CONTROLLER).await;
        let enable = PropertySet {
            size: PropertySize::Four,
            offset: Property::Configuration.to_wire(),
            value: 0x0046_0001,
        };
        admin.command(enable.to_entry(1), &[]).await;
        assert_eq!(admin.response().await.status(), Status::SUCCESS);
        let mut io = Self::initialize(address, digests, DataAlignment::NONE).await;
        io.connect_queue(1, controller_id).await;
        [admin, io]
    }

    async fn connect_queue(&mut self, queue_id: u16, controller_id: u16) -> u16 {
        let connect = Connect {
            record_format: Connect::RECORD_FORMAT,
            queue_id,
            queue_size_minus_one: 31,
            attributes: ConnectAttributes::DISABLE_QUEUE_FLOW_CONTROL,
            keep_alive_ms: 0,
        };
        let entry = connect
            .to_entry(77)
            .with_data(SglDescriptor::in_capsule(CONNECT_DATA_BYTES as u32));
        let name = "nqn.2026-11.io.pollux:host".parse().unwrap();
        let data = ConnectData::new(
            Uuid::from_u128(1),
            &name,
            &SUBSYSTEM.parse().unwrap(),
            controller_id,
        );
        self.command(entry, data.as_bytes()).await;
        let response = self.response().await;
        assert_eq!(response.status(), Status::SUCCESS);
        ConnectResult::from_result(response.result_low()).controller_id
    }

    pub fn corrupt_next_data_digest(&mut self) {
        self.corrupt = true;
    }

    fn push_data(&mut self, bytes: &mut Vec<u8>, data: &[u8]) {
        bytes.extend_from_slice(data);
        if self.digests.contains(Digests::DATA) {
            let flip = u32::from(std::mem::take(&mut self.corrupt));
            bytes.extend_from_slice(&(crc32c(data) ^ flip).to_le_bytes());
        }
    }

    /// Sends a command capsule, with in-capsule data if there is any.
    pub async fn command(&mut self, entry: SubmissionEntry, data: &[u8]) {
        let mut bytes = encode(&entry, data.len() as u32, self.digests);
        if !data.is_empty() {
            self.push_data(&mut bytes, data);
        }
        self.send(&bytes).await;
    }

    /// Sends one H2CData PDU.
    pub async fn send_data(&mut self, command_id: u16, tag: u16, offset: u32, data: &[u8], last: bool) {
        let mut bytes = vec![0; HEADER_BYTES_MAX];
        let range = DataRange {
            command_id,
            offset_bytes: offset,
            length_bytes: data.len() as u32,
        };
        let len = encode_host_data(range, tag, last, &framing(self.digests), &mut bytes).unwrap();
        bytes.truncate(len);
        self.push_data(&mut bytes, data);
        self.send(&bytes).await;
    }

    /// Writes data that the target asks for, in pieces.
    pub async fn write_by_transfer(&mut self, entry: SubmissionEntry, data: &[u8], piece_bytes: usize) {
        self.command(entry, &[]).await;
        let asked = self.next().await.unwrap();
        assert_eq!(asked.command_id, entry.command_id.get());
        let mut offset = 0;
        for piece in data.chunks(piece_bytes) {
            let last = offset + piece.len() == data.len();
            self.send_data(asked.command_id, asked.transfer_tag, offset as u32, piece, last)
                .await;
            offset += piece.len();
        }
    }

    /// Sends bytes; the target must take them.
    pub async fn send(&mut self, bytes: &[u8]) {
        send_all(&mut *self.stream, bytes).await.unwrap();
    }

    /// Sends bytes to a target that may have closed already, and ends the sending half.
    pub async fn send_whatever(&mut self, bytes: &[u8]) {
        let _ = send_all(&mut *self.stream, bytes).await;
        let _ = self.stream.shutdown();
    }

    /// The response capsule that comes next.
    pub async fn response(&mut self) -> CompletionEntry {
        let pdu = self.next().await.expect("the target closed the connection");
        pdu.response.unwrap_or_else(|| panic!("not a response: {pdu:?}"))
    }

    /// The data of a read that stands for its response.
    pub async fn data(&mut self, command_id: u16, bytes: usize) -> Vec<u8> {
        let pdu = self.next().await.expect("the target closed the connection");
        assert_eq!(
            (pdu.command_id, pdu.data.len()),
            (command_id, bytes),
            "{:?}",
            pdu.response
        );
        assert!(pdu.success && pdu.last);
        if self.digests.contains(Digests::DATA) {
            assert_eq!(pdu.digest, Some(crc32c(&pdu.data)));
        }
        pdu.data
    }

    /// The next PDU; `None` when the target has closed.
    pub async fn next(&mut self) -> Option<Pdu> {
        loop {
            if let Some((pdu, len)) = self.decode() {
                self.received.drain(..len);
                return Some(pdu);
            }
            let mut into = vec![0; 65536];
            match receive(&mut *self.stream, &mut into).await {
                Ok(0) | Err(_) => return None,
                Ok(len) => self.received.extend_from_slice(&into[..len]),
            }
        }
    }

    fn decode(&self) -> Option<(Pdu, usize)> {
        if self.received.is_empty() {
            return None;
        }
        let decoded = decode_header(&self.received, Direction::ControllerToHost, &self.limits);
        let Decoded::Pdu(found) = decoded.expect("a valid PDU") else {
            return None;
        };
        if self.received.len() < found.pdu_bytes {
            return None;
        }
        let data_end = found.data_offset + found.data_bytes;
        let mut pdu = Pdu {
            data_offset: found.data_offset,
            data: self.received[found.data_offset..data_end].to_vec(),
            ..Pdu::default()
        };
        if found.data_digest {
            let digest: [u8; 4] = self.received[data_end..data_end + 4].try_into().unwrap();
            pdu.digest = Some(u32::from_le_bytes(digest));
        }
        match found.header {
            Header::InitializeResponse(response) => {
                assert_eq!(response.digests, self.digests.bits());
                assert!(response.max_h2c_data_bytes.get() >= 4096);
            }
            Header::Response(response) => pdu.response = Some(response.entry),
            Header::ReadyToTransfer(ready) => {
                pdu.command_id = ready.command_id.get();
                pdu.transfer_tag = ready.transfer_tag.get();
            }
            Header::ControllerData(data) => {
                assert!(found.data_offset.is_multiple_of(self.alignment.bytes()));
                pdu.command_id = data.command_id.get();
                pdu.last = data.common.flags & 0x04 != 0;
                pdu.success = data.common.flags & 0x08 != 0;
            }
            Header::Terminate(request) => {
                let offender = self.received[24..found.pdu_bytes].to_vec();
                pdu.terminate = Some((request.status(), request.information.get(), offender));
            }
            other => panic!("a host never gets {other:?}"),
        }
        Some((pdu, found.pdu_bytes))
    }
}
