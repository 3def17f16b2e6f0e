//! Spans on their way to the collector.
//!
//! A thread of the SDK takes them from a bounded queue; the connection has a thread and a runtime of its own,
//! so that it works in programs whose runtime is not there yet, or not any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use tokio::runtime::{Handle, Runtime};
use tonic::transport::Endpoint;

use crate::settings::TraceSettings;
use crate::{Process, STOP_TIMEOUT, TraceError};

/// Spans that wait to be sent; what does not fit is dropped.
pub const QUEUE_SPANS: usize = 4096;

/// Spans that are sent at a time.
const BATCH_SPANS: usize = 512;

/// How long the first span of a batch waits for others.
const BATCH_DELAY: Duration = Duration::from_millis(500);

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long sending a batch may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Export {
    provider: SdkTracerProvider,
    runtime: Option<Runtime>,
}

impl Export {
    /// Sends spans, if it is set where to.
    pub(crate) fn start(settings: &TraceSettings, process: Process<'_>) -> Result<Option<Self>, TraceError> {
        let Some(collector) = &settings.otlp else {
            return Ok(None);
        };
        let failed = |error: &dyn std::fmt::Display| TraceError::Export {
            collector: collector.to_string(),
            reason: error.to_string(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let channel = {
            // A connection needs a runtime from the start, though it connects later.
            let _entered = runtime.enter();
            Endpoint::from_shared(collector.as_str().to_owned())
                .map_err(|error| failed(&error))?
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(SEND_TIMEOUT)
                .connect_lazy()
        };
        let otlp = OtlpExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .build()
            .map_err(|error| failed(&error))?;
        let exporter = Exporter {
            otlp: Arc::new(otlp),
            runtime: runtime.handle().clone(),
            collector: collector.to_string(),
            is_away: Arc::default(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS)
            .with_max_export_batch_size(BATCH_SPANS)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                settings.sample_ratio.part(),
            ))))
            .with_resource(resource(settings, process))
            .build();
        Ok(Some(Self {
            provider,
            runtime: Some(runtime),
        }))
    }

    pub(crate) fn provider(&self) -> &SdkTracerProvider {
        &self.provider
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // What cannot be sent by then is lost.
        let _ = self.provider.shutdown_with_timeout(STOP_TIMEOUT);
        if let Some(runtime) = self.runtime.take() {
            // Waiting is forbidden on threads of other runtimes, and there is nothing to wait for.
            runtime.shutdown_background();
        }
    }
}

fn resource(settings: &TraceSettings, process: Process<'_>) -> Resource {
    let name = settings
        .service
        .clone()
        .unwrap_or_else(|| process.name.to_owned());
    let mut attributes = vec![
        KeyValue::new("service.name", name),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    if !process.instance.is_empty() {
        attributes.push(KeyValue::new("service.instance.id", process.instance.to_owned()));
    }
    Resource::builder_empty().with_attributes(attributes).build()
}

/// Sends on the own runtime, and tells once that nobody is there.
#[derive(Debug)]
struct Exporter {
    otlp: Arc<OtlpExporter>,
    runtime: Handle,
    collector: String,
    is_away: Arc<AtomicBool>,
}

/// Notes whether a batch arrived: what differs from the one before is logged.
fn note(is_away: &AtomicBool, collector: &str, result: &OTelSdkResult) {
    let was_away = is_away.swap(result.is_err(), Ordering::Relaxed);
    match result {
        Err(error) if !was_away => {
            tracing::warn!(%collector, %error, "traces are lost: their collector does not take them");
        }
        Ok(()) if was_away => tracing::info!(%collector, "the collector takes traces again"),
        _ => {}
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let otlp = self.otlp.clone();
        let sent = self
            .runtime
            .spawn(async move { tokio::time::timeout(SEND_TIMEOUT, otlp.export(batch)).await });
        let result = match sent.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(OTelSdkError::Timeout(SEND_TIMEOUT)),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        };
        note(&self.is_away, &self.collector, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(otlp) = Arc::get_mut(&mut self.otlp) {
            otlp.set_resource(resource);
        }
    }
}
