//! Settings from a file, and what is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use pollux_nvme::target::ConfigError;
use pollux_volume::qos::QosError;

use super::Settings;

/// Longest settings file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is wrong with the settings: where, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the settings in {}: {source}; check the path and its permissions", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not a settings file.
    #[error("{} is longer than {FILE_BYTES_MAX} bytes: is it the right file?", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file says something that cannot be understood.
    #[error("{}:{line}:{column}: {message}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A limit is out of its bounds.
    #[error("the settings in nvmf.limits: {0}")]
    Limits(#[from] ConfigError),
    /// Limits of a namespace are out of their bounds.
    #[error("the settings in namespaces.qos: {0}")]
    Qos(#[from] QosError),
    /// A field is out of its bounds.
    #[error("the setting {field} is out of bounds: set it to {bounds}")]
    Value {
        /// The field, with the tables it is in.
        field: &'static str,
        /// What it can be.
        bounds: &'static str,
    },
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`SettingsError::Read`], [`SettingsError::TooLong`] and [`SettingsError::Syntax`].
    pub fn from_file(path: &Path) -> Result<Self, SettingsError> {
        let read = |source| SettingsError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        let mut file = File::open(path).map_err(read)?.take(FILE_BYTES_MAX + 1);
        file.read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            let path = path.to_owned();
            return Err(SettingsError::TooLong { path });
        }
        Self::from_toml(path, &text)
    }

    /// Understands the text of a file; `path` is for errors.
    ///
    /// # Errors
    ///
    /// [`SettingsError::Syntax`].
    pub fn from_toml(path: &Path, text: &str) -> Result<Self, SettingsError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let (line, column) = position(text, at);
            SettingsError::Syntax {
                path: path.to_owned(),
                line,
                column,
                message: for_people(error.message()),
            }
        })
    }
}

/// Line and column, from 1, of a byte in a text.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before: Vec<char> = text
        .char_indices()
        .take_while(|(index, _)| *index < at)
        .map(|(_, character)| character)
        .collect();
    let line = before.iter().filter(|character| **character == '\n').count() + 1;
    let column = before
        .iter()
        .rev()
        .take_while(|character| **character != '\n')
        .count()
        + 1;
    (line, column)
}

/// What the parser says, in one line and with the words of this program.
fn for_people(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace("unknown field", "unknown key")
        .replace("missing field", "missing key")
        .replace("expected a sequence", "expected a list, as [\"...\"]")
        .replace(
            "invalid socket address syntax",
            "this is no ADDRESS:PORT in numbers, such as \"0.0.0.0:4420\"",
        )
        .replace("there are no fields", "there are no keys here")
}
