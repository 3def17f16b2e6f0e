//! The guest lab: real kernels, in virtual machines, as hosts of an engine on this machine.
//!
//! `lab run SCENARIO...` boots the kernel of Debian's `linux-image-amd64` in QEMU, without a disk: the first
//! file system in memory holds busybox, the programs that scenarios use, kernel modules and an init of the
//! lab's own. The init runs the scenarios one after the other and asks the lab for what is to happen on the
//! host's side (`control`): start an engine, kill it, grow a namespace. The guest reaches this machine's
//! loopback interface through QEMU's user network as 10.0.2.2.
//!
//! - `packages` takes Debian packages from where `apt-get` is configured to, into `target/lab`.
//! - `image` makes the first file system in memory of them.
//! - `machine` is QEMU.
//! - `drive` is a guest of another kind: an engine in it drives an emulated NVMe drive by SPDK.
//! - `engine` is an engine as a process.
//! - `cluster` is a control plane, engines and the CSI driver's controller service as processes.
//! - `scenario` reads the scripts in `ci/lab/scenarios`.
//! - `kernel_log` decides which messages of the guest's kernel a scenario may cause.
//! - `records` is the writer inside the guest that knows what was made durable.

#![forbid(unsafe_code)]

mod cli;
mod cluster;
mod control;
mod drive;
mod engine;
mod error;
mod image;
mod kernel_log;
mod machine;
mod packages;
mod records;
mod run;
mod scenario;

pub use cli::run;
