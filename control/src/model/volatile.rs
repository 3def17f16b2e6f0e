//! Devices that forget: what is in a pool of them ends with its engine.

/// What is so of a pool of such devices, for people.
pub(crate) const VOLATILE: &str =
    "is in memory: what it holds is gone when its engine ends; use it for trials alone";

/// Schemes of devices that forget.
const FORGETFUL: [&str; 2] = ["malloc", "null"];

/// The scheme of a device that does what another one does, with faults.
const FAULTY: &str = "faulty:///";

/// Whether a pool of these devices, as URIs, forgets what it holds when its engine ends.
pub(crate) fn is_volatile(devices: &[String]) -> bool {
    devices.iter().any(|device| {
        let mut device = device.as_str();
        while let Some(inner) = device.strip_prefix(FAULTY) {
            device = inner;
        }
        // What is inside another one may be written with the colon encoded.
        let scheme = device.split([':', '%']).next().unwrap_or_default();
        FORGETFUL.iter().any(|known| scheme.eq_ignore_ascii_case(known))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_told_from_drives() {
        let is_volatile = |devices: &[&str]| {
            let devices: Vec<String> = devices.iter().map(|&device| device.to_owned()).collect();
            super::is_volatile(&devices)
        };
        assert!(is_volatile(&["malloc:///x?size=1GiB"]));
        assert!(is_volatile(&["uring:///dev/sda", "malloc:///x?size=1GiB"]));
        assert!(is_volatile(&["faulty:///malloc:///x?size=1GiB&rate=1"]));
        assert!(is_volatile(&["faulty:///malloc%3A%2F%2F%2Fx"]));
        assert!(!is_volatile(&["uring:///malloc/disk", "pcie:///0000:5e:00.0/1"]));
        assert!(!is_volatile(&[]));
    }
}
