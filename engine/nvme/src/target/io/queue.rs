//! An I/O queue.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pollux_hugepages::BufferPool;
use pollux_reactor::buffers;

use super::decode::{Offered, Plan, plan};
use super::fused::Pairs;
use super::view::{Lookup, View};
use super::{fused, ranges, reservations, transfer};
use crate::target::controller::{Controller, EndWatch, QueueLink, Registration};
use crate::target::placement::Lease;
use crate::target::queue::{Command, Execution, Outcome, Queue};
use crate::target::refusal::{Refusal, field};
use crate::target::reservation::HostId;
use crate::wire::command::{
    BlockCommand, CompletionEntry, FabricsCommandType, Fuse, IoOpcode, OPCODE_FABRICS, SubmissionEntry,
};
use crate::wire::status::Status;

/// What the commands of a queue share. It lives until the last of them has left the device.
pub(super) struct Shared {
    pub(super) view: Rc<View>,
    pub(super) pool: BufferPool,
    pub(super) pairs: RefCell<Pairs>,
    pub(super) transfer_bytes_max: u32,
    /// How long a command waits for what is short.
    pub(super) wait_max: Duration,
    registration: Registration,
}

/// See the module.
pub(crate) struct IoQueue {
    shared: Rc<Shared>,
    /// Counts the connection on its reactor until it is gone.
    lease: RefCell<Option<Lease>>,
    end: EndWatch,
    depth: u16,
}

impl IoQueue {
    /// A queue on the current reactor.
    pub(crate) fn new(registration: Registration, lease: Lease, depth: u16) -> Self {
        let end = EndWatch::new(registration.link.clone());
        let controller = &registration.controller;
        let shared = Shared {
            view: View::obtain(&controller.subsystem),
            pool: buffers(),
            pairs: RefCell::default(),
            transfer_bytes_max: controller.config.transfer_bytes_max,
            wait_max: Duration::from_millis(controller.config.resource_wait_ms.into()),
            registration,
        };
        Self {
            shared: Rc::new(shared),
            lease: RefCell::new(Some(lease)),
            end,
            depth,
        }
    }
}

impl Shared {
    pub(super) fn controller(&self) -> &Arc<Controller> {
        &self.registration.controller
    }

    pub(super) fn link(&self) -> &Arc<QueueLink> {
        &self.registration.link
    }

    /// The identifier of its host.
    pub(super) fn host(&self) -> &HostId {
        &self.registration.controller.host.id
    }

    /// The outcome of a command that failed, which is remembered.
    #[cold]
    pub(super) fn fail(&self, entry: &SubmissionEntry, refusal: Refusal) -> Outcome {
        let names_blocks = matches!(
            IoOpcode::from_wire(entry.opcode),
            Some(
                IoOpcode::Read
                    | IoOpcode::Write
                    | IoOpcode::Compare
                    | IoOpcode::WriteZeroes
                    | IoOpcode::Verify
            )
        );
        let block = if names_blocks {
            BlockCommand::from_entry(entry).starting_block
        } else {
            0
        };
        self.controller()
            .record_failure(self.link().id, entry, &refusal, block);
        Outcome::failed(entry.command_id.get(), self.controller().told(refusal.status))
    }

    fn start(self: &Rc<Self>, command: Command) -> Execution {
        let entry = command.entry;
        if self.link().ended().is_some() {
            return self
                .fail(&entry, Refusal::for_now(Status::ABORTED_QUEUE_DELETED))
                .into();
        }
        if entry.opcode == OPCODE_FABRICS {
            return self.fabrics(&entry).into();
        }
        if entry.fuse() != Fuse::None {
            return fused::start(self, command);
        }
        let offered = Offered {
            from_host: command.data.len_bytes(),
            to_host: command.transfer_bytes_max,
        };
        match plan(&self.view, &entry, offered, self.host(), self.transfer_bytes_max) {
            Err(refusal) => self.fail(&entry, refusal).into(),
            Ok(Plan::Transfer(planned)) => transfer::start(self, entry, planned, command.data),
            Ok(Plan::Reservation {
                attached,
                command: planned,
            }) => reservations::start(self, entry, attached, planned, &command.data),
            Ok(planned) => ranges::start(self, entry, planned, command.data),
        }
    }

    fn fabrics(&self, entry: &SubmissionEntry) -> Outcome {
        match entry.fabrics_command_type() {
            Some(FabricsCommandType::Disconnect) => {
                // Record format: the only one is 0 (NVMe Base 2.0, 6.4).
                if entry.cdw10.get() & 0xffff != 0 {
                    return self.fail(
                        entry,
                        Refusal::at(Status::CONNECT_INCOMPATIBLE_FORMAT, field::DWORD_10),
                    );
                }
                Outcome {
                    disconnect: true,
                    ..Outcome::done(entry.command_id.get())
                }
            }
            // The queue is connected already.
            Some(FabricsCommandType::Connect) => {
                self.fail(entry, Refusal::of(Status::COMMAND_SEQUENCE_ERROR))
            }
            // Properties are for the admin queue; no authentication is required here.
            Some(
                FabricsCommandType::PropertyGet
                | FabricsCommandType::PropertySet
                | FabricsCommandType::AuthenticationSend
                | FabricsCommandType::AuthenticationReceive,
            )
            | None => self.fail(entry, Refusal::at(Status::INVALID_OPCODE, field::NAMESPACE)),
        }
    }
}

impl Queue for IoQueue {
    fn submit(&self, command: Command) -> Execution {
        self.shared.start(command)
    }

    fn refuse_early(&self, entry: &SubmissionEntry, transfer_bytes: u32) -> Option<CompletionEntry> {
        if entry.opcode == OPCODE_FABRICS {
            return None;
        }
        let offered = Offered {
            from_host: transfer_bytes as usize,
            to_host: 0,
        };
        let shared = &self.shared;
        let refusal = plan(
            &shared.view,
            entry,
            offered,
            shared.host(),
            shared.transfer_bytes_max,
        )
        .err()?;
        if entry.fuse() == Fuse::None {
            return Some(self.shared.fail(entry, refusal).entry);
        }
        // It is submitted without its data, fails there, and is remembered then.
        Some(CompletionEntry::new(entry.command_id.get(), refusal.status, 0))
    }

    fn fused_interrupted(&self) {
        fused::interrupt(&self.shared);
    }

    fn data_align_bytes(&self, entry: &SubmissionEntry) -> usize {
        match self.shared.view.find(entry.namespace_id.get()) {
            Lookup::Active(attached) if entry.opcode != OPCODE_FABRICS => {
                attached.memory_align_bytes as usize
            }
            Lookup::Active(_) | Lookup::Inactive | Lookup::Invalid => 1,
        }
    }

    fn depth(&self) -> u16 {
        self.depth
    }

    fn touch(&self) {
        self.shared.link().touch();
    }

    fn poll_terminated(&self, context: &mut Context<'_>) -> Poll<&'static str> {
        self.end.poll(context)
    }

    fn closed(&self) {
        self.lease.take();
    }
}
