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
        return Ok(Content::Nothing);
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

pub(super) fn format(path: &Path, size_bytes: u64, file_system: FileSystem) -> Result<(), HostError> {
    let failed = |error| HostError::kernel("write", path.display(), error);
    let blank = Blank::open(path, size_bytes, true).map_err(failed)?;
    blank.put_marks().map_err(failed)?;
    let path = text(path)?;
    // Volumes are thin and were never written, so nothing has to be discarded; what is on them was looked
    // at before, so nothing has to be asked.
    match file_system {
        // Its journal and tables of inodes are zeroed: only the ends of the device are known to be zeros.
        FileSystem::Ext4 => succeed(
            "mkfs.ext4",
            &["-q", "-F", "-m", "0", "-E", "nodiscard", path],
            path,
        )?,
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
    use std::os::unix::fs::FileExt;
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
        assert_eq!(kind(&file), "Nothing");
        format(file.path(), SIZE_BYTES, FileSystem::Ext4).expect("it can be made");
        assert_eq!(kind(&file), "ext4");
        check(file.path(), FileSystem::Ext4).expect("it is sound");
    }

    /// Both ends are zeros, and in between is what somebody wrote: no journal may be made of it.
    #[test]
    fn what_is_between_the_ends_becomes_no_journal() {
        const JOURNAL_BYTES_MIN: usize = 3 << 20;
        if !has("blkid") || !has("mkfs.ext4") {
            return;
        }
        let file = device();
        let ends_bytes = 1 << 20;
        let between = vec![7; usize::try_from(SIZE_BYTES - 2 * ends_bytes).expect("a small device")];
        file.as_file()
            .write_all_at(&between, ends_bytes)
            .expect("it can be written");
        assert_eq!(kind(&file), "Nothing");
        format(file.path(), SIZE_BYTES, FileSystem::Ext4).expect("it can be made");
        let after = std::fs::read(file.path()).expect("it can be read");
        let zeros = after.iter().filter(|&&byte| byte == 0).count();
        assert!(
            zeros > 2 * (1 << 20) + JOURNAL_BYTES_MIN,
            "{zeros} bytes are zeros"
        );
    }

    #[test]
    fn a_file_system_that_cannot_be_repaired_is_told() {
        if !has("blkid") || !has("mkfs.ext4") || !has("e2fsck") {
            return;
        }
        let file = device();
        format(file.path(), SIZE_BYTES, FileSystem::Ext4).expect("it can be made");
        // The superblock keeps its signature and loses the rest.
        file.as_file()
            .write_all_at(&[0xff; 40], 1024)
            .expect("it can be written");
        assert!(check(file.path(), FileSystem::Ext4).is_err());
    }
}
