//! A host: a reactor in the test's own process, with a device of an engine.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use pollux_device::{BlockDevice, Device, DeviceUri, OpenError, Registry};
use pollux_hugepages::{ArenaOptions, PagePreference, PoolOptions};
use pollux_nvme::initiator::device::NvmfOpener;
use pollux_reactor::real::{ReactorThread, Settings};

/// Buffers of the host's reactor, in bytes.
const BUFFER_BYTES: usize = 16 << 20;

/// A host that is connected to an engine.
pub struct Host {
    device: Arc<dyn Device>,
    // Dropped last: the device lives on it.
    reactor: ReactorThread,
}

impl Host {
    /// Connects to the first namespace of an engine; `parameters` are those of the URI.
    pub fn connect(listener: SocketAddr, parameters: &str) -> Result<Self, OpenError> {
        let reactor = ReactorThread::spawn(Settings {
            buffers: PoolOptions {
                total_bytes: BUFFER_BYTES,
                arena: ArenaOptions {
                    page: PagePreference::Ordinary,
                    ..ArenaOptions::default()
                },
                ..PoolOptions::default()
            },
            ..Settings::default()
        })
        .expect("a reactor");
        let uri = format!("nvmf://{listener}/nqn.2026-11.io.pollux:serve{parameters}");
        let uri: DeviceUri = uri.parse().expect("a URI");
        let mut registry = Registry::empty();
        NvmfOpener::register(&mut registry);
        let handle = reactor.handle();
        let opening = handle.call(move || async move { registry.open(&uri).await });
        let device = block_on(opening).expect("the reactor runs")?;
        Ok(Self { device, reactor })
    }

    /// The device of the host.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Starts something with a queue of the device, and returns what waits for its end.
    pub fn start<F, T>(
        &self,
        work: impl FnOnce(Rc<dyn BlockDevice>) -> F + Send + 'static,
    ) -> impl Future<Output = T>
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (device, reactor) = (self.device.clone(), self.reactor.handle());
        async move {
            let called =
                reactor.call(move || async move { work(device.attach().await.expect("a queue")).await });
            called.await.expect("the reactor runs")
        }
    }

    /// Does something with a queue of the device.
    pub fn run<F, T>(&self, work: impl FnOnce(Rc<dyn BlockDevice>) -> F + Send + 'static) -> T
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        block_on(self.start(work))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
