//! `envoy.config.cluster.v3.Cluster` and `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use super::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;

#[derive(Debug, Clone)]
pub struct ClusterConfig {
    pub name: Arc<str>,
    /// The name in stats: `alt_stat_name`, else the name.
    pub stat_name: Arc<str>,
    pub discovery: ClusterDiscovery,
    /// Includes the TLS handshake; default 5 s.
    pub connect_timeout: Duration,
    pub lb: LbPolicy,
    pub http: UpstreamHttp,
    /// Indexed by `Priority as usize`.
    pub circuit_breakers: [Thresholds; 2],
    pub transport: UpstreamTransport,
    /// First whose `criteria` all equal the endpoint's `envoy.transport_socket_match` metadata; none: `transport`.
    pub transport_matches: Vec<TransportMatch>,
    pub bind: Option<BindConfig>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Percent of healthy endpoints under which all are used; default 50.
    pub panic_threshold: f64,
    /// Endpoints are used only while they pass it.
    pub health_check: Option<Arc<HealthCheck>>,
    /// An endpoint that discovery takes away goes at once; else it stays while it passes its health checks.
    pub ignore_health_on_host_removal: bool,
    /// An endpoint that was never checked does not count when the load is spread.
    pub ignore_new_hosts_until_first_hc: bool,
    /// Updates of endpoints that change no member wait so long for others. `None`: they do not wait, which is what
    /// Envoy 1.40 does when nothing is configured, whatever its documentation says of a default.
    pub update_merge_window: Option<Duration>,
    /// Hash of the message: an equal one is no update.
    pub hash: u64,
}

impl ClusterConfig {
    /// A cluster of which nothing is configured but its name and its endpoints: Envoy's defaults.
    pub fn new(name: &str, discovery: ClusterDiscovery) -> ClusterConfig {
        ClusterConfig {
            name: name.into(),
            stat_name: name.into(),
            discovery,
            connect_timeout: Duration::from_secs(5),
            lb: LbPolicy::RoundRobin,
            http: UpstreamHttp::default(),
            circuit_breakers: [Thresholds::default(); 2],
            transport: UpstreamTransport::Raw,
            transport_matches: Vec::new(),
            bind: None,
            tcp_keepalive: None,
            panic_threshold: 50.0,
            health_check: None,
            ignore_health_on_host_removal: false,
            ignore_new_hosts_until_first_hc: false,
            update_merge_window: None,
            hash: 0,
        }
    }
}

#[derive(Debug, Clone)]
pub enum ClusterDiscovery {
    Static(LoadAssignment),
    Eds {
        service_name: Arc<str>,
        source: ConfigSource,
    },
    /// Every address of every name is an endpoint.
    StrictDns {
        endpoints: Vec<DnsLocality>,
        dns: DnsConfig,
    },
    /// The first address only, used for new connections.
    LogicalDns {
        endpoints: Vec<DnsLocality>,
        dns: DnsConfig,
    },
    /// Connections go to the address they were meant for.
    OriginalDst {
        port_override: Option<u16>,
        cleanup_interval: Duration,
    },
}

impl ClusterDiscovery {
    /// Endpoints come and go.
    pub fn is_dynamic(&self) -> bool {
        !matches!(self, ClusterDiscovery::Static(_))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DnsConfig {
    /// Default 5 s.
    pub refresh_rate: Duration,
    pub respect_ttl: bool,
    pub family: DnsFamily,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6 first, IPv4 when there is none.
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

/// A locality whose endpoints are names still to be resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsLocality {
    pub locality: Locality,
    pub priority: u32,
    /// Host (a name or an IP), port, and the endpoint as configured (its `address` is a placeholder).
    pub names: Vec<(Arc<str>, u16, Endpoint)>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum LbPolicy {
    RoundRobin,
    /// Power of `choice_count` choices; with unequal weights weight / (active + 1) ^ bias.
    LeastRequest {
        choice_count: u32,
        active_request_bias: f64,
    },
    Random,
    /// The cluster's discovery chooses (`ORIGINAL_DST`).
    ClusterProvided,
}

/// Endpoints of a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadAssignment {
    pub cluster_name: Arc<str>,
    pub localities: Vec<LocalityEndpoints>,
    /// Percent; default 140.
    pub overprovisioning_factor: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LocalityEndpoints {
    pub locality: Locality,
    /// 0 is the highest.
    pub priority: u32,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Box<str>,
    pub zone: Box<str>,
    pub sub_zone: Box<str>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    pub address: Address,
    pub hostname: Box<str>,
    pub health: HealthStatus,
    /// At least 1.
    pub weight: u32,
    /// `metadata.filter_metadata`, by filter name; `envoy.transport_socket_match` picks the transport.
    pub metadata: Option<Arc<BTreeMap<String, serde_json::Value>>>,
    /// `None`: it is checked where it serves.
    pub check: Option<Arc<EndpointCheck>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamHttp {
    pub protocol: UpstreamProtocol,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// Default 1 h; `None`: never.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// 0: no limit.
    pub max_requests_per_connection: u32,
    pub max_response_headers_count: u32,
    /// Server name of upstream TLS is the request's host.
    pub auto_sni: bool,
    /// The upstream certificate must be for that host.
    pub auto_san_validation: bool,
}

impl Default for UpstreamHttp {
    fn default() -> Self {
        UpstreamHttp {
            protocol: UpstreamProtocol::Http1,
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_requests_per_connection: 0,
            max_response_headers_count: 100,
            auto_sni: false,
            auto_san_validation: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
    /// What the downstream request used.
    Downstream,
    /// By ALPN.
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Priority {
    #[default]
    Default = 0,
    High = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    /// Publishes `remaining_*` gauges.
    pub track_remaining: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            track_remaining: false,
        }
    }
}

#[derive(Debug, Clone)]
pub enum UpstreamTransport {
    Raw,
    Tls(Arc<UpstreamTlsConfig>),
}

#[derive(Debug, Clone)]
pub struct TransportMatch {
    pub criteria: Vec<(String, serde_json::Value)>,
    pub transport: UpstreamTransport,
}

/// `upstream_bind_config`: the source address of upstream connections; the one of the destination's family is used.
#[derive(Debug, Clone, PartialEq)]
pub struct BindConfig {
    pub sources: Vec<SocketAddr>,
    pub freebind: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}
