//! What volumes have their data on, and share by weight.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pollux_device::DeviceUri;
use pollux_volume::qos::Backend;

use crate::pools;

/// The backends of the volumes that are served, by the names of their pools.
#[derive(Default)]
pub struct Backends {
    known: Mutex<BTreeMap<String, Weak<Backend>>>,
}

impl Backends {
    /// That of a device: of one of a pool the pool. Any other is used by one volume only, which shares
    /// nothing.
    pub fn of_device(&self, uri: &DeviceUri) -> Option<Arc<Backend>> {
        if uri.scheme() != pools::SCHEME {
            return None;
        }
        let (pool, _) = pools::names(uri).ok()?;
        Some(self.of_pool(&pool))
    }

    fn of_pool(&self, pool: &str) -> Arc<Backend> {
        // A map of names is never left half done.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, backend| backend.strong_count() > 0);
        if let Some(backend) = known.get(pool).and_then(Weak::upgrade) {
            return backend;
        }
        let backend = Backend::new(pool);
        known.insert(pool.to_owned(), Arc::downgrade(&backend));
        backend
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_of_a_pool_share_it_and_nothing_else() {
        let backends = Backends::default();
        let of = |uri: &str| backends.of_device(&DeviceUri::parse(uri).expect("a device"));
        let (one, two) = (of("pool://fast/a").expect("a pool"), of("pool://fast/b"));
        assert!(two.is_some_and(|two| Arc::ptr_eq(&one, &two)));
        assert_eq!(one.name(), "fast");
        assert!(of("pool://slow/a").is_some_and(|other| !Arc::ptr_eq(&one, &other)));
        assert!(of("malloc:///m?size=1MiB").is_none());
    }
}
