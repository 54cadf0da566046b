//! Stable places of clusters.
//!
//! A route resolves its cluster's name once, into a slot; what the slot holds changes with configuration. Ids are dense,
//! so that workers keep per-cluster state in a vector. Knows nothing of how clusters are made.

use super::cluster::Cluster;
use arc_swap::{ArcSwapOption, Guard};
use std::sync::{Arc, Mutex, PoisonError};

/// The stable place of a cluster: routes hold this, not a name.
pub struct ClusterSlot {
    pub name: Arc<str>,
    /// Dense; index of per-worker state. Given to another slot once this one is dropped.
    pub id: u32,
    current: ArcSwapOption<Cluster>,
    ids: Arc<SlotIds>,
}

impl ClusterSlot {
    pub(super) fn new(name: Arc<str>, ids: &Arc<SlotIds>) -> Arc<ClusterSlot> {
        Arc::new(ClusterSlot { name, id: ids.take(), current: ArcSwapOption::empty(), ids: Arc::clone(ids) })
    }

    /// The live cluster; `None`: no such cluster (yet, or any more).
    pub fn load(&self) -> Option<Arc<Cluster>> {
        self.current.load_full()
    }

    /// As `load`, without touching the reference count.
    pub fn borrow(&self) -> Guard<Option<Arc<Cluster>>> {
        self.current.load()
    }

    /// Publishes a cluster, or none; what was there before is retired, so that workers drain its connections.
    pub(super) fn publish(&self, cluster: Option<Arc<Cluster>>) {
        if let Some(old) = self.current.swap(cluster) {
            old.retire();
        }
    }
}

impl Drop for ClusterSlot {
    /// What it holds was removed and was left for those who still named it.
    fn drop(&mut self) {
        self.publish(None);
        self.ids.give_back(self.id);
    }
}

/// The ids of slots: the smallest free one is taken, so that they stay dense under churn.
#[derive(Default)]
pub(super) struct SlotIds(Mutex<(u32, std::collections::BTreeSet<u32>)>);

impl SlotIds {
    fn take(&self) -> u32 {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.1.pop_first().unwrap_or_else(|| {
            ids.0 += 1;
            ids.0 - 1
        })
    }

    fn give_back(&self, id: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_dense() {
        let ids = Arc::default();
        let a = ClusterSlot::new("a".into(), &ids);
        let b = ClusterSlot::new("b".into(), &ids);
        assert_eq!((a.id, b.id), (0, 1));
        drop(a);
        assert_eq!(ClusterSlot::new("c".into(), &ids).id, 0);
        assert!(b.load().is_none());
    }
}
