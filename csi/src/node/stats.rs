//! NodeGetVolumeStats.

use std::path::Path;

use pollux_api::csi::v1::volume_usage::Unit;
use pollux_api::csi::v1::{NodeGetVolumeStatsResponse, VolumeCondition, VolumeUsage};

use super::record::Form;
use super::{Parts, Record};
use crate::error::CallError;
use crate::host::{Device, Mount};

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Parts {
    pub(super) fn stats(
        &self,
        volume_id: &str,
        path: &Path,
    ) -> Result<NodeGetVolumeStatsResponse, CallError> {
        let record = self.staged(volume_id)?;
        let not_there = || CallError::NotFound {
            kind: "volume at",
            id: path.display().to_string(),
        };
        let device = self.find_device(&record.reach)?.ok_or_else(not_there)?;
        let mount = self.mounted_at(path)?;
        let usage = match (record.form, &mount) {
            (Form::Block, Some(mount)) if mount.is_node_of(&device.name) => block_usage(&device),
            (Form::Block, None) if path == record.staging_path => block_usage(&device),
            (Form::Mount(_), Some(mount))
                if mount.number == device.number || self.is_on(&mount.source, &device)? =>
            {
                self.mount_usage(path)?
            }
            _ => return Err(not_there()),
        };
        Ok(NodeGetVolumeStatsResponse {
            usage,
            volume_condition: Some(self.condition(&record, mount.as_ref())?),
        })
    }

    fn mount_usage(&self, path: &Path) -> Result<Vec<VolumeUsage>, CallError> {
        let usage = self.machine.usage(path)?;
        let bytes = VolumeUsage {
            available: signed(usage.bytes_available),
            total: signed(usage.bytes),
            used: signed(usage.bytes.saturating_sub(usage.bytes_free)),
            unit: Unit::Bytes.into(),
        };
        let inodes = VolumeUsage {
            available: signed(usage.inodes_free),
            total: signed(usage.inodes),
            used: signed(usage.inodes.saturating_sub(usage.inodes_free)),
            unit: Unit::Inodes.into(),
        };
        Ok(vec![bytes, inodes])
    }

    /// Whether this node can use a volume: by how many paths, and whether its file system still takes writes.
    fn condition(&self, record: &Record, mount: Option<&Mount>) -> Result<VolumeCondition, CallError> {
        let controllers = self.machine.controllers(&record.reach.subsystem_nqn)?;
        let live = controllers
            .iter()
            .filter(|controller| controller.state == "live")
            .count();
        let serving = controllers
            .iter()
            .filter(|controller| controller.serves())
            .count();
        let wanted = record.reach.paths.len().max(controllers.len());
        let mut problems = Vec::new();
        if serving == 0 {
            problems.push("no path leads to a target that serves it".to_owned());
        }
        if live < wanted {
            problems.push(format!("{live} of {wanted} paths are connected"));
        }
        let has_stopped = mount.is_some_and(|mount| mount.read_only_everywhere) && !record.reach.read_only;
        if has_stopped {
            problems.push("its file system takes no writes any more, or was mounted so".to_owned());
        }
        Ok(VolumeCondition {
            abnormal: serving == 0 || live < wanted || has_stopped,
            message: match problems.is_empty() {
                true => format!("{live} paths are connected"),
                false => problems.join("; "),
            },
        })
    }
}

fn block_usage(device: &Device) -> Vec<VolumeUsage> {
    vec![VolumeUsage {
        total: signed(device.size_bytes),
        unit: Unit::Bytes.into(),
        ..VolumeUsage::default()
    }]
}
