//! `envoy.config.listener.v3.Listener`.

use super::*;
use crate::runtime::LiveLimit;
use ipnet::IpNet;

#[derive(Debug, Clone)]
pub struct ListenerConfig {
    pub name: Arc<str>,
    pub address: Address,
    pub additional_addresses: Vec<Address>,
    /// Name part of `listener.<stat_prefix>.*`; `None`: made from the address (`127.0.0.1_8080`).
    pub stat_prefix: Option<Arc<str>>,
    pub traffic_direction: TrafficDirection,
    /// False: owns no socket; receives connections from a listener that uses the original destination.
    pub bind_to_port: bool,
    /// Hand accepted connections to the listener of their original destination.
    pub use_original_dst: bool,
    pub transparent: bool,
    pub freebind: bool,
    pub reuse_port: bool,
    /// IPv6 sockets accept IPv4 too.
    pub ipv4_compat: bool,
    pub tcp_backlog: u32,
    /// At most so many accepts per readiness event; 0: no limit.
    pub max_accepts_per_event: u32,
    pub tcp_fast_open_queue_length: Option<u32>,
    /// Run in order, before the filter chain is chosen.
    pub listener_filters: Vec<ListenerFilterConfig>,
    /// Default 15 s; `None`: no limit.
    pub listener_filters_timeout: Option<Duration>,
    pub continue_on_listener_filters_timeout: bool,
    pub filter_chains: Vec<FilterChainConfig>,
    pub default_filter_chain: Option<FilterChainConfig>,
    /// Soft limit of what is buffered per connection and direction; default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    pub access_log: Vec<AccessLogConfig>,
    /// `drain_type: MODIFY_ONLY`: /healthcheck/fail and drain sequences do not touch it.
    pub drain_modify_only: bool,
    /// Hash of the message without its filter chains: equal hashes mean that only chains differ.
    pub shell_hash: u64,
    /// `envoy.resource_limits.listener.<name>.connection_limit` of runtime.
    pub connection_limit: LiveLimit,
    /// `overload.global_downstream_max_connections` of runtime; `None`: its connections are not among those that it counts.
    pub global_connection_limit: Option<LiveLimit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficDirection {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

#[derive(Debug, Clone)]
pub enum ListenerFilterConfig {
    OriginalDst,
    TlsInspector(ListenerFilterPredicate),
    HttpInspector(ListenerFilterPredicate),
    /// ECDS says what it is; the predicate holds for whatever comes.
    Dynamic(Arc<DynamicFilterConfig>, ListenerFilterPredicate),
}

/// When a listener filter is left out (`filter_disabled`).
#[derive(Debug, Clone, Default)]
pub enum ListenerFilterPredicate {
    /// Never left out.
    #[default]
    Never,
    Always,
    /// Destination port in `[start, end)`.
    DestinationPort {
        start: u16,
        end: u32,
    },
    Not(Box<ListenerFilterPredicate>),
    And(Vec<ListenerFilterPredicate>),
    Or(Vec<ListenerFilterPredicate>),
}

#[derive(Debug, Clone)]
pub struct FilterChainConfig {
    pub name: Arc<str>,
    pub matcher: FilterChainMatch,
    pub transport: DownstreamTransport,
    /// Bound of the TLS handshake; `None`: unbounded, as in Envoy.
    pub transport_connect_timeout: Option<Duration>,
    pub filters: Vec<NetworkFilterConfig>,
    /// Place of the terminal filter among the filters of the message, of which some may have been passed over.
    pub terminal: usize,
    /// Hash of the message: an equal chain is kept across updates.
    pub hash: u64,
}

/// `FilterChainMatch`; empty lists match anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<IpNet>,
    /// Lower case; `*.example.com` for suffixes.
    pub server_names: Vec<Box<str>>,
    /// `""` (any), `tls` or `raw_buffer`.
    pub transport_protocol: Box<str>,
    pub application_protocols: Vec<Box<str>>,
    pub direct_source_prefix_ranges: Vec<IpNet>,
    pub source_type: SourceType,
    pub source_prefix_ranges: Vec<IpNet>,
    pub source_ports: Vec<u16>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

#[derive(Debug, Clone)]
pub enum DownstreamTransport {
    Raw,
    Tls(Arc<DownstreamTlsConfig>),
}

#[derive(Debug, Clone)]
pub enum NetworkFilterConfig {
    HttpConnectionManager(Arc<HcmConfig>),
    TcpProxy(Arc<TcpProxyConfig>),
    Dynamic(Arc<DynamicFilterConfig>),
}

/// `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.
#[derive(Debug, Clone)]
pub struct TcpProxyConfig {
    pub stat_prefix: Arc<str>,
    /// Clusters and weights; one entry for a plain `cluster`.
    pub clusters: Vec<(Arc<str>, u32)>,
    /// Default 1 h; `None`: never.
    pub idle_timeout: Option<Duration>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// At least 1.
    pub max_connect_attempts: u32,
    pub access_log: Vec<AccessLogConfig>,
    /// Hash of the source IP picks the endpoint.
    pub hash_source_ip: bool,
}
