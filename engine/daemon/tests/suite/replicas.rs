//! Replicas of an engine, reached by targets that are other processes.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::create_replica_request::Place;
use pollux_api::engine::v1::promise_response::Outcome;
use pollux_device::{BlockDeviceExt, IoError};
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{CommandError, PromiseError, ReplicaAnswer, ReplicaCommand, ReplicaPort};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::common::content::{BLOCK_BYTES, read, write};
use crate::common::pool::PoolFile;
use crate::common::target::{Session, TargetThreads, VOLUME, in_tank, replica, replicas};
use crate::common::{EngineProcess, cores};

const DATA_BYTES: u64 = 16 << 20;

/// A block of data: behind the reserved area.
const DATA: u64 = 64;

fn tank() -> (PoolFile, String) {
    let file = PoolFile::new(256 << 20);
    crate::common::pool::succeed(&["pool", "create", "tank", &file.uri()]);
    let uri = file.uri();
    (file, uri)
}

fn reason(status: &Status) -> String {
    let details = status.get_details_error_info().expect("every error has a reason");
    details.reason
}

#[test]
fn replicas_are_made_listed_found_again_and_removed() {
    let (file, uri) = tank();
    let threads = TargetThreads::start();
    let engine = EngineProcess::start(&["--pool", &uri]);
    threads.runtime.block_on(async {
        let mut client = replicas(&engine).await;
        let created = client
            .create_replica(in_tank(1, DATA_BYTES))
            .await
            .expect("it is made");
        let created = created.into_inner().replica.expect("a replica");
        assert_eq!(created.volume, VOLUME.to_string());
        assert_eq!((created.data_bytes, created.promised_epoch), (DATA_BYTES, 0));
        let again = client
            .create_replica(in_tank(1, DATA_BYTES))
            .await
            .expect("the same");
        assert_eq!(again.into_inner().replica, Some(created));
        let wrong = [
            (
                api::CreateReplicaRequest {
                    volume: replica(9).to_string(),
                    ..in_tank(1, DATA_BYTES)
                },
                "REPLICA_EXISTS",
            ),
            (in_tank(2, 4095), "REPLICA_UNUSABLE"),
            (in_tank(2, 0), "REPLICA_UNUSABLE"),
            (in_tank(2, u64::MAX - 4095), "REPLICA_UNUSABLE"),
            (
                api::CreateReplicaRequest {
                    place: None,
                    ..in_tank(2, DATA_BYTES)
                },
                "FIELD_INVALID",
            ),
            (
                api::CreateReplicaRequest {
                    volume: "x".to_owned(),
                    ..in_tank(2, DATA_BYTES)
                },
                "FIELD_INVALID",
            ),
            (
                api::CreateReplicaRequest {
                    place: Some(Place::Uri("x".to_owned())),
                    ..in_tank(2, 0)
                },
                "FIELD_INVALID",
            ),
            (
                api::CreateReplicaRequest {
                    place: Some(Place::Uri("null:///small?size=8KiB&block=4096".to_owned())),
                    ..in_tank(2, 0)
                },
                "REPLICA_UNUSABLE",
            ),
        ];
        for (request, expected) in wrong {
            let text = format!("{request:?}");
            let refused = client.create_replica(request).await.expect_err("it is refused");
            assert_eq!(reason(&refused), expected, "{text}: {refused}");
        }
    });
    engine.stop();
    file.check();

    let engine = EngineProcess::start(&["--pool", &uri]);
    threads.runtime.block_on(async {
        let mut client = replicas(&engine).await;
        let list = client
            .list_replicas(api::ListReplicasRequest {})
            .await
            .expect("a list");
        let found: Vec<String> = list
            .into_inner()
            .replicas
            .into_iter()
            .map(|found| found.replica)
            .collect();
        assert_eq!(found, [replica(1).to_string()]);
        for was_there in [true, false] {
            let request = api::RemoveReplicaRequest {
                replica: replica(1).to_string(),
            };
            let removed = client.remove_replica(request).await.expect("it answers");
            assert_eq!(removed.into_inner().removed, was_there);
        }
    });
    engine.stop();
    let volumes = file.command(&["volume", "list", "tank"]);
    assert!(!volumes.contains("replica-"), "{volumes}");
}

#[test]
fn a_device_of_its_own_is_a_replica_too_and_what_holds_something_is_not_made_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("replica.img");
    std::fs::write(&path, vec![0; 8 << 20]).expect("written");
    let uri = format!("uring://{}?block=4096", path.display());
    let request = |number| api::CreateReplicaRequest {
        place: Some(Place::Uri(uri.clone())),
        ..in_tank(number, 0)
    };
    let threads = TargetThreads::start();
    let engine = EngineProcess::start(&[]);
    threads.runtime.block_on(async {
        let created = replicas(&engine).await.create_replica(request(1)).await;
        assert!(created.expect("it is made").into_inner().replica.is_some());
    });
    engine.stop();
    let engine = EngineProcess::start(&["--replica", &uri]);
    threads.runtime.block_on(async {
        let mut client = replicas(&engine).await;
        let removing = api::RemoveReplicaRequest {
            replica: replica(1).to_string(),
        };
        assert!(
            client
                .remove_replica(removing.clone())
                .await
                .expect("it is there")
                .into_inner()
                .removed
        );
        // It is blank again, and another one may be made of it.
        client.create_replica(request(2)).await.expect("it is made");
    });
    engine.stop();
    let engine = EngineProcess::start(&[]);
    threads.runtime.block_on(async {
        let mut client = replicas(&engine).await;
        let refused = client
            .create_replica(request(3))
            .await
            .expect_err("another one is there");
        assert!(
            refused
                .message()
                .contains(&format!("it is replica {}", replica(2))),
            "{refused}"
        );
    });
    engine.stop();
    // With both labels damaged it is not blank: nobody makes an empty replica of what once was one.
    let mut bytes = std::fs::read(&path).expect("read");
    for at in [100, 4096 + 100] {
        bytes[at] ^= 1;
    }
    std::fs::write(&path, bytes).expect("written");
    let engine = EngineProcess::start(&[]);
    threads.runtime.block_on(async {
        let refused = replicas(&engine)
            .await
            .create_replica(request(2))
            .await
            .expect_err("it is damaged");
        assert!(refused.message().contains("something at its start"), "{refused}");
    });
    engine.stop();
}

#[test]
fn of_two_targets_the_newer_is_served() {
    let (file, uri) = tank();
    let threads = TargetThreads::start();
    let two: Vec<String> = cores(2).iter().map(u32::to_string).collect();
    // Two reactors: what connects to one of them gets at a replica on the other.
    let engine = EngineProcess::start(&["--pool", &uri, "--cores", &two.join(",")]);
    threads.runtime.block_on(async {
        replicas(&engine)
            .await
            .create_replica(in_tank(1, DATA_BYTES))
            .await
            .expect("it is made");
    });
    let old = threads.port(&engine, 1, "old");
    let new = threads.port(&engine, 1, "new");
    // Sessions stay on the reactor, in a place of the thread.
    thread_local! {
        static OLD: RefCell<Option<Session>> = const { RefCell::new(None) };
    }
    let first = threads.promised(&old, 5, |granted| async move {
        let session = granted.session;
        for block in DATA..DATA + 64 {
            write(&session, block, block + 1).await.expect("it writes");
        }
        assert_eq!(session.flush().await, Ok(()));
        OLD.set(Some(session));
        (granted.instance, granted.settled, granted.flush_failures)
    });
    let first = first.expect("it promises");
    assert_eq!((first.1, first.2), (None, 0));
    let second = threads.promised(&new, 6, |granted| async move {
        let session = granted.session;
        for block in DATA..DATA + 64 {
            assert_eq!(read(&session, block).await, Ok(block + 1));
        }
        write(&session, DATA + 3, 100).await.expect("it writes");
        let old = OLD.take().expect("it is there");
        let late = write(&old, DATA + 3, 200).await.expect_err("it is out");
        assert!(
            matches!(late, IoError::Fenced | IoError::PathDown | IoError::Gone),
            "{late}"
        );
        let stale = read(&old, DATA + 3).await.expect_err("it is out");
        assert!(
            matches!(stale, IoError::Fenced | IoError::PathDown | IoError::Gone),
            "{stale}"
        );
        assert_eq!(read(&session, DATA + 3).await, Ok(100));
        // What is the host's own to write is not for targets.
        assert_eq!(write(&session, 2, 1).await, Err(IoError::ReadOnly));
        (granted.instance, granted.settled)
    });
    assert_eq!(second, Ok((first.0, Some(Epoch(5)))));
    let refused = threads.promised(&old, 5, |_| async {});
    assert_eq!(refused, Err(PromiseError::Superseded(Epoch(6))));
    engine.stop();

    // The promise outlives the process, and the host that has it is another one.
    let engine = EngineProcess::start(&["--pool", &uri]);
    let old = threads.port(&engine, 1, "old");
    let new = threads.port(&engine, 1, "new");
    let refused = threads.promised(&old, 5, |_| async {});
    assert_eq!(refused, Err(PromiseError::Superseded(Epoch(6))));
    let third = threads.promised(&new, 6, |granted| async move {
        assert_eq!(read(&granted.session, DATA + 3).await, Ok(100));
        (granted.instance, granted.settled)
    });
    let third = third.expect("the same epoch may be promised again");
    assert_ne!(third.0, first.0);
    assert_eq!(third.1, None);
    engine.kill();
    let lost = threads.promised(&new, 7, |_| async {});
    assert_eq!(lost, Err(PromiseError::Unreachable));
    file.check();
}

#[test]
fn a_session_that_is_lost_is_lost_and_a_new_one_is_had_by_a_promise() {
    let (_file, uri) = tank();
    let threads = TargetThreads::start();
    let mut engine = EngineProcess::start(&["--pool", &uri]);
    let listener = engine.listener();
    threads.runtime.block_on(async {
        replicas(&engine)
            .await
            .create_replica(in_tank(1, DATA_BYTES))
            .await
            .expect("it is made");
    });
    let port = threads.port(&engine, 1, "target");
    let outcome = threads.promised(&port.clone(), 1, move |granted| async move {
        let session = granted.session;
        write(&session, DATA + 1, 1).await.expect("it writes");
        assert_eq!(session.flush().await, Ok(()));
        let again = port.promise(Epoch(1)).await.expect("again");
        assert_eq!(again.settled, Some(Epoch(1)));
        // The same epoch supersedes nobody: the session is gone, and no newer target is behind it.
        let lost = write(&session, DATA + 1, 2).await.expect_err("it is gone");
        assert!(matches!(lost, IoError::PathDown | IoError::Gone), "{lost}");
        assert_eq!(read(&again.session, DATA + 1).await, Ok(1));
    });
    assert_eq!(outcome, Ok(()));

    // Nobody but the host that was named is admitted, under whatever name the session has.
    let granted = threads.runtime.block_on(async {
        let request = api::PromiseRequest {
            volume: VOLUME.to_string(),
            replica: replica(1).to_string(),
            epoch: 2,
            host_nqn: "nqn.2026-11.io.pollux:target".to_owned(),
        };
        let answer = replicas(&engine)
            .await
            .promise(request)
            .await
            .expect("it promises");
        match answer.into_inner().outcome {
            Some(Outcome::Granted(granted)) => granted,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(granted.listeners, [listener.to_string()]);
    let connect = |host: &str| {
        let uri = format!(
            "nvmf://{listener}/{}?hostnqn={host}&reconnect=off",
            granted.subsystem_nqn
        );
        threads.run(move || async move {
            let mut registry = pollux_device::Registry::empty();
            pollux_nvme::initiator::device::NvmfOpener::register(&mut registry);
            let opened = registry.open(&uri.parse().expect("a URI")).await;
            opened
                .map(|device| device.geometry().bytes())
                .map_err(|error| error.to_string())
        })
    };
    let refused = connect("nqn.2026-11.io.pollux:other").expect_err("it is not admitted");
    assert!(refused.contains("allow this host"), "{refused}");
    assert!(connect("nqn.2026-11.io.pollux:target").is_ok_and(|bytes| bytes > DATA_BYTES));
    engine.stop();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (_file, uri) = tank();
    let threads = TargetThreads::start();
    let engine = EngineProcess::start(&["--pool", &uri]);
    let good = api::PromiseRequest {
        volume: VOLUME.to_string(),
        replica: replica(1).to_string(),
        epoch: 1,
        host_nqn: "nqn.2026-11.io.pollux:target".to_owned(),
    };
    threads.runtime.block_on(async {
        let mut client = replicas(&engine).await;
        client
            .create_replica(in_tank(1, DATA_BYTES))
            .await
            .expect("it is made");
        for (request, code) in [
            (
                api::PromiseRequest {
                    volume: replica(7).to_string(),
                    ..good.clone()
                },
                Code::FailedPrecondition,
            ),
            (
                api::PromiseRequest {
                    replica: replica(7).to_string(),
                    ..good.clone()
                },
                Code::NotFound,
            ),
            (
                api::PromiseRequest {
                    replica: Uuid::nil().to_string(),
                    ..good.clone()
                },
                Code::InvalidArgument,
            ),
            (
                api::PromiseRequest {
                    epoch: 0,
                    ..good.clone()
                },
                Code::InvalidArgument,
            ),
            (
                api::PromiseRequest {
                    host_nqn: "me".to_owned(),
                    ..good.clone()
                },
                Code::InvalidArgument,
            ),
            (
                api::PromiseRequest {
                    host_nqn: "x".repeat(300),
                    ..good.clone()
                },
                Code::InvalidArgument,
            ),
        ] {
            let text = format!("{request:?}");
            let refused = client.promise(request).await.expect_err("it is refused");
            assert_eq!(refused.code(), code, "{text}: {refused}");
        }
        // The largest epoch there is leaves nobody anything newer, and is an epoch like any other.
        let last = api::PromiseRequest {
            epoch: u64::MAX,
            ..good.clone()
        };
        client.promise(last).await.expect("it promises");
        let outcome = client
            .promise(good.clone())
            .await
            .expect("an answer")
            .into_inner()
            .outcome;
        let superseded = Outcome::Superseded(api::PromiseSuperseded { epoch: u64::MAX });
        assert_eq!(outcome, Some(superseded));
    });
    engine.stop();
}

/// A session of a replica that was removed serves nobody.
#[test]
fn a_replica_that_is_removed_takes_its_sessions_with_it() {
    let (file, uri) = tank();
    let threads = TargetThreads::start();
    let engine = EngineProcess::start(&["--pool", &uri]);
    threads.runtime.block_on(async {
        replicas(&engine)
            .await
            .create_replica(in_tank(1, DATA_BYTES))
            .await
            .expect("it is made");
    });
    thread_local! {
        static SESSION: RefCell<Option<Session>> = const { RefCell::new(None) };
    }
    let port = threads.port(&engine, 1, "target");
    let kept = threads.promised(&port, 1, |granted| async move {
        write(&granted.session, DATA, 1).await.expect("it writes");
        SESSION.set(Some(granted.session));
    });
    assert_eq!(kept, Ok(()));
    threads.runtime.block_on(async {
        let request = api::RemoveReplicaRequest {
            replica: replica(1).to_string(),
        };
        let removed = replicas(&engine)
            .await
            .remove_replica(request)
            .await
            .expect("it is removed");
        assert!(removed.into_inner().removed);
    });
    threads.run(|| async {
        let session: Rc<_> = SESSION.take().expect("it is there");
        let gone = session
            .read(DATA, pollux_hugepages::Buffer::from_heap(BLOCK_BYTES))
            .await
            .map(drop);
        assert!(matches!(gone, Err(IoError::PathDown | IoError::Gone)), "{gone:?}");
    });
    let lost = threads.promised(&port, 2, |_| async {});
    assert_eq!(lost, Err(PromiseError::Unreachable));
    engine.stop();
    file.check();
}

#[test]
fn snapshots_are_cut_read_listed_and_deleted_from_afar() {
    let (file, uri) = tank();
    let threads = TargetThreads::start();
    let engine = EngineProcess::start(&["--pool", &uri]);
    threads.runtime.block_on(async {
        let mut client = replicas(&engine).await;
        let created = client.create_replica(in_tank(1, DATA_BYTES)).await;
        created.expect("it is made");
    });
    let port = threads.port(&engine, 1, "target");
    let outcome = threads.promised(&port.clone(), 1, move |granted| async move {
        let (session, epoch) = (granted.session, Epoch(1));
        let cut = Uuid::from_u128(77);
        let command = |command| port.command(epoch, command);
        write(&session, DATA + 1, 1).await.expect("it writes");
        for _ in 0..2 {
            let done = command(ReplicaCommand::CutSnapshot { cut }).await;
            assert_eq!(done, Ok(ReplicaAnswer::Done), "once more is no error");
        }
        write(&session, DATA + 1, 2).await.expect("it writes");
        let listed = command(ReplicaCommand::ListSnapshots).await;
        assert_eq!(listed, Ok(ReplicaAnswer::Snapshots(vec![cut])));
        let bad = command(ReplicaCommand::ListBadBlocks).await;
        assert_eq!(bad, Ok(ReplicaAnswer::BadBlocks(Vec::new())));
        for _ in 0..2 {
            let snapshot = port.open_snapshot(epoch, cut).await.expect("it is there");
            assert_eq!(read(&snapshot, DATA + 1).await, Ok(1));
            assert_eq!(write(&snapshot, DATA + 1, 3).await, Err(IoError::ReadOnly));
        }
        assert_eq!(read(&session, DATA + 1).await, Ok(2));
        // One that was read can be deleted by the same target.
        let read_once = Uuid::from_u128(79);
        let cutting = ReplicaCommand::CutSnapshot { cut: read_once };
        assert_eq!(command(cutting).await, Ok(ReplicaAnswer::Done));
        let snapshot = port.open_snapshot(epoch, read_once).await.expect("it is there");
        assert_eq!(read(&snapshot, DATA + 1).await, Ok(2));
        drop(snapshot);
        let mut deleted = Err(CommandError::NoSession);
        for _ in 0..50 {
            deleted = command(ReplicaCommand::DeleteSnapshot { cut: read_once }).await;
            if deleted.is_ok() {
                break;
            }
            pollux_reactor::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(deleted, Ok(ReplicaAnswer::Done));
        assert_eq!(read(&session, DATA + 1).await, Ok(2));
        let other = Uuid::from_u128(78);
        let missing = port.open_snapshot(epoch, other).await.map(drop);
        assert_eq!(missing, Err(CommandError::NoSnapshot(other)));
        let early = port.command(Epoch(2), ReplicaCommand::ListSnapshots).await;
        assert_eq!(early, Err(CommandError::NoSession));
        // With the next promise, the older target is nobody.
        let newer = port.promise(Epoch(2)).await.expect("it promises");
        let late = command(ReplicaCommand::DeleteSnapshot { cut }).await;
        assert_eq!(late, Err(CommandError::Superseded(Epoch(2))));
        let late = port.open_snapshot(epoch, cut).await.map(drop);
        assert_eq!(late, Err(CommandError::Superseded(Epoch(2))));
        let deleting = ReplicaCommand::DeleteSnapshot { cut };
        assert_eq!(port.command(Epoch(2), deleting).await, Ok(ReplicaAnswer::Done));
        assert_eq!(read(&newer.session, DATA + 1).await, Ok(2));
        let last = ReplicaCommand::CutSnapshot { cut: other };
        assert_eq!(port.command(Epoch(2), last).await, Ok(ReplicaAnswer::Done));
    });
    assert_eq!(outcome, Ok(()));
    // A replica goes with its snapshots.
    threads.runtime.block_on(async {
        let request = api::RemoveReplicaRequest {
            replica: replica(1).to_string(),
        };
        let removed = replicas(&engine).await.remove_replica(request).await;
        assert!(removed.expect("it is removed").into_inner().removed);
    });
    engine.stop();
    let volumes = file.command(&["volume", "list", "tank"]);
    assert!(!volumes.contains('@'), "{volumes}");
    file.check();
}
