//! Machines and their reactors.

use std::cell::RefCell;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_hugepages::{ArenaOptions, BufferPool, PagePreference, PoolOptions};
use pollux_reactor::{Core, Instant, ReactorHandle, ReactorId};

use super::{Control, Inner, MachineId, SimTask};
use crate::clock::MachineClock;
use crate::drive::{SimDrive, SimDriveOptions};
use crate::driver::SimDriver;
use crate::random::Random;

/// How a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MachineOptions {
    /// What its clock reads when the world begins.
    pub clock_offset: Duration,
    /// How much faster its clock runs, in parts per billion.
    pub clock_drift_ppb: i32,
}

impl MachineOptions {
    /// A clock like those of real machines: anywhere within the first hour, and up to 100 parts per million
    /// off. Whoever compares instants of two machines is found out by it.
    pub fn seeded(random: &mut Random) -> Self {
        Self {
            clock_offset: random.duration(Duration::ZERO..=Duration::from_secs(3600)),
            clock_drift_ppb: random.within(0..=200_000) as i32 - 100_000,
        }
    }
}

pub(super) struct Machine {
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) clock: Rc<MachineClock>,
    pub(super) up: bool,
    pub(super) drives: Vec<Arc<SimDrive>>,
}

/// A reactor of a simulated machine; the same one after a restart. Ends with its world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimReactor {
    pub(super) index: usize,
    machine: MachineId,
}

impl SimReactor {
    /// Its machine.
    pub fn machine(&self) -> MachineId {
        self.machine
    }
}

pub(super) struct ReactorSlot {
    pub(super) machine: MachineId,
    /// `None` while the machine is down.
    pub(super) core: Option<Rc<Core>>,
    pub(super) clock: Rc<MachineClock>,
    pub(super) busy_until: Instant,
    /// A poller of it asked to be called again.
    pub(super) poller_waiting: bool,
    pub(super) random: Random,
}

impl ReactorSlot {
    /// The first instant at which it can run; `None` if it has nothing to do.
    pub(super) fn runnable_at(&self) -> Option<Instant> {
        let core = self.core.as_ref()?;
        if core.is_ready() || self.poller_waiting {
            return Some(self.busy_until);
        }
        let deadline = core.next_deadline()?;
        Some(self.clock.world(deadline).max(self.busy_until))
    }
}

impl Inner {
    /// A fresh core for a reactor, as of a process that just started.
    pub(super) fn make_core(&self, machine: MachineId, id: ReactorId, clock: Rc<MachineClock>) -> Rc<Core> {
        let number = self.cores.get();
        self.cores.set(number + 1);
        let driver = SimDriver {
            timeline: self.timeline.clone(),
            machine,
            clock,
            network: self.network.clone(),
            random: RefCell::new(self.seed.stream("reactor", number)),
        };
        // Mapped and not allocated: what is never touched costs nothing, and worlds are made by the thousand.
        let options = PoolOptions {
            total_bytes: self.options.buffer_bytes,
            arena: ArenaOptions {
                page: PagePreference::Ordinary,
                ..ArenaOptions::default()
            },
            ..PoolOptions::default()
        };
        let buffers = BufferPool::new(&options).expect("the pool of the world's options can be mapped");
        Core::new(id, Box::new(driver), buffers)
    }
}

impl Control {
    /// Adds a machine with a perfect clock. It has the address that [`Control::address`] tells, and no
    /// reactor yet.
    pub fn add_machine(&self, name: &str) -> MachineId {
        self.add_machine_with(name, MachineOptions::default())
    }

    /// Adds a machine.
    pub fn add_machine_with(&self, name: &str, options: MachineOptions) -> MachineId {
        let inner = self.inner();
        let mut machines = inner.machines.borrow_mut();
        let id = MachineId(machines.len() as u32);
        machines.push(Machine {
            name: name.to_owned(),
            address: inner.network.add_host(id),
            clock: Rc::new(MachineClock::new(options.clock_offset, options.clock_drift_ppb)),
            up: true,
            drives: Vec::new(),
        });
        inner.timeline.note("machine added", u64::from(id.0), 0);
        id
    }

    /// Adds a reactor to a machine. A machine numbers its reactors from 0.
    pub fn add_reactor(&self, machine: MachineId) -> SimReactor {
        let inner = self.inner();
        let (clock, up) = self.with_machine(machine, |entry| (entry.clock.clone(), entry.up));
        let id = ReactorId(self.reactors(machine).len() as u32);
        let core = inner.make_core(machine, id, clock.clone());
        let mut reactors = inner.reactors.borrow_mut();
        let index = reactors.len();
        reactors.push(ReactorSlot {
            machine,
            core: up.then_some(core),
            clock,
            busy_until: inner.timeline.now(),
            poller_waiting: false,
            random: inner.seed.stream("turn cost", index as u64),
        });
        SimReactor { index, machine }
    }

    /// Puts a new drive into a machine. It shares the machine's crashes, and stays what it is through its
    /// restarts.
    pub fn add_drive(&self, machine: MachineId, name: &str, options: SimDriveOptions) -> Arc<SimDrive> {
        let inner = self.inner();
        let number = inner.next_drive.get();
        inner.next_drive.set(number + 1);
        let drive = SimDrive::new(name, options, inner.seed.stream("drive seed", number).u64());
        self.insert_drive(machine, &drive);
        drive
    }

    /// Puts a drive into a machine that was made elsewhere, or was in another machine.
    pub fn insert_drive(&self, machine: MachineId, drive: &Arc<SimDrive>) {
        let inner = self.inner();
        for entry in inner.machines.borrow_mut().iter_mut() {
            entry.drives.retain(|known| !Arc::ptr_eq(known, drive));
        }
        self.with_machine(machine, |entry| entry.drives.push(drive.clone()));
    }

    /// The drives of a machine, in the order in which they were put in.
    pub fn drives(&self, machine: MachineId) -> Vec<Arc<SimDrive>> {
        self.with_machine(machine, |entry| entry.drives.clone())
    }

    /// The reactors of a machine, in the order in which they were added.
    pub fn reactors(&self, machine: MachineId) -> Vec<SimReactor> {
        let inner = self.inner();
        let reactors = inner.reactors.borrow();
        let of_machine = reactors
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.machine == machine);
        of_machine
            .map(|(index, slot)| SimReactor {
                index,
                machine: slot.machine,
            })
            .collect()
    }

    /// All machines, in the order in which they were added.
    pub fn machines(&self) -> Vec<MachineId> {
        (0..self.inner().machines.borrow().len() as u32)
            .map(MachineId)
            .collect()
    }

    /// The name of a machine.
    pub fn machine_name(&self, machine: MachineId) -> String {
        self.with_machine(machine, |entry| entry.name.clone())
    }

    /// The IPv4 address of a machine.
    pub fn address(&self, machine: MachineId) -> IpAddr {
        self.with_machine(machine, |entry| entry.address)
    }

    /// Whether a machine runs.
    pub fn is_up(&self, machine: MachineId) -> bool {
        self.with_machine(machine, |entry| entry.up)
    }

    /// What the clock of a machine reads now.
    pub fn local_time(&self, machine: MachineId) -> Instant {
        self.with_machine(machine, |entry| entry.clock.local(self.now()))
    }

    /// Lets the clock of a machine run faster by so many parts per billion, from now on.
    pub fn set_clock_drift(&self, machine: MachineId, drift_ppb: i32) {
        let now = self.now();
        self.with_machine(machine, |entry| entry.clock.set_drift(now, drift_ppb));
    }

    /// Moves the clock of a machine forwards, as after a suspend.
    pub fn jump_clock(&self, machine: MachineId, forwards: Duration) {
        let now = self.now();
        self.with_machine(machine, |entry| entry.clock.jump(now, forwards));
    }

    /// Keeps a reactor from running for a while, as when the operating system takes its core away.
    pub fn stall(&self, reactor: SimReactor, span: Duration) {
        let inner = self.inner();
        let until = inner.timeline.now() + span;
        if let Some(slot) = inner.reactors.borrow_mut().get_mut(reactor.index) {
            slot.busy_until = slot.busy_until.max(until);
        }
    }

    /// Runs a future as a task of a reactor. On a machine that is down it is lost at once.
    pub fn spawn<F>(&self, reactor: SimReactor, future: F) -> SimTask<F::Output>
    where
        F: Future + 'static,
    {
        let (task, tracked) = SimTask::track(future);
        let core = self.core(reactor);
        if let Some(core) = core {
            Core::spawn(&core, tracked).detach();
        }
        task
    }

    /// What other reactors send a reactor messages with; `None` while its machine is down.
    pub fn handle(&self, reactor: SimReactor) -> Option<ReactorHandle> {
        self.core(reactor).map(|core| core.handle())
    }

    /// Tasks of a reactor that have not ended.
    pub fn tasks(&self, reactor: SimReactor) -> usize {
        self.core(reactor).map_or(0, |core| core.tasks())
    }

    fn core(&self, reactor: SimReactor) -> Option<Rc<Core>> {
        self.inner()
            .reactors
            .borrow()
            .get(reactor.index)
            .and_then(|slot| slot.core.clone())
    }

    pub(super) fn with_machine<T>(&self, machine: MachineId, act: impl FnOnce(&mut Machine) -> T) -> T {
        let inner = self.inner();
        let mut machines = inner.machines.borrow_mut();
        act(machines
            .get_mut(machine.0 as usize)
            .expect("the machine is of this world"))
    }
}
