//! A client that keeps a number of requests under way, with plain polling.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::session::Pattern;
use crate::{CLIENT_CORE, pin};

/// Time before the measurement.
const WARM_UP: Duration = Duration::from_millis(200);

/// Requests a second, of a client on its own thread.
pub fn drive(address: SocketAddr, pattern: Pattern, span: Duration) -> io::Result<f64> {
    let client = std::thread::spawn(move || run(address, pattern, span));
    client
        .join()
        .map_err(|_| io::Error::other("the client panicked"))?
}

fn run(address: SocketAddr, pattern: Pattern, span: Duration) -> io::Result<f64> {
    pin(CLIENT_CORE)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let window = pattern.request_bytes() * pattern.depth;
    let requests = vec![0; window];
    let mut responses = vec![0; 1 << 20];
    let (mut to_send, mut received, mut completed) = (window, 0, 0_u64);
    let start = Instant::now();
    let mut measured_from = None;
    loop {
        if to_send > 0 {
            match stream.write(&requests[..to_send.min(window)]) {
                Ok(sent) => to_send -= sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        match stream.read(&mut responses) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                received += bytes;
                let whole = received / pattern.response_bytes();
                received %= pattern.response_bytes();
                to_send += whole * pattern.request_bytes();
                completed += whole as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let elapsed = start.elapsed();
        match measured_from {
            None if elapsed >= WARM_UP => measured_from = Some((elapsed, completed)),
            Some((from, before)) if elapsed >= from + span => {
                return Ok((completed - before) as f64 / (elapsed - from).as_secs_f64());
            }
            _ => {}
        }
    }
}
