//! How control planes are reached: by whichever protocol, name and credentials the source says, and no longer than needed.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_tests::config;
use outrigger_tests::control_plane::{CDS, ControlPlane};
use outrigger_tests::origin::tls_server;
use outrigger_tests::proxy::Proxy;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use xds_protos::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use xds_protos::pb::envoy::config::core::v3::{ConfigSource, PathConfigSource};

use super::support::*;
use super::xds::bootstrap;

/// A TLS server that shows the heads of requests and has nothing to say.
async fn listener_of_heads(keys: &Keys) -> (SocketAddr, mpsc::UnboundedReceiver<http::request::Parts>) {
    let svid = keys.authority.issue(&SERVER_ID.parse().unwrap(), HOUR, &["server.test", "localhost"]).unwrap();
    let acceptor = TlsAcceptor::from(tls_server(&svid, None).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(io).await else { return };
                let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(move |request: Request<Incoming>| {
                    let seen = seen.clone();
                    async move {
                        _ = seen.send(request.into_parts().0);
                        let response = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
                        response.body(Empty::<Bytes>::new())
                    }
                });
                _ = match http2 {
                    true => {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(TokioIo::new(tls), service).await
                    }
                    false => {
                        let server = hyper::server::conn::http1::Builder::new();
                        server.serve_connection(TokioIo::new(tls), service).await
                    }
                };
            });
        }
    });
    (address, heads)
}

/// A bootstrap whose clusters come from this source.
fn clusters_from(api: &str, clusters: &str) -> String {
    format!(
        "node: {{ id: n1, cluster: c }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
dynamic_resources:
  cds_config: {{ resource_api_version: V3, initial_fetch_timeout: 0.1s, api_config_source: {{ transport_api_version: V3, {api} }} }}
static_resources:
  clusters:
{clusters}"
    )
}

#[tokio::test]
async fn a_stream_says_the_authority_and_the_metadata_of_its_source() {
    let keys = Keys::new();
    let (server, mut heads) = listener_of_heads(&keys).await;
    let api = "api_type: DELTA_GRPC, grpc_services: [{ \
               envoy_grpc: { cluster_name: xds, authority: 'xds.example.com' }, \
               initial_metadata: [{ key: x-tenant, value: '100%% blue' }] }]";
    let cluster = cluster("xds", &[server], &format!("{}{HTTP2}", keys.upstream("")));
    let _proxy = start_yaml(&clusters_from(api, &cluster)).await;
    let head = soon("a stream", heads.recv()).await.unwrap();
    assert_eq!(head.version, Version::HTTP_2);
    assert_eq!(head.uri.authority().unwrap(), "xds.example.com");
    assert_eq!(head.uri.path(), "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters");
    assert_eq!(head.headers["x-tenant"], "100% blue");
    if !is_envoy() {
        assert_eq!(head.uri.scheme_str(), Some("https"));
    }
}

#[tokio::test]
async fn rest_over_tls_speaks_what_the_cluster_speaks() {
    let keys = Keys::new();
    for (options, version, count) in [("", Version::HTTP_11, "http1"), (HTTP2, Version::HTTP_2, "http2")] {
        let (server, mut heads) = listener_of_heads(&keys).await;
        let api = "api_type: REST, cluster_names: [xds], refresh_delay: 0.05s";
        let cluster = cluster("xds", &[server], &format!("{}{options}", keys.upstream("")));
        let proxy = start_yaml(&clusters_from(api, &cluster)).await;
        let head = soon("a poll", heads.recv()).await.unwrap();
        assert_eq!((head.version, head.uri.path()), (version, "/v3/discovery:clusters"));
        at_least(&proxy, &format!("cluster.xds.upstream_cx_{count}_total"), 1).await;
    }
}

#[tokio::test]
async fn a_google_grpc_target_is_reached_over_tls_and_must_be_who_it_says() {
    if is_envoy() {
        return;
    }
    let (keys, others) = (Keys::new(), Keys::new());
    let (server, mut heads) = listener_of_heads(&keys).await;
    let api = |host: &str, roots: &Path| {
        format!(
            "api_type: GRPC, grpc_services: [{{ google_grpc: {{ stat_prefix: xds, target_uri: 'dns:///{host}:{}', \
             channel_credentials: {{ ssl_credentials: {{ root_certs: {{ filename: '{}/bundle.pem' }} }} }} }} }}]",
            server.port(),
            roots.display()
        )
    };
    // Neither another authority nor a certificate for another name will do.
    for wrong in [api("localhost", others.dir()), api("127.0.0.1", keys.dir())] {
        let proxy = start_yaml(&clusters_from(&wrong, "")).await;
        at_least(&proxy, "cluster_manager.cds.update_failure", 1).await;
    }
    assert!(heads.try_recv().is_err(), "a server that is not the right one was spoken to");
    let _proxy = start_yaml(&clusters_from(&api("localhost", keys.dir()), "")).await;
    let head = soon("a stream", heads.recv()).await.unwrap();
    assert_eq!((head.version, head.uri.scheme_str()), (Version::HTTP_2, Some("https")));
    assert_eq!(head.uri.authority().unwrap().as_str(), format!("localhost:{}", server.port()));
}

/// Files that a process waits for.
fn watches(proxy: &Proxy) -> usize {
    let open = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
    let targets = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("inotify")).count()
}

#[tokio::test]
async fn a_source_that_nothing_comes_from_any_more_is_left() {
    if is_envoy() {
        return;
    }
    let control_plane = ControlPlane::tcp().unwrap();
    let files = tempfile::tempdir().unwrap();
    let proxy = start_yaml(&bootstrap(&control_plane, false)).await;
    control_plane.wait_settled(CDS).await.unwrap();
    let before = watches(&proxy);
    for turn in 0..5 {
        let name = format!("c{turn}");
        let path = files.path().join(format!("{name}.yaml"));
        std::fs::write(&path, "resources: []\n").unwrap();
        let mut cluster = config::eds_cluster(&name);
        let source = PathConfigSource { path: path.display().to_string(), ..PathConfigSource::default() };
        cluster.eds_cluster_config.as_mut().unwrap().eds_config = Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(source)),
            ..ConfigSource::default()
        });
        control_plane.set(&name, &cluster);
        eventually("the watch", || async { watches(&proxy) == before + 1 }).await;
        control_plane.remove(CDS, &name);
        eventually("the end of the watch", || async { watches(&proxy) == before }).await;
    }
    assert_eq!((control_plane.nacks(), control_plane.violations()), (vec![], vec![]));
}

#[tokio::test]
async fn a_stream_of_its_own_counts_its_rate_limit() {
    let keys = Keys::new();
    let (server, mut heads) = listener_of_heads(&keys).await;
    let api = "api_type: GRPC, rate_limit_settings: { max_tokens: 1, fill_rate: 0.001 }, \
               grpc_services: [{ envoy_grpc: { cluster_name: xds } }]";
    let cluster = cluster("xds", &[server], &format!("{}{HTTP2}", keys.upstream("")));
    let proxy = start_yaml(&clusters_from(api, &cluster)).await;
    // The server ends each stream; there is one request for all of them.
    for _ in 0..2 {
        soon("a stream", heads.recv()).await.unwrap();
    }
    if !is_envoy() {
        at_least(&proxy, "cluster_manager.cds.control_plane.rate_limit_enforced", 1).await;
    }
}
