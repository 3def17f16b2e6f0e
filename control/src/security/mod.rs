//! Who calls, and what callers may do.
//!
//! With mutual TLS, a caller is what its certificate says: the common name is its name, the organizational
//! unit its role. Without, the interface listens on this machine only, and every caller is its
//! administrator.

mod authority;
mod roles;

pub use authority::{Authority, CertificateError, Identity, Issued, LIFETIME_DAYS_DEFAULT};
pub use roles::{Action, Caller, Guard, Role};
