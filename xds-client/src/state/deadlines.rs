//! When resources with a time to live expire. Sorted by time, so that one timer serves all of them.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

#[derive(Default)]
pub(super) struct Deadlines {
    /// Time, index of the type, name.
    due: BTreeSet<(Instant, usize, String)>,
    /// By index of the type; with the number of the response that each comes from.
    of: HashMap<usize, HashMap<String, (Instant, u64)>>,
    /// Of those with successors that the consumer has not answered: while they are being applied, nothing expires.
    suspended: HashMap<usize, HashMap<String, Suspended>>,
}

struct Suspended {
    /// Successors without an answer.
    offers: usize,
    /// When what the consumer has would expire.
    at: Option<Instant>,
    /// Of the response that `at` comes from.
    number: u64,
}

impl Deadlines {
    pub fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// A heartbeat of what the consumer has.
    pub fn renew(&mut self, index: usize, name: &str, at: Instant) {
        let suspended = self.suspended.get_mut(&index).and_then(|names| names.get_mut(name));
        match suspended {
            Some(Suspended { at: Some(due), .. }) => *due = at,
            Some(_) => {}
            None => {
                if let Some((_, number)) = self.of.get(&index).and_then(|names| names.get(name)).copied() {
                    self.set(index, name, at, number);
                }
            }
        }
    }

    fn set(&mut self, index: usize, name: &str, at: Instant, number: u64) {
        self.take(index, name);
        self.of.entry(index).or_default().insert(name.to_string(), (at, number));
        self.due.insert((at, index, name.to_string()));
    }

    fn take(&mut self, index: usize, name: &str) -> Option<(Instant, u64)> {
        let names = self.of.get_mut(&index)?;
        let (name, (at, number)) = names.remove_entry(name)?;
        if names.is_empty() {
            self.of.remove(&index);
        }
        self.due.remove(&(at, index, name));
        Some((at, number))
    }

    /// A successor arrived.
    pub fn suspend(&mut self, index: usize, name: &str) {
        if let Some(suspended) = self.suspended.get_mut(&index).and_then(|names| names.get_mut(name)) {
            suspended.offers += 1;
            return;
        }
        let (at, number) = self.take(index, name).unzip();
        let suspended = Suspended { offers: 1, at, number: number.unwrap_or_default() };
        self.suspended.entry(index).or_default().insert(name.to_string(), suspended);
    }

    /// The consumer answered a successor. `taken` is when it expires, if ever, if it was taken; with the last answer, and
    /// if it is still wanted, what the consumer has may expire again.
    pub fn answered(&mut self, index: usize, name: &str, number: u64, taken: Option<Option<Instant>>, wanted: bool) {
        let Some(names) = self.suspended.get_mut(&index) else { return };
        let Some(suspended) = names.get_mut(name) else { return };
        if let Some(at) = taken
            && number >= suspended.number
        {
            (suspended.at, suspended.number) = (at, number);
        }
        suspended.offers -= 1;
        if suspended.offers > 0 {
            return;
        }
        let (at, number) = (suspended.at, suspended.number);
        names.remove(name);
        if names.is_empty() {
            self.suspended.remove(&index);
        }
        if let Some(at) = at.filter(|_| wanted) {
            self.set(index, name, at, number);
        }
    }

    /// Response `number` says that it is gone.
    pub fn gone(&mut self, index: usize, name: &str, number: u64) {
        if self.of.get(&index).and_then(|names| names.get(name)).is_some_and(|(_, of)| *of <= number) {
            self.take(index, name);
        }
        if let Some(suspended) = self.suspended.get_mut(&index).and_then(|names| names.get_mut(name))
            && number >= suspended.number
        {
            (suspended.at, suspended.number) = (None, number);
        }
    }

    /// Those of a type that `keep` does not say are gone, says response `number`; without one, whatever is under way.
    pub fn retain(&mut self, index: usize, number: Option<u64>, keep: impl Fn(&str) -> bool) {
        let active = self.of.get(&index).into_iter().flat_map(|names| names.keys());
        let suspended = self.suspended.get(&index).into_iter().flat_map(|names| names.keys());
        let gone: Vec<String> = active.chain(suspended).filter(|n| !keep(n)).cloned().collect();
        for name in gone {
            match number {
                Some(number) => self.gone(index, &name, number),
                None => {
                    self.take(index, &name);
                    if let Some(suspended) = self.suspended.get_mut(&index).and_then(|names| names.get_mut(&name)) {
                        suspended.at = None;
                    }
                }
            }
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
