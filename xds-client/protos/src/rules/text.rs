//! Strings and bytes: their length, their parts, and the well-known forms a string may have to have.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::OnceLock;

use regex::bytes::Regex;

use super::bounds::list;

/// Rules of a string or of bytes; what both have is checked alike.
#[derive(Default)]
pub(super) struct Text {
    pub(super) constant: Option<Vec<u8>>,
    pub(super) allowed: Vec<Vec<u8>>,
    pub(super) banned: Vec<Vec<u8>>,
    /// In code points, which bytes have none of.
    pub(super) characters: Length,
    pub(super) bytes: Length,
    pub(super) prefix: Option<Vec<u8>>,
    pub(super) suffix: Option<Vec<u8>>,
    pub(super) contains: Option<Vec<u8>>,
    pub(super) not_contains: Option<Vec<u8>>,
    pub(super) pattern: Option<Pattern>,
    pub(super) form: Option<Form>,
    pub(super) ignore_empty: bool,
    /// Bytes, which are written in hexadecimal.
    pub(super) binary: bool,
}

/// Least and most, both included; the same twice is exactly that many.
#[derive(Clone, Copy, Default)]
pub(super) struct Length {
    pub(super) min: Option<u64>,
    pub(super) max: Option<u64>,
}

/// An expression that the whole value must match (RE2's `FullMatch`).
pub(super) struct Pattern {
    text: String,
    matcher: Matcher,
}

/// The three expressions behind `well_known_regex` are on almost every header and are loops; others are compiled when
/// a value first meets them.
enum Matcher {
    HeaderString,
    HeaderName,
    HeaderValue,
    Regex(OnceLock<Option<Regex>>),
}

/// What a string may have to be, and what is said when it is not.
#[derive(Clone, Copy)]
pub(super) enum Form {
    Email,
    Hostname,
    Ip,
    Ipv4,
    Ipv6,
    /// Bytes of an address' length.
    PackedIp(Option<usize>),
    Uri,
    UriRef,
    Address,
    Uuid,
}

impl Text {
    /// What is wrong with the value.
    pub(super) fn fault(&self, value: &[u8]) -> Option<String> {
        let show = |bytes: &Vec<u8>| if self.binary { hexadecimal(bytes) } else { quoted(bytes) };
        if self.ignore_empty && value.is_empty() {
            return None;
        }
        if let Some(constant) = self.constant.as_ref().filter(|constant| *constant != value) {
            return Some(format!("value must equal {}", show(constant)));
        }
        let plain = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        if !self.allowed.is_empty() && !self.allowed.iter().any(|allowed| allowed == value) {
            return Some(format!("value must be in list {}", list(&self.allowed, plain)));
        }
        if self.banned.iter().any(|banned| banned == value) {
            return Some(format!("value must not be in list {}", list(&self.banned, plain)));
        }
        self.length(value).or_else(|| self.parts(value, show)).or_else(|| {
            let form = self.form.filter(|form| !form.fits(value))?;
            Some(form.expectation().to_owned())
        })
    }

    fn length(&self, value: &[u8]) -> Option<String> {
        let Length { min, max } = self.characters;
        if min.is_some() || max.is_some() {
            // Code points: bytes that do not continue one.
            let count = value.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u64;
            let reason = match (min, max) {
                (Some(min), Some(max)) if min == max => {
                    (count != min).then(|| format!("value must be {min} characters"))
                }
                (Some(min), Some(max)) => (count < min || count > max)
                    .then(|| format!("value must have between {min} and {max} characters inclusive")),
                (Some(min), None) => (count < min).then(|| format!("value length must be at least {min} characters")),
                (None, max) => {
                    max.filter(|max| count > *max).map(|max| format!("value length must be at most {max} characters"))
                }
            };
            if reason.is_some() {
                return reason;
            }
        }
        let (Length { min, max }, count) = (self.bytes, value.len() as u64);
        match (min, max) {
            (Some(min), Some(max)) if min == max => (count != min).then(|| format!("value length must be {min} bytes")),
            (Some(min), Some(max)) => (count < min || count > max)
                .then(|| format!("value length must be between {min} and {max} bytes, inclusive")),
            (Some(min), None) => (count < min).then(|| format!("value length must be at least {min} bytes")),
            (None, max) => {
                max.filter(|max| count > *max).map(|max| format!("value length must be at most {max} bytes"))
            }
        }
    }

    fn parts(&self, value: &[u8], show: impl Fn(&Vec<u8>) -> String) -> Option<String> {
        if let Some(prefix) = self.prefix.as_ref().filter(|prefix| !value.starts_with(prefix)) {
            return Some(format!("value does not have prefix {}", show(prefix)));
        }
        if let Some(suffix) = self.suffix.as_ref().filter(|suffix| !value.ends_with(suffix)) {
            return Some(format!("value does not have suffix {}", show(suffix)));
        }
        if let Some(part) = self.contains.as_ref().filter(|part| !contains(value, part)) {
            return Some(format!("value does not contain substring {}", show(part)));
        }
        if let Some(part) = self.not_contains.as_ref().filter(|part| contains(value, part)) {
            return Some(format!("value contains substring {}", show(part)));
        }
        let pattern = self.pattern.as_ref().filter(|pattern| !pattern.matches(value))?;
        Some(format!("value does not match regex pattern {}", quoted(pattern.text.as_bytes())))
    }
}

fn contains(value: &[u8], part: &[u8]) -> bool {
    part.is_empty() || value.windows(part.len()).any(|window| window == part)
}

impl Pattern {
    /// `HTTP_HEADER_NAME` or `HTTP_HEADER_VALUE`; what is not strict keeps only line ends and zero bytes out.
    pub(super) fn header(name: bool, strict: bool) -> Pattern {
        let (text, matcher) = match (strict, name) {
            (false, _) => ("^[^\0\n\r]*$", Matcher::HeaderString),
            (true, true) => ("^:?[0-9a-zA-Z!#$%&'*+-.^_|~`]+$", Matcher::HeaderName),
            (true, false) => ("^[^\0-\u{8}\n-\u{1f}\u{7f}]*$", Matcher::HeaderValue),
        };
        Pattern { text: text.to_owned(), matcher }
    }

    pub(super) fn new(text: &str) -> Pattern {
        Pattern { text: text.to_owned(), matcher: Matcher::Regex(OnceLock::new()) }
    }

    /// An expression that does not compile matches everything; a test sees to it that the API has none.
    fn matches(&self, value: &[u8]) -> bool {
        match &self.matcher {
            Matcher::HeaderString => !value.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')),
            Matcher::HeaderName => {
                let name = value.strip_prefix(b":").unwrap_or(value);
                // `+-.` in the expression is a range: it lets the comma in.
                let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(byte);
                !name.is_empty() && name.iter().all(allowed)
            }
            Matcher::HeaderValue => value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..)),
            Matcher::Regex(regex) => {
                let compile = || Regex::new(&format!(r"\A(?:{})\z", self.text)).ok();
                regex.get_or_init(compile).as_ref().is_none_or(|regex| regex.is_match(value))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn compiles(&self) -> bool {
        self.matches(b"");
        !matches!(&self.matcher, Matcher::Regex(regex) if regex.get().is_none_or(Option::is_none))
    }
}

impl Form {
    fn fits(self, value: &[u8]) -> bool {
        if let Form::PackedIp(length) = self {
            return length.map_or(matches!(value.len(), 4 | 16), |length| value.len() == length);
        }
        let Ok(text) = std::str::from_utf8(value) else { return false };
        match self {
            Form::Ipv4 => Ipv4Addr::from_str(text).is_ok(),
            Form::Ipv6 => Ipv6Addr::from_str(text).is_ok(),
            Form::Ip | Form::PackedIp(_) => is_ip(text),
            Form::Hostname => is_hostname(text),
            Form::Address => is_hostname(text) || is_ip(text),
            Form::Email => match text.rsplit_once('@') {
                Some((local, host)) => text.len() <= 254 && is_local_part(local) && is_hostname(host),
                None => false,
            },
            Form::Uri => is_uri_reference(text) && scheme(text).is_some(),
            Form::UriRef => is_uri_reference(text),
            Form::Uuid => {
                let place = |(at, byte): (usize, u8)| match at {
                    8 | 13 | 18 | 23 => byte == b'-',
                    _ => byte.is_ascii_hexdigit(),
                };
                text.len() == 36 && text.bytes().enumerate().all(place)
            }
        }
    }

    fn expectation(self) -> &'static str {
        match self {
            Form::Email => "value must be a valid email address",
            Form::Hostname => "value must be a valid hostname",
            Form::Ip => "value must be a valid IP Address",
            Form::Ipv4 => "value must be a valid IPv4 Address",
            Form::Ipv6 => "value must be a valid IPv6 Address",
            Form::PackedIp(None) => "value must be a valid IP address",
            Form::PackedIp(Some(4)) => "value must be a valid IPv4 address",
            Form::PackedIp(Some(_)) => "value must be a valid IPv6 address",
            Form::Uri => "value must be absolute",
            Form::UriRef => "value must be a valid URI",
            Form::Address => "value must be an ip address, or a hostname.",
            Form::Uuid => "value must be a valid UUID",
        }
    }
}

fn is_ip(text: &str) -> bool {
    Ipv4Addr::from_str(text).is_ok() || Ipv6Addr::from_str(text).is_ok()
}

/// RFC 1034's labels, in letters of either case; one dot may end it.
fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// What stands before the `@`: RFC 5322's dot-atom, or a quoted string.
fn is_local_part(local: &str) -> bool {
    let atom = |atom: &str| {
        !atom.is_empty()
            && atom.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii())
    };
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    (1..=64).contains(&local.len()) && (quoted || local.split('.').all(atom))
}

/// RFC 3986, section 3.1.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let mut bytes = scheme.bytes();
    (bytes.next()?.is_ascii_alphabetic() && bytes.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)))
        .then_some(scheme)
}

/// The characters of RFC 3986, with whole escapes, and no colon in a first segment that is no scheme.
fn is_uri_reference(text: &str) -> bool {
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                if !(0..2).all(|_| rest.next().is_some_and(|digit| digit.is_ascii_hexdigit())) {
                    return false;
                }
            }
            b'!' | b'#'..=b';' | b'=' | b'?'..=b'[' | b']' | b'_' | b'a'..=b'z' | b'~' => {}
            _ => return false,
        }
    }
    let first = text.split(['/', '?', '#']).next().unwrap_or("");
    !first.contains(':') || scheme(text).is_some()
}

/// A string as Go quotes it.
fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn hexadecimal(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.iter().map(|byte| format!("\\x{byte:x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let long = "a".repeat(64);
        for (form, good, bad) in [
            (Form::Hostname, &["a", "a-b.C1.", "1"][..], &["", ".", "a..b", "-a", "a-", "a_b", &long, "a.."][..]),
            (Form::Address, &["a.b", "::1", "1.2.3.4"], &["", "1.2.3.4:5", "[::1]", "a b"]),
            (Form::Ip, &["::", "0.0.0.0"], &["1.2.3", "::g", "a"]),
            (Form::Ipv4, &["1.2.3.4"], &["::1", "01.2.3.4", "256.0.0.1"]),
            (Form::Ipv6, &["::1", "::ffff:1.2.3.4"], &["1.2.3.4", "::1%eth0"]),
            (Form::Uuid, &["12345678-1234-abcd-ABCD-123456789abc"], &["12345678-1234-abcd-ABCD-123456789abg", "1"]),
            (Form::Email, &["a@b.c", "a.b+c@d", "\"a b\"@c"], &["a", "@b", "a@", "a@b_c", "a..b@c", "a b@c"]),
            (Form::Uri, &["http://a/b?c#d", "spiffe://a", "a:"], &["/a", "", "a b:c", "1a:b", "a:%4"]),
            (Form::UriRef, &["/a", "", "?x", "a/b:c", "http://[::1]/%41"], &["a b", "%zz", "1:b", "\u{e4}"]),
            (Form::PackedIp(None), &["1234", "1234567890abcdef"], &["", "12345"]),
            (Form::PackedIp(Some(4)), &["1234"], &["1234567890abcdef"]),
        ] {
            for text in good {
                assert!(form.fits(text.as_bytes()), "{}: {text}", form.expectation());
            }
            for text in bad {
                assert!(!form.fits(text.as_bytes()), "{}: {text}", form.expectation());
            }
        }
    }

    #[test]
    fn parts_and_lengths() {
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        let exactly = |count| Length { min: Some(count), max: Some(count) };
        for (text, good, bad, reason) in [
            (Text { constant: bytes("a"), ..Text::default() }, "a", "b", "value must equal \"a\""),
            (
                Text { allowed: vec![b"a".into(), b"b".into()], ..Text::default() },
                "b",
                "c",
                "value must be in list [a b]",
            ),
            (Text { banned: vec![b"a".into()], ..Text::default() }, "b", "a", "value must not be in list [a]"),
            (Text { characters: exactly(2), ..Text::default() }, "\u{e4}b", "abc", "value must be 2 characters"),
            (Text { bytes: exactly(2), ..Text::default() }, "ab", "\u{e4}b", "value length must be 2 bytes"),
            (Text { suffix: bytes("%"), ..Text::default() }, "a%", "a", "value does not have suffix \"%\""),
            (Text { contains: bytes("ab"), ..Text::default() }, "xaby", "a", "value does not contain substring \"ab\""),
            (Text { not_contains: bytes("\t"), ..Text::default() }, "a", "\t", "value contains substring \"\\t\""),
            (
                Text { prefix: bytes("a"), binary: true, ..Text::default() },
                "ab",
                "b",
                "value does not have prefix \"\\x61\"",
            ),
            (
                Text { pattern: Some(Pattern::new("a|b")), ..Text::default() },
                "b",
                "ab",
                "value does not match regex pattern \"a|b\"",
            ),
            (
                Text { pattern: Some(Pattern::header(false, true)), ..Text::default() },
                "a\t\u{e4}",
                "\u{7f}",
                "value does not match regex pattern \"^[^\\x00-\\b\\n-\\x1f\\x7f]*$\"",
            ),
        ] {
            assert_eq!(text.fault(good.as_bytes()), None);
            assert_eq!(text.fault(bad.as_bytes()).as_deref(), Some(reason));
        }
        let text = Text { ignore_empty: true, characters: exactly(2), ..Text::default() };
        assert_eq!(text.fault(b""), None);
    }
}
