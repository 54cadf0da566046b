//! What the admin pages show, as plain data, and where they get it from.

use crate::config::model::Address;
use crate::stats::Registry;
use crate::tls::CertificateView;
use bytes::Bytes;
use serde_json::Value;
use std::time::Duration;

/// The server, as the admin interface sees it. Called on the control thread only; nothing here may block.
pub trait AdminSource {
    /// `LIVE`, `DRAINING`, `PRE_INITIALIZING` or `INITIALIZING`.
    fn state(&self) -> &'static str;

    fn server_info(&self) -> ServerInfo;

    fn registry(&self) -> &Registry;

    /// Brings gauges up to date that are only computed when someone looks (uptime, memory). Called before stats pages.
    fn refresh_stats(&self) {}

    fn clusters(&self) -> Vec<ClusterView>;

    fn listeners(&self) -> Vec<ListenerView>;

    /// `envoy.admin.v3.ConfigDump` as protobuf's JSON.
    ///
    /// # Errors
    /// What the query asked for does not exist or cannot be read.
    fn config_dump(&self, query: &ConfigDumpQuery) -> Result<Pieces, Refusal>;

    /// Every resource and what became of it: lines of text, or JSON.
    ///
    /// # Errors
    /// The query cannot be read.
    fn ledger(&self, query: &LedgerQuery) -> Result<String, Refusal>;

    /// `envoy.service.status.v3.ClientStatusResponse` to a `ClientStatusRequest`, both on the wire: its length and its
    /// pieces.
    ///
    /// # Errors
    /// The request cannot be read.
    fn client_status(&self, request: &[u8]) -> Result<(usize, Pieces), Refusal>;

    /// The same, both as protobuf's JSON.
    ///
    /// # Errors
    /// The request cannot be read.
    fn client_status_json(&self, request: &str) -> Result<Pieces, Refusal>;

    /// `envoy.admin.v3.UnreadyTargetsDumps` as protobuf's JSON; an empty object when nothing waits.
    fn init_dump(&self, mask: Option<&str>) -> Value;

    fn certificates(&self) -> Vec<CertificateView>;

    fn set_health_failed(&self, failed: bool);

    fn drain_listeners(&self, options: DrainOptions);

    /// Ends the process; the reply is sent before.
    fn quit(&self);

    /// Every logger and its level, in the order to show.
    fn log_levels(&self) -> Vec<(&'static str, &'static str)>;

    /// Changes levels: of one logger, or of all when it is `None`.
    ///
    /// # Errors
    /// An unknown logger; nothing was changed then.
    fn set_log_levels(&self, changes: &[(Option<&str>, &str)]) -> Result<(), String>;

    fn reopen_logs(&self);

    fn memory(&self) -> MemoryView;

    fn runtime(&self) -> RuntimeView;

    /// Overrides runtime values; an empty value removes the override.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), Refusal>;

    /// Version of the shared state of hot restarts, `disabled` without them.
    fn hot_restart_version(&self) -> String {
        "disabled".into()
    }
}

/// A page that is made as it is read, in pieces of some 10 KiB.
pub type Pieces = Box<dyn Iterator<Item = Bytes>>;

/// Why a request is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status, 400 or above.
    pub status: u16,
    pub message: String,
}

/// `envoy.admin.v3.ServerInfo`.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// `<revision>/<version>/<state of the tree>/<build>/<TLS library>`.
    pub version: String,
    pub uptime_current_epoch: Duration,
    pub uptime_all_epochs: Duration,
    /// `envoy.admin.v3.CommandLineOptions` as protobuf's JSON, defaults included.
    pub command_line_options: Value,
    /// `envoy.config.core.v3.Node` as protobuf's JSON.
    pub node: Value,
}

/// What `/config_dump` was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigDumpQuery {
    /// One repeated field, e.g. `dynamic_active_clusters`.
    pub resource: Option<String>,
    /// A field mask.
    pub mask: Option<String>,
    /// Only resources whose names this matches.
    pub name_regex: Option<String>,
    pub include_eds: bool,
}

/// What `/ledger` was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerQuery {
    /// `cds`, `lds`, ...
    pub api: Option<String>,
    /// `running`, `does_not_exist`, ...
    pub state: Option<String>,
    /// Only resources whose whole name matches.
    pub name_regex: Option<String>,
    pub json: bool,
}

/// What `/drain_listeners` was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainOptions {
    /// Close listeners only after the drain time.
    pub graceful: bool,
    /// Drain connections but never close listeners.
    pub skip_exit: bool,
    pub inbound_only: bool,
}

/// One cluster on `/clusters`.
#[derive(Debug, Clone)]
pub struct ClusterView {
    pub name: String,
    /// Name in stats.
    pub observability_name: String,
    pub added_via_api: bool,
    /// Empty unless it is an EDS cluster with a service name of its own.
    pub eds_service_name: String,
    pub default_priority: Thresholds,
    pub high_priority: Thresholds,
    /// Present when the cluster has outlier detection.
    pub outlier: Option<OutlierView>,
    pub hosts: Vec<HostView>,
}

/// Limits of the circuit breakers of one priority.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

/// Success rates in percent; -1 when there are too few requests to tell.
#[derive(Debug, Clone, Copy)]
pub struct OutlierView {
    pub success_rate_average: f64,
    pub success_rate_ejection_threshold: f64,
    pub local_origin_success_rate_average: f64,
    pub local_origin_success_rate_ejection_threshold: f64,
}

/// One endpoint on `/clusters`.
#[derive(Debug, Clone)]
pub struct HostView {
    pub address: Address,
    /// Empty unless it has one.
    pub hostname: String,
    pub cx_active: u64,
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub rq_active: u64,
    pub rq_error: u64,
    pub rq_pending_active: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
    pub health: HealthView,
    pub weight: u32,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
    pub canary: bool,
    pub priority: u32,
    /// In percent; -1 when there are too few requests to tell.
    pub success_rate: f64,
    pub local_origin_success_rate: f64,
}

/// Why an endpoint is or is not healthy.
#[derive(Debug, Clone, Copy, Default)]
pub struct HealthView {
    pub failed_active_check: bool,
    pub failed_outlier_check: bool,
    pub degraded_active_check: bool,
    pub pending_dynamic_removal: bool,
    pub pending_active_check: bool,
    pub excluded_via_immediate_check_fail: bool,
    pub active_check_timeout: bool,
    pub eds: EdsHealth,
}

/// What the control plane says of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EdsHealth {
    /// Also what EDS calls `UNKNOWN`.
    #[default]
    Healthy,
    Unhealthy,
    Degraded,
    Draining,
}

/// One listener on `/listeners`.
#[derive(Debug, Clone)]
pub struct ListenerView {
    pub name: String,
    /// The bound address: the real port where the configuration said 0.
    pub address: Address,
    pub additional_addresses: Vec<Address>,
}

/// `envoy.admin.v3.Memory`, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryView {
    pub allocated: u64,
    pub heap_size: u64,
    pub pageheap_unmapped: u64,
    pub pageheap_free: u64,
    pub total_thread_cache: u64,
    pub total_physical_bytes: u64,
}

/// Runtime values by layer.
#[derive(Debug, Clone, Default)]
pub struct RuntimeView {
    pub layers: Vec<String>,
    /// Key, its value in each layer (empty where it has none), and the one that holds.
    pub entries: Vec<(String, Vec<String>, String)>,
}
