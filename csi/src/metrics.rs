//! What is counted of calls, in the text format of Prometheus, and where it is read.
//!
//! A layer around all services counts: it sees the method and the code, never what is asked, in which there
//! may be secrets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pollux_tls::{Certificates, Ends};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tonic::codegen::http;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Upper ends of the times that are told apart, in seconds.
const BUCKETS_S: [f64; 9] = [0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0];

/// Longest request for metrics.
const REQUEST_BYTES_MAX: usize = 8192;

/// How long somebody may take to ask for metrics.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Those who may ask at a time.
const READERS_MAX: usize = 16;

/// What is counted of one method.
#[derive(Debug, Clone, Default)]
struct Method {
    by_code: BTreeMap<i32, u64>,
    buckets: [u64; BUCKETS_S.len()],
    seconds: f64,
    under_way: u64,
}

/// What is counted of all calls. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    methods: Arc<Mutex<BTreeMap<String, Method>>>,
    certificates: Option<Certificates>,
}

impl Metrics {
    /// The same, which also tells when certificates end.
    #[must_use]
    pub fn with_certificates(self, certificates: Option<Certificates>) -> Self {
        Self { certificates, ..self }
    }

    fn with<T>(&self, method: &str, change: impl FnOnce(&mut Method) -> T) -> T {
        // Nothing that is done with the lock held can leave it half done.
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        change(methods.entry(method.to_owned()).or_default())
    }

    fn begin(&self, method: &str) {
        self.with(method, |counted| counted.under_way += 1);
    }

    fn end(&self, method: &str, code: Code, time: Duration) {
        self.with(method, |counted| {
            counted.under_way = counted.under_way.saturating_sub(1);
            *counted.by_code.entry(code.into()).or_default() += 1;
            counted.seconds += time.as_secs_f64();
            for (count, end) in counted.buckets.iter_mut().zip(BUCKETS_S) {
                if time.as_secs_f64() <= end {
                    *count += 1;
                }
            }
        });
    }

    /// In the text format of Prometheus, version 0.0.4.
    pub fn text(&self) -> String {
        let methods = self
            .methods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut text = String::new();
        // Writing to a text cannot fail.
        let _ = self::write(&mut text, &methods);
        if let Some(certificates) = &self.certificates {
            let _ = write_ends(&mut text, certificates.ends());
        }
        text
    }
}

fn write_ends(text: &mut String, ends: Ends) -> std::fmt::Result {
    let name = "pollux_certificate_expiry_timestamp_seconds";
    writeln!(
        text,
        "# HELP {name} When a certificate in use ends, since 1970 in UTC; of several authorities, when the \
         last does."
    )?;
    writeln!(text, "# TYPE {name} gauge")?;
    for (certificate, end) in [("own", ends.own_unix_s), ("authority", ends.authority_unix_s)] {
        writeln!(
            text,
            "{name}{{of=\"control\",certificate=\"{certificate}\"}} {end}"
        )?;
    }
    Ok(())
}

fn write(text: &mut String, methods: &BTreeMap<String, Method>) -> std::fmt::Result {
    writeln!(text, "# HELP pollux_csi_calls_total Calls that have ended.")?;
    writeln!(text, "# TYPE pollux_csi_calls_total counter")?;
    for (method, counted) in methods {
        for (code, count) in &counted.by_code {
            let code = Code::from_i32(*code);
            writeln!(
                text,
                "pollux_csi_calls_total{{method=\"{method}\",code=\"{code:?}\"}} {count}"
            )?;
        }
    }
    writeln!(
        text,
        "# HELP pollux_csi_calls_under_way Calls that have not ended."
    )?;
    writeln!(text, "# TYPE pollux_csi_calls_under_way gauge")?;
    for (method, counted) in methods {
        writeln!(
            text,
            "pollux_csi_calls_under_way{{method=\"{method}\"}} {}",
            counted.under_way
        )?;
    }
    writeln!(text, "# HELP pollux_csi_call_seconds Time that calls took.")?;
    writeln!(text, "# TYPE pollux_csi_call_seconds histogram")?;
    for (method, counted) in methods {
        for (count, end) in counted.buckets.iter().zip(BUCKETS_S) {
            writeln!(
                text,
                "pollux_csi_call_seconds_bucket{{method=\"{method}\",le=\"{end}\"}} {count}"
            )?;
        }
        let total: u64 = counted.by_code.values().sum();
        writeln!(
            text,
            "pollux_csi_call_seconds_bucket{{method=\"{method}\",le=\"+Inf\"}} {total}"
        )?;
        writeln!(
            text,
            "pollux_csi_call_seconds_sum{{method=\"{method}\"}} {}",
            counted.seconds
        )?;
        writeln!(
            text,
            "pollux_csi_call_seconds_count{{method=\"{method}\"}} {total}"
        )?;
    }
    Ok(())
}

/// Counts what goes through.
impl<S> Layer<S> for Metrics {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            metrics: self.clone(),
        }
    }
}

/// A service of which calls are counted.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

/// A call that is under way; one that is dropped before its end was cancelled.
struct Call {
    metrics: Metrics,
    method: String,
    began: Instant,
    code: Code,
}

impl Drop for Call {
    fn drop(&mut self) {
        let time = self.began.elapsed();
        self.metrics.end(&self.method, self.code, time);
        match self.code {
            Code::Ok => tracing::debug!(method = self.method, ?time, "done"),
            code => tracing::info!(method = self.method, ?code, ?time, "not done"),
        }
    }
}

impl<S, B, R> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = known(request.uri().path());
        self.metrics.begin(&method);
        let call = Call {
            metrics: self.metrics.clone(),
            method,
            began: Instant::now(),
            code: Code::Cancelled,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // All of it is moved here, so that it ends with the call.
            let mut call = call;
            let answer = answer.await;
            call.code = match &answer {
                // The status of an answer with a message comes after it; what failed has it in front.
                Ok(answer) => match Status::from_header_map(answer.headers()) {
                    Some(status) => {
                        if status.code() != Code::Ok {
                            tracing::info!(method = call.method, reason = status.message(), "refused");
                        }
                        status.code()
                    }
                    None => Code::Ok,
                },
                Err(_) => Code::Internal,
            };
            answer
        })
    }
}

/// The method of a path such as `/csi.v1.Node/NodeGetInfo`. Whoever calls what is not there adds no names
/// of their own.
fn known(path: &str) -> String {
    let method = path
        .strip_prefix("/csi.v1.")
        .and_then(|rest| rest.split_once('/'));
    let is_name = |name: &str| {
        !name.is_empty() && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphabetic())
    };
    match method {
        Some((service, method)) if is_name(service) && is_name(method) => method.to_owned(),
        _ => "other".to_owned(),
    }
}

/// Answers those who read metrics, until `stop` turns true.
pub async fn serve(listener: TcpListener, metrics: Metrics, mut stop: watch::Receiver<bool>) {
    let readers = Arc::new(Semaphore::new(READERS_MAX));
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let Ok(permit) = readers.clone().try_acquire_owned() else {
            continue;
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            // Who asks badly or goes away gets nothing.
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &metrics)).await;
            drop(permit);
        });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).await?;
        request.extend_from_slice(part.get(..length).unwrap_or_default());
        if length == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
    }
    let (status, body) = match request.starts_with(b"GET /metrics ") {
        true => ("200 OK", metrics.text()),
        false => ("404 Not Found", "ask for /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told() {
        let metrics = Metrics::default();
        metrics.begin("A");
        metrics.begin("A");
        metrics.end("A", Code::NotFound, Duration::from_millis(50));
        let text = metrics.text();
        for line in [
            "pollux_csi_calls_total{method=\"A\",code=\"NotFound\"} 1",
            "pollux_csi_calls_under_way{method=\"A\"} 1",
            "pollux_csi_call_seconds_bucket{method=\"A\",le=\"0.02\"} 0",
            "pollux_csi_call_seconds_bucket{method=\"A\",le=\"0.1\"} 1",
            "pollux_csi_call_seconds_count{method=\"A\"} 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    /// As the other daemons tell it: one alert is for all.
    #[test]
    fn the_end_of_certificates_is_told() {
        let mut text = String::new();
        let ends = Ends {
            own_unix_s: 5,
            authority_unix_s: 7,
        };
        write_ends(&mut text, ends).expect("a text takes all");
        for line in [
            "# TYPE pollux_certificate_expiry_timestamp_seconds gauge",
            "pollux_certificate_expiry_timestamp_seconds{of=\"control\",certificate=\"own\"} 5",
            "pollux_certificate_expiry_timestamp_seconds{of=\"control\",certificate=\"authority\"} 7",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn strangers_add_no_names() {
        assert_eq!(known("/csi.v1.Node/NodeGetInfo"), "NodeGetInfo");
        for path in [
            "",
            "/",
            "/x/y",
            "/csi.v1.Node/",
            "/csi.v1.Node/a\"b",
            "/csi.v1./x",
        ] {
            assert_eq!(known(path), "other", "{path}");
        }
    }

    #[tokio::test]
    async fn metrics_are_read_by_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, Metrics::default(), stopped));
        for (request, status) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200"),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
        ] {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.write_all(request.as_bytes()).await.expect("it reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("it answers");
            assert!(answer.starts_with(status), "{answer}");
        }
        stop.send_replace(true);
        server.await.expect("it ends");
    }
}
