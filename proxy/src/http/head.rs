//! What a request's head says and hyper keeps to itself: hyper drops equal lengths, a length beside chunks and the fragment of
//! a target before anyone sees them.
//!
//! Heads are looked at as they arrive on a connection that is not serving a request. Of requests that were pipelined in one
//! read only the first is: hyper frames the others anew, so no endpoint sees their ambiguity either.

/// The longest beginning of a line that matters; of longer lines the rest is skipped.
const LINE: usize = 64;

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// `content-length` more than once.
    Lengths,
    /// `content-length` beside `transfer-encoding`.
    LengthAndCoding,
    /// A `transfer-encoding` that is not just `chunked`.
    Coding,
    /// A `#` in the request line.
    Fragment,
}

impl Flaw {
    /// 0: there is none.
    pub fn code(found: Option<Flaw>) -> u8 {
        found.map_or(0, |found| found as u8 + 1)
    }

    pub fn from_code(code: u8) -> Option<Flaw> {
        let all = [Flaw::Lengths, Flaw::LengthAndCoding, Flaw::Coding, Flaw::Fragment];
        all.into_iter().find(|flaw| Flaw::code(Some(*flaw)) == code)
    }
}

/// One head, line by line.
#[derive(Default)]
pub(super) struct Head {
    /// A line whose end has not arrived.
    begun: Vec<u8>,
    request_line: bool,
    ended: bool,
    lengths: u32,
    codings: u32,
    unknown_coding: bool,
    fragment: bool,
}

impl Head {
    /// Takes the next bytes; the first after the end of a head begin another one.
    pub fn read(&mut self, bytes: &[u8]) {
        if self.ended {
            *self = Head { begun: std::mem::take(&mut self.begun), ..Head::default() };
        }
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = bytes.get(from..end).unwrap_or_default();
            from = end + 1;
            if self.begun.is_empty() {
                self.line(line);
            } else {
                self.begin(line);
                let whole = std::mem::take(&mut self.begun);
                self.line(&whole);
            }
            if self.ended {
                return;
            }
        }
        self.begin(bytes.get(from..).unwrap_or_default());
    }

    pub fn flaw(&self) -> Option<Flaw> {
        match (self.lengths, self.codings) {
            (2.., _) => Some(Flaw::Lengths),
            (1, 1..) => Some(Flaw::LengthAndCoding),
            (0, 2..) => Some(Flaw::Coding),
            _ if self.unknown_coding => Some(Flaw::Coding),
            _ => self.fragment.then_some(Flaw::Fragment),
        }
    }

    fn begin(&mut self, part: &[u8]) {
        let room = LINE.saturating_sub(self.begun.len());
        self.begun.extend_from_slice(part.get(..room).unwrap_or(part));
    }

    fn line(&mut self, line: &[u8]) {
        match line {
            // empty lines may come before a request, one ends it
            [] | [b'\r'] => self.ended = self.request_line,
            _ if !self.request_line => {
                self.request_line = true;
                self.fragment = memchr::memchr(b'#', line).is_some();
            }
            [b'c' | b'C', ..] if value(line, b"content-length:").is_some() => {
                self.lengths = self.lengths.saturating_add(1)
            }
            [b't' | b'T', ..] => {
                if let Some(coding) = value(line, b"transfer-encoding:") {
                    self.codings = self.codings.saturating_add(1);
                    self.unknown_coding |= !coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
                }
            }
            _ => {}
        }
    }
}

/// What follows the name and its colon.
fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (begin, value) = line.split_at_checked(name.len())?;
    begin.eq_ignore_ascii_case(name).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(headers: &str) -> Option<Flaw> {
        let text = format!("\r\nPOST / HTTP/1.1\r\nHost: a\r\n{headers}\r\ncontent-length: 1\r\n");
        let mut whole = Head::default();
        whole.read(text.as_bytes());
        let mut pieces = Head::default();
        for byte in text.bytes() {
            pieces.read(&[byte]);
            if pieces.ended {
                break;
            }
        }
        assert_eq!(whole.flaw(), pieces.flaw(), "{headers:?}");
        whole.flaw()
    }

    #[test]
    fn a_length_may_be_said_once() {
        for good in [
            "",
            "content-length: 3\r\n",
            "Transfer-Encoding:Chunked \r\n",
            "x: content-length: 1\r\ncontent-length: 3\r\n",
        ] {
            assert_eq!(judge(good), None, "{good:?}");
        }
        assert_eq!(judge("content-length: 3\r\nContent-Length: 3\r\n"), Some(Flaw::Lengths));
        assert_eq!(judge("transfer-encoding: chunked\ncontent-length: 3\n"), Some(Flaw::LengthAndCoding));
        for coding in ["identity", "", "gzip, chunked", "xchunked", "chunked\r\ntransfer-encoding: chunked"] {
            assert_eq!(judge(&format!("transfer-encoding: {coding}\r\n")), Some(Flaw::Coding), "{coding:?}");
        }
    }

    #[test]
    fn the_next_head_is_judged_for_itself() {
        let mut head = Head::default();
        head.read(b"GET / HTTP/1.1\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(head.flaw(), Some(Flaw::Lengths));
        head.read(b"GET /#x HTTP/1.1\r\n\r\n");
        assert_eq!(head.flaw(), Some(Flaw::Fragment));
        head.read(b"GET / HTTP/1.1\r\nvery-long: ");
        head.read(&[b'x'; 1000]);
        assert_eq!((head.flaw(), head.begun.len()), (None, LINE));
        head.read(b"\r\ncontent-length: 0\r\n\r\n");
        assert_eq!((head.flaw(), head.begun.len()), (None, 0));
    }
}
