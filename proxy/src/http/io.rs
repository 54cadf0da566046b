//! The connection's bytes on their way to hyper: counted, and with what was read to tell the protocol put back.

use crate::net::Transport;
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What every HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of one connection so far. Only its own thread writes, so plain loads and stores do.
#[derive(Default)]
pub(super) struct Wire {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Wire {
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn add(cell: &AtomicU64, n: usize) {
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n as u64), Ordering::Relaxed);
    }
}

/// A transport that counts and first gives back what was read ahead.
pub(super) struct Io {
    transport: Transport,
    ahead: Bytes,
    wire: Arc<Wire>,
}

impl Io {
    pub fn new(transport: Transport, wire: Arc<Wire>) -> Io {
        Io { transport, ahead: Bytes::new(), wire }
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

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        if me.ahead.is_empty() {
            std::task::ready!(Pin::new(&mut me.transport).poll_read(cx, buf))?;
        } else {
            let n = me.ahead.len().min(buf.remaining());
            buf.put_slice(&me.ahead[..n]);
            me.ahead.advance(n);
        }
        Wire::add(&me.wire.received, buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let n = std::task::ready!(Pin::new(&mut me.transport).poll_write(cx, buf))?;
        Wire::add(&me.wire.sent, n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}
