//! Memory that a controller can reach, and copies through it of what it cannot.
//!
//! A drive on PCI, or an RDMA adapter, reaches registered memory only: the buffers of this reactor, where
//! they are on huge pages, which is where data from a socket is. Anything else, such as the zeros that the
//! process shares, is copied through a small pool of the reactor's own for that: not the pool of its buffers,
//! which those who wait here may have emptied.

use std::cell::RefCell;
use std::ops::Range;

use pollux_hugepages::{ArenaOptions, Buffer, BufferPool, PoolOptions};

use super::identify::TRANSFER_BYTES_MAX;
use super::raw::memory::register_pool;
use crate::error::IoError;
use crate::request::Gather;

/// Memory to copy through, of each reactor, in bytes.
const BOUNCE_BYTES: usize = 4 * TRANSFER_BYTES_MAX as usize;

/// What addresses must be multiples of, in bytes (NVMe Base, Physical Region Page Entry: dword aligned).
const ADDRESS_ALIGN_BYTES: usize = 4;

thread_local! {
    /// Shared by all drives of a reactor.
    static BOUNCE: RefCell<Option<(BufferPool, Range<usize>)>> = const { RefCell::new(None) };
}

/// What a controller can reach.
pub(super) enum Reach {
    /// Everything: the processor copies.
    All,
    /// Registered memory.
    Registered {
        /// Addresses of the buffers of this reactor.
        buffers: Range<usize>,
        /// What to copy through.
        bounce: BufferPool,
        bounce_range: Range<usize>,
    },
}

impl Reach {
    /// For a queue on the current reactor.
    ///
    /// # Errors
    ///
    /// [`IoError::ResourceShortage`] when no huge pages are left to copy through.
    pub(super) fn of_reactor(reaches_memory: bool, needs_huge_pages: bool) -> Result<Self, IoError> {
        if !reaches_memory {
            return Ok(Self::All);
        }
        let pool = pollux_reactor::buffers();
        let is_usable = pool.page_kind().is_huge() || !needs_huge_pages;
        let buffers = match is_usable.then(|| register_pool(&pool)) {
            Some(Ok(range)) => range,
            Some(Err(error)) => {
                tracing::warn!(%error, "the buffers of a reactor cannot be registered: all data is copied");
                0..0
            }
            None => {
                tracing::warn!(
                    "the buffers of a reactor are not on huge pages, where a drive would reach them: all \
                     data is copied; reserve huge pages, see pollux-engine doctor"
                );
                0..0
            }
        };
        let (bounce, bounce_range) = bounce_of_thread(needs_huge_pages)?;
        Ok(Self::Registered {
            buffers,
            bounce,
            bounce_range,
        })
    }

    /// Whether a command may use these bytes as they are.
    #[inline]
    fn has(&self, bytes: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Registered {
                buffers,
                bounce_range,
                ..
            } => {
                let start = bytes.as_ptr().addr();
                let is_in = |range: &Range<usize>| range.start <= start && start + bytes.len() <= range.end;
                start.is_multiple_of(ADDRESS_ALIGN_BYTES) && (is_in(buffers) || is_in(bounce_range))
            }
        }
    }

    /// Whether a command may read into this buffer.
    #[inline]
    pub(super) fn has_buffer(&self, buffer: &Buffer) -> bool {
        self.has(buffer)
    }

    /// Whether a command may take all these pieces. Those of several must be whole blocks if the controller
    /// reaches for them by itself, or if there are so many that the command must be split.
    #[inline]
    pub(super) fn has_gather(&self, gather: &Gather, block_bytes: u32, pieces_max: usize) -> bool {
        match gather.pieces() {
            [piece] => self.has(piece),
            pieces => {
                let split_anywhere = matches!(self, Self::All) && pieces.len() <= pieces_max;
                let block_bytes = block_bytes as usize;
                pieces.iter().all(|piece| {
                    self.has(piece) && (split_anywhere || piece.len().is_multiple_of(block_bytes))
                })
            }
        }
    }

    /// Waits for memory that a command may use.
    ///
    /// # Errors
    ///
    /// [`IoError::ResourceShortage`] when too many wait.
    pub(super) async fn buffer(&self, len_bytes: usize) -> Result<Buffer, IoError> {
        match self {
            Self::All => Ok(Buffer::from_heap(len_bytes)),
            Self::Registered { bounce, .. } => {
                let waited = bounce.wait_for(len_bytes).await;
                waited.map_err(|_| IoError::ResourceShortage)
            }
        }
    }
}

fn bounce_of_thread(needs_huge_pages: bool) -> Result<(BufferPool, Range<usize>), IoError> {
    BOUNCE.with_borrow_mut(|bounce| {
        if let Some((pool, range)) = bounce {
            return Ok((pool.clone(), range.clone()));
        }
        let options = PoolOptions {
            total_bytes: BOUNCE_BYTES,
            arena: ArenaOptions {
                fall_back: !needs_huge_pages,
                ..ArenaOptions::default()
            },
            ..PoolOptions::default()
        };
        let pool = BufferPool::new(&options).map_err(|error| {
            tracing::error!(%error, "no memory to copy through to a drive");
            IoError::ResourceShortage
        })?;
        let range = register_pool(&pool).map_err(|error| {
            tracing::error!(%error, "memory to copy through to a drive cannot be registered");
            IoError::ResourceShortage
        })?;
        *bounce = Some((pool.clone(), range.clone()));
        Ok((pool, range))
    })
}

#[cfg(test)]
mod tests {
    use pollux_hugepages::Slice;

    use super::*;

    fn gather(lens: &[usize]) -> Gather {
        let mut gather = Gather::new();
        for &len in lens {
            gather.push(Slice::copy_from(&vec![1; len]));
        }
        gather
    }

    #[test]
    fn pieces_are_taken_as_they_are_unless_the_command_must_be_split() {
        let reach = Reach::All;
        assert!(reach.has_gather(&gather(&[100, 412]), 512, 16));
        assert!(reach.has_gather(&gather(&[512; 20]), 512, 16));
        let odd: Vec<usize> = (0..20)
            .map(|index| if index % 2 == 0 { 100 } else { 412 })
            .collect();
        assert!(!reach.has_gather(&gather(&odd), 512, 16));
    }

    #[test]
    fn memory_that_is_not_registered_is_copied() {
        let pool = BufferPool::on_heap(&PoolOptions::default()).expect("there is memory");
        let base = pool.base().as_ptr().addr();
        let reach = Reach::Registered {
            buffers: base..base + pool.capacity_bytes(),
            bounce: pool.clone(),
            bounce_range: 0..0,
        };
        let mut buffer = pool.allocate(8192).expect("the pool is empty");
        assert!(reach.has_buffer(&buffer));
        assert!(!reach.has_buffer(&Buffer::from_heap(4096)));
        let rest = buffer.split_off(4096);
        let odd = {
            let mut odd = buffer;
            odd.advance(1);
            odd
        };
        assert!(reach.has_buffer(&rest) && !reach.has_buffer(&odd));
        let mut both = Gather::from(rest);
        both.push(Slice::zeroes(4096));
        assert!(!reach.has_gather(&both, 4096, 16));
    }
}
