//! Clusters and hosts as the admin interface shows them. Reads only.
//!
//! Rates of success are in percent, and -1 where there are too few requests to tell or nobody counts them.

use super::cluster::Cluster;
use super::health::ActiveFlags;
use super::host::{Host, HostFacts};
use crate::config::model::{ClusterDiscovery, HealthStatus, Locality, Thresholds};
use crate::net::UpstreamAddr;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// One cluster as /clusters shows it.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    pub name: Arc<str>,
    pub observability_name: Arc<str>,
    pub added_via_api: bool,
    /// Indexed by `Priority as usize`.
    pub thresholds: [Thresholds; 2],
    pub eds_service_name: Option<Arc<str>>,
    /// Present when the cluster has outlier detection.
    pub outlier: Option<OutlierStatus>,
    pub hosts: Vec<HostStatus>,
}

/// What outlier detection found in a cluster.
#[derive(Debug, Clone, Copy)]
pub struct OutlierStatus {
    pub success_rate_average: f64,
    pub success_rate_ejection_threshold: f64,
    pub local_origin_success_rate_average: f64,
    pub local_origin_success_rate_ejection_threshold: f64,
}

/// One host as /clusters shows it.
#[derive(Debug, Clone)]
pub struct HostStatus {
    pub address: UpstreamAddr,
    pub hostname: Box<str>,
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub rq_active: u64,
    pub rq_error: u64,
    pub rq_pending_active: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
    pub health: HealthFlags,
    pub weight: u32,
    pub locality: Arc<Locality>,
    pub canary: bool,
    pub priority: u32,
    pub success_rate: f64,
    pub local_origin_success_rate: f64,
}

/// Why a host is or is not healthy.
#[derive(Debug, Clone, Copy)]
pub struct HealthFlags {
    pub failed_active_check: bool,
    pub failed_outlier_check: bool,
    pub degraded_active_check: bool,
    pub pending_dynamic_removal: bool,
    pub pending_active_check: bool,
    pub excluded_via_immediate_check_fail: bool,
    pub active_check_timeout: bool,
    /// What the control plane says of it.
    pub eds: HealthStatus,
}

impl HealthFlags {
    /// Those of a host of which only its control plane says something.
    pub fn said(eds: HealthStatus) -> HealthFlags {
        HealthFlags {
            failed_active_check: false,
            failed_outlier_check: false,
            degraded_active_check: false,
            pending_dynamic_removal: false,
            pending_active_check: false,
            excluded_via_immediate_check_fail: false,
            active_check_timeout: false,
            eds,
        }
    }

    /// With what its health checks say.
    fn of(eds: HealthStatus, active: ActiveFlags) -> HealthFlags {
        HealthFlags {
            failed_active_check: active.failed(),
            // endpoints are not ejected
            failed_outlier_check: false,
            degraded_active_check: active.degraded(),
            pending_dynamic_removal: active.pending_removal(),
            pending_active_check: active.pending_check(),
            excluded_via_immediate_check_fail: active.excluded(),
            active_check_timeout: active.timed_out(),
            eds,
        }
    }
}

/// `healthy`, or flags as Envoy writes them, e.g. `/failed_eds_health`.
impl fmt::Display for HealthFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [
            (self.failed_active_check, "/failed_active_hc"),
            (self.failed_outlier_check, "/failed_outlier_check"),
            (matches!(self.eds, HealthStatus::Unhealthy | HealthStatus::Timeout), "/failed_eds_health"),
            (self.degraded_active_check, "/degraded_active_hc"),
            (self.eds == HealthStatus::Degraded, "/degraded_eds_health"),
            (self.pending_dynamic_removal, "/pending_dynamic_removal"),
            (self.pending_active_check, "/pending_active_hc"),
            (self.excluded_via_immediate_check_fail, "/excluded_via_immediate_hc_fail"),
            (self.active_check_timeout, "/active_hc_timeout"),
            (self.eds == HealthStatus::Draining, "/eds_status_draining"),
        ];
        if flags.iter().all(|(set, _)| !set) {
            return f.write_str("healthy");
        }
        flags.iter().filter(|(set, _)| *set).try_for_each(|(_, name)| f.write_str(name))
    }
}

impl ClusterStatus {
    pub(super) fn of(cluster: &Cluster) -> ClusterStatus {
        let config = &cluster.config;
        let hosts: Vec<HostStatus> = match &cluster.original_dst {
            Some(made) => made.all().iter().map(|host| HostStatus::of(host)).collect(),
            None => cluster.endpoints().hosts().map(|host| HostStatus::of(host)).collect(),
        };
        ClusterStatus {
            name: Arc::clone(&config.name),
            observability_name: Arc::clone(&config.stat_name),
            added_via_api: cluster.added_via_api,
            thresholds: config.circuit_breakers,
            eds_service_name: match &config.discovery {
                ClusterDiscovery::Eds { service_name, .. } => Some(Arc::clone(service_name)),
                _ => None,
            },
            outlier: None,
            hosts,
        }
    }
}

impl HostStatus {
    fn of(host: &Host) -> HostStatus {
        let facts: &HostFacts = &host.facts();
        let gauge = |cell: &AtomicU32| u64::from(cell.load(Ordering::Relaxed));
        let counter = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let stats = &host.stats;
        HostStatus {
            address: host.address.clone(),
            hostname: host.hostname.clone(),
            cx_active: gauge(&stats.cx_active),
            cx_connect_fail: counter(&stats.cx_connect_fail),
            cx_total: counter(&stats.cx_total),
            rq_active: gauge(&stats.rq_active),
            rq_error: counter(&stats.rq_error),
            rq_pending_active: gauge(&stats.rq_pending_active),
            rq_success: counter(&stats.rq_success),
            rq_timeout: counter(&stats.rq_timeout),
            rq_total: counter(&stats.rq_total),
            health: HealthFlags::of(facts.health, host.active()),
            weight: facts.weight,
            locality: Arc::clone(&facts.locality),
            canary: host.is_canary(),
            priority: facts.priority,
            success_rate: -1.0,
            local_origin_success_rate: -1.0,
        }
    }
}
