//! Kernel modules, in the order in which they can be loaded.
//!
//! A module says which others it needs in its section `.modinfo`, a run of texts `key=value` that each end
//! with a zero byte: `depends=a,b` names those it cannot be loaded without.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, output_of};
use crate::packages::Packages;

/// What the guest needs: its network, NVMe/TCP, file systems, and what they look for by name while they
/// run; a target of its own, and disks in memory for it.
pub(crate) const WANTED: [&str; 9] = [
    "virtio_pci",
    "virtio_net",
    "crc32c_generic",
    "crc32c_intel",
    "nvme_tcp",
    "ext4",
    "xfs",
    "nvmet_tcp",
    "brd",
];

/// How deep modules may depend on others; there are no circles in a kernel that was built.
const DEPTH_MAX: usize = 32;

/// A module to load.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// Its file's content, not compressed.
    pub(crate) data: Vec<u8>,
}

/// The wanted modules and all that they depend on, those that others depend on first.
pub(crate) fn in_order(packages: &Packages, wanted: &[&str]) -> Result<Vec<Module>, Error> {
    let directory = packages.modules();
    let mut files = BTreeMap::new();
    find(&directory.join("kernel"), &mut files)?;
    let builtin_path = directory.join("modules.builtin");
    let builtin = std::fs::read_to_string(&builtin_path).context("read", &builtin_path)?;
    let builtin = builtin
        .lines()
        .filter_map(|line| name_of(Path::new(line)))
        .collect();
    let mut order = Order {
        packages,
        files,
        builtin,
        loaded: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in wanted {
        order.add(name, 0)?;
    }
    Ok(order.modules)
}

struct Order<'a> {
    packages: &'a Packages,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    loaded: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    fn add(&mut self, name: &str, depth: usize) -> Result<(), Error> {
        if self.builtin.contains(name) || self.loaded.contains(name) {
            return Ok(());
        }
        let path = self.files.get(name).filter(|_| depth < DEPTH_MAX);
        let Some(path) = path else {
            return Err(self.packages.lacks(&format!("kernel module {name}")));
        };
        let data = read(path)?;
        for other in depends(&data) {
            self.add(&other, depth + 1)?;
        }
        self.loaded.insert(name.to_owned());
        let name = name.to_owned();
        self.modules.push(Module { name, data });
        Ok(())
    }
}

fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    for entry in std::fs::read_dir(directory).context("read", directory)? {
        let entry = entry.context("read", directory)?;
        let path = entry.path();
        if entry.file_type().context("read", &path)?.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The name of the module in a file `NAME.ko` or `NAME.ko.xz`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return std::fs::read(path).context("read", path);
    }
    let unpacked = path.with_extension("");
    if !unpacked.exists() {
        output_of(Command::new("xz").arg("-dk").arg(path))?;
    }
    std::fs::read(&unpacked).context("read", &unpacked)
}

/// What a module says it depends on.
fn depends(data: &[u8]) -> Vec<String> {
    data.split(|byte| *byte == 0)
        .filter_map(|text| text.strip_prefix(b"depends="))
        .filter_map(|list| std::str::from_utf8(list).ok())
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modules() {
        let data = b"\x7fELF\0license=GPL\0depends=nvme-core,nvme_fabrics\0retpoline=Y\0";
        assert_eq!(depends(data), ["nvme_core", "nvme_fabrics"]);
        assert!(depends(b"\0depends=\0name=x\0").is_empty());
    }

    #[test]
    fn names_have_underscores() {
        for path in ["kernel/crc32c-intel.ko", "crc32c-intel.ko.xz"] {
            assert_eq!(name_of(Path::new(path)).as_deref(), Some("crc32c_intel"));
        }
        assert_eq!(name_of(Path::new("modules.order")), None);
    }
}
