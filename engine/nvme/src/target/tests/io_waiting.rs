//! I/O commands that have to wait, and what becomes of them when they are in the way of something.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};

use super::io::{block_entry, read, write};
use super::*;
use crate::wire::command::IoOpcode;
use pollux_device::events::Subscription;
use pollux_device::{Attaching, BlockDevice, Completion, IoError, Request};
use pollux_reactor::sleep;
use pollux_sim::{Fault, Operation};

/// A device with small transfers and strict alignment gets its data in pieces, in memory it can take.
#[test]
fn adapts_to_what_the_device_can_take() {
    let fixture = Fixture::new(1);
    let geometry = Geometry {
        transfer_blocks_max: 3,
        memory_align_bytes: 512,
        ..Geometry::new(4 << 20, 4096).unwrap()
    };
    fixture
        .subsystem
        .add_namespace(fixture.drive("disk0", geometry), &NamespaceConfig::default())
        .unwrap();
    let (_admin, io) = fixture.both();
    assert_eq!(
        io.queue.data_align_bytes(&block_entry(IoOpcode::Write, 0, 1)),
        512
    );
    let content: Vec<u8> = (0..8 * BLOCK + 1).map(|at| (at / 7) as u8).collect();
    let mut command = writing(block_entry(IoOpcode::Write, 2, 8), &content[..8 * BLOCK]);
    command.data = Slice::copy_from(&content).slice(1..).into();
    assert_eq!(fixture.status(&io, command), Status::SUCCESS);
    assert_eq!(fixture.run(&io, read(2, 8)).bytes(), content[1..]);
    let compare = block_entry(IoOpcode::Compare, 2, 8);
    assert_eq!(
        fixture.status(&io, writing(compare, &content[1..])),
        Status::SUCCESS
    );
    assert_eq!(
        fixture.status(&io, plain(block_entry(IoOpcode::Verify, 0, 8))),
        Status::SUCCESS
    );
}

#[test]
fn a_shortage_is_waited_out() {
    for operation in [Operation::Read, Operation::Write, Operation::Flush] {
        for options in [Fixture::instant(BLOCK as u32), Fixture::slow(BLOCK as u32)] {
            let fixture = Fixture::new(1);
            let drive = fixture.add_drive("disk0", options);
            let (_admin, io) = fixture.both();
            fixture.run(&io, write(0, 3, 1));
            for nth in 1..=5 {
                drive.fail_nth(operation, nth, Fault::Error(IoError::ResourceShortage));
            }
            let command = match operation {
                Operation::Read => read(0, 1),
                Operation::Write => write(0, 4, 1),
                Operation::Flush => plain(SubmissionEntry::new(0, 1, 1)),
            };
            assert_eq!(fixture.status(&io, command), Status::SUCCESS, "{operation:?}");
        }
    }
}

#[test]
fn a_lasting_shortage_is_told_as_one() {
    let (fixture, drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    drive.change_faults(|faults| faults.shortage_probability = 1.0);
    for command in [read(0, 1), write(0, 1, 1), plain(SubmissionEntry::new(0, 1, 1))] {
        let before = fixture.world.now();
        let outcome = fixture.run(&io, command);
        assert_eq!(outcome.entry.status(), Status::COMMAND_INTERRUPTED);
        let waited = fixture.world.now() - before;
        assert!((4..7).contains(&waited.as_secs()), "{waited:?}");
    }
}

#[test]
fn waits_for_memory() {
    let (fixture, _drive) = Fixture::with_drive();
    let (_admin, io) = fixture.both();
    let hog = fixture.world.block_on(fixture.reactor(), async {
        let pool = pollux_reactor::buffers();
        let mut hog: Vec<_> = std::iter::from_fn(|| pool.allocate(1 << 20)).collect();
        hog.extend(std::iter::from_fn(|| pool.allocate(4096)));
        hog
    });
    let waiting = fixture.start(&io, read(0, 1));
    fixture.run_for(Duration::from_secs(1));
    assert!(!waiting.is_ended());
    drop(hog);
    let outcome = fixture.world.finish(&waiting);
    assert_eq!(outcome.entry.status(), Status::SUCCESS);
}

/// A flush that failed may have lost writes: a second one that succeeds would hide it.
#[test]
fn a_failed_flush_is_not_repeated() {
    for options in [Fixture::instant(BLOCK as u32), Fixture::slow(BLOCK as u32)] {
        let fixture = Fixture::new(1);
        let drive = fixture.add_drive("disk0", options);
        let (_admin, io) = fixture.both();
        drive.fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
        let flush = plain(SubmissionEntry::new(0, 1, 1));
        assert_eq!(fixture.status(&io, flush), Status::WRITE_FAULT);
        assert_eq!(drive.counters().flushes, 1);
    }
}

#[test]
fn a_flush_of_all_flushes_the_rest_when_one_fails() {
    let fixture = Fixture::new(1);
    let drives = ["a", "b", "c"].map(|name| fixture.add_drive(name, Fixture::slow(BLOCK as u32)));
    let (_admin, io) = fixture.both();
    drives[1].fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
    let flush = plain(SubmissionEntry::new(0, 1, u32::MAX));
    assert_eq!(fixture.status(&io, flush), Status::WRITE_FAULT);
    assert_eq!(drives.map(|drive| drive.counters().flushes), [1, 1, 1]);
}

impl Fixture {
    /// Aborts a command of the first I/O queue. Returns 0 if it was aborted, 1 if it goes on.
    fn abort(&self, admin: &TestQueue, command_id: u16) -> u32 {
        let abort = crate::wire::command::Abort {
            queue_id: 1,
            command_id,
        };
        self.run(admin, plain(abort.to_entry(1))).entry.result_low()
    }

    /// Begins with a command, and drops it as a connection does that is lost.
    fn abandon(&self, io: &TestQueue, command: Command) {
        let queue = io.queue.clone();
        self.world.block_on(io.reactor, async move {
            let mut execution = queue.submit(command);
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(std::pin::Pin::new(&mut execution).poll(&mut context).is_pending());
            drop(execution);
        });
    }
}

#[test]
fn a_command_that_waits_can_be_aborted_and_one_at_the_device_cannot() {
    let (fixture, drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    let abort = |command_id| fixture.abort(&admin, command_id);
    drive.change_faults(|faults| faults.shortage_probability = 1.0);
    let waiting = fixture.start(&io, write(0, 1, 1));
    fixture.run_for(Duration::from_millis(500));
    assert_eq!((abort(12), abort(11)), (1, 0));
    let outcome = fixture.world.finish(&waiting);
    assert_eq!(outcome.entry.status(), Status::ABORT_REQUESTED);
    drive.change_faults(|faults| (faults.shortage_probability, faults.stuck) = (0.0, true));
    let stuck = fixture.start(&io, write(0, 1, 1));
    fixture.run_for(Duration::from_millis(1));
    assert_eq!(abort(11), 1);
    drive.change_faults(|faults| faults.stuck = false);
    assert_eq!(fixture.world.finish(&stuck).entry.status(), Status::SUCCESS);
}

/// A connection that is lost does not take back what is at the device: a reset is done only when it has
/// landed.
#[test]
fn a_reset_waits_for_abandoned_writes() {
    let fixture = Fixture::new(1);
    let drive = fixture.add_drive("disk0", Fixture::slow(BLOCK as u32));
    let (admin, io) = fixture.both();
    drive.change_faults(|faults| faults.stuck = true);
    fixture.abandon(&io, write(0, 8, 1));
    io.close(&fixture);
    fixture.set_cc(&admin, 0);
    fixture.run_for(Duration::from_secs(1));
    assert_eq!(fixture.csts(&admin), 1);
    drive.change_faults(|faults| faults.stuck = false);
    fixture.run_for(Duration::from_millis(100));
    assert_eq!(fixture.csts(&admin), 0);
    let mut content = vec![0; BLOCK];
    drive.peek(0, &mut content);
    assert_eq!(content, vec![8; BLOCK]);
}

/// A device that begins with requests when it is open, but for flushes.
struct Gatekeeper {
    inner: Arc<dyn Device>,
    is_open: Arc<AtomicBool>,
}

struct GatekeeperQueue {
    inner: Rc<dyn BlockDevice>,
    is_open: Arc<AtomicBool>,
}

impl Device for Gatekeeper {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let inner = self.inner.clone().attach().await?;
            let is_open = self.is_open.clone();
            Ok(Rc::new(GatekeeperQueue { inner, is_open }) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.inner.subscribe()
    }
}

impl BlockDevice for GatekeeperQueue {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        if matches!(request, Request::Flush) {
            return self.inner.submit(request);
        }
        let (inner, is_open) = (self.inner.clone(), self.is_open.clone());
        let mut opened = Box::pin(async move {
            while !is_open.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(1)).await;
            }
        });
        let mut request = Some(request);
        Completion::held(std::future::poll_fn(move |context| {
            opened.as_mut().poll(context).map(|()| match request.take() {
                Some(request) => inner.submit(request),
                None => Completion::failed(IoError::Internal),
            })
        }))
    }
}

impl Fixture {
    fn with_gatekeeper() -> (Self, Arc<SimDrive>, Arc<AtomicBool>) {
        let fixture = Fixture::new(1);
        let (drive, is_open) = (fixture.make_drive("disk0"), Arc::new(AtomicBool::new(false)));
        let device = Arc::new(Gatekeeper {
            inner: drive.clone(),
            is_open: is_open.clone(),
        });
        let added = fixture
            .subsystem
            .add_namespace(device, &NamespaceConfig::default());
        added.unwrap();
        (fixture, drive, is_open)
    }

    fn make_drive(&self, name: &str) -> Arc<SimDrive> {
        self.world.add_drive(self.machine, name, Self::slow(BLOCK as u32))
    }
}

#[test]
fn what_the_device_holds_can_be_aborted_until_it_begins() {
    let (fixture, drive, is_open) = Fixture::with_gatekeeper();
    let (admin, io) = fixture.both();
    let abort = |command_id| fixture.abort(&admin, command_id);
    let zeroes = || plain(block_entry(IoOpcode::WriteZeroes, 0, 1));
    for make in [|| write(0, 1, 1), || read(0, 1), zeroes] {
        is_open.store(false, Ordering::Relaxed);
        let id = make().entry.command_id.get();
        let waiting = fixture.start(&io, make());
        // Longer than what is short is waited for.
        fixture.run_for(Duration::from_secs(20));
        assert!(!waiting.is_ended());
        assert_eq!(
            fixture.status(&io, plain(SubmissionEntry::new(0, 99, 1))),
            Status::SUCCESS
        );
        assert_eq!(abort(id), 0);
        let outcome = fixture.world.finish(&waiting);
        assert_eq!(outcome.entry.status(), Status::ABORT_REQUESTED);
        // Another one waits for the device, and has begun when it is to be aborted.
        let stuck = fixture.start(&io, make());
        is_open.store(true, Ordering::Relaxed);
        drive.change_faults(|faults| faults.stuck = true);
        fixture.run_for(Duration::from_millis(5));
        assert_eq!(abort(id), 1);
        drive.change_faults(|faults| faults.stuck = false);
        assert_eq!(fixture.world.finish(&stuck).entry.status(), Status::SUCCESS);
    }
}

/// What the device holds goes with its connection: nothing of it lands later, and nobody waits for it.
#[test]
fn what_the_device_holds_is_taken_back_with_its_connection() {
    let (fixture, drive, is_open) = Fixture::with_gatekeeper();
    let (admin, io) = fixture.both();
    fixture.abandon(&io, write(0, 8, 1));
    io.close(&fixture);
    fixture.set_cc(&admin, 0);
    fixture.run_for(Duration::from_millis(100));
    assert_eq!(fixture.csts(&admin), 0);
    is_open.store(true, Ordering::Relaxed);
    fixture.run_for(Duration::from_secs(1));
    assert_eq!(drive.counters().writes, 0);
}

#[test]
fn an_ended_queue_takes_no_more() {
    let (fixture, drive) = Fixture::with_drive();
    let (admin, io) = fixture.both();
    fixture.set_cc(&admin, 0);
    assert_eq!(fixture.status(&io, write(0, 1, 1)), Status::ABORTED_QUEUE_DELETED);
    assert_eq!(drive.counters(), Default::default());
}
