//! Something of one reactor that other threads can have the reactor find.
//!
//! Invariants:
//! - The thing is touched on the thread of its owner only: what travels is a number, under which a table of
//!   that thread has it.
//! - It lives until the last [`Owned`] of it is dropped, or its owner stops; a task of the owner keeps it.
//! - Numbers are never used twice in a process, so that reactors that share a thread, as in a simulation,
//!   cannot take one for another.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_channel::oneshot;
use pollux_reactor::{ReactorHandle, RemoteCallError, current, spawn};

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static OF_THIS_THREAD: RefCell<HashMap<u64, Weak<dyn Any>>> = RefCell::default();
}

/// Something that one reactor has, to be found there again from every thread. See the module's invariants.
pub struct Owned<T> {
    owner: ReactorHandle,
    number: u64,
    /// Its end ends the task that keeps the thing.
    _keeper: oneshot::Sender<Infallible>,
    /// Neither its own nor shared: only found.
    found: PhantomData<fn() -> T>,
}

/// A line of the table, taken out when dropped.
struct Listed(u64);

impl Drop for Listed {
    fn drop(&mut self) {
        // At the end of the thread the table may be gone already.
        let _ = OF_THIS_THREAD.try_with(|table| table.borrow_mut().remove(&self.0));
    }
}

fn find<T: 'static>(number: u64) -> Option<Rc<T>> {
    let found = OF_THIS_THREAD.with_borrow(|table| table.get(&number)?.upgrade())?;
    found.downcast().ok()
}

impl<T: 'static> Owned<T> {
    /// Keeps something on the current reactor.
    pub fn new(thing: Rc<T>) -> Arc<Self> {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let any: Rc<dyn Any> = thing.clone();
        OF_THIS_THREAD.with_borrow_mut(|table| table.insert(number, Rc::downgrade(&any)));
        let (keeper, end) = oneshot::channel::<Infallible>();
        let listed = Listed(number);
        spawn(async move {
            let _kept = (listed, any);
            // It ends by the end of the sender.
            let _ = end.await;
        })
        .detach();
        Arc::new(Self {
            owner: current().handle(),
            number,
            _keeper: keeper,
            found: PhantomData,
        })
    }

    /// The reactor that has it.
    pub fn owner(&self) -> &ReactorHandle {
        &self.owner
    }

    /// The thing itself, on the thread that has it.
    pub fn here(&self) -> Option<Rc<T>> {
        find(self.number)
    }

    /// Has the owner do something with it.
    ///
    /// # Errors
    ///
    /// [`RemoteCallError`].
    pub async fn call<F, R>(
        &self,
        act: impl FnOnce(Rc<T>) -> F + Send + 'static,
    ) -> Result<R, RemoteCallError>
    where
        F: Future<Output = R> + 'static,
        R: Send + 'static,
    {
        let (number, id) = (self.number, self.owner.id());
        let called = self.owner.call(move || async move {
            match find::<T>(number) {
                Some(thing) => Ok(act(thing).await),
                None => Err(RemoteCallError::Stopped(id)),
            }
        });
        called.await?
    }
}
