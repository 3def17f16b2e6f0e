//! The ways in which volumes can be used: `VolumeCapability` of the CSI specification.
//!
//! A file system is for one node that writes, or for any number that read. A block device can be used by
//! several nodes that write: virtual machines that move from one to another need that.

use std::fmt;
use std::str::FromStr;

use pollux_api::csi::v1::VolumeCapability;
use pollux_api::csi::v1::volume_capability::AccessType;
use pollux_api::csi::v1::volume_capability::access_mode::Mode;

use crate::error::CallError;

/// Bytes that all mount options of a volume may have together (CSI specification, `MountVolume.mount_flags`).
const MOUNT_FLAGS_BYTES_MAX: usize = 4096;

/// Mount options that would make another mount of it, or that are for programs and not for the kernel. With a
/// value, as in `loop=/dev/loop0`, they are the same.
const MOUNT_OPTIONS_FORBIDDEN: [&str; 14] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "offset",
    "shared",
    "rshared",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// The name of an option among those of a mount that no volume can have. What else they say may be secret.
fn forbidden(mount_flags: &[String]) -> Option<&'static str> {
    let mut options = mount_flags.iter().flat_map(|flags| flags.split(','));
    options.find_map(|option| {
        let name = option.split_once('=').map_or(option, |(name, _)| name);
        let mut known = MOUNT_OPTIONS_FORBIDDEN.into_iter();
        known.find(|known| *known == name.trim())
    })
}

/// A file system that volumes can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// ext4, which is taken if nothing else is asked for.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// As the kernel, `blkid` and Kubernetes call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for FileSystem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|one| one.name() == text)
            .ok_or_else(|| format!("{text} is no file system that volumes can have: give ext4, xfs or btrfs"))
    }
}

/// As what a volume is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A block device.
    Block,
    /// A file system.
    Mount {
        /// Which; left out: whatever the volume's class says.
        file_system: Option<FileSystem>,
        /// Options of mount.
        options: Vec<String>,
    },
}

/// By how many nodes a volume is used, and where on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// By one node that writes.
    OneWriter,
    /// By one node that writes, at one place there.
    OnePlace,
    /// By one node that reads.
    OneReader,
    /// By nodes that read.
    Readers,
    /// By nodes of which one writes.
    WriterAndReaders,
    /// By nodes that write.
    Writers,
}

impl Sharing {
    /// Whether no node writes.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::OneReader | Self::Readers)
    }

    /// Whether one node at most uses it.
    pub fn is_one_node(self) -> bool {
        matches!(self, Self::OneWriter | Self::OnePlace | Self::OneReader)
    }
}

/// One way of using a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// As what.
    pub access: Access,
    /// By how many.
    pub sharing: Sharing,
}

impl Capability {
    /// What a message asks for.
    ///
    /// # Errors
    ///
    /// [`CallError::Argument`] if something is missing or no volume can be used so.
    pub fn read(field: &'static str, capability: Option<&VolumeCapability>) -> Result<Self, CallError> {
        let capability = capability.ok_or_else(|| CallError::missing(field))?;
        let mode = capability.access_mode.as_ref();
        let mode = mode.ok_or_else(|| CallError::argument(field, "has no access_mode"))?;
        let sharing = match mode.mode() {
            Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter => Sharing::OneWriter,
            Mode::SingleNodeSingleWriter => Sharing::OnePlace,
            Mode::SingleNodeReaderOnly => Sharing::OneReader,
            Mode::MultiNodeReaderOnly => Sharing::Readers,
            Mode::MultiNodeSingleWriter => Sharing::WriterAndReaders,
            Mode::MultiNodeMultiWriter => Sharing::Writers,
            Mode::Unknown => {
                let problem = format!("has an access_mode that is not known: {}", mode.mode);
                return Err(CallError::argument(field, problem));
            }
        };
        let access = match &capability.access_type {
            None => return Err(CallError::argument(field, "is neither block nor mount")),
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(mount)) => {
                let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
                if bytes > MOUNT_FLAGS_BYTES_MAX {
                    let problem =
                        format!("has mount_flags of {bytes} bytes; give at most {MOUNT_FLAGS_BYTES_MAX}");
                    return Err(CallError::argument(field, problem));
                }
                if mount.mount_flags.iter().any(|flag| flag.contains('\0')) {
                    return Err(CallError::argument(field, "has mount_flags with a zero byte"));
                }
                if let Some(option) = forbidden(&mount.mount_flags) {
                    let problem = format!("has the mount option {option}, which no volume can have");
                    return Err(CallError::argument(field, problem));
                }
                let file_system = match mount.fs_type.as_str() {
                    "" => None,
                    name => Some(name.parse().map_err(|problem: String| {
                        CallError::argument(field, format!("has an fs_type that cannot be had: {problem}"))
                    })?),
                };
                Access::Mount {
                    file_system,
                    options: mount.mount_flags.clone(),
                }
            }
        };
        if matches!(access, Access::Mount { .. })
            && matches!(sharing, Sharing::WriterAndReaders | Sharing::Writers)
        {
            let problem = "asks for a file system that one node writes and others use: ask for a block \
                           device, or for one node, or for readers only";
            return Err(CallError::argument(field, problem));
        }
        Ok(Self { access, sharing })
    }

    /// What several messages ask for, all of which a volume has to be usable for.
    ///
    /// # Errors
    ///
    /// [`CallError::Argument`] if there are none, or no volume can be used so.
    pub fn read_all(field: &'static str, capabilities: &[VolumeCapability]) -> Result<Vec<Self>, CallError> {
        if capabilities.is_empty() {
            return Err(CallError::missing(field));
        }
        let all = capabilities.iter();
        all.map(|capability| Self::read(field, Some(capability)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use pollux_api::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn message(access_type: Option<AccessType>, mode: i32) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode }),
            access_type,
        }
    }

    fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
        let mount = MountVolume {
            fs_type: fs_type.to_owned(),
            ..MountVolume::default()
        };
        message(Some(AccessType::Mount(mount)), mode.into())
    }

    #[test]
    fn file_systems_are_for_one_writing_node() {
        for mode in [
            Mode::SingleNodeWriter,
            Mode::SingleNodeReaderOnly,
            Mode::MultiNodeReaderOnly,
            Mode::SingleNodeSingleWriter,
            Mode::SingleNodeMultiWriter,
        ] {
            assert!(
                Capability::read("c", Some(&mount("xfs", mode))).is_ok(),
                "{mode:?}"
            );
        }
        for mode in [Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
            assert!(Capability::read("c", Some(&mount("", mode))).is_err(), "{mode:?}");
            let block = message(Some(AccessType::Block(BlockVolume {})), mode.into());
            assert!(Capability::read("c", Some(&block)).is_ok(), "{mode:?}");
        }
    }

    #[test]
    fn mount_options_are_checked_before_anything_is_done() {
        let with = |options: &str| {
            let mount = MountVolume {
                mount_flags: vec!["noatime".to_owned(), options.to_owned()],
                ..MountVolume::default()
            };
            Capability::read(
                "c",
                Some(&message(
                    Some(AccessType::Mount(mount)),
                    Mode::SingleNodeWriter.into(),
                )),
            )
        };
        for option in MOUNT_OPTIONS_FORBIDDEN {
            for wrong in [option.to_owned(), format!("discard,{option}=x")] {
                assert!(with(&wrong).is_err(), "{wrong}");
            }
        }
        for right in ["", "discard,commit=30", "nosuid", "data=ordered", "context=bind"] {
            assert!(with(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_refused() {
        let block = Some(AccessType::Block(BlockVolume {}));
        let options = MountVolume {
            mount_flags: vec!["x".repeat(MOUNT_FLAGS_BYTES_MAX), "y".to_owned()],
            ..MountVolume::default()
        };
        let zero = MountVolume {
            mount_flags: vec!["no\0atime".to_owned()],
            ..MountVolume::default()
        };
        let writer = Mode::SingleNodeWriter.into();
        for wrong in [
            VolumeCapability::default(),
            message(None, writer),
            message(block.clone(), 0),
            message(block.clone(), 99),
            VolumeCapability {
                access_mode: None,
                access_type: block,
            },
            mount("ntfs", Mode::SingleNodeWriter),
            message(Some(AccessType::Mount(options)), writer),
            message(Some(AccessType::Mount(zero)), writer),
        ] {
            assert!(Capability::read("c", Some(&wrong)).is_err(), "{wrong:?}");
        }
        assert!(Capability::read("c", None).is_err());
        assert!(Capability::read_all("c", &[]).is_err());
    }
}
