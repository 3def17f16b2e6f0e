//! The decoder: bytes of a receive buffer in, a header checked from end to end out.
//!
//! It looks at the header alone; the data is the caller's to receive, and its digest the caller's to check.
//! The checks run in the order in which their fields can be trusted: type, direction, phase, HLEN, flags,
//! header digest, then offsets and lengths. Nothing is copied: the result borrows from the buffer.
//!
//! The checks of the frequent types are inlined by force. As calls they hand their results over in memory,
//! which takes three times as long as the checks themselves (`cargo bench -p pollux-nvme --bench wire`).

use zerocopy::FromBytes;

use super::layout::{
    CommandCapsule, CommonHeader, ControllerData, DataAlignment, Digests, Direction, HostData,
    InitializeRequest, InitializeResponse, MAX_H2C_DATA_BYTES_MIN, PduFlags, PduType, ReadyToTransfer,
    ResponseCapsule, TERMINATE_DATA_BYTES_MAX, TerminateRequest,
};
use super::violation::Violation;
use crate::wire::digest::{DIGEST_BYTES, crc32c};

/// How far a connection is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing but ICReq or ICResp may come, or a termination.
    Initializing,
    /// Everything else may come.
    Established,
}

/// What was agreed for the PDUs that are received on a connection, and how much of them to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// How far the connection is set up.
    pub phase: Phase,
    /// Headers have digests.
    pub header_digest: bool,
    /// Data has digests.
    pub data_digest: bool,
    /// Alignment of data in received PDUs: the receiver's own, CPDA at a controller and HPDA at a host.
    pub data_alignment: DataAlignment,
    /// Most data in a command capsule, in bytes; at a controller. On an admin queue and before Connect
    /// [`IN_CAPSULE_DATA_BYTES_ADMIN`](super::IN_CAPSULE_DATA_BYTES_ADMIN), else what IOCCSZ says.
    pub in_capsule_data_bytes_max: u32,
    /// Most data in an H2CData PDU, in bytes; at a controller: the MAXH2CDATA it announced.
    pub host_data_bytes_max: u32,
    /// Most data in a C2HData PDU, in bytes; at a host: its largest transfer.
    pub controller_data_bytes_max: u32,
}

/// A header, or how much of it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// Call again with at least this many bytes, counted from the start of the PDU.
    NeedMore {
        /// Bytes to have, from the start of the PDU.
        bytes: usize,
    },
    /// A valid header.
    Pdu(Pdu<'a>),
}

/// A PDU whose header is valid. Its data is at `data_offset..data_offset + data_bytes`, its data digest, if
/// it has one, behind that, up to `pdu_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pdu<'a> {
    /// The header.
    pub header: Header<'a>,
    /// Length of the whole PDU in bytes.
    pub pdu_bytes: usize,
    /// Where the data starts, in bytes from the start of the PDU.
    pub data_offset: usize,
    /// Length of the data in bytes, 0 without.
    pub data_bytes: usize,
    /// Whether a digest follows the data.
    pub data_digest: bool,
}

/// The header of a PDU, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header<'a> {
    /// ICReq.
    InitializeRequest(&'a InitializeRequest),
    /// ICResp.
    InitializeResponse(&'a InitializeResponse),
    /// H2CTermReq or C2HTermReq.
    Terminate(&'a TerminateRequest),
    /// CapsuleCmd.
    Command(&'a CommandCapsule),
    /// CapsuleResp.
    Response(&'a ResponseCapsule),
    /// H2CData.
    HostData(&'a HostData),
    /// C2HData.
    ControllerData(&'a ControllerData),
    /// R2T.
    ReadyToTransfer(&'a ReadyToTransfer),
}

/// The bytes are known to be there when this is used; were they not, asking for more is still right.
macro_rules! view {
    ($layout:ty, $bytes:expr) => {
        match <$layout>::ref_from_prefix($bytes) {
            Ok((header, _)) => header,
            Err(_) => {
                return Ok(Decoded::NeedMore {
                    bytes: size_of::<$layout>(),
                })
            }
        }
    };
}

/// Leaves the caller if more bytes are needed.
macro_rules! framed {
    ($framed:expr) => {
        match $framed {
            Framed::Frame(frame) => frame,
            Framed::NeedMore { bytes } => return Ok(Decoded::NeedMore { bytes }),
        }
    };
}

const FORMAT_VERSION: u16 = 0;
const FORMAT_VERSION_OFFSET: u32 = 8;
const ALIGNMENT_OFFSET: u32 = 10;
const DIGESTS_OFFSET: u32 = 11;
const MAX_H2C_DATA_OFFSET: u32 = 12;
const TRANSFER_OFFSET_OFFSET: u32 = 12;
const TRANSFER_LENGTH_OFFSET: u32 = 16;
const DWORD_BYTES: u32 = 4;

/// Decodes the header at the start of `bytes`, a PDU that travels in `direction`.
///
/// # Errors
/// The first [`Violation`] found. The connection is then to be terminated.
#[inline]
pub fn decode_header<'a>(
    bytes: &'a [u8],
    direction: Direction,
    limits: &ConnectionLimits,
) -> Result<Decoded<'a>, Violation> {
    let common = view!(CommonHeader, bytes);
    let Some(pdu_type) = PduType::from_wire(common.pdu_type) else {
        return Err(Violation::UnknownType {
            pdu_type: common.pdu_type,
        });
    };
    let source = Source {
        bytes,
        common,
        direction,
        limits,
    };
    // Each arm names its type, so that the compiler makes straight code of the checks for it.
    match pdu_type {
        PduType::Command => {
            let frame = framed!(source.frame(PduType::Command)?);
            Ok(frame.pdu(Header::Command(view!(CommandCapsule, bytes)), frame.command()?))
        }
        PduType::HostData => {
            let frame = framed!(source.frame(PduType::HostData)?);
            let data = view!(HostData, bytes);
            let range = (data.offset_bytes.get(), data.length_bytes.get());
            Ok(frame.pdu(
                Header::HostData(data),
                frame.data(range, limits.host_data_bytes_max)?,
            ))
        }
        PduType::Response => {
            let frame = framed!(source.frame(PduType::Response)?);
            Ok(frame.pdu(
                Header::Response(view!(ResponseCapsule, bytes)),
                frame.without_data()?,
            ))
        }
        PduType::ControllerData => {
            let frame = framed!(source.frame(PduType::ControllerData)?);
            let data = view!(ControllerData, bytes);
            let range = (data.offset_bytes.get(), data.length_bytes.get());
            Ok(frame.pdu(
                Header::ControllerData(data),
                frame.data(range, limits.controller_data_bytes_max)?,
            ))
        }
        PduType::ReadyToTransfer => {
            let frame = framed!(source.frame(PduType::ReadyToTransfer)?);
            let ready = view!(ReadyToTransfer, bytes);
            check_range(
                PduType::ReadyToTransfer,
                ready.offset_bytes.get(),
                ready.length_bytes.get(),
            )?;
            Ok(frame.pdu(Header::ReadyToTransfer(ready), frame.without_data()?))
        }
        PduType::InitializeRequest
        | PduType::InitializeResponse
        | PduType::HostTerminate
        | PduType::ControllerTerminate => source.decode_rare(pdu_type),
    }
}

/// What a PDU is decoded from.
struct Source<'a, 'l> {
    bytes: &'a [u8],
    common: &'a CommonHeader,
    direction: Direction,
    limits: &'l ConnectionLimits,
}

impl<'a, 'l> Source<'a, 'l> {
    /// The checks that all types share: direction, phase, HLEN, flags, header digest.
    #[inline(always)]
    fn frame(&self, pdu_type: PduType) -> Result<Framed<'a, 'l>, Violation> {
        let Self {
            bytes,
            common,
            direction,
            limits,
        } = *self;
        if pdu_type.direction() != direction {
            return Err(Violation::WrongDirection { pdu_type, direction });
        }
        let initialization = matches!(pdu_type, PduType::InitializeRequest | PduType::InitializeResponse);
        let termination = matches!(pdu_type, PduType::HostTerminate | PduType::ControllerTerminate);
        if !termination && initialization != matches!(limits.phase, Phase::Initializing) {
            return Err(Violation::WrongPhase { pdu_type });
        }
        let header_bytes = pdu_type.header_bytes();
        if usize::from(common.header_bytes) != header_bytes {
            return Err(Violation::HeaderLength {
                pdu_type,
                header_bytes: common.header_bytes,
            });
        }
        let header_digest = limits.header_digest && !initialization && !termination;
        let flags = check_flags(pdu_type, common.flags, header_digest, limits.data_digest)?;
        let header_end = if header_digest {
            header_bytes + DIGEST_BYTES
        } else {
            header_bytes
        };
        if bytes.len() < header_end {
            return Ok(Framed::NeedMore { bytes: header_end });
        }
        if header_digest {
            check_header_digest(bytes, header_bytes)?;
        }
        Ok(Framed::Frame(Frame {
            pdu_type,
            common,
            header_end,
            flags,
            limits,
        }))
    }

    /// The types that come once in the life of a connection.
    fn decode_rare(&self, pdu_type: PduType) -> Result<Decoded<'a>, Violation> {
        let frame = framed!(self.frame(pdu_type)?);
        match pdu_type {
            PduType::InitializeRequest => {
                let request = view!(InitializeRequest, self.bytes);
                check_initialize_request(request)?;
                Ok(frame.pdu(Header::InitializeRequest(request), frame.without_data()?))
            }
            PduType::InitializeResponse => {
                let response = view!(InitializeResponse, self.bytes);
                check_initialize_response(response)?;
                Ok(frame.pdu(Header::InitializeResponse(response), frame.without_data()?))
            }
            _ => Ok(frame.pdu(
                Header::Terminate(view!(TerminateRequest, self.bytes)),
                frame.terminate()?,
            )),
        }
    }
}

/// A frame, or how much of it is missing.
enum Framed<'a, 'l> {
    NeedMore { bytes: usize },
    Frame(Frame<'a, 'l>),
}

/// The flags must be of the type's, and the digest flags as agreed. A command capsule may be without data,
/// and is then without its digest; that is for [`Frame::command`] to see.
#[inline(always)]
fn check_flags(
    pdu_type: PduType,
    flags: u8,
    header_digest: bool,
    data_digest: bool,
) -> Result<PduFlags, Violation> {
    let violation = Violation::Flags { pdu_type, flags };
    let flags = PduFlags::from_bits(flags).ok_or(violation)?;
    if !pdu_type.flags().contains(flags) || flags.contains(PduFlags::HEADER_DIGEST) != header_digest {
        return Err(violation);
    }
    let has_data_digest = flags.contains(PduFlags::DATA_DIGEST);
    let always_data = matches!(pdu_type, PduType::HostData | PduType::ControllerData);
    if (has_data_digest && !data_digest) || (always_data && data_digest && !has_data_digest) {
        return Err(violation);
    }
    if flags.contains(PduFlags::SUCCESS) && !flags.contains(PduFlags::LAST) {
        return Err(violation);
    }
    Ok(flags)
}

#[inline]
fn check_header_digest(bytes: &[u8], header_bytes: usize) -> Result<(), Violation> {
    let Some((header, rest)) = bytes.split_at_checked(header_bytes) else {
        return Ok(());
    };
    let Some(digest) = rest.first_chunk::<DIGEST_BYTES>() else {
        return Ok(());
    };
    let received = u32::from_le_bytes(*digest);
    let computed = crc32c(header);
    if received == computed {
        Ok(())
    } else {
        Err(Violation::HeaderDigest { received, computed })
    }
}

/// PFV that is not 0 is not supported; HPDA above 31 is invalid (TCP 3.6.2, ICReq). Unknown digests are not
/// asked of us.
fn check_initialize_request(request: &InitializeRequest) -> Result<(), Violation> {
    let pdu_type = PduType::InitializeRequest;
    if request.format_version.get() != FORMAT_VERSION {
        return Err(Violation::Unsupported {
            pdu_type,
            offset: FORMAT_VERSION_OFFSET,
        });
    }
    if DataAlignment::from_wire(request.host_data_alignment).is_none() {
        return Err(Violation::Field {
            pdu_type,
            offset: ALIGNMENT_OFFSET,
        });
    }
    Ok(())
}

/// PFV, CPDA, DGST, MAXH2CDATA (TCP 3.6.2, ICResp). That the digests are among those asked for is the host's
/// to check.
fn check_initialize_response(response: &InitializeResponse) -> Result<(), Violation> {
    let pdu_type = PduType::InitializeResponse;
    if response.format_version.get() != FORMAT_VERSION {
        return Err(Violation::Unsupported {
            pdu_type,
            offset: FORMAT_VERSION_OFFSET,
        });
    }
    if DataAlignment::from_wire(response.controller_data_alignment).is_none() {
        return Err(Violation::Field {
            pdu_type,
            offset: ALIGNMENT_OFFSET,
        });
    }
    if Digests::from_bits(response.digests).is_none() {
        return Err(Violation::Field {
            pdu_type,
            offset: DIGESTS_OFFSET,
        });
    }
    let max_data_bytes = response.max_h2c_data_bytes.get();
    if max_data_bytes < MAX_H2C_DATA_BYTES_MIN || !max_data_bytes.is_multiple_of(DWORD_BYTES) {
        return Err(Violation::Field {
            pdu_type,
            offset: MAX_H2C_DATA_OFFSET,
        });
    }
    Ok(())
}

/// Offsets are dword aligned (TCP 3.6.2), a transfer of nothing makes no progress, and none wraps around.
#[inline(always)]
fn check_range(pdu_type: PduType, offset_bytes: u32, length_bytes: u32) -> Result<(), Violation> {
    if !offset_bytes.is_multiple_of(DWORD_BYTES) {
        return Err(Violation::Field {
            pdu_type,
            offset: TRANSFER_OFFSET_OFFSET,
        });
    }
    if length_bytes == 0 {
        return Err(Violation::Field {
            pdu_type,
            offset: TRANSFER_LENGTH_OFFSET,
        });
    }
    if offset_bytes.checked_add(length_bytes).is_none() {
        return Err(Violation::DataOutOfRange { pdu_type });
    }
    Ok(())
}

/// Where the data is.
struct Extent {
    offset: usize,
    bytes: usize,
}

/// What is known once the common header and the flags are checked.
struct Frame<'a, 'l> {
    pdu_type: PduType,
    common: &'a CommonHeader,
    /// Behind the header and its digest.
    header_end: usize,
    flags: PduFlags,
    limits: &'l ConnectionLimits,
}

impl<'a> Frame<'a, '_> {
    #[inline(always)]
    fn pdu(&self, header: Header<'a>, extent: Extent) -> Decoded<'a> {
        Decoded::Pdu(Pdu {
            header,
            pdu_bytes: self.pdu_bytes(),
            data_offset: extent.offset,
            data_bytes: extent.bytes,
            data_digest: self.flags.contains(PduFlags::DATA_DIGEST),
        })
    }

    #[inline(always)]
    fn pdu_bytes(&self) -> usize {
        self.common.pdu_bytes.get() as usize
    }

    #[inline(always)]
    fn length_violation(&self) -> Violation {
        Violation::PduLength {
            pdu_type: self.pdu_type,
            pdu_bytes: self.common.pdu_bytes.get(),
        }
    }

    /// A PDU that ends with its header. PDO is reserved and not looked at.
    #[inline(always)]
    fn without_data(&self) -> Result<Extent, Violation> {
        if self.pdu_bytes() != self.header_end {
            return Err(self.length_violation());
        }
        Ok(Extent {
            offset: self.header_end,
            bytes: 0,
        })
    }

    /// The data follows the header at once; PDO is reserved.
    fn terminate(&self) -> Result<Extent, Violation> {
        match self.pdu_bytes().checked_sub(self.header_end) {
            Some(bytes @ 0..=TERMINATE_DATA_BYTES_MAX) => Ok(Extent {
                offset: self.header_end,
                bytes,
            }),
            _ => Err(self.length_violation()),
        }
    }

    #[inline(always)]
    fn command(&self) -> Result<Extent, Violation> {
        if self.pdu_bytes() == self.header_end {
            if self.flags.contains(PduFlags::DATA_DIGEST) {
                return Err(self.flags_violation());
            }
            return Ok(Extent {
                offset: self.header_end,
                bytes: 0,
            });
        }
        if self.limits.data_digest && !self.flags.contains(PduFlags::DATA_DIGEST) {
            return Err(self.flags_violation());
        }
        let extent = self.extent()?;
        if extent.bytes > self.limits.in_capsule_data_bytes_max as usize {
            return Err(Violation::LimitExceeded {
                pdu_type: self.pdu_type,
            });
        }
        Ok(extent)
    }

    /// An H2CData or C2HData PDU that says its data belongs at `range` (offset, length).
    #[inline(always)]
    fn data(&self, range: (u32, u32), data_bytes_max: u32) -> Result<Extent, Violation> {
        let (offset_bytes, length_bytes) = range;
        check_range(self.pdu_type, offset_bytes, length_bytes)?;
        let extent = self.extent()?;
        if extent.bytes != length_bytes as usize {
            return Err(self.length_violation());
        }
        if length_bytes > data_bytes_max {
            return Err(Violation::LimitExceeded {
                pdu_type: self.pdu_type,
            });
        }
        Ok(extent)
    }

    /// The data between PDO and the end or data digest; at least one byte.
    #[inline(always)]
    fn extent(&self) -> Result<Extent, Violation> {
        let offset = usize::from(self.common.data_offset);
        let digest_bytes = if self.flags.contains(PduFlags::DATA_DIGEST) {
            DIGEST_BYTES
        } else {
            0
        };
        let Some(data_end) = self
            .pdu_bytes()
            .checked_sub(digest_bytes)
            .filter(|end| *end > self.header_end)
        else {
            return Err(self.length_violation());
        };
        let in_bounds = (self.header_end..data_end).contains(&offset);
        if !in_bounds || !self.limits.data_alignment.is_aligned(offset) {
            return Err(Violation::DataOffset {
                pdu_type: self.pdu_type,
                data_offset: self.common.data_offset,
                pdu_bytes: self.common.pdu_bytes.get(),
            });
        }
        Ok(Extent {
            offset,
            bytes: data_end - offset,
        })
    }

    #[inline(always)]
    fn flags_violation(&self) -> Violation {
        Violation::Flags {
            pdu_type: self.pdu_type,
            flags: self.common.flags,
        }
    }
}
