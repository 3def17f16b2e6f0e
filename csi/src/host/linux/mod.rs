//! A machine with Linux: `/dev/nvme-fabrics`, sysfs, mount(2), and the programs of file systems.

mod blank;
mod discovery;
mod fabrics;
mod file_system;
mod mounts;
mod program;
mod sysfs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pollux_api::control::v1::HostSecrets;
use uuid::Uuid;

use super::{
    Connection, Content, Controller, Device, DeviceNumber, DiscoveryLog, Host, HostError, Mount, Usage,
};
use crate::capability::FileSystem;
use crate::names;

/// A machine with Linux, and where its kernel shows itself.
#[derive(Debug, Clone)]
pub struct LinuxHost {
    /// sysfs.
    pub sys: PathBuf,
    /// Device files.
    pub dev: PathBuf,
    /// procfs.
    pub proc: PathBuf,
}

impl Default for LinuxHost {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            proc: "/proc".into(),
        }
    }
}

impl Host for LinuxHost {
    fn connect(&self, connection: &Connection<'_>) -> Result<(), HostError> {
        fabrics::connect(&self.dev, connection)
    }

    fn controllers(&self, subsystem_nqn: &str) -> Result<Vec<Controller>, HostError> {
        sysfs::controllers(&self.sys, subsystem_nqn)
    }

    fn discover(
        &self,
        address: SocketAddr,
        host: &names::Host,
        known: Option<u64>,
    ) -> Result<Option<DiscoveryLog>, HostError> {
        discovery::discover(address, host, known)
    }

    fn secrets(&self, controller: &Controller) -> Result<Option<HostSecrets>, HostError> {
        Ok(sysfs::secrets(&self.sys, controller))
    }

    fn disconnect(&self, controller: &Controller) -> Result<(), HostError> {
        sysfs::tell(&self.sys, controller, "delete_controller")
    }

    fn rescan(&self, controller: &Controller) -> Result<(), HostError> {
        sysfs::tell(&self.sys, controller, "rescan_controller")
    }

    fn flush(&self, device: &Device) -> Result<(), HostError> {
        let flushed = std::fs::File::open(&device.path).and_then(|file| file.sync_all());
        flushed.map_err(|error| HostError::kernel("flush", &device.name, error))
    }

    fn devices(&self, subsystem_nqn: &str, namespace_uuid: Uuid) -> Result<Vec<Device>, HostError> {
        let mut devices = sysfs::devices(&self.sys, &self.dev, subsystem_nqn, namespace_uuid)?;
        // One whose file is not there yet, or is that of another device, does not count.
        devices.retain(|device| sysfs::is_node_of(&device.path, device.number));
        Ok(devices)
    }

    fn subsystem_of(&self, number: DeviceNumber) -> Result<Option<String>, HostError> {
        sysfs::subsystem_of(&self.sys, number)
    }

    fn require_unused(&self, device: &Device) -> Result<(), HostError> {
        sysfs::require_unused(device)
    }

    fn hold(&self, device: &Device) -> Result<Box<dyn Send>, HostError> {
        let opened = std::fs::File::open(&device.path);
        let file = opened.map_err(|error| HostError::kernel("open", device.path.display(), error))?;
        Ok(Box::new(file))
    }

    fn content(&self, device: &Device) -> Result<Content, HostError> {
        file_system::content(&device.path, device.size_bytes)
    }

    fn format(&self, device: &Device, file_system: FileSystem) -> Result<(), HostError> {
        file_system::format(&device.path, device.size_bytes, file_system)
    }

    fn check(&self, device: &Device, file_system: FileSystem) -> Result<(), HostError> {
        file_system::check(&device.path, file_system)
    }

    fn grow(&self, device: &Device, file_system: FileSystem, point: &Path) -> Result<(), HostError> {
        file_system::grow(&device.path, file_system, point)
    }

    fn mounts(&self) -> Result<Vec<Mount>, HostError> {
        let path = self.proc.join("self/mountinfo");
        let text = std::fs::read(&path).map_err(|error| HostError::kernel("read", path.display(), error))?;
        Ok(mounts::parse(&String::from_utf8_lossy(&text)))
    }

    fn mount(
        &self,
        device: &Device,
        file_system: FileSystem,
        point: &Path,
        read_only: bool,
        options: &[String],
    ) -> Result<(), HostError> {
        mounts::mount(device, file_system, point, read_only, options)
    }

    fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), HostError> {
        mounts::bind(from, to, read_only)
    }

    fn unmount(&self, point: &Path) -> Result<(), HostError> {
        mounts::unmount(point)
    }

    fn usage(&self, point: &Path) -> Result<Usage, HostError> {
        mounts::usage(point)
    }

    fn freeze(&self, point: &Path, still: bool) -> Result<(), HostError> {
        file_system::freeze(point, still)
    }
}
