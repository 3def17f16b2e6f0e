//! Replicas that come and go while the volume is served: what a control plane does with drives and the
//! record.
//!
//! One that comes is made on a drive, put into the record as empty, and then targets are told how to reach
//! it. Of one that goes targets are told that it is to leave the set; once it is not in sync it is taken
//! out of the record, and its host ends after that.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use pollux_reactor::net::Address;
use pollux_volume::membership::{Membership, ReplicaEntry, ReplicaState, SlotNumber};
use pollux_volume::replica::ReplicaPort;
use uuid::Uuid;

use super::backing::Backing;
use super::cluster::{Cluster, Node, Shared, VOLUME};
use super::wire::{HostSlot, LocalPort, RemotePort};
use crate::MachineId;
use crate::random::Random;

/// So many are not to leave, at least.
const REPLICAS_MIN: usize = 2;

/// How long a replica may take to be made, before its engine is ended.
const MAKING_LIMIT: Duration = Duration::from_secs(10);

/// How a machine is reached.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) machine: MachineId,
    pub(super) address: Address,
    pub(super) backing: Backing,
    pub(super) host: HostSlot,
}

/// A replica that the volume is to have, or is to have no more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    pub(super) id: Uuid,
    /// The machine with its drive.
    pub(super) node: usize,
    /// It is to leave the set.
    pub(super) leaving: bool,
}

/// The replicas as they are to be.
#[derive(Debug, Default)]
pub(super) struct Plan {
    replicas: RefCell<Vec<Planned>>,
    /// Raised with each change.
    version: Cell<u64>,
    last_id: Cell<u128>,
}

impl Plan {
    /// Replicas on the first machines, which are in the record.
    pub(super) fn new(ids: impl Iterator<Item = Uuid>) -> Self {
        let planned = |(node, id)| Planned {
            id,
            node,
            leaving: false,
        };
        let plan = Self::default();
        plan.replicas.borrow_mut().extend(ids.enumerate().map(planned));
        // Far from the names of the first ones.
        plan.last_id.set(1 << 32);
        plan
    }

    pub(super) fn version(&self) -> u64 {
        self.version.get()
    }

    pub(super) fn replicas(&self) -> Vec<Planned> {
        self.replicas.borrow().clone()
    }

    /// The names of those that are to leave.
    pub(super) fn leaving(&self) -> Vec<Uuid> {
        let replicas = self.replicas.borrow();
        let leaving = replicas.iter().filter(|replica| replica.leaving);
        leaving.map(|replica| replica.id).collect()
    }

    /// Whether all are in sync that are to be, and there are no others.
    pub(super) fn is_reached(&self, record: &Membership) -> bool {
        let replicas = self.replicas.borrow();
        let is_as_planned = |replica: &Planned| {
            let state = state_in(record, replica.id);
            !replica.leaving && state == Some(ReplicaState::InSync)
        };
        record.members().len() == replicas.len() && replicas.iter().all(is_as_planned)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Planned>)) {
        change(&mut self.replicas.borrow_mut());
        self.version.set(self.version.get() + 1);
    }

    fn next_id(&self) -> Uuid {
        self.last_id.set(self.last_id.get() + 1);
        Uuid::from_u128(self.last_id.get())
    }
}

fn slot_of(record: &Membership, id: Uuid) -> Option<SlotNumber> {
    SlotNumber::all().find(|slot| record.replica(*slot).is_some_and(|entry| entry.id == id))
}

fn state_in(record: &Membership, id: Uuid) -> Option<ReplicaState> {
    let entry = record.replica(slot_of(record, id)?)?;
    Some(entry.state)
}

impl Shared {
    /// How a machine reaches the replicas, as they are planned now.
    pub(super) fn ports(&self, from: MachineId) -> Vec<(Uuid, Rc<dyn ReplicaPort>)> {
        let mut ports = Vec::new();
        for Planned { id, node, .. } in self.plan.replicas() {
            let Some(way) = self.ways.borrow().get(node).cloned() else {
                continue;
            };
            let port: Rc<dyn ReplicaPort> = match way.machine == from {
                true => Rc::new(LocalPort {
                    replica: id,
                    host: way.host,
                }),
                false => Rc::new(RemotePort {
                    replica: id,
                    address: way.address,
                    backing: way.backing,
                    coverage: self.coverage.clone(),
                }),
            };
            ports.push((id, self.wrap_port(port)));
        }
        ports
    }
}

impl Cluster {
    /// Adds a replica, or has one leave, or lets one stay after all; does what is due in the record, or not
    /// yet.
    pub(super) fn change_replicas(&self, random: &mut Random) {
        let plan = &self.shared.plan;
        match random.below(8) {
            0..=2 => self.add_replica(random),
            3 | 4 => {
                let replicas = plan.replicas();
                let staying: Vec<_> = replicas.iter().filter(|replica| !replica.leaving).collect();
                let least = REPLICAS_MIN.max(self.min_in_sync());
                if staying.len() > least
                    && let Some(one) = random.pick(&staying)
                {
                    self.plan_leaving(one.id, true);
                }
            }
            5 => {
                if let Some(id) = random.pick(&plan.leaving()) {
                    self.plan_leaving(*id, false);
                }
            }
            _ => {}
        }
        if random.chance(0.7) {
            self.follow_plan();
        }
    }

    fn plan_leaving(&self, id: Uuid, leaving: bool) {
        self.shared.plan.change(|replicas| {
            let found = replicas.iter_mut().filter(|replica| replica.id == id);
            found.for_each(|replica| replica.leaving = leaving);
        });
    }

    fn add_replica(&self, random: &mut Random) {
        let Ok(record) = self.records.get(VOLUME) else {
            return;
        };
        let planned = self.shared.plan.replicas();
        let has_slot = SlotNumber::all().count() > record.members().len().max(planned.len());
        let is_free = |index: &usize| {
            let is_planned = planned.iter().any(|replica| replica.node == *index);
            let node = self.nodes.get(*index);
            !is_planned && node.is_some_and(|node| self.world.is_up(node.machine) && node.is_unused())
        };
        let free: Vec<usize> = (0..self.nodes.len()).filter(is_free).collect();
        let Some(&index) = random.pick(&free).filter(|_| has_slot) else {
            return;
        };
        let (Some(node), id) = (self.nodes.get(index), self.shared.plan.next_id()) else {
            return;
        };
        if self.make_replica(node, id) {
            self.shared.plan.change(|replicas| {
                replicas.push(Planned {
                    id,
                    node: index,
                    leaving: false,
                });
            });
        }
    }

    /// Whether a replica could be made on the drive of a machine.
    fn make_replica(&self, node: &Node, id: Uuid) -> bool {
        node.drive.set_faults(crate::Faults::default());
        node.backing.rename(id);
        let (backing, options) = (node.backing.clone(), self.format_options(id));
        let making = self
            .world
            .spawn(node.reactor, async move { backing.format(&options).await });
        if self.world.run_until(|| making.is_ended(), MAKING_LIMIT).is_err() {
            self.crash(node, crate::Crash::Process);
            return false;
        }
        let is_made = matches!(making.take(), Some(Ok(Ok(()))));
        // What formatted it ends.
        self.world.run_for(Duration::from_millis(1));
        if is_made && self.world.is_up(node.machine) {
            node.has_replica.set(true);
            self.open_host(node);
        }
        is_made
    }

    /// Does with the record what is due: replicas that are planned are put in, and those that are not, or are
    /// to leave, taken out once they do not count.
    pub(super) fn follow_plan(&self) {
        for planned in self.shared.plan.replicas() {
            let Ok(record) = self.records.get(VOLUME) else {
                return;
            };
            match (slot_of(&record, planned.id), planned.leaving) {
                (None, false) => {
                    let free = SlotNumber::all().find(|slot| record.replica(*slot).is_none());
                    let mut next = record.next();
                    let place = free.and_then(|slot| next.replicas.get_mut(slot.index()));
                    let Some(place) = place else { continue };
                    *place = Some(ReplicaEntry {
                        id: planned.id,
                        state: ReplicaState::Empty,
                    });
                    self.swap(next);
                }
                (Some(slot), true) if !record.in_sync().contains(slot) => {
                    let next = record.next().without_replica(slot);
                    // One that alone has a snapshot stays, as it does for a control plane: the others may
                    // have been brought back while the snapshot was cut.
                    match next.snapshots.len() < record.snapshots.len() {
                        true => self.plan_leaving(planned.id, false),
                        false if self.swap(next) => self.retire(planned),
                        false => {}
                    }
                }
                (None, true) => self.retire(planned),
                (Some(_), _) => {}
            }
        }
    }

    fn swap(&self, next: Membership) -> bool {
        let swapped = self.records.swap(next);
        if let Err(error) = &swapped {
            self.shared
                .accuse(format!("the store refuses a replica: {error}"));
        }
        swapped.is_ok()
    }

    /// Nothing counts on a replica that is gone: its host ends, and its drive may be used anew.
    fn retire(&self, planned: Planned) {
        self.shared
            .plan
            .change(|replicas| replicas.retain(|replica| replica.id != planned.id));
        let Some(node) = self.nodes.get(planned.node) else {
            return;
        };
        node.has_replica.set(false);
        let host = node.host.borrow_mut().take();
        node.backing.close();
        if self.world.is_up(node.machine) {
            node.is_ending.set(true);
            // A pool goes on until its process ends.
            if let Some(host) = host
                && !self.on_pools()
            {
                let is_ending = node.is_ending.clone();
                let ending = async move {
                    host.close().await;
                    is_ending.set(false);
                };
                drop(self.world.spawn(node.reactor, ending));
            }
        }
    }
}
