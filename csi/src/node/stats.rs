//! NodeGetVolumeStats, NodeGetVolumeHealth and NodeGetStorageHealth.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use pollux_api::csi::v1::node_get_storage_health_response::StorageBackendHealth;
use pollux_api::csi::v1::volume_health::VolumeHealthEntry;
use pollux_api::csi::v1::volume_usage::Unit;
use pollux_api::csi::v1::{
    NodeGetStorageHealthResponse, NodeGetVolumeHealthResponse, NodeGetVolumeStatsResponse,
    StorageHealthErrorType, VolumeCondition, VolumeHealth, VolumeHealthErrorType, VolumeUsage,
};

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

    /// How this node can use a volume, in the words of CSI 1.12.
    fn condition(&self, record: &Record, mount: Option<&Mount>) -> Result<VolumeCondition, CallError> {
        let (live, troubles) = self.troubles(record, mount)?;
        let problems: Vec<&str> = troubles.iter().map(|trouble| trouble.message.as_str()).collect();
        Ok(VolumeCondition {
            abnormal: !troubles.is_empty(),
            message: match problems.is_empty() {
                true => format!("{live} paths are connected"),
                false => problems.join("; "),
            },
        })
    }

    /// By how many paths this node reaches a volume, and what is wrong: with paths, and with its file system
    /// if that takes no writes any more.
    fn troubles(
        &self,
        record: &Record,
        mount: Option<&Mount>,
    ) -> Result<(usize, Vec<VolumeHealthEntry>), CallError> {
        let controllers = self.machine.controllers(&record.reach.subsystem_nqn)?;
        let live = controllers
            .iter()
            .filter(|controller| controller.is_live())
            .count();
        let serving = controllers
            .iter()
            .filter(|controller| controller.serves())
            .count();
        let wanted = record.reach.paths.len().max(controllers.len());
        let has_stopped = mount.is_some_and(|mount| mount.read_only_everywhere) && !record.reach.read_only;
        let troubles = [
            (serving == 0).then(|| VolumeHealthEntry {
                status: VolumeHealthErrorType::Inaccessible.into(),
                reason: "NoPathServes".to_owned(),
                message: "no path leads to a target that serves it".to_owned(),
            }),
            (live < wanted).then(|| VolumeHealthEntry {
                status: VolumeHealthErrorType::Degraded.into(),
                reason: "PathsMissing".to_owned(),
                message: format!("{live} of {wanted} paths are connected"),
            }),
            has_stopped.then(|| VolumeHealthEntry {
                status: VolumeHealthErrorType::Degraded.into(),
                reason: "ReadOnlyFileSystem".to_owned(),
                message: "its file system takes no writes any more, or was mounted so".to_owned(),
            }),
        ];
        Ok((live, troubles.into_iter().flatten().collect()))
    }

    /// What is wrong with a volume as it is seen from here, wherever it is mounted.
    pub(super) fn health(&self, volume_id: &str) -> Result<NodeGetVolumeHealthResponse, CallError> {
        let record = self.staged(volume_id)?;
        let mount = match record.form {
            Form::Block => None,
            Form::Mount(_) => self.mounted_at(&record.staging_path)?,
        };
        let (_, health_statuses) = self.troubles(&record, mount.as_ref())?;
        Ok(NodeGetVolumeHealthResponse {
            volume_health: Some(VolumeHealth {
                volume_id: record.volume_id,
                health_statuses,
            }),
        })
    }

    /// Which of the targets that staged volumes need are not reached from here by any of them.
    pub(super) fn storage_health(&self) -> Result<NodeGetStorageHealthResponse, CallError> {
        let mut reached: BTreeMap<SocketAddr, bool> = BTreeMap::new();
        for record in self.records.all()? {
            for address in &record.reach.paths {
                reached.entry(*address).or_default();
            }
            for controller in self.machine.controllers(&record.reach.subsystem_nqn)? {
                if let Some(address) = controller.address {
                    *reached.entry(address).or_default() |= controller.is_live();
                }
            }
        }
        let missing: Vec<String> = reached
            .iter()
            .filter(|(_, is_reached)| !**is_reached)
            .map(|(address, _)| address.to_string())
            .collect();
        let (status, reason) = match missing.len() == reached.len() {
            true => (StorageHealthErrorType::StorageUnreachable, "NoTargetReached"),
            false => (StorageHealthErrorType::StorageDegraded, "TargetsMissing"),
        };
        let trouble = (!missing.is_empty()).then(|| StorageBackendHealth {
            status: status.into(),
            reason: reason.to_owned(),
            message: format!(
                "{} of {} targets are not reached: {}",
                missing.len(),
                reached.len(),
                missing.join(", ")
            ),
            volume_capability: None,
        });
        Ok(NodeGetStorageHealthResponse {
            backend_health: trouble.into_iter().collect(),
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
