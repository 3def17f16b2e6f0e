//! Devices that were leaving their pools when the engine ended, or their pools were closed: that goes on by
//! itself when the pool is open again. Whoever asks for it again takes over, and sees how it gets on; so
//! does who calls it off.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::{mpsc, oneshot};
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use pollux_pool::layout::superblock::DeviceState;
use pollux_pool::{PoolError, Unreadable};
use tokio::task::JoinHandle;

use super::{OpenPool, Pools, PoolsError, Waiting};

/// What goes on by itself, by the names of pools.
#[derive(Default)]
pub(super) struct Drains(Mutex<BTreeMap<String, Drain>>);

struct Drain {
    /// Its end is that of the drain.
    wanted: oneshot::Sender<Infallible>,
    task: JoinHandle<()>,
}

impl Drains {
    /// Whether something goes on in a pool.
    fn has(&self, pool: &str) -> bool {
        let drains = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drains.get(pool).is_some_and(|drain| !drain.task.is_finished())
    }

    fn put(&self, pool: &str, drain: Drain) {
        let mut drains = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drains.insert(pool.to_owned(), drain);
    }

    /// Ends what goes on in a pool, if anything does.
    pub(super) async fn end(&self, pool: &str) {
        let drain = {
            let mut drains = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            drains.remove(pool)
        };
        if let Some(Drain { wanted, task }) = drain {
            drop(wanted);
            // It tells itself how it ended.
            let _ = task.await;
        }
    }
}

impl Pools {
    /// Goes on with devices that are leaving a pool that was just opened.
    pub async fn go_on_draining(self: &Arc<Self>, pool: &OpenPool) {
        let name = pool.shared.name().to_owned();
        // A command that has a pool to itself begins it when it is asked to. And the pool may have been open.
        if pool.report.read_only || !self.keeps_open || self.drains.has(&name) {
            return;
        }
        if leaving(pool).await.is_none() {
            return;
        }
        let (wanted, unwanted) = oneshot::channel();
        let (pools, pool) = (self.clone(), pool.clone());
        let task = tokio::spawn(async move { pools.drain_all(&pool, unwanted).await });
        self.drains.put(&name, Drain { wanted, task });
    }

    /// Drains what is to be drained, one after the other, until that is not wanted any more.
    async fn drain_all(&self, pool: &OpenPool, unwanted: oneshot::Receiver<Infallible>) {
        let name = pool.shared.name();
        let unwanted = unwanted.shared();
        while let Some(number) = leaving(pool).await {
            tracing::info!(pool = name, device = number, "a device goes on leaving the pool");
            let (wanted, until) = oneshot::channel();
            // Nobody is told how far it is.
            let (tell, _) = mpsc::channel(1);
            let waiting = Waiting {
                tell,
                unwanted: until,
            };
            let draining = pin!(self.drain(name, number, Unreadable::Stay, waiting));
            let drained = match select(draining, unwanted.clone()).await {
                Either::Left((drained, _)) => drained,
                Either::Right((_, draining)) => {
                    drop(wanted);
                    draining.await
                }
            };
            match drained {
                // The pool tells that it has left.
                Ok(_) => {}
                // It is not wanted any more, or not here.
                Err(PoolsError::Pool { source, .. }) if *source == PoolError::Closed => return,
                Err(PoolsError::NotOpen { .. }) => return,
                Err(error) => {
                    tracing::warn!(pool = name, device = number, %error, "a device has not left the pool");
                    return;
                }
            }
        }
    }
}

/// A device that is leaving a pool, if there is one.
async fn leaving(pool: &OpenPool) -> Option<u8> {
    let members = pool.shared.call(|pool| async move { pool.devices() }).await;
    let mut members = members.ok()?.into_iter();
    let leaving = members.find(|member| member.state == DeviceState::Draining)?;
    Some(leaving.number)
}
