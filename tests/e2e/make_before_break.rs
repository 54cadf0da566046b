//! What is exchanged goes when what comes in its place is there.

use std::net::SocketAddr;

use outrigger_tests::config;
use outrigger_tests::control_plane::{CDS, EDS, LDS, Order, RDS};
use outrigger_tests::load::Load;
use outrigger_tests::origin::{Origin, TcpBehaviour, TcpOrigin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xds_protos::pb::envoy::config::core::v3::{CidrRange, HealthStatus};
use xds_protos::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use xds_protos::pb::google::protobuf::{BoolValue, UInt32Value};

use super::support::*;
use super::xds::{Mesh, any_port, weights};

/// A cluster and the route to it are exchanged for others in one go, forty times, under load.
async fn exchanged(sotw: bool, order: &[&str]) {
    const TURNS: usize = 40;
    let mesh = Mesh::start(sotw).await;
    mesh.control_plane.reorder(Order::of(order));
    let origins = [Origin::start("even").unwrap(), Origin::start("odd").unwrap()];
    let load = Load::new(mesh.front, 300.0, 4).start();
    eventually("the load's connections", || async { load.so_far().samples.len() > 50 }).await;
    for turn in 0..TURNS {
        let (name, origin) = (format!("turn-{turn}"), &origins[turn % 2]);
        mesh.control_plane.batch(|batch| {
            batch.set(&name, &config::eds_cluster(&name));
            batch.set(&name, &config::endpoints(&name, &[origin.address()]));
            batch.set("routes", &config::route_config("routes", vec![config::route_to("/", &name)]));
            let gone =
                if turn == 0 { vec!["v1".to_owned(), "v2".to_owned()] } else { vec![format!("turn-{}", turn - 1)] };
            for gone in &gone {
                batch.remove(CDS, gone).remove(EDS, gone);
            }
        });
        let before = origin.requests();
        eventually("requests to the new cluster", || async { origin.requests() > before + 5 }).await;
    }
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
    mesh.settled().await;
    at_least(&mesh.proxy, "cluster_manager.cluster_removed", TURNS as i64 + 1).await;
    assert_eq!((mesh.control_plane.nacks(), mesh.control_plane.violations()), (vec![], vec![]));
    // What was left behind is let go of.
    eventually("connections to what was exchanged to close", || async {
        mesh.v1.open_connections() + mesh.v2.open_connections() + origins[0].open_connections() == 0
    })
    .await;
}

// Envoy loses some requests in each of these: its routes go live before the clusters they name, or after.

#[tokio::test]
async fn a_cluster_and_its_route_are_exchanged_at_once_and_no_request_is_lost_delta() {
    if !is_envoy() {
        exchanged(false, &[CDS, EDS, LDS, RDS]).await;
    }
}

#[tokio::test]
async fn a_cluster_and_its_route_are_exchanged_at_once_and_no_request_is_lost_sotw() {
    if !is_envoy() {
        exchanged(true, &[CDS, EDS, LDS, RDS]).await;
    }
}

#[tokio::test]
async fn routes_may_overtake_clusters_and_no_request_is_lost() {
    if !is_envoy() {
        exchanged(false, &[RDS, CDS, EDS]).await;
    }
}

#[tokio::test]
async fn routes_do_not_wait_for_ever() {
    let mesh = Mesh::start(false).await;
    mesh.control_plane.set("routes", &weights(100, 0));
    mesh.settled().await;
    assert_eq!(mesh.client().await.get("a", "/").await.origin_version(), "v1");
    // For a cluster that nobody knows, for one that never becomes warm, and back.
    mesh.control_plane.set("routes", &config::route_config("routes", vec![config::route_to("/", "nowhere")]));
    eventually("the route to nowhere", || async { mesh.client().await.get("a", "/").await.status == 503 }).await;
    mesh.control_plane.set("routes", &weights(0, 100));
    mesh.settled().await;
    assert_eq!(mesh.client().await.get("a", "/").await.origin_version(), "v2");
    mesh.control_plane.withhold(EDS);
    mesh.control_plane.batch(|batch| {
        batch.set("cold", &config::eds_cluster("cold"));
        batch.set("routes", &config::route_config("routes", vec![config::route_to("/", "cold")]));
    });
    eventually("the route to the cold cluster", || async { mesh.client().await.get("a", "/").await.status == 503 })
        .await;
}

/// For connections to 127.0.0.`last` alone.
fn chain_for(last: u8, name: &str, cluster: &str) -> FilterChain {
    let routes = config::route_config(name, vec![config::route_to("/", cluster)]);
    let listener = config::http_listener(name, any_port(), &config::hcm_inline(name, routes));
    let range = CidrRange { address_prefix: format!("127.0.0.{last}"), prefix_len: Some(UInt32Value { value: 32 }) };
    let matcher = FilterChainMatch { prefix_ranges: vec![range], ..FilterChainMatch::default() };
    let mut chain = listener.filter_chains.into_iter().next().unwrap();
    (chain.name, chain.filter_chain_match) = (name.to_owned(), Some(matcher));
    chain
}

#[tokio::test]
async fn only_the_connections_of_the_filter_chain_that_changed_drain() {
    const TURNS: i64 = 4;
    const CONNECTIONS: i64 = 4;
    let mesh = Mesh::start(false).await;
    let other = Origin::start("other").unwrap();
    mesh.control_plane.set("other", &config::static_cluster("other", &[other.address()]));
    let two_chains = |changing: &str| {
        let routes = config::route_config("unused", vec![]);
        let at = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut listener: Listener = config::http_listener("two", at, &config::hcm_inline("unused", routes));
        listener.filter_chains = vec![chain_for(1, "kept", "v1"), chain_for(2, "changing", changing)];
        listener
    };
    mesh.control_plane.set("two", &two_chains("v2"));
    mesh.settled().await;
    let port = address(&mesh.proxy, "two").await.port();
    let (kept, changing) = (SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from(([127, 0, 0, 2], port)));

    let mut idle = Client::plain(kept, false).await;
    assert_eq!(idle.get("a", "/").await.origin_version(), "v1");
    let load = Load::new(kept, 200.0, CONNECTIONS as usize).start();
    let drained = Load::new(changing, 200.0, CONNECTIONS as usize).start();
    let made = |prefix: &str| format!("http.{prefix}.downstream_cx_total");
    at_least(&mesh.proxy, &made("kept"), CONNECTIONS + 1).await;
    at_least(&mesh.proxy, &made("changing"), CONNECTIONS).await;
    let of_origin = mesh.v1.connections();

    for turn in 1..=TURNS {
        let cluster = if turn % 2 == 0 { "v2" } else { "other" };
        let before = stat(&mesh.proxy, "http.changing.downstream_cx_destroy").await;
        mesh.control_plane.set("two", &two_chains(cluster));
        at_least(&mesh.proxy, "listener_manager.listener_in_place_updated", turn).await;
        at_least(&mesh.proxy, "http.changing.downstream_cx_destroy", before + CONNECTIONS).await;
        at_least(&mesh.proxy, &made("changing"), CONNECTIONS * (turn + 1)).await;
    }

    let (report, drained) = (load.stop().await, drained.stop().await);
    assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
    if !is_envoy() {
        // Envoy closes some under a request.
        assert_eq!(drained.failed(), 0, "{:?}", drained.outcomes());
    }
    assert!(drained.answered_by("other") > 0 && drained.answered_by("v2") > 0, "{:?}", drained.outcomes());
    // Nobody's connection through the other chain was touched, on either side.
    assert!(idle.is_open());
    assert_eq!(idle.get("a", "/").await.origin_version(), "v1");
    assert_eq!(stat(&mesh.proxy, &made("kept")).await, CONNECTIONS + 1);
    assert_eq!(stat(&mesh.proxy, "cluster.v1.upstream_cx_destroy").await, 0);
    // More requests at once than before take more of them, at most one for each client.
    let at_most = of_origin.max(CONNECTIONS as u64 + 1);
    assert!((of_origin..=at_most).contains(&mesh.v1.connections()), "{} after {of_origin}", mesh.v1.connections());
    assert_eq!(stat(&mesh.proxy, "listener_manager.listener_modified").await, TURNS);
    assert_eq!(mesh.control_plane.nacks(), vec![]);
}

#[tokio::test]
async fn health_that_is_only_told_cuts_no_connection() {
    // The flag is about failures that this proxy finds out itself.
    let mesh = Mesh::start(false).await;
    let echo = TcpOrigin::start("tcp", TcpBehaviour::Echo).unwrap();
    let of_health = |name: &str, at: SocketAddr, health: HealthStatus| {
        let mut assignment = config::endpoints(name, &[at]);
        assignment.endpoints[0].lb_endpoints[0].health_status = health.into();
        assignment
    };
    let mut cluster = config::eds_cluster("v1");
    cluster.close_connections_on_host_health_failure = true;
    let mut tcp_cluster = config::eds_cluster("echo");
    tcp_cluster.close_connections_on_host_health_failure = true;
    mesh.control_plane.batch(|batch| {
        batch.set("v1", &cluster);
        batch.set("routes", &weights(100, 0));
        batch.set("echo", &tcp_cluster);
        batch.set("echo", &config::endpoints("echo", &[echo.address()]));
        batch.set("tcp", &config::tcp_listener("tcp", any_port(), "echo"));
    });
    mesh.settled().await;
    let mut tcp = TcpStream::connect(address(&mesh.proxy, "tcp").await).await.unwrap();
    tcp.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'x');
    let mut client = mesh.client().await;
    assert_eq!(client.get("a", "/").await.origin_version(), "v1");
    eventually("one idle connection", || async { mesh.v1.open_connections() == 1 }).await;
    let made = mesh.v1.connections();

    mesh.control_plane.batch(|batch| {
        batch.set("v1", &of_health("v1", mesh.v1.address(), HealthStatus::Unhealthy));
        batch.set("echo", &of_health("echo", echo.address(), HealthStatus::Unhealthy));
    });
    for cluster in ["v1", "echo"] {
        mesh.proxy.wait_stat(&format!("cluster.{cluster}.membership_healthy"), |v| v == 0).await.unwrap();
    }
    // Longer than anything that looks after idle connections takes to come round.
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        tcp.write_all(b"y").await.unwrap();
        assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'y');
    }
    // All endpoints being unhealthy means panic: it is still used, over the connection it had.
    assert_eq!(client.get("a", "/").await.origin_version(), "v1");
    assert_eq!((mesh.v1.connections(), mesh.v1.open_connections(), echo.connections()), (made, 1, 1));
}

#[tokio::test]
async fn a_listener_without_reuse_port_gives_its_address_to_one_of_another_name() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        mesh.settled().await;
        let at = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
        let answering = |name: &str, backlog: u32| {
            let routes = config::route_config(name, vec![config::direct_response("/", 200, name)]);
            let mut listener = config::http_listener(name, at, &config::hcm_inline(name, routes));
            listener.enable_reuse_port = Some(BoolValue { value: false });
            listener.tcp_backlog_size = Some(UInt32Value { value: backlog });
            listener
        };
        let answers = async |expected: &str| {
            eventually(expected, || async {
                match Client::try_connect(&at.into(), false).await {
                    Ok(mut client) => client.get("a", "/").await.text() == expected,
                    Err(_) => false,
                }
            })
            .await;
        };
        mesh.control_plane.set("first", &answering("first", 10));
        answers("first").await;
        mesh.control_plane.batch(|batch| {
            batch.remove(LDS, "first").set("second", &answering("second", 10));
        });
        answers("second").await;
        mesh.control_plane.set("second", &answering("second", 20));
        mesh.settled().await;
        mesh.proxy.wait_stat("listener_manager.listener_modified", |v| v == 1).await.unwrap();
        answers("second").await;
        assert_eq!(mesh.control_plane.nacks(), vec![]);
    }
}
