//! Secrets that hosts authenticate by: who gets them, and who does not.

use std::collections::BTreeSet;

use pollux_api::control::v1::events_server::Events;
use pollux_api::control::v1::volumes_server::Volumes;
use pollux_api::control::v1::*;
use pollux_control::model::{Guarded, Kind};
use pollux_control::plan::Limits;
use pollux_control::store::{MemoryStore, Store, Transaction, restore, write_backup};
use tonic::{Code, Request, Status};

use crate::common::{Cluster, layout, put, services, volume};

const HOST: &str = "nqn.2026-11.x:host";
const SECRET: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

fn secrets(host_hash: &str) -> HostSecrets {
    HostSecrets {
        host: SECRET.replace(":00:", &format!(":{host_hash}:")),
        controller: SECRET.to_owned(),
    }
}

fn request(secrets: Option<HostSecrets>) -> PublishVolumeRequest {
    PublishVolumeRequest {
        name: "v".to_owned(),
        host: Some(HostAccess {
            host_nqn: HOST.to_owned(),
            ..HostAccess::default()
        }),
        secrets,
        ..PublishVolumeRequest::default()
    }
}

async fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&layout(3, 1), Limits::default()).await;
    put(&cluster.store, &volume("v", 3)).await;
    cluster.settle().await;
    cluster
}

async fn publish(cluster: &Cluster, secrets: Option<HostSecrets>) -> Result<PublishVolumeResponse, Status> {
    let answer = services(cluster)
        .publish_volume(Request::new(request(secrets)))
        .await;
    answer.map(tonic::Response::into_inner)
}

/// Publishes it, and waits until all engines have heard.
async fn published(cluster: &mut Cluster, secrets: Option<HostSecrets>) {
    publish(cluster, secrets).await.expect("it is there");
    cluster.settle().await;
    cluster.check_settled();
    assert!(publish(cluster, None).await.expect("it is there").ready);
}

/// By what each engine that shows the volume admits the host; `None` for one without secrets.
fn admitted(cluster: &Cluster) -> Vec<Option<String>> {
    let engines = cluster.fleet.lock();
    let targets = engines
        .engines
        .values()
        .flat_map(|engine| engine.targets.values());
    targets
        .flat_map(|target| target.config.hosts.iter().map(move |host| (target, host)))
        .map(|(target, host)| Some(target.secrets.get(&host.secret_uid)?.host.clone()))
        .collect()
}

/// The names of the secrets that are stored.
async fn stored(cluster: &Cluster) -> BTreeSet<String> {
    let listing = cluster.store.list_all(&Kind::HostSecrets.prefix()).await;
    let listing = listing.expect("the store answers");
    let names = listing.entries.iter().filter_map(|entry| Kind::parse(&entry.key));
    names.map(|(_, name)| name.to_owned()).collect()
}

async fn host_now(cluster: &Cluster) -> HostAccess {
    let volume = cluster.get::<Volume>("v").await.expect("it is there");
    volume
        .spec
        .expect("it has one")
        .hosts
        .first()
        .cloned()
        .expect("it is published")
}

#[tokio::test]
async fn all_engines_that_show_a_volume_have_the_secrets() {
    let mut cluster = cluster().await;
    published(&mut cluster, Some(secrets("01"))).await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("01").host); 3]);
    let first = host_now(&cluster).await;
    assert_eq!(stored(&cluster).await, BTreeSet::from([first.secret_uid.clone()]));

    // The same again, or none, changes nothing.
    published(&mut cluster, Some(secrets("01"))).await;
    published(&mut cluster, None).await;
    assert_eq!(host_now(&cluster).await, first);

    // Others count everywhere before it is said to be ready, and those of before are gone.
    let begun = publish(&cluster, Some(secrets("02"))).await.expect("it is there");
    assert!(!begun.ready, "no engine has heard yet");
    published(&mut cluster, None).await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("02").host); 3]);
    let second = host_now(&cluster).await;
    assert_ne!(second.secret_uid, first.secret_uid);
    assert_eq!(stored(&cluster).await, BTreeSet::from([second.secret_uid]));

    // Whoever serves after the target, and whoever comes back with nothing, has them.
    let target = cluster.get::<Volume>("v").await.and_then(|volume| volume.status);
    let target = target.expect("it has one").target_node;
    cluster.fleet.set_up(&target, false);
    cluster.ticks(30).await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("02").host); 2]);
    cluster.restart().await;
    cluster.fleet.set_up(&target, true);
    cluster.settle().await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("02").host); 3]);

    let unpublish = UnpublishVolumeRequest {
        name: "v".to_owned(),
        host_nqn: Some(HOST.to_owned()),
        wait_us: None,
    };
    services(&cluster)
        .unpublish_volume(Request::new(unpublish))
        .await
        .expect("it is there");
    assert!(stored(&cluster).await.is_empty());
    cluster.settle().await;
    assert!(admitted(&cluster).is_empty());
    // Published without, it does without.
    published(&mut cluster, None).await;
    assert_eq!(admitted(&cluster), vec![None; 3]);
    // And with, later: whoever connects then needs them.
    published(&mut cluster, Some(secrets("03"))).await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("03").host); 3]);
}

#[tokio::test]
async fn nobody_is_told_the_secrets() {
    let mut cluster = cluster().await;
    let given = secrets("01");
    let answer = publish(&cluster, Some(given.clone())).await.expect("it is there");
    cluster.settle().await;
    let services = services(&cluster);
    let volume = services
        .get_volume(Request::new(GetVolumeRequest { name: "v".to_owned() }))
        .await
        .expect("it is there")
        .into_inner();
    let volumes = services
        .list_volumes(Request::new(ListVolumesRequest::default()))
        .await
        .expect("it answers")
        .into_inner();
    let events = services
        .list_events(Request::new(ListEventsRequest::default()))
        .await
        .expect("it answers")
        .into_inner();
    let mut told = vec![
        serde_json::to_string(&answer).expect("it is JSON"),
        serde_json::to_string(&volume).expect("it is JSON"),
        serde_json::to_string(&volumes).expect("it is JSON"),
        serde_json::to_string(&events).expect("it is JSON"),
        format!("{:?}", cluster.world()),
        format!("{:?}", request(Some(given.clone()))),
    ];
    // What engines tell, and what is stored of everything but the secrets.
    for engine in cluster.fleet.lock().engines.values() {
        let targets = engine.targets.values();
        told.extend(targets.map(|target| serde_json::to_string(&target.config).expect("it is JSON")));
    }
    let listing = cluster.store.list_all("/").await.expect("the store answers");
    let others = listing
        .entries
        .iter()
        .filter(|entry| !matches!(Kind::parse(&entry.key), Some((Kind::HostSecrets, _))));
    told.extend(others.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()));
    for text in &told {
        assert!(!text.contains("DHHC-1") && !text.contains("ia6z"), "{text}");
    }
    assert!(
        told.iter()
            .any(|text| text.contains(&host_of(&volume).secret_uid))
    );
}

fn host_of(volume: &Volume) -> &HostAccess {
    &volume.spec.as_ref().expect("it has one").hosts[0]
}

#[tokio::test]
async fn what_is_no_secret_is_refused_by_its_field() {
    let cluster = cluster().await;
    let damaged = SECRET.replace("2n:", "2o:");
    for wrong in [
        "secret",
        &SECRET.replace(":00:", ":07:"),
        &damaged,
        "DHHC-1:00:AAAA:",
    ] {
        for (field, given) in [
            (
                "secrets.host",
                HostSecrets {
                    host: wrong.to_owned(),
                    controller: String::new(),
                },
            ),
            (
                "secrets.controller",
                HostSecrets {
                    host: SECRET.to_owned(),
                    controller: wrong.to_owned(),
                },
            ),
        ] {
            let refused = publish(&cluster, Some(given)).await.expect_err(wrong);
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(field), "{refused:?}");
            assert!(!refused.message().contains("ia6z"), "{refused:?}");
        }
    }
    let empty = publish(&cluster, Some(HostSecrets::default())).await;
    assert_eq!(empty.expect_err("none").code(), Code::InvalidArgument);
    // Whose they are is said by the control plane alone.
    let mut named = request(None);
    named.host.as_mut().expect("it has one").secret_uid = "x".to_owned();
    let refused = services(&cluster).publish_volume(Request::new(named)).await;
    assert!(refused.expect_err("a name").message().contains("host.secret_uid"));
    let mut made = volume("w", 1);
    made.spec.as_mut().expect("it has one").hosts.push(HostAccess {
        host_nqn: HOST.to_owned(),
        secret_uid: "x".to_owned(),
        ..HostAccess::default()
    });
    let made = CreateVolumeRequest {
        volume: Some(made),
        wait_us: None,
    };
    let refused = services(&cluster).create_volume(Request::new(made)).await;
    let refused = refused.expect_err("a name");
    assert!(
        refused.message().contains("volume.spec.hosts[0].secret_uid"),
        "{refused:?}"
    );
    assert!(stored(&cluster).await.is_empty());
}

#[tokio::test]
async fn backups_have_them() {
    let mut cluster = cluster().await;
    published(&mut cluster, Some(secrets("01"))).await;
    let backup = write_backup(&cluster.store).await.expect("the store answers");
    cluster.store = MemoryStore::default();
    restore(&cluster.store, &backup).await.expect("it is empty");
    cluster.restart().await;
    crate::recover::commit(&cluster, &RecoverySpec::default()).await;
    cluster.settle().await;
    let uid = host_now(&cluster).await.secret_uid;
    assert_eq!(stored(&cluster).await, BTreeSet::from([uid]));
    let target = cluster.get::<Volume>("v").await.and_then(|volume| volume.status);
    assert!(
        publish(&cluster, None).await.expect("it is there").ready,
        "{target:?}"
    );
}

/// They stay with engines that have them, and nobody is let in without.
#[tokio::test]
async fn hosts_whose_secrets_are_lost_are_not_admitted_anew() {
    let mut cluster = cluster().await;
    published(&mut cluster, Some(secrets("01"))).await;
    let uid = host_now(&cluster).await.secret_uid;
    let record = cluster.get::<StoredHostSecrets>(&uid).await.expect("it is there");
    let mut lost = Transaction::default();
    lost.delete(&record);
    cluster.store.commit(lost).await.expect("nobody else writes");
    cluster.settle().await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("01").host); 3]);
    let target = cluster.get::<Volume>("v").await.and_then(|volume| volume.status);
    let target = target.expect("it has one").target_node;
    cluster.fleet.set_up(&target, false);
    cluster.ticks(30).await;
    cluster.fleet.set_up(&target, true);
    cluster.settle().await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("01").host); 2]);
    let refused = publish(&cluster, None).await.expect_err("they are lost");
    assert!(refused.message().contains("secrets"), "{refused:?}");
    published(&mut cluster, Some(secrets("02"))).await;
    assert_eq!(admitted(&cluster), vec![Some(secrets("02").host); 3]);
    assert_eq!(stored(&cluster).await.len(), 1);
}

#[tokio::test]
async fn engines_know_the_paths_of_each_other() {
    let mut cluster = cluster().await;
    let listeners = |cluster: &Cluster| -> BTreeSet<String> {
        let nodes = cluster.world().nodes.values();
        nodes
            .flat_map(|node| {
                node.status
                    .iter()
                    .flat_map(|status| status.nvmf_listeners.clone())
            })
            .collect()
    };
    let told = |cluster: &Cluster| -> Vec<BTreeSet<String>> {
        let engines = cluster.fleet.lock();
        let targets = engines
            .engines
            .values()
            .flat_map(|engine| engine.targets.values());
        targets
            .map(|target| target.config.other_paths.iter().cloned().collect())
            .collect()
    };
    assert_eq!(told(&cluster), [BTreeSet::new()], "no host looks");
    published(&mut cluster, None).await;
    let all = listeners(&cluster);
    assert_eq!(all.len(), 3);
    let engines = told(&cluster);
    assert_eq!(engines.len(), 3);
    for others in engines {
        assert_eq!(others.len(), 2, "all but its own");
        assert!(others.is_subset(&all));
    }
}
