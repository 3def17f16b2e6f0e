//! A client that speaks NBD, and a simulated server of memory devices.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::future::Future;
use std::sync::Arc;

use pollux_device::{Device, MallocDevice, MallocOptions};
use pollux_nbd::{Export, Exports, NbdSettings, listen};
use pollux_reactor::net::{Address, Stream, connect, receive_exact, send_all};
use pollux_sim::{SimDriveOptions, World, WorldOptions};

pub const DISK_BYTES: u64 = 80 << 20;

/// Where a reply may be for any of several requests.
pub const ANY_OFFSET: u64 = u64::MAX;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;
pub const RESIZE: u16 = 8;

pub const FUA: u16 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Simple,
    Structured,
    Extended,
}

pub const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// How a server is.
pub struct ServerOptions {
    pub settings: NbdSettings,
    /// Buffers of each reactor, in bytes.
    pub buffer_bytes: usize,
    pub reactors: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            settings: NbdSettings::default(),
            buffer_bytes: 16 << 20,
            reactors: 2,
        }
    }
}

/// Runs a client against a server with the exports `disk` (4096-byte blocks) and `small` (512), in memory,
/// and `drive`, which takes its time.
pub fn run<F: Future<Output = ()> + 'static>(seed: u64, client: impl FnOnce(Address) -> F) {
    run_with(seed, ServerOptions::default(), |address, _| client(address));
}

/// As [`run`], with the devices for the client.
pub fn run_with<F: Future<Output = ()> + 'static>(
    seed: u64,
    options: ServerOptions,
    client: impl FnOnce(Address, Vec<Arc<dyn Device>>) -> F,
) {
    let world = World::with_options(
        seed,
        WorldOptions {
            buffer_bytes: options.buffer_bytes,
            ..WorldOptions::default()
        },
    );
    let machine = world.add_machine("server");
    let reactors: Vec<_> = (0..options.reactors)
        .map(|_| world.add_reactor(machine))
        .collect();
    let address = world.tcp(machine, 10809);
    let handles = reactors
        .iter()
        .map(|&reactor| world.handle(reactor).unwrap())
        .collect();
    let mut devices: Vec<Arc<dyn Device>> = Vec::new();
    for (name, block_bytes) in [("disk", 4096), ("small", 512)] {
        let options = MallocOptions {
            block_bytes,
            ..MallocOptions::new(DISK_BYTES)
        };
        devices.push(MallocDevice::new(name, &options).unwrap());
    }
    let drive = SimDriveOptions::new(DISK_BYTES, 4096).unwrap();
    devices.push(world.add_drive(machine, "drive", drive));
    let exports = Exports::new();
    for device in &devices {
        exports.insert(Export {
            device: device.clone(),
            description: format!("{}-byte blocks", device.geometry().block_bytes),
        });
    }
    let listen_at = address.clone();
    world.block_on(reactors[0], async move {
        listen(&listen_at, exports, handles, options.settings)
            .unwrap()
            .1
            .detach();
    });
    let machine = world.add_machine("client");
    let reactor = world.add_reactor(machine);
    world.block_on(reactor, client(address, devices));
}

pub struct Client {
    pub stream: Box<dyn Stream>,
    pub style: Style,
}

/// A reply, put together from its chunks.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
    /// Lengths and flags of block status.
    pub status: Vec<(u64, u64)>,
}

impl Client {
    /// Takes the greeting and sends client flags.
    pub async fn greet(address: &Address, flags: u32) -> Self {
        let stream = connect(address).await.unwrap();
        let mut client = Self {
            stream,
            style: Style::Simple,
        };
        let greeting = client.take(18).await;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        client.send(&flags.to_be_bytes()).await;
        client
    }

    /// Negotiates an export.
    pub async fn open(address: &Address, name: &str, style: Style) -> Self {
        let mut client = Self::greet(address, 3).await;
        match style {
            Style::Simple => {}
            Style::Structured => assert_eq!(client.option(8, &[]).await, [(1, vec![])]),
            Style::Extended => assert_eq!(client.option(11, &[]).await, [(1, vec![])]),
        }
        client.style = style;
        if style != Style::Simple {
            let mut data = string(name);
            data.extend_from_slice(&1u32.to_be_bytes());
            data.extend(string("base:allocation"));
            assert_eq!(client.option(10, &data).await.len(), 2);
        }
        let replies = client.option(7, &go(name)).await;
        assert_eq!(replies.last(), Some(&(1, vec![])), "{replies:?}");
        let (_, export) = &replies[0];
        assert_eq!(export[..2], [0, 0]);
        assert_eq!(export[2..10], DISK_BYTES.to_be_bytes());
        client
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        send_all(&mut *self.stream, bytes).await.unwrap();
    }

    pub async fn take(&mut self, len: usize) -> Vec<u8> {
        let mut into = vec![0; len];
        receive_exact(&mut *self.stream, &mut into).await.unwrap();
        into
    }

    /// Whether the server has closed.
    pub async fn is_closed(&mut self) -> bool {
        receive_exact(&mut *self.stream, &mut [0]).await.is_err()
    }

    /// Sends an option and takes its replies: type and data.
    pub async fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.send(&bytes).await;
        let mut replies = Vec::new();
        loop {
            let header = self.take(20).await;
            assert_eq!(header[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
            assert_eq!(header[8..12], option.to_be_bytes());
            let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
            let len = u32::from_be_bytes(header[16..20].try_into().unwrap());
            let data = self.take(len as usize).await;
            replies.push((kind, data));
            if kind == 1 || kind & (1 << 31) != 0 {
                return replies;
            }
        }
    }

    pub async fn request(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, length: u64) {
        let extended = self.style == Style::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        if extended {
            bytes.extend_from_slice(&length.to_be_bytes());
        } else {
            bytes.extend_from_slice(&(length as u32).to_be_bytes());
        }
        self.send(&bytes).await;
    }

    /// The next reply, which answers a request of this kind and length.
    pub async fn answer(&mut self, kind: u16, offset: u64, length: u64) -> Answer {
        match self.style {
            Style::Simple => self.simple_answer(kind, length).await,
            Style::Structured | Style::Extended => self.chunked_answer(kind, offset, length).await,
        }
    }

    async fn simple_answer(&mut self, kind: u16, length: u64) -> Answer {
        let header = self.take(16).await;
        assert_eq!(header[..4], [0x67, 0x44, 0x66, 0x98]);
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
        let data = if kind == READ && error == 0 {
            self.take(length as usize).await
        } else {
            Vec::new()
        };
        Answer {
            cookie,
            error,
            data,
            status: Vec::new(),
        }
    }

    /// The next simple reply of a read, where the cookie is the index of its offset and length.
    pub async fn simple_read(&mut self, reads: &[(u64, u64)]) -> Answer {
        let header = self.take(16).await;
        assert_eq!(header[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        let cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
        let data = self.take(reads[cookie as usize].1 as usize).await;
        Answer {
            cookie,
            error: 0,
            data,
            status: Vec::new(),
        }
    }

    async fn chunked_answer(&mut self, kind: u16, offset: u64, length: u64) -> Answer {
        let extended = self.style == Style::Extended;
        let mut answer = Answer {
            cookie: 0,
            error: 0,
            data: Vec::new(),
            status: Vec::new(),
        };
        loop {
            let mut header = self.take(16).await;
            if !extended && header[..4] == [0x67, 0x44, 0x66, 0x98] {
                // Allowed for all that never returns data.
                assert!(kind != READ && kind != BLOCK_STATUS && answer.data.is_empty());
                answer.error = u32::from_be_bytes(header[4..8].try_into().unwrap());
                answer.cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
                return answer;
            }
            header.extend(self.take(if extended { 16 } else { 4 }).await);
            let magic = if extended {
                [0x6e, 0x8a, 0x27, 0x8c]
            } else {
                [0x66, 0x8e, 0x33, 0xef]
            };
            assert_eq!(header[..4], magic);
            let done = header[5] & 1 != 0;
            let kind = u16::from_be_bytes(header[6..8].try_into().unwrap());
            answer.cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
            let len = if extended {
                assert!(offset == ANY_OFFSET || header[16..24] == offset.to_be_bytes());
                u64::from_be_bytes(header[24..32].try_into().unwrap())
            } else {
                u64::from(u32::from_be_bytes(header[16..20].try_into().unwrap()))
            };
            let payload = self.take(len as usize).await;
            match kind {
                0 => assert!(done && payload.is_empty()),
                1 => {
                    answer.data.resize(length as usize, 0xaa);
                    let at = u64::from_be_bytes(payload[..8].try_into().unwrap()) - offset;
                    let at = at as usize;
                    answer.data[at..at + payload.len() - 8].copy_from_slice(&payload[8..]);
                }
                5 => {
                    for run in payload[4..].chunks(8) {
                        let (len, flags) = run.split_at(4);
                        let number = |bytes: &[u8]| u64::from(u32::from_be_bytes(bytes.try_into().unwrap()));
                        answer.status.push((number(len), number(flags)));
                    }
                }
                6 => {
                    for run in payload[8..].chunks(16) {
                        let (len, flags) = run.split_at(8);
                        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
                        answer.status.push((number(len), number(flags)));
                    }
                }
                0x8001 => answer.error = u32::from_be_bytes(payload[..4].try_into().unwrap()),
                other => panic!("chunk of type {other}"),
            }
            if done {
                return answer;
            }
        }
    }

    /// One request and its answer; only for a client without other requests under way.
    pub async fn call(&mut self, kind: u16, flags: u16, offset: u64, length: u64, data: &[u8]) -> Answer {
        let cookie = offset ^ length ^ u64::from(kind);
        self.request(kind, flags, cookie, offset, length).await;
        self.send(data).await;
        let answer = self.answer(kind, offset, length).await;
        assert_eq!(answer.cookie, cookie);
        answer
    }
}

/// A string behind its length.
pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The data of NBD_OPT_GO and NBD_OPT_INFO without information requests.
pub fn go(name: &str) -> Vec<u8> {
    let mut data = string(name);
    data.extend_from_slice(&[0, 0]);
    data
}
