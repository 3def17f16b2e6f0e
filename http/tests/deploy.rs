//! What is deployed speaks of metrics that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pollux_http::families;
use pollux_http::metrics::Kind;
use serde_json::Value;

fn deployed(path: &str) -> String {
    let path = root().join("deploy").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All series that a daemon tells, by name.
fn series() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for family in families::all() {
        match family.kind {
            Kind::Histogram => {
                names.extend(["_bucket", "_sum", "_count"].map(|part| format!("{}{part}", family.name)));
            }
            Kind::Counter | Kind::Gauge => drop(names.insert(family.name.to_owned())),
        }
    }
    names
}

/// The names of metrics in an expression.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| word.starts_with("pollux_"))
        .map(str::to_owned)
        .collect()
}

/// Labels that an expression asks for or groups by are those of its metrics.
fn check(expression: &str, place: &str) {
    let known = series();
    let names = named(expression);
    assert!(!names.is_empty(), "{place}: {expression} asks for nothing");
    let mut labels: BTreeSet<&str> = ["le", "instance", "job"].into();
    for name in &names {
        assert!(known.contains(name), "{place}: there is no {name}");
        let family = families::all().find(|family| {
            name == family.name
                || name
                    .strip_prefix(family.name)
                    .is_some_and(|part| part.starts_with('_'))
                    && family.kind == Kind::Histogram
        });
        labels.extend(family.into_iter().flat_map(|family| family.labels));
        let is_counter = family.is_some_and(|family| family.kind != Kind::Gauge);
        let is_rated = ["rate(", "increase(", "label_values("]
            .iter()
            .any(|call| expression.contains(call));
        let is_told = name.ends_with("media_errors_total");
        assert!(
            !is_counter || is_rated || is_told,
            "{place}: {name} only grows: take its rate"
        );
    }
    for group in expression.split(" by (").skip(1) {
        for label in group.split(')').next().unwrap_or_default().split(',') {
            assert!(
                labels.contains(label.trim()),
                "{place}: no label {label} in {expression}"
            );
        }
    }
    for selector in expression.split('{').skip(1) {
        for part in selector.split('}').next().unwrap_or_default().split(',') {
            let label = part.split(['=', '!']).next().unwrap_or_default().trim();
            assert!(
                labels.contains(label),
                "{place}: no label {label} in {expression}"
            );
        }
    }
}

#[test]
fn the_dashboard_asks_for_what_is_told() {
    let dashboard: Value = serde_json::from_str(&deployed("grafana/pollux.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut asked = BTreeSet::new();
    let mut identifiers = BTreeSet::new();
    for panel in panels {
        assert!(
            identifiers.insert(panel["id"].as_u64()),
            "{panel} has an identifier of another one"
        );
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("a text");
            check(expression, panel["title"].as_str().expect("a title"));
            asked.extend(named(expression));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            named(query)
                .iter()
                .for_each(|name| assert!(series().contains(name), "{name}"));
        }
    }
    assert!(asked.len() > 20, "{asked:?}");
}

#[test]
fn alerts_ask_for_what_is_told_and_say_what_to_do() {
    let text = deployed("prometheus/alerts.yaml");
    let rules: Vec<&str> = text.split("- alert: ").skip(1).collect();
    assert!(rules.len() >= 10);
    for rule in rules {
        let name = rule.lines().next().unwrap_or_default();
        let expression = rule.lines().find_map(|line| line.trim().strip_prefix("expr: "));
        let expression = expression.expect("an expression");
        check(expression, name);
        // The sum of nothing is nothing, and no number: all being away must not silence it.
        let is_of_too_few = expression.starts_with("sum(") && expression.contains(" < ");
        assert!(
            !is_of_too_few,
            "{name}: say what holds when nobody tells: `or vector(0)`"
        );
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
    }
}

/// The units are what systemd takes, where there is one to ask.
#[test]
fn units_are_units() {
    let directory = root().join("deploy/systemd");
    let units: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "service"))
        .collect();
    assert!(units.len() >= 2);
    for unit in &units {
        let text = std::fs::read_to_string(unit).expect("UTF-8");
        for section in ["[Unit]", "[Service]", "[Install]"] {
            assert!(text.contains(section), "{}: {section}", unit.display());
        }
    }
    let mut verify = std::process::Command::new("systemd-analyze");
    let Ok(output) = verify.arg("verify").args(&units).output() else {
        eprintln!("systemd-analyze is not here: only the sections were looked at");
        return;
    };
    let told = String::from_utf8_lossy(&output.stderr);
    // The programs need not be installed where this is checked.
    let wrong = |line: &&str| {
        line.contains(".service") && !line.contains("is not executable") && !line.contains("man ")
    };
    let errors: Vec<&str> = told.lines().filter(wrong).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}
