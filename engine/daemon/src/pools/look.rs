//! Looking at devices before anything is made of them.

use pollux_pool::{Pool, PoolError};

use super::{Pools, PoolsError, Refusal, attach, parse};
use crate::settings::PoolSettings;

impl Pools {
    /// The name of the pool that devices hold, as the first that has a label tells; nothing if none has one.
    /// Nothing is written.
    ///
    /// # Errors
    ///
    /// [`PoolsError`].
    pub async fn label(&self, settings: &PoolSettings) -> Result<Option<String>, PoolsError> {
        let _one_at_a_time = self.changes.lock().await;
        let uris = parse(&settings.devices)?;
        let reactor = self.reactors.first().ok_or(PoolsError::NoReactor)?;
        let devices = self.open_devices(reactor, &uris).await?;
        let looked = reactor.call(move || async move {
            for device in attach(devices).await? {
                match Pool::label(device).await {
                    Ok(label) => return Ok(Some(label.name)),
                    Err(PoolError::NoPool { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok::<_, Refusal>(None)
        });
        let looked = looked.await?;
        looked.map_err(|refusal| PoolsError::of_devices(&uris, refusal))
    }
}
