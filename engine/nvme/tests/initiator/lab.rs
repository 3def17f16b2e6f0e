//! A target machine with a drive, and a host machine, in a simulated world.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Device, DeviceUri, IoError};
use pollux_hugepages::Buffer;
use pollux_nvme::initiator::InitiatorError;
use pollux_nvme::initiator::device::{NvmfDevice, NvmfOptions};
use pollux_nvme::target::connection::{TransportSettings, listen};
use pollux_nvme::target::{NamespaceConfig, SubsystemConfig, Target, TargetConfig};
use pollux_reactor::net::Address;
use pollux_sim::{MachineId, SimDrive, SimDriveOptions, SimReactor, World, WorldOptions};

pub const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:serve";
pub const PORT: u16 = 4420;
pub const BLOCK: usize = 4096;

/// How a lab is.
#[derive(Clone)]
pub struct LabOptions {
    pub drive: SimDriveOptions,
    pub target: TargetConfig,
    /// Buffers of each reactor, in bytes.
    pub buffer_bytes: usize,
    pub host_reactors: usize,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            drive: SimDriveOptions::new(32 << 20, BLOCK as u32).unwrap(),
            target: TargetConfig::default(),
            buffer_bytes: 32 << 20,
            host_reactors: 1,
        }
    }
}

impl LabOptions {
    /// A drive that answers at once and has blocks of this size.
    pub fn instant(block_bytes: u32) -> Self {
        Self {
            drive: SimDriveOptions::new(32 << 20, block_bytes).unwrap().instant(),
            ..Self::default()
        }
    }
}

/// The machines.
pub struct Lab {
    pub world: World,
    pub target: MachineId,
    pub target_reactors: Vec<SimReactor>,
    pub drive: Arc<SimDrive>,
    pub host: MachineId,
    pub host_reactors: Vec<SimReactor>,
    served: RefCell<Option<Arc<Target>>>,
    options: LabOptions,
}

impl Lab {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, LabOptions::default())
    }

    pub fn with(seed: u64, options: LabOptions) -> Self {
        let world = World::with_options(
            seed,
            WorldOptions {
                buffer_bytes: options.buffer_bytes,
                ..WorldOptions::default()
            },
        );
        let target = world.add_machine("target");
        let target_reactors = vec![world.add_reactor(target), world.add_reactor(target)];
        let drive = world.add_drive(target, "disk", options.drive.clone());
        let host = world.add_machine("host");
        let host_reactors = (0..options.host_reactors)
            .map(|_| world.add_reactor(host))
            .collect();
        let lab = Self {
            world,
            target,
            target_reactors,
            drive,
            host,
            host_reactors,
            served: RefCell::default(),
            options,
        };
        lab.serve();
        lab
    }

    pub fn address(&self) -> Address {
        self.world.tcp(self.target, PORT)
    }

    pub fn uri(&self, parameters: &str) -> DeviceUri {
        let address = self.address();
        let identity = "hostnqn=nqn.2026-11.io.pollux:host";
        DeviceUri::parse(&format!("nvmf://{address}/{SUBSYSTEM}?{identity}{parameters}")).unwrap()
    }

    pub fn nvmf_options(&self, parameters: &str) -> NvmfOptions {
        NvmfOptions::from_uri(&self.uri(parameters)).unwrap()
    }

    /// Serves the drive, as after each start of the target.
    pub fn serve(&self) -> Arc<Target> {
        self.serve_as(self.drive.clone(), &NamespaceConfig::default())
    }

    /// Serves a device under the usual name.
    pub fn serve_as(&self, device: Arc<dyn Device>, config: &NamespaceConfig) -> Arc<Target> {
        let handles = self
            .target_reactors
            .iter()
            .map(|&reactor| self.world.handle(reactor).unwrap());
        let target = Target::new(self.options.target.clone(), handles.collect()).unwrap();
        let subsystem = target.add_subsystem(&SubsystemConfig::new(SUBSYSTEM)).unwrap();
        subsystem.add_namespace(device, config).unwrap();
        let (address, admission) = (self.address(), target.clone());
        self.world.block_on(self.target_reactors[0], async move {
            let settings = Arc::new(TransportSettings::default());
            listen(&address, admission, settings).unwrap().1.detach();
        });
        self.served.replace(Some(target.clone()));
        target
    }

    /// What was served last.
    pub fn served(&self) -> Arc<Target> {
        self.served.borrow().clone().unwrap()
    }

    /// Opens the device on the host's first reactor.
    pub fn open(&self, parameters: &str) -> Result<Arc<NvmfDevice>, InitiatorError> {
        let options = self.nvmf_options(parameters);
        self.world
            .block_on(self.host_reactors[0], NvmfDevice::open(options))
    }

    /// Runs the host's side, with the device open and attached on its first reactor, to its end.
    pub fn run<F: Future<Output = ()> + 'static>(
        &self,
        parameters: &str,
        host: impl FnOnce(Arc<NvmfDevice>, Rc<dyn BlockDevice>) -> F + 'static,
    ) {
        let options = self.nvmf_options(parameters);
        self.world.block_on(self.host_reactors[0], async move {
            let device = NvmfDevice::open(options).await.unwrap();
            let queue = device.clone().attach().await.unwrap();
            host(device, queue).await;
        });
    }
}

/// `length` bytes that differ with their position and with `seed`.
pub fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed)
        .collect()
}

pub fn buffer(content: &[u8]) -> Buffer {
    let mut buffer = Buffer::from_heap(content.len());
    buffer.copy_from_slice(content);
    buffer
}

pub async fn read(queue: &dyn BlockDevice, block: u64, bytes: usize) -> Result<Vec<u8>, IoError> {
    Ok(queue.read(block, Buffer::from_heap(bytes)).await?.to_vec())
}

/// Milliseconds.
pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
