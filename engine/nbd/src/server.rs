//! Listening, and the life of a connection.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pollux_reactor::net::{self, Address, Detached, Listener, finish};
use pollux_reactor::{ReactorHandle, Task, buffers, sleep, spawn, timeout};

use crate::export::Exports;
use crate::negotiate::Negotiation;
use crate::session::{End, Parts, Session};

/// The pause after an accept that failed, as it does without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Settings of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdSettings {
    /// How long a client may negotiate. Default 10 s.
    pub negotiation_timeout: Duration,
    /// Connections at a time; one more is closed at once. Default 1024.
    pub connections_max: usize,
    /// How long a client in the middle of a request, or with replies to take, may move nothing before it is
    /// disconnected; up to twice that in fact. Idle clients stay. Default 60 s.
    pub stall_timeout: Duration,
    /// Clients may make devices larger by the RESIZE extension of the protocol. Default no.
    pub allow_resize: bool,
}

impl Default for NbdSettings {
    fn default() -> Self {
        Self {
            negotiation_timeout: Duration::from_secs(10),
            connections_max: 1024,
            stall_timeout: Duration::from_secs(60),
            allow_resize: false,
        }
    }
}

/// Listens on the current reactor, and spreads the connections over `reactors` (this one when empty). Returns
/// where it listens, and the task that accepts; dropping it stops accepting, connections go on.
///
/// # Errors
///
/// Those of [`net::listen`].
pub fn listen(
    address: &Address,
    exports: Exports,
    reactors: Vec<ReactorHandle>,
    settings: NbdSettings,
) -> io::Result<(Address, Task<()>)> {
    let listener = net::listen(address)?;
    let local = listener.local().clone();
    Ok((
        local,
        spawn(accept_connections(listener, exports, reactors, settings)),
    ))
}

async fn accept_connections(
    mut listener: Box<dyn Listener>,
    exports: Exports,
    reactors: Vec<ReactorHandle>,
    settings: NbdSettings,
) {
    let open = Arc::new(AtomicUsize::new(0));
    let next = Rc::new(Cell::new(0usize));
    loop {
        match net::accept(&mut *listener).await {
            Ok(_refused) if open.load(Ordering::Relaxed) >= settings.connections_max => {
                tracing::warn!(local = %listener.local(), "too many NBD connections; closed one");
            }
            Ok(accepted) => {
                let guard = Open::enter(&open);
                let (exports, settings) = (exports.clone(), settings.clone());
                let serve = move || serve(accepted, exports, settings, guard);
                next.set(next.get().wrapping_add(1));
                match reactors.get(next.get() % reactors.len().max(1)) {
                    None => spawn(serve()).detach(),
                    Some(reactor) => {
                        if let Err(error) = reactor.spawn(serve) {
                            tracing::warn!(%error, "could not hand an NBD connection over");
                        }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(local = %listener.local(), %error, "could not accept an NBD connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Counts a connection as open until dropped.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn enter(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(accepted: Detached, exports: Exports, settings: NbdSettings, _open: Open) {
    let stream = match net::attach(accepted) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "could not attach an NBD connection"),
    };
    let peer = stream.peer().clone();
    let pool = buffers();
    let mut negotiation = Negotiation::new(stream, pool.clone(), &exports, settings.allow_resize);
    let agreed = match timeout(settings.negotiation_timeout, negotiation.run()).await {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(reason)) => {
            tracing::debug!(%peer, %reason, "NBD negotiation ended");
            return finish(negotiation.stream, negotiation.output).await;
        }
        Err(_) => return tracing::debug!(%peer, "NBD client chose no export in time"),
    };
    let whole_device = agreed.export.device;
    let device = match whole_device.clone().attach().await {
        Ok(device) => device,
        Err(error) => {
            let export = whole_device.name();
            return tracing::warn!(%peer, export, %error, "could not attach the device of an NBD export");
        }
    };
    let Negotiation {
        stream,
        input,
        output,
        ..
    } = negotiation;
    let session = Session::new(Parts {
        stream,
        input,
        output,
        pool,
        device,
        whole_device,
        style: agreed.style,
        block_status: agreed.block_status,
        allow_resize: settings.allow_resize,
        stall_timeout: settings.stall_timeout,
    });
    let (end, stream, output) = session.run().await;
    match end {
        End::Closed | End::Disconnected => tracing::debug!(%peer, reason = %end, "NBD connection ended"),
        _ => tracing::warn!(%peer, reason = %end, "NBD connection ended"),
    }
    if matches!(end, End::Disconnected) {
        finish(stream, output).await;
    }
}
