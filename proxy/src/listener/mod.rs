//! Listeners: sockets, accepting, original destination, listener filters and the choice of a filter chain.
//!
//! The control thread owns [`ListenerManager`]; each worker accepts on sockets of its own and keeps a table of all
//! listeners by address, so that a redirected connection finds the listener it was meant for.

use crate::config::ConfigError;
use crate::config::model::ListenerConfig;
use crate::network::Worker;
use crate::services::Services;
use crate::upstream::Update;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Orders from the control thread to a worker.
pub struct Order;

/// All listeners, on the control thread.
pub struct ListenerManager {}

/// One listener, for /listeners and the ledger.
#[derive(Debug, Clone)]
pub struct ListenerView {
    pub name: Arc<str>,
    /// Addresses bound, with the real port where 0 was configured; empty for those without sockets.
    pub addresses: Vec<SocketAddr>,
    pub additional: Vec<SocketAddr>,
}

impl ListenerManager {
    /// One sender per worker; the receiving ends are given to [`run_worker`].
    pub fn new(
        _services: Arc<Services>,
        _workers: Vec<tokio::sync::mpsc::UnboundedSender<Order>>,
        _drain_time: Duration,
    ) -> Rc<ListenerManager> {
        todo!()
    }

    /// Takes a configuration: binds its sockets, warms it (routes, secrets) by itself on the calling thread's
    /// `LocalRuntime`, then has the workers accept. When only filter chains differ, sockets and equal chains are kept and
    /// only changed chains drain; otherwise the old listener drains as a whole once the new one is live.
    ///
    /// # Errors
    /// What cannot be built or bound; the running listener stays.
    pub fn add_or_update(
        self: &Rc<Self>,
        _config: Arc<ListenerConfig>,
        _added_via_api: bool,
    ) -> Result<Update, ConfigError> {
        todo!()
    }

    /// Stops accepting and drains.
    pub fn remove(self: &Rc<Self>, _name: &str) -> bool {
        todo!()
    }

    /// Until this is called warm listeners do not accept: at start they wait for clusters and for each other.
    pub fn start_workers(self: &Rc<Self>) {
        todo!()
    }

    /// Names of listeners that wait for something.
    pub fn warming(&self) -> Vec<Arc<str>> {
        todo!()
    }

    /// Returns once no listener is warming.
    pub async fn all_warm(&self) {
        todo!()
    }

    /// `/drain_listeners`: begins the drain of all (or only inbound) listeners; sockets close at once, or with `graceful`
    /// after the drain time; never with `skip_exit`.
    pub fn drain(self: &Rc<Self>, _inbound_only: bool, _graceful: bool, _skip_exit: bool) {
        todo!()
    }

    pub fn views(&self) -> Vec<ListenerView> {
        todo!()
    }
}

/// A worker's accept loops: runs until the sender of orders is dropped, then until its connections have ended or `drain`
/// cut them.
pub async fn run_worker(_worker: Rc<Worker>, _orders: tokio::sync::mpsc::UnboundedReceiver<Order>) {
    todo!()
}
