//! Many requests at once, from one reactor and from several, and requests that nobody waits for.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use pollux_reactor::{Reactor, ReactorHandle};

use super::support::{Randomness, eventually, first_difference, gather_of, join_all, pattern, read};
use super::{Suite, attach};
use crate::{BlockDeviceExt, Device, Request};

/// Requests under way at a time.
const DEPTH: u64 = 128;

/// Rounds of the checks on several reactors.
const ROUNDS: u64 = 24;

/// Blocks that each of several reactors owns.
const OWNED_BLOCKS: u64 = 64;

impl Suite {
    /// A full queue of writes, then one of reads, flushes in between.
    pub(super) async fn depth(&self) {
        let (name, queue, geometry) = (&self.name, &*self.queue, &self.geometry);
        let blocks = 3.min(self.window_blocks() / DEPTH);
        for round in 0..4 {
            let writer = 800 + round;
            let writes = (0..DEPTH).map(|index| async move {
                let data = pattern(geometry, index * blocks, blocks, writer + index);
                let written = queue
                    .write(index * blocks, gather_of(&data), index % 5 == 0)
                    .await;
                assert_eq!(written, Ok(()), "{name}: depth: write {index}");
                if index % 16 == 0 {
                    assert_eq!(queue.flush().await, Ok(()), "{name}: depth: flush");
                }
            });
            join_all(writes).await;
            let reads = (0..DEPTH).map(|index| async move {
                let found = read(queue, geometry, index * blocks, blocks)
                    .await
                    .expect("in range");
                let expected = pattern(geometry, index * blocks, blocks, writer + index);
                assert_eq!(
                    first_difference(&found, &expected),
                    None,
                    "{name}: depth: read {index}"
                );
            });
            join_all(reads).await;
        }
    }

    /// Concurrent writes of one block leave one of them, whole.
    pub(super) async fn one_block_by_many_writers(&self) {
        let (name, queue, geometry) = (&self.name, &*self.queue, &self.geometry);
        for block in 0..8 {
            let versions: Vec<_> = (0..16)
                .map(|writer| pattern(geometry, block, 1, 900 + writer))
                .collect();
            let writes = versions
                .iter()
                .map(|data| queue.write(block, gather_of(data), false));
            for written in join_all(writes).await {
                assert_eq!(written, Ok(()), "{name}: one block by many writers");
            }
            let found = read(queue, geometry, block, 1).await.expect("in range");
            let is_one = versions.iter().any(|data| data[..] == found[..]);
            assert!(is_one, "{name}: block {block} is a mix of several writes");
        }
    }

    /// Requests may be dropped at any time: the device goes on, and the memory comes back. Blocks that were
    /// being written stay unknown from then on, so this comes last and in the last part of the window.
    pub(super) async fn dropped_completions(&self) {
        let (name, queue, geometry) = (&self.name, &*self.queue, &self.geometry);
        let in_use = || {
            let reactor = Reactor::try_current();
            reactor.map_or(0, |reactor| reactor.buffers().statistics().in_use_bytes())
        };
        let before = in_use();
        let start = self.window_blocks() - DEPTH;
        for round in 0..8 {
            for index in 0..DEPTH {
                let block = start + index;
                let data = pattern(geometry, block, 1, 1000);
                let request = match (round + index) % 4 {
                    0 => Request::Write {
                        block,
                        from: gather_of(&data),
                        force_unit_access: index % 3 == 0,
                    },
                    1 => Request::Read {
                        block,
                        into: super::support::buffer(self.bytes(1)),
                    },
                    2 => Request::Compare {
                        block,
                        with: gather_of(&data),
                    },
                    _ => Request::Flush,
                };
                let mut completion = queue.submit(request);
                if index % 2 == 0 {
                    std::future::poll_fn(|context| {
                        let _unwanted = Pin::new(&mut completion).poll(context);
                        std::task::Poll::Ready(())
                    })
                    .await;
                }
                drop(completion);
            }
            let others = pattern(geometry, 0, 1, 1100 + round);
            let written = queue.write(0, gather_of(&others), false).await;
            assert_eq!(written, Ok(()), "{name}: a write after dropped completions");
            self.expect(0, &others, "after dropped completions").await;
        }
        assert_eq!(
            queue.flush().await,
            Ok(()),
            "{name}: a flush after dropped completions"
        );
        let returned = eventually(|| in_use() <= before).await;
        assert!(
            returned,
            "{name}: buffers of dropped completions never came back: {} bytes",
            in_use() - before
        );
    }
}

/// What the reactors write, by a number that every block of it carries.
fn writer_of(reactor: u64, round: u64) -> u64 {
    (reactor + 1) << 32 | round
}

pub(super) async fn check_shared(device: Arc<dyn Device>, reactors: &[ReactorHandle]) {
    let name = device.name().to_owned();
    let geometry = device.geometry();
    let count = reactors.len() as u64;
    assert!(
        geometry.blocks >= (count + 1) * OWNED_BLOCKS,
        "{name}: too small for this check"
    );
    for round in 0..ROUNDS {
        // Each writes what it owns, all at once, and all write one block that they share.
        on_all(&name, &device, reactors, move |device, reactor| async move {
            let queue = attach(&device).await;
            let start = (reactor + 1) * OWNED_BLOCKS;
            let data = pattern(&geometry, start, OWNED_BLOCKS, writer_of(reactor, round));
            let random = Randomness::new(round << 8 | reactor);
            let mut at = 0;
            while at < OWNED_BLOCKS {
                let blocks = (1 + random.below(16)).min(OWNED_BLOCKS - at);
                let block_bytes = geometry.block_bytes as usize;
                let part = &data[at as usize * block_bytes..(at + blocks) as usize * block_bytes];
                queue
                    .write(start + at, gather_of(part), random.below(4) == 0)
                    .await
                    .map_err(|error| format!("write: {error}"))?;
                let shared = pattern(&geometry, 0, 1, writer_of(reactor, round));
                queue
                    .write(0, gather_of(&shared), false)
                    .await
                    .map_err(|error| format!("shared write: {error}"))?;
                at += blocks;
            }
            queue.flush().await.map_err(|error| format!("flush: {error}"))
        })
        .await;
        // Each reads what all wrote.
        on_all(&name, &device, reactors, move |device, _| async move {
            let queue = attach(&device).await;
            for other in 0..count {
                let start = (other + 1) * OWNED_BLOCKS;
                let found = read(&*queue, &geometry, start, OWNED_BLOCKS)
                    .await
                    .map_err(|error| format!("read: {error}"))?;
                let expected = pattern(&geometry, start, OWNED_BLOCKS, writer_of(other, round));
                if let Some(difference) = first_difference(&found, &expected) {
                    return Err(format!(
                        "what reactor {other} wrote in round {round}: {difference}"
                    ));
                }
            }
            let found = read(&*queue, &geometry, 0, 1)
                .await
                .map_err(|error| format!("shared read: {error}"))?;
            let is_one =
                (0..count).any(|other| pattern(&geometry, 0, 1, writer_of(other, round))[..] == found[..]);
            if is_one {
                Ok(())
            } else {
                Err(format!("the shared block is a mix in round {round}"))
            }
        })
        .await;
    }
}

/// Runs a future on every reactor at once, with the number of the reactor.
async fn on_all<M, F>(name: &str, device: &Arc<dyn Device>, reactors: &[ReactorHandle], make: M)
where
    M: Fn(Arc<dyn Device>, u64) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), String>> + 'static,
{
    let calls = reactors.iter().enumerate().map(|(number, reactor)| {
        let (make, device) = (make.clone(), device.clone());
        reactor.call(move || make(device, number as u64))
    });
    for (number, result) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(result, Ok(Ok(())), "{name}: reactor {number}");
    }
}
