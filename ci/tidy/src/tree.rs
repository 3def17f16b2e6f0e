//! The files of a checkout.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Directories that are never part of the sources, where git cannot be asked.
const SKIPPED_DIRECTORIES: [&str; 4] = [".git", "target", "corpus", "artifacts"];

/// Every file of the checkout, from its root, sorted: what git tracks or would, or without git what is there.
pub(crate) fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = match listed_by_git(root) {
        Some(files) => files,
        None => {
            let mut found = Vec::new();
            walk(root, Path::new(""), &mut found)?;
            found
        }
    };
    // Git lists a file that was deleted until the deletion is staged.
    files.retain(|path| root.join(path).is_file());
    files.sort();
    Ok(files)
}

fn listed_by_git(root: &Path) -> Option<Vec<PathBuf>> {
    if !root.join(".git").exists() {
        return None;
    }
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .ok()?;
    let names = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| {
        names
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from)
            .collect()
    })
}

fn walk(root: &Path, directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let skipped = SKIPPED_DIRECTORIES
                .iter()
                .any(|name| path.file_name() == Some(OsStr::new(name)));
            if !skipped {
                walk(root, &path, found)?;
            }
        } else if kind.is_file() {
            found.push(path);
        }
    }
    Ok(())
}
