//! The discovery log page (NVMe Base 2.0, 5.16.1.23) as one host is told it.

use std::net::{IpAddr, SocketAddr};

use super::Directory;
use crate::target::config::TargetConfig;
use crate::wire::command::DYNAMIC_CONTROLLER;
use crate::wire::log::{
    AddressFamily, DiscoveryEntry, DiscoveryEntryFlags, DiscoveryHeader, SubsystemType, TransportType,
};
use crate::wire::nqn::{Nqn, NqnField};
use crate::wire::text::AsciiField;

/// Queue flow control can be disabled, and nothing is said of a secure channel (TREQ bits 1:0 are 0): hosts
/// take "not required" for a wish to have one.
const REQUIREMENTS: u8 = DiscoveryEntry::FLOW_CONTROL_OPTIONAL;

/// The page for a host that reached this target by an address: the discovery service itself, every
/// subsystem that the host may connect to on every port, here and elsewhere, and the referrals.
pub(crate) fn log_page(
    directory: &Directory,
    host: &Nqn,
    reached: Option<IpAddr>,
    config: &TargetConfig,
) -> Vec<u8> {
    // Read first: what changes meanwhile makes the host read again.
    let generation = directory.generation();
    let ports = directory.ports_for(reached);
    let entry = |kind: SubsystemType, nqn: &Nqn, port_id: u16, address: SocketAddr| {
        let mut entry = entry(kind, nqn, port_id, address);
        entry.admin_queue_entries = config.admin_queue_depth_max;
        entry
    };
    let mut own_flags = DiscoveryEntryFlags::PERSISTENT_CONNECTIONS;
    if ports.len() > 1 {
        // Every port tells the same.
        own_flags |= DiscoveryEntryFlags::DUPLICATE;
    }
    let mut entries = Vec::new();
    for (port_id, address) in &ports {
        let own = entry(
            SubsystemType::CurrentDiscovery,
            &Nqn::discovery(),
            *port_id,
            *address,
        );
        entries.push(DiscoveryEntry {
            flags: own_flags,
            ..own
        });
    }
    for subsystem in directory
        .subsystems()
        .into_iter()
        .filter(|subsystem| subsystem.allows(host))
    {
        let on_ports = ports
            .iter()
            .map(|(id, address)| entry(SubsystemType::Nvm, &subsystem.nqn, *id, *address));
        entries.extend(on_ports);
        // Ports of other targets need numbers of their own.
        let taken = ports.iter().map(|(id, _)| *id).max().unwrap_or(0);
        let elsewhere = subsystem.elsewhere().into_iter().zip(taken.saturating_add(1)..);
        entries.extend(elsewhere.map(|(address, id)| entry(SubsystemType::Nvm, &subsystem.nqn, id, address)));
    }
    for referral in directory.referrals() {
        entries.push(entry(
            SubsystemType::Referral,
            &referral.nqn,
            referral.port_id,
            referral.address,
        ));
    }
    let header = DiscoveryHeader {
        generation,
        records: entries.len() as u64,
        ..DiscoveryHeader::default()
    };
    let mut bytes = header.to_bytes().to_vec();
    for entry in entries {
        bytes.extend_from_slice(&entry.to_bytes());
    }
    bytes
}

fn entry(kind: SubsystemType, nqn: &Nqn, port_id: u16, address: SocketAddr) -> DiscoveryEntry {
    let family = if address.is_ipv4() {
        AddressFamily::Ipv4
    } else {
        AddressFamily::Ipv6
    };
    DiscoveryEntry {
        transport_field: TransportType::Tcp.to_wire(),
        address_family_field: family.to_wire(),
        subsystem_type_field: kind.to_wire(),
        requirements: REQUIREMENTS,
        port_id,
        controller_id: DYNAMIC_CONTROLLER,
        service: AsciiField::new(&address.port().to_string()),
        subsystem_nqn: NqnField::from(nqn),
        address: AsciiField::new(&address.ip().to_string()),
        ..DiscoveryEntry::default()
    }
}
