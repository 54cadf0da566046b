//! The right to send one request, and what is counted while it is in flight.

use super::body::{RequestBody, ResponseBody};
use super::{Connection, Pool};
use crate::upstream::{SendError, SendErrorKind, UpstreamConnectionInfo};
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// How often a request that was never written, because its connection had just ended, gets another connection.
const UNSENT_ATTEMPTS: u32 = 3;

/// Counts one request as active, for the breakers, the cluster and the host.
pub(super) struct ActiveRequest(Rc<Pool>);

impl ActiveRequest {
    pub fn new(pool: &Rc<Pool>) -> ActiveRequest {
        pool.cluster.begin_request(&pool.host, pool.key.priority);
        ActiveRequest(Rc::clone(pool))
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.cluster.end_request(&self.0.host, self.0.key.priority);
    }
}

/// A connection, or a stream on one, out of its pool. Dropped unused it goes back; dropped in flight it is closed, or its
/// stream reset.
pub(super) struct Checkout {
    /// Taken only where the checkout ends.
    connection: Option<Connection>,
    info: Rc<UpstreamConnectionInfo>,
    pool: Rc<Pool>,
    in_flight: bool,
}

impl Checkout {
    pub fn new(connection: Connection, pool: &Rc<Pool>) -> Checkout {
        let info = Rc::clone(&connection.meta().info);
        Checkout { connection: Some(connection), info, pool: Rc::clone(pool), in_flight: false }
    }

    pub fn into_connection(mut self) -> Option<Connection> {
        self.connection.take()
    }

    pub fn info(&self) -> &Rc<UpstreamConnectionInfo> {
        &self.info
    }

    /// Counts an HTTP/1 message that broke the protocol. The HTTP/2 connection counts its own when it ends.
    pub fn count_protocol_error(&self, kind: SendErrorKind) {
        if kind == SendErrorKind::ProtocolError && !self.info.http2 {
            self.pool.cluster.stats().upstream_cx_protocol_error.inc();
        }
    }

    /// The response has ended cleanly: the connection can serve another request.
    pub fn finish(mut self) {
        match self.connection.take() {
            Some(Connection::Http1(c)) => {
                c.meta.usage.active.store(0, Ordering::Relaxed);
                self.pool.finish_http1(c);
            }
            Some(Connection::Http2(c)) => self.pool.finish_http2(c),
            None => {}
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        match self.connection.take() {
            None => {}
            Some(connection) if !self.in_flight => {
                if !self.pool.retired.get() {
                    self.pool.deliver(connection);
                } else if let Connection::Http2(c) = connection {
                    self.pool.finish_http2(c);
                }
            }
            // letting go of an HTTP/1 connection closes it; its task tells the pool when that is done
            Some(Connection::Http1(_)) => {}
            Some(Connection::Http2(c)) => self.pool.finish_http2(c),
        }
    }
}

/// The right to send one request on a pooled connection.
pub struct HttpLease {
    checkout: Checkout,
    active: ActiveRequest,
}

impl HttpLease {
    pub(super) fn new(checkout: Checkout, active: ActiveRequest) -> HttpLease {
        HttpLease { checkout, active }
    }

    pub fn is_http2(&self) -> bool {
        self.connection().http2
    }

    /// The connection's facts for logs.
    pub fn connection(&self) -> &Rc<UpstreamConnectionInfo> {
        self.checkout.info()
    }

    /// Sends the request and waits for response headers. Dropping the future resets the stream (HTTP/2) or closes the
    /// connection (HTTP/1). Upgrades (101, CONNECT) are taken with `hyper::upgrade::on` from the response. A request that
    /// finds its connection already ended, and of which nothing was written, is sent on another one.
    ///
    /// # Errors
    /// See [`SendErrorKind`].
    pub async fn send(mut self, mut request: Request<RequestBody>) -> Result<Response<ResponseBody>, SendError> {
        let connect = request.method() == Method::CONNECT;
        let mut attempt = 1;
        loop {
            match self.checkout.send(request).await {
                Ok(response) => {
                    let status = response.status();
                    let tunnel = status == StatusCode::SWITCHING_PROTOCOLS || (connect && status.is_success());
                    if !tunnel && !self.is_http2() && !has_one_length(&response) {
                        self.count(SendErrorKind::ProtocolError);
                        let detail = "the response's content-length and transfer-encoding contradict".to_owned();
                        return Err(SendError { kind: SendErrorKind::ProtocolError, unsent: None, detail });
                    }
                    // HTTP/1's codec has this bound itself
                    let limit = self.checkout.pool.cluster.config.http.max_response_headers_count as usize;
                    if self.is_http2() && response.headers().len() > limit {
                        self.count(SendErrorKind::ProtocolError);
                        let detail = format!("the response has more headers than max_headers_count, {limit}");
                        return Err(SendError { kind: SendErrorKind::ProtocolError, unsent: None, detail });
                    }
                    let HttpLease { checkout, active } = self;
                    return Ok(response.map(|incoming| ResponseBody::new(incoming, checkout, active, tunnel)));
                }
                Err(mut failure) => {
                    let Some(unsent) = failure.take_message() else {
                        let error = send_error(failure.error(), None);
                        self.count(error.kind);
                        return Err(error);
                    };
                    let pool = Rc::clone(&self.checkout.pool);
                    let http2 = self.is_http2();
                    // the ended connection leaves the pool before the next one is asked for
                    let ended = self.checkout.connection.take();
                    if let Some(Connection::Http2(c)) = ended {
                        c.release(pool.clock.get());
                    }
                    let next = if attempt < UNSENT_ATTEMPTS { pool.checkout().await.ok() } else { None };
                    match next {
                        Some(next) if next.info().http2 == http2 => {
                            self.checkout = next;
                            request = unsent;
                            attempt += 1;
                        }
                        _ => return Err(send_error(failure.error(), Some(unsent))),
                    }
                }
            }
        }
    }

    fn count(&self, kind: SendErrorKind) {
        self.checkout.count_protocol_error(kind);
        let stats = self.active.0.cluster.stats();
        match kind {
            SendErrorKind::RemoteReset | SendErrorKind::RefusedStream => stats.upstream_rq_rx_reset.inc(),
            SendErrorKind::ConnectionTermination => stats.upstream_rq_pending_failure_eject.inc(),
            SendErrorKind::ProtocolError | SendErrorKind::RequestBody => {}
        }
    }
}

impl Checkout {
    async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.in_flight = true;
        let connection = self.connection.as_mut().expect("send is called on a checkout that has not ended");
        connection.meta().usage.requests.fetch_add(1, Ordering::Relaxed);
        match connection {
            Connection::Http1(c) => {
                c.meta.usage.active.store(1, Ordering::Relaxed);
                *request.version_mut() = Version::HTTP_11;
                c.sender.try_send_request(request).await
            }
            Connection::Http2(c) => {
                *request.version_mut() = Version::HTTP_2;
                let sent = c.sender.borrow_mut().try_send_request(request);
                sent.await
            }
        }
    }
}

/// Whether an HTTP/1 response says once, and in a way that is understood, where its body ends. The codec takes more.
fn has_one_length(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let length = response.body().size_hint().exact();
    let ended = response.body().is_end_stream();
    // a body of known length had no transfer-encoding, one of unknown length may have both
    if length.is_none() || ended {
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            return coding.as_bytes().eq_ignore_ascii_case(b"chunked")
                && codings.next().is_none()
                && !headers.contains_key(header::CONTENT_LENGTH);
        }
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let empty = lengths.next().is_none_or(|length| response.status() != StatusCode::NO_CONTENT || length == "0");
    empty && lengths.next().is_none()
}

fn send_error(error: &hyper::Error, unsent: Option<Request<RequestBody>>) -> SendError {
    SendError { kind: kind_of(error), unsent, detail: error.to_string() }
}

/// What hyper's error means for the request.
fn kind_of(error: &hyper::Error) -> SendErrorKind {
    match h2_error(error) {
        Some(h2) if h2.reason() == Some(h2::Reason::REFUSED_STREAM) => SendErrorKind::RefusedStream,
        Some(h2) if h2.is_go_away() && h2.is_remote() => SendErrorKind::RefusedStream,
        Some(h2) if h2.is_reset() && h2.is_remote() => SendErrorKind::RemoteReset,
        Some(h2) if h2.is_io() => SendErrorKind::ConnectionTermination,
        Some(h2) if h2.is_library() || h2.is_reset() => SendErrorKind::ProtocolError,
        _ if error.is_parse() => SendErrorKind::ProtocolError,
        _ if error.is_user() => SendErrorKind::RequestBody,
        _ => SendErrorKind::ConnectionTermination,
    }
}

/// Why a response that had begun broke off. HTTP/1 that ends too early, or is not HTTP, breaks the protocol, as in Envoy.
pub(super) fn body_failure(error: &hyper::Error) -> SendErrorKind {
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind) {
        Some(ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput) => {
            SendErrorKind::ProtocolError
        }
        None if h2_error(error).is_none() && error.is_incomplete_message() => SendErrorKind::ProtocolError,
        _ => kind_of(error),
    }
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source().and_then(|source| source.downcast_ref::<h2::Error>())
}

/// Whether a connection ended because the peer broke the protocol.
pub(super) fn is_protocol_error(error: &hyper::Error) -> bool {
    error.is_parse() || h2_error(error).is_some_and(h2::Error::is_library)
}
