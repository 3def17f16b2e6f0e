//! The short way of writes that need not wait before they are sent, nor for more than the answers.
//!
//! Whether a write is one is seen, and it is sent, in one step, in which nothing else runs on the reactor.
//! Whatever is not so simple goes the long way, with nothing done.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use pollux_device::{Completion, Gather, IoError, Reply};
use pollux_reactor::{Instant, PooledFuture, Unabandoned};

use super::Core;
use super::asked::{Answers, Asked};
use super::connection::clock;
use super::gate::Passage;
use super::write::Content;
use crate::locks::{Held, Mode};
use crate::membership::SlotSet;

/// A write of one region that may be sent.
struct Begun {
    region: u64,
    slots: SlotSet,
    lock: Held,
    passage: Passage,
}

impl Core {
    /// Starts a write; the data again if it has to go the long way.
    ///
    /// # Errors
    ///
    /// The data.
    pub(super) fn start_write(
        self: &Rc<Self>,
        block: u64,
        from: Gather,
        force_unit_access: bool,
        began: Instant,
    ) -> Result<Completion, Gather> {
        let Some(blocks) = self.geometry.get().blocks_of(from.len_bytes()) else {
            return Err(from);
        };
        let Some(begun) = self.begin_write(block, blocks) else {
            return Err(from);
        };
        let content = Content::Data(from, force_unit_access);
        let asked = self.ask_all(begun.slots, || content.request(block, blocks));
        let writing = Writing {
            core: self.clone(),
            block,
            blocks,
            content,
            began,
            asked,
            begun: Some(begun),
            rest: None,
        };
        if writing.is_done() {
            self.priority.served(clock().saturating_since(began));
            return Ok(Completion::done());
        }
        Ok(Completion::from_future(Unabandoned::new(writing)))
    }

    /// Begins a write, if all that the long way waits for is so.
    fn begin_write(&self, block: u64, blocks: u64) -> Option<Begun> {
        let region = self.region_of(block);
        let is_of_one = blocks > 0 && self.region_of(block + blocks - 1) == region;
        if !is_of_one || self.check_whole().is_err() || !self.regions.borrow().is_established(region) {
            return None;
        }
        let slots = self.targets(Some(region));
        let absent = {
            let members = self.members.borrow();
            if members.is_short() || !members.may_acknowledge(slots) {
                return None;
            }
            members.absent()
        };
        let passage = self.try_pass_gate()?;
        let lock = self.locks.try_lock(block..block + blocks, Mode::Exclusive)?;
        self.regions.borrow_mut().begin_write(region, absent);
        let begun = Begun {
            region,
            slots,
            lock,
            passage,
        };
        if !self.regions.borrow().is_established(region) {
            // Somebody is away who had not missed anything there.
            self.end_write(begun);
            return None;
        }
        Some(begun)
    }

    fn end_write(&self, begun: Begun) {
        self.regions.borrow_mut().end_write(begun.region);
        drop(begun.lock);
        drop(begun.passage);
    }

    /// Whether a write that all have done can be acknowledged as it is.
    fn may_tell(&self, begun: &Begun) -> bool {
        let is_with_all = self.targets(Some(begun.region)).without(begun.slots).is_empty();
        let members = self.members.borrow();
        is_with_all && members.may_acknowledge(begun.slots) && !members.is_short() && self.is_leased()
    }

    /// Goes on with a write, the long way.
    async fn go_on(
        self: Rc<Self>,
        (block, blocks): (u64, u64),
        content: Content,
        answers: Answers,
        begun: Option<Begun>,
    ) -> Result<(), IoError> {
        let result = self.replicate(block, blocks, &content, Some(answers)).await;
        begun.into_iter().for_each(|begun| self.end_write(begun));
        result?;
        self.acknowledge().await
    }
}

/// A write that was sent.
struct Writing {
    core: Rc<Core>,
    block: u64,
    blocks: u64,
    content: Content,
    began: Instant,
    asked: Asked,
    begun: Option<Begun>,
    /// It turned out not to be as simple.
    rest: Option<PooledFuture<Result<(), IoError>>>,
}

impl Writing {
    /// Whether all have done it, and nothing else is to be waited for.
    fn is_done(&self) -> bool {
        let may_tell = |begun| self.core.may_tell(begun);
        self.asked.is_done() && self.begun.as_ref().is_some_and(may_tell)
    }

    fn poll_result(&mut self, context: &mut Context<'_>) -> Poll<Result<(), IoError>> {
        if self.rest.is_none() {
            ready!(self.asked.poll(&self.core, context));
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
        }
        let rest = self.rest.get_or_insert_with(|| {
            let content = std::mem::replace(&mut self.content, Content::Deallocated);
            let (range, answers) = ((self.block, self.blocks), self.asked.take_answers());
            PooledFuture::new(
                self.core
                    .clone()
                    .go_on(range, content, answers, self.begun.take()),
            )
        });
        Pin::new(rest).poll(context)
    }
}

impl Future for Writing {
    type Output = Result<Reply, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.poll_result(context));
        let took = clock().saturating_since(self.began);
        self.core.priority.served(took);
        Poll::Ready(result.map(|()| Reply::Done))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.core.end_write(begun);
        }
    }
}
