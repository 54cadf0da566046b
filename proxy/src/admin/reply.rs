//! What a page answers.

use super::grpc::Replies;
use super::view::{Pieces, Refusal};
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use serde_json::Value;
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// An answer.
pub(super) struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Body,
}

/// What an answer says.
pub(super) enum Body {
    Whole(Bytes),
    /// Made as it is read.
    Pieces(Pieces),
    /// Messages, each answered as it comes.
    Grpc(Replies),
}

impl Reply {
    pub fn text(body: impl Into<Bytes>) -> Reply {
        Reply { status: StatusCode::OK, content_type: "text/plain; charset=UTF-8", body: Body::Whole(body.into()) }
    }

    pub fn html(body: String) -> Reply {
        Reply { content_type: "text/html; charset=UTF-8", ..Reply::text(body) }
    }

    pub fn compact_json(body: String) -> Reply {
        Reply { content_type: "application/json", ..Reply::text(body) }
    }

    /// As protobuf's JSON printer writes it: one space per level, a newline at the end.
    pub fn json(value: &Value) -> Reply {
        // The alternate form indents by two spaces; no string holds a line break, so a line's start is its indent.
        let wide = format!("{value:#}");
        let mut body = String::with_capacity(wide.len());
        for line in wide.lines() {
            let text = line.trim_start_matches(' ');
            body.extend(std::iter::repeat_n(' ', (line.len() - text.len()) / 2));
            body.push_str(text);
            body.push('\n');
        }
        Reply { content_type: "application/json", ..Reply::text(body) }
    }

    /// A page of JSON that is made as it is read.
    pub fn json_pieces(pieces: Pieces) -> Reply {
        Reply { status: StatusCode::OK, content_type: "application/json", body: Body::Pieces(pieces) }
    }

    pub fn ok() -> Reply {
        Reply::text("OK\n")
    }

    pub fn error(status: StatusCode, message: impl Into<Bytes>) -> Reply {
        Reply { status, ..Reply::text(message) }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Reply::error(status, refusal.message)
    }
}

/// The largest frame given to the connection at once.
const FRAME: usize = 64 * 1024;

/// A body of unstated length: Envoy's admin replies are chunked.
pub(super) struct Chunks {
    pub rest: Body,
    /// When the reader last took something.
    pub taken: Rc<Cell<Instant>>,
    pub sent: u64,
    /// Told at its end, whole or not, how much was sent.
    pub ended: Option<Box<dyn FnOnce(u64)>>,
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.taken.set(Instant::now());
        let next = match &mut self.rest {
            Body::Whole(rest) if rest.is_empty() => None,
            Body::Whole(rest) => Some(rest.split_to(rest.len().min(FRAME))),
            Body::Pieces(pieces) => pieces.next(),
            Body::Grpc(replies) => {
                let next = ready!(Pin::new(replies).poll_frame(cx));
                let data = next.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
                let length = data.map_or(0, |data| data.len() as u64);
                self.sent += length;
                return Poll::Ready(next);
            }
        };
        self.sent += next.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended(self.sent);
        }
    }
}
