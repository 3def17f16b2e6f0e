//! From the first byte to an export: fixed newstyle negotiation (proto, "Newstyle negotiation").
//!
//! Options are handled one at a time. One that is unknown, malformed or too long gets its error reply and the
//! negotiation goes on; a wrong magic ends the connection.

use std::io;

use pollux_hugepages::BufferPool;
use pollux_reactor::net::{Input, Output, Stream, flush};

use crate::export::{Export, Exports};
use crate::wire::{
    EXPORT_NAME_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, OPTION_HEADER_BYTES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, OptionKind, OptionReply, ReplyStyle, SERVER_MAGIC, STRING_BYTES_MAX, Writer, info,
    u16_at, u32_at, u64_at,
};

/// Bytes of an option that are looked at; longer ones are skipped and refused.
const OPTION_BYTES_MAX: u32 = 32 * 1024;

/// Options of one client before it is taken for one that will never choose.
const OPTIONS_MAX: usize = 4_096;

/// The only metadata context there is.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

/// Its identifier in block status replies.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;

/// Why a negotiation ended without an export.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NegotiateError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the client closed the connection")]
    Closed,
    #[error("the client gave up")]
    Aborted,
    #[error("the client does not speak the fixed newstyle protocol")]
    NotFixedNewstyle,
    #[error("client flags {0:#x} are not known")]
    UnknownFlags(u32),
    #[error("option magic {0:#018x} is not the protocol's")]
    BadMagic(u64),
    #[error("there is no export `{0}`")]
    UnknownExport(String),
    #[error("the client sent {OPTIONS_MAX} options and chose no export")]
    TooManyOptions,
    #[error("a reply does not fit the output")]
    ReplyTooLong,
}

/// What was agreed.
pub(crate) struct Agreed {
    pub(crate) export: Export,
    pub(crate) style: ReplyStyle,
    pub(crate) block_status: bool,
}

/// A connection in negotiation.
pub(crate) struct Negotiation<'a> {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    pool: BufferPool,
    exports: &'a Exports,
    allow_resize: bool,
    style: ReplyStyle,
    /// The export whose metadata context was set.
    context_of: Option<String>,
    /// Whether the answer to EXPORT_NAME ends in zeros, which a client may do without.
    zeroes: bool,
}

impl<'a> Negotiation<'a> {
    pub(crate) fn new(
        stream: Box<dyn Stream>,
        pool: BufferPool,
        exports: &'a Exports,
        allow_resize: bool,
    ) -> Self {
        Self {
            stream,
            input: Input::new(),
            output: Output::new(),
            pool,
            exports,
            allow_resize,
            style: ReplyStyle::Simple,
            context_of: None,
            zeroes: true,
        }
    }

    /// Negotiates until the client chooses an export or gives up.
    pub(crate) async fn run(&mut self) -> Result<Agreed, NegotiateError> {
        self.push(&[
            &SERVER_MAGIC.to_be_bytes(),
            &OPTION_MAGIC.to_be_bytes(),
            &(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes(),
        ])?;
        self.flush().await?;
        let flags = loop {
            if let Some(flags) = u32_at(self.input.bytes(), 0) {
                self.input.consume(4);
                break flags;
            }
            self.receive().await?;
        };
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(NegotiateError::UnknownFlags(flags));
        }
        if flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
            return Err(NegotiateError::NotFixedNewstyle);
        }
        self.zeroes = flags & u32::from(FLAG_NO_ZEROES) == 0;
        for _ in 0..OPTIONS_MAX {
            let option = self.next_option().await?;
            let agreed = match option {
                (kind, None) => {
                    self.reply(kind, OptionReply::TooBig, &[b"the option is too long"])?;
                    None
                }
                (OptionKind::List, Some(data)) if data.is_empty() => {
                    self.list().await?;
                    None
                }
                (kind, Some(data)) => self.answer(kind, &data)?,
            };
            self.flush().await?;
            if let Some(agreed) = agreed {
                return Ok(agreed);
            }
        }
        Err(NegotiateError::TooManyOptions)
    }

    /// The next option, with its data unless that is too long.
    async fn next_option(&mut self) -> Result<(OptionKind, Option<Vec<u8>>), NegotiateError> {
        let (kind, len) = loop {
            let bytes = self.input.bytes();
            if let (Some(magic), Some(kind), Some(len)) =
                (u64_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, 12))
            {
                if magic != OPTION_MAGIC {
                    return Err(NegotiateError::BadMagic(magic));
                }
                break (OptionKind::from_wire(kind), len);
            }
            self.receive().await?;
        };
        self.input.consume(OPTION_HEADER_BYTES);
        if len > OPTION_BYTES_MAX {
            let mut left = len as usize;
            while left > 0 {
                let have = self.input.bytes().len().min(left);
                self.input.consume(have);
                left -= have;
                if left > 0 {
                    self.receive().await?;
                }
            }
            return Ok((kind, None));
        }
        let len = len as usize;
        loop {
            if let Some(data) = self.input.bytes().get(..len) {
                let data = data.to_vec();
                self.input.consume(len);
                return Ok((kind, Some(data)));
            }
            self.receive().await?;
        }
    }

    /// NBD_OPT_LIST.
    async fn list(&mut self) -> Result<(), NegotiateError> {
        let kind = OptionKind::List;
        for (name, description) in self.exports.list() {
            let len = (name.len() as u32).to_be_bytes();
            self.reply(
                kind,
                OptionReply::Server,
                &[&len, name.as_bytes(), description.as_bytes()],
            )?;
            if self.output.is_full() {
                self.flush().await?;
            }
        }
        self.reply(kind, OptionReply::Ack, &[])
    }

    fn answer(&mut self, kind: OptionKind, data: &[u8]) -> Result<Option<Agreed>, NegotiateError> {
        match kind {
            OptionKind::ExportName => return self.export_name(data).map(Some),
            OptionKind::Abort => {
                self.reply(kind, OptionReply::Ack, &[])?;
                return Err(NegotiateError::Aborted);
            }
            OptionKind::Info | OptionKind::Go => return self.info(kind, data),
            OptionKind::StructuredReply if data.is_empty() => {
                if self.style == ReplyStyle::Extended {
                    self.reply(
                        kind,
                        OptionReply::ExtendedHeadersRequired,
                        &[b"extended headers are in use"],
                    )?;
                } else {
                    self.style = ReplyStyle::Structured;
                    self.reply(kind, OptionReply::Ack, &[])?;
                }
            }
            OptionKind::ExtendedHeaders if data.is_empty() => {
                self.style = ReplyStyle::Extended;
                self.reply(kind, OptionReply::Ack, &[])?;
            }
            OptionKind::List | OptionKind::StructuredReply | OptionKind::ExtendedHeaders => {
                self.reply(kind, OptionReply::Invalid, &[b"the option takes no data"])?;
            }
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => self.meta_context(kind, data)?,
            OptionKind::Unknown(_) => self.reply(kind, OptionReply::Unsupported, &[])?,
        }
        Ok(None)
    }

    /// NBD_OPT_EXPORT_NAME, which knows no error reply.
    fn export_name(&mut self, data: &[u8]) -> Result<Agreed, NegotiateError> {
        let name = String::from_utf8_lossy(data).into_owned();
        let Some(export) = self.exports.find(&name) else {
            return Err(NegotiateError::UnknownExport(name));
        };
        let size = export.device.geometry().bytes();
        self.push(&[
            &size.to_be_bytes(),
            &export.transmission_flags(self.allow_resize).to_be_bytes(),
        ])?;
        if self.zeroes {
            self.push(&[&[0; EXPORT_NAME_ZEROES]])?;
        }
        Ok(self.agree(export, &name))
    }

    /// NBD_OPT_INFO and NBD_OPT_GO.
    fn info(&mut self, kind: OptionKind, data: &[u8]) -> Result<Option<Agreed>, NegotiateError> {
        let Some((name, requests)) = parse_info(data) else {
            self.reply(kind, OptionReply::Invalid, &[b"the option is malformed"])?;
            return Ok(None);
        };
        let Some(export) = self.exports.find(&name) else {
            self.reply(kind, OptionReply::UnknownExport, &[b"no such export"])?;
            return Ok(None);
        };
        let size = export.device.geometry().bytes();
        let flags = export.transmission_flags(self.allow_resize);
        self.reply(
            kind,
            OptionReply::Info,
            &[
                &info::EXPORT.to_be_bytes(),
                &size.to_be_bytes(),
                &flags.to_be_bytes(),
            ],
        )?;
        if requests.contains(&info::NAME) {
            let device = export.device.name().to_owned();
            self.reply(
                kind,
                OptionReply::Info,
                &[&info::NAME.to_be_bytes(), device.as_bytes()],
            )?;
        }
        if requests.contains(&info::DESCRIPTION) {
            let text = export.description.clone();
            self.reply(
                kind,
                OptionReply::Info,
                &[&info::DESCRIPTION.to_be_bytes(), text.as_bytes()],
            )?;
        }
        // Always told, whether asked for or not: clients may ignore it.
        let [minimum, preferred, maximum] = export.block_sizes().map(u32::to_be_bytes);
        let block_size = info::BLOCK_SIZE.to_be_bytes();
        self.reply(
            kind,
            OptionReply::Info,
            &[&block_size, &minimum, &preferred, &maximum],
        )?;
        self.reply(kind, OptionReply::Ack, &[])?;
        Ok((kind == OptionKind::Go).then(|| self.agree(export, &name)))
    }

    /// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
    fn meta_context(&mut self, kind: OptionKind, data: &[u8]) -> Result<(), NegotiateError> {
        let set = kind == OptionKind::SetMetaContext;
        if set {
            self.context_of = None;
        }
        if self.style == ReplyStyle::Simple {
            return self.reply(
                kind,
                OptionReply::Invalid,
                &[b"negotiate structured replies first"],
            );
        }
        let Some((name, queries)) = parse_meta_context(data) else {
            return self.reply(kind, OptionReply::Invalid, &[b"the option is malformed"]);
        };
        if self.exports.find(&name).is_none() {
            return self.reply(kind, OptionReply::UnknownExport, &[b"no such export"]);
        }
        let wanted = |query: &String| query == BASE_ALLOCATION || (!set && query == "base:");
        if queries.iter().any(wanted) || (!set && queries.is_empty()) {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            self.reply(
                kind,
                OptionReply::MetaContext,
                &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()],
            )?;
            if set {
                self.context_of = Some(name);
            }
        }
        self.reply(kind, OptionReply::Ack, &[])
    }

    fn agree(&self, export: Export, name: &str) -> Agreed {
        Agreed {
            export,
            style: self.style,
            // A context that was set for another export does not count (proto, NBD_OPT_SET_META_CONTEXT).
            block_status: self.context_of.as_deref() == Some(name),
        }
    }

    fn reply(&mut self, kind: OptionKind, reply: OptionReply, data: &[&[u8]]) -> Result<(), NegotiateError> {
        let len: usize = data.iter().map(|piece| piece.len()).sum();
        self.push(&[
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &kind.to_wire().to_be_bytes(),
            &(reply as u32).to_be_bytes(),
            &(len as u32).to_be_bytes(),
        ])?;
        self.push(data)
    }

    fn push(&mut self, pieces: &[&[u8]]) -> Result<(), NegotiateError> {
        let pushed = self.output.encode(|room| {
            let mut writer = Writer::new(room);
            for piece in pieces {
                writer.bytes(piece)?;
            }
            Some(writer.len())
        });
        if pushed {
            Ok(())
        } else {
            Err(NegotiateError::ReplyTooLong)
        }
    }

    async fn flush(&mut self) -> Result<(), NegotiateError> {
        Ok(flush(&mut *self.stream, &mut self.output).await?)
    }

    async fn receive(&mut self) -> Result<(), NegotiateError> {
        self.input.make_room(&self.pool);
        let Self { stream, input, .. } = self;
        let received =
            std::future::poll_fn(|context| input.poll_receive(&mut **stream, context, &mut [])).await?;
        if received.is_end() {
            Err(NegotiateError::Closed)
        } else {
            Ok(())
        }
    }
}

/// A string behind its 32-bit length, and what follows.
fn take_string(data: &[u8]) -> Option<(String, &[u8])> {
    let len = u32_at(data, 0)? as usize;
    if len > STRING_BYTES_MAX {
        return None;
    }
    let (text, rest) = data.get(4..)?.split_at_checked(len)?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}

/// Name and information requests of NBD_OPT_INFO and NBD_OPT_GO.
fn parse_info(data: &[u8]) -> Option<(String, Vec<u16>)> {
    let (name, rest) = take_string(data)?;
    let count = usize::from(u16_at(rest, 0)?);
    let list = rest.get(2..)?;
    if list.len() != count * 2 {
        return None;
    }
    let requests = (0..count).filter_map(|index| u16_at(list, index * 2)).collect();
    Some((name, requests))
}

/// Name and queries of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
fn parse_meta_context(data: &[u8]) -> Option<(String, Vec<String>)> {
    let (name, rest) = take_string(data)?;
    let count = u32_at(rest, 0)?;
    let mut rest = rest.get(4..)?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let (query, behind) = take_string(rest)?;
        queries.push(query);
        rest = behind;
    }
    rest.is_empty().then_some((name, queries))
}
