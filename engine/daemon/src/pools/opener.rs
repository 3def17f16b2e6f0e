//! `pool://POOL/VOLUME`: a volume or snapshot of a pool that is open in this process.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use pollux_device::uri::UriError;
use pollux_device::{Device, DeviceUri, OpenError, Opener, Opening, Registry};

use super::{Pools, PoolsError};

/// The scheme of volumes of pools.
pub const SCHEME: &str = "pool";

/// Opens volumes and snapshots of pools that are open.
pub struct PoolOpener {
    pools: Arc<Pools>,
}

impl PoolOpener {
    /// Adds the scheme to a registry.
    pub fn register(pools: Arc<Pools>, registry: &mut Registry) {
        registry.register(SCHEME, Arc::new(Self { pools }));
    }

    async fn open(&self, uri: &DeviceUri) -> Result<Arc<dyn Device>, OpenError> {
        uri.parameters().finish()?;
        let (pool, volume) = names(uri)?;
        let failed = |error| OpenError::failed(uri, error);
        let pool = self.pools.get(&pool).map_err(failed)?;
        let device = pool.shared.device(&volume).await;
        let device = device.map_err(|error| failed(PoolsError::of_shared(pool.shared.name(), error)))?;
        Ok(device)
    }
}

impl Opener for PoolOpener {
    fn open<'a>(&'a self, _registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(self.open(uri))
    }
}

/// The names of the pool and of the volume.
pub(crate) fn names(uri: &DeviceUri) -> Result<(String, String), UriError> {
    let wrong = || UriError::Name {
        uri: uri.to_string(),
        reason: "a volume of a pool is pool://POOL/VOLUME",
    };
    let host = uri.host().ok_or_else(wrong)?;
    let pool = percent_decode_str(host).decode_utf8().map_err(|_| wrong())?;
    let volume = uri.path();
    if volume.is_empty() || volume.contains('/') || uri.port().is_some() {
        return Err(wrong());
    }
    Ok((pool.into_owned(), volume))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<(String, String), UriError> {
        names(&text.parse()?)
    }

    #[test]
    fn names_are_taken_apart() {
        for (text, pool, volume) in [
            ("pool://tank/db", "tank", "db"),
            ("pool://Tank/Db", "Tank", "Db"),
            ("pool://my%20tank/my%20db", "my tank", "my db"),
        ] {
            assert_eq!(of(text), Ok((pool.to_owned(), volume.to_owned())), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "pool:///db",
            "pool://tank",
            "pool://tank/",
            "pool://tank/a/b",
            "pool://tank:1/db",
        ] {
            let error = of(text).expect_err(text).to_string();
            assert!(error.contains("pool://POOL/VOLUME"), "{error}");
        }
    }
}
