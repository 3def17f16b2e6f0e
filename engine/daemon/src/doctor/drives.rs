//! NVMe controllers: those on PCI, whatever driver has them, and those the kernel has connected over fabrics.
//!
//! Files used:
//!
//! - `/sys/bus/pci/devices/<address>/{class,driver,numa_node,vendor,device}`: class 0x0108xx is non-volatile
//!   memory.
//! - `/sys/class/nvme/nvme<N>/{model,serial,address,transport}`, and in it a directory for each namespace.
//! - `/sys/block/<namespace>/{size,holders}`, and in it a directory for each partition.
//! - `/proc/self/mountinfo` (device numbers and mount points) and `/proc/swaps`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::files;

/// The class of an NVMe controller on PCI: mass storage, non-volatile memory (PCI Code and ID Assignment).
const NVME_CLASS: &str = "0x0108";

/// Bytes of a sector of `/sys/block/*/size`, whatever the drive's blocks.
const SECTOR_BYTES: u64 = 512;

/// An NVMe controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// The PCI address, or where a controller over fabrics is.
    pub address: String,
    /// `pcie`, `tcp`, `rdma`, `fc` or `loop`.
    pub transport: String,
    /// The driver that has it: `nvme` is the kernel's, `vfio-pci` and `uio_pci_generic` leave it to a
    /// program.
    pub driver: Option<String>,
    /// The name of the controller, where the kernel drives it.
    pub controller: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// The NUMA node it is next to.
    pub numa_node: Option<u32>,
    /// Its namespaces, where the kernel drives it.
    pub namespaces: Vec<DriveUse>,
}

/// A namespace as the kernel uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriveUse {
    /// The name of the block device.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// How many partitions it has.
    pub partitions: usize,
    /// What holds it or a partition of it: mount points, `[swap]`, and the devices built on it.
    pub used_by: Vec<String>,
}

impl Drive {
    /// Whether something on this machine uses it.
    pub fn is_used(&self) -> bool {
        self.namespaces
            .iter()
            .any(|namespace| !namespace.used_by.is_empty())
    }
}

pub(super) fn read(sysfs: &Path, proc: &Path) -> Vec<Drive> {
    let uses = Uses::read(proc);
    let mut drives: BTreeMap<String, Drive> = BTreeMap::new();
    for device in files::entries(&sysfs.join("bus/pci/devices")) {
        let class = files::line(&device.join("class")).unwrap_or_default();
        if !class.starts_with(NVME_CLASS) {
            continue;
        }
        let address = files::name(&device);
        drives.insert(
            address.clone(),
            Drive {
                address,
                transport: "pcie".to_owned(),
                driver: files::link_name(&device.join("driver")),
                controller: None,
                model: None,
                serial: None,
                numa_node: files::number(&device.join("numa_node")).and_then(|node| node.try_into().ok()),
                namespaces: Vec::new(),
            },
        );
    }
    for controller in files::entries(&sysfs.join("class/nvme")) {
        let address = files::line(&controller.join("address")).unwrap_or_else(|| files::name(&controller));
        let transport = files::line(&controller.join("transport")).unwrap_or_else(|| "pcie".to_owned());
        let drive = drives.entry(address.clone()).or_insert_with(|| Drive {
            address,
            transport,
            driver: Some("nvme".to_owned()),
            controller: None,
            model: None,
            serial: None,
            numa_node: None,
            namespaces: Vec::new(),
        });
        drive.controller = Some(files::name(&controller));
        drive.model = files::line(&controller.join("model"));
        drive.serial = files::line(&controller.join("serial"));
        drive.namespaces = files::entries(&controller)
            .iter()
            .filter_map(|entry| block_device_name(&files::name(entry)))
            .filter_map(|name| namespace(sysfs, &name, &uses))
            .collect();
    }
    drives.into_values().collect()
}

/// `nvme0n1` is a block device; `nvme0c1n1` is one path of several to `nvme0n1`; `ng0n1` is its character
/// device.
fn block_device_name(entry: &str) -> Option<String> {
    let rest = entry.strip_prefix("nvme")?;
    let (head, namespace) = rest.split_once('n')?;
    let instance = head.split('c').next()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(instance) && is_number(namespace)).then(|| format!("nvme{instance}n{namespace}"))
}

fn namespace(sysfs: &Path, name: &str, uses: &Uses) -> Option<DriveUse> {
    let directory = sysfs.join("block").join(name);
    let size_bytes = files::number(&directory.join("size"))?.saturating_mul(SECTOR_BYTES);
    let partitions: Vec<_> = files::entries(&directory)
        .into_iter()
        .filter(|entry| entry.join("partition").exists())
        .collect();
    let mut used_by = Vec::new();
    for device in std::iter::once(&directory).chain(&partitions) {
        used_by.extend(uses.of(device));
        used_by.extend(
            files::entries(&device.join("holders"))
                .iter()
                .map(|holder| files::name(holder)),
        );
    }
    Some(DriveUse {
        name: name.to_owned(),
        size_bytes,
        partitions: partitions.len(),
        used_by,
    })
}

/// What is mounted and swapped to.
struct Uses {
    /// Mount points by device number, `259:1`.
    mounts: Vec<(String, String)>,
    /// Names of the block devices that are swapped to.
    swaps: Vec<String>,
}

impl Uses {
    fn read(proc: &Path) -> Self {
        // 36 35 98:0 /root /mount/point options - type /dev/source options: proc(5), mountinfo.
        let mounts = files::text(&proc.join("self/mountinfo"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ').skip(2);
                let number = words.next()?.to_owned();
                let point = words.nth(1)?.replace("\\040", " ");
                Some((number, point))
            })
            .collect();
        let swaps = files::text(&proc.join("swaps"))
            .unwrap_or_default()
            .lines()
            .skip(1)
            .filter_map(|line| {
                line.split_whitespace()
                    .next()?
                    .strip_prefix("/dev/")
                    .map(str::to_owned)
            })
            .collect();
        Self { mounts, swaps }
    }

    fn of(&self, device: &Path) -> Vec<String> {
        let number = files::line(&device.join("dev"));
        let mounted = self
            .mounts
            .iter()
            .filter(|(mounted, _)| Some(mounted) == number.as_ref())
            .map(|(_, point)| point.clone());
        let name = files::name(device);
        let swapped = self
            .swaps
            .iter()
            .filter(|swap| **swap == name)
            .map(|_| "[swap]".to_owned());
        mounted.chain(swapped).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_are_told_from_paths_and_others() {
        for (entry, name) in [
            ("nvme0n1", Some("nvme0n1")),
            ("nvme12n34", Some("nvme12n34")),
            ("nvme0c3n1", Some("nvme0n1")),
            ("ng0n1", None),
            ("nvme0", None),
            ("nvme0n1p1", None),
            ("nvmexn1", None),
            ("power", None),
        ] {
            assert_eq!(block_device_name(entry).as_deref(), name, "{entry}");
        }
    }
}
