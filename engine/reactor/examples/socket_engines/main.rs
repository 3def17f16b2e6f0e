//! How a server's sockets are best driven: plain non-blocking calls, several ways of io_uring, and this
//! reactor.
//!
//! ```text
//! cargo run --release -p pollux-reactor --example socket_engines [ROUNDS [SECONDS [engines|buffers]]]
//! ```
//!
//! Each server answers 72-byte requests with 24 bytes and a block of 4 KiB (a read), or requests with a block
//! by 24 bytes (a write), over loopback TCP, pinned to core 1; the client is a plain polling one on core 2.
//! The servers take turns, and the medians and their ratios to the plain one are printed, so that what else
//! the machine does meanwhile weighs on all of them alike.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

mod client;
mod plain;
mod reactor;
mod session;
mod uring;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pollux_reactor::real::{IdlePolicy, SocketSettings};
use rustix::thread::{CpuSet, sched_setaffinity};
use session::{Direction, Pattern};

/// The core of the server, and of the client.
const SERVER_CORE: usize = 1;
const CLIENT_CORE: usize = 2;

/// A server: it accepts one connection and serves it until told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Plain,
    /// With socket buffers of this size; the kernel's own choice if 0.
    Reactor(usize),
    /// On a reactor that sleeps when there is nothing to do.
    Adaptive,
    Uring(uring::Options),
}

const ENGINES: [(&str, Engine); 8] = [
    ("plain non-blocking sockets", Engine::Plain),
    ("the reactor's streams", Engine::Reactor(0)),
    ("the reactor's streams, adaptive", Engine::Adaptive),
    ("io_uring: recv, sendmsg", Engine::Uring(uring::Options::SINGLE)),
    (
        "io_uring: multishot recv, sendmsg",
        Engine::Uring(uring::Options::MULTISHOT),
    ),
    (
        "io_uring: multishot recv, sendmsg_zc",
        Engine::Uring(uring::Options::ZERO_COPY),
    ),
    (
        "io_uring: multishot recv, own sendmsg",
        Engine::Uring(uring::Options::MIXED),
    ),
    (
        "io_uring: own recv, sendmsg",
        Engine::Uring(uring::Options::SEND_ONLY),
    ),
];

/// Sizes of socket buffers, for the reactor's streams.
const BUFFERS: [(&str, Engine); 5] = [
    ("the kernel's choice", Engine::Reactor(0)),
    ("128 KiB", Engine::Reactor(128 << 10)),
    ("512 KiB", Engine::Reactor(512 << 10)),
    ("2 MiB", Engine::Reactor(2 << 20)),
    ("4 MiB", Engine::Reactor(4 << 20)),
];

const fn pattern(direction: Direction, block_bytes: usize, depth: usize) -> Pattern {
    Pattern {
        direction,
        block_bytes,
        depth,
    }
}

fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// Requests a second of one engine.
fn measure(engine: Engine, pattern: Pattern, span: Duration) -> io::Result<f64> {
    let reactor = match engine {
        Engine::Reactor(buffer_bytes) => Some((buffer_bytes, IdlePolicy::Poll)),
        Engine::Adaptive => Some((0, IdlePolicy::default())),
        Engine::Plain | Engine::Uring(_) => None,
    };
    if let Some((buffer_bytes, idle)) = reactor {
        let bytes = (buffer_bytes > 0).then_some(buffer_bytes);
        let sockets = SocketSettings {
            receive_buffer_bytes: bytes,
            send_buffer_bytes: bytes,
            ..SocketSettings::default()
        };
        let server = reactor::Server::start(pattern, sockets, idle)?;
        return client::drive(server.address, pattern, span);
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    let server = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            pin(SERVER_CORE)?;
            match engine {
                Engine::Plain => plain::serve(&listener, pattern, &stop),
                Engine::Uring(options) => uring::serve(&listener, pattern, options, &stop),
                Engine::Reactor(_) | Engine::Adaptive => Ok(()),
            }
        })
    };
    let rate = client::drive(address, pattern, span);
    stop.store(true, Ordering::Relaxed);
    server
        .join()
        .map_err(|_| io::Error::other("the server panicked"))??;
    rate
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Measures engines in turns, and prints how they compare to the first.
fn compare(engines: &[(&str, Engine)], pattern: Pattern, rounds: usize, span: Duration) -> io::Result<()> {
    let mut rates = vec![Vec::new(); engines.len()];
    for _ in 0..rounds {
        for ((name, engine), rates) in engines.iter().zip(&mut rates) {
            let rate = measure(*engine, pattern, span);
            rates.push(rate.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?);
        }
    }
    println!("{pattern:?}: medians of {rounds} rounds, and of the ratios to the first");
    let first = rates.first().cloned().unwrap_or_default();
    for ((name, _), rates) in engines.iter().zip(&mut rates) {
        let mut ratios: Vec<f64> = rates
            .iter()
            .zip(&first)
            .map(|(rate, first)| rate / first)
            .collect();
        let rate = median(rates);
        let latency_us = 1e6 * pattern.depth as f64 / rate;
        println!(
            "  {name:40} {:7.1} k/s  {latency_us:7.1} us  {:5.2}",
            rate / 1e3,
            median(&mut ratios)
        );
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |default: f64| {
        arguments
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let rounds = argument(7.0) as usize;
    let span = Duration::from_secs_f64(argument(1.0));
    let part = std::env::args().nth(3);
    let is_wanted = |name| part.as_deref().is_none_or(|part| part == name);
    for direction in [Direction::Read, Direction::Write] {
        for depth in [128, 1].into_iter().filter(|_| is_wanted("engines")) {
            compare(&ENGINES, pattern(direction, 4096, depth), rounds, span)?;
        }
    }
    for direction in [Direction::Read, Direction::Write] {
        let sizes = [(4096, 128), (128 << 10, 32)];
        for (block_bytes, depth) in sizes.into_iter().filter(|_| is_wanted("buffers")) {
            compare(&BUFFERS, pattern(direction, block_bytes, depth), rounds, span)?;
        }
    }
    Ok(())
}
