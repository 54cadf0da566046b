//! Access logs: format strings compiled to operators, filters, and the files they are written to.
//!
//! Knows nothing of who logs: a request or connection is described by an [`Entry`].

mod fields;
mod files;
mod filter;
mod flags;
mod format;
mod operators;
#[cfg(test)]
mod tests;
mod time;
mod tls_fields;

pub use files::LogFiles;
pub use flags::{Flag, ResponseFlags};
pub use format::Formatter;

use crate::config::model::{AccessLogConfig, AccessLogFormat};
use crate::config::{ConfigError, both, each_of};
use crate::net::{DownstreamPeer, LocalAddr, UpstreamAddr};
use crate::tls::TlsInfo;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use files::LogFile;
use filter::Filter;
use format::JsonFormatter;
use operators::Headers;
use tls_fields::TlsField;

/// Headers as a formatter sees them: a live map, or the few values captured for later.
pub trait HeaderSource {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue>;

    /// Whether `test` holds for any of the values of a header that may be repeated.
    fn any(&self, name: &HeaderName, test: &mut dyn FnMut(&HeaderValue) -> bool) -> bool;
}

impl HeaderSource for HeaderMap {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        HeaderMap::get(self, name)
    }

    fn any(&self, name: &HeaderName, test: &mut dyn FnMut(&HeaderValue) -> bool) -> bool {
        self.get_all(name).iter().any(test)
    }
}

/// The values of the headers that the logs will ask for, kept while the maps they came from travel on.
#[derive(Debug, Default)]
pub struct Captured(pub smallvec::SmallVec<[(HeaderName, HeaderValue); 6]>);

impl Captured {
    pub fn take(wanted: &[HeaderName], from: &HeaderMap) -> Captured {
        let values = |name| from.get_all(name).iter().map(move |value| (HeaderName::clone(name), value.clone()));
        Captured(wanted.iter().flat_map(values).collect())
    }
}

impl HeaderSource for Captured {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    fn any(&self, name: &HeaderName, test: &mut dyn FnMut(&HeaderValue) -> bool) -> bool {
        self.0.iter().filter(|(n, _)| n == name).any(|(_, value)| test(value))
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

impl ConnectionInfo {
    /// A connection that begins now, in plaintext, of which no filter has restored an address.
    pub fn new(id: u64, peer: DownstreamPeer, local: LocalAddr, listener_name: &str) -> ConnectionInfo {
        ConnectionInfo {
            id,
            started: SystemTime::now(),
            peer,
            direct_peer: peer,
            local,
            direct_local: local,
            sni: None,
            tls: None,
            listener_name: listener_name.into(),
            filter_chain_name: "".into(),
            transport_failure: "".into(),
        }
    }
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

/// No headers at all.
struct NoHeaders;

impl HeaderSource for NoHeaders {
    fn get(&self, _: &HeaderName) -> Option<&HeaderValue> {
        None
    }

    fn any(&self, _: &HeaderName, _: &mut dyn FnMut(&HeaderValue) -> bool) -> bool {
        false
    }
}

impl<'a> Entry<'a> {
    /// An entry of which nothing is known but its connection: to be filled with `Entry { .., ..Entry::new(..) }`.
    pub fn new(kind: Kind, connection: &'a ConnectionInfo, start: SystemTime, duration: Duration) -> Entry<'a> {
        Entry {
            kind,
            connection,
            start,
            duration,
            timings: Timings::default(),
            method: None,
            path: None,
            original_path: None,
            authority: None,
            scheme: None,
            protocol: None,
            request_headers: &NoHeaders,
            response_headers: &NoHeaders,
            response_trailers: &NoHeaders,
            response_code: None,
            response_code_details: "",
            connection_termination_details: "",
            flags: ResponseFlags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            wire_bytes_received: 0,
            wire_bytes_sent: 0,
            request_headers_bytes: 0,
            response_headers_bytes: 0,
            response_trailers_bytes: 0,
            route_name: "",
            virtual_cluster: "",
            upstream: None,
            grpc_status: None,
            stream_id: "",
            local_reply_body: "",
            health_check: false,
            traced: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Http,
    Tcp,
}

/// The access logs of one listener, connection manager or TCP proxy.
pub struct AccessLogs {
    logs: Vec<Log>,
    request_headers: Vec<HeaderName>,
    response_headers: Vec<HeaderName>,
    response_trailers: Vec<HeaderName>,
}

struct Log {
    filter: Option<Filter>,
    format: Format,
    file: Arc<LogFile>,
}

enum Format {
    Text(Formatter),
    Json(JsonFormatter),
}

/// Envoy's default format.
const DEFAULT_FORMAT: &str = concat!(
    r#"[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" "#,
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    r#"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "#,
    r#""%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%""#,
    "\n"
);

impl AccessLogs {
    /// # Errors
    /// Unknown operators by name, files that cannot be opened; the path starts at the list (`[1].log_format`).
    pub fn compile(configs: &[AccessLogConfig], files: &Arc<LogFiles>) -> Result<AccessLogs, ConfigError> {
        let logs = each_of("", configs, |config| Log::compile(config, files))?;
        let wanted = |from| {
            let mut wanted = Vec::new();
            for log in &logs {
                log.headers(from, &mut wanted);
            }
            wanted.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            wanted.dedup();
            wanted
        };
        Ok(AccessLogs {
            request_headers: wanted(Headers::Request),
            response_headers: wanted(Headers::Response),
            response_trailers: wanted(Headers::Trailers),
            logs,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Headers to capture before their maps move on.
    pub fn request_headers(&self) -> &[HeaderName] {
        &self.request_headers
    }

    pub fn response_headers(&self) -> &[HeaderName] {
        &self.response_headers
    }

    pub fn response_trailers(&self) -> &[HeaderName] {
        &self.response_trailers
    }

    /// Writes the entry to every log whose filter lets it pass.
    pub fn log(&self, entry: &Entry<'_>) {
        for log in &self.logs {
            if log.filter.as_ref().is_none_or(|filter| filter.takes(entry)) {
                log.file.append(|out| match &log.format {
                    Format::Text(format) => format.write(entry, out),
                    Format::Json(format) => format.write(entry, out),
                });
            }
        }
    }
}

impl Log {
    fn compile(config: &AccessLogConfig, files: &LogFiles) -> Result<Log, ConfigError> {
        let filter = config.filter.as_ref().map(Filter::compile).transpose().map_err(|e| e.inside("filter"));
        let format = match &config.format {
            AccessLogFormat::Default => Formatter::compile(DEFAULT_FORMAT).map(Format::Text),
            AccessLogFormat::Text { format, omit_empty } => Formatter::compile(format)
                .map(|format| Format::Text(format.omitting_empty(*omit_empty)))
                .map_err(|e| e.inside("log_format")),
            AccessLogFormat::Json { format, omit_empty } => JsonFormatter::compile(format, *omit_empty)
                .map(Format::Json)
                .map_err(|e| e.inside("log_format.json_format")),
        };
        let file = files.open(&config.sink).map_err(|e| e.inside("typed_config"));
        let (filter, (format, file)) = both(filter, both(format.map_err(|e| e.inside("typed_config")), file))?;
        Ok(Log { filter, format, file })
    }

    fn headers(&self, from: Headers, wanted: &mut Vec<HeaderName>) {
        if from == Headers::Request
            && let Some(filter) = &self.filter
        {
            filter.request_headers(wanted);
        }
        match &self.format {
            Format::Json(format) => format.headers(from, wanted),
            Format::Text(format) => wanted.extend_from_slice(match from {
                Headers::Request => format.request_headers(),
                Headers::Response => format.response_headers(),
                Headers::Trailers => format.response_trailers(),
            }),
        }
    }
}
