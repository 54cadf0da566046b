//! What the exchange tells the stats of its cluster and of its route.

use crate::stats::{Counter, Histogram, Scope, Unit};
use crate::upstream::Cluster;
use crate::upstream::stats::ResponseCodes;
use std::time::Duration;

/// Something worth counting that happened to a request on its way upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A response, or a reply made here in its place.
    Response(u16),
    /// From the end of the request to the end of the upstream's response.
    Took(Duration),
    Timeout,
    PerTryTimeout,
    Retry,
    RetrySuccess,
    RetryLimitExceeded,
    RetryOverflow,
    MaxDurationReached,
}

/// Counts it for the cluster. `internal`: the request came from a network that is trusted.
pub(super) fn charge(cluster: &Cluster, event: Event, internal: bool) {
    let stats = cluster.stats();
    match event {
        Event::Response(status) => {
            // statuses come from the codec or from us, both of which have only valid ones
            if let Ok(status) = http::StatusCode::from_u16(status) {
                stats.charge_response(status, internal, false);
            }
        }
        Event::Took(took) => stats.charge_time(took, internal, false),
        Event::Timeout => stats.upstream_rq_timeout.inc(),
        Event::PerTryTimeout => stats.upstream_rq_per_try_timeout.inc(),
        Event::Retry => {
            stats.upstream_rq_retry.inc();
            stats.upstream_rq_retry_backoff_exponential.inc();
        }
        Event::RetrySuccess => stats.upstream_rq_retry_success.inc(),
        Event::RetryLimitExceeded => stats.upstream_rq_retry_limit_exceeded.inc(),
        Event::RetryOverflow => stats.upstream_rq_retry_overflow.inc(),
        Event::MaxDurationReached => stats.upstream_rq_max_duration_reached.inc(),
    }
}

/// `vhost.<virtual host>.route.<stat_prefix>.*`.
pub(super) struct RouteStats {
    total: Counter,
    codes: ResponseCodes,
    timeout: Counter,
    per_try_timeout: Counter,
    retry: Counter,
    retry_success: Counter,
    retry_limit_exceeded: Counter,
    retry_overflow: Counter,
    time: Histogram,
}

impl RouteStats {
    pub fn resolve(scope: &Scope) -> RouteStats {
        RouteStats {
            total: scope.counter("upstream_rq_total"),
            codes: ResponseCodes::new(scope.clone(), "upstream_rq_"),
            timeout: scope.counter("upstream_rq_timeout"),
            per_try_timeout: scope.counter("upstream_rq_per_try_timeout"),
            retry: scope.counter("upstream_rq_retry"),
            retry_success: scope.counter("upstream_rq_retry_success"),
            retry_limit_exceeded: scope.counter("upstream_rq_retry_limit_exceeded"),
            retry_overflow: scope.counter("upstream_rq_retry_overflow"),
            time: scope.histogram("upstream_rq_time", Unit::Milliseconds),
        }
    }

    pub fn charge(&self, event: Event) {
        match event {
            Event::Response(status) => self.codes.charge(status),
            Event::Took(took) => self.time.record_duration(took),
            Event::Timeout => self.timeout.inc(),
            Event::PerTryTimeout => self.per_try_timeout.inc(),
            Event::Retry => self.retry.inc(),
            Event::RetrySuccess => self.retry_success.inc(),
            Event::RetryLimitExceeded => self.retry_limit_exceeded.inc(),
            Event::RetryOverflow => self.retry_overflow.inc(),
            Event::MaxDurationReached => {}
        }
    }

    pub fn request(&self) {
        self.total.inc();
    }
}
