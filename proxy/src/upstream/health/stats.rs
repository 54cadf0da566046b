//! `cluster.<name>.health_check.*`, under Envoy's names.

use crate::stats::{Counter, Gauge, Scope};

pub(super) struct HealthStats {
    pub attempt: Counter,
    pub success: Counter,
    pub failure: Counter,
    pub passive_failure: Counter,
    pub network_failure: Counter,
    pub verify_cluster: Counter,
    /// Endpoints that are checked and did not fail.
    pub healthy: Gauge,
    pub degraded: Gauge,
}

impl HealthStats {
    pub fn new(scope: &Scope) -> HealthStats {
        HealthStats {
            attempt: scope.counter("attempt"),
            success: scope.counter("success"),
            failure: scope.counter("failure"),
            passive_failure: scope.counter("passive_failure"),
            network_failure: scope.counter("network_failure"),
            verify_cluster: scope.counter("verify_cluster"),
            healthy: scope.gauge("healthy"),
            degraded: scope.gauge("degraded"),
        }
    }
}
