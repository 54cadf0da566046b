//! The life of the process: start order, workers, readiness, drain, shutdown.

mod admin_source;
mod load;
pub mod logging;
mod memory;
mod state;
mod worker;

pub use memory::Memory;
pub use state::{Lifecycle, State};

use crate::access_log::{AccessLogs, LogFiles};
use crate::admin::Admin;
use crate::cli::{Mode, Options};
use crate::config::model::AdminConfig;
use crate::discovery::{Discovery, Parts, StaticConfig};
use crate::drain::Drain;
use crate::listener::ListenerManager;
use crate::network::NetworkChain;
use crate::services::Services;
use crate::slots::{Kind, Store};
use crate::stats::Registry;
use crate::tls::{DownstreamContext, Secrets};
use crate::upstream::ClusterManager;
use bytes::Bytes;
use load::Loaded;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use xds_client::TypeUrl;

/// Runs the process to its end.
pub fn run(options: Options) -> ExitCode {
    match try_run(options) {
        Ok(code) => code,
        Err(line) => {
            eprintln!("outrigger: {line}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: Options) -> Result<ExitCode, String> {
    if options.version {
        println!("\n{}  version: {}\n", program(), crate::cli::version());
        return Ok(ExitCode::SUCCESS);
    }
    if options.hot_restart_version {
        println!("disabled");
        return Ok(ExitCode::SUCCESS);
    }
    options.check()?;
    logging::start(&options.log_format, options.log_format_escaped, options.log_path.as_deref())?;
    logging::set_levels(&[(None, &options.log_level)]).map_err(|e| format!("--log-level: {e}"))?;
    logging::parse_component_levels(&options.component_log_level)
        .and_then(|changes| logging::set_levels(&changes))
        .map_err(|e| format!("--component-log-level: {e}"))?;
    let loaded = load::load(&options)?;
    if let Some(format) = &loaded.model.log_format {
        logging::set_format(format);
    }
    for field in &loaded.unknown_fields {
        tracing::warn!("unknown field ignored: {field}");
    }
    if !options.skip_deprecated_logs {
        for (path, name) in &loaded.deprecated_fields {
            tracing::warn!("{path}: deprecated field {name}");
        }
    }
    for (path, meaning) in &loaded.warnings {
        tracing::warn!("{path}: {meaning}");
    }
    let runtime = worker::local_runtime().map_err(|e| format!("cannot start the control thread: {e}"))?;
    runtime.block_on(async {
        match options.mode {
            Mode::Validate => validate(&options, loaded),
            Mode::Serve | Mode::InitOnly => serve(options, loaded).await,
        }
    })
}

fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "outrigger".into())
}

/// What all rooms are built with, and the receiving end of their wants.
struct Foundation {
    services: Arc<Services>,
    assignments: Arc<Store<crate::config::model::LoadAssignment>>,
    wants: mpsc::UnboundedReceiver<crate::slots::Want>,
}

fn foundation(options: &Options, loaded: &Loaded) -> Foundation {
    let (wants_tx, wants) = mpsc::unbounded_channel();
    let registry = Registry::new(loaded.model.stats.clone());
    let secrets = Secrets::new(Store::new(Kind::Secret, wants_tx.clone()));
    let assignments = Arc::new(Store::new(Kind::Assignment, wants_tx.clone()));
    let clusters =
        ClusterManager::new(registry.clone(), secrets.clone(), assignments.clone(), loaded.model.local_cluster.clone());
    let services = Arc::new(Services {
        registry,
        secrets,
        clusters,
        routes: Arc::new(Store::new(Kind::Route, wants_tx)),
        log_files: LogFiles::new(Duration::from_millis(options.file_flush_interval_msec)),
        drain: Drain::root(options.strategy()),
        node_id: loaded.model.node.id.clone(),
        node_cluster: loaded.model.node.cluster.clone(),
    });
    Foundation { services, assignments, wants }
}

/// `--mode validate`: builds everything that serving would build, and binds nothing.
fn validate(options: &Options, loaded: Loaded) -> Result<ExitCode, String> {
    let Foundation { services, .. } = foundation(options, &loaded);
    let name = options.config_path.as_ref().map_or("--config-yaml".into(), |p| p.display().to_string());
    for cluster in &loaded.model.clusters {
        services
            .clusters
            .add_or_update(cluster.clone(), false)
            .map_err(|e| format!("{name}: cluster '{}': {e}", cluster.name))?;
    }
    for listener in &loaded.model.listeners {
        for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
            let in_listener = |e: crate::config::ConfigError| format!("{name}: listener '{}': {e}", listener.name);
            NetworkChain::compile(&chain.filters, "listener.", &services).map_err(in_listener)?;
            if let crate::config::model::DownstreamTransport::Tls(tls) = &chain.transport {
                DownstreamContext::new(tls.clone(), &services.secrets, &services.registry.scope("listener."))
                    .map_err(in_listener)?;
            }
        }
    }
    println!("configuration '{name}' OK");
    Ok(ExitCode::SUCCESS)
}

async fn serve(options: Options, loaded: Loaded) -> Result<ExitCode, String> {
    let workers = options.workers();
    tracing::info!("initializing {} with {workers} workers", crate::cli::version());
    let Foundation { services, assignments, wants } = foundation(&options, &loaded);
    // only the first server of a process (tests have several) gets what libraries count
    let _ = metrics::set_global_recorder(crate::stats::Facade::new(services.registry.clone()));
    services.registry.adopt_thread();
    let lifecycle = Lifecycle::new(&services.registry, workers, services.drain.clone());
    lifecycle.count_unknown_static_fields(loaded.unknown_fields.len());
    let spawned = worker::spawn(workers, &services).map_err(|e| format!("cannot start worker threads: {e}"))?;
    let listeners = ListenerManager::new(services.clone(), spawned.orders, options.drain_time());
    let bootstrap = Arc::new(loaded.model);
    let (quit_tx, mut quit) = mpsc::unbounded_channel();

    for cluster in &bootstrap.clusters {
        services
            .clusters
            .add_or_update(cluster.clone(), false)
            .map_err(|e| format!("static_resources: cluster '{}': {e}", cluster.name))?;
    }
    let discovery = Discovery::start(Parts {
        services: services.clone(),
        assignments,
        listeners: listeners.clone(),
        wants,
        bootstrap: bootstrap.clone(),
        reject_unknown_fields: options.reject_unknown_dynamic_fields,
    });
    record_static(&discovery, &loaded.bytes, &loaded.warnings);
    if let Some(admin) = &bootstrap.admin {
        let source = admin_source::Source {
            options: options.clone(),
            bootstrap: bootstrap.clone(),
            services: services.clone(),
            listeners: listeners.clone(),
            discovery: discovery.clone(),
            lifecycle: lifecycle.clone(),
            static_config: StaticConfig { bytes: loaded.bytes, loaded: loaded.at },
            quit: quit_tx,
        };
        start_admin(admin, source, options.admin_address_path.as_deref()).await?;
    }
    for listener in &bootstrap.listeners {
        listeners
            .add_or_update(listener.clone(), false)
            .map_err(|e| format!("static_resources: listener '{}': {e}", listener.name))?;
    }
    let started = tokio::task::spawn_local(start_up(
        services.clone(),
        discovery.clone(),
        listeners.clone(),
        lifecycle.clone(),
        bootstrap.lds.is_some(),
    ));
    if options.mode == Mode::InitOnly {
        // a task that panicked has aborted the process
        let _ = started.await;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::task::spawn_local(flush_stats(
        services.clone(),
        lifecycle.clone(),
        discovery.clone(),
        bootstrap.stats_flush_interval,
    ));
    tokio::task::spawn_local(flush_logs(
        services.clone(),
        Duration::from_millis(options.file_flush_interval_msec.max(1)),
    ));
    let why = wait_for_end(&services, &mut quit).await?;
    tracing::info!("{why}: exiting");
    services.log_files.close();
    // the threads end with the process: connections that should have ended gently were drained before
    std::process::exit(0)
}

/// Serves the admin interface, and says where.
async fn start_admin(
    config: &AdminConfig,
    source: admin_source::Source,
    address_path: Option<&Path>,
) -> Result<(), String> {
    let services = source.services.clone();
    let logs =
        AccessLogs::compile(&config.access_log, &services.log_files).map_err(|e| format!("admin.access_log: {e}"))?;
    let admin = Admin::bind(&config.address, &services.registry, logs).await.map_err(|e| {
        format!("admin.address {}: {}; is another process listening there?", config.address, load::plain(&e))
    })?;
    if let Some(path) = address_path {
        std::fs::write(path, admin.address().to_string())
            .map_err(|e| format!("--admin-address-path {}: {}", path.display(), load::plain(&e)))?;
    }
    tracing::info!("admin address: {}", admin.address());
    tokio::task::spawn_local(admin.serve(Rc::new(source)));
    Ok(())
}

/// The order in which a proxy becomes ready: clusters, then listeners that lead to them, then connections.
async fn start_up(
    services: Arc<Services>,
    discovery: Rc<Discovery>,
    listeners: Rc<ListenerManager>,
    lifecycle: Rc<Lifecycle>,
    has_lds: bool,
) {
    discovery.clusters_answered().await;
    services.clusters.all_warm().await;
    tracing::info!("all clusters are warm");
    lifecycle.enter(State::Initializing);
    discovery.start_listeners();
    if has_lds {
        discovery.listeners_answered().await;
    }
    listeners.all_warm().await;
    listeners.start_workers();
    lifecycle.enter(State::Live);
    tracing::info!("all listeners are warm: serving");
    memory::forget_start_up();
}

fn record_static(discovery: &Discovery, bytes: &Bytes, warnings: &[(String, String)]) {
    let mut ledger = discovery.ledger.borrow_mut();
    for resource in crate::config::static_resources(bytes) {
        let type_url = TypeUrl::from_static(resource.type_url);
        ledger.record_static(&type_url, &resource.name, resource.bytes);
        let of_it = warnings.iter().filter_map(|(path, meaning)| {
            let below = path.strip_prefix(&resource.path)?.strip_prefix('.')?;
            Some(format!("{below}: {meaning}"))
        });
        let of_it: Vec<String> = of_it.collect();
        if !of_it.is_empty() {
            ledger.warned(&type_url, &resource.name, &of_it);
        }
    }
}

async fn flush_stats(services: Arc<Services>, lifecycle: Rc<Lifecycle>, discovery: Rc<Discovery>, interval: Duration) {
    let mut tick = tokio::time::interval(interval);
    loop {
        tick.tick().await;
        lifecycle.refresh(&services.secrets);
        discovery.refresh_stats();
        services.registry.flush();
    }
}

async fn flush_logs(services: Arc<Services>, interval: Duration) {
    let mut tick = tokio::time::interval(interval);
    loop {
        tick.tick().await;
        services.log_files.flush();
    }
}

/// Waits for a signal or `/quitquitquit`; says which.
async fn wait_for_end(services: &Services, quit: &mut mpsc::UnboundedReceiver<()>) -> Result<&'static str, String> {
    let listen = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
    let mut term = listen(SignalKind::terminate())?;
    let mut int = listen(SignalKind::interrupt())?;
    let mut hup = listen(SignalKind::hangup())?;
    let mut usr1 = listen(SignalKind::user_defined1())?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok("caught SIGTERM"),
            _ = int.recv() => return Ok("caught SIGINT"),
            // without an admin interface nobody holds the sender
            Some(()) = quit.recv() => {
                // the reply to whoever asked is written after this signal
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Ok("asked to quit by the admin interface");
            }
            _ = hup.recv() => tracing::warn!("caught SIGHUP: nothing to reload, configuration comes by xDS"),
            _ = usr1.recv() => {
                tracing::info!("caught SIGUSR1: reopening access logs");
                services.log_files.reopen();
            }
        }
    }
}
