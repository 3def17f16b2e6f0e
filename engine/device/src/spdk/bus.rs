//! Devices on PCI as the kernel tells about them.
//!
//! Files used, below `/sys/bus/pci/devices/<address>`: `driver` (a link), and the directory itself.

use std::path::{Path, PathBuf};

use super::options::PciAddress;

/// Where the kernel tells about devices.
pub(super) const SYSFS: &str = "/sys";

/// Drivers that leave a device to a program.
const PROGRAM_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Who has a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// No such device.
    Absent,
    /// No driver.
    Nobody,
    /// A driver that leaves it to a program.
    Program,
    /// Any other driver: the kernel uses it.
    Kernel {
        /// Its name.
        driver: String,
    },
}

fn directory(sysfs: &Path, address: PciAddress) -> PathBuf {
    sysfs.join("bus/pci/devices").join(address.to_string())
}

/// Whether there is a device.
pub(super) fn is_present(sysfs: &Path, address: PciAddress) -> bool {
    directory(sysfs, address).exists()
}

/// Who has a device.
pub(super) fn holder(sysfs: &Path, address: PciAddress) -> Holder {
    let directory = directory(sysfs, address);
    if !directory.exists() {
        return Holder::Absent;
    }
    let Ok(link) = std::fs::read_link(directory.join("driver")) else {
        return Holder::Nobody;
    };
    let driver = link
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    match PROGRAM_DRIVERS.contains(&driver.as_str()) {
        true => Holder::Program,
        false => Holder::Kernel { driver },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_told_apart() {
        let root = tempfile::tempdir().expect("a directory");
        let address: PciAddress = "0000:5e:00.0".parse().expect("an address");
        assert_eq!(holder(root.path(), address), Holder::Absent);
        let directory = root.path().join("bus/pci/devices/0000:5e:00.0");
        std::fs::create_dir_all(&directory).expect("a directory");
        assert!(is_present(root.path(), address));
        assert_eq!(holder(root.path(), address), Holder::Nobody);
        let link = directory.join("driver");
        for (driver, expected) in [
            ("vfio-pci", Holder::Program),
            (
                "nvme",
                Holder::Kernel {
                    driver: "nvme".to_owned(),
                },
            ),
        ] {
            std::os::unix::fs::symlink(format!("../../drivers/{driver}"), &link).expect("a link");
            assert_eq!(holder(root.path(), address), expected);
            std::fs::remove_file(&link).expect("the link is there");
        }
    }
}
