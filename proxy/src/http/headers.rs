//! Rules for headers, both ways: what is stripped, what is added, what is trusted (Envoy docs, "HTTP header manipulation" and
//! "HTTP header sanitizing"). Maps are changed in place; one pass over the names finds out what there is to do.

use super::exchange::Exchange;
use super::local_reply::Reply;
use super::names;
use crate::access_log::Flag;
use crate::config::model::{HcmConfig, ServerHeader};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use smallvec::SmallVec;
use std::io::Write;
use std::net::IpAddr;

/// What one pass over the request's header names found.
#[derive(Default)]
struct Seen {
    remove: SmallVec<[HeaderName; 4]>,
    connection: bool,
    te: bool,
    cookie: bool,
    expect: bool,
    forwarded_for: bool,
    forwarded_proto: bool,
    client_cert: bool,
    request_id: bool,
    grpc: bool,
}

/// What to send upstream of the wish to upgrade.
pub(super) struct Sanitized {
    /// The `upgrade` header, when `connection` names it.
    pub upgrade: Option<HeaderValue>,
}

/// Prefixes, after `x-envoy-`, of headers that only a trusted client may set.
const TRUSTED_ONLY: &[&str] = &[
    "internal",
    "max-retries",
    "retry-",
    "retriable-",
    "upstream-",
    "expected-rq-timeout-ms",
    "hedge-on-per-try-timeout",
    "is-timeout-retry",
    "force-trace",
    "ip-tags",
    "decorator-operation",
];

/// Brings the request's headers into the form in which they go upstream. Runs after [`super::rules::admit`].
///
/// # Errors
/// A `connection` header that names what is not the client's to remove.
pub(super) fn sanitize_request(exchange: &mut Exchange, parts: &mut Parts) -> Result<Sanitized, Reply> {
    let down = exchange.down.clone();
    let config = &*down.manager.config;
    let headers = &mut parts.headers;
    let mut seen = look(headers);
    exchange.grpc = seen.grpc;
    trust(exchange, config, headers, &seen);
    if exchange.external {
        let edge = config.use_remote_address;
        for name in headers.keys() {
            if let Some(rest) = name.as_str().strip_prefix("x-envoy-")
                && (TRUSTED_ONLY.iter().any(|p| rest.starts_with(p))
                    || (edge && matches!(rest, "original-path" | "original-host")))
            {
                seen.remove.push(name.clone());
            }
        }
    }
    let upgrade = hop_by_hop(headers, &seen)?;
    if seen.cookie && down.http2 {
        join_crumbs(headers);
    }
    for name in &seen.remove {
        headers.remove(name);
    }
    if !exchange.external {
        headers.insert(names::X_ENVOY_INTERNAL, names::TRUE);
    }
    forwarded(exchange, config, headers, &seen);
    if seen.client_cert || down.mutual_tls {
        super::xfcc::apply(config.forward_client_cert, down.mutual_tls, headers, || down.client_cert());
    }
    request_id(exchange, config, headers, &seen);
    if let Some(via) = &config.via {
        append_with(headers, &header::VIA, ", ", via.clone());
    }
    Ok(Sanitized { upgrade })
}

fn look(headers: &HeaderMap) -> Seen {
    let mut seen = Seen::default();
    for name in headers.keys() {
        match name.as_str() {
            "connection" => seen.connection = true,
            "te" => seen.te = true,
            "cookie" => seen.cookie = true,
            "expect" => seen.expect = true,
            "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => seen.remove.push(name.clone()),
            "x-forwarded-for" => seen.forwarded_for = true,
            "x-forwarded-proto" => seen.forwarded_proto = true,
            "x-forwarded-client-cert" => seen.client_cert = true,
            "x-request-id" => seen.request_id = true,
            "content-type" => seen.grpc = headers.get(name).is_some_and(is_grpc),
            _ => {}
        }
    }
    seen
}

/// `application/grpc`, or with a suffix (`application/grpc+proto`).
fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type
        .as_bytes()
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}

/// One `cookie` line of the several that HTTP/2 may cut it into (RFC 9113, 8.2.3).
fn join_crumbs(headers: &mut HeaderMap) {
    let joined = {
        let crumbs: SmallVec<[&[u8]; 8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if crumbs.len() < 2 {
            return;
        }
        Bytes::from(crumbs.join(&b"; "[..]))
    };
    // every crumb is a valid value, so their list is
    if let Ok(joined) = HeaderValue::from_maybe_shared(joined) {
        headers.insert(header::COOKIE, joined);
    }
}

/// What `connection` must not name: a proxy behind us trusts these.
fn is_kept(nominated: &[u8]) -> bool {
    let kept: [&[u8]; 3] = [b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"];
    nominated.starts_with(b":") || kept.iter().any(|name| nominated.eq_ignore_ascii_case(name))
}

/// Removes connection headers and what they nominate; returns the wish to upgrade.
fn hop_by_hop(headers: &mut HeaderMap, seen: &Seen) -> Result<Option<HeaderValue>, Reply> {
    let mut upgrade = None;
    if seen.connection {
        let tokens: SmallVec<[HeaderValue; 2]> = headers.get_all(header::CONNECTION).iter().cloned().collect();
        headers.remove(header::CONNECTION);
        for token in tokens.iter().flat_map(|v| v.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"upgrade") {
                upgrade = headers.get(header::UPGRADE).cloned();
            } else if token.eq_ignore_ascii_case(b"te") {
                // it is reduced below
            } else if is_kept(token) {
                return Err(Reply::new(StatusCode::BAD_REQUEST, "Bad Request", "http1.connection_header_rejected")
                    .flagged(Flag::DownstreamProtocolError));
            } else if token.eq_ignore_ascii_case(b"host") {
                return Err(Reply::new(StatusCode::BAD_REQUEST, "", "missing_host_header"));
            } else if let Ok(name) = HeaderName::from_bytes(token) {
                headers.remove(name);
            }
        }
    }
    if seen.te {
        let trailers = headers.get_all(header::TE).iter().any(|v| names::has_token(v.as_bytes(), "trailers"));
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, names::TRAILERS);
        }
    }
    if seen.expect && headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        // the codec answers it as soon as the body is read
        headers.remove(header::EXPECT);
    }
    Ok(upgrade)
}

/// Whether the request comes from a network that the configuration calls internal, and which address is the client's.
fn trust(exchange: &mut Exchange, config: &HcmConfig, headers: &HeaderMap, seen: &Seen) {
    let hops = config.xff_num_trusted_hops as usize;
    let own_address = config.use_remote_address && hops == 0;
    let mut client = exchange.info.peer.0.ip();
    let mut single = !seen.forwarded_for;
    if !own_address && seen.forwarded_for {
        let list: SmallVec<[&[u8]; 8]> = headers
            .get_all(names::X_FORWARDED_FOR)
            .iter()
            .flat_map(|v| v.as_bytes().split(|b| *b == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        single = list.len() == 1;
        // behind n trusted proxies that each appended one, the client is the n-th from the end
        let back = if config.use_remote_address { hops } else { hops + 1 };
        if let Some(ip) = list.len().checked_sub(back).and_then(|at| list.get(at)).and_then(|text| parse_ip(text)) {
            client = ip;
            exchange.info = exchange.down.info_for(ip);
        }
    }
    let eligible = if own_address { !seen.forwarded_for } else { single };
    let internal = eligible && config.internal_addresses.iter().any(|net| net.contains(&client));
    exchange.external = !internal;
}

fn parse_ip(text: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn forwarded(exchange: &Exchange, config: &HcmConfig, headers: &mut HeaderMap, seen: &Seen) {
    let down = &exchange.down;
    let scheme = if down.tls { names::HTTPS } else { names::HTTP };
    if !config.use_remote_address {
        if !seen.forwarded_proto {
            headers.insert(names::X_FORWARDED_PROTO, scheme);
        }
        return;
    }
    if !config.skip_xff_append {
        append_with(headers, &names::X_FORWARDED_FOR, ",", down.forwarded_address());
    }
    if config.xff_num_trusted_hops == 0 || !seen.forwarded_proto {
        headers.insert(names::X_FORWARDED_PROTO, scheme);
    }
    if config.append_x_forwarded_port
        && (config.xff_num_trusted_hops == 0 || !headers.contains_key(names::X_FORWARDED_PORT))
    {
        headers.insert(names::X_FORWARDED_PORT, names::number(u64::from(down.info.local.0.port())));
    }
    if exchange.external {
        headers.insert(names::X_ENVOY_EXTERNAL_ADDRESS, address_value(exchange.info.peer.0.ip()));
    }
}

/// An address as a header value.
pub(super) fn address_value(ip: IpAddr) -> HeaderValue {
    // an address has only characters that header values may have
    HeaderValue::from_maybe_shared(Bytes::from(ip.to_string())).unwrap_or(HeaderValue::from_static(""))
}

fn request_id(exchange: &mut Exchange, config: &HcmConfig, headers: &mut HeaderMap, seen: &Seen) {
    if !config.generate_request_id {
        exchange.request_id = headers.get(&names::X_REQUEST_ID).cloned();
        return;
    }
    // at the edge a stranger's id is not taken over
    let replace = exchange.external && config.use_remote_address && !config.preserve_external_request_id;
    if seen.request_id && !replace {
        exchange.request_id = headers.get(&names::X_REQUEST_ID).cloned();
        return;
    }
    let id = new_request_id();
    headers.insert(names::X_REQUEST_ID, id.clone());
    exchange.request_id = Some(id);
}

/// A version 4 UUID.
fn new_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bits = (fastrand::u128(..) & !(0xf << 76 | 0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let mut text = BytesMut::with_capacity(36);
    for (i, byte) in bits.to_be_bytes().into_iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.extend_from_slice(b"-");
        }
        text.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    // hexadecimal digits and dashes are valid in any header
    HeaderValue::from_maybe_shared(text.freeze()).unwrap_or(HeaderValue::from_static(""))
}

/// Appends to a list header: to its first line, with this separator, or as a new header.
pub(super) fn append_with(headers: &mut HeaderMap, name: &HeaderName, separator: &str, value: HeaderValue) {
    let joined = match headers.get(name) {
        Some(old) if !old.is_empty() => {
            let text = [old.as_bytes(), separator.as_bytes(), value.as_bytes()].concat();
            // both sides are valid values, so their list is
            HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(value)
        }
        _ => value,
    };
    headers.insert(name.clone(), joined);
}

/// Removes what an endpoint says of its connection to us, not of ours to the client.
pub(super) fn strip_response(headers: &mut HeaderMap) {
    let mut remove: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for name in headers.keys() {
        if matches!(
            name.as_str(),
            "connection"
                | "keep-alive"
                | "proxy-connection"
                | "transfer-encoding"
                | "upgrade"
                | "x-envoy-decorator-operation"
        ) {
            remove.push(name.clone());
        }
    }
    for name in remove {
        headers.remove(name);
    }
}

/// The headers that every response gets, local or not.
pub(super) fn finish_response(exchange: &Exchange, headers: &mut HeaderMap) {
    let config = &*exchange.down.manager.config;
    match config.server_header {
        ServerHeader::Overwrite => {
            headers.insert(header::SERVER, config.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            headers.entry(header::SERVER).or_insert_with(|| config.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    if let Some(via) = &config.via {
        append_with(headers, &header::VIA, ", ", via.clone());
    }
    if config.always_set_request_id_in_response
        && let Some(id) = &exchange.request_id
    {
        headers.insert(names::X_REQUEST_ID, id.clone());
    }
}

/// A count of milliseconds as a header value; the small ones, which are nearly all, are made already.
pub(super) fn milliseconds(ms: u128) -> HeaderValue {
    const SMALL: [HeaderValue; 10] = [
        HeaderValue::from_static("0"),
        HeaderValue::from_static("1"),
        HeaderValue::from_static("2"),
        HeaderValue::from_static("3"),
        HeaderValue::from_static("4"),
        HeaderValue::from_static("5"),
        HeaderValue::from_static("6"),
        HeaderValue::from_static("7"),
        HeaderValue::from_static("8"),
        HeaderValue::from_static("9"),
    ];
    let at = usize::try_from(ms).unwrap_or(usize::MAX);
    SMALL.get(at).cloned().unwrap_or_else(|| {
        let mut text = Vec::with_capacity(8);
        // writing to a vector cannot fail
        let _ = write!(text, "{ms}");
        HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static("0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = new_request_id();
        let text = id.to_str().unwrap();
        assert_eq!(text.len(), 36);
        assert_eq!(text.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]), "{text}");
    }

    #[test]
    fn connection_headers_and_what_they_name_are_removed() {
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_static("X-Foo, upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        headers.insert("x-foo", HeaderValue::from_static("1"));
        headers.insert("host", HeaderValue::from_static("h"));
        headers.insert("te", HeaderValue::from_static("gzip, trailers"));
        headers.insert("expect", HeaderValue::from_static("100-continue"));
        let seen = look(&headers);
        assert_eq!(hop_by_hop(&mut headers, &seen).ok().unwrap().unwrap(), "websocket");
        assert_eq!(headers.get("te").unwrap(), "trailers");
        assert!(headers.contains_key("host") && !headers.contains_key("x-foo") && !headers.contains_key("expect"));
    }

    #[test]
    fn connection_must_not_name_what_others_trust() {
        let refused = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("connection", HeaderValue::from_static(value));
            let seen = look(&headers);
            hop_by_hop(&mut headers, &seen).err().map(|reply| reply.details)
        };
        assert_eq!(refused("close, Host").unwrap(), "missing_host_header");
        for value in ["X-Forwarded-For", "close,x-forwarded-proto", "x-forwarded-host", ":path"] {
            assert_eq!(refused(value).unwrap(), "http1.connection_header_rejected", "{value}");
        }
        assert!(refused("x-forwarded-foo, keep-alive").is_none());
    }

    #[test]
    fn crumbs_become_one_cookie() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", HeaderValue::from_static("a=1"));
        headers.append("cookie", HeaderValue::from_static("b=2"));
        join_crumbs(&mut headers);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn lists_grow_at_their_end() {
        let mut headers = HeaderMap::new();
        append_with(&mut headers, &header::VIA, ", ", HeaderValue::from_static("1.1 a"));
        append_with(&mut headers, &header::VIA, ", ", HeaderValue::from_static("1.1 b"));
        assert_eq!(headers.get("via").unwrap(), "1.1 a, 1.1 b");
    }

    #[test]
    fn only_grpc_content_types_are_grpc() {
        for (value, expected) in
            [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false)]
        {
            assert_eq!(is_grpc(&HeaderValue::from_static(value)), expected);
        }
    }

    #[test]
    fn milliseconds_are_decimal() {
        assert_eq!((milliseconds(7), milliseconds(15000)), ("7".parse().unwrap(), "15000".parse().unwrap()));
    }
}
