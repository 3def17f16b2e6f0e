//! Records of reservations as files: each in one of its own, named after the UUID of the namespace.
//!
//! A record is written to a temporary file, made durable, renamed over the old one, and the directory is
//! made durable, on a thread of the store's own. After a crash at any moment there is the old record or the
//! new one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use futures_channel::oneshot;
use uuid::Uuid;

use super::record::RECORD_BYTES_MAX;
use super::store::{ReservationStore, Saving, StoreError};
use crate::target::sync::lock;

/// Records that may wait to be written: one for each namespace is the most there ever are.
const WAITING_MAX: usize = 1024;

/// Records that a directory can hold.
const RECORDS_MAX: usize = 65_536;

/// What a file's name ends with, and that of one that is not whole yet.
const SUFFIX: &str = "reservations";
const TEMPORARY_SUFFIX: &str = "reservations-new";

struct Job {
    namespace: Uuid,
    record: Option<Vec<u8>>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// See the module.
pub struct FileReservationStore {
    directory: PathBuf,
    records: Arc<Mutex<BTreeMap<Uuid, Vec<u8>>>>,
    jobs: SyncSender<Job>,
}

impl FileReservationStore {
    /// Opens a directory, which is made if it is not there, and reads what it holds. This blocks.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`], [`StoreError::TooMany`].
    pub fn open(directory: &Path) -> Result<Arc<Self>, StoreError> {
        let failed = |what, error: io::Error| io_error(what, directory, &error);
        fs::create_dir_all(directory).map_err(|error| failed("could not make", error))?;
        let records = Arc::new(Mutex::new(read_all(directory)?));
        let (jobs, receiver) = sync_channel(WAITING_MAX);
        let (kept, place) = (records.clone(), directory.to_owned());
        std::thread::Builder::new()
            .name("reservations".to_owned())
            .spawn(move || serve(&receiver, &place, &kept))
            .map_err(|error| failed("could not start a thread for", error))?;
        Ok(Arc::new(Self {
            directory: directory.to_owned(),
            records,
            jobs,
        }))
    }
}

impl fmt::Debug for FileReservationStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FileReservationStore")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl ReservationStore for FileReservationStore {
    fn load(&self, namespace: Uuid) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(lock(&self.records).get(&namespace).cloned())
    }

    fn save(&self, namespace: Uuid, record: Option<Vec<u8>>) -> Saving {
        let (done, ended) = oneshot::channel();
        let job = Job {
            namespace,
            record,
            done,
        };
        let busy = || {
            io_error(
                "could not write",
                &self.directory,
                &io::ErrorKind::ResourceBusy.into(),
            )
        };
        let sent = self.jobs.try_send(job).map_err(|_| busy());
        let lost = busy();
        Box::pin(async move {
            sent?;
            ended.await.unwrap_or(Err(lost))
        })
    }
}

fn serve(jobs: &Receiver<Job>, directory: &Path, records: &Mutex<BTreeMap<Uuid, Vec<u8>>>) {
    for job in jobs {
        let written = write(directory, job.namespace, job.record.as_deref());
        if written.is_ok() {
            let mut records = lock(records);
            match job.record {
                Some(record) => records.insert(job.namespace, record),
                None => records.remove(&job.namespace),
            };
        }
        // The one who asked may have gone away.
        let _ = job.done.send(written);
    }
}

fn path_of(directory: &Path, namespace: Uuid, suffix: &str) -> PathBuf {
    directory.join(format!("{namespace}.{suffix}"))
}

fn write(directory: &Path, namespace: Uuid, record: Option<&[u8]>) -> Result<(), StoreError> {
    let path = path_of(directory, namespace, SUFFIX);
    let result = match record {
        Some(record) => replace(directory, namespace, &path, record),
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        },
    };
    result
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(|error| io_error("could not write", &path, &error))
}

fn replace(directory: &Path, namespace: Uuid, path: &Path, record: &[u8]) -> io::Result<()> {
    let temporary = path_of(directory, namespace, TEMPORARY_SUFFIX);
    let mut file = File::create(&temporary)?;
    file.write_all(record)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn read_all(directory: &Path) -> Result<BTreeMap<Uuid, Vec<u8>>, StoreError> {
    let failed = |path: &Path, error: io::Error| io_error("could not read", path, &error);
    let mut records = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(|error| failed(directory, error))? {
        let path = entry.map_err(|error| failed(directory, error))?.path();
        let Some(namespace) = namespace_of(&path) else {
            continue;
        };
        if records.len() >= RECORDS_MAX {
            return Err(StoreError::TooMany {
                place: directory.display().to_string(),
                max: RECORDS_MAX,
            });
        }
        let record = read(&path).map_err(|error| failed(&path, error))?;
        records.insert(namespace, record);
    }
    Ok(records)
}

/// One byte more than a record can have is enough to see that it is none.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut record = Vec::new();
    File::open(path)?
        .take(RECORD_BYTES_MAX as u64 + 1)
        .read_to_end(&mut record)?;
    Ok(record)
}

/// Whose record a file is; `None` for any other file.
fn namespace_of(path: &Path) -> Option<Uuid> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    (extension == SUFFIX).then(|| stem.parse().ok())?
}

fn io_error(what: &'static str, place: &Path, error: &io::Error) -> StoreError {
    StoreError::Io {
        what,
        place: place.display().to_string(),
        error: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn wait(mut saving: Saving) -> Result<(), StoreError> {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..10_000 {
            if let Poll::Ready(result) = saving.as_mut().poll(&mut context) {
                return result;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("not saved in 10 s");
    }

    #[test]
    fn what_was_saved_is_there_when_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made/on the way");
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let store = FileReservationStore::open(&directory).unwrap();
        assert_eq!(store.load(one), Ok(None));
        wait(store.save(one, Some(vec![1]))).unwrap();
        wait(store.save(two, Some(vec![2]))).unwrap();
        wait(store.save(one, Some(vec![3]))).unwrap();
        wait(store.save(two, None)).unwrap();
        wait(store.save(two, None)).unwrap();
        let again = FileReservationStore::open(&directory).unwrap();
        for store in [store, again] {
            assert_eq!(store.load(one), Ok(Some(vec![3])));
            assert_eq!(store.load(two), Ok(None));
        }
    }

    #[test]
    fn a_file_that_is_not_whole_is_not_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let namespace = Uuid::from_u128(1);
        fs::write(path_of(directory.path(), namespace, TEMPORARY_SUFFIX), [1]).unwrap();
        fs::write(directory.path().join("README"), [1]).unwrap();
        let store = FileReservationStore::open(directory.path()).unwrap();
        assert_eq!(store.load(namespace), Ok(None));
        let large = vec![7; RECORD_BYTES_MAX * 2];
        fs::write(path_of(directory.path(), namespace, SUFFIX), large).unwrap();
        let store = FileReservationStore::open(directory.path()).unwrap();
        assert_eq!(
            store.load(namespace).unwrap().unwrap().len(),
            RECORD_BYTES_MAX + 1
        );
    }

    #[test]
    fn what_cannot_be_written_is_an_error_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("store");
        let store = FileReservationStore::open(&place).unwrap();
        fs::remove_dir_all(&place).unwrap();
        let error = wait(store.save(Uuid::from_u128(1), Some(vec![1]))).unwrap_err();
        assert!(error.to_string().contains("store/00000000"), "{error}");
        assert_eq!(store.load(Uuid::from_u128(1)), Ok(None));
        fs::write(&place, [1]).unwrap();
        assert!(FileReservationStore::open(&place).is_err());
    }
}
