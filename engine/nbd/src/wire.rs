//! What goes over the wire. All integers are big-endian (proto, "Values").

/// The first eight bytes of a server: `NBDMAGIC` (proto, "Newstyle negotiation").
pub(crate) const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Starts every option: `IHAVEOPT` (proto, "Newstyle negotiation").
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option (proto, "Fixed newstyle negotiation").
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flag: fixed newstyle (proto, "Handshake flags").
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: no 124 zeroes behind the answer to an export name (proto, "Handshake flags").
pub(crate) const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Zeroes behind the answer to NBD_OPT_EXPORT_NAME for clients that did not refuse them.
pub(crate) const EXPORT_NAME_ZEROES: usize = 124;

/// Bytes of a name or other string at most (proto, "Values").
pub(crate) const STRING_BYTES_MAX: usize = 4096;

/// Bytes of the header of an option.
pub(crate) const OPTION_HEADER_BYTES: usize = 16;

/// Options of the client (proto, "Option types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptionKind {
    ExportName,
    Abort,
    List,
    Info,
    Go,
    StructuredReply,
    ListMetaContext,
    SetMetaContext,
    ExtendedHeaders,
    /// Any other, STARTTLS among them.
    Unknown(u32),
}

impl OptionKind {
    pub(crate) fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            other => Self::Unknown(other),
        }
    }

    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::ExtendedHeaders => 11,
            Self::Unknown(other) => other,
        }
    }
}

/// Replies to options (proto, "Option reply types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum OptionReply {
    Ack = 1,
    Server = 2,
    Info = 3,
    MetaContext = 4,
    Unsupported = (1 << 31) + 1,
    Invalid = (1 << 31) + 3,
    UnknownExport = (1 << 31) + 6,
    TooBig = (1 << 31) + 9,
    ExtendedHeadersRequired = (1 << 31) + 10,
}

/// Information types of NBD_OPT_INFO and NBD_OPT_GO (proto, "Option types").
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export (proto, "Transmission flags").
pub(crate) mod transmission {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_RESIZE: u16 = 1 << 9;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
}

/// Command flags (proto, "Command flags").
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
    pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Request types (proto, "Request types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandKind {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// Of the RESIZE extension: the offset is the size in bytes that the export is to have.
    Resize,
    Unknown,
}

impl CommandKind {
    fn from_wire(value: u16) -> Self {
        match value {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            _ => Self::Unknown,
        }
    }
}

/// Errors of requests (proto, "Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum NbdError {
    NotPermitted = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    NotSupported = 95,
    Shutdown = 108,
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of a compact request.
pub(crate) const REQUEST_BYTES: usize = 28;
/// Bytes of an extended request.
pub(crate) const EXTENDED_REQUEST_BYTES: usize = 32;

/// How replies look, as was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    Simple,
    Structured,
    Extended,
}

/// The header of a request (proto, "Request message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub(crate) flags: u16,
    pub(crate) kind: CommandKind,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The bytes are no request: the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("request magic {0:#010x} is none of the protocol's")]
pub(crate) struct BadMagic(u32);

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Reads a big-endian number.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Reads a big-endian number.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Reads a big-endian number.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

impl RequestHeader {
    /// Reads the header of a request, with its length in bytes; `None` when more bytes are needed.
    pub(crate) fn decode(bytes: &[u8], style: ReplyStyle) -> Result<Option<(Self, usize)>, BadMagic> {
        let (magic, len) = match style {
            ReplyStyle::Extended => (EXTENDED_REQUEST_MAGIC, EXTENDED_REQUEST_BYTES),
            ReplyStyle::Simple | ReplyStyle::Structured => (REQUEST_MAGIC, REQUEST_BYTES),
        };
        match u32_at(bytes, 0) {
            None => return Ok(None),
            Some(found) if found != magic => return Err(BadMagic(found)),
            Some(_) => {}
        }
        let fields = || {
            Some(Self {
                flags: u16_at(bytes, 4)?,
                kind: CommandKind::from_wire(u16_at(bytes, 6)?),
                cookie: u64_at(bytes, 8)?,
                offset: u64_at(bytes, 16)?,
                length: match style {
                    ReplyStyle::Extended => u64_at(bytes, 24)?,
                    ReplyStyle::Simple | ReplyStyle::Structured => u64::from(u32_at(bytes, 24)?),
                },
            })
        };
        Ok(fields().map(|header| (header, len)))
    }
}

/// Types of reply chunks (proto, "Structured reply types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum ChunkKind {
    None = 0,
    OffsetData = 1,
    BlockStatus = 5,
    BlockStatusExtended = 6,
    Error = (1 << 15) + 1,
}

/// Chunk flag: the last of a reply.
const CHUNK_DONE: u16 = 1;

/// Writes what follows one after the other; `None` when there is no room.
pub(crate) struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Option<&mut Self> {
        let end = self.at.checked_add(bytes.len())?;
        self.out.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(self)
    }

    pub(crate) fn len(&self) -> usize {
        self.at
    }
}

/// Writes a simple reply.
pub(crate) fn encode_simple(cookie: u64, error: Option<NbdError>, out: &mut [u8]) -> Option<usize> {
    let mut writer = Writer::new(out);
    writer
        .bytes(&SIMPLE_REPLY_MAGIC.to_be_bytes())?
        .bytes(&error.map_or(0, |error| error as u32).to_be_bytes())?
        .bytes(&cookie.to_be_bytes())?;
    Some(writer.len())
}

/// A chunk of a structured or extended reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) cookie: u64,
    /// The offset of the request, which extended replies repeat.
    pub(crate) offset: u64,
    pub(crate) kind: ChunkKind,
    pub(crate) done: bool,
    pub(crate) payload_bytes: u64,
}

impl Chunk {
    /// Writes the header.
    pub(crate) fn encode(&self, style: ReplyStyle, out: &mut [u8]) -> Option<usize> {
        let flags = if self.done { CHUNK_DONE } else { 0 };
        let mut writer = Writer::new(out);
        let extended = style == ReplyStyle::Extended;
        let magic = if extended {
            EXTENDED_REPLY_MAGIC
        } else {
            STRUCTURED_REPLY_MAGIC
        };
        writer
            .bytes(&magic.to_be_bytes())?
            .bytes(&flags.to_be_bytes())?
            .bytes(&(self.kind as u16).to_be_bytes())?
            .bytes(&self.cookie.to_be_bytes())?;
        if extended {
            writer
                .bytes(&self.offset.to_be_bytes())?
                .bytes(&self.payload_bytes.to_be_bytes())?;
        } else {
            writer.bytes(&u32::try_from(self.payload_bytes).ok()?.to_be_bytes())?;
        }
        Some(writer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_frozen_requests() {
        let compact = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
            0x20, 0,
        ];
        let header = RequestHeader {
            flags: command_flag::FUA,
            kind: CommandKind::Write,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            length: 8192,
        };
        assert_eq!(
            RequestHeader::decode(&compact, ReplyStyle::Simple),
            Ok(Some((header, 28)))
        );
        assert_eq!(
            RequestHeader::decode(&compact[..27], ReplyStyle::Simple),
            Ok(None)
        );
        assert_eq!(
            RequestHeader::decode(&compact, ReplyStyle::Extended),
            Err(BadMagic(REQUEST_MAGIC))
        );
        let mut extended = vec![0x21, 0xe4, 0x1c, 0x71];
        extended.extend_from_slice(&compact[4..24]);
        extended.extend_from_slice(&8192u64.to_be_bytes());
        assert_eq!(
            RequestHeader::decode(&extended, ReplyStyle::Extended),
            Ok(Some((header, 32)))
        );
    }

    #[test]
    fn writes_frozen_replies() {
        let mut out = [0; 64];
        let len = encode_simple(0x0102_0304_0506_0708, Some(NbdError::NoSpace), &mut out).unwrap();
        assert_eq!(
            out[..len],
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]
        );
        let chunk = Chunk {
            cookie: 7,
            offset: 9,
            kind: ChunkKind::OffsetData,
            done: true,
            payload_bytes: 16,
        };
        let len = chunk.encode(ReplyStyle::Structured, &mut out).unwrap();
        assert_eq!(
            out[..len],
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 16
            ]
        );
        let len = chunk.encode(ReplyStyle::Extended, &mut out).unwrap();
        assert_eq!(len, 32);
        assert_eq!(out[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1]);
        assert_eq!(out[16..32], [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 16]);
    }
}
