//! What a route does: forward, redirect, answer by itself.

use super::any;
use super::cluster::priority_of;
use super::context::{Context, Result};
use super::headers::{header_name, header_ops, header_value};
use super::http_filters::per_filter_config;
use super::matcher::substitution;
use super::model::{
    ClusterChoice, DirectResponse, Forward, HashPolicy, HostRewrite, PathRewrite, Redirect, RedirectPath, RouteAction,
    WeightedCluster,
};
use super::pb::{google, route};
use super::retry::retry_policy;
use super::source::data_source;
use ::http::StatusCode;
use std::time::Duration;

/// Envoy's route timeout.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Why hash policies do nothing: no cluster has a balancer that would ask for the hash.
pub(super) const NO_HASHES: &str = "no balancer hashes";

/// Bounds that the route configuration sets for its routes.
pub(super) struct Limits {
    pub direct_response_bytes: u32,
}

pub(super) fn action(message: route::route::Action, limits: &Limits, cx: &mut Context) -> Result<RouteAction> {
    use route::route::Action;
    match message {
        Action::Route(message) => {
            let forward = cx.at("route", |cx| forward(message, cx))?;
            Ok(RouteAction::Forward(Box::new(forward)))
        }
        Action::Redirect(message) => cx.at("redirect", |cx| redirect(message, cx)).map(RouteAction::Redirect),
        Action::DirectResponse(message) => {
            cx.at("direct_response", |cx| direct_response(message, limits, cx)).map(RouteAction::Direct)
        }
        Action::FilterAction(_) => Err(any::refused("filter_action", cx)),
        Action::NonForwardingAction(_) => Err(any::refused("non_forwarding_action", cx)),
    }
}

fn forward(message: route::RouteAction, cx: &mut Context) -> Result<Forward> {
    use route::route_action::ClusterNotFoundResponseCode as NotFound;
    let route::RouteAction {
        cluster_not_found_response_code,
        metadata_match: _,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy: _,
        path_rewrite: _,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout: _,
        early_data_policy: _,
        retry_policy: retry,
        retry_policy_typed_config: _,
        request_mirror_policies: _,
        priority,
        rate_limits: _,
        include_vh_rate_limits: _,
        hash_policy: hashes,
        cors: _,
        max_grpc_timeout,
        grpc_timeout_offset: _,
        upgrade_configs,
        internal_redirect_policy: _,
        internal_redirect_action: _,
        max_internal_redirects: _,
        hedge_policy: _,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = message;
    let durations = cx.at("max_stream_duration", |cx| {
        stream_durations(max_stream_duration.unwrap_or_default(), max_grpc_timeout, cx)
    })?;
    let path_rewrite = path_rewrite_of(prefix_rewrite, regex_rewrite, cx);
    let path_rewrite = cx.part_or(path_rewrite, || PathRewrite::None);
    let host_rewrite = host_rewrite(host_rewrite_specifier, cx);
    let host_rewrite = cx.part_or(host_rewrite, || HostRewrite::None);
    let retry = retry.map(|message| cx.at("retry_policy", |cx| retry_policy(message, cx))).transpose();
    let retry = cx.part(retry);
    let upgrades = cx.each("upgrade_configs", upgrade_configs, upgrade);
    let upgrades = cx.part(upgrades);
    for (i, (upgrade, _)) in upgrades.iter().enumerate() {
        if upgrades.iter().take(i).any(|(other, _)| other == upgrade) {
            cx.record_all([cx.error_at("upgrade_configs", format!("Duplicate upgrade {upgrade}"))]);
        }
    }
    let hashes = cx.each("hash_policy", hashes, hash_policy);
    let hashes = cx.part(hashes);
    Ok(Forward {
        cluster: cluster_choice(cx.required("cluster", cluster_specifier)?, cx)?,
        cluster_not_found: match cx.enumeration("cluster_not_found_response_code", cluster_not_found_response_code)? {
            NotFound::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            NotFound::NotFound => StatusCode::NOT_FOUND,
            NotFound::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        },
        timeout: cx.timeout("timeout", timeout, Some(TIMEOUT))?,
        idle_timeout: override_of("idle_timeout", idle_timeout, cx)?,
        max_stream_duration: durations.max_stream_duration,
        grpc_timeout_max: durations.grpc_timeout_max,
        retry_policy: retry,
        path_rewrite,
        host_rewrite,
        append_x_forwarded_host,
        priority: priority_of(priority, cx)?,
        upgrades,
        hash_policy: hashes.into_iter().flatten().collect(),
    })
}

/// A timeout that overrides another: absent leaves that one, zero switches it off.
fn override_of(field: &str, value: Option<google::Duration>, cx: &Context) -> Result<Option<Option<Duration>>> {
    Ok(cx.duration(field, value)?.map(|set| (!set.is_zero()).then_some(set)))
}

struct StreamDurations {
    max_stream_duration: Option<Option<Duration>>,
    grpc_timeout_max: Option<Option<Duration>>,
}

/// `max_grpc_timeout` is the deprecated way to say `grpc_timeout_header_max`, which wins over it.
fn stream_durations(
    message: route::route_action::MaxStreamDuration,
    max_grpc_timeout: Option<google::Duration>,
    cx: &mut Context,
) -> Result<StreamDurations> {
    let route::route_action::MaxStreamDuration {
        max_stream_duration,
        grpc_timeout_header_max,
        grpc_timeout_header_offset: _,
    } = message;
    let grpc_timeout_max = match override_of("grpc_timeout_header_max", grpc_timeout_header_max, cx)? {
        None => override_of("max_grpc_timeout", max_grpc_timeout, cx)?,
        set => set,
    };
    Ok(StreamDurations {
        max_stream_duration: override_of("max_stream_duration", max_stream_duration, cx)?,
        grpc_timeout_max,
    })
}

fn cluster_choice(message: route::route_action::ClusterSpecifier, cx: &mut Context) -> Result<ClusterChoice> {
    use route::route_action::ClusterSpecifier;
    match message {
        ClusterSpecifier::Cluster(name) => Ok(ClusterChoice::Name(cx.non_empty("cluster", name)?.into())),
        ClusterSpecifier::ClusterHeader(name) => header_name(&name, "cluster_header", cx).map(ClusterChoice::Header),
        ClusterSpecifier::WeightedClusters(message) => cx.at("weighted_clusters", |cx| weighted(message, cx)),
        ClusterSpecifier::ClusterSpecifierPlugin(_) => Err(any::refused("cluster_specifier_plugin", cx)),
        ClusterSpecifier::InlineClusterSpecifierPlugin(_) => Err(any::refused("inline_cluster_specifier_plugin", cx)),
    }
}

fn weighted(message: route::WeightedCluster, cx: &mut Context) -> Result<ClusterChoice> {
    let route::WeightedCluster { clusters, total_weight: _, runtime_key_prefix, random_value_specifier: _ } = message;
    let clusters = cx.each("clusters", clusters, |cluster, cx| weighted_cluster(cluster, &runtime_key_prefix, cx))?;
    if clusters.is_empty() {
        return Err(cx.error_at("clusters", "found none, expected at least one"));
    }
    let total: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    if total == 0 {
        return Err(cx.error("Sum of weights in the weighted_cluster must be greater than 0."));
    }
    if total > u64::from(u32::MAX) {
        return Err(
            cx.error(format!("The sum of weights of all weighted clusters is {total}, expected at most {}", u32::MAX))
        );
    }
    Ok(ClusterChoice::Weighted(clusters))
}

fn weighted_cluster(
    message: route::weighted_cluster::ClusterWeight,
    runtime_key_prefix: &str,
    cx: &mut Context,
) -> Result<WeightedCluster> {
    use route::weighted_cluster::{ClusterWeight, cluster_weight::HostRewriteSpecifier};
    let ClusterWeight {
        name,
        cluster_header: _,
        weight,
        metadata_match: _,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = message;
    per_filter_config(typed_per_filter_config, cx)?;
    let name = cx.non_empty("name", name)?;
    let weight = cx.required("weight", weight)?.value;
    let weight = match runtime_key_prefix {
        "" => weight,
        prefix => cx.runtime_number(&format!("{prefix}.{name}"), weight.into()).clamp(0.0, u32::MAX.into()) as u32,
    };
    Ok(WeightedCluster {
        name: name.into(),
        weight,
        request_headers: header_ops(request_headers_to_add, request_headers_to_remove, "request", cx)?,
        response_headers: header_ops(response_headers_to_add, response_headers_to_remove, "response", cx)?,
        host_rewrite: match host_rewrite_specifier {
            None => None,
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if host.is_empty() => None,
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                Some(header_value(&host, "host_rewrite_literal", cx)?)
            }
        },
    })
}

fn path_rewrite_of(
    prefix: String,
    regex: Option<super::pb::matcher::RegexMatchAndSubstitute>,
    cx: &mut Context,
) -> Result<PathRewrite> {
    match (prefix.is_empty(), regex) {
        (true, None) => Ok(PathRewrite::None),
        (false, Some(_)) => Err(cx.error("Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy")),
        // a route that matches by regular expression matches the whole path, all of which is replaced, as in Envoy
        (false, None) => Ok(PathRewrite::Prefix(prefix.into())),
        (true, Some(message)) => {
            let (pattern, substitution) = substitution(message, "regex_rewrite", cx)?;
            Ok(PathRewrite::Regex { pattern, substitution })
        }
    }
}

fn host_rewrite(message: Option<route::route_action::HostRewriteSpecifier>, cx: &mut Context) -> Result<HostRewrite> {
    use route::route_action::HostRewriteSpecifier as Kind;
    Ok(match message {
        None => HostRewrite::None,
        Some(Kind::AutoHostRewrite(google::BoolValue { value })) => {
            if value {
                HostRewrite::Auto
            } else {
                HostRewrite::None
            }
        }
        // Unlike the literal it is a format.
        Some(Kind::HostRewrite(host)) if host.contains('%') => {
            return Err(
                cx.error_at("host_rewrite", format!("found {host:?}: command operators are not supported here"))
            );
        }
        Some(Kind::HostRewriteLiteral(host) | Kind::HostRewrite(host)) if host.is_empty() => HostRewrite::None,
        Some(Kind::HostRewriteLiteral(host) | Kind::HostRewrite(host)) => {
            HostRewrite::Literal(header_value(&host, "host_rewrite_literal", cx)?)
        }
        Some(Kind::HostRewriteHeader(name)) => HostRewrite::Header(header_name(&name, "host_rewrite_header", cx)?),
        Some(Kind::HostRewritePathRegex(message)) => {
            let (pattern, substitution) = substitution(message, "host_rewrite_path_regex", cx)?;
            HostRewrite::PathRegex { pattern, substitution }
        }
    })
}

fn upgrade(message: route::route_action::UpgradeConfig, cx: &mut Context) -> Result<(Box<str>, bool)> {
    let route::route_action::UpgradeConfig { upgrade_type, enabled, connect_config: _ } = message;
    let upgrade_type = cx.non_empty("upgrade_type", upgrade_type)?.to_ascii_lowercase();
    Ok((upgrade_type.into(), enabled.is_none_or(|v| v.value)))
}

fn hash_policy(message: route::route_action::HashPolicy, cx: &mut Context) -> Result<Option<HashPolicy>> {
    use route::route_action::hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter};
    let route::route_action::HashPolicy { terminal: _, policy_specifier } = message;
    cx.warn("", NO_HASHES);
    match cx.required("policy_specifier", policy_specifier)? {
        PolicySpecifier::Header(Header { header_name: name, regex_rewrite: _ }) => {
            Ok(Some(HashPolicy::Header(header_name(&name, "header.header_name", cx)?)))
        }
        PolicySpecifier::Cookie(Cookie { name, ttl: _, path: _, attributes: _ }) => {
            Ok(Some(HashPolicy::Cookie(cx.non_empty("cookie.name", name)?.into())))
        }
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip }) => {
            Ok(source_ip.then_some(HashPolicy::SourceIp))
        }
        PolicySpecifier::QueryParameter(QueryParameter { name }) => {
            Ok(Some(HashPolicy::Query(cx.non_empty("query_parameter.name", name)?.into())))
        }
        PolicySpecifier::FilterState(_) => Ok(None),
    }
}

fn redirect(message: route::RedirectAction, cx: &mut Context) -> Result<Redirect> {
    use route::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let route::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = message;
    let (scheme, https) = match scheme_rewrite_specifier {
        None => (None, false),
        Some(SchemeRewriteSpecifier::HttpsRedirect(https)) => (None, https),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => ((!scheme.is_empty()).then(|| scheme.into()), false),
    };
    let path = match path_rewrite_specifier {
        None => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) => RedirectPath::Path(path.into()),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => RedirectPath::Prefix(prefix.into()),
        Some(PathRewriteSpecifier::RegexRewrite(message)) => {
            let (pattern, substitution) = substitution(message, "regex_rewrite", cx)?;
            RedirectPath::Regex { pattern, substitution }
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return Err(any::refused("path_rewrite", cx)),
    };
    Ok(Redirect {
        status: match cx.enumeration("response_code", response_code)? {
            RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectResponseCode::Found => StatusCode::FOUND,
            RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
            RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        },
        scheme,
        https,
        host: (!host_redirect.is_empty()).then(|| host_redirect.into()),
        port: match cx.port("port_redirect", port_redirect)? {
            0 => None,
            port => Some(port),
        },
        path,
        strip_query,
    })
}

fn direct_response(message: route::DirectResponseAction, limits: &Limits, cx: &mut Context) -> Result<DirectResponse> {
    let route::DirectResponseAction { status, body, body_format: _ } = message;
    let status = u16::try_from(status)
        .ok()
        .filter(|status| (200..600).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| cx.error_at("status", format!("found {status}, expected 200 to 599")))?;
    let body = match body {
        None => bytes::Bytes::new(),
        Some(message) => cx.at("body", |cx| data_source(message, cx))?.bytes,
    };
    if body.len() > limits.direct_response_bytes as usize {
        return Err(cx.error_at(
            "body",
            format!("response body size is {} bytes; maximum is {}", body.len(), limits.direct_response_bytes),
        ));
    }
    Ok(DirectResponse { status, body })
}
