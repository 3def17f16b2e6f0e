//! A store in memory: for tests, and for volumes that end with their process.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::ready;
use std::rc::Rc;

use uuid::Uuid;

use super::{Membership, MembershipStore, StoreError, StoreFuture};

/// See the module. Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Rc<RefCell<BTreeMap<Uuid, Membership>>>);

impl MemoryStore {
    /// The record now.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoVolume`].
    pub fn get(&self, volume: Uuid) -> Result<Membership, StoreError> {
        let records = self.0.borrow();
        records.get(&volume).cloned().ok_or(StoreError::NoVolume(volume))
    }

    /// See [`MembershipStore::compare_and_swap`].
    ///
    /// # Errors
    ///
    /// [`StoreError`], never [`StoreError::Unavailable`].
    pub fn swap(&self, next: Membership) -> Result<(), StoreError> {
        let mut records = self.0.borrow_mut();
        match records.get(&next.volume) {
            Some(current) if Some(next.version) != current.version.checked_add(1) => {
                return Err(StoreError::Conflict(Box::new(current.clone())));
            }
            Some(current) => next.check_follows(current)?,
            None if next.version != 1 => return Err(StoreError::NoVolume(next.volume)),
            None => next.check()?,
        }
        records.insert(next.volume, next);
        Ok(())
    }
}

impl MembershipStore for MemoryStore {
    fn load(&self, volume: Uuid) -> StoreFuture<Membership> {
        Box::pin(ready(self.get(volume)))
    }

    fn compare_and_swap(&self, next: Membership) -> StoreFuture<()> {
        Box::pin(ready(self.swap(next)))
    }
}
