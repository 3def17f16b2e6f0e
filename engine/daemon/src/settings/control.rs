//! Where the gRPC interface listens and is reached: a Unix socket, or a TCP port of this machine.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest path of a Unix socket, in bytes: what fits into `sockaddr_un` with its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The address of the gRPC interface: `unix:PATH` or `ADDRESS:PORT` on the loopback interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAddress {
    /// A Unix socket, for its owner alone.
    Unix(PathBuf),
    /// TCP on the loopback interface.
    Tcp(SocketAddr),
}

/// A text that is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlAddressError {
    /// Neither form.
    #[error(
        "{0:?} is not an address for gRPC: give unix:PATH (as unix:/run/pollux/engine.sock) or 127.0.0.1:PORT"
    )]
    Syntax(String),
    /// A socket path that is too long for the kernel, or relative.
    #[error("{0:?} cannot be a socket: give an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes")]
    Path(PathBuf),
    /// Reachable from other machines, by anyone.
    #[error(
        "{0} can be reached from other machines, and gRPC has no mutual TLS yet: give a loopback address \
         such as 127.0.0.1:{port}, or unix:PATH",
        port = .0.port()
    )]
    NotLoopback(SocketAddr),
}

impl ControlAddress {
    /// The path, if it is a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

impl FromStr for ControlAddress {
    type Err = ControlAddressError;

    fn from_str(text: &str) -> Result<Self, ControlAddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///run/x` and `unix:/run/x` are both in use.
            let path = path
                .strip_prefix("//")
                .filter(|path| path.starts_with('/'))
                .unwrap_or(path);
            if !path.starts_with('/')
                || path.starts_with("//")
                || path.len() > SOCKET_PATH_BYTES_MAX
                || path.contains('\0')
            {
                return Err(ControlAddressError::Path(path.into()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| ControlAddressError::Syntax(text.chars().take(64).collect()))?;
        if !address.ip().is_loopback() {
            return Err(ControlAddressError::NotLoopback(address));
        }
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(formatter),
        }
    }
}

impl Serialize for ControlAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ControlAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms() {
        for (text, canonical) in [
            ("unix:/run/pollux/engine.sock", "unix:/run/pollux/engine.sock"),
            ("unix:///run/pollux/engine.sock", "unix:/run/pollux/engine.sock"),
            ("127.0.0.1:4430", "127.0.0.1:4430"),
            ("[::1]:0", "[::1]:0"),
        ] {
            let address: ControlAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), canonical);
        }
    }

    #[test]
    fn refuses_what_others_could_reach() {
        for text in ["0.0.0.0:4430", "192.0.2.1:4430", "[::]:4430"] {
            let error = text.parse::<ControlAddress>().expect_err(text);
            assert!(matches!(error, ControlAddressError::NotLoopback(_)), "{error}");
            assert!(error.to_string().contains("127.0.0.1:4430"), "{error}");
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "localhost:1",
            "127.0.0.1",
            "unix:",
            "unix:relative",
            "unix://host/x",
            "http://x",
        ] {
            assert!(text.parse::<ControlAddress>().is_err(), "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(SOCKET_PATH_BYTES_MAX));
        assert!(long.parse::<ControlAddress>().is_err());
    }
}
