//! What is wrong with a machine, and the command that mends it.

use std::fmt;

use serde::Serialize;

use super::{ModuleState, Report, Verdict};

/// Huge pages of 2 MiB that the advice asks for: 1 GiB.
const ADVISED_PAGES: u64 = 512;

/// The size of the pages that the advice asks for.
const ADVISED_PAGE_BYTES: u64 = 2 << 20;

/// Descriptors that a busy engine needs: a few thousand connections and files.
const ADVISED_OPEN_FILES: u64 = 16_384;

/// Memory that an engine locks: its rings, and with SPDK its buffers.
const ADVISED_LOCKED_BYTES: u64 = 64 << 20;

/// Errors of the operating system (`errno(3)`).
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

/// How bad a problem is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// An engine cannot run.
    Error,
    /// An engine runs, slower or smaller than the machine could.
    Warning,
    /// Worth knowing.
    Hint,
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Hint => "hint",
        })
    }
}

/// Something that is wrong, or could be better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// The command, or for want of one the thing to do, that mends it.
    pub fix: String,
}

impl Problem {
    fn new(severity: Severity, what: impl Into<String>, fix: impl Into<String>) -> Self {
        let (what, fix) = (what.into(), fix.into());
        Self { severity, what, fix }
    }

    /// Something that could not be read.
    pub(super) fn unreadable(error: &dyn std::error::Error) -> Self {
        Self::new(Severity::Warning, error.to_string(), "mount -t sysfs sysfs /sys")
    }
}

/// The worst decides.
pub(super) fn verdict(problems: &[Problem]) -> Verdict {
    match problems.iter().map(|problem| problem.severity).min() {
        Some(Severity::Error) => Verdict::CannotRun,
        Some(Severity::Warning) => Verdict::Warnings,
        Some(Severity::Hint) | None => Verdict::Fine,
    }
}

/// Everything that is wrong.
pub(super) fn judge(report: &Report) -> Vec<Problem> {
    let mut problems = Vec::new();
    judge_ring(report, &mut problems);
    judge_memory(report, &mut problems);
    judge_cores(report, &mut problems);
    judge_limits(report, &mut problems);
    judge_hosts(report, &mut problems);
    judge_drives(report, &mut problems);
    problems
}

fn judge_ring(report: &Report, problems: &mut Vec<Problem>) {
    let ring = &report.io_uring;
    if let Some(error) = &ring.error {
        let fix = match (ring.disabled_setting, error.code) {
            (Some(1 | 2), _) => "sysctl -w kernel.io_uring_disabled=0",
            (_, Some(EPERM)) => {
                "allow the io_uring system calls; in a container: --security-opt seccomp=unconfined"
            }
            (_, Some(ENOSYS)) => "boot a kernel with io_uring, 5.11 or later",
            _ => "check `ulimit -l` and free memory, then run this again",
        };
        let what = format!("io_uring cannot be used: {}", error.message);
        problems.push(Problem::new(Severity::Error, what, fix));
        return;
    }
    let missing: Vec<&str> = ring
        .operations
        .iter()
        .filter(|operation| operation.required && !operation.supported)
        .map(|operation| operation.name)
        .chain((!ring.keeps_completions).then_some("NODROP"))
        .chain((!ring.timed_wait).then_some("EXT_ARG"))
        .collect();
    if !missing.is_empty() {
        problems.push(Problem::new(
            Severity::Error,
            format!(
                "io_uring of kernel {} lacks {}",
                report.kernel,
                missing.join(", ")
            ),
            "boot kernel 5.11 or later",
        ));
    } else if !ring.single_issuer || !ring.defer_taskrun {
        problems.push(Problem::new(
            Severity::Warning,
            format!(
                "io_uring of kernel {} lacks SINGLE_ISSUER or DEFER_TASKRUN, and is slower for it",
                report.kernel
            ),
            "boot kernel 6.1 or later",
        ));
    }
}

fn judge_memory(report: &Report, problems: &mut Vec<Problem>) {
    if report.huge_pages.iter().all(|pages| pages.total == 0) {
        let fix = if report
            .huge_pages
            .iter()
            .any(|pages| pages.page_bytes == ADVISED_PAGE_BYTES)
        {
            format!("sysctl -w vm.nr_hugepages={ADVISED_PAGES}")
        } else {
            "boot a kernel with CONFIG_HUGETLBFS".to_owned()
        };
        problems.push(Problem::new(
            Severity::Warning,
            "there are no huge pages: ordinary memory is used",
            fix,
        ));
        return;
    }
    if report.huge_pages.iter().all(|pages| pages.available == 0) {
        let total = report
            .huge_pages
            .iter()
            .find(|pages| pages.page_bytes == ADVISED_PAGE_BYTES)
            .map_or(0, |pages| pages.total);
        problems.push(Problem::new(
            Severity::Warning,
            "all huge pages are in use: ordinary memory is used",
            format!("sysctl -w vm.nr_hugepages={}", total + ADVISED_PAGES),
        ));
    }
    for node in &report.numa_nodes {
        let has_none = node.huge_pages.iter().all(|pages| pages.total == 0);
        if report.numa_nodes.len() > 1 && has_none && !node.cpus.is_empty() {
            problems.push(Problem::new(
                Severity::Hint,
                format!(
                    "NUMA node {} has no huge pages: its reactors reach across",
                    node.id
                ),
                format!(
                    "echo {ADVISED_PAGES} > \
                     /sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages",
                    node.id
                ),
            ));
        }
    }
}

fn judge_cores(report: &Report, problems: &mut Vec<Problem>) {
    let cores = &report.cores;
    let slow: Vec<&str> = cores
        .governors
        .keys()
        .map(String::as_str)
        .filter(|governor| *governor != "performance")
        .collect();
    if !slow.is_empty() {
        problems.push(Problem::new(
            Severity::Warning,
            format!(
                "processors are run by the frequency governor {}: latency varies",
                slow.join(", ")
            ),
            "cpupower frequency-set -g performance",
        ));
    }
    if cores.usable_count == 1 {
        problems.push(Problem::new(
            Severity::Hint,
            "only one core can be used: reactors share it with everything else",
            "run with more cores, or leave `--idle adaptive` as it is",
        ));
    } else if cores.isolated.is_empty() && cores.usable_count > 3 {
        problems.push(Problem::new(
            Severity::Hint,
            "no core is isolated: other processes may run where reactors are pinned",
            "boot with isolcpus=LIST nohz_full=LIST, and give LIST to --cores",
        ));
    }
}

fn judge_limits(report: &Report, problems: &mut Vec<Problem>) {
    let is_below = |limit: Option<super::Limit>, wanted| {
        limit.and_then(|limit| limit.soft).filter(|soft| *soft < wanted)
    };
    if let Some(soft) = is_below(report.limits.open_files, ADVISED_OPEN_FILES) {
        problems.push(Problem::new(
            Severity::Warning,
            format!("only {soft} files can be open: each connection is one"),
            format!("ulimit -n {ADVISED_OPEN_FILES}    (systemd: LimitNOFILE={ADVISED_OPEN_FILES})"),
        ));
    }
    if let Some(soft) = is_below(report.limits.locked_memory_bytes, ADVISED_LOCKED_BYTES) {
        problems.push(Problem::new(
            Severity::Hint,
            format!("only {} of memory can be locked", pollux_device::ByteSize(soft)),
            "ulimit -l unlimited    (systemd: LimitMEMLOCK=infinity)",
        ));
    }
}

fn judge_drives(report: &Report, problems: &mut Vec<Problem>) {
    for drive in report.drives.iter().filter(|drive| drive.transport == "pcie") {
        let address = &drive.address;
        let is_for_programs = drive.driver.as_deref().is_some_and(is_program_driver);
        if is_for_programs && !report.spdk.built_in {
            problems.push(Problem::new(
                Severity::Hint,
                format!("the drive {address} is left to a program, and this engine has no driver for it"),
                format!("build the engine with --features spdk, or: pollux-engine drives unbind {address}"),
            ));
        }
        if !is_for_programs && report.spdk.built_in && !drive.is_used() {
            problems.push(Problem::new(
                Severity::Hint,
                format!("the drive {address} is the kernel's, and nothing uses it"),
                format!("to give it to the engine: pollux-engine drives bind {address}"),
            ));
        }
    }
}

/// Whether a driver leaves the drive to a program.
fn is_program_driver(name: &str) -> bool {
    matches!(name, "vfio-pci" | "uio_pci_generic" | "igb_uio")
}

fn judge_hosts(report: &Report, problems: &mut Vec<Problem>) {
    let (what, fix) = match report.nvme_tcp_module {
        ModuleState::Loaded => return,
        ModuleState::Installed => (
            "the module nvme-tcp is not loaded: this machine cannot connect as a host",
            "modprobe nvme-tcp".to_owned(),
        ),
        ModuleState::Missing => (
            "the module nvme-tcp is not installed: this machine can serve, but not connect as a host",
            format!("install the modules of kernel {}", report.kernel),
        ),
    };
    problems.push(Problem::new(Severity::Hint, what, fix));
}
