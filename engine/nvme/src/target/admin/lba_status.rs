//! Get LBA Status (NVM 1.0, 4.2.1), of which there is the question for blocks that are allocated (NVM 1.1).
//!
//! What is not told reads as zeros. So whatever the device does not answer, for want of room or because the
//! question was too large to be looked into at once, is told as allocated, or is behind the end of what an
//! incomplete answer tells.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{AllocationRun, BlockDevice, IoError};
use pollux_reactor::timeout;

use super::super::controller::Controller;
use super::super::io::Attached;
use super::super::namespace::Namespace;
use super::super::queue::{Command, Execution, Outcome};
use super::super::refusal::{Refusal, field};
use super::data;
use super::reservation_features::namespace_of;
use crate::wire::command::{GetLbaStatus, LbaStatusAction, SubmissionEntry};
use crate::wire::lba_status::{
    LBA_STATUS_BYTES_MAX, LbaStatusCompletion, LbaStatusDescriptor, LbaStatusList,
};
use crate::wire::status::Status;

/// Blocks that the device is asked for at a time, which is all that a range with a length has.
const PIECE_BLOCKS: u64 = 1 << 16;

/// Pieces that are looked at for one command: the range without a length goes up to the end of the namespace.
const PIECES_MAX: u32 = 64;

/// Starts the command.
pub(super) fn start(controller: &Arc<Controller>, command: &Command) -> Result<Execution, Refusal> {
    let get = GetLbaStatus::from_entry(&command.entry);
    if get.action() != Some(LbaStatusAction::Allocated) {
        return Err(Refusal::invalid_field(field::DWORD_13 + 3));
    }
    let namespace = namespace_of(controller, command)?;
    if get.data_bytes() > u64::from(controller.config.transfer_bytes_max) {
        return Err(Refusal::invalid_field(field::DWORD_12));
    }
    if get.data_bytes() > u64::from(command.transfer_bytes_max) {
        return Err(Refusal::at(Status::DATA_SGL_LENGTH_INVALID, field::DATA));
    }
    let question = Question::of(&get, namespace.blocks());
    let question = question.ok_or(Refusal::at(Status::LBA_OUT_OF_RANGE, field::DWORD_10))?;
    let wait_max = Duration::from_millis(controller.config.resource_wait_ms.into());
    let (controller, entry) = (controller.clone(), command.entry);
    let transfer_bytes_max = command.transfer_bytes_max;
    Ok(Execution::from_future(async move {
        let answer = timeout(wait_max, question.ask(namespace)).await;
        let done = match answer.unwrap_or(Err(IoError::ResourceShortage)) {
            Ok(list) => {
                // At most the largest transfer, as was checked.
                let bytes = list.to_bytes(get.data_bytes() as usize);
                data(&Command::without_data(entry, transfer_bytes_max), &bytes)
            }
            Err(error) => Err(error.into()),
        };
        done.unwrap_or_else(|refusal| fail(&controller, &entry, refusal, question.block))
    }))
}

/// What a target answers to the command for a device that it serves, on the current reactor.
///
/// # Errors
///
/// [`IoError::OutOfRange`], and those of the device.
pub async fn tell_allocated(device: &Rc<dyn BlockDevice>, get: &GetLbaStatus) -> Result<Vec<u8>, IoError> {
    let question = Question::of(get, device.geometry().blocks).ok_or(IoError::OutOfRange)?;
    let list = question.look(device).await?;
    Ok(list.to_bytes((get.data_bytes() as usize).min(LBA_STATUS_BYTES_MAX)))
}

fn fail(controller: &Controller, entry: &SubmissionEntry, refusal: Refusal, block: u64) -> Outcome {
    controller.record_failure(0, entry, &refusal, block);
    Outcome::failed(entry.command_id.get(), controller.told(refusal.status))
}

/// Which blocks are allocated.
#[derive(Clone, Copy)]
struct Question {
    block: u64,
    blocks: u64,
    descriptors_max: usize,
}

impl Question {
    /// Of a namespace with so many blocks; `None` if it does not have those that are asked for.
    fn of(get: &GetLbaStatus, namespace_blocks: u64) -> Option<Self> {
        let left = namespace_blocks.checked_sub(get.starting_block)?;
        if left == 0 || left < u64::from(get.range_blocks) {
            return None;
        }
        Some(Self {
            block: get.starting_block,
            blocks: match get.range_blocks {
                0 => left,
                blocks => blocks.into(),
            },
            descriptors_max: LbaStatusList::room_of((get.data_bytes() as usize).min(LBA_STATUS_BYTES_MAX)),
        })
    }

    /// Asks the device of a namespace, on the current reactor.
    async fn ask(self, namespace: Arc<Namespace>) -> Result<LbaStatusList, IoError> {
        let attached = Attached::obtain(&namespace);
        // A namespace that other engines serve may have no device here.
        attached.check_access()?;
        let device = attached.ready().await?;
        let list = self.look(&device).await?;
        // What was true before the access was taken away is nothing to go by.
        attached.check_access()?;
        Ok(list)
    }

    async fn look(self, device: &Rc<dyn BlockDevice>) -> Result<LbaStatusList, IoError> {
        let mut answer = Answer::new(self);
        for _ in 0..PIECES_MAX {
            let blocks = answer.left_blocks().min(PIECE_BLOCKS);
            if blocks == 0 || answer.is_full {
                break;
            }
            // Between two descriptors is a hole, and there may be one at each end.
            let runs_max = 2 * (self.descriptors_max - answer.descriptors.len()) + 1;
            let runs = device.allocation(answer.next, blocks, runs_max).await?;
            answer.take(blocks, &runs);
        }
        Ok(answer.finish())
    }
}

/// An answer, as far as it goes.
struct Answer {
    descriptors: Vec<LbaStatusDescriptor>,
    /// Where it goes on, and where it ends.
    next: u64,
    end: u64,
    descriptors_max: usize,
    /// There is more to tell than there is room for.
    is_full: bool,
}

impl Answer {
    fn new(question: Question) -> Self {
        Self {
            descriptors: Vec::new(),
            next: question.block,
            end: question.block + question.blocks,
            descriptors_max: question.descriptors_max,
            is_full: question.descriptors_max == 0,
        }
    }

    fn left_blocks(&self) -> u64 {
        self.end - self.next
    }

    /// Takes in what the device says of the next `blocks` at most.
    fn take(&mut self, blocks: u64, runs: &[AllocationRun]) {
        let mut left = blocks;
        for run in runs {
            let blocks = run.blocks.min(left);
            if blocks == 0 {
                break;
            }
            if run.allocated && !self.allocated(blocks) {
                return;
            }
            self.next += blocks;
            left -= blocks;
        }
        // A device that tells nothing would be asked for ever.
        if left == blocks && self.allocated(left) {
            self.next += left;
        }
    }

    /// Appends blocks that are allocated; false if there is no room.
    fn allocated(&mut self, blocks: u64) -> bool {
        if let Some(last) = self.descriptors.last_mut()
            && last.starting_block + u64::from(last.blocks) == self.next
            && let Ok(together) = u32::try_from(u64::from(last.blocks) + blocks)
        {
            last.blocks = together;
            return true;
        }
        if self.descriptors.len() >= self.descriptors_max {
            self.is_full = true;
            return false;
        }
        self.descriptors.push(LbaStatusDescriptor {
            starting_block: self.next,
            // A piece at most.
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            status: 0,
        });
        true
    }

    fn finish(mut self) -> LbaStatusList {
        // Where it was not looked any further a host has to go on, and takes that from the last descriptor.
        if self.left_blocks() > 0 && !self.is_full && self.allocated(1) {
            self.next += 1;
        }
        let completion = match self.left_blocks() {
            0 => LbaStatusCompletion::Complete,
            _ => LbaStatusCompletion::Incomplete,
        };
        LbaStatusList {
            completion: Some(completion),
            descriptors: self.descriptors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(blocks: u64, descriptors_max: usize) -> Answer {
        Answer::new(Question {
            block: 100,
            blocks,
            descriptors_max,
        })
    }

    fn run(blocks: u64, allocated: bool) -> AllocationRun {
        AllocationRun { blocks, allocated }
    }

    fn told(answer: Answer) -> (Vec<(u64, u32)>, bool) {
        let list = answer.finish();
        let ranges = list.descriptors.iter();
        let is_complete = list.completion == Some(LbaStatusCompletion::Complete);
        (
            ranges.map(|range| (range.starting_block, range.blocks)).collect(),
            is_complete,
        )
    }

    #[test]
    fn pieces_are_put_together() {
        let mut all = answer(20, 4);
        all.take(10, &[run(4, false), run(6, true)]);
        all.take(10, &[run(2, true), run(8, false)]);
        assert_eq!(told(all), (vec![(104, 8)], true));
        let mut nothing = answer(20, 4);
        nothing.take(20, &[run(20, false)]);
        assert_eq!(told(nothing), (vec![], true));
    }

    #[test]
    fn what_has_no_room_is_not_taken_for_a_hole() {
        let mut full = answer(20, 1);
        full.take(20, &[run(4, true), run(4, false), run(4, true), run(8, false)]);
        assert!(full.is_full);
        assert_eq!(told(full), (vec![(100, 4)], false));
        assert_eq!(told(answer(20, 0)), (vec![], false));
    }

    #[test]
    fn what_was_not_looked_at_is_not_taken_for_a_hole() {
        let mut cut = answer(20, 4);
        cut.take(10, &[run(10, false)]);
        assert_eq!(told(cut), (vec![(110, 1)], false));
        // A device that says less, nothing, or more than it was asked.
        let mut silent = answer(20, 4);
        silent.take(10, &[]);
        silent.take(10, &[run(10, false)]);
        assert_eq!(told(silent), (vec![(100, 10)], true));
        let mut greedy = answer(20, 4);
        greedy.take(10, &[run(50, false)]);
        assert_eq!((greedy.next, greedy.left_blocks()), (110, 10));
    }
}
