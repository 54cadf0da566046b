//! What a push of configuration does to traffic: as little as it says.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::config;
use outrigger_tests::control_plane::{CDS, ControlPlane, EDS, LDS, RDS};
use outrigger_tests::load::Load;
use outrigger_tests::origin::{Origin, TcpBehaviour, TcpOrigin};
use prost::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xds_protos::pb::envoy::config::core::v3::Metadata;
use xds_protos::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use xds_protos::pb::envoy::service::runtime::v3::Runtime;
use xds_protos::pb::google::protobuf::{Struct, UInt32Value, Value, value};

use super::support::*;
use super::xds::{Mesh, TYPES, any_port, weights};

/// Endpoints that differ in weight and metadata from those of another `turn`.
fn endpoints_of_turn(name: &str, addresses: &[SocketAddr], turn: u32) -> ClusterLoadAssignment {
    let mut assignment = config::endpoints(name, addresses);
    let each = |endpoint: &mut LbEndpoint| {
        endpoint.load_balancing_weight = Some(UInt32Value { value: 1 + turn % 2 });
        let number = Value { kind: Some(value::Kind::NumberValue(f64::from(turn))) };
        let fields = Struct { fields: [("turn".to_owned(), number)].into() };
        endpoint.metadata =
            Some(Metadata { filter_metadata: [("test".to_owned(), fields)].into(), ..Metadata::default() });
    };
    assignment.endpoints.iter_mut().flat_map(|locality| &mut locality.lb_endpoints).for_each(each);
    assignment
}

/// One of the changes that concern nobody's connections.
fn change_nearly_nothing(mesh: &Mesh, turn: u32) {
    let text = format!("turn {turn}");
    match turn % 4 {
        0 => {
            let mut cluster = config::static_cluster("beside", &[mesh.v2.address()]);
            cluster.connect_timeout.get_or_insert_default().nanos = i32::try_from(turn).unwrap() + 1;
            mesh.control_plane.set("beside", &cluster);
        }
        1 => {
            let routes = config::route_config("beside", vec![config::direct_response("/", 200, &text)]);
            mesh.control_plane.set("beside", &routes);
        }
        2 => {
            let routes = config::route_config("inline", vec![config::direct_response("/", 200, &text)]);
            let listener = config::http_listener("changing", any_port(), &config::hcm_inline("changing", routes));
            mesh.control_plane.set("changing", &listener);
        }
        _ => mesh.control_plane.set("v1", &endpoints_of_turn("v1", &[mesh.v1.address()], turn)),
    }
}

async fn pushes_touch_nothing(sotw: bool) {
    const PUSHES: u32 = 1000;
    let mesh = Mesh::start(sotw).await;
    let echo = TcpOrigin::start("tcp", TcpBehaviour::Echo).unwrap();
    mesh.control_plane.batch(|batch| {
        batch.set("routes", &weights(100, 0));
        batch.set("echo", &config::static_cluster("echo", &[echo.address()]));
        batch.set("tcp", &config::tcp_listener("tcp", any_port(), "echo"));
        batch.set("beside", &config::static_cluster("beside", &[mesh.v2.address()]));
        batch.set("beside", &config::route_config("beside", vec![config::direct_response("/", 200, "0")]));
        batch.set("other", &config::http_listener("other", any_port(), &config::hcm_rds("other", "beside")));
    });
    mesh.settled().await;
    mesh.proxy.wait_stat("listener_manager.total_listeners_active", |v| v == 3).await.unwrap();
    let mut tcp = TcpStream::connect(address(&mesh.proxy, "tcp").await).await.unwrap();
    let mut idle = mesh.client().await;
    assert_eq!(idle.get("a", "/").await.origin_version(), "v1");
    let load = Load::new(mesh.front, 200.0, 4).start();
    eventually("the load's connections", || async { load.so_far().samples.len() > 50 }).await;

    for turn in 0..PUSHES {
        mesh.control_plane.push_again(TYPES[turn as usize % TYPES.len()]);
        if turn % 10 == 0 {
            mesh.settled().await;
        }
    }
    for turn in 0..PUSHES {
        change_nearly_nothing(&mesh, turn);
        if turn % 10 == 0 {
            mesh.settled().await;
        }
    }
    mesh.settled().await;

    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
    assert!(idle.is_open());
    assert_eq!(idle.get("a", "/").await.origin_version(), "v1");
    tcp.write_all(b"y").await.unwrap();
    assert_eq!(soon("the echo", tcp.read_u8()).await.unwrap(), b'y');
    assert_eq!(echo.connections(), 1);
    // The load's own connections ended when it stopped; nothing before that did.
    mesh.proxy.wait_stat("http.front.downstream_cx_active", |v| v == 1).await.unwrap();
    assert_eq!(stat(&mesh.proxy, "http.front.downstream_cx_total").await, 5, "downstream connections were made anew");
    assert_eq!(stat(&mesh.proxy, "cluster.v1.upstream_cx_destroy").await, 0, "upstream connections were cut");
    assert_eq!(u64::try_from(stat(&mesh.proxy, "cluster.v1.upstream_cx_total").await).unwrap(), mesh.v1.connections());
    assert_eq!((mesh.control_plane.nacks(), mesh.control_plane.violations()), (vec![], vec![]));
}

#[tokio::test]
async fn a_thousand_equal_and_a_thousand_nearly_equal_pushes_touch_no_connection_delta() {
    pushes_touch_nothing(false).await;
}

#[tokio::test]
async fn a_thousand_equal_and_a_thousand_nearly_equal_pushes_touch_no_connection_sotw() {
    pushes_touch_nothing(true).await;
}

#[tokio::test]
async fn routes_and_clusters_move_together_and_no_request_is_lost() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        let load = Load::new(mesh.front, 200.0, 4).start();
        let origins: Vec<_> = (0..4).map(|n| Origin::start(&format!("o{n}")).unwrap()).collect();
        let mut last = None;
        for turn in 0..20 {
            let (name, origin) = (format!("moving-{turn}"), &origins[turn % origins.len()]);
            mesh.control_plane.batch(|batch| {
                batch.set(&name, &config::eds_cluster(&name));
                batch.set(&name, &config::endpoints(&name, &[origin.address()]));
            });
            mesh.settled().await;
            mesh.control_plane.set("routes", &config::route_config("routes", vec![config::route_to("/", &name)]));
            mesh.settled().await;
            if let Some(gone) = last.replace(name) {
                mesh.control_plane.batch(|batch| {
                    batch.remove(CDS, &gone).remove(EDS, &gone);
                });
                mesh.settled().await;
            }
        }
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
        mesh.proxy.wait_stat("cluster_manager.cluster_removed", |v| v == 19).await.unwrap();
        assert_eq!((mesh.control_plane.nacks(), mesh.control_plane.violations()), (vec![], vec![]));
    }
}

#[tokio::test]
async fn requests_in_flight_outlive_their_cluster() {
    let mesh = Mesh::start(false).await;
    mesh.control_plane.set("routes", &weights(100, 0));
    mesh.settled().await;
    let mut client = mesh.client().await;
    let slow = tokio::spawn(async move { client.get("a", "/delay/1500").await });
    eventually("the request at the origin", || async { mesh.v1.requests() > 0 }).await;
    mesh.control_plane.batch(|batch| {
        batch.remove(CDS, "v1").remove(EDS, "v1");
    });
    eventually("the removal", || async { mesh.client().await.get("a", "/").await.status == 503 }).await;
    at_least(&mesh.proxy, "http.front.no_cluster", 1).await;
    let reply = slow.await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.origin_version()), (200, "v1"));
    eventually("the connection to close", || async { mesh.v1.open_connections() == 0 }).await;
}

#[tokio::test]
async fn clusters_are_acknowledged_when_they_are_warm() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        mesh.settled().await;
        mesh.control_plane.withhold(EDS);
        mesh.control_plane.batch(|batch| {
            batch.set("late", &config::eds_cluster("late"));
            batch.set("late", &config::endpoints("late", &[mesh.v1.address()]));
        });
        mesh.control_plane
            .wait_for("a subscription to the endpoints", |seen| {
                seen.request.type_url() == EDS && seen.request.names().contains(&"late".to_owned())
            })
            .await
            .unwrap();
        let sent = mesh.control_plane.sent();
        let nonce = &sent.iter().rfind(|sent| sent.type_url == CDS).unwrap().nonce;
        let answered = || mesh.control_plane.requests().iter().any(|seen| seen.request.nonce() == nonce);
        mesh.proxy.wait_stat("cluster_manager.warming_clusters", |v| v == 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!answered(), "acknowledged while a cluster warms");
        mesh.control_plane.release(EDS);
        eventually("the acknowledgement", || async { answered() }).await;
        assert_eq!(stat(&mesh.proxy, "cluster_manager.warming_clusters").await, 0);
    }
}

#[tokio::test]
async fn what_is_in_use_outlives_its_removal() {
    let mesh = Mesh::start(false).await;
    mesh.control_plane.set("routes", &weights(100, 0));
    mesh.settled().await;
    let mut client = mesh.client().await;
    assert_eq!(client.get("a", "/").await.origin_version(), "v1");
    mesh.control_plane.batch(|batch| {
        batch.remove(RDS, "routes").remove(EDS, "v1");
    });
    mesh.settled().await;
    at_least(&mesh.proxy, "cluster.v1.update_empty", 1).await;
    assert_eq!(client.get("a", "/").await.origin_version(), "v1");
    assert_eq!(mesh.client().await.get("a", "/").await.origin_version(), "v1");
    assert_eq!(mesh.control_plane.nacks(), vec![]);
}

#[tokio::test]
async fn a_listener_gives_its_address_to_one_of_another_name() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        mesh.settled().await;
        let at = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
        let answering = |name: &str| {
            let routes = config::route_config(name, vec![config::direct_response("/", 200, name)]);
            config::http_listener(name, at, &config::hcm_inline(name, routes))
        };
        mesh.control_plane.set("first", &answering("first"));
        eventually("the listener", || async { TcpStream::connect(at).await.is_ok() }).await;
        mesh.control_plane.batch(|batch| {
            batch.remove(LDS, "first").set("second", &answering("second"));
        });
        mesh.settled().await;
        eventually("the other listener", || async {
            match Client::try_connect(&at.into(), false).await {
                Ok(mut client) => client.get("a", "/").await.text() == "second",
                Err(_) => false,
            }
        })
        .await;
        assert_eq!(mesh.control_plane.nacks(), vec![]);
    }
}

#[tokio::test]
async fn weights_may_wait_for_the_merge_window_and_members_do_not() {
    let mesh = Mesh::start(false).await;
    let mut cluster = config::eds_cluster("v1");
    cluster.common_lb_config.get_or_insert_default().update_merge_window =
        Some(xds_protos::pb::google::protobuf::Duration { seconds: 1, nanos: 0 });
    mesh.control_plane.set("v1", &cluster);
    mesh.settled().await;
    mesh.proxy.wait_stat("cluster_manager.cluster_modified", |v| v == 1).await.unwrap();
    for turn in 0..10 {
        mesh.control_plane.set("v1", &endpoints_of_turn("v1", &[mesh.v1.address()], turn));
        mesh.settled().await;
    }
    // Envoy 1.40 has the field and its stats, and applies every update of endpoints at once.
    if !is_envoy() {
        at_least(&mesh.proxy, "cluster_manager.cluster_updated_via_merge", 1).await;
    }
    let more = Origin::start("more").unwrap();
    mesh.control_plane.set("v1", &endpoints_of_turn("v1", &[mesh.v1.address()], 11));
    mesh.settled().await;
    mesh.control_plane.set("v1", &config::endpoints("v1", &[mesh.v1.address(), more.address()]));
    mesh.proxy.wait_stat("cluster.v1.membership_total", |v| v == 2).await.unwrap();
}

#[tokio::test]
async fn every_subscription_has_its_stats() {
    let mesh = Mesh::start(false).await;
    mesh.settled().await;
    assert_eq!(mesh.client().await.get("a", "/").await.status, 200);
    for prefix in ["cluster_manager.cds", "listener_manager.lds", "http.front.rds.routes"] {
        at_least(&mesh.proxy, &format!("{prefix}.update_success"), 1).await;
        at_least(&mesh.proxy, &format!("{prefix}.update_attempt"), 2).await;
        assert_ne!(stat(&mesh.proxy, &format!("{prefix}.update_time")).await, 0);
        assert_eq!(stat(&mesh.proxy, &format!("{prefix}.update_rejected")).await, 0);
    }
    let served = if mesh.v1.requests() > 0 { "v1" } else { "v2" };
    at_least(&mesh.proxy, &format!("cluster.{served}.update_success"), 1).await;
    assert_ne!(stat(&mesh.proxy, &format!("cluster.{served}.update_time")).await, 0);
    assert_eq!(stat(&mesh.proxy, "control_plane.connected_state").await, 1);
    if !is_envoy() {
        let histograms = mesh.proxy.admin("/stats?filter=outrigger.xds").await.unwrap().text();
        for kind in ["cds", "eds", "lds", "rds"] {
            assert!(histograms.contains(&format!("outrigger.xds.{kind}.propagation")), "{histograms}");
        }
    }
    mesh.control_plane.cut_streams();
    at_least(&mesh.proxy, "http.front.rds.routes.update_failure", 1).await;
    at_least(&mesh.proxy, "cluster_manager.cds.update_failure", 1).await;
}

/// A folder of resources, each file replaced as a whole.
struct Files(tempfile::TempDir);

impl Files {
    fn put(&self, name: &str, message: &str, fields: &str) {
        let text = format!("resources:\n- {{ '@type': type.googleapis.com/{message}, {fields} }}\n");
        let (path, fresh) = (self.0.path().join(name), self.0.path().join("fresh"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    fn source(&self, name: &str) -> String {
        let path = self.0.path().join(name);
        format!("{{ resource_api_version: V3, path_config_source: {{ path: '{}' }} }}", path.display())
    }

    fn endpoints(&self, origin: &Origin) {
        let (ip, port) = (origin.address().ip(), origin.address().port());
        let endpoint =
            format!("{{ endpoint: {{ address: {{ socket_address: {{ address: '{ip}', port_value: {port} }} }} }} }}");
        let fields = format!("cluster_name: a, endpoints: [{{ lb_endpoints: [{endpoint}] }}]");
        self.put("eds.yaml", "envoy.config.endpoint.v3.ClusterLoadAssignment", &fields);
    }

    fn routes(&self, routes: &str) {
        let fields = format!("name: routes, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{routes}] }}]");
        self.put("rds.yaml", "envoy.config.route.v3.RouteConfiguration", &fields);
    }
}

#[tokio::test]
async fn everything_may_come_from_files() {
    let (first, second) = (Origin::start("first").unwrap(), Origin::start("second").unwrap());
    let files = Files(tempfile::tempdir().unwrap());
    files.endpoints(&first);
    files.routes(&all_to("a"));
    let cluster = format!("name: a, type: EDS, eds_cluster_config: {{ eds_config: {} }}", files.source("eds.yaml"));
    files.put("cds.yaml", "envoy.config.cluster.v3.Cluster", &cluster);
    let manager = format!(
        "{{ '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: front, rds: {{ route_config_name: routes, config_source: {} }}, http_filters: [{{ name: router, \
         typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}] }}",
        files.source("rds.yaml")
    );
    let listener = format!(
        "name: front, address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}, \
         filter_chains: [{{ filters: [{{ name: hcm, typed_config: {manager} }}] }}]"
    );
    files.put("lds.yaml", "envoy.config.listener.v3.Listener", &listener);
    let dynamic = format!(
        "dynamic_resources: {{ cds_config: {}, lds_config: {} }}\n",
        files.source("cds.yaml"),
        files.source("lds.yaml")
    );
    let proxy = start_yaml(&(config::Bootstrap::default().yaml() + &dynamic)).await;
    let mut client = Client::plain(address(&proxy, "front").await, false).await;
    assert_eq!(client.get("a", "/").await.origin_version(), "first");
    files.endpoints(&second);
    at_least(&proxy, "cluster.a.update_success", 2).await;
    assert_eq!(client.get("a", "/").await.origin_version(), "second");
    let direct = "{ match: { prefix: / }, direct_response: { status: 200, body: { inline_string: direct } } }";
    files.routes(direct);
    at_least(&proxy, "http.front.rds.routes.config_reload", 2).await;
    assert_eq!(client.get("a", "/").await.text(), "direct");
    files.routes("{ no_such_field: 1 }");
    files.routes("{ match: { safe_regex: { regex: '(' } }, route: { cluster: a } }");
    at_least(&proxy, "http.front.rds.routes.update_rejected", 1).await;
    assert_eq!(client.get("a", "/").await.text(), "direct");
    assert!(client.is_open());
}

#[tokio::test]
async fn runtime_values_come_before_clusters_and_change() {
    let layer = |value: &str| {
        let text = Value { kind: Some(value::Kind::StringValue(value.to_owned())) };
        let fields = Struct { fields: [("some.key".to_owned(), text)].into() };
        Runtime { name: "values".to_owned(), layer: Some(fields) }
    };
    for sotw in [false, true] {
        let control_plane = ControlPlane::tcp().unwrap();
        control_plane.set("values", &layer("one"));
        let bootstrap = config::Bootstrap { ads: Some(control_plane.address()), sotw, ..config::Bootstrap::default() };
        let layers = "layered_runtime: { layers: [\
            { name: fixed, static_layer: { some.key: zero, other.key: 7 } }, \
            { name: told, rtds_layer: { name: values, rtds_config: { ads: {}, resource_api_version: V3 } } }] }\n";
        let proxy = start_yaml(&(bootstrap.yaml() + layers)).await;
        let shown = || async { proxy.admin("/runtime").await.unwrap().json() };
        let first = shown().await;
        assert_eq!(first["layers"], serde_json::json!(["fixed", "told"]));
        assert_eq!(first["entries"]["some.key"]["final_value"], "one");
        assert_eq!(first["entries"]["other.key"]["layer_values"], serde_json::json!(["7", ""]));
        let types: Vec<_> = control_plane.requests().iter().map(|seen| seen.request.type_url().to_owned()).collect();
        let at = |type_url: &str| types.iter().position(|asked| asked == type_url).unwrap();
        assert!(at(&Runtime::type_url()) < at(CDS), "{types:?}");
        control_plane.set("values", &layer("two"));
        eventually("the new value", || async { shown().await["entries"]["some.key"]["final_value"] == "two" }).await;
        assert_eq!(control_plane.nacks(), vec![]);
    }
}
