//! Asynchronous events (NVMe Base 2.0, 5.2): what the controller tells without being asked.
//!
//! Invariants:
//! - An event that the host did not enable is not kept.
//! - A kind of event that was told is masked until the host reads its log page with RAE clear; one more of
//!   it then waits, once, however often it happened.
//! - Each request of the host ends with exactly one event, an abort, or the controller's reset.

use std::task::Waker;

use crate::wire::command::CompletionEntry;
use crate::wire::features::{AsyncEvent, AsyncEventConfiguration};
use crate::wire::status::Status;

/// The events that a controller of this target can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// A namespace was added, removed or changed.
    NamespaceAttributes,
    /// The discovery log changed.
    DiscoveryLog,
    /// The access state of a namespace changed.
    AccessState,
    /// The spare of a drive fell below its threshold.
    Spare,
    /// A temperature crossed a threshold.
    Temperature,
    /// A drive became unreliable.
    Reliability,
    /// A drive became read only.
    ReadOnly,
    /// There is a reservation notification to be read.
    Reservation,
}

impl EventKind {
    const ALL: [Self; 8] = [
        Self::NamespaceAttributes,
        Self::AccessState,
        Self::DiscoveryLog,
        Self::Spare,
        Self::Temperature,
        Self::Reliability,
        Self::ReadOnly,
        Self::Reservation,
    ];

    const fn bit(self) -> u8 {
        1 << self as u8
    }

    const fn event(self) -> AsyncEvent {
        match self {
            Self::NamespaceAttributes => AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED,
            Self::AccessState => AsyncEvent::ANA_CHANGED,
            Self::DiscoveryLog => AsyncEvent::DISCOVERY_LOG_CHANGED,
            Self::Spare => AsyncEvent::SPARE,
            Self::Temperature => AsyncEvent::TEMPERATURE,
            Self::Reliability | Self::ReadOnly => AsyncEvent::RELIABILITY,
            Self::Reservation => AsyncEvent::RESERVATION_NOTIFICATION,
        }
    }

    const fn enabled_by(self) -> AsyncEventConfiguration {
        match self {
            Self::NamespaceAttributes => AsyncEventConfiguration::NAMESPACE_ATTRIBUTES,
            Self::AccessState => AsyncEventConfiguration::ANA_CHANGE,
            Self::DiscoveryLog => AsyncEventConfiguration::DISCOVERY_LOG_CHANGE,
            Self::Spare => AsyncEventConfiguration::SPARE,
            Self::Temperature => AsyncEventConfiguration::TEMPERATURE,
            Self::Reliability => AsyncEventConfiguration::RELIABILITY,
            Self::ReadOnly => AsyncEventConfiguration::READ_ONLY,
            // These are masked by a feature of their own, before they come here.
            Self::Reservation => AsyncEventConfiguration::empty(),
        }
    }
}

struct Request {
    token: u64,
    command_id: u16,
    outcome: Option<CompletionEntry>,
    waker: Option<Waker>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Events {
    enabled: AsyncEventConfiguration,
    pending: u8,
    masked: u8,
    /// In the order of arrival.
    requests: Vec<Request>,
    next_token: u64,
}

impl Events {
    /// Takes a request in; its token is to be polled.
    pub(crate) fn request(&mut self, command_id: u16, limit: usize) -> Result<u64, Status> {
        if self
            .requests
            .iter()
            .filter(|request| request.outcome.is_none())
            .count()
            >= limit
        {
            return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED);
        }
        let token = self.next_token;
        self.next_token += 1;
        self.requests.push(Request {
            token,
            command_id,
            outcome: None,
            waker: None,
        });
        self.deliver();
        Ok(token)
    }

    /// What became of a request; if nothing yet, the waker is woken when something does.
    pub(crate) fn poll(&mut self, token: u64, waker: &Waker) -> Option<CompletionEntry> {
        let index = self.requests.iter().position(|request| request.token == token)?;
        let request = self.requests.get_mut(index)?;
        if request.outcome.is_none() {
            request.waker = Some(waker.clone());
            return None;
        }
        self.requests.remove(index).outcome
    }

    /// Nobody waits for a request any more. An event that it had already is told to the next one.
    pub(crate) fn forget(&mut self, token: u64) {
        self.requests.retain(|request| request.token != token);
    }

    /// Something happened.
    pub(crate) fn raise(&mut self, kind: EventKind) {
        if self.enabled.contains(kind.enabled_by()) {
            self.pending |= kind.bit();
            self.deliver();
        }
    }

    /// The host read a log page and did not ask to retain its event. With `complete`, what happened so far
    /// was in it.
    pub(crate) fn log_was_read(&mut self, log_page: u8, complete: bool) {
        for kind in EventKind::ALL
            .into_iter()
            .filter(|kind| kind.event().log_page == log_page)
        {
            self.masked &= !kind.bit();
            if complete {
                self.pending &= !kind.bit();
            }
        }
        self.deliver();
    }

    /// Which events the host wants.
    pub(crate) fn enabled(&self) -> AsyncEventConfiguration {
        self.enabled
    }

    /// Sets which events the host wants.
    pub(crate) fn enable(&mut self, enabled: AsyncEventConfiguration) {
        self.enabled = enabled;
        for kind in EventKind::ALL
            .into_iter()
            .filter(|kind| !enabled.contains(kind.enabled_by()))
        {
            self.pending &= !kind.bit();
        }
    }

    /// Ends one request by its command identifier.
    pub(crate) fn abort(&mut self, command_id: u16) -> bool {
        let found = self
            .requests
            .iter_mut()
            .find(|request| request.command_id == command_id && request.outcome.is_none());
        let Some(request) = found else {
            return false;
        };
        finish(request, Status::ABORT_REQUESTED, 0);
        true
    }

    /// Ends every request and forgets every event.
    pub(crate) fn reset(&mut self) {
        for request in self
            .requests
            .iter_mut()
            .filter(|request| request.outcome.is_none())
        {
            finish(request, Status::ABORTED_QUEUE_DELETED, 0);
        }
        (self.enabled, self.pending, self.masked) = (AsyncEventConfiguration::empty(), 0, 0);
    }

    fn deliver(&mut self) {
        for kind in EventKind::ALL {
            if self.pending & kind.bit() == 0 || self.masked & kind.bit() != 0 {
                continue;
            }
            let Some(request) = self.requests.iter_mut().find(|request| request.outcome.is_none()) else {
                return;
            };
            self.pending &= !kind.bit();
            self.masked |= kind.bit();
            finish(request, Status::SUCCESS, kind.event().to_dword());
        }
    }
}

fn finish(request: &mut Request, status: Status, result: u32) {
    request.outcome = Some(CompletionEntry::new(request.command_id, status, result.into()));
    if let Some(waker) = request.waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Events {
        let mut events = Events::default();
        events.enable(AsyncEventConfiguration::NAMESPACE_ATTRIBUTES | AsyncEventConfiguration::TEMPERATURE);
        events
    }

    fn poll(events: &mut Events, token: u64) -> Option<(Status, u32)> {
        events
            .poll(token, Waker::noop())
            .map(|entry| (entry.status(), entry.result_low()))
    }

    #[test]
    fn an_event_ends_the_oldest_request() {
        let mut events = events();
        let first = events.request(1, 4).unwrap();
        let second = events.request(2, 4).unwrap();
        assert_eq!(poll(&mut events, first), None);
        events.raise(EventKind::NamespaceAttributes);
        assert_eq!(poll(&mut events, first), Some((Status::SUCCESS, 0x0004_0002)));
        assert_eq!(poll(&mut events, second), None);
    }

    #[test]
    fn an_event_waits_for_a_request() {
        let mut events = events();
        events.raise(EventKind::NamespaceAttributes);
        let token = events.request(1, 4).unwrap();
        assert_eq!(poll(&mut events, token), Some((Status::SUCCESS, 0x0004_0002)));
    }

    #[test]
    fn what_is_not_enabled_is_not_kept() {
        let mut events = Events::default();
        events.raise(EventKind::NamespaceAttributes);
        events.enable(AsyncEventConfiguration::NAMESPACE_ATTRIBUTES);
        let token = events.request(1, 4).unwrap();
        assert_eq!(poll(&mut events, token), None);
        events.forget(token);
        events.raise(EventKind::NamespaceAttributes);
        events.enable(AsyncEventConfiguration::empty());
        let token = events.request(1, 4).unwrap();
        assert_eq!(poll(&mut events, token), None);
    }

    #[test]
    fn a_kind_is_told_once_until_its_log_is_read() {
        let mut events = events();
        let tokens: Vec<_> = (0..3).map(|id| events.request(id, 4).unwrap()).collect();
        events.raise(EventKind::NamespaceAttributes);
        assert!(poll(&mut events, tokens[0]).is_some());
        events.raise(EventKind::NamespaceAttributes);
        assert_eq!(poll(&mut events, tokens[1]), None);
        // Another kind is not held up.
        events.raise(EventKind::Temperature);
        assert_eq!(poll(&mut events, tokens[1]), Some((Status::SUCCESS, 0x0002_0101)));
        events.log_was_read(0x02, false);
        assert_eq!(poll(&mut events, tokens[2]), None);
        events.log_was_read(0x04, false);
        assert_eq!(poll(&mut events, tokens[2]), Some((Status::SUCCESS, 0x0004_0002)));
    }

    #[test]
    fn what_the_log_told_is_not_told_again() {
        let mut events = events();
        let tokens: Vec<_> = (0..2).map(|id| events.request(id, 4).unwrap()).collect();
        events.raise(EventKind::NamespaceAttributes);
        events.raise(EventKind::NamespaceAttributes);
        events.log_was_read(0x04, true);
        assert_eq!(poll(&mut events, tokens[1]), None);
        events.raise(EventKind::NamespaceAttributes);
        assert!(poll(&mut events, tokens[1]).is_some());
    }

    #[test]
    fn one_request_too_many_is_refused() {
        let mut events = events();
        assert!(events.request(1, 1).is_ok());
        assert_eq!(events.request(2, 1), Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED));
    }

    #[test]
    fn requests_are_aborted_and_reset() {
        let mut events = events();
        let tokens: Vec<_> = (0..2).map(|id| events.request(id, 4).unwrap()).collect();
        assert!(!events.abort(7) && events.abort(1));
        assert!(!events.abort(1), "it was aborted already");
        assert_eq!(poll(&mut events, tokens[1]), Some((Status::ABORT_REQUESTED, 0)));
        events.reset();
        assert_eq!(
            poll(&mut events, tokens[0]),
            Some((Status::ABORTED_QUEUE_DELETED, 0))
        );
        assert_eq!(events.enabled(), AsyncEventConfiguration::empty());
    }
}
