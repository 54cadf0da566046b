//! Clients and origins, tried against each other.

use super::*;
use crate::origin::{Behaviour, Origin, TcpBehaviour, TcpOrigin, tls_server};
use certs::Authority;

const HOUR: Duration = Duration::from_secs(3600);

/// One way of the two protocols to the same origin.
enum Either {
    H1(H1Client),
    H2(H2Client),
}

impl Either {
    async fn send(&mut self, request: Request<Bytes>) -> Result<Reply, Error> {
        match self {
            Self::H1(client) => client.send(request).await,
            Self::H2(client) => client.send(request).await,
        }
    }

    async fn both(target: &Target) -> [Self; 2] {
        [Self::H1(H1Client::connect(target).await.unwrap()), Self::H2(H2Client::connect(target).await.unwrap())]
    }
}

#[tokio::test]
async fn an_origin_says_who_it_is_and_what_it_got() {
    let origin = Origin::start("v1").unwrap();
    for (mut client, protocol) in Either::both(&origin.address().into()).await.into_iter().zip(["HTTP/1.1", "HTTP/2.0"])
    {
        let mut request = request(Method::POST, "reviews", "/a?b=c", Bytes::from_static(b"body"));
        request.headers_mut().insert("x-one", HeaderValue::from_static("1"));
        request.headers_mut().append("x-two", HeaderValue::from_static("a"));
        request.headers_mut().append("x-two", HeaderValue::from_static("b"));
        let reply = client.send(request).await.unwrap();
        let json = reply.json();
        assert_eq!((reply.status, reply.origin_version()), (StatusCode::OK, "v1"));
        assert_eq!(json["protocol"], protocol);
        assert_eq!(
            (&json["method"], &json["path"], &json["body_bytes"]),
            (&"POST".into(), &"/a?b=c".into(), &4.into())
        );
        assert_eq!(json["headers"]["x-one"], "1");
        assert_eq!(json["headers"]["x-two"], serde_json::json!(["a", "b"]));
    }
    assert_eq!((origin.requests(), origin.connections()), (2, 2));
}

#[tokio::test]
async fn an_origin_misbehaves_by_path_over_both_protocols() {
    let origin = Origin::start("v1").unwrap();
    let target = Target::from(origin.address());
    for mut client in Either::both(&target).await {
        assert_eq!(client.send(get("a", "/status/503")).await.unwrap().status, 503);
        assert_eq!(client.send(get("a", "/big/300000")).await.unwrap().body.len(), 300_000);
        assert_eq!(client.send(get("a", "/drip/5/1")).await.unwrap().text(), ".....");
        assert_eq!(client.send(get("a", "/delay/5")).await.unwrap().status, 200);
        let mut request = get("a", "/trailers");
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        assert_eq!(client.send(request).await.unwrap().trailers.unwrap()["x-trailer"], "v1");
    }
    for path in ["/reset", "/reset-mid-body", "/garbage"] {
        for mut client in Either::both(&target).await {
            let answer = client.send(get("a", path)).await;
            assert!(matches!(answer, Err(Error::Http(_))), "{path}: {answer:?}");
        }
    }
    let mut client = H2Client::connect(&target).await.unwrap();
    let never = tokio::time::timeout(Duration::from_millis(100), client.send(get("a", "/never"))).await;
    assert!(never.is_err());
}

#[tokio::test]
async fn an_origin_closes_when_told_and_its_mode_rules_the_path() {
    let origin = Origin::start("v1").unwrap();
    let target = origin.address().into();
    origin.close_after(2);
    let mut client = H1Client::connect(&target).await.unwrap();
    client.send(get("a", "/")).await.unwrap();
    assert!(client.is_open());
    assert_eq!(client.send(get("a", "/")).await.unwrap().header("connection"), "close");
    client.wait_closed().await.unwrap();
    origin.close_after(0);
    origin.set(Some(Behaviour::Status(418)));
    let mut client = H1Client::connect(&target).await.unwrap();
    assert_eq!(client.send(get("a", "/status/200")).await.unwrap().status, 418);
    drop(origin);
    client.wait_closed().await.unwrap();
    assert!(H1Client::connect(&target).await.is_err(), "a dead origin refuses");
}

#[tokio::test]
async fn upgrades_and_grpc_are_echoed() {
    let origin = Origin::start("v1").unwrap();
    let target = origin.address().into();
    let client = H1Client::connect(&target).await.unwrap();
    let mut stream = client.upgrade("a", "/ws", "websocket").await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");

    let mut client = H2Client::connect(&target).await.unwrap();
    let call = client.grpc("a", "/x.Y/Z", b"hello").await.unwrap();
    assert_eq!((call.status, call.answer.as_deref()), (0, Some(&b"hello"[..])));
}

#[tokio::test]
async fn mutual_tls_proves_both_sides_and_refuses_strangers() {
    let authority = Authority::new("td").unwrap();
    let stranger = Authority::new("td").unwrap();
    let reviews = authority.issue(&"spiffe://td/reviews".parse().unwrap(), HOUR, &[]).unwrap();
    let caller = "spiffe://td/caller".parse().unwrap();
    let bundle = Some(authority.bundle_pem());
    let origin = Origin::start_tls("v1", tls_server(&reviews, bundle).unwrap()).unwrap();
    let identity = authority.issue(&caller, HOUR, &[]).unwrap();
    let tls = |alpn: &str, svid: &certs::Svid| ClientTls::new("reviews.td", &[alpn], Some(svid), bundle).unwrap();

    let mut h1 = H1Client::connect(&Target::tls(origin.address(), tls("http/1.1", &identity))).await.unwrap();
    let mut h2 = H2Client::connect(&Target::tls(origin.address(), tls("h2", &identity))).await.unwrap();
    assert_eq!(h1.send(get("a", "/")).await.unwrap().json()["tls"], true);
    assert_eq!(h2.send(get("a", "/")).await.unwrap().json()["protocol"], "HTTP/2.0");
    let seen = server_identities(origin.address(), &tls("h2", &identity)).await.unwrap();
    assert_eq!(seen, ["spiffe://td/reviews"]);

    let wrong = stranger.issue(&caller, HOUR, &[]).unwrap();
    let refused = async {
        let mut client = H1Client::connect(&Target::tls(origin.address(), tls("http/1.1", &wrong))).await?;
        client.send(get("a", "/")).await
    };
    assert!(refused.await.is_err());
    let suspicious = ClientTls::new("x", &[], Some(&identity), Some(stranger.bundle_pem())).unwrap();
    assert!(Target::tls(origin.address(), suspicious).connect().await.is_err());
    let trusting = ClientTls::new("x", &[], Some(&identity), None).unwrap();
    assert!(Target::tls(origin.address(), trusting).connect().await.is_ok());
}

#[tokio::test]
async fn raw_bytes_go_both_ways() {
    let origin = TcpOrigin::start("v1", TcpBehaviour::Echo).unwrap();
    let target = origin.address().into();
    assert_eq!(raw(&target, b"abc", true).await.unwrap(), b"abc");
    for (behaviour, answer) in [
        (TcpBehaviour::Greet, &b"v1\nabc"[..]),
        (TcpBehaviour::CountUntilEof, b"v1 3\n"),
        (TcpBehaviour::Send(5), b"xxxxx"),
    ] {
        origin.set(behaviour);
        assert_eq!(raw(&target, b"abc", true).await.unwrap(), answer, "{behaviour:?}");
    }
    origin.set(TcpBehaviour::Reset);
    let reset = raw(&target, b"", false).await;
    assert!(reset.as_ref().is_err() || reset.is_ok_and(|bytes| bytes.is_empty()));

    let http = Origin::start("v1").unwrap();
    let answer = raw(&http.address().into(), b"GET /status/404 HTTP/1.0\r\n\r\n", false).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.0 404"), "{}", String::from_utf8_lossy(&answer));
}
