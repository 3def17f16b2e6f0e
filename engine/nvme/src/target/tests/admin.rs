//! Features, abort, keep alive, and what is refused on an admin queue.

use super::*;
use crate::wire::command::{Abort, AdminOpcode, FabricsCommandType, Fuse};
use crate::wire::features::{FeatureCapabilities, FeatureSelect, HOST_IDENTIFIER_EXTENDED, HostBehavior};

fn select(feature: FeatureId, select: FeatureSelect) -> GetFeatures {
    GetFeatures {
        select_field: select.to_wire(),
        ..GetFeatures::current(feature, 0)
    }
}

#[test]
fn unknown_commands_are_invalid_opcodes() {
    let fixture = Fixture::new(1);
    let both = [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f];
    let of_namespaces = [&both[..], &[0x86]].concat();
    for (admin, known) in [
        (fixture.enabled(), &of_namespaces[..]),
        (fixture.discovery(HOST), &both[..]),
    ] {
        for opcode in (0..=u8::MAX).filter(|opcode| !known.contains(opcode)) {
            let entry = SubmissionEntry::new(opcode, 1, 0);
            assert_eq!(
                fixture.status(&admin, plain(entry)),
                Status::INVALID_OPCODE,
                "{opcode:#x}"
            );
            let early = admin.queue.refuse_early(&entry, 512).unwrap();
            assert_eq!(early.status(), Status::INVALID_OPCODE.without_retry());
        }
    }
}

#[test]
fn a_disabled_controller_takes_fabrics_commands_only() {
    let fixture = Fixture::new(1);
    let admin = fixture.admin();
    for opcode in [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18] {
        let entry = SubmissionEntry::new(opcode, 1, 0);
        assert_eq!(
            fixture.status(&admin, plain(entry)),
            Status::COMMAND_SEQUENCE_ERROR
        );
    }
    assert_eq!(fixture.csts(&admin), 0);
}

#[test]
fn fabrics_commands_out_of_place_are_refused() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let fabrics = |kind| plain(SubmissionEntry::fabrics(kind, 1));
    assert_eq!(
        fixture.status(&admin, fabrics(FabricsCommandType::Connect)),
        Status::COMMAND_SEQUENCE_ERROR
    );
    assert_eq!(
        fixture.status(&admin, fabrics(FabricsCommandType::Disconnect)),
        Status::INVALID_QUEUE_TYPE
    );
    for kind in [
        FabricsCommandType::AuthenticationSend,
        FabricsCommandType::AuthenticationReceive,
    ] {
        assert_eq!(fixture.status(&admin, fabrics(kind)), Status::INVALID_OPCODE);
    }
    let unknown = SubmissionEntry::new(0x7f, 1, 0x33);
    assert_eq!(fixture.status(&admin, plain(unknown)), Status::INVALID_OPCODE);
    let mut sized = PropertyGet {
        size: PropertySize::Four,
        offset: 0,
    }
    .to_entry(1);
    sized.cdw10 = 2.into();
    assert_eq!(fixture.status(&admin, plain(sized)), Status::INVALID_FIELD);
    let fused = SubmissionEntry::new(AdminOpcode::KeepAlive.to_wire(), 1, 0).with_fuse(Fuse::First);
    assert_eq!(fixture.status(&admin, plain(fused)), Status::INVALID_FIELD);
}

#[test]
fn features_have_their_defaults() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    let expected = [
        (FeatureId::Arbitration, 7, 0b100),
        (FeatureId::PowerManagement, 0, 0),
        (FeatureId::TemperatureThreshold, 0xffff, 0b100),
        (FeatureId::ErrorRecovery, 0, 0b010),
        (FeatureId::VolatileWriteCache, 1, 0b100),
        (FeatureId::NumberOfQueues, 0x003f_003f, 0b100),
        (FeatureId::WriteAtomicity, 0, 0b100),
        (FeatureId::AsyncEventConfiguration, 0, 0b100),
        (FeatureId::KeepAliveTimer, 120_000, 0b100),
    ];
    for (feature, default, capabilities) in expected {
        for which in [
            FeatureSelect::Current,
            FeatureSelect::Default,
            FeatureSelect::Saved,
        ] {
            assert_eq!(
                fixture.feature(&admin, select(feature, which)),
                Ok(default),
                "{feature:?} {which:?}"
            );
        }
        let told = fixture.feature(&admin, select(feature, FeatureSelect::SupportedCapabilities));
        assert_eq!(told, Ok(capabilities), "{feature:?}");
        assert!(capabilities & FeatureCapabilities::SAVEABLE.bits() == 0);
    }
    let reserved = GetFeatures {
        select_field: 4,
        ..GetFeatures::current(FeatureId::Arbitration, 0)
    };
    assert_eq!(fixture.feature(&admin, reserved), Err(Status::INVALID_FIELD));
}

#[test]
fn features_that_are_not_there_are_invalid_fields() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let known = [
        0x01, 0x02, 0x04, 0x05, 0x07, 0x0a, 0x0b, 0x0f, 0x16, 0x81, 0x82, 0x83,
    ];
    for feature_field in (0..=u8::MAX).filter(|feature| !known.contains(feature)) {
        let get = GetFeatures {
            feature_field,
            ..GetFeatures::current(FeatureId::Arbitration, 0)
        };
        assert_eq!(
            fixture.feature(&admin, get),
            Err(Status::INVALID_FIELD),
            "{feature_field:#x}"
        );
        let set = SetFeatures {
            feature_field,
            save: false,
            value: 0,
        };
        let entry = set.to_entry(1, 0, SglDescriptor::transport(0));
        assert_eq!(
            fixture.status(&admin, plain(entry)),
            Status::INVALID_FIELD,
            "{feature_field:#x}"
        );
    }
}

#[test]
fn features_are_set_and_forgotten_by_a_reset() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    for (feature, value) in [
        (FeatureId::Arbitration, 0x0102_0303),
        (FeatureId::TemperatureThreshold, 0x015e),
        (FeatureId::WriteAtomicity, 1),
        (FeatureId::VolatileWriteCache, 0),
        (FeatureId::AsyncEventConfiguration, 0x011f),
    ] {
        let default = fixture.feature(&admin, GetFeatures::current(feature, 0));
        assert_eq!(fixture.set_feature(&admin, feature, value), Ok(0), "{feature:?}");
        assert_eq!(
            fixture.feature(&admin, GetFeatures::current(feature, 0)),
            Ok(value),
            "{feature:?}"
        );
        assert_eq!(
            fixture.feature(&admin, select(feature, FeatureSelect::Default)),
            default
        );
        fixture.set_cc(&admin, 0);
        fixture.enable(&admin);
        assert_eq!(
            fixture.feature(&admin, GetFeatures::current(feature, 0)),
            default,
            "{feature:?}"
        );
    }
}

#[test]
fn bad_values_are_refused() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    for (feature, value, status) in [
        (FeatureId::PowerManagement, 1, Status::INVALID_FIELD),
        (FeatureId::ErrorRecovery, 1 << 16, Status::FEATURE_NOT_CHANGEABLE),
        (FeatureId::TemperatureThreshold, 1 << 16, Status::INVALID_FIELD),
        (FeatureId::TemperatureThreshold, 2 << 20, Status::INVALID_FIELD),
        (FeatureId::NumberOfQueues, 0x0000_ffff, Status::INVALID_FIELD),
        (FeatureId::NumberOfQueues, 0xffff_0000, Status::INVALID_FIELD),
        (FeatureId::AsyncEventConfiguration, 1 << 11, Status::INVALID_FIELD),
        (FeatureId::AsyncEventConfiguration, 1 << 5, Status::INVALID_FIELD),
        (FeatureId::KeepAliveTimer, 3_600_001, Status::KEEP_ALIVE_INVALID),
        (FeatureId::HostIdentifier, 0, Status::COMMAND_SEQUENCE_ERROR),
        (FeatureId::HostBehavior, 0, Status::DATA_SGL_LENGTH_INVALID),
        (FeatureId::VolatileWriteCache, 0, Status::INVALID_FIELD),
    ] {
        assert_eq!(
            fixture.set_feature(&admin, feature, value),
            Err(status),
            "{feature:?} {value:#x}"
        );
    }
    assert_eq!(fixture.set_feature(&admin, FeatureId::PowerManagement, 0), Ok(0));
    let saved = SetFeatures {
        save: true,
        ..SetFeatures::new(FeatureId::Arbitration, 7)
    };
    let entry = saved.to_entry(1, 0, SglDescriptor::transport(0));
    assert_eq!(fixture.status(&admin, plain(entry)), Status::FEATURE_NOT_SAVEABLE);
    let named = |id| SetFeatures::new(FeatureId::Arbitration, 7).to_entry(1, id, SglDescriptor::transport(0));
    assert_eq!(
        fixture.status(&admin, plain(named(1))),
        Status::FEATURE_NOT_NAMESPACE_SPECIFIC
    );
    assert_eq!(
        fixture.status(&admin, plain(named(5000))),
        Status::INVALID_NAMESPACE_OR_FORMAT
    );
    assert_eq!(fixture.status(&admin, plain(named(u32::MAX))), Status::SUCCESS);
}

#[test]
fn queues_are_granted_before_they_are_connected() {
    let (fixture, _drive) = Fixture::with_drive();
    let admin = fixture.enabled();
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::NumberOfQueues, 0x00ff_00ff),
        Ok(0x003f_003f)
    );
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::NumberOfQueues, 0x0007_0001),
        Ok(0x0001_0001)
    );
    let data = data_for(SUBSYSTEM, HOST, admin.controller_id());
    assert_eq!(
        fixture
            .admit(&connect(3), &data)
            .map(drop)
            .unwrap_err()
            .result_low(),
        42
    );
    let _io = fixture.io_queue(&admin, 2);
    let late = fixture.set_feature(&admin, FeatureId::NumberOfQueues, 0);
    assert_eq!(late, Err(Status::COMMAND_SEQUENCE_ERROR));
}

#[test]
fn a_disabled_write_cache_is_written_through() {
    let (fixture, drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::VolatileWriteCache, 0),
        Ok(0)
    );
    assert_eq!(fixture.status(&io, super::io::write(0, 1, 1)), Status::SUCCESS);
    assert_eq!((drive.counters().fua_writes, drive.cached_writes()), (1, 0));
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::VolatileWriteCache, 1),
        Ok(0)
    );
    assert_eq!(fixture.status(&io, super::io::write(0, 1, 1)), Status::SUCCESS);
    assert_eq!((drive.counters().fua_writes, drive.cached_writes()), (1, 1));
}

#[test]
fn the_host_identifier_is_that_of_connect() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let get = GetFeatures::current(FeatureId::HostIdentifier, HOST_IDENTIFIER_EXTENDED);
    let bytes = fixture.read_admin(&admin, get.to_entry(1, 0, 16), 16);
    assert_eq!(bytes, Ok(Uuid::from_u128(1).into_bytes().to_vec()));
    let short = GetFeatures::current(FeatureId::HostIdentifier, 0);
    assert_eq!(fixture.feature(&admin, short), Err(Status::INVALID_FIELD));
}

#[test]
fn host_behavior_is_kept() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    let set = |behavior: HostBehavior| {
        let entry =
            SetFeatures::new(FeatureId::HostBehavior, 0).to_entry(1, 0, SglDescriptor::transport(512));
        fixture.status(&admin, writing(entry, &behavior.to_bytes()))
    };
    let wanted = HostBehavior {
        advanced_command_retry: 1,
        ..HostBehavior::default()
    };
    assert_eq!(set(wanted.clone()), Status::SUCCESS);
    let get = GetFeatures::current(FeatureId::HostBehavior, 0);
    let bytes = fixture.read_admin(&admin, get.to_entry(1, 0, 512), 512).unwrap();
    assert_eq!(HostBehavior::from_bytes(&bytes), wanted);
    assert_eq!(
        set(HostBehavior {
            advanced_command_retry: 2,
            ..wanted
        }),
        Status::INVALID_FIELD
    );
}

#[test]
fn abort_says_that_it_found_nothing() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, _io) = fixture.both();
    for queue_id in [0, 1, 9] {
        let entry = Abort {
            queue_id,
            command_id: 77,
        }
        .to_entry(1);
        let outcome = fixture.run(&admin, plain(entry));
        assert_eq!(
            (outcome.entry.status(), outcome.entry.result_low()),
            (Status::SUCCESS, 1)
        );
    }
}

#[test]
fn a_silent_host_loses_its_controller() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    fixture.run_for(Duration::from_secs(119));
    assert_eq!(admin.ended(), None);
    fixture.run_for(Duration::from_secs(2));
    assert_eq!(admin.ended(), Some("the keep alive timer expired"));
    assert_eq!(io.ended(), Some("the keep alive timer expired"));
}

#[test]
fn keep_alive_starts_the_timer_anew() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    for _ in 0..5 {
        fixture.run_for(Duration::from_secs(100));
        assert_eq!(admin.ended(), None);
        let entry = SubmissionEntry::new(AdminOpcode::KeepAlive.to_wire(), 1, 0);
        assert_eq!(fixture.status(&admin, plain(entry)), Status::SUCCESS);
    }
    fixture.run_for(Duration::from_secs(121));
    assert!(admin.ended().is_some());
}

#[test]
fn traffic_on_any_queue_keeps_a_controller_alive() {
    let (fixture, _drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    for _ in 0..5 {
        fixture.run_for(Duration::from_secs(100));
        assert_eq!(admin.ended(), None);
        io.queue.touch();
    }
    fixture.run_for(Duration::from_secs(241));
    assert!(admin.ended().is_some());
}

#[test]
fn the_timer_can_be_changed_and_rounds_up() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    assert_eq!(fixture.set_feature(&admin, FeatureId::KeepAliveTimer, 0), Ok(0));
    fixture.run_for(Duration::from_secs(1000));
    assert_eq!(admin.ended(), None);
    assert_eq!(fixture.set_feature(&admin, FeatureId::KeepAliveTimer, 901), Ok(0));
    assert_eq!(
        fixture.feature(&admin, GetFeatures::current(FeatureId::KeepAliveTimer, 0)),
        Ok(1000)
    );
    fixture.run_for(Duration::from_millis(990));
    assert_eq!(admin.ended(), None);
    fixture.run_for(Duration::from_millis(20));
    assert!(admin.ended().is_some());
}

#[test]
fn an_idle_discovery_controller_ends() {
    let fixture = Fixture::new(1);
    let data = data_for(Nqn::discovery().as_str(), HOST, DYNAMIC_CONTROLLER);
    let admin = fixture.connect(
        &Connect {
            keep_alive_ms: 0,
            ..connect(0)
        },
        &data,
    );
    fixture.run_for(Duration::from_secs(119));
    admin.queue.touch();
    fixture.run_for(Duration::from_secs(119));
    assert_eq!(admin.ended(), None);
    fixture.run_for(Duration::from_secs(122));
    assert!(admin.ended().is_some());

    // A host with an I/O controller may go without a timer.
    let admin = fixture.connect(
        &Connect {
            keep_alive_ms: 0,
            ..connect(0)
        },
        &data_for(SUBSYSTEM, HOST, DYNAMIC_CONTROLLER),
    );
    fixture.run_for(Duration::from_secs(100_000));
    assert_eq!(admin.ended(), None);
}
