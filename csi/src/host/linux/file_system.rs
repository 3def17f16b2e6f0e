//! File systems: what is on a device, making, checking, growing and freezing them, with their own programs.

use std::collections::HashMap;
use std::path::Path;
use std::thread;

use super::blank::Blank;
use super::program::{run, succeed};
use crate::capability::FileSystem;
use crate::host::{Content, HostError};

/// What `blkid -p` ends with if it knows nothing of a device.
const BLKID_NOTHING: i32 = 2;

/// What it ends with if there are several signatures.
const BLKID_AMBIVALENT: i32 = 8;

/// Up to this `e2fsck -p` has repaired all there was (e2fsck(8), EXIT CODE: 1 is "errors corrected").
const E2FSCK_FINE: i32 = 1;

fn text(path: &Path) -> Result<&str, HostError> {
    path.to_str()
        .ok_or_else(|| HostError::kernel("use", path.display(), "its name is not UTF-8"))
}

/// `KEY=value` lines.
fn pairs(output: &str) -> HashMap<&str, &str> {
    output.lines().filter_map(|line| line.split_once('=')).collect()
}

pub(super) fn content(path: &Path, size_bytes: u64) -> Result<Content, HostError> {
    let failed = |error| HostError::kernel("read", path.display(), error);
    let blank = Blank::open(path, size_bytes, false).map_err(failed)?;
    let path_text = text(path)?;
    // All of it takes a while, and is done at once. Where there is a file system, zeros end soon.
    let (outcome, is_marked, is_zero) = thread::scope(|scope| {
        let program = scope.spawn(|| run("blkid", &["-p", "-o", "export", path_text], path_text));
        let is_marked = blank.is_marked();
        let is_zero = blank.is_zero();
        let outcome = program.join().unwrap_or_else(|_| {
            Err(HostError::Program {
                program: "blkid",
                subject: path_text.to_owned(),
                reason: "the thread that ran it panicked".to_owned(),
            })
        });
        (outcome, is_marked, is_zero)
    });
    // Marks are older than whatever else is there.
    if is_marked.map_err(failed)? {
        return Ok(Content::Unfinished);
    }
    let outcome = outcome?;
    match outcome.status {
        Some(0) => {}
        Some(BLKID_NOTHING) => {
            return Ok(match is_zero.map_err(failed)? {
                true => Content::Nothing,
                false => Content::Other("data that is no file system".to_owned()),
            });
        }
        Some(BLKID_AMBIVALENT) => return Ok(Content::Other("signatures of several file systems".to_owned())),
        _ => {
            return Err(HostError::Program {
                program: "blkid",
                subject: path.display().to_string(),
                reason: outcome.describe(),
            });
        }
    }
    let found = pairs(&outcome.output);
    let known = |key: &str| found.get(key).copied().unwrap_or_default().to_owned();
    Ok(match (known("USAGE").as_str(), known("TYPE"), known("PTTYPE")) {
        ("filesystem", kind, _) if !kind.is_empty() => Content::FileSystem {
            kind,
            uuid: known("UUID"),
        },
        (_, kind, table) if !kind.is_empty() || !table.is_empty() => Content::Other(format!(
            "{kind}{}{table}",
            if table.is_empty() { "" } else { " partition table " }
        )),
        _ => Content::Other("a signature that is not known".to_owned()),
    })
}

/// Makes ext4. What would be zeroed, its journal and tables of inodes, are zeros on a blank device: to write
/// them, now or by the kernel's own thread later, would only fill a thin volume and all of its copies.
fn format_ext4(path: &str, is_blank: bool) -> Result<(), HostError> {
    const USUAL: &str = "nodiscard";
    const BLANK: &str = "nodiscard,assume_storage_prezeroed=1";
    let make = |options| succeed("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", options, path], path);
    match is_blank {
        // One that does not know the option (e2fsprogs before 1.47) has written nothing.
        true => make(BLANK).or_else(|error| {
            tracing::debug!(%error, "trying again as if the device were not blank");
            make(USUAL)
        }),
        false => make(USUAL),
    }
}

pub(super) fn format(
    path: &Path,
    size_bytes: u64,
    file_system: FileSystem,
    is_blank: bool,
) -> Result<(), HostError> {
    let failed = |error| HostError::kernel("write", path.display(), error);
    let blank = Blank::open(path, size_bytes, true).map_err(failed)?;
    blank.put_marks().map_err(failed)?;
    let path = text(path)?;
    // Volumes are thin and were never written, so nothing has to be discarded; what is on them was looked
    // at before, so nothing has to be asked.
    match file_system {
        FileSystem::Ext4 => format_ext4(path, is_blank)?,
        FileSystem::Xfs => succeed("mkfs.xfs", &["-q", "-f", "-K", path], path)?,
        FileSystem::Btrfs => succeed("mkfs.btrfs", &["-q", "-f", "-K", path], path)?,
    }
    blank.take_marks().map_err(failed)
}

pub(super) fn check(path: &Path, file_system: FileSystem) -> Result<(), HostError> {
    // XFS and Btrfs recover when they are mounted, and have nothing that repairs without being asked.
    if file_system != FileSystem::Ext4 {
        return Ok(());
    }
    let path = text(path)?;
    let outcome = run("e2fsck", &["-p", path], path)?;
    match outcome.status {
        Some(status) if status <= E2FSCK_FINE => Ok(()),
        _ => Err(HostError::Program {
            program: "e2fsck",
            subject: path.to_owned(),
            reason: outcome.describe(),
        }),
    }
}

pub(super) fn grow(path: &Path, file_system: FileSystem, point: &Path) -> Result<(), HostError> {
    let (device, point) = (text(path)?, text(point)?);
    match file_system {
        FileSystem::Ext4 => succeed("resize2fs", &[device], device),
        FileSystem::Xfs => succeed("xfs_growfs", &[point], point),
        FileSystem::Btrfs => succeed("btrfs", &["filesystem", "resize", "max", point], point),
    }
}

pub(super) fn freeze(point: &Path, still: bool) -> Result<(), HostError> {
    let point = text(point)?;
    let how = if still { "--freeze" } else { "--unfreeze" };
    succeed("fsfreeze", &[how, point], point)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::process::Command;

    use super::*;

    const SIZE_BYTES: u64 = 64 << 20;

    fn device() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(SIZE_BYTES).expect("it can be made");
        file
    }

    /// Whether a program is installed on this machine.
    fn has(program: &str) -> bool {
        Command::new(program).arg("-V").output().is_ok()
    }

    fn kind(file: &tempfile::NamedTempFile) -> String {
        match content(file.path(), SIZE_BYTES).expect("it can be looked at") {
            Content::FileSystem { kind, .. } => kind,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_was_never_written_is_nothing() {
        if has("blkid") {
            assert_eq!(kind(&device()), "Nothing");
        }
    }

    #[test]
    fn somebodys_data_is_not_nothing() {
        if !has("blkid") {
            return;
        }
        let file = device();
        file.as_file()
            .write_all_at(b"a database", 4096)
            .expect("it can be written");
        assert!(matches!(content(file.path(), SIZE_BYTES), Ok(Content::Other(_))));
        let table = device();
        // The signature of a master boot record with one partition.
        table
            .as_file()
            .write_all_at(&[0x55, 0xaa], 510)
            .expect("it can be written");
        let entry = [0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
        table
            .as_file()
            .write_all_at(&entry, 446)
            .expect("it can be written");
        assert!(matches!(content(table.path(), SIZE_BYTES), Ok(Content::Other(_))));
    }

    #[test]
    fn a_file_system_is_made_where_making_one_was_cut_off() {
        if !has("blkid") || !has("mkfs.ext4") {
            return;
        }
        let file = device();
        let blank = Blank::open(file.path(), SIZE_BYTES, true).expect("it is there");
        blank.put_marks().expect("it can be written");
        file.as_file()
            .write_all_at(&[7; 4096], 8192)
            .expect("it can be written");
        assert_eq!(kind(&file), "Unfinished");
        format(file.path(), SIZE_BYTES, FileSystem::Ext4, false).expect("it can be made");
        assert_eq!(kind(&file), "ext4");
        check(file.path(), FileSystem::Ext4).expect("it is sound");
    }

    #[test]
    fn on_a_blank_device_zeros_are_not_written() {
        if !has("mkfs.ext4") || !has("e2fsck") {
            return;
        }
        let occupied_bytes = |is_blank| {
            let file = device();
            format(file.path(), SIZE_BYTES, FileSystem::Ext4, is_blank).expect("it can be made");
            check(file.path(), FileSystem::Ext4).expect("it is sound");
            // In units of 512 bytes, whatever the file system's block size is.
            std::fs::metadata(file.path()).expect("it is there").blocks() * 512
        };
        let blank = occupied_bytes(true);
        assert!(blank < 1 << 20, "{blank}");
    }

    #[test]
    fn a_file_system_that_cannot_be_repaired_is_told() {
        if !has("blkid") || !has("mkfs.ext4") || !has("e2fsck") {
            return;
        }
        let file = device();
        format(file.path(), SIZE_BYTES, FileSystem::Ext4, true).expect("it can be made");
        // The superblock keeps its signature and loses the rest.
        file.as_file()
            .write_all_at(&[0xff; 40], 1024)
            .expect("it can be written");
        assert!(check(file.path(), FileSystem::Ext4).is_err());
    }
}
