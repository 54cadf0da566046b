//! What else the protocol asks of a client, on real sockets: times to live, the rate limit, what is announced, what is
//! counted, and types held back.

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Status;
use xds_client::pb::envoy::config::core::v3::Node;
use xds_client::pb::google::protobuf::Duration as ProtoDuration;
use xds_client::{
    Backoff, Client, Event, Events, Keepalive, Kind, Mode, Options, RateLimit, Said, Stats, SubscribeError,
    Subscription, TcpConnector, TypeUrl, UnixConnector,
};

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;

fn options(mode: Mode) -> Options {
    Options {
        mode,
        backoff: Backoff { base: Duration::from_millis(20), max: Duration::from_millis(100) },
        ..Options::new(Node { id: "n1".into(), ..Default::default() })
    }
}

/// Counts everything.
#[derive(Debug, Default)]
struct Counts {
    connected: AtomicUsize,
    disconnected: AtomicUsize,
    subscriptions: AtomicUsize,
    acks: AtomicUsize,
    nacks: AtomicUsize,
    sent_bytes: AtomicUsize,
    responses: AtomicUsize,
    received_bytes: AtomicUsize,
    limited: AtomicUsize,
    pending: Mutex<Vec<usize>>,
    expired: AtomicUsize,
    unwanted: AtomicUsize,
}

impl Stats for Counts {
    fn connected(&self) {
        self.connected.fetch_add(1, Relaxed);
    }
    fn disconnected(&self) {
        self.disconnected.fetch_add(1, Relaxed);
    }
    fn request_sent(&self, _: &TypeUrl, said: Said, bytes: usize) {
        let count = match said {
            Said::Subscription => &self.subscriptions,
            Said::Ack => &self.acks,
            Said::Nack => &self.nacks,
        };
        count.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(bytes, Relaxed);
    }
    fn response_received(&self, _: &TypeUrl, bytes: usize) {
        self.responses.fetch_add(1, Relaxed);
        self.received_bytes.fetch_add(bytes, Relaxed);
    }
    fn response_unwanted(&self, _: &TypeUrl, bytes: usize) {
        assert!(bytes > 0);
        self.unwanted.fetch_add(1, Relaxed);
    }
    fn rate_limited(&self) {
        self.limited.fetch_add(1, Relaxed);
    }
    fn pending_requests(&self, waiting: usize) {
        self.pending.lock().unwrap().push(waiting);
    }
    fn expired(&self, _: &TypeUrl, resources: usize) {
        self.expired.fetch_add(resources, Relaxed);
    }
}

#[tokio::test]
async fn a_resource_that_is_not_renewed_is_told_as_removed() {
    let (mut server, address) = Server::tcp().await;
    let counts = Arc::new(Counts::default());
    let options = Options { announce_resource_ttl: true, stats: counts.clone(), ..options(Mode::Sotw) };
    let (client, mut events) = Client::start(options, Arc::new(TcpConnector::new(&address)));
    client.subscribe(&EDS, Subscription::names(["a", "b"]));
    connected(&mut events).await;
    let mut stream = server.sotw().await;
    let features = stream.request().await.node.unwrap().client_features;
    assert_eq!(features, ["xds.config.supports-resource-ttl", "xds.config.resource-in-sotw"]);

    let mut message = sotw_response(&EDS, "1", "n1", &["b"]);
    message.resources.push(wrapped(&EDS, "a", Some(Duration::from_millis(50))));
    stream.send(message).await;
    let first = response(&mut events).await;
    assert_eq!(first.resources.len(), 2);
    assert!(!first.expired);
    first.ack();
    assert_eq!(stream.request().await.response_nonce, "n1");

    let expired = response(&mut events).await;
    assert!(expired.expired && expired.resources.is_empty());
    assert_eq!((expired.type_url.clone(), expired.kind, expired.removed.clone()), (EDS, Kind::Delta, vec!["a".into()]));
    assert_eq!(expired.version, "1");
    expired.nack("nobody hears this", &[]);
    assert_eq!(counts.expired.load(Relaxed), 1);
    // Nothing is said of it: what comes next is the answer to what comes next.
    stream.send(sotw_response(&EDS, "2", "n2", &["a", "b"])).await;
    response(&mut events).await.ack();
    assert_eq!(sotw(&stream.request().await), "ClusterLoadAssignment v='2' names=[a,b] nonce='n2'");
}

#[tokio::test]
async fn what_expires_is_told_also_through_the_smallest_queue() {
    let (mut server, address) = Server::tcp().await;
    let options = Options { event_queue: 1, ..options(Mode::Sotw) };
    let (client, mut events) = Client::start(options, Arc::new(TcpConnector::new(&address)));
    client.subscribe(&EDS, Subscription::names(["a"]));
    connected(&mut events).await;
    let mut stream = server.sotw().await;
    stream.request().await;
    let mut message = sotw_response(&EDS, "1", "n1", &[]);
    message.resources.push(wrapped(&EDS, "a", Some(Duration::from_millis(20))));
    stream.send(message).await;
    response(&mut events).await.ack();
    let expired = response(&mut events).await;
    assert_eq!((expired.expired, expired.removed.clone()), (true, vec!["a".to_string()]));
}

#[tokio::test]
async fn heartbeats_keep_a_resource_alive_across_streams() {
    let (mut server, address) = Server::tcp().await;
    let (client, mut events) = Client::start(options(Mode::Delta), Arc::new(TcpConnector::new(&address)));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    assert!(stream.request().await.node.unwrap().client_features.is_empty(), "nothing is announced unasked");
    let ttl = Some(ProtoDuration { seconds: 600, nanos: 0 });
    let mut message = delta_response(&CDS, "1", "n1", &["a"], &[]);
    message.resources[0].ttl = ttl;
    stream.send(message).await;
    response(&mut events).await.ack();
    stream.request().await;
    let mut beat = delta_response(&CDS, "1", "n2", &["a"], &[]);
    beat.resources[0].resource = None;
    // Shorter: so it is seen that it counts.
    beat.resources[0].ttl = Some(ProtoDuration { seconds: 0, nanos: 80_000_000 });
    stream.send(beat).await;
    let beat = response(&mut events).await;
    assert!(beat.resources[0].heartbeat && beat.resources[0].body.is_none());
    beat.ack();
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={} nonce='n2'", "a heartbeat is answered");
    drop(stream);
    drop(server);
    loop {
        match soon("the expiry", events.next()).await {
            Some(Event::Response(r)) if r.expired => break,
            Some(Event::Response(r)) => panic!("{r:?}"),
            Some(_) => {}
            None => panic!("the client is there"),
        }
    }
}

#[tokio::test]
async fn requests_above_the_limit_wait_and_are_counted() {
    let (mut server, address) = Server::tcp().await;
    let counts = Arc::new(Counts::default());
    let limit = RateLimit { burst: 3, per_second: 10.0 };
    let options = Options { rate_limit: Some(limit), stats: counts.clone(), ..options(Mode::Delta) };
    let (client, mut events) = Client::start(options, Arc::new(TcpConnector::new(&address)));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    // All answers are there before the first that must wait may go.
    for n in 0..6 {
        stream.send(delta_response(&CDS, "1", &n.to_string(), &["a"], &[])).await;
        response(&mut events).await.ack();
    }
    for n in 0..6 {
        assert_eq!(stream.request().await.response_nonce, n.to_string());
    }
    assert!(counts.limited.load(Relaxed) > 0, "six answers at once are more than three");
    // Changes made while the bucket is empty go out together.
    for n in 0..20 {
        client.subscribe(&EDS, Subscription::names([format!("e{n:02}")]));
    }
    let mut asked = 0;
    let mut requests = 0;
    while asked < 20 {
        asked += stream.request().await.resource_names_subscribe.len();
        requests += 1;
    }
    assert!(requests < 20, "{requests} requests");
    // What waits when the stream ends waits no longer.
    stream.send(delta_response(&CDS, "1", "last", &["a"], &[])).await;
    response(&mut events).await.ack();
    drop((stream, server));
    disconnected(&mut events).await;
    assert_eq!(counts.pending.lock().unwrap().last(), Some(&0));
}

#[tokio::test]
async fn what_happens_is_counted() {
    let (mut server, address) = Server::tcp().await;
    let counts = Arc::new(Counts::default());
    let options = Options { stats: counts.clone(), ..options(Mode::Delta) };
    let (client, mut events) = Client::start(options, Arc::new(TcpConnector::new(&address)));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    let mut sent = prost::Message::encoded_len(&stream.request().await);
    let mut received = 0;
    for n in ["1", "2"] {
        let message = delta_response(&CDS, n, n, &["a"], &[]);
        received += prost::Message::encoded_len(&message);
        stream.send(message).await;
        match n {
            "1" => response(&mut events).await.ack(),
            _ => response(&mut events).await.nack("bad", &["a".into()]),
        }
        sent += prost::Message::encoded_len(&stream.request().await);
    }
    let foreign = delta_response(&EDS, "1", "3", &["a"], &[]);
    let unwanted = prost::Message::encoded_len(&foreign);
    stream.send(foreign).await;
    stream.end(Status::unavailable("away")).await;
    disconnected(&mut events).await;
    assert_eq!(counts.unwanted.load(Relaxed), 1);
    let of = |count: &AtomicUsize| count.load(Relaxed);
    assert_eq!((of(&counts.connected), of(&counts.disconnected)), (1, 1));
    assert_eq!((of(&counts.subscriptions), of(&counts.acks), of(&counts.nacks)), (1, 1, 1));
    assert_eq!(
        (of(&counts.sent_bytes), of(&counts.received_bytes), of(&counts.responses)),
        (sent, received + unwanted, 3)
    );
    assert_eq!((of(&counts.limited), counts.pending.lock().unwrap().len()), (0, 0));
}

#[tokio::test]
async fn a_type_held_back_waits_while_others_speak() {
    let (mut server, address) = Server::tcp().await;
    let (client, mut events) = Client::start(options(Mode::Sotw), Arc::new(TcpConnector::new(&address)));
    let held_back = client.pause(&EDS);
    client.subscribe(&EDS, Subscription::names(["a"]));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.sotw().await;
    assert_eq!(sotw(&stream.request().await), "Cluster v='' names=[] nonce='' node=n1");
    client.subscribe(&EDS, Subscription::names(["b"]));
    drop(held_back);
    assert_eq!(sotw(&stream.request().await), "ClusterLoadAssignment v='' names=[a,b] nonce=''");
}

#[tokio::test]
async fn what_cannot_be_subscribed_is_said() {
    let (client, _events) = Client::start(options(Mode::Delta), Arc::new(TcpConnector::new("127.0.0.1:1")));
    let name = "xdstp://a/envoy.config.cluster.v3.Cluster/x".to_string();
    let refused = client.try_subscribe(&CDS, Subscription::Names(vec![name.clone()]));
    assert_eq!(refused, Err(SubscribeError::Xdstp { name }));
}

#[tokio::test]
async fn waits_between_attempts_grow_and_begin_anew_after_a_response() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xds.sock");
    let backoff = Backoff { base: Duration::from_millis(8), max: Duration::from_millis(64) };
    let options = Options { backoff, ..options(Mode::Sotw) };
    let (client, mut events) = Client::start(options, Arc::new(UnixConnector::new(&path)));
    client.subscribe(&CDS, Subscription::Wildcard);
    let wait = async |events: &mut Events| match soon("the loss of the stream", events.next()).await {
        Some(Event::Disconnected { retry_in, .. }) => retry_in,
        other => panic!("{other:?}"),
    };
    for attempt in 0..6 {
        assert!(wait(&mut events).await <= backoff.bound(attempt), "attempt {attempt}");
    }
    let mut server = Server::unix(&path);
    loop {
        match soon("a connection", events.next()).await {
            Some(Event::Connected) => break,
            Some(Event::Disconnected { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    for _ in 0..5 {
        let mut stream = server.sotw().await;
        stream.request().await;
        stream.send(sotw_response(&CDS, "1", "n1", &["a"])).await;
        response(&mut events).await.ack();
        drop(stream);
        assert!(wait(&mut events).await <= backoff.base, "the server was well");
        connected(&mut events).await;
    }
    // A server that accepts streams and ends them without a word is not well: waits grow from that of the last loss on.
    let mut longest = Duration::ZERO;
    for attempt in 1..20 {
        server.sotw().await.end(Status::unavailable("not yet")).await;
        let waited = wait(&mut events).await;
        assert!(waited <= backoff.bound(attempt), "attempt {attempt}: {waited:?}");
        longest = longest.max(waited);
        connected(&mut events).await;
    }
    assert!(longest > backoff.base, "waits are drawn from an interval that grows, of 19 the longest is {longest:?}");
}

#[tokio::test]
async fn a_server_that_vanished_is_found_out_by_pings() {
    // A relay that falls silent in both directions, and keeps its connections open.
    let (mut server, address) = Server::tcp().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = listener.local_addr().unwrap().to_string();
    let (silence, silent) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut upstream = TcpStream::connect(&address).await.unwrap();
            let mut silent = silent.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut upstream) => {}
                    () = async { drop(silent.wait_for(|silent| *silent).await) } => std::future::pending().await,
                }
            });
        }
    });
    // Pings run before the silence too, and must then be answered by a machine that has other things to do.
    let keepalive = Keepalive { interval: Duration::from_millis(50), timeout: Duration::from_secs(3) };
    let options = Options { keepalive: Some(keepalive), ..options(Mode::Delta) };
    let (client, mut events) = Client::start(options, Arc::new(TcpConnector::new(&front)));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    stream.send(delta_response(&CDS, "1", "n1", &["a"], &[])).await;
    response(&mut events).await.ack();
    stream.request().await;
    silence.send_replace(true);
    let (error, code) = disconnected(&mut events).await;
    assert!(code.is_some(), "{error}");
}
