//! Reservations of hosts, as engines ask for them and change them.

use pollux_api::control::v1::{
    GetMembershipRequest, GetReservationsRequest, Membership, Replica, ReplicaState, SwapMembershipRequest,
    SwapMembershipResponse, SwapReservationsRequest, SwapReservationsResponse, Volume, VolumeStatus,
};
use pollux_control::model::{Record, membership};
use pollux_control::registry::{
    RegistryError, get_membership, get_reservations, swap_membership, swap_reservations,
};
use pollux_control::store::{MemoryStore, Store};
use pollux_control::world::World;

use super::common::{named, put, volume};

const TARGET: &str = "n1";

async fn served(epoch: u64) -> (MemoryStore, Volume) {
    let store = MemoryStore::default();
    let mut volume = named(volume("v", 1), "v");
    volume.status = Some(VolumeStatus {
        epoch,
        version: 3,
        target_node: TARGET.to_owned(),
        size_bytes: 1 << 20,
        min_in_sync: 1,
        replicas: vec![Replica {
            uid: "r".to_owned(),
            state: ReplicaState::InSync.into(),
            ..Replica::default()
        }],
        ..VolumeStatus::default()
    });
    put(&store, &volume).await;
    (store, volume)
}

fn asked(volume: &Volume, node: &str, epoch: u64) -> GetReservationsRequest {
    GetReservationsRequest {
        volume: volume.meta().name.clone(),
        volume_uid: volume.meta().uid.clone(),
        node: node.to_owned(),
        epoch,
    }
}

fn swap(volume: &Volume, epoch: u64, before: &[u8], next: &[u8]) -> SwapReservationsRequest {
    SwapReservationsRequest {
        volume: volume.meta().name.clone(),
        volume_uid: volume.meta().uid.clone(),
        node: TARGET.to_owned(),
        epoch,
        before: before.to_vec(),
        next: next.to_vec(),
    }
}

const DONE: SwapReservationsResponse = SwapReservationsResponse {
    swapped: true,
    current: Vec::new(),
};

#[tokio::test]
async fn only_who_serves_a_volume_knows_and_changes_its_reservations() {
    let (store, volume) = served(7).await;
    let store: &dyn Store = &store;
    let record = get_reservations(store, &asked(&volume, TARGET, 7))
        .await
        .expect("it serves it");
    assert_eq!(record.record, b"");
    assert_eq!(
        swap_reservations(store, &swap(&volume, 7, b"", b"one")).await,
        Ok(DONE)
    );
    let record = get_reservations(store, &asked(&volume, TARGET, 7))
        .await
        .expect("it serves it");
    assert_eq!(record.record, b"one");
    for (node, epoch) in [("n2", 7), (TARGET, 6), (TARGET, 8)] {
        let refused = get_reservations(store, &asked(&volume, node, epoch)).await;
        assert!(
            matches!(
                refused,
                Err(RegistryError::NotTarget { .. } | RegistryError::Superseded { .. })
            ),
            "{refused:?}"
        );
        let mut request = swap(&volume, epoch, b"one", b"two");
        request.node = node.to_owned();
        let refused = swap_reservations(store, &request).await;
        assert!(
            matches!(
                refused,
                Err(RegistryError::NotTarget { .. } | RegistryError::Superseded { .. })
            ),
            "{refused:?}"
        );
    }
    let mut other = asked(&volume, TARGET, 7);
    other.volume_uid = "another".to_owned();
    let refused = get_reservations(store, &other).await;
    assert_eq!(refused, Err(RegistryError::NotFound("v".to_owned())));
}

#[tokio::test]
async fn a_change_that_is_late_changes_nothing() {
    let (store, volume) = served(7).await;
    let store: &dyn Store = &store;
    for _ in 0..2 {
        assert_eq!(
            swap_reservations(store, &swap(&volume, 7, b"", b"one")).await,
            Ok(DONE)
        );
    }
    assert_eq!(
        swap_reservations(store, &swap(&volume, 7, b"one", b"two")).await,
        Ok(DONE)
    );
    let late = swap_reservations(store, &swap(&volume, 7, b"", b"one"))
        .await
        .expect("it serves it");
    assert_eq!((late.swapped, late.current.as_slice()), (false, &b"two"[..]));
    assert_eq!(
        swap_reservations(store, &swap(&volume, 7, b"two", b"")).await,
        Ok(DONE)
    );
}

/// A loss of caches is on record and told once; engines that know nothing of it do not take it back.
#[tokio::test]
async fn people_hear_once_that_caches_were_lost() {
    let (store, volume) = served(7).await;
    let store: &dyn Store = &store;
    let swap = async |next: Membership, now_unix_us| {
        let request = SwapMembershipRequest {
            volume: "v".to_owned(),
            node: TARGET.to_owned(),
            next: Some(next),
        };
        swap_membership(store, &request, now_unix_us).await
    };
    let done = SwapMembershipResponse {
        swapped: true,
        current: None,
    };
    let mut next = membership(&volume.meta().uid, &volume.status.clone().expect("it has one"));
    next.version += 1;
    next.caches_lost_epoch = next.epoch;
    // The answer to the first one was lost.
    for now_unix_us in [40, 50] {
        assert_eq!(swap(next.clone(), now_unix_us).await, Ok(done.clone()));
    }
    let older = Membership {
        version: next.version + 1,
        epoch: next.epoch + 1,
        caches_lost_epoch: 0,
        ..next.clone()
    };
    assert_eq!(swap(older, 60).await, Ok(done));
    let asked = GetMembershipRequest {
        volume: "v".to_owned(),
        volume_uid: volume.meta().uid.clone(),
        node: TARGET.to_owned(),
    };
    let found = get_membership(store, &asked).await.expect("it serves it");
    assert_eq!(found.caches_lost_epoch, next.caches_lost_epoch);
    let listing = store.list_all("/").await.expect("it is there");
    let world = World::load(&listing, 70).expect("it can be read");
    let told: Vec<&String> = world.events.iter().collect();
    assert_eq!(told, [&format!("{:020}-{}", 40, volume.meta().uid)]);
}

#[tokio::test]
async fn they_stay_when_a_volume_is_opened_again() {
    let (store, volume) = served(7).await;
    let store: &dyn Store = &store;
    assert_eq!(
        swap_reservations(store, &swap(&volume, 7, b"", b"one")).await,
        Ok(DONE)
    );
    let mut next = membership(&volume.meta().uid, &volume.status.clone().expect("it has one"));
    next.epoch += 1;
    next.version += 1;
    let request = SwapMembershipRequest {
        volume: "v".to_owned(),
        node: TARGET.to_owned(),
        next: Some(next),
    };
    assert!(
        swap_membership(store, &request, 1)
            .await
            .expect("it may follow")
            .swapped
    );
    let refused = swap_reservations(store, &swap(&volume, 7, b"one", b"two")).await;
    assert!(
        matches!(refused, Err(RegistryError::Superseded { current: 8, .. })),
        "{refused:?}"
    );
    let record = get_reservations(store, &asked(&volume, TARGET, 8))
        .await
        .expect("it serves it");
    assert_eq!(record.record, b"one");
}
