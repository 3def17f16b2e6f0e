//! Listening, connecting and accepting.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use pollux_reactor::net::{Address, Detached};

use super::endpoint::{EndpointId, Phase};
use super::stream::Token;
use super::{BACKLOG_MAX, Network, NetworkEvent, State};
use crate::MachineId;

/// The number of a listener; never used twice in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ListenerId(pub(super) u64);

pub(super) struct ListenerState {
    pub(super) machine: MachineId,
    pub(super) local: Address,
    waiting: VecDeque<EndpointId>,
    waker: Option<Waker>,
}

impl ListenerState {
    fn answers(&self, machine: MachineId, address: &Address) -> bool {
        if self.machine != machine {
            return false;
        }
        match (&self.local, address) {
            (Address::Tcp(local), Address::Tcp(asked)) => {
                local.port() == asked.port() && (local.ip().is_unspecified() || local.ip() == asked.ip())
            }
            (local, asked) => local == asked,
        }
    }
}

impl Network {
    pub(super) fn open_listener(
        &self,
        machine: MachineId,
        address: &Address,
    ) -> io::Result<(ListenerId, Address)> {
        self.update(|state| {
            let mut local = address.clone();
            if let Address::Tcp(address) = &mut local {
                let ip = address.ip();
                let own = |host: &super::Host| host.addresses.contains(&ip);
                let here = ip.is_loopback()
                    || ip.is_unspecified()
                    || state.hosts.get(machine.0 as usize).is_some_and(own);
                if !here {
                    return Err(io::ErrorKind::AddrNotAvailable.into());
                }
                if address.port() == 0 {
                    address.set_port(state.take_port(machine));
                }
            }
            if state.listeners.values().any(|listener| {
                listener.answers(machine, &local)
                    || (listener.machine == machine && overlap(&listener.local, &local))
            }) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            let id = ListenerId(state.next_listener);
            state.next_listener += 1;
            state.listeners.insert(
                id,
                ListenerState {
                    machine,
                    local: local.clone(),
                    waiting: VecDeque::new(),
                    waker: None,
                },
            );
            Ok((id, local))
        })
    }

    pub(super) fn close_listener(&self, id: ListenerId) {
        let dropped = self.update(|state| self.drop_listener(state, id));
        drop(dropped);
    }

    /// Removes a listener; connections that wait for it are reset.
    pub(super) fn drop_listener(&self, state: &mut State, id: ListenerId) -> Option<ListenerState> {
        let mut listener = state.listeners.remove(&id)?;
        for endpoint in std::mem::take(&mut listener.waiting) {
            self.abort_end(state, endpoint);
        }
        Some(listener)
    }

    pub(super) fn poll_accept(
        &self,
        id: ListenerId,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Detached>> {
        self.update(|state| {
            let Some(listener) = state.listeners.get_mut(&id) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            if listener.waiting.is_empty() {
                state
                    .discarded
                    .extend(listener.waker.replace(context.waker().clone()));
                return Poll::Pending;
            }
            if state.random.chance(self.options.accept_error_probability) {
                return Poll::Ready(Err(io::Error::other("no descriptor is left (simulated)")));
            }
            match listener.waiting.pop_front() {
                Some(endpoint) => {
                    Poll::Ready(Ok(Detached::new(Token::new(endpoint, self.abandoned.clone()))))
                }
                None => Poll::Pending,
            }
        })
    }

    pub(super) fn start_connect(&self, machine: MachineId, address: &Address) -> io::Result<EndpointId> {
        let now = self.timeline.now();
        self.update(|state| {
            let target = state.resolve(machine, address);
            let local = state.local_address(machine, address);
            let client = state.add_endpoint(
                &self.options,
                (machine, local),
                (target, address.clone()),
                Phase::Connecting(now),
            );
            self.send_connect(state, client, 0);
            Ok(client)
        })
    }

    pub(super) fn poll_connected(
        &self,
        client: EndpointId,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.update(|state| {
            let Some(end) = state.endpoints.get_mut(&client) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            match end.phase {
                Phase::Open => Poll::Ready(Ok(())),
                Phase::Failed(error) => Poll::Ready(Err(error.into())),
                Phase::Connecting(_) => {
                    state
                        .discarded
                        .extend(end.writer.replace(context.waker().clone()));
                    Poll::Pending
                }
            }
        })
    }

    fn send_connect(&self, state: &mut State, client: EndpointId, attempt: u32) {
        let now = self.timeline.now();
        let Some((machine, target)) = state
            .endpoints
            .get(&client)
            .map(|end| (end.machine, end.peer_machine))
        else {
            return;
        };
        let arrival = match target {
            Some(target) => state.link(machine, target).arrival(now, 0),
            None => now,
        };
        self.schedule(arrival, NetworkEvent::Connect { client, attempt });
    }

    /// Tries a lost connect again after a pause, or gives up.
    fn retry_connect(&self, state: &mut State, client: EndpointId, attempt: u32) {
        let now = self.timeline.now();
        let Some(end) = state.endpoints.get(&client) else {
            return;
        };
        let Phase::Connecting(since) = end.phase else {
            return;
        };
        let limit = since + self.options.connect_timeout;
        let again = now + self.pause(attempt);
        if again >= limit {
            if now >= limit {
                state.fail(client, io::ErrorKind::TimedOut);
            } else {
                self.schedule(
                    limit,
                    NetworkEvent::Connect {
                        client,
                        attempt: attempt + 1,
                    },
                );
            }
        } else {
            self.schedule(
                again,
                NetworkEvent::Connect {
                    client,
                    attempt: attempt + 1,
                },
            );
        }
    }

    /// A connect reaches the machine it is for, or does not.
    pub(super) fn on_connect(&self, state: &mut State, client: EndpointId, attempt: u32) {
        let now = self.timeline.now();
        let Some(end) = state.endpoints.get(&client) else {
            return;
        };
        let (from, target, remote, local) = (
            end.machine,
            end.peer_machine,
            end.remote.clone(),
            end.local.clone(),
        );
        if !matches!(end.phase, Phase::Connecting(_)) {
            return;
        }
        let Some(target) = target.filter(|_| !state.is_blocked(from, target)) else {
            return self.retry_connect(state, client, attempt);
        };
        let link = state.link(from, target);
        let (lost, refused) = (
            link.random.chance(link.rule.loss_probability),
            link.random.chance(link.rule.refuse_probability),
        );
        if lost {
            return self.retry_connect(state, client, attempt);
        }
        let listening = state
            .listeners
            .values()
            .position(|listener| listener.answers(target, &remote));
        let Some(index) = listening.filter(|_| !refused) else {
            let arrival = state.link(target, from).arrival(now, 0);
            self.schedule(arrival, NetworkEvent::Refused { client, from: target });
            // Should the refusal be lost, the connect is tried again.
            return self.retry_connect(state, client, attempt);
        };
        let full = state
            .listeners
            .values()
            .nth(index)
            .is_none_or(|entry| entry.waiting.len() >= BACKLOG_MAX);
        if full {
            return self.retry_connect(state, client, attempt);
        }
        let server = state.add_endpoint(&self.options, (target, remote), (Some(from), local), Phase::Open);
        if let Some(end) = state.endpoints.get_mut(&server) {
            end.peer = Some(client);
        }
        if let Some(listener) = state.listeners.values_mut().nth(index) {
            listener.waiting.push_back(server);
            state.woken.extend(listener.waker.take());
        }
        let arrival = state.link(target, from).arrival(now, 0);
        self.schedule(
            arrival,
            NetworkEvent::Connected {
                client,
                server,
                attempt,
            },
        );
    }

    pub(super) fn on_connected(
        &self,
        state: &mut State,
        client: EndpointId,
        server: EndpointId,
        attempt: u32,
    ) {
        let Some(machine) = state.endpoints.get(&server).map(|end| end.machine) else {
            // The server gave it up again before the answer arrived: its reset, or a retry, follows.
            return self.retry_connect(state, client, attempt);
        };
        let waits = |state: &State| {
            state
                .endpoints
                .get(&client)
                .is_some_and(|end| matches!(end.phase, Phase::Connecting(_)))
        };
        if !waits(state) {
            // Nobody waits for it any more: the client's machine says so.
            return self.send_reset(state, server);
        }
        let from = state.endpoints.get(&client).map(|end| end.machine);
        if state.is_blocked(machine, from) {
            // The answer is repeated, as TCP does, until the client has given up.
            let pause = self.pause(attempt);
            let again = NetworkEvent::Connected {
                client,
                server,
                attempt: attempt + 1,
            };
            self.schedule(self.timeline.now() + pause, again);
            return self.expire_connect(state, client);
        }
        if let Some(end) = state.endpoints.get_mut(&client) {
            end.phase = Phase::Open;
            end.peer = Some(server);
            state.woken.extend(end.writer.take());
        }
    }

    fn expire_connect(&self, state: &mut State, client: EndpointId) {
        if let Some(end) = state.endpoints.get(&client)
            && let Phase::Connecting(since) = end.phase
            && self.timeline.now() >= since + self.options.connect_timeout
        {
            state.fail(client, io::ErrorKind::TimedOut);
        }
    }

    pub(super) fn on_refused(&self, state: &mut State, client: EndpointId, from: MachineId) {
        let Some(end) = state.endpoints.get(&client) else {
            return;
        };
        let (machine, waits) = (end.machine, matches!(end.phase, Phase::Connecting(_)));
        if waits && !state.is_blocked(from, Some(machine)) {
            state.fail(client, io::ErrorKind::ConnectionRefused);
        }
    }
}

/// Whether two listeners would answer one address.
fn overlap(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => {
            let wild = |address: &SocketAddr| address.ip().is_unspecified();
            one.port() == other.port() && (wild(one) || wild(other) || one.ip() == other.ip())
        }
        (one, other) => one == other,
    }
}
