//! Whole lines. Expected texts are those of Envoy for the same formats.

use super::*;
use crate::config::model::{AccessLogFilter, AccessLogSink, Address, Comparison, HeaderMatch, HeaderTest, StringMatch};
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

struct Exchange {
    connection: ConnectionInfo,
    host: UpstreamAddr,
    request: HeaderMap,
    response: HeaderMap,
}

fn exchange() -> Exchange {
    let address = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    let header = |name: &'static str, value: &'static str| {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
    };
    Exchange {
        connection: ConnectionInfo {
            id: 7,
            started: UNIX_EPOCH,
            peer: DownstreamPeer(address("127.0.0.1:54730")),
            direct_peer: DownstreamPeer(address("127.0.0.1:54730")),
            local: LocalAddr(address("127.0.0.1:19902")),
            direct_local: LocalAddr(address("127.0.0.1:19902")),
            sni: None,
            tls: None,
            listener_name: "l".into(),
            filter_chain_name: "".into(),
            transport_failure: "".into(),
        },
        host: UpstreamAddr(Address::Socket(address("10.0.0.1:80"))),
        request: header("user-agent", "curl/7.88.1"),
        response: header("x-envoy-upstream-service-time", "3"),
    }
}

impl Exchange {
    fn entry(&self) -> Entry<'_> {
        Entry {
            kind: Kind::Http,
            connection: &self.connection,
            start: UNIX_EPOCH + Duration::new(1_795_378_166, 473_978_000),
            duration: Duration::from_micros(5_900),
            timings: Timings {
                request_received: Some(Duration::from_micros(20)),
                response_last: Some(Duration::from_nanos(541_029)),
                ..Timings::default()
            },
            method: Some("GET"),
            path: Some("/pa/th?a=bcd&x=1"),
            original_path: None,
            authority: Some("host:1"),
            scheme: Some("http"),
            protocol: Some("HTTP/1.1"),
            request_headers: &self.request,
            response_headers: &self.response,
            response_trailers: &self.response,
            response_code: Some(503),
            response_code_details: "upstream_reset",
            connection_termination_details: "",
            flags: {
                let mut flags = ResponseFlags::default();
                flags.set(Flag::UpstreamRetryLimitExceeded);
                flags.set(Flag::UpstreamConnectionFailure);
                flags
            },
            bytes_received: 0,
            bytes_sent: 2,
            wire_bytes_received: 94,
            wire_bytes_sent: 118,
            request_headers_bytes: 166,
            response_headers_bytes: 91,
            response_trailers_bytes: 0,
            route_name: "rt",
            virtual_cluster: "",
            upstream: Some(UpstreamView {
                cluster: "c",
                observability_name: "c;",
                host: Some(&self.host),
                host_name: "",
                local: None,
                tls: None,
                protocol: Some("HTTP/1.1"),
                connection_id: None,
                transport_failure: "",
                wire_bytes_received: 0,
                wire_bytes_sent: 0,
                attempts: 2,
            }),
            grpc_status: Some(14),
            stream_id: "id",
            local_reply_body: "",
            health_check: false,
            traced: false,
        }
    }
}

fn text(format: &str) -> String {
    let mut out = Vec::new();
    Formatter::compile(format).expect("compiles").write(&exchange().entry(), &mut out);
    String::from_utf8(out).expect("UTF-8")
}

fn refused(format: &str) -> String {
    Formatter::compile(format).expect_err("refused").to_string()
}

#[test]
fn the_default_format_is_envoy_s() {
    assert_eq!(
        text(DEFAULT_FORMAT),
        "[2026-11-22T20:09:26.473Z] \"GET /pa/th?a=bcd&x=1 HTTP/1.1\" 503 URX,UF 0 2 5 3 \"-\" \"curl/7.88.1\" \"-\" \
         \"host:1\" \"10.0.0.1:80\"\n"
    );
}

#[test]
fn operators_take_parameters_and_lengths() {
    let is = |format: &str, expected: &str| assert_eq!(text(format), expected, "{format}");
    is("%REQ(:PATH):3% %REQ(X-A?USER-AGENT)% %REQ(x)%", "/pa curl/7.88.1 -");
    is("%QUERY_PARAM(a)% %QUERY_PARAM(a):1% %QUERY_PARAM(b)% %QUERY_PARAMS%", "bcd b - a=bcd&x=1");
    is("%PATH% %PATH(NQ)% %PATH(WQ:ORIG)%", "/pa/th?a=bcd&x=1 /pa/th -");
    is("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)% %COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%", "541 -");
    is("%REQUEST_DURATION% %RESPONSE_DURATION% %DURATION%", "0 - 5");
    is("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%", "Unavailable UNAVAILABLE 14");
    is("%START_TIME(%s.%3f)% %START_TIME(%d%)%", "1795378166.473 22%");
    is("%RESPONSE_FLAGS_LONG%", "UpstreamRetryLimitExceeded,UpstreamConnectionFailure");
    is("%UPSTREAM_HOST_NAME% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%", "10.0.0.1:80 c; c");
    is("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT%", "127.0.0.1 19902");
    is("%CUSTOM_FLAGS%|%LOCAL_REPLY_BODY%|%ACCESS_LOG_TYPE%|100%%", "||DownstreamEnd|100%");
    assert_eq!(text("%UNIQUE_ID%").len(), 36);
    assert_eq!(Formatter::compile("a %% b").expect("compiles").literal(), Some("a % b"));
}

#[test]
fn what_cannot_be_formatted_is_refused_in_envoy_s_words() {
    assert_eq!(refused("%FOO%"), "Not supported field in StreamInfo: FOO");
    assert_eq!(
        refused("%RESPONCE_CODE%"),
        "Not supported field in StreamInfo: RESPONCE_CODE (did you mean \"RESPONSE_CODE\"?)"
    );
    assert_eq!(refused("100%"), "Incorrect configuration: 100%. Couldn't find valid command at position 3");
    assert_eq!(refused("x%%y%"), "Incorrect configuration: x%%y%. Couldn't find valid command at position 4");
    assert_eq!(
        refused("%PROTOCOL:x%"),
        "Incorrect configuration: %PROTOCOL:x%. Couldn't find valid command at position 0"
    );
    assert_eq!(refused("%REQ()%"), "REQ requires parameters");
    assert_eq!(refused("%REQ(A?B?C)%"), "More than 1 alternative header specified in token: A?B?C");
    assert_eq!(refused("%PROTOCOL(x)%"), "PROTOCOL does not take any parameters or length");
    assert_eq!(refused("%DURATION:1%"), "DURATION does not take any parameters or length");
    assert_eq!(
        refused("%GRPC_STATUS(FOO)%"),
        "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: FOO"
    );
    assert_eq!(refused("%DYNAMIC_METADATA(a:b)%"), "%DYNAMIC_METADATA% is not supported by this proxy");
    assert!(refused("%REQ(a b)%").starts_with("Invalid header configuration."));
}

fn config(format: AccessLogFormat, path: &std::path::Path, filter: Option<AccessLogFilter>) -> AccessLogConfig {
    AccessLogConfig { filter, sink: AccessLogSink::File(path.to_owned()), format }
}

fn json(omit_empty: bool) -> AccessLogFormat {
    let format = serde_json::json!({
        "b": "%RESPONSE_CODE%", "a": "x %RESPONSE_CODE% y", "n": "%REQUESTED_SERVER_NAME%",
        "nest": {"z": "%BYTES_SENT%", "y": 5, "q": [1, "%BYTES_RECEIVED%", true], "e": "%REQ(NOPE)%"},
        "lit": "100%%", "quote": "\"%PROTOCOL%\"", "two": "%PROTOCOL%%RESPONSE_CODE%", "s": "%START_TIME(%s)%",
    });
    let serde_json::Value::Object(format) = format else { unreachable!("an object") };
    AccessLogFormat::Json { format, omit_empty }
}

fn logged(configs: &[AccessLogConfig], path: &std::path::Path) -> String {
    let files = LogFiles::new(Duration::from_secs(10));
    let logs = AccessLogs::compile(configs, &files).expect("compiles");
    logs.log(&exchange().entry());
    files.close();
    std::fs::read_to_string(path).expect("reads")
}

#[test]
fn json_is_sorted_and_typed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    assert_eq!(
        logged(&[config(json(false), &path, None), config(json(true), &path, None)], &path),
        concat!(
            r#"{"a":"x 503 y","b":503,"lit":"100%","n":null,"nest":{"e":null,"q":[1,0,true],"y":5,"z":2},"#,
            r#""quote":"\"HTTP/1.1\"","s":"1795378166","two":"HTTP/1.1503"}"#,
            "\n",
            r#"{"a":"x 503 y","b":503,"lit":"100%","nest":{"q":[1,0,true],"y":5,"z":2},"#,
            r#""quote":"\"HTTP/1.1\"","s":"1795378166","two":"HTTP/1.1503"}"#,
            "\n"
        )
    );
}

#[test]
fn an_error_names_the_log_and_the_key() {
    let serde_json::Value::Object(format) = serde_json::json!({"a": {"b": "%FOO%"}}) else { unreachable!("an object") };
    let config = config(AccessLogFormat::Json { format, omit_empty: false }, "/dev/null".as_ref(), None);
    let files = LogFiles::new(Duration::from_secs(10));
    let error = AccessLogs::compile(&[config], &files).err().expect("refused");
    assert_eq!(
        error.to_string(),
        "[0].typed_config.log_format.json_format.a.b: Not supported field in StreamInfo: FOO"
    );
}

#[test]
fn filters_choose_the_entries() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let mut configs = Vec::new();
    let mut expected = String::new();
    let mut expect = |name: &str, filter: AccessLogFilter, passes: bool| {
        let format = AccessLogFormat::Text { format: format!("{name}\n"), omit_empty: false };
        configs.push(config(format, &path, Some(filter)));
        if passes {
            expected.push_str(&format!("{name}\n"));
        }
    };
    let status = |op, value| AccessLogFilter::Status { op, value };
    let header = |name: &str, invert| {
        let test = HeaderTest::String(StringMatch::Prefix { value: "curl".into(), ignore_case: false });
        AccessLogFilter::Header(HeaderMatch { name: name.into(), test, invert, treat_missing_as_empty: false })
    };
    expect("5xx", status(Comparison::GreaterOrEqual, 500), true);
    expect("2xx", status(Comparison::LessOrEqual, 299), false);
    expect("slow", AccessLogFilter::Duration { op: Comparison::GreaterOrEqual, value: 5 }, true);
    expect("slower", AccessLogFilter::Duration { op: Comparison::GreaterOrEqual, value: 6 }, false);
    expect("no health check", AccessLogFilter::NotHealthCheck, true);
    expect("traced", AccessLogFilter::Traceable, false);
    expect("curl", header("User-Agent", false), true);
    expect("not curl", header("User-Agent", true), false);
    expect("absent", header("absent", true), false);
    expect("flagged", AccessLogFilter::ResponseFlags(vec![]), true);
    expect("UF", AccessLogFilter::ResponseFlags(vec!["UH".into(), "UF".into()]), true);
    expect("UH", AccessLogFilter::ResponseFlags(vec!["UH".into()]), false);
    expect("gRPC 14", AccessLogFilter::GrpcStatus { statuses: vec![14], exclude: false }, true);
    expect("not gRPC 14", AccessLogFilter::GrpcStatus { statuses: vec![14], exclude: true }, false);
    expect("and", AccessLogFilter::And(vec![AccessLogFilter::NotHealthCheck, AccessLogFilter::Traceable]), false);
    expect("or", AccessLogFilter::Or(vec![AccessLogFilter::NotHealthCheck, AccessLogFilter::Traceable]), true);
    assert_eq!(logged(&configs, &path), expected);
}

#[test]
fn headers_to_capture_are_collected_once() {
    let format = "%REQ(X-B?X-A)% %REQ(x-b)% %REQ(:PATH)% %RESP(R)% %TRAILER(T)%".to_owned();
    let filter = AccessLogFilter::Header(HeaderMatch {
        name: "x-f".into(),
        test: HeaderTest::Present(true),
        invert: false,
        treat_missing_as_empty: false,
    });
    let config = config(AccessLogFormat::Text { format, omit_empty: false }, "/dev/null".as_ref(), Some(filter));
    let logs = AccessLogs::compile(&[config], &LogFiles::new(Duration::from_secs(10))).expect("compiles");
    assert_eq!(logs.request_headers(), ["x-a", "x-b", "x-f"]);
    assert_eq!(
        (logs.response_headers(), logs.response_trailers()),
        (&["r".parse().unwrap()][..], &["t".parse().unwrap()][..])
    );
}
