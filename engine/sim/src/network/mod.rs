//! The simulated network: ordered byte streams between machines, with everything that goes wrong with them.
//!
//! A connection is two ends ([`endpoint`]) and what travels between them. Bytes that are lost are sent again
//! as TCP does it: the stream stalls, in order, until the link is open again or the sender gives up. An end
//! that is gone answers with a reset; a machine that is down answers nothing. So a sender may know that a
//! connection is dead while its peer does not, for as long as the peer does not send.
//!
//! No waker is called and no foreign code runs while the state is borrowed.

mod endpoint;
mod link;
mod listener;
mod stream;
mod transfer;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::PoisonError;
use std::task::Waker;
use std::time::Duration;

use pollux_reactor::Instant;
use pollux_reactor::net::{Address, Connecting, Detached, Listener, Stream};

use crate::MachineId;
use crate::random::{Random, Seed};
use crate::timeline::{Event, Timeline};

pub use endpoint::Chop;
use endpoint::{Endpoint, EndpointId, Phase};
use link::Link;
pub use link::LinkRule;
use listener::{ListenerId, ListenerState};

/// Connections that may wait to be accepted; the connect of one more is not answered.
pub const BACKLOG_MAX: usize = 1024;

/// How the network is, apart from its links.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Bytes of each direction of a connection that are sent and not yet read; drawn for each connection.
    pub window_bytes: RangeInclusive<u64>,
    /// How often receives and sends are short; `None` draws it for each end: from never to nearly always.
    pub chop: Option<Chop>,
    /// After how long a connect without an answer fails.
    pub connect_timeout: Duration,
    /// After how long a sender gives up whose segments are lost.
    pub stream_timeout: Duration,
    /// The pause before the first retransmission; doubles each time.
    pub retransmission_min: Duration,
    /// The longest pause between retransmissions.
    pub retransmission_max: Duration,
    /// Probability that an accept fails for lack of descriptors; the connection stays in the queue.
    pub accept_error_probability: f64,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            window_bytes: 16 << 10..=1 << 20,
            chop: None,
            connect_timeout: Duration::from_secs(10),
            stream_timeout: Duration::from_secs(60),
            retransmission_min: Duration::from_millis(200),
            retransmission_max: Duration::from_secs(5),
            accept_error_probability: 0.0,
        }
    }
}

/// Something that arrives, or would.
pub(crate) enum NetworkEvent {
    /// A connect at the listener's machine.
    Connect { client: EndpointId, attempt: u32 },
    /// The answer to a connect.
    Connected {
        client: EndpointId,
        server: EndpointId,
        attempt: u32,
    },
    /// The refusal of a connect.
    Refused { client: EndpointId, from: MachineId },
    /// The head of what an end has sent.
    Deliver { sender: EndpointId },
    /// The news that the peer has read bytes.
    Credit(Credit),
    /// A reset.
    Reset { to: EndpointId, from: MachineId },
}

/// The news that the peer of an end, on a machine, has read bytes of it.
#[derive(Clone, Copy)]
pub(crate) struct Credit {
    sender: EndpointId,
    from: MachineId,
    bytes: usize,
    /// When it was first lost.
    lost_since: Option<Instant>,
}

struct Host {
    addresses: Vec<IpAddr>,
    up: bool,
    next_port: u16,
}

/// The first port given to a connect or a listener that did not ask for one.
const EPHEMERAL_PORT_FIRST: u16 = 32_768;

pub(crate) struct Network {
    timeline: Rc<Timeline>,
    options: NetworkOptions,
    abandoned: stream::Abandoned,
    state: RefCell<State>,
}

struct State {
    seed: Seed,
    random: Random,
    default_rule: LinkRule,
    hosts: Vec<Host>,
    links: BTreeMap<(MachineId, MachineId), Link>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    listeners: BTreeMap<ListenerId, ListenerState>,
    next_endpoint: u64,
    next_listener: u64,
    /// To be woken once the state is no longer borrowed.
    woken: Vec<Waker>,
    /// To be dropped then: a waker may be the last to hold a task, and that a stream.
    discarded: Vec<Waker>,
}

impl Network {
    pub(crate) fn new(timeline: Rc<Timeline>, seed: Seed, options: NetworkOptions) -> Rc<Self> {
        Rc::new(Self {
            timeline,
            options,
            abandoned: stream::Abandoned::default(),
            state: RefCell::new(State {
                seed,
                random: seed.stream("network", 0),
                default_rule: LinkRule::HEALTHY,
                hosts: Vec::new(),
                links: BTreeMap::new(),
                endpoints: BTreeMap::new(),
                listeners: BTreeMap::new(),
                next_endpoint: 0,
                next_listener: 0,
                woken: Vec::new(),
                discarded: Vec::new(),
            }),
        })
    }

    /// Changes the state, then wakes whoever is concerned.
    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, woken, discarded) = {
            let mut state = self.state.borrow_mut();
            let result = change(&mut state);
            (
                result,
                std::mem::take(&mut state.woken),
                std::mem::take(&mut state.discarded),
            )
        };
        drop(discarded);
        woken.into_iter().for_each(Waker::wake);
        result
    }

    /// Gives the next machine its addresses; machines are numbered from 0.
    pub(crate) fn add_host(&self, machine: MachineId) -> IpAddr {
        let [high, low] = (machine.0 as u16 + 1).to_be_bytes();
        let four = IpAddr::V4(Ipv4Addr::new(10, 0, high, low));
        let six = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, machine.0 as u16 + 1));
        self.update(|state| {
            state.hosts.push(Host {
                addresses: vec![four, six],
                up: true,
                next_port: EPHEMERAL_PORT_FIRST,
            });
        });
        four
    }

    pub(crate) fn set_default_rule(&self, rule: LinkRule) {
        self.update(|state| {
            for (&(from, to), link) in &mut state.links {
                if from != to {
                    link.rule = rule.clone();
                }
            }
            state.default_rule = rule;
        });
    }

    pub(crate) fn change_rule(&self, from: MachineId, to: MachineId, change: impl FnOnce(&mut LinkRule)) {
        self.update(|state| change(&mut state.link(from, to).rule));
    }

    pub(crate) fn rule(&self, from: MachineId, to: MachineId) -> LinkRule {
        self.update(|state| state.link(from, to).rule.clone())
    }

    /// Every link is as a new one.
    pub(crate) fn heal(&self) {
        self.update(|state| {
            let default = state.default_rule.clone();
            for (&(from, to), link) in &mut state.links {
                link.rule = if from == to {
                    LinkRule::LOCAL
                } else {
                    default.clone()
                };
            }
        });
    }

    /// Resets every connection between two machines, at both ends, at once.
    pub(crate) fn reset_connections(&self, one: MachineId, other: MachineId) {
        self.update(|state| {
            let between = |endpoint: &Endpoint| {
                let ends = (endpoint.machine, endpoint.peer_machine);
                ends == (one, Some(other)) || ends == (other, Some(one))
            };
            let ends: Vec<EndpointId> = state
                .endpoints
                .iter()
                .filter(|(_, end)| between(end))
                .map(|(&id, _)| id)
                .collect();
            for id in ends {
                state.fail(id, io::ErrorKind::ConnectionReset);
            }
        });
    }

    /// The machine is gone at once: nobody is told, and what arrives for it is lost.
    pub(crate) fn power_off(&self, machine: MachineId) {
        let forgotten = self.update(|state| {
            state.set_up(machine, false);
            let listeners: Vec<_> = state
                .listeners
                .extract_if(.., |_, listener| listener.machine == machine)
                .collect();
            let ends: Vec<_> = state
                .endpoints
                .extract_if(.., |_, end| end.machine == machine)
                .collect();
            (listeners, ends)
        });
        drop(forgotten);
    }

    pub(crate) fn power_on(&self, machine: MachineId) {
        self.update(|state| state.set_up(machine, true));
    }

    /// The machine's processes are gone; its kernel closes what they had open.
    pub(crate) fn kill_processes(&self, machine: MachineId) {
        let dropped = self.update(|state| {
            let of_machine = |entry: &ListenerState| entry.machine == machine;
            let listeners: Vec<ListenerId> = state
                .listeners
                .iter()
                .filter(|(_, entry)| of_machine(entry))
                .map(|(&id, _)| id)
                .collect();
            let listeners: Vec<_> = listeners
                .into_iter()
                .filter_map(|id| self.drop_listener(state, id))
                .collect();
            let ends: Vec<EndpointId> = state
                .endpoints
                .iter()
                .filter(|(_, end)| end.machine == machine)
                .map(|(&id, _)| id)
                .collect();
            let ends: Vec<_> = ends
                .into_iter()
                .filter_map(|id| self.close_end(state, id))
                .collect();
            (listeners, ends)
        });
        drop(dropped);
    }

    /// Connections that have not ended.
    pub(crate) fn connections(&self, machine: MachineId) -> usize {
        self.update(|state| {
            state
                .endpoints
                .values()
                .filter(|end| end.machine == machine && end.phase == Phase::Open)
                .count()
        })
    }

    /// Closes the ends that were dropped while they were detached.
    pub(crate) fn reap_abandoned(&self) {
        let abandoned = std::mem::take(&mut *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner));
        for endpoint in abandoned {
            self.close(endpoint);
        }
    }

    pub(crate) fn listen(
        self: &Rc<Self>,
        machine: MachineId,
        address: &Address,
    ) -> io::Result<Box<dyn Listener>> {
        stream::listen(self, machine, address)
    }

    pub(crate) fn connect(self: &Rc<Self>, machine: MachineId, address: &Address) -> Connecting {
        stream::connect(self, machine, address)
    }

    pub(crate) fn attach(
        self: &Rc<Self>,
        machine: MachineId,
        detached: Detached,
    ) -> io::Result<Box<dyn Stream>> {
        stream::attach(self, machine, detached)
    }

    fn schedule(&self, at: Instant, event: NetworkEvent) {
        self.timeline.schedule(at, Event::Network(event));
    }

    fn machine_of(&self, endpoint: EndpointId) -> Option<MachineId> {
        self.state
            .borrow()
            .endpoints
            .get(&endpoint)
            .map(|end| end.machine)
    }

    fn addresses(&self, endpoint: EndpointId) -> io::Result<(Address, Address)> {
        match self.state.borrow().endpoints.get(&endpoint) {
            Some(end) => Ok((end.local.clone(), end.remote.clone())),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn detach(&self, endpoint: EndpointId) -> stream::Token {
        let wakers = self.update(|state| {
            let end = state.endpoints.get_mut(&endpoint)?;
            Some((end.reader.take(), end.writer.take()))
        });
        drop(wakers);
        stream::Token::new(endpoint, self.abandoned.clone())
    }
}

impl State {
    fn link(&mut self, from: MachineId, to: MachineId) -> &mut Link {
        let (seed, default_rule) = (self.seed, &self.default_rule);
        self.links.entry((from, to)).or_insert_with(|| {
            let rule = if from == to {
                LinkRule::LOCAL
            } else {
                default_rule.clone()
            };
            Link::new(
                rule,
                seed.stream("network link", u64::from(from.0) << 32 | u64::from(to.0)),
            )
        })
    }

    /// Whether what is sent from one machine does not reach the other now.
    fn is_blocked(&mut self, from: MachineId, to: Option<MachineId>) -> bool {
        let Some(to) = to else {
            return true;
        };
        let up = self.hosts.get(to.0 as usize).is_some_and(|host| host.up);
        !up || self.link(from, to).rule.blocked
    }

    fn set_up(&mut self, machine: MachineId, up: bool) {
        if let Some(host) = self.hosts.get_mut(machine.0 as usize) {
            host.up = up;
        }
    }

    /// The machine that an address leads to, seen from another.
    fn resolve(&self, from: MachineId, address: &Address) -> Option<MachineId> {
        let ip = match address {
            Address::Unix(_) => return Some(from),
            Address::Tcp(address) => address.ip(),
        };
        if ip.is_loopback() || ip.is_unspecified() {
            return Some(from);
        }
        let index = self.hosts.iter().position(|host| host.addresses.contains(&ip))?;
        Some(MachineId(index as u32))
    }

    /// A port that nobody of the machine listens on.
    fn take_port(&mut self, machine: MachineId) -> u16 {
        loop {
            let Some(host) = self.hosts.get_mut(machine.0 as usize) else {
                return EPHEMERAL_PORT_FIRST;
            };
            let port = host.next_port;
            host.next_port = port.checked_add(1).unwrap_or(EPHEMERAL_PORT_FIRST);
            let taken = self.listeners.values().any(|listener| {
                listener.machine == machine
                    && matches!(&listener.local, Address::Tcp(address) if address.port() == port)
            });
            if !taken {
                return port;
            }
        }
    }

    /// The address that a machine speaks from to another address.
    fn local_address(&mut self, machine: MachineId, remote: &Address) -> Address {
        let remote = match remote {
            Address::Unix(path) => return Address::Unix(path.clone()),
            Address::Tcp(remote) => *remote,
        };
        let port = self.take_port(machine);
        let own = self.hosts.get(machine.0 as usize).and_then(|host| {
            host.addresses
                .iter()
                .copied()
                .find(|address| address.is_ipv4() == remote.is_ipv4())
        });
        let ip = match own {
            Some(own) if !remote.ip().is_loopback() => own,
            _ => remote.ip(),
        };
        Address::Tcp(SocketAddr::new(ip, port))
    }

    /// Makes one end; connected or waiting for the answer.
    fn add_endpoint(
        &mut self,
        options: &NetworkOptions,
        (machine, local): (MachineId, Address),
        (peer_machine, remote): (Option<MachineId>, Address),
        phase: Phase,
    ) -> EndpointId {
        let id = EndpointId(self.next_endpoint);
        self.next_endpoint += 1;
        let mut random = self.seed.stream("network connection", id.0);
        let window_bytes = random.within(options.window_bytes.clone()).max(1) as usize;
        let mut often = || random.pick(&[0.0, 0.02, 0.2, 0.9]).copied().unwrap_or_default();
        let drawn = Chop {
            send_probability: often(),
            receive_probability: often(),
        };
        self.endpoints.insert(
            id,
            Endpoint {
                machine,
                peer_machine,
                peer: None,
                local,
                remote,
                held: true,
                phase,
                received: VecDeque::new(),
                end_received: false,
                uncredited: 0,
                outgoing: VecDeque::new(),
                delivery_scheduled: false,
                stalled_since: None,
                attempts: 0,
                end_sent: false,
                unacknowledged: 0,
                window_bytes,
                reader: None,
                writer: None,
                chop: options.chop.unwrap_or(drawn),
                random,
            },
        );
        id
    }

    /// The connection of an end does not work any more.
    fn fail(&mut self, id: EndpointId, error: io::ErrorKind) {
        let Some(end) = self.endpoints.get_mut(&id) else {
            return;
        };
        if !matches!(end.phase, Phase::Failed(_)) {
            end.phase = Phase::Failed(error);
        }
        end.outgoing.clear();
        self.woken.extend(end.reader.take());
        self.woken.extend(end.writer.take());
        if !end.held {
            self.endpoints.remove(&id);
        }
    }
}
