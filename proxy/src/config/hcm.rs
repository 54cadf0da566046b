//! The HTTP connection manager.

use super::access_log::access_logs;
use super::address::cidr;
use super::any;
use super::context::{Context, Result};
use super::headers::header_value;
use super::http_filters::{Chain, http_filters, refuse_enabled};
use super::http_options::{common, http1, http2};
use super::model::{
    ClientCertDetails, CodecType, EscapedSlashes, ForwardClientCert, HcmConfig, Http1Options, Http2Options,
    RouteSource, ServerHeader, StripPort,
};
use super::pb::{extensions, google, hcm};
use super::route::route_configuration;
use super::source::config_source;
use ::http::HeaderValue;
use ipnet::IpNet;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's defaults (`HttpConnectionManager` in the API reference).
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const DELAYED_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_REQUEST_HEADERS_KB: u32 = 60;
/// Upper bound of `max_request_headers_kb`.
const MAX_REQUEST_HEADERS_KB_LIMIT: u32 = 8192;

pub(super) fn connection_manager(message: hcm::HttpConnectionManager, cx: &mut Context) -> Result<HcmConfig> {
    use hcm::http_connection_manager as parts;
    let hcm::HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters: filters,
        add_user_agent: _,
        tracing: _,
        common_http_protocol_options,
        http1_safe_max_connection_duration: _,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options: _,
        server_name,
        server_header_transformation,
        scheme_header_transformation: _,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout: _,
        request_timeout,
        request_headers_timeout,
        drain_timeout: _,
        drain_timeout_jitter: _,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval: _,
        flush_access_log_on_new_request: _,
        access_log_options: _,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions: _,
        early_header_mutation_extensions: _,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher: _,
        proxy_100_continue: _,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6: _,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension: request_id,
        local_reply_config: _,
        strip_matching_host_port,
        stream_error_on_invalid_http_message: _,
        path_normalization_options: _,
        strip_trailing_host_dot,
        proxy_status_config: _,
        typed_header_validation_config: _,
        append_x_forwarded_port,
        append_local_overload: _,
        add_proxy_protocol_connection_state: _,
        forward_proto_config: _,
        route_specifier,
        strip_port_mode,
    } = message;
    if let Some(extension) = request_id {
        let read = cx.at("request_id_extension", |cx| request_id_extension(extension, cx));
        cx.part(read);
    }

    let codec = match cx.enumeration("codec_type", codec_type)? {
        parts::CodecType::Auto => CodecType::Auto,
        parts::CodecType::Http1 => CodecType::Http1,
        parts::CodecType::Http2 => CodecType::Http2,
        parts::CodecType::Http3 => {
            cx.record_all([cx.error_at("codec_type", "found HTTP3, expected AUTO, HTTP1 or HTTP2")]);
            CodecType::Auto
        }
    };
    let common =
        cx.at("common_http_protocol_options", |cx| common(common_http_protocol_options.unwrap_or_default(), cx))?;
    let http2 = cx.at("http2_protocol_options", |cx| http2(http2_protocol_options.unwrap_or_default(), cx));
    let http2 = cx.part_or(http2, Http2Options::default);
    let chain = http_filters(filters, cx);
    let Chain { router, filters, mut disabled_guards } = cx.part(chain);
    let routes = cx.required("route_config", route_specifier).and_then(|specifier| routes(specifier, cx));
    let routes = cx.part_or(routes, || RouteSource::Inline(Arc::default()));
    let access_log = access_logs(access_log, "access_log", cx);
    let http1 = cx.at("http_protocol_options", |cx| http1(http_protocol_options.unwrap_or_default(), cx));
    let client_cert = cx.at("set_current_client_cert_details", |cx| {
        client_cert(set_current_client_cert_details.unwrap_or_default(), cx)
    });
    let internal_addresses = internal_addresses(internal_address_config, cx);
    let upgrades =
        cx.each("upgrade_configs", upgrade_configs, |message, cx| upgrade(message, &mut disabled_guards, cx));
    let upgrades = cx.part(upgrades);
    let mut types = HashSet::new();
    for (upgrade_type, _) in &upgrades {
        if !types.insert(upgrade_type) {
            let message = format!("Error: multiple upgrade configs with the same name: '{upgrade_type}'");
            cx.record_all([cx.error_at("upgrade_configs", message)]);
        }
    }
    if let RouteSource::Inline(inline) = &routes
        && let Err(problem) = refuse_enabled(&disabled_guards, inline)
    {
        cx.record_all([cx.error_at("route_config", problem.to_string())]);
    }
    Ok(HcmConfig {
        stat_prefix: cx.non_empty("stat_prefix", stat_prefix)?.into(),
        codec,
        routes,
        http_filters: filters,
        disabled_guards: disabled_guards.into(),
        router,
        access_log: cx.part(access_log),
        server_name: match server_name.as_str() {
            "" => default_server(),
            name => cx.part_or(header_value(name, "server_name", cx), default_server),
        },
        server_header: match cx.enumeration("server_header_transformation", server_header_transformation)? {
            parts::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            parts::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            parts::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        via: cx.part((!via.is_empty()).then(|| header_value(&via, "via", cx)).transpose()),
        use_remote_address: flag(use_remote_address, false),
        xff_num_trusted_hops,
        skip_xff_append,
        append_x_forwarded_port,
        internal_addresses: cx.part(internal_addresses),
        generate_request_id: flag(generate_request_id, true),
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert: match cx.enumeration("forward_client_cert_details", forward_client_cert_details)? {
            parts::ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
            parts::ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
            parts::ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
            parts::ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
            parts::ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
        set_client_cert: cx.part(client_cert),
        normalize_path: match normalize_path {
            Some(set) => set.value,
            None => cx.runtime_flag("http_connection_manager.normalize_path", false),
        },
        merge_slashes,
        escaped_slashes: match cx.enumeration("path_with_escaped_slashes_action", path_with_escaped_slashes_action)? {
            parts::PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | parts::PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
            parts::PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
            parts::PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            parts::PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
        strip_port: cx.part_or(strip_port(strip_matching_host_port, strip_port_mode, cx), || StripPort::No),
        strip_trailing_host_dot,
        upgrades: upgrades.into_iter().filter_map(|(name, enabled)| enabled.then_some(name)).collect(),
        idle_timeout: common.idle_timeout,
        stream_idle_timeout: cx.timeout("stream_idle_timeout", stream_idle_timeout, Some(STREAM_IDLE_TIMEOUT))?,
        request_timeout: cx.timeout("request_timeout", request_timeout, None)?,
        request_headers_timeout: cx.timeout("request_headers_timeout", request_headers_timeout, None)?,
        max_connection_duration: common.max_connection_duration,
        max_stream_duration: common.max_stream_duration,
        delayed_close_timeout: cx.timeout(
            "delayed_close_timeout",
            delayed_close_timeout,
            Some(DELAYED_CLOSE_TIMEOUT),
        )?,
        max_requests_per_connection: common.max_requests_per_connection.unwrap_or(0),
        max_request_headers_bytes: cx.part(max_headers_bytes(max_request_headers_kb, cx)),
        max_headers_count: common.max_headers_count,
        headers_with_underscores: common.headers_with_underscores,
        http1: cx.part_or(http1, Http1Options::default),
        http2,
    })
}

fn default_server() -> HeaderValue {
    HeaderValue::from_static("envoy")
}

fn flag(value: Option<google::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

fn routes(message: hcm::http_connection_manager::RouteSpecifier, cx: &mut Context) -> Result<RouteSource> {
    use hcm::http_connection_manager::RouteSpecifier;
    match message {
        RouteSpecifier::RouteConfig(config) => {
            // Inline routes may only name clusters that exist, unless they say otherwise.
            let config = cx.at("route_config", |cx| route_configuration(config, true, cx))?;
            Ok(RouteSource::Inline(Arc::new(config)))
        }
        RouteSpecifier::Rds(hcm::Rds { config_source: source, route_config_name }) => cx.at("rds", |cx| {
            let name = cx.non_empty("route_config_name", route_config_name)?.into();
            let source = cx.required("config_source", source)?;
            Ok(RouteSource::Rds { name, source: cx.at("config_source", |cx| config_source(source, cx))? })
        }),
        RouteSpecifier::ScopedRoutes(_) => Err(any::refused("scoped_routes", cx)),
    }
}

fn internal_addresses(
    message: Option<hcm::http_connection_manager::InternalAddressConfig>,
    cx: &mut Context,
) -> Result<Vec<IpNet>> {
    let Some(hcm::http_connection_manager::InternalAddressConfig { unix_sockets: _, cidr_ranges }) = message else {
        return Ok(Vec::new());
    };
    cx.at("internal_address_config", |cx| cx.each("cidr_ranges", cidr_ranges, cidr))
}

fn client_cert(
    message: hcm::http_connection_manager::SetCurrentClientCertDetails,
    cx: &mut Context,
) -> Result<ClientCertDetails> {
    use hcm::http_connection_manager::{ForwardClientCertFormat, SetCurrentClientCertDetails};
    let SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer: _, format } = message;
    if cx.enumeration::<ForwardClientCertFormat>("format", format)? != ForwardClientCertFormat::Text {
        return Err(cx.error_at("format", "found JSON, expected TEXT"));
    }
    Ok(ClientCertDetails { subject: flag(subject, false), cert, chain, dns, uri })
}

/// The lower-case type of an upgrade, and whether it is allowed.
fn upgrade(
    message: hcm::http_connection_manager::UpgradeConfig,
    disabled_guards: &mut Vec<Box<str>>,
    cx: &mut Context,
) -> Result<(Box<str>, bool)> {
    let hcm::http_connection_manager::UpgradeConfig { upgrade_type, filters, enabled } = message;
    // A chain of its own has the router too; what else is in it is judged like everywhere.
    let chain = http_filters(filters, cx);
    let chain = cx.part(chain);
    if !chain.filters.is_empty() {
        let message = "config_discovery is not supported here: filters of upgrades stand in place";
        cx.record_all([cx.error_at("filters", message)]);
    }
    disabled_guards.extend(chain.disabled_guards);
    Ok((upgrade_type.to_ascii_lowercase().into(), flag(enabled, true)))
}

fn strip_port(
    matching: bool,
    mode: Option<hcm::http_connection_manager::StripPortMode>,
    cx: &Context,
) -> Result<StripPort> {
    use hcm::http_connection_manager::StripPortMode::StripAnyHostPort;
    match (matching, matches!(mode, Some(StripAnyHostPort(true)))) {
        (true, true) => Err(cx.error_at(
            "strip_any_host_port",
            "found both strip_matching_host_port and strip_any_host_port, expected one of them",
        )),
        (true, false) => Ok(StripPort::Matching),
        (false, true) => Ok(StripPort::Any),
        (false, false) => Ok(StripPort::No),
    }
}

fn max_headers_bytes(kilobytes: Option<google::UInt32Value>, cx: &Context) -> Result<u32> {
    match kilobytes.map_or(MAX_REQUEST_HEADERS_KB, |v| v.value) {
        set @ 1..=MAX_REQUEST_HEADERS_KB_LIMIT => Ok(set * 1024),
        other => {
            let found = format!("found {other}, expected 1 to {MAX_REQUEST_HEADERS_KB_LIMIT}");
            Err(cx.error_at("max_request_headers_kb", found))
        }
    }
}

fn request_id_extension(message: hcm::RequestIdExtension, cx: &mut Context) -> Result<()> {
    use extensions::request_id::uuid::v3::UuidRequestIdConfig;
    let hcm::RequestIdExtension { typed_config } = message;
    let Some(config) = typed_config else { return Ok(()) };
    cx.at("typed_config", |cx| {
        let UuidRequestIdConfig { pack_trace_reason: _, use_request_id_for_trace_sampling: _ } =
            any::unpack(config, cx)?;
        Ok(())
    })
}
