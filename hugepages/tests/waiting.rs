//! Waiting for memory: nobody is forgotten, nobody starves, and places are kept.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use pollux_hugepages::{Buffer, BufferPool, BufferWait, Error, PoolOptions};

const BLOCK: usize = 4096;

/// A pool of `blocks` blocks of 4 KiB, in slots of 4, 16 and 64 KiB.
fn pool(blocks: usize) -> BufferPool {
    let options = PoolOptions {
        total_bytes: blocks * BLOCK,
        classes_bytes: vec![BLOCK, 4 * BLOCK, 16 * BLOCK],
        ..PoolOptions::default()
    };
    BufferPool::on_heap(&options).expect("the options are usable")
}

fn all_of(pool: &BufferPool) -> Vec<Buffer> {
    std::iter::from_fn(|| pool.allocate(BLOCK)).collect()
}

/// Numbers of those that were woken, in order.
#[derive(Default)]
struct Log {
    woken: Mutex<VecDeque<usize>>,
    changed: Condvar,
}

struct Numbered {
    number: usize,
    log: Arc<Log>,
}

impl Wake for Numbered {
    fn wake(self: Arc<Self>) {
        self.log
            .woken
            .lock()
            .expect("no test panics here")
            .push_back(self.number);
        self.log.changed.notify_one();
    }
}

impl Log {
    fn waker(self: &Arc<Self>, number: usize) -> Waker {
        Waker::from(Arc::new(Numbered {
            number,
            log: self.clone(),
        }))
    }

    fn take(&self) -> Vec<usize> {
        self.woken
            .lock()
            .expect("no test panics here")
            .drain(..)
            .collect()
    }

    /// Waits for the next wake-up; a long time without one is a lost one.
    fn next(&self) -> usize {
        let woken = self.woken.lock().expect("no test panics here");
        let limit = Duration::from_secs(60);
        let waited = self
            .changed
            .wait_timeout_while(woken, limit, |woken| woken.is_empty());
        let (mut woken, _) = waited.expect("no test panics here");
        let next = woken.pop_front();
        drop(woken);
        next.expect("a wake-up was lost")
    }
}

fn poll(wait: &mut Pin<Box<BufferWait>>, waker: &Waker) -> Poll<Result<Buffer, Error>> {
    wait.as_mut().poll(&mut Context::from_waker(waker))
}

/// Starts to wait, numbered in the log.
fn wait(pool: &BufferPool, log: &Arc<Log>, number: usize, len_bytes: usize) -> Pin<Box<BufferWait>> {
    let mut wait = Box::pin(pool.wait_for(len_bytes));
    assert!(poll(&mut wait, &log.waker(number)).is_pending());
    wait
}

fn is_ready(wait: &mut Pin<Box<BufferWait>>) -> Option<Buffer> {
    match poll(wait, Waker::noop()) {
        Poll::Ready(buffer) => Some(buffer.expect("neither too long nor too many")),
        Poll::Pending => None,
    }
}

#[test]
fn memory_goes_to_those_who_wait_in_their_order() {
    let (pool, log) = (pool(16), Arc::new(Log::default()));
    let mut held = all_of(&pool);
    let mut waits: Vec<_> = (0..3).map(|number| wait(&pool, &log, number, BLOCK)).collect();
    assert_eq!(log.take(), []);
    held.truncate(15);
    assert_eq!(log.take(), [0]);
    assert!(pool.allocate(BLOCK).is_none(), "the memory is the first waiter's");
    held.truncate(13);
    assert_eq!(log.take(), [1, 2]);
    let buffers: Vec<_> = waits
        .iter_mut()
        .map(|wait| is_ready(wait).expect("it was woken"))
        .collect();
    assert!(buffers.iter().all(|buffer| buffer.len() == BLOCK));
    drop((held, buffers));
    assert_eq!(pool.statistics().in_use_bytes(), 0);
}

#[test]
fn enough_memory_is_there_at_once() {
    let pool = pool(16);
    let mut wait = Box::pin(pool.wait_for(100));
    assert_eq!(is_ready(&mut wait).map(|buffer| buffer.len()), Some(100));
}

#[test]
fn a_place_given_up_goes_to_the_next() {
    let (pool, log) = (pool(16), Arc::new(Log::default()));
    let mut held = all_of(&pool);
    let mut waits: VecDeque<_> = (0..4).map(|number| wait(&pool, &log, number, BLOCK)).collect();
    // Before it is served.
    waits.pop_front();
    held.truncate(15);
    assert_eq!(log.take(), [1]);
    // After it was served, and before it took the buffer.
    waits.pop_front();
    assert_eq!(log.take(), [2]);
    assert!(
        waits
            .iter_mut()
            .all(|wait| is_ready(wait).is_some() || log.take() == [3])
    );
    drop((held, waits));
    assert_eq!(pool.statistics().in_use_bytes(), 0);
}

#[test]
fn who_needs_less_passes_who_needs_more() {
    let (pool, log) = (pool(16), Arc::new(Log::default()));
    let mut held = all_of(&pool);
    let mut large = wait(&pool, &log, 0, 4 * BLOCK);
    let mut small = wait(&pool, &log, 1, BLOCK);
    drop(held.pop());
    assert_eq!(log.take(), [1]);
    assert!(is_ready(&mut small).is_some() && is_ready(&mut large).is_none());
    drop(held);
    assert!(is_ready(&mut large).is_some());
}

#[test]
fn who_needs_much_is_served_while_small_buffers_come_and_go() {
    let (pool, log) = (pool(256), Arc::new(Log::default()));
    let mut held: VecDeque<Buffer> = all_of(&pool).into();
    assert_eq!(held.len(), 256);
    let mut large = wait(&pool, &log, 0, 16 * BLOCK);
    let mut random = 12345_u32;
    // Each turn gives one block back and takes it, or another one, again: without setting memory aside, 16
    // blocks side by side would never be free at once.
    let mut turns = 0;
    while log.take().is_empty() {
        turns += 1;
        assert!(turns < 20_000, "the large buffer starves");
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        drop(held.swap_remove_back((random >> 8) as usize % held.len()));
        held.extend(pool.allocate(BLOCK));
    }
    assert_eq!(is_ready(&mut large).map(|buffer| buffer.len()), Some(16 * BLOCK));
    held.extend(std::iter::from_fn(|| pool.allocate(BLOCK)));
    assert_eq!(held.len(), 256, "all memory is there for all again");
}

#[test]
fn a_large_wait_given_up_sets_nothing_aside() {
    let (pool, log) = (pool(256), Arc::new(Log::default()));
    let mut held = all_of(&pool);
    let large = wait(&pool, &log, 0, 16 * BLOCK);
    held.truncate(250);
    assert!(pool.allocate(BLOCK).is_none(), "what came free was set aside");
    drop(large);
    held.extend(std::iter::from_fn(|| pool.allocate(BLOCK)));
    assert_eq!(held.len(), 256);
}

#[test]
fn errors_instead_of_waiting_in_vain() {
    let options = PoolOptions {
        total_bytes: 16 * BLOCK,
        classes_bytes: vec![BLOCK],
        waiters_max: 2,
        ..PoolOptions::default()
    };
    let pool = BufferPool::on_heap(&options).unwrap();
    let log = Arc::new(Log::default());
    let mut too_long = Box::pin(pool.wait_for(BLOCK + 1));
    let refused = poll(&mut too_long, Waker::noop());
    assert!(matches!(
        refused,
        Poll::Ready(Err(Error::BufferSize {
            len_bytes: 4097,
            maximum_bytes: 4096
        }))
    ));
    let held = all_of(&pool);
    let _waits = [wait(&pool, &log, 0, BLOCK), wait(&pool, &log, 1, BLOCK)];
    let mut third = Box::pin(pool.wait_for(BLOCK));
    assert!(matches!(
        poll(&mut third, Waker::noop()),
        Poll::Ready(Err(Error::TooManyWaiters))
    ));
    drop(held);
}

#[test]
fn another_thread_wakes_who_waits() {
    for round in 0..if cfg!(miri) { 5 } else { 500 } {
        let (pool, log) = (pool(16), Arc::new(Log::default()));
        let held = all_of(&pool);
        let other = thread::spawn(move || {
            for buffer in held {
                if round % 3 == 0 {
                    thread::yield_now();
                }
                drop(buffer);
            }
        });
        let mut waits: Vec<_> = (0..3).map(|_| Some(Box::pin(pool.wait_for(4 * BLOCK)))).collect();
        (0..3).for_each(|number| log.waker(number).wake());
        let mut buffers = Vec::new();
        while buffers.len() < 3 {
            let number = log.next();
            let Some(wait) = &mut waits[number] else { continue };
            if let Poll::Ready(buffer) = poll(wait, &log.waker(number)) {
                buffers.push(buffer.unwrap());
                waits[number] = None;
            }
        }
        other.join().expect("the other thread only drops");
        drop((buffers, waits));
        assert_eq!(pool.statistics().in_use_bytes(), 0);
    }
}

/// Allocates, keeps a while, gives back on another thread, all over again.
async fn churn(pool: BufferPool, to_others: Vec<mpsc::Sender<Buffer>>, seed: usize, rounds: usize) {
    for round in 0..rounds {
        let len_bytes = [BLOCK, BLOCK, 3 * BLOCK, 16 * BLOCK][(seed + round) % 4];
        let mut buffer = pool
            .wait_for(len_bytes)
            .await
            .expect("neither too long nor too many");
        buffer.fill(seed as u8);
        match to_others.get((seed * 7 + round) % (to_others.len() + 1)) {
            Some(sender) => sender.send(buffer).expect("the other thread receives"),
            None => drop(buffer),
        }
    }
}

#[test]
fn many_tasks_that_wait_are_all_served() {
    let (tasks, rounds) = if cfg!(miri) { (6, 4) } else { (64, 100) };
    let (pool, log) = (pool(64), Arc::new(Log::default()));
    thread::scope(|scope| {
        let mut senders = Vec::new();
        for _ in 0..2 {
            let (send, receive) = mpsc::channel::<Buffer>();
            scope.spawn(move || {
                for buffer in receive {
                    assert!(
                        buffer.iter().all(|&byte| byte == buffer[0]),
                        "two tasks have the same memory"
                    );
                }
            });
            senders.push(send);
        }
        let mut running: Vec<Option<Pin<Box<dyn Future<Output = ()>>>>> = (0..tasks)
            .map(|seed| Some(Box::pin(churn(pool.clone(), senders.clone(), seed, rounds)) as _))
            .collect();
        drop(senders);
        let wakers: Vec<Waker> = (0..tasks).map(|number| log.waker(number)).collect();
        wakers.iter().for_each(Waker::wake_by_ref);
        let mut left = tasks;
        while left > 0 {
            let number = log.next();
            let Some(task) = &mut running[number] else {
                continue;
            };
            if task
                .as_mut()
                .poll(&mut Context::from_waker(&wakers[number]))
                .is_ready()
            {
                running[number] = None;
                left -= 1;
            }
        }
    });
    assert_eq!(pool.statistics().in_use_bytes(), 0);
}

#[test]
fn registered_wakers_are_woken_when_their_size_may_be_had() {
    let (pool, log) = (pool(16), Arc::new(Log::default()));
    let mut held = all_of(&pool);
    pool.register_waiter(4 * BLOCK, &log.waker(0));
    pool.register_waiter(BLOCK, &log.waker(1));
    pool.register_waiter(BLOCK, &log.waker(2));
    held.sort_by_key(|buffer| pool.offset_of(buffer));
    drop(held.pop());
    assert_eq!(log.take(), [1, 2]);
    held.truncate(12);
    assert_eq!(log.take(), [0]);
    // Each is woken once.
    held.truncate(8);
    assert_eq!(log.take(), []);
    // Memory is there already.
    pool.register_waiter(BLOCK, &log.waker(3));
    assert_eq!(log.take(), [3]);
    // A length that no buffer has.
    pool.register_waiter(17 * BLOCK, &log.waker(4));
    assert_eq!(log.take(), [4]);
}

#[test]
fn registered_wakers_are_woken_by_other_threads() {
    let (pool, log) = (pool(16), Arc::new(Log::default()));
    let mut held = all_of(&pool);
    for number in 0..5 {
        pool.register_waiter(BLOCK, &log.waker(number));
    }
    let buffer = held.pop();
    thread::spawn(move || drop(buffer))
        .join()
        .expect("dropping does not panic");
    assert_eq!(log.take(), [0, 1, 2, 3, 4]);
    assert!(pool.allocate(BLOCK).is_some());
}

#[test]
fn a_waker_is_registered_once_and_a_bounded_number_of_them() {
    let options = PoolOptions {
        total_bytes: 16 * BLOCK,
        classes_bytes: vec![BLOCK],
        waiters_max: 3,
        ..PoolOptions::default()
    };
    let pool = BufferPool::on_heap(&options).unwrap();
    let log = Arc::new(Log::default());
    let mut held = all_of(&pool);
    let wakers: Vec<_> = (0..5).map(|number| log.waker(number)).collect();
    for waker in [&wakers[0], &wakers[1], &wakers[0], &wakers[0], &wakers[2]] {
        pool.register_waiter(BLOCK, waker);
    }
    assert_eq!(log.take(), []);
    pool.register_waiter(BLOCK, &wakers[3]);
    assert_eq!(
        log.take(),
        [3],
        "there is no place to wait, so it has to try again"
    );
    held.pop();
    assert_eq!(log.take(), [0, 1, 2]);
}

/// Drops what it holds when it is woken, as a task that ends may.
struct Holder(Mutex<Option<Buffer>>);

impl Wake for Holder {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().expect("no test panics here").take());
    }
}

#[test]
fn a_waker_may_give_memory_back_itself() {
    let (pool, log) = (pool(16), Arc::new(Log::default()));
    let mut held = all_of(&pool);
    let holder = Waker::from(Arc::new(Holder(Mutex::new(held.pop()))));
    pool.register_waiter(BLOCK, &holder);
    let mut first = pin!(pool.wait_for(BLOCK));
    assert!(
        first
            .as_mut()
            .poll(&mut Context::from_waker(&holder))
            .is_pending()
    );
    let second = wait(&pool, &log, 2, BLOCK);
    drop(holder);
    held.pop();
    assert_eq!(log.take(), [2]);
    drop(second);
}

#[test]
fn a_pool_that_ends_drops_its_wakers() {
    let (pool, log) = (pool(16), Arc::new(Log::default()));
    let held = all_of(&pool);
    let waker = Arc::new(Numbered {
        number: 0,
        log: log.clone(),
    });
    pool.register_waiter(BLOCK, &Waker::from(waker.clone()));
    assert_eq!(Arc::strong_count(&waker), 2);
    drop(pool);
    assert_eq!(Arc::strong_count(&waker), 1);
    drop(held);
}
