//! The reservation commands (NVMe Base 2.2, 7.5 to 7.8).
//!
//! A change runs as a task of its own, so that what was kept is also published when the connection is lost
//! meanwhile. A preemption that ends commands holds the whole namespace while it changes the table: once it
//! is done no command that came before it is at the device, and those of the preempted hosts that wait for
//! something find out that they were ended.

use std::rc::Rc;

use futures_channel::oneshot;
use pollux_device::{Gather, IoError};
use pollux_hugepages::Buffer;
use pollux_reactor::{spawn, timeout};

use super::attached::Attached;
use super::decode::{Offered, Plan};
use super::gate::BlockRange;
use super::guard::Exclusive;
use super::queue::Shared;
use crate::target::queue::{Execution, Outcome, Payload};
use crate::target::refusal::{Refusal, field};
use crate::target::reservation::{Action, HostId, Refused};
use crate::wire::command::{
    AcquireAction, AcquireKeys, IoOpcode, PersistChange, RegisterAction, RegisterKeys, ReleaseAction,
    ReleaseKey, ReservationChange, ReservationRegister, ReservationReport, SubmissionEntry,
};
use crate::wire::reservation::{RegistrantStatus, ReservationStatus, ReservationType};
use crate::wire::status::Status;

/// A reservation command whose fields are valid.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReservationCommand {
    Register {
        action: RegisterAction,
        ignore_existing_key: bool,
        persist: PersistChange,
    },
    Acquire {
        action: AcquireAction,
        kind: ReservationType,
    },
    Release {
        action: ReleaseAction,
        type_field: u8,
    },
    Report {
        bytes: u32,
    },
}

/// Checks a reservation command, whose namespace is this one.
#[cold]
#[inline(never)]
pub(super) fn plan(
    attached: Rc<Attached>,
    opcode: IoOpcode,
    entry: &SubmissionEntry,
    offered: Offered,
    host: &HostId,
    transfer_bytes_max: u32,
) -> Result<Plan, Refusal> {
    let reservations = &attached.namespace.reservations;
    if !reservations.are_supported() {
        return Err(Refusal::at(Status::INVALID_OPCODE, field::OPCODE));
    }
    if *host == HostId::default() {
        return Err(Refusal::of(Status::HOST_IDENTIFIER_NOT_INITIALIZED));
    }
    let (command, data_bytes) = match opcode {
        IoOpcode::ReservationRegister => {
            let command = register(entry, reservations.can_persist())?;
            (command, RegisterKeys::BYTES)
        }
        IoOpcode::ReservationAcquire => (acquire(entry)?, AcquireKeys::BYTES),
        IoOpcode::ReservationRelease => (release(entry)?, ReleaseKey::BYTES),
        _ => (report(entry, offered, transfer_bytes_max)?, 0),
    };
    if offered.from_host < data_bytes {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    Ok(Plan::Reservation { attached, command })
}

const INVALID_ACTION: Refusal = Refusal::invalid_field(field::DWORD_10);
const INVALID_TYPE: Refusal = Refusal::invalid_field(field::DWORD_10 + 1);
const INVALID_PERSIST: Refusal = Refusal::invalid_field(field::DWORD_10 + 3);

fn register(entry: &SubmissionEntry, can_persist: bool) -> Result<ReservationCommand, Refusal> {
    let fields = ReservationRegister::from_entry(entry);
    let persist = PersistChange::from_wire(fields.persist_field).ok_or(INVALID_PERSIST)?;
    if persist == PersistChange::Set && !can_persist {
        return Err(INVALID_PERSIST);
    }
    Ok(ReservationCommand::Register {
        action: RegisterAction::from_wire(fields.action_field).ok_or(INVALID_ACTION)?,
        ignore_existing_key: fields.ignore_existing_key,
        persist,
    })
}

fn acquire(entry: &SubmissionEntry) -> Result<ReservationCommand, Refusal> {
    let fields = ReservationChange::from_entry(entry);
    let action = AcquireAction::from_wire(fields.action_field).filter(|_| !fields.ignore_existing_key);
    Ok(ReservationCommand::Acquire {
        action: action.ok_or(INVALID_ACTION)?,
        kind: ReservationType::from_wire(fields.type_field).ok_or(INVALID_TYPE)?,
    })
}

fn release(entry: &SubmissionEntry) -> Result<ReservationCommand, Refusal> {
    let fields = ReservationChange::from_entry(entry);
    let action = ReleaseAction::from_wire(fields.action_field).filter(|_| !fields.ignore_existing_key);
    Ok(ReservationCommand::Release {
        action: action.ok_or(INVALID_ACTION)?,
        type_field: fields.type_field,
    })
}

fn report(
    entry: &SubmissionEntry,
    offered: Offered,
    transfer_bytes_max: u32,
) -> Result<ReservationCommand, Refusal> {
    let fields = ReservationReport::from_entry(entry);
    if !fields.extended {
        // Over fabrics a host identifier has 128 bits.
        return Err(Refusal::at(Status::HOST_IDENTIFIER_INCONSISTENT, field::DWORD_11));
    }
    let bytes = u32::try_from(fields.data_bytes()).unwrap_or(u32::MAX);
    if bytes > transfer_bytes_max {
        return Err(INVALID_ACTION);
    }
    if bytes > offered.to_host {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    Ok(ReservationCommand::Report { bytes })
}

/// Starts a reservation command.
#[cold]
#[inline(never)]
pub(super) fn start(
    queue: &Rc<Shared>,
    entry: SubmissionEntry,
    attached: Rc<Attached>,
    command: ReservationCommand,
    data: &Gather,
) -> Execution {
    if let ReservationCommand::Report { bytes } = command {
        return status_of(queue, &entry, &attached, bytes).into();
    }
    let mut keys = [0; RegisterKeys::BYTES];
    data.copy_to(&mut keys);
    let (done, ended) = oneshot::channel();
    let task_queue = queue.clone();
    spawn(async move {
        let result = change(&task_queue, &attached, command, &keys).await;
        // The one who asked may have gone away.
        let _ = done.send(result);
    })
    .detach();
    let queue = queue.clone();
    Execution::from_future(async move {
        match ended.await.unwrap_or(Err(IoError::Aborted.into())) {
            Ok(()) => Outcome::done(entry.command_id.get()),
            Err(refusal) => queue.fail(&entry, refusal),
        }
    })
}

/// What a command does, with the keys that came with it.
fn action_of(command: ReservationCommand, keys: &[u8]) -> Option<Action> {
    Some(match command {
        ReservationCommand::Register {
            action,
            ignore_existing_key,
            ..
        } => {
            let RegisterKeys { current, new } = RegisterKeys::from_bytes(keys);
            let current = (!ignore_existing_key).then_some(current);
            match action {
                RegisterAction::Register => Action::Register { key: new },
                RegisterAction::Unregister => Action::Unregister { key: current },
                RegisterAction::Replace => Action::Replace { current, new },
            }
        }
        ReservationCommand::Acquire { action, kind } => {
            let AcquireKeys { current, preempted } = AcquireKeys::from_bytes(keys);
            match action {
                AcquireAction::Acquire => Action::Acquire { key: current, kind },
                AcquireAction::Preempt | AcquireAction::PreemptAndAbort => Action::Preempt {
                    key: current,
                    preempted,
                    kind,
                },
            }
        }
        ReservationCommand::Release { action, type_field } => {
            let ReleaseKey { current } = ReleaseKey::from_bytes(keys);
            match action {
                ReleaseAction::Release => Action::Release {
                    key: current,
                    type_field,
                },
                ReleaseAction::Clear => Action::Clear { key: current },
            }
        }
        ReservationCommand::Report { .. } => return None,
    })
}

fn refusal_of(refused: Refused) -> Refusal {
    match refused {
        Refused::Conflict => Refusal::of(Status::RESERVATION_CONFLICT),
        Refused::InvalidField => Refusal::at(Status::INVALID_FIELD, field::DWORD_10 + 1),
        // No status says that there are too many registrants.
        Refused::Full => Refusal::for_now(Status::INTERNAL_ERROR),
    }
}

async fn change(
    queue: &Rc<Shared>,
    attached: &Rc<Attached>,
    command: ReservationCommand,
    keys: &[u8],
) -> Result<(), Refusal> {
    let (namespace, host) = (&attached.namespace, queue.host());
    let reservations = &namespace.reservations;
    let action = action_of(command, keys).ok_or(Refusal::of(Status::INTERNAL_ERROR))?;
    let turn = timeout(queue.wait_max, reservations.turn()).await;
    let turn = turn.unwrap_or(Err(IoError::ResourceShortage))?;
    let mut change = reservations.table().apply(*host, action).map_err(refusal_of)?;
    if let ReservationCommand::Register { persist, .. } = command {
        match persist {
            PersistChange::None => {}
            PersistChange::Clear => change.table.persist = false,
            PersistChange::Set => change.table.persist = true,
        }
    }
    let mut purge = Vec::new();
    let mut exclusive = None;
    if let ReservationCommand::Acquire {
        action: AcquireAction::PreemptAndAbort,
        ..
    } = command
    {
        purge = change.preempted;
        purge.retain(|other| other != host);
        let everything = BlockRange::new(0, u64::MAX);
        exclusive = Some(Exclusive::acquire(namespace.clone(), everything, queue.wait_max).await?);
    }
    reservations.keep(&change.table).await?;
    reservations.publish(change.table, &purge);
    drop((exclusive, turn));
    let subsystem = &queue.controller().subsystem;
    subsystem.notify_reservations(namespace.id, &change.notices);
    Ok(())
}

/// The outcome of a report: as many bytes as were asked for, zeros behind the end of the status.
fn status_of(queue: &Shared, entry: &SubmissionEntry, attached: &Attached, bytes: u32) -> Outcome {
    let table = attached.namespace.reservations.table();
    let controllers = queue.controller().subsystem.controllers();
    let controller_of = |host: &HostId| {
        let mut of_host = controllers
            .iter()
            .filter(|controller| controller.host.id == *host);
        of_host
            .next()
            .map_or(RegistrantStatus::NO_CONTROLLER, |found| found.id)
    };
    let registrants = table.registrants.iter().map(|registrant| RegistrantStatus {
        controller_id: controller_of(&registrant.host),
        status: if table.holds(&registrant.host) {
            RegistrantStatus::HOLDS
        } else {
            0
        },
        key: registrant.key,
        host: registrant.host,
    });
    let status = ReservationStatus {
        generation: table.generation,
        reservation: table.held.kind(),
        persist: table.persist,
        registrants: registrants.collect(),
    };
    let mut buffer = Buffer::from_heap(bytes as usize);
    buffer.fill(0);
    for (slot, byte) in buffer.iter_mut().zip(status.to_bytes()) {
        *slot = byte;
    }
    Outcome::data(entry.command_id.get(), Payload::Buffer(buffer))
}
