//! One resource in the ledger.

use bytes::Bytes;
use std::sync::Arc;
use std::time::SystemTime;

/// What became of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Asked for by name; nothing has come yet.
    Requested,
    /// Taken; waits for what it needs. What ran before serves until then.
    Warming,
    Running,
    /// Gone or replaced; its connections are let go.
    Draining,
    /// The last offer was refused; what ran before still runs.
    Rejected,
    /// Its source says that there is none of this name.
    DoesNotExist,
}

impl State {
    pub const ALL: [State; 6] =
        [State::Requested, State::Warming, State::Running, State::Draining, State::Rejected, State::DoesNotExist];

    /// The word for it, on pages and in stats.
    pub fn name(self) -> &'static str {
        match self {
            State::Requested => "requested",
            State::Warming => "warming",
            State::Running => "running",
            State::Draining => "draining",
            State::Rejected => "rejected",
            State::DoesNotExist => "does_not_exist",
        }
    }
}

/// One resource. Cloning it shares its messages.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Given by the bootstrap and not by a control plane.
    pub is_static: bool,
    /// Its source says that there is none of this name.
    pub missing: bool,
    /// The first fetch took too long.
    pub timed_out: bool,
    /// When it was asked for by name.
    pub requested: Option<SystemTime>,
    /// What was last offered, good or not, or equal to what is held: that keeps its version, as in Envoy.
    pub offered: Option<Arc<Offer>>,
    /// What runs; `None` when no version was ever good.
    pub running: Option<Config>,
    /// Since when it runs.
    pub since: Option<SystemTime>,
    /// Fields of the last good offer that are set and have no effect.
    pub warnings: Option<Arc<[Arc<str>]>>,
    /// What few resources have, so that the many stay small.
    pub(super) rare: Option<Box<Rare>>,
}

/// That a version was offered; resources of one response share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub version: Arc<str>,
    pub at: SystemTime,
}

/// A version of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub version: Arc<str>,
    /// The message as it came.
    pub bytes: Bytes,
    /// When this content was first taken.
    pub taken: SystemTime,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Rare {
    pub warming: Option<Config>,
    pub draining: Option<Config>,
    pub refusal: Option<Refusal>,
    pub failure: Option<Failure>,
}

/// Why its source gives nothing.
#[derive(Debug, Clone)]
pub struct Failure {
    pub detail: Arc<str>,
    pub at: SystemTime,
}

/// An offer that was refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub version: Arc<str>,
    /// The message as it came.
    pub bytes: Bytes,
    pub detail: String,
    pub at: SystemTime,
}

impl Record {
    /// What became of it: its newest news first.
    pub fn state(&self) -> State {
        match () {
            () if self.refusal().is_some() => State::Rejected,
            () if self.missing => State::DoesNotExist,
            () if self.warming().is_some() => State::Warming,
            () if self.running.is_some() => State::Running,
            () if self.draining().is_some() => State::Draining,
            () => State::Requested,
        }
    }

    /// What was taken and does not run yet.
    pub fn warming(&self) -> Option<&Config> {
        self.rare.as_ref()?.warming.as_ref()
    }

    /// What was removed or replaced and still has connections.
    pub fn draining(&self) -> Option<&Config> {
        self.rare.as_ref()?.draining.as_ref()
    }

    /// The last refusal, unless something good came after it.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.rare.as_ref()?.refusal.as_ref()
    }

    /// Why its source gave nothing that could be used, unless it did since.
    pub fn failure(&self) -> Option<&Failure> {
        self.rare.as_ref()?.failure.as_ref()
    }

    /// Whether its last news were good.
    pub fn is_good(&self) -> bool {
        !self.missing && self.refusal().is_none()
    }

    /// The last version that was taken, warm or not.
    pub fn held(&self) -> Option<&Config> {
        self.warming().or(self.running.as_ref())
    }

    /// The version that was offered last, whatever became of it.
    pub fn version_offered(&self) -> Option<&Arc<str>> {
        self.offered.as_ref().map(|offer| &offer.version)
    }

    /// When that was.
    pub fn offered_at(&self) -> Option<SystemTime> {
        self.offered.as_ref().map(|offer| offer.at)
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Whether only a manager knows when its state ends.
    pub(super) fn is_unsettled(&self) -> bool {
        self.warming().is_some() || self.draining().is_some()
    }

    /// Gives back what is not needed any more.
    pub(super) fn tidy(&mut self) {
        if let Some(Rare { warming: None, draining: None, refusal: None, failure: None }) = self.rare.as_deref() {
            self.rare = None;
        }
    }
}
