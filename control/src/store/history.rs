//! The latest changes of a store that lives in this process, and those who wait for more.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Change, StoreError, Watcher};

/// Changes that are remembered. Who is further behind has to list again.
const CHANGES_MAX: usize = 50_000;

/// Changes that a watcher is given at once, but for a transaction that has more.
const BATCH_CHANGES_MAX: usize = 1_000;

/// The latest changes.
#[derive(Debug)]
pub(super) struct History {
    changes: Mutex<Changes>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct Changes {
    /// In order; those of a transaction side by side.
    latest: VecDeque<Change>,
    /// All changes after this revision are there.
    complete_after: u64,
}

impl History {
    /// Remembers what happens after a revision.
    pub(super) fn new(revision: u64) -> Arc<Self> {
        Arc::new(Self {
            changes: Mutex::new(Changes {
                latest: VecDeque::new(),
                complete_after: revision,
            }),
            revision: watch::Sender::new(revision),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        // Nothing that is done with the lock held can leave it half done.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the changes of the next transaction.
    pub(super) fn push(&self, revision: u64, changes: impl IntoIterator<Item = Change>) {
        let mut known = self.lock();
        known.latest.extend(changes);
        while known.latest.len() > CHANGES_MAX {
            let Some(oldest) = known.latest.pop_front() else {
                break;
            };
            // The rest of its transaction is of no use without it.
            known.complete_after = oldest.revision;
        }
        drop(known);
        self.revision.send_replace(revision);
    }

    /// Tells the changes after a revision.
    pub(super) fn watch(
        self: &Arc<Self>,
        prefix: &str,
        after_revision: u64,
    ) -> Result<Box<dyn Watcher>, StoreError> {
        if after_revision < self.lock().complete_after {
            return Err(StoreError::HistoryGone {
                after: after_revision,
            });
        }
        Ok(Box::new(HistoryWatcher {
            history: self.clone(),
            revision: self.revision.subscribe(),
            prefix: prefix.to_owned(),
            after_revision,
        }))
    }
}

struct HistoryWatcher {
    history: Arc<History>,
    revision: watch::Receiver<u64>,
    prefix: String,
    after_revision: u64,
}

impl HistoryWatcher {
    /// The changes after what was told last, and up to which revision these are all.
    fn take(&self) -> Result<(Vec<Change>, u64), StoreError> {
        let known = self.history.lock();
        if self.after_revision < known.complete_after {
            return Err(StoreError::HistoryGone {
                after: self.after_revision,
            });
        }
        let start = known
            .latest
            .partition_point(|change| change.revision <= self.after_revision);
        let mut batch = Vec::new();
        let mut until = self.after_revision;
        for change in known.latest.range(start..) {
            if batch.len() >= BATCH_CHANGES_MAX && change.revision != until {
                break;
            }
            until = change.revision;
            if change.key.starts_with(&self.prefix) {
                batch.push(change.clone());
            }
        }
        Ok((batch, until))
    }
}

#[tonic::async_trait]
impl Watcher for HistoryWatcher {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            self.revision.borrow_and_update();
            let (batch, until) = self.take()?;
            self.after_revision = until;
            if !batch.is_empty() {
                return Ok(batch);
            }
            let gone = |_| StoreError::Unavailable("it was closed".to_owned());
            self.revision.changed().await.map_err(gone)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64) -> Change {
        Change {
            revision,
            key: format!("/k/{revision}"),
            value: None,
        }
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told() {
        let history = History::new(0);
        let mut slow = history.watch("", 0).expect("it is all there");
        for revision in 1..=CHANGES_MAX as u64 + 1 {
            history.push(revision, [change(revision)]);
        }
        let gone = StoreError::HistoryGone { after: 0 };
        assert_eq!(slow.next().await, Err(gone.clone()));
        assert_eq!(history.watch("", 0).err(), Some(gone));
        let mut quick = history.watch("", 1).expect("all after 1 is there");
        let batch = quick.next().await.expect("there are changes");
        assert_eq!(batch.len(), BATCH_CHANGES_MAX);
        assert_eq!(batch.first(), Some(&change(2)));
    }

    #[tokio::test]
    async fn transactions_come_whole() {
        let history = History::new(0);
        let many = BATCH_CHANGES_MAX + 10;
        history.push(1, (0..many).map(|_| change(1)));
        history.push(2, [change(2)]);
        let mut watcher = history.watch("", 0).expect("it is all there");
        assert_eq!(watcher.next().await.map(|batch| batch.len()), Ok(many));
        assert_eq!(watcher.next().await, Ok(vec![change(2)]));
    }
}
