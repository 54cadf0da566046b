//! The resources tests need most, as protobuf messages, and bootstraps as YAML.
//!
//! Each function makes the shortest configuration that does one thing; a test that needs more changes the message it
//! gets. Shapes with `istio` in their name carry the fields Istio sends.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use prost::{Message, Name};
use xds_protos::pb::envoy::config::cluster::v3::{Cluster, cluster};
use xds_protos::pb::envoy::config::core::v3 as core;
use xds_protos::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use xds_protos::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use xds_protos::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route,
    route_action, route_match, weighted_cluster,
};
use xds_protos::pb::envoy::extensions::filters::http::router::v3::Router;
use xds_protos::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager, http_filter,
};
use xds_protos::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use xds_protos::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use xds_protos::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use xds_protos::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use xds_protos::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};

use crate::control_plane::Address;

/// Packs a message with its type URL.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// A TCP address.
pub fn address(address: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

/// "Ask the ADS stream", waiting for as long as it takes (`initial_fetch_timeout` 0), as Istio configures it.
pub fn ads() -> core::ConfigSource {
    core::ConfigSource {
        initial_fetch_timeout: Some(Duration { seconds: 0, nanos: 0 }),
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..core::ConfigSource::default()
    }
}

/// "Ask the SDS server behind this static cluster", as Istio configures its agent's socket.
pub fn sds(cluster: &str) -> core::ConfigSource {
    let envoy_grpc = core::grpc_service::EnvoyGrpc { cluster_name: cluster.to_owned(), ..Default::default() };
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy_grpc)),
        ..core::GrpcService::default()
    };
    let source = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![service],
        ..core::ApiConfigSource::default()
    };
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(source)),
        ..ads()
    }
}

/// Endpoints of equal weight in one locality.
pub fn endpoints(cluster: &str, addresses: &[SocketAddr]) -> ClusterLoadAssignment {
    let endpoint = |at: &SocketAddr| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address(*at)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let locality = LocalityLbEndpoints {
        lb_endpoints: addresses.iter().map(endpoint).collect(),
        ..LocalityLbEndpoints::default()
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    }
}

/// A round robin cluster with fixed endpoints.
pub fn static_cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(Duration { seconds: 2, nanos: 0 }),
        load_assignment: Some(endpoints(name, addresses)),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Static.into())),
        ..Cluster::default()
    }
}

/// A round robin cluster whose endpoints come over ADS under the cluster's own name.
pub fn eds_cluster(name: &str) -> Cluster {
    Cluster {
        eds_cluster_config: Some(cluster::EdsClusterConfig { eds_config: Some(ads()), service_name: String::new() }),
        load_assignment: None,
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds.into())),
        ..static_cluster(name, &[])
    }
}

/// A cluster that connects to the original destination of the downstream connection.
pub fn original_dst_cluster(name: &str) -> Cluster {
    Cluster {
        load_assignment: None,
        lb_policy: cluster::LbPolicy::ClusterProvided.into(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::OriginalDst.into())),
        ..static_cluster(name, &[])
    }
}

/// Speaks HTTP/2 to the endpoints of `cluster`.
pub fn with_http2(mut cluster: Cluster) -> Cluster {
    use http_protocol_options::explicit_http_config::ProtocolConfig;
    let explicit = http_protocol_options::ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(core::Http2ProtocolOptions::default())),
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(http_protocol_options::UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    };
    cluster.typed_extension_protocol_options.insert(HttpProtocolOptions::full_name(), any(&options));
    cluster
}

/// Speaks Istio's mutual TLS to the endpoints of `cluster`: certificate `default` and bundle `ROOTCA` from the SDS
/// server behind `sds_cluster`, peers accepted when their SPIFFE ID is one of `identities`.
pub fn with_istio_mtls(mut cluster: Cluster, sds_cluster: &str, sni: &str, identities: &[&str]) -> Cluster {
    let matchers = identities.iter().map(|id| matcher(MatchPattern::Exact((*id).to_owned()))).collect();
    let context = tls::UpstreamTlsContext {
        common_tls_context: Some(istio_tls(sds_cluster, &["istio-peer-exchange", "istio"], matchers)),
        sni: sni.to_owned(),
        ..tls::UpstreamTlsContext::default()
    };
    cluster.transport_socket = Some(tls_socket(any(&context)));
    cluster
}

fn matcher(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

fn tls_socket(context: Any) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(context)),
    }
}

#[allow(deprecated, reason = "match_subject_alt_names is the field Istio sends")]
fn istio_tls(sds_cluster: &str, alpn: &[&str], peers: Vec<StringMatcher>) -> tls::CommonTlsContext {
    let secret = |name: &str| tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(sds(sds_cluster)) };
    let version = tls::tls_parameters::TlsProtocol::TlSv12;
    let newest = tls::tls_parameters::TlsProtocol::TlSv13;
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: version.into(),
            tls_maximum_protocol_version: newest.into(),
            ..tls::TlsParameters::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret(certs::IDENTITY)],
        alpn_protocols: alpn.iter().map(|p| (*p).to_owned()).collect(),
        validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
            tls::common_tls_context::CombinedCertificateValidationContext {
                default_validation_context: Some(tls::CertificateValidationContext {
                    match_subject_alt_names: peers,
                    ..tls::CertificateValidationContext::default()
                }),
                validation_context_sds_secret_config: Some(secret(certs::BUNDLE)),
                ..Default::default()
            },
        )),
        ..tls::CommonTlsContext::default()
    }
}

/// A virtual host for all domains.
pub fn virtual_host(name: &str, routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: name.to_owned(), domains: vec!["*".to_owned()], routes, ..VirtualHost::default() }
}

/// A route configuration with one virtual host for all domains.
pub fn route_config(name: &str, routes: Vec<Route>) -> RouteConfiguration {
    let virtual_hosts = vec![virtual_host("all", routes)];
    RouteConfiguration { name: name.to_owned(), virtual_hosts, ..RouteConfiguration::default() }
}

fn prefix_route(prefix: &str, action: route::Action) -> Route {
    let path = route_match::PathSpecifier::Prefix(prefix.to_owned());
    Route {
        r#match: Some(RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }),
        action: Some(action),
        ..Route::default()
    }
}

/// Requests under `prefix` go to `cluster`.
pub fn route_to(prefix: &str, cluster: &str) -> Route {
    let specifier = route_action::ClusterSpecifier::Cluster(cluster.to_owned());
    let action = RouteAction { cluster_specifier: Some(specifier), ..RouteAction::default() };
    prefix_route(prefix, route::Action::Route(action))
}

/// Requests under `prefix` are spread over clusters by weight.
pub fn weighted_route(prefix: &str, weights: &[(&str, u32)]) -> Route {
    let clusters = weights.iter().map(|(name, weight)| weighted_cluster::ClusterWeight {
        name: (*name).to_owned(),
        weight: Some(UInt32Value { value: *weight }),
        ..Default::default()
    });
    let weighted = WeightedCluster { clusters: clusters.collect(), ..WeightedCluster::default() };
    let specifier = route_action::ClusterSpecifier::WeightedClusters(weighted);
    let action = RouteAction { cluster_specifier: Some(specifier), ..RouteAction::default() };
    prefix_route(prefix, route::Action::Route(action))
}

/// Requests under `prefix` are answered by the proxy.
pub fn direct_response(prefix: &str, status: u32, body: &str) -> Route {
    let specifier = core::data_source::Specifier::InlineString(body.to_owned());
    let body = core::DataSource { specifier: Some(specifier), ..core::DataSource::default() };
    let action = DirectResponseAction { status, body: Some(body), ..DirectResponseAction::default() };
    prefix_route(prefix, route::Action::DirectResponse(action))
}

fn connection_manager(stat_prefix: &str, routes: http_connection_manager::RouteSpecifier) -> HttpConnectionManager {
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    };
    let websocket = http_connection_manager::UpgradeConfig {
        upgrade_type: "websocket".to_owned(),
        ..http_connection_manager::UpgradeConfig::default()
    };
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: vec![router],
        upgrade_configs: vec![websocket],
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    }
}

/// A connection manager with router and WebSocket upgrade whose routes come over ADS under `route_name`.
pub fn hcm_rds(stat_prefix: &str, route_name: &str) -> HttpConnectionManager {
    let rds = Rds { config_source: Some(ads()), route_config_name: route_name.to_owned() };
    connection_manager(stat_prefix, http_connection_manager::RouteSpecifier::Rds(rds))
}

/// A connection manager with router and WebSocket upgrade and the routes inside.
pub fn hcm_inline(stat_prefix: &str, routes: RouteConfiguration) -> HttpConnectionManager {
    connection_manager(stat_prefix, http_connection_manager::RouteSpecifier::RouteConfig(routes))
}

/// A listener with one filter chain of one network filter.
pub fn listener<M: Message + Name>(name: &str, at: SocketAddr, filter_name: &str, filter: &M) -> Listener {
    let filter =
        Filter { name: filter_name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(any(filter))) };
    Listener {
        name: name.to_owned(),
        address: Some(address(at)),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    }
}

/// A listener for HTTP.
pub fn http_listener(name: &str, at: SocketAddr, hcm: &HttpConnectionManager) -> Listener {
    listener(name, at, "envoy.filters.network.http_connection_manager", hcm)
}

/// A listener that passes TCP on to `cluster`.
pub fn tcp_listener(name: &str, at: SocketAddr, cluster: &str) -> Listener {
    let proxy = TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    listener(name, at, "envoy.filters.network.tcp_proxy", &proxy)
}

/// Makes every filter chain of a listener speak Istio's STRICT mutual TLS: peers must show a certificate of the bundle
/// whose SPIFFE ID begins with `peer_prefix`, such as `spiffe://cluster.local/`.
pub fn with_istio_strict(mut listener: Listener, sds_cluster: &str, peer_prefix: &str) -> Listener {
    let peers = vec![matcher(MatchPattern::Prefix(peer_prefix.to_owned()))];
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(istio_tls(sds_cluster, &["h2", "http/1.1"], peers)),
        require_client_certificate: Some(BoolValue { value: true }),
        ..tls::DownstreamTlsContext::default()
    };
    for chain in &mut listener.filter_chains {
        chain.transport_socket = Some(tls_socket(any(&context)));
    }
    listener
}

/// A bootstrap: an identity, an admin page on a free port, and where to ask for the rest.
#[derive(Debug, Clone, Default)]
pub struct Bootstrap<'a> {
    /// `node.id`; required by every control plane.
    pub node_id: &'a str,
    /// `node.cluster`.
    pub node_cluster: &'a str,
    /// The ADS server: clusters and listeners come from it.
    pub ads: Option<&'a Address>,
    /// State of the world instead of delta.
    pub sotw: bool,
    /// A Unix socket that serves SDS; reachable in the configuration as cluster `sds-grpc`.
    pub sds: Option<&'a Path>,
    /// YAML of static listeners and clusters, indented as they stand under `static_resources:`.
    pub static_listeners: &'a str,
    /// See `static_listeners`.
    pub static_clusters: &'a str,
}

/// The name of the static cluster in front of [`Bootstrap::sds`].
pub const SDS_CLUSTER: &str = "sds-grpc";
const XDS_CLUSTER: &str = "xds-grpc";

impl Bootstrap<'_> {
    /// The bootstrap as YAML. The admin page listens on a free port of 127.0.0.1.
    pub fn yaml(&self) -> String {
        let mut yaml = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut yaml);
        yaml
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let or_default = |text: &str| if text.is_empty() { "test".to_owned() } else { text.to_owned() };
        writeln!(out, "node: {{ id: '{}', cluster: '{}' }}", or_default(self.node_id), or_default(self.node_cluster))?;
        writeln!(out, "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}")?;
        if self.ads.is_some() {
            let api = if self.sotw { "GRPC" } else { "DELTA_GRPC" };
            let source = "{ ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3 }";
            writeln!(out, "dynamic_resources:")?;
            writeln!(out, "  ads_config:")?;
            writeln!(out, "    api_type: {api}")?;
            writeln!(out, "    transport_api_version: V3")?;
            writeln!(out, "    set_node_on_first_message_only: true")?;
            writeln!(out, "    grpc_services: [{{ envoy_grpc: {{ cluster_name: {XDS_CLUSTER} }} }}]")?;
            writeln!(out, "  cds_config: {source}")?;
            writeln!(out, "  lds_config: {source}")?;
        }
        writeln!(out, "static_resources:")?;
        writeln!(out, "  listeners:{}", list(self.static_listeners))?;
        let mut clusters = self.static_clusters.to_owned();
        if let Some(ads) = self.ads {
            clusters.push_str(&grpc_cluster(XDS_CLUSTER, ads));
        }
        if let Some(sds) = self.sds {
            clusters.push_str(&grpc_cluster(SDS_CLUSTER, &Address::Unix(sds.to_owned())));
        }
        writeln!(out, "  clusters:{}", list(&clusters))
    }
}

fn list(items: &str) -> String {
    match items.trim_matches('\n') {
        "" => " []".to_owned(),
        items => format!("\n{items}"),
    }
}

fn grpc_cluster(name: &str, at: &Address) -> String {
    let address = match at {
        Address::Tcp(at) => format!("socket_address: {{ address: '{}', port_value: {} }}", at.ip(), at.port()),
        Address::Unix(path) => format!("pipe: {{ path: '{}' }}", path.display()),
    };
    format!(
        "
  - name: {name}
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ {address} }} }} }}] }}]
"
    )
}
