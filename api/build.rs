//! Compiles the .proto files without a system protoc.

#![allow(clippy::print_stdout, reason = "cargo reads it")]

use std::error::Error;
use std::path::Path;

use prost::Message;

const INCLUDES: [&str; 1] = ["proto"];
const FILES: &[&str] = &[
    "proto/csi/v1/common.proto",
    "proto/csi/v1/identity.proto",
    "proto/csi/v1/controller.proto",
    "proto/csi/v1/node.proto",
    "proto/csi/v1/group.proto",
    "proto/csi/v1/metadata.proto",
    "proto/etcd/etcd.proto",
    "proto/pollux/engine/v1/engine.proto",
    "proto/pollux/engine/v1/pool.proto",
    "proto/pollux/engine/v1/replica.proto",
    "proto/pollux/control/v1/common.proto",
    "proto/pollux/control/v1/node.proto",
    "proto/pollux/control/v1/pool.proto",
    "proto/pollux/control/v1/volume.proto",
    "proto/pollux/control/v1/template.proto",
    "proto/pollux/control/v1/snapshot.proto",
    "proto/pollux/control/v1/event.proto",
    "proto/pollux/control/v1/token.proto",
    "proto/pollux/control/v1/rebalance.proto",
    "proto/pollux/control/v1/recovery.proto",
    "proto/pollux/control/v1/measurement.proto",
    "proto/pollux/control/v1/meter.proto",
    "proto/pollux/control/v1/engine.proto",
];

/// Messages that hold secrets.
const SECRET: [&str; 23] = [
    ".pollux.control.v1.HostSecrets",
    ".csi.v1.CreateVolumeRequest",
    ".csi.v1.DeleteVolumeRequest",
    ".csi.v1.ControllerPublishVolumeRequest",
    ".csi.v1.ControllerUnpublishVolumeRequest",
    ".csi.v1.ValidateVolumeCapabilitiesRequest",
    ".csi.v1.ControllerModifyVolumeRequest",
    ".csi.v1.ControllerListVolumeHealthRequest",
    ".csi.v1.ControllerGetVolumeHealthRequest",
    ".csi.v1.NodeGetStorageHealthRequest",
    ".csi.v1.CreateSnapshotRequest",
    ".csi.v1.DeleteSnapshotRequest",
    ".csi.v1.ListSnapshotsRequest",
    ".csi.v1.GetSnapshotRequest",
    ".csi.v1.ControllerExpandVolumeRequest",
    ".csi.v1.NodeStageVolumeRequest",
    ".csi.v1.NodePublishVolumeRequest",
    ".csi.v1.NodeExpandVolumeRequest",
    ".csi.v1.CreateVolumeGroupSnapshotRequest",
    ".csi.v1.DeleteVolumeGroupSnapshotRequest",
    ".csi.v1.GetVolumeGroupSnapshotRequest",
    ".csi.v1.GetMetadataAllocatedRequest",
    ".csi.v1.GetMetadataDeltaRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    for include in INCLUDES {
        println!("cargo::rerun-if-changed={include}");
    }
    let descriptors = protox::compile(FILES, INCLUDES)?;
    let encoded = descriptors.encode_to_vec();
    let directory = std::env::var_os("OUT_DIR").ok_or("cargo tells no OUT_DIR")?;
    std::fs::write(Path::new(&directory).join("descriptors.bin"), &encoded)?;
    tonic_prost_build::configure()
        .type_attribute(".pollux.engine.v1", "#[derive(serde::Serialize)]")
        .type_attribute("Event.what", "#[serde(rename_all = \"snake_case\")]")
        .field_attribute(
            ".pollux.engine.v1.Volume.kind",
            "#[serde(serialize_with = \"crate::text::volume_kind\")]",
        )
        .field_attribute(
            ".pollux.engine.v1.PoolDevice.state",
            "#[serde(serialize_with = \"crate::text::pool_device_state\")]",
        )
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .btree_map(".pollux.control.v1")
        // Secrets are not to be seen: `src/secrets.rs`.
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    // Messages of the control plane are read from JSON too: from files, and by the gateway.
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .btree_map([".pollux.control.v1"])
        .build(&[".pollux.control.v1"])?;
    Ok(())
}
