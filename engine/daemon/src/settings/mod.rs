//! Settings of the daemon: one struct, read from a TOML file and overridden by the command line.
//!
//! Every field has a default, and every key that is not known is an error with its line: a typing error must
//! not become a setting that silently does nothing. `docs/pollux-engine.toml` is the annotated example; a
//! test compares it with the defaults here.

mod authentication;
mod cluster;
mod control;
mod cores;
mod file;
mod listen;
mod pools;
mod qos;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use pollux_device::ByteSize;
use pollux_nvme::target::{Hosts, TargetConfig};
use pollux_trace::TraceSettings;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

pub use authentication::AuthenticationSettings;
pub use cluster::ClusterSettings;
pub use control::{ControlAddress, ControlAddressError};
pub use cores::{CORES_MAX, CoreList, CoreListError};
pub use file::SettingsError;
pub use listen::ListenAddress;
pub use pools::{DeviceList, DeviceListError, PoolSettings};
pub use qos::{LimitsError, LimitsSettings, QosSettings};

/// The port that NVMe/TCP has by assignment (IANA `nvme`).
pub const NVMF_PORT: u16 = 4420;

/// What hosts connect to unless something else is set.
pub const SUBSYSTEM_NQN: &str = "nqn.2026-11.io.pollux:serve";

/// Buffers of one reactor, at least: a few transfers of the largest size.
pub const MEMORY_BYTES_MIN: u64 = 8 << 20;

/// Buffers of one reactor, at most.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// The longest time that stopping may take.
pub const DRAIN_TIMEOUT_MS_MAX: u64 = 3_600_000;

/// The longest time that a reactor may look for work before it sleeps.
pub const SPIN_US_MAX: u64 = 1_000_000;

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the engine keeps what it is to know after a restart: the pools that calls made or opened, and
    /// the devices of pools that calls changed. Default: none, and it is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_file: Option<PathBuf>,
    /// The threads that move the data.
    pub reactors: ReactorSettings,
    /// NVMe over TCP.
    pub nvmf: NvmfSettings,
    /// NBD.
    pub nbd: NbdSettings,
    /// The interface that the engine is controlled by.
    pub grpc: GrpcSettings,
    /// The cluster that the engine is a node of. Default: none, and the engine is told what to do by its own
    /// interface alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterSettings>,
    /// Metrics and health.
    pub http: HttpSettings,
    /// How the engine stops.
    pub shutdown: ShutdownSettings,
    /// What is told, and how.
    pub log: LogSettings,
    /// Traces of calls and of what is done for them, as OpenTelemetry has them: nothing of reads and writes.
    /// Default: none.
    pub tracing: TraceSettings,
    /// The pools that are opened before anything is served. Default: none.
    pub pools: Vec<PoolSettings>,
    /// Devices that are replicas of volumes, besides those in pools, which are found there. Default: none.
    pub replicas: Vec<ReplicaSettings>,
    /// What is served from the start on, in this order. Default: nothing.
    pub namespaces: Vec<NamespaceSettings>,
}

/// The threads that move the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReactorSettings {
    /// One reactor for each of these cores, pinned to it. Default: none, which is one reactor that is not
    /// pinned.
    pub cores: CoreList,
    /// What a reactor does when there is nothing to do. Default: `adaptive`.
    pub idle: IdleSettings,
    /// How long an adaptive reactor looks for work before it sleeps, in microseconds; ten times as long while
    /// work takes an eighth of its time or more. Default: 50.
    pub spin_us: u64,
    /// Buffers of each reactor, in bytes, on huge pages where there are any: a number, or a text with a unit.
    /// Default: 64 MiB.
    #[serde(with = "size")]
    pub memory: ByteSize,
}

impl Default for ReactorSettings {
    fn default() -> Self {
        Self {
            cores: CoreList::default(),
            idle: IdleSettings::Adaptive,
            spin_us: 50,
            memory: ByteSize(64 << 20),
        }
    }
}

/// What a reactor does when there is nothing to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum IdleSettings {
    /// Looks again and never sleeps: the lowest latency, and a whole core even when idle.
    Poll,
    /// Looks for a while, then sleeps until something happens.
    #[default]
    Adaptive,
}

/// NVMe over TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NvmfSettings {
    /// Where hosts connect, as ADDRESS:PORT; port 0 takes a free one. Default: 127.0.0.1:4420.
    pub listen: Vec<SocketAddr>,
    /// The NVMe qualified name of the subsystem that all namespaces belong to.
    /// Default: `nqn.2026-11.io.pollux:serve`.
    pub subsystem: String,
    /// Which hosts may connect. Default: any.
    pub hosts: Hosts,
    /// The hosts that have to authenticate. Default: none; hosts that are not among them connect as before.
    pub authentication: Vec<AuthenticationSettings>,
    /// The directory where reservations are kept that hosts want to persist through a loss of power; made if
    /// it is not there. Default: none, and no reservation persists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<PathBuf>,
    /// What hosts can make the engine hold. The defaults suit a few thousand connections.
    pub limits: TargetConfig,
}

impl Default for NvmfSettings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, NVMF_PORT))],
            subsystem: SUBSYSTEM_NQN.to_owned(),
            hosts: Hosts::default(),
            authentication: Vec::new(),
            reservations: None,
            limits: TargetConfig::default(),
        }
    }
}

/// NBD, for clients that know no NVMe: each device is an export of its own name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdSettings {
    /// Where clients connect: `unix:PATH` or ADDRESS:PORT; port 0 takes a free one. Default: nowhere.
    pub listen: Vec<ListenAddress>,
    /// Connections at a time, for each address; one more is closed at once. Default: 1024.
    pub connections_max: usize,
    /// How long a client in the middle of a request or reply may move nothing before it is disconnected, in
    /// milliseconds; idle clients stay. Default: 60,000.
    pub stall_timeout_ms: u64,
    /// Whether clients may make devices larger, by the RESIZE extension. Default: no.
    pub allow_resize: bool,
}

impl Default for NbdSettings {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            connections_max: 1_024,
            stall_timeout_ms: 60_000,
            allow_resize: false,
        }
    }
}

/// The interface that the engine is controlled by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcSettings {
    /// Where it listens: `unix:PATH`, or ADDRESS:PORT on the loopback interface. Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<ControlAddress>,
}

/// Metrics and health, by HTTP: to look at, never to change anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Where it listens, as ADDRESS:PORT; port 0 takes a free one. Whoever reaches it sees the names of
    /// volumes and how much they are used. Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// A directory with authority.pem, own.pem and own.key, as `pollux cert issue` makes it: then it
    /// answers by TLS, and metrics only to those whose certificate has the role of a viewer or more.
    /// Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<PathBuf>,
}

/// How the engine stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownSettings {
    /// How long commands under way may take to end, and devices to flush, in milliseconds. After that the
    /// engine leaves with an error. Default: 30,000.
    pub drain_timeout_ms: u64,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        Self {
            drain_timeout_ms: 30_000,
        }
    }
}

impl ShutdownSettings {
    /// The timeout.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// What is told, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// For people or for machines. Default: `text`.
    pub format: LogFormat,
    /// The least that is told: `error`, `warn`, `info`, `debug` or `trace`; single parts of the engine by
    /// `TARGET=LEVEL`, separated by commas. Default: `info`.
    pub level: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".to_owned(),
        }
    }
}

/// For whom the log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A device that is a replica of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaSettings {
    /// Its URI. No default.
    pub uri: String,
}

/// What is served from the start on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSettings {
    /// The URI of its device. No default.
    pub uri: String,
    /// Its identifier, 1 or more. Default: the lowest free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// The UUID that hosts know it by. Default: derived from the names of subsystem and device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// What all hosts together may ask of it. Default: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<QosSettings>,
}

impl NamespaceSettings {
    /// The device at `uri`, under the next identifier.
    pub fn new(uri: &str) -> Self {
        Self {
            uri: uri.to_owned(),
            id: None,
            uuid: None,
            qos: None,
        }
    }
}

impl Settings {
    /// Checks what no single field can tell.
    ///
    /// # Errors
    ///
    /// [`SettingsError::Value`] and [`SettingsError::Limits`] with the name of the field and what it can be.
    pub fn check(&self) -> Result<(), SettingsError> {
        let checks = [
            (
                "reactors.memory",
                (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&self.reactors.memory.0),
                "from 8MiB to 1TiB",
            ),
            (
                "reactors.spin_us",
                self.reactors.spin_us <= SPIN_US_MAX,
                "1000000 at most",
            ),
            (
                "shutdown.drain_timeout_ms",
                (1..=DRAIN_TIMEOUT_MS_MAX).contains(&self.shutdown.drain_timeout_ms),
                "from 1 to 3600000",
            ),
            (
                "nvmf.listen",
                !self.nvmf.listen.is_empty(),
                "one address at least",
            ),
            (
                "nvmf.authentication",
                self.nvmf
                    .authentication
                    .iter()
                    .all(AuthenticationSettings::is_valid),
                "hashes of sha256, sha384 and sha512, and dhgroups of null and ffdhe2048 to ffdhe8192",
            ),
            (
                "namespaces.id",
                self.namespaces.iter().all(|namespace| namespace.id != Some(0)),
                "1 or more",
            ),
        ];
        let pools = self.pools.iter().flat_map(PoolSettings::checks);
        let cluster = self.cluster.iter().flat_map(ClusterSettings::checks);
        let checks = checks.into_iter().chain(pools).chain(cluster);
        if let Some((field, _, bounds)) = { checks }.find(|(_, valid, _)| !valid) {
            return Err(SettingsError::Value { field, bounds });
        }
        for qos in self
            .namespaces
            .iter()
            .filter_map(|namespace| namespace.qos.as_ref())
        {
            qos.qos()?;
        }
        Ok(self.nvmf.limits.check()?)
    }
}

/// Sizes in files: a number of bytes, or a text with a unit.
mod size {
    use super::*;

    pub(super) fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(size)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a size such as \"64MiB\" or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests;
