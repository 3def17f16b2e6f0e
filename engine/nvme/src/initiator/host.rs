//! Who this host is to a target: its name and its identifier (NVMe Base 2.0, 4.5 and Connect: HOSTNQN,
//! HOSTID).
//!
//! Both come from the identity of the machine unless they are given, so that every process on it is the same
//! host, today and after a reboot, and no other machine is. Targets tie rights and reservations to the pair,
//! and some refuse a name that comes with two identifiers; so the two are always made, or given, together.

use std::path::Path;
use std::sync::OnceLock;

use uuid::Uuid;

use crate::wire::nqn::Nqn;

/// Where the machine's identity is (machine-id(5)).
const MACHINE_ID_PATH: &str = "/etc/machine-id";

/// What a machine's identity is hashed with: it is not to be told to others as it is.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d0f_6f2e_93c1_4b57_a8be_2f60_7a1d_84c3);

/// Name and identifier of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// Its name (HOSTNQN).
    pub name: Nqn,
    /// Its identifier (HOSTID); not all zeros.
    pub id: Uuid,
}

impl HostIdentity {
    /// The host with this identifier, named after it.
    #[must_use]
    pub fn from_id(id: Uuid) -> Self {
        let name = Nqn::from_uuid(id);
        Self { name, id }
    }

    /// The host with this name, and an identifier that follows from the name.
    #[must_use]
    pub fn from_name(name: Nqn) -> Self {
        let id = Uuid::new_v5(&NAMESPACE, name.as_str().as_bytes());
        Self { name, id }
    }

    /// This machine as a host. On a machine without an identity, a random one that lasts as long as the
    /// process: then name and identifier should be given.
    #[must_use]
    pub fn of_this_machine() -> Self {
        static IDENTITY: OnceLock<HostIdentity> = OnceLock::new();
        IDENTITY
            .get_or_init(|| {
                Self::of_machine(Path::new(MACHINE_ID_PATH)).unwrap_or_else(|| {
                    tracing::warn!(
                        path = MACHINE_ID_PATH,
                        "this machine has no identity: give `hostid`, or this host is another after a restart"
                    );
                    let random = [pollux_reactor::random_u64(), pollux_reactor::random_u64()];
                    Self::from_id(Uuid::from_u64_pair(random[0], random[1]))
                })
            })
            .clone()
    }

    /// The machine whose identity is in this file. The file is a line of a few bytes, read once in a
    /// process's life.
    fn of_machine(path: &Path) -> Option<Self> {
        const DIGITS: usize = 32;
        let text = std::fs::read_to_string(path).ok()?;
        let machine = text.trim();
        // An image that is not set up yet says `uninitialized`.
        let valid = machine.len() == DIGITS && machine.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| Self::from_id(Uuid::new_v5(&NAMESPACE, machine.to_ascii_lowercase().as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(content: &str) -> Option<HostIdentity> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        HostIdentity::of_machine(file.path())
    }

    #[test]
    fn a_machine_is_always_the_same_host_and_no_other() {
        let first = machine("0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(first, machine("0123456789ABCDEF0123456789ABCDEF").unwrap());
        assert_ne!(first, machine("0123456789abcdef0123456789abcdee\n").unwrap());
        // Frozen: a host must not become another by an update.
        assert_eq!(first.id.to_string(), "2e36e717-2be3-5e1c-bf9e-626253dea82d");
        assert_eq!(
            first.name.as_str(),
            format!("nqn.2014-08.org.nvmexpress:uuid:{}", first.id)
        );
        assert!(!first.id.to_string().contains("0123456789"));
    }

    #[test]
    fn what_is_no_identity_is_not_used() {
        for content in [
            "",
            "uninitialized\n",
            "0123",
            "zz23456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef0",
        ] {
            assert_eq!(machine(content), None, "{content:?}");
        }
        assert_eq!(HostIdentity::of_machine(Path::new("/nowhere/machine-id")), None);
    }

    #[test]
    fn a_name_has_one_identifier() {
        let name: Nqn = "nqn.2026-11.io.pollux:host-1".parse().unwrap();
        let host = HostIdentity::from_name(name.clone());
        assert_eq!(host, HostIdentity::from_name(name));
        assert!(!host.id.is_nil());
    }
}
