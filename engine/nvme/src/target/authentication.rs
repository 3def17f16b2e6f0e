//! A queue whose host has to say who it is before anything else (NVMe Base 2.2, 8.3.4.2).
//!
//! Only queues of hosts with credentials are wrapped like this; those of others know nothing of it.
//!
//! Invariants:
//! - Until the host is authenticated nothing but authentication commands gets to the queue behind.
//! - A host that is authenticated stays so while it authenticates again; when that fails the connection ends.
//! - A transaction that stands still is forgotten; the first one of a queue takes the connection with it.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pollux_hugepages::Buffer;
use pollux_reactor::{Instant, Task, now, random_u64, sleep, spawn};

use super::controller::{Controller, QueueLink};
use super::queue::{Command, Execution, Outcome, Payload, Queue};
use super::refusal::{Refusal, field};
use crate::auth::{ControllerSide, Credentials, Names, Progress};
use crate::wire::auth::{AuthenticationCommand, MESSAGE_BYTES_MAX};
use crate::wire::command::{CompletionEntry, FabricsCommandType, SubmissionEntry};
use crate::wire::status::Status;

/// How long a transaction may stand still where there is no keep alive timer (Base 2.2, 8.3.4.2).
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);

/// Data of an authentication command, in bytes: what hosts send, and what they are sent at most.
const DATA_BYTES_MAX: usize = 4096;
const _: () = assert!(MESSAGE_BYTES_MAX <= DATA_BYTES_MAX);

/// What the task that watches the time shares with the queue.
struct Shared {
    side: RefCell<ControllerSide>,
    authenticated: Cell<bool>,
    /// An authentication failed: the connection ends.
    failed: Cell<bool>,
    /// When the host moved last.
    moved: Cell<Instant>,
    controller: Arc<Controller>,
    link: Arc<QueueLink>,
}

/// See the module.
pub(crate) struct GuardedQueue {
    shared: Rc<Shared>,
    inner: Rc<dyn Queue>,
    _watch: Task<()>,
}

impl GuardedQueue {
    /// Guards a queue, on the current reactor.
    pub(crate) fn new(
        inner: Rc<dyn Queue>,
        controller: Arc<Controller>,
        link: Arc<QueueLink>,
        credentials: &Credentials,
    ) -> Self {
        let names = Names {
            host: controller.host.nqn.clone(),
            subsystem: controller.subsystem.nqn.clone(),
        };
        let timeout = match controller.with(|state| state.keep_alive.timeout_ms()) {
            0 => TIMEOUT_DEFAULT,
            timeout_ms => Duration::from_millis(timeout_ms.into()),
        };
        let shared = Rc::new(Shared {
            side: RefCell::new(ControllerSide::new(credentials.clone(), names)),
            authenticated: Cell::new(false),
            failed: Cell::new(false),
            moved: Cell::new(now()),
            controller,
            link,
        });
        Self {
            _watch: spawn(watch(Rc::downgrade(&shared), timeout)),
            shared,
            inner,
        }
    }

    /// Whether a command is one that may come before the host is authenticated.
    fn kind_of(entry: &SubmissionEntry) -> Option<FabricsCommandType> {
        entry.fabrics_command_type().filter(|kind| {
            matches!(
                kind,
                FabricsCommandType::AuthenticationSend | FabricsCommandType::AuthenticationReceive
            )
        })
    }

    fn refuse(&self, entry: &SubmissionEntry, refusal: Refusal) -> Outcome {
        let shared = &self.shared;
        shared
            .controller
            .record_failure(shared.link.id, entry, &refusal, 0);
        Outcome::failed(entry.command_id.get(), refusal.status)
    }
}

const NOT_AUTHENTICATED: Refusal = Refusal::of(Status::AUTHENTICATION_REQUIRED);

impl Shared {
    fn check(entry: &SubmissionEntry) -> Result<AuthenticationCommand, Refusal> {
        let fields = AuthenticationCommand::from_entry(entry);
        if !fields.is_nvme {
            return Err(Refusal::invalid_field(field::DWORD_10));
        }
        if fields.bytes == 0 {
            return Err(Refusal::invalid_field(field::DWORD_11));
        }
        Ok(fields)
    }

    /// Authentication Send (Base 2.2, 6.2).
    fn send(&self, command: &Command) -> Result<Outcome, Refusal> {
        let fields = Self::check(&command.entry)?;
        if fields.bytes as usize > DATA_BYTES_MAX {
            return Err(Refusal::invalid_field(field::DWORD_11));
        }
        if command.data.len_bytes() < fields.bytes as usize {
            return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
        }
        if self.failed.get() {
            return Err(Refusal::of(Status::COMMAND_SEQUENCE_ERROR));
        }
        let mut message = vec![0; fields.bytes as usize];
        command.data.copy_to(&mut message);
        self.moved.set(now());
        let mut entropy = random_u64;
        let progress = self.side.borrow_mut().receive(&message, &mut entropy);
        let (host, subsystem) = (&self.controller.host.nqn, &self.controller.subsystem.nqn);
        let done = Outcome::done(command.entry.command_id.get());
        match progress {
            Progress::Answer | Progress::Complete => Ok(done),
            Progress::Authenticated => {
                self.authenticated.set(true);
                tracing::debug!(queue = self.link.id, %host, %subsystem, "authenticated");
                Ok(done)
            }
            // The connection ends once the host has been told.
            Progress::Failed(reason) => {
                tracing::warn!(queue = self.link.id, %host, %subsystem, %reason, "not authenticated");
                self.authenticated.set(false);
                self.failed.set(true);
                Ok(done)
            }
            Progress::GivenUp => {
                tracing::warn!(queue = self.link.id, %host, %subsystem, "the host gave authentication up");
                self.authenticated.set(false);
                self.failed.set(true);
                Ok(Outcome {
                    disconnect: true,
                    ..done
                })
            }
        }
    }

    /// Authentication Receive (Base 2.2, 6.1).
    fn receive(&self, command: &Command) -> Result<Outcome, Refusal> {
        let fields = Self::check(&command.entry)?;
        let mut side = self.side.borrow_mut();
        let Some(message) = side.take_message() else {
            return Err(Refusal::of(Status::COMMAND_SEQUENCE_ERROR));
        };
        self.moved.set(now());
        let room = fields.bytes.min(command.transfer_bytes_max) as usize;
        if message.len() > room {
            side.forget();
            return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
        }
        // As much as the host takes, within bounds, with zeros behind the message: some hosts wait for it.
        let mut buffer = Buffer::from_heap(message.len().max(room.min(DATA_BYTES_MAX)));
        buffer.fill(0);
        for (slot, byte) in buffer.iter_mut().zip(message) {
            *slot = byte;
        }
        Ok(Outcome {
            disconnect: self.failed.get(),
            ..Outcome::data(command.entry.command_id.get(), Payload::Buffer(buffer))
        })
    }
}

/// Forgets transactions that stand still, and ends the connection of a host that does not authenticate.
async fn watch(shared: Weak<Shared>, timeout: Duration) {
    let mut pause = timeout;
    loop {
        sleep(pause).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let idle = now().saturating_since(shared.moved.get());
        pause = if idle < timeout { timeout - idle } else { timeout };
        if idle < timeout {
            continue;
        }
        shared.side.borrow_mut().forget();
        if !shared.authenticated.get() {
            shared.link.end("the host did not authenticate in time");
            return;
        }
    }
}

impl Queue for GuardedQueue {
    fn submit(&self, command: Command) -> Execution {
        let result = match Self::kind_of(&command.entry) {
            Some(FabricsCommandType::AuthenticationSend) => self.shared.send(&command),
            Some(_) => self.shared.receive(&command),
            None if self.shared.authenticated.get() => return self.inner.submit(command),
            None => Err(NOT_AUTHENTICATED),
        };
        result
            .unwrap_or_else(|refusal| self.refuse(&command.entry, refusal))
            .into()
    }

    fn refuse_early(&self, entry: &SubmissionEntry, transfer_bytes: u32) -> Option<CompletionEntry> {
        let refusal = match Self::kind_of(entry) {
            Some(_) if transfer_bytes as usize > DATA_BYTES_MAX => {
                Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA)
            }
            Some(_) => return None,
            None if self.shared.authenticated.get() => {
                return self.inner.refuse_early(entry, transfer_bytes);
            }
            None => NOT_AUTHENTICATED,
        };
        Some(self.refuse(entry, refusal).entry)
    }

    fn fused_interrupted(&self) {
        self.inner.fused_interrupted();
    }

    fn data_align_bytes(&self, entry: &SubmissionEntry) -> usize {
        self.inner.data_align_bytes(entry)
    }

    fn depth(&self) -> u16 {
        self.inner.depth()
    }

    fn touch(&self) {
        // What a stranger sends is no sign of life of the host.
        if self.shared.authenticated.get() {
            self.inner.touch();
        }
    }

    fn poll_terminated(&self, context: &mut Context<'_>) -> Poll<&'static str> {
        self.inner.poll_terminated(context)
    }

    fn closed(&self) {
        self.inner.closed();
    }
}
