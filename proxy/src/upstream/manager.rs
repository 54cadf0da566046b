//! All clusters: takes their configuration, warms them, and publishes them into their slots.
//!
//! Belongs to the control thread (the one with the `LocalRuntime` that warming and discovery run on); workers only hold
//! slots. Knows nothing of where configuration comes from.

#[cfg(test)]
mod tests;
mod warming;

use super::cluster::{Cluster, Place};
use super::dns::Resolvers;
use super::slot::{ClusterSlot, SlotIds};
use super::status::ClusterStatus;
use super::xds_connector::XdsConnector;
use crate::config::ConfigError;
use crate::config::model::{ClusterConfig, ClusterDiscovery, ConfigSource, LoadAssignment};
use crate::slots::{Key, Store};
use crate::stats::{Counter, Gauge, Registry};
use crate::tls::Secrets;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use warming::{Following, Source, Task, spawn, warm, warm_checked};

/// How long a cluster that was removed serves the routes that still name it. A control plane that removes a cluster
/// moves its routes away in the same breath, and yet the two come as messages of their own, clusters first: five seconds
/// are much for what lies between them, and little for a route that nobody means to move.
const LINGER: Duration = Duration::from_secs(5);

/// What became of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// Equal to the one that runs.
    Unchanged,
    /// Will be published when its endpoints and secrets are there, and the endpoints have been checked.
    Warming,
    Live,
}

/// All clusters.
pub struct ClusterManager {
    registry: Registry,
    secrets: Arc<Secrets>,
    assignments: Arc<Store<LoadAssignment>>,
    resolvers: Resolvers,
    slot_ids: Arc<SlotIds>,
    state: Mutex<State>,
    warming: watch::Sender<usize>,
    /// Changes whenever a version of a cluster goes live.
    published: watch::Sender<()>,
    stats: ManagerStats,
}

#[derive(Default)]
struct State {
    clusters: BTreeMap<Arc<str>, Entry>,
    /// Ends the service of clusters that were removed while routes name them.
    lingering: HashMap<Arc<str>, Task>,
    slots: HashMap<Arc<str>, Weak<ClusterSlot>>,
    /// Number of slots at which dead ones are cleaned out.
    clean_at: usize,
    versions: u64,
    live: usize,
    warming: usize,
}

/// A cluster that exists, live or warming or both.
struct Entry {
    slot: Arc<ClusterSlot>,
    /// What keeps the live version's endpoints up to date.
    live: Option<Task>,
    warming: Option<(Arc<Cluster>, Task)>,
}

/// Where a cluster stands.
#[derive(Clone, Copy, Default)]
struct Phase {
    live: bool,
    warming: bool,
}

/// `cluster_manager.*`.
struct ManagerStats {
    active: Gauge,
    warming: Gauge,
    added: Counter,
    modified: Counter,
    removed: Counter,
    updated: Counter,
    updated_via_merge: Counter,
    merge_cancelled: Counter,
    out_of_merge_window: Counter,
}

/// Why endpoints were not updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssignmentFailure {
    /// What came was refused.
    Rejected,
    /// Nothing came in time.
    TimedOut,
    /// The source has none (any more).
    Empty,
}

impl ClusterManager {
    pub fn new(
        registry: Registry,
        secrets: Arc<Secrets>,
        assignments: Arc<Store<LoadAssignment>>,
    ) -> Arc<ClusterManager> {
        let scope = registry.scope("cluster_manager.");
        let stats = ManagerStats {
            active: scope.gauge("active_clusters"),
            warming: scope.gauge("warming_clusters"),
            added: scope.counter("cluster_added"),
            modified: scope.counter("cluster_modified"),
            removed: scope.counter("cluster_removed"),
            updated: scope.counter("cluster_updated"),
            updated_via_merge: scope.counter("cluster_updated_via_merge"),
            merge_cancelled: scope.counter("update_merge_cancelled"),
            out_of_merge_window: scope.counter("update_out_of_merge_window"),
        };
        Arc::new(ClusterManager {
            registry,
            secrets,
            assignments,
            resolvers: Resolvers::default(),
            slot_ids: Arc::default(),
            state: Mutex::default(),
            warming: watch::Sender::new(0),
            published: watch::Sender::new(()),
            stats,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of this name, made when it is new. Slots live as long as somebody holds them.
    pub fn slot(&self, name: &str) -> Arc<ClusterSlot> {
        self.state().slot(name, &self.slot_ids, || name.into())
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
        let slot = state.slot(&config.name, &self.slot_ids, || Arc::clone(&config.name));
        let running = slot.load();
        if let Some(entry) = state.clusters.get_mut(&config.name) {
            let of_bootstrap = running.as_ref().is_some_and(|c| !c.added_via_api);
            if added_via_api && of_bootstrap {
                return Ok(Update::Unchanged);
            }
            if entry.warming.as_ref().is_some_and(|(c, _)| c.config.hash == config.hash) {
                return Ok(Update::Unchanged);
            }
            if entry.live.is_some() && running.as_ref().is_some_and(|c| c.config.hash == config.hash) {
                // back to what runs: a version that was warming is wanted no more
                let before = entry.phase();
                entry.warming = None;
                let after = entry.phase();
                self.count(&mut state, before, after);
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
        // one that was removed a moment ago: it serves until this one does
        state.lingering.remove(&config.name);
        let entry =
            state.clusters.entry(Arc::clone(&config.name)).or_insert_with(|| Entry { slot, live: None, warming: None });
        let before = entry.phase();
        let source = Source::of(&cluster, &self.assignments);
        let settled = cluster.tls_contexts().all(|c| c.is_settled());
        let update = match (cluster.health().cloned(), source) {
            (Some(health), source) => {
                let (awaits, follows) = source.held();
                let task = warm_checked(Arc::downgrade(self), Arc::clone(&cluster), awaits, health);
                entry.warming = Some((cluster, spawn(task, follows)));
                Update::Warming
            }
            (None, Source::Fixed) if settled => {
                entry.warming = None;
                entry.publish(&cluster, None);
                entry.live = Some(Task::default());
                Update::Live
            }
            (None, Source::Eds(slot)) if settled && slot.is_settled() => {
                entry.warming = None;
                let began = Instant::now();
                cluster.update_stats().update_attempt.inc();
                // subscribed before the value is read, so that no update falls between
                let changes = slot.watch();
                let assignment = slot.load().unwrap_or_default();
                entry.publish(&cluster, Some(&assignment));
                cluster.update_stats().updated(slot.version(), began.elapsed());
                let weak = Arc::downgrade(&slot);
                let following = Following { cluster: Arc::clone(&cluster), slot: weak, changes, applied: assignment };
                entry.live = Some(spawn(following.run(Arc::downgrade(self)), Some(slot)));
                Update::Live
            }
            (None, source) => {
                let (awaits, follows) = source.held();
                let task = warm(Arc::downgrade(self), Arc::clone(&cluster), awaits);
                entry.warming = Some((cluster, spawn(task, follows)));
                Update::Warming
            }
        };
        let after = entry.phase();
        self.count(&mut state, before, after);
        self.published.send_replace(());
        Ok(update)
    }

    /// Removes a cluster that came by API, warming or live. Nothing follows its endpoints any more; routes that still
    /// name it are served until the last of them is gone, at most for five seconds. Then its connections drain.
    /// Clusters of the bootstrap stay. Needs the calling thread's `LocalRuntime`.
    pub fn remove(self: &Arc<Self>, name: &str) -> bool {
        let mut state = self.state();
        let removable = state.clusters.get(name).is_some_and(|entry| {
            let live = entry.slot.load();
            live.as_ref().or(entry.warming.as_ref().map(|(c, _)| c)).is_some_and(|c| c.added_via_api)
        });
        let Some((name, entry)) = removable.then(|| state.clusters.remove_entry(name)).flatten() else { return false };
        let phase = entry.phase();
        let slot = Arc::downgrade(&entry.slot);
        drop(entry);
        if let Some(slot) = slot.upgrade()
            && slot.borrow().is_some()
        {
            let manager = Arc::downgrade(self);
            let gone = Arc::clone(&name);
            let end = async move {
                tokio::time::sleep(LINGER).await;
                if let Some(manager) = manager.upgrade() {
                    manager.end_lingering(&gone);
                }
            };
            state.lingering.insert(name, spawn(end, None));
        } else if state.slots.get(&name).is_some_and(|slot| slot.strong_count() == 0) {
            // what is left of it takes as much memory as before
            state.slots.remove(&name);
            if state.slots.len() < state.slots.capacity() / 8 {
                state.slots.shrink_to_fit();
            }
        }
        self.stats.removed.inc();
        self.count(&mut state, phase, Phase::default());
        true
    }

    fn end_lingering(&self, name: &str) {
        let mut state = self.state();
        if state.lingering.remove(name).is_some()
            && let Some(slot) = state.slots.get(name).and_then(Weak::upgrade)
        {
            tracing::debug!("cluster {name} was removed and routes still name it: they have no cluster from now on");
            slot.publish(None);
        }
    }

    /// Whether a cluster of this name is live or warming.
    pub fn has(&self, name: &str) -> bool {
        self.state().clusters.contains_key(name)
    }

    /// The name of a cluster that was probably meant.
    pub fn nearest(&self, name: &str) -> Option<String> {
        let state = self.state();
        xds_protos::nearest(name, state.clusters.keys().map(|known| &**known)).map(str::to_owned)
    }

    /// Names of clusters that wait for something.
    pub fn warming(&self) -> Vec<Arc<str>> {
        let state = self.state();
        state.clusters.iter().filter(|(_, e)| e.warming.is_some()).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Every warming cluster and what it waits for.
    pub fn awaited(&self) -> Vec<(Arc<str>, Vec<String>)> {
        let state = self.state();
        let warming = state.clusters.iter().filter_map(|(name, entry)| Some((name, &entry.warming.as_ref()?.0)));
        warming
            .map(|(name, cluster)| {
                let mut targets: Vec<String> = cluster
                    .tls_contexts()
                    .flat_map(|c| c.awaited())
                    .map(|secret| format!("target SdsApi {secret}"))
                    .collect();
                match &cluster.config.discovery {
                    ClusterDiscovery::Eds { service_name, source } => {
                        let key = Key { name: Arc::clone(service_name), source: Some(source.clone()) };
                        let waits = self.assignments.get(&key).is_some_and(|slot| !slot.is_settled());
                        targets.extend(waits.then(|| format!("target ClusterLoadAssignment {service_name}")));
                    }
                    ClusterDiscovery::StrictDns { endpoints, .. } | ClusterDiscovery::LogicalDns { endpoints, .. } => {
                        let names = endpoints.iter().flat_map(|l| &l.names).map(|(host, ..)| host);
                        targets.extend(names.map(|host| format!("target DNS {host}")));
                    }
                    ClusterDiscovery::Static(_) | ClusterDiscovery::OriginalDst { .. } => {}
                }
                if cluster.health().is_some_and(|health| health.has_begun()) {
                    // the endpoints are known
                    targets = vec!["target health checks".to_owned()];
                }
                targets.dedup();
                (Arc::clone(name), targets)
            })
            .collect()
    }

    /// The names in stats of the clusters whose endpoints these are.
    pub fn served_by(&self, service_name: &str, source: &ConfigSource) -> Vec<Arc<str>> {
        let state = self.state();
        let all = state.clusters.values().flat_map(Entry::versions).filter(|cluster| match &cluster.config.discovery {
            ClusterDiscovery::Eds { service_name: own, source: from } => **own == *service_name && from == source,
            _ => false,
        });
        let mut names: Vec<Arc<str>> = all.map(|cluster| cluster.config.stat_name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether any cluster waits for something.
    pub fn any_warming(&self) -> bool {
        *self.warming.borrow() > 0
    }

    /// Counts an update of endpoints that came to nothing, with every cluster of this service name.
    pub fn assignment_failed(&self, service_name: &str, failure: AssignmentFailure) {
        let state = self.state();
        for cluster in state.clusters.values().flat_map(Entry::versions) {
            match &cluster.config.discovery {
                ClusterDiscovery::Eds { service_name: own, .. } if **own == *service_name => {}
                _ => continue,
            }
            let stats = cluster.update_stats();
            match failure {
                AssignmentFailure::Rejected => stats.eds().update_rejected.inc(),
                AssignmentFailure::TimedOut => stats.eds().init_fetch_timeout.inc(),
                AssignmentFailure::Empty => stats.rare().update_empty.inc(),
            }
            stats.update_attempt.inc();
        }
    }

    /// Counts the end of a stream that serves endpoints, with the clusters that traffic has reached.
    pub fn stream_failed(&self) {
        for cluster in self.state().clusters.values().flat_map(Entry::versions) {
            if let (ClusterDiscovery::Eds { .. }, true) = (&cluster.config.discovery, cluster.update_stats().is_shown())
            {
                cluster.update_stats().update_attempt.inc();
                cluster.update_stats().rare().update_failure.inc();
            }
        }
    }

    /// Whether a version of this cluster waits for something.
    pub fn is_warming(&self, name: &str) -> bool {
        self.state().clusters.get(name).is_some_and(|entry| entry.warming.is_some())
    }

    /// Changes whenever a version of a cluster goes live, or one more waits for something.
    pub fn watch_published(&self) -> watch::Receiver<()> {
        self.published.subscribe()
    }

    /// How many clusters are warming: a receiver that sees every later change.
    pub fn watch_warming(&self) -> watch::Receiver<usize> {
        self.warming.subscribe()
    }

    /// Returns once no cluster is warming.
    pub async fn all_warm(&self) {
        let mut warming = self.warming.subscribe();
        // the sender lives in self
        let _ = warming.wait_for(|n| *n == 0).await;
    }

    /// How the xDS client reaches this cluster: a fresh connection (socket, TLS) to one of its endpoints, for HTTP/2 or
    /// HTTP/1.1, under this authority or the cluster's name. `None`: no such cluster is known.
    pub fn xds_connector(
        self: &Arc<Self>,
        name: &str,
        authority: Option<Arc<str>>,
        http2: bool,
    ) -> Option<Arc<dyn xds_client::Connect>> {
        let slot = self.state().clusters.get(name).map(|entry| Arc::clone(&entry.slot))?;
        Some(Arc::new(XdsConnector::new(slot, authority, http2)))
    }

    /// Every live cluster, by name, as /clusters shows it; each looked at when its turn comes.
    pub fn statuses(&self) -> impl Iterator<Item = ClusterStatus> + use<> {
        self.clusters().into_iter().map(|cluster| ClusterStatus::of(&cluster))
    }

    /// Every live cluster, by name.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let state = self.state();
        let live = state.clusters.values().filter(|entry| entry.live.is_some());
        live.filter_map(|entry| entry.slot.load()).collect()
    }

    /// The version of a cluster that serves now.
    pub(super) fn running(&self, name: &str) -> Option<Arc<Cluster>> {
        self.state().clusters.get(name).and_then(|entry| entry.slot.load())
    }

    pub(super) fn resolvers(&self) -> &Resolvers {
        &self.resolvers
    }

    /// Follows one entry's step from one phase to another: counting all entries on each push would be quadratic.
    fn count(&self, state: &mut State, before: Phase, after: Phase) {
        state.live = state.live + usize::from(after.live) - usize::from(before.live);
        state.warming = state.warming + usize::from(after.warming) - usize::from(before.warming);
        let warming = state.warming;
        self.stats.warming.set(warming as u64);
        self.stats.active.set(state.live as u64);
        self.warming.send_if_modified(|n| std::mem::replace(n, warming) != warming);
    }

    /// Publishes a version that has become warm, unless another has taken its place.
    fn warmed(&self, cluster: &Arc<Cluster>, assignment: Option<&LoadAssignment>) {
        let mut state = self.state();
        let Some(entry) = state.clusters.get_mut(&cluster.config.name) else { return };
        let before = entry.phase();
        let Some((warm, task)) = entry.warming.take() else { return };
        if !Arc::ptr_eq(&warm, cluster) {
            entry.warming = Some((warm, task));
        } else if let Some(health) = cluster.health() {
            // the endpoints are known, and are checked before they are used
            entry.prepare(cluster, assignment);
            entry.warming = Some((warm, task));
            health.begin();
        } else {
            entry.publish(cluster, assignment);
            entry.live = Some(task);
            self.published.send_replace(());
        }
        let after = entry.phase();
        self.count(&mut state, before, after);
    }

    /// Publishes a version whose endpoints have all had their first health check, unless another has taken its place.
    fn checked(&self, cluster: &Arc<Cluster>) {
        let mut state = self.state();
        let Some(entry) = state.clusters.get_mut(&cluster.config.name) else { return };
        let before = entry.phase();
        let Some((warm, task)) = entry.warming.take() else { return };
        if Arc::ptr_eq(&warm, cluster) {
            entry.slot.publish(Some(warm));
            entry.live = Some(task);
            self.published.send_replace(());
        } else {
            entry.warming = Some((warm, task));
        }
        let after = entry.phase();
        self.count(&mut state, before, after);
    }
}

impl State {
    fn slot(&mut self, name: &str, ids: &Arc<SlotIds>, shared: impl FnOnce() -> Arc<str>) -> Arc<ClusterSlot> {
        if let Some(slot) = self.slots.get(name).and_then(Weak::upgrade) {
            return slot;
        }
        if self.slots.len() >= self.clean_at {
            self.slots.retain(|_, slot| slot.strong_count() > 0);
            self.clean_at = (self.slots.len() * 2).max(64);
        }
        let name = shared();
        let slot = ClusterSlot::new(Arc::clone(&name), ids);
        self.slots.insert(name, Arc::downgrade(&slot));
        slot
    }
}

impl Entry {
    fn phase(&self) -> Phase {
        Phase { live: self.live.is_some(), warming: self.warming.is_some() }
    }

    fn versions(&self) -> impl Iterator<Item = Arc<Cluster>> {
        self.slot.load().into_iter().chain(self.warming.as_ref().map(|(cluster, _)| Arc::clone(cluster)))
    }

    fn publish(&self, cluster: &Arc<Cluster>, assignment: Option<&LoadAssignment>) {
        self.prepare(cluster, assignment);
        self.slot.publish(Some(Arc::clone(cluster)));
    }

    /// Gives a version its first endpoints.
    fn prepare(&self, cluster: &Cluster, assignment: Option<&LoadAssignment>) {
        if let Some(running) = self.slot.load() {
            cluster.start_from(&running);
        }
        match (&cluster.config.discovery, assignment) {
            (ClusterDiscovery::Static(assignment), _) | (_, Some(assignment)) => {
                cluster.apply(assignment);
            }
            _ => {}
        }
    }
}
