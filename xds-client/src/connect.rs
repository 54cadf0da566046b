//! How a stream reaches its server: a connector makes a fresh byte stream for each connection.
//! TLS is a connector of the user's own that wraps one of these; this crate has no TLS.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};

/// How long the connectors of this crate try if nobody says: Envoy's default cluster `connect_timeout`.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Failures of so many addresses are told.
const MAX_FAILURES: usize = 4;

/// A byte stream to the server. Implemented for every type that fits.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A byte stream of any kind.
pub type BoxIo = Box<dyn Io>;

/// Makes connections to the server. Called once for each attempt; [`Options::connect_timeout`](crate::Options) bounds it.
/// Where a server has several addresses, each should have its share of that time, and the attempts should begin with another
/// one each: so a server that swallows connections, or takes them and does not serve, does not stand in front of a good one.
///
/// A connector that speaks TLS:
/// ```
/// use std::{io, sync::Arc};
/// use xds_client::{BoxFuture, BoxIo, Connect, TcpConnector};
/// # async fn handshake(io: BoxIo) -> io::Result<BoxIo> { Ok(io) }
///
/// struct Tls { tcp: TcpConnector }
/// impl Connect for Tls {
///     fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>> {
///         let tcp = self.tcp.connect();
///         Box::pin(async move { handshake(tcp.await?).await })
///     }
///     fn authority(&self) -> String {
///         self.tcp.authority()
///     }
///     fn scheme(&self) -> &'static str {
///         "https"
///     }
/// }
/// ```
pub trait Connect: Send + Sync + 'static {
    /// A fresh connection.
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>>;
    /// As `connect`, for callers that wait so long at most. A connector with several addresses divides that time; others
    /// need not know.
    fn connect_within(&self, limit: Duration) -> BoxFuture<'static, io::Result<BoxIo>> {
        _ = limit;
        self.connect()
    }
    /// Value of the `:authority` header: a host, or host and port.
    fn authority(&self) -> String;
    /// Value of the `:scheme` header: `https` for connections that are secured, else `http`.
    fn scheme(&self) -> &'static str {
        "http"
    }
}

/// Tries addresses, beginning with number `start`, each with an equal share of what is left of the time.
pub(crate) async fn in_turn<A: Display, T>(
    addresses: &[A],
    start: usize,
    limit: Duration,
    connect: impl Fn(&A, Duration) -> BoxFuture<'static, io::Result<T>>,
) -> io::Result<T> {
    // A little less, so that the failure of the last address is told and not that of the whole attempt.
    let deadline = Instant::now() + (limit - limit / 20);
    let mut failures: Vec<io::Error> = Vec::new();
    let start = start.checked_rem(addresses.len()).unwrap_or(0);
    let turned = addresses.iter().skip(start).chain(addresses.iter().take(start));
    for (left, address) in (1..=u32::try_from(addresses.len()).unwrap_or(u32::MAX)).rev().zip(turned) {
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        let failure = match tokio::time::timeout(share, connect(address, share)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(failure)) => failure,
            Err(_) => {
                let text = format!("connecting to {address}: no connection after {share:?}");
                io::Error::new(io::ErrorKind::TimedOut, text)
            }
        };
        failures.push(failure);
    }
    let kind = failures.last().map_or(io::ErrorKind::NotFound, io::Error::kind);
    let mut texts: Vec<String> = failures.iter().take(MAX_FAILURES).map(ToString::to_string).collect();
    match failures.len().saturating_sub(MAX_FAILURES) {
        0 if texts.is_empty() => texts.push("no address".into()),
        0 => {}
        more => texts.push(format!("and {more} more")),
    }
    Err(io::Error::new(kind, texts.join("; ")))
}

/// Plain TCP. The host is resolved again for each connection; its addresses are tried one after the other, each with its
/// share of the time, and each attempt begins with the next one.
///
/// ```
/// use xds_client::{Connect, TcpConnector};
/// assert_eq!(TcpConnector::new("istiod.istio-system.svc:15010").authority(), "istiod.istio-system.svc:15010");
/// ```
#[derive(Clone, Debug)]
pub struct TcpConnector {
    target: String,
    turn: Arc<AtomicUsize>,
}

impl TcpConnector {
    /// `target` is `host:port`; an IPv6 host stands in brackets.
    pub fn new(target: impl Into<String>) -> Self {
        TcpConnector { target: target.into(), turn: Arc::default() }
    }
}

impl Connect for TcpConnector {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>> {
        self.connect_within(CONNECT_TIMEOUT)
    }

    fn connect_within(&self, limit: Duration) -> BoxFuture<'static, io::Result<BoxIo>> {
        let (target, turn) = (self.target.clone(), self.turn.fetch_add(1, Ordering::Relaxed));
        Box::pin(async move {
            let began = Instant::now();
            let resolved = tokio::time::timeout(limit, tokio::net::lookup_host(&target)).await;
            let resolved =
                resolved.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer of DNS")));
            let in_words = |e: io::Error| io::Error::new(e.kind(), format!("connecting to {target}: {e}"));
            let addresses: Vec<_> = resolved.map_err(in_words)?.collect();
            let limit = limit.saturating_sub(began.elapsed());
            let stream = in_turn(&addresses, turn, limit, |address, _| {
                let (address, target) = (*address, target.clone());
                Box::pin(async move {
                    TcpStream::connect(address).await.map_err(|e| {
                        let resolved = address.to_string();
                        let by_name = if resolved == target { String::new() } else { format!(" ({resolved})") };
                        io::Error::new(e.kind(), format!("connecting to {target}{by_name}: {e}"))
                    })
                })
            });
            let stream = stream.await?;
            // Requests are small and waited for: an ACK must not sit in Nagle's buffer.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxIo)
        })
    }

    fn authority(&self) -> String {
        self.target.clone()
    }
}

/// A connection whose peer must say something in time: the SETTINGS that begin HTTP/2. Without this, one that accepts and is
/// silent would be found out by pings at best, minutes later.
pub(crate) struct Greeted {
    io: BoxIo,
    limit: Duration,
    /// Until the first byte is there.
    wait: Option<Pin<Box<Sleep>>>,
}

impl Greeted {
    pub fn new(io: BoxIo, limit: Duration) -> Self {
        Greeted { io, limit, wait: Some(Box::pin(tokio::time::sleep(limit))) }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.wait = None;
            return polled;
        }
        let Some(wait) = &mut self.wait else { return Poll::Pending };
        ready!(wait.as_mut().poll(cx));
        self.wait = None;
        let text = format!("the server said nothing for {:?} (connect timeout), not even HTTP/2 SETTINGS", self.limit);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A Unix socket by path, or by name in Linux's abstract namespace when the path starts with `@`.
///
/// ```
/// use xds_client::{Connect, UnixConnector};
/// let agent = UnixConnector::new("./etc/istio/proxy/XDS");
/// assert_eq!(agent.authority(), "localhost");
/// let named = UnixConnector::new("./var/run/secrets/workload-spiffe-uds/socket").with_authority("sds-grpc");
/// assert_eq!(named.authority(), "sds-grpc");
/// ```
#[derive(Clone, Debug)]
pub struct UnixConnector {
    path: PathBuf,
    authority: String,
}

impl UnixConnector {
    /// `path` may be relative to the working directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        UnixConnector { path: path.into(), authority: "localhost".into() }
    }

    /// Sends this `:authority` instead of `localhost`. Envoy sends the name of the cluster.
    pub fn with_authority(mut self, authority: impl Into<String>) -> Self {
        self.authority = authority.into();
        self
    }
}

impl Connect for UnixConnector {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>> {
        let path = self.path.clone();
        Box::pin(async move {
            // tokio takes an abstract name as a path whose first byte is zero.
            let target = match path.to_str().and_then(|p| p.strip_prefix('@')) {
                Some(name) => PathBuf::from(format!("\0{name}")),
                None => path.clone(),
            };
            let stream = UnixStream::connect(&target)
                .await
                .map_err(|e| io::Error::new(e.kind(), format!("connecting to {}: {e}", path.display())))?;
            Ok(Box::new(stream) as BoxIo)
        })
    }

    fn authority(&self) -> String {
        self.authority.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_swallows_connections_takes_its_share_and_no_more() {
        let asked = std::sync::Mutex::new(Vec::new());
        let connect = |address: &&'static str, _: Duration| -> BoxFuture<'static, io::Result<&'static str>> {
            asked.lock().unwrap().push(*address);
            let address = *address;
            Box::pin(async move {
                match address {
                    "hole" => std::future::pending().await,
                    "closed" => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connecting to closed: refused")),
                    good => Ok(good),
                }
            })
        };
        let limit = Duration::from_millis(200);
        assert_eq!(in_turn(&["hole", "closed", "good"], 0, limit, connect).await.unwrap(), "good");
        assert_eq!(*asked.lock().unwrap(), ["hole", "closed", "good"]);
        // Another attempt begins elsewhere.
        asked.lock().unwrap().clear();
        assert_eq!(in_turn(&["hole", "closed", "good"], 5, limit, connect).await.unwrap(), "good");
        assert_eq!(*asked.lock().unwrap(), ["good"]);
        let error = in_turn(&["closed", "hole"], 0, limit, connect).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let text = "connecting to closed: refused; connecting to hole: no connection after ";
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!(in_turn(&[], 3, limit, connect).await.unwrap_err().to_string(), "no address");
    }
}
