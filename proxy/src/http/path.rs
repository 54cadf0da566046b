//! Path rules of the connection manager: escaped slashes, normalisation, merged slashes. The query is never touched.

use crate::config::model::{EscapedSlashes, HcmConfig};

/// What the rules make of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing to change.
    Keep,
    Change(Vec<u8>),
    /// The client is to come back with this path.
    Redirect(Vec<u8>),
    Reject,
}

/// Applies the configured rules to a path with its query.
pub(super) fn apply(path: &[u8], config: &HcmConfig) -> Outcome {
    let slashes = config.escaped_slashes;
    if !(config.normalize_path || config.merge_slashes || slashes != EscapedSlashes::Keep) || is_plain(path) {
        return Outcome::Keep;
    }
    let (bare, query) = path.split_at(path.iter().position(|b| *b == b'?').unwrap_or(path.len()));
    let mut out = bare.to_vec();
    let mut redirect = false;
    if slashes != EscapedSlashes::Keep {
        let unescaped = unescape_slashes(&out);
        if unescaped.len() != out.len() {
            match slashes {
                EscapedSlashes::Reject => return Outcome::Reject,
                EscapedSlashes::UnescapeAndRedirect => redirect = true,
                EscapedSlashes::UnescapeAndForward | EscapedSlashes::Keep => {}
            }
            out = unescaped;
        }
    }
    if config.normalize_path {
        match normalize(&out) {
            Some(path) => out = path,
            None => return Outcome::Reject,
        }
    }
    if config.merge_slashes {
        out.dedup_by(|a, b| *a == b'/' && *b == b'/');
    }
    if out == bare {
        return Outcome::Keep;
    }
    out.extend_from_slice(query);
    if redirect { Outcome::Redirect(out) } else { Outcome::Change(out) }
}

/// A path that no rule changes: letters, digits and a few marks, no dot segment, no double slash.
fn is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    for b in path {
        match b {
            b'?' => return true,
            b'/' | b'.' if previous == b'/' => return false,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' | b'=' | b'&' | b',' | b'+' => {}
            _ => return false,
        }
        previous = *b;
    }
    true
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

/// The byte of a `%xx` at the start of `bytes`.
fn escape(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', a, b, ..] => Some(hex(*a)? << 4 | hex(*b)?),
        _ => None,
    }
}

fn unescape_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        match escape(rest) {
            Some(slash @ (b'/' | b'\\')) => {
                out.push(slash);
                rest = &rest[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Canonical form (RFC 3986, 6.2.2, with the additions of the WHATWG URL standard that Envoy has): backslashes are slashes,
/// escapes of unreserved characters are decoded, unsafe characters escaped, dot segments removed together with their
/// parameters. `None`: an escaped NUL, or a path that climbs out of its root by more than its depth is fine and stays `/`.
fn normalize(path: &[u8]) -> Option<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len() + 8);
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        match escape(rest) {
            Some(0) => return None,
            Some(c) if c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~') => {
                clean.push(c);
                rest = &rest[3..];
                continue;
            }
            _ => {}
        }
        match first {
            b'\\' => clean.push(b'/'),
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b' ' | 0x7f..=0xff => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                clean.extend([b'%', DIGITS[usize::from(first >> 4)], DIGITS[usize::from(first & 15)]]);
            }
            0..=0x1f => return None,
            c => clean.push(*c),
        }
        rest = tail;
    }
    let body = clean.strip_prefix(b"/")?;
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_open = false;
    for segment in body.split(|b| *b == b'/') {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        ends_open = match name {
            b"." => true,
            b".." => {
                segments.pop();
                true
            }
            _ => {
                segments.push(segment);
                false
            }
        };
    }
    let mut out = Vec::with_capacity(clean.len());
    for segment in &segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if ends_open || out.is_empty() {
        out.push(b'/');
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(path: &str) -> Option<String> {
        normalize(path.as_bytes()).map(|p| String::from_utf8(p).unwrap())
    }

    #[test]
    fn dot_segments_go_with_their_parameters() {
        for (from, to) in [
            ("/a/../x", "/x"),
            ("/a/%2e%2e/x", "/x"),
            ("/a/./b", "/a/b"),
            ("/a;x/..;/echo", "/echo"),
            ("/../../x", "/x"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("\\a\\b", "/a/b"),
            ("/", "/"),
            ("/a//b", "/a//b"),
        ] {
            assert_eq!(norm(from).as_deref(), Some(to), "{from}");
        }
    }

    #[test]
    fn escapes_take_their_canonical_form() {
        for (from, to) in
            [("/%7e%41", "/~A"), ("/%zz", "/%zz"), ("/\"<>", "/%22%3C%3E"), ("/%2f", "/%2f"), ("/%", "/%")]
        {
            assert_eq!(norm(from).as_deref(), Some(to), "{from}");
        }
        assert_eq!(norm("/a%00"), None);
    }

    #[test]
    fn escaped_slashes_are_found_in_either_case() {
        assert_eq!(unescape_slashes(b"/a%2Fb%5cc%2"), b"/a/b\\c%2");
    }

    #[test]
    fn plain_paths_are_recognised() {
        assert!(is_plain(b"/a/b.c?x=//../%") && is_plain(b"/"));
        assert!(!is_plain(b"/a//b") && !is_plain(b"/a/../b") && !is_plain(b"/%41") && !is_plain(b"/.a"));
    }
}
