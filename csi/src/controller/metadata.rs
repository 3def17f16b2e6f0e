//! The SnapshotMetadata service: which blocks of a snapshot hold data, or differ from an older one.
//!
//! Engines know; the control plane asks one that has the snapshot. What is told here is cut to the size that
//! the caller wants its answers to have.

use std::pin::Pin;

use pollux_api::control::v1::{
    BlockRange, Snapshot, SnapshotBlocks, SnapshotState, StreamSnapshotBlocksRequest,
};
use pollux_api::csi::v1::snapshot_metadata_server::SnapshotMetadata;
use pollux_api::csi::v1::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::error::CallError;

use super::ControllerService;
use super::answer::signed;

/// Ranges in an answer, if the caller does not say, and at most.
const RANGES_MAX: usize = 4096;

/// Answers on their way to one caller.
const ANSWERS_ON_THE_WAY: usize = 4;

/// Answers one after the other.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What was asked, but for the snapshots.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    offset: u64,
    ranges: usize,
}

impl Wanted {
    fn read(starting_offset: i64, max_results: i32) -> Result<Self, CallError> {
        let offset = u64::try_from(starting_offset).map_err(|_| CallError::Offset(starting_offset))?;
        let ranges = usize::try_from(max_results);
        let ranges = ranges.map_err(|_| CallError::argument("max_results", "is less than nothing"))?;
        Ok(Self {
            offset,
            ranges: match ranges {
                0 => RANGES_MAX,
                ranges => ranges.min(RANGES_MAX),
            },
        })
    }
}

/// What an answer is made of.
struct Part {
    capacity_bytes: i64,
    ranges: Vec<BlockMetadata>,
}

fn told(range: &BlockRange) -> BlockMetadata {
    BlockMetadata {
        byte_offset: signed(range.offset_bytes),
        size_bytes: signed(range.length_bytes),
    }
}

impl ControllerService {
    async fn ready_snapshot(&self, field: &'static str, id: &str) -> Result<Snapshot, CallError> {
        if id.is_empty() {
            return Err(CallError::missing(field));
        }
        let snapshot = self.known_snapshot(id).await?;
        let snapshot = snapshot.ok_or_else(|| CallError::NotFound {
            kind: "snapshot",
            id: id.to_owned(),
        })?;
        let state = snapshot.status.as_ref().map(|status| status.state());
        match state {
            Some(SnapshotState::Ready) => Ok(snapshot),
            _ => Err(CallError::Pending {
                kind: "snapshot",
                id: id.to_owned(),
                what: "it is still being taken".to_owned(),
            }),
        }
    }

    async fn blocks<T: Send + 'static>(
        &self,
        snapshot: &Snapshot,
        since: &str,
        wanted: Wanted,
        answer: impl Fn(Part) -> T + Send + 'static,
    ) -> Result<Answers<T>, CallError> {
        let size = snapshot.status.as_ref().map_or(0, |status| status.size_bytes);
        if wanted.offset > size {
            return Err(CallError::Offset(signed(wanted.offset)));
        }
        let name = snapshot.metadata.as_ref().map(|metadata| metadata.name.clone());
        let request = StreamSnapshotBlocksRequest {
            name: name.unwrap_or_default(),
            since: since.to_owned(),
            offset_bytes: wanted.offset,
        };
        let blocks = self.control.snapshots().stream_snapshot_blocks(request).await?;
        let (sender, receiver) = mpsc::channel(ANSWERS_ON_THE_WAY);
        tokio::spawn(pass_on(blocks.into_inner(), wanted, sender, answer));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

/// Passes on what the control plane tells, until nobody listens any more.
async fn pass_on<T>(
    mut blocks: Streaming<SnapshotBlocks>,
    wanted: Wanted,
    sender: mpsc::Sender<Result<T, Status>>,
    answer: impl Fn(Part) -> T,
) {
    loop {
        let page = match blocks.message().await {
            Ok(Some(page)) => page,
            Ok(None) => return,
            Err(status) => {
                // Whoever has gone needs no reason.
                let _ = sender.send(Err(CallError::from(status).into())).await;
                return;
            }
        };
        for ranges in page.ranges.chunks(wanted.ranges) {
            let part = Part {
                capacity_bytes: signed(page.size_bytes),
                ranges: ranges.iter().map(told).collect(),
            };
            if sender.send(Ok(answer(part))).await.is_err() {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl SnapshotMetadata for ControllerService {
    type GetMetadataAllocatedStream = Answers<GetMetadataAllocatedResponse>;
    type GetMetadataDeltaStream = Answers<GetMetadataDeltaResponse>;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Result<Response<Self::GetMetadataAllocatedStream>, Status> {
        let request = request.into_inner();
        let wanted = Wanted::read(request.starting_offset, request.max_results)?;
        let snapshot = self.ready_snapshot("snapshot_id", &request.snapshot_id).await?;
        let answers = self.blocks(&snapshot, "", wanted, |part| GetMetadataAllocatedResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: part.capacity_bytes,
            block_metadata: part.ranges,
        });
        Ok(Response::new(answers.await?))
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Result<Response<Self::GetMetadataDeltaStream>, Status> {
        let request = request.into_inner();
        let wanted = Wanted::read(request.starting_offset, request.max_results)?;
        let base = self
            .ready_snapshot("base_snapshot_id", &request.base_snapshot_id)
            .await?;
        let target = self
            .ready_snapshot("target_snapshot_id", &request.target_snapshot_id)
            .await?;
        let volume_of = |snapshot: &Snapshot| snapshot.spec.as_ref().map(|spec| spec.volume.clone());
        if volume_of(&base) != volume_of(&target) {
            return Err(CallError::argument(
                "base_snapshot_id",
                "is a snapshot of another volume than target_snapshot_id",
            )
            .into());
        }
        let since = request.base_snapshot_id;
        let answers = self.blocks(&target, &since, wanted, |part| GetMetadataDeltaResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: part.capacity_bytes,
            block_metadata: part.ranges,
        });
        Ok(Response::new(answers.await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_bounded() {
        assert_eq!(Wanted::read(0, 0).expect("anything").ranges, RANGES_MAX);
        assert_eq!(Wanted::read(7, 3).expect("a few").ranges, 3);
        assert_eq!(Wanted::read(0, i32::MAX).expect("many").ranges, RANGES_MAX);
        assert!(matches!(Wanted::read(-1, 0), Err(CallError::Offset(-1))));
        assert!(matches!(Wanted::read(0, -1), Err(CallError::Argument { .. })));
    }
}
