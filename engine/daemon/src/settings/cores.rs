//! Lists of processors as people write them: `0,2-5`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The highest processor number that is read; Linux knows fewer.
const CORE_MAX: u32 = 16_383;

/// Most processors in a list.
pub const CORES_MAX: usize = 1_024;

/// Processors, in the order given; none twice.
///
/// On the command line and in files it is `0,2-5`; a file may also give a list of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CoreList(Vec<u32>);

/// A text that is no list of processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreListError {
    /// Not numbers and ranges.
    #[error("{text:?} is not a list of cores: write numbers and ranges, such as 0,2-5")]
    Syntax {
        /// What was given.
        text: String,
    },
    /// Named twice.
    #[error("core {core} is given twice: a reactor needs a core of its own")]
    Duplicate {
        /// The processor.
        core: u32,
    },
    /// Longer than can be.
    #[error("more than {CORES_MAX} cores are given: give fewer")]
    TooMany,
}

impl CoreList {
    /// A list without duplicates.
    ///
    /// # Errors
    ///
    /// [`CoreListError`].
    pub fn new(cores: impl IntoIterator<Item = u32>) -> Result<Self, CoreListError> {
        let mut list = Vec::new();
        for core in cores {
            if list.contains(&core) {
                return Err(CoreListError::Duplicate { core });
            }
            if list.len() == CORES_MAX {
                return Err(CoreListError::TooMany);
            }
            list.push(core);
        }
        Ok(Self(list))
    }

    /// The processors.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for CoreList {
    type Err = CoreListError;

    fn from_str(text: &str) -> Result<Self, CoreListError> {
        let syntax = || CoreListError::Syntax {
            text: text.chars().take(64).collect(),
        };
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>()
                .ok()
                .filter(|core| is_number && *core <= CORE_MAX)
                .ok_or_else(syntax)
        };
        let mut cores = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first.trim())?, number(last.trim())?);
            if first > last {
                return Err(syntax());
            }
            cores.extend(first..=last);
        }
        Self::new(cores)
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        let mut separator = "";
        while let Some((&first, _)) = rest.split_first() {
            let run = rest
                .iter()
                .zip(first..)
                .take_while(|&(core, expected)| *core == expected)
                .count();
            let last = first + run as u32 - 1;
            match run {
                1 => write!(formatter, "{separator}{first}")?,
                2 => write!(formatter, "{separator}{first},{last}")?,
                _ => write!(formatter, "{separator}{first}-{last}")?,
            }
            rest = &rest[run..];
            separator = ",";
        }
        Ok(())
    }
}

impl Serialize for CoreList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CoreList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = CoreList;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of cores, such as [0, 2] or \"0,2-5\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CoreList, E> {
                if text.is_empty() {
                    return Ok(CoreList::default());
                }
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<CoreList, A::Error> {
                let mut cores = Vec::new();
                while let Some(core) = sequence.next_element::<u32>()? {
                    if core > CORE_MAX {
                        return Err(de::Error::custom(format!("core {core} is above {CORE_MAX}")));
                    }
                    cores.push(core);
                }
                CoreList::new(cores).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_numbers_and_ranges() {
        for (text, cores) in [
            ("0", vec![0]),
            ("0,1", vec![0, 1]),
            ("3, 0-2", vec![3, 0, 1, 2]),
            ("5-5", vec![5]),
        ] {
            assert_eq!(text.parse::<CoreList>().map(|list| list.0), Ok(cores), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_list() {
        for text in [
            "", "a", "1,", ",1", "2-1", "-1", "+1", "1--2", "1.5", "99999", "0-16384",
        ] {
            assert!(
                matches!(text.parse::<CoreList>(), Err(CoreListError::Syntax { .. })),
                "{text}"
            );
        }
        assert_eq!(
            "1,0-2".parse::<CoreList>(),
            Err(CoreListError::Duplicate { core: 1 })
        );
        assert_eq!("0-2000".parse::<CoreList>(), Err(CoreListError::TooMany));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(cores in proptest::collection::hash_set(0..64_u32, 1..20)) {
            let list = CoreList::new(cores).expect("a set has no duplicates");
            prop_assert_eq!(list.to_string().parse::<CoreList>(), Ok(list));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = text.parse::<CoreList>();
        }
    }
}
