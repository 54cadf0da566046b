//! When resources with a time to live expire. Sorted by time, so that one timer serves all of them.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

#[derive(Default)]
pub(super) struct Deadlines {
    /// Time, index of the type, name.
    due: BTreeSet<(Instant, usize, String)>,
    /// By index of the type.
    of: HashMap<usize, HashMap<String, Instant>>,
}

impl Deadlines {
    pub fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, ..)| *at)
    }

    pub fn has(&self, index: usize, name: &str) -> bool {
        self.of.get(&index).is_some_and(|names| names.contains_key(name))
    }

    pub fn set(&mut self, index: usize, name: &str, at: Instant) {
        self.take(index, name);
        self.of.entry(index).or_default().insert(name.to_string(), at);
        self.due.insert((at, index, name.to_string()));
    }

    /// Removes that of a resource.
    pub fn take(&mut self, index: usize, name: &str) -> Option<Instant> {
        let names = self.of.get_mut(&index)?;
        let (name, at) = names.remove_entry(name)?;
        if names.is_empty() {
            self.of.remove(&index);
        }
        self.due.remove(&(at, index, name));
        Some(at)
    }

    /// Keeps those of a type that `keep` says.
    pub fn retain(&mut self, index: usize, keep: impl Fn(&str) -> bool) {
        let gone: Vec<String> =
            self.of.get(&index).into_iter().flat_map(|names| names.keys()).filter(|n| !keep(n)).cloned().collect();
        for name in gone {
            self.take(index, &name);
        }
    }

    /// Removes what is due of the type that is due first.
    pub fn expired(&mut self, now: Instant) -> Option<(usize, Vec<String>)> {
        let index = self.due.first().filter(|(at, ..)| *at <= now)?.1;
        let due = self.due.iter().take_while(|(at, ..)| *at <= now).filter(|(_, of, _)| *of == index);
        let names: Vec<String> = due.map(|(.., name)| name.clone()).collect();
        for name in &names {
            self.take(index, name);
        }
        Some((index, names))
    }
}
