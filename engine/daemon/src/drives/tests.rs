//! Drives of machines that tests make up.

use std::os::unix::fs::symlink;

use super::*;
use crate::doctor::Roots;

const KERNELS: &str = "0000:5e:00.0";
const ENGINES: &str = "0000:5f:00.0";

/// A machine in a directory.
struct Machine(tempfile::TempDir);

impl Machine {
    /// One drive of the kernel's, with a namespace, and one of the engine's; an IOMMU.
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().expect("a directory"));
        for (address, driver) in [(KERNELS, "nvme"), (ENGINES, "vfio-pci")] {
            let device = format!("sys/bus/pci/devices/{address}");
            machine
                .file(&format!("{device}/class"), "0x010802\n")
                .file(&format!("{device}/driver_override"), "(null)\n")
                .file(&format!("{device}/iommu_group/type"), "DMA\n")
                .file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
            symlink(
                format!("../../drivers/{driver}"),
                machine.path(&format!("{device}/driver")),
            )
            .expect("linked");
        }
        machine
            .file("sys/bus/pci/drivers_probe", "")
            .file("sys/class/nvme/nvme0/address", &format!("{KERNELS}\n"))
            .file("sys/class/nvme/nvme0/model", "Fast One\n")
            .file("sys/class/nvme/nvme0/nvme0n1/nsid", "1\n")
            .file("sys/block/nvme0n1/size", "2097152\n")
            .file("sys/block/nvme0n1/dev", "259:0\n")
            .file("dev/nvme0n1", "")
            .file("proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n")
            .file("proc/swaps", "Filename Type Size Used Priority\n");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("made");
        std::fs::write(path, text).expect("written");
        self
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("it is there")
    }

    fn roots(&self) -> Roots {
        Roots {
            sysfs: self.path("sys"),
            proc: self.path("proc"),
            modules: self.path("modules"),
            dev: self.path("dev"),
        }
    }

    fn run(&self, command: &DrivesCommand) -> Result<String, String> {
        let mut text = Vec::new();
        run(command, &self.roots(), &mut text).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(text).expect("UTF-8"))
    }

    fn bind(&self, give_up: &[&str]) -> Result<String, String> {
        self.run(&DrivesCommand::Bind {
            address: KERNELS.to_owned(),
            give_up: give_up.iter().map(|&name| name.to_owned()).collect(),
        })
    }
}

#[test]
fn drives_are_listed_with_what_to_do_next() {
    let machine = Machine::new();
    let list = |output| machine.run(&DrivesCommand::List { output }).expect("readable");
    let text = list(Output::Table);
    assert!(text.contains("pollux-engine drives bind 0000:5e:00.0"), "{text}");
    assert!(text.contains("serve pcie:///0000:5f:00.0/1"), "{text}");
    assert!(text.contains("Fast One") && text.contains("1 GiB"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&list(Output::Json)).expect("JSON");
    assert_eq!(json[0]["address"], KERNELS);
    assert_eq!(json[1]["driver"], "vfio-pci");
    machine.file("dev/nvme0n1", "XFSB");
    let text = list(Output::Table);
    assert!(
        text.contains("an XFS file system") && text.contains("--give-up"),
        "{text}"
    );
}

#[test]
fn a_drive_moves_by_what_is_written_to_sysfs() {
    let machine = Machine::new();
    // Nothing moves here for want of a kernel, and that is told.
    let error = machine.bind(&[]).expect_err("nobody acts on it");
    assert!(error.contains("is with nvme and not with vfio-pci"), "{error}");
    let device = "sys/bus/pci/devices/0000:5e:00.0";
    assert!(
        machine
            .text(&format!("{device}/driver_override"))
            .starts_with("vfio-pci\n")
    );
    assert_eq!(machine.text("sys/bus/pci/drivers/nvme/unbind"), "0000:5e:00.0\n");
    assert_eq!(machine.text("sys/bus/pci/drivers_probe"), "0000:5e:00.0\n");
    let back = machine.run(&DrivesCommand::Unbind {
        address: ENGINES.to_owned(),
    });
    assert!(
        back.expect_err("nobody acts on it")
            .contains("is with vfio-pci and not with nvme")
    );
    assert!(
        machine
            .text("sys/bus/pci/devices/0000:5f:00.0/driver_override")
            .starts_with('\n')
    );
    assert_eq!(
        machine.text("sys/bus/pci/drivers/vfio-pci/unbind"),
        "0000:5f:00.0\n"
    );
}

#[test]
fn what_is_there_already_is_no_error() {
    let machine = Machine::new();
    let said = machine.run(&DrivesCommand::Bind {
        address: ENGINES.to_owned(),
        give_up: Vec::new(),
    });
    assert!(said.expect("nothing to do").contains("already"));
    let said = machine.run(&DrivesCommand::Unbind {
        address: KERNELS.to_owned(),
    });
    assert!(said.expect("nothing to do").contains("already"));
}

/// Nothing is written.
fn expect_untouched(machine: &Machine) {
    assert_eq!(machine.text("sys/bus/pci/drivers_probe"), "");
    assert_eq!(machine.text("sys/bus/pci/drivers/nvme/unbind"), "");
    assert_eq!(
        machine.text("sys/bus/pci/devices/0000:5e:00.0/driver_override"),
        "(null)\n"
    );
}

#[test]
fn a_drive_that_is_mounted_is_never_taken() {
    let machine = Machine::new();
    machine.file(
        "proc/self/mountinfo",
        "36 35 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n",
    );
    for give_up in [&[][..], &["nvme0n1"]] {
        let error = machine.bind(give_up).expect_err("it is mounted");
        assert!(error.contains("in use: nvme0n1 by /srv"), "{error}");
    }
    expect_untouched(&machine);
}

#[test]
fn a_drive_that_holds_something_is_taken_only_by_name() {
    for (content, partitions, told) in [("XFSB", 0, "an XFS file system"), ("LUKS", 1, "1 partitions")] {
        let machine = Machine::new();
        machine.file("dev/nvme0n1", content);
        for number in 1..=partitions {
            machine.file(&format!("sys/block/nvme0n1/nvme0n1p{number}/partition"), "1\n");
        }
        let error = machine.bind(&[]).expect_err("it holds something");
        assert!(error.contains(told), "{error}");
        assert!(error.contains("--give-up nvme0n1"), "{error}");
        let error = machine.bind(&["nvme1n1"]).expect_err("another one");
        assert!(error.contains("nvme1n1 is not on the drive"), "{error}");
        expect_untouched(&machine);
        let error = machine.bind(&["nvme0n1"]).expect_err("nobody acts on it");
        assert!(error.contains("not with vfio-pci"), "{error}");
    }
}

#[test]
fn what_cannot_be_read_is_not_taken() {
    let machine = Machine::new();
    std::fs::remove_file(machine.path("dev/nvme0n1")).expect("it is there");
    let error = machine.bind(&[]).expect_err("nobody knows what it holds");
    assert!(error.contains("cannot be read"), "{error}");
    expect_untouched(&machine);
}

#[test]
fn own_pools_may_be_taken() {
    let machine = Machine::new();
    machine.file("dev/nvme0n1", "PLXLABEL");
    let error = machine.bind(&[]).expect_err("nobody acts on it");
    assert!(error.contains("not with vfio-pci"), "{error}");
}

#[test]
fn what_is_missing_is_told_with_the_way_to_mend_it() {
    let machine = Machine::new();
    let group = machine.path("sys/bus/pci/devices/0000:5e:00.0/iommu_group");
    std::fs::remove_dir_all(group).expect("it is there");
    let error = machine.bind(&[]).expect_err("there is no IOMMU");
    assert!(error.contains("enable_unsafe_noiommu_mode"), "{error}");
    machine.file("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n");
    let error = machine.bind(&[]).expect_err("nobody acts on it");
    assert!(error.contains("not with vfio-pci"), "{error}");
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.path("sys/bus/pci/drivers/vfio-pci")).expect("it is there");
    assert!(
        machine
            .bind(&[])
            .expect_err("no driver")
            .contains("modprobe vfio-pci")
    );
    let error = machine.run(&DrivesCommand::Unbind {
        address: "0000:01:00.0".to_owned(),
    });
    let error = error.expect_err("no such drive");
    assert!(error.contains("there is 0000:5e:00.0, 0000:5f:00.0"), "{error}");
}
