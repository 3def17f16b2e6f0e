//! The devices that are measured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pollux_device::metered::Measured;
use pollux_device::{Device, Health, MeteredDevice};
use pollux_volume::qos::{Throttle, Throttled, ThrottledDevice};

/// What a device is to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Hosts use it.
    Volume,
    /// Targets use it.
    Replica,
    /// Pools are on it.
    Drive,
}

/// A device as it was measured.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// What it is.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// Its size now, in bytes.
    pub size_bytes: u64,
    /// What was counted.
    pub measured: Measured,
    /// What it knows of its own health.
    pub health: Health,
    /// What was held of what hosts asked of it; of volumes only.
    pub throttled: Option<Throttled>,
}

/// A device as long as anybody uses it, and its limits if it has any.
struct Metered {
    device: Weak<MeteredDevice>,
    throttle: Option<Arc<Throttle>>,
}

/// The devices that are measured, as long as anybody uses them.
#[derive(Default)]
pub struct Meters {
    devices: Mutex<BTreeMap<(Role, String), Metered>>,
}

impl Meters {
    /// The device, measured from now on.
    pub fn wrap(&self, role: Role, name: &str, device: Arc<dyn Device>) -> Arc<dyn Device> {
        self.insert(role, name, device, None)
    }

    /// A volume, measured from now on, and with limits that can be set. The time for which requests are
    /// held counts as time that they take.
    pub fn wrap_volume(&self, name: &str, device: Arc<dyn Device>) -> (Arc<dyn Device>, Arc<Throttle>) {
        let throttled = ThrottledDevice::new(device);
        let throttle = throttled.throttle().clone();
        let metered = self.insert(Role::Volume, name, throttled, Some(throttle.clone()));
        (metered, throttle)
    }

    fn insert(
        &self,
        role: Role,
        name: &str,
        device: Arc<dyn Device>,
        throttle: Option<Arc<Throttle>>,
    ) -> Arc<dyn Device> {
        let metered = MeteredDevice::new(device);
        // A map of names is never left half done.
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|_, metered| metered.device.strong_count() > 0);
        let device = Arc::downgrade(&metered);
        devices.insert((role, name.to_owned()), Metered { device, throttle });
        metered
    }

    /// All of them, by role and name.
    pub fn read(&self) -> Vec<Measurement> {
        let devices: Vec<_> = {
            let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
            let present = devices.iter().filter_map(|(key, metered)| {
                let throttled = metered.throttle.as_ref().map(|throttle| throttle.read());
                Some((key.clone(), metered.device.upgrade()?, throttled))
            });
            present.collect()
        };
        devices
            .into_iter()
            .map(|((role, name), device, throttled)| Measurement {
                role,
                name,
                size_bytes: device.geometry().bytes(),
                measured: device.meter().read(),
                health: device.health(),
                throttled,
            })
            .collect()
    }
}
