//! A request body on its way upstream: frame by frame, and kept for another attempt while it fits the buffer limit.

use crate::upstream::BodyError;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// Why a request's body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It was not HTTP/1: a chunk of no size.
    Protocol,
    /// The client went away, or took the request back.
    Gone,
}

impl Fault {
    fn of(error: &hyper::Error) -> Fault {
        // hyper's decoder of bodies says so with an I/O error
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        match source.map(io::Error::kind) {
            Some(ErrorKind::InvalidInput | ErrorKind::InvalidData) => Fault::Protocol,
            _ => Fault::Gone,
        }
    }
}

/// The downstream side of a body; one attempt after the other reads it.
pub(super) struct Source {
    incoming: Incoming,
    length: Option<u64>,
    /// What was read so far, for a retry.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// How much may be kept; 0: nothing is.
    limit: usize,
    /// More was read than is kept.
    lost: bool,
    forward_trailers: bool,
    trailers: Option<HeaderMap>,
    pub fault: Option<Fault>,
    pub received: u64,
    pub first_read: Option<Instant>,
    pub ended: Option<Instant>,
    pub last_activity: Instant,
}

/// Shared by the exchange, which reads the counts, and the attempt that sends the body.
pub(super) type SharedSource = Rc<RefCell<Source>>;

impl Source {
    /// `limit`: bytes to keep for retries.
    pub fn new(incoming: Incoming, limit: usize, forward_trailers: bool, now: Instant) -> SharedSource {
        Rc::new(RefCell::new(Source {
            length: incoming.size_hint().exact(),
            incoming,
            kept: Vec::new(),
            kept_bytes: 0,
            limit,
            lost: false,
            forward_trailers,
            trailers: None,
            fault: None,
            received: 0,
            first_read: None,
            ended: None,
            last_activity: now,
        }))
    }

    /// Whether another attempt can send the body from its beginning.
    pub fn can_replay(&self) -> bool {
        !self.lost
    }

    fn keep(&mut self, data: &Bytes) {
        if self.lost {
            return;
        }
        self.kept_bytes += data.len();
        if self.kept_bytes > self.limit {
            self.lost = true;
            // the attempt that runs has already read all of these
            self.kept = Vec::new();
        } else {
            self.kept.push(data.clone());
        }
    }
}

/// One attempt's view of the body.
pub(super) struct RequestStream {
    source: SharedSource,
    /// Kept chunks already sent by this attempt.
    position: usize,
    sent: u64,
    trailers_sent: bool,
}

impl RequestStream {
    pub fn new(source: SharedSource) -> RequestStream {
        RequestStream { source, position: 0, sent: 0, trailers_sent: false }
    }
}

impl Body for RequestStream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = &mut *self;
        let mut guard = me.source.borrow_mut();
        let source = &mut *guard;
        if let Some(chunk) = source.kept.get(me.position) {
            me.position += 1;
            me.sent += chunk.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if source.ended.is_some() {
            if me.trailers_sent {
                return Poll::Ready(None);
            }
            me.trailers_sent = true;
            return Poll::Ready(source.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = std::task::ready!(Pin::new(&mut source.incoming).poll_frame(cx));
        let now = Instant::now();
        source.last_activity = now;
        source.first_read.get_or_insert(now);
        let result = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    source.received += data.len() as u64;
                    source.keep(&data);
                    me.position = source.kept.len();
                    me.sent += data.len() as u64;
                    Some(Ok(Frame::data(data)))
                }
                Err(frame) => {
                    source.ended = Some(now);
                    me.trailers_sent = true;
                    let trailers = frame.into_trailers().ok().filter(|_| source.forward_trailers);
                    if source.limit > 0 {
                        source.trailers.clone_from(&trailers);
                    }
                    trailers.map(|trailers| Ok(Frame::trailers(trailers)))
                }
            },
            Some(Err(error)) => {
                source.fault = Some(Fault::of(&error));
                return Poll::Ready(Some(Err(BodyError::from(error))));
            }
            None => None,
        };
        if result.is_none() || source.incoming.is_end_stream() {
            source.ended.get_or_insert(now);
        }
        Poll::Ready(result)
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.borrow();
        self.position >= source.kept.len()
            && (source.incoming.is_end_stream() || source.ended.is_some())
            && (self.trailers_sent || source.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        match self.source.borrow().length {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.sent)),
            None => SizeHint::default(),
        }
    }
}
