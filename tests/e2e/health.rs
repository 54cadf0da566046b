//! Active health checks: what endpoints are asked, and what becomes of their answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_tests::config::{self, Bootstrap};
use outrigger_tests::control_plane::{ControlPlane, EDS};
use outrigger_tests::origin::{Behaviour, Origin, TcpBehaviour, TcpOrigin, tls_server};
use outrigger_tests::proxy::{Proxy, run};
use tokio::sync::watch;
use xds_protos::pb::envoy::config::cluster::v3::Cluster;
use xds_protos::pb::envoy::config::core::v3::HealthCheck;
use xds_protos::pb::envoy::config::core::v3::health_check::{HealthChecker, HttpHealthCheck};
use xds_protos::pb::google::protobuf::{Duration, UInt32Value};

use super::support::*;

/// An origin whose health is set by the test. Checks are what asks for `/health` or by gRPC.
struct Patient {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// Answers wait while this is true.
    held: watch::Sender<bool>,
    status: AtomicU16,
    /// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
    serving: AtomicU16,
    /// Name of a header that answers to checks carry, and to others.
    header: Mutex<[&'static str; 2]>,
    checks: Mutex<Vec<Check>>,
    requests: AtomicU64,
}

#[derive(Clone)]
struct Check {
    method: Method,
    uri: http::Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Patient {
    async fn start(http2: bool) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            held: watch::Sender::new(false),
            status: AtomicU16::new(200),
            serving: AtomicU16::new(1),
            header: Mutex::new(["x-none", "x-none"]),
            checks: Mutex::default(),
            requests: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| answer(Arc::clone(&state), request));
                tokio::spawn(async move {
                    let io = TokioIo::new(stream);
                    if http2 {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        drop(server.serve_connection(io, service).await);
                    } else {
                        drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                    }
                });
            }
        });
        Self { address, state }
    }

    fn set(&self, status: u16) {
        self.state.status.store(status, Ordering::Relaxed);
    }

    fn hold(&self, held: bool) {
        self.state.held.send_replace(held);
    }

    fn checks(&self) -> Vec<Check> {
        self.state.checks.lock().unwrap().clone()
    }

    fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    async fn checked(&self, times: usize) {
        eventually("a health check", || async { self.checks().len() >= times }).await;
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let is_grpc = parts.uri.path() == "/grpc.health.v1.Health/Check";
    let is_check = is_grpc || parts.uri.path() == "/health";
    let mut response = Response::new(full("hello, all is well"));
    if is_check {
        let check = Check { method: parts.method, uri: parts.uri, headers: parts.headers, body };
        state.checks.lock().unwrap().push(check);
        let _ = state.held.subscribe().wait_for(|held| !held).await;
        *response.status_mut() = state.status.load(Ordering::Relaxed).try_into().unwrap();
    } else {
        state.requests.fetch_add(1, Ordering::Relaxed);
    }
    if is_grpc {
        let message = [8, state.serving.load(Ordering::Relaxed) as u8];
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let frames = [Ok(Frame::data(grpc_frame(&message))), Ok(Frame::trailers(trailers))];
        response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
        response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    }
    let header = state.header.lock().unwrap()[usize::from(!is_check)];
    response.headers_mut().insert(header, "true".parse().unwrap());
    Ok(response)
}

/// A health check as a cluster's field. Everything is quick but what the tests of thresholds wait for.
fn checks(kind: &str) -> String {
    paced("0.05s", kind)
}

fn paced(pace: &str, kind: &str) -> String {
    format!(
        "health_checks: [{{ timeout: 20s, interval: {pace}, no_traffic_interval: {pace}, unhealthy_threshold: 2, \
         healthy_threshold: 2, {kind} }}]\n"
    )
}

const HTTP: &str = "http_health_check: { path: /health }";

async fn bed(clusters: &str) -> Bed {
    Bed::start(Front { routes: &all_to("a"), ..Front::default() }, clusters).await
}

async fn healthy(proxy: &Proxy, hosts: i64) {
    proxy.wait_stat("cluster.a.membership_healthy", |v| v == hosts).await.unwrap();
}

async fn flags(proxy: &Proxy, host: SocketAddr) -> String {
    let page = proxy.admin("/clusters").await.unwrap().text();
    let start = format!("a::{host}::health_flags::");
    page.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_default().to_owned()
}

async fn wait_flags(proxy: &Proxy, host: SocketAddr, want: &str) {
    eventually(&format!("flags {want}"), || async { flags(proxy, host).await == want }).await;
}

/// Sends requests, all of which succeed, until an endpoint got so many.
async fn reaches(client: &mut Client, origin: &Patient, requests: u64) {
    let mut deadline = 10_000;
    while origin.requests() < requests {
        assert_eq!(client.get("a", "/").await.status, 200);
        deadline -= 1;
        assert!(deadline > 0, "no request reaches the endpoint");
    }
}

#[tokio::test]
async fn a_cluster_is_not_warm_before_its_first_check() {
    let origin = Patient::start(false).await;
    origin.hold(true);
    let listener = Front { routes: &all_to("a"), ..Front::default() }.yaml();
    let clusters = cluster("a", &[origin.address], &checks(HTTP));
    let yaml = Bootstrap { static_listeners: &listener, static_clusters: &clusters, ..Bootstrap::default() }.yaml();
    let mut proxy = Proxy::launch(&yaml, options()).await.unwrap();
    origin.checked(1).await;
    assert_eq!(proxy.admin("/ready").await.unwrap().status, 503);
    origin.hold(false);
    proxy.wait_ready().await.unwrap();
    let mut client = Client::plain(address(&proxy, "front").await, false).await;
    assert_eq!(client.get("a", "/").await.status, 200);
    assert_eq!(flags(&proxy, origin.address).await, "healthy");
}

#[tokio::test]
async fn a_first_check_that_fails_ends_the_warming_too() {
    let bed = bed(&(cluster("a", &[dead_address()], &checks(HTTP)))).await;
    assert_eq!(stat(&bed.proxy, "cluster.a.membership_healthy").await, 0);
    at_least(&bed.proxy, "cluster.a.health_check.network_failure", 1).await;
}

#[tokio::test]
async fn a_failing_endpoint_leaves_and_comes_back() {
    let (well, ill) = (Patient::start(false).await, Patient::start(false).await);
    let bed = bed(&cluster("a", &[well.address, ill.address], &checks(HTTP))).await;
    healthy(&bed.proxy, 2).await;
    ill.set(503);
    healthy(&bed.proxy, 1).await;
    assert_eq!(flags(&bed.proxy, ill.address).await, "/failed_active_hc");
    let page = bed.proxy.admin("/clusters?format=json").await.unwrap().json();
    let hosts = page["cluster_statuses"][0]["host_statuses"].as_array().unwrap().clone();
    let failed = hosts.iter().filter(|h| h["health_status"]["failed_active_health_check"] == true).count();
    assert_eq!(failed, 1);
    let before = ill.requests();
    let mut client = bed.client(WAYS[0]).await;
    for _ in 0..10 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    assert_eq!((ill.requests() - before, well.requests()), (0, 10));
    assert_eq!(stat(&bed.proxy, "cluster.a.health_check.healthy").await, 1);
    ill.set(200);
    reaches(&mut client, &ill, before + 1).await;
    healthy(&bed.proxy, 2).await;
    assert_eq!(stat(&bed.proxy, "cluster.a.health_check.network_failure").await, 0);
    at_least(&bed.proxy, "cluster.a.health_check.failure", 1).await;
}

#[tokio::test]
async fn endpoints_by_name_are_checked_too() {
    let origin = Patient::start(false).await;
    let fields = format!("type: STRICT_DNS\ndns_lookup_family: V4_ONLY\n{}", checks(HTTP));
    let bed = bed(&cluster("a", &[origin.address], &fields)).await;
    assert_eq!(flags(&bed.proxy, origin.address).await, "healthy");
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 200);
    origin.set(500);
    healthy(&bed.proxy, 0).await;
}

#[tokio::test]
async fn connections_to_a_failed_endpoint_drain() {
    let origin = Patient::start(false).await;
    let bed = bed(&cluster("a", &[origin.address], &checks(HTTP))).await;
    let mut client = bed.client(WAYS[0]).await;
    assert_eq!(client.get("a", "/").await.status, 200);
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_cx_active").await, 1);
    origin.set(500);
    healthy(&bed.proxy, 0).await;
    bed.proxy.wait_stat("cluster.a.upstream_cx_active", |v| v == 0).await.unwrap();
    // panic: a new connection may do better
    assert_eq!(client.get("a", "/").await.status, 200);
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_cx_total").await, 2);
}

#[tokio::test]
async fn all_endpoints_failing_is_panic() {
    let origin = Patient::start(false).await;
    origin.set(500);
    let bed = bed(&cluster("a", &[origin.address], &checks(HTTP))).await;
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 200);
    assert_eq!(stat(&bed.proxy, "cluster.a.lb_healthy_panic").await, 1);
}

/// A cluster by EDS with this check.
fn eds_cluster(health_check: HealthCheck) -> Cluster {
    Cluster { health_checks: vec![health_check], ..config::eds_cluster("a") }
}

fn quick_check() -> HealthCheck {
    let duration = |nanos| Some(Duration { seconds: 0, nanos });
    HealthCheck {
        timeout: Some(Duration { seconds: 20, nanos: 0 }),
        interval: duration(50_000_000),
        no_traffic_interval: duration(50_000_000),
        unhealthy_threshold: Some(UInt32Value { value: 2 }),
        healthy_threshold: Some(UInt32Value { value: 2 }),
        health_checker: Some(HealthChecker::HttpHealthCheck(HttpHealthCheck {
            path: "/health".to_owned(),
            ..HttpHealthCheck::default()
        })),
        ..HealthCheck::default()
    }
}

async fn under_control(cluster: &Cluster, hosts: &[SocketAddr]) -> (ControlPlane, Proxy, Client) {
    let control_plane = ControlPlane::tcp().unwrap();
    let routes = config::route_config("routes", vec![config::route_to("/", "a")]);
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    control_plane.batch(|batch| {
        batch.set("a", cluster);
        batch.set("a", &config::endpoints("a", hosts));
        batch.set("front", &config::http_listener("front", any_port, &config::hcm_inline("front", routes.clone())));
    });
    let bootstrap = Bootstrap { node_id: "n1", ads: Some(control_plane.address()), ..Bootstrap::default() };
    let proxy = start_yaml(&bootstrap.yaml()).await;
    let client = Client::plain(address(&proxy, "front").await, false).await;
    (control_plane, proxy, client)
}

#[tokio::test]
async fn no_request_reaches_an_endpoint_before_its_first_pass() {
    let (first, second) = (Patient::start(false).await, Patient::start(false).await);
    second.hold(true);
    let (control_plane, proxy, mut client) = under_control(&eds_cluster(quick_check()), &[first.address]).await;
    control_plane.set("a", &config::endpoints("a", &[first.address, second.address]));
    control_plane.wait_settled(EDS).await.unwrap();
    second.checked(1).await;
    assert_eq!(flags(&proxy, second.address).await, "/failed_active_hc");
    for _ in 0..10 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    assert_eq!((first.requests(), second.requests()), (10, 0));
    second.hold(false);
    reaches(&mut client, &second, 1).await;
    healthy(&proxy, 2).await;
}

#[tokio::test]
async fn an_endpoint_that_was_never_checked_need_not_count() {
    let (first, second) = (Patient::start(false).await, Patient::start(false).await);
    second.hold(true);
    let mut cluster = eds_cluster(quick_check());
    cluster.common_lb_config.get_or_insert_default().ignore_new_hosts_until_first_hc = true;
    let (control_plane, proxy, mut client) = under_control(&cluster, &[first.address]).await;
    assert_eq!(client.get("a", "/").await.status, 200);
    control_plane.set("a", &config::endpoints("a", &[first.address, second.address]));
    wait_flags(&proxy, second.address, "/failed_active_hc/pending_active_hc").await;
    assert_eq!(stat(&proxy, "cluster.a.membership_excluded").await, 1);
    second.hold(false);
    healthy(&proxy, 2).await;
    assert_eq!(stat(&proxy, "cluster.a.membership_excluded").await, 0);
}

#[tokio::test]
async fn a_removed_endpoint_stays_while_it_passes() {
    let (first, second) = (Patient::start(false).await, Patient::start(false).await);
    let both = [first.address, second.address];
    let (control_plane, proxy, mut client) = under_control(&eds_cluster(quick_check()), &both).await;
    healthy(&proxy, 2).await;
    control_plane.set("a", &config::endpoints("a", &[first.address]));
    wait_flags(&proxy, second.address, "/pending_dynamic_removal").await;
    for _ in 0..10 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    assert_eq!(second.requests(), 5);
    control_plane.set("a", &config::endpoints("a", &both));
    wait_flags(&proxy, second.address, "healthy").await;
    control_plane.set("a", &config::endpoints("a", &[first.address]));
    wait_flags(&proxy, second.address, "/pending_dynamic_removal").await;
    second.set(500);
    proxy.wait_stat("cluster.a.membership_total", |v| v == 1).await.unwrap();
    assert_eq!(flags(&proxy, second.address).await, "");
    let checks = second.checks().len();
    first.checked(first.checks().len() + 3).await;
    assert!(second.checks().len() <= checks + 1, "an endpoint that is gone is checked no more");
}

#[tokio::test]
async fn a_removed_endpoint_can_go_at_once() {
    let (first, second) = (Patient::start(false).await, Patient::start(false).await);
    let cluster = Cluster { ignore_health_on_host_removal: true, ..eds_cluster(quick_check()) };
    let (control_plane, proxy, _) = under_control(&cluster, &[first.address, second.address]).await;
    control_plane.set("a", &config::endpoints("a", &[first.address]));
    proxy.wait_stat("cluster.a.membership_total", |v| v == 1).await.unwrap();
    healthy(&proxy, 1).await;
}

#[tokio::test]
async fn a_changed_check_warms_beside_what_runs() {
    let origin = Patient::start(false).await;
    let (control_plane, proxy, mut client) = under_control(&eds_cluster(quick_check()), &[origin.address]).await;
    origin.hold(true);
    let interval = Some(Duration { seconds: 1, nanos: 0 });
    control_plane.set("a", &eds_cluster(HealthCheck { interval, no_traffic_interval: interval, ..quick_check() }));
    proxy.wait_stat("cluster_manager.warming_clusters", |v| v == 1).await.unwrap();
    assert_eq!(client.get("a", "/").await.status, 200);
    origin.hold(false);
    proxy.wait_stat("cluster_manager.warming_clusters", |v| v == 0).await.unwrap();
    assert_eq!(client.get("a", "/").await.status, 200);
    healthy(&proxy, 1).await;
}

#[tokio::test]
async fn a_check_is_sent_as_envoy_sends_it() {
    let (plain, full) = (Patient::start(false).await, Patient::start(true).await);
    let more = "http_health_check: { path: '/health?x=1', host: well.test, method: POST, codec_client_type: HTTP2, \
                send: { text: '6869' }, request_headers_to_add: [{ header: { key: x-a, value: '1%%' } }], \
                request_headers_to_remove: [user-agent] }";
    let clusters = cluster("a", &[plain.address], &checks(HTTP)) + &cluster("b", &[full.address], &checks(more));
    let bed = bed(&clusters).await;
    let check = plain.checks()[0].clone();
    assert_eq!((check.method, check.uri.to_string().as_str()), (Method::GET, "/health"));
    let headers: Vec<_> = check.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!(headers, [("host", "a"), ("user-agent", "Envoy/HC")]);
    let check = full.checks()[0].clone();
    assert_eq!((check.method, check.uri.to_string().as_str()), (Method::POST, "http://well.test/health?x=1"));
    let headers: Vec<_> = check.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    assert_eq!((headers, &check.body[..]), (vec![("x-a", "1%"), ("content-length", "2")], &b"hi"[..]));
    at_least(&bed.proxy, "cluster.b.health_check.success", 1).await;
    assert_eq!(stat(&bed.proxy, "cluster.b.upstream_cx_total").await, 0, "checks are no traffic");
}

#[tokio::test]
async fn any_number_of_workers_checks_once_over_one_connection() {
    let origin = Origin::start("v1").unwrap();
    let clusters = cluster("a", &[origin.address()], &checks(HTTP));
    let bootstrap = Bootstrap { static_clusters: &clusters, ..Bootstrap::default() };
    let mut options = options();
    let at = options.flags.iter().position(|flag| flag == "--concurrency").unwrap();
    options.flags[at + 1] = "2".into();
    let proxy = Proxy::start_with(&bootstrap.yaml(), options).await.unwrap();
    at_least(&proxy, "cluster.a.health_check.success", 5).await;
    let attempts = stat(&proxy, "cluster.a.health_check.attempt").await;
    assert!(origin.requests() >= 5 && i64::try_from(origin.requests()).unwrap() <= attempts + 1);
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_connection_need_not_be_used_again() {
    let origin = Origin::start("v1").unwrap();
    let fields = checks(&format!("{HTTP}, reuse_connection: false"));
    let bed = bed(&cluster("a", &[origin.address()], &fields)).await;
    at_least(&bed.proxy, "cluster.a.health_check.success", 3).await;
    assert!(origin.connections() >= 3 && origin.connections() >= origin.requests());
    assert_eq!(stat(&bed.proxy, "cluster.a.health_check.failure").await, 0);
}

#[tokio::test]
async fn statuses_and_bodies_are_as_configured() {
    let origin = Patient::start(false).await;
    origin.set(404);
    let status = |more: &str| checks(&format!("http_health_check: {{ path: /health, {more} }}"));
    let clusters = [
        ("a", "expected_statuses: [{ start: 200, end: 201 }, { start: 404, end: 405 }]", 1),
        ("b", "expected_statuses: [{ start: 400, end: 404 }]", 0),
        // `hello` and `well`
        (
            "c",
            "expected_statuses: [{ start: 404, end: 405 }], receive: [{ text: '68656C6c6f' }, { binary: d2VsbA== }]",
            1,
        ),
        (
            "d",
            "expected_statuses: [{ start: 404, end: 405 }], receive: [{ binary: d2VsbA== }, { text: 68656C6c6f }]",
            0,
        ),
        (
            "e",
            "expected_statuses: [{ start: 404, end: 405 }], response_buffer_size: 7, receive: [{ binary: d2VsbA== }]",
            0,
        ),
        ("f", "expected_statuses: [{ start: 404, end: 405 }], service_name_matcher: { prefix: x }", 0),
    ];
    let yaml: String = clusters.iter().map(|(name, more, _)| cluster(name, &[origin.address], &status(more))).collect();
    let bed = bed(&yaml).await;
    for (name, _, want) in clusters {
        let found = stat(&bed.proxy, &format!("cluster.{name}.membership_healthy")).await;
        assert_eq!(found, want, "{name}");
    }
    at_least(&bed.proxy, "cluster.f.health_check.verify_cluster", 1).await;
}

#[tokio::test]
async fn a_retriable_status_must_reach_the_threshold() {
    let origin = Patient::start(false).await;
    let kind = "http_health_check: { path: /health, retriable_statuses: [{ start: 503, end: 504 }] }";
    let fields = checks(kind).replace("unhealthy_threshold: 2", "unhealthy_threshold: 1000000");
    let bed = bed(&cluster("a", &[origin.address], &fields)).await;
    origin.set(503);
    at_least(&bed.proxy, "cluster.a.health_check.failure", 3).await;
    assert_eq!(stat(&bed.proxy, "cluster.a.membership_healthy").await, 1);
    origin.set(500);
    healthy(&bed.proxy, 0).await;
}

#[tokio::test]
async fn an_endpoint_says_that_it_is_degraded() {
    let (well, tired) = (Patient::start(false).await, Patient::start(false).await);
    tired.state.header.lock().unwrap()[0] = "x-envoy-degraded";
    let bed = bed(&cluster("a", &[well.address, tired.address], &checks(HTTP))).await;
    assert_eq!(flags(&bed.proxy, tired.address).await, "/degraded_active_hc");
    let mut client = bed.client(WAYS[0]).await;
    for _ in 0..6 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    // half of the endpoints, times 1.4, is what the well one can carry
    assert_eq!(stat(&bed.proxy, "cluster.a.membership_degraded").await, 1);
    assert_eq!(stat(&bed.proxy, "cluster.a.health_check.degraded").await, 1);
    tired.state.header.lock().unwrap()[0] = "x-none";
    wait_flags(&bed.proxy, tired.address, "healthy").await;
}

#[tokio::test]
async fn a_response_to_traffic_can_take_its_endpoint_out() {
    let (well, leaving) = (Patient::start(false).await, Patient::start(false).await);
    let bed = bed(&cluster("a", &[well.address, leaving.address], &paced("3600s", HTTP))).await;
    leaving.state.header.lock().unwrap()[1] = "x-envoy-immediate-health-check-fail";
    let mut client = bed.client(WAYS[0]).await;
    for _ in 0..2 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    wait_flags(&bed.proxy, leaving.address, "/failed_active_hc/excluded_via_immediate_hc_fail").await;
    for _ in 0..6 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    assert_eq!((well.requests(), leaving.requests()), (7, 1));
    assert_eq!(stat(&bed.proxy, "cluster.a.health_check.passive_failure").await, 1);
    assert_eq!(stat(&bed.proxy, "cluster.a.membership_excluded").await, 1);
}

#[tokio::test]
async fn a_peer_that_never_answers_is_given_up_and_let_go() {
    let origin = Origin::start("v1").unwrap();
    let quick =
        |path: &str| checks(&format!("http_health_check: {{ path: {path} }}")).replace("timeout: 20s", "timeout: 0.1s");
    let clusters = cluster("a", &[origin.address()], &quick("/never"))
        + &cluster("b", &[origin.address()], &quick("/drip/1000000/1"))
        + &cluster("c", &[origin.address()], &quick("/reset"));
    let bed = bed(&clusters).await;
    for name in ["a", "b", "c"] {
        at_least(&bed.proxy, &format!("cluster.{name}.health_check.network_failure"), 4).await;
    }
    assert_eq!(flags(&bed.proxy, origin.address()).await, "/failed_active_hc/active_hc_timeout");
    eventually("old connections to end", || async { origin.open_connections() <= 3 }).await;
    assert_eq!(stat(&bed.proxy, "cluster.a.health_check.success").await, 0);
}

#[tokio::test]
async fn grpc_checks_ask_for_a_service() {
    let origin = Patient::start(true).await;
    let kind = "grpc_health_check: { service_name: reviews, authority: well.test, \
                initial_metadata: [{ header: { key: x-a, value: b } }] }";
    let bed = bed(&cluster("a", &[origin.address], &format!("{}{HTTP2}", checks(kind)))).await;
    assert_eq!(flags(&bed.proxy, origin.address).await, "healthy");
    let check = origin.checks()[0].clone();
    assert_eq!(check.uri.to_string(), "http://well.test/grpc.health.v1.Health/Check");
    assert_eq!((check.method, &check.body[..]), (Method::POST, &b"\0\0\0\0\x09\x0a\x07reviews"[..]));
    for (name, want) in
        [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "Envoy/HC"), ("x-a", "b")]
    {
        assert_eq!(check.headers[name], want);
    }
    // NOT_SERVING
    origin.state.serving.store(2, Ordering::Relaxed);
    healthy(&bed.proxy, 0).await;
    assert_eq!(stat(&bed.proxy, "cluster.a.health_check.network_failure").await, 0);
    origin.state.serving.store(1, Ordering::Relaxed);
    healthy(&bed.proxy, 1).await;
}

#[tokio::test]
async fn tcp_checks_connect_or_expect_bytes() {
    let echo = TcpOrigin::start("v1", TcpBehaviour::Echo).unwrap();
    let silent = TcpOrigin::start("v1", TcpBehaviour::Silent).unwrap();
    let bytes = checks("tcp_health_check: { send: { text: '616263' }, receive: [{ text: '61' }, { text: '63' }] }");
    let short = bytes.replace("timeout: 20s", "timeout: 0.1s");
    let clusters = cluster("a", &[silent.address()], &checks("tcp_health_check: {}"))
        + &cluster("b", &[echo.address()], &bytes)
        + &cluster("c", &[silent.address()], &short)
        + &cluster("d", &[dead_address()], &checks("tcp_health_check: {}"));
    let bed = bed(&clusters).await;
    at_least(&bed.proxy, "cluster.b.health_check.success", 3).await;
    assert_eq!(echo.connections(), 1, "one connection serves all");
    for (name, want) in [("a", 1), ("b", 1), ("c", 0), ("d", 0)] {
        assert_eq!(stat(&bed.proxy, &format!("cluster.{name}.membership_healthy")).await, want, "{name}");
    }
    at_least(&bed.proxy, "cluster.a.health_check.success", 3).await;
    assert!(silent.connections() >= 3);
    echo.set(TcpBehaviour::Close);
    assert_eq!(stat(&bed.proxy, "cluster.b.health_check.failure").await, 0);
}

#[tokio::test]
async fn checks_speak_the_cluster_s_tls() {
    let keys = Keys::new();
    let tls = tls_server(&keys.server, Some(keys.authority.bundle_pem())).unwrap();
    let origin = Origin::start_tls("v1", tls).unwrap();
    let checks = |more: &str| checks(&format!("http_health_check: {{ path: /health{more} }}"));
    let fields = checks("") + &keys.upstream("");
    let http2 = checks(", codec_client_type: HTTP2 }, tls_options: { alpn_protocols: [h2]") + &keys.upstream("");
    let plain = checks("").replace("timeout: 20s", "timeout: 0.5s");
    let clusters = cluster("a", &[origin.address()], &fields)
        + &cluster("b", &[origin.address()], &http2)
        + &cluster("c", &[origin.address()], &plain);
    let bed = bed(&clusters).await;
    for (name, want) in [("a", 1), ("b", 1), ("c", 0)] {
        assert_eq!(stat(&bed.proxy, &format!("cluster.{name}.membership_healthy")).await, want, "{name}");
    }
    origin.set(Some(Behaviour::Status(500)));
    healthy(&bed.proxy, 0).await;
}

#[tokio::test]
async fn checks_can_choose_another_transport() {
    let keys = Keys::new();
    let origin = Origin::start_tls("v1", tls_server(&keys.server, None).unwrap()).unwrap();
    let socket = keys.upstream("");
    let matches = format!("transport_socket_matches: [{{ name: tls, match: {{ use: tls }}, {} }}]\n", socket.trim());
    let fields = checks(&format!("{HTTP}, transport_socket_match_criteria: {{ use: tls }}")) + &matches;
    let bed = bed(&cluster("a", &[origin.address()], &fields)).await;
    assert_eq!(flags(&bed.proxy, origin.address()).await, "healthy");
}

#[tokio::test]
async fn an_endpoint_may_be_checked_elsewhere_or_not_at_all() {
    let (serves, answers) = (Origin::start("v1").unwrap(), Patient::start(false).await);
    let unchecked = dead_address();
    let port = answers.address.port();
    let yaml = cluster("a", &[serves.address(), unchecked], &checks(HTTP));
    let elsewhere = format!("{{ endpoint: {{ health_check_config: {{ port_value: {port}, hostname: own.test }},");
    let yaml = yaml.replacen("{ endpoint: {", &elsewhere, 1);
    let at = yaml.rfind("{ endpoint: {").unwrap();
    let (head, tail) = yaml.split_at(at);
    let none = "{ endpoint: { health_check_config: { disable_active_health_check: true },";
    let bed = bed(&format!("{head}{}", tail.replacen("{ endpoint: {", none, 1))).await;
    assert_eq!(
        (flags(&bed.proxy, serves.address()).await, flags(&bed.proxy, unchecked).await),
        ("healthy".into(), "healthy".into())
    );
    assert_eq!((serves.requests(), answers.checks()[0].headers["host"].to_str().unwrap()), (0, "own.test"));
}

#[tokio::test]
async fn mistakes_are_refused_by_their_place() {
    let base = "timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1";
    let http = "http_health_check: { path: / }";
    let cases = [
        (format!("interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, {http}"), "health_checks[0].timeout"),
        (format!("timeout: 1s, unhealthy_threshold: 1, healthy_threshold: 1, {http}"), "health_checks[0].interval"),
        (format!("timeout: 1s, interval: 1s, healthy_threshold: 1, {http}"), "health_checks[0].unhealthy_threshold"),
        (format!("timeout: 1s, interval: 1s, unhealthy_threshold: 1, {http}"), "health_checks[0].healthy_threshold"),
        (format!("{base}, {http}, tcp_health_check: {{}}"), "health_checks[0]"),
        (base.to_owned(), "health_checks[0]"),
        (format!("{base}, http_health_check: {{}}"), "health_checks[0].http_health_check.path"),
        (format!("{base}, {http} }}, {{ {base}, {http}"), "health_checks"),
        (format!("{base}, grpc_health_check: {{}}"), "health_checks[0].grpc_health_check"),
        (format!("{base}, tcp_health_check: {{ send: {{ text: '0' }} }}"), "tcp_health_check.send.text"),
        (
            format!("{base}, http_health_check: {{ path: /, expected_statuses: [{{ start: 200, end: 200 }}] }}"),
            "http_health_check.expected_statuses[0]",
        ),
        (format!("{base}, http_health_check: {{ path: /, send: {{ text: '00' }} }}"), "http_health_check.send"),
        (format!("{base}, http_health_check: {{ path: /, method: CONNECT }}"), "http_health_check.method"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bootstrap.yaml");
    for (check, place) in cases {
        let fields = format!("health_checks: [{{ {check} }}]");
        let clusters = cluster("a", &[dead_address()], &fields);
        std::fs::write(&file, Bootstrap { static_clusters: &clusters, ..Bootstrap::default() }.yaml()).unwrap();
        let outcome = run(&["--mode", "validate", "-c", file.to_str().unwrap()]).unwrap();
        assert_eq!(outcome.code, Some(1), "{check}: {}{}", outcome.stdout, outcome.stderr);
        let said = outcome.stdout + &outcome.stderr;
        assert!(is_envoy() || said.contains(place), "{check}: {said}");
    }
}

#[tokio::test]
async fn a_check_that_would_be_ignored_is_refused_by_name() {
    if is_envoy() {
        return;
    }
    let redis = "timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, custom_health_check: \
                 { name: envoy.health_checkers.redis, typed_config: \
                 { '@type': type.googleapis.com/envoy.extensions.health_checkers.redis.v3.Redis } }";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bootstrap.yaml");
    let clusters = cluster("a", &[dead_address()], &format!("health_checks: [{{ {redis} }}]"));
    std::fs::write(&file, Bootstrap { static_clusters: &clusters, ..Bootstrap::default() }.yaml()).unwrap();
    let outcome = run(&["--mode", "validate", "-c", file.to_str().unwrap()]).unwrap();
    let said = outcome.stdout + &outcome.stderr;
    assert!(outcome.code == Some(1) && said.contains("Redis is not spoken"), "{said}");
}
