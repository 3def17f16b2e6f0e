//! A store in one file, for a control plane of one instance: redb.
//!
//! One thread writes. It takes all transactions that wait, does those whose conditions hold in one
//! transaction of the file, and answers once that is durable, so that many callers share the price of one
//! sync. The file is locked: a second instance cannot open it, and who has opened it leads.
//!
//! Tables: `entries` (key -> revision, value) and `state` (`format`, `revision`).

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc as blocking;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use tokio::sync::{oneshot, watch};

use super::history::History;
use super::{
    Change, Condition, Entry, LEADER_KEY, Leadership, Listing, PAGE_ENTRIES_MAX, Range, Store, StoreError,
    Transaction, Watcher, Write, check,
};

const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
const STATE: TableDefinition<'_, &str, u64> = TableDefinition::new("state");

/// The layout of the tables.
const FORMAT: u64 = 1;

/// Transactions that may wait for the thread that writes; callers wait beyond that.
const WAITING_MAX: usize = 256;

/// Memory for pages of the file, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// A transaction and who waits for it.
struct Job {
    transaction: Transaction,
    answer: oneshot::Sender<Result<u64, StoreError>>,
}

/// A store in one file.
#[derive(Debug)]
pub struct EmbeddedStore {
    path: PathBuf,
    database: Arc<Database>,
    history: Arc<History>,
    jobs: blocking::SyncSender<Job>,
    lost: watch::Sender<bool>,
}

/// The mode of a file that nobody else may read.
const OWNER_ONLY: u32 = 0o600;

impl EmbeddedStore {
    /// Opens a file, or makes it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] if it is in use or cannot be read, [`StoreError::Damaged`] if it is
    /// another version's.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let at =
            |error: &dyn std::fmt::Display| StoreError::Unavailable(format!("{}: {error}", path.display()));
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|error| at(&error))?;
        }
        // It holds the secrets of hosts.
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(OWNER_ONLY)
            .open(path)
            .map_err(|error| at(&error))?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => {
                    at(&"another process has it open, such as a control plane: stop that first")
                }
                error => at(&error),
            })?;
        let revision = prepare(&database).map_err(|failure| match failure {
            Failure::Store(error) => error,
            Failure::File(error) => at(&error),
        })?;
        let history = History::new(revision);
        let database = Arc::new(database);
        let (jobs, waiting) = blocking::sync_channel(WAITING_MAX);
        let writer = Writer {
            database: database.clone(),
            history: history.clone(),
            revision,
        };
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&waiting))
            .map_err(|error| at(&error))?;
        Ok(Self {
            path: path.to_owned(),
            database,
            history,
            jobs,
            lost: watch::Sender::new(false),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads on a thread that may wait for the drive.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reading) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = self.database.clone();
        let done = tokio::task::spawn_blocking(move || {
            let transaction = database.begin_read()?;
            let reading = Reading {
                entries: transaction.open_table(ENTRIES)?,
                revision: transaction
                    .open_table(STATE)?
                    .get("revision")?
                    .map_or(0, |value| value.value()),
            };
            read(&reading)
        });
        match done.await {
            Ok(result) => result.map_err(|error: redb::Error| unavailable(&error)),
            Err(error) => Err(unavailable(&error)),
        }
    }
}

fn unavailable(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// The tables as of one instant.
struct Reading {
    entries: redb::ReadOnlyTable<&'static str, (u64, &'static [u8])>,
    revision: u64,
}

impl Reading {
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, redb::Error> {
        let start = after.filter(|after| *after >= prefix).unwrap_or(prefix);
        let mut entries = Vec::new();
        let mut more = false;
        for item in self.entries.range(start..)? {
            let (key, value) = item?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            if after == Some(key) {
                continue;
            }
            if entries.len() == limit {
                more = true;
                break;
            }
            let (revision, value) = value.value();
            entries.push(Entry {
                key: key.to_owned(),
                value: value.to_vec(),
                revision,
            });
        }
        Ok(Listing {
            entries,
            more,
            revision: self.revision,
        })
    }
}

/// Why a file cannot be used.
enum Failure {
    Store(StoreError),
    File(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::File(error.into())
    }
}

/// Makes the tables if they are not there, and returns the revision.
fn prepare(database: &Database) -> Result<u64, Failure> {
    let transaction = database.begin_read()?;
    match transaction.open_table(STATE) {
        Ok(state) => {
            let format = state.get("format")?.map_or(0, |value| value.value());
            if format != FORMAT {
                return Err(Failure::Store(StoreError::Damaged(format!(
                    "the file has format {format}, and this version knows format {FORMAT}"
                ))));
            }
            let revision = state.get("revision")?.map(|value| value.value());
            return revision
                .ok_or_else(|| Failure::Store(StoreError::Damaged("the file has no revision".to_owned())));
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    drop(transaction);
    let transaction = database.begin_write()?;
    {
        let mut state = transaction.open_table(STATE)?;
        state.insert("format", FORMAT)?;
        state.insert("revision", 0)?;
        transaction.open_table(ENTRIES)?;
    }
    transaction.commit()?;
    Ok(0)
}

/// What the thread that writes has.
struct Writer {
    database: Arc<Database>,
    history: Arc<History>,
    revision: u64,
}

/// What became of one transaction of a batch.
type Outcome = Result<(u64, Vec<Change>), StoreError>;

impl Writer {
    /// Until all who could ask are gone.
    fn run(mut self, waiting: &blocking::Receiver<Job>) {
        while let Ok(first) = waiting.recv() {
            let mut batch = vec![first];
            while batch.len() < WAITING_MAX
                && let Ok(next) = waiting.try_recv()
            {
                batch.push(next);
            }
            let (transactions, answers): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|job| (job.transaction, job.answer)).unzip();
            match self.write(transactions) {
                Ok(outcomes) => {
                    for (outcome, answer) in outcomes.into_iter().zip(answers) {
                        let result = outcome.map(|(revision, changes)| {
                            if !changes.is_empty() {
                                self.history.push(revision, changes);
                                self.revision = revision;
                            }
                            revision
                        });
                        // A caller that left does not want to know.
                        let _ = answer.send(result);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the store cannot be written");
                    for answer in answers {
                        let _ = answer.send(Err(unavailable(&error)));
                    }
                }
            }
        }
    }

    /// Does those transactions whose conditions hold, and makes them durable together.
    fn write(&self, batch: Vec<Transaction>) -> Result<Vec<Outcome>, redb::Error> {
        let transaction = self.database.begin_write()?;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut revision = self.revision;
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            for one in batch {
                let mut conflict = None;
                for condition in one.conditions {
                    let found = entries
                        .get(condition.key.as_str())?
                        .map_or(0, |entry| entry.value().0);
                    if found != condition.revision {
                        conflict = Some(condition.key);
                        break;
                    }
                }
                if let Some(key) = conflict {
                    outcomes.push(Err(StoreError::Conflict { key }));
                    continue;
                }
                let next = revision + 1;
                let mut changes = Vec::new();
                for write in one.writes {
                    let (key, value) = match write {
                        Write::Put { key, value } => {
                            entries.insert(key.as_str(), (next, value.as_slice()))?;
                            (key, Some(value))
                        }
                        Write::Delete { key } => match entries.remove(key.as_str())?.is_some() {
                            true => (key, None),
                            false => continue,
                        },
                    };
                    changes.push(Change {
                        revision: next,
                        key,
                        value,
                    });
                }
                if !changes.is_empty() {
                    revision = next;
                }
                outcomes.push(Ok((revision, changes)));
            }
            transaction.open_table(STATE)?.insert("revision", revision)?;
        }
        if revision == self.revision {
            transaction.abort()?;
        } else {
            transaction.commit()?;
        }
        Ok(outcomes)
    }
}

#[tonic::async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.read(move |reading| {
            let found = reading.entries.get(key.as_str())?;
            Ok(found.map(|found| {
                let (revision, value) = found.value();
                Entry {
                    key,
                    value: value.to_vec(),
                    revision,
                }
            }))
        })
        .await
    }

    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError> {
        let limit = range.limit.min(PAGE_ENTRIES_MAX);
        let prefix = range.prefix.to_owned();
        let after = range.after.map(str::to_owned);
        self.read(move |reading| reading.list(&prefix, after.as_deref(), limit))
            .await
    }

    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |reading| reading.list(&prefix, None, usize::MAX))
            .await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        // Of the file: others may have read there already what its writer has not told yet.
        self.read(|reading| Ok(reading.revision)).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        check(&transaction)?;
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.clone();
        let mut job = Job { transaction, answer };
        loop {
            job = match jobs.try_send(job) {
                Ok(()) => break,
                Err(blocking::TrySendError::Full(job)) => job,
                Err(blocking::TrySendError::Disconnected(_)) => {
                    return Err(unavailable(&"its thread has ended"));
                }
            };
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        answered
            .await
            .unwrap_or_else(|_| Err(unavailable(&"its thread has ended")))
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
