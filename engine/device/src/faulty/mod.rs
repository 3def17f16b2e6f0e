//! Another device, with faults: errors, delays, stuck requests, torn and lost writes, changed bits.
//!
//! `faulty:///URI?OPERATION.FAULT=VALUE;CONDITION=VALUE...&seed=NUMBER`, where the parameters of the inner
//! device have `inner.` in front:
//!
//! ```text
//! faulty:///malloc:///scratch?inner.size=1GiB&read.error=media-read;probability=0.001&seed=7
//! faulty:///uring:///data/disk.img?write.torn=3;nth=1000&flush.lost=true&any.delay=1ms..5ms;every=100
//! ```
//!
//! Operations: `read`, `write`, `flush`, `deallocate`, `write-zeroes`, `compare`, `any`. Faults: `error=` and
//! `error-after=` one of the errors of [`ERROR_NAMES`], `delay=` a time or two with `..` between,
//! `stuck=true`, `torn=true` or a number of sectors of 512 bytes, `lost=true`, `flip=` a number of bits.
//! Conditions: `blocks=FIRST-LAST`, `skip=`, `every=`, `times=` and `nth=` a number, `probability=` from 0 to
//! 1.
//!
//! Without rules a request goes straight to the inner device. What strikes one request is done in this order:
//! it is stuck, delayed, fails, is lost, torn or has bits changed, and fails after all.

mod faults;
mod queue;
mod uri;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::events::Subscription;
use crate::geometry::Geometry;
use crate::grow::Growing;
use crate::registry::{Opener, Opening, Registry};
use crate::uri::DeviceUri;
use crate::{Attaching, BlockDevice, Device, Health};

pub use faults::{Fault, FaultCounts, Faults, Operation, RULES_MAX, Release, Rule, When};
pub use uri::ERROR_NAMES;

/// A device around another one that makes faults.
pub struct FaultyDevice {
    inner: Arc<dyn Device>,
    faults: Faults,
    media_errors: Arc<AtomicU64>,
}

impl FaultyDevice {
    /// A device around `inner`, which goes by the same name.
    pub fn new(inner: Arc<dyn Device>, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            inner,
            faults,
            media_errors: Arc::default(),
        })
    }

    /// Its faults, to be changed at any time.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Device for FaultyDevice {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let inner = self.inner.clone().attach().await?;
            let queue = queue::FaultyQueue::new(inner, self.faults.clone(), self.media_errors.clone());
            Ok(Rc::new(queue) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.inner.subscribe()
    }

    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        self.inner.clone().grow_to(bytes)
    }

    fn has_lost_caches(&self) -> bool {
        self.inner.has_lost_caches()
    }

    fn health(&self) -> Health {
        let inner = self.inner.health();
        let injected = self.media_errors.load(Ordering::Relaxed);
        Health {
            media_errors: inner.media_errors.saturating_add(injected),
            ..inner
        }
    }
}

/// Opens `faulty` devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultyOpener;

impl Opener for FaultyOpener {
    fn open<'a>(&'a self, registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(async move {
            let faults = uri::read(uri)?;
            let inner = registry.open(&uri.inner()?).await?;
            Ok(FaultyDevice::new(inner, faults) as Arc<dyn Device>)
        })
    }
}
