//! Polling of a REST service: what is asked, how the version follows what was applied, and what happens when the service
//! is slow, wrong or away.

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use xds_client::pb::envoy::config::core::v3::Node;
use xds_client::{Client, Event, Events, Kind, RestOptions, Subscription, TcpConnector, TypeUrl};

const EDS: TypeUrl = TypeUrl::ENDPOINT;

/// A poll that waits for its answer.
struct Poll {
    head: String,
    body: serde_json::Value,
    answer: oneshot::Sender<Response<Full<Bytes>>>,
}

impl Poll {
    fn names(&self) -> String {
        self.body["resource_names"].to_string()
    }

    fn version(&self) -> &str {
        self.body["version_info"].as_str().unwrap_or("")
    }

    fn give(self, status: StatusCode, text: impl Into<Bytes>) {
        let response = Response::builder().status(status).body(Full::new(text.into())).unwrap();
        _ = self.answer.send(response);
    }

    fn resources(self, version: &str, names: &[&str]) {
        let resources: Vec<_> =
            names.iter().map(|n| serde_json::json!({"@type": EDS.as_str(), "cluster_name": n})).collect();
        let body = serde_json::json!({"version_info": version, "type_url": EDS.as_str(), "resources": resources});
        self.give(StatusCode::OK, body.to_string());
    }
}

/// A service that shows each poll to the test; it speaks both versions of HTTP.
async fn service() -> (mpsc::UnboundedReceiver<Poll>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (to_test, polls) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let to_test = to_test.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let to_test = to_test.clone();
                async move {
                    let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap().to_string());
                    let host = request.uri().authority().map(|a| a.to_string()).or(header("host")).unwrap();
                    let head = format!(
                        "{} {} {:?} {} {}",
                        request.method(),
                        request.uri().path(),
                        request.version(),
                        host,
                        header("content-type").unwrap()
                    );
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let (answer, answered) = oneshot::channel();
                    let body = serde_json::from_slice(&body).unwrap();
                    _ = to_test.send(Poll { head, body, answer });
                    Ok::<_, Infallible>(answered.await.unwrap_or_default())
                }
            });
            tokio::spawn(async move {
                let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http1();
                _ = builder.serve_connection(TokioIo::new(io), service).await;
            });
        }
    });
    (polls, address)
}

fn options() -> RestOptions {
    let node = Node { id: "n1".into(), cluster: "c".into(), ..Default::default() };
    RestOptions {
        // Longer than anything here takes, unless the test is about it.
        request_timeout: Duration::from_secs(20),
        ..RestOptions::new(EDS, node, Duration::from_millis(20))
    }
}

fn start(options: RestOptions, address: &str) -> (Client, Events) {
    Client::poll(options, Arc::new(TcpConnector::new(address)))
}

async fn poll(polls: &mut mpsc::UnboundedReceiver<Poll>) -> Poll {
    soon("a poll", polls.recv()).await.unwrap()
}

#[tokio::test]
async fn polls_carry_what_is_wanted_and_the_version_that_runs() {
    let (mut polls, address) = service().await;
    let (client, mut events) = start(options(), &address);
    client.subscribe(&EDS, Subscription::names(["a", "b"]));
    let first = poll(&mut polls).await;
    assert_eq!(first.head, format!("POST /v3/discovery:endpoints HTTP/1.1 {address} application/json"));
    assert_eq!((first.names().as_str(), first.version()), (r#"["a","b"]"#, ""));
    assert_eq!(first.body["node"]["id"], "n1");
    assert_eq!(first.body["type_url"], EDS.as_str());
    first.resources("1", &["a", "b"]);
    connected(&mut events).await;
    let one = response(&mut events).await;
    assert_eq!((one.version.as_str(), one.kind), ("1", Kind::Full));
    assert_eq!(one.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    one.ack();

    let second = poll(&mut polls).await;
    assert_eq!(second.version(), "1");
    assert_eq!(second.body["node"]["id"], "n1", "each poll says who asks");
    second.resources("2", &["a"]);
    response(&mut events).await.nack("bad", &[]);
    let third = poll(&mut polls).await;
    assert_eq!(third.version(), "1", "what was refused does not run");
    client.unsubscribe(&EDS, &["b"]);
    client.subscribe(&EDS, Subscription::names(["c"]));
    third.give(StatusCode::NOT_MODIFIED, "");
    let fourth = poll(&mut polls).await;
    let asked = (fourth.names(), fourth.version().to_owned());
    assert_eq!(asked, (r#"["a","c"]"#.into(), String::new()), "version 1 says nothing of what is new");
    fourth.resources("3", &["c"]);
    assert_eq!(response(&mut events).await.version, "3", "the answer that nothing changed is no event");
}

#[tokio::test]
async fn more_that_is_wanted_is_asked_for_at_once() {
    let (mut polls, address) = service().await;
    let options = RestOptions { refresh_delay: Duration::from_secs(1000), ..options() };
    let (client, mut events) = start(options, &address);
    client.subscribe(&EDS, Subscription::names(["a"]));
    poll(&mut polls).await.resources("1", &["a"]);
    connected(&mut events).await;
    response(&mut events).await.ack();
    client.subscribe(&EDS, Subscription::names(["b"]));
    assert_eq!(poll(&mut polls).await.names(), r#"["a","b"]"#);
}

#[tokio::test]
async fn a_name_dropped_and_wanted_again_is_asked_for_without_a_version() {
    let (mut polls, address) = service().await;
    let (client, mut events) = start(options(), &address);
    client.subscribe(&EDS, Subscription::names(["a", "b"]));
    poll(&mut polls).await.resources("1", &["a", "b"]);
    connected(&mut events).await;
    response(&mut events).await.ack();
    let second = poll(&mut polls).await;
    assert_eq!(second.version(), "1");
    client.unsubscribe(&EDS, &["b"]);
    client.subscribe(&EDS, Subscription::names(["b"]));
    second.give(StatusCode::NOT_MODIFIED, "");
    let third = poll(&mut polls).await;
    assert_eq!((third.names().as_str(), third.version()), (r#"["a","b"]"#, ""));
}

#[tokio::test]
async fn a_type_held_back_is_polled_when_it_may_go_on() {
    let (mut polls, address) = service().await;
    let options = RestOptions { refresh_delay: Duration::from_secs(1000), ..options() };
    let (client, mut events) = start(options, &address);
    let held_back = client.pause(&EDS);
    client.subscribe(&EDS, Subscription::names(["a"]));
    assert!(tokio::time::timeout(Duration::from_millis(50), polls.recv()).await.is_err(), "it is held back");
    drop(held_back);
    poll(&mut polls).await.resources("1", &["a"]);
    connected(&mut events).await;
    response(&mut events).await.ack();
}

#[tokio::test]
async fn a_poll_that_fails_is_told_and_made_again() {
    let (mut polls, address) = service().await;
    let options = RestOptions { max_message_bytes: 1000, ..options() };
    let (client, mut events) = start(options, &address);
    client.subscribe(&EDS, Subscription::Wildcard);
    let expect = async |events: &mut Events, what: &str| match soon("a failure", events.next()).await {
        Some(Event::Disconnected { error, code: None, .. }) => {
            assert!(error.starts_with(&format!("polling {address}: ")) && error.contains(what), "{error}");
        }
        other => panic!("{other:?}"),
    };
    let first = poll(&mut polls).await;
    assert_eq!(first.names(), "null", "the wildcard needs no names");
    first.give(StatusCode::SERVICE_UNAVAILABLE, "");
    expect(&mut events, "503").await;
    poll(&mut polls).await.give(StatusCode::OK, "{\"resources\": 7}");
    expect(&mut events, "resources").await;
    poll(&mut polls).await.give(StatusCode::OK, "{}".to_string() + &" ".repeat(1000));
    expect(&mut events, "limit of 1000 bytes").await;
    poll(&mut polls).await.give(StatusCode::OK, format!("{{\"type_url\": \"{}\"}}", TypeUrl::CLUSTER));
    expect(&mut events, "v3.Cluster, expected").await;
    poll(&mut polls).await.resources("1", &["a"]);
    connected(&mut events).await;
    response(&mut events).await.ack();
    drop(polls);
}

#[tokio::test]
async fn a_silent_service_is_left_after_the_request_timeout() {
    let (mut polls, address) = service().await;
    let options = RestOptions { request_timeout: Duration::from_millis(50), ..options() };
    let (client, mut events) = start(options, &address);
    client.subscribe(&EDS, Subscription::names(["a"]));
    let silent = poll(&mut polls).await;
    let (error, _) = disconnected(&mut events).await;
    assert!(error.ends_with("no response after 50ms (request timeout)"), "{error}");
    drop(silent);
    // Nobody there at all.
    let (client, mut events) = start(self::options(), "127.0.0.1:1");
    client.subscribe(&EDS, Subscription::names(["a"]));
    let (error, _) = disconnected(&mut events).await;
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn http2_is_spoken_if_so_configured() {
    let (mut polls, address) = service().await;
    let (client, mut events) = start(RestOptions { http2: true, ..options() }, &address);
    client.subscribe(&EDS, Subscription::names(["a"]));
    let first = poll(&mut polls).await;
    assert_eq!(first.head, format!("POST /v3/discovery:endpoints HTTP/2.0 {address} application/json"));
    first.resources("1", &["a"]);
    connected(&mut events).await;
    response(&mut events).await.ack();
    assert_eq!(poll(&mut polls).await.version(), "1");
}

#[tokio::test]
async fn a_type_without_a_service_is_said() {
    let options = RestOptions { type_url: TypeUrl::VIRTUAL_HOST, ..options() };
    let (client, mut events) = start(options, "127.0.0.1:1");
    client.subscribe(&TypeUrl::VIRTUAL_HOST, Subscription::names(["a"]));
    let (error, _) = disconnected(&mut events).await;
    assert!(error.contains("no REST service for") && error.contains("VirtualHost"), "{error}");
}
