//! Which ranges of snapshots hold data, or may differ from another snapshot: engines that have them know.
//!
//! A snapshot does not change, so every replica that has it tells the truth of it, and one can go on where
//! another one went away. What two replicas tell may differ all the same: a range that holds zeros is data on
//! one and nothing on the other. Both are right, and so is what begins with one and ends with the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use pollux_api::control::v1::{
    BlockRange, ListReplicaBlocksRequest, Node, RecordedSnapshot, Replica, ReplicaState, Snapshot,
    SnapshotBlocks, SnapshotState, StreamSnapshotBlocksRequest, Volume,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::engines::{EngineAddress, EngineClient};
use crate::model::{Record, SLOTS};

use super::Services;
use super::errors::CallError;
use super::records::{ChangeStream, by_name, require_name};
use super::snapshots::require_not_lost;

/// Answers on their way to one caller.
const ANSWERS_ON_THE_WAY: usize = 4;

/// Somebody who can be asked.
struct Holder {
    engine: EngineAddress,
    /// What is asked, but for where to begin.
    request: ListReplicaBlocksRequest,
}

/// What is left to be told of a snapshot.
struct Telling {
    engines: Arc<dyn EngineClient>,
    /// The last one is asked; one that fails is asked no more.
    holders: Vec<Holder>,
    name: String,
    size_bytes: u64,
    /// Nothing before it is told any more; `None` at the end.
    next: Option<u64>,
}

impl Telling {
    /// The next ranges; nothing at the end.
    async fn page(&mut self) -> Result<Option<SnapshotBlocks>, CallError> {
        let Some(offset) = self.next.filter(|offset| *offset < self.size_bytes) else {
            return Ok(None);
        };
        let mut why = "no replica that is left has it".to_owned();
        while let Some(holder) = self.holders.last() {
            let request = ListReplicaBlocksRequest {
                offset_bytes: offset,
                ..holder.request.clone()
            };
            match self.engines.blocks(&holder.engine, request).await {
                Ok(page) if page.next_offset_bytes.is_none_or(|next| next > offset) => {
                    self.next = page.next_offset_bytes;
                    return Ok(Some(SnapshotBlocks {
                        size_bytes: self.size_bytes,
                        ranges: clipped(&page.ranges, offset, self.size_bytes),
                    }));
                }
                Ok(_) => why = format!("the engine on node {} tells the same again", holder.engine.node),
                Err(error) => why = error.to_string(),
            }
            self.holders.pop();
        }
        Err(CallError::SnapshotAway {
            name: self.name.clone(),
            why,
        })
    }
}

/// What of ranges is between two bytes.
fn clipped(ranges: &[BlockRange], from: u64, end: u64) -> Vec<BlockRange> {
    let mut all = Vec::with_capacity(ranges.len());
    let mut from = from;
    for range in ranges {
        let last = range.offset_bytes.saturating_add(range.length_bytes).min(end);
        let first = range.offset_bytes.max(from);
        if first < last {
            all.push(BlockRange {
                offset_bytes: first,
                length_bytes: last - first,
            });
            from = last;
        }
    }
    all
}

/// A snapshot as the record of its volume has it.
fn recorded<'a>(volume: &'a Volume, snapshot: &Snapshot) -> Result<&'a RecordedSnapshot, CallError> {
    require_not_lost(snapshot)?;
    let recorded = volume.status.as_ref().and_then(|status| {
        let mut all = status.snapshots.iter();
        all.find(|recorded| recorded.uid == snapshot.meta().uid)
    });
    let state = snapshot.status.as_ref().map(|status| status.state());
    recorded
        .filter(|_| state == Some(SnapshotState::Ready))
        .ok_or_else(|| CallError::SnapshotAway {
            name: snapshot.name().to_owned(),
            why: "it is not taken yet, or is being deleted".to_owned(),
        })
}

/// Those who have a snapshot, and the one that it is compared with; those in sync last.
fn holders(
    volume: &Volume,
    nodes: &BTreeMap<String, Node>,
    snapshot: &RecordedSnapshot,
    since: Option<&RecordedSnapshot>,
) -> Vec<Holder> {
    let Some(status) = &volume.status else {
        return Vec::new();
    };
    let held_by = snapshot.held_by & since.map_or(u32::MAX, |since| since.held_by);
    let mut replicas: Vec<_> = status
        .replicas
        .iter()
        .filter(|replica| held_by & 1_u32 << replica.slot.min(SLOTS) != 0)
        .collect();
    replicas.sort_by_key(|replica| replica.state() == ReplicaState::InSync);
    let holder = |replica: &&Replica| {
        let node = nodes.get(&replica.node)?;
        Some(Holder {
            engine: EngineAddress {
                node: replica.node.clone(),
                address: node.spec.as_ref()?.address.clone(),
            },
            request: ListReplicaBlocksRequest {
                volume_uid: volume.meta().uid.clone(),
                replica_uid: replica.uid.clone(),
                cut: snapshot.cut.clone(),
                since_cut: since.map_or_else(String::new, |since| since.cut.clone()),
                offset_bytes: 0,
            },
        })
    };
    replicas.iter().filter_map(holder).collect()
}

impl Services {
    /// The ranges of a snapshot that hold data, or in which it may differ from another one.
    pub(super) async fn blocks(
        &self,
        request: StreamSnapshotBlocksRequest,
    ) -> Result<ChangeStream<SnapshotBlocks>, CallError> {
        require_name(&request.name)?;
        let snapshot: Snapshot = self.find(&request.name).await?;
        let since: Option<Snapshot> = match request.since.as_str() {
            "" => None,
            name => {
                require_name(name).map_err(|_| CallError::field("since", "is no name of a snapshot"))?;
                Some(self.find(name).await?)
            }
        };
        let volume_of = |snapshot: &Snapshot| snapshot.spec.clone().unwrap_or_default().volume;
        if since
            .as_ref()
            .map(volume_of)
            .is_some_and(|other| other != volume_of(&snapshot))
        {
            return Err(CallError::field("since", "is a snapshot of another volume"));
        }
        let size_bytes = snapshot.status.as_ref().map_or(0, |status| status.size_bytes);
        if request.offset_bytes > size_bytes {
            return Err(CallError::field(
                "offset_bytes",
                "is behind the end of the snapshot",
            ));
        }
        let volume: Volume = self.find(&volume_of(&snapshot)).await?;
        let nodes = by_name(self.all::<Node>().await?);
        let taken = recorded(&volume, &snapshot)?;
        let before = since.as_ref().map(|since| recorded(&volume, since)).transpose()?;
        let mut telling = Telling {
            engines: self.parts.engines.clone(),
            holders: holders(&volume, &nodes, taken, before),
            name: request.name,
            size_bytes,
            next: Some(request.offset_bytes),
        };
        // So that what cannot be told at all is an error at once.
        let first = telling.page().await?.unwrap_or(SnapshotBlocks {
            size_bytes,
            ranges: Vec::new(),
        });
        let (sender, receiver) = mpsc::channel(ANSWERS_ON_THE_WAY);
        tokio::spawn(async move {
            let mut answer = Ok(first);
            loop {
                let is_error = answer.is_err();
                if sender.send(answer).await.is_err() || is_error {
                    return;
                }
                answer = match telling.page().await {
                    Ok(Some(blocks)) => Ok(blocks),
                    Ok(None) => return,
                    Err(error) => Err(Status::from(error)),
                };
            }
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset_bytes: u64, length_bytes: u64) -> BlockRange {
        BlockRange {
            offset_bytes,
            length_bytes,
        }
    }

    #[test]
    fn ranges_are_clipped_and_never_overlap() {
        let told = [
            range(0, 10),
            range(5, 10),
            range(20, 5),
            range(24, 100),
            range(300, u64::MAX),
        ];
        let expected = [range(3, 7), range(10, 5), range(20, 5), range(25, 5)];
        assert_eq!(clipped(&told, 3, 30), expected);
        assert_eq!(clipped(&told, 30, 30), []);
    }
}
