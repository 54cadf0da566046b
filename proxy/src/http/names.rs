//! Header names and values that are used on the path of a request, made once.

use http::{HeaderName, HeaderValue};

macro_rules! names {
    ($($constant:ident $name:literal,)+) => { $(pub const $constant: HeaderName = HeaderName::from_static($name);)+ };
}

names! {
    X_FORWARDED_FOR "x-forwarded-for",
    X_FORWARDED_PROTO "x-forwarded-proto",
    X_FORWARDED_PORT "x-forwarded-port",
    X_FORWARDED_HOST "x-forwarded-host",
    X_FORWARDED_CLIENT_CERT "x-forwarded-client-cert",
    X_REQUEST_ID "x-request-id",
    X_ENVOY_INTERNAL "x-envoy-internal",
    X_ENVOY_EXTERNAL_ADDRESS "x-envoy-external-address",
    X_ENVOY_EXPECTED_RQ_TIMEOUT_MS "x-envoy-expected-rq-timeout-ms",
    X_ENVOY_UPSTREAM_SERVICE_TIME "x-envoy-upstream-service-time",
    X_ENVOY_ORIGINAL_HOST "x-envoy-original-host",
    X_ENVOY_ORIGINAL_PATH "x-envoy-original-path",
    X_ENVOY_ATTEMPT_COUNT "x-envoy-attempt-count",
    X_ENVOY_OVERLOADED "x-envoy-overloaded",
    X_ENVOY_RATELIMITED "x-envoy-ratelimited",
    GRPC_STATUS "grpc-status",
    GRPC_MESSAGE "grpc-message",
    GRPC_TIMEOUT "grpc-timeout",
}

pub const HTTP: HeaderValue = HeaderValue::from_static("http");
pub const HTTPS: HeaderValue = HeaderValue::from_static("https");
pub const TRUE: HeaderValue = HeaderValue::from_static("true");
pub const CLOSE: HeaderValue = HeaderValue::from_static("close");
pub const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
pub const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
pub const TEXT_PLAIN: HeaderValue = HeaderValue::from_static("text/plain");
pub const APPLICATION_GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A number as a header value.
pub fn number(n: u64) -> HeaderValue {
    HeaderValue::from(n)
}

/// Whether a comma-separated header value holds this token, whatever its case.
pub fn has_token(value: &[u8], token: &str) -> bool {
    value.split(|b| *b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// `%RESPONSE_CODE_DETAILS%` of a response that came from the endpoint.
pub const VIA_UPSTREAM: &str = "via_upstream";

/// `%RESPONSE_CODE_DETAILS%` of a request that is no HTTP/1.
pub const CODEC_ERROR: &str = "http1.codec_error";

/// `%RESPONSE_CODE_DETAILS%` of a transfer coding other than one `chunked`.
pub const INVALID_TRANSFER_ENCODING: &str = "http1.invalid_transfer_encoding";
