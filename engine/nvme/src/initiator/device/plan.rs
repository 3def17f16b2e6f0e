//! From requests of a block device to commands that a controller takes.

use pollux_device::{Gather, Geometry, IoError, Request};
use pollux_hugepages::{Buffer, Slice};
use zerocopy::IntoBytes;

use super::super::connection::Transfer;
use super::super::controller::ControllerDescription;
use super::super::namespace::Namespace;
use super::options::DeallocateBy;
use crate::wire::command::{
    BlockCommand, BlockFlags, DatasetAttributes, DatasetManagement, DatasetRange, IoOpcode, SglDescriptor,
    SubmissionEntry,
};

/// What commands may be like. The same for the life of a device: a controller that allows less later is
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Most blocks of a command with data.
    pub(super) transfer_blocks_max: u32,
    /// Most blocks of Write Zeroes; 0 when it is not supported.
    pub(super) zero_blocks_max: u32,
    /// Write Zeroes may free the space.
    pub(super) zeroes_deallocate: bool,
    /// Blocks are freed by Dataset Management.
    pub(super) dataset: bool,
    pub(super) compare: bool,
    /// Completed writes may be in a volatile cache.
    pub(super) volatile_write_cache: bool,
    pub(super) block_bytes: u32,
}

impl Limits {
    pub(super) fn new(controller: &ControllerDescription, namespace: &Namespace, by: DeallocateBy) -> Self {
        let block_bytes = namespace.geometry.block_bytes.max(1);
        let transfer_blocks_max = controller.transfer_bytes_max / block_bytes;
        let zero_blocks_max = controller
            .write_zeroes_bytes_max
            .map_or(u64::MAX, |bytes| bytes / u64::from(block_bytes));
        let zero_blocks_max = u32::try_from(zero_blocks_max).unwrap_or(u32::MAX);
        Self {
            transfer_blocks_max: transfer_blocks_max.clamp(1, BlockCommand::BLOCKS_MAX),
            zero_blocks_max: if namespace.write_zeroes {
                zero_blocks_max.clamp(1, BlockCommand::BLOCKS_MAX)
            } else {
                0
            },
            zeroes_deallocate: namespace.write_zeroes_deallocates,
            dataset: by == DeallocateBy::Dataset && namespace.dataset_deallocates,
            compare: namespace.compare,
            volatile_write_cache: namespace.geometry.volatile_write_cache,
            block_bytes,
        }
    }

    /// Whether all that is possible under `earlier` limits is possible under these.
    pub(super) fn cover(&self, earlier: &Self) -> bool {
        let kept = |before: bool, now: bool| now || !before;
        self.block_bytes == earlier.block_bytes
            && self.transfer_blocks_max >= earlier.transfer_blocks_max
            && self.zero_blocks_max >= earlier.zero_blocks_max
            && kept(earlier.zeroes_deallocate, self.zeroes_deallocate)
            && kept(earlier.dataset, self.dataset)
            && kept(earlier.compare, self.compare)
            // A cache that was not there would make completed writes volatile that nobody flushes.
            && kept(self.volatile_write_cache, earlier.volatile_write_cache)
    }
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write {
        force_unit_access: bool,
    },
    Compare,
    WriteZeroes {
        force_unit_access: bool,
        may_deallocate: bool,
    },
    /// By Dataset Management.
    Deallocate,
    Flush,
}

impl Action {
    /// Whether data changes.
    pub(super) fn is_mutation(self) -> bool {
        match self {
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::Deallocate => true,
            Self::Read | Self::Compare | Self::Flush => false,
        }
    }

    /// Whether what it changed may be in a volatile cache when it has completed, if there is one.
    pub(super) fn may_be_volatile(self) -> bool {
        match self {
            Self::Write { force_unit_access }
            | Self::WriteZeroes {
                force_unit_access, ..
            } => !force_unit_access,
            Self::Deallocate => true,
            Self::Read | Self::Compare | Self::Flush => false,
        }
    }
}

/// What a command does, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub(super) action: Action,
    block: u64,
    blocks: u32,
}

/// One command, to be sent as often as it takes.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) operation: Operation,
    /// Its data while it is not being sent.
    pub(super) transfer: Transfer,
}

impl Command {
    pub(super) fn flush() -> Self {
        let operation = Operation {
            action: Action::Flush,
            block: 0,
            blocks: 0,
        };
        Self {
            operation,
            transfer: Transfer::None,
        }
    }
}

impl Operation {
    /// The submission queue entry for a namespace.
    #[inline]
    pub(super) fn entry(&self, namespace_id: u32) -> SubmissionEntry {
        let data = SglDescriptor::transport(0);
        let (opcode, flags) = match self.action {
            Action::Flush => return SubmissionEntry::new(IoOpcode::Flush.to_wire(), 0, namespace_id),
            Action::Deallocate => {
                let attributes = DatasetAttributes::DEALLOCATE;
                return DatasetManagement {
                    ranges: 1,
                    attributes,
                }
                .to_entry(0, namespace_id, data);
            }
            Action::Read => (IoOpcode::Read, BlockFlags::empty()),
            Action::Compare => (IoOpcode::Compare, BlockFlags::empty()),
            Action::Write { force_unit_access } => (IoOpcode::Write, forced(force_unit_access)),
            Action::WriteZeroes {
                force_unit_access,
                may_deallocate,
            } => {
                let deallocate = if may_deallocate {
                    BlockFlags::DEALLOCATE
                } else {
                    BlockFlags::empty()
                };
                (IoOpcode::WriteZeroes, forced(force_unit_access) | deallocate)
            }
        };
        BlockCommand {
            starting_block: self.block,
            blocks: self.blocks,
            flags,
        }
        .to_entry(opcode, 0, namespace_id, data)
    }
}

fn forced(force_unit_access: bool) -> BlockFlags {
    if force_unit_access {
        BlockFlags::FORCE_UNIT_ACCESS
    } else {
        BlockFlags::empty()
    }
}

/// What a request takes.
#[derive(Debug)]
pub(super) enum Plan {
    /// Nothing at all: it is about no blocks. The buffer of a read comes back.
    Nothing(Transfer),
    /// A flush.
    Flush,
    /// One command.
    One(Command),
    /// Several.
    Many(Pieces),
}

/// The commands of a request that is too large for one, in order.
#[derive(Debug)]
pub(super) struct Pieces {
    action: Action,
    block: u64,
    blocks_left: u64,
    blocks_max: u32,
    data: PieceData,
    block_bytes: u32,
}

#[derive(Debug)]
enum PieceData {
    None,
    /// The rest of a buffer.
    Receive(Buffer),
    /// All of the data, and how much of it is used.
    Send(Gather, usize),
    /// Zeros, written for want of a command for it.
    Zeroes,
    /// A range for Dataset Management.
    Range,
}

impl PieceData {
    /// All of it, for one command.
    fn whole(self, block: u64, blocks: u32, block_bytes: u32) -> Transfer {
        match self {
            Self::None => Transfer::None,
            Self::Receive(buffer) => Transfer::Receive(buffer),
            Self::Send(data, _) => Transfer::Send(data),
            Self::Zeroes => zeroes_of(blocks, block_bytes),
            Self::Range => range_of(block, blocks),
        }
    }
}

fn zeroes_of(blocks: u32, block_bytes: u32) -> Transfer {
    Transfer::Send(Slice::zeroes(blocks as usize * block_bytes as usize).into())
}

fn range_of(block: u64, blocks: u32) -> Transfer {
    Transfer::Send(Slice::copy_from(DatasetRange::new(block, blocks).as_bytes()).into())
}

impl Plan {
    /// Plans a request that was checked against the geometry.
    ///
    /// # Errors
    ///
    /// [`IoError::Unsupported`] for what the controller does not do.
    pub(super) fn new(request: Request, geometry: &Geometry, limits: &Limits) -> Result<Self, IoError> {
        let range = request.range(geometry);
        let (action, data, blocks_max) = match request {
            Request::Flush => return Ok(Self::Flush),
            Request::Read { into, .. } => {
                (Action::Read, PieceData::Receive(into), limits.transfer_blocks_max)
            }
            Request::Write {
                from,
                force_unit_access,
                ..
            } => {
                let action = Action::Write { force_unit_access };
                (action, PieceData::Send(from, 0), limits.transfer_blocks_max)
            }
            Request::Compare { with, .. } if limits.compare || with.len_bytes() == 0 => (
                Action::Compare,
                PieceData::Send(with, 0),
                limits.transfer_blocks_max,
            ),
            Request::Compare { .. } => return Err(IoError::Unsupported),
            Request::Deallocate { .. } if limits.dataset => (Action::Deallocate, PieceData::Range, u32::MAX),
            Request::Deallocate { .. } => zeroes(false, true, limits),
            Request::WriteZeroes { options, .. } => {
                zeroes(options.force_unit_access, options.may_deallocate, limits)
            }
        };
        let (block, blocks) = range.ok_or(IoError::InvalidField)?;
        let block_bytes = limits.block_bytes;
        Ok(match u32::try_from(blocks) {
            Ok(0) => Self::Nothing(match data {
                PieceData::Receive(buffer) => Transfer::Receive(buffer),
                _ => Transfer::None,
            }),
            Ok(blocks) if blocks <= blocks_max => {
                let operation = Operation {
                    action,
                    block,
                    blocks,
                };
                let transfer = data.whole(block, blocks, block_bytes);
                Self::One(Command { operation, transfer })
            }
            _ => Self::Many(Pieces {
                action,
                block,
                blocks_left: blocks,
                blocks_max,
                data,
                block_bytes,
            }),
        })
    }
}

/// How zeros are written under these limits.
fn zeroes(force_unit_access: bool, may_deallocate: bool, limits: &Limits) -> (Action, PieceData, u32) {
    if limits.zero_blocks_max == 0 {
        let action = Action::Write { force_unit_access };
        return (action, PieceData::Zeroes, limits.transfer_blocks_max);
    }
    let may_deallocate = may_deallocate && limits.zeroes_deallocate;
    let action = Action::WriteZeroes {
        force_unit_access,
        may_deallocate,
    };
    (action, PieceData::None, limits.zero_blocks_max)
}

impl Iterator for Pieces {
    type Item = Command;

    fn next(&mut self) -> Option<Command> {
        let blocks = u32::try_from(self.blocks_left)
            .unwrap_or(u32::MAX)
            .min(self.blocks_max);
        if blocks == 0 {
            return None;
        }
        let bytes = blocks as usize * self.block_bytes as usize;
        let transfer = match &mut self.data {
            PieceData::None => Transfer::None,
            PieceData::Receive(rest) if rest.len() <= bytes => Transfer::Receive(std::mem::take(rest)),
            PieceData::Receive(rest) => Transfer::Receive(rest.split_to(bytes)),
            PieceData::Send(data, used) => {
                let from = *used;
                *used += bytes;
                Transfer::Send(data.range(from, bytes))
            }
            PieceData::Zeroes => zeroes_of(blocks, self.block_bytes),
            PieceData::Range => range_of(self.block, blocks),
        };
        let operation = Operation {
            action: self.action,
            block: self.block,
            blocks,
        };
        let command = Command { operation, transfer };
        self.block += u64::from(blocks);
        self.blocks_left -= u64::from(blocks);
        Some(command)
    }
}
