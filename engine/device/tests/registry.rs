//! Devices by URI, and what is said when that does not work.

mod common;

use std::sync::Arc;

use common::{on_reactor, open};
use pollux_device::{Device, DeviceUri, NullDevice, OpenError, Opener, Opening, Registry};

async fn error(text: &str) -> String {
    let error = open(text).await.err().expect(text).to_string();
    assert!(!error.contains('\n'), "one line: {error}");
    error
}

#[test]
fn opens_what_it_knows() {
    on_reactor(|| async {
        let null = open("null:///pool/nothing?size=1TiB").await.expect("a device");
        assert_eq!(null.name(), "nothing");
        assert_eq!(
            (null.geometry().block_bytes, null.geometry().bytes()),
            (4096, 1 << 40)
        );
        let malloc = open("malloc:///my%20memory?size=100MiB&block=512")
            .await
            .expect("memory");
        assert_eq!(malloc.name(), "my memory");
        assert_eq!(
            (malloc.geometry().block_bytes, malloc.geometry().blocks),
            (512, 204_800)
        );
    });
}

#[test]
fn errors_tell_what_is_wrong_and_what_is_right() {
    on_reactor(|| async {
        let unknown = error("mallok:///memory?size=1GiB").await;
        assert!(
            unknown.contains("\"mallok\"") && unknown.contains("faulty, malloc, null"),
            "{unknown}"
        );
        for (uri, told) in [
            ("null:///nothing", "\"size\" is missing"),
            ("null:///nothing?size=1TiB&blok=512", "allowed are size, block"),
            ("null:///nothing?size=1TiB&block=513", "use 512 or 4096"),
            ("null:///nothing?size=0", "multiple of the block size"),
            ("null:///?size=1TiB", "no name"),
            ("null://nothing?size=1TiB", "write null:///nothing"),
            ("malloc:///memory?size=1000", "multiple of the block size 4096"),
            ("malloc:///memory?size=8EiB", "address"),
            ("malloc:///memory?size=1MiB&node=4096", "node"),
            ("malloc:///memory?size=1MiB&node=x", "\"node\" is \"x\""),
            ("faulty:///memory?inner.size=1MiB", "not a device URI"),
            ("faulty:///memory:///x", "unknown scheme \"memory\""),
            ("faulty:///malloc:///x", "\"size\" is missing"),
        ] {
            let error = error(uri).await;
            assert!(error.contains(told), "{uri}: {error}");
        }
        let nested = "faulty:///".repeat(20) + "null:///nothing";
        assert!(error(&nested).await.contains("more than 8 deep"));
    });
}

#[test]
fn other_crates_add_schemes() {
    struct Tape;
    impl Opener for Tape {
        fn open<'a>(&'a self, registry: &'a Registry, uri: &'a DeviceUri) -> Opening<'a> {
            Box::pin(async move {
                if uri.path() == "broken" {
                    return Err(OpenError::failed(uri, "the reel is empty; insert a tape"));
                }
                let uri = DeviceUri::parse("null:///tape?size=1GiB")?;
                registry.open(&uri).await
            })
        }
    }
    on_reactor(|| async {
        let mut registry = Registry::standard();
        registry.register("tape", Arc::new(Tape));
        assert!(registry.schemes().any(|scheme| scheme == "tape"));
        let uri = DeviceUri::parse("tape:///reel").expect("a URI");
        assert_eq!(registry.open(&uri).await.expect("a tape").name(), "tape");
        let uri = DeviceUri::parse("tape:///broken").expect("a URI");
        let error = registry.open(&uri).await.err().expect("broken").to_string();
        assert_eq!(error, "tape:///broken: the reel is empty; insert a tape");
        assert!(Registry::empty().open(&uri).await.is_err());
    });
}

#[test]
fn devices_are_dropped_when_nobody_has_them() {
    let geometry = pollux_device::Geometry::new(1 << 20, 512).expect("a geometry");
    let device: Arc<dyn Device> = NullDevice::new("nothing", geometry);
    let weak = Arc::downgrade(&device);
    on_reactor(move || async move {
        drop(device.attach().await.expect("attaches"));
    });
    assert!(weak.upgrade().is_none());
}
