//! The gRPC interfaces of Pollux: what is generated from the `.proto` files, and what all who use a message
//! have to read in it alike: what limits it says ([`qos`]), what secrets in it are ([`secrets`]), and what
//! labels are called ([`labels`]).
//!
//! Messages can be serialized, so that what is shown as JSON has the names of the `.proto` files. Those of
//! the control plane can be read from JSON too, in protobuf's own mapping: 64-bit numbers are texts, enums
//! are names.

#![forbid(unsafe_code)]

pub mod labels;
pub mod qos;
pub mod secrets;

/// Interfaces of one engine.
pub mod engine {
    /// Version 1.
    #[allow(missing_docs, reason = "generated; the .proto file documents it")]
    pub mod v1 {
        tonic::include_proto!("pollux.engine.v1");
    }
}

/// Interfaces of the control plane.
pub mod control {
    /// Version 1.
    #[allow(missing_docs, reason = "generated; the .proto files document it")]
    #[allow(clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("pollux.control.v1");

        mod json {
            use super::*;
            include!(concat!(env!("OUT_DIR"), "/pollux.control.v1.serde.rs"));
        }
    }
}

/// The Container Storage Interface.
pub mod csi {
    /// Version 1.
    #[allow(missing_docs, reason = "generated; the .proto file documents it")]
    #[allow(clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// The part of etcd's interface that the control plane uses.
#[allow(missing_docs, reason = "generated; the .proto file documents it")]
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}

/// How enums are shown as JSON: by their names, as protobuf does it.
mod text {
    use serde::Serializer;

    use crate::engine::v1::{PoolDeviceState, VolumeKind};

    pub(crate) fn volume_kind<S: Serializer>(kind: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        let known = VolumeKind::try_from(*kind).unwrap_or(VolumeKind::Unspecified);
        serializer.serialize_str(known.as_str_name())
    }

    pub(crate) fn pool_device_state<S: Serializer>(state: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        let known = PoolDeviceState::try_from(*state).unwrap_or(PoolDeviceState::Unspecified);
        serializer.serialize_str(known.as_str_name())
    }
}

/// All interfaces with their comments, as a `google.protobuf.FileDescriptorSet`: what the description of the
/// REST interface is made from.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Names some fields of a message, for updates that leave the others alone (google.protobuf.FieldMask).
pub use pbjson_types::FieldMask;

/// The domain of the machine-readable reasons in errors of engines (google.rpc.ErrorInfo).
pub const ERROR_DOMAIN: &str = "engine.pollux.io";

/// The domain of the machine-readable reasons in errors of the control plane (google.rpc.ErrorInfo).
pub const CONTROL_ERROR_DOMAIN: &str = "control.pollux.io";
