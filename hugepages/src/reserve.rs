//! Asking the kernel for huge pages.

use std::fs;
use std::path::Path;

use crate::error::Error;
use crate::page::PageKind;
use crate::topology::{pool_directory, read_number};

/// Makes sure that at least `count` huge pages of the given size exist on `numa_node` (or on the whole
/// machine), in use or free; returns how many exist now. Pages that exist already are kept.
///
/// `sysfs_root` is [`SYSFS_ROOT`](crate::SYSFS_ROOT) but in tests.
///
/// # Errors
///
/// [`Error::UnknownPageSize`] if the kernel has no such pages there, [`Error::Reserve`] without the right to
/// change the reservation, [`Error::ReservedTooFew`] if memory is short; both tell the command to run by
/// hand.
pub fn reserve(sysfs_root: &Path, page: PageKind, numa_node: Option<u32>, count: u64) -> Result<u64, Error> {
    let path = pool_directory(sysfs_root, page.size_bytes(), numa_node).join("nr_hugepages");
    if !page.is_huge() || !path.exists() {
        return Err(Error::UnknownPageSize {
            page,
            numa_node,
            path,
        });
    }
    let before = read_number(&path)?;
    if before >= count {
        return Ok(before);
    }
    let command = by_hand(page, numa_node, count, &path);
    if let Err(source) = fs::write(&path, format!("{count}\n")) {
        return Err(Error::Reserve {
            count,
            page,
            path,
            source,
            command,
        });
    }
    let reserved = read_number(&path)?;
    if reserved < count {
        return Err(Error::ReservedTooFew {
            count,
            reserved,
            page,
            command,
        });
    }
    Ok(reserved)
}

/// The command that makes `count` pages exist. `vm.nr_hugepages` is about the default size and the whole
/// machine.
fn by_hand(page: PageKind, numa_node: Option<u32>, count: u64, path: &Path) -> String {
    match (page, numa_node) {
        (PageKind::Size2MiB, None) => format!("sysctl -w vm.nr_hugepages={count}"),
        _ => format!("echo {count} > {}", path.display()),
    }
}
