//! NodeStageVolume and NodeUnstageVolume.
//!
//! Staged, a volume is connected by all paths; one with a file system is mounted at the staging path too. A
//! device gets a file system only if nothing was ever written to it. One that holds anything else than what
//! was asked for is left alone.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use pollux_api::control::v1::HostSecrets;
use pollux_api::csi::v1::NodeStageVolumeRequest;

use super::access::make_directory;
use super::context::{Reach, SUBSYSTEM_PREFIX};
use super::record::Form;
use super::{Parts, Record, absolute, volume_id};
use crate::capability::{Access, Capability, FileSystem};
use crate::error::CallError;
use crate::host::{Content, Device};
use crate::secrets;

/// Flushes at most by which a host hears that caches were lost before it came.
const FLUSHES_MAX: u32 = 3;

/// The key in a volume's context of the file system that is made if none is asked for.
const CONTEXT_FS_TYPE: &str = "fsType";

/// A volume that is to be staged.
pub(super) struct Staging {
    record: Record,
    /// By what node and volume authenticate to each other, if they do.
    secrets: Option<HostSecrets>,
    /// Options of mount.
    options: Vec<String>,
    /// The file system that is made if the capability does not say.
    unsaid: FileSystem,
    /// Whether it is only to be read.
    read_only: bool,
}

impl Staging {
    pub(super) fn read(request: NodeStageVolumeRequest) -> Result<Self, CallError> {
        let volume_id = volume_id(request.volume_id)?;
        let staging_path = absolute("staging_target_path", request.staging_target_path)?;
        let capability = Capability::read("volume_capability", request.volume_capability.as_ref())?;
        let reach = Reach::read(&request.publish_context)?;
        let secrets = secrets::read(&request.secrets)?;
        let said = match request.volume_context.get(CONTEXT_FS_TYPE) {
            Some(name) => {
                let known = name.parse();
                Some(known.map_err(|problem: String| CallError::argument("volume_context", problem))?)
            }
            None => None,
        };
        let (form, options) = match capability.access {
            Access::Block => (Form::Block, Vec::new()),
            Access::Mount { file_system, options } => (Form::Mount(file_system.or(said)), options),
        };
        Ok(Self {
            secrets,
            options,
            unsaid: said.unwrap_or_default(),
            read_only: reach.read_only || capability.sharing.is_read_only(),
            record: Record {
                volume_id,
                staging_path,
                reach,
                form,
            },
        })
    }

    pub(super) fn volume_id(&self) -> &str {
        &self.record.volume_id
    }
}

/// How long each part of a call took, for those who read the log.
struct Laps {
    since: Instant,
    text: String,
}

impl Laps {
    fn begin() -> Self {
        Self {
            since: Instant::now(),
            text: String::new(),
        }
    }

    fn done(&mut self, part: &str) {
        let now = Instant::now();
        let separator = if self.text.is_empty() { "" } else { ", " };
        let milliseconds = now.duration_since(self.since).as_millis();
        self.text += &format!("{separator}{part} {milliseconds} ms");
        self.since = now;
    }
}

impl Parts {
    pub(super) fn stage(&self, staging: &Staging) -> Result<(), CallError> {
        let wanted = &staging.record;
        if let Some(before) = self.records.get(&wanted.volume_id)? {
            require_same(&before, wanted)?;
        }
        self.records.put(wanted)?;
        if let Some(secrets) = &staging.secrets {
            self.secrets.put(&wanted.volume_id, secrets.clone());
        }
        let mut laps = Laps::begin();
        let was_here = !self.machine.controllers(&wanted.reach.subsystem_nqn)?.is_empty();
        let problems = self.connect(&wanted.volume_id, &wanted.reach)?;
        for problem in problems {
            tracing::warn!(volume = wanted.volume_id, problem, "a path is missing");
        }
        laps.done("paths");
        let device = self.device(&wanted.reach, 1)?;
        laps.done("device");
        if !was_here && !staging.read_only {
            self.hear_of_losses(&wanted.volume_id, &device);
        }
        if let Form::Mount(file_system) = wanted.form {
            self.stage_mount(staging, &device, file_system, &mut laps)?;
        }
        tracing::info!(volume = wanted.volume_id, took = laps.text, "staged");
        Ok(())
    }

    /// Has the target tell this host whether caches were lost before, by a flush that fails: nobody here has
    /// written anything yet that could be gone, and whoever mounts the device would fail by it.
    fn hear_of_losses(&self, volume_id: &str, device: &Device) {
        for _ in 0..FLUSHES_MAX {
            match self.machine.flush(device) {
                Ok(()) => return,
                Err(error) => tracing::info!(
                    volume = volume_id, %error,
                    "caches may have been lost before the volume came here: nothing of this node was in them"
                ),
            }
            thread::sleep(self.settings.flush_pause);
        }
    }

    fn stage_mount(
        &self,
        staging: &Staging,
        device: &Device,
        wanted: Option<FileSystem>,
        laps: &mut Laps,
    ) -> Result<(), CallError> {
        let point = &staging.record.staging_path;
        make_directory(point)?;
        match self.mounted_at(point)? {
            Some(mount) if mount.number == device.number || self.is_on(&mount.source, device)? => {
                return Ok(());
            }
            Some(mount) => {
                return Err(CallError::Precondition(format!(
                    "{} is mounted at {} already: unmount it first",
                    mount.source,
                    point.display()
                )));
            }
            None => {}
        }
        let read_only = staging.read_only || device.read_only;
        // What is looked at is read again by the programs of file systems, and when it is mounted.
        let _held = self.machine.hold(device)?;
        let content = self.machine.content(device)?;
        laps.done("content");
        let (file_system, is_new) = match content {
            Content::Nothing if read_only => {
                return Err(CallError::Precondition(format!(
                    "volume {} has no file system yet, and may only be read: publish it for writing once",
                    staging.record.volume_id
                )));
            }
            Content::Nothing => {
                // Somebody may have the device and its content in hand.
                self.machine.require_unused(device)?;
                let file_system = wanted.unwrap_or(staging.unsaid);
                self.machine.format(device, file_system)?;
                laps.done("format");
                (file_system, true)
            }
            Content::FileSystem { kind, uuid } => {
                let file_system = self.known(&staging.record.volume_id, &kind, wanted)?;
                if file_system == FileSystem::Btrfs {
                    self.require_only(device, &uuid)?;
                }
                (file_system, false)
            }
            Content::Other(content) => {
                return Err(CallError::Precondition(format!(
                    "volume {} holds {content}: it is neither empty nor a file system, and is left alone",
                    staging.record.volume_id
                )));
            }
        };
        if !read_only && !is_new {
            self.machine.check(device, file_system)?;
            laps.done("check");
        }
        self.machine
            .mount(device, file_system, point, read_only, &staging.options)?;
        laps.done("mount");
        if read_only || is_new {
            return Ok(());
        }
        // A copy of a smaller volume, or one that grew while it was not used.
        self.machine.grow(device, file_system, point).map_err(|error| {
            // The call fails as a whole.
            if let Err(error) = self.machine.unmount(point) {
                tracing::warn!(%error, "a volume stays mounted that could not grow");
            }
            error.into()
        })
    }

    /// The file system that is there, if it is one that was asked for.
    fn known(
        &self,
        volume_id: &str,
        kind: &str,
        wanted: Option<FileSystem>,
    ) -> Result<FileSystem, CallError> {
        let found: Result<FileSystem, String> = kind.parse();
        match (found, wanted) {
            (Ok(found), None) => Ok(found),
            (Ok(found), Some(wanted)) if found == wanted => Ok(found),
            (_, wanted) => {
                let wanted = wanted.map_or("one that is known", FileSystem::name);
                Err(CallError::Precondition(format!(
                    "volume {volume_id} has the file system {kind}, and {wanted} was asked for: ask for \
                     {kind}"
                )))
            }
        }
    }

    /// Whether a mount's source is a device: Btrfs has numbers of its own.
    pub(super) fn is_on(&self, source: &str, device: &Device) -> Result<bool, CallError> {
        Ok(Path::new(source) == device.path && self.machine.subsystem_of(device.number)?.is_some())
    }

    /// Btrfs takes devices with one UUID for one file system: a copy must not meet its original on a node.
    fn require_only(&self, device: &Device, uuid: &str) -> Result<(), CallError> {
        for record in self.records.all()? {
            let Some(other) = self.find_device(&record.reach)? else {
                continue;
            };
            if other.number == device.number || uuid.is_empty() {
                continue;
            }
            if matches!(self.machine.content(&other)?, Content::FileSystem { uuid: same, .. } if same == uuid)
            {
                return Err(CallError::Precondition(format!(
                    "volume {} on this node has the same Btrfs UUID, as a copy and its original have: use \
                     one of them on another node",
                    record.volume_id
                )));
            }
        }
        Ok(())
    }

    pub(super) fn unstage(&self, volume_id: &str, path: &Path) -> Result<(), CallError> {
        let Some(record) = self.records.get(volume_id)? else {
            return self.unstage_unrecorded(path);
        };
        if record.staging_path != path {
            return Err(CallError::Precondition(format!(
                "volume {volume_id} is staged at {}",
                record.staging_path.display()
            )));
        }
        if let Some(device) = self.find_device(&record.reach)? {
            let others = self.other_places(&device, &[path])?;
            require_nowhere(volume_id, &others)?;
        }
        self.let_go_on(path, Some(&record))?;
        self.unmount_all(path, Some(&record))?;
        if let Some(device) = self.find_device(&record.reach)? {
            self.machine.require_unused(&device)?;
        }
        self.disconnect(&record.reach.subsystem_nqn)?;
        self.secrets.forget(volume_id);
        self.records.delete(volume_id)
    }

    /// Whoever held a file system still may have been killed. Unmounted so, it could never be let go.
    fn let_go_on(&self, path: &Path, record: Option<&Record>) -> Result<(), CallError> {
        if self.own_mount_at(path, record)?.is_some()
            && let Err(error) = self.machine.freeze(path, false)
        {
            // As a rule: nobody held it.
            tracing::debug!(%error, "it was not still");
        }
        Ok(())
    }

    /// Undoes a staging that nothing is known of, by what is mounted: the records may be lost.
    fn unstage_unrecorded(&self, path: &Path) -> Result<(), CallError> {
        let Some(mount) = self.mounted_at(path)? else {
            return Ok(());
        };
        let subsystem_nqn = self.machine.subsystem_of(mount.number)?;
        let Some(subsystem_nqn) = subsystem_nqn.filter(|nqn| nqn.starts_with(SUBSYSTEM_PREFIX)) else {
            return Err(CallError::Precondition(format!(
                "{} is mounted at {}, and is no volume of this driver",
                mount.source,
                path.display()
            )));
        };
        let others: Vec<PathBuf> = self
            .machine
            .mounts()?
            .into_iter()
            .filter(|other| other.number == mount.number && other.point != mount.point)
            .map(|other| other.point)
            .collect();
        require_nowhere(&mount.source, &others)?;
        self.let_go_on(path, None)?;
        self.unmount_all(path, None)?;
        self.disconnect(&subsystem_nqn)
    }
}

fn require_nowhere(volume: &str, places: &[PathBuf]) -> Result<(), CallError> {
    match places.first() {
        None => Ok(()),
        Some(place) => Err(CallError::Precondition(format!(
            "volume {volume} is still in use at {}: unpublish it there first",
            place.display()
        ))),
    }
}

/// Whether a volume that is staged is staged as it is wanted.
fn require_same(before: &Record, wanted: &Record) -> Result<(), CallError> {
    let is_same = before.staging_path == wanted.staging_path
        && before.reach.subsystem_nqn == wanted.reach.subsystem_nqn
        && before.reach.namespace_uuid == wanted.reach.namespace_uuid;
    if !is_same {
        return Err(CallError::Precondition(format!(
            "volume {} is staged at {} already, or is another one of the same name: unstage it first",
            before.volume_id,
            before.staging_path.display()
        )));
    }
    // Where targets listen may change; all else may not.
    if before.form != wanted.form || before.reach.read_only != wanted.reach.read_only {
        return Err(CallError::Exists {
            kind: "staged volume",
            id: before.volume_id.clone(),
            difference: "it has another capability".to_owned(),
        });
    }
    Ok(())
}
