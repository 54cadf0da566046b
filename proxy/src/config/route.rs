//! `envoy.config.route.v3.RouteConfiguration`, its virtual hosts and its routes.

use super::context::{Context, Result};
use super::headers::{header_name, header_ops};
use super::http_filters::per_filter_config;
use super::model::{RequireTls, Route, RouteConfig, VirtualHost};
use super::pb::route;
use super::retry::retry_policy;
use super::route_action::{self, Limits};
use super::route_match::route_match;
use std::collections::HashSet;

/// Bound of the body of a direct response where the configuration sets none.
const MAX_DIRECT_RESPONSE: u32 = 4096;

/// `inline`: the configuration is part of a connection manager, where unknown clusters are an error by default.
pub(super) fn route_configuration(
    message: route::RouteConfiguration,
    inline: bool,
    cx: &mut Context,
) -> Result<RouteConfig> {
    let route::RouteConfiguration {
        name,
        virtual_hosts,
        vhds: _,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins: _,
        request_mirror_policies: _,
        ignore_port_in_host_matching,
        vhost_header: _,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata,
        route_specifiers: _,
    } = message;
    // It does nothing by itself, and what would read it has its own answer.
    drop(metadata);
    cx.enabled_filters.clear();
    per_filter_config(typed_per_filter_config, cx)?;
    let limits =
        Limits { direct_response_bytes: max_direct_response_body_size_bytes.map_or(MAX_DIRECT_RESPONSE, |v| v.value) };
    let virtual_hosts = cx.each("virtual_hosts", virtual_hosts, |host, cx| virtual_host(host, &limits, cx))?;
    distinct(&virtual_hosts, &name, cx)?;
    Ok(RouteConfig {
        name: name.into(),
        virtual_hosts,
        request_headers: header_ops(request_headers_to_add, request_headers_to_remove, "request", cx)?,
        response_headers: header_ops(response_headers_to_add, response_headers_to_remove, "response", cx)?,
        internal_only_headers: cx
            .each("internal_only_headers", internal_only_headers, |name, cx| header_name(&name, "", cx))?,
        ignore_port_in_host_matching,
        ignore_path_parameters_in_path_matching,
        most_specific_header_mutations_wins,
        validate_clusters: validate_clusters.map_or(inline, |v| v.value),
        enabled_filters: std::mem::take(&mut cx.enabled_filters),
    })
}

/// Names of virtual hosts and all their domains are unique.
fn distinct(hosts: &[VirtualHost], route: &str, cx: &Context) -> Result<()> {
    let mut names = HashSet::new();
    let mut domains = HashSet::new();
    for host in hosts {
        if !names.insert(&host.name) {
            return Err(cx.error_at(
                "virtual_hosts",
                format!("Only unique names for virtual hosts are permitted. Duplicate entry of {}", host.name),
            ));
        }
        for domain in &host.domains {
            if !domains.insert(domain) {
                let message = match &**domain {
                    "*" => format!("Only a single wildcard domain is permitted in route {route}"),
                    other => format!(
                        "Only unique values for domains are permitted. Duplicate entry of domain {other} in route {route}"
                    ),
                };
                return Err(cx.error_at("virtual_hosts", message));
            }
        }
    }
    Ok(())
}

fn virtual_host(message: route::VirtualHost, limits: &Limits, cx: &mut Context) -> Result<VirtualHost> {
    use route::virtual_host::TlsRequirementType;
    let route::VirtualHost {
        name,
        domains,
        routes,
        matcher: _,
        require_tls,
        virtual_clusters: _,
        rate_limits: _,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors: _,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy: retry,
        retry_policy_typed_config: _,
        hedge_policy: _,
        include_is_timeout_retry_header: _,
        per_request_buffer_limit_bytes: _,
        request_body_buffer_limit: _,
        request_mirror_policies: _,
        metadata,
        route_specifiers: _,
    } = message;
    // It does nothing by itself, and what would read it has its own answer.
    drop(metadata);
    per_filter_config(typed_per_filter_config, cx)?;
    if domains.is_empty() {
        return Err(cx.error_at("domains", "found none, expected at least one"));
    }
    Ok(VirtualHost {
        name: cx.non_empty("name", name)?.into(),
        domains: domains.into_iter().map(|domain| domain.to_ascii_lowercase().into()).collect(),
        routes: cx.each("routes", routes, |route, cx| one_route(route, limits, cx))?,
        request_headers: header_ops(request_headers_to_add, request_headers_to_remove, "request", cx)?,
        response_headers: header_ops(response_headers_to_add, response_headers_to_remove, "response", cx)?,
        require_tls: match cx.enumeration("require_tls", require_tls)? {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy: retry.map(|message| cx.at("retry_policy", |cx| retry_policy(message, cx))).transpose()?,
    })
}

fn one_route(message: route::Route, limits: &Limits, cx: &mut Context) -> Result<Route> {
    let route::Route {
        name,
        r#match,
        metadata,
        decorator: _,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing: _,
        per_request_buffer_limit_bytes: _,
        stat_prefix,
        request_body_buffer_limit: _,
        route_specifiers: _,
        action,
    } = message;
    // It does nothing by itself, and what would read it has its own answer.
    drop(metadata);
    per_filter_config(typed_per_filter_config, cx)?;
    let matcher = cx.required("match", r#match)?;
    let matcher = cx.at("match", |cx| route_match(matcher, cx))?;
    let action = route_action::action(cx.required("action", action)?, &matcher, limits, cx)?;
    Ok(Route {
        name: name.into(),
        matcher,
        action,
        request_headers: header_ops(request_headers_to_add, request_headers_to_remove, "request", cx)?,
        response_headers: header_ops(response_headers_to_add, response_headers_to_remove, "response", cx)?,
        stat_prefix: (!stat_prefix.is_empty()).then(|| stat_prefix.into()),
    })
}
