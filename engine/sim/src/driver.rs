//! The driver of a simulated reactor: its machine's clock, a stream of the seed, the simulated network.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use pollux_reactor::net::{Address, Connecting, Detached, Listener, Stream};
use pollux_reactor::real::Ring;
use pollux_reactor::{Driver, Instant, Progress, Wait, WakeReactor};

use crate::MachineId;
use crate::clock::MachineClock;
use crate::network::Network;
use crate::random::Random;
use crate::timeline::Timeline;

pub(crate) struct SimDriver {
    pub(crate) timeline: Rc<Timeline>,
    pub(crate) machine: MachineId,
    pub(crate) clock: Rc<MachineClock>,
    pub(crate) network: Rc<Network>,
    pub(crate) random: RefCell<Random>,
}

/// The world asks each reactor whether it is ready, so that there is nobody to wake.
struct NeverAsleep;

impl WakeReactor for NeverAsleep {
    fn wake(&self) {}
}

impl Driver for SimDriver {
    fn now(&self) -> Instant {
        self.clock.local(self.timeline.now())
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().u64()
    }

    fn turn(&self, _wait: Wait) -> io::Result<Progress> {
        // The world delivers what happens before it turns the reactor, and does the waiting.
        Ok(Progress::default())
    }

    fn waker(&self) -> Arc<dyn WakeReactor> {
        Arc::new(NeverAsleep)
    }

    fn listen(&self, address: &Address) -> io::Result<Box<dyn Listener>> {
        self.network.listen(self.machine, address)
    }

    fn connect(&self, address: &Address) -> Connecting {
        self.network.connect(self.machine, address)
    }

    fn attach(&self, detached: Detached) -> io::Result<Box<dyn Stream>> {
        self.network.attach(self.machine, detached)
    }

    fn ring(&self) -> Option<&Ring> {
        None
    }
}
