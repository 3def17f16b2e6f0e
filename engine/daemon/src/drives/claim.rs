//! Who else a drive may belong to, and when it may be taken all the same.

use super::DrivesError;
use super::signature::{self, Content};
use crate::doctor::{Drive, Roots};

/// What a namespace of a drive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// The name of the block device.
    pub(super) namespace: String,
    /// What is known about its content; `None` if it could not be read.
    pub(super) content: Option<Content>,
    /// Partitions that the kernel has found.
    pub(super) partitions: usize,
}

impl Claim {
    /// Looks at every namespace of a drive that the kernel has.
    pub(super) fn read_all(roots: &Roots, drive: &Drive) -> Vec<Self> {
        let read = |name: &str| signature::read(&roots.dev.join(name)).ok();
        drive
            .namespaces
            .iter()
            .map(|namespace| Self {
                namespace: namespace.name.clone(),
                content: read(&namespace.name),
                partitions: namespace.partitions,
            })
            .collect()
    }

    /// Whose it is, in words; `None` if it may be taken.
    pub(super) fn holds(&self) -> Option<String> {
        match &self.content {
            Some(Content::Foreign(what)) => Some((*what).to_owned()),
            _ if self.partitions > 0 => Some(format!("{} partitions", self.partitions)),
            Some(Content::Own | Content::Unmarked) => None,
            None => Some("something that cannot be read here".to_owned()),
        }
    }
}

/// Refuses a drive that is in use, or holds what nobody has given up by its name.
///
/// # Errors
///
/// [`DrivesError::InUse`] and [`DrivesError::Holds`].
pub(super) fn refuse(drive: &Drive, claims: &[Claim], given_up: &[String]) -> Result<(), DrivesError> {
    let mut users = Vec::new();
    for namespace in &drive.namespaces {
        users.extend(
            namespace
                .used_by
                .iter()
                .map(|user| format!("{} by {user}", namespace.name)),
        );
    }
    if !users.is_empty() {
        return Err(DrivesError::InUse {
            address: drive.address.clone(),
            users,
        });
    }
    for name in given_up {
        if !claims.iter().any(|claim| claim.namespace == *name) {
            return Err(DrivesError::NotOnDrive {
                address: drive.address.clone(),
                name: name.clone(),
            });
        }
    }
    for claim in claims {
        if let Some(what) = claim.holds()
            && !given_up.contains(&claim.namespace)
        {
            return Err(DrivesError::Holds {
                address: drive.address.clone(),
                namespace: claim.namespace.clone(),
                what,
            });
        }
    }
    Ok(())
}
