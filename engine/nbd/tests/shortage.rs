//! Many connections that want far more memory than there is: everything is answered, and nothing is mixed up.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod support;

use std::time::Duration;

use pollux_nbd::NbdSettings;
use pollux_reactor::net::Address;
use pollux_reactor::{now, random_u64, sleep, spawn, timeout};
use support::{ANY_OFFSET, Client, READ, STYLES, ServerOptions, Style, WRITE, run_with};

/// Buffers of the server: two of the largest pieces.
const BUFFER_BYTES: usize = 2 << 20;

/// Bytes that each connection has for itself.
const REGION_BYTES: u64 = 3 << 20;

const CONNECTIONS: u64 = 12;

/// More than all this takes if nothing stands still.
const TIME_MAX: Duration = Duration::from_secs(50);

fn tiny() -> ServerOptions {
    ServerOptions {
        buffer_bytes: BUFFER_BYTES,
        reactors: 1,
        ..ServerOptions::default()
    }
}

fn bytes(seed: u64, len: u64) -> Vec<u8> {
    (0..len)
        .map(|index| (index.wrapping_mul(0x9e37_79b9).wrapping_add(seed * 77) >> 9) as u8)
        .collect()
}

/// Sends requests of all sizes without waiting for answers, then takes them all.
async fn exercise(address: Address, export: &'static str, number: u64) {
    let style = STYLES[number as usize % 3];
    let mut client = Client::open(&address, export, style).await;
    let start = number * REGION_BYTES;
    for round in 0..2 {
        let data = bytes(number * 100 + round, REGION_BYTES);
        let mut at = 0;
        let mut lengths = Vec::new();
        while at < REGION_BYTES {
            let most = if random_u64().is_multiple_of(2) { 4 } else { 512 };
            let len = (4096 * (1 + random_u64() % most)).min(REGION_BYTES - at);
            client
                .request(WRITE, 0, lengths.len() as u64, start + at, len)
                .await;
            client.send(&data[at as usize..(at + len) as usize]).await;
            lengths.push((at, len));
            at += len;
        }
        for _ in &lengths {
            assert_eq!(client.answer(WRITE, ANY_OFFSET, 0).await.error, 0);
        }
        if style == Style::Simple {
            // Answers of any size, many at once, told apart by their cookies alone.
            for (cookie, (at, len)) in lengths.iter().enumerate() {
                client.request(READ, 0, cookie as u64, start + at, *len).await;
            }
            for _ in &lengths {
                let answer = client.simple_read(&lengths).await;
                let (at, len) = lengths[answer.cookie as usize];
                assert!(
                    answer.data == data[at as usize..(at + len) as usize],
                    "connection {number} round {round}: {len} bytes at {at}"
                );
            }
        } else {
            let answer = client.call(READ, 0, start, REGION_BYTES, &[]).await;
            assert!(answer.data == data, "connection {number} round {round}");
        }
    }
}

#[test]
fn nothing_stands_still_and_nothing_is_mixed_up() {
    for (seed, export) in [(200, "drive"), (201, "drive"), (202, "disk")] {
        run_with(seed, tiny(), move |address, _| async move {
            let tasks: Vec<_> = (0..CONNECTIONS)
                .map(|number| spawn(exercise(address.clone(), export, number)))
                .collect();
            let all = async {
                for task in tasks {
                    task.await;
                }
            };
            timeout(TIME_MAX, all).await.expect("something stands still");
        });
    }
}

/// Clients that ask for much and take nothing are let go, and others served then.
#[test]
fn who_takes_nothing_is_let_go() {
    run_with(210, tiny(), |address, _| async move {
        let begun = now();
        let mut greedy = Vec::new();
        for _ in 0..6 {
            let mut client = Client::open(&address, "drive", Style::Structured).await;
            for cookie in 0..64 {
                client.request(READ, 0, cookie, 0, 1 << 20).await;
            }
            greedy.push(client);
        }
        // And one that sends half of a write.
        let mut halfway = Client::open(&address, "drive", Style::Structured).await;
        halfway.request(WRITE, 0, 0, 1 << 20, 1 << 20).await;
        halfway.send(&[1; 8192]).await;
        let mut good = Client::open(&address, "drive", Style::Structured).await;
        // Two at a time have all the memory, each for no longer than twice the limit.
        let answer = timeout(
            Duration::from_secs(3 * 120 + 10),
            good.call(READ, 0, 0, 1 << 20, &[]),
        )
        .await;
        assert_eq!(answer.expect("memory comes back").data.len(), 1 << 20);
        sleep(Duration::from_secs(150)).await;
        assert!(halfway.is_closed().await);
        assert!(now() - begun >= NbdSettings::default().stall_timeout);
        // An idle client stays.
        assert!(good.call(READ, 0, 0, 4096, &[]).await.data == [0; 4096]);
        drop(greedy);
    });
}

/// A client that is slow, and one whose device is slow, are not let go.
#[test]
fn who_is_slow_stays() {
    run_with(211, tiny(), |address, _| async move {
        let mut client = Client::open(&address, "disk", Style::Extended).await;
        client.request(WRITE, 0, 1, 0, 8192).await;
        for _ in 0..8 {
            sleep(Duration::from_secs(40)).await;
            client.send(&[9; 1024]).await;
        }
        assert_eq!(client.answer(WRITE, 0, 8192).await.error, 0);
        assert!(client.call(READ, 0, 0, 8192, &[]).await.data == [9; 8192]);
    });
}
