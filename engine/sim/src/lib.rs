//! Simulated clock, drives and network for whole clusters on one thread.
//!
//! A [`World`] runs many machines in virtual time from one seed. What is built on a reactor and on devices
//! runs in it unchanged, and every failure replays from its seed. See `docs/decisions/0003-simulation.md`.
//!
//! # A protocol
//!
//! ```
//! use pollux_reactor::net::{accept, attach, connect, listen, receive_exact, send_all};
//! use pollux_sim::{LinkRule, World};
//!
//! let world = World::new(42);
//! let (server, client) = (world.add_machine("server"), world.add_machine("client"));
//! let (server_reactor, client_reactor) = (world.add_reactor(server), world.add_reactor(client));
//! world.set_links(LinkRule { loss_probability: 0.01, ..LinkRule::HEALTHY });
//! let address = world.tcp(server, 4420);
//! let here = address.clone();
//! let mut listener = world.block_on(server_reactor, async move { listen(&here).unwrap() });
//! drop(world.spawn(server_reactor, async move {
//!     let mut stream = attach(accept(&mut *listener).await.unwrap()).unwrap();
//!     let mut request = [0; 4];
//!     receive_exact(&mut *stream, &mut request).await.unwrap();
//!     send_all(&mut *stream, b"pong").await.unwrap();
//! }));
//! let answer = world.block_on(client_reactor, async move {
//!     let mut stream = connect(&address).await.unwrap();
//!     send_all(&mut *stream, b"ping").await.unwrap();
//!     let mut answer = [0; 4];
//!     receive_exact(&mut *stream, &mut answer).await.unwrap();
//!     answer
//! });
//! assert_eq!(&answer, b"pong");
//! ```
//!
//! # A user of devices
//!
//! ```
//! use std::{cell::RefCell, rc::Rc, time::Duration};
//!
//! use pollux_device::Device;
//! use pollux_sim::oracle::{CheckedDevice, Oracle, SharedOracle, UnderWay, Workload};
//! use pollux_sim::{Crash, SimDriveOptions, World};
//!
//! let world = World::new(42);
//! let machine = world.add_machine("engine");
//! let reactor = world.add_reactor(machine);
//! let drive = world.add_drive(machine, "nvme0", SimDriveOptions::new(1 << 30, 4096).unwrap());
//! let oracle: SharedOracle = Rc::new(RefCell::new(Oracle::new()));
//! let (device, model, mut random) = (drive.clone(), oracle.clone(), world.random("client", 0));
//! drop(world.spawn(reactor, async move {
//!     // What is tested stands between the two.
//!     let checked = CheckedDevice::new(device.attach().await?, model);
//!     Workload::mixed(0..64, 1000).run(&checked, &mut random, |_| false).await
//! }));
//! world.run_for(Duration::from_millis(20));
//! world.crash(machine, Crash::Power);
//! oracle.borrow_mut().power_cut(UnderWay::Lost);
//! world.restart(machine);
//! world.block_on(reactor, async move {
//!     CheckedDevice::new(drive.attach().await.unwrap(), oracle).read_all().await.unwrap();
//! });
//! ```

#![forbid(unsafe_code)]

mod campaign;
mod clock;
mod drive;
mod driver;
mod network;
pub mod oracle;
mod random;
pub mod scenarios;
mod timeline;
mod trace;
mod world;

pub use campaign::{CampaignOptions, Failure, Finished, Reached, Run, Scenario, Summary, run_campaign};
pub use clock::CLOCK_DRIFT_PPB_MAX;
pub use drive::{
    CrashCursor, CrashState, CutPoints, DriveCounters, DriveImage, Fault, Faults, Fill, Latency, Operation,
    PowerLoss, Recorder, SECTOR_BYTES, SimDrive, SimDriveOptions,
};
pub use network::{BACKLOG_MAX, Chop, LinkRule, NetworkOptions};
pub use random::{Random, Seed};
pub use trace::TraceEntry;
pub use world::{
    Control, Crash, MachineId, MachineOptions, SimReactor, SimTask, TaskLost, TimeLimit, World, WorldOptions,
};
