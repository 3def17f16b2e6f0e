//! The region map on the replicas: written as it changes, and intents retired that are no longer needed.

use std::rc::Rc;

use arrayvec::ArrayVec;
use futures_util::future::try_join_all;
use pollux_device::IoError;
use pollux_reactor::sleep;

use super::Core;
use super::connection::clock;
use super::keeper::{WithReplica, join};
use crate::membership::{SlotNumber, SlotSet};
use crate::metadata::AreaError;

/// Blocks of the map that are written side by side: that of 16 TiB has 4,166.
const BLOCKS_AT_ONCE: usize = 32;

/// Those of them at most that are chosen since somebody waits for them: the others have their turn, too.
const URGENT_AT_ONCE: usize = 24;

/// Writes what changed, one round after the other; runs as long as the target.
pub(super) async fn write(core: Rc<Core>) {
    loop {
        core.map_changed
            .until(|| {
                let dirty = core.regions.borrow().next_dirty(0).is_some();
                (dirty || core.stopped().is_some()).then_some(())
            })
            .await;
        if core.write_map().await.is_err() {
            core.map_written.wake();
            return;
        }
    }
}

/// Retires intents of regions that were idle for a while; runs as long as the target.
pub(super) async fn retire(core: Rc<Core>) {
    while core.stopped().is_none() {
        sleep(core.options.retire_interval).await;
        let idle = core.regions.borrow_mut().idle();
        if idle.is_empty() {
            continue;
        }
        // Whatever a replica that was not flushed may lack has an intent until here, and is missed if it
        // fails.
        if core.flush().await.is_ok() {
            core.regions.borrow_mut().retire(&idle);
            core.map_changed.wake();
        }
    }
}

impl Core {
    /// Writes every block of the map that is dirty, once, and in between those that writes of hosts wait for.
    /// The error is that of a target that has stopped.
    pub(super) async fn write_map(&self) -> Result<(), IoError> {
        let (mut from, mut urgent_from) = (0, 0);
        loop {
            self.check_serving()?;
            let mut batch = ArrayVec::<usize, BLOCKS_AT_ONCE>::new();
            {
                let regions = self.regions.borrow();
                while batch.len() < URGENT_AT_ONCE
                    && let Some(block) = regions.next_urgent(urgent_from)
                    && !batch.contains(&block)
                    && batch.try_push(block).is_ok()
                {
                    urgent_from = block + 1;
                }
                while let Some(block) = regions.next_dirty(from)
                    && (batch.contains(&block) || batch.try_push(block).is_ok())
                {
                    from = block + 1;
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            try_join_all(batch.into_iter().map(|block| self.write_map_block(block))).await?;
        }
    }

    /// Those that have to have a block of the map, and those that are to have it.
    fn map_targets(&self) -> SlotSet {
        let members = self.members.borrow();
        let mut targets = members.required();
        if let Some(slot) = self.mapped.get() {
            targets.insert(slot);
        }
        targets.and(members.live())
    }

    async fn write_map_block(&self, block: usize) -> Result<(), IoError> {
        let (stamp, snapshot) = self.regions.borrow().snapshot(block);
        let snapshot = Rc::new(snapshot);
        let mut done = SlotSet::EMPTY;
        loop {
            self.check_serving()?;
            let missing = self.map_targets().without(done);
            if missing.is_empty() {
                if self.members.borrow().may_acknowledge(done) {
                    break;
                }
                self.changed
                    .until(|| {
                        let more = !self.map_targets().without(done).is_empty();
                        let enough = self.members.borrow().may_acknowledge(done);
                        (more || enough || self.stopped().is_some()).then_some(())
                    })
                    .await;
                continue;
            }
            let mut writes: Vec<(SlotNumber, WithReplica<_>)> = Vec::new();
            for slot in missing.iter() {
                let Some(connection) = self.connection(slot) else {
                    continue;
                };
                let (snapshot, wait_max) = (snapshot.clone(), self.options.request_timeout);
                // It is what writes wait for, too.
                let timed = (missing.len() > 1).then(|| self.paces.send(slot, clock()));
                writes.push((
                    slot,
                    Box::pin(async move {
                        let writing = connection.area.write_map_block(block as u64, &snapshot);
                        let written = connection.in_time(wait_max, writing).await;
                        if let Some(timed) = timed {
                            timed.answer(&written.as_ref().map(drop).map_err(|error| match error {
                                AreaError::Io(error) => *error,
                                AreaError::Missing(_) | AreaError::Codec(_) | AreaError::Layout(_) => {
                                    IoError::Internal
                                }
                            }));
                        }
                        (connection, written)
                    }),
                ));
            }
            for (slot, (connection, result)) in join(writes).await {
                match result {
                    Ok(()) => {
                        done.insert(slot);
                        self.count(|counters| counters.map_writes += 1);
                    }
                    Err(error) => self.judge_area(slot, &connection, &error),
                }
            }
        }
        self.regions.borrow_mut().written(block, stamp, &snapshot);
        self.map_written.wake();
        Ok(())
    }
}
