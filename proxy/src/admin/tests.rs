//! Pages against replies of Envoy (`testdata/`), and the server over a real socket.

use super::pages::answer;
use super::reply::Body;
use super::*;
use crate::access_log::LogFiles;
use crate::config::model::{HealthStatus, Locality, StatsConfig, Thresholds};
use crate::net::UpstreamAddr;
use crate::tls::{CertificateDetails, CertificateView, PeerCertificate};
use crate::upstream::{ClusterStatus, HealthFlags, HostStatus, OutlierStatus};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The server of the reference run.
struct Server {
    registry: Registry,
    state: Cell<&'static str>,
    calls: RefCell<Vec<String>>,
    more: RefCell<Vec<ClusterStatus>>,
}

impl Server {
    fn new() -> Server {
        let registry = Registry::new(StatsConfig::default());
        Server { registry, state: Cell::new("LIVE"), calls: RefCell::default(), more: RefCell::default() }
    }

    fn called(&self, call: impl Into<String>) {
        self.calls.borrow_mut().push(call.into());
    }
}

fn socket(port: u16) -> Address {
    Address::Socket(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn cluster(name: &str, hosts: Vec<HostStatus>) -> ClusterStatus {
    ClusterStatus {
        name: name.into(),
        observability_name: name.into(),
        added_via_api: false,
        eds_service_name: None,
        thresholds: Default::default(),
        outlier: None,
        hosts,
    }
}

fn host(port: u16) -> HostStatus {
    HostStatus {
        address: UpstreamAddr(socket(port)),
        hostname: "".into(),
        cx_active: 0,
        cx_connect_fail: 0,
        cx_total: 0,
        rq_active: 0,
        rq_error: 0,
        rq_pending_active: 0,
        rq_success: 0,
        rq_timeout: 0,
        rq_total: 0,
        health: HealthFlags::said(HealthStatus::Healthy),
        weight: 1,
        locality: Arc::default(),
        canary: false,
        priority: 0,
        success_rate: -1.0,
        local_origin_success_rate: -1.0,
    }
}

impl AdminSource for Server {
    fn state(&self) -> &'static str {
        self.state.get()
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo {
            version: "v".into(),
            uptime_current_epoch: Duration::from_millis(41_900),
            uptime_all_epochs: Duration::from_millis(41_900),
            command_line_options: json!({"base_id": "0", "disabled_extensions": []}),
            node: json!({"id": "test-id"}),
        }
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn clusters(&self) -> Box<dyn Iterator<Item = ClusterStatus>> {
        let down = HostStatus { cx_connect_fail: 1, cx_total: 1, rq_error: 1, ..host(39979) };
        let locality = Locality { region: "r1".into(), zone: "z1".into(), ..Locality::default() };
        let a = HostStatus {
            cx_active: 1,
            cx_total: 11,
            rq_error: 11,
            rq_success: 28,
            rq_timeout: 1,
            rq_total: 39,
            locality: Arc::new(locality),
            ..host(39971)
        };
        let failed = HealthFlags { failed_active_check: true, ..HealthFlags::said(HealthStatus::Healthy) };
        let b = HostStatus { cx_active: 1, cx_total: 2, rq_success: 1, rq_total: 2, health: failed, ..host(39972) };
        let none = OutlierStatus {
            success_rate_average: -1.0,
            success_rate_ejection_threshold: -1.0,
            local_origin_success_rate_average: -1.0,
            local_origin_success_rate_ejection_threshold: -1.0,
        };
        let limits =
            Thresholds { max_connections: 100, max_pending_requests: 50, max_requests: 200, ..Thresholds::default() };
        let clusters = vec![
            cluster("svc_empty", vec![]),
            cluster("svc_down", vec![down]),
            ClusterStatus {
                outlier: Some(none),
                thresholds: [limits, Thresholds::default()],
                ..cluster("svc_a", vec![a])
            },
            cluster("svc_b", vec![b]),
        ];
        Box::new(clusters.into_iter().chain(self.more.borrow().clone()))
    }

    fn listeners(&self) -> Vec<ListenerView> {
        let listener = |(name, port): (&str, u16)| ListenerView {
            name: name.into(),
            address: socket(port),
            additional_addresses: vec![],
        };
        [("http_in", 39980), ("tcp_in", 39981), ("tls_in", 39982)].map(listener).into()
    }

    fn ledger(&self, query: &LedgerQuery) -> Result<String, Refusal> {
        Ok(format!("{:?} {:?} {:?} {}", query.api, query.state, query.name_regex, query.json))
    }

    fn client_status(&self, request: &[u8]) -> Result<MessagePieces, Refusal> {
        if request == b"bad" {
            return Err(Refusal { status: 400, message: "100% bad".into() });
        }
        let answer = Bytes::from([request, b"!"].concat());
        Ok(MessagePieces { pieces: Box::new(std::iter::once(answer)), prefix: |_| Vec::new() })
    }

    fn client_status_json(&self, request: &str) -> Result<Pieces, Refusal> {
        Ok(Box::new(std::iter::once(Bytes::from(request.to_owned()))))
    }

    fn config_dump(&self, query: &ConfigDumpQuery) -> Result<Pieces, Refusal> {
        match &query.resource {
            Some(resource) => Err(Refusal { status: 404, message: format!("{resource} not found in config dump") }),
            None => {
                let pieces = [r#"{"configs":"#.to_owned(), format!("[{}]}}", query.include_eds)];
                Ok(Box::new(pieces.into_iter().map(Bytes::from)))
            }
        }
    }

    fn init_dump(&self, _: Option<&str>) -> Value {
        json!({})
    }

    fn certificates(&self) -> Vec<CertificateView> {
        let certificate = Arc::new(PeerCertificate {
            chain: vec![],
            subject: String::new(),
            issuer: String::new(),
            serial: "22e1".into(),
            uri_sans: vec!["spiffe://cluster.local/ns/default/sa/leaf".into()],
            dns_sans: vec!["*.example.com".into()],
            ip_sans: vec![],
            email_sans: vec![],
            fingerprint: [0; 32],
            not_before: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_345_844),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_345_845),
            verified: true,
        });
        vec![CertificateView {
            ca: vec![],
            chain: vec![CertificateDetails { path: "pki/leaf.crt".into(), certificate }],
        }]
    }

    fn set_health_failed(&self, failed: bool) {
        self.state.set(if failed { "DRAINING" } else { "LIVE" });
    }

    fn drain_listeners(&self, options: DrainOptions) {
        self.called(format!("{options:?}"));
    }

    fn quit(&self) {
        self.called("quit");
    }

    fn log_levels(&self) -> Vec<(&'static str, &'static str)> {
        vec![("admin", "warning"), ("http", "warning")]
    }

    fn set_log_levels(&self, changes: &[(Option<&str>, &str)]) -> Result<(), String> {
        let unknown = changes.iter().any(|(name, _)| name.is_some_and(|name| !["admin", "http"].contains(&name)));
        if unknown {
            return Err("unknown".into());
        }
        self.called(format!("{changes:?}"));
        Ok(())
    }

    fn reopen_logs(&self) {
        self.called("reopen");
    }

    fn memory(&self) -> MemoryView {
        MemoryView {
            allocated: 7_048_704,
            heap_size: 12_582_912,
            pageheap_unmapped: 0,
            pageheap_free: 3_104_768,
            total_thread_cache: 1_168_472,
            total_physical_bytes: 15_657_790,
        }
    }

    fn runtime(&self) -> RuntimeView {
        let entry = |(key, value): (&str, &str)| (key.into(), vec![value.into(), String::new()], value.into());
        RuntimeView {
            layers: vec!["static".into(), "admin".into()],
            entries: [("some.key", "5"), ("another.flag", "true")].map(entry).into(),
        }
    }

    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), Refusal> {
        self.called(format!("{values:?}"));
        Ok(())
    }
}

fn ask_with(server: &Server, method: &Method, uri: &str, body: &str) -> (u16, String) {
    let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
    let reply = answer(server, &Request { method, target: Target::parse(path, query), body });
    let body = match reply.body {
        Body::Whole(body) => body.to_vec(),
        Body::Pieces(pieces) => pieces.flatten().collect(),
        Body::Grpc(_) => Vec::new(),
    };
    (reply.status.as_u16(), String::from_utf8(body).expect("UTF-8"))
}

fn get(server: &Server, uri: &str) -> (u16, String) {
    ask_with(server, &Method::GET, uri, "")
}

fn post(server: &Server, uri: &str) -> (u16, String) {
    ask_with(server, &Method::POST, uri, "")
}

fn ok(text: &str) -> (u16, String) {
    (200, text.into())
}

#[test]
fn pages_are_byte_for_byte_envoy_s() {
    let server = Server::new();
    let is = |uri, expected| assert_eq!(get(&server, uri), ok(expected), "{uri}");
    is("/clusters", include_str!("testdata/clusters.txt"));
    is("/clusters?format=json", include_str!("testdata/clusters.json"));
    is("/listeners", include_str!("testdata/listeners.txt"));
    is("/listeners?format=json", include_str!("testdata/listeners.json"));
    is("/runtime", include_str!("testdata/runtime.json"));
    is("/memory", include_str!("testdata/memory.json"));
    is("/help", include_str!("testdata/help.txt"));
    is("/init_dump", "{}\n");
    is("/hot_restart_version", "disabled");
    is("/clusters?filter=nothing", "");
    let unknown = format!("invalid path. {}", include_str!("testdata/help.txt"));
    assert_eq!(get(&server, "/nonexistent"), (404, unknown));
}

#[test]
fn a_name_is_neither_markup_nor_a_line() {
    let server = Server::new();
    let evil = "<script>x</script>\r\nsvc_a::added_via_api::true\u{1b}[2J\"'&";
    server.more.borrow_mut().push(ClusterStatus { eds_service_name: Some(evil.into()), ..cluster(evil, vec![]) });
    let text = get(&server, "/clusters").1;
    assert!(
        text.lines().all(|line| !line.starts_with("svc_a::added_via_api::true")) && !text.contains('\u{1b}'),
        "{text}"
    );
    let json = get(&server, "/clusters?format=json").1;
    assert!(!json.contains('<') && !json.contains('\u{1b}'), "{json}");
    let parsed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed["cluster_statuses"][4]["name"], evil);
    let _held = server.registry.counter("cluster.<script>&\"'.x");
    let html = get(&server, "/stats?format=html").1;
    assert!(html.contains("cluster.&lt;script&gt;&amp;&quot;&#39;.x: 0"), "{html}");
    for uri in ["/config_dump?resource=%3Cscript%3E", "/stats?filter=%3Cscript%3E(", "/clusters?filter=%3Cscript%3E("] {
        let (path, query) = uri.split_once('?').unwrap();
        let target = Target::parse(path, Some(query));
        let reply = answer(&server, &Request { method: &Method::GET, target, body: "" });
        assert!(reply.status.is_client_error() && reply.content_type.starts_with("text/plain"), "{uri}");
    }
}

#[test]
fn a_bad_filter_is_told_in_one_line() {
    let server = Server::new();
    for uri in ["/clusters?filter=(", "/stats?filter=(", "/stats/prometheus?filter=("] {
        let (status, text) = get(&server, uri);
        assert!(status == 400 && text.starts_with("Invalid re2 regex: ") && text.lines().count() == 1, "{uri}: {text}");
    }
}

#[test]
fn readiness_follows_the_state() {
    let server = Server::new();
    assert_eq!(get(&server, "/ready"), ok("LIVE\n"));
    assert_eq!(post(&server, "/healthcheck/fail"), ok("OK\n"));
    assert_eq!(get(&server, "/ready"), (503, "DRAINING\n".into()));
    assert_eq!(post(&server, "/healthcheck/ok"), ok("OK\n"));
    assert_eq!(get(&server, "/ready"), ok("LIVE\n"));
}

#[test]
fn changes_need_post() {
    let server = Server::new();
    for path in ["/quitquitquit", "/drain_listeners?graceful", "/logging?level=debug", "/reset_counters"] {
        assert_eq!(get(&server, path), (405, "Method GET not allowed, POST required.".into()));
    }
    assert!(server.calls.borrow().is_empty());
    assert_eq!(post(&server, "/quitquitquit"), ok("OK\n"));
    assert_eq!(post(&server, "/drain_listeners?inboundonly&graceful&skip_exit"), ok("OK\n"));
    assert_eq!(post(&server, "/drain_listeners?skip_exit").0, 400);
    assert_eq!(post(&server, "/runtime_modify?a=b"), ok("OK\n"));
    assert_eq!(ask_with(&server, &Method::POST, "/runtime_modify", "c=%20d"), ok("OK\n"));
    assert_eq!(post(&server, "/runtime_modify").0, 400);
    assert_eq!(
        server.calls.take(),
        [
            "quit",
            "DrainOptions { graceful: true, skip_exit: true, inbound_only: true }",
            "[(\"a\", \"b\")]",
            "[(\"c\", \" d\")]",
        ]
    );
}

#[test]
fn log_levels_change_by_name_and_all_at_once() {
    let server = Server::new();
    let list = "active loggers:\n  admin: warning\n  http: warning\n\n";
    assert_eq!(post(&server, "/logging"), ok(list));
    for uri in ["/logging?level=debug", "/logging?http=info", "/logging?paths=http:off,admin:trace"] {
        assert_eq!(post(&server, uri), ok(list));
    }
    assert_eq!(
        server.calls.take(),
        [
            "[(None, \"debug\")]",
            "[(Some(\"http\"), \"info\")]",
            "[(Some(\"http\"), \"off\"), (Some(\"admin\"), \"trace\")]"
        ]
    );
    let (status, text) = post(&server, "/logging?level=foo");
    assert_eq!(status, 400);
    assert!(text.starts_with("error: unknown logger level\n\nusage: /logging?<name>=<level> (change single level)\n"));
    assert!(text.ends_with(&format!("warning error critical off \n{list}")), "{text}");
    assert!(post(&server, "/logging?paths=foo:debug").1.starts_with("error: unknown logger name\n\nusage"));
}

#[test]
fn stats_pages_read_their_parameters() {
    let server = Server::new();
    let _held = (server.registry.counter("server.a"), server.registry.counter("server.b"));
    _held.0.inc();
    assert_eq!(get(&server, "/stats?usedonly"), ok("server.a: 1\n"));
    assert_eq!(get(&server, "/stats?filter=%5Eserver%5C.b$"), ok("server.b: 0\n"));
    assert_eq!(
        get(&server, "/stats?filter=b&invert_filter&format=json"),
        ok("{\"stats\":[{\"name\":\"server.a\",\"value\":1}]}")
    );
    let page = "# TYPE envoy_server_a counter\nenvoy_server_a{} 1\n";
    assert_eq!(get(&server, "/stats/prometheus?usedonly"), ok(page));
    assert_eq!(get(&server, "/stats?format=prometheus&usedonly"), ok(page));
    assert!(get(&server, "/stats?format=html").1.contains("server.a: 1"));
    assert_eq!(get(&server, "/stats?type=foo"), (400, "invalid &type= param".into()));
    for bad in ["format=xx", "filter=(", "histogram_buckets=q"] {
        assert_eq!(get(&server, &format!("/stats?{bad}")).0, 400);
    }
    assert_eq!(get(&server, "/stats/prometheus?histogram_buckets=detailed").0, 400);
    assert_eq!(post(&server, "/reset_counters"), ok("OK\n"));
    assert_eq!(get(&server, "/stats?usedonly"), ok("server.a: 0\n"));
}

#[test]
fn json_pages_have_the_shape_of_their_message() {
    let server = Server::new();
    let json = |uri| -> Value { serde_json::from_str(&get(&server, uri).1).expect("JSON") };
    let info = json("/server_info");
    assert_eq!((&info["state"], &info["uptime_current_epoch"]), (&json!("LIVE"), &json!("41s")));
    let certificate = &json("/certs")["certificates"][0]["cert_chain"][0];
    assert_eq!(certificate["valid_from"], "2026-11-22T11:10:44Z");
    assert_eq!(
        certificate["subject_alt_names"],
        json!([{"dns": "*.example.com"}, {"uri": "spiffe://cluster.local/ns/default/sa/leaf"}])
    );
    let asked = get(&server, "/ledger?type=cds&state=running&name_regex=a.*").1;
    assert_eq!(asked, "Some(\"cds\") Some(\"running\") Some(\"a.*\") false");
    assert_eq!(json("/config_dump?include_eds"), json!({"configs": [true]}));
    assert_eq!(get(&server, "/config_dump?resource=foo"), (404, "foo not found in config dump".into()));
}

#[tokio::test]
async fn replies_have_envoy_s_headers_and_large_pages_arrive_whole() {
    let server = Rc::new(Server::new());
    let held: Vec<_> = (0..20_000).map(|i| server.registry.counter(&format!("some.counter.with.number.{i}"))).collect();
    let logs = AccessLogs::compile(&[], &LogFiles::new(Duration::from_secs(1))).expect("no logs");
    let admin = Admin::bind(&socket(0), &server.registry, logs).await.expect("binds");
    let Address::Socket(address) = *admin.address() else { unreachable!("an IP address") };
    let source = server.clone();
    let local = tokio::task::LocalSet::new();
    local.spawn_local(admin.serve(source));
    let client = async {
        let ask = async |request: &str| {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
            stream.write_all(request.as_bytes()).await.expect("writes");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).await.expect("reads");
            reply
        };
        let reply = ask("GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        for header in [
            "content-type: text/plain; charset=UTF-8",
            "cache-control: no-cache, max-age=0",
            "x-content-type-options: nosniff",
            "server: envoy",
            "transfer-encoding: chunked",
        ] {
            assert!(reply.contains(&format!("\r\n{header}\r\n")), "{header} in {reply}");
        }
        let large = ask("GET /stats HTTP/1.0\r\n\r\n").await;
        assert_eq!(large.matches("some.counter.with.number.").count(), held.len());
    };
    local.run_until(client).await;
    assert!(server.registry.text(&Default::default()).contains("http.admin.downstream_rq_2xx: 2\n"));
}

#[tokio::test]
async fn http_1_is_told_from_http_2_however_its_first_bytes_come() {
    for (sent, http2) in
        [(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"[..], true), (b"PUT / HTTP/1.1\r\n\r\n", false), (b"P", false)]
    {
        let (mut client, server) = tokio::io::duplex(3);
        let (seen, ()) = tokio::join!(
            async {
                let (is, mut stream) = preface::is_http2(server).await.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                (is, all)
            },
            async {
                client.write_all(sent).await.unwrap();
                drop(client);
            }
        );
        assert_eq!(seen, (http2, sent.to_vec()));
    }
}
