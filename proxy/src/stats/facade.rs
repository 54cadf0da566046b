//! The `metrics` facade over the registry: for cold paths and for libraries that speak it. Hot paths hold handles.

use super::{Counter, Gauge, Histogram, Registry, Unit, lock};
use metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, SharedString};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A name that libraries can make up at run time must not fill the memory.
const MOST_METRICS: usize = 4096;

/// A `metrics::Recorder`. Labels become tags; names are shown under Envoy's prefix like all others.
pub struct Facade {
    registry: Registry,
    counters: Held<Counter>,
    gauges: Held<Gauge>,
    histograms: Held<Histogram>,
}

/// The facade's macros keep no handle, so the recorder does.
type Held<T> = Mutex<HashMap<Key, Arc<T>>>;

impl Facade {
    pub fn new(registry: Registry) -> Facade {
        Facade { registry, counters: Mutex::default(), gauges: Mutex::default(), histograms: Mutex::default() }
    }
}

fn hold<T: Default>(held: &Held<T>, key: &Key, make: impl FnOnce(&str, &[(&str, &str)]) -> T) -> Arc<T> {
    let mut held = lock(held);
    if let Some(found) = held.get(key) {
        return found.clone();
    }
    if held.len() >= MOST_METRICS {
        return Arc::default();
    }
    let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
    let made = Arc::new(make(key.name(), &labels));
    held.insert(key.clone(), made.clone());
    made
}

impl metrics::Recorder for Facade {
    fn describe_counter(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
        let make = |name: &str, labels: &[(&str, &str)]| self.registry.counter_with_tags(name, labels);
        metrics::Counter::from_arc(hold(&self.counters, key, make))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        let make = |name: &str, labels: &[(&str, &str)]| self.registry.gauge_with_tags(name, labels);
        metrics::Gauge::from_arc(hold(&self.gauges, key, make))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        let make =
            |name: &str, labels: &[(&str, &str)]| self.registry.histogram_with_tags(name, labels, Unit::Unspecified);
        metrics::Histogram::from_arc(hold(&self.histograms, key, make))
    }
}

impl CounterFn for Counter {
    fn increment(&self, value: u64) {
        self.add(value);
    }

    fn absolute(&self, value: u64) {
        self.add(value.saturating_sub(self.value()));
    }
}

/// Gauges here are whole numbers: fractions are cut off.
impl GaugeFn for Gauge {
    fn increment(&self, value: f64) {
        self.add(value as i64);
    }

    fn decrement(&self, value: f64) {
        self.add(-(value as i64));
    }

    fn set(&self, value: f64) {
        Gauge::set(self, value as u64);
    }
}

/// Values here are whole numbers: fractions are cut off.
impl HistogramFn for Histogram {
    fn record(&self, value: f64) {
        Histogram::record(self, value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Query;
    use super::*;
    use crate::config::model::StatsConfig;

    #[test]
    fn macros_count_into_the_registry() {
        let registry = Registry::new(StatsConfig::default());
        let facade = Facade::new(registry.clone());
        metrics::with_local_recorder(&facade, || {
            metrics::counter!("pushes", "kind" => "cds").increment(2);
            metrics::counter!("pushes", "kind" => "cds").increment(1);
            metrics::gauge!("size").set(7.0);
        });
        let page = registry.prometheus(&Query::default());
        assert!(page.contains("envoy_pushes{kind=\"cds\"} 3\n"), "{page}");
        assert!(page.contains("envoy_size{} 7\n"), "{page}");
    }
}
