//! `envoy.config.core.v3.HealthCheck`: how the health of a cluster's endpoints is asked for.

use super::*;
use ::http::{HeaderMap, Method, uri::PathAndQuery};
use std::ops::Range;

/// One active health check of a cluster.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// From the start of a check, connection included, to its verdict.
    pub timeout: Duration,
    pub pace: CheckPace,
    /// So many failures in a row make a healthy endpoint unhealthy; some kinds do at once.
    pub unhealthy_threshold: u32,
    /// So many passes in a row make an unhealthy endpoint healthy; the very first check needs one.
    pub healthy_threshold: u32,
    /// Whether a connection serves one check after the other; default true.
    pub reuse_connection: bool,
    pub always_log_failures: bool,
    pub always_log_successes: bool,
    /// Protocols to offer instead of those of the cluster's TLS context; empty: those.
    pub alpn: Vec<Box<[u8]>>,
    /// Picks the transport of checks instead of the endpoint's metadata.
    pub transport_criteria: Option<serde_json::Value>,
    pub kind: CheckKind,
}

/// How long it is from the end of one check of an endpoint to the start of the next.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckPace {
    pub interval: Duration,
    /// While no connection was ever made to the cluster; default 60 s.
    pub no_traffic: Duration,
    /// The same for healthy endpoints.
    pub no_traffic_healthy: Duration,
    pub unhealthy: Duration,
    /// While an endpoint is on its way to unhealthy.
    pub unhealthy_edge: Duration,
    /// While an endpoint is on its way to healthy.
    pub healthy_edge: Duration,
    /// The first check of an endpoint waits for up to so long.
    pub initial_jitter: Duration,
    /// At most so much is added to each.
    pub jitter: Duration,
    /// The same in percent of the interval.
    pub jitter_percent: u32,
}

#[derive(Debug, Clone)]
pub enum CheckKind {
    Http(HttpCheck),
    Grpc(GrpcCheck),
    Tcp(TcpCheck),
}

#[derive(Debug, Clone)]
pub struct HttpCheck {
    /// Empty: the cluster's name.
    pub host: Box<str>,
    pub path: PathAndQuery,
    pub method: Method,
    pub http2: bool,
    /// All headers but the host.
    pub headers: HeaderMap,
    pub body: bytes::Bytes,
    /// What of the body is looked at for `receive`.
    pub body_limit: usize,
    /// Bytes that the body must have, in this order.
    pub receive: Vec<Box<[u8]>>,
    pub expected: Vec<Range<u16>>,
    pub retriable: Vec<Range<u16>>,
    /// What `x-envoy-upstream-healthchecked-cluster` of the response must be.
    pub service_name: Option<StringMatch>,
}

#[derive(Debug, Clone)]
pub struct GrpcCheck {
    /// Of `grpc.health.v1.HealthCheckRequest`.
    pub service: String,
    /// Empty: the cluster's name.
    pub authority: Box<str>,
    pub headers: HeaderMap,
}

/// Without `receive`, to be connected is all it takes.
#[derive(Debug, Clone)]
pub struct TcpCheck {
    pub send: bytes::Bytes,
    /// Bytes that must come, in this order.
    pub receive: Vec<Box<[u8]>>,
}

/// `envoy.config.endpoint.v3.Endpoint.HealthCheckConfig`: where and how one endpoint is checked.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointCheck {
    /// 0: that of the address.
    pub port: u16,
    /// Instead of the cluster's; empty: not.
    pub hostname: Box<str>,
    pub address: Option<Address>,
    pub disabled: bool,
}
