//! Asking an NVMe/TCP target where its subsystems are: the Discovery log (NVMe Base 2.2, 5.2.12.3.1) through
//! a connection of our own, as a host that reads it and goes (NVMe/TCP 1.1).
//!
//! | sent | answered |
//! | --- | --- |
//! | ICReq, 128 bytes | ICResp |
//! | Connect to the discovery subsystem, 72 bytes and 1024 of data | CapsuleResp |
//! | Property Set CC.EN, Property Get CSTS until it is ready | CapsuleResp each |
//! | Get Log Page 70h, piece by piece | C2HData, and CapsuleResp if that does not stand for it |
//!
//! Whatever is answered is bounded by [`LOG_BYTES_MAX`], and by [`TIMEOUT`] for each answer.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::host::{DiscoveryLog, HostError};
use crate::names::Host;

/// How long the target may take for each answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Looks at whether the controller is ready, and the pause between two.
const READY_LOOKS_MAX: u32 = 100;
const READY_PAUSE: Duration = Duration::from_millis(10);

/// The longest log that is read: some thousand volumes with a few paths each.
const LOG_BYTES_MAX: u64 = 32 << 20;

/// Bytes of the log that are asked for at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The discovery subsystem (Base 2.2, 4.5).
const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Bytes of the log's header, and of each of its entries.
const ENTRY_BYTES: usize = 1024;

/// Bytes of an NVMe qualified name in a structure.
const NQN_BYTES: usize = 256;

/// A submission queue entry, and a completion queue entry.
const SUBMISSION_BYTES: usize = 64;
const COMPLETION_BYTES: usize = 16;

/// Types of PDUs (NVMe/TCP 1.1, 3.6.1).
const IC_REQUEST: u8 = 0x00;
const IC_RESPONSE: u8 = 0x01;
const COMMAND: u8 = 0x04;
const RESPONSE: u8 = 0x05;
const DATA: u8 = 0x07;

/// Bytes of ICReq and ICResp, of the header that all have, and of a capsule with a command.
const IC_BYTES: usize = 128;
const COMMON_BYTES: usize = 8;
const COMMAND_BYTES: usize = COMMON_BYTES + SUBMISSION_BYTES;

/// In the flags of C2HData: the last one, and that no response follows.
const SUCCESS: u8 = 1 << 3;

/// SGL descriptors: an offset into the capsule, and data that the transport moves.
const SGL_IN_CAPSULE: u8 = 0x01;
const SGL_TRANSPORT: u8 = 0x5a;

/// CC: enabled, with entries of 64 and 16 bytes.
const ENABLE: u32 = 0x0046_0001;

/// Offsets of CC and CSTS.
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A number in little-endian bytes at a place.
fn number(bytes: &[u8], at: usize, width: usize) -> io::Result<u64> {
    let found = bytes
        .get(at..at + width)
        .ok_or_else(|| broken("an answer is too short"))?;
    Ok(found
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Puts bytes at a place; what does not fit is cut off.
fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    for (slot, byte) in into.iter_mut().skip(at).zip(bytes) {
        *slot = *byte;
    }
}

/// A connection to the admin queue of a discovery controller. One command is under way at a time.
struct Admin {
    stream: TcpStream,
    command_id: u16,
}

impl Admin {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut request = [0; IC_BYTES];
        put(
            &mut request,
            0,
            &[IC_REQUEST, 0, IC_BYTES as u8, 0, IC_BYTES as u8],
        );
        stream.write_all(&request)?;
        let mut response = [0; IC_BYTES];
        stream.read_exact(&mut response)?;
        let [kind, ..] = response;
        // Version 0, and no digests, which were not asked for.
        if kind != IC_RESPONSE || number(&response, 8, 2)? != 0 || number(&response, 11, 1)? != 0 {
            return Err(broken("the target speaks another NVMe/TCP"));
        }
        Ok(Self {
            stream,
            command_id: 0,
        })
    }

    /// Sends a command, with data in the capsule, and reads its answer: at most that many bytes of data, and
    /// the first word of the completion.
    fn call(
        &mut self,
        mut entry: [u8; SUBMISSION_BYTES],
        data: &[u8],
        bytes: usize,
    ) -> io::Result<(Vec<u8>, u32)> {
        self.command_id = self.command_id.wrapping_add(1);
        put(&mut entry, 2, &self.command_id.to_le_bytes());
        let has_data = !data.is_empty();
        let total = COMMAND_BYTES + data.len();
        let mut capsule = vec![0; total];
        let offset = if has_data { COMMAND_BYTES as u8 } else { 0 };
        put(&mut capsule, 0, &[COMMAND, 0, COMMAND_BYTES as u8, offset]);
        // A few KiB at most.
        put(&mut capsule, 4, &(total as u32).to_le_bytes());
        put(&mut capsule, COMMON_BYTES, &entry);
        put(&mut capsule, COMMAND_BYTES, data);
        self.stream.write_all(&capsule)?;
        let mut read = vec![0; bytes];
        loop {
            let mut common = [0; COMMON_BYTES];
            self.stream.read_exact(&mut common)?;
            let [kind, flags, header_bytes, data_at, ..] = common;
            let (header_bytes, data_at) = (usize::from(header_bytes), usize::from(data_at));
            let length = usize::try_from(number(&common, 4, 4)?).unwrap_or(usize::MAX);
            if header_bytes < COMMON_BYTES || length < header_bytes || length > bytes + ENTRY_BYTES {
                return Err(broken("an answer has a length that cannot be"));
            }
            let mut rest = vec![0; length - COMMON_BYTES];
            self.stream.read_exact(&mut rest)?;
            match kind {
                RESPONSE => return self.completion(&rest).map(|word| (read, word)),
                DATA => {
                    let at = usize::try_from(number(&rest, 4, 4)?).unwrap_or(usize::MAX);
                    let count = usize::try_from(number(&rest, 8, 4)?).unwrap_or(usize::MAX);
                    let wrong = || broken("data is for another place");
                    let from = data_at.checked_sub(COMMON_BYTES).ok_or_else(wrong)?;
                    let found = from
                        .checked_add(count)
                        .and_then(|end| rest.get(from..end))
                        .ok_or_else(wrong)?;
                    let place = at
                        .checked_add(count)
                        .and_then(|end| read.get_mut(at..end))
                        .ok_or_else(wrong)?;
                    place.copy_from_slice(found);
                    if flags & SUCCESS != 0 {
                        return Ok((read, 0));
                    }
                }
                _ => return Err(broken("the target ended the connection")),
            }
        }
    }

    /// The first word of a completion that tells of success.
    fn completion(&self, rest: &[u8]) -> io::Result<u32> {
        let entry = rest
            .get(..COMPLETION_BYTES)
            .ok_or_else(|| broken("an answer is too short"))?;
        if number(entry, 12, 2)? != u64::from(self.command_id) {
            return Err(broken("an answer is to another command"));
        }
        let status = number(entry, 14, 2)? >> 1;
        match status {
            0 => Ok(number(entry, 0, 4)? as u32),
            status => Err(io::Error::other(format!(
                "the target refuses, with status {status:#x}"
            ))),
        }
    }

    fn connect(&mut self, host: &Host) -> io::Result<()> {
        let mut data = [0; ENTRY_BYTES];
        put(&mut data, 0, host.id.as_bytes());
        // Any controller.
        put(&mut data, 16, &u16::MAX.to_le_bytes());
        put(&mut data, NQN_BYTES, DISCOVERY_NQN.as_bytes());
        put(&mut data, 2 * NQN_BYTES, host.nqn.as_bytes());
        let mut entry = fabrics(0x01);
        put(&mut entry, 32, &(ENTRY_BYTES as u32).to_le_bytes());
        put(&mut entry, 39, &[SGL_IN_CAPSULE]);
        // 32 entries.
        put(&mut entry, 44, &31_u16.to_le_bytes());
        self.call(entry, &data, 0).map(drop)
    }

    /// Enables the controller, and waits until it is ready.
    fn enable(&mut self) -> io::Result<()> {
        let mut set = fabrics(0x00);
        put(&mut set, 44, &CC.to_le_bytes());
        put(&mut set, 48, &ENABLE.to_le_bytes());
        self.call(set, &[], 0)?;
        for _ in 0..READY_LOOKS_MAX {
            let mut get = fabrics(0x04);
            put(&mut get, 44, &CSTS.to_le_bytes());
            let (_, status) = self.call(get, &[], 0)?;
            if status & 1 != 0 {
                return Ok(());
            }
            std::thread::sleep(READY_PAUSE);
        }
        Err(broken("the discovery controller does not get ready"))
    }

    /// Some bytes of the Discovery log.
    fn log(&mut self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        // A piece at most.
        let words = (bytes / size_of::<u32>()).saturating_sub(1) as u32;
        let mut entry = [0; SUBMISSION_BYTES];
        put(&mut entry, 0, &[0x02, 0x40]);
        put(&mut entry, 32, &(bytes as u32).to_le_bytes());
        put(&mut entry, 39, &[SGL_TRANSPORT]);
        put(&mut entry, 40, &[0x70]);
        // The count is in two halves.
        put(&mut entry, 42, &words.to_le_bytes());
        put(&mut entry, 48, &offset.to_le_bytes());
        Ok(self.call(entry, &[], bytes)?.0)
    }
}

/// A Fabrics command of a type, without data.
fn fabrics(kind: u8) -> [u8; SUBMISSION_BYTES] {
    let mut entry = [0; SUBMISSION_BYTES];
    put(&mut entry, 0, &[0x7f, 0x40, 0, 0, kind]);
    put(&mut entry, 39, &[SGL_TRANSPORT]);
    entry
}

/// A text in a field that ends with zeros or spaces.
fn text(field: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(field).ok()?;
    Some(text.trim_end_matches(['\0', ' ']))
}

/// The subsystem and the address of an entry of the log, if it is of one with namespaces by TCP.
fn entry(bytes: &[u8]) -> Option<(String, SocketAddr)> {
    let [3, 1 | 2, 2, ..] = bytes else {
        return None;
    };
    let port: u16 = text(bytes.get(32..64)?)?.parse().ok()?;
    let nqn = text(bytes.get(256..512)?)?;
    let ip: IpAddr = text(bytes.get(512..768)?)?.parse().ok()?;
    Some((nqn.to_owned(), SocketAddr::new(ip, port)))
}

fn read(address: SocketAddr, host: &Host, known: Option<u64>) -> io::Result<Option<DiscoveryLog>> {
    let mut admin = Admin::open(address)?;
    admin.connect(host)?;
    admin.enable()?;
    let header = admin.log(0, ENTRY_BYTES)?;
    let (generation, records) = (number(&header, 0, 8)?, number(&header, 8, 8)?);
    if known == Some(generation) {
        return Ok(None);
    }
    let bytes = records
        .checked_mul(ENTRY_BYTES as u64)
        .filter(|bytes| *bytes <= LOG_BYTES_MAX);
    let bytes = bytes.ok_or_else(|| broken("the log is too long"))?;
    let mut entries = Vec::new();
    let mut done = 0;
    while done < bytes {
        // At most a piece.
        let piece = (bytes - done).min(PIECE_BYTES as u64) as usize;
        let read = admin.log(ENTRY_BYTES as u64 + done, piece)?;
        entries.extend(read.chunks_exact(ENTRY_BYTES).filter_map(entry));
        done += piece as u64;
    }
    let again = admin.log(0, ENTRY_BYTES)?;
    match number(&again, 0, 8)? == generation {
        true => Ok(Some(DiscoveryLog { generation, entries })),
        false => Err(broken("the log has changed meanwhile")),
    }
}

/// The log of the target at an address; nothing if it is of the generation that is known.
pub(super) fn discover(
    address: SocketAddr,
    host: &Host,
    known: Option<u64>,
) -> Result<Option<DiscoveryLog>, HostError> {
    read(address, host, known).map_err(|error| HostError::kernel("ask for paths", address, error))
}
