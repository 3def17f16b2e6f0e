//! SPDK's environment in this process: started when the first drive is opened, once, and never stopped.
//!
//! It has no thread in the data path: DPDK's one logical core is a thread that ends when the environment is
//! up, and is allowed on every processor of the process, so that nothing changes where reactors are pinned.
//! What remains are DPDK's threads for interrupts and alarms, which sleep.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use pollux_hugepages::SYSFS_ROOT;
use rustix::process::getpid;
use rustix::thread::{CpuSet, sched_getaffinity};

use super::error::SpdkError;
use super::raw::Errno;
use super::raw::environment::{Level, Start, at_exit, log_to, start};

/// SPDK's own memory where there are no huge pages, in MiB: for controllers and queues over fabrics.
const ORDINARY_MIB: i32 = 256;

/// Whether drives on PCI can be had, or why nothing can.
static STARTED: OnceLock<Result<bool, Errno>> = OnceLock::new();

/// Starts the environment unless it runs already. Blocks.
///
/// # Errors
///
/// [`SpdkError::Environment`], the same each time, and [`SpdkError::HugePages`] if PCI is wanted and cannot
/// be had.
pub(super) fn ensure(pci: bool) -> Result<(), SpdkError> {
    if pci && STARTED.get().is_none() && !has_huge_pages() {
        return Err(SpdkError::HugePages);
    }
    let started = STARTED.get_or_init(|| {
        let huge_pages = has_huge_pages();
        // Where there are huge pages a drive on PCI may still come after a remote one.
        let settings = Start {
            processors: processors(),
            pci: huge_pages,
            huge_pages,
            ordinary_mib: ORDINARY_MIB,
        };
        log_to(log);
        let thread = std::thread::Builder::new()
            .name("pollux-spdk-start".to_owned())
            .spawn(move || start(&settings));
        let joined = thread.map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        joined.join().unwrap_or(Err(Errno(libc::EIO)))?;
        at_exit(super::open::leave_all);
        Ok(huge_pages)
    });
    match started {
        Ok(true) => Ok(()),
        Ok(false) if pci => Err(SpdkError::HugePages),
        Ok(false) => Ok(()),
        Err(error) => Err(SpdkError::Environment {
            source: io::Error::from_raw_os_error(error.0),
        }),
    }
}

fn has_huge_pages() -> bool {
    let topology = pollux_hugepages::discover(Path::new(SYSFS_ROOT));
    topology.is_ok_and(|topology| topology.huge_pages.iter().any(|pages| pages.available() > 0))
}

/// The processors that the process may use, as `0,1,5`.
fn processors() -> String {
    // Those of the first thread: the calling one may be pinned already.
    let Ok(set) = sched_getaffinity(Some(getpid())) else {
        return "0".to_owned();
    };
    let numbers: Vec<String> = (0..CpuSet::MAX_CPU)
        .filter(|&processor| set.is_set(processor))
        .map(|processor| processor.to_string())
        .collect();
    numbers.join(",")
}

/// SPDK's log, as this program's.
fn log(level: Level, function: &str, text: &str) {
    match level {
        Level::Error => tracing::warn!(target: "spdk", function, "{text}"),
        Level::Warning => tracing::info!(target: "spdk", function, "{text}"),
        Level::Other => tracing::debug!(target: "spdk", function, "{text}"),
    }
}
