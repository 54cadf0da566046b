//! Stats of discovery. Each subscription counts under Envoy's name for it: `cluster_manager.cds.*`,
//! `listener_manager.lds.*`, `http.<prefix>.rds.<route>.*`, `sds.<secret>.*`; those of endpoints are the cluster's own.
//!
//! What Envoy does not have stands under `outrigger.xds.<type>.*`: sums over a type's subscriptions, and how long an
//! update takes from its last byte to the last worker. Source of the names: Envoy's "xDS subscription statistics" page.

use crate::config::Notices;
use crate::stats::{Counter, Gauge, Histogram, Registry, Scope, TextReadout, Unit};
use std::cell::OnceCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xds_client::TypeUrl;

/// One subscription's updates.
pub struct SubscriptionStats {
    pub update_attempt: Counter,
    pub update_success: Counter,
    pub update_failure: Counter,
    pub update_rejected: Counter,
    pub init_fetch_timeout: Counter,
    update_time: Gauge,
    version: Gauge,
    version_text: TextReadout,
    update_duration: Histogram,
    /// Of subscriptions that have a stream of their own.
    control_plane: OnceCell<ControlPlaneStats>,
    scope: Scope,
    /// Of route configurations and filters: those that changed something.
    config_reload: Option<Counter>,
    /// Of filters: whatever else came of an update.
    config_fail: Option<Counter>,
    /// What only some types have, kept because a stat lives as long as its handles.
    _own: Vec<Counter>,
}

impl SubscriptionStats {
    /// `scope` ends with a dot; `own` are counters that only this type of resource has.
    pub fn new(scope: Scope, own: &[&str]) -> SubscriptionStats {
        SubscriptionStats {
            update_attempt: scope.counter("update_attempt"),
            update_success: scope.counter("update_success"),
            update_failure: scope.counter("update_failure"),
            update_rejected: scope.counter("update_rejected"),
            init_fetch_timeout: scope.counter("init_fetch_timeout"),
            update_time: scope.gauge("update_time"),
            version: scope.gauge("version"),
            version_text: scope.text_readout("version_text"),
            update_duration: scope.histogram("update_duration", Unit::Milliseconds),
            control_plane: OnceCell::new(),
            config_reload: None,
            config_fail: None,
            _own: own.iter().map(|name| scope.counter(name)).collect(),
            scope,
        }
    }

    /// As `new`, for a route configuration.
    pub fn of_routes(scope: Scope) -> SubscriptionStats {
        let config_reload = Some(scope.counter("config_reload"));
        SubscriptionStats { config_reload, ..SubscriptionStats::new(scope, &["update_empty"]) }
    }

    /// As `new`, for the configuration of a filter.
    pub fn of_extensions(scope: Scope) -> SubscriptionStats {
        let (config_reload, config_fail) = (Some(scope.counter("config_reload")), Some(scope.counter("config_fail")));
        SubscriptionStats { config_reload, config_fail, ..SubscriptionStats::new(scope, &["config_conflict"]) }
    }

    /// The first fetch took longer than `initial_fetch_timeout`.
    pub fn timed_out(&self) {
        self.update_attempt.inc();
        self.init_fetch_timeout.inc();
        if let Some(failures) = &self.config_fail {
            failures.inc();
        }
    }

    /// An update changed something.
    pub fn reloaded(&self) {
        if let Some(reloads) = &self.config_reload {
            reloads.inc();
        }
    }

    /// The subscription went out: to Envoy this is the first attempt.
    pub fn subscribed(&self) {
        self.update_attempt.inc();
    }

    /// An update was applied, wholly or not at all.
    pub fn applied(&self, version: &str, accepted: bool, took: Duration) {
        self.update_attempt.inc();
        if !accepted {
            self.update_rejected.inc();
            if let Some(failures) = &self.config_fail {
                failures.inc();
            }
            return;
        }
        self.update_success.inc();
        self.update_duration.record_duration(took);
        self.update_time.set(millis_now());
        self.version.set(version_number(version));
        self.version_text.set(version);
    }

    /// The stream ended, or none came about.
    pub fn failed(&self) {
        self.update_attempt.inc();
        self.update_failure.inc();
    }

    pub fn control_plane(&self) -> &ControlPlaneStats {
        self.control_plane.get_or_init(|| ControlPlaneStats::new(&self.scope))
    }
}

/// As `update_time` shows it.
fn millis_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A version as a number: Envoy shows a 64-bit hash of it, xxHash64 with seed 0.
fn version_number(version: &str) -> u64 {
    twox_hash::XxHash64::oneshot(0, version.as_bytes())
}

/// One stream: the aggregated one's stand at the root, others' below their subscription's.
pub struct ControlPlaneStats {
    /// 1 while connected.
    pub connected_state: Gauge,
    pub identifier: TextReadout,
    limits: LimitStats,
}

/// What `rate_limit_settings` do to requests.
#[derive(Clone)]
pub struct LimitStats {
    pending_requests: Gauge,
    rate_limit_enforced: Counter,
}

impl std::fmt::Debug for LimitStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LimitStats")
    }
}

impl xds_client::Stats for LimitStats {
    fn rate_limited(&self) {
        self.rate_limit_enforced.inc();
    }

    fn pending_requests(&self, waiting: usize) {
        self.pending_requests.set(waiting as u64);
    }
}

impl ControlPlaneStats {
    /// `scope` is that of the subscription, or the root.
    pub fn new(scope: &Scope) -> ControlPlaneStats {
        let scope = scope.scope("control_plane.");
        ControlPlaneStats {
            connected_state: scope.gauge("connected_state"),
            identifier: scope.text_readout("identifier"),
            limits: LimitStats {
                pending_requests: scope.gauge("pending_requests"),
                rate_limit_enforced: scope.counter("rate_limit_enforced"),
            },
        }
    }

    pub fn limits(&self) -> LimitStats {
        self.limits.clone()
    }
}

/// All updates of a type: `outrigger.xds.<type>.*`.
pub struct TypeStats {
    pub update_success: Counter,
    pub update_rejected: Counter,
    pub propagation: Histogram,
    /// Updates whose propagation is not known: too many waited to become live.
    pub propagation_lost: Counter,
    /// Answers that were given before all was warm: it took too long.
    pub answers_overdue: Counter,
}

impl TypeStats {
    fn new(registry: &Registry, name: &str) -> TypeStats {
        let scope = registry.scope(&format!("outrigger.xds.{name}."));
        TypeStats {
            update_success: scope.counter("update_success"),
            update_rejected: scope.counter("update_rejected"),
            propagation: scope.histogram("propagation", Unit::Milliseconds),
            propagation_lost: scope.counter("propagation_lost"),
            answers_overdue: scope.counter("answers_overdue"),
        }
    }
}

/// What was noticed of resources from control planes; the bootstrap counts in the same stats.
pub struct NoticeStats {
    unknown: Counter,
    warned: Counter,
    deprecated: Counter,
}

impl NoticeStats {
    fn new(registry: &Registry) -> NoticeStats {
        NoticeStats {
            unknown: registry.scope("server.").counter("dynamic_unknown_fields"),
            warned: registry.scope("outrigger.config.").counter("fields_warned"),
            deprecated: registry.scope("runtime.").counter("deprecated_feature_use"),
        }
    }

    pub fn count(&self, notices: &Notices) {
        self.unknown.add((notices.unknown.len() + notices.more_unknown) as u64);
        self.warned.add(notices.warned() as u64);
        self.deprecated.add(notices.deprecated.iter().map(|field| field.count as u64).sum());
    }
}

pub struct DiscoveryStats {
    pub notices: NoticeStats,
    pub clusters: SubscriptionStats,
    pub listeners: SubscriptionStats,
    /// Of all runtime layers together, if the bootstrap has any that come by xDS.
    runtime: Option<SubscriptionStats>,
    /// Of the aggregated stream, if the bootstrap has one.
    pub control_plane: Option<ControlPlaneStats>,
    types: [(TypeUrl, TypeStats); 7],
}

impl DiscoveryStats {
    pub fn new(registry: &Registry, aggregated: bool, layers: bool) -> DiscoveryStats {
        let types = [
            (TypeUrl::CLUSTER, "cds"),
            (TypeUrl::LISTENER, "lds"),
            (TypeUrl::ROUTE, "rds"),
            (TypeUrl::ENDPOINT, "eds"),
            (TypeUrl::SECRET, "sds"),
            (TypeUrl::EXTENSION, "ecds"),
            (TypeUrl::RUNTIME, "rtds"),
        ];
        DiscoveryStats {
            notices: NoticeStats::new(registry),
            clusters: SubscriptionStats::new(registry.scope("cluster_manager.cds."), &[]),
            listeners: SubscriptionStats::new(registry.scope("listener_manager.lds."), &[]),
            runtime: layers.then(|| SubscriptionStats::new(registry.scope("runtime."), &[])),
            control_plane: aggregated.then(|| ControlPlaneStats::new(&registry.scope(""))),
            types: types.map(|(type_url, name)| (type_url, TypeStats::new(registry, name))),
        }
    }

    pub fn of_type(&self, type_url: &TypeUrl) -> Option<&TypeStats> {
        self.types.iter().find(|(known, _)| known == type_url).map(|(_, stats)| stats)
    }

    /// The subscription to everything of a type; runtime layers, which are asked for by name, count together in Envoy.
    pub fn whole(&self, type_url: &TypeUrl) -> Option<&SubscriptionStats> {
        match type_url {
            t if *t == TypeUrl::CLUSTER => Some(&self.clusters),
            t if *t == TypeUrl::LISTENER => Some(&self.listeners),
            t if *t == TypeUrl::RUNTIME => self.runtime.as_ref(),
            _ => None,
        }
    }
}
