//! Identify: what hosts ask, and what they are refused.

use super::*;
use crate::wire::command::Identify;
use crate::wire::features::AsyncEventConfiguration;
use crate::wire::identify::{
    CommandSets, ControllerType, FusedOperations, IdentifyController, IdentifyNamespace,
    IndependentNamespace, IndependentNamespaceFeatures, IoCommandSupport, NamespaceDescriptor,
    NamespaceFeatures, SglSupport, VolatileWriteCache, parse_controller_list, parse_descriptors,
    parse_namespace_list,
};

fn controller(fixture: &Fixture, admin: &TestQueue) -> IdentifyController {
    IdentifyController::from_bytes(&fixture.identify(admin, IdentifyStructure::Controller, 0).unwrap())
}

fn namespace(fixture: &Fixture, admin: &TestQueue, id: u32) -> IdentifyNamespace {
    IdentifyNamespace::from_bytes(&fixture.identify(admin, IdentifyStructure::Namespace, id).unwrap())
}

#[test]
fn a_controller_says_what_it_can_do() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    let identify = controller(&fixture, &admin);
    assert_eq!(identify.controller_id, 1);
    assert_eq!(identify.model_number.text(), "Pollux");
    assert_eq!(identify.serial_number.text().len(), 20);
    assert_eq!(identify.firmware_revision.text(), env!("CARGO_PKG_VERSION"));
    assert_eq!(identify.subsystem_nqn.name().unwrap().as_str(), SUBSYSTEM);
    assert_eq!(identify.transfer_bytes_max(4096), Some(1 << 20));
    assert_eq!(identify.in_capsule_data_bytes(), 8192);
    assert_eq!(identify.controller_type(), Some(ControllerType::Io));
    assert_eq!(identify.version.to_bits(), 0x0002_0000);
    assert_eq!(
        (identify.namespaces_max, identify.allowed_namespaces_max),
        (1024, 1024)
    );
    assert_eq!(identify.max_commands, 1024);
    assert_eq!(identify.keep_alive_granularity_100ms, 1);
    assert!(
        identify
            .volatile_write_cache
            .contains(VolatileWriteCache::PRESENT)
    );
    assert!(
        identify
            .fused_operations
            .contains(FusedOperations::COMPARE_AND_WRITE)
    );
    assert!(
        identify
            .sgl_support
            .contains(SglSupport::OFFSET | SglSupport::TRANSPORT | SglSupport::SUPPORTED)
    );
    assert!(identify.io_commands.contains(IoCommandSupport::RESERVATIONS));
    assert!(
        !identify
            .io_commands
            .intersects(IoCommandSupport::WRITE_UNCORRECTABLE | IoCommandSupport::COPY)
    );
    assert_eq!(
        identify.async_events,
        AsyncEventConfiguration::NAMESPACE_ATTRIBUTES
    );
    assert_eq!(identify.total_capacity_bytes, 4 << 20);
    assert_eq!(identify.response_capsule_16_bytes, 1);
    assert_eq!(
        (
            identify.fabrics_attributes,
            identify.in_capsule_data_offset_16_bytes
        ),
        (0, 0)
    );
}

#[test]
fn the_write_cache_bit_tells_the_truth() {
    let fixture = Fixture::new(1);
    let durable = Geometry::new(1 << 20, 4096).unwrap();
    let device = fixture.drive("durable", durable);
    fixture
        .subsystem
        .add_namespace(device, &NamespaceConfig::default())
        .unwrap();
    let admin = fixture.enabled();
    assert!(
        !controller(&fixture, &admin)
            .volatile_write_cache
            .contains(VolatileWriteCache::PRESENT)
    );
    let independent = |id| {
        let bytes = fixture
            .identify(&admin, IdentifyStructure::IndependentNamespace, id)
            .unwrap();
        IndependentNamespace::from_bytes(&bytes).features
    };
    assert!(independent(1).contains(IndependentNamespaceFeatures::NO_VOLATILE_WRITE_CACHE));

    // A cache that comes later is one that this host never hears of: its writes go through it.
    let cached = fixture.add_drive("cached", Fixture::instant(BLOCK as u32));
    let io = fixture.io_queue(&admin, 1);
    let mut entry = super::io::block_entry(crate::wire::command::IoOpcode::Write, 0, 1);
    entry.namespace_id = 2.into();
    assert_eq!(fixture.status(&io, writing(entry, &[1; BLOCK])), Status::SUCCESS);
    assert_eq!((cached.counters().fua_writes, cached.cached_writes()), (1, 0));
    assert!(independent(2).contains(IndependentNamespaceFeatures::NO_VOLATILE_WRITE_CACHE));

    let second = fixture.enabled();
    assert!(
        controller(&fixture, &second)
            .volatile_write_cache
            .contains(VolatileWriteCache::PRESENT)
    );
}

#[test]
fn a_namespace_says_what_it_is() {
    let fixture = Fixture::new(1);
    let geometry = Geometry {
        optimal_blocks: 16,
        ..Geometry::new(1 << 20, 512).unwrap()
    };
    let device = fixture.drive("disk0", geometry);
    fixture
        .subsystem
        .add_namespace(device, &NamespaceConfig::default())
        .unwrap();
    let admin = fixture.enabled();
    let identify = namespace(&fixture, &admin, 1);
    assert_eq!(
        (
            identify.size_blocks,
            identify.capacity_blocks,
            identify.used_blocks
        ),
        (2048, 2048, 2048)
    );
    assert_eq!(
        identify.format().and_then(|format| format.block_bytes()),
        Some(512)
    );
    assert_eq!(identify.preferred_write_granularity_blocks_minus_one, 15);
    assert!(identify.features.contains(NamespaceFeatures::OPTIMAL_PERFORMANCE));
    assert_eq!(identify.deallocate_features.bits(), 0b1001);
    assert_eq!(identify.attributes, 0);
    assert_ne!(identify.nguid, [0; 16]);

    let descriptors = fixture
        .identify(&admin, IdentifyStructure::NamespaceDescriptors, 1)
        .unwrap();
    let descriptors: Vec<_> = parse_descriptors(&descriptors).collect();
    assert_eq!(
        descriptors,
        [
            NamespaceDescriptor::Eui64(identify.eui64),
            NamespaceDescriptor::Nguid(identify.nguid),
            NamespaceDescriptor::Uuid(Uuid::from_bytes(identify.nguid)),
            NamespaceDescriptor::CommandSet(0),
        ]
    );
}

#[test]
fn a_read_only_namespace_says_so() {
    let fixture = Fixture::new(1);
    let geometry = Geometry {
        read_only: true,
        ..Geometry::new(1 << 20, 4096).unwrap()
    };
    let device = fixture.drive("disk0", geometry);
    fixture
        .subsystem
        .add_namespace(device, &NamespaceConfig::default())
        .unwrap();
    let (admin, io) = fixture.both();
    assert_eq!(namespace(&fixture, &admin, 1).attributes, 1);
    assert_eq!(
        fixture.status(&io, super::io::write(0, 1, 1)),
        Status::NAMESPACE_WRITE_PROTECTED
    );
    assert_eq!(fixture.status(&io, super::io::read(0, 1)), Status::SUCCESS);
}

#[test]
fn lists_ascend_from_what_was_asked() {
    let fixture = Fixture::new(1);
    for id in [2, 5, 9] {
        let device = fixture.drive(&format!("disk{id}"), Geometry::new(1 << 20, 4096).unwrap());
        let config = NamespaceConfig {
            id: Some(id),
            ..NamespaceConfig::default()
        };
        assert_eq!(fixture.subsystem.add_namespace(device, &config), Ok(id));
    }
    let admin = fixture.enabled();
    let _second = fixture.enabled();
    for structure in [
        IdentifyStructure::ActiveNamespaces,
        IdentifyStructure::AllocatedNamespaces,
        IdentifyStructure::CommandSetActiveNamespaces,
        IdentifyStructure::CommandSetAllocatedNamespaces,
    ] {
        for (after, expected) in [
            (0, vec![2, 5, 9]),
            (2, vec![5, 9]),
            (9, vec![]),
            (0xffff_fffd, vec![]),
        ] {
            let bytes = fixture.identify(&admin, structure, after).unwrap();
            assert_eq!(parse_namespace_list(&bytes).collect::<Vec<_>>(), expected);
        }
        for after in [0xffff_fffe, 0xffff_ffff] {
            let refused = fixture.identify(&admin, structure, after);
            assert_eq!(refused, Err(Status::INVALID_NAMESPACE_OR_FORMAT));
        }
    }
    for (from, expected) in [(0, vec![1, 2]), (2, vec![2]), (3, vec![])] {
        let identify = Identify {
            controller_id: from,
            ..Identify::new(IdentifyStructure::Controllers)
        };
        let bytes = fixture.identify_entry(&admin, identify.to_entry(1, 0)).unwrap();
        assert_eq!(parse_controller_list(&bytes).collect::<Vec<_>>(), expected);
        let identify = Identify {
            controller_id: from,
            ..Identify::new(IdentifyStructure::NamespaceControllers)
        };
        let bytes = fixture.identify_entry(&admin, identify.to_entry(1, 5)).unwrap();
        assert_eq!(parse_controller_list(&bytes).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn inactive_and_invalid_namespaces_are_told_apart() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    for structure in [
        IdentifyStructure::Namespace,
        IdentifyStructure::AllocatedNamespace,
        IdentifyStructure::CommandSetNamespace,
        IdentifyStructure::CommandSetAllocatedNamespace,
        IdentifyStructure::IndependentNamespace,
    ] {
        assert_eq!(
            fixture.identify(&admin, structure, 7),
            Ok(vec![0; IDENTIFY_BYTES]),
            "{structure:?}"
        );
        for id in [0, 1025, u32::MAX] {
            let refused = fixture.identify(&admin, structure, id);
            assert_eq!(
                refused,
                Err(Status::INVALID_NAMESPACE_OR_FORMAT),
                "{structure:?} {id}"
            );
        }
    }
    for structure in [
        IdentifyStructure::NamespaceDescriptors,
        IdentifyStructure::NamespaceControllers,
    ] {
        assert_eq!(fixture.identify(&admin, structure, 7), Err(Status::INVALID_FIELD));
        assert_eq!(
            fixture.identify(&admin, structure, 0),
            Err(Status::INVALID_NAMESPACE_OR_FORMAT)
        );
    }
}

#[test]
fn what_is_not_there_is_an_invalid_field() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    let known = [
        0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x10, 0x11, 0x12, 0x13, 0x1a, 0x1b, 0x1c,
    ];
    for structure_field in 0..=u8::MAX {
        let identify = Identify {
            structure_field,
            controller_id: 1,
            ..Identify::default()
        };
        let result = fixture.identify_entry(&admin, identify.to_entry(1, 1));
        if known.contains(&structure_field) {
            assert!(result.is_ok(), "{structure_field:#x}");
        } else {
            assert_eq!(result, Err(Status::INVALID_FIELD), "{structure_field:#x}");
        }
    }
}

#[test]
fn only_the_nvm_command_set_is_there() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    for structure in [
        IdentifyStructure::CommandSetNamespace,
        IdentifyStructure::CommandSetController,
        IdentifyStructure::CommandSetActiveNamespaces,
    ] {
        for command_set_field in [1, 2, 255] {
            let identify = Identify {
                command_set_field,
                ..Identify::new(structure)
            };
            let result = fixture.identify_entry(&admin, identify.to_entry(1, 1));
            assert_eq!(result, Err(Status::INVALID_FIELD));
        }
    }
    for controller_id in [0xffff, 1] {
        let identify = Identify {
            controller_id,
            ..Identify::new(IdentifyStructure::CommandSets)
        };
        let bytes = fixture.identify_entry(&admin, identify.to_entry(1, 0)).unwrap();
        assert_eq!(CommandSets::from_bytes(&bytes), CommandSets::nvm());
    }
    let identify = Identify {
        controller_id: 9,
        ..Identify::new(IdentifyStructure::CommandSets)
    };
    assert_eq!(
        fixture.identify_entry(&admin, identify.to_entry(1, 0)),
        Err(Status::INVALID_FIELD)
    );
}

#[test]
fn too_little_room_is_an_invalid_length() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let entry = Identify::new(IdentifyStructure::Controller).to_entry(1, 0);
    assert_eq!(
        fixture.status(&admin, reading(entry, 4095)),
        Status::DATA_SGL_LENGTH_INVALID
    );
}

#[test]
fn a_discovery_controller_describes_itself_only() {
    let fixture = Fixture::new(1);
    let admin = fixture.discovery(HOST);
    let identify = controller(&fixture, &admin);
    assert_eq!(identify.controller_type(), Some(ControllerType::Discovery));
    assert_eq!(identify.subsystem_nqn.name(), Ok(Nqn::discovery()));
    assert_eq!(
        (identify.namespaces_max, identify.discovery_controller_type),
        (0, 1)
    );
    assert_eq!(
        identify.async_events,
        AsyncEventConfiguration::DISCOVERY_LOG_CHANGE
    );
    for structure in [IdentifyStructure::Namespace, IdentifyStructure::ActiveNamespaces] {
        assert_eq!(fixture.identify(&admin, structure, 1), Err(Status::INVALID_FIELD));
    }
    let io = data_for(Nqn::discovery().as_str(), HOST, admin.controller_id());
    let refused = fixture.admit(&connect(1), &io).map(drop).unwrap_err();
    assert_eq!(
        refused.status().without_flags(),
        Status::CONNECT_INVALID_PARAMETERS
    );
    assert_eq!(refused.result_low(), 42);
}
