//! All listeners, on the control thread: what runs, what warms, what drains.

use super::ListenerView;
use super::bind::{self, Bound, BoundListener, Shared};
use super::compiled::Listener;
use super::stats::ManagerStats;
use super::worker::{Command, Order};
use crate::config::ConfigError;
use crate::config::model::{Address, ListenerConfig, TrafficDirection};
use crate::services::Services;
use crate::upstream::Update;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, spawn_local};

/// All listeners, on the control thread.
pub struct ListenerManager {
    services: Arc<Services>,
    workers: Vec<mpsc::UnboundedSender<Order>>,
    drain_time: Duration,
    stats: ManagerStats,
    state: RefCell<State>,
    /// How many are warming.
    warming: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    started: bool,
    /// By name; a name is here while it is live or warming.
    listeners: BTreeMap<Arc<str>, Slot>,
    draining: Draining,
    /// Sockets that a listener has just left, until the workers have closed theirs: one that comes to the same address
    /// meanwhile goes on with them.
    left: Vec<Rc<[Shared]>>,
}

/// How many generations of a name drain as a whole.
type Draining = BTreeMap<Arc<str>, usize>;

#[derive(Default)]
struct Slot {
    live: Option<Live>,
    warming: Option<Warming>,
}

struct Live {
    listener: Arc<Listener>,
    /// One to one with the configured addresses; `None` for Unix sockets.
    addresses: Vec<Option<SocketAddr>>,
    /// Per worker; bound and not yet given to the workers, which have not started.
    waiting: Option<Vec<Vec<Bound>>>,
    /// Sockets that all workers accept from.
    shared: Vec<Shared>,
}

struct Warming {
    listener: Arc<Listener>,
    /// `None`: takes over the sockets of the live one.
    bound: Option<BoundListener>,
    task: Option<AbortHandle>,
}

impl Drop for Warming {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl ListenerManager {
    /// One sender per worker; the receiving ends are given to [`super::run_worker`].
    pub fn new(
        services: Arc<Services>,
        workers: Vec<mpsc::UnboundedSender<Order>>,
        drain_time: Duration,
    ) -> Rc<ListenerManager> {
        let stats = ManagerStats::new(&services.registry);
        Rc::new(ListenerManager {
            services,
            workers,
            drain_time,
            stats,
            state: RefCell::default(),
            warming: watch::Sender::new(0),
        })
    }

    /// Takes a configuration: binds its sockets, warms it (routes, secrets) by itself on the calling thread's
    /// `LocalRuntime`, then has the workers accept. When only filter chains differ, sockets and equal chains are kept and
    /// only changed chains drain; otherwise the old listener drains as a whole once the new one is live.
    ///
    /// # Errors
    /// What cannot be built or bound; the running listener stays.
    pub fn add_or_update(
        self: &Rc<Self>,
        config: Arc<ListenerConfig>,
        _added_via_api: bool,
    ) -> Result<Update, ConfigError> {
        let name = config.name.clone();
        {
            let mut state = self.state.borrow_mut();
            let slot = state.listeners.get_mut(&name);
            if let Some(slot) = slot {
                match (&slot.warming, &slot.live) {
                    (Some(warming), _) if warming.listener.is_equal_to(&config) => return Ok(Update::Unchanged),
                    (warming, Some(live)) if live.listener.is_equal_to(&config) => {
                        // back to what runs: what was on its way is not wanted any more
                        let unchanged = warming.is_none();
                        slot.warming = None;
                        self.count(&state);
                        return Ok(if unchanged { Update::Unchanged } else { Update::Live });
                    }
                    _ => {}
                }
            }
        }
        let update = self.prepare(config).inspect_err(|_| self.stats.create_failure.inc())?;
        self.stats.create_success.inc();
        let mut state = self.state.borrow_mut();
        let slot = state.listeners.entry(name.clone()).or_default();
        if slot.live.is_some() || slot.warming.is_some() {
            self.stats.modified.inc();
        } else {
            self.stats.added.inc();
        }
        let listener = update.listener.clone();
        slot.warming = Some(update);
        if listener.is_settled() {
            drop(state);
            self.activate(&name);
            return Ok(Update::Live);
        }
        let manager = Rc::downgrade(self);
        let task = spawn_local(async move {
            listener.settled().await;
            if let Some(manager) = manager.upgrade() {
                manager.activate(&listener.config.name);
            }
        });
        if let Some(warming) = &mut slot.warming {
            warming.task = Some(task.abort_handle());
        }
        self.count(&state);
        Ok(Update::Warming)
    }

    /// Compiles and binds.
    fn prepare(&self, config: Arc<ListenerConfig>) -> Result<Warming, ConfigError> {
        let mut state = self.state.borrow_mut();
        self.refuse_shared_address(&state, &config)?;
        let State { listeners, left, .. } = &mut *state;
        let slot = listeners.get_mut(&config.name);
        let live = slot.as_ref().and_then(|slot| slot.live.as_ref());
        let kept = live.filter(|live| live.listener.config.shell_hash == config.shell_hash);
        let listener =
            Listener::compile(config.clone(), kept.map(|live| &*live.listener), &self.services, self.workers.len())?;
        let listener = Arc::new(listener);
        let bound = if !config.bind_to_port || live.is_some_and(|live| same_sockets(&live.listener.config, &config)) {
            None
        } else {
            // sockets that an update on its way has bound already are not bound twice
            let (live, warming) = slot.map_or((None, None), |slot| (slot.live.as_ref(), slot.warming.as_mut()));
            match warming {
                Some(warming) if warming.bound.is_some() && same_sockets(&warming.listener.config, &config) => {
                    warming.bound.take()
                }
                warming => {
                    let warming = warming.iter().filter_map(|w| w.bound.as_ref()).flat_map(|bound| &bound.shared);
                    let own = live.iter().flat_map(|live| &live.shared).chain(warming);
                    let left = left.iter().flat_map(|shared| shared.iter()).filter(|s| !s.is_of_any_port());
                    let held: Vec<&Shared> = own.chain(left).collect();
                    Some(bind::bind(&config, self.workers.len(), held.iter().copied())?)
                }
            }
        };
        Ok(Warming { listener, bound, task: None })
    }

    fn refuse_shared_address(&self, state: &State, config: &ListenerConfig) -> Result<(), ConfigError> {
        for (name, slot) in state.listeners.iter().filter(|(name, _)| **name != config.name) {
            let others = [slot.live.as_ref().map(|l| &l.listener), slot.warming.as_ref().map(|w| &w.listener)];
            for other in others.into_iter().flatten() {
                let shared = addresses(config).find(|a| {
                    !matches!(a, Address::Socket(a) if a.port() == 0) && addresses(&other.config).any(|b| b == *a)
                });
                if let Some(address) = shared {
                    let message = format!(
                        "error adding listener: '{}' has duplicate address '{address}' as existing listener '{name}'",
                        config.name
                    );
                    return Err(ConfigError::new("address", message));
                }
            }
        }
        Ok(())
    }

    /// Makes the warming listener of this name the live one.
    fn activate(self: &Rc<Self>, name: &Arc<str>) {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let started = state.started;
        let Some(slot) = state.listeners.get_mut(name) else { return };
        let Some(mut warming) = slot.warming.take() else { return };
        // it is this task that runs: it must not be cut before its end
        warming.task = None;
        let (listener, bound) = (warming.listener.clone(), warming.bound.take());
        let mut old = slot.live.take();
        let mut live = match (bound, &mut old) {
            (Some(BoundListener { addresses, per_worker, shared }), _) => {
                Live { listener: listener.clone(), addresses, waiting: Some(per_worker), shared }
            }
            // sockets that the workers were never given are still ours to give
            (None, Some(old)) if listener.config.bind_to_port => Live {
                listener: listener.clone(),
                addresses: old.addresses.clone(),
                waiting: old.waiting.take(),
                shared: std::mem::take(&mut old.shared),
            },
            (None, _) => {
                let addresses = configured(&listener.config);
                Live { listener: listener.clone(), addresses, waiting: None, shared: Vec::new() }
            }
        };
        if let Some(old) = &mut old {
            self.retire(&mut state.draining, &old.listener, &listener);
            if !listener.config.bind_to_port && old.listener.config.bind_to_port {
                self.tell(|_| Command::StopAccepting(name.clone()));
            }
        }
        if started {
            self.install(&mut live);
        }
        slot.live = Some(live);
        self.leave(&mut state.left, old);
        self.count(state);
    }

    /// Keeps the sockets of what ran for as long as the workers, who have their orders, may not have closed theirs:
    /// until then nobody else can bind the address.
    fn leave(self: &Rc<Self>, left: &mut Vec<Rc<[Shared]>>, old: Option<Live>) {
        let shared: Rc<[Shared]> = old.map(|live| live.shared).unwrap_or_default().into();
        if shared.is_empty() {
            return;
        }
        left.push(shared.clone());
        let manager = Rc::downgrade(self);
        let (obeyed, workers) = (self.obeyed(), self.workers.clone());
        spawn_local(async move {
            obeyed.await;
            // the accept loops, woken by the order, end before the workers hear of the next one
            reports(&workers).await;
            if let Some(manager) = manager.upgrade() {
                manager.state.borrow_mut().left.retain(|other| !Rc::ptr_eq(other, &shared));
            }
        });
    }

    /// Begins the drain of what an update replaced.
    fn retire(self: &Rc<Self>, draining: &mut Draining, old: &Listener, new: &Listener) {
        if old.config.shell_hash != new.config.shell_hash {
            return self.drain_away(draining, old);
        }
        self.stats.in_place_updated.inc();
        for chain in old.chains_gone_in(new) {
            chain.drain.begin(self.drain_time);
            let gauge = self.stats.chains_draining.clone();
            gauge.inc();
            let drain_time = self.drain_time;
            spawn_local(async move {
                tokio::time::sleep(drain_time).await;
                gauge.dec();
            });
        }
    }

    fn drain_away(self: &Rc<Self>, draining: &mut Draining, listener: &Listener) {
        listener.drain.begin(self.drain_time);
        let name = listener.config.name.clone();
        *draining.entry(name.clone()).or_default() += 1;
        self.stats.draining.inc();
        let manager = Rc::downgrade(self);
        let drain_time = self.drain_time;
        spawn_local(async move {
            tokio::time::sleep(drain_time).await;
            if let Some(manager) = manager.upgrade() {
                manager.drained(&name);
            }
        });
    }

    /// The drain of one generation is over.
    fn drained(&self, name: &Arc<str>) {
        self.stats.draining.dec();
        let draining = &mut self.state.borrow_mut().draining;
        if let Some(generations) = draining.get_mut(name) {
            *generations -= 1;
            if *generations == 0 {
                draining.remove(name);
            }
        }
        // whoever follows this looks at what drains, too
        self.warming.send_modify(|_| {});
    }

    /// Has the workers serve it. Its sockets listen from here on: who asks right after finds a queue, however busy the
    /// workers are.
    fn install(&self, live: &mut Live) {
        let addresses: Vec<SocketAddr> = live.addresses.iter().copied().flatten().collect();
        let waiting = live.waiting.take();
        if let Some(Err(e)) = waiting.as_ref().map(|sockets| bind::listen(&live.listener.config, sockets)) {
            tracing::error!("listener {} cannot listen: {e}", live.listener.config.name);
        }
        let mut sockets = waiting.map(Vec::into_iter);
        self.tell(|_| Command::Set {
            listener: live.listener.clone(),
            addresses: addresses.clone(),
            sockets: sockets.as_mut().and_then(Iterator::next),
        });
    }

    fn tell(&self, mut command: impl FnMut(usize) -> Command) {
        for (n, worker) in self.workers.iter().enumerate() {
            // a worker that is gone takes no orders: the process is ending
            let _ = worker.send(Order(command(n)));
        }
    }

    /// Stops accepting and drains.
    pub fn remove(self: &Rc<Self>, name: &str) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(mut slot) = state.listeners.remove(name) else { return false };
        if let Some(live) = &slot.live {
            self.tell(|_| Command::Remove(live.listener.config.name.clone()));
            self.drain_away(&mut state.draining, &live.listener);
        }
        self.leave(&mut state.left, slot.live.take());
        self.stats.removed.inc();
        self.count(&state);
        true
    }

    /// Until this is called warm listeners do not accept: at start they wait for clusters and for each other.
    pub fn start_workers(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.started, true) {
            return;
        }
        for live in state.listeners.values_mut().filter_map(|slot| slot.live.as_mut()) {
            self.install(live);
        }
        self.stats.workers_started.set(1);
    }

    /// Names of listeners that wait for something.
    pub fn warming(&self) -> Vec<Arc<str>> {
        let state = self.state.borrow();
        state.listeners.iter().filter(|(_, slot)| slot.warming.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Every warming listener and what it waits for.
    pub fn awaited(&self) -> Vec<(Arc<str>, Vec<String>)> {
        let state = self.state.borrow();
        let warming = state.listeners.iter().filter_map(|(name, slot)| Some((name, slot.warming.as_ref()?)));
        warming.map(|(name, warming)| (name.clone(), warming.listener.awaited())).collect()
    }

    /// Returns once every worker has obeyed all orders given so far.
    pub fn obeyed(&self) -> impl Future<Output = ()> + 'static {
        reports(&self.workers)
    }

    /// Whether a version of this listener waits for something.
    pub fn is_warming(&self, name: &str) -> bool {
        self.state.borrow().listeners.get(name).is_some_and(|slot| slot.warming.is_some())
    }

    /// Whether a version of this listener that was removed or replaced drains.
    pub fn is_draining(&self, name: &str) -> bool {
        self.state.borrow().draining.contains_key(name)
    }

    /// How many listeners are warming: a receiver that sees every later change, and every end of a drain.
    pub fn watch_warming(&self) -> watch::Receiver<usize> {
        self.warming.subscribe()
    }

    /// Returns once no listener is warming.
    pub async fn all_warm(&self) {
        // the sender lives in self, so this cannot fail
        let _ = self.warming.subscribe().wait_for(|n| *n == 0).await;
    }

    /// `/drain_listeners`: begins the drain of all (or only inbound) listeners; sockets close at once, or with `graceful`
    /// after the drain time; never with `skip_exit`.
    pub fn drain(self: &Rc<Self>, inbound_only: bool, graceful: bool, skip_exit: bool) {
        let state = self.state.borrow();
        let chosen = state.listeners.values().filter_map(|slot| slot.live.as_ref()).filter(|live| {
            let config = &live.listener.config;
            !config.drain_modify_only && (!inbound_only || config.traffic_direction == TrafficDirection::Inbound)
        });
        let names: Vec<Arc<str>> = chosen
            .map(|live| {
                live.listener.drain.begin(self.drain_time);
                live.listener.config.name.clone()
            })
            .collect();
        drop(state);
        match (graceful, skip_exit) {
            (_, true) => {}
            (false, false) => self.stop(&names),
            (true, false) => {
                let manager = Rc::downgrade(self);
                let drain_time = self.drain_time;
                spawn_local(async move {
                    tokio::time::sleep(drain_time).await;
                    if let Some(manager) = manager.upgrade() {
                        manager.stop(&names);
                    }
                });
            }
        }
    }

    /// Closes sockets; the listeners stay listed.
    fn stop(&self, names: &[Arc<str>]) {
        for name in names {
            self.stats.stopped.inc();
            self.tell(|_| Command::StopAccepting(name.clone()));
            // while any of us has it open, the kernel goes on taking connections
            if let Some(live) = self.state.borrow_mut().listeners.get_mut(name).and_then(|slot| slot.live.as_mut()) {
                live.shared.clear();
            }
        }
    }

    /// Those that run; before the workers start, those that will, too.
    pub fn views(&self) -> Vec<ListenerView> {
        let state = self.state.borrow();
        let started = state.started;
        let shown = state.listeners.iter().filter_map(|(name, slot)| {
            let (listener, addresses) = match (&slot.live, &slot.warming) {
                (Some(live), _) => (&live.listener, &live.addresses[..]),
                (None, Some(warming)) if !started => {
                    (&warming.listener, warming.bound.as_ref().map_or(&[][..], |bound| &bound.addresses[..]))
                }
                _ => return None,
            };
            Some((name, listener, addresses))
        });
        shown
            .map(|(name, listener, bound)| {
                let config = &listener.config;
                let at = |n: usize| bound.get(n).copied().flatten().filter(|_| config.bind_to_port);
                let all = addresses(config).enumerate();
                let mut real = (0..bound.len()).map(at);
                ListenerView {
                    name: name.clone(),
                    shown: all.map(|(n, address)| at(n).map_or_else(|| address.clone(), Address::Socket)).collect(),
                    addresses: real.next().flatten().into_iter().collect(),
                    additional: real.flatten().collect(),
                }
            })
            .collect()
    }

    fn count(&self, state: &State) {
        let warming = state.listeners.values().filter(|slot| slot.warming.is_some()).count();
        self.stats.warming.set(warming as u64);
        self.stats.active.set(state.listeners.values().filter(|slot| slot.live.is_some()).count() as u64);
        self.warming.send_replace(warming);
    }
}

/// Has every worker say when it has obeyed all orders before this one.
fn reports(workers: &[mpsc::UnboundedSender<Order>]) -> impl Future<Output = ()> + 'static {
    let (reports, answers): (Vec<_>, Vec<_>) = workers.iter().map(|_| oneshot::channel()).unzip();
    for (worker, report) in workers.iter().zip(reports) {
        // a worker that is gone has nothing to obey
        let _ = worker.send(Order(Command::Report(report)));
    }
    async move {
        for answer in answers {
            let _ = answer.await;
        }
    }
}

fn addresses(config: &ListenerConfig) -> impl Iterator<Item = &Address> {
    std::iter::once(&config.address).chain(&config.additional_addresses)
}

fn configured(config: &ListenerConfig) -> Vec<Option<SocketAddr>> {
    let socket = |address: &Address| if let Address::Socket(a) = address { Some(*a) } else { None };
    addresses(config).map(socket).collect()
}

/// Whether the sockets bound for one configuration serve the other as they are.
fn same_sockets(a: &ListenerConfig, b: &ListenerConfig) -> bool {
    let options = |c: &ListenerConfig| {
        (
            c.bind_to_port,
            c.transparent,
            c.freebind,
            c.reuse_port,
            c.ipv4_compat,
            c.tcp_backlog,
            c.tcp_fast_open_queue_length,
        )
    };
    options(a) == options(b) && addresses(a).eq(addresses(b))
}
