//! What a request must be before anything else looks at it: its version, its authority, its path.

use super::exchange::Exchange;
use super::head::Flaw;
use super::local_reply::Reply;
use super::names;
use super::path::{self, Outcome};
use crate::access_log::Flag;
use crate::config::model::{HeadersWithUnderscores, StripPort};
use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri, Version, header};

/// Refuses what must be refused and brings the rest into one form: the authority in `exchange.authority` and in `host`, the
/// path checked and normalised.
pub(super) fn admit(exchange: &mut Exchange, parts: &mut Parts) -> Result<(), Reply> {
    if !exchange.down.http2 {
        method(exchange, parts)?;
        tidied(exchange, parts)?;
        transfer_encoding(exchange, parts)?;
    }
    exchange.path = parts.uri.path_and_query().cloned();
    version(exchange, parts)?;
    header_names(exchange, parts)?;
    authority(exchange, parts)?;
    if parts.method == Method::CONNECT {
        return Ok(());
    }
    relative_path(exchange, parts)
}

fn version(exchange: &Exchange, parts: &mut Parts) -> Result<(), Reply> {
    let options = &exchange.down.manager.config.http1;
    if parts.version != Version::HTTP_10 {
        return Ok(());
    }
    if !options.accept_http_10 {
        return Err(Reply::new(StatusCode::UPGRADE_REQUIRED, "Upgrade Required", "low_version")
            .flagged(Flag::DownstreamProtocolError)
            .closing());
    }
    if let Some(host) = &options.default_host_for_http_10
        && !parts.headers.contains_key(header::HOST)
    {
        parts.headers.insert(header::HOST, host.clone());
    }
    Ok(())
}

/// The codec takes any token for a method; Envoy's parser knows these, upper case as they are.
fn method(exchange: &mut Exchange, parts: &mut Parts) -> Result<(), Reply> {
    match parts.method {
        Method::GET
        | Method::POST
        | Method::PUT
        | Method::DELETE
        | Method::HEAD
        | Method::OPTIONS
        | Method::CONNECT
        | Method::PATCH
        | Method::TRACE => Ok(()),
        ref other if OTHER_METHODS.contains(&other.as_str()) => Ok(()),
        _ => Err(no_http1(exchange, parts, StatusCode::BAD_REQUEST, names::CODEC_ERROR)),
    }
}

/// Methods beyond those of RFC 9110 that Envoy 1.40 takes.
const OTHER_METHODS: [&str; 26] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "MSEARCH",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// What the codec has tidied by itself and does not show in the headers.
fn tidied(exchange: &mut Exchange, parts: &mut Parts) -> Result<(), Reply> {
    let (status, details) = match exchange.down.wire.flaw() {
        None => return Ok(()),
        Some(Flaw::Lengths) => (StatusCode::BAD_REQUEST, names::CODEC_ERROR),
        Some(Flaw::LengthAndCoding) => (StatusCode::BAD_REQUEST, "http1.content_length_and_chunked_not_allowed"),
        Some(Flaw::Fragment) => {
            return Err(Reply::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed"));
        }
        Some(Flaw::Coding) => (StatusCode::NOT_IMPLEMENTED, names::INVALID_TRANSFER_ENCODING),
    };
    Err(no_http1(exchange, parts, status, details))
}

/// The codec takes any list that ends in `chunked`; an encoding that nobody here can undo must not be passed on unseen.
fn transfer_encoding(exchange: &mut Exchange, parts: &mut Parts) -> Result<(), Reply> {
    if !exchange.has_body {
        return Ok(());
    }
    let mut lines = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(no_http1(exchange, parts, StatusCode::NOT_IMPLEMENTED, names::INVALID_TRANSFER_ENCODING)),
    }
}

/// Refuses what Envoy's codec would not have taken: its logs show nothing of such a request.
fn no_http1(exchange: &mut Exchange, parts: &mut Parts, status: StatusCode, details: &'static str) -> Reply {
    exchange.method = None;
    parts.headers.clear();
    Reply::codec_error(exchange, status, details)
}

fn header_names(exchange: &Exchange, parts: &mut Parts) -> Result<(), Reply> {
    let config = &exchange.down.manager.config;
    if exchange.down.http2 {
        // pseudo-headers count too
        let pseudo = 3 + usize::from(parts.uri.authority().is_some());
        if parts.headers.len() + pseudo > config.max_headers_count as usize {
            exchange.down.manager.stats.count.downstream_rq_too_large.inc();
            return Err(Reply::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "", "http2.too_many_headers")
                .flagged(Flag::DownstreamRemoteReset)
                .resetting());
        }
    }
    if config.headers_with_underscores == HeadersWithUnderscores::Allow {
        return Ok(());
    }
    let bad: Vec<_> = parts.headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    if config.headers_with_underscores == HeadersWithUnderscores::RejectRequest && !bad.is_empty() {
        let details = if exchange.down.http2 { "http2.unexpected_underscore" } else { "http1.unexpected_underscore" };
        return Err(Reply::new(StatusCode::BAD_REQUEST, "Bad Request", details));
    }
    for name in bad {
        parts.headers.remove(name);
    }
    Ok(())
}

fn authority(exchange: &mut Exchange, parts: &mut Parts) -> Result<(), Reply> {
    let missing = || Reply::new(StatusCode::BAD_REQUEST, "", "missing_host_header");
    let mut lines = parts.headers.get_all(header::HOST).iter();
    let in_uri = parts.uri.authority().map(http::uri::Authority::as_str);
    let (value, stored) = match (in_uri, lines.next(), lines.next()) {
        // :authority, or the absolute form of HTTP/1, wins over Host
        (Some(authority), first, _) => match first {
            Some(host) if host.as_bytes() == authority.as_bytes() => (host.clone(), true),
            _ => (HeaderValue::from_str(authority).map_err(|_| missing())?, false),
        },
        (None, None, _) => return Err(missing()),
        (None, Some(host), None) => (host.clone(), true),
        // several Host lines are one list, as for any header
        (None, Some(_), Some(_)) => {
            let all: Vec<&[u8]> = parts.headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes).collect();
            let joined = HeaderValue::from_maybe_shared(Bytes::from(all.join(&b','))).map_err(|_| missing())?;
            (joined, false)
        }
    };
    if !value.as_bytes().iter().all(|b| is_authority_byte(*b)) {
        return Err(Reply::new(StatusCode::BAD_REQUEST, "Bad Request", "http.invalid_authority")
            .flagged(Flag::DownstreamProtocolError));
    }
    let (value, stored) = match strip(exchange, &value) {
        Some(stripped) => (stripped, false),
        None => (value, stored),
    };
    if !stored {
        parts.headers.insert(header::HOST, value.clone());
    }
    exchange.authority = Some(value);
    Ok(())
}

/// RFC 3986 authority characters; `,` and `%` are among them.
fn is_authority_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@[]%".contains(&b)
}

/// The authority without its trailing dot or port, where the configuration says so.
fn strip(exchange: &Exchange, value: &HeaderValue) -> Option<HeaderValue> {
    let config = &exchange.down.manager.config;
    if config.strip_port == StripPort::No && !config.strip_trailing_host_dot {
        return None;
    }
    let bytes = value.as_bytes();
    let host = super::routes::without_port(bytes);
    let port = &bytes[host.len()..];
    let own = exchange.info.local.0.port();
    let keep_port = match config.strip_port {
        StripPort::No => true,
        StripPort::Any => false,
        StripPort::Matching => {
            std::str::from_utf8(port).ok().and_then(|p| p.strip_prefix(':')?.parse::<u16>().ok()) != Some(own)
        }
    };
    let bare = if config.strip_trailing_host_dot { host.strip_suffix(b".").unwrap_or(host) } else { host };
    let kept: &[u8] = if keep_port { port } else { b"" };
    if bare.len() + kept.len() == bytes.len() {
        return None;
    }
    HeaderValue::from_maybe_shared(Bytes::from([bare, kept].concat())).ok()
}

fn relative_path(exchange: &mut Exchange, parts: &mut Parts) -> Result<(), Reply> {
    let down = exchange.down.clone();
    let (config, count) = (&down.manager.config, &down.manager.stats.count);
    if !down.http2
        && let Some(scheme) = parts.uri.scheme_str()
        && !(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
    {
        return Err(Reply::new(StatusCode::BAD_REQUEST, "Bad Request", "http1.invalid_scheme")
            .flagged(Flag::DownstreamProtocolError));
    }
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if path == "*" && parts.method != Method::OPTIONS {
        return Err(Reply::new(StatusCode::BAD_REQUEST, "Bad Request", "http1.invalid_url")
            .flagged(Flag::DownstreamProtocolError));
    }
    if !path.starts_with('/') {
        count.downstream_rq_non_relative_path.inc();
        return Err(Reply::new(StatusCode::NOT_FOUND, "", "absolute_path_rejected"));
    }
    let failed = || Reply::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed");
    match path::apply(path.as_bytes(), config) {
        Outcome::Keep => {
            if !down.http2 && parts.uri.authority().is_some() {
                parts.uri = parts.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
            }
        }
        Outcome::Change(path) => {
            set_path(parts, path).ok_or_else(failed)?;
            exchange.path = parts.uri.path_and_query().cloned();
        }
        Outcome::Redirect(path) => {
            count.downstream_rq_redirected_with_normalized_path.inc();
            let location = HeaderValue::from_maybe_shared(Bytes::from(path)).map_err(|_| failed())?;
            return Err(Reply::new(StatusCode::TEMPORARY_REDIRECT, "", "path_normalization_failed")
                .with(header::LOCATION, location));
        }
        Outcome::Reject => {
            count.downstream_rq_failed_path_normalization.inc();
            return Err(failed());
        }
    }
    Ok(())
}

/// Replaces the path and query; `None`: they are not valid ones.
pub(super) fn set_path(parts: &mut Parts, path: Vec<u8>) -> Option<()> {
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path)).ok()?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(path);
    if uri.authority.is_none() || uri.scheme.is_none() {
        uri.authority = None;
        uri.scheme = None;
    }
    parts.uri = Uri::from_parts(uri).ok()?;
    Some(())
}
