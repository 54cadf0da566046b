//! HTTP filters: which exist, which are passed over with a warning, which are refused.
//!
//! A filter that guards access or rewrites what a guard looks at must never be left out; the table of answers knows
//! which may be.

use super::ConfigError;
use super::answers::{Answer, table};
use super::any;
use super::context::{Context, Result};
use super::extension::dynamic_filter;
use super::model::{DeliveredFilter, FilterPlace, HttpFilterConfig, RouteConfig, RouterConfig};
use super::pb::{core, extensions, google, hcm, route};
use std::collections::{BTreeMap, HashMap};

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const UPSTREAM_CODEC: &str = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
const ROUTE_FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// Where Envoy's own HTTP filters live; the next part of the name is the filter's.
const ENVOY: &str = "envoy.extensions.filters.http.";

/// What becomes of a filter.
enum Fate {
    Dynamic(Box<core::ExtensionConfigSource>),
    Router(google::Any),
    /// Left out, with a warning where there was something to do.
    Passed,
    /// Left out while no route enables it.
    Disabled,
}

/// The HTTP filters of a chain.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub router: Option<RouterConfig>,
    pub filters: Vec<HttpFilterConfig>,
    /// Names of those that no route may enable.
    pub disabled_guards: Vec<Box<str>>,
}

/// The filters of a connection manager. All that exist yet are the router and those with nothing to do.
pub(super) fn http_filters(messages: Vec<hcm::HttpFilter>, cx: &mut Context) -> Result<Chain> {
    let count = messages.len();
    let mut at = 0;
    let mut disabled_guards = Vec::new();
    let mut filters = Vec::new();
    let mut last = String::new();
    let mut known = true;
    let routers = cx.each("http_filters", messages, |message, cx| {
        at += 1;
        // what is wrong with the last one is another problem than that it is no router
        known = at < count;
        let hcm::HttpFilter { name, is_optional, disabled, config_type } = message;
        last.clone_from(&name);
        let fate = fate(&name, is_optional, disabled, config_type, cx)?;
        known = true;
        match fate {
            Fate::Router(_) if at < count => Err(cx.error(format!(
                "terminal filter named {name} of type envoy.filters.http.router must be the last filter in a http filter chain"
            ))),
            Fate::Router(_) if disabled => Err(cx.error_at("disabled", "the router cannot be disabled")),
            Fate::Router(config) => cx.at("typed_config", |cx| {
                let message = any::unpack(config, cx)?;
                router(message, cx).map(Some)
            }),
            Fate::Passed => Ok(None),
            Fate::Dynamic(_) if disabled && at == count => Err(cx.error_at(
                "disabled",
                format!("Error: the last (terminal) filter ({name}) in the chain cannot be disabled by default."),
            )),
            Fate::Dynamic(source) => {
                let filter = dynamic_filter(&name, *source, FilterPlace::Http, at == count, cx)?;
                filters.push(HttpFilterConfig::Dynamic { filter, disabled });
                if disabled {
                    // what it is when a route enables it, only ECDS knows
                    disabled_guards.push(name.into());
                }
                Ok(None)
            }
            Fate::Disabled => {
                disabled_guards.push(name.into());
                Ok(None)
            }
        }
    })?;
    let router = routers.into_iter().flatten().next();
    let ends_dynamically = matches!(filters.last(), Some(HttpFilterConfig::Dynamic { filter, .. }) if filter.last);
    if router.is_none() && count > 0 && known && !ends_dynamically {
        return Err(cx.error_at(
            "http_filters",
            format!("non-terminal filter named {last} is the last filter in a http filter chain, expected the router"),
        ));
    }
    Ok(Chain { router, filters, disabled_guards })
}

/// Refuses routes that enable a filter which is disabled because it does not exist here: requests must not pass it by.
///
/// # Errors
/// The filter's name.
pub(crate) fn refuse_enabled(guards: &[Box<str>], routes: &RouteConfig) -> std::result::Result<(), ConfigError> {
    match routes.enables(guards) {
        None => Ok(()),
        Some(name) => Err(ConfigError::new(
            "typed_per_filter_config",
            format!(
                "route configuration '{}' enables HTTP filter {name}, which is disabled in the connection manager and \
                 does not exist here: requests must not pass it by",
                routes.name
            ),
        )),
    }
}

/// A filter of a place that has no router: upgrades, or the side of the endpoints.
pub(super) fn upstream_filter(message: hcm::HttpFilter, cx: &mut Context) -> Result<()> {
    let hcm::HttpFilter { name, is_optional, disabled, config_type } = message;
    if let Some(hcm::http_filter::ConfigType::TypedConfig(config)) = &config_type
        && any::inner_type(config, cx)? == UPSTREAM_CODEC
    {
        let extensions::filters::http::upstream_codec::v3::UpstreamCodec {} =
            cx.at("typed_config", |cx| any::unpack(config.clone(), cx))?;
        return Ok(());
    }
    match fate(&name, is_optional, disabled, config_type, cx)? {
        Fate::Dynamic(_) => {
            Err(cx
                .error_at("config_discovery", "is not supported here: filters on the way to endpoints stand in place"))
        }
        Fate::Router(_) | Fate::Passed | Fate::Disabled => Ok(()),
    }
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
        ConfigType::ConfigDiscovery(source) => return Ok(Fate::Dynamic(Box::new(source))),
    };
    cx.at("typed_config", |cx| {
        let kind = any::inner_type(&config, cx)?;
        match kind.as_str() {
            ROUTER => return Ok(Fate::Router(config)),
            FAULT => fault(any::unpack(config, cx)?),
            CORS => {
                let extensions::filters::http::cors::v3::Cors {} = any::unpack(config, cx)?;
            }
            // Only a route could enable it, and such a route is refused.
            kind if disabled && !kind.is_empty() && !is_passed(kind) => {
                cx.warn("", format!("filter {name} ({kind}) does not exist here; it is disabled"));
                return Ok(Fate::Disabled);
            }
            kind => leave_out(name, kind, is_optional, cx)?,
        }
        Ok(Fate::Passed)
    })
}

/// A filter that ECDS delivers, to be judged as one that stands in place.
pub(super) fn delivered_http_filter(name: &str, config: google::Any, cx: &mut Context) -> Result<DeliveredFilter> {
    match any::inner_type(&config, cx)?.as_str() {
        ROUTER => return router(any::unpack(config, cx)?, cx).map(DeliveredFilter::Router),
        FAULT => fault(any::unpack(config, cx)?),
        CORS => {
            let extensions::filters::http::cors::v3::Cors {} = any::unpack(config, cx)?;
        }
        kind => leave_out(name, kind, false, cx)?,
    }
    Ok(DeliveredFilter::Passed)
}

/// Whether the table says that requests may pass such a filter by.
fn is_passed(kind: &str) -> bool {
    table().find(kind).is_some_and(|known| matches!(known.whole, Answer::Warn { .. }))
}

/// Whether `is_optional` excuses a filter: one that Envoy does not have either. A filter without a type is none of these.
fn is_excused(kind: &str, is_optional: bool) -> bool {
    is_optional && !kind.is_empty() && !kind.starts_with(ENVOY) && table().find(kind).is_none()
}

/// Leaves out a filter that is not built, or refuses it.
fn leave_out(name: &str, kind: &str, is_optional: bool, cx: &mut Context) -> Result<()> {
    if is_excused(kind, is_optional) {
        cx.warn("", format!("optional filter {name} ({kind}) does not exist here; requests pass it by"));
    } else if cx.extension(name, kind)? {
        return Err(cx.error(format!("found {name} ({kind}), expected an HTTP filter")));
    }
    Ok(())
}

/// Takes apart a filter of which nothing has an effect yet.
fn fault(message: extensions::filters::http::fault::v3::HttpFault) {
    let extensions::filters::http::fault::v3::HttpFault {
        delay: _,
        abort: _,
        upstream_cluster: _,
        headers: _,
        downstream_nodes: _,
        max_active_faults: _,
        response_rate_limit: _,
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
}

fn router(message: extensions::filters::http::router::v3::Router, cx: &mut Context) -> Result<RouterConfig> {
    let extensions::filters::http::router::v3::Router {
        dynamic_stats: _,
        start_child_span: _,
        upstream_log: _,
        upstream_log_options: _,
        suppress_envoy_headers,
        strict_check_headers: _,
        respect_expected_rq_timeout: _,
        suppress_grpc_request_failure_code_stats: _,
        upstream_http_filters,
        reject_connect_request_early_data: _,
    } = message;
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
        if inner.type_url.is_empty() {
            // Enables the filter of this name as its connection manager has it configured.
            cx.enabled_filters.insert(name.into());
            return Ok(());
        }
        (config, optional) = (inner, is_optional);
        kind = any::inner_type(&config, cx)?;
    }
    // To Envoy any configuration enables the filter of this name, whatever its type.
    if !is_excused(&kind, optional) {
        cx.enabled_filters.insert(name.into());
    }
    match kind.as_str() {
        FAULT => fault(any::unpack(config, cx)?),
        CORS => {}
        kind => leave_out(name, kind, optional, cx)?,
    }
    Ok(())
}
