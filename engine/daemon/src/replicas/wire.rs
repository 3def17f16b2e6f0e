//! Commands to replicas and their answers as they travel.

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::command_request::Command;
use pollux_api::engine::v1::command_response::Outcome;
use pollux_api::engine::v1::open_snapshot_response::Outcome as Opened;
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{CommandError, ReplicaAnswer, ReplicaCommand};
use uuid::Uuid;

/// Names of snapshots in an answer that are looked at.
const SNAPSHOTS_MAX: usize = 4096;

/// Bad blocks in an answer that are looked at.
const BAD_BLOCKS_MAX: usize = 4096;

pub(super) fn command(command: ReplicaCommand) -> Command {
    match command {
        ReplicaCommand::CutSnapshot { cut } => Command::CutSnapshot(cut.to_string()),
        ReplicaCommand::DeleteSnapshot { cut } => Command::DeleteSnapshot(cut.to_string()),
        ReplicaCommand::ListSnapshots => Command::ListSnapshots(api::ListSnapshots {}),
        ReplicaCommand::ListBadBlocks => Command::ListBadBlocks(api::ListBadBlocks {}),
        ReplicaCommand::Grow { data_blocks } => Command::GrowDataBlocks(data_blocks),
    }
}

/// A command that was received; `None` for one that makes no sense.
pub(crate) fn read_command(command: &Command) -> Option<ReplicaCommand> {
    let uuid = |text: &str| text.parse::<Uuid>().ok().filter(|uuid| !uuid.is_nil());
    Some(match command {
        Command::CutSnapshot(cut) => ReplicaCommand::CutSnapshot { cut: uuid(cut)? },
        Command::DeleteSnapshot(cut) => ReplicaCommand::DeleteSnapshot { cut: uuid(cut)? },
        Command::ListSnapshots(api::ListSnapshots {}) => ReplicaCommand::ListSnapshots,
        Command::ListBadBlocks(api::ListBadBlocks {}) => ReplicaCommand::ListBadBlocks,
        Command::GrowDataBlocks(data_blocks) => ReplicaCommand::Grow {
            data_blocks: *data_blocks,
        },
    })
}

/// What is answered to a command.
pub(crate) fn told(result: Result<ReplicaAnswer, CommandError>) -> api::CommandResponse {
    let outcome = match result {
        Ok(ReplicaAnswer::Done) => Outcome::Done(api::CommandDone::default()),
        Ok(ReplicaAnswer::Snapshots(all)) => Outcome::Done(api::CommandDone {
            snapshots: all.iter().map(Uuid::to_string).collect(),
            ..api::CommandDone::default()
        }),
        Ok(ReplicaAnswer::BadBlocks(bad_blocks)) => Outcome::Done(api::CommandDone {
            bad_blocks,
            ..api::CommandDone::default()
        }),
        Err(error) => Outcome::Failed(failed(&error)),
    };
    api::CommandResponse {
        outcome: Some(outcome),
    }
}

/// Why a command was not done, as it travels.
pub(crate) fn failed(error: &CommandError) -> api::CommandFailed {
    use api::CommandProblem as Problem;
    let problem = match error {
        CommandError::Superseded(_) => Problem::Superseded,
        CommandError::NoSession => Problem::NoSession,
        CommandError::Unsupported => Problem::Unsupported,
        CommandError::NoSnapshot(_) => Problem::NoSnapshot,
        CommandError::NoSpace => Problem::NoSpace,
        CommandError::Unreachable | CommandError::Io(_) | CommandError::Area(_) | CommandError::Failed(_) => {
            Problem::Failed
        }
    };
    api::CommandFailed {
        problem: problem.into(),
        message: error.to_string(),
        promised_epoch: match error {
            CommandError::Superseded(by) => by.0,
            _ => 0,
        },
    }
}

fn error(failed: api::CommandFailed, cut: Uuid) -> CommandError {
    use api::CommandProblem as Problem;
    match failed.problem() {
        Problem::Superseded => CommandError::Superseded(Epoch(failed.promised_epoch)),
        Problem::NoSession => CommandError::NoSession,
        Problem::Unsupported => CommandError::Unsupported,
        Problem::NoSnapshot => CommandError::NoSnapshot(cut),
        Problem::NoSpace => CommandError::NoSpace,
        Problem::Failed | Problem::Unspecified => CommandError::Failed(failed.message),
    }
}

/// What the host of a replica said to a command.
pub(super) fn answer(
    asked: ReplicaCommand,
    answer: api::CommandResponse,
) -> Result<ReplicaAnswer, CommandError> {
    let nonsense = || CommandError::Failed("the answer of the replica makes no sense".to_owned());
    match answer.outcome.ok_or_else(nonsense)? {
        Outcome::Failed(failed) => Err(error(failed, cut_of(asked))),
        Outcome::Done(done) if asked == ReplicaCommand::ListSnapshots => {
            let names = done.snapshots.iter().take(SNAPSHOTS_MAX);
            let names = names.map(|name| name.parse().map_err(|_| nonsense()));
            Ok(ReplicaAnswer::Snapshots(names.collect::<Result<_, _>>()?))
        }
        Outcome::Done(mut done) if asked == ReplicaCommand::ListBadBlocks => {
            done.bad_blocks.truncate(BAD_BLOCKS_MAX);
            Ok(ReplicaAnswer::BadBlocks(done.bad_blocks))
        }
        Outcome::Done(_) => Ok(ReplicaAnswer::Done),
    }
}

fn cut_of(command: ReplicaCommand) -> Uuid {
    match command {
        ReplicaCommand::CutSnapshot { cut } | ReplicaCommand::DeleteSnapshot { cut } => cut,
        ReplicaCommand::ListSnapshots | ReplicaCommand::ListBadBlocks | ReplicaCommand::Grow { .. } => {
            Uuid::nil()
        }
    }
}

/// Where a snapshot is served.
pub(super) fn opened(
    answer: api::OpenSnapshotResponse,
    cut: Uuid,
) -> Result<api::SnapshotOpened, CommandError> {
    match answer.outcome {
        Some(Opened::Opened(opened)) => Ok(opened),
        Some(Opened::Failed(failed)) => Err(error(failed, cut)),
        None => Err(CommandError::Failed(
            "the answer of the replica is empty".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_what_becomes_of_them_survive_the_wire() {
        let cut = Uuid::from_u128(7);
        for asked in [
            ReplicaCommand::CutSnapshot { cut },
            ReplicaCommand::DeleteSnapshot { cut },
            ReplicaCommand::ListSnapshots,
            ReplicaCommand::ListBadBlocks,
            ReplicaCommand::Grow { data_blocks: 9 },
        ] {
            assert_eq!(read_command(&command(asked)), Some(asked));
            let done = match asked {
                ReplicaCommand::ListSnapshots => ReplicaAnswer::Snapshots(vec![cut]),
                ReplicaCommand::ListBadBlocks => ReplicaAnswer::BadBlocks(vec![7, 1 << 40]),
                _ => ReplicaAnswer::Done,
            };
            assert_eq!(answer(asked, told(Ok(done.clone()))), Ok(done));
        }
        let asked = ReplicaCommand::DeleteSnapshot { cut };
        for error in [
            CommandError::Superseded(Epoch(3)),
            CommandError::NoSession,
            CommandError::Unsupported,
            CommandError::NoSnapshot(cut),
            CommandError::NoSpace,
            CommandError::Failed("why".to_owned()),
        ] {
            assert_eq!(answer(asked, told(Err(error.clone()))), Err(error));
        }
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        assert_eq!(read_command(&Command::CutSnapshot("x".to_owned())), None);
        assert_eq!(
            read_command(&Command::DeleteSnapshot(Uuid::nil().to_string())),
            None
        );
        let empty = api::CommandResponse { outcome: None };
        assert!(matches!(
            answer(ReplicaCommand::ListSnapshots, empty),
            Err(CommandError::Failed(_))
        ));
        let names = api::CommandDone {
            snapshots: vec!["x".to_owned()],
            ..api::CommandDone::default()
        };
        let wrong = api::CommandResponse {
            outcome: Some(Outcome::Done(names)),
        };
        assert!(matches!(
            answer(ReplicaCommand::ListSnapshots, wrong),
            Err(CommandError::Failed(_))
        ));
        let empty = api::OpenSnapshotResponse { outcome: None };
        assert!(opened(empty, Uuid::from_u128(1)).is_err());
    }
}
