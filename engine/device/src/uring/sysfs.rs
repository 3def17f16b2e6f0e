//! What the kernel tells about the queue of a block device.
//!
//! Files read, below `/sys/dev/block/MAJOR:MINOR`, or for a partition below the drive that it is part of:
//! `queue/write_cache`, `queue/physical_block_size`, `queue/optimal_io_size`, `queue/discard_max_bytes`,
//! `queue/write_zeroes_max_bytes`, `queue/atomic_write_unit_max_bytes` (since Linux 6.11).

use std::path::{Path, PathBuf};

/// Where the kernel lists block devices by number.
pub(super) const BLOCK_DEVICES_ROOT: &str = "/sys/dev/block";

/// The queue of a block device, as far as it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueFacts {
    /// Completed writes may be lost with the power until they are flushed. What does not tell may lose them.
    pub(super) volatile_write_cache: bool,
    /// Bytes that the medium writes whole; 0 if unknown.
    pub(super) physical_block_bytes: u64,
    /// Bytes of the most efficient transfers; 0 if unknown.
    pub(super) optimal_bytes: u64,
    /// Bytes of writes that are never torn; 0 if unknown.
    pub(super) atomic_write_bytes: u64,
    /// Freeing blocks works, and zeros can be had without writing them.
    pub(super) deallocates: bool,
}

/// Reads the queue of the device with this number.
pub(super) fn read_queue(root: &Path, major: u32, minor: u32) -> QueueFacts {
    let queue = queue_directory(&root.join(format!("{major}:{minor}")));
    let number = |name: &str| read_number(&queue, name).unwrap_or(0);
    let write_cache = read_text(&queue, "write_cache");
    QueueFacts {
        volatile_write_cache: write_cache.as_deref() != Some("write through"),
        physical_block_bytes: number("physical_block_size"),
        optimal_bytes: number("optimal_io_size"),
        atomic_write_bytes: number("atomic_write_unit_max_bytes"),
        deallocates: number("discard_max_bytes") > 0 && number("write_zeroes_max_bytes") > 0,
    }
}

/// A partition has no queue of its own: its drive is the directory above.
fn queue_directory(device: &Path) -> PathBuf {
    let resolved = std::fs::canonicalize(device).unwrap_or_else(|_| device.to_owned());
    let own = resolved.join("queue");
    match resolved.parent() {
        Some(drive) if !own.exists() => drive.join("queue"),
        _ => own,
    }
}

fn read_text(queue: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(queue.join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn read_number(queue: &Path, name: &str) -> Option<u64> {
    read_text(queue, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(directory).expect("a directory");
        for (name, text) in files {
            std::fs::write(directory.join(name), text).expect("a file");
        }
    }

    #[test]
    fn reads_a_drive_and_its_partition() {
        let root = tempfile::tempdir().expect("a directory");
        let drive = root.path().join("devices/nvme0n1");
        write(
            &drive.join("queue"),
            &[
                ("write_cache", "write through\n"),
                ("physical_block_size", "4096\n"),
                ("optimal_io_size", "131072\n"),
                ("atomic_write_unit_max_bytes", "16384\n"),
                ("discard_max_bytes", "2199023255040\n"),
                ("write_zeroes_max_bytes", "131072\n"),
            ],
        );
        write(&drive.join("nvme0n1p1"), &[("partition", "1\n")]);
        let numbers = root.path().join("block");
        std::fs::create_dir(&numbers).expect("a directory");
        std::os::unix::fs::symlink(&drive, numbers.join("259:0")).expect("a link");
        std::os::unix::fs::symlink(drive.join("nvme0n1p1"), numbers.join("259:1")).expect("a link");
        let expected = QueueFacts {
            volatile_write_cache: false,
            physical_block_bytes: 4096,
            optimal_bytes: 131_072,
            atomic_write_bytes: 16_384,
            deallocates: true,
        };
        assert_eq!(read_queue(&numbers, 259, 0), expected);
        assert_eq!(read_queue(&numbers, 259, 1), expected);
    }

    #[test]
    fn what_is_not_told_is_not_trusted() {
        let root = tempfile::tempdir().expect("a directory");
        let queue = root.path().join("8:0/queue");
        write(
            &queue,
            &[("write_cache", "write back\n"), ("discard_max_bytes", "many\n")],
        );
        for minor in [0, 1] {
            let facts = read_queue(root.path(), 8, minor);
            assert!(facts.volatile_write_cache && !facts.deallocates, "{facts:?}");
            assert_eq!(facts.optimal_bytes, 0);
        }
    }
}
