//! `pollux-engine doctor` on the machine that runs the tests, whatever it is.

use crate::common::{answer, run};

#[test]
fn json_tells_what_the_table_tells() {
    let output = run(&["doctor", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let verdict = report["verdict"].as_str().expect("a verdict");
    let code = if verdict == "cannot_run" { 1 } else { 0 };
    assert_eq!(output.status.code(), Some(code));
    for problem in report["problems"].as_array().expect("a list") {
        for field in ["severity", "what", "fix"] {
            assert!(!problem[field].as_str().expect("a text").is_empty());
        }
    }
    assert!(report["cores"]["usable_count"].as_u64().expect("a number") > 0);
    assert!(report["io_uring"]["available"].is_boolean());

    let table = run(&["doctor"]);
    assert_eq!(table.status.code(), Some(code));
    let table = answer(&table);
    let kernel = report["kernel"].as_str().expect("a text");
    assert!(table.contains(kernel), "{table}");
    for problem in report["problems"].as_array().expect("a list") {
        assert!(
            table.contains(problem["fix"].as_str().expect("a text")),
            "{table}"
        );
    }
    assert!(!table.contains('\x1b'), "{table}");
}

#[test]
fn an_unknown_format_is_a_usage_error() {
    assert_eq!(run(&["doctor", "-o", "xml"]).status.code(), Some(2));
}
