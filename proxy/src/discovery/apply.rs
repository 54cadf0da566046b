//! One response: every resource converted and handed to its manager; then the answer.
//!
//! A bad resource does not hold back the good ones: what is good runs, and one NACK lists what was refused and why.

use super::pending::Verdict;
use super::streams::StreamId;
use super::{State, Task, kind_of, type_of};
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
use xds_client::{Kind as ResponseKind, Response, TypeUrl};
use xds_protos::Descriptors;

/// Distinct warnings that are logged; names in them come from a control plane, so there must be an end.
const MAX_WARNED: usize = 1000;

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
        let Response { type_url, version, kind, resources, removed, control_plane, received, answer, .. } = response;
        let version: Arc<str> = version.into();
        self.note_identifier(stream, &control_plane);
        let removed = match kind {
            ResponseKind::Delta => removed,
            // in a full answer, what is not there is gone; that holds for the two types that are asked for as a whole
            ResponseKind::Full if is_whole(&type_url) => {
                let given: HashSet<&str> = resources.iter().map(|r| r.name.as_str()).collect();
                let ledger = self.ledger.borrow();
                let gone = ledger.of(&type_url).filter(|(name, record)| {
                    !record.is_static && record.state() != State::Draining && !given.contains(&***name)
                });
                gone.map(|(name, _)| name.to_string()).collect()
            }
            ResponseKind::Full => Vec::new(),
        };
        // listeners go first, so that one under a new name can have the address; clusters go last, so that no request
        // misses one
        let listeners = type_url == TypeUrl::LISTENER;
        if listeners {
            self.remove_all(stream, &type_url, &removed);
        }
        let refused = self.take_all(stream, &type_url, &version, resources);
        if !listeners {
            self.remove_all(stream, &type_url, &removed);
        }
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
            let list: Vec<String> = refused.iter().map(|(name, detail)| format!("{name}: {detail}")).collect();
            let detail = format!("Error adding/updating {}(s) {}", short_name(&type_url), list.join("\n"));
            Some((detail, refused.into_iter().map(|(name, _)| name).collect()))
        };
        self.finish(stream, &type_url, received, Verdict { answer, refusal });
    }

    /// Nobody renewed these in time: to their source they are gone.
    fn expired(&mut self, stream: &StreamId, type_url: &TypeUrl, names: &[String]) {
        for name in names {
            tracing::warn!("{} {name}: its time to live is over", short_name(type_url));
        }
        self.remove_all(stream, type_url, names);
    }

    /// Answers, at once or when clusters are warm, and sees to it that the time until all is live is recorded.
    fn finish(&mut self, stream: &StreamId, type_url: &TypeUrl, received: Instant, verdict: Verdict) {
        match type_url {
            t if *t == TypeUrl::CLUSTER => {
                let holds = self.listeners_started && *stream == StreamId::Ads && self.services.clusters.any_warming();
                let held = if holds {
                    Some(verdict)
                } else {
                    verdict.give();
                    None
                };
                self.cold_clusters.push(received, held);
                self.clusters_answered.send_replace(true);
            }
            t if *t == TypeUrl::LISTENER => {
                verdict.give();
                self.cold_listeners.push(received, None);
                self.listeners_answered.send_replace(true);
            }
            _ => {
                verdict.give();
                self.live(type_url, received);
            }
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

    /// Takes what is good; returns what is not, and why.
    fn take_all(
        &mut self,
        stream: &StreamId,
        type_url: &TypeUrl,
        version: &Arc<str>,
        resources: Vec<xds_client::Resource>,
    ) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        let mut seen = HashSet::new();
        for resource in resources {
            // a heartbeat has no body: nothing changed
            let Some(body) = resource.body else { continue };
            let began = Instant::now();
            let own_version: Arc<str> =
                if resource.version.is_empty() { version.clone() } else { resource.version.into() };
            let name = resource.name;
            let bytes = Bytes::from(body.value);
            let outcome = if !seen.insert(name.clone()) {
                Err(ConfigError::new("", format!("duplicate {} {name} found", short_name(type_url))))
            } else if body.type_url != type_url.as_str() {
                Err(ConfigError::new("", format!("resource is a {}, expected {type_url}", body.type_url)))
            } else if self.runs(type_url, &name, &bytes) {
                self.refresh(stream, type_url, &name, &own_version);
                Ok(Taken::Unchanged)
            } else {
                self.take(stream, type_url, &name, &bytes, &own_version)
            };
            self.note_resource(stream, type_url, &name, version, outcome.as_ref().ok(), began);
            match outcome {
                Ok(Taken::Held) => {
                    let mut ledger = self.ledger.borrow_mut();
                    ledger.accepted(type_url, &name, &own_version, bytes);
                    ledger.warned(type_url, &name, &self.noticed);
                }
                Ok(Taken::Unchanged | Taken::Unwanted) => {}
                Err(error) => {
                    let detail = error.to_string();
                    tracing::warn!("{} {name} rejected: {detail}", short_name(type_url));
                    self.ledger.borrow_mut().rejected(type_url, &name, &own_version, bytes, &detail);
                    refused.push((name, detail));
                }
            }
        }
        refused
    }

    /// Whether exactly this runs already: an equal push costs a comparison and changes nothing. Where a slot still waits
    /// for the resource, it does not run.
    fn runs(&self, type_url: &TypeUrl, name: &str, bytes: &[u8]) -> bool {
        let ledger = self.ledger.borrow();
        ledger.get(type_url, name).is_some_and(|record| {
            !record.is_static && record.is_good() && record.held().is_some_and(|held| held.bytes == bytes)
        })
    }

    /// Lets clusters count an update that changes nothing.
    fn refresh(&self, stream: &StreamId, type_url: &TypeUrl, name: &str, version: &Arc<str>) {
        if *type_url == TypeUrl::ENDPOINT
            && let Some(interest) = self.wanted.get(&(stream.clone(), Kind::Assignment, Arc::from(name)))
        {
            interest.keys.iter().for_each(|key| self.assignments.refresh(key, version.clone()));
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

    /// Converts one resource and hands it to whoever runs it.
    fn take(
        &mut self,
        stream: &StreamId,
        type_url: &TypeUrl,
        name: &str,
        bytes: &[u8],
        version: &Arc<str>,
    ) -> Result<Taken, ConfigError> {
        if self.ledger.borrow().get(type_url, name).is_some_and(|r| r.is_static) {
            let kind = short_name(type_url);
            return Err(ConfigError::new(
                "",
                format!("{kind} {name} is static: the bootstrap has it, a control plane cannot change it"),
            ));
        }
        if self.reject_unknown_fields
            && let Some(unknown) = Descriptors::shared()
                .inspect(type_url.message_name(), bytes)
                .and_then(|found| found.unknown_fields.into_iter().next())
        {
            return Err(ConfigError::new(
                unknown.path,
                "is an unknown field, and --reject-unknown-dynamic-fields is set",
            ));
        }
        let resource = config::decode(type_url.as_str(), bytes, &mut self.context);
        let mut notices = std::mem::take(&mut self.context.notices);
        if self.ignore_unknown_fields {
            notices.unknown.clear();
        }
        self.stats.notices.count(&notices);
        let unknown = notices.unknown.into_iter().map(|path| format!("{path}: is an unknown field"));
        let warnings = notices.warnings.into_iter().map(|(path, meaning)| format!("{path}: {meaning}"));
        self.noticed = warnings.chain(unknown).collect();
        for line in &self.noticed {
            if self.warned.len() < MAX_WARNED && self.warned.insert(line.clone()) {
                tracing::warn!("{} {name}: {line}", short_name(type_url));
            }
        }
        match resource? {
            Resource::Cluster(cluster) => self.services.clusters.add_or_update(cluster, true).map(|_| Taken::Held),
            Resource::Listener(listener) => self.listeners.add_or_update(listener, true).map(|_| Taken::Held),
            Resource::Route(route) => {
                let table = RouteTable::compile(route, &self.services)?;
                self.fill(stream, Kind::Route, name, |task, key| {
                    task.held_tables.fill(key, table.clone(), &task.services);
                    Ok(())
                })
            }
            Resource::Assignment(assignment) => self.fill(stream, Kind::Assignment, name, |task, key| {
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
            Resource::Secret(secret) => self
                .fill(stream, Kind::Secret, name, |task, key| task.services.secrets.update(key, secret.kind.clone())),
        }
    }

    /// Gives a resource to every slot that waits for its name on this stream. Nobody waiting is no error: servers
    /// may send more than was asked for.
    fn fill(
        &self,
        stream: &StreamId,
        kind: Kind,
        name: &str,
        give: impl Fn(&Task, &Key) -> Result<(), ConfigError>,
    ) -> Result<Taken, ConfigError> {
        let wanted = (stream.clone(), kind, Arc::from(name));
        let Some(interest) = self.wanted.get(&wanted) else { return Ok(Taken::Unwanted) };
        interest.keys.iter().try_for_each(|key| give(self, key)).map(|()| Taken::Held)
    }

    /// Gives a slot what its stream has already delivered to another slot of the same name.
    pub(super) fn refill(&mut self, stream: &StreamId, kind: Kind, key: &Key) {
        let type_url = type_of(kind);
        let known = self.ledger.borrow().get(&type_url, &key.name).and_then(|r| r.running.clone());
        if let Some(running) = known
            && let Err(error) = self.take(stream, &type_url, &key.name, &running.bytes, &running.version)
        {
            tracing::warn!("{} {}: {error}", short_name(&type_url), key.name);
        }
    }

    fn remove_all(&mut self, stream: &StreamId, type_url: &TypeUrl, names: &[String]) {
        for name in names {
            self.remove(stream, type_url, name);
        }
    }

    /// A resource that its source no longer has. What is referred to by name stays in use, as in Envoy: whatever refers
    /// to it still does, and nothing better is known. Whoever waits for it waits no longer.
    fn remove(&mut self, stream: &StreamId, type_url: &TypeUrl, name: &str) {
        if self.ledger.borrow().get(type_url, name).is_some_and(|r| r.is_static) {
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
            return self.ledger.borrow_mut().removed(type_url, name);
        };
        let Some(interest) = self.wanted.get(&(stream.clone(), kind, Arc::from(name))) else { return };
        let what = short_name(type_url);
        let in_use = self.ledger.borrow().get(type_url, name).is_some_and(|r| r.running.is_some());
        match (kind, in_use) {
            (_, false) => tracing::warn!("{what} {name} does not exist, says {stream}"),
            (Kind::Assignment, true) => {
                self.services.clusters.assignment_failed(name, AssignmentFailure::Empty);
                tracing::info!("{what} {name} was removed by {stream}: the last endpoints stay in use");
            }
            (Kind::Route | Kind::Secret, true) => {
                tracing::error!("{what} {name} was removed by {stream} and is still in use: the last one stays");
            }
        }
        self.ledger.borrow_mut().does_not_exist(type_url, name);
        for key in &interest.keys {
            self.give_up(kind, key);
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
        t => t.message_name(),
    }
}
