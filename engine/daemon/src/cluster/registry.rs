//! Calls of the control plane: reports, who takes part in volumes, and reservations of their hosts.
//!
//! Of several control planes the one that answered last is asked first; one that does not answer is left for
//! the next one.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pollux_api::control::v1::registry_client::RegistryClient;
use pollux_api::control::v1::{
    EngineReport, GetMembershipRequest, GetReservationsRequest, Membership, ReportAnswer, Reservations,
    SwapMembershipRequest, SwapMembershipResponse, SwapReservationsRequest, SwapReservationsResponse,
};
use pollux_tls::Certificates;
use pollux_trace::Calls;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a silent control plane is asked whether it is still there, and how long it may take to say so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Control planes, by gRPC. Cheap to clone; clones are the same connections.
#[derive(Clone)]
pub(super) struct Registry {
    channels: Arc<[Calls<Channel>]>,
    /// The one that is asked first.
    preferred: Arc<AtomicUsize>,
}

impl Registry {
    /// Control planes at these addresses. They are connected to when they are called, and again when a
    /// connection broke.
    ///
    /// # Errors
    ///
    /// An address that is none, or certificates that cannot be used.
    pub(super) fn new(
        addresses: &[String],
        tls: Option<&Certificates>,
    ) -> Result<Self, tonic::transport::Error> {
        let channels = addresses.iter().map(|address| {
            let scheme = match tls {
                Some(_) => "https",
                None => "http",
            };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(CALL_TIMEOUT)
                .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .tcp_nodelay(true);
            let channel = match tls {
                Some(certificates) => certificates.channel(vec![endpoint])?,
                None => endpoint.connect_lazy(),
            };
            Ok(Calls::new(channel, "control"))
        });
        Ok(Self {
            channels: channels.collect::<Result<_, tonic::transport::Error>>()?,
            preferred: Arc::default(),
        })
    }

    /// Asks one after the other until one answers, be it with a refusal.
    async fn call<T, F>(&self, call: impl Fn(RegistryClient<Calls<Channel>>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let count = self.channels.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = Status::unavailable("there is no control plane");
        for at in (0..count).map(|offset| (first + offset) % count.max(1)) {
            let Some(channel) = self.channels.get(at) else {
                continue;
            };
            match call(RegistryClient::new(channel.clone())).await {
                Err(status) if is_unreachable(status.code()) => failure = status,
                answer => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return answer.map(tonic::Response::into_inner);
                }
            }
        }
        Err(failure)
    }

    /// Tells what is on this engine.
    pub(super) async fn report(&self, report: &EngineReport) -> Result<ReportAnswer, Status> {
        self.call(async |mut client| client.report(report.clone()).await)
            .await
    }

    /// Who takes part in a volume.
    pub(super) async fn membership(&self, request: &GetMembershipRequest) -> Result<Membership, Status> {
        self.call(async |mut client| client.get_membership(request.clone()).await)
            .await
    }

    /// Changes who takes part in a volume. When it is asked of several, it is done once.
    pub(super) async fn swap(
        &self,
        request: &SwapMembershipRequest,
    ) -> Result<SwapMembershipResponse, Status> {
        self.call(async |mut client| client.swap_membership(request.clone()).await)
            .await
    }

    /// The reservations of the hosts of a volume.
    pub(super) async fn reservations(
        &self,
        request: &GetReservationsRequest,
    ) -> Result<Reservations, Status> {
        self.call(async |mut client| client.get_reservations(request.clone()).await)
            .await
    }

    /// Keeps other reservations. When it is asked of several, it is done once.
    pub(super) async fn swap_reservations(
        &self,
        request: &SwapReservationsRequest,
    ) -> Result<SwapReservationsResponse, Status> {
        self.call(async |mut client| client.swap_reservations(request.clone()).await)
            .await
    }
}

/// Why a call failed, for people: what went wrong below, if it did, as that says more.
pub(super) fn why(status: &Status) -> String {
    let cause = std::iter::successors(status.source(), |&cause| cause.source()).last();
    cause.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

fn is_unreachable(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
    )
}
