//! Bytes on their way: sending, receiving, closing, and what arrives.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll};
use std::time::Duration;

use super::endpoint::{Endpoint, EndpointId, Phase, Segment};
use super::{Credit, Network, NetworkEvent, State};
use crate::MachineId;
use crate::random::hash_bytes;

/// Read bytes are credited to the sender once they are this part of its window, or all that there was.
const CREDIT_PART: usize = 4;

impl Network {
    pub(super) fn poll_receive(
        &self,
        id: EndpointId,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.update(|state| {
            let Some(end) = state.endpoints.get_mut(&id) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            if into.iter().all(|piece| piece.is_empty()) {
                return Poll::Ready(Ok(0));
            }
            if let Some(taken) = end.take(into) {
                self.credit(state, id);
                return Poll::Ready(Ok(taken));
            }
            if let Phase::Failed(error) = end.phase {
                return Poll::Ready(Err(error.into()));
            }
            if end.end_received {
                return Poll::Ready(Ok(0));
            }
            state
                .discarded
                .extend(end.reader.replace(context.waker().clone()));
            Poll::Pending
        })
    }

    pub(super) fn poll_send(
        &self,
        id: EndpointId,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let now = self.timeline.now();
        self.update(|state| {
            let Some(end) = state.endpoints.get_mut(&id) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            if let Phase::Failed(error) = end.phase {
                return Poll::Ready(Err(error.into()));
            }
            if end.end_sent {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if from.iter().all(|piece| piece.is_empty()) {
                return Poll::Ready(Ok(0));
            }
            let Some(bytes) = end.give(from) else {
                state
                    .discarded
                    .extend(end.writer.replace(context.waker().clone()));
                return Poll::Pending;
            };
            let (machine, peer_machine) = (end.machine, end.peer_machine);
            let taken = bytes.len();
            let arrival = match peer_machine {
                Some(peer) => state.link(machine, peer).arrival(now, taken),
                None => now,
            };
            self.enqueue(state, id, Segment::Data { bytes, arrival });
            Poll::Ready(Ok(taken))
        })
    }

    pub(super) fn shutdown(&self, id: EndpointId) -> io::Result<()> {
        self.update(|state| {
            let Some(end) = state.endpoints.get(&id) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            if let Phase::Failed(error) = end.phase {
                return Err(error.into());
            }
            self.send_end(state, id);
            Ok(())
        })
    }

    /// The application let go of an end.
    pub(super) fn close(&self, id: EndpointId) {
        let closed = self.update(|state| self.close_end(state, id));
        drop(closed);
    }

    /// Closes an end as a kernel does: what was sent still arrives; unread bytes turn the close into a reset.
    pub(super) fn close_end(&self, state: &mut State, id: EndpointId) -> Option<Endpoint> {
        let end = state.endpoints.get_mut(&id)?;
        end.held = false;
        match end.phase {
            Phase::Connecting(_) | Phase::Failed(_) => state.endpoints.remove(&id),
            Phase::Open if !end.received.is_empty() => {
                self.abort_end(state, id);
                None
            }
            Phase::Open => {
                self.send_end(state, id);
                self.remove_finished(state, id)
            }
        }
    }

    /// Ends a connection with a reset to the peer.
    pub(super) fn abort_end(&self, state: &mut State, id: EndpointId) {
        let peer = state.endpoints.get(&id).and_then(|end| end.peer);
        if let Some(peer) = peer {
            self.send_reset(state, peer);
        }
        if let Some(end) = state.endpoints.get_mut(&id) {
            end.held = false;
        }
        state.fail(id, io::ErrorKind::ConnectionReset);
    }

    fn send_end(&self, state: &mut State, id: EndpointId) {
        let now = self.timeline.now();
        let Some(end) = state.endpoints.get_mut(&id).filter(|end| !end.end_sent) else {
            return;
        };
        end.end_sent = true;
        let (machine, peer_machine) = (end.machine, end.peer_machine);
        let arrival = match peer_machine {
            Some(peer) => state.link(machine, peer).arrival(now, 0),
            None => now,
        };
        self.enqueue(state, id, Segment::Fin { arrival });
    }

    fn enqueue(&self, state: &mut State, id: EndpointId, segment: Segment) {
        let Some(end) = state.endpoints.get_mut(&id) else {
            return;
        };
        if !end.delivery_scheduled {
            end.delivery_scheduled = true;
            self.schedule(segment.arrival(), NetworkEvent::Deliver { sender: id });
        }
        end.outgoing.push_back(segment);
    }

    /// Has the machine on the other side of an end tell it that there is no connection.
    pub(super) fn send_reset(&self, state: &mut State, to: EndpointId) {
        let Some((machine, Some(from))) = state
            .endpoints
            .get(&to)
            .map(|end| (end.machine, end.peer_machine))
        else {
            return;
        };
        let arrival = state.link(from, machine).arrival(self.timeline.now(), 0);
        self.schedule(arrival, NetworkEvent::Reset { to, from });
    }

    /// Tells the sender, after a while, that bytes were read.
    fn credit(&self, state: &mut State, id: EndpointId) {
        let Some(end) = state.endpoints.get_mut(&id) else {
            return;
        };
        let (Some(peer), Some(peer_machine)) = (end.peer, end.peer_machine) else {
            return;
        };
        let window_bytes = end.window_bytes;
        if !end.received.is_empty() && end.uncredited < window_bytes / CREDIT_PART {
            return;
        }
        let (machine, bytes) = (end.machine, std::mem::take(&mut end.uncredited));
        let arrival = state.link(machine, peer_machine).arrival(self.timeline.now(), 0);
        let event = NetworkEvent::Credit(Credit {
            sender: peer,
            from: machine,
            bytes,
            lost_since: None,
        });
        self.schedule(arrival, event);
    }

    /// How long to wait before something is sent again.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let doubled = self
            .options
            .retransmission_min
            .saturating_mul(1 << attempt.min(20));
        doubled.min(self.options.retransmission_max)
    }

    /// Something arrives, or would.
    pub(crate) fn handle(&self, event: NetworkEvent) {
        let dropped = self.update(|state| match event {
            NetworkEvent::Connect { client, attempt } => {
                self.timeline
                    .note("connect arrives", client.0, u64::from(attempt));
                self.on_connect(state, client, attempt);
                None
            }
            NetworkEvent::Connected {
                client,
                server,
                attempt,
            } => {
                self.timeline.note("connected", client.0, server.0);
                self.on_connected(state, client, server, attempt);
                None
            }
            NetworkEvent::Refused { client, from } => {
                self.timeline.note("refused", client.0, u64::from(from.0));
                self.on_refused(state, client, from);
                None
            }
            NetworkEvent::Deliver { sender } => self.on_deliver(state, sender),
            NetworkEvent::Credit(credit) => {
                self.on_credit(state, credit);
                None
            }
            NetworkEvent::Reset { to, from } => {
                self.timeline.note("reset arrives", to.0, u64::from(from.0));
                self.on_reset(state, to, from);
                None
            }
        });
        drop(dropped);
    }

    fn on_deliver(&self, state: &mut State, sender: EndpointId) -> Option<Endpoint> {
        let now = self.timeline.now();
        let end = state.endpoints.get_mut(&sender)?;
        end.delivery_scheduled = false;
        let (machine, Some(peer_machine), Some(peer)) = (end.machine, end.peer_machine, end.peer) else {
            return None;
        };
        if end.outgoing.is_empty() {
            return None;
        }
        let blocked = state.is_blocked(machine, Some(peer_machine));
        let link = state.link(machine, peer_machine);
        let lost = link.random.chance(link.rule.loss_probability);
        let reset = link.random.chance(link.rule.reset_probability);
        if blocked || lost {
            self.retransmit(state, sender);
            return None;
        }
        if reset {
            self.timeline
                .note("connection reset by the link", sender.0, peer.0);
            state.fail(sender, io::ErrorKind::ConnectionReset);
            state.fail(peer, io::ErrorKind::ConnectionReset);
            return None;
        }
        let end = state.endpoints.get_mut(&sender)?;
        (end.stalled_since, end.attempts) = (None, 0);
        loop {
            let end = state.endpoints.get_mut(&sender)?;
            let Some(segment) = end.outgoing.front() else {
                return self.remove_finished(state, sender);
            };
            if segment.arrival() > now {
                end.delivery_scheduled = true;
                self.schedule(segment.arrival(), NetworkEvent::Deliver { sender });
                return None;
            }
            let segment = end.outgoing.pop_front()?;
            if !self.arrive(state, peer, segment) {
                self.send_reset(state, sender);
                if let Some(end) = state.endpoints.get_mut(&sender) {
                    end.outgoing.clear();
                }
            }
        }
    }

    /// Hands a segment to the peer; whether anyone was there to take it.
    fn arrive(&self, state: &mut State, peer: EndpointId, segment: Segment) -> bool {
        let Some(end) = state.endpoints.get_mut(&peer) else {
            return false;
        };
        if matches!(end.phase, Phase::Failed(_)) {
            return false;
        }
        match segment {
            Segment::Data { bytes, .. } => {
                self.timeline.note("bytes arrive", peer.0, hash_bytes(0, &bytes));
                if !end.held {
                    return false;
                }
                end.received.extend(bytes);
            }
            Segment::Fin { .. } => {
                self.timeline.note("end arrives", peer.0, 0);
                end.end_received = true;
            }
        }
        state.woken.extend(end.reader.take());
        true
    }

    /// The head of what an end sent was lost: sends it again later, or gives up.
    fn retransmit(&self, state: &mut State, sender: EndpointId) {
        let now = self.timeline.now();
        let Some(end) = state.endpoints.get_mut(&sender) else {
            return;
        };
        let since = *end.stalled_since.get_or_insert(now);
        if now >= since + self.options.stream_timeout {
            self.timeline.note("stream timed out", sender.0, 0);
            state.fail(sender, io::ErrorKind::TimedOut);
            return;
        }
        let pause = self.pause(end.attempts);
        end.attempts += 1;
        end.delivery_scheduled = true;
        let pause = pause + end.random.duration(Duration::ZERO..=pause / 4);
        let again = (now + pause).min(since + self.options.stream_timeout);
        self.schedule(again, NetworkEvent::Deliver { sender });
    }

    /// The peer has read bytes, and this is its acknowledgement. An end whose peer cannot acknowledge gives
    /// up too.
    fn on_credit(&self, state: &mut State, credit: Credit) {
        let now = self.timeline.now();
        let Some(machine) = state.endpoints.get(&credit.sender).map(|end| end.machine) else {
            return;
        };
        if state.is_blocked(credit.from, Some(machine)) {
            let since = credit.lost_since.unwrap_or(now);
            if now >= since + self.options.stream_timeout {
                self.timeline.note("stream timed out", credit.sender.0, 1);
                return state.fail(credit.sender, io::ErrorKind::TimedOut);
            }
            let lost_since = Some(since);
            let again = NetworkEvent::Credit(Credit { lost_since, ..credit });
            return self.schedule(now + self.options.retransmission_min, again);
        }
        if let Some(end) = state.endpoints.get_mut(&credit.sender) {
            end.unacknowledged = end.unacknowledged.saturating_sub(credit.bytes);
            state.woken.extend(end.writer.take());
        }
    }

    fn on_reset(&self, state: &mut State, to: EndpointId, from: MachineId) {
        let Some(machine) = state.endpoints.get(&to).map(|end| end.machine) else {
            return;
        };
        if state.is_blocked(from, Some(machine)) {
            return;
        }
        if let Some(end) = state.endpoints.get_mut(&to)
            && end.random.chance(0.5)
        {
            end.received.clear();
        }
        state.fail(to, io::ErrorKind::ConnectionReset);
    }

    fn remove_finished(&self, state: &mut State, id: EndpointId) -> Option<Endpoint> {
        if state.endpoints.get(&id)?.is_finished() {
            return state.endpoints.remove(&id);
        }
        None
    }
}
