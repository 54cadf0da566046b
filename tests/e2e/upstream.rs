//! Clusters: who is picked, who is not, and what bounds hold.

use std::net::SocketAddr;

use http::Method;
use outrigger_tests::origin::{Behaviour, Origin, tls_server};

use super::support::*;

async fn bed(clusters: &str) -> Bed {
    Bed::start(Front { routes: &all_to("a"), ..Front::default() }, clusters).await
}

#[tokio::test]
async fn what_exceeds_the_circuit_breaker_is_503_at_once() {
    let origin = Origin::start("v1").unwrap();
    origin.set(Some(Behaviour::Never));
    let limits = "circuit_breakers: { thresholds: [{ max_connections: 1, max_pending_requests: 1 }] }";
    let bed = bed(&cluster("a", &[origin.address()], limits)).await;
    let mut waiting = Vec::new();
    for pending in [0, 1] {
        let mut client = bed.client(WAYS[0]).await;
        waiting.push(tokio::spawn(async move { client.try_send(ask(Method::GET, "a", "/", &[])).await }));
        bed.proxy.wait_stat("cluster.a.upstream_rq_pending_active", |v| v == pending).await.unwrap();
        at_least(&bed.proxy, "cluster.a.upstream_rq_active", 1).await;
    }
    for way in WAYS {
        let reply = bed.client(way).await.get("a", "/").await;
        assert_eq!((reply.status.as_u16(), reply.header("x-envoy-overloaded")), (503, "true"), "{way:?}");
        assert_eq!(reply.text(), "upstream connect error or disconnect/reset before headers. reset reason: overflow");
    }
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_rq_pending_overflow").await, 4);
    assert_eq!(stat(&bed.proxy, "cluster.a.circuit_breakers.default.rq_pending_open").await, 1);
    assert_eq!(stat(&bed.proxy, "cluster.a.circuit_breakers.default.cx_open").await, 1);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    bed.proxy.wait_stat("cluster.a.circuit_breakers.default.rq_pending_open", |v| v == 0).await.unwrap();
}

#[tokio::test]
async fn requests_over_http2_have_a_limit_of_their_own() {
    let origin = Origin::start("v1").unwrap();
    origin.set(Some(Behaviour::Never));
    let limits = format!("circuit_breakers: {{ thresholds: [{{ max_requests: 2 }}] }}\n{HTTP2}");
    let bed = bed(&cluster("a", &[origin.address()], &limits)).await;
    let mut waiting = Vec::new();
    for n in 1..=2 {
        let mut client = bed.client(WAYS[1]).await;
        waiting.push(tokio::spawn(async move { client.try_send(ask(Method::GET, "a", "/", &[])).await }));
        eventually("the request to arrive", || async { origin.requests() == n }).await;
    }
    let reply = bed.client(WAYS[1]).await.get("a", "/").await;
    assert_eq!((reply.status.as_u16(), reply.header("x-envoy-overloaded")), (503, "true"));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    bed.proxy.wait_stat("cluster.a.upstream_rq_active", |v| v == 0).await.unwrap();
    origin.set(None);
    assert_eq!(bed.client(WAYS[1]).await.get("a", "/").await.status, 200);
}

#[tokio::test]
async fn a_cluster_without_endpoints_is_503() {
    let bed = bed(&cluster("a", &[], "")).await;
    for way in WAYS {
        let reply = bed.client(way).await.get("a", "/").await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (503, "no healthy upstream"), "{way:?}");
    }
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_cx_none_healthy").await, 4);
}

#[tokio::test]
async fn a_connection_that_takes_too_long_is_given_up() {
    // A socket that accepts nobody: the kernel drops what comes once its queue is full.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fill = Vec::new();
    for _ in 0..4 {
        fill.push(tokio::spawn(tokio::net::TcpStream::connect(address)));
    }
    tokio::task::yield_now().await;
    let slow = cluster("a", &[address], "").replace("connect_timeout: 5s", "connect_timeout: 0.2s");
    let bed = bed(&slow).await;
    let reply = bed.client(WAYS[0]).await.get("a", "/").await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().ends_with("reset reason: connection timeout"), "{}", reply.text());
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_cx_connect_timeout").await, 1);
    fill.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn round_robin_shares_evenly_and_by_weight() {
    let origins: Vec<Origin> = (0..3).map(|_| Origin::start("v1").unwrap()).collect();
    let addresses: Vec<SocketAddr> = origins.iter().map(Origin::address).collect();
    let even = bed(&cluster("a", &addresses, "lb_policy: ROUND_ROBIN")).await;
    let mut client = even.client(WAYS[0]).await;
    for _ in 0..90 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    let shares: Vec<u64> = origins.iter().map(Origin::requests).collect();
    assert_eq!(shares, [30, 30, 30]);

    let weighted = cluster("a", &addresses, "").replacen("{ endpoint:", "{ load_balancing_weight: 4, endpoint:", 1);
    let weighted = bed(&weighted).await;
    let mut client = weighted.client(WAYS[0]).await;
    for _ in 0..90 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    let more: Vec<u64> = origins.iter().zip(shares).map(|(o, before)| o.requests() - before).collect();
    assert!(more[0].abs_diff(60) <= 2 && more[1].abs_diff(15) <= 2 && more[2].abs_diff(15) <= 2, "{more:?}");
}

#[tokio::test]
async fn least_request_avoids_the_busy() {
    let (slow, fast) = (Origin::start("slow").unwrap(), Origin::start("fast").unwrap());
    slow.set(Some(Behaviour::Never));
    let bed = bed(&cluster("a", &[slow.address(), fast.address()], "lb_policy: LEAST_REQUEST")).await;
    // Requests to the slow one never end; what is measured is how few more it gets.
    let mut calls = Vec::new();
    for n in 1..=60 {
        let mut client = bed.client(WAYS[0]).await;
        calls.push(tokio::spawn(async move { client.try_send(ask(Method::GET, "a", "/", &[])).await }));
        eventually("the request to arrive", || async { slow.requests() + fast.requests() == n }).await;
        let waiting = i64::try_from(slow.requests()).unwrap();
        bed.proxy.wait_stat("cluster.a.upstream_rq_active", |v| v == waiting).await.unwrap();
    }
    // Two choices of two both name the slow one with 1/4: 15 of 60, standard deviation 3.4; five of them above.
    assert!(slow.requests() <= 32, "slow {} fast {}", slow.requests(), fast.requests());
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_unhealthy_endpoint_gets_nothing() {
    let origins: Vec<Origin> = (0..3).map(|_| Origin::start("v1").unwrap()).collect();
    let addresses: Vec<SocketAddr> = origins.iter().map(Origin::address).collect();
    let yaml = cluster("a", &addresses, "").replacen("{ endpoint:", "{ health_status: UNHEALTHY, endpoint:", 1);
    let bed = bed(&yaml).await;
    let mut client = bed.client(WAYS[0]).await;
    for _ in 0..30 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    let shares: Vec<u64> = origins.iter().map(Origin::requests).collect();
    assert_eq!(shares, [0, 15, 15]);
    assert_eq!(stat(&bed.proxy, "cluster.a.membership_total").await, 3);
    assert_eq!(stat(&bed.proxy, "cluster.a.membership_healthy").await, 2);
}

#[tokio::test]
async fn names_are_resolved() {
    let origin = Origin::start("v1").unwrap();
    let dns = cluster("a", &[origin.address()], "type: STRICT_DNS\ndns_lookup_family: V4_ONLY");
    let bed = bed(&dns.replace("address: '127.0.0.1'", "address: localhost")).await;
    for way in PLAIN {
        assert_eq!(bed.client(way).await.get("a", "/").await.origin_version(), "v1");
    }
    at_least(&bed.proxy, "cluster.a.update_success", 1).await;
}

#[tokio::test]
async fn each_endpoint_gets_the_transport_of_its_metadata() {
    let keys = Keys::new();
    let secure =
        Origin::start_tls("secure", tls_server(&keys.server, Some(keys.authority.bundle_pem())).unwrap()).unwrap();
    let plain = Origin::start("plain").unwrap();
    let tls = keys.upstream(&format!(
        "match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: '{SERVER_ID}' }} }}]"
    ));
    let socket = tls.trim_start_matches("transport_socket: ").trim();
    let matches = format!(
        "transport_socket_matches:
- {{ name: tlsMode-istio, match: {{ tlsMode: istio }}, transport_socket: {socket} }}
- {{ name: tlsMode-disabled, match: {{}}, transport_socket: {{ name: envoy.transport_sockets.raw_buffer, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }} }} }}"
    );
    let metadata = "{ metadata: { filter_metadata: { envoy.transport_socket_match: { tlsMode: istio } } }, endpoint:";
    let yaml = cluster("a", &[secure.address(), plain.address()], &matches).replacen("{ endpoint:", metadata, 1);
    let bed = bed(&yaml).await;
    let mut client = bed.client(WAYS[0]).await;
    let mut versions: Vec<String> = Vec::new();
    for _ in 0..6 {
        let reply = client.get("a", "/").await;
        assert_eq!(reply.json()["tls"], reply.origin_version() == "secure");
        versions.push(reply.origin_version().to_owned());
    }
    assert_eq!(versions.iter().filter(|v| *v == "secure").count(), 3, "{versions:?}");
    at_least(&bed.proxy, "cluster.a.ssl.handshake", 1).await;
}

#[tokio::test]
async fn a_dead_endpoint_comes_back() {
    let address = dead_address_once();
    let bed = bed(&cluster("a", &[address], "")).await;
    let mut client = bed.client(WAYS[0]).await;
    assert_eq!(client.get("a", "/").await.status, 503);
    let origin = Origin::listen("back", address, None).unwrap();
    assert_eq!(client.get("a", "/").await.origin_version(), "back");
    drop(origin);
    assert_eq!(client.get("a", "/").await.status, 503);
}

/// As `dead_address`, but free to be bound later.
fn dead_address_once() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
