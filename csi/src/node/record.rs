//! What is staged on this node, on its own disk.
//!
//! A record is written before anything is done for a volume, and deleted after all of it is undone. So
//! whatever is there on the kernel's side has a record, also after a crash, and unstaging needs nothing
//! else.
//!
//! One file a volume, `HASH.json`, replaced as a whole: written beside, made durable, renamed.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::context::Reach;
use super::file_error;
use crate::capability::FileSystem;
use crate::error::CallError;
use crate::names::fingerprint;

/// Largest record.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// As what a volume is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A block device.
    Block,
    /// A file system: this one, or whichever is there.
    Mount(Option<FileSystem>),
}

/// A volume that is staged, or is being staged or unstaged.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The volume.
    pub volume_id: String,
    /// Where.
    pub staging_path: PathBuf,
    /// How it is reached.
    pub reach: Reach,
    /// As what.
    pub form: Form,
}

/// All records of this node.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// In a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// [`CallError::Host`].
    pub fn open(directory: &Path) -> Result<Self, CallError> {
        std::fs::create_dir_all(directory).map_err(|error| file_error("make", directory, &error))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn path(&self, volume_id: &str) -> PathBuf {
        self.directory.join(format!("{}.json", fingerprint(&[volume_id])))
    }

    fn read(path: &Path) -> Result<Option<Record>, CallError> {
        let failed = |error: &std::io::Error| file_error("read", path, error);
        let length = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        if length > RECORD_BYTES_MAX {
            return Err(failed(&std::io::Error::other("it is too large for a record")));
        }
        let bytes = std::fs::read(path).map_err(|error| failed(&error))?;
        let record = serde_json::from_slice(&bytes).map_err(|error| failed(&error.into()))?;
        Ok(Some(record))
    }

    /// The record of a volume; nothing if there is none.
    ///
    /// # Errors
    ///
    /// [`CallError::Host`] if it cannot be read: then nothing is done, because nothing is known.
    pub fn get(&self, volume_id: &str) -> Result<Option<Record>, CallError> {
        Self::read(&self.path(volume_id))
    }

    /// All records that can be read.
    ///
    /// # Errors
    ///
    /// [`CallError::Host`] if the directory cannot be read.
    pub fn all(&self) -> Result<Vec<Record>, CallError> {
        let failed = |error: std::io::Error| file_error("read", &self.directory, &error);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match Self::read(&path) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%error, "a record cannot be read"),
            }
        }
        Ok(records)
    }

    /// Writes a record, durably.
    ///
    /// # Errors
    ///
    /// [`CallError::Host`].
    pub fn put(&self, record: &Record) -> Result<(), CallError> {
        let path = self.path(&record.volume_id);
        let failed = |error: std::io::Error| file_error("write", &path, &error);
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        let beside = path.with_extension("part");
        let mut file = File::create(&beside).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&beside, &path).map_err(failed)?;
        self.sync()
    }

    /// Deletes the record of a volume, if there is one.
    ///
    /// # Errors
    ///
    /// [`CallError::Host`].
    pub fn delete(&self, volume_id: &str) -> Result<(), CallError> {
        let path = self.path(volume_id);
        match std::fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(file_error("delete", &path, &error)),
        }
    }

    fn sync(&self) -> Result<(), CallError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| file_error("write", &self.directory, &error))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn record(volume_id: &str) -> Record {
        Record {
            volume_id: volume_id.to_owned(),
            staging_path: "/staging".into(),
            reach: Reach {
                subsystem_nqn: "nqn.2026-11.io.pollux:volume:x".to_owned(),
                namespace_uuid: Uuid::from_u128(7),
                paths: vec!["10.0.0.1:4420".parse().expect("an address")],
                read_only: false,
            },
            form: Form::Mount(Some(FileSystem::Xfs)),
        }
    }

    #[test]
    fn records_outlive_the_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let records = Records::open(&directory.path().join("deep/er")).expect("it can be made");
        assert_eq!(records.get("a").expect("it can be read"), None);
        records.put(&record("a")).expect("it can be written");
        records.put(&record("b/../c")).expect("names are no paths");
        let again = Records::open(&directory.path().join("deep/er")).expect("it is there");
        assert_eq!(again.get("a").expect("it can be read"), Some(record("a")));
        assert_eq!(again.all().expect("it can be read").len(), 2);
        again.delete("a").expect("it is there");
        again.delete("a").expect("it is gone already");
        assert_eq!(again.get("a").expect("it can be read"), None);
    }

    #[test]
    fn a_damaged_record_is_an_error_and_not_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let records = Records::open(directory.path()).expect("it is there");
        records.put(&record("a")).expect("it can be written");
        for damage in ["", "{", "{\"volume_id\": 1}", "[]"] {
            std::fs::write(records.path("a"), damage).expect("it can be written");
            assert!(records.get("a").is_err(), "{damage:?}");
            assert_eq!(records.all().expect("others can be read"), []);
        }
        let large = vec![b' '; 70 << 10];
        std::fs::write(records.path("a"), large).expect("it can be written");
        assert!(records.get("a").is_err());
    }
}
