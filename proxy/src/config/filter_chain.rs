//! Filter chains: what they match, their transport socket, their network filters.

use super::access_log::access_logs;
use super::address::cidr;
use super::any;
use super::context::{Context, Result};
use super::extension::dynamic_filter;
use super::hash::filter_chain_hash;
use super::hcm::connection_manager;
use super::model::{
    DownstreamTransport, FilterChainConfig, FilterChainMatch, FilterPlace, NetworkFilterConfig, SourceType,
    TcpProxyConfig,
};
use super::pb::{core, extensions, google, listener, tcp_proxy, types};
use super::tls;
use std::sync::Arc;
use std::time::Duration;

/// Idle time after which a proxied TCP connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn filter_chain(message: listener::FilterChain, cx: &mut Context) -> Result<FilterChainConfig> {
    let hash = filter_chain_hash(&message);
    let listener::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto: _,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = message;
    let count = filters.len();
    let mut at = 0;
    let filters = cx.each("filters", filters, |filter, cx| {
        at += 1;
        let filter = network_filter(filter, at == count, cx)?;
        match filter {
            Some(NetworkFilterConfig::Dynamic(_)) => Ok(filter),
            Some(_) if at < count => Err(cx.error("is a terminal filter, expected it to be the last of the chain")),
            None if at == count => {
                Err(cx.error("is not a terminal filter, expected http_connection_manager or tcp_proxy last"))
            }
            other => Ok(other),
        }
    });
    let filters = cx.part(filters);
    let matcher = cx.at("filter_chain_match", |cx| chain_match(filter_chain_match.unwrap_or_default(), cx));
    let transport = downstream_transport(transport_socket, cx);
    Ok(FilterChainConfig {
        name: name.into(),
        matcher: cx.part(matcher),
        transport: cx.part_or(transport, || DownstreamTransport::Raw),
        transport_connect_timeout: cx.timeout(
            "transport_socket_connect_timeout",
            transport_socket_connect_timeout,
            None,
        )?,
        filters: filters.into_iter().flatten().collect(),
        terminal: count.saturating_sub(1),
        hash,
    })
}

fn chain_match(message: listener::FilterChainMatch, cx: &mut Context) -> Result<FilterChainMatch> {
    use listener::filter_chain_match::ConnectionSourceType as Source;
    let listener::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix: _,
        suffix_len: _,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = message;
    Ok(FilterChainMatch {
        destination_port: destination_port.map(|port| nonzero_port("destination_port", port.value, cx)).transpose()?,
        prefix_ranges: cx.each("prefix_ranges", prefix_ranges, cidr)?,
        server_names: cx.each("server_names", server_names, server_name)?,
        transport_protocol: transport_protocol.into(),
        application_protocols: application_protocols.into_iter().map(Into::into).collect(),
        direct_source_prefix_ranges: cx.each("direct_source_prefix_ranges", direct_source_prefix_ranges, cidr)?,
        source_type: match cx.enumeration("source_type", source_type)? {
            Source::Any => SourceType::Any,
            Source::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            Source::External => SourceType::External,
        },
        source_prefix_ranges: cx.each("source_prefix_ranges", source_prefix_ranges, cidr)?,
        source_ports: cx.each("source_ports", source_ports, |port, cx| nonzero_port("", port, cx))?,
    })
}

fn nonzero_port(field: &str, value: u32, cx: &Context) -> Result<u16> {
    match cx.port(field, value)? {
        0 => Err(cx.error_at(field, "found 0, expected a port, 1 to 65535")),
        port => Ok(port),
    }
}

fn server_name(name: String, cx: &mut Context) -> Result<Box<str>> {
    let name = name.to_ascii_lowercase();
    let labels = name.strip_prefix("*.").unwrap_or(&name);
    if labels.contains('*') {
        return Err(cx.error(format!("found {name:?}: partial wildcards are not supported in \"server_names\"")));
    }
    Ok(name.into())
}

fn downstream_transport(message: Option<core::TransportSocket>, cx: &mut Context) -> Result<DownstreamTransport> {
    let Some(core::TransportSocket { name, config_type }) = message else { return Ok(DownstreamTransport::Raw) };
    cx.at("transport_socket", |cx| {
        let core::transport_socket::ConfigType::TypedConfig(config) = cx.required("typed_config", config_type)?;
        cx.at("typed_config", |cx| match any::inner_type(&config, cx)?.as_str() {
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => {
                let extensions::transport_sockets::raw_buffer::v3::RawBuffer {} = any::unpack(config, cx)?;
                Ok(DownstreamTransport::Raw)
            }
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
                let message = any::unpack(config, cx)?;
                Ok(DownstreamTransport::Tls(Arc::new(tls::downstream(message, cx)?)))
            }
            kind => {
                cx.extension(&name, kind)?;
                Err(cx.error(format!("found transport socket {name} ({kind}), expected raw_buffer or tls")))
            }
        })
    })
}

/// A filter that ends its chain or comes by ECDS; `None` for one that is passed over with a warning.
fn network_filter(message: listener::Filter, last: bool, cx: &mut Context) -> Result<Option<NetworkFilterConfig>> {
    use listener::filter::ConfigType;
    let listener::Filter { name, config_type } = message;
    match cx.required("typed_config", config_type)? {
        ConfigType::TypedConfig(config) => cx.at("typed_config", |cx| network_filter_config(&name, config, cx)),
        ConfigType::ConfigDiscovery(source) => dynamic_filter(&name, source, FilterPlace::Network, last, cx)
            .map(|filter| Some(NetworkFilterConfig::Dynamic(filter))),
    }
}

/// As `network_filter`, of its configuration.
pub(super) fn network_filter_config(
    name: &str,
    config: google::Any,
    cx: &mut Context,
) -> Result<Option<NetworkFilterConfig>> {
    match any::inner_type(&config, cx)?.as_str() {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            let message = any::unpack(config, cx)?;
            let manager = connection_manager(message, cx)?;
            Ok(Some(NetworkFilterConfig::HttpConnectionManager(Arc::new(manager))))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            let message = any::unpack(config, cx)?;
            Ok(Some(NetworkFilterConfig::TcpProxy(Arc::new(tcp(message, cx)?))))
        }
        kind if cx.extension(name, kind)? => Err(
            cx.error(format!("found {name} ({kind}), expected a network filter: http_connection_manager or tcp_proxy"))
        ),
        _ => Ok(None),
    }
}

fn tcp(message: tcp_proxy::TcpProxy, cx: &mut Context) -> Result<TcpProxyConfig> {
    use tcp_proxy::tcp_proxy::ClusterSpecifier;
    let tcp_proxy::TcpProxy {
        stat_prefix,
        on_demand: _,
        metadata_match: _,
        idle_timeout,
        downstream_idle_timeout: _,
        upstream_idle_timeout: _,
        access_log,
        max_connect_attempts,
        backoff_options: _,
        hash_policy,
        tunneling_config: _,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage: _,
        access_log_flush_interval: _,
        flush_access_log_on_connected: _,
        access_log_options: _,
        proxy_protocol_tlvs: _,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode: _,
        max_early_data_bytes: _,
        check_drain_close: _,
        cluster_specifier,
    } = message;
    let stat_prefix = cx.non_empty("stat_prefix", stat_prefix)?.into();
    let clusters = match cx.required("cluster", cluster_specifier)? {
        ClusterSpecifier::Cluster(name) => vec![(cx.non_empty("cluster", name)?.into(), 1)],
        ClusterSpecifier::WeightedClusters(clusters) => {
            cx.at("weighted_clusters", |cx| weighted_clusters(clusters, cx))?
        }
    };
    let max_connect_attempts = max_connect_attempts.map_or(1, |v| v.value);
    if max_connect_attempts == 0 {
        return Err(cx.error_at("max_connect_attempts", "found 0, expected at least 1"));
    }
    let hashes = cx.each("hash_policy", hash_policy, |policy, cx| {
        use types::hash_policy::{PolicySpecifier, SourceIp};
        let types::HashPolicy { policy_specifier } = policy;
        cx.warn("", super::route_action::NO_HASHES);
        match cx.required("policy_specifier", policy_specifier)? {
            PolicySpecifier::SourceIp(SourceIp {}) => Ok(true),
            PolicySpecifier::FilterState(_) => Ok(false),
        }
    })?;
    Ok(TcpProxyConfig {
        stat_prefix,
        clusters,
        idle_timeout: cx.timeout("idle_timeout", idle_timeout, Some(IDLE_TIMEOUT))?,
        max_downstream_connection_duration: cx.timeout(
            "max_downstream_connection_duration",
            max_downstream_connection_duration,
            None,
        )?,
        max_connect_attempts,
        access_log: access_logs(access_log, "access_log", cx)?,
        hash_source_ip: hashes.contains(&true),
    })
}

fn weighted_clusters(message: tcp_proxy::tcp_proxy::WeightedCluster, cx: &mut Context) -> Result<Vec<(Arc<str>, u32)>> {
    use tcp_proxy::tcp_proxy::{WeightedCluster, weighted_cluster::ClusterWeight};
    let WeightedCluster { clusters } = message;
    let clusters = cx.each("clusters", clusters, |cluster, cx| {
        let ClusterWeight { name, weight, metadata_match: _ } = cluster;
        if weight == 0 {
            return Err(cx.error_at("weight", "found 0, expected at least 1"));
        }
        Ok((Arc::from(cx.non_empty("name", name)?), weight))
    })?;
    if clusters.is_empty() {
        return Err(cx.error_at("clusters", "found none, expected at least one"));
    }
    Ok(clusters)
}
