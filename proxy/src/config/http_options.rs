//! Options of the HTTP codecs, which connection managers and clusters share.

use super::ProblemKind;
use super::any;
use super::context::{Context, Result};
use super::headers::header_value;
use super::model::{HeaderCase, HeadersWithUnderscores, Http1Options, Http2Keepalive, Http2Options};
use super::pb::{core, extensions, google};
use std::time::Duration;

/// Idle time after which a connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// RFC 9113 section 6.9.2: a flow-control window is at most 2^31-1. Envoy asks for at least the protocol's default.
const WINDOWS: std::ops::RangeInclusive<u32> = 65_535..=0x7fff_ffff;

/// `HttpProtocolOptions`: what holds for every version.
pub(super) struct CommonOptions {
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub max_headers_count: u32,
    pub headers_with_underscores: HeadersWithUnderscores,
    pub max_requests_per_connection: Option<u32>,
}

pub(super) fn common(message: core::HttpProtocolOptions, cx: &mut Context) -> Result<CommonOptions> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter: _,
        max_headers_count,
        max_response_headers_kb: _,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = message;
    let max_headers_count = max_headers_count.map_or(100, |v| v.value);
    if max_headers_count == 0 {
        return Err(cx.error_at("max_headers_count", "found 0, expected at least 1"));
    }
    Ok(CommonOptions {
        idle_timeout: cx.timeout("idle_timeout", idle_timeout, Some(IDLE_TIMEOUT))?,
        max_connection_duration: cx.timeout("max_connection_duration", max_connection_duration, None)?,
        max_stream_duration: cx.timeout("max_stream_duration", max_stream_duration, None)?,
        max_headers_count,
        headers_with_underscores: match cx
            .enumeration("headers_with_underscores_action", headers_with_underscores_action)?
        {
            Action::Allow => HeadersWithUnderscores::Allow,
            Action::RejectRequest => HeadersWithUnderscores::RejectRequest,
            Action::DropHeader => HeadersWithUnderscores::DropHeader,
        },
        max_requests_per_connection: max_requests_per_connection.map(|v| v.value),
    })
}

pub(super) fn http1(message: core::Http1ProtocolOptions, cx: &mut Context) -> Result<Http1Options> {
    let core::Http1ProtocolOptions {
        allow_absolute_url: _,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers,
        allow_chunked_length: _,
        override_stream_error_on_invalid_http_message: _,
        send_fully_qualified_url: _,
        use_balsa_parser: _,
        allow_custom_methods: _,
        ignore_http_11_upgrade: _,
    } = message;
    let default_host_for_http_10 = (!default_host_for_http_10.is_empty())
        .then(|| header_value(&default_host_for_http_10, "default_host_for_http_10", cx))
        .transpose()?;
    Ok(Http1Options {
        accept_http_10,
        default_host_for_http_10,
        enable_trailers,
        header_case: cx.at("header_key_format", |cx| header_case(header_key_format.unwrap_or_default(), cx))?,
    })
}

fn header_case(message: core::http1_protocol_options::HeaderKeyFormat, cx: &mut Context) -> Result<HeaderCase> {
    use core::http1_protocol_options::header_key_format::{HeaderFormat, ProperCaseWords};
    use extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
    let core::http1_protocol_options::HeaderKeyFormat { header_format } = message;
    match header_format {
        None => Ok(HeaderCase::Lower),
        Some(HeaderFormat::ProperCaseWords(ProperCaseWords {})) => Ok(HeaderCase::Proper),
        Some(HeaderFormat::StatefulFormatter(extension)) => cx.at("stateful_formatter", |cx| {
            let (name, config) = any::typed_config(extension, cx)?;
            if !cx.extension(&name, &any::inner_type(&config, cx)?)? {
                return Ok(HeaderCase::Lower);
            }
            let PreserveCaseFormatterConfig { forward_reason_phrase: _, formatter_type_on_envoy_headers: _ } =
                any::unpack(config, cx)?;
            Ok(HeaderCase::Preserve)
        }),
    }
}

pub(super) fn http2(message: core::Http2ProtocolOptions, cx: &mut Context) -> Result<Http2Options> {
    let core::Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata: _,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging: _,
        override_stream_error_on_invalid_http_message: _,
        custom_settings_parameters: _,
        connection_keepalive,
        use_oghttp2_codec: _,
        max_metadata_size: _,
        enable_huffman_encoding: _,
        max_header_field_size_kb: _,
        disallow_obs_text: _,
        stream_reset_burst,
        stream_reset_rate,
    } = message;
    for (field, value, default) in [
        ("max_outbound_frames", number(max_outbound_frames), 10_000),
        ("max_outbound_control_frames", number(max_outbound_control_frames), 1000),
        (
            "max_consecutive_inbound_frames_with_empty_payload",
            number(max_consecutive_inbound_frames_with_empty_payload),
            1,
        ),
        ("max_inbound_priority_frames_per_stream", number(max_inbound_priority_frames_per_stream), 100),
        (
            "max_inbound_window_update_frames_per_data_frame_sent",
            number(max_inbound_window_update_frames_per_data_frame_sent),
            10,
        ),
        ("stream_reset_burst", stream_reset_burst.map(|v| v.value), 1000),
        ("stream_reset_rate", stream_reset_rate.map(|v| v.value), 33),
    ] {
        flood_bound(field, value, default, cx);
    }
    let defaults = Http2Options::default();
    let max_concurrent_streams = max_concurrent_streams.map_or(defaults.max_concurrent_streams, |v| v.value);
    if !(1..=0x7fff_ffff).contains(&max_concurrent_streams) {
        let found = format!("found {max_concurrent_streams}, expected 1 to 2147483647");
        return Err(cx.error_at("max_concurrent_streams", found));
    }
    let window = |field, value: Option<u32>, default| match value.unwrap_or(default) {
        set if WINDOWS.contains(&set) => Ok(set),
        other => Err(cx.error_at(field, format!("found {other}, expected {} to {}", WINDOWS.start(), WINDOWS.end()))),
    };
    let options = Http2Options {
        max_concurrent_streams,
        initial_stream_window: window(
            "initial_stream_window_size",
            initial_stream_window_size.map(|v| v.value),
            defaults.initial_stream_window,
        )?,
        initial_connection_window: window(
            "initial_connection_window_size",
            initial_connection_window_size.map(|v| v.value),
            defaults.initial_connection_window,
        )?,
        hpack_table_size: hpack_table_size.map_or(defaults.hpack_table_size, |v| v.value),
        allow_connect,
        keepalive: connection_keepalive
            .map(|message| cx.at("connection_keepalive", |cx| keepalive(message, cx)))
            .transpose()?,
    };
    Ok(options)
}

fn number(value: Option<google::UInt32Value>) -> Option<u64> {
    value.map(|v| v.value.into())
}

/// A bound of floods, which no such count enforces here: one below Envoy's default would be trusted to hold.
fn flood_bound(field: &str, value: Option<u64>, default: u64, cx: &mut Context) {
    match value {
        Some(less) if less < default => {
            let message = format!(
                "is not supported: found {less}, expected at least Envoy's default, {default}: there is no such count here"
            );
            cx.record_all([cx.error_at(field, message).of_kind(ProblemKind::Unsupported)]);
        }
        Some(more) if more > default => cx.warn(field, "there is no such count here"),
        _ => {}
    }
}

fn keepalive(message: core::KeepaliveSettings, cx: &mut Context) -> Result<Http2Keepalive> {
    let core::KeepaliveSettings { interval, timeout, interval_jitter: _, connection_idle_interval: _ } = message;
    let timeout = cx.positive("timeout", timeout)?;
    Ok(Http2Keepalive { interval: cx.positive("interval", interval)?, timeout: cx.required("timeout", timeout)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_of_floods_is_not_promised() {
        let mut cx = Context::default();
        let of = |value| core::Http2ProtocolOptions {
            max_inbound_priority_frames_per_stream: Some(google::UInt32Value { value }),
            ..Default::default()
        };
        for (value, warnings, problem) in [(100, 0, ""), (200, 1, ""), (99, 1, "found 99, expected at least")] {
            let converted = http2(of(value), &mut cx);
            let said = cx.finish(converted).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains(problem) && said.is_empty() == problem.is_empty(), "{said}");
            assert_eq!(cx.notices.warnings.len(), warnings);
        }
    }

    #[test]
    fn empty_messages_give_envoys_defaults_without_a_word() {
        let mut cx = Context::default();
        assert_eq!(http1(core::Http1ProtocolOptions::default(), &mut cx).unwrap(), Http1Options::default());
        assert_eq!(http2(core::Http2ProtocolOptions::default(), &mut cx).unwrap(), Http2Options::default());
        let common = common(core::HttpProtocolOptions::default(), &mut cx).unwrap();
        assert_eq!((common.idle_timeout, common.max_headers_count), (Some(IDLE_TIMEOUT), 100));
        assert!(cx.notices.warnings.is_empty());
    }

    #[test]
    fn windows_have_bounds() {
        let mut cx = Context::default();
        let message = core::Http2ProtocolOptions {
            initial_stream_window_size: Some(google::UInt32Value { value: 1000 }),
            ..Default::default()
        };
        assert_eq!(
            http2(message, &mut cx).unwrap_err().to_string(),
            "initial_stream_window_size: found 1000, expected 65535 to 2147483647"
        );
    }
}
