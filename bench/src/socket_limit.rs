//! The limit of plain sockets: one thread answers requests of the size of an NVMe/TCP capsule with blocks,
//! and does nothing else. No target on one core can be faster over the same sockets.
//!
//! A request is 72 bytes, and 4 KiB of data for a write; a response is 24 bytes, and 4 KiB of data for a
//! read.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::{CpuSet, sched_setaffinity};

const REQUEST_BYTES: usize = 72;
const RESPONSE_BYTES: usize = 24;
const STORE_BYTES: usize = 256 << 20;
const RECEIVE_BYTES: usize = 256 << 10;
const PIECES_PER_SEND: usize = 256;

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Requests outstanding on each connection.
    #[arg(long, default_value_t = 128)]
    pub depth: usize,
    /// Connections, each driven by a thread on a core of its own.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Send data to the server rather than receive it.
    #[arg(long)]
    pub write: bool,
    /// Bytes of data of a request.
    #[arg(long, default_value_t = 4096)]
    pub block_bytes: usize,
    /// Seconds to measure, after half a second of warm-up.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// The core that serves.
    #[arg(long, default_value_t = 1)]
    pub core: usize,
    /// The core of the first connection; the others follow.
    #[arg(long, default_value_t = 2)]
    pub first_client_core: usize,
}

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Requests per second.
    pub iops: f64,
    /// Mean time from a request to its response, in microseconds.
    pub mean_us: f64,
}

/// Measures and prints.
pub fn run(options: &Options) -> Result<(), super::compare::Error> {
    let figures = measure(options)?;
    println!(
        "{} depth {} connections {}: {:.0} IOPS, mean {:.1} us",
        if options.write { "write" } else { "read" },
        options.depth,
        options.connections,
        figures.iops,
        figures.mean_us
    );
    Ok(())
}

/// Measures.
pub fn measure(options: &Options) -> io::Result<Figures> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    let (server_options, server_stop) = (options.clone(), stop.clone());
    threads.push(thread::spawn(move || {
        serve(&listener, &server_options, &server_stop)
    }));
    for client in 0..options.connections {
        let (options, stop, answered) = (options.clone(), stop.clone(), answered.clone());
        threads.push(thread::spawn(move || {
            drive(address, client, &options, &stop, &answered)
        }));
    }
    thread::sleep(Duration::from_millis(500));
    let (before, begun) = (answered.load(Ordering::Relaxed), Instant::now());
    thread::sleep(Duration::from_secs_f64(options.seconds));
    let (after, elapsed) = (answered.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread
            .join()
            .map_err(|_| io::Error::other("a measuring thread panicked"))??;
    }
    let iops = (after - before) as f64 / elapsed;
    Ok(Figures {
        iops,
        mean_us: 1e6 * (options.depth * options.connections) as f64 / iops,
    })
}

fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .map_err(|error| io::Error::other(format!("cannot run on core {core}: {error}")))
}

struct Served {
    stream: TcpStream,
    received: Vec<u8>,
    filled: usize,
    /// Blocks of the responses that wait, and how much of the first is sent.
    waiting: Vec<usize>,
    sent_of_first: usize,
}

fn serve(listener: &TcpListener, options: &Options, stop: &AtomicBool) -> io::Result<()> {
    pin(options.core)?;
    let mut store = vec![1u8; STORE_BYTES];
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        let (stream, _) = listener.accept()?;
        prepare(&stream)?;
        connections.push(Served {
            stream,
            received: vec![0; RECEIVE_BYTES],
            filled: 0,
            waiting: Vec::new(),
            sent_of_first: 0,
        });
    }
    let mut seed = 1u64;
    while !stop.load(Ordering::Relaxed) {
        for connection in &mut connections {
            if connection.waiting.len() < PIECES_PER_SEND {
                take_requests(connection, &mut store, options, &mut seed)?;
            }
            send_responses(connection, &store, options)?;
        }
    }
    Ok(())
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)
}

/// `None` when it would block.
fn ready<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(error),
    }
}

fn take_requests(
    connection: &mut Served,
    store: &mut [u8],
    options: &Options,
    seed: &mut u64,
) -> io::Result<()> {
    let Served {
        stream,
        received,
        filled,
        waiting,
        ..
    } = connection;
    let request = REQUEST_BYTES + if options.write { options.block_bytes } else { 0 };
    *filled += ready(stream.read(&mut received[*filled..]))?.unwrap_or(0);
    let mut used = 0;
    while *filled - used >= request {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let block = (*seed >> 33) as usize % (STORE_BYTES / options.block_bytes) * options.block_bytes;
        if options.write {
            let data = &received[used + REQUEST_BYTES..used + request];
            store[block..block + options.block_bytes].copy_from_slice(data);
        }
        waiting.push(block);
        used += request;
    }
    received.copy_within(used..*filled, 0);
    *filled -= used;
    Ok(())
}

fn send_responses(connection: &mut Served, store: &[u8], options: &Options) -> io::Result<()> {
    static RESPONSE: [u8; RESPONSE_BYTES] = [0; RESPONSE_BYTES];
    if connection.waiting.is_empty() {
        return Ok(());
    }
    let data_bytes = if options.write { 0 } else { options.block_bytes };
    let mut pieces = Vec::with_capacity(2 * PIECES_PER_SEND);
    let mut skip = connection.sent_of_first;
    for &block in connection.waiting.iter().take(PIECES_PER_SEND) {
        let header = skip.min(RESPONSE_BYTES);
        pieces.push(IoSlice::new(&RESPONSE[header..]));
        if data_bytes > 0 {
            pieces.push(IoSlice::new(&store[block + skip - header..block + data_bytes]));
        }
        skip = 0;
    }
    let sent = ready(connection.stream.write_vectored(&pieces))?.unwrap_or(0);
    let total = connection.sent_of_first + sent;
    let response = RESPONSE_BYTES + data_bytes;
    connection.waiting.drain(..total / response);
    connection.sent_of_first = total % response;
    Ok(())
}

fn drive(
    address: SocketAddr,
    client: usize,
    options: &Options,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> io::Result<()> {
    pin(options.first_client_core + client)?;
    let request = REQUEST_BYTES + if options.write { options.block_bytes } else { 0 };
    let response = RESPONSE_BYTES + if options.write { 0 } else { options.block_bytes };
    let out = vec![0u8; request * options.depth];
    let mut into = vec![0u8; 1 << 20];
    let mut stream = TcpStream::connect(address)?;
    prepare(&stream)?;
    let (mut to_send, mut received) = (out.len(), 0);
    while !stop.load(Ordering::Relaxed) {
        if to_send > 0 {
            to_send -= ready(stream.write(&out[..to_send.min(out.len())]))?.unwrap_or(0);
        }
        received += ready(stream.read(&mut into))?.unwrap_or(0);
        let complete = received / response;
        received %= response;
        to_send += complete * request;
        answered.fetch_add(complete as u64, Ordering::Relaxed);
    }
    Ok(())
}
