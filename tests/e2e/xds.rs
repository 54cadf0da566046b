//! The proxy under a control plane, well-behaved and not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::{CDS, ControlPlane, EDS, LDS, RDS};
use outrigger_tests::load::Load;
use outrigger_tests::origin::{Origin, TcpBehaviour, TcpOrigin};
use outrigger_tests::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xds_protos::pb::envoy::config::core::v3::address::Address;
use xds_protos::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use xds_protos::pb::envoy::config::route::v3::RouteConfiguration;
use xds_protos::pb::google::protobuf::Any;

use super::support::*;

pub const TYPES: [&str; 4] = [CDS, EDS, LDS, RDS];

/// A listener `front` by LDS, routes by RDS, clusters `v1` and `v2` by CDS and EDS.
pub struct Mesh {
    pub control_plane: ControlPlane,
    pub proxy: Proxy,
    pub front: SocketAddr,
    pub v1: Origin,
    pub v2: Origin,
}

pub fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn weights(v1: u32, v2: u32) -> RouteConfiguration {
    config::route_config("routes", vec![config::weighted_route("/", &[("v1", v1), ("v2", v2)])])
}

pub fn bootstrap(control_plane: &ControlPlane, sotw: bool) -> String {
    Bootstrap { node_id: "n1", ads: Some(control_plane.address()), sotw, ..Bootstrap::default() }.yaml()
}

impl Mesh {
    pub async fn start(sotw: bool) -> Self {
        let (v1, v2) = (Origin::start("v1").unwrap(), Origin::start("v2").unwrap());
        let control_plane = ControlPlane::tcp().unwrap();
        control_plane.batch(|batch| {
            for (name, origin) in [("v1", &v1), ("v2", &v2)] {
                batch.set(name, &config::eds_cluster(name));
                batch.set(name, &config::endpoints(name, &[origin.address()]));
            }
            batch.set("routes", &weights(90, 10));
            batch.set("front", &config::http_listener("front", any_port(), &config::hcm_rds("front", "routes")));
        });
        let proxy = start_yaml(&bootstrap(&control_plane, sotw)).await;
        let front = address(&proxy, "front").await;
        Self { control_plane, proxy, front, v1, v2 }
    }

    pub async fn settled(&self) {
        for type_url in TYPES {
            self.control_plane.wait_settled(type_url).await.unwrap();
        }
    }

    pub async fn client(&self) -> Client {
        Client::plain(self.front, false).await
    }

    /// A NACK of this type whose text has these words.
    async fn refused(&self, type_url: &str, words: &[&str]) {
        let fits = |text: &str| words.iter().all(|word| text.contains(word));
        let found = self.control_plane.wait_for("a NACK", |seen| {
            seen.request.type_url() == type_url && seen.request.error().is_some_and(|error| fits(&error.message))
        });
        if let Err(e) = found.await {
            panic!("no NACK with {words:?}: {:?}\n{e}", self.control_plane.nacks());
        }
    }
}

async fn weights_shift(sotw: bool) {
    let mesh = Mesh::start(sotw).await;
    let load = Load::new(mesh.front, 200.0, 4).start();
    eventually("both versions", || async {
        load.so_far().answered_by("v1") > 50 && load.so_far().answered_by("v2") > 0
    })
    .await;
    let mut before = Instant::now();
    for (a, b) in [(50, 50), (0, 100)] {
        before = Instant::now();
        mesh.control_plane.set("routes", &weights(a, b));
        mesh.settled().await;
    }
    eventually("only the new version", || async {
        let last = load.so_far().since(before);
        let tail: Vec<_> = last.samples.iter().rev().take(30).collect();
        tail.len() == 30 && tail.iter().all(|s| format!("{:?}", s.outcome).contains("v2"))
    })
    .await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
    assert_eq!((mesh.control_plane.nacks(), mesh.control_plane.violations()), (vec![], vec![]));
}

#[tokio::test]
async fn weights_shift_and_no_request_is_lost_delta() {
    weights_shift(false).await;
}

#[tokio::test]
async fn weights_shift_and_no_request_is_lost_sotw() {
    weights_shift(true).await;
}

async fn endpoints_come_and_go(sotw: bool) {
    let mesh = Mesh::start(sotw).await;
    mesh.control_plane.set("routes", &weights(100, 0));
    let more = Origin::start("more").unwrap();
    let load = Load::new(mesh.front, 200.0, 2).start();
    mesh.control_plane.set("v1", &config::endpoints("v1", &[mesh.v1.address(), more.address()]));
    eventually("the new endpoint to be used", || async { more.requests() > 5 }).await;
    mesh.control_plane.set("v1", &config::endpoints("v1", &[more.address()]));
    eventually("connections to the old one to close", || async { mesh.v1.open_connections() == 0 }).await;
    let (old, new) = (mesh.v1.requests(), more.requests());
    eventually("more requests", || async { more.requests() > new + 20 }).await;
    assert_eq!(mesh.v1.requests(), old);
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.outcomes());

    mesh.control_plane.set("v1", &config::endpoints("v1", &[]));
    eventually("no endpoint", || async { mesh.client().await.get("a", "/").await.text() == "no healthy upstream" })
        .await;
    assert_eq!(stat(&mesh.proxy, "cluster.v1.membership_total").await, 0);
}

#[tokio::test]
async fn endpoints_come_and_go_delta() {
    endpoints_come_and_go(false).await;
}

#[tokio::test]
async fn endpoints_come_and_go_sotw() {
    endpoints_come_and_go(true).await;
}

fn answering(name: &str, text: &str) -> xds_protos::pb::envoy::config::listener::v3::Listener {
    let routes = config::route_config(name, vec![config::direct_response("/", 200, text)]);
    config::http_listener(name, any_port(), &config::hcm_inline(name, routes))
}

async fn listeners_come_change_and_go(sotw: bool) {
    let mesh = Mesh::start(sotw).await;
    mesh.control_plane.set("second", &answering("second", "one"));
    mesh.settled().await;
    mesh.proxy.wait_stat("listener_manager.total_listeners_active", |v| v == 2).await.unwrap();
    let second = address(&mesh.proxy, "second").await;
    let mut old = Client::plain(second, false).await;
    assert_eq!(old.get("a", "/").await.text(), "one");

    mesh.control_plane.set("second", &answering("second", "two"));
    eventually("the change", || async { Client::plain(second, false).await.get("a", "/").await.text() == "two" }).await;
    // Connections of the old chain end when the drain time is over.
    old.wait_closed().await;
    assert_eq!(address(&mesh.proxy, "second").await, second);

    let mut open = Client::plain(second, false).await;
    assert_eq!(open.get("a", "/").await.text(), "two");
    mesh.control_plane.remove(LDS, "second");
    eventually("the port to close", || async { TcpStream::connect(second).await.is_err() }).await;
    open.wait_closed().await;
    assert_eq!(mesh.client().await.get("a", "/").await.status, 200, "the other listener is not touched");
    assert!(mesh.proxy.listener_address("second").await.is_err());
    assert_eq!(mesh.control_plane.nacks(), vec![]);
}

#[tokio::test]
async fn listeners_come_change_and_go_delta() {
    listeners_come_change_and_go(false).await;
}

#[tokio::test]
async fn listeners_come_change_and_go_sotw() {
    listeners_come_change_and_go(true).await;
}

async fn a_bad_resource_holds_back_no_good_one(sotw: bool) {
    let mesh = Mesh::start(sotw).await;
    mesh.control_plane.set("routes", &weights(100, 0));
    mesh.settled().await;
    let good = Origin::start("good").unwrap();
    // A name where only an address can stand.
    let mut bad = config::static_cluster("bad-cluster", &[good.address()]);
    for endpoint in bad.load_assignment.iter_mut().flat_map(|a| &mut a.endpoints).flat_map(|l| &mut l.lb_endpoints) {
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier
            && let Some(Address::SocketAddress(at)) = endpoint.address.as_mut().and_then(|a| a.address.as_mut())
        {
            at.address = "no-address.test".to_owned();
        }
    }
    mesh.control_plane.batch(|batch| {
        batch.set("bad-cluster", &bad);
        batch.set("good-cluster", &config::static_cluster("good-cluster", &[good.address()]));
    });
    mesh.refused(CDS, &["bad-cluster"]).await;
    at_least(&mesh.proxy, "cluster_manager.cds.update_rejected", 1).await;
    let routes = vec![
        config::route_to("/good", "good-cluster"),
        config::route_to("/bad", "bad-cluster"),
        config::route_to("/", "v1"),
    ];
    mesh.control_plane.set("routes", &config::route_config("routes", routes));
    eventually("the new route", || async { mesh.client().await.get("a", "/good").await.origin_version() == "good" })
        .await;
    assert_eq!(mesh.client().await.get("a", "/").await.origin_version(), "v1");
    assert_eq!(mesh.client().await.get("a", "/bad").await.status, 503);

    // A listener whose filter nobody knows: the last good one serves on, and a good one beside it comes up.
    let unknown = Any { type_url: "type.googleapis.com/no.such.Filter".to_owned(), value: Vec::new() };
    let mut front = config::http_listener("front", any_port(), &config::hcm_rds("front", "routes"));
    if let Some(filter) = front.filter_chains.first_mut().and_then(|chain| chain.filters.first_mut()) {
        use xds_protos::pb::envoy::config::listener::v3::filter::ConfigType;
        filter.config_type = Some(ConfigType::TypedConfig(unknown));
    }
    mesh.control_plane.batch(|batch| {
        batch.set("front", &front).set("beside", &answering("beside", "hello"));
    });
    mesh.refused(LDS, &["front", "no.such.Filter"]).await;
    assert_eq!(mesh.client().await.get("a", "/").await.origin_version(), "v1");
    mesh.proxy.wait_stat("listener_manager.total_listeners_active", |v| v == 2).await.unwrap();
    let beside = address(&mesh.proxy, "beside").await;
    assert_eq!(Client::plain(beside, false).await.get("a", "/").await.text(), "hello");
    at_least(&mesh.proxy, "listener_manager.lds.update_rejected", 1).await;

    // Healed, all is taken.
    mesh.control_plane.set("front", &config::http_listener("front", any_port(), &config::hcm_rds("front", "routes")));
    mesh.settled().await;
    assert_eq!(mesh.client().await.get("a", "/").await.origin_version(), "v1");
}

#[tokio::test]
async fn a_bad_resource_holds_back_no_good_one_delta() {
    a_bad_resource_holds_back_no_good_one(false).await;
}

#[tokio::test]
async fn a_bad_resource_holds_back_no_good_one_sotw() {
    a_bad_resource_holds_back_no_good_one(true).await;
}

#[tokio::test]
async fn garbage_from_the_control_plane_is_refused() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        let mut open = mesh.client().await;
        assert_eq!(open.get("a", "/").await.status, 200);
        let garbage = |type_url: &str| Any { type_url: type_url.to_owned(), value: vec![0xff; 40] };
        for type_url in [CDS, LDS] {
            mesh.control_plane.set_any(type_url, "junk", garbage(type_url));
            mesh.refused(type_url, &[]).await;
            mesh.control_plane.remove(type_url, "junk");
        }
        let routes = vec![config::route_to("/", "v1")];
        mesh.control_plane.set_any(RDS, "routes", garbage(RDS));
        mesh.refused(RDS, &[]).await;
        assert_eq!(open.get("a", "/").await.status, 200);
        mesh.control_plane.set("routes", &config::route_config("routes", routes));
        mesh.settled().await;
        assert_eq!(open.get("a", "/").await.origin_version(), "v1");
    }
}

#[tokio::test]
async fn a_route_to_nowhere_is_503_nc() {
    let mesh = Mesh::start(false).await;
    let routes = vec![config::route_to("/nowhere", "no-such-cluster"), config::route_to("/", "v1")];
    mesh.control_plane.set("routes", &config::route_config("routes", routes));
    mesh.settled().await;
    eventually("the new route", || async {
        let reply = mesh.client().await.get("a", "/nowhere").await;
        reply.status == 503 && reply.origin_version().is_empty() && reply.body.is_empty()
    })
    .await;
    assert_eq!(mesh.client().await.get("a", "/").await.status, 200);
    assert_eq!(mesh.control_plane.nacks(), vec![]);
    at_least(&mesh.proxy, "http.front.no_cluster", 1).await;

    // The cluster arrives later, and goes again.
    let late = Origin::start("late").unwrap();
    mesh.control_plane.set("no-such-cluster", &config::static_cluster("no-such-cluster", &[late.address()]));
    eventually("the cluster", || async { mesh.client().await.get("a", "/nowhere").await.origin_version() == "late" })
        .await;
    mesh.control_plane.remove(CDS, "no-such-cluster");
    eventually("its removal", || async { mesh.client().await.get("a", "/nowhere").await.status == 503 }).await;
    eventually("its connections to close", || async { late.open_connections() == 0 }).await;
}

#[tokio::test]
async fn traffic_outlives_the_control_plane() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        mesh.settled().await;
        let first = mesh.control_plane.requests().len();
        let load = Load::new(mesh.front, 100.0, 2).start();
        mesh.control_plane.stop();
        mesh.proxy.wait_stat("control_plane.connected_state", |v| v == 0).await.unwrap();
        mesh.control_plane.restart().unwrap();
        mesh.control_plane.set("routes", &weights(0, 100));
        mesh.settled().await;
        let again = mesh.control_plane.requests().split_off(first);
        let opening = again.first().unwrap();
        assert_eq!(opening.request.node().unwrap().id, "n1", "the first message of a stream names the node");
        let clusters = again.iter().find(|seen| seen.request.type_url() == CDS).unwrap();
        assert_eq!(clusters.request.nonce(), "");
        if let Some(delta) = clusters.request.delta() {
            let mut names: Vec<_> = delta.initial_resource_versions.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, ["v1", "v2"]);
        }
        let from = Instant::now();
        eventually("the new weights", || async { load.so_far().since(from).answered_by("v2") > 10 }).await;
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
        assert_eq!(mesh.control_plane.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_cut_stream_is_opened_again() {
    let mesh = Mesh::start(false).await;
    mesh.settled().await;
    let streams = mesh.control_plane.requests().last().unwrap().stream;
    mesh.control_plane.cut_streams();
    mesh.control_plane.wait_for("a new stream", |seen| seen.stream > streams).await.unwrap();
    mesh.control_plane.set("routes", &weights(0, 100));
    mesh.settled().await;
    let mut client = mesh.client().await;
    eventually("the new weights", || async {
        mesh.v2.requests() > 3 || mesh.client().await.get("a", "/").await.status != 200
    })
    .await;
    assert_eq!(client.get("a", "/").await.origin_version(), "v2");
}

#[tokio::test]
async fn an_equal_push_changes_nothing() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        mesh.control_plane.set("routes", &weights(100, 0));
        let echo = TcpOrigin::start("tcp", TcpBehaviour::Echo).unwrap();
        mesh.control_plane.batch(|batch| {
            batch.set("echo", &config::static_cluster("echo", &[echo.address()]));
            batch.set("tcp", &config::tcp_listener("tcp", any_port(), "echo"));
        });
        mesh.settled().await;
        mesh.proxy.wait_stat("listener_manager.total_listeners_active", |v| v == 2).await.unwrap();
        let mut tcp = TcpStream::connect(address(&mesh.proxy, "tcp").await).await.unwrap();
        let mut client = mesh.client().await;
        assert_eq!(client.get("a", "/").await.origin_version(), "v1");
        tcp.write_all(b"x").await.unwrap();
        assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'x');
        for type_url in TYPES {
            mesh.control_plane.push_again(type_url);
            mesh.settled().await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(client.is_open());
        assert_eq!(client.get("a", "/").await.origin_version(), "v1");
        tcp.write_all(b"y").await.unwrap();
        assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'y');
        assert_eq!((mesh.v1.connections(), echo.connections()), (1, 1), "connections were made anew");
        for name in [
            "listener_manager.listener_modified",
            "listener_manager.listener_in_place_updated",
            "cluster_manager.cluster_modified",
        ] {
            assert_eq!(stat(&mesh.proxy, name).await, 0, "{name}");
        }
    }
}

#[tokio::test]
async fn the_protocol_is_kept() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        mesh.control_plane.set("third", &config::eds_cluster("third"));
        mesh.control_plane.set("third", &config::endpoints("third", &[mesh.v1.address()]));
        mesh.settled().await;
        mesh.control_plane.set("front", &config::http_listener("front", any_port(), &config::hcm_rds("front", "more")));
        mesh.control_plane.set("more", &config::route_config("more", vec![config::route_to("/", "third")]));
        mesh.settled().await;
        let requests = mesh.control_plane.requests();
        assert_eq!(requests[0].request.type_url(), CDS);
        assert_eq!(requests[0].request.node().unwrap().id, "n1");
        for later in &requests[1..] {
            assert!(later.stream != requests[0].stream || later.request.node().is_none(), "node again: {later:?}");
        }
        for sent in mesh.control_plane.sent() {
            let answers = requests.iter().filter(|seen| seen.request.nonce() == sent.nonce).count();
            assert!(answers >= 1, "no answer to {sent:?}");
        }
        assert_eq!((mesh.control_plane.nacks(), mesh.control_plane.violations()), (vec![], vec![]));
    }
}

#[tokio::test]
async fn a_listener_waits_for_its_routes() {
    let origin = Origin::start("v1").unwrap();
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.withhold(RDS);
    control_plane.set("v1", &config::eds_cluster("v1"));
    control_plane.set("v1", &config::endpoints("v1", &[origin.address()]));
    control_plane.set("routes", &config::route_config("routes", vec![config::route_to("/", "v1")]));
    control_plane.set("front", &config::http_listener("front", any_port(), &config::hcm_rds("front", "routes")));
    let mut proxy = Proxy::launch(&bootstrap(&control_plane, false), options()).await.unwrap();
    control_plane.wait_for("a subscription to routes", |seen| seen.request.type_url() == RDS).await.unwrap();
    for _ in 0..20 {
        let ready = proxy.admin("/ready").await.unwrap();
        assert_eq!((ready.status.as_u16(), ready.text().as_str()), (503, "INITIALIZING\n"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    control_plane.release(RDS);
    proxy.wait_ready().await.unwrap();
    let mut client = Client::plain(address(&proxy, "front").await, false).await;
    assert_eq!(client.get("a", "/").await.origin_version(), "v1");
}

#[tokio::test]
async fn a_cluster_waits_for_its_endpoints() {
    let mesh = Mesh::start(false).await;
    mesh.settled().await;
    mesh.control_plane.withhold(EDS);
    let late = Origin::start("late").unwrap();
    mesh.control_plane.batch(|batch| {
        batch.set("late", &config::eds_cluster("late"));
        batch.set("late", &config::endpoints("late", &[late.address()]));
        batch.set(
            "routes",
            &config::route_config("routes", vec![config::route_to("/late", "late"), config::route_to("/", "v1")]),
        );
    });
    mesh.control_plane
        .wait_for("a subscription to the endpoints", |seen| {
            seen.request.type_url() == EDS && seen.request.names().contains(&"late".to_owned())
        })
        .await
        .unwrap();
    assert_eq!(mesh.client().await.get("a", "/").await.status, 200);
    mesh.control_plane.release(EDS);
    eventually("the cluster", || async { mesh.client().await.get("a", "/late").await.origin_version() == "late" })
        .await;
}
