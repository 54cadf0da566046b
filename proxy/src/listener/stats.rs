//! `listener.<address>.*`, `listener_manager.*` and the inspectors'.

use super::filters::InspectorStats;
use crate::stats::{Counter, Gauge, Histogram, Registry, Scope, Unit};
use std::time::Instant;

pub(super) struct ListenerStats {
    pub cx_total: Counter,
    pub cx_active: Gauge,
    pub cx_destroy: Counter,
    pub cx_length_ms: Histogram,
    pub cx_transport_socket_connect_timeout: Counter,
    pub cx_overflow: Counter,
    pub global_cx_overflow: Counter,
    pub pre_cx_active: Gauge,
    pub pre_cx_timeout: Counter,
    pub listener_filter_error: Counter,
    pub listener_filter_remote_close: Counter,
    pub no_filter_chain_match: Counter,
    /// A listener filter, or a network filter, was not delivered by ECDS.
    pub extension_config_missing: Counter,
    pub network_extension_config_missing: Counter,
    /// By worker: total and active.
    workers: Vec<(Counter, Gauge)>,
    pub inspectors: InspectorStats,
}

impl ListenerStats {
    /// `scope` is `listener.<address>.`.
    pub fn new(scope: &Scope, workers: usize) -> ListenerStats {
        // never reached here, and dashboards look for it
        scope.counter("downstream_cx_overload_reject");
        ListenerStats {
            cx_total: scope.counter("downstream_cx_total"),
            cx_active: scope.gauge("downstream_cx_active"),
            cx_destroy: scope.counter("downstream_cx_destroy"),
            cx_length_ms: scope.histogram("downstream_cx_length_ms", Unit::Milliseconds),
            cx_transport_socket_connect_timeout: scope.counter("downstream_cx_transport_socket_connect_timeout"),
            cx_overflow: scope.counter("downstream_cx_overflow"),
            global_cx_overflow: scope.counter("downstream_global_cx_overflow"),
            pre_cx_active: scope.gauge("downstream_pre_cx_active"),
            pre_cx_timeout: scope.counter("downstream_pre_cx_timeout"),
            listener_filter_error: scope.counter("downstream_listener_filter_error"),
            listener_filter_remote_close: scope.counter("downstream_listener_filter_remote_close"),
            no_filter_chain_match: scope.counter("no_filter_chain_match"),
            extension_config_missing: scope.counter("extension_config_missing"),
            network_extension_config_missing: scope.counter("network_extension_config_missing"),
            workers: (0..workers)
                .map(|n| scope.scope(&format!("worker_{n}.")))
                .map(|w| (w.counter("downstream_cx_total"), w.gauge("downstream_cx_active")))
                .collect(),
            inspectors: InspectorStats::new(scope.registry()),
        }
    }

    /// Counts a connection in; dropping what is returned counts it out.
    pub fn connection(&self, worker: usize) -> CountedConnection<'_> {
        self.cx_total.inc();
        self.cx_active.inc();
        if let Some((total, active)) = self.workers.get(worker) {
            total.inc();
            active.inc();
        }
        CountedConnection { stats: self, worker, since: Instant::now() }
    }

    /// Counts a connection whose filter chain is not chosen yet.
    pub fn pre_connection(&self) -> CountedGauge<'_> {
        self.pre_cx_active.inc();
        CountedGauge(&self.pre_cx_active)
    }
}

pub(super) struct CountedConnection<'a> {
    stats: &'a ListenerStats,
    worker: usize,
    since: Instant,
}

impl Drop for CountedConnection<'_> {
    fn drop(&mut self) {
        self.stats.cx_active.dec();
        if let Some((_, active)) = self.stats.workers.get(self.worker) {
            active.dec();
        }
        self.stats.cx_destroy.inc();
        self.stats.cx_length_ms.record_duration(self.since.elapsed());
    }
}

/// A gauge that goes down when this is dropped.
pub(super) struct CountedGauge<'a>(&'a Gauge);

impl Drop for CountedGauge<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

pub(super) struct ManagerStats {
    pub added: Counter,
    pub modified: Counter,
    pub removed: Counter,
    pub in_place_updated: Counter,
    pub create_success: Counter,
    pub create_failure: Counter,
    pub stopped: Counter,
    pub active: Gauge,
    pub warming: Gauge,
    pub draining: Gauge,
    pub chains_draining: Gauge,
    pub workers_started: Gauge,
}

impl ManagerStats {
    pub fn new(registry: &Registry) -> ManagerStats {
        let scope = registry.scope("listener_manager.");
        ManagerStats {
            added: scope.counter("listener_added"),
            modified: scope.counter("listener_modified"),
            removed: scope.counter("listener_removed"),
            in_place_updated: scope.counter("listener_in_place_updated"),
            create_success: scope.counter("listener_create_success"),
            create_failure: scope.counter("listener_create_failure"),
            stopped: scope.counter("listener_stopped"),
            active: scope.gauge("total_listeners_active"),
            warming: scope.gauge("total_listeners_warming"),
            draining: scope.gauge("total_listeners_draining"),
            chains_draining: scope.gauge("total_filter_chains_draining"),
            workers_started: scope.gauge("workers_started"),
        }
    }
}
