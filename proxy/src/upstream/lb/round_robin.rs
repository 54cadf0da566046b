//! Round robin: plain rotation when weights are equal, else earliest deadline first. Knows only its own turn.

use super::edf::Edf;
use super::unequal_weights;
use crate::upstream::host::Host;
use std::sync::Arc;

pub(super) enum RoundRobin {
    Rotate { next: usize },
    Weighted { edf: Edf, weights: Box<[f64]> },
}

impl RoundRobin {
    pub fn new(hosts: &[Arc<Host>]) -> RoundRobin {
        match unequal_weights(hosts) {
            Some(weights) => RoundRobin::Weighted { edf: Edf::new(&weights), weights },
            // a random start: workers, and proxies, do not all begin with the same host
            None => RoundRobin::Rotate { next: fastrand::usize(..hosts.len().max(1)) },
        }
    }

    /// An index into `hosts`, which is not empty.
    pub fn next(&mut self, hosts: &[Arc<Host>]) -> usize {
        match self {
            RoundRobin::Rotate { next } => {
                *next = if *next + 1 < hosts.len() { *next + 1 } else { 0 };
                *next
            }
            RoundRobin::Weighted { edf, weights } => edf.next(|i| weights.get(i).copied().unwrap_or(1.0)),
        }
    }
}
