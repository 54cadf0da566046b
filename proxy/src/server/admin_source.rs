//! What the admin interface shows and changes, gathered from all rooms.

use super::logging;
use super::memory::Memory;
use super::state::Lifecycle;
use crate::admin::{
    AdminSource, ConfigDumpQuery, DrainOptions, LedgerQuery, ListenerView, MemoryView, MessagePieces, Pieces, Refusal,
    RuntimeView, ServerInfo,
};
use crate::cli::Options;
use crate::config::model::Bootstrap;
use crate::discovery::{ClientStatus, Discovery, DumpParts, StaticConfig};
use crate::listener::ListenerManager;
use crate::runtime::Snapshot;
use crate::services::Services;
use crate::stats::Registry;
use crate::tls::CertificateView;
use crate::upstream::ClusterStatus;
use serde_json::{Value, json};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::mpsc;
use xds_protos::{Descriptors, Format, ParseOptions, Style};

/// Everything the admin interface reaches.
pub struct Source {
    pub options: Options,
    pub bootstrap: Arc<Bootstrap>,
    pub services: Arc<Services>,
    pub listeners: Rc<ListenerManager>,
    pub discovery: Rc<Discovery>,
    pub lifecycle: Rc<Lifecycle>,
    pub static_config: StaticConfig,
    pub quit: mpsc::UnboundedSender<()>,
}

impl Source {
    /// What this client is said to hold, to a `ClientStatusRequest` on the wire.
    fn clients(&self, request: &[u8]) -> Result<ClientStatus, Refusal> {
        let mut ledger = self.discovery.ledger.borrow_mut();
        ledger.settle();
        let status = ClientStatus::new(&ledger, &self.bootstrap.node.message, request);
        status.map_err(|message| Refusal { status: 400, message })
    }
}

impl AdminSource for Source {
    fn state(&self) -> &'static str {
        self.lifecycle.state().name()
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo {
            version: crate::cli::version(),
            uptime_current_epoch: self.lifecycle.uptime(),
            uptime_all_epochs: self.lifecycle.uptime(),
            command_line_options: self.options.to_json(),
            node: Descriptors::shared().print(&self.bootstrap.node.message, Style { redact: false, defaults: true }),
        }
    }

    fn registry(&self) -> &Registry {
        &self.services.registry
    }

    fn refresh_stats(&self) {
        self.lifecycle.refresh(&self.services.secrets);
        self.discovery.refresh_stats();
    }

    fn clusters(&self) -> Box<dyn Iterator<Item = ClusterStatus>> {
        Box::new(self.services.clusters.statuses())
    }

    fn listeners(&self) -> Vec<ListenerView> {
        let views = self.listeners.views().into_iter();
        views
            .filter_map(|view| {
                let mut addresses = view.shown.into_iter();
                let address = addresses.next()?;
                Some(ListenerView { name: view.name.to_string(), address, additional_addresses: addresses.collect() })
            })
            .collect()
    }

    fn config_dump(&self, query: &ConfigDumpQuery) -> Result<Pieces, Refusal> {
        let mut ledger = self.discovery.ledger.borrow_mut();
        ledger.settle();
        let clusters = if query.include_eds { self.services.clusters.clusters() } else { Vec::new() };
        let node = &self.bootstrap.node.message;
        let dump = DumpParts::new(&ledger, &self.static_config, node, &clusters, query).and_then(|p| p.dump(query));
        match dump {
            Ok(dump) => Ok(Box::new(dump)),
            Err(error) => Err(Refusal { status: error.status, message: error.message }),
        }
    }

    fn ledger(&self, query: &LedgerQuery) -> Result<String, Refusal> {
        let mut ledger = self.discovery.ledger.borrow_mut();
        ledger.settle();
        ledger.page(query).map_err(|message| Refusal { status: 400, message })
    }

    fn client_status(&self, request: &[u8]) -> Result<MessagePieces, Refusal> {
        let (pieces, prefix) = self.clients(request)?.into_wire();
        Ok(MessagePieces { pieces: Box::new(pieces), prefix })
    }

    fn client_status_json(&self, request: &str) -> Result<Pieces, Refusal> {
        let text = if request.trim().is_empty() { "{}" } else { request };
        let parsed = Descriptors::shared().parse(ClientStatus::REQUEST, text, Format::Json, ParseOptions::default());
        let parsed = parsed.map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Refusal { status: 400, message: lines.join("\n") + "\n" }
        })?;
        Ok(Box::new(self.clients(&parsed.bytes)?.into_json()))
    }

    fn init_dump(&self, mask: Option<&str>) -> Value {
        let wanted = |part: &str| mask.is_none_or(|mask| mask.split(',').any(|m| m == part));
        let mut dumps = Vec::new();
        if wanted("listener") {
            let waiting = self.listeners.awaited().into_iter();
            dumps.extend(waiting.map(|(name, targets)| unready("Listener-local-init-manager", &name, &targets)));
        }
        if wanted("cluster") {
            let waiting = self.services.clusters.awaited().into_iter();
            dumps.extend(waiting.map(|(name, targets)| unready("Cluster", &name, &targets)));
        }
        if dumps.is_empty() { json!({}) } else { json!({ "unready_targets_dumps": dumps }) }
    }

    fn certificates(&self) -> Vec<CertificateView> {
        self.services.secrets.certificates()
    }

    fn set_health_failed(&self, failed: bool) {
        self.lifecycle.set_health_failed(failed);
    }

    fn drain_listeners(&self, options: DrainOptions) {
        self.listeners.drain(options.inbound_only, options.graceful, options.skip_exit);
    }

    fn quit(&self) {
        // the receiver lives as long as the server
        let _ = self.quit.send(());
    }

    fn log_levels(&self) -> Vec<(&'static str, &'static str)> {
        logging::levels().into_iter().collect()
    }

    fn set_log_levels(&self, changes: &[(Option<&str>, &str)]) -> Result<(), String> {
        logging::set_levels(changes)
    }

    fn reopen_logs(&self) {
        self.services.log_files.reopen();
    }

    fn memory(&self) -> MemoryView {
        Memory::now().map_or_else(MemoryView::default, |m| MemoryView {
            allocated: m.allocated,
            heap_size: m.heap,
            pageheap_unmapped: 0,
            pageheap_free: m.heap.saturating_sub(m.allocated),
            total_thread_cache: 0,
            total_physical_bytes: m.resident,
        })
    }

    fn runtime(&self) -> RuntimeView {
        let Snapshot { layers, entries } = self.bootstrap.runtime.snapshot();
        RuntimeView { layers, entries }
    }

    fn modify_runtime(&self, values: &[(String, String)]) -> Result<(), Refusal> {
        self.bootstrap.runtime.modify(values).map_err(|e| Refusal { status: 503, message: e.to_string() })
    }
}

/// In the words of Envoy: the init manager of `name`, and what it waits for.
fn unready(manager: &str, name: &str, targets: &[String]) -> Value {
    json!({ "name": format!("init manager {manager} {name}"), "target_names": targets })
}
