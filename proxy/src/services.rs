//! What the rooms of the data path are built with: one set per process, shared by all threads.

use crate::access_log::LogFiles;
use crate::config::model::ExtensionConfig;
use crate::drain::Drain;
use crate::http::RouteTable;
use crate::slots::Store;
use crate::stats::Registry;
use crate::tls::Secrets;
use crate::upstream::ClusterManager;
use std::sync::Arc;

/// Shared services. Cheap to clone through its `Arc`.
pub struct Services {
    pub registry: Registry,
    pub secrets: Arc<Secrets>,
    pub clusters: Arc<ClusterManager>,
    /// Route tables that come by RDS.
    pub routes: Arc<Store<RouteTable>>,
    /// Filters' configurations that come by ECDS.
    pub extensions: Arc<Store<ExtensionConfig>>,
    pub log_files: Arc<LogFiles>,
    /// The server's drain: parent of every listener's.
    pub drain: Drain,
    /// Our own node's identity for headers and logs.
    pub node_id: String,
    pub node_cluster: String,
}
