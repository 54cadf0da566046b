//! The admin interface: Envoy's paths, in Envoy's shapes.
//!
//! A server of HTTP/1.1, and of HTTP/2 with prior knowledge, on the control thread. It knows the server only as an
//! [`AdminSource`]. Small pages are built in one go; large ones are made in pieces as their reader takes them, with a turn
//! for the thread's other tasks between two, so that neither a slow reader nor a large page holds up anybody.

mod clusters;
mod grpc;
mod json;
mod pages;
mod preface;
mod query;
mod reply;
mod stats;
#[cfg(test)]
mod tests;
mod view;

pub use json::write_json;
pub use view::{
    AdminSource, ConfigDumpQuery, DrainOptions, LedgerQuery, ListenerView, MemoryView, MessagePieces, Pieces, Refusal,
    RuntimeView, ServerInfo,
};

use crate::access_log::{AccessLogs, ConnectionInfo, Entry, Kind};
use crate::config::model::Address;
use crate::net::{DownstreamPeer, LocalAddr};
use crate::stats::{Counter, Gauge, Histogram, Registry, Unit};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, SERVER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pages::Request;
use query::Target;
use reply::{Body, Chunks, Reply, Turns};
use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

/// Whoever scrapes or debugs needs few; a leaking client must not take all descriptors.
const MOST_CONNECTIONS: usize = 256;
/// A form with runtime values; nothing else has a body.
const MOST_BODY_BYTES: usize = 64 * 1024;
/// Envoy's default for a stream on which nothing happens; here for connections too, so that an idle one goes as well.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Requests at once on a connection of HTTP/2.
const MOST_STREAMS: u32 = 32;
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A bound admin listener.
pub struct Admin {
    socket: Listener,
    address: Address,
    stats: Rc<Stats>,
    logs: Rc<AccessLogs>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// `listener.admin.*` and `http.admin.*`.
struct Stats {
    listener_cx_total: Counter,
    listener_cx_active: Gauge,
    listener_cx_overflow: Counter,
    cx_total: Counter,
    cx_active: Gauge,
    rq_total: Counter,
    rq_active: Gauge,
    rq_completed: Counter,
    /// 1xx to 5xx.
    rq_classes: [Counter; 5],
    rq_time: Histogram,
}

impl Stats {
    fn new(registry: &Registry) -> Stats {
        let (listener, http) = (registry.scope("listener.admin."), registry.scope("http.admin."));
        Stats {
            listener_cx_total: listener.counter("downstream_cx_total"),
            listener_cx_active: listener.gauge("downstream_cx_active"),
            listener_cx_overflow: listener.counter("downstream_cx_overflow"),
            cx_total: http.counter("downstream_cx_total"),
            cx_active: http.gauge("downstream_cx_active"),
            rq_total: http.counter("downstream_rq_total"),
            rq_active: http.gauge("downstream_rq_active"),
            rq_completed: http.counter("downstream_rq_completed"),
            rq_classes: [1, 2, 3, 4, 5].map(|class| http.counter(&format!("downstream_rq_{class}xx"))),
            rq_time: http.histogram("downstream_rq_time", Unit::Milliseconds),
        }
    }
}

impl Admin {
    /// Binds the address. A Unix socket's stale file is replaced.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(address: &Address, registry: &Registry, logs: AccessLogs) -> io::Result<Admin> {
        let (socket, address) = match address {
            Address::Socket(address) => {
                let socket = TcpListener::bind(address).await?;
                let bound = Address::Socket(socket.local_addr()?);
                (Listener::Tcp(socket), bound)
            }
            Address::Pipe { path, .. } => (Listener::Unix(bind_unix(path)?), address.clone()),
        };
        Ok(Admin { socket, address, stats: Rc::new(Stats::new(registry)), logs: Rc::new(logs) })
    }

    /// Where it listens: the real port when 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves until dropped. Runs on a `LocalRuntime` or in a `LocalSet`.
    pub async fn serve(self, source: Rc<dyn AdminSource>) {
        let open = Rc::new(Cell::new(0));
        let mut id = 0;
        loop {
            let accepted = match &self.socket {
                Listener::Tcp(socket) => socket.accept().await.map(|(stream, peer)| (Stream::Tcp(stream), Some(peer))),
                Listener::Unix(socket) => socket.accept().await.map(|(stream, _)| (Stream::Unix(stream), None)),
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(target: "admin", "cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            self.stats.listener_cx_total.inc();
            if open.get() >= MOST_CONNECTIONS {
                self.stats.listener_cx_overflow.inc();
                continue;
            }
            id += 1;
            let connection = Rc::new(Connection {
                _open: Open::new(open.clone(), self.stats.clone()),
                info: connection_info(id, peer, &self.address),
                source: source.clone(),
                stats: self.stats.clone(),
                logs: self.logs.clone(),
                active: Rc::new(Cell::new(Instant::now())),
            });
            match stream {
                Stream::Tcp(stream) => drop(tokio::task::spawn_local(connection.run(stream))),
                Stream::Unix(stream) => drop(tokio::task::spawn_local(connection.run(stream))),
            }
        }
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

fn bind_unix(path: &std::path::Path) -> io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener as Std};
    let std = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => Std::bind_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => {
            // A socket that nobody listens on any more would make the bind fail; anything else must not be deleted.
            if std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            {
                std::fs::remove_file(path)?;
            }
            Std::bind(path)?
        }
    };
    std.set_nonblocking(true)?;
    UnixListener::from_std(std)
}

/// Counts an open connection until it is dropped.
struct Open {
    open: Rc<Cell<usize>>,
    stats: Rc<Stats>,
}

impl Open {
    fn new(open: Rc<Cell<usize>>, stats: Rc<Stats>) -> Open {
        open.set(open.get() + 1);
        stats.cx_total.inc();
        stats.cx_active.inc();
        stats.listener_cx_active.inc();
        Open { open, stats }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
        self.stats.cx_active.dec();
        self.stats.listener_cx_active.dec();
    }
}

/// One admin connection.
struct Connection {
    _open: Open,
    info: ConnectionInfo,
    source: Rc<dyn AdminSource>,
    stats: Rc<Stats>,
    logs: Rc<AccessLogs>,
    /// When something last moved.
    active: Rc<Cell<Instant>>,
}

impl Connection {
    async fn run(self: Rc<Connection>, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let this = self.clone();
        let serving = async move {
            let (http2, stream) = preface::is_http2(stream).await?;
            let service = service_fn(|request| this.clone().answer(request));
            let served = if http2 {
                hyper::server::conn::http2::Builder::new(LocalExecutor)
                    .max_concurrent_streams(MOST_STREAMS)
                    .serve_connection(TokioIo::new(stream), service)
                    .await
            } else {
                hyper::server::conn::http1::Builder::new()
                    // The timer above the connection covers its headers too.
                    .header_read_timeout(None)
                    .serve_connection(TokioIo::new(stream), service)
                    .await
            };
            served.map_err(io::Error::other)
        };
        tokio::pin!(serving);
        loop {
            tokio::select! {
                served = &mut serving => {
                    if let Err(error) = served {
                        tracing::debug!(target: "admin", "connection from {} ended: {error}", self.info.peer);
                    }
                    return;
                }
                // A reader that takes nothing would hold its page for ever.
                () = tokio::time::sleep_until(self.active.get() + IDLE_TIMEOUT) => {
                    if self.active.get().elapsed() >= IDLE_TIMEOUT {
                        return;
                    }
                }
            }
        }
    }

    async fn answer(
        self: Rc<Connection>,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<Chunks>, std::convert::Infallible> {
        let (started, start) = (Instant::now(), SystemTime::now());
        self.active.set(started);
        self.stats.rq_total.inc();
        self.stats.rq_active.inc();
        let (head, body) = request.into_parts();
        if grpc::is_grpc(&head.headers) && head.version == http::Version::HTTP_2 {
            let replies = grpc::answer(head.uri.path(), body, self.source.clone(), self.active.clone());
            let reply = Reply { status: StatusCode::OK, content_type: "application/grpc", body: Body::Grpc(replies) };
            return Ok(self.finish(head, reply, start, started));
        }
        let reply = match Limited::new(body, MOST_BODY_BYTES).collect().await {
            Err(_) => Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large"),
            Ok(body) => {
                let body = body.to_bytes();
                let target = Target::parse(head.uri.path(), head.uri.query());
                let body = std::str::from_utf8(&body).unwrap_or("");
                pages::answer(&*self.source, &Request { method: &head.method, target, body })
            }
        };
        Ok(self.finish(head, reply, start, started))
    }

    /// Counts and logs a request, and gives its answer.
    fn finish(
        self: Rc<Connection>,
        head: http::request::Parts,
        reply: Reply,
        start: SystemTime,
        started: Instant,
    ) -> hyper::Response<Chunks> {
        self.stats.rq_active.dec();
        self.stats.rq_completed.inc();
        self.stats.rq_time.record_duration(started.elapsed());
        if let Some(class) = self.stats.rq_classes.get(usize::from(reply.status.as_u16() / 100).wrapping_sub(1)) {
            class.inc();
        }
        let mut response = self.response(reply);
        if !self.logs.is_empty() {
            let status = response.status();
            // a page that is made as it is read is as long as what was read of it
            let log = move |sent| self.log(&head, status, sent, start, started.elapsed());
            response.body_mut().ended = Some(Box::new(log));
        }
        response
    }

    fn response(&self, reply: Reply) -> hyper::Response<Chunks> {
        self.active.set(Instant::now());
        let (rest, taken) = (reply.body, self.active.clone());
        let body = Chunks { rest, turns: Turns::default(), taken, sent: 0, ended: None };
        let mut response = hyper::Response::new(body);
        *response.status_mut() = reply.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(SERVER, HeaderValue::from_static("envoy"));
        response
    }

    fn log(&self, head: &http::request::Parts, status: StatusCode, sent: u64, start: SystemTime, duration: Duration) {
        let protocol = match head.version {
            http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        };
        let authority = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        self.logs.log(&Entry {
            method: Some(head.method.as_str()),
            path: head.uri.path_and_query().map(|path| path.as_str()),
            authority,
            scheme: Some("http"),
            protocol: Some(protocol),
            request_headers: &head.headers,
            response_code: Some(status.as_u16()),
            response_code_details: "admin_filter_response",
            bytes_sent: sent,
            ..Entry::new(Kind::Http, &self.info, start, duration)
        });
    }
}

/// Runs what a connection of HTTP/2 starts on the thread it is on.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

fn connection_info(id: u64, peer: Option<SocketAddr>, address: &Address) -> ConnectionInfo {
    // A Unix socket has no IP address: logs show the unspecified one.
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let peer = peer.unwrap_or(nowhere);
    let local = match address {
        Address::Socket(address) => *address,
        Address::Pipe { .. } => nowhere,
    };
    ConnectionInfo::new(id, DownstreamPeer(peer), LocalAddr(local), "admin")
}
