//! The devices that are measured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pollux_device::metered::Measured;
use pollux_device::{Device, Health, MeteredDevice};

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
}

/// The devices that are measured, as long as anybody uses them.
#[derive(Default)]
pub struct Meters {
    devices: Mutex<BTreeMap<(Role, String), Weak<MeteredDevice>>>,
}

impl Meters {
    /// The device, measured from now on.
    pub fn wrap(&self, role: Role, name: &str, device: Arc<dyn Device>) -> Arc<dyn Device> {
        let metered = MeteredDevice::new(device);
        // A map of names is never left half done.
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|_, device| device.strong_count() > 0);
        devices.insert((role, name.to_owned()), Arc::downgrade(&metered));
        metered
    }

    /// All of them, by role and name.
    pub fn read(&self) -> Vec<Measurement> {
        let devices: Vec<_> = {
            let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
            let present = devices
                .iter()
                .filter_map(|(key, device)| Some((key.clone(), device.upgrade()?)));
            present.collect()
        };
        devices
            .into_iter()
            .map(|((role, name), device)| Measurement {
                role,
                name,
                size_bytes: device.geometry().bytes(),
                measured: device.meter().read(),
                health: device.health(),
            })
            .collect()
    }
}
