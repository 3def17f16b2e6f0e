//! What the controller service tells the node service of a volume, as `publish_context`.

use std::collections::HashMap;
use std::net::SocketAddr;

use uuid::Uuid;

use crate::error::CallError;

/// The NVMe qualified name of the subsystem.
pub const SUBSYSTEM_NQN: &str = "subsystemNqn";

/// The identity of the namespace.
pub const NAMESPACE_UUID: &str = "namespaceUuid";

/// Where targets listen, as ADDRESS:PORT with commas between.
pub const PATHS: &str = "paths";

/// Whether the node may only read.
pub const READ_ONLY: &str = "readOnly";

/// What the names of subsystems begin with: nothing else is ever disconnected.
pub const SUBSYSTEM_PREFIX: &str = "nqn.2026-11.io.pollux:volume:";

/// Bytes of an NVMe qualified name (NVM Express Base Specification, NVMe Qualified Names).
const NQN_BYTES_MAX: usize = 223;

/// Paths to one volume.
pub(super) const PATHS_MAX: usize = 16;

/// How a volume is reached.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reach {
    /// The subsystem.
    pub subsystem_nqn: String,
    /// The namespace.
    pub namespace_uuid: Uuid,
    /// Where targets listen.
    pub paths: Vec<SocketAddr>,
    /// Whether this node may only read.
    pub read_only: bool,
}

impl Reach {
    /// From a `publish_context`.
    ///
    /// # Errors
    ///
    /// [`CallError::Argument`] if something is missing or wrong: then it comes from another driver, or from
    /// none.
    pub fn read(context: &HashMap<String, String>) -> Result<Self, CallError> {
        const FIELD: &str = "publish_context";
        let get = |key: &str| {
            context
                .get(key)
                .ok_or_else(|| CallError::argument(FIELD, format!("lacks {key}: publish the volume first")))
        };
        let wrong =
            |key: &str, problem: &str| CallError::argument(FIELD, format!("has a wrong {key}: {problem}"));
        let subsystem_nqn = get(SUBSYSTEM_NQN)?;
        // What would be an option more for the kernel is no part of a name.
        let is_plain = subsystem_nqn
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',');
        if !subsystem_nqn.starts_with(SUBSYSTEM_PREFIX) || subsystem_nqn.len() > NQN_BYTES_MAX || !is_plain {
            return Err(wrong(SUBSYSTEM_NQN, "it is no subsystem of a volume"));
        }
        let namespace_uuid = Uuid::parse_str(get(NAMESPACE_UUID)?);
        let namespace_uuid = namespace_uuid.map_err(|_| wrong(NAMESPACE_UUID, "it is no UUID"))?;
        let paths: Result<Vec<SocketAddr>, _> = get(PATHS)?.split(',').map(str::parse).collect();
        let paths = paths.map_err(|_| wrong(PATHS, "give IP:PORT with commas between"))?;
        if paths.len() > PATHS_MAX || namespace_uuid.is_nil() {
            return Err(wrong(PATHS, "there are too many, or they lead to nothing"));
        }
        let read_only = match get(READ_ONLY)?.as_str() {
            "true" => true,
            "false" => false,
            _ => return Err(wrong(READ_ONLY, "give true or false")),
        };
        Ok(Self {
            subsystem_nqn: subsystem_nqn.clone(),
            namespace_uuid,
            paths,
            read_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(changes: &[(&str, Option<&str>)]) -> HashMap<String, String> {
        let mut pairs: HashMap<String, String> = [
            (SUBSYSTEM_NQN, "nqn.2026-11.io.pollux:volume:x"),
            (NAMESPACE_UUID, "0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01"),
            (PATHS, "10.0.0.1:4420,[fd00::1]:4420"),
            (READ_ONLY, "false"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        for (key, value) in changes {
            match value {
                Some(value) => pairs.insert((*key).to_owned(), (*value).to_owned()),
                None => pairs.remove(*key),
            };
        }
        pairs
    }

    #[test]
    fn what_the_controller_says_is_understood() {
        let reach = Reach::read(&context(&[])).expect("all is there");
        assert_eq!(reach.paths.len(), 2);
        assert!(!reach.read_only);
    }

    #[test]
    fn what_is_missing_or_wrong_is_refused() {
        for key in [SUBSYSTEM_NQN, NAMESPACE_UUID, PATHS, READ_ONLY] {
            assert!(Reach::read(&context(&[(key, None)])).is_err(), "{key}");
            assert!(
                Reach::read(&context(&[(key, Some("nonsense"))])).is_err(),
                "{key}"
            );
            assert!(Reach::read(&context(&[(key, Some(""))])).is_err(), "{key}");
        }
        let many = vec!["10.0.0.1:4420"; PATHS_MAX + 1].join(",");
        for (key, value) in [
            (SUBSYSTEM_NQN, "nqn.2026-11.io.pollux:volume:x,hostnqn=other"),
            (SUBSYSTEM_NQN, "nqn.2014-08.org.nvmexpress:drive"),
            (NAMESPACE_UUID, "00000000-0000-0000-0000-000000000000"),
            (PATHS, "host:4420"),
            (PATHS, many.as_str()),
        ] {
            assert!(Reach::read(&context(&[(key, Some(value))])).is_err(), "{value}");
        }
    }
}
