//! Load balancers: which host of a set gets the next request.
//!
//! State belongs to one worker and one generation of endpoints. A balancer knows hosts, weights and active requests;
//! nothing of connections.

mod edf;
mod least_request;
mod random;
mod round_robin;

use super::cluster::Cluster;
use super::endpoints::{EndpointSet, Part};
use super::host::Host;
use crate::config::model::LbPolicy;
use std::net::SocketAddr;
use std::sync::Arc;

/// What the balancer may want to know of a request.
#[derive(Default)]
pub struct LbContext<'a> {
    pub hash: Option<u64>,
    pub original_dst: Option<SocketAddr>,
    /// Hosts already tried, to be avoided if there is another.
    pub avoid: &'a [Arc<Host>],
    /// How often to pick, at most, while a host to be avoided comes up; 0 counts as 1.
    pub picks: u32,
}

/// One worker's balancer of one cluster.
#[derive(Default)]
pub(super) struct Balancer {
    /// Of the set that `schedules` was made for.
    generation: u64,
    /// One per share of the set.
    schedules: Vec<Schedule>,
}

enum Schedule {
    RoundRobin(round_robin::RoundRobin),
    LeastRequest(least_request::LeastRequest),
    Random,
}

impl Balancer {
    /// The next host, or none when there is nowhere to go.
    pub fn choose(&mut self, cluster: &Cluster, set: &EndpointSet, context: &LbContext<'_>) -> Option<Arc<Host>> {
        if self.generation != set.generation {
            self.rebuild(&cluster.config.lb, set);
        }
        let mut chosen = None;
        for _ in 0..context.picks.max(1) {
            let (at, share) = pick_share(set)?;
            let hosts = set.priorities.get(share.priority)?.part(share.part);
            if share.part == Part::All {
                cluster.stats().lb_healthy_panic.inc();
            }
            let index = match (hosts.len(), self.schedules.get_mut(at)?) {
                (0, _) => return None,
                (1, _) => 0,
                (_, Schedule::RoundRobin(s)) => s.next(hosts),
                (_, Schedule::LeastRequest(s)) => s.next(hosts),
                (_, Schedule::Random) => random::next(hosts),
            };
            let host = hosts.get(index)?;
            let avoided = context.avoid.iter().any(|a| Arc::ptr_eq(a, host));
            chosen = Some(Arc::clone(host));
            if !avoided {
                break;
            }
        }
        chosen
    }

    fn rebuild(&mut self, policy: &LbPolicy, set: &EndpointSet) {
        self.generation = set.generation;
        self.schedules = set
            .shares
            .iter()
            .map(|share| {
                let hosts = set.priorities.get(share.priority).map_or(&[][..], |p| p.part(share.part));
                match policy {
                    LbPolicy::RoundRobin => Schedule::RoundRobin(round_robin::RoundRobin::new(hosts)),
                    LbPolicy::LeastRequest { choice_count, active_request_bias } => Schedule::LeastRequest(
                        least_request::LeastRequest::new(hosts, *choice_count, *active_request_bias),
                    ),
                    LbPolicy::Random | LbPolicy::ClusterProvided => Schedule::Random,
                }
            })
            .collect();
    }
}

/// Draws the part of the hosts that gets this request.
fn pick_share(set: &EndpointSet) -> Option<(usize, super::endpoints::Share)> {
    if let [only] = &*set.shares {
        return Some((0, *only));
    }
    let mut point = fastrand::u32(0..100);
    for (at, share) in set.shares.iter().enumerate() {
        match point.checked_sub(share.percent) {
            Some(rest) => point = rest,
            None => return Some((at, *share)),
        }
    }
    None
}

/// The weights of hosts; `None` when they are all equal.
fn unequal_weights(hosts: &[Arc<Host>]) -> Option<Box<[f64]>> {
    let weights: Box<[f64]> = hosts.iter().map(|h| f64::from(h.facts().weight)).collect();
    let first = weights.first().copied()?;
    weights.iter().any(|w| *w != first).then_some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::HealthStatus;
    use crate::upstream::testing::{assignment, cluster_with, endpoint};
    use std::collections::BTreeMap;
    use std::sync::atomic::Ordering;

    fn counts(policy: LbPolicy, weights: &[u32], picks: usize) -> Vec<usize> {
        let endpoints = weights.iter().zip(1u16..).map(|(w, port)| {
            let mut e = endpoint(port);
            e.weight = *w;
            e
        });
        let cluster = cluster_with(assignment(vec![(0, endpoints.collect())]), |c| c.lb = policy);
        let set = cluster.endpoints();
        let mut balancer = Balancer::default();
        let mut seen: BTreeMap<String, usize> = set.hosts().map(|h| (h.address.to_string(), 0)).collect();
        for _ in 0..picks {
            let host = balancer.choose(&cluster, &set, &LbContext::default()).unwrap();
            *seen.get_mut(&host.address.to_string()).unwrap() += 1;
        }
        seen.into_values().collect()
    }

    #[test]
    fn round_robin_gives_every_host_its_turn() {
        assert_eq!(counts(LbPolicy::RoundRobin, &[1, 1, 1], 300), [100, 100, 100]);
    }

    #[test]
    fn round_robin_follows_weights() {
        let seen = counts(LbPolicy::RoundRobin, &[9, 1], 1000);
        assert!((899..=901).contains(&seen[0]), "{seen:?}");
    }

    #[test]
    fn least_request_without_load_follows_weights() {
        let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
        let seen = counts(policy.clone(), &[3, 1], 1000);
        assert!((745..=755).contains(&seen[0]), "{seen:?}");
        let seen = counts(policy, &[1, 1], 2000);
        assert!(seen.iter().all(|n| (800..=1200).contains(n)), "{seen:?}");
    }

    #[test]
    fn random_reaches_all() {
        assert!(counts(LbPolicy::Random, &[1, 1, 1], 300).iter().all(|n| *n > 40));
    }

    #[test]
    fn least_request_avoids_the_busy() {
        for weights in [[1, 1], [1, 2]] {
            let mut endpoints = vec![endpoint(1), endpoint(2)];
            endpoints[1].weight = weights[1];
            let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
            let cluster = cluster_with(assignment(vec![(0, endpoints)]), |c| c.lb = policy);
            let set = cluster.endpoints();
            let hosts: Vec<_> = set.hosts().cloned().collect();
            hosts[1].stats.rq_active.store(1000, Ordering::Relaxed);
            let mut balancer = Balancer::default();
            let busy = (0..1000)
                .filter(|_| {
                    let host = balancer.choose(&cluster, &set, &LbContext::default()).unwrap();
                    Arc::ptr_eq(&host, &hosts[1])
                })
                .count();
            // two random choices are the same host half of the time at most
            assert!(busy < 350, "{busy}");
        }
    }

    #[test]
    fn a_tried_host_is_avoided_while_there_is_another() {
        let cluster = cluster_with(assignment(vec![(0, vec![endpoint(1), endpoint(2)])]), |_| {});
        let set = cluster.endpoints();
        let hosts: Vec<_> = set.hosts().cloned().collect();
        let mut balancer = Balancer::default();
        for _ in 0..10 {
            let context = LbContext { avoid: &hosts[..1], picks: 5, ..LbContext::default() };
            assert!(Arc::ptr_eq(&balancer.choose(&cluster, &set, &context).unwrap(), &hosts[1]));
        }
        let once = LbContext { avoid: &hosts[..1], picks: 1, ..LbContext::default() };
        assert!((0..2).any(|_| Arc::ptr_eq(&balancer.choose(&cluster, &set, &once).unwrap(), &hosts[0])));
        let context = LbContext { avoid: &hosts, picks: 5, ..LbContext::default() };
        assert!(balancer.choose(&cluster, &set, &context).is_some());
    }

    #[test]
    fn panic_is_counted() {
        let mut sick = endpoint(1);
        sick.health = HealthStatus::Unhealthy;
        let cluster = cluster_with(assignment(vec![(0, vec![sick])]), |_| {});
        let set = cluster.endpoints();
        assert!(Balancer::default().choose(&cluster, &set, &LbContext::default()).is_some());
        assert_eq!(cluster.stats().lb_healthy_panic.value(), 1);
    }

    #[test]
    fn no_hosts_no_choice() {
        let cluster = cluster_with(assignment(vec![]), |_| {});
        assert!(Balancer::default().choose(&cluster, &cluster.endpoints(), &LbContext::default()).is_none());
    }
}
