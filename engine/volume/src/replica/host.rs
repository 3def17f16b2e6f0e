//! The host of a replica: the only one who touches its device, and who decides whom it serves.
//!
//! Invariants:
//! - One session at most is served: that of the newest promise. What it was given goes on only while it is.
//! - When a promise is answered, no request of an older session is at the device, and the epoch is durable.
//! - Once a flush has failed, no flush of the same session succeeds any more.
//! - An epoch older than one that was promised, in this life or an earlier one, is refused.
//! - Once it is closed, no session is served and none is granted.
//! - `heard_at` is not before anything that a session was answered to was sent.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use pollux_device::{AllocationQuery, BlockDevice, Completion, Geometry, IoError, Reply, Request};
use pollux_reactor::{Instant, Reactor, Signal, Unabandoned, random_u64};
use uuid::Uuid;

use super::{
    CommandError, Commanding, Granted, OpeningSnapshot, PromiseError, Promising, ReplicaAnswer,
    ReplicaCommand, ReplicaMedium, ReplicaPort,
};
use crate::membership::{Epoch, Membership};
use crate::metadata::codec::Label;
use crate::metadata::{Area, AreaError, AreaLayout, BLOCK_BYTES};

/// The clock, read now and not at the start of the turn: what targets may count as an answer depends on it.
fn clock() -> Instant {
    Reactor::current().driver().now()
}

struct Inner {
    device: Rc<dyn BlockDevice>,
    /// What has the device.
    medium: Rc<dyn ReplicaMedium>,
    area: Area,
    instance: u64,
    promised: Cell<Epoch>,
    /// The newest epoch known to be durable.
    durable: Cell<Epoch>,
    /// The number of the newest promise; the session with this number is the one that is served.
    grant: Cell<u64>,
    granted: Cell<Option<Epoch>>,
    /// The newest epoch of which a flush was done.
    settled: Cell<Option<Epoch>>,
    /// The number of the newest promise that was answered.
    served: Cell<u64>,
    /// Requests at the device.
    in_flight: Cell<u64>,
    /// Flushes that failed.
    flush_failures: Cell<u64>,
    /// A promise is being written.
    writing: Cell<bool>,
    /// It promises nothing any more.
    closed: Cell<bool>,
    /// When a session last asked for something or began; before there was one, when this life of the host
    /// began.
    heard_at: Cell<Instant>,
    changed: Signal,
}

/// See the module. Cheap to clone; clones are the same host.
#[derive(Clone)]
pub struct ReplicaHost(Rc<Inner>);

impl ReplicaHost {
    /// Takes charge of the device of a replica, and of that in what it is part of.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn open(device: Rc<dyn BlockDevice>, medium: Rc<dyn ReplicaMedium>) -> Result<Self, AreaError> {
        let area = Area::open(device.clone()).await?;
        let promised = area.read_promise().await?;
        Ok(Self(Rc::new(Inner {
            device,
            medium,
            area,
            instance: random_u64(),
            promised: Cell::new(promised),
            durable: Cell::new(promised),
            grant: Cell::new(0),
            granted: Cell::new(None),
            settled: Cell::new(None),
            served: Cell::new(0),
            in_flight: Cell::new(0),
            flush_failures: Cell::new(0),
            writing: Cell::new(false),
            closed: Cell::new(false),
            heard_at: Cell::new(clock()),
            changed: Signal::default(),
        })))
    }

    /// Which replica it is.
    pub fn label(&self) -> Label {
        self.0.area.label()
    }

    /// The newest epoch that was promised.
    pub fn promised(&self) -> Epoch {
        self.0.promised.get()
    }

    /// The copy of the record of who takes part, as a target left it last; `None` if there never was one.
    ///
    /// # Errors
    ///
    /// [`AreaError`].
    pub async fn record(&self) -> Result<Option<Membership>, AreaError> {
        self.0.area.read_record().await
    }

    /// See [`ReplicaPort::promise`].
    ///
    /// # Errors
    ///
    /// [`PromiseError`].
    pub fn promise(&self, epoch: Epoch) -> impl Future<Output = Result<Granted, PromiseError>> + 'static {
        let inner = self.0.clone();
        // A write of a promise that nobody waits for any more must not land after the next one.
        Unabandoned::new(async move { inner.promise(epoch).await })
    }

    /// Ends every session, and gives no promise any more. When it returns, nothing is at the device.
    pub async fn close(&self) {
        let inner = &self.0;
        inner.closed.set(true);
        inner.grant.set(inner.grant.get() + 1);
        inner.changed.wake();
        let is_idle = || (inner.in_flight.get() == 0 && !inner.writing.get()).then_some(());
        inner.changed.until(is_idle).await;
    }
}

impl ReplicaPort for ReplicaHost {
    fn promise(&self, epoch: Epoch) -> Promising {
        Box::pin(ReplicaHost::promise(self, epoch))
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        let inner = self.0.clone();
        // It is counted until it is done, whether or not anybody waits: a promise waits for it.
        Box::pin(Unabandoned::new(
            async move { inner.command(epoch, command).await },
        ))
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        match self.0.check_epoch(epoch) {
            Ok(()) => self.0.medium.open(cut),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn is_local(&self) -> bool {
        true
    }
}

impl Inner {
    async fn promise(self: Rc<Self>, epoch: Epoch) -> Result<Granted, PromiseError> {
        if epoch < self.promised.get() {
            return Err(PromiseError::Superseded(self.promised.get()));
        }
        if self.closed.get() {
            return Err(PromiseError::Unreachable);
        }
        self.promised.set(epoch);
        self.grant.set(self.grant.get() + 1);
        let grant = self.grant.get();
        let quiet = clock().saturating_since(self.heard_at.get());
        self.changed.wake();
        let overtaken = || match self.grant.get() == grant {
            true => Ok(()),
            false if self.promised.get() > epoch => Err(PromiseError::Superseded(self.promised.get())),
            false => Err(PromiseError::Interrupted),
        };
        let drained = || {
            let is_idle = self.in_flight.get() == 0 && !self.writing.get();
            overtaken().map(|()| is_idle.then_some(())).transpose()
        };
        self.changed.until(drained).await?;
        if self.durable.get() < epoch {
            self.writing.set(true);
            let written = self.area.write_promise(epoch).await;
            self.writing.set(false);
            self.changed.wake();
            written?;
            self.durable.set(epoch);
            overtaken()?;
        }
        self.granted.set(Some(epoch));
        self.served.set(grant);
        self.heard_at.set(clock());
        let session = Session {
            inner: self.clone(),
            epoch,
            grant,
            flush_failures: self.flush_failures.get(),
        };
        Ok(Granted {
            flush_failures: session.flush_failures,
            session: Rc::new(session),
            instance: self.instance,
            settled: self.settled.get(),
            quiet,
        })
    }

    /// Whether a target has the newest session.
    fn check_epoch(&self, epoch: Epoch) -> Result<(), CommandError> {
        let promised = self.promised.get();
        if epoch < promised {
            return Err(CommandError::Superseded(promised));
        }
        match self.granted.get() == Some(epoch) && self.served.get() == self.grant.get() {
            true => Ok(()),
            false => Err(CommandError::NoSession),
        }
    }

    async fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Result<ReplicaAnswer, CommandError> {
        self.check_epoch(epoch)?;
        self.in_flight.set(self.in_flight.get() + 1);
        let result = self.carry_out(command).await;
        self.ended();
        result
    }

    async fn carry_out(&self, command: ReplicaCommand) -> Result<ReplicaAnswer, CommandError> {
        match command {
            ReplicaCommand::CutSnapshot { cut } => self.medium.cut(cut).await?,
            ReplicaCommand::DeleteSnapshot { cut } => self.medium.delete(cut).await?,
            ReplicaCommand::ListSnapshots => {
                return Ok(ReplicaAnswer::Snapshots(self.medium.list().await?));
            }
            ReplicaCommand::ListBadBlocks => {
                let area_blocks = self.area.layout().area_blocks();
                let found = self.medium.bad_blocks().await?.into_iter();
                let of_data = found.filter_map(|block| block.checked_sub(area_blocks));
                return Ok(ReplicaAnswer::BadBlocks(of_data.collect()));
            }
            ReplicaCommand::Grow { data_blocks } => self.grow(data_blocks).await?,
        }
        Ok(ReplicaAnswer::Done)
    }

    async fn grow(&self, data_blocks: u64) -> Result<(), CommandError> {
        let layout = self.area.layout();
        if layout.data_blocks() >= data_blocks {
            return Ok(());
        }
        let blocks = layout
            .with_data(data_blocks)
            .map_err(AreaError::from)?
            .total_blocks();
        self.medium
            .grow(blocks.saturating_mul(BLOCK_BYTES as u64))
            .await?;
        self.area.grow().await?;
        match self.area.layout().data_blocks() >= data_blocks {
            true => Ok(()),
            false => Err(CommandError::Failed(
                "the device did not become as large as was asked for".to_owned(),
            )),
        }
    }

    /// What a flush of a session means.
    fn judge_flush(&self, result: Result<Reply, IoError>, flush: Flush) -> Result<Reply, IoError> {
        match result {
            Ok(_) if self.flush_failures.get() != flush.failures_before => Err(IoError::MediaWrite),
            Ok(reply) => {
                self.settled.set(self.settled.get().max(Some(flush.epoch)));
                Ok(reply)
            }
            Err(error) if !matches!(error, IoError::ResourceShortage | IoError::NotReady) => {
                self.flush_failures.set(self.flush_failures.get() + 1);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn ended(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        if self.in_flight.get() == 0 {
            self.changed.wake();
        }
    }
}

/// A flush of a session.
#[derive(Debug, Clone, Copy)]
struct Flush {
    epoch: Epoch,
    /// Flushes that had failed when the session began.
    failures_before: u64,
}

/// The device, for the target that was promised its epoch.
#[derive(Clone)]
struct Session {
    inner: Rc<Inner>,
    epoch: Epoch,
    grant: u64,
    /// Flushes of this life of the host that had failed when it began.
    flush_failures: u64,
}

impl Session {
    fn check(&self, request: &Request) -> Result<(), IoError> {
        self.check_served()?;
        if !request.is_mutation() {
            return Ok(());
        }
        let geometry = self.inner.device.geometry();
        let ratio = AreaLayout::ratio_of(&geometry).map_err(|_| IoError::Internal)?;
        let (first, count) = self.inner.area.layout().host_blocks();
        let (block, blocks) = request.range(&geometry).ok_or(IoError::InvalidField)?;
        let overlaps = block < (first + count) * ratio && first * ratio < block.saturating_add(blocks);
        if overlaps { Err(IoError::ReadOnly) } else { Ok(()) }
    }

    fn check_served(&self) -> Result<(), IoError> {
        if self.inner.grant.get() == self.grant {
            return Ok(());
        }
        match self.inner.promised.get() > self.epoch {
            true => Err(IoError::Fenced),
            false => Err(IoError::Gone),
        }
    }
}

impl BlockDevice for Session {
    fn geometry(&self) -> Geometry {
        self.inner.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        if let Err(error) = self.check(&request) {
            return Completion::failed(error);
        }
        // Read now: later than when it was sent, whatever the turn of the reactor began with.
        self.inner.heard_at.set(clock());
        let flush = matches!(request, Request::Flush).then_some(Flush {
            epoch: self.epoch,
            failures_before: self.flush_failures,
        });
        match self.inner.device.submit(request).try_take() {
            Ok(result) => Completion::ready(match flush {
                Some(flush) => self.inner.judge_flush(result, flush),
                None => result,
            }),
            Err(completion) => {
                self.inner.in_flight.set(self.inner.in_flight.get() + 1);
                Completion::from_future(UnderWay {
                    completion: Some(completion),
                    flush,
                    inner: self.inner.clone(),
                })
            }
        }
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        if let Err(error) = self.check_served() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let (session, asked) = (
            self.clone(),
            self.inner.device.allocation(block, blocks, runs_max),
        );
        Box::pin(async move {
            let runs = asked.await?;
            // Nobody waits for a question: a promise may have been given since.
            session.check_served()?;
            Ok(runs)
        })
    }
}

/// A request at the device. It is counted until the device is done with it, whether or not anybody waits.
struct UnderWay {
    completion: Option<Completion>,
    flush: Option<Flush>,
    inner: Rc<Inner>,
}

impl Future for UnderWay {
    type Output = Result<Reply, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(completion) = &mut self.completion else {
            return Poll::Ready(Err(IoError::Internal));
        };
        let result = std::task::ready!(Pin::new(completion).poll(context));
        self.completion = None;
        self.inner.ended();
        Poll::Ready(match self.flush {
            Some(flush) => self.inner.judge_flush(result, flush),
            None => result,
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Without a reactor the process ends, and no promise will wait for this.
        if let Some(completion) = self.completion.take()
            && let Some(reactor) = Reactor::try_current()
        {
            let (inner, flush) = (self.inner.clone(), self.flush);
            let rest = async move {
                let result = completion.await;
                // Whoever wanted to know has gone, but for those who count the flushes that failed.
                if let Some(flush) = flush {
                    drop(inner.judge_flush(result, flush));
                }
                inner.ended();
            };
            reactor.spawn(rest).detach();
        }
    }
}
