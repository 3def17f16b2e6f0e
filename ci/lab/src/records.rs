//! Numbered records, written one after the other and made durable one by one: who writes them knows which
//! ones must be there whatever happens.
//!
//! Record N, from 0, is a block of 4096 bytes in slot N modulo the number of slots:
//!
//! ```text
//! 0     8      16                  4092   4096
//! magic number body made of number crc32c of what is before it
//! ```
//!
//! A write may only have gone beyond the last durable record by one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;

use crate::error::{Context, Error};

const RECORD_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"PLXLABR1");
const CHECKSUM_AT: usize = RECORD_BYTES - 4;

/// What to do with records.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write records, and fdatasync each, until the time is over.
    Write {
        /// The file or block device.
        path: PathBuf,
        /// How many slots there are.
        #[arg(long, default_value_t = 256)]
        slots: u64,
        /// For how long.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// The file that tells the number of the last durable record.
        #[arg(long)]
        progress: PathBuf,
    },
    /// Look whether all records are there that have to be.
    Verify {
        /// The file or block device.
        path: PathBuf,
        /// How many slots there are.
        #[arg(long, default_value_t = 256)]
        slots: u64,
        /// The last durable record.
        #[arg(long)]
        durable: u64,
    },
}

/// Does it, and tells the outcome in a sentence.
pub(crate) fn run(command: &Command) -> Result<String, Error> {
    match command {
        Command::Write {
            path,
            slots,
            seconds,
            progress,
        } => {
            let last = write(path, *slots, Duration::from_secs(*seconds), progress)?;
            Ok(format!("the last durable record is {last}"))
        }
        Command::Verify { path, slots, durable } => verify(path, *slots, *durable),
    }
}

fn write(path: &Path, slots: u64, time: Duration, progress: &Path) -> Result<u64, Error> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .context("open", path)?;
    let deadline = Instant::now() + time;
    let mut number = 0;
    loop {
        file.write_all_at(&record(number), offset(number, slots))
            .context("write to", path)?;
        file.sync_data().context("make durable", path)?;
        // By another name first, so that whoever reads it never sees half a number.
        let new = progress.with_extension("new");
        std::fs::write(&new, number.to_string()).context("write", &new)?;
        std::fs::rename(&new, progress).context("write", progress)?;
        if Instant::now() > deadline {
            return Ok(number);
        }
        number += 1;
    }
}

/// Checks every slot of a file whose last durable record is `durable`.
pub(crate) fn verify(path: &Path, slots: u64, durable: u64) -> Result<String, Error> {
    let file = File::open(path).context("open", path)?;
    let mut one_more = false;
    for slot in 0..slots.min(durable + 1) {
        // The highest number of this slot that is durable.
        let expected = durable - (durable - slot) % slots;
        let found = read(&file, slot).context("read", path)?;
        // The write after the last durable one may have arrived, or not, or in part.
        let in_flight = offset(durable + 1, slots) == slot * RECORD_BYTES as u64;
        one_more |= in_flight && found == Some(durable + 1);
        if found != Some(expected) && !in_flight {
            return Err(Error::Request(format!(
                "slot {slot} of {} holds {}, but record {expected} was made durable, and {durable} last",
                path.display(),
                found.map_or("no record".to_owned(), |number| format!("record {number}")),
            )));
        }
    }
    let beyond = if one_more { ", and one more" } else { "" };
    Ok(format!("everything up to record {durable} is there{beyond}"))
}

fn offset(number: u64, slots: u64) -> u64 {
    number % slots * RECORD_BYTES as u64
}

fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    // A sequence that does not repeat from record to record (the multiplier is 2^64 by the golden ratio).
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = (number + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(index as u32);
        word.copy_from_slice(&(value ^ index as u64).to_le_bytes());
    }
    bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The number of the record in a slot, if a whole record is there.
fn read(file: &File, slot: u64) -> io::Result<Option<u64>> {
    let mut bytes = [0; RECORD_BYTES];
    match file.read_exact_at(&mut bytes, slot * RECORD_BYTES as u64) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[8..16]);
    let number = u64::from_le_bytes(number);
    Ok((number < u64::MAX && bytes == record(number)).then_some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(numbers: &[(u64, u64)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (slot, number) in numbers {
            let bytes = record(*number);
            file.as_file()
                .write_all_at(&bytes, slot * RECORD_BYTES as u64)
                .expect("written");
        }
        file
    }

    #[test]
    fn what_was_written_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, progress) = (
            directory.path().join("records"),
            directory.path().join("progress"),
        );
        let last = write(&path, 4, Duration::from_millis(20), &progress).expect("written");
        let told = std::fs::read_to_string(&progress).expect("there");
        assert_eq!(told, last.to_string());
        verify(&path, 4, last).expect("all there");
    }

    #[test]
    fn a_record_beyond_the_last_durable_one_may_be_there() {
        let file = file_with(&[(0, 4), (1, 5), (2, 2), (3, 3)]);
        for durable in [4, 5] {
            verify(file.path(), 4, durable).expect("all there");
        }
        // Not two, and not one less.
        assert!(verify(file.path(), 4, 3).is_err());
        assert!(verify(file.path(), 4, 7).is_err());
    }

    #[test]
    fn lost_stale_and_damaged_records_are_found() {
        verify(file_with(&[(0, 0), (1, 1), (2, 2)]).path(), 4, 2).expect("all there");
        for (numbers, durable) in [
            (&[(0, 0), (1, 1)][..], 2),
            (&[(0, 4), (1, 1), (2, 2), (3, 3)][..], 6),
            (&[(0, 0), (1, 2), (2, 2)][..], 2),
        ] {
            assert!(
                verify(file_with(numbers).path(), 4, durable).is_err(),
                "{numbers:?}"
            );
        }
        let file = file_with(&[(0, 0), (1, 1), (2, 2)]);
        file.as_file().write_all_at(b"x", 4096 + 999).expect("written");
        let error = verify(file.path(), 4, 2).expect_err("damaged").to_string();
        assert!(error.contains("slot 1"), "{error}");
        assert!(error.contains("no record"), "{error}");
    }
}
