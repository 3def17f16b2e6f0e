//! What must hold of a server for any bytes of a client, in any state of a connection.
//!
//! An input is three bytes of settings, then what a client sends:
//!
//! ```text
//! 0 bits 1:0 how far the connection is when the bytes come: new, greeted, replies chosen, export chosen
//!   bits 3:2 replies: simple, structured, extended, structured with block status
//!   bit 4 clients may resize, bit 5 the bytes are records (see below), bit 6 little memory
//! 1 seed of the world: how the network cuts the bytes, and how long the drive takes
//! 2 which export: memory in blocks of 4096 or of 512, a drive that takes its time, another name
//! ```
//!
//! Records spare the fuzzer the magic numbers, in which it would find nothing new: with bit 5, once an export
//! is chosen, each 8 bytes are a request (flags, type, block, blocks, and data for half of the writes), and
//! before that each 2 bytes and what they announce are an option.
//!
//! The server must neither panic nor hang: the connection ends once the client ends it, and another client
//! can still connect, write and read back.

use std::sync::Arc;
use std::time::Duration;

use pollux_device::events::Subscription;
use pollux_device::{Attaching, Device, Geometry, GrowError, Growing, MallocDevice, MallocOptions};
use pollux_nbd::{Export, Exports, NbdSettings, listen};
use pollux_reactor::net::{self, Address, Stream};
use pollux_sim::{SimDriveOptions, World, WorldOptions};

const SETTINGS_BYTES: usize = 3;
const DEVICE_BYTES: u64 = 4 << 20;
const GROWN_BYTES_MAX: u64 = 32 << 20;
const NAMES: [&str; 4] = ["disk", "small", "drive", "nothing"];

/// Buffers of the server: all that it may want, or two of its largest pieces.
const BUFFER_BYTES: [usize; 2] = [16 << 20, 2 << 20];

/// Bytes of data behind writes of one input, all together.
const DATA_BYTES_MAX: usize = 8 << 20;

/// More than anything takes, clients that are let go included.
const TIME_MAX: Duration = Duration::from_secs(600);

/// Options (proto, "Option types").
const STRUCTURED_REPLY: u32 = 8;
const EXTENDED_HEADERS: u32 = 11;
const SET_META_CONTEXT: u32 = 10;
const GO: u32 = 7;

/// Replies to options that come before the last one (proto, "Option reply types").
const MORE_FOLLOWS: [u32; 3] = [2, 3, 4];

/// Memory that grows to a bound: beyond it, it would be mapped on a thread, which no simulated world has.
struct Bounded(Arc<MallocDevice>);

impl Device for Bounded {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn attach(self: Arc<Self>) -> Attaching {
        self.0.clone().attach()
    }
    fn subscribe(&self) -> Subscription {
        self.0.subscribe()
    }
    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        if bytes > GROWN_BYTES_MAX {
            return Box::pin(std::future::ready(Err(GrowError::failed("no memory"))));
        }
        self.0.clone().grow_to(bytes)
    }
}

/// Panics if the server breaks a promise on `input`.
pub fn check(input: &[u8]) {
    let Some((&[switches, seed, export], bytes)) = input.split_first_chunk::<SETTINGS_BYTES>() else {
        return;
    };
    let options = WorldOptions {
        buffer_bytes: BUFFER_BYTES[usize::from(switches >> 6 & 1)],
        ..WorldOptions::default()
    };
    let world = World::with_options(u64::from(seed), options);
    let machine = world.add_machine("server");
    let reactor = world.add_reactor(machine);
    let address = world.tcp(machine, 10809);
    let handle = world.handle(reactor).expect("the machine is up");
    let drive = SimDriveOptions::new(DEVICE_BYTES, 4096).expect("a good size");
    let mut devices: Vec<Arc<dyn Device>> = vec![world.add_drive(machine, NAMES[2], drive)];
    for (name, block_bytes) in [(NAMES[0], 4096), (NAMES[1], 512)] {
        let options = MallocOptions {
            block_bytes,
            ..MallocOptions::new(DEVICE_BYTES)
        };
        let device = MallocDevice::new(name, &options).expect("memory");
        devices.push(Arc::new(Bounded(device)));
    }
    let exports = Exports::new();
    for device in devices {
        exports.insert(Export {
            device,
            description: "to be fuzzed".to_owned(),
        });
    }
    let listen_at = address.clone();
    world.block_on(reactor, async move {
        let settings = NbdSettings {
            allow_resize: switches & 16 != 0,
            ..NbdSettings::default()
        };
        let listening = listen(&listen_at, exports, vec![handle], settings);
        listening.expect("the address is free").1.detach();
    });
    let machine = world.add_machine("client");
    let reactor = world.add_reactor(machine);
    let (stage, style) = (switches & 3, switches >> 2 & 3);
    let name = NAMES[usize::from(export & 3)];
    let bytes = match (switches & 32 != 0, stage) {
        (false, _) | (true, 0) => bytes.to_vec(),
        (true, 1 | 2) => options_of(bytes),
        (true, _) => requests_of(bytes, style == 2, if export & 3 == 1 { 512 } else { 4096 }),
    };
    world.block_on(reactor, async move {
        let all = async {
            if let Some(mut stream) = open(&address, stage, style, name).await {
                // The server may have had enough already. What it answers is taken while the bytes are sent.
                let _ = exchange(&mut *stream, &bytes).await;
            }
            round_trip(&address).await;
        };
        let done = pollux_reactor::timeout(TIME_MAX, all).await;
        assert!(done.is_ok(), "the server hangs");
    });
}

/// Requests of records, with the magic numbers and, for half of the writes, the data.
fn requests_of(records: &[u8], extended: bool, block_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (cookie, record) in (0u64..).zip(records.chunks_exact(8)) {
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        // The last two of the eight bytes make blocks into bytes that are not whole blocks, now and then.
        let block = u64::from(u16::from_be_bytes([record[2], record[3]]) & 0x1fff);
        let blocks = u64::from(u16::from_be_bytes([record[4], record[5]]) & 0x0fff);
        let odd = if record[6] == 0xff {
            u64::from(record[7])
        } else {
            0
        };
        let scale = if record[6] == 0xfe {
            u64::MAX / 8192
        } else {
            block_bytes
        };
        let (offset, length) = (block * scale + odd, blocks * scale + odd);
        let kind = u16::from(record[1] % 10);
        bytes.extend_from_slice(&magic.to_be_bytes());
        bytes.extend_from_slice(&u16::from(record[0]).to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        if extended {
            bytes.extend_from_slice(&length.to_be_bytes());
        } else {
            bytes.extend_from_slice(&(length as u32).to_be_bytes());
        }
        let with_data = kind == 1 && record[7] & 1 == 0 && length as usize + bytes.len() < DATA_BYTES_MAX;
        if with_data {
            bytes.resize(bytes.len() + length as usize, record[7]);
        }
    }
    bytes
}

/// Options of records: the option, the length of its data, the data.
fn options_of(mut records: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((&[option, len], rest)) = records.split_first_chunk::<2>() {
        let (data, rest) = rest.split_at(rest.len().min(usize::from(len)));
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&u32::from(option % 14).to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        records = rest;
    }
    bytes
}

/// A connection as far as asked; `None` if the server had to refuse.
async fn open(address: &Address, stage: u8, style: u8, name: &str) -> Option<Box<dyn Stream>> {
    let mut stream = net::connect(address).await.expect("the server listens");
    let mut greeting = [0; 18];
    net::receive_exact(&mut *stream, &mut greeting)
        .await
        .expect("a server greets");
    if stage == 0 {
        return Some(stream);
    }
    net::send_all(&mut *stream, &3u32.to_be_bytes())
        .await
        .expect("good flags");
    if stage == 1 {
        return Some(stream);
    }
    match style {
        0 => {}
        2 => option(&mut *stream, EXTENDED_HEADERS, &[]).await,
        _ => option(&mut *stream, STRUCTURED_REPLY, &[]).await,
    }
    let mut text = (name.len() as u32).to_be_bytes().to_vec();
    text.extend_from_slice(name.as_bytes());
    if style >= 2 {
        let context = b"base:allocation";
        let mut query = text.clone();
        query.extend_from_slice(&1u32.to_be_bytes());
        query.extend_from_slice(&(context.len() as u32).to_be_bytes());
        query.extend_from_slice(context);
        option(&mut *stream, SET_META_CONTEXT, &query).await;
    }
    if stage == 2 || name == NAMES[3] {
        return Some(stream);
    }
    text.extend_from_slice(&[0, 0]);
    option(&mut *stream, GO, &text).await;
    Some(stream)
}

/// Sends an option and takes its replies.
async fn option(stream: &mut dyn Stream, option: u32, data: &[u8]) {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    net::send_all(stream, &bytes)
        .await
        .expect("a server takes options");
    loop {
        let mut header = [0; 20];
        net::receive_exact(stream, &mut header)
            .await
            .expect("a good option is answered");
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut data = vec![0; number(16) as usize];
        net::receive_exact(stream, &mut data)
            .await
            .expect("a reply is whole");
        if !MORE_FOLLOWS.contains(&number(12)) {
            return;
        }
    }
}

/// Sends the bytes and takes what comes, side by side, until the server closes.
async fn exchange(stream: &mut dyn Stream, bytes: &[u8]) -> std::io::Result<()> {
    let (mut sent, mut is_shut) = (0, false);
    let mut into = vec![0; 64 << 10];
    std::future::poll_fn(|context| {
        loop {
            let mut moved = false;
            if sent < bytes.len() {
                let piece = [std::io::IoSlice::new(&bytes[sent..])];
                match stream.poll_send(context, &piece) {
                    std::task::Poll::Ready(Ok(count)) => {
                        sent += count;
                        moved = true;
                    }
                    // It has had enough; what it said before is still to be taken.
                    std::task::Poll::Ready(Err(_)) => sent = bytes.len(),
                    std::task::Poll::Pending => {}
                }
            }
            if sent == bytes.len() && !is_shut {
                is_shut = true;
                let _ = stream.shutdown();
            }
            match stream.poll_receive(context, &mut [std::io::IoSliceMut::new(&mut into)]) {
                std::task::Poll::Ready(Ok(0)) => return std::task::Poll::Ready(Ok(())),
                std::task::Poll::Ready(Ok(_)) => moved = true,
                std::task::Poll::Ready(Err(error)) => return std::task::Poll::Ready(Err(error)),
                std::task::Poll::Pending => {}
            }
            if !moved {
                return std::task::Poll::Pending;
            }
        }
    })
    .await
}

/// Somebody else still gets through, and reads what he wrote.
async fn round_trip(address: &Address) {
    let mut stream = open(address, 3, 0, NAMES[0]).await.expect("the export is there");
    let mut write = 0x2560_9513u32.to_be_bytes().to_vec();
    write.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
    write.extend_from_slice(&4096u64.to_be_bytes());
    write.extend_from_slice(&4096u32.to_be_bytes());
    let mut read = write.clone();
    read[7] = 0;
    write.extend_from_slice(&[0x5a; 4096]);
    let reply = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    for (request, len) in [(write, 16), (read, 16 + 4096)] {
        net::send_all(&mut *stream, &request)
            .await
            .expect("a server takes requests");
        let mut answer = vec![0; len];
        net::receive_exact(&mut *stream, &mut answer)
            .await
            .expect("a good request is answered");
        assert_eq!(answer[..16], reply, "after the bytes");
        assert!(answer[16..].iter().all(|&byte| byte == 0x5a), "what was written");
    }
}
