//! The admin queue of a controller, and the commands on it (NVMe Base 2.0, 5 and 6).
//!
//! Nearly every command is done when it is started: what a controller knows is behind one lock, and nothing
//! reads a device. The others are the asynchronous event request, the feature that has reservations persist,
//! and the question which blocks are allocated.

mod features;
mod health;
mod identify;
mod identify_controller;
mod lba_status;
mod log_pages;
mod reservation_features;

pub use lba_status::tell_allocated;

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll};

use pollux_hugepages::Buffer;
use pollux_reactor::{Task, now, spawn};

use super::controller::{
    Controller, Effect, EndWatch, EventRequest, QueueLink, Registration, watch_keep_alive,
};
use super::io::flush_all;
use super::placement::Lease;
use super::queue::{Command, Execution, Outcome, Payload, Queue};
use super::refusal::{Refusal, field};
use crate::wire::command::{
    Abort, AdminOpcode, CompletionEntry, FabricsCommandType, Fuse, PropertyGet, PropertySet, SubmissionEntry,
};
use crate::wire::status::Status;

/// Abort commands that a host may have outstanding; each is done at once, so that more do no harm (ACL + 1).
const ABORTS_MAX: u8 = 4;

/// Data that an admin command may bring, in bytes: that of Host Behavior Support is the most there is.
const COMMAND_DATA_BYTES_MAX: u32 = 4096;

/// See the module.
pub(crate) struct AdminQueue {
    registration: Registration,
    /// Counts the connection on its reactor until it is gone.
    lease: RefCell<Option<Lease>>,
    /// Ends with the connection.
    watches: RefCell<Vec<Task<()>>>,
    end: EndWatch,
    depth: u16,
}

impl AdminQueue {
    /// The admin queue of a new controller, on the current reactor.
    pub(crate) fn new(registration: Registration, lease: Lease, depth: u16) -> Self {
        let controller = Arc::downgrade(&registration.controller);
        let watches = vec![
            spawn(watch_keep_alive(controller.clone())),
            spawn(health::watch(controller)),
        ];
        Self {
            end: EndWatch::new(registration.link.clone()),
            registration,
            lease: RefCell::new(Some(lease)),
            watches: RefCell::new(watches),
            depth,
        }
    }

    fn controller(&self) -> &Arc<Controller> {
        &self.registration.controller
    }

    fn link(&self) -> &Arc<QueueLink> {
        &self.registration.link
    }

    fn fail(&self, entry: &SubmissionEntry, refusal: Refusal) -> Outcome {
        self.controller()
            .record_failure(self.link().id, entry, &refusal, 0);
        Outcome::failed(entry.command_id.get(), refusal.status)
    }

    fn start(&self, command: &Command) -> Result<Execution, Refusal> {
        let entry = &command.entry;
        let opcode = self.check(entry)?;
        let controller = self.controller();
        let command_id = entry.command_id.get();
        let done = match opcode {
            AdminOpcode::Fabrics => self.fabrics(entry)?,
            AdminOpcode::Identify => identify::execute(controller, command)?,
            AdminOpcode::GetLogPage => log_pages::execute(controller, command)?,
            AdminOpcode::GetFeatures => features::get(controller, command)?,
            AdminOpcode::SetFeatures => return features::set(controller, command),
            AdminOpcode::GetLbaStatus => return lba_status::start(controller, command),
            AdminOpcode::AsynchronousEventRequest => return self.request_event(command_id),
            AdminOpcode::Abort => self.abort(entry),
            AdminOpcode::KeepAlive => {
                controller.with(|state| state.keep_alive.restart(now()));
                Outcome::done(command_id)
            }
            _ => return Err(Refusal::at(Status::INVALID_OPCODE, field::OPCODE)),
        };
        Ok(done.into())
    }

    /// Whether the command may be executed now at all.
    fn check(&self, entry: &SubmissionEntry) -> Result<AdminOpcode, Refusal> {
        if self.link().ended().is_some() {
            return Err(Refusal::for_now(Status::ABORTED_QUEUE_DELETED));
        }
        let opcode = AdminOpcode::from_wire(entry.opcode)
            .filter(|opcode| is_supported(*opcode))
            .ok_or(Refusal::at(Status::INVALID_OPCODE, field::OPCODE))?;
        if entry.fuse() != Fuse::None {
            return Err(Refusal::invalid_field(field::FLAGS));
        }
        // A discovery controller has no namespaces.
        if opcode == AdminOpcode::GetLbaStatus && self.controller().is_discovery() {
            return Err(Refusal::at(Status::INVALID_OPCODE, field::OPCODE));
        }
        let enabled = self.controller().with(|state| state.registers.is_enabled());
        if opcode != AdminOpcode::Fabrics && !enabled {
            return Err(Refusal::of(Status::COMMAND_SEQUENCE_ERROR));
        }
        Ok(opcode)
    }

    fn fabrics(&self, entry: &SubmissionEntry) -> Result<Outcome, Refusal> {
        let command_id = entry.command_id.get();
        let controller = self.controller();
        match entry.fabrics_command_type() {
            Some(FabricsCommandType::PropertyGet) => {
                let get = PropertyGet::from_entry(entry).ok_or(Refusal::invalid_field(field::DWORD_10))?;
                Ok(Outcome::result(command_id, controller.get_property(get)?))
            }
            Some(FabricsCommandType::PropertySet) => {
                let set = PropertySet::from_entry(entry).ok_or(Refusal::invalid_field(field::DWORD_10))?;
                match controller.set_property(set)? {
                    Effect::None | Effect::Reset => {}
                    Effect::Shutdown(number) => begin_shutdown(controller, number),
                }
                Ok(Outcome::done(command_id))
            }
            // The queue is connected already.
            Some(FabricsCommandType::Connect) => Err(Refusal::of(Status::COMMAND_SEQUENCE_ERROR)),
            // Only I/O queues are disconnected (NVMe Base 2.0, 6.4).
            Some(FabricsCommandType::Disconnect) => {
                Err(Refusal::at(Status::INVALID_QUEUE_TYPE, field::NAMESPACE))
            }
            // No authentication is required here.
            Some(FabricsCommandType::AuthenticationSend | FabricsCommandType::AuthenticationReceive)
            | None => Err(Refusal::at(Status::INVALID_OPCODE, field::NAMESPACE)),
        }
    }

    fn request_event(&self, command_id: u16) -> Result<Execution, Refusal> {
        let request: EventRequest = self.controller().request_event(command_id).map_err(Refusal::of)?;
        Ok(Execution::from_future(async move {
            let entry = request.await;
            Outcome {
                entry,
                ..Outcome::done(entry.command_id.get())
            }
        }))
    }

    fn abort(&self, entry: &SubmissionEntry) -> Outcome {
        let abort = Abort::from_entry(entry);
        let aborted = if abort.queue_id == 0 {
            self.controller()
                .with(|state| state.events.abort(abort.command_id))
        } else {
            self.controller()
                .queue(abort.queue_id)
                .is_some_and(|link| link.abort(abort.command_id))
        };
        let result = if aborted { 0 } else { Abort::NOT_ABORTED };
        Outcome::result(entry.command_id.get(), result.into())
    }
}

/// The admin commands there are, all but one of them on I/O and discovery controllers alike.
fn is_supported(opcode: AdminOpcode) -> bool {
    matches!(
        opcode,
        AdminOpcode::Fabrics
            | AdminOpcode::Identify
            | AdminOpcode::GetLogPage
            | AdminOpcode::GetFeatures
            | AdminOpcode::SetFeatures
            | AdminOpcode::AsynchronousEventRequest
            | AdminOpcode::Abort
            | AdminOpcode::KeepAlive
            | AdminOpcode::GetLbaStatus
    )
}

/// Brings everything to stable media, then tells the host that the shutdown is complete.
fn begin_shutdown(controller: &Arc<Controller>, number: u64) {
    let controller = controller.clone();
    spawn(async move {
        let flushed = flush_all(&controller.subsystem).await;
        controller.with(|state| state.registers.shutdown_done(number, flushed));
    })
    .detach();
}

/// The outcome that returns these bytes, of which the host takes all.
fn data(command: &Command, bytes: &[u8]) -> Result<Outcome, Refusal> {
    if (command.transfer_bytes_max as usize) < bytes.len() {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    let mut buffer = Buffer::from_heap(bytes.len());
    buffer.copy_from_slice(bytes);
    Ok(Outcome::data(
        command.entry.command_id.get(),
        Payload::Buffer(buffer),
    ))
}

impl Queue for AdminQueue {
    fn submit(&self, command: Command) -> Execution {
        match self.start(&command) {
            Ok(execution) => execution,
            Err(refusal) => self.fail(&command.entry, refusal).into(),
        }
    }

    fn refuse_early(&self, entry: &SubmissionEntry, transfer_bytes: u32) -> Option<CompletionEntry> {
        let refusal = match self.check(entry) {
            Err(refusal) => refusal,
            Ok(_) if transfer_bytes > COMMAND_DATA_BYTES_MAX => {
                Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA)
            }
            Ok(_) => return None,
        };
        Some(self.fail(entry, refusal).entry)
    }

    fn data_align_bytes(&self, _entry: &SubmissionEntry) -> usize {
        1
    }

    fn depth(&self) -> u16 {
        self.depth
    }

    fn touch(&self) {
        self.link().touch();
    }

    fn poll_terminated(&self, context: &mut Context<'_>) -> Poll<&'static str> {
        self.end.poll(context)
    }

    fn closed(&self) {
        self.lease.take();
        self.watches.take();
        self.controller().end("the admin queue is gone");
    }
}
