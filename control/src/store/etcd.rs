//! A store in etcd, for a control plane of several instances.
//!
//! Keys stand below a prefix, so that one etcd can serve several clusters. Revisions are etcd's own. The
//! leader holds a key with a lease: if it cannot renew it in time, it counts itself out before etcd does.
//!
//! Each transaction writes one key beside all others, which is in no list and no watch: the revision of etcd
//! is raised by other clusters too, and that of this key tells which was the last transaction of this one.

use std::fmt;
use std::time::Duration;

use pollux_api::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use pollux_api::etcd::kv_client::KvClient;
use pollux_api::etcd::lease_client::LeaseClient;
use pollux_api::etcd::request_op::Request as Operation;
use pollux_api::etcd::response_op::Response as Answer;
use pollux_api::etcd::watch_client::WatchClient;
use pollux_api::etcd::watch_event::EventType;
use pollux_api::etcd::watch_request::RequestUnion;
use pollux_api::etcd::{
    Compare, DeleteRangeRequest, KeyValue, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use pollux_tls::Certificates;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Error};
use tonic::{Status, Streaming};

use super::{
    Change, Condition, Entry, KEY_BYTES_MAX, LEADER_KEY, Leadership, Listing, PAGE_ENTRIES_MAX, Range, Store,
    StoreError, Transaction, VALUE_BYTES_MAX, Watcher, Write, check,
};

/// Largest answer, in bytes: a page of the largest values.
const ANSWER_BYTES_MAX: usize = (PAGE_ENTRIES_MAX + 1) * (VALUE_BYTES_MAX + KEY_BYTES_MAX);

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two looks at whether somebody else still leads.
const CAMPAIGN_INTERVAL: Duration = Duration::from_millis(500);

/// What the key that each transaction writes ends with, behind the prefix. Keys begin with a slash there.
const CHANGED: &str = "#changed";

/// What separates the keys of one cluster from those of others.
const PREFIX_DEFAULT: &str = "/pollux";

/// Where etcd is, and how it is used.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// Addresses of its members, as `http://HOST:PORT`, or `https://HOST:PORT` with `tls`.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// For how long a leader that is silent keeps the lead, in seconds: 2 or more.
    pub lease_seconds: u32,
    /// How etcd is trusted, and this instance by it.
    pub tls: Option<Certificates>,
}

impl Default for EtcdSettings {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: PREFIX_DEFAULT.to_owned(),
            lease_seconds: 10,
            tls: None,
        }
    }
}

/// A store in etcd.
#[derive(Clone)]
pub struct EtcdStore {
    channel: Channel,
    settings: EtcdSettings,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EtcdStore")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Connects to etcd.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`].
    pub async fn connect(settings: EtcdSettings) -> Result<Self, StoreError> {
        let mut endpoints = Vec::new();
        for endpoint in &settings.endpoints {
            let failed = |error: Error| settings.failed(&format!("{endpoint}: {error}"));
            let endpoint = Endpoint::from_shared(endpoint.clone())
                .map_err(failed)?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(CALL_TIMEOUT)
                .keep_alive_timeout(CONNECT_TIMEOUT);
            endpoints.push(endpoint);
        }
        let channel = match &settings.tls {
            Some(certificates) => certificates
                .channel(endpoints)
                .map_err(|error| settings.failed(&error.to_string()))?,
            None => Channel::balance_list(endpoints.into_iter()),
        };
        let store = Self { channel, settings };
        // Connecting is lazy; a first question tells whether somebody answers.
        store.get(LEADER_KEY).await?;
        Ok(store)
    }

    fn keys(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    fn leases(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.settings.prefix)
    }

    fn entry(&self, pair: KeyValue) -> Result<Entry, StoreError> {
        Ok(Entry {
            key: own_key(&self.settings.prefix, &pair)?,
            revision: unsigned(pair.mod_revision),
            value: pair.value,
        })
    }

    /// One page, as of a revision if one is given.
    async fn page(&self, range: &Range<'_>, revision: Option<u64>) -> Result<Listing, StoreError> {
        let key = match range.after {
            // The next possible key.
            Some(after) if after >= range.prefix => [self.full(after).as_bytes(), &[0]].concat(),
            _ => self.full(range.prefix).into_bytes(),
        };
        let request = RangeRequest {
            key,
            range_end: end_of(&self.full(range.prefix)),
            limit: signed(range.limit.clamp(1, PAGE_ENTRIES_MAX) as u64),
            revision: revision.map_or(0, signed),
        };
        let answer = self
            .settings
            .in_time(self.keys().range(request))
            .await?
            .into_inner();
        let entries: Result<Vec<Entry>, StoreError> =
            answer.kvs.into_iter().map(|pair| self.entry(pair)).collect();
        Ok(Listing {
            entries: entries?,
            more: answer.more,
            revision: revision.unwrap_or(header_revision(answer.header.as_ref())),
        })
    }
}

impl EtcdSettings {
    /// Waits for an answer, but not for ever.
    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, StoreError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(result) => result.map_err(|status| self.unavailable(&status)),
            Err(_) => Err(self.failed(&format!("no answer in {} s", CALL_TIMEOUT.as_secs()))),
        }
    }

    /// Something is wrong with its members: any of them may have been asked.
    fn failed(&self, what: &str) -> StoreError {
        StoreError::Unavailable(format!("etcd at {}: {what}", self.endpoints.join(", ")))
    }

    fn unavailable(&self, status: &Status) -> StoreError {
        let mut text = status.message().to_owned();
        let mut source = std::error::Error::source(status);
        while let Some(inner) = source {
            text = inner.to_string();
            source = inner.source();
        }
        self.failed(&text)
    }
}

fn own_key(prefix: &str, pair: &KeyValue) -> Result<String, StoreError> {
    let key =
        std::str::from_utf8(&pair.key).map_err(|_| StoreError::Damaged("a key is not UTF-8".to_owned()))?;
    let own = key.strip_prefix(prefix).unwrap_or(key);
    Ok(own.to_owned())
}

/// The first key after all that begin with `prefix`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // For etcd, a single zero is the end of all keys.
    vec![0]
}

fn header_revision(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| unsigned(header.revision))
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Holds if a key was last written by a revision; 0: if it is not there.
fn written_by(key: String, revision: u64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.into_bytes(),
        target_union: Some(TargetUnion::ModRevision(signed(revision))),
    }
}

fn operation(request: Operation) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

#[tonic::async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let request = RangeRequest {
            key: self.full(key).into_bytes(),
            ..RangeRequest::default()
        };
        let answer = self
            .settings
            .in_time(self.keys().range(request))
            .await?
            .into_inner();
        answer
            .kvs
            .into_iter()
            .next()
            .map(|pair| self.entry(pair))
            .transpose()
    }

    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError> {
        self.page(&range, None).await
    }

    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut all: Option<Listing> = None;
        loop {
            let after = all.as_ref().and_then(|listing| listing.entries.last());
            let after = after.map(|entry| entry.key.clone());
            let range = Range {
                prefix,
                after: after.as_deref(),
                limit: PAGE_ENTRIES_MAX,
            };
            let page = self
                .page(&range, all.as_ref().map(|listing| listing.revision))
                .await?;
            let all = match &mut all {
                Some(all) => {
                    all.entries.extend(page.entries);
                    all.more = page.more;
                    all
                }
                None => all.insert(page),
            };
            if !all.more {
                return Ok(all.clone());
            }
        }
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        // Linearizable, as all that is read here. Before the first transaction it is not there.
        let changed = self.get(CHANGED).await?;
        Ok(changed.map_or(0, |entry| entry.revision))
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        check(&transaction)?;
        let mut request = TxnRequest::default();
        for condition in &transaction.conditions {
            let key = self.full(&condition.key);
            request.compare.push(written_by(key.clone(), condition.revision));
            // So that it can be told which one did not hold.
            request
                .failure
                .push(operation(Operation::RequestRange(RangeRequest {
                    key: key.into_bytes(),
                    ..RangeRequest::default()
                })));
        }
        for write in transaction.writes {
            let key = self.full(write.key()).into_bytes();
            request.success.push(operation(match write {
                Write::Put { value, .. } => Operation::RequestPut(PutRequest { key, value, lease: 0 }),
                Write::Delete { .. } => Operation::RequestDeleteRange(DeleteRangeRequest { key }),
            }));
        }
        if !request.success.is_empty() {
            let changed = PutRequest {
                key: self.full(CHANGED).into_bytes(),
                ..PutRequest::default()
            };
            request.success.push(operation(Operation::RequestPut(changed)));
        }
        let answer = self
            .settings
            .in_time(self.keys().txn(request))
            .await?
            .into_inner();
        if answer.succeeded {
            return Ok(header_revision(answer.header.as_ref()));
        }
        let found = answer.responses.into_iter().map(|answer| match answer.response {
            Some(Answer::ResponseRange(range)) => {
                range.kvs.first().map_or(0, |pair| unsigned(pair.mod_revision))
            }
            _ => 0,
        });
        let failed = transaction
            .conditions
            .into_iter()
            .zip(found)
            .find(|(condition, found)| condition.revision != *found);
        let key = failed.map_or_else(String::new, |(condition, _)| condition.key);
        Err(StoreError::Conflict { key })
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Box<dyn Watcher>, StoreError> {
        let create = WatchCreateRequest {
            key: self.full(prefix).into_bytes(),
            range_end: end_of(&self.full(prefix)),
            start_revision: signed(after_revision.saturating_add(1)),
        };
        let (sender, receiver) = mpsc::channel(1);
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        if sender.send(request).await.is_err() {
            return Err(self.settings.failed("the watch could not be asked for"));
        }
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let stream = self
            .settings
            .in_time(client.watch(ReceiverStream::new(receiver)))
            .await?
            .into_inner();
        let mut watcher = EtcdWatcher {
            stream,
            waiting: Vec::new(),
            settings: self.settings.clone(),
            after_revision,
            _requests: sender,
        };
        watcher.begin().await?;
        Ok(Box::new(watcher))
    }

    async fn lead(&self, instance: &str) -> Result<Leadership, StoreError> {
        let seconds = self.settings.lease_seconds.max(2);
        let patience = Duration::from_secs(u64::from(seconds));
        let key = self.full(LEADER_KEY);
        let mut leases = self.leases();
        loop {
            let held_since = Instant::now();
            let grant = LeaseGrantRequest {
                ttl: i64::from(seconds),
            };
            let lease = self
                .settings
                .in_time(leases.lease_grant(grant))
                .await?
                .into_inner();
            if !lease.error.is_empty() {
                return Err(self.settings.failed(&lease.error));
            }
            let put = Operation::RequestPut(PutRequest {
                key: key.clone().into_bytes(),
                value: instance.as_bytes().to_vec(),
                lease: lease.id,
            });
            let request = TxnRequest {
                compare: vec![written_by(key.clone(), 0)],
                success: vec![operation(put)],
                failure: Vec::new(),
            };
            let answer = self
                .settings
                .in_time(self.keys().txn(request))
                .await?
                .into_inner();
            if answer.succeeded {
                let term = header_revision(answer.header.as_ref());
                let (sender, lost) = watch::channel(false);
                let lease = HeldLease {
                    client: leases,
                    id: lease.id,
                    held_since,
                    patience,
                };
                tokio::spawn(lease.keep(sender));
                return Ok(Leadership {
                    term,
                    condition: Condition {
                        key: LEADER_KEY.to_owned(),
                        revision: term,
                    },
                    lost,
                });
            }
            self.settings
                .in_time(leases.lease_revoke(LeaseRevokeRequest { id: lease.id }))
                .await?;
            while self.get(LEADER_KEY).await?.is_some() {
                tokio::time::sleep(CAMPAIGN_INTERVAL).await;
            }
        }
    }
}

/// The lease of a leader.
struct HeldLease {
    client: LeaseClient<Channel>,
    id: i64,
    held_since: Instant,
    patience: Duration,
}

impl HeldLease {
    /// Renews the lease until nobody wants it any more, or it cannot be renewed; then it tells so, while
    /// etcd still keeps the lease for a third of its time.
    async fn keep(mut self, lost: watch::Sender<bool>) {
        let confident = self.patience * 2 / 3;
        let mut deadline = self.held_since + confident;
        let mut stream = None;
        loop {
            match tokio::time::timeout_at(deadline, self.renew(&mut stream)).await {
                Ok(Ok(Some(asked))) => deadline = asked + confident,
                // The lease is gone, or time is.
                Ok(Ok(None)) | Err(_) => break,
                Ok(Err(status)) => {
                    tracing::warn!(%status, "the lead could not be renewed yet");
                    stream = None;
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::select! {
                () = lost.closed() => {
                    // Nobody leads here any more: others need not wait. If this fails, they do.
                    let revoke = LeaseRevokeRequest { id: self.id };
                    let _ = tokio::time::timeout(CALL_TIMEOUT, self.client.lease_revoke(revoke)).await;
                    return;
                }
                () = tokio::time::sleep(self.patience / 6) => {}
            }
        }
        lost.send_replace(true);
    }

    /// Renews it once; the answer counts from when it was asked for.
    async fn renew(&mut self, stream: &mut Option<Renewals>) -> Result<Option<Instant>, Status> {
        let asked = Instant::now();
        let request = LeaseKeepAliveRequest { id: self.id };
        let renewals = match stream {
            Some(renewals) => {
                if renewals.requests.send(request).await.is_err() {
                    return Err(Status::unavailable("the stream has ended"));
                }
                renewals
            }
            None => {
                let (requests, receiver) = mpsc::channel(1);
                // Waits there for the call, which takes it along; the receiver is alive.
                let _ = requests.send(request).await;
                let answers = self
                    .client
                    .lease_keep_alive(ReceiverStream::new(receiver))
                    .await?;
                stream.insert(Renewals {
                    requests,
                    answers: answers.into_inner(),
                })
            }
        };
        match renewals.answers.message().await? {
            Some(answer) => Ok((answer.ttl > 0).then_some(asked)),
            None => Err(Status::unavailable("the stream has ended")),
        }
    }
}

/// Renewals of a lease.
struct Renewals {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<pollux_api::etcd::LeaseKeepAliveResponse>,
}

struct EtcdWatcher {
    stream: Streaming<WatchResponse>,
    /// What came with the answer that the watch was made.
    waiting: Vec<Change>,
    settings: EtcdSettings,
    after_revision: u64,
    /// The stream ends with it.
    _requests: mpsc::Sender<WatchRequest>,
}

impl EtcdWatcher {
    /// Waits until the watch is there.
    async fn begin(&mut self) -> Result<(), StoreError> {
        let first = self.settings.in_time(self.stream.message()).await?;
        self.waiting = self.read(first)?;
        Ok(())
    }

    fn read(&mut self, message: Option<WatchResponse>) -> Result<Vec<Change>, StoreError> {
        let Some(message) = message else {
            return Err(self.settings.failed("the watch has ended"));
        };
        if message.compact_revision > 0 {
            return Err(StoreError::HistoryGone {
                after: self.after_revision,
            });
        }
        if message.canceled {
            let why = format!("the watch was ended: {}", message.cancel_reason);
            return Err(self.settings.failed(&why));
        }
        let mut changes = Vec::new();
        for event in message.events {
            let kind = event.r#type();
            let Some(pair) = event.kv else { continue };
            let revision = unsigned(pair.mod_revision);
            self.after_revision = self.after_revision.max(revision);
            changes.push(Change {
                revision,
                key: own_key(&self.settings.prefix, &pair)?,
                value: match kind {
                    EventType::Put => Some(pair.value),
                    EventType::Delete => None,
                },
            });
        }
        Ok(changes)
    }
}

#[tonic::async_trait]
impl Watcher for EtcdWatcher {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            let changes = std::mem::take(&mut self.waiting);
            if !changes.is_empty() {
                return Ok(changes);
            }
            // Not limited in time: there may be no changes for days. The connection is kept alive.
            let message = self
                .stream
                .message()
                .await
                .map_err(|status| self.settings.unavailable(&status))?;
            self.waiting = self.read(message)?;
        }
    }
}
