//! `envoy.config.route.v3.RouteConfiguration`.

use super::*;
use crate::runtime::LiveFraction;
use ::http::{HeaderName, HeaderValue, StatusCode};

#[derive(Debug, Clone, Default)]
pub struct RouteConfig {
    pub name: Arc<str>,
    pub virtual_hosts: Vec<VirtualHost>,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    /// Removed from external requests.
    pub internal_only_headers: Vec<HeaderName>,
    pub ignore_port_in_host_matching: bool,
    pub ignore_path_parameters_in_path_matching: bool,
    /// Header operations run from the least to the most specific level.
    pub most_specific_header_mutations_wins: bool,
    /// Unknown clusters refuse the whole configuration.
    pub validate_clusters: bool,
    /// Names that `typed_per_filter_config` has at any level, other than to disable: each enables the HTTP filter of
    /// this name where the connection manager has it disabled.
    pub enabled_filters: BTreeSet<Box<str>>,
}

impl RouteConfig {
    /// The first of these filters, by name, that it enables.
    pub fn enables<'a>(&self, filters: &'a [Box<str>]) -> Option<&'a str> {
        filters.iter().find(|name| self.enabled_filters.contains(*name)).map(|name| &**name)
    }
}

#[derive(Debug, Clone)]
pub struct VirtualHost {
    pub name: Arc<str>,
    /// Lower case: exact, `*.suffix`, `prefix.*` or `*`.
    pub domains: Vec<Box<str>>,
    pub routes: Vec<Route>,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    pub require_tls: RequireTls,
    pub include_request_attempt_count: bool,
    pub include_attempt_count_in_response: bool,
    pub retry_policy: Option<Arc<RetryPolicy>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequireTls {
    None,
    ExternalOnly,
    All,
}

#[derive(Debug, Clone)]
pub struct Route {
    pub name: Arc<str>,
    pub matcher: RouteMatch,
    pub action: RouteAction,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    /// Publishes `vhost.<vhost>.route.<stat_prefix>.*`.
    pub stat_prefix: Option<Arc<str>>,
}

/// All parts must match.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    /// Matches that share of requests.
    pub fraction: Option<LiveFraction>,
    /// Only gRPC requests.
    pub grpc: bool,
}

/// Against the path without its query.
#[derive(Debug, Clone)]
pub enum PathMatch {
    Prefix {
        value: Box<str>,
        ignore_case: bool,
    },
    Exact {
        value: Box<str>,
        ignore_case: bool,
    },
    /// The whole path; anchored.
    Regex(Arc<regex::bytes::Regex>),
    /// `/a` matches `/a` and `/a/b`, not `/ab`.
    SeparatedPrefix {
        value: Box<str>,
        ignore_case: bool,
    },
    /// CONNECT requests only.
    Connect,
}

/// Since Envoy 1.37 each value of a repeated header is tested by itself.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// A header, or `:method`, `:path`, `:authority`, `:scheme`.
    pub name: Box<str>,
    pub test: HeaderTest,
    pub invert: bool,
    /// An absent header is tested as the empty string.
    pub treat_missing_as_empty: bool,
}

#[derive(Debug, Clone)]
pub enum HeaderTest {
    String(StringMatch),
    /// Decimal integer in `[start, end)`.
    Range {
        start: i64,
        end: i64,
    },
    Present(bool),
}

#[derive(Debug, Clone)]
pub struct QueryMatch {
    pub name: Box<str>,
    /// `None`: present is enough.
    pub value: Option<StringMatch>,
}

#[derive(Debug, Clone)]
pub enum RouteAction {
    Forward(Box<Forward>),
    Redirect(Redirect),
    Direct(DirectResponse),
}

#[derive(Debug, Clone)]
pub struct Forward {
    pub cluster: ClusterChoice,
    /// Status when the cluster does not exist; default 503.
    pub cluster_not_found: StatusCode,
    /// From the end of the request to the end of the response, retries included; default 15 s; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Overrides the manager's `stream_idle_timeout`: `Some(None)` disables it.
    pub idle_timeout: Option<Option<Duration>>,
    /// Overrides the manager's `max_stream_duration`: `Some(None)` disables it.
    pub max_stream_duration: Option<Option<Duration>>,
    /// `grpc-timeout` is honoured, up to this (`Some(None)`: without a bound).
    pub grpc_timeout_max: Option<Option<Duration>>,
    pub retry_policy: Option<Arc<RetryPolicy>>,
    pub path_rewrite: PathRewrite,
    pub host_rewrite: HostRewrite,
    pub append_x_forwarded_host: bool,
    pub priority: Priority,
    /// Overrides of the manager's upgrade list: type and whether it is enabled here.
    pub upgrades: Vec<(Box<str>, bool)>,
    pub hash_policy: Vec<HashPolicy>,
}

#[derive(Debug, Clone)]
pub enum ClusterChoice {
    Name(Arc<str>),
    Weighted(Vec<WeightedCluster>),
    /// The request header that holds the name.
    Header(HeaderName),
}

#[derive(Debug, Clone)]
pub struct WeightedCluster {
    pub name: Arc<str>,
    pub weight: u32,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    pub host_rewrite: Option<HeaderValue>,
}

#[derive(Debug, Clone)]
pub enum PathRewrite {
    None,
    /// Replaces what `Prefix` or `Exact` matched.
    Prefix(Box<str>),
    /// `substitution` in the regex crate's syntax (`${1}`).
    Regex {
        pattern: Arc<regex::bytes::Regex>,
        substitution: Box<str>,
    },
}

#[derive(Debug, Clone)]
pub enum HostRewrite {
    None,
    Literal(HeaderValue),
    /// The endpoint's hostname.
    Auto,
    Header(HeaderName),
    PathRegex {
        pattern: Arc<regex::bytes::Regex>,
        substitution: Box<str>,
    },
}

#[derive(Debug, Clone)]
pub enum HashPolicy {
    Header(HeaderName),
    Cookie(Box<str>),
    SourceIp,
    Query(Box<str>),
}

/// Envoy's retry grammar; conditions that this build does not act on were refused or warned about at conversion.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    pub on: RetryOn,
    /// Beyond the first attempt; default 1.
    pub num_retries: u32,
    pub per_try_timeout: Option<Duration>,
    pub retriable_status_codes: Vec<u16>,
    /// Default 25 ms.
    pub base_interval: Duration,
    /// Default 10 x base.
    pub max_interval: Duration,
    /// Avoid hosts already tried (`previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// Picks of the balancer before a host to be avoided is taken after all; 1 to 100, default 1.
    pub host_selection_max_attempts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn {
    pub connect_failure: bool,
    pub refused_stream: bool,
    pub reset_before_request: bool,
    pub reset: bool,
    pub gateway_error: bool,
    pub server_error: bool,
    pub retriable_4xx: bool,
    pub retriable_status_codes: bool,
    /// Responses with `x-envoy-ratelimited`, which nothing else causes to be retried.
    pub envoy_ratelimited: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

#[derive(Debug, Clone)]
pub struct Redirect {
    pub status: StatusCode,
    pub scheme: Option<Box<str>>,
    pub https: bool,
    pub host: Option<Box<str>>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    pub strip_query: bool,
}

#[derive(Debug, Clone)]
pub enum RedirectPath {
    Keep,
    /// Path, with its own query when it has one.
    Path(Box<str>),
    Prefix(Box<str>),
    Regex {
        pattern: Arc<regex::bytes::Regex>,
        substitution: Box<str>,
    },
}

#[derive(Debug, Clone)]
pub struct DirectResponse {
    pub status: StatusCode,
    pub body: bytes::Bytes,
}

/// Header changes of one level, in order: removals after additions, as in Envoy.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    pub add: Vec<HeaderAdd>,
    pub remove: Vec<HeaderName>,
}

impl HeaderOps {
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

#[derive(Debug, Clone)]
pub struct HeaderAdd {
    pub name: HeaderName,
    /// A format string: plain text, or with `%COMMAND%` operators as in access logs.
    pub value: Box<str>,
    pub action: AppendAction,
    pub keep_empty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}
