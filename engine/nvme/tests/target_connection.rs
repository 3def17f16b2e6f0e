//! The connection of the target, byte by byte, over the simulated network: what it answers, and how it ends.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod support;

use pollux_nvme::wire::command::{CompletionEntry, Fuse, SglDescriptor, SubmissionEntry};
use pollux_nvme::wire::pdu::{DataAlignment, Digests, FatalErrorStatus};
use pollux_nvme::wire::status::Status;
use proptest::prelude::*;
use support::{COMPARE, Host, Pdu, Setup, WRITE, read, write_in_capsule, write_transport};

const NONE: Digests = Digests::empty();

fn all_digests() -> [Digests; 4] {
    [NONE, Digests::HEADER, Digests::DATA, Digests::all()]
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|index| {
            (index as u8)
                .wrapping_mul(31)
                .wrapping_add((index >> 8) as u8 ^ seed)
        })
        .collect()
}

#[test]
fn data_comes_back_with_every_digest_and_any_segmentation() {
    for (seed, digests) in all_digests().into_iter().cycle().take(24).enumerate() {
        Setup::new(seed as u64).run(move |address| async move {
            let mut host = Host::connect(&address, digests).await;
            let small = pattern(4096, 1);
            host.command(write_in_capsule(1, 0, 4096), &small).await;
            assert_eq!(host.response().await.status(), Status::SUCCESS);
            let large = pattern(1 << 20, 2);
            host.write_by_transfer(write_transport(2, 16, 1 << 20), &large, 100_000)
                .await;
            assert_eq!(host.response().await.status(), Status::SUCCESS);
            host.command(read(3, 0, 4096), &[]).await;
            assert_eq!(host.data(3, 4096).await, small);
            host.command(read(4, 16, 1 << 20), &[]).await;
            assert_eq!(host.data(4, 1 << 20).await, large);
        });
    }
}

#[test]
fn many_commands_at_once_are_all_answered() {
    Setup::new(1).run(|address| async move {
        let mut host = Host::connect(&address, NONE).await;
        let block = pattern(4096, 7);
        for round in 0..10u16 {
            for number in 0..support::DEPTH {
                host.command(write_in_capsule(number, u64::from(round), 4096), &block)
                    .await;
            }
            let mut seen: Vec<u16> = Vec::new();
            for _ in 0..support::DEPTH {
                let response = host.response().await;
                assert_eq!(response.status(), Status::SUCCESS);
                seen.push(response.command_id.get());
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..support::DEPTH));
        }
    });
}

#[test]
fn data_is_aligned_as_the_host_asks() {
    Setup::new(2).run(|address| async move {
        for alignment in [0u8, 1, 3, 15, 31] {
            let alignment = DataAlignment::from_wire(alignment).unwrap();
            let mut host = Host::connect_with(&address, Digests::all(), alignment, true).await;
            host.command(read(9, 0, 512), &[]).await;
            let Pdu {
                data_offset, data, ..
            } = host.next().await.unwrap();
            assert!(data_offset.is_multiple_of(alignment.bytes()));
            assert_eq!(data, vec![0; 512]);
        }
    });
}

#[test]
fn with_flow_control_a_read_ends_with_a_response() {
    Setup::new(3).run(|address| async move {
        let mut host = Host::connect_with(&address, NONE, DataAlignment::NONE, false).await;
        for number in 1..=5u16 {
            host.command(read(number, 0, 512), &[]).await;
            let data = host.next().await.unwrap();
            assert!(!data.success && data.last);
            let response = host.response().await;
            assert_eq!(
                response.submission_queue_head.get(),
                (number + 1) % support::DEPTH
            );
        }
    });
}

#[test]
fn a_data_digest_error_fails_the_command_and_not_the_connection() {
    Setup::new(4).run(|address| async move {
        let mut host = Host::connect(&address, Digests::DATA).await;
        host.corrupt_next_data_digest();
        host.command(write_in_capsule(1, 0, 4096), &pattern(4096, 3))
            .await;
        assert_eq!(
            host.response().await.status().without_flags(),
            Status::TRANSIENT_TRANSPORT_ERROR
        );
        host.corrupt_next_data_digest();
        host.write_by_transfer(write_transport(2, 0, 65536), &pattern(65536, 3), 16384)
            .await;
        assert_eq!(
            host.response().await.status().without_flags(),
            Status::TRANSIENT_TRANSPORT_ERROR
        );
        host.command(read(3, 0, 4096), &[]).await;
        assert_eq!(host.data(3, 4096).await, vec![0; 4096]);
    });
}

#[test]
fn fused_commands_reach_the_queue_in_order_of_arrival() {
    Setup::new(5).run(|address| async move {
        let mut host = Host::connect(&address, NONE).await;
        let first = write_transport(1, 0, 8192).with_fuse(Fuse::First);
        host.command(first, &[]).await;
        let transfer = host.next().await.unwrap();
        host.command(
            write_in_capsule(2, 0, 4096).with_fuse(Fuse::Second),
            &pattern(4096, 9),
        )
        .await;
        // A plain command may overtake the pair.
        host.command(read(3, 0, 512), &[]).await;
        assert_eq!(host.data(3, 512).await, vec![0; 512]);
        host.send_data(1, transfer.transfer_tag, 0, &pattern(8192, 1), true)
            .await;
        assert_eq!(host.response().await.command_id.get(), 1);
        assert_eq!(host.response().await.command_id.get(), 2);
        host.command(read(4, 0, 4096), &[]).await;
        assert_eq!(host.data(4, 4096).await, pattern(4096, 9));
    });
}

#[test]
fn a_pair_ends_when_the_data_of_its_second_half_was_damaged() {
    Setup::new(5).run_with_target(|address| async move {
        let [_admin, mut host] = Host::connect_controller(&address, Digests::DATA).await;
        let compare = SubmissionEntry::new(COMPARE, 1, 1)
            .with_data(SglDescriptor::in_capsule(512))
            .with_fuse(Fuse::First);
        let write = |id| write_in_capsule(id, 0, 512).with_fuse(Fuse::Second);
        host.command(compare, &[0; 512]).await;
        host.corrupt_next_data_digest();
        host.command(write(2), &[7; 512]).await;
        let answers = [host.response().await, host.response().await];
        assert!(answers.iter().all(|answer| !answer.status().is_success()));
        let mut ids = answers.map(|answer| answer.command_id.get());
        ids.sort_unstable();
        assert_eq!(ids, [1, 2]);

        // What is damaged in front of a second half ends the pair as well, whatever it was.
        host.command(compare, &[0; 512]).await;
        host.corrupt_next_data_digest();
        host.command(write_in_capsule(3, 8, 512), &[7; 512]).await;
        host.command(write(2), &[7; 512]).await;
        for _ in 0..3 {
            assert!(!host.response().await.status().is_success());
        }
        host.command(read(4, 0, 512), &[]).await;
        assert_eq!(host.data(4, 512).await, vec![0; 512]);
    });
}

#[test]
fn bad_descriptors_get_the_status_of_the_specification() {
    Setup::new(6).run(|address| async move {
        let mut host = Host::connect(&address, NONE).await;
        let in_capsule = |offset: u64, length: u32| {
            let mut pointer = SglDescriptor::in_capsule(length);
            pointer.address = offset.into();
            SubmissionEntry::new(WRITE, 1, 1).with_data(pointer)
        };
        let mut unknown = SglDescriptor::transport(4096);
        unknown.identifier = 0x23;
        let mut prp = read(1, 0, 512);
        prp.flags = 0;
        let cases: [(SubmissionEntry, usize, Status); 6] = [
            (in_capsule(0, 4096), 512, Status::INVALID_SGL_OFFSET),
            (in_capsule(u64::MAX, 512), 512, Status::INVALID_SGL_OFFSET),
            (in_capsule(512, 512), 512, Status::INVALID_SGL_OFFSET),
            (
                SubmissionEntry::new(WRITE, 1, 1).with_data(unknown),
                0,
                Status::SGL_TYPE_INVALID,
            ),
            (
                read(1, 0, 0).with_data(SglDescriptor::in_capsule(512)),
                0,
                Status::SGL_TYPE_INVALID,
            ),
            (prp, 0, Status::INVALID_FIELD),
        ];
        for (entry, data_bytes, status) in cases {
            host.command(entry, &vec![0; data_bytes]).await;
            assert_eq!(
                host.response().await.status().without_flags(),
                status,
                "{entry:?}"
            );
        }
        host.command(read(2, 0, 512), &[]).await;
        host.data(2, 512).await;
    });
}

#[test]
fn too_large_a_write_is_refused_before_its_data() {
    Setup::new(7).run(|address| async move {
        let mut host = Host::connect(&address, NONE).await;
        host.command(write_transport(1, 0, !511), &[]).await;
        assert_eq!(
            host.response().await.status().without_flags(),
            Status::INVALID_FIELD
        );
    });
}

#[test]
fn one_command_too_many_ends_the_connection() {
    Setup::new(8).run(|address| async move {
        let mut host = Host::connect(&address, NONE).await;
        for number in 0..=support::DEPTH {
            host.command(write_transport(number, 0, 512), &[]).await;
        }
        while let Some(pdu) = host.next().await {
            assert!(pdu.terminate.is_none());
        }
    });
}

#[test]
fn a_command_before_connect_is_out_of_sequence() {
    Setup::new(9).run(|address| async move {
        let mut host = Host::initialize(&address, NONE, DataAlignment::NONE).await;
        host.command(read(5, 0, 512), &[]).await;
        let response = host.response().await;
        assert_eq!(response.status().without_flags(), Status::COMMAND_SEQUENCE_ERROR);
        assert_eq!(response.command_id.get(), 5);
        assert!(host.next().await.is_none());
    });
}

#[test]
fn a_silent_host_is_closed_on() {
    Setup::new(10).run(|address| async move {
        let begun = pollux_reactor::now();
        let mut host = Host::initialize(&address, NONE, DataAlignment::NONE).await;
        assert!(host.next().await.is_none());
        assert!(pollux_reactor::now() - begun >= std::time::Duration::from_secs(10));
    });
}

/// What a host does wrong once it is connected, and the termination request it earns: status and information.
fn violations() -> Vec<(&'static str, Vec<u8>, FatalErrorStatus, Option<u32>)> {
    use FatalErrorStatus::{InvalidHeaderField, LimitExceeded, SequenceError};
    let capsule = support::encode(&read(1, 0, 512), 0, NONE);
    let with = |at: usize, value: u8| {
        let mut bytes = capsule.clone();
        bytes[at] = value;
        bytes
    };
    let mut initialize = vec![0u8; 128];
    initialize[2] = 128;
    initialize[4] = 128;
    let mut oversized = support::encode(&write_in_capsule(1, 0, 65536), 65536, NONE);
    oversized.resize(72 + 65536, 0);
    vec![
        ("unknown type", with(0, 0x0b), InvalidHeaderField, Some(0)),
        ("response from a host", with(0, 0x05), InvalidHeaderField, Some(0)),
        (
            "ready to transfer from a host",
            with(0, 0x09),
            InvalidHeaderField,
            Some(0),
        ),
        ("header length", with(2, 71), InvalidHeaderField, Some(2)),
        ("flags", with(1, 0x80), InvalidHeaderField, Some(1)),
        (
            "length below the header",
            with(4, 71),
            InvalidHeaderField,
            Some(4),
        ),
        ("a second initialization", initialize, SequenceError, None),
        (
            "data that was not asked for",
            support::encode_data(1, 0, 0, 512, true),
            SequenceError,
            None,
        ),
        ("in-capsule data beyond the limit", oversized, LimitExceeded, None),
    ]
}

#[test]
fn every_violation_earns_its_termination_request() {
    for (seed, (name, bytes, status, information)) in violations().into_iter().enumerate() {
        Setup::new(100 + seed as u64).run(move |address| async move {
            let mut host = Host::connect(&address, NONE).await;
            host.send(&bytes).await;
            let pdu = host
                .next()
                .await
                .unwrap_or_else(|| panic!("{name}: closed without a word"));
            let (got, got_information, offender) = pdu.terminate.unwrap_or_else(|| panic!("{name}"));
            assert_eq!(got, Some(status), "{name}");
            if let Some(information) = information {
                assert_eq!(got_information, information, "{name}");
            }
            assert_eq!(offender, bytes[..offender.len()], "{name}");
            assert!(offender.len() >= 8, "{name}");
            assert!(host.next().await.is_none(), "{name}: goes on");
        });
    }
}

#[test]
fn data_for_a_transfer_must_be_what_was_asked_for() {
    use FatalErrorStatus::{DataOutOfRange, InvalidHeaderField, SequenceError};
    // Command, tag, offset, length, last: the transfer is command 1, 8192 bytes.
    type Case = (u16, Option<u16>, u32, u32, bool, FatalErrorStatus);
    let cases: [Case; 6] = [
        (2, None, 0, 4096, false, InvalidHeaderField),
        (1, Some(77), 0, 4096, false, SequenceError),
        (1, None, 4096, 4096, true, InvalidHeaderField),
        (1, None, 0, 16384, true, DataOutOfRange),
        (1, None, 0, 8192, false, DataOutOfRange),
        (1, None, 0, 4096, true, DataOutOfRange),
    ];
    for (seed, (command, tag, offset, length, last, status)) in cases.into_iter().enumerate() {
        Setup::new(200 + seed as u64).run(move |address| async move {
            let mut host = Host::connect(&address, NONE).await;
            host.command(write_transport(1, 0, 8192), &[]).await;
            let asked = host.next().await.unwrap();
            let tag = tag.unwrap_or(asked.transfer_tag);
            let mut bytes = support::encode_data(command, tag, offset, length, last);
            bytes.resize(bytes.len() + length as usize, 0);
            host.send(&bytes).await;
            let pdu = host.next().await.unwrap();
            assert_eq!(pdu.terminate.unwrap().0, Some(status), "case {seed}");
            assert!(host.next().await.is_none());
        });
    }
}

#[test]
fn a_header_digest_error_terminates() {
    Setup::new(300).run(|address| async move {
        let mut host = Host::connect(&address, Digests::HEADER).await;
        let mut bytes = support::encode(&read(1, 0, 512), 0, Digests::HEADER);
        bytes[20] ^= 1;
        host.send(&bytes).await;
        let (status, information, _) = host.next().await.unwrap().terminate.unwrap();
        assert_eq!(status, Some(FatalErrorStatus::HeaderDigestError));
        assert_eq!(information.to_le_bytes(), bytes[72..76]);
    });
}

#[test]
fn a_host_that_does_not_read_gets_no_more_than_its_share() {
    Setup::new(301).run(|address| async move {
        let mut host = Host::connect(&address, NONE).await;
        for number in 0..support::DEPTH {
            host.command(read(number, 0, 65536), &[]).await;
        }
        pollux_reactor::sleep(std::time::Duration::from_secs(30)).await;
        for _ in 0..support::DEPTH {
            let pdu = host.next().await.unwrap();
            assert_eq!(pdu.data.len(), 65536);
        }
    });
}

#[test]
fn other_connections_do_not_notice() {
    Setup::new(302).run(|address| async move {
        let mut good = Host::connect(&address, NONE).await;
        for (_, bytes, ..) in violations() {
            let mut bad = Host::connect(&address, NONE).await;
            bad.send(&bytes).await;
            while bad.next().await.is_some() {}
            good.command(read(1, 0, 512), &[]).await;
            good.data(1, 512).await;
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_end_in_silence_or_a_closed_connection(
        seed in any::<u64>(),
        established in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        type_hint in 0u8..12,
        digests in 0u8..4,
    ) {
        Setup::new(seed).run(move |address| async move {
            let digests = Digests::from_bits_truncate(digests);
            let mut host = if established {
                Host::connect(&address, digests).await
            } else {
                Host::initialize(&address, digests, DataAlignment::NONE).await
            };
            let mut bytes = bytes;
            // Most first bytes are no PDU type at all; help some of them further in.
            if let Some(first) = bytes.first_mut() && *first > 127 {
                *first = type_hint;
            }
            host.send_whatever(&bytes).await;
            while host.next().await.is_some() {}
        });
    }
}

#[test]
fn responses_name_their_command() {
    Setup::new(303).run(|address| async move {
        let mut host = Host::connect(&address, NONE).await;
        for id in [0u16, 1, 0x7fff, 0xffff] {
            host.command(write_in_capsule(id, 0, 512), &[0; 512]).await;
            let response: CompletionEntry = host.response().await;
            assert_eq!(response.command_id.get(), id);
        }
    });
}
