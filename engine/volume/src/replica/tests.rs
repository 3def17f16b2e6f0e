//! Promises: who is served, what is drained, what survives.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Device, IoError, Request};
use pollux_hugepages::Buffer;
use pollux_reactor::{sleep, spawn};
use pollux_sim::{Crash, Fault, MachineId, Operation, SimDrive, SimDriveOptions, SimReactor, World};
use uuid::Uuid;

use super::*;
use crate::metadata::{Area, FormatOptions};

const OPTIONS: FormatOptions = FormatOptions {
    volume: Uuid::from_u128(1),
    replica: Uuid::from_u128(2),
    region_blocks: 4,
};

fn world() -> (World, MachineId, SimReactor, Arc<SimDrive>) {
    let world = World::new(1);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let drive = world.add_drive(machine, "drive", SimDriveOptions::new(1 << 20, 4096).unwrap());
    let inner = drive.clone();
    world.block_on(reactor, async move {
        Area::format(inner.attach().await.unwrap(), &OPTIONS)
            .await
            .map(drop)
            .unwrap();
    });
    (world, machine, reactor, drive)
}

async fn host(drive: &Arc<SimDrive>) -> ReplicaHost {
    let medium = Rc::new(PlainMedium::new(drive.clone()));
    ReplicaHost::open(drive.clone().attach().await.unwrap(), medium)
        .await
        .unwrap()
}

async fn session(host: &ReplicaHost, epoch: u64) -> Rc<dyn BlockDevice> {
    host.promise(Epoch(epoch)).await.unwrap().session
}

fn data(byte: u8) -> Buffer {
    let mut buffer = Buffer::from_heap(4096);
    buffer.fill(byte);
    buffer
}

#[test]
fn an_older_epoch_is_refused_reads_too() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        let old = session(&host, 3).await;
        old.write(20, data(1), false).await.unwrap();
        // One is answered before the promise, one is on its way.
        assert!(old.allocation(20, 1, 1).await.is_ok());
        let asked = old.allocation(20, 1, 1);
        let new = session(&host, 4).await;
        assert_eq!(asked.await, Err(IoError::Fenced));
        assert_eq!(old.allocation(20, 1, 1).await, Err(IoError::Fenced));
        assert!(new.allocation(20, 1, 1).await.is_ok());
        assert_eq!(old.write(20, data(2), false).await, Err(IoError::Fenced));
        assert_eq!(old.flush().await, Err(IoError::Fenced));
        assert_eq!(old.read(20, data(0)).await.map(drop), Err(IoError::Fenced));
        assert_eq!(new.read(20, data(0)).await.unwrap()[0], 1);
        let refused = host.promise(Epoch(3)).await.map(drop);
        assert_eq!(refused, Err(PromiseError::Superseded(Epoch(4))));
        assert_eq!(new.flush().await, Ok(()), "a refused promise changes nothing");
    });
}

#[test]
fn a_second_promise_of_an_epoch_ends_the_first_session() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        let first = host.promise(Epoch(3)).await.unwrap();
        let second = host.promise(Epoch(3)).await.unwrap();
        assert_eq!(first.session.flush().await, Err(IoError::Gone));
        assert_eq!(second.session.flush().await, Ok(()));
        assert_eq!((first.settled, second.settled), (None, None));
        let third = host.promise(Epoch(4)).await.unwrap();
        assert_eq!(third.settled, Some(Epoch(3)), "its flush was done, and no other");
        assert_eq!(first.instance, second.instance);
    });
}

#[test]
fn a_promise_tells_for_how_long_nobody_asked_for_anything() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        sleep(Duration::from_secs(3)).await;
        let first = host.promise(Epoch(3)).await.unwrap();
        let is_about = |quiet: Duration, seconds: u64| {
            let seconds = Duration::from_secs(seconds);
            quiet >= seconds && quiet < seconds + Duration::from_millis(100)
        };
        // No older session was heard of in this life of the host.
        assert!(is_about(first.quiet, 3), "{:?}", first.quiet);
        sleep(Duration::from_secs(2)).await;
        // It may have been sent when it was, however long it takes.
        drive.fail_nth(Operation::Read, 1, Fault::Delay(Duration::from_secs(4)));
        first.session.read(20, data(0)).await.map(drop).unwrap();
        let second = host.promise(Epoch(4)).await.unwrap();
        assert!(is_about(second.quiet, 4), "{:?}", second.quiet);
        // To have been promised to is an answer too; to be refused is none.
        sleep(Duration::from_secs(1)).await;
        assert_eq!(first.session.flush().await, Err(IoError::Fenced));
        let third = host.promise(Epoch(5)).await.unwrap();
        assert!(is_about(third.quiet, 1), "{:?}", third.quiet);
    });
}

#[test]
fn a_promise_waits_for_what_older_sessions_sent_even_if_nobody_waits_for_it() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        let old = session(&host, 3).await;
        drive.fail_nth(Operation::Write, 1, Fault::Delay(Duration::from_secs(5)));
        drop(old.submit(pollux_device::Request::Write {
            block: 20,
            from: data(1).into(),
            force_unit_access: false,
        }));
        let started = pollux_reactor::now();
        let new = session(&host, 4).await;
        assert!(pollux_reactor::now().saturating_since(started) >= Duration::from_secs(5));
        assert_eq!(new.read(20, data(0)).await.unwrap()[0], 1);
        new.write(20, data(2), false).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(new.read(20, data(0)).await.unwrap()[0], 2);
    });
}

#[test]
fn a_promise_survives_a_power_loss_and_the_host_has_another_instance() {
    let (world, machine, reactor, drive) = world();
    let again = drive.clone();
    let before = world.block_on(reactor, async move {
        let granted = host(&drive).await.promise(Epoch(7)).await.unwrap();
        granted.instance
    });
    world.crash(machine, Crash::Power);
    world.restart(machine);
    world.block_on(reactor, async move {
        let host = host(&again).await;
        assert_eq!(host.promised(), Epoch(7));
        let refused = host.promise(Epoch(6)).await.map(drop);
        assert_eq!(refused, Err(PromiseError::Superseded(Epoch(7))));
        let granted = host.promise(Epoch(7)).await.unwrap();
        assert_ne!(granted.instance, before);
        assert_eq!(granted.settled, None);
    });
}

#[test]
fn of_promises_side_by_side_the_newest_is_served() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        let old = spawn(host.promise(Epoch(5)));
        let new = spawn(host.promise(Epoch(6)));
        let (old, new) = (old.await, new.await.unwrap());
        assert_eq!(old.map(drop), Err(PromiseError::Superseded(Epoch(6))));
        assert_eq!(new.session.flush().await, Ok(()));
    });
}

#[test]
fn a_promise_that_cannot_be_written_is_not_given() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        let old = session(&host, 3).await;
        drive.fail_nth(Operation::Write, 1, Fault::Error(IoError::MediaWrite));
        let failed = host.promise(Epoch(4)).await.map(drop);
        assert_eq!(failed, Err(PromiseError::Area(IoError::MediaWrite.into())));
        assert_eq!(
            old.flush().await,
            Err(IoError::Fenced),
            "the old one is out all the same"
        );
        assert_eq!(session(&host, 4).await.flush().await, Ok(()));
    });
}

#[test]
fn label_and_promise_are_not_for_targets_to_write() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        let session = session(&host, 3).await;
        let blocks = session.geometry().blocks;
        for block in 0..4 {
            assert_eq!(session.write(block, data(0), false).await, Err(IoError::ReadOnly));
        }
        assert_eq!(session.deallocate(0, blocks).await, Err(IoError::ReadOnly));
        assert_eq!(session.write(4, data(0), false).await, Ok(()));
    });
}

#[test]
fn a_host_that_is_closed_serves_nobody_and_promises_nothing() {
    let (world, _, reactor, drive) = world();
    world.block_on(reactor, async move {
        let host = host(&drive).await;
        let session = session(&host, 3).await;
        let write = Request::Write {
            block: 20,
            from: data(1).into(),
            force_unit_access: false,
        };
        let written = spawn(session.submit(write));
        pollux_reactor::yield_now().await;
        host.close().await;
        assert_eq!(
            written.await.map(drop),
            Ok(()),
            "what was at the device is waited for"
        );
        assert_eq!(session.read(20, data(0)).await.map(drop), Err(IoError::Gone));
        let refused = host.promise(Epoch(4)).await.map(drop);
        assert_eq!(refused, Err(PromiseError::Unreachable));
        let refused = host.promise(Epoch(2)).await.map(drop);
        assert_eq!(refused, Err(PromiseError::Superseded(Epoch(3))));
    });
}

#[test]
fn only_a_device_without_any_label_is_blank() {
    let (world, machine, reactor, drive) = world();
    let new = world.add_drive(machine, "new", SimDriveOptions::new(1 << 20, 4096).unwrap());
    world.block_on(reactor, async move {
        let new = new.attach().await.unwrap();
        assert_eq!(Area::is_blank(&new).await, Ok(true));
        new.write(1, data(7), true).await.unwrap();
        assert_eq!(Area::is_blank(&new).await, Ok(false), "damaged is not blank");
        let replica: Rc<dyn BlockDevice> = drive.attach().await.unwrap();
        assert_eq!(Area::is_blank(&replica).await, Ok(false));
        assert_eq!(Area::wipe(replica.clone()).await, Ok(()));
        assert_eq!(Area::is_blank(&replica).await, Ok(true));
        let gone = Area::open(replica).await.map(drop);
        assert_eq!(gone, Err(AreaError::Missing("label")));
    });
}
