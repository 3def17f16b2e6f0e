//! The program itself, as orchestrators start it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::CommandFactory;
use pollux_api::csi::v1::controller_client::ControllerClient;
use pollux_api::csi::v1::identity_client::IdentityClient;
use pollux_api::csi::v1::node_client::NodeClient;
use pollux_api::csi::v1::*;
use pollux_ports::KeptPorts;

use crate::common::{Pollux, connect, new_volume};

/// A driver of our own, ended with the test.
pub struct Program(Child);

impl Program {
    pub fn start(arguments: &[&str], socket: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_pollux-csi"))
            .args(arguments)
            .arg(format!("--endpoint=unix://{}", socket.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was built");
        let output = process.stdout.take().expect("it was asked for");
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it tells where it answers");
        assert!(line.starts_with("pollux-csi answers at "), "{line:?}");
        Self(process)
    }

    /// Asks it to end, and returns whether it did so in good order.
    pub fn stop(mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is ours");
        self.0.wait().expect("it is ours").success()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It is gone already, or goes now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_is_killed_and_the_next_one_knows_as_much() {
    let pollux = Pollux::start().await.ready().await;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("csi.sock");
    let kept = KeptPorts::draw(1).expect("a port");
    let metrics = kept.addresses()[0].to_string();
    let control = pollux.address.to_string();
    let arguments = [
        "controller",
        "--control",
        &control,
        "--metrics",
        &metrics,
        "--topology",
    ];
    let program = Program::start(&arguments, &socket);
    let mut identity = IdentityClient::new(connect(socket.clone()).await);
    let info = identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await
        .expect("it answers");
    assert_eq!(info.into_inner().name, "csi.pollux.io");
    let ready = identity
        .probe(ProbeRequest {})
        .await
        .expect("it answers")
        .into_inner()
        .ready;
    assert!(ready.expect("it says").value);
    let able = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await;
    assert_eq!(able.expect("it answers").into_inner().capabilities.len(), 5);
    let mut driver = ControllerClient::new(connect(socket.clone()).await);
    driver.create_volume(new_volume("v")).await.expect("it is new");
    let scraped = {
        let mut stream = TcpStream::connect(&metrics).expect("it listens");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            .expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        text
    };
    assert!(
        scraped.contains("pollux_csi_calls_total{method=\"CreateVolume\",code=\"Ok\"} 1"),
        "{scraped}"
    );
    drop(program);
    let program = Program::start(&arguments, &socket);
    let mut driver = ControllerClient::new(connect(socket.clone()).await);
    driver
        .create_volume(new_volume("v"))
        .await
        .expect("it is the same");
    assert_eq!(pollux.names().await.0, ["v"]);
    drop((identity, driver));
    assert!(program.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_what_it_is_called_and_where_it_stands() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("csi.sock");
    let records = directory.path().join("records").display().to_string();
    let program = Program::start(
        &[
            "node",
            "--node",
            "n1",
            "--cluster",
            "east",
            "--topology",
            "zone=z1",
            "--volumes",
            "32",
            "--records",
            &records,
        ],
        &socket,
    );
    let mut node = NodeClient::new(connect(socket.clone()).await);
    let info = node
        .node_get_info(NodeGetInfoRequest {})
        .await
        .expect("it answers")
        .into_inner();
    assert_eq!(info.node_id, "nqn.2026-11.io.pollux:node:east:n1");
    assert_eq!(info.max_volumes_per_node, 32);
    let place = info.accessible_topology.expect("it stands somewhere").segments;
    assert_eq!(place["topology.pollux.io/zone"], "z1");
    // It is asked what the whole driver can do, as the controller service is.
    let mut identity = IdentityClient::new(connect(socket).await);
    let able = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await;
    assert_eq!(able.expect("it answers").into_inner().capabilities.len(), 5);
    // A control plane is nothing that a node needs.
    let ready = identity.probe(ProbeRequest {}).await;
    assert!(
        ready
            .expect("it answers")
            .into_inner()
            .ready
            .expect("it says")
            .value
    );
    assert!(program.stop());
}

#[tokio::test]
async fn without_a_control_plane_a_controller_waits_for_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("csi.sock");
    let program = Program::start(&["controller", "--control", "127.0.0.1:1"], &socket);
    let mut identity = IdentityClient::new(connect(socket.clone()).await);
    let ready = identity
        .probe(ProbeRequest {})
        .await
        .expect("it lives")
        .into_inner()
        .ready;
    assert!(!ready.expect("it says").value);
    let mut driver = ControllerClient::new(connect(socket).await);
    let created = tokio::time::timeout(Duration::from_secs(20), driver.create_volume(new_volume("v"))).await;
    let refused = created.expect("it does not hang").expect_err("nobody is there");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    drop(program);
}

/// Commands between backticks and in blocks; what leaves something out is none.
#[test]
fn every_command_of_the_manual_is_understood() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md");
    let manual = std::fs::read_to_string(path).expect("it is there");
    let mut understood = 0;
    for line in manual.lines() {
        let commands: Vec<&str> = match line.strip_prefix("    ") {
            Some(block) => vec![block],
            None => line.split('`').skip(1).step_by(2).collect(),
        };
        let commands = commands
            .into_iter()
            .filter(|command| command.starts_with("pollux-csi "));
        for command in commands {
            let parsed = pollux_csi::cli::Cli::command().try_get_matches_from(command.split_whitespace());
            assert!(parsed.is_ok(), "`{command}`: {:?}", parsed.err());
            understood += 1;
        }
    }
    assert!(understood > 3, "the manual has {understood} commands only");
}

#[test]
fn wrong_arguments_are_told() {
    for (arguments, word) in [
        (&["node"][..], "--node"),
        (&["node", "--node", "a b"][..], "letters"),
        (
            &["node", "--node", "n", "--topology", "galaxy=x"][..],
            "zone, rack or node",
        ),
        (&["controller", "--cluster", "UPPER"][..], "a-z"),
        (&["controller", "--certificates", "/nonexistent"][..], "own.pem"),
        (&["controller", "--control", "a b"][..], "HOST:PORT"),
        (&["controller", "--endpoint", "tcp://1.2.3.4:5"][..], "unix:///"),
        (&["controller", "--control", "host"][..], "HOST:PORT"),
        (&["controller", "--control", "http://host:1"][..], "HOST:PORT"),
        (&["controller", "--log", "a=b=c"][..], "parsing level"),
        (&["controller", "--log", "verbose"][..], "warn, info"),
        (&["controller", "--log", ""][..], "warn, info"),
        (
            &[
                "node",
                "--node",
                "n",
                "--topology",
                "zone=a",
                "--topology",
                "zone=b",
            ][..],
            "given twice",
        ),
        (&["node", "--node", "n", "--reconnect-delay", "0"][..], "1..="),
        (&["node", "--node", "n", "--keep-alive", "0"][..], "1..="),
        (&["node", "--node", "n", "--device-timeout", "0"][..], "1..="),
        (
            &["node", "--node", "n", "--controller-loss", "4294967295"][..],
            "0..=",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_pollux-csi"))
            .args(arguments)
            .output()
            .expect("it was built");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(errors.contains(word), "{arguments:?}: {errors}");
    }
}
