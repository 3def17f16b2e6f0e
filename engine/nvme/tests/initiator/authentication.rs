//! DH-HMAC-CHAP between initiator and target, over the simulated network.

use std::path::PathBuf;

use pollux_device::Device;
use pollux_nvme::auth::{Credentials, Methods, Secret};
use pollux_nvme::initiator::InitiatorError;
use pollux_nvme::initiator::device::NvmfDevice;
use pollux_nvme::target::Subsystem;
use pollux_nvme::wire::auth::{GroupId, HashId};
use tempfile::TempDir;

use super::lab::{BLOCK, Lab, SUBSYSTEM, pattern, read};

const HOST: &str = "nqn.2026-11.io.pollux:host";
const ONE: &str = "DHHC-1:01:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
const TWO: &str = "DHHC-1:02:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";
const THREE: &str = "DHHC-1:03:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

fn credentials(host: &str, controller: Option<&str>) -> Credentials {
    Credentials {
        host: Secret::parse(host).unwrap(),
        controller: controller.map(|secret| Secret::parse(secret).unwrap()),
        methods: Methods::default(),
    }
}

/// A target whose host has credentials.
fn lab(seed: u64, credentials: Option<Credentials>) -> Lab {
    let lab = Lab::new(seed);
    subsystem(&lab).set_credentials(HOST, credentials).unwrap();
    lab
}

fn subsystem(lab: &Lab) -> std::sync::Arc<Subsystem> {
    lab.served().subsystem(SUBSYSTEM).unwrap()
}

/// Opens the device with these credentials, and uses it.
fn try_to_use(lab: &Lab, credentials: Option<Credentials>) -> Result<(), InitiatorError> {
    let mut options = lab.nvmf_options("");
    options.credentials = credentials;
    lab.world.block_on(lab.host_reactors[0], async move {
        let device = NvmfDevice::open(options).await?;
        let queue = device.clone().attach().await.unwrap();
        assert_eq!(read(&*queue, 0, BLOCK).await.unwrap().len(), BLOCK);
        Ok(())
    })
}

#[test]
fn every_hash_goes_with_every_group_one_way_and_mutual() {
    let groups = [
        GroupId::Null,
        GroupId::Ffdhe2048,
        GroupId::Ffdhe3072,
        GroupId::Ffdhe4096,
    ];
    let mut seed = 0;
    for hash in HashId::ALL {
        for group in groups {
            for mutual in [None, Some(TWO)] {
                seed += 1;
                let lab = lab(seed, Some(credentials(ONE, Some(TWO))));
                let ours = Credentials {
                    methods: Methods {
                        hashes: vec![*hash],
                        groups: vec![group],
                    },
                    ..credentials(ONE, mutual)
                };
                assert_eq!(
                    try_to_use(&lab, Some(ours)),
                    Ok(()),
                    "{hash:?} {group:?} {mutual:?}"
                );
            }
        }
    }
}

#[test]
fn whoever_cannot_prove_who_it_is_gets_nothing() {
    let lab = lab(1, Some(credentials(ONE, Some(TWO))));
    let missing = try_to_use(&lab, None);
    assert_eq!(missing, Err(InitiatorError::AuthenticationRequired));
    let failed = |credentials| match try_to_use(&lab, Some(credentials)) {
        Err(InitiatorError::NotAuthenticated { who, why }) => format!("{who}: {why}"),
        result => panic!("{result:?}"),
    };
    let wrong = failed(credentials(THREE, None));
    assert!(
        wrong.starts_with("this host, says the target: the response is wrong"),
        "{wrong}"
    );
    let wrong = failed(credentials(ONE, Some(THREE)));
    assert!(wrong.starts_with("the target: the response is wrong"), "{wrong}");
    let other = Credentials {
        methods: Methods {
            hashes: vec![HashId::Sha256],
            groups: vec![GroupId::Ffdhe6144],
        },
        ..credentials(ONE, None)
    };
    let wrong = failed(other);
    assert!(wrong.contains("no Diffie-Hellman group"), "{wrong}");
    assert_eq!(try_to_use(&lab, Some(credentials(ONE, None))), Ok(()));
}

/// A host that wants to know who the target is does not do without.
#[test]
fn a_target_that_does_not_ask_is_asked() {
    let lab = lab(1, None);
    assert_eq!(try_to_use(&lab, None), Ok(()));
    assert_eq!(try_to_use(&lab, Some(credentials(ONE, None))), Ok(()));
    let refused = try_to_use(&lab, Some(credentials(ONE, Some(TWO))));
    assert!(
        matches!(refused, Err(InitiatorError::Refused { .. })),
        "{refused:?}"
    );
}

/// The connections that come after a loss are authenticated too.
#[test]
fn a_host_that_comes_back_is_authenticated_again() {
    let lab = lab(3, Some(credentials(ONE, None)));
    let mut options = lab.nvmf_options("&reconnect=100ms");
    options.credentials = Some(credentials(ONE, None));
    let served = subsystem(&lab);
    lab.world.block_on(lab.host_reactors[0], async move {
        let device = NvmfDevice::open(options).await.unwrap();
        let queue = device.clone().attach().await.unwrap();
        let content = pattern(1, BLOCK);
        use pollux_device::BlockDeviceExt;
        queue.write(3, super::lab::buffer(&content), false).await.unwrap();
        served.remove_host(HOST).unwrap();
        served
            .set_hosts(&pollux_nvme::target::Hosts {
                allow_any: false,
                allowed: Vec::new(),
            })
            .unwrap();
        pollux_reactor::sleep(super::lab::ms(50)).await;
        assert!(!device.is_connected());
        served.add_host(HOST).unwrap();
        assert_eq!(read(&*queue, 3, BLOCK).await.unwrap(), content);
    });
}

#[test]
fn secrets_come_from_files_that_the_uri_names() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (one, two) = (file("one", ONE), file("two", &format!("{TWO}\n")));
    let lab = lab(1, Some(credentials(ONE, Some(TWO))));
    let (one, two) = (one.display(), two.display());
    let parameters = format!("&secret_file={one}&controller_secret_file={two}&dhgroups=ffdhe3072,ffdhe2048");
    let options = lab.nvmf_options(&parameters);
    let read = options.credentials.clone().unwrap();
    assert_eq!(read.methods.groups, [GroupId::Ffdhe3072, GroupId::Ffdhe2048]);
    assert!(!format!("{options:?}").contains("ia6z"));
    assert_eq!(try_to_use(&lab, Some(read)), Ok(()));

    use pollux_nvme::initiator::device::NvmfOptions;
    for wrong in [
        "&secret_file=/nowhere/secret".to_owned(),
        format!("&controller_secret_file={two}"),
        format!("&secret_file={one}&dhgroups=ffdhe1024"),
        format!("&secret_file={}", file("bad", "DHHC-1:00:AAAA:").display()),
    ] {
        assert!(NvmfOptions::from_uri(&lab.uri(&wrong)).is_err(), "{wrong}");
    }
}
