//! HTTP/2 connections of a pool: shared by as many requests as both sides allow.

use super::body::RequestBody;
use super::{Connection, Meta, Pool};
use crate::config::model::Http2Options;
use crate::upstream::connect::UpstreamIo;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Envoy's limit of a response's header section.
const MAX_RESPONSE_HEADERS: u32 = 60 * 1024;

pub(super) struct Http2Connection {
    pub sender: RefCell<http2::SendRequest<RequestBody>>,
    pub meta: Meta,
    /// The smaller of our limit and the peer's.
    max_streams: Rc<Cell<u32>>,
    idle_since: Cell<Instant>,
}

impl Http2Connection {
    pub fn is_closed(&self) -> bool {
        self.sender.borrow().is_closed()
    }

    pub fn active(&self) -> u32 {
        self.meta.usage.active.load(Ordering::Relaxed)
    }

    pub fn idle_since(&self) -> Instant {
        self.idle_since.get()
    }

    /// Takes the right to one stream, given back by `release`.
    pub fn take_stream(&self) -> bool {
        let room = self.active() < self.max_streams.get();
        if room {
            self.meta.usage.active.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    pub fn release(&self, now: Instant) {
        if self.meta.usage.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.idle_since.set(now);
        }
    }
}

/// Speaks HTTP/2 over `io` until the connection ends.
pub(super) async fn run(pool: Rc<Pool>, io: UpstreamIo, meta: Meta) {
    let options = &pool.cluster.config.http.http2;
    let handshake = builder(options).handshake(TokioIo::new(io)).await;
    pool.opened();
    let Ok((sender, mut connection)) = handshake else { return pool.closed() };
    let limit = options.max_concurrent_streams.max(1);
    let max_streams = Rc::new(Cell::new(limit));
    let shared = Rc::new(Http2Connection {
        sender: RefCell::new(sender),
        meta,
        max_streams: Rc::clone(&max_streams),
        idle_since: Cell::new(pool.clock.get()),
    });
    if !pool.retired.get() {
        pool.state.borrow_mut().shared.push(Rc::clone(&shared));
    }
    if pool.retired.get() && shared.take_stream() {
        // those who still wait on a retired pool get their one request
        pool.deliver(Connection::Http2(shared));
    } else {
        drop(shared);
    }
    pool.serve_waiting();
    let weak = Rc::downgrade(&pool);
    drop(pool);
    let result = poll_fn(|cx| {
        let done = Pin::new(&mut connection).poll(cx);
        let peer = u32::try_from(connection.current_max_send_streams()).unwrap_or(u32::MAX);
        max_streams.set(limit.min(peer));
        done
    })
    .await;
    // only now do senders see that it is closed
    drop(connection);
    let Some(pool) = weak.upgrade() else { return };
    if result.is_err_and(|e| super::lease::is_protocol_error(&e)) {
        pool.cluster.stats().upstream_cx_protocol_error.inc();
    }
    pool.closed();
}

fn builder(options: &Http2Options) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .header_table_size(options.hpack_table_size)
        .initial_max_send_streams(options.max_concurrent_streams.max(1) as usize)
        .max_header_list_size(MAX_RESPONSE_HEADERS);
    if let Some(keepalive) = &options.keepalive {
        builder
            .keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(true);
    }
    builder
}

/// Runs hyper's own tasks on the worker.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

impl Pool {
    /// A stream has ended, however it did.
    pub(super) fn finish_http2(self: &Rc<Self>, connection: Rc<Http2Connection>) {
        connection.release(self.clock.get());
        drop(connection);
        let waits = !self.state.borrow().waiting.is_empty();
        if waits {
            self.serve_waiting();
        }
    }
}
