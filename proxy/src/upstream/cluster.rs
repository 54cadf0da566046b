//! One version of a cluster: its configuration, its endpoints as they are now, and what all threads count on it.
//!
//! Everything that only traffic needs (stats, breakers) is made when traffic comes. Knows nothing of how it is warmed or
//! published.

use super::breakers::Breakers;
use super::endpoints::{Checks, EndpointSet};
use super::health::ActiveHealth;
use super::host::Host;
use super::original_dst::OriginalDstHosts;
use super::stats::{ClusterStats, ConfigStats, UpdateStats};
use crate::config::ConfigError;
use crate::config::model::{
    ClusterConfig, ClusterDiscovery, LoadAssignment, Priority, TransportMatch, UpstreamTlsConfig, UpstreamTransport,
};
use crate::stats::{Registry, Scope};
use crate::tls::{Secrets, UpstreamContext};
use arc_swap::{ArcSwap, Guard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A cluster as configured, with what its endpoints are now.
pub struct Cluster {
    pub config: Arc<ClusterConfig>,
    pub added_via_api: bool,
    pub(super) slot_id: u32,
    /// Grows with every version of every cluster.
    pub(super) version: u64,
    pub(super) original_dst: Option<Arc<OriginalDstHosts>>,
    transport: Transport,
    transport_matches: Box<[Transport]>,
    endpoints: ArcSwap<EndpointSet>,
    registry: Registry,
    config_stats: ConfigStats,
    stats: OnceLock<Arc<ClusterStats>>,
    breakers: [OnceLock<Arc<Breakers>>; 2],
    health: Option<Arc<ActiveHealth>>,
    retired: AtomicBool,
}

/// What an assignment changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    Nothing,
    /// Health, weight, locality or metadata of hosts that stay.
    Facts,
    /// Hosts came or went.
    Members,
}

/// How the bytes of a connection travel.
pub(super) enum Transport {
    Raw,
    Tls { context: Arc<UpstreamContext>, config: Arc<UpstreamTlsConfig> },
}

impl Transport {
    pub fn is_tls(&self) -> bool {
        matches!(self, Transport::Tls { .. })
    }
}

/// What a new cluster takes from its surroundings.
pub(super) struct Place<'a> {
    pub slot_id: u32,
    pub version: u64,
    pub added_via_api: bool,
    pub registry: &'a Registry,
    pub secrets: &'a Arc<Secrets>,
    /// The version that runs.
    pub running: Option<&'a Cluster>,
}

impl Cluster {
    /// # Errors
    /// A TLS context that cannot be built.
    pub(super) fn new(config: Arc<ClusterConfig>, place: &Place<'_>) -> Result<Cluster, ConfigError> {
        let scope = place.registry.scope(&format!("cluster.{}.", config.stat_name));
        let transport = |t: &UpstreamTransport| -> Result<Transport, ConfigError> {
            match t {
                UpstreamTransport::Raw => Ok(Transport::Raw),
                UpstreamTransport::Tls(config) => {
                    let context = UpstreamContext::new(Arc::clone(config), place.secrets, &scope)?;
                    Ok(Transport::Tls { context, config: Arc::clone(config) })
                }
            }
        };
        let matches: Result<Box<[Transport]>, ConfigError> = config
            .transport_matches
            .iter()
            .enumerate()
            .map(|(at, m)| {
                transport(&m.transport)
                    .map_err(|e| e.inside(&format!("transport_socket_matches[{at}].transport_socket.typed_config")))
            })
            .collect();
        let original_dst = match config.discovery {
            ClusterDiscovery::OriginalDst { .. } => {
                let kept = place.running.and_then(|c| c.original_dst.clone());
                Some(kept.unwrap_or_else(|| Arc::new(OriginalDstHosts::new(&scope))))
            }
            _ => None,
        };
        let ignore_unchecked = config.ignore_new_hosts_until_first_hc && config.discovery.is_dynamic();
        let checks = Checks { keep_passing: !config.ignore_health_on_host_removal, ignore_unchecked };
        let endpoints = match config.health_check {
            Some(_) => EndpointSet::checked(checks),
            None => EndpointSet::empty(),
        };
        Ok(Cluster {
            added_via_api: place.added_via_api,
            slot_id: place.slot_id,
            version: place.version,
            original_dst,
            transport: transport(&config.transport).map_err(|e| e.inside("transport_socket.typed_config"))?,
            transport_matches: matches?,
            endpoints: ArcSwap::from_pointee(endpoints),
            health: config.health_check.as_ref().map(|check| ActiveHealth::new(check, &scope)),
            registry: place.registry.clone(),
            config_stats: ConfigStats::new(&scope),
            stats: OnceLock::new(),
            breakers: Default::default(),
            retired: AtomicBool::new(false),
            config,
        })
    }

    /// The cluster's stats under `cluster.<stat_name>.`, made on first use.
    pub fn stats(&self) -> &ClusterStats {
        self.stats.get_or_init(|| {
            let stats = Arc::new(ClusterStats::new(&self.scope()));
            show_rest(&stats, &self.endpoints.load());
            self.show_updates();
            stats
        })
    }

    /// Has the stats of discovery shown that idle clusters do without.
    fn show_updates(&self) {
        if let (ClusterDiscovery::Eds { .. }, Some(updates)) =
            (&self.config.discovery, self.config_stats.known_updates())
        {
            updates.eds();
        }
    }

    /// The circuit breakers of a priority, made on first use.
    pub fn breakers(&self, priority: Priority) -> &Arc<Breakers> {
        let at = priority as usize;
        self.breakers[at]
            .get_or_init(|| Arc::new(Breakers::new(&self.config.circuit_breakers[at], priority, &self.scope())))
    }

    /// The endpoints as they are now.
    pub fn endpoints(&self) -> Guard<Arc<EndpointSet>> {
        self.endpoints.load()
    }

    /// Its active health checks, if it has any.
    pub(super) fn health(&self) -> Option<&Arc<ActiveHealth>> {
        self.health.as_ref()
    }

    /// Whether the endpoints are checked: only then a response may say [`IMMEDIATE_FAIL`](super::IMMEDIATE_FAIL).
    pub fn is_checked(&self) -> bool {
        self.health.is_some()
    }

    /// A response of `host` to ordinary traffic said that it is to be left alone: from now on, until it passes its checks
    /// again, it is.
    pub fn fail_at_once(&self, host: &Host) {
        if let Some(health) = self.health.as_ref().filter(|_| host.is_checked()) {
            health.host_is_ill(host);
        }
    }

    /// Whether a connection was ever made for traffic.
    pub(super) fn has_connected(&self) -> bool {
        self.stats.get().is_some_and(|stats| stats.upstream_cx_total.value() > 0)
    }

    /// Replaced or removed: its connections drain.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Counts a request, or raw connection, as active at `host`, until `end_request`.
    pub(super) fn begin_request(&self, host: &Host, priority: Priority) {
        self.breakers(priority).requests.take();
        let stats = self.stats();
        stats.upstream_rq_total.inc();
        stats.upstream_rq_active.inc();
        host.stats.rq_total.fetch_add(1, Ordering::Relaxed);
        host.stats.rq_active.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self, host: &Host, priority: Priority) {
        self.breakers(priority).requests.give_back();
        self.stats().upstream_rq_active.dec();
        host.stats.rq_active.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn scope(&self) -> Scope {
        self.registry.scope(&format!("cluster.{}.", self.config.stat_name))
    }

    pub(super) fn update_stats(&self) -> &UpdateStats {
        self.config_stats.updates(|| self.scope())
    }

    /// Begins with the hosts of the version that ran before, so that the next assignment keeps those it still names, and
    /// counts on in its stats. Where health is checked each version has hosts of its own, as in Envoy: what one version
    /// found out by its checks says nothing of another's.
    pub(super) fn start_from(&self, running: &Cluster) {
        if self.health.is_none() && running.health.is_none() {
            self.endpoints.store(running.endpoints.load_full());
        }
        if let Some(stats) = running.stats.get().filter(|_| running.config.stat_name == self.config.stat_name) {
            // one that traffic has already made counts in the same cells
            let _ = self.stats.set(Arc::clone(stats));
            self.update_stats();
            self.show_updates();
        }
    }

    /// Takes an assignment; says what differs from the one before. Called by the control thread only.
    pub(super) fn apply(&self, assignment: &LoadAssignment) -> Applied {
        let old = self.endpoints.load_full();
        let (next, change) = old.next(assignment, self.config.panic_threshold);
        if !change.members && !change.facts && old.shares == next.shares && old.generation > 0 {
            self.show_members(&old);
            return Applied::Nothing;
        }
        let next = Arc::new(next);
        self.show_members(&next);
        if change.members {
            self.config_stats.membership_change.inc();
        }
        self.endpoints.store(next);
        for host in &change.removed {
            host.remove();
        }
        if let Some(health) = self.health.as_ref().filter(|_| change.members) {
            health.members_changed();
        }
        if change.members { Applied::Members } else { Applied::Facts }
    }

    /// Spreads the load anew after health checks have changed the health of hosts. Called by the control thread only.
    pub(super) fn health_changed(&self) {
        let (next, change) = self.endpoints.load().rechecked();
        let next = Arc::new(next);
        self.show_members(&next);
        if change.members {
            self.config_stats.membership_change.inc();
        }
        self.endpoints.store(next);
        for host in &change.removed {
            host.remove();
        }
    }

    fn show_members(&self, set: &EndpointSet) {
        self.config_stats.membership_total.set(set.len() as u64);
        self.config_stats.membership_healthy.set(set.healthy() as u64);
        if let Some(stats) = self.stats.get() {
            show_rest(stats, set);
        }
    }

    /// The transport for an endpoint: the first match whose criteria its metadata fulfils, else the cluster's own.
    pub(super) fn transport_for(&self, host: &Host) -> &Transport {
        if self.transport_matches.is_empty() {
            return &self.transport;
        }
        self.transport_by(host.facts().transport_selector())
    }

    /// The transport for what metadata says under `envoy.transport_socket_match`.
    pub(super) fn transport_by(&self, selector: Option<&serde_json::Value>) -> &Transport {
        let found = self.config.transport_matches.iter().position(|m| fulfils(selector, m));
        found.and_then(|at| self.transport_matches.get(at)).unwrap_or(&self.transport)
    }

    pub(super) fn tls_contexts(&self) -> impl Iterator<Item = &Arc<UpstreamContext>> {
        std::iter::once(&self.transport).chain(&self.transport_matches).filter_map(|t| match t {
            Transport::Tls { context, .. } => Some(context),
            Transport::Raw => None,
        })
    }
}

/// What few people read of the members: kept with the stats of traffic, so that idle clusters need not have it.
fn show_rest(stats: &ClusterStats, set: &EndpointSet) {
    stats.membership_degraded.set(set.degraded() as u64);
    stats.membership_excluded.set(set.excluded() as u64);
    stats.max_host_weight.set(set.hosts().map(|h| h.facts().weight).max().unwrap_or(0).into());
}

fn fulfils(selector: Option<&serde_json::Value>, m: &TransportMatch) -> bool {
    m.criteria.iter().all(|(key, want)| selector.and_then(|s| s.get(key)) == Some(want))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::testing::{assignment, cluster_with, endpoint};

    #[test]
    fn an_idle_cluster_has_neither_stats_nor_breakers() {
        let cluster = cluster_with(assignment(vec![(0, vec![endpoint(1)])]), |_| {});
        assert!(cluster.stats.get().is_none() && cluster.breakers.iter().all(|b| b.get().is_none()));
        assert_eq!(cluster.config_stats.membership_total.value(), 1);
    }

    #[test]
    fn criteria_must_all_be_fulfilled() {
        let mut labelled = endpoint(1);
        labelled.metadata = Some(Arc::new(
            [("envoy.transport_socket_match".to_owned(), serde_json::json!({"tlsMode": "istio", "x": 1}))].into(),
        ));
        let cluster = cluster_with(assignment(vec![(0, vec![labelled, endpoint(2)])]), |_| {});
        let hosts: Vec<_> = cluster.endpoints().hosts().cloned().collect();
        let istio =
            TransportMatch { criteria: vec![("tlsMode".into(), "istio".into())], transport: UpstreamTransport::Raw };
        let selects = |host: &Host| fulfils(host.facts().transport_selector(), &istio);
        assert!(selects(&hosts[0]) && !selects(&hosts[1]));
        let any = TransportMatch { criteria: Vec::new(), ..istio };
        assert!(fulfils(hosts[1].facts().transport_selector(), &any));
    }
}
