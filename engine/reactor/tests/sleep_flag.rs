//! Every interleaving, and every reordering that the memory model allows, of threads that leave a reactor
//! work while it falls asleep: it never sleeps over work that was left before.

mod atomics {
    pub(super) use loom::sync::atomic::{AtomicU8, Ordering, fence};
}

#[path = "../src/real/sleep_flag.rs"]
mod sleep_flag;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::mpsc::{Receiver, Sender, channel};
use sleep_flag::SleepFlag;

struct Reactor {
    flag: SleepFlag,
    /// Pieces of work left, as relaxed as can be: the flag alone has to make them visible.
    mailbox: AtomicUsize,
}

/// Leaves one piece of work, as a thread that sends a message does.
fn leave_work(reactor: &Reactor, bell: &Sender<()>) {
    reactor.mailbox.fetch_add(1, Ordering::Relaxed);
    if reactor.flag.notify() {
        bell.send(()).expect("the reactor listens");
    }
}

/// Turns until all work has been found. Loom reports a deadlock when the reactor waits for a bell that never
/// rings.
fn run(reactor: &Reactor, bell: &Receiver<()>, expected: usize) {
    loop {
        // A plain load: a read-modify-write would always see the newest.
        if reactor.mailbox.load(Ordering::Relaxed) == expected {
            return;
        }
        if reactor.flag.prepare() {
            bell.recv().expect("the threads ring or nobody does");
            reactor.flag.finish();
        }
    }
}

fn check(threads: usize, messages: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let reactor = Arc::new(Reactor {
            flag: SleepFlag::new(),
            mailbox: AtomicUsize::new(0),
        });
        let (sender, bell) = channel();
        for _ in 0..threads {
            let (reactor, sender) = (reactor.clone(), sender.clone());
            loom::thread::spawn(move || {
                for _ in 0..messages {
                    leave_work(&reactor, &sender);
                }
            });
        }
        // Kept, so that the reactor waits for ever for a bell that nobody rings.
        let _sender = sender;
        run(&reactor, &bell, threads * messages);
    });
}

#[test]
fn one_thread_that_leaves_work_twice() {
    check(1, 2);
}

#[test]
fn two_threads_that_leave_work_at_once() {
    check(2, 1);
}
