//! Counters, gauges, histograms and text readouts under Envoy's names, and the registry that owns them.
//!
//! A handle is resolved once, from configuration, and then costs a nanosecond; a stat that the configured matcher
//! excludes gets a handle that counts nowhere. Knows nothing of who counts.

mod cells;
mod facade;
mod histogram;
mod number;
mod prometheus;
mod registry;
mod render;
mod tags;

pub use facade::Facade;
pub use registry::{Registry, Scope};
pub use render::{Buckets, Query};
pub use tags::{check_tag_regex, is_default_tag};

use histogram::Bins;
use registry::Inner;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// A number that only grows. The default handle counts nowhere.
#[derive(Clone, Default)]
pub struct Counter(Handle);

impl Counter {
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    #[inline]
    pub fn add(&self, n: u64) {
        if self.0.stat.is_some() {
            cells::add(self.0.id, n);
        }
    }

    pub fn value(&self) -> u64 {
        self.0.stat.as_ref().map_or(0, |stat| stat.counter())
    }
}

/// A number that goes up and down. A gauge is either only set, to any number, or only counted. The default handle counts nowhere.
#[derive(Clone, Default)]
pub struct Gauge(Handle);

impl Gauge {
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    #[inline]
    pub fn add(&self, n: i64) {
        if self.0.stat.is_some() {
            cells::gauge_add(self.0.id, n);
        }
    }

    pub fn set(&self, n: u64) {
        if let Some(stat) = &self.0.stat {
            cells::gauge_set(self.0.id, n);
            stat.marked.store(true, Relaxed);
        }
    }

    /// Never below zero: increments and decrements of different threads may be seen out of order.
    pub fn value(&self) -> u64 {
        self.0.stat.as_ref().map_or(0, |stat| stat.gauge().0)
    }
}

/// What a histogram's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Unspecified,
    /// Shown in milliseconds, recorded in microseconds.
    Milliseconds,
    Bytes,
    Percent,
}

impl Unit {
    /// Power of ten from what is counted to what is shown.
    fn scale(self) -> i32 {
        if self == Unit::Milliseconds { -3 } else { 0 }
    }
}

/// A distribution, in bins of two significant digits. The default handle counts nowhere.
#[derive(Clone, Default)]
pub struct Histogram(Handle);

impl Histogram {
    /// For `Unit::Milliseconds`.
    #[inline]
    pub fn record_duration(&self, duration: Duration) {
        self.record(duration.as_micros() as u64);
    }

    /// For every other unit.
    #[inline]
    pub fn record(&self, value: u64) {
        if self.0.stat.is_some() {
            cells::record(self.0.id, value);
        }
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.0.stat.as_ref().map_or(0, |stat| cells::bins(stat.id).total())
    }
}

/// A text, e.g. a version. The default handle keeps nothing.
#[derive(Clone, Default)]
pub struct TextReadout(Handle);

impl TextReadout {
    pub fn set(&self, text: &str) {
        if let Some(stat) = &self.0.stat
            && let Body::Text(value) = &stat.body
        {
            stat.marked.store(true, Relaxed);
            text.clone_into(&mut lock(value));
        }
    }

    pub fn value(&self) -> String {
        self.0.stat.as_ref().map_or_else(String::new, |stat| stat.text())
    }
}

/// A stat's place and what keeps it alive. The id stands beside the pointer so that counting does not follow it.
#[derive(Clone, Default)]
struct Handle {
    id: u32,
    stat: Option<Arc<Stat>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Text,
}

enum Body {
    Counter,
    Gauge,
    Histogram { unit: Unit, intervals: Box<Mutex<Intervals>> },
    Text(Box<Mutex<String>>),
}

/// A histogram at the last flush: all of it, and what came in the interval before.
#[derive(Default)]
struct Intervals {
    flushed: Bins,
    interval: Bins,
}

/// One stat. Lives as long as a handle does; then its cells are zeroed and its id is given out again.
struct Stat {
    id: u32,
    /// Written once: for a counter that was reset, a gauge that was set, a text that was set.
    marked: AtomicBool,
    name: Arc<str>,
    body: Body,
    /// Made when an exposition first asks.
    extracted: OnceLock<Extracted>,
    registry: Weak<Inner>,
}

/// The name without its tags and the rendered labels, both shared with other stats.
struct Extracted {
    name: Arc<str>,
    /// `a="b",c="d"`.
    labels: Arc<str>,
}

impl Stat {
    fn kind(&self) -> Kind {
        match self.body {
            Body::Counter => Kind::Counter,
            Body::Gauge => Kind::Gauge,
            Body::Histogram { .. } => Kind::Histogram,
            Body::Text(_) => Kind::Text,
        }
    }

    fn counter(&self) -> u64 {
        cells::sum(self.id)
    }

    /// The value and whether it was ever written.
    fn gauge(&self) -> (u64, bool) {
        if self.marked.load(Relaxed) {
            return (cells::gauge_get(self.id), true);
        }
        let (value, used) = cells::gauge_sum(self.id);
        // below zero only in passing
        (value.max(0) as u64, used)
    }

    fn text(&self) -> String {
        match &self.body {
            Body::Text(text) => lock(text).clone(),
            _ => String::new(),
        }
    }

    /// Written since start, even to zero.
    fn is_used(&self) -> bool {
        match &self.body {
            Body::Counter => self.marked.load(Relaxed) || self.counter() != 0,
            Body::Gauge => self.gauge().1,
            Body::Histogram { .. } => cells::bins(self.id).total() > 0,
            Body::Text(_) => self.marked.load(Relaxed),
        }
    }

    fn extracted<'a>(&'a self, inner: &Inner) -> &'a Extracted {
        self.extracted.get_or_init(|| inner.extract(&self.name))
    }
}

impl Drop for Stat {
    fn drop(&mut self) {
        match self.kind() {
            Kind::Counter | Kind::Gauge => cells::release_number(self.id),
            Kind::Histogram => cells::release_histogram(self.id),
            Kind::Text => {}
        }
        if let Some(inner) = self.registry.upgrade() {
            inner.forget(self);
        }
    }
}

/// What these locks guard stays whole if a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
