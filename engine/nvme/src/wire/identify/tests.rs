//! Expected bytes are written by hand from the offsets of the specification.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::wire::nqn::{Nqn, NqnField};
use crate::wire::properties::Version;
use crate::wire::test_bytes::at_offsets;
use crate::wire::text::AsciiField;

#[test]
fn freezes_the_controller() {
    let name: Nqn = "nqn.2026-11.io.pollux:serve".parse().unwrap();
    let mut controller = IdentifyController {
        vendor_id: 0x0102,
        subsystem_vendor_id: 0x0304,
        serial_number: AsciiField::new("POLLUX0001"),
        model_number: AsciiField::new("Pollux"),
        firmware_revision: AsciiField::new("0.1.0"),
        arbitration_burst: 6,
        ieee_oui: [0xa, 0xb, 0xc],
        multipath: MultipathCapabilities::CONTROLLERS | MultipathCapabilities::ANA_REPORTING,
        max_data_transfer_size: 8,
        controller_id: 0x0506,
        version: Version::new(2, 0, 0),
        resume_latency_us: 0x0708_090a,
        entry_latency_us: 0x0b0c_0d0e,
        async_events: AsyncEventSupport::NAMESPACE_ATTRIBUTES | AsyncEventSupport::ANA_CHANGE,
        attributes: ControllerAttributes::HOST_IDENTIFIER_128
            | ControllerAttributes::TRAFFIC_BASED_KEEP_ALIVE,
        read_recovery_levels: 0x1112,
        controller_type_field: ControllerType::Io.to_wire(),
        fru_guid: [0x13; 16],
        retry_delays_100ms: [1, 2, 0x0304],
        subsystem_report: 0x14,
        vpd_write_cycles: 0x15,
        management_endpoints: 0x16,
        admin_commands: OptionalAdminCommands::FORMAT | OptionalAdminCommands::LOCKDOWN,
        abort_limit_minus_one: 3,
        async_event_limit_minus_one: 7,
        firmware_updates: 0x03,
        log_page_attributes: LogPageAttributes::EXTENDED | LogPageAttributes::SUPPORTED_PAGES,
        error_log_entries_minus_one: 63,
        power_states_minus_one: 0,
        admin_vendor_format: 0x17,
        autonomous_power_states: 0x18,
        warning_temperature_kelvin: 0x0157,
        critical_temperature_kelvin: 0x0166,
        total_capacity_bytes: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
        unallocated_capacity_bytes: 1 << 127,
        keep_alive_granularity_100ms: 10,
        sanitize_capabilities: 0x1920_2122,
        endurance_group_id_max: 0x2324,
        ana_transition_seconds: 10,
        ana_capabilities: AnaCapabilities::OPTIMIZED
            | AnaCapabilities::INACCESSIBLE
            | AnaCapabilities::FIXED_GROUPS,
        ana_group_id_max: 0x2526_2728,
        ana_groups: 0x292a_2b2c,
        domain_id: 0x2d2e,
        submission_entry_sizes: IdentifyController::SUBMISSION_ENTRY_SIZES,
        completion_entry_sizes: IdentifyController::COMPLETION_ENTRY_SIZES,
        max_commands: 128,
        namespaces_max: 1024,
        io_commands: IoCommandSupport::COMPARE | IoCommandSupport::VERIFY | IoCommandSupport::COPY,
        fused_operations: FusedOperations::COMPARE_AND_WRITE,
        format_attributes: 0x04,
        volatile_write_cache: VolatileWriteCache::PRESENT | VolatileWriteCache::FLUSH_ALL_SUPPORTED,
        atomic_write_blocks_minus_one: 0x3031,
        atomic_write_power_fail_blocks_minus_one: 0x3233,
        io_vendor_format: 0x34,
        write_protection: 0x35,
        atomic_compare_write_blocks_minus_one: 0x3637,
        copy_formats: 0x3839,
        sgl_support: SglSupport::SUPPORTED | SglSupport::OFFSET | SglSupport::TRANSPORT,
        allowed_namespaces_max: 0x3a3b_3c3d,
        subsystem_nqn: NqnField::from(&name),
        command_capsule_16_bytes: IdentifyController::capsule_units(8192),
        response_capsule_16_bytes: 1,
        in_capsule_data_offset_16_bytes: 0x3e3f,
        fabrics_attributes: 0x40,
        sgl_descriptors_max: 1,
        fabrics_commands: FabricsCommands::DISCONNECT,
        discovery_controller_type: 2,
        ..IdentifyController::default()
    };
    controller.power_states[31] = PowerState {
        max_power: 0x4142,
        flags: 2,
        entry_latency_us: 0x4344_4546,
        exit_latency_us: 0x4748_494a,
    };
    let expected = at_offsets(
        4096,
        &[
            (0, &[2, 1, 4, 3]),
            (4, b"POLLUX0001          "),
            (24, b"Pollux                                  "),
            (64, b"0.1.0   "),
            (72, &[6, 0xa, 0xb, 0xc]),
            (76, &[0x0a, 8, 6, 5]),
            (80, &[0, 0, 2, 0]),
            (84, &[0x0a, 9, 8, 7]),
            (88, &[0x0e, 0x0d, 0x0c, 0x0b]),
            (92, &[0, 0x09, 0, 0]),
            (96, &[0x41, 0, 0, 0]),
            (100, &[0x12, 0x11]),
            (111, &[1]),
            (112, &[0x13; 16]),
            (128, &[1, 0, 2, 0, 4, 3]),
            (253, &[0x14, 0x15, 0x16]),
            (256, &[0x02, 0x04]),
            (258, &[3, 7, 0x03, 0x24, 63, 0, 0x17, 0x18]),
            (266, &[0x57, 0x01, 0x66, 0x01]),
            (280, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf]),
            (311, &[0x80]),
            (320, &[10, 0]),
            (328, &[0x22, 0x21, 0x20, 0x19]),
            (340, &[0x24, 0x23]),
            (342, &[10, 0x45]),
            (344, &[0x28, 0x27, 0x26, 0x25]),
            (348, &[0x2c, 0x2b, 0x2a, 0x29]),
            (356, &[0x2e, 0x2d]),
            (512, &[0x66, 0x44, 128, 0]),
            (516, &[0, 4, 0, 0]),
            (520, &[0x81, 0x01]),
            (522, &[1, 0]),
            (524, &[0x04, 0x07]),
            (526, &[0x31, 0x30, 0x33, 0x32]),
            (530, &[0x34, 0x35, 0x37, 0x36]),
            (534, &[0x39, 0x38]),
            (536, &[0x01, 0x00, 0x30, 0x00]),
            (540, &[0x3d, 0x3c, 0x3b, 0x3a]),
            (768, b"nqn.2026-11.io.pollux:serve"),
            (1792, &[0x04, 0x02, 0, 0]),
            (1796, &[1, 0, 0, 0]),
            (1800, &[0x3f, 0x3e]),
            (1802, &[0x40, 1, 1, 0, 2]),
            (
                2048 + 31 * 32,
                &[0x42, 0x41, 0, 2, 0x46, 0x45, 0x44, 0x43, 0x4a, 0x49, 0x48, 0x47],
            ),
        ],
    );
    assert_eq!(controller.to_bytes().as_slice(), expected);
    assert_eq!(IdentifyController::from_bytes(&expected), controller);
    assert_eq!(controller.controller_type(), Some(ControllerType::Io));
    assert_eq!(controller.subsystem_nqn.name(), Ok(name));
    assert_eq!(controller.in_capsule_data_bytes(), 8192);
    assert_eq!(controller.transfer_bytes_max(4096), Some(1 << 20));
}

#[test]
fn transfer_limits_saturate() {
    let with = |max_data_transfer_size| IdentifyController {
        max_data_transfer_size,
        ..Default::default()
    };
    assert_eq!(with(0).transfer_bytes_max(4096), None);
    assert_eq!(with(1).transfer_bytes_max(4096), Some(8192));
    assert_eq!(with(63).transfer_bytes_max(4096), Some(u64::MAX));
    assert_eq!(with(255).transfer_bytes_max(4096), Some(u64::MAX));
    let capsule = |command_capsule_16_bytes| IdentifyController {
        command_capsule_16_bytes,
        ..Default::default()
    };
    assert_eq!(capsule(0).in_capsule_data_bytes(), 0);
    assert_eq!(capsule(4).in_capsule_data_bytes(), 0);
    assert_eq!(capsule(260).in_capsule_data_bytes(), 4096);
    assert_eq!(capsule(u32::MAX).in_capsule_data_bytes(), u32::MAX);
}

#[test]
fn freezes_the_nvm_controller() {
    let controller = NvmController {
        verify_size: 1,
        write_zeroes_size: 2,
        write_uncorrectable_size: 3,
        dataset_ranges_max: 4,
        dataset_range_blocks_max: 0x0506_0708,
        dataset_blocks_max: 0x090a_0b0c_0d0e_0f10,
        admin_commands: NvmAdminCommands::REPORTS_ALLOCATED,
    };
    let expected = at_offsets(
        4096,
        &[(
            0,
            &[
                1, 2, 3, 4, 8, 7, 6, 5, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 9, 0, 0, 1,
            ],
        )],
    );
    assert_eq!(controller.to_bytes().as_slice(), expected);
    assert_eq!(NvmController::from_bytes(&expected), controller);
}

#[test]
fn freezes_the_namespace() {
    let mut namespace = IdentifyNamespace {
        size_blocks: 0x0102_0304_0506_0708,
        capacity_blocks: 0x1112_1314_1516_1718,
        used_blocks: 0x2122_2324_2526_2728,
        features: NamespaceFeatures::THIN_PROVISIONING | NamespaceFeatures::OPTIMAL_PERFORMANCE,
        lba_formats_minus_one: 1,
        formatted_lba_size: 1,
        metadata_capabilities: 2,
        protection_capabilities: 3,
        protection_settings: 4,
        sharing: NamespaceSharing::SHARED,
        reservations: ReservationCapabilities::WRITE_EXCLUSIVE,
        format_progress: 0x80,
        deallocate_features: DeallocateFeatures::READS_ZEROS | DeallocateFeatures::WRITE_ZEROES_DEALLOCATES,
        atomic_write_blocks_minus_one: 0x3132,
        atomic_write_power_fail_blocks_minus_one: 0x3334,
        atomic_compare_write_blocks_minus_one: 0x3536,
        atomic_boundary_blocks_minus_one: 0x3738,
        atomic_boundary_offset_blocks: 0x393a,
        atomic_boundary_power_fail_blocks_minus_one: 0x3b3c,
        optimal_io_boundary_blocks: 0x3d3e,
        capacity_bytes: 0x4f,
        preferred_write_granularity_blocks_minus_one: 0x5152,
        preferred_write_alignment_blocks_minus_one: 0x5354,
        preferred_deallocate_granularity_blocks_minus_one: 0x5556,
        preferred_deallocate_alignment_blocks_minus_one: 0x5758,
        optimal_write_blocks_minus_one: 0x595a,
        copy_range_blocks_max: 0x5b5c,
        copy_blocks_max: 0x5d5e_5f60,
        copy_ranges_max_minus_one: 0x61,
        ana_group_id: 0x6263_6465,
        attributes: IdentifyNamespace::WRITE_PROTECTED,
        nvm_set_id: 0x6667,
        endurance_group_id: 0x6869,
        nguid: [0x6a; 16],
        eui64: [0x6b; 8],
        ..IdentifyNamespace::default()
    };
    namespace.lba_formats[0].block_size_log2 = 9;
    namespace.lba_formats[1] = LbaFormat {
        metadata_bytes: 0x7172,
        block_size_log2: 12,
        relative_performance: 3,
    };
    namespace.lba_formats[63].block_size_log2 = 13;
    let expected = at_offsets(
        4096,
        &[
            (0, &[8, 7, 6, 5, 4, 3, 2, 1]),
            (8, &[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]),
            (16, &[0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21]),
            (24, &[0x11, 1, 1, 2, 3, 4, 0x01, 0x02, 0x80, 0x09]),
            (
                34,
                &[
                    0x32, 0x31, 0x34, 0x33, 0x36, 0x35, 0x38, 0x37, 0x3a, 0x39, 0x3c, 0x3b, 0x3e, 0x3d,
                ],
            ),
            (48, &[0x4f]),
            (64, &[0x52, 0x51, 0x54, 0x53, 0x56, 0x55, 0x58, 0x57, 0x5a, 0x59]),
            (74, &[0x5c, 0x5b, 0x60, 0x5f, 0x5e, 0x5d, 0x61]),
            (92, &[0x65, 0x64, 0x63, 0x62]),
            (99, &[1, 0x67, 0x66, 0x69, 0x68]),
            (104, &[0x6a; 16]),
            (120, &[0x6b; 8]),
            (128, &[0, 0, 9, 0, 0x72, 0x71, 12, 3]),
            (128 + 63 * 4, &[0, 0, 13, 0]),
        ],
    );
    assert_eq!(namespace.to_bytes().as_slice(), expected);
    assert_eq!(IdentifyNamespace::from_bytes(&expected), namespace);
    assert_eq!(namespace.format().and_then(LbaFormat::block_bytes), Some(4096));
}

#[test]
fn finds_the_format_in_use() {
    let mut namespace = IdentifyNamespace {
        formatted_lba_size: 0b0111_0010,
        ..Default::default()
    };
    for (index, format) in namespace.lba_formats.iter_mut().enumerate() {
        format.metadata_bytes = u16::try_from(index).unwrap();
    }
    let mut index_of = |formats: u8| {
        namespace.lba_formats_minus_one = formats - 1;
        namespace.format().map(|format| format.metadata_bytes)
    };
    assert_eq!(index_of(2), None);
    assert_eq!(index_of(3), Some(2));
    assert_eq!(index_of(16), Some(2));
    assert_eq!(index_of(50), None);
    assert_eq!(index_of(51), Some(50));
    namespace.formatted_lba_size = 0b0010_0000;
    namespace.lba_formats_minus_one = 16;
    assert_eq!(namespace.format_index(), 16, "17 formats need the upper bits");
    namespace.lba_formats_minus_one = 15;
    assert_eq!(namespace.format_index(), 0);
}

#[test]
fn refuses_impossible_block_sizes() {
    let bytes = |block_size_log2| {
        LbaFormat {
            block_size_log2,
            ..Default::default()
        }
        .block_bytes()
    };
    assert_eq!(
        (bytes(0), bytes(8), bytes(32), bytes(255)),
        (None, None, None, None)
    );
    assert_eq!(
        (bytes(9), bytes(12), bytes(31)),
        (Some(512), Some(4096), Some(1 << 31))
    );
}

#[test]
fn freezes_the_namespace_siblings() {
    let mut nvm = NvmNamespace {
        storage_tag_mask: 0x0102,
        protection_capabilities: 3,
        ..Default::default()
    };
    nvm.extended_formats[1] = 0x0000_0180;
    let expected = at_offsets(4096, &[(0, &[2, 1]), (8, &[3]), (16, &[0x80, 1, 0, 0])]);
    assert_eq!(nvm.to_bytes().as_slice(), expected);

    let independent = IndependentNamespace {
        features: IndependentNamespaceFeatures::NO_VOLATILE_WRITE_CACHE
            | IndependentNamespaceFeatures::IDENTIFIERS_NOT_REUSED,
        sharing: NamespaceSharing::SHARED,
        reservations: ReservationCapabilities::PERSIST,
        format_progress: 0x80,
        ana_group_id: 0x0102_0304,
        attributes: 1,
        nvm_set_id: 0x0506,
        endurance_group_id: 0x0708,
        status: NamespaceStatus::READY,
    };
    let expected = at_offsets(
        4096,
        &[(0, &[0x28, 1, 1, 0x80, 4, 3, 2, 1, 1]), (10, &[6, 5, 8, 7, 1])],
    );
    assert_eq!(independent.to_bytes().as_slice(), expected);
    assert_eq!(IndependentNamespace::from_bytes(&expected), independent);
}

#[test]
fn freezes_the_lists() {
    let mut out = [0xff; IDENTIFY_BYTES];
    write_namespace_list([1, 3, 0x0102_0304], &mut out);
    assert_eq!(
        out.as_slice(),
        at_offsets(4096, &[(0, &[1, 0, 0, 0, 3, 0, 0, 0, 4, 3, 2, 1])])
    );

    let mut out = [0xff; IDENTIFY_BYTES];
    write_controller_list([1, 0x0203], &mut out);
    assert_eq!(out.as_slice(), at_offsets(4096, &[(0, &[2, 0, 1, 0, 3, 2])]));

    let descriptors = [
        NamespaceDescriptor::Eui64([1; 8]),
        NamespaceDescriptor::Nguid([2; 16]),
        NamespaceDescriptor::Uuid(Uuid::from_bytes([3; 16])),
        NamespaceDescriptor::CommandSet(0),
    ];
    let mut out = [0xff; IDENTIFY_BYTES];
    write_descriptors(&descriptors, &mut out);
    let expected = at_offsets(
        4096,
        &[
            (0, &[1, 8, 0, 0]),
            (4, &[1; 8]),
            (12, &[2, 16, 0, 0]),
            (16, &[2; 16]),
            (32, &[3, 16, 0, 0]),
            (36, &[3; 16]),
            (52, &[4, 1, 0, 0, 0]),
        ],
    );
    assert_eq!(out.as_slice(), expected);
    assert_eq!(parse_descriptors(&out).collect::<Vec<_>>(), descriptors);

    assert_eq!(
        CommandSets::nvm().to_bytes().as_slice(),
        at_offsets(4096, &[(0, &[1])])
    );
}

#[test]
fn lists_have_an_end() {
    let mut out = [0; IDENTIFY_BYTES];
    write_namespace_list(1..=2000, &mut out);
    assert!(parse_namespace_list(&out).eq(1..=1024));
    write_controller_list(1..=3000, &mut out);
    assert!(parse_controller_list(&out).eq(1..=2047));
    write_descriptors(&[NamespaceDescriptor::Nguid([1; 16]); 300], &mut out);
    assert_eq!(parse_descriptors(&out).count(), 204);
}

#[test]
fn passes_over_strange_descriptors() {
    let bytes = [
        9, 2, 0, 0, 0xaa, 0xaa, 1, 7, 0, 0, 1, 1, 1, 1, 1, 1, 1, 4, 1, 0, 0, 2, 4, 0, 0, 0, 4, 1, 0, 0, 0,
    ];
    assert_eq!(
        parse_descriptors(&bytes).collect::<Vec<_>>(),
        [NamespaceDescriptor::CommandSet(2)]
    );
    assert_eq!(parse_descriptors(&[4, 9, 0, 0, 1]).count(), 0);
}

proptest! {
    #[test]
    fn any_bytes_are_structures(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let namespace = IdentifyNamespace::from_bytes(&bytes);
        prop_assert_eq!(&IdentifyNamespace::from_bytes(&namespace.to_bytes()), &namespace);
        let _ = namespace.format().map(LbaFormat::block_bytes);
        let controller = IdentifyController::from_bytes(&bytes);
        prop_assert_eq!(&IdentifyController::from_bytes(&controller.to_bytes()), &controller);
        let _ = (controller.transfer_bytes_max(4096), controller.in_capsule_data_bytes());
        let text = format!("{controller:?}");
        prop_assert!(!text.is_empty());
        prop_assert!(parse_namespace_list(&bytes).count() <= 1250);
        prop_assert!(parse_controller_list(&bytes).count() <= 2500);
        prop_assert!(parse_descriptors(&bytes).count() <= 1250);
    }

    #[test]
    fn lists_survive(ids in prop::collection::btree_set(1..u32::MAX, 0..1024)) {
        let mut out = [0xff; IDENTIFY_BYTES];
        write_namespace_list(ids.iter().copied(), &mut out);
        prop_assert!(parse_namespace_list(&out).eq(ids.iter().copied()));
    }
}
