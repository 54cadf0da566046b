//! All clusters: takes their configuration, warms them, and publishes them into their slots.
//!
//! Belongs to the control thread (the one with the `LocalRuntime` that warming and discovery run on); workers only hold
//! slots. Knows nothing of where configuration comes from.

use super::cluster::{Cluster, Place};
use super::dns::{self, Resolvers};
use super::host::{Host, HostFacts};
use super::slot::{ClusterSlot, SlotIds};
use super::xds_connector::XdsConnector;
use crate::config::ConfigError;
use crate::config::model::{ClusterConfig, ClusterDiscovery, HealthStatus, LoadAssignment, Locality, Thresholds};
use crate::net::UpstreamAddr;
use crate::slots::{Key, Slot, Store};
use crate::stats::{Counter, Gauge, Registry};
use crate::tls::Secrets;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What became of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// Equal to the one that runs.
    Unchanged,
    /// Will be published when its endpoints and secrets are there.
    Warming,
    Live,
}

/// All clusters.
pub struct ClusterManager {
    registry: Registry,
    secrets: Arc<Secrets>,
    assignments: Arc<Store<LoadAssignment>>,
    local_cluster: Option<Arc<str>>,
    resolvers: Resolvers,
    slot_ids: Arc<SlotIds>,
    state: Mutex<State>,
    warming: watch::Sender<usize>,
    stats: ManagerStats,
}

#[derive(Default)]
struct State {
    clusters: BTreeMap<Arc<str>, Entry>,
    slots: HashMap<Arc<str>, Weak<ClusterSlot>>,
    /// Number of slots at which dead ones are cleaned out.
    clean_at: usize,
    versions: u64,
}

/// A cluster that exists, live or warming or both.
struct Entry {
    slot: Arc<ClusterSlot>,
    /// What keeps the live version's endpoints up to date.
    live: Option<Task>,
    warming: Option<(Arc<Cluster>, Task)>,
}

/// A task that ends when this is dropped; `None` for clusters that need none.
struct Task(Option<AbortHandle>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// `cluster_manager.*`.
struct ManagerStats {
    active: Gauge,
    warming: Gauge,
    added: Counter,
    modified: Counter,
    removed: Counter,
    updated: Counter,
}

impl ClusterManager {
    pub fn new(
        registry: Registry,
        secrets: Arc<Secrets>,
        assignments: Arc<Store<LoadAssignment>>,
        local_cluster: Option<Arc<str>>,
    ) -> Arc<ClusterManager> {
        let scope = registry.scope("cluster_manager.");
        let stats = ManagerStats {
            active: scope.gauge("active_clusters"),
            warming: scope.gauge("warming_clusters"),
            added: scope.counter("cluster_added"),
            modified: scope.counter("cluster_modified"),
            removed: scope.counter("cluster_removed"),
            updated: scope.counter("cluster_updated"),
        };
        Arc::new(ClusterManager {
            registry,
            secrets,
            assignments,
            local_cluster,
            resolvers: Resolvers::default(),
            slot_ids: Arc::default(),
            state: Mutex::default(),
            warming: watch::Sender::new(0),
            stats,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster that this proxy itself is an endpoint of, as the bootstrap names it.
    pub fn local_cluster(&self) -> Option<&Arc<str>> {
        self.local_cluster.as_ref()
    }

    /// The slot of this name, made when it is new. Slots live as long as somebody holds them.
    pub fn slot(&self, name: &str) -> Arc<ClusterSlot> {
        self.state().slot(name, &self.slot_ids)
    }

    /// Takes a configuration; warming goes on by itself on the calling thread's `LocalRuntime` (`spawn_local`). An
    /// update keeps the hosts of equal address, and the running cluster serves until the new one is warm. A cluster of
    /// the bootstrap is never replaced by one that comes by API.
    ///
    /// # Errors
    /// What cannot be built (TLS context); the running cluster stays.
    pub fn add_or_update(
        self: &Arc<Self>,
        config: Arc<ClusterConfig>,
        added_via_api: bool,
    ) -> Result<Update, ConfigError> {
        let mut state = self.state();
        let slot = state.slot(&config.name, &self.slot_ids);
        let running = slot.load();
        if let Some(entry) = state.clusters.get_mut(&config.name) {
            let of_bootstrap = running.as_ref().is_some_and(|c| !c.added_via_api);
            if added_via_api && of_bootstrap {
                return Ok(Update::Unchanged);
            }
            if entry.warming.as_ref().is_some_and(|(c, _)| c.config.hash == config.hash) {
                return Ok(Update::Unchanged);
            }
            if running.as_ref().is_some_and(|c| c.config.hash == config.hash) {
                // back to what runs: a version that was warming is wanted no more
                entry.warming = None;
                self.count(&state);
                return Ok(Update::Unchanged);
            }
        }
        state.versions += 1;
        let place = Place {
            slot_id: slot.id,
            version: state.versions,
            added_via_api,
            registry: &self.registry,
            secrets: &self.secrets,
            running: running.as_deref(),
        };
        let cluster = Arc::new(Cluster::new(Arc::clone(&config), &place)?);
        if state.clusters.contains_key(&config.name) { &self.stats.modified } else { &self.stats.added }.inc();
        let entry =
            state.clusters.entry(Arc::clone(&config.name)).or_insert_with(|| Entry { slot, live: None, warming: None });
        let source = Source::of(&cluster, &self.assignments);
        let settled = cluster.tls_contexts().all(|c| c.is_settled());
        let update = match source {
            Source::Fixed if settled => {
                entry.warming = None;
                entry.publish(&cluster, None);
                entry.live = Some(Task(None));
                Update::Live
            }
            Source::Eds(slot) if settled && slot.is_settled() => {
                entry.warming = None;
                cluster.update_stats().update_attempt.inc();
                // subscribed before the value is read, so that no update falls between
                let changes = slot.watch();
                let assignment = slot.load().unwrap_or_default();
                entry.publish(&cluster, Some(&assignment));
                cluster.update_stats().update_success.inc();
                let task = follow_assignments(Arc::downgrade(self), Arc::clone(&cluster), slot, changes);
                entry.live = Some(spawn(task));
                Update::Live
            }
            source => {
                let task = spawn(warm(Arc::downgrade(self), Arc::clone(&cluster), source));
                entry.warming = Some((cluster, task));
                Update::Warming
            }
        };
        self.count(&state);
        Ok(update)
    }

    /// Removes a cluster that came by API, warming or live; its connections drain. Clusters of the bootstrap stay.
    pub fn remove(&self, name: &str) -> bool {
        let mut state = self.state();
        let removable = state.clusters.get(name).is_some_and(|entry| {
            let live = entry.slot.load();
            live.as_ref().or(entry.warming.as_ref().map(|(c, _)| c)).is_some_and(|c| c.added_via_api)
        });
        let Some(entry) = removable.then(|| state.clusters.remove(name)).flatten() else { return false };
        entry.slot.publish(None);
        self.stats.removed.inc();
        self.count(&state);
        true
    }

    /// Names of clusters that wait for something.
    pub fn warming(&self) -> Vec<Arc<str>> {
        let state = self.state();
        state.clusters.iter().filter(|(_, e)| e.warming.is_some()).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Returns once no cluster is warming.
    pub async fn all_warm(&self) {
        let mut warming = self.warming.subscribe();
        // the sender lives in self
        let _ = warming.wait_for(|n| *n == 0).await;
    }

    /// How the xDS client reaches this cluster: a fresh connection (socket, TLS) to one of its endpoints. `None`: no such
    /// cluster is known.
    pub fn xds_connector(self: &Arc<Self>, name: &str) -> Option<Arc<dyn xds_client::Connect>> {
        let slot = self.state().clusters.get(name).map(|entry| Arc::clone(&entry.slot))?;
        Some(Arc::new(XdsConnector::new(slot)))
    }

    /// Every live cluster, by name, as /clusters shows it.
    pub fn statuses(&self) -> Vec<ClusterStatus> {
        let live: Vec<Arc<Cluster>> = self.state().clusters.values().filter_map(|entry| entry.slot.load()).collect();
        live.iter().map(|cluster| ClusterStatus::of(cluster)).collect()
    }

    /// Every live cluster, by name.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        self.state().clusters.values().filter_map(|entry| entry.slot.load()).collect()
    }

    pub(super) fn resolvers(&self) -> &Resolvers {
        &self.resolvers
    }

    pub(super) fn endpoints_changed(&self) {
        self.stats.updated.inc();
    }

    fn count(&self, state: &State) {
        let warming = state.clusters.values().filter(|e| e.warming.is_some()).count();
        let active = state.clusters.values().filter(|e| e.live.is_some()).count();
        self.stats.warming.set(warming as u64);
        self.stats.active.set(active as u64);
        self.warming.send_if_modified(|n| std::mem::replace(n, warming) != warming);
    }

    /// Publishes a version that has become warm, unless another has taken its place.
    fn warmed(&self, cluster: &Arc<Cluster>, assignment: Option<&LoadAssignment>) {
        let mut state = self.state();
        let Some(entry) = state.clusters.get_mut(&cluster.config.name) else { return };
        let Some((warm, task)) = entry.warming.take() else { return };
        if Arc::ptr_eq(&warm, cluster) {
            entry.publish(cluster, assignment);
            entry.live = Some(task);
        } else {
            entry.warming = Some((warm, task));
        }
        self.count(&state);
    }
}

fn spawn(task: impl Future<Output = ()> + 'static) -> Task {
    Task(Some(tokio::task::spawn_local(task).abort_handle()))
}

impl State {
    fn slot(&mut self, name: &str, ids: &Arc<SlotIds>) -> Arc<ClusterSlot> {
        if let Some(slot) = self.slots.get(name).and_then(Weak::upgrade) {
            return slot;
        }
        if self.slots.len() >= self.clean_at {
            self.slots.retain(|_, slot| slot.strong_count() > 0);
            self.clean_at = (self.slots.len() * 2).max(64);
        }
        let name: Arc<str> = name.into();
        let slot = ClusterSlot::new(Arc::clone(&name), ids);
        self.slots.insert(name, Arc::downgrade(&slot));
        slot
    }
}

impl Entry {
    fn publish(&self, cluster: &Arc<Cluster>, assignment: Option<&LoadAssignment>) {
        if let Some(running) = self.slot.load() {
            cluster.start_from(&running);
        }
        match (&cluster.config.discovery, assignment) {
            (ClusterDiscovery::Static(assignment), _) | (_, Some(assignment)) => {
                cluster.apply(assignment);
            }
            _ => {}
        }
        self.slot.publish(Some(Arc::clone(cluster)));
    }
}

/// Where a cluster's endpoints come from.
enum Source {
    Fixed,
    Eds(Arc<Slot<LoadAssignment>>),
    Dns,
}

impl Source {
    fn of(cluster: &Cluster, assignments: &Store<LoadAssignment>) -> Source {
        match &cluster.config.discovery {
            ClusterDiscovery::Static(_) | ClusterDiscovery::OriginalDst { .. } => Source::Fixed,
            ClusterDiscovery::Eds { service_name, source } => {
                Source::Eds(assignments.slot(Key { name: Arc::clone(service_name), source: Some(source.clone()) }))
            }
            ClusterDiscovery::StrictDns { .. } | ClusterDiscovery::LogicalDns { .. } => Source::Dns,
        }
    }
}

/// Waits for everything a cluster needs, publishes it, and keeps its endpoints up to date from then on.
async fn warm(manager: Weak<ClusterManager>, cluster: Arc<Cluster>, source: Source) {
    for context in cluster.tls_contexts() {
        context.settled().await;
    }
    match source {
        Source::Fixed => {
            if let Some(manager) = manager.upgrade() {
                manager.warmed(&cluster, None);
            }
        }
        Source::Eds(slot) => {
            cluster.update_stats().update_attempt.inc();
            slot.settled().await;
            let changes = slot.watch();
            let assignment = slot.load();
            if assignment.is_some() {
                cluster.update_stats().update_success.inc();
            }
            let Some(up) = manager.upgrade() else { return };
            up.warmed(&cluster, Some(&assignment.unwrap_or_default()));
            drop(up);
            follow_assignments(manager, cluster, slot, changes).await;
        }
        Source::Dns => dns::follow(manager, cluster).await,
    }
}

impl ClusterManager {
    pub(super) fn resolved(&self, cluster: &Arc<Cluster>, assignment: &LoadAssignment, first: bool) {
        if first {
            self.warmed(cluster, Some(assignment));
        } else if cluster.apply(assignment) {
            self.endpoints_changed();
        } else {
            cluster.update_stats().update_no_rebuild.inc();
        }
    }
}

/// Applies every later assignment. An assignment that goes away changes nothing, as in Envoy: the last one serves on.
async fn follow_assignments(
    manager: Weak<ClusterManager>,
    cluster: Arc<Cluster>,
    slot: Arc<Slot<LoadAssignment>>,
    mut changes: watch::Receiver<crate::slots::Progress>,
) {
    while changes.changed().await.is_ok() {
        let stats = cluster.update_stats();
        match slot.load() {
            Some(assignment) => {
                stats.update_success.inc();
                if !cluster.apply(&assignment) {
                    stats.update_no_rebuild.inc();
                } else if let Some(manager) = manager.upgrade() {
                    manager.endpoints_changed();
                }
            }
            None => stats.update_empty.inc(),
        }
    }
}

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
    /// `healthy`, or flags as Envoy writes them, e.g. `/failed_eds_health`.
    pub health_flags: &'static str,
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
    fn of(cluster: &Cluster) -> ClusterStatus {
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
            health_flags: match facts.health {
                HealthStatus::Unknown | HealthStatus::Healthy => "healthy",
                HealthStatus::Unhealthy | HealthStatus::Timeout => "/failed_eds_health",
                HealthStatus::Draining => "/eds_status_draining",
                HealthStatus::Degraded => "/degraded_eds_health",
            },
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
