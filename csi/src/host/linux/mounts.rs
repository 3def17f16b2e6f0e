//! Mounts: `/proc/self/mountinfo`, mount(2), umount(2), statvfs(3).

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::capability::FileSystem;
use crate::host::{Device, DeviceNumber, HostError, Mount, Usage};

/// Options that the kernel takes as flags; a flag that is cleared is none.
const FLAGS: [(&str, MountFlags); 14] = [
    ("defaults", MountFlags::empty()),
    ("rw", MountFlags::empty()),
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("silent", MountFlags::SILENT),
];

/// What mountinfo writes for characters that separate: a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match value {
            Some(value) => {
                bytes.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// A line: id, parent, MAJOR:MINOR, root, point, options, any number of tags, `-`, kind, source, options of
/// all.
fn line(text: &str) -> Option<Mount> {
    let mut words = text.split(' ');
    let number = words.nth(2)?;
    let (major, minor) = number.split_once(':')?;
    let number = DeviceNumber {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    };
    let root = unescape(words.next()?).to_string_lossy().into_owned();
    let point = unescape(words.next()?);
    let options = words.next()?;
    words.find(|word| *word == "-")?;
    let kind = words.next()?.to_owned();
    let source = unescape(words.next()?).to_string_lossy().into_owned();
    let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    let everywhere = words.next().is_some_and(is_read_only);
    Some(Mount {
        number,
        root,
        point,
        kind,
        source,
        read_only: is_read_only(options) || everywhere,
        read_only_everywhere: everywhere,
    })
}

/// All mounts that a file like `/proc/self/mountinfo` tells.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

/// Options as flags, and those that the file system itself understands.
fn split(options: &[String]) -> (MountFlags, Vec<&str>) {
    let mut flags = MountFlags::empty();
    let mut others = Vec::new();
    for option in options.iter().flat_map(|options| options.split(',')) {
        if option.is_empty() {
            continue;
        }
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= *flag,
            None => others.push(option),
        }
    }
    (flags, others)
}

pub(super) fn mount(
    device: &Device,
    file_system: FileSystem,
    point: &Path,
    read_only: bool,
    options: &[String],
) -> Result<(), HostError> {
    let failed = |reason: String| {
        HostError::kernel("mount", format!("{} at {}", device.name, point.display()), reason)
    };
    let (mut flags, mut others) = split(options);
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    // Two volumes of which one is a copy of the other have the same UUID, which XFS would not mount twice.
    if file_system == FileSystem::Xfs && !others.contains(&"nouuid") {
        others.push("nouuid");
    }
    // A journal cannot be replayed on a device that cannot be written.
    if device.read_only {
        match file_system {
            FileSystem::Ext4 => others.push("noload"),
            FileSystem::Xfs => others.push("norecovery"),
            FileSystem::Btrfs => {}
        }
    }
    let data = CString::new(others.join(",")).map_err(|error| failed(error.to_string()))?;
    rustix::mount::mount(&device.path, point, file_system.name(), flags, data.as_c_str()).map_err(|error| {
        // Options may hold secrets, and are told to nobody.
        let options = if others.is_empty() {
            ""
        } else {
            "are its options right? "
        };
        failed(format!("{error} ({options}`dmesg` tells more)"))
    })
}

/// Flags that a place has by what is mounted there. A second mount has them too, until it is mounted anew
/// without.
fn kept(flags: StatVfsMountFlags) -> MountFlags {
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let has = pairs.into_iter().filter(|(flag, _)| flags.contains(*flag));
    has.map(|(_, flag)| flag).collect()
}

pub(super) fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), HostError> {
    let failed = |error| HostError::kernel("mount", format!("{} at {}", from.display(), to.display()), error);
    rustix::mount::mount_bind(from, to).map_err(failed)?;
    if !read_only {
        return Ok(());
    }
    // The kernel takes no other flags with a bind; they come second, all of them: `nosuid` of the class of a
    // volume would be gone.
    let remounted = rustix::fs::statvfs(to).and_then(|found| {
        let flags = MountFlags::BIND | MountFlags::RDONLY | kept(found.f_flag);
        rustix::mount::mount_remount(to, flags, c"")
    });
    remounted.map_err(|error| {
        // Better nothing there than something that can be written.
        let _ = unmount(to);
        failed(error)
    })
}

pub(super) fn unmount(point: &Path) -> Result<(), HostError> {
    rustix::mount::unmount(point, UnmountFlags::NOFOLLOW).map_err(|error| match error {
        rustix::io::Errno::BUSY => HostError::Busy {
            device: point.display().to_string(),
            by: "a process has files open there, or something is mounted below it".to_owned(),
        },
        error => HostError::kernel("unmount", point.display(), error),
    })
}

pub(super) fn usage(point: &Path) -> Result<Usage, HostError> {
    let found = rustix::fs::statvfs(point);
    let found = found.map_err(|error| HostError::kernel("look at", point.display(), error))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Usage {
        bytes: bytes(found.f_blocks),
        bytes_free: bytes(found.f_bfree),
        bytes_available: bytes(found.f_bavail),
        inodes: found.f_files,
        inodes_free: found.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 28 0:21 / /proc rw,nosuid - proc proc rw
91 28 259:3 / /var/lib/plugins/a\\040b/globalmount rw,relatime shared:1 master:2 - ext4 /dev/nvme0n1 rw
92 28 259:3 / /pods/ro ro,relatime - ext4 /dev/nvme0n1 rw
93 28 0:5 /nvme1n1 /pods/block rw,nosuid - devtmpfs udev rw,size=1k
94 28 259:4 / /pods/broken rw - xfs /dev/nvme2n1 ro,attr2
a line that is none
95 28 x:y / /p rw - ext4 /dev/x rw";

    #[test]
    fn mounts_are_read() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[1].point, Path::new("/var/lib/plugins/a b/globalmount"));
        assert_eq!(mounts[1].number, DeviceNumber { major: 259, minor: 3 });
        assert!(!mounts[1].read_only);
        assert!(mounts[2].read_only && !mounts[2].read_only_everywhere);
        assert!(mounts[3].is_node_of("nvme1n1") && !mounts[3].is_node_of("nvme1n"));
        assert!(mounts[4].read_only_everywhere);
    }

    #[test]
    fn names_with_backslashes_are_read() {
        assert_eq!(unescape("/a\\134b\\011c"), Path::new("/a\\b\tc"));
        assert_eq!(unescape("/end\\13"), Path::new("/end\\13"));
        assert_eq!(unescape("/x\\999"), Path::new("/x\\999"));
    }

    #[test]
    fn options_are_flags_or_go_to_the_file_system() {
        let options = ["noatime,nosuid", "discard", "commit=30", ""].map(str::to_owned);
        let (flags, others) = split(&options);
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::NOSUID);
        assert_eq!(others, ["discard", "commit=30"]);
    }

    #[test]
    fn a_second_mount_keeps_what_the_first_one_forbids() {
        let first = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
        let all = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        assert_eq!(kept(first), all);
        let read_only = first | StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOATIME;
        assert_eq!(kept(read_only), all | MountFlags::NOATIME);
        assert_eq!(kept(StatVfsMountFlags::empty()), MountFlags::empty());
    }

    #[test]
    fn a_directory_tells_how_full_it_is() {
        let found = usage(&std::env::temp_dir()).expect("it is there");
        assert!(found.bytes > 0 && found.bytes_free <= found.bytes);
        assert!(usage(Path::new("/nonexistent")).is_err());
    }
}
