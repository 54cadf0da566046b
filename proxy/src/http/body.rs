//! Response bodies on their way to the client. The body owns the exchange: when the codec lets go of it, the exchange ends.

use super::exchange::{Exchange, State};
use super::timeouts::Expired;
use crate::access_log::Flag;
use crate::upstream::{BodyError, ResponseBody, SendErrorKind};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// A response body as the downstream codec sees it.
pub(super) enum Body {
    /// Made here. The exchange counts as complete from the start: the codec has all of it.
    Local {
        data: Option<Bytes>,
        _exchange: Box<Exchange>,
    },
    Upstream {
        body: ResponseBody,
        exchange: Box<Exchange>,
        trailers: bool,
    },
    /// Of a response that switches protocols: what follows is no longer HTTP.
    None,
}

impl Body {
    pub fn local(data: Bytes, mut exchange: Box<Exchange>) -> Body {
        exchange.bytes_sent = data.len() as u64;
        exchange.completes();
        Body::Local { data: Some(data).filter(|d| !d.is_empty()), _exchange: exchange }
    }

    /// `trailers`: whether trailers may be passed on.
    pub fn upstream(body: ResponseBody, mut exchange: Box<Exchange>, trailers: bool) -> Body {
        if body.is_end_stream() {
            exchange.completes();
        }
        Body::Upstream { body, exchange, trailers }
    }
}

/// Why a response that had begun was cut.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut: {0:?}")]
struct Cut(Expired);

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Body::None => Poll::Ready(None),
            Body::Local { data, .. } => Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Body::Upstream { body, exchange, trailers } => {
                let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
                    return exchange.poll_expired(cx).map(|expired| Some(Err(cut(exchange, expired))));
                };
                match frame {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => {
                            exchange.bytes_sent += data.len() as u64;
                            if body.is_end_stream() {
                                exchange.completes();
                            } else {
                                exchange.last_activity = Instant::now();
                            }
                            Poll::Ready(Some(Ok(Frame::data(data))))
                        }
                        Err(frame) => {
                            exchange.completes();
                            let Ok(map) = frame.into_trailers() else { return Poll::Ready(None) };
                            exchange.sees_trailers(&map);
                            Poll::Ready(trailers.then(|| Ok(Frame::trailers(map))))
                        }
                    },
                    None => {
                        exchange.completes();
                        Poll::Ready(None)
                    }
                    Some(Err(error)) => {
                        broke(exchange, body.failure());
                        Poll::Ready(Some(Err(error)))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::None => true,
            Body::Local { data, .. } => data.is_none(),
            Body::Upstream { body, exchange, .. } => exchange.state == State::Complete || body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::None => SizeHint::with_exact(0),
            Body::Local { data, .. } => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            Body::Upstream { body, .. } => body.size_hint(),
        }
    }
}

/// Says who broke off a response that had begun.
fn broke(exchange: &mut Exchange, failure: Option<SendErrorKind>) {
    let (flag, details) = match (exchange.request_fault(), failure) {
        (Some(fault), _) => return super::forward::blame_client(exchange, fault),
        (None, Some(SendErrorKind::ProtocolError)) => {
            (Flag::UpstreamProtocolError, "upstream_reset_after_response_started{protocol_error}")
        }
        (None, Some(SendErrorKind::RemoteReset)) => {
            (Flag::UpstreamRemoteReset, "upstream_reset_after_response_started{remote_reset}")
        }
        (None, Some(SendErrorKind::RefusedStream)) => {
            (Flag::UpstreamRemoteReset, "upstream_reset_after_response_started{remote_refused_stream_reset}")
        }
        (None, _) => {
            (Flag::UpstreamConnectionTermination, "upstream_reset_after_response_started{connection_termination}")
        }
    };
    exchange.fail(Some(flag), details);
}

/// Ends a response that has begun: all that is left is to reset the stream.
fn cut(exchange: &mut Exchange, expired: Expired) -> BodyError {
    super::forward::count_expired(exchange, expired);
    let (flag, details) = match expired {
        Expired::Route => (Flag::UpstreamRequestTimeout, "response_timeout"),
        Expired::PerTry => (Flag::UpstreamRequestTimeout, "upstream_per_try_timeout"),
        Expired::Idle => (Flag::StreamIdleTimeout, "stream_idle_timeout"),
        Expired::Request => (Flag::DownstreamConnectionTermination, "request_overall_timeout"),
        Expired::Duration => (Flag::DurationTimeout, "max_duration_timeout"),
    };
    exchange.fail(Some(flag), details);
    Box::new(Cut(expired))
}
