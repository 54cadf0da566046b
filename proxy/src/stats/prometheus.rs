//! The Prometheus text format, byte for byte as Envoy writes it: counters, gauges, text readouts, histograms; families
//! in the order of their names' segments, one `# TYPE` each, labels in the order in which tags were extracted.

use super::histogram::{Distribution, QUANTILES};
use super::registry::Inner;
use super::render::{Buckets, Query};
use super::{Body, Intervals, Kind, Stat, cells, number, render};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::Mutex;

/// Renders labels: `a="b",c="d"`.
pub(super) fn labels<'a>(tags: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (tag, value) in tags {
        if !out.is_empty() {
            out.push(',');
        }
        sanitize(tag, &mut out);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

/// Whatever Prometheus does not allow in a name becomes `_`.
fn sanitize(name: &str, out: &mut String) {
    out.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
}

pub(super) fn render(inner: &Inner, query: &Query) -> String {
    let mut out = String::new();
    family(inner, query, Kind::Counter, "counter", &mut out, |stat, name, labels, out| {
        let _ = writeln!(out, "{name}{{{labels}}} {}", stat.counter());
    });
    family(inner, query, Kind::Gauge, "gauge", &mut out, |stat, name, labels, out| {
        let _ = writeln!(out, "{name}{{{labels}}} {}", stat.gauge().0);
    });
    if query.text_readouts {
        family(inner, query, Kind::Text, "gauge", &mut out, |stat, name, labels, out| {
            let separator = if labels.is_empty() { "" } else { "," };
            let text = self::labels([("text_value", stat.text().as_str())].into_iter());
            let _ = writeln!(out, "{name}{{{labels}{separator}{text}}} 0");
        });
    }
    let summary = query.buckets == Buckets::Summary;
    let kind = if summary { "summary" } else { "histogram" };
    family(inner, query, Kind::Histogram, kind, &mut out, |stat, name, labels, out| {
        if let Body::Histogram { unit, intervals } = &stat.body {
            let separator = if labels.is_empty() { "" } else { "," };
            let total = histogram(inner, stat, unit.scale(), intervals, summary, |key, bound, value| {
                let suffix = if summary { "" } else { "_bucket" };
                let _ = writeln!(out, "{name}{suffix}{{{labels}{separator}{key}=\"{bound}\"}} {value}");
            });
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", number::general(total.sum(), 32));
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", total.total());
        }
    });
    out
}

/// Gives every bucket or quantile of a histogram to `line`; returns the distribution.
fn histogram(
    inner: &Inner,
    stat: &Stat,
    scale: i32,
    intervals: &Mutex<Intervals>,
    summary: bool,
    mut line: impl FnMut(&str, &str, &str),
) -> Distribution {
    let total = Distribution::new(&cells::bins(stat.id), scale);
    if summary {
        let interval = Distribution::new(&super::lock(intervals).interval, scale);
        for (quantile, value) in QUANTILES.iter().zip(interval.quantiles()) {
            line("quantile", &number::general(*quantile, 6), &number::general(value, 32));
        }
    } else {
        for bound in render::bounds(inner, &stat.name) {
            line("le", &number::general(*bound, 32), &total.count_below(*bound).to_string());
        }
        line("le", "+Inf", &total.total().to_string());
    }
    total
}

/// Writes all families of one kind.
fn family(
    inner: &Inner,
    query: &Query,
    kind: Kind,
    type_name: &str,
    out: &mut String,
    line: impl Fn(&Stat, &str, &str, &mut String),
) {
    let mut stats: Vec<Arc<Stat>> = inner.all(kind).into_iter().filter(|stat| query.shows(stat)).collect();
    stats.sort_by(|a, b| {
        let by_family = || by_segment(&a.extracted(inner).name, &b.extracted(inner).name);
        by_family().then_with(|| by_segment(&a.name, &b.name))
    });
    let mut family: Option<(&Arc<str>, String)> = None;
    for stat in &stats {
        let extracted = stat.extracted(inner);
        let name = match &family {
            Some((raw, name)) if **raw == extracted.name => name,
            _ => {
                let mut name = "envoy_".to_owned();
                sanitize(&extracted.name, &mut name);
                let _ = writeln!(out, "# TYPE {name} {type_name}");
                &family.insert((&extracted.name, name)).1
            }
        };
        line(stat, name, &extracted.labels, out);
    }
}

fn by_segment(a: &str, b: &str) -> std::cmp::Ordering {
    a.split('.').cmp(b.split('.'))
}
