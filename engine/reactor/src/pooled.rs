//! Boxed futures from recycled memory, so that an I/O costs no heap allocation once a reactor is warm.
//!
//! Memory comes in a few sizes from free lists of the thread. A future larger than the largest size, or a
//! free list that has run dry, goes to the heap.
//!
//! Invariants:
//! - The block of a future is exclusively owned, was made for the shape in its `vtable`, and holds an
//!   initialised future of the type that `vtable` was made for, from [`PooledFuture::new`] until its drop;
//!   the future is not moved in between.
//! - A free block belongs to the free list of its class on one thread; its first bytes hold the next block of
//!   the list.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
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

/// A block that is free.
struct FreeBlock {
    next: Option<NonNull<FreeBlock>>,
}

/// The free blocks of one class.
struct FreeList {
    first: Cell<Option<NonNull<FreeBlock>>>,
    len: Cell<usize>,
}

impl FreeList {
    fn pop(&self) -> Option<NonNull<u8>> {
        let first = self.first.get()?;
        // SAFETY: a block in the list is owned by the list and holds a `FreeBlock`.
        self.first.set(unsafe { first.as_ref() }.next);
        self.len.set(self.len.get() - 1);
        Some(first.cast())
    }

    /// Whether there was room for the block.
    ///
    /// # Safety
    ///
    /// The caller gives up a block of this list's class.
    unsafe fn push(&self, block: NonNull<u8>) -> bool {
        if self.len.get() >= FREE_BLOCKS_MAX {
            return false;
        }
        let block = block.cast::<FreeBlock>();
        let next = self.first.get();
        // SAFETY: the caller gives up the block, which is larger than a `FreeBlock` and aligned for more.
        unsafe { block.write(FreeBlock { next }) };
        self.first.set(Some(block));
        self.len.set(self.len.get() + 1);
        true
    }
}

struct FreeLists([FreeList; CLASS_BYTES.len()]);

impl Drop for FreeLists {
    fn drop(&mut self) {
        for (list, bytes) in self.0.iter().zip(CLASS_BYTES) {
            while let Some(block) = list.pop() {
                // SAFETY: this thread's list owned the block, which was allocated with the layout of its
                // class.
                unsafe { dealloc(block.as_ptr(), class_layout(bytes)) };
            }
        }
    }
}

thread_local! {
    static FREE: FreeLists = const {
        FreeLists(
            [const {
                FreeList {
                    first: Cell::new(None),
                    len: Cell::new(0),
                }
            }; CLASS_BYTES.len()],
        )
    };
}

const fn class_layout(bytes: usize) -> Layout {
    match Layout::from_size_align(bytes, BLOCK_ALIGN_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("sizes and alignment are constants"),
    }
}

/// What a block for a type of future is like; known when the program is compiled.
#[derive(Clone, Copy)]
struct Shape {
    /// The class that it is recycled in, if any is large and aligned enough.
    class: Option<usize>,
    /// The layout that it is allocated with. Never empty: an empty future of an extreme alignment gets a
    /// byte.
    layout: Layout,
}

impl Shape {
    const fn of<F>() -> Self {
        let mut class = 0;
        while align_of::<F>() <= BLOCK_ALIGN_BYTES && class < CLASS_BYTES.len() {
            if size_of::<F>() <= CLASS_BYTES[class] {
                return Self {
                    class: Some(class),
                    layout: class_layout(CLASS_BYTES[class]),
                };
            }
            class += 1;
        }
        let layout = match size_of::<F>() {
            0 => match Layout::from_size_align(1, align_of::<F>()) {
                Ok(layout) => layout,
                Err(_) => panic!("the alignment is that of a type"),
            },
            _ => Layout::new::<F>(),
        };
        Self { class: None, layout }
    }

    fn take_block(self) -> NonNull<u8> {
        let recycled = self
            .class
            .and_then(|class| FREE.try_with(|free| free.0[class].pop()).ok().flatten());
        recycled.unwrap_or_else(|| self.allocate())
    }

    #[cold]
    fn allocate(self) -> NonNull<u8> {
        // SAFETY: no shape has an empty layout.
        let block = unsafe { alloc(self.layout) };
        NonNull::new(block).unwrap_or_else(|| handle_alloc_error(self.layout))
    }

    /// # Safety
    ///
    /// The caller gives up a block that [`Shape::take_block`] returned for this shape.
    unsafe fn give_block(self, block: NonNull<u8>) {
        // SAFETY: the caller gives up a block of this class.
        let push = |class: usize| FREE.try_with(|free| unsafe { free.0[class].push(block) });
        let kept = self.class.is_some_and(|class| push(class).unwrap_or(false));
        if !kept {
            // SAFETY: the caller gave the block up, and it was allocated with this layout.
            unsafe { dealloc(block.as_ptr(), self.layout) };
        }
    }
}

struct VTable<T> {
    poll: unsafe fn(NonNull<u8>, &mut Context<'_>) -> Poll<T>,
    drop: unsafe fn(NonNull<u8>),
    shape: Shape,
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
        shape: Shape::of::<F>(),
    };
}

impl<T: 'static> PooledFuture<T> {
    /// Moves a future into recycled memory.
    pub fn new<F: Future<Output = T> + 'static>(future: F) -> Self {
        let vtable = VTableOf::<F>::VTABLE;
        let block = vtable.shape.take_block();
        // SAFETY: the block was taken for the shape of `F`, and is owned by nobody else.
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
        struct GiveBack(NonNull<u8>, Shape);
        impl Drop for GiveBack {
            fn drop(&mut self) {
                // SAFETY: the block was taken for this shape, and the future that owned it is gone.
                unsafe { self.1.give_block(self.0) };
            }
        }
        // Given back even when the future's own drop panics.
        let _give_back = GiveBack(self.block, self.vtable.shape);
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
    fn keeps_a_bounded_number_of_free_blocks() {
        let futures: Vec<_> = (0..FREE_BLOCKS_MAX + 10)
            .map(|_| PooledFuture::new(async { [0_u8; 40].len() }))
            .collect();
        drop(futures);
        let class = Shape::of::<[u8; 128]>().class;
        assert_eq!(class, Some(0));
        FREE.with(|free| assert_eq!(free.0[0].len.get(), FREE_BLOCKS_MAX));
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
