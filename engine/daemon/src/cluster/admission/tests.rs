use std::sync::Arc;

use pollux_nvme::target::{SubsystemConfig, Target};
use pollux_reactor::real::{ReactorThread, Settings};

use super::*;

const SECRET: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
const HOST: &str = "nqn.2026-11.x:host";
const OTHER: &str = "nqn.2026-11.x:other";

fn host(nqn: &str, secret_uid: &str, secret: &str) -> TargetHost {
    TargetHost {
        host_nqn: nqn.to_owned(),
        read_only: false,
        secret_uid: secret_uid.to_owned(),
        secrets: (!secret.is_empty()).then(|| HostSecrets {
            host: secret.to_owned(),
            controller: String::new(),
        }),
    }
}

fn told(hosts: Vec<TargetHost>) -> TargetConfig {
    TargetConfig {
        hosts,
        ..TargetConfig::default()
    }
}

#[test]
fn what_is_no_secret_is_refused_and_not_shown() {
    for secret in [
        "nonsense",
        &SECRET.replace(":00:", ":09:"),
        &SECRET.replace("2n:", "2o:"),
    ] {
        let error = take_secrets(&mut told(vec![host(HOST, "a", secret)])).expect_err(secret);
        assert!(!error.to_string().contains("ia6z"), "{error}");
    }
    // Secrets without a name could not be told from others.
    assert!(take_secrets(&mut told(vec![host(HOST, "", SECRET)])).is_err());
    let mut good = told(vec![host(HOST, "a", SECRET), host(OTHER, "", "")]);
    let secrets = take_secrets(&mut good).expect("they are");
    assert_eq!(secrets.len(), 1);
    assert!(good.hosts.iter().all(|host| host.secrets.is_none()));
}

struct Volume {
    subsystem: Arc<Subsystem>,
    known: Vec<TargetHost>,
    _target: Arc<Target>,
    _thread: ReactorThread,
}

impl Volume {
    fn new() -> Self {
        let thread = ReactorThread::spawn(Settings::default()).expect("a thread");
        let config = pollux_nvme::target::TargetConfig::default();
        let target = Target::new(config, vec![thread.handle()]).expect("a target");
        let subsystem = target.add_subsystem(&SubsystemConfig::new("nqn.2026-11.io.pollux:test"));
        Self {
            subsystem: subsystem.expect("it is the first"),
            known: Vec::new(),
            _target: target,
            _thread: thread,
        }
    }

    /// Who is admitted once these are told.
    fn admit(&mut self, hosts: Vec<TargetHost>) -> Vec<String> {
        let mut told = told(hosts);
        let secrets = take_secrets(&mut told).expect("they are");
        admit(&self.subsystem, &self.known, &mut told.hosts, secrets).expect("names");
        self.known = told.hosts;
        let admitted = self.subsystem.hosts();
        assert!(!admitted.allow_any);
        let names: Vec<String> = self.known.iter().map(|host| host.host_nqn.clone()).collect();
        assert_eq!(admitted.allowed, names);
        names
    }
}

#[test]
fn hosts_without_their_secrets_are_not_admitted() {
    let mut volume = Volume::new();
    assert!(volume.admit(vec![host(HOST, "a", "")]).is_empty());
    assert_eq!(
        volume.admit(vec![host(HOST, "a", SECRET), host(OTHER, "", "")]),
        [HOST, OTHER]
    );
    // Those that are known need not be told again; others do.
    assert_eq!(volume.admit(vec![host(HOST, "a", "")]), [HOST]);
    assert!(
        volume
            .admit(vec![host(HOST, "b", ""), host(OTHER, "a", "")])
            .is_empty()
    );
    // Whoever was forgotten is not known any more.
    assert!(volume.admit(vec![host(HOST, "a", "")]).is_empty());
}
