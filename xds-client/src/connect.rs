//! How a stream reaches its server: a connector makes a fresh byte stream for each connection.
//! TLS is a connector of the user's own that wraps one of these; this crate has no TLS.

use std::io;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A byte stream to the server. Implemented for every type that fits.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A byte stream of any kind.
pub type BoxIo = Box<dyn Io>;

/// Makes connections to the server. Called once for each attempt; [`Options::connect_timeout`](crate::Options) bounds it.
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
/// }
/// ```
pub trait Connect: Send + Sync + 'static {
    /// A fresh connection.
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>>;
    /// Value of the `:authority` header: a host, or host and port.
    fn authority(&self) -> String;
}

/// Plain TCP. The host is resolved again for each connection, and its addresses are tried in order.
///
/// ```
/// use xds_client::{Connect, TcpConnector};
/// assert_eq!(TcpConnector::new("istiod.istio-system.svc:15010").authority(), "istiod.istio-system.svc:15010");
/// ```
#[derive(Clone, Debug)]
pub struct TcpConnector {
    target: String,
}

impl TcpConnector {
    /// `target` is `host:port`; an IPv6 host stands in brackets.
    pub fn new(target: impl Into<String>) -> Self {
        TcpConnector { target: target.into() }
    }
}

impl Connect for TcpConnector {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxIo>> {
        let target = self.target.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(&target)
                .await
                .map_err(|e| io::Error::new(e.kind(), format!("connecting to {target}: {e}")))?;
            // Requests are small and waited for: an ACK must not sit in Nagle's buffer.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxIo)
        })
    }

    fn authority(&self) -> String {
        self.target.clone()
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
