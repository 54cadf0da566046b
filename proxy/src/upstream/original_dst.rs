//! Hosts of ORIGINAL_DST clusters: made when a connection was meant for an address nobody has gone to before, dropped
//! when unused for a whole clean-up interval. Shared by all workers; each caches what it uses.

use super::host::{Host, HostFacts};
use crate::config::model::{Address, Endpoint, HealthStatus, Locality};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct OriginalDstHosts(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    hosts: HashMap<SocketAddr, Arc<Host>>,
    free: Vec<u32>,
    next: u32,
    cleaned: Option<Instant>,
}

impl OriginalDstHosts {
    /// The host of this address.
    pub fn host(&self, address: SocketAddr) -> Arc<Host> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = inner.hosts.get(&address) {
            host.mark_used();
            return Arc::clone(host);
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
        host
    }

    pub fn all(&self) -> Vec<Arc<Host>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hosts.values().cloned().collect()
    }

    /// Once per `interval`, drops the hosts that nobody has chosen since the last time and nobody is connected to.
    pub fn clean(&self, interval: Duration) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_hosts_go_after_a_whole_interval() {
        let hosts = OriginalDstHosts::default();
        let address = "10.0.0.1:80".parse().unwrap();
        let host = hosts.host(address);
        assert!(Arc::ptr_eq(&host, &hosts.host(address)));
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
        assert_eq!(hosts.host("10.0.0.2:80".parse().unwrap()).id, host.id);
    }
}
