//! Clusters, their endpoints, and the connections to them.
//!
//! The control thread owns [`ClusterManager`]: it takes configuration, warms clusters and publishes them into stable
//! slots. Each worker owns a [`WorkerUpstream`]: pools and balancer state that no other thread touches. What must be seen
//! by all threads (circuit breakers, endpoint health, active requests) is atomic and lives in the cluster and its hosts.

use crate::config::ConfigError;
use crate::config::model::{ClusterConfig, LoadAssignment, Priority};
use crate::net::{LocalAddr, Transport, UpstreamAddr};
use crate::slots::Store;
use crate::stats::Registry;
use crate::tls::{ConnectOptions, Secrets, TlsInfo};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

/// Anything that goes wrong inside a body, either direction.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A request body on its way to an endpoint.
pub enum RequestBody {
    Empty,
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
}

/// The stable place of a cluster: routes hold this, not a name.
pub struct ClusterSlot {
    pub name: Arc<str>,
    /// Dense; index of per-worker state.
    pub id: u32,
    current: ArcSwapOption<Cluster>,
}

impl ClusterSlot {
    /// The live cluster; `None`: no such cluster (yet, or any more).
    pub fn load(&self) -> Option<Arc<Cluster>> {
        self.current.load_full()
    }
}

/// A cluster as configured, with what its endpoints are now.
pub struct Cluster {
    pub config: Arc<ClusterConfig>,
}

/// One endpoint; kept, with its counts and health, while its address stays in the cluster.
pub struct Host {
    pub address: UpstreamAddr,
    pub hostname: Box<str>,
}

/// What became of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// Equal to the one that runs.
    Unchanged,
    /// Will be published when its endpoints and secrets are there.
    Warming,
    Live,
}

/// All clusters.
pub struct ClusterManager {}

impl ClusterManager {
    pub fn new(
        _registry: Registry,
        _secrets: Arc<Secrets>,
        _assignments: Arc<Store<LoadAssignment>>,
        _local_cluster: Option<Arc<str>>,
    ) -> Arc<ClusterManager> {
        todo!()
    }

    /// The slot of this name, made when it is new. Slots live as long as somebody holds them.
    pub fn slot(&self, _name: &str) -> Arc<ClusterSlot> {
        todo!()
    }

    /// Takes a configuration; warming goes on by itself on the calling thread's `LocalRuntime` (`spawn_local`). An
    /// update keeps the hosts of equal address, and the running cluster serves until the new one is warm.
    ///
    /// # Errors
    /// What cannot be built (TLS context); the running cluster stays.
    pub fn add_or_update(
        self: &Arc<Self>,
        _config: Arc<ClusterConfig>,
        _added_via_api: bool,
    ) -> Result<Update, ConfigError> {
        todo!()
    }

    /// Removes a cluster, warming or live; its connections drain.
    pub fn remove(&self, _name: &str) -> bool {
        todo!()
    }

    /// Names of clusters that wait for something.
    pub fn warming(&self) -> Vec<Arc<str>> {
        todo!()
    }

    /// Returns once no cluster is warming.
    pub async fn all_warm(&self) {
        todo!()
    }

    /// How the xDS client reaches this cluster: a fresh connection (socket, TLS) to one of its endpoints.
    pub fn xds_connector(self: &Arc<Self>, _name: &str) -> Option<Arc<dyn xds_client::Connect>> {
        todo!()
    }
}

/// What the balancer may want to know of a request.
#[derive(Default)]
pub struct LbContext<'a> {
    pub hash: Option<u64>,
    pub original_dst: Option<SocketAddr>,
    /// Hosts already tried, to be avoided if there is another.
    pub avoid: &'a [Arc<Host>],
}

/// What kind of HTTP connection a request wants.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// The downstream request came by HTTP/2 (for clusters that follow it).
    pub downstream_http2: bool,
    pub priority: Priority,
    pub tls: ConnectOptions,
}

/// Why no request could be sent.
#[derive(Debug, Clone)]
pub struct UpstreamError {
    pub kind: UpstreamErrorKind,
    /// Text of `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; empty when there is none.
    pub transport_failure: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamErrorKind {
    NoHealthyUpstream,
    /// A circuit breaker (connections, pending or requests).
    Overflow,
    ConnectionFailure,
    ConnectTimeout,
}

/// Why a request that was given a connection got no response headers.
pub struct SendError {
    pub kind: SendErrorKind,
    /// The request, when no byte of it was sent.
    pub unsent: Option<http::Request<RequestBody>>,
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendErrorKind {
    /// The connection ended before response headers (`UC`).
    ConnectionTermination,
    /// RST_STREAM (`UR`).
    RemoteReset,
    /// RST_STREAM(REFUSED_STREAM) or GOAWAY below our stream: safe to retry.
    RefusedStream,
    /// What came back is not HTTP (`UPE`).
    ProtocolError,
}

/// The upstream side of one worker.
pub struct WorkerUpstream {}

impl WorkerUpstream {
    pub fn new(_clusters: Arc<ClusterManager>) -> Rc<WorkerUpstream> {
        todo!()
    }

    /// Picks an endpoint by the cluster's policy, health, priorities and panic rules.
    ///
    /// # Errors
    /// `NoHealthyUpstream`.
    pub fn choose_host(&self, _cluster: &Arc<Cluster>, _context: &LbContext<'_>) -> Result<Arc<Host>, UpstreamError> {
        todo!()
    }

    /// A connection to send one HTTP request on: an idle one, a shared HTTP/2 one, or a new one within the connect timeout
    /// and the circuit breakers. Counts the request as active until the lease, or the response body it turns into, is dropped.
    pub async fn http(
        &self,
        _cluster: &Arc<Cluster>,
        _host: &Arc<Host>,
        _options: &HttpOptions,
    ) -> Result<HttpLease, UpstreamError> {
        todo!()
    }

    /// A new connection for raw bytes.
    pub async fn tcp(&self, _cluster: &Arc<Cluster>, _host: &Arc<Host>) -> Result<TcpLease, UpstreamError> {
        todo!()
    }

    /// Drops pools of clusters and hosts that are gone and idle connections past their time. Called about once a second.
    pub fn sweep(&self) {
        todo!()
    }
}

/// The right to send one request on a pooled connection.
pub struct HttpLease {}

impl HttpLease {
    pub fn is_http2(&self) -> bool {
        todo!()
    }

    /// The connection's facts for logs.
    pub fn connection(&self) -> &Rc<UpstreamConnectionInfo> {
        todo!()
    }

    /// Sends the request and waits for response headers. Dropping the future resets the stream (HTTP/2) or closes the
    /// connection (HTTP/1). Upgrades (101, CONNECT) are taken with `hyper::upgrade::on` from the response.
    pub async fn send(self, _request: http::Request<RequestBody>) -> Result<http::Response<ResponseBody>, SendError> {
        todo!()
    }
}

#[derive(Debug)]
pub struct UpstreamConnectionInfo {
    pub id: u64,
    pub local: Option<LocalAddr>,
    pub tls: Option<Arc<TlsInfo>>,
    pub http2: bool,
}

/// A response body; gives its connection back to the pool at its end, or closes it when dropped before.
pub struct ResponseBody {}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        todo!()
    }
}

/// A raw upstream connection; counted against the breakers until dropped.
pub struct TcpLease {
    pub transport: Transport,
    pub info: UpstreamConnectionInfo,
}
