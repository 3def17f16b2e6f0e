//! The two programs as people run them, with simulated engines behind gRPC.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pollux_api::control::v1::agent_server::{Agent, AgentServer};
use pollux_api::control::v1::{
    EngineReport, EngineSurvey, ExecuteRequest, ExecuteResponse, GetReportRequest, ListReplicaBlocksRequest,
    ListReplicaBlocksResponse, SurveyRequest,
};
use pollux_control::engines::{EngineAddress, EngineClient, EngineError};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::common::fleet::Fleet;

/// One engine of a fleet, as it is called.
struct AgentOf(Fleet, EngineAddress);

fn status(error: EngineError) -> Status {
    match error {
        EngineError::Unreachable { reason, .. } => Status::unavailable(reason),
        EngineError::Refused { reason, .. } => Status::resource_exhausted(reason),
        EngineError::TermStale { node } => Status::failed_precondition(node),
    }
}

#[tonic::async_trait]
impl Agent for AgentOf {
    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
        let ExecuteRequest { term, command } = request.into_inner();
        let command = command.and_then(|command| command.command);
        let command = command.ok_or_else(|| Status::invalid_argument("no command"))?;
        self.0.execute(&self.1, term, command).await.map_err(status)?;
        Ok(Response::new(ExecuteResponse {}))
    }

    async fn get_report(&self, _: Request<GetReportRequest>) -> Result<Response<EngineReport>, Status> {
        let report = self.0.report(&self.1).await.map_err(status)?;
        Ok(Response::new(report.as_ref().clone()))
    }

    async fn list_replica_blocks(
        &self,
        request: Request<ListReplicaBlocksRequest>,
    ) -> Result<Response<ListReplicaBlocksResponse>, Status> {
        let listed = self.0.blocks(&self.1, request.into_inner()).await;
        listed.map(Response::new).map_err(status)
    }

    async fn survey(&self, request: Request<SurveyRequest>) -> Result<Response<EngineSurvey>, Status> {
        let surveyed = self.0.survey(&self.1, request.into_inner()).await;
        surveyed.map(Response::new).map_err(status)
    }
}

/// Serves an engine, and returns where.
pub async fn serve(fleet: &Fleet, node: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it has one");
    let agent = AgentOf(
        fleet.clone(),
        EngineAddress {
            node: node.to_owned(),
            address: address.to_string(),
        },
    );
    let server = tonic::transport::Server::builder().add_service(AgentServer::new(agent));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// A control plane of our own, ended with the test.
pub struct Daemon {
    process: Child,
    pub address: String,
}

impl Daemon {
    pub fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_pollux-control"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was built");
        let output = process.stdout.take().expect("it was asked for");
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it tells where it answers");
        let address = line.trim().rsplit(' ').next().expect("a word").to_owned();
        Self { process, address }
    }
}

impl Daemon {
    /// Engines serve volumes as it says.
    pub fn serve(&self, fleet: &Fleet) {
        let uri = format!("http://{}", self.address);
        let endpoint = tonic::transport::Endpoint::from_shared(uri).expect("an address");
        tokio::spawn(fleet.clone().run(endpoint.connect_lazy()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is gone already, or goes now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pollux(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pollux"))
        .args(arguments)
        .output()
        .expect("it was built")
}

/// What a command tells when all goes well.
#[track_caller]
pub fn told(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = pollux(&[&["--control", &daemon.address], arguments].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What a command tells when it fails.
#[track_caller]
fn refused(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = pollux(&[&["--control", &daemon.address], arguments].concat());
    assert!(!output.status.success(), "{arguments:?} is taken");
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// A node that is kept free of replicas stays so when the file is applied again that put it on record.
fn fields_that_a_file_leaves_out_stay(daemon: &Daemon, directory: &Path) {
    let partial = directory.join("partial.yaml");
    let apply = |text: &str| {
        std::fs::write(&partial, text).expect("it can be written");
        told(daemon, &["apply", "-f", partial.to_str().expect("UTF-8")])
    };
    let node = told(daemon, &["node", "get", "c", "-o", "json"]);
    let node: serde_json::Value = serde_json::from_str(&node).expect("JSON");
    let address = node["spec"]["address"].as_str().expect("it has one");
    told(daemon, &["node", "cordon", "c"]);
    let head = format!("nodes: [{{metadata: {{name: c}}, spec: {{address: '{address}'");
    assert_eq!(apply(&format!("{head}}}}}]")), "all is as the file says\n");
    let uncordoned = apply(&format!("{head}, cordoned: false}}}}]"));
    assert!(uncordoned.contains("spec.cordoned true ->"), "{uncordoned}");
    assert!(uncordoned.ends_with("1 change made\n"), "{uncordoned}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_by_its_command_line() {
    let fleet = Fleet::new(["a", "b", "c"]);
    let mut topology = "nodes:\n".to_owned();
    for node in ["a", "b", "c"] {
        let address = serve(&fleet, node).await;
        topology +=
            &format!("- metadata: {{name: {node}}}\n  spec: {{address: \"{address}\", zone: z{node}}}\n");
    }
    topology +=
        "templates:\n- metadata: {name: gold}\n  spec: {policy: {replicas: 3, min_in_sync: 2}}\npools:\n";
    for node in ["a", "b", "c"] {
        topology += &format!(
            "- metadata: {{name: {node}.p}}\n  spec: {{node: {node}, devices: [\"malloc:///x?size=1GiB\"], \
             media: MEDIA_CLASS_SCRATCH}}\n"
        );
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("topology.yaml");
    std::fs::write(&file, topology).expect("it can be written");
    let file = file.to_str().expect("UTF-8");
    let store = format!("file:{}", directory.path().join("store").display());
    let daemon = Daemon::start(&["--store", &store]);
    daemon.serve(&fleet);

    assert!(told(&daemon, &["apply", "-f", file, "--dry-run"]).contains("7 changes, none of them made"));
    assert!(told(&daemon, &["apply", "-f", file]).ends_with("7 changes made\n"));
    assert_eq!(told(&daemon, &["apply", "-f", file]), "all is as the file says\n");
    fields_that_a_file_leaves_out_stay(&daemon, directory.path());

    let made = told(
        &daemon,
        &[
            "volume",
            "create",
            "v",
            "--size",
            "10GiB",
            "--template",
            "gold",
            "--wait",
        ],
    );
    assert!(made.contains("healthy"), "{made}");
    assert!(made.contains("3/3"), "{made}");
    let plan = told(&daemon, &["plan", "other", "--size", "1GiB", "--replicas", "4"]);
    assert!(plan.starts_with("only 3 of 4 replicas have a place"), "{plan}");
    let published = told(
        &daemon,
        &["volume", "publish", "v", "--host", "nqn.2026-11.x:h", "--wait"],
    );
    assert_eq!(published.matches("nvme connect -t tcp").count(), 3, "{published}");
    assert!(refused(&daemon, &["volume", "delete", "v"]).contains("unpublish it first"));
    told(&daemon, &["volume", "unpublish", "v", "--wait"]);
    let grown = told(&daemon, &["volume", "resize", "v", "--size", "20GiB", "--wait"]);
    assert!(grown.contains("20GiB"), "{grown}");
    assert!(
        told(&daemon, &["volume", "get", "v"])
            .matches("size_bytes: \"21474836480\"")
            .count()
            >= 2
    );
    assert!(refused(&daemon, &["volume", "resize", "v", "--size", "1GiB"]).contains("can only grow"));
    assert!(refused(&daemon, &["volume", "get", "none"]).contains("`pollux volume list`"));
    let preview = told(
        &daemon,
        &["template", "set", "gold", "--replicas", "2", "--preview"],
    );
    assert!(preview.starts_with("1 of 1 volumes change"), "{preview}");
    let limited = [
        "template",
        "set",
        "gold",
        "--qos-write",
        "bytes=5MiB,bytes_burst=9MiB",
    ];
    let preview = told(&daemon, &[&limited[..], &["--preview"]].concat());
    assert!(preview.contains("write 5MiB/s (burst 9MiB/s, 10 s)"), "{preview}");
    told(&daemon, &limited);
    let set = told(&daemon, &["template", "set", "gold", "--iops", "70"]);
    assert!(set.contains("70/s, write 5MiB/s (burst"), "{set}");
    let own = [
        "volume",
        "set",
        "v",
        "--qos-read",
        "operations_per_gib=3",
        "-o",
        "wide",
    ];
    let own = told(&daemon, &own);
    assert!(own.contains("read 3/s/GiB"), "{own}");
    let own = told(
        &daemon,
        &["volume", "set", "v", "--qos-weight", "300", "-o", "wide"],
    );
    assert!(own.contains("read 3/s/GiB, weight 300"), "{own}");
    let own = told(
        &daemon,
        &["volume", "set", "v", "--qos-of-template", "-o", "wide"],
    );
    assert!(!own.contains("/s/GiB"), "{own}");
    assert!(refused(&daemon, &["volume", "set", "v"]).contains("nothing is to change"));
    let wrong = ["template", "set", "gold", "--qos", "bytes=1,bytes_burst=1"];
    assert!(refused(&daemon, &wrong).contains("qos.total.bytes.burst.per_second"));
    told(&daemon, &["node", "cordon", "a"]);
    assert!(told(&daemon, &["node", "list"]).contains("cordoned"));
    let taken = [
        "snapshot", "create", "s", "--volume", "v", "--label", "why=look", "--wait",
    ];
    let taken = told(&daemon, &taken);
    assert!(taken.contains("ready"), "{taken}");
    assert!(told(&daemon, &["snapshot", "get", "s"]).contains("why: look"));
    assert!(told(&daemon, &["snapshot", "list", "-o", "wide"]).contains("UID"));
    assert!(told(&daemon, &["event", "list"]).contains("is healthy"));
    let json: serde_json::Value =
        serde_json::from_str(&told(&daemon, &["pool", "list", "-o", "json"])).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(3));
    assert!(told(&daemon, &["volume", "get", "v"]).contains("state: VOLUME_STATE_"));

    let top = told(&daemon, &["top", "--once", "--interval", "0.2", "-o", "json"]);
    let top: serde_json::Value = serde_json::from_str(&top).expect("JSON");
    assert_eq!(top["volumes"][0]["name"], "v", "{top}");
    assert_eq!(top["pools"].as_array().map(Vec::len), Some(3), "{top}");
    let text = told(&daemon, &["top", "--interval", "0.2"]);
    assert!(
        text.starts_with("reads 0/s") && text.contains("measures nothing"),
        "{text}"
    );

    // A token instead of a certificate; here, where nobody needs one, it lets its bearer do less.
    let secret = told(
        &daemon,
        &["token", "create", "looker", "--role", "viewer", "--days", "2"],
    );
    let token = directory.path().join("token");
    std::fs::write(&token, &secret).expect("it can be written");
    let token = token.to_str().expect("UTF-8");
    assert!(told(&daemon, &["--token-file", token, "volume", "list"]).contains("20GiB"));
    assert!(
        refused(&daemon, &["--token-file", token, "volume", "delete", "v"]).contains("takes the role csi")
    );
    // What goes to those who help has names, and no secrets.
    let psk = "c0rrect-h0rse";
    let device = format!("nvmf://user:{psk}@10.0.0.1:4420/nqn.2026-11.x:y?secret={psk}&size=1GiB");
    let label = format!("note={}", secret.trim());
    let pool = [
        "pool", "create", "d.p", "--node", "a", "--device", &device, "--label", &label,
    ];
    told(&daemon, &pool);
    let bundle = directory.path().join("bundle.tar");
    let bundle = bundle.to_str().expect("UTF-8");
    told(&daemon, &["support", bundle]);
    let text = String::from_utf8_lossy(&std::fs::read(bundle).expect("it is made")).into_owned();
    for part in [
        "nodes.json",
        "events.json",
        "measurements.json",
        "\"d.p\"",
        "10.0.0.1:4420",
        "size=1GiB",
    ] {
        assert!(text.contains(part), "{part}");
    }
    let hidden = secret.trim().rsplit_once("looker_").expect("its form").1;
    assert!(!text.contains(psk) && !text.contains(hidden));
    assert!(
        refused(&daemon, &["support", bundle]).contains("exists"),
        "nothing is replaced"
    );

    let listed = told(&daemon, &["token", "list"]);
    assert!(
        listed.contains("viewer") && !listed.contains(secret.trim()),
        "{listed}"
    );
    told(&daemon, &["token", "revoke", "looker"]);
    assert!(refused(&daemon, &["--token-file", token, "volume", "list"]).contains("taken back"));
    let message = refused(&daemon, &["--token-file", file, "volume", "list"]);
    assert!(message.contains("is no token"), "{message}");

    // All is there again after the control plane was killed.
    drop(daemon);
    let backup = directory.path().join("backup");
    let backup = backup.to_str().expect("UTF-8");
    let control = |arguments: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_pollux-control"))
            .args(arguments)
            .output();
        let done = done.expect("it was built");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    control(&["backup", "--store", &store, backup]);
    let daemon = Daemon::start(&["--store", &store]);
    daemon.serve(&fleet);
    assert!(told(&daemon, &["volume", "list"]).contains("20GiB"));
    let other = format!("file:{}", directory.path().join("other").display());
    assert!(control(&["restore", "--store", &other, backup]).contains("`pollux recover`"));
    let restored = Daemon::start(&["--store", &other]);
    assert!(told(&restored, &["volume", "list"]).contains("20GiB"));
    // Nothing is done by it, as engines may know better.
    let create = ["volume", "create", "another", "--size", "1GiB"];
    let message = refused(&restored, &create);
    assert!(
        message.contains("restored from a backup") && message.contains("`pollux recover`"),
        "{message}"
    );
    let looked = told(&restored, &["recover"]);
    assert!(looked.contains("before --commit"), "{looked}");
    assert!(told(&restored, &["event", "list"]).contains("`pollux recover`"));
    drop(restored);
    // So it is with one that was put back by other means.
    drop(daemon);
    assert!(control(&["hold", "--store", &store]).contains("`pollux recover`"));
    let daemon = Daemon::start(&["--store", &store]);
    daemon.serve(&fleet);
    assert!(refused(&daemon, &create).contains("restored from a backup"));
    let looked = told(&daemon, &["recover"]);
    let (_, digest) = looked.split_once("--commit ").expect("it tells what to commit");
    let digest: String = digest.chars().take_while(char::is_ascii_hexdigit).collect();
    let done = told(&daemon, &["recover", "--commit", &digest]);
    assert!(!done.contains("nothing is done"), "{done}");
    told(&daemon, &create);
}

/// Two replicas on three nodes, so that there is a place to go to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_can_be_changed_and_waited_for() {
    let fleet = Fleet::new(["a", "b", "c"]);
    let daemon = Daemon::start(&["--store", "memory:"]);
    daemon.serve(&fleet);
    for node in ["a", "b", "c"] {
        let address = serve(&fleet, node).await.to_string();
        told(&daemon, &["node", "create", node, "--address", &address]);
        let (pool, device) = (format!("{node}.p"), "malloc:///x?size=1GiB");
        let made = [
            "pool", "create", &pool, "--node", node, "--device", device, "--wait",
        ];
        let output = pollux(&[&["--control", &daemon.address], &made[..]].concat());
        let made = String::from_utf8_lossy(&output.stdout);
        assert!(made.contains("online") && made.contains("is in memory"), "{made}");
        let warned = String::from_utf8_lossy(&output.stderr);
        assert!(
            warned.starts_with(&format!("warning: pool {pool} is in memory")),
            "{warned}"
        );
    }
    let made = [
        "volume",
        "create",
        "v",
        "--size",
        "1GiB",
        "--replicas",
        "2",
        "--wait",
    ];
    told(&daemon, &made);

    told(
        &daemon,
        &["group", "create", "g", "--every", "3600", "--keep", "3"],
    );
    let set = told(&daemon, &["group", "set", "g", "--every", "7200", "--keep", "2"]);
    assert!(set.contains("2 h    2"), "{set}");
    assert!(refused(&daemon, &["group", "set", "g"]).contains("nothing is to change"));
    told(&daemon, &["template", "create", "t", "--replicas", "1"]);
    for more in [&[][..], &["--preview"]] {
        let set = [&["template", "set", "t"], more].concat();
        assert!(refused(&daemon, &set).contains("nothing is to change: give --replicas"));
    }
    let set = told(&daemon, &["group", "set", "g", "--no-schedule"]);
    assert!(!set.contains("7200"), "{set}");
    told(
        &daemon,
        &[
            "volume", "set", "v", "--group", "g", "--label", "tier=hot", "--label", "x=1",
        ],
    );
    told(
        &daemon,
        &["volume", "set", "v", "--no-label", "x", "--label", "tier=cold"],
    );
    let volume = told(&daemon, &["volume", "get", "v", "-o", "json"]);
    let volume: serde_json::Value = serde_json::from_str(&volume).expect("JSON");
    assert_eq!(volume["metadata"]["labels"], serde_json::json!({"tier": "cold"}));
    assert_eq!(volume["spec"]["group"], "g");
    told(&daemon, &["volume", "set", "v", "--group", ""]);
    assert!(!told(&daemon, &["volume", "get", "v"]).contains("group:"));

    // A node is empty once its replica is elsewhere; without a place for that, it is told how far it is.
    let pool = volume["status"]["replicas"][0]["pool"]
        .as_str()
        .expect("it is somewhere");
    let node = pool.trim_end_matches(".p");
    let drained = told(&daemon, &["node", "drain", node, "--wait"]);
    assert!(drained.contains("empty"), "{drained}");
    let volume = told(&daemon, &["volume", "get", "v", "-o", "json"]);
    let volume: serde_json::Value = serde_json::from_str(&volume).expect("JSON");
    let replicas = volume["status"]["replicas"]
        .as_array()
        .expect("they are somewhere");
    let places: Vec<&str> = replicas
        .iter()
        .filter_map(|replica| replica["pool"].as_str())
        .collect();
    assert!(!places.contains(&pool), "{places:?}");
    let stuck = ["pool", "drain", places[0], "--wait", "--timeout", "5"];
    let stuck = refused(&daemon, &stuck);
    assert!(
        stuck.contains("1 replicas are there still: volume v stays: no replica has a place:"),
        "{stuck}"
    );
    told(&daemon, &["pool", "undrain", places[0]]);

    told(&daemon, &["snapshot", "create", "s", "--volume", "v", "--wait"]);
    let gone = told(&daemon, &["snapshot", "delete", "s", "--wait"]);
    assert_eq!(gone, "snapshot s is gone\n");
    assert_eq!(told(&daemon, &["snapshot", "list"]), "there is no snapshot\n");
    assert_eq!(
        told(&daemon, &["volume", "delete", "v", "--wait"]),
        "volume v is gone\n"
    );
    assert_eq!(
        told(&daemon, &["pool", "delete", pool, "--wait"]),
        format!("pool {pool} is gone\n")
    );
    assert_eq!(told(&daemon, &["pool", "list"]).lines().count(), 3);
    // Again: there is nothing to delete, and a misspelt name is not told to be gone.
    assert!(refused(&daemon, &["volume", "delete", "v", "--wait"]).contains("there is no volume v"));
    assert_eq!(
        told(&daemon, &["volume", "delete", "v", "--if-exists"]),
        "there is no volume v\n"
    );
    assert!(refused(&daemon, &["volume", "unpublish", "v"]).contains("there is no volume v"));
    assert!(refused(&daemon, &["token", "revoke", "nobody"]).contains("there is no token nobody"));
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let output = pollux(&["completion", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("snapshot"));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("man").join("man1");
    assert!(pollux(&["man", path.to_str().expect("UTF-8")]).status.success());
    assert!(path.join("pollux-volume-create.1").exists());
}

#[test]
fn who_reads_no_more_is_told_nothing() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_pollux"))
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was built");
    drop(process.stdout.take());
    let output = process.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
}

#[test]
fn who_is_not_there_is_told_so() {
    let output = pollux(&["--control", "127.0.0.1:1", "node", "list"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("no control plane answers at 127.0.0.1:1"),
        "{errors}"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("control.redb");
    let open = Command::new(env!("CARGO_BIN_EXE_pollux-control"))
        .args(["serve", "--listen", "0.0.0.0:0", "--store"])
        .arg(format!("file:{}", store.display()))
        .output()
        .expect("it was built");
    let errors = String::from_utf8_lossy(&open.stderr);
    assert!(errors.contains("can be reached from other machines"), "{errors}");
    assert!(!store.exists(), "it leaves a store behind");
}

/// A backup takes the place of a backup and of nothing else, and is of a store that is there.
#[test]
fn a_backup_destroys_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let control = |arguments: [&str; 3], file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pollux-control"));
        let output = command
            .args(arguments)
            .arg(at(file))
            .output()
            .expect("it was built");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), errors)
    };
    let store = format!("file:{}", at("store").display());
    drop(Daemon::start(&["--store", &store]));
    let backup = ["backup", "--store", &store];
    assert_eq!(control(backup, "good"), (true, String::new()));
    assert_eq!(
        control(backup, "good"),
        (true, String::new()),
        "it takes the place of one"
    );
    let good = std::fs::read(at("good")).expect("it is there");

    // A path that is misspelt.
    let wrong = format!("file:{}", at("stor").display());
    let hold = Command::new(env!("CARGO_BIN_EXE_pollux-control"))
        .args(["hold", "--store", &wrong])
        .output()
        .expect("it was built");
    let held = (
        hold.status.success(),
        String::from_utf8_lossy(&hold.stderr).into_owned(),
    );
    for (is_done, errors) in [control(["backup", "--store", &wrong], "good"), held] {
        assert!(!is_done && errors.contains("there is no store"), "{errors}");
        assert!(!at("stor").exists(), "a store is made");
    }
    assert_eq!(std::fs::read(at("good")).expect("it is there"), good);
    // What is no backup stays, and so does what has the name of another one that is being made.
    std::fs::write(at("notes"), "precious").expect("it can be written");
    std::fs::write(at("x.part"), "precious").expect("it can be written");
    for file in ["notes", "store"] {
        let before = std::fs::read(at(file)).expect("it is there");
        let (is_done, errors) = control(backup, file);
        assert!(!is_done && errors.contains("is no backup"), "{errors}");
        assert_eq!(std::fs::read(at(file)).expect("it is there"), before);
    }
    assert_eq!(control(backup, "x.bak"), (true, String::new()));
    assert_eq!(std::fs::read(at("x.part")).expect("it is there"), b"precious");
    let (is_done, errors) = control(["restore", "--store", &wrong], "notes");
    assert!(!is_done && errors.contains("notes"), "{errors}");
    assert!(!at("stor").exists(), "a store is made of what is no backup");
    let _daemon = Daemon::start(&["--store", &store]);
    let (is_done, errors) = control(backup, "good");
    assert!(!is_done && errors.contains("stop that first"), "{errors}");
}

/// What `pollux up` starts ends with it, though it is killed and can do nothing about it.
#[test]
fn what_is_started_ends_with_who_has_started_it() {
    let program = env!("CARGO_BIN_EXE_pollux");
    let mut parent = Command::new("sh")
        .args([
            "-c",
            "\"$0\" under $$ sh -c 'echo $$; exec sleep 600' & wait",
            program,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is a shell");
    let mut line = String::new();
    let told = parent.stdout.take().expect("it was asked for");
    BufReader::new(told).read_line(&mut line).expect("it tells");
    let process = format!("/proc/{}/stat", line.trim());
    // One that nobody has waited for is still listed.
    let runs = || std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(runs(), "it is {line}");
    parent.kill().expect("it is there");
    parent.wait().expect("it was killed");
    let until = Instant::now() + Duration::from_secs(20);
    while runs() {
        assert!(Instant::now() < until, "it outlives who has started it");
        std::thread::sleep(Duration::from_millis(20));
    }

    // One whose parent has ended before it could ask does not begin.
    let late = pollux(&["under", &i32::MAX.to_string(), "echo", "begun"]);
    assert!(!late.status.success());
    assert_eq!(String::from_utf8_lossy(&late.stdout), "");
    let errors = String::from_utf8_lossy(&late.stderr);
    assert!(errors.contains("has ended"), "{errors}");
}

/// Certificates that would be of no use are not made.
#[test]
fn certificates_are_made_for_those_who_can_use_them() {
    let files = tempfile::tempdir().expect("a directory");
    let at = |name: &str| files.path().join(name).display().to_string();
    let authority = at("authority");
    assert!(pollux(&["cert", "authority", &authority]).status.success());
    let issue = |into: &str, more: &[&str]| {
        let into = at(into);
        let issue = ["cert", "issue", "n1", "--authority", &authority, "--into", &into];
        let output = pollux(&[&issue[..], more].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), Path::new(&into).exists(), "{errors}");
        errors
    };
    for (more, why) in [
        (&["--role", "engine"][..], "give --host"),
        (
            &["--role", "engine", "--host", "foo bar"],
            "is no host name or address",
        ),
        (&["--role", "engine", "--host", ""], "is no host name or address"),
        (&["--role", "viewer", "--days", "0"], "1..=3650"),
        (&["--role", "viewer", "--days", "4000000000"], "1..=3650"),
    ] {
        let errors = issue("refused", more);
        assert!(errors.contains(why), "{errors}");
    }
    assert_eq!(issue("engine", &["--role", "engine", "--host", "::1"]), "");
    assert_eq!(issue("person", &["--role", "viewer", "--days", "3650"]), "");
}
