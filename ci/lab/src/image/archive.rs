//! The archive that a kernel unpacks as its first file system: cpio in the format `newc`.
//!
//! Each member is a head of `070701` and thirteen numbers of eight hexadecimal digits (inode, mode, user,
//! group, links, time, size, device, device of a node, length of the name with its end, checksum), the name
//! with a zero byte, and the data; name and data are filled up to four bytes. The member `TRAILER!!!` ends
//! it. See `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel.

/// Mode bits of a directory.
const DIRECTORY: u32 = 0o040_755;
/// Mode bits of a file that can be run.
const FILE: u32 = 0o100_755;
/// Mode bits of a character device.
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Mode bits of a symbolic link.
const LINK: u32 = 0o120_777;

/// An archive in memory.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    members: u32,
}

impl Archive {
    /// Adds a directory; those above must have been added before.
    pub(crate) fn directory(&mut self, path: &str) {
        self.member(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file that can be run.
    pub(crate) fn file(&mut self, path: &str, data: &[u8]) {
        self.member(path, FILE, (0, 0), data);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.member(path, LINK, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.member(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.member("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn member(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.members += 1;
        let name_bytes = path.len() + 1;
        let (inode, links, data_bytes) = (self.members, 1, data.len() as u32);
        let numbers = [
            inode,
            mode,
            0,
            0,
            links,
            0,
            data_bytes,
            0,
            0,
            device.0,
            device.1,
            name_bytes as u32,
            0,
        ];
        self.bytes.extend(b"070701");
        for number in numbers {
            self.bytes.extend(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.fill();
        self.bytes.extend(data);
        self.fill();
    }

    fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_laid_out_as_the_kernel_reads_them() {
        let mut archive = Archive::default();
        archive.file("init", b"hello");
        archive.character_device("console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let head = "070701\
             00000001000081ed0000000000000000000000010000000000000005\
             000000000000000000000000000000000000000500000000";
        assert_eq!(&bytes[..110], head.as_bytes());
        assert_eq!(
            &bytes[110..128],
            b"init\0\0hello\0\0\x00070701".get(..18).expect("long")
        );
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(
            text.contains("00000005000000010000000800000000console\0"),
            "{text:?}"
        );
        assert!(text.ends_with("0000000b00000000TRAILER!!!\0\0\0\0"), "{text:?}");
    }
}
