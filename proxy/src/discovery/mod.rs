//! From what xDS delivers to what runs: converted, warmed, applied in order, acknowledged, recorded in the ledger.
//!
//! One task on the control thread owns all of it. It hears of resources that are wanted (a slot was asked for), of what
//! the streams bring, and of first fetches that took too long; everything else is the managers' own business.

mod apply;
mod csds;
mod dump;
mod held;
mod ledger;
mod notices;
mod pending;
mod refusals;
mod stats;
mod streams;
mod waits;

pub use csds::ClientStatus;
pub use dump::{Parts as DumpParts, StaticConfig};
pub use ledger::{Ledger, Record, State};

use crate::config::model::{Bootstrap, ConfigSource, LoadAssignment, SecretKind};
use crate::config::{Context, Servers};
use crate::listener::ListenerManager;
use crate::runtime::Runtime;
use crate::services::Services;
use crate::slots::{Key, Kind, Store, Want};
use held::HeldTables;
use ledger::{LedgerStats, Managers};
use notices::PushNotices;
use pending::Pending;
use refusals::Repeats;
use stats::{ControlPlaneStats, DiscoveryStats, SubscriptionStats};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::{StreamId, Streams};
use tokio::sync::{mpsc, watch};
use waits::Late;
use xds_client::{Event, Subscription, TypeUrl};

/// What discovery is made of; moved into its task.
pub struct Parts {
    pub services: Arc<Services>,
    pub assignments: Arc<Store<LoadAssignment>>,
    pub listeners: Rc<ListenerManager>,
    pub wants: mpsc::UnboundedReceiver<Want>,
    pub bootstrap: Arc<Bootstrap>,
    /// `--reject-unknown-dynamic-fields`.
    pub reject_unknown_fields: bool,
    /// `--ignore-unknown-dynamic-fields`.
    pub ignore_unknown_fields: bool,
    /// `--skip-deprecated-logs`.
    pub skip_deprecated_logs: bool,
}

/// The rest of the server's view of the discovery task.
pub struct Discovery {
    pub ledger: Rc<RefCell<Ledger>>,
    ledger_stats: RefCell<LedgerStats>,
    start_listeners: watch::Sender<bool>,
    clusters_answered: watch::Receiver<bool>,
    listeners_answered: watch::Receiver<bool>,
}

impl Discovery {
    /// Starts the task, and with it the streams; clusters are asked for at once if the bootstrap names a source.
    pub fn start(parts: Parts) -> Rc<Discovery> {
        let managers =
            Rc::new(Managers { clusters: parts.services.clusters.clone(), listeners: parts.listeners.clone() });
        let ledger = Rc::new(RefCell::new(Ledger::new(managers.clone())));
        tokio::task::spawn_local(ledger::follow(Rc::downgrade(&ledger), managers));
        let ledger_stats = RefCell::new(LedgerStats::new(&parts.services.registry));
        let (start_listeners, start_listeners_rx) = watch::channel(false);
        let (clusters_tx, clusters_answered) = watch::channel(parts.bootstrap.cds.is_none());
        let (listeners_tx, listeners_answered) = watch::channel(parts.bootstrap.lds.is_none());
        let (events_tx, events) = mpsc::channel(1);
        let (late_tx, late) = mpsc::unbounded_channel();
        let secrets = parts.bootstrap.secrets.iter().map(|s| (s.name.clone(), s.kind.clone())).collect();
        let runtime = parts.bootstrap.runtime.clone();
        runtime.count_in(&parts.services.registry);
        tokio::task::spawn_local(crate::runtime::follow_disk(runtime.clone()));
        let awaited_layers = parts.bootstrap.rtds.iter().map(|(name, _)| name.clone()).collect();
        let bootstrap = &parts.bootstrap;
        let stats = DiscoveryStats::new(&parts.services.registry, bootstrap.ads.is_some(), !bootstrap.rtds.is_empty());
        let mut context = Context::with_runtime(bootstrap.runtime.clone())
            .refusing_unknown(parts.reject_unknown_fields.then_some("--reject-unknown-dynamic-fields is set"));
        context.servers = Some(Servers::of(bootstrap));
        let task = Task {
            runtime,
            awaited_layers,
            streams: Streams::new(
                parts.services.clone(),
                parts.bootstrap.clone(),
                events_tx,
                parts.reject_unknown_fields,
                stats.control_plane.as_ref().map(ControlPlaneStats::limits),
            ),
            stats,
            services: parts.services,
            assignments: parts.assignments,
            listeners: parts.listeners,
            context,
            bootstrap: parts.bootstrap,
            ignore_unknown_fields: parts.ignore_unknown_fields,
            skip_deprecated_logs: parts.skip_deprecated_logs,
            ledger: ledger.clone(),
            static_secrets: secrets,
            wanted: HashMap::new(),
            whole: Vec::new(),
            connected: HashSet::new(),
            generation: 0,
            noticed: Vec::new(),
            push_notices: PushNotices::default(),
            skipped: HashSet::new(),
            repeats: Repeats::default(),
            late: late_tx,
            held_tables: HeldTables::default(),
            listeners_started: false,
            cold_clusters: Pending::default(),
            cold_listeners: Pending::default(),
            clusters_answered: clusters_tx,
            listeners_answered: listeners_tx,
        };
        tokio::task::spawn_local(task.run(parts.wants, events, late, start_listeners_rx));
        Rc::new(Discovery { ledger, ledger_stats, start_listeners, clusters_answered, listeners_answered })
    }

    /// Brings the gauges of the ledger up to date; called before they are read.
    pub fn refresh_stats(&self) {
        let mut ledger = self.ledger.borrow_mut();
        ledger.settle();
        self.ledger_stats.borrow_mut().refresh(&mut ledger);
    }

    /// Returns once the first answer for clusters was applied, or waiting for it ended.
    pub async fn clusters_answered(&self) {
        // an error means that the task is gone: at shutdown nobody waits for clusters
        let _ = self.clusters_answered.clone().wait_for(|answered| *answered).await;
    }

    /// Asks for listeners: the clusters they lead to are warm.
    pub fn start_listeners(&self) {
        self.start_listeners.send_replace(true);
    }

    /// Returns once the first answer for listeners was applied, or waiting for it ended.
    pub async fn listeners_answered(&self) {
        let _ = self.listeners_answered.clone().wait_for(|answered| *answered).await;
    }
}

/// Who wants one name on one stream.
#[derive(Default)]
struct Interest {
    /// The slots that want it: sources may differ in nothing but their timeouts.
    slots: Vec<Wanting>,
    /// `None` for endpoints, which their clusters count.
    stats: Option<Box<SubscriptionStats>>,
    /// Of endpoints on a stream of their own: one for each cluster that has them.
    control_planes: Vec<ControlPlaneStats>,
}

/// A slot that wants a resource.
struct Wanting {
    key: Key,
    /// Number of its wait for a first version.
    generation: u64,
}

type Wanted = HashMap<(StreamId, Kind, Arc<str>), Interest>;

struct Task {
    services: Arc<Services>,
    assignments: Arc<Store<LoadAssignment>>,
    listeners: Rc<ListenerManager>,
    bootstrap: Arc<Bootstrap>,
    /// Kept from one resource to the next: it knows the runtime values.
    context: Context,
    runtime: Arc<Runtime>,
    /// Runtime layers without a first answer: clusters are asked for when there are none.
    awaited_layers: HashSet<Arc<str>>,
    ignore_unknown_fields: bool,
    skip_deprecated_logs: bool,
    streams: Streams,
    ledger: Rc<RefCell<Ledger>>,
    stats: DiscoveryStats,
    static_secrets: HashMap<Arc<str>, SecretKind>,
    wanted: Wanted,
    /// The types that are asked for as a whole, each with its stream.
    whole: Vec<(TypeUrl, StreamId)>,
    connected: HashSet<StreamId>,
    /// How many waits for a first version there have been.
    generation: u64,
    /// Fields without effect of the resource that was converted last.
    noticed: Vec<String>,
    /// Those of all resources of the push that is being taken.
    push_notices: PushNotices,
    /// Static resources that a control plane has offered another version of; that was said once for each.
    skipped: HashSet<String>,
    /// Refused pushes.
    repeats: Repeats,
    late: mpsc::UnboundedSender<Late>,
    /// Routes that wait for clusters.
    held_tables: HeldTables,
    /// The first clusters are warm and listeners were asked for.
    listeners_started: bool,
    /// Updates of clusters, and of listeners, that are not live yet.
    cold_clusters: Pending,
    cold_listeners: Pending,
    clusters_answered: watch::Sender<bool>,
    listeners_answered: watch::Sender<bool>,
}

impl Task {
    async fn run(
        mut self,
        mut wants: mpsc::UnboundedReceiver<Want>,
        mut events: mpsc::Receiver<(StreamId, Event)>,
        mut late: mpsc::UnboundedReceiver<Late>,
        mut start_listeners: watch::Receiver<bool>,
    ) {
        self.subscribe_layers();
        if self.awaited_layers.is_empty() {
            self.subscribe_clusters();
        }
        let (clusters, listeners) = (self.services.clusters.clone(), self.listeners.clone());
        loop {
            tokio::select! {
                Some(want) = wants.recv() => self.want(want),
                Some((stream, event)) = events.recv() => self.event(stream, event, &mut wants),
                Some(late) = late.recv() => self.late(late),
                () = clusters.all_warm(), if !self.cold_clusters.is_empty() => self.clusters_are_warm(),
                () = at(self.cold_clusters.due()), if self.cold_clusters.due().is_some() => self.clusters_take_long(),
                () = listeners.all_warm(), if !self.cold_listeners.is_empty() => self.listeners_are_warm(),
                started = start_listeners.wait_for(|started| *started), if !self.listeners_started => {
                    if started.is_err() {
                        return;
                    }
                    self.listeners_started = true;
                    if let Some(source) = self.bootstrap.lds.clone() {
                        self.subscribe_all(&source, TypeUrl::LISTENER, Late::Listeners);
                    }
                }
                else => return,
            }
        }
    }

    fn subscribe_layers(&mut self) {
        for (name, source) in &self.bootstrap.clone().rtds {
            match self.streams.client(source, &TypeUrl::RUNTIME, Some(name)) {
                Ok((stream, client)) => {
                    let from = self.source(&stream);
                    self.ledger.borrow_mut().requested(&TypeUrl::RUNTIME, &from, name);
                    let known = self.whole.iter().any(|(t, of)| *t == TypeUrl::RUNTIME && *of == stream);
                    if let Some(stats) = self.stats.whole(&TypeUrl::RUNTIME).filter(|_| stream.is_connection()) {
                        stats.subscribed();
                    }
                    if !known {
                        self.whole.push((TypeUrl::RUNTIME, stream));
                    }
                    client.subscribe(&TypeUrl::RUNTIME, Subscription::names([name.to_string()]));
                    self.arm(source.initial_fetch_timeout, Late::Layer(name.clone()));
                }
                Err(reason) => {
                    tracing::error!("runtime layer {name}: {reason}");
                    self.awaited_layers.remove(name);
                }
            }
        }
    }

    /// A runtime layer has its first values, or will not have any in time: with the last of them clusters are asked for.
    fn layer_answered(&mut self, name: &str) {
        if self.awaited_layers.remove(name) && self.awaited_layers.is_empty() {
            self.subscribe_clusters();
        }
    }

    fn subscribe_clusters(&mut self) {
        if let Some(source) = self.bootstrap.cds.clone() {
            self.subscribe_all(&source, TypeUrl::CLUSTER, Late::Clusters);
        }
    }

    /// Everything of a type: clusters or listeners.
    fn subscribe_all(&mut self, source: &ConfigSource, type_url: TypeUrl, late: Late) {
        match self.streams.client(source, &type_url, None) {
            Ok((stream, client)) => {
                client.subscribe(&type_url, Subscription::Wildcard);
                if let Some(stats) = self.stats.whole(&type_url).filter(|_| stream.is_connection()) {
                    stats.subscribed();
                    if stream != StreamId::Ads {
                        self.streams.count_limits(&stream, stats.control_plane().limits());
                    }
                }
                self.whole.push((type_url, stream));
            }
            Err(reason) => tracing::error!("{}: {reason}", type_url.message_name()),
        }
        self.arm(source.initial_fetch_timeout, late);
    }

    /// What the ledger calls the source of what this stream brings.
    fn source(&self, stream: &StreamId) -> Arc<str> {
        self.ledger.borrow_mut().source(&stream.source())
    }

    fn want(&mut self, want: Want) {
        match want {
            Want::Subscribe(kind, key) => self.subscribe(kind, key),
            // a slot that was dropped and asked for again meanwhile is held
            Want::Unsubscribe(kind, key) if !self.is_held(kind, &key) => self.unsubscribe(kind, &key),
            Want::Unsubscribe(..) => {}
        }
    }

    fn subscribe(&mut self, kind: Kind, key: Key) {
        let Some(source) = key.source.clone() else {
            return self.fill_static(kind, &key);
        };
        let type_url = type_of(kind);
        match self.streams.client(&source, &type_url, Some(&key.name)) {
            Ok((stream, client)) => {
                self.generation += 1;
                let generation = self.generation;
                let from = self.source(&stream);
                let interest = self.wanted.entry((stream.clone(), kind, key.name.clone())).or_default();
                let first = interest.slots.is_empty();
                interest.slots.retain(|slot| slot.key != key);
                interest.slots.push(Wanting { key: key.clone(), generation });
                self.ledger.borrow_mut().requested(&type_url, &from, &key.name);
                // a server may take what is asked before an answer for a question of before its last response
                self.repeats.release(&stream, &type_url);
                if first {
                    interest.stats = subscription_stats(&self.services, kind, &key);
                    if let Some(stats) = interest.stats.as_ref().filter(|_| stream.is_connection()) {
                        stats.subscribed();
                        if stream != StreamId::Ads {
                            // it may serve others already
                            let connected = self.connected.contains(&stream);
                            stats.control_plane().connected_state.set(u64::from(connected));
                            self.streams.count_limits(&stream, stats.control_plane().limits());
                        }
                    }
                    if kind == Kind::Assignment && stream != StreamId::Ads && stream.is_connection() {
                        let registry = &self.services.registry;
                        let clusters = self.services.clusters.served_by(&key.name, &source);
                        let scopes = clusters.iter().map(|name| registry.scope(&format!("cluster.{name}.")));
                        interest.control_planes = scopes.map(|scope| ControlPlaneStats::new(&scope)).collect();
                        let connected = u64::from(self.connected.contains(&stream));
                        interest.control_planes.iter().for_each(|stats| stats.connected_state.set(connected));
                    }
                    client.subscribe(&type_url, Subscription::names([key.name.to_string()]));
                } else {
                    self.refill(&stream, kind, &key);
                }
                self.arm(source.initial_fetch_timeout, Late::Resource(kind, key, generation));
            }
            Err(reason) => {
                tracing::error!("{kind:?} {}: {reason}", key.name);
                self.give_up(kind, &key);
            }
        }
    }

    /// A secret of the bootstrap: it is there from the start or never.
    fn fill_static(&mut self, kind: Kind, key: &Key) {
        let filled = match (kind, self.static_secrets.get(&key.name)) {
            (Kind::Secret, Some(secret)) => match self.services.secrets.update(key, secret.clone()) {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!("secret {}: {error}", key.name);
                    false
                }
            },
            _ => false,
        };
        if !filled {
            tracing::error!("no static {kind:?} named {} that can be used", key.name);
            self.give_up(kind, key);
        }
    }

    fn unsubscribe(&mut self, kind: Kind, key: &Key) {
        let Some(source) = &key.source else { return };
        let type_url = type_of(kind);
        let stream = self.streams.id(source, &type_url, Some(&key.name));
        let wanted = (stream, kind, key.name.clone());
        let Some(interest) = self.wanted.get_mut(&wanted) else { return };
        interest.slots.retain(|slot| slot.key != *key);
        match kind {
            Kind::Secret => self.services.secrets.forget(key),
            Kind::Route => self.held_tables.forget(key),
            Kind::Assignment | Kind::Extension => {}
        }
        if interest.slots.is_empty() {
            self.wanted.remove(&wanted);
            let from = self.source(&wanted.0);
            self.ledger.borrow_mut().forget(&type_url, &from, &key.name);
            self.repeats.release(&wanted.0, &type_url);
            if self.streams.unsubscribe(&wanted.0, &type_url, &key.name) {
                self.connected.remove(&wanted.0);
                self.repeats.forget(&wanted.0, &type_url);
            }
        }
    }

    fn event(&mut self, stream: StreamId, event: Event, wants: &mut mpsc::UnboundedReceiver<Want>) {
        match event {
            Event::Connected => {
                tracing::debug!("xds: connected to {stream}");
                self.note_connected(&stream, true);
            }
            Event::Disconnected { error, retry_in, .. } => {
                let next = match retry_in {
                    Duration::MAX => "when it is replaced".to_owned(),
                    retry_in => format!("in {} ms", retry_in.as_millis()),
                };
                tracing::warn!("xds: {stream} gives nothing: {error}; next attempt {next}");
                self.note_connected(&stream, false);
                self.failed(&stream);
                self.record_failure(&stream, &error);
                if stream == StreamId::Ads {
                    self.cold_clusters.release();
                }
            }
            Event::Response(response) => self.response(&stream, response, wants),
        }
    }

    /// A stream ended, or none came about: nothing that it serves was updated.
    fn failed(&self, stream: &StreamId) {
        self.subscriptions(stream).for_each(SubscriptionStats::failed);
        if self.wanted.keys().any(|(of, kind, _)| of == stream && *kind == Kind::Assignment) {
            self.services.clusters.stream_failed();
        }
    }

    /// Writes down why nothing comes, for what has never come. A connection is made anew, over and over; what a file holds
    /// stays wrong until somebody replaces it, so that is written down for what runs as well.
    fn record_failure(&self, stream: &StreamId, error: &str) {
        let (from, detail) = (self.source(stream), Arc::from(refusals::bounded(error.to_owned())));
        let is_file = matches!(stream, StreamId::File { .. });
        let mut ledger = self.ledger.borrow_mut();
        let named = self.wanted.keys().filter(|(of, ..)| of == stream).map(|(_, kind, name)| (type_of(*kind), name));
        let layers = self.bootstrap.rtds.iter().filter(|_| stream_serves_layers(stream));
        let layers = layers.filter(|(_, source)| source.kind == stream.source());
        for (type_url, name) in named.chain(layers.map(|(name, _)| (TypeUrl::RUNTIME, name))) {
            let never = ledger.get(&type_url, &from, name).is_none_or(|record| record.held().is_none());
            if never || is_file {
                ledger.failed(&type_url, &from, name, &detail);
            }
        }
    }

    /// What this stream serves, save endpoints.
    fn subscriptions<'a>(&'a self, stream: &'a StreamId) -> impl Iterator<Item = &'a SubscriptionStats> {
        let whole = self.whole.iter().filter(move |(_, of)| of == stream).filter_map(|(t, _)| self.stats.whole(t));
        let named = self.wanted.iter().filter(move |((of, ..), _)| of == stream);
        whole.chain(named.filter_map(|(_, interest)| interest.stats.as_deref()))
    }

    /// Where this stream's `control_plane.*` stand: at the root for the aggregated one, else with what it serves.
    fn control_planes<'a>(&'a self, stream: &'a StreamId) -> impl Iterator<Item = &'a ControlPlaneStats> {
        let aggregated = self.stats.control_plane.as_ref().filter(|_| *stream == StreamId::Ads);
        let own = Some(stream).filter(|stream| **stream != StreamId::Ads && stream.is_connection());
        let own = own.into_iter().flat_map(|stream| self.subscriptions(stream)).map(SubscriptionStats::control_plane);
        let endpoints = self.wanted.iter().filter(move |((of, ..), _)| of == stream);
        let endpoints = endpoints.flat_map(|(_, interest)| &interest.control_planes);
        aggregated.into_iter().chain(own).chain(endpoints)
    }

    fn note_connected(&mut self, stream: &StreamId, connected: bool) {
        if connected {
            self.connected.insert(stream.clone());
        } else {
            self.connected.remove(stream);
        }
        self.control_planes(stream).for_each(|stats| stats.connected_state.set(u64::from(connected)));
    }

    fn note_identifier(&self, stream: &StreamId, identifier: &str) {
        if !identifier.is_empty() {
            self.control_planes(stream).for_each(|stats| stats.identifier.set(identifier));
        }
    }
}

fn stream_serves_layers(stream: &StreamId) -> bool {
    match stream {
        StreamId::Ads => true,
        StreamId::Own { type_url, .. } | StreamId::File { type_url, .. } => *type_url == TypeUrl::RUNTIME,
    }
}

/// Returns at this time; never, if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// The stats of a resource's own subscription, under Envoy's names.
fn subscription_stats(services: &Services, kind: Kind, key: &Key) -> Option<Box<SubscriptionStats>> {
    let stats = match kind {
        Kind::Assignment => return None,
        Kind::Secret => {
            let scope = services.registry.scope(&format!("sds.{}.", key.name));
            SubscriptionStats::new(scope, &["key_rotation_failed"])
        }
        Kind::Route => {
            let prefix = services.routes.get(key).map(|slot| slot.stats_prefix().to_owned()).unwrap_or_default();
            SubscriptionStats::of_routes(services.registry.scope(&format!("{prefix}rds.{}.", key.name)))
        }
        Kind::Extension => {
            let slot = services.extensions.get(key);
            let prefix = slot.map(|slot| slot.stats_prefix().to_owned()).unwrap_or_default();
            SubscriptionStats::of_extensions(services.registry.scope(&format!("{prefix}{}.", key.name)))
        }
    };
    Some(Box::new(stats))
}

/// The slots that resources of this type fill; `None` for the types that are asked for as a whole.
fn kind_of(type_url: &TypeUrl) -> Option<Kind> {
    [Kind::Route, Kind::Secret, Kind::Assignment, Kind::Extension].into_iter().find(|kind| type_of(*kind) == *type_url)
}

/// The xDS type that fills slots of this kind.
fn type_of(kind: Kind) -> TypeUrl {
    match kind {
        Kind::Route => TypeUrl::ROUTE,
        Kind::Secret => TypeUrl::SECRET,
        Kind::Assignment => TypeUrl::ENDPOINT,
        Kind::Extension => TypeUrl::EXTENSION,
    }
}
