//! Where a drive is and how to use it, and the URI that tells.
//!
//! ```text
//! pcie:///0000:5e:00.0/1?depth=256&timeout=30s
//! ```
//!
//! | parameter | what | default |
//! | --- | --- | --- |
//! | `depth` | requests under way for each reactor, 1 to 4096; more of them wait | 256 |
//! | `timeout` | time for a request before it is aborted, 1 s to 10 min | `30s` |
//! | `abort_timeout` | time for the abort before the controller is reset, 100 ms to 10 min | `5s` |

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::error::SpdkError;
use crate::registry::OpenError;
use crate::uri::{DeviceUri, Parameter};

/// The most requests under way for one reactor.
pub const DEPTH_MAX: u16 = 4096;

/// The address of a device on PCI: `0000:5e:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Domain.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl FromStr for PciAddress {
    type Err = ();

    /// `DOMAIN:BUS:DEVICE.FUNCTION` in hexadecimal, as the kernel writes it; the domain may be left out.
    fn from_str(text: &str) -> Result<Self, ()> {
        fn hexadecimal(text: &str, digits_max: usize) -> Result<u32, ()> {
            let fits =
                (1..=digits_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            fits.then_some(()).ok_or(())?;
            u32::from_str_radix(text, 16).map_err(|_| ())
        }
        let (rest, function) = text.split_once('.').ok_or(())?;
        let mut parts = rest.rsplit(':');
        let device = hexadecimal(parts.next().ok_or(())?, 2)?;
        let bus = hexadecimal(parts.next().ok_or(())?, 2)?;
        let domain = parts.next().map_or(Ok(0), |text| hexadecimal(text, 8))?;
        let function = hexadecimal(function, 1)?;
        if parts.next().is_some() || device >= 32 || function >= 8 {
            return Err(());
        }
        Ok(Self {
            domain,
            bus: bus as u8,
            device: device as u8,
            function: function as u8,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(formatter, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// Where a remote subsystem is, and who asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FabricsAddress {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its qualified name.
    pub subsystem: String,
    /// This host's qualified name; SPDK makes one up without it.
    pub host_nqn: Option<String>,
    /// This host's identifier.
    pub host_id: Option<[u8; 16]>,
}

/// Where a controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A drive on PCI.
    Pcie(PciAddress),
    /// A remote subsystem by RDMA.
    Rdma(FabricsAddress),
    /// A remote subsystem by TCP: to measure with, and to test with where there is no drive. Pollux's own
    /// initiator is the one to use.
    Tcp(FabricsAddress),
}

impl Transport {
    /// SPDK's text for it.
    pub(super) fn identifier(&self) -> String {
        let fabrics = |kind: &str, address: &FabricsAddress| {
            let family = if address.address.is_ipv4() { "IPv4" } else { "IPv6" };
            let FabricsAddress {
                address,
                port,
                subsystem,
                ..
            } = address;
            format!("trtype:{kind} adrfam:{family} traddr:{address} trsvcid:{port} subnqn:{subsystem}")
        };
        match self {
            Self::Pcie(address) => format!("trtype:PCIe traddr:{address}"),
            Self::Rdma(address) => fabrics("RDMA", address),
            Self::Tcp(address) => fabrics("TCP", address),
        }
    }

    pub(super) fn is_pcie(&self) -> bool {
        matches!(self, Self::Pcie(_))
    }

    /// Whether a controller reaches memory by itself, so that it must be registered.
    pub(super) fn reaches_memory(&self) -> bool {
        match self {
            Self::Pcie(_) | Self::Rdma(_) => true,
            Self::Tcp(_) => false,
        }
    }

    pub(super) fn fabrics(&self) -> Option<&FabricsAddress> {
        match self {
            Self::Pcie(_) => None,
            Self::Rdma(address) | Self::Tcp(address) => Some(address),
        }
    }
}

/// For people: `0000:5e:00.0`, or `192.0.2.7:4420`.
impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pcie(address) => address.fmt(formatter),
            Self::Rdma(address) | Self::Tcp(address) => {
                std::net::SocketAddr::new(address.address, address.port).fmt(formatter)
            }
        }
    }
}

/// How to use a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpdkOptions {
    /// What the device is called.
    pub name: String,
    /// Where its controller is.
    pub transport: Transport,
    /// The number of the namespace; `None` for the only one.
    pub namespace: Option<u32>,
    /// Requests under way for each reactor, [`DEPTH_MAX`] at most; more of them wait.
    pub depth: u16,
    /// Time for a request before it is aborted.
    pub timeout: Duration,
    /// Time for the abort before the controller is reset.
    pub abort_timeout: Duration,
    /// Keep alive timeout, over fabrics.
    pub keep_alive: Duration,
    /// How long a remote controller may be lost before the device is gone for good.
    pub loss_timeout: Duration,
}

impl SpdkOptions {
    /// Defaults for everything but where the namespace is.
    #[must_use]
    pub fn new(name: impl Into<String>, transport: Transport, namespace: Option<u32>) -> Self {
        Self {
            name: name.into(),
            transport,
            namespace,
            depth: 256,
            timeout: Duration::from_secs(30),
            abort_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(10),
            loss_timeout: Duration::from_secs(600),
        }
    }

    /// Reads a `pcie` URI.
    ///
    /// # Errors
    ///
    /// [`OpenError`] tells which part cannot be, and what could.
    pub fn from_uri(uri: &DeviceUri) -> Result<Self, OpenError> {
        let mut parameters = uri.local_parameters()?;
        let path = uri.path();
        let (address, namespace) = read_path(&path)
            .ok_or_else(|| OpenError::failed(uri, SpdkError::Address { path: path.clone() }))?;
        let mut options = Self::new(
            format!("{address}/{namespace}"),
            Transport::Pcie(address),
            Some(namespace),
        );
        let depth = parameters.take_with("depth", "a number from 1 to 4096", |text| {
            u16::read(text).filter(|depth| (1..=DEPTH_MAX).contains(depth))
        })?;
        options.depth = depth.unwrap_or(options.depth);
        let timeout =
            parameters.take_with("timeout", "a time from 1s to 600s", |text| within(1_000, text))?;
        options.timeout = timeout.unwrap_or(options.timeout);
        let abort_timeout = parameters.take_with("abort_timeout", "a time from 100ms to 600s", |text| {
            within(100, text)
        })?;
        options.abort_timeout = abort_timeout.unwrap_or(options.abort_timeout);
        parameters.finish()?;
        Ok(options)
    }
}

fn within(least_ms: u128, text: &str) -> Option<Duration> {
    let span = Duration::read(text)?;
    (least_ms..=600_000).contains(&span.as_millis()).then_some(span)
}

/// `0000:5e:00.0/1`.
fn read_path(path: &str) -> Option<(PciAddress, u32)> {
    let (address, namespace) = path.split_once('/')?;
    let namespace = u32::read(namespace).filter(|id| (1..u32::MAX - 1).contains(id))?;
    Some((address.parse().ok()?, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SpdkOptions, String> {
        let uri = DeviceUri::parse(text).map_err(|error| error.to_string())?;
        SpdkOptions::from_uri(&uri).map_err(|error| error.to_string())
    }

    #[test]
    fn drives_are_named_by_address_and_namespace() {
        let options = read("pcie:///0000:5e:00.0/1").expect("it is one");
        assert_eq!(options.name, "0000:5e:00.0/1");
        assert_eq!(options.namespace, Some(1));
        assert_eq!(options.transport.identifier(), "trtype:PCIe traddr:0000:5e:00.0");
        let options = read("pcie:///5E:1f.7/12?depth=9&timeout=2s&abort_timeout=100ms").expect("it is one");
        assert_eq!(options.name, "0000:5e:1f.7/12");
        assert_eq!((options.depth, options.timeout.as_secs()), (9, 2));
        assert_eq!(options.abort_timeout.as_millis(), 100);
    }

    #[test]
    fn what_is_no_drive_is_refused_with_the_way_to_write_it() {
        for text in [
            "pcie:///",
            "pcie:///0000:5e:00.0",
            "pcie:///0000:5e:00.0/0",
            "pcie:///0000:5e:00.0/4294967295",
            "pcie:///0000:5e:00.0/x",
            "pcie:///0000:5e:20.0/1",
            "pcie:///0000:5e:00.8/1",
            "pcie:///0000:5e:00/1",
            "pcie:///1:2:3:4.5/1",
            "pcie:///0000:+5:00.0/1",
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains("0000:5e:00.0/1"), "{text}: {error}");
        }
        for (text, told) in [
            ("pcie:///0000:5e:00.0/1?depth=0", "1 to 4096"),
            ("pcie:///0000:5e:00.0/1?timeout=1ms", "1s to 600s"),
            ("pcie:///0000:5e:00.0/1?size=1GiB", "unknown parameter"),
            ("pcie://host/0000:5e:00.0/1", "host"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn remote_subsystems_have_an_identifier() {
        let address = FabricsAddress {
            address: "2001:db8::7".parse().expect("an address"),
            port: 4420,
            subsystem: "nqn.2026-11.com.example:disk".to_owned(),
            host_nqn: None,
            host_id: None,
        };
        let transport = Transport::Rdma(address);
        assert_eq!(
            transport.identifier(),
            "trtype:RDMA adrfam:IPv6 traddr:2001:db8::7 trsvcid:4420 subnqn:nqn.2026-11.com.example:disk"
        );
        assert_eq!(transport.to_string(), "[2001:db8::7]:4420");
        assert!(transport.reaches_memory() && !transport.is_pcie());
    }
}
