//! What things are called on both sides.
//!
//! A volume is called by orchestrators as it is in the control plane, so that `pollux volume list` and
//! `kubectl get pv` speak of the same thing. Names that the control plane does not take are replaced by
//! `csi-` and a hash; names that begin so are always replaced, so that nobody can take the name of another.
//!
//! A node's id is the NVMe qualified name of the host that it is, which tells cluster and node. Nothing
//! has to be looked up to know which nodes a volume is published to, and what is no such name is no node of
//! this cluster.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::CallError;

/// The driver, as orchestrators call it.
pub const DRIVER: &str = "csi.pollux.io";

/// Labels of volumes and snapshots in the control plane.
pub mod label {
    /// The name that the orchestrator asked for.
    pub const NAME: &str = "csi.pollux.io/name";
    /// The cluster that asked.
    pub const CLUSTER: &str = "csi.pollux.io/cluster";
    /// A hash of what was asked for and cannot be changed later.
    pub const REQUEST: &str = "csi.pollux.io/request";
    /// What a volume began as: `snapshot/NAME` or `volume/NAME`.
    pub const SOURCE: &str = "csi.pollux.io/source";
    /// The file system that is made if none is asked for.
    pub const FS_TYPE: &str = "csi.pollux.io/fs-type";
    /// On a snapshot: it is for making this volume, and goes once that is made.
    pub const CLONE: &str = "csi.pollux.io/clone";
    /// The claim that a volume is for.
    pub const CLAIM: &str = pollux_api::labels::CLAIM;
    /// The namespace of the claim, or of the snapshot.
    pub const NAMESPACE: &str = pollux_api::labels::NAMESPACE;
    /// The pods that use a volume.
    pub const POD: &str = pollux_api::labels::POD;
    /// What those belong to.
    pub const OWNER: &str = pollux_api::labels::OWNER;
    /// The persistent volume.
    pub const PERSISTENT_VOLUME: &str = "csi.pollux.io/persistent-volume";
    /// The snapshot as the orchestrator's users know it.
    pub const VOLUME_SNAPSHOT: &str = "csi.pollux.io/volume-snapshot";
}

/// Bytes that a name may have on either side.
const NAME_BYTES_MAX: usize = 128;

/// What hashed names begin with.
const HASHED: &str = "csi-";

/// What snapshots for clones begin with.
const CLONE: &str = "csi-clone-";

/// Bytes of a hash that are in a name: no two names meet by chance.
const HASH_BYTES: usize = 20;

/// What the names of hosts begin with.
const HOST: &str = "nqn.2026-11.io.pollux:node:";

/// Longest id of a node: Kubernetes takes no longer ones.
const NODE_ID_BYTES_MAX: usize = 192;

/// Longest name of a cluster.
const CLUSTER_BYTES_MAX: usize = 63;

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let bytes = digest.iter().take(HASH_BYTES);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// A hash of several texts, which tells them apart.
pub fn fingerprint(texts: &[&str]) -> String {
    let lengths: Vec<String> = texts
        .iter()
        .map(|text| format!("{}:{text}", text.len()))
        .collect();
    hash(&lengths.concat())
}

/// Whether the control plane takes a text as a name.
pub fn is_resource_name(text: &str) -> bool {
    let is_outer =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(byte))
        && is_outer(bytes.first())
        && is_outer(bytes.last())
}

/// What a volume or snapshot is called in the control plane that an orchestrator asked for by this name.
///
/// # Errors
///
/// [`CallError::Argument`] if it is empty, too long, or has control characters.
pub fn resource_name(name: &str) -> Result<String, CallError> {
    if name.is_empty() {
        return Err(CallError::missing("name"));
    }
    if name.len() > NAME_BYTES_MAX {
        let problem = format!("has {} bytes; give at most {NAME_BYTES_MAX}", name.len());
        return Err(CallError::argument("name", problem));
    }
    if name
        .chars()
        .any(|letter| letter.is_control() && !letter.is_whitespace())
    {
        return Err(CallError::argument(
            "name",
            "has control characters; leave them out",
        ));
    }
    if is_resource_name(name) && !name.starts_with(HASHED) {
        return Ok(name.to_owned());
    }
    Ok(format!("{HASHED}{}", hash(name)))
}

/// What a group snapshot is called in the control plane that an orchestrator asked for by this name. The
/// names of its parts are made of it and of those of volumes, the longest of which has so many bytes.
///
/// # Errors
///
/// [`CallError::Argument`], as for [`resource_name`].
pub fn group_name(name: &str, volume_bytes: usize) -> Result<String, CallError> {
    let plain = resource_name(name)?;
    match plain.len() + 1 + volume_bytes <= NAME_BYTES_MAX {
        true => Ok(plain),
        false => Ok(format!("{HASHED}{}", hash(name))),
    }
}

/// What the snapshot is called that a volume is made of which begins as another.
pub fn clone_snapshot(volume: &str) -> String {
    format!("{CLONE}{}", hash(volume))
}

/// A cluster that uses volumes. Several may share one Pollux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster(String);

impl Cluster {
    /// Of this name.
    ///
    /// # Errors
    ///
    /// What a name has to be, for people.
    pub fn new(name: &str) -> Result<Self, String> {
        match is_resource_name(name) && name.len() <= CLUSTER_BYTES_MAX {
            true => Ok(Self(name.to_owned())),
            false => Err(format!(
                "give 1 to {CLUSTER_BYTES_MAX} characters of a-z, 0-9, - and ., with a letter or \
                 digit at both ends"
            )),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The host that a node of this cluster is.
    ///
    /// # Errors
    ///
    /// What a name has to be, for people.
    pub fn host(&self, node: &str) -> Result<Host, String> {
        let nqn = format!("{HOST}{}:{node}", self.0);
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if node.is_empty() || !node.bytes().all(is_inner) {
            return Err("give letters, digits, -, _ and .".to_owned());
        }
        if nqn.len() > NODE_ID_BYTES_MAX {
            let most = NODE_ID_BYTES_MAX - (nqn.len() - node.len());
            return Err(format!("has {} bytes; give at most {most}", node.len()));
        }
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, nqn.as_bytes());
        Ok(Host { nqn, id })
    }

    /// The host that an id of a node stands for; nothing if it is no node of this cluster.
    pub fn host_of_id(&self, node_id: &str) -> Option<Host> {
        self.host(self.node_of_id(node_id)?).ok()
    }

    /// The node of this cluster that an id stands for, as the cluster calls it; nothing if it is none.
    pub fn node_of_id<'a>(&self, node_id: &'a str) -> Option<&'a str> {
        let (cluster, node) = node_id.strip_prefix(HOST)?.split_once(':')?;
        (cluster == self.0).then_some(node)
    }
}

/// A node, as an NVMe host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its NVMe qualified name, which is the node's id too.
    pub nqn: String,
    /// Its host identifier (NVM Express Base Specification, Host Identifier): always the same for one name,
    /// as the kernel wants it.
    pub id: Uuid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_taken_stay_as_they_are() {
        for name in ["pvc-8f0c2c1e-7d0a-4a3e-9d5e-0a4a1f0e3c55", "a", "a.b-c"] {
            assert_eq!(resource_name(name).as_deref().ok(), Some(name));
        }
    }

    #[test]
    fn other_names_are_hashed_and_cannot_be_taken() {
        let long = "x".repeat(NAME_BYTES_MAX);
        let mut seen = vec![resource_name(&long).expect("as long as may be")];
        for name in ["Upper", "with space", "-a", "a-", "ümlaut", "a/b", "csi-1", " "] {
            let hashed = resource_name(name).expect("allowed by the specification");
            assert!(is_resource_name(&hashed), "{hashed}");
            assert!(!seen.contains(&hashed), "{name}");
            // Who asks for the hash itself gets something else.
            let again = resource_name(&hashed).expect("a name");
            assert_eq!(hashed == again, !hashed.starts_with(HASHED), "{name}");
            seen.push(hashed);
        }
        assert_eq!(resource_name("Upper").ok(), resource_name("Upper").ok());
        for name in ["", "a\u{0}b", "a\u{7f}", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(resource_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn fingerprints_tell_where_texts_end() {
        assert_ne!(fingerprint(&["a", "bc"]), fingerprint(&["ab", "c"]));
        assert_ne!(fingerprint(&["a"]), fingerprint(&["a", ""]));
    }

    #[test]
    fn nodes_are_hosts() {
        let cluster = Cluster::new("east").expect("a name");
        let host = cluster.host("node-1.example").expect("a name");
        assert_eq!(host.nqn, "nqn.2026-11.io.pollux:node:east:node-1.example");
        assert_eq!(cluster.host_of_id(&host.nqn), Some(host.clone()));
        assert_ne!(cluster.host("node-2").expect("a name").id, host.id);
        let west = Cluster::new("west").expect("a name");
        assert_eq!(west.host_of_id(&host.nqn), None);
        for id in [
            "",
            "node-1",
            "nqn.2026-11.io.pollux:node:east",
            "nqn.2026-11.io.pollux:node:east:a,b",
        ] {
            assert_eq!(cluster.host_of_id(id), None, "{id}");
        }
        assert!(cluster.host(&"n".repeat(200)).is_err());
        assert!(cluster.host("").is_err());
        for name in ["", "A", "a b", "a:b", &"a".repeat(64)] {
            assert!(Cluster::new(name).is_err(), "{name}");
        }
    }
}
