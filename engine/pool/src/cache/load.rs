//! Reading pages from devices.

use pollux_device::IoError;
use uuid::Uuid;

use crate::device::PoolDevice;
use crate::layout::page::{Page, PageIdentity};
use crate::layout::{BLOCK_BYTES, BlockAddress, EXTENT_BLOCKS, LayoutError, PagePointer};

/// Why a copy of a page is no good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Its device is not there.
    #[error("device {0} is not there")]
    NoDevice(u8),
    /// It cannot be read.
    #[error("{0}")]
    Device(#[from] IoError),
    /// It is not what the pointer to it says.
    #[error("{0}")]
    Layout(#[from] LayoutError),
}

/// No copy of a page is any good: what it leads to is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "both copies of page {} of level {} of tree {} are lost: {first}; {second}",
    .identity.index, .identity.level, .identity.tree
)]
pub struct LoadError {
    /// Which page.
    pub identity: PageIdentity,
    /// What is wrong with the first copy.
    pub first: CopyError,
    /// What is wrong with the second one.
    pub second: CopyError,
}

/// Reads a page: the first copy, or the second if that is no good.
///
/// # Errors
///
/// [`LoadError`].
pub async fn load(
    pool: Uuid,
    devices: &[Option<PoolDevice>],
    pointer: &PagePointer,
    identity: &PageIdentity,
) -> Result<Page, LoadError> {
    let first = match load_copy(pool, devices, pointer.first, pointer.crc, identity).await {
        Ok(page) => return Ok(page),
        Err(error) => error,
    };
    let page = load_copy(pool, devices, pointer.second, pointer.crc, identity).await;
    let page = page.map_err(|second| LoadError {
        identity: *identity,
        first,
        second,
    })?;
    tracing::warn!(%pool, page = ?identity, error = %first, "the first copy of a page is no good");
    Ok(page)
}

/// Reads one copy of a page.
///
/// # Errors
///
/// [`CopyError`].
pub(crate) async fn load_copy(
    pool: Uuid,
    devices: &[Option<PoolDevice>],
    address: BlockAddress,
    crc: u32,
    identity: &PageIdentity,
) -> Result<Page, CopyError> {
    let number = address.extent().device();
    let device = devices.get(usize::from(number)).and_then(Option::as_ref);
    let device = device.ok_or(CopyError::NoDevice(number))?;
    let block = address.extent().number() * EXTENT_BLOCKS as u64 + u64::from(address.index());
    let bytes = device.read(block, 1).await?;
    let bytes: Box<[u8; BLOCK_BYTES]> = Box::<[u8]>::from(&bytes[..])
        .try_into()
        .map_err(|_| IoError::Internal)?;
    Ok(Page::open(bytes, pool, identity, crc)?)
}
