//! QEMU: a guest without disks, on the emulator, whose console goes to a file.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use crate::error::{Context, Error};

/// The emulator.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// Memory of the guest, in MiB.
const MEMORY_MIB: u32 = 1024;

/// Processors of the guest: two, so that the kernel makes several queues.
const PROCESSORS: u32 = 2;

/// A guest that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    console: Option<JoinHandle<()>>,
}

/// Says what is missing if there is no emulator.
pub(crate) fn check() -> Result<(), Error> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Error::Missing(
            "the lab's guests are x86-64, as this machine is not".to_owned(),
        ));
    }
    match Command::new(PROGRAM)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
    {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Missing(format!(
            "`{PROGRAM} --version` ends with {status}"
        ))),
        Err(_) => Err(Error::Missing(format!(
            "there is no `{PROGRAM}`; `apt-get install --no-install-recommends qemu-system-x86` brings it"
        ))),
    }
}

impl Machine {
    /// Boots a kernel; what it prints goes to the file `console`, and here too if `is_shown`.
    pub(crate) fn boot(kernel: &Path, image: &Path, console: &Path, is_shown: bool) -> Result<Self, Error> {
        let mut file = File::create(console).context("make", console)?;
        // The emulator and not KVM: it is the same everywhere, and kernels are known to hang under nested
        // KVM.
        let mut child = Command::new(PROGRAM)
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-nodefaults",
                "-no-reboot",
            ])
            .args(["-m", &MEMORY_MIB.to_string(), "-smp", &PROCESSORS.to_string()])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-netdev", "user,id=network,ipv6=off"])
            .args(["-device", "virtio-net-pci,netdev=network,romfile="])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(image)
            .args(["-append", "console=ttyS0 panic=-1 loglevel=4 no_timer_check"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start", Path::new(PROGRAM))?;
        let console = child.stdout.take().map(|stdout| {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stdout);
                let mut line = Vec::new();
                while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                    line.retain(|byte| *byte != b'\r');
                    // A console that cannot be kept is no reason to stop.
                    let _ = file.write_all(&line);
                    if is_shown {
                        let _ = std::io::stdout().write_all(&line);
                    }
                    line.clear();
                }
            })
        });
        Ok(Self { child, console })
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it, if it has not, and waits for the last of its console.
    pub(crate) fn end(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(console) = self.console.take() {
            let _ = console.join();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}
