//! Earliest deadline first: weighted fair picking. Each index comes again after 1/weight; knows nothing of hosts.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Entries by deadline; ties in the order of insertion.
pub(super) struct Edf {
    heap: BinaryHeap<Entry>,
    order: u64,
}

struct Entry {
    deadline: f64,
    order: u64,
    index: usize,
}

impl Edf {
    /// Starts each entry at a random point of its own period, so that workers do not all begin with the same host.
    pub fn new(weights: &[f64]) -> Edf {
        let mut edf = Edf { heap: BinaryHeap::with_capacity(weights.len()), order: 0 };
        for (index, weight) in weights.iter().enumerate() {
            edf.push(index, fastrand::f64() / weight);
        }
        edf
    }

    /// The index whose turn it is; its next turn comes 1/`weight(index)` later. 0 when there are no entries.
    pub fn next(&mut self, weight: impl FnOnce(usize) -> f64) -> usize {
        let Some(entry) = self.heap.pop() else { return 0 };
        // a weight that underflowed must not make the deadline infinite
        let weight = weight(entry.index).max(1e-9);
        self.push(entry.index, entry.deadline + 1.0 / weight);
        entry.index
    }

    fn push(&mut self, index: usize, deadline: f64) {
        self.order += 1;
        self.heap.push(Entry { deadline, order: self.order, index });
    }
}

impl Ord for Entry {
    /// Reversed: the heap's greatest is the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spread_by_weight() {
        let weights = [5.0, 1.0, 1.0];
        let mut edf = Edf::new(&weights);
        let picks: Vec<usize> = (0..70).map(|_| edf.next(|i| weights[i])).collect();
        let share = |index| picks.iter().filter(|p| **p == index).count();
        assert!((49..=51).contains(&share(0)) && (9..=11).contains(&share(1)), "{picks:?}");
        assert!(picks.windows(8).all(|w| w.contains(&1)), "interleaved, not in blocks: {picks:?}");
    }
}
