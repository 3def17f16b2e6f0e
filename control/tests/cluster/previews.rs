//! What an edit of a template would do, and does.

use std::sync::Arc;

use pollux_api::control::v1::templates_client::TemplatesClient;
use pollux_api::control::v1::*;
use pollux_control::store::MemoryStore;

use crate::calls::{Server, create, fields, mask, reason};
use crate::common::fleet::Fleet;
use crate::common::{GIB, named, volume};

#[tokio::test]
async fn templates_tell_what_they_would_move() {
    let server = Server::start(Arc::new(MemoryStore::default()), Fleet::new(["a", "b", "c"])).await;
    for node in ["a", "b", "c"] {
        server.add_node(node).await;
    }
    server.until_online(3).await;
    let mut templates = TemplatesClient::new(server.channel.clone());
    let template = |replicas| {
        let policy = VolumePolicy {
            replicas: Some(replicas),
            ..VolumePolicy::default()
        };
        let template = Template {
            spec: Some(TemplateSpec { policy: Some(policy) }),
            ..Template::default()
        };
        Some(named(template, "gold"))
    };
    let request = CreateTemplateRequest {
        template: template(1),
    };
    templates.create_template(request).await.expect("it is new");
    let mut volumes = server.volumes();
    let mut follower = volume("v", 1);
    let spec = follower.spec.as_mut().expect("it has one");
    spec.policy = None;
    spec.template = "gold".to_owned();
    volumes.create_volume(create(follower)).await.expect("it is new");
    loop {
        let request = GetVolumeRequest { name: "v".to_owned() };
        let volume = volumes
            .get_volume(request)
            .await
            .expect("it is there")
            .into_inner();
        if volume.status.expect("it has one").state() == VolumeState::Healthy {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let update = |replicas| UpdateTemplateRequest {
        template: template(replicas),
        update_mask: mask(&["spec.policy"]),
    };
    let preview = templates
        .preview_template(update(3))
        .await
        .expect("a preview")
        .into_inner();
    assert_eq!((preview.volumes, preview.changes.len()), (1, 1));
    assert_eq!(preview.changes[0].added_pools.len(), 2);
    assert_eq!(preview.copied_bytes_max, 20 * GIB);
    assert_eq!(preview.changes[0].qos, None);
    // Limits alone, by their own path: nothing moves.
    let limited = |qos| UpdateTemplateRequest {
        template: Some(named(
            Template {
                spec: Some(TemplateSpec {
                    policy: Some(VolumePolicy {
                        replicas: Some(3),
                        qos: Some(qos),
                        ..VolumePolicy::default()
                    }),
                }),
                ..Template::default()
            },
            "gold",
        )),
        update_mask: mask(&["spec.policy.qos"]),
    };
    let qos = Qos {
        iops_max: Some(100),
        ..Qos::default()
    };
    let preview = templates
        .preview_template(limited(qos))
        .await
        .expect("a preview")
        .into_inner();
    assert_eq!((preview.volumes, preview.copied_bytes_max), (1, 0));
    let [change] = preview.changes.as_slice() else {
        panic!("{preview:?}")
    };
    assert_eq!((change.added_pools.len(), change.qos), (0, Some(qos)));
    let wrong = Qos {
        write: Some(QosLimits {
            bytes: Some(QosRate::default()),
            operations: None,
        }),
        ..Qos::default()
    };
    let refused = templates
        .update_template(limited(wrong))
        .await
        .expect_err("no rate");
    assert_eq!(fields(&refused), ["template.spec.policy.qos.write.bytes"]);
    let changed = templates.update_template(limited(qos)).await.expect("limits");
    let policy = changed
        .into_inner()
        .spec
        .expect("it has one")
        .policy
        .expect("it has one");
    assert_eq!((policy.replicas, policy.qos), (Some(1), Some(qos)));
    // The same of a volume: its own limits come and go, and a policy that says nothing is none.
    for own in [Some(qos), None] {
        let policy = VolumePolicy {
            replicas: Some(5),
            qos: own,
            ..VolumePolicy::default()
        };
        let mut update = volume("v", 1);
        update.spec.as_mut().expect("it has one").policy = Some(policy);
        let request = UpdateVolumeRequest {
            volume: Some(update),
            update_mask: mask(&["spec.policy.qos"]),
        };
        let changed = volumes.update_volume(request).await.expect("limits").into_inner();
        let policy = changed.spec.expect("it has one").policy;
        let wanted = own.map(|qos| VolumePolicy {
            qos: Some(qos),
            ..VolumePolicy::default()
        });
        assert_eq!(policy, wanted);
    }
    let preview = templates
        .preview_template(update(4))
        .await
        .expect("a preview")
        .into_inner();
    assert!(
        preview.changes[0].problem.contains("only 2 of 3"),
        "{}",
        preview.changes[0].problem
    );
    let request = DeleteTemplateRequest {
        name: "gold".to_owned(),
    };
    let refused = templates
        .delete_template(request)
        .await
        .expect_err("a volume follows it");
    assert_eq!(reason(&refused), "IN_USE");
}
