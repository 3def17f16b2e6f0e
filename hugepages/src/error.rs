//! What can go wrong with memory.

use std::io;
use std::path::PathBuf;

use crate::page::PageKind;

/// An error of this crate: what failed, where, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An arena of no bytes, or of more than the address space holds.
    #[error(
        "an arena of {bytes} bytes cannot be mapped: ask for at least 1 byte and less than the address space"
    )]
    ArenaSize {
        /// The size asked for.
        bytes: usize,
    },
    /// The kernel refused the mapping.
    #[error(
        "cannot map {bytes} bytes on {page} pages (NUMA node {}): {source}; free memory, raise the limits of \
         the process or reserve huge pages",
        node_name(*.numa_node)
    )]
    Map {
        /// The size asked for.
        bytes: usize,
        /// The pages asked for.
        page: PageKind,
        /// The NUMA node asked for.
        numa_node: Option<u32>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A size class that is not a power of two, below 4096 bytes, out of order, or too far from the next one.
    #[error(
        "size class {class_bytes} of a buffer pool is not usable: classes are powers of two from 4096 bytes, \
         in ascending order, each at most 64 times the one before, at least 1 and at most 8 of them"
    )]
    SizeClass {
        /// The offending class; 0 when there is none or too many.
        class_bytes: usize,
    },
    /// A pool smaller than its largest class, or larger than can be indexed.
    #[error(
        "a buffer pool of {bytes} bytes is not usable: give it from {minimum_bytes} to {maximum_bytes} bytes"
    )]
    PoolSize {
        /// The size asked for.
        bytes: usize,
        /// The least that works.
        minimum_bytes: usize,
        /// The most that works.
        maximum_bytes: usize,
    },
    /// A pool hands out references to its memory, which another process must not change.
    #[error("a buffer pool cannot use a shareable arena: unset `shareable` and share an arena of its own")]
    PoolShareable,
    /// A buffer larger than the largest size class.
    #[error(
        "a buffer of {len_bytes} bytes is more than the pool gives, {maximum_bytes} bytes: ask for several"
    )]
    BufferSize {
        /// The size asked for.
        len_bytes: usize,
        /// The size of the largest class.
        maximum_bytes: usize,
    },
    /// More wait for memory of a pool than it takes.
    #[error(
        "too many wait for memory of the buffer pool: take on less at a time, or give the pool more waiters"
    )]
    TooManyWaiters,
    /// A file of sysfs could not be read.
    #[error("cannot read {}: {source}; is sysfs mounted?", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of sysfs holds something else than expected.
    #[error("cannot understand {}: expected {expected}, found {found:?}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// The beginning of what it holds.
        found: String,
    },
    /// The kernel does not know this page size here.
    #[error(
        "the machine has no {page} huge pages on NUMA node {}: {} is missing; choose another page size or \
         node, or boot with hugepagesz={}",
        node_name(*.numa_node),
        .path.display(),
        if *.page == PageKind::Size1GiB { "1G" } else { "2M" }
    )]
    UnknownPageSize {
        /// The pages asked for.
        page: PageKind,
        /// The NUMA node asked for.
        numa_node: Option<u32>,
        /// The file that is not there.
        path: PathBuf,
    },
    /// The reservation could not be written.
    #[error(
        "cannot reserve {count} huge pages of {page}: {}: {source}; run as root: {command}",
        .path.display()
    )]
    Reserve {
        /// The number of pages that should exist.
        count: u64,
        /// Their size.
        page: PageKind,
        /// The file written to.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
        /// The shell command that does it by hand.
        command: String,
    },
    /// The kernel found fewer pages than asked for.
    #[error(
        "only {reserved} of {count} huge pages of {page} could be reserved, memory is short or fragmented; \
         free memory or reboot, then run as root: {command}"
    )]
    ReservedTooFew {
        /// The number of pages that should exist.
        count: u64,
        /// The number that exist.
        reserved: u64,
        /// Their size.
        page: PageKind,
        /// The shell command that does it by hand.
        command: String,
    },
}

fn node_name(node: Option<u32>) -> String {
    node.map_or_else(|| "any".to_owned(), |node| node.to_string())
}
