//! The upstream side of one worker: for each cluster it has used, balancer state and pools.
//!
//! Found by index, never by name. Belongs to one thread; nothing here is shared.

use super::cluster::Cluster;
use super::host::Host;
use super::lb::{Balancer, LbContext};
use super::manager::ClusterManager;
use super::pool::{HttpLease, Pool, PoolKey, Wanted};
use super::tcp::{self, TcpLease};
use super::{HttpOptions, UpstreamError, UpstreamErrorKind};
use crate::config::model::{ClusterDiscovery, UpstreamProtocol};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// The upstream side of one worker.
pub struct WorkerUpstream {
    _clusters: Arc<ClusterManager>,
    /// By slot id.
    state: RefCell<Vec<Option<Rc<WorkerCluster>>>>,
    /// A clock that is right to a second, read on the path of a request instead of the system's.
    clock: Rc<Cell<Instant>>,
}

/// What a worker keeps of one version of a cluster.
struct WorkerCluster {
    cluster: Arc<Cluster>,
    balancer: RefCell<Balancer>,
    original_dst: RefCell<OriginalDstCache>,
    /// By host id.
    hosts: RefCell<Vec<Option<HostPools>>>,
}

struct HostPools {
    host: Arc<Host>,
    /// How often the host had failed its health checks when these were made.
    failures: u32,
    pools: SmallVec<[Rc<Pool>; 1]>,
}

#[derive(Default)]
struct OriginalDstCache {
    last: Option<(SocketAddr, Arc<Host>)>,
    hosts: HashMap<SocketAddr, Arc<Host>>,
}

impl WorkerUpstream {
    pub fn new(clusters: Arc<ClusterManager>) -> Rc<WorkerUpstream> {
        let clock = Rc::new(Cell::new(Instant::now()));
        Rc::new(WorkerUpstream { _clusters: clusters, state: RefCell::default(), clock })
    }

    /// Picks an endpoint by the cluster's policy, health, priorities and panic rules.
    ///
    /// # Errors
    /// `NoHealthyUpstream`.
    pub fn choose_host(&self, cluster: &Arc<Cluster>, context: &LbContext<'_>) -> Result<Arc<Host>, UpstreamError> {
        let state = self.cluster(cluster);
        let host = match &cluster.config.discovery {
            ClusterDiscovery::OriginalDst { port_override, .. } => context.original_dst.and_then(|mut address| {
                if let Some(port) = port_override {
                    address.set_port(*port);
                }
                state.original_dst(address)
            }),
            _ => state.balancer.borrow_mut().choose(cluster, &cluster.endpoints(), context),
        };
        host.ok_or_else(|| {
            cluster.stats().upstream_cx_none_healthy.inc();
            UpstreamError::new(UpstreamErrorKind::NoHealthyUpstream)
        })
    }

    /// A connection to send one HTTP request on: an idle one, a shared HTTP/2 one, or a new one within the connect timeout
    /// and the circuit breakers. Counts the request as active until the lease, or the response body it turns into, is
    /// dropped. Dropping the future takes back the wait; a connection being opened for it goes to the pool.
    pub async fn http(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        options: &HttpOptions,
    ) -> Result<HttpLease, UpstreamError> {
        let wanted = match cluster.config.http.protocol {
            UpstreamProtocol::Http1 => Wanted::Http1,
            UpstreamProtocol::Http2 => Wanted::Http2,
            UpstreamProtocol::Auto => Wanted::Auto,
            UpstreamProtocol::Downstream if options.downstream_http2 => Wanted::Http2,
            UpstreamProtocol::Downstream => Wanted::Http1,
        };
        let pool = self.cluster(cluster).pool(host, wanted, options, &self.clock);
        pool.lease().await
    }

    /// A new connection for raw bytes.
    pub async fn tcp(&self, cluster: &Arc<Cluster>, host: &Arc<Host>) -> Result<TcpLease, UpstreamError> {
        tcp::open(cluster, host).await
    }

    /// Drops pools of clusters and hosts that are gone and idle connections past their time. Called about once a second.
    pub fn sweep(&self) {
        self.clock.set(Instant::now());
        for entry in self.state.borrow_mut().iter_mut() {
            let Some(state) = entry else { continue };
            if state.cluster.is_retired() {
                state.retire();
                *entry = None;
            } else {
                state.sweep();
            }
        }
    }

    /// The state of this version of the cluster. A version older than the one known (a request in flight kept it) gets
    /// state for the moment only.
    fn cluster(&self, cluster: &Arc<Cluster>) -> Rc<WorkerCluster> {
        let at = cluster.slot_id as usize;
        let mut all = self.state.borrow_mut();
        if let Some(Some(known)) = all.get(at) {
            if Arc::ptr_eq(&known.cluster, cluster) {
                return Rc::clone(known);
            }
            if known.cluster.version > cluster.version {
                return WorkerCluster::new(cluster);
            }
            known.retire();
        }
        if all.len() <= at {
            all.resize_with(at + 1, || None);
        }
        let state = WorkerCluster::new(cluster);
        all[at] = Some(Rc::clone(&state));
        state
    }
}

impl WorkerCluster {
    fn new(cluster: &Arc<Cluster>) -> Rc<WorkerCluster> {
        Rc::new(WorkerCluster {
            cluster: Arc::clone(cluster),
            balancer: RefCell::default(),
            original_dst: RefCell::default(),
            hosts: RefCell::default(),
        })
    }

    fn original_dst(&self, address: SocketAddr) -> Option<Arc<Host>> {
        let mut cache = self.original_dst.borrow_mut();
        if let Some((last, host)) = &cache.last
            && *last == address
            && !host.is_removed()
        {
            host.mark_used();
            return Some(Arc::clone(host));
        }
        let host = match cache.hosts.get(&address) {
            Some(host) if !host.is_removed() => {
                host.mark_used();
                Arc::clone(host)
            }
            _ => self.cluster.original_dst.as_ref()?.host(address)?,
        };
        cache.hosts.insert(address, Arc::clone(&host));
        cache.last = Some((address, Arc::clone(&host)));
        Some(host)
    }

    fn pool(&self, host: &Arc<Host>, wanted: Wanted, options: &HttpOptions, clock: &Rc<Cell<Instant>>) -> Rc<Pool> {
        let at = host.id as usize;
        let mut hosts = self.hosts.borrow_mut();
        if hosts.len() <= at {
            hosts.resize_with(at + 1, || None);
        }
        let entry = &mut hosts[at];
        if let Some(known) = entry
            && !Arc::ptr_eq(&known.host, host)
        {
            // the id was given to another host
            known.retire();
            *entry = None;
        }
        let known = entry.get_or_insert_with(|| HostPools {
            host: Arc::clone(host),
            failures: host.failures(),
            pools: SmallVec::new(),
        });
        if let Some(pool) = known.pools.iter().find(|p| p.key.is_for(wanted, options)) {
            return Rc::clone(pool);
        }
        let key = PoolKey { wanted, priority: options.priority, tls: options.tls.clone() };
        let pool = Pool::new(&self.cluster, host, key, clock);
        known.pools.push(Rc::clone(&pool));
        pool
    }

    fn sweep(&self) {
        if let (ClusterDiscovery::OriginalDst { cleanup_interval, .. }, Some(all)) =
            (&self.cluster.config.discovery, &self.cluster.original_dst)
        {
            all.clean(*cleanup_interval);
            let mut cache = self.original_dst.borrow_mut();
            cache.hosts.retain(|_, host| !host.is_removed());
            cache.last = None;
        }
        for entry in self.hosts.borrow_mut().iter_mut() {
            let Some(known) = entry else { continue };
            let failures = known.host.failures();
            if known.host.is_removed() || known.failures != failures {
                // new connections may do better, should load balancing in panic ask for some
                known.failures = failures;
                known.retire();
            } else {
                known.pools.retain(|pool| pool.sweep());
            }
            if known.pools.is_empty() {
                *entry = None;
            }
        }
    }

    fn retire(&self) {
        self.hosts.borrow_mut().drain(..).flatten().for_each(|mut known| known.retire());
    }
}

impl HostPools {
    /// Idle connections close now, busy ones when their requests end.
    fn retire(&mut self) {
        self.pools.drain(..).for_each(|pool| pool.retire());
    }
}
