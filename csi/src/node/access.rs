//! What is needed by several calls: paths, the device of a volume, and what is mounted where.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pollux_api::control::v1::HostSecrets;

use super::context::{Reach, SUBSYSTEM_PREFIX};
use super::{Parts, Record, file_error};
use crate::error::CallError;
use crate::host::{Connection, Controller, Device, HostError, Mount};

/// Between two looks whether a device is there, or gone.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long the others wait for the path that is named first, by which the volume is served: the kernel
/// connects one after the other, and by another one nothing may be read yet.
const HEAD_START: Duration = Duration::from_millis(100);

/// How long paths may take to go.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// Mounts at one place, one above the other, that are unmounted.
const STACKED_MOUNTS_MAX: usize = 16;

/// Something that others wait for.
#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        // Nothing that is done with the lock held can leave it half done.
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    /// Returns once it is open, or after a time.
    fn wait(&self, at_most: Duration) {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it is open makes no difference any more.
        drop(
            self.opened
                .wait_timeout_while(is_open, at_most, |is_open| !*is_open),
        );
    }
}

impl Parts {
    /// Connects the paths that are missing. Returns why some of them could not be.
    ///
    /// All at once but for a head start of the first one, and those that take long are left to themselves
    /// once the volume is there by another.
    pub(super) fn connect(&self, volume_id: &str, reach: &Reach) -> Result<Vec<String>, CallError> {
        let connected = self.machine.controllers(&reach.subsystem_nqn)?;
        let is_missing = |address: &&std::net::SocketAddr| {
            !connected
                .iter()
                .any(|controller| controller.address.as_ref() == Some(*address))
        };
        let missing: Vec<_> = reach.paths.iter().filter(is_missing).copied().collect();
        let secrets = match missing.is_empty() {
            true => None,
            false => self.secrets(volume_id, &connected)?,
        };
        let (sender, results) = mpsc::channel();
        let first = Arc::new(Gate::default());
        for (index, address) in missing.iter().enumerate() {
            let address = *address;
            let first = first.clone();
            let sender = sender.clone();
            let machine = self.machine.clone();
            let (records, turns) = (self.records.clone(), self.turns.clone());
            let settings = (self.settings.host.clone(), self.settings.times);
            let secrets = secrets.clone();
            let (volume_id, subsystem_nqn) = (volume_id.to_owned(), reach.subsystem_nqn.clone());
            thread::spawn(move || {
                if index > 0 {
                    first.wait(HEAD_START);
                }
                let result = machine.connect(&Connection {
                    subsystem_nqn: &subsystem_nqn,
                    host: &settings.0,
                    address,
                    secrets: secrets.as_ref(),
                    times: settings.1,
                });
                if index == 0 {
                    first.open();
                }
                let problem = result.as_ref().err().map(HostError::to_string);
                if sender.send(result).is_ok() {
                    return;
                }
                // Nobody listens any more: it took too long.
                if let Some(problem) = problem {
                    tracing::warn!(volume = volume_id, problem, "a path is missing");
                }
                // The volume may be gone from here by now. It may also be about to come back: whoever does
                // that goes first, and has a record of it.
                let _turn = turns.of(&volume_id).blocking_lock_owned();
                if matches!(records.get(&volume_id), Ok(None)) {
                    let late = machine.controllers(&subsystem_nqn).unwrap_or_default();
                    for controller in late {
                        if let Err(error) = machine.disconnect(&controller) {
                            tracing::warn!(%error, volume = volume_id, "a late path stays connected");
                        }
                    }
                }
            });
        }
        drop(sender);
        let mut problems = Vec::new();
        let mut working = connected.len();
        let began = Instant::now();
        for _ in &missing {
            let patience = match working {
                0 => self.settings.device_timeout,
                _ => self.settings.other_paths_patience,
            };
            match results.recv_timeout(patience.saturating_sub(began.elapsed())) {
                Ok(Ok(())) => working += 1,
                Ok(Err(error)) => problems.push(error),
                Err(_) => break,
            }
        }
        match (working, problems.first()) {
            (0, Some(problem)) => Err(problem.clone().into()),
            (0, None) => {
                Err(HostError::kernel("connect to", &reach.subsystem_nqn, "no target answers").into())
            }
            _ => Ok(problems.iter().map(HostError::to_string).collect()),
        }
    }

    /// By what the paths of a volume are connected: what came with the call that staged it, or, if that was
    /// before this service was started, what the kernel has for the paths that are there.
    fn secrets(&self, volume_id: &str, connected: &[Controller]) -> Result<Option<HostSecrets>, CallError> {
        if let Some(kept) = self.secrets.get(volume_id) {
            return Ok(Some(kept));
        }
        for controller in connected {
            if let Some(known) = self.machine.secrets(controller)? {
                self.secrets.put(volume_id, known.clone());
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    /// The device of a volume, if it is there.
    pub(super) fn find_device(&self, reach: &Reach) -> Result<Option<Device>, CallError> {
        let mut devices = self.machine.devices(&reach.subsystem_nqn, reach.namespace_uuid)?;
        if devices.len() > 1 {
            let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
            return Err(CallError::Precondition(format!(
                "the paths to {} are separate devices ({}): set nvme_core.multipath=Y on the kernel's \
                 command line of this node",
                reach.subsystem_nqn,
                names.join(", ")
            )));
        }
        Ok(devices.pop())
    }

    /// Waits until the device of a volume is there, at least this large.
    pub(super) fn device(&self, reach: &Reach, least_bytes: u64) -> Result<Device, CallError> {
        let began = Instant::now();
        let mut rescanned = false;
        loop {
            let found = self.find_device(reach)?;
            let state = match found {
                Some(device) if device.size_bytes >= least_bytes => return Ok(device),
                Some(device) => format!("{} has {} bytes", device.name, device.size_bytes),
                None => "no device has appeared".to_owned(),
            };
            if began.elapsed() >= self.settings.device_timeout {
                return Err(CallError::Patience {
                    kind: "namespace",
                    id: reach.namespace_uuid.to_string(),
                    seconds: self.settings.device_timeout.as_secs(),
                    state,
                });
            }
            // The kernel is told of changes, and looks by itself; asked for, it looks now.
            if !rescanned || began.elapsed() > self.settings.device_timeout / 2 {
                rescanned = true;
                for controller in self.machine.controllers(&reach.subsystem_nqn)? {
                    self.machine.rescan(&controller)?;
                }
            }
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// Lets all paths to a subsystem go, and waits until they are gone.
    pub(super) fn disconnect(&self, subsystem_nqn: &str) -> Result<(), CallError> {
        let began = Instant::now();
        let mut told: Vec<String> = Vec::new();
        loop {
            let controllers = self.machine.controllers(subsystem_nqn)?;
            if controllers.is_empty() {
                return Ok(());
            }
            for controller in controllers {
                if !told.contains(&controller.name) {
                    self.machine.disconnect(&controller)?;
                    told.push(controller.name);
                }
            }
            if began.elapsed() >= DISCONNECT_PATIENCE {
                return Err(CallError::Patience {
                    kind: "subsystem",
                    id: subsystem_nqn.to_owned(),
                    seconds: DISCONNECT_PATIENCE.as_secs(),
                    state: "its paths are still there".to_owned(),
                });
            }
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// What is mounted at a place: what was mounted last counts.
    pub(super) fn mounted_at(&self, point: &Path) -> Result<Option<Mount>, CallError> {
        let mounts = self.machine.mounts()?;
        let seen = seen_as(point);
        Ok(mounts.into_iter().rev().find(|mount| mount.point == seen))
    }

    /// What is mounted at a place, if it is of the volume of a record; without a record, of any volume of
    /// this driver.
    ///
    /// # Errors
    ///
    /// [`CallError::Precondition`] if something else is: that is left alone.
    pub(super) fn own_mount_at(
        &self,
        point: &Path,
        record: Option<&Record>,
    ) -> Result<Option<Mount>, CallError> {
        let Some(mount) = self.mounted_at(point)? else {
            return Ok(None);
        };
        if self.is_own(&mount, record)? {
            return Ok(Some(mount));
        }
        let whose = match record {
            Some(record) => format!("not the volume {}", record.volume_id),
            None => "no volume of this driver".to_owned(),
        };
        Err(CallError::Precondition(format!(
            "{} is mounted at {}, and is {whose}",
            mount.source,
            point.display()
        )))
    }

    fn is_own(&self, mount: &Mount, record: Option<&Record>) -> Result<bool, CallError> {
        let device = match record {
            Some(record) => self.find_device(&record.reach)?,
            None => None,
        };
        if let Some(device) = &device
            && (mount.shows(device) || self.is_on(&mount.source, device)?)
        {
            return Ok(true);
        }
        if let Some(subsystem_nqn) = self.machine.subsystem_of(mount.number)? {
            return Ok(match record {
                Some(record) => subsystem_nqn == record.reach.subsystem_nqn,
                None => subsystem_nqn.starts_with(SUBSYSTEM_PREFIX),
            });
        }
        // The kernel has no such device any more, if it was one of ours: all its paths are gone. Btrfs and
        // files of devices have numbers of their own, and count only if nothing better is known.
        let source = mount.source.strip_prefix("/dev/");
        let was_device = source.is_some_and(is_namespace);
        Ok(match device {
            Some(_) => was_device && mount.kind != "btrfs",
            None => was_device || mount.node().is_some_and(is_namespace),
        })
    }

    /// Unmounts all that is mounted at a place of a volume.
    ///
    /// # Errors
    ///
    /// As of [`Self::own_mount_at`]; also for what is below what was unmounted.
    pub(super) fn unmount_all(&self, point: &Path, record: Option<&Record>) -> Result<(), CallError> {
        for _ in 0..STACKED_MOUNTS_MAX {
            if self.own_mount_at(point, record)?.is_none() {
                return Ok(());
            }
            self.machine.unmount(point)?;
        }
        Err(HostError::kernel("unmount", point.display(), "too much is mounted there").into())
    }

    /// Where else the device of a volume is mounted.
    pub(super) fn other_places(&self, device: &Device, but: &[&Path]) -> Result<Vec<PathBuf>, CallError> {
        let but: Vec<PathBuf> = but.iter().map(|path| seen_as(path)).collect();
        let mounts = self.machine.mounts()?;
        let places = mounts
            .into_iter()
            .filter(|mount| mount.shows(device) && !but.contains(&mount.point));
        Ok(places.map(|mount| mount.point).collect())
    }

    /// The record of a volume that has to be staged.
    pub(super) fn staged(&self, volume_id: &str) -> Result<Record, CallError> {
        self.records.get(volume_id)?.ok_or_else(|| CallError::NotFound {
            kind: "volume that is staged on this node as",
            id: volume_id.to_owned(),
        })
    }
}

/// How the kernel calls a place: links on the way to it are followed. One that is not there is called as it
/// is.
fn seen_as(point: &Path) -> PathBuf {
    std::fs::canonicalize(point).unwrap_or_else(|_| point.to_owned())
}

/// Whether a name is one of the kernel's for a whole namespace, such as `nvme0n1`.
fn is_namespace(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
    numbers.is_some_and(|(subsystem, namespace)| is_number(subsystem) && is_number(namespace))
}

/// Makes a directory, and those on the way.
pub(super) fn make_directory(path: &Path) -> Result<(), CallError> {
    std::fs::create_dir_all(path).map_err(|error| file_error("make", path, &error))
}

/// Makes an empty file, and the directories on the way; one that is there stays.
pub(super) fn make_file(path: &Path) -> Result<(), CallError> {
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    let made = std::fs::OpenOptions::new().create(true).append(true).open(path);
    made.map(drop).map_err(|error| file_error("make", path, &error))
}

/// Removes a directory or file that a volume was mounted at. What has content was no such place, and stays.
pub(super) fn remove_place(path: &Path) -> Result<(), CallError> {
    let failed = |error: std::io::Error| file_error("remove", path, &error);
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if metadata.is_dir() {
        return std::fs::remove_dir(path).map_err(failed);
    }
    if metadata.is_file() && metadata.len() == 0 {
        return std::fs::remove_file(path).map_err(failed);
    }
    Err(failed(std::io::Error::other(
        "it is no place for a volume: it has content",
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_by_their_names() {
        for name in ["nvme0n1", "nvme12n345"] {
            assert!(is_namespace(name), "{name}");
        }
        for name in [
            "",
            "nvme",
            "nvme0",
            "nvme0n",
            "nvmen1",
            "nvme0n1p2",
            "nvme0c1n1",
            "sda",
            "x/nvme0n1",
        ] {
            assert!(!is_namespace(name), "{name}");
        }
    }

    #[test]
    fn places_are_made_and_removed_and_content_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a/b/file");
        make_file(&file).expect("it can be made");
        make_file(&file).expect("it is there");
        assert!(remove_place(&directory.path().join("a")).is_err());
        remove_place(&file).expect("it is empty");
        remove_place(&file).expect("it is gone");
        remove_place(&directory.path().join("a/b")).expect("it is empty");
        std::fs::write(file.with_file_name("x"), "data").expect_err("its directory is gone");
        let full = directory.path().join("a/data");
        std::fs::write(&full, "data").expect("it can be written");
        assert!(remove_place(&full).is_err());
        assert_eq!(std::fs::read(&full).expect("it is there"), b"data");
    }
}
