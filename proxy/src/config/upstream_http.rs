//! HTTP towards endpoints: `HttpProtocolOptions` of a cluster, and the deprecated fields it replaces.

use super::any;
use super::context::{Context, Result};
use super::http_filters;
use super::http_options::{common, http1, http2};
use super::model::{Http1Options, Http2Options, UpstreamHttp, UpstreamProtocol};
use super::pb::{core, extensions, google};
use extensions::upstreams::http::v3 as upstreams;
use std::collections::{BTreeMap, HashMap};

const FOR_LISTENERS: &str = "it is about requests that listeners receive";

/// The key under which clusters carry these options.
const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The fields of `Cluster` that say the same in the old way.
pub(super) struct Deprecated {
    pub upstream_http_protocol_options: Option<core::UpstreamHttpProtocolOptions>,
    pub common_http_protocol_options: Option<core::HttpProtocolOptions>,
    pub http_protocol_options: Option<core::Http1ProtocolOptions>,
    pub http2_protocol_options: Option<core::Http2ProtocolOptions>,
    pub max_requests_per_connection: Option<google::UInt32Value>,
    pub use_downstream_protocol: bool,
}

/// What a cluster speaks. The typed options win over the deprecated fields, of which only
/// `max_requests_per_connection` then still counts, as in Envoy.
pub(super) fn upstream_http(
    mut typed: HashMap<String, google::Any>,
    deprecated: Deprecated,
    cx: &mut Context,
) -> Result<UpstreamHttp> {
    let options = typed.remove(KEY);
    let others: BTreeMap<_, _> = typed.into_iter().collect();
    cx.at("typed_extension_protocol_options", |cx| {
        others.iter().try_for_each(|(name, any)| other_protocol(name, any, cx))
    })?;
    let fallback = deprecated.max_requests_per_connection.map(|v| v.value);
    let mut http = match options {
        Some(options) => {
            const OVERRIDDEN: &str = "typed_extension_protocol_options is used instead";
            cx.no_effect("upstream_http_protocol_options", &deprecated.upstream_http_protocol_options, OVERRIDDEN);
            cx.no_effect("common_http_protocol_options", &deprecated.common_http_protocol_options, OVERRIDDEN);
            cx.no_effect("http_protocol_options", &deprecated.http_protocol_options, OVERRIDDEN);
            cx.no_effect("http2_protocol_options", &deprecated.http2_protocol_options, OVERRIDDEN);
            cx.no_effect("protocol_selection", &deprecated.use_downstream_protocol, OVERRIDDEN);
            cx.at("typed_extension_protocol_options", |cx| {
                cx.at(&format!("[{KEY}]"), |cx| {
                    let options = any::unpack(options, cx)?;
                    typed_options(options, cx)
                })
            })?
        }
        None => deprecated_options(deprecated, cx)?,
    };
    if http.max_requests_per_connection == 0 {
        http.max_requests_per_connection = fallback.unwrap_or(0);
    }
    Ok(http)
}

/// Options of a protocol that is not spoken here.
fn other_protocol(name: &str, any: &google::Any, cx: &mut Context) -> Result<()> {
    cx.at(&format!("[{name}]"), |cx| {
        let kind = any::inner_type(any, cx)?;
        match cx.extension(name, &kind)? {
            true => Err(cx.error(format!("found {kind} under this name, expected it under {KEY}"))),
            false => Ok(()),
        }
    })
}

fn typed_options(message: upstreams::HttpProtocolOptions, cx: &mut Context) -> Result<UpstreamHttp> {
    const EXPLICIT: &str = "explicit_http_config.";
    use upstreams::http_protocol_options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    };
    let upstreams::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config: _,
        outlier_detection: _,
        request_mirror_policies: _,
        hash_policy: _,
        retry_policy: _,
        upstream_protocol_options,
    } = message;
    cx.each("http_filters", http_filters, http_filters::upstream_filter)?;
    let (protocol, within, h1, h2) = match cx.required("upstream_protocol_options", upstream_protocol_options)? {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config }) => {
            cx.at("explicit_http_config", |cx| match cx.required("protocol_config", protocol_config)? {
                ProtocolConfig::HttpProtocolOptions(options) => {
                    Ok((UpstreamProtocol::Http1, EXPLICIT, Some(options), None))
                }
                ProtocolConfig::Http2ProtocolOptions(options) => {
                    Ok((UpstreamProtocol::Http2, EXPLICIT, None, Some(options)))
                }
                ProtocolConfig::Http3ProtocolOptions(_) => {
                    Err(cx.error_at("http3_protocol_options", "is not supported: there is no HTTP/3"))
                }
            })?
        }
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options: _,
        }) => (
            UpstreamProtocol::Downstream,
            "use_downstream_protocol_config.",
            http_protocol_options,
            http2_protocol_options,
        ),
        UpstreamProtocolOptions::AutoConfig(AutoHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options: _,
            alternate_protocols_cache_options: _,
        }) => (UpstreamProtocol::Auto, "auto_config.", http_protocol_options, http2_protocol_options),
    };
    let parts = Parts {
        within,
        upstream: upstream_http_protocol_options.unwrap_or_default(),
        common: common_http_protocol_options.unwrap_or_default(),
        h1: h1.unwrap_or_default(),
        h2: h2.unwrap_or_default(),
    };
    assemble(protocol, parts, cx)
}

fn deprecated_options(deprecated: Deprecated, cx: &mut Context) -> Result<UpstreamHttp> {
    let Deprecated {
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        max_requests_per_connection: _,
        use_downstream_protocol,
    } = deprecated;
    let protocol = match (use_downstream_protocol, &http2_protocol_options) {
        (true, _) => UpstreamProtocol::Downstream,
        (false, Some(_)) => UpstreamProtocol::Http2,
        (false, None) => UpstreamProtocol::Http1,
    };
    let parts = Parts {
        within: "",
        upstream: upstream_http_protocol_options.unwrap_or_default(),
        common: common_http_protocol_options.unwrap_or_default(),
        h1: http_protocol_options.unwrap_or_default(),
        h2: http2_protocol_options.unwrap_or_default(),
    };
    assemble(protocol, parts, cx)
}

struct Parts {
    /// What comes before the path of `h1` and `h2`.
    within: &'static str,
    upstream: core::UpstreamHttpProtocolOptions,
    common: core::HttpProtocolOptions,
    h1: core::Http1ProtocolOptions,
    h2: core::Http2ProtocolOptions,
}

fn assemble(protocol: UpstreamProtocol, parts: Parts, cx: &mut Context) -> Result<UpstreamHttp> {
    let core::UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header: _ } =
        parts.upstream;
    let has_header_action = parts.common.headers_with_underscores_action != 0;
    let common = cx.at("common_http_protocol_options", |cx| {
        cx.no_effect("headers_with_underscores_action", &has_header_action, "it is applied to requests, by listeners");
        let options = common(parts.common, cx)?;
        let meaning = "it holds where a route or a connection manager sets it";
        cx.no_effect("max_stream_duration", &options.max_stream_duration, meaning);
        Ok(options)
    })?;
    let http1: Http1Options = cx.at(&format!("{}http_protocol_options", parts.within), |cx| {
        let options = http1(parts.h1, cx)?;
        cx.no_effect("accept_http_10", &options.accept_http_10, FOR_LISTENERS);
        cx.no_effect("default_host_for_http_10", &options.default_host_for_http_10, FOR_LISTENERS);
        let meaning = "trailers are passed on where the connection manager enables them";
        cx.no_effect("enable_trailers", &options.enable_trailers, meaning);
        Ok(options)
    })?;
    let http2: Http2Options = cx.at(&format!("{}http2_protocol_options", parts.within), |cx| {
        let options = http2(parts.h2, cx)?;
        cx.no_effect("allow_connect", &options.allow_connect, FOR_LISTENERS);
        Ok(options)
    })?;
    Ok(UpstreamHttp {
        protocol,
        http1,
        http2,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_requests_per_connection: common.max_requests_per_connection.unwrap_or(0),
        max_response_headers_count: common.max_headers_count,
        auto_sni,
        auto_san_validation,
    })
}
