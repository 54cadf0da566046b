//! Updates that are applied and not yet live: answers that wait for clusters to warm, and when each update's last byte
//! came, for the propagation histograms.
//!
//! Envoy pauses requests for clusters while clusters warm, answers included, once the first set of clusters is there; a
//! control plane thus knows that what it has sent is in use before it sends what builds upon it.

use std::collections::VecDeque;
use std::time::Instant;
use xds_client::Answer;

/// At most so many updates wait. A server that goes on without being answered is answered.
const MAX_PENDING: usize = 1024;

/// An answer, decided and not yet given.
pub(super) struct Verdict {
    pub answer: Answer,
    /// Detail, and names of what was refused; `None` acknowledges.
    pub refusal: Option<(String, Vec<String>)>,
}

impl Verdict {
    pub fn give(self) {
        match self.refusal {
            None => self.answer.ack(),
            Some((detail, names)) => self.answer.nack(detail, &names),
        }
    }
}

/// One update that is not live yet.
struct Update {
    received: Instant,
    held: Option<Verdict>,
}

/// The updates of one type that are not live yet, oldest first.
#[derive(Default)]
pub(super) struct Pending(VecDeque<Update>);

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn push(&mut self, received: Instant, held: Option<Verdict>) {
        if self.0.len() >= MAX_PENDING
            && let Some(Update { held: Some(verdict), .. }) = self.0.pop_front()
        {
            verdict.give();
        }
        self.0.push_back(Update { received, held });
    }

    /// The stream that waits for answers is gone: what was applied counts as held on the next one.
    pub fn release(&mut self) {
        self.0.iter_mut().filter_map(|update| update.held.take()).for_each(Verdict::give);
    }

    /// Everything is live: gives the answers, in order; returns when each update came.
    pub fn live(&mut self) -> Vec<Instant> {
        self.release();
        self.0.drain(..).map(|update| update.received).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_client::{Kind, Response, TypeUrl};

    fn verdict(refusal: Option<(String, Vec<String>)>) -> (Verdict, xds_client::VerdictSlot) {
        let (response, slot) = Response::new(TypeUrl::CLUSTER, "1", Kind::Delta, Vec::new());
        (Verdict { answer: response.answer, refusal }, slot)
    }

    #[test]
    fn held_answers_are_given_once_all_is_live() {
        let mut pending = Pending::default();
        let (good, first) = verdict(None);
        let (bad, second) = verdict(Some(("boom".into(), vec!["c".into()])));
        pending.push(Instant::now(), Some(good));
        pending.push(Instant::now(), Some(bad));
        assert_eq!((first.get(), second.get()), (None, None));
        assert_eq!(pending.live().len(), 2);
        assert_eq!(first.get(), Some(xds_client::Verdict::Ack));
        assert!(matches!(second.get(), Some(xds_client::Verdict::Nack { detail, .. }) if detail == "boom"));
    }

    #[test]
    fn a_server_that_does_not_wait_is_answered() {
        let mut pending = Pending::default();
        let (oldest, slot) = verdict(None);
        pending.push(Instant::now(), Some(oldest));
        for _ in 0..MAX_PENDING {
            pending.push(Instant::now(), None);
        }
        assert_eq!(slot.get(), Some(xds_client::Verdict::Ack));
        assert_eq!(pending.0.len(), MAX_PENDING);
    }
}
