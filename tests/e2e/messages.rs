//! What happens to requests and responses on their way through.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt;
use hyper::body::Frame;
use outrigger_tests::client::{GrpcReply, H1Client, H2Client, get, request};
use outrigger_tests::origin::Origin;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;

async fn echo_bed(manager: &str) -> (Origin, Bed) {
    let origin = Origin::start("v1").unwrap();
    let front = Front { routes: &all_to("a"), manager, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    (origin, bed)
}

#[tokio::test]
async fn headers_a_proxy_adds() {
    let (_origin, bed) = echo_bed("").await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        let reply = client.get("host.test", "/?q=1").await;
        assert_eq!((reply.status.as_u16(), reply.header("server")), (200, "envoy"), "{way:?}");
        assert!(reply.header("date").ends_with(" GMT"), "{reply:?}");
        assert!(reply.header("x-envoy-upstream-service-time").parse::<u32>().is_ok(), "{reply:?}");
        assert!(reply.header("x-request-id").is_empty());
        assert_eq!((&reply.json()["path"], &reply.json()["protocol"]), (&"/?q=1".into(), &"HTTP/1.1".into()));
        assert_eq!(seen(&reply, "host"), "host.test");
        assert_eq!(seen(&reply, "x-forwarded-proto"), if way.mtls { "https" } else { "http" });
        assert_eq!(seen(&reply, "x-envoy-expected-rq-timeout-ms"), "15000");
        let id = seen(&reply, "x-request-id");
        let id = id.as_str().unwrap();
        assert!(id.len() == 36 && id.as_bytes()[14] == b'4' && id.split('-').count() == 5, "no UUID: {id}");
        let again = client.get("host.test", "/").await;
        assert_ne!(seen(&again, "x-request-id"), id);
        for absent in
            ["x-forwarded-for", "x-envoy-internal", "x-envoy-external-address", "via", "x-forwarded-client-cert"]
        {
            assert_eq!(seen(&reply, absent), Value::Null, "{absent} {way:?}");
        }
    }
}

#[tokio::test]
async fn a_server_behind_another_proxy_keeps_what_that_one_said() {
    let (_origin, bed) = echo_bed("").await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        let sent = [
            ("x-request-id", "my-id"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-client-cert", "Hash=forged"),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-max-retries", "9"),
            ("x-envoy-internal", "true"),
            ("x-envoy-expected-rq-timeout-ms", "1"),
        ];
        let reply = client.send(ask(Method::GET, "a", "/delay/20", &sent)).await;
        assert_eq!(reply.status, 200);
        for (name, expected) in [
            ("x-request-id", "my-id".into()),
            ("x-forwarded-for", "1.2.3.4".into()),
            ("x-forwarded-proto", "https".into()),
            ("x-forwarded-client-cert", Value::Null),
            ("x-envoy-upstream-rq-timeout-ms", Value::Null),
            ("x-envoy-retry-on", Value::Null),
            ("x-envoy-max-retries", Value::Null),
            ("x-envoy-internal", Value::Null),
            ("x-envoy-expected-rq-timeout-ms", "15000".into()),
        ] {
            assert_eq!(seen(&reply, name), expected, "{name} {way:?}");
        }
    }
}

#[tokio::test]
async fn an_edge_proxy_believes_the_connection() {
    let (_origin, bed) = echo_bed("use_remote_address: true").await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        let sent = [("x-request-id", "my-id"), ("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")];
        let reply = client.send(ask(Method::GET, "a", "/", &sent)).await;
        let chain = seen(&reply, "x-forwarded-for");
        assert!(chain.as_str().unwrap().starts_with("1.2.3.4,"), "{chain}");
        assert_ne!(seen(&reply, "x-request-id"), "my-id");
        assert_eq!(seen(&reply, "x-forwarded-proto"), "http");
        assert_eq!(seen(&reply, "x-envoy-external-address"), "127.0.0.1");
    }
}

#[tokio::test]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let (_origin, bed) = echo_bed("").await;
    let mut client = bed.client(WAYS[0]).await;
    let sent = [
        ("connection", "keep-alive, x-nominated"),
        ("x-nominated", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers, gzip"),
        ("x-kept", "1"),
    ];
    let reply = client.send(ask(Method::GET, "a", "/", &sent)).await;
    for (name, expected) in [
        ("connection", Value::Null),
        ("x-nominated", Value::Null),
        ("keep-alive", Value::Null),
        ("proxy-connection", Value::Null),
        ("te", "trailers".into()),
        ("x-kept", "1".into()),
    ] {
        assert_eq!(seen(&reply, name), expected, "{name}");
    }

    let origin = Scripted::start(|_| {
        Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver: mine\r\ndate: then\r\nkeep-alive: timeout=1\r\nconnection: keep-alive\r\nproxy-connection: x\r\nX-Case: a\r\nx-case: b\r\n\r\nok")
    })
    .await;
    let front = Front { routes: &all_to("a"), ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address], "")).await;
    for way in PLAIN {
        let reply = bed.client(way).await.get("a", "/").await;
        assert_eq!((reply.header("server"), reply.header("date"), reply.text().as_str()), ("envoy", "then", "ok"));
        assert_eq!(all(&reply.headers, "x-case"), ["a", "b"]);
        for gone in ["connection", "keep-alive", "proxy-connection", "transfer-encoding"] {
            assert!(!reply.headers.contains_key(gone), "{gone} {way:?}");
        }
    }
}

#[tokio::test]
async fn big_bodies_arrive_whole_both_ways() {
    const SIZE: usize = 8 << 20;
    let (_origin, bed) = echo_bed("").await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        let reply = client.send(request(Method::POST, "a", "/", Bytes::from(vec![b'u'; SIZE]))).await;
        assert_eq!(reply.json()["body_bytes"], SIZE, "{way:?}");
        let reply = client.get("a", &format!("/big/{SIZE}")).await;
        assert!(reply.body.len() == SIZE && reply.body.iter().all(|b| *b == b'x'), "{way:?}");
    }
}

#[tokio::test]
async fn bodies_stream_in_both_directions() {
    let (_origin, bed) = echo_bed("").await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        // Chunked, length unknown at the start.
        let (send, body) = channel();
        let upload = tokio::spawn(async move {
            for _ in 0..10 {
                send.send(Frame::data(Bytes::from_static(&[b'u'; 1000]))).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let reply =
            read(client.begin(request(Method::POST, "a", "/", Bytes::new()).map(|_| body)).await.unwrap()).await;
        upload.await.unwrap();
        assert_eq!(reply.unwrap().json()["body_bytes"], 10_000, "{way:?}");

        let response = client.begin(get("a", "/drip/20/10").map(full)).await.unwrap();
        let mut body = response.into_body();
        let first = soon("the first chunk", body.frame()).await.unwrap().unwrap().into_data().unwrap();
        assert!(first.len() < 20, "the response came in one piece");
        let rest = body.collect().await.unwrap().to_bytes();
        assert_eq!(first.len() + rest.len(), 20);
    }
}

/// Resident memory in KiB.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_slow_reader_holds_the_origin_back() {
    const SIZE: usize = 300 << 20;
    let (_origin, bed) = echo_bed("").await;
    let mut stream = TcpStream::connect(bed.plain).await.unwrap();
    let before = resident(bed.proxy.pid());
    stream.write_all(format!("GET /big/{SIZE} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 200"));
    // Nobody reads: what arrives meanwhile is what the proxy and the kernel hold.
    let mut last = 0;
    let mut same = 0;
    while same < 20 {
        let received = stat(&bed.proxy, "cluster.a.upstream_cx_rx_bytes_total").await;
        same = if received == last { same + 1 } else { 0 };
        last = received;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let grown = resident(bed.proxy.pid()).saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more for one slow reader");
    assert!(last < 100 << 20, "{last} bytes were taken from the origin");
    let mut left = SIZE;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let read = soon("more of the body", stream.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "closed with {left} bytes to come");
        left -= read.min(left);
    }
}

#[tokio::test]
async fn http2_upstream_passes_trailers_and_shares_a_connection() {
    let origin = Origin::start("v1").unwrap();
    let bed =
        Bed::start(Front { routes: &all_to("a"), ..Front::default() }, &cluster("a", &[origin.address()], HTTP2)).await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        let reply = client.get("a", "/").await;
        assert_eq!(
            (reply.json()["protocol"].as_str(), reply.json()["authority"].as_str()),
            (Some("HTTP/2.0"), Some("a"))
        );
        let reply = client.get("a", "/trailers").await;
        assert_eq!(reply.status, 200);
        let trailer = reply.trailers.as_ref().map(|t| t["x-trailer"].to_str().unwrap());
        assert_eq!(trailer, way.http2.then_some("v1"), "{way:?}");
    }
    let client = H2Client::connect(&bed.plain.into()).await.unwrap();
    let calls = (0..50).map(|n| {
        let mut client = client.clone();
        async move { client.send(get("a", &format!("/delay/{}", n % 7))).await.unwrap().status }
    });
    assert!(futures_util::future::join_all(calls).await.iter().all(|status| *status == 200));
    assert_eq!(origin.connections(), 1, "one worker needs one HTTP/2 connection");
}

#[tokio::test]
async fn keep_alive_reuses_one_upstream_connection() {
    let (origin, bed) = echo_bed("").await;
    let mut client = bed.client(WAYS[0]).await;
    for _ in 0..20 {
        assert_eq!(client.get("a", "/").await.status, 200);
    }
    assert_eq!(origin.connections(), 1);
    assert_eq!(stat(&bed.proxy, "http.front.downstream_cx_total").await, 1);
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_rq_total").await, 20);
    // A connection that the origin closes is replaced, and nobody notices.
    for _ in 0..5 {
        assert_eq!(client.get("a", "/close").await.status, 200);
    }
    assert!(client.is_open());
    assert!(origin.connections() >= 5);
}

#[tokio::test]
async fn grpc_passes_with_its_status() {
    let origin = Origin::start("v1").unwrap();
    let bed =
        Bed::start(Front { routes: &all_to("a"), ..Front::default() }, &cluster("a", &[origin.address()], HTTP2)).await;
    for way in [WAYS[1], WAYS[3]] {
        let mut client = bed.client(way).await;
        let call = |status: &str| {
            let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-grpc-status", status)];
            ask(Method::POST, "a", "/pkg.Service/Echo", &headers).map(|_| grpc_frame(b"hello"))
        };
        let reply = client.send(call("0")).await;
        assert_eq!(reply.body, grpc_frame(b"hello"), "{way:?}");
        assert_eq!(reply.trailers.unwrap()["grpc-status"], "0");
        let reply = client.send(call("7")).await;
        let trailers = reply.trailers.unwrap();
        assert_eq!(
            (reply.status.as_u16(), &trailers["grpc-status"], &trailers["grpc-message"]),
            (200, &"7".parse::<HeaderValue>().unwrap(), &"asked for".parse::<HeaderValue>().unwrap())
        );
    }
}

#[tokio::test]
async fn grpc_streams_in_both_directions_at_once() {
    let origin = Origin::start("v1").unwrap();
    let bed =
        Bed::start(Front { routes: &all_to("a"), ..Front::default() }, &cluster("a", &[origin.address()], HTTP2)).await;
    for way in [WAYS[1], WAYS[3]] {
        let mut client = bed.client(way).await;
        let (send, body) = channel();
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let call = ask(Method::POST, "a", "/pkg.Service/Stream", &headers).map(|_| body);
        let response = client.begin(call).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        for n in 0..5_u8 {
            // Each message is answered before the next is sent.
            send.send(Frame::data(grpc_frame(&[n; 100]))).await.unwrap();
            let mut echoed = Vec::new();
            while echoed.len() < 105 {
                let frame = soon("the echo", body.frame()).await.unwrap().unwrap();
                echoed.extend_from_slice(&frame.into_data().unwrap());
            }
            assert_eq!(echoed, grpc_frame(&[n; 100]), "{way:?}");
        }
        drop(send);
        let end = soon("the trailers", body.collect()).await.unwrap();
        assert_eq!(end.trailers().unwrap()["grpc-status"], "0");
    }
}

#[tokio::test]
async fn request_trailers_reach_an_http2_origin() {
    let origin = Origin::start("v1").unwrap();
    let bed =
        Bed::start(Front { routes: &all_to("a"), ..Front::default() }, &cluster("a", &[origin.address()], HTTP2)).await;
    let mut client = bed.client(WAYS[1]).await;
    let (send, body) = channel();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-last", HeaderValue::from_static("1"));
    send.send(Frame::data(Bytes::from_static(b"data"))).await.unwrap();
    send.send(Frame::trailers(trailers)).await.unwrap();
    drop(send);
    let reply = read(client.begin(request(Method::POST, "a", "/", Bytes::new()).map(|_| body)).await.unwrap()).await;
    assert_eq!(reply.unwrap().json()["body_bytes"], 4);
}

#[tokio::test]
async fn grpc_clients_get_local_replies_they_understand() {
    let routes = "{ match: { prefix: /down }, route: { cluster: down } }, { match: { prefix: /empty }, route: { cluster: empty } },
        { match: { prefix: /denied }, direct_response: { status: 403, body: { inline_string: 'no, you' } } }";
    let clusters = cluster("down", &[dead_address()], HTTP2) + &cluster("empty", &[], HTTP2);
    let bed = Bed::start(Front { routes, ..Front::default() }, &clusters).await;
    let mut client = H2Client::connect(&bed.plain.into()).await.unwrap();
    for (path, status, message) in [
        ("/down", 14, "upstream connect error or disconnect/reset before headers"),
        ("/empty", 14, "no healthy upstream"),
        ("/denied", 7, "no, you"),
        ("/unknown", 12, ""),
    ] {
        let GrpcReply { status: got, message: text, reply, .. } = client.grpc("a", path, b"x").await.unwrap();
        assert_eq!((reply.status.as_u16(), got), (200, status), "{path}");
        assert!(text.starts_with(message), "{path}: {text}");
        assert_eq!((reply.header("content-type"), reply.body.len()), ("application/grpc", 0));
    }
}

#[tokio::test]
async fn websockets_are_upgraded_where_allowed() {
    let (_origin, bed) = echo_bed("upgrade_configs: [{ upgrade_type: websocket }]").await;
    for way in [WAYS[0], WAYS[2]] {
        let target = match way.mtls {
            true => outrigger_tests::client::Target::tls(bed.mtls, bed.keys.client_tls(&["http/1.1"])),
            false => bed.plain.into(),
        };
        let client = H1Client::connect(&target).await.unwrap();
        let mut stream = client.upgrade("a", "/chat", "websocket").await.unwrap();
        let mut echo = [0; 5];
        for _ in 0..3 {
            stream.write_all(b"hello").await.unwrap();
            soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
            assert_eq!(&echo, b"hello");
        }
        let name = if way.mtls { "front-mtls" } else { "front" };
        assert_eq!(stat(&bed.proxy, &format!("http.{name}.downstream_cx_upgrades_active")).await, 1);
        drop(stream);
        bed.proxy.wait_stat(&format!("http.{name}.downstream_cx_upgrades_active"), |v| v == 0).await.unwrap();
    }
    // An ordinary request on the same listener, and an upgrade nobody allowed.
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 200);
    let (_origin, bed) = echo_bed("").await;
    let client = H1Client::connect(&bed.plain.into()).await.unwrap();
    let refused = client.upgrade("a", "/chat", "websocket").await.err().unwrap().to_string();
    assert!(refused.contains("403"), "{refused}");
}

#[tokio::test]
async fn http_1_0_is_asked_to_upgrade_unless_accepted() {
    let (_origin, bed) = echo_bed("").await;
    let answer = raw(bed.plain, b"GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert_eq!(status_of(&answer), 426, "{answer}");
    let (_origin, bed) =
        echo_bed("http_protocol_options: { accept_http_10: true, default_host_for_http_10: old.test }").await;
    let answer = raw(bed.plain, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.contains("old.test"), "{answer}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_origin, bed) = echo_bed("").await;
    let text = "GET /delay/30?1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /?2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
                GET /?3 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = raw(bed.plain, text.as_bytes()).await;
    let places: Vec<usize> =
        ["/delay/30?1", "/?2", "/?3"].iter().map(|path| answer.find(path).expect(&answer)).collect();
    assert!(places.is_sorted() && answer.matches("HTTP/1.1 200 OK").count() == 3, "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn expect_100_continue_is_answered_by_the_proxy() {
    let (_origin, bed) = echo_bed("").await;
    let mut stream = TcpStream::connect(bed.plain).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let go = soon("100 Continue", read_head(&mut stream)).await.unwrap();
    assert!(go.starts_with("HTTP/1.1 100 Continue\r\n"), "{go}");
    stream.write_all(b"body").await.unwrap();
    let mut rest = String::new();
    soon("the response", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.contains("\"body_bytes\":4"), "{rest}");
    assert!(!rest.contains("\"expect\""), "{rest}");
}

#[tokio::test]
async fn responses_without_a_body_stay_without() {
    let origin = Scripted::start(|n| {
        Some(match n % 4 {
            0 => "HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n",
            1 => "HTTP/1.1 204 No Content\r\n\r\n",
            2 => "HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\netag: \"x\"\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        })
    })
    .await;
    let front = Front { routes: &all_to("a"), ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address], "")).await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        let head = client.send(ask(Method::HEAD, "a", "/", &[])).await;
        assert_eq!((head.status.as_u16(), head.header("content-length"), head.body.len()), (200, "12345", 0));
        let empty = client.get("a", "/").await;
        assert_eq!((empty.status.as_u16(), empty.header("content-length"), empty.body.len()), (204, "", 0), "{way:?}");
        let same = client.get("a", "/").await;
        assert_eq!((same.status.as_u16(), same.header("etag"), same.body.len()), (304, "\"x\"", 0));
        assert_eq!(client.get("a", "/").await.text(), "ok", "the connection is in step");
    }
}

#[tokio::test]
async fn interim_responses_of_the_origin_are_swallowed() {
    let origin = Scripted::start(|_| {
        Some("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    })
    .await;
    let front = Front { routes: &all_to("a"), ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address], "")).await;
    let answer = raw(bed.plain, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert!(!answer.contains("103") && !answer.contains("link"), "{answer}");
}

#[tokio::test]
async fn the_origin_learns_who_the_client_is() {
    let (_origin, bed) = echo_bed("forward_client_cert_details: SANITIZE_SET\nset_current_client_cert_details: { subject: true, uri: true, dns: true }").await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        let reply = client.send(ask(Method::GET, "a", "/", &[("x-forwarded-client-cert", "By=forged")])).await;
        let xfcc = seen(&reply, "x-forwarded-client-cert");
        if way.mtls {
            let xfcc = xfcc.as_str().unwrap();
            let mut parts = xfcc.split(';');
            assert_eq!(parts.next(), Some(format!("By={SERVER_ID}").as_str()), "{xfcc}");
            let hash = parts.next().and_then(|part| part.strip_prefix("Hash=")).unwrap();
            assert!(
                hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()),
                "{xfcc}"
            );
            assert_eq!(parts.next(), Some("Subject=\"\""), "{xfcc}");
            assert_eq!(parts.next(), Some(format!("URI={CLIENT_ID}").as_str()), "{xfcc}");
            assert_eq!(parts.next(), None);
        } else {
            assert_eq!(xfcc, Value::Null);
        }
    }
}

#[tokio::test]
async fn cookies_and_repeated_headers_keep_their_order() {
    let (_origin, bed) = echo_bed("").await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        let sent = [("x-many", "1"), ("x-many", "2"), ("x-many", "1"), ("x-empty", ""), ("cookie", "a=1; b=2")];
        let reply = client.send(ask(Method::GET, "a", "/", &sent)).await;
        assert_eq!(seen(&reply, "x-many"), serde_json::json!(["1", "2", "1"]), "{way:?}");
        assert_eq!((seen(&reply, "x-empty"), seen(&reply, "cookie")), ("".into(), "a=1; b=2".into()));
    }
    let mut client = bed.client(WAYS[1]).await;
    let reply = client.send(ask(Method::GET, "a", "/", &[("cookie", "a=1"), ("cookie", "b=2")])).await;
    assert_eq!(seen(&reply, "cookie"), "a=1; b=2", "HTTP/2 may split a cookie, HTTP/1 may not");
}

#[tokio::test]
async fn a_request_with_a_whole_uri_goes_by_that() {
    let (_origin, bed) = echo_bed("").await;
    let answer =
        raw(bed.plain, b"GET http://inner.test/x?y HTTP/1.1\r\nhost: outer.test\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("\"path\":\"/x?y\"") && answer.contains("\"host\":\"inner.test\""), "{answer}");
}

#[tokio::test]
async fn upstream_connections_follow_the_downstream_options() {
    let (_origin, bed) = echo_bed("server_name: me\nvia: here\nalways_set_request_id_in_response: true\ncommon_http_protocol_options: { max_requests_per_connection: 2 }").await;
    let mut client = bed.client(WAYS[0]).await;
    let first = client.get("a", "/").await;
    assert_eq!((first.header("server"), first.header("via"), seen(&first, "via")), ("me", "here", "here".into()));
    assert_eq!(first.header("x-request-id"), seen(&first, "x-request-id"));
    assert!(first.header("connection").is_empty());
    assert_eq!(client.get("a", "/").await.header("connection"), "close");
    client.wait_closed().await;
}
