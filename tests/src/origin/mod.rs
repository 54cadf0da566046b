//! Origins: servers that say who they are and misbehave on demand.
//!
//! [`Origin`] speaks HTTP/1.1 and HTTP/2 on one port (prior knowledge by the preface, ALPN over TLS), [`TcpOrigin`] raw
//! TCP. What a request gets is said by its path ([`Behaviour::of_path`]) or set for all requests ([`Origin::set`]).

mod http;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::runtime::OwnRuntime;

pub use tcp::{TcpBehaviour, TcpOrigin};

/// What an HTTP origin does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behaviour {
    /// 200, the version tag in `x-origin-version`, and the request as JSON.
    #[default]
    Echo,
    /// The same after a while.
    Delay(Duration),
    /// The same with another status.
    Status(u16),
    /// Resets the connection (HTTP/1.1) or stream (HTTP/2) before any response byte.
    Reset,
    /// Sends headers and half of the promised body, then resets.
    ResetMidBody,
    /// Never answers.
    Never,
    /// Echo, followed by the trailer `x-trailer: <version>`. HTTP/1.1 clients must send `te: trailers`.
    Trailers,
    /// 200 with a body of that many bytes.
    Big(usize),
    /// 200 with that many one-byte chunks, one every interval.
    Drip(usize, Duration),
    /// Echo, then closes the connection (`connection: close`; HTTP/1.1).
    Close,
    /// Writes bytes that are no HTTP, then closes. Over HTTP/2 it looks like a broken frame.
    Garbage,
}

impl Behaviour {
    /// What a path asks for: `/delay/<ms>`, `/status/<code>`, `/reset`, `/reset-mid-body`, `/never`, `/trailers`,
    /// `/big/<bytes>`, `/drip/<chunks>/<ms>`, `/close`, `/garbage`. Any other path is an echo.
    pub fn of_path(path: &str) -> Self {
        let mut parts = path.trim_start_matches('/').split('/');
        let word = parts.next().unwrap_or_default();
        let mut number = || parts.next().and_then(|text| text.parse::<u32>().ok());
        let millis = |number: u32| Duration::from_millis(number.into());
        match (word, number()) {
            ("delay", Some(ms)) => Self::Delay(millis(ms)),
            ("status", Some(code)) => u16::try_from(code).map_or(Self::Echo, Self::Status),
            ("big", Some(bytes)) => Self::Big(bytes as usize),
            ("drip", Some(chunks)) => Self::Drip(chunks as usize, millis(number().unwrap_or(10))),
            ("reset", None) => Self::Reset,
            ("reset-mid-body", None) => Self::ResetMidBody,
            ("never", None) => Self::Never,
            ("trailers", None) => Self::Trailers,
            ("close", None) => Self::Close,
            ("garbage", None) => Self::Garbage,
            _ => Self::Echo,
        }
    }
}

/// What the connections of an origin share.
#[derive(Debug)]
struct Shared {
    version: String,
    behaviour: Mutex<Option<Behaviour>>,
    close_after: AtomicU64,
    accepted: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
}

impl Shared {
    fn new(version: &str) -> Arc<Self> {
        Arc::new(Self {
            version: version.to_owned(),
            behaviour: Mutex::new(None),
            close_after: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        })
    }

    fn behaviour(&self, path: &str) -> Behaviour {
        let set = *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner);
        set.unwrap_or_else(|| Behaviour::of_path(path))
    }
}

/// Counts an open connection for as long as it lives.
struct Open(Arc<Shared>);

impl Open {
    fn count(shared: &Arc<Shared>) -> (Self, u64) {
        shared.open.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(shared)), shared.accepted.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An HTTP origin on its own thread. Dropping it closes all its sockets at once.
///
/// An upgrade request (`upgrade: <anything>`, or extended CONNECT over HTTP/2) is accepted, and its bytes are echoed.
/// A request with `content-type: application/grpc` has its messages echoed, with `grpc-status` from the request's
/// `x-grpc-status` (default 0) in the trailers.
#[derive(Debug)]
pub struct Origin {
    shared: Arc<Shared>,
    address: SocketAddr,
    _runtime: OwnRuntime,
}

impl Origin {
    /// Listens in plain text on a free port of 127.0.0.1. `version` is the tag it answers with.
    pub fn start(version: &str) -> io::Result<Self> {
        Self::listen(version, SocketAddr::from(([127, 0, 0, 1], 0)), None)
    }

    /// As [`Origin::start`], over TLS with this server configuration; ALPN decides the protocol.
    pub fn start_tls(version: &str, tls: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        Self::listen(version, SocketAddr::from(([127, 0, 0, 1], 0)), Some(tls))
    }

    /// Listens on `address`.
    pub fn listen(version: &str, address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> io::Result<Self> {
        let listener = bind(address)?;
        let address = listener.local_addr()?;
        let runtime = OwnRuntime::start("origin")?;
        let shared = Shared::new(version);
        runtime.handle().spawn(http::accept(Arc::clone(&shared), listener, tls, address));
        Ok(Self { shared, address, _runtime: runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this with every request from now on; `None`: what the path says.
    pub fn set(&self, behaviour: Option<Behaviour>) {
        *self.shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Closes every HTTP/1.1 connection after that many requests on it; 0 is never.
    pub fn close_after(&self, requests: u64) {
        self.shared.close_after.store(requests, Ordering::Relaxed);
    }

    /// Requests begun so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open_connections(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }
}

/// A listener for a tokio runtime that need not run on this thread.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A TLS server configuration for [`Origin::start_tls`]: the certificate, `h2` and `http/1.1` in ALPN, and, with
/// `client_bundle_pem`, only clients with a certificate of that bundle.
///
/// # Errors
/// When a PEM text is not what it should be.
pub fn tls_server(
    svid: &certs::Svid,
    client_bundle_pem: Option<&str>,
) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let provider = crate::client::provider();
    let (chain, key) = crate::client::parse_identity(svid)?;
    let builder =
        rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match client_bundle_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = Arc::new(crate::client::parse_roots(pem)?);
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| rustls::Error::General(e.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
