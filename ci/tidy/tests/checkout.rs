//! Checkouts made up by the test, each with one thing wrong.

use std::path::Path;

/// A file of a checkout and its text.
type File = (&'static str, &'static str);

const GOOD: [File; 8] = [
    ("LICENSE", "Apache License\nVersion 2.0\n"),
    (
        "README.md",
        "# Title\n\nSee [the library](engine/device/src/lib.rs).\n",
    ),
    ("Cargo.lock", ""),
    (
        "Cargo.toml",
        "[workspace]\nmembers = [\"engine/device\"]\n[workspace.dependencies]\nslab = \"0.4\"\n",
    ),
    (
        "engine/device/Cargo.toml",
        "[package]\nname = \"pollux-device\"\ndescription = \"d\"\nversion.workspace = true\n\
         edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n\n\
         [lints]\nworkspace = true\n\n[dependencies]\nslab.workspace = true\n",
    ),
    (
        "engine/device/src/lib.rs",
        "//! A library.\n\n#![forbid(unsafe_code)]\n\nmod inner;\n\n#[cfg(test)]\nmod tests;\n",
    ),
    ("engine/device/src/inner/mod.rs", "//! Inner.\n"),
    (
        "engine/device/src/tests.rs",
        "fn sleeps() {\n    std::thread::sleep(x);\n}\n",
    ),
];

/// What is found in the good checkout with these files added or replaced.
fn found(changes: &[File]) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in GOOD.iter().chain(changes) {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    let findings = pollux_tidy::check(directory.path()).expect("it can be read");
    findings.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn expect(changes: &[File], parts: &[&str]) {
    let found = found(changes);
    assert_eq!(found.len(), parts.len(), "{found:#?}");
    for (found, part) in found.iter().zip(parts) {
        assert!(found.contains(part), "{part:?} is not in {found}");
    }
}

#[test]
fn a_good_checkout_is_fine() {
    expect(&[], &[]);
}

#[test]
fn files_that_nothing_compiles_are_dead() {
    expect(
        &[("engine/device/src/old.rs", "")],
        &["old.rs: is compiled by nothing"],
    );
    expect(
        &[("engine/device/src/inner/old.rs", "")],
        &["old.rs: is compiled by nothing"],
    );
    // These are roots of their own, or reached by another way.
    expect(
        &[
            ("engine/device/tests/all.rs", "mod common;\n"),
            ("engine/device/tests/common/mod.rs", ""),
        ],
        &[],
    );
    expect(
        &[
            (
                "engine/device/src/inner/mod.rs",
                "#[path = \"odd.rs\"]\nmod even;\n",
            ),
            ("engine/device/src/inner/odd.rs", ""),
        ],
        &[],
    );
    expect(
        &[
            (
                "engine/device/src/inner/mod.rs",
                "mod outer {\n    mod inside;\n}\n",
            ),
            ("engine/device/src/inner/outer/inside.rs", ""),
        ],
        &[],
    );
}

#[test]
fn modules_without_a_file_are_found() {
    expect(
        &[("engine/device/src/inner/mod.rs", "mod gone;\n")],
        &["inner/mod.rs:1: module `gone` has no file"],
    );
}

#[test]
fn what_is_banned_in_the_product_may_stand_in_its_tests() {
    expect(
        &[(
            "engine/device/src/inner/mod.rs",
            "fn f() {\n    std::thread::sleep(x);\n}\n",
        )],
        &["inner/mod.rs:2: `thread::sleep`"],
    );
}

#[test]
fn a_crate_without_unsafe_forbids_it() {
    expect(
        &[(
            "engine/device/src/lib.rs",
            "mod inner;\n#[cfg(test)]\nmod tests;\n",
        )],
        &["lib.rs: the crate has no `unsafe`"],
    );
}

#[test]
fn arrows_and_links_are_looked_at() {
    expect(
        &[("README.md", "# Title\n\nSee [nothing](gone.md).\n")],
        &["README.md:3: links to gone.md"],
    );
    let manifest = "[package]\nname = \"pollux-device\"\ndescription = \"d\"\nversion.workspace = true\n\
                    edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n\n\
                    [lints]\nworkspace = true\n\n[dependencies]\npollux-nvme.workspace = true\n";
    expect(
        &[("engine/device/Cargo.toml", manifest)],
        &["engine/device/Cargo.toml: [dependencies] pollux-nvme"],
    );
}

#[test]
fn a_checkout_without_a_licence_is_not_complete() {
    let directory = tempfile::tempdir().expect("a directory");
    let findings = pollux_tidy::check(directory.path()).expect("it can be read");
    assert!(
        findings
            .iter()
            .any(|finding| finding.path == Path::new("LICENSE"))
    );
}
