//! Hosts that want far more memory than the target has: everything is answered, and nothing is mixed up.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Device};
use pollux_nvme::initiator::device::NvmfDevice;
use pollux_reactor::{random_u64, spawn, timeout};
use pollux_sim::SimDriveOptions;

use crate::lab::{BLOCK, Lab, LabOptions, buffer, pattern, read};

/// Buffers of each reactor: two of the largest transfers.
const BUFFER_BYTES: usize = 2 << 20;

/// Bytes of the drive that each stream of requests has for itself.
const REGION_BYTES: usize = 1 << 20;

const CONNECTIONS: usize = 3;
const STREAMS: usize = 8;
const ROUNDS: usize = 6;

/// More than all this takes if nothing stands still, and less than a command may take.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Writes and reads back, with lengths from a block to all of the region.
async fn exercise(queue: Rc<dyn BlockDevice>, region: usize) {
    let start = (region * REGION_BYTES / BLOCK) as u64;
    let mut expected = vec![0; REGION_BYTES];
    for round in 0..ROUNDS {
        let blocks_max = if random_u64().is_multiple_of(3) {
            2
        } else {
            REGION_BYTES / BLOCK
        };
        let blocks = 1 + random_u64() as usize % blocks_max;
        let first = random_u64() as usize % (REGION_BYTES / BLOCK + 1 - blocks);
        let content = pattern((region * ROUNDS + round) as u8, blocks * BLOCK);
        let range = first * BLOCK..(first + blocks) * BLOCK;
        queue
            .write(start + first as u64, buffer(&content), false)
            .await
            .unwrap();
        expected[range].copy_from_slice(&content);
        assert!(
            read(&*queue, start, REGION_BYTES).await.unwrap() == expected,
            "region {region}"
        );
    }
}

#[test]
fn nothing_stands_still_and_nothing_fails() {
    for seed in 0..3 {
        let options = LabOptions {
            drive: SimDriveOptions::new((CONNECTIONS * STREAMS * REGION_BYTES) as u64, BLOCK as u32).unwrap(),
            buffer_bytes: BUFFER_BYTES,
            ..LabOptions::default()
        };
        let lab = Lab::with(seed, options);
        let options = lab.nvmf_options("&queues=1&timeout=60s");
        lab.world.block_on(lab.host_reactors[0], async move {
            let mut tasks = Vec::new();
            for connection in 0..CONNECTIONS {
                let device = NvmfDevice::open(options.clone()).await.unwrap();
                let queue = device.clone().attach().await.unwrap();
                for stream in 0..STREAMS {
                    tasks.push(spawn(exercise(queue.clone(), connection * STREAMS + stream)));
                }
            }
            let all = async {
                for task in tasks {
                    task.await;
                }
            };
            timeout(TIME_MAX, all).await.expect("something stands still");
        });
    }
}
