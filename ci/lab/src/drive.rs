//! A guest with an emulated NVMe drive behind an emulated IOMMU, which the engine inside the guest drives by
//! SPDK: `lab drive`. In the same guest the engine uses a namespace of the kernel's own target by RDMA.
//!
//! The guest's init (`guest/drive-init`) is the whole scenario. Lines of its console that begin with `ASK`
//! are done here: the drive is removed or added through QEMU's monitor, and the flushes that the drive sees
//! are counted.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Context, Error, output_of};
use crate::image::archive::Archive;
use crate::image::modules;
use crate::machine;
use crate::packages::Packages;

/// How long the guest may take.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// How long it may take to measure.
const COMPARISON_TIME_LIMIT: Duration = Duration::from_secs(1800);

/// What is measured with, of SPDK's build tree.
const PEERS: [&str; 3] = ["bin/nvmf_tgt", "bin/spdk_nvme_perf", "examples/bdevperf"];

/// Of the guest's kernel. It is to trust the processor's counter, as on hardware: otherwise each look at the
/// clock is a call of the kernel, and for the emulator an access to a device.
const KERNEL_OPTIONS: &str =
    "console=ttyS0 panic=-1 loglevel=4 intel_iommu=on no_timer_check clocksource=tsc tsc=reliable";

/// Bytes of the drive.
const DRIVE_BYTES: u64 = 256 << 20;

/// Bytes of the image behind each namespace of the drive that guards its blocks: data, then what guards it.
const GUARDED_BYTES: u64 = 32 << 20;

/// Which of its namespaces is damaged, and where: in data that the guest has written.
const DAMAGED: (&str, u64) = ("guarded1.img", 5 * 4096 + 100);

/// Modules of the guest: vfio for the engine, NVMe/TCP for its host; RDMA in software over a network
/// interface that leads nowhere, and a target for it with a disk in memory.
const MODULES: [&str; 10] = [
    "crc32c_generic",
    "nvme_tcp",
    "vfio_iommu_type1",
    "vfio_pci",
    "crc32_generic",
    "dummy",
    "rdma_rxe",
    "rdma_ucm",
    "nvmet_rdma",
    "brd",
];

/// What makes an RDMA device of a network interface, of Debian's package iproute2.
const RDMA_PROGRAM: &str = "/usr/bin/rdma";

/// The driver of that device in libibverbs, of Debian's package ibverbs-providers.
const RDMA_PROVIDER: &str = "/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so";

/// Where libibverbs reads which drivers there are.
const RDMA_PROVIDER_LIST: &str = "etc/libibverbs.d/rxe.driver";

/// Directories of the guest.
const DIRECTORIES: [&str; 14] = [
    "bin",
    "dev",
    "etc",
    "lab",
    "lib",
    "lib/modules",
    "lib64",
    "proc",
    "sys",
    "tmp",
    "usr",
    "usr/lib",
    "usr/lib/ssl",
    "var",
];

/// The block format of the drive that guards its blocks.
const GUARD: &str = "logical_block_size=4096,physical_block_size=4096,ms=8";

/// What QEMU says for each flush that its drive is asked for.
const FLUSH_TRACE: &str = "pci_nvme_flush_ns";

/// What to measure the drive with, in place of the tests.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    /// The program `pollux-bench`.
    pub(crate) bench: &'a Path,
    /// SPDK's build tree.
    pub(crate) spdk: &'a Path,
}

/// Boots the guest with an engine; says what failed, if something did. `suite` is the program that runs the
/// suite of all devices on one.
pub(crate) fn run(
    engine: &Path,
    suite: Option<&Path>,
    comparison: Option<&Comparison<'_>>,
    directory: &Path,
    is_shown: bool,
) -> Result<Option<String>, Error> {
    machine::check()?;
    std::fs::create_dir_all(directory).context("make", directory)?;
    let packages = Packages::obtain(directory, None)?;
    let image = directory.join("drive-image");
    build_image(&packages, engine, suite, comparison, &image)?;
    let mut guest = Guest::boot(&packages.kernel(), &image, directory)?;
    let time_max = comparison.map_or(TIME_LIMIT, |_| COMPARISON_TIME_LIMIT);
    let outcome = guest.follow(&directory.join("drive-console.log"), is_shown, time_max);
    // It has powered off, or is of no use any more.
    let _ = guest.child.kill();
    let _ = guest.child.wait();
    outcome
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).context("read", path)
}

fn build_image(
    packages: &Packages,
    engine: &Path,
    suite: Option<&Path>,
    comparison: Option<&Comparison<'_>>,
    path: &Path,
) -> Result<(), Error> {
    let mut archive = Archive::default();
    for name in DIRECTORIES {
        archive.directory(name);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("init", include_bytes!("../guest/drive-init"));
    archive.file("bin/busybox", &read(&packages.program("busybox")?)?);
    // OpenSSL, which SPDK brings, wants to see its settings.
    archive.file("usr/lib/ssl/openssl.cnf", b"");
    let mut added = BTreeSet::new();
    add_linked(&mut archive, &mut added, engine, "bin/pollux-engine")?;
    if let Some(suite) = suite {
        add_linked(&mut archive, &mut added, suite, "bin/check")?;
    }
    let (program, provider) = (Path::new(RDMA_PROGRAM), Path::new(RDMA_PROVIDER));
    // Without them the guest says that it tries nothing by RDMA.
    if program.exists() && provider.exists() {
        add_linked(&mut archive, &mut added, program, "bin/rdma")?;
        add_linked(&mut archive, &mut added, provider, &without_root(provider))?;
        add_parents(&mut archive, Path::new(RDMA_PROVIDER_LIST));
        archive.file(RDMA_PROVIDER_LIST, b"driver rxe\n");
    }
    if let Some(Comparison { bench, spdk }) = comparison {
        add_linked(&mut archive, &mut added, bench, "bin/pollux-bench")?;
        for peer in PEERS {
            let name = format!("build/{peer}");
            add_linked(
                &mut archive,
                &mut added,
                &spdk.join(&name),
                &format!("spdk/{name}"),
            )?;
        }
    }
    let mut order = String::new();
    for module in modules::in_order(packages, &MODULES)? {
        archive.file(&format!("lib/modules/{}.ko", module.name), &module.data);
        order += &format!("{}\n", module.name);
    }
    archive.file("lab/modules", order.as_bytes());
    std::fs::write(path, archive.finish()).context("write", path)
}

/// Adds a program or library of this machine as `name`, and all that it is linked to.
fn add_linked(
    archive: &mut Archive,
    added: &mut BTreeSet<PathBuf>,
    file: &Path,
    name: &str,
) -> Result<(), Error> {
    add_parents(archive, Path::new(name));
    archive.file(name, &read(file)?);
    for library in libraries(&output_of(Command::new("ldd").arg(file))?) {
        if added.insert(library.clone()) {
            let name = without_root(&library);
            add_parents(archive, Path::new(&name));
            archive.file(&name, &read(&library)?);
        }
    }
    Ok(())
}

/// Adds the directories that a file is in.
fn add_parents(archive: &mut Archive, name: &Path) {
    let mut parents: Vec<&Path> = name.ancestors().skip(1).collect();
    parents.pop();
    for parent in parents.iter().rev() {
        archive.directory(&parent.display().to_string());
    }
}

fn without_root(path: &Path) -> String {
    path.strip_prefix("/").unwrap_or(path).display().to_string()
}

/// The files of libraries in what `ldd` prints, the loader too.
fn libraries(list: &str) -> Vec<PathBuf> {
    list.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// What QEMU has said.
#[derive(Default)]
struct Heard {
    flushes: AtomicUsize,
    complaint: Mutex<String>,
}

impl Heard {
    fn line(&self, line: String) {
        if line.contains(FLUSH_TRACE) {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        } else if let Ok(mut complaint) = self.complaint.lock() {
            *complaint = line;
        }
    }

    fn complaint(&self) -> String {
        self.complaint.lock().map(|line| line.clone()).unwrap_or_default()
    }
}

struct Guest {
    child: Child,
    console: Receiver<String>,
    heard: Arc<Heard>,
    counted_from: usize,
    monitor: PathBuf,
    directory: PathBuf,
}

impl Guest {
    fn boot(kernel: &Path, image: &Path, directory: &Path) -> Result<Self, Error> {
        let drive = make_image(directory, "drive.img", DRIVE_BYTES)?;
        let guarded = [
            make_image(directory, "guarded1.img", GUARDED_BYTES)?,
            make_image(directory, "guarded2.img", GUARDED_BYTES)?,
        ];
        let monitor = directory.join("monitor");
        let _left_by_an_earlier_run = std::fs::remove_file(&monitor);
        let file = |path: &Path, id: &str| format!("file={},format=raw,if=none,id={id}", path.display());
        let mut child = Command::new(machine::PROGRAM)
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-m", "2048", "-smp", "2", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-device", "intel-iommu,intremap=on,aw-bits=48"])
            .args(["-device", "pcie-root-port,id=port1,bus=pcie.0,chassis=1,slot=1"])
            .args(["-drive", &file(&drive, "image")])
            .args(["-device", "nvme,id=disk,serial=POLLUX,drive=image,bus=port1"])
            // A drive that guards its blocks: of type 1 with what guards them apart, of type 3 with it
            // between.
            .args(["-device", "pcie-root-port,id=port2,bus=pcie.0,chassis=2,slot=2"])
            .args(["-device", "nvme,id=guarded,serial=GUARDED,bus=port2"])
            .args([
                "-drive",
                &file(&guarded[0], "guarded1"),
                "-drive",
                &file(&guarded[1], "guarded2"),
            ])
            .args([
                "-device",
                &format!("nvme-ns,bus=guarded,nsid=1,drive=guarded1,{GUARD},mset=0,pi=1"),
            ])
            .args([
                "-device",
                &format!("nvme-ns,bus=guarded,nsid=2,drive=guarded2,{GUARD},mset=1,pi=3"),
            ])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
            .args(["-trace", FLUSH_TRACE, "-kernel"])
            .arg(kernel)
            .arg("-initrd")
            .arg(image)
            .args(["-append", KERNEL_OPTIONS])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start", Path::new(machine::PROGRAM))?;
        let (sender, console) = mpsc::channel();
        let heard = Arc::new(Heard::default());
        if let Some(output) = child.stdout.take() {
            // Nobody listens any more when the run is over.
            read_lines(output, move |line| drop(sender.send(line)));
        }
        if let Some(errors) = child.stderr.take() {
            let heard = Arc::clone(&heard);
            read_lines(errors, move |line| heard.line(line));
        }
        Ok(Self {
            child,
            console,
            heard,
            counted_from: 0,
            monitor,
            directory: directory.to_owned(),
        })
    }

    /// Does what the guest asks for until it says how it ended.
    fn follow(&mut self, log: &Path, is_shown: bool, time_max: Duration) -> Result<Option<String>, Error> {
        let mut file = std::fs::File::create(log).context("make", log)?;
        let deadline = Instant::now() + time_max;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.console.recv_timeout(left) else {
                let (log, complaint) = (log.display(), self.heard.complaint());
                return Ok(Some(format!(
                    "the guest hung or ended early; see {log} {complaint}"
                )));
            };
            writeln!(file, "{line}").context("write to", log)?;
            if is_shown {
                // A console that cannot be shown is no reason to stop.
                let _ = writeln!(std::io::stdout(), "{line}");
            }
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["ASK", "remove"] => self.command("device_del", json!({ "id": "disk" }))?,
                ["ASK", "add"] => {
                    let drive = json!({
                        "driver": "nvme", "id": "disk", "serial": "POLLUX", "drive": "image", "bus": "port1",
                    });
                    self.command("device_add", drive)?;
                }
                ["ASK", "throttle", requests] => {
                    let requests: u32 = requests.parse().unwrap_or_default();
                    let mut limits = json!({
                        "device": "image", "iops": requests,
                        "iops_rd": 0, "iops_wr": 0, "bps": 0, "bps_rd": 0, "bps_wr": 0,
                    });
                    if requests > 0 {
                        // A request of 64 KiB counts as 16 of these.
                        limits["iops_size"] = json!(4096);
                    }
                    self.command("block_set_io_throttle", limits)?;
                }
                ["ASK", "damage"] => self.damage()?,
                ["ASK", "count"] => self.counted_from = self.heard.flushes.load(Ordering::Relaxed),
                ["ASK", "counted", expected] => {
                    let seen = self.heard.flushes.load(Ordering::Relaxed) - self.counted_from;
                    if expected.parse() != Ok(seen) {
                        return Ok(Some(format!("the drive saw {seen} flushes and not {expected}")));
                    }
                }
                ["PASSED"] => return Ok(None),
                ["SKIPPED", ..] => return Err(Error::Missing(line)),
                ["FAILED", ..] => return Ok(Some(format!("{line}; see {}", log.display()))),
                _ => {}
            }
        }
    }

    /// Turns a bit of what a drive holds, behind its back.
    fn damage(&self) -> Result<(), Error> {
        let (name, offset) = DAMAGED;
        let path = self.directory.join(name);
        let turn = || {
            let file = std::fs::File::options().read(true).write(true).open(&path)?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset)?;
            file.write_all_at(&[byte[0] ^ 1], offset)
        };
        turn().context("damage", &path)
    }

    /// Has QEMU do something (QEMU Machine Protocol).
    fn command(&self, name: &str, arguments: Value) -> Result<(), Error> {
        let stream = UnixStream::connect(&self.monitor).context("connect to", &self.monitor)?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .context("set up", &self.monitor)?;
        let mut answers = BufReader::new(stream.try_clone().context("share", &self.monitor)?).lines();
        let capabilities = json!({ "execute": "qmp_capabilities" });
        for command in [capabilities, json!({ "execute": name, "arguments": arguments })] {
            writeln!(&stream, "{command}").context("write to", &self.monitor)?;
            loop {
                let line = answers
                    .next()
                    .unwrap_or(Err(std::io::ErrorKind::UnexpectedEof.into()));
                let line = line.context("read", &self.monitor)?;
                let answer: Value = serde_json::from_str(&line).unwrap_or_default();
                if !answer["error"].is_null() {
                    return Err(Error::Request(format!(
                        "QEMU refuses {name}: {}",
                        answer["error"]
                    )));
                }
                if !answer["return"].is_null() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// An empty image.
fn make_image(directory: &Path, name: &str, bytes: u64) -> Result<PathBuf, Error> {
    let path = directory.join(name);
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(bytes))
        .context("make", &path)?;
    Ok(path)
}

/// Hands each line of a stream to `each`, on a thread of its own.
fn read_lines(stream: impl Read + Send + 'static, each: impl Fn(String) + Send + 'static) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            each(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let list = "\tlinux-vdso.so.1 (0x1)\n\tlibssl.so.3 => /lib/a/libssl.so.3 (0x2)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let expected = ["/lib/a/libssl.so.3", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(list), expected.map(PathBuf::from));
    }
}
