//! Boxed futures from recycled memory, so that an I/O costs no heap allocation once a reactor is warm.
//!
//! Memory comes in a few sizes from free lists of the thread. A future larger than the largest size, or a
//! free list that has run dry, goes to the heap.
//!
//! Invariants: `block` is exclusively owned, was made for `class`, and holds an initialised future of the
//! type that `vtable` was made for, from [`PooledFuture::new`] until its drop; the future is not moved in
//! between.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// Sizes of the recycled blocks, in bytes.
const CLASS_BYTES: [usize; 6] = [128, 256, 512, 1024, 2048, 4096];

/// Alignment of the recycled blocks, in bytes.
const BLOCK_ALIGN_BYTES: usize = 64;

/// Free blocks kept of each size; more than these go back to the heap.
const FREE_BLOCKS_MAX: usize = 4096;

struct FreeLists([Vec<NonNull<u8>>; CLASS_BYTES.len()]);

impl Drop for FreeLists {
    fn drop(&mut self) {
        for (class, blocks) in self.0.iter_mut().enumerate() {
            for block in blocks.drain(..) {
                // SAFETY: this thread's list owns the block, and it was allocated with the layout of its
                // class.
                unsafe { dealloc(block.as_ptr(), class_layout(class)) };
            }
        }
    }
}

thread_local! {
    static FREE: RefCell<FreeLists> =
        const { RefCell::new(FreeLists([const { Vec::new() }; CLASS_BYTES.len()])) };
}

fn class_layout(class: usize) -> Layout {
    Layout::from_size_align(CLASS_BYTES[class], BLOCK_ALIGN_BYTES).expect("sizes and alignment are constants")
}

/// The class whose blocks hold this layout, if there is one.
fn class_of(layout: Layout) -> Option<usize> {
    if layout.align() > BLOCK_ALIGN_BYTES {
        return None;
    }
    CLASS_BYTES.iter().position(|&bytes| layout.size() <= bytes)
}

fn take_block(layout: Layout) -> NonNull<u8> {
    let class = class_of(layout);
    let recycled = class.and_then(|class| {
        FREE.try_with(|free| free.borrow_mut().0[class].pop())
            .ok()
            .flatten()
    });
    if let Some(block) = recycled {
        return block;
    }
    let layout = allocated_layout(class, layout);
    // SAFETY: the layout is not empty: neither the classes are, nor what has none.
    let block = unsafe { alloc(layout) };
    NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout))
}

/// The layout of the block that a future of this layout lies in. Never empty: an empty future of an extreme
/// alignment has no class, but gets a byte.
fn allocated_layout(class: Option<usize>, layout: Layout) -> Layout {
    match class {
        Some(class) => class_layout(class),
        None => Layout::from_size_align(layout.size().max(1), layout.align()).unwrap_or(layout),
    }
}

/// Gives back a block that [`take_block`] returned for the same layout.
fn give_block(block: NonNull<u8>, layout: Layout) {
    let class = class_of(layout);
    let kept = class.is_some_and(|class| {
        FREE.try_with(|free| {
            let blocks = &mut free.borrow_mut().0[class];
            let room = blocks.len() < FREE_BLOCKS_MAX;
            if room {
                blocks.push(block);
            }
            room
        })
        .unwrap_or(false)
    });
    if !kept {
        // SAFETY: the caller owns the block, and it was allocated with this layout by `take_block`.
        unsafe { dealloc(block.as_ptr(), allocated_layout(class, layout)) };
    }
}

struct VTable<T> {
    poll: unsafe fn(NonNull<u8>, &mut Context<'_>) -> Poll<T>,
    drop: unsafe fn(NonNull<u8>),
    layout: Layout,
}

/// A boxed future of one reactor whose memory is recycled.
pub struct PooledFuture<T: 'static> {
    block: NonNull<u8>,
    vtable: &'static VTable<T>,
    /// Not `Send`: the block belongs to this thread's free lists, and the future may hold what is local.
    local: PhantomData<*mut ()>,
}

/// # Safety
///
/// `block` holds an initialised `F` that is pinned there, and nobody else accesses it.
unsafe fn poll_block<F: Future>(block: NonNull<u8>, context: &mut Context<'_>) -> Poll<F::Output> {
    // SAFETY: the caller's promise; the reference ends before the function returns.
    unsafe { Pin::new_unchecked(block.cast::<F>().as_mut()) }.poll(context)
}

/// # Safety
///
/// `block` holds an initialised `F`, which is not used afterwards.
unsafe fn drop_block<F>(block: NonNull<u8>) {
    // SAFETY: the caller's promise.
    unsafe { block.cast::<F>().drop_in_place() };
}

struct VTableOf<F>(PhantomData<F>);

impl<F: Future + 'static> VTableOf<F>
where
    F::Output: 'static,
{
    const VTABLE: &'static VTable<F::Output> = &VTable {
        poll: poll_block::<F>,
        drop: drop_block::<F>,
        layout: Layout::new::<F>(),
    };
}

impl<T: 'static> PooledFuture<T> {
    /// Moves a future into recycled memory.
    pub fn new<F: Future<Output = T> + 'static>(future: F) -> Self {
        let vtable = VTableOf::<F>::VTABLE;
        let block = take_block(vtable.layout);
        // SAFETY: the block is at least as large and as aligned as `F`, and owned by nobody else.
        unsafe { block.cast::<F>().write(future) };
        Self {
            block,
            vtable,
            local: PhantomData,
        }
    }
}

// The future is pinned in its block; moving the handle does not move it.
impl<T: 'static> Unpin for PooledFuture<T> {}

impl<T: 'static> Future for PooledFuture<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // SAFETY: by the invariant of the module the block holds the vtable's future; `&mut self` makes it
        // exclusive.
        unsafe { (self.vtable.poll)(self.block, context) }
    }
}

impl<T: 'static> Drop for PooledFuture<T> {
    fn drop(&mut self) {
        struct GiveBack(NonNull<u8>, Layout);
        impl Drop for GiveBack {
            fn drop(&mut self) {
                give_block(self.0, self.1);
            }
        }
        // Given back even when the future's own drop panics.
        let _give_back = GiveBack(self.block, self.vtable.layout);
        // SAFETY: by the invariant of the module the block holds the vtable's future, which is not used
        // again.
        unsafe { (self.vtable.drop)(self.block) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::task::Waker;

    fn poll_once<T>(future: &mut PooledFuture<T>) -> Poll<T> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn runs_and_drops_what_it_holds() {
        let witness = Rc::new(7);
        let held = witness.clone();
        let mut future = PooledFuture::new(async move {
            crate::yield_now().await;
            *held
        });
        assert_eq!(poll_once(&mut future), Poll::Pending);
        assert_eq!(Rc::strong_count(&witness), 2);
        assert_eq!(poll_once(&mut future), Poll::Ready(7));
        drop(future);
        assert_eq!(Rc::strong_count(&witness), 1);
    }

    #[test]
    fn recycles_blocks_of_a_class() {
        let first = PooledFuture::new(async { [0u8; 40].len() });
        let block = first.block;
        drop(first);
        let second = PooledFuture::new(async { 1usize });
        assert_eq!(second.block, block);
    }

    #[test]
    fn takes_futures_of_every_size() {
        async fn hold<const N: usize>(bytes: [u8; N]) -> usize {
            crate::yield_now().await;
            bytes.iter().map(|&byte| usize::from(byte)).sum()
        }
        let mut small = PooledFuture::new(hold([1; 1]));
        let mut large = PooledFuture::new(hold([1; 100_000]));
        assert!(poll_once(&mut small).is_pending() && poll_once(&mut large).is_pending());
        assert_eq!(poll_once(&mut small), Poll::Ready(1));
        assert_eq!(poll_once(&mut large), Poll::Ready(100_000));
    }

    #[test]
    fn an_empty_future_is_fine() {
        assert_eq!(
            poll_once(&mut PooledFuture::new(std::future::ready(()))),
            Poll::Ready(())
        );
    }

    #[test]
    fn an_empty_future_of_an_extreme_alignment_is_fine() {
        #[repr(align(4096))]
        struct Aligned;
        impl Future for Aligned {
            type Output = usize;
            fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<usize> {
                Poll::Ready(std::ptr::from_ref(&*self).addr() % 4096)
            }
        }
        assert_eq!(size_of::<Aligned>(), 0);
        assert_eq!(poll_once(&mut PooledFuture::new(Aligned)), Poll::Ready(0));
    }

    #[test]
    fn a_future_that_panics_when_dropped_gives_its_block_back() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let bomb = Bomb;
        let future = PooledFuture::new(async move {
            let _bomb = bomb;
            std::future::pending::<()>().await;
        });
        let block = future.block;
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(future)));
        assert!(dropped.is_err());
        assert_eq!(PooledFuture::new(async {}).block, block);
    }
}
