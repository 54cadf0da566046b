//! From a route to an endpoint's response headers: cluster, host, connection, attempts, timeouts.

use super::exchange::{Exchange, RequestTemplates, Upstream};
use super::headers;
use super::local_reply::Reply;
use super::names;
use super::request_body::{Fault, RequestStream, SharedSource, Source};
use super::retry::{self, Failure};
use super::routes::{Selected, Targets};
use super::timeouts::{Expired, grpc_timeout};
use super::upstream_stats::Event;
use crate::access_log::Flag;
use crate::config::model::{ClusterChoice, Forward, HashPolicy, Priority, RetryPolicy};
use crate::tls::ConnectOptions;
use crate::upstream::{
    Cluster, Host, HttpOptions, IMMEDIATE_FAIL, LbContext, RequestBody, ResponseBody, RetryGuard, SendErrorKind,
    UpstreamError, UpstreamErrorKind,
};
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::Arc;
use tokio::time::Instant;

/// How many dead pooled connections one attempt may meet.
const STALE_CONNECTIONS: u32 = 3;

/// Sends the request along its route and returns the response that the client shall have.
pub(super) async fn forward(
    exchange: &mut Exchange,
    selected: &Selected,
    forward: &Forward,
    mut parts: Parts,
    incoming: Incoming,
    is_upgrade: bool,
) -> Result<Response<ResponseBody>, Reply> {
    let manager = exchange.down.manager.clone();
    manager.stats.count.rq_total.inc();
    if let Some(stats) = selected.stats() {
        stats.request();
    }
    let Some(cluster) = find_cluster(exchange, selected, forward, &parts) else {
        manager.stats.count.no_cluster.inc();
        return Err(Reply::new(forward.cluster_not_found, "", "cluster_not_found").flagged(Flag::NoClusterFound));
    };
    exchange.upstream = Some(Upstream::new(cluster.clone()));
    let policy = forward.retry_policy.as_deref().or(selected.vhost().retry_policy.as_deref());
    let policy = policy.filter(|p| p.num_retries > 0 && !is_upgrade);
    set_timeouts(exchange, forward, &parts, is_upgrade);
    super::rewrite::prepare(exchange, selected, forward, &mut parts)
        .map_err(|()| Reply::new(StatusCode::BAD_REQUEST, "", "path_normalization_failed"))?;
    exchange.capture_request(&parts.headers);
    let limit = if policy.is_some() { exchange.down.buffer_limit as usize } else { 0 };
    if exchange.has_body && !is_upgrade {
        let trailers = exchange.down.http2 || manager.config.http1.enable_trailers;
        exchange.source = Some(Source::new(incoming, limit, trailers, exchange.start));
    }
    // what wishes to be a tunnel has no end that a response could wait for
    exchange.has_body |= is_upgrade;
    let source = exchange.source.clone();
    let result = attempts(exchange, &cluster, forward, policy, parts, source).await;
    let status = match &result {
        Ok(response) => response.status().as_u16(),
        // no word on the endpoint
        Err(_) if exchange.request_fault().is_some() => return result,
        Err(reply) => reply.status.as_u16(),
    };
    exchange.charge(Event::Response(status));
    result
}

fn find_cluster(exchange: &Exchange, selected: &Selected, forward: &Forward, parts: &Parts) -> Option<Arc<Cluster>> {
    match selected.targets() {
        Targets::One(slot) => slot.load(),
        Targets::Weighted { .. } => selected.weighted()?.0.slot.load(),
        Targets::Header => {
            let ClusterChoice::Header(name) = &forward.cluster else { return None };
            let name = parts.headers.get(name)?.to_str().ok()?;
            exchange.down.manager.services.clusters.slot(name).load()
        }
        Targets::Nowhere => None,
    }
}

/// The timeouts that hold from now on. An upgraded stream has only the idle timeout and the maximum duration.
fn set_timeouts(exchange: &mut Exchange, forward: &Forward, parts: &Parts, is_upgrade: bool) {
    let config = &exchange.down.manager.config;
    let timeouts = &mut exchange.timeouts;
    timeouts.route = forward.timeout.filter(|_| !is_upgrade);
    timeouts.idle = forward.idle_timeout.unwrap_or(config.stream_idle_timeout);
    timeouts.request_until = config.request_timeout.filter(|_| !is_upgrade).and_then(|t| exchange.start.checked_add(t));
    let mut duration = forward.max_stream_duration.unwrap_or(config.max_stream_duration);
    if let Some(bound) = forward.grpc_timeout_max
        && exchange.grpc
        && let Some(asked) = parts.headers.get(&names::GRPC_TIMEOUT).and_then(|v| grpc_timeout(v.as_bytes()))
    {
        let asked = bound.map_or(asked, |bound| asked.min(bound));
        timeouts.route = Some(asked).filter(|t| !t.is_zero());
        if forward.max_stream_duration.is_none() {
            duration = None;
        }
    }
    timeouts.stream_until = duration.and_then(|t| exchange.start.checked_add(t));
}

/// Why an attempt gave no response.
struct Failed {
    failure: Failure,
    detail: String,
}

enum Ended {
    Failed(Failed),
    /// A timeout of the whole request.
    Expired(Expired),
    /// The request's body did not come to its end.
    Client,
}

async fn attempts(
    exchange: &mut Exchange,
    cluster: &Arc<Cluster>,
    forward: &Forward,
    policy: Option<&RetryPolicy>,
    parts: Parts,
    source: Option<SharedSource>,
) -> Result<Response<ResponseBody>, Reply> {
    let mut tried: SmallVec<[Arc<Host>; 2]> = SmallVec::new();
    let mut parts = Some(parts);
    let mut retries = 0;
    let mut _budget = None;
    // a retry costs a copy of the headers, so that is made only while a retry may follow
    while let Some(current) = parts.take() {
        let retry = policy.filter(|policy| retries < policy.num_retries);
        parts = retry.map(|_| current.clone());
        if let Some(upstream) = &mut exchange.upstream {
            upstream.attempts += 1;
        }
        exchange.timeouts.per_try_until =
            policy.and_then(|p| p.per_try_timeout).and_then(|t| Instant::now().checked_add(t));
        let ended = attempt(exchange, cluster, forward, policy, current, source.as_ref(), &mut tried).await;
        exchange.timeouts.per_try_until = None;
        if let Err(ended) = &ended {
            charge_host(exchange, ended);
        }
        match ended {
            Ok(response) => {
                let wanted =
                    policy.is_some_and(|p| retry::wants_after_response(p, response.status(), response.headers()));
                if wanted && let Some(granted) = retry_now(exchange, cluster, forward.priority, retry, source.as_ref())
                {
                    drop(response);
                    retries += 1;
                    pause(exchange, granted.policy, retries).await.map_err(|e| expired(exchange, e))?;
                    _budget = Some(granted.budget);
                    continue;
                }
                if wanted {
                    exhausted(exchange, retries);
                } else if retries > 0 {
                    exchange.charge(Event::RetrySuccess);
                }
                return Ok(response);
            }
            Err(Ended::Expired(kind)) => return Err(expired(exchange, kind)),
            Err(Ended::Client) => {
                return Err(Reply::codec_error(exchange, StatusCode::BAD_REQUEST, names::CODEC_ERROR));
            }
            Err(Ended::Failed(failed)) => {
                // a pooled connection that died before it took a byte says nothing of the endpoint
                let wanted = policy.is_some_and(|p| retry::wants_after_failure(p, failed.failure));
                if wanted && let Some(granted) = retry_now(exchange, cluster, forward.priority, retry, source.as_ref())
                {
                    retries += 1;
                    pause(exchange, granted.policy, retries).await.map_err(|e| expired(exchange, e))?;
                    _budget = Some(granted.budget);
                    continue;
                }
                if wanted {
                    exhausted(exchange, retries);
                }
                return Err(refuse(exchange, &failed, retries));
            }
        }
    }
    // the loop ends only by returning: parts are kept whenever it goes on
    Err(Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "", "internal_error"))
}

/// Counts for the host what gave no response.
fn charge_host(exchange: &Exchange, ended: &Ended) {
    let Some(host) = exchange.upstream.as_ref().and_then(|u| u.host.as_ref()) else { return };
    match ended {
        Ended::Failed(Failed {
            failure: Failure::Connect(UpstreamErrorKind::Overflow | UpstreamErrorKind::NoHealthyUpstream),
            ..
        })
        | Ended::Client => {}
        Ended::Failed(Failed { failure, .. }) => host.stats.charge_failure(*failure == Failure::PerTryTimeout),
        Ended::Expired(kind) => host.stats.charge_failure(*kind == Expired::Route),
    }
}

/// A retry that may be made, and its place in the cluster's budget, held until the attempt has ended.
struct Granted<'a> {
    policy: &'a RetryPolicy,
    budget: RetryGuard,
}

/// Whether there is still a retry to be had: in the policy, in the body and in the cluster's budget.
fn retry_now<'a>(
    exchange: &Exchange,
    cluster: &Cluster,
    priority: Priority,
    retry: Option<&'a RetryPolicy>,
    source: Option<&SharedSource>,
) -> Option<Granted<'a>> {
    let policy = retry?;
    if source.is_some_and(|s| !s.borrow().can_replay()) {
        return None;
    }
    let Some(budget) = cluster.breakers(priority).try_retry() else {
        exchange.charge(Event::RetryOverflow);
        return None;
    };
    exchange.charge(Event::Retry);
    Some(Granted { policy, budget })
}

async fn pause(exchange: &mut Exchange, policy: &RetryPolicy, retries: u32) -> Result<(), Expired> {
    let pause = retry::back_off(policy, retries);
    exchange.within(tokio::time::sleep(pause)).await
}

fn exhausted(exchange: &mut Exchange, retries: u32) {
    if retries > 0 {
        exchange.flags.set(Flag::UpstreamRetryLimitExceeded);
        exchange.charge(Event::RetryLimitExceeded);
    }
}

/// One attempt: host, connection, request, response headers.
async fn attempt(
    exchange: &mut Exchange,
    cluster: &Arc<Cluster>,
    forward: &Forward,
    policy: Option<&RetryPolicy>,
    mut parts: Parts,
    source: Option<&SharedSource>,
    tried: &mut SmallVec<[Arc<Host>; 2]>,
) -> Result<Response<ResponseBody>, Ended> {
    let worker = exchange.down.worker.clone();
    let avoid = if policy.is_some_and(|p| p.avoid_previous_hosts) { &tried[..] } else { &[] };
    let context = LbContext {
        hash: hash(exchange, forward, &parts),
        original_dst: exchange.down.original_dst,
        avoid,
        picks: policy.map_or(1, |p| p.host_selection_max_attempts),
    };
    let host = worker.upstream.choose_host(cluster, &context).map_err(|e| no_connection(exchange, e))?;
    if policy.is_some() {
        tried.push(host.clone());
    }
    super::rewrite::for_host(exchange, forward, &host, &mut parts);
    let attempts = exchange.upstream.as_ref().map_or(1, |u| u.attempts);
    if attempts > 1 && exchange.route.as_ref().is_some_and(|r| r.vhost().include_request_attempt_count) {
        parts.headers.insert(names::X_ENVOY_ATTEMPT_COUNT, names::number(u64::from(attempts)));
    }
    let options = HttpOptions {
        downstream_http2: exchange.down.http2,
        priority: forward.priority,
        tls: tls_options(exchange, cluster),
    };
    if let Some(upstream) = &mut exchange.upstream {
        upstream.host = Some(host.clone());
    }
    // a pooled connection that the endpoint had already closed takes no byte of the request and says nothing of the
    // endpoint's health: that is no attempt yet
    let mut stale = 0;
    loop {
        let lease = match exchange.within(worker.upstream.http(cluster, &host, &options)).await {
            Ok(Ok(lease)) => lease,
            Ok(Err(error)) => return Err(no_connection(exchange, error)),
            Err(kind) => return Err(ran_out(kind)),
        };
        let now = Instant::now();
        if let Some(upstream) = &mut exchange.upstream {
            upstream.pool_ready = Some(now);
            upstream.sent_first = Some(now);
            upstream.connection = Some(lease.connection().clone());
        }
        if lease.is_http2() {
            to_http2(exchange, &mut parts);
        } else {
            to_http1(exchange, &mut parts);
        }
        let body = source.map_or(RequestBody::Empty, |s| RequestBody::Stream(Box::pin(RequestStream::new(s.clone()))));
        match exchange.within(lease.send(Request::from_parts(parts, body))).await {
            Ok(Ok(response)) => {
                let now = Instant::now();
                exchange.last_activity = now;
                if let Some(upstream) = &mut exchange.upstream {
                    upstream.response_first = Some(now);
                }
                host.stats.charge_response(response.status());
                if cluster.is_checked() && response.headers().contains_key(IMMEDIATE_FAIL) {
                    cluster.fail_at_once(&host);
                }
                return Ok(response);
            }
            Ok(Err(_)) if exchange.request_fault().is_some() => return Err(Ended::Client),
            Ok(Err(error)) => match error.unsent {
                Some(request) if stale < STALE_CONNECTIONS => {
                    stale += 1;
                    parts = request.into_parts().0;
                }
                unsent => {
                    let failure = Failure::Send(error.kind, unsent.is_some());
                    // Envoy names the kind only
                    return Err(Ended::Failed(Failed { failure, detail: String::new() }));
                }
            },
            Err(kind) => return Err(ran_out(kind)),
        }
    }
}

fn no_connection(exchange: &mut Exchange, error: UpstreamError) -> Ended {
    if let Some(upstream) = &mut exchange.upstream {
        upstream.failure.clone_from(&error.transport_failure);
    }
    Ended::Failed(Failed { failure: Failure::Connect(error.kind), detail: error.transport_failure })
}

/// Notes that a response which had begun was cut because of the request's own body.
pub(super) fn blame_client(exchange: &mut Exchange, fault: Fault) {
    // of a client that went away, the exchange says so itself
    if fault == Fault::Protocol {
        exchange.down.manager.stats.count.downstream_cx_protocol_error.inc();
        exchange.fail(Some(Flag::DownstreamProtocolError), names::CODEC_ERROR);
    }
}

fn ran_out(kind: Expired) -> Ended {
    match kind {
        Expired::PerTry => Ended::Failed(Failed { failure: Failure::PerTryTimeout, detail: String::new() }),
        kind => Ended::Expired(kind),
    }
}

/// Server name and certificate name of the upstream connection, where the cluster takes them from the request.
fn tls_options(exchange: &Exchange, cluster: &Cluster) -> ConnectOptions {
    let http = &cluster.config.http;
    if !http.auto_sni && !http.auto_san_validation {
        return ConnectOptions::default();
    }
    let authority = exchange.authority.as_ref().map_or(&b""[..], |v| v.as_bytes());
    let name: Arc<str> = String::from_utf8_lossy(super::routes::without_port(authority)).into();
    ConnectOptions {
        sni: http.auto_sni.then(|| name.clone()),
        verify_name: http.auto_san_validation.then_some(name),
        alpn: None,
    }
}

/// HTTP/2 wants scheme, authority and path in the URI, and no `host`.
fn to_http2(exchange: &Exchange, parts: &mut Parts) {
    parts.version = http::Version::HTTP_2;
    let host = parts.headers.remove(http::header::HOST).or_else(|| exchange.authority.clone());
    let same =
        |host: &http::HeaderValue| parts.uri.authority().is_some_and(|a| a.as_str().as_bytes() == host.as_bytes());
    let is_connect = parts.method == http::Method::CONNECT;
    if host.as_ref().is_none_or(same) && (is_connect || parts.uri.scheme().is_some()) {
        return;
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    if !is_connect {
        uri.scheme = Some(if exchange.down.tls { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
        uri.path_and_query.get_or_insert_with(|| http::uri::PathAndQuery::from_static("/"));
    }
    uri.authority = host.and_then(|h| http::uri::Authority::try_from(h.as_bytes()).ok()).or(uri.authority);
    // without an authority there is no absolute form, and the path alone is sent
    if uri.authority.is_none() {
        uri.scheme = None;
    }
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

/// HTTP/1.1 wants the path in the request line and the authority in `host`.
fn to_http1(exchange: &Exchange, parts: &mut Parts) {
    parts.version = http::Version::HTTP_11;
    if parts.uri.authority().is_some() && parts.method != http::Method::CONNECT {
        parts.uri = parts.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    }
    if !parts.headers.contains_key(http::header::HOST)
        && let Some(authority) = &exchange.authority
    {
        parts.headers.insert(http::header::HOST, authority.clone());
    }
}

/// Hash for consistent balancing: of the first policy that yields something.
fn hash(exchange: &Exchange, forward: &Forward, parts: &Parts) -> Option<u64> {
    let of = |bytes: &[u8]| twox_hash::XxHash64::oneshot(0, bytes);
    forward.hash_policy.iter().find_map(|policy| match policy {
        HashPolicy::Header(name) => parts.headers.get(name).map(|v| of(v.as_bytes())),
        HashPolicy::SourceIp => Some(of(exchange.info.peer.0.ip().to_string().as_bytes())),
        HashPolicy::Query(name) => super::routes::query_value(parts.uri.query()?.as_bytes(), name).map(of),
        HashPolicy::Cookie(name) => parts
            .headers
            .get_all(http::header::COOKIE)
            .iter()
            .flat_map(|v| v.as_bytes().split(|b| *b == b';'))
            .find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(of),
    })
}

/// The reply to a request that no attempt could bring to a response.
fn refuse(exchange: &mut Exchange, failed: &Failed, retries: u32) -> Reply {
    let (status, flag, reason) = match failed.failure {
        Failure::Connect(UpstreamErrorKind::NoHealthyUpstream) => {
            return Reply::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", "no_healthy_upstream")
                .flagged(Flag::NoHealthyUpstream);
        }
        Failure::PerTryTimeout => {
            exchange.charge(Event::PerTryTimeout);
            return Reply::new(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout", "upstream_per_try_timeout")
                .flagged(Flag::UpstreamRequestTimeout);
        }
        Failure::Connect(UpstreamErrorKind::Overflow) => (503, Flag::UpstreamOverflow, "overflow"),
        Failure::Connect(UpstreamErrorKind::ConnectionFailure) => {
            (503, Flag::UpstreamConnectionFailure, "remote connection failure")
        }
        Failure::Connect(UpstreamErrorKind::ConnectTimeout) => {
            (503, Flag::UpstreamConnectionFailure, "connection timeout")
        }
        Failure::Send(SendErrorKind::ConnectionTermination | SendErrorKind::RequestBody, _) => {
            (503, Flag::UpstreamConnectionTermination, "connection termination")
        }
        Failure::Send(SendErrorKind::RemoteReset, _) => (503, Flag::UpstreamRemoteReset, "remote reset"),
        Failure::Send(SendErrorKind::RefusedStream, _) => {
            (503, Flag::UpstreamRemoteReset, "remote refused stream reset")
        }
        Failure::Send(SendErrorKind::ProtocolError, _) => (502, Flag::UpstreamProtocolError, "protocol error"),
    };
    let retried = if retries > 0 { "retried and the latest reset reason" } else { "reset reason" };
    let body = format!("upstream connect error or disconnect/reset before headers. {retried}: {reason}");
    let reply = Reply::new(
        StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        body,
        reset_details(reason, &failed.detail),
    )
    .flagged(flag);
    let overloaded = failed.failure == Failure::Connect(UpstreamErrorKind::Overflow);
    if overloaded && !suppresses(exchange) {
        return reply.with(names::X_ENVOY_OVERLOADED, names::TRUE);
    }
    reply
}

/// Whether the router is told to add no `x-envoy-` headers.
pub(super) fn suppresses(exchange: &Exchange) -> bool {
    exchange.down.manager.suppresses_envoy_headers()
}

fn reset_details(reason: &str, detail: &str) -> Cow<'static, str> {
    let bar = if detail.is_empty() { "" } else { "|" };
    Cow::Owned(format!("upstream_reset_before_response_started{{{reason}{bar}{detail}}}").replace(' ', "_"))
}

/// The reply to a request whose time has run out.
fn expired(exchange: &mut Exchange, kind: Expired) -> Reply {
    count_expired(exchange, kind);
    // a client that has not sent its request is late itself
    let late =
        if exchange.request_ended().is_some() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
    match kind {
        Expired::Route | Expired::PerTry => {
            Reply::new(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout", "response_timeout")
                .flagged(Flag::UpstreamRequestTimeout)
        }
        Expired::Idle => Reply::new(late, "stream timeout", "stream_idle_timeout").flagged(Flag::StreamIdleTimeout),
        Expired::Request => {
            Reply::new(StatusCode::REQUEST_TIMEOUT, "request timeout", "request_overall_timeout").closing()
        }
        Expired::Duration => {
            Reply::new(late, "downstream duration timeout", "max_duration_timeout").flagged(Flag::DurationTimeout)
        }
    }
}

pub(super) fn count_expired(exchange: &Exchange, kind: Expired) {
    let count = &exchange.down.manager.stats.count;
    match kind {
        Expired::Route => exchange.charge(Event::Timeout),
        Expired::PerTry => exchange.charge(Event::PerTryTimeout),
        Expired::Idle => count.downstream_rq_idle_timeout.inc(),
        Expired::Request => count.downstream_rq_timeout.inc(),
        Expired::Duration => {
            count.downstream_rq_max_duration_reached.inc();
            exchange.charge(Event::MaxDurationReached);
        }
    }
}

/// Changes to the response's headers that need to know where it came from.
pub(super) fn finish_upstream_response(exchange: &mut Exchange, response: &mut Response<ResponseBody>) {
    if exchange.details.is_empty() {
        exchange.details = Cow::Borrowed(names::VIA_UPSTREAM);
    }
    let Some(upstream) = &exchange.upstream else { return };
    let map = response.headers_mut();
    if !suppresses(exchange)
        && let (Some(first), Some(ended)) = (upstream.response_first, exchange.request_ended())
    {
        let took = headers::milliseconds(first.saturating_duration_since(ended).as_millis());
        map.insert(names::X_ENVOY_UPSTREAM_SERVICE_TIME, took);
    }
    if exchange.route.as_ref().is_some_and(|r| r.vhost().include_attempt_count_in_response) {
        map.insert(names::X_ENVOY_ATTEMPT_COUNT, names::number(u64::from(upstream.attempts)));
    }
}

/// Applies the request operations of every level.
pub(super) fn apply_request_ops(exchange: &Exchange, selected: &Selected, parts: &mut Parts) {
    for ops in selected.request_ops() {
        ops.apply(&mut parts.headers, &RequestTemplates(exchange));
    }
}
