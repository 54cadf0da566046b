//! Certificates that come close to their end are logged, louder with each step, once per step.

use super::CertificateDetails;
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

/// Time left, and how a person would say it.
const STEPS: [(Duration, &str); 4] = [
    (Duration::from_secs(30 * 86_400), "30 days"),
    (Duration::from_secs(7 * 86_400), "7 days"),
    (DAY, "a day"),
    (Duration::from_secs(3600), "an hour"),
];

/// The step that is logged when no time is left.
const EXPIRED: usize = STEPS.len() + 1;

/// How far each certificate has come, by fingerprint.
#[derive(Default)]
pub(super) struct ExpiryLadder(HashMap<[u8; 32], usize>);

impl ExpiryLadder {
    /// Looks at every certificate in use; forgets those that are not any more.
    pub fn climb<'a>(&mut self, all: impl Iterator<Item = &'a CertificateDetails>, now: SystemTime) {
        let mut reached = HashMap::new();
        for details in all {
            let certificate = &details.certificate;
            let step = step(certificate.not_before, certificate.not_after, now);
            let before = self.0.get(&certificate.fingerprint).copied().unwrap_or(0);
            if step > before && !reached.contains_key(&certificate.fingerprint) {
                say(step, &certificate.subject, &certificate.serial, &details.path);
            }
            reached.insert(certificate.fingerprint, step.max(before));
        }
        self.0 = reached;
    }
}

/// How many steps are behind a certificate. Steps longer than half of its life do not count: a certificate that is meant
/// for a day is not close to its end from the first minute on.
fn step(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> usize {
    let Ok(left) = not_after.duration_since(now) else { return EXPIRED };
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let behind = STEPS.iter().rposition(|(time, _)| left < *time && *time <= life / 2);
    behind.map_or(0, |at| at + 1)
}

fn say(step: usize, subject: &str, serial: &str, path: &str) {
    match step.checked_sub(1).and_then(|at| STEPS.get(at)) {
        None => tracing::error!("the certificate of {subject:?} (serial {serial}, from {path}) has expired"),
        Some((_, left)) => {
            let line =
                format!("the certificate of {subject:?} (serial {serial}, from {path}) expires in less than {left}");
            match step {
                1 => tracing::info!("{line}"),
                2 | 3 => tracing::warn!("{line}"),
                _ => tracing::error!("{line}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_reached_once_and_none_at_the_start_of_a_short_life() {
        let start = SystemTime::UNIX_EPOCH + 1000 * DAY;
        let year = |left: Duration| step(start, start + 365 * DAY, start + 365 * DAY - left);
        assert_eq!([40, 29, 6, 0].map(|days| year(days * DAY + Duration::from_secs(7200))), [0, 1, 2, 3]);
        assert_eq!(year(Duration::from_secs(60)), 4);
        assert_eq!(step(start, start + DAY, start + 2 * DAY), EXPIRED);
        assert_eq!(step(start, start + DAY, start), 0);
        assert_eq!(step(start, start + DAY, start + DAY - Duration::from_secs(60)), 4);
    }
}
