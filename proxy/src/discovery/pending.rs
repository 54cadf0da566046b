//! Updates that are applied and not yet live: answers that wait for clusters to warm, and when each update's last byte
//! came, for the propagation histograms.
//!
//! Envoy pauses requests for clusters while clusters warm, answers included, once the first set of clusters is there; a
//! control plane thus knows that what it has sent is in use before it sends what builds upon it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use xds_client::Answer;

/// At most so many updates wait. A server that goes on without being answered is answered.
const MAX_PENDING: usize = 1024;

/// An answer waits no longer than this. Envoy lets it wait for ever, so that a cluster that never becomes warm keeps a
/// control plane that sends state of the world one by one from ever sending the push that would mend it.
pub(super) const LONGEST_HOLD: Duration = Duration::from_secs(15);

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
    /// `None` for one that was refused: it does not become live.
    received: Option<Instant>,
    held: Option<Verdict>,
    since: Instant,
}

/// The updates of one type that are not live yet, oldest first.
#[derive(Default)]
pub(super) struct Pending(VecDeque<Update>);

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Says whether there was no room for it, so that the time of the oldest update is not known any more.
    pub fn push(&mut self, received: Option<Instant>, held: Option<Verdict>) -> bool {
        let oldest = if self.0.len() >= MAX_PENDING { self.0.pop_front() } else { None };
        self.0.push_back(Update { received, held, since: Instant::now() });
        let lost = oldest.as_ref().is_some_and(|update| update.received.is_some());
        if let Some(verdict) = oldest.and_then(|update| update.held) {
            verdict.give();
        }
        lost
    }

    /// When the next answer has waited too long.
    pub fn due(&self) -> Option<Instant> {
        self.0.iter().find(|update| update.held.is_some()).map(|update| update.since + LONGEST_HOLD)
    }

    /// Gives the answers that have waited too long; says how many.
    pub fn release_due(&mut self, now: Instant) -> usize {
        let due = self.0.iter_mut().filter(|update| update.since + LONGEST_HOLD <= now);
        due.filter_map(|update| update.held.take()).map(Verdict::give).count()
    }

    /// The stream that waits for answers is gone: what was applied counts as held on the next one.
    pub fn release(&mut self) {
        self.0.iter_mut().filter_map(|update| update.held.take()).for_each(Verdict::give);
    }

    /// Everything is live: gives the answers, in order; returns when each update came.
    pub fn live(&mut self) -> Vec<Instant> {
        self.release();
        self.0.drain(..).filter_map(|update| update.received).collect()
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
        pending.push(Some(Instant::now()), Some(good));
        pending.push(None, Some(bad));
        assert_eq!((first.get(), second.get()), (None, None));
        assert_eq!(pending.live().len(), 1, "what was refused does not become live");
        assert_eq!(first.get(), Some(xds_client::Verdict::Ack));
        assert!(matches!(second.get(), Some(xds_client::Verdict::Nack { detail, .. }) if detail == "boom"));
    }

    #[test]
    fn a_server_that_does_not_wait_is_answered() {
        let mut pending = Pending::default();
        let (oldest, slot) = verdict(None);
        pending.push(Some(Instant::now()), Some(oldest));
        let lost = (0..MAX_PENDING).filter(|_| pending.push(Some(Instant::now()), None)).count();
        assert_eq!(lost, 1);
        assert_eq!(slot.get(), Some(xds_client::Verdict::Ack));
        assert_eq!(pending.0.len(), MAX_PENDING);
    }

    #[test]
    fn an_answer_does_not_wait_for_ever() {
        let mut pending = Pending::default();
        let (good, slot) = verdict(None);
        pending.push(Some(Instant::now()), Some(good));
        let due = pending.due().unwrap();
        assert_eq!((pending.release_due(due - Duration::from_millis(1)), slot.get()), (0, None));
        assert_eq!((pending.release_due(due), slot.get()), (1, Some(xds_client::Verdict::Ack)));
        assert_eq!((pending.due(), pending.live().len()), (None, 1), "it still becomes live");
    }
}
