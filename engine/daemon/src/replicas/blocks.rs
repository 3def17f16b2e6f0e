//! Which blocks of a snapshot of a replica hold data, or differ from another snapshot of the same replica.
//!
//! The pool knows that of the volume that the replica is; what is told here is of the data behind the
//! replica's reserved area. Bytes are those of the volume that hosts see.

use std::rc::Rc;

use pollux_pool::{BlockRange, Pool, PoolError, RangePage};
use pollux_volume::metadata::{AreaLayout, BLOCK_BYTES};
use pollux_volume::replica::PoolMedium;
use uuid::Uuid;

use super::{Replicas, ReplicasError};
use crate::pools;

/// Ranges after which a page is full; one leaf of the map, which is not divided, may have more of them.
const RANGES_PER_PAGE: usize = 1024;

/// Leaves of the map that are looked at for one page.
const LEAVES_PER_PAGE: usize = 64;

/// A question about snapshots of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlocksAsked {
    /// The volume that it is a copy of.
    pub volume: Uuid,
    /// The replica.
    pub replica: Uuid,
    /// What it knows the snapshot by.
    pub cut: Uuid,
    /// What it knows the snapshot by that is compared with it; without it the blocks that hold data are told.
    pub since: Option<Uuid>,
    /// Nothing before this byte is told.
    pub offset_bytes: u64,
}

/// A run of bytes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// Some of the blocks, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlocksPage {
    /// The ranges; neighbouring ones may touch.
    pub ranges: Vec<ByteRange>,
    /// From where on nothing was looked at; `None` at the end.
    pub next_offset_bytes: Option<u64>,
}

impl Replicas {
    /// Some of the blocks of a snapshot that hold data, or in which it may differ from another one.
    ///
    /// # Errors
    ///
    /// [`ReplicasError::NotFound`] if there is no such replica of this volume; [`ReplicasError::Pool`] if it
    /// has no such snapshot, or its pool failed; [`ReplicasError::Unusable`] if it is in no pool.
    pub async fn blocks(&self, asked: &BlocksAsked) -> Result<BlocksPage, ReplicasError> {
        let replica = asked.replica;
        let found = self.find(replica)?;
        if found.label.volume != asked.volume {
            return Err(ReplicasError::NotFound { replica });
        }
        let unusable = |why: &str| ReplicasError::Unusable {
            device: found.uri.to_string(),
            why: why.to_owned(),
        };
        let pool = pools::names(&found.uri).ok().map(|(pool, _)| pool);
        let pool = pool
            .filter(|_| found.uri.scheme() == pools::SCHEME)
            .ok_or_else(|| unusable("it is in no pool, and has no snapshots"))?;
        let layout = AreaLayout::of(&found.label).ok_or_else(|| unusable("its label makes no sense"))?;
        let area_blocks = layout.area_blocks();
        let name = PoolMedium::snapshot_name(replica, asked.cut);
        let since = asked.since.map(|cut| PoolMedium::snapshot_name(replica, cut));
        let first = (asked.offset_bytes / BLOCK_BYTES as u64).saturating_add(area_blocks);
        let page = self.pools.with(&pool, move |pool| async move {
            gather(&pool, &name, since.as_deref(), first).await
        });
        Ok(told(&page.await?, area_blocks))
    }
}

/// Blocks of the volume of a pool, from one on: as many as make a page.
async fn gather(
    pool: &Rc<Pool>,
    name: &str,
    since: Option<&str>,
    first: u64,
) -> Result<RangePage, PoolError> {
    let mut all = RangePage {
        ranges: Vec::new(),
        next: Some(first),
    };
    for _ in 0..LEAVES_PER_PAGE {
        let Some(block) = all.next.filter(|_| all.ranges.len() < RANGES_PER_PAGE) else {
            break;
        };
        let page = match since {
            Some(since) => pool.changed_blocks(since, name, block).await?,
            None => {
                let end = pool.volume(name)?.size_blocks;
                pool.open_volume(name)?.allocated(block, end).await?
            }
        };
        all.ranges.extend(page.ranges);
        all.next = page.next;
    }
    Ok(all)
}

/// The same in bytes of what hosts see.
fn told(page: &RangePage, area_blocks: u64) -> BlocksPage {
    let bytes = |block: u64| {
        block
            .saturating_sub(area_blocks)
            .saturating_mul(BLOCK_BYTES as u64)
    };
    let mut ranges: Vec<ByteRange> = Vec::with_capacity(page.ranges.len());
    for BlockRange { block, blocks } in &page.ranges {
        let (first, last) = (bytes(*block), bytes(block.saturating_add(*blocks)));
        match ranges.last_mut() {
            Some(range) if range.offset_bytes + range.length_bytes == first => {
                range.length_bytes = last - range.offset_bytes;
            }
            // What is in the reserved area is nothing of the volume.
            _ if last == 0 => {}
            _ => ranges.push(ByteRange {
                offset_bytes: first,
                length_bytes: last - first,
            }),
        }
    }
    BlocksPage {
        ranges,
        next_offset_bytes: page.next.map(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_area_is_no_part_of_the_volume() {
        let range = |block, blocks| BlockRange { block, blocks };
        let page = RangePage {
            ranges: vec![range(0, 2), range(14, 4), range(18, 1), range(30, 2)],
            next: Some(48),
        };
        let block_bytes = BLOCK_BYTES as u64;
        let expected = [(0, 3), (14, 2)].map(|(block, blocks)| ByteRange {
            offset_bytes: block * block_bytes,
            length_bytes: blocks * block_bytes,
        });
        let told = told(&page, 16);
        assert_eq!(told.ranges, expected);
        assert_eq!(told.next_offset_bytes, Some(32 * block_bytes));
    }
}
