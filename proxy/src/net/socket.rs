//! The byte streams a connection can run over, as one type that is read and written without boxing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A plain stream socket.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection's transport: a plain socket, or TLS over one.
#[derive(Debug)]
pub enum Transport {
    Plain(Socket),
    ServerTls(Box<tokio_rustls::server::TlsStream<Socket>>),
    ClientTls(Box<tokio_rustls::client::TlsStream<Socket>>),
}

impl Transport {
    /// The socket underneath.
    pub fn socket(&self) -> &Socket {
        match self {
            Transport::Plain(s) => s,
            Transport::ServerTls(s) => s.get_ref().0,
            Transport::ClientTls(s) => s.get_ref().0,
        }
    }
}

macro_rules! delegate {
    ($self:ident, $($variant:path => $inner:ident),+ ; $call:expr) => {
        match $self.get_mut() { $($variant($inner) => $call,)+ }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, Socket::Tcp => s, Socket::Unix => s; Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, Socket::Tcp => s, Socket::Unix => s; Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, Socket::Tcp => s, Socket::Unix => s; Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, Socket::Tcp => s, Socket::Unix => s; Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, Socket::Tcp => s, Socket::Unix => s; Pin::new(s).poll_shutdown(cx))
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, Transport::Plain => s, Transport::ServerTls => s, Transport::ClientTls => s; Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, Transport::Plain => s, Transport::ServerTls => s, Transport::ClientTls => s; Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, Transport::Plain => s, Transport::ServerTls => s, Transport::ClientTls => s; Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, Transport::Plain => s, Transport::ServerTls => s, Transport::ClientTls => s; Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, Transport::Plain => s, Transport::ServerTls => s, Transport::ClientTls => s; Pin::new(s).poll_shutdown(cx))
    }
}
