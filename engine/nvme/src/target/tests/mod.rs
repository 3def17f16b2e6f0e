//! Tests of the target's controller side: a fake host calls the seam, on simulated reactors, clock and
//! drives.

mod access;
mod admin;
mod authentication;
mod connect;
mod devices;
mod discovery;
mod events;
mod fused;
mod identify;
mod io;
mod io_waiting;
mod lba_status;
mod logs;
mod losses;
mod random;
mod reservations;
mod sharing;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{Device, Gather, Geometry};
use pollux_hugepages::Slice;
use pollux_reactor::ReactorId;
use pollux_sim::{SimDrive, SimDriveOptions, SimReactor, SimTask, World, WorldOptions};
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::queue::{Admission, Admitted, Command, ConnectRequest, Outcome, Payload, Queue};
use super::{NamespaceConfig, ReservationStore, Subsystem, SubsystemConfig, Target, TargetConfig};
use crate::wire::command::{
    CompletionEntry, Connect, ConnectAttributes, ConnectData, ConnectResult, DYNAMIC_CONTROLLER, GetFeatures,
    GetLogPage, Identify, PropertyGet, PropertySet, PropertySize, SetFeatures, SglDescriptor,
    SubmissionEntry,
};
use crate::wire::features::FeatureId;
use crate::wire::identify::{IDENTIFY_BYTES, IdentifyStructure};
use crate::wire::log::LogPageId;
use crate::wire::nqn::Nqn;
use crate::wire::status::Status;

pub(super) const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:serve";
pub(super) const HOST: &str = "nqn.2026-11.io.pollux:host";
pub(super) const BLOCK: usize = 4096;
pub(super) const ENABLE: u64 = 0x0046_0001;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;

/// A target with one subsystem, on the reactors of one simulated machine.
pub(super) struct Fixture {
    pub(super) world: World,
    pub(super) reactors: Vec<(ReactorId, SimReactor)>,
    pub(super) target: Arc<Target>,
    pub(super) subsystem: Arc<Subsystem>,
    machine: pollux_sim::MachineId,
}

/// A queue as the connection has it.
pub(super) struct TestQueue {
    pub(super) queue: Rc<dyn Queue>,
    pub(super) reactor: SimReactor,
    pub(super) response: CompletionEntry,
}

impl Fixture {
    pub(super) fn new(reactors: usize) -> Self {
        Self::with(reactors, TargetConfig::default())
    }

    pub(super) fn with(reactors: usize, config: TargetConfig) -> Self {
        Self::with_subsystem(reactors, config, &SubsystemConfig::new(SUBSYSTEM))
    }

    pub(super) fn with_subsystem(reactors: usize, config: TargetConfig, subsystem: &SubsystemConfig) -> Self {
        Self::with_all(reactors, config, subsystem, None)
    }

    /// A fixture with one reactor whose reservations can persist.
    pub(super) fn with_store(store: Arc<dyn ReservationStore>) -> Self {
        let subsystem = SubsystemConfig::new(SUBSYSTEM);
        Self::with_all(1, TargetConfig::default(), &subsystem, Some(store))
    }

    /// A fixture with one reactor, and a subsystem whose reservations other engines know too.
    pub(super) fn sharing(subsystem: &SubsystemConfig, store: Arc<dyn ReservationStore>) -> Self {
        Self::with_all(1, TargetConfig::default(), subsystem, Some(store))
    }

    fn with_all(
        reactors: usize,
        config: TargetConfig,
        subsystem: &SubsystemConfig,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Self {
        let world = World::with_options(
            7,
            WorldOptions {
                buffer_bytes: 16 << 20,
                ..WorldOptions::default()
            },
        );
        let machine = world.add_machine("target");
        let reactors: Vec<_> = (0..reactors)
            .map(|_| {
                let reactor = world.add_reactor(machine);
                (world.handle(reactor).unwrap().id(), reactor)
            })
            .collect();
        let handles = reactors
            .iter()
            .map(|(_, reactor)| world.handle(*reactor).unwrap())
            .collect();
        let shared = store.clone().filter(|store| store.is_shared());
        let target = Target::with_store(config, handles, store.filter(|store| !store.is_shared())).unwrap();
        let subsystem = match shared {
            Some(shared) => target.add_subsystem_with_store(subsystem, shared),
            None => target.add_subsystem(subsystem),
        };
        let subsystem = subsystem.unwrap();
        Self {
            world,
            reactors,
            target,
            subsystem,
            machine,
        }
    }

    /// A fixture with one reactor and one namespace on a drive that answers at once.
    pub(super) fn with_drive() -> (Self, Arc<SimDrive>) {
        let fixture = Self::new(1);
        let drive = fixture.add_drive("disk0", Self::instant(BLOCK as u32));
        (fixture, drive)
    }

    pub(super) fn instant(block_bytes: u32) -> SimDriveOptions {
        SimDriveOptions::new(4 << 20, block_bytes).unwrap().instant()
    }

    /// A drive that takes its time.
    pub(super) fn slow(block_bytes: u32) -> SimDriveOptions {
        SimDriveOptions::new(4 << 20, block_bytes).unwrap()
    }

    /// One more drive, served as the next namespace.
    pub(super) fn add_drive(&self, name: &str, options: SimDriveOptions) -> Arc<SimDrive> {
        let drive = self.world.add_drive(self.machine, name, options);
        self.subsystem
            .add_namespace(drive.clone(), &NamespaceConfig::default())
            .unwrap();
        drive
    }

    pub(super) fn drive(&self, name: &str, geometry: Geometry) -> Arc<dyn Device> {
        let options = SimDriveOptions {
            geometry,
            ..Self::instant(geometry.block_bytes)
        };
        self.world.add_drive(self.machine, name, options)
    }

    pub(super) fn reactor(&self) -> SimReactor {
        self.reactors[0].1
    }

    fn reactor_of(&self, id: ReactorId) -> SimReactor {
        self.reactors.iter().find(|(other, _)| *other == id).unwrap().1
    }

    /// Decides about a Connect command, on the first reactor.
    pub(super) fn admit(&self, connect: &Connect, data: &ConnectData) -> Result<Admitted, CompletionEntry> {
        self.admit_bytes(connect.to_entry(1), data.as_bytes())
    }

    pub(super) fn admit_bytes(
        &self,
        entry: SubmissionEntry,
        data: &[u8],
    ) -> Result<Admitted, CompletionEntry> {
        let request = ConnectRequest {
            entry,
            data: Slice::copy_from(data),
            peer: self.world.tcp(self.machine, 40_000),
            local: self.world.tcp(self.machine, 4420),
        };
        let target = self.target.clone();
        self.world
            .block_on(self.reactor(), async move { target.connect(request) })
    }

    /// Makes an admitted queue on its reactor.
    pub(super) fn make(&self, admitted: Admitted) -> TestQueue {
        let reactor = self.reactor_of(admitted.reactor.id());
        let (queue, response) = self
            .world
            .block_on(reactor, async move { (admitted.make_queue)() });
        TestQueue {
            queue,
            reactor,
            response,
        }
    }

    pub(super) fn connect(&self, connect: &Connect, data: &ConnectData) -> TestQueue {
        self.make(self.admit(connect, data).map_err(|entry| entry.status()).unwrap())
    }

    /// A new controller of the default host, not enabled.
    pub(super) fn admin(&self) -> TestQueue {
        self.connect(&connect(0), &data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER))
    }

    /// A new controller of the default host, enabled.
    pub(super) fn enabled(&self) -> TestQueue {
        let admin = self.admin();
        self.enable(&admin);
        admin
    }

    pub(super) fn enable(&self, admin: &TestQueue) {
        assert_eq!(self.set_property(admin, CC, ENABLE), Status::SUCCESS);
    }

    /// A new, enabled discovery controller.
    pub(super) fn discovery(&self, host: &str) -> TestQueue {
        let data = data_for(Nqn::discovery().as_str(), host, DYNAMIC_CONTROLLER);
        let queue = self.connect(&connect(0), &data);
        self.enable(&queue);
        queue
    }

    /// An I/O queue of a controller.
    pub(super) fn io_queue(&self, admin: &TestQueue, id: u16) -> TestQueue {
        self.connect(&connect(id), &data_for(SUBSYSTEM, HOST, admin.controller_id()))
    }

    /// An admin queue and an I/O queue.
    pub(super) fn both(&self) -> (TestQueue, TestQueue) {
        let admin = self.enabled();
        let io = self.io_queue(&admin, 1);
        (admin, io)
    }

    /// Runs a command to its end.
    pub(super) fn run(&self, queue: &TestQueue, command: Command) -> Outcome {
        let queue = (queue.queue.clone(), queue.reactor);
        self.world
            .block_on(queue.1, async move { queue.0.submit(command).await })
    }

    /// Starts a command.
    pub(super) fn start(&self, queue: &TestQueue, command: Command) -> SimTask<Outcome> {
        let (queue, reactor) = (queue.queue.clone(), queue.reactor);
        self.world
            .spawn(reactor, async move { queue.submit(command).await })
    }

    pub(super) fn status(&self, queue: &TestQueue, command: Command) -> Status {
        self.run(queue, command).entry.status().without_flags()
    }

    pub(super) fn property(&self, admin: &TestQueue, offset: u32, size: PropertySize) -> u64 {
        let outcome = self.run(admin, plain(PropertyGet { size, offset }.to_entry(2)));
        assert_eq!(outcome.entry.status(), Status::SUCCESS);
        outcome.entry.result.get()
    }

    pub(super) fn set_property(&self, admin: &TestQueue, offset: u32, value: u64) -> Status {
        self.status(
            admin,
            plain(
                PropertySet {
                    size: PropertySize::Four,
                    offset,
                    value,
                }
                .to_entry(3),
            ),
        )
    }

    pub(super) fn csts(&self, admin: &TestQueue) -> u64 {
        self.property(admin, CSTS, PropertySize::Four)
    }

    pub(super) fn set_cc(&self, admin: &TestQueue, value: u64) -> Status {
        self.set_property(admin, CC, value)
    }

    /// Runs Identify; the 4096 bytes or the status.
    pub(super) fn identify(
        &self,
        admin: &TestQueue,
        structure: IdentifyStructure,
        id: u32,
    ) -> Result<Vec<u8>, Status> {
        self.identify_entry(admin, Identify::new(structure).to_entry(4, id))
    }

    pub(super) fn identify_entry(
        &self,
        admin: &TestQueue,
        entry: SubmissionEntry,
    ) -> Result<Vec<u8>, Status> {
        self.read_admin(admin, entry, IDENTIFY_BYTES)
    }

    pub(super) fn log(&self, admin: &TestQueue, page: LogPageId, bytes: usize) -> Result<Vec<u8>, Status> {
        let entry = GetLogPage::new(page, 0, bytes as u64).to_entry(5, 0);
        self.read_admin(admin, entry, bytes)
    }

    /// Runs an admin command that returns data, and checks that all of it came.
    pub(super) fn read_admin(
        &self,
        admin: &TestQueue,
        entry: SubmissionEntry,
        bytes: usize,
    ) -> Result<Vec<u8>, Status> {
        let outcome = self.run(admin, reading(entry, bytes));
        match outcome.entry.status() {
            Status::SUCCESS => {
                let data = outcome.bytes();
                assert_eq!(data.len(), bytes);
                Ok(data)
            }
            status => Err(status.without_flags()),
        }
    }

    pub(super) fn feature(&self, admin: &TestQueue, get: GetFeatures) -> Result<u32, Status> {
        let outcome = self.run(admin, plain(get.to_entry(6, 0, 0)));
        match outcome.entry.status() {
            Status::SUCCESS => Ok(outcome.entry.result_low()),
            status => Err(status.without_flags()),
        }
    }

    pub(super) fn set_feature(
        &self,
        admin: &TestQueue,
        feature: FeatureId,
        value: u32,
    ) -> Result<u32, Status> {
        let entry = SetFeatures::new(feature, value).to_entry(7, 0, SglDescriptor::transport(0));
        let outcome = self.run(admin, plain(entry));
        match outcome.entry.status() {
            Status::SUCCESS => Ok(outcome.entry.result_low()),
            status => Err(status.without_flags()),
        }
    }

    pub(super) fn run_for(&self, span: Duration) {
        self.world.run_for(span);
    }
}

impl TestQueue {
    pub(super) fn controller_id(&self) -> u16 {
        ConnectResult::from_result(self.response.result_low()).controller_id
    }

    /// Why the connection is to end, if it is.
    pub(super) fn ended(&self) -> Option<&'static str> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match self.queue.poll_terminated(&mut context) {
            std::task::Poll::Ready(reason) => Some(reason),
            std::task::Poll::Pending => None,
        }
    }

    /// The connection is lost.
    pub(super) fn close(self, fixture: &Fixture) {
        let (queue, reactor) = (self.queue, self.reactor);
        fixture.world.block_on(reactor, async move { queue.closed() });
    }
}

impl Outcome {
    /// The data returned.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match &self.payload {
            Payload::Empty => Vec::new(),
            Payload::Buffer(buffer) => buffer.to_vec(),
            Payload::Slices(slices) => slices.iter().flat_map(|slice| slice.to_vec()).collect(),
        }
    }
}

/// The Connect command of a queue with 128 entries and a keep alive timeout of 2 minutes.
pub(super) fn connect(queue_id: u16) -> Connect {
    Connect {
        record_format: 0,
        queue_id,
        queue_size_minus_one: 127,
        attributes: ConnectAttributes::empty(),
        keep_alive_ms: if queue_id == 0 { 120_000 } else { 0 },
    }
}

pub(super) fn data_for(subsystem: &str, host: &str, controller_id: u16) -> ConnectData {
    ConnectData::new(
        Uuid::from_u128(1),
        &host.parse().unwrap(),
        &subsystem.parse().unwrap(),
        controller_id,
    )
}

/// A command without data.
pub(super) fn plain(entry: SubmissionEntry) -> Command {
    Command {
        entry,
        data: Gather::new(),
        transfer_bytes_max: 0,
    }
}

/// A command that returns data.
pub(super) fn reading(entry: SubmissionEntry, bytes: usize) -> Command {
    Command {
        entry,
        data: Gather::new(),
        transfer_bytes_max: bytes as u32,
    }
}

/// A command with data.
pub(super) fn writing(entry: SubmissionEntry, data: &[u8]) -> Command {
    Command {
        entry,
        data: Slice::copy_from(data).into(),
        transfer_bytes_max: 0,
    }
}
