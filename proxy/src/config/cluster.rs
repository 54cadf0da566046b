//! `envoy.config.cluster.v3.Cluster`.

use super::address::{keepalive, own_socket_options, socket_address, socket_options};
use super::any;
use super::context::{Context, Result};
use super::dns::{self, DnsFields};
use super::endpoint::{assignment, names};
use super::hash::cluster_hash;
use super::health::health_checks;
use super::load_balancing;
use super::matcher::percent;
use super::model::{
    BindConfig, ClusterConfig, ClusterDiscovery, LbPolicy, LoadAssignment, Priority, TcpKeepalive, Thresholds,
    TransportMatch, UpstreamProtocol, UpstreamTransport,
};
use super::pb::{cluster, core, extensions, google};
use super::source::{config_source, json_object};
use super::tls;
use super::upstream_http::{Deprecated, upstream_http};
use std::sync::Arc;
use std::time::Duration;

/// Envoy's defaults (`Cluster` in the API reference).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PANIC_THRESHOLD: f64 = 50.0;
const CLEANUP_INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn cluster(message: cluster::Cluster, cx: &mut Context) -> Result<ClusterConfig> {
    let hash = cluster_hash(&message);
    let cluster::Cluster {
        transport_socket_matches,
        transport_socket_matcher: _,
        name,
        alt_stat_name,
        stats_matcher: _,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout: _,
        lb_policy,
        load_assignment,
        health_checks: checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter: _,
        dns_failure_refresh_rate: _,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers: _,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config: _,
        typed_dns_resolver_config: _,
        wait_for_warm_on_init: _,
        outlier_detection: _,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata: _,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure: _,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy,
        lrs_server: _,
        lrs_report_endpoint_metrics: _,
        track_timeout_budgets: _,
        upstream_config: _,
        track_cluster_stats: _,
        preconnect_policy: _,
        connection_pool_per_downstream_connection: _,
        queuing_policies: _,
        cluster_discovery_type,
        lb_config,
    } = message;
    let name: Arc<str> = cx.non_empty("name", name)?.into();
    let nowhere =
        || ClusterDiscovery::Static(LoadAssignment { cluster_name: name.clone(), ..LoadAssignment::default() });

    // A cluster has one set of endpoints.
    let cluster::cluster::LbSubsetConfig {
        fallback_policy: _,
        default_subset: _,
        subset_selectors: _,
        locality_weight_aware: _,
        scale_locality_weight: _,
        panic_mode_any: _,
        list_as_any: _,
        metadata_fallback_policy: _,
    } = lb_subset_config.unwrap_or_default();
    let filters = cx.each("filters", filters, upstream_network_filter);
    cx.part(filters);

    let connect_timeout = cx.positive("connect_timeout", connect_timeout)?.unwrap_or(CONNECT_TIMEOUT);
    let dns = DnsFields { refresh_rate: dns_refresh_rate, respect_ttl: respect_dns_ttl, family: dns_lookup_family };
    let is_original_dst_config = matches!(lb_config, Some(cluster::cluster::LbConfig::OriginalDstLbConfig(_)));
    let port_override = match &lb_config {
        Some(cluster::cluster::LbConfig::OriginalDstLbConfig(config)) => {
            let read = cx.at("original_dst_lb_config", |cx| original_dst(config.clone(), cx));
            cx.part(read)
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
    let found = discovery(source, cx);
    let discovery_is_known = found.is_ok();
    let discovery = cx.part_or(found, nowhere);

    let policy = cx.enumeration("lb_policy", lb_policy)?;
    let by_enum = policy;
    let lb = match load_balancing_policy {
        Some(list) => cx.at("load_balancing_policy", |cx| load_balancing::by_list(list, cx)),
        None => load_balancing::by_enum(policy, lb_config.filter(|_| !is_original_dst_config), cx),
    };
    let is_original_dst = matches!(discovery, ClusterDiscovery::OriginalDst { .. });
    match &lb {
        Ok(lb) if discovery_is_known && is_original_dst != (*lb == LbPolicy::ClusterProvided) => {
            cx.record_all([cx.error_at(
                "lb_policy",
                "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST, and those take no other policy",
            )]);
        }
        Ok(_) if is_original_dst && by_enum != cluster::cluster::LbPolicy::ClusterProvided => {
            let found = by_enum.as_str_name();
            cx.record_all([cx.error_at(
                "lb_policy",
                format!(
                    "LB policy {found} is not valid for Cluster type ORIGINAL_DST. Only 'CLUSTER_PROVIDED' is allowed"
                ),
            )]);
        }
        _ => {}
    }
    let lb = cx.part_or(lb, || LbPolicy::RoundRobin);
    let common = cx.at("common_lb_config", |cx| common_lb(common_lb_config.unwrap_or_default(), cx));
    let CommonLb { panic_threshold, update_merge_window, ignore_new_hosts_until_first_hc } = cx.part(common);

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
    let http = upstream_http(typed_extension_protocol_options, deprecated, cx);
    let breakers = cx.at("circuit_breakers", |cx| breakers(circuit_breakers.unwrap_or_default(), &name, cx));
    let transport = upstream_transport(transport_socket, cx);
    let matches = cx.each("transport_socket_matches", transport_socket_matches, transport_match);
    let bind = upstream_bind_config.map(|message| cx.at("upstream_bind_config", |cx| bind_config(message, cx)));
    let bind = cx.part(bind.transpose()).flatten();
    // what has problems of its own is not also without ALPN
    let has_alpn = !matches!(&transport, Ok(UpstreamTransport::Raw));
    let transport = cx.part_or(transport, || UpstreamTransport::Raw);
    let transport_matches = cx.part(matches);
    let circuit_breakers = cx.part(breakers);
    let http = http?;
    let all_have_alpn =
        transport_matches.iter().all(|m: &TransportMatch| !matches!(m.transport, UpstreamTransport::Raw));
    if http.protocol == UpstreamProtocol::Auto && !(has_alpn && all_have_alpn) {
        let message = format!("ALPN configured for cluster {name} which has a non-ALPN transport socket");
        cx.record_all([cx.error_at("transport_socket", message)]);
    }
    if is_original_dst && !checks.is_empty() {
        return Err(cx.error_at("health_checks", "an ORIGINAL_DST cluster knows its endpoints from connections only"));
    }
    Ok(ClusterConfig {
        stat_name: if alt_stat_name.is_empty() { name.clone() } else { alt_stat_name.into() },
        name,
        discovery,
        connect_timeout,
        lb,
        health_check: health_checks(checks, http.protocol, cx)?,
        http,
        circuit_breakers,
        transport,
        transport_matches,
        bind,
        tcp_keepalive: connection_options(upstream_connection_options.unwrap_or_default()),
        panic_threshold,
        update_merge_window,
        ignore_health_on_host_removal,
        ignore_new_hosts_until_first_hc,
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
            Some(message) => {
                let assignment = cx.at("load_assignment", |cx| assignment(message, cx))?;
                // one text for the two names, which are equal nearly always
                let cluster_name = if *assignment.cluster_name == *name { name } else { assignment.cluster_name };
                LoadAssignment { cluster_name, ..assignment }
            }
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
                    // A client that could name the destination could reach anything.
                    let extensions::clusters::original_dst::v3::OriginalDstCluster {
                        use_http_header: _,
                        http_header_name: _,
                        upstream_port_override,
                        metadata_key: _,
                    } = any::unpack(config, cx)?;
                    fixed_port(upstream_port_override, cx)
                })
            })?;
            Ok(ClusterDiscovery::OriginalDst { port_override, cleanup_interval })
        }
        _ => cx.at("cluster_type", |cx| {
            cx.extension(&name, &kind)?;
            Err(cx.error(format!("found {name} ({kind}), expected a kind of cluster")))
        }),
    }
}

fn original_dst(message: cluster::cluster::OriginalDstLbConfig, cx: &mut Context) -> Result<Option<u16>> {
    let cluster::cluster::OriginalDstLbConfig {
        use_http_header: _,
        http_header_name: _,
        upstream_port_override,
        metadata_key: _,
    } = message;
    fixed_port(upstream_port_override, cx)
}

fn fixed_port(port: Option<google::UInt32Value>, cx: &Context) -> Result<Option<u16>> {
    port.map(|port| cx.port("upstream_port_override", port.value)).transpose()
}

/// What is read of `common_lb_config`.
#[derive(Default)]
struct CommonLb {
    panic_threshold: f64,
    update_merge_window: Option<Duration>,
    ignore_new_hosts_until_first_hc: bool,
}

fn common_lb(message: cluster::cluster::CommonLbConfig, cx: &mut Context) -> Result<CommonLb> {
    let cluster::cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change: _,
        consistent_hashing_lb_config: _,
        override_host_status: _,
        locality_config_specifier: _,
    } = message;
    let panic_threshold = percent(healthy_panic_threshold, "healthy_panic_threshold", cx)?.unwrap_or(PANIC_THRESHOLD);
    let panic_threshold = cx.runtime_number("upstream.healthy_panic_threshold", panic_threshold).clamp(0.0, 100.0);
    let update_merge_window = cx.timeout("update_merge_window", update_merge_window, None)?;
    Ok(CommonLb { panic_threshold, update_merge_window, ignore_new_hosts_until_first_hc })
}

fn breakers(message: cluster::CircuitBreakers, name: &str, cx: &mut Context) -> Result<[Thresholds; 2]> {
    let cluster::CircuitBreakers { thresholds, per_host_thresholds: _ } = message;
    let mut both = [Thresholds::default(); 2];
    for (priority, limits) in cx.each("thresholds", thresholds, threshold)? {
        both[priority as usize] = limits;
    }
    // thousands of clusters would ask for eight names each
    if cx.runtime.has_under("circuit_breakers.") {
        for (limits, priority) in both.iter_mut().zip(["default", "high"]) {
            overridden(limits, &format!("circuit_breakers.{name}.{priority}"), cx);
        }
    }
    Ok(both)
}

/// What runtime says of the limits, as it is now.
fn overridden(limits: &mut Thresholds, prefix: &str, cx: &Context) {
    let Thresholds { max_connections, max_pending_requests, max_requests, max_retries, track_remaining: _ } = limits;
    for (limit, name) in [
        (max_connections, "max_connections"),
        (max_pending_requests, "max_pending_requests"),
        (max_requests, "max_requests"),
        (max_retries, "max_retries"),
    ] {
        *limit = cx.runtime_number(&format!("{prefix}.{name}"), (*limit).into()).max(0.0) as u32;
    }
}

fn threshold(message: cluster::circuit_breakers::Thresholds, cx: &mut Context) -> Result<(Priority, Thresholds)> {
    let cluster::circuit_breakers::Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget: _,
        track_remaining,
        max_connection_pools: _,
    } = message;
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

fn connection_options(message: cluster::UpstreamConnectionOptions) -> Option<TcpKeepalive> {
    let cluster::UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections: _,
        happy_eyeballs_config: _,
    } = message;
    tcp_keepalive.map(keepalive)
}

fn bind_config(message: core::BindConfig, cx: &mut Context) -> Result<Option<BindConfig>> {
    let core::BindConfig {
        source_address,
        freebind,
        socket_options: options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector: _,
        validate_network_namespaces: _,
    } = message;
    socket_options(options, cx)?;
    let mut sources = Vec::new();
    if !extra_source_addresses.is_empty() && !additional_source_addresses.is_empty() {
        let message = "Can't specify both `extra_source_addresses` and `additional_source_addresses`";
        cx.record_all([cx.error_at("additional_source_addresses", message)]);
    }
    let has_more = !extra_source_addresses.is_empty() || !additional_source_addresses.is_empty();
    if has_more && source_address.is_none() {
        let message = "is missing: there are extra/additional source addresses but no source_address";
        cx.record_all([cx.error_at("source_address", message)]);
    }
    if let Some(address) = source_address {
        let address = cx.at("source_address", |cx| socket_address(address, cx));
        sources.extend(cx.part(address.map(Some)));
    }
    sources.extend(cx.each("extra_source_addresses", extra_source_addresses, |extra, cx| {
        let core::ExtraSourceAddress { address, socket_options: options } = extra;
        own_socket_options(options, cx)?;
        let address = cx.required("address", address)?;
        cx.at("address", |cx| socket_address(address, cx))
    })?);
    sources.extend(cx.each("additional_source_addresses", additional_source_addresses, socket_address)?);
    // A connection takes the first address of its endpoint's family, so more than one other would never be used.
    if has_more && (sources.len() > 2 || matches!(sources.as_slice(), [a, b] if a.is_ipv4() == b.is_ipv4())) {
        let message = "source_address and one more of the other IP version are expected, no further ones";
        cx.record_all([cx.error(message)]);
    }
    Ok((!sources.is_empty()).then(|| BindConfig { sources, freebind: freebind.is_some_and(|v| v.value) }))
}

fn transport_match(message: cluster::cluster::TransportSocketMatch, cx: &mut Context) -> Result<TransportMatch> {
    let cluster::cluster::TransportSocketMatch { name: _, r#match, transport_socket } = message;
    let transport_socket = Some(cx.required("transport_socket", transport_socket)?);
    Ok(TransportMatch {
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
            kind => {
                cx.extension(&name, kind)?;
                Err(cx.error(format!("found transport socket {name} ({kind}), expected one for the side of endpoints")))
            }
        })
    })
}

/// Network filters towards endpoints: there are none, and the table says which may be left out.
fn upstream_network_filter(message: cluster::Filter, cx: &mut Context) -> Result<()> {
    let cluster::Filter { name, typed_config, config_discovery: _ } = message;
    let kind = cx.required("typed_config", typed_config).and_then(|config| any::inner_type(&config, cx))?;
    match cx.extension(&name, &kind)? {
        true => Err(cx.error(format!("found filter {name} ({kind}), expected none: it is for listeners"))),
        false => Ok(()),
    }
}
