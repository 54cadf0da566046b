//! Latency histograms: recorded by the client, or read from a sidecar's Prometheus page.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Result;

/// Upper bounds of the buckets, milliseconds; above them is one more. Sidecars are told the same ones, so that all
/// figures of a run compare.
pub const BOUNDS: [f64; 28] = [
    0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0,
    25.0, 35.0, 50.0, 75.0, 100.0, 250.0, 1000.0,
];

/// How many values fell into each bucket of [`BOUNDS`], and above.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
}

impl Histogram {
    pub fn record(&mut self, latency: Duration) {
        let ms = latency.as_secs_f64() * 1000.0;
        // One past the last bound is the bucket above all.
        self.counts[BOUNDS.iter().take_while(|bound| **bound < ms).count()] += 1;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value a share of all values does not exceed, in milliseconds: interpolated within its bucket, as
    /// Prometheus's `histogram_quantile` does. The last bound for what is above it; 0 without values.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = share.clamp(0.0, 1.0) * self.count() as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (upper, count) in BOUNDS.iter().zip(self.counts) {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                return lower + (upper - lower) * ((rank - below) / count).max(0.0);
            }
            below += count;
            lower = *upper;
        }
        if self.count() == 0 { 0.0 } else { lower }
    }

    /// p50, p90, p99 and p99.9 in milliseconds.
    pub fn percentiles(&self) -> [f64; 4] {
        [0.5, 0.9, 0.99, 0.999].map(|share| self.quantile(share))
    }

    /// The share of values up to each of these bounds and above the one before; the last is the rest.
    pub fn shares(&self, bounds: &[f64]) -> Vec<f64> {
        let mut shares = vec![0.0; bounds.len() + 1];
        let total = self.count().max(1) as f64;
        for (number, count) in self.counts.iter().enumerate() {
            let upper = BOUNDS.get(number).copied().unwrap_or(f64::INFINITY);
            let bar = bounds.iter().take_while(|bound| **bound < upper).count();
            shares[bar] += *count as f64 / total;
        }
        shares
    }

    /// Adds the values of another one.
    pub fn add(&mut self, other: &Self) {
        for (mine, more) in self.counts.iter_mut().zip(other.counts) {
            *mine += more;
        }
    }

    /// What came since `before` was read.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut new = self.clone();
        for (count, old) in new.counts.iter_mut().zip(before.counts) {
            *count = count.saturating_sub(old);
        }
        new
    }

    pub fn to_json(&self) -> Value {
        let [p50, p90, p99, p999] = self.percentiles();
        json!({ "count": self.count(), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "p999_ms": p999, "buckets": self.counts })
    }

    pub fn from_json(value: &Value) -> Self {
        let mut new = Self::default();
        let counts = value["buckets"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        for (mine, count) in new.counts.iter_mut().zip(counts) {
            *mine = count;
        }
        new
    }

    /// Reads a histogram from a Prometheus page: the sum of all series of this name that have the label.
    pub fn read(page: &str, metric: &str, label: (&str, &str)) -> Result<Self> {
        let mut new = Self::default();
        // Buckets are cumulative, in ascending order, series by series.
        let mut below = 0;
        for (labels, value) in series(page, &format!("{metric}_bucket"), label) {
            let le = label_value(labels, "le").unwrap_or_default();
            let at = match le {
                "+Inf" => BOUNDS.len(),
                bound => {
                    let bound: f64 = bound.parse().map_err(|_| format!("{metric}: le=\"{le}\" is no number"))?;
                    let at = BOUNDS.iter().position(|known| (known - bound).abs() < 1e-9);
                    at.ok_or_else(|| format!("{metric}: le=\"{le}\" is no bound of histogram_bucket_settings"))?
                }
            };
            new.counts[at] += (value as u64).saturating_sub(below);
            below = if at == BOUNDS.len() { 0 } else { value as u64 };
        }
        Ok(new)
    }
}

/// The sum of all series of a counter or gauge that have the label.
pub fn read_sum(page: &str, metric: &str, label: (&str, &str)) -> u64 {
    series(page, metric, label).map(|(_, value)| value as u64).sum()
}

/// The lines of a metric that carry a label: their labels and value.
fn series<'a>(page: &'a str, metric: &'a str, label: (&'a str, &'a str)) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once("} ")?;
        let fits = label_value(labels, label.0) == Some(label.1);
        fits.then(|| value.trim().parse().ok()).flatten().map(|value| (labels, value))
    })
}

fn label_value<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split("\",").find_map(|one| one.trim_end_matches('"').strip_prefix(name)?.strip_prefix("=\""))
}
