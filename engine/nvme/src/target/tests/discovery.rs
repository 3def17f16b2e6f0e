//! The discovery service.

use super::*;
use crate::target::{Hosts, PortConfig, ReferralConfig, TargetError};
use crate::wire::command::AdminOpcode;
use crate::wire::features::AsyncEvent;
use crate::wire::log::{
    AddressFamily, DiscoveryEntry, DiscoveryEntryFlags, DiscoveryHeader, SubsystemType, TransportType,
    parse_discovery_log,
};

const OTHER: &str = "nqn.2026-11.io.pollux:other";

fn log(fixture: &Fixture, admin: &TestQueue) -> (DiscoveryHeader, Vec<DiscoveryEntry>) {
    let bytes = fixture.log(admin, LogPageId::Discovery, 16 * 1024).unwrap();
    parse_discovery_log(&bytes).unwrap()
}

fn names(entries: &[DiscoveryEntry]) -> Vec<(u8, String, String)> {
    entries
        .iter()
        .map(|entry| {
            let name = entry.subsystem_nqn.name().unwrap().to_string();
            let address = format!("{}:{}", entry.address.text(), entry.service.text());
            (entry.subsystem_type_field, name, address)
        })
        .collect()
}

fn port(id: u16, address: &str) -> PortConfig {
    PortConfig {
        id,
        address: address.parse().unwrap(),
    }
}

#[test]
fn a_host_is_told_of_other_targets_of_a_subsystem() {
    let fixture = Fixture::new(1);
    fixture.target.add_port(port(7, "192.0.2.1:4420")).unwrap();
    let admin = fixture.discovery(HOST);
    let (before, _) = log(&fixture, &admin);
    let elsewhere = vec![
        "192.0.2.2:4420".parse().unwrap(),
        "[2001:db8::3]:4421".parse().unwrap(),
    ];
    fixture.subsystem.set_elsewhere(elsewhere.clone());
    let (header, entries) = log(&fixture, &admin);
    assert_ne!(header.generation, before.generation);
    let told: Vec<_> = names(&entries)
        .into_iter()
        .filter(|(kind, ..)| *kind == 2)
        .collect();
    assert_eq!(
        told,
        [
            (2, SUBSYSTEM.to_owned(), "192.0.2.1:4420".to_owned()),
            (2, SUBSYSTEM.to_owned(), "192.0.2.2:4420".to_owned()),
            (2, SUBSYSTEM.to_owned(), "2001:db8::3:4421".to_owned()),
        ]
    );
    let ids: Vec<u16> = entries.iter().skip(1).map(|entry| entry.port_id).collect();
    assert_eq!(ids, [7, 8, 9]);
    // Said twice, nothing has changed.
    fixture.subsystem.set_elsewhere(elsewhere);
    assert_eq!(log(&fixture, &admin).0.generation, header.generation);
    fixture.subsystem.set_elsewhere(Vec::new());
    assert_eq!(log(&fixture, &admin).1.len(), 2);
}

#[test]
fn a_host_is_told_where_everything_is() {
    let fixture = Fixture::new(1);
    fixture.target.add_port(port(1, "192.0.2.1:4420")).unwrap();
    fixture.target.add_port(port(2, "[2001:db8::1]:4421")).unwrap();
    let referral = ReferralConfig {
        port_id: 9,
        address: "192.0.2.9:8009".parse().unwrap(),
        nqn: None,
    };
    fixture.target.add_referral(&referral).unwrap();
    let admin = fixture.discovery(HOST);
    let (header, entries) = log(&fixture, &admin);
    assert_eq!((header.records, header.record_format), (5, 0));
    let discovery = Nqn::discovery().to_string();
    assert_eq!(
        names(&entries),
        [
            (3, discovery.clone(), "192.0.2.1:4420".to_owned()),
            (3, discovery.clone(), "2001:db8::1:4421".to_owned()),
            (2, SUBSYSTEM.to_owned(), "192.0.2.1:4420".to_owned()),
            (2, SUBSYSTEM.to_owned(), "2001:db8::1:4421".to_owned()),
            (1, discovery, "192.0.2.9:8009".to_owned()),
        ]
    );
    let families: Vec<_> = entries.iter().map(DiscoveryEntry::address_family).collect();
    let (v4, v6) = (Some(AddressFamily::Ipv4), Some(AddressFamily::Ipv6));
    assert_eq!(families, [v4, v6, v4, v6, v4]);
    assert_eq!(
        entries.iter().map(|entry| entry.port_id).collect::<Vec<_>>(),
        [1, 2, 1, 2, 9]
    );
    for entry in &entries {
        assert_eq!(entry.transport(), Some(TransportType::Tcp));
        assert_eq!(
            (entry.controller_id, entry.admin_queue_entries),
            (DYNAMIC_CONTROLLER, 256)
        );
        assert_eq!((entry.requirements & 0b11, entry.security_type), (0, 0));
    }
    let own = DiscoveryEntryFlags::PERSISTENT_CONNECTIONS | DiscoveryEntryFlags::DUPLICATE;
    assert_eq!(entries[0].flags, own);
    assert_eq!(entries[2].flags, DiscoveryEntryFlags::empty());
}

#[test]
fn an_unspecified_port_is_told_as_the_host_reached_it() {
    let fixture = Fixture::new(1);
    fixture.target.add_port(port(1, "0.0.0.0:4420")).unwrap();
    let admin = fixture.discovery(HOST);
    let (_, entries) = log(&fixture, &admin);
    let reached = fixture.world.address(fixture.machine).to_string();
    assert_eq!(entries[0].address.text(), reached);
    assert_eq!(entries[0].flags, DiscoveryEntryFlags::PERSISTENT_CONNECTIONS);
}

#[test]
fn a_host_is_told_of_what_it_may_use_only() {
    let fixture = Fixture::new(1);
    fixture.target.add_port(port(1, "192.0.2.1:4420")).unwrap();
    let private = SubsystemConfig {
        hosts: Hosts {
            allow_any: false,
            allowed: vec![HOST.to_owned()],
        },
        ..SubsystemConfig::new(OTHER)
    };
    fixture.target.add_subsystem(&private).unwrap();
    let known = fixture.discovery(HOST);
    let stranger = fixture.discovery("nqn.2026-11.io.pollux:stranger");
    let subsystems = |admin: &TestQueue| {
        let (_, entries) = log(&fixture, admin);
        let kind = |entry: &&DiscoveryEntry| entry.subsystem_type() == Some(SubsystemType::Nvm);
        entries.iter().filter(kind).count()
    };
    assert_eq!((subsystems(&known), subsystems(&stranger)), (2, 1));
    fixture
        .target
        .subsystem(OTHER)
        .unwrap()
        .add_host("nqn.2026-11.io.pollux:stranger")
        .unwrap();
    assert_eq!(subsystems(&stranger), 2);
}

#[test]
fn the_log_can_be_read_in_parts() {
    let fixture = Fixture::new(1);
    for id in 1..=3 {
        fixture
            .target
            .add_port(port(id, &format!("192.0.2.{id}:4420")))
            .unwrap();
    }
    let admin = fixture.discovery(HOST);
    let whole = fixture.log(&admin, LogPageId::Discovery, 7 * 1024).unwrap();
    let mut parts = Vec::new();
    for offset in (0..7 * 1024).step_by(512) {
        let get = GetLogPage::new(LogPageId::Discovery, offset, 512);
        parts.extend(fixture.read_admin(&admin, get.to_entry(1, 0), 512).unwrap());
    }
    assert_eq!(parts, whole);
}

#[test]
fn every_change_is_counted_and_told() {
    let fixture = Fixture::new(1);
    let admin = fixture.discovery(HOST);
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::AsyncEventConfiguration, 1 << 31),
        Ok(0)
    );
    let refused = fixture.set_feature(&admin, FeatureId::AsyncEventConfiguration, 1 << 8);
    assert_eq!(refused, Err(Status::INVALID_FIELD));
    let address = "192.0.2.9:8009".parse().unwrap();
    let referral = ReferralConfig {
        port_id: 9,
        address,
        nqn: None,
    };
    type Change = Box<dyn Fn(&Target)>;
    let changes: [(&str, Change); 8] = [
        (
            "add port",
            Box::new(|target| target.add_port(port(1, "192.0.2.1:4420")).unwrap()),
        ),
        (
            "add subsystem",
            Box::new(|target| drop(target.add_subsystem(&SubsystemConfig::new(OTHER)).unwrap())),
        ),
        (
            "hosts",
            Box::new(|target| target.subsystem(OTHER).unwrap().add_host(HOST).unwrap()),
        ),
        (
            "host",
            Box::new(|target| target.subsystem(OTHER).unwrap().remove_host(HOST).unwrap()),
        ),
        (
            "remove subsystem",
            Box::new(|target| target.remove_subsystem(OTHER).unwrap()),
        ),
        (
            "add referral",
            Box::new(move |target| target.add_referral(&referral).unwrap()),
        ),
        (
            "remove referral",
            Box::new(move |target| target.remove_referral(address).unwrap()),
        ),
        ("remove port", Box::new(|target| target.remove_port(1).unwrap())),
    ];
    for (what, change) in changes {
        let (before, _) = log(&fixture, &admin);
        let entry = SubmissionEntry::new(AdminOpcode::AsynchronousEventRequest.to_wire(), 9, 0);
        let waiting = fixture.start(&admin, plain(entry));
        fixture.run_for(Duration::from_millis(1));
        assert!(!waiting.is_ended(), "{what}");
        change(&fixture.target);
        let outcome = fixture.world.finish(&waiting);
        let expected = AsyncEvent::DISCOVERY_LOG_CHANGED.to_dword();
        assert_eq!(
            (outcome.entry.status(), outcome.entry.result_low()),
            (Status::SUCCESS, expected),
            "{what}"
        );
        let (after, _) = log(&fixture, &admin);
        assert!(after.generation > before.generation, "{what}");
    }
}

#[test]
fn ports_and_referrals_are_bounded_and_named() {
    let fixture = Fixture::new(1);
    fixture.target.add_port(port(1, "192.0.2.1:4420")).unwrap();
    assert!(matches!(
        fixture.target.add_port(port(1, "192.0.2.2:4420")),
        Err(TargetError::Directory(_))
    ));
    assert!(fixture.target.remove_port(2).is_err());
    assert!(
        fixture
            .target
            .remove_referral("192.0.2.9:8009".parse().unwrap())
            .is_err()
    );
    for id in 2..=256 {
        fixture.target.add_port(port(id, "192.0.2.1:4420")).unwrap();
    }
    assert!(fixture.target.add_port(port(257, "192.0.2.1:4420")).is_err());
    let nonsense = ReferralConfig {
        port_id: 1,
        address: "192.0.2.9:8009".parse().unwrap(),
        nqn: Some("nonsense".to_owned()),
    };
    assert!(fixture.target.add_referral(&nonsense).is_err());
}

#[test]
fn an_io_controller_has_no_discovery_log() {
    let fixture = Fixture::new(1);
    let admin = fixture.enabled();
    assert_eq!(
        fixture.log(&admin, LogPageId::Discovery, 1024),
        Err(Status::INVALID_LOG_PAGE)
    );
}
