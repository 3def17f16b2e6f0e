//! The future of a request: ready at once, or recycled memory.
//!
//! A request that is *held* has not begun: nothing has been asked of the medium, and dropping its completion
//! takes it back. Any other may be done in part, or still be done, whatever becomes of its completion.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pollux_reactor::PooledFuture;

use crate::error::IoError;
use crate::metered::Measure;
use crate::request::Reply;

enum State {
    Ready(Result<Reply, IoError>),
    /// Not begun; then it is what the future gives.
    Held(PooledFuture<Completion>),
    Pending(PooledFuture<Result<Reply, IoError>>),
    Taken,
}

/// Completes with what a request returned. Polling it again afterwards gives [`IoError::Internal`].
#[must_use = "the request may be abandoned when its completion is dropped"]
pub struct Completion {
    state: State,
    /// What is told once it is done.
    measure: Option<Measure>,
}

impl Completion {
    /// Ready at once.
    #[inline]
    pub fn ready(result: Result<Reply, IoError>) -> Self {
        Self::of(State::Ready(result))
    }

    /// Ready at once, with nothing to return.
    #[inline]
    pub fn done() -> Self {
        Self::ready(Ok(Reply::Done))
    }

    /// Ready at once, with an error.
    #[inline]
    pub fn failed(error: IoError) -> Self {
        Self::ready(Err(error))
    }

    /// Ready when the future is.
    pub fn from_future(future: impl Future<Output = Result<Reply, IoError>> + 'static) -> Self {
        Self::of(State::Pending(PooledFuture::new(future)))
    }

    /// A request that begins when the future is ready, and then is what the future gives. Until then dropping
    /// it takes it back.
    pub fn held(begin: impl Future<Output = Self> + 'static) -> Self {
        Self::of(State::Held(PooledFuture::new(begin)))
    }

    /// Whether the request has not begun: dropping it takes it back.
    pub fn is_held(&self) -> bool {
        matches!(self.state, State::Held(_))
    }

    /// Ready once the request has begun.
    pub fn poll_begun(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let State::Held(begin) = &mut self.state {
            let begun = std::task::ready!(Pin::new(begin).poll(context));
            self.state = match begun {
                Self { state, measure: None } => state,
                measured => State::Pending(PooledFuture::new(measured)),
            };
        }
        Poll::Ready(())
    }

    #[inline]
    fn of(state: State) -> Self {
        Self { state, measure: None }
    }

    /// The same, measured when it is done.
    pub(crate) fn measured(self, measure: Measure) -> Self {
        match self {
            Self {
                state: State::Ready(result),
                measure: None,
            } => {
                measure.finish(&result);
                Self::ready(result)
            }
            Self { state, measure: None } => Self {
                state,
                measure: Some(measure),
            },
            // Two devices measure it, one around the other.
            measured => Self {
                measure: Some(measure),
                ..Self::from_future(measured)
            },
        }
    }

    /// The result, if the request was done at once.
    ///
    /// # Errors
    ///
    /// The completion itself, to be awaited.
    #[inline]
    pub fn try_take(self) -> Result<Result<Reply, IoError>, Self> {
        match self {
            Self {
                state: State::Ready(result),
                measure,
            } => {
                measure.into_iter().for_each(|measure| measure.finish(&result));
                Ok(result)
            }
            waiting => Err(waiting),
        }
    }
}

impl Future for Completion {
    type Output = Result<Reply, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.is_held() {
            std::task::ready!(self.poll_begun(context));
        }
        if let State::Pending(future) = &mut self.state {
            let output = std::task::ready!(Pin::new(future).poll(context));
            self.state = State::Taken;
            if let Some(measure) = self.measure.take() {
                measure.finish(&output);
            }
            return Poll::Ready(output);
        }
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(result) => {
                if let Some(measure) = self.measure.take() {
                    measure.finish(&result);
                }
                Poll::Ready(result)
            }
            State::Held(_) | State::Pending(_) | State::Taken => Poll::Ready(Err(IoError::Internal)),
        }
    }
}
