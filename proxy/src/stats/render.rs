//! `/stats` as text and as JSON, in Envoy's shapes.

use super::histogram::{DEFAULT_BUCKETS, Distribution, QUANTILES};
use super::registry::{Inner, Registry};
use super::{Body, Kind, Stat, cells, lock, number, prometheus};
use std::fmt::Write;
use std::sync::Arc;

/// Which stats a page shows, and how.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Only stats written since start.
    pub used_only: bool,
    /// Finds its match anywhere in the full name.
    pub filter: Option<regex::Regex>,
    pub invert_filter: bool,
    /// `counters`, `gauges`, `histograms` or `textreadouts` only.
    kind: Option<Kind>,
    pub buckets: Buckets,
    /// Prometheus only: text readouts as gauges.
    pub text_readouts: bool,
}

/// How histograms are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Buckets {
    /// Quantiles in text and JSON, cumulative buckets in Prometheus.
    #[default]
    None,
    Cumulative,
    Disjoint,
    Detailed,
    Summary,
}

impl Buckets {
    /// # Errors
    /// The values there are.
    pub fn parse(text: &str) -> Result<Buckets, String> {
        match text {
            "" | "none" => Ok(Buckets::None),
            "cumulative" => Ok(Buckets::Cumulative),
            "disjoint" => Ok(Buckets::Disjoint),
            "detailed" => Ok(Buckets::Detailed),
            "summary" => Ok(Buckets::Summary),
            _ => Err("usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n".into()),
        }
    }
}

impl Query {
    /// Restricts the page to one type, by the name `/stats?type=` gives it.
    ///
    /// # Errors
    /// The values there are.
    pub fn set_type(&mut self, text: &str) -> Result<(), String> {
        self.kind = match text {
            "" | "All" => None,
            "Counters" => Some(Kind::Counter),
            "Gauges" => Some(Kind::Gauge),
            "Histograms" => Some(Kind::Histogram),
            "TextReadouts" => Some(Kind::Text),
            _ => return Err("invalid &type= param".into()),
        };
        Ok(())
    }

    pub(super) fn shows(&self, stat: &Stat) -> bool {
        self.kind.is_none_or(|kind| kind == stat.kind())
            && self.filter.as_ref().is_none_or(|filter| filter.is_match(&stat.name) != self.invert_filter)
            && (!self.used_only || stat.is_used())
    }
}

/// Upper bounds of a histogram's buckets.
pub(super) fn bounds<'a>(inner: &'a Inner, name: &str) -> &'a [f64] {
    let configured = inner.config.histogram_buckets.iter().find(|(matcher, _)| matcher.matches(name.as_bytes()));
    configured.map_or(&DEFAULT_BUCKETS[..], |(_, bounds)| bounds)
}

impl Registry {
    /// `/stats/prometheus`.
    pub fn prometheus(&self, query: &Query) -> String {
        prometheus::render(&self.0, query)
    }

    /// `/stats`: text readouts, then counters and gauges, then histograms, each sorted by name.
    pub fn text(&self, query: &Query) -> String {
        let mut out = String::new();
        for stat in self.listed(query, &[Kind::Text]) {
            let _ = writeln!(out, "{}: {}", stat.name, quoted(&stat.text()));
        }
        for stat in self.listed(query, &[Kind::Counter, Kind::Gauge]) {
            let _ = writeln!(out, "{}: {}", stat.name, number_of(&stat));
        }
        for stat in self.listed(query, &[Kind::Histogram]) {
            self.text_histogram(&stat, query.buckets, &mut out);
        }
        out
    }

    fn text_histogram(&self, stat: &Stat, buckets: Buckets, out: &mut String) {
        let Some((total, interval)) = distributions(stat) else { return };
        let name = &stat.name;
        if total.total() == 0 {
            let _ = writeln!(out, "{name}: No recorded values");
            return;
        }
        match buckets {
            Buckets::None | Buckets::Summary => {
                let _ = writeln!(out, "{name}: {}", summary(&total, &interval));
            }
            Buckets::Cumulative | Buckets::Disjoint => {
                let rows = self.bucket_rows(stat, &total, &interval, buckets == Buckets::Disjoint);
                let row = |(bound, interval, total): &(f64, u64, u64)| {
                    format!("B{}({interval},{total})", number::general(*bound, 6))
                };
                let _ = writeln!(out, "{name}: {}", rows.iter().map(row).collect::<Vec<_>>().join(" "));
            }
            Buckets::Detailed => {
                let bins = |d: &Distribution| {
                    let bin = |bin: &super::histogram::Bin| {
                        format!("{},{}:{}", number::general(bin.left, 15), number::general(bin.width, 15), bin.count)
                    };
                    d.bins().iter().map(bin).collect::<Vec<_>>().join(", ")
                };
                let _ = writeln!(out, "{name}:\n  totals={}\n  intervals={}", bins(&total), bins(&interval));
                let _ = writeln!(out, "  summary={}", summary(&total, &interval));
            }
        }
    }

    /// (bound, count of the interval, count of all).
    fn bucket_rows(
        &self,
        stat: &Stat,
        total: &Distribution,
        interval: &Distribution,
        disjoint: bool,
    ) -> Vec<(f64, u64, u64)> {
        let mut before = (0, 0);
        let row = |bound: &f64| {
            let below = (interval.count_below(*bound), total.count_below(*bound));
            let row = if disjoint {
                (*bound, below.0.saturating_sub(before.0), below.1.saturating_sub(before.1))
            } else {
                (*bound, below.0, below.1)
            };
            before = below;
            row
        };
        bounds(&self.0, &stat.name).iter().map(row).collect()
    }

    /// `/stats?format=json`: one line, numbers as numbers, histograms last in the shape their mode asks for.
    pub fn json(&self, query: &Query) -> String {
        let mut rows = Vec::new();
        for stat in self.listed(query, &[Kind::Text]) {
            rows.push(format!("{{\"name\":{},\"value\":{}}}", quoted(&stat.name), quoted(&stat.text())));
        }
        for stat in self.listed(query, &[Kind::Counter, Kind::Gauge]) {
            rows.push(format!("{{\"name\":{},\"value\":{}}}", quoted(&stat.name), number_of(&stat)));
        }
        let histograms = self.listed(query, &[Kind::Histogram]);
        if !histograms.is_empty() {
            rows.push(format!("{{\"histograms\":{}}}", self.json_histograms(&histograms, query.buckets)));
        }
        format!("{{\"stats\":[{}]}}", rows.join(","))
    }

    fn json_histograms(&self, stats: &[Arc<Stat>], buckets: Buckets) -> String {
        let each = |row: &dyn Fn(&Stat, &Distribution, &Distribution) -> Option<String>| {
            let rows = stats.iter().filter_map(|stat| {
                let (total, interval) = distributions(stat)?;
                row(stat, &total, &interval)
            });
            rows.collect::<Vec<_>>().join(",")
        };
        let quantiles = QUANTILES.map(|q| number::json((q * 100_000.0).round() / 1000.0)).join(",");
        let values = |total: &Distribution, interval: &Distribution| {
            let pairs = total.quantiles().into_iter().zip(interval.quantiles());
            let pair = |(total, interval)| {
                format!("{{\"cumulative\":{},\"interval\":{}}}", number::json(total), number::json(interval))
            };
            pairs.map(pair).collect::<Vec<_>>().join(",")
        };
        match buckets {
            Buckets::None | Buckets::Summary => {
                let rows = each(&|stat, total, interval| {
                    let (name, values) = (quoted(&stat.name), values(total, interval));
                    (total.total() > 0).then(|| format!("{{\"name\":{name},\"values\":[{values}]}}"))
                });
                format!("{{\"supported_quantiles\":[{quantiles}],\"computed_quantiles\":[{rows}]}}")
            }
            Buckets::Cumulative | Buckets::Disjoint => {
                let rows = each(&|stat, total, interval| {
                    let rows = self.bucket_rows(stat, total, interval, buckets == Buckets::Disjoint);
                    let row = |(bound, interval, total): &(f64, u64, u64)| {
                        let bound = number::json(*bound);
                        format!("{{\"upper_bound\":{bound},\"interval\":{interval},\"cumulative\":{total}}}")
                    };
                    let rows = rows.iter().map(row).collect::<Vec<_>>().join(",");
                    let name = quoted(&stat.name);
                    (total.total() > 0).then(|| format!("{{\"name\":{name},\"buckets\":[{rows}]}}"))
                });
                format!("[{rows}]")
            }
            Buckets::Detailed => {
                let bins = |d: &Distribution| {
                    let bin = |bin: &super::histogram::Bin| {
                        let (left, width) = (number::json(bin.left), number::json(bin.width));
                        format!("{{\"lower_bound\":{left},\"width\":{width},\"count\":{}}}", bin.count)
                    };
                    d.bins().iter().map(bin).collect::<Vec<_>>().join(",")
                };
                let rows = each(&|stat, total, interval| {
                    let (totals, intervals) = (bins(total), bins(interval));
                    Some(format!(
                        "{{\"name\":{},\"totals\":[{totals}],\"intervals\":[{intervals}],\"percentiles\":[{}]}}",
                        quoted(&stat.name),
                        values(total, interval)
                    ))
                });
                format!("{{\"supported_percentiles\":[{quantiles}],\"details\":[{rows}]}}")
            }
        }
    }

    fn listed(&self, query: &Query, kinds: &[Kind]) -> Vec<Arc<Stat>> {
        let all = kinds.iter().flat_map(|kind| self.0.all(*kind));
        let mut stats: Vec<_> = all.filter(|stat| query.shows(stat)).collect();
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats
    }
}

/// All of a histogram as it is now, and its last whole interval.
fn distributions(stat: &Stat) -> Option<(Distribution, Distribution)> {
    let Body::Histogram { unit, intervals } = &stat.body else { return None };
    let total = Distribution::new(&cells::bins(stat.id), unit.scale());
    Some((total, Distribution::new(&lock(intervals).interval, unit.scale())))
}

/// `P0(interval,cumulative) ...`.
fn summary(total: &Distribution, interval: &Distribution) -> String {
    let values = interval.quantiles().into_iter().zip(total.quantiles());
    let part = |(q, (interval, total)): (&f64, (f64, f64))| {
        let percent = number::general(q * 100.0, 6);
        format!("P{percent}({},{})", number::shortest(interval), number::shortest(total))
    };
    QUANTILES.iter().zip(values).map(part).collect::<Vec<_>>().join(" ")
}

fn number_of(stat: &Stat) -> u64 {
    if stat.kind() == Kind::Counter { stat.counter() } else { stat.gauge().0 }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::StatsConfig;
    use crate::stats::{Counter, Gauge, Histogram, TextReadout, Unit};

    /// A registry with the numbers of a running Envoy: `<kind> <name> <value>` per line.
    fn registry(numbers: &str) -> (Registry, Vec<Counter>, Vec<Gauge>) {
        let registry = Registry::new(StatsConfig::default());
        let (mut counters, mut gauges) = (Vec::new(), Vec::new());
        for line in numbers.lines() {
            let [kind, name, value] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let value: u64 = value.parse().expect("a number");
            if kind == "counter" {
                counters.push(registry.counter(name));
                counters[counters.len() - 1].add(value);
            } else {
                gauges.push(registry.gauge(name));
                gauges[gauges.len() - 1].set(value);
            }
        }
        (registry, counters, gauges)
    }

    #[test]
    fn prometheus_numbers_are_byte_for_byte_envoy_s() {
        let (registry, _counters, _gauges) = registry(include_str!("testdata/numbers.txt"));
        let page = registry.prometheus(&Query { used_only: true, ..Query::default() });
        assert_eq!(page, include_str!("testdata/numbers.prom"));
    }

    /// The 29 samples of `cluster.svc_a.upstream_rq_time` in the reference run, and a histogram without any.
    fn histograms() -> (Registry, [Histogram; 2], TextReadout) {
        let registry = Registry::new(StatsConfig::default());
        let used = registry.histogram("cluster.svc_a.upstream_rq_time", Unit::Unspecified);
        for value in [0; 26].into_iter().chain([1, 48, 50]) {
            used.record(value);
        }
        let unused = registry.histogram("cluster.svc_b.upstream_rq_time", Unit::Unspecified);
        let text = registry.text_readout("version");
        text.set("a \"b\"");
        (registry, [used, unused], text)
    }

    const QUANTILES_LINE: &str = "cluster.svc_a.upstream_rq_time: P0(nan,0) P25(nan,0) P50(nan,0) P75(nan,0) \
        P90(nan,1.05) P95(nan,48.5) P99(nan,50.5) P99.5(nan,50.5) P99.9(nan,50.5) P100(nan,50.5)\n";

    #[test]
    fn histograms_in_text() {
        let (registry, handles, _text) = histograms();
        let page = registry.text(&Query::default());
        assert_eq!(
            page,
            format!("version: \"a \\\"b\\\"\"\n{QUANTILES_LINE}cluster.svc_b.upstream_rq_time: No recorded values\n")
        );
        let mut query = Query { buckets: Buckets::Cumulative, used_only: true, ..Query::default() };
        query.set_type("Histograms").expect("a type");
        assert_eq!(
            registry.text(&query),
            "cluster.svc_a.upstream_rq_time: B0.5(0,26) B1(0,27) B5(0,27) B10(0,27) B25(0,27) B50(0,29) B100(0,29) \
             B250(0,29) B500(0,29) B1000(0,29) B2500(0,29) B5000(0,29) B10000(0,29) B30000(0,29) B60000(0,29) \
             B300000(0,29) B600000(0,29) B1.8e+06(0,29) B3.6e+06(0,29)\n"
        );
        registry.flush();
        assert!(registry.text(&query).contains("B0.5(26,26) B1(27,27)"));
        handles[0].record(7);
        registry.flush();
        assert!(registry.text(&query).contains("B5(0,27) B10(1,28)"));
    }

    #[test]
    fn histograms_in_json_have_the_shape_of_their_mode() {
        let (registry, _handles, _text) = histograms();
        let mut query = Query::default();
        query.set_type("Histograms").expect("a type");
        assert_eq!(registry.json(&query), include_str!("testdata/histogram_quantiles.json").trim_end());
        query.buckets = Buckets::Disjoint;
        query.used_only = true;
        assert_eq!(registry.json(&query), include_str!("testdata/histogram_disjoint.json").trim_end());
        query.buckets = Buckets::Detailed;
        assert_eq!(registry.json(&query), include_str!("testdata/histogram_detailed.json").trim_end());
    }

    #[test]
    fn histograms_in_prometheus() {
        let (registry, _handles, _text) = histograms();
        let query = Query { used_only: true, text_readouts: true, ..Query::default() };
        assert_eq!(registry.prometheus(&query), include_str!("testdata/histogram.prom"));
    }

    #[test]
    fn filters_find_anywhere_in_the_name() {
        let registry = Registry::new(StatsConfig::default());
        let _held = [registry.counter("server.a"), registry.counter("listener.b")];
        let filter = regex::Regex::new("erver\\.").ok();
        let mut query = Query { filter, ..Query::default() };
        assert_eq!(registry.text(&query), "server.a: 0\n");
        query.invert_filter = true;
        assert_eq!(registry.text(&query), "listener.b: 0\n");
        query.used_only = true;
        assert_eq!(registry.json(&query), "{\"stats\":[]}");
    }
}
