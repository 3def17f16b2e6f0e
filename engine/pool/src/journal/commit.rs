//! Commits: one write under way at a time, of all blocks that were asked for by then.

use std::rc::Rc;
use std::task::Waker;

use pollux_device::{Gather, IoError};
use pollux_hugepages::Slice;
use pollux_reactor::spawn;

use super::ring::pieces;
use super::{Journal, JournalCopy, State};
use crate::device::memory;
use crate::layout::BLOCK_BYTES;
use crate::layout::journal::{JournalBlock, JournalHeader};

/// Blocks of one write.
pub(super) const BATCH_BLOCKS_MAX: usize = 64;

/// Blocks to be written, and what is needed for it.
struct Batch {
    first: u64,
    blocks: Vec<JournalBlock>,
    durable: u64,
    checkpoint: u64,
}

impl Journal {
    /// Has all blocks before `wanted` written, in the background.
    pub(super) fn request(self: &Rc<Self>, wanted: u64) {
        let mut state = self.state.borrow_mut();
        state.wanted = state.wanted.max(wanted);
        if !state.is_writing && state.write < state.wanted && state.failed.is_none() {
            state.is_writing = true;
            spawn(self.clone().write_wanted()).detach();
        }
    }

    async fn write_wanted(self: Rc<Self>) {
        while let Some(batch) = self.take_batch() {
            let end = batch.first + batch.blocks.len() as u64;
            let result = self.write(batch).await;
            let woken = {
                let mut state = self.state.borrow_mut();
                match result {
                    Ok(()) => state.durable = end,
                    Err(error) => {
                        tracing::error!(pool = %self.identity.pool, %error, "the journal cannot be written");
                        state.failed = Some(error);
                        state.is_writing = false;
                        let waiting = std::mem::take(&mut state.waiting);
                        state.committing.extend(waiting);
                    }
                }
                std::mem::take(&mut state.committing)
            };
            woken.into_iter().for_each(Waker::wake);
        }
    }

    /// The next blocks to write; when there are none, nobody writes any more.
    fn take_batch(&self) -> Option<Batch> {
        let mut state = self.state.borrow_mut();
        if state.failed.is_some() {
            return None;
        }
        let first = state.write;
        let mut blocks = Vec::new();
        while state.write < state.wanted && blocks.len() < BATCH_BLOCKS_MAX {
            blocks.push(match state.full.pop_front() {
                Some(block) => block,
                None => match state.block.take() {
                    Some(block) => {
                        state.open += 1;
                        block
                    }
                    None => break,
                },
            });
            state.write += 1;
        }
        if blocks.is_empty() {
            state.is_writing = false;
            return None;
        }
        let (durable, checkpoint) = (state.durable, state.checkpoint);
        Some(Batch {
            first,
            blocks,
            durable,
            checkpoint,
        })
    }

    async fn write(&self, batch: Batch) -> Result<(), IoError> {
        // Its records were appended after their data was written.
        let devices = self.state.borrow().data_devices.clone();
        for device in devices {
            device.flush().await?;
        }
        let mut buffer = memory(batch.blocks.len() * BLOCK_BYTES);
        for ((sequence, block), bytes) in (batch.first..)
            .zip(batch.blocks)
            .zip(buffer.chunks_exact_mut(BLOCK_BYTES))
        {
            let header = JournalHeader {
                pool: self.identity.pool,
                incarnation: self.identity.incarnation,
                sequence,
                durable_sequence: batch.durable,
                checkpoint: batch.checkpoint,
            };
            bytes.copy_from_slice(&block.seal(&header)[..]);
        }
        let sealed = buffer.freeze();
        let copies = self.state.borrow().copies.clone();
        let mut result = Err(IoError::Gone);
        let mut lost = Vec::new();
        for (number, copy) in copies.iter().enumerate() {
            match self.write_copy(copy, batch.first, &sealed).await {
                Ok(()) => result = Ok(()),
                Err(error) => {
                    let pool = self.identity.pool;
                    tracing::error!(%pool, number, %error, "a copy of the journal is lost");
                    self.state.borrow_mut().drop_copy(copy);
                    lost.push(copy.device.clone());
                    if result.is_err() {
                        result = Err(error);
                    }
                }
            }
        }
        result?;
        let gives_up = self.gives_up.borrow().clone();
        for device in lost {
            if let Some(gives_up) = &gives_up {
                gives_up(device).await?;
            }
        }
        Ok(())
    }

    async fn write_copy(&self, copy: &JournalCopy, first: u64, sealed: &Slice) -> Result<(), IoError> {
        let place = self.position_of(first).place;
        let blocks = (sealed.len() / BLOCK_BYTES) as u64;
        let mut done = 0;
        for (place, count) in pieces(place, blocks, self.ring_blocks) {
            if count == 0 {
                continue;
            }
            let bytes = count as usize * BLOCK_BYTES;
            let from = Gather::from(sealed.slice(done..done + bytes));
            copy.device
                .write(copy.ring.first_block + place, from, true)
                .await?;
            done += bytes;
        }
        Ok(())
    }
}

impl State {
    /// A copy that missed a block is no copy any more.
    fn drop_copy(&mut self, lost: &JournalCopy) {
        self.copies
            .retain(|copy| copy.ring != lost.ring || !copy.device.is_same(&lost.device));
    }
}
