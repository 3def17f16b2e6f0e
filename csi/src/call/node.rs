//! Calls of the node service.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use pollux_api::csi::v1::node_client::NodeClient;
use pollux_api::csi::v1::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
};
use tonic::Status;
use tonic::transport::Channel;

use super::{FormArguments, SecretArguments, pair};

/// A call of the node service.
#[derive(Debug, Subcommand)]
pub enum NodeCall {
    /// What the node is called, and where it stands.
    Info,
    /// Connect a volume, and mount it if it is no block device.
    Stage {
        /// Which, where and as what.
        #[command(flatten)]
        volume: VolumeArguments,
        /// As the control plane told it: subsystemNqn, namespaceUuid, paths, readOnly.
        #[arg(long = "context", value_name = "KEY=VALUE", value_parser = pair)]
        context: Vec<(String, String)>,
        /// By what node and volume authenticate to each other.
        #[command(flatten)]
        secrets: SecretArguments,
    },
    /// Undo that.
    Unstage {
        /// Which, where and as what.
        #[command(flatten)]
        volume: VolumeArguments,
    },
    /// Put a volume where it is used.
    Publish {
        /// Which, where and as what.
        #[command(flatten)]
        volume: VolumeArguments,
        /// Where.
        #[arg(long, value_name = "PATH")]
        target: String,
        /// For reading only.
        #[arg(long)]
        read_only: bool,
    },
    /// Undo that.
    Unpublish {
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
        /// Where it is.
        #[arg(long, value_name = "PATH")]
        target: String,
    },
    /// How full a volume is, and whether it is well.
    Stats {
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
        /// Where it is.
        #[arg(long, value_name = "PATH")]
        target: String,
    },
    /// Let what is on a volume grow.
    Expand {
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
        /// Where it is.
        #[arg(long, value_name = "PATH")]
        target: String,
        /// Bytes that it has by now.
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        bytes: i64,
    },
}

/// Which volume, where it is staged, and as what.
#[derive(Debug, Args)]
pub struct VolumeArguments {
    /// The volume.
    #[arg(long, value_name = "ID")]
    volume: String,
    /// Where it is staged.
    #[arg(long, value_name = "PATH")]
    staging: String,
    #[command(flatten)]
    form: FormArguments,
    /// As a file system: ext4, xfs or btrfs; empty for the default.
    #[arg(long, value_name = "KIND", default_value = "", conflicts_with = "block")]
    fs: String,
    /// Options of mount.
    #[arg(long = "option", value_name = "OPTION")]
    options: Vec<String>,
}

impl VolumeArguments {
    fn capability(&self) -> Option<VolumeCapability> {
        Some(self.form.capability(&self.fs, &self.options))
    }
}

/// Makes a call; what was answered, line by line.
pub(super) async fn answer(channel: Channel, call: &NodeCall) -> Result<Vec<String>, Status> {
    let mut node = NodeClient::new(channel);
    match call {
        NodeCall::Info => {
            let info = node.node_get_info(NodeGetInfoRequest {}).await?.into_inner();
            let mut lines = vec![format!("node {}", info.node_id)];
            let segments = info.accessible_topology.unwrap_or_default().segments;
            lines.extend(segments.iter().map(|(key, value)| format!("{key}={value}")));
            Ok(lines)
        }
        NodeCall::Stage {
            volume,
            context,
            secrets,
        } => {
            let request = NodeStageVolumeRequest {
                volume_id: volume.volume.clone(),
                publish_context: HashMap::from_iter(context.iter().cloned()),
                staging_target_path: volume.staging.clone(),
                volume_capability: volume.capability(),
                secrets: secrets.read()?,
                ..NodeStageVolumeRequest::default()
            };
            node.node_stage_volume(request).await?;
            Ok(Vec::new())
        }
        NodeCall::Unstage { volume } => {
            let request = NodeUnstageVolumeRequest {
                volume_id: volume.volume.clone(),
                staging_target_path: volume.staging.clone(),
            };
            node.node_unstage_volume(request).await?;
            Ok(Vec::new())
        }
        NodeCall::Publish {
            volume,
            target,
            read_only,
        } => {
            let request = NodePublishVolumeRequest {
                volume_id: volume.volume.clone(),
                staging_target_path: volume.staging.clone(),
                target_path: target.clone(),
                volume_capability: volume.capability(),
                readonly: *read_only,
                ..NodePublishVolumeRequest::default()
            };
            node.node_publish_volume(request).await?;
            Ok(Vec::new())
        }
        NodeCall::Unpublish { volume, target } => {
            let request = NodeUnpublishVolumeRequest {
                volume_id: volume.clone(),
                target_path: target.clone(),
            };
            node.node_unpublish_volume(request).await?;
            Ok(Vec::new())
        }
        NodeCall::Stats { volume, target } => {
            let request = NodeGetVolumeStatsRequest {
                volume_id: volume.clone(),
                volume_path: target.clone(),
                ..NodeGetVolumeStatsRequest::default()
            };
            let stats = node.node_get_volume_stats(request).await?.into_inner();
            let condition = stats.volume_condition.clone().unwrap_or_default();
            let mut lines = vec![format!("abnormal {}: {}", condition.abnormal, condition.message)];
            let usage = stats.usage.iter();
            lines.extend(usage.map(|usage| {
                let unit = format!("{:?}", usage.unit()).to_lowercase();
                format!(
                    "{unit}: {} of {} used, {} available",
                    usage.used, usage.total, usage.available
                )
            }));
            Ok(lines)
        }
        NodeCall::Expand {
            volume,
            target,
            bytes,
        } => {
            let request = NodeExpandVolumeRequest {
                volume_id: volume.clone(),
                volume_path: target.clone(),
                capacity_range: Some(CapacityRange {
                    required_bytes: *bytes,
                    limit_bytes: 0,
                }),
                ..NodeExpandVolumeRequest::default()
            };
            let answer = node.node_expand_volume(request).await?.into_inner();
            Ok(vec![format!("{} bytes", answer.capacity_bytes)])
        }
    }
}
