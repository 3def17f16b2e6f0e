//! What all daemons tell.

use super::families;

families! {
    CERTIFICATE_END: Gauge "pollux_certificate_expiry_timestamp_seconds" ["of", "certificate"]
        "When a certificate in use ends, since 1970 in UTC; of several authorities, when the last does.";
}
