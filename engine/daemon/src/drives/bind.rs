//! Moving a drive from one driver to another, through files of sysfs.
//!
//! Files used, below `/sys/bus/pci`: `devices/<address>/{driver_override,driver,iommu_group}`,
//! `drivers/<driver>/unbind`, `drivers_probe`; and `/sys/module/vfio/parameters/enable_unsafe_noiommu_mode`.

use std::io;
use std::path::{Path, PathBuf};

use super::DrivesError;
use super::claim::{Claim, refuse};
use crate::doctor::{Drive, Roots, files};

/// The driver that leaves a drive to a program.
pub(super) const PROGRAM_DRIVER: &str = "vfio-pci";

/// The kernel's own.
const KERNEL_DRIVER: &str = "nvme";

/// One thing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Gives a drive to the engine.
///
/// # Errors
///
/// [`DrivesError`]; what was written up to then stays.
pub(super) fn bind(roots: &Roots, address: &str, given_up: &[String]) -> Result<String, DrivesError> {
    let drive = find(roots, address)?;
    if drive.driver.as_deref() == Some(PROGRAM_DRIVER) {
        return Ok(format!("{address} is with {PROGRAM_DRIVER} already"));
    }
    refuse(&drive, &Claim::read_all(roots, &drive), given_up)?;
    check_vfio(roots, address)?;
    move_to(roots, &drive, PROGRAM_DRIVER)?;
    Ok(format!(
        "{address} is the engine's now: serve pcie:///{address}/1"
    ))
}

/// Gives a drive back to the kernel.
///
/// # Errors
///
/// [`DrivesError`]; what was written up to then stays.
pub(super) fn unbind(roots: &Roots, address: &str) -> Result<String, DrivesError> {
    let drive = find(roots, address)?;
    if drive.driver.as_deref() == Some(KERNEL_DRIVER) {
        return Ok(format!("{address} is with the kernel already"));
    }
    move_to(roots, &drive, KERNEL_DRIVER)?;
    Ok(format!("{address} is the kernel's again"))
}

fn find(roots: &Roots, address: &str) -> Result<Drive, DrivesError> {
    let drives = crate::doctor::drives(roots);
    let known = drives.iter().map(|drive| drive.address.clone()).collect();
    let found = drives
        .into_iter()
        .find(|drive| drive.address == address && drive.transport == "pcie");
    found.ok_or(DrivesError::Unknown {
        address: address.to_owned(),
        known,
    })
}

/// The driver must be there, and the drive must be kept from memory that is not the engine's.
fn check_vfio(roots: &Roots, address: &str) -> Result<(), DrivesError> {
    if !roots.sysfs.join("bus/pci/drivers").join(PROGRAM_DRIVER).exists() {
        return Err(DrivesError::NoVfio);
    }
    let has_group = roots
        .sysfs
        .join("bus/pci/devices")
        .join(address)
        .join("iommu_group")
        .exists();
    let parameter = "module/vfio/parameters/enable_unsafe_noiommu_mode";
    let without = files::line(&roots.sysfs.join(parameter));
    if !has_group && !matches!(without.as_deref(), Some("Y" | "1")) {
        return Err(DrivesError::NoIommu {
            address: address.to_owned(),
        });
    }
    Ok(())
}

/// What to write to move a drive.
pub(super) fn steps(sysfs: &Path, drive: &Drive, driver: &str) -> Vec<Step> {
    let bus = sysfs.join("bus/pci");
    let mut steps = vec![Step {
        path: bus.join("devices").join(&drive.address).join("driver_override"),
        // The kernel's own driver takes it by its class.
        text: match driver {
            KERNEL_DRIVER => "\n".to_owned(),
            driver => format!("{driver}\n"),
        },
    }];
    if let Some(before) = &drive.driver {
        steps.push(Step {
            path: bus.join("drivers").join(before).join("unbind"),
            text: format!("{}\n", drive.address),
        });
    }
    steps.push(Step {
        path: bus.join("drivers_probe"),
        text: format!("{}\n", drive.address),
    });
    steps
}

fn move_to(roots: &Roots, drive: &Drive, driver: &str) -> Result<(), DrivesError> {
    for Step { path, text } in steps(&roots.sysfs, drive, driver) {
        write(&path, &text).map_err(|source| DrivesError::Write { path, source })?;
    }
    let now = files::link_name(
        &roots
            .sysfs
            .join("bus/pci/devices")
            .join(&drive.address)
            .join("driver"),
    );
    match now {
        Some(now) if now == driver => Ok(()),
        now => Err(DrivesError::NotMoved {
            address: drive.address.clone(),
            wanted: driver.to_owned(),
            driver: now.unwrap_or_else(|| "nobody".to_owned()),
        }),
    }
}

/// Writes to a file that is there: sysfs makes none.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}
