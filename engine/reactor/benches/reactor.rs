//! What the parts of a reactor cost, in nanoseconds each.
//!
//! ```text
//! cargo bench -p pollux-reactor
//! ```

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollux_hugepages::{Buffer, BufferPool, PoolOptions};
use pollux_reactor::file::{File, OpenOptions, SharedFile};
use pollux_reactor::real::{DriverSettings, IdlePolicy, ReactorThread, RealDriver, Settings};
use pollux_reactor::{
    Core, InFlight, PooledFuture, ReactorId, Started, Wait, current, sleep, timeout, yield_now,
};

/// A reactor without a thread: the benchmark turns it.
fn core() -> Rc<Core> {
    let driver = RealDriver::new(&DriverSettings::default()).expect("io_uring is there");
    let options = PoolOptions {
        total_bytes: 8 << 20,
        ..PoolOptions::default()
    };
    let pool = BufferPool::on_heap(&options).expect("there is memory");
    Core::new(ReactorId(0), Box::new(driver), pool)
}

fn turn(core: &Rc<Core>) {
    black_box(Core::turn(core, Wait::Never).expect("the ring works"));
}

fn executor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("executor");
    let idle = core();
    group.bench_function("turn with nothing to do", |bencher| bencher.iter(|| turn(&idle)));

    let spawning = core();
    group.bench_function("spawn, turn, drop", |bencher| {
        bencher.iter(|| {
            let task = Core::spawn(&spawning, async { black_box(1) });
            turn(&spawning);
            drop(task);
        });
    });

    let spawner = core();
    group.throughput(Throughput::Elements(100));
    group.bench_function("spawn and run 100 tasks from a task", |bencher| {
        bencher.iter(|| {
            Core::spawn(&spawner, async {
                for number in 0..100 {
                    pollux_reactor::spawn(async move { black_box(number) }).detach();
                }
            })
            .detach();
            turn(&spawner);
            turn(&spawner);
        });
    });

    let yielding = core();
    for _ in 0..100 {
        let restless = async {
            loop {
                yield_now().await;
            }
        };
        Core::spawn(&yielding, restless).detach();
    }
    group.bench_function("turn of 100 tasks that yield", |bencher| {
        bencher.iter(|| turn(&yielding))
    });
    group.finish();
    Core::clear(&yielding);
}

/// Ready when told; keeps the waker.
#[derive(Clone, Default)]
struct Manual(Rc<RefCell<(bool, Option<Waker>)>>);

impl Manual {
    fn finish(&self) {
        let mut inner = self.0.borrow_mut();
        inner.0 = true;
        let waker = inner.1.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Manual {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.0.borrow_mut();
        if std::mem::take(&mut inner.0) {
            return Poll::Ready(());
        }
        match &mut inner.1 {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

fn futures(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("futures");
    let mut context = Context::from_waker(Waker::noop());
    group.bench_function("pooled future: make, poll, drop", |bencher| {
        let bytes = [1_u8; 200];
        bencher.iter(|| {
            let mut future = PooledFuture::new(async move { black_box(bytes)[0] });
            black_box(Pin::new(&mut future).poll(&mut context))
        });
    });
    group.bench_function("boxed future: make, poll, drop", |bencher| {
        let bytes = [1_u8; 200];
        bencher.iter(|| {
            let mut future: Pin<Box<dyn Future<Output = u8>>> = Box::pin(async move { black_box(bytes)[0] });
            black_box(future.as_mut().poll(&mut context))
        });
    });
    group.bench_function("in flight: start what is ready", |bencher| {
        let mut set = InFlight::new(128);
        bencher.iter(|| matches!(set.start(std::future::ready(black_box(1))), Ok(Started::Ready(_))));
    });
    for depth in [1_u16, 32, 128] {
        group.throughput(Throughput::Elements(u64::from(depth)));
        group.bench_function(format!("in flight: start, wake and finish {depth}"), |bencher| {
            let mut set = InFlight::new(128);
            let futures: Vec<_> = (0..depth).map(|_| Manual::default()).collect();
            bencher.iter(|| {
                for future in &futures {
                    black_box(set.start(future.clone()).is_ok());
                }
                assert!(set.poll_next(&mut context).is_pending());
                futures.iter().for_each(Manual::finish);
                let mut finished = 0;
                while set.poll_next(&mut context).is_ready() {
                    finished += 1;
                }
                assert_eq!(finished, depth);
            });
        });
    }
    group.finish();
}

/// Times `count` runs of a task on a reactor, inside it.
fn timed_on<F: Future<Output = Duration> + 'static>(
    reactor: &ReactorThread,
    run: impl FnOnce() -> F + Send + 'static,
) -> Duration {
    reactor.handle().call_blocking(run).expect("the reactor runs")
}

fn spawn_reactor(id: u32, core: usize) -> ReactorThread {
    let settings = Settings {
        id: ReactorId(id),
        core: Some(core),
        idle: IdlePolicy::Poll,
        ..Settings::default()
    };
    ReactorThread::spawn(settings).expect("a reactor starts")
}

fn timers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("timers");
    let reactor = spawn_reactor(0, 0);
    for others in [0_u64, 1000] {
        group.bench_function(
            format!("timeout that does not fire, {others} others"),
            |bencher| {
                bencher.iter_custom(|count| {
                    timed_on(&reactor, move || async move {
                        let others: Vec<_> = (0..others)
                            .map(|number| pollux_reactor::spawn(sleep(Duration::from_secs(1000 + number))))
                            .collect();
                        yield_now().await;
                        let start = Instant::now();
                        for _ in 0..count {
                            let mut polled = false;
                            let twice = poll_fn(|_| match std::mem::replace(&mut polled, true) {
                                true => Poll::Ready(()),
                                false => Poll::Pending,
                            });
                            let mut limited = std::pin::pin!(timeout(Duration::from_secs(60), twice));
                            let mut polls = 0;
                            poll_fn(|context| {
                                polls += 1;
                                let poll = limited.as_mut().poll(context);
                                if polls == 1 {
                                    limited.as_mut().poll(context)
                                } else {
                                    poll
                                }
                            })
                            .await
                            .expect("it is quick");
                        }
                        drop(others);
                        start.elapsed()
                    })
                });
            },
        );
    }
    group.finish();
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("messages");
    let (near, far) = (spawn_reactor(0, 0), spawn_reactor(1, 1));
    group.bench_function("call another reactor and back", |bencher| {
        bencher.iter_custom(|count| {
            let far = far.handle();
            timed_on(&near, move || async move {
                let start = Instant::now();
                for number in 0..count {
                    black_box(far.call(move || async move { number }).await.expect("it runs"));
                }
                start.elapsed()
            })
        });
    });
    group.bench_function("call another reactor 64 at a time", |bencher| {
        bencher.iter_custom(|count| {
            let far = far.handle();
            timed_on(&near, move || async move {
                let start = Instant::now();
                let tasks: Vec<_> = (0..64)
                    .map(|_| {
                        let far = far.clone();
                        pollux_reactor::spawn(async move {
                            for number in 0..count.div_ceil(64) {
                                black_box(far.call(move || async move { number }).await.expect("it runs"));
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await;
                }
                start.elapsed()
            })
        });
    });
    group.bench_function("call its own reactor", |bencher| {
        bencher.iter_custom(|count| {
            timed_on(&near, move || async move {
                let own = current().handle();
                let start = Instant::now();
                for number in 0..count {
                    black_box(own.call(move || async move { number }).await.expect("it runs"));
                }
                start.elapsed()
            })
        });
    });
    group.finish();
}

fn files(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("files");
    let reactor = spawn_reactor(0, 0);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![1; 1 << 20]).expect("it is written");
    let shared =
        std::sync::Arc::new(SharedFile::open(file.path(), &OpenOptions::default()).expect("it opens"));
    for depth in [1_u64, 32] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(
            format!("read 4 KiB of the page cache, depth {depth}"),
            |bencher| {
                bencher.iter_custom(|count| {
                    let shared = shared.clone();
                    timed_on(&reactor, move || async move {
                        let start = Instant::now();
                        let tasks: Vec<_> = (0..depth)
                            .map(|_| {
                                let file = File::attach(shared.clone()).expect("a real reactor");
                                pollux_reactor::spawn(async move {
                                    let mut buffer = Buffer::from_heap(4096);
                                    for number in 0..count.div_ceil(depth) {
                                        let (read, back) = file.read_at(number % 256 * 4096, buffer).await;
                                        buffer = back;
                                        assert_eq!(read.expect("it is read"), 4096);
                                    }
                                })
                            })
                            .collect();
                        for task in tasks {
                            task.await;
                        }
                        start.elapsed()
                    })
                });
            },
        );
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = executor, futures, timers, messages, files
}
criterion_main!(benches);
