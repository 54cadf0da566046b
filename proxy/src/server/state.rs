//! Where the process stands: state, uptime and the `server.*` stats.

use super::load::Notices;
use super::memory::Memory;
use crate::drain::Drain;
use crate::stats::{Counter, Gauge, Histogram, Registry, TextReadout, Unit};
use crate::tls::Secrets;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// `envoy.admin.v3.ServerInfo.State`; the numbers are those of `server.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Live = 0,
    Draining = 1,
    PreInitializing = 2,
    Initializing = 3,
}

impl State {
    /// As /ready and /server_info print it.
    pub fn name(self) -> &'static str {
        match self {
            State::Live => "LIVE",
            State::Draining => "DRAINING",
            State::PreInitializing => "PRE_INITIALIZING",
            State::Initializing => "INITIALIZING",
        }
    }
}

/// The process's state, on the control thread.
pub struct Lifecycle {
    started: Instant,
    phase: Cell<State>,
    health_failed: Cell<bool>,
    drain: Drain,
    stats: ServerStats,
}

struct ServerStats {
    state: Gauge,
    live: Gauge,
    uptime: Gauge,
    memory_allocated: Gauge,
    memory_heap_size: Gauge,
    memory_physical_size: Gauge,
    days_until_first_cert_expiring: Gauge,
    initialization_time_ms: Histogram,
    dynamic_unknown_fields: Counter,
    static_unknown_fields: Counter,
    /// `outrigger.config.fields_warned`: fields of all configuration so far that are set and have no effect.
    fields_warned: Counter,
    /// `runtime.deprecated_feature_use`: deprecated fields of all configuration so far.
    deprecated_feature_use: Counter,
    // set once and kept, because a stat lives as long as its handles
    _constant: [Gauge; 4],
    _version: TextReadout,
}

impl ServerStats {
    fn new(registry: &Registry, workers: usize) -> ServerStats {
        let scope = registry.scope("server.");
        let constant = |name: &str, value: u64| {
            let gauge = scope.gauge(name);
            gauge.set(value);
            gauge
        };
        let version = scope.text_readout("version_text");
        version.set(&crate::cli::version());
        ServerStats {
            state: scope.gauge("state"),
            live: scope.gauge("live"),
            uptime: scope.gauge("uptime"),
            memory_allocated: scope.gauge("memory_allocated"),
            memory_heap_size: scope.gauge("memory_heap_size"),
            memory_physical_size: scope.gauge("memory_physical_size"),
            days_until_first_cert_expiring: scope.gauge("days_until_first_cert_expiring"),
            initialization_time_ms: scope.histogram("initialization_time_ms", Unit::Milliseconds),
            dynamic_unknown_fields: scope.counter("dynamic_unknown_fields"),
            static_unknown_fields: scope.counter("static_unknown_fields"),
            fields_warned: registry.scope("outrigger.config.").counter("fields_warned"),
            deprecated_feature_use: registry.scope("runtime.").counter("deprecated_feature_use"),
            _constant: [
                constant("concurrency", workers as u64),
                constant("hot_restart_epoch", 0),
                constant("parent_connections", 0),
                constant("total_connections", 0),
            ],
            _version: version,
        }
    }
}

impl Lifecycle {
    pub fn new(registry: &Registry, workers: usize, drain: Drain) -> Rc<Lifecycle> {
        let lifecycle = Lifecycle {
            started: Instant::now(),
            phase: Cell::new(State::PreInitializing),
            health_failed: Cell::new(false),
            drain,
            stats: ServerStats::new(registry, workers),
        };
        lifecycle.publish();
        Rc::new(lifecycle)
    }

    /// What /ready answers: a failed health check shows as draining.
    pub fn state(&self) -> State {
        match self.phase.get() {
            State::Live if self.health_failed.get() => State::Draining,
            phase => phase,
        }
    }

    pub fn enter(&self, phase: State) {
        if phase == State::Live && self.phase.get() != State::Live {
            self.stats.initialization_time_ms.record_duration(self.started.elapsed());
        }
        self.phase.set(phase);
        self.publish();
    }

    /// `/healthcheck/fail` and `/healthcheck/ok`: responses close their connections while it is failed.
    pub fn set_health_failed(&self, failed: bool) {
        self.health_failed.set(failed);
        self.drain.set_closing(failed);
        self.publish();
    }

    /// Counts what was noticed of the bootstrap.
    pub fn count_notices(&self, notices: &Notices) {
        self.stats.static_unknown_fields.add(notices.unknown as u64);
        self.stats.dynamic_unknown_fields.add(0);
        self.stats.fields_warned.add(notices.warned as u64);
        self.stats.deprecated_feature_use.add(notices.deprecated_fields.iter().map(|field| field.count as u64).sum());
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn publish(&self) {
        self.stats.state.set(self.state() as u64);
        self.stats.live.set(u64::from(self.state() == State::Live));
    }

    /// Refreshes what is only known by looking; called at each stats flush.
    pub fn refresh(&self, secrets: &Secrets) {
        self.stats.uptime.set(self.uptime().as_secs());
        if let Some(memory) = Memory::now() {
            self.stats.memory_allocated.set(memory.allocated);
            self.stats.memory_heap_size.set(memory.heap);
            self.stats.memory_physical_size.set(memory.resident);
        }
        secrets.warn_of_expiry();
        if let Some(days) = secrets.days_until_first_expiry() {
            self.stats.days_until_first_cert_expiring.set(days);
        }
    }
}
