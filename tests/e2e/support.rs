//! What the tests share: short YAML, a client over any protocol, keys on disk, origins with a script.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use certs::{Authority, Svid};
use futures_util::StreamExt;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_tests::client::{ClientTls, PATIENCE, Reply, Target};
use outrigger_tests::config::Bootstrap;
use outrigger_tests::proxy::{Options, Proxy};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Flags of every run: one worker, as little waiting as can be, and no shared memory between parallel runs.
pub fn options() -> Options {
    let flags = ["--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "1", "--log-level", "warning"];
    let flags = flags.into_iter().chain(["--file-flush-interval-msec", "10"]);
    flags.fold(Options::default(), Options::flag)
}

/// Whether the binary under test is the real Envoy.
pub fn is_envoy() -> bool {
    let binary = std::env::var_os("OUTRIGGER_BIN").unwrap_or_default();
    Path::new(&binary).file_name().is_some_and(|name| name.to_string_lossy().starts_with("envoy"))
}

/// Starts a proxy with static listeners and clusters.
pub async fn start(listeners: &str, clusters: &str) -> Proxy {
    let bootstrap = Bootstrap { static_listeners: listeners, static_clusters: clusters, ..Bootstrap::default() };
    start_yaml(&bootstrap.yaml()).await
}

/// Starts a proxy with this bootstrap.
pub async fn start_yaml(yaml: &str) -> Proxy {
    Proxy::start_with(yaml, options()).await.unwrap_or_else(|e| panic!("{e}"))
}

/// The address of a listener.
pub async fn address(proxy: &Proxy, listener: &str) -> SocketAddr {
    proxy.listener_address(listener).await.unwrap()
}

/// The value of a stat; 0 when it does not exist.
pub async fn stat(proxy: &Proxy, name: &str) -> i64 {
    proxy.stat(name).await.unwrap().unwrap_or(0)
}

/// Waits until a stat has at least this value.
pub async fn at_least(proxy: &Proxy, name: &str, value: i64) {
    proxy.wait_stat(name, |v| v >= value).await.unwrap();
}

/// Waits for a condition.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Bounds a step that should not take long.
pub async fn soon<T>(what: &str, step: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

fn indent(text: &str, by: usize) -> String {
    let space = " ".repeat(by);
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{space}{line}\n")).collect()
}

/// A listener with an HTTP connection manager, as YAML. Texts are flow mappings or whole lines without indentation.
#[derive(Clone, Default)]
pub struct Front<'a> {
    /// Listener name and stat prefix; empty is `front`.
    pub name: &'a str,
    /// Routes of the one virtual host, as flow items.
    pub routes: &'a str,
    /// All virtual hosts, as flow items, instead of `routes`.
    pub hosts: &'a str,
    /// More fields of the connection manager.
    pub manager: &'a str,
    /// More fields of the route configuration.
    pub route_config: &'a str,
    /// More fields of the listener.
    pub listener: &'a str,
    /// A transport socket, as one flow mapping.
    pub transport: &'a str,
}

/// A route for everything to `cluster`.
pub fn all_to(cluster: &str) -> String {
    format!("{{ match: {{ prefix: / }}, route: {{ cluster: {cluster} }} }}")
}

impl Front<'_> {
    pub fn yaml(&self) -> String {
        let name = if self.name.is_empty() { "front" } else { self.name };
        let hosts = match self.hosts {
            "" => format!("{{ name: all, domains: ['*'], routes: [{}] }}", self.routes),
            hosts => hosts.to_owned(),
        };
        let manager = indent(self.manager, 10);
        let listener = indent(self.listener, 4);
        let route_config = indent(self.route_config, 12);
        let transport = if self.transport.is_empty() { "" } else { "      transport_socket: " };
        format!(
            "  - name: {name}
    stat_prefix: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
{listener}    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            name: local
            virtual_hosts: [{hosts}]
{route_config}{manager}{transport}{}
",
            self.transport
        )
    }
}

/// A listener with a TCP proxy. `fields` are flow items such as `cluster: a, idle_timeout: 1s`.
pub fn tcp_front(name: &str, fields: &str) -> String {
    format!(
        "  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, {fields} }}
"
    )
}

/// A static cluster. `fields` are whole lines without indentation.
pub fn cluster(name: &str, addresses: &[SocketAddr], fields: &str) -> String {
    let endpoint = |a: &SocketAddr| {
        let (ip, port) = (a.ip(), a.port());
        format!("{{ endpoint: {{ address: {{ socket_address: {{ address: '{ip}', port_value: {port} }} }} }} }}")
    };
    let endpoints: Vec<String> = addresses.iter().map(endpoint).collect();
    format!(
        "  - name: {name}
    connect_timeout: 5s
    load_assignment: {{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{}] }}] }}
{}",
        endpoints.join(", "),
        indent(fields, 4)
    )
}

/// Cluster fields that make it speak HTTP/2.
pub const HTTP2: &str = "typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: { http2_protocol_options: {} }";

/// An address nobody listens on.
pub fn dead_address() -> SocketAddr {
    // The socket stays bound for the life of the process, so that no parallel test gets the port; without `listen`
    // the kernel refuses connections to it.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

/// An authority with a server's and a client's identity, in files too.
pub struct Keys {
    pub authority: Authority,
    pub server: Svid,
    pub client: Svid,
    dir: TempDir,
}

pub const SERVER_ID: &str = "spiffe://cluster.local/ns/default/sa/server";
pub const CLIENT_ID: &str = "spiffe://cluster.local/ns/default/sa/client";
pub const HOUR: Duration = Duration::from_secs(3600);

impl Keys {
    pub fn new() -> Self {
        let authority = Authority::new("cluster.local").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let issue = |id: &str, names: &[&str]| authority.issue(&id.parse().unwrap(), HOUR, names).unwrap();
        let (server, client) = (issue(SERVER_ID, &["server.test"]), issue(CLIENT_ID, &[]));
        server.save(&dir.path().join("server")).unwrap();
        client.save(&dir.path().join("client")).unwrap();
        std::fs::write(dir.path().join("bundle.pem"), authority.bundle_pem()).unwrap();
        Self { authority, server, client, dir }
    }

    /// `tls_certificates` and, with `fields`, `validation_context` as flow items of a common TLS context.
    pub fn common(&self, who: &str, validation: &str) -> String {
        let dir = self.dir.path().display();
        format!(
            "tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}, tls_certificates: [{{ certificate_chain: {{ filename: {dir}/{who}/cert.pem }}, \
             private_key: {{ filename: {dir}/{who}/key.pem }} }}], \
             validation_context: {{ trusted_ca: {{ filename: {dir}/bundle.pem }}, {validation} }}"
        )
    }

    /// A transport socket that shows the server's certificate and, if `strict`, asks for the client's.
    pub fn downstream(&self, strict: bool, fields: &str) -> String {
        format!(
            "{{ name: envoy.transport_sockets.tls, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
             require_client_certificate: {strict}, \
             common_tls_context: {{ {}, alpn_protocols: [h2, http/1.1] }}, {fields} }} }}",
            self.common("server", "")
        )
    }

    /// A transport socket (a cluster field) that shows the client's certificate and accepts peers by `validation`.
    pub fn upstream(&self, validation: &str) -> String {
        format!(
            "transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
             '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             sni: server.test, common_tls_context: {{ {} }} }} }}\n",
            self.common("client", validation)
        )
    }

    /// A client that shows its certificate.
    pub fn client_tls(&self, alpn: &[&str]) -> ClientTls {
        ClientTls::new("server.test", alpn, Some(&self.client), Some(self.authority.bundle_pem())).unwrap()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Protocol and transport of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub http2: bool,
    pub mtls: bool,
}

pub const WAYS: [Way; 4] = [
    Way { http2: false, mtls: false },
    Way { http2: true, mtls: false },
    Way { http2: false, mtls: true },
    Way { http2: true, mtls: true },
];
pub const PLAIN: [Way; 2] = [WAYS[0], WAYS[1]];

/// One proxy with one front, in plain text and over mutual TLS, and the clusters behind.
pub struct Bed {
    pub proxy: Proxy,
    pub keys: Keys,
    pub plain: SocketAddr,
    pub mtls: SocketAddr,
}

impl Bed {
    /// `front` is served as listeners `front` and `front-mtls`.
    pub async fn start(front: Front<'_>, clusters: &str) -> Self {
        let keys = Keys::new();
        let transport = keys.downstream(true, "");
        let secure = Front { name: "front-mtls", transport: &transport, ..front.clone() };
        let proxy = start(&(front.yaml() + &secure.yaml()), clusters).await;
        let (plain, mtls) = (address(&proxy, "front").await, address(&proxy, "front-mtls").await);
        Self { proxy, keys, plain, mtls }
    }

    pub async fn client(&self, way: Way) -> Client {
        let alpn = if way.http2 { "h2" } else { "http/1.1" };
        let target = match way.mtls {
            true => Target::tls(self.mtls, self.keys.client_tls(&[alpn])),
            false => self.plain.into(),
        };
        Client::connect(&target, way.http2).await
    }
}

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body that is sent as the sender says, with trailers when it ends with some.
pub fn channel() -> (tokio::sync::mpsc::Sender<Frame<Bytes>>, Body) {
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let frames = tokio_stream::wrappers::ReceiverStream::new(receive);
    (send, StreamBody::new(frames.map(Ok)).boxed_unsync())
}

/// One connection of either protocol.
pub enum Client {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

impl Client {
    pub async fn connect(target: &Target, http2: bool) -> Self {
        Self::try_connect(target, http2).await.unwrap()
    }

    pub async fn try_connect(target: &Target, http2: bool) -> Result<Self, String> {
        let io = TokioIo::new(target.connect().await.map_err(|e| e.to_string())?);
        if http2 {
            let made = soon("an HTTP/2 handshake", http2::handshake(TokioExecutor::new(), io)).await;
            let (send, connection) = made.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            Ok(Self::H2(send))
        } else {
            let (send, connection) = http1::handshake(io).await.map_err(|e| e.to_string())?;
            tokio::spawn(connection.with_upgrades());
            Ok(Self::H1(send))
        }
    }

    pub async fn plain(address: SocketAddr, http2: bool) -> Self {
        Self::connect(&address.into(), http2).await
    }

    /// Sends a request, gives the response when its headers are here.
    pub async fn begin(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::H2(send) => {
                soon("a free stream", send.ready()).await?;
                soon("response headers", send.send_request(request)).await
            }
            Self::H1(send) => {
                if let Some(authority) = request.uri().authority().cloned() {
                    let host = HeaderValue::from_str(authority.as_str()).unwrap();
                    request.headers_mut().entry(HOST).or_insert(host);
                    *request.uri_mut() = request.uri().path_and_query().unwrap().clone().into();
                }
                soon("a free connection", send.ready()).await?;
                soon("response headers", send.send_request(request)).await
            }
        }
    }

    pub async fn try_send(&mut self, request: Request<Bytes>) -> Result<Reply, String> {
        let response = self.begin(request.map(full)).await.map_err(|e| e.to_string())?;
        read(response).await
    }

    pub async fn send(&mut self, request: Request<Bytes>) -> Reply {
        self.try_send(request).await.unwrap()
    }

    pub async fn get(&mut self, authority: &str, path: &str) -> Reply {
        self.send(outrigger_tests::client::get(authority, path)).await
    }

    pub fn is_open(&self) -> bool {
        match self {
            Self::H1(send) => !send.is_closed(),
            Self::H2(send) => !send.is_closed(),
        }
    }

    pub async fn wait_closed(&self) {
        eventually("the proxy to close the connection", || async { !self.is_open() }).await;
    }
}

/// Reads a whole response.
pub async fn read(response: Response<Incoming>) -> Result<Reply, String> {
    let (parts, body) = response.into_parts();
    let body = soon("the end of a body", body.collect()).await.map_err(|e| e.to_string())?;
    let trailers = body.trailers().cloned();
    Ok(Reply { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
}

/// A request with headers.
pub fn ask(method: Method, authority: &str, path: &str, headers: &[(&str, &str)]) -> Request<Bytes> {
    let mut request = outrigger_tests::client::request(method, authority, path, Bytes::new());
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    request
}

/// A header that an echo origin saw; null when it did not come.
pub fn seen(reply: &Reply, header: &str) -> serde_json::Value {
    assert!(!reply.body.is_empty(), "no echo in {reply:?}");
    reply.json()["headers"][header].clone()
}

/// Headers of a name, in order.
pub fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect()
}

/// One gRPC message with its prefix.
pub fn grpc_frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::from(&[0][..]);
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    frame.freeze()
}

/// An HTTP/1.1 origin that answers every request head with bytes of a script.
pub struct Scripted {
    pub address: SocketAddr,
}

impl Scripted {
    /// `answer` gets the number of the request, from 0; `None` closes without an answer. Bodies are not read.
    pub async fn start(answer: impl Fn(u64) -> Option<&'static str> + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new((AtomicU64::new(0), answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                tokio::spawn(async move {
                    while read_head(&mut stream).await.is_some() {
                        let (count, answer) = &*script;
                        match answer(count.fetch_add(1, Ordering::Relaxed)) {
                            Some(text) => drop(stream.write_all(text.as_bytes()).await),
                            None => return,
                        }
                    }
                });
            }
        });
        Self { address }
    }
}

/// Reads up to the blank line after a head; `None` at the end of the stream.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Sends raw text to a plain port, and reads until the proxy closes. What stays open is told at the end of the answer.
pub async fn raw(address: SocketAddr, text: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(text).await;
    let mut answer = Vec::new();
    let end = match tokio::time::timeout(OPEN, stream.read_to_end(&mut answer)).await {
        Ok(Ok(_)) => "",
        Ok(Err(_)) => "[reset]",
        Err(_) => "[still open]",
    };
    String::from_utf8_lossy(&answer).into_owned() + end
}

/// A connection that is open for longer is not being closed; Envoy holds one for a second after an error.
const OPEN: Duration = Duration::from_secs(8);

/// The status line's code in a raw answer; 0 when there was none.
pub fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// The lines an access log has, once there are `count` of them.
pub async fn log_lines(path: &Path, count: usize) -> Vec<String> {
    let lines = || std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    eventually(&format!("{count} lines in the access log, {:?}", lines()), || async { lines().len() >= count }).await;
    lines()
}

/// A file access log (a field of a connection manager or a TCP proxy) with a text format.
pub fn file_log(path: &Path, format: &str) -> String {
    format!(
        "access_log: [{{ name: envoy.access_loggers.file, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '{}', \
         log_format: {{ text_format_source: {{ inline_string: \"{format}\\n\" }} }} }} }}]",
        path.display()
    )
}
