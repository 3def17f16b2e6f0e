//! NodePublishVolume and NodeUnpublishVolume: a second mount of what is staged.

use std::path::{Path, PathBuf};

use pollux_api::csi::v1::NodePublishVolumeRequest;

use super::access::{make_directory, make_file, remove_place};
use super::record::Form;
use super::{Parts, absolute, volume_id};
use crate::capability::{Access, Capability, Sharing};
use crate::error::CallError;
use crate::host::Device;

/// A volume that is to be where it is used.
pub(super) struct Publishing {
    volume_id: String,
    staging_path: PathBuf,
    target_path: PathBuf,
    is_block: bool,
    sharing: Sharing,
    read_only: bool,
}

impl Publishing {
    pub(super) fn read(request: NodePublishVolumeRequest) -> Result<Self, CallError> {
        let volume_id = volume_id(request.volume_id)?;
        let target_path = absolute("target_path", request.target_path)?;
        let capability = Capability::read("volume_capability", request.volume_capability.as_ref())?;
        if request.staging_target_path.is_empty() {
            return Err(CallError::Precondition(
                "staging_target_path is missing: stage the volume first".to_owned(),
            ));
        }
        let staging_path = absolute("staging_target_path", request.staging_target_path)?;
        // One would hide the other, or end with it.
        if target_path.starts_with(&staging_path) || staging_path.starts_with(&target_path) {
            let problem = "is at, above or below staging_target_path: give another place";
            return Err(CallError::argument("target_path", problem));
        }
        Ok(Self {
            volume_id,
            staging_path,
            target_path,
            is_block: capability.access == Access::Block,
            sharing: capability.sharing,
            read_only: request.readonly || capability.sharing.is_read_only(),
        })
    }

    pub(super) fn volume_id(&self) -> &str {
        &self.volume_id
    }
}

impl Parts {
    pub(super) fn publish(&self, publishing: &Publishing) -> Result<(), CallError> {
        let not_staged = || {
            CallError::Precondition(format!(
                "volume {} is not staged at {} so: stage it first",
                publishing.volume_id,
                publishing.staging_path.display()
            ))
        };
        let record = self.records.get(&publishing.volume_id)?.ok_or_else(not_staged)?;
        if record.staging_path != publishing.staging_path
            || (record.form == Form::Block) != publishing.is_block
        {
            return Err(not_staged());
        }
        let device = self.find_device(&record.reach)?.ok_or_else(not_staged)?;
        if publishing.is_block {
            // A device file in a place where nothing can be written is a device all the same.
            if publishing.read_only && !record.reach.read_only && !device.read_only {
                return Err(CallError::argument(
                    "readonly",
                    "is asked for a block device that its node may write: publish the volume to the node for \
                     reading only",
                ));
            }
        } else {
            let staged = self
                .mounted_at(&publishing.staging_path)?
                .ok_or_else(not_staged)?;
            if staged.number != device.number && !self.is_on(&staged.source, &device)? {
                return Err(not_staged());
            }
        }
        let target = &publishing.target_path;
        if self.is_published(publishing, &device)? {
            return Ok(());
        }
        if publishing.sharing == Sharing::OnePlace {
            let others = self.other_places(&device, &[&publishing.staging_path, target])?;
            if let Some(other) = others.first() {
                return Err(CallError::Precondition(format!(
                    "volume {} is for one user at a time, and in use at {}",
                    publishing.volume_id,
                    other.display()
                )));
            }
        }
        let source = if publishing.is_block {
            make_file(target)?;
            &device.path
        } else {
            make_directory(target)?;
            &publishing.staging_path
        };
        let read_only = publishing.read_only && !publishing.is_block;
        self.machine.bind(source, target, read_only)?;
        Ok(())
    }

    /// Whether it is there already, as it is wanted.
    fn is_published(&self, publishing: &Publishing, device: &Device) -> Result<bool, CallError> {
        let target = &publishing.target_path;
        let Some(mount) = self.mounted_at(target)? else {
            return Ok(false);
        };
        let is_it = match publishing.is_block {
            true => mount.is_node_of(&device.name),
            false => mount.number == device.number || self.is_on(&mount.source, device)?,
        };
        if !is_it {
            return Err(CallError::Precondition(format!(
                "{} is mounted at {} already: unmount it first",
                mount.source,
                target.display()
            )));
        }
        if !publishing.is_block && mount.read_only != publishing.read_only && !mount.read_only_everywhere {
            return Err(CallError::Exists {
                kind: "published volume",
                id: publishing.volume_id.clone(),
                difference: format!(
                    "it can{} be written there",
                    if mount.read_only { "not" } else { "" }
                ),
            });
        }
        Ok(true)
    }

    pub(super) fn unpublish(&self, volume_id: &str, target: &Path) -> Result<(), CallError> {
        let record = self.records.get(volume_id)?;
        if record
            .as_ref()
            .is_some_and(|record| record.staging_path == target)
        {
            return Err(CallError::argument(
                "target_path",
                "is where the volume is staged: it is unstaged there, not unpublished",
            ));
        }
        self.unmount_all(target, record.as_ref())?;
        remove_place(target)
    }
}
