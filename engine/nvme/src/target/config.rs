//! Settings of a target, its subsystems, ports and referrals. Units are in the names; unknown keys are
//! errors.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::wire::log::AnaState;

/// Bytes of a page as the controller's capabilities tell it (CAP.MPSMIN = 0); the unit of MDTS.
pub(crate) const PAGE_BYTES: u32 = 4096;

/// Limits of a target. All are bounds on what hosts can make it hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// I/O queues a controller can have. Default 64.
    pub io_queues_max: u16,
    /// Entries an I/O queue can have. Default 1024.
    pub queue_depth_max: u16,
    /// Entries an admin queue can have. Default 256.
    pub admin_queue_depth_max: u16,
    /// The largest transfer of a command in bytes: 4096 times a power of two. Default 1 MiB.
    pub transfer_bytes_max: u32,
    /// Data that an I/O command capsule can carry, in bytes, a multiple of 16; the transport's setting of
    /// the same meaning has to be equal. Default 8192.
    pub in_capsule_bytes_max: u32,
    /// The keep alive timeout that hosts read as the default, in ms. Default 120,000.
    pub keep_alive_default_ms: u32,
    /// The longest keep alive timeout that is accepted, in ms. Default 3,600,000.
    pub keep_alive_max_ms: u32,
    /// How long a discovery controller without a keep alive timer may be idle, in ms. Default 120,000 (NVMe
    /// Base 2.0, 3.1.2.3.3, "discovery controller activity timeout").
    pub discovery_idle_ms: u32,
    /// Controllers a subsystem can have at one time. Default 1024.
    pub controllers_max: u16,
    /// Namespaces a subsystem can have, and so the highest namespace identifier. Default 1024.
    pub namespaces_max: u32,
    /// How long a command waits for memory, or for a device that is being attached, before the host is told
    /// to try again, in ms. Default 5,000.
    pub resource_wait_ms: u32,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            io_queues_max: 64,
            queue_depth_max: 1024,
            admin_queue_depth_max: 256,
            transfer_bytes_max: 1 << 20,
            in_capsule_bytes_max: 8192,
            keep_alive_default_ms: 120_000,
            keep_alive_max_ms: 3_600_000,
            discovery_idle_ms: 120_000,
            controllers_max: 1024,
            namespaces_max: 1024,
            resource_wait_ms: 5_000,
        }
    }
}

/// Bounds of the settings: what the fields of the wire, and reason, allow.
const IO_QUEUES_BOUND: u16 = 1024;
const QUEUE_DEPTH_MIN: u16 = 2;
const QUEUE_DEPTH_BOUND: u16 = 16_384;
const ADMIN_QUEUE_DEPTH_MIN: u16 = 32;
const TRANSFER_BYTES_BOUND: u32 = 2 << 20;
const IN_CAPSULE_BYTES_BOUND: u32 = 32 << 10;
const CONTROLLERS_BOUND: u16 = 0x8000;
const NAMESPACES_BOUND: u32 = 65_536;

impl TargetConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The name of the first field that is out of bounds, and the bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let transfer_pages = self.transfer_bytes_max / PAGE_BYTES;
        let checks = [
            (
                "io_queues_max",
                (1..=IO_QUEUES_BOUND).contains(&self.io_queues_max),
                "1 to 1024",
            ),
            (
                "queue_depth_max",
                (QUEUE_DEPTH_MIN..=QUEUE_DEPTH_BOUND).contains(&self.queue_depth_max),
                "2 to 16384",
            ),
            (
                "admin_queue_depth_max",
                (ADMIN_QUEUE_DEPTH_MIN..=QUEUE_DEPTH_BOUND).contains(&self.admin_queue_depth_max),
                "32 to 16384",
            ),
            (
                "transfer_bytes_max",
                transfer_pages.is_power_of_two()
                    && self.transfer_bytes_max.is_multiple_of(PAGE_BYTES)
                    && (2 * PAGE_BYTES..=TRANSFER_BYTES_BOUND).contains(&self.transfer_bytes_max),
                "a power of two from 8192 to 2097152",
            ),
            (
                "in_capsule_bytes_max",
                self.in_capsule_bytes_max.is_multiple_of(16)
                    && self.in_capsule_bytes_max <= IN_CAPSULE_BYTES_BOUND,
                "a multiple of 16 up to 32768",
            ),
            (
                "keep_alive_max_ms",
                self.keep_alive_max_ms >= 1_000,
                "1000 at least",
            ),
            (
                "keep_alive_default_ms",
                self.keep_alive_default_ms <= self.keep_alive_max_ms,
                "keep_alive_max_ms at most",
            ),
            (
                "discovery_idle_ms",
                self.discovery_idle_ms >= 1_000,
                "1000 at least",
            ),
            (
                "controllers_max",
                (1..=CONTROLLERS_BOUND).contains(&self.controllers_max),
                "1 to 32768",
            ),
            (
                "namespaces_max",
                (1..=NAMESPACES_BOUND).contains(&self.namespaces_max),
                "1 to 65536",
            ),
        ];
        match checks.into_iter().find(|(_, valid, _)| !valid) {
            Some((field, _, bounds)) => Err(ConfigError { field, bounds }),
            None => Ok(()),
        }
    }
}

/// A setting is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} of the target is out of bounds: set it to {bounds}")]
pub struct ConfigError {
    /// The setting.
    pub field: &'static str,
    /// What it can be.
    pub bounds: &'static str,
}

/// A subsystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsystemConfig {
    /// Its NVMe Qualified Name.
    pub nqn: String,
    /// Its serial number: up to 20 printable ASCII characters. Default: derived from the name.
    #[serde(default)]
    pub serial: Option<String>,
    /// Its model: up to 40 printable ASCII characters. Default `Pollux`.
    #[serde(default)]
    pub model: Option<String>,
    /// Who may connect. Default: any host.
    #[serde(default)]
    pub hosts: Hosts,
    /// Whether hosts are told how well each namespace is reached by this engine (asymmetric namespace
    /// access), as it has to be where several engines serve the subsystem. Default false.
    #[serde(default)]
    pub asymmetric_access: bool,
    /// The controller identifiers that are given out here, from 1 to 65519. Engines that serve the same
    /// subsystem need ranges that do not overlap. Default: all.
    #[serde(default)]
    pub controller_ids: ControllerIds,
}

/// A range of controller identifiers, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerIds {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl ControllerIds {
    /// The highest controller identifier there is (NVMe Base 2.0, 6.3: FFF0h to FFFFh are reserved).
    pub const MAX: u16 = 0xffef;

    pub(crate) fn is_valid(self) -> bool {
        1 <= self.first && self.first <= self.last && self.last <= Self::MAX
    }
}

impl Default for ControllerIds {
    fn default() -> Self {
        Self {
            first: 1,
            last: Self::MAX,
        }
    }
}

impl SubsystemConfig {
    /// A subsystem of this name that any host may connect to.
    #[must_use]
    pub fn new(nqn: &str) -> Self {
        Self {
            nqn: nqn.to_owned(),
            serial: None,
            model: None,
            hosts: Hosts::default(),
            asymmetric_access: false,
            controller_ids: ControllerIds::default(),
        }
    }
}

/// Which hosts may connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hosts {
    /// Whether any host may; then the list does not matter.
    pub allow_any: bool,
    /// The NVMe Qualified Names of those who may.
    pub allowed: Vec<String>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            allow_any: true,
            allowed: Vec::new(),
        }
    }
}

/// How a device appears as a namespace. What is not given is derived from the names of subsystem and
/// device, and is the same after every restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamespaceConfig {
    /// Its identifier, 1 or more; the lowest free one if not given.
    pub id: Option<u32>,
    /// Its UUID.
    pub uuid: Option<Uuid>,
    /// Its namespace globally unique identifier, 16 bytes.
    pub nguid: Option<[u8; 16]>,
    /// Its IEEE extended unique identifier, 8 bytes.
    pub eui64: Option<[u8; 8]>,
    /// How this engine reaches it at first; anything but optimized needs `asymmetric_access`. Default
    /// optimized.
    pub access: Option<AnaState>,
}

/// Where hosts reach the target, as the discovery log tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// The port identifier, unique in the target.
    pub id: u16,
    /// The address that a listener listens on. An unspecified one (`0.0.0.0`, `::`) is told to each host as
    /// the address that the host reached the discovery service by.
    pub address: SocketAddr,
}

/// Another discovery service that hosts are told to ask too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferralConfig {
    /// The port identifier it is told with.
    pub port_id: u16,
    /// Its address.
    pub address: SocketAddr,
    /// Its NVMe Qualified Name, if it has one of its own.
    #[serde(default)]
    pub nqn: Option<String>,
}

impl PortConfig {
    /// The address told to a host that reached this target by `reached`.
    pub(crate) fn address_for(&self, reached: Option<IpAddr>) -> SocketAddr {
        match reached {
            Some(ip) if self.address.ip().is_unspecified() => SocketAddr::new(ip, self.address.port()),
            _ => self.address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_bounds() {
        assert_eq!(TargetConfig::default().check(), Ok(()));
    }

    #[test]
    fn each_field_has_bounds() {
        let good = TargetConfig::default;
        let bad = [
            (
                "io_queues_max",
                TargetConfig {
                    io_queues_max: 0,
                    ..good()
                },
            ),
            (
                "queue_depth_max",
                TargetConfig {
                    queue_depth_max: 1,
                    ..good()
                },
            ),
            (
                "admin_queue_depth_max",
                TargetConfig {
                    admin_queue_depth_max: 31,
                    ..good()
                },
            ),
            (
                "transfer_bytes_max",
                TargetConfig {
                    transfer_bytes_max: 12_288,
                    ..good()
                },
            ),
            (
                "transfer_bytes_max",
                TargetConfig {
                    transfer_bytes_max: 4 << 20,
                    ..good()
                },
            ),
            (
                "in_capsule_bytes_max",
                TargetConfig {
                    in_capsule_bytes_max: 100,
                    ..good()
                },
            ),
            (
                "keep_alive_max_ms",
                TargetConfig {
                    keep_alive_max_ms: 0,
                    keep_alive_default_ms: 0,
                    ..good()
                },
            ),
            (
                "keep_alive_default_ms",
                TargetConfig {
                    keep_alive_default_ms: u32::MAX,
                    ..good()
                },
            ),
            (
                "discovery_idle_ms",
                TargetConfig {
                    discovery_idle_ms: 0,
                    ..good()
                },
            ),
            (
                "controllers_max",
                TargetConfig {
                    controllers_max: 0,
                    ..good()
                },
            ),
            (
                "namespaces_max",
                TargetConfig {
                    namespaces_max: 0,
                    ..good()
                },
            ),
        ];
        for (field, config) in bad {
            assert_eq!(config.check().map_err(|error| error.field), Err(field));
        }
    }

    #[test]
    fn an_unspecified_port_is_told_as_it_was_reached() {
        let port = PortConfig {
            id: 1,
            address: "0.0.0.0:4420".parse().unwrap(),
        };
        let reached: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(port.address_for(Some(reached)).to_string(), "192.0.2.7:4420");
        let port = PortConfig {
            id: 1,
            address: "192.0.2.1:4420".parse().unwrap(),
        };
        assert_eq!(port.address_for(Some(reached)).to_string(), "192.0.2.1:4420");
    }
}
