//! What the rows say: medians and their ratio.

use crate::case::Row;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// One proxy's medians.
#[derive(Debug, Clone, Copy)]
pub struct Medians {
    pub cpu_us: f64,
    pub user_us: f64,
    pub rps: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub rss_mb: f64,
}

pub struct Summary {
    pub outrigger: Medians,
    pub envoy: Medians,
    /// Our CPU per request over Envoy's.
    pub cpu_ratio: f64,
}

impl Summary {
    pub fn of(rows: &[Row]) -> Summary {
        let of = |ours: bool| {
            let median = |value: fn(&Row) -> f64| {
                let mut values: Vec<f64> = rows.iter().filter(|r| r.outrigger == ours).map(value).collect();
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
            };
            Medians {
                cpu_us: median(|r| r.cpu_us),
                user_us: median(|r| r.user_us),
                rps: median(|r| r.rps),
                p50_ms: median(|r| r.p50_ms),
                p99_ms: median(|r| r.p99_ms),
                rss_mb: median(|r| r.rss_mb),
            }
        };
        let (outrigger, envoy) = (of(true), of(false));
        Summary { outrigger, envoy, cpu_ratio: outrigger.cpu_us / envoy.cpu_us }
    }

    pub fn text(&self) -> String {
        let mut out = String::from("HTTP/1.1 keep-alive, one worker, stats, routing and access log on (medians)\n");
        let mut row = |what: &str, ours: f64, theirs: f64| {
            // writing to a String cannot fail
            let _ = writeln!(out, "  {what:<26} {ours:>10.2} {theirs:>10.2} {:>7.2}x", ours / theirs);
        };
        let (o, e) = (&self.outrigger, &self.envoy);
        row("CPU per request, us", o.cpu_us, e.cpu_us);
        row("  of it in user mode, us", o.user_us, e.user_us);
        row("requests per second", o.rps, e.rps);
        row("p50, ms", o.p50_ms, e.p50_ms);
        row("p99, ms", o.p99_ms, e.p99_ms);
        row("resident memory, MB", o.rss_mb, e.rss_mb);
        out.insert_str(
            out.find('\n').map_or(0, |i| i + 1),
            &format!("  {:<26} {:>10} {:>10}\n", "", "Outrigger", "Envoy"),
        );
        out
    }

    pub fn to_json(&self) -> Value {
        let of = |m: &Medians| json!({"cpu_us": m.cpu_us, "user_us": m.user_us, "rps": m.rps, "p50_ms": m.p50_ms, "p99_ms": m.p99_ms, "rss_mb": m.rss_mb});
        json!({"outrigger": of(&self.outrigger), "envoy": of(&self.envoy), "cpu_ratio": self.cpu_ratio})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_each_and_their_ratio() {
        let row = |outrigger, cpu_us| Row {
            outrigger,
            rps: 1.0,
            cpu_us,
            user_us: 1.0,
            p50_ms: 1.0,
            p99_ms: 1.0,
            rss_mb: 1.0,
        };
        let rows =
            [row(true, 10.0), row(true, 100.0), row(true, 20.0), row(false, 40.0), row(false, 50.0), row(false, 60.0)];
        let summary = Summary::of(&rows);
        assert_eq!(summary.cpu_ratio, 20.0 / 50.0);
        assert!(summary.text().contains("0.40x"));
    }
}
