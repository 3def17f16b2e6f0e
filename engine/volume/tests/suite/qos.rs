//! Limits of a volume, kept by all its connections on all reactors together, in virtual time.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDeviceExt, Completion, Device, IoError, Request};
use pollux_hugepages::Buffer;
use pollux_reactor::{now, sleep, timeout};
use pollux_sim::{SimDrive, SimDriveOptions, SimReactor, World};
use pollux_volume::qos::{Burst, Limits, Qos, Rate, Throttle, ThrottledDevice};

use crate::load::{BLOCK, Done, Load, READS, connection, request};

struct Bench {
    world: World,
    reactors: Vec<SimReactor>,
    drive: Arc<SimDrive>,
    device: Arc<ThrottledDevice>,
    connections: Vec<Rc<Done>>,
}

impl Bench {
    fn new(reactors: usize, qos: Qos) -> Self {
        let world = World::new(7);
        let machine = world.add_machine("one");
        let reactors = (0..reactors).map(|_| world.add_reactor(machine)).collect();
        let options = SimDriveOptions::new(8 << 20, BLOCK as u32).unwrap();
        let drive = world.add_drive(machine, "drive", options);
        let device = ThrottledDevice::new(drive.clone());
        device.throttle().set(&qos).unwrap();
        Self {
            world,
            reactors,
            drive,
            device,
            connections: Vec::new(),
        }
    }

    fn connect(&mut self, reactor: usize, load: Load) -> Rc<Done> {
        let done = Rc::new(Done::default());
        let task = connection(self.device.clone(), load, done.clone());
        drop(self.world.spawn(self.reactors[reactor], task));
        self.connections.push(done.clone());
        done
    }

    /// Operations and bytes of all connections in a span.
    fn measure(&self, span: Duration) -> (f64, f64) {
        let count = || {
            self.connections.iter().fold((0, 0), |sum, done| {
                (sum.0 + done.operations.get(), sum.1 + done.bytes.get())
            })
        };
        let before = count();
        self.world.run_for(span);
        let after = count();
        let seconds = span.as_secs_f64();
        (
            (after.0 - before.0) as f64 / seconds,
            (after.1 - before.1) as f64 / seconds,
        )
    }

    fn throttle(&self) -> &Arc<Throttle> {
        self.device.throttle()
    }
}

const WINDOW: Duration = Duration::from_secs(5);

fn operations(per_second: u64) -> Limits {
    Limits {
        operations: Some(Rate::new(per_second)),
        bytes: None,
    }
}

fn bytes(per_second: u64) -> Limits {
    Limits {
        operations: None,
        bytes: Some(Rate::new(per_second)),
    }
}

fn total(limits: Limits) -> Qos {
    Qos {
        total: limits,
        ..Qos::default()
    }
}

#[track_caller]
fn assert_within(found: f64, wanted: f64, part: f64) {
    assert!(
        (found - wanted).abs() <= wanted * part,
        "{found} is not within {} % of {wanted}",
        part * 100.0
    );
}

#[test]
fn operations_are_what_is_allowed_whoever_asks() {
    for limit in [50, 3000] {
        let mut bench = Bench::new(3, total(operations(limit)));
        for (reactor, depth) in [(0, 1), (0, 8), (1, 32), (2, 128), (2, 3)] {
            bench.connect(
                reactor,
                Load {
                    depth,
                    writes: reactor == 1,
                    ..READS
                },
            );
        }
        // From the first moment, and then again.
        for _ in 0..2 {
            let (found, _) = bench.measure(WINDOW);
            assert_within(found, limit as f64, 0.02);
        }
        let throttled = bench.throttle().read();
        assert!(throttled.requests >= limit * 9, "{throttled:?}");
        assert!(
            throttled.held > WINDOW && throttled.waiting > 100,
            "{throttled:?}"
        );
    }
}

#[test]
fn bytes_are_what_is_allowed_whatever_the_sizes() {
    let limit = 100 << 20;
    let mut bench = Bench::new(2, total(bytes(limit)));
    let mut done = Vec::new();
    for (reactor, blocks) in [(0, 16), (0, 64), (1, 256), (1, 32)] {
        let load = Load { blocks, ..READS };
        done.push(bench.connect(reactor, load));
    }
    let (_, found) = bench.measure(WINDOW);
    assert_within(found, limit as f64, 0.02);
    // Each gets as many bytes, large requests or small.
    for done in done {
        assert_within(done.bytes.get() as f64 / 5.0, limit as f64 / 4.0, 0.05);
    }
}

#[test]
fn reads_and_writes_are_limited_apart_and_do_not_wait_for_each_other() {
    let qos = Qos {
        total: operations(3000),
        read: operations(100),
        write: bytes(8 << 20),
        weight: None,
    };
    let mut bench = Bench::new(2, qos);
    let reads = bench.connect(0, READS);
    let writes = bench.connect(
        1,
        Load {
            writes: true,
            ..READS
        },
    );
    bench.measure(WINDOW);
    assert_within(reads.operations.get() as f64 / 5.0, 100.0, 0.02);
    assert_within(writes.operations.get() as f64 / 5.0, 2048.0, 0.02);
}

#[test]
fn one_connection_may_write_while_its_reads_wait() {
    let qos = Qos {
        read: operations(1),
        ..Qos::default()
    };
    let bench = Bench::new(1, qos);
    let device: Arc<dyn Device> = bench.device.clone();
    bench.world.block_on(bench.reactors[0], async move {
        let queue = device.attach().await.unwrap();
        let reads: Vec<_> = (0..10).map(|_| queue.submit(request(READS))).collect();
        assert!(reads.iter().skip(1).all(Completion::is_held));
        let began = now();
        queue.write(0, Buffer::from_heap(BLOCK), false).await.unwrap();
        queue.flush().await.unwrap();
        assert!(now().saturating_since(began) < Duration::from_millis(100));
    });
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::new(3, total(operations(1000)));
    // Of reactors with one connection and with many, with few requests and with many.
    let loads = [(0, 4), (0, 128), (0, 16), (1, 4), (2, 64), (2, 2)];
    let all: Vec<_> = loads
        .iter()
        .map(|&(reactor, depth)| bench.connect(reactor, Load { depth, ..READS }))
        .collect();
    bench.measure(WINDOW);
    for done in all {
        assert_within(done.operations.get() as f64, 5000.0 / 6.0, 0.05);
    }
}

#[test]
fn a_burst_lasts_as_long_as_its_credit_and_comes_back() {
    let burst = Burst {
        per_second: 3000,
        seconds: 2,
    };
    let rate = Rate {
        burst: Some(burst),
        ..Rate::new(1000)
    };
    let limits = Limits {
        operations: Some(rate),
        bytes: None,
    };
    let mut bench = Bench::new(2, total(limits));
    bench.connect(0, READS);
    bench.connect(1, READS);
    let second = Duration::from_secs(1);
    assert_within(bench.measure(2 * second).0, 3000.0, 0.05);
    assert_within(bench.measure(WINDOW).0, 1000.0, 0.02);
    // Two idle seconds give back half of the credit, and that lasts for half of the time.
    bench
        .connections
        .drain(..)
        .for_each(|done| done.is_stopped.set(true));
    bench.world.run_for(2 * second);
    bench.connect(1, READS);
    assert_within(bench.measure(second).0, 3000.0, 0.05);
    assert_within(bench.measure(WINDOW).0, 1000.0, 0.02);
}

#[test]
fn limits_grow_with_the_volume() {
    let rate = Rate {
        per_second_per_gib: 1 << 17,
        ..Rate::default()
    };
    let limits = Limits {
        operations: Some(rate),
        bytes: None,
    };
    let mut bench = Bench::new(1, total(limits));
    bench.connect(0, READS);
    assert_within(bench.measure(WINDOW).0, 1024.0, 0.02);
    bench.drive.grow((16 << 20) / BLOCK as u64);
    bench.measure(Duration::from_millis(100));
    assert_within(bench.measure(WINDOW).0, 2048.0, 0.02);
}

#[test]
fn limits_change_while_requests_wait() {
    let mut bench = Bench::new(2, total(operations(1)));
    bench.connect(0, READS);
    bench.connect(1, READS);
    bench.measure(Duration::from_secs(3));
    for limit in [2000, 200, 700] {
        bench.throttle().set(&total(operations(limit))).unwrap();
        bench.measure(Duration::from_millis(100));
        assert_within(bench.measure(WINDOW).0, limit as f64, 0.02);
    }
    assert_eq!(bench.throttle().qos(), total(operations(700)));
    // The same again is no change, and gives no credit.
    let before = bench.throttle().read().requests;
    for _ in 0..100 {
        bench.throttle().set(&total(operations(700))).unwrap();
        bench.measure(Duration::from_millis(10));
    }
    assert_within((bench.throttle().read().requests - before) as f64, 700.0, 0.1);
    bench.throttle().set(&Qos::default()).unwrap();
    bench.measure(Duration::from_millis(100));
    assert!(bench.measure(Duration::from_millis(100)).0 > 10_000.0);
    assert_eq!(bench.throttle().read().waiting, 0);
}

#[test]
fn what_is_held_passes_when_limits_are_lifted() {
    let mut bench = Bench::new(1, total(operations(1)));
    let done = bench.connect(0, READS);
    bench.measure(Duration::from_secs(1));
    assert!(done.operations.get() < 5);
    bench.throttle().lift();
    bench.measure(Duration::from_millis(51));
    assert!(done.operations.get() > 32 && bench.throttle().read().waiting == 0);
    // As they were, and set again: they count again.
    bench.throttle().set(&total(operations(1))).unwrap();
    bench.measure(Duration::from_secs(1));
    let before = done.operations.get();
    bench.measure(Duration::from_secs(2));
    assert!(done.operations.get() - before <= 2);
}

#[test]
fn flushes_pass_and_so_does_a_request_of_any_size() {
    let bench = Bench::new(1, total(bytes(1 << 20)));
    let device: Arc<dyn Device> = bench.device.clone();
    bench.world.block_on(bench.reactors[0], async move {
        let queue = device.attach().await.unwrap();
        let began = now();
        for _ in 0..3 {
            let buffer = Buffer::from_heap(1 << 20);
            queue.write(0, buffer, false).await.unwrap();
        }
        // As the rate says, but for the 40 ms and the part that nobody has paid for yet.
        let took = now().saturating_since(began).as_secs_f64();
        assert!((2.85..3.0).contains(&took), "{took}");
        let waiting: Vec<_> = (0..50).map(|_| queue.submit(request(READS))).collect();
        let began = now();
        queue.flush().await.unwrap();
        queue.deallocate(0, 256).await.unwrap();
        assert!(now().saturating_since(began) < Duration::from_millis(10));
        drop(waiting);
    });
}

#[test]
fn what_is_dropped_is_taken_back_and_costs_nothing() {
    let bench = Bench::new(1, total(operations(100)));
    let device: Arc<dyn Device> = bench.device.clone();
    let throttle = bench.throttle().clone();
    bench.world.block_on(bench.reactors[0], async move {
        let queue = device.attach().await.unwrap();
        let write = |byte: u8| {
            let mut buffer = Buffer::from_heap(BLOCK);
            buffer.fill(byte);
            queue.submit(Request::Write {
                block: 1,
                from: buffer.into(),
                force_unit_access: false,
            })
        };
        for round in 0..200 {
            // One that is first, one in the middle, and one that begins.
            let mut held: Vec<_> = (0..20).map(|_| write(7)).collect();
            let last = write(9);
            drop(held.remove(round % held.len()));
            drop(held);
            last.await.unwrap();
        }
        // What began was at most what is allowed, and a little less was lost on the way.
        let seconds = now().as_nanos() as f64 / 1e9;
        assert!((1.5..4.0).contains(&seconds), "{seconds}");
        let data = queue.read(1, Buffer::from_heap(BLOCK)).await.unwrap();
        assert!(data.iter().all(|&byte| byte == 9));
        assert_eq!(throttle.read().waiting, 0);
    });
}

#[test]
fn no_more_is_held_than_there_is_room_for() {
    let bench = Bench::new(1, total(operations(1)));
    let device: Arc<dyn Device> = bench.device.clone();
    bench.world.block_on(bench.reactors[0], async move {
        let queue = device.attach().await.unwrap();
        let mut held = Vec::new();
        let refused = loop {
            let completion = queue.submit(Request::Deallocate { block: 0, blocks: 1 });
            match completion.try_take() {
                Err(waiting) => held.push(waiting),
                Ok(result) => break result,
            }
            assert!(held.len() < 100_000);
        };
        assert_eq!(refused.err(), Some(IoError::ResourceShortage));
        queue.flush().await.unwrap();
    });
}

#[test]
fn a_queue_may_be_dropped_before_what_it_holds() {
    let bench = Bench::new(1, total(operations(10)));
    let device: Arc<dyn Device> = bench.device.clone();
    bench.world.block_on(bench.reactors[0], async move {
        let queue = device.attach().await.unwrap();
        let held: Vec<_> = (0..5).map(|_| queue.submit(request(READS))).collect();
        drop(queue);
        for completion in held {
            completion.await.unwrap();
        }
    });
}

#[test]
fn tasks_come_and_go_and_nothing_is_left_behind() {
    let bench = Bench::new(2, total(operations(2000)));
    let finished = Rc::new(RefCell::new(0_u32));
    for round in 0..60_u64 {
        for reactor in 0..2 {
            let (device, finished): (Arc<dyn Device>, _) = (bench.device.clone(), finished.clone());
            let work = async move {
                let queue = device.attach().await.unwrap();
                let mut all: Vec<_> = (0..20).map(|_| queue.submit(request(READS))).collect();
                sleep(Duration::from_millis(round % 7)).await;
                // Some of it is not wanted any more.
                let keep = all.split_off(usize::try_from(round % 20).unwrap());
                drop(all);
                for completion in keep {
                    completion.await.unwrap();
                    *finished.borrow_mut() += 1;
                }
            };
            // The connection may be lost meanwhile.
            let span = Duration::from_millis(if round % 5 == 0 { 3 } else { 10_000 });
            drop(bench.world.spawn(bench.reactors[reactor], timeout(span, work)));
        }
        bench.world.run_for(Duration::from_millis(1));
    }
    bench.world.run_for(Duration::from_secs(5));
    assert!(*finished.borrow() > 800);
    assert_eq!(bench.throttle().read().waiting, 0);
}

/// [`Completion::held`] and what it is made of, without limits.
#[test]
fn a_held_request_is_what_it_becomes() {
    let world = World::new(1);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    world.block_on(reactor, async {
        let mut timer = Box::pin(sleep(Duration::from_millis(5)));
        let mut held = Completion::held(poll_fn(move |context| {
            let over = timer.as_mut().poll(context);
            over.map(|()| Completion::failed(IoError::MediaRead))
        }));
        assert!(held.is_held());
        poll_fn(|context| held.poll_begun(context)).await;
        assert!(!held.is_held());
        assert_eq!(Pin::new(&mut held).await.err(), Some(IoError::MediaRead));
    });
}
