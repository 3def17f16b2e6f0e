//! What the device does when the target is lost, late, restarted, or another one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use pollux_device::events::DeviceEvent;
use pollux_device::{BlockDevice, BlockDeviceExt, Device, IoError};
use pollux_nvme::target::NamespaceConfig;
use pollux_reactor::{now, sleep, spawn};
use pollux_sim::{Crash, Fault, Operation};
use uuid::Uuid;

use super::lab::{BLOCK, Lab, LabOptions, buffer, ms, pattern, read};

/// Twice the keep alive timeout of 1 s and the target's granularity of it, which the target has to give a
/// lost host up.
const QUIESCE_MIN: Duration = Duration::from_secs(2);

/// Options of a target whose drive has no volatile cache: nothing completed can be lost.
fn durable() -> LabOptions {
    let mut options = LabOptions::default();
    options.drive.geometry.volatile_write_cache = false;
    options
}

/// Resets every connection after a while.
fn reset_after(lab: &Lab, span: Duration) {
    let (control, target, host) = (lab.world.control(), lab.target, lab.host);
    lab.world
        .after(span, move || control.reset_connections(host, target));
}

#[test]
fn reads_go_on_at_once_after_a_reset() {
    let lab = Lab::new(1);
    reset_after(&lab, ms(20));
    lab.run("", |_, queue| async move {
        queue.write(0, buffer(&pattern(1, BLOCK)), true).await.unwrap();
        let start = now();
        for _ in 0..500 {
            assert_eq!(read(&*queue, 0, BLOCK).await.unwrap(), pattern(1, BLOCK));
        }
        assert!(
            now().saturating_since(start) < ms(1000),
            "nothing has to be waited for"
        );
    });
    assert!(lab.world.now().saturating_since(pollux_reactor::Instant::ORIGIN) > ms(20));
}

#[test]
fn a_write_is_sent_again_once_the_old_one_is_dead() {
    let lab = Lab::with(2, durable());
    // The write hangs at the drive, and the connections are reset meanwhile.
    lab.drive.fail_nth(Operation::Write, 1, Fault::Delay(ms(1500)));
    reset_after(&lab, ms(50));
    let drive = lab.drive.clone();
    lab.run("&kato=1s", move |_, queue| async move {
        let start = now();
        queue.write(7, buffer(&pattern(1, BLOCK)), false).await.unwrap();
        assert!(
            now().saturating_since(start) > QUIESCE_MIN,
            "sent again too early"
        );
        assert_eq!(drive.counters().writes, 2);
        queue.write(7, buffer(&pattern(2, BLOCK)), false).await.unwrap();
        sleep(ms(10_000)).await;
        assert_eq!(read(&*queue, 7, BLOCK).await.unwrap(), pattern(2, BLOCK));
    });
}

#[test]
fn after_a_write_has_failed_it_cannot_overtake_a_later_one() {
    let lab = Lab::with(3, durable());
    lab.drive.fail_nth(Operation::Write, 1, Fault::Delay(ms(1500)));
    reset_after(&lab, ms(50));
    lab.run("&kato=1s&fail_fast=0s", |_, queue| async move {
        let start = now();
        let lost = queue.write(7, buffer(&pattern(1, BLOCK)), false).await;
        assert_eq!(lost, Err(IoError::PathDown));
        assert!(now().saturating_since(start) < ms(200), "it fails at once");
        while let Err(error) = queue.write(7, buffer(&pattern(2, BLOCK)), false).await {
            assert_eq!(error, IoError::PathDown);
            sleep(ms(10)).await;
        }
        assert!(
            now().saturating_since(start) > QUIESCE_MIN,
            "accepted while the old write could land"
        );
        sleep(ms(10_000)).await;
        assert_eq!(read(&*queue, 7, BLOCK).await.unwrap(), pattern(2, BLOCK));
    });
}

#[test]
fn what_is_sent_again_is_a_setting() {
    for (parameters, write) in [
        ("&kato=1s&resubmit=reads", Err(IoError::PathDown)),
        ("&kato=1s&resubmit=none", Err(IoError::PathDown)),
        ("&kato=1s&resubmit=all", Ok(())),
    ] {
        let lab = Lab::with(4, durable());
        lab.drive.fail_nth(Operation::Write, 1, Fault::Delay(ms(500)));
        reset_after(&lab, ms(50));
        lab.run(parameters, move |_, queue| async move {
            assert_eq!(
                queue.write(7, buffer(&pattern(1, BLOCK)), false).await,
                write,
                "{parameters}"
            );
        });
        let lab = Lab::with(4, durable());
        lab.drive.fail_nth(Operation::Read, 1, Fault::Delay(ms(500)));
        reset_after(&lab, ms(50));
        lab.run(parameters, move |_, queue| async move {
            let result = read(&*queue, 7, BLOCK).await.map(drop);
            let expected = if parameters.contains("none") {
                Err(IoError::PathDown)
            } else {
                Ok(())
            };
            assert_eq!(result, expected, "{parameters}");
        });
    }
}

#[test]
fn a_short_partition_is_only_a_delay_and_a_long_one_is_survived() {
    for (seed, span) in [(5, ms(300)), (6, ms(20_000))] {
        let lab = Lab::with(seed, durable());
        let (control, target, host) = (lab.world.control(), lab.target, lab.host);
        lab.world.after(ms(20), move || {
            control.partition(&[host], &[target]);
            let again = control.clone();
            control.after(span, move || again.reconnect(&[host], &[target]));
        });
        lab.run("&kato=2s", move |_, queue| async move {
            for number in 0..200u64 {
                let content = pattern(number as u8, BLOCK);
                queue.write(number % 16, buffer(&content), false).await.unwrap();
                assert_eq!(read(&*queue, number % 16, BLOCK).await.unwrap(), content);
            }
        });
    }
}

#[test]
fn requests_fail_fast_when_asked_and_the_device_returns() {
    let lab = Lab::with(7, durable());
    let control = lab.world.control();
    let (host, target) = (lab.host, lab.target);
    lab.run("&kato=1s&fail_fast=3s", move |device, queue| async move {
        let mut events = device.subscribe();
        control.partition(&[host], &[target]);
        control.reset_connections(host, target);
        let start = now();
        assert_eq!(read(&*queue, 0, BLOCK).await.map(drop), Err(IoError::PathDown));
        let waited = now().saturating_since(start);
        assert!(waited > ms(2_500) && waited < ms(6_000), "{waited:?}");
        let start = now();
        assert_eq!(read(&*queue, 0, BLOCK).await.map(drop), Err(IoError::PathDown));
        assert!(now().saturating_since(start) < ms(1));
        assert!(!device.is_connected());
        assert!(device.clone().attach().await.is_err());
        control.heal();
        assert_eq!(events.recv().await, Ok(DeviceEvent::Returned));
        assert!(read(&*queue, 0, BLOCK).await.is_ok());
    });
}

#[test]
fn a_target_lost_for_too_long_is_gone() {
    for parameters in ["&kato=1s&loss_timeout=20s", "&kato=1s&reconnect=off"] {
        let lab = Lab::with(8, durable());
        let control = lab.world.control();
        let (host, target) = (lab.host, lab.target);
        lab.run(parameters, move |device, queue| async move {
            let mut events = device.subscribe();
            control.partition(&[host], &[target]);
            control.reset_connections(host, target);
            let start = now();
            assert_eq!(read(&*queue, 0, BLOCK).await.map(drop), Err(IoError::Gone));
            assert!(now().saturating_since(start) < ms(30_000));
            assert_eq!(events.recv().await, Ok(DeviceEvent::Removed));
            control.heal();
            sleep(ms(30_000)).await;
            assert_eq!(read(&*queue, 0, BLOCK).await.map(drop), Err(IoError::Gone));
            assert!(matches!(device.clone().attach().await, Err(IoError::Gone)));
        });
    }
}

/// Restarts the target, which serves something else from then on.
fn restart_with(lab: &Lab, device: &str, uuid: Option<Uuid>, blocks: Option<u64>) {
    lab.world.crash(lab.target, Crash::Process);
    lab.world.restart(lab.target);
    let mut options = super::lab::LabOptions::default().drive;
    options.geometry.volatile_write_cache = false;
    if let Some(blocks) = blocks {
        options.geometry.blocks = blocks;
    }
    let drive = lab.world.add_drive(lab.target, device, options);
    let config = NamespaceConfig {
        uuid,
        ..NamespaceConfig::default()
    };
    lab.serve_as(drive, &config);
}

#[test]
fn another_volume_at_the_same_address_is_refused() {
    let lab = Lab::with(9, durable());
    let device = lab.open("&kato=1s").unwrap();
    let attached = device.clone();
    let queue_check = lab.world.spawn(lab.host_reactors[0], async move {
        let queue = attached.attach().await.unwrap();
        queue.write(0, buffer(&pattern(1, BLOCK)), false).await.unwrap();
        sleep(ms(2_000)).await;
        // By then the target serves another drive.
        (
            queue.write(0, buffer(&pattern(2, BLOCK)), false).await,
            read(&*queue, 0, BLOCK).await.map(drop),
        )
    });
    lab.world.run_for(ms(1_000));
    restart_with(&lab, "other", Some(Uuid::from_u128(77)), None);
    let (write, read) = lab.world.finish(&queue_check);
    assert_eq!((write, read), (Err(IoError::Gone), Err(IoError::Gone)));
    let drives = lab.world.drives(lab.target);
    assert_eq!(
        drives.last().unwrap().counters().writes,
        0,
        "nothing reached the other volume"
    );
}

#[test]
fn a_volume_that_has_grown_meanwhile_is_the_same() {
    let lab = Lab::with(10, durable());
    let uuid = Some(Uuid::from_u128(5));
    let before = lab.drive.clone();
    lab.world.crash(lab.target, Crash::Process);
    lab.world.restart(lab.target);
    lab.serve_as(
        before,
        &NamespaceConfig {
            uuid,
            nguid: Some([5; 16]),
            eui64: Some([5; 8]),
            ..NamespaceConfig::default()
        },
    );
    let device = lab.open("&kato=1s").unwrap();
    let blocks = device.geometry().blocks;
    lab.world.crash(lab.target, Crash::Process);
    lab.world.restart(lab.target);
    lab.drive.grow(blocks * 2);
    lab.serve_as(
        lab.drive.clone(),
        &NamespaceConfig {
            uuid,
            nguid: Some([5; 16]),
            eui64: Some([5; 8]),
            ..NamespaceConfig::default()
        },
    );
    lab.world.run_for(ms(20_000));
    assert!(device.is_connected());
    assert_eq!(device.geometry().blocks, blocks * 2);
}

/// Writes, maybe flushes, and lets the target's power fail; what the next two flushes say.
fn flushes_after_a_power_loss(parameters: &str, flushed: bool, forced: bool) -> [Result<(), IoError>; 2] {
    let lab = Lab::new(11);
    let device = lab.open(parameters).unwrap();
    let attached = device.clone();
    let task = lab.world.spawn(lab.host_reactors[0], async move {
        let queue = attached.attach().await.unwrap();
        queue.write(3, buffer(&pattern(3, BLOCK)), forced).await.unwrap();
        if flushed {
            queue.flush().await.unwrap();
        }
        sleep(ms(5_000)).await;
        [queue.flush().await, queue.flush().await]
    });
    lab.world.run_for(ms(1_000));
    lab.world.crash(lab.target, Crash::Power);
    lab.world.restart(lab.target);
    lab.serve();
    lab.world.finish(&task)
}

#[test]
fn a_flush_does_not_vouch_for_writes_that_a_lost_cache_held() {
    assert_eq!(
        flushes_after_a_power_loss("&kato=1s", false, false),
        [Err(IoError::MediaWrite), Ok(())]
    );
    assert_eq!(
        flushes_after_a_power_loss("&kato=1s", true, false),
        [Ok(()), Ok(())]
    );
    assert_eq!(
        flushes_after_a_power_loss("&kato=1s", false, true),
        [Ok(()), Ok(())]
    );
    let trusting = "&kato=1s&unflushed=trust";
    assert_eq!(
        flushes_after_a_power_loss(trusting, false, false),
        [Ok(()), Ok(())]
    );
}

#[test]
fn a_flush_vouches_for_a_cache_that_was_only_cut_off() {
    let lab = Lab::new(16);
    reset_after(&lab, ms(50));
    lab.run("&kato=1s", |_, queue| async move {
        queue.write(3, buffer(&pattern(3, BLOCK)), false).await.unwrap();
        sleep(ms(1_000)).await;
        assert_eq!(
            queue.flush().await,
            Ok(()),
            "the target is the one that took the write"
        );
    });
}

#[test]
fn every_reactor_hears_of_a_lost_cache() {
    let lab = Lab::with(
        12,
        LabOptions {
            host_reactors: 2,
            ..LabOptions::default()
        },
    );
    let device = lab.open("&kato=1s").unwrap();
    let tasks: Vec<_> = lab
        .host_reactors
        .iter()
        .enumerate()
        .map(|(number, &reactor)| {
            let device = device.clone();
            lab.world.spawn(reactor, async move {
                let queue = device.attach().await.unwrap();
                if number == 0 {
                    queue.write(3, buffer(&pattern(3, BLOCK)), false).await.unwrap();
                }
                sleep(ms(5_000)).await;
                [queue.flush().await, queue.flush().await]
            })
        })
        .collect();
    lab.world.run_for(ms(1_000));
    lab.world.crash(lab.target, Crash::Power);
    lab.world.restart(lab.target);
    lab.serve();
    for task in tasks {
        assert_eq!(lab.world.finish(&task), [Err(IoError::MediaWrite), Ok(())]);
    }
}

/// A target that says it lost sight of a command at its drive is no better than a lost connection.
#[test]
fn a_write_that_the_target_lost_sight_of_is_sent_again_only_if_that_is_allowed() {
    for (parameters, write) in [
        ("&resubmit=reads", Err(IoError::TimedOut)),
        ("&resubmit=none", Err(IoError::TimedOut)),
        ("&resubmit=all", Ok(())),
    ] {
        let lab = Lab::with(14, durable());
        lab.drive
            .fail_nth(Operation::Write, 1, Fault::Error(IoError::TimedOut));
        lab.run(parameters, move |_, queue| async move {
            let result = queue.write(7, buffer(&pattern(1, BLOCK)), false).await;
            assert_eq!(result, write, "{parameters}");
        });
        // What was certainly not done is not concerned.
        let lab = Lab::with(14, durable());
        lab.drive
            .fail_nth(Operation::Write, 1, Fault::Error(IoError::NotReady));
        lab.run(parameters, move |_, queue| async move {
            let result = queue.write(7, buffer(&pattern(1, BLOCK)), false).await;
            assert_eq!(result, Ok(()), "{parameters}");
        });
    }
}

#[test]
fn a_command_that_takes_too_long_is_given_up() {
    let lab = Lab::with(13, durable());
    lab.drive.fail_nth(Operation::Read, 1, Fault::Delay(ms(600_000)));
    lab.run("&timeout=2s", |_, queue| async move {
        let start = now();
        let result = read(&*queue, 0, BLOCK).await.map(drop);
        let waited = now().saturating_since(start);
        // Aborted, or sent again after a reset of the controller.
        assert!(matches!(result, Err(IoError::TimedOut) | Ok(())), "{result:?}");
        assert!(waited < ms(20_000), "{waited:?}");
        assert!(read(&*queue, 0, BLOCK).await.is_ok());
    });
}

#[test]
fn a_write_given_up_for_its_time_cannot_overtake_a_later_one() {
    let lab = Lab::with(17, durable());
    lab.drive.fail_nth(Operation::Write, 1, Fault::Delay(ms(8_000)));
    lab.run("&timeout=1s", |_, queue| async move {
        let start = now();
        let result = queue.write(7, buffer(&pattern(1, BLOCK)), false).await;
        assert!(matches!(result, Err(IoError::TimedOut) | Ok(())), "{result:?}");
        assert!(now().saturating_since(start) < ms(20_000));
        queue.write(7, buffer(&pattern(2, BLOCK)), false).await.unwrap();
        sleep(ms(20_000)).await;
        assert_eq!(read(&*queue, 7, BLOCK).await.unwrap(), pattern(2, BLOCK));
    });
}

#[test]
fn more_than_fits_waits_and_far_more_fails() {
    let lab = Lab::with(14, durable());
    lab.run("&depth=2", |_, queue| async move {
        let failed = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..10_000u64)
            .map(|number| {
                let (queue, failed) = (queue.clone(), failed.clone());
                spawn(async move {
                    match read(&*queue, number % 64, BLOCK).await {
                        Ok(_) => {}
                        Err(IoError::ResourceShortage) => failed.set(failed.get() + 1),
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert!(failed.get() > 1000 && failed.get() < 2000, "{}", failed.get());
    });
}

#[test]
fn dropping_a_queue_lets_its_writes_come_to_their_end() {
    let lab = Lab::with(15, durable());
    lab.drive.fail_nth(Operation::Write, 1, Fault::Delay(ms(1000)));
    lab.run("&kato=1s", |device, queue| async move {
        drop(queue.submit(pollux_device::Request::Write {
            block: 4,
            from: buffer(&pattern(1, BLOCK)).into(),
            force_unit_access: false,
        }));
        drop(queue);
        let queue = device.clone().attach().await.unwrap();
        sleep(ms(2000)).await;
        assert!(
            device.is_connected(),
            "there was no reason to lose the controller"
        );
        assert_eq!(read(&*queue, 4, BLOCK).await.unwrap(), pattern(1, BLOCK));
    });
}

/// One block as its only writer knows it: the values it may have.
#[derive(Default)]
struct Known {
    /// Of the last write that succeeded, or that was seen.
    certain: u8,
    /// Of a write whose fate is unknown.
    perhaps: Option<u8>,
}

/// Writes and reads one block over and over. A write that failed was done or not done; once one of both was
/// read, it stays so.
async fn exercise(queue: Rc<dyn BlockDevice>, block: u64, rounds: u8, errors: Rc<RefCell<Vec<IoError>>>) {
    let mut known = Known::default();
    let content = |value: u8| {
        if value == 0 {
            vec![0; BLOCK]
        } else {
            pattern(value, BLOCK)
        }
    };
    for value in 1..=rounds {
        if known.perhaps.is_none() {
            match queue.write(block, buffer(&content(value)), false).await {
                Ok(()) => known.certain = value,
                Err(error) => {
                    errors.borrow_mut().push(error);
                    known.perhaps = Some(value);
                }
            }
        }
        match read(&*queue, block, BLOCK).await {
            Ok(seen) => {
                let perhaps = known.perhaps.take().filter(|&perhaps| seen == content(perhaps));
                known.certain = perhaps.unwrap_or(known.certain);
                assert!(seen == content(known.certain), "block {block}, round {value}");
            }
            Err(error) => {
                errors.borrow_mut().push(error);
                sleep(ms(50)).await;
            }
        }
    }
}

/// Resets, partitions and restarts of the target, at random.
fn torment(lab: Rc<Lab>, number: u64) {
    let mut random = lab.world.random("torment", number);
    let pause = ms(100 + random.u64() % 4_000);
    let (host, target) = (lab.host, lab.target);
    let again = lab.clone();
    lab.world.after(pause, move || {
        let lab = again;
        match random.u64() % 4 {
            0 => lab.world.reset_connections(host, target),
            1 => {
                lab.world.partition(&[host], &[target]);
                let control = lab.world.control();
                lab.world.after(ms(random.u64() % 12_000), move || {
                    control.reconnect(&[host], &[target])
                });
            }
            2 => {
                lab.world.partition_one_way(&[target], &[host]);
                let control = lab.world.control();
                lab.world.after(ms(random.u64() % 8_000), move || {
                    control.reconnect(&[host], &[target])
                });
            }
            _ => lab.world.stall(lab.target_reactors[1], ms(random.u64() % 3_000)),
        }
        if number < 6 {
            torment(lab, number + 1);
        }
    });
}

#[test]
fn no_write_lands_late_whatever_the_network_does() {
    for seed in 0..12 {
        let mut options = durable();
        // Writes take long enough to be under way when something happens.
        options.drive.write_latency.spike_probability = 0.05;
        options.drive.write_latency.spike = ms(900);
        let lab = Rc::new(Lab::with(100 + seed, options));
        torment(lab.clone(), 0);
        let parameters = match seed % 3 {
            0 => "&kato=1s&loss_timeout=600s",
            1 => "&kato=1s&fail_fast=500ms&hdgst=true&ddgst=true",
            _ => "&kato=1s&resubmit=none&depth=4",
        };
        let errors = Rc::new(RefCell::new(Vec::new()));
        let seen = errors.clone();
        lab.run(parameters, move |_, queue| async move {
            let tasks: Vec<_> = (0..24)
                .map(|block| spawn(exercise(queue.clone(), block, 60, seen.clone())))
                .collect();
            for task in tasks {
                task.await;
            }
        });
        if parameters.contains("loss_timeout") {
            assert_eq!(*errors.borrow(), [], "everything is sent again");
        }
        assert!(
            errors.borrow().iter().all(|error| *error == IoError::PathDown),
            "{:?}",
            errors.borrow()
        );
    }
}
