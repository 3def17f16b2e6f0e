//! `pollux-engine doctor`: what this machine offers to an engine, and the command that mends each problem.
//!
//! Everything is read below [`Roots`], so that tests can show it machines of their own; only the io_uring is
//! asked for by making one. What is read is put into a [`Report`] first ([`examine`]), then judged by pure
//! functions ([`judge`]), then printed ([`print`]).

mod cores;
mod drives;
pub(crate) mod files;
mod judge;
mod limits;
mod print;
mod ring;

use std::path::PathBuf;

use pollux_hugepages::{NumaNode, Topology, TransparentHugePages};
use serde::Serialize;

pub use cores::Cores;
pub use drives::{Drive, DriveUse};
pub use judge::{Problem, Severity};
pub use limits::{Limit, Limits};
pub use print::{table, write_json};
pub use ring::{IoUring, Operation};

/// Where the kernel tells about itself.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/sys`.
    pub sysfs: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// `/lib/modules`.
    pub modules: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sysfs: PathBuf::from(pollux_hugepages::SYSFS_ROOT),
            proc: PathBuf::from("/proc"),
            modules: PathBuf::from("/lib/modules"),
            dev: PathBuf::from("/dev"),
        }
    }
}

/// What the machine offers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Whether an engine can run.
    pub verdict: Verdict,
    /// What is wrong or could be better, the worst first.
    pub problems: Vec<Problem>,
    /// The kernel's release.
    pub kernel: String,
    /// Processors.
    pub cores: Cores,
    /// NUMA nodes, with the huge pages of each.
    pub numa_nodes: Vec<Node>,
    /// Huge pages of the whole machine, by size.
    pub huge_pages: Vec<Pages>,
    /// When the kernel makes huge pages of ordinary memory by itself.
    pub transparent_huge_pages: &'static str,
    /// What the kernel's io_uring can do.
    pub io_uring: IoUring,
    /// NVMe controllers on PCI and over fabrics.
    pub drives: Vec<Drive>,
    /// Limits of this process.
    pub limits: Limits,
    /// The module that lets this machine be a host.
    pub nvme_tcp_module: ModuleState,
    /// SPDK's driver.
    pub spdk: Spdk,
}

/// Whether an engine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It can, and nothing is in its way.
    Fine,
    /// It can, with less than the machine could give.
    Warnings,
    /// It cannot.
    CannotRun,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its processors.
    pub cpus: Vec<u32>,
    /// Its memory.
    pub memory_total_bytes: Option<u64>,
    /// Its unused memory.
    pub memory_free_bytes: Option<u64>,
    /// Its huge pages, by size.
    pub huge_pages: Vec<Pages>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// The size of a page.
    pub page_bytes: u64,
    /// How many there are.
    pub total: u64,
    /// How many can be had.
    pub available: u64,
}

/// Whether a kernel module is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleState {
    /// Loaded, or a part of the kernel.
    Loaded,
    /// Not loaded, but installed.
    Installed,
    /// Not installed.
    Missing,
}

/// SPDK's driver in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Spdk {
    /// Whether the program was built with it.
    pub built_in: bool,
}

/// The NVMe drives of the machine, and those connected over fabrics.
pub fn drives(roots: &Roots) -> Vec<Drive> {
    drives::read(&roots.sysfs, &roots.proc)
}

/// Reads what the machine offers, and judges it. What cannot be read becomes a problem of the report.
pub fn examine(roots: &Roots) -> Report {
    examine_with(roots, ring::probe(&roots.proc))
}

/// The same, with an io_uring that was asked for elsewhere.
pub fn examine_with(roots: &Roots, io_uring: IoUring) -> Report {
    let mut problems = Vec::new();
    let topology = pollux_hugepages::discover(&roots.sysfs).unwrap_or_else(|error| {
        problems.push(Problem::unreadable(&error));
        Topology {
            huge_pages: Vec::new(),
            nodes: Vec::new(),
            transparent: TransparentHugePages::Absent,
        }
    });
    let mut report = Report {
        verdict: Verdict::Fine,
        problems: Vec::new(),
        kernel: files::line(&roots.proc.join("sys/kernel/osrelease")).unwrap_or_default(),
        cores: cores::read(&roots.sysfs, &roots.proc),
        numa_nodes: topology.nodes.iter().map(node).collect(),
        huge_pages: pages(&topology.huge_pages),
        transparent_huge_pages: transparent(topology.transparent),
        io_uring,
        drives: drives(roots),
        limits: limits::read(&roots.proc),
        nvme_tcp_module: ModuleState::Missing,
        spdk: Spdk {
            built_in: cfg!(feature = "spdk"),
        },
    };
    report.nvme_tcp_module = module_state(roots, &report.kernel, "nvme_tcp");
    problems.extend(judge::judge(&report));
    problems.sort_by_key(|problem| problem.severity);
    report.verdict = judge::verdict(&problems);
    report.problems = problems;
    report
}

fn node(node: &NumaNode) -> Node {
    Node {
        id: node.id,
        cpus: node.cpus.clone(),
        memory_total_bytes: node.memory_total_bytes,
        memory_free_bytes: node.memory_free_bytes,
        huge_pages: pages(&node.huge_pages),
    }
}

fn pages(pools: &[pollux_hugepages::HugePages]) -> Vec<Pages> {
    pools
        .iter()
        .map(|pool| Pages {
            page_bytes: pool.page_bytes,
            total: pool.total,
            available: pool.available(),
        })
        .collect()
}

fn transparent(setting: TransparentHugePages) -> &'static str {
    match setting {
        TransparentHugePages::Always => "always",
        TransparentHugePages::Advised => "madvise",
        TransparentHugePages::Never => "never",
        TransparentHugePages::Absent => "absent",
    }
}

fn module_state(roots: &Roots, release: &str, name: &str) -> ModuleState {
    if roots.sysfs.join("module").join(name).exists() {
        return ModuleState::Loaded;
    }
    let directory = roots.modules.join(release);
    let listed = |file: &str| {
        let names = [name.to_owned(), name.replace('_', "-")];
        files::text(&directory.join(file)).is_some_and(|text| {
            text.lines().any(|line| {
                let path = line.split(':').next().unwrap_or(line);
                let module = path.rsplit('/').next().unwrap_or(path);
                names.iter().any(|name| {
                    module
                        .strip_prefix(name.as_str())
                        .is_some_and(|rest| rest.starts_with(".ko"))
                })
            })
        })
    };
    match (listed("modules.builtin"), listed("modules.dep")) {
        (true, _) => ModuleState::Loaded,
        (false, true) => ModuleState::Installed,
        (false, false) => ModuleState::Missing,
    }
}

#[cfg(test)]
mod tests;
