//! Handles on values: the default of the configuration, and what runtime says instead, as one atomic word.

use super::{Values, as_number};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Runtime says nothing: no fraction has this denominator.
const UNSET: u64 = u64::MAX;

/// A share of all requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Fraction {
    pub const ALWAYS: Fraction = Fraction { numerator: 100, denominator: 100 };

    /// Whether this random number is within the share, by Envoy's rule.
    pub fn hits(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// A fraction that runtime may override.
#[derive(Debug, Clone)]
pub struct LiveFraction {
    default: Fraction,
    cell: Option<Arc<AtomicU64>>,
}

impl LiveFraction {
    pub(super) fn new(default: Fraction, cell: Option<Arc<AtomicU64>>) -> LiveFraction {
        LiveFraction { default, cell }
    }

    /// The fraction that holds now.
    pub fn get(&self) -> Fraction {
        match self.cell.as_ref().map_or(UNSET, |cell| cell.load(Ordering::Relaxed)) {
            UNSET => self.default,
            packed => Fraction { numerator: (packed >> 32) as u32, denominator: packed as u32 },
        }
    }

    /// Whether this random number is within the share that holds now.
    pub fn hits(&self, random: u64) -> bool {
        self.get().hits(random)
    }
}

impl From<Fraction> for LiveFraction {
    fn from(fixed: Fraction) -> LiveFraction {
        LiveFraction { default: fixed, cell: None }
    }
}

/// The handles that are out, by key; those that nobody holds any more go at the next change.
#[derive(Debug, Default)]
pub(super) struct Cells(HashMap<String, Weak<AtomicU64>>);

impl Cells {
    pub fn fraction(&mut self, key: &str, values: &Values) -> Arc<AtomicU64> {
        if let Some(known) = self.0.get(key).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::new(AtomicU64::new(fraction(values, key)));
        self.0.insert(key.to_owned(), Arc::downgrade(&new));
        new
    }

    /// Values have changed.
    pub fn refresh(&mut self, values: &Values) {
        self.0.retain(|key, cell| {
            let held = cell.upgrade();
            held.map(|cell| cell.store(fraction(values, key), Ordering::Relaxed)).is_some()
        });
    }
}

fn fraction(values: &Values, key: &str) -> u64 {
    let pack = |numerator: u32, denominator: u32| u64::from(numerator) << 32 | u64::from(denominator);
    match values.get(key) {
        Some(Value::Object(fields)) => {
            let numerator = fields.get("numerator").and_then(Value::as_f64).unwrap_or(0.0) as u32;
            let denominator = match fields.get("denominator").and_then(Value::as_str) {
                Some("TEN_THOUSAND") => 10_000,
                Some("MILLION") => 1_000_000,
                _ => 100,
            };
            pack(numerator, denominator)
        }
        Some(other) => as_number(other).map_or(UNSET, |percent| pack(percent.clamp(0.0, 100.0) as u32, 100)),
        None => UNSET,
    }
}
