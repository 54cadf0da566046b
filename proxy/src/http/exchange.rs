//! One request and its response. An [`Exchange`] is made when request headers arrive and ends by being dropped: that is where
//! stats and access log are written, exactly once, whichever way it went.
//!
//! It lives in one box: it moves from the handler into the response body, and a pointer moves faster than its captures.

use super::alarm::AlarmId;
use super::connection::Downstream;
use super::names;
use super::request_body::{Fault, SharedSource};
use super::retry::grpc_status;
use super::routes::{Selected, Templates};
use super::timeouts::{Expired, Timeouts};
use super::upstream_stats::{self, Event};
use crate::access_log::{
    Captured, ConnectionInfo, Entry, Flag, Formatter, HeaderSource, Kind, ResponseFlags, Timings, UpstreamView,
};
use crate::upstream::{Cluster, Host, UpstreamConnectionInfo};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Version};
use std::borrow::Cow;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How far the exchange has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No response headers yet.
    Waiting,
    Responding,
    /// The last byte was given to the codec.
    Complete,
}

/// The upstream side, once a cluster is known.
pub(super) struct Upstream {
    pub cluster: Arc<Cluster>,
    pub host: Option<Arc<Host>>,
    pub connection: Option<Rc<UpstreamConnectionInfo>>,
    pub failure: String,
    pub attempts: u32,
    pub pool_ready: Option<Instant>,
    pub sent_first: Option<Instant>,
    pub response_first: Option<Instant>,
    pub response_last: Option<Instant>,
}

impl Upstream {
    pub fn new(cluster: Arc<Cluster>) -> Upstream {
        Upstream {
            cluster,
            host: None,
            connection: None,
            failure: String::new(),
            attempts: 0,
            pool_ready: None,
            sent_first: None,
            response_first: None,
            response_last: None,
        }
    }
}

/// A request and its response, see the module.
pub(super) struct Exchange {
    pub down: Rc<Downstream>,
    pub alarm: AlarmId,
    /// Stable through the life of the request: weighted clusters and fractions use it.
    pub random: u64,
    pub start: Instant,
    pub timeouts: Timeouts,
    pub state: State,
    pub flags: ResponseFlags,
    pub details: Cow<'static, str>,

    pub info: Rc<ConnectionInfo>,
    /// `None`: the codec refused the request before it had one.
    pub method: Option<Method>,
    /// The request's head was not its end.
    pub has_body: bool,
    pub version: Version,
    pub grpc: bool,
    /// From outside the trusted networks.
    pub external: bool,
    pub authority: Option<HeaderValue>,
    pub path: Option<PathAndQuery>,
    pub original_path: Option<PathAndQuery>,
    pub request_id: Option<HeaderValue>,
    pub request_captured: Captured,
    pub source: Option<SharedSource>,

    pub route: Option<Selected>,
    pub upstream: Option<Upstream>,

    pub status: u16,
    pub response_captured: Captured,
    pub trailers_captured: Captured,
    pub grpc_status: Option<u32>,
    pub local_body: Cow<'static, str>,
    pub response_started: Option<Instant>,
    pub bytes_sent: u64,
    /// Last byte of the body in either direction of the response; the request's is in `source`.
    pub last_activity: Instant,
    wire_before: (u64, u64),
}

impl Exchange {
    pub fn begin(down: &Rc<Downstream>, method: Option<Method>, version: Version) -> Box<Exchange> {
        let now = Instant::now();
        let stats = &down.manager.stats;
        stats.count.downstream_rq_total.inc();
        stats.rq_active.inc();
        if down.http2 { &stats.count.downstream_rq_http2_total } else { &stats.count.downstream_rq_http1_total }.inc();
        down.request_begins();
        Box::new(Exchange {
            alarm: down.alarms.acquire(),
            random: fastrand::u64(..),
            start: now,
            timeouts: Timeouts::default(),
            state: State::Waiting,
            flags: ResponseFlags::default(),
            details: Cow::Borrowed(""),
            info: down.info.clone(),
            method,
            has_body: false,
            version,
            grpc: false,
            external: true,
            authority: None,
            path: None,
            original_path: None,
            request_id: None,
            request_captured: Captured::default(),
            source: None,
            route: None,
            upstream: None,
            status: 0,
            response_captured: Captured::default(),
            trailers_captured: Captured::default(),
            grpc_status: None,
            local_body: Cow::Borrowed(""),
            response_started: None,
            bytes_sent: 0,
            last_activity: now,
            wire_before: (down.wire.received(), down.wire.sent()),
            down: down.clone(),
        })
    }

    pub fn scheme(&self) -> &'static str {
        if self.down.tls { "https" } else { "http" }
    }

    pub fn fail(&mut self, flag: Option<Flag>, details: impl Into<Cow<'static, str>>) {
        if let Some(flag) = flag {
            self.flags.set(flag);
        }
        self.details = details.into();
    }

    /// Counts for the cluster and the route.
    pub fn charge(&self, event: Event) {
        if let Some(upstream) = &self.upstream {
            upstream_stats::charge(&upstream.cluster, event, !self.external);
        }
        if let Some(stats) = self.route.as_ref().and_then(Selected::stats) {
            stats.charge(event);
        }
    }

    /// Keeps what logs will ask of the request, before its headers move on.
    pub fn capture_request(&mut self, headers: &HeaderMap) {
        let logs = &self.down.manager.logs;
        if !logs.is_empty() {
            self.request_captured = Captured::take(logs.request_headers(), headers);
        }
        if let Some(route) = &self.route {
            for ops in route.response_ops() {
                let more = Captured::take(ops.request_headers(), headers);
                self.request_captured.0.extend(more.0);
            }
        }
    }

    /// Notes the response headers as they go to the client.
    pub fn responds(&mut self, status: u16, headers: &HeaderMap) {
        let manager = self.down.manager.clone();
        self.status = status;
        self.state = State::Responding;
        manager.stats.response(status);
        if self.request_ended().is_none() && status != 101 {
            manager.stats.count.downstream_rq_response_before_rq_complete.inc();
        }
        if !manager.logs.is_empty() {
            self.response_started = Some(Instant::now());
            self.response_captured = Captured::take(manager.logs.response_headers(), headers);
            if self.grpc && self.grpc_status.is_none() {
                self.grpc_status = grpc_status(headers);
            }
        }
    }

    pub fn sees_trailers(&mut self, trailers: &HeaderMap) {
        let logs = &self.down.manager.logs;
        if !logs.is_empty() {
            self.trailers_captured = Captured::take(logs.response_trailers(), trailers);
            self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        }
    }

    /// The upstream's last byte has arrived and was given to the codec.
    pub fn completes(&mut self) {
        if self.state == State::Complete {
            return;
        }
        self.state = State::Complete;
        let ended = self.request_ended();
        if let Some(upstream) = &mut self.upstream {
            let now = Instant::now();
            upstream.response_last = Some(now);
            if let Some(ended) = ended {
                self.charge(Event::Took(now.saturating_duration_since(ended)));
            }
        }
    }

    /// When the last byte of the request arrived.
    pub fn request_ended(&self) -> Option<Instant> {
        match &self.source {
            None => (!self.has_body).then_some(self.start),
            Some(source) => source.borrow().ended,
        }
    }

    /// Why the request's body ended early, if it did.
    pub fn request_fault(&self) -> Option<Fault> {
        self.source.as_ref()?.borrow().fault
    }

    /// Sets the alarm by the timeouts as they are now.
    pub fn arm(&mut self) -> Result<(), Expired> {
        let next = self.check_timeouts()?;
        self.down.alarms.set(self.alarm, next);
        Ok(())
    }

    fn check_timeouts(&self) -> Result<Option<Instant>, Expired> {
        let (ended, activity) = match &self.source {
            None => (self.request_ended(), self.last_activity),
            Some(source) => {
                let source = source.borrow();
                (source.ended, self.last_activity.max(source.last_activity))
            }
        };
        self.timeouts.check(Instant::now(), ended, activity)
    }

    /// Ready when a timeout has run out.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        while self.down.alarms.poll(self.alarm, cx).is_ready() {
            if let Err(expired) = self.arm() {
                return Poll::Ready(expired);
            }
        }
        Poll::Pending
    }

    /// Waits for the future, or until a timeout runs out.
    pub async fn within<F: Future>(&mut self, future: F) -> Result<F::Output, Expired> {
        self.arm()?;
        let mut future = pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_expired(cx).map(Err),
        })
        .await
    }

    fn entry<'a>(&'a self, now: Instant, request: &'a dyn HeaderSource, response: &'a dyn HeaderSource) -> Entry<'a> {
        let since = |at: Instant| at.saturating_duration_since(self.start);
        let upstream = self.upstream.as_ref();
        let (received, ended) = self.source.as_ref().map_or((0, Some(self.start)), |source| {
            let source = source.borrow();
            (source.received, source.ended)
        });
        let wire_received = self.down.wire.received().saturating_sub(self.wire_before.0);
        let wire_sent = self.down.wire.sent().saturating_sub(self.wire_before.1);
        let text = |v: &'a Option<HeaderValue>| v.as_ref().and_then(|v| v.to_str().ok());
        Entry {
            kind: Kind::Http,
            connection: &self.info,
            start: self.down.wall_clock(self.start),
            duration: since(now),
            timings: Timings {
                request_received: ended.map(since),
                upstream_request_first: upstream.and_then(|u| u.sent_first).map(since),
                upstream_request_last: upstream.and_then(|u| u.sent_first.max(ended)).map(since),
                upstream_response_first: upstream.and_then(|u| u.response_first).map(since),
                upstream_response_last: upstream.and_then(|u| u.response_last).map(since),
                response_first: self.response_started.map(since),
                response_last: (self.state == State::Complete).then(|| since(now)),
                handshake: None,
                upstream_pool_ready: upstream.and_then(|u| u.pool_ready).map(since),
            },
            method: self.method.as_ref().map(Method::as_str),
            path: self.path.as_ref().map(PathAndQuery::as_str),
            original_path: self.original_path.as_ref().map(PathAndQuery::as_str),
            authority: text(&self.authority),
            scheme: Some(self.scheme()),
            protocol: Some(match self.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            }),
            request_headers: request,
            response_headers: response,
            response_trailers: &self.trailers_captured,
            response_code: Some(self.status),
            response_code_details: &self.details,
            connection_termination_details: "",
            flags: self.flags,
            bytes_received: received,
            bytes_sent: self.bytes_sent,
            wire_bytes_received: wire_received,
            wire_bytes_sent: wire_sent,
            request_headers_bytes: 0,
            response_headers_bytes: 0,
            response_trailers_bytes: 0,
            route_name: self.route.as_ref().map_or("", |r| &r.route().name),
            virtual_cluster: "",
            upstream: upstream.map(|u| UpstreamView {
                cluster: &u.cluster.config.name,
                observability_name: &u.cluster.config.stat_name,
                host: u.host.as_ref().map(|h| &h.address),
                host_name: u.host.as_ref().map_or("", |h| &h.hostname),
                local: u.connection.as_ref().and_then(|c| c.local),
                tls: u.connection.as_ref().and_then(|c| c.tls.as_deref()),
                protocol: u.connection.as_ref().map(|c| if c.http2 { "HTTP/2" } else { "HTTP/1.1" }),
                connection_id: u.connection.as_ref().map(|c| c.id),
                transport_failure: &u.failure,
                wire_bytes_received: 0,
                wire_bytes_sent: 0,
                attempts: u.attempts,
            }),
            grpc_status: self.grpc_status,
            stream_id: text(&self.request_id).unwrap_or_default(),
            local_reply_body: &self.local_body,
            health_check: false,
            traced: false,
        }
    }
}

/// Formats of request headers: the live map is the request's, there is no response yet.
pub(super) struct RequestTemplates<'a>(pub &'a Exchange);

impl Templates for RequestTemplates<'_> {
    fn write(&self, format: &Formatter, headers: &HeaderMap, out: &mut Vec<u8>) {
        let none = Captured::default();
        format.write(&self.0.entry(Instant::now(), headers, &none), out);
    }
}

/// Formats of response headers: the live map is the response's, the request's values were captured.
pub(super) struct ResponseTemplates<'a>(pub &'a Exchange);

impl Templates for ResponseTemplates<'_> {
    fn write(&self, format: &Formatter, headers: &HeaderMap, out: &mut Vec<u8>) {
        format.write(&self.0.entry(Instant::now(), &self.0.request_captured, headers), out);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let down = self.down.clone();
        let stats = &down.manager.stats;
        let now = Instant::now();
        if self.state != State::Complete {
            self.reset();
        }
        stats.rq_active.dec();
        stats.request_time(now.saturating_duration_since(self.start));
        if !down.manager.logs.is_empty() {
            down.manager.logs.log(&self.entry(now, &self.request_captured, &self.response_captured));
        }
        down.alarms.release(self.alarm);
        down.request_ends(now);
    }
}

impl Exchange {
    /// The stream ended early and nobody has said why: then the client went away.
    fn reset(&mut self) {
        let count = &self.down.manager.stats.count;
        let theirs = self.details.is_empty() || self.details == names::VIA_UPSTREAM;
        if theirs && self.flags.is_empty() {
            count.downstream_rq_rx_reset.inc();
            if self.down.http2 && !self.down.is_gone() {
                self.fail(Some(Flag::DownstreamRemoteReset), "http2.remote_reset");
            } else {
                self.fail(Some(Flag::DownstreamConnectionTermination), "downstream_remote_disconnect");
            }
        } else {
            count.downstream_rq_tx_reset.inc();
            if self.state == State::Responding {
                count.rq_reset_after_downstream_response_started.inc();
            }
        }
    }
}

/// The wall clock at an instant, from one reading of both clocks.
pub(super) fn wall_clock(base: (Instant, SystemTime), at: Instant) -> SystemTime {
    base.1 + at.saturating_duration_since(base.0).min(Duration::from_secs(u64::from(u32::MAX)))
}
