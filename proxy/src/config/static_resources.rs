//! The resources that a bootstrap carries itself, taken apart for the ledger.

use super::pb::bootstrap::Bootstrap;
use prost::Message;

/// Type URL, name and message of every static cluster, listener and secret.
pub fn static_resources(bootstrap: &[u8]) -> Vec<(&'static str, String, Vec<u8>)> {
    let Some(resources) = Bootstrap::decode(bootstrap).ok().and_then(|b| b.static_resources) else { return Vec::new() };
    let clusters = resources.clusters.into_iter().map(|c| (super::CLUSTER, c.name.clone(), c.encode_to_vec()));
    let listeners = resources.listeners.into_iter().map(|l| (super::LISTENER, l.name.clone(), l.encode_to_vec()));
    let secrets = resources.secrets.into_iter().map(|s| (super::SECRET, s.name.clone(), s.encode_to_vec()));
    clusters.chain(listeners).chain(secrets).collect()
}
