//! Opening connections: sockets, their options and source address, TLS, the connect timeout, and what is counted while
//! a connection lives. Knows nothing of HTTP or of pools.

use super::cluster::{Cluster, Transport as ClusterTransport};
use super::host::Host;
use super::{UpstreamError, UpstreamErrorKind};
use crate::config::model::{Address, BindConfig, ClusterConfig, Priority, TcpKeepalive};
use crate::net::{LocalAddr, Socket, Transport};
use crate::tls::{ConnectOptions, TlsInfo};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, UnixStream};

/// An open connection, not yet spoken over.
pub(super) struct Connected {
    pub transport: Transport,
    pub tls: Option<Arc<TlsInfo>>,
    pub local: Option<LocalAddr>,
}

/// Opens a connection to `host` within the cluster's connect timeout. `alpn` is offered when neither the options nor the
/// TLS context name protocols. Counts time and failures; the guard, made by the caller, counts the rest.
pub(super) async fn establish(
    guard: &mut ConnectionGuard,
    options: &ConnectOptions,
    alpn: &[&str],
) -> Result<Connected, UpstreamError> {
    let (cluster, host) = (Arc::clone(&guard.cluster), Arc::clone(&guard.host));
    let place = Place { address: &host.address.0, transport: cluster.transport_for(&host), host: &host };
    let opened = tokio::time::timeout(cluster.config.connect_timeout, open(&cluster, &place, options, alpn)).await;
    let failure = match opened {
        Ok(Ok(connected)) => {
            cluster.stats().connected_after(guard.since.elapsed());
            guard.established = true;
            return Ok(connected);
        }
        Ok(Err(text)) => {
            guard.set_closed_by_remote();
            UpstreamError { kind: UpstreamErrorKind::ConnectionFailure, transport_failure: text }
        }
        Err(_) => {
            cluster.stats().upstream_cx_connect_timeout.inc();
            UpstreamError::new(UpstreamErrorKind::ConnectTimeout)
        }
    };
    cluster.stats().upstream_cx_connect_fail.inc();
    host.stats.cx_connect_fail.fetch_add(1, Ordering::Relaxed);
    Err(failure)
}

/// Where a connection goes and how it gets there: health checks may differ in both from the host's traffic.
pub(super) struct Place<'a> {
    pub address: &'a Address,
    pub transport: &'a ClusterTransport,
    pub host: &'a Host,
}

/// As `establish`, unbounded in time and not counted; the error is the text of the transport failure.
pub(super) async fn open(
    cluster: &Cluster,
    place: &Place<'_>,
    options: &ConnectOptions,
    alpn: &[&str],
) -> Result<Connected, String> {
    let Place { address, transport, host } = place;
    let socket = open_socket(cluster, address).await?;
    let local = match &socket {
        Socket::Tcp(tcp) => tcp.local_addr().ok().map(LocalAddr),
        Socket::Unix(_) => None,
    };
    match transport {
        ClusterTransport::Raw => Ok(Connected { transport: Transport::Plain(socket), tls: None, local }),
        ClusterTransport::Tls { context, config } => {
            let mut options = options.clone();
            if options.alpn.is_none() && config.common.alpn.is_empty() && !alpn.is_empty() {
                options.alpn = Some(alpn.iter().map(|p| p.as_bytes().into()).collect());
            }
            if options.sni.is_none() && config.auto_host_sni && !host.hostname.is_empty() {
                options.sni = Some(Arc::from(&*host.hostname));
            }
            let (stream, info) = context.connect(socket, &options).await.map_err(|e| e.to_string())?;
            Ok(Connected { transport: Transport::ClientTls(stream), tls: Some(info), local })
        }
    }
}

async fn open_socket(cluster: &Cluster, address: &Address) -> Result<Socket, String> {
    match address {
        Address::Pipe { path, .. } => match UnixStream::connect(socket_path(path)).await {
            Ok(stream) => Ok(Socket::Unix(stream)),
            Err(e) => Err(failure_text(&e)),
        },
        Address::Socket(to) => {
            let socket = tcp_socket(cluster, *to)?;
            let stream = socket.connect(*to).await.map_err(|e| failure_text(&e))?;
            Ok(Socket::Tcp(stream))
        }
    }
}

/// Envoy writes Linux's abstract namespace as a leading `@`; the kernel as a leading NUL.
fn socket_path(path: &Path) -> std::borrow::Cow<'_, Path> {
    match path.to_str().and_then(|p| p.strip_prefix('@')) {
        Some(name) => std::path::PathBuf::from(format!("\0{name}")).into(),
        None => path.into(),
    }
}

fn tcp_socket(cluster: &Cluster, to: SocketAddr) -> Result<TcpSocket, String> {
    let config: &ClusterConfig = &cluster.config;
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(|e| failure_text(&e))?;
    // these fail on no socket that can connect at all, and a connection without them still works
    let _ = socket.set_nodelay(true);
    if let Some(keepalive) = &config.tcp_keepalive {
        let _ = set_keepalive(&socket, keepalive);
    }
    if let Some(bind) = &config.bind
        && let Some(source) = bind.sources.iter().find(|s| s.is_ipv4() == to.is_ipv4())
    {
        bind_source(&socket, bind, *source).map_err(|e| {
            cluster.stats().bind_errors.inc();
            format!("cannot bind '{source}': {}", errno_text(&e))
        })?;
    }
    Ok(socket)
}

fn bind_source(socket: &TcpSocket, bind: &BindConfig, source: SocketAddr) -> io::Result<()> {
    let options = socket2::SockRef::from(socket);
    if bind.freebind {
        if source.is_ipv4() { options.set_freebind_v4(true) } else { options.set_freebind_v6(true) }?;
    }
    if source.port() == 0 {
        bind_without_port(socket);
    }
    socket.bind(source)
}

/// Leaves the choice of the source port to `connect`, where it may be shared between destinations: with one source
/// address (127.0.0.6) all connections would otherwise share 28,000 ports. Kernels without the option choose at bind.
fn bind_without_port(socket: &TcpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call and the option's value is a live c_int of the given length
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

fn set_keepalive(socket: &TcpSocket, config: &TcpKeepalive) -> io::Result<()> {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = config.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = config.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = config.probes {
        keepalive = keepalive.with_retries(probes);
    }
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Envoy's words: errors that `connect` reports at once, and errors that come while it is under way.
fn failure_text(error: &io::Error) -> String {
    use io::ErrorKind::{AddrNotAvailable, InvalidInput, NetworkUnreachable, NotFound, PermissionDenied};
    let when = match error.kind() {
        NetworkUnreachable | NotFound | PermissionDenied | AddrNotAvailable | InvalidInput => "immediate connect error",
        _ => "delayed connect error",
    };
    format!("{when}: {}", errno_text(error))
}

/// The system's text without Rust's ` (os error N)`.
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.find(" (os error").and_then(|at| text.get(..at)).map_or_else(|| text.clone(), str::to_owned)
}

static NEXT_CONNECTION_ID: AtomicU64 = AtomicU64::new(1);

pub(super) fn next_connection_id() -> u64 {
    NEXT_CONNECTION_ID.fetch_add(1, Ordering::Relaxed)
}

/// Counts a connection, from its first SYN until this is dropped, against the breakers, the cluster and the host.
pub struct ConnectionGuard {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    priority: Priority,
    since: Instant,
    established: bool,
    closed_by_remote: bool,
    usage: Arc<Usage>,
}

/// What requests do to a connection; told by its pool, read when the connection ends.
#[derive(Default)]
pub(super) struct Usage {
    /// Requests in flight, to tell whether the end of the connection hurt one.
    pub active: AtomicU32,
    /// Requests it was ever given.
    pub requests: AtomicU32,
}

impl ConnectionGuard {
    pub(super) fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, priority: Priority) -> ConnectionGuard {
        cluster.breakers(priority).connections.take();
        let stats = cluster.stats();
        stats.upstream_cx_total.inc();
        stats.upstream_cx_active.inc();
        host.stats.cx_total.fetch_add(1, Ordering::Relaxed);
        host.stats.cx_active.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard {
            cluster: Arc::clone(cluster),
            host: Arc::clone(host),
            priority,
            since: Instant::now(),
            established: false,
            closed_by_remote: false,
            usage: Arc::default(),
        }
    }

    pub(super) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// To be told when the endpoint, not we, ended the connection.
    pub fn set_closed_by_remote(&mut self) {
        self.closed_by_remote = true;
    }

    /// Counts bytes received from the endpoint.
    pub fn received(&self, bytes: u64) {
        self.cluster.stats().upstream_cx_rx_bytes_total.add(bytes);
    }

    /// Counts bytes sent to the endpoint.
    pub fn sent(&self, bytes: u64) {
        self.cluster.stats().upstream_cx_tx_bytes_total.add(bytes);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.cluster.breakers(self.priority).connections.give_back();
        let stats = self.cluster.stats();
        stats.upstream_cx_active.dec();
        self.host.stats.cx_active.fetch_sub(1, Ordering::Relaxed);
        if self.established {
            stats.connection_served(self.usage.requests.load(Ordering::Relaxed));
        }
        stats.connection_lasted(self.since.elapsed());
        stats.upstream_cx_destroy.inc();
        let (side, side_active) = if self.closed_by_remote {
            (&stats.upstream_cx_destroy_remote, &stats.upstream_cx_destroy_remote_with_active_rq)
        } else {
            (&stats.upstream_cx_destroy_local, &stats.upstream_cx_destroy_local_with_active_rq)
        };
        side.inc();
        if self.usage.active.load(Ordering::Relaxed) > 0 {
            stats.upstream_cx_destroy_with_active_rq.inc();
            side_active.inc();
        }
    }
}

/// A connection that counts its bytes and, by living, itself.
pub struct UpstreamIo {
    transport: Transport,
    guard: ConnectionGuard,
}

impl UpstreamIo {
    pub(super) fn new(transport: Transport, guard: ConnectionGuard) -> UpstreamIo {
        UpstreamIo { transport, guard }
    }

    /// The stream itself and what counts it, for those who move bytes by other means.
    pub fn into_parts(self) -> (Transport, ConnectionGuard) {
        (self.transport, self.guard)
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.transport).poll_read(cx, buf);
        match &result {
            Poll::Ready(Ok(())) => match buf.filled().len() - before {
                0 if buf.remaining() > 0 => this.guard.set_closed_by_remote(),
                0 => {}
                n => this.guard.received(n as u64),
            },
            Poll::Ready(Err(_)) => this.guard.set_closed_by_remote(),
            Poll::Pending => {}
        }
        result
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.transport).poll_write(cx, buf);
        this.wrote(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.transport).poll_write_vectored(cx, bufs);
        this.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}

impl UpstreamIo {
    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(Ok(n)) => self.guard.sent(*n as u64),
            Poll::Ready(Err(_)) => self.guard.set_closed_by_remote(),
            Poll::Pending => {}
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_as_envoy_writes_them() {
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(failure_text(&refused), "delayed connect error: Connection refused");
        let unreachable = io::Error::from_raw_os_error(libc::ENETUNREACH);
        assert_eq!(failure_text(&unreachable), "immediate connect error: Network is unreachable");
    }

    #[test]
    fn an_at_sign_means_the_abstract_namespace() {
        assert_eq!(socket_path(Path::new("@x")), Path::new("\0x"));
        assert_eq!(socket_path(Path::new("/x")), Path::new("/x"));
    }
}
