//! What requests a route is for: path, headers, query.

use super::any;
use super::context::{Context, Result};
use super::matcher::{full_match, runtime_fraction, string_match};
use super::model::{HeaderMatch, HeaderTest, PathMatch, QueryMatch, RouteMatch, StringMatch};
use super::pb::{route, types};

pub(super) fn route_match(message: route::RouteMatch, cx: &mut Context) -> Result<RouteMatch> {
    let route::RouteMatch {
        case_sensitive,
        runtime_fraction: fraction,
        headers,
        query_parameters,
        cookies: _,
        grpc,
        tls_context: _,
        dynamic_metadata: _,
        filter_state: _,
        path_specifier,
    } = message;
    let ignore_case = case_sensitive.is_some_and(|v| !v.value);
    let path = path_match(cx.required("path_specifier", path_specifier)?, ignore_case, cx)?;
    Ok(RouteMatch {
        path,
        headers: cx.each("headers", headers, header_match)?,
        query: cx.each("query_parameters", query_parameters, query_match)?,
        fraction: fraction.map(|message| cx.at("runtime_fraction", |cx| runtime_fraction(message, cx))).transpose()?,
        grpc: match grpc {
            Some(route::route_match::GrpcRouteMatchOptions {}) => true,
            None => false,
        },
    })
}

fn path_match(message: route::route_match::PathSpecifier, ignore_case: bool, cx: &mut Context) -> Result<PathMatch> {
    use route::route_match::{ConnectMatcher, PathSpecifier};
    match message {
        PathSpecifier::Prefix(value) => Ok(PathMatch::Prefix { value: value.into(), ignore_case }),
        PathSpecifier::Path(value) => Ok(PathMatch::Exact { value: value.into(), ignore_case }),
        PathSpecifier::SafeRegex(regex) => full_match(regex, "safe_regex", cx).map(PathMatch::Regex),
        PathSpecifier::ConnectMatcher(ConnectMatcher {}) => Ok(PathMatch::Connect),
        PathSpecifier::PathSeparatedPrefix(value) => {
            // Envoy's rule: starts with a slash, does not end in one, is more than one.
            if value.starts_with('/') && value.len() > 1 && !value.ends_with('/') && !value.contains(['?', '#']) {
                Ok(PathMatch::SeparatedPrefix { value: value.into(), ignore_case })
            } else {
                let found = format!("found {value:?}, expected a path like /a that does not end in a slash");
                Err(cx.error_at("path_separated_prefix", found))
            }
        }
        PathSpecifier::PathMatchPolicy(_) => Err(any::refused("path_match_policy", cx)),
    }
}

pub(super) fn header_match(message: route::HeaderMatcher, cx: &mut Context) -> Result<HeaderMatch> {
    use route::header_matcher::HeaderMatchSpecifier as Test;
    let route::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } = message;
    let name = cx.non_empty("name", name)?.to_ascii_lowercase();
    let plain = |value: String| -> Box<str> { value.into() };
    let test = match header_match_specifier {
        // Without a test the header must be there.
        None => HeaderTest::Present(true),
        Some(Test::PresentMatch(present)) => HeaderTest::Present(present),
        Some(Test::RangeMatch(types::Int64Range { start, end })) => HeaderTest::Range { start, end },
        Some(Test::StringMatch(message)) => HeaderTest::String(cx.at("string_match", |cx| string_match(message, cx))?),
        Some(Test::SafeRegexMatch(regex)) => {
            HeaderTest::String(StringMatch::Regex(full_match(regex, "safe_regex_match", cx)?))
        }
        Some(Test::ExactMatch(value)) => {
            // Envoy's reading of an empty value here: any value is good.
            match value.is_empty() {
                true => HeaderTest::Present(true),
                false => HeaderTest::String(StringMatch::Exact { value: plain(value), ignore_case: false }),
            }
        }
        Some(Test::PrefixMatch(value)) => {
            let value = cx.non_empty("prefix_match", value)?;
            HeaderTest::String(StringMatch::Prefix { value: plain(value), ignore_case: false })
        }
        Some(Test::SuffixMatch(value)) => {
            let value = cx.non_empty("suffix_match", value)?;
            HeaderTest::String(StringMatch::Suffix { value: plain(value), ignore_case: false })
        }
        Some(Test::ContainsMatch(value)) => {
            let value = cx.non_empty("contains_match", value)?;
            HeaderTest::String(StringMatch::Contains { value: plain(value), ignore_case: false })
        }
    };
    Ok(HeaderMatch {
        name: name.into(),
        test,
        invert: invert_match,
        treat_missing_as_empty: treat_missing_header_as_empty,
    })
}

fn query_match(message: route::QueryParameterMatcher, cx: &mut Context) -> Result<QueryMatch> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as Test;
    let route::QueryParameterMatcher { name, query_parameter_match_specifier } = message;
    let value = match query_parameter_match_specifier {
        None | Some(Test::PresentMatch(true)) => None,
        Some(Test::PresentMatch(false)) => {
            return Err(cx.error_at("present_match", "found false, expected true: absence cannot be tested"));
        }
        Some(Test::StringMatch(message)) => Some(cx.at("string_match", |cx| string_match(message, cx))?),
    };
    Ok(QueryMatch { name: cx.non_empty("name", name)?.into(), value })
}
