//! NVMe Qualified Names and the fields they travel in (Base 2.0, 4.5).

use std::fmt;

pub use pollux_nqn::{DISCOVERY_NQN, NQN_BYTES_MAX, NQN_FIELD_BYTES, Nqn, NqnError};

use super::structure::Field;

/// The field of a data structure that is to hold a name, as it travels; a peer may have put anything there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NqnField(pub [u8; NQN_FIELD_BYTES]);

impl NqnField {
    /// The name in the field.
    ///
    /// # Errors
    /// As [`Nqn::from_field`].
    pub fn name(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.0)
    }
}

impl From<&Nqn> for NqnField {
    fn from(name: &Nqn) -> Self {
        Self(name.to_field())
    }
}

impl Field for NqnField {
    const BYTES: usize = NQN_FIELD_BYTES;

    fn read(bytes: &[u8]) -> Self {
        Self(Field::read(bytes))
    }

    fn write(&self, out: &mut [u8]) {
        self.0.write(out);
    }
}

impl fmt::Debug for NqnField {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Ok(name) => fmt::Debug::fmt(&name, formatter),
            Err(error) => write!(formatter, "NqnField({error})"),
        }
    }
}
