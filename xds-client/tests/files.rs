//! Resources from files: replaced by moves and by Kubernetes' link, broken, absent, and read again for more names.

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use common::*;
use prost::Message;
use xds_client::{Client, Event, Events, FileOptions, Kind, Subscription, TypeUrl};

const CDS: TypeUrl = TypeUrl::CLUSTER;

fn yaml(version: &str, names: &[&str]) -> String {
    let resources: String = names.iter().map(|n| format!("- {{\"@type\": {CDS}, name: {n}}}\n")).collect();
    format!("version_info: \"{version}\"\nresources:\n{resources}")
}

/// As a person replaces a file: written beside it, then moved over it.
fn replace(path: &Path, text: impl AsRef<[u8]>) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

fn start(options: FileOptions) -> (Client, Events) {
    let (client, events) = Client::watch_file(options);
    client.subscribe(&CDS, Subscription::Wildcard);
    (client, events)
}

async fn names(events: &mut Events) -> (String, Vec<String>) {
    let response = response(events).await;
    assert_eq!((response.type_url.clone(), response.kind), (CDS, Kind::Full));
    let got = (response.version.clone(), response.resources.iter().map(|r| r.name.clone()).collect());
    response.ack();
    got
}

fn got(version: &str, names: &[&str]) -> (String, Vec<String>) {
    (version.to_string(), names.iter().map(|n| n.to_string()).collect())
}

async fn complaint(events: &mut Events) -> String {
    match soon("a complaint", events.next()).await {
        Some(Event::Disconnected { error, code: None, .. }) => error,
        other => panic!("expected a complaint, got {other:?}"),
    }
}

#[tokio::test]
async fn a_file_is_read_again_when_it_is_moved_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.yaml");
    fs::write(&path, yaml("1", &["a", "b"])).unwrap();
    let (_client, mut events) = start(FileOptions::new(CDS, &path));
    connected(&mut events).await;
    assert_eq!(names(&mut events).await, got("1", &["a", "b"]));
    replace(&path, yaml("2", &["c"]));
    assert_eq!(names(&mut events).await, got("2", &["c"]));
    // Neither another file nor a write in place counts.
    replace(&dir.path().join("other.yaml"), "");
    fs::write(&path, yaml("half", &["never"])).unwrap();
    replace(&path, yaml("3", &[]));
    assert_eq!(names(&mut events).await, got("3", &[]));
}

#[tokio::test]
async fn a_bad_file_is_told_and_the_next_good_one_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.json");
    let options = FileOptions { max_bytes: 2000, ..FileOptions::new(CDS, &path) };
    let (_client, mut events) = start(options);
    assert!(complaint(&mut events).await.contains("No such file"), "the file is not there yet");
    replace(
        &path,
        r#"{"versionInfo": "1", "resources": [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a"}]}"#,
    );
    connected(&mut events).await;
    assert_eq!(names(&mut events).await, got("1", &["a"]));

    replace(&path, "{\"resources\": 7, \"version_info\": []}");
    let error = complaint(&mut events).await;
    assert!(error.contains("cds.json: ") && error.contains("resources") && error.contains("version_info"), "{error}");
    replace(&path, [0xff, 0xfe]);
    assert!(complaint(&mut events).await.contains("not UTF-8"));
    replace(&path, format!("{{}}{}", " ".repeat(2000)));
    assert!(complaint(&mut events).await.contains("larger than the limit of 2000 bytes"));
    replace(&path, format!("{{\"type_url\": \"{}\"}}", TypeUrl::LISTENER));
    assert!(complaint(&mut events).await.contains("v3.Listener, expected"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(path.with_extension("d")).unwrap();
    fs::rename(path.with_extension("d"), &path).unwrap();
    assert!(complaint(&mut events).await.contains("directory"));
    fs::remove_dir(&path).unwrap();

    replace(&path, "{\"version_info\": \"2\"}");
    connected(&mut events).await;
    assert_eq!(names(&mut events).await, got("2", &[]));
}

#[tokio::test]
async fn unknown_fields_are_left_out_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.yaml");
    let text = format!("resources: [{{\"@type\": {CDS}, name: a, nmae: b}}]");
    fs::write(&path, text).unwrap();
    let (_client, mut events) = start(FileOptions::new(CDS, &path));
    connected(&mut events).await;
    assert_eq!(names(&mut events).await, got("", &["a"]));
    let (_client, mut events) = start(FileOptions { reject_unknown_fields: true, ..FileOptions::new(CDS, &path) });
    assert!(complaint(&mut events).await.contains("nmae"));
}

#[tokio::test]
async fn binary_is_read_and_text_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.pb");
    let mut message = sotw_response(&CDS, "1", "", &["a"]);
    message.type_url.clear();
    fs::write(&path, message.encode_to_vec()).unwrap();
    let (_client, mut events) = start(FileOptions::new(CDS, &path));
    connected(&mut events).await;
    assert_eq!(names(&mut events).await, got("1", &["a"]));
    replace(&path, [0x0f; 3]);
    assert!(complaint(&mut events).await.contains("no DiscoveryResponse"));
    let (_client, mut events) = start(FileOptions::new(CDS, dir.path().join("cds.pb_text")));
    assert!(complaint(&mut events).await.contains("text format is not supported"));
}

#[tokio::test]
async fn the_link_of_a_config_map_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let publish = |name: &str, version: &str| {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("cds.yaml"), yaml(version, &[name])).unwrap();
        symlink(name, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    publish("first", "1");
    symlink("..data/cds.yaml", root.join("cds.yaml")).unwrap();
    let own = FileOptions::new(CDS, root.join("cds.yaml"));
    // The same file reached from elsewhere, with the directory to watch named.
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(root.join("cds.yaml"), elsewhere.path().join("link.yaml")).unwrap();
    let named = FileOptions {
        watched_directory: Some(root.to_owned()),
        ..FileOptions::new(CDS, elsewhere.path().join("link.yaml"))
    };
    let (_c1, mut own) = start(own);
    let (_c2, mut named) = start(named);
    for events in [&mut own, &mut named] {
        connected(events).await;
        assert_eq!(names(events).await, got("1", &["first"]));
    }
    publish("second", "2");
    for events in [&mut own, &mut named] {
        assert_eq!(names(events).await, got("2", &["second"]));
    }
}

#[tokio::test]
async fn a_directory_may_come_late_and_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let (_client, mut events) = start(FileOptions::new(CDS, config.join("cds.yaml")));
    assert!(complaint(&mut events).await.starts_with("watching "));
    fs::create_dir(&config).unwrap();
    fs::write(config.join("cds.yaml"), yaml("1", &["a"])).unwrap();
    loop {
        match soon("the file", events.next()).await {
            Some(Event::Disconnected { .. }) => {}
            Some(Event::Connected) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(names(&mut events).await, got("1", &["a"]));
    let next = dir.path().join("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("cds.yaml"), yaml("2", &["b"])).unwrap();
    fs::rename(&config, dir.path().join("old")).unwrap();
    fs::rename(&next, &config).unwrap();
    loop {
        match soon("the new directory", events.next()).await {
            Some(Event::Response(r)) if r.version == "2" => break,
            Some(_) => {}
            None => panic!("the client is there"),
        }
    }
}

#[tokio::test]
async fn a_file_is_handed_over_when_and_as_often_as_more_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.yaml");
    fs::write(&path, yaml("1", &["a", "b"])).unwrap();
    let (client, mut events) = Client::watch_file(FileOptions::new(CDS, &path));
    assert!(tokio::time::timeout(Duration::from_millis(50), events.next()).await.is_err(), "nobody asked");
    client.subscribe(&TypeUrl::LISTENER, Subscription::Wildcard);
    client.subscribe(&CDS, Subscription::names(["a"]));
    connected(&mut events).await;
    assert_eq!(names(&mut events).await, got("1", &["a", "b"]));
    client.subscribe(&CDS, Subscription::names(["a"]));
    client.subscribe(&CDS, Subscription::names(["b"]));
    assert_eq!(names(&mut events).await, got("1", &["a", "b"]));
    drop(client);
    assert!(soon("the end", events.next()).await.is_none());
}

#[tokio::test]
async fn a_type_held_back_is_read_when_it_may_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.yaml");
    fs::write(&path, yaml("1", &["a"])).unwrap();
    let (client, mut events) = Client::watch_file(FileOptions::new(CDS, &path));
    let held_back = client.pause(&CDS);
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), events.next()).await.is_err(), "it is held back");
    drop(held_back);
    assert_eq!(names(&mut events).await, got("1", &["a"]));
}

#[tokio::test]
async fn a_pipe_is_refused_rather_than_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.yaml");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let (_client, mut events) = start(FileOptions::new(CDS, &path));
    assert!(complaint(&mut events).await.ends_with("is a device, pipe or socket, expected a regular file"));
}

#[tokio::test]
async fn a_directory_that_is_missing_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_client, mut events) = start(FileOptions::new(CDS, dir.path().join("config").join("cds.yaml")));
    assert!(complaint(&mut events).await.starts_with("watching "));
    assert!(tokio::time::timeout(Duration::from_millis(1500), events.next()).await.is_err());
}
