//! The lists among the Identify structures (Base 2.0, 4.4 and 5.17.2).
//!
//! ```text
//! namespaces    1024 identifiers of 4 bytes, ascending, ended by 0
//! controllers   0 count (2 bytes), then that many identifiers of 2 bytes, ascending, at most 2047
//! descriptors   each: 0 type   1 length   4 identifier; ended by length 0
//! command sets  512 vectors of 8 bytes; bit n says that command set n is in the combination
//! ```

use uuid::Uuid;

use super::IDENTIFY_BYTES;
use crate::wire::structure::structure;

const NAMESPACE_ID_BYTES: usize = 4;
const CONTROLLER_ID_BYTES: usize = 2;

/// Fills a namespace list (CNS 02h, 07h, 10h, 1Ah) with these identifiers, which are to ascend and to be
/// above the one named in the command. Those beyond the 1024th are left out: the host asks again from the
/// last.
pub fn write_namespace_list(ids: impl IntoIterator<Item = u32>, out: &mut [u8; IDENTIFY_BYTES]) {
    out.fill(0);
    for (slot, id) in out.chunks_exact_mut(NAMESPACE_ID_BYTES).zip(ids) {
        slot.copy_from_slice(&id.to_le_bytes());
    }
}

/// The identifiers of a namespace list, up to its end or the first 0.
pub fn parse_namespace_list(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let (ids, _) = bytes.as_chunks::<NAMESPACE_ID_BYTES>();
    ids.iter()
        .map(|id| u32::from_le_bytes(*id))
        .take_while(|id| *id != 0)
}

/// Fills a controller list (CNS 12h, 13h) with these identifiers, which are to ascend. Those beyond the
/// 2047th are left out.
pub fn write_controller_list(ids: impl IntoIterator<Item = u16>, out: &mut [u8; IDENTIFY_BYTES]) {
    out.fill(0);
    let mut count: u16 = 0;
    for (slot, id) in out.chunks_exact_mut(CONTROLLER_ID_BYTES).skip(1).zip(ids) {
        slot.copy_from_slice(&id.to_le_bytes());
        count += 1;
    }
    if let Some(slot) = out.first_chunk_mut() {
        *slot = count.to_le_bytes();
    }
}

/// The identifiers of a controller list.
pub fn parse_controller_list(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    let (words, _) = bytes.as_chunks::<CONTROLLER_ID_BYTES>();
    let mut words = words.iter().map(|word| u16::from_le_bytes(*word));
    let count = words.next().unwrap_or(0);
    words.take(count.into())
}

/// An identifier of a namespace (Base 2.0, 5.17.2.3 "Namespace Identification Descriptor").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceDescriptor {
    /// IEEE Extended Unique Identifier (type 1).
    Eui64([u8; 8]),
    /// Namespace Globally Unique Identifier (type 2).
    Nguid([u8; 16]),
    /// UUID (type 3).
    Uuid(Uuid),
    /// Command set (type 4); see [`CommandSetId`](super::CommandSetId).
    CommandSet(u8),
}

const TYPE_EUI64: u8 = 1;
const TYPE_NGUID: u8 = 2;
const TYPE_UUID: u8 = 3;
const TYPE_COMMAND_SET: u8 = 4;
const DESCRIPTOR_HEADER_BYTES: usize = 4;

impl NamespaceDescriptor {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::Eui64(id) => (TYPE_EUI64, id),
            Self::Nguid(id) => (TYPE_NGUID, id),
            Self::Uuid(id) => (TYPE_UUID, id.as_bytes()),
            Self::CommandSet(id) => (TYPE_COMMAND_SET, std::slice::from_ref(id)),
        }
    }

    fn from_parts(descriptor_type: u8, id: &[u8]) -> Option<Self> {
        Some(match descriptor_type {
            TYPE_EUI64 => Self::Eui64(id.try_into().ok()?),
            TYPE_NGUID => Self::Nguid(id.try_into().ok()?),
            TYPE_UUID => Self::Uuid(Uuid::from_slice(id).ok()?),
            TYPE_COMMAND_SET => Self::CommandSet(u8::from_le_bytes(id.try_into().ok()?)),
            _ => return None,
        })
    }
}

/// Fills a descriptor list (CNS 03h). The four kinds together always fit; what does not is left out.
pub fn write_descriptors(descriptors: &[NamespaceDescriptor], out: &mut [u8; IDENTIFY_BYTES]) {
    out.fill(0);
    let mut rest: &mut [u8] = out;
    for descriptor in descriptors {
        let (descriptor_type, id) = descriptor.parts();
        let Some((slot, behind)) = rest.split_at_mut_checked(DESCRIPTOR_HEADER_BYTES + id.len()) else {
            return;
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
        let header = [descriptor_type, id.len() as u8, 0, 0];
        for (to, from) in slot.iter_mut().zip(header.iter().chain(id)) {
            *to = *from;
        }
        rest = behind;
    }
}

/// The descriptors of a list, up to its end. Unknown types, and known ones of a wrong length, are passed
/// over.
pub fn parse_descriptors(bytes: &[u8]) -> impl Iterator<Item = NamespaceDescriptor> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let ([descriptor_type, length, _, _], behind) =
                rest.split_first_chunk::<DESCRIPTOR_HEADER_BYTES>()?;
            let (id, behind) = behind
                .split_at_checked(usize::from(*length))
                .filter(|(id, _)| !id.is_empty())?;
            rest = behind;
            if let Some(descriptor) = NamespaceDescriptor::from_parts(*descriptor_type, id) {
                return Some(descriptor);
            }
        }
    })
}

structure! {
    /// Combinations of command sets, CNS 1Ch (Base 2.0, 5.17.2.21): bit n of a vector says that command set n
    /// is in the combination, and a vector of 0 ends the list. The I/O Command Set Profile feature chooses
    /// one by its index.
    pub struct CommandSets: 4096 {
        /// The combinations.
        0 => combinations: [u64; 512],
    }
}

impl CommandSets {
    /// The one combination of the NVM command set alone.
    #[must_use]
    pub fn nvm() -> Self {
        let mut combinations = [0; 512];
        combinations[0] = 1 << super::CommandSetId::Nvm.to_wire();
        Self { combinations }
    }
}
