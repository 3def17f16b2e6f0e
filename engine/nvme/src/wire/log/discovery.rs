//! The Discovery log (Base 2.0, 5.16.1.23): a header of 1024 bytes, then as many entries of 1024 bytes.

use thiserror::Error;

use crate::wire::nqn::NqnField;
use crate::wire::structure::{structure, wire_flags};
use crate::wire::text::AsciiField;
use crate::wire::wire_enum::wire_enum;

wire_enum! {
    /// Transport Type (TRTYPE).
    pub enum TransportType: u8 {
        /// RDMA.
        Rdma = 1,
        /// Fibre Channel.
        FibreChannel = 2,
        /// TCP.
        Tcp = 3,
        /// Within a host.
        IntraHost = 254,
    }
}

wire_enum! {
    /// Address Family (ADRFAM).
    pub enum AddressFamily: u8 {
        /// None given.
        None = 0,
        /// IPv4.
        Ipv4 = 1,
        /// IPv6.
        Ipv6 = 2,
        /// InfiniBand.
        InfiniBand = 3,
        /// Fibre Channel.
        FibreChannel = 4,
        /// Within a host.
        IntraHost = 254,
    }
}

wire_enum! {
    /// Subsystem Type (SUBTYPE).
    pub enum SubsystemType: u8 {
        /// A referral to another discovery subsystem.
        Referral = 1,
        /// A subsystem with namespaces.
        Nvm = 2,
        /// The discovery subsystem that gives the log.
        CurrentDiscovery = 3,
    }
}

wire_flags! {
    /// Entry Flags (EFLAGS).
    pub struct DiscoveryEntryFlags: u16 {
        /// The same is returned by another interface of the discovery subsystem (DUPRETINFO).
        DUPLICATE = 1 << 0,
        /// Explicit persistent connections to this discovery subsystem are supported (EPCSD).
        PERSISTENT_CONNECTIONS = 1 << 1,
    }
}

structure! {
    /// What the log starts with.
    pub struct DiscoveryHeader: 1024 {
        /// Counts the changes of the log (GENCTR): if it differs after the entries are read, read again.
        0 => generation: u64,
        /// Number of entries (NUMREC).
        8 => records: u64,
        /// Format of the entries, 0 (RECFMT).
        16 => record_format: u16,
    }
}

structure! {
    /// An entry: where a subsystem is.
    pub struct DiscoveryEntry: 1024 {
        /// Transport (TRTYPE); see [`DiscoveryEntry::transport`].
        0 => transport_field: u8,
        /// Address family (ADRFAM); see [`DiscoveryEntry::address_family`].
        1 => address_family_field: u8,
        /// Type of subsystem (SUBTYPE); see [`DiscoveryEntry::subsystem_type`].
        2 => subsystem_type_field: u8,
        /// Transport requirements: bits 1:0 secure channel (0 not specified, 1 required, 2 not required), bit
        /// 2 set if queue flow control can be disabled (TREQ).
        3 => requirements: u8,
        /// Port of the subsystem (PORTID).
        4 => port_id: u16,
        /// Controller (CNTLID): FFFFh for any of the dynamic model, FFFEh for any of the static model.
        6 => controller_id: u16,
        /// Most entries of the admin queue (ASQSZ).
        8 => admin_queue_entries: u16,
        /// Flags (EFLAGS).
        10 => flags: DiscoveryEntryFlags,
        /// Transport service: the TCP port in decimal (TRSVCID).
        32 => service: AsciiField<32>,
        /// Name of the subsystem (SUBNQN).
        256 => subsystem_nqn: NqnField,
        /// Address: that of IPv4 or IPv6 as text (TRADDR).
        512 => address: AsciiField<256>,
        /// Security of a TCP transport: 0 none, 2 TLS 1.3 (TSAS, SECTYPE).
        768 => security_type: u8,
    }
}

impl DiscoveryEntry {
    /// Bit of `requirements`: queue flow control can be disabled.
    pub const FLOW_CONTROL_OPTIONAL: u8 = 1 << 2;

    /// Transport; `None` for a reserved value.
    #[must_use]
    pub fn transport(&self) -> Option<TransportType> {
        TransportType::from_wire(self.transport_field)
    }

    /// Address family; `None` for a reserved value.
    #[must_use]
    pub fn address_family(&self) -> Option<AddressFamily> {
        AddressFamily::from_wire(self.address_family_field)
    }

    /// Type of subsystem; `None` for a reserved value.
    #[must_use]
    pub fn subsystem_type(&self) -> Option<SubsystemType> {
        SubsystemType::from_wire(self.subsystem_type_field)
    }
}

/// A log that is not what the specification says.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DiscoveryLogError {
    /// It ends before its last entry does.
    #[error("the discovery log of {records} records ends after {bytes} bytes; read it with more bytes")]
    Truncated {
        /// Bytes there are.
        bytes: usize,
        /// Entries it says it has.
        records: u64,
    },
    /// The entries are of another format.
    #[error("the discovery log has records of format {record_format}; only format 0 is known")]
    Format {
        /// Its format.
        record_format: u16,
    },
}

/// The header and entries of a whole log in `bytes`.
///
/// # Errors
/// If it ends too early, or its entries are of an unknown format.
pub fn parse_discovery_log(
    bytes: &[u8],
) -> Result<(DiscoveryHeader, Vec<DiscoveryEntry>), DiscoveryLogError> {
    let header = DiscoveryHeader::from_bytes(bytes);
    let truncated = DiscoveryLogError::Truncated {
        bytes: bytes.len(),
        records: header.records,
    };
    let entries = bytes.get(DiscoveryHeader::BYTES..).ok_or(truncated)?;
    if header.record_format != 0 {
        return Err(DiscoveryLogError::Format {
            record_format: header.record_format,
        });
    }
    let entry_bytes = usize::try_from(header.records)
        .ok()
        .and_then(|records| records.checked_mul(DiscoveryEntry::BYTES))
        .ok_or(truncated)?;
    let entries = entries.get(..entry_bytes).ok_or(truncated)?;
    let entries = entries
        .chunks_exact(DiscoveryEntry::BYTES)
        .map(DiscoveryEntry::from_bytes)
        .collect();
    Ok((header, entries))
}
