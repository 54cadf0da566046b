//! `envoy.config.listener.v3.Listener` and its listener filters.

use super::access_log::access_logs;
use super::address::{Place, address, own_socket_options, place, socket_options};
use super::any;
use super::context::{Context, Result};
use super::extension::dynamic_filter;
use super::filter_chain::filter_chain;
use super::hash::shell_hash;
use super::model::{
    AccessLogConfig, AccessLogFilter, Address, FilterChainConfig, FilterPlace, ListenerConfig, ListenerFilterConfig,
    ListenerFilterKind, ListenerFilterPredicate, TrafficDirection,
};
use super::pb::{accesslog, core, extensions, google, listener, types};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's defaults (`Listener` in the API reference).
const BUFFER_LIMIT: u32 = 1 << 20;
const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
/// The kernel cuts it down to `net.core.somaxconn`.
const BACKLOG: u32 = i32::MAX as u32;

const ORIGINAL_DST: &str = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
const ALWAYS_RUN: &str = "found filter_disabled on original_dst, expected none: it is always run";

/// `filter_disabled` may nest; deeper than this is refused.
const MAX_DEPTH: usize = 16;

pub(super) fn listener(message: listener::Listener, cx: &mut Context) -> Result<ListenerConfig> {
    use listener::listener::{DeprecatedV1, DrainType};
    let shell_hash = shell_hash(&message);
    let listener::Listener {
        name,
        address: listener_address,
        additional_addresses,
        stat_prefix,
        stats_matcher: _,
        filter_chains,
        fcds_config: _,
        filter_chain_matcher: _,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout: _,
        metadata: _,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options: options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config: _,
        api_listener: _,
        connection_balance_config: _,
        reuse_port: _,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp: _,
        ignore_global_conn_limit,
        bypass_overload_manager: _,
        tcp_keepalive: _,
        listener_specifier: _,
    } = message;
    socket_options(options, cx)?;
    let bound = bound_address(listener_address, cx);
    let (address, ipv4_compat) =
        cx.part_or(bound, || (Address::Socket((std::net::Ipv4Addr::UNSPECIFIED, 0).into()), false));
    let bind_to_port = match (bind_to_port, deprecated_v1) {
        (Some(set), _) => set.value,
        (None, Some(DeprecatedV1 { bind_to_port: Some(set) })) => set.value,
        (None, _) => true,
    };
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        cx.record_all([cx.error_at("filter_chains", "no filter chains specified")]);
    }
    let mut at = 0..;
    let filter_chains = cx.each("filter_chains", filter_chains, |chain, cx| {
        let at = at.next();
        Ok((at.unwrap_or(0), filter_chain(chain, cx)?))
    });
    let filter_chains = cx.part(filter_chains);
    distinct_matches(&filter_chains, cx);
    let filter_chains = filter_chains.into_iter().map(|(_, chain)| chain).collect();
    let default_filter_chain =
        default_filter_chain.map(|chain| cx.at("default_filter_chain", |cx| filter_chain(chain, cx))).transpose();
    let default_filter_chain = cx.part(default_filter_chain);
    let additional_addresses = cx.each("additional_addresses", additional_addresses, additional_address);
    let listener_filters = cx.each("listener_filters", listener_filters, listener_filter);
    let access_log = listener_logs(access_log, cx);
    let name = if name.is_empty() { address.to_string() } else { name };
    Ok(ListenerConfig {
        connection_limit: cx.runtime.live_limit(&format!("envoy.resource_limits.listener.{name}.connection_limit")),
        global_connection_limit: (!ignore_global_conn_limit)
            .then(|| cx.runtime.live_limit("overload.global_downstream_max_connections")),
        name: name.into(),
        address,
        additional_addresses: cx.part(additional_addresses),
        stat_prefix: (!stat_prefix.is_empty()).then(|| stat_prefix.into()),
        traffic_direction: match cx.enumeration("traffic_direction", traffic_direction)? {
            core::TrafficDirection::Unspecified => TrafficDirection::Unspecified,
            core::TrafficDirection::Inbound => TrafficDirection::Inbound,
            core::TrafficDirection::Outbound => TrafficDirection::Outbound,
        },
        bind_to_port,
        use_original_dst: flag(use_original_dst),
        transparent: flag(transparent),
        freebind: flag(freebind),
        reuse_port: enable_reuse_port.is_none_or(|v| v.value),
        ipv4_compat,
        tcp_backlog: tcp_backlog_size.map_or(BACKLOG, |v| v.value),
        max_accepts_per_event: max_connections_to_accept_per_socket_event.map_or(0, |v| v.value),
        tcp_fast_open_queue_length: tcp_fast_open_queue_length.map(|v| v.value),
        listener_filters: cx.part(listener_filters),
        listener_filters_timeout: cx.timeout(
            "listener_filters_timeout",
            listener_filters_timeout,
            Some(LISTENER_FILTERS_TIMEOUT),
        )?,
        continue_on_listener_filters_timeout,
        filter_chains,
        default_filter_chain,
        per_connection_buffer_limit_bytes: per_connection_buffer_limit_bytes.map_or(BUFFER_LIMIT, |v| v.value),
        access_log: cx.part(access_log),
        drain_modify_only: cx.enumeration::<DrainType>("drain_type", drain_type)? == DrainType::ModifyOnly,
        shell_hash,
    })
}

/// Loggers of connections that no filter chain takes.
fn listener_logs(messages: Vec<accesslog::AccessLog>, cx: &mut Context) -> Result<Vec<AccessLogConfig>> {
    let logs = access_logs(messages, "access_log", cx)?;
    // flags such as NR are those of connections that were not served
    let wants_served = |log: &AccessLogConfig| !matches!(log.filter, Some(AccessLogFilter::ResponseFlags(_)));
    if logs.iter().any(wants_served) {
        cx.warn("access_log", "only connections that no filter chain takes are logged by it");
    }
    Ok(logs)
}

fn flag(value: Option<google::BoolValue>) -> bool {
    value.is_some_and(|v| v.value)
}

/// The address to bind, which is no name, and `ipv4_compat`, which only some IPv6 addresses can have.
fn bound_address(message: Option<core::Address>, cx: &mut Context) -> Result<(Address, bool)> {
    match place(message.clone(), "address", cx)? {
        (Place::Address(bound), ipv4_compat) => {
            let can = matches!(bound, Address::Socket(SocketAddr::V6(v6))
                if v6.ip().is_unspecified() || v6.ip().to_ipv4_mapped().is_some());
            if ipv4_compat && !can {
                return Err(cx.error_at(
                    "address",
                    format!("Only IPv6 address '::' or valid IPv4-mapped IPv6 address can set ipv4_compat: {bound}"),
                ));
            }
            Ok((bound, ipv4_compat))
        }
        (Place::Name(..), _) => address(message, "address", cx).map(|bound| (bound, false)),
    }
}

fn additional_address(message: listener::AdditionalAddress, cx: &mut Context) -> Result<Address> {
    let listener::AdditionalAddress { address: message, socket_options: options, tcp_keepalive: _ } = message;
    own_socket_options(options, cx)?;
    let (bound, _) = bound_address(message, cx)?;
    match bound {
        Address::Socket(_) => Ok(bound),
        other @ Address::Pipe { .. } => {
            Err(cx.error_at("address", format!("found {other}, expected an IP address and a port")))
        }
    }
}

/// Two chains with the same rules could never both be chosen.
fn distinct_matches(chains: &[(usize, FilterChainConfig)], cx: &Context) {
    let mut seen: HashMap<_, &Arc<str>> = HashMap::new();
    for (at, chain) in chains {
        match seen.entry(&chain.matcher) {
            Entry::Vacant(place) => drop(place.insert(&chain.name)),
            Entry::Occupied(twin) => {
                let message =
                    format!("filter chain '{}' has the same matching rules defined as '{}'", chain.name, twin.get());
                cx.record_all([cx.error_at(&format!("filter_chains[{at}].filter_chain_match"), message)]);
            }
        }
    }
}

fn listener_filter(message: listener::ListenerFilter, cx: &mut Context) -> Result<ListenerFilterConfig> {
    use listener::listener_filter::ConfigType;
    let listener::ListenerFilter { name, filter_disabled, config_type } = message;
    let disabled = match filter_disabled {
        None => ListenerFilterPredicate::Never,
        Some(message) => cx.at("filter_disabled", |cx| predicate(message, 0, cx))?,
    };
    let config = match cx.required("typed_config", config_type)? {
        ConfigType::TypedConfig(config) => config,
        ConfigType::ConfigDiscovery(source) => {
            let filter = dynamic_filter(&name, source, FilterPlace::Listener, false, cx)?;
            if filter.types.iter().any(|kind| &**kind == ORIGINAL_DST)
                && !matches!(disabled, ListenerFilterPredicate::Never)
            {
                return Err(cx.error_at("filter_disabled", ALWAYS_RUN));
            }
            return Ok(ListenerFilterConfig::Dynamic(filter, disabled));
        }
    };
    cx.at("typed_config", |cx| match (listener_filter_kind(&name, config, cx)?, disabled) {
        (ListenerFilterKind::OriginalDst, ListenerFilterPredicate::Never) => Ok(ListenerFilterConfig::OriginalDst),
        (ListenerFilterKind::OriginalDst, _) => Err(cx.error(ALWAYS_RUN)),
        (ListenerFilterKind::HttpInspector, disabled) => Ok(ListenerFilterConfig::HttpInspector(disabled)),
        (ListenerFilterKind::TlsInspector, disabled) => Ok(ListenerFilterConfig::TlsInspector(disabled)),
    })
}

/// Which listener filter it is: none has anything to configure.
pub(super) fn listener_filter_kind(name: &str, config: google::Any, cx: &mut Context) -> Result<ListenerFilterKind> {
    use extensions::filters::listener::{http_inspector, original_dst, tls_inspector};
    match any::inner_type(&config, cx)?.as_str() {
        ORIGINAL_DST => {
            let original_dst::v3::OriginalDst {} = any::unpack(config, cx)?;
            Ok(ListenerFilterKind::OriginalDst)
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            let http_inspector::v3::HttpInspector {} = any::unpack(config, cx)?;
            Ok(ListenerFilterKind::HttpInspector)
        }
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
            let tls_inspector::v3::TlsInspector {
                enable_ja3_fingerprinting: _,
                enable_ja4_fingerprinting: _,
                initial_read_buffer_size: _,
                close_connection_on_client_hello_parsing_errors: _,
                max_client_hello_size: _,
            } = any::unpack(config, cx)?;
            Ok(ListenerFilterKind::TlsInspector)
        }
        kind => {
            cx.extension(name, kind)?;
            Err(cx.error(format!(
                "found {name} ({kind}), expected a listener filter: original_dst, tls_inspector or http_inspector"
            )))
        }
    }
}

fn predicate(
    message: listener::ListenerFilterChainMatchPredicate,
    depth: usize,
    cx: &mut Context,
) -> Result<ListenerFilterPredicate> {
    use listener::listener_filter_chain_match_predicate::{MatchSet, Rule};
    if depth > MAX_DEPTH {
        return Err(cx.error(format!("found predicates nested deeper than {MAX_DEPTH}, expected fewer levels")));
    }
    let listener::ListenerFilterChainMatchPredicate { rule } = message;
    let all = |field: &str, rules, cx: &mut Context| cx.each(field, rules, |rule, cx| predicate(rule, depth + 1, cx));
    Ok(match cx.required("rule", rule)? {
        Rule::OrMatch(MatchSet { rules }) => ListenerFilterPredicate::Or(all("or_match.rules", rules, cx)?),
        Rule::AndMatch(MatchSet { rules }) => ListenerFilterPredicate::And(all("and_match.rules", rules, cx)?),
        Rule::NotMatch(inner) => {
            ListenerFilterPredicate::Not(Box::new(cx.at("not_match", |cx| predicate(*inner, depth + 1, cx))?))
        }
        Rule::AnyMatch(true) => ListenerFilterPredicate::Always,
        Rule::AnyMatch(false) => return Err(cx.error_at("any_match", "found false, expected true")),
        Rule::DestinationPortRange(types::Int32Range { start, end }) => {
            match (u16::try_from(start), u32::try_from(end)) {
                (Ok(start), Ok(end)) if end <= 65_536 => ListenerFilterPredicate::DestinationPort { start, end },
                _ => {
                    let found = format!("found {start} to {end}, expected ports, the end exclusive");
                    return Err(cx.error_at("destination_port_range", found));
                }
            }
        }
    })
}
