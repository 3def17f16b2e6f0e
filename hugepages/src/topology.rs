//! What the machine offers: huge pages and NUMA nodes, read from sysfs.
//!
//! Files used, below the root (`/sys`):
//!
//! - `kernel/mm/hugepages/hugepages-<kB>kB/{nr,free,resv,surplus}_hugepages`: the whole machine.
//! - `devices/system/node/node<N>/hugepages/hugepages-<kB>kB/{nr,free,surplus}_hugepages`: one node.
//! - `devices/system/node/node<N>/{cpulist,meminfo}`; `devices/system/cpu/online` without NUMA.
//! - `kernel/mm/transparent_hugepage/enabled`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Where the kernel mounts sysfs.
pub const SYSFS_ROOT: &str = "/sys";

/// No CPU number above this is believed: sysfs is trusted, but a loop needs a bound.
const CPU_MAX: u32 = 1 << 16;

/// Counts of huge pages of one size, on one NUMA node or on the whole machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// The size of a page in bytes.
    pub page_bytes: u64,
    /// Pages that exist, used or free, surplus ones included.
    pub total: u64,
    /// Pages that no mapping uses.
    pub free: u64,
    /// Free pages that mappings have been promised. The kernel does not count this per node: `None` there.
    pub reserved: Option<u64>,
    /// Pages beyond the persistent pool, made on demand.
    pub surplus: u64,
}

impl HugePages {
    /// Pages that a new mapping can have.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved.unwrap_or(0))
    }
}

/// A NUMA node: CPUs and the memory next to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// The kernel's number of the node.
    pub id: u32,
    /// Its CPUs, ascending.
    pub cpus: Vec<u32>,
    /// All its memory in bytes; `None` where the kernel does not say.
    pub memory_total_bytes: Option<u64>,
    /// Its unused memory in bytes; `None` where the kernel does not say.
    pub memory_free_bytes: Option<u64>,
    /// Its huge pages, by ascending size.
    pub huge_pages: Vec<HugePages>,
}

/// When the kernel makes huge pages of ordinary memory by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransparentHugePages {
    /// Everywhere.
    Always,
    /// Where a program asks for it, as an arena does.
    Advised,
    /// Never.
    Never,
    /// The kernel was built without them.
    Absent,
}

/// What the machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Huge pages of the whole machine, by ascending size; empty if the kernel was built without them.
    pub huge_pages: Vec<HugePages>,
    /// NUMA nodes, by ascending number; one node with all CPUs if the kernel was built without NUMA.
    pub nodes: Vec<NumaNode>,
    /// Transparent huge pages.
    pub transparent: TransparentHugePages,
}

impl Topology {
    /// The node that `cpu` belongs to.
    #[must_use]
    pub fn node_of_cpu(&self, cpu: u32) -> Option<&NumaNode> {
        self.nodes.iter().find(|node| node.cpus.contains(&cpu))
    }
}

/// Reads the huge pages and NUMA nodes of the machine. `sysfs_root` is [`SYSFS_ROOT`] but in tests.
///
/// # Errors
///
/// [`Error::Read`] or [`Error::Parse`] if a file that is there cannot be read or understood. What the kernel
/// was built without is no error.
pub fn discover(sysfs_root: &Path) -> Result<Topology, Error> {
    let huge_pages = read_pools(&sysfs_root.join("kernel/mm/hugepages"))?;
    let nodes_directory = sysfs_root.join("devices/system/node");
    let mut nodes = Vec::new();
    for name in names_in(&nodes_directory)? {
        if let Some(id) = name.strip_prefix("node").and_then(|number| number.parse().ok()) {
            nodes.push(read_node(id, &nodes_directory.join(&name))?);
        }
    }
    nodes.sort_by_key(|node| node.id);
    if nodes.is_empty() {
        nodes.push(only_node(sysfs_root, &huge_pages)?);
    }
    let transparent = read_transparent(&sysfs_root.join("kernel/mm/transparent_hugepage/enabled"))?;
    Ok(Topology {
        huge_pages,
        nodes,
        transparent,
    })
}

/// The directory that counts huge pages of a size, on a node or on the whole machine.
pub(crate) fn pool_directory(sysfs_root: &Path, page_bytes: usize, numa_node: Option<u32>) -> PathBuf {
    let parent = match numa_node {
        Some(node) => sysfs_root.join(format!("devices/system/node/node{node}/hugepages")),
        None => sysfs_root.join("kernel/mm/hugepages"),
    };
    parent.join(format!("hugepages-{}kB", page_bytes >> 10))
}

/// Reads a file that holds one decimal number.
pub(crate) fn read_number(path: &Path) -> Result<u64, Error> {
    let text = read(path)?;
    text.trim()
        .parse()
        .map_err(|_| unexpected(path, "a decimal number", &text))
}

fn read_node(id: u32, directory: &Path) -> Result<NumaNode, Error> {
    let cpulist_path = directory.join("cpulist");
    let cpulist = read(&cpulist_path)?;
    let cpus = parse_cpu_list(&cpulist)
        .ok_or_else(|| unexpected(&cpulist_path, "a list of CPUs such as 0-3,8", &cpulist))?;
    let meminfo = read_optional(&directory.join("meminfo"))?.unwrap_or_default();
    Ok(NumaNode {
        id,
        cpus,
        memory_total_bytes: meminfo_bytes(&meminfo, "MemTotal:"),
        memory_free_bytes: meminfo_bytes(&meminfo, "MemFree:"),
        huge_pages: read_pools(&directory.join("hugepages"))?,
    })
}

/// A machine without NUMA is one node.
fn only_node(sysfs_root: &Path, huge_pages: &[HugePages]) -> Result<NumaNode, Error> {
    let path = sysfs_root.join("devices/system/cpu/online");
    let cpus = match read_optional(&path)? {
        Some(text) => {
            parse_cpu_list(&text).ok_or_else(|| unexpected(&path, "a list of CPUs such as 0-3,8", &text))?
        }
        None => Vec::new(),
    };
    let huge_pages = huge_pages
        .iter()
        .map(|pages| HugePages {
            reserved: None,
            ..pages.clone()
        })
        .collect();
    Ok(NumaNode {
        id: 0,
        cpus,
        memory_total_bytes: None,
        memory_free_bytes: None,
        huge_pages,
    })
}

fn read_pools(directory: &Path) -> Result<Vec<HugePages>, Error> {
    let mut pools = Vec::new();
    for name in names_in(directory)? {
        let size_kib = name
            .strip_prefix("hugepages-")
            .and_then(|rest| rest.strip_suffix("kB"))
            .and_then(|number| number.parse::<u64>().ok())
            .and_then(|kib| kib.checked_mul(1024));
        let Some(page_bytes) = size_kib else { continue };
        let pool = directory.join(&name);
        let reserved_path = pool.join("resv_hugepages");
        pools.push(HugePages {
            page_bytes,
            total: read_number(&pool.join("nr_hugepages"))?,
            free: read_number(&pool.join("free_hugepages"))?,
            reserved: if reserved_path.exists() {
                Some(read_number(&reserved_path)?)
            } else {
                None
            },
            surplus: read_number(&pool.join("surplus_hugepages"))?,
        });
    }
    pools.sort_by_key(|pages| pages.page_bytes);
    Ok(pools)
}

fn read_transparent(path: &Path) -> Result<TransparentHugePages, Error> {
    let Some(text) = read_optional(path)? else {
        return Ok(TransparentHugePages::Absent);
    };
    let chosen = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("always") => Ok(TransparentHugePages::Always),
        Some("madvise") => Ok(TransparentHugePages::Advised),
        Some("never") => Ok(TransparentHugePages::Never),
        _ => Err(unexpected(
            path,
            "one of always, madvise and never in brackets",
            &text,
        )),
    }
}

/// `0-3,8` becomes 0, 1, 2, 3, 8. An empty list is a node without CPUs.
fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (
            first.trim().parse::<u32>().ok()?,
            last.trim().parse::<u32>().ok()?,
        );
        if first > last || last > CPU_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// `Node 0 MemTotal:  1024 kB` becomes 1048576.
fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.contains(key))?;
    let kib: u64 = line
        .split_once(key)?
        .1
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

/// The names in a directory; none if it is not there.
fn names_in(directory: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

fn read_optional(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn unexpected(path: &Path, expected: &'static str, found: &str) -> Error {
    let found = found.trim().chars().take(64).collect();
    Error::Parse {
        path: path.to_owned(),
        expected,
        found,
    }
}
