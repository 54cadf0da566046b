//! Circuit breakers: how much of a cluster may be in use at once, per priority and over all workers.
//!
//! Counting is atomic and without locks; a burst on several workers can pass a limit by a few, as in Envoy. Knows nothing
//! of what is counted.

use crate::config::model::{Priority, Thresholds};
use crate::stats::{Gauge, Scope};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The breakers of one cluster and priority.
pub struct Breakers {
    pub(super) connections: Breaker,
    pub(super) pending: Breaker,
    pub(super) requests: Breaker,
    retries: Breaker,
}

impl Breakers {
    pub(super) fn new(limits: &Thresholds, priority: Priority, scope: &Scope) -> Breakers {
        let prefix = match priority {
            Priority::Default => "circuit_breakers.default.",
            Priority::High => "circuit_breakers.high.",
        };
        let scope = scope.scope(prefix);
        let breaker = |max: u32, open: &str, remaining: &str| {
            let remaining = limits.track_remaining.then(|| scope.gauge(remaining));
            if let Some(gauge) = &remaining {
                gauge.add(max.into());
            }
            Breaker { max, used: AtomicU32::new(0), open: scope.gauge(open), remaining }
        };
        Breakers {
            connections: breaker(limits.max_connections, "cx_open", "remaining_cx"),
            pending: breaker(limits.max_pending_requests, "rq_pending_open", "remaining_pending"),
            requests: breaker(limits.max_requests, "rq_open", "remaining_rq"),
            retries: breaker(limits.max_retries, "rq_retry_open", "remaining_retries"),
        }
    }

    /// The right to have one more retry in flight, until the guard is dropped; `None`: the breaker is open.
    pub fn try_retry(self: &Arc<Self>) -> Option<RetryGuard> {
        self.retries.try_take().then(|| RetryGuard(Arc::clone(self)))
    }
}

/// One retry in flight.
pub struct RetryGuard(Arc<Breakers>);

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.retries.give_back();
    }
}

/// One limit and what is used of it.
pub(super) struct Breaker {
    max: u32,
    used: AtomicU32,
    open: Gauge,
    remaining: Option<Gauge>,
}

impl Breaker {
    pub fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.max
    }

    /// Takes one if there is room.
    pub fn try_take(&self) -> bool {
        let room = self.has_room();
        if room {
            self.take();
        }
        room
    }

    /// Takes one even when there is no room (the first connection to an endpoint is always allowed).
    ///
    /// Every count is reached by exactly one call, so the gauge, whose cells belong to threads, goes up once per opening
    /// and down once per closing.
    pub fn take(&self) {
        if self.used.fetch_add(1, Ordering::Relaxed).checked_add(1) == Some(self.max) {
            self.open.inc();
        }
        if let Some(remaining) = &self.remaining {
            remaining.dec();
        }
    }

    pub fn give_back(&self) {
        if self.used.fetch_sub(1, Ordering::Relaxed) == self.max {
            self.open.dec();
        }
        if let Some(remaining) = &self.remaining {
            remaining.inc();
        }
    }

    #[cfg(test)]
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Breaker {
    /// The next version of the cluster shows its own.
    fn drop(&mut self) {
        if let Some(remaining) = &self.remaining {
            remaining.add(i64::from(self.used.load(Ordering::Relaxed)) - i64::from(self.max));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::StatsConfig;
    use crate::stats::Registry;

    #[test]
    fn a_breaker_opens_at_its_limit_and_closes_with_its_guards() {
        let scope = Registry::new(StatsConfig::default()).scope("cluster.c.");
        let limits = Thresholds { max_retries: 2, track_remaining: true, ..Thresholds::default() };
        let breakers = Arc::new(Breakers::new(&limits, Priority::Default, &scope));
        let a = breakers.try_retry();
        let b = breakers.try_retry();
        assert!(a.is_some() && b.is_some() && breakers.try_retry().is_none());
        assert_eq!(breakers.retries.open.value(), 1);
        drop(a);
        assert_eq!((breakers.retries.open.value(), breakers.retries.used()), (0, 1));
        assert!(breakers.try_retry().is_some());
        drop(b);
        assert_eq!(breakers.retries.remaining.as_ref().unwrap().value(), 2);
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_pass() {
        let scope = Registry::new(StatsConfig::default()).scope("cluster.c.");
        let limits = Thresholds { max_requests: 0, ..Thresholds::default() };
        let breakers = Breakers::new(&limits, Priority::High, &scope);
        assert!(!breakers.requests.try_take());
    }
}
