//! Which Rust files are compiled, found by following `mod` from the roots of a package.
//!
//! A file that nothing leads to is dead: it is never compiled, so it rots, and who reads it is misled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::finding::Finding;
use crate::manifest::Package;
use crate::source::{Kind, Source, is_test_attribute, line_of, occurrences};

/// Every Rust file of a package that is compiled, and for what.
pub(crate) fn walk(
    root: &Path,
    package: &Package,
    files: &[PathBuf],
    findings: &mut Vec<Finding>,
) -> BTreeMap<PathBuf, Kind> {
    let own: Vec<&Path> = files
        .iter()
        .map(PathBuf::as_path)
        .filter(|path| is_own(package, path, files))
        .collect();
    let mut found = BTreeMap::new();
    let mut queue = roots(package, &own);
    while let Some((path, kind, is_root)) = queue.pop() {
        // A file may be a module of a library and of its tests: what the product compiles counts as product.
        let known = found.get(&path).copied();
        if known == Some(Kind::Product) || known == Some(kind) {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root.join(&path)) else {
            continue;
        };
        found.insert(path.clone(), kind);
        let source = Source::new(&path, &text, kind);
        for declared in declarations(&source) {
            let base = if is_root || path.ends_with("mod.rs") {
                path.parent().unwrap_or(Path::new("")).to_owned()
            } else {
                path.with_extension("")
            };
            let candidates = declared.candidates(&base, path.parent().unwrap_or(Path::new("")));
            match candidates.iter().find(|path| own.contains(&path.as_path())) {
                Some(module) => {
                    let kind = if declared.is_test { Kind::Test } else { kind };
                    queue.push((module.clone(), kind, false));
                }
                // A file that a fuzz target and the tests beside it share: its own package answers for it.
                None if candidates.iter().any(|path| files.contains(path)) => {}
                None => findings.push(Finding::at(
                    &path,
                    declared.line,
                    format!("module `{}` has no file in the checkout", declared.name),
                )),
            }
        }
    }
    for path in own {
        if path.extension().is_some_and(|extension| extension == "rs") && !found.contains_key(path) {
            findings.push(Finding::in_file(
                path,
                "is compiled by nothing: declare it with `mod` or delete it",
            ));
        }
    }
    found
}

/// Whether a file belongs to this package and not to one in a directory below.
fn is_own(package: &Package, path: &Path, files: &[PathBuf]) -> bool {
    path.starts_with(&package.directory)
        && !path
            .ancestors()
            .skip(1)
            .take_while(|directory| {
                *directory != package.directory.as_path() && directory.starts_with(&package.directory)
            })
            .any(|directory| files.contains(&directory.join("Cargo.toml")))
}

/// What cargo compiles by itself: the library, binaries, tests, benchmarks, examples, and what the manifest
/// names.
fn roots(package: &Package, own: &[&Path]) -> Vec<(PathBuf, Kind, bool)> {
    let mut roots = Vec::new();
    for path in own {
        let Ok(inside) = path.strip_prefix(&package.directory) else {
            continue;
        };
        let parts: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
        let kind = match parts.as_slice() {
            ["src", "lib.rs" | "main.rs"] => Kind::Product,
            ["src", "bin", name] if name.ends_with(".rs") => Kind::Product,
            ["src", "bin", _, "main.rs"] => Kind::Product,
            ["build.rs"] => Kind::Build,
            ["tests" | "benches" | "examples", name] if name.ends_with(".rs") => Kind::Test,
            ["tests" | "benches" | "examples", _, "main.rs"] => Kind::Test,
            _ => continue,
        };
        roots.push((path.to_path_buf(), kind, true));
    }
    for (table, kind) in [
        ("lib", Kind::Product),
        ("bin", Kind::Product),
        ("test", Kind::Test),
        ("bench", Kind::Test),
        ("example", Kind::Test),
    ] {
        let value = package.manifest.get(table);
        let targets = value.and_then(|value| value.as_array()).into_iter().flatten();
        for target in targets.chain(value.filter(|value| value.is_table())) {
            if let Some(path) = target.get("path").and_then(|path| path.as_str()) {
                roots.push((package.directory.join(path), kind, true));
            }
        }
    }
    roots
}

/// `mod name;`, and the modules with a body around it.
struct Declaration {
    name: String,
    inside: Vec<String>,
    path_attribute: Option<String>,
    is_test: bool,
    line: usize,
}

impl Declaration {
    fn candidates(&self, base: &Path, directory: &Path) -> Vec<PathBuf> {
        if let Some(path) = &self.path_attribute {
            return vec![without_dots(&directory.join(path))];
        }
        let base = self
            .inside
            .iter()
            .fold(base.to_owned(), |base, name| base.join(name));
        vec![
            base.join(format!("{}.rs", self.name)),
            base.join(&self.name).join("mod.rs"),
        ]
    }
}

/// The path with each `..` taken back.
fn without_dots(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in path.components() {
        if part.as_os_str() != ".." || !result.pop() {
            result.push(part);
        }
    }
    result
}

fn declarations(source: &Source) -> Vec<Declaration> {
    let code = &source.code;
    let mut found = Vec::new();
    // Modules with a body that are open, each with the byte after its end.
    let mut open: Vec<(String, usize)> = Vec::new();
    for at in occurrences(code, "mod") {
        open.retain(|(_, end)| at < *end);
        let rest = code[at + 3..].trim_start();
        let name: String = rest
            .chars()
            .take_while(|character| character.is_alphanumeric() || *character == '_')
            .collect();
        let after = rest[name.len()..].trim_start();
        if name.is_empty() {
            continue;
        }
        if after.starts_with('{') {
            if let Some(end) = crate::source::block_end(code, at) {
                open.push((name, end));
            }
        } else if after.starts_with(';') {
            let attributes = attributes_before(code, at);
            let line = line_of(code, at);
            found.push(Declaration {
                path_attribute: attributes.iter().find_map(|range| {
                    let text = source.text.get(range.clone())?;
                    let value = text.strip_prefix("path")?.trim_start().strip_prefix('=')?;
                    Some(value.trim().trim_matches('"').to_owned())
                }),
                is_test: source.is_test(line)
                    || attributes
                        .iter()
                        .any(|range| source.text.get(range.clone()).is_some_and(is_test_attribute)),
                inside: open.iter().map(|(name, _)| name.clone()).collect(),
                name,
                line,
            });
        }
    }
    found
}

/// The attributes of the item whose keyword is at `at`, without `#[` and `]`.
fn attributes_before(code: &str, at: usize) -> Vec<std::ops::Range<usize>> {
    let start = code[..at]
        .rfind([';', '}', '{'])
        .map_or(0, |position| position + 1);
    code[start..at]
        .match_indices("#[")
        .filter_map(|(offset, _)| {
            let from = start + offset + 2;
            let len = code[from..at].find(']')?;
            Some(from..from + len)
        })
        .collect()
}
