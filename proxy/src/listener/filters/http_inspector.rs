//! `envoy.filters.listener.http_inspector`: tells HTTP/1 and HTTP/2 from anything else by the first bytes.
//!
//! Leans to an early "no": a client of another protocol may be waiting for an answer while we wait for bytes.

use super::Verdict;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The methods HTTP parsers know; a first line that starts with none of them is not HTTP.
const METHODS: [&[u8]; 33] = [
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"COPY",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"M-SEARCH",
    b"NOTIFY",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
];

/// A first line longer than this is not waited for.
const MAX_LINE: usize = 8 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Http {
    V1_0,
    V1_1,
    V2,
    No,
}

impl Http {
    /// The application protocol that filter chains match on.
    pub fn protocol(self) -> Option<&'static str> {
        match self {
            Http::V1_0 => Some("http/1.0"),
            Http::V1_1 => Some("http/1.1"),
            Http::V2 => Some("h2c"),
            Http::No => None,
        }
    }
}

/// Judges the bytes received so far.
pub(super) fn inspect(bytes: &[u8]) -> Verdict<Http> {
    let start = PREFACE.len().min(bytes.len());
    if bytes[..start] == PREFACE[..start] {
        return if start == PREFACE.len() { Verdict::Done(Http::V2) } else { Verdict::More };
    }
    let possible = METHODS.iter().any(|method| {
        let known = method.len().min(bytes.len());
        bytes[..known] == method[..known] && bytes.get(method.len()).is_none_or(|b| *b == b' ')
    });
    if !possible {
        return Verdict::Done(Http::No);
    }
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        return if bytes.len() > MAX_LINE || bytes.contains(&0) { Verdict::Done(Http::No) } else { Verdict::More };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let mut words = line.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let version = words.nth(2).filter(|_| words.next().is_none());
    Verdict::Done(match version {
        Some(b"HTTP/1.1") => Http::V1_1,
        Some(b"HTTP/1.0") => Http::V1_0,
        _ => Http::No,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(bytes: &[u8]) -> Option<Http> {
        match inspect(bytes) {
            Verdict::Done(http) => Some(http),
            Verdict::More => None,
        }
    }

    #[test]
    fn http_is_known_by_its_first_line() {
        let line = b"GET /a?b HTTP/1.1\r\n";
        for cut in 0..line.len() {
            assert_eq!(verdict(&line[..cut]), None, "at {cut}");
        }
        assert_eq!(verdict(line), Some(Http::V1_1));
        assert_eq!(verdict(b"POST / HTTP/1.0\nhost: a"), Some(Http::V1_0));
        assert_eq!(verdict(PREFACE), Some(Http::V2));
        assert_eq!(verdict(&PREFACE[..5]), None);
        assert_eq!(verdict(b"PR"), None);
        assert_eq!(verdict(b"PROPFIND / HTTP/1.1\r\n"), Some(Http::V1_1));
    }

    #[test]
    fn anything_else_is_refused_without_waiting() {
        for bytes in [
            &b"PING\r\n"[..],
            b"get foo\r\n",
            b"SSH-2",
            b"\0\0",
            b"GETX",
            b"GET /\r\n",
            b"GET / HTTP/2.0\r\n",
            b"GET a b HTTP/1.1\n",
        ] {
            assert_eq!(verdict(bytes), Some(Http::No), "{bytes:?}");
        }
        assert_eq!(verdict(&[b"GET /".as_slice(), &[b'a'; MAX_LINE]].concat()), Some(Http::No));
    }
}
