//! What the admin pages show, as plain data, and where they get it from.

use crate::config::model::Address;
use crate::stats::Registry;
use crate::tls::CertificateView;
use crate::upstream::ClusterStatus;
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

    /// By name; each is looked at when its turn comes.
    fn clusters(&self) -> Box<dyn Iterator<Item = ClusterStatus>>;

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

    /// `envoy.service.status.v3.ClientStatusResponse` to a `ClientStatusRequest`, both on the wire.
    ///
    /// # Errors
    /// The request cannot be read.
    fn client_status(&self, request: &[u8]) -> Result<MessagePieces, Refusal>;

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

/// A message whose length is known only once it is made.
pub struct MessagePieces {
    pub pieces: Pieces,
    /// What goes before them, by their length.
    pub prefix: fn(usize) -> Vec<u8>,
}

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
