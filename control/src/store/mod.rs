//! Where the control plane keeps what was asked for and what was decided.
//!
//! A store is an ordered map from keys to bytes, with one revision that each transaction raises that changes
//! something.
//! Invariants, kept by all implementations and checked by one test-suite:
//!
//! - A transaction is done whole, if all of its conditions hold, or not at all.
//! - An entry has the revision of the transaction that last wrote it. Revisions only grow, and are never used
//!   again, also after the process ended.
//! - A watch tells the changes after a revision in order, each once, those of a transaction together; or it
//!   says that the history does not go back so far.
//! - What was committed survives the loss of power (not in memory, of course).

mod backup;
mod embedded;
mod etcd;
mod history;
mod memory;

use std::collections::HashSet;
use std::fmt;

use tokio::sync::watch;

pub use backup::{BACKUP_MAGIC, BACKUP_VERSION, BackupError, hold, read_backup, restore, write_backup};
pub use embedded::EmbeddedStore;
pub use etcd::{EtcdSettings, EtcdStore};
pub use memory::MemoryStore;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;

/// Largest value, in bytes: etcd takes requests of 1.5 MiB by default.
pub const VALUE_BYTES_MAX: usize = 256 << 10;

/// Most conditions and writes of a transaction: etcd takes 128 operations by default, of which one is the
/// note that there was a transaction.
pub const TRANSACTION_OPERATIONS_MAX: usize = 127;

/// Most bytes of the values that a transaction writes.
pub const TRANSACTION_BYTES_MAX: usize = 1 << 20;

/// Most entries of a page.
pub const PAGE_ENTRIES_MAX: usize = 1_000;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The transaction that last wrote it.
    pub revision: u64,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// By key.
    pub entries: Vec<Entry>,
    /// Whether there are more.
    pub more: bool,
    /// The entries are those of this revision; a watch after it misses nothing.
    pub revision: u64,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range<'a> {
    /// Keys that begin so.
    pub prefix: &'a str,
    /// Only keys after this one.
    pub after: Option<&'a str>,
    /// At most this many, and never more than [`PAGE_ENTRIES_MAX`].
    pub limit: usize,
}

/// What must be so for a transaction to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The entry of this key
    pub key: String,
    /// has this revision; 0: it is not there.
    pub revision: u64,
}

/// What a transaction does to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// It has this value from then on.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// It is gone, if it was there.
    Delete {
        /// The key.
        key: String,
    },
}

impl Write {
    /// The key that is written.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Writes that are all done, if all conditions hold, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must be so.
    pub conditions: Vec<Condition>,
    /// What is done; no key twice.
    pub writes: Vec<Write>,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The transaction.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// Its value from then on; nothing if it is gone.
    pub value: Option<Vec<u8>>,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A condition did not hold.
    #[error("{key} was changed meanwhile: read it again")]
    Conflict {
        /// The first key whose condition did not hold, if the store tells.
        key: String,
    },
    /// The history does not go back so far.
    #[error("changes after revision {after} are forgotten: list again")]
    HistoryGone {
        /// The revision after which changes were wanted.
        after: u64,
    },
    /// A key, a value or a transaction is too large, or names a key twice.
    #[error("{0}")]
    Oversized(String),
    /// It cannot be reached, or its medium fails. What was asked for may be done or not.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// What is in it makes no sense.
    #[error("the store is damaged: {0}; restore it from a backup")]
    Damaged(String),
}

/// Changes as they happen.
#[tonic::async_trait]
pub trait Watcher: Send + Sync {
    /// The next changes: of whole transactions, in order, at least one. Who does not wait until it returns
    /// misses nothing by that.
    ///
    /// # Errors
    ///
    /// [`StoreError::HistoryGone`] if the caller was too slow; then it has to list again.
    async fn next(&mut self) -> Result<Vec<Change>, StoreError>;
}

/// The right to decide alone, until it is lost.
#[derive(Debug)]
pub struct Leadership {
    /// Grows with each leader: together with what is at [`TERM_BASE_KEY`] it is the term. Engines refuse
    /// commands of older ones.
    pub term: u64,
    /// Holds as long as no other leads: to be part of each transaction.
    pub condition: Condition,
    /// Turns true when it is lost, or may be. The sender is gone with the store.
    pub lost: watch::Receiver<bool>,
}

impl Leadership {
    /// Returns when it is lost.
    pub async fn until_lost(&mut self) {
        // A sender that is gone is a store that is gone.
        let _ = self.lost.wait_for(|lost| *lost).await;
    }
}

/// An ordered map with revisions.
#[tonic::async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The entry of a key, if it is there.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Entries in the order of their keys.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError>;

    /// All entries whose keys begin so, as of one revision, however many there are.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// The revision of the newest transaction: whatever anybody was told of before this was asked, or has
    /// read, is of this revision or an older one. A watch of all keys comes to it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    async fn revision(&self) -> Result<u64, StoreError>;

    /// Does a transaction, and returns its revision once it is durable; the newest one, if it changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] if a condition does not hold, [`StoreError::Oversized`], and
    /// [`StoreError::Unavailable`], after which it may be done or not.
    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError>;

    /// Changes of keys that begin so, after a revision.
    ///
    /// # Errors
    ///
    /// [`StoreError::HistoryGone`], [`StoreError::Unavailable`].
    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Box<dyn Watcher>, StoreError>;

    /// Waits until this instance leads.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`].
    async fn lead(&self, instance: &str) -> Result<Leadership, StoreError>;
}

/// What is added to the revision of the leader's key to make its term, as a decimal number; 0 if it is not
/// there. A store that takes the place of another one has a larger one: engines obey newer terms only.
pub const TERM_BASE_KEY: &str = "/term-base";

/// What is added to terms, as an entry has it.
///
/// # Errors
///
/// [`StoreError::Damaged`].
pub(crate) fn term_base(value: Option<&[u8]>) -> Result<u64, StoreError> {
    let Some(value) = value else { return Ok(0) };
    let text = std::str::from_utf8(value).ok();
    let base = text.and_then(|text| text.parse().ok());
    base.ok_or_else(|| StoreError::Damaged(format!("{TERM_BASE_KEY} holds no number")))
}

/// Is there from when a backup was restored until somebody has compared the records with what engines have:
/// nothing is done by them before.
pub const RESTORED_KEY: &str = "/restored";

/// The key that the leader holds.
pub const LEADER_KEY: &str = "/leader";

/// What every store checks before it looks at a transaction.
fn check(transaction: &Transaction) -> Result<(), StoreError> {
    let operations = transaction.conditions.len().max(transaction.writes.len());
    if operations > TRANSACTION_OPERATIONS_MAX {
        return Err(StoreError::Oversized(format!(
            "{operations} operations are more than the {TRANSACTION_OPERATIONS_MAX} of a transaction"
        )));
    }
    let keys = transaction
        .conditions
        .iter()
        .map(|condition| condition.key.as_str());
    for key in keys.chain(transaction.writes.iter().map(Write::key)) {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(StoreError::Oversized(format!(
                "a key has {} bytes; give 1 to {KEY_BYTES_MAX}",
                key.len()
            )));
        }
    }
    let mut bytes = 0;
    let mut keys = HashSet::new();
    for write in &transaction.writes {
        if !keys.insert(write.key()) {
            return Err(StoreError::Oversized(format!(
                "{} is written twice in a transaction",
                write.key()
            )));
        }
        if let Write::Put { value, .. } = write {
            bytes += value.len();
            if value.len() > VALUE_BYTES_MAX || bytes > TRANSACTION_BYTES_MAX {
                return Err(StoreError::Oversized(format!(
                    "the value of {} has {} bytes; at most {VALUE_BYTES_MAX} are stored, and \
                     {TRANSACTION_BYTES_MAX} in a transaction",
                    write.key(),
                    value.len()
                )));
            }
        }
    }
    Ok(())
}
