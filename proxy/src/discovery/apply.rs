//! One response: every resource converted and handed to its manager; then the answer.
//!
//! A bad resource does not hold back the good ones: what is good runs, and one NACK lists what was refused and why.

use super::notices::PushNotices;
use super::pending::Verdict;
use super::refusals::{self, Logged, bounded};
use super::streams::StreamId;
use super::{Record, State, Task, kind_of, type_of};
use crate::config::{self, ConfigError, Resource};
use crate::http::RouteTable;
use crate::runtime::Values;
use crate::slots::{Key, Kind, Want};
use crate::upstream::AssignmentFailure;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use xds_client::{Code, Kind as ResponseKind, ResourceError, Response, TypeUrl};

/// Resources that a server says it cannot give, of one response, that are looked at.
const MOST_ERRORS: usize = 1000;

impl Task {
    pub(super) fn response(
        &mut self,
        stream: &StreamId,
        response: Response,
        wants: &mut mpsc::UnboundedReceiver<Want>,
    ) {
        let began = Instant::now();
        if response.expired {
            return self.expired(stream, &response.type_url, &response.removed);
        }
        let Response { type_url, version, kind, resources, removed, errors, control_plane, received, answer, .. } =
            response;
        let version: Arc<str> = version.into();
        let source = self.source(stream);
        // an answer that waits comes before that to a later response
        self.repeats.release(stream, &type_url);
        self.note_identifier(stream, &control_plane);
        let removed = match kind {
            ResponseKind::Delta => removed,
            // in a full answer, what is not there is gone; that holds for the two types that are asked for as a whole
            ResponseKind::Full if is_whole(&type_url) => {
                let given: HashSet<&str> = resources.iter().map(|r| r.name.as_str()).collect();
                let ledger = self.ledger.borrow();
                let gone = ledger.of(&type_url).filter(|(id, record)| {
                    !record.is_static && record.state() != State::Draining && !given.contains(&*id.name)
                });
                gone.map(|(id, _)| id.name.to_string()).collect()
            }
            ResponseKind::Full => Vec::new(),
        };
        // listeners go first, so that one under a new name can have the address; clusters go last, so that no request
        // misses one
        let listeners = type_url == TypeUrl::LISTENER;
        if listeners {
            self.remove_all(stream, &type_url, &source, &removed);
        }
        let (refused, digest) = self.take_all(stream, &type_url, &source, &version, resources);
        if !listeners {
            self.remove_all(stream, &type_url, &source, &removed);
        }
        self.note_errors(stream, &type_url, &source, errors);
        // what the new resources need is asked for before the answer, as Envoy does
        while let Ok(want) = wants.try_recv() {
            self.want(want);
        }
        if let Some(stats) = self.stats.whole(&type_url) {
            stats.applied(&version, refused.is_empty(), began.elapsed());
        }
        if let Some(stats) = self.stats.of_type(&type_url) {
            if refused.is_empty() { &stats.update_success } else { &stats.update_rejected }.inc();
        }
        let refusal = if refused.is_empty() {
            self.ledger.borrow_mut().set_version(&type_url, &version);
            None
        } else {
            let detail = refusals::detail(short_name(&type_url), &refused);
            Some((detail, refused.into_iter().map(|(name, _)| name).collect()))
        };
        self.finish(stream, &type_url, received, Verdict { answer, refusal }, digest);
    }

    /// Nobody renewed these in time: to their source they are gone.
    fn expired(&mut self, stream: &StreamId, type_url: &TypeUrl, names: &[String]) {
        for name in names {
            tracing::warn!("{} {name}: its time to live is over", short_name(type_url));
        }
        let source = self.source(stream);
        self.remove_all(stream, type_url, &source, names);
    }

    /// Answers, at once or when clusters are warm, and sees to it that the time until all is live is recorded.
    fn finish(&mut self, stream: &StreamId, type_url: &TypeUrl, received: Instant, verdict: Verdict, digest: u64) {
        let received = Some(received).filter(|_| verdict.refusal.is_none());
        let clusters = *type_url == TypeUrl::CLUSTER;
        let holds =
            clusters && self.listeners_started && *stream == StreamId::Ads && self.services.clusters.any_warming();
        let held = if holds {
            Some(verdict)
        } else {
            self.answer(stream, type_url, verdict, digest);
            None
        };
        let lost = match type_url {
            t if *t == TypeUrl::CLUSTER => {
                self.clusters_answered.send_replace(true);
                self.cold_clusters.push(received, held)
            }
            t if *t == TypeUrl::LISTENER => {
                self.listeners_answered.send_replace(true);
                self.cold_listeners.push(received, held)
            }
            _ => {
                received.into_iter().for_each(|received| self.live(type_url, received));
                false
            }
        };
        if let Some(stats) = self.stats.of_type(type_url).filter(|_| lost) {
            stats.propagation_lost.inc();
        }
    }

    fn answer(&mut self, stream: &StreamId, type_url: &TypeUrl, verdict: Verdict, digest: u64) {
        if verdict.refusal.is_some() {
            self.repeats.refuse(stream, type_url, digest, verdict);
        } else {
            self.repeats.forget(stream, type_url);
            verdict.give();
        }
    }

    /// Clusters warm for so long that their control plane should hear of it.
    pub(super) fn clusters_take_long(&mut self) {
        let given = self.cold_clusters.release_due(Instant::now());
        tracing::warn!(
            "clusters have been warming for {} s; their push is answered before they are warm (/init_dump tells what they wait for)",
            super::pending::LONGEST_HOLD.as_secs()
        );
        if let Some(stats) = self.stats.of_type(&TypeUrl::CLUSTER) {
            stats.answers_overdue.add(given as u64);
        }
    }

    /// Records how long an update took, once the tasks that it woke have had their turn.
    fn live(&self, type_url: &TypeUrl, received: Instant) {
        if let Some(propagation) = self.stats.of_type(type_url).map(|stats| stats.propagation.clone()) {
            tokio::task::spawn_local(async move { propagation.record_duration(received.elapsed()) });
        }
    }

    pub(super) fn clusters_are_warm(&mut self) {
        for received in self.cold_clusters.live() {
            self.live(&TypeUrl::CLUSTER, received);
        }
    }

    pub(super) fn listeners_are_warm(&mut self) {
        let came = self.cold_listeners.live();
        let propagation = self.stats.of_type(&TypeUrl::LISTENER).map(|stats| stats.propagation.clone());
        let obeyed = self.listeners.obeyed();
        tokio::task::spawn_local(async move {
            obeyed.await;
            if let Some(propagation) = propagation {
                came.into_iter().for_each(|received| propagation.record_duration(received.elapsed()));
            }
        });
    }

    /// Takes what is good; returns what is not, and why, and a digest of all that came.
    fn take_all(
        &mut self,
        stream: &StreamId,
        type_url: &TypeUrl,
        source: &Arc<str>,
        version: &Arc<str>,
        resources: Vec<xds_client::Resource>,
    ) -> (Vec<(String, String)>, u64) {
        let (mut refused, mut digest) = (Vec::new(), 0_u64);
        let mut seen = HashSet::new();
        let (kind, mut logged) = (short_name(type_url), Logged::default());
        for resource in resources {
            // a heartbeat has no body: nothing changed
            let Some(body) = resource.body else { continue };
            let began = Instant::now();
            let own_version: Arc<str> =
                if resource.version.is_empty() { version.clone() } else { resource.version.into() };
            let name = resource.name;
            let bytes = Bytes::from(body.value);
            digest = digest.rotate_left(5) ^ twox_hash::XxHash64::oneshot(0, &bytes);
            // what has no name cannot be another's twin: conversion says what is wrong with it
            let outcome = if !name.is_empty() && !seen.insert(name.clone()) {
                Err(ConfigError::new("", format!("duplicate {kind} {name} found")))
            } else if body.type_url != type_url.as_str() {
                Err(ConfigError::new("", format!("resource is a {}, expected {type_url}", body.type_url)))
            } else if self.skips(type_url, source, &name) {
                Ok(Taken::Unwanted)
            } else if self.runs(stream, source, type_url, &name, &bytes) {
                self.refresh(stream, type_url, &name, &own_version);
                Ok(Taken::Unchanged)
            } else {
                self.take(stream, type_url, &name, &bytes, &own_version, None)
            };
            self.note_resource(stream, type_url, &name, version, outcome.as_ref().ok(), began);
            match outcome {
                Ok(Taken::Held) => {
                    let mut ledger = self.ledger.borrow_mut();
                    ledger.accepted(type_url, source, &name, &own_version, bytes);
                    ledger.warned(type_url, source, &name, &self.noticed);
                }
                Ok(Taken::Unchanged) => self.ledger.borrow_mut().repeated(type_url, source, &name, &own_version),
                Ok(Taken::Unwanted) => {}
                Err(error) => {
                    let detail = bounded(error.to_string());
                    // shown as what it is not, a message of another type would show what is secret in its own
                    let kept = if body.type_url == type_url.as_str() { bytes } else { Bytes::new() };
                    if self.is_wanted(stream, type_url, &name) {
                        let mut ledger = self.ledger.borrow_mut();
                        let known = ledger.get(type_url, source, &name).and_then(Record::refusal);
                        if known.is_none_or(|known| known.bytes != kept || known.detail != detail) {
                            logged.say(kind, &name, &detail);
                        }
                        ledger.rejected(type_url, source, &name, &own_version, kept, &detail);
                        drop(ledger);
                        self.end_wait(stream, type_url, &name);
                    } else {
                        logged.say(kind, &name, &detail);
                    }
                    refused.push((name, detail));
                }
            }
        }
        logged.end(kind);
        for line in std::mem::take(&mut self.push_notices).lines(kind) {
            tracing::warn!("{line}");
        }
        (refused, digest)
    }

    /// What the bootstrap has is the bootstrap's: Envoy passes over what a control plane offers under the name of a static
    /// cluster or listener. Names of other types do not meet: static secrets are asked for in another way.
    fn skips(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str) -> bool {
        if !is_whole(type_url) || name.is_empty() || !self.ledger.borrow().is_static(type_url, name) {
            return false;
        }
        let resource = format!("{} {name}", short_name(type_url));
        if !self.skipped.contains(&resource) {
            tracing::warn!("{resource} is static: what {source} offers under its name is passed over");
            self.skipped.insert(resource);
        }
        self.ledger.borrow_mut().forget(type_url, source, name);
        true
    }

    /// Whether exactly this runs already, everywhere: an equal push costs a comparison and changes nothing.
    fn runs(&self, stream: &StreamId, source: &str, type_url: &TypeUrl, name: &str, bytes: &[u8]) -> bool {
        let ledger = self.ledger.borrow();
        let record = ledger.get(type_url, source, name);
        let holds = record.is_some_and(|r| r.is_good() && r.held().is_some_and(|held| held.bytes == bytes));
        holds
            && kind_of(type_url).is_none_or(|kind| {
                let interest = self.wanted.get(&(stream.clone(), kind, Arc::from(name)));
                interest.is_none_or(|i| i.slots.iter().all(|slot| self.is_filled(kind, &slot.key)))
            })
    }

    /// Whether anybody asked for it. A server may send what nobody wants, as much as it likes; that is not kept.
    fn is_wanted(&self, stream: &StreamId, type_url: &TypeUrl, name: &str) -> bool {
        match kind_of(type_url) {
            Some(kind) => self.wanted.contains_key(&(stream.clone(), kind, Arc::from(name))),
            None if *type_url == TypeUrl::RUNTIME => self.bootstrap.rtds.iter().any(|(known, _)| **known == *name),
            None => is_whole(type_url),
        }
    }

    /// Nothing better than no version at all is to come soon: whoever waits for a first one waits no longer, as in Envoy.
    fn end_wait(&mut self, stream: &StreamId, type_url: &TypeUrl, name: &str) {
        match kind_of(type_url) {
            Some(kind) => {
                if let Some(interest) = self.wanted.get(&(stream.clone(), kind, Arc::from(name))) {
                    // one before it may be good, and wait for its clusters
                    let waiting = interest.slots.iter().filter(|slot| !self.held_tables.holds(&slot.key));
                    waiting.for_each(|slot| self.give_up(kind, &slot.key));
                }
            }
            None if *type_url == TypeUrl::RUNTIME => self.layer_answered(name),
            None => {}
        }
    }

    /// Resources that the server could not give.
    fn note_errors(&mut self, stream: &StreamId, type_url: &TypeUrl, source: &Arc<str>, errors: Vec<ResourceError>) {
        let (kind, mut logged) = (short_name(type_url), Logged::default());
        for ResourceError { name, code, message } in errors.into_iter().take(MOST_ERRORS) {
            let detail = bounded(format!("{stream} cannot give it ({code:?}): {message}"));
            logged.say(kind, &name, &detail);
            if is_whole(type_url) || !self.is_wanted(stream, type_url, &name) {
                continue;
            }
            match code {
                Code::NotFound => self.remove(stream, type_url, source, &name),
                Code::PermissionDenied => self.end_wait(stream, type_url, &name),
                // it may get better
                _ => {}
            }
            self.ledger.borrow_mut().failed(type_url, source, &name, &detail.into());
        }
        logged.end(kind);
    }

    /// Lets clusters count an update that changes nothing.
    fn refresh(&self, stream: &StreamId, type_url: &TypeUrl, name: &str, version: &Arc<str>) {
        if *type_url == TypeUrl::ENDPOINT
            && let Some(interest) = self.wanted.get(&(stream.clone(), Kind::Assignment, Arc::from(name)))
        {
            interest.slots.iter().for_each(|slot| self.assignments.refresh(&slot.key, version.clone()));
        }
    }

    /// Counts what became of a resource with its own subscription; `None`: it was refused.
    fn note_resource(
        &self,
        stream: &StreamId,
        type_url: &TypeUrl,
        name: &str,
        version: &str,
        good: Option<&Taken>,
        began: Instant,
    ) {
        match kind_of(type_url) {
            Some(Kind::Assignment) if good.is_none() => {
                self.services.clusters.assignment_failed(name, AssignmentFailure::Rejected)
            }
            Some(Kind::Assignment) | None => {}
            Some(kind) => {
                let wanted = (stream.clone(), kind, Arc::from(name));
                if let Some(stats) = self.wanted.get(&wanted).and_then(|interest| interest.stats.as_deref()) {
                    stats.applied(version, good.is_some(), began.elapsed());
                    if matches!(good, Some(Taken::Held)) {
                        stats.reloaded();
                    }
                }
            }
        }
    }

    /// Converts one resource and hands it to whoever runs it; to one slot `only`, when that is given.
    fn take(
        &mut self,
        stream: &StreamId,
        type_url: &TypeUrl,
        name: &str,
        bytes: &[u8],
        version: &Arc<str>,
        only: Option<&Key>,
    ) -> Result<Taken, ConfigError> {
        let resource = config::decode(type_url.as_str(), bytes, &mut self.context);
        let mut notices = std::mem::take(&mut self.context.notices);
        if self.ignore_unknown_fields {
            notices.unknown.clear();
            notices.more_unknown = 0;
        }
        self.stats.notices.count(&notices);
        self.push_notices.add(name, &notices, !self.skip_deprecated_logs);
        let unknown = notices.unknown.into_iter().map(|unknown| format!("{}: is an unknown field", unknown.path));
        self.noticed = notices.warnings.iter().map(ToString::to_string).chain(unknown).collect();
        match resource? {
            Resource::Cluster(cluster) => self.services.clusters.add_or_update(cluster, true).map(|_| Taken::Held),
            Resource::Listener(listener) => self.listeners.add_or_update(listener, true).map(|_| Taken::Held),
            Resource::Route(route) => {
                let table = RouteTable::compile(route, &self.services)?;
                let Some(keys) = self.waiting_for(stream, Kind::Route, name, only) else { return Ok(Taken::Unwanted) };
                self.services.routes.ask(&keys, &table)?;
                keys.iter().for_each(|key| self.held_tables.fill(key, table.clone(), &self.services));
                Ok(Taken::Held)
            }
            Resource::Extension(extension) => {
                let Some(keys) = self.waiting_for(stream, Kind::Extension, name, only) else {
                    return Ok(Taken::Unwanted);
                };
                self.services.extensions.fill_agreed(&keys, &extension, version).map(|()| Taken::Held)
            }
            Resource::Assignment(assignment) => self.fill(stream, Kind::Assignment, name, only, |task, key| {
                task.assignments.fill_version(key, assignment.clone(), version.clone());
                Ok(())
            }),
            Resource::Runtime { name, values } => {
                let wanted = self.bootstrap.rtds.iter().any(|(known, _)| *known == name);
                if !wanted {
                    return Ok(Taken::Unwanted);
                }
                self.runtime.set_rtds(&name, &values);
                self.layer_answered(&name);
                Ok(Taken::Held)
            }
            Resource::Secret(secret) => self.fill(stream, Kind::Secret, name, only, |task, key| {
                task.services.secrets.update(key, secret.kind.clone())
            }),
        }
    }

    /// Gives a resource to every slot that wants its name on this stream, or to that one only. Nobody waiting is no error: servers
    /// may send more than was asked for.
    fn fill(
        &self,
        stream: &StreamId,
        kind: Kind,
        name: &str,
        only: Option<&Key>,
        give: impl Fn(&Task, &Key) -> Result<(), ConfigError>,
    ) -> Result<Taken, ConfigError> {
        let Some(keys) = self.waiting_for(stream, kind, name, only) else { return Ok(Taken::Unwanted) };
        keys.iter().try_for_each(|key| give(self, key)).map(|()| Taken::Held)
    }

    /// The slots that take resources of this name from this stream; `only` this one, when it is given.
    fn waiting_for(&self, stream: &StreamId, kind: Kind, name: &str, only: Option<&Key>) -> Option<Vec<Key>> {
        let interest = self.wanted.get(&(stream.clone(), kind, Arc::from(name)))?;
        let keys = interest.slots.iter().map(|slot| &slot.key).filter(|key| only.is_none_or(|only| only == *key));
        Some(keys.cloned().collect())
    }

    /// Gives a slot what its source has already given to another slot of the same name.
    pub(super) fn refill(&mut self, stream: &StreamId, kind: Kind, key: &Key) {
        let type_url = type_of(kind);
        let source = self.source(stream);
        let Some(known) = self.ledger.borrow().get(&type_url, &source, &key.name).cloned() else { return };
        let filled = match &known.running {
            Some(config) => {
                self.take(stream, &type_url, &key.name, &config.bytes, &config.version, Some(key)).map(drop)
            }
            // the others know already that it is not to be had
            None if !known.is_good() => return self.give_up(kind, key),
            None => return,
        };
        // said when it came
        self.push_notices = PushNotices::default();
        if let Err(error) = filled {
            tracing::warn!("{} {}: {error}", short_name(&type_url), key.name);
            self.give_up(kind, key);
        }
    }

    fn remove_all(&mut self, stream: &StreamId, type_url: &TypeUrl, source: &Arc<str>, names: &[String]) {
        for name in names {
            self.remove(stream, type_url, source, name);
        }
    }

    /// A resource that its source no longer has. What is referred to by name stays in use, as in Envoy: whatever refers
    /// to it still does, and nothing better is known. Whoever waits for it waits no longer.
    fn remove(&mut self, stream: &StreamId, type_url: &TypeUrl, source: &Arc<str>, name: &str) {
        if is_whole(type_url) && self.ledger.borrow().is_static(type_url, name) {
            return;
        }
        let Some(kind) = kind_of(type_url) else {
            if *type_url == TypeUrl::CLUSTER {
                self.services.clusters.remove(name);
            } else if *type_url == TypeUrl::LISTENER {
                self.listeners.remove(name);
            } else if *type_url == TypeUrl::RUNTIME {
                self.runtime.set_rtds(name, &Values::new());
                self.layer_answered(name);
            }
            return self.ledger.borrow_mut().removed(type_url, source, name);
        };
        let Some(interest) = self.wanted.get(&(stream.clone(), kind, Arc::from(name))) else { return };
        let what = short_name(type_url);
        let in_use = self.ledger.borrow().get(type_url, source, name).is_some_and(|r| r.running.is_some());
        match (kind, in_use) {
            (_, false) => tracing::warn!("{what} {name} does not exist, says {stream}"),
            (Kind::Assignment, true) => {
                self.services.clusters.assignment_failed(name, AssignmentFailure::Empty);
                tracing::info!("{what} {name} was removed by {stream}: the last endpoints stay in use");
            }
            (Kind::Extension, true) => {
                tracing::warn!("{what} {name} was removed by {stream}: its default is used, or nothing is served");
                interest.slots.iter().for_each(|slot| self.services.extensions.clear(&slot.key));
                self.ledger.borrow_mut().gone(type_url, source, name);
                return;
            }
            (Kind::Route | Kind::Secret, true) => {
                tracing::error!("{what} {name} was removed by {stream} and is still in use: the last one stays");
            }
        }
        self.ledger.borrow_mut().does_not_exist(type_url, source, name);
        for slot in &interest.slots {
            self.give_up(kind, &slot.key);
        }
    }
}

/// What became of a resource that is good.
pub(super) enum Taken {
    Held,
    /// Equal to what runs.
    Unchanged,
    /// Nobody asked for it.
    Unwanted,
}

/// Whether a full answer of this type names everything there is.
fn is_whole(type_url: &TypeUrl) -> bool {
    *type_url == TypeUrl::CLUSTER || *type_url == TypeUrl::LISTENER
}

/// The word for a resource of this type in messages.
fn short_name(type_url: &TypeUrl) -> &str {
    match type_url {
        t if *t == TypeUrl::CLUSTER => "cluster",
        t if *t == TypeUrl::LISTENER => "listener",
        t if *t == TypeUrl::ROUTE => "route configuration",
        t if *t == TypeUrl::ENDPOINT => "cluster load assignment",
        t if *t == TypeUrl::SECRET => "secret",
        t if *t == TypeUrl::RUNTIME => "runtime layer",
        t if *t == TypeUrl::EXTENSION => "extension config",
        t => t.message_name(),
    }
}
