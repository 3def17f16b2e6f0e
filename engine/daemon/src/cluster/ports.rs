//! How the replicas of a volume are reached: those of this engine directly, others by calls.

use std::rc::Rc;
use std::sync::Arc;

use pollux_api::control::v1::TargetConfig;
use pollux_device::DeviceUri;
use pollux_reactor::ReactorHandle;
use pollux_trace::Origin;
use pollux_volume::replica::ReplicaPort;
use uuid::Uuid;

use super::record::{RecordError, uuid};
use crate::replicas::{Calls, LocalReplica, RemoteReplica, Replicas, SessionOptions};
use crate::settings::ControlAddress;

/// Where an engine is called.
fn address(text: &str) -> Option<ControlAddress> {
    let tcp = text.parse().ok().map(ControlAddress::Tcp);
    tcp.or_else(|| text.parse().ok())
}

/// The way to one replica, which may be taken on any reactor.
#[derive(Clone)]
pub(super) enum Route {
    /// It is on this engine.
    Local(LocalReplica),
    /// It is on another one.
    Remote(RemoteReplica),
}

/// See the module.
pub(super) struct Ports {
    /// The replicas of this engine.
    pub(super) replicas: Arc<Replicas>,
    /// Calls of others.
    pub(super) calls: Calls,
    /// This node.
    pub(super) node: String,
    /// How sessions with others are to be.
    pub(super) sessions: SessionOptions,
}

impl Ports {
    /// The ways to the replicas of a volume, for whoever the present span is for. One whose engine has no
    /// address that could be called is left out: it cannot be reached.
    ///
    /// # Errors
    ///
    /// [`RecordError::Uuid`].
    pub(super) fn routes(&self, told: &TargetConfig) -> Result<Vec<(Uuid, Route)>, RecordError> {
        let volume = uuid(&told.volume_uid)?;
        let calls = self.calls.for_origin(Origin::current());
        let mut routes = Vec::with_capacity(told.replicas.len());
        for replica in &told.replicas {
            let id = uuid(&replica.uid)?;
            if replica.node == self.node {
                let local = self.replicas.local_port(volume, id);
                routes.push((id, Route::Local(local)));
                continue;
            }
            // Addresses off the loopback interface are called too: who may answer is a matter of
            // certificates, without which nobody listens there.
            match address(&replica.address) {
                Some(address) => {
                    let (calls, sessions) = (calls.clone(), self.sessions.clone());
                    let remote = RemoteReplica::new(calls, address, volume, id, sessions);
                    routes.push((id, Route::Remote(remote)));
                }
                None => {
                    let (node, address) = (&replica.node, &replica.address);
                    tracing::error!(replica = %id, node, address, "this is no address that can be called");
                }
            }
        }
        Ok(routes)
    }

    /// The reactor that has the replica of this engine, if there is one.
    pub(super) fn reactor_of(&self, routes: &[(Uuid, Route)]) -> Option<ReactorHandle> {
        let mut local = routes
            .iter()
            .filter(|(_, route)| matches!(route, Route::Local(_)));
        local.find_map(|(id, _)| self.replicas.reactor_of(*id))
    }

    /// The device of the replica of this engine, if it has one.
    pub(super) fn device_of(&self, told: &TargetConfig) -> Option<DeviceUri> {
        let mut local = told.replicas.iter().filter(|replica| replica.node == self.node);
        local.find_map(|replica| self.replicas.device_of(uuid(&replica.uid).ok()?))
    }

    /// The same ways, for the mirror of this reactor.
    pub(super) fn open(routes: &[(Uuid, Route)]) -> Vec<(Uuid, Rc<dyn ReplicaPort>)> {
        let port = |route: &Route| -> Rc<dyn ReplicaPort> {
            match route {
                Route::Local(local) => Rc::new(local.clone()),
                Route::Remote(remote) => Rc::new(remote.clone()),
            }
        };
        routes.iter().map(|(id, route)| (*id, port(route))).collect()
    }
}
