use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn uri(text: &str) -> DeviceUri {
    DeviceUri::parse(text).expect(text)
}

fn error(text: &str) -> String {
    DeviceUri::parse(text).expect_err(text).to_string()
}

#[test]
fn takes_a_uri_apart() {
    let local = uri("uring:///data/my%20disk.img?size=10GiB&direct=false");
    assert_eq!(local.scheme(), "uring");
    assert_eq!(local.host(), None);
    assert_eq!(local.path(), "data/my disk.img");
    assert_eq!(local.file_path(), Path::new("/data/my disk.img"));
    assert_eq!(local.name().expect("a name"), "my disk.img");

    let remote = uri("nvmf://[fd00::1]:4420/nqn.2026-11.io.pollux:serve");
    assert_eq!((remote.host(), remote.port()), (Some("fd00::1"), Some(4420)));
    assert_eq!(remote.path(), "nqn.2026-11.io.pollux:serve");
    assert_eq!(uri("nvmf://host/nqn").port(), None);
    assert_eq!(uri("pcie:///0000:5e:00.0/1").path(), "0000:5e:00.0/1");
}

#[test]
fn a_parameter_is_added_where_it_is_not_given() {
    let plain = uri("uring:///a%20b").or_parameter("readonly", "true");
    assert_eq!(plain, uri("uring:///a%20b?readonly=true"));
    let with_size = uri("uring:///a?size=1GiB").or_parameter("readonly", "true");
    assert_eq!(with_size, uri("uring:///a?size=1GiB&readonly=true"));
    let given = uri("uring:///a?readonly=false&block=512");
    assert_eq!(given.or_parameter("readonly", "true"), given);
}

#[test]
fn paths_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let path = uri("uring:///data/%FF").file_path();
    assert_eq!(path.as_os_str().as_bytes(), b"/data/\xff");
}

#[test]
fn says_what_is_no_uri() {
    assert!(error("scratch").contains("malloc:///scratch?size=1GiB"));
    assert!(error("malloc:scratch?psk=hidden").contains("slashes"));
    assert!(!error("malloc:scratch?psk=hidden").contains("hidden"));
    assert!(error("malloc:///a#b").contains("%23"));
    assert!(error(&format!("malloc:///{}", "a".repeat(5000))).contains("4096 bytes"));
    assert!(error("malloc:///a?size=1GiB&block=512&size=2GiB").contains("\"size\" is given more than once"));
}

#[test]
fn a_local_device_has_no_host() {
    let mistaken = uri("malloc://scratch?size=1GiB");
    let error = mistaken.local_parameters().expect_err("a host").to_string();
    assert!(error.contains("write malloc:///scratch"), "{error}");
}

#[test]
fn a_name_must_be_one() {
    for text in ["null:///", "null://", "null:///a/", "null:///a%0Ab"] {
        assert!(matches!(uri(text).name(), Err(UriError::Name { .. })), "{text}");
    }
    let long = format!("null:///{}", "a".repeat(256));
    assert!(uri(&long).name().is_err());
    assert!(uri(&long[..long.len() - 1]).name().is_ok());
}

#[test]
fn parameters_are_typed() {
    let uri = uri("x:///a?size=1GiB&on=true&count=7&wait=5ms&text=a%26b&choice=two&token=short");
    let mut parameters = uri.local_parameters().expect("no host");
    assert_eq!(parameters.require::<ByteSize>("size"), Ok(ByteSize(1 << 30)));
    assert_eq!(parameters.take::<bool>("on"), Ok(Some(true)));
    assert_eq!(parameters.take::<u32>("count"), Ok(Some(7)));
    assert_eq!(
        parameters.take::<Duration>("wait"),
        Ok(Some(Duration::from_millis(5)))
    );
    assert_eq!(parameters.take::<String>("text"), Ok(Some("a&b".to_owned())));
    assert_eq!(parameters.take::<u64>("absent"), Ok(None));
    let choice = parameters.take_with("choice", "one or two", |text| match text {
        "one" => Some(1),
        "two" => Some(2),
        _ => None,
    });
    assert_eq!(choice, Ok(Some(2)));
    let unreadable = parameters
        .take::<u64>("token")
        .expect_err("no number")
        .to_string();
    assert!(
        unreadable.contains("token") && !unreadable.contains("short"),
        "{unreadable}"
    );
    assert_eq!(parameters.finish(), Ok(()));
}

#[test]
fn mistakes_in_parameters_name_the_parameter_and_the_remedy() {
    let mistaken = uri("malloc:///a?siez=1GiB&block=many");
    let mut parameters = mistaken.local_parameters().expect("no host");
    let missing = parameters
        .require::<ByteSize>("size")
        .expect_err("missing")
        .to_string();
    assert!(
        missing.contains("\"size\" is missing") && missing.contains("512MiB"),
        "{missing}"
    );
    let value = parameters
        .take::<ByteSize>("block")
        .expect_err("no size")
        .to_string();
    assert!(value.contains("\"block\" is \"many\""), "{value}");
    let unknown = parameters.finish().expect_err("unknown").to_string();
    assert!(unknown.starts_with("malloc:///a?siez=1GiB"), "{unknown}");
    assert!(
        unknown.contains("\"siez\"") && unknown.contains("size, block"),
        "{unknown}"
    );
}

#[test]
fn numbers_and_times_are_strict() {
    assert_eq!(u32::read("+1"), None);
    assert_eq!(u32::read("-1"), None);
    assert_eq!(u32::read(""), None);
    assert_eq!(u32::read("4294967296"), None);
    for text in ["", "5", "ms", "1h", "86401s", "18446744073709551615s", "1.5s"] {
        assert_eq!(Duration::read(text), None, "{text}");
    }
    assert_eq!(Duration::read("86400s"), Some(Duration::from_secs(86400)));
    assert_eq!(bool::read("yes"), None);
    assert_eq!(String::read(""), None);
}

#[test]
fn an_inner_uri_may_be_written_both_ways() {
    let inner = uri("malloc:///scratch?size=1GiB&block=512");
    for text in [
        "faulty:///malloc:///scratch?inner.size=1GiB&seed=7&inner.block=512",
        "faulty:///malloc:%2F%2F%2Fscratch%3Fsize=1GiB&block=512?seed=7",
        "faulty:///malloc:///scratch%3Fsize=1GiB?inner.block=512",
    ] {
        assert_eq!(uri(text).inner().expect(text), inner, "{text}");
    }
    let twice = uri("faulty:///faulty:///malloc:///scratch?inner.inner.size=1GiB&inner.inner.block=512");
    assert_eq!(
        twice.inner().and_then(|once| once.inner()).expect("two levels"),
        inner
    );
    assert_eq!(twice.nesting(), 2);
    assert_eq!(inner.nesting(), 0);
    assert_eq!(
        uri("faulty:///nvmf://host:4420/nqn")
            .inner()
            .expect("a URI")
            .port(),
        Some(4420)
    );
    let value = uri("faulty:///x:///a?inner.v=a%26b%3Dc%25")
        .inner()
        .expect("a URI");
    assert_eq!(
        value.parameters().take::<String>("v"),
        Ok(Some("a&b=c%".to_owned()))
    );
}

#[test]
fn secrets_are_not_shown() {
    for text in [
        "nvmf://user:hidden@host:4420/nqn?psk=hidden&dhchap_key=hidden&tls.psk=hidden",
        "faulty:///nvmf://host/nqn?inner.psk=hidden",
        "faulty:///nvmf://host/nqn%3Fpsk=hidden",
        "faulty:///nvmf://u:hidden@host/nqn%3Fpsk=hidden",
        "faulty:///faulty:%2F%2F%2Fnvmf:%252F%252Fhost%252Fnqn%253Fpsk=hidden",
    ] {
        let shown = format!("{0} {0:?}", uri(text));
        assert!(!shown.contains("hidden") && shown.contains("***"), "{shown}");
    }
    let plain = "malloc:///scratch?size=1GiB&keys=4";
    assert_eq!(uri(plain).to_string(), plain);
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC{0,60}") {
        if let Ok(uri) = DeviceUri::parse(&text) {
            let _ = (uri.to_string(), uri.name(), uri.inner(), uri.nesting(), uri.local_parameters());
        }
    }

    #[test]
    fn never_panics_on_nearly_right_ones(
        text in "[a-z]{1,8}:/{0,3}[a-z:@%/0-9\\[\\]?&=.]{0,40}\\?[a-z=&%0-9.]{0,40}"
    ) {
        if let Ok(uri) = DeviceUri::parse(&text) {
            let _ = (uri.to_string(), uri.name(), uri.inner(), uri.nesting(), uri.local_parameters());
        }
    }

    /// What is shown is the same device again, as long as nothing was left out.
    #[test]
    fn what_is_shown_can_be_read(
        name in "[a-zA-Z0-9 %?#&=+:é-]{1,20}", value in "\\PC{1,20}",
    ) {
        let mut url = url::Url::parse("x:///").expect("a URL");
        url.set_path(&utf8_percent_encode(&name, PATH_ENCODE_SET).to_string());
        url.query_pairs_mut().append_pair("v", &value);
        let first = uri(url.as_str());
        prop_assert_eq!(first.name().expect("a name"), name);
        let again = uri(&first.to_string());
        prop_assert_eq!(again.parameters().take::<String>("v"), Ok(Some(value)));
        prop_assert_eq!(again.name(), first.name());
    }
}
