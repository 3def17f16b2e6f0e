//! What is told of the blocks of snapshots. The engines are simulated, and tell the same of each snapshot.

use pollux_api::csi::v1::{
    BlockMetadata, BlockMetadataType, CreateSnapshotRequest, GetMetadataAllocatedRequest,
    GetMetadataAllocatedResponse, GetMetadataDeltaRequest,
};
use tonic::{Code, Status, Streaming};

use crate::common::{GIB, Pollux, new_mirror};

async fn all<T>(answers: tonic::Response<Streaming<T>>) -> Result<Vec<T>, Status> {
    let mut answers = answers.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer);
    }
    Ok(all)
}

fn allocated(snapshot: &str, starting_offset: i64, max_results: i32) -> GetMetadataAllocatedRequest {
    GetMetadataAllocatedRequest {
        snapshot_id: snapshot.to_owned(),
        starting_offset,
        max_results,
        ..Default::default()
    }
}

fn delta(base: &str, target: &str) -> GetMetadataDeltaRequest {
    GetMetadataDeltaRequest {
        base_snapshot_id: base.to_owned(),
        target_snapshot_id: target.to_owned(),
        ..Default::default()
    }
}

fn ranges(answers: &[GetMetadataAllocatedResponse]) -> Vec<(i64, i64)> {
    let blocks = answers.iter().flat_map(|answer| &answer.block_metadata);
    blocks
        .map(|block: &BlockMetadata| (block.byte_offset, block.size_bytes))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_snapshots_are_told() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    for volume in ["v", "w"] {
        // On node a there is one copy, and the others are asked if it knows nothing.
        let request = new_mirror(volume);
        driver.create_volume(request).await.expect("it is new");
    }
    for (name, volume) in [("one", "v"), ("two", "v"), ("other", "w")] {
        let request = CreateSnapshotRequest {
            source_volume_id: volume.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        let taken = driver
            .create_snapshot(request)
            .await
            .expect("it is new")
            .into_inner();
        assert!(taken.snapshot.expect("it has one").ready_to_use);
    }
    let mut metadata = pollux.metadata("default").await;
    let told = metadata.get_metadata_allocated(allocated("one", 0, 0)).await;
    let told = all(told.expect("it is taken")).await.expect("engines answer");
    let expected = [(0, 4096), (8192, 8192), (65_536, 4096), (1 << 20, 65_536)];
    assert_eq!(ranges(&told), expected);
    for answer in &told {
        assert_eq!(answer.volume_capacity_bytes, GIB);
        assert_eq!(answer.block_metadata_type(), BlockMetadataType::VariableLength);
    }
    let told = metadata.get_metadata_allocated(allocated("one", 12_288, 1)).await;
    let told = all(told.expect("it is taken")).await.expect("engines answer");
    assert_eq!(ranges(&told), [(12_288, 4096), (65_536, 4096), (1 << 20, 65_536)]);
    assert!(told.iter().all(|answer| answer.block_metadata.len() == 1));
    let told = metadata.get_metadata_allocated(allocated("one", GIB, 0)).await;
    assert!(
        all(told.expect("it is the end"))
            .await
            .expect("it ends")
            .is_empty()
    );
    let changed = metadata.get_metadata_delta(delta("one", "two")).await;
    let changed = all(changed.expect("both are taken"))
        .await
        .expect("engines answer");
    let changed: Vec<_> = changed
        .into_iter()
        .flat_map(|answer| answer.block_metadata)
        .collect();
    assert_eq!(changed.len(), 1);
    assert_eq!((changed[0].byte_offset, changed[0].size_bytes), (1 << 20, 65_536));

    for (request, code) in [
        (allocated("", 0, 0), Code::InvalidArgument),
        (allocated("one", 0, -1), Code::InvalidArgument),
        (allocated("none", 0, 0), Code::NotFound),
        (allocated("No Name", 0, 0), Code::NotFound),
        (allocated("one", -1, 0), Code::OutOfRange),
        (allocated("one", GIB + 1, 0), Code::OutOfRange),
    ] {
        let refused = metadata.get_metadata_allocated(request).await.map(drop);
        assert_eq!(refused.expect_err("it is wrong").code(), code);
    }
    for (request, code) in [
        (delta("", "one"), Code::InvalidArgument),
        (delta("one", ""), Code::InvalidArgument),
        (delta("one", "other"), Code::InvalidArgument),
        (delta("none", "one"), Code::NotFound),
    ] {
        let refused = metadata.get_metadata_delta(request).await.map(drop);
        assert_eq!(refused.expect_err("it is wrong").code(), code);
    }
    // Other clusters have no such snapshots.
    let mut stranger = pollux.metadata("east").await;
    let refused = stranger
        .get_metadata_allocated(allocated("one", 0, 0))
        .await
        .map(drop);
    assert_eq!(
        refused.expect_err("it is of another cluster").code(),
        Code::NotFound
    );
}
