//! The guest's first and only file system, in memory.

pub(crate) mod archive;
pub(crate) mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use archive::Archive;

use crate::error::{Context, Error, output_of};
use crate::packages::Packages;
use crate::scenario::Scenario;

/// What scenarios call, beside the commands of busybox and `lab` itself.
const PROGRAMS: [&str; 14] = [
    "blkdiscard",
    "blkid",
    "btrfs",
    "e2fsck",
    "fsfreeze",
    "fstrim",
    "mkfs.btrfs",
    "mkfs.ext4",
    "mkfs.xfs",
    "nvme",
    "resize2fs",
    "xfs_growfs",
    "xfs_io",
    "xfs_repair",
];

/// Programs that are not of this checkout, and that scenarios go without where they are not installed.
pub(crate) const FOREIGN: [&str; 2] = ["csi-sanity", "fio"];

/// The program that loads dynamically linked ones.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Directories of the guest.
const DIRECTORIES: [&str; 14] = [
    "bin",
    "dev",
    "etc",
    "etc/nvme",
    "lab",
    "lab/scenarios",
    "lib",
    "lib/modules",
    "lib64",
    "mnt",
    "proc",
    "sys",
    "tmp",
    "run",
];

/// Makes the archive for these scenarios, whose init asks at `control_port`, and writes it to `path`.
/// Programs of this checkout that scenarios name are taken from the directory `built`.
pub(crate) fn build(
    packages: &Packages,
    built: &Path,
    scenarios: &[&Scenario],
    control_port: u16,
    path: &Path,
) -> Result<(), Error> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("init", include_bytes!("../../guest/init"));
    archive.file("lab/library.sh", include_bytes!("../../guest/library.sh"));
    archive.file("lab/port", control_port.to_string().as_bytes());
    archive.file("bin/busybox", &read(&packages.program("busybox")?)?);

    let mut programs: Vec<(String, PathBuf)> = Vec::new();
    for name in PROGRAMS {
        match packages.program(name) {
            Ok(path) => programs.push((name.to_owned(), path)),
            Err(error) => return Err(error),
        }
    }
    let itself = std::env::current_exe().context("find", Path::new("this program"))?;
    programs.push(("lab".to_owned(), itself));
    let own: BTreeSet<&String> = scenarios.iter().flat_map(|scenario| &scenario.programs).collect();
    for name in own {
        let program = installed(name).unwrap_or_else(|| built.join(name));
        programs.push((
            name.clone(),
            without_symbols(&program, &path.with_file_name(name))?,
        ));
    }
    let mut libraries = BTreeMap::new();
    for (name, path) in &programs {
        if !is_script(path)? {
            find_libraries(packages, path, &mut libraries)?;
        }
        archive.file(&format!("bin/{name}"), &read(path)?);
    }
    for (name, path) in &libraries {
        archive.file(&format!("lib/{name}"), &read(path)?);
    }
    archive.link(&format!("lib64/{LOADER}"), &format!("/lib/{LOADER}"));

    let mut order = String::new();
    let more = scenarios.iter().flat_map(|scenario| &scenario.modules);
    let wanted: Vec<&str> = modules::WANTED
        .into_iter()
        .chain(more.map(String::as_str))
        .collect();
    for module in modules::in_order(packages, &wanted)? {
        archive.file(&format!("lib/modules/{}.ko", module.name), &module.data);
        order += &format!("{}\n", module.name);
    }
    archive.file("lab/modules", order.as_bytes());

    let mut run = String::new();
    for scenario in scenarios {
        let script = format!("lab/scenarios/{}.sh", scenario.name);
        archive.file(&script, scenario.script.as_bytes());
        run += &format!("{} {}\n", scenario.name, scenario.time_limit.as_secs());
    }
    archive.file("lab/run", run.as_bytes());
    std::fs::write(path, archive.finish()).context("write", path)
}

/// Where a program is that is not of this checkout, if it is installed: where the shell finds it, or where
/// Go installs programs.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    if !FOREIGN.contains(&name) {
        return None;
    }
    let found = output_of(Command::new("sh").args(["-c", "command -v \"$0\"", name]));
    let found = found.ok().map(|path| PathBuf::from(path.trim()));
    let by_go = std::env::home_dir().map(|home| home.join("go/bin").join(name));
    found.or(by_go).filter(|path| path.is_file())
}

/// Copies a program without what is only for debuggers, which is most of it, and more than a guest has room
/// for.
fn without_symbols(program: &Path, into: &Path) -> Result<PathBuf, Error> {
    output_of(Command::new("strip").arg("-o").arg(into).arg(program))?;
    Ok(into.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).context("read", path)
}

fn is_script(path: &Path) -> Result<bool, Error> {
    Ok(read(path)?.starts_with(b"#!"))
}

/// Adds the shared libraries of a program, by the name they are looked for.
fn find_libraries(
    packages: &Packages,
    program: &Path,
    libraries: &mut BTreeMap<String, PathBuf>,
) -> Result<(), Error> {
    let directories = packages.library_directories();
    let loader = directories
        .iter()
        .map(|directory| directory.join(LOADER))
        .find(|path| path.is_file())
        .ok_or_else(|| packages.lacks(LOADER))?;
    let search: Vec<String> = directories
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let list = output_of(
        Command::new(&loader)
            .args(["--library-path", &search.join(":"), "--list"])
            .arg(program),
    )?;
    for (name, path) in listed(&list) {
        libraries.insert(name, path);
    }
    libraries.insert(LOADER.to_owned(), loader);
    Ok(())
}

/// Names and files of libraries in what a loader lists.
fn listed(list: &str) -> Vec<(String, PathBuf)> {
    list.lines()
        .filter_map(|line| line.trim().split_once(" => "))
        .filter_map(|(name, rest)| Some((name, rest.rsplit_once(" (")?.0)))
        .filter(|(name, _)| !name.contains('/'))
        .map(|(name, path)| (name.to_owned(), PathBuf::from(path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_a_loader_lists() {
        let list = "\tlinux-vdso.so.1 (0x00007fef17744000)\n\
                    \tlibz.so.1 => /srv/a root/libz.so.1 (0x00007fef175f3000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => lib/ld.so (0x00007fef17746000)\n";
        let expected = [("libz.so.1".to_owned(), PathBuf::from("/srv/a root/libz.so.1"))];
        assert_eq!(listed(list), expected);
    }
}
