//! The driver of a reactor on a real machine.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha12Rng;

use super::clock;
use super::listener::{self, SocketListener};
use super::ring::Ring;
use super::socket::{Connected, SocketSettings};
use super::stream::SocketStream;
use super::uring::Uring;
use crate::driver::{Driver, Progress, Wait, WakeReactor};
use crate::net::{Address, Connecting, Detached, Listener, Stream};
use crate::timer::Instant;

/// Settings of a [`RealDriver`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverSettings {
    /// Entries of the submission queue, a power of two; more than these are queued by the driver. Default:
    /// 1024.
    pub ring_entries: u32,
    /// Operations on files that may be under way at a time; more of them wait. Default: 1024.
    pub file_operations: u16,
    /// Its sockets.
    pub sockets: SocketSettings,
}

impl Default for DriverSettings {
    fn default() -> Self {
        Self {
            ring_entries: 1024,
            file_operations: 1024,
            sockets: SocketSettings::default(),
        }
    }
}

/// Clock, randomness, sockets and files of this machine, for the reactor of one thread.
pub struct RealDriver {
    ring: Ring,
    random: RefCell<ChaCha12Rng>,
    settings: DriverSettings,
}

impl RealDriver {
    /// A driver for the calling thread.
    ///
    /// # Errors
    ///
    /// When io_uring is not available, with what to do about it.
    pub fn new(settings: &DriverSettings) -> io::Result<Self> {
        Self::on(settings, Uring::new(settings.ring_entries)?)
    }

    /// A driver on a ring of the calling thread.
    fn on(settings: &DriverSettings, uring: Uring) -> io::Result<Self> {
        Ok(Self {
            ring: Ring::new(settings, uring)?,
            random: RefCell::new(rand::make_rng()),
            settings: settings.clone(),
        })
    }
}

impl Driver for RealDriver {
    fn now(&self) -> Instant {
        let now = clock::now();
        self.ring.readiness().set_now(now);
        now
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    fn turn(&self, wait: Wait) -> io::Result<Progress> {
        let readiness = self.ring.readiness();
        let time = match wait {
            Wait::Never => None,
            Wait::Until(None) => Some(None),
            Wait::Until(Some(deadline)) => {
                let time = deadline.saturating_since(clock::now());
                (!time.is_zero()).then_some(Some(time))
            }
        };
        let completed = match time {
            Some(time) if self.ring.bell().flag.prepare() => self.ring.sleep(time)?,
            _ => self.ring.turn()?,
        };
        Ok(Progress {
            events: completed.saturating_add(readiness.take_progress()),
            speculative: readiness.wake_hot(),
        })
    }

    fn waker(&self) -> Arc<dyn WakeReactor> {
        self.ring.bell().clone()
    }

    fn listen(&self, address: &Address) -> io::Result<Box<dyn Listener>> {
        let listener = SocketListener::new(&self.ring, address, &self.settings.sockets)?;
        Ok(Box::new(listener))
    }

    fn connect(&self, address: &Address) -> Connecting {
        Box::pin(listener::connect(
            self.ring.clone(),
            address.clone(),
            self.settings.sockets.clone(),
        ))
    }

    fn attach(&self, detached: Detached) -> io::Result<Box<dyn Stream>> {
        let connected: Connected = detached.downcast().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the stream belongs to a driver of another kind",
            )
        })?;
        Ok(Box::new(SocketStream::new(
            &self.ring,
            connected,
            &self.settings.sockets,
        )))
    }

    fn ring(&self) -> Option<&Ring> {
        Some(&self.ring)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use pollux_hugepages::{Buffer, BufferPool, PoolOptions};

    use super::*;
    use crate::executor::Core;
    use crate::file::{File, OpenOptions};
    use crate::handle::ReactorId;
    use crate::net;
    use crate::real::uring::Mode;

    /// Waits for a connection that has cooled, for a file, for a timer and for another thread.
    async fn use_everything() {
        let address = Address::Tcp(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut listener = net::listen(&address).expect("a port is free");
        let mut near = net::connect(listener.local()).await.expect("somebody listens");
        let mut far = net::attach(net::accept(&mut *listener).await.expect("it comes")).expect("it is ours");
        let echo = crate::spawn(async move {
            let mut bytes = [0; 10];
            net::receive_exact(&mut *far, &mut bytes)
                .await
                .expect("it is sent");
            net::send_all(&mut *far, &bytes).await.expect("it is received");
        });
        crate::sleep(Duration::from_millis(3)).await;
        net::send_all(&mut *near, &[7; 10]).await.expect("it is received");
        let mut back = [0; 10];
        net::receive_exact(&mut *near, &mut back)
            .await
            .expect("it comes back");
        assert_eq!(back, [7; 10]);
        echo.await;
        let path = std::env::current_exe().expect("this is a program");
        let file = File::open(&path, &OpenOptions::default())
            .await
            .expect("it can be read");
        let (read, _) = file.read_at(0, Buffer::from_heap(4)).await;
        assert_eq!(read.expect("it is not empty"), 4);
    }

    #[test]
    fn every_mode_of_the_ring_that_the_kernel_knows_works() {
        let mut known = 0;
        for mode in Mode::ALL {
            let settings = DriverSettings::default();
            let Ok(uring) = Uring::with_mode(settings.ring_entries, mode) else {
                println!("skipped: this kernel has no {mode:?} mode");
                continue;
            };
            known += 1;
            let driver = RealDriver::on(&settings, uring).expect("there is an eventfd");
            let options = PoolOptions {
                total_bytes: 4 << 20,
                ..PoolOptions::default()
            };
            let pool = BufferPool::on_heap(&options).expect("there is memory");
            let core = Core::new(ReactorId(0), Box::new(driver), pool);
            let task = Core::spawn(&core, use_everything());
            let start = std::time::Instant::now();
            while !task.is_finished() {
                // Asleep whenever there is nothing to do, for as long as nothing wakes it.
                let wait = Wait::Until(core.next_deadline());
                Core::turn(&core, wait).expect("the ring works");
                assert!(start.elapsed() < Duration::from_secs(60), "{mode:?}");
            }
            assert!(core.counters().snapshot().asleep_ns > 0);
            Core::clear(&core);
            assert_eq!(Rc::strong_count(&core), 1);
        }
        assert!(known > 0);
    }
}
