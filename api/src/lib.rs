//! The gRPC interfaces of Pollux: what is generated from the `.proto` files, and nothing else.
//!
//! Messages can be serialized, so that what is shown as JSON has the names of the `.proto` files.

#![forbid(unsafe_code)]

/// Interfaces of one engine.
pub mod engine {
    /// Version 1.
    #[allow(missing_docs, reason = "generated; the .proto file documents it")]
    pub mod v1 {
        tonic::include_proto!("pollux.engine.v1");
    }
}

/// The domain of the machine-readable reasons in errors (google.rpc.ErrorInfo).
pub const ERROR_DOMAIN: &str = "engine.pollux.io";
