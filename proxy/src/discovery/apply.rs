//! One response: every resource converted and handed to its manager; then the answer.
//!
//! A bad resource does not hold back the good ones: what is good runs, and one NACK lists what was refused and why.

use super::streams::StreamId;
use super::{Task, type_of};
use crate::config::{self, ConfigError, Resource};
use crate::http::RouteTable;
use crate::slots::{Key, Kind, Want};
use std::collections::HashSet;
use std::sync::Arc;
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
        let began = response.received;
        let type_url = response.type_url.clone();
        let version = response.version.clone();
        if !response.control_plane.is_empty() {
            self.stats.identifier.set(&response.control_plane);
        }
        let mut refused: Vec<(String, String)> = Vec::new();
        let mut seen = HashSet::new();
        for resource in response.resources {
            // a heartbeat has no body: nothing changed
            let Some(body) = resource.body else { continue };
            let version = if resource.version.is_empty() { &version } else { &resource.version };
            let name = resource.name;
            let outcome = if !seen.insert(name.clone()) {
                Err(ConfigError::new("", format!("duplicate {} {name} found", short_name(&type_url))))
            } else if body.type_url != type_url.as_str() {
                Err(ConfigError::new("", format!("resource is a {}, expected {type_url}", body.type_url)))
            } else {
                self.take(stream, &type_url, &name, &body.value)
            };
            let mut ledger = self.ledger.borrow_mut();
            match outcome {
                Ok(()) => ledger.accepted(&type_url, &name, version, body.value),
                Err(error) => {
                    let detail = error.to_string();
                    tracing::warn!("{} {name} rejected: {detail}", short_name(&type_url));
                    ledger.rejected(&type_url, &name, version, &detail);
                    refused.push((name, detail));
                }
            }
        }
        let removed = match response.kind {
            ResponseKind::Delta => response.removed,
            // in a full answer, what is not there is gone; that holds for the two types that are asked for as a whole
            ResponseKind::Full if is_whole(&type_url) => {
                let ledger = self.ledger.borrow();
                let gone = ledger.of(&type_url).filter(|(name, record)| !record.is_static && !seen.contains(*name));
                gone.map(|(name, _)| name.to_owned()).collect()
            }
            ResponseKind::Full => Vec::new(),
        };
        for name in &removed {
            self.remove(stream, &type_url, name);
        }
        // what the new resources need is asked for before the answer, as Envoy does
        while let Ok(want) = wants.try_recv() {
            self.want(want);
        }
        if let Some(stats) = self.stats.of(&type_url) {
            stats.applied(&version, refused.is_empty(), began.elapsed());
        }
        if refused.is_empty() {
            self.ledger.borrow_mut().set_version(&type_url, &version);
            response.answer.ack();
        } else {
            let list: Vec<String> = refused.iter().map(|(name, detail)| format!("{name}: {detail}")).collect();
            let names: Vec<String> = refused.into_iter().map(|(name, _)| name).collect();
            let detail = format!("Error adding/updating {}(s) {}", short_name(&type_url), list.join("\n"));
            response.answer.nack(detail, &names);
        }
        if type_url == TypeUrl::CLUSTER {
            self.clusters_answered.send_replace(true);
        } else if type_url == TypeUrl::LISTENER {
            self.listeners_answered.send_replace(true);
        }
    }

    /// Converts one resource and hands it to whoever runs it.
    fn take(&mut self, stream: &StreamId, type_url: &TypeUrl, name: &str, bytes: &[u8]) -> Result<(), ConfigError> {
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
        let notices = std::mem::take(&mut self.context.notices);
        let unknown = notices.unknown.into_iter().map(|path| format!("{path}: is an unknown field"));
        for line in notices.warnings.into_iter().map(|(path, meaning)| format!("{path}: {meaning}")).chain(unknown) {
            if self.warned.len() < MAX_WARNED && self.warned.insert(line.clone()) {
                tracing::warn!("{} {name}: {line}", short_name(type_url));
            }
        }
        match resource? {
            Resource::Cluster(cluster) => self.services.clusters.add_or_update(cluster, true).map(drop),
            Resource::Listener(listener) => self.listeners.add_or_update(listener, true).map(drop),
            Resource::Route(route) => {
                let table = RouteTable::compile(route, &self.services)?;
                self.fill(stream, Kind::Route, name, |task, key| {
                    task.services.routes.fill(key, table.clone());
                    Ok(())
                })
            }
            Resource::Assignment(assignment) => self.fill(stream, Kind::Assignment, name, |task, key| {
                task.assignments.fill(key, assignment.clone());
                Ok(())
            }),
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
    ) -> Result<(), ConfigError> {
        let wanted = (stream.clone(), kind, Arc::from(name));
        self.wanted.get(&wanted).into_iter().flatten().try_for_each(|key| give(self, key))
    }

    /// Gives a slot what its stream has already delivered to another slot of the same name.
    pub(super) fn refill(&mut self, stream: &StreamId, kind: Kind, key: &Key) {
        let type_url = type_of(kind);
        let known =
            self.ledger.borrow().get(&type_url, &key.name).and_then(|r| r.running.as_ref().map(|r| r.bytes.clone()));
        if let Some(bytes) = known
            && let Err(error) = self.take(stream, &type_url, &key.name, &bytes)
        {
            tracing::warn!("{} {}: {error}", short_name(&type_url), key.name);
        }
    }

    fn remove(&mut self, stream: &StreamId, type_url: &TypeUrl, name: &str) {
        if self.ledger.borrow().get(type_url, name).is_some_and(|r| r.is_static) {
            return;
        }
        match type_url {
            t if *t == TypeUrl::CLUSTER => drop(self.services.clusters.remove(name)),
            t if *t == TypeUrl::LISTENER => drop(self.listeners.remove(name)),
            t => {
                let Some(kind) = [Kind::Route, Kind::Secret, Kind::Assignment].into_iter().find(|k| type_of(*k) == *t)
                else {
                    return;
                };
                for key in self.wanted.get(&(stream.clone(), kind, Arc::from(name))).into_iter().flatten() {
                    match kind {
                        Kind::Route => self.services.routes.clear(key),
                        Kind::Assignment => self.assignments.clear(key),
                        // a secret that its source no longer has stays in use: nothing better is known
                        Kind::Secret => self.services.secrets.store.give_up(key),
                    }
                }
            }
        }
        self.ledger.borrow_mut().forget(type_url, name);
    }
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
        t => t.message_name(),
    }
}
