//! Replicated volumes whose replicas are short of memory again and again, or answer nonsense, late, or never,
//! beside everything else that goes wrong: nothing is lost, nothing hangs, and the volume gets well.

mod ports;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, Completion, IoError, Reply, Request};
use pollux_hugepages::Buffer;
use pollux_reactor::{sleep, spawn};
use pollux_sim::Run;
use pollux_sim::scenarios::mirror::{Parts, exercise_mirror};
use pollux_volume::replica::ReplicaPort;
use ports::Port;

const SEEDS: u64 = 25;

/// Longer than any target waits for an answer.
const LATE: Duration = Duration::from_secs(5);

/// Which of the requests to replicas are not answered as they should be: every so many of a run, and no more
/// than so many altogether.
#[derive(Clone)]
struct Turns {
    every: u64,
    requests: Rc<Cell<u64>>,
    left: Rc<Cell<u64>>,
}

impl Turns {
    fn new(every: u64, most: u64) -> Self {
        Self {
            every,
            requests: Rc::default(),
            left: Rc::new(Cell::new(most)),
        }
    }

    /// The number of this one among those that are answered badly, if it is one.
    fn take(&self) -> Option<u64> {
        self.requests.set(self.requests.get() + 1);
        let is_due = self.requests.get().is_multiple_of(self.every) && self.left.get() > 0;
        is_due.then(|| {
            self.left.set(self.left.get() - 1);
            self.left.get()
        })
    }
}

/// What becomes of a request whose turn it is, by its number.
type Act = fn(&Rc<dyn BlockDevice>, Request, u64) -> Completion;

/// Runs all seeds; how many requests were answered badly.
fn answered_badly(every: u64, most: u64, act: Act) -> u64 {
    let mut answered = 0;
    for seed in 0..SEEDS {
        let turns = Turns::new(every, most);
        let counted = turns.clone();
        let act = Rc::new(move |device: &Rc<dyn BlockDevice>, request| match turns.take() {
            Some(number) => act(device, request, number),
            None => device.submit(request),
        });
        let wrap = move |port| {
            let act = act.clone();
            Rc::new(Port { port, act }) as Rc<dyn ReplicaPort>
        };
        let parts = Parts {
            port: Rc::new(wrap),
            ..Parts::default()
        };
        if let Err(wrong) = exercise_mirror(&Run::of_seed(seed), parts) {
            panic!("seed {seed}: {wrong}");
        }
        answered += most - counted.left.get();
    }
    answered
}

#[test]
fn replicas_that_are_short_of_memory_again_and_again_lose_nothing() {
    let short: Act = |_, _, _| Completion::from_future(async { Err(IoError::ResourceShortage) });
    let answered = answered_badly(3, u64::MAX, short);
    assert!(answered > 1000 * SEEDS, "{answered}");
}

/// Errors that have nothing to do with the request, whether it was done or not; data where none was asked
/// for, and none where some was.
fn nonsense(device: &Rc<dyn BlockDevice>, request: Request, number: u64) -> Completion {
    const ERRORS: [IoError; 6] = [
        IoError::OutOfRange,
        IoError::ReadOnly,
        IoError::Unsupported,
        IoError::ChecksumMismatch,
        IoError::Internal,
        IoError::Aborted,
    ];
    let error = ERRORS[number as usize % ERRORS.len()];
    let is_read = matches!(request, Request::Read { .. });
    match number % 3 {
        0 => Completion::from_future(async move { Err(error) }),
        1 => {
            let done = device.submit(request);
            Completion::from_future(async move { done.await.and(Err(error)) })
        }
        _ => {
            let done = device.submit(request);
            Completion::from_future(async move {
                done.await?;
                match is_read {
                    true => Ok(Reply::Done),
                    false => Ok(Reply::zeros(Buffer::from_heap(512))),
                }
            })
        }
    }
}

#[test]
fn replicas_that_answer_nonsense_lose_nothing() {
    let answered = answered_badly(20, 25, nonsense);
    assert!(answered > 10 * SEEDS, "{answered}");
}

/// Done and not answered, answered long after, done long after, when nobody waits for it any more, or
/// neither.
fn late_or_never(device: &Rc<dyn BlockDevice>, request: Request, number: u64) -> Completion {
    let (device, number) = (device.clone(), number % 4);
    if number == 3 {
        return Completion::from_future(pending());
    }
    let answer = Rc::new(RefCell::new(None));
    let answered = answer.clone();
    spawn(async move {
        if number == 2 {
            sleep(LATE).await;
        }
        let result = device.submit(request).await;
        *answered.borrow_mut() = Some(result);
    })
    .detach();
    Completion::from_future(async move {
        sleep(LATE).await;
        loop {
            match answer.take() {
                Some(result) if number > 0 => return result,
                _ => sleep(LATE).await,
            }
        }
    })
}

#[test]
fn replicas_that_answer_late_or_never_lose_nothing() {
    let answered = answered_badly(60, 40, late_or_never);
    assert!(answered > 10 * SEEDS, "{answered}");
}
