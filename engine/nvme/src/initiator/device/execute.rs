//! One command of a device, to its end: sent, sent again where that is safe, and its status made an error or
//! success. Nearly every command is sent right away and over with its first answer: [`FirstTry`] is no larger
//! than that takes, and the rest is only made for the others.
//!
//! What may be sent again, and when, is argued in `docs/decisions/0005-resubmission.md`. In short: a command
//! that a connection was lost with is sent again only over a later association, and there is none before it
//! is certain that the old command is not executed any more.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pollux_device::{IoError, Reply};
use pollux_hugepages::Buffer;
use pollux_reactor::{PooledFuture, sleep};
use smallvec::SmallVec;

use super::super::connection::{CommandError, Finished, Submission, Transfer};
use super::ledger::FlushTicket;
use super::options::Resubmit;
use super::plan::{Action, Command, Operation, Pieces};
use super::queue::{Inner, Live};
use crate::status_map::error_of;
use crate::wire::command::CompletionEntry;
use crate::wire::status::Status;

/// How often a command is sent, for whatever reason, before it fails.
const TRIES_MAX: u32 = 6;

/// The pause before a command is sent again that failed for a passing reason; doubles each time.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Commands of one large request that are under way at a time.
const PIECES_UNDER_WAY_MAX: usize = 8;

/// A command that was sent right away.
pub(super) struct Sent {
    pub(super) submission: Submission,
    pub(super) live: Rc<Live>,
}

/// A command that is over, and the connection that it was sent on.
struct Over {
    finished: Finished,
    live: Rc<Live>,
}

impl Sent {
    async fn over(self) -> Over {
        let Self { submission, live } = self;
        let finished = submission.await;
        Over { finished, live }
    }
}

/// A command that was sent right away, to its end.
pub(super) struct FirstTry {
    inner: Rc<Inner>,
    operation: Operation,
    state: Try,
}

enum Try {
    First(Sent),
    /// It was not over with the first answer.
    Rest(PooledFuture<Result<Transfer, IoError>>),
}

impl FirstTry {
    pub(super) fn new(inner: Rc<Inner>, operation: Operation, sent: Sent) -> Self {
        let state = Try::First(sent);
        Self {
            inner,
            operation,
            state,
        }
    }
}

impl Future for FirstTry {
    type Output = Result<Reply, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let sent = match &mut this.state {
                Try::First(sent) => sent,
                Try::Rest(rest) => return Pin::new(rest).poll(context).map(|result| result.map(reply)),
            };
            let finished = ready!(Pin::new(&mut sent.submission).poll(context));
            if let Ok(completion) = &finished.outcome
                && completion.status().is_success()
            {
                succeeded(&this.inner, &sent.live, this.operation.action);
                return Poll::Ready(Ok(reply(finished.transfer)));
            }
            let live = sent.live.clone();
            // Its data is with what is over.
            let command = Command {
                operation: this.operation,
                transfer: Transfer::None,
            };
            let rest = execute(this.inner.clone(), command, Some(Over { finished, live }));
            this.state = Try::Rest(PooledFuture::new(rest));
        }
    }
}

/// What to do with a command that was answered, or was not.
enum Next {
    Done,
    Fail(IoError),
    Again { after: Duration },
}

/// Executes a command, or goes on with one that was sent before; returns its data.
async fn execute(
    inner: Rc<Inner>,
    mut command: Command,
    mut over: Option<Over>,
) -> Result<Transfer, IoError> {
    let mut tries = 0;
    loop {
        let Over { finished, live } = match over.take() {
            Some(over) => over,
            None => inner.send(&mut command).await?.over().await,
        };
        let Finished { outcome, transfer } = finished;
        if !matches!(outcome, Err(CommandError::ConnectionLost { sent: false })) {
            tries += 1;
        }
        match after(&inner, &live, command.operation.action, outcome, tries) {
            Next::Done => return Ok(transfer),
            Next::Fail(error) => return Err(error),
            Next::Again { after } => {
                command.transfer = transfer;
                if !after.is_zero() {
                    sleep(after).await;
                }
            }
        }
    }
}

/// Executes a command that could not be sent right away.
pub(super) async fn execute_later(inner: Rc<Inner>, command: Command) -> Result<Reply, IoError> {
    execute(inner, command, None).await.map(reply)
}

/// A command has succeeded: remembers a write that may be in a volatile cache.
#[inline]
fn succeeded(inner: &Inner, live: &Live, action: Action) {
    let shared = inner.shared();
    if shared.limits.volatile_write_cache && action.may_be_volatile() {
        shared.ledger.wrote(live.association.cache_epoch);
    }
}

fn after(
    inner: &Inner,
    live: &Live,
    action: Action,
    outcome: Result<CompletionEntry, CommandError>,
    tries: u32,
) -> Next {
    let shared = inner.shared();
    let again = tries < TRIES_MAX;
    match outcome {
        Ok(completion) => {
            let Some(error) = error_of(completion.status()) else {
                succeeded(inner, live, action);
                return Next::Done;
            };
            let status = completion.status();
            let settled = is_settled(status) || may_be_done_twice(shared.options.loss.resubmit, action);
            match passing(status, live, tries) {
                Some(after) if again && settled => Next::Again { after },
                _ => Next::Fail(told(error, status)),
            }
        }
        // The data was damaged on its way; nothing was changed by a command that brings data.
        Err(CommandError::DataDigest) if again => Next::Again {
            after: Duration::ZERO,
        },
        Err(CommandError::DataDigest) => Next::Fail(IoError::PathDown),
        Err(CommandError::ConnectionLost { sent }) => {
            let safe = !sent || may_be_done_twice(shared.options.loss.resubmit, action);
            if safe && again {
                Next::Again {
                    after: Duration::ZERO,
                }
            } else {
                Next::Fail(IoError::PathDown)
            }
        }
    }
}

/// Whether a command whose fate is unknown may be sent again.
fn may_be_done_twice(resubmit: Resubmit, action: Action) -> bool {
    match resubmit {
        Resubmit::All => true,
        Resubmit::Reads => !action.is_mutation(),
        Resubmit::None => false,
    }
}

/// Whether a command that failed with a passing status was certainly not executed: the target was short of
/// something. One that was begun, and that the target lost sight of, may be at its drive still.
fn is_settled(status: Status) -> bool {
    [Status::COMMAND_INTERRUPTED, Status::NAMESPACE_NOT_READY]
        .iter()
        .any(|settled| status.is(*settled))
}

/// The pause after which a command is to be sent again that failed with `status`; `None` if that would not
/// help.
fn passing(status: Status, live: &Live, tries: u32) -> Option<Duration> {
    let passing = [
        Status::COMMAND_INTERRUPTED,
        Status::TRANSIENT_TRANSPORT_ERROR,
        Status::ABORTED_QUEUE_DELETED,
        Status::ABORTED_POWER_LOSS,
        Status::NAMESPACE_NOT_READY,
    ];
    if status.do_not_retry() || !passing.iter().any(|passing| status.is(*passing)) {
        return None;
    }
    let asked = usize::from(status.retry_delay_index())
        .checked_sub(1)
        .and_then(|index| live.association.retry_delays.get(index).copied());
    Some(asked.unwrap_or_else(|| RETRY_PAUSE * (1 << tries.min(TRIES_MAX))))
}

/// What a caller is told of a status. Commands are aborted here for one reason only: that they took too long.
fn told(error: IoError, status: Status) -> IoError {
    if status.is(Status::ABORT_REQUESTED) {
        return IoError::TimedOut;
    }
    error
}

/// A reply for what a request's data came back as.
pub(super) fn reply(transfer: Transfer) -> Reply {
    match transfer {
        Transfer::Receive(buffer) => Reply::Data(buffer),
        Transfer::None | Transfer::Send(_) => Reply::Done,
    }
}

/// A flush: begun before it is sent.
pub(super) struct Flush {
    inner: Rc<Inner>,
    ticket: FlushTicket,
    /// Losses of completed writes that the user of the queue knew of when it asked for the flush.
    losses_told: u64,
}

impl Flush {
    pub(super) fn begin(inner: Rc<Inner>) -> Self {
        Self {
            ticket: inner.shared().ledger.begin_flush(),
            losses_told: inner.losses_told(),
            inner,
        }
    }

    /// Succeeds only if no completed write was lost that the flush would seem to have made stable.
    pub(super) async fn execute(self, sent: Option<Sent>) -> Result<Reply, IoError> {
        let Self {
            inner,
            ticket,
            losses_told,
        } = self;
        let over = match sent {
            Some(sent) => Some(sent.over().await),
            None => None,
        };
        execute(inner.clone(), Command::flush(), over).await?;
        let ledger = &inner.shared().ledger;
        let losses = ledger.losses();
        if losses != losses_told {
            inner.tell_losses(losses);
            return Err(IoError::MediaWrite);
        }
        ledger.end_flush(ticket);
        Ok(Reply::Done)
    }
}

/// A command of a larger request.
enum Piece {
    UnderWay(PooledFuture<Result<Transfer, IoError>>),
    Over(Result<Transfer, IoError>),
}

/// Executes the commands of a large request, some at a time. The first error ends it once all that was begun
/// is over.
pub(super) async fn execute_pieces(inner: Rc<Inner>, mut pieces: Pieces) -> Result<Reply, IoError> {
    let mut under_way: SmallVec<[Piece; PIECES_UNDER_WAY_MAX]> = SmallVec::new();
    let mut read: Option<Buffer> = None;
    let mut error = None;
    loop {
        while error.is_none() && under_way.len() < PIECES_UNDER_WAY_MAX {
            let Some(command) = pieces.next() else {
                break;
            };
            under_way.push(Piece::UnderWay(PooledFuture::new(execute(
                inner.clone(),
                command,
                None,
            ))));
        }
        if under_way.is_empty() {
            break;
        }
        match first_over(&mut under_way).await {
            Ok(Transfer::Receive(piece)) => match &mut read {
                None => read = Some(piece),
                Some(whole) => {
                    // The pieces were cut from one buffer and come back in order.
                    if whole.try_unsplit(piece).is_err() {
                        error = Some(IoError::Internal);
                    }
                }
            },
            Ok(Transfer::None | Transfer::Send(_)) => {}
            Err(failed) => error = error.or(Some(failed)),
        }
    }
    match (error, read) {
        (Some(error), _) => Err(error),
        (None, Some(buffer)) => Ok(Reply::Data(buffer)),
        (None, None) => Ok(Reply::Done),
    }
}

/// Drives all pieces until the first of them is over, and takes it out.
async fn first_over(under_way: &mut SmallVec<[Piece; PIECES_UNDER_WAY_MAX]>) -> Result<Transfer, IoError> {
    std::future::poll_fn(|context| {
        for piece in under_way.iter_mut() {
            if let Piece::UnderWay(future) = piece
                && let std::task::Poll::Ready(result) = std::pin::Pin::new(future).poll(context)
            {
                *piece = Piece::Over(result);
            }
        }
        match under_way.first() {
            Some(Piece::UnderWay(_)) => std::task::Poll::Pending,
            _ => std::task::Poll::Ready(()),
        }
    })
    .await;
    match under_way.remove(0) {
        Piece::Over(result) => result,
        Piece::UnderWay(_) => Err(IoError::Internal),
    }
}
