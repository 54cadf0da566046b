//! Access logs as a log pipeline reads them.

use http::Method;
use outrigger_tests::origin::Origin;
use serde_json::Value;

use super::support::*;

#[tokio::test]
async fn the_default_line() {
    let origin = Origin::start("v1").unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let manager = format!(
        "access_log: [{{ name: envoy.access_loggers.file, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '{}' }} }}]",
        log.path().display()
    );
    let routes = format!("{{ match: {{ prefix: /gone }}, direct_response: {{ status: 410 }} }}, {}", all_to("a"));
    let front = Front { routes: &routes, manager: &manager, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    for way in PLAIN {
        let headers = [("user-agent", "tester"), ("x-forwarded-for", "1.2.3.4"), ("x-request-id", "id-1")];
        let request = ask(Method::POST, "host.test", "/path?q", &headers).map(|_| "body".into());
        assert_eq!(bed.client(way).await.send(request).await.status, 200);
        assert_eq!(bed.client(way).await.get("host.test", "/gone").await.status, 410);
    }
    let lines = log_lines(log.path(), 4).await;
    for (way, lines) in PLAIN.iter().zip(lines.chunks(2)) {
        let protocol = if way.http2 { "HTTP/2" } else { "HTTP/1.1" };
        let (time, rest) = lines[0].split_once("] ").unwrap();
        assert!(time.len() == "[2026-01-01T00:00:00.000Z".len() && time.ends_with('Z'), "{time}");
        let (request, rest) = rest.split_at(format!("\"POST /path?q {protocol}\" 200 - 4 ").len());
        assert_eq!(request, format!("\"POST /path?q {protocol}\" 200 - 4 "));
        let words: Vec<&str> = rest.split(' ').collect();
        assert!(words[..3].iter().all(|w| w.parse::<u64>().is_ok()), "{rest}");
        let origin = format!("\"{}\"", origin.address());
        assert_eq!(words[3..], ["\"1.2.3.4\"", "\"tester\"", "\"id-1\"", "\"host.test\"", origin.as_str()]);
        let (_, rest) = lines[1].split_once("] ").unwrap();
        assert!(rest.starts_with(&format!("\"GET /gone {protocol}\" 410 - 0 0 ")), "{rest}");
        assert!(rest.ends_with("\"host.test\" \"-\""), "{rest}");
    }
}

/// Istio's text format.
const ISTIO: &str = "[%START_TIME%] \\\"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\\\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \\\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\\\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \\\"%REQ(X-FORWARDED-FOR)%\\\" \\\"%REQ(USER-AGENT)%\\\" \\\"%REQ(X-REQUEST-ID)%\\\" \\\"%REQ(:AUTHORITY)%\\\" \\\"%UPSTREAM_HOST%\\\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

#[tokio::test]
async fn istios_line() {
    let origin = Origin::start("v1").unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let manager = file_log(log.path(), ISTIO);
    let routes = "{ name: default, match: { prefix: /down }, route: { cluster: down } }, { name: main, match: { prefix: / }, route: { cluster: a } }";
    let clusters = cluster("a", &[origin.address()], "") + &cluster("down", &[dead_address()], "");
    let listener = "listener_filters: [{ name: tls_inspector, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } }]";
    let bed = Bed::start(Front { routes, manager: &manager, listener, ..Front::default() }, &clusters).await;
    for way in [WAYS[0], WAYS[2]] {
        let mut client = bed.client(way).await;
        assert_eq!(client.get("a", "/").await.status, 200);
        assert_eq!(client.get("a", "/down").await.status, 503);
    }
    let lines = log_lines(log.path(), 4).await;
    for (way, lines) in [WAYS[0], WAYS[2]].iter().zip(lines.chunks(2)) {
        let port = if way.mtls { bed.mtls } else { bed.plain };
        let sni = if way.mtls { "server.test" } else { "-" };
        let words: Vec<&str> = lines[0].split(' ').collect();
        assert_eq!(words[1..9], ["\"GET", "/", "HTTP/1.1\"", "200", "-", "via_upstream", "-", "\"-\""], "{}", lines[0]);
        let upstream = format!("\"{}\"", origin.address());
        let tail = &words[words.len() - 8..];
        assert_eq!(tail[..3], ["\"a\"", upstream.as_str(), "a"]);
        assert!(tail[3].starts_with("127.0.0.1:") && tail[5].starts_with("127.0.0.1:"), "{tail:?}");
        assert_eq!((tail[4], tail[6], tail[7]), (port.to_string().as_str(), sni, "main"));
        let text = &lines[1];
        assert!(
            text.contains(
                "\"GET /down HTTP/1.1\" 503 UF upstream_reset_before_response_started{remote_connection_failure"
            ),
            "{text}"
        );
        assert!(text.contains("Connection_refused") && text.ends_with(&format!(" {sni} default")), "{text}");
    }
}

#[tokio::test]
async fn json_keeps_types_and_sorts_keys() {
    let origin = Origin::start("v1").unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let manager = format!(
        "access_log: [{{ name: envoy.access_loggers.file, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '{}',
          log_format: {{ json_format: {{ status: '%RESPONSE_CODE%', method: '%REQ(:METHOD)%', mixed: 'to %UPSTREAM_CLUSTER%', absent: '%REQ(X-ABSENT)%', bytes: '%BYTES_SENT%', nested: {{ route: '%ROUTE_NAME%', flags: '%RESPONSE_FLAGS%' }}, quoted: '%REQ(X-ODD)%' }} }} }} }}]",
        log.path().display()
    );
    let front = Front { routes: &all_to("a"), manager: &manager, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    let reply = bed.client(WAYS[0]).await.send(ask(Method::GET, "a", "/big/10", &[("x-odd", "say \"hi\"\\")])).await;
    assert_eq!(reply.status, 200);
    let line = &log_lines(log.path(), 1).await[0];
    let json: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&json["status"], &json["bytes"]), (&200.into(), &10.into()), "{line}");
    assert_eq!(
        (&json["method"], &json["mixed"], &json["quoted"]),
        (&"GET".into(), &"to a".into(), &"say \"hi\"\\".into())
    );
    assert_eq!(json["absent"], Value::Null);
    assert_eq!((&json["nested"]["flags"], &json["nested"]["route"]), (&"-".into(), &Value::Null), "{line}");
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted(), "{line}");
}

#[tokio::test]
async fn every_end_of_a_request_has_its_flag() {
    let origin = Origin::start("v1").unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let manager = file_log(log.path(), "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
    let hosts = "{ name: all, domains: ['a'], routes: [
        { match: { prefix: /down }, route: { cluster: down } }, { match: { prefix: /empty }, route: { cluster: empty } },
        { match: { prefix: /never }, route: { cluster: a, timeout: 0.1s } },
        { match: { prefix: /nowhere }, route: { cluster_header: x-cluster } },
        { match: { prefix: /direct }, direct_response: { status: 200 } },
        { match: { prefix: / }, route: { cluster: a } }] }";
    let clusters =
        cluster("a", &[origin.address()], "") + &cluster("down", &[dead_address()], "") + &cluster("empty", &[], "");
    let bed = Bed::start(Front { hosts, manager: &manager, ..Front::default() }, &clusters).await;
    let cases = [
        ("a", "/", "200 - via_upstream"),
        ("a", "/status/500", "500 - via_upstream"),
        ("a", "/direct", "200 - direct_response"),
        ("other", "/x", "404 NR route_not_found"),
        ("a", "/nowhere", "503 NC cluster_not_found"),
        ("a", "/empty", "503 UH no_healthy_upstream"),
        ("a", "/down", "503 UF upstream_reset_before_response_started{remote_connection_failure"),
        ("a", "/never", "504 UT response_timeout"),
        ("a", "/reset", "503 UC upstream_reset_before_response_started{connection_termination"),
        ("a", "/garbage", "502 UPE upstream_reset_before_response_started{protocol_error"),
    ];
    for (n, (authority, path, expected)) in (1..).zip(cases) {
        bed.client(WAYS[0]).await.get(authority, path).await;
        let lines = log_lines(log.path(), n).await;
        let line = &lines[n - 1];
        assert!(line.starts_with(&format!("{path} {expected}")), "{line}, expected {expected}");
        assert_eq!(line.split(' ').count(), 4, "details have no spaces: {line}");
    }
    raw(bed.plain, b"GET / HTTP/1.1\r\nhost a\r\n\r\n").await;
    let line = log_lines(log.path(), cases.len() + 1).await.pop().unwrap();
    assert!(line.contains(" 400 DPE http1.codec_error"), "{line}");
}

#[tokio::test]
async fn tcp_connections_are_logged() {
    use outrigger_tests::origin::{TcpBehaviour, TcpOrigin};
    let origin = TcpOrigin::start("v1", TcpBehaviour::Send(5)).unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let access = file_log(
        log.path(),
        "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% %UPSTREAM_HOST%",
    );
    let fronts =
        tcp_front("tcp", &format!("cluster: a, {access}")) + &tcp_front("down", &format!("cluster: down, {access}"));
    let clusters = cluster("a", &[origin.address()], "") + &cluster("down", &[dead_address()], "");
    let proxy = start(&fronts, &clusters).await;
    assert_eq!(raw(address(&proxy, "tcp").await, b"abc").await, "xxxxx");
    let line = log_lines(log.path(), 1).await.pop().unwrap();
    assert_eq!(line, format!("- 0 - 3 5 a {}", origin.address()));
    raw(address(&proxy, "down").await, b"").await;
    let line = log_lines(log.path(), 2).await.pop().unwrap();
    assert!(line.starts_with("- 0 UF,URX 0 0 down ") || line.starts_with("- 0 URX,UF 0 0 down "), "{line}");
}

#[tokio::test]
async fn standard_output_is_a_log_too() {
    let manager = file_log(std::path::Path::new("/dev/stdout"), "seen %REQ(:PATH)%");
    let front = Front {
        routes: "{ match: { prefix: / }, direct_response: { status: 200 } }",
        manager: &manager,
        ..Front::default()
    };
    let bed = Bed::start(front, "").await;
    bed.client(WAYS[0]).await.get("a", "/here").await;
    eventually("the line", || async { bed.proxy.stdout().iter().any(|line| line == "seen /here") }).await;
}
