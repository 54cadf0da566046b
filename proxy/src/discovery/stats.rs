//! Stats of discovery: `cluster_manager.cds.*`, `listener_manager.lds.*`, `control_plane.*`, and the same shape for the
//! types that Envoy counts elsewhere.

use super::streams::StreamId;
use crate::stats::{Counter, Gauge, Histogram, Registry, TextReadout, Unit};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xds_client::TypeUrl;

/// One type's updates.
pub struct TypeStats {
    pub update_attempt: Counter,
    pub update_success: Counter,
    pub update_failure: Counter,
    pub update_rejected: Counter,
    pub init_fetch_timeout: Counter,
    update_time: Gauge,
    version: Gauge,
    version_text: TextReadout,
    update_duration: Histogram,
}

impl TypeStats {
    fn new(registry: &Registry, prefix: &str) -> TypeStats {
        let scope = registry.scope(prefix);
        TypeStats {
            update_attempt: scope.counter("update_attempt"),
            update_success: scope.counter("update_success"),
            update_failure: scope.counter("update_failure"),
            update_rejected: scope.counter("update_rejected"),
            init_fetch_timeout: scope.counter("init_fetch_timeout"),
            update_time: scope.gauge("update_time"),
            version: scope.gauge("version"),
            version_text: scope.text_readout("version_text"),
            update_duration: scope.histogram("update_duration", Unit::Milliseconds),
        }
    }

    /// An update was applied, wholly or not at all.
    pub fn applied(&self, version: &str, accepted: bool, took: Duration) {
        self.update_attempt.inc();
        if !accepted {
            self.update_rejected.inc();
            return;
        }
        self.update_success.inc();
        self.update_duration.record_duration(took);
        self.update_time.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64));
        // Envoy shows a 64-bit hash of the version, xxHash64 with seed 0
        self.version.set(twox_hash::XxHash64::oneshot(0, version.as_bytes()));
        self.version_text.set(version);
    }
}

pub struct DiscoveryStats {
    pub clusters: TypeStats,
    pub listeners: TypeStats,
    pub routes: TypeStats,
    pub endpoints: TypeStats,
    pub secrets: TypeStats,
    /// 1 while connected to the control plane.
    pub connected_state: Gauge,
    pub identifier: TextReadout,
}

impl DiscoveryStats {
    pub fn new(registry: &Registry) -> DiscoveryStats {
        DiscoveryStats {
            clusters: TypeStats::new(registry, "cluster_manager.cds."),
            listeners: TypeStats::new(registry, "listener_manager.lds."),
            routes: TypeStats::new(registry, "rds."),
            endpoints: TypeStats::new(registry, "eds."),
            secrets: TypeStats::new(registry, "sds."),
            connected_state: registry.gauge("control_plane.connected_state"),
            identifier: registry.text_readout("control_plane.identifier"),
        }
    }

    pub fn of(&self, type_url: &TypeUrl) -> Option<&TypeStats> {
        match type_url {
            t if *t == TypeUrl::CLUSTER => Some(&self.clusters),
            t if *t == TypeUrl::LISTENER => Some(&self.listeners),
            t if *t == TypeUrl::ROUTE => Some(&self.routes),
            t if *t == TypeUrl::ENDPOINT => Some(&self.endpoints),
            t if *t == TypeUrl::SECRET => Some(&self.secrets),
            _ => None,
        }
    }

    /// A stream ended: what it serves was not updated.
    pub fn failed(&self, stream: &StreamId) {
        match stream {
            StreamId::Ads => {
                for s in [&self.clusters, &self.listeners] {
                    s.update_attempt.inc();
                    s.update_failure.inc();
                }
            }
            StreamId::Own { type_url, .. } => {
                if let Some(s) = self.of(type_url) {
                    s.update_attempt.inc();
                    s.update_failure.inc();
                }
            }
            StreamId::None => {}
        }
    }
}
