//! What idle connections cost a reactor that sleeps when it has nothing to do.
//!
//! ```text
//! cargo run --release -p pollux-reactor --example idle_connections [CONNECTIONS [SECONDS]]
//! ```
//!
//! Connects that many clients, has each ask once, leaves them alone, and prints the processor time of the
//! whole process meanwhile; then again with one request a connection and second, as hosts send to show that
//! they are alive.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pollux_reactor::net::{Address, accept, attach, listen, receive, send_all};
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};
use rustix::time::{ClockId, clock_gettime};

/// Bytes of a request and of its answer.
const MESSAGE_BYTES: usize = 72;

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Serves echoes on a port of its own.
async fn serve() -> io::Result<SocketAddr> {
    let mut listener = listen(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))?;
    let Address::Tcp(address) = *listener.local() else {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    let accepting = async move {
        while let Ok(stream) = accept(&mut *listener).await.and_then(attach) {
            let mut stream = stream;
            let echo = async move {
                let mut message = [0; MESSAGE_BYTES];
                while let Ok(1..) = receive(&mut *stream, &mut message).await {
                    if send_all(&mut *stream, &message).await.is_err() {
                        return;
                    }
                }
            };
            pollux_reactor::spawn(echo).detach();
        }
    };
    pollux_reactor::spawn(accepting).detach();
    Ok(address)
}

fn ask(client: &mut TcpStream) -> io::Result<()> {
    client.write_all(&[1; MESSAGE_BYTES])?;
    client.read_exact(&mut [0; MESSAGE_BYTES])
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |default: u64| {
        arguments
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (connections, span) = (argument(100), Duration::from_secs(argument(5)));
    let reactor = ReactorThread::spawn(Settings {
        idle: IdlePolicy::default(),
        ..Settings::default()
    })?;
    let address = reactor
        .handle()
        .call_blocking(serve)
        .map_err(io::Error::other)??;
    let mut clients = Vec::new();
    for _ in 0..connections {
        let mut client = TcpStream::connect(address)?;
        client.set_nodelay(true)?;
        ask(&mut client)?;
        clients.push(client);
    }
    std::thread::sleep(Duration::from_millis(100));

    let report = |what: &str, used: Duration, span: Duration| {
        let percent = 100.0 * used.as_secs_f64() / span.as_secs_f64();
        println!("{connections} connections, {what}: {percent:.3} % of a core");
    };
    let before = processor_time();
    std::thread::sleep(span);
    report("idle", processor_time() - before, span);

    let (before, start) = (processor_time(), Instant::now());
    let pause = Duration::from_secs(1) / u32::try_from(connections.max(1)).unwrap_or(u32::MAX);
    while start.elapsed() < span {
        for client in &mut clients {
            ask(client)?;
            std::thread::sleep(pause);
        }
    }
    report(
        "one request a second each (client included)",
        processor_time() - before,
        start.elapsed(),
    );
    reactor.stop();
    reactor.join().map_err(io::Error::other)
}
