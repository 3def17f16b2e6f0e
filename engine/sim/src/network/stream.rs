//! What the reactors of simulated machines hold: streams, listeners, connects under way.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use pollux_reactor::net::{Address, Connecting, Detached, Listener, Stream};

use super::endpoint::EndpointId;
use super::{ListenerId, Network};
use crate::MachineId;

/// Ends of connections that were dropped while detached, when the network could not be reached.
pub(super) type Abandoned = Arc<Mutex<Vec<EndpointId>>>;

/// An end of a connection between two reactors of one machine.
pub(super) struct Token {
    endpoint: EndpointId,
    abandoned: Abandoned,
    taken: bool,
}

impl Token {
    pub(super) fn new(endpoint: EndpointId, abandoned: Abandoned) -> Self {
        Self {
            endpoint,
            abandoned,
            taken: false,
        }
    }

    fn take(mut self) -> EndpointId {
        self.taken = true;
        self.endpoint
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if !self.taken {
            self.abandoned
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(self.endpoint);
        }
    }
}

/// A stream on one reactor. Closes its end when dropped.
struct SimStream {
    network: Rc<Network>,
    endpoint: EndpointId,
    local: Address,
    peer: Address,
    /// The end went to someone else and is not closed here.
    released: bool,
}

pub(super) fn open(network: &Rc<Network>, endpoint: EndpointId) -> io::Result<Box<dyn Stream>> {
    let (local, peer) = network.addresses(endpoint)?;
    Ok(Box::new(SimStream {
        network: network.clone(),
        endpoint,
        local,
        peer,
        released: false,
    }))
}

impl Stream for SimStream {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.network.poll_receive(self.endpoint, context, into)
    }

    fn poll_send(&mut self, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.network.poll_send(self.endpoint, context, from)
    }

    fn shutdown(&mut self) -> io::Result<()> {
        self.network.shutdown(self.endpoint)
    }

    fn peer(&self) -> &Address {
        &self.peer
    }

    fn local(&self) -> &Address {
        &self.local
    }

    fn detach(mut self: Box<Self>) -> io::Result<Detached> {
        self.released = true;
        Ok(Detached::new(self.network.detach(self.endpoint)))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if !self.released {
            self.network.close(self.endpoint);
        }
    }
}

/// Attaches a stream that a reactor of the same machine detached or accepted.
pub(super) fn attach(
    network: &Rc<Network>,
    machine: MachineId,
    detached: Detached,
) -> io::Result<Box<dyn Stream>> {
    let token = detached.downcast::<Token>().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the stream is not of this simulation",
        )
    })?;
    if network
        .machine_of(token.endpoint)
        .is_some_and(|owner| owner != machine)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the stream is of another machine",
        ));
    }
    let stream = open(network, token.endpoint)?;
    token.take();
    Ok(stream)
}

struct SimListener {
    network: Rc<Network>,
    listener: ListenerId,
    local: Address,
}

pub(super) fn listen(
    network: &Rc<Network>,
    machine: MachineId,
    address: &Address,
) -> io::Result<Box<dyn Listener>> {
    let (listener, local) = network.open_listener(machine, address)?;
    Ok(Box::new(SimListener {
        network: network.clone(),
        listener,
        local,
    }))
}

impl Listener for SimListener {
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Detached>> {
        self.network.poll_accept(self.listener, context)
    }

    fn local(&self) -> &Address {
        &self.local
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.network.close_listener(self.listener);
    }
}

/// A connect under way; gives its end back when it is dropped before its time.
struct Attempt {
    network: Rc<Network>,
    endpoint: Option<EndpointId>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            self.network.close(endpoint);
        }
    }
}

pub(super) fn connect(network: &Rc<Network>, machine: MachineId, address: &Address) -> Connecting {
    let network = network.clone();
    let address = address.clone();
    Box::pin(async move {
        let endpoint = network.start_connect(machine, &address)?;
        let mut attempt = Attempt {
            network: network.clone(),
            endpoint: Some(endpoint),
        };
        poll_fn(|context| network.poll_connected(endpoint, context)).await?;
        let stream = open(&network, endpoint)?;
        attempt.endpoint = None;
        Ok(stream)
    })
}
