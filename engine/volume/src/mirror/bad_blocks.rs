//! Blocks that the hosts of replicas have found bad, by a scrub or as a drive was emptied, are written anew
//! from another replica, before that one fails too.
//!
//! Hosts are asked now and then. What they tell is only where to look: a block is written anew if the replica
//! fails to read it, as it is when a host of the volume reads it.

use std::rc::Rc;

use pollux_device::{IoError, Reply, Request};
use pollux_reactor::{Unabandoned, sleep};

use super::Core;
use super::connection::is_session_lost;
use super::read::memory;
use crate::locks::Mode;
use crate::members::StopReason;
use crate::membership::{SlotNumber, SlotSet};
use crate::metadata::BLOCK_BYTES;
use crate::replica::{CommandError, ReplicaAnswer, ReplicaCommand};

/// Asks for bad blocks, as long as the target serves.
pub(super) async fn watch(core: Rc<Core>) {
    while core.stopped().is_none() {
        sleep(core.options.bad_blocks_interval).await;
        let readable = core.members.borrow().readable();
        // With one replica there is nothing to write them from.
        if readable.len() < 2 {
            continue;
        }
        for slot in readable.iter() {
            match core.command(slot, ReplicaCommand::ListBadBlocks).await {
                Ok(ReplicaAnswer::BadBlocks(blocks)) => {
                    for block in blocks {
                        // What cannot be looked at now is told again.
                        let _ = core.look_at(slot, block).await;
                    }
                }
                Err(CommandError::Superseded(_)) => core.stop(StopReason::Superseded),
                // An older engine, or none that answers: others see to that.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl Core {
    /// Reads 4 KiB of one replica, and writes them anew if it cannot.
    async fn look_at(self: &Rc<Self>, slot: SlotNumber, number: u64) -> Result<(), IoError> {
        self.check_serving()?;
        self.check_whole()?;
        let geometry = self.geometry.get();
        let ratio = BLOCK_BYTES as u64 / u64::from(geometry.block_bytes).max(1);
        let block = number.saturating_mul(ratio);
        let blocks = ratio.min(geometry.blocks.saturating_sub(block));
        if blocks == 0 {
            return Ok(());
        }
        self.settled(block, blocks).await?;
        let is_bad = {
            let _lock = self.locks.lock(block..block + blocks, Mode::Shared).await;
            self.is_bad_on(slot, block, blocks).await
        };
        if is_bad {
            let core = self.clone();
            let mut bad = SlotSet::EMPTY;
            bad.insert(slot);
            // What was begun on a replica has to be ended before anything else is written there.
            Unabandoned::new(async move { core.repair(block, blocks, bad).await }).await;
        }
        Ok(())
    }

    /// Whether one replica fails to read blocks that are locked.
    async fn is_bad_on(&self, slot: SlotNumber, block: u64, blocks: u64) -> bool {
        let readable = self.members.borrow().readable();
        let Some(connection) = self.connection(slot).filter(|_| readable.contains(slot)) else {
            return false;
        };
        let bytes = blocks as usize * self.geometry.get().block_bytes as usize;
        let into = memory(bytes);
        let read = connection.send(Request::Read { block, into }, self.options.request_timeout);
        match read.await.and_then(Reply::into_slice) {
            Ok(data) => data.len() != bytes,
            Err(IoError::ResourceShortage | IoError::NotReady) => false,
            Err(error) if error == IoError::Fenced || is_session_lost(error) => {
                self.judge(slot, &connection, error);
                false
            }
            Err(_) => true,
        }
    }
}
