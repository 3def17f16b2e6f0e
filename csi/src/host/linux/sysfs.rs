//! NVMe as the kernel shows it in sysfs.
//!
//! `class/nvme/nvmeX` is a controller, which is a path; `block/nvmeXnY` is a namespace, with multipath one
//! for all of its paths. Each tells its subsystem. Block devices of single paths are called `nvmeXcYnZ` and
//! are no devices of their own.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use pollux_api::control::v1::HostSecrets;
use pollux_api::secrets::check_secret;
use rustix::fs::OFlags;
use rustix::io::Errno;
use uuid::Uuid;

use crate::host::{Controller, Device, DeviceNumber, HostError};

/// Bytes of a sector, in which sysfs tells sizes whatever the device has.
const SECTOR_BYTES: u64 = 512;

/// An attribute without the line's end; nothing if it is not there, or what it belongs to is gone.
fn attribute(directory: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim_end().to_owned())
}

/// The names in a directory that begin with `nvme`, in order; none if there is no such directory.
fn names(directory: &Path) -> Result<Vec<String>, HostError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(HostError::kernel("read", directory.display(), error)),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("nvme")).collect();
    names.sort_unstable();
    Ok(names)
}

/// Whether a name is that of a namespace on one path only.
fn is_path(name: &str) -> bool {
    name.strip_prefix("nvme").is_some_and(|rest| rest.contains('c'))
}

/// The address in `traddr=IP,trsvcid=PORT,...`.
fn address(text: &str) -> Option<SocketAddr> {
    let value = |key: &str| text.split(',').find_map(|pair| pair.trim().strip_prefix(key));
    let ip: IpAddr = value("traddr=")?.parse().ok()?;
    Some(SocketAddr::new(ip, value("trsvcid=")?.parse().ok()?))
}

fn number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

pub(super) fn controllers(sys: &Path, subsystem_nqn: &str) -> Result<Vec<Controller>, HostError> {
    let class = sys.join("class/nvme");
    let mut controllers = Vec::new();
    for name in names(&class)? {
        let directory = class.join(&name);
        if attribute(&directory, "subsysnqn").as_deref() != Some(subsystem_nqn) {
            continue;
        }
        let paths = names(&directory)?;
        let access = paths
            .iter()
            .filter(|name| is_path(name))
            .find_map(|path| attribute(&directory.join(path), "ana_state"));
        controllers.push(Controller {
            address: attribute(&directory, "address").and_then(|text| address(&text)),
            state: attribute(&directory, "state").unwrap_or_default(),
            access,
            name,
        });
    }
    Ok(controllers)
}

/// The secrets that a controller was connected by. Kernels show them to root alone, and kernels that cannot
/// authenticate have no such attributes.
pub(super) fn secrets(sys: &Path, controller: &Controller) -> Option<HostSecrets> {
    let directory = sys.join("class/nvme").join(&controller.name);
    let secret = |name| attribute(&directory, name).filter(|text| check_secret(text).is_ok());
    Some(HostSecrets {
        host: secret("dhchap_secret")?,
        controller: secret("dhchap_ctrl_secret").unwrap_or_default(),
    })
}

/// Writes a 1 to an attribute of a controller. One that is gone needs nothing.
pub(super) fn tell(sys: &Path, controller: &Controller, attribute: &'static str) -> Result<(), HostError> {
    let path = sys.join("class/nvme").join(&controller.name).join(attribute);
    let written = OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(b"1"));
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NODEV | Errno::NXIO) => Ok(()),
            _ => Err(HostError::kernel("write", path.display(), error)),
        },
    }
}

pub(super) fn devices(
    sys: &Path,
    dev: &Path,
    subsystem_nqn: &str,
    namespace_uuid: Uuid,
) -> Result<Vec<Device>, HostError> {
    let block = sys.join("block");
    let mut devices = Vec::new();
    for name in names(&block)? {
        let directory = block.join(&name);
        let is_it = !is_path(&name)
            && attribute(&directory, "device/subsysnqn").as_deref() == Some(subsystem_nqn)
            && identity(&directory) == Some(namespace_uuid);
        if !is_it {
            continue;
        }
        let found = (|| {
            let sectors: u64 = attribute(&directory, "size")?.parse().ok()?;
            Some(Device {
                path: dev.join(&name),
                number: number(&attribute(&directory, "dev")?)?,
                size_bytes: sectors.checked_mul(SECTOR_BYTES)?,
                read_only: attribute(&directory, "ro")? != "0",
                name,
            })
        })();
        devices.extend(found);
    }
    Ok(devices)
}

/// The UUID of a namespace; of one that has only an NGUID, that.
fn identity(directory: &Path) -> Option<Uuid> {
    let of = |name: &str| {
        let text = attribute(directory, name)?;
        let uuid = Uuid::parse_str(&text).ok()?;
        Some(uuid).filter(|uuid| !uuid.is_nil())
    };
    of("uuid").or_else(|| of("nguid"))
}

pub(super) fn subsystem_of(sys: &Path, wanted: DeviceNumber) -> Result<Option<String>, HostError> {
    let block = sys.join("block");
    for name in names(&block)? {
        let directory = block.join(&name);
        if attribute(&directory, "dev").and_then(|text| number(&text)) == Some(wanted) {
            return Ok(attribute(&directory, "device/subsysnqn"));
        }
    }
    Ok(None)
}

/// Whether a file is the node of a block device of this number.
pub(super) fn is_node_of(path: &Path, number: DeviceNumber) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else {
        return false;
    };
    let device = metadata.rdev();
    metadata.file_type().is_block_device()
        && rustix::fs::major(device) == number.major
        && rustix::fs::minor(device) == number.minor
}

/// The kernel opens a device exclusively for one holder only, and a mount is one.
pub(super) fn require_unused(device: &Device) -> Result<(), HostError> {
    let flags = i32::try_from(OFlags::EXCL.bits()).unwrap_or(0);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&device.path);
    match opened {
        Ok(_) => Ok(()),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => Err(HostError::Busy {
                device: device.name.clone(),
                by: "it is mounted, or part of another device: look at /proc/*/mountinfo and `lsblk`"
                    .to_owned(),
            }),
            // With no path left it is gone, or nearly so: nobody can use it.
            Some(Errno::NXIO | Errno::NODEV | Errno::NOENT) => Ok(()),
            _ => Err(HostError::kernel("open", device.path.display(), error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const NQN: &str = "nqn.2026-11.io.pollux:volume:a";

    fn put(sys: &Path, path: &str, text: &str) {
        let path = sys.join(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        std::fs::write(path, format!("{text}\n")).expect("it can be written");
    }

    #[test]
    fn secrets_are_those_of_the_kernel() {
        const SECRET: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
        let directory = tempfile::tempdir().expect("a directory");
        let sys = directory.path();
        let controller = Controller {
            name: "nvme3".to_owned(),
            address: None,
            state: "live".to_owned(),
            access: None,
        };
        // A kernel without, and a path without.
        assert_eq!(secrets(sys, &controller), None);
        put(sys, "class/nvme/nvme3/dhchap_secret", "none");
        put(sys, "class/nvme/nvme3/dhchap_ctrl_secret", "none");
        assert_eq!(secrets(sys, &controller), None);
        put(sys, "class/nvme/nvme3/dhchap_secret", SECRET);
        let mut found = secrets(sys, &controller).expect("one");
        assert_eq!((found.host.as_str(), found.controller.as_str()), (SECRET, ""));
        put(sys, "class/nvme/nvme3/dhchap_ctrl_secret", SECRET);
        found = secrets(sys, &controller).expect("two");
        assert_eq!(found.controller, SECRET);
    }

    /// Two paths to the namespace, and the drive of the machine.
    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let sys = directory.path();
        for (index, state) in [(0, "live"), (1, "connecting")] {
            let controller = format!("class/nvme/nvme{index}");
            put(sys, &format!("{controller}/subsysnqn"), NQN);
            put(sys, &format!("{controller}/state"), state);
            let address = format!("traddr=10.0.0.{index},trsvcid=4420,src_addr=10.0.0.9");
            put(sys, &format!("{controller}/address"), &address);
            put(sys, &format!("{controller}/delete_controller"), "");
        }
        put(sys, "class/nvme/nvme0/nvme0c0n1/ana_state", "optimized");
        put(
            sys,
            "class/nvme/nvme2/subsysnqn",
            "nqn.2014-08.org.nvmexpress:drive",
        );
        put(sys, "block/nvme0c0n1/dev", "0:0");
        for (name, nqn, uuid) in [
            ("nvme0n1", NQN, "0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01"),
            ("nvme0n2", NQN, "0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f02"),
            (
                "nvme2n1",
                "nqn.2014-08.org.nvmexpress:drive",
                "0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01",
            ),
        ] {
            put(sys, &format!("block/{name}/device/subsysnqn"), nqn);
            put(sys, &format!("block/{name}/uuid"), uuid);
            put(sys, &format!("block/{name}/dev"), "259:1");
            put(sys, &format!("block/{name}/size"), "2048");
            put(sys, &format!("block/{name}/ro"), "0");
        }
        directory
    }

    #[test]
    fn paths_of_a_subsystem_are_found() {
        let tree = tree();
        let found = controllers(tree.path(), NQN).expect("it can be read");
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].address,
            Some("10.0.0.0:4420".parse().expect("an address"))
        );
        assert!(found[0].serves());
        assert_eq!(found[0].access.as_deref(), Some("optimized"));
        assert!(!found[1].serves());
        tell(tree.path(), &found[1], "delete_controller").expect("it is there");
        let written = tree.path().join("class/nvme/nvme1/delete_controller");
        assert!(
            std::fs::read_to_string(written)
                .expect("it is there")
                .starts_with('1')
        );
        let gone = Controller {
            name: "nvme9".to_owned(),
            ..found[0].clone()
        };
        tell(tree.path(), &gone, "delete_controller").expect("it is gone already");
        let nothing = tempfile::tempdir().expect("a directory");
        assert_eq!(controllers(nothing.path(), NQN).expect("no NVMe at all"), []);
    }

    #[test]
    fn a_namespace_is_found_by_its_identity_and_its_subsystem() {
        let tree = tree();
        let uuid = Uuid::parse_str("0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01").expect("a UUID");
        let dev = PathBuf::from("/dev");
        let found = devices(tree.path(), &dev, NQN, uuid).expect("it can be read");
        let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["nvme0n1"]);
        assert_eq!((found[0].size_bytes, found[0].read_only), (1 << 20, false));
        assert_eq!(
            devices(tree.path(), &dev, "nqn.x:y", uuid).expect("it can be read"),
            []
        );
        // A size that cannot be is not believed.
        put(tree.path(), "block/nvme0n1/size", "18446744073709551615");
        assert_eq!(devices(tree.path(), &dev, NQN, uuid).expect("it can be read"), []);
        put(tree.path(), "block/nvme2n1/dev", "259:7");
        let other = DeviceNumber { major: 259, minor: 7 };
        let subsystem = subsystem_of(tree.path(), other).expect("it can be read");
        assert_eq!(subsystem.as_deref(), Some("nqn.2014-08.org.nvmexpress:drive"));
    }

    #[test]
    fn an_nguid_does_where_there_is_no_uuid() {
        let tree = tree();
        put(
            tree.path(),
            "block/nvme0n1/uuid",
            "00000000-0000-0000-0000-000000000000",
        );
        put(
            tree.path(),
            "block/nvme0n1/nguid",
            "0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f03",
        );
        let uuid = Uuid::parse_str("0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f03").expect("a UUID");
        let found = devices(tree.path(), Path::new("/dev"), NQN, uuid).expect("it can be read");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn files_are_no_devices() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(!is_node_of(file.path(), DeviceNumber { major: 0, minor: 0 }));
        assert!(!is_node_of(
            Path::new("/nonexistent"),
            DeviceNumber { major: 0, minor: 0 }
        ));
    }
}
