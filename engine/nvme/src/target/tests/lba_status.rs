//! Get LBA Status.

use pollux_device::{MallocDevice, MallocOptions};

use super::io::write;
use super::*;
use crate::wire::command::{GetLbaStatus, LbaStatusAction};
use crate::wire::identify::{IdentifyController, NvmAdminCommands, NvmController, OptionalAdminCommands};
use crate::wire::lba_status::{LbaStatusCompletion, LbaStatusList};
use crate::wire::log::AnaState;

/// Blocks of the namespace.
const BLOCKS: u64 = 1 << 18;

/// A namespace of 1 GiB in memory, of which nothing is allocated.
fn fixture() -> (Fixture, TestQueue, TestQueue) {
    let fixture = Fixture::new(1);
    let options = MallocOptions::new(BLOCKS * BLOCK as u64);
    let device = MallocDevice::new("memory", &options).unwrap();
    fixture
        .subsystem
        .add_namespace(device, &NamespaceConfig::default())
        .unwrap();
    let (admin, io) = fixture.both();
    (fixture, admin, io)
}

/// Ranges, and whether they are all.
type Told = (Vec<(u64, u32)>, bool);

fn ask(fixture: &Fixture, admin: &TestQueue, get: GetLbaStatus) -> Result<Told, Status> {
    let bytes = get.data_bytes() as usize;
    let bytes = fixture.read_admin(admin, get.to_entry(3, 1), bytes)?;
    let list = LbaStatusList::parse(&bytes).unwrap();
    let ranges = list.descriptors.iter();
    Ok((
        ranges.map(|range| (range.starting_block, range.blocks)).collect(),
        list.completion == Some(LbaStatusCompletion::Complete),
    ))
}

#[test]
fn the_controller_says_that_it_knows_the_command() {
    let (fixture, admin, _io) = fixture();
    let identify = fixture
        .identify(&admin, IdentifyStructure::Controller, 0)
        .unwrap();
    let commands = IdentifyController::from_bytes(&identify).admin_commands;
    assert_eq!(commands, OptionalAdminCommands::LBA_STATUS);
    let structure = IdentifyStructure::CommandSetController;
    let limits = NvmController::from_bytes(&fixture.identify(&admin, structure, 0).unwrap());
    assert_eq!(limits.admin_commands, NvmAdminCommands::REPORTS_ALLOCATED);
    let discovery = fixture.discovery(HOST);
    let identify = fixture.identify(&discovery, IdentifyStructure::Controller, 0);
    let commands = IdentifyController::from_bytes(&identify.unwrap()).admin_commands;
    assert!(commands.is_empty());
}

#[test]
fn what_is_allocated_is_told() {
    let (fixture, admin, io) = fixture();
    let range = |block, blocks| GetLbaStatus::allocated(block, blocks, 4096);
    assert_eq!(ask(&fixture, &admin, range(0, 100)), Ok((vec![], true)));
    for block in [10, 11, 50, 99, 100] {
        assert_eq!(fixture.status(&io, write(block, 7, 1)), Status::SUCCESS);
    }
    let all = vec![(10, 2), (50, 1), (99, 1)];
    assert_eq!(ask(&fixture, &admin, range(0, 100)), Ok((all, true)));
    assert_eq!(ask(&fixture, &admin, range(11, 10)), Ok((vec![(11, 1)], true)));
    // As much as there is room for: nothing is known of what comes behind.
    let cut = GetLbaStatus::allocated(0, 100, LbaStatusList::bytes_of(2) as u32);
    assert_eq!(ask(&fixture, &admin, cut), Ok((vec![(10, 2), (50, 1)], false)));
    let none = GetLbaStatus::allocated(0, 100, 8);
    assert_eq!(ask(&fixture, &admin, none), Ok((vec![], false)));
    // Up to the end, in several pieces.
    assert_eq!(fixture.status(&io, write(BLOCKS - 1, 7, 1)), Status::SUCCESS);
    let all = vec![(50, 1), (99, 2), (BLOCKS - 1, 1)];
    assert_eq!(ask(&fixture, &admin, range(20, 0)), Ok((all, true)));
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let (fixture, admin, _io) = fixture();
    let range = |block, blocks| GetLbaStatus::allocated(block, blocks, 4096);
    for (block, blocks) in [
        (BLOCKS, 0),
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, 0),
    ] {
        let told = ask(&fixture, &admin, range(block, blocks));
        assert_eq!(told, Err(Status::LBA_OUT_OF_RANGE), "{blocks} from {block}");
    }
    assert!(ask(&fixture, &admin, range(BLOCKS - 1, 1)).is_ok());
    for action_field in [
        0,
        LbaStatusAction::Scan.to_wire(),
        LbaStatusAction::Tracked.to_wire(),
        0xff,
    ] {
        let other = GetLbaStatus {
            action_field,
            ..range(0, 1)
        };
        assert_eq!(ask(&fixture, &admin, other), Err(Status::INVALID_FIELD));
    }
    for (id, expected) in [
        (0, Status::INVALID_NAMESPACE_OR_FORMAT),
        (u32::MAX, Status::INVALID_NAMESPACE_OR_FORMAT),
        (2, Status::INVALID_FIELD),
    ] {
        let entry = range(0, 1).to_entry(1, id);
        assert_eq!(fixture.status(&admin, reading(entry, 4096)), expected, "{id}");
    }
    // A host that takes less than it asks for, and one that asks for more than a transfer.
    let entry = range(0, 1).to_entry(1, 1);
    assert_eq!(
        fixture.status(&admin, reading(entry, 4092)),
        Status::DATA_SGL_LENGTH_INVALID
    );
    let large = GetLbaStatus {
        dwords_minus_one: u32::MAX,
        ..range(0, 1)
    };
    assert_eq!(
        fixture.status(&admin, reading(large.to_entry(1, 1), 4096)),
        Status::INVALID_FIELD
    );
}

#[test]
fn without_access_nothing_is_told() {
    let fixture = Fixture::with_subsystem(
        1,
        TargetConfig::default(),
        &SubsystemConfig {
            asymmetric_access: true,
            ..SubsystemConfig::new(SUBSYSTEM)
        },
    );
    fixture.add_drive("disk0", Fixture::instant(BLOCK as u32));
    let admin = fixture.enabled();
    let range = GetLbaStatus::allocated(0, 10, 4096);
    // A drive that knows nothing of holes.
    assert_eq!(ask(&fixture, &admin, range), Ok((vec![(0, 10)], true)));
    fixture.subsystem.set_access(1, AnaState::Inaccessible).unwrap();
    assert!(ask(&fixture, &admin, range).is_err());
}
