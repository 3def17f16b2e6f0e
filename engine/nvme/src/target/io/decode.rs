//! Checks an I/O command: what it is, whether it is allowed, and where it goes.

use std::rc::Rc;

use super::attached::Attached;
use super::gate::BlockRange;
use super::reservations::{self, ReservationCommand};
use super::view::{Lookup, View};
use crate::target::refusal::{Refusal, field};
use crate::target::reservation::{Access, HostId};
use crate::wire::command::{
    BlockCommand, BlockFlags, DatasetAttributes, DatasetManagement, IoOpcode, SubmissionEntry,
};
use crate::wire::identify::NAMESPACE_ALL;
use crate::wire::status::Status;

/// Bits 7:4 of the upper half of dword 12: the directive type (DTYPE) of a write; there are no directives.
const DIRECTIVE: u16 = 0xf << 4;

/// What data a host offers with a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offered {
    /// Sent with the command, or to be fetched, in bytes.
    pub(super) from_host: usize,
    /// Taken back at most, in bytes.
    pub(super) to_host: u32,
}

/// A command that moves blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
    Compare,
}

/// A read, write or compare.
#[derive(Clone)]
pub(super) struct Transfer {
    pub(super) direction: Direction,
    pub(super) attached: Rc<Attached>,
    pub(super) block: u64,
    pub(super) blocks: u32,
    pub(super) force_unit_access: bool,
    /// The stamp of the reservations that the command was checked under.
    pub(super) stamp: u64,
}

impl Transfer {
    pub(super) fn range(&self) -> BlockRange {
        BlockRange::new(self.block, self.blocks.into())
    }

    pub(super) fn bytes(&self) -> usize {
        (self.blocks as usize) << self.attached.block_shift
    }
}

/// What is to be done.
pub(super) enum Plan {
    /// Read, write or compare.
    Transfer(Transfer),
    /// Flush one namespace, or all.
    Flush(Option<Rc<Attached>>),
    /// Write zeros.
    WriteZeroes {
        attached: Rc<Attached>,
        command: BlockCommand,
        stamp: u64,
    },
    /// Read and throw away.
    Verify {
        attached: Rc<Attached>,
        command: BlockCommand,
    },
    /// Deallocate the ranges in the data; nothing if that was not asked for.
    Dataset {
        attached: Rc<Attached>,
        command: DatasetManagement,
        stamp: u64,
    },
    /// Look at, or change, who may access the namespace.
    Reservation {
        attached: Rc<Attached>,
        command: ReservationCommand,
    },
}

/// Makes a plan of a command other than a fabrics command.
pub(super) fn plan(
    view: &View,
    entry: &SubmissionEntry,
    offered: Offered,
    host: &HostId,
    transfer_bytes_max: u32,
) -> Result<Plan, Refusal> {
    let Some(opcode) = IoOpcode::from_wire(entry.opcode) else {
        return Err(Refusal::at(Status::INVALID_OPCODE, field::OPCODE));
    };
    let direction = match opcode {
        IoOpcode::Read => Direction::Read,
        IoOpcode::Write => Direction::Write,
        IoOpcode::Compare => Direction::Compare,
        IoOpcode::Flush => return plan_flush(view, entry, host),
        IoOpcode::WriteZeroes => {
            let (attached, command, stamp) = blocks(view, entry, host, Access::Write)?;
            writable(view, &attached, host)?;
            return Ok(Plan::WriteZeroes {
                attached,
                command,
                stamp,
            });
        }
        IoOpcode::Verify => {
            let (attached, command, _) = blocks(view, entry, host, Access::Read)?;
            return Ok(Plan::Verify { attached, command });
        }
        IoOpcode::DatasetManagement => return plan_dataset(view, entry, offered, host),
        IoOpcode::ReservationRegister
        | IoOpcode::ReservationReport
        | IoOpcode::ReservationAcquire
        | IoOpcode::ReservationRelease => {
            let attached = namespace(view, entry.namespace_id.get())?;
            return reservations::plan(attached, opcode, entry, offered, host, transfer_bytes_max);
        }
        IoOpcode::WriteUncorrectable | IoOpcode::Copy | IoOpcode::Fabrics => {
            return Err(Refusal::at(Status::INVALID_OPCODE, field::OPCODE));
        }
    };
    let access = match direction {
        Direction::Read | Direction::Compare => Access::Read,
        Direction::Write => Access::Write,
    };
    let (attached, command, stamp) = blocks(view, entry, host, access)?;
    let transfer = Transfer {
        direction,
        block: command.starting_block,
        blocks: command.blocks,
        force_unit_access: command.flags.contains(BlockFlags::FORCE_UNIT_ACCESS),
        stamp,
        attached,
    };
    let bytes = transfer.bytes();
    if bytes > transfer_bytes_max as usize {
        return Err(Refusal::invalid_field(field::DWORD_12));
    }
    let offered_bytes = match direction {
        Direction::Read => offered.to_host as usize,
        Direction::Write | Direction::Compare => offered.from_host,
    };
    if offered_bytes != bytes {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    if direction == Direction::Write {
        writable(view, &transfer.attached, host)?;
        if command.flags.bits() & DIRECTIVE != 0 {
            return Err(Refusal::invalid_field(field::DWORD_12));
        }
    }
    Ok(Plan::Transfer(transfer))
}

/// The namespace of a command that has to name one.
fn namespace(view: &View, id: u32) -> Result<Rc<Attached>, Refusal> {
    match view.find(id) {
        Lookup::Active(attached) => match attached.namespace.access().refusal() {
            None => Ok(attached),
            Some(status) => Err(Refusal::for_now(status)),
        },
        // NVMe Base 2.0, 3.2.1.4 and 3.2.1.5.
        Lookup::Inactive => Err(Refusal::invalid_field(field::NAMESPACE)),
        Lookup::Invalid => Err(Refusal::at(Status::INVALID_NAMESPACE_OR_FORMAT, field::NAMESPACE)),
    }
}

/// The namespace and range of a command that names blocks, and the stamp of its reservations.
fn blocks(
    view: &View,
    entry: &SubmissionEntry,
    host: &HostId,
    access: Access,
) -> Result<(Rc<Attached>, BlockCommand, u64), Refusal> {
    let attached = namespace(view, entry.namespace_id.get())?;
    let stamp = permitted(&attached, host, access)?;
    let command = BlockCommand::from_entry(entry);
    if command.flags.intersects(BlockFlags::PROTECTION) {
        return Err(Refusal::at(
            Status::INVALID_PROTECTION_INFORMATION,
            field::DWORD_12,
        ));
    }
    if !command.is_within(attached.namespace.blocks()) {
        return Err(Refusal::at(Status::LBA_OUT_OF_RANGE, field::DWORD_10));
    }
    Ok((attached, command, stamp))
}

/// No reservation keeps the host out. Returns the stamp of what says so.
#[inline]
fn permitted(attached: &Attached, host: &HostId, access: Access) -> Result<u64, Refusal> {
    attached
        .permits(host, access)
        .ok_or(Refusal::of(Status::RESERVATION_CONFLICT))
}

fn writable(view: &View, attached: &Attached, host: &HostId) -> Result<(), Refusal> {
    if attached.read_only || view.subsystem.refuses_writes_of(host) {
        return Err(Refusal::at(Status::NAMESPACE_WRITE_PROTECTED, field::NAMESPACE));
    }
    Ok(())
}

fn plan_flush(view: &View, entry: &SubmissionEntry, host: &HostId) -> Result<Plan, Refusal> {
    match entry.namespace_id.get() {
        NAMESPACE_ALL => Ok(Plan::Flush(None)),
        id => {
            let attached = namespace(view, id)?;
            permitted(&attached, host, Access::Write)?;
            Ok(Plan::Flush(Some(attached)))
        }
    }
}

fn plan_dataset(
    view: &View,
    entry: &SubmissionEntry,
    offered: Offered,
    host: &HostId,
) -> Result<Plan, Refusal> {
    let attached = namespace(view, entry.namespace_id.get())?;
    let stamp = permitted(&attached, host, Access::Write)?;
    let command = DatasetManagement::from_entry(entry);
    if offered.from_host < command.data_bytes() {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    if command.attributes.contains(DatasetAttributes::DEALLOCATE) {
        writable(view, &attached, host)?;
    }
    Ok(Plan::Dataset {
        attached,
        command,
        stamp,
    })
}
