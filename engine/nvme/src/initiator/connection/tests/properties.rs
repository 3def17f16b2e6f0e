//! Any bytes at all, and any order of what the protocol allows.

use proptest::prelude::*;

use super::*;

/// What a target does next in a conversation that the protocol allows.
#[derive(Debug, Clone)]
enum Move {
    /// The host submits a read or write of so many blocks.
    Submit { write: bool, blocks: usize },
    /// The target goes on with one of the outstanding commands, by so much.
    Advance { which: usize, bytes: usize },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let submit = (any::<bool>(), 1usize..40).prop_map(|(write, blocks)| Move::Submit { write, blocks });
    let advance = (0usize..8, 1usize..6000).prop_map(|(which, bytes)| Move::Advance {
        which,
        bytes: bytes * 4,
    });
    prop::collection::vec(prop_oneof![1 => submit, 3 => advance], 1..120)
}

/// A command as the target sees it.
struct Command {
    id: CommandId,
    write: bool,
    content: Vec<u8>,
    /// Data sent to the host, or asked of it.
    moved: usize,
    /// Data received from the host.
    arrived: Vec<u8>,
}

fn agreements() -> impl Strategy<Value = Agreed> {
    (any::<bool>(), any::<bool>(), 0u32..3, 1u32..9, 1u16..9).prop_map(
        |(header_digest, data_digest, in_capsule, host_data, depth)| Agreed {
            header_digest,
            data_digest,
            in_capsule_bytes_max: in_capsule * 2048,
            host_data_bytes_max: host_data * 4096,
            depth,
        },
    )
}

proptest! {
    /// Against commands that are just arrays: whatever the order and the sizes of data PDUs, R2Ts and
    /// received pieces, every read returns what the target sent and the target receives what every write
    /// holds.
    #[test]
    fn every_byte_arrives_where_it_belongs(
        agreed in agreements(), moves in moves(), piece_bytes in 1usize..5000, direct: bool,
    ) {
        let mut host = Host::new(agreed);
        let mut commands: Vec<Command> = Vec::new();
        let mut seed = 0u8;
        // Enough moves to bring every command to its end.
        let finish = (0..2000).map(|which| Move::Advance { which, bytes: 100_000 });
        for next in moves.into_iter().chain(finish) {
            match next {
                Move::Submit { write, blocks } => {
                    if commands.len() == usize::from(agreed.depth) {
                        continue;
                    }
                    seed = seed.wrapping_add(1);
                    let content = pattern(seed, blocks * 512);
                    let id = if write { host.write(&content) } else { host.read(content.len()) };
                    commands.push(Command { id, write, content, moved: 0, arrived: Vec::new() });
                }
                Move::Advance { which, bytes } => {
                    for said in parse(&host.sent(), agreed) {
                        let (command_id, offset, data) = match said {
                            Said::Command { entry, data } => (entry.command_id.get(), 0, data),
                            Said::Data { command_id, offset, data, .. } => {
                                (command_id, offset as usize, data)
                            }
                        };
                        let command = commands
                            .iter_mut()
                            .find(|command| command.id.to_wire() == command_id)
                            .expect("of a command that is outstanding");
                        prop_assert_eq!(command.arrived.len(), offset);
                        if command.moved == 0 {
                            // In the capsule.
                            command.moved = data.len();
                        }
                        command.arrived.extend(data);
                    }
                    if commands.is_empty() {
                        continue;
                    }
                    let index = which % commands.len();
                    let command = &mut commands[index];
                    let start = command.moved;
                    let end = (start + bytes).min(command.content.len());
                    let over = if command.write {
                        command.arrived.len() == command.content.len()
                    } else {
                        end == command.content.len()
                    };
                    let mut bytes = Vec::new();
                    command.moved = end;
                    if !command.write {
                        let data_end = match (over, which % 2) {
                            (false, _) => DataEnd::More,
                            (true, 0) => DataEnd::Last,
                            (true, _) => DataEnd::LastAndSuccess,
                        };
                        let data = &command.content[start..end];
                        bytes.extend(host.data(command.id, start as u32, data, data_end));
                        if data_end == DataEnd::Last {
                            bytes.extend(host.response(command.id, Status::SUCCESS));
                        }
                    } else if over {
                        bytes.extend(host.response(command.id, Status::SUCCESS));
                    } else if start < end {
                        let length = (end - start) as u32;
                        bytes.extend(host.ready(command.id, which as u16, start as u32, length));
                    }
                    host.hear_in_pieces(&bytes, piece_bytes, direct).expect("nothing is wrong");
                    if over {
                        let command = commands.swap_remove(index);
                        let finished = host.finished(command.id).expect("it is over");
                        prop_assert!(finished.outcome.expect("nothing is wrong").status().is_success());
                        if command.write {
                            prop_assert_eq!(command.arrived, command.content);
                        } else {
                            let buffer = finished.transfer.into_buffer();
                            prop_assert_eq!(&buffer[..], &command.content[..]);
                        }
                    }
                }
            }
        }
        prop_assert!(commands.is_empty());
        prop_assert_eq!(host.protocol.slots.outstanding(), 0);
    }

    /// Any bytes end in an error or in nothing, and every command can be settled afterwards.
    #[test]
    fn any_bytes_are_survived(
        agreed in agreements(), bytes in prop::collection::vec(any::<u8>(), 0..600),
        piece_bytes in 1usize..600, direct: bool,
    ) {
        let mut host = Host::new(agreed);
        host.read(4096);
        let _ = host.hear_in_pieces(&bytes, piece_bytes, direct);
        host.protocol.end();
        prop_assert_eq!(host.protocol.slots.outstanding(), 0);
    }

    /// A conversation in which some bytes are wrong. Buffers of commands that were not named stay as they
    /// were.
    #[test]
    fn damaged_conversations_are_survived(
        agreed in agreements(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        piece_bytes in 1usize..3000, direct: bool, drop_front in 0usize..40,
    ) {
        let mut host = Host::new(Agreed { depth: 4, ..agreed });
        let (first, second) = (host.read(2048), host.write(&pattern(1, 8192)));
        host.sent();
        let mut bytes = host.ready(second, 1, 0, 4096);
        bytes.extend(host.data(first, 0, &pattern(2, 1024), DataEnd::More));
        bytes.extend(host.ready(second, 2, 4096, 4096));
        bytes.extend(host.data(first, 1024, &pattern(3, 1024), DataEnd::LastAndSuccess));
        bytes.extend(host.response(second, Status::WRITE_FAULT));
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let bytes = &bytes[drop_front * usize::from(drop_front < 24)..];
        let _ = host.hear_in_pieces(bytes, piece_bytes, direct);
        host.sent();
        host.protocol.end();
        prop_assert_eq!(host.protocol.slots.outstanding(), 0);
        for id in [first, second] {
            prop_assert!(host.finished(id).is_some());
        }
    }
}
