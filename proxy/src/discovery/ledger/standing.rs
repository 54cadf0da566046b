//! What the managers know of what the ledger lists.

use super::{Api, Ledger};
use crate::listener::ListenerManager;
use crate::upstream::ClusterManager;
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// What only the managers know.
pub trait Standing {
    /// Whether a version of this resource waits for something.
    fn is_warming(&self, api: Api, name: &str) -> bool;

    /// Whether a version that was removed or replaced still has connections to let go.
    fn is_draining(&self, api: Api, name: &str) -> bool;
}

/// Both managers.
pub struct Managers {
    pub clusters: Arc<ClusterManager>,
    pub listeners: Rc<ListenerManager>,
}

impl Standing for Managers {
    fn is_warming(&self, api: Api, name: &str) -> bool {
        match api {
            Api::Cds => self.clusters.is_warming(name),
            Api::Lds => self.listeners.is_warming(name),
            _ => false,
        }
    }

    fn is_draining(&self, api: Api, name: &str) -> bool {
        api == Api::Lds && self.listeners.is_draining(name)
    }
}

/// How long changes are gathered before the ledger looks: many clusters become warm at once.
const GATHER: Duration = Duration::from_millis(20);

/// Has the ledger follow what becomes warm, so that its times are true. Ends with the ledger.
pub async fn follow(ledger: Weak<RefCell<Ledger>>, managers: Rc<Managers>) {
    let mut clusters = managers.clusters.watch_warming();
    let mut listeners = managers.listeners.watch_warming();
    loop {
        let changed = tokio::select! {
            changed = clusters.changed() => changed,
            changed = listeners.changed() => changed,
        };
        tokio::time::sleep(GATHER).await;
        let (Ok(()), Some(ledger)) = (changed, ledger.upgrade()) else { return };
        ledger.borrow_mut().settle();
    }
}
