//! A client on real sockets against a control plane played by hand: what is said in which order, and what happens when
//! the stream is cut, the server is away, or what comes makes no sense.

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tonic::Code;
use tonic::Status;
use xds_client::pb::envoy::config::core::v3::{ControlPlane, Node};
use xds_client::{
    Backoff, BoxFuture, BoxIo, Client, Connect, Event, Handshake, Kind, Method, Mode, Options, RateLimit, Subscription,
    TargetConnector, TcpConnector, TypeUrl, UnixConnector,
};

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;
const SDS: TypeUrl = TypeUrl::SECRET;

fn options(mode: Mode) -> Options {
    Options {
        mode,
        // Quick, as some tests come back several times.
        backoff: Backoff { base: Duration::from_millis(20), max: Duration::from_millis(100) },
        ..Options::new(Node { id: "n1".into(), ..Default::default() })
    }
}

fn tcp(address: &str) -> Arc<dyn Connect> {
    Arc::new(TcpConnector::new(address))
}

#[tokio::test]
async fn delta_ads_over_tcp_speaks_as_envoy_does() {
    let (mut server, address) = Server::tcp().await;
    let (client, mut events) = Client::start(options(Mode::Delta), tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    assert_eq!(stream.method, "DeltaAggregatedResources");
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={} nonce='' node=n1");

    let mut message = delta_response(&CDS, "1", "n1", &["c1", "c2"], &[]);
    message.control_plane = Some(ControlPlane { identifier: "cp".into() });
    let size = prost::Message::encoded_len(&message);
    stream.send(message).await;
    let cds = response(&mut events).await;
    assert_eq!((cds.type_url.clone(), cds.version.as_str(), cds.kind), (CDS, "1", Kind::Delta));
    assert_eq!((cds.bytes, cds.control_plane.as_str(), cds.nonce.as_str()), (size, "cp", "n1"));
    let names: Vec<_> = cds.resources.iter().map(|r| (r.name.as_str(), r.version.as_str())).collect();
    assert_eq!(names, [("c1", "1"), ("c2", "1")]);
    assert_eq!(cds.resources[0].body, Some(body(&CDS, "c1")));

    // The consumer subscribes before it acknowledges, and takes its time: the subscription does not wait for that.
    client.subscribe(&EDS, Subscription::names(["c1"]));
    client.subscribe(&EDS, Subscription::names(["c2"]));
    let eds = "ClusterLoadAssignment sub=[c1,c2] unsub=[] init={} nonce=''";
    assert_eq!(delta(&stream.request().await), eds);
    cds.ack();
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={} nonce='n1'");

    stream.send(delta_response(&CDS, "2", "n2", &["c3", "c4"], &["c2"])).await;
    let cds = response(&mut events).await;
    assert_eq!(cds.removed, ["c2"]);
    client.unsubscribe(&EDS, &["c2"]);
    cds.nack("c4 is bad", &["c4".to_string()]);
    let unsubscribed = "ClusterLoadAssignment sub=[] unsub=[c2] init={} nonce=''";
    assert_eq!(delta(&stream.request().await), unsubscribed);
    let refused = "Cluster sub=[] unsub=[] init={} nonce='n2' ERR='c4 is bad'";
    assert_eq!(delta(&stream.request().await), refused);

    // A response that is dropped is answered too.
    stream.send(delta_response(&EDS, "1", "n3", &["c1"], &[])).await;
    drop(response(&mut events).await);
    assert_eq!(
        delta(&stream.request().await),
        "ClusterLoadAssignment sub=[] unsub=[] init={} nonce='n3' \
         ERR='the client dropped this response without applying it'"
    );

    drop(client);
    assert!(soon("the end", events.next()).await.is_none());
    stream.gone().await;
}

#[tokio::test]
async fn delta_ads_resumes_with_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xds.sock");
    let mut server = Server::unix(&path);
    let (client, mut events) = Client::start(options(Mode::Delta), Arc::new(UnixConnector::new(&path)));
    client.subscribe(&CDS, Subscription::Wildcard);
    client.subscribe(&EDS, Subscription::names(["a", "b"]));
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    stream.request().await;
    stream.send(delta_response(&CDS, "1", "n1", &["a", "b"], &[])).await;
    response(&mut events).await.ack();
    stream.send(delta_response(&CDS, "2", "n2", &["b"], &["a"])).await;
    response(&mut events).await.nack("no b", &["b".to_string()]);
    stream.send(delta_response(&EDS, "1", "n3", &["a"], &[])).await;
    let late = response(&mut events).await;
    stream.end(Status::unavailable("restarting")).await;
    let (error, code) = disconnected(&mut events).await;
    assert_eq!((error.as_str(), code), ("the stream ended with Unavailable: restarting", Some(Code::Unavailable)));

    connected(&mut events).await;
    let mut stream = server.delta().await;
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={b:1} nonce='' node=n1");
    // What is held of endpoints is known when the last response of the old stream has been applied.
    late.ack();
    assert_eq!(delta(&stream.request().await), "ClusterLoadAssignment sub=[a,b] unsub=[] init={a:1} nonce=''");

    // Then the whole server goes, and comes back later.
    drop(stream);
    drop(server);
    let (_, code) = disconnected(&mut events).await;
    assert!(code.is_some(), "there was a stream");
    let (error, code) = disconnected(&mut events).await;
    assert_eq!(code, None, "{error}");
    assert!(error.contains("connecting to") && error.contains("xds.sock"), "{error}");
    let mut server = Server::unix(&path);
    loop {
        match soon("a connection", events.next()).await {
            Some(Event::Connected) => break,
            Some(Event::Disconnected { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let mut stream = server.delta().await;
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={b:1} nonce='' node=n1");
}

#[tokio::test]
async fn sotw_ads_over_tcp_speaks_as_envoy_does() {
    let (mut server, address) = Server::tcp().await;
    let (client, mut events) = Client::start(options(Mode::Sotw), tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.sotw().await;
    assert_eq!(stream.method, "StreamAggregatedResources");
    assert_eq!(sotw(&stream.request().await), "Cluster v='' names=[] nonce='' node=n1");
    stream.send(sotw_response(&CDS, "1", "n1", &["c1", "c2"])).await;
    let cds = response(&mut events).await;
    assert_eq!(cds.kind, Kind::Full);
    assert_eq!(cds.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["c1", "c2"]);
    client.subscribe(&EDS, Subscription::names(["c1", "c2"]));
    cds.ack();
    assert_eq!(sotw(&stream.request().await), "ClusterLoadAssignment v='' names=[c1,c2] nonce=''");
    assert_eq!(sotw(&stream.request().await), "Cluster v='1' names=[] nonce='n1'");
    stream.send(sotw_response(&EDS, "1", "n2", &["c1", "c2"])).await;
    response(&mut events).await.ack();
    assert_eq!(sotw(&stream.request().await), "ClusterLoadAssignment v='1' names=[c1,c2] nonce='n2'");
    stream.send(sotw_response(&CDS, "2", "n3", &["c1", "bad"])).await;
    response(&mut events).await.nack("no", &[]);
    assert_eq!(sotw(&stream.request().await), "Cluster v='1' names=[] nonce='n3' ERR='no'");

    stream.end(Status::ok("")).await;
    let (error, code) = disconnected(&mut events).await;
    assert_eq!((error.as_str(), code), ("the server ended the stream", Some(Code::Ok)));
    connected(&mut events).await;
    let mut stream = server.sotw().await;
    assert_eq!(sotw(&stream.request().await), "Cluster v='1' names=[] nonce='' node=n1");
    assert_eq!(sotw(&stream.request().await), "ClusterLoadAssignment v='1' names=[c1,c2] nonce=''");
}

#[tokio::test]
async fn sotw_sds_over_a_unix_socket_rotates_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sds.sock");
    let mut server = Server::unix(&path);
    let options = Options { method: Method::Type(SDS), ..options(Mode::Sotw) };
    let (client, mut events) = Client::start(options, Arc::new(UnixConnector::new(&path)));
    client.subscribe(&CDS, Subscription::Wildcard);
    client.subscribe(&SDS, Subscription::names(["default", "ROOTCA"]));
    connected(&mut events).await;
    let mut stream = server.sotw().await;
    assert_eq!(stream.method, "StreamSecrets");
    // Nothing of clusters: this stream does not carry them.
    assert_eq!(sotw(&stream.request().await), "Secret v='' names=[ROOTCA,default] nonce='' node=n1");
    for version in ["1", "2"] {
        stream.send(sotw_response(&SDS, version, version, &["default"])).await;
        let secret = response(&mut events).await;
        assert_eq!(secret.resources[0].name, "default");
        secret.ack();
        let ack = format!("Secret v='{version}' names=[ROOTCA,default] nonce='{version}'");
        assert_eq!(sotw(&stream.request().await), ack);
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_passed_over_or_refused_and_the_stream_lives() {
    let (mut server, address) = Server::tcp().await;
    let (client, mut events) = Client::start(options(Mode::Delta), tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    stream.send(delta_response(&TypeUrl::from("gar\u{0}bage"), "1", "n1", &["x"], &[])).await;
    // Nothing is said of a type that was never asked for: that would be to ask for it.
    // A resource that is not what it should be is for the consumer to refuse; it arrives as it was sent.
    let mut message = delta_response(&CDS, "1", "n2", &["x"], &[]);
    message.resources[0].name.clear();
    message.resources[0].resource.as_mut().unwrap().value = vec![0xff; 7];
    stream.send(message).await;
    let odd = response(&mut events).await;
    assert_eq!(
        (odd.resources[0].name.as_str(), &odd.resources[0].body.as_ref().unwrap().value[..]),
        ("", &[0xff; 7][..])
    );
    odd.nack("undecodable", &[]);
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={} nonce='n2' ERR='undecodable'");
}

#[tokio::test]
async fn a_message_above_the_limit_ends_the_stream_and_says_why() {
    let (mut server, address) = Server::tcp().await;
    let options = Options { max_message_bytes: 1000, ..options(Mode::Delta) };
    let (client, mut events) = Client::start(options, tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    stream.send(delta_response(&CDS, "1", "n1", &["x".repeat(2000).as_str()], &[])).await;
    let (error, code) = disconnected(&mut events).await;
    assert_eq!(code, Some(Code::OutOfRange), "{error}");
    connected(&mut events).await;
}

#[tokio::test]
async fn a_message_of_too_many_resources_ends_the_stream_and_says_why() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let (mut server, address) = Server::tcp().await;
        let (client, mut events) = Client::start(Options { max_resources: 100, ..options(mode) }, tcp(&address));
        client.subscribe(&CDS, Subscription::Wildcard);
        connected(&mut events).await;
        match mode {
            Mode::Delta => {
                let mut stream = server.delta().await;
                stream.request().await;
                stream.send(delta_response(&CDS, "1", "n1", &["x"; 90], &[])).await;
                response(&mut events).await.ack();
                stream.send(delta_response(&CDS, "1", "n1", &["x"; 90], &["y"; 20])).await;
            }
            Mode::Sotw => {
                let mut stream = server.sotw().await;
                stream.request().await;
                stream.send(sotw_response(&CDS, "1", "n1", &["x"; 101])).await;
            }
        }
        let (error, code) = disconnected(&mut events).await;
        assert_eq!(code, Some(Code::OutOfRange), "{error}");
        assert!(error.contains("more than the limit of 100"), "{error}");
    }
}

#[tokio::test]
async fn a_large_push_arrives_whole() {
    let (mut server, address) = Server::tcp().await;
    let (client, mut events) = Client::start(options(Mode::Sotw), tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.sotw().await;
    stream.request().await;
    let names: Vec<String> = (0..40).map(|n| format!("{n}-{}", "x".repeat(1 << 20))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    stream.send(sotw_response(&CDS, "1", "n1", &names)).await;
    let push = response(&mut events).await;
    assert!(push.bytes > 40 << 20);
    assert!(push.resources.iter().zip(names).all(|(r, name)| r.name == name));
    push.ack();
    assert_eq!(sotw(&stream.request().await), "Cluster v='1' names=[] nonce='n1'");
}

#[tokio::test]
async fn a_slow_consumer_slows_the_server_and_loses_nothing() {
    let (mut server, address) = Server::tcp().await;
    let options = Options {
        event_queue: 1,
        stream_window_bytes: 64 << 10,
        connection_window_bytes: 64 << 10,
        ..options(Mode::Delta)
    };
    let (client, mut events) = Client::start(options, tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    let name = "x".repeat(40 << 10);
    let mut sent = 0;
    let mut idle = 0;
    // Until the server can send no more.
    while idle < 50 {
        assert!(sent < 500, "nothing holds the server back");
        if stream.try_send(delta_response(&CDS, "1", &sent.to_string(), &[&name], &[])) {
            sent += 1;
            idle = 0;
        } else {
            idle += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for n in 0..sent {
        let push = response(&mut events).await;
        assert_eq!(push.nonce, n.to_string());
        push.ack();
    }
    for n in 0..sent {
        assert_eq!(stream.request().await.response_nonce, n.to_string());
    }
}

/// Answers wait for the rate limit; when so many of them wait that the stream is not read on, its end must still be seen.
#[tokio::test]
async fn a_cut_is_noticed_while_answers_pile_up_behind_the_rate_limit() {
    let (mut server, address) = Server::tcp().await;
    let rate_limit = Some(RateLimit { burst: 2, per_second: 0.001 });
    let (client, mut events) = Client::start(Options { rate_limit, ..options(Mode::Delta) }, tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    // One more answer passes the limit, and 1,024 may wait: of what is sent then, nothing is read.
    let pushes = async {
        for n in 0..1100 {
            if !stream.offer(delta_response(&CDS, "1", &n.to_string(), &["a"], &[])).await {
                break;
            }
        }
    };
    let answers = async {
        for _ in 0..1025 {
            response(&mut events).await.ack();
        }
    };
    tokio::join!(pushes, answers);
    // One may have been on its way to the consumer by then.
    let mut more = 0;
    while let Ok(Some(Event::Response(push))) = tokio::time::timeout(Duration::from_millis(50), events.next()).await {
        push.ack();
        more += 1;
    }
    assert!(more < 10, "the stream is read on: {more}");
    drop((stream, server));
    // Another may have been read when the stream died.
    let told = loop {
        match soon("the loss of the stream", events.next()).await {
            Some(Event::Response(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(told, Some(Event::Disconnected { .. })), "{told:?}");
}

#[tokio::test]
async fn what_is_secured_says_https_and_metadata_goes_with_each_stream() {
    struct Sure;
    impl Handshake for Sure {
        fn handshake(&self, io: BoxIo, _: &str) -> BoxFuture<'static, std::io::Result<BoxIo>> {
            Box::pin(async move { Ok(io) })
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("ipv4:{}", listener.local_addr().unwrap()).parse().unwrap();
    let mut options = options(Mode::Delta);
    options.metadata.insert("x-tenant", "blue".parse().unwrap());
    options.metadata.insert("te", "not of this crate".parse().unwrap());
    let connector = TargetConnector::new(target).with_handshake(Arc::new(Sure)).with_authority("xds.example.com");
    let (_client, _events) = Client::start(options, Arc::new(connector));
    for _ in 0..2 {
        let (io, _) = listener.accept().await.unwrap();
        let mut connection = soon("HTTP/2", h2::server::handshake(io)).await.unwrap();
        let (request, mut respond) = soon("a stream", connection.accept()).await.unwrap().unwrap();
        let uri = request.uri();
        assert_eq!((uri.scheme_str(), uri.authority().unwrap().as_str()), (Some("https"), "xds.example.com"));
        assert_eq!(
            (&request.headers()["x-tenant"], &request.headers()["te"]),
            (&"blue".parse().unwrap(), &"trailers".parse().unwrap())
        );
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        drop(connection);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_of_http2_is_left_after_the_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let options = Options { connect_timeout: Duration::from_millis(50), keepalive: None, ..options(Mode::Delta) };
    let (client, mut events) = Client::start(options, tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    let (_held, _) = listener.accept().await.unwrap();
    connected(&mut events).await;
    let (error, _) = disconnected(&mut events).await;
    assert!(error.contains("the server said nothing for 50ms"), "{error}");
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_of_a_message_comes_back() {
    // In front of the server stands a relay that passes on only so many bytes of its first connection.
    let (mut server, address) = Server::tcp().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut limit = 20_000;
        while let Ok((client, _)) = listener.accept().await {
            let upstream = tokio::net::TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (from_server, mut to_server) = upstream.into_split();
                let mut from_server = from_server.take(limit);
                tokio::select! {
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
            limit = u64::MAX;
        }
    });
    let (client, mut events) = Client::start(options(Mode::Delta), tcp(&front));
    client.subscribe(&CDS, Subscription::Wildcard);
    connected(&mut events).await;
    let mut stream = server.delta().await;
    stream.request().await;
    stream.send(delta_response(&CDS, "1", "n1", &["small"], &[])).await;
    response(&mut events).await.ack();
    stream.request().await;
    let large = "x".repeat(50_000);
    stream.send(delta_response(&CDS, "2", "n2", &["small", &large], &[])).await;
    let (_, code) = disconnected(&mut events).await;
    assert!(code.is_some());
    connected(&mut events).await;
    let mut stream = server.delta().await;
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={small:1} nonce='' node=n1");
    stream.send(delta_response(&CDS, "2", "m1", &["small", &large], &[])).await;
    let whole = response(&mut events).await;
    assert_eq!(whole.resources.len(), 2);
    whole.ack();
    assert_eq!(delta(&stream.request().await), "Cluster sub=[] unsub=[] init={} nonce='m1'");
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_left_after_the_connect_timeout() {
    struct Silent;
    impl Connect for Silent {
        fn connect(&self) -> BoxFuture<'static, std::io::Result<BoxIo>> {
            Box::pin(std::future::pending())
        }
        fn authority(&self) -> String {
            "silent".into()
        }
    }
    let options = Options { connect_timeout: Duration::from_millis(10), ..options(Mode::Delta) };
    let (_client, mut events) = Client::start(options, Arc::new(Silent));
    for _ in 0..3 {
        let (error, code) = disconnected(&mut events).await;
        assert_eq!((error.as_str(), code), ("connecting to silent: no connection after 10ms (connect timeout)", None));
    }
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_said_rather_than_tried() {
    let options = Options { method: Method::Type("type.googleapis.com/no.Such".into()), ..options(Mode::Delta) };
    let (_client, mut events) = Client::start(options, tcp("127.0.0.1:1"));
    let (error, code) = disconnected(&mut events).await;
    assert_eq!(code, Some(Code::Unimplemented));
    assert!(error.contains("no.Such"), "{error}");
}

#[tokio::test]
async fn a_consumer_that_leaves_closes_the_stream() {
    let (mut server, address) = Server::tcp().await;
    let (client, events) = Client::start(options(Mode::Delta), tcp(&address));
    client.subscribe(&CDS, Subscription::Wildcard);
    let stream = server.delta().await;
    drop(events);
    stream.gone().await;
    client.subscribe(&EDS, Subscription::names(["a"]));
}

#[test]
fn a_client_runs_on_a_local_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
    runtime.block_on(async {
        let (mut server, address) = Server::tcp().await;
        let (client, mut events) = Client::start(options(Mode::Delta), tcp(&address));
        client.subscribe(&CDS, Subscription::Wildcard);
        connected(&mut events).await;
        let mut stream = server.delta().await;
        stream.request().await;
        stream.send(delta_response(&CDS, "1", "n1", &["a"], &[])).await;
        response(&mut events).await.ack();
        assert_eq!(stream.request().await.response_nonce, "n1");
    });
}
