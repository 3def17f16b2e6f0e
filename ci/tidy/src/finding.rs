//! What is against the style, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is against the style.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, from the root of the checkout.
    pub path: PathBuf,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, and what to do instead.
    pub message: String,
}

impl Finding {
    /// Something in a line.
    pub fn at(path: &Path, line: usize, message: impl Into<String>) -> Self {
        let (path, message) = (path.to_owned(), message.into());
        Self { path, line, message }
    }

    /// Something about a file as a whole.
    pub fn in_file(path: &Path, message: impl Into<String>) -> Self {
        Self::at(path, 0, message)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.path.display(), self.message),
            line => write!(formatter, "{}:{line}: {}", self.path.display(), self.message),
        }
    }
}
