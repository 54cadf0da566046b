//! Configuration of Istio's own filters. Names and numbers are those of the .proto files in Envoy's `contrib` tree.

use std::collections::HashMap;

use super::name;
use crate::pb::envoy::config::core::v3::ConfigSource;
use crate::pb::google::protobuf::Duration;

/// `stats.PluginConfig`: Istio's metrics, for HTTP and TCP.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginConfig {
    /// Do not take the destination service from the Host header.
    #[prost(bool, tag = "6")]
    pub disable_host_header_fallback: bool,
    /// Between two reports of an open TCP connection; 5 s when unset.
    #[prost(message, optional, tag = "7")]
    pub tcp_reporting_duration: Option<Duration>,
    /// Changes to the standard metrics.
    #[prost(message, repeated, tag = "8")]
    pub metrics: Vec<MetricConfig>,
    /// Metrics of one's own.
    #[prost(message, repeated, tag = "9")]
    pub definitions: Vec<MetricDefinition>,
    /// On whose behalf to report.
    #[prost(enumeration = "Reporter", tag = "10")]
    pub reporter: i32,
    /// Deprecated.
    #[prost(message, optional, tag = "11")]
    pub rotation_interval: Option<Duration>,
    /// Deprecated.
    #[prost(message, optional, tag = "12")]
    pub graceful_deletion_interval: Option<Duration>,
}

/// `stats.MetricConfig`: changes to one metric, or to all when the name is empty.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricConfig {
    /// Tag name to the expression of its value.
    #[prost(map = "string, string", tag = "1")]
    pub dimensions: HashMap<String, String>,
    /// The metric.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Tags that it shall not have.
    #[prost(string, repeated, tag = "3")]
    pub tags_to_remove: Vec<String>,
    /// Not implemented in Envoy.
    #[prost(string, tag = "4")]
    pub r#match: String,
    /// The metric is not made at all.
    #[prost(bool, tag = "5")]
    pub drop: bool,
}

/// `stats.MetricDefinition`: a metric of one's own.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricDefinition {
    /// The metric.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Expression of the value that is added or set.
    #[prost(string, tag = "2")]
    pub value: String,
    /// What it is.
    #[prost(enumeration = "MetricType", tag = "3")]
    pub r#type: i32,
}

/// `stats.MetricType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MetricType {
    /// Goes up.
    Counter = 0,
    /// Goes up and down.
    Gauge = 1,
    /// A distribution.
    Histogram = 2,
}

/// `stats.Reporter`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Reporter {
    /// Source or destination, told by the direction of the listener.
    Unspecified = 0,
    /// A shared gateway that reports for the servers behind it.
    ServerGateway = 1,
}

/// `io.istio.http.peer_metadata.Config`: who the peer is, for HTTP.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerMetadata {
    /// Ways to learn about the downstream peer; the first that finds it wins.
    #[prost(message, repeated, tag = "1")]
    pub downstream_discovery: Vec<DiscoveryMethod>,
    /// Ways to learn about the upstream peer.
    #[prost(message, repeated, tag = "2")]
    pub upstream_discovery: Vec<DiscoveryMethod>,
    /// Ways to tell the downstream peer about us, in the response.
    #[prost(message, repeated, tag = "3")]
    pub downstream_propagation: Vec<PropagationMethod>,
    /// Ways to tell the upstream peer about us, in the request.
    #[prost(message, repeated, tag = "4")]
    pub upstream_propagation: Vec<PropagationMethod>,
    /// Let the upstream connection see the downstream peer.
    #[prost(bool, tag = "5")]
    pub shared_with_upstream: bool,
    /// Labels to carry beyond the standard ones.
    #[prost(string, repeated, tag = "6")]
    pub additional_labels: Vec<String>,
}

/// `Config.DiscoveryMethod`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DiscoveryMethod {
    /// Which.
    #[prost(oneof = "Discovery", tags = "1, 2, 3")]
    pub method_specifier: Option<Discovery>,
}

/// Ways to learn about a peer.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum Discovery {
    /// By the `baggage` header.
    #[prost(message, tag = "1")]
    Baggage(Baggage),
    /// By its address.
    #[prost(message, tag = "2")]
    WorkloadDiscovery(WorkloadDiscovery),
    /// By `x-envoy-peer-metadata`.
    #[prost(message, tag = "3")]
    IstioHeaders(IstioHeaders),
}

/// `Config.PropagationMethod`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PropagationMethod {
    /// Which.
    #[prost(oneof = "Propagation", tags = "1")]
    pub method_specifier: Option<Propagation>,
}

/// Ways to tell a peer.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum Propagation {
    /// By `x-envoy-peer-metadata`.
    #[prost(message, tag = "1")]
    IstioHeaders(IstioHeaders),
}

/// `Config.Baggage`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Baggage {}

/// `Config.WorkloadDiscovery`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct WorkloadDiscovery {}

/// `Config.IstioHeaders`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct IstioHeaders {
    /// Send no headers to services outside the mesh.
    #[prost(bool, tag = "1")]
    pub skip_external_clusters: bool,
}

/// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`: the ALPN names offered upstream.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AlpnConfig {
    /// One per protocol.
    #[prost(message, repeated, tag = "1")]
    pub alpn_override: Vec<AlpnOverride>,
}

/// `FilterConfig.AlpnOverride`
#[derive(Clone, PartialEq, prost::Message)]
pub struct AlpnOverride {
    /// For requests of this protocol,
    #[prost(enumeration = "AlpnProtocol", tag = "1")]
    pub upstream_protocol: i32,
    /// these names, best first.
    #[prost(string, repeated, tag = "2")]
    pub alpn_override: Vec<String>,
}

/// `FilterConfig.Protocol`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AlpnProtocol {
    /// HTTP/1.0
    Http10 = 0,
    /// HTTP/1.1
    Http11 = 1,
    /// HTTP/2
    Http2 = 2,
}

/// `envoy.tcp.metadataexchange.config.MetadataExchange`: who the peer is, for TCP.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetadataExchange {
    /// The ALPN name under which both sides exchange it.
    #[prost(string, tag = "1")]
    pub protocol: String,
    /// Fall back to the workloads that the control plane names.
    #[prost(bool, tag = "2")]
    pub enable_discovery: bool,
    /// Labels to carry beyond the standard ones.
    #[prost(string, repeated, tag = "3")]
    pub additional_labels: Vec<String>,
}

/// `istio.workload.BootstrapExtension`: subscribe to the workloads of the mesh.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkloadBootstrap {
    /// From where.
    #[prost(message, optional, tag = "1")]
    pub config_source: Option<ConfigSource>,
}

/// `envoy.extensions.network_filters.peer_metadata.Config`: carries the peer out of an HBONE tunnel.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TunnelPeerMetadata {
    /// Filter state key that holds the baggage header.
    #[prost(string, tag = "1")]
    pub baggage_key: String,
}

/// `envoy.extensions.network_filters.peer_metadata.UpstreamConfig`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct TunnelPeerMetadataUpstream {}

name!(PluginConfig, "stats", "PluginConfig");
name!(MetricConfig, "stats", "MetricConfig");
name!(MetricDefinition, "stats", "MetricDefinition");
name!(PeerMetadata, "io.istio.http.peer_metadata", "Config");
name!(DiscoveryMethod, "io.istio.http.peer_metadata", "Config.DiscoveryMethod");
name!(PropagationMethod, "io.istio.http.peer_metadata", "Config.PropagationMethod");
name!(Baggage, "io.istio.http.peer_metadata", "Config.Baggage");
name!(WorkloadDiscovery, "io.istio.http.peer_metadata", "Config.WorkloadDiscovery");
name!(IstioHeaders, "io.istio.http.peer_metadata", "Config.IstioHeaders");
name!(AlpnConfig, "istio.envoy.config.filter.http.alpn.v2alpha1", "FilterConfig");
name!(AlpnOverride, "istio.envoy.config.filter.http.alpn.v2alpha1", "FilterConfig.AlpnOverride");
name!(MetadataExchange, "envoy.tcp.metadataexchange.config", "MetadataExchange");
name!(WorkloadBootstrap, "istio.workload", "BootstrapExtension");
name!(TunnelPeerMetadata, "envoy.extensions.network_filters.peer_metadata", "Config");
name!(TunnelPeerMetadataUpstream, "envoy.extensions.network_filters.peer_metadata", "UpstreamConfig");
