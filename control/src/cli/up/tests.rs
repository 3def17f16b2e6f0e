use super::*;

#[test]
fn paths_are_written_as_uris() {
    let uri = |path: &str| device_uri(Path::new(path)).expect("UTF-8");
    assert_eq!(uri("/data/n1/pool.img"), "uring:///data/n1/pool.img?block=4096");
    assert_eq!(uri("/a b/50%?#/p"), "uring:///a b/50%25%3F%23/p?block=4096");
}

#[test]
fn a_directory_has_one_cluster_at_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let own = directory.path().join("cluster");
    let lock = take(&own).expect("it is free");
    let refused = take(&own).expect_err("it is taken").to_string();
    assert!(refused.contains("runs already"), "{refused}");
    drop(lock);
    take(&own).expect("it is free again");
}

#[test]
fn ports_of_others_are_left_alone() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("it has one");
    let directory = tempfile::tempdir().expect("a directory");
    let arguments = UpArguments {
        directory: directory.path().to_owned(),
        engines: None,
        size: Size(1 << 30),
        unreachable_after: 5,
        overcommit: 200,
    };
    let refused = Layout::of(&arguments, &address.to_string()).map(drop);
    let refused = refused.expect_err("somebody listens there").to_string();
    assert!(
        refused.contains(&format!("sport = :{}", address.port())),
        "{refused}"
    );
    assert!(
        !directory.path().join("cluster.json").exists(),
        "nothing is kept of it"
    );
    drop(other);
    let (layout, _kept) = Layout::of(&arguments, &address.to_string()).expect("it is free");
    assert_eq!(layout.control, address);
    let more = UpArguments {
        engines: Some(5),
        ..arguments
    };
    let refused = Layout::of(&more, &address.to_string()).map(drop);
    let refused = refused.expect_err("it has three").to_string();
    assert!(refused.contains("--engines 3"), "{refused}");
}
