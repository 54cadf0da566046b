//! Stats by name: finds or makes them, forgets them when their last handle is gone.

use super::tags::Tags;
use super::*;
use crate::config::model::StatsConfig;
use std::collections::{HashMap, HashSet};

/// Texts are swept for unused ones whenever the table has grown to twice what the last sweep left, at least this.
const SWEEP_FROM: usize = 1024;

pub(super) struct Inner {
    pub config: StatsConfig,
    tags: OnceLock<Tags>,
    names: [Mutex<HashMap<Arc<str>, Weak<Stat>>>; 4],
    texts: Mutex<Texts>,
    /// Counts stats that did not fit into the table and count nowhere.
    overflow: OnceLock<Counter>,
}

/// Texts that many stats share.
struct Texts {
    set: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Texts {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.set.get(text) {
            return shared.clone();
        }
        if self.set.len() >= self.sweep_at {
            self.set.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = (self.set.len() * 2).max(SWEEP_FROM);
        }
        let shared: Arc<str> = text.into();
        self.set.insert(shared.clone());
        shared
    }
}

impl Inner {
    fn names(&self, kind: Kind) -> MutexGuard<'_, HashMap<Arc<str>, Weak<Stat>>> {
        lock(&self.names[kind as usize])
    }

    /// Removes a stat whose last handle is gone, unless its name has a new stat by now.
    pub fn forget(&self, stat: &Stat) {
        let mut names = self.names(stat.kind());
        if names.get(&stat.name).is_some_and(|held| std::ptr::eq(held.as_ptr(), stat)) {
            names.remove(&stat.name);
            // memory follows what is configured down, too
            if names.len() < names.capacity() / 8 {
                names.shrink_to_fit();
            }
        }
    }

    /// All stats of a kind, in no order.
    pub fn all(&self, kind: Kind) -> Vec<Arc<Stat>> {
        self.names(kind).values().filter_map(Weak::upgrade).collect()
    }

    pub fn extract(&self, name: &str) -> Extracted {
        let tags = self.tags.get_or_init(|| Tags::new(self.config.use_all_default_tags, &self.config.tags));
        let extraction = tags.extract(name);
        self.share(&extraction.name, extraction.tags.iter().map(|(tag, value)| (tag.as_str(), value.as_str())))
    }

    fn share<'a>(&self, name: &str, tags: impl Iterator<Item = (&'a str, &'a str)>) -> Extracted {
        let labels = prometheus::labels(tags);
        let mut texts = lock(&self.texts);
        Extracted { name: texts.share(name), labels: texts.share(&labels) }
    }
}

/// All stats of the process. Clones share.
#[derive(Clone)]
pub struct Registry(pub(super) Arc<Inner>);

impl Registry {
    pub fn new(config: StatsConfig) -> Registry {
        Registry(Arc::new(Inner {
            config,
            tags: OnceLock::new(),
            names: Default::default(),
            texts: Mutex::new(Texts { set: HashSet::new(), sweep_at: SWEEP_FROM }),
            overflow: OnceLock::new(),
        }))
    }

    /// Gives this thread cells of its own, so that its counting touches no other core's cache lines. Called once by each
    /// worker; threads that did not call it share cells.
    pub fn adopt_thread(&self) {
        cells::adopt_thread();
    }

    /// The counter of this full name; the same name gives the same counter.
    pub fn counter(&self, name: &str) -> Counter {
        Counter(self.get(Kind::Counter, name, None, || Body::Counter))
    }

    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge(self.get(Kind::Gauge, name, None, || Body::Gauge))
    }

    pub fn histogram(&self, name: &str, unit: Unit) -> Histogram {
        Histogram(self.get(Kind::Histogram, name, None, || Body::Histogram { unit, intervals: Box::default() }))
    }

    pub fn text_readout(&self, name: &str) -> TextReadout {
        TextReadout(self.get(Kind::Text, name, None, || Body::Text(Box::default())))
    }

    /// A counter with tags that are given, not taken out of its name. Its full name is the name followed by
    /// `.<tag>.<value>` for each, as Envoy makes it.
    pub fn counter_with_tags(&self, name: &str, tags: &[(&str, &str)]) -> Counter {
        Counter(self.get(Kind::Counter, &full_name(name, tags), Some((name, tags)), || Body::Counter))
    }

    /// As [`Registry::counter_with_tags`].
    pub fn gauge_with_tags(&self, name: &str, tags: &[(&str, &str)]) -> Gauge {
        Gauge(self.get(Kind::Gauge, &full_name(name, tags), Some((name, tags)), || Body::Gauge))
    }

    /// As [`Registry::counter_with_tags`].
    pub fn histogram_with_tags(&self, name: &str, tags: &[(&str, &str)], unit: Unit) -> Histogram {
        let body = || Body::Histogram { unit, intervals: Box::default() };
        Histogram(self.get(Kind::Histogram, &full_name(name, tags), Some((name, tags)), body))
    }

    /// Names under a common prefix (which ends with its dot).
    pub fn scope(&self, prefix: &str) -> Scope {
        Scope { registry: self.clone(), prefix: prefix.into() }
    }

    /// Ends the interval of every histogram; called every `stats_flush_interval`.
    pub fn flush(&self) {
        for stat in self.0.all(Kind::Histogram) {
            let Body::Histogram { intervals, .. } = &stat.body else { continue };
            let now = cells::bins(stat.id);
            let mut intervals = lock(intervals);
            intervals.interval = now.since(&intervals.flushed);
            intervals.flushed = now;
        }
    }

    /// Sets every counter to zero; they stay "used".
    pub fn reset_counters(&self) {
        for stat in self.0.all(Kind::Counter).iter().filter(|stat| stat.counter() != 0) {
            stat.marked.store(true, Relaxed);
            cells::zero(stat.id);
        }
    }

    fn get(
        &self,
        kind: Kind,
        name: &str,
        tags: Option<(&str, &[(&str, &str)])>,
        body: impl FnOnce() -> Body,
    ) -> Handle {
        let mut names = self.0.names(kind);
        if let Some(stat) = names.get(name).and_then(Weak::upgrade) {
            return Handle { id: stat.id, stat: Some(stat) };
        }
        if !self.0.config.matcher.accepts(name) {
            return Handle::default();
        }
        let id = match kind {
            Kind::Counter | Kind::Gauge => cells::allocate_number(),
            Kind::Histogram => cells::allocate_histogram(),
            Kind::Text => Some(0),
        };
        let Some(id) = id else {
            drop(names);
            if name != "stats.overflow" {
                self.0.overflow.get_or_init(|| self.counter("stats.overflow")).inc();
            }
            return Handle::default();
        };
        let name: Arc<str> = name.into();
        let extracted = OnceLock::new();
        if let Some((name, tags)) = tags {
            let _ = extracted.set(self.0.share(name, tags.iter().copied()));
        }
        let stat = Arc::new(Stat {
            id,
            marked: AtomicBool::new(false),
            name: name.clone(),
            body: body(),
            extracted,
            registry: Arc::downgrade(&self.0),
        });
        names.insert(name, Arc::downgrade(&stat));
        Handle { id, stat: Some(stat) }
    }
}

fn full_name(name: &str, tags: &[(&str, &str)]) -> String {
    tags.iter().fold(name.to_owned(), |full, (tag, value)| full + "." + tag + "." + value)
}

/// A part of the registry under a prefix.
#[derive(Clone)]
pub struct Scope {
    registry: Registry,
    prefix: Arc<str>,
}

impl Scope {
    pub fn counter(&self, name: &str) -> Counter {
        self.registry.counter(&format!("{}{name}", self.prefix))
    }

    pub fn gauge(&self, name: &str) -> Gauge {
        self.registry.gauge(&format!("{}{name}", self.prefix))
    }

    pub fn histogram(&self, name: &str, unit: Unit) -> Histogram {
        self.registry.histogram(&format!("{}{name}", self.prefix), unit)
    }

    pub fn text_readout(&self, name: &str) -> TextReadout {
        self.registry.text_readout(&format!("{}{name}", self.prefix))
    }

    pub fn scope(&self, prefix: &str) -> Scope {
        self.registry.scope(&format!("{}{prefix}", self.prefix))
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{StatsMatcher, StringMatch};
    use std::sync::Barrier;

    fn registry() -> Registry {
        Registry::new(StatsConfig::default())
    }

    #[test]
    fn one_name_is_one_stat() {
        let registry = registry();
        let scope = registry.scope("a.").scope("b.");
        scope.counter("c").inc();
        assert_eq!(registry.counter("a.b.c").value(), 0, "the only handle was dropped");
        let held = scope.counter("c");
        registry.counter("a.b.c").add(2);
        assert_eq!(held.value(), 2);
        let gauge = registry.gauge("a.b.c");
        gauge.inc();
        assert_eq!((gauge.value(), held.value()), (1, 2));
    }

    #[test]
    fn a_default_or_excluded_handle_counts_nowhere() {
        let inclusion = vec![StringMatch::Prefix { value: "in".into(), ignore_case: false }];
        let config = StatsConfig { matcher: StatsMatcher::Inclusion(inclusion), ..StatsConfig::default() };
        let registry = Registry::new(config);
        let (inside, outside) = (registry.counter("in.a"), registry.counter("out.a"));
        inside.inc();
        outside.inc();
        Histogram::default().record(1);
        assert_eq!((inside.value(), outside.value()), (1, 0));
        assert_eq!(registry.0.all(Kind::Counter).len(), 1);
    }

    #[test]
    fn threads_count_into_one_sum_and_their_counts_outlive_them() {
        let registry = registry();
        let (counter, gauge) = (registry.counter("c"), registry.gauge("g"));
        let histogram = registry.histogram("h", Unit::Bytes);
        let start = Barrier::new(6);
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (registry, start) = (&registry, &start);
                let (counter, gauge, histogram) = (counter.clone(), gauge.clone(), histogram.clone());
                scope.spawn(move || {
                    if thread < 3 {
                        registry.adopt_thread();
                    }
                    start.wait();
                    for i in 0..10_000 {
                        counter.inc();
                        gauge.add(if thread % 2 == 0 { 2 } else { -1 });
                        histogram.record(i);
                    }
                });
            }
        });
        assert_eq!((counter.value(), gauge.value(), histogram.count()), (60_000, 30_000, 60_000));
    }

    #[test]
    fn stats_may_come_and_go_while_others_count() {
        let registry = registry();
        let steady = registry.counter("steady");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (registry, steady) = (&registry, &steady);
                scope.spawn(move || {
                    registry.adopt_thread();
                    for i in 0..2_000_u64 {
                        let own = registry.counter(&format!("t{thread}.c{}", i % 7));
                        assert_eq!(own.value(), 0, "a reused cell starts from zero");
                        own.add(i + 1);
                        let contended = registry.gauge("contended");
                        contended.inc();
                        contended.dec();
                        steady.inc();
                        assert_eq!(own.value(), i + 1);
                    }
                });
            }
        });
        assert_eq!(steady.value(), 8_000);
        assert_eq!(registry.0.all(Kind::Counter).len(), 1);
        assert_eq!(registry.0.all(Kind::Gauge).len(), 0);
    }

    #[test]
    fn gauges_remember_that_they_were_written() {
        let registry = registry();
        let (a, b, c) = (registry.gauge("a"), registry.gauge("b"), registry.gauge("c"));
        a.inc();
        a.dec();
        b.set(u64::MAX - 1);
        let used = |gauge: &Gauge| gauge.0.stat.as_ref().is_some_and(|stat| stat.is_used());
        assert_eq!([used(&a), used(&b), used(&c)], [true, true, false]);
        assert_eq!((a.value(), b.value()), (0, u64::MAX - 1));
        // the hash that Envoy shows for version "1" has its highest bit set
        b.set(13_237_225_503_670_494_420);
        assert_eq!(b.value(), 13_237_225_503_670_494_420);
        assert!(registry.text(&Query::default()).contains("b: 13237225503670494420\n"));
        a.dec();
        assert_eq!(a.value(), 0);
    }

    #[test]
    fn reset_counters_stay_used() {
        let registry = registry();
        let counter = registry.counter("a");
        counter.add(5);
        registry.reset_counters();
        assert_eq!(counter.value(), 0);
        assert!(counter.0.stat.as_ref().is_some_and(|stat| stat.is_used()));
    }
}
