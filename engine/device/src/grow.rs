//! Devices that become larger while they are in use.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use crate::geometry::GeometryError;
use crate::uri::ByteSize;

/// A device becoming larger.
pub type Growing = Pin<Box<dyn Future<Output = Result<(), GrowError>>>>;

/// Why a device did not become larger; it is what it was.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The device has the size it has.
    #[error("the device cannot change its size; open a new one")]
    Unsupported,
    /// A size that is not whole blocks.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Less than now.
    #[error(
        "cannot shrink from {} to {}: devices only grow",
        ByteSize(*.from_bytes),
        ByteSize(*.to_bytes)
    )]
    Shrink {
        /// The size now.
        from_bytes: u64,
        /// The size asked for.
        to_bytes: u64,
    },
    /// Space or memory is short, or the medium refused.
    #[error("{0}")]
    Failed(Box<dyn Error + Send + Sync>),
}

impl GrowError {
    /// What stopped the device from growing.
    pub fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(source.into())
    }
}
