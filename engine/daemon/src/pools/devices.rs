//! The devices of pools that are open: more of them, others, fewer.
//!
//! What takes long is done by the owner of the pool, and ends when `unwanted` says that nobody waits for it
//! any more. What the pool has by then is noted here in any case.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::{mpsc, oneshot};
use futures_util::future::{Either, select};
use pollux_device::{Device, DeviceUri, IoError};
use pollux_pool::{Drained, Pool, PoolError, ReplaceProgress, Replaced, Unreadable};
use uuid::Uuid;

use super::{OpenPool, Pools, PoolsError, Refusal, attach, inspect, parse};

/// How far a change is: bytes that are done, and all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HowFar {
    /// Bytes that are done.
    pub(crate) done_bytes: u64,
    /// Bytes that there were when it began.
    pub(crate) total_bytes: u64,
}

/// What is to become of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Removal {
    /// It gives what it has to the others, and leaves.
    Drain(Unreadable),
    /// It stays after all.
    CallOff,
}

/// Who waits for a change: is told how far it is, and ends it by going away.
pub(crate) struct Waiting {
    /// Is told.
    pub(crate) tell: mpsc::Sender<HowFar>,
    /// Ends with whoever waits.
    pub(crate) unwanted: oneshot::Receiver<Infallible>,
}

/// A device that comes to a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDevice {
    /// Its URI.
    pub uri: String,
    /// Its content may be lost.
    pub overwrite: bool,
}

impl Pools {
    /// Uses all of the devices of a pool; the numbers of those that have become larger.
    ///
    /// # Errors
    ///
    /// [`PoolsError`].
    pub async fn grow(&self, name: &str) -> Result<Vec<u8>, PoolsError> {
        let grown = self.with(name, |pool| async move { pool.grow().await }).await?;
        Ok(grown.into_iter().map(|grown| grown.number).collect())
    }

    /// Adds a device to a pool.
    ///
    /// # Errors
    ///
    /// [`PoolsError`]: the device is no part of the pool then.
    pub async fn add_device(&self, name: &str, new: NewDevice) -> Result<OpenPool, PoolsError> {
        let pool = self.get(name)?;
        let (uri, device) = self.open_for(&pool, &new).await?;
        let opened = device.clone();
        let added = pool.shared.call(move |pool| async move {
            let devices = attach(vec![opened]).await?;
            inspect::prepare(&devices, &[new.overwrite]).await?;
            for device in devices {
                // What it holds is given up, or nothing.
                pool.add_device(device, true).await?;
            }
            Ok::<_, Refusal>(())
        });
        let added = added.await?;
        added.map_err(|refusal| PoolsError::of_devices(std::slice::from_ref(&uri), refusal))?;
        self.note_devices(name, Some((uri, device))).await?;
        // Where there was one device, both copies of its metadata are there.
        let spread = self.with(name, |pool| async move { pool.spread_metadata().await });
        if let Err(error) = spread.await {
            tracing::warn!(pool = name, %error, "both copies of some metadata are left on one device");
        }
        self.get(name)
    }

    /// Has a device take the place of another one.
    ///
    /// # Errors
    ///
    /// [`PoolsError`]: the pool has the old device.
    pub(crate) async fn replace_device(
        &self,
        name: &str,
        number: u8,
        new: NewDevice,
        waiting: Waiting,
    ) -> Result<Replaced, PoolsError> {
        let pool = self.get(name)?;
        let (uri, device) = self.open_for(&pool, &new).await?;
        let opened = device.clone();
        let replaced = pool.shared.call(move |pool| async move {
            let devices = attach(vec![opened]).await?;
            inspect::prepare(&devices, &[new.overwrite]).await?;
            let device = devices.into_iter().next().ok_or(IoError::Gone)?;
            let Waiting { tell, unwanted } = waiting;
            let mut told = copied(tell);
            let replacing = pin!(pool.replace_device(number, device, true, &mut told));
            Ok::<_, Refusal>(unless_unwanted(replacing, unwanted).await?)
        });
        let replaced = replaced.await?;
        // It may have been done right before nobody waited for it any more.
        self.note_devices(name, Some((uri.clone(), device))).await?;
        replaced.map_err(|refusal| match refusal {
            Refusal::Pool(source @ (PoolError::NoDevice { .. } | PoolError::DevicesChanging)) => {
                PoolsError::of_pool(name, source)
            }
            refusal => PoolsError::of_devices(std::slice::from_ref(&uri), refusal),
        })
    }

    /// Takes a device out of a pool, or lets it stay after all.
    ///
    /// # Errors
    ///
    /// [`PoolsError`].
    pub(crate) async fn remove_device(
        &self,
        name: &str,
        number: u8,
        removal: Removal,
        waiting: Waiting,
    ) -> Result<Drained, PoolsError> {
        // Which may be this one.
        self.drains.end(name).await;
        match removal {
            Removal::Drain(unreadable) => self.drain(name, number, unreadable, waiting).await,
            Removal::CallOff => {
                let cancel = move |pool: Rc<Pool>| async move { pool.cancel_drain(number).await };
                self.with(name, cancel).await?;
                Ok(Drained::default())
            }
        }
    }

    /// Has a device give what it has to the others, and leave.
    ///
    /// # Errors
    ///
    /// [`PoolsError`].
    pub(super) async fn drain(
        &self,
        name: &str,
        number: u8,
        unreadable: Unreadable,
        waiting: Waiting,
    ) -> Result<Drained, PoolsError> {
        let removed = self.with(name, move |pool: Rc<Pool>| async move {
            let Waiting { mut tell, unwanted } = waiting;
            let mut told = |progress: pollux_pool::DrainProgress| {
                let _ = tell.try_send(HowFar {
                    done_bytes: progress.total_bytes.saturating_sub(progress.left_bytes),
                    total_bytes: progress.total_bytes,
                });
            };
            let draining = pin!(pool.drain_device(number, unreadable, &mut told));
            unless_unwanted(draining, unwanted).await
        });
        let removed = removed.await;
        self.note_devices(name, None).await?;
        removed
    }

    /// Opens a device where a pool is.
    async fn open_for(
        &self,
        pool: &OpenPool,
        new: &NewDevice,
    ) -> Result<(DeviceUri, Arc<dyn Device>), PoolsError> {
        let uris = parse(std::slice::from_ref(&new.uri))?;
        let devices = self.open_devices(pool.shared.owner(), &uris).await?;
        let both = uris.into_iter().zip(devices).next();
        both.ok_or(PoolsError::NoReactor)
    }

    /// Keeps of the devices that a pool had, and of one more, those that it has now.
    async fn note_devices(
        &self,
        name: &str,
        new: Option<(DeviceUri, Arc<dyn Device>)>,
    ) -> Result<(), PoolsError> {
        let pool = self.get(name)?;
        let fresh = new.as_ref().map(|(_, device)| device.clone());
        let asked = pool.shared.call(move |pool| async move {
            // What was handed over by then is so to its end, though nobody waits for it any more.
            pool.until_changed().await;
            let ids: Vec<Uuid> = pool.devices().iter().map(|device| device.uuid).collect();
            let fresh = super::ids_of(fresh.into_iter().collect()).await?;
            Ok::<_, PoolError>((ids, fresh))
        });
        let asked = asked.await?;
        let (ids, fresh) = asked.map_err(|source| PoolsError::of_pool(name, source))?;
        self.keep_devices(name, &ids, fresh.into_iter().zip(new));
        let is_named = self.get(name).is_ok_and(|pool| !pool.named.is_empty());
        if is_named || self.memory.has(name).await {
            self.remember(name).await;
        }
        Ok(())
    }

    fn keep_devices(
        &self,
        name: &str,
        ids: &[Uuid],
        fresh: impl Iterator<Item = (Uuid, (DeviceUri, Arc<dyn Device>))>,
    ) {
        let mut open = self.open();
        let Some(pool) = open.get_mut(name) else {
            // It was closed meanwhile.
            return;
        };
        let known = pool
            .ids
            .iter()
            .copied()
            .zip(pool.uris.iter().cloned().zip(pool.devices.iter().cloned()));
        let all: Vec<_> = known.chain(fresh).filter(|(id, _)| ids.contains(id)).collect();
        pool.ids = all.iter().map(|(id, _)| *id).collect();
        pool.uris = all.iter().map(|(_, (uri, _))| uri.clone()).collect();
        pool.devices = all.into_iter().map(|(_, (_, device))| device).collect();
    }
}

/// Tells how far a copy of a device is.
pub(super) fn copied(mut tell: mpsc::Sender<HowFar>) -> impl FnMut(ReplaceProgress) {
    move |progress| {
        // What is not taken in time is old soon.
        let _ = tell.try_send(HowFar {
            done_bytes: progress.copied_bytes,
            total_bytes: progress.total_bytes,
        });
    }
}

/// The outcome of a change, or an end of it when nobody waits any more.
pub(super) async fn unless_unwanted<T>(
    change: impl Future<Output = Result<T, PoolError>> + Unpin,
    unwanted: oneshot::Receiver<Infallible>,
) -> Result<T, PoolError> {
    match select(change, unwanted).await {
        Either::Left((result, _)) => result,
        // Nobody takes the answer.
        Either::Right(_) => Err(PoolError::Closed),
    }
}
