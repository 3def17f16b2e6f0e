//! What a volume of the long run is asked for beside its data: limits and a weight of its own, and secrets
//! that its host has to know. Both are changed while it is used, and in the end they have to be as they were
//! asked for last.

use pollux_api::control::v1::{HostSecrets, Qos, QosBurst, QosRate};
use pollux_api::qos::{Counted, Limit};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::cluster::{Cluster, HOST, until};
use crate::scenarios::SECRETS;

/// What a host does that has to find out whether it is admitted.
const LOOK: [&str; 4] = ["--patience", "2", "--depth", "1"];

/// The least of what is counted in a second: reading everything back must not take long.
fn least(limit: Limit) -> u64 {
    match limit.counted {
        Counted::Operations => 1_000,
        Counted::Bytes => 8 << 20,
    }
}

/// Limits and a weight, or none.
pub fn limits(random: &mut StdRng) -> Option<Qos> {
    let mut qos = Qos::default();
    for limit in Limit::ALL {
        if random.random_bool(0.6) {
            continue;
        }
        let per_second = random.random_range(least(limit)..10 * least(limit));
        let burst = random.random_bool(0.3).then(|| QosBurst {
            per_second: 2 * per_second,
            seconds: random.random_range(1..60),
        });
        let per_second_per_gib = match random.random_bool(0.3) {
            true => random.random_range(1..least(limit)),
            false => 0,
        };
        qos.set_rate(
            limit,
            Some(QosRate {
                per_second,
                per_second_per_gib,
                burst,
            }),
        );
    }
    qos.weight = random.random_bool(0.5).then(|| random.random_range(1..=10_000));
    (!qos.is_nothing()).then_some(qos)
}

/// Secrets of a host and of the volume, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    host: usize,
    controller: Option<usize>,
}

impl Pair {
    fn drawn(random: &mut StdRng) -> Self {
        Self {
            host: random.random_range(0..2),
            controller: random.random_bool(0.5).then_some(2),
        }
    }

    fn given(self) -> HostSecrets {
        HostSecrets {
            host: SECRETS[self.host].to_owned(),
            controller: self
                .controller
                .map(|at| SECRETS[at].to_owned())
                .unwrap_or_default(),
        }
    }

    fn arguments(self, cluster: &Cluster) -> Vec<String> {
        let file = |at: usize| cluster.file(&format!("secret-{at}"), SECRETS[at]);
        let mut arguments = vec!["--secret-file".to_owned(), file(self.host)];
        if let Some(controller) = self.controller {
            arguments.extend(["--controller-secret-file".to_owned(), file(controller)]);
        }
        arguments
    }
}

/// What a volume was asked for last.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Asked {
    pub limits: Option<Qos>,
    pub secrets: Option<Pair>,
}

impl Asked {
    /// What a host of the volume has to be told.
    pub fn arguments(&self, cluster: &Cluster) -> Vec<String> {
        self.secrets
            .map(|pair| pair.arguments(cluster))
            .unwrap_or_default()
    }

    /// Has the host of a volume, which is not connected, authenticate by other secrets, or by none again.
    /// Once that is so, whoever comes by those of before is refused.
    pub async fn change_secrets(&mut self, cluster: &Cluster, volume: &str, random: &mut StdRng) {
        let before = *self;
        if self.secrets.is_some() && random.random_bool(0.3) {
            // Only so does a host get rid of them.
            cluster.unpublish(volume, Some(HOST)).await;
            self.secrets = None;
            cluster.publish(volume, HOST, false).await;
            return;
        }
        let next = Pair::drawn(random);
        self.secrets = Some(next);
        cluster
            .publish_with(volume, HOST, false, Some(next.given()))
            .await;
        if before.secrets.is_none_or(|pair| pair.host != next.host) {
            is_refused(cluster, volume, &before).await;
        }
    }

    /// The end: the engine that serves a volume keeps these limits, all that show it admit the host by these
    /// secrets, and nobody admits it without.
    pub async fn check(&self, cluster: &Cluster, volume: &str) {
        until_limited(cluster, volume, self.limits).await;
        let on_record = cluster.spec(volume).await;
        let own = on_record.policy.unwrap_or_default().qos;
        assert_eq!(own, self.limits, "{volume}");
        let [host] = &on_record.hosts[..] else {
            panic!("{volume} has other hosts: {:?}", on_record.hosts);
        };
        assert_eq!(!host.secret_uid.is_empty(), self.secrets.is_some(), "{volume}");
        until("all who show it have the secrets", || async {
            let reports = cluster.reports().await;
            let shown = reports.iter().flat_map(|report| &report.targets);
            let shown: Vec<_> = shown.filter(|target| target.volume == volume).collect();
            let is_so = shown.iter().all(|target| {
                let mut hosts = target.hosts.iter();
                hosts.all(|known| known.host_nqn == HOST && known.secret_uid == host.secret_uid)
                    && target.hosts.len() == 1
            });
            (!shown.is_empty() && is_so).then_some(())
        })
        .await;
        if let Some(pair) = self.secrets {
            is_refused(cluster, volume, &Self::default()).await;
            let other = Pair {
                host: 1 - pair.host,
                ..pair
            };
            let other = Self {
                secrets: Some(other),
                ..*self
            };
            is_refused(cluster, volume, &other).await;
        }
    }
}

/// A host that knows no better than this finds no way to the volume, whoever shows it.
async fn is_refused(cluster: &Cluster, volume: &str, knows: &Asked) {
    let published = cluster.anywhere(&cluster.publish(volume, HOST, false).await);
    let own = knows.arguments(cluster);
    let mut arguments: Vec<&str> = own.iter().map(String::as_str).collect();
    arguments.extend(LOOK);
    let host = cluster.host_with(&published, &format!("refused-{volume}"), 0, &arguments);
    host.failure().await;
}

/// Waits until the engine that serves a volume does so with these limits.
pub async fn until_limited(cluster: &Cluster, volume: &str, wanted: Option<Qos>) {
    until("its target keeps the limits", || async {
        let reports = cluster.reports().await;
        let mut targets = reports.iter().flat_map(|report| &report.targets);
        let target = targets.find(|target| target.volume == volume && !target.standby)?;
        (target.qos == wanted).then_some(())
    })
    .await;
}
