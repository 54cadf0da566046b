//! `envoy.config.core.v3.HealthCheck` and what endpoints say of their checks.

use super::address::address;
use super::any;
use super::context::{Context, Result};
use super::headers::header_ops;
use super::matcher::string_match;
use super::model::{
    AppendAction, CheckKind, CheckPace, EndpointCheck, GrpcCheck, HeaderOps, HealthCheck, HttpCheck, TcpCheck,
    UpstreamProtocol,
};
use super::pb::{core, endpoint, google, types};
use super::source::json_object;
use ::http::header::{CONTENT_TYPE, TE, USER_AGENT};
use ::http::{HeaderMap, HeaderValue, Method};
use bytes::Bytes;
use core::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's `no_traffic_interval` when the message has none.
const NO_TRAFFIC_INTERVAL: Duration = Duration::from_secs(60);

/// Envoy's `response_buffer_size` when the message has none.
const RESPONSE_BUFFER: u64 = 1024;

/// Largest part of a body that is searched. Envoy has no such bound.
const MAX_RESPONSE_BUFFER: usize = 1 << 20;

/// What Envoy's checks call themselves.
const AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");

/// The check of a cluster, if it has one.
pub(super) fn health_checks(
    messages: Vec<core::HealthCheck>,
    protocol: UpstreamProtocol,
    cx: &mut Context,
) -> Result<Option<Arc<HealthCheck>>> {
    if messages.len() > 1 {
        let found = messages.len();
        return Err(cx.error_at("health_checks", format!("found {found}, expected at most one health check")));
    }
    let mut checks = cx.each("health_checks", messages, |message, cx| health_check(message, protocol, cx))?;
    Ok(checks.pop().map(Arc::new))
}

fn health_check(message: core::HealthCheck, protocol: UpstreamProtocol, cx: &mut Context) -> Result<HealthCheck> {
    let core::HealthCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        alt_port: _,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path: _,
        event_logger: _,
        event_service: _,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = message;
    let needed = |field, value| {
        let duration = cx.positive(field, cx.required(field, value).map(Some)?)?;
        // a zero is recorded already, and the check is not used then
        Ok(duration.unwrap_or(Duration::MAX))
    };
    let (timeout, interval) = (needed("timeout", timeout)?, needed("interval", interval)?);
    let no_traffic = cx.positive("no_traffic_interval", no_traffic_interval)?.unwrap_or(NO_TRAFFIC_INTERVAL);
    let unhealthy = cx.positive("unhealthy_interval", unhealthy_interval)?.unwrap_or(interval);
    let pace = CheckPace {
        interval,
        no_traffic,
        no_traffic_healthy: cx
            .positive("no_traffic_healthy_interval", no_traffic_healthy_interval)?
            .unwrap_or(no_traffic),
        unhealthy,
        unhealthy_edge: cx.positive("unhealthy_edge_interval", unhealthy_edge_interval)?.unwrap_or(unhealthy),
        healthy_edge: cx.positive("healthy_edge_interval", healthy_edge_interval)?.unwrap_or(interval),
        initial_jitter: cx.duration("initial_jitter", initial_jitter)?.unwrap_or_default(),
        jitter: cx.duration("interval_jitter", interval_jitter)?.unwrap_or_default(),
        jitter_percent: interval_jitter_percent,
    };
    let threshold = |field, value| cx.required(field, value).map(|v: google::UInt32Value| v.value);
    let core::health_check::TlsOptions { alpn_protocols } = tls_options.unwrap_or_default();
    Ok(HealthCheck {
        timeout,
        pace,
        unhealthy_threshold: threshold("unhealthy_threshold", unhealthy_threshold)?,
        healthy_threshold: threshold("healthy_threshold", healthy_threshold)?,
        reuse_connection: reuse_connection.is_none_or(|v| v.value),
        always_log_failures: always_log_health_check_failures,
        always_log_successes: always_log_health_check_success,
        alpn: alpn_protocols.into_iter().map(|p| p.into_bytes().into()).collect(),
        transport_criteria: transport_socket_match_criteria.map(|s| serde_json::Value::Object(json_object(&s))),
        kind: match cx.required("health_checker", health_checker)? {
            HealthChecker::HttpHealthCheck(check) => {
                CheckKind::Http(cx.at("http_health_check", |cx| http_check(check, cx))?)
            }
            HealthChecker::TcpHealthCheck(check) => {
                CheckKind::Tcp(cx.at("tcp_health_check", |cx| tcp_check(check, cx))?)
            }
            HealthChecker::GrpcHealthCheck(check) => {
                if protocol == UpstreamProtocol::Http1 {
                    return Err(
                        cx.error_at("grpc_health_check", "the cluster must speak HTTP/2 for gRPC health checks")
                    );
                }
                CheckKind::Grpc(cx.at("grpc_health_check", |cx| grpc_check(check, cx))?)
            }
            HealthChecker::CustomHealthCheck(check) => {
                return Err(cx.at("custom_health_check", |cx| custom_check(check, cx)));
            }
        },
    })
}

fn http_check(message: HttpHealthCheck, cx: &mut Context) -> Result<HttpCheck> {
    let HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = message;
    let method = match cx.enumeration::<core::RequestMethod>("method", method)? {
        core::RequestMethod::MethodUnspecified | core::RequestMethod::Get => Method::GET,
        core::RequestMethod::Head => Method::HEAD,
        core::RequestMethod::Post => Method::POST,
        core::RequestMethod::Put => Method::PUT,
        core::RequestMethod::Delete => Method::DELETE,
        core::RequestMethod::Connect => return Err(cx.error_at("method", "found CONNECT, expected another method")),
        core::RequestMethod::Options => Method::OPTIONS,
        core::RequestMethod::Trace => Method::TRACE,
        core::RequestMethod::Patch => Method::PATCH,
    };
    let http2 = match cx.enumeration::<types::CodecClientType>("codec_client_type", codec_client_type)? {
        types::CodecClientType::Http1 => false,
        types::CodecClientType::Http2 => true,
        types::CodecClientType::Http3 => {
            return Err(cx.error_at("codec_client_type", "found HTTP3, expected HTTP1 or HTTP2"));
        }
    };
    let path = match path.parse() {
        Ok(parsed) if path.starts_with('/') => parsed,
        _ => return Err(cx.error_at("path", format!("found {path:?}, expected a path that begins with /"))),
    };
    if HeaderValue::from_str(&host).is_err() {
        return Err(cx.error_at("host", format!("found {host:?}, expected a header value")));
    }
    let body = send.map(|send| cx.at("send", |cx| payload(send, cx))).transpose()?.unwrap_or_default();
    if !body.is_empty() && ![Method::POST, Method::PUT, Method::PATCH, Method::OPTIONS].contains(&method) {
        return Err(cx.error_at(
            "send",
            format!("a request of method {method} has no body; POST, PUT, PATCH and OPTIONS may have one"),
        ));
    }
    let size = response_buffer_size.map_or(RESPONSE_BUFFER, |v| v.value);
    let body_limit = match usize::try_from(size) {
        Ok(0) => MAX_RESPONSE_BUFFER,
        Ok(size) if size <= MAX_RESPONSE_BUFFER => size,
        _ => {
            let message = format!("found {size}, expected at most {MAX_RESPONSE_BUFFER}");
            return Err(cx.error_at("response_buffer_size", message));
        }
    };
    let ops = header_ops(request_headers_to_add, request_headers_to_remove, "request", cx)?;
    let mut expected = cx.each("expected_statuses", expected_statuses, status_range)?;
    if expected.is_empty() {
        expected.push(200..201);
    }
    Ok(HttpCheck {
        host: host.into(),
        path,
        method,
        http2,
        headers: headers(&[], ops, "request_headers_to_add", cx)?,
        body,
        body_limit,
        receive: cx.each("receive", receive, segment)?,
        expected,
        retriable: cx.each("retriable_statuses", retriable_statuses, status_range)?,
        service_name: service_name_matcher
            .map(|m| cx.at("service_name_matcher", |cx| string_match(m, cx)))
            .transpose()?,
    })
}

fn grpc_check(message: GrpcHealthCheck, cx: &mut Context) -> Result<GrpcCheck> {
    let GrpcHealthCheck { service_name, authority, initial_metadata } = message;
    if HeaderValue::from_str(&authority).is_err() {
        return Err(cx.error_at("authority", format!("found {authority:?}, expected a header value")));
    }
    let add = cx.each("initial_metadata", initial_metadata, super::headers::header_add)?;
    let base =
        [(CONTENT_TYPE, HeaderValue::from_static("application/grpc")), (TE, HeaderValue::from_static("trailers"))];
    let ops = HeaderOps { add, remove: Vec::new() };
    Ok(GrpcCheck {
        service: service_name,
        authority: authority.into(),
        headers: headers(&base, ops, "initial_metadata", cx)?,
    })
}

fn tcp_check(message: TcpHealthCheck, cx: &mut Context) -> Result<TcpCheck> {
    let TcpHealthCheck { send, receive, proxy_protocol_config: _ } = message;
    Ok(TcpCheck {
        send: send.map(|send| cx.at("send", |cx| payload(send, cx))).transpose()?.unwrap_or_default(),
        receive: cx.each("receive", receive, segment)?,
    })
}

/// The error for a check of another kind: ignored, it would let traffic go to dead endpoints.
fn custom_check(message: core::health_check::CustomHealthCheck, cx: &mut Context) -> super::ConfigError {
    let core::health_check::CustomHealthCheck { name, config_type } = message;
    let kind = match config_type {
        Some(core::health_check::custom_health_check::ConfigType::TypedConfig(config)) => any::inner_type(&config, cx),
        None => Ok(name.clone()),
    };
    match kind.and_then(|kind| cx.extension(&name, &kind)) {
        Ok(_) => cx.error(format!("found {name}, expected one of the built-in health checks")),
        Err(error) => error,
    }
}

/// What a check sends beside its host: known beforehand, for there is no request to take values from.
fn headers(
    base: &[(::http::HeaderName, HeaderValue)],
    ops: HeaderOps,
    field: &str,
    cx: &mut Context,
) -> Result<HeaderMap> {
    let mut headers: HeaderMap = base.iter().cloned().collect();
    headers.insert(USER_AGENT, AGENT);
    let HeaderOps { add, remove } = ops;
    let add = cx.each(field, add, |add, cx| {
        let text = add.value.replace("%%", "%");
        if add.value.replace("%%", "").contains('%') {
            let found = &add.value;
            return Err(cx.error_at(
                "header.value",
                format!("found {found:?}, expected plain text: a health check has nothing to take values from"),
            ));
        }
        let value = super::headers::header_value(&text, "header.value", cx)?;
        Ok((add, value))
    })?;
    for (add, value) in add {
        let present = headers.contains_key(&add.name);
        match add.action {
            _ if value.is_empty() && !add.keep_empty => {}
            AppendAction::AppendIfExistsOrAdd => drop(headers.append(add.name, value)),
            AppendAction::AddIfAbsent if present => {}
            AppendAction::OverwriteIfExists if !present => {}
            _ => drop(headers.insert(add.name, value)),
        }
    }
    for name in remove {
        headers.remove(name);
    }
    Ok(headers)
}

fn status_range(message: types::Int64Range, cx: &mut Context) -> Result<Range<u16>> {
    let types::Int64Range { start, end } = message;
    match (u16::try_from(start), u16::try_from(end)) {
        (Ok(from), Ok(to)) if from >= 100 && from < to && to <= 600 => Ok(from..to),
        _ => Err(cx.error(format!("found {start} to {end}, expected a range of 100 to 600 with start < end"))),
    }
}

fn segment(message: Payload, cx: &mut Context) -> Result<Box<[u8]>> {
    Ok(payload(message, cx)?[..].into())
}

/// Text is hexadecimal.
fn payload(message: Payload, cx: &mut Context) -> Result<Bytes> {
    use core::health_check::payload::Payload as Kind;
    let Payload { payload } = message;
    match cx.required("payload", payload)? {
        Kind::Binary(bytes) => Ok(bytes.into()),
        Kind::Text(text) => from_hex(&text)
            .ok_or_else(|| cx.error_at("text", format!("found {text:?}, expected pairs of hexadecimal digits"))),
    }
}

fn from_hex(text: &str) -> Option<Bytes> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// How one endpoint is checked, if it says so.
pub(super) fn endpoint_check(
    message: Option<endpoint::endpoint::HealthCheckConfig>,
    cx: &mut Context,
) -> Result<Option<Arc<EndpointCheck>>> {
    let Some(message) = message else { return Ok(None) };
    cx.at("health_check_config", |cx| {
        let endpoint::endpoint::HealthCheckConfig { port_value, hostname, address: own, disable_active_health_check } =
            message;
        let check = EndpointCheck {
            port: cx.port("port_value", port_value)?,
            hostname: hostname.into(),
            address: own.map(|own| address(Some(own), "address", cx)).transpose()?,
            disabled: disable_active_health_check,
        };
        if HeaderValue::from_str(&check.hostname).is_err() {
            return Err(cx.error_at("hostname", format!("found {:?}, expected a header value", check.hostname)));
        }
        Ok(Some(Arc::new(check)))
    })
}
