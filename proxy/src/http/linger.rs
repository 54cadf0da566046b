//! The end of a connection whose client may still be sending. A socket that is closed with unread bytes is reset, and a reset
//! may take away from the client what it has not read yet: the response that told it why. So the last word is said, and what
//! still comes is thrown away for a while (Envoy's `delayed_close_timeout`).

use crate::net::Transport;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

/// What is thrown away at most, in bytes; a client that sends more is not listening.
const LIMIT: usize = 16 << 20;

/// How the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client closed, or sent too much.
    Done,
    TimedOut,
}

/// The wait, after the write side was shut down.
pub(super) struct Linger {
    timer: Pin<Box<Sleep>>,
    discarded: usize,
}

impl Linger {
    pub fn new(limit: Duration) -> Linger {
        Linger { timer: Box::pin(tokio::time::sleep(limit)), discarded: 0 }
    }

    /// Ready when the socket may be closed.
    pub fn poll(&mut self, transport: &mut Transport, cx: &mut Context<'_>) -> Poll<Ended> {
        // first the timer: a client that never stops sending would use up the task's turn before it
        if self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ended::TimedOut);
        }
        let mut scrap = [MaybeUninit::uninit(); 4096];
        while self.discarded < LIMIT {
            let mut scrap = ReadBuf::uninit(&mut scrap);
            let read = std::task::ready!(Pin::new(&mut *transport).poll_read(cx, &mut scrap));
            if read.is_err() || scrap.filled().is_empty() {
                break;
            }
            self.discarded += scrap.filled().len();
        }
        Poll::Ready(Ended::Done)
    }
}
