//! What a page answers.

use super::view::Refusal;
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use serde_json::Value;
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// A whole answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Reply {
    pub fn text(body: impl Into<Bytes>) -> Reply {
        Reply { status: StatusCode::OK, content_type: "text/plain; charset=UTF-8", body: body.into() }
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
    pub rest: Bytes,
    /// When the reader last took something.
    pub taken: Rc<Cell<Instant>>,
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.taken.set(Instant::now());
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let most = self.rest.len().min(FRAME);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(most)))))
    }
}
