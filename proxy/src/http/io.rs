//! The connection's bytes on their way to hyper and back: counted, with what was read to tell the protocol put back, and with
//! hyper's own error responses put into Envoy's words.

use super::alarm::Gate;
use super::head::{Flaw, Head};
use super::linger::{Ended, Linger};
use crate::net::Transport;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::HeaderValue;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What every HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What no request head may hold: given to the codec when a head takes too long, so that it refuses it.
const POISON: &[u8] = b"\0\r\n\r\n";

/// What the connection and its bytes tell each other. Only the connection's own thread writes, so plain loads and stores do.
#[derive(Default)]
pub(super) struct Wire {
    received: AtomicU64,
    sent: AtomicU64,
    /// A request is being served: what is read is not the begin of a head, what is written is its response.
    pub busy: AtomicBool,
    /// Told when a head begins; unset when nobody waits for that.
    pub on_head: OnceLock<Arc<Gate>>,
    pub head_begun: AtomicBool,
    head_late: AtomicBool,
    reader: AtomicWaker,
    /// `server` of responses that the codec makes itself.
    pub server: OnceLock<HeaderValue>,
    /// See [`Flaw::code`].
    flaw: AtomicU8,
    /// Status of the last response that was the codec's own; 0: there was none.
    pub refused: AtomicU16,
    /// The connection ends after a response and by our will: the client may not know yet and still be sending.
    pub last_word: AtomicBool,
    /// How long such a client is listened to; unset: not at all.
    pub delayed_close: OnceLock<Duration>,
    /// It did not close in that time.
    pub closed_late: AtomicBool,
}

impl Wire {
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Makes the codec refuse the head that it is reading.
    pub fn refuse_head(&self) {
        self.refused.store(408, Ordering::Relaxed);
        self.head_late.store(true, Ordering::Relaxed);
        self.reader.wake();
    }

    /// What is wrong with the head that arrived last.
    pub fn flaw(&self) -> Option<Flaw> {
        Flaw::from_code(self.flaw.load(Ordering::Relaxed))
    }

    fn flag(cell: &AtomicBool) -> bool {
        cell.load(Ordering::Relaxed)
    }

    fn add(cell: &AtomicU64, n: usize) {
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n as u64), Ordering::Relaxed);
    }
}

/// A transport that counts and first gives back what was read ahead.
pub(super) struct Io {
    transport: Transport,
    ahead: Bytes,
    /// A response in place of the codec's own, as far as it is not yet written.
    instead: Bytes,
    /// The head that is arriving; none on HTTP/2.
    head: Option<Head>,
    /// Set once the write side is shut down, when reading goes on.
    linger: Option<Linger>,
    wire: Arc<Wire>,
}

impl Io {
    pub fn new(transport: Transport, wire: Arc<Wire>) -> Io {
        Io { transport, ahead: Bytes::new(), instead: Bytes::new(), head: None, linger: None, wire }
    }

    /// Has the heads of HTTP/1 requests looked at.
    pub fn watch_heads(&mut self) {
        self.head = Some(Head::default());
    }

    /// Reads until it is clear whether the client speaks HTTP/2. A client that sends nothing more than a part of the preface
    /// is left waiting: the caller bounds the time.
    pub async fn is_http2(&mut self) -> io::Result<bool> {
        let mut ahead = BytesMut::with_capacity(PREFACE.len());
        let found = loop {
            let matching = ahead.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
            if matching < ahead.len() {
                break false;
            }
            if matching == PREFACE.len() {
                break true;
            }
            let left = PREFACE.len() - matching;
            if (&mut self.transport).take(left as u64).read_buf(&mut ahead).await? == 0 {
                break false;
            }
        };
        self.ahead = ahead.freeze();
        Ok(found)
    }
}

impl Io {
    fn in_our_words(&self, status: u16) -> Bytes {
        // a head that was refused because it was late
        let late =
            status == 400 && Wire::flag(&self.wire.head_begun) && self.wire.refused.load(Ordering::Relaxed) == 408;
        let status = match self.wire.flaw() {
            _ if late => 408,
            Some(Flaw::Coding) if status == 400 => 501,
            _ => status,
        };
        self.wire.refused.store(status, Ordering::Relaxed);
        let (line, body) = own_words(status);
        let date = httpdate();
        let server = match self.wire.server.get().and_then(|v| v.to_str().ok()) {
            Some(server) => format!("server: {server}\r\n"),
            None => String::new(),
        };
        Bytes::from(format!(
            "HTTP/1.1 {line}\r\ncontent-length: {}\r\ncontent-type: text/plain\r\n{date}{server}connection: close\r\n\r\n{body}",
            body.len()
        ))
    }

    fn write_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let n = std::task::ready!(Pin::new(&mut self.transport).poll_write(cx, &self.instead))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            Wire::add(&self.wire.sent, n);
            self.instead.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

/// Status line and body of a response in place of the codec's own.
pub(super) fn own_words(status: u16) -> (&'static str, &'static str) {
    match status {
        408 => ("408 Request Timeout", "request header timeout"),
        501 => ("501 Not Implemented", "Not Implemented"),
        431 => ("431 Request Header Fields Too Large", "Request Header Fields Too Large"),
        _ => ("400 Bad Request", "Bad Request"),
    }
}

/// The status of a response that the HTTP/1 codec made by itself: an error with no header but framing and date, and no body.
/// Responses of ours have at least one more header or come while a request is being served.
fn own_error(buf: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(buf.get(..200.min(buf.len()))?).ok()?;
    let rest = text.strip_prefix("HTTP/1.1 ")?;
    let status = match rest.get(..3)? {
        "400" => 400,
        "414" | "431" => 431,
        _ => return None,
    };
    let (_, headers) = rest.strip_suffix("\r\n\r\n")?.split_once("\r\n")?;
    let framing = |line: &str| line == "content-length: 0" || line == "connection: close" || line.starts_with("date: ");
    (text.len() == buf.len() && headers.split("\r\n").all(framing)).then_some(status)
}

/// A `date` line, if the clock can be read.
fn httpdate() -> String {
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let now = OffsetDateTime::now_utc();
    let day = DAYS.get(usize::from(now.weekday().number_days_from_monday())).unwrap_or(&"Mon");
    let month = MONTHS.get(usize::from(u8::from(now.month())) - 1).unwrap_or(&"Jan");
    let (h, m, s) = now.to_hms();
    format!("date: {day}, {:02} {month} {} {h:02}:{m:02}:{s:02} GMT\r\n", now.day(), now.year())
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        if Wire::flag(&me.wire.head_late) {
            me.wire.head_late.store(false, Ordering::Relaxed);
            buf.put_slice(&POISON[..POISON.len().min(buf.remaining())]);
            return Poll::Ready(Ok(()));
        }
        if me.ahead.is_empty() {
            let read = Pin::new(&mut me.transport).poll_read(cx, buf);
            if read.is_pending() && me.wire.on_head.get().is_some() {
                me.wire.reader.register(cx.waker());
            }
            std::task::ready!(read)?;
        } else {
            let n = me.ahead.len().min(buf.remaining());
            buf.put_slice(&me.ahead[..n]);
            me.ahead.advance(n);
        }
        let n = buf.filled().len() - before;
        Wire::add(&me.wire.received, n);
        if let Some(head) = &mut me.head
            && !Wire::flag(&me.wire.busy)
        {
            head.read(buf.filled().get(before..).unwrap_or_default());
            me.wire.flaw.store(Flaw::code(head.flaw()), Ordering::Relaxed);
        }
        if let Some(gate) = me.wire.on_head.get()
            && n > 0
            && !Wire::flag(&me.wire.busy)
            && !me.wire.head_begun.swap(true, Ordering::Relaxed)
        {
            gate.ring();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        if me.instead.is_empty()
            && !Wire::flag(&me.wire.busy)
            && let Some(status) = own_error(buf)
        {
            me.instead = me.in_our_words(status);
        }
        if !me.instead.is_empty() {
            std::task::ready!(me.write_instead(cx))?;
            return Poll::Ready(Ok(buf.len()));
        }
        let n = std::task::ready!(Pin::new(&mut me.transport).poll_write(cx, buf))?;
        Wire::add(&me.wire.sent, n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs {
            return self.poll_write(cx, only);
        }
        let me = self.get_mut();
        let n = std::task::ready!(Pin::new(&mut me.transport).poll_write_vectored(cx, bufs))?;
        Wire::add(&me.wire.sent, n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let linger = match &mut me.linger {
            Some(linger) => linger,
            none => {
                std::task::ready!(Pin::new(&mut me.transport).poll_shutdown(cx))?;
                let said = Wire::flag(&me.wire.last_word) || me.wire.refused.load(Ordering::Relaxed) != 0;
                let Some(limit) = me.wire.delayed_close.get().filter(|_| said) else { return Poll::Ready(Ok(())) };
                none.insert(Linger::new(*limit))
            }
        };
        let ended = std::task::ready!(linger.poll(&mut me.transport, cx));
        me.wire.closed_late.store(ended == Ended::TimedOut, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_codecs_bare_errors_are_its_own() {
        let bare = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        assert_eq!(own_error(bare), Some(400));
        assert_eq!(own_error(b"HTTP/1.1 414 URI Too Long\r\ncontent-length: 0\r\n\r\n"), Some(431));
        assert_eq!(own_error(b"HTTP/1.1 400 Bad Request\r\nserver: envoy\r\ncontent-length: 0\r\n\r\n"), None);
        assert_eq!(own_error(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nmore"), None);
        assert_eq!(own_error(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), None);
        assert_eq!(own_error(b"\xff\xfe"), None);
    }

    #[test]
    fn a_date_has_the_form_of_http() {
        let line = httpdate();
        assert_eq!(line.len(), "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n".len(), "{line}");
    }
}
