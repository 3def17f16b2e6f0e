//! `pollux-engine drives`: which NVMe drives there are, whose they are, and how to move one.
//!
//! A drive is the kernel's (driver `nvme`) or the engine's (driver `vfio-pci`). Moving one reads and writes
//! nothing on it; but whoever takes a drive will write to it, so one that is in use is refused, and one that
//! holds what somebody else has put there must be given up by the name of its block device.

mod bind;
mod claim;
pub(crate) mod signature;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;

use pollux_device::ByteSize;
use serde::Serialize;

use crate::cli::{DrivesCommand, Output};
use crate::doctor::{Drive, Roots};
use crate::table::Table;
use bind::PROGRAM_DRIVER;
use claim::Claim;

/// Why a drive was not moved, or not listed.
#[derive(Debug, thiserror::Error)]
pub enum DrivesError {
    /// No such drive.
    #[error("there is no NVMe drive at {address}; there is {}", or_none(.known))]
    Unknown {
        /// Where.
        address: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Something on this machine uses it.
    #[error("{address} is in use: {}; end that first", .users.join(", "))]
    InUse {
        /// The drive.
        address: String,
        /// What uses it.
        users: Vec<String>,
    },
    /// It holds something of somebody else.
    #[error(
        "{address} is not taken: {namespace} holds {what}; if that may be lost, say so by name: \
         pollux-engine drives bind {address} --give-up {namespace}"
    )]
    Holds {
        /// The drive.
        address: String,
        /// Its block device.
        namespace: String,
        /// What it holds.
        what: String,
    },
    /// A name that is none of the drive's.
    #[error("{name} is not on the drive {address}: pollux-engine drives list tells what is")]
    NotOnDrive {
        /// The drive.
        address: String,
        /// The name given.
        name: String,
    },
    /// The driver is not loaded.
    #[error("the driver {PROGRAM_DRIVER} is not loaded: modprobe {PROGRAM_DRIVER}")]
    NoVfio,
    /// No IOMMU for it.
    #[error(
        "no IOMMU guards the drive {address}: boot with intel_iommu=on or amd_iommu=on, or, where programs \
         and drives may be trusted with all memory: echo 1 > \
         /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    )]
    NoIommu {
        /// The drive.
        address: String,
    },
    /// The kernel refused.
    #[error("cannot write {}: {source}; run it as root", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Everything was written, and the drive is not where it should be.
    #[error("{address} is with {driver} and not with {wanted}; the kernel's log (dmesg) tells why")]
    NotMoved {
        /// The drive.
        address: String,
        /// The driver it should have.
        wanted: String,
        /// The driver it has.
        driver: String,
    },
    /// Nobody reads the answer.
    #[error("the answer cannot be written: {0}")]
    Output(#[from] io::Error),
}

fn or_none(known: &[String]) -> String {
    match known {
        [] => "none at all".to_owned(),
        known => known.join(", "),
    }
}

/// A drive, for machines.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    drive: &'a Drive,
    /// What namespaces hold that is somebody else's, by the name of the block device.
    holds: Vec<(String, String)>,
    /// What to do with it next.
    next: String,
}

/// Does what the command line says.
///
/// # Errors
///
/// [`DrivesError`].
pub fn run(command: &DrivesCommand, roots: &Roots, into: &mut impl Write) -> Result<(), DrivesError> {
    match command {
        DrivesCommand::List { output } => list(roots, *output, into),
        DrivesCommand::Bind { address, give_up } => {
            Ok(writeln!(into, "{}", bind::bind(roots, address, give_up)?)?)
        }
        DrivesCommand::Unbind { address } => Ok(writeln!(into, "{}", bind::unbind(roots, address)?)?),
    }
}

fn list(roots: &Roots, output: Output, into: &mut impl Write) -> Result<(), DrivesError> {
    let drives = crate::doctor::drives(roots);
    let claims: Vec<Vec<Claim>> = drives.iter().map(|drive| Claim::read_all(roots, drive)).collect();
    match output {
        Output::Json => {
            let listed: Vec<Listed<'_>> = drives
                .iter()
                .zip(&claims)
                .map(|(drive, claims)| Listed {
                    drive,
                    holds: claims
                        .iter()
                        .filter_map(|claim| Some((claim.namespace.clone(), claim.holds()?)))
                        .collect(),
                    next: next(drive, claims),
                })
                .collect();
            serde_json::to_writer_pretty(&mut *into, &listed).map_err(io::Error::from)?;
            Ok(writeln!(into)?)
        }
        Output::Table if drives.is_empty() => Ok(writeln!(into, "There are no NVMe drives.")?),
        Output::Table => Ok(table(&drives, &claims).write(0, into)?),
    }
}

/// What to do with a drive next, in words.
fn next(drive: &Drive, claims: &[Claim]) -> String {
    let address = &drive.address;
    if drive.transport != "pcie" {
        return "remote: not to be moved".to_owned();
    }
    if drive.driver.as_deref() == Some(PROGRAM_DRIVER) {
        return format!("serve pcie:///{address}/1");
    }
    match claim::refuse(drive, claims, &[]) {
        Ok(()) => format!("pollux-engine drives bind {address}"),
        Err(DrivesError::InUse { .. }) => "in use".to_owned(),
        Err(_) => "holds data: see drives bind --give-up".to_owned(),
    }
}

fn table(drives: &[Drive], claims: &[Vec<Claim>]) -> Table<7> {
    let mut table = Table::new(["DRIVE", "DRIVER", "MODEL", "NAMESPACE", "SIZE", "HOLDS", "NEXT"]);
    for (drive, claims) in drives.iter().zip(claims) {
        let mut first = [
            drive.address.clone(),
            drive.driver.clone().unwrap_or_else(|| "none".to_owned()),
            drive.model.clone().unwrap_or_default(),
        ];
        let mut next = next(drive, claims);
        let rows = drive.namespaces.len().max(1);
        for row in 0..rows {
            let [address, driver, model] = std::mem::take(&mut first);
            let namespace = drive.namespaces.get(row);
            let holds = match (namespace, claims.get(row)) {
                (Some(namespace), _) if !namespace.used_by.is_empty() => namespace.used_by.join(", "),
                (_, Some(claim)) => claim.holds().unwrap_or_else(|| "nothing known".to_owned()),
                (_, None) => String::new(),
            };
            table.push([
                address,
                driver,
                model,
                namespace
                    .map(|namespace| namespace.name.clone())
                    .unwrap_or_default(),
                namespace
                    .map(|namespace| ByteSize(namespace.size_bytes).to_string())
                    .unwrap_or_default(),
                holds,
                std::mem::take(&mut next),
            ]);
        }
    }
    table
}
