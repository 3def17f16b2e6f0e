//! Pools and volumes by the command line and by gRPC: what works, and what is refused in which words.

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::pools_client::PoolsClient;
use pollux_api::engine::v1::volumes_client::VolumesClient;
use pollux_engine::client;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::common::pool::{PoolFile, json, refused, succeed, succeeded};
use crate::common::{EngineProcess, run, start_error};

const POOL_BYTES: u64 = 64 << 20;

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_pool_lives_from_its_making_to_its_end() {
    let file = PoolFile::new(POOL_BYTES);
    let uri = file.uri();
    let made = succeed(&["pool", "create", "tank", &uri, "--journal", "4MiB"]);
    contains(&made, &["NAME", "tank", "64 MiB", &uri]);
    contains(&succeed(&["pool", "import", &uri]), &["tank", "in good order"]);
    contains(&file.command(&["pool", "list"]), &["tank", "open"]);
    let shown = json(&file.command(&["pool", "show", "tank", "-o", "json"]));
    assert_eq!(shown["name"], "tank");
    assert_eq!(shown["total_bytes"], POOL_BYTES);
    assert_eq!(shown["import"]["was_exported"], true);
    let checked = json(&file.command(&["pool", "check", "tank", "-o", "json"]));
    assert_eq!(checked["findings_count"], 0);
    contains(
        &file.command(&["pool", "destroy", "tank"]),
        &["tank is destroyed"],
    );
    contains(
        &refused(&run(&["pool", "import", &uri])),
        &[&uri, "holds no pool"],
    );
    succeed(&["pool", "create", "other", &uri]);
}

#[test]
fn devices_come_go_and_grow() {
    let files = [
        PoolFile::new(POOL_BYTES),
        PoolFile::new(POOL_BYTES),
        PoolFile::new(2 * POOL_BYTES),
    ];
    let [first, second, third] = files.each_ref().map(PoolFile::uri);
    succeed(&["pool", "create", "tank", &first, "--journal", "4MiB"]);
    let on = |devices: &[&String], arguments: &[&str]| {
        let devices: Vec<&str> = devices.iter().map(|uri| uri.as_str()).collect();
        run(&[arguments, &["--pool", &devices.join(",")]].concat())
    };
    let shown = |answer: std::process::Output| json(&succeeded(&answer));
    succeeded(&on(&[&first], &["volume", "create", "tank/db", "16MiB"]));

    let pool = shown(on(&[&first], &["pool", "add", "tank", &second, "-o", "json"]));
    assert_eq!(pool["total_bytes"], 2 * POOL_BYTES);
    assert_eq!(
        (&pool["members"][1]["uri"], &pool["members"][1]["has_journal"]),
        (&second.as_str().into(), &true.into())
    );
    contains(
        &refused(&on(&[&first], &["pool", "show", "tank"])),
        &["is missing"],
    );
    contains(
        &refused(&on(&[&first, &second], &["pool", "remove", "tank", "7"])),
        &["has no device 7"],
    );

    let both = [&first, &second];
    let pool = shown(on(&both, &["pool", "replace", "tank", "0", &third, "-o", "json"]));
    assert_eq!(pool["members"][0]["uri"], third.as_str());
    assert_eq!(pool["members"][0]["device_bytes"], 2 * POOL_BYTES);
    contains(&refused(&run(&["pool", "import", &first])), &["holds no pool"]);

    let both = [&third, &second];
    let pool = shown(on(&both, &["pool", "grow", "tank", "-o", "json"]));
    assert_eq!(pool["total_bytes"], 3 * POOL_BYTES);
    let lines = succeeded(&on(&both, &["pool", "remove", "tank", "1"]));
    contains(&lines, &["0: ", &third, "128 MiB"]);
    contains(
        &refused(&on(&[&third], &["pool", "remove", "tank", "0"])),
        &["is the only one"],
    );
    contains(
        &succeeded(&on(&[&third], &["volume", "list", "tank"])),
        &["tank/db"],
    );
    contains(
        &succeeded(&on(&[&third], &["pool", "check", "tank"])),
        &["is sound"],
    );
    contains(&refused(&run(&["pool", "import", &second])), &["holds no pool"]);
}

#[test]
fn a_device_that_takes_no_writes_is_replaced() {
    let files = [
        PoolFile::with_volume(POOL_BYTES, "16MiB"),
        PoolFile::new(POOL_BYTES),
        PoolFile::new(POOL_BYTES),
    ];
    let [first, second, third] = files.each_ref().map(PoolFile::uri);
    let worn_out = format!(
        "faulty:///{}&write.error=media-write",
        first
            .replace("size=", "inner.size=")
            .replace("block=", "inner.block=")
    );
    let replaced = |device: &str, pool: &str, more: &[&str]| {
        let replace = [
            "pool",
            "replace",
            "tank",
            "0",
            device,
            "--worn-out",
            "--pool",
            pool,
        ];
        run(&[&replace, more].concat())
    };
    contains(
        &refused(&run(&["pool", "import", &worn_out])),
        &["could not be written"],
    );
    contains(
        &succeed(&["pool", "import", &worn_out, "--read-only"]),
        &["0: ", &worn_out, "read-only"],
    );
    // What cannot be: no pool is given, another one, no such device, and one that holds something.
    let arguments = ["pool", "replace", "tank", "0", &second, "--worn-out"];
    let answer = run(&arguments);
    assert_eq!(answer.status.code(), Some(2));
    contains(&String::from_utf8_lossy(&answer.stderr), &["--pool"]);
    let arguments = [
        "pool",
        "replace",
        "pond",
        "0",
        &second,
        "--worn-out",
        "--pool",
        &worn_out,
    ];
    contains(&refused(&run(&arguments)), &["hold the pool \"tank\"", "pond"]);
    let arguments = [
        "pool",
        "replace",
        "tank",
        "3",
        &second,
        "--worn-out",
        "--pool",
        &worn_out,
    ];
    contains(&refused(&run(&arguments)), &["has no device 3"]);
    succeed(&["pool", "create", "other", &third]);
    contains(
        &refused(&replaced(&third, &worn_out, &[])),
        &[&third, "other", "--overwrite"],
    );

    let told = succeeded(&replaced(&second, &worn_out, &[]));
    contains(&told, &["device 0 of the pool tank is", &second, "take it out"]);
    contains(
        &succeed(&["pool", "check", "tank", "--pool", &second]),
        &["is sound"],
    );
    contains(
        &succeed(&["volume", "list", "tank", "--pool", &second]),
        &["tank/db"],
    );
    // Of a device that can be written the label is wiped.
    let told = json(&succeeded(&replaced(
        &third,
        &second,
        &["--overwrite", "-o", "json"],
    )));
    assert_eq!(told["keeps_label"], false);
    contains(&refused(&run(&["pool", "import", &second])), &["holds no pool"]);
    contains(
        &succeed(&["volume", "list", "tank", "--pool", &third]),
        &["tank/db"],
    );
}

#[test]
fn a_volume_lives_from_its_making_to_its_end() {
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    let volume = |arguments: &[&str]| file.command(&[&["volume"], arguments].concat());
    let of = |text: &str| json(text)[0].clone();
    let uuid = "6c1b0a7e-7d3c-4c58-9a5e-0f1d2c3b4a59";
    let made = of(&volume(&[
        "create",
        "tank/a",
        "8MiB",
        "--no-checksums",
        "--uuid",
        uuid,
        "-o",
        "json",
    ]));
    assert_eq!((&made["uuid"], &made["checksums"]), (&uuid.into(), &false.into()));
    assert_eq!(made["kind"], "VOLUME_KIND_VOLUME");
    // The same again is what is there.
    let again = of(&volume(&[
        "create",
        "tank/a",
        "8MiB",
        "--no-checksums",
        "-o",
        "json",
    ]));
    assert_eq!(again, made);

    let taken = of(&volume(&["snapshot", "tank/db", "monday", "-o", "json"]));
    assert_eq!(
        (&taken["kind"], &taken["origin"]),
        (&"VOLUME_KIND_SNAPSHOT".into(), &"db".into())
    );
    assert_eq!(
        of(&volume(&["snapshot", "tank/db", "monday", "-o", "json"])),
        taken
    );
    let cloned = of(&volume(&["clone", "tank/monday", "copy", "-o", "json"]));
    assert_eq!(
        (&cloned["size_bytes"], &cloned["origin"]),
        (&(16 << 20).into(), &"monday".into())
    );
    contains(&volume(&["rename", "tank/copy", "tuesday"]), &["tank/tuesday"]);
    contains(&volume(&["resize", "tank/tuesday", "32MiB"]), &["32 MiB"]);
    contains(
        &volume(&["resize", "tank/tuesday", "4MiB", "--may-drop"]),
        &["4 MiB"],
    );
    contains(&volume(&["rollback", "tank/tuesday", "monday"]), &["16 MiB"]);
    contains(&volume(&["show", "tank/monday"]), &["snapshot", "16 MiB"]);
    contains(
        &volume(&["diff", "tank/db", "--since", "monday"]),
        &["0 B in 0 ranges"],
    );

    let thick = volume(&["create", "tank/log", "4MiB", "--thick", "-o", "json"]);
    let thick = json(&thick);
    assert_eq!(thick[0]["thick"], true);
    contains(&volume(&["show", "tank/log"]), &["thick           yes"]);
    let shown = json(&file.command(&["pool", "show", "tank", "-o", "json"]));
    assert!(shown["set_aside_bytes"].as_u64() > Some(4 << 20), "{shown}");
    contains(&volume(&["delete", "tank/log"]), &["is deleted"]);
    contains(
        &volume(&["delete", "tank/log", "--if-exists"]),
        &["there is no tank/log"],
    );

    let list = volume(&["list", "tank", "-o", "json"]);
    let list = json(&list);
    let names: Vec<&str> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["a", "db", "monday", "tuesday"]);
    for name in names {
        contains(&volume(&["delete", &format!("tank/{name}")]), &["is deleted"]);
    }
    volume(&["delete", "tank/db", "--if-exists"]);
    contains(&volume(&["list", "tank"]), &["no volumes"]);
    let shown = json(&file.command(&["pool", "show", "tank", "-o", "json"]));
    assert_eq!(
        (&shown["deleting"], &shown["provisioned_bytes"]),
        (&0.into(), &0.into())
    );
    file.check();
}

#[test]
fn a_pool_that_is_imported_read_only_is_not_written() {
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    let content = || std::fs::read(file.path()).expect("the pool");
    let before = content();
    let uri = file.uri();
    let shown = succeed(&["pool", "import", &uri, "--read-only"]);
    contains(&shown, &["read-only", "as it was asked for", "in good order"]);

    let engine = EngineProcess::start(&[]);
    let control = engine.control();
    let ask = |arguments: &[&str]| run(&[arguments, &["--grpc", &control]].concat());
    let shown = succeeded(&ask(&["pool", "import", &uri, "--read-only", "-o", "json"]));
    assert_eq!(json(&shown)["read_only"], true);
    contains(&succeeded(&ask(&["pool", "list"])), &["read-only"]);
    contains(&succeeded(&ask(&["pool", "check", "tank"])), &["is sound"]);
    // A scrub only looks then.
    contains(
        &succeeded(&ask(&["pool", "scrub", "tank"])),
        &["0 copies repaired"],
    );
    for arguments in [
        &["volume", "create", "tank/other", "1MiB"][..],
        &["volume", "snapshot", "tank/db", "monday"],
        &["volume", "delete", "tank/db"],
        &["volume", "resize", "tank/db", "32MiB"],
        &["pool", "grow", "tank"],
        &["pool", "destroy", "tank"],
        &["pool", "import", &uri],
    ] {
        contains(&refused(&ask(arguments)), &["read-only"]);
    }
    succeeded(&ask(&["pool", "export", "tank"]));
    engine.stop();
    assert!(before == content());
    // Nor is a file made, as one that is opened with a size would be.
    let other = file.path().with_extension("other");
    let new = format!("uring://{}?size=64MiB&block=4096", other.display());
    contains(
        &refused(&run(&["pool", "import", &new, "--read-only"])),
        &["readonly"],
    );
    assert!(!other.exists());

    let shown = json(&succeed(&["pool", "import", &uri, "-o", "json"]));
    assert_eq!(shown["read_only"], false);
    assert!(before != content());
}

/// The names of the pools of an engine, and how many devices each has.
fn pools_of(engine: &EngineProcess) -> Vec<(String, usize)> {
    let list = json(&succeed(&[
        "pool",
        "list",
        "--grpc",
        &engine.control(),
        "-o",
        "json",
    ]));
    let pools = list.as_array().expect("a list");
    let describe = |pool: &serde_json::Value| {
        let devices = pool["devices"].as_array().map_or(0, Vec::len);
        (pool["name"].as_str().expect("a name").to_owned(), devices)
    };
    pools.iter().map(describe).collect()
}

#[test]
fn an_engine_with_a_state_file_opens_pools_as_they_were() {
    let directory = tempfile::tempdir().expect("a directory");
    let uri = |name: &str| {
        let path = directory.path().join(name);
        format!("uring://{}?block=4096&size=64MiB", path.display())
    };
    let state = directory.path().join("state.json").display().to_string();
    let named = uri("named");
    succeed(&["pool", "create", "named", &named]);
    let start = || EngineProcess::start(&["--pool", &named, "--state-file", &state]);
    let pool = |name: &str, devices: usize| (name.to_owned(), devices);

    let engine = start();
    let control = engine.control();
    let at = ["--grpc", control.as_str()];
    let ask = |arguments: &[&str], at: &[&str]| succeed(&[arguments, at].concat());
    ask(&["pool", "create", "made", &uri("a")], &at);
    ask(&["pool", "create", "gone", &uri("b")], &at);
    ask(&["pool", "add", "named", &uri("c")], &at);
    ask(&["pool", "add", "made", &uri("d")], &at);
    ask(&["pool", "export", "gone"], &at);
    engine.stop();

    // After an end in good order, and after a kill.
    let engine = start();
    assert_eq!(pools_of(&engine), [pool("made", 2), pool("named", 2)]);
    engine.kill();
    let engine = start();
    assert_eq!(pools_of(&engine), [pool("made", 2), pool("named", 2)]);
    let control = engine.control();
    let at = ["--grpc", control.as_str()];
    ask(&["pool", "remove", "named", "1"], &at);
    ask(&["pool", "destroy", "made"], &at);
    engine.stop();
    // One that cannot be opened is no reason not to start.
    let engine = start();
    assert_eq!(pools_of(&engine), [pool("named", 1)]);
    let control = engine.control();
    ask(&["pool", "import", &uri("b")], &["--grpc", control.as_str()]);
    engine.stop();
    std::fs::remove_file(directory.path().join("b")).expect("it was there");
    start().stop();
    std::fs::write(&state, "nothing").expect("written");
    let error = start_error(&["--grpc", "127.0.0.1:0", "--state-file", &state], 1);
    contains(&error, &["state.json", "move it away"]);
}

#[test]
fn what_is_wrong_with_volumes_is_told_in_one_line() {
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    file.command(&["volume", "snapshot", "tank/db", "monday"]);
    for (arguments, parts) in [
        (&["create", "tank/db", "8MiB"][..], &["already", "db"][..]),
        (&["create", "tank/x", "5000"], &["size_bytes", "multiple of 4096"]),
        (&["create", "tank/x", "0"], &["size_bytes", "is 0"]),
        (
            &["create", "tank/x", "8GiB", "--thick"],
            &["set aside", "thick", "are free"],
        ),
        (&["create", "tank/x", "15EiB"], &["size_bytes", "more than"]),
        (&["create", "tank/x", "4EiB"], &["TiB at most"]),
        (&["create", "tank/x", "8MiB", "--uuid", "x"], &["uuid", "no UUID"]),
        (
            &["create", "pond/x", "8MiB"],
            &["no pool \"pond\"", "there is tank"],
        ),
        (&["show", "tank/x"], &["no volume or snapshot \"x\""]),
        (&["snapshot", "tank/x", "y"], &["no volume or snapshot \"x\""]),
        (&["snapshot", "tank/monday", "y"], &["no volume", "monday"]),
        (&["snapshot", "tank/db", "db"], &["already"]),
        (&["snapshot", "tank/db", "a/b"], &["name", "slashes"]),
        (&["clone", "tank/db", "y"], &["no snapshot", "db"]),
        (&["rollback", "tank/db", "db"], &["no snapshot"]),
        (&["resize", "tank/db", "8MiB"], &["drops", "--may-drop"]),
        (&["resize", "tank/monday", "32MiB"], &["no volume"]),
        (&["rename", "tank/db", "monday"], &["already"]),
        (&["delete", "tank/x"], &["no volume or snapshot \"x\""]),
        (
            &["diff", "tank/db", "--since", "x"],
            &["no volume or snapshot \"x\""],
        ),
    ] {
        let text = file.refused(&[&["volume"], arguments].concat());
        contains(&text, parts);
    }
    let usage = run(&["volume", "show", "db"]);
    assert_eq!(usage.status.code(), Some(2));
    contains(&crate::common::errors(&usage), &["POOL/NAME"]);
    file.check();
}

#[test]
fn what_is_wrong_with_devices_is_told_in_one_line() {
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    let (uri, empty) = (file.uri(), PoolFile::new(POOL_BYTES));
    let small = PoolFile::new(1 << 20);
    let gone = uri.replace("pool.img", "gone");
    let torn = format!("uring://{}?block=512", empty.path().display());
    for (arguments, parts) in [
        (
            &["create", "tank", &uri][..],
            &[uri.as_str(), "holds", "tank", "--overwrite"][..],
        ),
        (
            &["create", "pond", &small.uri()],
            &[&small.uri(), "has 1 MiB", "needs 4 MiB"],
        ),
        (&["create", "pond", &gone], &[&gone, "does not exist"]),
        (&["create", "pond", &torn], &["4 KiB is not torn", "4096"]),
        (&["create", "a/b", &empty.uri()], &["name", "slashes"]),
        (&["create", "pond", "disk:///x"], &["unknown scheme", "uring"]),
        (
            &["create", "pond", "pool://tank/db"],
            &["unknown scheme \"pool\""],
        ),
        (
            &["create", "pond", &empty.uri(), &empty.uri()],
            &["devices", "twice"],
        ),
        (
            &["create", "pond", &empty.uri(), "--overwrite", &uri],
            &["overwrite", "not among"],
        ),
        (&["import", &empty.uri()], &[&empty.uri(), "holds no pool"]),
        (&["import", &gone], &[&gone, "does not exist"]),
        (&["import", &uri, &empty.uri()], &[&empty.uri(), "holds no pool"]),
        (&["show", "pond", "--pool", &uri], &["no pool \"pond\""]),
        (&["destroy", "pond", "--pool", &uri], &["no pool \"pond\""]),
        (
            &["list", "--grpc", "unix:/nowhere/engine.sock"],
            &["no engine answers"],
        ),
    ] {
        let text = refused(&run(&[&["pool"], arguments].concat()));
        contains(&text, parts);
    }
    // Nothing of all that harmed the pool.
    file.check();
    succeed(&["pool", "create", "pond", &uri, "--overwrite", &uri]);
    contains(&succeed(&["pool", "import", &uri]), &["pond"]);
}

#[test]
fn file_systems_and_partition_tables_are_left_alone() {
    for (at, mark, what) in [
        (0x438, &[0x53, 0xef][..], "an ext file system"),
        (512, b"EFI PART", "a GPT partition table"),
        (0, b"XFSB", "an XFS file system"),
        (65_600, b"_BHRfS_M", "a btrfs file system"),
    ] {
        let file = PoolFile::new(POOL_BYTES);
        let uri = file.uri();
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        std::fs::write(file.path(), &bytes).expect("written");
        std::fs::File::options()
            .write(true)
            .open(file.path())
            .and_then(|file| file.set_len(POOL_BYTES))
            .expect("room");
        let text = refused(&run(&["pool", "create", "tank", &uri]));
        contains(&text, &[&uri, "holds", what, "--overwrite"]);
        let after = std::fs::read(file.path()).expect("readable");
        assert!(after.starts_with(&bytes), "nothing is written");
        succeed(&["pool", "create", "tank", &uri, "--overwrite", &uri]);
        // Nobody takes it for what it was.
        file.command(&["pool", "destroy", "tank"]);
        succeed(&["pool", "create", "tank", &uri]);
        file.check();
    }
}

#[test]
fn engines_tell_what_is_wrong_with_pools() {
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    let (uri, empty) = (file.uri(), PoolFile::new(POOL_BYTES));
    let copy = empty.path().with_file_name("copy.img");
    std::fs::copy(file.path(), &copy).expect("copied");
    let copy = format!("uring://{}?block=4096", copy.display());
    for (arguments, parts) in [
        (
            &["--pool", &empty.uri(), "pool://tank/db"][..],
            &[empty.path().to_str().expect("UTF-8"), "holds no pool"][..],
        ),
        (
            &["--pool", &uri, "pool://pond/db"],
            &["no pool \"pond\"", "there is tank"],
        ),
        (
            &["--pool", &uri, "pool://tank/x"],
            &["no volume or snapshot \"x\""],
        ),
        (
            &["--pool", &uri, "pool://tank/db?size=1GiB"],
            &["unknown parameter", "size"],
        ),
        (&["--pool", &uri, "pool://tank"], &["pool://POOL/VOLUME"]),
        (
            &["--pool", &uri, "pool://tank/db", "pool://tank/db"],
            &["already", "namespace 1"],
        ),
        (
            &["--pool", &uri, "--pool", &copy, "pool://tank/db"],
            &["\"tank\" is open already"],
        ),
        (&["pool://tank/db"], &["no pool \"tank\"", "--pool"]),
    ] {
        let all = [&["--nvmf", "127.0.0.1:0"], arguments].concat();
        let text = start_error(&all, 1);
        assert_eq!(
            text.lines().filter(|line| line.starts_with("error: ")).count(),
            1,
            "{text}"
        );
        contains(&text, parts);
    }
    // An engine that does not start leaves the pool in good order all the same.
    contains(&succeed(&["pool", "import", &uri]), &["in good order"]);
    file.check();
}

#[test]
fn a_running_engine_does_the_same() {
    let engine = EngineProcess::start(&[]);
    let file = PoolFile::new(POOL_BYTES);
    let uri = file.uri();
    let pool = |arguments: &[&str]| engine.command("pool", arguments);
    let volume = |arguments: &[&str]| engine.command("volume", arguments);
    contains(&succeeded(&pool(&["list"])), &["no pools"]);
    succeeded(&pool(&["create", "tank", &uri]));
    // Again is what is there; under another name it is not.
    succeeded(&pool(&["create", "tank", &uri]));
    contains(&refused(&pool(&["create", "pond", &uri])), &["in use"]);
    succeeded(&pool(&["import", &uri]));
    succeeded(&volume(&["create", "tank/db", "16MiB"]));
    succeeded(&volume(&["snapshot", "tank/db", "monday"]));
    succeeded(&engine.namespace(&["add", "pool://tank/db"]));
    succeeded(&engine.namespace(&["add", "pool://tank/monday"]));
    contains(
        &succeeded(&engine.namespace(&["list"])),
        &["pool://tank/db", "none"],
    );
    contains(&refused(&pool(&["export", "tank"])), &["in use by db, monday"]);
    contains(&refused(&pool(&["check", "tank"])), &["in use by"]);
    contains(&refused(&pool(&["destroy", "tank"])), &["in use by"]);
    contains(
        &refused(&volume(&["delete", "tank/db"])),
        &["in use", "namespace list"],
    );
    contains(&refused(&volume(&["rollback", "tank/db", "monday"])), &["in use"]);
    succeeded(&volume(&["resize", "tank/db", "32MiB"]));
    contains(&succeeded(&engine.namespace(&["list"])), &["32 MiB"]);
    succeeded(&engine.namespace(&["resize", "1", "48MiB"]));
    contains(&succeeded(&volume(&["show", "tank/db"])), &["48 MiB"]);
    succeeded(&engine.namespace(&["remove", "1"]));
    succeeded(&engine.namespace(&["remove", "2"]));
    // Whoever had it open is about to leave: that is waited for.
    succeeded(&volume(&["rollback", "tank/db", "monday"]));
    succeeded(&volume(&["delete", "tank/monday", "--wait"]));
    contains(&succeeded(&pool(&["check", "tank"])), &["is sound"]);
    contains(&succeeded(&pool(&["export", "tank"])), &["exported"]);
    contains(&refused(&volume(&["list", "tank"])), &["no pool \"tank\""]);
    file.check();
    succeeded(&pool(&["import", &uri]));
    succeeded(&pool(&["destroy", "tank"]));
    engine.stop();
    contains(&refused(&run(&["pool", "import", &uri])), &["holds no pool"]);
}

/// The reason, and the field that a status names.
fn details(status: &Status) -> (String, Option<String>) {
    let info = status.get_details_error_info().expect("every error has a reason");
    let request = status.get_details_bad_request();
    let field = request.and_then(|request| Some(request.field_violations.first()?.field.clone()));
    (info.reason, field)
}

#[tokio::test]
async fn calls_name_the_field_that_is_wrong() {
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    let engine = EngineProcess::start(&["--pool", &file.uri()]);
    let address = engine.control().parse().expect("an address");
    let channel = client::channel(&address).await.expect("it listens");
    let (mut pools, mut volumes) = (PoolsClient::new(channel.clone()), VolumesClient::new(channel));
    let tank = || "tank".to_owned();
    let mut wrong = vec![
        (pools.get_pool(api::GetPoolRequest::default()).await.err(), "name"),
        (
            pools.import_pool(api::ImportPoolRequest::default()).await.err(),
            "devices",
        ),
        (
            pools.check_pool(api::CheckPoolRequest::default()).await.err(),
            "name",
        ),
        (
            pools.export_pool(api::ExportPoolRequest::default()).await.err(),
            "name",
        ),
        (
            pools.destroy_pool(api::DestroyPoolRequest::default()).await.err(),
            "name",
        ),
        (
            volumes.get_volume(api::GetVolumeRequest::default()).await.err(),
            "pool",
        ),
        (
            volumes
                .delete_volume(api::DeleteVolumeRequest::default())
                .await
                .err(),
            "pool",
        ),
        (
            volumes
                .clone_snapshot(api::CloneSnapshotRequest::default())
                .await
                .err(),
            "pool",
        ),
    ];
    let list = api::ListPoolsRequest {
        page_size: 5000,
        ..api::ListPoolsRequest::default()
    };
    wrong.push((pools.list_pools(list).await.err(), "page_size"));
    let create = api::CreatePoolRequest {
        name: "pond".to_owned(),
        devices: vec![file.uri()],
        journal_bytes: Some(0),
        ..api::CreatePoolRequest::default()
    };
    wrong.push((pools.create_pool(create).await.err(), "journal_bytes"));
    let list = api::ListVolumesRequest {
        pool: tank(),
        page_token: "a/b".to_owned(),
        ..api::ListVolumesRequest::default()
    };
    wrong.push((volumes.list_volumes(list).await.err(), "page_token"));
    let resize = api::ResizeVolumeRequest {
        pool: tank(),
        name: "db".to_owned(),
        size_bytes: 1,
        may_drop: true,
    };
    wrong.push((volumes.resize_volume(resize).await.err(), "size_bytes"));
    let changes = api::StreamChangesRequest {
        pool: tank(),
        name: "db".to_owned(),
        since: None,
        offset_bytes: 7,
    };
    wrong.push((volumes.stream_changes(changes).await.err(), "offset_bytes"));
    let rename = api::RenameVolumeRequest {
        pool: tank(),
        name: "db".to_owned(),
        new_name: "\n".to_owned(),
    };
    wrong.push((volumes.rename_volume(rename).await.err(), "new_name"));
    for (status, field) in wrong {
        let status = status.expect("it is refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(
            details(&status),
            ("FIELD_INVALID".to_owned(), Some(field.to_owned()))
        );
        assert!(status.message().starts_with(&format!("{field}: ")), "{status:?}");
    }
    engine.stop();
}

#[tokio::test]
async fn a_check_tells_how_far_it_is_and_last_what_it_found() {
    use api::check_pool_response::What;
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    let engine = EngineProcess::start(&["--pool", &file.uri()]);
    let address = engine.control().parse().expect("an address");
    let mut pools = PoolsClient::new(client::channel(&address).await.expect("a connection"));
    let of = |name: &str| api::CheckPoolRequest {
        name: name.to_owned(),
    };
    let missing = pools.check_pool(of("pond")).await.expect_err("there is none");
    assert_eq!(missing.code(), Code::NotFound);
    // A caller that hangs up at once keeps nobody from the next check.
    drop(pools.check_pool(of("tank")).await.expect("a stream"));
    let mut answers = pools.check_pool(of("tank")).await.expect("a stream").into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await.expect("an answer") {
        assert!(!matches!(last, Some(What::Report(_))), "the report is the last");
        if let Some(What::Progress(progress)) = &answer.what {
            assert!(progress.volumes_done <= progress.volumes, "{progress:?}");
        }
        last = answer.what;
    }
    let Some(What::Report(report)) = last else {
        panic!("{last:?}")
    };
    assert!(report.pages > 0 && report.findings.is_empty(), "{report:?}");
    engine.stop();
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let file = PoolFile::with_volume(POOL_BYTES, "16MiB");
    let engine = EngineProcess::start(&["--pool", &file.uri()]);
    let address = engine.control().parse().expect("an address");
    let mut volumes = VolumesClient::new(client::channel(&address).await.expect("it listens"));
    let mut expected = vec!["db".to_owned()];
    for number in 0..25 {
        let name = format!("snapshot-{number:02}");
        let request = api::CreateSnapshotRequest {
            pool: "tank".to_owned(),
            volume: "db".to_owned(),
            name: name.clone(),
        };
        volumes.create_snapshot(request).await.expect("taken");
        expected.push(name);
    }
    let mut names = Vec::new();
    let mut request = api::ListVolumesRequest {
        pool: "tank".to_owned(),
        page_size: 10,
        page_token: String::new(),
    };
    let mut pages = 0;
    loop {
        let page = volumes
            .list_volumes(request.clone())
            .await
            .expect("a page")
            .into_inner();
        pages += 1;
        names.extend(page.volumes.into_iter().map(|volume| volume.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!((names, pages), (expected, 3));
    engine.stop();
}
