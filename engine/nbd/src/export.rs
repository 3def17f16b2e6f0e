//! What is exported under which name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use pollux_device::{Device, Geometry};

use crate::PIECE_BYTES_MAX;
use crate::wire::transmission as flag;

/// A device that clients reach by its name.
#[derive(Clone)]
pub struct Export {
    /// The device; its name is the export's.
    pub device: Arc<dyn Device>,
    /// For people.
    pub description: String,
}

impl Export {
    /// The transmission flags of the device as it is.
    pub(crate) fn transmission_flags(&self, allow_resize: bool) -> u16 {
        let geometry = self.device.geometry();
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_DF
            | flag::SEND_CACHE
            // A flush on one connection covers what was completed on all of them: devices promise that.
            | flag::CAN_MULTI_CONN;
        if geometry.read_only {
            flags |= flag::READ_ONLY;
        } else if allow_resize {
            flags |= flag::SEND_RESIZE;
        }
        flags
    }

    /// Minimum, preferred and maximum block size in bytes (proto, "Block size constraints").
    pub(crate) fn block_sizes(&self) -> [u32; 3] {
        let Geometry {
            block_bytes,
            optimal_blocks,
            ..
        } = self.device.geometry();
        let preferred = block_bytes.saturating_mul(optimal_blocks.max(1));
        let preferred = preferred.clamp(4096, PIECE_BYTES_MAX).next_power_of_two();
        [block_bytes, preferred.max(block_bytes), PIECE_BYTES_MAX * 32]
    }
}

/// The exports of a server; changed live, read by every negotiation.
#[derive(Clone, Default)]
pub struct Exports(Arc<RwLock<BTreeMap<String, Export>>>);

impl Exports {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Exports a device under its name, in place of the one of this name if there was one.
    pub fn insert(&self, export: Export) {
        let name = export.device.name().to_owned();
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, export);
    }

    /// Ends an export; connections to it go on until they end themselves.
    pub fn remove(&self, name: &str) -> Option<Export> {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name)
    }

    /// The export of this name. The empty name stands for the only export there is.
    pub(crate) fn find(&self, name: &str) -> Option<Export> {
        let exports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match (name, exports.len()) {
            ("", 1) => exports.values().next().cloned(),
            _ => exports.get(name).cloned(),
        }
    }

    /// Names and descriptions.
    pub(crate) fn list(&self) -> Vec<(String, String)> {
        let exports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        exports
            .iter()
            .map(|(name, export)| (name.clone(), export.description.clone()))
            .collect()
    }
}
