//! Records as they change: a store is listed once, and its changes are followed from there.
//!
//! One way for all who keep a [`World`]: the controller, which plans by it, and the
//! [`View`](crate::view::View) that calls are answered from.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::store::{Change, Store, StoreError, Watcher};
use crate::world::World;

/// The changes of a store, for a world that has all of them.
pub(crate) struct Following {
    store: Arc<dyn Store>,
    watcher: Box<dyn Watcher>,
}

impl fmt::Debug for Following {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Following");
        shown.field("store", &self.store).finish_non_exhaustive()
    }
}

impl Following {
    /// All records, and what becomes of them.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) async fn begin(store: Arc<dyn Store>, now_unix_us: u64) -> Result<(Self, World), StoreError> {
        let (world, watcher) = read(&*store, now_unix_us).await?;
        Ok((Self { store, watcher }, world))
    }

    /// The next changes, for [`Following::take`]. Who does not wait until it returns misses nothing by that.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        self.watcher.next().await
    }

    /// Applies what came next; if changes were missed, all records are read anew.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) async fn take(
        &mut self,
        world: &mut World,
        next: Result<Vec<Change>, StoreError>,
    ) -> Result<(), StoreError> {
        match next {
            Ok(changes) => changes.iter().try_for_each(|change| world.apply(change)),
            Err(StoreError::HistoryGone { .. }) => self.reload(world).await,
            Err(error) => Err(error),
        }
    }

    /// Applies the changes that are there already.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) async fn catch_up(&mut self, world: &mut World) -> Result<(), StoreError> {
        loop {
            let next = {
                let mut next = pin!(self.next());
                poll_fn(|task| Poll::Ready(next.as_mut().poll(task))).await
            };
            match next {
                Poll::Ready(changes) => self.take(world, changes).await?,
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Applies changes until those of a revision are there. If they do not come in time, all records are read
    /// anew.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) async fn reach(
        &mut self,
        world: &mut World,
        revision: u64,
        patience: Duration,
    ) -> Result<(), StoreError> {
        while world.revision < revision {
            match tokio::time::timeout(patience, self.next()).await {
                Ok(changes) => self.take(world, changes).await?,
                Err(_) => self.reload(world).await?,
            }
        }
        Ok(())
    }

    /// Reads all records anew. What was observed stays.
    async fn reload(&mut self, world: &mut World) -> Result<(), StoreError> {
        let (mut anew, watcher) = read(&*self.store, world.now_unix_us).await?;
        anew.observing_since_unix_us = world.observing_since_unix_us;
        anew.reports = std::mem::take(&mut world.reports);
        anew.failures = std::mem::take(&mut world.failures);
        anew.pool_refusals = std::mem::take(&mut world.pool_refusals);
        anew.unheard = std::mem::take(&mut world.unheard);
        anew.silent = std::mem::take(&mut world.silent);
        *world = anew;
        self.watcher = watcher;
        Ok(())
    }
}

async fn read(store: &dyn Store, now_unix_us: u64) -> Result<(World, Box<dyn Watcher>), StoreError> {
    let listing = store.list_all("/").await?;
    let watcher = store.watch("/", listing.revision).await?;
    Ok((World::load(&listing, now_unix_us)?, watcher))
}
