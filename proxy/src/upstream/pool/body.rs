//! Bodies: what is sent to an endpoint, and what comes back and returns its connection when it ends.

use super::lease::{ActiveRequest, Checkout, body_failure};
use crate::upstream::{BodyError, SendErrorKind, UpstreamConnectionInfo};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// A request body on its way to an endpoint.
pub enum RequestBody {
    Empty,
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>),
}

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RequestBody::Empty => f.write_str("Empty"),
            RequestBody::Full(data) => write!(f, "Full({} bytes)", data.as_ref().map_or(0, Bytes::len)),
            RequestBody::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Full(data) => Poll::Ready(data.take().map(|d| Ok(Frame::data(d)))),
            RequestBody::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Full(data) => data.is_none(),
            RequestBody::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Full(data) => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            RequestBody::Stream(body) => body.size_hint(),
        }
    }
}

/// A response body; gives its connection back to the pool at its end, or closes it (HTTP/1) or resets the stream (HTTP/2)
/// when dropped before. Of an upgrade or CONNECT it must be kept as long as the tunnel lives: it counts the request.
pub struct ResponseBody {
    incoming: Incoming,
    info: Rc<UpstreamConnectionInfo>,
    in_flight: Option<InFlight>,
    failure: Option<SendErrorKind>,
    tunnel: bool,
}

/// What a request holds until its response has ended.
struct InFlight {
    checkout: Checkout,
    _active: ActiveRequest,
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, checkout: Checkout, active: ActiveRequest, tunnel: bool) -> ResponseBody {
        let info = Rc::clone(checkout.info());
        let mut body = ResponseBody {
            incoming,
            info,
            in_flight: Some(InFlight { checkout, _active: active }),
            failure: None,
            tunnel,
        };
        body.finish_at_end();
        body
    }

    /// Why it ended before its end; `None` as long as it has not.
    pub fn failure(&self) -> Option<SendErrorKind> {
        self.failure
    }

    /// The connection it comes from.
    pub fn connection(&self) -> &Rc<UpstreamConnectionInfo> {
        &self.info
    }

    fn finish_at_end(&mut self) {
        if !self.tunnel && self.incoming.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.checkout.finish();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if frame.is_trailers() {
                    this.finish();
                } else {
                    this.finish_at_end();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                // aborts: the connection, or the stream, is of no more use
                let kind = body_failure(&error);
                if let Some(in_flight) = this.in_flight.take() {
                    in_flight.checkout.count_protocol_error(kind);
                }
                this.failure = Some(kind);
                Some(Err(error.into()))
            }
            None => {
                if !this.tunnel {
                    this.finish();
                }
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
