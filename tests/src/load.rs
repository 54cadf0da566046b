//! An open-loop load generator: requests are due at fixed times, whether or not earlier ones were answered.
//!
//! Latency counts from the time a request was due, so a stall shows in every request it held up (no coordinated
//! omission). The pause before a request is the timer's, which has a millisecond of grain; [`Sample::service`] leaves
//! it out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use tokio::task::JoinSet;

use crate::client::{H1Client, Target};

/// Load to make.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to.
    pub target: Target,
    /// The `host` to ask for.
    pub authority: String,
    /// The path to ask for.
    pub path: String,
    /// Requests per second.
    pub rate: f64,
    /// Connections to spread them over. A request whose turn comes waits when all are busy.
    pub connections: usize,
}

impl Load {
    /// A steady stream of GET / over HTTP/1.1.
    pub fn new(target: impl Into<Target>, rate: f64, connections: usize) -> Self {
        Self { target: target.into(), authority: "load".to_owned(), path: "/".to_owned(), rate, connections }
    }

    /// Starts it; it runs until [`Running::stop`].
    pub fn start(self) -> Running {
        self.start_for(None)
    }

    /// Runs it for a while.
    pub async fn run(self, duration: Duration) -> Report {
        let running = self.start_for(Some(duration));
        running.finish().await
    }

    fn start_for(self, duration: Option<Duration>) -> Running {
        let shared = Arc::new(Shared {
            load: self,
            start: Instant::now(),
            duration,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            samples: Mutex::default(),
        });
        let mut workers = JoinSet::new();
        for _ in 0..shared.load.connections.max(1) {
            workers.spawn(work(Arc::clone(&shared)));
        }
        Running { shared, workers }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// 2xx, from this version of the origin.
    Version(String),
    /// Another status.
    Status(u16),
    /// No response.
    Failed(String),
}

/// One request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was due.
    pub due: Instant,
    /// From when it was due to the last body byte.
    pub latency: Duration,
    /// From when it was sent to the last body byte.
    pub service: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

struct Shared {
    load: Load,
    start: Instant,
    duration: Option<Duration>,
    next: AtomicU64,
    stop: AtomicBool,
    samples: Mutex<Vec<Sample>>,
}

/// Load that is being made. Dropping it stops it at once, with requests under way given up.
pub struct Running {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

impl Running {
    /// The requests that have ended so far.
    pub fn so_far(&self) -> Report {
        Report { samples: self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner).clone() }
    }

    /// Stops making requests and waits for those under way.
    pub async fn stop(self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    async fn finish(mut self) -> Report {
        while self.workers.join_next().await.is_some() {}
        let mut samples = std::mem::take(&mut *self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner));
        samples.sort_by_key(|sample| sample.due);
        Report { samples }
    }
}

async fn work(shared: Arc<Shared>) {
    let mut client = None;
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        // Exact for any rate and length that a test can reach.
        let offset = Duration::try_from_secs_f64(number as f64 / shared.load.rate).unwrap_or(Duration::MAX);
        let Some(due) = shared.start.checked_add(offset) else { return };
        if shared.duration.is_some_and(|duration| offset >= duration) {
            return;
        }
        tokio::time::sleep_until(due.into()).await;
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let sent = Instant::now();
        let outcome = one(&shared.load, &mut client).await;
        let done = Instant::now();
        let sample = Sample { due, latency: done - due, service: done - sent, outcome };
        shared.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }
}

/// Sends one request, over a new connection when the last one is gone. Nothing is sent twice: a request on a
/// connection that closes meanwhile counts as failed.
async fn one(load: &Load, client: &mut Option<H1Client>) -> Outcome {
    if client.as_ref().is_none_or(|client| !client.is_open()) {
        match H1Client::connect(&load.target).await {
            Ok(new) => *client = Some(new),
            Err(e) => return Outcome::Failed(format!("connect: {e}")),
        }
    }
    let Some(connected) = client.as_mut() else { return Outcome::Failed("no connection".to_owned()) };
    let request: Request<Bytes> = crate::client::get(&load.authority, &load.path);
    match connected.send(request).await {
        Ok(reply) if reply.status.is_success() => Outcome::Version(reply.origin_version().to_owned()),
        Ok(reply) => Outcome::Status(reply.status.as_u16()),
        Err(e) => {
            *client = None;
            Outcome::Failed(e.to_string())
        }
    }
}

/// What came of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Every request, in the order in which they were due.
    pub samples: Vec<Sample>,
}

impl Report {
    /// How many requests ended each way.
    pub fn outcomes(&self) -> BTreeMap<Outcome, usize> {
        let mut counts = BTreeMap::new();
        for sample in &self.samples {
            *counts.entry(sample.outcome.clone()).or_default() += 1;
        }
        counts
    }

    /// How many requests a version answered.
    pub fn answered_by(&self, version: &str) -> usize {
        self.samples.iter().filter(|s| matches!(&s.outcome, Outcome::Version(v) if v == version)).count()
    }

    /// How many requests were not answered with 2xx.
    pub fn failed(&self) -> usize {
        self.samples.iter().filter(|s| !matches!(s.outcome, Outcome::Version(_))).count()
    }

    /// The part that was due at or after `from`.
    #[must_use]
    pub fn since(&self, from: Instant) -> Self {
        Self { samples: self.samples.iter().filter(|s| s.due >= from).cloned().collect() }
    }

    /// The latency that a share of the requests did not exceed; `share` from 0 to 1. Zero without requests.
    pub fn percentile(&self, share: f64) -> Duration {
        let mut latencies: Vec<Duration> = self.samples.iter().map(|s| s.latency).collect();
        latencies.sort_unstable();
        let last = latencies.len().saturating_sub(1);
        let rank = (share.clamp(0.0, 1.0) * latencies.len() as f64).ceil() as usize;
        latencies.get(rank.saturating_sub(1).min(last)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Behaviour, Origin};

    #[tokio::test]
    async fn load_keeps_its_rate_and_counts_every_outcome() {
        let origin = Origin::start("v1").unwrap();
        let report = Load::new(origin.address(), 200.0, 4).run(Duration::from_millis(500)).await;
        assert_eq!(report.samples.len(), 100, "one per 5 ms, answered or not");
        assert_eq!((report.answered_by("v1"), report.failed()), (100, 0));
        assert!(report.percentile(0.5) <= report.percentile(1.0) && report.percentile(1.0) > Duration::ZERO);
        assert!(origin.connections() <= 4);

        let running = Load::new(origin.address(), 500.0, 2).start();
        while running.so_far().answered_by("v1") < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        origin.set(Some(Behaviour::Status(503)));
        let from = Instant::now();
        while running.so_far().failed() < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(origin);
        while !running.so_far().outcomes().keys().any(|outcome| matches!(outcome, Outcome::Failed(_))) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let report = running.stop().await;
        assert!(report.outcomes()[&Outcome::Status(503)] >= 10);
        assert_eq!(report.since(from + Duration::from_millis(100)).answered_by("v1"), 0);
    }
}
