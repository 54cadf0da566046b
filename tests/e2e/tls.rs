//! Who is let in, who is trusted, and what certificate is shown.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use certs::{Authority, BUNDLE, IDENTITY, SdsServer, Svid};
use outrigger_tests::client::{ClientTls, Target, get, server_identities};
use outrigger_tests::config::{Bootstrap, SDS_CLUSTER};
use outrigger_tests::load::Load;
use outrigger_tests::origin::{Origin, tls_server};
use outrigger_tests::proxy::Proxy;
use tokio::io::AsyncReadExt;

use super::support::*;

/// A transport socket whose secrets come from the SDS server; `wait` is `initial_fetch_timeout`.
fn from_sds(direction: &str, peers: &str, wait: &str) -> String {
    let source = format!(
        "sds_config: {{ initial_fetch_timeout: {wait}, resource_api_version: V3, api_config_source: {{ api_type: GRPC, \
         transport_api_version: V3, set_node_on_first_message_only: true, \
         grpc_services: [{{ envoy_grpc: {{ cluster_name: {SDS_CLUSTER} }} }}] }} }}"
    );
    let (strict, alpn) = match direction {
        "Downstream" => ("require_client_certificate: true, ", ", alpn_protocols: [h2, http/1.1]"),
        _ => ("", ""),
    };
    format!(
        "{{ name: envoy.transport_sockets.tls, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{direction}TlsContext, {strict}\
         common_tls_context: {{ tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}, \
         tls_certificate_sds_secret_configs: [{{ name: {IDENTITY}, {source} }}]{alpn}, \
         combined_validation_context: {{ validation_context_sds_secret_config: {{ name: {BUNDLE}, {source} }}, \
         default_validation_context: {{ match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ {peers} }} }}] }} }} }} }} }}"
    )
}

struct Sds {
    server: SdsServer,
    _dir: tempfile::TempDir,
}

impl Sds {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { server: SdsServer::bind(dir.path().join("sds.sock"), 0o600).unwrap(), _dir: dir }
    }

    fn path(&self) -> PathBuf {
        self.server.path().to_owned()
    }

    fn give(&self, keys: &Keys) {
        self.server.set(IDENTITY, keys.server.clone());
        self.server.set(BUNDLE, certs::Secret::Bundle(keys.authority.bundle_pem().to_owned()));
    }
}

fn strict_yaml(sds: &Sds, origin: &Origin, wait: &str) -> String {
    let transport = from_sds("Downstream", "prefix: 'spiffe://cluster.local/'", wait);
    let front = Front { routes: &all_to("a"), transport: &transport, ..Front::default() };
    let (listeners, clusters) = (front.yaml(), cluster("a", &[origin.address()], ""));
    let path = sds.path();
    let bootstrap = Bootstrap {
        static_listeners: &listeners,
        static_clusters: &clusters,
        sds: Some(&path),
        ..Bootstrap::default()
    };
    bootstrap.yaml()
}

/// Whether a client with this identity gets an answer.
async fn admitted(address: std::net::SocketAddr, identity: Option<&Svid>) -> bool {
    let tls = ClientTls::new("server.test", &["http/1.1"], identity, None).unwrap();
    match Client::try_connect(&Target::tls(address, tls), false).await {
        // With TLS 1.3 a refusal comes after the handshake.
        Ok(mut client) => client.try_send(get("a", "/")).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn strict_lets_in_who_proves_an_identity_of_the_mesh() {
    let (keys, sds, origin) = (Keys::new(), Sds::start(), Origin::start("v1").unwrap());
    sds.give(&keys);
    let proxy = start_yaml(&strict_yaml(&sds, &origin, "0s")).await;
    let front = address(&proxy, "front").await;
    for http2 in [false, true] {
        let alpn = if http2 { "h2" } else { "http/1.1" };
        let mut client = Client::connect(&Target::tls(front, keys.client_tls(&[alpn])), http2).await;
        assert_eq!(client.get("a", "/").await.origin_version(), "v1");
    }
    assert_eq!(server_identities(front, &keys.client_tls(&["h2"])).await.unwrap(), [SERVER_ID]);
    let served = origin.requests();

    let stranger = Authority::new("cluster.local").unwrap();
    let forged = stranger.issue(&CLIENT_ID.parse().unwrap(), HOUR, &[]).unwrap();
    let nobody = keys.authority.issue_for_hosts(&["client.test"], &[], HOUR).unwrap();
    let expired = keys.authority.issue(&CLIENT_ID.parse().unwrap(), Duration::from_secs(1), &[]).unwrap();
    while SystemTime::now() <= expired.not_after + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (who, identity) in [
        ("no certificate", None),
        ("another CA", Some(&forged)),
        ("no SPIFFE ID", Some(&nobody)),
        ("expired", Some(&expired)),
    ] {
        assert!(!admitted(front, identity).await, "{who} was let in");
    }
    assert!(admitted(front, Some(&keys.client)).await);
    assert!(!raw(front, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.contains("HTTP/1.1"), "plain text was answered");
    assert_eq!(origin.requests(), served + 1);
    for (name, least) in
        [("fail_verify_no_cert", 1), ("fail_verify_error", 2), ("fail_verify_san", 1), ("handshake", 3)]
    {
        at_least(&proxy, &format!("listener.front.ssl.{name}"), least).await;
    }
}

#[tokio::test]
async fn an_upstream_must_prove_the_identity_the_cluster_names() {
    let (keys, sds) = (Keys::new(), Sds::start());
    sds.give(&keys);
    let origin =
        Origin::start_tls("secure", tls_server(&keys.server, Some(keys.authority.bundle_pem())).unwrap()).unwrap();
    let stranger = Authority::new("cluster.local").unwrap();
    let forged = stranger.issue(&SERVER_ID.parse().unwrap(), HOUR, &[]).unwrap();
    let liar = Origin::start_tls("liar", tls_server(&forged, None).unwrap()).unwrap();
    let plain = Origin::start("plain").unwrap();
    let socket = |id: &str| format!("transport_socket: {}", from_sds("Upstream", &format!("exact: '{id}'"), "0s"));
    let clusters = cluster("right", &[origin.address()], &socket(SERVER_ID))
        + &cluster("wrong", &[origin.address()], &socket("spiffe://cluster.local/ns/default/sa/other"))
        + &cluster("liar", &[liar.address()], &socket(SERVER_ID))
        + &cluster("plain", &[plain.address()], &socket(SERVER_ID));
    let routes: Vec<String> = ["right", "wrong", "liar", "plain"]
        .map(|name| format!("{{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}"))
        .into();
    let front = Front { routes: &routes.join(", "), ..Front::default() }.yaml();
    let path = sds.path();
    let bootstrap =
        Bootstrap { static_listeners: &front, static_clusters: &clusters, sds: Some(&path), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let mut client = Client::plain(address(&proxy, "front").await, false).await;
    assert_eq!(client.get("a", "/right").await.origin_version(), "secure");
    for name in ["wrong", "liar", "plain"] {
        let reply = client.get("a", &format!("/{name}")).await;
        assert_eq!(reply.status, 503, "{name}");
        assert!(reply.text().contains("reset reason: remote connection failure"), "{}", reply.text());
    }
    assert_eq!((origin.requests(), liar.requests(), plain.requests()), (1, 0, 0));
    assert_eq!(stat(&proxy, "cluster.wrong.ssl.fail_verify_san").await, 1);
    assert_eq!(stat(&proxy, "cluster.liar.ssl.fail_verify_error").await, 1);
    at_least(&proxy, "cluster.plain.ssl.connection_error", 1).await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_only() {
    let (keys, sds, origin) = (Keys::new(), Sds::start(), Origin::start("v1").unwrap());
    sds.give(&keys);
    let proxy = start_yaml(&strict_yaml(&sds, &origin, "0s")).await;
    let front = address(&proxy, "front").await;
    let mut old = Client::connect(&Target::tls(front, keys.client_tls(&["h2"])), true).await;
    assert_eq!(old.get("a", "/").await.status, 200);
    let load = Load::new(Target::tls(front, keys.client_tls(&["http/1.1"])), 100.0, 2).start();
    let next = "spiffe://cluster.local/ns/default/sa/rotated";
    sds.server.set(IDENTITY, keys.authority.issue(&next.parse().unwrap(), HOUR, &[]).unwrap());
    eventually("the new certificate", || async {
        server_identities(front, &keys.client_tls(&["h2"])).await.unwrap() == [next]
    })
    .await;
    assert!(old.is_open() && old.get("a", "/").await.status == 200);
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{:?}", report.outcomes());

    // A new trust bundle: the old client is a stranger now.
    let other = Keys::new();
    sds.server.set(BUNDLE, certs::Secret::Bundle(other.authority.bundle_pem().to_owned()));
    eventually("the new bundle", || async { admitted(front, Some(&other.client)).await }).await;
    assert!(!admitted(front, Some(&keys.client)).await);
}

#[tokio::test]
async fn a_secret_that_is_bad_or_taken_away_leaves_the_one_before_it() {
    let (keys, sds, origin) = (Keys::new(), Sds::start(), Origin::start("v1").unwrap());
    sds.give(&keys);
    let proxy = start_yaml(&strict_yaml(&sds, &origin, "0s")).await;
    let front = address(&proxy, "front").await;
    let mut open = Client::connect(&Target::tls(front, keys.client_tls(&["h2"])), true).await;
    assert_eq!(open.get("a", "/").await.status, 200);
    let rejected = format!("sds.{IDENTITY}.update_rejected");
    assert_eq!(stat(&proxy, &rejected).await, 0);
    let gauge = format!("listener.front.ssl.certificate.{IDENTITY}.expiration_unix_time_seconds");
    let expires = keys.server.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(u64::try_from(stat(&proxy, &gauge).await).unwrap(), expires);

    sds.server.remove(IDENTITY);
    if !is_envoy() {
        // Envoy takes a certificate that nobody will accept.
        let expired = keys.authority.issue(&SERVER_ID.parse().unwrap(), Duration::from_secs(1), &[]).unwrap();
        while SystemTime::now() <= expired.not_after + Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        sds.server.set(IDENTITY, expired);
        at_least(&proxy, &rejected, 1).await;
        assert!(sds.server.nacks().iter().any(|nack| format!("{nack:?}").contains("has expired")));
    }
    assert!(open.is_open() && open.get("a", "/").await.status == 200);
    assert_eq!(server_identities(front, &keys.client_tls(&["h2"])).await.unwrap(), [SERVER_ID]);
    assert!(admitted(front, Some(&keys.client)).await);
}

#[tokio::test]
async fn a_listener_waits_for_its_secrets() {
    let (keys, sds, origin) = (Keys::new(), Sds::start(), Origin::start("v1").unwrap());
    let mut proxy = Proxy::launch(&strict_yaml(&sds, &origin, "0s"), options()).await.unwrap();
    for _ in 0..20 {
        assert_eq!(proxy.admin("/ready").await.unwrap().status, 503);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sds.server.set(IDENTITY, keys.server.clone());
    for _ in 0..20 {
        assert_eq!(proxy.admin("/ready").await.unwrap().status, 503, "without a trust bundle");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sds.give(&keys);
    proxy.wait_ready().await.unwrap();
    let front = address(&proxy, "front").await;
    assert!(admitted(front, Some(&keys.client)).await && !admitted(front, None).await);
}

#[tokio::test]
async fn a_listener_without_secrets_refuses() {
    let (keys, sds, origin) = (Keys::new(), Sds::start(), Origin::start("v1").unwrap());
    // The wait for secrets has an end here: the listener opens, and must still let nobody through.
    let proxy = start_yaml(&strict_yaml(&sds, &origin, "0.2s")).await;
    let front = address(&proxy, "front").await;
    assert!(!admitted(front, Some(&keys.client)).await && !admitted(front, None).await);
    assert!(!raw(front, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.contains("HTTP/1.1"));
    at_least(&proxy, "listener.front.server_ssl_socket_factory.downstream_context_secrets_not_ready", 3).await;
    assert_eq!(origin.requests(), 0);
    sds.give(&keys);
    eventually("the secrets to arrive", || async { admitted(front, Some(&keys.client)).await }).await;
    assert!(!admitted(front, None).await);
}

#[tokio::test]
async fn a_cluster_without_secrets_refuses() {
    let (keys, sds) = (Keys::new(), Sds::start());
    let origin = Origin::start_tls("secure", tls_server(&keys.server, None).unwrap()).unwrap();
    let plain = Origin::start("plain").unwrap();
    let socket = format!("transport_socket: {}", from_sds("Upstream", &format!("exact: '{SERVER_ID}'"), "0.2s"));
    let clusters = cluster("a", &[origin.address()], &socket) + &cluster("plain", &[plain.address()], &socket);
    let routes = format!("{{ match: {{ prefix: /plain }}, route: {{ cluster: plain }} }}, {}", all_to("a"));
    let front = Front { routes: &routes, ..Front::default() }.yaml();
    let path = sds.path();
    let bootstrap =
        Bootstrap { static_listeners: &front, static_clusters: &clusters, sds: Some(&path), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let mut client = Client::plain(address(&proxy, "front").await, false).await;
    assert_eq!(client.get("a", "/").await.status, 503);
    assert_eq!(client.get("a", "/plain").await.status, 503);
    assert_eq!((origin.requests(), plain.requests()), (0, 0));
    at_least(&proxy, "cluster.a.client_ssl_socket_factory.upstream_context_secrets_not_ready", 1).await;
    sds.give(&keys);
    eventually("the secrets to arrive", || async {
        Client::plain(address(&proxy, "front").await, false).await.get("a", "/").await.status == 200
    })
    .await;
}

/// A filter chain that answers with its name.
fn chain(name: &str, matcher: &str, transport: &str) -> String {
    let transport = if transport.is_empty() { String::new() } else { format!("transport_socket: {transport}, ") };
    format!(
        "    - {{ name: {name}, filter_chain_match: {{ {matcher} }}, {transport}filters: [{{ name: hcm, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: {name}, http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}], \
         route_config: {{ virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, \
         direct_response: {{ status: 200, body: {{ inline_string: {name} }} }} }}] }}] }} }} }}] }}\n"
    )
}

fn chains(chains: &[String]) -> String {
    format!(
        "  - name: front
    stat_prefix: front
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    listener_filters:
    - {{ name: tls_inspector, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }} }}
    - {{ name: http_inspector, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector }} }}
    filter_chains:
{}",
        chains.concat()
    )
}

#[tokio::test]
async fn a_filter_chain_is_found_by_name_transport_and_protocol() {
    let keys = Keys::new();
    let tls = keys.downstream(false, "");
    let yaml = chains(&[
        chain("exact", "server_names: [a.example.com]", &tls),
        chain("wild", "server_names: ['*.example.com']", &tls),
        chain("istio", "transport_protocol: tls, application_protocols: [istio]", &tls),
        chain("tls", "transport_protocol: tls", &tls),
        chain("http2", "application_protocols: [h2c], transport_protocol: raw_buffer", ""),
        chain("http1", "application_protocols: [http/1.1], transport_protocol: raw_buffer", ""),
    ]);
    let proxy = start(&yaml, "").await;
    let front = address(&proxy, "front").await;
    for (sni, alpn, expected) in [
        ("a.example.com", "h2", "exact"),
        ("A.example.com", "h2", "exact"),
        ("b.example.com", "http/1.1", "wild"),
        ("x.b.example.com", "h2", "wild"),
        ("example.com", "h2", "tls"),
        ("127.0.0.1", "h2", "tls"),
    ] {
        let target = Target::tls(front, ClientTls::new(sni, &[alpn], None, None).unwrap());
        assert_eq!(Client::connect(&target, alpn == "h2").await.get("a", "/").await.text(), expected, "{sni}");
    }
    let target = Target::tls(front, ClientTls::new("other.test", &["istio", "h2"], None, None).unwrap());
    assert_eq!(Client::connect(&target, true).await.get("a", "/").await.text(), "istio");
    assert_eq!(Client::plain(front, false).await.get("a", "/").await.text(), "http1");
    assert_eq!(Client::plain(front, true).await.get("a", "/").await.text(), "http2");

    let mut stream = tokio::net::TcpStream::connect(front).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x00\x01neither TLS nor HTTP\r\n").await.unwrap();
    let _ = soon("the proxy to close", stream.read_u8()).await.unwrap_err();
    at_least(&proxy, "listener.front.no_filter_chain_match", 1).await;
}

#[tokio::test]
async fn the_protocol_is_agreed_on() {
    let keys = Keys::new();
    let bed = Bed::start(
        Front { routes: "{ match: { prefix: / }, direct_response: { status: 200 } }", ..Front::default() },
        "",
    )
    .await;
    for (alpn, http2) in
        [(&["h2", "http/1.1"][..], true), (&["http/1.1"], false), (&[], false), (&["http/1.1", "h2"], true)]
    {
        let target = Target::tls(bed.mtls, bed.keys.client_tls(alpn));
        assert_eq!(Client::connect(&target, http2).await.get("a", "/").await.status, 200, "{alpn:?}");
    }
    drop(keys);
    let text = bed.proxy.admin("/stats?filter=listener.front-mtls.ssl").await.unwrap().text();
    assert!(text.contains("ssl.versions.TLSv1.3: 4") && text.contains("ssl.handshake: 4"), "{text}");
}

#[tokio::test]
async fn two_proxies_speak_mutual_tls_and_pass_the_identity_on() {
    let origin = Origin::start("v1").unwrap();
    let manager = "forward_client_cert_details: SANITIZE_SET\nset_current_client_cert_details: { uri: true }";
    let inbound =
        Bed::start(Front { routes: &all_to("a"), manager, ..Front::default() }, &cluster("a", &[origin.address()], ""))
            .await;
    let peers = format!("match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: '{SERVER_ID}' }} }}]");
    for http2 in [false, true] {
        let fields = inbound.keys.upstream(&peers) + if http2 { HTTP2 } else { "" };
        let outbound =
            Bed::start(Front { routes: &all_to("far"), ..Front::default() }, &cluster("far", &[inbound.mtls], &fields))
                .await;
        for way in PLAIN {
            let reply = outbound.client(way).await.get("a", "/").await;
            let xfcc = seen(&reply, "x-forwarded-client-cert");
            assert!(xfcc.as_str().unwrap().ends_with(&format!(";URI={CLIENT_ID}")), "{xfcc}");
        }
    }
}
