//! What is on a drive, by the marks that file systems, partition tables and volume managers leave near its
//! beginning.
//!
//! | what | mark | at byte |
//! | --- | --- | --- |
//! | MBR | `55 AA` | 510 |
//! | GPT | `EFI PART` | 512 or 4096 |
//! | ext2, ext3, ext4 | `53 EF` | 1080 |
//! | XFS | `XFSB` | 0 |
//! | btrfs | `_BHRfS_M` | 65600 |
//! | LVM | `LABELONE` | any of the first four sectors |
//! | LUKS | `LUKS\xba\xbe` | 0 |
//! | swap | `SWAPSPACE2` | 4086 |
//! | Linux RAID 1.1, 1.2 | `fc 4e 2b a9` | 0, 4096 |
//! | ZFS | `0c b1 ba 00` in a ring of uberblocks | from 131072 on, every KiB |
//! | Ceph | `bluestore block device` | 0 |
//! | bcache | its UUID-like magic | 4120 |
//! | NTFS, FAT, exFAT | a name in the boot sector | 3, 54, 82 |
//! | Pollux | `PLXLABEL` | any of the first blocks of 4096 |

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// How much of a drive is looked at, in bytes: up to the end of the first ZFS label.
pub(crate) const LOOK_BYTES: usize = 256 << 10;

/// Pollux's own mark.
const OWN: &[u8] = b"PLXLABEL";

/// Blocks of 4096 bytes in which Pollux's own mark may be.
const OWN_BLOCKS: usize = 16;

/// Marks at one place.
const MARKS: [(&str, usize, &[u8]); 16] = [
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an ext file system", 1080, &[0x53, 0xef]),
    ("an XFS file system", 0, b"XFSB"),
    ("a btrfs file system", 65_600, b"_BHRfS_M"),
    ("a LUKS volume", 0, &[b'L', b'U', b'K', b'S', 0xba, 0xbe]),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a Linux RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a Linux RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a Ceph OSD", 0, b"bluestore block device"),
    (
        "a bcache device",
        4120,
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
        ],
    ),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 54, b"FAT1"),
    ("a FAT file system", 82, b"FAT32"),
    // Last: boot sectors of file systems end with it too.
    ("an MBR partition table", 510, &[0x55, 0xaa]),
];

/// Sectors in which LVM's label may be, of 512 bytes.
const LVM_SECTORS: usize = 4;

/// Where ZFS keeps its uberblocks in the first label, in bytes.
const ZFS_RING: std::ops::Range<usize> = (128 << 10)..(256 << 10);

/// What a drive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing that is known here.
    Unmarked,
    /// A pool of Pollux, or a part of one.
    Own,
    /// Something of somebody else.
    Foreign(&'static str),
}

/// What the beginning of a drive says that is on it.
pub(crate) fn content(start: &[u8]) -> Content {
    let is_at = |at: usize, mark: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(mark));
    for (name, at, mark) in MARKS {
        if is_at(at, mark) {
            return Content::Foreign(name);
        }
    }
    if (0..LVM_SECTORS).any(|sector| is_at(sector * 512, b"LABELONE")) {
        return Content::Foreign("an LVM volume");
    }
    let uberblock = 0x00ba_b10c_u64;
    let marks = [uberblock.to_le_bytes(), uberblock.to_be_bytes()];
    if ZFS_RING
        .step_by(1024)
        .any(|at| marks.iter().any(|mark| is_at(at, mark)))
    {
        return Content::Foreign("a ZFS pool member");
    }
    if (0..OWN_BLOCKS).any(|block| is_at(block * 4096, OWN)) {
        return Content::Own;
    }
    Content::Unmarked
}

/// What is on a block device.
pub(super) fn read(device: &Path) -> io::Result<Content> {
    let mut start = Vec::with_capacity(LOOK_BYTES);
    File::open(device)?
        .take(LOOK_BYTES as u64)
        .read_to_end(&mut start)?;
    Ok(content(&start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(at: usize, mark: &[u8]) -> Content {
        let mut start = vec![0; LOOK_BYTES];
        start[at..at + mark.len()].copy_from_slice(mark);
        content(&start)
    }

    #[test]
    fn every_mark_is_found() {
        for (name, at, mark) in MARKS {
            assert_eq!(with(at, mark), Content::Foreign(name));
        }
        assert_eq!(with(512, b"LABELONE"), Content::Foreign("an LVM volume"));
        let zfs = with((128 << 10) + 3 * 1024, &0x00ba_b10c_u64.to_le_bytes());
        assert_eq!(zfs, Content::Foreign("a ZFS pool member"));
        assert_eq!(with(4096, OWN), Content::Own);
    }

    #[test]
    fn other_content_is_unmarked() {
        for start in [vec![], vec![0; 100], vec![0; LOOK_BYTES], vec![0x5a; LOOK_BYTES]] {
            assert_eq!(content(&start), Content::Unmarked);
        }
    }

    #[test]
    fn a_device_is_read_as_far_as_it_goes() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), b"XFSB").expect("written");
        assert_eq!(
            read(file.path()).expect("readable"),
            Content::Foreign("an XFS file system")
        );
        assert!(read(Path::new("/nonexistent")).is_err());
    }
}
