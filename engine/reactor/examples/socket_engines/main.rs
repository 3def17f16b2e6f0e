//! How a server's sockets are best driven: plain non-blocking calls, several ways of io_uring, and this
//! reactor.
//!
//! ```text
//! cargo run --release -p pollux-reactor --example socket_engines [ROUNDS [SECONDS]]
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

use rustix::thread::{CpuSet, sched_setaffinity};
use session::Direction;

/// The core of the server, and of the client.
const SERVER_CORE: usize = 1;
const CLIENT_CORE: usize = 2;

/// A server: it accepts one connection and serves it until told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Plain,
    Reactor,
    Uring(uring::Options),
}

const ENGINES: [(&str, Engine); 7] = [
    ("plain non-blocking sockets", Engine::Plain),
    ("the reactor's streams", Engine::Reactor),
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

fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// Requests a second of one engine.
fn measure(engine: Engine, direction: Direction, depth: usize, span: Duration) -> io::Result<f64> {
    if engine == Engine::Reactor {
        let server = reactor::Server::start(direction)?;
        return client::drive(server.address, direction, depth, span);
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    let server = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            pin(SERVER_CORE)?;
            match engine {
                Engine::Plain => plain::serve(&listener, direction, &stop),
                Engine::Uring(options) => uring::serve(&listener, direction, options, &stop),
                Engine::Reactor => Ok(()),
            }
        })
    };
    let rate = client::drive(address, direction, depth, span);
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
    for (direction, depth) in [
        (Direction::Read, 128),
        (Direction::Read, 1),
        (Direction::Write, 128),
        (Direction::Write, 1),
    ] {
        let mut rates = vec![Vec::new(); ENGINES.len()];
        for _ in 0..rounds {
            for ((_, engine), rates) in ENGINES.iter().zip(&mut rates) {
                rates.push(measure(*engine, direction, depth, span)?);
            }
        }
        println!(
            "{direction:?}, queue depth {depth}: medians of {rounds} rounds, and of the ratios to plain"
        );
        let plain = rates.first().cloned().unwrap_or_default();
        for ((name, _), rates) in ENGINES.iter().zip(&mut rates) {
            let mut ratios: Vec<f64> = rates
                .iter()
                .zip(&plain)
                .map(|(rate, plain)| rate / plain)
                .collect();
            let rate = median(rates);
            let latency_us = 1e6 * depth as f64 / rate;
            println!(
                "  {name:40} {:7.1} k/s  {latency_us:6.1} us  {:5.2}",
                rate / 1e3,
                median(&mut ratios)
            );
        }
    }
    Ok(())
}
