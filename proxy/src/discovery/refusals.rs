//! Refusals: what a NACK says, and how soon it says it again.
//!
//! Some control planes answer a NACK with what was refused, at once, for ever. The first refusal of a push goes out at
//! once; that of the same push again waits, longer each time, so that neither side burns a core on it.

use super::pending::Verdict;
use super::streams::StreamId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use xds_client::TypeUrl;

/// The first wait, and the longest: a corrected push may have to wait so long for its turn.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Resources that a NACK, and the log of one push, name.
const MOST_NAMED: usize = 20;
/// Bytes of one reason. A NACK is metadata to many servers, which bound it far below messages.
const MOST_REASON: usize = 2048;

/// What one resource was refused for, cut to a size that can be logged, kept and sent.
pub(super) fn bounded(mut reason: String) -> String {
    if reason.len() > MOST_REASON {
        let end = (0..=MOST_REASON).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        reason.truncate(end);
        reason.push_str(" ...");
    }
    reason
}

/// The text of a NACK.
pub(super) fn detail(kind: &str, refused: &[(String, String)]) -> String {
    let named = refused.iter().take(MOST_NAMED).map(|(name, reason)| format!("{name}: {reason}"));
    let mut list: Vec<String> = named.collect();
    if refused.len() > MOST_NAMED {
        list.push(format!("and {} more", refused.len() - MOST_NAMED));
    }
    format!("Error adding/updating {kind}(s) {}", list.join("\n"))
}

/// Refusals of one push in the log: those that are news, and not more than a person reads.
#[derive(Default)]
pub(super) struct Logged {
    lines: usize,
}

impl Logged {
    pub fn say(&mut self, kind: &str, name: &str, reason: &str) {
        self.lines += 1;
        if self.lines <= MOST_NAMED {
            tracing::warn!("{kind} {name} rejected: {reason}");
        }
    }

    pub fn end(self, kind: &str) {
        if self.lines > MOST_NAMED {
            tracing::warn!("{} more {kind}s rejected; /ledger says why", self.lines - MOST_NAMED);
        }
    }
}

/// The last refused push of each type of each stream.
#[derive(Default)]
pub(super) struct Repeats(HashMap<(StreamId, TypeUrl), Last>);

struct Last {
    /// Of all that the push held.
    digest: u64,
    wait: Duration,
    delayed: Rc<RefCell<Option<Verdict>>>,
}

impl Repeats {
    /// Gives the answer that waits, if one does.
    pub fn release(&self, stream: &StreamId, type_url: &TypeUrl) {
        if let Some(last) = self.0.get(&(stream.clone(), type_url.clone()))
            && let Some(verdict) = last.delayed.take()
        {
            verdict.give();
        }
    }

    /// Refuses, or as soon as that is due. Must run on a `LocalRuntime`.
    pub fn refuse(&mut self, stream: &StreamId, type_url: &TypeUrl, digest: u64, verdict: Verdict) {
        let last = self.0.entry((stream.clone(), type_url.clone())).or_insert_with(|| Last {
            digest: !digest,
            wait: Duration::ZERO,
            delayed: Rc::default(),
        });
        last.wait = match last.digest == digest {
            true => next_wait(last.wait),
            false => Duration::ZERO,
        };
        last.digest = digest;
        if last.wait.is_zero() {
            return verdict.give();
        }
        last.delayed = Rc::new(RefCell::new(Some(verdict)));
        let (delayed, wait) = (last.delayed.clone(), last.wait);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(wait).await;
            if let Some(verdict) = delayed.take() {
                verdict.give();
            }
        });
    }

    /// A push was taken, or its stream is no more.
    pub fn forget(&mut self, stream: &StreamId, type_url: &TypeUrl) {
        self.release(stream, type_url);
        self.0.remove(&(stream.clone(), type_url.clone()));
    }
}

fn next_wait(wait: Duration) -> Duration {
    (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_client::{Kind, Response, VerdictSlot};

    fn refusal() -> (Verdict, VerdictSlot) {
        let (response, slot) = Response::new(TypeUrl::CLUSTER, "1", Kind::Full, Vec::new());
        (Verdict { answer: response.answer, refusal: Some(("bad".into(), vec!["c".into()])) }, slot)
    }

    #[test]
    fn the_same_push_waits_ever_longer() {
        let mut wait = Duration::ZERO;
        let waits = [(); 7].map(|()| {
            wait = next_wait(wait);
            wait.as_millis()
        });
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[tokio::test]
    async fn only_the_same_push_waits_and_no_answer_is_lost() {
        let local = tokio::task::LocalSet::new();
        let task = local.run_until(async {
            let mut repeats = Repeats::default();
            let refuse = |repeats: &mut Repeats, digest: u64| {
                let (verdict, slot) = refusal();
                repeats.refuse(&StreamId::Ads, &TypeUrl::CLUSTER, digest, verdict);
                slot
            };
            assert!(refuse(&mut repeats, 1).get().is_some());
            let waits = refuse(&mut repeats, 1);
            assert_eq!(waits.get(), None);
            while waits.get().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(refuse(&mut repeats, 2).get().is_some());
            let waits = refuse(&mut repeats, 2);
            assert_eq!(waits.get(), None);
            repeats.forget(&StreamId::Ads, &TypeUrl::CLUSTER);
            assert!(waits.get().is_some());
            assert!(refuse(&mut repeats, 2).get().is_some(), "a push that was taken lies between");
        });
        task.await;
    }

    #[test]
    fn a_nack_is_of_a_bounded_size() {
        let refused: Vec<_> = (0..500).map(|n| (format!("r{n}"), bounded("ü".repeat(100_000)))).collect();
        let text = detail("cluster", &refused);
        assert!(text.len() < 64 * 1024, "{}", text.len());
        assert!(text.starts_with("Error adding/updating cluster(s) r0: ü") && text.ends_with("\nand 480 more"));
    }
}
