//! Decides about Connect commands (NVMe Base 2.0, 6.3): which controller, which reactor, or why not.
//!
//! Every refusal is final for the same command (DNR), but for a subsystem that has no controller left, and
//! names the parameter at fault where the specification asks for it.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use pollux_reactor::net::Address;
use pollux_reactor::now;
use uuid::Uuid;
use zerocopy::FromBytes;

use super::Target;
use super::admin::AdminQueue;
use super::authentication::GuardedQueue;
use super::controller::{Association, Controller, Host, KeepAlive, Kind, RegisterError, Registration};
use super::io::IoQueue;
use super::placement::{Lease, QueueKind};
use super::queue::{Admission, Admitted, ConnectRequest, Queue};
use super::subsystem::Subsystem;
use crate::auth::Credentials;
use crate::wire::command::{
    CompletionEntry, Connect, ConnectData, ConnectRefusal, ConnectResult, DYNAMIC_CONTROLLER,
    FabricsCommandType,
};
use crate::wire::nqn::{Nqn, NqnError};
use crate::wire::status::Status;

/// A refused Connect: status, and dword 0 of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused {
    status: Status,
    result: u64,
}

impl Refused {
    const fn of(status: Status) -> Self {
        Self {
            status: status.without_retry(),
            result: 0,
        }
    }

    /// A parameter of the command is at fault.
    fn command(offset: u16) -> Self {
        Self::parameter(ConnectRefusal::Command { offset })
    }

    /// A parameter of the data is at fault.
    fn data(offset: u16) -> Self {
        Self::parameter(ConnectRefusal::Data { offset })
    }

    fn parameter(refusal: ConnectRefusal) -> Self {
        Self {
            status: Status::CONNECT_INVALID_PARAMETERS.without_retry(),
            result: refusal.to_result(),
        }
    }

    /// The host may try again.
    const BUSY: Self = Self {
        status: Status::CONNECT_CONTROLLER_BUSY,
        result: 0,
    };
}

impl Admission for Target {
    fn connect(&self, request: ConnectRequest) -> Result<Admitted, CompletionEntry> {
        let command_id = request.entry.command_id.get();
        self.admit(&request).map_err(|refused| {
            let why = refused.status.connect_text();
            tracing::info!(peer = %request.peer, why, "refused a Connect command");
            CompletionEntry::new(command_id, refused.status, refused.result)
        })
    }
}

impl Target {
    fn admit(&self, request: &ConnectRequest) -> Result<Admitted, Refused> {
        if request.entry.fabrics_command_type() != Some(FabricsCommandType::Connect) {
            return Err(Refused::of(Status::COMMAND_SEQUENCE_ERROR));
        }
        let connect = Connect::from_entry(&request.entry);
        if connect.record_format != Connect::RECORD_FORMAT {
            return Err(Refused::of(Status::CONNECT_INCOMPATIBLE_FORMAT));
        }
        let data = ConnectData::ref_from_bytes(&request.data)
            .map_err(|_| Refused::of(Status::DATA_SGL_LENGTH_INVALID))?;
        let subsystem = data
            .subsystem()
            .ok()
            .and_then(|nqn| self.directory.find(&nqn))
            .ok_or_else(|| Refused::data(ConnectData::SUBSYSTEM_OFFSET))?;
        let host = host_name(data).map_err(|_| Refused::data(ConnectData::HOST_OFFSET))?;
        if !subsystem.allows(&host) {
            return Err(Refused::of(Status::CONNECT_INVALID_HOST));
        }
        let host = Host {
            nqn: host,
            id: data.host_id,
        };
        self.check_size(&connect)?;
        let controller_id = data.controller_id.get();
        if connect.queue_id == 0 {
            if controller_id != DYNAMIC_CONTROLLER {
                return Err(Refused::data(ConnectData::CONTROLLER_ID_OFFSET));
            }
            self.admit_admin(request, &connect, &subsystem, host)
        } else {
            self.admit_io(request, &connect, &subsystem, controller_id, &host)
        }
    }

    fn check_size(&self, connect: &Connect) -> Result<(), Refused> {
        let entries_max = if connect.queue_id == 0 {
            self.config.admin_queue_depth_max
        } else {
            self.config.queue_depth_max
        };
        if connect.queue_size_minus_one == 0 || connect.queue_size_minus_one >= entries_max {
            return Err(Refused::command(Connect::QUEUE_SIZE_OFFSET));
        }
        Ok(())
    }

    fn admit_admin(
        &self,
        request: &ConnectRequest,
        connect: &Connect,
        subsystem: &Arc<Subsystem>,
        host: Host,
    ) -> Result<Admitted, Refused> {
        if connect.keep_alive_ms > self.config.keep_alive_max_ms {
            return Err(Refused::command(Connect::KEEP_ALIVE_OFFSET));
        }
        let discovery = subsystem.nqn.is_discovery();
        let idle_ms = discovery.then_some(self.config.discovery_idle_ms);
        let kind = if discovery {
            Kind::Discovery {
                directory: self.directory.clone(),
                reached: ip_of(&request.local),
            }
        } else {
            Kind::Io
        };
        let association = Association {
            kind,
            host,
            keep_alive: KeepAlive::new(connect.keep_alive_ms, idle_ms, now()),
            write_cache_reported: subsystem.has_volatile_write_cache(),
        };
        let controller = subsystem
            .add_controller(|id| Controller::new(id, subsystem.clone(), association))
            .ok_or(Refused::BUSY)?;
        // From here on an error has to take the controller out again.
        let admitted = controller
            .register(0)
            .map_err(|_| Refused::BUSY)
            .and_then(|registration| self.place(request, connect, registration, QueueKind::Admin));
        if admitted.is_err() {
            controller.end("its admin queue could not be placed");
        } else {
            tracing::info!(
                controller = controller.id,
                subsystem = %subsystem.nqn,
                host = %controller.host.nqn,
                peer = %request.peer,
                "controller made"
            );
        }
        admitted
    }

    fn admit_io(
        &self,
        request: &ConnectRequest,
        connect: &Connect,
        subsystem: &Arc<Subsystem>,
        controller_id: u16,
        host: &Host,
    ) -> Result<Admitted, Refused> {
        let controller = subsystem
            .controller(controller_id)
            .ok_or_else(|| Refused::data(ConnectData::CONTROLLER_ID_OFFSET))?;
        if controller.host.nqn != host.nqn {
            return Err(Refused::data(ConnectData::HOST_OFFSET));
        }
        if controller.host.id != host.id {
            return Err(Refused::data(ConnectData::HOST_ID_OFFSET));
        }
        if controller.is_discovery() || connect.queue_id > controller.io_queues_max() {
            return Err(Refused::command(Connect::QUEUE_ID_OFFSET));
        }
        let registration = controller
            .register(connect.queue_id)
            .map_err(|error| match error {
                RegisterError::Ended => Refused::data(ConnectData::CONTROLLER_ID_OFFSET),
                RegisterError::Disabled | RegisterError::Duplicate => {
                    Refused::of(Status::COMMAND_SEQUENCE_ERROR)
                }
            })?;
        self.place(request, connect, registration, QueueKind::Io)
    }

    /// Picks a reactor and promises the queue there.
    fn place(
        &self,
        request: &ConnectRequest,
        connect: &Connect,
        registration: Registration,
        kind: QueueKind,
    ) -> Result<Admitted, Refused> {
        let controller = &registration.controller;
        let credentials = controller.subsystem.credentials(&controller.host.nqn);
        let lease = self.placement.place(kind).ok_or(Refused::BUSY)?;
        let reactor = lease.reactor().clone();
        // Checked before: less than the most entries of a queue.
        let depth = connect.queue_size_minus_one.saturating_add(1);
        let command_id = request.entry.command_id.get();
        let result = ConnectResult {
            controller_id: registration.controller.id,
            authentication: match &credentials {
                Some(_) => ConnectResult::AUTHENTICATION_REQUIRED,
                None => 0,
            },
        };
        let response = CompletionEntry::new(command_id, Status::SUCCESS, result.to_result());
        let make_queue = Box::new(move || (make(kind, registration, credentials, lease, depth), response));
        Ok(Admitted { reactor, make_queue })
    }
}

fn make(
    kind: QueueKind,
    registration: Registration,
    credentials: Option<Arc<Credentials>>,
    lease: Lease,
    depth: u16,
) -> Rc<dyn Queue> {
    let (controller, link) = (registration.controller.clone(), registration.link.clone());
    let queue: Rc<dyn Queue> = match kind {
        QueueKind::Admin => Rc::new(AdminQueue::new(registration, lease, depth)),
        QueueKind::Io => Rc::new(IoQueue::new(registration, lease, depth)),
    };
    match credentials {
        Some(credentials) => Rc::new(GuardedQueue::new(queue, controller, link, &credentials)),
        None => queue,
    }
}

/// The host's name. SPDK's own tools leave it empty; such a host goes by its identifier.
fn host_name(data: &ConnectData) -> Result<Nqn, NqnError> {
    if data.host_field.iter().all(|&byte| byte == 0) {
        return Ok(Nqn::from_uuid(Uuid::from_bytes(data.host_id)));
    }
    data.host()
}

fn ip_of(address: &Address) -> Option<IpAddr> {
    match address {
        Address::Tcp(address) => Some(address.ip()),
        Address::Unix(_) => None,
    }
}
