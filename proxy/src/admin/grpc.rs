//! gRPC on the admin listener: the client status discovery service.
//!
//! Two methods of one service: the framing (github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) is a prefix of five
//! bytes per message and a trailer at the end, and that is all there is to it here.

use super::reply::Turns;
use super::view::{AdminSource, MessagePieces};
use bytes::{Buf, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use hyper::body::Incoming;
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

const FETCH: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
const STREAM: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus";
/// A request names a few matchers.
const MOST_MESSAGE_BYTES: usize = 64 * 1024;

const INVALID_ARGUMENT: u8 = 3;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;

/// Whether a request is gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The body of the answer to a gRPC request: its messages are answered one by one as they come.
pub(super) fn answer(path: &str, body: Incoming, source: Rc<dyn AdminSource>, active: Rc<Cell<Instant>>) -> Replies {
    let state = match path {
        FETCH | STREAM => State::Reading,
        _ => State::Ending(Status::new(UNIMPLEMENTED, format!("there is no method {path} here"))),
    };
    Replies { body, source, active, received: BytesMut::new(), once: path == FETCH, state }
}

/// The body of an answer: a message for each message that comes in, then how it ended.
pub(super) struct Replies {
    body: Incoming,
    source: Rc<dyn AdminSource>,
    active: Rc<Cell<Instant>>,
    received: BytesMut,
    /// The method takes one message and gives one.
    once: bool,
    state: State,
}

enum State {
    /// Waits for the next message.
    Reading,
    /// Makes the answer to one: its length stands before it.
    Making(Making),
    /// Gives it.
    Writing(std::vec::IntoIter<Bytes>),
    Ending(Status),
    Ended,
}

/// An answer that is made piece by piece, so that others get their turn.
struct Making {
    message: MessagePieces,
    made: Vec<Bytes>,
    turns: Turns,
}

impl Making {
    fn new(message: MessagePieces) -> Making {
        // the place of the prefix
        Making { message, made: vec![Bytes::new()], turns: Turns::default() }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<State> {
        loop {
            ready!(self.turns.poll(cx));
            let Some(piece) = self.message.pieces.next() else { break };
            self.made.push(piece);
            self.turns.end();
        }
        let mut made = std::mem::take(&mut self.made);
        let before = (self.message.prefix)(made.iter().map(Bytes::len).sum());
        let length = before.len() + made.iter().map(Bytes::len).sum::<usize>();
        let Ok(length) = u32::try_from(length) else {
            return Poll::Ready(State::Ending(Status::new(RESOURCE_EXHAUSTED, "the answer is larger than 4 GiB")));
        };
        let mut prefix = vec![0];
        prefix.extend(length.to_be_bytes());
        prefix.extend(before);
        if let Some(first) = made.first_mut() {
            *first = prefix.into();
        }
        Poll::Ready(State::Writing(made.into_iter()))
    }
}

struct Status {
    code: u8,
    message: String,
}

impl Status {
    fn new(code: u8, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }

    fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(u16::from(self.code)));
        if !self.message.is_empty() {
            trailers.insert("grpc-message", percent_encoded(&self.message));
        }
        trailers
    }
}

/// `grpc-message`: printable ASCII but for the percent sign stands for itself.
fn percent_encoded(text: &str) -> HeaderValue {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(out).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl Replies {
    /// The next whole message, if it is there.
    fn message(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((prefix, rest)) = self.received.split_first_chunk::<5>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if compressed != 0 {
            return Err(Status::new(UNIMPLEMENTED, "compressed messages are not read here"));
        }
        if length > MOST_MESSAGE_BYTES {
            let text = format!("a message of {length} bytes, expected at most {MOST_MESSAGE_BYTES}");
            return Err(Status::new(RESOURCE_EXHAUSTED, text));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.received.advance(prefix.len());
        Ok(Some(self.received.split_to(length).freeze()))
    }

    /// What is to be done with what has come so far; `None`: more has to come.
    fn step(&mut self) -> Option<State> {
        Some(match self.message() {
            Ok(None) => return None,
            Err(status) => State::Ending(status),
            Ok(Some(request)) => match self.source.client_status(&request) {
                Ok(message) => State::Making(Making::new(message)),
                Err(refusal) => State::Ending(Status::new(INVALID_ARGUMENT, refusal.message)),
            },
        })
    }
}

impl http_body::Body for Replies {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            this.active.set(Instant::now());
            match &mut this.state {
                State::Making(making) => this.state = ready!(making.poll(cx)),
                State::Writing(pieces) => match pieces.next() {
                    Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                    None if this.once => this.state = State::Ending(Status::new(0, "")),
                    None => this.state = State::Reading,
                },
                State::Ending(status) => {
                    let trailers = status.trailers();
                    this.state = State::Ended;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                State::Ended => return Poll::Ready(None),
                State::Reading => {
                    if let Some(next) = this.step() {
                        this.state = next;
                        continue;
                    }
                    match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                        Some(Ok(frame)) => {
                            if let Ok(data) = frame.into_data() {
                                this.received.extend_from_slice(&data);
                            }
                        }
                        Some(Err(error)) => {
                            this.state =
                                State::Ending(Status::new(INTERNAL, format!("the request broke off: {error}")));
                        }
                        None if this.once || !this.received.is_empty() => {
                            this.state = State::Ending(Status::new(INTERNAL, "the request ended inside a message"));
                        }
                        None => this.state = State::Ending(Status::new(0, "")),
                    }
                }
            }
        }
    }
}
