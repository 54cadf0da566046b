//! The endpoints of a cluster at one moment: hosts by priority and health, and how load spreads over priorities.
//!
//! A set never changes; an update builds the next one from the last, keeping hosts by address. What a balancer picks from
//! is computed here, once per update. Source of the formulas: Envoy's "Priority levels", "Degraded endpoints" and "Panic
//! threshold" pages.

use super::health::ActiveFlags;
use super::host::{Health, Host, HostFacts};
use crate::config::model::{Address, LoadAssignment};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// All endpoints of a cluster. `generation` differs between any two sets of a cluster.
pub struct EndpointSet {
    pub generation: u64,
    pub priorities: Box<[PriorityHosts]>,
    /// Where load goes; shares add up to 100. Empty: nowhere.
    pub(super) shares: Box<[Share]>,
    checks: Option<Checks>,
    /// Percent, of the assignment.
    overprovisioning_factor: u32,
    panic_threshold: f64,
}

/// What active health checks mean for the endpoints of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checks {
    /// A host that discovery takes away stays while it passes.
    pub keep_passing: bool,
    /// A host that was never checked does not count.
    pub ignore_unchecked: bool,
}

/// Hosts of one priority: healthy ones first, then degraded, then unhealthy, each in the order of configuration.
#[derive(Default)]
pub struct PriorityHosts {
    hosts: Box<[Arc<Host>]>,
    healthy: usize,
    degraded: usize,
    /// Hosts that do not count when the load is spread.
    excluded: usize,
}

/// A part of the hosts that gets a share of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub priority: usize,
    pub part: Part,
    pub percent: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Healthy,
    Degraded,
    /// Panic: health is ignored.
    All,
}

impl PriorityHosts {
    fn new(hosts: Vec<Arc<Host>>) -> PriorityHosts {
        let mut hosts: Vec<(Health, Arc<Host>)> = hosts.into_iter().map(|h| (h.health(), h)).collect();
        hosts.sort_by_key(|(health, _)| *health);
        let healthy = hosts.iter().filter(|(h, _)| *h == Health::Healthy).count();
        let degraded = hosts.iter().filter(|(h, _)| *h == Health::Degraded).count();
        let excluded = hosts.iter().filter(|(_, h)| h.active().is_out_of_count()).count();
        PriorityHosts { hosts: hosts.into_iter().map(|(_, host)| host).collect(), healthy, degraded, excluded }
    }

    pub(super) fn part(&self, part: Part) -> &[Arc<Host>] {
        let usable = self.healthy + self.degraded;
        let range = match part {
            Part::Healthy => 0..self.healthy,
            Part::Degraded => self.healthy..usable,
            Part::All => 0..self.hosts.len(),
        };
        self.hosts.get(range).unwrap_or_default()
    }

    /// Hosts that count.
    fn counted(&self) -> usize {
        self.hosts.len() - self.excluded
    }

    fn percent(&self, of: usize) -> f64 {
        if self.counted() == 0 { 0.0 } else { 100.0 * of as f64 / self.counted() as f64 }
    }

    fn in_panic(&self, threshold: f64) -> bool {
        self.percent(self.healthy + self.degraded) < threshold
    }
}

impl EndpointSet {
    /// No endpoints.
    pub(super) fn empty() -> EndpointSet {
        EndpointSet {
            generation: 0,
            priorities: Box::default(),
            shares: Box::default(),
            checks: None,
            overprovisioning_factor: OVERPROVISIONING_FACTOR,
            panic_threshold: 0.0,
        }
    }

    /// No endpoints yet, of a cluster with active health checks.
    pub(super) fn checked(checks: Checks) -> EndpointSet {
        EndpointSet { checks: Some(checks), ..EndpointSet::empty() }
    }

    /// Every host, by priority.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|p| p.hosts.iter())
    }

    pub fn len(&self) -> usize {
        self.priorities.iter().map(|p| p.hosts.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn healthy(&self) -> usize {
        self.priorities.iter().map(|p| p.healthy).sum()
    }

    pub(super) fn degraded(&self) -> usize {
        self.priorities.iter().map(|p| p.degraded).sum()
    }

    pub(super) fn excluded(&self) -> usize {
        self.priorities.iter().map(|p| p.excluded).sum()
    }

    /// Whether an assignment would keep every host and add none.
    pub(super) fn has_members_of(&self, assignment: &LoadAssignment) -> bool {
        let mut known: HashMap<&Address, &Arc<Host>> =
            self.hosts().filter(|h| !h.active().pending_removal()).map(|h| (&h.address.0, h)).collect();
        let mut seen = HashSet::new();
        let mut endpoints = assignment.localities.iter().flat_map(|l| &l.endpoints);
        endpoints.all(|e| !seen.insert(&e.address) || known.remove(&e.address).is_some_and(|h| h.is_for(e)))
            && known.is_empty()
    }

    /// The set after `self`. Hosts of equal address, host name and transport selector are kept; the caller marks the
    /// ones that are gone once the new set is in use.
    pub(super) fn next(&self, assignment: &LoadAssignment, panic_threshold: f64) -> (EndpointSet, Change) {
        let mut known: HashMap<&Address, &Arc<Host>> = self.hosts().map(|h| (&h.address.0, h)).collect();
        let mut ids = FreeIds::new(self.hosts().map(|h| h.id));
        let mut change = Change::default();
        let mut seen: BTreeSet<&Address> = BTreeSet::new();
        let mut by_priority: Vec<Vec<Arc<Host>>> = Vec::new();
        for locality in &assignment.localities {
            let at = (locality.priority as usize).min(MAX_PRIORITY);
            let place = Arc::new(locality.locality.clone());
            if by_priority.len() <= at {
                by_priority.resize_with(at + 1, Vec::new);
            }
            for endpoint in &locality.endpoints {
                // Envoy too keeps only the first of several endpoints with one address
                if !seen.insert(&endpoint.address) {
                    continue;
                }
                let facts = HostFacts {
                    locality: Arc::clone(&place),
                    priority: locality.priority,
                    weight: endpoint.weight.max(1),
                    health: endpoint.health,
                    metadata: endpoint.metadata.clone(),
                };
                let before = known.get(&endpoint.address).copied();
                let host = match before.filter(|host| host.is_for(endpoint)) {
                    Some(host) => {
                        known.remove(&endpoint.address);
                        change.facts |= host.update(facts);
                        host.set_active(host.active().with(ActiveFlags::PENDING_REMOVAL, false));
                        Arc::clone(host)
                    }
                    None => {
                        change.members = true;
                        let host = Host::new(ids.take(), endpoint, facts);
                        if let Some(checks) = self.checks.filter(|_| host.is_checked()) {
                            host.set_active(checks.at_birth(before.filter(|b| b.is_checked_as(endpoint))));
                        }
                        host
                    }
                };
                by_priority[at].push(host);
            }
        }
        let mut known: Vec<Arc<Host>> = known.into_values().cloned().collect();
        known.sort_by_key(|host| host.id);
        for host in known {
            if !self.checks.is_some_and(|c| c.keep_passing) || seen.contains(&host.address.0) || !host.may_stay() {
                change.removed.push(host);
                continue;
            }
            host.set_active(host.active().with(ActiveFlags::PENDING_REMOVAL, true));
            let at = (host.facts().priority as usize).min(MAX_PRIORITY);
            if by_priority.len() <= at {
                by_priority.resize_with(at + 1, Vec::new);
            }
            by_priority[at].push(host);
        }
        change.members |= !change.removed.is_empty();
        let factor = match assignment.overprovisioning_factor {
            0 => OVERPROVISIONING_FACTOR,
            factor => factor,
        };
        let rules = EndpointSet { overprovisioning_factor: factor, panic_threshold, ..self.without_hosts() };
        (rules.with_hosts(by_priority), change)
    }

    /// The set after active health checks have changed the health of hosts. Those that only stayed because they passed,
    /// and do so no more, are gone.
    pub(super) fn rechecked(&self) -> (EndpointSet, Change) {
        let mut change = Change::default();
        let mut by_priority = Vec::with_capacity(self.priorities.len());
        for priority in &self.priorities {
            let (mut gone, mut hosts): (Vec<_>, Vec<_>) =
                priority.hosts.iter().cloned().partition(|h| h.active().pending_removal() && h.active().failed());
            // the order that their ids had at birth, whatever their health was since
            hosts.sort_by_key(|host| host.id);
            change.removed.append(&mut gone);
            by_priority.push(hosts);
        }
        change.members = !change.removed.is_empty();
        (self.without_hosts().with_hosts(by_priority), change)
    }

    fn without_hosts(&self) -> EndpointSet {
        let EndpointSet { generation, checks, overprovisioning_factor, panic_threshold, .. } = *self;
        let (priorities, shares) = (Box::default(), Box::default());
        EndpointSet { generation, priorities, shares, checks, overprovisioning_factor, panic_threshold }
    }

    fn with_hosts(mut self, by_priority: Vec<Vec<Arc<Host>>>) -> EndpointSet {
        self.generation += 1;
        self.priorities = by_priority.into_iter().map(PriorityHosts::new).collect();
        self.shares = shares(&self.priorities, self.overprovisioning_factor, self.panic_threshold);
        self
    }
}

impl Checks {
    /// The state of a new host: failed until it passes, unless one of equal address that is checked in the same way is
    /// known.
    fn at_birth(self, before: Option<&Arc<Host>>) -> ActiveFlags {
        match before {
            Some(host) => host.active().with(ActiveFlags::PENDING_REMOVAL, false),
            None => ActiveFlags::FAILED.with(ActiveFlags::PENDING_CHECK, self.ignore_unchecked),
        }
    }
}

/// Envoy's default, in percent.
const OVERPROVISIONING_FACTOR: u32 = 140;

/// Envoy allows priorities up to 128.
const MAX_PRIORITY: usize = 128;

/// How one set differs from the one before.
#[derive(Default)]
pub(super) struct Change {
    /// Hosts came or went.
    pub members: bool,
    /// Weight, health, locality or metadata of a kept host changed.
    pub facts: bool,
    pub removed: Vec<Arc<Host>>,
}

/// Host ids that are not in use, smallest first.
struct FreeIds {
    used: BTreeSet<u32>,
    next: u32,
}

impl FreeIds {
    fn new(used: impl Iterator<Item = u32>) -> FreeIds {
        FreeIds { used: used.collect(), next: 0 }
    }

    fn take(&mut self) -> u32 {
        while self.used.contains(&self.next) {
            self.next += 1;
        }
        self.next += 1;
        self.next - 1
    }
}

/// Spreads 100 percent over the priorities: each takes at most what its healthy share, times the over-provisioning
/// factor, allows; degraded hosts take what healthy ones of all priorities cannot; when everything together cannot carry
/// the load, priorities below the panic threshold use all of their hosts.
fn shares(priorities: &[PriorityHosts], factor: u32, panic_threshold: f64) -> Box<[Share]> {
    let capacity = |n: usize, p: &PriorityHosts| ((p.percent(n) * f64::from(factor) / 100.0) as u32).min(100);
    let healthy: Vec<u32> = priorities.iter().map(|p| capacity(p.healthy, p)).collect();
    let degraded: Vec<u32> = priorities.iter().map(|p| capacity(p.degraded, p)).collect();
    let total = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    let panic: Vec<bool> = priorities.iter().map(|p| total < 100 && p.in_panic(panic_threshold)).collect();
    let mut shares: Vec<Share> = Vec::new();
    if !panic.is_empty() && panic.iter().all(|p| *p) {
        // total panic: by the number of hosts
        let all: usize = priorities.iter().map(PriorityHosts::counted).sum();
        for (priority, p) in priorities.iter().enumerate().filter(|(_, p)| p.counted() > 0) {
            shares.push(Share { priority, part: Part::All, percent: (100 * p.counted() / all) as u32 });
        }
        if all == 0 && priorities.first().is_some_and(|p| !p.hosts.is_empty()) {
            shares.push(Share { priority: 0, part: Part::All, percent: 100 });
        }
    } else {
        let mut left = 100;
        for (part, capacities) in [(Part::Healthy, &healthy), (Part::Degraded, &degraded)] {
            for (priority, capacity) in capacities.iter().enumerate() {
                let percent = (capacity * 100).checked_div(total).unwrap_or(0).min(left);
                left -= percent;
                if percent > 0 {
                    let part = if panic[priority] { Part::All } else { part };
                    shares.push(Share { priority, part, percent });
                }
            }
        }
    }
    // what rounding left over goes to the first
    let given: u32 = shares.iter().map(|s| s.percent).sum();
    if let Some(first) = shares.first_mut() {
        first.percent += 100 - given.min(100);
    }
    shares.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::HealthStatus;
    use crate::upstream::testing::{assignment, endpoint};

    fn built(localities: &[(u32, &[HealthStatus])], threshold: f64) -> EndpointSet {
        let mut port = 1;
        let localities: Vec<_> = localities
            .iter()
            .map(|(priority, health)| {
                let endpoints = health.iter().map(|h| {
                    port += 1;
                    let mut e = endpoint(port);
                    e.health = *h;
                    e
                });
                (*priority, endpoints.collect::<Vec<_>>())
            })
            .collect();
        EndpointSet::empty().next(&assignment(localities), threshold).0
    }

    fn shares_of(localities: &[(u32, &[HealthStatus])], threshold: f64) -> Vec<(usize, Part, u32)> {
        built(localities, threshold).shares.iter().map(|s| (s.priority, s.part, s.percent)).collect()
    }

    use HealthStatus::{Degraded as D, Draining, Healthy as H, Timeout, Unhealthy as U};

    #[test]
    fn load_spills_over_when_overprovisioning_no_longer_covers() {
        assert_eq!(shares_of(&[(0, &[H, H, H, U]), (1, &[H])], 50.0), [(0, Part::Healthy, 100)]);
        // 50 % healthy * 1.4 = 70
        assert_eq!(shares_of(&[(0, &[H, U]), (1, &[H, H])], 50.0), [(0, Part::Healthy, 70), (1, Part::Healthy, 30)]);
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_cannot() {
        assert_eq!(shares_of(&[(0, &[H, D, D, D])], 50.0), [(0, Part::Healthy, 35), (0, Part::Degraded, 65)]);
    }

    #[test]
    fn few_healthy_hosts_mean_panic_unless_the_threshold_is_zero() {
        assert_eq!(shares_of(&[(0, &[H, U, Draining, Timeout])], 50.0), [(0, Part::All, 100)]);
        assert_eq!(shares_of(&[(0, &[H, U, U, U])], 0.0), [(0, Part::Healthy, 100)]);
        assert_eq!(shares_of(&[(0, &[U, U])], 50.0), [(0, Part::All, 100)]);
        assert_eq!(shares_of(&[(0, &[U, U])], 0.0), []);
        assert_eq!(shares_of(&[], 50.0), []);
    }

    #[test]
    fn a_priority_in_panic_does_not_matter_while_another_carries_all() {
        assert_eq!(shares_of(&[(0, &[U, U]), (1, &[H])], 50.0), [(1, Part::Healthy, 100)]);
    }

    #[test]
    fn hosts_keep_their_identity_by_address() {
        let (first, _) = EndpointSet::empty().next(&assignment(vec![(0, vec![endpoint(1), endpoint(2)])]), 50.0);
        let mut changed = endpoint(2);
        changed.weight = 7;
        let (second, change) = first.next(&assignment(vec![(1, vec![changed.clone(), endpoint(3)])]), 50.0);
        let hosts: Vec<_> = second.hosts().cloned().collect();
        let old: Vec<_> = first.hosts().cloned().collect();
        assert!(Arc::ptr_eq(&hosts[0], &old[1]) && hosts[0].facts().weight == 7 && hosts[0].facts().priority == 1);
        assert!(change.members && change.removed.len() == 1 && Arc::ptr_eq(&change.removed[0], &old[0]));
        assert_ne!(hosts[1].id, hosts[0].id);
        changed.metadata = Some(Arc::new(
            [("envoy.transport_socket_match".to_owned(), serde_json::json!({"tlsMode": "istio"}))].into(),
        ));
        let (third, change) = second.next(&assignment(vec![(1, vec![changed, endpoint(3)])]), 50.0);
        assert!(change.members, "another transport makes another host");
        assert!(!Arc::ptr_eq(third.hosts().next().unwrap(), &hosts[0]));
    }

    #[test]
    fn an_equal_assignment_changes_nothing() {
        let a = assignment(vec![(0, vec![endpoint(1), endpoint(1)])]);
        let (first, _) = EndpointSet::empty().next(&a, 50.0);
        let (second, change) = first.next(&a, 50.0);
        assert_eq!((first.len(), second.len()), (1, 1), "one address is one host");
        assert!(!change.members && !change.facts);
    }

    /// The flags of all hosts, by port.
    fn flags(set: &EndpointSet) -> Vec<(String, ActiveFlags)> {
        let mut all: Vec<_> = set.hosts().map(|h| (h.address.to_string(), h.active())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn pass(set: &EndpointSet) -> EndpointSet {
        set.hosts().for_each(|host| host.set_active(ActiveFlags::default()));
        set.rechecked().0
    }

    #[test]
    fn a_host_of_a_checked_cluster_is_used_when_it_passes_and_goes_when_it_fails() {
        let checks = Checks { keep_passing: true, ignore_unchecked: false };
        let both = assignment(vec![(0, vec![endpoint(1), endpoint(2)])]);
        let (born, _) = EndpointSet::checked(checks).next(&both, 0.0);
        assert_eq!((born.healthy(), born.shares.len()), (0, 0));
        let passing = pass(&born);
        assert_eq!((passing.healthy(), passing.shares.len()), (2, 1));
        let one = assignment(vec![(0, vec![endpoint(1)])]);
        let (kept, change) = passing.next(&one, 0.0);
        assert_eq!((kept.len(), kept.healthy(), change.members), (2, 2, false));
        let host = Arc::clone(kept.hosts().find(|h| h.active().pending_removal()).unwrap());
        assert!(host.address.to_string().ends_with(":2") && kept.has_members_of(&one));
        let (back, _) = kept.next(&both, 0.0);
        assert!(flags(&back).iter().all(|(_, flags)| *flags == ActiveFlags::default()));
        let (kept, _) = back.next(&one, 0.0);
        host.set_active(host.active().with(ActiveFlags::FAILED, true));
        let (gone, change) = kept.rechecked();
        assert_eq!((gone.len(), change.members), (1, true));
        assert!(Arc::ptr_eq(&change.removed[0], &host));
    }

    #[test]
    fn what_failed_or_is_not_checked_goes_when_discovery_says_so() {
        let checks = Checks { keep_passing: true, ignore_unchecked: false };
        let mut unchecked = endpoint(2);
        let check =
            crate::config::model::EndpointCheck { port: 0, hostname: Box::default(), address: None, disabled: true };
        unchecked.check = Some(Arc::new(check));
        let all = assignment(vec![(0, vec![endpoint(1), unchecked])]);
        let (set, _) = EndpointSet::checked(checks).next(&all, 0.0);
        assert_eq!((set.healthy(), set.len()), (1, 2), "one that is not checked is healthy");
        let (empty, change) = set.next(&assignment(vec![]), 0.0);
        assert_eq!((empty.len(), change.removed.len()), (0, 2));
        let at_once = Checks { keep_passing: false, ignore_unchecked: false };
        let set = pass(&EndpointSet::checked(at_once).next(&all, 0.0).0);
        assert_eq!(set.next(&assignment(vec![]), 0.0).0.len(), 0);
    }

    #[test]
    fn hosts_that_were_never_checked_need_not_count() {
        let checks = Checks { keep_passing: true, ignore_unchecked: true };
        let set = pass(&EndpointSet::checked(checks).next(&assignment(vec![(0, vec![endpoint(1)])]), 50.0).0);
        let more = assignment(vec![(0, vec![endpoint(1), endpoint(2), endpoint(3)]), (1, vec![endpoint(4)])]);
        let (set, _) = set.next(&more, 50.0);
        assert_eq!((set.healthy(), set.excluded()), (1, 3));
        let shares: Vec<_> = set.shares.iter().map(|s| (s.priority, s.part, s.percent)).collect();
        assert_eq!(shares, [(0, Part::Healthy, 100)], "one healthy host of three would be panic");
        let none = EndpointSet::checked(checks).next(&more, 50.0).0;
        assert_eq!((none.shares.len(), none.shares[0].part), (1, Part::All));
    }

    #[test]
    fn another_host_of_equal_address_inherits_its_health() {
        let checks = Checks { keep_passing: true, ignore_unchecked: false };
        let set = pass(&EndpointSet::checked(checks).next(&assignment(vec![(0, vec![endpoint(1)])]), 0.0).0);
        let mut renamed = endpoint(1);
        renamed.hostname = "other".into();
        let (next, change) = set.next(&assignment(vec![(0, vec![renamed.clone()])]), 0.0);
        assert_eq!((next.healthy(), next.len(), change.members), (1, 1, true));
        let check =
            crate::config::model::EndpointCheck { port: 9, hostname: Box::default(), address: None, disabled: false };
        renamed.check = Some(Arc::new(check));
        let (next, _) = next.next(&assignment(vec![(0, vec![renamed])]), 0.0);
        assert_eq!((next.healthy(), next.len()), (0, 1), "what is asked elsewhere may answer otherwise");
    }
}
