//! The stats of a cluster under Envoy's names (`cluster.<stat_name>.`), and counters of response codes for anyone.
//!
//! Traffic stats exist from the first request on; what describes the configuration exists with the cluster. Handles only:
//! counting costs no look-up. Source of the names: Envoy's "Cluster manager: Statistics" page.

use crate::stats::{Counter, Gauge, Histogram, Scope, TextReadout, Unit};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

macro_rules! stats {
    ($(#[$doc:meta])* $name:ident { counters { $($counter:ident),* } gauges { $($gauge:ident),* } $($field:ident: $type:ty = $make:expr,)* }) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        pub struct $name {
            $(pub $counter: Counter,)*
            $(pub $gauge: Gauge,)*
            $($field: $type,)*
        }

        impl $name {
            pub(super) fn new(scope: &Scope) -> $name {
                $name {
                    $($counter: scope.counter(stringify!($counter)),)*
                    $($gauge: scope.gauge(stringify!($gauge)),)*
                    $($field: $make(scope),)*
                }
            }
        }
    };
}

stats! {
    /// What traffic does to a cluster. Made when the first request, or connection, comes.
    ClusterStats {
        counters {
            bind_errors, lb_healthy_panic,
            upstream_cx_total, upstream_cx_http1_total, upstream_cx_http2_total,
            upstream_cx_connect_fail, upstream_cx_connect_timeout, upstream_cx_overflow, upstream_cx_pool_overflow,
            upstream_cx_none_healthy, upstream_cx_idle_timeout, upstream_cx_max_requests,
            upstream_cx_max_duration_reached, upstream_cx_protocol_error, upstream_cx_close_notify,
            upstream_cx_destroy, upstream_cx_destroy_local, upstream_cx_destroy_remote,
            upstream_cx_destroy_with_active_rq, upstream_cx_destroy_local_with_active_rq,
            upstream_cx_destroy_remote_with_active_rq, upstream_cx_rx_bytes_total, upstream_cx_tx_bytes_total,
            upstream_rq_total, upstream_rq_pending_total, upstream_rq_pending_overflow, upstream_rq_active_overflow,
            upstream_rq_pending_failure_eject, upstream_rq_timeout, upstream_rq_per_try_timeout,
            upstream_rq_per_try_idle_timeout, upstream_rq_max_duration_reached, upstream_rq_cancelled,
            upstream_rq_maintenance_mode, upstream_rq_retry, upstream_rq_retry_success, upstream_rq_retry_overflow,
            upstream_rq_retry_limit_exceeded, upstream_rq_retry_backoff_exponential,
            upstream_rq_retry_backoff_ratelimited, upstream_rq_rx_reset, upstream_rq_tx_reset,
            upstream_internal_redirect_failed_total, upstream_internal_redirect_succeeded_total
        }
        gauges {
            upstream_cx_active, upstream_rq_active, upstream_rq_pending_active,
            membership_degraded, membership_excluded, max_host_weight
        }
        connect_ms: Histogram = |s: &Scope| s.histogram("upstream_cx_connect_ms", Unit::Milliseconds),
        length_ms: Histogram = |s: &Scope| s.histogram("upstream_cx_length_ms", Unit::Milliseconds),
        requests_per_connection: Histogram = |s: &Scope| s.histogram("upstream_rq_per_cx", Unit::Unspecified),
        all: Responses = |s: &Scope| Responses::new(s.clone()),
        external: OnceLock<Box<Responses>> = |_: &Scope| OnceLock::new(),
        internal: OnceLock<Box<Responses>> = |_: &Scope| OnceLock::new(),
        canary: OnceLock<Box<Responses>> = |_: &Scope| OnceLock::new(),
        scope: Scope = |s: &Scope| s.clone(),
    }
}

impl ClusterStats {
    /// Counts a response that ended an attempt's wait (also the local replies of the router): `upstream_rq_completed`,
    /// its class and code, and the same under `internal.` or `external.` (by the origin of the request) and, when the
    /// endpoint or the response says so, under `canary.`.
    pub fn charge_response(&self, status: http::StatusCode, internal: bool, canary: bool) {
        self.all.codes.charge(status.as_u16());
        self.by_origin(internal).codes.charge(status.as_u16());
        if canary {
            self.canary().codes.charge(status.as_u16());
        }
    }

    /// Records how long the endpoint took to answer (`upstream_rq_time`), with the same copies as `charge_response`.
    pub fn charge_time(&self, time: Duration, internal: bool, canary: bool) {
        self.all.time().record_duration(time);
        self.by_origin(internal).time().record_duration(time);
        if canary {
            self.canary().time().record_duration(time);
        }
    }

    pub(super) fn connected_after(&self, time: Duration) {
        self.connect_ms.record_duration(time);
    }

    pub(super) fn connection_lasted(&self, time: Duration) {
        self.length_ms.record_duration(time);
    }

    pub(super) fn connection_served(&self, requests: u32) {
        self.requests_per_connection.record(requests.into());
    }

    fn by_origin(&self, internal: bool) -> &Responses {
        let (cell, prefix) = if internal { (&self.internal, "internal.") } else { (&self.external, "external.") };
        cell.get_or_init(|| Box::new(Responses::new(self.scope.scope(prefix))))
    }

    fn canary(&self) -> &Responses {
        self.canary.get_or_init(|| Box::new(Responses::new(self.scope.scope("canary."))))
    }
}

/// Codes and times of responses under one prefix.
struct Responses {
    codes: ResponseCodes,
    time: OnceLock<Histogram>,
}

impl Responses {
    fn new(scope: Scope) -> Responses {
        Responses { codes: ResponseCodes::new(scope, "upstream_rq_"), time: OnceLock::new() }
    }

    fn time(&self) -> &Histogram {
        self.time.get_or_init(|| self.codes.scope.histogram("upstream_rq_time", Unit::Milliseconds))
    }
}

stats! {
    /// What configuration and discovery do to a cluster. Made with the cluster.
    ConfigStats {
        counters { membership_change }
        gauges { membership_total, membership_healthy }
        updates: OnceLock<Box<UpdateStats>> = |_: &Scope| OnceLock::new(),
    }
}

stats! {
    /// Of clusters whose endpoints are discovered.
    UpdateStats {
        counters { update_attempt, update_success }
        gauges { }
        rare: OnceLock<Box<RareUpdateStats>> = |_: &Scope| OnceLock::new(),
        eds: OnceLock<Box<EdsStats>> = |_: &Scope| OnceLock::new(),
        quiet: Mutex<Quiet> = |_: &Scope| Mutex::default(),
        scope: Scope = |s: &Scope| s.clone(),
    }
}

stats! {
    /// Of updates that brought nothing. Made with the first of them.
    RareUpdateStats {
        counters { update_failure, update_empty }
        gauges { }
    }
}

stats! {
    /// The rest of what a subscription to endpoints counts. Made with the first traffic, or trouble.
    EdsStats {
        counters {
            update_no_rebuild, update_rejected, init_fetch_timeout, assignment_stale, assignment_timeout_received,
            assignment_use_cached
        }
        gauges { update_time, version }
        version_text: TextReadout = |s: &Scope| s.text_readout("version_text"),
        update_duration: Histogram = |s: &Scope| s.histogram("update_duration", Unit::Milliseconds),
    }
}

/// What is known for [`EdsStats`] before they are made: idle clusters have no more than this.
#[derive(Default)]
struct Quiet {
    no_rebuild: u64,
    version: Arc<str>,
    /// Milliseconds since the epoch.
    at: u64,
}

impl UpdateStats {
    pub(super) fn rare(&self) -> &RareUpdateStats {
        self.rare.get_or_init(|| Box::new(RareUpdateStats::new(&self.scope)))
    }

    /// Endpoints came.
    pub(super) fn updated(&self, version: Arc<str>, took: Duration) {
        self.update_attempt.inc();
        self.update_success.inc();
        {
            let mut quiet = self.quiet();
            quiet.version = version;
            quiet.at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        }
        if let Some(eds) = self.eds.get() {
            eds.update_duration.record_duration(took);
            self.show(eds);
        }
    }

    /// An update came that changed nothing.
    pub(super) fn not_rebuilt(&self) {
        self.quiet().no_rebuild += 1;
        if let Some(eds) = self.eds.get() {
            self.show(eds);
        }
    }

    /// From now on all of a subscription's stats are kept.
    pub(super) fn eds(&self) -> &EdsStats {
        let eds = self.eds.get_or_init(|| Box::new(EdsStats::new(&self.scope)));
        self.show(eds);
        eds
    }

    pub(super) fn is_shown(&self) -> bool {
        self.eds.get().is_some()
    }

    fn show(&self, eds: &EdsStats) {
        let mut quiet = self.quiet();
        eds.update_no_rebuild.add(std::mem::take(&mut quiet.no_rebuild));
        if quiet.at > 0 {
            eds.update_time.set(quiet.at);
            // Envoy shows a 64-bit hash of the version, xxHash64 with seed 0
            eds.version.set(twox_hash::XxHash64::oneshot(0, quiet.version.as_bytes()));
            eds.version_text.set(&quiet.version);
        }
    }

    fn quiet(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConfigStats {
    /// Those of updates, if there were any.
    pub(super) fn known_updates(&self) -> Option<&UpdateStats> {
        self.updates.get().map(|updates| &**updates)
    }

    pub(super) fn updates(&self, scope: impl FnOnce() -> Scope) -> &UpdateStats {
        self.updates.get_or_init(|| Box::new(UpdateStats::new(&scope())))
    }
}

/// Counters of response codes: `<name>completed`, `<name>2xx`, `<name>200`; each is made when first needed, found
/// without a lock or a hash.
pub struct ResponseCodes {
    scope: Scope,
    name: &'static str,
    completed: OnceLock<Counter>,
    /// 1xx to 5xx.
    classes: [Class; 5],
}

#[derive(Default)]
struct Class {
    total: OnceLock<Counter>,
    codes: OnceLock<Box<Code>>,
}

/// A list that only grows: a class sees very few different codes, the common ones first.
struct Code {
    status: u16,
    counter: Counter,
    next: OnceLock<Box<Code>>,
}

impl ResponseCodes {
    /// `name` is what stands before the code, e.g. `upstream_rq_`.
    pub fn new(scope: Scope, name: &'static str) -> ResponseCodes {
        ResponseCodes { scope, name, completed: OnceLock::new(), classes: Default::default() }
    }

    /// Counts one response. Codes outside 100 to 599 count as completed only.
    pub fn charge(&self, status: u16) {
        self.completed.get_or_init(|| self.scope.counter(&format!("{}completed", self.name))).inc();
        let digit = status / 100;
        let Some(class) = usize::from(digit).checked_sub(1).and_then(|at| self.classes.get(at)) else { return };
        class.total.get_or_init(|| self.scope.counter(&format!("{}{digit}xx", self.name))).inc();
        let mut cell = &class.codes;
        loop {
            let code = cell.get_or_init(|| {
                let counter = self.scope.counter(&format!("{}{status}", self.name));
                Box::new(Code { status, counter, next: OnceLock::new() })
            });
            if code.status == status {
                return code.counter.inc();
            }
            cell = &code.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::StatsConfig;
    use crate::stats::Registry;

    fn walk(codes: &ResponseCodes, class: usize) -> Vec<(u16, u64)> {
        let mut seen = Vec::new();
        let mut cell = &codes.classes[class - 1].codes;
        while let Some(code) = cell.get() {
            seen.push((code.status, code.counter.value()));
            cell = &code.next;
        }
        seen
    }

    #[test]
    fn each_code_and_class_has_its_counter() {
        let codes = ResponseCodes::new(Registry::new(StatsConfig::default()).scope("cluster.c."), "upstream_rq_");
        for status in [200, 204, 200, 503, 99, 600] {
            codes.charge(status);
        }
        assert_eq!(codes.completed.get().unwrap().value(), 6);
        assert_eq!(walk(&codes, 2), [(200, 2), (204, 1)]);
        assert_eq!(walk(&codes, 5), [(503, 1)]);
        assert_eq!(codes.classes[1].total.get().unwrap().value(), 3);
    }

    #[test]
    fn a_response_counts_again_under_its_origin() {
        let stats = ClusterStats::new(&Registry::new(StatsConfig::default()).scope("cluster.c."));
        stats.charge_response(http::StatusCode::OK, false, true);
        assert_eq!(walk(&stats.external.get().unwrap().codes, 2), [(200, 1)]);
        assert_eq!(walk(&stats.canary.get().unwrap().codes, 2), [(200, 1)]);
        assert!(stats.internal.get().is_none());
    }
}
