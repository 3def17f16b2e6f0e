//! The limit of plain sockets: one thread answers requests of the size of an NVMe/TCP capsule with blocks,
//! and does nothing else. No target on one core can be faster over the same sockets.
//!
//! A request is 72 bytes, and 4 KiB of data for a write; a response is 24 bytes, and 4 KiB of data for a
//! read. A server with replicas passes each write on to others of its kind, and answers when all of
//! them have.

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
    /// Cores of servers to which each write is passed on before it is answered.
    #[arg(long, value_delimiter = ',', requires = "write")]
    pub replica_cores: Vec<usize>,
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
        "{} depth {} connections {} replicas {}: {:.0} IOPS, mean {:.1} us",
        if options.write { "write" } else { "read" },
        options.depth,
        options.connections,
        options.replica_cores.len() + 1,
        figures.iops,
        figures.mean_us
    );
    Ok(())
}

/// Measures.
pub fn measure(options: &Options) -> io::Result<Figures> {
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    let mut start = |options: Options, replicas: Vec<SocketAddr>| -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let stop = stop.clone();
        threads.push(thread::spawn(move || {
            serve(&listener, &replicas, &options, &stop)
        }));
        Ok(address)
    };
    let mut replicas = Vec::with_capacity(options.replica_cores.len());
    for &core in &options.replica_cores {
        let options = Options {
            core,
            ..options.clone()
        };
        replicas.push(start(options, Vec::new())?);
    }
    let address = start(options.clone(), replicas)?;
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
    replicas: Vec<Replica>,
}

/// Another server to which the writes of one connection are passed on.
struct Replica {
    stream: TcpStream,
    /// What its socket had no room for.
    unsent: Vec<u8>,
    /// Bytes of a response of which the rest is to come.
    part_bytes: usize,
    /// Its responses that were not passed back yet.
    answered: usize,
}

impl Replica {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        prepare(&stream)?;
        Ok(Self {
            stream,
            unsent: Vec::new(),
            part_bytes: 0,
            answered: 0,
        })
    }

    fn pass_on(&mut self, requests: &[u8]) -> io::Result<()> {
        let sent = match self.unsent.is_empty() && !requests.is_empty() {
            true => ready(self.stream.write(requests))?.unwrap_or(0),
            false => 0,
        };
        self.unsent.extend_from_slice(&requests[sent..]);
        Ok(())
    }

    fn go_on(&mut self) -> io::Result<()> {
        if !self.unsent.is_empty() {
            let sent = ready(self.stream.write(&self.unsent))?.unwrap_or(0);
            self.unsent.drain(..sent);
        }
        let mut into = [0; RESPONSE_BYTES * PIECES_PER_SEND];
        self.part_bytes += ready(self.stream.read(&mut into))?.unwrap_or(0);
        self.answered += self.part_bytes / RESPONSE_BYTES;
        self.part_bytes %= RESPONSE_BYTES;
        Ok(())
    }
}

fn serve(
    listener: &TcpListener,
    replicas: &[SocketAddr],
    options: &Options,
    stop: &AtomicBool,
) -> io::Result<()> {
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
            replicas: replicas
                .iter()
                .map(|&address| Replica::connect(address))
                .collect::<io::Result<_>>()?,
        });
    }
    let mut seed = 1u64;
    while !stop.load(Ordering::Relaxed) {
        for connection in &mut connections {
            if connection.waiting.len() < PIECES_PER_SEND {
                take_requests(connection, &mut store, options, &mut seed)?;
            }
            for replica in &mut connection.replicas {
                replica.go_on()?;
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
        replicas,
        ..
    } = connection;
    let request = REQUEST_BYTES + if options.write { options.block_bytes } else { 0 };
    *filled += ready(stream.read(&mut received[*filled..]))?.unwrap_or(0);
    // They are on their way while this server does the same.
    for replica in replicas {
        replica.pass_on(&received[..*filled / request * request])?;
    }
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
    let answered = connection.replicas.iter().map(|replica| replica.answered).min();
    let due = connection.waiting.len().min(answered.unwrap_or(usize::MAX));
    if due == 0 {
        return Ok(());
    }
    let data_bytes = if options.write { 0 } else { options.block_bytes };
    let mut pieces = Vec::with_capacity(2 * PIECES_PER_SEND);
    let mut skip = connection.sent_of_first;
    for &block in connection.waiting.iter().take(due.min(PIECES_PER_SEND)) {
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
    for replica in &mut connection.replicas {
        replica.answered -= total / response;
    }
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
