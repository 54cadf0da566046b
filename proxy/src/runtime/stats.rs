//! `runtime.*` stats. The two of deprecated fields belong to whoever meets them in a configuration.

use super::{LayerSource, State};
use crate::stats::{Counter, Gauge, Registry};
use std::mem::take;

pub(super) struct RuntimeStats {
    admin_overrides_active: Gauge,
    load_error: Counter,
    load_success: Counter,
    num_keys: Gauge,
    num_layers: Gauge,
    override_dir_exists: Counter,
    override_dir_not_exists: Counter,
}

impl RuntimeStats {
    pub fn new(registry: &Registry) -> RuntimeStats {
        let scope = registry.scope("runtime.");
        RuntimeStats {
            admin_overrides_active: scope.gauge("admin_overrides_active"),
            load_error: scope.counter("load_error"),
            load_success: scope.counter("load_success"),
            num_keys: scope.gauge("num_keys"),
            num_layers: scope.gauge("num_layers"),
            override_dir_exists: scope.counter("override_dir_exists"),
            override_dir_not_exists: scope.counter("override_dir_not_exists"),
        }
    }

    /// Brings the stats up to date; what is counted is counted once.
    pub fn show(&self, state: &mut State) {
        let overridden = |(layer, values): &(super::Layer, super::Values)| {
            matches!(layer.source, LayerSource::Admin) && !values.is_empty()
        };
        self.admin_overrides_active.set(u64::from(state.layers.iter().any(overridden)));
        self.load_error.add(take(&mut state.load_errors));
        self.load_success.add(take(&mut state.loads));
        self.num_keys.set(state.merged.len() as u64);
        self.num_layers.set(state.layers.len() as u64);
        self.override_dir_exists.add(take(&mut state.trees_read));
        self.override_dir_not_exists.add(take(&mut state.trees_missing));
    }
}
