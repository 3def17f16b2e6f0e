//! Arrows between crates point down only, and every crate is set up alike.
//!
//! [`ARROWS`] is the picture of the house in `README.md`, one line a crate: what it may build on directly.
//! What that builds on may be used too.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::finding::Finding;
use crate::manifest::Package;

/// For each crate, without `pollux-`, the crates right below it.
const ARROWS: &[(&str, &[&str])] = &[
    ("csi", &["api", "tls", "trace"]),
    ("control", &["api", "http", "nqn", "ports", "trace"]),
    ("engine", &["api", "http", "trace", "volume", "nbd"]),
    ("bench", &["api", "ports", "volume", "nbd", "sim"]),
    ("simulator", &["sim"]),
    ("sim", &["volume", "nbd"]),
    ("volume", &["pool", "nvme"]),
    ("nbd", &["device"]),
    ("nvme", &["device", "nqn"]),
    ("pool", &["device"]),
    ("device", &["reactor", "spdk-sys"]),
    ("reactor", &["hugepages"]),
    ("hugepages", &[]),
    ("spdk-sys", &[]),
    ("api", &[]),
    ("http", &["tls"]),
    ("tls", &[]),
    ("trace", &[]),
    ("nqn", &[]),
    ("ports", &[]),
    ("lab", &["ports"]),
    ("tidy", &[]),
];

/// Crates of threads that wait, which must not reach a reactor, and who may use them all the same.
const WAITING_CRATES: [&str; 5] = ["tokio", "tonic", "hyper", "axum", "async-std"];
const MAY_WAIT: [&str; 8] = ["api", "http", "tls", "trace", "engine", "control", "csi", "bench"];

/// What every crate takes from the workspace.
const INHERITED: [&str; 4] = ["version", "edition", "rust-version", "license"];

/// Checks all manifests.
pub(crate) fn check(packages: &[Package], findings: &mut Vec<Finding>) {
    for package in packages {
        let path = package.path();
        let mut report = |message: String| findings.push(Finding::in_file(&path, message));
        let layer = package.layer();
        // A fuzz package stands beside the crate it fuzzes, and is a test of it.
        let fuzzed = layer.strip_suffix("-fuzz");
        let subject = fuzzed.unwrap_or(layer);
        let Some(below) = reachable(subject) else {
            report(format!(
                "crate `{}` has no place in the house: add it, and what is below it, to `ARROWS` in ci/tidy",
                package.name
            ));
            continue;
        };
        // Tests of a layer may run it in the simulator, which is built on that very layer.
        let mut below_tests = below.clone();
        below_tests.extend(reachable("sim").unwrap_or_default());
        if MAY_WAIT.contains(&subject) {
            below_tests.extend(reachable("engine").unwrap_or_default());
        }
        // The driver is tested with the control plane that it asks.
        if subject == "csi" {
            below_tests.extend(reachable("control").unwrap_or_default());
        }
        let below = if fuzzed.is_some() { &below_tests } else { &below };
        check_table(package, "dependencies", subject, below, &mut report);
        check_table(package, "build-dependencies", subject, below, &mut report);
        check_table(package, "dev-dependencies", subject, &below_tests, &mut report);
        if package.is_member {
            check_inherited(&package.manifest, &mut report);
        } else if fuzzed.is_none() {
            report("is not a member of the workspace".to_owned());
        }
    }
}

/// Everything below a crate and the crate itself; nothing if it is not known.
fn reachable(layer: &str) -> Option<BTreeSet<&'static str>> {
    let arrows = |name: &str| ARROWS.iter().find(|(from, _)| *from == name);
    let mut open = vec![arrows(layer)?];
    let mut seen = BTreeSet::new();
    while let Some((name, below)) = open.pop() {
        if seen.insert(*name) {
            open.extend(below.iter().filter_map(|name| arrows(name)));
        }
    }
    Some(seen)
}

fn check_table(
    package: &Package,
    table: &str,
    subject: &str,
    below: &BTreeSet<&str>,
    report: &mut impl FnMut(String),
) {
    let Some(dependencies) = package.manifest.get(table).and_then(Value::as_table) else {
        return;
    };
    for (name, value) in dependencies {
        if let Some(other) = name.strip_prefix("pollux-")
            && !below.contains(other)
        {
            report(format!(
                "[{table}] {name}: {subject} must not depend on {other}: arrows point down only \
                 (`ARROWS` in ci/tidy)"
            ));
        }
        if WAITING_CRATES.contains(&name.as_str()) && !MAY_WAIT.contains(&subject) {
            report(format!(
                "[{table}] {name}: reactors never wait; only {} may use it",
                MAY_WAIT.join(", ")
            ));
        }
        if package.is_member && !is_inherited(value) {
            report(format!(
                "[{table}] {name}: write `{name}.workspace = true` and its version into the root Cargo.toml"
            ));
        }
    }
}

fn check_inherited(manifest: &Table, report: &mut impl FnMut(String)) {
    let package = manifest.get("package").and_then(Value::as_table);
    for key in INHERITED {
        if !package
            .and_then(|package| package.get(key))
            .is_some_and(is_inherited)
        {
            report(format!("[package] {key}: write `{key}.workspace = true`"));
        }
    }
    if !package.is_some_and(|package| package.contains_key("description")) {
        report("[package] has no description".to_owned());
    }
    if !manifest.get("lints").is_some_and(is_inherited) {
        report("[lints] is missing: write `workspace = true` below it".to_owned());
    }
}

fn is_inherited(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn messages(name: &str, dependencies: &str) -> Vec<String> {
        let text = format!(
            "[package]\nname = \"{name}\"\ndescription = \"d\"\nversion.workspace = true\n\
             edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n\
             [lints]\nworkspace = true\n{dependencies}"
        );
        let package = Package {
            directory: PathBuf::from("somewhere"),
            name: name.to_owned(),
            manifest: text.parse().expect("a manifest"),
            is_member: true,
        };
        let mut findings = Vec::new();
        check(&[package], &mut findings);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn arrows_down_are_fine() {
        let found = messages(
            "pollux-nvme",
            "[dependencies]\npollux-hugepages.workspace = true\n",
        );
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn arrows_up_and_sideways_are_found() {
        for (name, other) in [
            ("pollux-device", "nvme"),
            ("pollux-nvme", "pool"),
            ("pollux-hugepages", "reactor"),
            ("pollux-control", "engine"),
        ] {
            let found = messages(
                name,
                &format!("[dependencies]\npollux-{other}.workspace = true\n"),
            );
            assert_eq!(found.len(), 1, "{found:?}");
        }
    }

    #[test]
    fn tests_may_use_the_simulator() {
        let found = messages("pollux-nvme", "[dev-dependencies]\npollux-sim.workspace = true\n");
        assert!(found.is_empty(), "{found:?}");
        let found = messages("pollux-nvme", "[dependencies]\npollux-sim.workspace = true\n");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn fuzz_targets_are_tests_of_their_crate() {
        for (other, count) in [("nvme", 0), ("sim", 0), ("engine", 1)] {
            let found = messages(
                "pollux-nvme-fuzz",
                &format!("[dependencies]\npollux-{other}.workspace = true\n"),
            );
            assert_eq!(found.len(), count, "{found:?}");
        }
    }

    #[test]
    fn reactors_do_not_wait() {
        assert_eq!(
            messages("pollux-device", "[dependencies]\ntokio.workspace = true\n").len(),
            1
        );
        assert!(messages("pollux-engine", "[dependencies]\ntokio.workspace = true\n").is_empty());
    }

    #[test]
    fn unknown_crates_and_own_versions_are_found() {
        assert_eq!(messages("pollux-new", "").len(), 1);
        assert_eq!(
            messages("pollux-device", "[dependencies]\nslab = \"0.4\"\n").len(),
            1
        );
    }

    #[test]
    fn the_house_has_no_cycles() {
        for (name, below) in ARROWS {
            for other in *below {
                let further = reachable(other).unwrap_or_default();
                assert!(!further.is_empty(), "{name} -> {other}: unknown");
                assert!(!further.contains(name), "{name} -> {other} -> {name}");
            }
        }
    }
}
