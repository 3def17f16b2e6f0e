//! Names of replicas, and what they are made of.

use super::*;

const REPLICA: Uuid = Uuid::from_u128(0x6c1b_0a7e_7d3c_4c58_9a5e_0f1d_2c3b_4a59);

#[test]
fn volumes_are_named_after_their_replicas() {
    let name = volume_name(REPLICA);
    assert_eq!(name, "replica-6c1b0a7e-7d3c-4c58-9a5e-0f1d2c3b4a59");
    assert_eq!(replica_of(&name), Some(REPLICA));
    for other in [
        "db",
        "replica-",
        "replica-x",
        "replica-6C1B0A7E-7D3C-4C58-9A5E-0F1D2C3B4A59",
        "replica-6c1b0a7e7d3c4c589a5e0f1d2c3b4a59",
        "6c1b0a7e-7d3c-4c58-9a5e-0f1d2c3b4a59",
    ] {
        assert_eq!(replica_of(other), None, "{other}");
    }
}

#[test]
fn pools_of_any_name_can_have_replicas() {
    for pool in ["tank", "my tank", "a/b?c", "ü"] {
        let uri = volume_uri(pool, REPLICA).expect("a URI");
        let names = pools::names(&uri).expect("names");
        assert_eq!(names, (pool.to_owned(), volume_name(REPLICA)));
    }
}
