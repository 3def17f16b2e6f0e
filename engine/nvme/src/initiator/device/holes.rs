//! Which blocks of a remote namespace are allocated: Get LBA Status (NVM 1.0, 4.2.1).
//!
//! The command is one of the admin queue, which the supervisor has: queues leave their questions with it. A
//! hole is only told where the controller said so in an answer that makes sense, and says that what is not
//! allocated reads as zeros. A controller that does not know the question, or answers nonsense, is not asked
//! again as long as the association lasts: all its blocks count as allocated.

use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use pollux_device::{AllocationRun, AllocationRuns, IoError};
use pollux_hugepages::Buffer;

use super::super::admin::AdminQueue;
use super::super::connection::Transfer;
use super::super::error::InitiatorError;
use super::queue::Inner;
use super::race::{First, race};
use super::shared::{Association, Shared};
use crate::status_map::error_of;
use crate::wire::command::GetLbaStatus;
use crate::wire::lba_status::{LBA_STATUS_BYTES_MAX, LbaStatusCompletion, LbaStatusList};
use crate::wire::status::Status;

/// Questions beyond those that a range needs, for answers that do not tell all at once. What is not told by
/// then counts as allocated.
const QUESTIONS_MORE_MAX: u64 = 64;

/// How often a question is left with another association when the one before was lost.
const TRIES_MAX: u32 = 3;

/// A range that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    block: u64,
    blocks: u16,
    descriptors_max: usize,
}

impl Range {
    fn bytes(self) -> usize {
        LbaStatusList::bytes_of(self.descriptors_max)
    }

    fn command(self) -> GetLbaStatus {
        let bytes = u32::try_from(self.bytes()).unwrap_or(u32::MAX);
        GetLbaStatus::allocated(self.block, self.blocks, bytes)
    }
}

/// A question for the supervisor.
#[derive(Debug)]
pub(super) struct Question {
    generation: u64,
    range: Range,
    answer: oneshot::Sender<Result<Told, IoError>>,
}

/// What a controller says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// Neighbouring runs from the start of the range on, of one block at least.
    Runs(Vec<AllocationRun>),
    /// Nothing that can be used.
    Nothing,
}

/// What [`BlockDevice::allocation`](pollux_device::BlockDevice::allocation) asks of a remote namespace.
pub(super) async fn allocation(
    inner: Rc<Inner>,
    block: u64,
    blocks: u64,
    runs_max: usize,
) -> Result<Vec<AllocationRun>, IoError> {
    inner.shared().geometry().check_range(block, blocks)?;
    if !inner.shared().is_present() {
        return Err(IoError::Gone);
    }
    in_parts(block, blocks, runs_max, async |range| ask(&inner, range).await).await
}

/// Which blocks of a range are allocated, by whatever has a controller answer the command: `send` returns the
/// list that was answered, or `None` where the controller does not know the question.
///
/// # Errors
///
/// Those of `send`.
pub async fn ask_allocated(
    block: u64,
    blocks: u64,
    runs_max: usize,
    send: impl AsyncFn(GetLbaStatus) -> Result<Option<Vec<u8>>, IoError>,
) -> Result<Vec<AllocationRun>, IoError> {
    let ask = async |range: Range| {
        let list = send(range.command()).await?;
        let runs = list.and_then(|list| understand(&list, range).ok());
        Ok(runs.map_or(Told::Nothing, Told::Runs))
    };
    in_parts(block, blocks, runs_max, ask).await
}

/// Asks as often as it takes, within bounds.
async fn in_parts(
    block: u64,
    blocks: u64,
    runs_max: usize,
    ask: impl AsyncFn(Range) -> Result<Told, IoError>,
) -> Result<Vec<AllocationRun>, IoError> {
    let descriptors_max = runs_max.clamp(1, LbaStatusList::room_of(LBA_STATUS_BYTES_MAX));
    let mut runs = AllocationRuns::new(blocks, runs_max);
    let questions_max = blocks
        .div_ceil(u16::MAX.into())
        .saturating_add(QUESTIONS_MORE_MAX);
    for _ in 0..questions_max {
        let left = runs.left_blocks();
        if left == 0 {
            break;
        }
        let range = Range {
            block: block + (blocks - left),
            blocks: u16::try_from(left).unwrap_or(u16::MAX),
            descriptors_max,
        };
        let Told::Runs(told) = ask(range).await? else {
            break;
        };
        for run in told {
            if !runs.push(run.blocks, run.allocated) {
                return Ok(runs.into_runs());
            }
        }
    }
    // What nothing is known of.
    runs.push(runs.left_blocks(), true);
    Ok(runs.into_runs())
}

/// Asks the controller, another time where it was lost meanwhile.
async fn ask(inner: &Inner, range: Range) -> Result<Told, IoError> {
    let _waiting = inner.begin_waiting()?;
    let shared = inner.shared();
    for _ in 0..TRIES_MAX {
        let live = inner.connected().await?;
        let association = &live.association;
        let generation = association.generation;
        let (answer, answered) = oneshot::channel();
        if !shared.ask(association, range, answer) {
            return Ok(Told::Nothing);
        }
        let left = shared.wait_for(|state| (!state.phase.is_live(generation)).then_some(()));
        if let First::Left(Ok(result)) = race(answered, left).await {
            return result;
        }
        drop(live);
        pollux_reactor::yield_now().await;
    }
    Err(IoError::PathDown)
}

impl Shared {
    /// Leaves a question with the supervisor; false where there is no use in asking.
    fn ask(
        &self,
        association: &Association,
        range: Range,
        answer: oneshot::Sender<Result<Told, IoError>>,
    ) -> bool {
        let generation = association.generation;
        association.tells_holes
            && self.update(|state| {
                if state.no_holes.is_some() {
                    return false;
                }
                state.questions.push(Question {
                    generation,
                    range,
                    answer,
                });
                true
            })
    }

    /// The controller of the live association is not to be asked any more.
    fn ask_no_more(&self, generation: u64, cause: &'static str) {
        let is_first = self.update(|state| {
            let is_first = state.phase.is_live(generation) && state.no_holes.is_none();
            if is_first {
                state.no_holes = Some(cause);
            }
            is_first
        });
        if is_first {
            tracing::warn!(
                device = %self.name, cause, "the controller cannot be asked for holes: all is allocated"
            );
        }
    }
}

/// Answers the questions that queues have, one at a time: a task of the supervisor, dropped with the
/// association.
pub(super) async fn answer_questions(
    shared: Arc<Shared>,
    admin: AdminQueue,
    namespace_id: u32,
    generation: u64,
) {
    // It takes as long as a request of the device may.
    let admin = AdminQueue::new(admin.queue().clone(), shared.options.command_timeout);
    loop {
        let question = shared.wait_for(|state| state.questions.pop()).await;
        // One of an association that is lost is asked anew by whoever waits for it.
        if question.generation != generation || question.answer.is_canceled() {
            continue;
        }
        let told = match ask_controller(&admin, namespace_id, question.range).await {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(cause)) => {
                shared.ask_no_more(generation, cause);
                Ok(Told::Nothing)
            }
            Err(InitiatorError::Refused { status, .. }) => match error_of(status) {
                Some(error) => Err(error),
                None => Ok(Told::Nothing),
            },
            // The controller is lost, which the supervisor sees.
            Err(_) => return,
        };
        // Whoever asked may have gone away.
        let _ = question.answer.send(told);
    }
}

/// Sends the command. The inner error tells why the controller need not be asked again.
async fn ask_controller(
    admin: &AdminQueue,
    namespace_id: u32,
    range: Range,
) -> Result<Result<Told, &'static str>, InitiatorError> {
    let make = || Transfer::Receive(Buffer::from_heap(range.bytes()));
    let entry = range.command().to_entry(0, namespace_id);
    match admin
        .succeed("to ask which blocks are allocated", &entry, make)
        .await
    {
        Ok((_, transfer)) => Ok(understand(&transfer.into_buffer(), range).map(Told::Runs)),
        Err(InitiatorError::Refused { status, .. })
            if status.is(Status::INVALID_OPCODE) || status.is(Status::INVALID_FIELD) =>
        {
            Ok(Err("it does not know the question after all"))
        }
        Err(error) => Err(error),
    }
}

/// What an answer says of a range, or why it makes no sense.
fn understand(bytes: &[u8], range: Range) -> Result<Vec<AllocationRun>, &'static str> {
    let list = LbaStatusList::parse(bytes).ok_or("it tells of more ranges than it returns")?;
    let end = range.block + u64::from(range.blocks);
    let mut runs = Vec::new();
    let mut next = range.block;
    let mut push = |blocks: u64, allocated: bool| {
        if blocks > 0 {
            runs.push(AllocationRun { blocks, allocated });
        }
    };
    for descriptor in &list.descriptors {
        let (start, blocks) = (descriptor.starting_block, u64::from(descriptor.blocks));
        if blocks == 0 {
            return Err("it tells of ranges without blocks");
        }
        let hole = start
            .checked_sub(next)
            .ok_or("it tells of ranges that are out of order, or overlap")?;
        let after = start.checked_add(blocks).filter(|after| *after <= end);
        let after = after.ok_or("it tells of blocks that it was not asked for")?;
        push(hole, false);
        push(blocks, true);
        next = after;
    }
    match list.completion {
        Some(LbaStatusCompletion::Complete) => push(end - next, false),
        // Behind the last range nothing is known.
        Some(LbaStatusCompletion::Incomplete | LbaStatusCompletion::Unknown) if next > range.block => {}
        Some(_) => return Err("it tells nothing"),
        None => return Err("it does not say in a known way how far its answer goes"),
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lba_status::LbaStatusDescriptor;
    use proptest::prelude::*;

    const RANGE: Range = Range {
        block: 100,
        blocks: 50,
        descriptors_max: 4,
    };

    fn bytes(completion: LbaStatusCompletion, ranges: &[(u64, u32)]) -> Vec<u8> {
        let descriptors = ranges
            .iter()
            .map(|&(starting_block, blocks)| LbaStatusDescriptor {
                starting_block,
                blocks,
                status: 0,
            });
        LbaStatusList {
            completion: Some(completion),
            descriptors: descriptors.collect(),
        }
        .to_bytes(LbaStatusList::bytes_of(RANGE.descriptors_max))
    }

    fn runs(told: &[(u64, bool)]) -> Vec<AllocationRun> {
        let told = told.iter();
        told.map(|&(blocks, allocated)| AllocationRun { blocks, allocated })
            .collect()
    }

    #[test]
    fn holes_are_between_ranges_and_behind_the_last_one_only_if_all_is_told() {
        let ranges = [(100, 5), (110, 10), (120, 1)];
        let complete = understand(&bytes(LbaStatusCompletion::Complete, &ranges), RANGE).unwrap();
        let told = [(5, true), (5, false), (10, true), (1, true), (29, false)];
        assert_eq!(complete, runs(&told));
        for completion in [LbaStatusCompletion::Incomplete, LbaStatusCompletion::Unknown] {
            let part = understand(&bytes(completion, &ranges), RANGE).unwrap();
            assert_eq!(part, runs(&told[..4]));
        }
        let nothing = understand(&bytes(LbaStatusCompletion::Complete, &[]), RANGE).unwrap();
        assert_eq!(nothing, runs(&[(50, false)]));
        let everything = understand(&bytes(LbaStatusCompletion::Complete, &[(100, 50)]), RANGE).unwrap();
        assert_eq!(everything, runs(&[(50, true)]));
    }

    #[test]
    fn nonsense_is_known_for_what_it_is() {
        let cases: [(&[(u64, u32)], &str); 8] = [
            (&[(100, 0)], "without blocks"),
            (&[(99, 2)], "out of order"),
            (&[(110, 1), (105, 1)], "out of order"),
            (&[(110, 5), (114, 5)], "overlap"),
            (&[(149, 2)], "not asked for"),
            (&[(150, 1)], "not asked for"),
            (&[(u64::MAX, 1)], "not asked for"),
            (&[(100, u32::MAX)], "not asked for"),
        ];
        for (ranges, says) in cases {
            let error = understand(&bytes(LbaStatusCompletion::Complete, ranges), RANGE).unwrap_err();
            assert!(error.contains(says), "{ranges:?}: {error}");
        }
        for completion in [LbaStatusCompletion::Incomplete, LbaStatusCompletion::Unknown] {
            assert_eq!(
                understand(&bytes(completion, &[]), RANGE),
                Err("it tells nothing")
            );
        }
        let mut reserved = bytes(LbaStatusCompletion::Complete, &[]);
        reserved[4] = 3;
        assert!(understand(&reserved, RANGE).unwrap_err().contains("known way"));
        reserved[0] = 5;
        assert!(understand(&reserved, RANGE).unwrap_err().contains("returns"));
    }

    proptest! {
        /// Whatever is answered: runs that stay within the range and get on, or none.
        #[test]
        fn any_answer_gets_on_within_the_range(
            mut bytes in prop::collection::vec(any::<u8>(), 72),
            count in 0u8..6,
            starts in prop::collection::vec(95u64..155, 4),
            lengths in prop::collection::vec(0u32..20, 4),
            completion in 0u8..4,
        ) {
            bytes[..8].copy_from_slice(&[count, 0, 0, 0, completion, 0, 0, 0]);
            for (index, (start, length)) in starts.iter().zip(&lengths).enumerate() {
                let at = 8 + 16 * index;
                bytes[at..at + 8].copy_from_slice(&start.to_le_bytes());
                bytes[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
            }
            if let Ok(runs) = understand(&bytes, RANGE) {
                let told: u64 = runs.iter().map(|run| run.blocks).sum();
                prop_assert!((1..=50).contains(&told));
                prop_assert!(runs.iter().all(|run| run.blocks > 0));
            }
        }
    }
}
