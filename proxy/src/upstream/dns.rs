//! Endpoints by name: STRICT_DNS and LOGICAL_DNS clusters, resolved again and again on the control thread.
//!
//! A name that cannot be resolved keeps the addresses it had. Knows nothing of how endpoints are used.

use super::cluster::Cluster;
use super::manager::ClusterManager;
use crate::config::model::{
    Address, ClusterDiscovery, DnsConfig, DnsFamily, DnsLocality, Endpoint, LoadAssignment, LocalityEndpoints,
};
use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// A resolver for each rule of address families, made on first use. Reads the system's resolv.conf and hosts file.
#[derive(Default)]
pub(super) struct Resolvers([OnceLock<TokioResolver>; 5]);

/// Addresses and how long they may be kept.
type Answer = Result<(Vec<IpAddr>, Duration), String>;

impl Resolvers {
    async fn resolve(&self, name: &str, family: DnsFamily) -> Answer {
        if let Ok(address) = name.parse() {
            return Ok((vec![address], Duration::MAX));
        }
        let found = self.of(family)?.lookup_ip(name).await.map_err(|e| e.to_string())?;
        let ttl = found.valid_until().saturating_duration_since(Instant::now());
        Ok((found.iter().collect(), ttl))
    }

    fn of(&self, family: DnsFamily) -> Result<&TokioResolver, String> {
        let (cell, strategy) = match family {
            DnsFamily::Auto => (&self.0[0], LookupIpStrategy::Ipv6thenIpv4),
            DnsFamily::V4Only => (&self.0[1], LookupIpStrategy::Ipv4Only),
            DnsFamily::V6Only => (&self.0[2], LookupIpStrategy::Ipv6Only),
            DnsFamily::V4Preferred => (&self.0[3], LookupIpStrategy::Ipv4thenIpv6),
            DnsFamily::All => (&self.0[4], LookupIpStrategy::Ipv4AndIpv6),
        };
        if let Some(resolver) = cell.get() {
            return Ok(resolver);
        }
        let mut builder = TokioResolver::builder_tokio().map_err(|e| format!("cannot read DNS settings: {e}"))?;
        let options = builder.options_mut();
        options.ip_strategy = strategy;
        // the refresh rate says how often to ask, not a cache below it
        options.cache_size = 0;
        let resolver = builder.build().map_err(|e| format!("cannot start DNS: {e}"))?;
        Ok(cell.get_or_init(|| resolver))
    }
}

/// What is known of one name.
struct Name {
    locality: usize,
    host: Arc<str>,
    port: u16,
    endpoint: Endpoint,
    addresses: Vec<IpAddr>,
}

impl Name {
    /// Begins with the addresses that the version before has for this name: until it is resolved again nothing better is
    /// known.
    fn know_from(&mut self, running: &Cluster) {
        let endpoints = running.endpoints();
        let own = endpoints.hosts().filter(|host| *host.hostname == *self.hostname());
        let known = own.filter_map(|host| match &host.address.0 {
            Address::Socket(address) if address.port() == self.port => Some(address.ip()),
            _ => None,
        });
        self.addresses = known.collect();
    }

    fn hostname(&self) -> &str {
        if self.endpoint.hostname.is_empty() { &self.host } else { &self.endpoint.hostname }
    }
}

/// Resolves, publishes the cluster after the first answers (or failures), and goes on for ever.
pub(super) async fn follow(manager: Weak<ClusterManager>, cluster: Arc<Cluster>) {
    let (localities, dns, first_only) = match &cluster.config.discovery {
        ClusterDiscovery::StrictDns { endpoints, dns } => (endpoints, dns, false),
        ClusterDiscovery::LogicalDns { endpoints, dns } => (endpoints, dns, true),
        _ => return,
    };
    let mut names = names(localities);
    if let Some(running) = manager.upgrade().and_then(|manager| manager.running(&cluster.config.name)) {
        names.iter_mut().for_each(|name| name.know_from(&running));
    }
    let mut first = true;
    loop {
        let Some(manager) = manager.upgrade() else { return };
        let wait = refresh(manager.resolvers(), &cluster, &mut names, dns).await;
        manager.resolved(&cluster, &assignment(&cluster, localities, &names, first_only), first);
        first = false;
        drop(manager);
        tokio::time::sleep(wait).await;
    }
}

fn names(localities: &[DnsLocality]) -> Vec<Name> {
    let of_locality = |(locality, l): (usize, &DnsLocality)| {
        let name = move |(host, port, endpoint): &(Arc<str>, u16, Endpoint)| Name {
            locality,
            host: Arc::clone(host),
            port: *port,
            endpoint: endpoint.clone(),
            addresses: Vec::new(),
        };
        l.names.iter().map(name).collect::<Vec<_>>()
    };
    localities.iter().enumerate().flat_map(of_locality).collect()
}

/// Asks for every name once; returns when to ask again.
async fn refresh(resolvers: &Resolvers, cluster: &Cluster, names: &mut [Name], dns: &DnsConfig) -> Duration {
    let stats = cluster.update_stats();
    let answers = join_all(names.iter().map(|name| {
        stats.update_attempt.inc();
        resolvers.resolve(&name.host, dns.family)
    }))
    .await;
    let mut wait = if dns.respect_ttl { Duration::MAX } else { dns.refresh_rate };
    for (name, answer) in names.iter_mut().zip(answers) {
        match answer {
            Ok((addresses, ttl)) => {
                stats.update_success.inc();
                if addresses.is_empty() {
                    stats.rare().update_empty.inc();
                }
                if dns.respect_ttl && ttl < wait {
                    wait = ttl;
                }
                name.addresses = addresses;
            }
            Err(error) => {
                stats.rare().update_failure.inc();
                tracing::debug!(cluster = &*cluster.config.name, name = &*name.host, %error, "DNS resolution failed");
                wait = wait.min(dns.refresh_rate);
            }
        }
    }
    // an answer may be kept for no time at all: not asking more often than once a second protects the server
    let wait = if wait == Duration::MAX { dns.refresh_rate } else { wait };
    wait.max(Duration::from_secs(1).min(dns.refresh_rate))
}

/// The endpoints that the names stand for now.
fn assignment(cluster: &Cluster, localities: &[DnsLocality], names: &[Name], first_only: bool) -> LoadAssignment {
    let endpoints_of = |name: &Name| -> Vec<Endpoint> {
        let endpoint = |ip: IpAddr| Endpoint {
            address: Address::Socket(SocketAddr::new(ip, name.port)),
            hostname: name.hostname().into(),
            ..name.endpoint.clone()
        };
        if !first_only {
            return name.addresses.iter().copied().map(endpoint).collect();
        }
        // servers rotate their answers: the address in use stays while it is among them
        let current = cluster.endpoints().hosts().find_map(|host| match &host.address.0 {
            Address::Socket(a) if name.addresses.contains(&a.ip()) => Some(a.ip()),
            _ => None,
        });
        current.or(name.addresses.first().copied()).map(endpoint).into_iter().collect()
    };
    let localities = localities.iter().enumerate().map(|(at, l)| LocalityEndpoints {
        locality: l.locality.clone(),
        priority: l.priority,
        endpoints: names.iter().filter(|n| n.locality == at).flat_map(endpoints_of).collect(),
    });
    LoadAssignment {
        cluster_name: Arc::clone(&cluster.config.name),
        localities: localities.collect(),
        overprovisioning_factor: 140,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::testing::{cluster_with, endpoint};

    fn dns(names: &[(&str, u16)]) -> Vec<DnsLocality> {
        let names = names.iter().map(|(name, port)| (Arc::from(*name), *port, endpoint(*port))).collect();
        vec![DnsLocality { locality: Default::default(), priority: 0, names }]
    }

    fn config() -> DnsConfig {
        DnsConfig { refresh_rate: Duration::from_secs(5), respect_ttl: false, family: DnsFamily::V4Only }
    }

    #[tokio::test]
    async fn addresses_need_no_server_and_localhost_is_known() {
        let localities = dns(&[("127.0.0.9", 80), ("localhost", 81)]);
        let cluster = cluster_with(LoadAssignment::default(), |_| {});
        let mut known = names(&localities);
        let wait = refresh(&Resolvers::default(), &cluster, &mut known, &config()).await;
        assert_eq!(wait, Duration::from_secs(5));
        let made = assignment(&cluster, &localities, &known, false);
        let shown: Vec<_> =
            made.localities[0].endpoints.iter().map(|e| (e.address.to_string(), &*e.hostname)).collect();
        assert_eq!(shown, [("127.0.0.9:80".to_owned(), "127.0.0.9"), ("127.0.0.1:81".to_owned(), "localhost")]);
    }

    #[tokio::test]
    async fn a_changed_cluster_keeps_the_addresses_of_names_that_do_not_resolve() {
        let localities = dns(&[("gone.invalid", 80), ("gone.invalid", 81), ("other.invalid", 80)]);
        let running = cluster_with(LoadAssignment::default(), |_| {});
        let mut known = names(&localities);
        known[0].addresses = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        running.apply(&assignment(&running, &localities, &known, false));

        let next = cluster_with(LoadAssignment::default(), |_| {});
        let mut known = names(&localities);
        known.iter_mut().for_each(|name| name.know_from(&running));
        // whatever the system's resolver says of a name that cannot exist, it is no address
        refresh(&Resolvers::default(), &next, &mut known, &config()).await;
        let made = assignment(&next, &localities, &known, false);
        let shown: Vec<_> = made.localities[0].endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(shown, ["10.0.0.1:80", "10.0.0.2:80"]);
    }

    #[test]
    fn a_logical_name_keeps_its_address_while_the_server_still_gives_it() {
        let localities = dns(&[("x.example", 80)]);
        let cluster = cluster_with(LoadAssignment::default(), |_| {});
        let mut known = names(&localities);
        let mut shown = |ips: &[&str]| {
            known[0].addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let made = assignment(&cluster, &localities, &known, true);
            cluster.apply(&made);
            made.localities[0].endpoints.iter().map(|e| e.address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(shown(&["10.0.0.1", "10.0.0.2"]), ["10.0.0.1:80"]);
        assert_eq!(shown(&["10.0.0.2", "10.0.0.1"]), ["10.0.0.1:80"]);
        assert_eq!(shown(&["10.0.0.2"]), ["10.0.0.2:80"]);
    }
}
