//! The life of the process: start order, workers, readiness, drain, shutdown.

mod admin_source;
mod load;
pub mod logging;
mod memory;
mod state;
mod unheard;
mod validate;
mod worker;

pub use memory::Memory;
pub use state::{Lifecycle, State};

use crate::access_log::{AccessLogs, LogFiles};
use crate::admin::Admin;
use crate::cli::{Mode, Options};
use crate::config::model::{AdminConfig, Bootstrap};
use crate::discovery::{Discovery, Parts, StaticConfig};
use crate::drain::Drain;
use crate::listener::ListenerManager;
use crate::runtime::Runtime;
use crate::services::Services;
use crate::slots::{Kind, Store};
use crate::stats::Registry;
use crate::tls::Secrets;
use crate::upstream::ClusterManager;
use bytes::Bytes;
use load::Loaded;
use std::collections::{HashMap, HashSet};
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
        Err(lines) => {
            for line in lines.lines() {
                eprintln!("outrigger: {line}");
            }
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
    let runtime = worker::local_runtime().map_err(|e| format!("cannot start the control thread: {e}"))?;
    if options.mode == Mode::Validate {
        return Ok(runtime.block_on(async { validate::run(&options) }));
    }
    let loaded = load::load(&options)?;
    if let Some(format) = &loaded.model.log_format {
        logging::set_format(format);
    }
    log_notices(&loaded.notices, &options);
    runtime.block_on(serve(options, loaded))
}

/// Warnings that are logged one by one; there may be as many as the configuration has fields.
const LOGGED: usize = 200;

/// One line for each thing that a person should know of a configuration that was not refused for it.
fn log_notices(notices: &load::Notices, options: &Options) {
    for field in notices.unknown_fields.iter().take(LOGGED) {
        tracing::warn!("Unknown field: {field}");
    }
    if !options.skip_deprecated_logs {
        for field in notices.deprecated_fields.iter().take(LOGGED) {
            tracing::warn!("Deprecated field: {field} ({})", field.path);
        }
    }
    for warning in notices.warnings.iter().take(LOGGED) {
        tracing::warn!("{warning}");
    }
    let more = notices.warnings.len().saturating_sub(LOGGED);
    if more > 0 {
        tracing::warn!("{more} more fields have no effect; --mode validate --format json lists them all");
    }
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

fn foundation(options: &Options, bootstrap: &Bootstrap) -> Foundation {
    let (wants_tx, wants) = mpsc::unbounded_channel();
    let registry = Registry::new(bootstrap.stats.clone());
    let secrets = Secrets::new(Store::new(Kind::Secret, wants_tx.clone()));
    let assignments = Arc::new(Store::new(Kind::Assignment, wants_tx.clone()));
    let clusters = ClusterManager::new(registry.clone(), secrets.clone(), assignments.clone());
    let services = Arc::new(Services {
        registry,
        secrets,
        clusters,
        routes: Arc::new(Store::new(Kind::Route, wants_tx.clone())),
        extensions: Arc::new(Store::new(Kind::Extension, wants_tx)),
        log_files: LogFiles::new(Duration::from_millis(options.file_flush_interval_msec)),
        drain: Drain::root(options.strategy()),
        node_id: bootstrap.node.id.clone(),
        node_cluster: bootstrap.node.cluster.clone(),
    });
    Foundation { services, assignments, wants }
}

async fn serve(options: Options, loaded: Loaded) -> Result<ExitCode, String> {
    let workers = options.workers();
    let source = load::source(&options);
    tracing::info!("initializing {} with {workers} workers", crate::cli::version());
    let Foundation { services, assignments, wants } = foundation(&options, &loaded.model);
    // only the first server of a process (tests have several) gets what libraries count
    let _ = metrics::set_global_recorder(crate::stats::Facade::new(services.registry.clone()));
    services.registry.adopt_thread();
    let lifecycle = Lifecycle::new(&services.registry, workers, services.drain.clone());
    lifecycle.count_notices(&loaded.notices);
    let spawned = worker::spawn(workers, &services).map_err(|e| format!("cannot start worker threads: {e}"))?;
    let listeners = ListenerManager::new(services.clone(), spawned.orders, options.drain_time());
    let bootstrap = Arc::new(loaded.model);
    let (quit_tx, mut quit) = mpsc::unbounded_channel();

    for (place, cluster) in bootstrap.clusters.iter().enumerate() {
        let path = format!("static_resources.clusters[{place}]");
        services
            .clusters
            .add_or_update(cluster.clone(), false)
            .map_err(|e| format!("{source}: {}", e.inside(&path)))?;
    }
    let discovery = Discovery::start(Parts {
        services: services.clone(),
        assignments,
        listeners: listeners.clone(),
        wants,
        bootstrap: bootstrap.clone(),
        reject_unknown_fields: options.reject_unknown_dynamic_fields,
        ignore_unknown_fields: options.ignore_unknown_dynamic_fields,
        skip_deprecated_logs: options.skip_deprecated_logs,
    });
    record_static(&discovery, &loaded.bytes, &loaded.notices.warnings);
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
    let mut names = HashSet::new();
    for (place, listener) in bootstrap.listeners.iter().enumerate() {
        if !names.insert(&listener.name) {
            // as in Envoy: what is static is not updated, not even by what is static
            tracing::warn!(
                "static_resources.listeners[{place}]: ignored, another listener is called '{}'",
                listener.name
            );
            continue;
        }
        let path = format!("static_resources.listeners[{place}]");
        listeners
            .add_or_update(listener.clone(), false)
            .map_err(|e| format!("{source}: listener '{}': {}", listener.name, e.inside(&path)))?;
    }
    let started = tokio::task::spawn_local(start_up(
        services.clone(),
        discovery.clone(),
        listeners.clone(),
        lifecycle.clone(),
        (bootstrap.cds.is_some() || bootstrap.lds.is_some()).then(|| bootstrap.runtime.clone()),
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
    runtime: Option<Arc<Runtime>>,
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
    // whatever names a key has had its time to come
    let unread = runtime.as_deref().map(crate::config::unread_runtime_keys).unwrap_or_default();
    for key in unread.iter().take(LOGGED) {
        tracing::warn!("runtime: {key}: {}", crate::config::UNREAD_KEY);
    }
    tracing::info!("all listeners are warm: serving");
    memory::forget_start_up();
    yield_to_workers();
}

/// How much less the control thread weighs than a worker, in steps of nice(2). Where both share a processor, a request does
/// not wait for a push to be converted (p99 at 100 pushes of 500 routes a second: 0.33 ms, at equal weight 0.42), and a
/// processor full of requests still leaves the control thread a quarter.
const CONTROL_NICENESS: i32 = 5;

/// Start-up is over: from now on requests go before configuration. On Linux, niceness is a thread's own.
fn yield_to_workers() {
    if let Err(error) = rustix::process::nice(CONTROL_NICENESS) {
        tracing::debug!("the control thread keeps the workers' priority: {error}");
    }
}

fn record_static(discovery: &Discovery, bytes: &Bytes, warnings: &[load::Warning]) {
    // by resource: there may be as many of both as the bootstrap has lines
    let mut of_resource: HashMap<&str, Vec<String>> = HashMap::new();
    for warning in warnings {
        if let Some((holder, below)) = warning.of.path.split_once("].") {
            let own = crate::config::Warning { path: below.to_owned(), ..warning.of.clone() };
            of_resource.entry(holder).or_default().push(own.to_string());
        }
    }
    let mut ledger = discovery.ledger.borrow_mut();
    for resource in crate::config::static_resources(bytes) {
        let type_url = TypeUrl::from_static(resource.type_url);
        let lines = of_resource.get(resource.path.trim_end_matches(']')).map_or(&[][..], Vec::as_slice);
        ledger.record_static(&type_url, &resource.name, resource.bytes, lines);
    }
}

async fn flush_stats(services: Arc<Services>, lifecycle: Rc<Lifecycle>, discovery: Rc<Discovery>, interval: Duration) {
    let mut tick = tokio::time::interval(interval);
    loop {
        tick.tick().await;
        lifecycle.refresh(&services.secrets);
        discovery.refresh_stats();
        services.registry.flush();
        memory::give_back();
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
