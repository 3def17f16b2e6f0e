//! Calls of the controller service.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use pollux_api::csi::v1::controller_client::ControllerClient;
use pollux_api::csi::v1::snapshot_metadata_client::SnapshotMetadataClient;
use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use pollux_api::csi::v1::{
    BlockMetadata, CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, GetMetadataAllocatedRequest, GetMetadataDeltaRequest, ListVolumesRequest,
    VolumeContentSource,
};
use tonic::Status;
use tonic::transport::Channel;

use super::{FormArguments, SecretArguments, pair};

/// A call of the controller service.
#[derive(Debug, Subcommand)]
pub enum ControllerCall {
    /// Make a volume, and tell its identifier and size.
    Create(CreateArguments),
    /// Delete a volume.
    Delete {
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
    },
    /// Let a node use a volume; what is told is the context for staging it there.
    Publish {
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
        /// The node, as it calls itself.
        #[arg(long, value_name = "ID")]
        node: String,
        /// As what.
        #[command(flatten)]
        form: FormArguments,
        /// For reading only.
        #[arg(long)]
        read_only: bool,
        /// By what node and volume authenticate to each other.
        #[command(flatten)]
        secrets: SecretArguments,
    },
    /// Let a node use a volume no more.
    Unpublish {
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
        /// The node; left out: all of this cluster.
        #[arg(long, value_name = "ID", default_value = "")]
        node: String,
    },
    /// Let a volume grow.
    Expand {
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
        /// Bytes that it is to have.
        #[arg(long, value_name = "BYTES")]
        bytes: i64,
    },
    /// Take a snapshot, and tell its identifier and whether it is taken.
    Snapshot {
        /// What it is to be called.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// The volume.
        #[arg(long, value_name = "ID")]
        volume: String,
    },
    /// Delete a snapshot.
    DeleteSnapshot {
        /// The snapshot.
        #[arg(long, value_name = "ID")]
        snapshot: String,
    },
    /// Tell the ranges of a snapshot that hold data, or that changed: offset and length of each.
    Blocks {
        /// The snapshot.
        #[arg(long, value_name = "ID")]
        snapshot: String,
        /// An older one: what changed since then.
        #[arg(long, value_name = "ID")]
        since: Option<String>,
        /// Nothing before this byte.
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        offset: i64,
    },
    /// Tell identifiers and sizes of all volumes.
    List,
}

/// A volume that is to be made.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// What it is to be called.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Bytes that it is to have.
    #[arg(long, value_name = "BYTES")]
    bytes: i64,
    /// A parameter of its class.
    #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = pair)]
    parameters: Vec<(String, String)>,
    /// As what.
    #[command(flatten)]
    form: FormArguments,
    /// A snapshot that it begins as a copy of.
    #[arg(long, value_name = "ID", conflicts_with = "from_volume")]
    from_snapshot: Option<String>,
    /// A volume that it begins as a copy of.
    #[arg(long, value_name = "ID")]
    from_volume: Option<String>,
}

impl CreateArguments {
    fn request(&self) -> CreateVolumeRequest {
        let snapshot = self
            .from_snapshot
            .clone()
            .map(|snapshot_id| SourceType::Snapshot(SnapshotSource { snapshot_id }));
        let volume = self
            .from_volume
            .clone()
            .map(|volume_id| SourceType::Volume(VolumeSource { volume_id }));
        CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: range(self.bytes),
            volume_capabilities: vec![self.form.capability("", &[])],
            parameters: HashMap::from_iter(self.parameters.iter().cloned()),
            volume_content_source: snapshot
                .or(volume)
                .map(|kind| VolumeContentSource { r#type: Some(kind) }),
            ..CreateVolumeRequest::default()
        }
    }
}

fn range(required_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange {
        required_bytes,
        limit_bytes: 0,
    })
}

fn ranges(blocks: &[BlockMetadata]) -> impl Iterator<Item = String> {
    blocks
        .iter()
        .map(|block| format!("{} {}", block.byte_offset, block.size_bytes))
}

/// Makes a call; what was answered, line by line.
pub(super) async fn answer(channel: Channel, call: &ControllerCall) -> Result<Vec<String>, Status> {
    let mut controller = ControllerClient::new(channel.clone());
    match call {
        ControllerCall::Create(arguments) => {
            let made = controller.create_volume(arguments.request()).await?.into_inner();
            let volume = made.volume.unwrap_or_default();
            Ok(vec![
                format!("volume {}", volume.volume_id),
                format!("{} bytes", volume.capacity_bytes),
            ])
        }
        ControllerCall::Delete { volume } => {
            let request = DeleteVolumeRequest {
                volume_id: volume.clone(),
                ..DeleteVolumeRequest::default()
            };
            controller.delete_volume(request).await?;
            Ok(Vec::new())
        }
        ControllerCall::Publish {
            volume,
            node,
            form,
            read_only,
            secrets,
        } => {
            let request = ControllerPublishVolumeRequest {
                volume_id: volume.clone(),
                node_id: node.clone(),
                volume_capability: Some(form.capability("", &[])),
                readonly: *read_only,
                secrets: secrets.read()?,
                ..ControllerPublishVolumeRequest::default()
            };
            let published = controller.controller_publish_volume(request).await?.into_inner();
            let context = published.publish_context.into_iter();
            let mut lines: Vec<String> = context.map(|(key, value)| format!("{key}={value}")).collect();
            lines.sort();
            Ok(lines)
        }
        ControllerCall::Unpublish { volume, node } => {
            let request = ControllerUnpublishVolumeRequest {
                volume_id: volume.clone(),
                node_id: node.clone(),
                ..ControllerUnpublishVolumeRequest::default()
            };
            controller.controller_unpublish_volume(request).await?;
            Ok(Vec::new())
        }
        ControllerCall::Expand { volume, bytes } => {
            let request = ControllerExpandVolumeRequest {
                volume_id: volume.clone(),
                capacity_range: range(*bytes),
                ..ControllerExpandVolumeRequest::default()
            };
            let grown = controller.controller_expand_volume(request).await?.into_inner();
            Ok(vec![format!("{} bytes", grown.capacity_bytes)])
        }
        ControllerCall::Snapshot { name, volume } => {
            let request = CreateSnapshotRequest {
                source_volume_id: volume.clone(),
                name: name.clone(),
                ..CreateSnapshotRequest::default()
            };
            let taken = controller.create_snapshot(request).await?.into_inner();
            let snapshot = taken.snapshot.unwrap_or_default();
            Ok(vec![
                format!("snapshot {}", snapshot.snapshot_id),
                format!("ready {}", snapshot.ready_to_use),
            ])
        }
        ControllerCall::DeleteSnapshot { snapshot } => {
            let request = DeleteSnapshotRequest {
                snapshot_id: snapshot.clone(),
                ..DeleteSnapshotRequest::default()
            };
            controller.delete_snapshot(request).await?;
            Ok(Vec::new())
        }
        ControllerCall::Blocks {
            snapshot,
            since,
            offset,
        } => blocks(channel, snapshot, since.as_deref(), *offset).await,
        ControllerCall::List => {
            let listed = controller.list_volumes(ListVolumesRequest::default()).await?;
            let volumes = listed
                .into_inner()
                .entries
                .into_iter()
                .filter_map(|entry| entry.volume);
            Ok(volumes
                .map(|volume| format!("volume {} {} bytes", volume.volume_id, volume.capacity_bytes))
                .collect())
        }
    }
}

async fn blocks(
    channel: Channel,
    snapshot: &str,
    since: Option<&str>,
    starting_offset: i64,
) -> Result<Vec<String>, Status> {
    let mut metadata = SnapshotMetadataClient::new(channel);
    let mut lines = Vec::new();
    match since {
        None => {
            let request = GetMetadataAllocatedRequest {
                snapshot_id: snapshot.to_owned(),
                starting_offset,
                ..GetMetadataAllocatedRequest::default()
            };
            let mut answers = metadata.get_metadata_allocated(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                lines.extend(ranges(&answer.block_metadata));
            }
        }
        Some(since) => {
            let request = GetMetadataDeltaRequest {
                base_snapshot_id: since.to_owned(),
                target_snapshot_id: snapshot.to_owned(),
                starting_offset,
                ..GetMetadataDeltaRequest::default()
            };
            let mut answers = metadata.get_metadata_delta(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                lines.extend(ranges(&answer.block_metadata));
            }
        }
    }
    Ok(lines)
}
