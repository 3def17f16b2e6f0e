//! The cluster that an engine is a node of.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The cluster that the engine is a node of: whom it reports to, and who may tell it what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// The name of this node, as the control plane knows it. No default.
    pub node: String,
    /// Where the control plane is called, as HOST:PORT; the next one is asked when one does not answer. No
    /// default.
    pub control: Vec<String>,
    /// Where the control plane and other engines call this one, as ADDRESS:PORT; port 0 takes a free one.
    /// Without certificates on the loopback interface only. No default.
    pub listen: SocketAddr,
    /// A directory with authority.pem, own.pem and own.key, as `pollux cert issue` makes it: then calls are
    /// by mutual TLS, in both directions. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<PathBuf>,
    /// The directory of what the engine must not forget; made if it is not there. No default.
    pub state: PathBuf,
    /// Where hosts are told to connect by NVMe/TCP. Default: where `nvmf.listen` does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<SocketAddr>,
}

impl ClusterSettings {
    /// Each field, whether it is in its bounds, and what these are.
    pub(super) fn checks(&self) -> [(&'static str, bool, &'static str); 3] {
        let is_open = self.certificates.is_some() || self.listen.ip().is_loopback();
        [
            ("cluster.node", !self.node.is_empty(), "the name of a node"),
            (
                "cluster.control",
                !self.control.is_empty() && self.control.iter().all(|address| address.contains(':')),
                "one HOST:PORT at least",
            ),
            (
                "cluster.listen",
                is_open,
                "an address of the loopback interface, unless there are certificates",
            ),
        ]
    }
}
