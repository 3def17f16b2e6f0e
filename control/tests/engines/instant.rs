//! A host that writes a rising number to two volumes in turns: what it wrote to the first is never more than
//! one ahead of the second, and never behind. So must snapshots be that are of one instant.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pollux_api::control::v1::PublishVolumeResponse;
use pollux_device::{BlockDevice, BlockDeviceExt, Device, Gather, IoError};
use pollux_hugepages::{ArenaOptions, Buffer, PagePreference, PoolOptions};
use pollux_nvme::initiator::device::{Endpoint, LossOptions, NvmfDevice, NvmfOptions, Resubmit};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_reactor::real::{ReactorThread, Settings};
use pollux_reactor::sleep;

use crate::cluster::HOST;

pub const BLOCK_BYTES: usize = 4096;

/// The pause before another path is taken.
const PAUSE: Duration = Duration::from_millis(20);

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

    /// How a host connects there: what goes wrong is told at once, and nothing is sent again.
    pub fn options(&self, host: &str) -> NvmfOptions {
        let subsystem = self.1.parse().expect("a name");
        let mut options = NvmfOptions::new(Endpoint::from(self.0), subsystem);
        options.host = HostIdentity::from_name(host.parse().expect("a name"));
        options.loss = LossOptions {
            reconnect_pause_max: None,
            fail_fast: Some(Duration::ZERO),
            loss_timeout: Duration::ZERO,
            resubmit: Resubmit::None,
            ..LossOptions::default()
        };
        options
    }

    async fn connect(&self) -> Result<Rc<dyn BlockDevice>, IoError> {
        let device = NvmfDevice::open(self.options(HOST)).await;
        device.map_err(|_| IoError::PathDown)?.attach().await
    }
}

/// A volume by whichever of its paths works: on a busy machine it is served elsewhere now and then.
struct Paths {
    all: Vec<Path>,
    next: usize,
    current: Option<Rc<dyn BlockDevice>>,
}

impl Paths {
    fn new(all: Vec<Path>) -> Self {
        let (next, current) = (0, None);
        Self { all, next, current }
    }

    /// Does something until it is done.
    async fn until<T>(&mut self, act: impl AsyncFn(&dyn BlockDevice) -> Result<T, IoError>) -> T {
        loop {
            if let Some(device) = &self.current
                && let Ok(done) = act(&**device).await
            {
                return done;
            }
            if self.current.take().is_some() {
                sleep(PAUSE).await;
            }
            let path = &self.all[self.next % self.all.len()];
            self.next += 1;
            match path.connect().await {
                Ok(device) => self.current = Some(device),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn read(&mut self) -> u64 {
        self.until(read).await
    }

    async fn write(&mut self, number: u64) {
        self.until(async |device: &dyn BlockDevice| write(device, number).await)
            .await;
    }
}

/// All of its paths.
fn paths(published: &PublishVolumeResponse) -> Vec<Path> {
    let all = published.paths.iter();
    all.map(|path| Path::new(&path.address, &published.subsystem_nqn))
        .collect()
}

async fn read(device: &dyn BlockDevice) -> Result<u64, IoError> {
    let data = device.read(0, Buffer::from_heap(BLOCK_BYTES)).await?;
    Ok(u64::from_le_bytes(*data.first_chunk().expect("a block")))
}

async fn write(device: &dyn BlockDevice, number: u64) -> Result<(), IoError> {
    let mut buffer = Buffer::from_heap(BLOCK_BYTES);
    for place in buffer.chunks_exact_mut(8) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let data = Gather::from(buffer.freeze());
    device.write(0, data, false).await
}

/// What is in the first blocks of two volumes.
pub async fn numbers(published: [&PublishVolumeResponse; 2]) -> [u64; 2] {
    let reactor = reactor();
    let [first, second] = published.map(paths);
    let handle = reactor.handle();
    let called =
        handle.call(move || async move { [Paths::new(first).read().await, Paths::new(second).read().await] });
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
        let [first, second] = published.map(paths);
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), written.clone());
        let ended = tokio::spawn(async move {
            let reactor = reactor();
            let handle = reactor.handle();
            let called = handle.call(move || async move {
                let (mut first, mut second) = (Paths::new(first), Paths::new(second));
                let mut number = second.read().await;
                while !stopped.load(Ordering::Relaxed) {
                    number += 1;
                    first.write(number).await;
                    second.write(number).await;
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
