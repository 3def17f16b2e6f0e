//! Rules on every file: length, width, white space, paths of somebody's machine, links, the licence.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::finding::Finding;

/// Lines in a file that a person is to read.
const LINES_MAX: usize = 800;

/// Characters in a line; `max_width` of rustfmt.
const COLUMNS_MAX: usize = 110;

/// Directories of every machine: a path below one of them is no one's own.
const COMMON_DIRECTORIES: [&str; 18] = [
    "bin", "boot", "dev", "etc", "lib", "media", "mnt", "opt", "proc", "run", "sbin", "srv", "sys", "tmp",
    "usr", "var", "data", "host",
];

/// Beginnings of paths of somebody's own.
const HOMES: [&str; 3] = ["/home/", "/root/", "/Users/"];

/// Files that must be there.
const REQUIRED: [&str; 3] = ["LICENSE", "README.md", "Cargo.lock"];

/// Extensions of files that are text and written by hand.
const TEXT: [&str; 9] = ["rs", "toml", "md", "proto", "sh", "yaml", "yml", "service", "svg"];

/// Checks what must be there.
pub(crate) fn check_checkout(root: &Path, files: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in REQUIRED {
        if !files.iter().any(|path| path == Path::new(name)) {
            findings.push(Finding::in_file(Path::new(name), "is missing"));
        }
    }
    let licence = std::fs::read_to_string(root.join("LICENSE")).unwrap_or_default();
    if !licence.contains("Apache License") || !licence.contains("Version 2.0") {
        findings.push(Finding::in_file(
            Path::new("LICENSE"),
            "is not the Apache License, Version 2.0",
        ));
    }
    findings
}

/// Checks one file, if it is text written by hand.
///
/// # Errors
///
/// When it cannot be read.
pub(crate) fn check_file(root: &Path, path: &Path, findings: &mut Vec<Finding>) -> io::Result<()> {
    let bytes = std::fs::read(root.join(path))?;
    let is_script = bytes.starts_with(b"#!");
    let is_text = path
        .extension()
        .is_some_and(|extension| TEXT.iter().any(|text| extension == *text));
    if !is_text && !is_script {
        return Ok(());
    }
    let Ok(text) = String::from_utf8(bytes) else {
        findings.push(Finding::in_file(path, "is not UTF-8"));
        return Ok(());
    };
    check_text(path, &text, &own_paths(root), findings);
    if is_script {
        check_script(path, &text, findings);
    }
    if path.extension().is_some_and(|extension| extension == "md") {
        check_links(path, &text, |target| root.join(target).exists(), findings);
    }
    Ok(())
}

/// Beginnings of paths that mean something on this machine only: homes, and where this checkout is.
fn own_paths(root: &Path) -> Vec<String> {
    let mut own: Vec<String> = HOMES.iter().map(ToString::to_string).collect();
    let first = root.components().find_map(|component| match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    if let Some(name) = first.filter(|name| !COMMON_DIRECTORIES.contains(name)) {
        own.push(format!("/{name}/"));
    }
    own
}

fn check_text(path: &Path, text: &str, own_paths: &[String], findings: &mut Vec<Finding>) {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let is_code = matches!(extension, Some("rs" | "proto" | "sh")) || text.starts_with("#!");
    let lines = text.lines().count();
    if is_code && lines > LINES_MAX {
        findings.push(Finding::in_file(
            path,
            format!("has {lines} lines, more than {LINES_MAX}: split it by what its parts do"),
        ));
    }
    for (index, line) in text.lines().enumerate() {
        let mut report = |message: String| findings.push(Finding::at(path, index + 1, message));
        let columns = line.chars().count();
        // An address cannot be broken.
        if is_code && columns > COLUMNS_MAX && !line.contains("://") {
            report(format!("has {columns} columns, more than {COLUMNS_MAX}"));
        }
        if line.ends_with([' ', '\t']) {
            report("ends in white space".to_owned());
        }
        if line.contains('\r') {
            report("ends in a carriage return".to_owned());
        }
        if line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ") {
            report("is left over from a merge".to_owned());
        }
        for own in own_paths {
            if has_path(line, own) {
                report(format!("names a path of one machine, below {own}"));
            }
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        findings.push(Finding::in_file(path, "does not end with a new line"));
    }
}

/// Whether a line has a path that begins with `own`; a longer path or a URI that merely contains it has not.
fn has_path(line: &str, own: &str) -> bool {
    line.match_indices(own).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + own.len()..].chars().next();
        !before.is_some_and(|character| character.is_alphanumeric() || "/.-_*<>{}".contains(character))
            && after.is_some_and(|character| character.is_alphanumeric() || "._".contains(character))
    })
}

fn check_script(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let is_shell = text
        .lines()
        .next()
        .is_some_and(|line| line.ends_with("sh") && !line.contains("python"));
    if is_shell && !text.contains("set -euo pipefail") && !text.contains("set -eu\n") {
        findings.push(Finding::in_file(
            path,
            "goes on after a failed command: write `set -euo pipefail`",
        ));
    }
}

/// Links of a Markdown file to files of the checkout lead somewhere.
fn check_links(path: &Path, text: &str, exists: impl Fn(&Path) -> bool, findings: &mut Vec<Finding>) {
    let directory = path.parent().unwrap_or(Path::new(""));
    for (index, line) in text.lines().enumerate() {
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains(':') {
                continue;
            }
            if !exists(&directory.join(target)) {
                findings.push(Finding::at(
                    path,
                    index + 1,
                    format!("links to {target}, which is not there"),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(name: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_text(Path::new(name), text, &["/home/".to_owned()], &mut findings);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn long_lines_and_files_are_found() {
        assert!(messages("a.rs", "fn a() {}\n").is_empty());
        assert_eq!(
            messages("a.rs", &format!("// {}\n", "x".repeat(COLUMNS_MAX))).len(),
            1
        );
        assert!(
            messages(
                "a.rs",
                &format!("// https://a.example/{}\n", "x".repeat(COLUMNS_MAX))
            )
            .is_empty()
        );
        assert!(messages("a.rs", &"\n".repeat(LINES_MAX)).is_empty());
        assert_eq!(messages("a.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
        assert!(messages("a.md", &format!("{}\n", "x".repeat(COLUMNS_MAX + 1))).is_empty());
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        let path = ["see /ho", "me/jane/notes\n"].concat();
        assert_eq!(messages("a.md", &path).len(), 1);
        assert!(messages("a.md", "https://x.example/home/page\n").is_empty());
    }

    #[test]
    fn where_the_checkout_is_counts_as_a_path_of_a_machine() {
        assert!(own_paths(Path::new("/somewhere/pollux")).contains(&"/somewhere/".to_owned()));
        assert_eq!(own_paths(Path::new("/tmp/pollux")).len(), HOMES.len());
    }

    #[test]
    fn white_space_is_found() {
        assert_eq!(messages("a.toml", "a = 1 \n").len(), 1);
        assert_eq!(messages("a.toml", "a = 1").len(), 1);
    }

    #[test]
    fn dead_links_are_found() {
        let mut findings = Vec::new();
        let text = "[a](there.md) [b](gone.md#part) [c](https://x.example) [d](#here)\n";
        check_links(
            Path::new("docs/a.md"),
            text,
            |path| path.ends_with("there.md"),
            &mut findings,
        );
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("gone.md"));
    }

    #[test]
    fn scripts_stop_at_errors() {
        let mut findings = Vec::new();
        check_script(Path::new("a"), "#!/usr/bin/env bash\ntrue\n", &mut findings);
        check_script(
            Path::new("b"),
            "#!/usr/bin/env bash\nset -euo pipefail\n",
            &mut findings,
        );
        assert_eq!(findings.len(), 1);
    }
}
