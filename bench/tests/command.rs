//! `pollux-bench` as its users run it, on memory.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_pollux-bench");
    Command::new(program).args(arguments).output().unwrap()
}

/// What a load that goes well says in JSON.
fn run(folder: &Path, arguments: &[&str]) -> Value {
    let path = folder.join("results.json");
    let path = path.to_str().unwrap();
    let output = bench(&[&["run", "--quiet", "--json", path], arguments].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What is printed of a load that does not go well.
fn refusal(arguments: &[&str]) -> String {
    let output = bench(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_count_is_done_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let uris = ["malloc:///a?size=16MiB", "malloc:///b?size=16MiB"];
    let load = [
        "--pattern",
        "randrw",
        "--read-percent",
        "30",
        "--depth",
        "8",
        "--count",
        "5000",
    ];
    let results = run(folder.path(), &[&uris[..], &load, &["--jobs", "2"]].concat());
    let requests = |side: &str| results[side]["requests"].as_u64().unwrap();
    // Two jobs on two devices.
    assert_eq!(requests("read") + requests("write"), 20_000);
    let share = requests("read") as f64 / 20_000.0;
    assert!((0.25..0.35).contains(&share), "{share} are reads");
    assert_eq!((&results["jobs"], &results["devices"]), (&2.into(), &2.into()));
    let percentiles = results["read"]["percentiles_us"].as_array().unwrap();
    let at: Vec<f64> = percentiles.iter().map(|pair| pair[0].as_f64().unwrap()).collect();
    assert_eq!(at, [50.0, 90.0, 99.0, 99.9, 99.99, 100.0]);
    assert!(
        percentiles
            .windows(2)
            .all(|pair| pair[0][1].as_f64() <= pair[1][1].as_f64())
    );
}

#[test]
fn a_rate_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let load = ["--rate", "500", "--time", "1", "--warm-up", "0"];
    let results = run(folder.path(), &[&["malloc:///a?size=16MiB"][..], &load].concat());
    let requests = results["read"]["requests"].as_u64().unwrap();
    // Never faster; a machine that is busy may be slower.
    assert!((1..=510).contains(&requests), "{requests} in a second");
}

#[test]
fn verification_finds_what_is_wrong_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let load = [
        "--pattern",
        "randrw",
        "--count",
        "20000",
        "--verify",
        "--flush-every",
        "100",
    ];
    let results = run(
        folder.path(),
        &[&["malloc:///a?size=8MiB"][..], &load, &["--jobs", "2"]].concat(),
    );
    assert_eq!(results["errors"], 0);
    assert!(results["flushes"].as_u64().unwrap() > 100);
    for fault in [
        "read.flip=1;nth=3000",
        "write.lost=true;every=500",
        "write.flip=1;every=300",
    ] {
        let uri = format!("faulty:///malloc:///a?inner.size=2MiB&{fault}&seed=1");
        let said = refusal(&[&["run", &uri, "--quiet"][..], &load].concat());
        assert!(said.contains("wrong data"), "{fault}: {said}");
    }
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    for (arguments, said) in [
        (
            &["run", "malloc:///a?size=1MiB", "--block", "1000"][..],
            "not a multiple",
        ),
        (&["run", "malloc:///a?size=64MiB", "--block", "4MiB"], "2 MiB"),
        (&["run", "malloc:///a?size=4KiB"], "too small"),
        (&["run", "nothing:///a"], "nothing"),
        (&["report"], "--measure LABEL=URI"),
        (
            &["report", "--read", "/nonexistent"],
            "could not read /nonexistent",
        ),
    ] {
        let error = refusal(arguments);
        assert!(
            error.contains(said) && error.trim().lines().count() == 1,
            "{arguments:?}: {error}"
        );
    }
    assert!(refusal(&["run", "malloc:///a?size=1MiB", "--time", "NaN"]).contains("number of seconds"));
    assert!(refusal(&["report", "--measure", "nonsense"]).contains("LABEL=URI"));
}

#[test]
fn runs_are_reported_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let measured = bench(&[
        "report",
        "--quiet",
        "--measure",
        "first=malloc:///a?size=64MiB",
        "--measure",
        "second=malloc:///b?size=64MiB",
        "--time",
        "0.01",
        "--warm-up",
        "0",
        "--output",
        &path("page.html"),
        "--save",
        &path("runs"),
        "--charts",
        &path("charts"),
    ]);
    assert!(
        measured.status.success(),
        "{}",
        String::from_utf8_lossy(&measured.stderr)
    );
    let page = std::fs::read_to_string(path("page.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 5);
    assert_eq!(page.matches("data:image/png;base64,").count(), 5);
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href=\"http"));
    assert_eq!(std::fs::read_dir(path("charts")).unwrap().count(), 10);
    let again = bench(&[
        "report",
        "--read",
        &path("runs/first.json"),
        "--read",
        &path("runs/second.json"),
        "--output",
        &path("again.html"),
    ]);
    assert!(
        again.status.success(),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
    assert_eq!(std::fs::read_to_string(path("again.html")).unwrap(), page);
}

/// What is on a device is safe unless it is said to be worth nothing.
#[test]
fn a_report_writes_over_nothing_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let content: Vec<u8> = (0..64u32 << 20).map(|index| (index % 251) as u8).collect();
    std::fs::write(&disk, &content).unwrap();
    let report = |more: &[&str]| {
        let target = format!("disk=uring://{}?direct=false", disk.display());
        let page = folder.path().join("page.html");
        let page = page.to_str().unwrap();
        let arguments = [
            "report",
            "--quiet",
            "--time",
            "0.01",
            "--warm-up",
            "0",
            "--output",
            page,
        ];
        let output = bench(&[&arguments[..], &["--measure", &target], more].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    report(&[]);
    assert!(std::fs::read(&disk).unwrap() == content);
    report(&["--destroy-data"]);
    assert!(std::fs::read(&disk).unwrap() != content);
}

/// All on one core, whatever it takes there.
#[test]
fn plain_sockets_answer_alone_and_with_replicas() {
    let one_core = ["--core", "0", "--first-client-core", "0", "--seconds", "0.2"];
    for (replicas, told) in [
        (&[][..], "replicas 1"),
        (&["--replica-cores", "0,0"], "replicas 3"),
    ] {
        let output = bench(&[&["socket-limit", "--write"], &one_core[..], replicas].concat());
        let (said, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success() && said.contains(told), "{said}{errors}");
    }
    assert!(refusal(&["socket-limit", "--replica-cores", "0"]).contains("--write"));
}
