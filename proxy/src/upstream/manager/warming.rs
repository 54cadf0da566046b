//! How a cluster becomes live and stays up to date: what it waits for, and the task that follows its endpoints.

use super::ClusterManager;
use crate::config::model::{ClusterDiscovery, LoadAssignment};
use crate::slots::{Key, Progress, Slot, Store};
use crate::upstream::cluster::{Applied, Cluster};
use crate::upstream::dns;
use crate::upstream::health::{self, ActiveHealth};
use crate::upstream::merge::Merging;
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A task that ends when this is dropped; `None` for clusters that need none.
#[derive(Default)]
pub(super) struct Task {
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

pub(super) fn spawn(task: impl Future<Output = ()> + 'static, follows: Option<Arc<Slot<LoadAssignment>>>) -> Task {
    Task { running: Some(tokio::task::spawn_local(task).abort_handle()), _follows: follows }
}

/// Where a cluster's endpoints come from.
pub(super) enum Source {
    Fixed,
    Eds(Arc<Slot<LoadAssignment>>),
    Dns,
}

impl Source {
    pub(super) fn of(cluster: &Cluster, assignments: &Store<LoadAssignment>) -> Source {
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
pub(super) async fn warm_checked(
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
pub(super) enum Awaited {
    Fixed,
    Eds(Weak<Slot<LoadAssignment>>),
    Dns,
}

impl Source {
    pub(super) fn held(self) -> (Awaited, Option<Arc<Slot<LoadAssignment>>>) {
        match self {
            Source::Fixed => (Awaited::Fixed, None),
            Source::Eds(slot) => (Awaited::Eds(Arc::downgrade(&slot)), Some(slot)),
            Source::Dns => (Awaited::Dns, None),
        }
    }
}

/// Waits for everything a cluster needs, publishes it, and keeps its endpoints up to date from then on.
pub(super) async fn warm(manager: Weak<ClusterManager>, cluster: Arc<Cluster>, source: Awaited) {
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
    pub(in crate::upstream) fn resolved(&self, cluster: &Arc<Cluster>, assignment: &LoadAssignment, first: bool) {
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
pub(super) struct Following {
    pub(super) cluster: Arc<Cluster>,
    pub(super) slot: Weak<Slot<LoadAssignment>>,
    pub(super) changes: watch::Receiver<Progress>,
    pub(super) applied: Arc<LoadAssignment>,
}

impl Following {
    /// Applies every later assignment; those that change no member wait for the end of the cluster's merge window.
    pub(super) async fn run(mut self, manager: Weak<ClusterManager>) {
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
