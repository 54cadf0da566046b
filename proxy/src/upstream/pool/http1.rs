//! HTTP/1 connections of a pool: one request at a time, kept when the response has ended cleanly.

use super::body::RequestBody;
use super::{Connection, Meta, Pool};
use crate::config::model::{HeaderCase, UpstreamHttp};
use crate::upstream::connect::UpstreamIo;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Envoy's limit of a response's header section (`max_response_headers_kb`).
const MAX_RESPONSE_HEADERS: usize = 80 * 1024;
/// Must hold a whole header section; buffers start small and grow to this.
const MAX_BUFFER: usize = 128 * 1024;
/// How long a connection whose response has ended may still send its request before it is let go.
const SETTLE_TIME: Duration = Duration::from_secs(1);

pub(super) struct Http1Connection {
    pub sender: http1::SendRequest<RequestBody>,
    pub meta: Meta,
    pub idle_since: Instant,
}

impl Http1Connection {
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }
}

/// Speaks HTTP/1 over `io` until the connection ends.
pub(super) async fn run(pool: Rc<Pool>, io: UpstreamIo, meta: Meta) {
    pool.opened();
    let handshake = builder(&pool.cluster.config.http).handshake(TokioIo::new(io)).await;
    let Ok((sender, connection)) = handshake else { return pool.closed() };
    let idle_since = pool.clock.get();
    pool.deliver(Connection::Http1(Http1Connection { sender, meta, idle_since }));
    let weak = Rc::downgrade(&pool);
    drop(pool);
    let result = connection.with_upgrades().await;
    let Some(pool) = weak.upgrade() else { return };
    if result.is_err_and(|e| e.is_parse()) {
        pool.cluster.stats().upstream_cx_protocol_error.inc();
    }
    pool.closed();
}

fn builder(http: &UpstreamHttp) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_BUFFER).max_header_size(MAX_RESPONSE_HEADERS);
    // hyper keeps up to 100 headers on the stack; any other limit costs an allocation per response
    if http.max_response_headers_count != 100 {
        builder.max_headers(http.max_response_headers_count as usize);
    }
    match http.http1.header_case {
        HeaderCase::Lower => {}
        HeaderCase::Proper => {
            builder.title_case_headers(true);
        }
        HeaderCase::Preserve => {
            builder.preserve_header_case(true);
        }
    }
    builder
}

impl Pool {
    /// Takes back a connection whose response has ended.
    pub(super) fn finish_http1(self: &Rc<Self>, mut connection: Http1Connection) {
        if connection.is_closed() || connection.meta.is_spent(self) {
            return;
        }
        if connection.is_ready() {
            return self.deliver(Connection::Http1(connection));
        }
        // the response was faster than the request
        let pool = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let ready = tokio::time::timeout(SETTLE_TIME, connection.sender.ready()).await;
            if matches!(ready, Ok(Ok(()))) && !connection.meta.is_spent(&pool) {
                pool.deliver(Connection::Http1(connection));
            }
        });
    }
}
