//! Whether a device that has no signature is one to which nothing was ever written.
//!
//! A device without a file system that anybody knows may still hold somebody's data: a volume that was used
//! as a block device. Blocks of a volume that were never written read as zeros, so a fresh one has nothing
//! but zeros where anything would begin or end.
//!
//! Making a file system that is cut off leaves a device that has neither zeros nor a signature. So that
//! this can be told from somebody's data, marks are written before it is begun and taken away when it is
//! done, before the file system is mounted for the first time. They are scattered, because the programs
//! that make file systems write here and there; one that is left is enough. Where a mark is, no user has
//! ever written.
//!
//! ```text
//! mark, 512 bytes:  "pollux: a file system is being made here\n"  zeros
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

/// Bytes at both ends that are looked at.
const ENDS_BYTES: u64 = 1 << 20;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Bytes of a mark.
const MARK_BYTES: usize = 512;

/// What a mark says.
const MARK_TEXT: &[u8] = b"pollux: a file system is being made here\n";

/// Marks on a device.
const MARKS: u64 = 16;

/// Marks stand at multiples of this.
const GRAIN_BYTES: u64 = 4096;

/// Multiplier of a sequence that scatters evenly: the golden ratio as a 64-bit fraction.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which device is looked at, and its size.
#[derive(Debug)]
pub(super) struct Blank {
    file: File,
    size_bytes: u64,
}

fn mark() -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    for (to, from) in mark.iter_mut().zip(MARK_TEXT) {
        *to = *from;
    }
    mark
}

impl Blank {
    pub(super) fn open(path: &Path, size_bytes: u64, write: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        Ok(Self { file, size_bytes })
    }

    /// Where marks stand: in the inner part, at places that follow from the size.
    fn places(&self) -> impl Iterator<Item = u64> + use<> {
        let grains = self.size_bytes.saturating_sub(2 * GRAIN_BYTES) / GRAIN_BYTES;
        let place = move |index: u64| {
            let fraction = u128::from(GOLDEN.wrapping_mul(index + 1));
            let grain = (fraction * u128::from(grains)) >> 64;
            (u64::try_from(grain).unwrap_or(0) + 1) * GRAIN_BYTES
        };
        (0..MARKS).filter(move |_| grains > 0).map(place)
    }

    /// Has the kernel read a range already, beside others: what is looked at is many small pieces, each of
    /// which would be waited for.
    fn prefetch(&self, place: u64, bytes: u64) {
        // If it cannot, they are read when they are needed.
        let _ = fadvise(&self.file, place, NonZeroU64::new(bytes), Advice::WillNeed);
    }

    fn is_marked_at(&self, place: u64) -> io::Result<bool> {
        let mut found = [0; MARK_BYTES];
        self.file.read_exact_at(&mut found, place)?;
        Ok(found == mark())
    }

    /// Whether making a file system was begun here and not finished.
    pub(super) fn is_marked(&self) -> io::Result<bool> {
        self.places().for_each(|place| self.prefetch(place, GRAIN_BYTES));
        for place in self.places() {
            if self.is_marked_at(place)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes marks, durably.
    pub(super) fn put_marks(&self) -> io::Result<()> {
        for place in self.places() {
            self.file.write_all_at(&mark(), place)?;
        }
        self.file.sync_all()
    }

    /// Takes away the marks that are left, durably. Where something else was written since, it stays.
    pub(super) fn take_marks(&self) -> io::Result<()> {
        for place in self.places() {
            if self.is_marked_at(place)? {
                self.file.write_all_at(&[0; MARK_BYTES], place)?;
            }
        }
        self.file.sync_all()
    }

    /// Whether both ends have nothing but zeros.
    pub(super) fn is_zero(&self) -> io::Result<bool> {
        let end = self.size_bytes.saturating_sub(ENDS_BYTES);
        let ranges = [(0, ENDS_BYTES.min(self.size_bytes)), (end, self.size_bytes)];
        for (from, to) in ranges {
            self.prefetch(from, to - from);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        let zeros = vec![0; CHUNK_BYTES];
        for (from, to) in ranges {
            let mut place = from;
            while place < to {
                let length = usize::try_from(to - place)
                    .unwrap_or(CHUNK_BYTES)
                    .min(CHUNK_BYTES);
                let part = chunk.get_mut(..length).unwrap_or_default();
                self.file.read_exact_at(part, place)?;
                // As a whole, which is faster than byte by byte.
                if Some(&*part) != zeros.get(..length) {
                    return Ok(false);
                }
                place += length as u64;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn device(size_bytes: u64) -> (tempfile::NamedTempFile, Blank) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(size_bytes).expect("it can be made");
        let blank = Blank::open(file.path(), size_bytes, true).expect("it is there");
        (file, blank)
    }

    #[test]
    fn marks_come_and_go_and_leave_zeros() {
        for size_bytes in [1 << 20, 5 << 20, 1 << 40] {
            let (_file, blank) = device(size_bytes);
            assert!(blank.is_zero().expect("it can be read"));
            assert!(!blank.is_marked().expect("it can be read"));
            blank.put_marks().expect("it can be written");
            assert!(blank.is_marked().expect("it can be read"));
            blank.take_marks().expect("it can be written");
            assert!(!blank.is_marked().expect("it can be read"));
            assert!(blank.is_zero().expect("it can be read"));
            let places: BTreeSet<u64> = blank.places().collect();
            assert!(places.iter().all(|place| place + GRAIN_BYTES <= size_bytes));
            assert_eq!(places.len() as u64, MARKS, "{size_bytes}");
        }
    }

    #[test]
    fn one_mark_is_enough_and_what_came_after_them_stays() {
        let (_file, blank) = device(64 << 20);
        blank.put_marks().expect("it can be written");
        let places: Vec<u64> = blank.places().collect();
        for place in &places[1..] {
            blank
                .file
                .write_all_at(b"metadata", *place)
                .expect("it can be written");
        }
        assert!(blank.is_marked().expect("it can be read"));
        blank.take_marks().expect("it can be written");
        assert!(!blank.is_marked().expect("it can be read"));
        let mut kept = [0; 8];
        blank
            .file
            .read_exact_at(&mut kept, places[3])
            .expect("it can be read");
        assert_eq!(&kept, b"metadata");
    }

    #[test]
    fn data_at_either_end_is_seen() {
        for place in [0, 700_000, (64 << 20) - 1] {
            let (_file, blank) = device(64 << 20);
            blank.file.write_all_at(&[1], place).expect("it can be written");
            assert!(!blank.is_zero().expect("it can be read"), "{place}");
        }
    }

    #[test]
    fn tiny_devices_have_no_marks() {
        let (_file, blank) = device(4096);
        blank.put_marks().expect("nothing is written");
        assert!(!blank.is_marked().expect("it can be read"));
        assert!(blank.is_zero().expect("it can be read"));
    }
}
