//! Draining: telling connections, gently and with a deadline, that they should end.
//!
//! Drains nest: the server's holds the listeners', a listener's holds its filter chains'. A connection asks only its
//! own; what happens above reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// `--drain-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The share of requests that close their connection grows over the drain period.
    Gradual,
    /// Every request closes its connection from the start.
    Immediate,
}

/// One drain: not begun, running until a deadline, or over.
#[derive(Clone)]
pub struct Drain(Arc<Inner>);

struct Inner {
    parent: Option<Drain>,
    strategy: Strategy,
    /// Beginning and end, once begun.
    period: watch::Sender<Option<(Instant, Instant)>>,
    /// Cheap view of `period` for the path of a request.
    begun: AtomicBool,
    /// Close connections at their next response, without a deadline (`/healthcheck/fail`).
    closing: AtomicBool,
}

impl Drain {
    /// The server's own.
    pub fn root(strategy: Strategy) -> Drain {
        Drain::make(None, strategy)
    }

    /// A drain that also follows this one.
    pub fn child(&self) -> Drain {
        Drain::make(Some(self.clone()), self.0.strategy)
    }

    fn make(parent: Option<Drain>, strategy: Strategy) -> Drain {
        Drain(Arc::new(Inner {
            parent,
            strategy,
            period: watch::Sender::new(None),
            begun: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }))
    }

    /// Begins the drain: connections end by themselves during `period` and are cut when it is over. Beginning again
    /// can only bring the end nearer.
    pub fn begin(&self, period: Duration) {
        let now = Instant::now();
        self.0.period.send_modify(|p| {
            *p = Some(match *p {
                Some((start, end)) => (start, end.min(now + period)),
                None => (now, now + period),
            });
        });
        self.0.begun.store(true, Ordering::Release);
    }

    /// Whether responses should close their connections although nothing else ends (`/healthcheck/fail`, undone by `ok`).
    pub fn set_closing(&self, closing: bool) {
        self.0.closing.store(closing, Ordering::Release);
    }

    /// Whether this drain or one above it has begun.
    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire) || self.0.parent.as_ref().is_some_and(Drain::has_begun)
    }

    /// Asked once per response: should this one close its connection (`connection: close`, GOAWAY)?
    pub fn should_close(&self) -> bool {
        if self.0.closing.load(Ordering::Acquire) {
            return true;
        }
        if self.0.begun.load(Ordering::Acquire) {
            if self.0.strategy == Strategy::Immediate {
                return true;
            }
            if let Some((start, end)) = *self.0.period.borrow() {
                let whole = end.duration_since(start).as_secs_f64();
                if whole <= 0.0 || fastrand::f64() * whole < start.elapsed().as_secs_f64() {
                    return true;
                }
            }
        }
        self.0.parent.as_ref().is_some_and(Drain::should_close)
    }

    /// Returns when this drain, or one above it, has begun.
    pub async fn begun(&self) {
        let mut period = self.0.period.subscribe();
        let own = async {
            // the sender lives in self
            let _ = period.wait_for(Option::is_some).await;
        };
        match &self.0.parent {
            Some(parent) => tokio::select! { () = own => {}, () = Box::pin(parent.begun()) => {} },
            None => own.await,
        }
    }

    /// Returns when the drain period of this drain, or of one above it, is over: what is still open must end now.
    pub async fn over(&self) {
        let mut period = self.0.period.subscribe();
        let own = async {
            loop {
                let end = period.borrow_and_update().map(|(_, end)| end);
                match end {
                    Some(end) => tokio::select! {
                        () = tokio::time::sleep_until(end) => return,
                        changed = period.changed() => if changed.is_err() { return },
                    },
                    None => {
                        if period.changed().await.is_err() {
                            return;
                        }
                    }
                }
            }
        };
        match &self.0.parent {
            Some(parent) => tokio::select! { () = own => {}, () = Box::pin(parent.over()) => {} },
            None => own.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_follows_its_parent() {
        let root = Drain::root(Strategy::Gradual);
        let chain = root.child().child();
        assert!(!chain.should_close() && !chain.has_begun());
        root.begin(Duration::ZERO);
        assert!(chain.has_begun());
        chain.begun().await;
        chain.over().await;
        assert!(chain.should_close());
    }

    #[tokio::test]
    async fn a_second_begin_only_shortens() {
        let drain = Drain::root(Strategy::Gradual);
        drain.begin(Duration::from_secs(1000));
        assert!(!drain.should_close(), "at its start a gradual drain closes nothing");
        drain.begin(Duration::ZERO);
        drain.begin(Duration::from_secs(1000));
        drain.over().await;
    }

    #[test]
    fn an_immediate_drain_closes_from_its_start() {
        let at_once = Drain::root(Strategy::Immediate);
        at_once.begin(Duration::from_secs(100));
        assert!(at_once.should_close());
    }

    #[test]
    fn a_failed_health_check_closes_and_can_be_undone() {
        let root = Drain::root(Strategy::Gradual);
        let chain = root.child();
        root.set_closing(true);
        assert!(chain.should_close() && !chain.has_begun());
        root.set_closing(false);
        assert!(!chain.should_close());
    }
}
