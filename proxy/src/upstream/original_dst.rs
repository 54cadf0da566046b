//! Hosts of ORIGINAL_DST clusters: made when a connection was meant for an address nobody has gone to before, dropped
//! when unused for a whole clean-up interval. Shared by all workers; each caches what it uses. Bounded: clients choose the
//! addresses.

use super::host::{Host, HostFacts};
use crate::config::model::{Address, Endpoint, HealthStatus, Locality};
use crate::stats::{Counter, Scope};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Hosts of one cluster at most. A client that scans addresses makes one with each connection, and each costs some hundred
/// bytes until it has been unused for a clean-up interval; a proxy with more connections than this to different addresses
/// has run out of other things first.
const MAX_HOSTS: usize = 65_536;

/// How many hosts are looked at to find one that may go, when there is no room for a new one: the table is locked meanwhile.
const LOOK_AT: usize = 128;

pub(super) struct OriginalDstHosts {
    inner: Mutex<Inner>,
    max: usize,
    /// `original_dst_host_overflow`: how often the bound was hit. Not a stat of Envoy's, which has no bound.
    overflow: Counter,
}

#[derive(Default)]
struct Inner {
    hosts: HashMap<SocketAddr, Arc<Host>>,
    free: Vec<u32>,
    next: u32,
    cleaned: Option<Instant>,
}

impl OriginalDstHosts {
    /// `scope` is the cluster's.
    pub fn new(scope: &Scope) -> OriginalDstHosts {
        let overflow = scope.counter("original_dst_host_overflow");
        OriginalDstHosts { inner: Mutex::default(), max: MAX_HOSTS, overflow }
    }

    /// The host of this address. When the table is full, a host that nobody is connected to makes room; `None`: none did.
    pub fn host(&self, address: SocketAddr) -> Option<Arc<Host>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = inner.hosts.get(&address) {
            host.mark_used();
            return Some(Arc::clone(host));
        }
        if inner.hosts.len() >= self.max {
            self.overflow.inc();
            inner.make_room()?;
        }
        let id = inner.free.pop().unwrap_or_else(|| {
            inner.next += 1;
            inner.next - 1
        });
        let endpoint = Endpoint {
            address: Address::Socket(address),
            hostname: Box::default(),
            health: HealthStatus::Unknown,
            weight: 1,
            metadata: None,
            check: None,
        };
        let facts = HostFacts {
            locality: Arc::new(Locality::default()),
            priority: 0,
            weight: 1,
            health: HealthStatus::Unknown,
            metadata: None,
        };
        let host = Host::new(id, &endpoint, facts);
        inner.hosts.insert(address, Arc::clone(&host));
        Some(host)
    }

    pub fn all(&self) -> Vec<Arc<Host>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).hosts.values().cloned().collect()
    }

    /// Once per `interval`, drops the hosts that nobody has chosen since the last time and nobody is connected to.
    pub fn clean(&self, interval: Duration) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.cleaned {
            Some(last) if last.elapsed() < interval => return,
            None => {
                inner.cleaned = Some(Instant::now());
                return;
            }
            Some(_) => inner.cleaned = Some(Instant::now()),
        }
        let Inner { hosts, free, .. } = &mut *inner;
        hosts.retain(|_, host| {
            let keep = host.take_used() || host.stats.cx_active.load(Ordering::Relaxed) > 0;
            if !keep {
                host.remove();
                free.push(host.id);
            }
            keep
        });
    }
}

impl Inner {
    fn make_room(&mut self) -> Option<()> {
        let unconnected = |host: &Host| host.stats.cx_active.load(Ordering::Relaxed) == 0;
        let address =
            self.hosts.iter().take(LOOK_AT).find(|(_, host)| unconnected(host)).map(|(address, _)| *address)?;
        let host = self.hosts.remove(&address)?;
        host.remove();
        self.free.push(host.id);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::StatsConfig;
    use crate::stats::Registry;

    fn table() -> OriginalDstHosts {
        OriginalDstHosts::new(&Registry::new(StatsConfig::default()).scope("cluster.c."))
    }

    #[test]
    fn a_full_table_drops_a_host_without_connections_or_else_takes_no_more() {
        let hosts = OriginalDstHosts { max: 2, ..table() };
        let at = |n: u8| hosts.host(SocketAddr::from(([10, 0, 0, n], 80)));
        let (first, second) = (at(1).unwrap(), at(2).unwrap());
        first.stats.cx_active.store(1, Ordering::Relaxed);
        let third = at(3).unwrap();
        assert!(second.is_removed() && !first.is_removed() && third.id == second.id);
        third.stats.cx_active.store(1, Ordering::Relaxed);
        assert!(at(4).is_none() && Arc::ptr_eq(&at(1).unwrap(), &first));
        assert_eq!((hosts.overflow.value(), hosts.all().len()), (2, 2));
    }

    #[test]
    fn unused_hosts_go_after_a_whole_interval() {
        let hosts = table();
        let address = "10.0.0.1:80".parse().unwrap();
        let host = hosts.host(address).unwrap();
        assert!(Arc::ptr_eq(&host, &hosts.host(address).unwrap()));
        hosts.clean(Duration::ZERO);
        hosts.clean(Duration::ZERO);
        assert!(!host.is_removed(), "it was used in the interval that just ended");
        hosts.clean(Duration::from_secs(9_223_372_035));
        assert!(!host.is_removed());
        host.stats.cx_active.store(1, Ordering::Relaxed);
        hosts.clean(Duration::ZERO);
        assert!(!host.is_removed(), "it has a connection");
        host.stats.cx_active.store(0, Ordering::Relaxed);
        hosts.clean(Duration::ZERO);
        assert!(host.is_removed() && hosts.all().is_empty());
        assert_eq!(hosts.host("10.0.0.2:80".parse().unwrap()).unwrap().id, host.id);
    }
}
