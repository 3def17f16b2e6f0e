//! Rules on Rust code: words that must not stand in it, `unsafe`, attributes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::finding::Finding;
use crate::manifest::Package;
use crate::source::{Kind, Source, line_of, occurrences};

/// Lines above an `unsafe` in which its argument must begin.
const SAFETY_DISTANCE_LINES: usize = 12;

/// Where a word is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Everywhere, tests too.
    Everywhere,
    /// In what users run.
    Product,
    /// In what users run, in the crates that read what a peer, a drive or a person wrote.
    Input,
    /// In what users run, in the crates that a simulator must be able to own.
    AboveSeam,
}

/// Crates that read what a peer, a drive or a person wrote.
const READS_INPUT: [&str; 10] = [
    "api", "control", "csi", "device", "engine", "http", "nbd", "nvme", "pool", "volume",
];

/// Crates that see clock, randomness, network and threads only through the driver of their reactor.
const ABOVE_SEAM: [&str; 6] = ["device", "nvme", "nbd", "pool", "volume", "sim"];

/// Files of those crates that stand outside of what is simulated, and why.
const OUTSIDE: [&str; 1] = [
    // Runs many worlds on threads of the real machine, and tells how many it does an hour.
    "engine/sim/src/campaign.rs",
];

/// Banned words in code, where, and what to do instead.
const BANNED: &[(&str, Scope, &str)] = &[
    ("dbg!", Scope::Everywhere, "remove it, or log with `tracing`"),
    ("todo!", Scope::Everywhere, "finish it"),
    ("unimplemented!", Scope::Everywhere, "finish it"),
    (
        "#[ignore",
        Scope::Everywhere,
        "a test that does not run is no test: mend it or delete it",
    ),
    ("allow(dead_code", Scope::Product, "delete what nothing uses"),
    ("allow(unused", Scope::Product, "delete what nothing uses"),
    (
        ".unwrap()",
        Scope::Product,
        "return an error, or `expect` with the reason it cannot fail",
    ),
    (".expect(\"\")", Scope::Product, "say why it cannot fail"),
    ("unreachable!()", Scope::Product, "say why it cannot be reached"),
    (
        "panic!",
        Scope::Input,
        "bad input is an error; for a broken invariant use `assert!` with its text",
    ),
    ("mem::forget", Scope::Input, "let the owner drop it"),
    (
        "env::var",
        Scope::Product,
        "environment variables are no internal wiring: make it a setting",
    ),
    (
        "env::var_os",
        Scope::Product,
        "environment variables are no internal wiring: make it a setting",
    ),
    (
        "env::set_var",
        Scope::Product,
        "environment variables are no internal wiring: make it a setting",
    ),
    (
        "thread::sleep",
        Scope::AboveSeam,
        "use `pollux_reactor::sleep`, which a simulator owns",
    ),
    (
        "thread::spawn",
        Scope::AboveSeam,
        "use `pollux_reactor::spawn`, which a simulator owns",
    ),
    (
        "thread_rng",
        Scope::AboveSeam,
        "use `pollux_reactor::random_u64`, which a simulator owns",
    ),
    (
        "rand::rng",
        Scope::AboveSeam,
        "use `pollux_reactor::random_u64`, which a simulator owns",
    ),
    (
        "rand::random",
        Scope::AboveSeam,
        "use `pollux_reactor::random_u64`, which a simulator owns",
    ),
    (
        "from_os_rng",
        Scope::AboveSeam,
        "use `pollux_reactor::random_u64`, which a simulator owns",
    ),
    (
        "new_v4",
        Scope::AboveSeam,
        "make the UUID from `pollux_reactor::random_u64`, which a simulator owns",
    ),
    (
        "TcpStream",
        Scope::AboveSeam,
        "use `pollux_reactor::net`, which a simulator owns",
    ),
    (
        "TcpListener",
        Scope::AboveSeam,
        "use `pollux_reactor::net`, which a simulator owns",
    ),
    (
        "UnixStream",
        Scope::AboveSeam,
        "use `pollux_reactor::net`, which a simulator owns",
    ),
    (
        "tokio",
        Scope::AboveSeam,
        "reactors never touch tokio; the daemons do",
    ),
];

/// Types of the standard library's clock.
const CLOCKS: [&str; 3] = ["Instant", "SystemTime", "UNIX_EPOCH"];

/// Words in comments that announce unfinished work.
const UNFINISHED: [&str; 4] = ["TODO", "FIXME", "XXX", "HACK"];

/// Beginnings of names of flags that are stored the wrong way round.
const NEGATED: [&str; 4] = ["no_", "not_", "disable_", "without_"];

/// Checks one file of a crate. `layer` is the name of the crate without `pollux-`.
pub(crate) fn check(source: &Source, layer: &str, findings: &mut Vec<Finding>) {
    let mut report = |at: usize, message: String| {
        findings.push(Finding::at(&source.path, source.line_of(at), message));
    };
    let is_binary = source.path.ends_with("src/main.rs") || source.path.iter().any(|part| part == "bin");
    let is_outside = OUTSIDE.iter().any(|path| source.path == Path::new(path));
    let above_seam = ABOVE_SEAM.contains(&layer) && !is_binary && !is_outside;
    let applies = |scope: Scope, at: usize| {
        let product = source.kind == Kind::Product && !source.is_test(source.line_of(at));
        match scope {
            Scope::Everywhere => true,
            Scope::Product => product,
            Scope::Input => product && READS_INPUT.contains(&layer),
            Scope::AboveSeam => product && above_seam,
        }
    };
    for (word, scope, instead) in BANNED {
        for at in occurrences(&source.code, word) {
            if applies(*scope, at) {
                report(at, format!("`{word}` is banned here: {instead}"));
            }
        }
    }
    for (at, clock) in standard_clocks(&source.code) {
        if applies(Scope::AboveSeam, at) {
            let message = format!(
                "`std::time::{clock}` is banned here: use `pollux_reactor::now`, which a simulator owns"
            );
            report(at, message);
        }
    }
    for word in UNFINISHED {
        for at in occurrences(&source.comments, word) {
            report(
                at,
                format!("`{word}` announces unfinished work: finish it, or say what is so"),
            );
        }
    }
    for at in silenced_without_reason(source) {
        report(at, "a lint is switched off without `reason = \"...\"`".to_owned());
    }
    for (at, name) in negated_flags(&source.code) {
        if applies(Scope::Product, at) {
            report(
                at,
                format!("the flag `{name}` is stored negated: name what is when it is true"),
            );
        }
    }
    for at in unsafe_without_argument(source) {
        report(at, "`unsafe` without a `// SAFETY:` comment above it".to_owned());
    }
}

/// `std::time::Instant`, alone or in a group of a `use`.
fn standard_clocks(code: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for (at, path) in code.match_indices("std::time::") {
        let rest = &code[at + path.len()..];
        let names = if rest.starts_with('{') {
            rest.split('}').next().unwrap_or(rest)
        } else {
            let len = rest
                .find(|character: char| !character.is_alphanumeric() && character != '_')
                .unwrap_or(rest.len());
            &rest[..len]
        };
        for clock in CLOCKS {
            if occurrences(names, clock).next().is_some() {
                found.push((at, clock));
            }
        }
    }
    found
}

/// `#[allow(...)]` and `#[expect(...)]` that do not say why.
fn silenced_without_reason(source: &Source) -> Vec<usize> {
    let mut found = Vec::new();
    for opening in ["#[allow(", "#[expect(", "#![allow(", "#![expect("] {
        for (at, _) in source.code.match_indices(opening) {
            let end = source.code[at..]
                .find(']')
                .map_or(source.code.len(), |len| at + len);
            if !source.code[at..end].contains("reason") {
                found.push(at);
            }
        }
    }
    found
}

/// Fields and arguments such as `no_cache: bool`.
fn negated_flags(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(": bool") {
        let start = code[..at]
            .rfind(|character: char| !character.is_alphanumeric() && character != '_')
            .map_or(0, |position| position + 1);
        let name = &code[start..at];
        if NEGATED.iter().any(|prefix| name.starts_with(prefix)) {
            found.push((start, name.to_owned()));
        }
    }
    found
}

/// `unsafe` blocks and implementations with no comment that argues for them.
fn unsafe_without_argument(source: &Source) -> Vec<usize> {
    let comments: Vec<&str> = source.comments.lines().collect();
    occurrences(&source.code, "unsafe")
        .filter(|at| {
            let after = source.code[at + "unsafe".len()..].trim_start();
            after.starts_with('{') || after.starts_with("impl")
        })
        .filter(|at| {
            let line = line_of(&source.code, *at);
            let first = line.saturating_sub(SAFETY_DISTANCE_LINES + 1);
            !comments
                .iter()
                .take(line)
                .skip(first)
                .any(|comment| comment.contains("SAFETY:"))
        })
        .collect()
}

/// Whether a file has `unsafe` in its code.
pub(crate) fn uses_unsafe(source: &Source) -> bool {
    occurrences(&source.code, "unsafe").next().is_some()
}

/// A crate without `unsafe` says so in its root, so that it stays so.
///
/// # Errors
///
/// When a file cannot be read.
pub(crate) fn check_forbids_unsafe(
    root: &Path,
    package: &Package,
    modules: &BTreeMap<PathBuf, Kind>,
    findings: &mut Vec<Finding>,
) -> io::Result<()> {
    for name in ["src/lib.rs", "src/main.rs"] {
        let path = package.directory.join(name);
        if !modules.contains_key(&path) {
            continue;
        }
        let text = std::fs::read_to_string(root.join(&path))?;
        let source = Source::new(&path, &text, Kind::Product);
        if !source.code.contains("#![forbid(unsafe_code)]") {
            findings.push(Finding::in_file(
                &path,
                "the crate has no `unsafe`: keep it so with `#![forbid(unsafe_code)]`",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(layer: &str, kind: Kind, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check(
            &Source::new(Path::new("src/file.rs"), text, kind),
            layer,
            &mut findings,
        );
        findings.iter().map(ToString::to_string).collect()
    }

    fn is_found(layer: &str, kind: Kind, text: &str) -> bool {
        !messages(layer, kind, text).is_empty()
    }

    #[test]
    fn banned_calls_are_found_where_they_are_calls() {
        assert_eq!(
            messages("device", Kind::Product, "fn f() {\n    todo!()\n}").len(),
            1
        );
        assert!(
            messages("device", Kind::Product, "fn f() {\n    todo!()\n}")[0].starts_with("src/file.rs:2: ")
        );
        assert!(!is_found(
            "device",
            Kind::Product,
            "const TEXT: &str = \"todo!()\"; // calls todo!() never"
        ));
        assert!(is_found("device", Kind::Test, "fn f() { dbg!(1); }"));
    }

    #[test]
    fn unwrap_is_for_tests() {
        assert!(is_found("device", Kind::Product, "fn f() { g().unwrap(); }"));
        assert!(!is_found("device", Kind::Test, "fn f() { g().unwrap(); }"));
        assert!(!is_found(
            "device",
            Kind::Product,
            "#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap(); }\n}"
        ));
        assert!(is_found("device", Kind::Product, "fn f() { g().expect(\"\"); }"));
        assert!(!is_found(
            "device",
            Kind::Product,
            "fn f() { g().expect(\"the list is never empty\"); }"
        ));
    }

    #[test]
    fn clocks_are_banned_above_the_seam_only() {
        for text in [
            "use std::time::Instant;",
            "use std::time::{Duration, SystemTime};",
            "fn f() { std::thread::sleep(x); }",
            "fn f() -> u64 { rand::random() }",
        ] {
            assert!(is_found("nvme", Kind::Product, text), "{text}");
            assert!(!is_found("reactor", Kind::Product, text), "{text}");
            assert!(!is_found("nvme", Kind::Test, text), "{text}");
        }
        assert!(!is_found(
            "nvme",
            Kind::Product,
            "use std::time::Duration; use pollux_reactor::Instant;"
        ));
    }

    #[test]
    fn unfinished_work_is_found_in_comments() {
        let comment = ["// TO", "DO: later"].concat();
        assert!(is_found("device", Kind::Test, &comment));
        assert!(!is_found("device", Kind::Test, "// what is to do"));
    }

    #[test]
    fn unsafe_needs_an_argument() {
        assert!(is_found("reactor", Kind::Product, "fn f() { unsafe { g() } }"));
        assert!(!is_found(
            "reactor",
            Kind::Product,
            "fn f() {\n    // SAFETY: g is fine.\n    unsafe { g() }\n}"
        ));
        assert!(!is_found("reactor", Kind::Product, "#![forbid(unsafe_code)]"));
    }

    #[test]
    fn silenced_lints_say_why() {
        assert!(is_found(
            "reactor",
            Kind::Product,
            "#[allow(clippy::foo)]\nfn f() {}"
        ));
        assert!(!is_found(
            "reactor",
            Kind::Product,
            "#[allow(clippy::foo, reason = \"so\")]\nfn f() {}"
        ));
    }

    #[test]
    fn negated_flags_are_found() {
        assert!(is_found("reactor", Kind::Product, "struct A { no_cache: bool }"));
        assert!(!is_found(
            "reactor",
            Kind::Product,
            "struct A { node_local: bool, notify: bool }"
        ));
    }
}
