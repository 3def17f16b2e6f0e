//! Takes out of a JSON document what is secret, or may be.

use serde_json::Value;

/// What stands in its place.
const REDACTED: &str = "REDACTED";

/// Parts of names of fields that hold secrets.
const SECRET_NAMES: [&str; 7] = [
    "secret",
    "password",
    "passphrase",
    "credential",
    "private",
    "psk",
    "key",
];

/// Parameters of device URIs that tell nothing but how large something is.
const HARMLESS_PARAMETERS: [&str; 4] = ["size", "block", "inner.size", "inner.block"];

/// What secrets of a known form begin with: tokens, those of DH-HMAC-CHAP and of TLS as they are written
/// down (NVMe Base and NVMe/TCP, "Secret representation"), headers, keys in PEM.
const SECRET_BEGINNINGS: [&str; 6] = [
    "plx_",
    "DHHC-1:",
    "NVMeTLSkey-1:",
    "Bearer ",
    "Basic ",
    "-----BEGIN",
];

/// Takes it out.
pub(super) fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(text) if is_secret_name(name) => REDACTED.clone_into(text),
                    value => redact(value),
                }
            }
            let names: Vec<String> = fields
                .keys()
                .filter(|name| text(name) != **name)
                .cloned()
                .collect();
            for name in names {
                if let Some(value) = fields.remove(&name) {
                    fields.insert(text(&name), value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::String(content) => *content = text(content),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

/// A text without what is secret in it.
fn text(content: &str) -> String {
    let mut kept = String::with_capacity(content.len());
    // Words are what secrets could be, and all that is in quotation marks.
    for word in content.split_inclusive(|letter: char| letter.is_whitespace() || "\"'<>()".contains(letter)) {
        let bare = word.trim_end_matches(|letter: char| letter.is_whitespace() || "\"'<>()".contains(letter));
        let end = word.strip_prefix(bare).unwrap_or_default();
        kept += &uri(bare);
        kept += end;
    }
    for beginning in SECRET_BEGINNINGS {
        kept = without(&kept, beginning);
    }
    kept
}

/// A text without what follows a beginning: to the end of the word, and of keys in PEM to the end of all.
fn without(content: &str, beginning: &str) -> String {
    let mut kept = String::with_capacity(content.len());
    let mut rest = content;
    while let Some((before, after)) = rest.split_once(beginning) {
        kept += before;
        kept += beginning;
        kept += REDACTED;
        if beginning.starts_with("-----") {
            return kept;
        }
        let end = after.find(|letter: char| letter.is_whitespace() || "\"'<>(),;&".contains(letter));
        rest = end.and_then(|end| after.get(end..)).unwrap_or_default();
    }
    kept + rest
}

/// A device URI without what it is opened with, and without who opens it. Other words stay as they are.
fn uri(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (rest, None),
    };
    let authority_end = place.find('/').unwrap_or(place.len());
    let (authority, path) = place.split_at_checked(authority_end).unwrap_or((place, ""));
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{REDACTED}@{host}"),
        None => authority.to_owned(),
    };
    // A device on another one has the URI of that as its path.
    let path = match path.contains("://") {
        true => path
            .strip_prefix('/')
            .map_or_else(|| uri(path), |inner| format!("/{}", uri(inner))),
        false => path.to_owned(),
    };
    let query = query.map_or_else(String::new, |query| {
        let parameters: Vec<String> = query
            .split('&')
            .map(|parameter| {
                let name = parameter.split('=').next().unwrap_or_default();
                match HARMLESS_PARAMETERS.contains(&name) {
                    true => parameter.to_owned(),
                    false => format!("{name}={REDACTED}"),
                }
            })
            .collect();
        format!("?{}", parameters.join("&"))
    });
    format!("{scheme}://{authority}{path}{query}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SECRET: &str = "c0rrect-horse_battery";

    #[test]
    fn secrets_are_taken_out_wherever_they_are() {
        for content in [
            format!("plx_ci_{SECRET}"),
            format!("made the token plx_ci.1_{SECRET}, use it"),
            format!("DHHC-1:01:{SECRET}:"),
            format!("NVMeTLSkey-1:01:{SECRET}:"),
            format!("authorization: Bearer {SECRET}"),
            format!("Basic {SECRET}"),
            format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"),
            format!("nvmf://10.0.0.1:4420/nqn?psk={SECRET}&size=1GiB"),
            format!("cannot open \"nvmf://me:{SECRET}@host/nqn\": no"),
            format!("faulty:///nvmf://me:{SECRET}@host/nqn?inner.secret={SECRET}"),
            format!("plx_a_{SECRET} plx_b_{SECRET}"),
        ] {
            let mut value = json!({"list": [{"message": content, (content.clone()): 1}]});
            redact(&mut value);
            let left = value.to_string();
            assert!(!left.contains(SECRET), "{content} -> {left}");
            assert!(left.contains(REDACTED), "{left}");
        }
        let mut value = json!({
            "password": SECRET, "host_secret": SECRET, "api_key": SECRET, "PSK": SECRET, "secret_file": "/x",
        });
        redact(&mut value);
        assert!(!value.to_string().contains(SECRET), "{value}");
    }

    #[test]
    fn what_helps_stays() {
        for content in [
            "volume database is healthy",
            "uring:///dev/nvme0n1?size=10GiB&block=4096",
            "pcie:///0000:5e:00.0/1",
            "nqn.2014-08.org.nvmexpress:uuid:6c1b0a7e-7d3c-4c58-9a5e-0f1d2c3b4a59",
            "10.0.0.1:4420",
            "",
        ] {
            let before = json!({"name": content, "size_bytes": "7", "flag": true, "none": null});
            let mut after = before.clone();
            redact(&mut after);
            assert_eq!(after, before);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(content in any::<String>(), secret in "[A-Za-z0-9_-]{43}") {
            let mut value = json!({"message": format!("{content} plx_a_{secret} {content}")});
            redact(&mut value);
            prop_assert!(!value.to_string().contains(&secret));
        }
    }
}
