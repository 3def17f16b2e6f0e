//! Doing things with trees whose pages may have to be loaded first.

use std::cell::Cell;
use std::rc::Rc;

use pollux_reactor::{Signal, spawn};

use super::error::of_tree;
use super::{Pool, PoolError, State};
use crate::cache::load;
use crate::layout::PagePointer;
use crate::layout::page::PageIdentity;
use crate::tree::TreeError;

/// How often something is begun anew because a page was not there: pages that were loaded may be dropped
/// again before they are used, if memory is very short.
const LOADS_MAX: u32 = 100_000;

/// A page being read.
#[derive(Default)]
pub(crate) struct Load {
    result: Cell<Option<Result<(), PoolError>>>,
    done: Signal,
}

impl Load {
    fn result(&self) -> Option<Result<(), PoolError>> {
        let result = self.result.take();
        self.result.set(result.clone());
        result
    }
}

impl Pool {
    /// Does something with the trees, again and again until no page is absent. `act` must change nothing
    /// before it returns [`TreeError::Absent`].
    ///
    /// # Errors
    ///
    /// [`PoolError::Page`], [`PoolError::NoSpace`] and what `act` says.
    pub(crate) async fn with_pages<T>(
        self: &Rc<Self>,
        mut act: impl FnMut(&mut State) -> Result<T, TreeError>,
    ) -> Result<T, PoolError> {
        for _ in 0..LOADS_MAX {
            let result = act(&mut self.state.borrow_mut());
            match result {
                Ok(value) => return Ok(value),
                Err(TreeError::Absent { pointer, identity }) => self.load(pointer, identity).await?,
                Err(error) => return Err(of_tree(error)),
            }
        }
        Err(PoolError::Device(pollux_device::IoError::ResourceShortage))
    }

    /// Has a page in memory. Those who want the same one wait for one read of it.
    pub(crate) async fn load(
        self: &Rc<Self>,
        pointer: PagePointer,
        identity: PageIdentity,
    ) -> Result<(), PoolError> {
        // Without a CRC yet, if its checkpoint sealed it after whoever asks had come by.
        let pointer = self.state.borrow().cache.sealed(pointer);
        let key = pointer.first.raw();
        let found = self.state.borrow().loads.get(&key).cloned();
        let wait = found.unwrap_or_else(|| {
            let fresh = Rc::new(Load::default());
            self.state.borrow_mut().loads.insert(key, fresh.clone());
            let (pool, told) = (self.clone(), fresh.clone());
            // A task of its own, so that nobody waits for one who has gone away.
            spawn(async move {
                let result = pool.read_page(&pointer, &identity).await;
                pool.state.borrow_mut().loads.remove(&key);
                told.result.set(Some(result));
                told.done.wake();
            })
            .detach();
            fresh
        });
        wait.done.until(|| wait.result()).await
    }

    async fn read_page(&self, pointer: &PagePointer, identity: &PageIdentity) -> Result<(), PoolError> {
        let devices = self.devices.borrow().clone();
        let page = load(self.uuid, &devices, pointer, identity).await?;
        let mut state = self.state.borrow_mut();
        state.counters.pages_read += 1;
        state.metadata().insert(pointer, page)?;
        Ok(())
    }
}
