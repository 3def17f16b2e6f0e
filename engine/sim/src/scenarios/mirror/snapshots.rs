//! Snapshots of the simulated volume: what is known of them, and whether they are what they were. The volume
//! goes back to them, and grows.
//!
//! A snapshot is read on every replica of the set while its changes are still held, and once more at the
//! end. It must be the same everywhere, and every block what a read at that moment could have given.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::BlockDevice;
use pollux_reactor::timeout;
use pollux_volume::membership::{Epoch, Membership};
use pollux_volume::mirror::{Mirror, SnapshotError};
use pollux_volume::replica::{CommandError, ReplicaAnswer, ReplicaCommand, ReplicaHost, ReplicaPort};
use uuid::Uuid;

use super::cluster::{BLOCKS, GROWN_BLOCKS_MAX, read_data};
use super::coverage::{Coverage, Event};
use crate::oracle::{Pattern, RestoreTicket, SharedOracle, Value};
use crate::random::Random;

const SNAPSHOTS_MAX: usize = 4;

/// How long a manager waits before it looks after the target again.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Known {
    /// It is sure to be there, or not to be deleted.
    is_certain: bool,
    /// Blocks that the volume had.
    blocks: u64,
    data: Option<Vec<u8>>,
}

/// The volume is asked to go back.
#[derive(Debug, Clone, Copy)]
struct GoingBack {
    request: Uuid,
    /// The epoch of the target that was asked.
    epoch: Epoch,
    ticket: RestoreTicket,
}

/// What is known of the snapshots, whatever crashes.
#[derive(Debug, Default)]
pub(super) struct Book {
    snapshots: RefCell<BTreeMap<Uuid, Known>>,
    next: Cell<u128>,
    going_back: Cell<Option<GoingBack>>,
    /// Blocks that it has at least.
    size_blocks: Cell<u64>,
    wrong: RefCell<Option<String>>,
}

impl Book {
    /// One thing that whoever manages the volume does, now and then.
    pub(super) async fn manage(
        &self,
        mirror: &Mirror,
        ports: &[(Uuid, Rc<dyn ReplicaPort>)],
        oracle: &SharedOracle,
        random: &mut Random,
        coverage: &Coverage,
    ) {
        let names: Vec<Uuid> = self.snapshots.borrow().keys().copied().collect();
        match random.below(40) {
            0..=3 if names.len() < SNAPSHOTS_MAX => {
                self.next.set(self.next.get() + 1);
                let id = Uuid::from_u128(self.next.get());
                let unsure = Known {
                    is_certain: false,
                    blocks: BLOCKS,
                    data: None,
                };
                self.snapshots.borrow_mut().insert(id, unsure);
                let span = random.duration(Duration::from_millis(10)..=Duration::from_secs(1));
                // It may be given up anywhere.
                let cut = timeout(PATIENCE, self.cut(id, span, mirror, ports, oracle)).await;
                if cut.is_ok_and(|cut| cut.is_ok()) {
                    coverage.reach(Event::SnapshotCut);
                }
            }
            4 | 5 => {
                let Some(&id) = random.pick(&names) else { return };
                self.doubt(id);
                if timeout(PATIENCE, mirror.delete_snapshot(id))
                    .await
                    .is_ok_and(|done| done.is_ok())
                {
                    self.snapshots.borrow_mut().remove(&id);
                    coverage.reach(Event::SnapshotDeleted);
                }
            }
            6 => {
                let Some(&id) = random.pick(&names) else { return };
                self.go_back(id, mirror, oracle).await;
            }
            7 => {
                let blocks = mirror.membership().size_blocks + random.within(1..=24);
                if blocks > GROWN_BLOCKS_MAX {
                    return;
                }
                let grown = timeout(PATIENCE, mirror.grow(blocks)).await;
                if grown.is_ok_and(|grown| grown.is_ok()) {
                    self.size_blocks.set(self.size_blocks.get().max(blocks));
                    coverage.reach(Event::Grown);
                }
            }
            _ => {}
        }
    }

    /// Has the volume go back to a snapshot whose data is known, unless it does so already.
    async fn go_back(&self, id: Uuid, mirror: &Mirror, oracle: &SharedOracle) {
        let known = self.snapshots.borrow().get(&id).cloned();
        let data = known.filter(|known| known.is_certain && self.going_back.get().is_none());
        let Some(data) = data.and_then(|known| known.data) else {
            return;
        };
        let record = mirror.membership();
        let pattern = Pattern {
            block_bytes: record.block_bytes as usize,
        };
        let Ok(mut values) = pattern.values(&data, 0) else {
            return self.accuse(format!("snapshot {id} holds what nobody wrote"));
        };
        values.resize(GROWN_BLOCKS_MAX as usize, Value::ZERO);
        self.next.set(self.next.get() + 1);
        let request = Uuid::from_u128(self.next.get());
        self.going_back.set(Some(GoingBack {
            request,
            epoch: record.epoch,
            ticket: oracle.borrow_mut().start_restore(&values),
        }));
        // It goes on, or never begins, whoever waits.
        let _ = timeout(PATIENCE, mirror.roll_back(request, id)).await;
        self.follow(&mirror.membership(), oracle);
    }

    /// What the record of a target tells of a volume that was asked to go back.
    pub(super) fn follow(&self, record: &Membership, oracle: &SharedOracle) {
        let Some(asked) = self.going_back.get() else {
            return;
        };
        let known = record.roll_back.filter(|known| known.id == asked.request);
        let is_done = match known {
            Some(known) if known.is_done => true,
            // Nothing that the target of before asked of the store can be done any more.
            None if record.epoch > asked.epoch => false,
            Some(_) | None => return,
        };
        oracle.borrow_mut().end_restore(asked.ticket, is_done);
        self.going_back.set(None);
    }

    fn doubt(&self, id: Uuid) {
        if let Some(known) = self.snapshots.borrow_mut().get_mut(&id) {
            known.is_certain = false;
        }
    }

    fn accuse(&self, what: String) {
        self.wrong.borrow_mut().get_or_insert(what);
    }

    async fn cut(
        &self,
        id: Uuid,
        span: Duration,
        mirror: &Mirror,
        ports: &[(Uuid, Rc<dyn ReplicaPort>)],
        oracle: &SharedOracle,
    ) -> Result<(), SnapshotError> {
        let blocks = mirror.membership().size_blocks;
        let hold = mirror.hold(span).await?;
        let ticket = oracle.borrow_mut().start_read(0, blocks);
        let cut = hold.cut().await;
        let record = mirror.membership();
        if cut.is_err() || record.size_blocks != blocks {
            // It has grown meanwhile, and what is in the rest is not known.
            oracle.borrow_mut().abandon_read(ticket);
        }
        let cut = cut?;
        if record.size_blocks != blocks {
            return Err(SnapshotError::SetChanged);
        }
        let mut held: Option<Vec<u8>> = None;
        for (replica, port) in ports {
            let slot = record
                .replicas
                .iter()
                .flatten()
                .find(|entry| entry.id == *replica);
            if !slot.is_some_and(|entry| entry.state == pollux_volume::membership::ReplicaState::InSync) {
                continue;
            }
            let Ok(device) = port.open_snapshot(record.epoch, cut.name()).await else {
                continue;
            };
            let Ok(data) = read_data(device, blocks).await else {
                continue;
            };
            if held.as_ref().is_some_and(|held| *held != data) {
                self.accuse(format!("snapshot {id} is not the same on all replicas"));
            }
            held = Some(data);
        }
        let in_force = hold.is_in_force();
        if let Some(data) = &held
            && in_force
        {
            let pattern = Pattern {
                block_bytes: data.len() / blocks as usize,
            };
            let checked = pattern
                .values(data, 0)
                .map_err(|error| error.to_string())
                .and_then(|values| {
                    let ended = oracle.borrow_mut().end_read(ticket, &values);
                    ended.map_err(|error| error.to_string())
                });
            if let Err(error) = checked {
                self.accuse(format!("snapshot {id}: {error}"));
            }
        } else {
            oracle.borrow_mut().abandon_read(ticket);
        }
        drop(hold);
        if let Some(known) = self.snapshots.borrow_mut().get_mut(&id) {
            (known.data, known.blocks) = (held, blocks);
        }
        cut.commit(id).await?;
        if let Some(known) = self.snapshots.borrow_mut().get_mut(&id) {
            known.is_certain = true;
        }
        Ok(())
    }

    /// What is certain is in the record, and what is in the record was asked for.
    pub(super) fn check_record(&self, record: &Membership) -> Result<(), String> {
        if let Some(wrong) = self.wrong.borrow().clone() {
            return Err(wrong);
        }
        if record.size_blocks < self.size_blocks.get() {
            return Err(format!("the volume has shrunk to {} blocks", record.size_blocks));
        }
        let known = self.snapshots.borrow();
        for (id, snapshot) in known.iter() {
            if snapshot.is_certain && record.snapshot(*id).is_none() {
                return Err(format!("snapshot {id} is lost"));
            }
        }
        match record
            .snapshots
            .iter()
            .find(|entry| !known.contains_key(&entry.id))
        {
            Some(entry) => Err(format!("snapshot {} was deleted, or never made", entry.id)),
            None => Ok(()),
        }
    }

    /// A replica has what the record says, as it was.
    pub(super) async fn check_replica(
        &self,
        host: &ReplicaHost,
        record: &Membership,
        index: usize,
    ) -> Result<(), String> {
        let told = |error: CommandError| error.to_string();
        let epoch: Epoch = record.epoch;
        let listed = host
            .command(epoch, ReplicaCommand::ListSnapshots)
            .await
            .map_err(told)?;
        let ReplicaAnswer::Snapshots(cuts) = listed else {
            return Err("no list".to_owned());
        };
        let slots = record
            .replicas
            .iter()
            .position(|entry| entry.is_some_and(|entry| entry.id == host.label().replica));
        let slot = slots
            .and_then(pollux_volume::membership::SlotNumber::new)
            .ok_or("it is no member")?;
        for cut in &cuts {
            if !record.snapshots.iter().any(|entry| entry.cut == *cut) {
                return Err(format!("{cut} was left behind"));
            }
        }
        for entry in record
            .snapshots
            .iter()
            .filter(|entry| entry.held_by.contains(slot))
        {
            let device: Rc<dyn BlockDevice> = host.open_snapshot(epoch, entry.cut).await.map_err(told)?;
            let blocks = self.snapshots.borrow().get(&entry.id).map(|known| known.blocks);
            let blocks = blocks.ok_or("it was never made")?;
            let data = match read_data(device, blocks).await {
                Ok(data) => data,
                // A write that failed on the last replica of the set leaves what nobody can read.
                Err(_) if entry.held_by.len() == 1 => continue,
                Err(error) => return Err(error),
            };
            let mut known = self.snapshots.borrow_mut();
            let known = known.get_mut(&entry.id).ok_or("it was never made")?;
            let expected = known.data.get_or_insert_with(|| data.clone());
            if let Some(byte) = expected.iter().zip(&data).position(|(one, other)| one != other) {
                let block = byte / (data.len() / blocks as usize);
                return Err(format!(
                    "snapshot {} differs in block {block} on replica {index}",
                    entry.id
                ));
            }
        }
        Ok(())
    }
}
