//! Simulated drives do what every device does.

use std::time::Duration;

use pollux_device::Geometry;
use pollux_device::conformance::{self, Expectations};
use pollux_sim::{SimDrive, SimDriveOptions, World, WorldOptions};

const FRESH: Expectations = Expectations {
    fresh: true,
    stores: true,
};

fn world(seed: u64) -> World {
    let options = WorldOptions {
        buffer_bytes: 64 << 20,
        ..WorldOptions::default()
    };
    World::with_options(seed, options)
}

fn options(block_bytes: u32) -> SimDriveOptions {
    SimDriveOptions::new(24 << 20, block_bytes).expect("the size is good")
}

#[test]
fn drives_pass_the_suite_of_devices() {
    let protected = SimDriveOptions {
        geometry: Geometry {
            volatile_write_cache: false,
            ..options(4096).geometry
        },
        ..options(4096)
    };
    let telling = |block_bytes| SimDriveOptions {
        tells_holes: true,
        ..options(block_bytes)
    };
    let all = [
        options(512),
        options(4096),
        options(4096).instant(),
        telling(512),
        telling(4096),
        protected,
    ];
    for (seed, options) in (0..).zip(all) {
        let world = world(seed);
        let machine = world.add_machine("one");
        let reactor = world.add_reactor(machine);
        let drive = world.add_drive(machine, "drive", options);
        world.block_on(reactor, conformance::check(drive, FRESH));
    }
}

#[test]
fn drives_are_shared_by_reactors() {
    let world = world(1);
    let machine = world.add_machine("one");
    let handles: Vec<_> = (0..3)
        .filter_map(|_| world.handle(world.add_reactor(machine)))
        .collect();
    let drive = world.add_drive(machine, "drive", options(512));
    let harness = world.add_reactor(machine);
    world.block_on(harness, async move {
        conformance::check_shared(drive, &handles).await
    });
}

#[test]
fn a_drive_apart_from_any_world_is_the_same() {
    let world = world(2);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let drive = SimDrive::new("apart", options(4096), 7);
    world.block_on(reactor, conformance::check(drive, FRESH));
    assert!(world.now().as_nanos() > Duration::from_millis(1).as_nanos() as u64);
}
