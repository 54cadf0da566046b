//! All clusters: takes their configuration, warms them, and publishes them into their slots.
//!
//! Belongs to the control thread (the one with the `LocalRuntime` that warming and discovery run on); workers only hold
//! slots. Knows nothing of where configuration comes from.

use super::cluster::{Applied, Cluster, Place};
use super::dns::{self, Resolvers};
use super::health::{self, ActiveHealth};
use super::merge::Merging;
use super::slot::{ClusterSlot, SlotIds};
use super::status::ClusterStatus;
use super::xds_connector::XdsConnector;
use crate::config::ConfigError;
use crate::config::model::{ClusterConfig, ClusterDiscovery, ConfigSource, LoadAssignment};
use crate::slots::{Key, Progress, Slot, Store};
use crate::stats::{Counter, Gauge, Registry};
use crate::tls::Secrets;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::AbortHandle;

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

/// A task that ends when this is dropped; `None` for clusters that need none.
#[derive(Default)]
struct Task {
    running: Option<AbortHandle>,
    /// What it follows. The task itself holds it weakly: it is dropped some time after it was aborted, and discovery
    /// shall hear at once that nobody wants this any more.
    _follows: Option<Arc<Slot<LoadAssignment>>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.running {
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

fn spawn(task: impl Future<Output = ()> + 'static, follows: Option<Arc<Slot<LoadAssignment>>>) -> Task {
    Task { running: Some(tokio::task::spawn_local(task).abort_handle()), _follows: follows }
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

/// As `warm`, and checks the health of the cluster's endpoints, before it is published and from then on.
async fn warm_checked(
    manager: Weak<ClusterManager>,
    cluster: Arc<Cluster>,
    source: Awaited,
    health: Arc<ActiveHealth>,
) {
    let all_checked = || {
        if let Some(manager) = manager.upgrade() {
            manager.checked(&cluster);
        }
    };
    let checking = health::run(Arc::clone(&cluster), health, all_checked);
    tokio::join!(warm(manager.clone(), Arc::clone(&cluster), source), checking);
}

/// As [`Source`], for a task: see [`Task`].
enum Awaited {
    Fixed,
    Eds(Weak<Slot<LoadAssignment>>),
    Dns,
}

impl Source {
    fn held(self) -> (Awaited, Option<Arc<Slot<LoadAssignment>>>) {
        match self {
            Source::Fixed => (Awaited::Fixed, None),
            Source::Eds(slot) => (Awaited::Eds(Arc::downgrade(&slot)), Some(slot)),
            Source::Dns => (Awaited::Dns, None),
        }
    }
}

/// Waits for everything a cluster needs, publishes it, and keeps its endpoints up to date from then on.
async fn warm(manager: Weak<ClusterManager>, cluster: Arc<Cluster>, source: Awaited) {
    for context in cluster.tls_contexts() {
        context.settled().await;
    }
    match source {
        Awaited::Fixed => {
            if let Some(manager) = manager.upgrade() {
                manager.warmed(&cluster, None);
            }
        }
        Awaited::Eds(weak) => {
            cluster.update_stats().update_attempt.inc();
            let Some(mut changes) = weak.upgrade().map(|slot| slot.watch()) else { return };
            if changes.wait_for(|progress| *progress != Progress::Waiting).await.is_err() {
                return;
            }
            let began = Instant::now();
            let (Some(slot), Some(up)) = (weak.upgrade(), manager.upgrade()) else { return };
            let assignment = slot.load();
            let came = assignment.is_some();
            let assignment = assignment.unwrap_or_default();
            up.warmed(&cluster, Some(&assignment));
            drop(up);
            if came {
                cluster.update_stats().updated(slot.version(), began.elapsed());
            }
            drop(slot);
            Following { cluster, slot: weak, changes, applied: assignment }.run(manager).await;
        }
        Awaited::Dns => dns::follow(manager, cluster).await,
    }
}

impl ClusterManager {
    pub(super) fn resolved(&self, cluster: &Arc<Cluster>, assignment: &LoadAssignment, first: bool) {
        if first {
            self.warmed(cluster, Some(assignment));
        } else if cluster.apply(assignment) == Applied::Nothing {
            cluster.update_stats().not_rebuilt();
        } else {
            self.stats.updated.inc();
        }
    }
}

/// A cluster and where its endpoints come from, once it is live.
struct Following {
    cluster: Arc<Cluster>,
    slot: Weak<Slot<LoadAssignment>>,
    changes: watch::Receiver<Progress>,
    applied: Arc<LoadAssignment>,
}

impl Following {
    /// Applies every later assignment; those that change no member wait for the end of the cluster's merge window.
    async fn run(mut self, manager: Weak<ClusterManager>) {
        let mut merging = Merging::new(self.cluster.config.update_merge_window);
        loop {
            let merged = tokio::select! {
                changed = self.changes.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return,
                },
                () = merging.due() => true,
            };
            let (Some(manager), Some(slot)) = (manager.upgrade(), self.slot.upgrade()) else { return };
            let began = Instant::now();
            let assignment = slot.load().unwrap_or_else(|| Arc::clone(&self.applied));
            let outcome = if merged {
                merging.applied();
                manager.stats.updated_via_merge.inc();
                self.apply(assignment)
            } else if Arc::ptr_eq(&assignment, &self.applied) {
                Some(Applied::Nothing)
            } else if merging.may_wait() && self.cluster.endpoints().has_members_of(&assignment) {
                merging.wait();
                None
            } else {
                if merging.applied() {
                    manager.stats.merge_cancelled.inc();
                }
                let outcome = self.apply(assignment);
                if outcome == Some(Applied::Facts) && merging.is_on() {
                    manager.stats.out_of_merge_window.inc();
                }
                outcome
            };
            match outcome {
                Some(Applied::Nothing) => self.cluster.update_stats().not_rebuilt(),
                Some(_) => manager.stats.updated.inc(),
                None => {}
            }
            if !merged {
                self.cluster.update_stats().updated(slot.version(), began.elapsed());
            }
        }
    }

    fn apply(&mut self, assignment: Arc<LoadAssignment>) -> Option<Applied> {
        self.applied = assignment;
        Some(self.cluster.apply(&self.applied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{ConfigSource, ConfigSourceKind};
    use crate::upstream::testing::{assignment, endpoint, manager};

    fn run<F: Future<Output = ()>>(test: F) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).unwrap();
        runtime.block_on(test);
    }

    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    fn source() -> ConfigSource {
        ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: None }
    }

    fn eds(name: &str, service: &str, hash: u64) -> Arc<ClusterConfig> {
        let discovery = ClusterDiscovery::Eds { service_name: service.into(), source: source() };
        Arc::new(ClusterConfig { hash, ..ClusterConfig::new(name, discovery) })
    }

    fn fixed(name: &str, port: u16, hash: u64) -> Arc<ClusterConfig> {
        let discovery = ClusterDiscovery::Static(assignment(vec![(0, vec![endpoint(port)])]));
        Arc::new(ClusterConfig { hash, ..ClusterConfig::new(name, discovery) })
    }

    fn key(service: &str) -> Key {
        Key { name: service.into(), source: Some(source()) }
    }

    fn ports(cluster: &Cluster) -> Vec<String> {
        cluster.endpoints().hosts().map(|h| h.address.to_string()).collect()
    }

    fn give(store: &Store<LoadAssignment>, service: &str, of: &[u16]) {
        let endpoints = of.iter().map(|port| endpoint(*port)).collect();
        store.fill(&key(service), Arc::new(assignment(vec![(0, endpoints)])));
    }

    /// Thousands of clusters have such a task each.
    #[test]
    fn a_cluster_that_follows_its_endpoints_takes_little_memory() {
        run(async {
            let (manager, store) = manager();
            manager.add_or_update(fixed("a", 1, 1), true).unwrap();
            let cluster = manager.slot("a").load().unwrap();
            let slot = store.slot(key("svc"));
            let task = warm(Arc::downgrade(&manager), cluster, Awaited::Eds(Arc::downgrade(&slot)));
            assert!(size_of_val(&task) <= 576, "{} bytes", size_of_val(&task));
        });
    }

    #[test]
    fn a_slot_outlives_its_cluster_and_an_equal_push_is_no_update() {
        run(async {
            let (manager, _) = manager();
            let slot = manager.slot("a");
            assert!(slot.load().is_none());
            assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Live));
            let first = slot.load().unwrap();
            assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Unchanged));
            assert!(Arc::ptr_eq(&first, &slot.load().unwrap()));
            first.stats().upstream_cx_total.add(3);
            assert_eq!(manager.add_or_update(fixed("a", 1, 2), true), Ok(Update::Live));
            let second = slot.load().unwrap();
            assert!(first.is_retired() && !second.is_retired());
            assert_eq!(second.stats().upstream_cx_total.value(), 3, "a new version counts on");
            let host = |c: &Cluster| Arc::clone(c.endpoints().hosts().next().unwrap());
            assert!(Arc::ptr_eq(&host(&first), &host(&second)) && !host(&second).is_removed());
            assert!(manager.remove("a") && !manager.remove("a"));
            assert!(!manager.has("a") && manager.clusters().is_empty());
            assert!(slot.load().is_some() && !second.is_retired(), "somebody still names it");
            manager.end_lingering("a");
            assert!(slot.load().is_none() && second.is_retired());
            let stats = &manager.stats;
            assert_eq!((stats.added.value(), stats.modified.value(), stats.removed.value()), (1, 1, 1));
            assert_eq!(stats.active.value(), 0);
        });
    }

    #[test]
    fn a_removed_cluster_ends_with_the_last_route_that_names_it() {
        run(async {
            let (manager, _) = manager();
            let (one, other) = (manager.slot("a"), manager.slot("a"));
            manager.add_or_update(fixed("a", 1, 1), true).unwrap();
            let cluster = one.load().unwrap();
            assert!(manager.remove("a"));
            drop(one);
            assert!(!cluster.is_retired());
            drop(other);
            assert!(cluster.is_retired());

            manager.add_or_update(fixed("a", 1, 1), true).unwrap();
            let unnamed = manager.slot("a").load().unwrap();
            assert!(manager.remove("a"));
            assert!(unnamed.is_retired(), "nobody named it");
            assert!(manager.state().slots.is_empty(), "nothing is left of it");
        });
    }

    #[test]
    fn a_cluster_that_comes_back_is_served_by_what_was_removed_until_it_is_warm() {
        run(async {
            let (manager, store) = manager();
            let slot = manager.slot("a");
            manager.add_or_update(fixed("a", 1, 1), true).unwrap();
            let first = slot.load().unwrap();
            assert!(manager.remove("a"));
            assert_eq!(manager.add_or_update(eds("a", "svc", 2), true), Ok(Update::Warming));
            manager.end_lingering("a");
            assert!(Arc::ptr_eq(&slot.load().unwrap(), &first) && manager.clusters().is_empty());
            // equal to what was removed, and yet nothing that runs
            assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Live));
            assert!(first.is_retired() && manager.clusters().len() == 1);
            give(&store, "svc", &[9]);
            settle().await;
            assert_eq!(ports(&slot.load().unwrap()), ["127.0.0.1:1"]);
        });
    }

    #[test]
    fn endpoints_are_let_go_of_at_once_when_their_cluster_is_removed() {
        run(async {
            let (manager, store) = manager();
            let slot = manager.slot("a");
            manager.add_or_update(eds("a", "svc", 1), true).unwrap();
            assert!(store.get(&key("svc")).is_some());
            settle().await;
            assert!(manager.remove("a") && store.get(&key("svc")).is_none(), "while it warms");
            manager.add_or_update(eds("a", "svc", 1), true).unwrap();
            give(&store, "svc", &[1]);
            manager.all_warm().await;
            settle().await;
            assert!(manager.remove("a") && store.get(&key("svc")).is_none(), "while it runs");
            assert!(slot.load().is_some());
        });
    }

    #[test]
    fn an_eds_cluster_warms_until_its_endpoints_arrive() {
        run(async {
            let (manager, store) = manager();
            assert_eq!(manager.add_or_update(eds("a", "svc", 1), true), Ok(Update::Warming));
            assert_eq!(manager.add_or_update(eds("a", "svc", 1), true), Ok(Update::Unchanged));
            settle().await;
            assert_eq!((manager.warming(), manager.stats.warming.value()), (vec!["a".into()], 1));
            assert!(manager.slot("a").load().is_none());
            give(&store, "svc", &[1, 2]);
            manager.all_warm().await;
            let cluster = manager.slot("a").load().unwrap();
            assert_eq!(ports(&cluster), ["127.0.0.1:1", "127.0.0.1:2"]);
            let kept = Arc::clone(cluster.endpoints().hosts().nth(1).unwrap());
            give(&store, "svc", &[2, 3]);
            settle().await;
            assert_eq!(ports(&cluster), ["127.0.0.1:2", "127.0.0.1:3"]);
            assert!(Arc::ptr_eq(cluster.endpoints().hosts().next().unwrap(), &kept));
            manager.assignment_failed("svc", AssignmentFailure::Empty);
            settle().await;
            assert_eq!(ports(&cluster).len(), 2, "an assignment that goes away changes nothing");
            assert_eq!(cluster.update_stats().rare().update_empty.value(), 1);
        });
    }

    #[test]
    fn the_running_version_serves_while_the_next_one_warms() {
        run(async {
            let (manager, store) = manager();
            let slot = manager.slot("a");
            manager.add_or_update(fixed("a", 1, 1), true).unwrap();
            let first = slot.load().unwrap();
            manager.add_or_update(eds("a", "svc", 2), true).unwrap();
            manager.add_or_update(eds("a", "other", 3), true).unwrap();
            settle().await;
            assert!(Arc::ptr_eq(&slot.load().unwrap(), &first) && !first.is_retired());
            give(&store, "svc", &[9]);
            settle().await;
            assert!(Arc::ptr_eq(&slot.load().unwrap(), &first), "that version is wanted no more");
            give(&store, "other", &[1]);
            manager.all_warm().await;
            let next = slot.load().unwrap();
            assert_eq!((next.config.hash, ports(&next)), (3, vec!["127.0.0.1:1".to_owned()]));
        });
    }

    #[test]
    fn going_back_to_what_runs_ends_the_warming() {
        run(async {
            let (manager, _store) = manager();
            manager.add_or_update(fixed("a", 1, 1), true).unwrap();
            manager.add_or_update(eds("a", "svc", 2), true).unwrap();
            assert_eq!(manager.add_or_update(fixed("a", 1, 1), true), Ok(Update::Unchanged));
            manager.all_warm().await;
        });
    }

    #[test]
    fn a_cluster_with_known_endpoints_is_live_at_once() {
        run(async {
            let (manager, store) = manager();
            manager.add_or_update(eds("a", "svc", 1), true).unwrap();
            give(&store, "svc", &[1]);
            manager.all_warm().await;
            assert_eq!(manager.add_or_update(eds("a", "svc", 2), true), Ok(Update::Live));
            let cluster = manager.slot("a").load().unwrap();
            give(&store, "svc", &[1, 2]);
            settle().await;
            assert_eq!(ports(&cluster).len(), 2);
        });
    }

    #[test]
    fn an_endpoint_set_that_never_comes_ends_the_warming_empty() {
        run(async {
            let (manager, store) = manager();
            manager.add_or_update(eds("a", "svc", 1), true).unwrap();
            settle().await;
            store.give_up(&key("svc"));
            manager.all_warm().await;
            assert!(ports(&manager.slot("a").load().unwrap()).is_empty());
        });
    }

    #[test]
    fn clusters_of_the_bootstrap_are_not_for_the_api() {
        run(async {
            let (manager, _) = manager();
            manager.add_or_update(fixed("a", 1, 1), false).unwrap();
            assert_eq!(manager.add_or_update(fixed("a", 2, 2), true), Ok(Update::Unchanged));
            assert!(!manager.remove("a"));
            let [status] = &manager.statuses().collect::<Vec<_>>()[..] else { panic!("one cluster") };
            assert_eq!((&*status.name, status.added_via_api, status.hosts.len()), ("a", false, 1));
            assert_eq!((&*status.hosts[0].health.to_string(), status.hosts[0].success_rate), ("healthy", -1.0));
        });
    }

    #[test]
    fn the_xds_client_gets_a_counted_connection() {
        run(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (manager, _) = manager();
            assert!(manager.xds_connector("xds", None, true).is_none());
            let port = listener.local_addr().unwrap().port();
            manager.add_or_update(fixed("xds", port, 1), false).unwrap();
            let connector = manager.xds_connector("xds", None, true).unwrap();
            assert_eq!((connector.authority().as_str(), connector.scheme()), ("xds", "http"));
            let polls = manager.xds_connector("xds", Some("api.example.com".into()), false).unwrap();
            assert_eq!(polls.authority(), "api.example.com");
            let stream = connector.connect().await.unwrap();
            let cluster = manager.slot("xds").load().unwrap();
            let stats = cluster.stats();
            assert_eq!((stats.upstream_cx_active.value(), stats.upstream_cx_http2_total.value()), (1, 1));
            drop(polls.connect().await.unwrap());
            assert_eq!((stats.upstream_cx_http1_total.value(), stats.upstream_cx_http2_total.value()), (1, 1));
            drop((stream, listener));
            assert_eq!(stats.upstream_cx_active.value(), 0);
            assert!(connector.connect().await.is_err());
            assert_eq!((stats.upstream_cx_connect_fail.value(), stats.upstream_cx_active.value()), (1, 0));
        });
    }
}
