//! `envoy.config.route.v3.RouteConfiguration`, its virtual hosts and its routes.

use super::context::{Context, Result};
use super::headers::{header_name, header_ops};
use super::http_filters::per_filter_config;
use super::model::{PathMatch, RequireTls, Route, RouteConfig, RouteMatch, VirtualHost};
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
        metadata: _,
        route_specifiers: _,
    } = message;
    cx.enabled_filters.clear();
    let per_filter = per_filter_config(typed_per_filter_config, cx);
    cx.part(per_filter);
    let limits =
        Limits { direct_response_bytes: max_direct_response_body_size_bytes.map_or(MAX_DIRECT_RESPONSE, |v| v.value) };
    distinct(&virtual_hosts, &name, cx);
    let virtual_hosts = cx.each("virtual_hosts", virtual_hosts, |host, cx| virtual_host(host, &limits, cx));
    let request_headers = header_ops(request_headers_to_add, request_headers_to_remove, "request", cx);
    let response_headers = header_ops(response_headers_to_add, response_headers_to_remove, "response", cx);
    let internal_only = cx.each("internal_only_headers", internal_only_headers, |name, cx| header_name(&name, "", cx));
    Ok(RouteConfig {
        name: name.into(),
        virtual_hosts: cx.part(virtual_hosts),
        request_headers: cx.part(request_headers),
        response_headers: cx.part(response_headers),
        internal_only_headers: cx.part(internal_only),
        ignore_port_in_host_matching,
        ignore_path_parameters_in_path_matching,
        most_specific_header_mutations_wins,
        validate_clusters: validate_clusters.map_or(inline, |v| v.value),
        enabled_filters: std::mem::take(&mut cx.enabled_filters),
    })
}

/// All domains of a route configuration are unique, whatever their case. Virtual hosts may share a name.
fn distinct(hosts: &[route::VirtualHost], route: &str, cx: &Context) {
    let mut domains = HashSet::new();
    for (i, host) in hosts.iter().enumerate() {
        for (j, domain) in host.domains.iter().enumerate() {
            let domain = domain.to_ascii_lowercase();
            if domains.contains(&domain) {
                let message = match domain.as_str() {
                    "*" => format!("Only a single wildcard domain is permitted in route {route}"),
                    other => format!(
                        "Only unique values for domains are permitted. Duplicate entry of domain {other} in route {route}"
                    ),
                };
                cx.record_all([cx.error_at(&format!("virtual_hosts[{i}].domains[{j}]"), message)]);
            }
            domains.insert(domain);
        }
    }
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
        metadata: _,
        route_specifiers: _,
    } = message;
    let per_filter = per_filter_config(typed_per_filter_config, cx);
    cx.part(per_filter);
    if domains.is_empty() {
        cx.record_all([cx.error_at("domains", "found none, expected at least one")]);
    }
    let routes = cx.each("routes", routes, |route, cx| one_route(route, limits, cx));
    let request_headers = header_ops(request_headers_to_add, request_headers_to_remove, "request", cx);
    let response_headers = header_ops(response_headers_to_add, response_headers_to_remove, "response", cx);
    let retry = retry.map(|message| cx.at("retry_policy", |cx| retry_policy(message, cx))).transpose();
    Ok(VirtualHost {
        name: cx.non_empty("name", name)?.into(),
        domains: domains.into_iter().map(|domain| domain.to_ascii_lowercase().into()).collect(),
        routes: cx.part(routes),
        request_headers: cx.part(request_headers),
        response_headers: cx.part(response_headers),
        require_tls: match cx.enumeration("require_tls", require_tls)? {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy: cx.part(retry),
    })
}

fn one_route(message: route::Route, limits: &Limits, cx: &mut Context) -> Result<Route> {
    let route::Route {
        name,
        r#match,
        metadata: _,
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
    let per_filter = per_filter_config(typed_per_filter_config, cx);
    cx.part(per_filter);
    let request_headers = header_ops(request_headers_to_add, request_headers_to_remove, "request", cx);
    let response_headers = header_ops(response_headers_to_add, response_headers_to_remove, "response", cx);
    let (request_headers, response_headers) = (cx.part(request_headers), cx.part(response_headers));
    let matcher = cx.required("match", r#match).and_then(|matcher| cx.at("match", |cx| route_match(matcher, cx)));
    let matcher = cx.part_or(matcher, || RouteMatch {
        path: PathMatch::Connect,
        headers: Vec::new(),
        query: Vec::new(),
        fraction: None,
        grpc: false,
    });
    let action = route_action::action(cx.required("action", action)?, limits, cx)?;
    Ok(Route {
        name: name.into(),
        matcher,
        action,
        request_headers,
        response_headers,
        stat_prefix: (!stat_prefix.is_empty()).then(|| stat_prefix.into()),
    })
}
