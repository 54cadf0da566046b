//! What a page answers.

use super::grpc::Replies;
use super::json::write_json;
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
        let mut body = String::new();
        write_json(&mut body, value, 0);
        body.push('\n');
        Reply { content_type: "application/json", ..Reply::text(body) }
    }

    /// A message with one list, each element made when its turn comes.
    pub fn json_list(field: &str, elements: impl Iterator<Item = Value> + 'static) -> Reply {
        let mut elements = elements.peekable();
        if elements.peek().is_none() {
            return Reply::json(&Value::Object(serde_json::Map::new()));
        }
        let mut before = format!("{{\n \"{field}\": [\n  ");
        let texts = elements.map(move |element| {
            let mut text = std::mem::replace(&mut before, ",\n  ".to_owned());
            write_json(&mut text, &element, 2);
            text
        });
        Reply::json_pieces(Box::new(Texts(texts.chain(std::iter::once("\n ]\n}\n".to_owned())))))
    }

    /// A page of text, each part made when its turn comes.
    pub fn text_pieces(texts: impl Iterator<Item = String> + 'static) -> Reply {
        Reply { body: Body::Pieces(Box::new(Texts(texts))), ..Reply::text(Bytes::new()) }
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

/// Text made at once.
const CHUNK: usize = 32 * 1024;

/// Texts, gathered to pieces.
struct Texts<I>(I);

impl<I: Iterator<Item = String>> Iterator for Texts<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        while out.len() < CHUNK
            && let Some(text) = self.0.next()
        {
            out.push_str(&text);
        }
        (!out.is_empty()).then(|| out.into())
    }
}

/// The largest frame given to the connection at once.
const FRAME: usize = 64 * 1024;

/// Turns taken with the other tasks of the thread. What is made as it is read could else hold it from the first piece to
/// the last, as long as its reader is quick.
#[derive(Default)]
pub(super) struct Turns {
    others: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Turns {
    /// Ours is over.
    pub fn end(&mut self) {
        self.others = Some(Box::pin(tokio::task::yield_now()));
    }

    /// Ready when it is ours.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(others) = &mut self.others {
            ready!(others.as_mut().poll(cx));
            self.others = None;
        }
        Poll::Ready(())
    }
}

/// A body of unstated length: Envoy's admin replies are chunked.
pub(super) struct Chunks {
    pub rest: Body,
    pub turns: Turns,
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
        ready!(self.turns.poll(cx));
        let next = match &mut self.rest {
            Body::Whole(rest) if rest.is_empty() => None,
            Body::Whole(rest) => Some(rest.split_to(rest.len().min(FRAME))),
            Body::Pieces(pieces) => {
                let next = pieces.next();
                self.turns.end();
                next
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn others_get_a_turn_between_two_pieces() {
        let local = tokio::task::LocalSet::new();
        let turns = Rc::new(Cell::new(0));
        let other = turns.clone();
        local.spawn_local(async move {
            loop {
                other.set(other.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let (noted, asked) = (seen.clone(), turns.clone());
        let pieces = std::iter::repeat_with(move || {
            noted.borrow_mut().push(asked.get());
            Bytes::from_static(b"piece")
        });
        let rest = Body::Pieces(Box::new(pieces.take(50)));
        let taken = Rc::new(Cell::new(Instant::now()));
        let body = Chunks { rest, turns: Turns::default(), taken, sent: 0, ended: None };
        let whole = local.run_until(body.collect()).await.unwrap().to_bytes();
        assert_eq!(whole.len(), 250);
        assert!(seen.borrow().windows(2).all(|pair| pair[0] < pair[1]), "{:?}", seen.borrow());
    }
}
