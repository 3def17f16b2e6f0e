//! What a well-behaved target and the host say to each other.

use super::*;
use crate::wire::command::DataPointer;

fn success(id: CommandId) -> CompletionEntry {
    CompletionEntry::new(id.to_wire(), Status::SUCCESS, 0)
}

#[test]
fn a_read_with_success_in_the_data_needs_no_response() {
    for agreed in [PLAIN, DIGESTS] {
        for (piece_bytes, direct) in [(usize::MAX, false), (1, false), (1, true), (7, true), (100, true)] {
            let mut host = Host::new(agreed);
            let id = host.read(4096);
            let said = parse(&host.sent(), agreed);
            let [Said::Command { entry, data }] = &said[..] else {
                panic!("{said:?}")
            };
            assert!(data.is_empty());
            assert_eq!(entry.command_id.get(), id.to_wire());
            assert_eq!(
                entry.data_pointer.data_pointer(),
                Some(DataPointer::Transport { length_bytes: 4096 })
            );
            let content = pattern(1, 4096);
            let bytes = host.data(id, 0, &content, DataEnd::LastAndSuccess);
            host.hear_in_pieces(&bytes, piece_bytes, direct).unwrap();
            let finished = host.finished(id).unwrap();
            assert_eq!(finished.outcome, Ok(success(id)));
            assert_eq!(&finished.transfer.into_buffer()[..], &content[..]);
        }
    }
}

#[test]
fn a_read_in_several_pdus_of_which_others_come_between() {
    let mut host = Host::new(DIGESTS);
    let (first, second) = (host.read(5000), host.read(3000));
    host.sent();
    let (one, two) = (pattern(1, 5000), pattern(2, 3000));
    let mut bytes = host.data(first, 0, &one[..1000], DataEnd::More);
    bytes.extend(host.data(second, 0, &two[..2000], DataEnd::More));
    bytes.extend(host.data(first, 1000, &one[1000..], DataEnd::Last));
    bytes.extend(host.data(second, 2000, &two[2000..], DataEnd::LastAndSuccess));
    host.hear_in_pieces(&bytes, 333, true).unwrap();
    assert!(host.finished(first).is_none());
    assert_eq!(
        &host.finished(second).unwrap().transfer.into_buffer()[..],
        &two[..]
    );
    let response = host.response(first, Status::SUCCESS);
    host.hear(&response).unwrap();
    assert_eq!(
        &host.finished(first).unwrap().transfer.into_buffer()[..],
        &one[..]
    );
}

#[test]
fn a_failed_read_needs_no_data() {
    let mut host = Host::new(PLAIN);
    let id = host.read(4096);
    host.sent();
    let response = host.response(id, Status::UNRECOVERED_READ_ERROR);
    host.hear(&response).unwrap();
    let outcome = host.finished(id).unwrap().outcome.unwrap();
    assert_eq!(outcome.status(), Status::UNRECOVERED_READ_ERROR);
}

#[test]
fn a_small_write_goes_in_its_capsule() {
    for agreed in [PLAIN, DIGESTS] {
        let mut host = Host::new(agreed);
        let content = pattern(3, 8192);
        let mut gather = Gather::new();
        gather.push(Slice::copy_from(&content[..100]));
        gather.push(Slice::copy_from(&content[100..5000]));
        gather.push(Slice::copy_from(&content[5000..]));
        let id = host.submit(IoOpcode::Write, Transfer::Send(gather));
        let said = parse(&host.sent(), agreed);
        let [Said::Command { entry, data }] = &said[..] else {
            panic!("{said:?}")
        };
        assert_eq!(data, &content);
        assert_eq!(
            entry.data_pointer.data_pointer(),
            Some(DataPointer::InCapsule {
                offset: 0,
                length_bytes: 8192
            })
        );
        let response = host.response(id, Status::SUCCESS);
        host.hear(&response).unwrap();
        assert_eq!(host.finished(id).unwrap().outcome, Ok(success(id)));
    }
}

#[test]
fn a_large_write_goes_as_it_is_asked_for() {
    for agreed in [PLAIN, DIGESTS] {
        let agreed = Agreed {
            host_data_bytes_max: 10_000,
            ..agreed
        };
        let mut host = Host::new(agreed);
        let content = pattern(4, 50_000);
        let id = host.write(&content);
        let said = parse(&host.sent(), agreed);
        assert!(matches!(&said[..], [Said::Command { data, .. }] if data.is_empty()));
        // Two R2Ts at once, a third later.
        let mut bytes = host.ready(id, 7, 0, 20_000);
        bytes.extend(host.ready(id, 9, 20_000, 5_000));
        host.hear(&bytes).unwrap();
        let mut said = parse(&host.sent(), agreed);
        let third = host.ready(id, 8, 25_000, 25_000);
        host.hear(&third).unwrap();
        said.extend(parse(&host.sent(), agreed));
        let expected = [
            (7, 0, 10_000, false),
            (7, 10_000, 20_000, true),
            (9, 20_000, 25_000, true),
            (8, 25_000, 35_000, false),
            (8, 35_000, 45_000, false),
            (8, 45_000, 50_000, true),
        ]
        .map(|(tag, start, end, last)| Said::Data {
            command_id: id.to_wire(),
            tag,
            offset: start as u32,
            last,
            data: content[start..end].to_vec(),
        });
        assert_eq!(said, expected);
        let response = host.response(id, Status::SUCCESS);
        host.hear(&response).unwrap();
        assert_eq!(host.finished(id).unwrap().outcome, Ok(success(id)));
    }
}

#[test]
fn a_write_that_failed_early_sends_no_more_data() {
    let mut host = Host::new(PLAIN);
    let id = host.write(&pattern(1, 100_000));
    host.sent();
    let mut bytes = host.ready(id, 1, 0, 100_000);
    bytes.extend(host.response(id, Status::WRITE_FAULT));
    host.hear(&bytes).unwrap();
    assert!(host.sent().is_empty());
    assert_eq!(
        host.finished(id).unwrap().outcome.unwrap().status(),
        Status::WRITE_FAULT
    );
}

#[test]
fn one_send_carries_everything_submitted_before_it() {
    let mut host = Host::new(Agreed { depth: 64, ..PLAIN });
    for _ in 0..32 {
        host.read(4096);
        host.write(&pattern(0, 512));
    }
    assert_eq!(parse(&host.sent(), PLAIN).len(), 64);
    let entry = SubmissionEntry::new(0, 0, 1);
    let refused = host
        .protocol
        .submit(&entry, Transfer::None, Instant::ORIGIN)
        .unwrap_err();
    assert_eq!(refused.reason, super::super::RefusedReason::Full);
}

#[test]
fn more_than_the_output_holds_waits_in_order() {
    let depth = 1000;
    let mut host = Host::new(Agreed { depth, ..DIGESTS });
    let ids: Vec<_> = (0..depth).map(|_| host.flush().to_wire()).collect();
    assert!(host.protocol.output.is_full());
    let said: Vec<_> = parse(&host.sent(), DIGESTS)
        .into_iter()
        .map(|said| match said {
            Said::Command { entry, .. } => entry.command_id.get(),
            Said::Data { .. } => panic!("no data"),
        })
        .collect();
    assert_eq!(said, ids);
}

#[test]
fn damaged_data_fails_its_command_only() {
    for end in [DataEnd::LastAndSuccess, DataEnd::Last] {
        let mut host = Host::new(DIGESTS);
        let (bad, good) = (host.read(512), host.read(512));
        host.sent();
        let mut bytes = host.data(bad, 0, &pattern(1, 512), end);
        bytes[200] ^= 1;
        if end == DataEnd::Last {
            bytes.extend(host.response(bad, Status::SUCCESS));
        }
        bytes.extend(host.data(good, 0, &pattern(2, 512), DataEnd::LastAndSuccess));
        host.hear(&bytes).unwrap();
        assert_eq!(host.finished(bad).unwrap().outcome, Err(CommandError::DataDigest));
        assert_eq!(host.finished(good).unwrap().outcome, Ok(success(good)));
    }
}

#[test]
fn an_abandoned_read_takes_its_data_along() {
    let mut host = Host::new(Agreed { depth: 1, ..PLAIN });
    let old = host.read(512);
    host.sent();
    host.protocol.slots.abandon(old);
    assert_eq!(host.protocol.slots.free(), 0);
    let bytes = host.data(old, 0, &pattern(1, 512), DataEnd::LastAndSuccess);
    host.hear(&bytes).unwrap();
    // The slot is free again, and what comes late for the old command finds no new one.
    let new = host.read(512);
    host.sent();
    assert!(matches!(
        host.hear(&bytes),
        Err(ConnectionError::UnknownCommand { .. })
    ));
    host.protocol.end();
    let buffer = host.finished(new).unwrap().transfer.into_buffer();
    assert!(buffer.iter().all(|&byte| byte == UNTOUCHED));
}

#[test]
fn the_end_tells_what_was_sent() {
    let mut host = Host::new(PLAIN);
    let (read, sent) = (host.read(512), host.flush());
    host.sent();
    let unsent = host.write(&pattern(0, 512));
    assert!(
        !host.protocol.end(),
        "the write was never sent, a read changes nothing"
    );
    for (id, sent) in [(read, true), (sent, true), (unsent, false)] {
        assert_eq!(
            host.finished(id).unwrap().outcome,
            Err(CommandError::ConnectionLost { sent })
        );
    }
    let mut host = Host::new(PLAIN);
    let write = host.write(&pattern(0, 512));
    host.sent();
    host.protocol.slots.abandon(write);
    assert!(
        host.protocol.end(),
        "nobody waits for the write, the target may execute it still"
    );
}
