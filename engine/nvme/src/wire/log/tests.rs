//! Expected bytes are written by hand from the offsets of the specification.

use proptest::prelude::*;

use super::*;
use crate::wire::command::{AdminOpcode, IoOpcode};
use crate::wire::identify::{IDENTIFY_BYTES, parse_namespace_list};
use crate::wire::nqn::{Nqn, NqnField};
use crate::wire::status::Status;
use crate::wire::test_bytes::at_offsets;
use crate::wire::text::AsciiField;

#[test]
fn freezes_an_error_entry() {
    let entry = ErrorEntry {
        error_count: 0x0102_0304_0506_0708,
        queue_id: 0x090a,
        command_id: 0x0b0c,
        parameter_location: 0x0d0e,
        block: 0x1112_1314_1516_1718,
        namespace_id: 0x191a_1b1c,
        vendor_log_page: 0x1d,
        transport_type: TransportType::Tcp.to_wire(),
        command_specific: 0x1f20_2122_2324_2526,
        transport_specific: 0x2728,
        ..ErrorEntry::default()
    }
    .with_status(Status::LBA_OUT_OF_RANGE.without_retry());
    let expected = at_offsets(
        64,
        &[
            (0, &[8, 7, 6, 5, 4, 3, 2, 1]),
            (8, &[0x0a, 9, 0x0c, 0x0b, 0x00, 0x81, 0x0e, 0x0d]),
            (16, &[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]),
            (24, &[0x1c, 0x1b, 0x1a, 0x19, 0x1d, 3]),
            (32, &[0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0x20, 0x1f, 0x28, 0x27]),
        ],
    );
    assert_eq!(entry.to_bytes().as_slice(), expected);
    assert_eq!(ErrorEntry::from_bytes(&expected), entry);
    assert_eq!(entry.status(), Status::LBA_OUT_OF_RANGE.without_retry());
}

#[test]
fn freezes_the_health_log() {
    let log = HealthLog {
        critical_warning: CriticalWarning::SPARE | CriticalWarning::READ_ONLY,
        temperature_kelvin: 0x0130,
        available_spare_percent: 100,
        available_spare_threshold_percent: 10,
        used_percent: 3,
        data_units_read: 1,
        data_units_written: 2,
        host_read_commands: 3,
        host_write_commands: 4,
        busy_minutes: 5,
        power_cycles: 6,
        power_on_hours: 7,
        unsafe_shutdowns: 8,
        media_errors: 9,
        error_log_entries: 10 | (1 << 127),
        warning_temperature_minutes: 0x0b0c_0d0e,
        critical_temperature_minutes: 0x0f10_1112,
        sensors_kelvin: [0x1314, 0, 0, 0, 0, 0, 0, 0x1516],
    };
    let expected = at_offsets(
        512,
        &[
            (0, &[0x09, 0x30, 0x01, 100, 10, 3]),
            (32, &[1]),
            (48, &[2]),
            (64, &[3]),
            (80, &[4]),
            (96, &[5]),
            (112, &[6]),
            (128, &[7]),
            (144, &[8]),
            (160, &[9]),
            (176, &[10]),
            (191, &[0x80]),
            (192, &[0x0e, 0x0d, 0x0c, 0x0b, 0x12, 0x11, 0x10, 0x0f]),
            (200, &[0x14, 0x13]),
            (214, &[0x16, 0x15]),
        ],
    );
    assert_eq!(log.to_bytes().as_slice(), expected);
    assert_eq!(HealthLog::from_bytes(&expected), log);
}

#[test]
fn freezes_the_firmware_log() {
    let mut log = FirmwareLog {
        active: 0x21,
        ..FirmwareLog::default()
    };
    log.revisions[0] = AsciiField::new("0.1.0");
    log.revisions[6] = AsciiField::new("12345678");
    let expected = at_offsets(512, &[(0, &[0x21]), (8, b"0.1.0   "), (56, b"12345678")]);
    assert_eq!(log.to_bytes().as_slice(), expected);
}

#[test]
fn freezes_a_reservation_notification() {
    let notification = ReservationNotification {
        log_page_count: 0x0102,
        notification_field: ReservationNotificationType::ReservationReleased.to_wire(),
        waiting: 3,
        namespace_id: 0x0405_0607,
    };
    let expected = at_offsets(64, &[(0, &[2, 1]), (8, &[2, 3]), (12, &[7, 6, 5, 4])]);
    assert_eq!(notification.to_bytes().as_slice(), expected);
    assert_eq!(
        notification.notification_type(),
        Some(ReservationNotificationType::ReservationReleased)
    );
}

#[test]
fn freezes_the_supported_pages() {
    let log = SupportedLogPages::of(&[LogPageId::Error, LogPageId::Ana, LogPageId::Discovery]);
    let expected = at_offsets(1024, &[(4, &[1]), (48, &[1]), (448, &[1])]);
    assert_eq!(log.to_bytes().as_slice(), expected);
}

#[test]
fn freezes_the_command_effects() {
    let log = CommandEffectsLog::default()
        .with_admin(AdminOpcode::Identify, CommandEffects::empty())
        .with_admin(
            AdminOpcode::FormatNvm,
            CommandEffects::BLOCK_CONTENT
                | CommandEffects::NAMESPACE_CAPABILITY
                | CommandEffects::ALONE_IN_NAMESPACE,
        )
        .with_io(
            IoOpcode::Write,
            CommandEffects::BLOCK_CONTENT | CommandEffects::SCOPE_NAMESPACE,
        )
        .with_io(
            IoOpcode::DatasetManagement,
            CommandEffects::ALONE | CommandEffects::UUID_SELECTION,
        );
    let expected = at_offsets(
        4096,
        &[
            (0x06 * 4, &[1, 0, 0, 0]),
            (0x80 * 4, &[0x07, 0, 0x01, 0]),
            (1024 + 4, &[0x03, 0, 0x10, 0]),
            (1024 + 0x09 * 4, &[0x01, 0, 0x0a, 0]),
        ],
    );
    assert_eq!(log.to_bytes().as_slice(), expected);
}

#[test]
fn tells_of_changed_namespaces() {
    let mut out = [0xff; IDENTIFY_BYTES];
    changed_namespaces([2, 5], &mut out);
    assert_eq!(
        out.as_slice(),
        at_offsets(4096, &[(0, &[2, 0, 0, 0, 5, 0, 0, 0])])
    );
    changed_namespaces(1..=1024, &mut out);
    assert!(parse_namespace_list(&out).eq(1..=1024));
    changed_namespaces(1..=1025, &mut out);
    assert!(parse_namespace_list(&out).eq([0xffff_ffff]));
}

fn ana_log() -> (AnaLog, Vec<u8>) {
    let log = AnaLog {
        change_count: 0x0102_0304_0506_0708,
        groups: vec![
            AnaGroup {
                group_id: 1,
                change_count: 9,
                state: AnaState::Optimized,
                namespaces: vec![1, 0x0a0b_0c0d],
            },
            AnaGroup {
                group_id: 2,
                change_count: 0,
                state: AnaState::Inaccessible,
                namespaces: vec![],
            },
            AnaGroup {
                group_id: 3,
                change_count: 0,
                state: AnaState::Change,
                namespaces: vec![7],
            },
        ],
    };
    let bytes = at_offsets(
        124,
        &[
            (0, &[8, 7, 6, 5, 4, 3, 2, 1, 3, 0]),
            (16, &[1, 0, 0, 0, 2, 0, 0, 0, 9]),
            (32, &[0x01]),
            (48, &[1, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]),
            (56, &[2]),
            (72, &[0x03]),
            (88, &[3, 0, 0, 0, 1]),
            (104, &[0x0f]),
            (120, &[7]),
        ],
    );
    (log, bytes)
}

#[test]
fn freezes_the_ana_log() {
    let (log, bytes) = ana_log();
    assert_eq!(log.to_bytes(), bytes);
    assert_eq!(AnaLog::parse(&bytes), Ok(log));
}

#[test]
fn refuses_bad_ana_logs() {
    let (log, mut bytes) = ana_log();
    for length in 0..bytes.len() {
        let group_index = match length {
            0..56 => 0,
            56..88 => 1,
            _ => 2,
        };
        assert_eq!(
            AnaLog::parse(&bytes[..length]),
            Err(AnaLogError::Truncated {
                bytes: length,
                group_index
            })
        );
    }
    bytes.push(0xff);
    assert_eq!(AnaLog::parse(&bytes), Ok(log));
    bytes[32] = 0xf1;
    assert!(AnaLog::parse(&bytes).is_ok(), "reserved bits are ignored");
    bytes[32] = 5;
    assert_eq!(
        AnaLog::parse(&bytes),
        Err(AnaLogError::State {
            group_id: 1,
            state: 5
        })
    );
    bytes[32] = 1;
    bytes[20..24].fill(0xff);
    assert_eq!(
        AnaLog::parse(&bytes),
        Err(AnaLogError::Truncated {
            bytes: 125,
            group_index: 0
        })
    );
}

fn discovery_log() -> (DiscoveryHeader, DiscoveryEntry, Vec<u8>) {
    let name: Nqn = "nqn.2026-11.io.pollux:serve".parse().unwrap();
    let header = DiscoveryHeader {
        generation: 0x0102_0304_0506_0708,
        records: 1,
        record_format: 0,
    };
    let entry = DiscoveryEntry {
        transport_field: TransportType::Tcp.to_wire(),
        address_family_field: AddressFamily::Ipv6.to_wire(),
        subsystem_type_field: SubsystemType::Nvm.to_wire(),
        requirements: DiscoveryEntry::FLOW_CONTROL_OPTIONAL,
        port_id: 0x0102,
        controller_id: 0xffff,
        admin_queue_entries: 0x0304,
        flags: DiscoveryEntryFlags::PERSISTENT_CONNECTIONS,
        service: AsciiField::new("4420"),
        subsystem_nqn: NqnField::from(&name),
        address: AsciiField::new("fd00::1"),
        security_type: 2,
    };
    let mut address = [b' '; 256];
    address[..7].copy_from_slice(b"fd00::1");
    let bytes = at_offsets(
        2048,
        &[
            (0, &[8, 7, 6, 5, 4, 3, 2, 1, 1]),
            (1024, &[3, 2, 2, 4, 2, 1, 0xff, 0xff, 4, 3, 2, 0]),
            (1024 + 32, b"4420                            "),
            (1024 + 256, b"nqn.2026-11.io.pollux:serve"),
            (1024 + 512, &address),
            (1024 + 768, &[2]),
        ],
    );
    (header, entry, bytes)
}

#[test]
fn freezes_the_discovery_log() {
    let (header, entry, bytes) = discovery_log();
    assert_eq!([header.to_bytes(), entry.to_bytes()].concat(), bytes);
    assert_eq!(entry.transport(), Some(TransportType::Tcp));
    assert_eq!(entry.address_family(), Some(AddressFamily::Ipv6));
    assert_eq!(entry.subsystem_type(), Some(SubsystemType::Nvm));
    assert_eq!(
        (entry.service.text(), entry.address.text()),
        ("4420".to_owned(), "fd00::1".to_owned())
    );
    assert_eq!(parse_discovery_log(&bytes), Ok((header, vec![entry])));
}

#[test]
fn refuses_bad_discovery_logs() {
    let (_, _, mut bytes) = discovery_log();
    for length in [0, 1023, 1024, 2047] {
        let error = parse_discovery_log(&bytes[..length]).unwrap_err();
        assert!(matches!(error, DiscoveryLogError::Truncated { bytes, .. } if bytes == length));
    }
    bytes[8..16].fill(0xff);
    let error = parse_discovery_log(&bytes).unwrap_err();
    assert_eq!(
        error,
        DiscoveryLogError::Truncated {
            bytes: 2048,
            records: u64::MAX
        }
    );
    bytes[16] = 1;
    assert_eq!(
        parse_discovery_log(&bytes).unwrap_err(),
        DiscoveryLogError::Format { record_format: 1 }
    );
}

fn any_state() -> impl Strategy<Value = AnaState> {
    prop::sample::select(AnaState::ALL)
}

fn any_group() -> impl Strategy<Value = AnaGroup> {
    (
        any::<u32>(),
        any::<u64>(),
        any_state(),
        prop::collection::vec(any::<u32>(), 0..20),
    )
        .prop_map(|(group_id, change_count, state, namespaces)| AnaGroup {
            group_id,
            change_count,
            state,
            namespaces,
        })
}

proptest! {
    #[test]
    fn ana_logs_survive(change_count: u64, groups in prop::collection::vec(any_group(), 0..20)) {
        let log = AnaLog { change_count, groups };
        prop_assert_eq!(AnaLog::parse(&log.to_bytes()), Ok(log));
    }

    #[test]
    fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        if let Ok(log) = AnaLog::parse(&bytes) {
            prop_assert!(log.to_bytes().len() <= bytes.len());
        }
        if let Ok((header, entries)) = parse_discovery_log(&bytes) {
            prop_assert_eq!(header.records, entries.len() as u64);
        }
        let entry = DiscoveryEntry::from_bytes(&bytes);
        prop_assert_eq!(&DiscoveryEntry::from_bytes(&entry.to_bytes()), &entry);
        let text = format!("{entry:?}");
        prop_assert!(!text.is_empty());
        let health = HealthLog::from_bytes(&bytes);
        prop_assert_eq!(&HealthLog::from_bytes(&health.to_bytes()), &health);
    }
}
