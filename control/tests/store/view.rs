//! The view of all records that calls are answered from: it shows what is in the store, whatever becomes of
//! its watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pollux_api::FieldMask;
use pollux_api::control::v1::templates_server::Templates;
use pollux_api::control::v1::volumes_server::Volumes;
use pollux_api::control::v1::{
    CreateTemplateRequest, CreateVolumeRequest, DeleteVolumeRequest, Metadata, Template, TemplateSpec,
    UpdateTemplateRequest, Volume, VolumePolicy, VolumeSpec,
};
use pollux_control::controller::{Observations, SystemClock};
use pollux_control::engines::GrpcEngines;
use pollux_control::model::Guarded;
use pollux_control::plan::Limits;
use pollux_control::security::Guard;
use pollux_control::server::{ServiceParts, Services};
use pollux_control::store::{
    Change, EmbeddedStore, Entry, EtcdStore, Leadership, Listing, MemoryStore, Range, Store, StoreError,
    Transaction, Watcher, Write,
};
use pollux_control::view::View;
use pollux_control::world::World;
use proptest::prelude::*;
use tokio::sync::watch;
use tonic::Request;

use super::{Etcd, put, transaction};

/// What becomes of the watches of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// They tell everything.
    Not,
    /// They tell nothing any more, and do not say so.
    Silent,
    /// The connection is lost.
    Lost,
    /// They were too slow: what came meanwhile is forgotten.
    Forgotten,
}

/// A store whose watches can be cut off. Those that begin later are whole.
#[derive(Debug)]
struct Cuttable {
    store: Arc<dyn Store>,
    cut: watch::Sender<Cut>,
    lists: AtomicUsize,
}

impl Cuttable {
    fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            cut: watch::Sender::new(Cut::Not),
            lists: AtomicUsize::new(0),
        })
    }

    /// How often all records were read.
    fn lists(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }

    /// Cuts off the watches that there are.
    fn cut(&self, how: Cut) {
        self.cut.send_replace(how);
    }
}

/// A watch that can be cut off.
struct CuttableWatcher {
    watcher: Box<dyn Watcher>,
    cut: watch::Receiver<Cut>,
    after: u64,
}

#[tonic::async_trait]
impl Watcher for CuttableWatcher {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        let how = tokio::select! {
            biased;
            how = self.cut.wait_for(|how| *how != Cut::Not) => how.map(|how| *how).unwrap_or(Cut::Silent),
            changes = self.watcher.next() => return changes,
        };
        match how {
            Cut::Lost => Err(StoreError::Unavailable("the test has cut it off".to_owned())),
            Cut::Forgotten => Err(StoreError::HistoryGone { after: self.after }),
            Cut::Silent | Cut::Not => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl Store for Cuttable {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError> {
        self.store.list(range).await
    }

    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.store.list_all(prefix).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision().await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        self.store.commit(transaction).await
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Box<dyn Watcher>, StoreError> {
        let watcher = self.store.watch(prefix, after_revision).await?;
        // What was cut off before is mended by this.
        self.cut.send_replace(Cut::Not);
        Ok(Box::new(CuttableWatcher {
            watcher,
            cut: self.cut.subscribe(),
            after: after_revision,
        }))
    }

    async fn lead(&self, instance: &str) -> Result<Leadership, StoreError> {
        self.store.lead(instance).await
    }
}

/// The same store, as two instances of the control plane have it, and what there is to end it.
struct Pair {
    one: Arc<dyn Store>,
    other: Arc<dyn Store>,
    kept: Box<dyn std::any::Any + Send + Sync>,
}

fn memory() -> Pair {
    let store = MemoryStore::default();
    Pair {
        one: Arc::new(store.clone()),
        other: Arc::new(store),
        kept: Box::new(()),
    }
}

fn embedded() -> Pair {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(&directory.path().join("store.redb")).expect("it is new");
    let store: Arc<dyn Store> = Arc::new(store);
    Pair {
        one: store.clone(),
        other: store,
        kept: Box::new(directory),
    }
}

/// Nothing if etcd is not installed.
async fn etcd() -> Option<Pair> {
    let etcd = Etcd::start()?;
    let connect = async || -> EtcdStore { etcd.connect("/pollux").await };
    Some(Pair {
        one: Arc::new(connect().await),
        other: Arc::new(connect().await),
        kept: Box::new(etcd),
    })
}

fn services(store: Arc<dyn Store>) -> Services {
    Services::new(ServiceParts {
        store,
        observations: Arc::new(Observations::default()),
        engines: Arc::new(GrpcEngines::new(None)),
        clock: Arc::new(SystemClock),
        limits: Limits::default(),
        guard: Guard::Local,
    })
}

fn view(store: Arc<dyn Store>) -> View {
    View::new(store, Arc::new(Observations::default()), Arc::new(SystemClock))
}

fn metadata(name: &str) -> Option<Metadata> {
    Some(Metadata {
        name: name.to_owned(),
        ..Metadata::default()
    })
}

fn template() -> Template {
    let policy = VolumePolicy {
        replicas: Some(2),
        ..VolumePolicy::default()
    };
    Template {
        metadata: metadata("gold"),
        spec: Some(TemplateSpec { policy: Some(policy) }),
    }
}

fn volume(name: &str) -> Volume {
    Volume {
        metadata: metadata(name),
        spec: Some(VolumeSpec {
            size_bytes: 1 << 30,
            template: "gold".to_owned(),
            ..VolumeSpec::default()
        }),
        status: None,
    }
}

/// How many volumes an edit of the template would be for.
async fn followers(services: &Services) -> u64 {
    let request = UpdateTemplateRequest {
        template: Some(template()),
        update_mask: Some(FieldMask {
            paths: vec!["spec.policy".to_owned()],
        }),
    };
    let preview = services.preview_template(Request::new(request)).await;
    u64::from(preview.expect("it can be shown").into_inner().volumes)
}

/// After each write by one client, a plan that another one asks for has it.
async fn plans_see_what_was_written(pair: &Pair) {
    let (writer, reader) = (services(pair.one.clone()), services(pair.other.clone()));
    let request = CreateTemplateRequest {
        template: Some(template()),
    };
    let made = writer.create_template(Request::new(request)).await;
    made.expect("it is new");
    for number in 1..=50 {
        let request = CreateVolumeRequest {
            volume: Some(volume(&format!("v{number}"))),
            wait_us: None,
        };
        let made = writer.create_volume(Request::new(request)).await;
        made.expect("it is new");
        assert_eq!(followers(&reader).await, number, "after volume {number} was made");
    }
    for number in 1..=10 {
        let name = format!("v{number}");
        let request = DeleteVolumeRequest { name };
        let gone = writer.delete_volume(Request::new(request)).await;
        gone.expect("nobody uses it");
        assert_eq!(
            followers(&reader).await,
            50 - number,
            "after volume {number} was deleted"
        );
    }
    // Many at a time: each sees its own, and all that were done before.
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..32 {
        let (writer, reader) = (writer.clone(), reader.clone());
        writers.spawn(async move {
            let request = CreateVolumeRequest {
                volume: Some(volume(&format!("w{number}"))),
                wait_us: None,
            };
            let before = followers(&reader).await;
            let made = writer.create_volume(Request::new(request)).await;
            made.expect("it is new");
            assert!(followers(&reader).await > before);
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.expect("it ends well");
    }
    assert_eq!(followers(&reader).await, 72);
}

/// The records that are read now, without what is observed.
async fn listed(store: &dyn Store) -> World {
    let listing = store.list_all("/").await.expect("the store answers");
    let mut world = World::load(&listing, 0).expect("they can be read");
    // It is raised by what is no record, too.
    world.revision = 0;
    world
}

/// What a view shows, without what is observed.
async fn shown(view: &View) -> World {
    let mut world = view.read(World::clone).await.expect("the store answers");
    world.now_unix_us = 0;
    world.observing_since_unix_us = 0;
    world.revision = 0;
    world
}

/// A record of a volume, whatever was there.
fn written(name: &str, size_bytes: u64) -> Write {
    let mut volume = volume(name);
    volume.spec.get_or_insert_default().size_bytes = size_bytes;
    let mut transaction = Transaction::default();
    transaction.put_always(&volume);
    transaction.writes.remove(0)
}

/// A watch that is cut off, and changes that nobody was told of.
async fn cut_views_show_everything(pair: &Pair) {
    let store = Cuttable::new(pair.other.clone());
    let view = view(store.clone());
    shown(&view).await;
    for (round, how) in [Cut::Silent, Cut::Lost, Cut::Forgotten, Cut::Not]
        .into_iter()
        .cycle()
        .take(12)
        .enumerate()
    {
        store.cut(how);
        let name = format!("cut{round}");
        let writes = vec![
            written(&name, 1),
            Write::Delete {
                key: format!("/volume/cut{}", round.wrapping_sub(2)),
            },
        ];
        let written = pair.one.commit(transaction(vec![], writes)).await;
        written.expect("no condition");
        let found = shown(&view).await;
        assert!(found.volumes.contains_key(&name), "{how:?}");
        assert_eq!(found, listed(&*pair.one).await, "{how:?}");
    }
}

/// Nothing is listed again that is followed: neither for what is asked, nor for what is written, nor for
/// transactions that change nothing.
async fn nothing_is_read_twice(pair: &Pair) {
    let store = Cuttable::new(pair.other.clone());
    let view = view(store.clone());
    for number in 0..20 {
        let writes = vec![written("once", number)];
        let done = pair.one.commit(transaction(vec![], writes)).await;
        done.expect("no condition");
        let size = |world: &World| {
            let once = world.volumes.get("once").and_then(|volume| volume.spec.as_ref());
            once.map(|spec| spec.size_bytes)
        };
        assert_eq!(view.read(size).await, Ok(Some(number)));
    }
    assert_eq!(store.lists(), 1);
}

async fn suite(pair: Pair) {
    plans_see_what_was_written(&pair).await;
    cut_views_show_everything(&pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_store_in_memory() {
    suite(memory()).await;
    nothing_is_read_twice(&memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_store_in_a_file() {
    suite(embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_store_in_etcd() {
    let Some(pair) = etcd().await else { return };
    suite(pair).await;
}

/// What another cluster writes into the same etcd is no reason to wait, or to read anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clusters_do_not_matter() {
    let Some(etcd) = Etcd::start() else { return };
    let own: Arc<dyn Store> = Arc::new(etcd.connect("/own").await);
    let done = own.commit(transaction(vec![], vec![written("own", 1)])).await;
    done.expect("no condition");
    let foreign = etcd.connect("/foreign").await;
    let store = Cuttable::new(own);
    let view = view(store.clone());
    let before = shown(&view).await;
    // What is not there cannot go: it changes nothing for the others either.
    for write in [
        put("/x", "1"),
        written("foreign", 1),
        Write::Delete {
            key: "/none".to_owned(),
        },
    ] {
        let done = foreign.commit(transaction(vec![], vec![write])).await;
        done.expect("no condition");
        assert_eq!(shown(&view).await, before);
    }
    assert_eq!(store.lists(), 1);
}

/// Changes that are forgotten for good: of a store in memory after so many, of etcd once it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forgotten_is_read() {
    let pair = memory();
    let store = Cuttable::new(pair.other.clone());
    let memory_view = view(store.clone());
    shown(&memory_view).await;
    store.cut(Cut::Silent);
    for number in 0..600 {
        let write = |at| written(&format!("v{at}"), number);
        let done = pair
            .one
            .commit(transaction(vec![], (0..100).map(write).collect()));
        done.await.expect("no condition");
    }
    // The watch that was silent goes on, and finds that it is too late.
    store.cut(Cut::Not);
    assert_eq!(shown(&memory_view).await, listed(&*pair.one).await);

    let Some(pair) = etcd().await else { return };
    let store = Cuttable::new(pair.other.clone());
    let etcd_view = view(store.clone());
    shown(&etcd_view).await;
    store.cut(Cut::Lost);
    let mut revision = 0;
    for number in 0..20 {
        let done = pair.one.commit(transaction(vec![], vec![written("v", number)]));
        revision = done.await.expect("no condition");
    }
    let etcd = pair.kept.downcast_ref::<Etcd>().expect("it is kept");
    etcd.compact(revision);
    let mut early = pair.one.watch("/", 1).await.expect("it is asked for");
    assert_eq!(early.next().await, Err(StoreError::HistoryGone { after: 1 }));
    assert_eq!(shown(&etcd_view).await, listed(&*pair.one).await);
}

/// A store whose data is replaced by an older one's has a lower revision: nothing of before is shown.
#[tokio::test]
async fn older_data_is_read_anew() {
    let store = Arc::new(Replaced(std::sync::Mutex::new(MemoryStore::default())));
    for number in 0..10 {
        let done = store.commit(transaction(vec![], vec![written("v", number)]));
        done.await.expect("no condition");
    }
    let view = view(store.clone());
    assert_eq!(shown(&view).await, listed(&*store).await);
    *store.0.lock().expect("nobody panics") = MemoryStore::default();
    let done = store.commit(transaction(vec![], vec![written("older", 1)]));
    done.await.expect("no condition");
    let found = shown(&view).await;
    assert_eq!(found.volumes.keys().collect::<Vec<_>>(), ["older"]);
}

/// A store that can be replaced by another one.
#[derive(Debug)]
struct Replaced(std::sync::Mutex<MemoryStore>);

impl Replaced {
    fn now(&self) -> MemoryStore {
        self.0.lock().expect("nobody panics").clone()
    }
}

#[tonic::async_trait]
impl Store for Replaced {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.now().get(key).await
    }

    async fn list(&self, range: Range<'_>) -> Result<Listing, StoreError> {
        self.now().list(range).await
    }

    async fn list_all(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.now().list_all(prefix).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.now().revision().await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        self.now().commit(transaction).await
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Box<dyn Watcher>, StoreError> {
        self.now().watch(prefix, after_revision).await
    }

    async fn lead(&self, instance: &str) -> Result<Leadership, StoreError> {
        self.now().lead(instance).await
    }
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Act {
    /// A transaction of some writes: which record, and its size; nothing: it goes.
    Commit(Vec<(u8, Option<u64>)>),
    /// A transaction with a condition that may not hold.
    Guarded(u8, u64),
    /// The watch is cut off.
    Cut(Cut),
    /// Somebody looks.
    Look,
}

fn act() -> impl Strategy<Value = Act> {
    let write = (0..6_u8, prop::option::of(0..100_u64));
    let cut = prop::sample::select(vec![Cut::Silent, Cut::Lost, Cut::Forgotten]);
    prop_oneof![
        6 => prop::collection::vec(write, 1..4).prop_map(Act::Commit),
        2 => (0..6_u8, 0..20_u64).prop_map(|(record, revision)| Act::Guarded(record, revision)),
        1 => cut.prop_map(Act::Cut),
        4 => Just(Act::Look),
    ]
}

/// A record of one of two kinds, and a secret, of which nothing but the name is shown.
fn any_write(record: u8, size: Option<u64>) -> Write {
    let name = format!("r{record}");
    let kind = ["volume", "template", "host-secrets"][usize::from(record % 3)];
    let key = format!("/{kind}/{name}");
    match (size, kind) {
        (None, _) => Write::Delete { key },
        (Some(size), "volume") => written(&name, size),
        (Some(size), "template") => {
            let mut template = template();
            template.metadata = metadata(&name);
            let spec = template.spec.get_or_insert_default();
            spec.policy.get_or_insert_default().replicas = Some(1 + u32::try_from(size % 3).unwrap_or(0));
            let mut transaction = Transaction::default();
            transaction.put_always(&template);
            transaction.writes.remove(0)
        }
        (Some(_), _) => Write::Put { key, value: vec![1] },
    }
}

async fn run_history(acts: &[Act], pair: &Pair) {
    let store = Cuttable::new(pair.other.clone());
    let view = view(store.clone());
    for act in acts.iter().chain([&Act::Look]) {
        match act {
            Act::Commit(writes) => {
                // No key twice.
                let mut last = std::collections::BTreeMap::new();
                last.extend(writes.iter().copied());
                let writes = last.into_iter().map(|(record, size)| any_write(record, size));
                let done = pair.one.commit(transaction(vec![], writes.collect())).await;
                done.expect("no condition");
            }
            Act::Guarded(record, revision) => {
                let write = any_write(*record, Some(*revision));
                let condition = super::when(write.key(), *revision);
                // Whether it holds or not.
                let done = pair.one.commit(transaction(vec![condition], vec![write])).await;
                assert!(!matches!(done, Err(StoreError::Unavailable(_))), "{done:?}");
            }
            Act::Cut(how) => store.cut(*how),
            Act::Look => assert_eq!(shown(&view).await, listed(&*pair.one).await),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_view_is_what_a_list_would_be(acts in prop::collection::vec(act(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(run_history(&acts, &memory()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn also_of_a_file(acts in prop::collection::vec(act(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(run_history(&acts, &embedded()));
    }
}
