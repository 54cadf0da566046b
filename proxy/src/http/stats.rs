//! The connection manager's stats: handles resolved once, at configuration.
//!
//! Names: `http.<stat_prefix>.*` and `listener.<address>.http.<stat_prefix>.*`.

use crate::stats::{Counter, Gauge, Histogram, Scope, Unit};

macro_rules! counters {
    ($($field:ident),+ $(,)?) => {
        /// Counters of `http.<stat_prefix>.`, named as their fields.
        pub(super) struct Counters { $(pub $field: Counter,)+ }

        impl Counters {
            fn resolve(scope: &Scope) -> Counters {
                Counters { $($field: scope.counter(stringify!($field)),)+ }
            }
        }
    };
}

counters! {
    downstream_cx_total, downstream_cx_ssl_total, downstream_cx_http1_total, downstream_cx_http2_total,
    downstream_cx_destroy, downstream_cx_destroy_active_rq,
    downstream_cx_destroy_local, downstream_cx_destroy_local_active_rq,
    downstream_cx_destroy_remote, downstream_cx_destroy_remote_active_rq,
    downstream_cx_delayed_close_timeout, downstream_cx_drain_close, downstream_cx_idle_timeout, downstream_cx_max_duration_reached,
    downstream_cx_max_requests_reached, downstream_cx_protocol_error, downstream_cx_upgrades_total,
    downstream_cx_rx_bytes_total, downstream_cx_tx_bytes_total,
    downstream_rq_total, downstream_rq_http1_total, downstream_rq_http2_total, downstream_rq_completed,
    downstream_rq_failed_path_normalization, downstream_rq_header_timeout, downstream_rq_idle_timeout,
    downstream_rq_max_duration_reached, downstream_rq_non_relative_path,
    downstream_rq_redirected_with_normalized_path, downstream_rq_response_before_rq_complete,
    downstream_rq_rx_reset, downstream_rq_timeout, downstream_rq_too_large, downstream_rq_tx_reset,
    downstream_rq_ws_on_non_ws_route,
    no_cluster, no_route, rq_direct_response, rq_redirect, rq_reset_after_downstream_response_started, rq_total,
}

/// Counters of responses by class, `downstream_rq_1xx` to `downstream_rq_5xx`.
struct Classes([Counter; 5]);

impl Classes {
    fn resolve(scope: &Scope) -> Classes {
        Classes(std::array::from_fn(|i| scope.counter(&format!("downstream_rq_{}xx", i + 1))))
    }

    fn charge(&self, status: u16) {
        if let Some(counter) = usize::from(status / 100).checked_sub(1).and_then(|class| self.0.get(class)) {
            counter.inc();
        }
    }
}

/// Everything a connection manager counts.
pub(super) struct HttpStats {
    pub count: Counters,
    classes: Classes,
    listener_classes: Classes,
    listener_completed: Counter,
    pub cx_active: Gauge,
    pub cx_ssl_active: Gauge,
    pub cx_http1_active: Gauge,
    pub cx_http2_active: Gauge,
    pub cx_upgrades_active: Gauge,
    pub rq_active: Gauge,
    pub cx_length: Histogram,
    rq_time: Histogram,
}

impl HttpStats {
    /// `http` is `http.<stat_prefix>.`, `listener` is `listener.<address>.http.<stat_prefix>.`.
    pub fn resolve(http: &Scope, listener: &Scope) -> HttpStats {
        HttpStats {
            count: Counters::resolve(http),
            classes: Classes::resolve(http),
            listener_classes: Classes::resolve(listener),
            listener_completed: listener.counter("downstream_rq_completed"),
            cx_active: http.gauge("downstream_cx_active"),
            cx_ssl_active: http.gauge("downstream_cx_ssl_active"),
            cx_http1_active: http.gauge("downstream_cx_http1_active"),
            cx_http2_active: http.gauge("downstream_cx_http2_active"),
            cx_upgrades_active: http.gauge("downstream_cx_upgrades_active"),
            rq_active: http.gauge("downstream_rq_active"),
            cx_length: http.histogram("downstream_cx_length_ms", Unit::Milliseconds),
            rq_time: http.histogram("downstream_rq_time", Unit::Milliseconds),
        }
    }

    /// Counts a response whose headers were given to the codec.
    pub fn response(&self, status: u16) {
        self.count.downstream_rq_completed.inc();
        self.listener_completed.inc();
        self.classes.charge(status);
        self.listener_classes.charge(status);
    }

    pub fn request_time(&self, took: std::time::Duration) {
        self.rq_time.record_duration(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::StatsConfig;
    use crate::stats::Registry;

    #[test]
    fn odd_status_codes_are_counted_as_completed_only() {
        let registry = Registry::new(StatsConfig::default());
        let stats = HttpStats::resolve(&registry.scope("http.x."), &registry.scope("listener.l.http.x."));
        for status in [99, 200, 999] {
            stats.response(status);
        }
        assert_eq!(stats.count.downstream_rq_completed.value(), 3);
        assert_eq!(stats.classes.0[1].value(), 1);
    }
}
