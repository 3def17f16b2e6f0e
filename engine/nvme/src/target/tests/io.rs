//! The NVM command set.

use super::*;
use crate::wire::command::{BlockCommand, BlockFlags, IoOpcode};
use pollux_device::IoError;
use pollux_sim::{Fault, Operation};

pub(super) fn block_entry(opcode: IoOpcode, block: u64, blocks: u32) -> SubmissionEntry {
    flagged(opcode, block, blocks, BlockFlags::empty())
}

pub(super) fn flagged(opcode: IoOpcode, block: u64, blocks: u32, flags: BlockFlags) -> SubmissionEntry {
    let command = BlockCommand {
        starting_block: block,
        blocks,
        flags,
    };
    command.to_entry(opcode, 11, 1, SglDescriptor::transport(0))
}

pub(super) fn read(block: u64, blocks: u32) -> Command {
    reading(
        block_entry(IoOpcode::Read, block, blocks),
        blocks as usize * BLOCK,
    )
}

pub(super) fn write(block: u64, byte: u8, blocks: u32) -> Command {
    writing(
        block_entry(IoOpcode::Write, block, blocks),
        &vec![byte; blocks as usize * BLOCK],
    )
}

#[test]
fn reads_what_was_written() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    assert_eq!(fixture.run(&io, read(3, 2)).bytes(), vec![0; 2 * BLOCK]);
    let outcome = fixture.run(&io, write(3, 7, 2));
    assert_eq!(
        (outcome.entry.status(), outcome.entry.command_id.get()),
        (Status::SUCCESS, 11)
    );
    assert_eq!(fixture.run(&io, read(3, 2)).bytes(), vec![7; 2 * BLOCK]);
    assert_eq!(fixture.run(&io, read(2, 1)).bytes(), vec![0; BLOCK]);
    assert_eq!(drive.counters().fua_writes, 0);
}

#[test]
fn works_the_same_when_the_drive_takes_its_time() {
    let fixture = Fixture::new(1);
    let drive = fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
    let (_admin, io) = fixture.both();
    assert_eq!(fixture.status(&io, write(1023, 9, 1)), Status::SUCCESS);
    assert_eq!(fixture.run(&io, read(1023, 1)).bytes(), vec![9; BLOCK]);
    drive.fail_nth(Operation::Read, 1, Fault::Error(IoError::MediaRead));
    assert_eq!(fixture.status(&io, read(1023, 1)), Status::UNRECOVERED_READ_ERROR);
}

#[test]
fn flushes_and_forces_unit_access() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let forced = flagged(
        IoOpcode::Write,
        0,
        1,
        BlockFlags::FORCE_UNIT_ACCESS | BlockFlags::LIMITED_RETRY,
    );
    assert_eq!(fixture.status(&io, writing(forced, &[1; BLOCK])), Status::SUCCESS);
    assert_eq!(drive.counters().fua_writes, 1);
    assert_eq!(
        fixture.status(&io, plain(SubmissionEntry::new(0, 1, 1))),
        Status::SUCCESS
    );
    assert_eq!(drive.counters().flushes, 1);
    assert_eq!(
        fixture.status(&io, plain(SubmissionEntry::new(0, 1, u32::MAX))),
        Status::SUCCESS
    );
    assert_eq!(drive.counters().flushes, 2);
    // A read with FUA returns what is on stable media: what was cached has to get there first.
    assert_eq!(fixture.status(&io, write(5, 1, 1)), Status::SUCCESS);
    let forced = flagged(IoOpcode::Read, 5, 1, BlockFlags::FORCE_UNIT_ACCESS);
    assert_eq!(fixture.run(&io, reading(forced, BLOCK)).bytes(), vec![1; BLOCK]);
    assert_eq!((drive.counters().flushes, drive.cached_writes()), (3, 0));
}
