//! A target to connect to, on reactors of its own.

use std::future::Future;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pollux_device::spdk::{FabricsAddress, SpdkDevice, SpdkOptions, Transport};
use pollux_device::{BlockDevice, Completion, Device, Geometry, Health, Request, events};
use pollux_nvme::target::connection::{self, TransportSettings};
use pollux_nvme::target::{NamespaceConfig, Subsystem, SubsystemConfig, Target, TargetConfig};
use pollux_reactor::net::Address;
use pollux_reactor::{ReactorHandle, Task};

use crate::common::{TestReactors, block_on, open};

pub const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:ground";

/// A target on reactors of its own.
pub struct Ground {
    reactors: TestReactors,
    pub subsystem: Arc<Subsystem>,
    target: Arc<Target>,
    listening: Option<Task<()>>,
    pub address: SocketAddr,
}

fn target(reactors: &TestReactors) -> (Arc<Target>, Arc<Subsystem>) {
    let target = Target::new(TargetConfig::default(), reactors.handles()).expect("a target");
    let subsystem = target.add_subsystem(&SubsystemConfig::new(SUBSYSTEM));
    (target, subsystem.expect("a subsystem"))
}

/// Has a reactor run a future, and waits for it.
pub fn on<M, F, T>(reactor: &ReactorHandle, make: M) -> T
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    block_on(reactor.call(make)).expect("the reactor runs")
}

impl Ground {
    /// With no namespace yet.
    pub fn new() -> Self {
        let reactors = TestReactors::start(2);
        let (target, subsystem) = target(&reactors);
        let mut ground = Self {
            reactors,
            subsystem,
            target,
            listening: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        ground.listen();
        ground
    }

    /// With the device at `uri` as namespace 1.
    pub fn with(uri: &str) -> Self {
        let ground = Self::new();
        let uri = uri.to_owned();
        let device = on(
            &ground.reactor(),
            move || async move { open(&uri).await.expect(&uri) },
        );
        ground.serve(device);
        ground
    }

    pub fn serve(&self, device: Arc<dyn Device>) -> u32 {
        let config = NamespaceConfig::default();
        self.subsystem
            .add_namespace(device, &config)
            .expect("a namespace")
    }

    pub fn reactor(&self) -> ReactorHandle {
        self.reactors.handles()[0].clone()
    }

    /// Takes connections again, at the address that it had.
    pub fn listen(&mut self) {
        let (admission, wanted) = (Arc::clone(&self.target), Address::Tcp(self.address));
        let settings = Arc::new(TransportSettings::default());
        let (local, listening) = on(&self.reactor(), move || async move {
            connection::listen(&wanted, admission, settings).expect("the port is free")
        });
        let Address::Tcp(address) = local else {
            panic!("{local:?} is no port");
        };
        self.address = address;
        self.listening = Some(listening);
    }

    /// Has the target do nothing, neither answer requests nor aborts, until what is returned is dropped.
    pub fn freeze(&self) -> Vec<std::sync::mpsc::Sender<()>> {
        let reactors = self.reactors.handles();
        let frozen = reactors.iter().map(|reactor| {
            let (sender, thaw) = std::sync::mpsc::channel::<()>();
            let (freezes, is_frozen) = std::sync::mpsc::channel();
            let waiting = reactor.spawn(move || async move {
                freezes.send(()).expect("it is waited for");
                thaw.recv().unwrap_or_default();
            });
            waiting.expect("the reactor takes messages");
            is_frozen.recv().expect("the reactor runs");
            sender
        });
        frozen.collect()
    }

    /// Breaks every connection and takes no more; what it serves stays.
    pub fn stop(&mut self) {
        if let Some(listening) = self.listening.take() {
            block_on(listening.cancel());
        }
        let target = Arc::clone(&self.target);
        on(&self.reactor(), move || async move { target.shut_down().await });
    }

    /// Serves a device again, at the address it had, as a target that knows nothing of the one before.
    pub fn start_again(&mut self, device: Arc<dyn Device>) {
        let (target, subsystem) = target(&self.reactors);
        self.target = target;
        self.subsystem = subsystem;
        self.serve(device);
        self.listen();
    }

    /// How to open a namespace.
    pub fn options(&self, namespace: Option<u32>) -> SpdkOptions {
        let address = FabricsAddress {
            address: self.address.ip(),
            port: self.address.port(),
            subsystem: SUBSYSTEM.to_owned(),
            host_nqn: Some("nqn.2026-11.io.pollux:test-host".to_owned()),
            host_id: Some([7; 16]),
        };
        SpdkOptions::new("ground", Transport::Tcp(address), namespace)
    }
}

/// What leads connections to a target, until it is told to break them.
pub struct Relay {
    pub address: SocketAddr,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let streams = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&streams);
        // Ends with the process, as the listener does.
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(target).expect("the target listens");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let [mut from, mut to] = [from, to].map(|stream| stream.try_clone().expect("a copy"));
                    std::thread::spawn(move || {
                        let _broken = std::io::copy(&mut from, &mut to);
                        let _broken_already = to.shutdown(Shutdown::Both);
                    });
                }
                known.lock().expect("no panic").extend([near, far]);
            }
        });
        Self { address, streams }
    }

    /// Breaks what is connected; what connects later is led on.
    pub fn cut(&self) {
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _broken_already = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Opens a device, from any thread.
pub fn connect(reactor: &ReactorHandle, options: SpdkOptions) -> Arc<SpdkDevice> {
    let opened = on(reactor, move || async move { SpdkDevice::open(options).await });
    opened.expect("the target is there")
}

/// What a [`Counted`] device says about itself.
pub const HEALTH: Health = Health {
    temperature_kelvin: 310,
    available_spare_percent: 98,
    percentage_used: 3,
    critical_warning: 0,
    media_errors: 5,
    power_cycles: 6,
    power_on_hours: 7,
    unsafe_shutdowns: 8,
};

/// Memory on the reactor of the ground.
pub fn memory(ground: &Ground) -> Arc<dyn Device> {
    let uri = "malloc:///ground?size=32MiB";
    on(
        &ground.reactor(),
        move || async move { open(uri).await.expect(uri) },
    )
}

/// A device that counts what reaches it, and says that it has a volatile cache.
pub struct Counted {
    inner: Arc<dyn Device>,
    pub flushes: AtomicU64,
    pub stable_writes: AtomicU64,
    pub writes: AtomicU64,
}

impl Counted {
    pub fn new(inner: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            flushes: AtomicU64::new(0),
            stable_writes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }
}

impl Device for Counted {
    fn name(&self) -> &str {
        "counted"
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            volatile_write_cache: true,
            ..self.inner.geometry()
        }
    }

    fn attach(self: Arc<Self>) -> pollux_device::Attaching {
        Box::pin(async move {
            let queue = self.inner.clone().attach().await?;
            Ok(std::rc::Rc::new(CountedQueue { device: self, queue }) as std::rc::Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> events::Subscription {
        self.inner.subscribe()
    }

    fn health(&self) -> Health {
        HEALTH
    }
}

struct CountedQueue {
    device: Arc<Counted>,
    queue: std::rc::Rc<dyn BlockDevice>,
}

impl BlockDevice for CountedQueue {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        match &request {
            Request::Flush => {
                self.device.flushes.fetch_add(1, Ordering::Relaxed);
            }
            Request::Write {
                force_unit_access, ..
            } => {
                self.device.writes.fetch_add(1, Ordering::Relaxed);
                let stable = u64::from(*force_unit_access);
                self.device.stable_writes.fetch_add(stable, Ordering::Relaxed);
            }
            _ => {}
        }
        self.queue.submit(request)
    }
}
