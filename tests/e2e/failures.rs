//! What a client gets when the origin is slow, gone or broken, and what retries make of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::Method;
use hyper::body::Frame;
use outrigger_tests::client::{get, request};
use outrigger_tests::origin::{Behaviour, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;

const REFUSED: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";

#[tokio::test]
async fn a_slow_origin_is_504() {
    let origin = Origin::start("v1").unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let access = file_log(log.path(), "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
    let routes = "{ match: { prefix: / }, route: { cluster: a, timeout: 0.2s } }";
    let front = Front { routes, manager: &access, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        let reply = client.get("a", "/never").await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (504, "upstream request timeout"), "{way:?}");
        assert_eq!(seen(&client.get("a", "/").await, "x-envoy-expected-rq-timeout-ms"), "200");
    }
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_rq_timeout").await, 4);
    eventually("the given up requests to end", || async { origin.open_connections() <= 4 }).await;
    let lines = log_lines(log.path(), 8).await;
    assert_eq!(lines.iter().filter(|line| *line == "504 UT response_timeout").count(), 4, "{lines:?}");
}

#[tokio::test]
async fn a_timeout_of_zero_is_none() {
    let origin = Origin::start("v1").unwrap();
    let routes = "{ match: { prefix: / }, route: { cluster: a, timeout: 0s } }";
    let bed = Bed::start(Front { routes, ..Front::default() }, &cluster("a", &[origin.address()], "")).await;
    let reply = bed.client(WAYS[0]).await.get("a", "/delay/50").await;
    assert!(seen(&reply, "x-envoy-expected-rq-timeout-ms").is_null());
}

#[tokio::test]
async fn an_idle_stream_is_ended() {
    let origin = Origin::start("v1").unwrap();
    let front = Front { routes: &all_to("a"), manager: "stream_idle_timeout: 0.3s", ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    for way in PLAIN {
        let reply = bed.client(way).await.get("a", "/never").await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (504, "stream timeout"), "{way:?}");
        // The request's body never ends.
        let (send, body) = channel();
        send.send(Frame::data(Bytes::from_static(b"x"))).await.unwrap();
        let mut client = bed.client(way).await;
        let response = client.begin(request(Method::POST, "a", "/", Bytes::new()).map(|_| body)).await.unwrap();
        assert_eq!(response.status(), 408, "{way:?}");
        drop(send);
    }
    assert_eq!(stat(&bed.proxy, "http.front.downstream_rq_idle_timeout").await, 4);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let manager = "common_http_protocol_options: { idle_timeout: 0.2s }";
    let front =
        Front { routes: "{ match: { prefix: / }, direct_response: { status: 200 } }", manager, ..Front::default() };
    let bed = Bed::start(front, "").await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        assert_eq!(client.get("a", "/").await.status, 200);
        client.wait_closed().await;
    }
    at_least(&bed.proxy, "http.front.downstream_cx_idle_timeout", 2).await;
}

#[tokio::test]
async fn a_refused_connection_is_503_and_says_so() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let access = file_log(log.path(), "%RESPONSE_CODE% %RESPONSE_FLAGS%");
    let front = Front { routes: &all_to("down"), manager: &access, ..Front::default() };
    let bed = Bed::start(front, &cluster("down", &[dead_address()], "")).await;
    for way in WAYS {
        let reply = bed.client(way).await.get("a", "/").await;
        assert_eq!(reply.status, 503, "{way:?}");
        assert!(reply.text().starts_with(REFUSED), "{}", reply.text());
        assert_eq!((reply.header("content-type"), reply.header("server")), ("text/plain", "envoy"));
    }
    for (name, expected) in [
        ("cluster.down.upstream_cx_connect_fail", 4),
        ("cluster.down.upstream_rq_503", 4),
        ("cluster.down.upstream_rq_pending_failure_eject", 4),
        ("http.front.downstream_rq_5xx", 2),
    ] {
        assert_eq!(stat(&bed.proxy, name).await, expected, "{name}");
    }
    assert_eq!(log_lines(log.path(), 4).await, ["503 UF"; 4]);
}

#[tokio::test]
async fn an_origin_that_resets_is_503() {
    let origin = Origin::start("v1").unwrap();
    let bed =
        Bed::start(Front { routes: &all_to("a"), ..Front::default() }, &cluster("a", &[origin.address()], "")).await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        let reply = client.get("a", "/reset").await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (503, RESET), "{way:?}");
        assert!(client.try_send(get("a", "/reset-mid-body")).await.is_err(), "half a body is no success, {way:?}");
        let mut client = bed.client(way).await;
        assert_eq!(client.get("a", "/").await.status, 200);
        assert_eq!(client.get("a", "/garbage").await.status, 502, "{way:?}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_retried_elsewhere() {
    let origin = Origin::start("v1").unwrap();
    let routes = "{ match: { prefix: / }, route: { cluster: a, retry_policy: { retry_on: 'connect-failure,refused-stream', num_retries: 2 } } }";
    let front = Front { routes, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[dead_address(), origin.address()], "")).await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        for n in 0..20 {
            let body = Bytes::from(vec![b'x'; n * 100]);
            let reply = client.send(request(Method::POST, "a", "/", body)).await;
            assert_eq!((reply.status.as_u16(), &reply.json()["body_bytes"]), (200, &(n * 100).into()), "{way:?}");
        }
    }
    at_least(&bed.proxy, "cluster.a.upstream_rq_retry", 1).await;
    at_least(&bed.proxy, "cluster.a.upstream_rq_retry_success", 1).await;
}

#[tokio::test]
async fn retries_end() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let access = file_log(log.path(), "%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%");
    let routes = "{ match: { prefix: / }, route: { cluster: a, retry_policy: { retry_on: connect-failure, num_retries: 2, retry_back_off: { base_interval: 0.001s } } } }";
    let front = Front { routes, manager: &access, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[dead_address()], "")).await;
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.status, 503);
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_rq_retry").await, 2);
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_rq_retry_limit_exceeded").await, 1);
    assert_eq!(log_lines(log.path(), 1).await, ["503 URX,UF 3"]);
}

#[tokio::test]
async fn a_request_the_origin_may_have_seen_is_not_retried() {
    let origin = Origin::start("v1").unwrap();
    let routes =
        "{ match: { prefix: / }, route: { cluster: a, retry_policy: { retry_on: 'connect-failure,refused-stream' } } }";
    let front = Front { routes, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    let mut client = bed.client(WAYS[0]).await;
    let reply = client.get("a", "/reset").await;
    assert_eq!((reply.status.as_u16(), origin.requests()), (503, 1));
    let reply = client.get("a", "/status/503").await;
    assert_eq!((reply.status.as_u16(), origin.requests()), (503, 2));
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_rq_retry").await, 0);
}

#[tokio::test]
async fn a_reset_is_retried_where_asked() {
    let origin = Scripted::start(|n| match n {
        0 | 1 => None,
        _ => Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
    })
    .await;
    let routes = "{ match: { prefix: / }, route: { cluster: a, retry_policy: { retry_on: reset, num_retries: 3, retry_back_off: { base_interval: 0.001s } } } }";
    let front = Front { routes, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address], "")).await;
    assert_eq!(bed.client(WAYS[0]).await.get("a", "/").await.text(), "ok");
    assert_eq!(stat(&bed.proxy, "cluster.a.upstream_rq_retry").await, 2);
}

/// An HTTP/2 origin of a few frames: refuses the first `refuse` streams, answers the others with 200.
async fn refusing_origin(refuse: u64) -> (std::net::SocketAddr, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streams = Arc::<AtomicU64>::default();
    let count = Arc::clone(&streams);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(refuse_streams(stream, Arc::clone(&count), refuse));
        }
    });
    (address, streams)
}

async fn refuse_streams(mut stream: TcpStream, count: Arc<AtomicU64>, refuse: u64) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await?;
        let [.., a, b, c, d] = head;
        match (head[3], head[4] & 1) {
            // SETTINGS: acknowledge.
            (4, 0) => stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await?,
            // HEADERS: RST_STREAM(REFUSED_STREAM), or HEADERS with END_STREAM and `:status: 200` from the static table.
            (1, _) if count.fetch_add(1, Ordering::Relaxed) < refuse => {
                stream.write_all(&[0, 0, 4, 3, 0, a, b, c, d, 0, 0, 0, 7]).await?;
            }
            (1, _) => stream.write_all(&[0, 0, 1, 1, 5, a, b, c, d, 0x88]).await?,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_refused_stream_is_retried() {
    for (retry_on, status, streams) in [("refused-stream", 200, 2), ("connect-failure", 503, 1)] {
        let (origin, count) = refusing_origin(1).await;
        let routes =
            format!("{{ match: {{ prefix: / }}, route: {{ cluster: a, retry_policy: {{ retry_on: {retry_on} }} }} }}");
        let front = Front { routes: &routes, ..Front::default() };
        let bed = Bed::start(front, &cluster("a", &[origin], HTTP2)).await;
        let reply = bed.client(WAYS[1]).await.get("a", "/").await;
        assert_eq!((reply.status.as_u16(), count.load(Ordering::Relaxed)), (status, streams), "{retry_on}");
    }
}

#[tokio::test]
async fn a_client_that_gives_up_frees_the_origin() {
    let origin = Origin::start("v1").unwrap();
    origin.set(Some(Behaviour::Never));
    let log = tempfile::NamedTempFile::new().unwrap();
    let access = file_log(log.path(), "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
    let front = Front { routes: &all_to("a"), manager: &access, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    for (n, way) in (1..).zip(PLAIN) {
        let mut client = bed.client(way).await;
        let call = tokio::spawn(async move { client.try_send(get("a", "/")).await.map(|r| r.status) });
        eventually("the request to arrive", || async { origin.requests() == n }).await;
        call.abort();
        eventually("the origin to be free", || async { origin.open_connections() == 0 }).await;
    }
    bed.proxy.wait_stat("cluster.a.upstream_rq_active", |v| v == 0).await.unwrap();
    let lines = log_lines(log.path(), 2).await;
    assert_eq!(lines[0], "0 DC downstream_remote_disconnect");
    assert!(lines[1].starts_with("0 D"), "{lines:?}");
}
