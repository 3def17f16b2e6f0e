//! Exclusive access of a fused command to a range of a namespace, across all reactors.
//!
//! The command waits for its turn, puts a hold on its range into the gate of every reactor that serves the
//! namespace, and waits until the commands that were at the device before have left. Commands on other
//! ranges go on. See `docs/decisions/0004-fused-commands.md`.
//!
//! Invariants:
//! - At most one fused command per namespace has the turn, and `hold` is its hold.
//! - A reactor that joins while there is a hold takes it over before it lets any command in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_channel::oneshot;
use pollux_device::IoError;
use pollux_reactor::{ReactorHandle, ReactorId, RemoteCallError, sleep, spawn, timeout};

use super::attached::Attached;
use super::gate::{BlockRange, Hold};
use crate::target::namespace::Namespace;
use crate::target::sync::{all, lock};

/// Fused commands that may wait for their turn; one more is to be tried again.
const WAITING_MAX: usize = 1024;

/// The pause before a release is sent again to a reactor whose mailbox was full, and how often it is sent.
/// It only wakes commands that wait: a gate that never gets it sees at the next command that the hold has
/// ended.
const RELEASE_PAUSE: Duration = Duration::from_millis(1);
const RELEASES_MAX: u32 = 10_000;

#[derive(Default)]
struct State {
    taken: bool,
    waiting: VecDeque<oneshot::Sender<()>>,
    members: Vec<ReactorHandle>,
    hold: Option<Hold>,
    next_number: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct FusedGuard(Mutex<State>);

impl FusedGuard {
    /// A reactor begins to serve the namespace; returns the hold it has to respect from the start.
    pub(crate) fn join(&self, reactor: ReactorHandle) -> Option<Hold> {
        let mut state = lock(&self.0);
        state.members.push(reactor);
        state.hold
    }

    /// A reactor serves the namespace no more, and has no command at its device.
    pub(crate) fn leave(&self, reactor: ReactorId) {
        let mut state = lock(&self.0);
        if let Some(index) = state.members.iter().position(|member| member.id() == reactor) {
            state.members.swap_remove(index);
        }
    }

    /// Whether a hold has not ended yet.
    pub(crate) fn is_held(&self, number: u64) -> bool {
        lock(&self.0).hold.is_some_and(|hold| hold.number == number)
    }

    fn members(&self) -> Vec<ReactorHandle> {
        lock(&self.0).members.clone()
    }

    /// Waits for the turn.
    async fn turn(&self) -> Result<(), IoError> {
        let receiver = {
            let mut state = lock(&self.0);
            if !state.taken {
                state.taken = true;
                return Ok(());
            }
            state.waiting.retain(|sender| !sender.is_canceled());
            if state.waiting.len() >= WAITING_MAX {
                return Err(IoError::ResourceShortage);
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            receiver
        };
        /// Hands the turn on when it was given to somebody who left.
        struct Waiting<'a>(&'a FusedGuard, oneshot::Receiver<()>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                if matches!(self.1.try_recv(), Ok(Some(()))) {
                    self.0.end_turn();
                }
            }
        }
        let mut waiting = Waiting(self, receiver);
        (&mut waiting.1).await.map_err(|_| IoError::Internal)
    }

    fn end_turn(&self) {
        let mut state = lock(&self.0);
        state.hold = None;
        while let Some(next) = state.waiting.pop_front() {
            if next.send(()).is_ok() {
                return;
            }
        }
        state.taken = false;
    }
}

/// A range that no other command touches until this is dropped.
pub(crate) struct Exclusive {
    namespace: Arc<Namespace>,
    number: u64,
}

impl Exclusive {
    /// Waits for exclusive access to a range, for `wait_max` at most.
    ///
    /// # Errors
    ///
    /// [`IoError::ResourceShortage`] when it could not be had in time.
    pub(crate) async fn acquire(
        namespace: Arc<Namespace>,
        range: BlockRange,
        wait_max: Duration,
    ) -> Result<Self, IoError> {
        timeout(wait_max, async {
            namespace.fused.turn().await?;
            let hold = {
                let mut state = lock(&namespace.fused.0);
                state.next_number += 1;
                let hold = Hold {
                    number: state.next_number,
                    range,
                };
                state.hold = Some(hold);
                hold
            };
            // From here on dropping it releases what is held so far.
            let exclusive = Self {
                namespace,
                number: hold.number,
            };
            exclusive.hold_everywhere(hold).await?;
            Ok(exclusive)
        })
        .await
        .unwrap_or(Err(IoError::ResourceShortage))
    }

    async fn hold_everywhere(&self, hold: Hold) -> Result<(), IoError> {
        let instance = self.namespace.instance;
        let calls = self
            .namespace
            .fused
            .members()
            .into_iter()
            .map(|member| -> Pin<Box<dyn Future<Output = _>>> {
                Box::pin(async move { member.call(move || Attached::hold(instance, hold)).await })
            })
            .collect();
        for result in all(calls).await {
            match result {
                // A reactor that stopped has nothing at the device.
                Ok(()) | Err(RemoteCallError::Stopped(_)) => {}
                Err(RemoteCallError::MailboxFull(_) | RemoteCallError::WouldBlock(_)) => {
                    return Err(IoError::ResourceShortage);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let (instance, number) = (self.namespace.instance, self.number);
        // The next one may begin at once: its hold has another number, and gates know any number of holds.
        self.namespace.fused.end_turn();
        for member in self.namespace.fused.members() {
            let release = move || async move { Attached::release(instance, number) };
            if member.spawn(release).is_err() && pollux_reactor::Reactor::try_current().is_some() {
                spawn(async move {
                    for _ in 0..RELEASES_MAX {
                        sleep(RELEASE_PAUSE).await;
                        if member.spawn(release).is_ok() {
                            break;
                        }
                    }
                })
                .detach();
            }
        }
    }
}
