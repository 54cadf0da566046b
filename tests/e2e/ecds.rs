//! Filters whose configuration comes by ECDS, from a control plane and from files.

use std::path::PathBuf;

use outrigger_tests::client::Reply;
use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::{ControlPlane, ECDS, RDS};
use outrigger_tests::origin::Origin;
use outrigger_tests::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xds_protos::pb::envoy::config::core::v3::{ExtensionConfigSource, TypedExtensionConfig};
use xds_protos::pb::envoy::config::route::v3::FilterConfig;
use xds_protos::pb::envoy::extensions::filters::http::cors::v3::Cors;
use xds_protos::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use xds_protos::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use xds_protos::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter::ConfigType,
};
use xds_protos::pb::google::protobuf::{Any, Duration};

use super::support::*;
use super::xds::any_port;

const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const STATS: &str = "extension_config_discovery.http_filter";

/// A filter by ECDS over ADS.
fn discovered(name: &str, wait: Option<Duration>, types: &[&str], default: Option<Any>) -> HttpFilter {
    let mut source = config::ads();
    if wait.is_some() {
        source.initial_fetch_timeout = wait;
    }
    let discovery = ExtensionConfigSource {
        config_source: Some(source),
        default_config: default,
        apply_default_config_without_warming: false,
        type_urls: types.iter().map(|t| (*t).to_owned()).collect(),
    };
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::ConfigDiscovery(discovery)),
        ..Default::default()
    }
}

/// A connection manager that answers itself, with these filters before its router.
fn manager(filters: Vec<HttpFilter>) -> HttpConnectionManager {
    let routes = config::route_config("local", vec![config::direct_response("/", 200, "served")]);
    let mut manager = config::hcm_inline("front", routes);
    manager.http_filters.splice(0..0, filters);
    manager
}

fn delivered(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) }
}

fn short() -> Option<Duration> {
    Some(Duration { seconds: 0, nanos: 100_000_000 })
}

async fn launch(control_plane: &ControlPlane, sotw: bool) -> Proxy {
    let bootstrap =
        Bootstrap { node_id: "n1", ads: Some(control_plane.address()), sotw, ..Bootstrap::default() }.yaml();
    Proxy::launch(&bootstrap, options()).await.unwrap()
}

async fn ask_front(proxy: &Proxy) -> Reply {
    Client::plain(address(proxy, "front").await, false).await.get("a", "/").await
}

async fn status(proxy: &Proxy) -> u16 {
    ask_front(proxy).await.status.as_u16()
}

async fn filters_come_and_change(sotw: bool) {
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.withhold(ECDS);
    let front = manager(vec![discovered("first", None, &[FAULT], None)]);
    control_plane.batch(|batch| {
        batch.set("first", &delivered("first", config::any(&HttpFault::default())));
        batch.set("front", &config::http_listener("front", any_port(), &front));
    });
    let mut proxy = launch(&control_plane, sotw).await;
    control_plane.wait_for("a subscription to the filter", |seen| seen.request.type_url() == ECDS).await.unwrap();
    let waits = "shared target FilterConfigSubscription init first";
    eventually("the listener to wait", || async { proxy.admin("/init_dump").await.unwrap().text().contains(waits) })
        .await;
    assert_eq!(proxy.admin("/ready").await.unwrap().status, 503);
    control_plane.release(ECDS);
    proxy.wait_ready().await.unwrap();
    assert_eq!(status(&proxy).await, 200);
    at_least(&proxy, &format!("{STATS}.first.config_reload"), 1).await;
    let dump = proxy.admin("/config_dump?resource=ecds_filters").await.unwrap().json();
    assert_eq!(dump["configs"][0]["ecds_filter"]["name"], "first");
    assert_eq!(dump["configs"][0]["ecds_filter"]["typed_config"]["@type"], FAULT);

    // of a type that the listener did not name: refused, and the last one stays
    control_plane.set("first", &delivered("first", config::any(&Cors::default())));
    let refused =
        |text: &str| text.contains("http.cors.v3.Cors but expect envoy.extensions.filters.http.fault.v3.HTTPFault");
    control_plane
        .wait_for("a NACK", |seen| seen.request.error().is_some_and(|error| refused(&error.message)))
        .await
        .unwrap();
    at_least(&proxy, &format!("{STATS}.first.config_fail"), 1).await;
    assert_eq!(status(&proxy).await, 200);
    if sotw {
        return;
    }
    // taken away: requests must not do without it
    control_plane.remove(ECDS, "first");
    eventually("requests to fail", || async { status(&proxy).await == 500 }).await;
    control_plane.set("first", &delivered("first", config::any(&HttpFault::default())));
    eventually("requests to be served again", || async { status(&proxy).await == 200 }).await;
}

#[tokio::test]
async fn http_filters_come_by_ecds_and_change_delta() {
    filters_come_and_change(false).await;
}

#[tokio::test]
async fn http_filters_come_by_ecds_and_change_sotw() {
    filters_come_and_change(true).await;
}

#[tokio::test]
async fn a_filter_that_never_comes_is_500_unless_it_has_a_default() {
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.withhold(ECDS);
    let lacking = manager(vec![discovered("lacking", short(), &[FAULT], None)]);
    let mut disabled = discovered("disabled", short(), &[FAULT], None);
    disabled.disabled = true;
    let spared =
        manager(vec![discovered("spared", short(), &[FAULT], Some(config::any(&HttpFault::default()))), disabled]);
    control_plane.batch(|batch| {
        batch.set("front", &config::http_listener("front", any_port(), &lacking));
        batch.set("other", &config::http_listener("other", any_port(), &spared));
    });
    let mut proxy = launch(&control_plane, false).await;
    proxy.wait_ready().await.unwrap();
    for http2 in [false, true] {
        let front = address(&proxy, "front").await;
        let reply = Client::plain(front, http2).await.get("a", "/nowhere").await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (500, ""));
    }
    let other = address(&proxy, "other").await;
    assert_eq!(Client::plain(other, false).await.get("a", "/").await.text(), "served");
    for name in ["lacking", "spared", "disabled"] {
        assert_eq!(stat(&proxy, &format!("{STATS}.{name}.init_fetch_timeout")).await, 1, "{name}");
        assert_eq!(stat(&proxy, &format!("{STATS}.{name}.config_fail")).await, 1, "{name}");
    }
    control_plane.set("lacking", &delivered("lacking", config::any(&HttpFault::default())));
    control_plane.release(ECDS);
    eventually("requests to be served", || async { status(&proxy).await == 200 }).await;
}

/// A policy that lets nobody pass: Envoy says so, and whoever cannot must not let anybody pass either.
#[tokio::test]
async fn a_guard_by_ecds_is_never_passed_by() {
    let control_plane = ControlPlane::tcp().unwrap();
    let front = manager(vec![discovered("guard", None, &[RBAC, FAULT], None)]);
    let policy = Rbac { rules: Some(Default::default()), ..Rbac::default() };
    control_plane.batch(|batch| {
        batch.set("guard", &delivered("guard", config::any(&policy)));
        batch.set("front", &config::http_listener("front", any_port(), &front));
    });
    let mut proxy = launch(&control_plane, false).await;
    proxy.wait_ready().await.unwrap();
    let expected = if is_envoy() { 403 } else { 500 };
    assert_eq!(status(&proxy).await, expected);
    if !is_envoy() {
        let nacks = control_plane.nacks();
        assert!(
            nacks.iter().any(|(of, text)| of == ECDS && text.contains("guard") && text.contains("RBAC")),
            "{nacks:?}"
        );
    }
    control_plane.set("guard", &delivered("guard", config::any(&HttpFault::default())));
    eventually("what may be passed by", || async { status(&proxy).await == 200 }).await;
    // what replaces it and is refused leaves the last good one
    control_plane.set("guard", &delivered("guard", config::any(&policy)));
    control_plane.wait_settled(ECDS).await.unwrap();
    eventually("an answer", || async { status(&proxy).await == if is_envoy() { 403 } else { 200 } }).await;
}

/// A route by RDS that enables a disabled policy: Envoy then applies it; here such routes are refused.
#[tokio::test]
async fn no_route_enables_a_guard_that_does_not_run() {
    let control_plane = ControlPlane::tcp().unwrap();
    let policy = Rbac { rules: Some(Default::default()), ..Rbac::default() };
    let guard = HttpFilter {
        name: "guard".to_owned(),
        disabled: true,
        config_type: Some(ConfigType::TypedConfig(config::any(&policy))),
        ..HttpFilter::default()
    };
    let mut front = config::hcm_rds("front", "routes");
    front.http_filters.insert(0, guard);
    let routes = |text: &str| config::route_config("routes", vec![config::direct_response("/", 200, text)]);
    control_plane.batch(|batch| {
        batch.set("routes", &routes("before"));
        batch.set("front", &config::http_listener("front", any_port(), &front));
    });
    let mut proxy = launch(&control_plane, false).await;
    proxy.wait_ready().await.unwrap();
    assert_eq!(ask_front(&proxy).await.text(), "before");
    for config in [
        config::any(&FilterConfig { config: Some(Any::default()), is_optional: true, disabled: false }),
        config::any(&HttpFault::default()),
    ] {
        let mut enabling = routes("after");
        enabling.typed_per_filter_config.insert("guard".to_owned(), config);
        control_plane.set("routes", &enabling);
        control_plane.wait_settled(RDS).await.unwrap();
        eventually("the policy to hold", || async {
            let reply = ask_front(&proxy).await;
            if is_envoy() { reply.status == 403 } else { reply.text() == "before" }
        })
        .await;
    }
    if !is_envoy() {
        let nacks = control_plane.nacks();
        assert_eq!(nacks.iter().filter(|(of, text)| of == RDS && text.contains("guard")).count(), 2, "{nacks:?}");
    }
    control_plane.set("routes", &routes("later"));
    eventually("good routes", || async { ask_front(&proxy).await.text() == "later" }).await;
}

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TLS_INSPECTOR: &str = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";

/// A folder of resources, each file replaced as a whole.
struct Files(tempfile::TempDir);

impl Files {
    fn put(&self, name: &str, config: &str) {
        let text = format!(
            "resources:\n- {{ '@type': type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig, name: {name}, typed_config: {config} }}\n"
        );
        self.write(name, &text);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.yaml"))
    }

    fn write(&self, name: &str, text: &str) {
        let (path, fresh) = (self.path(name), self.0.path().join("fresh"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    fn filter(&self, name: &str, kind: &str, more: &str) -> String {
        let path = self.path(name);
        format!(
            "{{ name: {name}, config_discovery: {{ config_source: {{ resource_api_version: V3, initial_fetch_timeout: 0.1s, \
             path_config_source: {{ path: '{}' }} }}, type_urls: ['{kind}']{more} }} }}",
            path.display()
        )
    }
}

fn answering(filters: &str, text: &str) -> String {
    format!(
        "{{ '@type': {HCM}, stat_prefix: {text}, http_filters: [{filters}], route_config: {{ name: {text}, virtual_hosts: [{{ \
         name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {text} }} }} }}] }}] }} }}"
    )
}

fn listener(name: &str, filter: &str, more: &str) -> String {
    format!(
        "  - {{ name: {name}, stat_prefix: {name}, address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}, \
         filter_chains: [{{ filters: [{filter}] }}]{more} }}\n"
    )
}

/// What comes back for a request; empty when the connection is closed at once.
async fn answer(proxy: &Proxy, listener: &str) -> String {
    let mut stream = TcpStream::connect(address(proxy, listener).await).await.unwrap();
    // a peer that closes at once may be gone already
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let mut text = Vec::new();
    let _ = soon("the end of the connection", stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn routers_network_and_listener_filters_come_by_ecds() {
    let origin = Origin::start("behind").unwrap();
    let files = Files(tempfile::tempdir().unwrap());
    let router = format!("{{ '@type': {ROUTER} }}");
    files.put("router", &router);
    files.put("middle", &router);
    files.put("tcp", &format!("{{ '@type': {TCP}, stat_prefix: tcp, cluster: a }}"));
    files.put("inner", &answering(&format!("{{ name: router, typed_config: {router} }}"), "inner"));
    files.put("inspector", &format!("{{ '@type': {TLS_INSPECTOR} }}"));
    files.write("empty", "resources: []\n");
    let in_place = format!("{{ name: router, typed_config: {router} }}");
    let plain = format!("{{ name: hcm, typed_config: {} }}", answering(&in_place, "plain"));
    let with = |filters: &str, text: &str| format!("{{ name: hcm, typed_config: {} }}", answering(filters, text));
    let inspected = |name: &str| format!(", listener_filters: [{}]", files.filter(name, TLS_INSPECTOR, ""));
    let default = format!(", default_config: {{ '@type': {FAULT} }}, apply_default_config_without_warming: true");
    let listeners = [
        listener("routed", &with(&files.filter("router", ROUTER, ""), "routed"), ""),
        listener("misplaced", &with(&format!("{}, {in_place}", files.filter("middle", ROUTER, "")), "misplaced"), ""),
        listener("spared", &with(&format!("{}, {in_place}", files.filter("empty", FAULT, &default)), "spared"), ""),
        listener("tcp", &files.filter("tcp", TCP, ""), ""),
        listener("http", &files.filter("inner", HCM, ""), ""),
        listener("closed", &files.filter("empty", TCP, ""), ""),
        listener("inspected", &plain, &inspected("inspector")),
        listener("uninspected", &plain, &inspected("empty")),
    ];
    let proxy = start(&listeners.concat(), &cluster("a", &[origin.address()], "")).await;
    for (name, expected) in [("routed", "routed"), ("spared", "spared"), ("http", "inner"), ("inspected", "plain")] {
        let text = answer(&proxy, name).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with(expected), "{name}: {text}");
    }
    assert!(answer(&proxy, "tcp").await.contains("behind"));
    assert!(answer(&proxy, "misplaced").await.starts_with("HTTP/1.1 500"));
    for (name, missing) in [("closed", "network_extension_config_missing"), ("uninspected", "extension_config_missing")]
    {
        assert_eq!(answer(&proxy, name).await, "", "{name}");
        assert_eq!(stat(&proxy, &format!("listener.{name}.{missing}")).await, 1);
    }
    at_least(&proxy, "tls_inspector.tls_not_found", 1).await;
    at_least(&proxy, "extension_config_discovery.network_filter.tcp.config_reload", 1).await;
    at_least(&proxy, "extension_config_discovery.tcp_listener_filter.inspector.config_reload", 1).await;
    at_least(&proxy, &format!("{STATS}.middle.config_fail"), 1).await;

    // the next connection has the next configuration
    files.put("inner", &answering(&in_place, "newer"));
    eventually("the newer manager", || async { answer(&proxy, "http").await.ends_with("newer") }).await;
}

#[tokio::test]
async fn the_access_log_says_that_a_filter_is_missing() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let files = Files(tempfile::tempdir().unwrap());
    files.write("empty", "resources: []\n");
    let filters =
        format!("{}, {{ name: router, typed_config: {{ '@type': {ROUTER} }} }}", files.filter("empty", FAULT, ""));
    let manager = answering(&filters, "front");
    let logged =
        format!("{}, {} }}", &manager[..manager.len() - 2], file_log(log.path(), "%RESPONSE_CODE% %RESPONSE_FLAGS%"));
    let proxy = start(&listener("front", &format!("{{ name: hcm, typed_config: {logged} }}"), ""), "").await;
    assert!(answer(&proxy, "front").await.starts_with("HTTP/1.1 500"));
    assert_eq!(log_lines(log.path(), 1).await, ["500 NFCF"]);
}
