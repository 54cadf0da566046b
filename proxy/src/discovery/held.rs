//! Route tables that wait for the clusters they newly name.
//!
//! A control plane sends clusters before the routes to them; a cluster is there once its endpoints are. Until then, and
//! not for ever, the table that runs goes on: so no request meets a cluster that is not there yet.

use crate::http::RouteTable;
use crate::services::Services;
use crate::slots::{Key, Store};
use crate::upstream::ClusterSlot;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long a table waits for clusters that warm. Well below the time for which clusters that were removed are still
/// served, as the table that runs may name such.
const FOR_WARMING: Duration = Duration::from_secs(4);

/// How long a table waits for clusters that nobody has heard of: routes may overtake clusters on their way here, or name
/// what will never be.
const FOR_UNKNOWN: Duration = Duration::from_secs(1);

/// Tables on their way into their slots: at most one for each.
#[derive(Clone, Default)]
pub(super) struct HeldTables(Rc<RefCell<HashMap<Key, Held>>>);

/// A task that ends when this is dropped.
struct Held {
    since: Instant,
    task: AbortHandle,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HeldTables {
    /// Fills the slot with the table, at once or when the clusters are live that the one before does not name. A table
    /// that still waits for the same slot is wanted no more; its successor does not wait longer for that.
    pub fn fill(&self, key: &Key, table: Arc<RouteTable>, services: &Arc<Services>) {
        let since = self.0.borrow_mut().remove(key).map_or_else(Instant::now, |earlier| earlier.since);
        let running = services.routes.get(key).and_then(|slot| slot.load());
        let mut missing = missing(&table, running.as_deref());
        if running.is_none() {
            // nothing serves meanwhile, so only what is sure to come is worth the wait
            missing.retain(|slot| services.clusters.is_warming(&slot.name));
        }
        if missing.is_empty() {
            fill(&services.routes, key, &table);
            return;
        }
        let (held, key_of_task, services) = (self.clone(), key.clone(), services.clone());
        let task = tokio::task::spawn_local(async move {
            live(&mut missing, since, &services).await;
            fill(&services.routes, &key_of_task, &table);
            held.0.borrow_mut().remove(&key_of_task);
        });
        self.0.borrow_mut().insert(key.clone(), Held { since, task: task.abort_handle() });
    }

    /// Whether a table is on its way into this slot.
    pub fn holds(&self, key: &Key) -> bool {
        self.0.borrow().contains_key(key)
    }

    /// Nobody wants the slot any more; whoever wants it next must not come upon what was meant for its predecessor.
    pub fn forget(&self, key: &Key) {
        self.0.borrow_mut().remove(key);
    }
}

/// Connection managers that came while the table waited are asked, too.
fn fill(routes: &Store<RouteTable>, key: &Key, table: &Arc<RouteTable>) {
    if let Err(error) = routes.fill_agreed(std::slice::from_ref(key), table, &Arc::default()) {
        tracing::error!("route configuration {} cannot be used, the one before it stays: {error}", key.name);
    }
}

/// The clusters that are not live and that only the newer table names.
fn missing(table: &RouteTable, running: Option<&RouteTable>) -> Vec<Arc<ClusterSlot>> {
    let mut missing: Vec<_> = table.slots().filter(|slot| slot.borrow().is_none()).cloned().collect();
    if missing.is_empty() {
        return missing;
    }
    missing.sort_unstable_by_key(|slot| slot.id);
    missing.dedup_by_key(|slot| slot.id);
    if let Some(running) = running {
        // requests to these fail as it is
        let mut known: Vec<u32> = running.slots().map(|slot| slot.id).collect();
        known.sort_unstable();
        missing.retain(|slot| known.binary_search(&slot.id).is_err());
    }
    missing
}

/// Returns once all of these are live, or the wait is over.
async fn live(missing: &mut Vec<Arc<ClusterSlot>>, since: Instant, services: &Services) {
    let mut changes = services.clusters.watch_published();
    loop {
        missing.retain(|slot| slot.borrow().is_none());
        if missing.is_empty() {
            return;
        }
        let warms = missing.iter().any(|slot| services.clusters.is_warming(&slot.name));
        let until = since + if warms { FOR_WARMING } else { FOR_UNKNOWN };
        if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            let names: Vec<&str> = missing.iter().take(10).map(|slot| &*slot.name).collect();
            tracing::debug!("routes go live without the clusters {}: they are not there in time", names.join(", "));
            return;
        }
    }
}
