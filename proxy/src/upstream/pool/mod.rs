//! HTTP connection pools: one per worker, host, priority, protocol and TLS options.
//!
//! A request takes an idle HTTP/1 connection (the last one used), a stream on a shared HTTP/2 connection, or waits in a
//! bounded queue while a connection is opened. Opening is a task of its own: a request that gives up leaves the
//! connection to the pool. Knows nothing of routes or retries.

mod body;
mod http1;
mod http2;
mod lease;
#[cfg(test)]
mod tests;

pub use body::{RequestBody, ResponseBody};
pub use lease::HttpLease;

use super::cluster::Cluster;
use super::connect::{ConnectionGuard, UpstreamIo, Usage, establish, next_connection_id};
use super::host::Host;
use super::{HttpOptions, UpstreamConnectionInfo, UpstreamError, UpstreamErrorKind};
use crate::config::model::Priority;
use crate::tls::ConnectOptions;
use http1::Http1Connection;
use http2::Http2Connection;
use lease::{ActiveRequest, Checkout};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::oneshot;

/// Which protocol a pool speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Http1,
    Http2,
    /// By ALPN; HTTP/1 without TLS.
    Auto,
}

/// What distinguishes the pools of one host.
pub(super) struct PoolKey {
    pub wanted: Wanted,
    pub priority: Priority,
    pub tls: ConnectOptions,
}

impl PoolKey {
    pub fn is_for(&self, wanted: Wanted, options: &HttpOptions) -> bool {
        self.wanted == wanted && self.priority == options.priority && self.tls == options.tls
    }
}

pub(super) struct Pool {
    pub key: PoolKey,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    state: RefCell<State>,
    /// Its host or cluster is gone: nothing is kept any more.
    retired: Cell<bool>,
    clock: Rc<Cell<Instant>>,
}

#[derive(Default)]
struct State {
    /// The most recently used one last.
    idle: Vec<Http1Connection>,
    shared: Vec<Rc<Http2Connection>>,
    waiting: VecDeque<oneshot::Sender<Result<Checkout, UpstreamError>>>,
    /// How many of `waiting` have given up.
    abandoned: usize,
    connecting: usize,
    /// Connections, the ones being opened included.
    open: usize,
    /// What ALPN settled on the last time.
    learned_http1: bool,
}

/// A connection, or the right to a stream on one.
enum Connection {
    Http1(Http1Connection),
    Http2(Rc<Http2Connection>),
}

impl Connection {
    fn meta(&self) -> &Meta {
        match self {
            Connection::Http1(c) => &c.meta,
            Connection::Http2(c) => &c.meta,
        }
    }
}

/// What both kinds of connection have.
struct Meta {
    info: Rc<UpstreamConnectionInfo>,
    opened: Instant,
    usage: Arc<Usage>,
}

impl Meta {
    /// No further request may use the connection; counts why.
    fn is_spent(&self, pool: &Pool) -> bool {
        let http = &pool.cluster.config.http;
        if pool.retired.get() {
            return true;
        }
        if http.max_requests_per_connection > 0
            && self.usage.requests.load(Ordering::Relaxed) >= http.max_requests_per_connection
        {
            pool.cluster.stats().upstream_cx_max_requests.inc();
            return true;
        }
        let old = http.max_connection_duration.is_some_and(|max| pool.clock.get().duration_since(self.opened) >= max);
        if old {
            pool.cluster.stats().upstream_cx_max_duration_reached.inc();
        }
        old
    }
}

impl Pool {
    pub fn new(cluster: &Arc<Cluster>, host: &Arc<Host>, key: PoolKey, clock: &Rc<Cell<Instant>>) -> Rc<Pool> {
        Rc::new(Pool {
            key,
            cluster: Arc::clone(cluster),
            host: Arc::clone(host),
            state: RefCell::default(),
            retired: Cell::new(false),
            clock: Rc::clone(clock),
        })
    }

    /// A connection for one request, counted as active.
    pub async fn lease(self: Rc<Self>) -> Result<HttpLease, UpstreamError> {
        let breakers = self.cluster.breakers(self.key.priority);
        let checkout = self.checkout().await?;
        if !breakers.requests.has_room() {
            self.cluster.stats().upstream_rq_active_overflow.inc();
            return Err(UpstreamError::new(UpstreamErrorKind::Overflow));
        }
        let active = ActiveRequest::new(&self);
        Ok(HttpLease::new(checkout, active))
    }

    async fn checkout(self: &Rc<Self>) -> Result<Checkout, UpstreamError> {
        let ready = self.state.borrow_mut().take_ready(self);
        if let Some(connection) = ready {
            return Ok(Checkout::new(connection, self));
        }
        let mut pending = Pending::new(self)?;
        let (tx, rx) = oneshot::channel();
        self.state.borrow_mut().waiting.push_back(tx);
        self.open_more();
        let result = rx.await;
        pending.waiting = false;
        // a sender is only dropped with the pool
        result.unwrap_or_else(|_| Err(UpstreamError::new(UpstreamErrorKind::ConnectionFailure)))
    }

    /// Gives a connection that can take a request to the first who waits for one, else keeps it.
    fn deliver(self: &Rc<Self>, connection: Connection) {
        let mut connection = connection;
        loop {
            let waiter = self.state.borrow_mut().waiting.pop_front();
            let Some(waiter) = waiter else { break };
            match waiter.send(Ok(Checkout::new(connection, self))) {
                Ok(()) => return,
                Err(unsent) => {
                    let mut state = self.state.borrow_mut();
                    state.abandoned = state.abandoned.saturating_sub(1);
                    drop(state);
                    match unsent.ok().and_then(Checkout::into_connection) {
                        Some(back) => connection = back,
                        None => return,
                    }
                }
            }
        }
        match connection {
            Connection::Http1(mut connection) => {
                connection.idle_since = self.clock.get();
                self.state.borrow_mut().idle.push(connection);
            }
            Connection::Http2(connection) => connection.release(self.clock.get()),
        }
    }

    /// Serves waiting requests from what is there now, then opens connections for the rest.
    fn serve_waiting(self: &Rc<Self>) {
        loop {
            let ready = {
                let mut state = self.state.borrow_mut();
                if state.waiting.len() <= state.abandoned { None } else { state.take_ready(self) }
            };
            match ready {
                Some(connection) => self.deliver(connection),
                None => break,
            }
        }
        self.open_more();
    }

    /// Opens as many connections as waiting requests need and the breaker allows. The first connection to a host is
    /// always allowed: without one nothing would ever wake the requests that wait.
    fn open_more(self: &Rc<Self>) {
        loop {
            let mut state = self.state.borrow_mut();
            let waiting = state.waiting.len().saturating_sub(state.abandoned);
            let one_is_enough = match self.key.wanted {
                Wanted::Http1 => false,
                Wanted::Http2 => true,
                Wanted::Auto => !state.learned_http1,
            };
            let enough = if one_is_enough { state.connecting > 0 } else { state.connecting >= waiting };
            if waiting == 0 || enough {
                return;
            }
            let room = self.cluster.breakers(self.key.priority).connections.has_room();
            if !room {
                self.cluster.stats().upstream_cx_overflow.inc();
                if state.open > 0 {
                    return;
                }
            }
            state.connecting += 1;
            state.open += 1;
            drop(state);
            let guard = ConnectionGuard::new(&self.cluster, &self.host, self.key.priority);
            // as in Envoy, where a connection has its codec before it is open
            match self.key.wanted {
                Wanted::Http1 => self.cluster.stats().upstream_cx_http1_total.inc(),
                Wanted::Http2 => self.cluster.stats().upstream_cx_http2_total.inc(),
                Wanted::Auto => {}
            }
            tokio::task::spawn_local(Rc::clone(self).open(guard));
            if !room {
                return;
            }
        }
    }

    /// Opens one connection, hands it out, and drives it to its end.
    async fn open(self: Rc<Self>, mut guard: ConnectionGuard) {
        let alpn: &[&str] = match self.key.wanted {
            Wanted::Http1 => &["http/1.1"],
            Wanted::Http2 => &["h2"],
            Wanted::Auto => &["h2", "http/1.1"],
        };
        let opened = establish(&mut guard, &self.key.tls, alpn).await;
        let connected = match opened {
            Ok(connected) => connected,
            Err(error) => return self.failed(guard, &error),
        };
        let http2 = match self.key.wanted {
            Wanted::Http1 => false,
            Wanted::Http2 => true,
            Wanted::Auto => connected.tls.as_ref().is_some_and(|tls| tls.alpn.as_deref() == Some(b"h2".as_slice())),
        };
        let meta = Meta {
            info: Rc::new(UpstreamConnectionInfo {
                id: next_connection_id(),
                local: connected.local,
                tls: connected.tls,
                http2,
            }),
            opened: Instant::now(),
            usage: Arc::clone(guard.usage()),
        };
        let io = UpstreamIo::new(connected.transport, guard);
        if self.key.wanted == Wanted::Auto {
            self.state.borrow_mut().learned_http1 = !http2;
            let stats = self.cluster.stats();
            if http2 { &stats.upstream_cx_http2_total } else { &stats.upstream_cx_http1_total }.inc();
        }
        if http2 { http2::run(self, io, meta).await } else { http1::run(self, io, meta).await }
    }

    /// A connection could not be opened: Envoy fails everything that waits, so that callers can go elsewhere.
    fn failed(&self, guard: ConnectionGuard, error: &UpstreamError) {
        // the breaker must have room again before those who are told try anew
        drop(guard);
        let waiting = {
            let mut state = self.state.borrow_mut();
            state.connecting -= 1;
            state.open -= 1;
            state.abandoned = 0;
            std::mem::take(&mut state.waiting)
        };
        for waiter in waiting {
            if waiter.send(Err(error.clone())).is_ok() {
                self.cluster.stats().upstream_rq_pending_failure_eject.inc();
            }
        }
    }

    /// A connection's handshake is done: it counts as open, no longer as connecting.
    fn opened(&self) {
        self.state.borrow_mut().connecting -= 1;
    }

    /// A connection has ended; requests may be waiting for its place.
    fn closed(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        state.open -= 1;
        state.idle.retain(|c| !c.is_closed());
        state.shared.retain(|c| !c.is_closed());
        drop(state);
        self.serve_waiting();
    }

    /// Drops idle connections past their time; false: the pool is empty and can go.
    pub fn sweep(self: &Rc<Self>) -> bool {
        let now = self.clock.get();
        let mut expired = 0;
        let mut state = self.state.borrow_mut();
        let limit = self.cluster.config.http.idle_timeout;
        let is_old = |since: Instant| limit.is_some_and(|limit| now.duration_since(since) >= limit);
        state.idle.retain(|c| {
            let old = is_old(c.idle_since);
            expired += u64::from(old);
            !old && !c.is_closed() && !c.meta.is_spent(self)
        });
        state.shared.retain(|c| {
            let old = c.active() == 0 && is_old(c.idle_since());
            expired += u64::from(old);
            !old && !c.is_closed() && !c.meta.is_spent(self)
        });
        self.cluster.stats().upstream_cx_idle_timeout.add(expired);
        state.open > 0 || !state.waiting.is_empty()
    }

    /// Closes idle connections now and busy ones when their requests end.
    pub fn retire(&self) {
        self.retired.set(true);
        let mut state = self.state.borrow_mut();
        state.idle.clear();
        state.shared.clear();
    }
}

impl State {
    /// A connection that can take a request now.
    fn take_ready(&mut self, pool: &Pool) -> Option<Connection> {
        while let Some(connection) = self.idle.pop() {
            // one that is not ready any more was closed by the other side
            if connection.is_ready() {
                return Some(Connection::Http1(connection));
            }
        }
        let mut at = 0;
        while let Some(connection) = self.shared.get(at) {
            if connection.is_closed() || connection.meta.is_spent(pool) {
                // streams in flight hold the connection until they end
                self.shared.swap_remove(at);
            } else if connection.take_stream() {
                return Some(Connection::Http2(Rc::clone(connection)));
            } else {
                at += 1;
            }
        }
        None
    }
}

/// A request in the queue; counted until served, failed or given up.
struct Pending<'a> {
    pool: &'a Pool,
    waiting: bool,
}

impl<'a> Pending<'a> {
    fn new(pool: &'a Rc<Pool>) -> Result<Pending<'a>, UpstreamError> {
        let stats = pool.cluster.stats();
        if !pool.cluster.breakers(pool.key.priority).pending.try_take() {
            stats.upstream_rq_pending_overflow.inc();
            return Err(UpstreamError::new(UpstreamErrorKind::Overflow));
        }
        stats.upstream_rq_pending_total.inc();
        stats.upstream_rq_pending_active.inc();
        pool.host.stats.rq_pending_active.fetch_add(1, Ordering::Relaxed);
        Ok(Pending { pool, waiting: true })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let pool = self.pool;
        pool.cluster.breakers(pool.key.priority).pending.give_back();
        pool.cluster.stats().upstream_rq_pending_active.dec();
        pool.host.stats.rq_pending_active.fetch_sub(1, Ordering::Relaxed);
        if self.waiting {
            pool.cluster.stats().upstream_rq_cancelled.inc();
            let mut state = pool.state.borrow_mut();
            state.abandoned += 1;
            // cleaned when half of the queue is dead, so that giving up stays cheap however long the queue is
            if state.abandoned * 2 > state.waiting.len() {
                state.waiting.retain(|waiter| !waiter.is_closed());
                state.abandoned = 0;
            }
        }
    }
}
