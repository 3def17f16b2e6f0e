//! Each fault does what it says, when it says, and is counted.

mod common;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::{on_reactor, open};
use pollux_device::faulty::{ERROR_NAMES, Fault, FaultCounts, Operation, Release, Rule, When};
use pollux_device::{
    BlockDevice, BlockDeviceExt, Device, Faults, FaultyDevice, Gather, IoError, MallocDevice, MallocOptions,
    ZeroOptions,
};
use pollux_hugepages::{Buffer, Slice};

const BLOCK_BYTES: usize = 4096;

/// A faulty device over memory, and the memory itself.
struct Bed {
    faults: Faults,
    device: Arc<FaultyDevice>,
    faulty: Rc<dyn BlockDevice>,
    memory: Rc<dyn BlockDevice>,
}

impl Bed {
    async fn new(seed: Option<u64>) -> Self {
        let memory = MallocDevice::new("memory", &MallocOptions::new(1 << 20)).expect("memory");
        let faults = Faults::new(seed);
        let device = FaultyDevice::new(memory.clone(), faults.clone());
        Self {
            faults,
            faulty: device.clone().attach().await.expect("memory attaches"),
            device,
            memory: memory.attach().await.expect("memory attaches"),
        }
    }

    fn rule(&self, operation: Operation, fault: Fault) {
        self.faults.set([Rule {
            when: When::operation(operation),
            fault,
        }]);
    }

    async fn write(&self, block: u64, byte: u8, blocks: usize) -> Result<(), IoError> {
        self.faulty
            .write(block, Slice::copy_from(&vec![byte; blocks * BLOCK_BYTES]), false)
            .await
    }

    async fn read(&self, block: u64, blocks: usize) -> Result<Buffer, IoError> {
        self.faulty
            .read(block, Buffer::from_heap(blocks * BLOCK_BYTES))
            .await
    }

    /// What is really there.
    async fn medium(&self, block: u64, blocks: usize) -> Buffer {
        let read = self.memory.read(block, Buffer::from_heap(blocks * BLOCK_BYTES));
        read.await.expect("memory does not fail")
    }
}

fn bits_set(data: &[u8]) -> u32 {
    data.iter().map(|byte| byte.count_ones()).sum()
}

#[test]
fn errors_strike_their_operation_before_or_after() {
    on_reactor(|| async {
        let bed = Bed::new(Some(1)).await;
        bed.rule(Operation::Write, Fault::Fail(IoError::MediaWrite));
        assert_eq!(bed.write(0, 1, 1).await, Err(IoError::MediaWrite));
        assert_eq!(bits_set(&bed.medium(0, 1).await), 0);
        assert!(bed.read(0, 1).await.is_ok());
        assert_eq!(bed.faulty.flush().await, Ok(()));

        bed.rule(Operation::Write, Fault::FailAfter(IoError::TimedOut));
        assert_eq!(bed.write(0, 1, 1).await, Err(IoError::TimedOut));
        assert_eq!(bed.medium(0, 1).await[..], [1; BLOCK_BYTES]);

        bed.faults.clear();
        assert_eq!(bed.write(0, 2, 1).await, Ok(()));
        let counts = FaultCounts {
            failed: 1,
            failed_after: 1,
            ..FaultCounts::default()
        };
        assert_eq!(bed.faults.counts(), counts);
        assert_eq!(bed.device.health().media_errors, 1);
    });
}

#[test]
fn every_operation_can_fail() {
    on_reactor(|| async {
        let bed = Bed::new(Some(1)).await;
        bed.faults.set([Rule {
            when: When::default(),
            fault: Fault::Fail(IoError::Gone),
        }]);
        let gone = Err(IoError::Gone);
        assert_eq!(bed.read(0, 1).await.map(drop), gone);
        assert_eq!(bed.write(0, 1, 1).await, gone);
        assert_eq!(bed.faulty.flush().await, gone);
        assert_eq!(bed.faulty.deallocate(0, 1).await, gone);
        assert_eq!(bed.faulty.write_zeroes(0, 1, ZeroOptions::default()).await, gone);
        assert_eq!(bed.faulty.compare(0, Buffer::from_heap(BLOCK_BYTES)).await, gone);
        assert_eq!(bed.faults.counts().failed, 6);
        // A mistake of the caller stays one.
        assert_eq!(bed.write(256, 1, 1).await, Err(IoError::OutOfRange));
        assert_eq!(bed.faults.counts().failed, 6);
    });
}

#[test]
fn conditions_choose_the_request() {
    on_reactor(|| async {
        let bed = Bed::new(Some(1)).await;
        let strikes = async |when: When, requests: u64| {
            bed.faults.set([Rule {
                when,
                fault: Fault::Fail(IoError::MediaWrite),
            }]);
            let mut struck = Vec::new();
            for number in 1..=requests {
                if bed.write(number, 1, 1).await.is_err() {
                    struck.push(number);
                }
            }
            struck
        };
        let writes = || When::operation(Operation::Write);
        assert_eq!(strikes(writes().nth(4), 10).await, [4]);
        assert_eq!(strikes(writes().in_blocks(3..=5), 10).await, [3, 4, 5]);
        assert_eq!(strikes(writes().in_blocks(3..=5).nth(2), 10).await, [4]);
        assert_eq!(strikes(When::operation(Operation::Flush), 10).await, [0; 0]);
        let every = When {
            skip: 2,
            every: 3,
            times: 3,
            ..writes()
        };
        assert_eq!(strikes(every, 20).await, [3, 6, 9]);
        assert_eq!(strikes(writes().with_probability(0.0), 200).await, [0; 0]);
        let some = strikes(writes().with_probability(0.5), 200).await.len();
        assert!((60..140).contains(&some), "{some} of 200");
        // A range is struck if any of its blocks is.
        bed.faults.set([Rule {
            when: writes().in_blocks(10..=10),
            fault: Fault::Fail(IoError::MediaWrite),
        }]);
        assert!(bed.write(8, 1, 2).await.is_ok());
        assert!(bed.write(8, 1, 3).await.is_err());
        assert!(bed.write(10, 1, 3).await.is_err());
        assert!(bed.write(11, 1, 3).await.is_ok());
    });
}

#[test]
fn a_seed_gives_the_same_faults_again() {
    let run = || {
        on_reactor(|| async {
            let bed = Bed::new(Some(42)).await;
            bed.faults.set([
                Rule {
                    when: When::operation(Operation::Write).with_probability(0.3),
                    fault: Fault::Flip(3),
                },
                Rule {
                    when: When::default().with_probability(0.2),
                    fault: Fault::Tear(None),
                },
            ]);
            for block in 0..64 {
                bed.write(block, 0, 2).await.expect("no errors");
            }
            bed.medium(0, 64).await.to_vec()
        })
    };
    let first = run();
    assert!(bits_set(&first) > 0);
    assert!(first == run());
}

#[test]
fn delays_take_their_time() {
    on_reactor(|| async {
        let bed = Bed::new(None).await;
        let (least, most) = (Duration::from_millis(3), Duration::from_millis(6));
        bed.rule(Operation::Read, Fault::Delay(least..=most));
        let before = pollux_reactor::now();
        bed.read(0, 1).await.expect("only late");
        assert!(pollux_reactor::now() - before >= least);
        assert_eq!(bed.faults.counts().delayed, 1);
    });
}

#[test]
fn stuck_requests_wait_for_their_release() {
    on_reactor(|| async {
        let bed = Bed::new(None).await;
        bed.rule(Operation::Write, Fault::Stick);
        let faulty = bed.faulty.clone();
        let spawn = |block: u64, byte: u8| {
            let faulty = faulty.clone();
            pollux_reactor::spawn(async move {
                let data = Slice::copy_from(&[byte; BLOCK_BYTES]);
                faulty.write(block, data, false).await
            })
        };
        let (first, second) = (spawn(0, 1), spawn(1, 2));
        while bed.faults.stuck_now() < 2 {
            pollux_reactor::yield_now().await;
        }
        pollux_reactor::sleep(Duration::from_millis(2)).await;
        assert_eq!(bits_set(&bed.medium(0, 2).await), 0);
        bed.faults.release(Release::Proceed);
        assert_eq!((first.await, second.await), (Ok(()), Ok(())));
        assert_eq!(bed.medium(1, 1).await[..], [2; BLOCK_BYTES]);

        // A release is for those that are stuck then, not for later ones.
        let third = spawn(2, 3);
        while bed.faults.stuck_now() < 1 {
            pollux_reactor::yield_now().await;
        }
        bed.faults.release(Release::Fail(IoError::Aborted));
        assert_eq!(third.await, Err(IoError::Aborted));
        assert_eq!(bits_set(&bed.medium(2, 1).await), 0);

        // Who is not waited for any more is not stuck any more.
        let fourth = spawn(3, 4);
        while bed.faults.stuck_now() < 1 {
            pollux_reactor::yield_now().await;
        }
        drop(fourth);
        while bed.faults.stuck_now() > 0 {
            pollux_reactor::yield_now().await;
        }
        assert_eq!(bed.faults.counts().stuck, 4);
    });
}

#[test]
fn lost_requests_are_acknowledged_and_nothing_more() {
    on_reactor(|| async {
        let bed = Bed::new(None).await;
        bed.write(0, 9, 4).await.expect("no faults yet");
        bed.faults.set([Rule {
            when: When::default(),
            fault: Fault::Lose,
        }]);
        assert_eq!(bed.write(0, 1, 1).await, Ok(()));
        assert_eq!(bed.faulty.deallocate(1, 1).await, Ok(()));
        assert_eq!(
            bed.faulty.write_zeroes(2, 1, ZeroOptions::default()).await,
            Ok(())
        );
        assert_eq!(bed.faulty.flush().await, Ok(()));
        assert_eq!(bed.medium(0, 4).await[..], [9; 4 * BLOCK_BYTES]);
        // What has an answer cannot be lost.
        assert_eq!(bed.read(0, 4).await.expect("no fault")[..], [9; 4 * BLOCK_BYTES]);
        let compared = bed.faulty.compare(0, Buffer::from_heap(BLOCK_BYTES)).await;
        assert_eq!(compared, Err(IoError::CompareFailed));
        let counts = bed.faults.counts();
        assert_eq!((counts.lost, counts.lost_flushes), (3, 1));
    });
}

#[test]
fn torn_writes_bring_a_prefix_to_the_medium() {
    on_reactor(|| async {
        let bed = Bed::new(Some(5)).await;
        for sectors in 0..=24_usize {
            bed.faults.clear();
            bed.write(0, 1, 3).await.expect("no faults");
            bed.rule(Operation::Write, Fault::Tear(Some(sectors as u64)));
            let mut from = Gather::from(Slice::copy_from(&[2; 5000]));
            from.push(Slice::copy_from(&[2; 3 * BLOCK_BYTES - 5000]));
            assert_eq!(bed.faulty.write(0, from, false).await, Ok(()));
            let medium = bed.medium(0, 3).await;
            assert!(medium[..sectors * 512].iter().all(|&byte| byte == 2), "{sectors}");
            assert!(medium[sectors * 512..].iter().all(|&byte| byte == 1), "{sectors}");
        }
        bed.rule(Operation::Write, Fault::Tear(None));
        let mut lengths = std::collections::BTreeSet::new();
        for _ in 0..100 {
            bed.memory
                .write_zeroes(0, 3, ZeroOptions::default())
                .await
                .expect("memory");
            bed.write(0, 1, 3).await.expect("torn, not failed");
            lengths.insert(bits_set(&bed.medium(0, 3).await));
        }
        assert!(lengths.len() > 10, "{lengths:?}");
        assert!(
            lengths.iter().all(|&bits| bits < 3 * 4096),
            "the last sector never arrives"
        );
        assert_eq!(bed.faults.counts().torn, 125);
    });
}

#[test]
fn flipped_bits_are_as_many_as_said() {
    on_reactor(|| async {
        let bed = Bed::new(Some(5)).await;
        bed.rule(Operation::Read, Fault::Flip(1));
        assert_eq!(bits_set(&bed.read(0, 2).await.expect("no error")), 1);
        assert_eq!(bits_set(&bed.medium(0, 2).await), 0);

        bed.rule(Operation::Write, Fault::Flip(1));
        assert_eq!(bed.write(4, 0, 2).await, Ok(()));
        assert_eq!(bits_set(&bed.medium(4, 2).await), 1);
        let counts = bed.faults.counts();
        assert_eq!((counts.flipped_reads, counts.flipped_writes), (1, 1));
    });
}

#[test]
fn faults_combine() {
    on_reactor(|| async {
        let bed = Bed::new(Some(5)).await;
        let when = || When::operation(Operation::Write);
        bed.faults.set([
            Rule {
                when: when(),
                fault: Fault::Tear(Some(1)),
            },
            Rule {
                when: when(),
                fault: Fault::FailAfter(IoError::Gone),
            },
        ]);
        assert_eq!(bed.write(0, 255, 1).await, Err(IoError::Gone));
        assert_eq!(bits_set(&bed.medium(0, 1).await), 512 * 8);
        assert_eq!(bed.faults.rules().len(), 2);
        for _ in 0..100 {
            bed.faults.add(Rule {
                when: when(),
                fault: Fault::Lose,
            });
        }
        assert_eq!(bed.faults.rules().len(), pollux_device::faulty::RULES_MAX);
    });
}

#[test]
fn faults_by_uri() {
    on_reactor(|| async {
        let uri = "faulty:///malloc:///memory?inner.size=1MiB&seed=1&write.error=media-write;nth=2\
            &read.delay=1us..2us&any.error=gone;blocks=7";
        let device = open(uri).await.expect(uri);
        assert_eq!(device.name(), "memory");
        let queue = device.attach().await.expect("memory attaches");
        let write = |block| queue.write(block, Slice::copy_from(&[1; BLOCK_BYTES]), false);
        assert_eq!(write(0).await, Ok(()));
        assert_eq!(write(0).await, Err(IoError::MediaWrite));
        assert_eq!(write(0).await, Ok(()));
        let read = queue.read(7, Buffer::from_heap(BLOCK_BYTES)).await;
        assert_eq!(read.map(drop), Err(IoError::Gone));
        assert!(queue.read(6, Buffer::from_heap(BLOCK_BYTES)).await.is_ok());
    });
}

#[test]
fn every_fault_and_condition_has_a_parameter() {
    on_reactor(|| async {
        for rule in [
            "read.error=checksum",
            "write.error-after=path-down;every=3;times=2",
            "flush.lost=true;skip=1",
            "any.stuck=true;nth=1000",
            "write.torn=true",
            "write.torn=3",
            "read.flip=8;probability=0.25",
            "deallocate.delay=1ms",
            "write-zeroes.delay=1ms..1s;blocks=0-7",
            "compare.error=not-ready;blocks=3",
        ] {
            let uri = format!("faulty:///malloc:///memory?inner.size=1MiB&{rule}");
            assert!(open(&uri).await.is_ok(), "{rule}");
        }
        for (name, _) in ERROR_NAMES {
            let uri = format!("faulty:///null:///nothing?inner.size=1MiB&any.error={name}");
            assert!(open(&uri).await.is_ok(), "{name}");
        }
    });
}

#[test]
fn mistakes_in_faults_are_told() {
    on_reactor(|| async {
        for (rule, told) in [
            ("read.eror=checksum", "OPERATION.FAULT"),
            ("reed.error=checksum", "reed.error"),
            ("error=checksum", "unknown parameter \"error\""),
            ("read.error=check", "media-read"),
            ("read.error=checksum;probability=2", "probability=2"),
            ("read.error=checksum;probability=NaN", "probability=NaN"),
            ("read.error=checksum;often=2", "often=2"),
            ("read.error=checksum;", "conditions such as"),
            ("read.error=checksum;blocks=9-3", "blocks=9-3"),
            ("read.error=checksum;nth=0", "nth=0"),
            ("read.error=checksum;every=0", "every=0"),
            ("read.delay=5ms..1ms", "1ms..5ms"),
            ("read.stuck=yes", "not true"),
            ("write.torn=all", "sectors"),
            ("read.flip=0", "1 at least"),
            ("seed=x", "seed"),
        ] {
            let uri = format!("faulty:///malloc:///memory?inner.size=1MiB&{rule}");
            let error = open(&uri).await.err().expect(rule).to_string();
            assert!(error.contains(told) && !error.contains('\n'), "{rule}: {error}");
        }
        let many: String = (0..=64)
            .map(|number| format!("&read.error=gone;skip={number}"))
            .collect();
        let error = open(&format!("faulty:///null:///n?inner.size=1MiB{many}")).await;
        assert!(error.is_err(), "a parameter given twice");
    });
}
