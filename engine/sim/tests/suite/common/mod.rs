//! What the tests of drives share.

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, Device};
use pollux_hugepages::Slice;
use pollux_sim::{MachineId, SimDrive, SimDriveOptions, SimReactor, World};

/// Bytes of a block of the drives here.
pub const BLOCK: usize = 4096;

/// A drive of 1 MiB.
pub fn options() -> SimDriveOptions {
    SimDriveOptions::new(1 << 20, BLOCK as u32).unwrap()
}

/// A world of one machine with one reactor and one drive.
pub fn one_machine(seed: u64, options: SimDriveOptions) -> (World, MachineId, SimReactor, Arc<SimDrive>) {
    let world = World::new(seed);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let drive = world.add_drive(machine, "drive", options);
    (world, machine, reactor, drive)
}

/// Runs a future with a queue of the drive.
pub fn with_queue<T: 'static>(
    world: &World,
    reactor: SimReactor,
    drive: &Arc<SimDrive>,
    act: impl AsyncFnOnce(Rc<dyn BlockDevice>) -> T + 'static,
) -> T {
    let drive = drive.clone();
    world.block_on(reactor, async move { act(drive.attach().await.unwrap()).await })
}

/// A block of one byte, repeated.
pub fn block_of(byte: u8) -> Slice {
    Slice::copy_from(&[byte; BLOCK])
}
