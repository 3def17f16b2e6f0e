//! The NVM command set.

use super::*;
use crate::wire::command::{
    BlockCommand, BlockFlags, DatasetAttributes, DatasetManagement, DatasetRange, FabricsCommandType,
    IoOpcode,
};
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

#[test]
fn ranges_are_checked() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    for opcode in [
        IoOpcode::Read,
        IoOpcode::Write,
        IoOpcode::Compare,
        IoOpcode::WriteZeroes,
        IoOpcode::Verify,
    ] {
        for (block, blocks) in [
            (1024, 1),
            (1023, 2),
            (u64::MAX, 1),
            (u64::MAX - 1, 2),
            (1 << 63, 200),
        ] {
            let entry = block_entry(opcode, block, blocks);
            let command = Command {
                entry,
                data: Slice::zeroes(blocks as usize * BLOCK).into(),
                transfer_bytes_max: blocks * BLOCK as u32,
            };
            assert_eq!(
                fixture.status(&io, command),
                Status::LBA_OUT_OF_RANGE,
                "{opcode:?} {block}"
            );
        }
    }
    assert_eq!(drive.counters(), Default::default());
}

#[test]
fn data_has_to_be_as_long_as_the_blocks() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let read = block_entry(IoOpcode::Read, 0, 2);
    for bytes in [0, 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK + 1] {
        assert_eq!(
            fixture.status(&io, reading(read, bytes)),
            Status::DATA_SGL_LENGTH_INVALID
        );
        for opcode in [IoOpcode::Write, IoOpcode::Compare] {
            let entry = block_entry(opcode, 0, 2);
            assert_eq!(
                fixture.status(&io, writing(entry, &vec![1; bytes])),
                Status::DATA_SGL_LENGTH_INVALID
            );
            let early = io.queue.refuse_early(&entry, bytes as u32).unwrap();
            assert_eq!(early.status(), Status::DATA_SGL_LENGTH_INVALID.without_retry());
        }
    }
    let entry = block_entry(IoOpcode::Write, 0, 2);
    assert_eq!(
        io.queue
            .refuse_early(&entry, 2 * BLOCK as u32)
            .map(|entry| entry.status()),
        None
    );
    assert_eq!(drive.counters(), Default::default());
}

#[test]
fn transfers_have_a_limit() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    assert_eq!(fixture.status(&io, write(0, 5, 256)), Status::SUCCESS);
    assert_eq!(fixture.run(&io, read(0, 256)).bytes(), vec![5; 1 << 20]);
    assert_eq!(fixture.status(&io, read(0, 257)), Status::INVALID_FIELD);
    assert_eq!(fixture.status(&io, write(0, 5, 257)), Status::INVALID_FIELD);
}

#[test]
fn namespaces_have_to_exist() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    for (id, expected) in [
        (0, Status::INVALID_NAMESPACE_OR_FORMAT),
        (2, Status::INVALID_FIELD),
        (1024, Status::INVALID_FIELD),
        (1025, Status::INVALID_NAMESPACE_OR_FORMAT),
        (u32::MAX - 1, Status::INVALID_NAMESPACE_OR_FORMAT),
    ] {
        for opcode in [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c] {
            assert_eq!(
                fixture.status(&io, plain(SubmissionEntry::new(opcode, 1, id))),
                expected,
                "{id}"
            );
        }
    }
    let every = SubmissionEntry::new(IoOpcode::Read.to_wire(), 1, u32::MAX);
    assert_eq!(
        fixture.status(&io, plain(every)),
        Status::INVALID_NAMESPACE_OR_FORMAT
    );
}

#[test]
fn unknown_commands_are_invalid_opcodes() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let known = [
        0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x7f,
    ];
    for opcode in (0..=u8::MAX).filter(|opcode| !known.contains(opcode)) {
        let entry = SubmissionEntry::new(opcode, 1, 1);
        assert_eq!(
            fixture.status(&io, plain(entry)),
            Status::INVALID_OPCODE,
            "{opcode:#x}"
        );
    }
}

#[test]
fn protection_information_and_directives_are_refused() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    for flag in BlockFlags::PROTECTION.iter() {
        for opcode in [
            IoOpcode::Read,
            IoOpcode::Write,
            IoOpcode::Compare,
            IoOpcode::Verify,
        ] {
            let entry = flagged(opcode, 0, 1, flag);
            assert_eq!(
                fixture.status(&io, plain(entry)),
                Status::INVALID_PROTECTION_INFORMATION
            );
        }
    }
    let streams = flagged(IoOpcode::Write, 0, 1, BlockFlags::from_bits_retain(1 << 4));
    assert_eq!(
        fixture.status(&io, writing(streams, &[0; BLOCK])),
        Status::INVALID_FIELD
    );
}

#[test]
fn compares() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    fixture.run(&io, write(4, 6, 1));
    let entry = block_entry(IoOpcode::Compare, 4, 1);
    assert_eq!(fixture.status(&io, writing(entry, &[6; BLOCK])), Status::SUCCESS);
    let outcome = fixture.run(&io, writing(entry, &[7; BLOCK]));
    assert_eq!(outcome.entry.status(), Status::COMPARE_FAILURE.without_retry());
}

#[test]
fn writes_zeroes_and_verifies() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    fixture.run(&io, write(0, 6, 4));
    for flags in [
        BlockFlags::empty(),
        BlockFlags::DEALLOCATE,
        BlockFlags::FORCE_UNIT_ACCESS,
    ] {
        let zeroes = flagged(IoOpcode::WriteZeroes, 1, 2, flags);
        assert_eq!(fixture.status(&io, plain(zeroes)), Status::SUCCESS);
    }
    let mut expected = vec![6; 4 * BLOCK];
    expected[BLOCK..3 * BLOCK].fill(0);
    assert_eq!(fixture.run(&io, read(0, 4)).bytes(), expected);
    // More than a transfer may have, as no data is transferred.
    let all = block_entry(IoOpcode::Verify, 0, 1024);
    assert_eq!(fixture.status(&io, plain(all)), Status::SUCCESS);
    drive.make_unreadable(700, 1);
    assert_eq!(fixture.status(&io, plain(all)), Status::UNRECOVERED_READ_ERROR);
    let zeroes = block_entry(IoOpcode::WriteZeroes, 0, 1024);
    assert_eq!(fixture.status(&io, plain(zeroes)), Status::SUCCESS);
    assert_eq!(fixture.status(&io, plain(all)), Status::SUCCESS);
}

fn deallocate(ranges: &[(u64, u32)], attributes: DatasetAttributes) -> Command {
    let command = DatasetManagement {
        ranges: ranges.len() as u32,
        attributes,
    };
    let data: Vec<u8> = ranges
        .iter()
        .flat_map(|(block, blocks)| DatasetRange::new(*block, *blocks).as_bytes().to_vec())
        .collect();
    writing(
        command.to_entry(11, 1, SglDescriptor::transport(data.len() as u32)),
        &data,
    )
}

#[test]
fn deallocates_ranges() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    fixture.run(&io, write(0, 6, 8));
    let some = [(1, 2), (5, 0), (6, 1)];
    assert_eq!(
        fixture.status(&io, deallocate(&some, DatasetAttributes::INTEGRAL_READ)),
        Status::SUCCESS
    );
    assert_eq!(fixture.run(&io, read(0, 8)).bytes(), vec![6; 8 * BLOCK]);
    assert_eq!(
        fixture.status(&io, deallocate(&some, DatasetAttributes::DEALLOCATE)),
        Status::SUCCESS
    );
    let mut expected = vec![6; 8 * BLOCK];
    expected[BLOCK..3 * BLOCK].fill(0);
    expected[6 * BLOCK..7 * BLOCK].fill(0);
    assert_eq!(fixture.run(&io, read(0, 8)).bytes(), expected);

    // All ranges are checked before one is touched.
    let writes = drive.counters().writes;
    for bad in [(1024, 1), (0, 1025), (u64::MAX, u32::MAX)] {
        let ranges = [(0, 1), bad];
        assert_eq!(
            fixture.status(&io, deallocate(&ranges, DatasetAttributes::DEALLOCATE)),
            Status::LBA_OUT_OF_RANGE
        );
    }
    assert_eq!(drive.counters().writes, writes);
    let many: Vec<_> = (0..256).map(|block| (block, 1)).collect();
    assert_eq!(
        fixture.status(&io, deallocate(&many, DatasetAttributes::DEALLOCATE)),
        Status::SUCCESS
    );
    assert_eq!(fixture.run(&io, read(0, 8)).bytes(), vec![0; 8 * BLOCK]);

    let mut short = deallocate(&some, DatasetAttributes::DEALLOCATE);
    short.data = short.data.range(0, 47);
    assert_eq!(fixture.status(&io, short), Status::DATA_SGL_LENGTH_INVALID);
}

#[test]
fn a_device_that_cannot_deallocate_keeps_its_data() {
    let fixture = Fixture::new(1);
    let geometry = Geometry {
        deallocates: false,
        ..Geometry::new(4 << 20, 4096).unwrap()
    };
    fixture
        .subsystem
        .add_namespace(fixture.drive("disk0", geometry), &NamespaceConfig::default())
        .unwrap();
    let (_admin, io) = fixture.both();
    fixture.run(&io, write(0, 6, 1));
    assert_eq!(
        fixture.status(&io, deallocate(&[(0, 1)], DatasetAttributes::DEALLOCATE)),
        Status::SUCCESS
    );
    assert_eq!(fixture.run(&io, read(0, 1)).bytes(), vec![6; BLOCK]);
}

#[test]
fn disconnects() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let outcome = fixture.run(
        &io,
        plain(SubmissionEntry::fabrics(FabricsCommandType::Disconnect, 9)),
    );
    assert!(outcome.disconnect && outcome.entry.status().is_success());
    let mut format = SubmissionEntry::fabrics(FabricsCommandType::Disconnect, 9);
    format.cdw10 = 1.into();
    assert_eq!(
        fixture.status(&io, plain(format)),
        Status::CONNECT_INCOMPATIBLE_FORMAT
    );
    let connect = plain(SubmissionEntry::fabrics(FabricsCommandType::Connect, 9));
    assert_eq!(fixture.status(&io, connect), Status::COMMAND_SEQUENCE_ERROR);
    for kind in [
        FabricsCommandType::PropertyGet,
        FabricsCommandType::AuthenticationSend,
    ] {
        assert_eq!(
            fixture.status(&io, plain(SubmissionEntry::fabrics(kind, 9))),
            Status::INVALID_OPCODE
        );
    }
}

#[test]
fn serves_blocks_of_512_bytes() {
    let fixture = Fixture::new(1);
    let _drive = fixture.add_drive("disk0", Fixture::instant(512));
    let (_admin, io) = fixture.both();
    let entry = block_entry(IoOpcode::Write, 8191, 1);
    assert_eq!(fixture.status(&io, writing(entry, &[3; 512])), Status::SUCCESS);
    let entry = block_entry(IoOpcode::Read, 8191, 1);
    assert_eq!(fixture.run(&io, reading(entry, 512)).bytes(), vec![3; 512]);
    let entry = block_entry(IoOpcode::Write, 8192, 1);
    assert_eq!(
        fixture.status(&io, writing(entry, &[3; 512])),
        Status::LBA_OUT_OF_RANGE
    );
}

#[test]
fn errors_of_the_device_reach_the_host() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    for (error, expected) in [
        (IoError::MediaRead, Status::UNRECOVERED_READ_ERROR),
        (IoError::ChecksumMismatch, Status::GUARD_CHECK_ERROR),
        (IoError::TimedOut, Status::TRANSIENT_TRANSPORT_ERROR),
        (IoError::Os(5), Status::INTERNAL_ERROR),
    ] {
        drive.fail_nth(Operation::Read, 1, Fault::Error(error));
        let outcome = fixture.run(&io, read(0, 1));
        assert!(outcome.entry.status().is(expected), "{error:?}");
        assert!(outcome.bytes().is_empty());
    }
    drive.fail_nth(Operation::Write, 1, Fault::Error(IoError::CapacityExceeded));
    let outcome = fixture.run(&io, write(0, 1, 1));
    assert_eq!(outcome.entry.status(), Status::CAPACITY_EXCEEDED.without_retry());
}
