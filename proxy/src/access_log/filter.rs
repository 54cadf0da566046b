//! Which entries a log takes.

use super::{Entry, Flag};
use crate::config::ConfigError;
use crate::config::model::{AccessLogFilter, Comparison, HeaderMatch, HeaderTest};
use crate::runtime::LiveFraction;
use http::HeaderName;

/// A compiled filter.
pub(super) enum Filter {
    Status(Comparison, u32),
    Duration(Comparison, u32),
    NotHealthCheck,
    Traceable,
    Share(LiveFraction),
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Header { name: Name, header: HeaderMatch },
    Flags(Vec<Flag>),
    GrpcStatus { statuses: Vec<u32>, exclude: bool },
}

/// Where the tested value is.
pub(super) enum Name {
    Method,
    Path,
    Authority,
    Scheme,
    Header(HeaderName),
}

impl Filter {
    pub fn compile(config: &AccessLogFilter) -> Result<Filter, ConfigError> {
        let all = |filters: &[AccessLogFilter], field: &str| {
            let one = |(at, filter)| Filter::compile(filter).map_err(|e| e.inside(&format!("filters[{at}]")));
            filters.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>().map_err(|e| e.inside(field))
        };
        Ok(match config {
            AccessLogFilter::Status { op, value } => Filter::Status(*op, *value),
            AccessLogFilter::Duration { op, value } => Filter::Duration(*op, *value),
            AccessLogFilter::NotHealthCheck => Filter::NotHealthCheck,
            AccessLogFilter::Traceable => Filter::Traceable,
            AccessLogFilter::Runtime(share) => Filter::Share(share.clone()),
            AccessLogFilter::And(filters) => Filter::And(all(filters, "and_filter")?),
            AccessLogFilter::Or(filters) => Filter::Or(all(filters, "or_filter")?),
            AccessLogFilter::Header(header) => {
                Filter::Header { name: Name::compile(&header.name)?, header: header.clone() }
            }
            AccessLogFilter::ResponseFlags(names) => {
                let flag = |name: &String| {
                    let found = Flag::ALL.iter().copied().find(|flag| flag.short() == name);
                    found.ok_or_else(|| {
                        ConfigError::new("response_flag_filter.flags", format!("{name} is not a response flag"))
                    })
                };
                Filter::Flags(names.iter().map(flag).collect::<Result<_, _>>()?)
            }
            AccessLogFilter::GrpcStatus { statuses, exclude } => {
                Filter::GrpcStatus { statuses: statuses.clone(), exclude: *exclude }
            }
        })
    }

    /// Request headers it looks at.
    pub fn request_headers(&self, wanted: &mut Vec<HeaderName>) {
        match self {
            Filter::And(filters) | Filter::Or(filters) => filters.iter().for_each(|f| f.request_headers(wanted)),
            Filter::Header { name: Name::Header(name), .. } => wanted.push(name.clone()),
            _ => {}
        }
    }

    pub fn takes(&self, entry: &Entry<'_>) -> bool {
        match self {
            Filter::Status(op, value) => compare(entry.response_code.unwrap_or(0).into(), *op, *value),
            Filter::Duration(op, value) => {
                compare(u64::try_from(entry.duration.as_millis()).unwrap_or(u64::MAX), *op, *value)
            }
            Filter::NotHealthCheck => !entry.health_check,
            Filter::Traceable => entry.traced,
            Filter::Share(share) => share.hits(fastrand::u64(..)),
            Filter::And(filters) => filters.iter().all(|filter| filter.takes(entry)),
            Filter::Or(filters) => filters.iter().any(|filter| filter.takes(entry)),
            Filter::Header { name, header } => header_matches(header, name, entry),
            Filter::Flags(flags) if flags.is_empty() => !entry.flags.is_empty(),
            Filter::Flags(flags) => flags.iter().any(|flag| entry.flags.has(*flag)),
            Filter::GrpcStatus { statuses, exclude } => statuses.contains(&grpc_status(entry)) != *exclude,
        }
    }
}

impl Name {
    fn compile(name: &str) -> Result<Name, ConfigError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            ":method" => Name::Method,
            ":path" => Name::Path,
            ":authority" | "host" => Name::Authority,
            ":scheme" => Name::Scheme,
            name => Name::Header(name.parse().map_err(|_| {
                ConfigError::new("header_filter.header.name", format!("{name:?} is not a header name"))
            })?),
        })
    }

    fn value<'a>(&self, entry: &'a Entry<'_>) -> Option<&'a [u8]> {
        match self {
            Name::Method => entry.method.map(str::as_bytes),
            Name::Path => entry.path.map(str::as_bytes),
            Name::Authority => entry.authority.map(str::as_bytes),
            Name::Scheme => entry.scheme.map(str::as_bytes),
            Name::Header(name) => entry.request_headers.get(name).map(http::HeaderValue::as_bytes),
        }
    }
}

fn compare(value: u64, op: Comparison, with: u32) -> bool {
    match op {
        Comparison::Equal => value == u64::from(with),
        Comparison::NotEqual => value != u64::from(with),
        Comparison::GreaterOrEqual => value >= u64::from(with),
        Comparison::LessOrEqual => value <= u64::from(with),
    }
}

/// As routes do: each value of a repeated header is tested by itself.
fn header_matches(header: &HeaderMatch, name: &Name, entry: &Entry<'_>) -> bool {
    let value = name.value(entry);
    if let HeaderTest::Present(present) = header.test {
        return (value.is_some() == present) != header.invert;
    }
    let passes = |value: &[u8]| match &header.test {
        HeaderTest::String(test) => test.matches(value),
        HeaderTest::Range { start, end } => {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok());
            number.is_some_and(|number| (*start..*end).contains(&number))
        }
        HeaderTest::Present(present) => *present,
    };
    let matches = match (value, name) {
        // A header that is not there matches nothing, inverted or not.
        (None, _) => return header.treat_missing_as_empty && passes(b"") != header.invert,
        (Some(_), Name::Header(name)) => entry.request_headers.any(name, &mut |value| passes(value.as_bytes())),
        (Some(value), _) => passes(value),
    };
    matches != header.invert
}

/// The gRPC status, or the one that stands for the HTTP status (gRPC's "HTTP to gRPC Status Code Mapping").
fn grpc_status(entry: &Entry<'_>) -> u32 {
    entry.grpc_status.unwrap_or(match entry.response_code {
        Some(400) => 13,
        Some(401) => 16,
        Some(403) => 7,
        Some(404) => 12,
        Some(429 | 502 | 503 | 504) => 14,
        _ => 2,
    })
}
