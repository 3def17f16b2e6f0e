//! Fused compare and write (NVMe Base 2.0, 3.4.2; NVM 1.0, 2.1.3): two commands that follow each other on a
//! queue and are one to everybody else.
//!
//! Fused commands come here in the order in which the host queued them, each with its data. Invariants:
//! - At most one first half waits for its second. It is given up when anything else comes instead.
//! - Both halves of a pair are answered when the pair is done: the first with the result of the compare,
//!   the second with that of the write, or as aborted when the compare failed.
//! - The pair runs as a task of its own, so that it releases what it holds even when the connection is lost.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Poll, Waker};

use pollux_device::{Gather, IoError, Request};
use pollux_reactor::spawn;

use super::decode::{Direction, Offered, Plan, Transfer, plan};
use super::gate::Entered;
use super::guard::Exclusive;
use super::queue::Shared;
use super::slow::Patience;
use super::transfer::succeed;
use crate::target::queue::{Command, Execution, Outcome, Payload};
use crate::target::refusal::{Refusal, field};
use crate::wire::command::{Fuse, SubmissionEntry};
use crate::wire::status::Status;

/// The largest pair in blocks; what Identify tells as ACWU is one less.
pub(super) const BLOCKS_MAX: u32 = 32;

/// The first half that waits for its second.
#[derive(Default)]
pub(super) struct Pairs {
    first: Option<First>,
}

struct First {
    command: Command,
    answer: Rc<Answer>,
}

/// The outcome of a half, once there is one.
#[derive(Default)]
struct Answer(RefCell<(Option<Outcome>, Option<Waker>)>);

impl Answer {
    fn set(&self, outcome: Outcome) {
        let waker = {
            let mut answer = self.0.borrow_mut();
            answer.0 = Some(outcome);
            answer.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn execution(self: Rc<Self>) -> Execution {
        Execution::from_future(std::future::poll_fn(move |context| {
            let mut answer = self.0.borrow_mut();
            match answer.0.take() {
                Some(outcome) => Poll::Ready(outcome),
                None => {
                    answer.1 = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

/// Takes a half of a pair in; the pair starts when both are there.
pub(super) fn start(queue: &Rc<Shared>, command: Command) -> Execution {
    let entry = command.entry;
    match entry.fuse() {
        Fuse::First => {
            let answer = Rc::new(Answer::default());
            let before = queue.pairs.borrow_mut().first.replace(First {
                command,
                answer: answer.clone(),
            });
            if let Some(before) = before {
                give_up(queue, &before);
            }
            answer.execution()
        }
        Fuse::Second => {
            let first = queue.pairs.borrow_mut().first.take();
            let Some(first) = first else {
                return queue
                    .fail(&entry, Refusal::at(Status::ABORTED_MISSING_FUSED, field::FLAGS))
                    .into();
            };
            let answer = Rc::new(Answer::default());
            spawn(run(queue.clone(), first, command, answer.clone())).detach();
            answer.execution()
        }
        Fuse::None | Fuse::Reserved => {
            interrupt(queue);
            queue.fail(&entry, Refusal::invalid_field(field::FLAGS)).into()
        }
    }
}

/// What comes after the first half is not its second.
pub(super) fn interrupt(queue: &Shared) {
    let first = queue.pairs.borrow_mut().first.take();
    if let Some(first) = first {
        give_up(queue, &first);
    }
}

fn give_up(queue: &Shared, first: &First) {
    let refusal = Refusal::at(Status::ABORTED_MISSING_FUSED, field::FLAGS);
    first.answer.set(queue.fail(&first.command.entry, refusal));
}

async fn run(queue: Rc<Shared>, first: First, second: Command, answer: Rc<Answer>) {
    let First {
        command: compare,
        answer: compare_answer,
    } = first;
    let (compared, written) = execute(&queue, compare, second).await;
    compare_answer.set(compared);
    answer.set(written);
}

/// Runs a pair; the outcomes of both halves.
async fn execute(queue: &Rc<Shared>, compare: Command, write: Command) -> (Outcome, Outcome) {
    let (first, second) = (compare.entry, write.entry);
    let failed_other = Refusal::of(Status::ABORTED_FAILED_FUSED);
    let planned = plan_half(queue, &compare, Direction::Compare);
    let compare_plan = match planned {
        Ok(planned) => planned,
        Err(refusal) => return (queue.fail(&first, refusal), queue.fail(&second, failed_other)),
    };
    let mut write_plan = match plan_half(queue, &write, Direction::Write) {
        Ok(planned) => planned,
        Err(refusal) => return (queue.fail(&first, failed_other), queue.fail(&second, refusal)),
    };
    let same = first.namespace_id == second.namespace_id
        && compare_plan.block == write_plan.block
        && compare_plan.blocks == write_plan.blocks;
    if !same {
        let refusal = Refusal::invalid_field(field::DWORD_10);
        return (queue.fail(&first, refusal), queue.fail(&second, refusal));
    }
    if compare_plan.blocks > BLOCKS_MAX {
        let refusal = Refusal::at(Status::ATOMIC_WRITE_UNIT_EXCEEDED, field::DWORD_12);
        return (queue.fail(&first, refusal), queue.fail(&second, refusal));
    }
    let attached = &write_plan.attached;
    write_plan.force_unit_access |= queue
        .controller()
        .forces_unit_access(attached.volatile_write_cache);

    let namespace = attached.namespace.clone();
    let exclusive = match Exclusive::acquire(namespace, write_plan.range(), queue.wait_max).await {
        Ok(exclusive) => exclusive,
        Err(error) => {
            return (
                queue.fail(&first, error.into()),
                queue.fail(&second, failed_for_now()),
            );
        }
    };
    let reservations = &attached.namespace.reservations;
    if let Err(error) = reservations.check_purge(queue.host(), compare_plan.stamp) {
        return (
            queue.fail(&first, error.into()),
            queue.fail(&second, failed_other),
        );
    }
    let compared = transfer(queue, &first, &compare_plan, compare.data).await;
    let compared = match compared {
        Ok(()) => succeed(queue, &first, &compare_plan, Payload::Empty),
        Err(error) => {
            return (
                queue.fail(&first, error.into()),
                queue.fail(&second, failed_for(error)),
            );
        }
    };
    let written = match transfer(queue, &second, &write_plan, write.data).await {
        Ok(()) => succeed(queue, &second, &write_plan, Payload::Empty),
        Err(error) => queue.fail(&second, error.into()),
    };
    drop(exclusive);
    (compared, written)
}

/// The second half when the first may succeed another time.
fn failed_for_now() -> Refusal {
    Refusal::for_now(Status::ABORTED_FAILED_FUSED)
}

fn failed_for(error: IoError) -> Refusal {
    let first = Refusal::from(error);
    if first.status.do_not_retry() {
        Refusal::of(Status::ABORTED_FAILED_FUSED)
    } else {
        failed_for_now()
    }
}

/// Checks a half.
fn plan_half(queue: &Shared, command: &Command, direction: Direction) -> Result<Transfer, Refusal> {
    let offered = Offered {
        from_host: command.data.len_bytes(),
        to_host: command.transfer_bytes_max,
    };
    let (view, bytes_max) = (&queue.view, queue.transfer_bytes_max);
    match plan(view, &command.entry, offered, queue.host(), bytes_max)? {
        Plan::Transfer(transfer) if transfer.direction == direction => Ok(transfer),
        // Compare and write are the only fused operations (FUSES).
        Plan::Transfer(_)
        | Plan::Flush(_)
        | Plan::WriteZeroes { .. }
        | Plan::Verify { .. }
        | Plan::Dataset { .. }
        | Plan::Reservation { .. } => Err(Refusal::invalid_field(field::FLAGS)),
    }
}

/// Compares or writes inside the range that is held: the gate is not asked.
async fn transfer(
    queue: &Rc<Shared>,
    entry: &SubmissionEntry,
    transfer: &Transfer,
    data: Gather,
) -> Result<(), IoError> {
    let patience = Patience::new(queue, entry);
    let attached = &transfer.attached;
    let data = patience.aligned(attached, &data).await?;
    patience
        .retry(async || {
            let device = patience.device(attached).await?;
            attached.check_access()?;
            let entered = Entered::new(attached);
            let (mut block, mut left) = (transfer.block, transfer.blocks);
            while left > 0 {
                let blocks = left.min(attached.transfer_blocks_max);
                let done = ((block - transfer.block) as usize) << attached.block_shift;
                let piece = data.range(done, (blocks as usize) << attached.block_shift);
                let request = match transfer.direction {
                    Direction::Compare | Direction::Read => Request::Compare { block, with: piece },
                    Direction::Write => {
                        let force_unit_access = transfer.force_unit_access;
                        Request::Write {
                            block,
                            from: piece,
                            force_unit_access,
                        }
                    }
                };
                patience.submit(&*device, request, &entered).await?;
                block += u64::from(blocks);
                left -= blocks;
            }
            Ok(())
        })
        .await
}
