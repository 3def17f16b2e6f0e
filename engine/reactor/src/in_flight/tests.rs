//! Futures that the test finishes by hand, and wake-ups from other threads.

use super::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

/// Ready once its cell is filled; keeps the waker for the test to fire.
#[derive(Clone, Default)]
struct Manual(Rc<RefCell<(Option<u32>, Option<Waker>)>>);

impl Manual {
    fn finish(&self, value: u32) {
        self.0.borrow_mut().0 = Some(value);
        let waker = self.0.borrow_mut().1.take();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Future for Manual {
    type Output = u32;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<u32> {
        let mut inner = self.0.borrow_mut();
        inner.1 = Some(context.waker().clone());
        inner.0.take().map_or(Poll::Pending, Poll::Ready)
    }
}

fn next(set: &mut InFlight<Manual>) -> Poll<(u16, u32)> {
    set.poll_next(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_ready_future_takes_no_slot() {
    let mut set = InFlight::new(1);
    let future = Manual::default();
    future.finish(3);
    assert!(matches!(set.start(future), Ok(Started::Ready(3))));
    assert!(set.is_empty());
}

#[test]
fn refuses_one_too_many_and_has_room_again() {
    let mut set = InFlight::new(2);
    let futures: Vec<_> = (0..3).map(|_| Manual::default()).collect();
    assert!(matches!(set.start(futures[0].clone()), Ok(Started::Pending(0))));
    assert!(matches!(set.start(futures[1].clone()), Ok(Started::Pending(1))));
    assert!(set.start(futures[2].clone()).is_err());
    assert_eq!(next(&mut set), Poll::Pending);
    futures[1].finish(11);
    assert_eq!(next(&mut set), Poll::Ready((1, 11)));
    assert!(matches!(set.start(futures[2].clone()), Ok(Started::Pending(1))));
    assert!(set.cancel(0) && !set.cancel(0));
    assert_eq!(set.len(), 1);
    futures[0].finish(1);
    assert_eq!(next(&mut set), Poll::Pending);
}

#[test]
fn a_future_that_wakes_itself_does_not_hold_the_task() {
    struct Restless;
    impl Future for Restless {
        type Output = ();
        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    }
    struct Count(AtomicU64);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut set = InFlight::new(1);
    assert!(matches!(set.start(Restless), Ok(Started::Pending(0))));
    let count = Arc::new(Count(AtomicU64::new(0)));
    let waker = Waker::from(count.clone());
    assert_eq!(set.poll_next(&mut Context::from_waker(&waker)), Poll::Pending);
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "the task is to come back");
}

#[test]
fn finds_each_of_many_in_any_order() {
    let mut set = InFlight::new(200);
    let futures: Vec<_> = (0..200).map(|_| Manual::default()).collect();
    for future in &futures {
        assert!(matches!(set.start(future.clone()), Ok(Started::Pending(_))));
    }
    let mut seen = Vec::new();
    for (number, future) in futures.iter().enumerate().rev().step_by(3) {
        future.finish(number as u32);
    }
    while let Poll::Ready((slot, number)) = next(&mut set) {
        assert_eq!(u32::from(slot), number);
        seen.push(number);
    }
    assert_eq!(seen.len(), 67);
    assert_eq!(set.len(), 133);
}

/// Completes when another thread says so.
struct Remote(Arc<(AtomicBool, atomic_waker::AtomicWaker)>);

impl Future for Remote {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.1.register(context.waker());
        if self.0.0.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Wakes a thread that is parked.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn no_wake_up_of_another_thread_is_lost() {
    let rounds = if cfg!(miri) { 3 } else { 300 };
    for round in 0..rounds {
        const FUTURES: u16 = 130;
        let states: Vec<_> = (0..FUTURES)
            .map(|_| Arc::new((AtomicBool::new(false), atomic_waker::AtomicWaker::new())))
            .collect();
        let mut set = InFlight::new(FUTURES);
        for state in &states {
            assert!(matches!(
                set.start(Remote(state.clone())),
                Ok(Started::Pending(_))
            ));
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        std::thread::scope(|scope| {
            for part in states.chunks(50) {
                scope.spawn(move || {
                    for (number, state) in part.iter().enumerate() {
                        state.0.store(true, Ordering::Release);
                        state.1.wake();
                        if (number + round) % 7 == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let start = Instant::now();
            while !set.is_empty() {
                if set.poll_next(&mut Context::from_waker(&waker)).is_pending() {
                    // Only a wake-up ends this before the time is over.
                    std::thread::park_timeout(Duration::from_secs(60));
                    assert!(start.elapsed() < Duration::from_secs(60), "a wake-up was lost");
                }
            }
        });
    }
}

#[test]
fn a_waker_that_comes_after_its_set_does_no_harm() {
    let future = Manual::default();
    let mut set = InFlight::new(3);
    assert!(matches!(set.start(future.clone()), Ok(Started::Pending(0))));
    drop(set);
    let mut next_set = InFlight::new(3);
    let next_future = Manual::default();
    assert!(matches!(
        next_set.start(next_future.clone()),
        Ok(Started::Pending(0))
    ));
    future.finish(1);
    assert_eq!(next(&mut next_set), Poll::Pending);
    next_future.finish(2);
    assert_eq!(next(&mut next_set), Poll::Ready((0, 2)));
}

#[test]
fn a_set_without_room_holds_nothing() {
    let mut set = InFlight::new(0);
    assert!(set.start(Manual::default()).is_err());
    assert!(set.is_empty() && set.is_full());
    assert_eq!(next(&mut set), Poll::Pending);
}

#[test]
fn the_largest_set_finds_its_last() {
    let mut set = InFlight::new(u16::MAX);
    let mut last = None;
    for number in 0..u16::MAX {
        let future = Manual::default();
        assert!(matches!(set.start(future.clone()), Ok(Started::Pending(slot)) if slot == number));
        last = Some(future);
    }
    last.expect("there were many").finish(5);
    assert_eq!(next(&mut set), Poll::Ready((u16::MAX - 1, 5)));
}
