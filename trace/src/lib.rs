//! What the daemons of Pollux tell of calls and of their work as OpenTelemetry traces, if they are told to
//! ([`TraceSettings`]): spans that are sent to a collector by OTLP over gRPC.
//!
//! Spans are made by [`span!`], and are no part of the log; what is logged is no part of spans. Invariants:
//!
//! - Without a collector there are no spans: making one costs a look at a flag.
//! - Nobody waits for the collector. Spans wait in a queue of [`QUEUE_SPANS`]; what does not fit is dropped.
//!   That a collector is away is logged once, and that it is back.
//! - A span names things and tells codes. It never has what was sent or answered: no secret can be in it.
//!
//! Whose span is the parent of which goes along with calls, as W3C Trace Context (the header `traceparent`):
//! [`Calls`] sends it and [`ServedLayer`] reads it, or [`adopt`] where calls are not of gRPC. What is done
//! for somebody after the answer is put into the trace of the asker by its [`Origin`].

#![forbid(unsafe_code)]

mod calls;
mod code;
mod context;
mod export;
mod origin;
mod served;
mod settings;

use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

pub use calls::Calls;
pub use code::{CodedBody, CodedFuture};
pub use context::adopt;
pub use export::QUEUE_SPANS;
pub use origin::{Origin, Origins};
pub use served::{Served, ServedLayer};
pub use settings::{Collector, CollectorError, SampleRatio, SampleRatioError, TraceArguments, TraceSettings};

#[doc(hidden)]
pub use tracing as __tracing;

/// What all spans that are sent have as their target, and nothing else has.
#[doc(hidden)]
pub const TARGET: &str = "pollux_trace";

/// How long the last spans may take to be sent when the process ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A span of this name and these fields, as `tracing::info_span!` has them.
#[macro_export]
macro_rules! span {
    ($($arguments:tt)*) => {
        $crate::__tracing::info_span!(target: $crate::TARGET, $($arguments)*)
    };
}

/// Spans cannot be sent, or nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The parts that send cannot be made.
    #[error("traces cannot be sent to {collector}: {reason}")]
    Export {
        /// Where.
        collector: String,
        /// Why not.
        reason: String,
    },
    /// Something else logs already.
    #[error("the log was set up before: {0}")]
    Log(#[from] tracing_subscriber::util::TryInitError),
}

/// Who sends spans.
#[derive(Debug, Clone, Copy)]
pub struct Process<'a> {
    /// The program, which is the name of the service unless the settings have another one.
    pub name: &'static str,
    /// Which of those that run it is, such as the name of its node; empty if that is not known.
    pub instance: &'a str,
}

/// Spans are sent as long as this is there; dropped, it sends the last ones, within [`STOP_TIMEOUT`].
#[derive(Debug)]
#[must_use = "spans are sent no more once this is dropped"]
pub struct Tracing {
    /// It ends when it is dropped.
    _export: Option<export::Export>,
}

impl Tracing {
    /// Sends the last spans, and no more. Waits for that as long as it may take.
    pub fn stop(self) {
        drop(self);
    }
}

fn is_own(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET
}

/// Logs by a layer what passes its filter, and sends spans as is set; once in a process.
///
/// # Errors
///
/// [`TraceError`].
pub fn start<L, F>(
    log: L,
    filter: F,
    settings: &TraceSettings,
    process: Process<'_>,
) -> Result<Tracing, TraceError>
where
    L: Layer<tracing_subscriber::Registry> + Send + Sync + 'static,
    F: Filter<tracing_subscriber::Registry> + Send + Sync + 'static,
{
    let export = export::Export::start(settings, process)?;
    let log = log.with_filter(filter.and(filter_fn(|metadata| !is_own(metadata))));
    let registry = tracing_subscriber::registry().with(log);
    match &export {
        Some(export) => registry.with(layer(export.provider())).try_init()?,
        // A layer that is none would want all spans.
        None => registry.try_init()?,
    }
    Ok(Tracing { _export: export })
}

/// Makes spans of this crate those of a provider.
fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    use opentelemetry::trace::TracerProvider;

    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("pollux"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        .with_filter(filter_fn(is_own))
}

#[cfg(test)]
mod tests;
