//! What an engine remembers of its pools over a restart: those that a call made or opened, and the devices
//! of those whose settings name others, since calls added, replaced or removed some.
//!
//! It is a file of JSON that only its owner can read, as URIs may have secrets. It is replaced as a whole:
//! written beside itself, made durable, and renamed. What people write in settings is theirs: it wins as
//! soon as it is not what it was when a change was remembered.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::settings::PoolSettings;

/// The version of the file.
const VERSION: u32 = 1;

/// Bytes of the file, at most.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Why nothing is remembered.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file cannot be read.
    #[error("cannot read the state file {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no state file.
    #[error(
        "the state file {path} makes no sense ({reason}): move it away, and import again what calls had made",
        path = .path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be written.
    #[error("cannot write the state file {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A pool that is to be opened again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remembered {
    /// Its name.
    pub(super) name: String,
    /// Its devices as the settings name them; none if they do not name it.
    pub(super) named: Vec<String>,
    /// Its devices.
    pub(super) devices: Vec<String>,
    /// Nothing is written to it.
    pub(super) read_only: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    pools: Vec<Remembered>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    path: Option<PathBuf>,
    pools: Mutex<Vec<Remembered>>,
}

/// Whether two lists have the same devices.
fn same(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().all(|device| other.contains(device))
}

impl Memory {
    /// What a file has, which need not be there.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Read`], [`MemoryError::Content`].
    pub fn open(path: &Path) -> Result<Self, MemoryError> {
        let failed = |source| MemoryError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => {
                file.take(FILE_BYTES_MAX)
                    .read_to_string(&mut text)
                    .map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let pools = match text.as_str() {
            "" => Vec::new(),
            text => understand(text).map_err(|reason| MemoryError::Content {
                path: path.to_owned(),
                reason,
            })?,
        };
        Ok(Self {
            path: Some(path.to_owned()),
            pools: Mutex::new(pools),
        })
    }

    /// The devices that a pool of the settings has by now.
    pub(super) async fn devices_of(&self, settings: &PoolSettings) -> Option<Vec<String>> {
        let pools = self.pools.lock().await;
        let known = pools.iter().find(|pool| same(&pool.named, &settings.devices))?;
        Some(known.devices.clone())
    }

    /// The pools that are to be opened and that no settings name.
    pub(super) async fn unnamed(&self) -> Vec<PoolSettings> {
        let pools = self.pools.lock().await;
        let unnamed = pools.iter().filter(|pool| pool.named.is_empty());
        unnamed
            .map(|pool| PoolSettings {
                read_only: pool.read_only,
                ..PoolSettings::new(pool.devices.clone())
            })
            .collect()
    }

    /// Whether there is something of a pool.
    pub(super) async fn has(&self, name: &str) -> bool {
        self.pools.lock().await.iter().any(|pool| pool.name == name)
    }

    /// Remembers a pool. One whose settings name the devices that it has needs none of it.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Write`].
    pub(super) async fn keep(&self, pool: Remembered) -> Result<(), MemoryError> {
        let is_as_named = same(&pool.named, &pool.devices);
        self.change(|pools| {
            pools.retain(|known| known.name != pool.name);
            if !is_as_named {
                pools.push(pool);
            }
        })
        .await
    }

    /// Forgets a pool.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Write`].
    pub(super) async fn forget(&self, name: &str) -> Result<(), MemoryError> {
        self.change(|pools| pools.retain(|known| known.name != name))
            .await
    }

    async fn change(&self, change: impl FnOnce(&mut Vec<Remembered>)) -> Result<(), MemoryError> {
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        // Held while it is written: changes come one after the other.
        let mut pools = self.pools.lock().await;
        let before = pools.clone();
        change(&mut pools);
        if *pools == before {
            return Ok(());
        }
        let content = Content {
            version: VERSION,
            pools: pools.clone(),
        };
        let written = path.clone();
        let written = tokio::task::spawn_blocking(move || replace(&written, &content)).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|source| MemoryError::Write { path, source })
    }
}

fn understand(text: &str) -> Result<Vec<Remembered>, String> {
    let content: Content = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match content.version {
        VERSION => Ok(content.pools),
        other => Err(format!(
            "it has version {other}, and this engine writes {VERSION}"
        )),
    }
}

/// Replaces the file as a whole, durably.
fn replace(path: &Path, content: &Content) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        // Left by an engine that was killed.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    serde_json::to_writer_pretty(&mut file, content)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pool(name: &str, named: &[&str], devices: &[&str]) -> Remembered {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Remembered {
            name: name.to_owned(),
            named: texts(named),
            devices: texts(devices),
            read_only: name == "old",
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_there_again_until_it_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.json");
        let memory = Memory::open(&path).expect("nothing yet");
        assert!(memory.unnamed().await.is_empty());
        for pool in [
            pool("tank", &[], &["a", "b"]),
            pool("old", &[], &["c"]),
            pool("pond", &["d"], &["d", "e"]),
        ] {
            memory.keep(pool).await.expect("kept");
        }
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let memory = Memory::open(&path).expect("a file");
        let unnamed = memory.unnamed().await;
        let found: Vec<_> = unnamed
            .iter()
            .map(|pool| (pool.devices.join(" "), pool.read_only))
            .collect();
        assert_eq!(found, [("a b".to_owned(), false), ("c".to_owned(), true)]);
        let named = |device: &str| PoolSettings::new(vec![device.to_owned()]);
        let now = memory.devices_of(&named("d")).await;
        assert_eq!(now, Some(vec!["d".to_owned(), "e".to_owned()]));
        // Settings that were changed since.
        assert_eq!(memory.devices_of(&named("e")).await, None);
        // One that has again what the settings name, and one that is gone.
        memory.keep(pool("pond", &["d"], &["d"])).await.expect("kept");
        memory.forget("tank").await.expect("forgotten");
        let memory = Memory::open(&path).expect("a file");
        assert_eq!(memory.devices_of(&named("d")).await, None);
        assert!(memory.has("old").await && !memory.has("tank").await);
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_the_way_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.json");
        for text in [
            "{",
            "[]",
            "{\"version\":2,\"pools\":[]}",
            "{\"version\":1,\"pools\":[{}]}",
        ] {
            fs::write(&path, text).expect("written");
            let error = Memory::open(&path).expect_err(text).to_string();
            assert!(error.contains("move it away"), "{error}");
        }
    }

    #[tokio::test]
    async fn without_a_file_nothing_is_kept() {
        let memory = Memory::default();
        memory
            .keep(pool("tank", &[], &["a"]))
            .await
            .expect("nothing to do");
        assert!(!memory.has("tank").await);
    }
}
