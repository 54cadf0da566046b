//! What a route changes in a request before it goes upstream: path, host, headers; and the redirects it makes of it.

use super::exchange::Exchange;
use super::forward::{apply_request_ops, suppresses};
use super::local_reply::Reply;
use super::names;
use super::routes::{Selected, split_query, without_port};
use super::rules::set_path;
use crate::config::model::{Forward, HostRewrite, PathMatch, PathRewrite, Redirect, RedirectPath, Route};
use crate::upstream::Host;
use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode, header};

/// Applies the route's changes, in Envoy's order: header operations see the client's host and path, rewrites come last.
pub(super) fn prepare(
    exchange: &mut Exchange,
    selected: &Selected,
    forward: &Forward,
    parts: &mut Parts,
) -> Result<(), ()> {
    let suppressed = suppresses(exchange);
    if !suppressed && let Some(timeout) = selected.expected_timeout() {
        parts.headers.insert(names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, timeout.clone());
    }
    if selected.vhost().include_request_attempt_count {
        parts.headers.insert(names::X_ENVOY_ATTEMPT_COUNT, HeaderValue::from_static("1"));
    }
    apply_request_ops(exchange, selected, parts);
    let rewrite = match selected.weighted() {
        Some((_, entry)) if entry.host_rewrite.is_some() => entry.host_rewrite.clone(),
        _ => new_host(forward, parts),
    };
    if let Some(host) = rewrite {
        set_host(exchange, forward, host, parts);
    }
    if let Some(path) = new_path(selected.route(), forward, parts) {
        let original = parts.uri.path_and_query().cloned();
        if let Some(original) = &original
            && !suppressed
            && let Ok(value) = HeaderValue::from_str(original.as_str())
        {
            parts.headers.insert(names::X_ENVOY_ORIGINAL_PATH, value);
        }
        set_path(parts, path).ok_or(())?;
        exchange.original_path = original;
        exchange.path = parts.uri.path_and_query().cloned();
    }
    Ok(())
}

/// `auto_host_rewrite`: the endpoint's own name.
pub(super) fn for_host(exchange: &mut Exchange, forward: &Forward, host: &Host, parts: &mut Parts) {
    if matches!(forward.host_rewrite, HostRewrite::Auto)
        && !host.hostname.is_empty()
        && let Ok(name) = HeaderValue::from_str(&host.hostname)
    {
        set_host(exchange, forward, name, parts);
    }
}

fn set_host(exchange: &mut Exchange, forward: &Forward, host: HeaderValue, parts: &mut Parts) {
    if forward.append_x_forwarded_host
        && let Some(old) = &exchange.authority
        && *old != host
    {
        super::headers::append_with(&mut parts.headers, &names::X_FORWARDED_HOST, ",", old.clone());
    }
    if !suppresses(exchange)
        && let Some(old) = &exchange.authority
        && *old != host
    {
        parts.headers.entry(names::X_ENVOY_ORIGINAL_HOST).or_insert_with(|| old.clone());
    }
    parts.headers.insert(header::HOST, host.clone());
    exchange.authority = Some(host);
}

fn new_host(forward: &Forward, parts: &Parts) -> Option<HeaderValue> {
    match &forward.host_rewrite {
        HostRewrite::None | HostRewrite::Auto => None,
        HostRewrite::Literal(value) => Some(value.clone()),
        HostRewrite::Header(name) => parts.headers.get(name).filter(|v| !v.is_empty()).cloned(),
        HostRewrite::PathRegex { pattern, substitution } => {
            let path = parts.uri.path().as_bytes();
            let host = pattern.replace_all(path, substitution.as_bytes()).into_owned();
            HeaderValue::from_maybe_shared(Bytes::from(host)).ok()
        }
    }
}

/// The path after the route's rewrite; `None`: there is none.
fn new_path(route: &Route, forward: &Forward, parts: &Parts) -> Option<Vec<u8>> {
    let full = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str).as_bytes();
    match &forward.path_rewrite {
        PathRewrite::None => None,
        PathRewrite::Prefix(prefix) => Some(replace_matched(&route.matcher.path, full, prefix)),
        PathRewrite::Regex { pattern, substitution } => Some(replace_regex(pattern, substitution, full)),
    }
}

/// Replaces what `Prefix`, `SeparatedPrefix` or `Exact` matched. A regex route has no matched part: all of its path goes.
fn replace_matched(matcher: &PathMatch, full: &[u8], with: &str) -> Vec<u8> {
    let bare = split_query(full).0.len();
    let matched = match matcher {
        PathMatch::Prefix { value, .. } | PathMatch::Exact { value, .. } | PathMatch::SeparatedPrefix { value, .. } => {
            value.len().min(bare)
        }
        PathMatch::Regex(_) | PathMatch::Connect => bare,
    };
    [with.as_bytes(), &full[matched..]].concat()
}

fn replace_regex(pattern: &regex::bytes::Regex, substitution: &str, full: &[u8]) -> Vec<u8> {
    let (bare, query) = split_query(full);
    let mut path = pattern.replace_all(bare, substitution.as_bytes()).into_owned();
    if let Some(query) = query {
        path.push(b'?');
        path.extend_from_slice(query);
    }
    path
}

/// The reply that sends the client elsewhere.
pub(super) fn redirect(exchange: &Exchange, route: &Route, redirect: &Redirect) -> Reply {
    let authority = exchange.authority.as_ref().map_or(&b""[..], |v| v.as_bytes());
    let path = exchange.path.as_ref().map_or("/", PathAndQuery::as_str).as_bytes();
    let location = location(redirect, &route.matcher.path, exchange.scheme(), authority, path);
    let Ok(location) = HeaderValue::from_maybe_shared(Bytes::from(location)) else {
        return Reply::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed");
    };
    Reply::new(redirect.status, "", "direct_response").with(header::LOCATION, location)
}

/// `require_tls`: the same place over TLS.
pub(super) fn to_https(exchange: &Exchange, route: &Route) -> Reply {
    let plain = Redirect {
        status: StatusCode::MOVED_PERMANENTLY,
        scheme: None,
        https: true,
        host: None,
        port: None,
        path: RedirectPath::Keep,
        strip_query: false,
    };
    redirect(exchange, route, &plain)
}

fn location(redirect: &Redirect, matcher: &PathMatch, scheme: &str, authority: &[u8], path: &[u8]) -> Vec<u8> {
    let new_scheme = if redirect.https { "https" } else { redirect.scheme.as_deref().unwrap_or(scheme) };
    let old_host = without_port(authority);
    let old_port = &authority[old_host.len()..];
    let mut out = format!("{new_scheme}://").into_bytes();
    match &redirect.host {
        Some(host) => out.extend_from_slice(host.as_bytes()),
        None => out.extend_from_slice(old_host),
    }
    match redirect.port {
        Some(port) => out.extend_from_slice(format!(":{port}").as_bytes()),
        // the default port of the scheme that is left has no meaning in the new one
        None if redirect.host.is_none() => {
            let left = scheme != new_scheme && (old_port == b":80" || old_port == b":443");
            out.extend_from_slice(if left { b"" } else { old_port });
        }
        None => {}
    }
    let mut target = match &redirect.path {
        RedirectPath::Keep => path.to_vec(),
        RedirectPath::Path(new) => match split_query(path).1 {
            Some(query) if !new.contains('?') => [new.as_bytes(), b"?", query].concat(),
            _ => new.as_bytes().to_vec(),
        },
        RedirectPath::Prefix(prefix) => replace_matched(matcher, path, prefix),
        RedirectPath::Regex { pattern, substitution } => replace_regex(pattern, substitution, path),
    };
    if redirect.strip_query {
        target.truncate(split_query(&target).0.len());
    }
    out.extend_from_slice(&target);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Redirect {
        Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            https: false,
            host: None,
            port: None,
            path: RedirectPath::Keep,
            strip_query: false,
        }
    }

    fn to(redirect: &Redirect, authority: &str, path: &str) -> String {
        let matcher = PathMatch::Prefix { value: "/a".into(), ignore_case: false };
        String::from_utf8(location(redirect, &matcher, "http", authority.as_bytes(), path.as_bytes())).unwrap()
    }

    #[test]
    fn redirects_change_only_what_they_name() {
        let https = Redirect { https: true, ..plain() };
        assert_eq!(to(&https, "h:80", "/a?x=1"), "https://h/a?x=1");
        assert_eq!(to(&https, "h:8080", "/a"), "https://h:8080/a");
        let host = Redirect { host: Some("new".into()), port: Some(8443), ..plain() };
        assert_eq!(to(&host, "h:80", "/a"), "http://new:8443/a");
        let path = Redirect { path: RedirectPath::Path("/p".into()), ..plain() };
        assert_eq!(to(&path, "h", "/a?x"), "http://h/p?x");
        let prefix = Redirect { path: RedirectPath::Prefix("/n".into()), strip_query: true, ..plain() };
        assert_eq!(to(&prefix, "h", "/a/b?x"), "http://h/n/b");
    }

    #[test]
    fn rewrites_leave_the_query_alone() {
        let regex = regex::bytes::Regex::new("^/(\\w+)/x").unwrap();
        assert_eq!(replace_regex(&regex, "/${1}/y", b"/q/x?/q/x"), b"/q/y?/q/x");
        let exact = PathMatch::Exact { value: "/a".into(), ignore_case: false };
        assert_eq!(replace_matched(&exact, b"/a?b", "/c"), b"/c?b");
    }
}
