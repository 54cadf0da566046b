//! `outrigger.ledger.<type>.<state>`: how many resources of each type are in each state.

use super::{Api, Ledger, State};
use crate::stats::{Counter, Gauge, Registry};

/// The gauges of the ledger. Those of a type are made with its first resource.
pub struct LedgerStats {
    registry: Registry,
    gauges: [Option<[Gauge; 6]>; 9],
    /// `outrigger.ledger.<type>.refusals_not_kept`: refused resources that the ledger had no room for.
    not_kept: [Option<Counter>; 9],
}

impl LedgerStats {
    pub fn new(registry: &Registry) -> LedgerStats {
        LedgerStats { registry: registry.clone(), gauges: Default::default(), not_kept: Default::default() }
    }

    /// Brings the gauges up to date: costs the same however many resources there are.
    pub fn refresh(&mut self, ledger: &mut Ledger) {
        for (api, counter) in Api::ALL.into_iter().zip(&mut self.not_kept) {
            let more = ledger.take_not_kept(api);
            if more > 0 {
                let scope = || self.registry.scope(&format!("outrigger.ledger.{}.", api.name()));
                counter.get_or_insert_with(|| scope().counter("refusals_not_kept")).add(more);
            }
        }
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
