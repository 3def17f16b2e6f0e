//! Connections of the NVMe/TCP target: bytes to commands and back.
//!
//! The life of a connection: the listener accepts it on its own reactor; `handshake` exchanges ICReq and
//! ICResp and waits for the Connect command, which [`Admission`] decides about; the connection then moves to
//! the reactor of its queue and lives there as one task ([`live`]) until either side ends it.

mod fused_order;
mod handshake;
mod live;
mod reads;
mod receive;
mod transfers;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_reactor::net::{self, Address, Detached, Listener};
use pollux_reactor::{Reactor, sleep, spawn, timeout};

use super::queue::Admission;
use crate::wire::pdu::{ConnectionLimits, Framing};
use handshake::{Handover, handshake};

/// Connections that have not sent a valid Connect yet; one more is closed at once.
const HALF_OPEN_MAX: usize = 2_048;

/// The pause after an accept that failed, as it does without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the transport of a target offers to hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportSettings {
    /// Data that an I/O command capsule may carry, in bytes: a multiple of 16, at most 32 KiB. What identify
    /// reports as IOCCSZ follows from it. Default 8192.
    pub in_capsule_bytes_max: u32,
    /// Data that an H2CData PDU may carry, in bytes (MAXH2CDATA): a multiple of 4, at least 4096. Default 1
    /// MiB.
    pub host_data_bytes_max: u32,
    /// Whether hosts get a header digest when they ask for it. Default true.
    pub header_digest: bool,
    /// Whether hosts get a data digest when they ask for it. Default true.
    pub data_digest: bool,
    /// How long a host may take from the TCP connection to its Connect command. Default 10 s.
    pub connect_timeout: Duration,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            in_capsule_bytes_max: 8192,
            host_data_bytes_max: 1024 * 1024,
            header_digest: true,
            data_digest: true,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// What was agreed with the host.
#[derive(Debug, Clone, Copy)]
struct Transport {
    limits: ConnectionLimits,
    framing: Framing,
}

/// Accepts connections on the current reactor for ever. Dropping the task stops accepting; connections go on.
pub async fn accept_connections(
    mut listener: Box<dyn Listener>,
    admission: Arc<dyn Admission>,
    settings: Arc<TransportSettings>,
) {
    let half_open = Rc::new(Cell::new(0usize));
    loop {
        match net::accept(&mut *listener).await {
            Ok(_refused) if half_open.get() >= HALF_OPEN_MAX => {}
            Ok(accepted) => {
                let guard = HalfOpen::enter(&half_open);
                spawn(begin(accepted, admission.clone(), settings.clone(), guard)).detach();
            }
            Err(error) => {
                tracing::warn!(local = %listener.local(), %error, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Counts a connection as half open until dropped.
struct HalfOpen(Rc<Cell<usize>>);

impl HalfOpen {
    fn enter(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn begin(
    accepted: Detached,
    admission: Arc<dyn Admission>,
    settings: Arc<TransportSettings>,
    half_open: HalfOpen,
) {
    let stream = match net::attach(accepted) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "could not attach a connection"),
    };
    let peer = stream.peer().clone();
    let admitted = match timeout(
        settings.connect_timeout,
        handshake(stream, &*admission, &settings),
    )
    .await
    {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(reason)) => return tracing::debug!(%peer, %reason, "connection ended before it was admitted"),
        Err(_) => return tracing::debug!(%peer, "connection sent no Connect command in time"),
    };
    drop(half_open);
    let Some((reactor, handover)) = admitted else {
        return;
    };
    if reactor.id() == Reactor::current().id() {
        return run(handover).await;
    }
    if let Err(error) = reactor.spawn(move || run(handover)) {
        tracing::warn!(%peer, %error, "could not hand a connection over");
    }
}

/// Runs an admitted connection on the reactor of its queue until it ends.
async fn run(handover: Handover) {
    let peer = handover.peer.clone();
    match live::Live::new(handover) {
        Ok(live) => live.run().await,
        Err(error) => tracing::warn!(%peer, %error, "could not take a connection over"),
    }
}

/// Listens on the current reactor and accepts connections there; returns where it listens.
///
/// # Errors
///
/// Those of [`net::listen`].
pub fn listen(
    address: &Address,
    admission: Arc<dyn Admission>,
    settings: Arc<TransportSettings>,
) -> io::Result<(Address, pollux_reactor::Task<()>)> {
    let listener = net::listen(address)?;
    let local = listener.local().clone();
    Ok((local, spawn(accept_connections(listener, admission, settings))))
}
