//! Operations that never end by themselves: reads of a pipe in which nothing is.

use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use pollux_hugepages::{BufferPool, PoolOptions};

use super::*;
use crate::driver::{Driver, Wait};
use crate::executor::Core;
use crate::handle::ReactorId;
use crate::real::{DriverSettings, RealDriver};

struct Fixture {
    core: Rc<Core>,
    ring: Ring,
    file: Arc<SharedFile>,
    writer: std::io::PipeWriter,
}

fn fixture(file_operations: u16) -> Fixture {
    let driver = RealDriver::new(&DriverSettings {
        file_operations,
        ..DriverSettings::default()
    });
    let driver = driver.expect("io_uring is there");
    let ring = driver.ring().expect("it has one").clone();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let options = PoolOptions {
        total_bytes: 4 << 20,
        ..PoolOptions::default()
    };
    let pool = BufferPool::on_heap(&options).expect("memory");
    Fixture {
        core: Core::new(ReactorId(0), Box::new(driver), pool),
        ring,
        file: Arc::new(SharedFile::of_pipe(reader)),
        writer,
    }
}

impl Fixture {
    /// A task that reads one buffer of the pipe.
    fn read(&self) -> async_task::Task<(io::Result<usize>, Option<Buffer>)> {
        let (ring, file) = (self.ring.clone(), self.file.clone());
        let buffer = self.core.buffers().allocate(4096);
        Core::spawn(&self.core, async move {
            let mut operation = ring.operation().await.expect("there are slots");
            // A pipe has no offsets: this one stands for where it is.
            let action = Action::Read {
                offset_bytes: u64::MAX,
            };
            let result = operation.run(&file, action, |cargo| cargo.buffer = buffer).await;
            (result, operation.take_buffer())
        })
    }

    fn turns(&self, count: usize) {
        for _ in 0..count {
            Core::turn(&self.core, Wait::Never).expect("the ring works");
        }
    }

    fn in_use_bytes(&self) -> usize {
        self.core.buffers().statistics().in_use_bytes()
    }
}

fn is_finished<T>(task: &async_task::Task<T>) -> bool {
    task.is_finished()
}

#[test]
fn an_operation_that_is_dropped_keeps_its_buffer_until_the_kernel_is_done() {
    let mut fixture = fixture(4);
    let task = fixture.read();
    fixture.turns(3);
    assert_eq!(fixture.ring.file_operations(), 1);
    drop(task);
    fixture.turns(3);
    assert_eq!(fixture.ring.file_operations(), 1, "the kernel still has it");
    assert_eq!(fixture.in_use_bytes(), 4096, "nobody else gets the buffer");
    fixture.writer.write_all(&[1; 100]).expect("the pipe takes it");
    fixture.turns(3);
    assert_eq!(fixture.ring.file_operations(), 0);
    assert_eq!(fixture.in_use_bytes(), 0);
    // The slot is good for the next.
    let task = fixture.read();
    fixture.turns(2);
    fixture.writer.write_all(&[2; 50]).expect("the pipe takes it");
    fixture.turns(3);
    assert!(is_finished(&task));
    assert_eq!(fixture.in_use_bytes(), 4096);
    drop(task);
    assert_eq!(fixture.in_use_bytes(), 0);
}

#[test]
fn a_reactor_that_is_dropped_waits_for_the_kernel() {
    let fixture = fixture(4);
    let tasks: Vec<_> = (0..4).map(|_| fixture.read()).collect();
    fixture.turns(3);
    assert_eq!(fixture.ring.file_operations(), 4);
    let Fixture {
        core,
        ring,
        file,
        writer,
    } = fixture;
    let pool = core.buffers().clone();
    Core::clear(&core);
    drop(tasks);
    drop(core);
    assert_eq!(pool.statistics().in_use_bytes(), 4 * 4096);
    // The reads would never end, as the pipe stays open: they are cancelled.
    drop(ring);
    assert_eq!(pool.statistics().in_use_bytes(), 0);
    drop((file, writer));
}

#[test]
fn slots_go_to_those_who_wait_in_their_order_and_past_those_who_left() {
    let mut fixture = fixture(1);
    let first = fixture.read();
    fixture.turns(2);
    let (second, third, fourth) = (fixture.read(), fixture.read(), fixture.read());
    fixture.turns(2);
    assert_eq!(fixture.ring.file_operations(), 1);
    drop(second);
    fixture.writer.write_all(&[1]).expect("the pipe takes it");
    fixture.turns(4);
    assert!(is_finished(&first));
    assert_eq!(fixture.ring.file_operations(), 1, "the third has it");
    assert!(!is_finished(&third) && !is_finished(&fourth));
    fixture.writer.write_all(&[1]).expect("the pipe takes it");
    fixture.turns(4);
    assert!(is_finished(&third) && !is_finished(&fourth));
    fixture.writer.write_all(&[1]).expect("the pipe takes it");
    fixture.turns(4);
    assert!(is_finished(&fourth));
}

#[test]
fn a_slot_that_was_granted_to_one_who_left_goes_to_the_next() {
    let fixture = fixture(1);
    let mut context = Context::from_waker(Waker::noop());
    let mut acquire = |acquire: &mut Acquire| Pin::new(acquire).poll(&mut context);
    let mut first = Acquire::new(fixture.ring.clone());
    let Poll::Ready(Ok(operation)) = acquire(&mut first) else {
        panic!("there is one slot");
    };
    let mut second = Acquire::new(fixture.ring.clone());
    let mut third = Acquire::new(fixture.ring.clone());
    assert!(acquire(&mut second).is_pending() && acquire(&mut third).is_pending());
    drop(operation);
    // Whoever comes now does not overtake.
    let mut fourth = Acquire::new(fixture.ring.clone());
    assert!(acquire(&mut fourth).is_pending());
    drop(second);
    let third = acquire(&mut third);
    assert!(matches!(third, Poll::Ready(Ok(_))));
    assert!(acquire(&mut fourth).is_pending());
    drop(third);
    assert!(matches!(acquire(&mut fourth), Poll::Ready(Ok(_))));
}

#[test]
fn more_entries_than_the_ring_holds_are_submitted_all_the_same() {
    let driver = RealDriver::new(&DriverSettings {
        ring_entries: 2,
        file_operations: 300,
        ..DriverSettings::default()
    });
    let driver = driver.expect("io_uring is there");
    let ring = driver.ring().expect("it has one").clone();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), [7; 300]).expect("it is written");
    let shared = SharedFile::open(file.path(), &crate::file::OpenOptions::default()).expect("it opens");
    let shared = Arc::new(shared);
    let mut context = Context::from_waker(Waker::noop());
    let mut reads: Vec<_> = (0..300_u64)
        .map(|offset_bytes| {
            let (ring, shared) = (ring.clone(), shared.clone());
            Box::pin(async move {
                let mut operation = ring.operation().await.expect("there are slots");
                let load = |cargo: &mut Cargo| cargo.buffer = Some(Buffer::from_heap(1));
                let read = operation.run(&shared, Action::Read { offset_bytes }, load).await;
                assert_eq!(read.expect("it is read"), 1);
                assert_eq!(operation.take_buffer().as_deref(), Some(&[7_u8][..]));
            })
        })
        .collect();
    let start = std::time::Instant::now();
    while !reads.is_empty() {
        reads.retain_mut(|read| read.as_mut().poll(&mut context).is_pending());
        driver.turn(Wait::Never).expect("the ring works");
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
