//! A model of a block volume in memory, to check a real one against.
//!
//! The model is told of every request when it is started and when it has ended, and says for each read
//! whether what it returned is legal: with requests side by side, and after power cuts. The rules are in
//! [`block`]: they are those of each block by itself, as devices make no promise across blocks.
//!
//! What a block is, is up to the caller: the smallest piece that is promised not to be torn.

mod block;
mod checked;
mod history;
mod pattern;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use checked::{CheckError, CheckedDevice, SharedOracle};
pub use history::OracleHistory;
pub use pattern::{BadPattern, Pattern};
pub use workload::Workload;

use block::{BlockHistory, Tick};
use history::{Call, Log};

use crate::drive::Recorder;

/// What a block holds: the number of the write that put it there, or zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u64);

impl Value {
    /// Never written, deallocated, or zeroed. The only value that may be written more than once.
    pub const ZERO: Self = Self(0);
}

impl fmt::Debug for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ZERO {
            return formatter.write_str("zeros");
        }
        write!(formatter, "write {}", self.0)
    }
}

/// A read returned what it must not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "block {block} held {found:?}; legal {}: {legal:?}",
    if *after_power_cut { "after the power cut" } else { "now" }
)]
pub struct Violation {
    /// Which block.
    pub block: u64,
    /// What it held.
    pub found: Value,
    /// What it might have held.
    pub legal: Vec<Value>,
    /// It is what a power cut left.
    pub after_power_cut: bool,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It was acknowledged. `durable` with FUA, or when the device has no volatile cache.
    Acknowledged {
        /// It survives a power cut.
        durable: bool,
    },
    /// It failed: it happened, or did not, and will not happen any more.
    Failed,
    /// Nobody knows, and it may still happen at any later time, as when a connection broke.
    Unknown,
}

/// What becomes of writes under way when the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderWay {
    /// They end with their writers: the whole machine went down.
    Lost,
    /// They go on: the writers are elsewhere and try again.
    Remains,
}

/// A write under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "tell the oracle how the write ended"]
pub struct WriteTicket {
    number: u64,
    value: Value,
    block: u64,
    blocks: u64,
}

impl WriteTicket {
    /// What it writes to each of its blocks.
    pub fn value(&self) -> Value {
        self.value
    }
}

/// A volume on its way to what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "tell the oracle how it ended"]
pub struct RestoreTicket {
    number: u64,
    blocks: u64,
}

/// A flush under way. One that fails is just dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushTicket {
    started: Tick,
}

/// A read under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "tell the oracle how the read ended"]
pub struct ReadTicket {
    block: u64,
    blocks: u64,
    started: Tick,
}

/// The model of a volume that was all zeros to begin with.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    /// The blocks that something was done to.
    blocks: BTreeMap<u64, BlockHistory>,
    last_tick: Tick,
    last_write: u64,
    /// The last power cut, or loss of the clients. Reads and flushes that were under way then count no more.
    last_loss: Option<Tick>,
    power_cuts: u64,
    /// What it was told, when that is wanted.
    log: Option<Log>,
}

impl Oracle {
    /// A volume of zeros.
    pub fn new() -> Self {
        Self::default()
    }

    /// A volume of zeros on recorded drives: [`Oracle::history`] plays back what it is told. Power cuts are
    /// not part of that: the record has one at its end.
    pub fn recorded(recorder: &Arc<Recorder>) -> Self {
        Self {
            log: Some(Log::new(recorder.clone())),
            ..Self::default()
        }
    }

    /// What it was told so far, from the start; `None` for an oracle without a record.
    pub fn history(&self) -> Option<OracleHistory> {
        self.log.as_ref().map(Log::history)
    }

    fn log(&mut self, call: impl FnOnce() -> Call) {
        if let Some(log) = &mut self.log {
            log.push(call());
        }
    }

    fn tick(&mut self) -> Tick {
        self.last_tick += 1;
        self.last_tick
    }

    fn block(&mut self, block: u64) -> &mut BlockHistory {
        self.blocks.entry(block).or_insert_with(BlockHistory::zeroed)
    }

    /// A write of a new value to some blocks starts.
    pub fn start_write(&mut self, block: u64, blocks: u64) -> WriteTicket {
        self.log(|| Call::StartWrite { block, blocks });
        let value = Value(self.last_write + 1);
        self.start(block, blocks, value)
    }

    /// A write of zeros, or a deallocation, starts.
    pub fn start_zeroes(&mut self, block: u64, blocks: u64) -> WriteTicket {
        self.log(|| Call::StartZeroes { block, blocks });
        self.start(block, blocks, Value::ZERO)
    }

    fn start(&mut self, block: u64, blocks: u64, value: Value) -> WriteTicket {
        self.last_write += 1;
        let (number, now) = (self.last_write, self.tick());
        for block in block..block + blocks {
            self.block(block).start_write(number, value, now);
        }
        WriteTicket {
            number,
            value,
            block,
            blocks,
        }
    }

    /// A write has ended.
    pub fn end_write(&mut self, write: WriteTicket, outcome: WriteOutcome) {
        self.log(|| Call::EndWrite(write, outcome));
        let now = self.tick();
        for block in write.block..write.block + write.blocks {
            match outcome {
                WriteOutcome::Acknowledged { durable } => {
                    self.block(block).acknowledge_write(write.number, durable, now);
                }
                WriteOutcome::Failed => self.block(block).fail_write(write.number, now),
                WriteOutcome::Unknown => {}
            }
        }
    }

    /// A volume is to be what it was: all of its first blocks, at one moment, as reads tell. It is durable
    /// from then on, and no power cut or loss of clients keeps it from happening. What a read returns of it
    /// has been whole when that read began. Not for oracles with a record.
    pub fn start_restore(&mut self, values: &[Value]) -> RestoreTicket {
        self.last_write += 1;
        let (number, now) = (self.last_write, self.tick());
        for (block, &value) in (0..).zip(values) {
            self.block(block).start_restore(number, value, now);
        }
        RestoreTicket {
            number,
            blocks: values.len() as u64,
        }
    }

    /// It has happened, or never will.
    pub fn end_restore(&mut self, restore: RestoreTicket, is_done: bool) {
        let now = self.tick();
        for block in 0..restore.blocks {
            match is_done {
                true => self.block(block).acknowledge_write(restore.number, true, now),
                false => self.block(block).fail_write(restore.number, now),
            }
        }
    }

    /// Whoever reads a block that is what it was finds all of them so.
    fn see_restore(&mut self, read: ReadTicket, values: &[Value]) {
        let found = (read.block..).zip(values).find_map(|(block, value)| {
            let history = self.blocks.get(&block)?;
            history.restore_found(*value)
        });
        let Some(number) = found else { return };
        let before = read.started.saturating_sub(1);
        for history in self.blocks.values_mut() {
            if history.has(number) {
                history.acknowledge_write(number, true, before);
            }
        }
    }

    /// A flush starts.
    pub fn start_flush(&mut self) -> FlushTicket {
        self.log(|| Call::StartFlush);
        FlushTicket { started: self.tick() }
    }

    /// A flush was acknowledged: everything that was acknowledged before it started is durable.
    pub fn end_flush(&mut self, flush: FlushTicket) {
        self.log(|| Call::EndFlush(flush));
        self.tick();
        if Some(flush.started) > self.last_loss {
            for history in self.blocks.values_mut() {
                history.flushed(flush.started);
            }
        }
    }

    /// A read of some blocks starts.
    pub fn start_read(&mut self, block: u64, blocks: u64) -> ReadTicket {
        self.log(|| Call::StartRead { block, blocks });
        let started = self.tick();
        for block in block..block + blocks {
            self.block(block).start_read();
        }
        ReadTicket {
            block,
            blocks,
            started,
        }
    }

    /// A read failed.
    pub fn abandon_read(&mut self, read: ReadTicket) {
        self.log(|| Call::AbandonRead(read));
        if Some(read.started) > self.last_loss {
            for block in read.block..read.block + read.blocks {
                self.block(block).abandon_read();
            }
        }
    }

    /// A read has returned the values of its blocks, in order.
    ///
    /// # Errors
    ///
    /// [`Violation`] for the first block that held what it must not.
    pub fn end_read(&mut self, read: ReadTicket, values: &[Value]) -> Result<(), Violation> {
        self.log(|| Call::EndRead(read, values.to_vec()));
        let now = self.tick();
        if Some(read.started) < self.last_loss {
            return Ok(());
        }
        let after_power_cut = self.power_cuts > 0;
        self.see_restore(read, values);
        for (block, &value) in (read.block..read.block + read.blocks).zip(values) {
            let result = self.block(block).end_read(block, read.started, value, now);
            result.map_err(|violation| Violation {
                after_power_cut,
                ..violation
            })?;
        }
        Ok(())
    }

    /// The power of everything that holds the volume is cut.
    pub fn power_cut(&mut self, under_way: UnderWay) {
        let cut = self.tick();
        let resumed = self.tick();
        self.last_loss = Some(cut);
        self.power_cuts += 1;
        for history in self.blocks.values_mut() {
            match under_way {
                UnderWay::Lost => history.power_cut(cut, None),
                UnderWay::Remains => history.power_cut(cut, Some(resumed)),
            }
        }
    }

    /// The writers died, and the volume lives on: each write under way happened or did not, and never will.
    pub fn clients_lost(&mut self) {
        let now = self.tick();
        self.last_loss = Some(now);
        for history in self.blocks.values_mut() {
            history.clients_lost(now);
        }
    }

    /// What a block may hold if the power of everything is cut now.
    pub fn survivors(&self, block: u64) -> Vec<Value> {
        self.blocks
            .get(&block)
            .map_or_else(|| vec![Value::ZERO], BlockHistory::survivors)
    }

    /// Checks what a block holds after a power cut now, without changing the model: for many cuts of one
    /// history.
    ///
    /// # Errors
    ///
    /// [`Violation`] when it is neither what is durable nor anything later.
    pub fn check_survivor(&self, block: u64, found: Value) -> Result<(), Violation> {
        let legal = self.survivors(block);
        if legal.contains(&found) {
            return Ok(());
        }
        Err(Violation {
            block,
            found,
            legal,
            after_power_cut: true,
        })
    }

    /// The blocks that something was done to.
    pub fn touched(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    #[cfg(test)]
    fn entries(&self, block: u64) -> usize {
        self.blocks.get(&block).map_or(0, BlockHistory::entries)
    }
}
