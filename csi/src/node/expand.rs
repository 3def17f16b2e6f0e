//! NodeExpandVolume.

use std::path::PathBuf;

use pollux_api::csi::v1::{CapacityRange, NodeExpandVolumeRequest, NodeExpandVolumeResponse};

use super::record::Form;
use super::{Parts, required, volume_id};
use crate::capability::{Capability, FileSystem};
use crate::error::CallError;

/// A volume whose content is to grow.
pub(super) struct Expansion {
    volume_id: String,
    volume_path: PathBuf,
    required_bytes: u64,
    limit_bytes: u64,
}

impl Expansion {
    pub(super) fn read(request: NodeExpandVolumeRequest) -> Result<Self, CallError> {
        let volume_id = volume_id(request.volume_id)?;
        let volume_path = required("volume_path", request.volume_path)?;
        if request.volume_capability.is_some() {
            Capability::read("volume_capability", request.volume_capability.as_ref())?;
        }
        let CapacityRange {
            required_bytes,
            limit_bytes,
        } = request.capacity_range.unwrap_or_default();
        let negative = |_| CallError::argument("capacity_range", "is less than nothing");
        Ok(Self {
            volume_id,
            volume_path: volume_path.into(),
            required_bytes: u64::try_from(required_bytes).map_err(negative)?,
            limit_bytes: u64::try_from(limit_bytes).map_err(negative)?,
        })
    }

    pub(super) fn volume_id(&self) -> &str {
        &self.volume_id
    }
}

impl Parts {
    pub(super) fn expand(&self, expansion: &Expansion) -> Result<NodeExpandVolumeResponse, CallError> {
        let record = self.staged(&expansion.volume_id)?;
        let path = &expansion.volume_path;
        let not_there = || CallError::NotFound {
            kind: "volume at",
            id: path.display().to_string(),
        };
        let mount = self.mounted_at(path)?;
        let device = self.device(&record.reach, expansion.required_bytes)?;
        if expansion.limit_bytes > 0 && device.size_bytes > expansion.limit_bytes {
            return Err(CallError::OutOfRange(format!(
                "the volume has {} bytes, and {} are the limit",
                device.size_bytes, expansion.limit_bytes
            )));
        }
        match (record.form, mount) {
            (Form::Block, Some(mount)) if mount.is_node_of(&device.name) => {}
            (Form::Block, None) if *path == record.staging_path => {}
            (Form::Mount(_), Some(mount))
                if mount.number == device.number || self.is_on(&mount.source, &device)? =>
            {
                if mount.read_only_everywhere {
                    return Err(CallError::Precondition(format!(
                        "volume {} is mounted for reading only and cannot grow here",
                        expansion.volume_id
                    )));
                }
                let file_system: Result<FileSystem, String> = mount.kind.parse();
                let file_system = file_system.map_err(CallError::Precondition)?;
                // Where it may be written, which may not be so at each of its users.
                self.machine.grow(&device, file_system, &record.staging_path)?;
            }
            _ => return Err(not_there()),
        }
        Ok(NodeExpandVolumeResponse {
            capacity_bytes: i64::try_from(device.size_bytes).unwrap_or(i64::MAX),
        })
    }
}
