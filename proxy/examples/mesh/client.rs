//! The client application: steady open-loop load, and single requests for the checks.
//!
//! Open loop: requests are due at fixed times, whether or not earlier ones were answered. A request that had to wait
//! for a free connection counts from when it was due.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrigger_tests::client::{H1Client, Reply, get};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Result;
use crate::resources::CONFIG_HEADER;
use crate::roles::{Obey, unknown};
use crate::stats::Histogram;

/// Different errors kept to be shown.
const MAX_ERRORS: usize = 5;

/// Now, in microseconds since 1970: comparable between the processes of one machine.
pub fn unix_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// The client's process.
#[derive(Default)]
pub struct Client {
    seen: Arc<Mutex<Seen>>,
    load: Option<Load>,
}

impl Obey for Client {
    async fn obey(&mut self, command: &Value) -> Result<Value> {
        match command["do"].as_str() {
            // {"do": "start", "target": ADDRESS, "authority": HOST, "rate": per second, "connections": N}
            Some("start") => {
                self.load = Some(Load::start(command, Arc::clone(&self.seen))?);
                Ok(Value::Null)
            }
            // Ends the load, with no request left under way.
            Some("stop") => {
                if let Some(load) = self.load.take() {
                    load.stop().await;
                }
                Ok(Value::Null)
            }
            // Begins a new window.
            Some("mark") => {
                lock(&self.seen).window = Window::default();
                Ok(Value::Null)
            }
            // What was seen since the last mark, and since the start.
            Some("report") => Ok(lock(&self.seen).to_json()),
            // {"do": "get", "target": ADDRESS, "authority": HOST, "path": PATH, "times": N}: N requests at once.
            Some("get") => fetch(command).await,
            _ => unknown(command),
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn target(command: &Value) -> Result<SocketAddr> {
    let text = command["target"].as_str().unwrap_or_default();
    text.parse().map_err(|e| format!("target '{text}': {e}"))
}

async fn fetch(command: &Value) -> Result<Value> {
    let target = target(command)?;
    let mut requests = JoinSet::new();
    for _ in 0..command["times"].as_u64().unwrap_or(1) {
        let text = |key: &str| command[key].as_str().unwrap_or_default().to_owned();
        let (authority, path) = (text("authority"), text("path"));
        requests.spawn(async move {
            let mut client = H1Client::connect(&target.into()).await?;
            client.send(get(&authority, &path)).await
        });
    }
    let mut replies = Vec::new();
    while let Some(done) = requests.join_next().await {
        replies.push(match done.map_err(|e| e.to_string())? {
            Ok(reply) => json!({ "status": reply.status.as_u16(), "text": reply.text(), "json": reply.json() }),
            Err(e) => json!({ "status": 0, "text": e.to_string() }),
        });
    }
    Ok(replies.into())
}

/// What came of the requests.
#[derive(Default)]
struct Seen {
    window: Window,
    answered: u64,
    failed: u64,
    errors: BTreeSet<String>,
}

#[derive(Default)]
struct Window {
    answered: u64,
    failed: u64,
    latency: Histogram,
    configs: BTreeMap<u64, UnderConfig>,
}

/// Answers to requests that were routed by one configuration.
#[derive(Default)]
struct UnderConfig {
    first_at: u64,
    versions: BTreeMap<String, u64>,
}

impl Seen {
    fn take(&mut self, latency: Duration, outcome: Result<Reply>) {
        self.window.latency.record(latency);
        match outcome {
            Ok(reply) if reply.status == 200 => {
                self.answered += 1;
                self.window.answered += 1;
                // Direct answers carry no configuration: they count under 0.
                let config = reply.header(CONFIG_HEADER).parse().unwrap_or_default();
                let under = self.window.configs.entry(config).or_default();
                if under.first_at == 0 {
                    under.first_at = unix_micros();
                }
                *under.versions.entry(reply.origin_version().to_owned()).or_default() += 1;
            }
            Ok(reply) => self.fail(format!("{}: {}", reply.status, reply.text())),
            Err(e) => self.fail(e),
        }
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.window.failed += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.insert(what);
        }
    }

    fn to_json(&self) -> Value {
        let configs =
            self.window.configs.iter().map(
                |(number, under)| json!({ "number": number, "first_at": under.first_at, "versions": under.versions }),
            );
        json!({
            "total": { "answered": self.answered, "failed": self.failed, "errors": self.errors },
            "answered": self.window.answered,
            "failed": self.window.failed,
            "latency": self.window.latency.to_json(),
            "configs": configs.collect::<Vec<_>>(),
        })
    }
}

/// Load that is being made.
struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

struct Shared {
    target: SocketAddr,
    authority: String,
    rate: f64,
    start: Instant,
    next: AtomicU64,
    stop: AtomicBool,
    seen: Arc<Mutex<Seen>>,
}

impl Load {
    fn start(command: &Value, seen: Arc<Mutex<Seen>>) -> Result<Self> {
        let shared = Arc::new(Shared {
            target: target(command)?,
            authority: command["authority"].as_str().unwrap_or_default().to_owned(),
            rate: command["rate"].as_f64().unwrap_or(1.0),
            start: Instant::now(),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            seen,
        });
        let mut workers = JoinSet::new();
        for _ in 0..command["connections"].as_u64().unwrap_or(1) {
            workers.spawn(work(Arc::clone(&shared)));
        }
        Ok(Self { shared, workers })
    }

    async fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.workers.join_next().await.is_some() {}
    }
}

/// One connection's work: takes the next request that is due, waits for its time, sends it.
async fn work(shared: Arc<Shared>) {
    let mut client = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let offset = Duration::try_from_secs_f64(number as f64 / shared.rate).unwrap_or(Duration::MAX);
        let Some(due) = shared.start.checked_add(offset) else { return };
        let waited = Instant::now() < due;
        tokio::time::sleep_until(due.into()).await;
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // The timer wakes us up to a millisecond late; that is ours. Being late because we were busy is the server's.
        let from = if waited { Instant::now() } else { due };
        let outcome = one(&shared, &mut client).await;
        lock(&shared.seen).take(from.elapsed(), outcome);
    }
}

/// Sends one request, over a new connection when the last one was closed. Nothing is sent twice.
async fn one(shared: &Shared, client: &mut Option<H1Client>) -> Result<Reply> {
    let mut connected = match client.take().filter(H1Client::is_open) {
        Some(open) => open,
        None => H1Client::connect(&shared.target.into()).await.map_err(|e| format!("connect: {e}"))?,
    };
    let reply = connected.send(get(&shared.authority, "/")).await.map_err(|e| e.to_string())?;
    *client = Some(connected);
    Ok(reply)
}
