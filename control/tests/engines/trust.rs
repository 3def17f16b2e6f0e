//! Mutual TLS between processes: what works with certificates, and who is refused, in both directions.

use std::time::Duration;

use pollux_api::control::v1::agent_client::AgentClient;
use pollux_api::control::v1::registry_client::RegistryClient;
use pollux_api::control::v1::{EngineReport, GetReportRequest, VolumePolicy};
use pollux_api::engine::v1::ListReplicasRequest;
use pollux_api::engine::v1::replicas_client::ReplicasClient;
use pollux_control::security::{Authority, Issued, Role};
use tonic::{Code, Status};

use crate::channels::{certificate, is_online, trusted_channel};
use crate::cluster::{Cluster, HOST, Layout, until};
use crate::https::ask_https;
use crate::scenarios::{Witness, each};

/// How long it is looked whether somebody stays out.
const SILENCE: Duration = Duration::from_secs(2);

/// Runs all of it.
pub async fn run() {
    let layout = Layout {
        engines: 2,
        is_trusted: true,
        ..Layout::default()
    };
    let witness = Witness(Cluster::with(layout).await);
    let cluster = &witness.0;
    each!(cluster:
        volumes_are_served,
        engines_refuse_strangers,
        metrics_are_for_those_who_may_look,
        the_control_plane_refuses_strangers,
        engines_of_strangers_stay_out,
        control_planes_of_strangers_stay_out,
        certificates_are_renewed,
    );
}

/// Promises between engines go by TLS too.
async fn volumes_are_served(cluster: &Cluster) {
    let policy = VolumePolicy {
        replicas: Some(2),
        min_in_sync: Some(1),
        ..VolumePolicy::default()
    };
    cluster.create("trusted", policy).await;
    cluster.until_healthy("trusted").await;
    let published = cluster.publish("trusted", HOST, false).await;
    let host = cluster.host(&published, "trusted", 1);
    host.finished().await;
}

/// Whether nobody answered: the handshake came to nothing.
fn is_cut_off(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Cancelled | Code::Unknown)
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn engines_refuse_strangers(cluster: &Cluster) {
    let authority = cluster.authority.as_ref().expect("there is one");
    let foreign = Authority::new("test").expect("it can be made");
    let address = cluster.agent_address("n1");
    let admin = |authority: &Authority, days| certificate(authority, "control", Role::Admin, days);
    let good = admin(authority, 1);
    for (why, trusted, own) in [
        ("no certificate", authority, None),
        ("another authority", authority, Some(admin(&foreign, 1))),
        ("expired", authority, Some(admin(authority, -1))),
        ("the engine is of another authority", &foreign, Some(good.clone())),
    ] {
        let channel = trusted_channel(address, trusted, own.as_ref());
        let refused = AgentClient::new(channel).get_report(GetReportRequest {}).await;
        assert!(is_cut_off(code(refused)), "{why}");
    }
    for role in Role::ALL {
        let own = certificate(authority, "n2", role, 1);
        let channel = trusted_channel(address, authority, Some(&own));
        let told = AgentClient::new(channel.clone())
            .get_report(GetReportRequest {})
            .await;
        let expected = match role {
            Role::Admin => Code::Ok,
            _ => Code::PermissionDenied,
        };
        assert_eq!(code(told), expected, "what the control plane asks, by {role}");
        let listed = ReplicasClient::new(channel)
            .list_replicas(ListReplicasRequest {})
            .await;
        let expected = match role {
            Role::Admin | Role::Engine => Code::Ok,
            _ => Code::PermissionDenied,
        };
        assert_eq!(code(listed), expected, "what engines ask, by {role}");
    }
}

async fn metrics_are_for_those_who_may_look(cluster: &Cluster) {
    let authority = cluster.authority.as_ref().expect("there is one");
    let foreign = Authority::new("test").expect("it can be made");
    let address = cluster.http_address("n1");
    let ask = async |trusted: &Authority, own: Option<&Issued>, path: &str| {
        ask_https(address, trusted, own, "", path).await.ok()
    };
    for role in Role::ALL {
        let own = certificate(authority, "someone", role, 1);
        let expected = match role {
            Role::Engine => 403,
            _ => 200,
        };
        let status = ask(authority, Some(&own), "/metrics").await;
        assert_eq!(status, Some(expected), "{role}");
    }
    assert_eq!(ask(authority, None, "/metrics").await, Some(401));
    // Whether it is well is asked by those who have no certificate.
    assert_eq!(ask(authority, None, "/healthz").await, Some(200));
    for own in [
        certificate(&foreign, "someone", Role::Viewer, 1),
        certificate(authority, "someone", Role::Viewer, -1),
    ] {
        assert_eq!(ask(authority, Some(&own), "/metrics").await, None);
    }
    assert_eq!(ask(&foreign, None, "/metrics").await, None);
}

async fn the_control_plane_refuses_strangers(cluster: &Cluster) {
    let authority = cluster.authority.as_ref().expect("there is one");
    let foreign = Authority::new("test").expect("it can be made");
    let address = cluster.control_address();
    let report = async |trusted: &Authority, own| {
        let report = EngineReport {
            node: "n1".to_owned(),
            ..EngineReport::default()
        };
        let channel = trusted_channel(address, trusted, Some(&own));
        code(RegistryClient::new(channel).report(report).await)
    };
    let engine = |authority: &Authority, name, days| certificate(authority, name, Role::Engine, days);
    assert!(is_cut_off(report(authority, engine(&foreign, "n1", 1)).await));
    assert!(is_cut_off(report(authority, engine(authority, "n1", -1)).await));
    assert!(is_cut_off(report(&foreign, engine(authority, "n1", 1)).await));
    assert_eq!(
        report(authority, engine(authority, "n2", 1)).await,
        Code::PermissionDenied
    );
    for role in [Role::Viewer, Role::Csi, Role::Operator] {
        let own = certificate(authority, "n1", role, 1);
        assert_eq!(report(authority, own).await, Code::PermissionDenied, "{role}");
    }
}

async fn until_online(cluster: &Cluster) {
    for name in ["n1", "n2"] {
        until("it is online", || async {
            cluster.is_online(name).await?.then_some(())
        })
        .await;
    }
}

/// An engine whose certificates are of no use is not heard, and not told anything.
async fn engines_of_strangers_stay_out(cluster: &Cluster) {
    let authority = cluster.authority.as_ref().expect("there is one");
    let foreign = Authority::new("test").expect("it can be made");
    let engine = |authority: &Authority, days| certificate(authority, "n2", Role::Engine, days);
    for (why, own, trusted) in [
        ("of another authority", engine(&foreign, 1), &foreign),
        ("expired", engine(authority, -1), authority),
    ] {
        cluster.kill("n2");
        cluster.give("n2", &own, trusted);
        cluster.restart("n2");
        until("it is missed", || async {
            (!cluster.is_online("n2").await?).then_some(())
        })
        .await;
        tokio::time::sleep(SILENCE).await;
        assert_eq!(cluster.is_online("n2").await, Some(false), "{why}");
    }
    cluster.kill("n2");
    cluster.give("n2", &engine(authority, 1), authority);
    cluster.restart("n2");
    until_online(cluster).await;
    cluster.until_whole("trusted", "trusted").await;
}

/// A control plane whose certificates are of no use hears no engine; what is served goes on.
async fn control_planes_of_strangers_stay_out(cluster: &Cluster) {
    let authority = cluster.authority.as_ref().expect("there is one");
    let foreign = Authority::new("test").expect("it can be made");
    let published = cluster.publish("trusted", HOST, false).await;
    cluster.kill_control();
    cluster.give(
        "control",
        &certificate(&foreign, "control", Role::Admin, 1),
        &foreign,
    );
    cluster.start_control();
    let own = certificate(&foreign, "test", Role::Admin, 1);
    let strange = trusted_channel(cluster.control_address(), &foreign, Some(&own));
    for name in ["n1", "n2"] {
        until("it is missed", || async {
            (!is_online(strange.clone(), name).await?).then_some(())
        })
        .await;
    }
    tokio::time::sleep(SILENCE).await;
    for name in ["n1", "n2"] {
        assert_eq!(is_online(strange.clone(), name).await, Some(false), "{name}");
    }
    let host = cluster.host(&published, "trusted", 1);
    host.finished().await;
    cluster.kill_control();
    cluster.give(
        "control",
        &certificate(authority, "control", Role::Admin, 1),
        authority,
    );
    cluster.start_control();
    until_online(cluster).await;
    cluster.until_healthy("trusted").await;
}

/// The authority and all certificates are replaced while a host writes, and no process is started anew.
async fn certificates_are_renewed(cluster: &Cluster) {
    let authority = cluster.authority.as_ref().expect("there is one");
    let next = Authority::new("next").expect("it can be made");
    let give_all = |authority: &Authority| {
        let control = certificate(authority, "control", Role::Admin, 1);
        cluster.give("control", &control, authority);
        for name in ["n1", "n2"] {
            cluster.give(name, &certificate(authority, name, Role::Engine, 1), authority);
        }
    };
    let published = cluster.publish("trusted", HOST, false).await;
    let host = cluster.host(&published, "trusted", 2).writing().await;
    give_all(&next);
    let renewed = certificate(&next, "control", Role::Admin, 1);
    let before = certificate(authority, "control", Role::Admin, 1);
    for name in ["n1", "n2"] {
        let address = cluster.agent_address(name);
        until("its new certificate is used", || async {
            let channel = trusted_channel(address, &next, Some(&renewed));
            let told = AgentClient::new(channel).get_report(GetReportRequest {}).await;
            told.ok()
        })
        .await;
        let channel = trusted_channel(address, authority, Some(&before));
        let told = AgentClient::new(channel).get_report(GetReportRequest {}).await;
        assert!(is_cut_off(code(told)), "{name} uses its old certificate");
    }
    let heard = async || {
        for name in ["n1", "n2"] {
            until("it is online", || async {
                let channel = trusted_channel(cluster.control_address(), &next, Some(&renewed));
                is_online(channel, name).await?.then_some(())
            })
            .await;
        }
    };
    heard().await;
    // Another control plane is called by new connections, and calls by such.
    cluster.kill_control();
    cluster.start_control();
    heard().await;
    give_all(authority);
    until_online(cluster).await;
    host.finished().await;
    cluster.until_healthy("trusted").await;
}
