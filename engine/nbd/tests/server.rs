//! The server against a client of bytes, over the simulated network.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod support;

use proptest::prelude::*;
use support::{
    BLOCK_STATUS, CACHE, Client, DISCONNECT, DISK_BYTES, FLUSH, FUA, READ, STYLES, Style, TRIM, WRITE,
    WRITE_ZEROES, go, run, string,
};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

const UNSUPPORTED: u32 = (1 << 31) + 1;
const INVALID: u32 = (1 << 31) + 3;
const UNKNOWN: u32 = (1 << 31) + 6;
const TOO_BIG: u32 = (1 << 31) + 9;

fn pattern(len: u64, seed: u64) -> Vec<u8> {
    (0..len)
        .map(|index| (index.wrapping_mul(0x9e37_79b9).wrapping_add(seed * 77) >> 7) as u8)
        .collect()
}

#[test]
fn everything_works_in_every_style() {
    for (seed, style) in STYLES.into_iter().cycle().take(9).enumerate() {
        run(seed as u64, move |address| async move {
            let mut client = Client::open(&address, "disk", style).await;
            let data = pattern(64 << 10, 1);
            assert_eq!(client.call(WRITE, FUA, 4096, 64 << 10, &data).await.error, 0);
            assert_eq!(client.call(READ, 0, 4096, 64 << 10, &[]).await.data, data);
            assert_eq!(client.call(FLUSH, 0, 0, 0, &[]).await.error, 0);
            assert_eq!(client.call(TRIM, 0, 4096, 4096, &[]).await.error, 0);
            assert_eq!(client.call(WRITE_ZEROES, 2, 8192, 4096, &[]).await.error, 0);
            assert_eq!(client.call(CACHE, 0, 0, 8192, &[]).await.error, 0);
            let read = client.call(READ, 0, 4096, 12288, &[]).await.data;
            assert_eq!(
                (&read[..8192], &read[8192..]),
                (&[0; 8192][..], &data[8192..12288])
            );
            let status = client.call(BLOCK_STATUS, 0, 0, 1 << 20, &[]).await;
            if style == Style::Simple {
                assert_eq!(status.error, EINVAL);
            } else {
                assert_eq!(status.status.iter().map(|(len, _)| len).sum::<u64>(), 1 << 20);
            }
            client.request(DISCONNECT, 0, 0, 0, 0).await;
            assert!(client.is_closed().await);
        });
    }
}

#[test]
fn the_largest_transfers_go_in_pieces() {
    for (seed, style) in STYLES.into_iter().enumerate() {
        run(20 + seed as u64, move |address| async move {
            let mut client = Client::open(&address, "disk", style).await;
            let data = pattern(32 << 20, 2);
            assert_eq!(client.call(WRITE, 0, 8 << 20, 32 << 20, &data).await.error, 0);
            assert!(client.call(READ, 0, 8 << 20, 32 << 20, &[]).await.data == data);
        });
    }
}

/// A simple reply has no place for anything else between its pieces.
#[test]
fn large_simple_reads_are_not_mixed_up() {
    for (seed, export) in [(25, "disk"), (26, "drive"), (27, "drive")] {
        run(seed, move |address| async move {
            let mut client = Client::open(&address, export, Style::Simple).await;
            let data = pattern(12 << 20, 3);
            assert_eq!(client.call(WRITE, 0, 0, 12 << 20, &data).await.error, 0);
            let reads: Vec<(u64, u64)> = (0..8)
                .map(|number: u64| {
                    let length = if number.is_multiple_of(2) { 3 << 20 } else { 8192 };
                    (number << 20, length)
                })
                .collect();
            for (cookie, (offset, length)) in (0..).zip(&reads) {
                client.request(READ, 0, cookie, *offset, *length).await;
            }
            for _ in &reads {
                let answer = client.simple_read(&reads).await;
                let (offset, length) = reads[answer.cookie as usize];
                assert!(answer.data == data[offset as usize..(offset + length) as usize]);
            }
        });
    }
}

#[test]
fn many_requests_at_once_are_all_answered() {
    run(30, |address| async move {
        let mut client = Client::open(&address, "small", Style::Structured).await;
        for cookie in 0..600 {
            client.request(WRITE, 0, cookie, cookie * 512, 512).await;
            client.send(&[cookie as u8; 512]).await;
        }
        let mut seen = Vec::new();
        for _ in 0..600 {
            let answer = client.answer(WRITE, 0, 512).await;
            assert_eq!(answer.error, 0);
            seen.push(answer.cookie);
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..600));
        let all = client.call(READ, 0, 0, 600 * 512, &[]).await.data;
        assert!(
            all.chunks(512)
                .enumerate()
                .all(|(index, sector)| sector == [index as u8; 512])
        );
    });
}

#[test]
fn refused_requests_leave_the_connection_usable() {
    for (seed, style) in STYLES.into_iter().enumerate() {
        run(40 + seed as u64, move |address| async move {
            let mut client = Client::open(&address, "disk", style).await;
            let block = [7; 4096];
            // Kind, flags, offset, length, data and the error.
            type Case<'a> = (u16, u16, u64, u64, &'a [u8], u32);
            let cases: [Case<'_>; 9] = [
                (WRITE, 0, DISK_BYTES, 4096, &block, ENOSPC),
                (WRITE, 0, u64::MAX - 4095, 4096, &block, ENOSPC),
                (WRITE, 0, 1, 4096, &block, EINVAL),
                (READ, 0, DISK_BYTES - 4096, 8192, &[], EINVAL),
                (READ, 0, 0, 100, &[], EINVAL),
                (READ, 0, 0, (32 << 20) + 4096, &[], EOVERFLOW),
                (WRITE_ZEROES, 0, DISK_BYTES, 4096, &[], ENOSPC),
                (WRITE_ZEROES, 1 << 4, 0, 4096, &[], ENOTSUP),
                (99, 0, 0, 0, &[], EINVAL),
            ];
            for (kind, flags, offset, length, data, error) in cases {
                let answer = client.call(kind, flags, offset, length, data).await;
                assert_eq!(answer.error, error, "kind {kind} offset {offset} length {length}");
                assert_eq!(client.call(READ, 0, 0, 4096, &[]).await.data, [0; 4096]);
            }
        });
    }
}

#[test]
fn options_are_answered_one_by_one() {
    run(50, |address| async move {
        let mut client = Client::greet(&address, 3).await;
        let list = client.option(3, &[]).await;
        assert_eq!(list.len(), 4);
        assert_eq!((list[0].0, &list[0].1[4..8]), (2, &b"disk"[..]));
        assert_eq!(client.option(3, &[1]).await[0].0, INVALID);
        assert_eq!(client.option(5, &[]).await[0].0, UNSUPPORTED);
        assert_eq!(client.option(12345, &[1, 2, 3]).await[0].0, UNSUPPORTED);
        assert_eq!(client.option(6, &go("nothing")).await[0].0, UNKNOWN);
        assert_eq!(client.option(6, &go("")).await[0].0, UNKNOWN);
        assert_eq!(client.option(7, &[0, 0]).await[0].0, INVALID);
        assert_eq!(client.option(7, &[0xff; 6]).await[0].0, INVALID);
        assert_eq!(client.option(6, &vec![0; 100_000]).await[0].0, TOO_BIG);
        // Contexts need structured replies.
        let mut contexts = string("disk");
        contexts.extend_from_slice(&0u32.to_be_bytes());
        assert_eq!(client.option(9, &contexts).await[0].0, INVALID);
        assert_eq!(client.option(8, &[]).await, [(1, vec![])]);
        let listed = client.option(9, &contexts).await;
        assert_eq!(
            (listed.len(), listed[0].0, &listed[0].1[4..]),
            (2, 4, &b"base:allocation"[..])
        );
        let information = client.option(6, &go("small")).await;
        let sizes = information.iter().find(|(_, data)| data[..2] == [0, 3]).unwrap();
        assert_eq!(sizes.1[2..6], 512u32.to_be_bytes());
        assert_eq!(client.option(2, &[]).await, [(1, vec![])]);
        assert!(client.is_closed().await);
    });
}

#[test]
fn a_context_of_another_export_does_not_count() {
    run(51, |address| async move {
        let mut client = Client::greet(&address, 3).await;
        client.option(8, &[]).await;
        client.style = Style::Structured;
        let mut contexts = string("small");
        contexts.extend_from_slice(&1u32.to_be_bytes());
        contexts.extend(string("base:allocation"));
        assert_eq!(client.option(10, &contexts).await.len(), 2);
        client.option(7, &go("disk")).await;
        assert_eq!(client.call(BLOCK_STATUS, 0, 0, 4096, &[]).await.error, EINVAL);
    });
}

#[test]
fn old_clients_choose_by_name() {
    for (seed, flags) in [(52, 1u32), (53, 3)] {
        run(seed, move |address| async move {
            let mut client = Client::greet(&address, flags).await;
            let mut option = b"IHAVEOPT".to_vec();
            option.extend_from_slice(&1u32.to_be_bytes());
            option.extend_from_slice(&4u32.to_be_bytes());
            option.extend_from_slice(b"disk");
            client.send(&option).await;
            let answer = client.take(if flags & 2 == 0 { 134 } else { 10 }).await;
            assert_eq!(answer[..8], DISK_BYTES.to_be_bytes());
            assert_eq!(client.call(READ, 0, 0, 4096, &[]).await.data, [0; 4096]);
        });
    }
}

#[test]
fn what_is_not_the_protocol_ends_the_connection() {
    run(60, |address| async move {
        for flags in [0u32, 2, 4, u32::MAX] {
            assert!(Client::greet(&address, flags).await.is_closed().await);
        }
        let mut client = Client::greet(&address, 3).await;
        client.send(&[0; 16]).await;
        assert!(client.is_closed().await);
        let mut client = Client::open(&address, "disk", Style::Simple).await;
        client.send(&[0; 28]).await;
        assert!(client.is_closed().await);
        let mut client = Client::greet(&address, 3).await;
        let begun = pollux_reactor::now();
        assert!(client.is_closed().await, "a silent client");
        assert!(pollux_reactor::now() - begun >= std::time::Duration::from_secs(9));
    });
}

#[test]
fn a_disconnect_waits_for_what_is_under_way() {
    run(61, |address| async move {
        let mut client = Client::open(&address, "disk", Style::Simple).await;
        for cookie in 0..50 {
            client.request(READ, 0, cookie, cookie * 4096, 4096).await;
        }
        client.request(DISCONNECT, 0, 0, 0, 0).await;
        for _ in 0..50 {
            assert_eq!(client.answer(READ, 0, 4096).await.error, 0);
        }
        assert!(client.is_closed().await);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_end_in_a_reply_or_a_closed_connection(
        seed in any::<u64>(),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        phase in 0u8..4,
    ) {
        run(seed, move |address| async move {
            let mut client = match phase {
                0 => Client {
                    stream: pollux_reactor::net::connect(&address).await.unwrap(),
                    style: Style::Simple,
                },
                1 => Client::greet(&address, 3).await,
                2 => Client::open(&address, "disk", Style::Simple).await,
                _ => Client::open(&address, "disk", Style::Extended).await,
            };
            // A valid start gets random bytes further in.
            let mut sent = match phase {
                1 => b"IHAVEOPT".to_vec(),
                2 => vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0],
                3 => vec![0x21, 0xe4, 0x1c, 0x71, 0, 0, 0],
                _ => Vec::new(),
            };
            sent.extend_from_slice(&bytes);
            let _ = pollux_reactor::net::send_all(&mut *client.stream, &sent).await;
            let _ = client.stream.shutdown();
            while !client.is_closed().await {}
        });
    }

    #[test]
    fn a_random_history_agrees_with_memory(
        seed in any::<u64>(),
        style in 0usize..3,
        operations in prop::collection::vec((0u8..5, 0u64..500, 1u64..300), 1..60),
    ) {
        run(seed, move |address| async move {
            let mut client = Client::open(&address, "small", STYLES[style]).await;
            let mut model = vec![0u8; 512 * 800];
            for (number, (operation, sector, sectors)) in operations.into_iter().enumerate() {
                let (offset, length) = (sector * 512, sectors * 512);
                let range = offset as usize..(offset + length) as usize;
                match operation {
                    0 | 1 => {
                        let data = pattern(length, number as u64);
                        let flags = u16::from(operation);
                        assert_eq!(client.call(WRITE, flags, offset, length, &data).await.error, 0);
                        model[range].copy_from_slice(&data);
                    }
                    2 | 3 => {
                        let kind = if operation == 2 { TRIM } else { WRITE_ZEROES };
                        assert_eq!(client.call(kind, 0, offset, length, &[]).await.error, 0);
                        model[range].fill(0);
                    }
                    _ => assert!(client.call(READ, 0, offset, length, &[]).await.data == model[range]),
                }
            }
            assert!(client.call(READ, 0, 0, 512 * 800, &[]).await.data == model);
        });
    }
}
