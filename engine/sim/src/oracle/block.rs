//! The history of one block, and what a read of it may return.
//!
//! A block is a register. Each write has a time at which it was started and, once it was answered, one at
//! which it had happened; in between it takes effect at some moment, and so does each read. A history is good
//! if such moments can be found that make every read return the write before it (linearizability).
//!
//! For values that are never written twice there is a simple and exact test for that (Gibbons and Korach,
//! "Testing Shared Memories", 1997). Take each write together with the reads that returned it. If one of them
//! had ended before one of another write started, the first write came before the second:
//!
//! ```text
//! a comes before b    if    a.first_end < b.last_start
//! ```
//!
//! The history is good exactly if no two writes come before each other.
//!
//! A write is *durable* once it was acknowledged and then covered by an acknowledged flush, or acknowledged
//! with FUA. After a power cut a block holds a write that need not come before a durable one: the last
//! durable one, or any later or concurrent one. What it holds then is on the medium, and stays.
//!
//! Invariant: every entry could still be returned by a read, be what a power cut leaves, or happen after it.

use super::{Value, Violation};

/// A moment of the oracle; no two are the same.
pub(super) type Tick = u64;

/// How far a write has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It may happen now or later.
    Pending,
    /// It has happened.
    Acknowledged,
    /// It has happened by then, or never will.
    Failed,
}

/// A write with the reads that returned it.
#[derive(Debug, Clone)]
struct Entry {
    /// The number of the write; the content that a power cut left has none.
    write: Option<u64>,
    /// What it wrote. Several only for what a power cut left, until a read tells which.
    values: Vec<Value>,
    progress: Progress,
    /// When it was acknowledged, or had failed.
    ended: Option<Tick>,
    /// The earliest end of the write and its reads.
    first_end: Tick,
    /// The latest start of the write and its reads.
    last_start: Tick,
    /// A read returned it.
    seen: bool,
    durable: bool,
    /// A durable write has come after it, and every read that could still return it has ended.
    outdated: bool,
    /// It is of a volume that goes back to what it was: its value may have been written before, and it goes
    /// on whoever is lost.
    is_restored: bool,
}

impl Entry {
    /// What a block held to begin with.
    fn initial(values: Vec<Value>, at: Tick) -> Self {
        Self {
            write: None,
            values,
            progress: Progress::Acknowledged,
            ended: Some(at),
            first_end: at,
            last_start: at,
            seen: false,
            durable: true,
            outdated: false,
            is_restored: false,
        }
    }

    /// It is certain that it took effect.
    fn has_happened(&self) -> bool {
        self.seen || self.progress == Progress::Acknowledged
    }

    fn comes_before(&self, other: &Self) -> bool {
        self.first_end < other.last_start
    }

    /// What it would be with one more read.
    fn with_read(&self, started: Tick, ended: Tick) -> Self {
        Self {
            first_end: self.first_end.min(ended),
            last_start: self.last_start.max(started),
            seen: true,
            ..self.clone()
        }
    }
}

/// The writes that matter to one block.
#[derive(Debug, Clone)]
pub(super) struct BlockHistory {
    entries: Vec<Entry>,
    reads_under_way: u32,
}

impl BlockHistory {
    /// A block of zeros.
    pub(super) fn zeroed() -> Self {
        Self {
            entries: vec![Entry::initial(vec![Value::ZERO], 0)],
            reads_under_way: 0,
        }
    }

    pub(super) fn start_write(&mut self, write: u64, value: Value, now: Tick) {
        self.entries.push(Entry {
            write: Some(write),
            values: vec![value],
            progress: Progress::Pending,
            ended: None,
            first_end: Tick::MAX,
            last_start: now,
            seen: false,
            durable: false,
            outdated: false,
            is_restored: false,
        });
    }

    /// The block is to be what it was.
    pub(super) fn start_restore(&mut self, write: u64, value: Value, now: Tick) {
        self.start_write(write, value, now);
        if let Some(entry) = self.entries.last_mut() {
            entry.is_restored = true;
        }
    }

    /// Whether a write is remembered.
    pub(super) fn has(&self, write: u64) -> bool {
        self.entries.iter().any(|entry| entry.write == Some(write))
    }

    /// The restore under way that a read of this value has found, if nothing else has that value.
    pub(super) fn restore_found(&self, value: Value) -> Option<u64> {
        let mut matching = self.entries.iter().filter(|entry| entry.values.contains(&value));
        let (first, other) = (matching.next()?, matching.next());
        let is_found = other.is_none() && first.is_restored && first.progress == Progress::Pending;
        first.write.filter(|_| is_found)
    }

    pub(super) fn acknowledge_write(&mut self, write: u64, durable: bool, now: Tick) {
        self.end_write(write, Progress::Acknowledged, now, durable);
    }

    pub(super) fn fail_write(&mut self, write: u64, now: Tick) {
        self.end_write(write, Progress::Failed, now, false);
    }

    /// An entry that is not there any more can neither be returned nor survive, whatever became of it.
    fn end_write(&mut self, write: u64, progress: Progress, now: Tick, durable: bool) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.write == Some(write)) {
            entry.progress = progress;
            entry.ended = Some(now);
            entry.first_end = entry.first_end.min(now);
            entry.durable = durable;
        }
        self.prune();
    }

    /// A flush that was started then has been acknowledged.
    pub(super) fn flushed(&mut self, started: Tick) {
        for entry in &mut self.entries {
            entry.durable |= entry.progress == Progress::Acknowledged && entry.ended < Some(started);
        }
        self.prune();
    }

    pub(super) fn start_read(&mut self) {
        self.reads_under_way += 1;
    }

    pub(super) fn abandon_read(&mut self) {
        self.reads_under_way = self.reads_under_way.saturating_sub(1);
        self.prune();
    }

    /// A read that was started then has returned a value.
    pub(super) fn end_read(
        &mut self,
        block: u64,
        started: Tick,
        value: Value,
        now: Tick,
    ) -> Result<(), Violation> {
        let matching: Vec<usize> = (0..self.entries.len())
            .filter(|&index| self.entries[index].values.contains(&value))
            .collect();
        let legal: Vec<usize> = matching
            .iter()
            .copied()
            .filter(|&index| self.may_be_read(index, started, now))
            .collect();
        if legal.is_empty() {
            return Err(Violation {
                block,
                found: value,
                legal: self.readable(started, now),
                after_power_cut: false,
            });
        }
        // Zeros can have been written several times; then it stays open which of them was read.
        if let [index] = matching[..] {
            let read = self.entries[index].with_read(started, now);
            self.entries[index] = Entry {
                values: vec![value],
                ..read
            };
        }
        self.abandon_read();
        Ok(())
    }

    fn may_be_read(&self, index: usize, started: Tick, now: Tick) -> bool {
        let entry = &self.entries[index];
        !entry.outdated && self.is_possible(index, &entry.with_read(started, now))
    }

    /// Whether the history would be good if the write at `index` happened as `entry` says.
    fn is_possible(&self, index: usize, entry: &Entry) -> bool {
        let certain = |(other, entry): &(usize, &Entry)| *other != index && entry.has_happened();
        let mut others = self.entries.iter().enumerate().filter(certain);
        others.all(|(_, other)| !(entry.comes_before(other) && other.comes_before(entry)))
    }

    fn readable(&self, started: Tick, now: Tick) -> Vec<Value> {
        let legal = (0..self.entries.len()).filter(|&index| self.may_be_read(index, started, now));
        legal
            .flat_map(|index| self.entries[index].values.clone())
            .collect()
    }

    /// Which entries come before a durable one, directly or through others.
    fn outdated(&self) -> Vec<bool> {
        let mut outdated: Vec<bool> = self.entries.iter().map(|entry| entry.outdated).collect();
        loop {
            let next: Vec<bool> = self
                .entries
                .iter()
                .enumerate()
                .map(|(index, entry)| {
                    let mut others = self
                        .entries
                        .iter()
                        .enumerate()
                        .filter(|(other, _)| *other != index);
                    outdated[index]
                        || others.any(|(other, later)| {
                            later.has_happened()
                                && (later.durable || outdated[other])
                                && entry.comes_before(later)
                        })
                })
                .collect();
            if next == outdated {
                return outdated;
            }
            outdated = next;
        }
    }

    /// What the block may hold if the power is cut now.
    pub(super) fn survivors(&self) -> Vec<Value> {
        let outdated = self.outdated();
        let left = (0..self.entries.len())
            .filter(|&index| !outdated[index] && self.is_possible(index, &self.entries[index]));
        let mut values: Vec<Value> = left
            .flat_map(|index| self.entries[index].values.clone())
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// The power is cut. Writes under way are lost with their writer, or go on afterwards from `resumed` on.
    pub(super) fn power_cut(&mut self, cut: Tick, resumed: Option<Tick>) {
        let mut survivors = self.survivors();
        let mut pending = std::mem::take(&mut self.entries);
        pending
            .retain(|entry| (resumed.is_some() || entry.is_restored) && entry.progress == Progress::Pending);
        for entry in &mut pending {
            entry.first_end = Tick::MAX;
            entry.last_start = resumed.unwrap_or(cut);
            entry.seen = false;
            entry.outdated = false;
            // Should it have survived, it is as if it happened right after the cut.
            let is_alone = |value: &Value| !entry.is_restored && *value != Value::ZERO;
            survivors.retain(|value| !entry.values.contains(value) || !is_alone(value));
        }
        self.entries = vec![Entry::initial(survivors, cut)];
        self.entries.append(&mut pending);
        self.reads_under_way = 0;
    }

    /// Whoever wrote and read is gone, and what they had under way with them.
    pub(super) fn clients_lost(&mut self, now: Tick) {
        for entry in self
            .entries
            .iter_mut()
            .filter(|entry| entry.progress == Progress::Pending && !entry.is_restored)
        {
            entry.progress = Progress::Failed;
            entry.ended = Some(now);
            entry.first_end = entry.first_end.min(now);
        }
        self.reads_under_way = 0;
        self.prune();
    }

    /// Forgets what can neither be read nor survive. A read under way may still return what has been
    /// overwritten, and a write that was not answered may be tried again after a power cut.
    fn prune(&mut self) {
        if self.reads_under_way > 0 || self.entries.len() == 1 {
            return;
        }
        let outdated = self.outdated();
        for (entry, outdated) in self.entries.iter_mut().zip(outdated) {
            entry.outdated = outdated;
        }
        self.entries
            .retain(|entry| !entry.outdated || entry.progress == Progress::Pending);
    }

    /// Writes that are remembered.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }
}
