//! HTTP filters: which exist, which are passed over with a warning, which are refused.
//!
//! A filter that guards access or rewrites what a guard looks at must never be left out, so everything is refused that
//! is not known to leave requests safe.

use super::access_log::access_logs;
use super::any;
use super::context::{Context, Result};
use super::model::RouterConfig;
use super::pb::{core, extensions, google, hcm, route};
use std::collections::{BTreeMap, HashMap};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const UPSTREAM_CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
const ROUTE_FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// Where Envoy's own HTTP filters live; the next part of the name is the filter's.
const ENVOY: &str = "envoy.extensions.filters.http.";

/// Envoy's filters without which a request is served all the same: they measure, translate, cache, shape or slow.
const PASSED: [&str; 31] = [
    "adaptive_concurrency",
    "admission_control",
    "alternate_protocols_cache",
    "aws_eventstream_parser",
    "bandwidth_limit",
    "bandwidth_share",
    "buffer",
    "cache",
    "cache_v2",
    "cdn_loop",
    "compressor",
    "connect_grpc_bridge",
    "custom_response",
    "decompressor",
    "geoip",
    "grpc_field_extraction",
    "grpc_http1_bridge",
    "grpc_http1_reverse_bridge",
    "grpc_json_reverse_transcoder",
    "grpc_json_transcoder",
    "grpc_stats",
    "grpc_web",
    "header_to_metadata",
    "health_check",
    "ip_tagging",
    "json_to_metadata",
    "kill_request",
    "on_demand",
    "set_metadata",
    "stateful_session",
    "tap",
];

/// Istio's filters for telemetry and protocol hints, by type.
const ISTIO: [&str; 3] = [
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "stats.PluginConfig",
];

/// What becomes of a filter.
enum Fate {
    Router(google::Any),
    /// Nothing to do, nothing to say.
    Idle,
    /// Left out, with a warning.
    Passed,
}

/// The filters of a connection manager. All that exist yet are the router and those with nothing to do.
pub(super) fn http_filters(messages: Vec<hcm::HttpFilter>, cx: &mut Context) -> Result<Option<RouterConfig>> {
    let count = messages.len();
    let mut at = 0;
    let mut last = String::new();
    let routers = cx.each("http_filters", messages, |message, cx| {
        at += 1;
        let hcm::HttpFilter { name, is_optional, disabled, config_type } = message;
        last.clone_from(&name);
        match fate(&name, is_optional, disabled, config_type, cx)? {
            Fate::Router(_) if at < count => Err(cx.error(format!(
                "terminal filter named {name} of type envoy.filters.http.router must be the last filter in a http filter chain"
            ))),
            Fate::Router(_) if disabled => Err(cx.error_at("disabled", "the router cannot be disabled")),
            Fate::Router(config) => cx.at("typed_config", |cx| {
                let message = any::unpack(config, cx)?;
                router(message, cx).map(Some)
            }),
            Fate::Idle | Fate::Passed => Ok(None),
        }
    })?;
    let router = routers.into_iter().flatten().next();
    if router.is_none() && count > 0 {
        return Err(cx.error_at(
            "http_filters",
            format!("non-terminal filter named {last} is the last filter in a http filter chain, expected the router"),
        ));
    }
    Ok(router)
}

/// A filter of a place that has no router: upgrades, or the side of the endpoints.
pub(super) fn upstream_filter(message: hcm::HttpFilter, cx: &mut Context) -> Result<()> {
    let hcm::HttpFilter { name, is_optional, disabled, config_type } = message;
    if let Some(hcm::http_filter::ConfigType::TypedConfig(config)) = &config_type
        && any::inner_type(config, cx)? == UPSTREAM_CODEC
    {
        return Ok(());
    }
    fate(&name, is_optional, disabled, config_type, cx).map(drop)
}

fn fate(
    name: &str,
    is_optional: bool,
    disabled: bool,
    config_type: Option<hcm::http_filter::ConfigType>,
    cx: &mut Context,
) -> Result<Fate> {
    use hcm::http_filter::ConfigType;
    let config = match cx.required("typed_config", config_type)? {
        ConfigType::TypedConfig(config) => config,
        ConfigType::ConfigDiscovery(_) if disabled => {
            cx.warn("config_discovery", format!("filter {name} is disabled; a route cannot enable it"));
            return Ok(Fate::Passed);
        }
        ConfigType::ConfigDiscovery(_) => {
            return Err(cx.error_at(
                "config_discovery",
                format!("is not supported for filter {name}: filters are configured in place"),
            ));
        }
    };
    cx.at("typed_config", |cx| {
        let kind = any::inner_type(&config, cx)?;
        match kind.as_str() {
            ROUTER => return Ok(Fate::Router(config)),
            FAULT => {
                return fault(any::unpack(config, cx)?, name, cx);
            }
            CORS => {
                let extensions::filters::http::cors::v3::Cors {} = any::unpack(config, cx)?;
                return Ok(Fate::Idle);
            }
            _ => {}
        }
        if is_passed(&kind) {
            cx.warn("", format!("filter {name} ({kind}) does not exist here; requests pass it by"));
        } else if disabled {
            // Only a route could enable it, and such a route is refused.
            cx.warn("", format!("filter {name} ({kind}) does not exist here; it is disabled"));
        } else if is_optional && !is_guard(&kind) {
            cx.warn("", format!("optional filter {name} ({kind}) does not exist here; requests pass it by"));
        } else {
            return Err(cx.error(format!("filter {name} ({kind}) is not supported, and requests must not pass it by")));
        }
        Ok(Fate::Passed)
    })
}

fn is_passed(kind: &str) -> bool {
    let envoys = kind.strip_prefix(ENVOY).and_then(|rest| rest.split('.').next());
    ISTIO.contains(&kind) || envoys.is_some_and(|filter| PASSED.contains(&filter))
}

/// Types that are known to be Envoy's, and therefore not simply unknown: `is_optional` does not excuse them.
fn is_guard(kind: &str) -> bool {
    kind.starts_with(ENVOY)
}

fn fault(message: extensions::filters::http::fault::v3::HttpFault, name: &str, cx: &mut Context) -> Result<Fate> {
    let extensions::filters::http::fault::v3::HttpFault {
        delay,
        abort,
        upstream_cluster: _,
        headers: _,
        downstream_nodes: _,
        max_active_faults: _,
        response_rate_limit,
        delay_percent_runtime: _,
        abort_percent_runtime: _,
        delay_duration_runtime: _,
        abort_http_status_runtime: _,
        max_active_faults_runtime: _,
        response_rate_limit_percent_runtime: _,
        abort_grpc_status_runtime: _,
        disable_downstream_cluster_stats: _,
        filter_metadata: _,
    } = message;
    // The other fields say when and how these three happen.
    if delay.is_none() && abort.is_none() && response_rate_limit.is_none() {
        return Ok(Fate::Idle);
    }
    cx.warn("", format!("filter {name} injects no faults"));
    Ok(Fate::Passed)
}

fn router(message: extensions::filters::http::router::v3::Router, cx: &mut Context) -> Result<RouterConfig> {
    let extensions::filters::http::router::v3::Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = message;
    if dynamic_stats.is_some_and(|v| !v.value) {
        cx.warn("dynamic_stats", "the stats of clusters are kept");
    }
    cx.no_effect("start_child_span", &start_child_span, "there is no tracing yet");
    if !access_logs(upstream_log, "upstream_log", cx)?.is_empty() {
        cx.warn("upstream_log", "upstream requests are not logged by themselves");
    }
    cx.no_effect("upstream_log_options", &upstream_log_options, "upstream requests are not logged by themselves");
    cx.no_effect(
        "respect_expected_rq_timeout",
        &respect_expected_rq_timeout,
        "the timeout is the route's, whatever x-envoy-expected-rq-timeout-ms says",
    );
    cx.no_effect("strict_check_headers", &strict_check_headers, "x-envoy-* headers with bad values are ignored");
    cx.no_effect(
        "suppress_grpc_request_failure_code_stats",
        &suppress_grpc_request_failure_code_stats,
        "failed gRPC requests are counted",
    );
    cx.no_effect_flag(
        "reject_connect_request_early_data",
        &reject_connect_request_early_data,
        "data that comes with a CONNECT request is kept until it is accepted",
    );
    cx.each("upstream_http_filters", upstream_http_filters, upstream_filter)?;
    Ok(RouterConfig { suppress_envoy_headers })
}

/// `typed_per_filter_config` of a route or a level above it: nothing there has an effect yet, and what belongs to a
/// filter that guards something is refused.
pub(super) fn per_filter_config(messages: HashMap<String, google::Any>, cx: &mut Context) -> Result<()> {
    let sorted: BTreeMap<_, _> = messages.into_iter().collect();
    cx.at("typed_per_filter_config", |cx| {
        for (name, config) in sorted {
            cx.at(&format!("[{name}]"), |cx| one_filter_config(&name, config, cx))?;
        }
        Ok(())
    })
}

fn one_filter_config(name: &str, config: google::Any, cx: &mut Context) -> Result<()> {
    let mut config = config;
    let mut optional = false;
    let mut kind = any::inner_type(&config, cx)?;
    if kind == ROUTE_FILTER_CONFIG {
        let route::FilterConfig { config: inner, is_optional, disabled } = any::unpack(config, cx)?;
        let Some(inner) = inner.filter(|_| !disabled) else {
            // Switching off what does not run is no loss; switching on without a configuration is.
            return if disabled { Ok(()) } else { Err(cx.error_at("config", "is missing, expected a typed message")) };
        };
        (config, optional) = (inner, is_optional);
        kind = any::inner_type(&config, cx)?;
    }
    match kind.as_str() {
        FAULT => {
            fault(any::unpack(config, cx)?, name, cx)?;
        }
        CORS => {}
        CORS_POLICY => {
            let policy: extensions::filters::http::cors::v3::CorsPolicy = any::unpack(config, cx)?;
            cx.no_effect("", &policy, "there is no CORS filter yet: preflights reach the endpoint");
        }
        kind if is_passed(kind) || (optional && !is_guard(kind)) => {
            cx.warn("", format!("filter {name} ({kind}) does not exist here; requests pass it by"));
        }
        kind => {
            return Err(cx.error(format!("filter {name} ({kind}) is not supported, and requests must not pass it by")));
        }
    }
    Ok(())
}

/// The deprecated `cors` of routes and virtual hosts.
pub(super) fn old_cors(message: &Option<route::CorsPolicy>, cx: &mut Context) {
    cx.no_effect("cors", message, "there is no CORS filter yet: preflights reach the endpoint");
}

/// `route_specifiers` and other lists of extensions that would choose where a request goes.
pub(super) fn no_specifiers(messages: &Vec<core::TypedExtensionConfig>, field: &str, cx: &Context) -> Result<()> {
    cx.refuse(field, messages, "routes are chosen by their matches alone")
}
