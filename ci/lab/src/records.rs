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
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use crate::error::{Context, Error};

const RECORD_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"PLXLABR1");
const CHECKSUM_AT: usize = RECORD_BYTES - 4;

/// A record that takes so long is told of.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// What to do with records.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write records, and fdatasync each, until the time is over.
    Write(Writing),
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

/// What to write, where, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Writing {
    /// The file or block device.
    path: PathBuf,
    /// How many slots there are.
    #[arg(long, default_value_t = 256)]
    slots: u64,
    /// For how long at most.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// The file that tells the number of the last durable record.
    #[arg(long)]
    progress: PathBuf,
    /// A file that ends the writing once it is there.
    #[arg(long)]
    until: Option<PathBuf>,
    /// A file that gets a line for each record that took 100 ms or more: how many milliseconds.
    #[arg(long)]
    pauses: Option<PathBuf>,
}

/// Does it, and tells the outcome in a sentence.
pub(crate) fn run(command: &Command) -> Result<String, Error> {
    match command {
        Command::Write(writing) => Ok(format!("the last durable record is {}", write(writing)?)),
        Command::Verify { path, slots, durable } => verify(path, *slots, *durable),
    }
}

fn write(writing: &Writing) -> Result<u64, Error> {
    let (path, progress) = (&writing.path, &writing.progress);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .context("open", path)?;
    let deadline = Instant::now() + Duration::from_secs(writing.seconds);
    let is_over = || Instant::now() > deadline || writing.until.as_ref().is_some_and(|until| until.exists());
    let mut number = 0;
    loop {
        let began = Instant::now();
        file.write_all_at(&record(number), offset(number, writing.slots))
            .context("write to", path)?;
        file.sync_data().context("make durable", path)?;
        let took = began.elapsed();
        if let Some(pauses) = writing.pauses.as_ref().filter(|_| took >= PAUSE_MIN) {
            tell(pauses, took).context("write", pauses)?;
        }
        // By another name first, so that whoever reads it never sees half a number.
        let new = progress.with_extension("new");
        std::fs::write(&new, number.to_string()).context("write", &new)?;
        std::fs::rename(&new, progress).context("write", progress)?;
        if is_over() {
            return Ok(number);
        }
        number += 1;
    }
}

/// Adds a line at the end, which is the start if somebody has just emptied the file.
fn tell(pauses: &Path, took: Duration) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(pauses)?;
    file.write_all(format!("{}\n", took.as_millis()).as_bytes())
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
        let file = |name: &str| directory.path().join(name);
        let mut writing = Writing {
            path: file("records"),
            slots: 4,
            seconds: 0,
            progress: file("progress"),
            until: None,
            pauses: Some(file("pauses")),
        };
        let last = write(&writing).expect("written");
        let told = std::fs::read_to_string(file("progress")).expect("there");
        assert_eq!(told, last.to_string());
        verify(&writing.path, 4, last).expect("all there");
        // It ends after one if it is told so.
        (writing.seconds, writing.until) = (3600, Some(file("progress")));
        assert_eq!(write(&writing).expect("written"), 0);
    }

    #[test]
    fn pauses_are_told_in_milliseconds() {
        let directory = tempfile::tempdir().expect("a directory");
        let pauses = directory.path().join("pauses");
        for ms in [150, 2001] {
            tell(&pauses, Duration::from_micros(ms * 1000 + 999)).expect("written");
        }
        assert_eq!(std::fs::read_to_string(&pauses).expect("there"), "150\n2001\n");
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
