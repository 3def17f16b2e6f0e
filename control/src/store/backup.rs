//! The whole store as one file.
//!
//! Bytes, all numbers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `POLLUXCB` |
//! | 4 | version, 1 |
//! | 8 | the revision that the entries are of |
//! | 8 | number of entries |
//! | for each: 4 + n | length of the key, the key in UTF-8 |
//! | 4 + m | length of the value, the value |
//! | 4 | CRC-32C of all bytes before |
//!
//! What belongs to an instance and not to the cluster, the leader's key, is left out; so is that the store
//! was put back itself.

use super::{
    Condition, KEY_BYTES_MAX, LEADER_KEY, RESTORED_KEY, Store, StoreError, TRANSACTION_BYTES_MAX,
    TRANSACTION_OPERATIONS_MAX, Transaction, VALUE_BYTES_MAX, Write,
};

/// What a backup begins with.
pub const BACKUP_MAGIC: &[u8; 8] = b"POLLUXCB";

/// The version of the bytes.
pub const BACKUP_VERSION: u32 = 1;

/// Why a backup cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are no backup, or are damaged.
    #[error("this is no whole backup: {0}")]
    Damaged(&'static str),
    /// Another version.
    #[error("the backup has version {found}, and this program knows version {BACKUP_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// There is something in the store.
    #[error("the store is not empty ({key} is there): restore into a new one")]
    NotEmpty {
        /// A key that is there.
        key: String,
    },
}

/// Writes down all that is in a store, as of one revision.
///
/// # Errors
///
/// [`BackupError::Store`].
pub async fn write_backup(store: &dyn Store) -> Result<Vec<u8>, BackupError> {
    let listing = store.list_all("/").await?;
    let entries: Vec<_> = listing
        .entries
        .iter()
        .filter(|entry| ![LEADER_KEY, RESTORED_KEY].contains(&entry.key.as_str()))
        .collect();
    let mut bytes = BACKUP_MAGIC.to_vec();
    bytes.extend(BACKUP_VERSION.to_le_bytes());
    bytes.extend(listing.revision.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    for entry in entries {
        for part in [entry.key.as_bytes(), &entry.value] {
            // Keys and values are far smaller than 4 GiB.
            bytes.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(part);
        }
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    Ok(bytes)
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BackupError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(BackupError::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let taken = self.take(N)?;
        taken
            .try_into()
            .map_err(|_| BackupError::Damaged("it ends too early"))
    }

    fn part(&mut self, bytes_max: usize) -> Result<&'a [u8], BackupError> {
        let count = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
        if count > bytes_max {
            return Err(BackupError::Damaged("a key or value is too long"));
        }
        self.take(count)
    }
}

/// Keys and values of a backup, after it has been checked.
///
/// # Errors
///
/// [`BackupError::Damaged`], [`BackupError::Version`].
pub fn read_backup(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, BackupError> {
    let mut reader = Reader(bytes);
    if &reader.array()? != BACKUP_MAGIC {
        return Err(BackupError::Damaged("it does not begin like one"));
    }
    let found = u32::from_le_bytes(reader.array()?);
    if found != BACKUP_VERSION {
        return Err(BackupError::Version { found });
    }
    let (body, checksum) = bytes
        .split_last_chunk::<4>()
        .ok_or(BackupError::Damaged("it ends too early"))?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(BackupError::Damaged("its checksum does not match"));
    }
    let _revision = u64::from_le_bytes(reader.array()?);
    let count = u64::from_le_bytes(reader.array()?);
    let mut entries = Vec::new();
    for _ in 0..count {
        let key = reader.part(KEY_BYTES_MAX)?;
        let key = std::str::from_utf8(key).map_err(|_| BackupError::Damaged("a key is not UTF-8"))?;
        let value = reader.part(VALUE_BYTES_MAX)?;
        entries.push((key.to_owned(), value.to_vec()));
    }
    match reader.0.len() {
        4 => Ok(entries),
        _ => Err(BackupError::Damaged("there is something behind its end")),
    }
}

/// Has nothing done by the records of a store until they were compared with what engines have
/// ([`RESTORED_KEY`]).
///
/// # Errors
///
/// Those of the store.
pub async fn hold(store: &dyn Store) -> Result<(), StoreError> {
    let mut transaction = Transaction::default();
    transaction.writes.push(held());
    store.commit(transaction).await.map(drop)
}

fn held() -> Write {
    Write::Put {
        key: RESTORED_KEY.to_owned(),
        value: Vec::new(),
    }
}

/// Puts a backup into an empty store, and has nothing done by it yet, as [`hold`]. A restore that was cut off
/// leaves a store that is not empty: take a new one.
///
/// # Errors
///
/// [`BackupError`].
pub async fn restore(store: &dyn Store, bytes: &[u8]) -> Result<usize, BackupError> {
    let entries = read_backup(bytes)?;
    let present = store.list_all("/").await?;
    if let Some(entry) = present.entries.iter().find(|entry| entry.key != LEADER_KEY) {
        return Err(BackupError::NotEmpty {
            key: entry.key.clone(),
        });
    }
    let count = entries.len();
    let mut transaction = Transaction::default();
    // Before any of them: a control plane may run already.
    transaction.writes.push(held());
    let mut transaction_bytes = 0;
    for (key, value) in entries {
        let is_full = transaction.writes.len() == TRANSACTION_OPERATIONS_MAX
            || transaction_bytes + value.len() > TRANSACTION_BYTES_MAX;
        if is_full {
            store.commit(std::mem::take(&mut transaction)).await?;
            transaction_bytes = 0;
        }
        transaction_bytes += value.len();
        transaction.conditions.push(Condition {
            key: key.clone(),
            revision: 0,
        });
        transaction.writes.push(Write::Put { key, value });
    }
    if !transaction.writes.is_empty() {
        store.commit(transaction).await?;
    }
    Ok(count)
}
