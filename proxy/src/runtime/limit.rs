//! Limits of connections that only runtime sets: how many there may be at once, and how many there are.

use super::{Values, as_number};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Runtime says nothing: there is no limit.
const UNSET: u64 = u64::MAX;

/// A limit and its count. All handles of one key share both, so that whoever replaces one takes over the count.
#[derive(Debug, Clone)]
pub struct LiveLimit(Arc<Cell>);

#[derive(Debug)]
struct Cell {
    limit: AtomicU64,
    open: AtomicU64,
}

impl LiveLimit {
    /// Counts one more in, until what is returned is dropped; `None`: there are as many as there may be.
    pub fn admit(&self) -> Option<Admitted> {
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(self.clone());
        (before < self.0.limit.load(Ordering::Relaxed)).then_some(admitted)
    }
}

/// No limit.
impl Default for LiveLimit {
    fn default() -> Self {
        LiveLimit(Arc::new(Cell { limit: AtomicU64::new(UNSET), open: AtomicU64::new(0) }))
    }
}

/// One that was counted in.
#[derive(Debug)]
pub struct Admitted(LiveLimit);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The handles that are out, by key.
#[derive(Debug, Default)]
pub(super) struct Limits(HashMap<String, Weak<Cell>>);

impl Limits {
    pub fn limit(&mut self, key: &str, values: &Values) -> LiveLimit {
        if let Some(known) = self.0.get(key).and_then(Weak::upgrade) {
            return LiveLimit(known);
        }
        let new = LiveLimit::default();
        new.0.limit.store(limit(values, key), Ordering::Relaxed);
        self.0.insert(key.to_owned(), Arc::downgrade(&new.0));
        new
    }

    /// Values have changed.
    pub fn refresh(&mut self, values: &Values) {
        self.0.retain(|key, cell| {
            let held = cell.upgrade();
            held.map(|cell| cell.limit.store(limit(values, key), Ordering::Relaxed)).is_some()
        });
    }
}

fn limit(values: &Values, key: &str) -> u64 {
    values.get(key).and_then(as_number).map_or(UNSET, |number| number.max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use crate::runtime::{Runtime, Values};
    use serde_json::json;

    #[test]
    fn a_limit_holds_over_all_handles_and_follows_runtime() {
        let runtime = Runtime::of(Values::from([("max".to_owned(), json!(2))]));
        let (a, b) = (runtime.live_limit("max"), runtime.live_limit("max"));
        let first = a.admit().unwrap();
        let second = b.admit().unwrap();
        assert!(a.admit().is_none() && b.admit().is_none());
        drop(first);
        let again = b.admit().unwrap();
        assert!(a.admit().is_none());
        let free = runtime.live_limit("other");
        assert!((0..100).map(|_| free.admit()).all(|admitted| admitted.is_some()));
        drop((second, again));
        assert!(a.admit().is_some());
    }
}
