//! Listeners: sockets, accepting, original destination, listener filters and the choice of a filter chain.
//!
//! The control thread owns [`ListenerManager`]; each worker accepts on sockets of its own and keeps a table of all
//! listeners by address, so that a redirected connection finds the listener it was meant for.

mod bind;
mod chain_match;
mod compiled;
mod connection;
mod filters;
mod manager;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

pub use compiled::check;
pub use manager::ListenerManager;
pub use worker::{Order, run_worker};

use crate::config::model::Address;
use std::net::SocketAddr;
use std::sync::Arc;

/// One listener, for /listeners and the ledger.
#[derive(Debug, Clone)]
pub struct ListenerView {
    pub name: Arc<str>,
    /// All addresses in the order of the configuration, with the real port where one is bound.
    pub shown: Vec<Address>,
    /// Addresses bound, with the real port where 0 was configured; empty for those without sockets.
    pub addresses: Vec<SocketAddr>,
    pub additional: Vec<SocketAddr>,
}
