//! Access loggers (`envoy.config.accesslog.v3`).

use super::*;
use crate::runtime::LiveFraction;

#[derive(Debug, Clone)]
pub struct AccessLogConfig {
    pub filter: Option<AccessLogFilter>,
    pub sink: AccessLogSink,
    pub format: AccessLogFormat,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AccessLogSink {
    File(PathBuf),
    Stdout,
    Stderr,
}

#[derive(Debug, Clone)]
pub enum AccessLogFormat {
    /// Envoy's default text format.
    Default,
    /// A format string; ends with its own newline if it wants one.
    Text { format: String, omit_empty: bool },
    /// A JSON object; values may nest.
    Json { format: serde_json::Map<String, serde_json::Value>, omit_empty: bool },
}

#[derive(Debug, Clone)]
pub enum AccessLogFilter {
    Status {
        op: Comparison,
        value: u32,
    },
    /// Total duration in milliseconds.
    Duration {
        op: Comparison,
        value: u32,
    },
    NotHealthCheck,
    Traceable,
    Runtime(LiveFraction),
    And(Vec<AccessLogFilter>),
    Or(Vec<AccessLogFilter>),
    Header(HeaderMatch),
    /// Any of these flags (short names); empty: any flag at all.
    ResponseFlags(Vec<String>),
    /// gRPC status codes; `exclude` inverts.
    GrpcStatus {
        statuses: Vec<u32>,
        exclude: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    GreaterOrEqual,
    LessOrEqual,
    NotEqual,
}
