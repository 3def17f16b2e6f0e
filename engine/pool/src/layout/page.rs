//! Pages: what trees are made of. 64 bytes of header, 4032 of entries.
//!
//! | byte | field of the header |
//! | --- | --- |
//! | 0 | magic `PLXPAGE` and the kind, u8: 1 map, 2 allocation state, 3 table of volumes |
//! | 8 | format version, u32; 12: level, u8, 0 for a leaf; 13: zeros |
//! | 16 | pool, 16 bytes |
//! | 32 | tree, u64: the volume that made the page, or the device |
//! | 40 | place among the pages of its level, u64 |
//! | 48 | birth, u64 |
//! | 60 | CRC-32C of the CRCs of bytes 0 to 59 and 64 on, u32 each; 1 in place of 0 |
//!
//! | entries of | bytes | count |
//! | --- | --- | --- |
//! | interior pages | 32, a page pointer | 126 |
//! | leaves of a map | 128, a slot | 31 |
//! | leaves of the allocation state | 2, the used blocks of an extent | 2016 |
//! | leaves of the table of volumes | 256, a volume | 15 |
//!
//! A page says which page it is, and a pointer says what CRC it has: a write that was lost or went
//! elsewhere is found when the page is read. All entries are decoded then, so that later uses of a page in
//! memory cannot fail.

use std::fmt;

use uuid::Uuid;

use super::field::{bytes_at, put, put_u32, put_u64, require, u32_at, u64_at, uuid_at};
use super::slot::Slot;
use super::volume::VolumeEntry;
use super::{BLOCK_BYTES, Block, FORMAT_VERSION, LayoutError, PagePointer, crc32c};

const MAGIC: [u8; 7] = *b"PLXPAGE";
const STRUCTURE: &str = "page";
const HEADER_BYTES: usize = 64;
const CRC_AT: usize = 60;

/// Pointers of an interior page.
pub const FAN_OUT: u64 = 126;
/// Slots of a leaf of a map.
pub const MAP_LEAF_SLOTS: u64 = 31;
/// Extents of a leaf of the allocation state.
pub const ALLOCATION_LEAF_EXTENTS: u64 = 2016;
/// Volumes and snapshots of a leaf of their table.
pub const VOLUME_LEAF_ENTRIES: u64 = 15;

/// What a tree keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// The slots of a volume.
    Map,
    /// The extents of a device.
    Allocation,
    /// The volumes of a pool.
    Volumes,
}

/// Which page it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageIdentity {
    /// What its tree keeps.
    pub kind: PageKind,
    /// 0 for a leaf.
    pub level: u8,
    /// The volume or device that made it.
    pub tree: u64,
    /// Its place among the pages of its level.
    pub index: u64,
    /// The generation in which it was made.
    pub birth: u64,
}

impl PageIdentity {
    /// Bytes of an entry, and how many there are.
    fn entries(&self) -> (usize, u64) {
        match (self.level, self.kind) {
            (1.., _) => (PagePointer::BYTES, FAN_OUT),
            (0, PageKind::Map) => (Slot::BYTES, MAP_LEAF_SLOTS),
            (0, PageKind::Allocation) => (2, ALLOCATION_LEAF_EXTENTS),
            (0, PageKind::Volumes) => (VolumeEntry::BYTES, VOLUME_LEAF_ENTRIES),
        }
    }
}

/// A page in memory. Its entries are valid, and its identity is known.
#[derive(Clone, PartialEq, Eq)]
pub struct Page {
    identity: PageIdentity,
    bytes: Box<Block>,
}

impl fmt::Debug for Page {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(formatter)
    }
}

impl Page {
    /// A page without entries.
    pub fn empty(pool: Uuid, identity: PageIdentity) -> Self {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        put(&mut *bytes, 0, &MAGIC);
        put_u32(&mut *bytes, 8, FORMAT_VERSION);
        put(&mut *bytes, 16, pool.as_bytes());
        let mut page = Self { identity, bytes };
        page.put_identity();
        page
    }

    fn put_identity(&mut self) {
        let kind = match self.identity.kind {
            PageKind::Map => 1,
            PageKind::Allocation => 2,
            PageKind::Volumes => 3,
        };
        put(&mut *self.bytes, 7, &[kind]);
        put(&mut *self.bytes, 12, &[self.identity.level]);
        put_u64(&mut *self.bytes, 32, self.identity.tree);
        put_u64(&mut *self.bytes, 40, self.identity.index);
        put_u64(&mut *self.bytes, 48, self.identity.birth);
    }

    /// The same entries in a page of a later generation, made by a tree.
    pub fn shadow(&self, tree: u64, birth: u64) -> Self {
        let mut page = self.clone();
        (page.identity.tree, page.identity.birth) = (tree, birth);
        page.put_identity();
        page
    }

    /// Which page it is.
    pub fn identity(&self) -> &PageIdentity {
        &self.identity
    }

    /// The bytes, with the CRC as of the last [`Page::seal`].
    pub fn bytes(&self) -> &Block {
        &self.bytes
    }

    /// Puts the CRC in, and returns it: for the pointer.
    pub fn seal(&mut self) -> u32 {
        let crc = page_crc(&self.bytes);
        put_u32(&mut *self.bytes, CRC_AT, crc);
        crc
    }

    /// Takes a page as it was read from where a pointer leads.
    ///
    /// `expected` says which page must be there; its tree is not compared, as clones share pages of others.
    ///
    /// # Errors
    ///
    /// [`LayoutError`]; the other copy may be well.
    pub fn open(
        bytes: Box<Block>,
        pool: Uuid,
        expected: &PageIdentity,
        crc: u32,
    ) -> Result<Self, LayoutError> {
        if bytes_at::<7>(&*bytes, 0) != MAGIC {
            return Err(LayoutError::Magic(STRUCTURE));
        }
        let found = page_crc(&bytes);
        if found != u32_at(&*bytes, CRC_AT) {
            return Err(LayoutError::Checksum(STRUCTURE));
        }
        if found != crc {
            return Err(LayoutError::OtherPage("checksum"));
        }
        match u32_at(&*bytes, 8) {
            FORMAT_VERSION => {}
            version => {
                return Err(LayoutError::Version {
                    structure: STRUCTURE,
                    version,
                });
            }
        }
        let [kind] = bytes_at(&*bytes, 7);
        let [level] = bytes_at(&*bytes, 12);
        let kind = match kind {
            1 => PageKind::Map,
            2 => PageKind::Allocation,
            3 => PageKind::Volumes,
            _ => {
                return Err(LayoutError::Field {
                    structure: STRUCTURE,
                    field: "kind",
                });
            }
        };
        let identity = PageIdentity {
            kind,
            level,
            tree: u64_at(&*bytes, 32),
            index: u64_at(&*bytes, 40),
            birth: u64_at(&*bytes, 48),
        };
        let differences = [
            (uuid_at(&*bytes, 16) != pool, "pool"),
            (kind != expected.kind, "kind"),
            (level != expected.level, "level"),
            (identity.index != expected.index, "place"),
            (identity.birth != expected.birth, "birth"),
        ];
        if let Some((_, field)) = differences.iter().find(|(differs, _)| *differs) {
            return Err(LayoutError::OtherPage(field));
        }
        let page = Self { identity, bytes };
        page.check_entries()?;
        Ok(page)
    }

    fn check_entries(&self) -> Result<(), LayoutError> {
        let (_, count) = self.identity.entries();
        for at in 0..count {
            match (self.identity.level, self.identity.kind) {
                (1.., _) => drop(PagePointer::get(self.entry(at), 0, STRUCTURE)?),
                (0, PageKind::Map) => drop(Slot::decode(self.entry(at))?),
                (0, PageKind::Volumes) => drop(VolumeEntry::decode(self.entry(at))?),
                (0, PageKind::Allocation) => {}
            }
        }
        let end = HEADER_BYTES + self.identity.entries().0 * count as usize;
        let rest_is_zeros = self.bytes.iter().skip(end).all(|byte| *byte == 0);
        require(rest_is_zeros, STRUCTURE, "reserved bytes")
    }

    /// The bytes of an entry; none past the last one.
    pub fn entry(&self, at: u64) -> &[u8] {
        let (bytes, count) = self.identity.entries();
        if at >= count {
            return &[];
        }
        let start = HEADER_BYTES + at as usize * bytes;
        self.bytes.get(start..start + bytes).unwrap_or_default()
    }

    /// Replaces the bytes of an entry; nothing happens if their number is wrong or there is no such entry.
    pub fn put_entry(&mut self, at: u64, entry: &[u8]) {
        let (bytes, count) = self.identity.entries();
        if at < count && entry.len() == bytes {
            put(&mut *self.bytes, HEADER_BYTES + at as usize * bytes, entry);
        }
    }

    /// Replaces some bytes of an entry, which must leave it valid; nothing happens where there is no such
    /// place.
    pub(crate) fn patch_entry(&mut self, at: u64, offset: usize, patch: &[u8]) {
        let (bytes, count) = self.identity.entries();
        if at < count && offset + patch.len() <= bytes {
            put(
                &mut *self.bytes,
                HEADER_BYTES + at as usize * bytes + offset,
                patch,
            );
        }
    }

    /// A pointer of an interior page.
    pub fn pointer(&self, at: u64) -> Option<PagePointer> {
        if self.identity.level == 0 {
            return None;
        }
        // Checked when the page was opened.
        PagePointer::get(self.entry(at), 0, STRUCTURE).ok().flatten()
    }

    /// Replaces a pointer of an interior page.
    pub fn put_pointer(&mut self, at: u64, pointer: Option<&PagePointer>) {
        let mut bytes = [0; PagePointer::BYTES];
        PagePointer::put(pointer, &mut bytes, 0);
        self.put_entry(at, &bytes);
    }

    /// Whether all entries are zeros.
    pub fn is_empty(&self) -> bool {
        self.bytes.iter().skip(HEADER_BYTES).all(|byte| *byte == 0)
    }
}

/// The CRC of everything but the place of the CRC.
pub(super) fn page_crc(bytes: &Block) -> u32 {
    let header = crc32c(&bytes[..CRC_AT]);
    let entries = crc32c(&bytes[HEADER_BYTES..]);
    let mut both = [0; 8];
    put_u32(&mut both, 0, header);
    put_u32(&mut both, 4, entries);
    // 0 says in a pointer that its page has none yet.
    crc32c(&both).max(1)
}
