//! Connections of the initiator: commands to bytes and back, without knowing what a controller or a namespace
//! is.
//!
//! A [`QueuePair`] is one connection and the queue that a Connect command binds it to. It belongs to the
//! reactor it was made on. A task of its own receives and sends ([`drive`]); submitting encodes right into
//! the output, and everything submitted until the task runs leaves with one send.
//!
//! | module | what |
//! | --- | --- |
//! | [`handshake`] | ICReq and ICResp |
//! | [`slots`] | which commands are outstanding, and their data |
//! | [`protocol`] | what is said: capsules and data PDUs |
//! | [`receive`] | what is heard: completions, data, R2Ts |
//! | [`drive`] | the task: socket and wake-ups |

mod drive;
mod error;
mod handshake;
mod protocol;
mod receive;
mod room;
mod slots;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pollux_reactor::net::Address;

use crate::wire::command::SubmissionEntry;
use drive::Shared;
pub use error::{CommandError, ConnectionError};
pub use protocol::{Refused, RefusedReason};
pub use slots::{CommandId, DEPTH_MAX, Finished, Transfer};

/// How a connection is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// Commands that can be outstanding, 1 to [`DEPTH_MAX`]. Default 128.
    pub depth: u16,
    /// Whether headers are to have digests; a target that refuses is not connected to. Default false.
    pub header_digest: bool,
    /// Whether data is to have digests; a target that refuses is not connected to. Default false.
    pub data_digest: bool,
    /// How long the TCP connection, and then the exchange of ICReq and ICResp, may take. Default 5 s each.
    pub connect_timeout: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            depth: 128,
            header_digest: false,
            data_digest: false,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// One connection of the initiator. Clones are the same connection; it is closed when the last of them is
/// dropped.
#[derive(Clone)]
pub struct QueuePair(Rc<Handle>);

/// Closes the connection when it goes.
struct Handle(Rc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close("nobody uses it any more");
    }
}

impl QueuePair {
    /// Connects to a target on the current reactor. The first command has to be a Connect.
    ///
    /// # Errors
    ///
    /// [`ConnectionError`]: not reachable, no answer in time, or nothing agreed on.
    pub async fn connect(address: &Address, options: &ConnectionOptions) -> Result<Self, ConnectionError> {
        let (stream, terms) = handshake::establish(address, options).await?;
        let shared = Shared::start(stream, terms, options.depth);
        Ok(Self(Rc::new(Handle(shared))))
    }

    /// Starts a command. Its identifier and data pointer are filled in here; everything else is sent as it
    /// is.
    ///
    /// The data stays with the connection until the command is over: dropping the submission abandons the
    /// answer, not the memory.
    ///
    /// # Errors
    ///
    /// [`Refused`] with the data, when the queue is full or the connection has ended.
    #[inline]
    pub fn submit(&self, entry: &SubmissionEntry, transfer: Transfer) -> Result<Submission, Refused> {
        let command = self.shared().submit(entry, transfer)?;
        Ok(Submission {
            shared: self.shared().clone(),
            command: Some(command),
        })
    }

    /// Commands that can be outstanding.
    pub fn depth(&self) -> u16 {
        self.shared().depth()
    }

    /// Commands outstanding now: those that the target may still execute, whether somebody waits for them or
    /// not.
    pub fn outstanding(&self) -> u16 {
        self.shared().outstanding()
    }

    /// Commands that can be submitted now.
    pub fn room(&self) -> usize {
        self.shared().room()
    }

    /// Waits for its turn and for room: the submission that follows at once is not refused as
    /// [`RefusedReason::Full`]. Also ready when the connection has ended.
    pub fn ready(&self) -> Ready {
        Ready {
            shared: self.shared().clone(),
            number: None,
        }
    }

    /// Whether somebody waits in [`QueuePair::ready`]; who submits then overtakes them.
    pub fn has_waiters(&self) -> bool {
        self.shared().has_waiters()
    }

    /// Sets how much data an I/O command capsule may carry, in bytes: what follows from IOCCSZ. 0 until then.
    pub fn set_in_capsule_bytes_max(&self, bytes: u32) {
        self.shared().set_in_capsule_bytes_max(bytes);
    }

    /// The commands that have been outstanding for `age` or longer are given to `each`.
    pub fn each_overdue(&self, age: Duration, each: impl FnMut(CommandId)) {
        self.shared().each_overdue(age, each);
    }

    /// Whether a command is outstanding still.
    pub fn is_outstanding(&self, command: CommandId) -> bool {
        self.shared().is_outstanding(command)
    }

    /// How the connection ended, if it has.
    pub fn end(&self) -> Option<Ended> {
        self.shared().end()
    }

    /// Waits for the end of the connection; at once when it has ended.
    pub async fn ended(&self) -> Ended {
        std::future::poll_fn(|context| self.shared().poll_ended(context)).await
    }

    /// Ends the connection now. What is outstanding is settled with [`CommandError::ConnectionLost`]; nothing
    /// more is sent from then on.
    pub fn close(&self, reason: &'static str) {
        self.shared().close(reason);
    }

    fn shared(&self) -> &Rc<Shared> {
        &self.0.0
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("QueuePair")
            .field("depth", &self.depth())
            .field("outstanding", &self.outstanding())
            .field("end", &self.shared().end())
            .finish()
    }
}

/// How a connection came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub error: Arc<ConnectionError>,
    /// Whether a command that may change data was sent, even in part, and not answered: the target may still
    /// execute it.
    pub unsettled_mutation: bool,
}

/// The wait for room in a queue. Made by [`QueuePair::ready`].
#[must_use = "a wait does nothing until it is awaited"]
pub struct Ready {
    shared: Rc<Shared>,
    number: Option<u64>,
}

impl Future for Ready {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { shared, number } = &mut *self;
        shared.poll_room(number, context)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.shared.leave_room(number);
        }
    }
}

/// A command under way. Dropping it abandons the answer.
#[must_use = "dropping a submission abandons its answer"]
pub struct Submission {
    shared: Rc<Shared>,
    command: Option<CommandId>,
}

impl Submission {
    /// The identifier of the command, to abort it by; `None` once it is over.
    pub fn command(&self) -> Option<CommandId> {
        self.command
    }
}

impl Future for Submission {
    type Output = Finished;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Finished> {
        let over = Finished {
            outcome: Err(CommandError::ConnectionLost { sent: true }),
            transfer: Transfer::None,
        };
        let Some(command) = self.command else {
            return Poll::Ready(over);
        };
        let finished = std::task::ready!(self.shared.poll_finished(command, context));
        self.command = None;
        // The slot is this submission's alone until it is over.
        Poll::Ready(finished.unwrap_or(over))
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if let Some(command) = self.command.take() {
            self.shared.abandon(command);
        }
    }
}

impl fmt::Debug for Submission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Submission").field(&self.command).finish()
    }
}
