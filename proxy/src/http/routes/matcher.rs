//! Whether a route matches a request. Paths are bytes: on HTTP/2 they need not be UTF-8.

use crate::config::model::{HeaderMatch, HeaderTest, PathMatch, QueryMatch, RouteMatch};
use http::{HeaderMap, Method};

/// A request as routes see it.
pub(in crate::http) struct RequestView<'a> {
    pub method: &'a Method,
    /// With its query.
    pub path: &'a [u8],
    pub authority: &'a [u8],
    pub scheme: &'a str,
    pub headers: &'a HeaderMap,
    /// Stable through the life of the request.
    pub random: u64,
    pub grpc: bool,
}

impl RequestView<'_> {
    /// The path without its query.
    pub fn bare_path(&self) -> &[u8] {
        split_query(self.path).0
    }

    fn query(&self) -> Option<&[u8]> {
        split_query(self.path).1
    }
}

/// Path and query, the query without its question mark.
pub(in crate::http) fn split_query(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match path.iter().position(|b| *b == b'?') {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    }
}

/// The path up to its parameters (`;…`).
pub(in crate::http) fn without_parameters(path: &[u8]) -> &[u8] {
    path.iter().position(|b| *b == b';').map_or(path, |at| &path[..at])
}

/// Whether the whole condition holds; `path` is the bare path, already without parameters if these are ignored.
pub(in crate::http) fn matches(m: &RouteMatch, path: &[u8], view: &RequestView<'_>) -> bool {
    path_matches(&m.path, path, view.method)
        && (!m.grpc || view.grpc)
        && m.headers.iter().all(|h| header_matches(h, view))
        && (m.query.is_empty() || query_matches(&m.query, view.query().unwrap_or_default()))
        && m.fraction.as_ref().is_none_or(|f| f.hits(view.random))
}

fn path_matches(m: &PathMatch, path: &[u8], method: &Method) -> bool {
    if *method == Method::CONNECT {
        return matches!(m, PathMatch::Connect);
    }
    match m {
        PathMatch::Prefix { value, ignore_case } => starts_with(path, value.as_bytes(), *ignore_case),
        PathMatch::Exact { value, ignore_case } => same(path, value.as_bytes(), *ignore_case),
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::SeparatedPrefix { value, ignore_case } => {
            starts_with(path, value.as_bytes(), *ignore_case) && matches!(path.get(value.len()), None | Some(b'/'))
        }
        PathMatch::Connect => false,
    }
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

fn starts_with(path: &[u8], prefix: &[u8], ignore_case: bool) -> bool {
    path.get(..prefix.len()).is_some_and(|head| same(head, prefix, ignore_case))
}

fn header_matches(m: &HeaderMatch, view: &RequestView<'_>) -> bool {
    let pseudo = match &*m.name {
        ":method" => Some(view.method.as_str().as_bytes()),
        ":path" => Some(view.path),
        ":authority" | "host" => Some(view.authority),
        ":scheme" => Some(view.scheme.as_bytes()),
        _ => None,
    };
    match pseudo {
        Some(value) => test(m, std::iter::once(value)),
        None => test(m, view.headers.get_all(&*m.name).iter().map(http::HeaderValue::as_bytes)),
    }
}

/// Each value of a repeated header is tested by itself; a header that is absent matches nothing but `Present(false)`, even
/// inverted, unless it is to be taken for an empty one.
fn test<'a>(m: &HeaderMatch, values: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut values = values.peekable();
    if let HeaderTest::Present(present) = m.test {
        return (values.peek().is_some() == present) != m.invert;
    }
    if values.peek().is_none() {
        return m.treat_missing_as_empty && value_passes(&m.test, b"") != m.invert;
    }
    values.any(|v| value_passes(&m.test, v)) != m.invert
}

fn value_passes(t: &HeaderTest, value: &[u8]) -> bool {
    match t {
        HeaderTest::String(string) => string.matches(value),
        HeaderTest::Range { start, end } => std::str::from_utf8(value)
            .ok()
            .and_then(|v| v.parse::<i64>().ok())
            .is_some_and(|n| (*start..*end).contains(&n)),
        HeaderTest::Present(present) => *present,
    }
}

fn query_matches(list: &[QueryMatch], query: &[u8]) -> bool {
    list.iter().all(|m| {
        query_value(query, &m.name).is_some_and(|found| m.value.as_ref().is_none_or(|want| want.matches(found)))
    })
}

/// The first value of a query parameter; empty when it has none.
pub(in crate::http) fn query_value<'a>(query: &'a [u8], name: &str) -> Option<&'a [u8]> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=');
        let (key, value) = at.map_or((pair, &b""[..]), |at| (&pair[..at], &pair[at + 1..]));
        (key == name.as_bytes()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::StringMatch;
    use crate::runtime::Fraction;

    fn path(p: PathMatch) -> RouteMatch {
        RouteMatch { path: p, headers: Vec::new(), query: Vec::new(), fraction: None, grpc: false }
    }

    fn ask(m: &RouteMatch, path: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let view = RequestView {
            method: &Method::GET,
            path: path.as_bytes(),
            authority: b"h",
            scheme: "http",
            headers: &map,
            random: 50,
            grpc: false,
        };
        matches(m, view.bare_path(), &view)
    }

    #[test]
    fn paths_match_without_their_query() {
        let exact = path(PathMatch::Exact { value: "/a".into(), ignore_case: false });
        assert!(ask(&exact, "/a?x=1", &[]) && !ask(&exact, "/a/", &[]) && !ask(&exact, "/A", &[]));
        let prefix = path(PathMatch::Prefix { value: "/A".into(), ignore_case: true });
        assert!(ask(&prefix, "/ab", &[]) && !ask(&prefix, "/", &[]));
        let separated = path(PathMatch::SeparatedPrefix { value: "/a".into(), ignore_case: false });
        assert!(ask(&separated, "/a", &[]) && ask(&separated, "/a/b", &[]) && !ask(&separated, "/ab", &[]));
        assert!(!ask(&path(PathMatch::Connect), "/", &[]));
    }

    fn header(test: HeaderTest, invert: bool, empty: bool) -> RouteMatch {
        let mut m = path(PathMatch::Prefix { value: "/".into(), ignore_case: false });
        m.headers = vec![HeaderMatch { name: "x".into(), test, invert, treat_missing_as_empty: empty }];
        m
    }

    #[test]
    fn every_value_of_a_header_is_tested_by_itself() {
        let exact = |v: &str| HeaderTest::String(StringMatch::Exact { value: v.into(), ignore_case: false });
        assert!(ask(&header(exact("b"), false, false), "/", &[("x", "a"), ("x", "b")]));
        assert!(!ask(&header(exact("a,b"), false, false), "/", &[("x", "a"), ("x", "b")]));
        assert!(!ask(&header(exact("b"), true, false), "/", &[("x", "a"), ("x", "b")]));
        assert!(!ask(&header(exact("b"), true, false), "/", &[]), "absent matches nothing, even inverted");
        assert!(ask(&header(exact("b"), true, true), "/", &[]));
        assert!(ask(&header(HeaderTest::Present(true), true, false), "/", &[]));
        assert!(ask(&header(HeaderTest::Present(false), false, false), "/", &[]));
        let range = HeaderTest::Range { start: -1, end: 5 };
        assert!(ask(&header(range.clone(), false, false), "/", &[("x", "-1")]));
        assert!(!ask(&header(range, false, false), "/", &[("x", "5")]));
    }

    #[test]
    fn query_and_fraction_must_hold_too() {
        let mut m = path(PathMatch::Prefix { value: "/".into(), ignore_case: false });
        m.query = vec![QueryMatch { name: "a".into(), value: None }];
        assert!(ask(&m, "/?b=1&a", &[]) && !ask(&m, "/?b=a", &[]) && !ask(&m, "/", &[]));
        m.query[0].value = Some(StringMatch::Exact { value: "1".into(), ignore_case: false });
        assert!(ask(&m, "/?a=1", &[]) && !ask(&m, "/?a=2&a=1", &[]));
        m.query.clear();
        m.fraction = Some(Fraction { numerator: 50, denominator: 100 }.into());
        assert!(!ask(&m, "/", &[]));
        m.fraction = Some(Fraction { numerator: 51, denominator: 100 }.into());
        assert!(ask(&m, "/", &[]));
    }
}
