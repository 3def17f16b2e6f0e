//! Logs of what a controller supports, and the changed namespaces.

use super::LogPageId;
use crate::wire::command::{AdminOpcode, IoOpcode};
use crate::wire::identify::{IDENTIFY_BYTES, NAMESPACE_ALL, write_namespace_list};
use crate::wire::structure::{structure, wire_flags};

wire_flags! {
    /// Whether a log page is supported, and what of it (Base 2.0, 5.16.1.1). Bits 31:16 depend on the page.
    pub struct LogPageSupport: u32 {
        /// Supported (LSUPP).
        SUPPORTED = 1 << 0,
        /// Takes offsets counted in entries (IOS).
        INDEX_OFFSET = 1 << 1,
    }
}

structure! {
    /// The Supported Log Pages log (Base 2.0, 5.16.1.1).
    pub struct SupportedLogPages: 1024 {
        /// Support by identifier.
        0 => pages: [LogPageSupport; 256],
    }
}

impl SupportedLogPages {
    /// The log that says just these pages are supported.
    #[must_use]
    pub fn of(pages: &[LogPageId]) -> Self {
        let mut log = Self::default();
        for page in pages {
            log.pages[usize::from(page.to_wire())] = LogPageSupport::SUPPORTED;
        }
        log
    }
}

wire_flags! {
    /// Whether a command is supported, and its effects (Base 2.0, 5.16.1.6).
    pub struct CommandEffects: u32 {
        /// Supported (CSUPP).
        SUPPORTED = 1 << 0,
        /// May change the content of logical blocks (LBCC).
        BLOCK_CONTENT = 1 << 1,
        /// May change the capabilities of a namespace (NCC).
        NAMESPACE_CAPABILITY = 1 << 2,
        /// May change which namespaces there are (NIC).
        NAMESPACE_INVENTORY = 1 << 3,
        /// May change the capabilities of controllers (CCC).
        CONTROLLER_CAPABILITY = 1 << 4,
        /// Is to be sent alone to its namespace (001b in bits 18:16, CSE).
        ALONE_IN_NAMESPACE = 0b001 << 16,
        /// Is to be sent alone to any namespace (010b in bits 18:16, CSE).
        ALONE = 0b010 << 16,
        /// Takes a UUID (USS).
        UUID_SELECTION = 1 << 19,
        /// Acts on a namespace (CSP).
        SCOPE_NAMESPACE = 1 << 20,
        /// Acts on a controller (CSP).
        SCOPE_CONTROLLER = 1 << 21,
        /// Acts on the subsystem (CSP).
        SCOPE_SUBSYSTEM = 1 << 25,
    }
}

structure! {
    /// The Commands Supported and Effects log (Base 2.0, 5.16.1.6).
    pub struct CommandEffectsLog: 4096 {
        /// Admin commands by opcode (ACS).
        0 => admin: [CommandEffects; 256],
        /// I/O commands by opcode (IOCS).
        1024 => io: [CommandEffects; 256],
    }
}

impl CommandEffectsLog {
    /// The same with this admin command supported, with these effects.
    #[must_use]
    pub fn with_admin(mut self, opcode: AdminOpcode, effects: CommandEffects) -> Self {
        self.admin[usize::from(opcode.to_wire())] = effects | CommandEffects::SUPPORTED;
        self
    }

    /// The same with this I/O command supported, with these effects.
    #[must_use]
    pub fn with_io(mut self, opcode: IoOpcode, effects: CommandEffects) -> Self {
        self.io[usize::from(opcode.to_wire())] = effects | CommandEffects::SUPPORTED;
        self
    }
}

/// Most namespaces in a Changed Namespace List.
const CHANGED_NAMESPACES_MAX: usize = IDENTIFY_BYTES / size_of::<u32>();

/// Fills a Changed Namespace List (Base 2.0, 5.16.1.5) with these identifiers, which are to ascend. More than
/// 1024 are told by a single FFFFFFFFh.
pub fn changed_namespaces(ids: impl IntoIterator<Item = u32>, out: &mut [u8; IDENTIFY_BYTES]) {
    let mut ids = ids.into_iter();
    write_namespace_list(ids.by_ref().take(CHANGED_NAMESPACES_MAX), out);
    if ids.next().is_some() {
        write_namespace_list([NAMESPACE_ALL], out);
    }
}
