//! `envoy.config.cluster.v3.Cluster`.

use super::address::{keepalive, socket_address};
use super::any;
use super::context::{Context, Result};
use super::dns::{self, DnsFields};
use super::endpoint::{assignment, names};
use super::hash::cluster_hash;
use super::load_balancing;
use super::matcher::percent;
use super::model::{
    BindConfig, ClusterConfig, ClusterDiscovery, LbPolicy, LoadAssignment, Priority, TcpKeepalive, Thresholds,
    TransportMatch, UpstreamTransport,
};
use super::pb::{cluster, core, extensions, google};
use super::source::{config_source, json_object, metadata};
use super::tls;
use super::upstream_http::{Deprecated, upstream_http};
use std::sync::Arc;
use std::time::Duration;

/// Envoy's defaults (`Cluster` in the API reference).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PANIC_THRESHOLD: f64 = 50.0;
const CLEANUP_INTERVAL: Duration = Duration::from_secs(5);
const UPDATE_MERGE_WINDOW: Duration = Duration::from_secs(1);

pub(super) fn cluster(message: cluster::Cluster, cx: &mut Context) -> Result<ClusterConfig> {
    let hash = cluster_hash(&message);
    let cluster::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata: cluster_metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        // Endpoints go when discovery says so: without active health checks that is what both settings mean.
        ignore_health_on_host_removal: _,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = message;
    let name: Arc<str> = cx.non_empty("name", name)?.into();

    cx.refuse("transport_socket_matcher", &transport_socket_matcher, "use transport_socket_matches")?;
    cx.refuse("upstream_config", &upstream_config, "there are no custom upstreams")?;
    if lb_subset_config.as_ref().is_some_and(|subsets| !subsets.subset_selectors.is_empty()) {
        return Err(cx.error_at("lb_subset_config", "is not supported: a cluster has one set of endpoints"));
    }
    cx.refuse(
        "connection_pool_per_downstream_connection",
        &connection_pool_per_downstream_connection,
        "connections of one worker are shared by all its clients",
    )?;
    cx.no_effect("stats_matcher", &stats_matcher, "the stats of the bootstrap's matcher are kept");
    cx.no_effect(
        "per_connection_buffer_limit_bytes",
        &per_connection_buffer_limit_bytes,
        "bodies are passed on frame by frame; what is read at once has a built-in bound",
    );
    cx.no_effect(
        "per_connection_buffer_high_watermark_timeout",
        &per_connection_buffer_high_watermark_timeout,
        "a full buffer has no time limit",
    );
    cx.no_effect("health_checks", &health_checks, "there is no active health checking yet");
    cx.no_effect("outlier_detection", &outlier_detection, "endpoints are not ejected yet");
    cx.no_effect("lrs_server", &lrs_server, "loads are not reported");
    cx.no_effect("lrs_report_endpoint_metrics", &lrs_report_endpoint_metrics, "loads are not reported");
    cx.no_effect("track_timeout_budgets", &track_timeout_budgets, "no such histograms are kept");
    cx.no_effect("track_cluster_stats", &track_cluster_stats, "no such stats are kept");
    cx.no_effect("preconnect_policy", &preconnect_policy, "connections are opened when they are needed");
    cx.no_effect("queuing_policies", &queuing_policies, "pending requests wait in order");
    if wait_for_warm_on_init.is_some_and(|v| !v.value) {
        cx.warn("wait_for_warm_on_init", "start-up waits for every cluster to warm");
    }
    cx.each("filters", filters, upstream_network_filter)?;

    let connect_timeout = cx.positive("connect_timeout", connect_timeout)?.unwrap_or(CONNECT_TIMEOUT);
    let dns = DnsFields {
        refresh_rate: dns_refresh_rate,
        jitter: dns_jitter,
        failure_refresh_rate: dns_failure_refresh_rate,
        respect_ttl: respect_dns_ttl,
        family: dns_lookup_family,
        resolvers: dns_resolvers,
        use_tcp: use_tcp_for_dns_lookups,
        resolution: dns_resolution_config,
        resolver: typed_dns_resolver_config,
    };
    let is_original_dst_config = matches!(lb_config, Some(cluster::cluster::LbConfig::OriginalDstLbConfig(_)));
    let port_override = match &lb_config {
        Some(cluster::cluster::LbConfig::OriginalDstLbConfig(config)) => {
            cx.at("original_dst_lb_config", |cx| original_dst(config.clone(), cx))?
        }
        _ => None,
    };
    let source = DiscoveryFields {
        name: name.clone(),
        discovery_type: cluster_discovery_type,
        eds: eds_cluster_config,
        load_assignment,
        dns,
        port_override,
        cleanup_interval: cx.positive("cleanup_interval", cleanup_interval)?.unwrap_or(CLEANUP_INTERVAL),
    };
    let discovery = discovery(source, cx)?;

    let policy = cx.enumeration("lb_policy", lb_policy)?;
    let lb = match load_balancing_policy {
        Some(list) => cx.at("load_balancing_policy", |cx| load_balancing::by_list(list, cx))?,
        None => load_balancing::by_enum(policy, lb_config.filter(|_| !is_original_dst_config), cx)?,
    };
    let is_original_dst = matches!(discovery, ClusterDiscovery::OriginalDst { .. });
    if is_original_dst != (lb == LbPolicy::ClusterProvided) {
        return Err(cx.error_at(
            "lb_policy",
            "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST, and those take no other policy",
        ));
    }
    let (panic_threshold, update_merge_window) =
        cx.at("common_lb_config", |cx| common_lb(common_lb_config.unwrap_or_default(), cx))?;

    let use_downstream_protocol = cx
        .enumeration::<cluster::cluster::ClusterProtocolSelection>("protocol_selection", protocol_selection)?
        == cluster::cluster::ClusterProtocolSelection::UseDownstreamProtocol;
    let deprecated = Deprecated {
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        max_requests_per_connection,
        use_downstream_protocol,
    };
    let tcp_keepalive = cx.at("upstream_connection_options", |cx| {
        connection_options(upstream_connection_options.unwrap_or_default(), cx)
    });
    Ok(ClusterConfig {
        stat_name: if alt_stat_name.is_empty() { name.clone() } else { alt_stat_name.into() },
        name,
        discovery,
        connect_timeout,
        lb,
        http: upstream_http(typed_extension_protocol_options, deprecated, cx)?,
        circuit_breakers: cx.at("circuit_breakers", |cx| breakers(circuit_breakers.unwrap_or_default(), cx))?,
        transport: upstream_transport(transport_socket, cx)?,
        transport_matches: cx.each("transport_socket_matches", transport_socket_matches, transport_match)?,
        bind: upstream_bind_config
            .map(|message| cx.at("upstream_bind_config", |cx| bind_config(message, cx)))
            .transpose()?
            .flatten(),
        tcp_keepalive,
        panic_threshold,
        update_merge_window,
        close_connections_on_host_health_failure,
        metadata: Arc::new(metadata(cluster_metadata, cx)),
        hash,
    })
}

/// The fields that say where endpoints come from.
struct DiscoveryFields {
    name: Arc<str>,
    discovery_type: Option<cluster::cluster::ClusterDiscoveryType>,
    eds: Option<cluster::cluster::EdsClusterConfig>,
    load_assignment: Option<super::pb::endpoint::ClusterLoadAssignment>,
    dns: DnsFields,
    port_override: Option<u16>,
    cleanup_interval: Duration,
}

fn discovery(fields: DiscoveryFields, cx: &mut Context) -> Result<ClusterDiscovery> {
    use cluster::cluster::{ClusterDiscoveryType as By, DiscoveryType as Type};
    let DiscoveryFields { name, discovery_type, eds, load_assignment, dns, port_override, cleanup_interval } = fields;
    let kind = match discovery_type {
        None => Type::Static,
        Some(By::Type(number)) => cx.enumeration("type", number)?,
        Some(By::ClusterType(custom)) => {
            cx.refuse("eds_cluster_config", &eds, "it is for clusters of type EDS")?;
            return custom_discovery(custom, load_assignment, dns, cleanup_interval, cx);
        }
    };
    if kind != Type::Eds && eds.is_some() {
        return Err(cx.error_at("eds_cluster_config", "eds_cluster_config set in a non-EDS cluster"));
    }
    if !matches!(kind, Type::StrictDns | Type::LogicalDns) {
        dns::unused(&dns, cx);
    }
    match kind {
        Type::Static => Ok(ClusterDiscovery::Static(match load_assignment {
            Some(message) => cx.at("load_assignment", |cx| assignment(message, cx))?,
            None => LoadAssignment { cluster_name: name, ..LoadAssignment::default() },
        })),
        Type::Eds => {
            cx.no_effect("load_assignment", &load_assignment, "the endpoints come by EDS");
            let cluster::cluster::EdsClusterConfig { eds_config, service_name } =
                cx.required("eds_cluster_config", eds)?;
            cx.at("eds_cluster_config", |cx| {
                let source = cx.required("eds_config", eds_config)?;
                Ok(ClusterDiscovery::Eds {
                    service_name: if service_name.is_empty() { name } else { service_name.into() },
                    source: cx.at("eds_config", |cx| config_source(source, cx))?,
                })
            })
        }
        Type::StrictDns => {
            let endpoints = dns_names(load_assignment, cx)?;
            Ok(ClusterDiscovery::StrictDns { endpoints, dns: dns::by_fields(dns, cx)? })
        }
        Type::LogicalDns => {
            let endpoints = one_name(dns_names(load_assignment, cx)?, cx)?;
            Ok(ClusterDiscovery::LogicalDns { endpoints, dns: dns::by_fields(dns, cx)? })
        }
        Type::OriginalDst => {
            if load_assignment.is_some() {
                return Err(
                    cx.error_at("load_assignment", "ORIGINAL_DST clusters must have no load assignment configured")
                );
            }
            Ok(ClusterDiscovery::OriginalDst { port_override, cleanup_interval })
        }
    }
}

fn dns_names(
    message: Option<super::pb::endpoint::ClusterLoadAssignment>,
    cx: &mut Context,
) -> Result<Vec<super::model::DnsLocality>> {
    let message = cx.required("load_assignment", message)?;
    cx.at("load_assignment", |cx| names(message, cx))
}

fn one_name(endpoints: Vec<super::model::DnsLocality>, cx: &Context) -> Result<Vec<super::model::DnsLocality>> {
    match endpoints.as_slice() {
        [only] if only.names.len() == 1 => Ok(endpoints),
        _ => Err(cx.error_at(
            "load_assignment",
            "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
        )),
    }
}

/// `cluster_type`: DNS and original destination also exist as extensions.
fn custom_discovery(
    message: cluster::cluster::CustomClusterType,
    load_assignment: Option<super::pb::endpoint::ClusterLoadAssignment>,
    fields: DnsFields,
    cleanup_interval: Duration,
    cx: &mut Context,
) -> Result<ClusterDiscovery> {
    let cluster::cluster::CustomClusterType { name, typed_config } = message;
    let config = cx.at("cluster_type", |cx| cx.required("typed_config", typed_config))?;
    let kind = cx.at("cluster_type", |cx| any::inner_type(&config, cx))?;
    match kind.as_str() {
        "envoy.extensions.clusters.dns.v3.DnsCluster" => {
            dns::unused(&fields, cx);
            let (dns, logical) = cx.at("cluster_type", |cx| {
                cx.at("typed_config", |cx| {
                    let message = any::unpack(config, cx)?;
                    dns::by_extension(message, cx)
                })
            })?;
            let endpoints = dns_names(load_assignment, cx)?;
            Ok(match logical {
                true => ClusterDiscovery::LogicalDns { endpoints: one_name(endpoints, cx)?, dns },
                false => ClusterDiscovery::StrictDns { endpoints, dns },
            })
        }
        "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" => {
            dns::unused(&fields, cx);
            let port_override = cx.at("cluster_type", |cx| {
                cx.at("typed_config", |cx| {
                    let extensions::clusters::original_dst::v3::OriginalDstCluster {
                        use_http_header,
                        http_header_name,
                        upstream_port_override,
                        metadata_key,
                    } = any::unpack(config, cx)?;
                    let same = cluster::cluster::OriginalDstLbConfig {
                        use_http_header,
                        http_header_name,
                        upstream_port_override,
                        metadata_key,
                    };
                    original_dst(same, cx)
                })
            })?;
            Ok(ClusterDiscovery::OriginalDst { port_override, cleanup_interval })
        }
        _ => Err(cx.error_at(
            "cluster_type",
            format!(
                "found {name} ({kind}), expected a built-in type, envoy.clusters.dns or envoy.clusters.original_dst"
            ),
        )),
    }
}

fn original_dst(message: cluster::cluster::OriginalDstLbConfig, cx: &mut Context) -> Result<Option<u16>> {
    let cluster::cluster::OriginalDstLbConfig {
        use_http_header,
        http_header_name,
        upstream_port_override,
        metadata_key,
    } = message;
    // A client that could name the destination could reach anything.
    cx.refuse("use_http_header", &use_http_header, "the destination is that of the connection, not a header's")?;
    cx.refuse("http_header_name", &http_header_name, "the destination is that of the connection, not a header's")?;
    cx.refuse("metadata_key", &metadata_key, "the destination is that of the connection, not of metadata")?;
    upstream_port_override.map(|port| cx.port("upstream_port_override", port.value)).transpose()
}

/// The panic threshold and the merge window; the rest of the message has no effect yet.
fn common_lb(message: cluster::cluster::CommonLbConfig, cx: &mut Context) -> Result<(f64, Option<Duration>)> {
    use cluster::cluster::common_lb_config::LocalityConfigSpecifier as Locality;
    let cluster::cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = message;
    cx.no_effect(
        "ignore_new_hosts_until_first_hc",
        &ignore_new_hosts_until_first_hc,
        "there is no active health checking yet",
    );
    cx.no_effect(
        "close_connections_on_host_set_change",
        &close_connections_on_host_set_change,
        "connections to endpoints that stay are kept",
    );
    cx.no_effect("consistent_hashing_lb_config", &consistent_hashing_lb_config, "no balancer of this cluster hashes");
    cx.no_effect("override_host_status", &override_host_status, "no filter overrides the endpoint");
    match locality_config_specifier {
        None => {}
        Some(Locality::ZoneAwareLbConfig(_)) => cx.warn("zone_aware_lb_config", "no zone is preferred yet"),
        Some(Locality::LocalityWeightedLbConfig(_)) => {
            cx.warn("locality_weighted_lb_config", "the weights of localities are not used yet");
        }
    }
    let panic_threshold = percent(healthy_panic_threshold, "healthy_panic_threshold", cx)?.unwrap_or(PANIC_THRESHOLD);
    Ok((panic_threshold, cx.timeout("update_merge_window", update_merge_window, Some(UPDATE_MERGE_WINDOW))?))
}

fn breakers(message: cluster::CircuitBreakers, cx: &mut Context) -> Result<[Thresholds; 2]> {
    let cluster::CircuitBreakers { thresholds, per_host_thresholds } = message;
    cx.no_effect("per_host_thresholds", &per_host_thresholds, "limits hold for the whole cluster");
    let mut both = [Thresholds::default(); 2];
    for (priority, limits) in cx.each("thresholds", thresholds, threshold)? {
        both[priority as usize] = limits;
    }
    Ok(both)
}

fn threshold(message: cluster::circuit_breakers::Thresholds, cx: &mut Context) -> Result<(Priority, Thresholds)> {
    let cluster::circuit_breakers::Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining,
        max_connection_pools,
    } = message;
    cx.no_effect("retry_budget", &retry_budget, "retries are limited by max_retries");
    cx.no_effect("max_connection_pools", &max_connection_pools, "pools are not counted");
    let defaults = Thresholds::default();
    let limit = |value: Option<google::UInt32Value>, default| value.map_or(default, |v| v.value);
    let limits = Thresholds {
        max_connections: limit(max_connections, defaults.max_connections),
        max_pending_requests: limit(max_pending_requests, defaults.max_pending_requests),
        max_requests: limit(max_requests, defaults.max_requests),
        max_retries: limit(max_retries, defaults.max_retries),
        track_remaining,
    };
    Ok((priority_of(priority, cx)?, limits))
}

pub(super) fn priority_of(number: i32, cx: &Context) -> Result<Priority> {
    Ok(match cx.enumeration("priority", number)? {
        core::RoutingPriority::Default => Priority::Default,
        core::RoutingPriority::High => Priority::High,
    })
}

fn connection_options(message: cluster::UpstreamConnectionOptions, cx: &mut Context) -> Option<TcpKeepalive> {
    let cluster::UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = message;
    cx.no_effect(
        "set_local_interface_name_on_upstream_connections",
        &set_local_interface_name_on_upstream_connections,
        "nothing reads the name of the interface",
    );
    cx.no_effect("happy_eyeballs_config", &happy_eyeballs_config, "an endpoint has one address");
    tcp_keepalive.map(keepalive)
}

fn bind_config(message: core::BindConfig, cx: &mut Context) -> Result<Option<BindConfig>> {
    let core::BindConfig {
        source_address,
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    } = message;
    cx.no_effect("socket_options", &socket_options, "raw socket options are not set");
    cx.no_effect("local_address_selector", &local_address_selector, "the address of the destination's family is used");
    cx.no_effect("validate_network_namespaces", &validate_network_namespaces, "sockets are made in our own namespace");
    let mut sources = Vec::new();
    if let Some(address) = source_address {
        sources.push(cx.at("source_address", |cx| socket_address(address, cx))?);
    }
    sources.extend(cx.each("extra_source_addresses", extra_source_addresses, |extra, cx| {
        let core::ExtraSourceAddress { address, socket_options } = extra;
        cx.no_effect("socket_options", &socket_options, "raw socket options are not set");
        let address = cx.required("address", address)?;
        cx.at("address", |cx| socket_address(address, cx))
    })?);
    sources.extend(cx.each("additional_source_addresses", additional_source_addresses, socket_address)?);
    Ok((!sources.is_empty()).then(|| BindConfig { sources, freebind: freebind.is_some_and(|v| v.value) }))
}

fn transport_match(message: cluster::cluster::TransportSocketMatch, cx: &mut Context) -> Result<TransportMatch> {
    let cluster::cluster::TransportSocketMatch { name, r#match, transport_socket } = message;
    let transport_socket = Some(cx.required("transport_socket", transport_socket)?);
    Ok(TransportMatch {
        name: cx.non_empty("name", name)?.into(),
        criteria: json_object(&r#match.unwrap_or_default()).into_iter().collect(),
        transport: upstream_transport(transport_socket, cx)?,
    })
}

fn upstream_transport(message: Option<core::TransportSocket>, cx: &mut Context) -> Result<UpstreamTransport> {
    let Some(core::TransportSocket { name, config_type }) = message else { return Ok(UpstreamTransport::Raw) };
    cx.at("transport_socket", |cx| {
        let core::transport_socket::ConfigType::TypedConfig(config) = cx.required("typed_config", config_type)?;
        cx.at("typed_config", |cx| match any::inner_type(&config, cx)?.as_str() {
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => {
                let extensions::transport_sockets::raw_buffer::v3::RawBuffer {} = any::unpack(config, cx)?;
                Ok(UpstreamTransport::Raw)
            }
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
                let message = any::unpack(config, cx)?;
                Ok(UpstreamTransport::Tls(Arc::new(tls::upstream(message, cx)?)))
            }
            kind => Err(cx.error(format!("found transport socket {name} ({kind}), expected raw_buffer or tls"))),
        })
    })
}

/// Network filters towards endpoints. Only Istio's metadata exchange is known to pass: without it connections are the
/// same, telemetry knows less of the peer.
fn upstream_network_filter(message: cluster::Filter, cx: &mut Context) -> Result<()> {
    let cluster::Filter { name, typed_config, config_discovery } = message;
    cx.refuse("config_discovery", &config_discovery, "filters are configured in place")?;
    let kind = cx.required("typed_config", typed_config).and_then(|config| any::inner_type(&config, cx))?;
    if kind == "envoy.tcp.metadataexchange.config.MetadataExchange" {
        cx.warn("", format!("{name} does not exist here; the peer's workload is not learnt from its connections"));
        return Ok(());
    }
    Err(cx.error(format!("found filter {name} ({kind}), expected none: there are no upstream network filters")))
}
