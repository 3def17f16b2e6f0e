//! What the machine offers, on trees of files made up for it.
#![cfg(not(miri))]

use std::fs;
use std::path::Path;

use pollux_hugepages::{
    Error, HugePages, PageKind, SYSFS_ROOT, Topology, TransparentHugePages, discover, reserve,
};
use tempfile::TempDir;

const GLOBAL_2M: &str = "kernel/mm/hugepages/hugepages-2048kB";
const GLOBAL_1G: &str = "kernel/mm/hugepages/hugepages-1048576kB";
const NODE_1: &str = "devices/system/node/node1";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("it has a directory")).expect("the directory can be made");
    fs::write(path, text).expect("the file can be written");
}

fn write_pages(root: &Path, directory: &str, total: u64, free: u64, reserved: Option<u64>) {
    write(root, &format!("{directory}/nr_hugepages"), &format!("{total}\n"));
    write(root, &format!("{directory}/free_hugepages"), &format!("{free}\n"));
    write(root, &format!("{directory}/surplus_hugepages"), "1\n");
    if let Some(reserved) = reserved {
        write(
            root,
            &format!("{directory}/resv_hugepages"),
            &format!("{reserved}\n"),
        );
    }
}

/// Two nodes, 2 MiB and 1 GiB pages.
fn machine() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let root = directory.path();
    write_pages(root, GLOBAL_2M, 512, 500, Some(20));
    write_pages(root, GLOBAL_1G, 4, 3, Some(0));
    for (node, cpus, total) in [(0, "0-3,8-9\n", 512), (1, "4-7\n", 0)] {
        let node = format!("devices/system/node/node{node}");
        write(root, &format!("{node}/cpulist"), cpus);
        let meminfo = "Node 0 MemTotal:       1048576 kB\nNode 0 MemFree:         524288 kB\n";
        write(root, &format!("{node}/meminfo"), meminfo);
        write_pages(
            root,
            &format!("{node}/hugepages/hugepages-2048kB"),
            total,
            total,
            None,
        );
    }
    write(root, "devices/system/node/online", "0-1\n");
    write(
        root,
        "kernel/mm/transparent_hugepage/enabled",
        "always [madvise] never\n",
    );
    directory
}

#[test]
fn a_machine_with_two_nodes() {
    let machine = machine();
    let Topology {
        huge_pages,
        nodes,
        transparent,
    } = discover(machine.path()).unwrap();
    let size_2m = HugePages {
        page_bytes: 2 << 20,
        total: 512,
        free: 500,
        reserved: Some(20),
        surplus: 1,
    };
    let size_1g = HugePages {
        page_bytes: 1 << 30,
        total: 4,
        free: 3,
        reserved: Some(0),
        surplus: 1,
    };
    assert_eq!((size_2m.available(), size_1g.available()), (480, 3));
    assert_eq!(huge_pages, [size_2m, size_1g]);
    assert_eq!(transparent, TransparentHugePages::Advised);
    assert_eq!(nodes.len(), 2);
    assert_eq!((nodes[0].id, nodes[1].id), (0, 1));
    assert_eq!(nodes[0].cpus, [0, 1, 2, 3, 8, 9]);
    assert_eq!(nodes[1].cpus, [4, 5, 6, 7]);
    assert_eq!(nodes[1].memory_total_bytes, Some(1 << 30));
    assert_eq!(nodes[1].memory_free_bytes, Some(512 << 20));
    let on_node_0 = &nodes[0].huge_pages[0];
    assert_eq!(
        (on_node_0.total, on_node_0.reserved, on_node_0.available()),
        (512, None, 512)
    );
}

#[test]
fn cpus_belong_to_nodes() {
    let topology = discover(machine().path()).unwrap();
    let node_of = |cpu| topology.node_of_cpu(cpu).map(|node| node.id);
    assert_eq!((node_of(8), node_of(5), node_of(10)), (Some(0), Some(1), None));
}

#[test]
fn a_kernel_built_without_any_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let topology = discover(directory.path()).unwrap();
    assert_eq!(topology.huge_pages, []);
    assert_eq!(topology.transparent, TransparentHugePages::Absent);
    assert_eq!(topology.nodes.len(), 1);
    assert!(topology.nodes[0].cpus.is_empty());

    write(directory.path(), "devices/system/cpu/online", "0-1\n");
    write_pages(directory.path(), GLOBAL_2M, 7, 7, Some(0));
    let node = discover(directory.path()).unwrap().nodes.remove(0);
    assert_eq!(
        (node.id, node.cpus, node.memory_total_bytes),
        (0, vec![0, 1], None)
    );
    assert_eq!((node.huge_pages[0].total, node.huge_pages[0].reserved), (7, None));
}

#[test]
fn a_node_without_cpus_or_memory_counts() {
    let machine = machine();
    write(machine.path(), &format!("{NODE_1}/cpulist"), "\n");
    write(machine.path(), &format!("{NODE_1}/meminfo"), "nothing known\n");
    let node = discover(machine.path()).unwrap().nodes.remove(1);
    assert!(node.cpus.is_empty());
    assert_eq!((node.memory_total_bytes, node.memory_free_bytes), (None, None));
}

#[test]
fn files_that_cannot_be_understood_are_named() {
    for (path, text) in [
        (format!("{GLOBAL_2M}/free_hugepages"), "many\n"),
        (format!("{GLOBAL_2M}/nr_hugepages"), "-1\n"),
        (format!("{NODE_1}/cpulist"), "4-\n"),
        (format!("{NODE_1}/cpulist"), "7-4\n"),
        (format!("{NODE_1}/cpulist"), "0-4294967295\n"),
        (
            "kernel/mm/transparent_hugepage/enabled".to_owned(),
            "always never\n",
        ),
    ] {
        let machine = machine();
        write(machine.path(), &path, text);
        let error = discover(machine.path()).unwrap_err();
        assert!(
            matches!(&error, Error::Parse { path: at, .. } if at.ends_with(&path)),
            "{error}"
        );
        assert!(error.to_string().contains(text.trim()), "{error}");
    }
    let machine = machine();
    fs::remove_file(machine.path().join(GLOBAL_2M).join("free_hugepages")).unwrap();
    assert!(matches!(discover(machine.path()), Err(Error::Read { .. })));
}

#[test]
fn pages_are_reserved_and_never_taken_away() {
    let machine = machine();
    let total = |path: &str| fs::read_to_string(machine.path().join(path).join("nr_hugepages")).unwrap();
    assert_eq!(
        reserve(machine.path(), PageKind::Size2MiB, None, 1000).unwrap(),
        1000
    );
    assert_eq!(total(GLOBAL_2M), "1000\n");
    assert_eq!(
        reserve(machine.path(), PageKind::Size2MiB, None, 10).unwrap(),
        1000
    );
    assert_eq!(total(GLOBAL_2M), "1000\n");
    assert_eq!(
        reserve(machine.path(), PageKind::Size2MiB, Some(1), 8).unwrap(),
        8
    );
    assert_eq!(total(&format!("{NODE_1}/hugepages/hugepages-2048kB")), "8\n");
    assert_eq!(reserve(machine.path(), PageKind::Size1GiB, None, 6).unwrap(), 6);
    assert_eq!(total(GLOBAL_1G), "6\n");
}

#[test]
fn sizes_and_nodes_that_do_not_exist_are_named() {
    let machine = machine();
    for (page, node) in [
        (PageKind::Ordinary, None),
        (PageKind::Size1GiB, Some(1)),
        (PageKind::Size2MiB, Some(2)),
    ] {
        let error = reserve(machine.path(), page, node, 1).unwrap_err();
        assert!(matches!(error, Error::UnknownPageSize { .. }), "{error}");
    }
}

#[test]
fn who_may_not_reserve_is_told_the_command() {
    let machine = machine();
    // A number that everybody can read and nobody can write.
    let path = machine.path().join(GLOBAL_2M).join("nr_hugepages");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", &path).unwrap();
    let error = reserve(machine.path(), PageKind::Size2MiB, None, 1_000_000).unwrap_err();
    assert!(
        matches!(error, Error::Reserve { count: 1_000_000, .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .ends_with("run as root: sysctl -w vm.nr_hugepages=1000000"),
        "{error}"
    );

    let path = machine
        .path()
        .join(NODE_1)
        .join("hugepages/hugepages-2048kB/nr_hugepages");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", &path).unwrap();
    let error = reserve(machine.path(), PageKind::Size2MiB, Some(1), 1_000_000).unwrap_err();
    let command = format!("echo 1000000 > {}", path.display());
    assert!(error.to_string().ends_with(&command), "{error}");

    // What can not even be read.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = reserve(machine.path(), PageKind::Size2MiB, Some(1), 8).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn this_machine_can_be_read() {
    let topology = discover(Path::new(SYSFS_ROOT)).unwrap();
    let cpus: usize = topology.nodes.iter().map(|node| node.cpus.len()).sum();
    assert!(cpus >= 1, "{topology:?}");
}
