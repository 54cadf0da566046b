//! One downstream connection: the choice of its codec, its timers, its requests, its end.

use super::alarm::Alarms;
use super::body::Body;
use super::exchange::{Exchange, ResponseTemplates, State, wall_clock};
use super::headers::{finish_response, strip_response};
use super::io::{Io, Wire};
use super::local_reply::Reply;
use super::manager::{ConnectionManager, local_ip};
use super::request_body::Fault;
use super::routes::{RequestView, Selected};
use super::upgrade::{Wish, tunnel};
use super::{forward, headers, names, rewrite, rules};
use crate::access_log::{ConnectionInfo, Flag};
use crate::config::model::{CodecType, HcmConfig, HeaderCase, RequireTls, RouteAction, ServerHeader};
use crate::drain::Drain;
use crate::network::{Connection, Worker};
use crate::upstream::ResponseBody;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;
use tokio::time::{Instant, Sleep};

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy)]
pub(super) struct LocalExec;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// What is read at once; a message head may grow beyond it up to the configured limit.
const READ_BUFFER_SPARE: usize = 8 * 1024;

/// Envoy's limit on resets by a client that hyper has not looked at yet (rapid reset).
const PENDING_RESETS: usize = 100;

pub(super) fn h1_builder(config: &HcmConfig) -> http1::Builder {
    let mut builder = http1::Builder::new();
    let head = config.max_request_headers_bytes as usize;
    builder
        .timer(TokioTimer::new())
        // ours: hyper's would also end connections that wait between requests, and says nothing to the client
        .header_read_timeout(None)
        .max_header_size(head)
        .max_buf_size(head + READ_BUFFER_SPARE)
        .title_case_headers(config.http1.header_case == HeaderCase::Proper)
        .preserve_header_case(config.http1.header_case == HeaderCase::Preserve)
        .allow_multiple_spaces_in_request_line_delimiters(true);
    // at hyper's own default of 100 the head is parsed on the stack
    if config.max_headers_count != 100 {
        builder.max_headers(config.max_headers_count as usize);
    }
    builder
}

pub(super) fn h2_builder(config: &HcmConfig) -> http2::Builder<LocalExec> {
    let options = &config.http2;
    let mut builder = http2::Builder::new(LocalExec);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_header_list_size(config.max_request_headers_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .header_table_size(options.hpack_table_size);
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    if let Some(keepalive) = &options.keepalive {
        builder.keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout);
    }
    builder
}

/// What the requests of one connection share.
pub(super) struct Downstream {
    pub manager: Arc<ConnectionManager>,
    pub worker: Rc<Worker>,
    pub info: Rc<ConnectionInfo>,
    pub original_dst: Option<SocketAddr>,
    pub http2: bool,
    pub tls: bool,
    /// The client showed a certificate.
    pub mutual_tls: bool,
    pub buffer_limit: u32,
    pub alarms: Alarms,
    pub wire: Arc<Wire>,
    drain: Drain,
    began: (Instant, SystemTime),
    active: Cell<u32>,
    requests: Cell<u32>,
    /// Bytes received and sent that the stats have already.
    counted: Cell<(u64, u64)>,
    idle_since: Cell<Instant>,
    /// The codec is to finish what runs and take nothing new.
    closing: Cell<bool>,
    gone: Cell<bool>,
    /// When a request head began to arrive.
    head_since: Cell<Option<Instant>>,
    tunnel: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    client_cert: OnceCell<Option<HeaderValue>>,
    forwarded_address: OnceCell<HeaderValue>,
    /// The last client that x-forwarded-for named; behind a proxy it is often the same one.
    forwarded_peer: RefCell<Option<Rc<ConnectionInfo>>>,
}

impl Downstream {
    pub fn request_begins(&self) {
        self.wire.busy.store(true, Ordering::Relaxed);
        self.wire.head_begun.store(false, Ordering::Relaxed);
        self.head_since.set(None);
        self.active.set(self.active.get() + 1);
        self.requests.set(self.requests.get() + 1);
    }

    pub fn request_ends(&self, now: Instant) {
        self.active.set(self.active.get().saturating_sub(1));
        self.count_bytes();
        if self.active.get() == 0 {
            self.wire.busy.store(false, Ordering::Relaxed);
            self.idle_since.set(now);
            if let Some(at) = self.idle_deadline() {
                self.alarms.want(at);
            }
        }
    }

    /// Counts the bytes since the last time.
    fn count_bytes(&self) {
        let count = &self.manager.stats.count;
        let now = (self.wire.received(), self.wire.sent());
        let before = self.counted.replace(now);
        count.downstream_cx_rx_bytes_total.add(now.0.wrapping_sub(before.0));
        count.downstream_cx_tx_bytes_total.add(now.1.wrapping_sub(before.1));
    }

    fn idle_deadline(&self) -> Option<Instant> {
        let idle = self.manager.config.idle_timeout.filter(|_| self.active.get() == 0)?;
        self.idle_since.get().checked_add(idle)
    }

    /// When the request head that is arriving must be complete.
    fn head_deadline(&self, now: Instant) -> Option<Instant> {
        let limit = self.manager.config.request_headers_timeout.filter(|_| !self.http2)?;
        if !self.wire.head_begun.load(Ordering::Relaxed) || self.wire.busy.load(Ordering::Relaxed) {
            return None;
        }
        let since = self.head_since.get().unwrap_or(now);
        self.head_since.set(Some(since));
        since.checked_add(limit)
    }

    fn age_deadline(&self) -> Option<Instant> {
        self.began.0.checked_add(self.manager.config.max_connection_duration?)
    }

    pub fn wall_clock(&self, at: Instant) -> SystemTime {
        wall_clock(self.began, at)
    }

    /// The connection itself has ended.
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// The connection as logs show it for a client that a proxy in front of us named.
    pub fn info_for(&self, client: IpAddr) -> Rc<ConnectionInfo> {
        let mut last = self.forwarded_peer.borrow_mut();
        match &*last {
            Some(info) if info.peer.0.ip() == client => info.clone(),
            _ => {
                let mut info = (*self.info).clone();
                info.peer.0 = SocketAddr::new(client, 0);
                last.insert(Rc::new(info)).clone()
            }
        }
    }

    /// This connection's element of `x-forwarded-client-cert`.
    pub fn client_cert(&self) -> Option<HeaderValue> {
        let make = || super::xfcc::element(self.info.tls.as_deref()?, self.manager.config.set_client_cert);
        self.client_cert.get_or_init(make).clone()
    }

    /// What this hop appends to `x-forwarded-for`.
    pub fn forwarded_address(&self) -> HeaderValue {
        let make = || {
            let peer = self.info.peer.0.ip();
            headers::address_value(if peer.is_loopback() { local_ip() } else { peer })
        };
        self.forwarded_address.get_or_init(make).clone()
    }

    /// Asked once per response: whether it is to be the connection's last one.
    fn closes_with_response(&self) -> bool {
        let limit = self.manager.config.max_requests_per_connection;
        let count = &self.manager.stats.count;
        if limit != 0 && self.requests.get() >= limit {
            count.downstream_cx_max_requests_reached.inc();
            return true;
        }
        if self.drain.should_close() {
            count.downstream_cx_drain_close.inc();
            return true;
        }
        self.closing.get()
    }

    fn close(&self) {
        if !self.closing.replace(true) {
            self.alarms.gate.ring();
        }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(manager: Arc<ConnectionManager>, connection: Connection, worker: Rc<Worker>) {
    let Connection { transport, info, original_dst, direction: _, drain, buffer_limit } = connection;
    let wire = Arc::<Wire>::default();
    let mut io = Io::new(transport, wire.clone());
    let Some(http2) = choose_codec(&manager.config, &info, &mut io, &drain).await else { return };
    let now = Instant::now();
    let down = Rc::new(Downstream {
        original_dst: original_dst.map(|o| o.0),
        http2,
        tls: info.tls.is_some(),
        mutual_tls: info.tls.as_ref().is_some_and(|t| t.peer.is_some()),
        buffer_limit,
        alarms: Alarms::new(),
        wire,
        drain,
        began: (now, SystemTime::now()),
        active: Cell::new(0),
        requests: Cell::new(0),
        counted: Cell::new((0, 0)),
        idle_since: Cell::new(now),
        closing: Cell::new(false),
        gone: Cell::new(false),
        head_since: Cell::new(None),
        tunnel: RefCell::default(),
        client_cert: OnceCell::new(),
        forwarded_address: OnceCell::new(),
        forwarded_peer: RefCell::default(),
        manager: manager.clone(),
        worker,
        info,
    });
    if config_watches_heads(&down) {
        // set once, here
        let _ = down.wire.on_head.set(down.alarms.gate.clone());
    }
    if let Some(limit) = down.manager.config.delayed_close_timeout {
        let _ = down.wire.delayed_close.set(limit);
    }
    if down.manager.config.server_header != ServerHeader::PassThrough {
        let _ = down.wire.server.set(down.manager.config.server_name.clone());
    }
    let counted = Counted::new(&down);
    let service = {
        let down = down.clone();
        service_fn(move |request| handle(down.clone(), request))
    };
    if !http2 {
        io.watch_heads();
    }
    let io = TokioIo::new(io);
    // boxed: the states of both codecs would otherwise lie in every connection's task
    let end = if http2 {
        drive(&down, Box::pin(manager.h2.serve_connection(io, service)), |c| c.graceful_shutdown()).await
    } else {
        let codec = manager.h1.serve_connection(io, service).with_upgrades();
        drive(&down, Box::pin(codec), |c| c.graceful_shutdown()).await
    };
    down.gone.set(true);
    counted.ended(&end);
    let tunnel = down.tunnel.take();
    if let Some(tunnel) = tunnel {
        tokio::select! {
            () = tunnel => {}
            () = down.drain.over() => {}
        }
    }
}

/// Whether the connection speaks HTTP/2; `None`: it ended, or idled, before it said so.
async fn choose_codec(config: &HcmConfig, info: &ConnectionInfo, io: &mut Io, drain: &Drain) -> Option<bool> {
    match (config.codec, info.tls.as_ref().and_then(|t| t.alpn.as_deref())) {
        (CodecType::Http1, _) => Some(false),
        (CodecType::Http2, _) => Some(true),
        (CodecType::Auto, Some(alpn)) => Some(alpn == b"h2"),
        (CodecType::Auto, None) => {
            let idle = async {
                match config.idle_timeout {
                    Some(idle) => tokio::time::sleep(idle).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                found = io.is_http2() => found.ok(),
                () = idle => None,
                () = drain.over() => None,
            }
        }
    }
}

/// How a connection ended.
enum End {
    Codec(Result<(), hyper::Error>),
    /// We cut it: the drain was over.
    Cut,
}

/// Runs the codec together with the connection's timers. These are polled only when one of them has woken the task.
async fn drive<C>(down: &Downstream, mut codec: Pin<Box<C>>, shutdown: impl Fn(Pin<&mut C>)) -> End
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let gate = down.alarms.gate.clone();
    let waker = Waker::from(gate.clone());
    let mut over = Box::pin(down.drain.over());
    let mut timer = Box::pin(tokio::time::sleep_until(far(Instant::now())));
    let mut shut = false;
    gate.ring();
    std::future::poll_fn(|cx| {
        gate.register(cx.waker());
        if let Poll::Ready(result) = codec.as_mut().poll(cx) {
            return Poll::Ready(End::Codec(result));
        }
        while gate.take() {
            let quiet = &mut Context::from_waker(&waker);
            if over.as_mut().poll(quiet).is_ready() {
                return Poll::Ready(End::Cut);
            }
            let asked = down.closing.get();
            if (poll_timers(down, timer.as_mut(), quiet).is_ready() || asked) && !shut {
                shut = true;
                down.closing.set(true);
                shutdown(codec.as_mut());
                if let Poll::Ready(result) = codec.as_mut().poll(cx) {
                    return Poll::Ready(End::Codec(result));
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// An instant that no timer of ours lies behind.
fn far(now: Instant) -> Instant {
    now + std::time::Duration::from_secs(86_400 * 365)
}

/// Ready when the connection has idled or lived too long.
fn poll_timers(down: &Downstream, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        let now = Instant::now();
        let count = &down.manager.stats.count;
        let mut next = down.alarms.fire(now);
        match down.head_deadline(now) {
            Some(at) if at <= now => {
                down.head_since.set(None);
                down.wire.refuse_head();
            }
            Some(at) => next = Some(next.map_or(at, |n| n.min(at))),
            None => {}
        }
        if !down.closing.get() {
            for (deadline, counter) in [
                (down.idle_deadline(), &count.downstream_cx_idle_timeout),
                (down.age_deadline(), &count.downstream_cx_max_duration_reached),
            ] {
                match deadline {
                    Some(at) if at <= now => {
                        counter.inc();
                        return Poll::Ready(());
                    }
                    Some(at) => next = Some(next.map_or(at, |n| n.min(at))),
                    None => {}
                }
            }
        }
        if down.alarms.armed() != next {
            down.alarms.set_armed(next);
            timer.as_mut().reset(next.unwrap_or_else(|| far(now)));
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        down.alarms.set_armed(None);
    }
}

/// Keeps the connection's gauges right even when its task is dropped.
struct Counted<'a>(&'a Rc<Downstream>);

impl Counted<'_> {
    fn new(down: &Rc<Downstream>) -> Counted<'_> {
        let stats = &down.manager.stats;
        stats.count.downstream_cx_total.inc();
        stats.cx_active.inc();
        if down.tls {
            stats.count.downstream_cx_ssl_total.inc();
            stats.cx_ssl_active.inc();
        }
        if down.http2 {
            stats.count.downstream_cx_http2_total.inc();
            stats.cx_http2_active.inc();
        } else {
            stats.count.downstream_cx_http1_total.inc();
            stats.cx_http1_active.inc();
        }
        Counted(down)
    }

    fn ended(&self, end: &End) {
        let down = self.0;
        let count = &down.manager.stats.count;
        let busy = down.active.get() > 0;
        let local = down.closing.get() || matches!(end, End::Cut);
        if let End::Codec(Err(error)) = end {
            codec_error(down, error);
        }
        if down.wire.closed_late.load(Ordering::Relaxed) {
            count.downstream_cx_delayed_close_timeout.inc();
        }
        if busy {
            count.downstream_cx_destroy_active_rq.inc();
        }
        match (local, busy) {
            (true, true) => count.downstream_cx_destroy_local_active_rq.inc(),
            (false, true) => count.downstream_cx_destroy_remote_active_rq.inc(),
            _ => {}
        }
        if local { &count.downstream_cx_destroy_local } else { &count.downstream_cx_destroy_remote }.inc();
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let down = self.0;
        let stats = &down.manager.stats;
        stats.count.downstream_cx_destroy.inc();
        down.count_bytes();
        stats.cx_active.dec();
        if down.tls {
            stats.cx_ssl_active.dec();
        }
        if down.http2 { &stats.cx_http2_active } else { &stats.cx_http1_active }.dec();
        stats.cx_length.record_duration(down.began.0.elapsed());
    }
}

fn config_watches_heads(down: &Downstream) -> bool {
    !down.http2 && down.manager.config.request_headers_timeout.is_some()
}

/// Counts what the codec refused by itself: hyper has already answered it.
fn codec_error(down: &Rc<Downstream>, error: &hyper::Error) {
    let stats = &down.manager.stats;
    let framing = std::error::Error::source(error)
        .and_then(|e| e.downcast_ref::<h2::Error>())
        .is_some_and(|e| e.is_library() || (e.is_go_away() && !e.is_remote()));
    if !error.is_parse() && !framing {
        return;
    }
    stats.count.downstream_cx_protocol_error.inc();
    let (flag, details) = match down.wire.refused.load(Ordering::Relaxed) {
        // no response went out: a broken HTTP/2 connection, or a body that could not be read
        0 => return,
        408 => {
            stats.count.downstream_rq_header_timeout.inc();
            (None, "request_header_timeout")
        }
        431 => {
            stats.count.downstream_rq_too_large.inc();
            (Some(Flag::DownstreamProtocolError), "http1.headers_too_large")
        }
        501 => (Some(Flag::DownstreamProtocolError), names::INVALID_TRANSFER_ENCODING),
        _ => (Some(Flag::DownstreamProtocolError), names::CODEC_ERROR),
    };
    let status = down.wire.refused.load(Ordering::Relaxed);
    let mut exchange = Exchange::begin(down, None, Version::HTTP_11);
    exchange.fail(flag, details);
    exchange.responds(status, &http::HeaderMap::new());
    exchange.bytes_sent = super::io::own_words(status).1.len() as u64;
    exchange.completes();
}

/// A request that ends without a response: its stream is reset by the codec with INTERNAL_ERROR, its connection closed.
#[derive(Debug, thiserror::Error)]
#[error("the request gets no response")]
struct Refused;

/// One request, from its head to its response's.
async fn handle(down: Rc<Downstream>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let (mut parts, incoming) = request.into_parts();
    let mut exchange = Exchange::begin(&down, Some(parts.method.clone()), parts.version);
    exchange.has_body = !incoming.is_end_stream();
    let client = parts.extensions.remove::<OnUpgrade>();
    let result = match route(&mut exchange, &mut parts) {
        Ok((selected, wish)) => act(&mut exchange, &selected, parts, incoming, wish).await,
        Err(reply) => {
            exchange.capture_request(&parts.headers);
            Err(reply)
        }
    };
    Ok(match result {
        Ok(response) => respond(exchange, response, client),
        // nobody would read it
        Err(_) if exchange.request_fault() == Some(Fault::Gone) => return Err(Refused),
        Err(reply) if reply.reset => {
            exchange.fail(reply.flag, reply.details);
            return Err(Refused);
        }
        Err(reply) => respond_locally(exchange, reply),
    })
}

/// Rules, then the route.
fn route(exchange: &mut Exchange, parts: &mut Parts) -> Result<(Selected, Wish), Reply> {
    rules::admit(exchange, parts)?;
    let sanitized = headers::sanitize_request(exchange, parts)?;
    let wish = Wish::of(&parts.method, sanitized.upgrade);
    let manager = exchange.down.manager.clone();
    let not_found = || {
        manager.stats.count.no_route.inc();
        Reply::new(StatusCode::NOT_FOUND, "", "route_not_found").flagged(Flag::NoRouteFound)
    };
    if manager.lacks_filter() {
        return Err(Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "", "").flagged(Flag::NoFilterConfigFound));
    }
    let table = manager.routes().filter(|_| manager.has_router()).ok_or_else(not_found)?;
    if exchange.external {
        for name in &table.config.internal_only_headers {
            parts.headers.remove(name);
        }
    }
    let selected = table.select(&RequestView {
        method: &parts.method,
        path: parts.uri.path_and_query().map_or("", PathAndQuery::as_str).as_bytes(),
        authority: exchange.authority.as_ref().map_or(&b""[..], HeaderValue::as_bytes),
        scheme: exchange.scheme(),
        headers: &parts.headers,
        random: exchange.random,
        grpc: exchange.grpc,
    });
    let forward = selected.as_ref().and_then(|s| match &s.route().action {
        RouteAction::Forward(forward) => Some(&**forward),
        RouteAction::Redirect(_) | RouteAction::Direct(_) => None,
    });
    let refused = wish != Wish::Nothing && !wish.is_allowed(&manager.config, forward);
    let Some(selected) = selected else {
        return Err(if wish == Wish::Nothing { not_found() } else { not_found().closing() });
    };
    exchange.route = Some(selected.clone());
    if refused {
        manager.stats.count.downstream_rq_ws_on_non_ws_route.inc();
        return Err(Reply::new(StatusCode::FORBIDDEN, "", "upgrade_failed").closing());
    }
    Ok((selected, wish))
}

/// What the route says: answer here, or forward.
async fn act(
    exchange: &mut Exchange,
    selected: &Selected,
    mut parts: Parts,
    incoming: Incoming,
    wish: Wish,
) -> Result<Response<ResponseBody>, Reply> {
    let count = &exchange.down.manager.stats.count;
    let must_use_tls = match selected.vhost().require_tls {
        RequireTls::None => false,
        RequireTls::All => true,
        RequireTls::ExternalOnly => exchange.external,
    };
    let route = selected.route();
    let reply = match &route.action {
        _ if must_use_tls && !exchange.down.tls => {
            count.rq_redirect.inc();
            rewrite::to_https(exchange, route)
        }
        RouteAction::Redirect(redirect) => {
            // Envoy counts redirects here too
            count.rq_direct_response.inc();
            rewrite::redirect(exchange, route, redirect)
        }
        RouteAction::Direct(direct) => {
            count.rq_direct_response.inc();
            Reply::new(direct.status, direct.body.clone(), "direct_response")
        }
        RouteAction::Forward(forward) => {
            let is_upgrade = wish != Wish::Nothing;
            let is_websocket = wish.is_websocket();
            if let Wish::Upgrade(kind) = wish {
                parts.headers.insert(header::UPGRADE, kind);
                parts.headers.insert(header::CONNECTION, names::UPGRADE);
            }
            let response = forward::forward(exchange, selected, forward, parts, incoming, is_upgrade).await?;
            return if is_websocket && response.status().is_success() {
                Err(handshake_failed(response))
            } else {
                Ok(response)
            };
        }
    };
    exchange.capture_request(&parts.headers);
    Err(reply)
}

/// An endpoint that answers a WebSocket handshake with success and does not switch: the client gets the head alone.
fn handshake_failed(response: Response<ResponseBody>) -> Reply {
    let (mut head, _) = response.into_parts();
    strip_response(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    Reply::new(head.status, "", "websocket_handshake_unsuccessful").with_headers(head.headers).closing()
}

/// The endpoint's response, as the client gets it.
fn respond(
    mut exchange: Box<Exchange>,
    mut response: Response<ResponseBody>,
    client: Option<OnUpgrade>,
) -> Response<Body> {
    let down = exchange.down.clone();
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (exchange.method == Some(Method::CONNECT) && response.status().is_success());
    let endpoint = response.extensions_mut().remove::<OnUpgrade>();
    // reason phrases are the codec's, as in Envoy
    response.extensions_mut().remove::<ReasonPhrase>();
    if !switches {
        strip_response(response.headers_mut());
    }
    forward::finish_upstream_response(&mut exchange, &mut response);
    let (mut head, body) = response.into_parts();
    finish_head(&mut exchange, &mut head);
    if let (true, Some(client), Some(endpoint)) = (switches, client, endpoint) {
        let tunnel = tunnel(exchange, client, endpoint, body);
        if down.http2 {
            tokio::task::spawn_local(tunnel);
        } else {
            *down.tunnel.borrow_mut() = Some(Box::pin(tunnel));
        }
        return Response::from_parts(head, Body::None);
    }
    let trailers = down.http2 || down.manager.config.http1.enable_trailers;
    Response::from_parts(head, Body::upstream(body, exchange, trailers))
}

fn respond_locally(mut exchange: Box<Exchange>, reply: Reply) -> Response<Body> {
    let (response, data) = reply.into_response(&mut exchange);
    let (mut head, ()) = response.into_parts();
    finish_head(&mut exchange, &mut head);
    Response::from_parts(head, Body::local(data, exchange))
}

/// What holds for every response: the manager's headers, the route's operations, the connection's end.
fn finish_head(exchange: &mut Exchange, head: &mut http::response::Parts) {
    let (status, map) = (head.status, &mut head.headers);
    finish_response(exchange, map);
    if let Some(route) = &exchange.route {
        route.change_response(map, &ResponseTemplates(exchange));
    }
    exchange.responds(status.as_u16(), map);
    debug_assert!(exchange.state == State::Responding, "responds() says that the response has begun");
    let down = &exchange.down;
    // on HTTP/1 what is left of an unread request would stand before the next one
    let unread = !down.http2 && exchange.request_ended().is_none();
    if down.closes_with_response() || unread {
        if down.http2 {
            down.close();
        } else if status != StatusCode::SWITCHING_PROTOCOLS {
            map.insert(header::CONNECTION, names::CLOSE);
            down.wire.last_word.store(true, Ordering::Relaxed);
        }
    }
    // else the codec would offer a client of HTTP/1.0 to keep the connection
    if exchange.version == Version::HTTP_10 && map.contains_key(header::CONNECTION) {
        head.version = Version::HTTP_10;
    }
}
