//! What each operator of a format stands for.
//!
//! Operators that take no parameters are a table of name and function (`fields`); the few with parameters are variants. The names,
//! their meaning and the wording of errors are those of Envoy's page "Access logging: command operators".

use super::fields::{Append, PLAIN, UNSUPPORTED, bytes, grpc_status, number, text};
use super::time::TimeFormat;
use super::{Entry, HeaderSource};
use crate::config::ConfigError;
use http::{HeaderName, HeaderValue};
use std::time::{Duration, SystemTime};

/// What an operator wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrote {
    /// Nothing: the value is absent.
    Nothing,
    Text,
    /// Digits, which JSON shows without quotes.
    Number,
}

/// Operators that take parameters.
const WITH_PARAMETERS: [&str; 15] = [
    "REQ",
    "REQUEST_HEADER",
    "RESP",
    "RESPONSE_HEADER",
    "TRAILER",
    "RESPONSE_TRAILER",
    "START_TIME",
    "START_TIME_LOCAL",
    "EMIT_TIME",
    "COMMON_DURATION",
    "QUERY_PARAM",
    "QUERY_PARAMS",
    "PATH",
    "GRPC_STATUS",
    "DOWNSTREAM_PEER_CERT_V_START",
];

/// A compiled operator.
#[derive(Debug, Clone)]
pub(super) enum Operator {
    Plain(Append),
    Header {
        from: Headers,
        name: Name,
        or: Option<Name>,
    },
    Start(TimeFormat),
    Emit(TimeFormat),
    /// From, to, and the nanoseconds of the unit.
    Duration(Point, Point, u128),
    Path {
        query: bool,
        original: Which,
    },
    QueryParam(Box<str>),
    QueryParams(Which),
    GrpcStatus(GrpcStatus),
    CertificateTime {
        field: CertificateTime,
        format: TimeFormat,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Headers {
    Request,
    Response,
    Trailers,
}

/// A header; those that HTTP/2 has as pseudo-headers are fields of the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    OriginalPath,
    Header(HeaderName),
}

/// Which of two paths: before or after rewriting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Sent,
    Original,
    /// The original one, if there was a rewrite, else the sent one.
    OriginalOrSent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    RequestBegin,
    RequestEnd,
    UpstreamRequestBegin,
    UpstreamRequestEnd,
    UpstreamResponseBegin,
    UpstreamResponseEnd,
    ResponseBegin,
    ResponseEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrpcStatus {
    Camel,
    Snake,
    Number,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CertificateTime {
    DownstreamStart,
    DownstreamEnd,
    UpstreamStart,
    UpstreamEnd,
}

impl Operator {
    /// `parameters` is what stood in parentheses, if there were any; `length` says whether `:N` followed.
    pub fn compile(name: &str, parameters: Option<&str>, length: bool) -> Result<Operator, ConfigError> {
        let refuse = |message: String| Err(ConfigError::new("", message));
        let given = parameters.filter(|text| !text.is_empty());
        if let Ok(at) = PLAIN.binary_search_by(|(plain, _)| (*plain).cmp(name)) {
            // The one parameter that plain operators have; details never contain whitespace here.
            let allowed = name == "RESPONSE_CODE_DETAILS" && parameters == Some("ALLOW_WHITESPACES");
            let cut = name == "LOCAL_REPLY_BODY" || !length;
            if (parameters.is_some() && !allowed) || !cut {
                return refuse(format!("{name} does not take any parameters or length"));
            }
            return Ok(Operator::Plain(PLAIN[at].1));
        }
        if let Some(&unsupported) = UNSUPPORTED.iter().find(|unsupported| **unsupported == name) {
            return refuse(format!("%{unsupported}% is not supported by this proxy"));
        }
        let required = || given.ok_or_else(|| ConfigError::new("", format!("{name} requires parameters")));
        let operator = match name {
            "REQ" | "REQUEST_HEADER" => header(Headers::Request, required()?)?,
            "RESP" | "RESPONSE_HEADER" => header(Headers::Response, required()?)?,
            "TRAILER" | "RESPONSE_TRAILER" => header(Headers::Trailers, required()?)?,
            "START_TIME" => Operator::Start(time(given, false)?),
            "START_TIME_LOCAL" => Operator::Start(time(given, true)?),
            "EMIT_TIME" => Operator::Emit(time(given, false)?),
            "EMIT_TIME_LOCAL" => Operator::Emit(time(given, true)?),
            "COMMON_DURATION" => duration(required()?)?,
            "QUERY_PARAM" => Operator::QueryParam(required()?.into()),
            "QUERY_PARAMS" => Operator::QueryParams(which(given, Which::OriginalOrSent)?),
            "PATH" => {
                let (query, original) = given.map_or(("WQ", None), |given| match given.split_once(':') {
                    Some((query, original)) => (query, Some(original)),
                    None => (given, None),
                });
                let query = match query {
                    "WQ" => true,
                    "NQ" => false,
                    other => return refuse(format!("Invalid PATH option: '{other}', only 'WQ'/'NQ' are allowed")),
                };
                Operator::Path { query, original: which(original, Which::OriginalOrSent)? }
            }
            "GRPC_STATUS" => match given {
                None | Some("CAMEL_STRING") => Operator::GrpcStatus(GrpcStatus::Camel),
                Some("SNAKE_STRING") => Operator::GrpcStatus(GrpcStatus::Snake),
                Some("NUMBER") => Operator::GrpcStatus(GrpcStatus::Number),
                Some(other) => {
                    return refuse(format!(
                        "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {other}"
                    ));
                }
            },
            "DOWNSTREAM_PEER_CERT_V_START" => certificate_time(CertificateTime::DownstreamStart, given)?,
            "DOWNSTREAM_PEER_CERT_V_END" => certificate_time(CertificateTime::DownstreamEnd, given)?,
            "UPSTREAM_PEER_CERT_V_START" => certificate_time(CertificateTime::UpstreamStart, given)?,
            "UPSTREAM_PEER_CERT_V_END" => certificate_time(CertificateTime::UpstreamEnd, given)?,
            _ => {
                let names = PLAIN.iter().map(|(plain, _)| *plain).chain(WITH_PARAMETERS);
                let near = xds_protos::nearest(name, names).map(|near| format!(" (did you mean \"{near}\"?)"));
                return refuse(format!("Not supported field in StreamInfo: {name}{}", near.unwrap_or_default()));
            }
        };
        let may_be_cut = matches!(
            operator,
            Operator::Header { .. } | Operator::Path { .. } | Operator::QueryParam(_) | Operator::QueryParams(_)
        );
        if length && !may_be_cut {
            return refuse(format!("{name} does not allow length to be specified."));
        }
        Ok(operator)
    }

    /// Headers that it will ask for.
    pub fn headers(&self, from: Headers, wanted: &mut Vec<HeaderName>) {
        let Operator::Header { from: own, name, or } = self else { return };
        if *own == from {
            for name in [Some(name), or.as_ref()].into_iter().flatten() {
                match name {
                    Name::Header(name) => wanted.push(name.clone()),
                    Name::OriginalPath => wanted.push(ORIGINAL_PATH),
                    _ => {}
                }
            }
        }
    }

    pub fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) -> Wrote {
        match self {
            Operator::Plain(write) => write(entry, out),
            Operator::Header { from, name, or } => {
                let value = name.value(*from, entry, out);
                if value == Wrote::Nothing
                    && let Some(or) = or
                {
                    or.value(*from, entry, out)
                } else {
                    value
                }
            }
            Operator::Start(format) => {
                format.write(entry.start, out);
                Wrote::Text
            }
            Operator::Emit(format) => {
                format.write(SystemTime::now(), out);
                Wrote::Text
            }
            Operator::Duration(from, to, unit) => {
                let span = to.of(entry).zip(from.of(entry)).and_then(|(to, from)| to.checked_sub(from));
                number(span.map(|span| span.as_nanos() / unit), out)
            }
            Operator::Path { query, original } => {
                let path = original.path(entry).map(|p| if *query { p } else { p.split('?').next().unwrap_or(p) });
                text(path, out)
            }
            Operator::QueryParams(original) => text(original.query(entry), out),
            Operator::QueryParam(name) => {
                let query = Which::OriginalOrSent.query(entry).unwrap_or("");
                let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                text(pairs.into_iter().find(|(key, _)| *key == &**name).map(|(_, value)| value), out)
            }
            Operator::GrpcStatus(form) => grpc_status(entry.grpc_status, *form, out),
            Operator::CertificateTime { field, format } => {
                let tls = match field {
                    CertificateTime::DownstreamStart | CertificateTime::DownstreamEnd => {
                        entry.connection.tls.as_deref()
                    }
                    _ => entry.upstream.as_ref().and_then(|upstream| upstream.tls),
                };
                let Some(peer) = tls.and_then(|tls| tls.peer.as_ref()) else { return Wrote::Nothing };
                let start = matches!(field, CertificateTime::DownstreamStart | CertificateTime::UpstreamStart);
                format.write(if start { peer.not_before } else { peer.not_after }, out);
                Wrote::Text
            }
        }
    }
}

const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

fn header(from: Headers, parameters: &str) -> Result<Operator, ConfigError> {
    let name = |text: &str| {
        Ok::<_, ConfigError>(match (from, text.to_ascii_lowercase().as_str()) {
            (Headers::Request, ":method") => Name::Method,
            (Headers::Request, ":path") => Name::Path,
            (Headers::Request, ":authority" | "host") => Name::Authority,
            (Headers::Request, ":scheme") => Name::Scheme,
            (Headers::Response, ":status") => Name::Status,
            (Headers::Request, "x-envoy-original-path") => Name::OriginalPath,
            (_, name) => Name::Header(name.parse().map_err(|_| {
                let message = "Invalid header configuration. Format string contains invalid characters.";
                ConfigError::new("", format!("{message} Found {text:?} as a header name"))
            })?),
        })
    };
    let mut names = parameters.split('?');
    let (main, or, more) = (names.next().unwrap_or(""), names.next(), names.next());
    if more.is_some() {
        let message = format!("More than 1 alternative header specified in token: {parameters}");
        return Err(ConfigError::new("", message));
    }
    Ok(Operator::Header { from, name: name(main)?, or: or.map(name).transpose()? })
}

fn time(format: Option<&str>, local: bool) -> Result<TimeFormat, ConfigError> {
    match format {
        None if local => Ok(TimeFormat::local_iso()),
        None => Ok(TimeFormat::iso()),
        Some(format) if format.contains("%n") || format.contains("%E*n") => {
            Err(ConfigError::new("", "Invalid header configuration. Format string contains newline."))
        }
        Some(format) => Ok(TimeFormat::parse(format, local)),
    }
}

fn certificate_time(field: CertificateTime, format: Option<&str>) -> Result<Operator, ConfigError> {
    Ok(Operator::CertificateTime { field, format: time(format, false)? })
}

fn which(option: Option<&str>, default: Which) -> Result<Which, ConfigError> {
    match option {
        None => Ok(default),
        Some("PATH") => Ok(Which::Sent),
        Some("ORIG") => Ok(Which::Original),
        Some("ORIG_OR_PATH") => Ok(Which::OriginalOrSent),
        Some(other) => {
            let message = format!("Invalid PATH option: '{other}', only 'PATH'/'ORIG'/'ORIG_OR_PATH' are allowed");
            Err(ConfigError::new("", message))
        }
    }
}

fn duration(parameters: &str) -> Result<Operator, ConfigError> {
    let parts: Vec<&str> = parameters.split(':').collect();
    let (from, to, precision) = match parts[..] {
        [from, to] => (from, to, "ms"),
        [from, to, precision] => (from, to, precision),
        _ => return Err(ConfigError::new("", format!("COMMON_DURATION requires parameters: found {parameters}"))),
    };
    let point = |name: &str| {
        Point::parse(name).ok_or_else(|| {
            let message = format!("COMMON_DURATION: {name} is not a time point this proxy records");
            ConfigError::new("", message)
        })
    };
    let unit = match precision {
        "ms" => 1_000_000,
        "us" => 1_000,
        "ns" => 1,
        other => return Err(ConfigError::new("", format!("Invalid common duration precision: {other}."))),
    };
    Ok(Operator::Duration(point(from)?, point(to)?, unit))
}

impl Point {
    fn parse(name: &str) -> Option<Point> {
        Some(match name {
            "DS_RX_BEG" => Point::RequestBegin,
            "DS_RX_END" => Point::RequestEnd,
            "US_TX_BEG" => Point::UpstreamRequestBegin,
            "US_TX_END" => Point::UpstreamRequestEnd,
            "US_RX_BEG" => Point::UpstreamResponseBegin,
            "US_RX_END" => Point::UpstreamResponseEnd,
            "DS_TX_BEG" => Point::ResponseBegin,
            "DS_TX_END" => Point::ResponseEnd,
            _ => return None,
        })
    }

    fn of(self, entry: &Entry<'_>) -> Option<Duration> {
        let timings = &entry.timings;
        match self {
            Point::RequestBegin => Some(Duration::ZERO),
            Point::RequestEnd => timings.request_received,
            Point::UpstreamRequestBegin => timings.upstream_request_first,
            Point::UpstreamRequestEnd => timings.upstream_request_last,
            Point::UpstreamResponseBegin => timings.upstream_response_first,
            Point::UpstreamResponseEnd => timings.upstream_response_last,
            Point::ResponseBegin => timings.response_first,
            Point::ResponseEnd => timings.response_last,
        }
    }
}

impl Name {
    fn value(&self, from: Headers, entry: &Entry<'_>, out: &mut Vec<u8>) -> Wrote {
        let source: &dyn HeaderSource = match from {
            Headers::Request => entry.request_headers,
            Headers::Response => entry.response_headers,
            Headers::Trailers => entry.response_trailers,
        };
        let known = match self {
            Name::Method => entry.method,
            Name::Path => entry.path,
            Name::Authority => entry.authority,
            Name::Scheme => entry.scheme,
            Name::Status => return number(entry.response_code, out),
            Name::OriginalPath if entry.original_path.is_some() => entry.original_path,
            Name::OriginalPath => return bytes(source.get(&ORIGINAL_PATH).map(HeaderValue::as_bytes), out),
            Name::Header(name) => return bytes(source.get(name).map(HeaderValue::as_bytes), out),
        };
        text(known, out)
    }
}

impl Which {
    fn path<'a>(self, entry: &Entry<'a>) -> Option<&'a str> {
        match self {
            Which::Sent => entry.path,
            Which::Original => entry.original_path,
            Which::OriginalOrSent => entry.original_path.or(entry.path),
        }
    }

    fn query<'a>(self, entry: &Entry<'a>) -> Option<&'a str> {
        // Envoy looks at the sent path when there is no original one, whichever was asked for.
        let path = self.path(entry).or(entry.path)?;
        path.split_once('?').map(|(_, query)| query)
    }
}
