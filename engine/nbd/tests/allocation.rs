//! Holes and sizes: what clients are told of them, over the simulated network.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod support;

use support::{
    BLOCK_STATUS, Client, DISK_BYTES, READ, RESIZE, ServerOptions, Style, TRIM, WRITE, WRITE_ZEROES, go, run,
    run_with,
};

/// Hole, and reads as zeros.
const HOLE: u64 = 3;

const REQ_ONE: u16 = 1 << 3;
const NO_HOLE: u16 = 1 << 1;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

#[test]
fn holes_are_told() {
    for (seed, style) in [(100, Style::Structured), (101, Style::Extended)] {
        run(seed, move |address| async move {
            let mut client = Client::open(&address, "disk", style).await;
            let all = client.call(BLOCK_STATUS, 0, 0, DISK_BYTES, &[]).await;
            assert_eq!(all.status, [(DISK_BYTES, HOLE)]);
            for (offset, blocks) in [(8192, 2), (1 << 20, 1)] {
                let data = vec![7; blocks * 4096];
                client.call(WRITE, 0, offset, data.len() as u64, &data).await;
            }
            let all = client.call(BLOCK_STATUS, 0, 0, DISK_BYTES, &[]).await;
            let expected = [
                (8192, HOLE),
                (8192, 0),
                ((1 << 20) - 16_384, HOLE),
                (4096, 0),
                (DISK_BYTES - (1 << 20) - 4096, HOLE),
            ];
            assert_eq!(all.status, expected);
            let one = client
                .call(BLOCK_STATUS, REQ_ONE, 4096, DISK_BYTES - 4096, &[])
                .await;
            assert_eq!(one.status, [(4096, HOLE)]);
            client.call(TRIM, 0, 8192, 4096, &[]).await;
            client.call(WRITE_ZEROES, NO_HOLE, 0, 4096, &[]).await;
            let part = client.call(BLOCK_STATUS, 0, 0, 20_480, &[]).await;
            assert_eq!(part.status, [(4096, 0), (8192, HOLE), (4096, 0), (4096, HOLE)]);
        });
    }
}

/// A device that does not know its holes, and more runs than one reply has.
#[test]
fn what_is_not_known_is_allocated_and_many_runs_take_several_requests() {
    run(102, |address| async move {
        let mut client = Client::open(&address, "drive", Style::Structured).await;
        let all = client.call(BLOCK_STATUS, 0, 0, DISK_BYTES, &[]).await;
        assert_eq!(all.status, [(DISK_BYTES, 0)]);
        let mut client = Client::open(&address, "disk", Style::Extended).await;
        for block in 0..700 {
            client.call(WRITE, 0, block * 8192, 4096, &[1; 4096]).await;
        }
        let (mut at, mut runs) = (0, Vec::new());
        while at < 1400 * 4096 {
            let part = client.call(BLOCK_STATUS, 0, at, 1400 * 4096 - at, &[]).await;
            at += part.status.iter().map(|(bytes, _)| bytes).sum::<u64>();
            runs.extend(part.status);
        }
        assert_eq!(runs.len(), 1400);
        assert!(runs.chunks(2).all(|pair| pair == [(4096, 0), (4096, HOLE)]));
    });
}

#[test]
fn a_device_that_grew_is_larger_on_all_connections() {
    run_with(103, ServerOptions::default(), |address, devices| async move {
        let mut client = Client::open(&address, "disk", Style::Structured).await;
        let refused = client.call(WRITE, 0, DISK_BYTES, 4096, &[5; 4096]).await;
        assert_eq!(refused.error, ENOSPC);
        let larger = DISK_BYTES + (16 << 20);
        devices[0].clone().grow_to(larger).await.unwrap();
        let taken = client.call(WRITE, 0, DISK_BYTES, 4096, &[5; 4096]).await;
        assert_eq!(taken.error, 0);
        let last = client.call(READ, 0, larger - 4096, 4096, &[]).await;
        assert_eq!(last.data, [0; 4096]);
        let status = client.call(BLOCK_STATUS, 0, DISK_BYTES, 16 << 20, &[]).await;
        assert_eq!(status.status, [(4096, 0), ((16 << 20) - 4096, HOLE)]);
        let mut other = Client::greet(&address, 3).await;
        let information = other.option(7, &go("disk")).await;
        assert_eq!(information[0].1[2..10], larger.to_be_bytes());
    });
}

#[test]
fn clients_may_resize_only_where_they_are_allowed_to() {
    for allow_resize in [false, true] {
        let mut options = ServerOptions::default();
        options.settings.allow_resize = allow_resize;
        run_with(104, options, move |address, devices| async move {
            let mut client = Client::greet(&address, 3).await;
            let information = client.option(7, &go("disk")).await;
            assert_eq!(information[0].1[10] & 2 != 0, allow_resize, "the flag is bit 9");
            let larger = DISK_BYTES + (1 << 20);
            let cases = [
                (larger, if allow_resize { 0 } else { EPERM }),
                (4096, EPERM),
                (larger + 1, if allow_resize { EINVAL } else { EPERM }),
            ];
            for (size, error) in cases {
                assert_eq!(
                    client.call(RESIZE, 0, size, 0, &[]).await.error,
                    error,
                    "to {size}"
                );
            }
            let size = if allow_resize { larger } else { DISK_BYTES };
            assert_eq!(devices[0].geometry().bytes(), size);
            assert_eq!(client.call(READ, 0, size - 4096, 4096, &[]).await.error, 0);
        });
    }
}
