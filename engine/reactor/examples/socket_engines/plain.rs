//! Plain non-blocking sockets: receive, answer, send, over and over.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::session::{Pattern, Session};

pub fn serve(listener: &TcpListener, pattern: Pattern, stop: &AtomicBool) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut session = Session::new(pattern);
    let mut slices = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let room = session.room();
        if !room.is_empty() {
            match stream.read(room) {
                Ok(0) => return Ok(()),
                Ok(received) => session.received(received),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The client has all it wanted.
                Err(_) => return Ok(()),
            }
        }
        if session.has_output() {
            match stream.write_vectored(session.slices(&mut slices)) {
                Ok(sent) => session.sent(sent),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(()),
            }
        }
    }
    Ok(())
}
