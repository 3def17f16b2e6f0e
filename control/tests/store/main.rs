//! One test-suite for all stores, and for the view of what is in them.

mod view;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_control::security::{Authority, Identity, Issued, Role};
use pollux_control::store::{
    BackupError, Change, Condition, EmbeddedStore, EtcdSettings, EtcdStore, LEADER_KEY, MemoryStore,
    RESTORED_KEY, Range, Store, StoreError, Transaction, VALUE_BYTES_MAX, Watcher, Write, hold, read_backup,
    restore, write_backup,
};
use pollux_ports::KeptPorts;
use pollux_tls::Certificates;
use proptest::prelude::*;

/// Longest wait for something that has to come.
const PATIENCE: Duration = Duration::from_secs(60);

fn put(key: &str, value: &str) -> Write {
    Write::Put {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
    }
}

fn delete(key: &str) -> Write {
    Write::Delete { key: key.to_owned() }
}

fn when(key: &str, revision: u64) -> Condition {
    Condition {
        key: key.to_owned(),
        revision,
    }
}

fn transaction(conditions: Vec<Condition>, writes: Vec<Write>) -> Transaction {
    Transaction { conditions, writes }
}

async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = store.get(key).await.expect("the store answers")?;
    Some(String::from_utf8(entry.value).expect("UTF-8"))
}

async fn next(watcher: &mut Box<dyn Watcher>) -> Vec<Change> {
    tokio::time::timeout(PATIENCE, watcher.next())
        .await
        .expect("changes come in time")
        .expect("the watch lives")
}

/// Everything that every store has to do.
async fn suite(store: Arc<dyn Store>) {
    conditions_guard_writes(store.as_ref()).await;
    transactions_are_whole(store.as_ref()).await;
    lists_have_pages(store.as_ref()).await;
    watches_tell_all(store.as_ref()).await;
    watches_begin_in_the_past(store.as_ref()).await;
    sizes_are_bounded(store.as_ref()).await;
    counters_lose_nothing(store.clone()).await;
    leaders_are_fenced(store.as_ref()).await;
    revisions_are_of_what_was_done(store.as_ref()).await;
}

async fn revisions_are_of_what_was_done(store: &dyn Store) {
    let done = store
        .commit(transaction(vec![], vec![put("/r", "1")]))
        .await
        .expect("no condition");
    assert_eq!(store.revision().await, Ok(done));
    let refused = store.commit(transaction(vec![when("/r", 0)], vec![put("/r", "2")]));
    assert!(refused.await.is_err());
    assert_eq!(store.revision().await, Ok(done));
    // What changes nothing is told by nobody: a list has it, at the latest.
    let none = store.commit(transaction(vec![], vec![delete("/r/none")]));
    assert!(none.await.expect("no condition") >= done);
    let listing = store.list_all("/").await.expect("it answers");
    assert!(store.revision().await.expect("it answers") <= listing.revision);
    let all = store.list_all("").await.expect("it answers");
    assert!(
        all.entries
            .iter()
            .all(|entry| entry.key.starts_with('/') || entry.key == "#changed")
    );
}

async fn conditions_guard_writes(store: &dyn Store) {
    let absent = vec![when("/a/x", 0)];
    let first = store
        .commit(transaction(absent.clone(), vec![put("/a/x", "1")]))
        .await
        .expect("it is not there");
    assert!(first > 0);
    let again = store.commit(transaction(absent, vec![put("/a/x", "2")])).await;
    let key = "/a/x".to_owned();
    assert_eq!(again, Err(StoreError::Conflict { key: key.clone() }));
    let entry = store.get("/a/x").await.expect("it answers").expect("it is there");
    assert_eq!((entry.revision, entry.value.as_slice()), (first, b"1".as_slice()));

    let known = vec![when("/a/x", first)];
    let second = store
        .commit(transaction(known.clone(), vec![put("/a/x", "3")]))
        .await
        .expect("it is as known");
    assert!(second > first);
    let stale = store.commit(transaction(known, vec![delete("/a/x")])).await;
    assert_eq!(stale, Err(StoreError::Conflict { key }));
    store
        .commit(transaction(vec![when("/a/x", second)], vec![delete("/a/x")]))
        .await
        .expect("it is as known");
    assert_eq!(value(store, "/a/x").await, None);
    // What was there before has another revision than what is made anew.
    let third = store
        .commit(transaction(vec![when("/a/x", 0)], vec![put("/a/x", "4")]))
        .await
        .expect("it is gone");
    assert!(third > second);
    // Deleting what is not there is no mistake.
    store
        .commit(transaction(vec![], vec![delete("/a/none")]))
        .await
        .expect("nothing to do");
}

async fn transactions_are_whole(store: &dyn Store) {
    let writes = vec![put("/b/1", "one"), put("/b/2", "two"), delete("/b/3")];
    let revision = store
        .commit(transaction(vec![], writes))
        .await
        .expect("no condition");
    for key in ["/b/1", "/b/2"] {
        let entry = store.get(key).await.expect("it answers").expect("it is there");
        assert_eq!(entry.revision, revision);
    }
    let one_fails = vec![when("/b/1", revision), when("/b/2", revision + 1)];
    let writes = vec![put("/b/1", "changed"), delete("/b/2")];
    let failed = store.commit(transaction(one_fails, writes)).await;
    assert_eq!(
        failed,
        Err(StoreError::Conflict {
            key: "/b/2".to_owned()
        })
    );
    assert_eq!(value(store, "/b/1").await.as_deref(), Some("one"));
    assert_eq!(value(store, "/b/2").await.as_deref(), Some("two"));
}

async fn lists_have_pages(store: &dyn Store) {
    let names: Vec<String> = (0..25).map(|number| format!("/c/{number:02}")).collect();
    // A key that begins like the prefix and is not below it, and neighbours on both sides.
    for key in ["/c", "/b9", "/c0", "/d"] {
        let write = put(key, "neighbour");
        store
            .commit(transaction(vec![], vec![write]))
            .await
            .expect("no condition");
    }
    for name in &names {
        let write = put(name, name);
        store
            .commit(transaction(vec![], vec![write]))
            .await
            .expect("no condition");
    }
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    let mut pages = 0;
    loop {
        let page = store
            .list(Range {
                prefix: "/c/",
                after: after.as_deref(),
                limit: 10,
            })
            .await
            .expect("it answers");
        pages += 1;
        after = page.entries.last().map(|entry| entry.key.clone());
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        if !page.more {
            break;
        }
    }
    assert_eq!((found, pages), (names.clone(), 3));
    let all = store.list_all("/c/").await.expect("it answers");
    let keys: Vec<String> = all.entries.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(keys, names);
    let newest = all.entries.iter().map(|entry| entry.revision).max();
    assert!(Some(all.revision) >= newest);
    // More than fit a page.
    for chunk in (0..2_100).collect::<Vec<u32>>().chunks(100) {
        let writes = chunk
            .iter()
            .map(|number| put(&format!("/many/{number:05}"), "x"))
            .collect();
        store
            .commit(transaction(vec![], writes))
            .await
            .expect("no condition");
    }
    let many = store.list_all("/many/").await.expect("it answers");
    assert_eq!(many.entries.len(), 2_100);
    assert!(many.entries.is_sorted_by(|left, right| left.key < right.key));
}

async fn watches_tell_all(store: &dyn Store) {
    let from = store.list_all("/e/").await.expect("it answers").revision;
    let mut watcher = store.watch("/e/", from).await.expect("from now on");
    let first = store
        .commit(transaction(
            vec![],
            vec![put("/e/1", "a"), put("/elsewhere", "x"), put("/e/2", "b")],
        ))
        .await
        .expect("no condition");
    let mut batch = next(&mut watcher).await;
    batch.sort_by(|left, right| left.key.cmp(&right.key));
    let change = |revision, key: &str, value: Option<&str>| Change {
        revision,
        key: key.to_owned(),
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    assert_eq!(
        batch,
        [change(first, "/e/1", Some("a")), change(first, "/e/2", Some("b"))]
    );
    let second = store
        .commit(transaction(vec![], vec![delete("/e/1")]))
        .await
        .expect("no condition");
    assert_eq!(next(&mut watcher).await, [change(second, "/e/1", None)]);
}

async fn watches_begin_in_the_past(store: &dyn Store) {
    let from = store.list_all("/f/").await.expect("it answers").revision;
    let mut revisions = Vec::new();
    for number in 0..5 {
        let write = put("/f/x", &number.to_string());
        revisions.push(
            store
                .commit(transaction(vec![], vec![write]))
                .await
                .expect("no condition"),
        );
    }
    for (skipped, after) in [(0, from), (2, revisions[1])] {
        let mut watcher = store.watch("/f/", after).await.expect("it remembers that");
        let mut told = Vec::new();
        while told.len() < 5 - skipped {
            told.extend(next(&mut watcher).await.into_iter().map(|change| change.revision));
        }
        assert_eq!(told, revisions[skipped..]);
    }
}

async fn sizes_are_bounded(store: &dyn Store) {
    let large = |bytes: usize| Write::Put {
        key: "/g/x".to_owned(),
        value: vec![7; bytes],
    };
    store
        .commit(transaction(vec![], vec![large(VALUE_BYTES_MAX)]))
        .await
        .expect("just fits");
    let wrong = [
        vec![large(VALUE_BYTES_MAX + 1)],
        vec![put("", "x")],
        vec![put(&"k".repeat(513), "x")],
        vec![put("/g/y", "1"), delete("/g/y")],
        (0..129).map(|number| put(&format!("/g/{number}"), "x")).collect(),
    ];
    for writes in wrong {
        let refused = store.commit(transaction(vec![], writes)).await;
        assert!(matches!(refused, Err(StoreError::Oversized(_))), "{refused:?}");
    }
}

/// Many at once, each of which reads, adds one and writes.
async fn counters_lose_nothing(store: Arc<dyn Store>) {
    const TASKS: u32 = 8;
    const ADDITIONS: u32 = 10;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < ADDITIONS {
                    let entry = store.get("/h/counter").await.expect("it answers");
                    let (revision, number) = entry.map_or((0, 0), |entry| {
                        let text = String::from_utf8(entry.value).expect("UTF-8");
                        (entry.revision, text.parse::<u32>().expect("a number"))
                    });
                    let write = put("/h/counter", &(number + 1).to_string());
                    let condition = vec![when("/h/counter", revision)];
                    match store.commit(transaction(condition, vec![write])).await {
                        Ok(_) => done += 1,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("it ends well");
    }
    let counted = value(store.as_ref(), "/h/counter").await;
    assert_eq!(counted, Some((TASKS * ADDITIONS).to_string()));
}

async fn leaders_are_fenced(store: &dyn Store) {
    let leader = store.lead("one").await.expect("nobody leads");
    assert_eq!(leader.condition, when(LEADER_KEY, leader.term));
    store
        .commit(transaction(
            vec![leader.condition.clone()],
            vec![put("/i/x", "by one")],
        ))
        .await
        .expect("it leads");
    // The lead is taken away behind its back.
    store
        .commit(transaction(vec![], vec![delete(LEADER_KEY)]))
        .await
        .expect("no condition");
    let next = store.lead("two").await.expect("nobody leads");
    assert!(next.term > leader.term);
    let late = store
        .commit(transaction(
            vec![leader.condition],
            vec![put("/i/x", "by one, too late")],
        ))
        .await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    assert_eq!(value(store, "/i/x").await.as_deref(), Some("by one"));
}

#[tokio::test]
async fn memory() {
    suite(Arc::new(MemoryStore::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = EmbeddedStore::open(&directory.path().join("new/store.redb")).expect("it is new");
    suite(Arc::new(store)).await;
}

#[tokio::test]
async fn embedded_survives_its_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    let store = EmbeddedStore::open(&path).expect("it is new");
    let first = store
        .commit(transaction(vec![], vec![put("/x", "1")]))
        .await
        .expect("no condition");
    let twice = EmbeddedStore::open(&path);
    assert!(matches!(twice, Err(StoreError::Unavailable(_))), "{twice:?}");
    drop(store);
    let store = reopen(&path);
    assert_eq!(value(&store, "/x").await.as_deref(), Some("1"));
    // History is gone with the process, and says so; revisions go on.
    let gone = store.watch("/", first - 1).await.err();
    assert_eq!(gone, Some(StoreError::HistoryGone { after: first - 1 }));
    let second = store
        .commit(transaction(vec![], vec![put("/x", "2")]))
        .await
        .expect("no condition");
    assert!(second > first);
    let mut watcher = store.watch("/", first).await.expect("it remembers that");
    assert_eq!(next(&mut watcher).await.len(), 1);
}

/// The thread of a store that was dropped lets go of the file a moment later.
fn reopen(path: &Path) -> EmbeddedStore {
    let started = Instant::now();
    loop {
        match EmbeddedStore::open(path) {
            Ok(store) => return store,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn embedded_refuses_other_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.redb");
    std::fs::write(&path, vec![0x55; 100_000]).expect("it can be written");
    let refused = EmbeddedStore::open(&path);
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
}

/// An etcd of our own, ended with the test.
struct Etcd {
    process: Child,
    endpoint: String,
    tls: Option<Certificates>,
    _directory: tempfile::TempDir,
    _ports: KeptPorts,
}

impl Etcd {
    /// Starts one if it is installed.
    fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// Starts one that trusts an authority and is trusted by it, if it is installed.
    #[allow(
        clippy::print_stderr,
        reason = "who runs the tests has to know what was left out"
    )]
    fn start_with(authority: Option<&Authority>) -> Option<Self> {
        match Self::try_start(authority) {
            Ok(etcd) => Some(etcd),
            Err(error) => {
                eprintln!("SKIPPED: no etcd ({error}); Debian has it in the package etcd-server");
                None
            }
        }
    }

    fn try_start(authority: Option<&Authority>) -> std::io::Result<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut trust = Vec::new();
        if let Some(authority) = authority {
            let own = certificate(authority, Role::Admin, 1);
            for (name, argument, text) in [
                (
                    "authority.pem",
                    "--trusted-ca-file",
                    authority.issued().certificate,
                ),
                ("own.pem", "--cert-file", own.certificate),
                ("own.key", "--key-file", own.key),
            ] {
                let path = directory.path().join(name);
                std::fs::write(&path, text).expect("it can be written");
                trust.extend([argument.into(), path.into_os_string()]);
            }
            trust.push("--client-cert-auth".into());
        }
        let scheme = if authority.is_some() { "https" } else { "http" };
        let ports = KeptPorts::draw(2).expect("there are so many");
        let endpoint = format!("{scheme}://{}", ports.addresses()[0]);
        let peers = format!("http://{}", ports.addresses()[1]);
        let process = Command::new("etcd")
            .args(trust)
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args([
                "--listen-client-urls",
                &endpoint,
                "--advertise-client-urls",
                &endpoint,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            process,
            endpoint,
            tls: authority.map(|authority| client(authority, &certificate(authority, Role::Admin, 1))),
            _directory: directory,
            _ports: ports,
        })
    }

    async fn connect(&self, prefix: &str) -> EtcdStore {
        let started = Instant::now();
        loop {
            let settings = EtcdSettings {
                endpoints: vec![self.endpoint.clone()],
                prefix: prefix.to_owned(),
                lease_seconds: 2,
                tls: self.tls.clone(),
            };
            match EtcdStore::connect(settings).await {
                Ok(store) => return store,
                Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Etcd {
    /// Has it forget the changes before a revision: by its gateway, as no part of the project does that.
    fn compact(&self, revision: u64) {
        use std::io::{Read, Write};
        let address = self.endpoint.trim_start_matches("http://");
        let body = format!("{{\"revision\": \"{revision}\", \"physical\": true}}");
        let length = body.len();
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        write!(
            stream,
            "POST /v3/kv/compaction HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It is gone already, or goes now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd() {
    let Some(etcd) = Etcd::start() else { return };
    suite(Arc::new(etcd.connect("/pollux").await)).await;
    etcd_keeps_clusters_apart(&etcd).await;
    etcd_leads_one_at_a_time(&etcd).await;
}

/// A certificate for this machine.
fn certificate(authority: &Authority, role: Role, lifetime_days: i64) -> Issued {
    let identity = Identity {
        name: "control".to_owned(),
        role,
        hosts: vec!["127.0.0.1".to_owned()],
        lifetime_days,
    };
    authority.issue(&identity).expect("it can be given")
}

/// Who trusts an authority, and has a certificate.
fn client(trusted: &Authority, own: &Issued) -> Certificates {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in [
        ("authority.pem", &trusted.issued().certificate),
        ("own.pem", &own.certificate),
        ("own.key", &own.key),
    ] {
        std::fs::write(directory.path().join(name), text).expect("it can be written");
    }
    Certificates::open(directory.path(), |_| Ok(())).expect("they can be used")
}

#[tokio::test]
async fn etcd_is_called_by_mutual_tls() {
    let authority = Authority::new("test").expect("it can be made");
    let Some(etcd) = Etcd::start_with(Some(&authority)) else {
        return;
    };
    let store = etcd.connect("/pollux").await;
    let leadership = store.lead("one").await.expect("nobody else leads");
    assert!(leadership.term > 0);
    let foreign = Authority::new("test").expect("it can be made");
    let own = || certificate(&authority, Role::Admin, 1);
    for (why, tls) in [
        ("no certificates", None),
        (
            "of another authority",
            Some(client(&authority, &certificate(&foreign, Role::Admin, 1))),
        ),
        (
            "expired",
            Some(client(&authority, &certificate(&authority, Role::Admin, -1))),
        ),
        ("another authority is trusted", Some(client(&foreign, &own()))),
    ] {
        let refused = EtcdStore::connect(EtcdSettings {
            endpoints: vec![etcd.endpoint.clone()],
            tls,
            ..EtcdSettings::default()
        });
        let told = refused.await.expect_err(why).to_string();
        assert!(told.contains(&etcd.endpoint), "{why}: {told}");
    }
}

async fn etcd_keeps_clusters_apart(etcd: &Etcd) {
    let (one, other) = (etcd.connect("/one").await, etcd.connect("/one-more").await);
    one.commit(transaction(vec![], vec![put("/x", "1")]))
        .await
        .expect("no condition");
    assert_eq!(value(&other, "/x").await, None);
    assert_eq!(one.list_all("/").await.expect("it answers").entries.len(), 1);
}

async fn etcd_leads_one_at_a_time(etcd: &Etcd) {
    let store = etcd.connect("/leaders").await;
    let mut first = store.lead("one").await.expect("nobody leads");
    let other = etcd.connect("/leaders").await;
    let mut second = tokio::spawn(async move { other.lead("two").await });
    // Longer than the lease: it is renewed.
    let early = tokio::time::timeout(Duration::from_secs(3), &mut second).await;
    assert!(early.is_err(), "two lead at once");
    assert!(!*first.lost.borrow_and_update());
    drop(first);
    let second = tokio::time::timeout(PATIENCE, second)
        .await
        .expect("the lead is free");
    let mut second = second.expect("it ends well").expect("it leads");
    // The lease is taken away: the leader hears of it.
    let key = when(LEADER_KEY, second.term);
    assert_eq!(second.condition, key);
    let _ = Command::new("kill")
        .args(["-STOP", &etcd.process.id().to_string()])
        .status();
    tokio::time::timeout(PATIENCE, second.until_lost())
        .await
        .expect("it counts itself out");
    let _ = Command::new("kill")
        .args(["-CONT", &etcd.process.id().to_string()])
        .status();
}

#[tokio::test]
async fn backups_are_whole() {
    let store = MemoryStore::default();
    let _leader = store.lead("one").await.expect("nobody leads");
    for number in 0..300_usize {
        let write = Write::Put {
            key: format!("/k/{number}"),
            value: vec![number as u8; number * 40],
        };
        store
            .commit(transaction(vec![], vec![write]))
            .await
            .expect("no condition");
    }
    let bytes = write_backup(&store).await.expect("it answers");
    let directory = tempfile::tempdir().expect("a directory");
    let other = EmbeddedStore::open(&directory.path().join("store.redb")).expect("it is new");
    let _leader = other.lead("two").await.expect("nobody leads");
    assert_eq!(restore(&other, &bytes).await.expect("it is empty"), 300);
    let contents = |listing: pollux_control::store::Listing| {
        let entries = listing
            .entries
            .into_iter()
            .filter(|entry| ![LEADER_KEY, RESTORED_KEY].contains(&entry.key.as_str()));
        entries.map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
    };
    let before = contents(store.list_all("").await.expect("it answers"));
    let after = contents(other.list_all("").await.expect("it answers"));
    assert_eq!(before, after);
    let is_held = async |store: &dyn Store| {
        let entry = store.get(RESTORED_KEY).await.expect("it answers");
        entry.is_some()
    };
    assert!(is_held(&other).await && !is_held(&store).await);
    // So is a store that is held by hand, and what its backup is put into.
    hold(&store).await.expect("it answers");
    assert!(is_held(&store).await);
    let of_held = write_backup(&store).await.expect("it answers");
    let third = MemoryStore::default();
    assert_eq!(restore(&third, &of_held).await.expect("it is empty"), 300);
    assert!(is_held(&third).await);
    let again = restore(&other, &bytes).await;
    assert!(matches!(again, Err(BackupError::NotEmpty { .. })), "{again:?}");
    for cut in [0, 7, 20, bytes.len() / 2, bytes.len() - 1] {
        assert!(read_backup(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn damaged_backups_are_refused(position in 0..2_000_usize, flip in 1..=255_u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let store = MemoryStore::default();
        let bytes = runtime.block_on(async {
            let write = Write::Put { key: "/x".to_owned(), value: vec![1; 1_000] };
            store.commit(transaction(vec![], vec![write])).await.expect("no condition");
            write_backup(&store).await.expect("it answers")
        });
        let mut damaged = bytes.clone();
        let at = position % bytes.len();
        damaged[at] ^= flip;
        prop_assert!(read_backup(&damaged).is_err());
        prop_assert!(read_backup(&bytes).is_ok());
    }

    #[test]
    fn arbitrary_bytes_are_no_backup(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = b"POLLUXCB\x01\0\0\0".to_vec();
        framed.extend(&bytes);
        let checksum = crc32c::crc32c(&framed);
        framed.extend(checksum.to_le_bytes());
        // Whatever it is, it is no panic.
        let _ = read_backup(&framed);
        prop_assert!(read_backup(&bytes).is_err());
    }
}
