//! Log pages.

use super::*;
use crate::wire::command::IoOpcode;
use crate::wire::log::{
    CommandEffects, CommandEffectsLog, ErrorEntry, FirmwareLog, HealthLog, SupportedLogPages,
};

fn health(fixture: &Fixture, admin: &TestQueue) -> HealthLog {
    HealthLog::from_bytes(&fixture.log(admin, LogPageId::Health, 512).unwrap())
}

fn errors(fixture: &Fixture, admin: &TestQueue) -> Vec<ErrorEntry> {
    let bytes = fixture
        .log(admin, LogPageId::Error, 64 * ErrorEntry::BYTES)
        .unwrap();
    bytes
        .chunks(ErrorEntry::BYTES)
        .map(ErrorEntry::from_bytes)
        .filter(|entry| entry.error_count != 0)
        .collect()
}

#[test]
fn the_supported_pages_are_those_that_can_be_read() {
    let fixture = Fixture::new(1);
    for admin in [fixture.enabled(), fixture.discovery(HOST)] {
        let bytes = fixture.log(&admin, LogPageId::Supported, 1024).unwrap();
        let supported = SupportedLogPages::from_bytes(&bytes);
        for page_field in 0..=u8::MAX {
            let get = GetLogPage {
                page_field,
                dwords_minus_one: 127,
                ..GetLogPage::default()
            };
            let outcome = fixture.run(&admin, reading(get.to_entry(1, 0), 512));
            let told = supported.pages[usize::from(page_field)].bits() & 1 != 0;
            if told {
                assert_eq!(outcome.entry.status(), Status::SUCCESS, "{page_field:#x}");
                assert_eq!(outcome.bytes().len(), 512);
            } else {
                assert_eq!(
                    outcome.entry.status(),
                    Status::INVALID_LOG_PAGE.without_retry(),
                    "{page_field:#x}"
                );
            }
        }
    }
}

#[test]
fn failures_are_remembered() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    assert!(errors(&fixture, &admin).is_empty());
    let entry = super::io::block_entry(IoOpcode::Read, 5000, 1);
    assert_eq!(
        fixture.status(&io, reading(entry, BLOCK)),
        Status::LBA_OUT_OF_RANGE
    );
    assert_eq!(
        fixture.status(&admin, plain(SubmissionEntry::new(0xc0, 9, 3))),
        Status::INVALID_OPCODE
    );
    let log = errors(&fixture, &admin);
    assert_eq!(log.len(), 2);
    assert_eq!(
        (log[0].error_count, log[0].queue_id, log[0].command_id),
        (2, 0, 9)
    );
    assert_eq!((log[0].parameter_location, log[0].namespace_id), (0, 3));
    assert_eq!(
        (log[1].error_count, log[1].queue_id, log[1].command_id),
        (1, 1, 11)
    );
    assert_eq!(
        (log[1].block, log[1].namespace_id, log[1].parameter_location),
        (5000, 1, 40)
    );
    assert_eq!(log[1].status(), Status::LBA_OUT_OF_RANGE.without_retry());
    assert_eq!(health(&fixture, &admin).error_log_entries, 2);
}

#[test]
fn health_counts_what_was_read_and_written() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    for _ in 0..125 {
        fixture.run(&io, super::io::write(0, 1, 1));
    }
    fixture.run(&io, super::io::read(0, 1));
    fixture.run(&io, super::io::read(5000, 1));
    let log = health(&fixture, &admin);
    assert_eq!((log.host_read_commands, log.host_write_commands), (1, 125));
    assert_eq!((log.data_units_read, log.data_units_written), (1, 1));
    fixture.run(&io, super::io::write(0, 1, 1));
    assert_eq!(health(&fixture, &admin).data_units_written, 2);
    io.close(&fixture);
    let log = health(&fixture, &admin);
    assert_eq!((log.host_write_commands, log.data_units_written), (126, 2));
    assert_eq!(
        (log.available_spare_percent, log.critical_warning.bits()),
        (100, 0)
    );
}

#[test]
fn the_smart_log_is_of_the_controller() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    let get = GetLogPage::new(LogPageId::Health, 0, 512);
    for (id, expected) in [
        (0, Status::SUCCESS),
        (u32::MAX, Status::SUCCESS),
        (1, Status::INVALID_FIELD),
        (5000, Status::INVALID_NAMESPACE_OR_FORMAT),
    ] {
        assert_eq!(
            fixture.status(&admin, reading(get.to_entry(1, id), 512)),
            expected,
            "{id}"
        );
    }
}

#[test]
fn firmware_and_effects_are_told() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let firmware = FirmwareLog::from_bytes(&fixture.log(&admin, LogPageId::Firmware, 512).unwrap());
    assert_eq!(
        (firmware.active, firmware.revisions[0].text().as_str()),
        (1, env!("CARGO_PKG_VERSION"))
    );
    let effects = fixture.log(&admin, LogPageId::CommandEffects, 4096).unwrap();
    let effects = CommandEffectsLog::from_bytes(&effects);
    let supported: Vec<_> = (0..=255u8)
        .filter(|opcode| effects.io[usize::from(*opcode)].bits() != 0)
        .collect();
    assert_eq!(
        supported,
        [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c, 0x0d, 0x0e, 0x11, 0x15]
    );
    let supported: Vec<_> = (0..=255u8)
        .filter(|opcode| effects.admin[usize::from(*opcode)].bits() != 0)
        .collect();
    assert_eq!(supported, [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x86]);
    assert!(effects.io[1].contains(CommandEffects::BLOCK_CONTENT | CommandEffects::SUPPORTED));
    let other = GetLogPage {
        command_set_field: 2,
        ..GetLogPage::new(LogPageId::CommandEffects, 0, 4096)
    };
    assert_eq!(
        fixture.status(&admin, reading(other.to_entry(1, 0), 4096)),
        Status::INVALID_FIELD
    );
    let features = fixture.log(&admin, LogPageId::FeatureEffects, 1024).unwrap();
    let supported: Vec<_> = (0..256)
        .filter(|feature| features[feature * 4] & 1 != 0)
        .collect();
    assert_eq!(
        supported,
        [
            0x01, 0x02, 0x04, 0x05, 0x07, 0x0a, 0x0b, 0x0f, 0x16, 0x81, 0x82, 0x83
        ]
    );
}

#[test]
fn offsets_and_lengths_are_kept_to() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let whole = fixture.log(&admin, LogPageId::CommandEffects, 4096).unwrap();
    let part = |offset, bytes: usize| {
        let get = GetLogPage::new(LogPageId::CommandEffects, offset, bytes as u64);
        fixture.read_admin(&admin, get.to_entry(1, 0), bytes)
    };
    assert_eq!(part(1024, 64).as_deref(), Ok(&whole[1024..1088]));
    let over = part(4092, 16).unwrap();
    assert_eq!((&over[..4], &over[4..]), (&whole[4092..], [0; 12].as_slice()));
    assert_eq!(part(4096, 4), Ok(vec![0; 4]));
    for offset in [2, 4100, u64::MAX - 3] {
        assert_eq!(part(offset, 4), Err(Status::INVALID_FIELD), "{offset}");
    }
    let by_entries = GetLogPage {
        offset_in_entries: true,
        ..GetLogPage::new(LogPageId::CommandEffects, 0, 64)
    };
    assert_eq!(
        fixture.status(&admin, reading(by_entries.to_entry(1, 0), 64)),
        Status::INVALID_FIELD
    );
    let get = GetLogPage::new(LogPageId::CommandEffects, 0, 4096);
    assert_eq!(
        fixture.status(&admin, reading(get.to_entry(1, 0), 64)),
        Status::DATA_SGL_LENGTH_INVALID
    );
    let huge = GetLogPage {
        dwords_minus_one: u32::MAX,
        ..GetLogPage::new(LogPageId::Error, 0, 64)
    };
    assert_eq!(
        fixture.status(&admin, reading(huge.to_entry(1, 0), 64)),
        Status::INVALID_FIELD
    );
}
