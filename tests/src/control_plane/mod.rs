//! An aggregated discovery server for tests: state of the world and delta on one address, TCP or Unix socket.
//!
//! Holds a map name -> message per type and pushes every change to the streams that asked for it, in istiod's order
//! (CDS, EDS, LDS, RDS, SDS, others). Records every request. Misbehaves on demand: withholds a type, reorders, delays,
//! sends crafted responses, cuts streams, refuses connections, dies and comes back on the same address.

mod server;
mod state;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::{Message, Name};
use tokio::sync::watch;
use xds_protos::pb::envoy::config::core::v3::Node;
use xds_protos::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use xds_protos::pb::google::{protobuf::Any, rpc::Status as Refusal};

use crate::runtime::OwnRuntime;
use state::{Answer, State};

/// Type URL of clusters.
pub const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of the configuration of filters.
pub const ECDS: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// Type URL of endpoints.
pub const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of listeners.
pub const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of route configurations.
pub const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Type URL of secrets.
pub const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// How long [`ControlPlane::wait_for`] and its kin wait.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where the control plane listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A request of either wire mode.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// State of the world.
    Sotw(DiscoveryRequest),
    /// Incremental.
    Delta(DeltaDiscoveryRequest),
}

impl Request {
    /// The type asked for.
    pub fn type_url(&self) -> &str {
        match self {
            Self::Sotw(r) => &r.type_url,
            Self::Delta(r) => &r.type_url,
        }
    }

    /// The nonce of the response this answers; empty for a spontaneous request.
    pub fn nonce(&self) -> &str {
        match self {
            Self::Sotw(r) => &r.response_nonce,
            Self::Delta(r) => &r.response_nonce,
        }
    }

    /// The node, on requests that carry one.
    pub fn node(&self) -> Option<&Node> {
        match self {
            Self::Sotw(r) => r.node.as_ref(),
            Self::Delta(r) => r.node.as_ref(),
        }
    }

    /// The refusal of a NACK.
    pub fn error(&self) -> Option<&Refusal> {
        match self {
            Self::Sotw(r) => r.error_detail.as_ref(),
            Self::Delta(r) => r.error_detail.as_ref(),
        }
    }

    /// The names asked for: all of them (state of the world), or those added (delta).
    pub fn names(&self) -> &[String] {
        match self {
            Self::Sotw(r) => &r.resource_names,
            Self::Delta(r) => &r.resource_names_subscribe,
        }
    }

    /// Whether it accepts a response.
    pub fn is_ack(&self) -> bool {
        !self.nonce().is_empty() && self.error().is_none()
    }

    /// Whether it refuses a response.
    pub fn is_nack(&self) -> bool {
        self.error().is_some()
    }

    /// The delta form, if it is one.
    pub fn delta(&self) -> Option<&DeltaDiscoveryRequest> {
        match self {
            Self::Delta(r) => Some(r),
            Self::Sotw(_) => None,
        }
    }
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The stream it came on; streams count from 1 over the life of the control plane.
    pub stream: u64,
    /// When.
    pub at: Instant,
    /// What.
    pub request: Request,
}

/// A response as it was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The stream.
    pub stream: u64,
    /// When it was due; a delay comes on top.
    pub at: Instant,
    /// The type.
    pub type_url: String,
    /// Its nonce.
    pub nonce: String,
    /// Resource names, `-name` for a removed one (delta), or how many there were (state of the world).
    pub names: Vec<String>,
}

/// What was waited for did not come.
#[derive(Debug, Clone)]
pub struct TimedOut(String);

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TimedOut {}

/// The order in which types are pushed when several are due.
#[derive(Debug, Clone)]
pub struct Order(Vec<String>);

impl Default for Order {
    fn default() -> Self {
        Self::of(&[CDS, EDS, LDS, RDS, SDS])
    }
}

impl Order {
    /// The given types first, in this order; then all others.
    pub fn of(type_urls: &[&str]) -> Self {
        Self(type_urls.iter().map(|t| (*t).to_owned()).collect())
    }

    fn position(&self, type_url: &str) -> usize {
        self.0.iter().position(|t| t == type_url).unwrap_or(self.0.len())
    }
}

/// A change of several resources that is pushed as one.
pub struct Batch<'a>(&'a mut State);

impl Batch<'_> {
    /// Sets a resource; one that equals the present one changes nothing.
    pub fn set<M: Message + Name>(&mut self, name: &str, message: &M) -> &mut Self {
        let any = Any { type_url: M::type_url(), value: message.encode_to_vec() };
        self.0.set(&M::type_url(), name, any);
        self
    }

    /// Removes a resource.
    pub fn remove(&mut self, type_url: &str, name: &str) -> &mut Self {
        if let Some(names) = self.0.store.get_mut(type_url) {
            names.remove(name);
        }
        self
    }
}

/// An ADS server on its own thread. Dropping it is the death of its process.
#[derive(Debug)]
pub struct ControlPlane {
    shared: Arc<Shared>,
    address: Address,
    running: Mutex<Option<OwnRuntime>>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts every change of the state; streams and waiters listen.
    changes: watch::Sender<u64>,
    /// Counts [`ControlPlane::cut_streams`].
    cuts: watch::Sender<u64>,
    refuse: std::sync::atomic::AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl ControlPlane {
    /// Listens on a free TCP port of 127.0.0.1.
    pub fn tcp() -> io::Result<Self> {
        Self::listen(Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))
    }

    /// Listens on a Unix socket; a file in its place is replaced.
    pub fn unix(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::listen(Address::Unix(path.into()))
    }

    /// Listens on `address`.
    pub fn listen(address: Address) -> io::Result<Self> {
        Self::listen_with(address, |_| ())
    }

    /// Listens on `address` and holds these resources from its first moment: a client that comes back to a restarted
    /// control plane must not find it empty, and take that for the removal of everything.
    pub fn listen_with(address: Address, resources: impl FnOnce(&mut Batch<'_>)) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
            refuse: false.into(),
        });
        resources(&mut Batch(&mut shared.lock()));
        let (runtime, address) = server::start(&shared, &address)?;
        Ok(Self { shared, address, running: Mutex::new(Some(runtime)) })
    }

    /// Where it listens; stays the same over [`ControlPlane::stop`] and [`ControlPlane::restart`].
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The TCP address.
    ///
    /// # Panics
    /// When it listens on a Unix socket.
    pub fn socket_addr(&self) -> SocketAddr {
        match self.address {
            Address::Tcp(address) => address,
            Address::Unix(_) => panic!("this control plane listens on a Unix socket"),
        }
    }

    /// Sets a resource and pushes it. One that equals the present one pushes nothing ([`ControlPlane::push_again`]).
    pub fn set<M: Message + Name>(&self, name: &str, message: &M) {
        self.batch(|batch| {
            batch.set(name, message);
        });
    }

    /// Sets a resource of any type, well-formed or not.
    pub fn set_any(&self, type_url: &str, name: &str, any: Any) {
        self.shared.lock().set(type_url, name, any);
        self.shared.changed();
    }

    /// Removes a resource and pushes that.
    pub fn remove(&self, type_url: &str, name: &str) {
        self.batch(|batch| {
            batch.remove(type_url, name);
        });
    }

    /// Several changes, pushed as one.
    pub fn batch(&self, change: impl FnOnce(&mut Batch<'_>)) {
        change(&mut Batch(&mut self.shared.lock()));
        self.shared.changed();
    }

    /// Pushes all resources of a type once more under new versions, unchanged.
    pub fn push_again(&self, type_url: &str) {
        let mut state = self.shared.lock();
        state.last_version += 1;
        let version = state.last_version;
        for (held, _) in state.store.entry(type_url.to_owned()).or_default().values_mut() {
            *held = version;
        }
        drop(state);
        self.shared.changed();
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.lock().requests.clone()
    }

    /// Every response so far.
    pub fn sent(&self) -> Vec<Sent> {
        self.shared.lock().sent.clone()
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.shared.lock().streams.len()
    }

    /// Rules of the protocol that clients broke, as istiod would log them.
    pub fn violations(&self) -> Vec<String> {
        self.shared.lock().violations.clone()
    }

    /// The NACKs so far: type and error text.
    pub fn nacks(&self) -> Vec<(String, String)> {
        let state = self.shared.lock();
        let refused = state.requests.iter().filter_map(|seen| {
            let error = seen.request.error()?;
            Some((seen.request.type_url().to_owned(), error.message.clone()))
        });
        refused.collect()
    }

    /// The first request, past or future, that fits; `what` names it in the error.
    ///
    /// # Errors
    /// When none came within [`PATIENCE`]; the error lists the last requests.
    pub async fn wait_for(&self, what: &str, fits: impl Fn(&Seen) -> bool) -> Result<Seen, TimedOut> {
        self.wait(what, |state| state.requests.iter().find(|seen| fits(seen)).cloned()).await
    }

    /// Waits until some stream watches `type_url` and every stream that does has answered everything due to it.
    /// A NACK is an answer too.
    ///
    /// # Errors
    /// As [`ControlPlane::wait_for`].
    pub async fn wait_settled(&self, type_url: &str) -> Result<(), TimedOut> {
        self.wait(&format!("all answers for {type_url}"), |state| state.settled(type_url).then_some(())).await
    }

    async fn wait<T>(&self, what: &str, found: impl Fn(&State) -> Option<T>) -> Result<T, TimedOut> {
        let mut changes = self.shared.changes.subscribe();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            changes.borrow_and_update();
            if let Some(found) = found(&self.shared.lock()) {
                return Ok(found);
            }
            // The sender lives in `self`, so only time can end this.
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(self.timed_out(what));
            }
        }
    }

    fn timed_out(&self, what: &str) -> TimedOut {
        let state = self.shared.lock();
        let mut text =
            format!("waited {PATIENCE:?} in vain for {what}; {} requests came, the last:", state.requests.len());
        for seen in state.requests.iter().rev().take(12).rev() {
            let r = &seen.request;
            let error = r.error().map_or("", |e| e.message.as_str());
            let line = format!(
                "\n  stream {} {} nonce '{}' names {:?} {error}",
                seen.stream,
                r.type_url(),
                r.nonce(),
                r.names()
            );
            text.push_str(&line);
        }
        TimedOut(text)
    }

    /// Sends nothing of this type until [`ControlPlane::release`].
    pub fn withhold(&self, type_url: &str) {
        self.shared.lock().withheld.insert(type_url.to_owned());
    }

    /// Sends this type again, what is due at once.
    pub fn release(&self, type_url: &str) {
        self.shared.lock().withheld.remove(type_url);
        self.shared.changed();
    }

    /// Pushes in another order than istiod's.
    pub fn reorder(&self, order: Order) {
        self.shared.lock().order = order;
    }

    /// Waits this long before every response.
    pub fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Sends a crafted response to every state-of-the-world stream; an empty nonce is filled in.
    pub fn send_raw_sotw(&self, response: &DiscoveryResponse) {
        self.send_raw(&Answer::Sotw(response.clone()));
    }

    /// Sends a crafted response to every delta stream; an empty nonce is filled in.
    pub fn send_raw_delta(&self, response: &DeltaDiscoveryResponse) {
        self.send_raw(&Answer::Delta(response.clone()));
    }

    fn send_raw(&self, answer: &Answer) {
        for stream in self.shared.lock().streams.values_mut() {
            stream.raw.push(answer.clone());
        }
        self.shared.changed();
    }

    /// Ends every open stream with `UNAVAILABLE`; connections stay.
    pub fn cut_streams(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// While true, new connections are accepted and closed at once. Open ones stay.
    pub fn refuse_connections(&self, refuse: bool) {
        self.shared.refuse.store(refuse, std::sync::atomic::Ordering::Relaxed);
    }

    /// Dies: listener, connections and streams close at once. What it holds stays for [`ControlPlane::restart`].
    pub fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(running);
        self.shared.lock().streams.clear();
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Comes back on the same address with the resources it held.
    ///
    /// # Errors
    /// When the address cannot be bound again.
    pub fn restart(&self) -> io::Result<()> {
        self.stop();
        let (runtime, _) = server::start(&self.shared, &self.address)?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
