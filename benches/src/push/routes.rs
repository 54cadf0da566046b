//! Route configurations pushed many times a second while requests are under way.

use super::Row;
use super::bed::Bed;
use crate::load;
use outrigger_tests::config;
use outrigger_tests::control_plane::{CDS, ControlPlane, RDS};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xds_client::{Client, Event, Options, Subscription, TcpConnector, TypeUrl};
use xds_protos::pb::envoy::config::core::v3::Node;
use xds_protos::pb::envoy::config::route::v3::RouteConfiguration;

/// How it is run.
pub struct Run {
    /// Pushes a second.
    pub pushes: f64,
    /// Requests a second.
    pub requests: f64,
    pub connections: usize,
    /// Virtual hosts of the route configuration, each with five routes.
    pub hosts: usize,
    pub seconds: f64,
    pub rounds: usize,
}

/// What one proxy's clients saw, medians over the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub quiet_p50_ms: f64,
    pub quiet_p99_ms: f64,
    pub pushed_p50_ms: f64,
    pub pushed_p99_ms: f64,
    /// Pushes that went out, a second.
    pub pushes: f64,
    /// CPU per push, above that of a round without.
    pub worker_ms: f64,
    pub control_ms: f64,
}

impl Seen {
    pub const ROWS: [Row<Seen>; 8] = [
        ("p50 without pushes, ms", |s| s.quiet_p50_ms),
        ("p50 with, ms", |s| s.pushed_p50_ms),
        ("p99 without pushes, ms", |s| s.quiet_p99_ms),
        ("p99 with, ms", |s| s.pushed_p99_ms),
        ("p99 with / without", Seen::moved),
        ("pushes a second", |s| s.pushes),
        ("a push: worker, ms", |s| s.worker_ms),
        ("a push: control, ms", |s| s.control_ms),
    ];

    /// The p99 with pushes over that without.
    pub fn moved(&self) -> f64 {
        self.pushed_p99_ms / self.quiet_p99_ms
    }

    pub fn to_json(self) -> Value {
        json!({
            "quiet": {"p50_ms": self.quiet_p50_ms, "p99_ms": self.quiet_p99_ms},
            "pushed": {"p50_ms": self.pushed_p50_ms, "p99_ms": self.pushed_p99_ms},
            "p99_moved": self.moved(), "pushes": self.pushes,
            "one_push": {"worker_ms": self.worker_ms, "control_ms": self.control_ms},
        })
    }
}

/// Many virtual hosts of which the last one is asked for; `k` makes one differ from the next.
fn table(hosts: usize, k: u32) -> RouteConfiguration {
    let share = 50 + k % 40;
    let mut table = config::route_config("routes", Vec::new());
    table.virtual_hosts = (0..hosts)
        .map(|host| {
            let mut routes: Vec<_> = (0..4).map(|n| config::route_to(&format!("/service-{n}/v1/"), "origin")).collect();
            routes.push(config::weighted_route("/", &[("origin", share), ("canary", 100 - share)]));
            let mut virtual_host = config::virtual_host(&format!("service-{host}"), routes);
            virtual_host.domains = vec![format!("service-{host}.default.svc.cluster.local"), format!("10.0.{host}.1")];
            virtual_host
        })
        .collect();
    if let Some(last) = table.virtual_hosts.last_mut() {
        last.domains = vec!["*".to_owned()];
    }
    table
}

/// Runs one proxy through it.
pub fn run(binary: &Path, run: &Run, origin: SocketAddr) -> Result<Seen, String> {
    let bed = Bed::start(binary, &table(run.hosts, 0))?;
    bed.push(&[CDS, RDS], |batch| {
        for name in ["origin", "canary"] {
            batch.set(name, &config::static_cluster(name, &[origin]));
        }
        batch
    })?;
    bed.wait_live()?;
    let sink = Sink::start(&table(run.hosts, 0))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let mut options = load::Options {
        target: bed.front,
        path: "/".into(),
        host: "bench.example".into(),
        seconds: 1.0,
        connections: run.connections,
        rate: Some(run.requests),
    };
    let load = |options: &load::Options| {
        let outcome = runtime.block_on(load::run(options)).map_err(|e| format!("load: {e}"))?;
        match outcome.failed {
            0 => Ok(outcome),
            failed => Err(format!("{failed} of {} requests failed", failed + outcome.answered)),
        }
    };
    load(&options)?;
    options.seconds = run.seconds;
    let (mut quiet, mut pushed, mut used) = (Vec::new(), Vec::new(), Vec::new());
    let (mut number, mut out) = (0, 0);
    for _ in 0..run.rounds.max(1) {
        let before = bed.proxy.threads()?;
        quiet.push(with_pushes(&sink.control_plane, run, &mut number, || load(&options))?.latency);
        let between = bed.proxy.threads()?;
        let sent = bed.control_plane.sent().len();
        pushed.push(with_pushes(&bed.control_plane, run, &mut number, || load(&options))?.latency);
        let now = bed.proxy.threads()?;
        let went = bed.control_plane.sent().len() - sent;
        out += went;
        let (without, with) = (between.since(&before), now.since(&between));
        let each = |with: Duration, without: Duration| {
            (with.as_secs_f64() - without.as_secs_f64()) * 1000.0 / (went.max(1) as f64)
        };
        used.push((each(with.worker, without.worker), each(with.control, without.control)));
        bed.settled(RDS)?;
    }
    if let Some((type_url, text)) = bed.control_plane.nacks().into_iter().next() {
        return Err(format!("{type_url} was refused: {text}"));
    }
    let at = |rounds: &[hdrhistogram::Histogram<u64>], q: f64| {
        super::median(rounds.iter().map(|latency| latency.value_at_quantile(q) as f64 / 1000.0))
    };
    Ok(Seen {
        quiet_p50_ms: at(&quiet, 0.5),
        quiet_p99_ms: at(&quiet, 0.99),
        pushed_p50_ms: at(&pushed, 0.5),
        pushed_p99_ms: at(&pushed, 0.99),
        pushes: out as f64 / (run.seconds * run.rounds.max(1) as f64),
        worker_ms: super::median(used.iter().map(|(worker, _)| *worker)),
        control_ms: super::median(used.iter().map(|(_, control)| *control)),
    })
}

/// Takes pushes and does nothing with them: what making and sending them costs the machine is in both kinds of round,
/// and what differs is the proxy's.
struct Sink {
    control_plane: ControlPlane,
    _client: Client,
}

impl Sink {
    fn start(routes: &RouteConfiguration) -> Result<Sink, String> {
        let control_plane = ControlPlane::tcp().map_err(|e| format!("control plane: {e}"))?;
        control_plane.set(&routes.name, routes);
        let at = control_plane.socket_addr().to_string();
        let name = routes.name.clone();
        let (give, take) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let node = Node { id: "sink".into(), ..Node::default() };
                let (client, mut events) = Client::start(Options::new(node), Arc::new(TcpConnector::new(&at)));
                client.subscribe(&TypeUrl::ROUTE, Subscription::names([name]));
                // it ends when the client is dropped with the sink
                let _ = give.send(client);
                while let Some(event) = events.next().await {
                    if let Event::Response(response) = event {
                        response.ack();
                    }
                }
            });
        });
        let client = take.recv().map_err(|_| "the sink of pushes did not start".to_owned())?;
        Ok(Sink { control_plane, _client: client })
    }
}

/// Pushes from a thread of its own while `load` runs.
fn with_pushes<T>(control_plane: &ControlPlane, run: &Run, number: &mut u32, load: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // made beforehand: what this costs is not to be seen in the requests
            let tables: Vec<_> = (1..=40).map(|k| table(run.hosts, k)).collect();
            let (began, mut due) = (Instant::now(), Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                *number += 1;
                if let Some(table) = tables.get(*number as usize % tables.len()) {
                    control_plane.set("routes", table);
                }
                due += Duration::from_secs_f64(1.0 / run.pushes);
            }
        });
        let loaded = load();
        stop.store(true, Ordering::Relaxed);
        loaded
    })
}
