//! What the Cargo.toml files say.

use std::path::{Path, PathBuf};

use toml::Table;

use crate::finding::Finding;

/// A package of the workspace, or one that stands apart from it (fuzz targets).
#[derive(Debug)]
pub(crate) struct Package {
    /// Its directory, from the root of the checkout.
    pub(crate) directory: PathBuf,
    /// Its name.
    pub(crate) name: String,
    /// Its Cargo.toml.
    pub(crate) manifest: Table,
    /// Whether it is a member of the workspace.
    pub(crate) is_member: bool,
}

impl Package {
    /// Where its Cargo.toml is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join("Cargo.toml")
    }

    /// The name without what all packages have in common.
    pub(crate) fn layer(&self) -> &str {
        self.name.strip_prefix("pollux-").unwrap_or(&self.name)
    }
}

/// Reads every package. What cannot be read is a finding.
pub(crate) fn read_all(root: &Path, files: &[PathBuf], findings: &mut Vec<Finding>) -> Vec<Package> {
    let read = |path: &Path, findings: &mut Vec<Finding>| -> Option<Table> {
        let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        text.parse()
            .map_err(|error| findings.push(Finding::in_file(path, format!("is no TOML: {error}"))))
            .ok()
    };
    let workspace = read(Path::new("Cargo.toml"), findings).unwrap_or_default();
    let members: Vec<&str> = workspace
        .get("workspace")
        .and_then(|table| table.get("members")?.as_array())
        .into_iter()
        .flatten()
        .filter_map(|member| member.as_str())
        .collect();

    let mut packages = Vec::new();
    for path in files.iter().filter(|path| path.ends_with("Cargo.toml")) {
        let Some(manifest) = read(path, findings) else {
            continue;
        };
        let name = manifest
            .get("package")
            .and_then(|package| package.get("name")?.as_str());
        let (Some(name), Some(directory)) = (name, path.parent()) else {
            continue;
        };
        packages.push(Package {
            is_member: members.iter().any(|member| Path::new(member) == directory),
            directory: directory.to_owned(),
            name: name.to_owned(),
            manifest,
        });
    }
    packages
}
