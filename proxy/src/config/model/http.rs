//! The HTTP connection manager and codec options.

use super::*;
use ::http::HeaderValue;
use ipnet::IpNet;

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.
#[derive(Debug, Clone)]
pub struct HcmConfig {
    pub stat_prefix: Arc<str>,
    pub codec: CodecType,
    pub routes: RouteSource,
    /// Without the router, which `router` holds; in order.
    pub http_filters: Vec<HttpFilterConfig>,
    /// Names of filters that are disabled and must not be passed by: no route may enable them.
    pub disabled_guards: Arc<[Box<str>]>,
    /// `None`: ECDS has it, or there is no router filter; such a manager answers 404 to everything.
    pub router: Option<RouterConfig>,
    pub access_log: Vec<AccessLogConfig>,
    pub server_name: HeaderValue,
    pub server_header: ServerHeader,
    pub via: Option<HeaderValue>,
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub append_x_forwarded_port: bool,
    pub internal_addresses: Vec<IpNet>,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
    pub forward_client_cert: ForwardClientCert,
    pub set_client_cert: ClientCertDetails,
    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    pub strip_port: StripPort,
    pub strip_trailing_host_dot: bool,
    /// Lower-case upgrade types that are allowed, e.g. `websocket`.
    pub upgrades: Vec<Box<str>>,
    /// Connection without a request; default 1 h; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Default 5 min; `None`: never.
    pub stream_idle_timeout: Option<Duration>,
    /// The whole request must have arrived by then.
    pub request_timeout: Option<Duration>,
    pub request_headers_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    /// How long a client that still sends after the connection's last response is listened to; default 1 s; `None`: not at all.
    pub delayed_close_timeout: Option<Duration>,
    /// 0: no limit.
    pub max_requests_per_connection: u32,
    /// Default 60 KiB.
    pub max_request_headers_bytes: u32,
    /// Default 100.
    pub max_headers_count: u32,
    pub headers_with_underscores: HeadersWithUnderscores,
    pub http1: Http1Options,
    pub http2: Http2Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecType {
    /// HTTP/2 by ALPN or by its connection preface, else HTTP/1.
    Auto,
    Http1,
    Http2,
}

#[derive(Debug, Clone)]
pub enum RouteSource {
    Inline(Arc<RouteConfig>),
    Rds { name: Arc<str>, source: ConfigSource },
}

/// A filter other than a router in place. A filter is one of these once it exists as a file in `http/filters/`; the ones
/// whose configuration has no effect (fault and cors without a policy) do not appear at all.
#[derive(Debug, Clone)]
pub enum HttpFilterConfig {
    Dynamic {
        filter: Arc<DynamicFilterConfig>,
        /// It does not run, and requests do without it.
        disabled: bool,
    },
}

#[derive(Debug, Clone, Default)]
pub struct RouterConfig {
    pub suppress_envoy_headers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCert {
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripPort {
    No,
    /// When it is the listener's own.
    Matching,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadersWithUnderscores {
    Allow,
    RejectRequest,
    DropHeader,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Options {
    pub accept_http_10: bool,
    pub default_host_for_http_10: Option<HeaderValue>,
    pub enable_trailers: bool,
    pub header_case: HeaderCase,
}

impl Default for Http1Options {
    fn default() -> Self {
        Http1Options {
            accept_http_10: false,
            default_host_for_http_10: None,
            enable_trailers: false,
            header_case: HeaderCase::Lower,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderCase {
    Lower,
    /// `Content-Type`.
    Proper,
    /// As it came in.
    Preserve,
}

/// Defaults as Envoy 1.40 announces them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    pub hpack_table_size: u32,
    pub allow_connect: bool,
    pub keepalive: Option<Http2Keepalive>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Http2Options {
            max_concurrent_streams: 1024,
            initial_stream_window: 16 << 20,
            initial_connection_window: 24 << 20,
            hpack_table_size: 4096,
            allow_connect: false,
            keepalive: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Keepalive {
    pub interval: Option<Duration>,
    pub timeout: Duration,
}
