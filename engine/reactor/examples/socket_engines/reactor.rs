//! The reactor's own streams.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::task::Poll;

use pollux_reactor::net::{Address, Stream, accept, attach, listen};
use pollux_reactor::real::{DriverSettings, IdlePolicy, ReactorThread, Settings, SocketSettings};

use crate::SERVER_CORE;
use crate::session::{Pattern, Session};

/// A server on a reactor thread; stopped when dropped.
pub struct Server {
    pub address: SocketAddr,
    _thread: ReactorThread,
}

impl Server {
    pub fn start(pattern: Pattern, sockets: SocketSettings, idle: IdlePolicy) -> io::Result<Self> {
        let thread = ReactorThread::spawn(Settings {
            core: Some(SERVER_CORE),
            idle,
            driver: DriverSettings {
                sockets,
                ..DriverSettings::default()
            },
            ..Settings::default()
        })?;
        let started = thread.handle().call_blocking(move || async move {
            let mut listener = listen(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))?;
            let address = match listener.local() {
                Address::Tcp(address) => *address,
                Address::Unix(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            };
            let served = async move {
                let stream = attach(accept(&mut *listener).await?)?;
                serve(stream, pattern).await
            };
            pollux_reactor::spawn(served).detach();
            Ok(address)
        });
        Ok(Self {
            address: started.map_err(io::Error::other)??,
            _thread: thread,
        })
    }
}

async fn serve(mut stream: Box<dyn Stream>, pattern: Pattern) -> io::Result<()> {
    let mut session = Session::new(pattern);
    let mut slices = Vec::new();
    poll_fn(|context| {
        loop {
            let mut moved = false;
            let room = session.room();
            if !room.is_empty() {
                match stream.poll_receive(context, &mut [IoSliceMut::new(room)])? {
                    Poll::Ready(0) => return Poll::Ready(Ok(())),
                    Poll::Ready(received) => {
                        session.received(received);
                        moved = true;
                    }
                    Poll::Pending => {}
                }
            }
            if session.has_output()
                && let Poll::Ready(sent) = stream.poll_send(context, session.slices(&mut slices))?
            {
                session.sent(sent);
                moved = true;
            }
            if !moved {
                return Poll::Pending;
            }
        }
    })
    .await
}
