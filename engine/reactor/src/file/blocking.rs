//! Calls that block and have no operation in the ring, on threads of their own.
//!
//! Two threads serve the whole process; they are started when the first call comes. What is asked of them is
//! rare: opening files, and what old kernels cannot do otherwise.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use crossbeam::channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;

/// Threads that make the calls.
const THREADS: usize = 2;

/// Calls that may wait; one more is refused as a resource that is busy.
const WAITING_MAX: usize = 1024;

type Call = Box<dyn FnOnce() + Send>;

fn calls() -> io::Result<&'static Sender<Call>> {
    static CALLS: OnceLock<Sender<Call>> = OnceLock::new();
    if let Some(calls) = CALLS.get() {
        return Ok(calls);
    }
    let (sender, receiver) = bounded(WAITING_MAX);
    for number in 0..THREADS {
        let receiver: Receiver<Call> = receiver.clone();
        std::thread::Builder::new()
            .name(format!("blocking-{number}"))
            .spawn(move || serve(&receiver))?;
    }
    // Whoever comes second drops its sender, and so ends its threads.
    Ok(CALLS.get_or_init(|| sender))
}

fn serve(calls: &Receiver<Call>) {
    for call in calls {
        // The caller learns of a panic by an answer that never comes; the other callers still need this
        // thread.
        let _ = catch_unwind(AssertUnwindSafe(call));
    }
}

/// Makes a call on another thread. It is made even if nobody waits for it any more.
///
/// # Errors
///
/// Those of the call; [`io::ErrorKind::ResourceBusy`] when too many wait.
pub(super) async fn run<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let call = Box::new(move || {
        // The one who asked may have gone away.
        let _ = sender.send(call());
    });
    calls()?.try_send(call).map_err(|_| io::ErrorKind::ResourceBusy)?;
    receiver
        .await
        .map_err(|_| io::Error::other("the call panicked"))?
}
