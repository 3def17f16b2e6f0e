//! The records of a store in memory, for those who look at all of them to answer a call.
//!
//! Invariants:
//! - Whoever asks sees all that was committed before, by whomever; and what others have read before.
//! - It is only looked at: what is decided by it has to have its conditions in its transaction, as what is
//!   read from the store.
//! - All who ask at a time share one question to the store, and none waits for one that began before.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{RwLock, mpsc, oneshot};

use crate::controller::{Clock, Observations};
use crate::following::Following;
use crate::store::{Change, Store, StoreError};
use crate::world::World;

/// How long changes may take to be told by the store, before all records are read instead.
const CHANGES_PATIENCE: Duration = Duration::from_millis(250);

/// Who waits until the view is as new as the store is.
type Asked = oneshot::Sender<Result<(), StoreError>>;

/// See the module. Clones are the same view; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct View {
    parts: Parts,
    world: Arc<RwLock<World>>,
    /// Once somebody has asked.
    asking: Arc<OnceLock<mpsc::UnboundedSender<Asked>>>,
}

/// What is looked at.
#[derive(Debug, Clone)]
struct Parts {
    store: Arc<dyn Store>,
    observations: Arc<Observations>,
    clock: Arc<dyn Clock>,
}

impl View {
    /// Of a store and what engines tell. Nothing is read before somebody asks.
    pub fn new(store: Arc<dyn Store>, observations: Arc<Observations>, clock: Arc<dyn Clock>) -> Self {
        Self {
            parts: Parts {
                store,
                observations,
                clock,
            },
            world: Arc::default(),
            asking: Arc::default(),
        }
    }

    /// Looks at all records, as they are now or later, and at what engines told last.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn read<T>(&self, look: impl FnOnce(&World) -> T) -> Result<T, StoreError> {
        let asking = self.asking.get_or_init(|| {
            let (asking, asked) = mpsc::unbounded_channel();
            let follower = Follower {
                parts: self.parts.clone(),
                world: self.world.clone(),
                following: None,
                seen_revision: 0,
            };
            tokio::spawn(follower.run(asked));
            asking
        });
        let ended = || StoreError::Unavailable("the view of it has ended".to_owned());
        let (ask, answered) = oneshot::channel();
        asking.send(ask).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())??;
        Ok(look(&*self.world.read().await))
    }
}

/// Keeps a view as new as the store is.
struct Follower {
    parts: Parts,
    world: Arc<RwLock<World>>,
    /// Nothing before the first question, and after the store has failed.
    following: Option<Following>,
    /// The newest revision that the store has told.
    seen_revision: u64,
}

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Follower").finish_non_exhaustive()
    }
}

impl Follower {
    /// Until nobody can ask any more.
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Asked>) {
        loop {
            tokio::select! {
                first = asked.recv() => {
                    let Some(first) = first else { return };
                    let mut all = vec![first];
                    while let Ok(next) = asked.try_recv() {
                        all.push(next);
                    }
                    let done = self.refresh().await;
                    for asked in all {
                        // Who was cut off does not want to know.
                        let _ = asked.send(done.clone());
                    }
                }
                // Also while nobody asks: what nobody takes off a connection keeps others of it waiting.
                next = next(&mut self.following) => {
                    if let Err(error) = self.take(next).await {
                        tracing::debug!(%error, "records are not followed: they will be read anew");
                        self.following = None;
                    }
                }
            }
        }
    }

    async fn take(&mut self, next: Result<Vec<Change>, StoreError>) -> Result<(), StoreError> {
        match &mut self.following {
            Some(following) => following.take(&mut *self.world.write().await, next).await,
            None => Ok(()),
        }
    }

    /// Makes the view as new as the store is now.
    async fn refresh(&mut self) -> Result<(), StoreError> {
        let done = self.try_refresh().await;
        if done.is_err() {
            self.following = None;
        }
        done
    }

    async fn try_refresh(&mut self) -> Result<(), StoreError> {
        let revision = self.parts.store.revision().await?;
        // Somebody has put older data in its place.
        if revision < self.seen_revision {
            self.following = None;
        }
        self.seen_revision = revision;
        let now = self.parts.clock.now_unix_us();
        let mut world;
        match &mut self.following {
            Some(following) => {
                world = self.world.write().await;
                let reached = following.reach(&mut world, revision, CHANGES_PATIENCE).await;
                // Whoever follows no more, for a history that is gone or a connection, begins anew.
                if let Err(error) = reached {
                    tracing::debug!(%error, "records are read anew");
                    let (following, anew) = Following::begin(self.parts.store.clone(), now).await?;
                    *world = anew;
                    self.following = Some(following);
                }
            }
            None => {
                let (following, anew) = Following::begin(self.parts.store.clone(), now).await?;
                self.following = Some(following);
                world = self.world.write().await;
                *world = anew;
            }
        }
        world.now_unix_us = now;
        world.observing_since_unix_us = now;
        world.reports = self.parts.observations.all(now, self.parts.clock.steady_us());
        Ok(())
    }
}

/// The next changes, if any are followed.
async fn next(following: &mut Option<Following>) -> Result<Vec<Change>, StoreError> {
    match following {
        Some(following) => following.next().await,
        None => std::future::pending().await,
    }
}
