//! Copies of volumes, cut off at any moment: what was begun is finished by the same call again, or cleared
//! away.

use std::time::Duration;

use pollux_api::csi::v1::volume_content_source::{Type as SourceType, VolumeSource};
use pollux_api::csi::v1::{CreateVolumeRequest, DeleteVolumeRequest, VolumeContentSource};
use tonic::Code;

use crate::common::{ATTEMPTS_MAX, Pollux, again, new_volume};

fn copy(name: &str, of: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(SourceType::Volume(VolumeSource {
                volume_id: of.to_owned(),
            })),
        }),
        ..new_volume(name)
    }
}

fn delete(id: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_cut_off_is_finished_or_cleared_away() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    let mut cut = 0;
    for round in 0..24_u64 {
        let name = format!("copy-{round}");
        let limit = Duration::from_millis(1 + round * 2);
        let first = tokio::time::timeout(limit, driver.create_volume(copy(&name, "v"))).await;
        cut += u32::from(first.is_err());
        if round % 2 == 0 {
            // What another call is in the middle of may have to be asked for again.
            let finished = again("it is finished", || {
                let (mut driver, request) = (driver.clone(), copy(&name, "v"));
                async move { driver.create_volume(request).await }
            });
            assert_eq!(finished.await.volume.expect("it has one").volume_id, name);
        }
        driver
            .delete_volume(delete(&name))
            .await
            .expect("nothing needs it");
    }
    assert!(cut > 0, "no call was cut off");
    // Calls that were cut off late may have taken snapshots after the deletion; the source takes them along.
    let mut gone = driver.delete_volume(delete("v")).await;
    for _ in 0..ATTEMPTS_MAX {
        if gone.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        gone = driver.delete_volume(delete("v")).await;
    }
    gone.expect("nothing needs it");
    pollux.require_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_what_is_not_there_is_refused() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    let refused = driver
        .create_volume(copy("copy", "v"))
        .await
        .expect_err("there is no source");
    assert_eq!(refused.code(), Code::NotFound);
    driver.create_volume(new_volume("v")).await.expect("it is new");
    let (one, two) = (driver.clone(), driver.clone());
    let twice = async |mut driver: pollux_api::csi::v1::controller_client::ControllerClient<_>| {
        driver.create_volume(copy("copy", "v")).await
    };
    let (one, two) = tokio::join!(twice(one), twice(two));
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    driver
        .create_volume(copy("copy", "v"))
        .await
        .expect("it is there");
    let (volumes, snapshots) = pollux.names().await;
    assert_eq!(volumes, ["copy", "v"]);
    // What it was made of is being deleted or gone.
    driver
        .delete_volume(delete("v"))
        .await
        .expect("the copy is its own");
    driver
        .delete_volume(delete("copy"))
        .await
        .expect("nothing needs it");
    pollux.require_empty().await;
    assert!(snapshots.len() <= 1, "{snapshots:?}");
}
