//! Sockets turn by turn, on a clock that the test sets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

use super::*;

const HOT: Duration = Duration::from_micros(100);

#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Fixture {
    uring: Uring,
    readiness: Readiness,
    source: Rc<Source>,
    peer: UnixStream,
    tries: u32,
    wakes: Arc<Wakes>,
}

fn fixture(hot: Duration) -> Fixture {
    let (near, peer) = UnixStream::pair().expect("two sockets");
    near.set_nonblocking(true).expect("it is a socket");
    let start = Instant::from_nanos(1_000_000);
    Fixture {
        uring: Uring::new(8).expect("io_uring is there"),
        readiness: Readiness::new(start),
        source: Source::new(near.into(), hot, start),
        peer,
        tries: 0,
        wakes: Arc::default(),
    }
}

impl Fixture {
    /// Receives one byte, if there is one.
    fn receive(&mut self) -> Poll<u8> {
        let waker = Waker::from(self.wakes.clone());
        let context = Context::from_waker(&waker);
        let tries = &mut self.tries;
        let received = self.readiness.attempt(
            &self.uring,
            (&self.source, Direction::Readable),
            &context,
            |descriptor| {
                *tries += 1;
                let mut socket = UnixStream::from(descriptor.try_clone()?);
                let mut byte = [0];
                socket.read_exact(&mut byte)?;
                let [value] = byte;
                Ok(Tried {
                    value,
                    exhausted: false,
                })
            },
        );
        received.map(|received| received.expect("the socket is whole"))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.peer.write_all(bytes).expect("there is room");
    }

    fn tries(&mut self) -> u32 {
        std::mem::take(&mut self.tries)
    }

    /// Ends the turn; the next one begins `later`. Whether a task was woken to try again.
    fn next_turn(&self, later: Duration) -> bool {
        let is_woken = self.readiness.wake_hot() > 0;
        self.readiness.set_now(self.readiness.now() + later);
        is_woken
    }

    /// Waits for the armed poll, and delivers it.
    fn wait(&self) {
        self.uring
            .submit_and_wait(Some(Duration::from_secs(60)))
            .expect("the ring works");
        for completed in self.uring.reap() {
            if let Some(Token::Readiness(key)) = Token::decode(completed.user_data) {
                self.readiness.complete(key);
            }
        }
    }

    fn wakes(&self) -> u32 {
        self.wakes.0.swap(0, Ordering::Relaxed)
    }
}

#[test]
fn progress_in_one_turn_is_bounded_and_goes_on_in_the_next() {
    let mut fixture = fixture(HOT);
    fixture.send(&[1; 100]);
    let mut left = 100;
    while left > 0 {
        let mut received = 0;
        while fixture.receive().is_ready() {
            received += 1;
        }
        assert_eq!(received, left.min(TRIES_PER_TURN));
        left -= received;
        assert!(
            fixture.next_turn(Duration::ZERO),
            "it is to come again, without a poll"
        );
        assert_eq!(fixture.readiness.armed(), 0);
    }
    assert_eq!(fixture.readiness.take_progress(), 100);
}

#[test]
fn an_empty_socket_is_tried_once_a_turn_while_it_is_hot_and_not_at_all_when_it_is_cold() {
    let mut fixture = fixture(HOT);
    let mut turns = 0;
    loop {
        assert!(fixture.receive().is_pending() && fixture.receive().is_pending());
        assert_eq!(fixture.tries(), 1, "the second time it is known to be empty");
        turns += 1;
        if fixture.readiness.armed() > 0 {
            break;
        }
        assert!(fixture.next_turn(Duration::from_micros(10)));
        assert_eq!(fixture.wakes(), 1);
    }
    // It tried at 0, 10, 20 ... 100 microseconds, and then let a poll be armed.
    assert_eq!(turns, 11);
    for _ in 0..5 {
        assert!(!fixture.next_turn(Duration::from_micros(10)));
        assert!(fixture.receive().is_pending());
    }
    assert_eq!((fixture.tries(), fixture.wakes()), (0, 0));

    fixture.send(&[7]);
    fixture.wait();
    assert_eq!((fixture.wakes(), fixture.readiness.armed()), (1, 0));
    assert_eq!(fixture.receive(), Poll::Ready(7));
    assert!(fixture.receive().is_pending());
    assert!(fixture.next_turn(Duration::ZERO), "hot again");
}

#[test]
fn long_turns_leave_a_socket_hot_for_some_tries() {
    let mut fixture = fixture(HOT);
    for turn in 1..HOT_TRIES_MIN {
        assert!(fixture.receive().is_pending());
        assert!(fixture.next_turn(Duration::from_millis(5)), "turn {turn}");
    }
    assert!(fixture.receive().is_pending());
    assert_eq!(fixture.readiness.armed(), 1);
}

#[test]
fn what_came_before_the_poll_was_armed_completes_it() {
    let mut fixture = fixture(HOT);
    assert!(fixture.receive().is_pending());
    // Between the try and the sleep.
    fixture.send(&[9]);
    fixture.readiness.cool_all(&fixture.uring);
    assert_eq!(fixture.readiness.armed(), 1);
    fixture.wait();
    assert_eq!(fixture.wakes(), 1);
    assert_eq!(fixture.receive(), Poll::Ready(9));
}

#[test]
fn a_source_that_is_never_hot_is_armed_at_once_and_kept_open_until_its_poll_has_ended() {
    let mut fixture = fixture(Duration::ZERO);
    assert!(fixture.receive().is_pending());
    assert_eq!(fixture.readiness.armed(), 1);
    fixture.readiness.forget(&fixture.uring, &fixture.source);
    assert_eq!(
        Rc::strong_count(&fixture.source),
        2,
        "the poll has not been submitted yet"
    );
    while fixture.readiness.armed() > 0 {
        fixture.wait();
    }
    assert_eq!(Rc::strong_count(&fixture.source), 1);
    assert_eq!(fixture.wakes(), 0, "nobody waits for it any more");
}
