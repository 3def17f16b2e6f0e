//! What a volume has to hold.
//!
//! In the file: a magic line, the seed, and for each block the number of the write that was answered last and
//! that of the write that was begun last, as text.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::{VerifyArguments, VerifyError};

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 4096;

/// What the file begins with.
const MAGIC: &str = "pollux verify 1";

/// Bytes of what is repeated in a block: seed, block and number.
const PIECE_BYTES: usize = 24;

/// The writes of one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Numbers {
    /// Of the last one that was answered; 0 for none.
    answered: u64,
    /// Of the last one that was begun.
    begun: u64,
    /// Of the last one that was answered before a flush that was answered too.
    flushed: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    seed: u64,
    blocks: Vec<Numbers>,
}

impl Expected {
    /// Zeros.
    pub(super) fn new(seed: u64, blocks: u32) -> Self {
        Self {
            seed,
            blocks: vec![Numbers::default(); blocks as usize],
        }
    }

    /// What a file says, or zeros if there is none.
    pub(super) fn load(path: &Path, arguments: &VerifyArguments) -> io::Result<Self> {
        let fresh = Self::new(arguments.seed, arguments.blocks);
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(fresh),
            Err(error) => return Err(error),
        };
        Self::parse(&text, fresh)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is no such file"))
    }

    fn parse(text: &str, mut expected: Self) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return None;
        }
        expected.seed = lines.next()?.parse().ok()?;
        for (at, line) in lines.enumerate() {
            let (answered, begun) = line.split_once(' ')?;
            let answered = answered.parse().ok()?;
            let numbers = Numbers {
                answered,
                begun: begun.parse().ok()?,
                // Runs end with a flush.
                flushed: answered,
            };
            match expected.blocks.get_mut(at) {
                Some(place) => *place = numbers,
                None => expected.blocks.push(numbers),
            }
        }
        Some(expected)
    }

    /// Writes the file.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let mut text = format!("{MAGIC}\n{}\n", self.seed);
        for numbers in &self.blocks {
            // Memory takes it.
            let _ = writeln!(text, "{} {}", numbers.answered, numbers.begun);
        }
        std::fs::write(path, text)
    }

    fn content(&self, block: u32, number: u64) -> [u8; BLOCK_BYTES] {
        let mut content = [0; BLOCK_BYTES];
        if number == 0 {
            return content;
        }
        let mut piece = [0; PIECE_BYTES];
        let words = [self.seed, u64::from(block), number];
        for (bytes, word) in piece.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        for place in content.chunks_mut(PIECE_BYTES) {
            let length = place.len();
            place.copy_from_slice(piece.get(..length).unwrap_or_default());
        }
        content
    }

    /// A write of a block begins; its content.
    pub(super) fn begin(&mut self, block: u32) -> [u8; BLOCK_BYTES] {
        let Some(numbers) = self.blocks.get_mut(block as usize) else {
            return [0; BLOCK_BYTES];
        };
        numbers.begun += 1;
        let number = numbers.begun;
        self.content(block, number)
    }

    /// The write of a block that was begun last is answered.
    pub(super) fn end(&mut self, block: u32) {
        if let Some(numbers) = self.blocks.get_mut(block as usize) {
            numbers.answered = numbers.begun;
        }
    }

    /// The numbers of the last writes that were answered.
    pub(super) fn answered(&self) -> Vec<u64> {
        self.blocks.iter().map(|numbers| numbers.answered).collect()
    }

    /// A flush was answered that began when these writes were.
    pub(super) fn flushed(&mut self, answered: &[u64]) {
        for (numbers, answered) in self.blocks.iter_mut().zip(answered) {
            numbers.flushed = numbers.flushed.max(*answered);
        }
    }

    /// What was answered and not flushed may be gone.
    pub(super) fn forget_unflushed(&mut self) {
        for numbers in &mut self.blocks {
            numbers.answered = numbers.answered.min(numbers.flushed);
        }
    }

    /// Checks what was read of a block. What was found of a write whose answer is not known stays so from
    /// then on.
    pub(super) fn check(&mut self, block: u32, data: &[u8]) -> Result<(), VerifyError> {
        let Some(numbers) = self.blocks.get(block as usize).copied() else {
            return Ok(());
        };
        for number in numbers.answered..=numbers.begun {
            if data == self.content(block, number) {
                if let Some(place) = self.blocks.get_mut(block as usize) {
                    place.answered = number;
                }
                return Ok(());
            }
        }
        let word = |at: usize| {
            let bytes = data.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        Err(VerifyError::Mismatch {
            block,
            found: match data.chunks_exact(PIECE_BYTES).next() {
                _ if data.iter().all(|byte| *byte == 0) => "zeros".to_owned(),
                // Every piece is the same.
                Some(piece) if data.chunks(PIECE_BYTES).all(|other| piece.starts_with(other)) => {
                    format!("write {} of block {} with seed {}", word(16), word(8), word(0))
                }
                _ => "what `verify` never wrote".to_owned(),
            },
            wanted: match numbers.answered == numbers.begun {
                true => numbers.answered.to_string(),
                false => format!("{} to {}", numbers.answered, numbers.begun),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_has_to_be_there() {
        let mut expected = Expected::new(7, 4);
        assert!(expected.check(1, &[0; BLOCK_BYTES]).is_ok());
        let first = expected.begin(1);
        assert!(
            expected.clone().check(1, &[0; BLOCK_BYTES]).is_ok(),
            "not answered"
        );
        assert!(expected.clone().check(1, &first).is_ok());
        expected.end(1);
        assert!(expected.check(1, &[0; BLOCK_BYTES]).is_err(), "lost");
        let other = expected
            .check(2, &first)
            .expect_err("of another block")
            .to_string();
        assert!(other.contains("write 1 of block 1 with seed 7"), "{other}");
        let mut foreign = first;
        foreign[4000] ^= 1;
        let foreign = expected
            .check(1, &foreign)
            .expect_err("of somebody else")
            .to_string();
        assert!(foreign.contains("never wrote"), "{foreign}");
        let second = expected.begin(1);
        // Once it was seen it must not go back.
        assert!(expected.check(1, &second).is_ok());
        assert!(expected.check(1, &first).is_err());
    }

    #[test]
    fn what_was_flushed_outlives_a_loss_of_power() {
        let mut expected = Expected::new(7, 1);
        let contents: Vec<_> = (0..3)
            .map(|number| {
                let content = expected.begin(0);
                expected.end(0);
                if number == 1 {
                    let answered = expected.answered();
                    expected.flushed(&answered);
                }
                content
            })
            .collect();
        assert!(expected.clone().check(0, &contents[1]).is_err());
        expected.forget_unflushed();
        assert!(expected.clone().check(0, &contents[0]).is_err());
        assert!(expected.clone().check(0, &contents[1]).is_ok());
        assert!(expected.clone().check(0, &contents[2]).is_ok());
    }

    #[test]
    fn a_file_tells_the_same() {
        let mut expected = Expected::new(7, 4);
        expected.begin(3);
        expected.end(3);
        expected.begin(2);
        let answered = expected.answered();
        expected.flushed(&answered);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        expected.save(&path).expect("it can be written");
        let text = std::fs::read_to_string(&path).expect("it can be read");
        assert_eq!(Expected::parse(&text, Expected::new(1, 2)), Some(expected));
        for bad in ["", "pollux verify 1\n", "pollux verify 1\n7\n1\n", "other\n7\n"] {
            assert_eq!(Expected::parse(bad, Expected::new(1, 2)), None, "{bad:?}");
        }
    }
}
