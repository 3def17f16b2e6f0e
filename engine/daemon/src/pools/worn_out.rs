//! A device that takes no writes any more is replaced: of a pool that is not open here, since it could not
//! be, or has stopped and was exported.

use std::pin::pin;
use std::sync::Arc;

use pollux_device::{Device, DeviceUri, IoError};
use pollux_pool::{Pool, PoolError, PoolOptions, Replaced};
use pollux_reactor::ReactorHandle;

use super::devices::{NewDevice, Waiting, copied, unless_unwanted};
use super::{Pools, PoolsError, Refusal, attach, inspect, parse, without_writes};

/// The pool, and which device of it.
pub(crate) struct WornOut {
    /// The name of the pool.
    pub(crate) pool: String,
    /// The URIs of all its devices.
    pub(crate) devices: Vec<String>,
    /// The number of the one that is to be replaced.
    pub(crate) number: u8,
}

impl Pools {
    /// Has a device take the place of one that can be read. The pool is not open afterwards.
    ///
    /// # Errors
    ///
    /// [`PoolsError`]: the pool has the old device.
    pub(crate) async fn replace_worn_out(
        &self,
        worn_out: WornOut,
        new: NewDevice,
        waiting: Waiting,
    ) -> Result<Replaced, PoolsError> {
        if self.get(&worn_out.pool).is_ok() {
            return Err(PoolsError::NameTaken { name: worn_out.pool });
        }
        let uris = parse(&worn_out.devices)?;
        let new_uri = parse(std::slice::from_ref(&new.uri))?;
        let reactor = self.reactors.first().ok_or(PoolsError::NoReactor)?;
        let members = self.open_perhaps_writable(reactor, &uris).await?;
        let opened = self.open_devices(reactor, &new_uri).await?;
        let overwrite = new.overwrite;
        let prepared = opened.clone();
        let prepared = reactor
            .call(move || async move { inspect::prepare(&attach(prepared).await?, &[overwrite]).await });
        let prepared = prepared.await?;
        prepared.map_err(|refusal| PoolsError::of_devices(&new_uri, refusal))?;
        let name = worn_out.pool.clone();
        let replaced = reactor.call(move || async move {
            let members = attach(members).await?;
            let device = attach(opened).await?.into_iter().next().ok_or(IoError::Gone)?;
            let (pool, _) = Pool::import_read_only(members.clone(), PoolOptions::default()).await?;
            if pool.name() != name {
                return Ok(Err(pool.name().to_owned()));
            }
            let Waiting { tell, unwanted } = waiting;
            let mut told = copied(tell);
            let number = worn_out.number;
            let replacing = pool.replace_device_read_only(number, device, members, true, &mut told);
            let replaced = unless_unwanted(pin!(replacing), unwanted).await;
            Ok::<_, PoolError>(Ok(replaced?))
        });
        let replaced = replaced.await?;
        let replaced = replaced.map_err(|error| PoolsError::of_devices(&uris, Refusal::Pool(error)))?;
        replaced.map_err(|found| PoolsError::OtherName {
            name: worn_out.pool,
            found,
        })
    }

    /// Opens devices, of which the system may let some be opened for reading only.
    async fn open_perhaps_writable(
        &self,
        reactor: &ReactorHandle,
        uris: &[DeviceUri],
    ) -> Result<Vec<Arc<dyn Device>>, PoolsError> {
        let mut opened = Vec::new();
        for uri in uris {
            let device = match self.open_devices(reactor, std::slice::from_ref(uri)).await {
                Ok(device) => device,
                Err(error) => {
                    let readable = self.open_devices(reactor, &[without_writes(uri)]).await;
                    readable.map_err(|_| error)?
                }
            };
            opened.extend(device);
        }
        Ok(opened)
    }
}
