//! Whole connections over loopback sockets, byte for byte: what a client sees, and what an endpoint does.

use super::{ConnectionManager, RouteTable};
use crate::access_log::{ConnectionInfo, LogFiles};
use crate::config::model::*;
use crate::drain::{Drain, Strategy};
use crate::net::{DownstreamPeer, LocalAddr, Socket, Transport};
use crate::network::{Connection, Worker};
use crate::services::Services;
use crate::slots::{Kind, Store};
use crate::stats::Registry;
use crate::tls::Secrets;
use crate::upstream::{ClusterManager, WorkerUpstream};
use http::{HeaderValue, StatusCode};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

fn hcm() -> HcmConfig {
    HcmConfig {
        stat_prefix: "test".into(),
        codec: CodecType::Auto,
        routes: RouteSource::Inline(Arc::new(routes(Vec::new()))),
        http_filters: Vec::new(),
        disabled_guards: Arc::default(),
        router: Some(RouterConfig::default()),
        access_log: Vec::new(),
        server_name: HeaderValue::from_static("envoy"),
        server_header: ServerHeader::Overwrite,
        via: None,
        use_remote_address: false,
        xff_num_trusted_hops: 0,
        skip_xff_append: false,
        append_x_forwarded_port: false,
        internal_addresses: Vec::new(),
        generate_request_id: true,
        preserve_external_request_id: false,
        always_set_request_id_in_response: false,
        forward_client_cert: ForwardClientCert::Sanitize,
        set_client_cert: ClientCertDetails::default(),
        normalize_path: true,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
        strip_port: StripPort::No,
        strip_trailing_host_dot: false,
        upgrades: vec!["websocket".into()],
        idle_timeout: Some(Duration::from_secs(3600)),
        stream_idle_timeout: Some(Duration::from_secs(300)),
        request_timeout: None,
        request_headers_timeout: None,
        max_connection_duration: None,
        max_stream_duration: None,
        delayed_close_timeout: Some(Duration::from_secs(1)),
        max_requests_per_connection: 0,
        max_request_headers_bytes: 60 * 1024,
        max_headers_count: 100,
        headers_with_underscores: HeadersWithUnderscores::Allow,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
    }
}

fn routes(routes: Vec<Route>) -> RouteConfig {
    RouteConfig {
        name: "r".into(),
        virtual_hosts: vec![VirtualHost {
            name: "v".into(),
            domains: vec!["*".into()],
            routes,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            require_tls: RequireTls::None,
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
            retry_policy: None,
        }],
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        internal_only_headers: Vec::new(),
        ignore_port_in_host_matching: false,
        ignore_path_parameters_in_path_matching: false,
        most_specific_header_mutations_wins: false,
        validate_clusters: false,
        enabled_filters: Default::default(),
    }
}

fn route(prefix: &str, action: RouteAction) -> Route {
    Route {
        name: prefix.into(),
        matcher: RouteMatch {
            path: PathMatch::Prefix { value: prefix.into(), ignore_case: false },
            headers: Vec::new(),
            query: Vec::new(),
            fraction: None,
            grpc: false,
        },
        action,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        stat_prefix: None,
    }
}

fn direct(status: u16, body: &'static str) -> RouteAction {
    RouteAction::Direct(DirectResponse { status: StatusCode::from_u16(status).unwrap(), body: body.as_bytes().into() })
}

fn forward(cluster: &str) -> Forward {
    Forward {
        cluster: ClusterChoice::Name(cluster.into()),
        cluster_not_found: StatusCode::SERVICE_UNAVAILABLE,
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        max_stream_duration: None,
        grpc_timeout_max: None,
        retry_policy: None,
        path_rewrite: PathRewrite::None,
        host_rewrite: HostRewrite::None,
        append_x_forwarded_host: false,
        priority: Priority::Default,
        upgrades: Vec::new(),
        hash_policy: Vec::new(),
    }
}

fn retries(on: RetryOn) -> Option<Arc<RetryPolicy>> {
    Some(Arc::new(RetryPolicy {
        on,
        num_retries: 2,
        per_try_timeout: None,
        retriable_status_codes: Vec::new(),
        base_interval: Duration::from_millis(1),
        max_interval: Duration::from_millis(2),
        avoid_previous_hosts: false,
        host_selection_max_attempts: 1,
    }))
}

fn cluster(name: &str, address: SocketAddr, protocol: UpstreamProtocol) -> ClusterConfig {
    let endpoint = Endpoint {
        address: Address::Socket(address),
        hostname: Box::default(),
        health: HealthStatus::Healthy,
        weight: 1,
        metadata: None,
        check: None,
    };
    let locality = LocalityEndpoints { locality: Locality::default(), priority: 0, endpoints: vec![endpoint] };
    let discovery = ClusterDiscovery::Static(LoadAssignment {
        cluster_name: name.into(),
        localities: vec![locality],
        overprovisioning_factor: 140,
    });
    ClusterConfig { http: UpstreamHttp { protocol, ..UpstreamHttp::default() }, ..ClusterConfig::new(name, discovery) }
}

fn info(peer: SocketAddr, local: SocketAddr) -> ConnectionInfo {
    ConnectionInfo::new(1, DownstreamPeer(peer), LocalAddr(local), "l")
}

/// A proxy of one listener, serving every connection on the current `LocalSet`.
struct Proxy {
    address: SocketAddr,
    manager: Arc<ConnectionManager>,
    drain: Drain,
}

impl Proxy {
    async fn start(mut config: HcmConfig, list: Vec<Route>, clusters: Vec<ClusterConfig>) -> Proxy {
        let registry = Registry::new(StatsConfig::default());
        let secrets = Secrets::new(Store::new(Kind::Secret, mpsc::unbounded_channel().0));
        let assignments = Arc::new(Store::new(Kind::Assignment, mpsc::unbounded_channel().0));
        let drain = Drain::root(Strategy::Immediate);
        let services = Arc::new(Services {
            clusters: ClusterManager::new(registry.clone(), secrets.clone(), assignments),
            registry,
            secrets,
            routes: Arc::new(Store::<RouteTable>::new(Kind::Route, mpsc::unbounded_channel().0)),
            extensions: Arc::new(Store::new(Kind::Extension, mpsc::unbounded_channel().0)),
            log_files: LogFiles::new(Duration::from_secs(10)),
            drain: drain.clone(),
            node_id: String::new(),
            node_cluster: String::new(),
        });
        for cluster in clusters {
            services.clusters.add_or_update(Arc::new(cluster), false).unwrap();
        }
        services.clusters.all_warm().await;
        config.routes = RouteSource::Inline(Arc::new(routes(list)));
        let manager = ConnectionManager::compile(&Arc::new(config), "listener.test.", &services).unwrap();
        let worker = Rc::new(Worker { index: 0, upstream: WorkerUpstream::new(services.clusters.clone()), services });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepting, draining) = (manager.clone(), drain.clone());
        tokio::task::spawn_local(async move {
            while let Ok((socket, peer)) = listener.accept().await {
                let connection = Connection {
                    transport: Transport::Plain(Socket::Tcp(socket)),
                    info: Rc::new(info(peer, address)),
                    original_dst: None,
                    direction: TrafficDirection::Unspecified,
                    drain: draining.child(),
                    buffer_limit: 1 << 20,
                };
                tokio::task::spawn_local(accepting.clone().serve(connection, worker.clone()));
            }
        });
        Proxy { address, manager, drain }
    }

    /// Sends the bytes and reads until the proxy closes, or has said nothing for a while.
    async fn talk(&self, bytes: &[u8]) -> Talk {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        listen(&mut socket).await
    }
}

struct Talk {
    text: String,
    closed: bool,
}

impl Talk {
    fn status(&self) -> &str {
        self.text.get(9..12).unwrap_or("")
    }

    fn has(&self, text: &str) -> bool {
        self.text.contains(text)
    }
}

async fn listen(socket: &mut TcpStream) -> Talk {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_millis(400), socket.read_buf(&mut bytes)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(_) => return Talk { text: String::from_utf8_lossy(&bytes).into_owned(), closed: true },
            Err(_) => return Talk { text: String::from_utf8_lossy(&bytes).into_owned(), closed: false },
        }
    }
}

/// An endpoint that answers each connection's reads with what `answer` makes of them; an empty answer closes.
async fn endpoint(answer: impl Fn(usize, &str) -> String + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Rc::new(answer);
    tokio::task::spawn_local(async move {
        let mut connections = 0;
        while let Ok((mut socket, _)) = listener.accept().await {
            connections += 1;
            let (answer, number) = (answer.clone(), connections);
            tokio::task::spawn_local(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(n @ 1..) = socket.read(&mut buffer).await {
                    let out = answer(number, &String::from_utf8_lossy(&buffer[..n]));
                    if out.is_empty() || socket.write_all(out.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Sends back what it received, as a body.
fn echo(_: usize, request: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{request}", request.len())
}

/// Waits for what must happen; panics when it does not within ten seconds.
async fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come to hold");
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes()
}

#[test]
fn local_answers_look_like_envoys() {
    run(async {
        let redirect = Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            https: true,
            host: None,
            port: None,
            path: RedirectPath::Keep,
            strip_query: false,
        };
        let list = vec![
            route("/direct", direct(200, "hi")),
            route("/empty", direct(204, "")),
            route("/down", direct(503, "down")),
            route("/redir", RouteAction::Redirect(redirect)),
            route("/nc", RouteAction::Forward(Box::new(forward("nope")))),
        ];
        let proxy = Proxy::start(hcm(), list, Vec::new()).await;
        let hi = proxy.talk(&get("/direct")).await;
        assert!(hi.text.starts_with("HTTP/1.1 200 OK\r\n") && hi.text.ends_with("\r\n\r\nhi"), "{}", hi.text);
        assert!(hi.has("content-type: text/plain\r\n") && hi.has("server: envoy\r\n") && hi.has("date: "));
        assert!(!hi.closed && !hi.has("connection:"));
        let empty = proxy.talk(&get("/empty")).await;
        assert!(empty.status() == "204" && !empty.has("content-length"), "{}", empty.text);
        let redir = proxy.talk(&get("/redir?x=1")).await;
        assert!(redir.status() == "301" && redir.has("location: https://h/redir?x=1\r\n"));
        let unread = proxy.talk(b"POST /direct HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(unread.status() == "200" && unread.has("connection: close"), "{}", unread.text);
        let head = proxy.talk(b"HEAD /down HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(head.status() == "503" && head.has("content-length: 4\r\n") && head.text.ends_with("\r\n\r\n"));
        let grpc = proxy.talk(b"POST /down HTTP/1.1\r\nHost: h\r\ncontent-type: application/grpc\r\n\r\n").await;
        assert!(grpc.status() == "200" && grpc.has("grpc-status: 14\r\n") && grpc.has("grpc-message: down\r\n"));
        for (path, status) in [("/none", "404"), ("/nc", "503"), ("/a%00", "400"), ("/direct%2fx", "307")] {
            assert_eq!(proxy.talk(&get(path)).await.status(), status, "{path}");
        }
        let two = proxy.talk(&[get("/direct"), get("/none")].concat()).await;
        assert!(two.has("\r\n\r\nhiHTTP/1.1 404 Not Found\r\n"), "{}", two.text);
    });
}

#[test]
fn bad_requests_are_refused_in_envoys_words_and_counted() {
    run(async {
        let config = HcmConfig { request_headers_timeout: Some(Duration::from_millis(100)), ..hcm() };
        let proxy = Proxy::start(config, vec![route("/", direct(200, "hi"))], Vec::new()).await;
        let many: String = (0..101).map(|i| format!("x{i}: 1\r\n")).collect();
        let cases = [
            ("\x01\x02garbage\r\n\r\n".to_owned(), "400", "Bad Request"),
            ("GET / HTTP/1.1\r\nHost: h\r\nbad name: 1\r\n\r\n".to_owned(), "400", "Bad Request"),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(), "400", "Bad Request"),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400", ""),
            ("GET / HTTP/1.0\r\nHost: h\r\n\r\n".to_owned(), "426", "Upgrade Required"),
            ("GET * HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), "400", "Bad Request"),
            (format!("GET / HTTP/1.1\r\nHost: h\r\nx: {}\r\n\r\n", "a".repeat(62_000)), "431", "Large"),
            (format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n"), "431", "Large"),
            ("GET / HTTP/1.1\r\nHo".to_owned(), "408", "request header timeout"),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(), "501", ""),
        ];
        for (request, status, end) in &cases {
            let reply = proxy.talk(request.as_bytes()).await;
            let short = &request[..request.len().min(60)];
            assert_eq!(reply.status(), *status, "{short:?}: {}", reply.text);
            assert!(reply.text.ends_with(end) && reply.has("connection: close") && reply.closed, "{}", reply.text);
            assert!(reply.has("server: envoy\r\n"), "{}", reply.text);
        }
        let count = &proxy.manager.stats.count;
        assert_eq!(count.downstream_rq_header_timeout.value(), 1);
        assert_eq!(count.downstream_rq_too_large.value(), 2);
        assert_eq!(proxy.manager.stats.rq_active.value(), 0);
        let options = proxy.talk(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(options.status() == "404" && !options.closed);
    });
}

#[test]
fn requests_reach_the_endpoint_with_envoys_headers() {
    run(async {
        let address = endpoint(echo).await;
        let rewriting = Forward {
            path_rewrite: PathRewrite::Prefix("/new".into()),
            host_rewrite: HostRewrite::Literal(HeaderValue::from_static("hh")),
            ..forward("c")
        };
        let list = vec![route("/echo", RouteAction::Forward(Box::new(rewriting)))];
        let proxy = Proxy::start(hcm(), list, vec![cluster("c", address, UpstreamProtocol::Http1)]).await;
        let request =
            b"GET /echo/a?b=1 HTTP/1.1\r\nHost: h\r\nX-Foo: 1\r\nTE: trailers, gzip\r\nConnection: x-gone\r\n\
            X-Gone: 1\r\nx-envoy-upstream-rq-timeout-ms: 1\r\nx-envoy-foo: 1\r\n\r\n";
        let reply = proxy.talk(request).await;
        assert!(reply.status() == "200" && reply.has("x-envoy-upstream-service-time: "), "{}", reply.text);
        let seen = &reply.text;
        assert!(seen.contains("GET /new/a?b=1 HTTP/1.1\r\n") && seen.contains("host: hh\r\n"), "{seen}");
        for line in [
            "x-foo: 1",
            "te: trailers",
            "x-envoy-foo: 1",
            "x-forwarded-proto: http",
            "x-envoy-expected-rq-timeout-ms: 15000",
            "x-envoy-original-path: /echo/a?b=1",
            "x-envoy-original-host: h",
            "x-request-id: ",
        ] {
            assert!(seen.contains(line), "{line} is not in {seen}");
        }
        assert!(!seen.contains("x-gone") && !seen.contains("rq-timeout-ms: 1\r\n"), "{seen}");
        assert_eq!(proxy.manager.stats.rq_active.value(), 0);
    });
}

#[test]
fn header_formats_see_the_request_and_leave_out_what_is_absent() {
    run(async {
        let add = |name, value: &str| HeaderAdd {
            name: http::HeaderName::from_static(name),
            value: value.into(),
            action: AppendAction::OverwriteIfExistsOrAdd,
            keep_empty: false,
        };
        let mut formatted = route("/", direct(200, "hi"));
        formatted.response_headers.add = vec![
            add("x-found", "<%REQ(x-in)%|%REQ(:path)%>"),
            add("x-absent", "%REQ(nope)%"),
            add("x-dash", "%REQ(nope)%-"),
        ];
        let proxy = Proxy::start(hcm(), vec![formatted], Vec::new()).await;
        let reply = proxy.talk(b"GET /p HTTP/1.1\r\nHost: h\r\nx-in: 1\r\n\r\n").await;
        assert!(reply.has("x-found: <1|/p>\r\n") && reply.has("x-dash: -\r\n"), "{}", reply.text);
        assert!(!reply.has("x-absent"), "{}", reply.text);
    });
}

#[test]
fn bodies_are_passed_on_with_their_framing() {
    run(async {
        let address = endpoint(echo).await;
        let list = vec![route("/", RouteAction::Forward(Box::new(forward("c"))))];
        let proxy = Proxy::start(hcm(), list, vec![cluster("c", address, UpstreamProtocol::Http1)]).await;
        let sized = proxy.talk(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(sized.has("content-length: 5\r\n") && sized.has("hello"), "{}", sized.text);
        let chunked = proxy
            .talk(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n")
            .await;
        assert!(chunked.has("transfer-encoding: chunked\r\n"), "{}", chunked.text);
    });
}

#[test]
fn failures_of_endpoints_have_envoys_names() {
    run(async {
        let closing = endpoint(|_, _| String::new()).await;
        let garbage = endpoint(|_, _| "garbage\r\n\r\n".to_owned()).await;
        let silent = endpoint(|_, _| {
            // an interim answer keeps the endpoint waiting for ever
            "HTTP/1.1 103 Early Hints\r\n\r\n".to_owned()
        })
        .await;
        let refused = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let to = |name: &str| RouteAction::Forward(Box::new(forward(name)));
        let slow = Forward { timeout: Some(Duration::from_millis(100)), ..forward("silent") };
        let list = vec![
            route("/closing", to("closing")),
            route("/garbage", to("garbage")),
            route("/refused", to("refused")),
            route("/slow", RouteAction::Forward(Box::new(slow))),
        ];
        let clusters = [("closing", closing), ("garbage", garbage), ("silent", silent), ("refused", refused)]
            .map(|(name, address)| cluster(name, address, UpstreamProtocol::Http1));
        let proxy = Proxy::start(hcm(), list, clusters.into()).await;
        for (path, status, body) in [
            ("/closing", "503", "reset reason: connection termination"),
            ("/garbage", "502", "reset reason: protocol error"),
            ("/refused", "503", "reset reason: remote connection failure"),
            ("/slow", "504", "upstream request timeout"),
        ] {
            let reply = proxy.talk(&get(path)).await;
            assert_eq!(reply.status(), status, "{path}: {}", reply.text);
            assert!(reply.text.ends_with(body) && !reply.closed, "{path}: {}", reply.text);
        }
    });
}

#[test]
fn retries_send_the_body_again() {
    run(async {
        // the first two connections are closed on their request
        let address = endpoint(|number, request| if number < 3 { String::new() } else { echo(number, request) }).await;
        let retrying = Forward { retry_policy: retries(RetryOn { reset: true, ..RetryOn::default() }), ..forward("c") };
        let list = vec![route("/", RouteAction::Forward(Box::new(retrying)))];
        let proxy = Proxy::start(hcm(), list, vec![cluster("c", address, UpstreamProtocol::Http1)]).await;
        let reply = proxy.talk(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(reply.status() == "200" && reply.text.ends_with("hello"), "{}", reply.text);
    });
}

#[test]
fn a_websocket_is_a_tunnel() {
    run(async {
        let address = endpoint(|_, text| {
            if text.starts_with("GET") {
                assert!(text.contains("upgrade: websocket\r\n") && text.contains("connection: upgrade\r\n"), "{text}");
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_owned()
            } else {
                format!("<{text}>")
            }
        })
        .await;
        let list = vec![route("/", RouteAction::Forward(Box::new(forward("c"))))];
        let proxy = Proxy::start(hcm(), list, vec![cluster("c", address, UpstreamProtocol::Http1)]).await;
        let mut socket = TcpStream::connect(proxy.address).await.unwrap();
        let upgrade = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(upgrade).await.unwrap();
        let reply = listen(&mut socket).await;
        assert!(reply.status() == "101" && reply.has("upgrade: websocket"), "{}", reply.text);
        socket.write_all(b"ping").await.unwrap();
        assert_eq!(listen(&mut socket).await.text, "<ping>");
        assert_eq!(proxy.manager.stats.cx_upgrades_active.value(), 1);
        drop(socket);
        let refused = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n";
        assert_eq!(proxy.talk(refused).await.status(), "403");
        eventually(|| proxy.manager.stats.cx_upgrades_active.value() == 0).await;
    });
}

#[test]
fn an_endpoint_that_does_not_switch_ends_the_connection() {
    run(async {
        let address = endpoint(|_, text| {
            let status = if text.starts_with("GET /no") { "403 No" } else { "200 OK" };
            format!("HTTP/1.1 {status}\r\nx-up: 1\r\ncontent-length: 5\r\n\r\nhello")
        })
        .await;
        let list = vec![route("/", RouteAction::Forward(Box::new(forward("c"))))];
        let proxy = Proxy::start(hcm(), list, vec![cluster("c", address, UpstreamProtocol::Http1)]).await;
        let ask = |path| format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        let reply = proxy.talk(ask("/").as_bytes()).await;
        assert!(
            reply.status() == "200" && reply.has("content-length: 0\r\n") && reply.has("x-up: 1\r\n"),
            "{}",
            reply.text
        );
        assert!(reply.has("connection: close") && reply.closed && reply.text.ends_with("\r\n\r\n"), "{}", reply.text);
        let reply = proxy.talk(ask("/no").as_bytes()).await;
        assert!(
            reply.text.starts_with("HTTP/1.1 403 Forbidden\r\n") && reply.text.ends_with("hello"),
            "{}",
            reply.text
        );
        assert!(reply.has("connection: close") && reply.closed && !reply.has("service-time"), "{}", reply.text);
    });
}

#[test]
fn responses_that_break_off_name_their_cause() {
    run(async {
        let bad = endpoint(|_, text| {
            let body = if text.starts_with("GET /chunk") { "abc\r\nzz\r\n" } else { "abc\r\n" };
            // what follows a whole chunk is no further one, or nothing: the next request closes
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{body}")
        })
        .await;
        let stall = Forward { idle_timeout: Some(Some(Duration::from_millis(100))), ..forward("c") };
        let list = vec![
            route("/chunk", RouteAction::Forward(Box::new(forward("c")))),
            route("/", RouteAction::Forward(Box::new(stall))),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = AccessLogConfig {
            filter: None,
            sink: AccessLogSink::File(path.clone()),
            format: AccessLogFormat::Text {
                format: "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n".into(),
                omit_empty: false,
            },
        };
        let config = HcmConfig { access_log: vec![log], ..hcm() };
        let proxy = Proxy::start(config, list, vec![cluster("c", bad, UpstreamProtocol::Http1)]).await;
        for path in ["/chunk", "/stall"] {
            let reply = proxy.talk(&get(path)).await;
            assert!(reply.status() == "200" && reply.closed, "{}", reply.text);
        }
        proxy.manager.services.log_files.close();
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "UPE upstream_reset_after_response_started{protocol_error}\nSI stream_idle_timeout\n"
        );
        let count = &proxy.manager.stats.count;
        assert_eq!(count.rq_reset_after_downstream_response_started.value(), 2);
        assert!(count.downstream_cx_tx_bytes_total.value() > 0);
    });
}

#[test]
fn a_drain_closes_after_the_next_response_and_at_its_end_cuts() {
    run(async {
        let proxy = Proxy::start(hcm(), vec![route("/", direct(200, "hi"))], Vec::new()).await;
        let mut idle = TcpStream::connect(proxy.address).await.unwrap();
        idle.write_all(&get("/")).await.unwrap();
        assert!(!listen(&mut idle).await.closed);
        proxy.drain.begin(Duration::from_millis(700));
        let reply = proxy.talk(&get("/")).await;
        assert!(reply.has("connection: close") && reply.closed, "{}", reply.text);
        let mut rest = Vec::new();
        assert_eq!(idle.read_to_end(&mut rest).await.unwrap(), 0);
    });
}

#[test]
fn a_client_that_leaves_ends_its_exchange() {
    run(async {
        let silent = endpoint(|_, _| "HTTP/1.1 103 Early Hints\r\n\r\n".to_owned()).await;
        let list = vec![route("/", RouteAction::Forward(Box::new(forward("c"))))];
        let proxy = Proxy::start(hcm(), list, vec![cluster("c", silent, UpstreamProtocol::Http1)]).await;
        let reply = proxy.talk(&get("/")).await;
        assert_eq!(reply.text, "");
        eventually(|| proxy.manager.stats.rq_active.value() == 0).await;
        assert_eq!(proxy.manager.stats.count.downstream_rq_rx_reset.value(), 1);
    });
}

#[test]
fn idle_connections_are_closed() {
    run(async {
        let config = HcmConfig { idle_timeout: Some(Duration::from_millis(100)), ..hcm() };
        let proxy = Proxy::start(config, vec![route("/", direct(200, "hi"))], Vec::new()).await;
        let reply = proxy.talk(&get("/")).await;
        assert!(reply.status() == "200" && !reply.has("connection: close") && reply.closed, "{}", reply.text);
        assert_eq!(proxy.manager.stats.count.downstream_cx_idle_timeout.value(), 1);
    });
}

#[test]
fn http2_requests_become_http1_requests_and_back() {
    run(async {
        let address = endpoint(echo).await;
        let list = vec![route("/direct", direct(200, "hi")), route("/", RouteAction::Forward(Box::new(forward("c"))))];
        let proxy = Proxy::start(hcm(), list, vec![cluster("c", address, UpstreamProtocol::Http1)]).await;
        let socket = TcpStream::connect(proxy.address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::task::spawn_local(connection);
        let ask = |path: &str| http::Request::get(format!("http://h{path}")).header("te", "trailers").body(()).unwrap();
        for (path, expected) in [("/direct", "hi"), ("/x?y", "GET /x?y HTTP/1.1\r\n")] {
            let (response, _) = client.send_request(ask(path), true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["server"], "envoy");
            let mut body = response.into_body();
            let mut text = Vec::new();
            while let Some(data) = body.data().await {
                text.extend_from_slice(&data.unwrap());
            }
            let text = String::from_utf8(text).unwrap();
            assert!(text.starts_with(expected), "{text}");
            if path != "/direct" {
                assert!(text.contains("host: h\r\n") && text.contains("te: trailers\r\n"), "{text}");
            }
        }
        assert_eq!(proxy.manager.stats.count.downstream_rq_http2_total.value(), 2);
    });
}

#[test]
fn too_many_headers_reset_their_stream_alone() {
    run(async {
        let proxy = Proxy::start(hcm(), vec![route("/", direct(200, "hi"))], Vec::new()).await;
        let socket = TcpStream::connect(proxy.address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut many = http::Request::get("http://h/").body(()).unwrap();
        for i in 0..97 {
            many.headers_mut()
                .insert(http::HeaderName::try_from(format!("x{i}")).unwrap(), HeaderValue::from_static("1"));
        }
        let error = client.send_request(many, true).unwrap().0.await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
        let fine = http::Request::get("http://h/").body(()).unwrap();
        assert_eq!(client.send_request(fine, true).unwrap().0.await.unwrap().status(), 200);
        let count = &proxy.manager.stats.count;
        assert_eq!((count.downstream_rq_too_large.value(), count.downstream_rq_tx_reset.value()), (1, 1));
    });
}

#[test]
fn the_task_of_a_connection_is_small() {
    run(async {
        let proxy = Proxy::start(hcm(), Vec::new(), Vec::new()).await;
        let manager = proxy.manager.clone();
        let socket = TcpStream::connect(proxy.address).await.unwrap();
        let connection = Connection {
            transport: Transport::Plain(Socket::Tcp(socket)),
            info: Rc::new(info(proxy.address, proxy.address)),
            original_dst: None,
            direction: TrafficDirection::Unspecified,
            drain: proxy.drain.child(),
            buffer_limit: 0,
        };
        let services = manager.services.clone();
        let worker = Rc::new(Worker { index: 0, upstream: WorkerUpstream::new(services.clusters.clone()), services });
        let future = manager.serve(connection, worker);
        let size = size_of_val(&future);
        // every idle connection of a gateway costs this much, besides the codec's boxed state and buffers
        assert!(size <= 2048, "{size} bytes");
    });
}
