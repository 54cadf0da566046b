//! Matchers that several resources share (`envoy.type.matcher.v3`).

use std::sync::Arc;

/// One string test. Works on bytes: header values need not be UTF-8.
#[derive(Debug, Clone)]
pub enum StringMatch {
    Exact {
        value: Box<str>,
        ignore_case: bool,
    },
    Prefix {
        value: Box<str>,
        ignore_case: bool,
    },
    Suffix {
        value: Box<str>,
        ignore_case: bool,
    },
    Contains {
        value: Box<str>,
        ignore_case: bool,
    },
    /// The whole value must match; the pattern is anchored at conversion.
    Regex(Arc<regex::bytes::Regex>),
}

impl StringMatch {
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            StringMatch::Exact { value: want, ignore_case: false } => value == want.as_bytes(),
            StringMatch::Exact { value: want, ignore_case: true } => value.eq_ignore_ascii_case(want.as_bytes()),
            StringMatch::Prefix { value: want, ignore_case } => {
                value.get(..want.len()).is_some_and(|head| same(head, want.as_bytes(), *ignore_case))
            }
            StringMatch::Suffix { value: want, ignore_case } => {
                value.len().checked_sub(want.len()).is_some_and(|at| same(&value[at..], want.as_bytes(), *ignore_case))
            }
            StringMatch::Contains { value: want, ignore_case } => {
                want.is_empty() || value.windows(want.len()).any(|w| same(w, want.as_bytes(), *ignore_case))
            }
            StringMatch::Regex(regex) => regex.is_match(value),
        }
    }
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_matches_respect_case_and_ends() {
        let m = |ignore_case| StringMatch::Suffix { value: "Bar".into(), ignore_case };
        assert!(m(false).matches(b"fooBar") && !m(false).matches(b"foobar") && m(true).matches(b"foobar"));
        assert!(!m(true).matches(b"ar"));
        let p = StringMatch::Prefix { value: "spiffe://td/".into(), ignore_case: false };
        assert!(p.matches(b"spiffe://td/x") && !p.matches(b"spiffe://td"));
        let c = StringMatch::Contains { value: "b".into(), ignore_case: false };
        assert!(c.matches(b"abc") && !c.matches(b"ac"));
    }
}
