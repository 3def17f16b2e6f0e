//! What the harness and simulated tasks do to a world: crashes, restarts, partitions, time.

use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use pollux_reactor::net::Address;
use pollux_reactor::{Core, Instant, ReactorId};

use super::{Inner, MachineId, SimReactor, upgrade};
use crate::drive::PowerLoss;
use crate::network::LinkRule;
use crate::random::{Random, mix};
use crate::timeline::Event;
use crate::trace::TraceEntry;

/// How a machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Its processes are killed. The kernel closes their connections, so that peers learn of it; drives keep
    /// their power and what is in their caches.
    Process,
    /// Its power is cut: peers learn nothing, and drives lose what they had not flushed.
    Power,
}

/// Everything that can be done to a world but running it. Cheap to clone; does not keep the world alive.
///
/// All methods panic once the world is gone: only its own tasks and the harness hold one.
#[derive(Clone)]
pub struct Control(Weak<Inner>);

impl Control {
    pub(super) fn new(inner: Weak<Inner>) -> Self {
        Self(inner)
    }

    pub(super) fn inner(&self) -> Rc<Inner> {
        upgrade(&self.0)
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.inner().seed.0
    }

    /// The world's time; the clocks of machines may differ.
    pub fn now(&self) -> Instant {
        self.inner().timeline.now()
    }

    /// A stream of the seed for the choices of a test.
    pub fn random(&self, purpose: &str, number: u64) -> Random {
        self.inner().seed.stream(purpose, number)
    }

    /// The hash of everything that has happened.
    pub fn trace_hash(&self) -> u64 {
        let inner = self.inner();
        let machines = inner.machines.borrow();
        let drives = machines.iter().flat_map(|machine| &machine.drives);
        drives.fold(inner.timeline.trace.hash(), |hash, drive| {
            mix(hash, drive.trace_hash())
        })
    }

    /// The last of what has happened.
    pub fn trace_recent(&self) -> Vec<TraceEntry> {
        self.inner().timeline.trace.recent()
    }

    /// How much has happened: entries of the trace.
    pub fn trace_entries(&self) -> u64 {
        self.inner().timeline.trace.entries()
    }

    /// Makes something that a test does part of the trace.
    pub fn note(&self, what: &'static str, who: u64, detail: u64) {
        self.inner().timeline.note(what, who, detail);
    }

    /// Calls a function after a while, outside of any reactor.
    pub fn after(&self, span: Duration, call: impl FnOnce() + 'static) {
        self.inner()
            .timeline
            .schedule_after(span, Event::Call(Box::new(call)));
    }

    /// A TCP address of a machine.
    pub fn tcp(&self, machine: MachineId, port: u16) -> Address {
        Address::Tcp(SocketAddr::new(self.address(machine), port))
    }

    /// Takes a machine down. A machine that crashes itself does so at the end of the turn. Nothing if it is
    /// down.
    pub fn crash(&self, machine: MachineId, crash: Crash) {
        let inner = self.inner();
        let was_up = self.with_machine(machine, |entry| std::mem::replace(&mut entry.up, false));
        if !was_up {
            return;
        }
        let name = match crash {
            Crash::Process => "processes killed",
            Crash::Power => "power cut",
        };
        inner.timeline.note(name, u64::from(machine.0), 0);
        // First of all nothing gets out any more: not by the network, not to a drive. Then the tasks are
        // dropped.
        match crash {
            Crash::Process => inner.network.kill_processes(machine),
            Crash::Power => inner.network.power_off(machine),
        }
        for drive in self.drives(machine) {
            match crash {
                Crash::Process => drive.disconnect(),
                Crash::Power => drive.power_loss(PowerLoss::Any),
            }
        }
        if inner.turning.get() == Some(machine) {
            inner.crashes_due.borrow_mut().push(machine);
        } else {
            inner.clear_machine(machine);
        }
    }

    /// Takes all machines down at once.
    pub fn crash_all(&self, crash: Crash) {
        for machine in self.machines() {
            self.crash(machine, crash);
        }
    }

    /// Starts a machine again, with its reactors as new. Nothing if it runs.
    pub fn restart(&self, machine: MachineId) {
        let inner = self.inner();
        let (was_up, clock) = self.with_machine(machine, |entry| {
            (std::mem::replace(&mut entry.up, true), entry.clock.clone())
        });
        if was_up {
            return;
        }
        inner.timeline.note("machine started", u64::from(machine.0), 0);
        inner.network.power_on(machine);
        for (number, SimReactor { index, .. }) in (0..).zip(self.reactors(machine)) {
            let core = inner.make_core(machine, ReactorId(number), clock.clone());
            if let Some(slot) = inner.reactors.borrow_mut().get_mut(index) {
                slot.core = Some(core);
                slot.busy_until = inner.timeline.now();
                slot.poller_waiting = false;
            }
        }
    }

    /// What every link between two machines is like from now on, and new ones too.
    pub fn set_links(&self, rule: LinkRule) {
        self.inner().network.set_default_rule(rule);
    }

    /// Changes one direction between two machines; or, with one machine twice, what is within it.
    pub fn change_link(&self, from: MachineId, to: MachineId, change: impl FnOnce(&mut LinkRule)) {
        let inner = self.inner();
        inner
            .timeline
            .note("link changed", u64::from(from.0), u64::from(to.0));
        inner.network.change_rule(from, to, change);
    }

    /// What one direction between two machines is like.
    pub fn link(&self, from: MachineId, to: MachineId) -> LinkRule {
        self.inner().network.rule(from, to)
    }

    /// Nothing from any of the ones reaches any of the others; what these send arrives.
    pub fn partition_one_way(&self, from: &[MachineId], to: &[MachineId]) {
        self.set_blocked(from, to, true);
    }

    /// Nothing passes between the two groups, in either direction.
    pub fn partition(&self, ones: &[MachineId], others: &[MachineId]) {
        self.set_blocked(ones, others, true);
        self.set_blocked(others, ones, true);
    }

    /// What was partitioned between two groups passes again.
    pub fn reconnect(&self, ones: &[MachineId], others: &[MachineId]) {
        self.set_blocked(ones, others, false);
        self.set_blocked(others, ones, false);
    }

    fn set_blocked(&self, from: &[MachineId], to: &[MachineId], blocked: bool) {
        for &from in from {
            for &to in to.iter().filter(|&&to| to != from) {
                self.change_link(from, to, |rule| rule.blocked = blocked);
            }
        }
    }

    /// Cuts two groups from each other and lets them meet again, in turn, so many times; ends open.
    pub fn flap(&self, ones: &[MachineId], others: &[MachineId], period: Duration, times: u32) {
        let Some(left) = times.checked_sub(1) else {
            return;
        };
        self.partition(ones, others);
        let (control, ones, others) = (self.clone(), ones.to_vec(), others.to_vec());
        self.after(period, move || {
            control.reconnect(&ones, &others);
            let again = control.clone();
            control.after(period, move || again.flap(&ones, &others, period, left));
        });
    }

    /// Every link is as a new one.
    pub fn heal(&self) {
        let inner = self.inner();
        inner.timeline.note("network healed", 0, 0);
        inner.network.heal();
    }

    /// Resets every connection between two machines.
    pub fn reset_connections(&self, one: MachineId, other: MachineId) {
        let inner = self.inner();
        inner
            .timeline
            .note("connections reset", u64::from(one.0), u64::from(other.0));
        inner.network.reset_connections(one, other);
    }

    /// Ends of connections of a machine that are open.
    pub fn connections(&self, machine: MachineId) -> usize {
        self.inner().network.connections(machine)
    }
}

impl Inner {
    /// Drops everything that runs on a machine.
    pub(super) fn clear_machine(&self, machine: MachineId) {
        let reactors = self.reactors.borrow().len();
        for index in 0..reactors {
            let core = self
                .reactors
                .borrow_mut()
                .get_mut(index)
                .filter(|slot| slot.machine == machine)
                .and_then(|slot| slot.core.take());
            if let Some(core) = core {
                Core::clear(&core);
            }
        }
    }
}
