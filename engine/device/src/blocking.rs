//! Work that may take long, away from the reactors.

use futures_channel::oneshot;

/// Runs `work` on a thread of its own and waits for it without blocking the reactor; `None` if no thread
/// could be had or the work panicked. For opening and closing devices, not for I/O.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("pollux-open".to_owned())
        .spawn(move || {
            // Nobody waits any more if the receiver is gone.
            let _ = sender.send(work());
        })
        .ok()?;
    receiver.await.ok()
}
