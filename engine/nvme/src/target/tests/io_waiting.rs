//! I/O commands that have to wait, and what becomes of them when they are in the way of something.

use std::future::Future;

use super::io::{block_entry, read, write};
use super::*;
use crate::wire::command::IoOpcode;
use pollux_device::IoError;
use pollux_sim::{Fault, Operation};

/// A device with small transfers and strict alignment gets its data in pieces, in memory it can take.
#[test]
fn adapts_to_what_the_device_can_take() {
    let fixture = Fixture::new(1);
    let geometry = Geometry {
        transfer_blocks_max: 3,
        memory_align_bytes: 512,
        ..Geometry::new(4 << 20, 4096).unwrap()
    };
    fixture
        .subsystem
        .add_namespace(fixture.drive("disk0", geometry), &NamespaceConfig::default())
        .unwrap();
    let (_admin, io) = fixture.both();
    assert_eq!(
        io.queue.data_align_bytes(&block_entry(IoOpcode::Write, 0, 1)),
        512
    );
    let content: Vec<u8> = (0..8 * BLOCK + 1).map(|at| (at / 7) as u8).collect();
    let mut command = writing(block_entry(IoOpcode::Write, 2, 8), &content[..8 * BLOCK]);
    command.data = Slice::copy_from(&content).slice(1..).into();
    assert_eq!(fixture.status(&io, command), Status::SUCCESS);
    assert_eq!(fixture.run(&io, read(2, 8)).bytes(), content[1..]);
    let compare = block_entry(IoOpcode::Compare, 2, 8);
    assert_eq!(
        fixture.status(&io, writing(compare, &content[1..])),
        Status::SUCCESS
    );
    assert_eq!(
        fixture.status(&io, plain(block_entry(IoOpcode::Verify, 0, 8))),
        Status::SUCCESS
    );
}

#[test]
fn a_shortage_is_waited_out() {
    for operation in [Operation::Read, Operation::Write, Operation::Flush] {
        for options in [Fixture::instant(BLOCK as u32), Fixture::slow(BLOCK as u32)] {
            let fixture = Fixture::new(1);
            let drive = fixture.add_drive("disk0", options);
            let (_admin, io) = fixture.both();
            fixture.run(&io, write(0, 3, 1));
            for nth in 1..=5 {
                drive.fail_nth(operation, nth, Fault::Error(IoError::ResourceShortage));
            }
            let command = match operation {
                Operation::Read => read(0, 1),
                Operation::Write => write(0, 4, 1),
                Operation::Flush => plain(SubmissionEntry::new(0, 1, 1)),
            };
            assert_eq!(fixture.status(&io, command), Status::SUCCESS, "{operation:?}");
        }
    }
}

#[test]
fn a_lasting_shortage_is_told_as_one() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    drive.change_faults(|faults| faults.shortage_probability = 1.0);
    for command in [read(0, 1), write(0, 1, 1), plain(SubmissionEntry::new(0, 1, 1))] {
        let before = fixture.world.now();
        let outcome = fixture.run(&io, command);
        assert_eq!(outcome.entry.status(), Status::COMMAND_INTERRUPTED);
        let waited = fixture.world.now() - before;
        assert!((4..7).contains(&waited.as_secs()), "{waited:?}");
    }
}

#[test]
fn waits_for_memory() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let hog = fixture.world.block_on(fixture.reactor(), async {
        let pool = pollux_reactor::buffers();
        let mut hog: Vec<_> = std::iter::from_fn(|| pool.allocate(1 << 20)).collect();
        hog.extend(std::iter::from_fn(|| pool.allocate(4096)));
        hog
    });
    let waiting = fixture.start(&io, read(0, 1));
    fixture.run_for(Duration::from_secs(1));
    assert!(!waiting.is_ended());
    drop(hog);
    let outcome = fixture.world.finish(&waiting);
    assert_eq!(outcome.entry.status(), Status::SUCCESS);
}

/// A flush that failed may have lost writes: a second one that succeeds would hide it.
#[test]
fn a_failed_flush_is_not_repeated() {
    for options in [Fixture::instant(BLOCK as u32), Fixture::slow(BLOCK as u32)] {
        let fixture = Fixture::new(1);
        let drive = fixture.add_drive("disk0", options);
        let (_admin, io) = fixture.both();
        drive.fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
        let flush = plain(SubmissionEntry::new(0, 1, 1));
        assert_eq!(fixture.status(&io, flush), Status::WRITE_FAULT);
        assert_eq!(drive.counters().flushes, 1);
    }
}

#[test]
fn a_flush_of_all_flushes_the_rest_when_one_fails() {
    let fixture = Fixture::new(1);
    let drives = ["a", "b", "c"].map(|name| fixture.add_drive(name, Fixture::slow(BLOCK as u32)));
    let (_admin, io) = fixture.both();
    drives[1].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    let flush = plain(SubmissionEntry::new(0, 1, u32::MAX));
    assert_eq!(fixture.status(&io, flush), Status::WRITE_FAULT);
    assert_eq!(drives.map(|drive| drive.counters().flushes), [1, 1, 1]);
}

#[test]
fn a_command_that_waits_can_be_aborted_and_one_at_the_device_cannot() {
    let (fixture, drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    let abort = |command_id| {
        let entry = crate::wire::command::Abort {
            queue_id: 1,
            command_id,
        }
        .to_entry(1);
        fixture.run(&admin, plain(entry)).entry.result_low()
    };
    drive.change_faults(|faults| faults.shortage_probability = 1.0);
    let waiting = fixture.start(&io, write(0, 1, 1));
    fixture.run_for(Duration::from_millis(500));
    assert_eq!((abort(12), abort(11)), (1, 0));
    let outcome = fixture.world.finish(&waiting);
    assert_eq!(outcome.entry.status(), Status::ABORT_REQUESTED);
    drive.change_faults(|faults| (faults.shortage_probability, faults.stuck) = (0.0, true));
    let stuck = fixture.start(&io, write(0, 1, 1));
    fixture.run_for(Duration::from_millis(1));
    assert_eq!(abort(11), 1);
    drive.change_faults(|faults| faults.stuck = false);
    assert_eq!(fixture.world.finish(&stuck).entry.status(), Status::SUCCESS);
}

/// A connection that is lost does not take back what is at the device: a reset is done only when it has
/// landed.
#[test]
fn a_reset_waits_for_abandoned_writes() {
    let fixture = Fixture::new(1);
    let drive = fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
    let (admin, io) = fixture.both();
    drive.change_faults(|faults| faults.stuck = true);
    let (queue, reactor) = (io.queue.clone(), io.reactor);
    fixture.world.block_on(reactor, async move {
        let mut execution = queue.submit(write(0, 8, 1));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::pin::Pin::new(&mut execution).poll(&mut context).is_pending());
        drop(execution);
    });
    io.close(&fixture);
    fixture.set_cc(&admin, 0);
    fixture.run_for(Duration::from_secs(1));
    assert_eq!(fixture.csts(&admin), 1);
    drive.change_faults(|faults| faults.stuck = false);
    fixture.run_for(Duration::from_millis(100));
    assert_eq!(fixture.csts(&admin), 0);
    let mut content = vec![0; BLOCK];
    drive.peek(0, &mut content);
    assert_eq!(content, vec![8; BLOCK]);
}

#[test]
fn an_ended_queue_takes_no_more() {
    let (fixture, drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    fixture.set_cc(&admin, 0);
    assert_eq!(fixture.status(&io, write(0, 1, 1)), Status::ABORTED_QUEUE_DELETED);
    assert_eq!(drive.counters(), Default::default());
}
