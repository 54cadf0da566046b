//! Matchers, regular expressions and fractions that several resources share.

use super::context::{Context, Result};
use super::model::StringMatch;
use super::pb::{core, matcher, types};
use super::{any, re2};
use crate::runtime::{Fraction, LiveFraction};
use regex::bytes::{Regex, RegexBuilder};
use std::sync::Arc;

/// Bound of a compiled program, about what RE2 makes of Istio's limit of 32,768 instructions.
const MAX_PROGRAM_BYTES: usize = 2 << 20;

/// Bound of the cache that each thread keeps per pattern.
const MAX_CACHE_BYTES: usize = 512 << 10;

pub(super) fn string_match(message: matcher::StringMatcher, cx: &mut Context) -> Result<StringMatch> {
    use matcher::string_matcher::MatchPattern as Pattern;
    let matcher::StringMatcher { ignore_case, match_pattern } = message;
    Ok(match cx.required("match_pattern", match_pattern)? {
        Pattern::Exact(value) => StringMatch::Exact { value: value.into(), ignore_case },
        Pattern::Prefix(value) => StringMatch::Prefix { value: cx.non_empty("prefix", value)?.into(), ignore_case },
        Pattern::Suffix(value) => StringMatch::Suffix { value: cx.non_empty("suffix", value)?.into(), ignore_case },
        Pattern::Contains(value) => {
            StringMatch::Contains { value: cx.non_empty("contains", value)?.into(), ignore_case }
        }
        Pattern::SafeRegex(regex) => {
            if ignore_case {
                cx.record_all([cx.error_at("ignore_case", "ignore_case has no effect for safe_regex.")]);
            }
            StringMatch::Regex(full_match(regex, "safe_regex", cx)?)
        }
        Pattern::Custom(_) => return Err(any::refused("custom", cx)),
    })
}

pub(super) fn string_list(message: matcher::ListStringMatcher, cx: &mut Context) -> Result<Vec<StringMatch>> {
    let matcher::ListStringMatcher { patterns } = message;
    cx.each("patterns", patterns, string_match)
}

/// A pattern that must match the whole of its input.
pub(super) fn full_match(message: matcher::RegexMatcher, field: &str, cx: &mut Context) -> Result<Arc<Regex>> {
    compile(message, field, true, cx)
}

/// A pattern and its substitution in the regex crate's syntax. The pattern is searched, not anchored; every match is
/// replaced.
pub(super) fn substitution(
    message: matcher::RegexMatchAndSubstitute,
    field: &str,
    cx: &mut Context,
) -> Result<(Arc<Regex>, Box<str>)> {
    let matcher::RegexMatchAndSubstitute { pattern, substitution } = message;
    cx.at(field, |cx| {
        let pattern = cx.required("pattern", pattern)?;
        let pattern = compile(pattern, "pattern", false, cx)?;
        let substitution = rewrite(&substitution, pattern.captures_len())
            .map_err(|why| cx.error_at("substitution", format!("found {substitution:?}, {why}")))?;
        Ok((pattern, substitution.into()))
    })
}

fn compile(message: matcher::RegexMatcher, field: &str, anchored: bool, cx: &mut Context) -> Result<Arc<Regex>> {
    use matcher::regex_matcher::{EngineType, GoogleRe2};
    let matcher::RegexMatcher { regex, engine_type } = message;
    let (None | Some(EngineType::GoogleRe2(GoogleRe2 { max_program_size: _ }))) = engine_type;
    if regex.is_empty() {
        return Err(cx.error_at(field, "found an empty regular expression, expected a pattern"));
    }
    compile_pattern(&regex, anchored)
        .map(Arc::new)
        .map_err(|why| cx.error_at(field, format!("found {regex:?}, which is no pattern of RE2: {why}")))
}

/// Whether a pattern is one of RE2, Envoy's engine.
///
/// # Errors
/// Why not.
pub fn check_regex(pattern: &str) -> std::result::Result<(), String> {
    compile_pattern(pattern, true).map(drop)
}

/// RE2 works on bytes (Latin-1) in Envoy, so Unicode is off.
fn compile_pattern(pattern: &str, anchored: bool) -> std::result::Result<Regex, String> {
    if let Some(why) = re2::refusal(pattern) {
        return Err(why);
    }
    let body = from_re2(pattern);
    let pattern = if anchored { format!("^(?:{body})$") } else { body };
    RegexBuilder::new(&pattern)
        .unicode(false)
        .size_limit(MAX_PROGRAM_BYTES)
        .dfa_size_limit(MAX_CACHE_BYTES)
        .build()
        .map_err(|e| match e {
            regex::Error::CompiledTooBig(limit) => format!("it compiles to more than {limit} bytes"),
            // The last line says what is wrong; the lines before draw the pattern.
            other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        })
}

/// Rewrites what RE2 and the regex crate read differently: `\Q..\E`, `\C`, a `{` that is no repetition, and inside
/// classes the set operators, which are plain characters to RE2.
fn from_re2(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\\' if after.starts_with('Q') => {
                let (quoted, after) = after[1..].split_once("\\E").unwrap_or((&after[1..], ""));
                out.push_str(&regex::escape(quoted));
                after
            }
            '\\' if after.starts_with('C') && !in_class => {
                out.push_str("(?s-u:.)");
                &after[1..]
            }
            '\\' => {
                out.push('\\');
                let escaped = after.chars().next().map_or(0, char::len_utf8);
                out.push_str(&after[..escaped]);
                let after = &after[escaped..];
                // `\x{41}`, `\p{Greek}`: these braces belong to the escape.
                match after.strip_prefix('{').and_then(|_| after.find('}')) {
                    Some(end) if rest[1..].starts_with(['x', 'p', 'P']) => {
                        out.push_str(&after[..=end]);
                        &after[end + 1..]
                    }
                    _ => after,
                }
            }
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                let negated = after.strip_prefix('^');
                if negated.is_some() {
                    out.push('^');
                }
                let after = negated.unwrap_or(after);
                // A `]` right at the start is a plain character.
                match after.strip_prefix(']') {
                    Some(after) => {
                        out.push_str("\\]");
                        after
                    }
                    None => after,
                }
            }
            '[' => match after.strip_prefix(':').and_then(|named| named.find(":]")) {
                Some(end) => {
                    out.push('[');
                    out.push_str(&after[..end + 3]);
                    &after[end + 3..]
                }
                None => {
                    out.push_str("\\[");
                    after
                }
            },
            ']' if in_class => {
                in_class = false;
                out.push(']');
                after
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
                after
            }
            // `--` is an operator to the crate. At the start of a class the first of them is the plain one, elsewhere
            // the second, which then ends a range.
            '-' if in_class && after.starts_with('-') && (out.ends_with('[') || out.ends_with("[^")) => {
                out.push_str("\\-");
                after
            }
            '-' if in_class && after.starts_with('-') => {
                out.push_str("-\\-");
                &after[1..]
            }
            '{' if !in_class && !is_repetition(after) => {
                out.push_str("\\{");
                after
            }
            other => {
                out.push(other);
                after
            }
        };
    }
    out
}

/// Whether what follows `{` is `n}`, `n,}` or `n,m}`.
fn is_repetition(after: &str) -> bool {
    let Some((inside, _)) = after.split_once('}') else { return false };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

/// RE2's rewrite string (`\1`, `\\`) in the regex crate's syntax (`${1}`, `$$`). `groups` counts group 0.
fn rewrite(re2: &str, groups: usize) -> std::result::Result<String, String> {
    let mut out = String::with_capacity(re2.len() + 4);
    let mut chars = re2.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit as usize - '0' as usize;
                    if group >= groups {
                        return Err(format!("expected at most \\{}: the pattern has no more groups", groups - 1));
                    }
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => return Err("expected \\0 to \\9 or \\\\ after a backslash".into()),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

pub(super) fn fraction(message: types::FractionalPercent, cx: &Context) -> Result<Fraction> {
    use types::fractional_percent::DenominatorType;
    let types::FractionalPercent { numerator, denominator } = message;
    let denominator = match cx.enumeration::<DenominatorType>("denominator", denominator)? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Ok(Fraction { numerator, denominator })
}

/// A fraction that runtime may override.
pub(super) fn runtime_fraction(message: core::RuntimeFractionalPercent, cx: &Context) -> Result<LiveFraction> {
    let core::RuntimeFractionalPercent { default_value, runtime_key } = message;
    let default = fraction(cx.required("default_value", default_value)?, cx)?;
    Ok(cx.runtime.live_fraction(&runtime_key, default))
}

/// A percentage, 0 to 100.
pub(super) fn percent(message: Option<types::Percent>, field: &str, cx: &Context) -> Result<Option<f64>> {
    match message {
        Some(types::Percent { value }) if !(0.0..=100.0).contains(&value) => {
            Err(cx.error_at(field, format!("found {value}, expected 0 to 100")))
        }
        other => Ok(other.map(|p| p.value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(re2: &str, text: &str) -> bool {
        compile_pattern(re2, true).unwrap().is_match(text.as_bytes())
    }

    #[test]
    fn patterns_match_the_whole_value() {
        assert!(matches("/a|/b", "/b") && !matches("/a|/b", "/bc") && !matches("/a", "x/a"));
        assert!(!matches("a.b", "a\nb"));
        assert!(compile_pattern("..", true).unwrap().is_match("é".as_bytes()), "two bytes");
    }

    #[test]
    fn re2_readings_are_kept() {
        assert!(matches("/items/{id}", "/items/{id}") && matches("a{2}b{1,}", "aabb"));
        assert!(
            matches("[a&&b]", "&") && matches("[[a]", "[") && matches("[[:digit:]x]+", "1x") && matches("[]a]", "]")
        );
        assert!(matches("[^]a]", "b") && !matches("[^]a]", "]"));
        assert!(matches(r"\Qa.b(\E+", "a.b((") && !matches(r"\Qa.b\E", "axb"));
        assert!(
            matches(r"\x{41}\C", "A\n") && matches(r"\d{3}", "123") && matches("[+--]", ",") && matches("[--/]", ".")
        );
    }

    #[test]
    fn bad_patterns_say_what_is_wrong() {
        let mut cx = Context::default();
        let regex = |r: &str| matcher::RegexMatcher { regex: r.into(), engine_type: None };
        assert_eq!(
            full_match(regex("("), "safe_regex", &mut cx).unwrap_err().to_string(),
            "safe_regex: found \"(\", which is no pattern of RE2: unclosed group"
        );
        assert!(full_match(regex("a(?=b)"), "r", &mut cx).is_err(), "look-ahead");
        assert!(full_match(regex("(a{1000}){1000}"), "r", &mut cx).unwrap_err().message.contains("repetition size"));
        let large = r"(\w{100}|\d{100}|\s{100})".repeat(1000);
        assert!(full_match(regex(&large), "r", &mut cx).unwrap_err().message.contains("more than"));
    }

    #[test]
    fn substitutions_are_translated_and_checked() {
        assert_eq!(rewrite(r"/\1$\\", 2).unwrap(), r"/${1}$$\");
        assert_eq!(rewrite(r"\2", 2).unwrap_err(), r"expected at most \1: the pattern has no more groups");
        assert!(rewrite(r"\n", 2).is_err());
    }
}
