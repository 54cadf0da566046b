//! What a check's verdict does to an endpoint, and when it is checked again: pure state, without time or network.
//! Source: Envoy's "Health checking" page and the fields of `envoy.config.core.v3.HealthCheck`.

use crate::config::model::{CheckPace, HealthCheck};
use std::time::Duration;

/// What active health checking says of a host, under the names that /clusters shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActiveFlags(u8);

impl ActiveFlags {
    pub(in crate::upstream) const FAILED: ActiveFlags = ActiveFlags(1);
    pub(in crate::upstream) const DEGRADED: ActiveFlags = ActiveFlags(1 << 1);
    pub(in crate::upstream) const PENDING_REMOVAL: ActiveFlags = ActiveFlags(1 << 2);
    pub(in crate::upstream) const PENDING_CHECK: ActiveFlags = ActiveFlags(1 << 3);
    pub(in crate::upstream) const EXCLUDED: ActiveFlags = ActiveFlags(1 << 4);
    pub(in crate::upstream) const TIMEOUT: ActiveFlags = ActiveFlags(1 << 5);

    /// Of a host that no gauge counts.
    pub(super) const UNCOUNTED: ActiveFlags = Self::FAILED;

    pub(in crate::upstream) fn from_bits(bits: u8) -> ActiveFlags {
        ActiveFlags(bits)
    }

    pub(in crate::upstream) fn bits(self) -> u8 {
        self.0
    }

    /// `self`, with or without `other`.
    #[must_use]
    pub(in crate::upstream) fn with(self, other: ActiveFlags, on: bool) -> ActiveFlags {
        ActiveFlags(if on { self.0 | other.0 } else { self.0 & !other.0 })
    }

    fn has(self, other: ActiveFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// Not, or no longer, passing.
    pub fn failed(self) -> bool {
        self.has(Self::FAILED)
    }

    /// Passing, and says itself that it is degraded.
    pub fn degraded(self) -> bool {
        self.has(Self::DEGRADED)
    }

    /// Discovery took it away; it stays while it passes.
    pub fn pending_removal(self) -> bool {
        self.has(Self::PENDING_REMOVAL)
    }

    /// Never checked yet, in clusters that do not count such hosts.
    pub fn pending_check(self) -> bool {
        self.has(Self::PENDING_CHECK)
    }

    /// Said itself that it is to be left alone.
    pub fn excluded(self) -> bool {
        self.has(Self::EXCLUDED)
    }

    /// Failed, and the last check got no answer in time.
    pub fn timed_out(self) -> bool {
        self.has(Self::TIMEOUT)
    }

    /// Does not count when the load is spread.
    pub(in crate::upstream) fn is_out_of_count(self) -> bool {
        self.has(ActiveFlags(Self::PENDING_CHECK.0 | Self::EXCLUDED.0))
    }
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass { degraded: bool },
    Fail(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The endpoint answered that, or as if, it were ill; `excluded`: and that it is to be left alone.
    Unhealthy { excluded: bool },
    /// The same with a status that configuration gives more chances.
    Retriable { excluded: bool },
    /// No connection, or it broke.
    Network,
    /// No answer in time.
    Timeout,
    /// A response to ordinary traffic said so.
    Passive,
}

impl Failure {
    pub fn is_network(self) -> bool {
        matches!(self, Failure::Network | Failure::Timeout)
    }
}

/// What a verdict changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    Unchanged,
    /// More verdicts like it will change the health.
    Pending,
    Changed,
}

/// What is remembered of a host's checks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    passes: u32,
    failures: u32,
    checked: bool,
}

impl Tally {
    /// Whether there was any verdict yet.
    pub fn is_checked(self) -> bool {
        self.checked
    }

    pub fn judge(&mut self, verdict: Verdict, flags: ActiveFlags, check: &HealthCheck) -> (ActiveFlags, Transition) {
        let (mut after, mut transition) = match verdict {
            Verdict::Pass { degraded } => self.pass(degraded, flags, check),
            Verdict::Fail(failure) => self.fail(failure, flags, check),
        };
        if after.pending_check() {
            after = after.with(ActiveFlags::PENDING_CHECK, false);
            transition = Transition::Changed;
        }
        // however the health is, the count of those that matter is another
        if after.is_out_of_count() != flags.is_out_of_count() {
            transition = Transition::Changed;
        }
        self.checked = true;
        (after, transition)
    }

    fn pass(&mut self, degraded: bool, flags: ActiveFlags, check: &HealthCheck) -> (ActiveFlags, Transition) {
        self.failures = 0;
        let (mut after, mut transition) = (flags, Transition::Unchanged);
        if flags.failed() {
            self.passes = self.passes.saturating_add(1);
            // the very first verdict decides alone, so that start-up is quick
            if self.checked && self.passes != check.healthy_threshold {
                transition = Transition::Pending;
            } else {
                for flag in [ActiveFlags::FAILED, ActiveFlags::TIMEOUT, ActiveFlags::EXCLUDED] {
                    after = after.with(flag, false);
                }
                transition = Transition::Changed;
            }
        }
        if degraded != flags.degraded() {
            after = after.with(ActiveFlags::DEGRADED, degraded);
            if transition == Transition::Unchanged {
                transition = Transition::Changed;
            }
        }
        (after, transition)
    }

    fn fail(&mut self, failure: Failure, flags: ActiveFlags, check: &HealthCheck) -> (ActiveFlags, Transition) {
        self.passes = 0;
        let (mut after, mut transition) = (flags, Transition::Unchanged);
        if !flags.failed() {
            let counts = failure.is_network() || matches!(failure, Failure::Retriable { .. });
            if counts {
                self.failures = self.failures.saturating_add(1);
            }
            if counts && self.failures != check.unhealthy_threshold {
                transition = Transition::Pending;
            } else {
                after = after.with(ActiveFlags::FAILED, true);
                transition = Transition::Changed;
            }
        }
        if after.failed() {
            after = after.with(ActiveFlags::TIMEOUT, failure == Failure::Timeout);
        }
        let excluded = match failure {
            Failure::Unhealthy { excluded } | Failure::Retriable { excluded } => excluded,
            Failure::Passive => true,
            Failure::Network | Failure::Timeout => false,
        };
        if excluded {
            after = after.with(ActiveFlags::EXCLUDED, true);
        }
        (after, transition)
    }
}

/// How long to wait until the next check, without jitter. `used`: a connection was ever made to the cluster.
pub(super) fn interval(pace: &CheckPace, passed: bool, transition: Transition, used: bool) -> Duration {
    match (used, passed, transition) {
        (false, true, Transition::Unchanged | Transition::Changed) => pace.no_traffic_healthy,
        (false, ..) => pace.no_traffic,
        (true, false, Transition::Pending) => pace.unhealthy_edge,
        (true, false, _) => pace.unhealthy,
        (true, true, Transition::Pending) => pace.healthy_edge,
        (true, true, _) => pace.interval,
    }
}

/// Adds the configured jitter; `random` gives a number below the one it is given.
pub(super) fn with_jitter(pace: &CheckPace, base: Duration, mut random: impl FnMut(u64) -> u64) -> Duration {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let mut total = base;
    for bound in [millis(base).saturating_mul(pace.jitter_percent.into()) / 100, millis(pace.jitter)] {
        if bound > 0 {
            total = total.saturating_add(Duration::from_millis(random(bound)));
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{CheckKind, TcpCheck};
    use Transition::{Changed, Pending, Unchanged};

    fn pace() -> CheckPace {
        let s = Duration::from_secs;
        CheckPace {
            interval: s(1),
            no_traffic: s(2),
            no_traffic_healthy: s(3),
            unhealthy: s(4),
            unhealthy_edge: s(5),
            healthy_edge: s(6),
            initial_jitter: s(0),
            jitter: s(0),
            jitter_percent: 0,
        }
    }

    fn check() -> HealthCheck {
        HealthCheck {
            timeout: Duration::from_secs(1),
            pace: pace(),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            reuse_connection: true,
            always_log_failures: false,
            always_log_successes: false,
            alpn: Vec::new(),
            transport_criteria: None,
            kind: CheckKind::Tcp(TcpCheck { send: bytes::Bytes::new(), receive: Vec::new() }),
        }
    }

    const PASS: Verdict = Verdict::Pass { degraded: false };
    const ILL: Verdict = Verdict::Fail(Failure::Unhealthy { excluded: false });
    const NETWORK: Verdict = Verdict::Fail(Failure::Network);

    /// A host as it is born, and what a row of verdicts makes of it: whether it is failed, and the transition.
    fn row(verdicts: &[Verdict]) -> Vec<(bool, Transition)> {
        let (mut tally, mut flags) = (Tally::default(), ActiveFlags::FAILED);
        let step = |verdict: &Verdict| {
            let (after, transition) = tally.judge(*verdict, flags, &check());
            flags = after;
            (after.failed(), transition)
        };
        verdicts.iter().map(step).collect()
    }

    #[test]
    fn the_first_pass_is_enough() {
        assert_eq!(row(&[PASS, PASS]), [(false, Changed), (false, Unchanged)]);
    }

    #[test]
    fn after_a_first_failure_passes_must_reach_the_threshold() {
        assert_eq!(
            row(&[NETWORK, PASS, NETWORK, PASS, PASS]),
            [(true, Unchanged), (true, Pending), (true, Unchanged), (true, Pending), (false, Changed)]
        );
    }

    #[test]
    fn network_failures_and_retriable_statuses_must_reach_the_threshold() {
        let retriable = Verdict::Fail(Failure::Retriable { excluded: false });
        for failure in [NETWORK, Verdict::Fail(Failure::Timeout), retriable] {
            assert_eq!(
                row(&[PASS, failure, failure, PASS, failure, failure, failure])[1..],
                [
                    (false, Pending),
                    (false, Pending),
                    (false, Unchanged),
                    (false, Pending),
                    (false, Pending),
                    (true, Changed)
                ]
            );
        }
    }

    #[test]
    fn an_endpoint_that_says_it_is_ill_is_believed_at_once() {
        assert_eq!(row(&[PASS, ILL, PASS, PASS])[1..], [(true, Changed), (true, Pending), (false, Changed)]);
        assert_eq!(row(&[PASS, Verdict::Fail(Failure::Passive)])[1..], [(true, Changed)]);
    }

    #[test]
    fn flags_come_and_go() {
        let (mut tally, born) = (Tally::default(), ActiveFlags::FAILED.with(ActiveFlags::PENDING_CHECK, true));
        let (flags, transition) = tally.judge(Verdict::Fail(Failure::Timeout), born, &check());
        assert!(flags.timed_out() && !flags.pending_check() && transition == Changed);
        let excluded = Verdict::Fail(Failure::Unhealthy { excluded: true });
        let (flags, transition) = tally.judge(excluded, flags, &check());
        assert!(!flags.timed_out() && flags.excluded() && transition == Changed);
        let (flags, _) = tally.judge(PASS, flags, &check());
        let (flags, transition) = tally.judge(Verdict::Pass { degraded: true }, flags, &check());
        assert!(!flags.failed() && !flags.excluded() && flags.degraded() && transition == Changed);
        let (flags, transition) = tally.judge(PASS, flags, &check());
        assert_eq!((flags, transition), (ActiveFlags::default(), Changed));
    }

    #[test]
    fn each_state_has_its_interval() {
        let seconds = |passed, transition, used| interval(&pace(), passed, transition, used).as_secs();
        assert_eq!(
            [seconds(true, Unchanged, true), seconds(true, Changed, true), seconds(true, Pending, true)],
            [1, 1, 6]
        );
        assert_eq!(
            [seconds(false, Unchanged, true), seconds(false, Changed, true), seconds(false, Pending, true)],
            [4, 4, 5]
        );
        assert_eq!(
            [seconds(true, Changed, false), seconds(true, Pending, false), seconds(false, Changed, false)],
            [3, 2, 2]
        );
    }

    #[test]
    fn jitter_adds_at_most_what_is_configured() {
        let pace = CheckPace { jitter: Duration::from_millis(100), jitter_percent: 50, ..pace() };
        let mut bounds = Vec::new();
        let waits = with_jitter(&pace, Duration::from_secs(1), |bound| {
            bounds.push(bound);
            bound - 1
        });
        assert_eq!((bounds, waits), (vec![500, 100], Duration::from_millis(1000 + 499 + 99)));
        assert_eq!(with_jitter(&self::pace(), Duration::MAX, |_| 7), Duration::MAX);
    }
}
