//! Why a drive cannot be had.

use std::path::PathBuf;

/// Why a drive cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SpdkError {
    /// The path of the URI names no drive.
    #[error(
        "{path:?} is no drive: write pcie:///0000:5e:00.0/1, a PCI address and the number of a namespace"
    )]
    Address {
        /// What stands there.
        path: String,
    },
    /// SPDK's environment did not start.
    #[error(
        "SPDK's environment does not start: {source}; it prints why. Huge pages need a mount: mount -t \
         hugetlbfs nodev /dev/hugepages"
    )]
    Environment {
        /// What SPDK returned.
        source: std::io::Error,
    },
    /// Drives on PCI reach memory on huge pages only.
    #[error(
        "there are no free huge pages, and a drive on PCI needs some: sysctl -w vm.nr_hugepages=512, then \
         start the engine again"
    )]
    HugePages,
    /// No such device.
    #[error("no device at PCI address {address}: pollux-engine drives list tells which there are")]
    NoDevice {
        /// Its address.
        address: String,
    },
    /// The kernel, or nobody, drives it.
    #[error(
        "the drive belongs to the driver {driver}: to give it to the engine, run pollux-engine drives bind \
         {address}"
    )]
    Driver {
        /// Its address.
        address: String,
        /// Who has it.
        driver: String,
    },
    /// No controller answers.
    #[error("no controller answers at {place}; the log tells why")]
    Connect {
        /// Where.
        place: String,
    },
    /// No such namespace.
    #[error("the controller has no namespace {id}; it has {}", list(.known))]
    Namespace {
        /// The namespace asked for.
        id: u32,
        /// Those there are.
        known: Vec<u32>,
    },
    /// Several namespaces, and none was asked for.
    #[error("the controller has the namespaces {}: name one with `nsid`", list(.known))]
    WhichNamespace {
        /// Those there are.
        known: Vec<u32>,
    },
    /// A format that is not supported.
    #[error("the format of the namespace is not supported: {what}; nvme format gives it another one")]
    Format {
        /// What is not.
        what: String,
    },
    /// The same controller is open with other settings.
    #[error("the controller at {place} is open already, with other settings; give the same ones")]
    OtherSettings {
        /// Where.
        place: String,
    },
    /// The transport is not in the SPDK that was linked.
    #[error("SPDK was built without the transport {name}: build it with --with-rdma, and the engine again")]
    Transport {
        /// Its name.
        name: &'static str,
    },
    /// No thread to look after the controller.
    #[error("no thread could be started to look after the controller; raise the limit on threads")]
    NoThread,
    /// Something of the system that cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn list(ids: &[u32]) -> String {
    if ids.is_empty() {
        return "none".to_owned();
    }
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}
