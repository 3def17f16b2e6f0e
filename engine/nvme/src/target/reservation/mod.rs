//! Reservations of a namespace (NVMe Base 2.2, 8.1.22): several hosts agree on who may read and write.
//!
//! | module | what |
//! | --- | --- |
//! | `table` | who is registered and who holds what, and what each command makes of it: pure |
//! | `record` | the table as bytes that outlive a loss of power |
//! | `store`, `files` | where those bytes are kept |
//! | `shared` | the table of a namespace as all reactors see it |
//! | `losses` | which hosts have heard that caches were lost: kept with the table, wherever the namespace
//! goes |
//! | `notices` | what the hosts of a controller were not told yet |
//!
//! The commands themselves are executed by the I/O queues. A subsystem that reports access states is served
//! by several engines: its namespaces have reservations only if there is a store that the engines share, and
//! whoever gives access to a namespace has it adopt what is kept there first.

mod files;
mod losses;
mod notices;
mod record;
mod shared;
mod store;
mod table;
#[cfg(test)]
mod tests;

pub use files::FileReservationStore;
pub(crate) use notices::NoticeQueue;
pub(crate) use shared::Reservations;
pub use store::{ReservationStore, Saving, StoreError};
pub(crate) use table::{Access, Action, HostId, Notice, Refused, Table};
