//! A store that is away, slow, loses answers, and gets to requests late.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use pollux_reactor::sleep;
use pollux_volume::membership::{Membership, MembershipStore, MemoryStore, StoreError, StoreFuture};
use uuid::Uuid;

use crate::random::Random;
use crate::{Control, MachineId};

/// The store as one machine sees it.
#[derive(Clone)]
pub(super) struct SimStore {
    pub(super) records: MemoryStore,
    pub(super) control: Control,
    /// Where it runs, for the network.
    pub(super) machine: MachineId,
    /// Who asks.
    pub(super) client: MachineId,
    pub(super) random: Rc<RefCell<Random>>,
    /// Nothing goes wrong but the network any more.
    pub(super) calm: Rc<Cell<bool>>,
}

impl SimStore {
    fn is_cut(&self, from: MachineId, to: MachineId) -> bool {
        self.control.link(from, to).blocked
    }

    fn draw(&self, probability: f64) -> bool {
        !self.calm.get() && self.random.borrow_mut().chance(probability)
    }

    async fn travel(&self, from: MachineId, to: MachineId) -> Result<(), StoreError> {
        let span = self
            .random
            .borrow_mut()
            .duration(Duration::ZERO..=Duration::from_millis(2));
        sleep(span).await;
        if self.is_cut(from, to) || self.draw(0.01) {
            // Whoever asked waits for its time to be over.
            sleep(Duration::from_millis(500)).await;
            return Err(StoreError::Unavailable);
        }
        Ok(())
    }
}

impl MembershipStore for SimStore {
    fn load(&self, volume: Uuid) -> StoreFuture<Membership> {
        let store = self.clone();
        Box::pin(async move {
            store.travel(store.client, store.machine).await?;
            let result = store.records.get(volume);
            store.travel(store.machine, store.client).await?;
            result
        })
    }

    fn compare_and_swap(&self, next: Membership) -> StoreFuture<()> {
        let store = self.clone();
        Box::pin(async move {
            if let Err(error) = store.travel(store.client, store.machine).await {
                if store.draw(0.3) {
                    // It was not lost, only late: nobody waits for it any more.
                    let records = store.records.clone();
                    let span = store
                        .random
                        .borrow_mut()
                        .duration(Duration::ZERO..=Duration::from_secs(10));
                    store.control.after(span, move || drop(records.swap(next)));
                }
                return Err(error);
            }
            let result = store.records.swap(next);
            store.travel(store.machine, store.client).await?;
            result
        })
    }
}
