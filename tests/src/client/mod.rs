//! Clients: raw bytes, HTTP/1.1, HTTP/2, gRPC and upgraded connections, over plain TCP or TLS.
//!
//! One client is one connection, so that a test knows which connection a request took. They add nothing to a request
//! but what the protocol needs (`host`).

mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, TE, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub use tls::{ClientTls, server_chain, server_identities};
pub(crate) use tls::{parse_identity, parse_roots, provider};

/// How long any single step of a client may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What went wrong, in one line.
#[derive(Debug)]
pub enum Error {
    /// The connection could not be made, or broke (TLS included).
    Io(io::Error),
    /// HTTP went wrong.
    Http(hyper::Error),
    /// The step took longer than [`PATIENCE`].
    TimedOut,
    /// The answer is not what the protocol asks for.
    Unexpected(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "connection: {e}"),
            Self::Http(e) => match std::error::Error::source(e) {
                Some(source) => write!(f, "http: {e}: {source}"),
                None => write!(f, "http: {e}"),
            },
            Self::TimedOut => write!(f, "no answer within {PATIENCE:?}"),
            Self::Unexpected(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<hyper::Error> for Error {
    fn from(e: hyper::Error) -> Self {
        Self::Http(e)
    }
}

async fn patient<T, E: Into<Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Error::TimedOut),
    }
}

/// A byte stream to a server: a socket, or TLS over one.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where to connect, and how.
#[derive(Debug, Clone)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// TLS, or plain text.
    pub tls: Option<ClientTls>,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

impl Target {
    /// A TLS server.
    pub fn tls(address: SocketAddr, tls: ClientTls) -> Self {
        Self { address, tls: Some(tls) }
    }

    /// Connects, with the TLS handshake done.
    ///
    /// # Errors
    /// When the connection or the handshake fails. With TLS 1.3 a server that refuses our certificate is only heard
    /// at the first read.
    pub async fn connect(&self) -> Result<Box<dyn Io>, Error> {
        let stream = patient(TcpStream::connect(self.address)).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(patient(tls.handshake(stream)).await?),
        })
    }
}

/// Sends bytes, closes our side when `half_close`, and reads until the server closes.
///
/// # Errors
/// When the connection cannot be made, or nothing closes it within [`PATIENCE`]. A reset after some bytes came is no
/// error: it is how a server may close.
pub async fn raw(target: &Target, bytes: &[u8], half_close: bool) -> Result<Vec<u8>, Error> {
    let mut stream = target.connect().await?;
    let mut answer = Vec::new();
    patient(async {
        // A server may answer and close before it has read everything.
        let sent = stream.write_all(bytes).await;
        if half_close {
            let _ = stream.shutdown().await;
        }
        match stream.read_to_end(&mut answer).await {
            Ok(_) => Ok(()),
            Err(_) if !answer.is_empty() || sent.is_err() => Ok(()),
            Err(e) => Err(e),
        }
    })
    .await?;
    Ok(answer)
}

/// A response with its whole body.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers, if any came.
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    async fn read(response: Response<Incoming>) -> Result<Self, Error> {
        let (parts, body) = response.into_parts();
        let body = patient(body.collect()).await?;
        let trailers = body.trailers().cloned();
        Ok(Self { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
    }

    /// The body as text, lossy.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header as text; empty when missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Which version of the origin answered (`x-origin-version`); empty for a reply of the proxy itself.
    pub fn origin_version(&self) -> &str {
        self.header("x-origin-version")
    }
}

/// A GET for a path of an authority.
pub fn get(authority: &str, path: &str) -> Request<Bytes> {
    request(Method::GET, authority, path, Bytes::new())
}

/// Any request. `authority` becomes `:authority` or `host`.
///
/// # Panics
/// When authority and path do not make a URI.
pub fn request(method: Method, authority: &str, path: &str, body: Bytes) -> Request<Bytes> {
    let uri = format!("http://{authority}{path}");
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().unwrap_or_else(|e| panic!("'{uri}' is no URI: {e}"));
    request
}

/// An HTTP/1.1 connection.
pub struct H1Client(http1::SendRequest<Full<Bytes>>);

impl H1Client {
    /// Connects.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn connect(target: &Target) -> Result<Self, Error> {
        let io = TokioIo::new(target.connect().await?);
        let (send, connection) = patient(http1::handshake(io)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self(send))
    }

    /// Sends a request and reads the whole response. A URI with an authority goes out as path and `host` header, as
    /// clients of an origin send it.
    ///
    /// # Errors
    /// When the connection breaks or time is up.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Reply, Error> {
        Reply::read(self.send_streaming(request).await?).await
    }

    /// Sends a request; the body is the caller's to read.
    ///
    /// # Errors
    /// As [`H1Client::send`].
    pub async fn send_streaming(&mut self, mut request: Request<Bytes>) -> Result<Response<Incoming>, Error> {
        if let Some(authority) = request.uri().authority().cloned() {
            if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                request.headers_mut().entry(HOST).or_insert(host);
            }
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.map_or_else(|| http::Uri::from_static("/"), http::Uri::from);
        }
        patient(self.0.ready()).await?;
        patient(self.0.send_request(request.map(Full::new))).await
    }

    /// Whether the connection can take another request.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Waits until the server has closed the connection.
    ///
    /// # Errors
    /// When it is still open after [`PATIENCE`].
    pub async fn wait_closed(&mut self) -> Result<(), Error> {
        patient(async {
            while self.is_open() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, Error>(())
        })
        .await
    }

    /// Asks for an upgrade to `protocol` (`websocket` brings the headers RFC 6455 wants) and gives the byte stream.
    ///
    /// # Errors
    /// When the server does not answer 101.
    pub async fn upgrade(mut self, authority: &str, path: &str, protocol: &str) -> Result<Box<dyn Io>, Error> {
        let mut request = get(authority, path);
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let value = HeaderValue::from_str(protocol).map_err(|e| Error::Unexpected(e.to_string()))?;
        headers.insert(UPGRADE, value);
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        headers.insert("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        let mut response = self.send_streaming(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::Unexpected(format!("the upgrade was answered with {}", response.status())));
        }
        Ok(Box::new(TokioIo::new(patient(hyper::upgrade::on(&mut response)).await?)))
    }
}

/// An HTTP/2 connection; clones share it.
#[derive(Clone)]
pub struct H2Client(http2::SendRequest<Full<Bytes>>);

impl H2Client {
    /// Connects; without TLS by prior knowledge.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn connect(target: &Target) -> Result<Self, Error> {
        let io = TokioIo::new(target.connect().await?);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        let (send, connection) = patient(builder.handshake(io)).await?;
        tokio::spawn(connection);
        Ok(Self(send))
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// When the stream is reset, the connection breaks, or time is up.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Reply, Error> {
        patient(self.0.ready()).await?;
        Reply::read(patient(self.0.send_request(request.map(Full::new))).await?).await
    }

    /// Whether the connection can take another request.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Makes a unary gRPC call to `path` (`/package.Service/Method`) with one message.
    ///
    /// # Errors
    /// As [`H2Client::send`], or when the answer is no gRPC.
    pub async fn grpc(&mut self, authority: &str, path: &str, message: &[u8]) -> Result<GrpcReply, Error> {
        let mut body = BytesMut::with_capacity(5 + message.len());
        let length = u32::try_from(message.len()).map_err(|e| Error::Unexpected(e.to_string()))?;
        body.extend_from_slice(&[0]);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(message);
        let mut request = request(Method::POST, authority, path, body.freeze());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        GrpcReply::of(self.send(request).await?)
    }
}

/// The outcome of a unary gRPC call.
#[derive(Debug, Clone)]
pub struct GrpcReply {
    /// `grpc-status`, from the trailers or, in a trailers-only response, the headers.
    pub status: u32,
    /// `grpc-message`.
    pub message: String,
    /// The one message of the answer, if it came.
    pub answer: Option<Bytes>,
    /// The HTTP response.
    pub reply: Reply,
}

impl GrpcReply {
    fn of(reply: Reply) -> Result<Self, Error> {
        let find = |name: &str| {
            let trailer = reply.trailers.as_ref().and_then(|trailers| trailers.get(name));
            trailer.or_else(|| reply.headers.get(name)).and_then(|value| value.to_str().ok())
        };
        let status = find("grpc-status").and_then(|text| text.parse().ok());
        let status = status.ok_or_else(|| Error::Unexpected(format!("no grpc-status in {reply:?}")))?;
        let message = find("grpc-message").unwrap_or_default().to_owned();
        let answer = reply.body.get(5..).map(Bytes::copy_from_slice);
        Ok(Self { status, message, answer, reply })
    }
}

#[cfg(test)]
mod tests;
