//! Runtime: values by key that operators may change while the process runs, in layers of which the last one wins.
//!
//! Configuration reads values when it is loaded, or keeps a live handle ([`LiveFraction`]) that is one
//! atomic load on the path of a request. Knows nothing of where layers come from but the files of disk layers
//! (`envoy.config.bootstrap.v3.LayeredRuntime`, "Runtime" in Envoy's operations guide).

mod disk;
mod limit;
mod live;
mod stats;
mod watch;

pub use disk::DiskLayer;
pub use limit::{Admitted, LiveLimit};
pub use live::{Fraction, LiveFraction};
pub use watch::follow_disk;

use crate::stats::Registry;
use limit::Limits;
use live::Cells;
use serde_json::Value;
use stats::RuntimeStats;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Values of one layer, by key; nested keys are joined with dots.
pub type Values = BTreeMap<String, Value>;

/// Bound of all keys that the admin interface may set, so that a loop of requests cannot fill the memory.
const MAX_ADMIN_KEYS: usize = 10_000;

/// Bound of the keys that are remembered as asked for: their names come from configuration.
const MAX_ASKED: usize = 100_000;

/// A layer of the bootstrap.
#[derive(Debug, Clone)]
pub struct Layer {
    pub name: String,
    pub source: LayerSource,
}

/// Where the values of a layer come from.
#[derive(Debug, Clone)]
pub enum LayerSource {
    Static(Values),
    Disk(DiskLayer),
    /// Set through `/runtime_modify`.
    Admin,
    /// Given by discovery under this resource name; empty until then.
    Rtds(String),
}

/// Why `/runtime_modify` changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ModifyError {
    #[error("No admin layer specified")]
    NoAdminLayer,
    #[error("the admin layer has 10000 keys, which is as many as it takes; remove some with an empty value")]
    Full,
}

/// All layers. Written by the control thread; read by all.
#[derive(Default)]
pub struct Runtime {
    state: Mutex<State>,
    stats: OnceLock<RuntimeStats>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(&self.state().merged).finish()
    }
}

#[derive(Default)]
struct State {
    layers: Vec<(Layer, Values)>,
    /// Layers over each other.
    merged: Values,
    cells: Cells,
    limits: Limits,
    /// Keys that something has read.
    asked: HashSet<String>,
    /// What happened since the stats were last shown.
    loads: u64,
    load_errors: u64,
    trees_read: u64,
    trees_missing: u64,
}

/// What the admin page shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub layers: Vec<String>,
    /// Key, its value in each layer (empty where it has none), and the one that holds.
    pub entries: Vec<(String, Vec<String>, String)>,
}

impl Runtime {
    /// Loads the layers, the files of disk layers among them.
    pub fn new(layers: Vec<Layer>) -> Runtime {
        let layers = layers.into_iter().map(|layer| (layer, Values::new())).collect();
        let mut state = State { layers, ..State::default() };
        for at in 0..state.layers.len() {
            state.load(at);
        }
        state.merge();
        Runtime { state: Mutex::new(state), stats: OnceLock::new() }
    }

    /// A runtime of one static layer.
    pub fn of(values: Values) -> Runtime {
        Runtime::new(vec![Layer { name: "static_layer".into(), source: LayerSource::Static(values) }])
    }

    /// Counts from here on under `runtime.*`.
    pub fn count_in(&self, registry: &Registry) {
        let stats = self.stats.get_or_init(|| RuntimeStats::new(registry));
        stats.show(&mut self.state());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.merge();
        if let Some(stats) = self.stats.get() {
            stats.show(&mut state);
        }
    }

    /// Gives the layers of this RTDS resource their values.
    pub fn set_rtds(&self, resource: &str, values: &Values) {
        self.change(|state| {
            for (layer, held) in &mut state.layers {
                if matches!(&layer.source, LayerSource::Rtds(name) if name == resource) {
                    held.clone_from(values);
                }
            }
        });
    }

    /// Reads the files of all disk layers again.
    pub fn reload_disk(&self) {
        self.change(|state| {
            for at in 0..state.layers.len() {
                if matches!(state.layers[at].0.source, LayerSource::Disk(_)) {
                    state.load(at);
                }
            }
        });
    }

    /// Overrides values in the admin layer; an empty value removes the override.
    ///
    /// # Errors
    /// Without an admin layer, and when it is full; nothing was changed then.
    pub fn modify(&self, values: &[(String, String)]) -> Result<(), ModifyError> {
        let mut outcome = Ok(());
        self.change(|state| {
            let admin = state.layers.iter_mut().find(|(layer, _)| matches!(layer.source, LayerSource::Admin));
            let Some((_, held)) = admin else {
                outcome = Err(ModifyError::NoAdminLayer);
                return;
            };
            if held.len() + values.len() > MAX_ADMIN_KEYS {
                outcome = Err(ModifyError::Full);
                return;
            }
            for (key, text) in values {
                match text.as_str() {
                    "" => drop(held.remove(key)),
                    text => drop(held.insert(key.clone(), scalar(text))),
                }
            }
        });
        outcome
    }

    /// The number under a key.
    pub fn number(&self, key: &str) -> Option<f64> {
        let mut state = self.state();
        state.ask(key);
        state.merged.get(key).and_then(as_number)
    }

    /// The truth value under a key.
    pub fn flag(&self, key: &str) -> Option<bool> {
        let mut state = self.state();
        state.ask(key);
        state.merged.get(key).and_then(as_flag)
    }

    /// The limit of that key; its count is shared by all who ask for it.
    pub fn live_limit(&self, key: &str) -> LiveLimit {
        let mut state = self.state();
        state.ask(key);
        let State { merged, limits, .. } = &mut *state;
        limits.limit(key, merged)
    }

    /// Whether any key that starts so has a value.
    pub fn has_under(&self, prefix: &str) -> bool {
        self.state().merged.range(prefix.to_owned()..).next().is_some_and(|(key, _)| key.starts_with(prefix))
    }

    /// Keys that have a value and that nothing has read so far.
    pub fn unread(&self) -> Vec<String> {
        let state = self.state();
        state.merged.keys().filter(|key| !state.asked.contains(*key)).cloned().collect()
    }

    /// A fraction that the key may override: with a percentage, or with a fraction of its own.
    pub fn live_fraction(&self, key: &str, default: Fraction) -> LiveFraction {
        let mut state = self.state();
        state.ask(key);
        let State { merged, cells, .. } = &mut *state;
        LiveFraction::new(default, (!key.is_empty()).then(|| cells.fraction(key, merged)))
    }

    /// The symbolic links whose replacement asks for [`reload_disk`](Self::reload_disk).
    pub fn disk_roots(&self) -> Vec<std::path::PathBuf> {
        let state = self.state();
        let roots = state.layers.iter().filter_map(|(layer, _)| match &layer.source {
            LayerSource::Disk(disk) => Some(disk.symlink_root.clone()),
            _ => None,
        });
        roots.collect()
    }

    /// All layers and values, for a person.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let keys: BTreeSet<&String> = state.layers.iter().flat_map(|(_, values)| values.keys()).collect();
        let entry = |key: &String| {
            let text = |values: &Values| values.get(key).map(text).unwrap_or_default();
            (key.clone(), state.layers.iter().map(|(_, values)| text(values)).collect(), text(&state.merged))
        };
        Snapshot {
            layers: state.layers.iter().map(|(layer, _)| layer.name.clone()).collect(),
            entries: keys.into_iter().map(entry).collect(),
        }
    }
}

impl State {
    fn ask(&mut self, key: &str) {
        if !key.is_empty() && !self.asked.contains(key) && self.asked.len() < MAX_ASKED {
            self.asked.insert(key.to_owned());
        }
    }

    fn load(&mut self, at: usize) {
        let Some((layer, values)) = self.layers.get_mut(at) else { return };
        match &layer.source {
            LayerSource::Static(fixed) => values.clone_from(fixed),
            LayerSource::Disk(disk) => match disk.read() {
                Ok(Some(read)) => {
                    self.trees_read += 1;
                    *values = read;
                }
                Ok(None) => {
                    self.trees_missing += 1;
                    values.clear();
                }
                Err(error) => {
                    self.load_errors += 1;
                    tracing::warn!("runtime layer {}: {error}; its last good values stay", layer.name);
                }
            },
            LayerSource::Admin | LayerSource::Rtds(_) => {}
        }
    }

    fn merge(&mut self) {
        self.loads += 1;
        self.merged.clear();
        for (_, values) in &self.layers {
            self.merged.extend(values.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        self.cells.refresh(&self.merged);
        self.limits.refresh(&self.merged);
    }
}

/// A value that is written as text: `true`, a number, or the text itself.
fn scalar(text: &str) -> Value {
    match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
        Some(_) if text.parse::<u64>().is_ok() => Value::from(text.parse::<u64>().unwrap_or_default()),
        Some(number) => Value::Number(number),
        None if text == "true" || text == "false" => Value::Bool(text == "true"),
        None => Value::String(text.to_owned()),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn as_flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values(list: &[(&str, Value)]) -> Values {
        list.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    fn layered() -> Runtime {
        let layer = |name: &str, source| Layer { name: name.into(), source };
        Runtime::new(vec![
            layer("base", LayerSource::Static(values(&[("a.b", json!(5)), ("s", json!("7")), ("on", json!(true))]))),
            layer("remote", LayerSource::Rtds("rt".into())),
            layer("admin", LayerSource::Admin),
        ])
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn the_last_layer_wins_and_an_empty_value_gives_way() {
        let runtime = layered();
        assert_eq!(
            (runtime.number("a.b"), runtime.number("s"), runtime.flag("on")),
            (Some(5.0), Some(7.0), Some(true))
        );
        runtime.set_rtds("rt", &values(&[("a.b", json!(6))]));
        assert_eq!(runtime.number("a.b"), Some(6.0));
        runtime.modify(&[pair("a.b", "8"), pair("new", "text")]).unwrap();
        assert_eq!(runtime.number("a.b"), Some(8.0));
        let snapshot = runtime.snapshot();
        assert_eq!(snapshot.layers, ["base", "remote", "admin"]);
        assert_eq!(snapshot.entries[0], ("a.b".into(), vec!["5".into(), "6".into(), "8".into()], "8".into()));
        assert_eq!(snapshot.entries[1], ("new".into(), vec!["".into(), "".into(), "text".into()], "text".into()));
        runtime.modify(&[pair("a.b", "")]).unwrap();
        assert_eq!(runtime.number("a.b"), Some(6.0));
        runtime.set_rtds("rt", &Values::new());
        runtime.set_rtds("other", &values(&[("a.b", json!(1))]));
        assert_eq!(runtime.number("a.b"), Some(5.0));
    }

    #[test]
    fn without_an_admin_layer_nothing_can_be_set_and_with_one_not_without_end() {
        assert_eq!(Runtime::default().modify(&[pair("a", "1")]), Err(ModifyError::NoAdminLayer));
        let many: Vec<_> = (0..=MAX_ADMIN_KEYS).map(|i| pair(&i.to_string(), "1")).collect();
        let runtime = layered();
        assert_eq!(runtime.modify(&many), Err(ModifyError::Full));
        assert_eq!(runtime.number("0"), None);
    }

    #[test]
    fn live_handles_follow_every_change() {
        let runtime = layered();
        let share = runtime.live_fraction("y", Fraction { numerator: 1, denominator: 10_000 });
        assert!(share.hits(0) && !share.hits(1) && share.hits(10_000));
        runtime.modify(&[pair("y", "50")]).unwrap();
        assert!(share.hits(49) && !share.hits(50));
        runtime.modify(&[pair("y", "")]).unwrap();
        runtime.set_rtds("rt", &values(&[("y", json!({"numerator": 3, "denominator": "MILLION"}))]));
        assert!(share.hits(1_000_002) && !share.hits(3));
        runtime.set_rtds("rt", &Values::new());
        assert!(!share.hits(2));
    }
}
