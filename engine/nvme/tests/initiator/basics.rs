//! What the device does while nothing is wrong.

use pollux_device::conformance::{self, Expectations};
use pollux_device::events::DeviceEvent;
use pollux_device::{BlockDeviceExt, Device, Registry};
use pollux_nvme::initiator::device::NvmfOpener;
use pollux_nvme::initiator::discovery::discover;
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::wire::log::SubsystemType;

use super::lab::{BLOCK, Lab, LabOptions, SUBSYSTEM, buffer, ms, pattern, read};

const EVERY_DIGEST: [&str; 4] = ["", "&hdgst=true", "&ddgst=true", "&hdgst=true&ddgst=true"];

#[test]
fn data_comes_back_in_every_size_and_with_every_digest() {
    for (seed, digests) in (0..).zip(EVERY_DIGEST) {
        Lab::new(seed).run(digests, |device, queue| async move {
            assert_eq!(device.geometry().bytes(), 32 << 20);
            for (number, blocks) in [1usize, 2, 3, 16, 256, 257, 700].into_iter().enumerate() {
                let content = pattern(number as u8, blocks * BLOCK);
                let block = 10 * number as u64;
                queue.write(block, buffer(&content), false).await.unwrap();
                assert!(read(&*queue, block, content.len()).await.unwrap() == content);
                queue.compare(block, buffer(&content)).await.unwrap();
            }
            queue.flush().await.unwrap();
        });
    }
}

#[test]
fn the_device_does_what_every_device_does() {
    for (seed, block_bytes, parameters) in [
        (1, 512, ""),
        (2, 4096, "&hdgst=true&ddgst=true"),
        (3, 4096, "&deallocate=dataset&depth=3"),
    ] {
        let lab = Lab::with(seed, LabOptions::instant(block_bytes));
        lab.run(parameters, |device, _| async move {
            let expectations = Expectations {
                fresh: true,
                ..Expectations::default()
            };
            conformance::check(device, expectations).await;
        });
    }
}

#[test]
fn it_is_opened_by_its_uri() {
    let lab = Lab::new(1);
    let mut registry = Registry::standard();
    NvmfOpener::register(&mut registry);
    let uri = lab.uri("&nsid=1&queues=2");
    lab.world.block_on(lab.host_reactors[0], async move {
        let device = registry.open(&uri).await.unwrap();
        assert_eq!(device.name(), format!("{SUBSYSTEM}:1"));
        let first = device.clone().attach().await.unwrap();
        let second = device.clone().attach().await.unwrap();
        assert!(
            device.clone().attach().await.is_err(),
            "two queues were asked for"
        );
        let content = pattern(7, BLOCK);
        first.write(5, buffer(&content), false).await.unwrap();
        assert_eq!(read(&*second, 5, BLOCK).await.unwrap(), content);
        drop(first);
        pollux_reactor::sleep(ms(100)).await;
        let third = device.clone().attach().await.unwrap();
        assert_eq!(read(&*third, 5, BLOCK).await.unwrap(), content);
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    let lab = Lab::new(1);
    for (parameters, says) in [
        ("&nsid=2", "the subsystem has no namespace 2; it has 1"),
        (
            "&uuid=11111111-2222-3333-4444-555555555555",
            "no namespace with UUID 11111111-2222-3333-4444-555555555555",
        ),
    ] {
        let error = lab.open(parameters).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let mut options = lab.nvmf_options("");
    options.subsystem = "nqn.2026-11.io.pollux:other".parse().unwrap();
    let error = lab
        .world
        .block_on(
            lab.host_reactors[0],
            pollux_nvme::initiator::device::NvmfDevice::open(options),
        )
        .unwrap_err()
        .to_string();
    assert!(error.contains("check the name of the subsystem"), "{error}");
}

#[test]
fn a_device_grows_while_it_is_used() {
    let lab = Lab::new(3);
    let drive = lab.drive.clone();
    lab.run("", |device, queue| async move {
        let mut events = device.subscribe();
        let before = device.geometry().blocks;
        drive.grow(before + 1000);
        assert_eq!(events.recv().await, Ok(DeviceEvent::Resized));
        assert_eq!(device.geometry().blocks, before + 1000);
        let content = pattern(9, BLOCK);
        queue.write(before + 999, buffer(&content), false).await.unwrap();
        assert_eq!(read(&*queue, before + 999, BLOCK).await.unwrap(), content);
    });
}

#[test]
fn the_discovery_service_tells_of_the_subsystem() {
    let lab = Lab::new(4);
    let address = lab.address();
    let entries = lab
        .world
        .block_on(lab.host_reactors[0], async move {
            discover(
                &address,
                HostIdentity::from_name("nqn.2026-11.io.pollux:host".parse().unwrap()),
            )
            .await
        })
        .unwrap();
    // No port was made known, so there is the discovery service itself at most.
    assert!(
        entries
            .iter()
            .all(|entry| entry.subsystem_type() == Some(SubsystemType::CurrentDiscovery))
    );
}

#[test]
fn a_closed_device_leaves_nothing_behind() {
    let lab = Lab::new(5);
    let device = lab.open("").unwrap();
    let attached = device.clone();
    lab.world.block_on(lab.host_reactors[0], async move {
        let queue = attached.attach().await.unwrap();
        queue.write(0, buffer(&pattern(1, BLOCK)), false).await.unwrap();
    });
    drop(device);
    lab.world.run_for(ms(10_000));
    assert_eq!(lab.world.connections(lab.host), 0);
    assert_eq!(lab.world.connections(lab.target), 0);
    assert_eq!(lab.world.tasks(lab.host_reactors[0]), 0);
}
