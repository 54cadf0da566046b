//! `update_merge_window`: updates of endpoints that change no member may wait, so that many of them cost one.
//!
//! The first update after a quiet time is applied at once; those within the window after it wait for its end. Source:
//! Envoy's `Cluster.CommonLbConfig.update_merge_window`.

use std::time::Duration;
use tokio::time::Instant;

pub(super) struct Merging {
    window: Option<Duration>,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Merging {
    /// `None`: nothing waits.
    pub fn new(window: Option<Duration>) -> Merging {
        Merging { window, last: None, due: None }
    }

    pub fn is_on(&self) -> bool {
        self.window.is_some()
    }

    /// Whether an update now is within the window of the last one.
    pub fn may_wait(&self) -> bool {
        self.window.zip(self.last).is_some_and(|(window, last)| last.elapsed() <= window)
    }

    /// An update waits from now on, with those that wait already.
    pub fn wait(&mut self) {
        let window = self.window.unwrap_or_default();
        self.due.get_or_insert_with(|| Instant::now() + window);
    }

    /// Everything known is applied now. Says whether something waited.
    pub fn applied(&mut self) -> bool {
        self.last = Some(Instant::now());
        self.due.take().is_some()
    }

    /// Returns when what waits is to be applied; never while nothing waits.
    pub async fn due(&self) {
        match self.due {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn updates_within_the_window_wait_for_its_end() {
        let mut merging = Merging::new(Some(Duration::from_secs(3600)));
        assert!(!merging.may_wait(), "the first is applied at once");
        assert!(!merging.applied() && merging.may_wait());
        merging.wait();
        merging.wait();
        assert!(merging.applied() && !merging.applied());
        let mut short = Merging::new(Some(Duration::from_millis(1)));
        short.applied();
        short.wait();
        short.due().await;
        assert!(!short.may_wait(), "the window is over");
        let mut off = Merging::new(None);
        off.applied();
        assert!(!off.may_wait() && !off.is_on());
    }
}
