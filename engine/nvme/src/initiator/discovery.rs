//! The discovery service: which subsystems a target offers (NVMe Base 2.0, 3.1.2.3 and 5.16.1.23).

use std::time::Duration;

use pollux_reactor::net::Address;

use super::connection::ConnectionOptions;
use super::controller::{Controller, ControllerOptions};
use super::error::InitiatorError;
use super::host::HostIdentity;
use crate::wire::command::GetLogPage;
use crate::wire::log::{DiscoveryEntry, DiscoveryHeader, LogPageId, parse_discovery_log};
use crate::wire::nqn::Nqn;

/// Records that are read of one log.
pub const RECORDS_MAX: u64 = 4096;

/// How often the log is read anew because it changed meanwhile.
const TRIES_MAX: u32 = 8;

/// What is read with one command, in bytes: small enough for any controller (MDTS is at least a page).
const CHUNK_BYTES: u64 = 4096;

const WHAT: &str = "to read the discovery log";

/// The entries of the discovery log at an address, referrals included.
///
/// # Errors
///
/// [`InitiatorError`].
pub async fn discover(address: &Address, host: HostIdentity) -> Result<Vec<DiscoveryEntry>, InitiatorError> {
    let options = ControllerOptions {
        address: address.clone(),
        subsystem: Nqn::discovery(),
        host,
        connection: ConnectionOptions::default(),
        queues: 1,
        // Read and gone: the controller needs no sign of life.
        keep_alive: Duration::ZERO,
        admin_timeout: Duration::from_secs(10),
        credentials: None,
    };
    let controller = Controller::connect(options).await?;
    let entries = read_log(&controller).await;
    // The log has been read; how the controller takes the end changes nothing.
    if let Err(error) = controller.shut_down().await {
        tracing::debug!(%address, %error, "the discovery controller did not shut down");
    }
    entries
}

async fn read_log(controller: &Controller) -> Result<Vec<DiscoveryEntry>, InitiatorError> {
    for _ in 0..TRIES_MAX {
        let before = header(controller).await?;
        if before.records > RECORDS_MAX {
            return Err(InitiatorError::DiscoveryLogTooLong {
                records: before.records,
                max: RECORDS_MAX,
            });
        }
        let bytes = (DiscoveryHeader::BYTES as u64) + before.records * DiscoveryEntry::BYTES as u64;
        let mut log = Vec::new();
        while (log.len() as u64) < bytes {
            let offset = log.len() as u64;
            let command = GetLogPage::new(LogPageId::Discovery, offset, (bytes - offset).min(CHUNK_BYTES));
            log.extend_from_slice(&controller.admin().log_page(WHAT, command, 0).await?);
        }
        let (first, entries) = parse_discovery_log(&log)?;
        let after = header(controller).await?;
        if first.generation == before.generation && after.generation == before.generation {
            return Ok(entries);
        }
    }
    Err(InitiatorError::DiscoveryLogUnsteady { tries: TRIES_MAX })
}

async fn header(controller: &Controller) -> Result<DiscoveryHeader, InitiatorError> {
    let command = GetLogPage::new(LogPageId::Discovery, 0, DiscoveryHeader::BYTES as u64);
    let bytes = controller.admin().log_page(WHAT, command, 0).await?;
    Ok(DiscoveryHeader::from_bytes(&bytes))
}
