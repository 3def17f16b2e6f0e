//! The oracle against brute force: every order of effects tried, on small histories of one block.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::random::{Random, Seed};

/// One request of a history, as brute force sees it.
#[derive(Debug, Clone)]
enum Kind {
    Write {
        value: Value,
        acknowledged: bool,
        durable: bool,
    },
    Read {
        value: Value,
    },
}

#[derive(Debug, Clone)]
struct Operation {
    started: u64,
    /// When it had ended; `None` while it may still happen.
    ended: Option<u64>,
    kind: Kind,
}

impl Operation {
    fn writes(&self, wanted: Value) -> bool {
        matches!(self.kind, Kind::Write { value, .. } if value == wanted)
    }

    /// It must be part of every order.
    fn is_certain(&self) -> bool {
        match self.kind {
            Kind::Write { acknowledged, .. } => acknowledged,
            Kind::Read { .. } => true,
        }
    }
}

/// Tries every order of effects of what has ended or may have happened. Calls back with the values that the
/// block held, in turn, and where the last durable one is.
struct BruteForce<'a> {
    operations: &'a [Operation],
    done: Vec<bool>,
    values: Vec<Value>,
    durable: usize,
    found: bool,
    survivors: BTreeSet<Value>,
}

impl<'a> BruteForce<'a> {
    fn try_all(operations: &'a [Operation], initial: &BTreeSet<Value>) -> Self {
        let mut search = BruteForce {
            operations,
            done: vec![false; operations.len()],
            values: Vec::new(),
            durable: 0,
            found: false,
            survivors: BTreeSet::new(),
        };
        for &value in initial {
            search.values = vec![value];
            // A write under way that a power cut left has happened, and does not happen again.
            search.done = operations
                .iter()
                .map(|operation| operation.writes(value))
                .collect();
            search.extend();
        }
        search
    }

    fn extend(&mut self) {
        let certain_left =
            (0..self.operations.len()).any(|index| !self.done[index] && self.operations[index].is_certain());
        if !certain_left {
            self.found = true;
            self.survivors.extend(&self.values[self.durable..]);
        }
        for next in 0..self.operations.len() {
            if self.done[next] {
                continue;
            }
            let operation = &self.operations[next];
            let must_come_first = |(index, other): (usize, &Operation)| {
                !self.done[index]
                    && index != next
                    && other.is_certain()
                    && other.ended.is_some_and(|ended| ended < operation.started)
            };
            if self.operations.iter().enumerate().any(must_come_first) {
                continue;
            }
            // What had ended before something that is done was started cannot come now.
            let too_late = self.operations.iter().enumerate().any(|(index, other)| {
                self.done[index] && operation.ended.is_some_and(|ended| ended < other.started)
            });
            if too_late {
                continue;
            }
            self.done[next] = true;
            match operation.kind {
                Kind::Read { value } => {
                    if self.values.last() == Some(&value) {
                        self.extend();
                    }
                }
                Kind::Write { value, durable, .. } => {
                    let before = self.durable;
                    self.values.push(value);
                    if durable {
                        self.durable = self.values.len() - 1;
                    }
                    self.extend();
                    self.values.pop();
                    self.durable = before;
                }
            }
            self.done[next] = false;
        }
    }
}

/// What is under way: with the oracle's ticket, when it was started, or where brute force keeps it.
enum Open {
    Write(WriteTicket, usize),
    Read(ReadTicket, u64),
    Flush(FlushTicket, u64),
}

/// A random history, told to the oracle and to brute force step by step.
struct Comparison {
    random: Random,
    oracle: Oracle,
    operations: Vec<Operation>,
    initial: BTreeSet<Value>,
    values: Vec<Value>,
    open: Vec<Open>,
    clock: u64,
    cuts: usize,
}

impl Comparison {
    fn new(seed: u64) -> Self {
        Self {
            random: Seed(seed).stream("oracle", 0),
            oracle: Oracle::new(),
            operations: Vec::new(),
            initial: BTreeSet::from([Value::ZERO]),
            values: vec![Value::ZERO],
            open: Vec::new(),
            clock: 0,
            cuts: 0,
        }
    }

    /// Runs until a read was wrong, or until there is too much for brute force; whether all was right.
    fn run(&mut self) -> bool {
        for _ in 0..40 {
            self.clock += 1;
            if self.random.chance(0.05) {
                self.power_cut();
            } else if self.random.chance(0.02) {
                self.clients_lost();
            } else if self.operations.len() < 7 && self.open.len() < 4 && self.random.chance(0.55) {
                self.start();
            } else if self.open.is_empty() {
                break;
            } else if !self.end() {
                return false;
            }
            let expected = self.brute_force().survivors;
            let survivors: BTreeSet<Value> = self.oracle.survivors(0).into_iter().collect();
            assert_eq!(survivors, expected, "{:?} of {:?}", self.operations, self.oracle);
        }
        true
    }

    fn brute_force(&self) -> BruteForce<'_> {
        BruteForce::try_all(&self.operations, &self.initial)
    }

    fn start(&mut self) {
        let open = match self.random.below(5) {
            0 => Open::Flush(self.oracle.start_flush(), self.clock),
            1 | 2 => Open::Read(self.oracle.start_read(0, 1), self.clock),
            _ => {
                let ticket = self.oracle.start_write(0, 1);
                self.values.push(ticket.value());
                self.operations.push(Operation {
                    started: self.clock,
                    ended: None,
                    kind: Kind::Write {
                        value: ticket.value(),
                        acknowledged: false,
                        durable: false,
                    },
                });
                Open::Write(ticket, self.operations.len() - 1)
            }
        };
        self.open.push(open);
    }

    /// Ends something; whether nothing was wrong.
    fn end(&mut self) -> bool {
        let index = self.random.index(self.open.len());
        match self.open.swap_remove(index) {
            Open::Flush(ticket, started) => {
                if self.random.chance(0.8) {
                    self.oracle.end_flush(ticket);
                    self.flushed(started);
                }
                true
            }
            Open::Write(ticket, at) => {
                self.end_write(ticket, at);
                true
            }
            Open::Read(ticket, started) => self.end_read(ticket, started),
        }
    }

    fn flushed(&mut self, started: u64) {
        for operation in &mut self.operations {
            if let Kind::Write {
                acknowledged: true,
                durable,
                ..
            } = &mut operation.kind
            {
                *durable |= operation.ended < Some(started);
            }
        }
    }

    fn end_write(&mut self, ticket: WriteTicket, at: usize) {
        let forced = self.random.chance(0.2);
        let outcome = match self.random.below(8) {
            0 => WriteOutcome::Failed,
            1 => WriteOutcome::Unknown,
            _ => WriteOutcome::Acknowledged { durable: forced },
        };
        self.oracle.end_write(ticket, outcome);
        let operation = &mut self.operations[at];
        operation.ended = (outcome != WriteOutcome::Unknown).then_some(self.clock);
        if let Kind::Write {
            acknowledged,
            durable,
            ..
        } = &mut operation.kind
        {
            *acknowledged = matches!(outcome, WriteOutcome::Acknowledged { .. });
            *durable = *acknowledged && forced;
        }
    }

    fn end_read(&mut self, ticket: ReadTicket, started: u64) -> bool {
        // Mostly something recent, which is what makes a difference.
        let recent = self.values.len().saturating_sub(4);
        let value = *self.random.pick(&self.values[recent..]).unwrap();
        self.operations.push(Operation {
            started,
            ended: Some(self.clock),
            kind: Kind::Read { value },
        });
        let expected = self.brute_force().found;
        let before = self.oracle.clone();
        let result = self.oracle.end_read(ticket, &[value]);
        assert_eq!(
            result.is_ok(),
            expected,
            "{value:?}: {result:?} in {:?} of {before:?}",
            self.operations
        );
        assert!(
            result
                .err()
                .is_none_or(|violation| !violation.legal.contains(&value))
        );
        expected
    }

    fn clients_lost(&mut self) {
        self.oracle.clients_lost();
        self.open.clear();
        for operation in &mut self.operations {
            operation.ended = operation.ended.or(Some(self.clock));
        }
    }

    fn power_cut(&mut self) {
        self.cuts += 1;
        self.initial = self.brute_force().survivors;
        let remains = self.random.chance(0.5);
        self.oracle.power_cut(if remains {
            UnderWay::Remains
        } else {
            UnderWay::Lost
        });
        let mut kept = Vec::new();
        let mut open = Vec::new();
        for (index, operation) in std::mem::take(&mut self.operations).into_iter().enumerate() {
            if remains && operation.ended.is_none() {
                let ticket = self.open.iter().find_map(|open| match open {
                    Open::Write(ticket, at) if *at == index => Some(*ticket),
                    _ => None,
                });
                open.extend(ticket.map(|ticket| Open::Write(ticket, kept.len())));
                kept.push(Operation {
                    started: self.clock,
                    ..operation
                });
            }
        }
        (self.operations, self.open) = (kept, open);
    }
}

#[test]
fn agrees_with_brute_force() {
    let (mut wrong, mut right, mut cuts) = (0, 0, 0);
    for seed in 0..6_000 {
        let mut comparison = Comparison::new(seed);
        match comparison.run() {
            true => right += 1,
            false => wrong += 1,
        }
        cuts += comparison.cuts;
    }
    // Neither side of the comparison is the rare one.
    assert!(
        wrong > 500 && right > 1_000 && cuts > 1_000,
        "{wrong} {right} {cuts}"
    );
}

/// A block that takes effect at random moments, as the model of a good device; what it may not be blamed for.
#[derive(Default)]
struct GoodBlock {
    history: Vec<Value>,
    durable: usize,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn never_blames_a_good_device(seed in any::<u64>()) {
        let mut random = Seed(seed).stream("good device", 0);
        let mut oracle = Oracle::new();
        let mut block = GoodBlock { history: vec![Value::ZERO], durable: 0 };
        // Writes and reads under way, with whether and what they did.
        let mut writes: Vec<(WriteTicket, Option<usize>)> = Vec::new();
        let mut reads: Vec<(ReadTicket, Option<Value>)> = Vec::new();
        for _ in 0..200 {
            match random.below(9) {
                0 => writes.push((oracle.start_write(5, 1), None)),
                1 => writes.push((oracle.start_zeroes(5, 1), None)),
                2 => reads.push((oracle.start_read(5, 1), None)),
                3 if !writes.is_empty() => {
                    let index = random.index(writes.len());
                    let (ticket, done) = &mut writes[index];
                    if done.is_none() {
                        block.history.push(ticket.value());
                        *done = Some(block.history.len() - 1);
                    }
                }
                4 if !reads.is_empty() => {
                    let index = random.index(reads.len());
                    reads[index].1 = block.history.last().copied();
                }
                5 if !writes.is_empty() => {
                    let index = random.index(writes.len());
                    if let (ticket, Some(at)) = writes[index] {
                        let _ = writes.swap_remove(index);
                        let durable = random.chance(0.2);
                        if durable {
                            block.durable = block.durable.max(at);
                        }
                        oracle.end_write(ticket, WriteOutcome::Acknowledged { durable });
                    }
                }
                6 if !reads.is_empty() => {
                    let index = random.index(reads.len());
                    if let (ticket, Some(value)) = reads[index] {
                        let _ = reads.swap_remove(index);
                        prop_assert_eq!(oracle.end_read(ticket, &[value]), Ok(()));
                    }
                }
                7 => {
                    let flush = oracle.start_flush();
                    block.durable = block.history.len() - 1;
                    oracle.end_flush(flush);
                }
                8 if random.chance(0.2) => {
                    let survivor = *random.pick(&block.history[block.durable..]).unwrap();
                    prop_assert_eq!(oracle.check_survivor(5, survivor), Ok(()));
                    oracle.power_cut(UnderWay::Lost);
                    block = GoodBlock { history: vec![survivor], durable: 0 };
                    writes.clear();
                    reads.clear();
                }
                _ => {}
            }
        }
    }
}

#[test]
fn tells_what_was_legal() {
    let mut oracle = Oracle::new();
    let acknowledged = WriteOutcome::Acknowledged { durable: false };
    let first = oracle.start_write(3, 1);
    oracle.end_write(first, acknowledged);
    let flush = oracle.start_flush();
    oracle.end_flush(flush);
    let second = oracle.start_write(3, 1);
    oracle.end_write(second, acknowledged);
    assert_eq!(oracle.survivors(3), [first.value(), second.value()]);
    assert_eq!(oracle.survivors(4), [Value::ZERO]);

    let read = oracle.start_read(3, 1);
    let violation = oracle.end_read(read, &[first.value()]).unwrap_err();
    assert_eq!(
        violation.to_string(),
        "block 3 held write 1; legal now: [write 2]"
    );
    oracle.power_cut(UnderWay::Lost);
    let read = oracle.start_read(3, 1);
    let violation = oracle.end_read(read, &[Value::ZERO]).unwrap_err();
    assert_eq!(
        violation.to_string(),
        "block 3 held zeros; legal after the power cut: [write 1, write 2]"
    );
}

#[test]
fn what_survived_stays() {
    let mut oracle = Oracle::new();
    let write = oracle.start_write(0, 1);
    oracle.power_cut(UnderWay::Lost);
    let mut read = |value| {
        let ticket = oracle.start_read(0, 1);
        oracle.end_read(ticket, &[value]).is_ok()
    };
    assert!(read(write.value()));
    assert!(!read(Value::ZERO));
}

#[test]
fn histories_stay_short() {
    let mut oracle = Oracle::new();
    for _ in 0..1000 {
        let write = oracle.start_write(0, 4);
        oracle.end_write(write, WriteOutcome::Acknowledged { durable: true });
        let read = oracle.start_read(0, 4);
        oracle.end_read(read, &[write.value(); 4]).unwrap();
    }
    assert_eq!(oracle.entries(0), 1);
}
