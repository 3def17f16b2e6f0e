//! `csi-sanity`, the tests that Kubernetes has for drivers. Where the program is not installed, it says so.

#![allow(clippy::print_stdout, reason = "it says what it skipped")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use pollux_api::csi::v1::controller_server::ControllerServer;
use pollux_api::csi::v1::group_controller_server::GroupControllerServer;
use pollux_api::csi::v1::identity_server::IdentityServer;
use pollux_api::csi::v1::node_server::NodeServer;
use pollux_csi::controller::ControllerService;
use pollux_csi::identity::IdentityService;
use tonic::service::Routes;

use crate::common::{Driver, Pollux, VOLUMES_MAX, served};

/// Where `go install` puts programs, and where the search path leads.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::home_dir().map(|home| home.join("go/bin"));
    let mut directories = std::env::split_paths(&path).chain(home);
    directories.find_map(|directory| {
        let program = directory.join("csi-sanity");
        program.is_file().then_some(program)
    })
}

/// Passes those whose names have this in them.
async fn passes(access: &str, focus: &str) {
    let Some(program) = program() else {
        println!("SKIPPED: csi-sanity is not installed: `go install .../csi-test/v5/cmd/csi-sanity@latest`");
        return;
    };
    let pollux = Pollux::start().await.ready().await;
    pollux.template("gold", 3).await;
    let driver = Driver::start(&pollux, "n1").await;
    let control = pollux.control("default");
    let identity = IdentityService::new(false, Some(control.clone()));
    let routes = Routes::new(IdentityServer::new(identity))
        .add_service(ControllerServer::new(
            ControllerService::new(control.clone()).with_volumes_max(VOLUMES_MAX),
        ))
        .add_service(GroupControllerServer::new(ControllerService::new(control)))
        .add_service(NodeServer::new(driver.service.clone()));
    let endpoint = served(routes).await;
    let files = tempfile::tempdir().expect("a directory");
    let file = |name: &str, content: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, content).expect("it can be written");
        path.display().to_string()
    };
    let class = file("class.yaml", "replicas: \"2\"\nqosIops: \"5000\"\n");
    let attributes = file("attributes.yaml", "qosIops: \"2000\"\ntemplate: gold\n");
    let mut command = Command::new(program);
    command
        .arg(format!("--csi.endpoint={}", endpoint.display()))
        .arg(format!(
            "--csi.mountdir={}",
            files.path().join("target").display()
        ))
        .arg(format!(
            "--csi.stagingdir={}",
            files.path().join("staging").display()
        ))
        .arg(format!("--csi.testvolumeparameters={class}"))
        .arg(format!("--csi.testvolumemutableparameters={attributes}"))
        .arg(format!("--csi.testvolumeaccesstype={access}"))
        .arg(format!("--ginkgo.focus={focus}"))
        .arg("--csi.testnodevolumeattachlimit")
        .arg("--ginkgo.no-color")
        .arg("--ginkgo.v")
        .stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(Duration::from_secs(300), run).await;
    let output = output.expect("it ends").expect("it runs").expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text
        .lines()
        .rev()
        .find(|line| line.contains("Passed"))
        .unwrap_or_default();
    println!("{access}: {summary}");
    assert!(output.status.success(), "{text}");
    // What is skipped is what the driver does not say that it can do.
    for line in text.lines().filter(|line| line.contains("[SKIPPED]")) {
        println!("{line}");
    }
    assert!(driver.machine.is_clean(), "{:?}", driver.machine.state());
    pollux.require_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_tests_pass_with_file_systems() {
    passes("mount", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_tests_pass_with_block_devices() {
    // To the controller service it makes no difference.
    passes("block", "Node Service").await;
}
