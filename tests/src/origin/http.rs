//! The HTTP origin's connections and answers.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, TRAILER, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Behaviour, Open, Shared};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The first bytes of an HTTP/2 connection (RFC 9113 section 3.4); three tell it from any HTTP/1 method.
const H2_PREFACE_START: &[u8] = b"PRI";

/// Facts of one connection.
struct Connection {
    shared: Arc<Shared>,
    /// A second handle on the socket, for what HTTP has no word for.
    socket: OwnedFd,
    number: u64,
    peer: SocketAddr,
    local: SocketAddr,
    served: AtomicU64,
    tls: bool,
    _open: Open,
}

pub(super) async fn accept(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    local: SocketAddr,
) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, peer)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let Ok(socket) = stream.as_fd().try_clone_to_owned() else { continue };
        let (open, number) = Open::count(&shared);
        let shared = Arc::clone(&shared);
        let served = AtomicU64::new(0);
        let tls = tls.clone();
        let connection = Connection { shared, socket, number, peer, local, served, tls: tls.is_some(), _open: open };
        tokio::spawn(async move {
            // A client that goes away, or that we reset, is no error here.
            let _ = match tls {
                None => serve_plain(stream, connection).await,
                Some(config) => serve_tls(stream, config, connection).await,
            };
        });
    }
}

async fn serve_plain(stream: TcpStream, connection: Connection) -> Result<(), hyper::Error> {
    let mut start = [0; H2_PREFACE_START.len()];
    let h2 = loop {
        match stream.peek(&mut start).await {
            Ok(n) if n == start.len() => break start == H2_PREFACE_START,
            // Fewer bytes that could still become the preface: let the rest come. The pause is needed because peek
            // returns at once while bytes are there.
            Ok(n) if n > 0 && H2_PREFACE_START.starts_with(&start[..n]) => {
                tokio::time::sleep(Duration::from_millis(1)).await
            }
            Ok(n) if n > 0 => break false,
            _ => return Ok(()),
        }
    };
    serve(stream, h2, connection).await
}

async fn serve_tls(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    connection: Connection,
) -> Result<(), hyper::Error> {
    match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => {
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            serve(stream, h2, connection).await
        }
        Err(_) => Ok(()),
    }
}

async fn serve<I>(io: I, h2: bool, connection: Connection) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Arc::new(connection);
    let service = service_fn(move |request| answer(Arc::clone(&connection), request));
    let io = TokioIo::new(io);
    if h2 {
        let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.enable_connect_protocol().max_concurrent_streams(1000).timer(TokioTimer::new());
        server.serve_connection(io, service).await
    } else {
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).serve_connection(io, service).with_upgrades().await
    }
}

/// An error makes hyper close the connection (HTTP/1.1) or reset the stream (HTTP/2).
async fn answer(connection: Arc<Connection>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let shared = &connection.shared;
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let served = connection.served.fetch_add(1, Ordering::Relaxed) + 1;
    let content_type = request.headers().get(CONTENT_TYPE);
    if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        return Ok(grpc_echo(&shared.version, request));
    }
    if request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE) {
        return Ok(upgrade_echo(&shared.version, request));
    }
    let behaviour = shared.behaviour(request.uri().path());
    let h1 = request.version() < Version::HTTP_2;
    match behaviour {
        Behaviour::Delay(time) => tokio::time::sleep(time).await,
        Behaviour::Never => std::future::pending().await,
        Behaviour::Reset => return Err(connection.reset(h1)),
        Behaviour::Garbage => return Err(connection.write_garbage()),
        _ => {}
    }
    let mut response = match behaviour {
        Behaviour::Big(bytes) => Response::new(full(Bytes::from(vec![b'x'; bytes]))),
        Behaviour::Drip(chunks, pause) => Response::new(drip(chunks, pause)),
        Behaviour::ResetMidBody => reset_mid_body(&connection, h1),
        Behaviour::Trailers => with_trailers(&connection, request).await,
        _ => Response::new(full(connection.describe(request).await)),
    };
    if let Behaviour::Status(code) = behaviour {
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    }
    let headers = response.headers_mut();
    let limit = shared.close_after.load(Ordering::Relaxed);
    if h1 && (behaviour == Behaviour::Close || (limit > 0 && served >= limit)) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    headers.insert(VERSION_HEADER, version_value(&shared.version));
    Ok(response)
}

/// The response header that carries the origin's version.
const VERSION_HEADER: HeaderName = HeaderName::from_static("x-origin-version");

fn version_value(version: &str) -> HeaderValue {
    HeaderValue::from_str(version).unwrap_or(HeaderValue::from_static("unprintable"))
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

impl Connection {
    /// Resets the connection (HTTP/1.1; HTTP/2 only resets the stream, which the returned error does).
    fn reset(&self, h1: bool) -> io::Error {
        if h1 {
            // Closing a socket with a linger time of zero sends RST.
            let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        }
        io::Error::other("reset on demand")
    }

    /// Neither a status line nor a frame: read as a frame header it announces more bytes than any peer allows.
    fn write_garbage(&self) -> io::Error {
        let written = self.socket.try_clone().map(std::net::TcpStream::from);
        match written.and_then(|mut socket| socket.write_all(b"\xff\xff\xff\xff\x00garbage\r\n\r\nmore garbage\r\n")) {
            Ok(()) => io::Error::other("garbage on demand"),
            Err(e) => e,
        }
    }

    /// The request, and who got it, as JSON. A header that came several times is a list.
    async fn describe(&self, request: Request<Incoming>) -> Bytes {
        let (parts, body) = request.into_parts();
        let mut headers = Map::new();
        for name in parts.headers.keys() {
            let values = parts.headers.get_all(name).iter();
            let mut values: Vec<Value> = values.map(|v| String::from_utf8_lossy(v.as_bytes()).into()).collect();
            let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
            headers.insert(name.to_string(), value);
        }
        let body_bytes = match body.collect().await {
            Ok(body) => body.to_bytes().len().into(),
            Err(e) => Value::from(e.to_string()),
        };
        let text = json!({
            "version": self.shared.version,
            "origin": self.local.to_string(),
            "peer": self.peer.to_string(),
            "connection": self.number,
            "tls": self.tls,
            "protocol": format!("{:?}", parts.version),
            "method": parts.method.as_str(),
            "authority": parts.uri.authority().map(http::uri::Authority::as_str),
            "path": parts.uri.path_and_query().map(http::uri::PathAndQuery::as_str),
            "headers": headers,
            "body_bytes": body_bytes,
        });
        text.to_string().into()
    }
}

async fn with_trailers(connection: &Connection, request: Request<Incoming>) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-trailer", version_value(&connection.shared.version));
    let text = connection.describe(request).await;
    let frames = [Ok(Frame::data(text)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
    // HTTP/1.1 sends only the trailers that were announced.
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-trailer"));
    response
}

fn drip(chunks: usize, pause: Duration) -> Body {
    let frames = futures_util::stream::iter(0..chunks).then(move |_| async move {
        tokio::time::sleep(pause).await;
        Ok(Frame::data(Bytes::from_static(b".")))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn reset_mid_body(connection: &Arc<Connection>, h1: bool) -> Response<Body> {
    let connection = Arc::clone(connection);
    let half = futures_util::stream::once(async { Ok(Frame::data(Bytes::from_static(&[b'x'; 1000]))) });
    let end = futures_util::stream::once(async move {
        // Let the first half leave: an error at once would take the headers with it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(connection.reset(h1))
    });
    let mut response = Response::new(StreamBody::new(half.chain(end)).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("2000"));
    response
}

/// Echoes the messages of a gRPC call as they come, unary or streaming: their framing passes through untouched.
fn grpc_echo(version: &str, request: Request<Incoming>) -> Response<Body> {
    let status = request.headers().get("x-grpc-status").cloned().unwrap_or(HeaderValue::from_static("0"));
    let mut trailers = HeaderMap::new();
    if status != "0" {
        trailers.insert("grpc-message", HeaderValue::from_static("asked for"));
    }
    trailers.insert("grpc-status", status);
    let data = request.into_body().into_data_stream().map(|chunk| match chunk {
        Ok(chunk) => Ok(Frame::data(chunk)),
        Err(e) => Err(io::Error::other(e)),
    });
    let end = futures_util::stream::once(async move { Ok(Frame::trailers(trailers)) });
    let mut response = Response::new(StreamBody::new(data.chain(end)).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert(VERSION_HEADER, version_value(version));
    response
}

/// Accepts any upgrade and echoes the bytes that follow.
fn upgrade_echo(version: &str, mut request: Request<Incoming>) -> Response<Body> {
    let upgrade = request.headers().get(UPGRADE).cloned();
    let h2 = request.method() == Method::CONNECT;
    tokio::spawn(async move {
        if let Ok(stream) = hyper::upgrade::on(&mut request).await {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(stream));
            // The client decides when it ends.
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        }
    });
    let mut response = Response::new(full(Bytes::new()));
    response.headers_mut().insert(VERSION_HEADER, version_value(version));
    if !h2 {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(upgrade) = upgrade {
            response.headers_mut().insert(UPGRADE, upgrade);
        }
    }
    response
}
