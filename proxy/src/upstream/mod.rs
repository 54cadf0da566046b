//! Clusters, their endpoints, and the connections to them.
//!
//! The control thread owns [`ClusterManager`]: it takes configuration, warms clusters and publishes them into stable
//! slots. Each worker owns a [`WorkerUpstream`]: pools and balancer state that no other thread touches. What must be seen
//! by all threads (circuit breakers, endpoint health, active requests) is atomic and lives in the cluster and its hosts.
//! Knows nothing of listeners, routes or filters.

mod breakers;
mod cluster;
mod connect;
mod dns;
mod endpoints;
mod health;
mod host;
mod lb;
mod manager;
mod merge;
mod original_dst;
mod pool;
mod slot;
pub mod stats;
mod status;
mod tcp;
mod worker;
mod xds_connector;

#[cfg(test)]
mod testing;

pub use breakers::{Breakers, RetryGuard};
pub use cluster::Cluster;
pub use connect::{ConnectionGuard, UpstreamIo};
pub use endpoints::EndpointSet;
pub use health::{ActiveFlags, IMMEDIATE_FAIL};
pub use host::{Health, Host, HostFacts, HostStats};
pub use lb::LbContext;
pub use manager::{AssignmentFailure, ClusterManager, Update};
pub use pool::{HttpLease, RequestBody, ResponseBody};
pub use slot::ClusterSlot;
pub use stats::ClusterStats;
pub use status::{ClusterStatus, HealthFlags, HostStatus, OutlierStatus};
pub use tcp::{TcpGuard, TcpLease};
pub use worker::WorkerUpstream;

use crate::config::model::Priority;
use crate::net::LocalAddr;
use crate::tls::{ConnectOptions, TlsInfo};
use std::sync::Arc;

/// Anything that goes wrong inside a body, either direction.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What kind of HTTP connection a request wants.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// The downstream request came by HTTP/2 (for clusters that follow it).
    pub downstream_http2: bool,
    pub priority: Priority,
    pub tls: ConnectOptions,
}

/// Why no request could be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamError {
    pub kind: UpstreamErrorKind,
    /// Text of `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; empty when there is none.
    pub transport_failure: String,
}

impl UpstreamError {
    fn new(kind: UpstreamErrorKind) -> UpstreamError {
        UpstreamError { kind, transport_failure: String::new() }
    }
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
#[derive(Debug)]
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
    /// The request's own body failed: the endpoint is not to blame.
    RequestBody,
}

#[derive(Debug)]
pub struct UpstreamConnectionInfo {
    pub id: u64,
    pub local: Option<LocalAddr>,
    pub tls: Option<Arc<TlsInfo>>,
    pub http2: bool,
}
