//! The doctor, shown machines that tests make up.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

/// A machine in a directory.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    /// A good one: four cores, huge pages, the module loaded, no drives.
    fn new() -> Self {
        let machine = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        machine
            .file("proc/sys/kernel/osrelease", "6.12.0-test\n")
            .file("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3\n")
            .file("proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n")
            .file("proc/swaps", "Filename Type Size Used Priority\n")
            .file(
                "proc/self/limits",
                "Limit Soft Hard Units\nMax open files  65536  65536  files\n\
                 Max locked memory  unlimited  unlimited  bytes\n",
            )
            .file("sys/devices/system/cpu/online", "0-3\n")
            .file("sys/devices/system/cpu/isolated", "2-3\n")
            .file("sys/devices/system/node/node0/cpulist", "0-3\n")
            .file(
                "sys/devices/system/node/node0/meminfo",
                "Node 0 MemTotal: 1048576 kB\nNode 0 MemFree: 524288 kB\n",
            )
            .file("sys/module/nvme_tcp/refcnt", "0\n")
            .file(
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always [madvise] never\n",
            )
            .pages("sys/kernel/mm/hugepages", 512, 512)
            .pages("sys/devices/system/node/node0/hugepages", 512, 512);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("made");
        std::fs::write(path, text).expect("written");
        self
    }

    fn link(&self, name: &str, target: &str) -> &Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("made");
        symlink(target, path).expect("linked");
        self
    }

    fn pages(&self, pool: &str, total: u64, free: u64) -> &Self {
        let directory = format!("{pool}/hugepages-2048kB");
        self.file(&format!("{directory}/nr_hugepages"), &format!("{total}\n"))
            .file(&format!("{directory}/free_hugepages"), &format!("{free}\n"))
            .file(&format!("{directory}/surplus_hugepages"), "0\n")
    }

    fn roots(&self) -> Roots {
        Roots {
            sysfs: self.path("sys"),
            proc: self.path("proc"),
            modules: self.path("modules"),
            dev: self.path("dev"),
        }
    }

    fn examine(&self) -> Report {
        examine_with(&self.roots(), ring::complete())
    }
}

fn shown(report: &Report) -> String {
    let mut text = Vec::new();
    table(report, false, &mut text).expect("memory takes it");
    String::from_utf8(text).expect("UTF-8")
}

/// The one problem that `part` is told by.
fn problem<'a>(report: &'a Report, part: &str) -> &'a Problem {
    let found: Vec<&Problem> = report
        .problems
        .iter()
        .filter(|problem| problem.what.contains(part))
        .collect();
    assert_eq!(found.len(), 1, "{part}: {:?}", report.problems);
    found[0]
}

#[test]
fn a_good_machine_is_fine() {
    let report = Machine::new().examine();
    assert_eq!(report.problems, []);
    assert_eq!(report.verdict, Verdict::Fine);
    assert_eq!(report.kernel, "6.12.0-test");
    assert_eq!(report.cores.usable_count, 4);
    assert_eq!(report.numa_nodes[0].memory_free_bytes, Some(512 << 20));
    assert_eq!(report.huge_pages[0].total, 512);
    let text = shown(&report);
    assert!(text.contains("4 usable (0-3), isolated: 2-3"), "{text}");
    assert!(text.contains("512 of 512 pages of 2 MiB free"), "{text}");
    assert!(text.ends_with("An engine can run here.\n"), "{text}");
}

#[test]
fn an_empty_machine_is_reported_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let machine = Machine { directory };
    let report = machine.examine();
    assert_eq!(report.verdict, Verdict::Warnings);
    problem(&report, "no huge pages");
    assert!(shown(&report).contains("NVMe drives"));
}

#[test]
fn missing_huge_pages_are_a_warning_with_its_command() {
    let machine = Machine::new();
    machine
        .pages("sys/kernel/mm/hugepages", 0, 0)
        .pages("sys/devices/system/node/node0/hugepages", 0, 0);
    let report = machine.examine();
    let problem = problem(&report, "no huge pages");
    assert_eq!(problem.severity, Severity::Warning);
    assert_eq!(problem.fix, "sysctl -w vm.nr_hugepages=512");
    assert_eq!(report.verdict, Verdict::Warnings);
}

#[test]
fn huge_pages_in_use_are_a_warning() {
    let machine = Machine::new();
    machine.pages("sys/kernel/mm/hugepages", 100, 0);
    let report = machine.examine();
    assert_eq!(problem(&report, "in use").fix, "sysctl -w vm.nr_hugepages=612");
}

#[test]
fn a_node_without_huge_pages_is_a_hint() {
    let machine = Machine::new();
    machine
        .file("sys/devices/system/node/node1/cpulist", "4-7\n")
        .pages("sys/devices/system/node/node1/hugepages", 0, 0);
    let report = machine.examine();
    assert!(problem(&report, "NUMA node 1").fix.contains("node1/hugepages"));
    assert_eq!(report.verdict, Verdict::Fine);
}

#[test]
fn unreadable_sysfs_is_a_problem_and_no_panic() {
    let machine = Machine::new();
    machine.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "many\n");
    let report = machine.examine();
    problem(&report, "cannot understand");
}

#[test]
fn a_forbidden_ring_stops_the_engine() {
    let mut ring = ring::complete();
    ring.error = Some(super::ring::RingError {
        code: Some(1),
        message: "Operation not permitted".to_owned(),
    });
    ring.disabled_setting = Some(2);
    let report = examine_with(&Machine::new().roots(), ring.clone());
    assert_eq!(report.verdict, Verdict::CannotRun);
    let found = problem(&report, "io_uring cannot be used");
    assert_eq!(found.fix, "sysctl -w kernel.io_uring_disabled=0");
    assert!(shown(&report).contains("cannot run here"));

    ring.disabled_setting = None;
    let report = examine_with(&Machine::new().roots(), ring);
    assert!(
        problem(&report, "io_uring cannot be used")
            .fix
            .contains("seccomp")
    );
}

#[test]
fn an_old_kernel_stops_the_engine() {
    let mut ring = ring::complete();
    ring.operations[0].supported = false;
    ring.timed_wait = false;
    let report = examine_with(&Machine::new().roots(), ring);
    assert_eq!(report.verdict, Verdict::CannotRun);
    let found = problem(&report, "lacks");
    assert!(found.what.contains("POLL_ADD, EXT_ARG"), "{}", found.what);
}

#[test]
fn a_somewhat_old_kernel_is_a_warning() {
    let mut ring = ring::complete();
    ring.defer_taskrun = false;
    let report = examine_with(&Machine::new().roots(), ring);
    assert_eq!(problem(&report, "DEFER_TASKRUN").severity, Severity::Warning);
}

#[test]
fn low_limits_and_governors_are_told() {
    let machine = Machine::new();
    machine
        .file(
            "proc/self/limits",
            "Limit\nMax open files 1024 4096 files\nMax locked memory 8388608 8388608 bytes\n",
        )
        .file(
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            "powersave\n",
        )
        .file(
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor",
            "performance\n",
        )
        .file("sys/devices/system/cpu/isolated", "\n");
    let report = machine.examine();
    assert!(problem(&report, "1024 files").fix.starts_with("ulimit -n"));
    assert!(problem(&report, "8 MiB of memory").fix.starts_with("ulimit -l"));
    assert!(problem(&report, "powersave").fix.starts_with("cpupower"));
    problem(&report, "isolated");
    // The worst first.
    assert!(report.problems.is_sorted_by_key(|problem| problem.severity));
}

#[test]
fn the_host_module_is_looked_for_in_three_places() {
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.path("sys/module/nvme_tcp")).expect("removed");
    assert_eq!(machine.examine().nvme_tcp_module, ModuleState::Missing);
    machine.file(
        "modules/6.12.0-test/modules.dep",
        "kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-fabrics.ko.xz\n",
    );
    let report = machine.examine();
    assert_eq!(report.nvme_tcp_module, ModuleState::Installed);
    assert_eq!(problem(&report, "not loaded").fix, "modprobe nvme-tcp");
    machine.file(
        "modules/6.12.0-test/modules.builtin",
        "kernel/drivers/nvme/host/nvme-tcp.ko\n",
    );
    assert_eq!(machine.examine().nvme_tcp_module, ModuleState::Loaded);
}

#[test]
fn drives_are_told_with_driver_and_use() {
    let machine = Machine::new();
    machine
        // A drive of the kernel, with a mounted partition, and a swap partition.
        .file("sys/bus/pci/devices/0000:5e:00.0/class", "0x010802\n")
        .file("sys/bus/pci/devices/0000:5e:00.0/numa_node", "1\n")
        .link("sys/bus/pci/devices/0000:5e:00.0/driver", "../../../drivers/nvme")
        .file("sys/class/nvme/nvme0/address", "0000:5e:00.0\n")
        .file("sys/class/nvme/nvme0/transport", "pcie\n")
        .file("sys/class/nvme/nvme0/model", "Fast Drive 9000   \n")
        .file("sys/class/nvme/nvme0/nvme0n1/nsid", "1\n")
        .file("sys/block/nvme0n1/size", "2097152\n")
        .file("sys/block/nvme0n1/dev", "259:0\n")
        .file("sys/block/nvme0n1/nvme0n1p1/partition", "1\n")
        .file("sys/block/nvme0n1/nvme0n1p1/dev", "259:1\n")
        .file("sys/block/nvme0n1/nvme0n1p2/partition", "2\n")
        .file("sys/block/nvme0n1/nvme0n1p2/dev", "259:2\n")
        .file(
            "proc/self/mountinfo",
            "30 1 259:1 / /srv/my\\040data rw - ext4 /dev/nvme0n1p1 rw\n",
        )
        .file("proc/swaps", "Filename Type Size\n/dev/nvme0n1p2 partition 1\n")
        // One that a program has, one that nobody has, and something that is no drive.
        .file("sys/bus/pci/devices/0000:5f:00.0/class", "0x010802\n")
        .file("sys/bus/pci/devices/0000:5f:00.0/numa_node", "-1\n")
        .link(
            "sys/bus/pci/devices/0000:5f:00.0/driver",
            "../../../drivers/vfio-pci",
        )
        .file("sys/bus/pci/devices/0000:60:00.0/class", "0x010802\n")
        .file("sys/bus/pci/devices/0000:00:00.0/class", "0x060000\n")
        // One over fabrics, reached by one path of several.
        .file("sys/class/nvme/nvme3/address", "traddr=192.0.2.1,trsvcid=4420\n")
        .file("sys/class/nvme/nvme3/transport", "tcp\n")
        .file("sys/class/nvme/nvme3/nvme3c3n1/nsid", "1\n")
        .file("sys/block/nvme3n1/size", "8\n")
        .file("sys/block/nvme3n1/holders/dm-0", "\n");
    let report = machine.examine();
    let addresses: Vec<&str> = report.drives.iter().map(|drive| drive.address.as_str()).collect();
    assert_eq!(
        addresses,
        [
            "0000:5e:00.0",
            "0000:5f:00.0",
            "0000:60:00.0",
            "traddr=192.0.2.1,trsvcid=4420"
        ]
    );
    let [kernel, program, nobody, remote] = report.drives.as_slice() else {
        unreachable!("there are four");
    };
    assert_eq!(kernel.driver.as_deref(), Some("nvme"));
    assert_eq!(kernel.model.as_deref(), Some("Fast Drive 9000"));
    assert_eq!(kernel.numa_node, Some(1));
    assert_eq!(kernel.namespaces[0].size_bytes, 1 << 30);
    assert_eq!(kernel.namespaces[0].used_by, ["/srv/my data", "[swap]"]);
    assert!(kernel.is_used());
    assert_eq!(program.driver.as_deref(), Some("vfio-pci"));
    assert_eq!(program.numa_node, None);
    assert!(!program.is_used());
    assert_eq!(nobody.driver, None);
    assert_eq!(remote.transport, "tcp");
    assert_eq!(remote.namespaces[0].used_by, ["dm-0"]);
    let text = shown(&report);
    assert!(text.contains("/srv/my data, [swap]"), "{text}");
    assert!(text.contains("vfio-pci"), "{text}");
}

#[test]
fn json_has_everything() {
    let mut text = Vec::new();
    write_json(&Machine::new().examine(), &mut text).expect("memory takes it");
    let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(value["verdict"], "fine");
    assert_eq!(value["io_uring"]["available"], true);
    assert_eq!(value["cores"]["usable_count"], 4);
    assert_eq!(value["nvme_tcp_module"], "loaded");
    assert_eq!(value["huge_pages"][0]["page_bytes"], 2 << 20);
}

#[test]
fn this_machine_can_be_examined() {
    let report = examine(&Roots::default());
    assert!(!report.kernel.is_empty());
    assert!(report.cores.usable_count > 0);
    assert!(Path::new("/proc/self").exists());
}
