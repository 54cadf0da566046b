//! `outrigger.ledger.<type>.<state>`: how many resources of each type are in each state.

use super::{Api, Ledger, State};
use crate::stats::{Gauge, Registry};

/// The gauges of the ledger. Those of a type are made with its first resource.
pub struct LedgerStats {
    registry: Registry,
    gauges: [Option<[Gauge; 6]>; 9],
}

impl LedgerStats {
    pub fn new(registry: &Registry) -> LedgerStats {
        LedgerStats { registry: registry.clone(), gauges: Default::default() }
    }

    /// Brings the gauges up to date: costs the same however many resources there are.
    pub fn refresh(&mut self, ledger: &Ledger) {
        for (api, gauges) in Api::ALL.into_iter().zip(&mut self.gauges) {
            let counts = State::ALL.map(|state| ledger.count(api, state) as u64);
            if gauges.is_none() && counts.iter().all(|n| *n == 0) {
                continue;
            }
            let gauges = gauges.get_or_insert_with(|| {
                let scope = self.registry.scope(&format!("outrigger.ledger.{}.", api.name()));
                State::ALL.map(|state| scope.gauge(state.name()))
            });
            gauges.iter().zip(counts).for_each(|(gauge, n)| gauge.set(n));
        }
    }
}
