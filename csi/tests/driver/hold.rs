//! A file system that is held still while a command runs goes on afterwards, however the command ends.

use std::path::PathBuf;

use pollux_api::csi::v1::*;
use pollux_csi::hold::{FreezeArguments, FreezeError, freeze};

use crate::common::{Driver, Pollux, new_volume};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_is_still_while_a_command_runs_and_goes_on_whatever_comes_of_it() {
    let pollux = Pollux::start().await.ready().await;
    let driver = Driver::start(&pollux, "n1").await;
    let stage = driver.published(&pollux, new_volume("v")).await;
    let staging = PathBuf::from(&stage.staging_target_path);
    let mut node = driver.client.clone();
    node.node_stage_volume(stage).await.expect("it can be staged");
    let held = |target: PathBuf, command: &[&str]| FreezeArguments {
        target,
        seconds: 1,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
    };
    // How often it was held still, and let go on.
    let counts = || {
        let state = driver.machine.state();
        let count = |what: &str| state.done.iter().filter(|done| done.starts_with(what)).count();
        (count("freeze"), count("thaw"))
    };
    let run = async |command: &[&str]| freeze(&*driver.machine, &held(staging.clone(), command)).await;
    run(&["true"]).await.expect("it is done");
    assert_eq!(counts(), (1, 1));
    assert!(matches!(run(&["false"]).await, Err(FreezeError::Failed { .. })));
    assert_eq!(counts(), (2, 2));
    assert!(matches!(
        run(&["no-such-program"]).await,
        Err(FreezeError::Program { .. })
    ));
    assert_eq!(counts(), (3, 3));
    assert!(matches!(
        run(&["sleep", "60"]).await,
        Err(FreezeError::Patience { .. })
    ));
    assert_eq!(counts(), (4, 4));
    driver.machine.state().failing.push("freeze");
    assert!(matches!(run(&["true"]).await, Err(FreezeError::Host(_))));
    // Where no volume of ours is, nothing is done.
    let elsewhere = held(driver.directory.path().to_owned(), &["true"]);
    let refused = freeze(&*driver.machine, &elsewhere).await;
    assert!(matches!(refused, Err(FreezeError::NoVolume(_))));
    assert_eq!(counts(), (5, 4));
    // What was left still goes on before it is unmounted.
    let unstage = NodeUnstageVolumeRequest {
        volume_id: "v".to_owned(),
        staging_target_path: staging.display().to_string(),
    };
    node.node_unstage_volume(unstage).await.expect("nobody uses it");
    let state = driver.machine.state();
    let at = |what: &str| state.done.iter().rposition(|done| done.starts_with(what));
    assert!(
        at("thaw") < at("unmount") && at("thaw") > at("freeze"),
        "{:?}",
        state.done
    );
}
