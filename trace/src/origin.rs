//! For whom something is done that is done after the answer, or on another thread.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// After so long, what is done is not done for somebody who asked for it any more.
const AGE_MAX: Duration = Duration::from_secs(60);

/// Things of which it is known at a time who asked for them.
const ORIGINS_MAX: usize = 4096;

/// The span in which something was asked for.
#[derive(Debug, Clone)]
pub struct Origin {
    asked: SpanContext,
    at: Instant,
}

impl Origin {
    /// The span that is entered; nothing if there is none.
    pub fn current() -> Option<Self> {
        Self::of(&Span::current())
    }

    /// A span, be it sent or not: what is done for one that is not sent is not sent either. Nothing if there
    /// are no spans.
    pub fn of(span: &Span) -> Option<Self> {
        if span.is_disabled() {
            return None;
        }
        let asked = span.context().span().span_context().clone();
        asked.is_valid().then(|| Self {
            asked,
            at: Instant::now(),
        })
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.at.elapsed() < AGE_MAX
    }

    /// Makes a span that was just made, and not entered yet, part of what was asked for, unless that is too
    /// long ago.
    pub fn adopt(&self, span: &Span) {
        if self.is_fresh() && !span.is_disabled() {
            // One that has begun stays where it is.
            let _ = span.set_parent(Context::new().with_remote_span_context(self.asked.clone()));
        }
    }
}

/// Who asked for what, by the UUID of a thing: the last one that did.
#[derive(Debug, Default)]
pub struct Origins {
    known: Mutex<HashMap<String, Origin>>,
    /// How many these are, so that nobody waits for others to learn that there are none.
    count: AtomicUsize,
}

impl Origins {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Origin>> {
        // Nothing that is done with the lock held can leave it half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is asked for in the span that is entered.
    pub fn note(&self, thing: &str) {
        let Some(origin) = Origin::current() else { return };
        let mut known = self.lock();
        if known.len() >= ORIGINS_MAX {
            known.retain(|_, origin| origin.is_fresh());
        }
        if known.len() < ORIGINS_MAX || known.contains_key(thing) {
            known.insert(thing.to_owned(), origin);
        }
        self.count.store(known.len(), Ordering::Relaxed);
    }

    /// Who asked for something lately, if that is known.
    pub fn of(&self, thing: &str) -> Option<Origin> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let known = self.lock();
        known.get(thing).filter(|origin| origin.is_fresh()).cloned()
    }
}
