//! What a block device is asked to do, and what it returns.

use pollux_hugepages::{Buffer, Slice};
use smallvec::SmallVec;

use crate::error::IoError;
use crate::geometry::Geometry;

/// The most zeros that [`Reply::zeros`] takes from those that the process shares; more would be allocated.
const SHARED_ZEROS_BYTES_MAX: usize = 2 << 20;

/// The data of a write or compare: one or more pieces, in order. Two pieces cost no allocation.
#[derive(Debug, Clone, Default)]
pub struct Gather {
    pieces: SmallVec<[Slice; 2]>,
    bytes: usize,
}

impl Gather {
    /// No data yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a piece; an empty one is left out.
    pub fn push(&mut self, piece: Slice) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Bytes in all pieces.
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Slice] {
        &self.pieces
    }

    /// The data from byte `from` on, `len` bytes of it, without copying.
    ///
    /// Bytes past the end are left out, so that the result may be shorter.
    pub fn range(&self, from: usize, len: usize) -> Self {
        let mut result = Self::new();
        let (mut skip, mut left) = (from, len);
        for piece in &self.pieces {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let take = left.min(piece.len() - skip);
            result.push(piece.slice(skip..skip + take));
            skip = 0;
            left -= take;
            if left == 0 {
                break;
            }
        }
        result
    }

    /// Whether every piece starts at, and is a multiple of, `align_bytes`: what direct I/O asks for.
    pub fn is_aligned(&self, align_bytes: usize) -> bool {
        self.pieces.iter().all(|piece| {
            (piece.as_ptr() as usize).is_multiple_of(align_bytes) && piece.len().is_multiple_of(align_bytes)
        })
    }

    /// Copies all pieces to the front of `into`; returns how many bytes fitted.
    pub fn copy_to(&self, into: &mut [u8]) -> usize {
        let mut rest = into;
        let mut copied = 0;
        for piece in &self.pieces {
            let len = piece.len().min(rest.len());
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(&piece[..len]);
            copied += len;
            rest = tail;
        }
        copied
    }
}

impl From<Slice> for Gather {
    fn from(piece: Slice) -> Self {
        let mut gather = Self::new();
        gather.push(piece);
        gather
    }
}

impl From<Buffer> for Gather {
    fn from(buffer: Buffer) -> Self {
        buffer.freeze().into()
    }
}

/// How zeros are to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// On stable media before it completes.
    pub force_unit_access: bool,
    /// The device may free the space instead of writing zeros.
    pub may_deallocate: bool,
}

/// One request. Positions and lengths are in blocks of the device's [`Geometry`].
#[derive(Debug)]
pub enum Request {
    /// Read whole blocks.
    Read {
        /// First block.
        block: u64,
        /// Where to; its length is a multiple of the block size.
        into: Buffer,
    },
    /// Write whole blocks.
    Write {
        /// First block.
        block: u64,
        /// What; its length is a multiple of the block size.
        from: Gather,
        /// On stable media before it completes.
        force_unit_access: bool,
    },
    /// Bring every completed write to stable media.
    Flush,
    /// Free blocks; they read as zeros from then on.
    Deallocate {
        /// First block.
        block: u64,
        /// How many; may be 0.
        blocks: u64,
    },
    /// Make blocks read as zeros.
    WriteZeroes {
        /// First block.
        block: u64,
        /// How many; may be 0.
        blocks: u64,
        /// How.
        options: ZeroOptions,
    },
    /// Compare whole blocks with data.
    Compare {
        /// First block.
        block: u64,
        /// With what; its length is a multiple of the block size.
        with: Gather,
    },
}

impl Request {
    /// The range it touches, first block and count; `None` for a flush and for a length that is not whole
    /// blocks.
    pub fn range(&self, geometry: &Geometry) -> Option<(u64, u64)> {
        match self {
            Self::Read { block, into } => Some((*block, geometry.blocks_of(into.len())?)),
            Self::Write {
                block, from: data, ..
            }
            | Self::Compare { block, with: data } => Some((*block, geometry.blocks_of(data.len_bytes())?)),
            Self::Deallocate { block, blocks } | Self::WriteZeroes { block, blocks, .. } => {
                Some((*block, *blocks))
            }
            Self::Flush => None,
        }
    }

    /// Checks the request against a geometry: whole blocks, no more of them than one transfer may have,
    /// inside the device, and no change of a read-only one.
    ///
    /// # Errors
    ///
    /// [`IoError::InvalidField`] for a length that is not whole blocks or too long, [`IoError::OutOfRange`]
    /// past the end, [`IoError::ReadOnly`].
    pub fn check(&self, geometry: &Geometry) -> Result<(), IoError> {
        if matches!(self, Self::Flush) {
            return Ok(());
        }
        let (block, blocks) = self.range(geometry).ok_or(IoError::InvalidField)?;
        if self.has_data() && blocks > u64::from(geometry.transfer_blocks_max) {
            return Err(IoError::InvalidField);
        }
        geometry.check_range(block, blocks)?;
        if geometry.read_only && self.is_mutation() {
            return Err(IoError::ReadOnly);
        }
        Ok(())
    }

    /// Whether data goes with it, so that the largest transfer of the device limits it.
    pub fn has_data(&self) -> bool {
        matches!(
            self,
            Self::Read { .. } | Self::Write { .. } | Self::Compare { .. }
        )
    }

    /// Whether it changes the content of the device.
    pub fn is_mutation(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Deallocate { .. } | Self::WriteZeroes { .. }
        )
    }
}

/// What a completed request returns.
#[derive(Debug)]
pub enum Reply {
    /// Nothing but its success.
    Done,
    /// The buffer of a read, filled.
    Data(Buffer),
    /// The data of a read that is in memory already, to be read there: zeros of a device that has none
    /// stored, for one. The buffer of the request comes back with its length and unspecified content.
    Shared {
        /// The data, as long as the buffer.
        data: Slice,
        /// The buffer of the request, not filled.
        buffer: Buffer,
    },
}

impl Reply {
    /// The buffer of a read, filled: shared data is copied into it.
    ///
    /// # Errors
    ///
    /// [`IoError::Internal`] when a device answered a read without its data.
    pub fn into_buffer(self) -> Result<Buffer, IoError> {
        match self {
            Self::Data(buffer) => Ok(buffer),
            Self::Shared { data, mut buffer } => {
                if data.len() != buffer.len() {
                    return Err(IoError::Internal);
                }
                buffer.copy_from_slice(&data);
                Ok(buffer)
            }
            Self::Done => Err(IoError::Internal),
        }
    }

    /// The data of a read, for reading only: nothing is copied.
    ///
    /// # Errors
    ///
    /// [`IoError::Internal`] when a device answered a read without its data.
    pub fn into_slice(self) -> Result<Slice, IoError> {
        match self {
            Self::Data(buffer) => Ok(buffer.freeze()),
            Self::Shared { data, .. } => Ok(data),
            Self::Done => Err(IoError::Internal),
        }
    }

    /// A read of zeros: shared ones while there are so many, else filled into the buffer.
    pub fn zeros(mut buffer: Buffer) -> Self {
        if buffer.len() > SHARED_ZEROS_BYTES_MAX {
            buffer.fill(0);
            return Self::Data(buffer);
        }
        Self::Shared {
            data: Slice::zeroes(buffer.len()),
            buffer,
        }
    }
}
