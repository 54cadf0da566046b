//! What is claimed of the mesh, part by part, in the order in which it is shown.

mod canary;
mod identity;
mod latency;
mod outage;
mod rotation;
mod shift;

use serde_json::{Value, json};

use crate::Result;
use crate::process::Worker;
use crate::show::Show;
use crate::stats::Histogram;
use crate::world::{Mesh, wait_for};

/// Runs all parts. An error is something that broke off the run; a claim that does not hold is not.
pub async fn run(mesh: &mut Mesh, show: &mut Show) -> Result<()> {
    identity::check(mesh, show).await?;
    let measured = canary::check(mesh, show).await?;
    latency::check(mesh, show, &measured).await?;
    mesh.start_load().await?;
    shift::check(mesh, show).await?;
    rotation::check(mesh, show).await?;
    outage::check(mesh, show).await?;
    mesh.client.ask(json!({ "do": "stop" })).await?;
    totals(mesh, show).await
}

async fn totals(mesh: &mut Mesh, show: &mut Show) -> Result<()> {
    show.section("Totals");
    mesh.check_alive()?;
    let total = Seen::report(&mut mesh.client).await?.total;
    show.claim(
        total.failed == 0,
        &format!("{} requests through the mesh, failed {}", total.answered + total.failed, total.failed),
        &total.errors,
    );
    show.figure("requests", json!({ "total": total.answered + total.failed, "failed": total.failed }));
    let complaints = mesh.control_plane.ask(json!({ "do": "complaints" })).await?;
    let list =
        |key: &str| complaints[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    let (nacks, violations) = (list("nacks"), list("violations"));
    show.claim(nacks.is_empty(), "the sidecars accepted every resource", &nacks.join("; "));
    show.claim(violations.is_empty(), "and kept the rules of xDS", &violations.join("; "));
    Ok(())
}

/// What the client application has seen since its last mark.
struct Seen {
    answered: u64,
    failed: u64,
    latency: Histogram,
    configs: Vec<UnderConfig>,
    total: Total,
}

/// What it has seen since it was started.
struct Total {
    answered: u64,
    failed: u64,
    errors: String,
}

/// Answers to requests routed by one configuration.
#[derive(Clone)]
struct UnderConfig {
    number: u64,
    /// When the first one came, microseconds since 1970.
    first_at: u64,
    v1: u64,
    v2: u64,
}

impl Seen {
    async fn report(client: &mut Worker) -> Result<Self> {
        let report = client.ask(json!({ "do": "report" })).await?;
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let errors = report["total"]["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let configs = report["configs"].as_array().into_iter().flatten().map(|config| UnderConfig {
            number: number(&config["number"]),
            first_at: number(&config["first_at"]),
            v1: number(&config["versions"]["v1"]),
            v2: number(&config["versions"]["v2"]),
        });
        Ok(Self {
            answered: number(&report["answered"]),
            failed: number(&report["failed"]),
            latency: Histogram::from_json(&report["latency"]),
            configs: configs.collect(),
            total: Total {
                answered: number(&report["total"]["answered"]),
                failed: number(&report["total"]["failed"]),
                errors: errors.collect::<Vec<_>>().join("; "),
            },
        })
    }

    /// What was routed by configuration `number`.
    fn under(&self, number: u64) -> Option<&UnderConfig> {
        self.configs.iter().find(|config| config.number == number)
    }

    /// The claim that nothing failed since the last mark.
    fn claim_none_failed(&self, show: &mut Show) {
        let claim = format!("{} requests meanwhile, failed {}", self.answered + self.failed, self.failed);
        show.claim(self.failed == 0, &claim, &self.total.errors);
    }
}

/// Begins a new window of what the client sees.
async fn mark(client: &mut Worker) -> Result<()> {
    client.ask(json!({ "do": "mark" })).await.map(drop)
}

/// Waits until so many requests have ended since the last mark.
async fn wait_requests(client: &mut Worker, show: &Show, what: &str, count: u64) -> Result<Seen> {
    wait_for(&format!("{count} requests ({what})"), async || {
        let seen = Seen::report(client).await?;
        let done = seen.answered + seen.failed;
        show.progress(&format!("{what}: {} of {count} requests", done.min(count)));
        Ok((done >= count).then_some(seen))
    })
    .await
}

/// Waits until so many requests were routed by configuration `number`.
async fn wait_config(client: &mut Worker, show: &Show, number: u64, count: u64) -> Result<(Seen, UnderConfig)> {
    wait_for(&format!("{count} requests under configuration {number}"), async || {
        let seen = Seen::report(client).await?;
        let under = seen.under(number).cloned();
        let done = under.as_ref().map_or(0, |under| under.v1 + under.v2);
        show.progress(&format!("configuration {number}: {} of {count} requests", done.min(count)));
        Ok(under.filter(|_| done >= count).map(|under| (seen, under)))
    })
    .await
}

/// Where the number of requests to v2 may lie when each of `n` goes there with probability `weight`/100: 4.5 standard
/// deviations of the binomial distribution, which chance leaves seven times in a million.
fn interval(n: u64, weight: u32) -> (u64, u64) {
    let (n, p) = (n as f64, f64::from(weight) / 100.0);
    let (mean, off) = (n * p, 4.5 * (n * p * (1.0 - p)).sqrt());
    ((mean - off).max(0.0).ceil() as u64, (mean + off).min(n).floor() as u64)
}

/// The claim that a share is what its weight allows.
fn claim_share(show: &mut Show, under: &UnderConfig, weight: u32) {
    let n = under.v1 + under.v2;
    let (low, high) = interval(n, weight);
    let percent = 100.0 * under.v2 as f64 / n.max(1) as f64;
    let claim = format!("v1 {}, v2 {} of {n}: v2 has {percent:.1}% for a weight of {weight}", under.v1, under.v2);
    let allowed = if low == high { format!("exactly {low}") } else { format!("chance allows {low} to {high}") };
    show.claim(n > 0 && (low..=high).contains(&under.v2), &claim, &allowed);
}
