//! The command line for pools and volumes.

use std::fmt;
use std::str::FromStr;

use clap::{ArgAction, Args, Subcommand};
use pollux_device::ByteSize;

use super::{CONTROL_SOCKET, Output};
use crate::settings::{ControlAddress, DeviceList};

/// Where a pool is: in a running engine, or on devices that no engine has.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The control interface of the engine that has the pool.
    #[arg(long, value_name = "ADDRESS", default_value = CONTROL_SOCKET, conflicts_with = "pool")]
    pub grpc: ControlAddress,

    /// All devices of a pool that no engine has, separated by commas: it is opened for this command. May be
    /// given more than once, for more pools.
    #[arg(long, value_name = "DEVICE_URI,...")]
    pub pool: Vec<DeviceList>,
}

/// `pool`.
#[derive(Debug, Args)]
pub struct PoolArguments {
    /// What to do.
    #[command(subcommand)]
    pub command: PoolCommand,
}

/// What to do with pools.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool of devices. What is on them is lost, unless it is known: a device that holds a file
    /// system, a partition table or another pool is refused without --overwrite.
    Create {
        /// The name of the pool.
        #[arg(value_name = "NAME")]
        name: String,
        /// Its devices.
        #[arg(value_name = "DEVICE_URI", required = true)]
        devices: Vec<String>,
        /// One of the devices, whose content may be lost; may be given more than once.
        #[arg(long, value_name = "DEVICE_URI")]
        overwrite: Vec<String>,
        /// Its journal [default: what suits the first device].
        #[arg(long, value_name = "SIZE")]
        journal: Option<ByteSize>,
        /// Have a running engine make it, and keep it open there.
        #[arg(long, value_name = "ADDRESS")]
        grpc: Option<ControlAddress>,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Open the pool that devices hold, tell what was found, and leave it in good order.
    Import {
        /// All its devices, in any order.
        #[arg(value_name = "DEVICE_URI", required = true)]
        devices: Vec<String>,
        /// Write nothing to them: volumes can be read, and what a crash left stays as it is.
        #[arg(long)]
        read_only: bool,
        /// Have a running engine open it, and keep it open there.
        #[arg(long, value_name = "ADDRESS")]
        grpc: Option<ControlAddress>,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Close a pool of a running engine, so that its devices can be used elsewhere.
    Export {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// The control interface of the engine.
        #[arg(long, value_name = "ADDRESS", default_value = CONTROL_SOCKET)]
        grpc: ControlAddress,
    },
    /// List pools.
    List {
        /// Where they are.
        #[command(flatten)]
        place: Place,
        /// How to print them.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Show all about a pool.
    Show {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// Where it is.
        #[command(flatten)]
        place: Place,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Compare all metadata of a pool with itself. The exit code is 1 if something is wrong.
    Check {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// Where it is.
        #[command(flatten)]
        place: Place,
        /// How to print what was found.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Read everything that is stored and compare it with its checksums, while volumes are in use. The exit
    /// code is 1 if something is lost.
    Scrub {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// How much to read a second, at most, such as 200MiB [default: as fast as it goes].
        #[arg(long, value_name = "SIZE")]
        rate: Option<ByteSize>,
        /// Begin with the first block again, where the last scrub was interrupted and would be gone on with.
        #[arg(long)]
        anew: bool,
        /// Where it is.
        #[command(flatten)]
        place: Place,
        /// How to print what was found.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Use all of the devices of a pool that have become larger, while volumes are in use.
    Grow {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// Where it is.
        #[command(flatten)]
        place: Place,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Add a device to a pool, while volumes are in use. What is on the device is lost.
    Add {
        /// The name of the pool.
        #[arg(value_name = "NAME")]
        name: String,
        /// The device.
        #[arg(value_name = "DEVICE_URI")]
        device: String,
        /// Its content may be lost.
        #[arg(long)]
        overwrite: bool,
        /// Where the pool is.
        #[command(flatten)]
        place: Place,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Copy a device of a pool to another one and take that in its place, while volumes are in use.
    Replace {
        /// The name of the pool.
        #[arg(value_name = "NAME")]
        name: String,
        /// The number of the device that goes, as `show` tells it.
        #[arg(value_name = "NUMBER")]
        number: u8,
        /// The device that comes: as large as the other, or larger.
        #[arg(value_name = "DEVICE_URI")]
        device: String,
        /// What is on that may be lost.
        #[arg(long)]
        overwrite: bool,
        /// The device that goes takes no writes any more: the pool is not opened for writing, and is not
        /// in use meanwhile.
        #[arg(long, requires = "pool")]
        worn_out: bool,
        /// Where the pool is.
        #[command(flatten)]
        place: Place,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Move everything from a device of a pool to the others and take it out, while volumes are in use. Begun
    /// again after an interruption it goes on.
    Remove {
        /// The name of the pool.
        #[arg(value_name = "NAME")]
        name: String,
        /// The number of the device, as `show` tells it.
        #[arg(value_name = "NUMBER")]
        number: u8,
        /// The device is to stay after all.
        #[arg(long)]
        call_off: bool,
        /// Give up blocks that cannot be read: they are errors to whoever reads them until they are written
        /// or deallocated, and older programs cannot open the pool any more. Otherwise they keep the device.
        #[arg(long, conflicts_with = "call_off")]
        lose_unreadable: bool,
        /// Where the pool is.
        #[command(flatten)]
        place: Place,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Wipe the labels of a pool: it is no more, and its data is lost.
    Destroy {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
        /// Where it is.
        #[command(flatten)]
        place: Place,
    },
}

/// `volume`.
#[derive(Debug, Args)]
pub struct VolumeArguments {
    /// What to do.
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// A volume or snapshot, and where it is.
#[derive(Debug, Clone, Args)]
pub struct VolumePlace {
    /// The volume or snapshot.
    #[arg(value_name = "POOL/NAME")]
    pub volume: VolumeName,
    /// Where its pool is.
    #[command(flatten)]
    pub place: Place,
}

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume of zeros.
    Create {
        /// The volume.
        #[command(flatten)]
        of: VolumePlace,
        /// Its size, such as 10GiB.
        #[arg(value_name = "SIZE")]
        size: ByteSize,
        /// Keep no checksums of its blocks.
        #[arg(long = "no-checksums", action = ArgAction::SetFalse)]
        checksums: bool,
        /// Set space aside for all of it: every write finds some, whatever else fills the pool.
        #[arg(long)]
        thick: bool,
        /// The UUID that hosts know it by [default: one is drawn].
        #[arg(long, value_name = "UUID")]
        uuid: Option<String>,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// List the volumes and snapshots of a pool.
    List {
        /// The pool.
        #[arg(value_name = "POOL")]
        pool_name: String,
        /// Where it is.
        #[command(flatten)]
        place: Place,
        /// How to print them.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Show all about a volume or snapshot.
    Show {
        /// The volume or snapshot.
        #[command(flatten)]
        of: VolumePlace,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Take a snapshot of a volume, which may be in use.
    Snapshot {
        /// The volume.
        #[command(flatten)]
        of: VolumePlace,
        /// The name of the snapshot, in the same pool.
        #[arg(value_name = "SNAPSHOT")]
        name: String,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Make a volume that begins as a snapshot is.
    Clone {
        /// The snapshot.
        #[command(flatten)]
        of: VolumePlace,
        /// The name of the clone, in the same pool.
        #[arg(value_name = "CLONE")]
        name: String,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Make a volume what it was when a snapshot was taken. What was written since then is lost.
    Rollback {
        /// The volume.
        #[command(flatten)]
        of: VolumePlace,
        /// The snapshot.
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Change the size of a volume.
    Resize {
        /// The volume.
        #[command(flatten)]
        of: VolumePlace,
        /// Its new size, such as 20GiB.
        #[arg(value_name = "SIZE")]
        size: ByteSize,
        /// What is past a smaller size may be lost.
        #[arg(long)]
        may_drop: bool,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Give a volume or snapshot another name.
    Rename {
        /// The volume or snapshot.
        #[command(flatten)]
        of: VolumePlace,
        /// Its new name, in the same pool.
        #[arg(value_name = "NEW_NAME")]
        name: String,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Delete a volume or snapshot, which is not in use.
    Delete {
        /// The volume or snapshot.
        #[command(flatten)]
        of: VolumePlace,
        /// It is no error if there is none.
        #[arg(long)]
        if_exists: bool,
        /// Wait until its space is free.
        #[arg(long)]
        wait: bool,
    },
    /// List the ranges in which a volume or snapshot differs from an older one, or all that is allocated.
    Diff {
        /// The volume or snapshot.
        #[command(flatten)]
        of: VolumePlace,
        /// The volume or snapshot to compare it with [default: nothing, which lists all that is allocated].
        #[arg(long, value_name = "NAME")]
        since: Option<String>,
        /// How to print the ranges; as JSON they are an object a line.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
}

/// `POOL/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeName {
    /// The name of the pool.
    pub pool: String,
    /// The name of the volume or snapshot.
    pub name: String,
}

/// A text that is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no volume: write POOL/NAME, such as tank/db")]
pub struct VolumeNameError(String);

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        // As in the URI of a namespace.
        let names = text.strip_prefix("pool://").unwrap_or(text);
        match names.split_once('/') {
            Some((pool, name)) if !pool.is_empty() && !name.is_empty() && !name.contains('/') => Ok(Self {
                pool: pool.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(VolumeNameError(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.pool, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_two_names() {
        for text in ["tank/db", "pool://tank/db"] {
            let name: VolumeName = text.parse().expect(text);
            assert_eq!((name.pool.as_str(), name.name.as_str()), ("tank", "db"));
        }
        for text in ["", "db", "/db", "tank/", "tank/a/b"] {
            let error = text.parse::<VolumeName>().expect_err(text).to_string();
            assert!(error.contains("POOL/NAME"), "{error}");
        }
    }
}
