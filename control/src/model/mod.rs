//! The messages of the interface as records of the store: how they are named, found and read.
//!
//! A record is stored under `/KIND/NAME`. Its revision is the store's and is not stored with it.

mod group_snapshot;
mod limits;
mod membership;
mod policy;
mod roll_back;
mod validate;
mod volatile;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::LazyLock;

use pollux_api::control::v1::{
    Event, Group, GroupSnapshot, Metadata, Node, Pool, Rebalance, Removal, Snapshot, StoredHostSecrets,
    StoredToken, Template, Volume, VolumeSpec,
};
use prost::Message;

use crate::store::{Condition, Entry, StoreError, Transaction, Write};

pub use group_snapshot::{is_being_taken_of, is_settled};
pub use membership::{
    SLOTS, SNAPSHOTS_MAX, check as check_membership, check_follows, forget_snapshots, free_slot, is_ending,
    membership, put_membership,
};
pub use policy::{EffectivePolicy, REPLICAS_MAX};
pub use roll_back::{
    add_roll_back, goes_back_to, has_snapshot, is_over, not_whole, recovered_roll_backs, roll_back,
    roll_back_under_way,
};
pub use validate::{
    Checker, FieldError, Validate, host_nqn, label_map, name as check_name, node_address, token_spec,
    volume_size,
};
pub(crate) use validate::{GROUP_SNAPSHOT_VOLUMES_MAX, HOSTS_MAX, NAME_CHARACTERS_MAX, VOLUME_UNIT_BYTES};
pub(crate) use volatile::{VOLATILE, is_volatile};

/// Kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A machine with an engine.
    Node,
    /// The drives of a node that hold replicas.
    Pool,
    /// What hosts use.
    Volume,
    /// What a volume was at one instant.
    Snapshot,
    /// Volumes that belong together.
    Group,
    /// How volumes keep their data.
    Template,
    /// Something that happened.
    Event,
    /// Something that is to be removed from an engine.
    Removal,
    /// A right to call.
    Token,
    /// A plan to spread data and targets.
    Rebalance,
    /// What several volumes were at one instant.
    GroupSnapshot,
    /// What a host of a volume authenticates by.
    HostSecrets,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Node,
        Self::Pool,
        Self::Volume,
        Self::Snapshot,
        Self::Group,
        Self::Template,
        Self::Event,
        Self::Removal,
        Self::Token,
        Self::Rebalance,
        Self::GroupSnapshot,
        Self::HostSecrets,
    ];

    /// Its name, also in keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pool => "pool",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Group => "group",
            Self::Template => "template",
            Self::Event => "event",
            Self::Removal => "removal",
            Self::Token => "token",
            Self::Rebalance => "rebalance",
            Self::GroupSnapshot => "group-snapshot",
            Self::HostSecrets => "host-secrets",
        }
    }

    /// The field of requests that has one of it.
    pub fn field(self) -> &'static str {
        match self {
            Self::GroupSnapshot => "group_snapshot",
            Self::HostSecrets => "host_secrets",
            other => other.name(),
        }
    }

    /// What the keys of its records begin with.
    pub fn prefix(self) -> String {
        format!("/{}/", self.name())
    }

    /// The key of a record.
    pub fn key(self, name: &str) -> String {
        format!("/{}/{name}", self.name())
    }

    /// Kind and name of a key, if it is one of a record.
    pub fn parse(key: &str) -> Option<(Self, &str)> {
        let (kind, name) = key.strip_prefix('/')?.split_once('/')?;
        let kind = Self::ALL.into_iter().find(|known| known.name() == kind)?;
        Some((kind, name))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The label of snapshots that a schedule took: the name of its group.
pub(crate) const SCHEDULE_LABEL: &str = "pollux.io/schedule";

static NOTHING: LazyLock<Metadata> = LazyLock::new(Metadata::default);

/// A message that is stored.
pub trait Record: Message + Default + Clone + PartialEq + 'static {
    /// Its kind.
    const KIND: Kind;

    /// Its metadata, if it has any.
    fn metadata_field(&self) -> &Option<Metadata>;

    /// Its metadata, to be changed.
    fn metadata_field_mut(&mut self) -> &mut Option<Metadata>;

    /// Whether both were asked for alike.
    fn is_same_request(&self, other: &Self) -> bool;

    /// Its metadata; an empty one if it has none.
    fn meta(&self) -> &Metadata {
        self.metadata_field().as_ref().unwrap_or(&NOTHING)
    }

    /// Its metadata, to be changed; made if it has none.
    fn meta_mut(&mut self) -> &mut Metadata {
        self.metadata_field_mut().get_or_insert_default()
    }

    /// Its name.
    fn name(&self) -> &str {
        &self.meta().name
    }

    /// Its key.
    fn key(&self) -> String {
        Self::KIND.key(self.name())
    }

    /// What people call it: KIND/NAME.
    fn subject(&self) -> String {
        format!("{}/{}", Self::KIND, self.name())
    }

    /// Whether its deletion was asked for.
    fn is_deleting(&self) -> bool {
        self.meta().deleted_unix_us.is_some()
    }

    /// Reads one from the store.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`].
    fn read(entry: &Entry) -> Result<Self, StoreError> {
        Self::read_value(&entry.key, &entry.value, entry.revision)
    }

    /// Reads one from a value of the store.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`].
    fn read_value(key: &str, value: &[u8], revision: u64) -> Result<Self, StoreError> {
        let mut record =
            Self::decode(value).map_err(|error| StoreError::Damaged(format!("{key}: {error}")))?;
        record.meta_mut().revision = revision;
        Ok(record)
    }

    /// What is stored of it.
    fn value(&self) -> Vec<u8> {
        let mut record = self.clone();
        record.meta_mut().revision = 0;
        record.encode_to_vec()
    }
}

/// Implements [`Record`]; with `spec`, two are asked for alike if their specs and labels are alike.
macro_rules! record {
    ($message:ident) => {
        record!($message, |left: &$message, right: &$message| left == right);
    };
    ($message:ident, spec) => {
        record!($message, |left: &$message, right: &$message| {
            left.spec == right.spec && left.meta().labels == right.meta().labels
        });
    };
    ($message:ident, $same:expr) => {
        record!($message, $message, $same);
    };
    ($message:ident, $kind:ident, $same:expr) => {
        impl Record for $message {
            const KIND: Kind = Kind::$kind;

            fn metadata_field(&self) -> &Option<Metadata> {
                &self.metadata
            }

            fn metadata_field_mut(&mut self) -> &mut Option<Metadata> {
                &mut self.metadata
            }

            fn is_same_request(&self, other: &Self) -> bool {
                ($same)(self, other)
            }
        }
    };
}

record!(Node, spec);
record!(Pool, spec);
record!(Snapshot, spec);
record!(Group, spec);
record!(Template, spec);
record!(Rebalance, spec);
record!(GroupSnapshot, spec);
record!(Event);
record!(Removal);
record!(
    StoredHostSecrets,
    HostSecrets,
    |left: &StoredHostSecrets, right: &StoredHostSecrets| left == right
);
record!(StoredToken, Token, |left: &StoredToken, right: &StoredToken| left
    == right);
record!(Volume, |left: &Volume, right: &Volume| {
    // Hosts are not what was asked for at first: they come and go.
    let asked = |volume: &Volume| {
        volume.spec.clone().map(|spec| VolumeSpec {
            hosts: Vec::new(),
            sharing: Default::default(),
            ..spec
        })
    };
    asked(left) == asked(right) && left.meta().labels == right.meta().labels
});

/// Writes of records, each with the condition that the record is still the one that was read.
pub trait Guarded {
    /// Writes a record: a new one if it has no revision, else in place of the one of that revision.
    fn put<R: Record>(&mut self, record: &R);

    /// Nothing is done unless a record is as it was read.
    fn require<R: Record>(&mut self, record: &R);

    /// Deletes a record of a revision.
    fn delete<R: Record>(&mut self, record: &R);

    /// Writes a record, whatever is there.
    fn put_always<R: Record>(&mut self, record: &R);
}

impl Guarded for Transaction {
    fn put<R: Record>(&mut self, record: &R) {
        self.require(record);
        self.put_always(record);
    }

    fn require<R: Record>(&mut self, record: &R) {
        self.conditions.push(Condition {
            key: record.key(),
            revision: record.meta().revision,
        });
    }

    fn delete<R: Record>(&mut self, record: &R) {
        self.require(record);
        self.writes.push(Write::Delete { key: record.key() });
    }

    fn put_always<R: Record>(&mut self, record: &R) {
        self.writes.push(Write::Put {
            key: record.key(),
            value: record.value(),
        });
    }
}
