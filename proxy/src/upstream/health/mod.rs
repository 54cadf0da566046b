//! Active health checks: the schedule of a cluster's checks, and what their verdicts do to its hosts.
//!
//! One task per cluster, on the control thread: with any number of workers each host is checked once. Workers only read
//! what comes of it (the set of endpoints) and pass on what a response to ordinary traffic says. Clusters without health
//! checks have none of this. Knows nothing of how clusters are warmed.

mod connection;
mod grpc;
mod http;
mod state;
mod stats;
mod target;
mod tcp;

pub use http::IMMEDIATE_FAIL;
pub use state::ActiveFlags;

use super::cluster::Cluster;
use super::host::Host;
use crate::config::model::{CheckKind, HealthCheck};
use crate::net::Transport;
use crate::stats::Scope;
use connection::HttpConnection;
use state::{Failure, Tally, Transition, Verdict, interval, with_jitter};
use stats::HealthStats;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use target::Target;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// The part of a cluster that is about its active health checks.
pub(super) struct ActiveHealth {
    check: Arc<HealthCheck>,
    stats: HealthStats,
    /// The first endpoints are known.
    begun: AtomicBool,
    /// A worker has marked a host that says it is ill.
    ill: AtomicBool,
    woken: Notify,
}

impl ActiveHealth {
    pub fn new(check: &Arc<HealthCheck>, scope: &Scope) -> Arc<ActiveHealth> {
        Arc::new(ActiveHealth {
            check: Arc::clone(check),
            stats: HealthStats::new(&scope.scope("health_check.")),
            begun: AtomicBool::new(false),
            ill: AtomicBool::new(false),
            woken: Notify::new(),
        })
    }

    /// The endpoints are known now: their first checks begin.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Endpoints came or went.
    pub fn members_changed(&self) {
        self.woken.notify_one();
    }

    /// A response of this host to ordinary traffic said that it is to be left alone. Called by workers.
    pub fn host_is_ill(&self, host: &Host) {
        host.mark_ill();
        // most such responses come when it is known already
        if !self.ill.swap(true, Ordering::AcqRel) {
            self.woken.notify_one();
        }
    }
}

/// A connection that outlives a check.
enum Kept {
    Http(HttpConnection),
    Tcp(Transport),
}

/// Checks the hosts of a cluster for as long as it is polled. `warm` is called once, when every host of the first set has
/// had its first check.
pub(super) async fn run(cluster: Arc<Cluster>, health: Arc<ActiveHealth>, warm: impl FnOnce()) {
    while !health.has_begun() {
        health.woken.notified().await;
    }
    let mut rounds = Rounds {
        cluster,
        health: Arc::clone(&health),
        sessions: HashMap::new(),
        due: BTreeSet::new(),
        checks: JoinSet::new(),
        followed: None,
    };
    let mut warm = Some(warm);
    loop {
        if rounds.passive_failures() {
            rounds.cluster.health_changed();
        }
        rounds.follow_members();
        if warm.is_some()
            && rounds.sessions.values().all(|s| s.tally.is_checked())
            && let Some(warm) = warm.take()
        {
            warm();
        }
        tokio::select! {
            () = health.woken.notified() => {}
            Some(done) = rounds.checks.join_next() => {
                let (mut changed, mut next) = (false, Some(done));
                // verdicts that are there already cost one new set of endpoints together
                while let Some(done) = next {
                    // a check that was taken back has no verdict
                    changed |= done.is_ok_and(|done| rounds.finish(done));
                    next = rounds.checks.try_join_next();
                }
                if changed {
                    rounds.cluster.health_changed();
                }
            }
            () = wait_until(rounds.due.first().map(|(at, _)| *at)) => rounds.start_due(),
        }
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Envoy counts in milliseconds; anything shorter would keep the control thread from its other work.
const LEAST_INTERVAL: Duration = Duration::from_millis(1);

/// An interval that no clock can count to is as good as a year.
fn after(wait: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + wait.min(YEAR)
}

/// The schedule of one cluster's checks.
struct Rounds {
    cluster: Arc<Cluster>,
    health: Arc<ActiveHealth>,
    /// By host id.
    sessions: HashMap<u32, Session>,
    /// The sessions that wait for their next check.
    due: BTreeSet<(Instant, u32)>,
    checks: JoinSet<Done>,
    /// Generation of the endpoints that `sessions` were made for.
    followed: Option<u64>,
}

/// What is kept of one host's checks. Counts the host in the gauges while it lives.
struct Session {
    host: Arc<Host>,
    health: Arc<ActiveHealth>,
    tally: Tally,
    kept: Option<Kept>,
    next: Next,
}

enum Next {
    At(Instant),
    Running(AbortHandle),
}

/// The end of a check.
struct Done {
    host: Arc<Host>,
    verdict: Verdict,
    kept: Option<Kept>,
}

impl Rounds {
    /// Gives each host that is to be checked a session, and takes it from those that are gone.
    fn follow_members(&mut self) {
        let set = self.cluster.endpoints();
        if self.followed.replace(set.generation) == Some(set.generation) {
            return;
        }
        let mut known = 0;
        for host in set.hosts().filter(|host| host.is_checked()) {
            if self.sessions.get(&host.id).is_some_and(|s| Arc::ptr_eq(&s.host, host)) {
                known += 1;
                continue;
            }
            // the id may have been another host's
            end(&mut self.sessions, &mut self.due, host.id);
            let at = after(self.health.check.pace.initial_jitter.mul_f64(fastrand::f64()));
            self.due.insert((at, host.id));
            self.sessions.insert(host.id, Session::new(host, &self.health, at));
            known += 1;
        }
        if known < self.sessions.len() {
            let here: HashMap<u32, &Arc<Host>> = set.hosts().map(|host| (host.id, host)).collect();
            let is_here = |id, s: &Session| here.get(id).is_some_and(|host| Arc::ptr_eq(host, &s.host));
            let gone: Vec<u32> = self.sessions.iter().filter(|(id, s)| !is_here(*id, s)).map(|(id, _)| *id).collect();
            for id in gone {
                end(&mut self.sessions, &mut self.due, id);
            }
        }
    }

    /// Counts what responses to ordinary traffic said; says whether the health of a host is another by that.
    fn passive_failures(&mut self) -> bool {
        if !self.health.ill.swap(false, Ordering::AcqRel) {
            return false;
        }
        let mut changed = false;
        for session in self.sessions.values_mut() {
            if session.host.take_ill() && !session.host.active().failed() {
                changed |= session.judge(&self.cluster, Verdict::Fail(Failure::Passive)) == Transition::Changed;
            }
        }
        changed
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, id));
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            self.health.stats.attempt.inc();
            let target = Target {
                cluster: Arc::clone(&self.cluster),
                host: Arc::clone(&session.host),
                health: Arc::clone(&self.health),
            };
            session.next = Next::Running(self.checks.spawn_local(check(target, session.kept.take())));
        }
    }

    /// Takes a verdict; says whether the health of the host is another by that.
    fn finish(&mut self, done: Done) -> bool {
        let id = done.host.id;
        let Some(session) = self.sessions.get_mut(&id).filter(|s| Arc::ptr_eq(&s.host, &done.host)) else {
            return false;
        };
        let transition = session.judge(&self.cluster, done.verdict);
        session.kept = done.kept;
        let (pace, passed) = (&self.health.check.pace, matches!(done.verdict, Verdict::Pass { .. }));
        let base = interval(pace, passed, transition, self.cluster.has_connected());
        let at = after(with_jitter(pace, base, |bound| fastrand::u64(..bound)).max(LEAST_INTERVAL));
        session.next = Next::At(at);
        self.due.insert((at, id));
        transition == Transition::Changed
    }
}

/// Ends the session of a host, and with it its check and its connection.
fn end(sessions: &mut HashMap<u32, Session>, due: &mut BTreeSet<(Instant, u32)>, id: u32) {
    match sessions.remove(&id).as_ref().map(|s| &s.next) {
        Some(Next::At(at)) => drop(due.remove(&(*at, id))),
        Some(Next::Running(check)) => check.abort(),
        None => {}
    }
}

impl Session {
    fn new(host: &Arc<Host>, health: &Arc<ActiveHealth>, at: Instant) -> Session {
        let session = Session {
            host: Arc::clone(host),
            health: Arc::clone(health),
            tally: Tally::default(),
            kept: None,
            next: Next::At(at),
        };
        session.count(ActiveFlags::UNCOUNTED, host.active());
        session
    }

    /// Keeps the gauges right when the flags of the host change.
    fn count(&self, before: ActiveFlags, after: ActiveFlags) {
        let stats = &self.health.stats;
        stats.healthy.add(i64::from(before.failed()) - i64::from(after.failed()));
        stats.degraded.add(i64::from(after.degraded()) - i64::from(before.degraded()));
    }

    fn judge(&mut self, cluster: &Cluster, verdict: Verdict) -> Transition {
        let (health, before) = (Arc::clone(&self.health), self.host.active());
        let (after, transition) = self.tally.judge(verdict, before, &health.check);
        self.host.set_active(after);
        if after.failed() && !before.failed() {
            self.host.count_failure();
        }
        self.count(before, after);
        let stats = &health.stats;
        match verdict {
            Verdict::Pass { .. } => stats.success.inc(),
            Verdict::Fail(failure) => {
                stats.failure.inc();
                if failure.is_network() {
                    stats.network_failure.inc();
                } else if failure == Failure::Passive {
                    stats.passive_failure.inc();
                }
            }
        }
        self.log(cluster, verdict, before, after);
        transition
    }

    fn log(&self, cluster: &Cluster, verdict: Verdict, before: ActiveFlags, after: ActiveFlags) {
        let (cluster, endpoint, check) = (&*cluster.config.name, &self.host.address, &self.health.check);
        match verdict {
            Verdict::Fail(failure) if after.failed() && !before.failed() => {
                tracing::info!(cluster, %endpoint, ?failure, "an endpoint is unhealthy: its health check failed");
            }
            Verdict::Fail(failure) if check.always_log_failures => {
                tracing::info!(cluster, %endpoint, ?failure, "a health check failed");
            }
            Verdict::Fail(failure) => tracing::debug!(cluster, %endpoint, ?failure, "a health check failed"),
            Verdict::Pass { .. } if before.failed() && !after.failed() => {
                tracing::info!(cluster, %endpoint, "an endpoint is healthy: it passes its health check");
            }
            Verdict::Pass { degraded } if check.always_log_successes => {
                tracing::info!(cluster, %endpoint, degraded, "a health check passed");
            }
            Verdict::Pass { degraded } if before.degraded() != after.degraded() => {
                tracing::info!(cluster, %endpoint, degraded, "an endpoint is degraded, or no longer");
            }
            Verdict::Pass { .. } => {}
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.count(self.host.active(), ActiveFlags::UNCOUNTED);
    }
}

/// One check within its time.
async fn check(target: Target, kept: Option<Kept>) -> Done {
    let check = Arc::clone(&target.health.check);
    let speak = async {
        match &check.kind {
            CheckKind::Http(http) => http::run(http, &target, kept).await,
            CheckKind::Grpc(grpc) => grpc::run(grpc, &target, kept).await,
            CheckKind::Tcp(tcp) => tcp::run(tcp, &target, kept).await,
        }
    };
    let timed = tokio::time::timeout(check.timeout, speak).await;
    let (verdict, kept) = timed.unwrap_or((Verdict::Fail(Failure::Timeout), None));
    Done { host: target.host, verdict, kept: kept.filter(|_| check.reuse_connection) }
}

/// Whether `bytes` has all `segments`, one behind the other.
fn contains_in_order(segments: &[Box<[u8]>], bytes: &[u8]) -> bool {
    let mut rest = bytes;
    segments.iter().all(|segment| match memchr::memmem::find(rest, segment) {
        Some(at) => {
            rest = rest.get(at + segment.len()..).unwrap_or_default();
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_must_come_in_order_and_may_have_others_between() {
        let segments = |of: &[&str]| of.iter().map(|s| s.as_bytes().into()).collect::<Vec<Box<[u8]>>>();
        assert!(contains_in_order(&[], b""));
        assert!(contains_in_order(&segments(&["a", "cd"]), b"xa b cd"));
        assert!(!contains_in_order(&segments(&["cd", "a"]), b"xa b cd"));
        assert!(!contains_in_order(&segments(&["ab", "bc"]), b"abc"), "no byte counts twice");
    }
}
