//! The PDUs of NVMe/TCP (TCP 3.6.2): their layouts, a decoder that trusts nothing, and encoders.
//!
//! Every PDU is a header of fixed length, and in some types data:
//!
//! ```text
//! 0 type   1 flags   2 HLEN   3 PDO   4 PLEN   8 rest of the header
//! HLEN   [header digest] [padding]
//! PDO    [data] [data digest]
//! PLEN   the next PDU
//! ```
//!
//! HLEN counts the header without its digest, PLEN everything. The data starts at PDO, which is a multiple of
//! the alignment the receiver asked for when the connection was set up. Which direction has which type:
//!
//! | type | PDU | direction | HLEN | data |
//! | --- | --- | --- | --- | --- |
//! | 00h | ICReq, [`InitializeRequest`] | host to controller | 128 | no |
//! | 01h | ICResp, [`InitializeResponse`] | controller to host | 128 | no |
//! | 02h | H2CTermReq, [`TerminateRequest`] | host to controller | 24 | header of the PDU in error |
//! | 03h | C2HTermReq, [`TerminateRequest`] | controller to host | 24 | header of the PDU in error |
//! | 04h | CapsuleCmd, [`CommandCapsule`] | host to controller | 72 | in-capsule data |
//! | 05h | CapsuleResp, [`ResponseCapsule`] | controller to host | 24 | no |
//! | 06h | H2CData, [`HostData`] | host to controller | 24 | yes |
//! | 07h | C2HData, [`ControllerData`] | controller to host | 24 | yes |
//! | 09h | R2T, [`ReadyToTransfer`] | controller to host | 24 | no |
//!
//! ICReq, ICResp and the two termination requests never have digests.

mod decode;
mod encode;
mod layout;
#[cfg(test)]
mod tests;
mod violation;

pub use decode::{ConnectionLimits, Decoded, Header, Pdu, Phase, decode_header};
pub use encode::{
    DataEnd, DataRange, Framing, encode_command, encode_controller_data, encode_host_data,
    encode_initialize_request, encode_initialize_response, encode_ready_to_transfer, encode_response,
    encode_terminate_request,
};
pub use layout::{
    CommandCapsule, CommonHeader, ControllerData, DataAlignment, Digests, Direction, HEADER_BYTES_MAX,
    HostData, IN_CAPSULE_DATA_BYTES_ADMIN, InitializeRequest, InitializeResponse, MAX_H2C_DATA_BYTES_MIN,
    PduFlags, PduType, ReadyToTransfer, ResponseCapsule, TERMINATE_DATA_BYTES_MAX, TerminateRequest,
};
pub use violation::{FatalErrorStatus, Violation};
