//! Access logs: format strings compiled to operators, filters, and the files they are written to.
//!
//! Knows nothing of who logs: a request or connection is described by an [`Entry`].

mod flags;

pub use flags::{Flag, ResponseFlags};

use crate::config::ConfigError;
use crate::config::model::AccessLogConfig;
use crate::net::{DownstreamPeer, LocalAddr, UpstreamAddr};
use crate::tls::TlsInfo;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Headers as a formatter sees them: a live map, or the few values captured for later.
pub trait HeaderSource {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue>;
}

impl HeaderSource for HeaderMap {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        HeaderMap::get(self, name)
    }
}

/// The values of the headers that the logs will ask for, kept while the maps they came from travel on.
#[derive(Debug, Default)]
pub struct Captured(pub smallvec::SmallVec<[(HeaderName, HeaderValue); 6]>);

impl Captured {
    pub fn take(wanted: &[HeaderName], from: &HeaderMap) -> Captured {
        Captured(wanted.iter().filter_map(|name| Some((name.clone(), HeaderMap::get(from, name)?.clone()))).collect())
    }
}

impl HeaderSource for Captured {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }
}

/// The downstream connection, as logs show it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    pub id: u64,
    pub started: SystemTime,
    /// The peer, after any filter that restores it.
    pub peer: DownstreamPeer,
    pub direct_peer: DownstreamPeer,
    /// Our address as the peer knows it: the original destination when it was restored.
    pub local: LocalAddr,
    pub direct_local: LocalAddr,
    /// Server name seen by the TLS inspector or negotiated.
    pub sni: Option<Box<str>>,
    pub tls: Option<Arc<TlsInfo>>,
    pub listener_name: Arc<str>,
    pub filter_chain_name: Arc<str>,
    /// Why the downstream handshake failed; empty otherwise.
    pub transport_failure: Box<str>,
}

/// Durations since the start of the request or connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Last byte of the request received from downstream.
    pub request_received: Option<Duration>,
    /// First and last byte of the request sent upstream.
    pub upstream_request_first: Option<Duration>,
    pub upstream_request_last: Option<Duration>,
    /// First and last byte of the response received from upstream.
    pub upstream_response_first: Option<Duration>,
    pub upstream_response_last: Option<Duration>,
    /// First and last byte of the response sent downstream.
    pub response_first: Option<Duration>,
    pub response_last: Option<Duration>,
    pub handshake: Option<Duration>,
    /// From asking the pool to having a connection.
    pub upstream_pool_ready: Option<Duration>,
}

/// The upstream side, once an endpoint was chosen.
#[derive(Debug, Clone)]
pub struct UpstreamView<'a> {
    pub cluster: &'a str,
    /// Name in stats (`alt_stat_name`).
    pub observability_name: &'a str,
    pub host: Option<&'a UpstreamAddr>,
    pub host_name: &'a str,
    pub local: Option<LocalAddr>,
    pub tls: Option<&'a TlsInfo>,
    pub protocol: Option<&'static str>,
    pub connection_id: Option<u64>,
    /// Empty when there was no failure.
    pub transport_failure: &'a str,
    pub wire_bytes_received: u64,
    pub wire_bytes_sent: u64,
    pub attempts: u32,
}

/// One finished request (`http`) or connection (`tcp`).
pub struct Entry<'a> {
    pub kind: Kind,
    pub connection: &'a ConnectionInfo,
    pub start: SystemTime,
    /// Total.
    pub duration: Duration,
    pub timings: Timings,
    pub method: Option<&'a str>,
    /// With its query, as sent upstream.
    pub path: Option<&'a str>,
    pub original_path: Option<&'a str>,
    pub authority: Option<&'a str>,
    pub scheme: Option<&'a str>,
    pub protocol: Option<&'static str>,
    pub request_headers: &'a dyn HeaderSource,
    pub response_headers: &'a dyn HeaderSource,
    pub response_trailers: &'a dyn HeaderSource,
    pub response_code: Option<u16>,
    /// Without spaces; empty when there is none.
    pub response_code_details: &'a str,
    pub connection_termination_details: &'a str,
    pub flags: ResponseFlags,
    /// Body bytes for HTTP, all bytes for TCP.
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub wire_bytes_received: u64,
    pub wire_bytes_sent: u64,
    pub request_headers_bytes: u64,
    pub response_headers_bytes: u64,
    pub response_trailers_bytes: u64,
    pub route_name: &'a str,
    pub virtual_cluster: &'a str,
    pub upstream: Option<UpstreamView<'a>>,
    pub grpc_status: Option<u32>,
    pub stream_id: &'a str,
    pub local_reply_body: &'a str,
    pub health_check: bool,
    pub traced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Http,
    Tcp,
}

/// A compiled format string: of a text log, or of a header value.
#[derive(Debug, Clone)]
pub struct Formatter {}

impl Formatter {
    /// # Errors
    /// An unknown or unsupported operator, by name, or a stray `%` with its position.
    pub fn compile(_format: &str) -> Result<Formatter, ConfigError> {
        todo!()
    }

    /// The text, when it has no operators: then it need never be evaluated again.
    pub fn literal(&self) -> Option<&str> {
        todo!()
    }

    /// Request headers whose values it will want.
    pub fn request_headers(&self) -> &[HeaderName] {
        todo!()
    }

    /// Appends the formatted text; absent values are `-`.
    pub fn write(&self, _entry: &Entry<'_>, _out: &mut Vec<u8>) {
        todo!()
    }
}

/// Open log files, shared by all that write to them; flushes every `flush_interval` or 64 KiB.
pub struct LogFiles {}

impl LogFiles {
    pub fn new(_flush_interval: Duration) -> Arc<LogFiles> {
        todo!()
    }

    /// Reopens every file (SIGUSR1, /reopen_logs).
    pub fn reopen(&self) {
        todo!()
    }

    /// Writes out what is buffered; called by the control thread and at exit.
    pub fn flush(&self) {
        todo!()
    }
}

/// The access logs of one listener, connection manager or TCP proxy.
pub struct AccessLogs {}

impl AccessLogs {
    /// # Errors
    /// Unknown operators by name, files that cannot be opened.
    pub fn compile(_configs: &[AccessLogConfig], _files: &Arc<LogFiles>) -> Result<AccessLogs, ConfigError> {
        todo!()
    }

    pub fn is_empty(&self) -> bool {
        todo!()
    }

    /// Headers to capture before their maps move on.
    pub fn request_headers(&self) -> &[HeaderName] {
        todo!()
    }

    pub fn response_headers(&self) -> &[HeaderName] {
        todo!()
    }

    pub fn response_trailers(&self) -> &[HeaderName] {
        todo!()
    }

    /// Writes the entry to every log whose filter lets it pass.
    pub fn log(&self, _entry: &Entry<'_>) {
        todo!()
    }
}
