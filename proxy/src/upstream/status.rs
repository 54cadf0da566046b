//! Clusters and hosts as the admin interface shows them. Reads only.

use super::cluster::Cluster;
use super::health::ActiveFlags;
use super::host::{Host, HostFacts};
use crate::config::model::{ClusterDiscovery, HealthStatus, Locality, Thresholds};
use crate::net::UpstreamAddr;
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
    pub hosts: Vec<HostStatus>,
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
    pub active_health: ActiveFlags,
    pub eds_health: HealthStatus,
    pub weight: u32,
    pub locality: Arc<Locality>,
    pub canary: bool,
    pub priority: u32,
    /// Percent; -1 without outlier detection.
    pub success_rate: f64,
    pub local_origin_success_rate: f64,
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
            active_health: host.active(),
            eds_health: facts.health,
            weight: facts.weight,
            locality: Arc::clone(&facts.locality),
            canary: host.is_canary(),
            priority: facts.priority,
            success_rate: -1.0,
            local_origin_success_rate: -1.0,
        }
    }
}
