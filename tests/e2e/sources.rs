//! Where resources come from: several sources at once, sources that give nothing good, and what is kept of that.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use certs::{BUNDLE, IDENTITY, SdsServer};
use outrigger_tests::client::server_identities;
use outrigger_tests::config::{self, Bootstrap, SDS_CLUSTER};
use outrigger_tests::control_plane::{CDS, ControlPlane, EDS, LDS, RDS};
use outrigger_tests::load::Load;
use outrigger_tests::origin::Origin;
use outrigger_tests::proxy::{Proxy, run_with};
use xds_protos::pb::envoy::config::cluster::v3::Cluster;
use xds_protos::pb::envoy::config::core::v3 as core;
use xds_protos::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use xds_protos::pb::google::protobuf::Duration as ProtoDuration;

use super::support::*;
use super::xds::{Mesh, any_port, weights};

/// A folder of resources, each file replaced as a whole.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) {
        let (path, fresh) = (self.0.path().join(name), self.0.path().join("fresh"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    fn put(&self, name: &str, message: &str, fields: &str) {
        self.write(name, &format!("resources:\n- {{ '@type': type.googleapis.com/{message}, {fields} }}\n"));
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn source(&self, name: &str) -> String {
        format!("{{ resource_api_version: V3, path_config_source: {{ path: '{}' }} }}", self.path(name).display())
    }

    fn endpoints(&self, file: &str, service: &str, at: SocketAddr) {
        let endpoint = format!(
            "{{ endpoint: {{ address: {{ socket_address: {{ address: '{}', port_value: {} }} }} }} }}",
            at.ip(),
            at.port()
        );
        let fields = format!("cluster_name: {service}, endpoints: [{{ lb_endpoints: [{endpoint}] }}]");
        self.put(file, "envoy.config.endpoint.v3.ClusterLoadAssignment", &fields);
    }
}

/// A static listener whose routes, called `routes`, come from this file; `wait` is `initial_fetch_timeout`.
fn rds_listener(name: &str, path: &Path, wait: &str) -> String {
    let source = format!(
        "{{ resource_api_version: V3, initial_fetch_timeout: {wait}, path_config_source: {{ path: '{}' }} }}",
        path.display()
    );
    let manager = format!(
        "{{ '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: {name}, rds: {{ route_config_name: routes, config_source: {source} }}, http_filters: [{{ name: router, \
         typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}] }}"
    );
    format!(
        "  - {{ name: {name}, address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}, \
         filter_chains: [{{ filters: [{{ name: hcm, typed_config: {manager} }}] }}] }}\n"
    )
}

fn eds_yaml(name: &str, source: &str) -> String {
    format!("  - {{ name: {name}, type: EDS, eds_cluster_config: {{ service_name: svc, eds_config: {source} }} }}\n")
}

fn answer(text: &str) -> String {
    format!(
        "name: routes, virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, \
         direct_response: {{ status: 200, body: {{ inline_string: {text} }} }} }}] }}]"
    )
}

const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

#[tokio::test]
async fn one_name_from_two_sources_is_two_resources() {
    let files = Files::new();
    // Routes of equal bytes, endpoints of different ones.
    files.put("a.rds.yaml", ROUTES, &answer("same"));
    files.put("b.rds.yaml", ROUTES, &answer("same"));
    let (a, b) = (Origin::start("a").unwrap(), Origin::start("b").unwrap());
    files.endpoints("a.eds.yaml", "svc", a.address());
    files.endpoints("b.eds.yaml", "svc", b.address());
    let clusters = eds_yaml("a", &files.source("a.eds.yaml")) + &eds_yaml("b", &files.source("b.eds.yaml"));
    let to = Front {
        routes: "{ match: { prefix: /a }, route: { cluster: a } }, { match: { prefix: /b }, route: { cluster: b } }",
        ..Front::default()
    };
    let listeners = rds_listener("first", &files.path("a.rds.yaml"), "0s")
        + &rds_listener("second", &files.path("b.rds.yaml"), "0s")
        + &to.yaml();
    let bootstrap = Bootstrap { static_listeners: &listeners, static_clusters: &clusters, ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let text = |listener: &'static str| {
        let proxy = &proxy;
        async move { Client::plain(address(proxy, listener).await, false).await.get("a", "/").await.text() }
    };
    assert_eq!((text("first").await, text("second").await), ("same".to_owned(), "same".to_owned()));
    let mut client = Client::plain(address(&proxy, "front").await, false).await;
    assert_eq!(client.get("a", "/a").await.origin_version(), "a");
    assert_eq!(client.get("a", "/b").await.origin_version(), "b");

    // A change of one source is a change of what comes from there.
    let more = Origin::start("more").unwrap();
    files.put("b.rds.yaml", ROUTES, &answer("changed"));
    files.endpoints("a.eds.yaml", "svc", more.address());
    eventually("the changed routes", || async { text("second").await == "changed" }).await;
    at_least(&proxy, "cluster.a.update_success", 2).await;
    assert_eq!(text("first").await, "same");
    assert_eq!(client.get("a", "/a").await.origin_version(), "more");
    assert_eq!(client.get("a", "/b").await.origin_version(), "b");
    if !is_envoy() {
        let page = proxy.admin("/ledger?type=eds").await.unwrap().text();
        for file in ["a.eds.yaml", "b.eds.yaml"] {
            assert!(page.lines().any(|l| l.contains("svc") && l.contains("running") && l.contains(file)), "{page}");
        }
    }
}

fn from_file(mut cluster: Cluster, path: &Path) -> Cluster {
    let path = core::PathConfigSource { path: path.display().to_string(), ..core::PathConfigSource::default() };
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::PathConfigSource(path)),
        ..config::ads()
    };
    cluster.eds_cluster_config.get_or_insert_default().eds_config = Some(source);
    cluster
}

#[tokio::test]
async fn a_loaded_cluster_changes_its_source_and_itself_and_no_request_is_lost() {
    for sotw in [false, true] {
        let mesh = Mesh::start(sotw).await;
        mesh.control_plane.set("routes", &weights(100, 0));
        mesh.settled().await;
        let files = Files::new();
        files.endpoints("a.yaml", "v1", mesh.v1.address());
        files.endpoints("b.yaml", "v1", mesh.v1.address());
        let load = Load::new(mesh.front, 200.0, 4).start();
        eventually("the load", || async { load.so_far().samples.len() > 20 }).await;
        let modified = |n| mesh.proxy.wait_stat("cluster_manager.cluster_modified", move |v| v == n);
        for (turn, file) in ["a.yaml", "b.yaml", "a.yaml"].into_iter().enumerate() {
            mesh.control_plane.set("v1", &from_file(config::eds_cluster("v1"), &files.path(file)));
            mesh.settled().await;
            modified(turn as i64 + 1).await.unwrap();
        }
        for turn in 0..10 {
            let mut changed = config::eds_cluster("v1");
            changed.connect_timeout = Some(ProtoDuration { seconds: 3 + turn, nanos: 0 });
            mesh.control_plane.set("v1", &changed);
            mesh.settled().await;
            modified(turn + 4).await.unwrap();
        }
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
        assert_eq!(mesh.control_plane.nacks(), vec![]);
    }
}

struct Sds {
    server: SdsServer,
    _dir: tempfile::TempDir,
}

impl Sds {
    fn start(keys: &Keys) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = SdsServer::bind(dir.path().join("sds.sock"), 0o600).unwrap();
        server.set(IDENTITY, keys.server.clone());
        server.set(BUNDLE, certs::Secret::Bundle(keys.authority.bundle_pem().to_owned()));
        Self { server, _dir: dir }
    }
}

#[tokio::test]
async fn a_deleted_secret_is_not_served_again() {
    let keys = Keys::new();
    let sds = Sds::start(&keys);
    let control_plane = ControlPlane::tcp().unwrap();
    let routes = config::route_config("routes", vec![config::direct_response("/", 200, "in")]);
    let strict = |name: &str| {
        let listener = config::http_listener(name, any_port(), &config::hcm_inline(name, routes.clone()));
        config::with_istio_strict(listener, SDS_CLUSTER, "spiffe://cluster.local/")
    };
    control_plane.set("front", &strict("front"));
    let bootstrap =
        Bootstrap { ads: Some(control_plane.address()), sds: Some(sds.server.path()), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let tls = keys.client_tls(&["h2"]);
    assert_eq!(server_identities(address(&proxy, "front").await, &tls).await.unwrap(), [SERVER_ID]);

    control_plane.remove(LDS, "front");
    proxy.wait_stat("listener_manager.total_listeners_active", |v| v == 0).await.unwrap();
    proxy.wait_stat("listener_manager.total_listeners_draining", |v| v == 0).await.unwrap();
    sds.server.remove(IDENTITY);
    control_plane.set("front", &strict("front"));
    control_plane.wait_settled(LDS).await.unwrap();
    proxy.wait_stat("listener_manager.total_listeners_warming", |v| v == 1).await.unwrap();
    assert!(proxy.listener_address("front").await.is_err(), "serves a secret that its source has not");

    let next = "spiffe://cluster.local/ns/default/sa/next";
    sds.server.set(IDENTITY, keys.authority.issue(&next.parse().unwrap(), HOUR, &[]).unwrap());
    proxy.wait_stat("listener_manager.total_listeners_warming", |v| v == 0).await.unwrap();
    assert_eq!(server_identities(address(&proxy, "front").await, &tls).await.unwrap(), [next]);
}

/// Two virtual hosts for the same domain: no proxy takes that.
fn bad_routes(name: &str) -> RouteConfiguration {
    let host =
        |name: &str| VirtualHost { name: name.to_owned(), domains: vec!["*".to_owned()], ..VirtualHost::default() };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host("a"), host("b")],
        ..RouteConfiguration::default()
    }
}

#[tokio::test]
async fn a_refused_first_version_ends_the_wait() {
    for sotw in [false, true] {
        let origin = Origin::start("v1").unwrap();
        let mut beyond = config::endpoints("v1", &[origin.address()]);
        beyond.endpoints[0].priority = 1000;
        let control_plane = ControlPlane::tcp().unwrap();
        control_plane.batch(|batch| {
            batch.set("v1", &config::eds_cluster("v1")).set("v1", &beyond);
            batch.set("routes", &bad_routes("routes"));
            batch.set("front", &config::http_listener("front", any_port(), &config::hcm_rds("front", "routes")));
            let routes = config::route_config("good", vec![config::direct_response("/", 200, "good")]);
            batch.set("good", &config::http_listener("good", any_port(), &config::hcm_inline("good", routes)));
        });
        // Nothing has an end of its own here: all timeouts are 0.
        let bootstrap = Bootstrap { ads: Some(control_plane.address()), sotw, ..Bootstrap::default() };
        let proxy = start_yaml(&bootstrap.yaml()).await;
        let mut good = Client::plain(address(&proxy, "good").await, false).await;
        assert_eq!(good.get("a", "/").await.text(), "good");
        let mut front = Client::plain(address(&proxy, "front").await, false).await;
        assert_eq!(front.get("a", "/").await.status, 404);
        at_least(&proxy, "http.front.rds.routes.update_rejected", 1).await;
        assert_eq!(stat(&proxy, "http.front.rds.routes.init_fetch_timeout").await, 0);
        if !is_envoy() {
            let page = proxy.admin("/ledger?state=rejected&format=json").await.unwrap().json();
            let rows: Vec<_> = page["resources"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
            assert_eq!(rows, ["routes", "v1"], "{page}");
            assert!(page["resources"][0]["timed_out"].is_null(), "{page}");
        }
        control_plane.batch(|batch| {
            batch.set("v1", &config::endpoints("v1", &[origin.address()]));
            batch.set("routes", &config::route_config("routes", vec![config::route_to("/", "v1")]));
        });
        eventually("the corrected versions", || async {
            let reply = Client::plain(address(&proxy, "front").await, false).await.get("a", "/").await;
            reply.status == 200 && reply.origin_version() == "v1"
        })
        .await;
    }
}

#[tokio::test]
async fn a_secret_of_the_wrong_kind_is_refused_and_the_one_before_it_stays() {
    let keys = Keys::new();
    let sds = Sds::start(&keys);
    let control_plane = ControlPlane::tcp().unwrap();
    let routes = config::route_config("routes", vec![config::direct_response("/", 200, "in")]);
    let listener = config::http_listener("front", any_port(), &config::hcm_inline("front", routes));
    control_plane.set("front", &config::with_istio_strict(listener, SDS_CLUSTER, "spiffe://cluster.local/"));
    let bootstrap =
        Bootstrap { ads: Some(control_plane.address()), sds: Some(sds.server.path()), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let (front, tls) = (address(&proxy, "front").await, keys.client_tls(&["h2"]));
    sds.server.set(IDENTITY, certs::Secret::Bundle(keys.authority.bundle_pem().to_owned()));
    at_least(&proxy, &format!("sds.{IDENTITY}.update_rejected"), 1).await;
    assert_eq!(server_identities(front, &tls).await.unwrap(), [SERVER_ID]);
    if !is_envoy() {
        let nacks = format!("{:?}", sds.server.nacks());
        assert!(nacks.contains("is a validation context; expected a certificate"), "{nacks}");
        let page = proxy.admin("/ledger?type=sds&format=json").await.unwrap().json();
        let row = page["resources"].as_array().unwrap().iter().find(|row| row["name"] == IDENTITY).unwrap();
        assert_eq!((&row["state"], &row["source"]), (&"rejected".into(), &SDS_CLUSTER.into()), "{page}");
    }
    let next = "spiffe://cluster.local/ns/default/sa/next";
    sds.server.set(IDENTITY, keys.authority.issue(&next.parse().unwrap(), HOUR, &[]).unwrap());
    eventually("the next certificate", || async { server_identities(front, &tls).await.unwrap() == [next] }).await;
}

#[tokio::test]
async fn a_source_behind_which_nothing_stands_is_refused() {
    let mesh = Mesh::start(true).await;
    let mut lost = config::eds_cluster("lost");
    lost.eds_cluster_config.get_or_insert_default().eds_config = Some(config::sds("nowhere"));
    mesh.control_plane.batch(|batch| {
        batch.set("lost", &lost).set("fine", &config::static_cluster("fine", &[mesh.v1.address()]));
    });
    let nack = mesh.control_plane.wait_for("the refusal", |seen| {
        let error = seen.request.error().filter(|_| seen.request.type_url() == CDS);
        error.is_some_and(|e| e.message.contains("must have a statically defined non-EDS cluster: 'nowhere'"))
    });
    nack.await.unwrap();
    let listed = mesh.proxy.admin("/clusters").await.unwrap().text();
    assert!(listed.contains("fine::") && !listed.contains("lost::"), "{listed}");

    for (dynamic, words) in [
        ("cds_config: { ads: {}, resource_api_version: V3 }", "ADS"),
        (
            "cds_config: { resource_api_version: V3, api_config_source: { api_type: GRPC, transport_api_version: V3, \
             grpc_services: [{ envoy_grpc: { cluster_name: nowhere } }] } }",
            "nowhere",
        ),
        ("lds_config: { resource_api_version: V3, path_config_source: { path: /no/such/file } }", "/no/such/file"),
        (
            "ads_config: { api_type: GRPC, transport_api_version: V3, grpc_services: [{ envoy_grpc: { cluster_name: \
             nowhere } }] }",
            "nowhere",
        ),
    ] {
        let yaml = format!("{}dynamic_resources: {{ {dynamic} }}\n", Bootstrap::default().yaml());
        if is_envoy() && words == "ADS" {
            // It ends without a word of why, or crashes.
            continue;
        }
        let outcome = run_with(options().flag("--config-yaml").flag(yaml)).unwrap();
        assert_eq!(outcome.code, Some(1), "{dynamic}: {outcome:?}");
        assert!(outcome.stderr.contains(words), "{dynamic}: {outcome:?}");
    }
}

#[tokio::test]
async fn what_the_bootstrap_has_a_control_plane_does_not_change() {
    for sotw in [false, true] {
        let (fixed, other) = (Origin::start("fixed").unwrap(), Origin::start("other").unwrap());
        let control_plane = ControlPlane::tcp().unwrap();
        control_plane.batch(|batch| {
            batch.set("a", &config::static_cluster("a", &[other.address()]));
            batch.set("b", &config::static_cluster("b", &[other.address()]));
        });
        let clusters = cluster("a", &[fixed.address()], "");
        let listeners = Front { routes: &all_to("a"), ..Front::default() }.yaml();
        let bootstrap = Bootstrap {
            ads: Some(control_plane.address()),
            sotw,
            static_clusters: &clusters,
            static_listeners: &listeners,
            ..Bootstrap::default()
        };
        let proxy = start_yaml(&bootstrap.yaml()).await;
        control_plane.wait_settled(CDS).await.unwrap();
        assert_eq!(control_plane.nacks(), vec![]);
        let mut client = Client::plain(address(&proxy, "front").await, false).await;
        assert_eq!(client.get("a", "/").await.origin_version(), "fixed");
        control_plane.remove(CDS, "a");
        control_plane.wait_settled(CDS).await.unwrap();
        assert_eq!(client.get("a", "/").await.origin_version(), "fixed");
        assert_eq!(stat(&proxy, "cluster_manager.cds.update_rejected").await, 0);
        if !is_envoy() {
            let page = proxy.admin("/ledger?type=cds&format=json").await.unwrap().json();
            let rows = page["resources"].as_array().unwrap().iter();
            let of_a: Vec<_> = rows.filter(|row| row["name"] == "a").map(|row| row["source"].clone()).collect();
            assert_eq!(of_a, ["bootstrap"], "{page}");
            let said = proxy.stderr().iter().filter(|line| line.contains("cluster a is static")).count();
            assert_eq!(said, 1, "{:?}", proxy.stderr());
        }
    }
}

#[tokio::test]
async fn equal_pushes_renew_what_is_offered() {
    let mesh = Mesh::start(true).await;
    mesh.settled().await;
    let offered = || async {
        let page = mesh.proxy.admin("/ledger?type=cds&name_regex=v1&format=json").await.unwrap().json();
        page["resources"][0]["version_offered"].as_str().unwrap().to_owned()
    };
    let running = || async {
        let dump =
            mesh.proxy.admin("/config_dump?resource=dynamic_active_clusters&name_regex=v1").await.unwrap().json();
        dump["configs"][0]["version_info"].as_str().unwrap().to_owned()
    };
    let before = (running().await, if is_envoy() { String::new() } else { offered().await });
    mesh.control_plane.set("v2", &config::static_cluster("v2", &[mesh.v2.address()]));
    mesh.settled().await;
    assert_eq!(running().await, before.0, "what did not change keeps its version");
    if !is_envoy() {
        assert_ne!(offered().await, before.1);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_said_where_it_is_waited_for() {
    let files = Files::new();
    files.write("rds.yaml", "resources: [ {");
    let listeners = rds_listener("front", &files.path("rds.yaml"), "0.3s");
    let bootstrap = Bootstrap { static_listeners: &listeners, ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    if !is_envoy() {
        let page = proxy.admin("/ledger?type=rds&format=json").await.unwrap().json();
        let row = &page["resources"][0];
        assert_eq!((&row["name"], &row["state"]), (&"routes".into(), &"requested".into()), "{page}");
        assert!(row["source_error"]["details"].as_str().is_some_and(|text| !text.is_empty()), "{page}");
        assert!(row["source"].as_str().unwrap().ends_with("rds.yaml"), "{page}");
    }
    files.put("rds.yaml", ROUTES, &answer("read"));
    eventually("the routes", || async {
        Client::plain(address(&proxy, "front").await, false).await.get("a", "/").await.text() == "read"
    })
    .await;
}

/// What Envoy and this proxy say while they wait.
#[tokio::test]
async fn whoever_waits_says_for_what() {
    let keys = Keys::new();
    let sds = Sds::start(&keys);
    sds.server.remove(IDENTITY);
    let origin = Origin::start("v1").unwrap();
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.withhold(EDS);
    control_plane.batch(|batch| {
        batch.set("late", &config::eds_cluster("late"));
        batch.set("late", &config::endpoints("late", &[origin.address()]));
        let secret = config::with_istio_mtls(
            config::static_cluster("secret", &[origin.address()]),
            SDS_CLUSTER,
            "x",
            &[SERVER_ID],
        );
        batch.set("secret", &secret);
        let routes = config::route_config("routes", vec![config::route_to("/", "late")]);
        batch.set("front", &config::http_listener("front", any_port(), &config::hcm_rds("front", "routes")));
        batch.set("routes", &routes);
    });
    let bootstrap =
        Bootstrap { ads: Some(control_plane.address()), sds: Some(sds.server.path()), ..Bootstrap::default() };
    let mut proxy = Proxy::launch(&bootstrap.yaml(), options()).await.unwrap();
    async fn state(proxy: &Proxy) -> String {
        proxy.admin("/server_info").await.unwrap().json()["state"].as_str().unwrap().to_owned()
    }
    proxy.wait_stat("cluster_manager.warming_clusters", |v| v >= 1).await.unwrap();
    eventually("the clusters that are waited for", || async {
        let dump = proxy.admin("/init_dump").await.unwrap().text();
        // Envoy lists clusters that warm after the start only.
        is_envoy() || (dump.contains("late") && dump.contains("secret"))
    })
    .await;
    assert_eq!(state(&proxy).await, "PRE_INITIALIZING");
    assert_eq!(proxy.admin("/ready").await.unwrap().status, 503);
    control_plane.withhold(RDS);
    control_plane.release(EDS);
    sds.server.set(IDENTITY, keys.client.clone());
    eventually("the listener", || async { proxy.admin("/init_dump").await.unwrap().text().contains("front") }).await;
    assert_eq!(state(&proxy).await, "INITIALIZING");
    control_plane.release(RDS);
    proxy.wait_ready().await.unwrap();
    assert_eq!(state(&proxy).await, "LIVE");
    let mut client = Client::plain(address(&proxy, "front").await, false).await;
    assert_eq!(client.get("a", "/").await.origin_version(), "v1");
}

#[tokio::test]
async fn a_client_certificate_rotates_under_load() {
    let keys = Keys::new();
    let sds = Sds::start(&keys);
    sds.server.set(IDENTITY, keys.client.clone());
    let origin = Origin::start("v1").unwrap();
    // A proxy before the origin takes who proves an identity, and tells which.
    let transport = keys.downstream(true, "");
    let forward = "forward_client_cert_details: SANITIZE_SET\nset_current_client_cert_details: { uri: true }\n";
    let front = Front { routes: &all_to("a"), transport: &transport, manager: forward, ..Front::default() };
    let inner = start(&front.yaml(), &cluster("a", &[origin.address()], "")).await;
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.batch(|batch| {
        batch.set("routes", &config::route_config("routes", vec![config::route_to("/", "v1")]));
        batch.set("front", &config::http_listener("front", any_port(), &config::hcm_rds("front", "routes")));
    });
    let to = address(&inner, "front").await;
    let mtls = config::with_istio_mtls(config::static_cluster("v1", &[to]), SDS_CLUSTER, "server.test", &[SERVER_ID]);
    control_plane.set("v1", &mtls);
    let bootstrap =
        Bootstrap { ads: Some(control_plane.address()), sds: Some(sds.server.path()), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let front = address(&proxy, "front").await;
    let load = Load::new(front, 100.0, 2).start();
    eventually("the load", || async { load.so_far().samples.len() > 20 }).await;
    let next = "spiffe://cluster.local/ns/default/sa/next";
    sds.server.set(IDENTITY, keys.authority.issue(&next.parse().unwrap(), HOUR, &[]).unwrap());
    at_least(&proxy, "cluster.v1.client_ssl_socket_factory.ssl_context_update_by_sds", 2).await;
    let before = load.so_far().samples.len();
    eventually("more load", || async { load.so_far().samples.len() > before + 20 }).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.outcomes());
    // Connections live on with what they were made with; those that more requests at once need show the new identity.
    let slow = (0..6).map(|_| async {
        let reply = Client::plain(front, false).await.get("a", "/delay/300").await;
        seen(&reply, "x-forwarded-client-cert").to_string()
    });
    let shown = futures_util::future::join_all(slow).await;
    assert!(shown.iter().any(|header| header.contains(next)), "{shown:?}");
    assert!(shown.iter().all(|header| header.contains(next) || header.contains(CLIENT_ID)), "{shown:?}");
}

#[tokio::test]
async fn the_end_of_a_certificate_is_a_stat_and_a_line_in_the_log() {
    let keys = Keys::new();
    let sds = Sds::start(&keys);
    let short = keys.authority.issue(&SERVER_ID.parse().unwrap(), Duration::from_secs(4), &[]).unwrap();
    sds.server.set(IDENTITY, short);
    let control_plane = ControlPlane::tcp().unwrap();
    let routes = config::route_config("routes", vec![config::direct_response("/", 200, "in")]);
    let listener = config::http_listener("front", any_port(), &config::hcm_inline("front", routes));
    control_plane.set("front", &config::with_istio_strict(listener, SDS_CLUSTER, "spiffe://cluster.local/"));
    let bootstrap =
        Bootstrap { ads: Some(control_plane.address()), sds: Some(sds.server.path()), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let days = "server.days_until_first_cert_expiring";
    proxy.wait_stat(days, |v| v == 0).await.unwrap();
    if !is_envoy() {
        let said = |words: &str| proxy.stderr().iter().filter(|line| line.contains(words)).count();
        eventually("the end to be said", || async { said("has expired") == 1 }).await;
    }
    // A bundle that nobody can be trusted by is not taken for one.
    if !is_envoy() {
        let gone = keys.authority.issue(&SERVER_ID.parse().unwrap(), Duration::from_secs(1), &[]).unwrap();
        while SystemTime::now() <= gone.not_after + Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        sds.server.set(BUNDLE, certs::Secret::Bundle(gone.chain_pem));
        at_least(&proxy, &format!("sds.{BUNDLE}.update_rejected"), 1).await;
        assert!(format!("{:?}", sds.server.nacks()).contains("have expired"), "{:?}", sds.server.nacks());
    }
}
