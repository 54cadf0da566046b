//! One endpoint: its address, what configuration says of it, and its counts.
//!
//! A host lives as long as its address stays in the cluster; updates change its facts, never its identity, so that
//! counts, health and pools go on. Knows nothing of connections.

use super::health::ActiveFlags;
use crate::config::model::{Endpoint, EndpointCheck, HealthStatus, Locality};
use crate::net::UpstreamAddr;
use arc_swap::{ArcSwap, Guard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// One endpoint; kept, with its counts and health, while its address stays in the cluster.
pub struct Host {
    pub address: UpstreamAddr,
    pub hostname: Box<str>,
    pub stats: HostStats,
    /// Dense inside its cluster: index of per-worker pools.
    pub(super) id: u32,
    facts: ArcSwap<HostFacts>,
    check: Option<Arc<EndpointCheck>>,
    /// What active health checks say: [`ActiveFlags`], written by the control thread.
    active: AtomicU8,
    /// How often active health checks found it unhealthy after it was healthy.
    failures: AtomicU32,
    /// A response to ordinary traffic said that the host is to be left alone; nobody has looked yet.
    ill: AtomicBool,
    removed: AtomicBool,
    /// For hosts of ORIGINAL_DST clusters: chosen since the last clean-up.
    used: AtomicBool,
}

/// What configuration says of a host now.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    pub locality: Arc<Locality>,
    pub priority: u32,
    pub weight: u32,
    pub health: HealthStatus,
    /// `metadata.filter_metadata` by filter name.
    pub metadata: Option<Arc<BTreeMap<String, serde_json::Value>>>,
}

/// How a balancer treats a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Healthy,
    Degraded,
    Unhealthy,
}

/// Shown by /clusters; the active counts also guide least-request balancing.
#[derive(Default)]
pub struct HostStats {
    pub cx_active: AtomicU32,
    pub rq_active: AtomicU32,
    pub rq_pending_active: AtomicU32,
    pub cx_total: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub rq_total: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_timeout: AtomicU64,
}

impl HostStats {
    /// Counts what an attempt came to: a response below 500 is a success.
    pub fn charge_response(&self, status: http::StatusCode) {
        let cell = if status.is_server_error() { &self.rq_error } else { &self.rq_success };
        cell.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an attempt that got no response.
    pub fn charge_failure(&self, timeout: bool) {
        self.rq_error.fetch_add(1, Ordering::Relaxed);
        if timeout {
            self.rq_timeout.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Host {
    pub(super) fn new(id: u32, endpoint: &Endpoint, facts: HostFacts) -> Arc<Host> {
        Arc::new(Host {
            address: UpstreamAddr(endpoint.address.clone()),
            hostname: endpoint.hostname.clone(),
            stats: HostStats::default(),
            id,
            facts: ArcSwap::from_pointee(facts),
            check: endpoint.check.clone(),
            active: AtomicU8::new(0),
            failures: AtomicU32::new(0),
            ill: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            used: AtomicBool::new(true),
        })
    }

    /// Locality, weight, health and metadata as they are now.
    pub fn facts(&self) -> Guard<Arc<HostFacts>> {
        self.facts.load()
    }

    /// The worst of what configuration and active health checks say.
    pub fn health(&self) -> Health {
        let active = match self.active() {
            flags if flags.failed() => Health::Unhealthy,
            flags if flags.degraded() => Health::Degraded,
            _ => Health::Healthy,
        };
        self.facts.load().health().max(active)
    }

    /// What active health checks say.
    pub fn active(&self) -> ActiveFlags {
        ActiveFlags::from_bits(self.active.load(Ordering::Relaxed))
    }

    pub(super) fn set_active(&self, flags: ActiveFlags) {
        self.active.store(flags.bits(), Ordering::Relaxed);
    }

    /// How often active health checks found it unhealthy after it was healthy: each time its connections drain.
    pub(super) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How this host is checked, where configuration says something of its own for it.
    pub(super) fn check(&self) -> Option<&EndpointCheck> {
        self.check.as_deref()
    }

    /// Whether it is to be checked, in a cluster that has health checks.
    pub(super) fn is_checked(&self) -> bool {
        !self.check().is_some_and(|check| check.disabled)
    }

    /// Whether an endpoint of new configuration is checked as this host is.
    pub(super) fn is_checked_as(&self, endpoint: &Endpoint) -> bool {
        self.check == endpoint.check
    }

    /// Whether it serves on although discovery took it away: it passes its checks, and was not said to be ill.
    pub(super) fn may_stay(&self) -> bool {
        let said_ill = matches!(self.facts.load().health, HealthStatus::Unhealthy | HealthStatus::Timeout);
        self.is_checked() && !self.active().failed() && !said_ill
    }

    pub(super) fn mark_ill(&self) {
        self.ill.store(true, Ordering::Release);
    }

    pub(super) fn take_ill(&self) -> bool {
        self.ill.swap(false, Ordering::AcqRel)
    }

    /// Endpoint metadata `envoy.lb` `canary: true`.
    pub fn is_canary(&self) -> bool {
        let facts = self.facts.load();
        let lb = facts.metadata.as_ref().and_then(|m| m.get("envoy.lb"));
        lb.and_then(|lb| lb.get("canary")).and_then(serde_json::Value::as_bool) == Some(true)
    }

    /// Whether this host, of equal address, is what an endpoint of new configuration means.
    pub(super) fn is_for(&self, endpoint: &Endpoint) -> bool {
        self.hostname == endpoint.hostname
            && self.is_checked_as(endpoint)
            && self.facts.load().transport_selector() == transport_selector(endpoint.metadata.as_deref())
    }

    /// Takes new facts; says whether they differ.
    pub(super) fn update(&self, facts: HostFacts) -> bool {
        let differs = **self.facts.load() != facts;
        if differs {
            self.facts.store(Arc::new(facts));
        }
        differs
    }

    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// No longer part of its cluster: its connections drain.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn mark_used(&self) {
        // a plain load first: the line stays shared between workers while the mark is set
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }
}

impl HostFacts {
    pub(super) fn health(&self) -> Health {
        match self.health {
            HealthStatus::Unknown | HealthStatus::Healthy => Health::Healthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
        }
    }

    /// What selects the transport; a host whose selector changes is another host, so that no connection made under the
    /// old one is used again.
    pub(super) fn transport_selector(&self) -> Option<&serde_json::Value> {
        transport_selector(self.metadata.as_deref())
    }
}

fn transport_selector(metadata: Option<&BTreeMap<String, serde_json::Value>>) -> Option<&serde_json::Value> {
    metadata?.get("envoy.transport_socket_match")
}
