//! Debian packages, downloaded once and unpacked into a directory; nothing is installed on this machine.
//!
//! `target/lab/root` holds the files of all packages and `packages` a line with what was asked for and a line
//! each with the versions. It is written last: without it, or if something else is wanted by now, the
//! directory is made anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, output_of};

/// What scenarios and the init need; what these depend on comes with them.
const PROGRAMS: [&str; 6] = [
    "btrfs-progs",
    "busybox-static",
    "e2fsprogs",
    "nvme-cli",
    "util-linux",
    "xfsprogs",
];

/// By what the lists of Debian are signed.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The kernel: a package without files that depends on that of the newest version.
const KERNEL: &str = "linux-image-amd64";

/// Beginnings of names of packages that programs depend on for parts that are not used here.
const UNUSED: [&str; 10] = [
    "adduser",
    "cdebconf",
    "debconf",
    "gcc-",
    "libperl",
    "libpython",
    "mailcap",
    "perl",
    "python",
    "usrmerge",
];

/// Unpacked packages.
#[derive(Debug)]
pub(crate) struct Packages {
    /// Where their files are.
    pub(crate) root: PathBuf,
    /// The version of the kernel, as its modules name it.
    pub(crate) kernel_release: String,
}

impl Packages {
    /// The packages below `cache`, downloaded if they are not there. The kernel is that of another suite of
    /// Debian than this machine's if one is named.
    pub(crate) fn obtain(cache: &Path, suite: Option<&str>) -> Result<Self, Error> {
        let cache = &suite.map_or(cache.to_owned(), |suite| cache.join(suite));
        let root = cache.join("root");
        let list = cache.join("packages");
        let known = std::fs::read_to_string(&list).unwrap_or_default();
        if known.lines().next() != Some(&wanted()) {
            download(cache, &root, &list, suite)?;
        }
        let modules = root.join("lib/modules");
        let mut releases = Vec::new();
        for entry in std::fs::read_dir(&modules).context("read", &modules)? {
            let entry = entry.context("read", &modules)?;
            releases.push(entry.file_name().to_string_lossy().into_owned());
        }
        let kernel_release = releases.into_iter().max().ok_or_else(|| Error::NotInPackages {
            name: "kernel modules".to_owned(),
            root: root.clone(),
        })?;
        Ok(Self { root, kernel_release })
    }

    /// The kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.kernel_release))
    }

    /// Its modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.kernel_release)
    }

    /// Where shared libraries are.
    pub(crate) fn library_directories(&self) -> [PathBuf; 2] {
        ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| self.root.join(path))
    }

    /// The file of a program.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf, Error> {
        ["usr/sbin", "usr/bin", "sbin", "bin"]
            .iter()
            .map(|directory| self.root.join(directory).join(name))
            .find(|path| path.is_file())
            .ok_or_else(|| self.lacks(name))
    }

    /// The error for something that is not there.
    pub(crate) fn lacks(&self, name: &str) -> Error {
        Error::NotInPackages {
            name: name.to_owned(),
            root: self.root.clone(),
        }
    }
}

/// What is asked for, in one line.
fn wanted() -> String {
    format!("{} {KERNEL}", PROGRAMS.join(" "))
}

fn download(cache: &Path, root: &Path, list: &Path, suite: Option<&str>) -> Result<(), Error> {
    let archives = cache.join("archives");
    for directory in [&archives, &root.to_owned()] {
        if directory.exists() {
            std::fs::remove_dir_all(directory).context("remove", directory)?;
        }
        std::fs::create_dir_all(directory).context("make", directory)?;
    }
    let own = Apt::default();
    let other = suite.map(|suite| Apt::of_suite(cache, suite)).transpose()?;
    own.download(&own.closure(&PROGRAMS, true)?, &archives)?;
    let apt = other.as_ref().unwrap_or(&own);
    let kernel = apt.closure(&[KERNEL], false)?.into_iter();
    let images = kernel.filter(|name| name.starts_with("linux-image-") && name != KERNEL);
    apt.download(&images.take(1).collect(), &archives)?;
    let mut versions = BTreeSet::new();
    for entry in std::fs::read_dir(&archives).context("read", &archives)? {
        let path = entry.context("read", &archives)?.path();
        output_of(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
        versions.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    std::fs::remove_dir_all(&archives).context("remove", &archives)?;
    let lines: Vec<String> = std::iter::once(wanted()).chain(versions).collect();
    std::fs::write(list, lines.join("\n") + "\n").context("write", list)
}

/// Where packages come from.
#[derive(Debug, Default)]
struct Apt {
    /// What its programs are told; nothing for the sources of this machine.
    options: Vec<String>,
}

impl Apt {
    /// Another suite of where this machine has Debian from. Its lists are below `cache`, and what this
    /// machine knows of packages stays as it is.
    fn of_suite(cache: &Path, suite: &str) -> Result<Self, Error> {
        let targets = output_of(Command::new("apt-get").args([
            "indextargets",
            "--format=$(REPO_URI)",
            "Created-By: Packages",
            "Origin: Debian",
        ]))?;
        let mirror = mirror(&targets).ok_or_else(|| {
            Error::Missing("no source of Debian is known here; see sources.list(5)".to_owned())
        })?;
        let directory = cache.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            let part = directory.join(part);
            std::fs::create_dir_all(&part).context("make", &part)?;
        }
        let sources = directory.join("sources.list");
        let line = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        std::fs::write(&sources, line).context("write", &sources)?;
        let apt = Self {
            options: vec![
                format!("-oDir::Etc::SourceList={}", sources.display()),
                "-oDir::Etc::SourceParts=/dev/null".to_owned(),
                format!("-oDir::State::Lists={}", directory.join("lists").display()),
                format!("-oDir::Cache={}", directory.display()),
            ],
        };
        output_of(apt.command("apt-get").args(["update", "-q"]))
            .map_err(|error| Error::Missing(format!("the suite {suite}: {error}")))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(["-o", "APT::Sandbox::User=root"])
            .args(&self.options);
        command
    }

    fn download(&self, names: &BTreeSet<String>, directory: &Path) -> Result<(), Error> {
        let mut command = self.command("apt-get");
        command
            .args(["download", "-q"])
            .args(names)
            .current_dir(directory);
        output_of(&mut command)
            .map(drop)
            .map_err(|error| Error::Missing(format!("{error}; `apt-get update` may help")))
    }

    /// These packages and, if asked for, all that they depend on.
    fn closure(&self, names: &[&str], recurse: bool) -> Result<BTreeSet<String>, Error> {
        let mut command = self.command("apt-cache");
        command.args(["depends", "--no-recommends", "--no-suggests", "--no-conflicts"]);
        command.args(["--no-breaks", "--no-replaces", "--no-enhances"]);
        if recurse {
            command.arg("--recurse");
        }
        let text = output_of(command.args(names))?;
        Ok(named(&text))
    }
}

/// Where Debian itself is, of the places that apt has packages from: its security updates are elsewhere.
fn mirror(targets: &str) -> Option<&str> {
    let mut places = targets.lines().map(str::trim).filter(|place| !place.is_empty());
    places.find(|place| !place.contains("security"))
}

/// The packages that an answer of `apt-cache depends` names; those in angle brackets are not real ones.
fn named(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| match line.trim().split_once(": ") {
            Some((kind, name)) if kind.ends_with("Depends") => Some(name),
            Some(_) => None,
            None => Some(line.trim()),
        })
        .map(|name| name.trim_end_matches(":any"))
        .filter(|name| !name.is_empty() && !name.starts_with('<'))
        .filter(|name| !UNUSED.iter().any(|unused| name.starts_with(unused)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_debian_is_found() {
        let targets = "http://mirror/debian-security/\nhttp://mirror/debian/\nhttp://mirror/debian/\n";
        assert_eq!(mirror(targets), Some("http://mirror/debian/"));
        assert_eq!(mirror("\n"), None);
    }

    #[test]
    fn names_are_found_in_what_apt_says() {
        let text = "nvme-cli\n  Depends: libc6\n |Depends: uuid-runtime\n  PreDepends: dpkg\n  \
                    Depends: <debconf-2.0>\n    cdebconf\n  Depends: python3:any\nlibc6\n";
        let found: Vec<String> = named(text).into_iter().collect();
        assert_eq!(found, ["dpkg", "libc6", "nvme-cli", "uuid-runtime"]);
    }
}
