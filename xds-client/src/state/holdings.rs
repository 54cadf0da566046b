//! What the consumer has of one type, by name, and from which response it has it: answers may be given in another order
//! than the responses came in, and what came later counts.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::WILDCARD;

/// Stands for the version of what the consumer may or may not have; no server gives its versions such a name.
const DOUBTED: &str = "";

#[derive(Default)]
pub(super) struct Holdings {
    names: HashMap<String, Held>,
    /// Other names of what is held, where there are any.
    aliases: HashMap<String, Vec<String>>,
    /// Names that were wanted or taken back while responses were unanswered, and the number of the newest response then.
    /// Of what those bring nobody knows whether the consumer looked at it before or after.
    changed: HashMap<String, u64>,
}

struct Held {
    /// `None`: the consumer knows that there is none.
    version: Option<Arc<str>>,
    /// Of the response that said so.
    number: u64,
    /// Of the newest response whose resource of this name was refused; 0 for none.
    refused: u64,
}

impl Holdings {
    pub fn version(&self, name: &str) -> Option<&str> {
        self.names.get(name)?.version.as_deref()
    }

    /// As a new delta stream is told.
    pub fn versions(&self) -> HashMap<String, String> {
        let held = self.names.iter().filter_map(|(name, held)| Some((name, held.version.as_deref()?)));
        held.map(|(name, version)| (name.clone(), version.to_string())).collect()
    }

    pub fn aliases(&self, name: &str) -> &[String] {
        self.aliases.get(name).map_or(&[], Vec::as_slice)
    }

    /// The consumer took a resource out of response `number`.
    pub fn take(
        &mut self,
        name: String,
        aliases: Vec<String>,
        version: Arc<str>,
        number: u64,
        wanted: &BTreeSet<String>,
    ) {
        let names = || [WILDCARD, &name].into_iter().chain(aliases.iter().map(String::as_str));
        let lasting = |name: &str| wanted.contains(name) && self.changed.get(name).is_none_or(|at| *at < number);
        if !names().any(lasting) {
            if names().any(|name| wanted.contains(name)) {
                self.doubt(&name, number);
            }
            return;
        }
        let refused = match self.names.get(&name) {
            Some(held) if held.number > number => return,
            held => held.map_or(0, |held| held.refused),
        };
        match aliases.is_empty() {
            true => _ = self.aliases.remove(&name),
            false => _ = self.aliases.insert(name.clone(), aliases),
        }
        self.names.insert(name, Held { version: Some(version), number, refused });
    }

    /// Response `number` says that there is none of this name.
    pub fn absent(&mut self, name: &str, number: u64) {
        if self.names.get(name).is_some_and(|held| held.number > number) {
            return;
        }
        self.aliases.remove(name);
        self.names.insert(name.to_string(), Held { version: None, number, refused: 0 });
    }

    /// What the consumer made of response `number` as to this name cannot be known. A version that no server has makes the
    /// server say on a new stream what there is.
    pub fn doubt(&mut self, name: &str, number: u64) {
        if self.names.get(name).is_none_or(|held| held.number <= number) {
            self.names.insert(name.to_string(), Held { version: Some(DOUBTED.into()), number, refused: 0 });
        }
    }

    /// What response `number` has of this name was refused.
    pub fn refuse(&mut self, name: &str, number: u64) {
        if let Some(held) = self.names.get_mut(name) {
            held.refused = held.refused.max(number);
        }
    }

    pub fn knows(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Nothing is known of this name any more.
    pub fn forget(&mut self, name: &str) {
        self.names.remove(name);
        self.aliases.remove(name);
    }

    /// Whether the newest of this name, up to response `number`, is what the consumer has.
    pub fn is_current(&self, name: &str, number: u64) -> bool {
        self.names.get(name).is_some_and(|held| {
            let refused_since = held.number < held.refused && held.refused <= number;
            held.number <= number && !refused_since && held.version.as_deref() != Some(DOUBTED)
        })
    }

    /// Keeps the names that `keep` says, and what is younger than response `number`.
    pub fn retain(&mut self, number: u64, keep: impl Fn(&str) -> bool) {
        self.names.retain(|name, held| held.number > number || keep(name));
        let names = &self.names;
        self.aliases.retain(|name, _| names.contains_key(name));
    }

    /// A name (or `*`) is wanted that was not, while responses up to number `newest` are unanswered.
    pub fn wanted(&mut self, name: &str, newest: u64) {
        self.changed.insert(name.to_string(), newest);
    }

    /// A name (or `*`) is no longer in `wanted`: neither is what it stood for, unless another name does. `newest` is the
    /// number of the last response, where some are unanswered.
    pub fn unwanted(&mut self, name: &str, wanted: &BTreeSet<String>, newest: Option<u64>) {
        if let Some(number) = newest {
            self.changed.insert(name.to_string(), number);
        }
        if wanted.contains(WILDCARD) {
            return;
        }
        let aliases = &self.aliases;
        let wants = |held: &str| {
            wanted.contains(held) || aliases.get(held).is_some_and(|names| names.iter().any(|n| wanted.contains(n)))
        };
        if name == WILDCARD {
            self.names.retain(|held, _| wants(held));
        } else {
            let known_by_it = aliases.iter().filter(|(_, names)| names.iter().any(|n| n == name));
            let candidates = known_by_it.map(|(held, _)| held.as_str()).chain([name]);
            let gone: Vec<String> = candidates.filter(|n| !wants(n)).map(String::from).collect();
            for name in gone {
                self.names.remove(&name);
            }
        }
        let names = &self.names;
        self.aliases.retain(|name, _| names.contains_key(name));
    }

    /// Every response is answered: there is no order left to be mindful of.
    pub fn settle(&mut self, keep_absent: bool) {
        self.changed.clear();
        if !keep_absent {
            self.names.retain(|_, held| held.version.is_some());
        }
    }
}
