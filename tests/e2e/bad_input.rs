//! What a proxy must survive: after each of these it still serves, and has counted what happened.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use outrigger_tests::client::{ClientTls, Target, get};
use outrigger_tests::origin::Origin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;

async fn bed(manager: &str) -> (Origin, Bed) {
    let origin = Origin::start("v1").unwrap();
    let routes = format!("{{ match: {{ prefix: /local }}, direct_response: {{ status: 200 }} }}, {}", all_to("a"));
    let front = Front { routes: &routes, manager, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    (origin, bed)
}

async fn serves(bed: &Bed) {
    for way in WAYS {
        assert_eq!(bed.client(way).await.get("a", "/").await.origin_version(), "v1", "{way:?}");
    }
}

#[tokio::test]
async fn bad_requests_are_answered_with_400_and_closed() {
    let (origin, bed) = bed("").await;
    let host = "host: a\r\n";
    let cases = [
        "\x00\x01\x02garbage\r\n\r\n".to_owned(),
        "hello\r\n\r\n".to_owned(),
        format!("get / HTTP/1.1\r\n{host}\r\n"),
        format!("GET / HTTP/1.10\r\n{host}\r\n"),
        format!("GET / http/1.1\r\n{host}\r\n"),
        format!("GET  HTTP/1.1\r\n{host}\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n".to_owned(),
        format!("GET /#fragment HTTP/1.1\r\n{host}\r\n"),
        format!("GET ftp://a/ HTTP/1.1\r\n{host}\r\n"),
        format!("GET / HTTP/1.1\r\n{host}no colon\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}: empty name\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}bad name: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}space : x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}x: a\x00b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}x: a\x01b\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 3\r\ncontent-length: 3\r\n\r\nabc"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 3, 3\r\n\r\nabc"),
        format!("POST / HTTP/1.1\r\n{host}content-length: +3\r\n\r\nabc"),
        format!("POST / HTTP/1.1\r\n{host}content-length: -1\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 0x3\r\n\r\nabc"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 99999999999999999999\r\n\r\nabc"),
        format!("POST / HTTP/1.1\r\n{host}content-length:\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\nxyz\r\nabc\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n-1\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n"),
    ];
    let mut wrong = Vec::new();
    // All at once: a proxy may hold each connection for a second before it closes.
    let answers = futures_util::future::join_all(cases.iter().map(|case| raw(bed.plain, case.as_bytes()))).await;
    for (case, answer) in cases.iter().zip(answers) {
        let closed = answer.contains("connection: close\r\n");
        if status_of(&answer) != 400 || !closed || answer.matches("HTTP/1.1").count() != 1 {
            wrong.push(format!("{case:?} -> {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "not 400:\n{}", wrong.join("\n"));
    let errors = stat(&bed.proxy, "http.front.downstream_cx_protocol_error").await;
    assert!(errors >= 20, "{errors} protocol errors counted");
    // Broken chunks come after a good head, and that may have gone on; no request may have arrived whole.
    assert!(origin.requests() <= 4, "{} requests went on", origin.requests());
    serves(&bed).await;
}

#[tokio::test]
async fn transfer_codings_nobody_knows_are_501() {
    let (origin, bed) = bed("").await;
    for coding in ["identity", "gzip, chunked", "chunked, chunked", "xchunked"] {
        let text = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: {coding}\r\n\r\n0\r\n\r\n");
        let answer = raw(bed.plain, text.as_bytes()).await;
        assert_eq!(status_of(&answer), 501, "{coding}: {answer}");
    }
    assert_eq!(origin.requests(), 0);
    serves(&bed).await;
}

#[tokio::test]
async fn too_much_header_is_431() {
    let (origin, bed) = bed("").await;
    let big = "x".repeat(61 << 10);
    let many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    for text in [
        format!("GET / HTTP/1.1\r\nhost: a\r\nbig: {big}\r\n\r\n"),
        format!("GET /{big} HTTP/1.1\r\nhost: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"),
    ] {
        let answer = raw(bed.plain, text.as_bytes()).await;
        assert_eq!(status_of(&answer), 431, "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    // Just below the limits.
    let fits = "x".repeat(50 << 10);
    let most: String = (0..99).map(|n| format!("x-{n}: 1\r\n")).collect();
    for more in [format!("big: {fits}\r\n"), most] {
        let mut stream = TcpStream::connect(bed.plain).await.unwrap();
        stream.write_all(format!("GET /local HTTP/1.1\r\nhost: a\r\n{more}\r\n").as_bytes()).await.unwrap();
        let head = soon("a response", read_head(&mut stream)).await.unwrap();
        assert_eq!(status_of(&head), 200, "{head}");
    }

    let mut client = bed.client(WAYS[1]).await;
    let mut request = get("a", "/");
    for n in 0..120 {
        let name = HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
        request.headers_mut().insert(name, HeaderValue::from_static("1"));
    }
    assert!(client.try_send(request).await.is_err(), "too many headers reset the stream");
    assert_eq!(origin.requests(), 0);
    serves(&bed).await;
}

#[tokio::test]
async fn half_a_request_and_gone() {
    let (_origin, bed) = bed("").await;
    let starts = [
        "",
        "G",
        "GET / HT",
        "GET / HTTP/1.1\r\nhost: a\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        "PRI * HTTP/2.0\r\n\r\nSM",
    ];
    for start in starts {
        let mut stream = TcpStream::connect(bed.plain).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        drop(stream);
    }
    at_least(&bed.proxy, "http.front.downstream_cx_destroy", starts.len() as i64).await;
    bed.proxy.wait_stat("http.front.downstream_rq_active", |v| v == 0).await.unwrap();
    bed.proxy.wait_stat("cluster.a.upstream_rq_active", |v| v == 0).await.unwrap();
    serves(&bed).await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[tokio::test]
async fn broken_http2_closes_the_connection() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let (origin, bed) = &bed("").await;
    let settings = frame(4, 0, 0, &[]);
    let after = |more: Vec<u8>| [PREFACE, &settings, &more].concat();
    let cases = [
        ("no settings", [PREFACE, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"].concat()),
        ("garbage", after(vec![0xff; 100])),
        ("data on an idle stream", after(frame(0, 1, 1, b"x"))),
        ("headers that are no HPACK", after(frame(1, 5, 1, &[0xff; 20]))),
        ("a stray continuation", after(frame(9, 4, 1, &[0x82]))),
        ("settings of a wrong size", after(frame(4, 0, 0, &[0; 5]))),
        ("a window update of zero", after(frame(8, 0, 0, &[0; 4]))),
        ("an even stream", after(frame(1, 5, 2, &[0x82, 0x86, 0x84]))),
        ("a ping of a wrong size", after(frame(6, 0, 0, &[0; 7]))),
        ("a push promise", after(frame(5, 4, 1, &[0, 0, 0, 2, 0x82]))),
    ];
    let send = cases.iter().map(|(what, bytes)| async move {
        let mut stream = TcpStream::connect(bed.plain).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as a close.
        let _ = soon(what, stream.read_to_end(&mut answer)).await;
    });
    futures_util::future::join_all(send).await;
    assert_eq!(origin.requests(), 0);
    at_least(&bed.proxy, "http.front.downstream_cx_protocol_error", cases.len() as i64 - 2).await;
    serves(bed).await;
}

#[tokio::test]
async fn plain_text_on_a_tls_port_is_closed() {
    let (origin, bed) = bed("").await;
    for text in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"\x16\x03\x01\x00\x05hello", &[0xff; 64]] {
        let mut stream = TcpStream::connect(bed.mtls).await.unwrap();
        stream.write_all(text).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the proxy to close", stream.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"HTTP"), "plain text was answered: {:?}", String::from_utf8_lossy(&answer));
    }
    at_least(&bed.proxy, "listener.front-mtls.ssl.connection_error", 3).await;
    assert_eq!(origin.requests(), 0);
    serves(&bed).await;
}

#[tokio::test]
async fn tls_on_a_plain_port_is_refused() {
    let (origin, bed) = bed("").await;
    let target = Target::tls(bed.plain, ClientTls::new("a.test", &["h2"], None, None).unwrap());
    assert!(target.connect().await.is_err());
    at_least(&bed.proxy, "http.front.downstream_cx_protocol_error", 1).await;
    assert_eq!(origin.requests(), 0);
    serves(&bed).await;
}

#[tokio::test]
async fn slow_headers_are_408() {
    let (origin, bed) = bed("request_headers_timeout: 0.2s").await;
    let mut stream = TcpStream::connect(bed.plain).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await.unwrap();
    let head = soon("408", read_head(&mut stream)).await.unwrap();
    assert_eq!(status_of(&head), 408, "{head}");
    assert_eq!(origin.requests(), 0);
    at_least(&bed.proxy, "http.front.downstream_rq_header_timeout", 1).await;
    serves(&bed).await;
}

#[tokio::test]
async fn a_slow_handshake_is_given_up() {
    let keys = Keys::new();
    let front = Front {
        routes: "{ match: { prefix: / }, direct_response: { status: 200 } }",
        transport: &keys.downstream(true, ""),
        ..Front::default()
    };
    let yaml = front.yaml() + "      transport_socket_connect_timeout: 0.2s\n";
    let proxy = start(&yaml, "").await;
    let front = address(&proxy, "front").await;
    let mut stream = TcpStream::connect(front).await.unwrap();
    stream.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the proxy to give up", stream.read_to_end(&mut answer)).await;
    let target = Target::tls(front, keys.client_tls(&["h2"]));
    assert_eq!(Client::connect(&target, true).await.get("a", "/").await.status, 200);
}

#[tokio::test]
async fn random_bytes_never_end_the_process() {
    let (_origin, bed) = bed("").await;
    // xorshift64: reproducible and without a dependency.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let prefixes: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\nhost: a\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for round in 0..200_usize {
        let mut bytes = prefixes[round % prefixes.len()].to_vec();
        for _ in 0..next() % 60 {
            bytes.extend_from_slice(&next().to_be_bytes());
        }
        let port = if round % 2 == 0 { bed.plain } else { bed.mtls };
        let mut stream = TcpStream::connect(port).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        drop(stream);
    }
    serves(&bed).await;
}

#[tokio::test]
async fn a_bad_response_is_502_and_a_bad_stream_a_reset() {
    let origin = Scripted::start(|n| {
        Some(match n {
            0 => "this is no HTTP\r\n\r\n",
            1 => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
            2 => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
            3 => "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
            4 => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-origin-version: v1\r\n\r\nok",
        })
    })
    .await;
    let front = Front { routes: &all_to("a"), ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address], "")).await;
    for case in 0..4 {
        let reply = bed.client(WAYS[0]).await.try_send(get("a", "/")).await;
        assert!(reply.as_ref().is_ok_and(|reply| reply.status == 502), "case {case}: {reply:?}");
        let text = reply.unwrap().text();
        assert!(text.ends_with("reset reason: protocol error"), "{text}");
    }
    let broken = bed.client(WAYS[0]).await.try_send(get("a", "/")).await;
    assert!(broken.is_err() || broken.as_ref().is_ok_and(|r| r.status == 502), "{broken:?}");
    at_least(&bed.proxy, "cluster.a.upstream_cx_protocol_error", 5).await;
    serves(&bed).await;
}

#[tokio::test]
async fn a_body_shorter_or_longer_than_its_length_over_http2_resets_the_stream() {
    let (_origin, bed) = bed("").await;
    for length in ["2", "10"] {
        let mut client = bed.client(WAYS[1]).await;
        let (send, body) = channel();
        let request = ask(http::Method::POST, "a", "/", &[("content-length", length)]).map(|_| body);
        tokio::spawn(async move {
            let _ = send.send(hyper::body::Frame::data(Bytes::from_static(b"12345"))).await;
        });
        let outcome = client.begin(request).await;
        assert!(outcome.is_err() || outcome.is_ok_and(|r| r.status() == 400), "content-length {length}");
    }
    serves(&bed).await;
}
