//! Least request: the less busy of a few random hosts when weights are equal; else earliest deadline first with
//! weight / (active requests + 1) ^ bias. Active requests are those of all workers.

use super::edf::Edf;
use super::unequal_weights;
use crate::upstream::host::Host;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) enum LeastRequest {
    Choices(u32),
    Weighted { edf: Edf, weights: Box<[f64]>, bias: f64 },
}

impl LeastRequest {
    pub fn new(hosts: &[Arc<Host>], choice_count: u32, bias: f64) -> LeastRequest {
        match unequal_weights(hosts) {
            Some(weights) => LeastRequest::Weighted { edf: Edf::new(&weights), weights, bias },
            None => LeastRequest::Choices(choice_count.max(1)),
        }
    }

    /// An index into `hosts`, which is not empty.
    pub fn next(&mut self, hosts: &[Arc<Host>]) -> usize {
        match self {
            LeastRequest::Choices(count) => {
                let mut best = (u32::MAX, 0);
                for _ in 0..*count {
                    let index = fastrand::usize(..hosts.len());
                    let active = active(hosts, index);
                    if active < best.0 {
                        best = (active, index);
                    }
                }
                best.1
            }
            LeastRequest::Weighted { edf, weights, bias } => edf.next(|index| {
                let weight = weights.get(index).copied().unwrap_or(1.0);
                match f64::from(active(hosts, index)) + 1.0 {
                    busy if *bias == 1.0 => weight / busy,
                    busy => weight / busy.powf(*bias),
                }
            }),
        }
    }
}

fn active(hosts: &[Arc<Host>], index: usize) -> u32 {
    hosts.get(index).map_or(u32::MAX, |h| h.stats.rq_active.load(Ordering::Relaxed))
}
