//! A host that writes a rising number to two volumes in turns: what it wrote to the first is never more than
//! one ahead of the second, and never behind. So must snapshots be that are of one instant.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pollux_api::control::v1::PublishVolumeResponse;
use pollux_device::{BlockDevice, BlockDeviceExt, Device, Gather};
use pollux_hugepages::{ArenaOptions, Buffer, PagePreference, PoolOptions};
use pollux_nvme::initiator::device::{Endpoint, NvmfDevice, NvmfOptions};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_reactor::real::{ReactorThread, Settings};

use crate::cluster::HOST;

pub const BLOCK_BYTES: usize = 4096;

/// Buffers of the host's reactor, in bytes.
const BUFFER_BYTES: usize = 16 << 20;

/// A reactor of hosts.
pub fn reactor() -> ReactorThread {
    let settings = Settings {
        buffers: PoolOptions {
            total_bytes: BUFFER_BYTES,
            arena: ArenaOptions {
                page: PagePreference::Ordinary,
                ..ArenaOptions::default()
            },
            ..PoolOptions::default()
        },
        ..Settings::default()
    };
    ReactorThread::spawn(settings).expect("a reactor")
}

/// Where a volume is served.
#[derive(Clone)]
pub struct Path(SocketAddr, String);

impl Path {
    pub fn new(address: &str, subsystem: &str) -> Self {
        Self(address.parse().expect("an address"), subsystem.to_owned())
    }

    /// The first of its paths.
    fn of(published: &PublishVolumeResponse) -> Self {
        Self::new(&published.paths[0].address, &published.subsystem_nqn)
    }

    /// How a host connects there.
    pub fn options(&self, host: &str) -> NvmfOptions {
        let subsystem = self.1.parse().expect("a name");
        let mut options = NvmfOptions::new(Endpoint::from(self.0), subsystem);
        options.host = HostIdentity::from_name(host.parse().expect("a name"));
        options
    }

    async fn connect(self) -> Rc<dyn BlockDevice> {
        let device = NvmfDevice::open(self.options(HOST)).await.expect("it is served");
        device.attach().await.expect("a queue")
    }
}

async fn read(device: &Rc<dyn BlockDevice>) -> u64 {
    let data = device
        .read(0, Buffer::from_heap(BLOCK_BYTES))
        .await
        .expect("it is read");
    u64::from_le_bytes(*data.first_chunk().expect("a block"))
}

async fn write(device: &Rc<dyn BlockDevice>, number: u64) {
    let mut buffer = Buffer::from_heap(BLOCK_BYTES);
    for place in buffer.chunks_exact_mut(8) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let data = Gather::from(buffer.freeze());
    device.write(0, data, false).await.expect("it is written");
}

/// What is in the first blocks of two volumes.
pub async fn numbers(published: [&PublishVolumeResponse; 2]) -> [u64; 2] {
    let reactor = reactor();
    let [first, second] = published.map(Path::of);
    let handle = reactor.handle();
    let called = handle.call(move || async move {
        [
            read(&first.connect().await).await,
            read(&second.connect().await).await,
        ]
    });
    called.await.expect("the reactor runs")
}

/// See the module.
pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    ended: tokio::task::JoinHandle<()>,
}

impl Writer {
    /// Writes until it is stopped.
    pub fn start(published: [&PublishVolumeResponse; 2]) -> Self {
        let [first, second] = published.map(Path::of);
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), written.clone());
        let ended = tokio::spawn(async move {
            let reactor = reactor();
            let handle = reactor.handle();
            let called = handle.call(move || async move {
                let (first, second) = (first.connect().await, second.connect().await);
                let mut number = read(&second).await;
                while !stopped.load(Ordering::Relaxed) {
                    number += 1;
                    write(&first, number).await;
                    write(&second, number).await;
                    count.store(number, Ordering::Relaxed);
                }
            });
            called.await.expect("the reactor runs");
        });
        Self { stop, written, ended }
    }

    /// The number that both volumes have.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ended.await.expect("it has written all the time");
    }
}
