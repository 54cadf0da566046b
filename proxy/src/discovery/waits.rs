//! Waits for a first version: their end when none comes, and what is still in one.

use super::{Task, type_of};
use crate::slots::{Key, Kind};
use crate::upstream::AssignmentFailure;
use std::sync::Arc;
use std::time::Duration;
use xds_client::TypeUrl;

/// A first fetch that did not come in time.
pub(super) enum Late {
    Clusters,
    Listeners,
    Layer(Arc<str>),
    /// With the number of the wait: the slot may be another one by now.
    Resource(Kind, Key, u64),
}

impl Task {
    pub(super) fn arm(&self, timeout: Option<Duration>, late: Late) {
        if let Some(timeout) = timeout {
            let tx = self.late.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(timeout).await;
                // the task may have ended
                let _ = tx.send(late);
            });
        }
    }

    pub(super) fn late(&mut self, late: Late) {
        match late {
            Late::Clusters if !*self.clusters_answered.borrow() => {
                tracing::warn!("gRPC config: initial fetch timed out for clusters");
                self.stats.clusters.update_attempt.inc();
                self.stats.clusters.init_fetch_timeout.inc();
                self.clusters_answered.send_replace(true);
            }
            Late::Listeners if !*self.listeners_answered.borrow() => {
                tracing::warn!("gRPC config: initial fetch timed out for listeners");
                self.stats.listeners.update_attempt.inc();
                self.stats.listeners.init_fetch_timeout.inc();
                self.listeners_answered.send_replace(true);
            }
            Late::Clusters | Late::Listeners => {}
            Late::Layer(name) => {
                if self.awaited_layers.contains(&name) {
                    tracing::warn!("gRPC config: initial fetch timed out for runtime layer {name}");
                    let source = self.bootstrap.rtds.iter().find(|(known, _)| *known == name);
                    if let Some(source) = source.map(|(_, source)| source.kind.clone()) {
                        let mut ledger = self.ledger.borrow_mut();
                        let from = ledger.source(&source);
                        ledger.timed_out(&TypeUrl::RUNTIME, &from, &name);
                    }
                    if let Some(stats) = self.stats.whole(&TypeUrl::RUNTIME) {
                        stats.update_attempt.inc();
                        stats.init_fetch_timeout.inc();
                    }
                    self.layer_answered(&name);
                }
            }
            Late::Resource(kind, key, generation) => {
                if self.is_waiting(kind, &key) && self.is_wait(kind, &key, generation) {
                    tracing::warn!("gRPC config: initial fetch timed out for {kind:?} {}", key.name);
                    self.note_late(kind, &key);
                    if let Some(source) = &key.source {
                        let mut ledger = self.ledger.borrow_mut();
                        let from = ledger.source(&source.kind);
                        ledger.timed_out(&type_of(kind), &from, &key.name);
                    }
                    self.give_up(kind, &key);
                }
            }
        }
    }

    pub(super) fn note_late(&self, kind: Kind, key: &Key) {
        if kind == Kind::Assignment {
            return self.services.clusters.assignment_failed(&key.name, AssignmentFailure::TimedOut);
        }
        let Some(source) = &key.source else { return };
        let wanted = (self.streams.id(source, &type_of(kind), Some(&key.name)), kind, key.name.clone());
        if let Some(stats) = self.wanted.get(&wanted).and_then(|interest| interest.stats.as_deref()) {
            stats.timed_out();
        }
    }

    pub(super) fn is_waiting(&self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Route => self.services.routes.get(key).is_some_and(|s| !s.is_settled()),
            Kind::Secret => self.services.secrets.store.get(key).is_some_and(|s| !s.is_settled()),
            Kind::Assignment => self.assignments.get(key).is_some_and(|s| !s.is_settled()),
            Kind::Extension => self.services.extensions.get(key).is_some_and(|s| !s.is_settled()),
        }
    }

    /// Whether the slot of this key is still in its wait of this number.
    pub(super) fn is_wait(&self, kind: Kind, key: &Key, generation: u64) -> bool {
        let Some(source) = &key.source else { return false };
        let wanted = (self.streams.id(source, &type_of(kind), Some(&key.name)), kind, key.name.clone());
        let interest = self.wanted.get(&wanted);
        interest.is_some_and(|i| i.slots.iter().any(|slot| slot.key == *key && slot.generation == generation))
    }

    /// Whether the slot of this key, if anybody has it, holds something.
    pub(super) fn is_filled(&self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Route => self.services.routes.get(key).is_none_or(|s| s.borrow().is_some()),
            Kind::Secret => self.services.secrets.store.get(key).is_none_or(|s| s.borrow().is_some()),
            Kind::Assignment => self.assignments.get(key).is_none_or(|s| s.borrow().is_some()),
            Kind::Extension => self.services.extensions.get(key).is_none_or(|s| s.borrow().is_some()),
        }
    }

    pub(super) fn is_held(&self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Route => self.services.routes.get(key).is_some(),
            Kind::Secret => self.services.secrets.store.get(key).is_some(),
            Kind::Assignment => self.assignments.get(key).is_some(),
            Kind::Extension => self.services.extensions.get(key).is_some(),
        }
    }

    pub(super) fn give_up(&self, kind: Kind, key: &Key) {
        match kind {
            Kind::Route => self.services.routes.give_up(key),
            Kind::Secret => self.services.secrets.store.give_up(key),
            Kind::Assignment => self.assignments.give_up(key),
            Kind::Extension => self.services.extensions.give_up(key),
        }
    }
}
