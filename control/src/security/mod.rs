//! Who calls, and what callers may do.
//!
//! With mutual TLS, a caller is what its certificate says: the common name is its name, the organizational
//! unit its role; one that gives a token has the name and the role of that. Without, the interface listens
//! on this machine only, and every caller is its administrator.

mod authority;
mod roles;
mod tokens;

pub use authority::{
    Authority, CertificateError, Identity, Issued, LIFETIME_DAYS_DEFAULT, LIFETIME_DAYS_MAX,
};
pub use roles::{Action, Authenticated, Caller, Guard, Role};
pub use tokens::BearerToken;
