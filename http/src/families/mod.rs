//! The names of all metrics: what dashboards and alerts rely on.
//!
//! Names follow the conventions of Prometheus: `pollux_`, what it is about, the base unit, and `_total` for
//! what only grows. A name is never used for something else; what is gone is gone.

pub mod control;
pub mod daemon;
pub mod engine;

use crate::metrics::Family;

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Family> {
    let daemons = daemon::ALL.iter().chain(control::ALL);
    daemons.chain(engine::ALL).copied()
}

macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: $crate::metrics::Family = $crate::metrics::Family {
                name: $name,
                kind: $crate::metrics::Kind::$kind,
                help: $help,
                labels: &[$($label),*],
            };
        )*

        /// All of these.
        pub static ALL: &[&$crate::metrics::Family] = &[$(&$constant),*];
    };
}

pub(crate) use families;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metrics::Kind;

    #[test]
    fn names_follow_the_conventions() {
        let mut names = BTreeSet::new();
        for family in all() {
            let name = family.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("pollux_"), "{name}");
            let is_letter =
                |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
            assert!(name.chars().all(is_letter), "{name}");
            assert_eq!(name.ends_with("_total"), family.kind == Kind::Counter, "{name}");
            for unit in [
                "ms",
                "us",
                "ns",
                "milliseconds",
                "microseconds",
                "kib",
                "mib",
                "percent",
            ] {
                assert!(
                    !name.split('_').any(|part| part == unit),
                    "{name} is not in a base unit"
                );
            }
            if family.kind == Kind::Histogram {
                assert!(name.ends_with("_seconds"), "{name} has no unit");
            }
            assert!(
                family.help.ends_with('.') && family.help.len() > 10,
                "{name}: {}",
                family.help
            );
            for label in family.labels {
                assert!(
                    label.chars().all(is_letter) && !label.starts_with("__"),
                    "{name}: {label}"
                );
                assert_ne!(*label, "le", "{name}");
            }
        }
    }
}
