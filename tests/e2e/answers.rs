//! What becomes of fields that nobody knows, that have no effect or that only runtime has: flags, stats and verdicts.

use std::net::SocketAddr;

use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::{CDS, ControlPlane};
use outrigger_tests::proxy::{Options, Proxy, run};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use xds_protos::pb::google::protobuf::Any;

use super::support::*;

/// Field 9999, a varint: no message has it.
const LATER: [u8; 4] = [0xf8, 0xf0, 0x04, 0x01];

/// A cluster of a newer API than ours.
fn cluster_of_later(name: &str) -> Any {
    let mut any = config::any(&config::static_cluster(name, &[dead_address()]));
    any.value.extend(LATER);
    any
}

async fn under(control_plane: &ControlPlane, flags: &[&str]) -> Proxy {
    let yaml = Bootstrap { node_id: "n1", ads: Some(control_plane.address()), ..Bootstrap::default() }.yaml();
    let options = flags.iter().fold(options(), |options: Options, flag| options.flag(*flag));
    Proxy::start_with(&yaml, options).await.unwrap_or_else(|e| panic!("{e}"))
}

#[tokio::test]
async fn unknown_fields_of_a_control_plane_are_counted_and_pass() {
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.set_any(CDS, "a", cluster_of_later("a"));
    let proxy = under(&control_plane, &[]).await;
    control_plane.wait_settled(CDS).await.unwrap();
    assert_eq!(control_plane.nacks(), vec![]);
    at_least(&proxy, "server.dynamic_unknown_fields", 1).await;
    assert_eq!(stat(&proxy, "server.static_unknown_fields").await, 0);
}

#[tokio::test]
async fn unknown_fields_of_a_control_plane_may_be_ignored() {
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.set_any(CDS, "a", cluster_of_later("a"));
    let proxy = under(&control_plane, &["--ignore-unknown-dynamic-fields"]).await;
    control_plane.wait_settled(CDS).await.unwrap();
    at_least(&proxy, "cluster_manager.cds.update_success", 1).await;
    assert_eq!((control_plane.nacks(), stat(&proxy, "server.dynamic_unknown_fields").await), (vec![], 0));
}

#[tokio::test]
async fn unknown_fields_of_a_control_plane_may_be_refused() {
    let control_plane = ControlPlane::tcp().unwrap();
    control_plane.set_any(CDS, "a", cluster_of_later("a"));
    let proxy = under(&control_plane, &["--reject-unknown-dynamic-fields"]).await;
    let refused = control_plane.wait_for("a NACK", |seen| {
        seen.request.error().is_some_and(|error| error.message.contains("has unknown fields"))
    });
    if let Err(e) = refused.await {
        panic!("{:?}\n{e}", control_plane.nacks());
    }
    at_least(&proxy, "cluster_manager.cds.update_rejected", 1).await;
}

/// A listener whose tcp_proxy is written as a `TypedStruct`.
fn typed_struct(field: &str) -> String {
    format!(
        "  - name: front
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/xds.type.v3.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          value: {{ stat_prefix: tcp, cluster: a, {field}: 1s }}
"
    )
}

fn validate(content: &[u8], suffix: &str, flags: &[&str]) -> (Option<i32>, String) {
    let file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let path = file.path().to_str().unwrap();
    let outcome = run(&[&["-c", path, "--mode", "validate", "--log-level", "warning"], flags].concat()).unwrap();
    (outcome.code, outcome.stdout + &outcome.stderr)
}

#[test]
fn an_unknown_field_inside_a_typed_struct_is_refused_like_any_other() {
    let yaml = |field| {
        let (listeners, clusters) = (typed_struct(field), cluster("a", &[dead_address()], ""));
        let bootstrap = Bootstrap { static_listeners: &listeners, static_clusters: &clusters, ..Bootstrap::default() };
        bootstrap.yaml().into_bytes()
    };
    let (code, said) = validate(&yaml("idle_timeout"), ".yaml", &[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = validate(&yaml("idle_timeot"), ".yaml", &[]);
    assert!(code == Some(1) && said.contains("idle_timeot") && said.contains("has unknown fields"), "{said}");
    assert!(is_envoy() || said.contains("did you mean \"idle_timeout\""), "{said}");
    let (code, said) = validate(&yaml("idle_timeot"), ".yaml", &["--allow-unknown-static-fields"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn an_unknown_field_of_a_binary_bootstrap_is_refused_unless_allowed() {
    use xds_protos::pb::envoy::config::bootstrap::v3::Bootstrap;
    let mut bytes = Bootstrap::default().encode_to_vec();
    assert_eq!(validate(&bytes, ".pb", &[]).0, Some(0));
    bytes.extend(LATER);
    let (code, said) = validate(&bytes, ".pb", &[]);
    assert!(code == Some(1) && said.contains("has unknown fields"), "{said}");
    assert_eq!(validate(&bytes, ".pb", &["--allow-unknown-static-fields"]).0, Some(0));
}

#[tokio::test]
async fn what_a_bootstrap_says_in_vain_is_counted() {
    let clusters = cluster("a", &[dead_address()], "outlier_detection: {}\nnobody_knows_this: 1");
    let yaml = Bootstrap { static_clusters: &clusters, ..Bootstrap::default() }.yaml();
    let options = options().flag("--allow-unknown-static-fields");
    let proxy = Proxy::start_with(&yaml, options).await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(stat(&proxy, "server.static_unknown_fields").await, 1);
    if !is_envoy() {
        assert_eq!(stat(&proxy, "outrigger.config.fields_warned").await, 1);
        let ledger = proxy.admin("/ledger").await.unwrap().text();
        assert!(ledger.contains("outlier_detection: "), "{ledger}");
    }
}

#[tokio::test]
async fn every_cluster_of_many_is_named_with_what_it_says_in_vain() {
    if is_envoy() {
        return;
    }
    let clusters: String =
        (0..80).map(|n| cluster(&format!("c{n}"), &[dead_address()], "outlier_detection: {}")).collect();
    let yaml = Bootstrap { static_clusters: &clusters, ..Bootstrap::default() }.yaml();
    let (code, said) = validate(yaml.as_bytes(), ".yaml", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!((0..80).all(|n| said.contains(&format!("cluster 'c{n}': "))), "{said}");
}

async fn ends(client: &mut TcpStream) {
    let mut rest = Vec::new();
    // closed, or reset
    let _ = soon("the connection to end", client.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}

/// Starts a proxy with a static runtime value and a listener that answers by itself.
async fn with_runtime(key: &str, value: u32) -> (Proxy, SocketAddr) {
    let front = Front { routes: "{ match: { prefix: / }, direct_response: { status: 200 } }", ..Front::default() };
    let runtime = format!("layered_runtime: {{ layers: [{{ name: fixed, static_layer: {{ '{key}': {value} }} }}] }}\n");
    let yaml = runtime + &Bootstrap { static_listeners: &front.yaml(), ..Bootstrap::default() }.yaml();
    let proxy = start_yaml(&yaml).await;
    let front = address(&proxy, "front").await;
    (proxy, front)
}

async fn one_connection_at_a_time(key: &str, counter: &str) {
    let (proxy, front) = with_runtime(key, 1).await;
    let mut first = Client::plain(front, false).await;
    assert_eq!(first.get("a", "/").await.status, 200);
    ends(&mut TcpStream::connect(front).await.unwrap()).await;
    at_least(&proxy, &format!("listener.front.{counter}"), 1).await;
    drop(first);
    eventually("a place for another", || async {
        let mut next = Client::plain(front, false).await;
        next.try_send(ask(http::Method::GET, "a", "/", &[])).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_listener_takes_as_many_connections_as_runtime_allows() {
    let key = "envoy.resource_limits.listener.front.connection_limit";
    one_connection_at_a_time(key, "downstream_cx_overflow").await;
}

#[tokio::test]
async fn the_process_takes_as_many_connections_as_runtime_allows() {
    if is_envoy() {
        // there, the admin interface has its share of them
        return;
    }
    one_connection_at_a_time("overload.global_downstream_max_connections", "downstream_global_cx_overflow").await;
}

#[test]
fn a_runtime_key_without_effect_is_named() {
    if is_envoy() {
        return;
    }
    let of = |layer: &str| format!("layered_runtime: {{ layers: [{{ name: fixed, static_layer: {layer} }}] }}");
    let (code, said) = validate(of("{ upstream.use_retry: 0, canry: 5 }").as_bytes(), ".yaml", &[]);
    assert!(code == Some(0) && said.contains("upstream.use_retry: ") && said.contains(": canry"), "{said}");
    let (code, said) = validate(of("{ ratelimit.http_filter_enabled: 100 }").as_bytes(), ".yaml", &[]);
    assert!(code == Some(1) && said.contains("ratelimit.http_filter_enabled: is not supported"), "{said}");
}

#[test]
fn what_guards_is_refused_and_not_only_named() {
    if is_envoy() {
        return;
    }
    let listener = |fields: &str| {
        format!(
            "static_resources: {{ listeners: [{{ name: l, address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}, \
             filter_chains: [{{ filters: [] }}], {fields} }}] }}"
        )
    };
    let device = listener("socket_options: [{ level: 1, name: 25, buf_value: ZXRoMA== }]");
    let (code, said) = validate(device.as_bytes(), ".yaml", &[]);
    assert!(code == Some(1) && said.contains("SO_BINDTODEVICE"), "{said}");
    let named = validate(listener("socket_options: [{ level: 1, name: 9, int_value: 1 }]").as_bytes(), ".yaml", &[]);
    assert!(named.0 == Some(0) && named.1.contains("raw socket options are not set"), "{named:?}");
    let local = "cluster_manager: { local_cluster_name: nope }";
    let (code, said) = validate(local.as_bytes(), ".yaml", &[]);
    assert!(code == Some(1) && said.contains("local cluster 'nope' must be defined"), "{said}");
}
