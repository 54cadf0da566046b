//! Pools against small servers on loopback.

use super::*;
use crate::config::model::{
    CertificateSource, ClusterConfig, CommonTls, Thresholds, TlsVersion, UpstreamProtocol, UpstreamTlsConfig,
    UpstreamTransport, ValidationSource,
};
use crate::upstream::testing::{assignment, cluster_with, endpoint_at, manager};
use crate::upstream::{LbContext, SendErrorKind, WorkerUpstream};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One worker and one cluster with one endpoint.
struct Fixture {
    worker: Rc<WorkerUpstream>,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
}

impl Fixture {
    fn new(address: SocketAddr, change: impl FnOnce(&mut ClusterConfig)) -> Fixture {
        let cluster = cluster_with(assignment(vec![(0, vec![endpoint_at(address)])]), change);
        let worker = WorkerUpstream::new(manager().0);
        let host = worker.choose_host(&cluster, &LbContext::default()).unwrap();
        Fixture { worker, cluster, host }
    }

    async fn lease(&self) -> Result<HttpLease, UpstreamError> {
        self.worker.http(&self.cluster, &self.host, &HttpOptions::default()).await
    }

    /// One request, read to its end; the body as text and the id of the connection.
    async fn get(&self) -> (String, u64) {
        let response = self.lease().await.unwrap().send(request(RequestBody::Empty)).await.unwrap();
        let id = response.body().connection().id;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (String::from_utf8(body.to_vec()).unwrap(), id)
    }

    /// What is active now: requests, requests in the queue, by the cluster and by its breakers.
    fn in_flight(&self) -> [u64; 4] {
        let breakers = self.cluster.breakers(Priority::Default);
        let stats = self.cluster.stats();
        assert_eq!(u64::from(self.host.stats.rq_active.load(Ordering::Relaxed)), stats.upstream_rq_active.value());
        [
            stats.upstream_rq_active.value(),
            stats.upstream_rq_pending_active.value(),
            breakers.requests.used().into(),
            breakers.pending.used().into(),
        ]
    }

    fn connections(&self) -> [u64; 2] {
        [
            self.cluster.stats().upstream_cx_active.value(),
            self.cluster.breakers(Priority::Default).connections.used().into(),
        ]
    }
}

fn request(body: RequestBody) -> Request<RequestBody> {
    Request::builder().uri("http://test/").header("host", "test").body(body).unwrap()
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Runs a test as a worker would: one thread, tasks that need not be `Send`.
fn run<F: Future<Output = ()> + 'static>(test: F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await }).expect("the test ends");
}

/// Lets every task run until nothing is left to do at once.
async fn settle() {
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => seen.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8(seen).unwrap())
}

/// Answers every request on every connection with the peer's port; requests on one connection wait for `gate`.
async fn serve_http1(listener: TcpListener, gate: Arc<tokio::sync::Semaphore>) {
    loop {
        let (mut stream, peer) = listener.accept().await.unwrap();
        let gate = Arc::clone(&gate);
        tokio::task::spawn_local(async move {
            while read_head(&mut stream).await.is_some() {
                gate.acquire().await.unwrap().forget();
                let body = peer.to_string();
                let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                if stream.write_all(response.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn open_gate() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(1000))
}

#[test]
fn a_connection_is_used_again_and_the_last_one_first() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(serve_http1(listener, open_gate()));
        let f = Fixture::new(address, |_| {});
        let (first, id) = f.get().await;
        assert_eq!(f.get().await, (first, id));
        // two at once need two connections; the one given back last is taken first
        let a = f.lease().await.unwrap();
        let b = f.lease().await.unwrap();
        let (id_a, id_b) = (a.connection().id, b.connection().id);
        assert_ne!(id_a, id_b);
        drop(a);
        drop(b);
        assert_eq!(f.get().await.1, id_b);
        assert_eq!(f.get().await.1, id_b);
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [2, 2]));
        assert_eq!(f.cluster.stats().upstream_cx_http1_total.value(), 2);
        f.cluster.retire();
        f.worker.sweep();
        settle().await;
        assert_eq!(f.connections(), [0, 0]);
    });
}

#[test]
fn a_full_queue_refuses_and_a_free_connection_serves_the_queue() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(serve_http1(listener, open_gate()));
        let f = Rc::new(Fixture::new(address, |c| {
            c.circuit_breakers[0] = Thresholds { max_connections: 1, max_pending_requests: 1, ..Thresholds::default() };
        }));
        let held = f.lease().await.unwrap();
        let waiting = tokio::task::spawn_local({
            let f = Rc::clone(&f);
            async move { f.get().await.1 }
        });
        settle().await;
        let refused = f.lease().await.err().unwrap();
        assert_eq!(refused.kind, UpstreamErrorKind::Overflow);
        let stats = f.cluster.stats();
        assert_eq!((stats.upstream_rq_pending_overflow.value(), stats.upstream_cx_overflow.value()), (1, 1));
        let id = held.connection().id;
        drop(held);
        assert_eq!(waiting.await.unwrap(), id);
        assert_eq!(f.in_flight(), [0; 4]);
    });
}

#[test]
fn requests_over_the_limit_are_refused() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(serve_http1(listener, open_gate()));
        let f = Fixture::new(address, |c| c.circuit_breakers[0].max_requests = 1);
        let held = f.lease().await.unwrap();
        assert_eq!(f.lease().await.err().unwrap().kind, UpstreamErrorKind::Overflow);
        assert_eq!(f.cluster.stats().upstream_rq_active_overflow.value(), 1);
        drop(held);
        f.get().await;
    });
}

#[test]
fn a_refused_connection_fails_all_who_wait() {
    run(async {
        let (listener, address) = listen().await;
        drop(listener);
        let f = Fixture::new(address, |_| {});
        let (a, b) = tokio::join!(f.lease(), f.lease());
        let wanted = UpstreamError {
            kind: UpstreamErrorKind::ConnectionFailure,
            transport_failure: "delayed connect error: Connection refused".into(),
        };
        assert_eq!((a.err().unwrap(), b.err().unwrap()), (wanted.clone(), wanted));
        settle().await;
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [0, 0]));
        let stats = f.cluster.stats();
        assert_eq!((stats.upstream_cx_connect_fail.value(), stats.upstream_cx_destroy_remote.value()), (2, 2));
        assert_eq!((stats.upstream_rq_total.value(), stats.upstream_rq_pending_failure_eject.value()), (0, 2));
        assert_eq!(f.host.stats.cx_connect_fail.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_connection_that_takes_too_long_is_a_timeout() {
    run(async {
        // TEST-NET-1 answers nobody; where it is unreachable at once the kind differs
        let f = Fixture::new("192.0.2.1:80".parse().unwrap(), |c| c.connect_timeout = Duration::from_millis(30));
        let error = f.lease().await.err().unwrap();
        let timeouts = f.cluster.stats().upstream_cx_connect_timeout.value();
        match error.kind {
            UpstreamErrorKind::ConnectTimeout => assert_eq!(timeouts, 1),
            kind => assert_eq!((kind, timeouts), (UpstreamErrorKind::ConnectionFailure, 0)),
        }
        settle().await;
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [0, 0]));
    });
}

#[test]
fn a_connection_closed_while_idle_is_not_used() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_head(&mut stream).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx").await.unwrap();
            }
        });
        let f = Fixture::new(address, |_| {});
        let mut ids = std::collections::BTreeSet::new();
        for pause in [0, 20, 0, 0, 20] {
            ids.insert(f.get().await.1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        assert_eq!(ids.len(), 5);
        settle().await;
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [0, 0]));
        assert_eq!(f.cluster.stats().upstream_cx_destroy_remote.value(), 5);
    });
}

#[test]
fn a_server_that_hangs_up_or_speaks_nonsense_is_told_apart() {
    run(async {
        for (answer, kind) in [
            (&b""[..], SendErrorKind::ConnectionTermination),
            (b"HTTP/1.1 200 OK\r\nconten", SendErrorKind::ConnectionTermination),
            (b"SSH-2.0-x\r\n\r\n", SendErrorKind::ProtocolError),
        ] {
            let (listener, address) = listen().await;
            tokio::task::spawn_local(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_head(&mut stream).await.unwrap();
                stream.write_all(answer).await.unwrap();
            });
            let f = Fixture::new(address, |_| {});
            let error = f.lease().await.unwrap().send(request(RequestBody::Empty)).await.err().unwrap();
            assert_eq!((error.kind, error.unsent.is_none()), (kind, true), "{}", error.detail);
            settle().await;
            assert_eq!((f.in_flight(), f.connections()), ([0; 4], [0, 0]));
        }
    });
}

#[test]
fn giving_up_leaves_no_counts_and_the_connection_to_the_pool() {
    run(async {
        let (listener, address) = listen().await;
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        tokio::task::spawn_local(serve_http1(listener, Arc::clone(&gate)));
        let f = Fixture::new(address, |_| {});
        // while connecting: polled once, then dropped
        {
            let waiting = f.lease();
            tokio::pin!(waiting);
            assert!(futures_util::poll!(&mut waiting).is_pending());
            assert_eq!(f.in_flight(), [0, 1, 0, 1]);
        }
        assert_eq!(f.in_flight(), [0; 4]);
        assert_eq!(f.cluster.stats().upstream_rq_cancelled.value(), 1);
        settle().await;
        assert_eq!(f.connections(), [1, 1]);
        // while waiting for the response: the connection is closed
        let sending = f.lease().await.unwrap().send(request(RequestBody::Empty));
        assert!(tokio::time::timeout(Duration::from_millis(30), sending).await.is_err());
        settle().await;
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [0, 0]));
        // in the middle of the body
        gate.add_permits(10);
        let response = f.lease().await.unwrap().send(request(RequestBody::Empty)).await.unwrap();
        assert_eq!(f.in_flight(), [1, 0, 1, 0]);
        drop(response);
        settle().await;
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [0, 0]));
        assert_eq!(f.cluster.stats().upstream_cx_total.value(), 2);
    });
}

#[test]
fn a_connection_ends_after_its_number_of_requests() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(serve_http1(listener, open_gate()));
        let f = Fixture::new(address, |c| c.http.max_requests_per_connection = 2);
        let ids = [f.get().await.1, f.get().await.1, f.get().await.1];
        assert!(ids[0] == ids[1] && ids[1] != ids[2]);
        assert_eq!(f.cluster.stats().upstream_cx_max_requests.value(), 1);
    });
}

#[test]
fn idle_connections_end_in_time() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(serve_http1(listener, open_gate()));
        let f = Fixture::new(address, |c| c.http.idle_timeout = Some(Duration::ZERO));
        f.get().await;
        f.worker.sweep();
        settle().await;
        assert_eq!(f.connections(), [0, 0]);
        assert_eq!(f.cluster.stats().upstream_cx_idle_timeout.value(), 1);
    });
}

#[test]
fn connections_come_from_the_configured_source() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(serve_http1(listener, open_gate()));
        let f = Fixture::new(address, |c| {
            c.bind = Some(crate::config::model::BindConfig {
                sources: vec!["[::6]:0".parse().unwrap(), "127.0.0.6:0".parse().unwrap()],
                freebind: false,
            });
        });
        assert!(f.get().await.0.starts_with("127.0.0.6:"));
        let lease = f.worker.tcp(&f.cluster, &f.host).await.unwrap();
        assert_eq!(lease.info.local.unwrap().0.ip().to_string(), "127.0.0.6");
        assert_eq!(f.cluster.stats().upstream_cx_active.value(), 2);
        drop(lease);
        assert_eq!(f.cluster.stats().upstream_cx_active.value(), 1);
        assert_eq!(f.in_flight(), [0; 4]);
    });
}

#[test]
fn an_upgrade_takes_the_connection_out_of_the_pool() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await.unwrap();
            let head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let f = Fixture::new(address, |_| {});
        let mut wanted = request(RequestBody::Empty);
        wanted.headers_mut().insert("connection", "upgrade".parse().unwrap());
        wanted.headers_mut().insert("upgrade", "echo".parse().unwrap());
        let mut response = f.lease().await.unwrap().send(wanted).await.unwrap();
        let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        tunnel.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        tunnel.read_exact(&mut echo).await.unwrap();
        assert_eq!((&echo, f.in_flight(), f.connections()), (b"ping", [1, 0, 1, 0], [1, 1]));
        drop(response);
        drop(tunnel);
        settle().await;
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [0, 0]));
    });
}

#[test]
fn a_response_before_the_end_of_the_request_does_not_lose_the_pool() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        });
        let f = Fixture::new(address, |_| {});
        let endless = http_body_util::StreamBody::new(futures_util::stream::pending());
        let mut wanted = request(RequestBody::Stream(Box::pin(endless)));
        *wanted.method_mut() = http::Method::POST;
        let response = f.lease().await.unwrap().send(wanted).await.unwrap();
        assert_eq!(response.status(), 200);
        drop(response);
        settle().await;
        assert_eq!(f.in_flight(), [0; 4]);
    });
}

/// An HTTP/2 server; answers with the peer's port once `gate` lets it.
async fn serve_http2(listener: TcpListener, max_streams: u32, gate: Arc<tokio::sync::Semaphore>) {
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        let gate = Arc::clone(&gate);
        let service = service_fn(move |_| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(peer.to_string()))))
            }
        });
        tokio::task::spawn_local(async move {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.max_concurrent_streams(max_streams).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn http2(config: &mut ClusterConfig) {
    config.http.protocol = UpstreamProtocol::Http2;
}

#[test]
fn http2_requests_share_a_connection() {
    run(async {
        let (listener, address) = listen().await;
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        tokio::task::spawn_local(serve_http2(listener, 100, Arc::clone(&gate)));
        let f = Rc::new(Fixture::new(address, http2));
        let ids = Rc::new(Mutex::new(Vec::new()));
        for _ in 0..10 {
            let (f, ids) = (Rc::clone(&f), Rc::clone(&ids));
            tokio::task::spawn_local(async move {
                let id = f.get().await.1;
                ids.lock().unwrap().push(id);
            });
        }
        settle().await;
        assert_eq!((f.in_flight(), f.connections()), ([10, 0, 10, 0], [1, 1]));
        gate.add_permits(10);
        settle().await;
        let ids = ids.lock().unwrap().clone();
        assert!(ids.len() == 10 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [1, 1]));
        assert_eq!(f.cluster.stats().upstream_cx_http2_total.value(), 1);
    });
}

#[test]
fn a_full_http2_connection_is_followed_by_another() {
    run(async {
        let (listener, address) = listen().await;
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        tokio::task::spawn_local(serve_http2(listener, 100, Arc::clone(&gate)));
        let f = Rc::new(Fixture::new(address, |c| {
            http2(c);
            c.http.http2.max_concurrent_streams = 2;
        }));
        let done = Rc::new(Cell::new(0));
        for _ in 0..5 {
            let (f, done) = (Rc::clone(&f), Rc::clone(&done));
            tokio::task::spawn_local(async move {
                f.get().await;
                done.set(done.get() + 1);
            });
        }
        settle().await;
        assert_eq!((f.in_flight()[0], f.connections()[0]), (5, 3));
        gate.add_permits(5);
        settle().await;
        assert_eq!((done.get(), f.in_flight()), (5, [0; 4]));
    });
}

#[test]
fn a_cancelled_http2_request_resets_its_stream_only() {
    run(async {
        let (listener, address) = listen().await;
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        tokio::task::spawn_local(serve_http2(listener, 100, Arc::clone(&gate)));
        let f = Fixture::new(address, http2);
        let sending = f.lease().await.unwrap().send(request(RequestBody::Empty));
        assert!(tokio::time::timeout(Duration::from_millis(30), sending).await.is_err());
        assert_eq!((f.in_flight(), f.connections()), ([0; 4], [1, 1]));
        gate.add_permits(10);
        f.get().await;
        assert_eq!(f.cluster.stats().upstream_cx_total.value(), 1);
    });
}

#[test]
fn after_goaway_requests_go_to_a_new_connection() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    let mut served = 0;
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(http::Response::new(()), true).unwrap();
                        served += 1;
                        if served == 3 {
                            connection.graceful_shutdown();
                        }
                    }
                });
            }
        });
        let f = Fixture::new(address, http2);
        let mut ids = std::collections::BTreeSet::new();
        for n in 0..12 {
            ids.insert(f.get().await.1);
            if n % 2 == 0 {
                settle().await;
            }
        }
        assert!(ids.len() >= 3, "{ids:?}");
        assert_eq!(f.in_flight(), [0; 4]);
    });
}

#[test]
fn a_refused_stream_can_be_told_from_a_reset_one() {
    run(async {
        for (reason, kind) in [
            (h2::Reason::REFUSED_STREAM, SendErrorKind::RefusedStream),
            (h2::Reason::INTERNAL_ERROR, SendErrorKind::RemoteReset),
        ] {
            let (listener, address) = listen().await;
            tokio::task::spawn_local(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_reset(reason);
                }
            });
            let f = Fixture::new(address, http2);
            let error = f.lease().await.unwrap().send(request(RequestBody::Empty)).await.err().unwrap();
            assert_eq!(error.kind, kind);
            assert_eq!((f.in_flight(), f.connections()), ([0; 4], [1, 1]));
            assert_eq!(f.cluster.stats().upstream_rq_rx_reset.value(), 1);
        }
    });
}

#[test]
fn alpn_settles_the_protocol_of_an_automatic_pool() {
    for (offered, is_http2) in [(&b"h2"[..], true), (b"http/1.1", false)] {
        run(async move {
            let (listener, address) = listen().await;
            let made = rcgen::generate_simple_self_signed(["test".to_owned()]).unwrap();
            let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut server = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            server.alpn_protocols = vec![offered.to_vec()];
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            tokio::task::spawn_local(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let stream = acceptor.accept(stream).await.unwrap();
                    let service = service_fn(|_| async {
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from_static(b"ok"))))
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    tokio::task::spawn_local(async move {
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            });
            let f = Fixture::new(address, |c| {
                c.http.protocol = UpstreamProtocol::Auto;
                c.transport = UpstreamTransport::Tls(Arc::new(UpstreamTlsConfig {
                    common: CommonTls {
                        certificates: CertificateSource::None,
                        validation: ValidationSource::None,
                        alpn: Vec::new(),
                        min_version: TlsVersion::V1_2,
                        max_version: TlsVersion::V1_3,
                        cipher_suites: Vec::new(),
                        groups: Vec::new(),
                    },
                    sni: "test".into(),
                    auto_host_sni: false,
                    auto_sni_san_validation: false,
                    max_session_keys: 1,
                }));
            });
            let lease = f.lease().await.unwrap();
            assert_eq!((lease.is_http2(), lease.connection().tls.is_some()), (is_http2, true));
            drop(lease);
            f.get().await;
            let stats = f.cluster.stats();
            let by_kind = (stats.upstream_cx_http2_total.value(), stats.upstream_cx_http1_total.value());
            assert_eq!(by_kind, if is_http2 { (1, 0) } else { (0, 1) });
        });
    }
}
