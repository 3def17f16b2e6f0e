//! The style of the project as a test.
//!
//! What a reviewer would have to look for by hand each time, and rustfmt and clippy do not: words that
//! announce unfinished work, clocks and randomness above the driver seam, files nobody compiles, files too
//! long to be read, `unsafe` without an argument, arrows between crates that point up, paths of somebody's
//! machine.
//!
//! [`check`] reads a checkout and returns what it found; the test `workspace` expects that to be nothing.
//! Rules are plain functions on text (`rules`), so that each is tested on a few lines of its own.

#![forbid(unsafe_code)]

mod finding;
mod manifest;
mod modules;
mod rules;
mod source;
mod tree;

use std::io;
use std::path::Path;

pub use finding::Finding;
use source::Source;

/// Reads the checkout at `root` and returns everything that is against the style, by file and line.
///
/// # Errors
///
/// When the checkout cannot be read.
pub fn check(root: &Path) -> io::Result<Vec<Finding>> {
    let files = tree::files(root)?;
    let mut findings = rules::text::check_checkout(root, &files);
    let manifests = manifest::read_all(root, &files, &mut findings);
    rules::dependencies::check(&manifests, &mut findings);

    for package in &manifests {
        let modules = modules::walk(root, package, &files, &mut findings);
        let mut has_unsafe = false;
        for (path, kind) in &modules {
            let source = Source::new(path, &std::fs::read_to_string(root.join(path))?, *kind);
            rules::code::check(&source, package.layer(), &mut findings);
            has_unsafe |= rules::code::uses_unsafe(&source);
        }
        if !has_unsafe {
            rules::code::check_forbids_unsafe(root, package, &modules, &mut findings)?;
        }
    }
    for path in &files {
        rules::text::check_file(root, path, &mut findings)?;
    }
    findings.sort();
    findings.dedup();
    Ok(findings)
}
