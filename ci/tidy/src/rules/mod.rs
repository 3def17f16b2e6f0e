//! The rules, by what they look at.

pub(crate) mod code;
pub(crate) mod dependencies;
pub(crate) mod text;
