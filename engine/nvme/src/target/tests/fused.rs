//! Fused compare and write.

use super::io::{block_entry, read, write};
use super::*;
use crate::wire::command::{BlockCommand, BlockFlags, Fuse, IoOpcode};
use pollux_device::IoError;
use pollux_sim::{Fault, Operation};

fn first(block: u64, byte: u8, blocks: u32) -> Command {
    let mut entry = block_entry(IoOpcode::Compare, block, blocks).with_fuse(Fuse::First);
    entry.command_id = 21.into();
    writing(entry, &vec![byte; blocks as usize * BLOCK])
}

fn second(block: u64, byte: u8, blocks: u32) -> Command {
    let mut entry = block_entry(IoOpcode::Write, block, blocks).with_fuse(Fuse::Second);
    entry.command_id = 22.into();
    writing(entry, &vec![byte; blocks as usize * BLOCK])
}

struct Pair(SimTask<Outcome>, SimTask<Outcome>);

impl Pair {
    fn start(fixture: &Fixture, queue: &TestQueue, compare: Command, write: Command) -> Self {
        let (queue, reactor) = (queue.queue.clone(), queue.reactor);
        // Both halves are submitted in one go, as a connection does.
        let (one, other) =
            fixture.world.block_on(
                reactor,
                async move { (queue.submit(compare), queue.submit(write)) },
            );
        Self(
            fixture.world.spawn(reactor, one),
            fixture.world.spawn(reactor, other),
        )
    }

    fn finish(self, fixture: &Fixture) -> (Status, Status) {
        let (compared, written) = (fixture.world.finish(&self.0), fixture.world.finish(&self.1));
        assert_eq!(
            (compared.entry.command_id.get(), written.entry.command_id.get()),
            (21, 22)
        );
        (
            compared.entry.status().without_flags(),
            written.entry.status().without_flags(),
        )
    }
}

fn run(fixture: &Fixture, queue: &TestQueue, compare: Command, write: Command) -> (Status, Status) {
    Pair::start(fixture, queue, compare, write).finish(fixture)
}

fn content(fixture: &Fixture, queue: &TestQueue, block: u64) -> u8 {
    let bytes = fixture.run(queue, read(block, 1)).bytes();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

const SUCCESS: (Status, Status) = (Status::SUCCESS, Status::SUCCESS);

#[test]
fn writes_when_the_compare_succeeds() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    assert_eq!(run(&fixture, &io, first(3, 0, 2), second(3, 1, 2)), SUCCESS);
    assert_eq!(content(&fixture, &io, 4), 1);
    let missed = run(&fixture, &io, first(3, 0, 2), second(3, 2, 2));
    assert_eq!(missed, (Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED));
    assert_eq!(content(&fixture, &io, 3), 1);
    assert_eq!(run(&fixture, &io, first(3, 1, 2), second(3, 2, 2)), SUCCESS);
    assert_eq!(drive.counters().writes, 2);
    assert_eq!(
        run(&fixture, &io, first(0, 0, 32), second(0, 9, 32)).0,
        Status::COMPARE_FAILURE
    );
    assert_eq!(run(&fixture, &io, first(100, 0, 32), second(100, 9, 32)), SUCCESS);
}

#[test]
fn halves_that_do_not_fit_fail_both() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let invalid = (Status::INVALID_FIELD, Status::INVALID_FIELD);
    assert_eq!(run(&fixture, &io, first(3, 0, 1), second(4, 1, 1)), invalid);
    assert_eq!(run(&fixture, &io, first(3, 0, 1), second(3, 1, 2)), invalid);
    let long = (
        Status::ATOMIC_WRITE_UNIT_EXCEEDED,
        Status::ATOMIC_WRITE_UNIT_EXCEEDED,
    );
    assert_eq!(run(&fixture, &io, first(0, 0, 33), second(0, 1, 33)), long);

    // One half is bad: the other one is not done either.
    let mut other = first(3, 0, 1);
    other.entry.opcode = IoOpcode::Read.to_wire();
    let refused = run(&fixture, &io, other, second(3, 1, 1));
    assert_eq!(
        refused,
        (Status::DATA_SGL_LENGTH_INVALID, Status::ABORTED_FAILED_FUSED)
    );
    let mut other = first(3, 0, 1);
    other.entry.opcode = IoOpcode::WriteZeroes.to_wire();
    assert_eq!(
        run(&fixture, &io, other, second(3, 1, 1)).0,
        Status::INVALID_FIELD
    );
    let mut other = second(3, 1, 1);
    other.entry.opcode = IoOpcode::Compare.to_wire();
    let refused = run(&fixture, &io, first(3, 0, 1), other);
    assert_eq!(refused, (Status::ABORTED_FAILED_FUSED, Status::INVALID_FIELD));
    let refused = run(&fixture, &io, first(1024, 0, 1), second(1024, 1, 1));
    assert_eq!(refused, (Status::LBA_OUT_OF_RANGE, Status::ABORTED_FAILED_FUSED));
    let mut other = second(3, 1, 1);
    other.entry.namespace_id = 2.into();
    let refused = run(&fixture, &io, first(3, 0, 1), other);
    assert_eq!(refused, (Status::ABORTED_FAILED_FUSED, Status::INVALID_FIELD));
    // The connection drops the data of a half that it had to refuse.
    let mut other = first(3, 0, 1);
    other.data = Gather::new();
    assert_eq!(
        run(&fixture, &io, other, second(3, 1, 1)).1,
        Status::ABORTED_FAILED_FUSED
    );
    assert_eq!(drive.counters().writes, 0);
}

#[test]
fn a_half_without_the_other_is_aborted() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    assert_eq!(
        fixture.status(&io, second(0, 1, 1)),
        Status::ABORTED_MISSING_FUSED
    );
    let lonely = fixture.start(&io, first(0, 0, 1));
    fixture.run_for(Duration::from_millis(1));
    assert!(!lonely.is_ended());
    assert_eq!(run(&fixture, &io, first(0, 0, 1), second(0, 1, 1)), SUCCESS);
    let outcome = fixture.world.finish(&lonely);
    assert_eq!(
        outcome.entry.status(),
        Status::ABORTED_MISSING_FUSED.without_retry()
    );
    let lonely = fixture.start(&io, first(0, 1, 1));
    fixture.run_for(Duration::from_millis(1));
    io.queue.fused_interrupted();
    let outcome = fixture.world.finish(&lonely);
    assert_eq!(
        outcome.entry.status(),
        Status::ABORTED_MISSING_FUSED.without_retry()
    );
    io.queue.fused_interrupted();
    assert_eq!(
        fixture.status(&io, second(0, 1, 1)),
        Status::ABORTED_MISSING_FUSED
    );
    let lonely = fixture.start(&io, first(0, 1, 1));
    fixture.run_for(Duration::from_millis(1));
    let reserved = block_entry(IoOpcode::Write, 0, 1).with_fuse(Fuse::Reserved);
    assert_eq!(
        fixture.status(&io, writing(reserved, &[0; BLOCK])),
        Status::INVALID_FIELD
    );
    let outcome = fixture.world.finish(&lonely);
    assert_eq!(
        outcome.entry.status(),
        Status::ABORTED_MISSING_FUSED.without_retry()
    );
}

#[test]
fn a_device_error_fails_its_half() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    drive.fail_nth(Operation::Read, 1, Fault::Error(IoError::MediaRead));
    let failed = run(&fixture, &io, first(0, 0, 1), second(0, 1, 1));
    assert_eq!(
        failed,
        (Status::UNRECOVERED_READ_ERROR, Status::ABORTED_FAILED_FUSED)
    );
    drive.fail_nth(Operation::Write, 1, Fault::Error(IoError::MediaWrite));
    let failed = run(&fixture, &io, first(0, 0, 1), second(0, 1, 1));
    assert_eq!(failed, (Status::SUCCESS, Status::WRITE_FAULT));
    drive.fail_nth(Operation::Write, 1, Fault::Error(IoError::ResourceShortage));
    drive.fail_nth(Operation::Read, 1, Fault::Error(IoError::ResourceShortage));
    let compared = if content(&fixture, &io, 0) == 0 { 0 } else { 1 };
    assert_eq!(
        run(&fixture, &io, first(0, compared, 1), second(0, 7, 1)),
        SUCCESS
    );
    // Nothing is held any more.
    assert_eq!(fixture.status(&io, write(0, 1, 1)), Status::SUCCESS);
}

/// Two hosts on two reactors, and a drive that takes its time.
fn two_hosts() -> (Fixture, Arc<pollux_sim::SimDrive>, [(TestQueue, TestQueue); 2]) {
    let fixture = Fixture::new(2);
    let drive = fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
    let hosts = [fixture.both(), fixture.both()];
    assert_ne!(hosts[0].1.reactor, hosts[1].1.reactor);
    (fixture, drive, hosts)
}

const LONG: Duration = Duration::from_millis(100);

#[test]
fn waits_for_a_write_that_is_at_the_device() {
    let (fixture, drive, [(_a, one), (_b, other)]) = two_hosts();
    drive.fail_nth(Operation::Write, 1, Fault::Delay(LONG));
    let writing = fixture.start(&other, write(5, 8, 1));
    fixture.run_for(Duration::from_millis(1));
    let pair = Pair::start(&fixture, &one, first(5, 0, 1), second(5, 9, 1));
    assert_eq!(
        pair.finish(&fixture),
        (Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED)
    );
    assert!(writing.is_ended());
    assert_eq!(content(&fixture, &one, 5), 8);
}

#[test]
fn keeps_others_out_of_its_blocks_only() {
    let (fixture, drive, [(_a, one), (_b, other)]) = two_hosts();
    drive.fail_nth(Operation::Read, 1, Fault::Delay(LONG));
    let pair = Pair::start(&fixture, &one, first(5, 0, 2), second(5, 9, 2));
    fixture.run_for(Duration::from_millis(1));
    let held: Vec<_> = [&one, &other]
        .into_iter()
        .flat_map(|queue| {
            let zeroes = plain(block_entry(IoOpcode::WriteZeroes, 6, 1));
            [write(6, 7, 1), read(4, 2), zeroes].map(|command| fixture.start(queue, command))
        })
        .collect();
    let free: Vec<_> = [&one, &other]
        .into_iter()
        .flat_map(|queue| {
            let flush = plain(SubmissionEntry::new(0, 1, 1));
            [write(4, 7, 1), read(7, 2), flush].map(|command| fixture.start(queue, command))
        })
        .collect();
    fixture.run_for(Duration::from_millis(50));
    assert!(held.iter().all(|task| !task.is_ended()));
    assert!(free.iter().all(SimTask::is_ended));
    assert_eq!(pair.finish(&fixture), SUCCESS);
    for task in held {
        assert_eq!(fixture.world.finish(&task).entry.status(), Status::SUCCESS);
    }
}

#[test]
fn a_reactor_that_joins_later_keeps_out_too() {
    let fixture = Fixture::new(2);
    let drive = fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
    let (_a, one) = fixture.both();
    drive.fail_nth(Operation::Read, 1, Fault::Delay(LONG));
    let pair = Pair::start(&fixture, &one, first(5, 0, 1), second(5, 9, 1));
    fixture.run_for(Duration::from_millis(1));
    let (_b, other) = fixture.both();
    assert_ne!(one.reactor, other.reactor);
    let late = fixture.start(&other, write(5, 7, 1));
    fixture.run_for(Duration::from_millis(50));
    assert!(!late.is_ended());
    assert_eq!(pair.finish(&fixture), SUCCESS);
    assert_eq!(fixture.world.finish(&late).entry.status(), Status::SUCCESS);
    assert_eq!(content(&fixture, &one, 5), 7);
}

#[test]
fn a_pair_gives_up_when_the_device_hangs() {
    let (fixture, drive, [(_a, one), (_b, other)]) = two_hosts();
    drive.fail_nth(Operation::Write, 1, Fault::Delay(Duration::from_secs(60)));
    let stuck = fixture.start(&other, write(5, 8, 1));
    fixture.run_for(Duration::from_millis(1));
    let pair = Pair::start(&fixture, &one, first(100, 0, 1), second(100, 9, 1));
    let waiting = Pair::start(&fixture, &other, first(100, 0, 1), second(100, 9, 1));
    assert_eq!(
        pair.finish(&fixture),
        (Status::COMMAND_INTERRUPTED, Status::ABORTED_FAILED_FUSED)
    );
    assert_eq!(waiting.finish(&fixture).0, Status::COMMAND_INTERRUPTED);
    // The blocks are free again, and so are those that were never held.
    assert_eq!(fixture.status(&one, write(100, 1, 1)), Status::SUCCESS);
    assert_eq!(fixture.status(&other, write(100, 1, 1)), Status::SUCCESS);
    assert_eq!(fixture.world.finish(&stuck).entry.status(), Status::SUCCESS);
    assert_eq!(run(&fixture, &one, first(100, 1, 1), second(100, 9, 1)), SUCCESS);
}

#[test]
fn a_pair_whose_connection_is_lost_releases_its_blocks() {
    let (fixture, drive, [(_a, one), (_b, other)]) = two_hosts();
    drive.fail_nth(Operation::Read, 1, Fault::Delay(LONG));
    let (queue, reactor) = (one.queue.clone(), one.reactor);
    fixture.world.block_on(reactor, async move {
        drop((queue.submit(first(5, 0, 1)), queue.submit(second(5, 9, 1))));
    });
    one.close(&fixture);
    assert_eq!(fixture.status(&other, write(5, 7, 1)), Status::SUCCESS);
    assert_eq!(content(&fixture, &other, 5), 7);
}

/// Hosts count up one block with compare and write, while others overwrite its neighbours: no step is lost.
#[test]
fn counts_exactly() {
    for seed in 0..4 {
        let fixture = Fixture::new(2);
        fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
        let hosts: Vec<_> = (0..4).map(|_| fixture.both()).collect();
        let tasks: Vec<_> = hosts
            .iter()
            .enumerate()
            .map(|(index, (_, io))| {
                let queue = io.queue.clone();
                fixture.world.spawn(io.reactor, async move {
                    let mut steps = 0u32;
                    for round in 0..25 {
                        let seen = queue.submit(read(5, 1)).await.bytes()[0];
                        // Each is polled when it is woken, as in a connection.
                        let start = |command| pollux_reactor::spawn(queue.submit(command));
                        let compared = start(first(5, seen, 1));
                        let written = start(second(5, seen + 1, 1));
                        let neighbour = start(write(4 + 2 * (round % 2), index as u8, 1));
                        let success = compared.await.entry.status().is_success();
                        assert_eq!(written.await.entry.status().is_success(), success);
                        assert!(neighbour.await.entry.status().is_success());
                        steps += u32::from(success);
                        if (round + seed) % 3 == 0 {
                            pollux_reactor::yield_now().await;
                        }
                    }
                    steps
                })
            })
            .collect();
        let steps: u32 = tasks.iter().map(|task| fixture.world.finish(task)).sum();
        assert_eq!(u32::from(content(&fixture, &hosts[0].1, 5)), steps);
        assert!(steps >= 25);
    }
}

#[test]
fn forced_unit_access_of_the_write_counts() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let mut forced = second(0, 1, 1);
    let command = BlockCommand {
        starting_block: 0,
        blocks: 1,
        flags: BlockFlags::FORCE_UNIT_ACCESS,
    };
    forced.entry.cdw12 = command
        .to_entry(IoOpcode::Write, 0, 1, SglDescriptor::transport(0))
        .cdw12;
    assert_eq!(run(&fixture, &io, first(0, 0, 1), forced), SUCCESS);
    assert_eq!((drive.counters().fua_writes, drive.cached_writes()), (1, 0));
}
