//! What whoever runs a target tells it while it serves, and hears of it.

use std::rc::Rc;

use pollux_reactor::timeout;
use uuid::Uuid;

use super::{Mirror, StopReason};
use crate::membership::{SlotNumber, SlotSet, StoreError};
use crate::replica::ReplicaPort;

impl Mirror {
    /// Waits until the record is of another version than this, or the target has stopped.
    pub async fn changed_since(&self, version: u64) {
        self.core
            .changed
            .until(|| {
                let members = self.core.members.borrow();
                let changed = members.record().version != version || members.stopped().is_some();
                changed.then_some(())
            })
            .await;
    }

    /// How replicas are reached from now on, by their names, and which of them are to be out of the in-sync
    /// set: they leave it, unless one is the last, and are not brought back. Reads the record anew, in which
    /// others may have put replicas, or taken some away that do not count.
    pub async fn follow(&self, ports: &[(Uuid, Rc<dyn ReplicaPort>)], leaving: &[Uuid]) {
        let core = &self.core;
        let loaded = timeout(core.options.store_timeout, core.store.load(core.volume())).await;
        match loaded.unwrap_or(Err(StoreError::Unavailable)) {
            Ok(current) => {
                let mut members = core.members.borrow_mut();
                if current.epoch > members.record().epoch {
                    members.stop(StopReason::Superseded);
                } else if current.version > members.record().version && !members.is_proposing() {
                    members.adopt(current);
                }
            }
            // As it is for changes, which ask again and are answered some time.
            Err(error) => tracing::debug!(volume = %core.volume(), %error, "the record cannot be read"),
        }
        let mut slots = SlotSet::EMPTY;
        {
            let members = core.members.borrow();
            let mut known = core.ports.borrow_mut();
            for (place, slot) in known.iter_mut().zip(SlotNumber::all()) {
                let id = members.record().replica(slot).map(|entry| entry.id);
                let port = ports.iter().find(|(name, _)| Some(*name) == id);
                *place = port.map(|(_, port)| port.clone());
                if id.is_some_and(|id| leaving.contains(&id)) {
                    slots.insert(slot);
                }
            }
        }
        core.leaving.set(slots);
        for slot in slots.iter() {
            core.fail(slot);
        }
        core.wake();
    }
}
