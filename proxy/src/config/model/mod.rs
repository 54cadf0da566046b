//! The checked model: what configuration means, after every field was read and judged.
//!
//! Conversion (the rooms beside this one) fills these types from Envoy's messages; every other room reads only these and
//! never sees a protobuf message. Defaults are Envoy's and are already filled in: a reader never asks "was it set?" unless
//! the difference matters, and then the field is an `Option`.

mod access_log;
mod bootstrap;
mod cluster;
mod extension;
mod health;
mod http;
mod listener;
mod matchers;
mod route;
mod tls;

pub use access_log::*;
pub use bootstrap::*;
pub use cluster::*;
pub use extension::*;
pub use health::*;
pub use http::*;
pub use listener::*;
pub use matchers::*;
pub use route::*;
pub use tls::*;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where a socket is: an IP and port, or a Unix socket (`envoy.config.core.v3.Address`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Socket(SocketAddr),
    /// A Unix domain socket; a path that starts with `@` is in Linux's abstract namespace.
    Pipe {
        path: PathBuf,
        mode: u32,
    },
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Socket(a) => a.fmt(f),
            Address::Pipe { path, .. } => path.display().fmt(f),
        }
    }
}

/// Where a resource comes from (`envoy.config.core.v3.ConfigSource`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConfigSource {
    pub kind: ConfigSourceKind,
    /// How long start-up or warming waits for the first answer; `None` (0 s in the message) waits for ever.
    pub initial_fetch_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ConfigSourceKind {
    /// The bootstrap's aggregated stream.
    Ads,
    /// A stream of its own to this server.
    Api(Arc<ApiConfigSource>),
    /// A file, watched for moves in its directory.
    Path(Arc<PathSource>),
}

/// A file of resources (`envoy.config.core.v3.PathConfigSource`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathSource {
    pub path: PathBuf,
    /// Watched instead of the file's own directory.
    pub watched_directory: Option<PathBuf>,
}

/// An xDS server and how to talk to it (`envoy.config.core.v3.ApiConfigSource`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiConfigSource {
    pub delta: bool,
    pub target: GrpcTarget,
    pub set_node_on_first_message_only: bool,
    /// A REST service that is asked again and again; `None`: gRPC.
    pub polling: Option<Polling>,
    /// Most requests on the stream; `None`: no limit.
    pub rate_limit: Option<RequestLimit>,
    /// `initial_metadata`: sent with each stream.
    pub metadata: Vec<(::http::HeaderName, ::http::HeaderValue)>,
}

/// `rate_limit_settings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestLimit {
    /// Requests at once; default 100.
    pub max_tokens: u32,
    /// Requests in 1,000 s in the long run; default 10,000.
    pub per_kilosecond: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Polling {
    pub refresh_delay: Duration,
    /// Default 1 s.
    pub request_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GrpcTarget {
    /// A cluster of the bootstrap.
    Cluster { name: Arc<str>, authority: Option<Arc<str>> },
    /// A target of `google_grpc`: `host:port` or `unix:path`; in plaintext without credentials.
    Uri { uri: Arc<str>, credentials: Option<Arc<SslCredentials>> },
}

/// `ssl_credentials` of `google_grpc`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SslCredentials {
    pub root_certs: DataSource,
    /// Our own certificate chain and its key.
    pub identity: Option<(DataSource, DataSource)>,
}

/// Bytes of a `DataSource`, read at conversion, and the file they came from (shown by /certs).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DataSource {
    pub bytes: bytes::Bytes,
    pub path: Option<PathBuf>,
}

impl std::fmt::Debug for DataSource {
    /// Never shows the content: it may be a private key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataSource({} bytes, {:?})", self.bytes.len(), self.path)
    }
}
