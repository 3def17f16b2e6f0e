//! Clients that stop in the middle of something, and what they hold meanwhile.
//!
//! A client may be idle for as long as it likes. One that has sent a part of a request, or does not take its
//! replies, holds memory that other connections wait for; it is let go when it has moved nothing for a time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pollux_reactor::Sleep;

/// Looks at the client now and then; costs nothing while it moves.
pub(super) struct Watch {
    limit: Duration,
    timer: Sleep,
    moved: bool,
}

impl Watch {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            timer: pollux_reactor::sleep(limit),
            moved: true,
        }
    }

    /// The client sent or took something, or there is nothing that it should.
    pub(super) fn note_progress(&mut self) {
        self.moved = true;
    }

    /// The time that has passed without any progress, if that is too long: from one limit to two.
    pub(super) fn poll_stalled(&mut self, context: &mut Context<'_>) -> Option<Duration> {
        while let Poll::Ready(()) = Pin::new(&mut self.timer).poll(context) {
            if !self.moved {
                return Some(self.limit);
            }
            self.moved = false;
            self.timer.reset(pollux_reactor::now() + self.limit);
        }
        None
    }
}
