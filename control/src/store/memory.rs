//! A store that is gone with the process: for tests and simulations.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::history::History;
use super::{
    Change, Condition, Entry, LEADER_KEY, Leadership, Listing, PAGE_ENTRIES_MAX, Range, Store, StoreError,
    Transaction, Watcher, Write, check,
};

/// A store in memory. Clones are the same store.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    contents: Arc<Mutex<Contents>>,
    history: Arc<History>,
    /// Told to leaders that another one came.
    lost: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Contents {
    entries: BTreeMap<String, (u64, Vec<u8>)>,
    revision: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            contents: Arc::default(),
            history: History::new(0),
            lost: watch::Sender::new(false),
        }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        // Nothing that is done with the lock held can leave it half done.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry((key, (revision, value)): (&String, &(u64, Vec<u8>))) -> Entry {
    Entry {
        key: key.clone(),
        value: value.clone(),
        revision: *revision,
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.lock().entries.get_key_value(key).map(entry))
    }

    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError> {
        let contents = self.lock();
        let limit = range.limit.min(PAGE_ENTRIES_MAX);
        let start = match range.after {
            Some(after) if after >= range.prefix => Bound::Excluded(after),
            _ => Bound::Included(range.prefix),
        };
        let mut found = contents
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(range.prefix));
        let entries = found.by_ref().take(limit).map(entry).collect();
        Ok(Listing {
            entries,
            more: found.next().is_some(),
            revision: contents.revision,
        })
    }

    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError> {
        let contents = self.lock();
        let entries = contents
            .entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(entry)
            .collect();
        Ok(Listing {
            entries,
            more: false,
            revision: contents.revision,
        })
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.lock().revision)
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        check(&transaction)?;
        let mut contents = self.lock();
        for condition in &transaction.conditions {
            let revision = contents.entries.get(&condition.key).map_or(0, |entry| entry.0);
            if revision != condition.revision {
                return Err(StoreError::Conflict {
                    key: condition.key.clone(),
                });
            }
        }
        let revision = contents.revision + 1;
        let mut changes = Vec::new();
        for write in transaction.writes {
            let (key, value) = match write {
                Write::Put { key, value } => {
                    contents.entries.insert(key.clone(), (revision, value.clone()));
                    (key, Some(value))
                }
                Write::Delete { key } => match contents.entries.remove(&key) {
                    Some(_) => (key, None),
                    None => continue,
                },
            };
            changes.push(Change { revision, key, value });
        }
        if changes.is_empty() {
            return Ok(contents.revision);
        }
        contents.revision = revision;
        // With the lock held, so that the history has the order of the revisions.
        self.history.push(revision, changes);
        Ok(revision)
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Box<dyn Watcher>, StoreError> {
        self.history.watch(prefix, after_revision)
    }

    async fn lead(&self, instance: &str) -> Result<Leadership, StoreError> {
        let writes = vec![Write::Put {
            key: LEADER_KEY.to_owned(),
            value: instance.as_bytes().to_vec(),
        }];
        let term = self
            .commit(Transaction {
                writes,
                ..Transaction::default()
            })
            .await?;
        Ok(Leadership {
            term,
            condition: Condition {
                key: LEADER_KEY.to_owned(),
                revision: term,
            },
            lost: self.lost.subscribe(),
        })
    }
}
