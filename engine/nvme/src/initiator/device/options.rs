//! The settings of a remote namespace, and the URI they are read from.
//!
//! ```text
//! nvmf://HOST[:4420]/NQN?nsid=1&hdgst=true&ddgst=true&timeout=30s
//! ```
//!
//! | parameter | what | default |
//! | --- | --- | --- |
//! | `transport` | `tcp`, or `rdma` in an engine with the feature `spdk` | `tcp` |
//! | `nsid` | number of the namespace | the only one |
//! | `uuid` | UUID (or NGUID) of the namespace, in place of `nsid` | |
//! | `hostnqn`, `hostid` | who this host is; one follows from the other | this machine |
//! | `queues` | reactors that may attach | 16 |
//! | `depth` | commands outstanding for each of them | 128 |
//! | `hdgst`, `ddgst` | digests on headers and data | `false` |
//! | `kato` | keep alive timeout, 1 s to 10 min | `5s` |
//! | `connect_timeout` | time for each step of connecting | `5s` |
//! | `timeout` | time for a command, before it is aborted | `30s` |
//! | `reconnect` | longest pause between attempts to reconnect, 100 ms to 10 min, or `off` | `10s` |
//! | `fail_fast` | how long requests wait for a lost target before they fail, or `off` | `off` |
//! | `loss_timeout` | how long a target may be lost before the device is gone | `600s` |
//! | `resubmit` | what is sent again after a loss: `all`, `reads` or `none` | `all` |
//! | `unflushed` | a flush after a loss that may have cost a write cache: `fail` or `trust` | `fail` |
//! | `deallocate` | how blocks are freed: `zeroes` or `dataset` | `zeroes` |
//! | `secret_file` | the file of the secret that this host authenticates by | |
//! | `controller_secret_file` | that of the secret by which the subsystem has to authenticate too | |
//! | `dhgroups` | Diffie-Hellman groups that may be used for it, the best first | up to `ffdhe4096` |

use std::path::Path;
use std::time::Duration;

use pollux_device::uri::{Parameter, Parameters};
use pollux_device::{DeviceUri, UriError};
use uuid::Uuid;

use super::super::connection::{ConnectionOptions, DEPTH_MAX};
use super::super::host::HostIdentity;
use super::super::namespace::NamespaceSelector;
use super::endpoint::Endpoint;
use crate::auth::{Credentials, Methods, Secret};
use crate::wire::nqn::Nqn;

/// The port of NVMe over TCP (NVMe/TCP Transport, registered with IANA).
pub const PORT: u16 = 4420;

/// Most reactors that may attach.
pub const QUEUES_MAX: u16 = 256;

/// What is sent again after a connection was lost, once the old commands are known to be dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resubmit {
    /// Everything: this host is the only writer, or writes of others do not meet its own.
    #[default]
    All,
    /// What changes nothing; a change whose fate is unknown fails.
    Reads,
    /// Nothing.
    None,
}

/// What becomes of the next flush after a target was lost with completed writes in a volatile cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unflushed {
    /// It fails once, unless the target proves that it ran on: those writes may be lost.
    #[default]
    Fail,
    /// It succeeds when the target says so: its cache survives whatever happens to it.
    Trust,
}

/// How blocks are freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeallocateBy {
    /// By Write Zeroes that may deallocate: they read as zeros on every target.
    #[default]
    Zeroes,
    /// By Dataset Management: one command for any range, for targets that do free what they are asked to.
    Dataset,
}

/// How a lost target is dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossOptions {
    /// The longest pause between attempts to reconnect; `None` not to reconnect at all.
    pub reconnect_pause_max: Option<Duration>,
    /// How long requests wait before they fail with `PathDown`; `None` for as long as the device is not gone.
    pub fail_fast: Option<Duration>,
    /// How long the target may be lost before the device is gone for good.
    pub loss_timeout: Duration,
    /// What is sent again.
    pub resubmit: Resubmit,
    /// What becomes of the next flush.
    pub unflushed: Unflushed,
}

impl Default for LossOptions {
    fn default() -> Self {
        Self {
            reconnect_pause_max: Some(Duration::from_secs(10)),
            fail_fast: None,
            loss_timeout: Duration::from_secs(600),
            resubmit: Resubmit::All,
            unflushed: Unflushed::Fail,
        }
    }
}

/// Settings of a remote namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmfOptions {
    /// Where the target is.
    pub endpoint: Endpoint,
    /// The subsystem.
    pub subsystem: Nqn,
    /// Which of its namespaces.
    pub namespace: NamespaceSelector,
    /// This host.
    pub host: HostIdentity,
    /// Reactors that may attach, each with an I/O queue of its own.
    pub queues: u16,
    /// How connections are to be.
    pub connection: ConnectionOptions,
    /// Keep alive timeout.
    pub keep_alive: Duration,
    /// How long a command may take before it is aborted; half as long again, and the controller is reset.
    pub command_timeout: Duration,
    /// How a lost target is dealt with.
    pub loss: LossOptions,
    /// How blocks are freed.
    pub deallocate: DeallocateBy,
    /// The secrets that this host and the subsystem authenticate by, if they do.
    pub credentials: Option<Credentials>,
}

pub(super) const NAMESPACE_EXPECTED: &str = "a number from 1 to 4294967294";

/// The number of a namespace.
pub(super) fn read_namespace_id(text: &str) -> Option<u32> {
    u32::read(text).filter(|id| (1..=0xffff_fffe).contains(id))
}

const TRANSPORT_EXPECTED: &str = "`tcp` or `rdma`";

/// How a remote namespace is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransportKind {
    /// By Pollux's own initiator.
    Tcp,
    /// By SPDK's.
    Rdma,
}

impl TransportKind {
    /// What a URI asks for.
    ///
    /// # Errors
    ///
    /// [`UriError::Value`] for what is neither.
    pub(super) fn of(uri: &DeviceUri) -> Result<Self, UriError> {
        let mut parameters = uri.parameters();
        let kind = parameters.take_with("transport", TRANSPORT_EXPECTED, |text| match text {
            "tcp" => Some(Self::Tcp),
            "rdma" => Some(Self::Rdma),
            _ => None,
        })?;
        Ok(kind.unwrap_or(Self::Tcp))
    }
}

/// Where the target is, and its subsystem.
pub(super) fn read_place(uri: &DeviceUri) -> Result<(Endpoint, Nqn), UriError> {
    let wrong = |reason| UriError::Name {
        uri: uri.to_string(),
        reason,
    };
    let host = uri
        .host()
        .ok_or_else(|| wrong("the target is missing: write nvmf://HOST:4420/NQN"))?;
    let endpoint = Endpoint::new(host, uri.port().unwrap_or(PORT));
    let subsystem: Nqn = uri.path().parse().map_err(|_| {
        wrong("the path is no NVMe Qualified Name: write nvmf://HOST:4420/nqn.2026-11.com.example:disk")
    })?;
    if subsystem.is_discovery() {
        return Err(wrong(
            "the discovery subsystem has no namespaces: name the subsystem of the namespace",
        ));
    }
    Ok((endpoint, subsystem))
}

pub(super) const TIMEOUT_EXPECTED: &str = "a time from 1s to 600s";

fn within(range: std::ops::RangeInclusive<u64>, text: &str) -> Option<Duration> {
    let span = Duration::read(text)?;
    range.contains(&(span.as_millis() as u64)).then_some(span)
}

/// A time of one second to ten minutes.
pub(super) fn timeout(text: &str) -> Option<Duration> {
    within(1_000..=600_000, text)
}

impl NvmfOptions {
    /// Defaults for everything but where the subsystem is.
    #[must_use]
    pub fn new(endpoint: Endpoint, subsystem: Nqn) -> Self {
        Self {
            endpoint,
            subsystem,
            namespace: NamespaceSelector::Only,
            host: HostIdentity::of_this_machine(),
            queues: 16,
            connection: ConnectionOptions::default(),
            keep_alive: Duration::from_secs(5),
            command_timeout: Duration::from_secs(30),
            loss: LossOptions::default(),
            deallocate: DeallocateBy::Zeroes,
            credentials: None,
        }
    }

    /// Reads the settings from a URI.
    ///
    /// # Errors
    ///
    /// [`UriError`] tells which part cannot be, and what could.
    pub fn from_uri(uri: &DeviceUri) -> Result<Self, UriError> {
        let (endpoint, subsystem) = read_place(uri)?;
        let mut parameters = uri.parameters();
        let host = read_host(&mut parameters)?;
        let mut options = Self {
            host,
            ..Self::new(endpoint, subsystem)
        };
        options.read_namespace(uri, &mut parameters)?;
        // What is read here is about TCP; the other transport has its own.
        parameters.take_with("transport", TRANSPORT_EXPECTED, |text| {
            (text == "tcp").then_some(())
        })?;
        options.read_connection(&mut parameters)?;
        options.loss = read_loss(&mut parameters)?;
        if let Some(by) = parameters.take_with("deallocate", "`zeroes` or `dataset`", |text| match text {
            "zeroes" => Some(DeallocateBy::Zeroes),
            "dataset" => Some(DeallocateBy::Dataset),
            _ => None,
        })? {
            options.deallocate = by;
        }
        options.credentials = read_credentials(uri, &mut parameters)?;
        parameters.finish()?;
        Ok(options)
    }

    fn read_namespace(&mut self, uri: &DeviceUri, parameters: &mut Parameters<'_>) -> Result<(), UriError> {
        let id = parameters.take_with("nsid", NAMESPACE_EXPECTED, read_namespace_id)?;
        let uuid = parameters.take_with("uuid", "a UUID of 36 characters", |text| {
            Uuid::try_parse(text).ok()
        })?;
        self.namespace = match (id, uuid) {
            (None, None) => NamespaceSelector::Only,
            (Some(id), None) => NamespaceSelector::Id(id),
            (None, Some(uuid)) => NamespaceSelector::Uuid(uuid),
            (Some(_), Some(_)) => {
                return Err(UriError::Name {
                    uri: uri.to_string(),
                    reason: "both `nsid` and `uuid` are given; give one of them",
                });
            }
        };
        Ok(())
    }

    fn read_connection(&mut self, parameters: &mut Parameters<'_>) -> Result<(), UriError> {
        let queues = format!("a number from 1 to {QUEUES_MAX}");
        let queues = parameters.take_with("queues", &queues, |text| {
            u16::read(text).filter(|queues| (1..=QUEUES_MAX).contains(queues))
        })?;
        let depth = format!("a number from 1 to {DEPTH_MAX}");
        let depth = parameters.take_with("depth", &depth, |text| {
            u16::read(text).filter(|depth| (1..=DEPTH_MAX).contains(depth))
        })?;
        let connection = &mut self.connection;
        self.queues = queues.unwrap_or(self.queues);
        connection.depth = depth.unwrap_or(connection.depth);
        connection.header_digest = parameters.take("hdgst")?.unwrap_or(connection.header_digest);
        connection.data_digest = parameters.take("ddgst")?.unwrap_or(connection.data_digest);
        for (name, setting) in [
            ("kato", &mut self.keep_alive),
            ("connect_timeout", &mut connection.connect_timeout),
            ("timeout", &mut self.command_timeout),
        ] {
            if let Some(span) = parameters.take_with(name, TIMEOUT_EXPECTED, timeout)? {
                *setting = span;
            }
        }
        Ok(())
    }
}

/// The secrets themselves are never part of a URI, which is logged and listed: it names their files.
fn read_credentials(
    uri: &DeviceUri,
    parameters: &mut Parameters<'_>,
) -> Result<Option<Credentials>, UriError> {
    let mut read = |name| {
        parameters.take_with(
            name,
            "the path of a file with a readable secret: DHHC-1:xx:BASE64:",
            |path| {
                Secret::read(Path::new(path))
                    .inspect_err(|error| tracing::error!(path, %error, "no secret"))
                    .ok()
            },
        )
    };
    let (host, controller) = (read("secret_file")?, read("controller_secret_file")?);
    let expected = "`null` and `ffdhe2048` to `ffdhe8192`, separated by commas";
    let groups = parameters.take_with("dhgroups", expected, Methods::read_groups)?;
    let wrong = |reason| UriError::Name {
        uri: uri.to_string(),
        reason,
    };
    let Some(host) = host else {
        if controller.is_some() || groups.is_some() {
            let reason = "`controller_secret_file` and `dhgroups` mean nothing without `secret_file`";
            return Err(wrong(reason));
        }
        return Ok(None);
    };
    let mut methods = Methods::default();
    methods.groups = groups.unwrap_or(methods.groups);
    Ok(Some(Credentials {
        host,
        controller,
        methods,
    }))
}

pub(super) fn read_host(parameters: &mut Parameters<'_>) -> Result<HostIdentity, UriError> {
    let name: Option<Nqn> =
        parameters.take_with("hostnqn", "an NVMe Qualified Name", |text| text.parse().ok())?;
    let id = parameters.take_with("hostid", "a UUID that is not zero", |text| {
        Uuid::try_parse(text).ok().filter(|id| !id.is_nil())
    })?;
    Ok(match (name, id) {
        (None, None) => HostIdentity::of_this_machine(),
        (Some(name), None) => HostIdentity::from_name(name),
        (None, Some(id)) => HostIdentity::from_id(id),
        (Some(name), Some(id)) => HostIdentity { name, id },
    })
}

fn read_loss(parameters: &mut Parameters<'_>) -> Result<LossOptions, UriError> {
    /// A value, or `off`.
    fn or_off<T>(text: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
        if text == "off" {
            Some(None)
        } else {
            read(text).map(Some)
        }
    }
    let mut loss = LossOptions::default();
    let pause = |text: &str| within(100..=600_000, text);
    if let Some(reconnect) =
        parameters.take_with("reconnect", "a time from 100ms to 600s, or `off`", |text| {
            or_off(text, pause)
        })?
    {
        loss.reconnect_pause_max = reconnect;
    }
    let expected = "a time such as 0s or 20s, or `off`";
    if let Some(fail_fast) =
        parameters.take_with("fail_fast", expected, |text| or_off(text, Duration::read))?
    {
        loss.fail_fast = fail_fast;
    }
    if let Some(span) = parameters.take("loss_timeout")? {
        loss.loss_timeout = span;
    }
    if let Some(resubmit) =
        parameters.take_with("resubmit", "`all`, `reads` or `none`", |text| match text {
            "all" => Some(Resubmit::All),
            "reads" => Some(Resubmit::Reads),
            "none" => Some(Resubmit::None),
            _ => None,
        })?
    {
        loss.resubmit = resubmit;
    }
    if let Some(unflushed) = parameters.take_with("unflushed", "`fail` or `trust`", |text| match text {
        "fail" => Some(Unflushed::Fail),
        "trust" => Some(Unflushed::Trust),
        _ => None,
    })? {
        loss.unflushed = unflushed;
    }
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NvmfOptions, UriError> {
        NvmfOptions::from_uri(&DeviceUri::parse(text).unwrap())
    }

    #[test]
    fn reads_a_plain_uri() {
        let options = read("nvmf://192.0.2.7/nqn.2026-11.io.pollux:serve").unwrap();
        assert_eq!(options.endpoint, Endpoint::new("192.0.2.7", 4420));
        assert_eq!(options.subsystem.as_str(), "nqn.2026-11.io.pollux:serve");
        assert_eq!(options.namespace, NamespaceSelector::Only);
        let defaults = NvmfOptions::new(options.endpoint.clone(), options.subsystem.clone());
        assert_eq!(options, defaults);
    }

    #[test]
    fn reads_every_parameter() {
        let options = read(
            "nvmf://[2001:db8::1]:4421/nqn.2026-11.io.pollux:serve?uuid=11111111-2222-3333-4444-555555555555\
             &hostnqn=nqn.2026-11.io.pollux:host&hostid=11111111-2222-3333-4444-666666666666&queues=3\
             &depth=64&hdgst=true&ddgst=true\
             &kato=2s&connect_timeout=3s&timeout=4s&reconnect=500ms&fail_fast=0s\
             &loss_timeout=60s&resubmit=reads&unflushed=trust&deallocate=dataset",
        )
        .unwrap();
        let id = Uuid::from_u128(0x1111_1111_2222_3333_4444_6666_6666_6666);
        let expected = NvmfOptions {
            endpoint: Endpoint::new("2001:db8::1", 4421),
            subsystem: "nqn.2026-11.io.pollux:serve".parse().unwrap(),
            namespace: NamespaceSelector::Uuid(Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555)),
            host: HostIdentity {
                name: "nqn.2026-11.io.pollux:host".parse().unwrap(),
                id,
            },
            queues: 3,
            connection: ConnectionOptions {
                depth: 64,
                header_digest: true,
                data_digest: true,
                connect_timeout: Duration::from_secs(3),
            },
            keep_alive: Duration::from_secs(2),
            command_timeout: Duration::from_secs(4),
            loss: LossOptions {
                reconnect_pause_max: Some(Duration::from_millis(500)),
                fail_fast: Some(Duration::ZERO),
                loss_timeout: Duration::from_secs(60),
                resubmit: Resubmit::Reads,
                unflushed: Unflushed::Trust,
            },
            deallocate: DeallocateBy::Dataset,
            credentials: None,
        };
        assert_eq!(options, expected);
        let options =
            read("nvmf://target/nqn.2026-11.io.pollux:serve?nsid=7&reconnect=off&fail_fast=off").unwrap();
        assert_eq!(options.namespace, NamespaceSelector::Id(7));
        assert_eq!(options.loss.reconnect_pause_max, None);
        assert_eq!(options.loss.fail_fast, None);
    }

    #[test]
    fn a_host_given_by_half_is_whole() {
        let by_name = read("nvmf://target/nqn.2026-11.io.pollux:a?hostnqn=nqn.2026-11.io.pollux:host")
            .unwrap()
            .host;
        assert_eq!(
            by_name,
            HostIdentity::from_name("nqn.2026-11.io.pollux:host".parse().unwrap())
        );
        let id = "11111111-2222-3333-4444-666666666666";
        let by_id = read(&format!("nvmf://target/nqn.2026-11.io.pollux:a?hostid={id}"))
            .unwrap()
            .host;
        assert_eq!(
            by_id.name.as_str(),
            format!("nqn.2014-08.org.nvmexpress:uuid:{id}")
        );
    }

    #[test]
    fn refuses_what_cannot_be() {
        for (uri, says) in [
            ("nvmf:///nqn.2026-11.io.pollux:a", "the target is missing"),
            ("nvmf://target/", "no NVMe Qualified Name"),
            ("nvmf://target/disk", "no NVMe Qualified Name"),
            (
                "nvmf://target/nqn.2014-08.org.nvmexpress.discovery",
                "has no namespaces",
            ),
            ("nvmf://target/nqn.2026-11.io.pollux:a?nsid=0", "1 to 4294967294"),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?nsid=4294967295",
                "1 to 4294967294",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?uuid=7",
                "a UUID of 36 characters",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?nsid=1&uuid=11111111-2222-3333-4444-555555555555",
                "give one of them",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?hostnqn=me",
                "an NVMe Qualified Name",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?hostid=00000000-0000-0000-0000-000000000000",
                "not zero",
            ),
            ("nvmf://target/nqn.2026-11.io.pollux:a?queues=0", "1 to 256"),
            ("nvmf://target/nqn.2026-11.io.pollux:a?depth=1025", "1 to 1024"),
            ("nvmf://target/nqn.2026-11.io.pollux:a?hdgst=yes", "true or false"),
            ("nvmf://target/nqn.2026-11.io.pollux:a?kato=0s", "1s to 600s"),
            ("nvmf://target/nqn.2026-11.io.pollux:a?timeout=5", "1s to 600s"),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?reconnect=1ms",
                "100ms to 600s",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?resubmit=writes",
                "`all`, `reads` or `none`",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?unflushed=maybe",
                "`fail` or `trust`",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?deallocate=trim",
                "`zeroes` or `dataset`",
            ),
            (
                "nvmf://target/nqn.2026-11.io.pollux:a?size=1GiB",
                "unknown parameter",
            ),
        ] {
            let error = read(uri).expect_err(uri).to_string();
            assert!(error.contains(says), "{uri}: {error}");
        }
    }
}
