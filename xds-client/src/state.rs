//! The protocol, without IO: what is subscribed, what is held, what is owed to the server, and in which order it is said.
//! One machine serves both wire modes. It is fed by the consumer (subscriptions, answers) and by the stream (opened,
//! received, closed), and asked for the next request whenever the stream can take one: so nothing is queued as bytes,
//! and changes made between two requests go out as one.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::event::{Kind, Verdict, duplicates};
use crate::types::{Mode, SubscribeError, Subscription, TypeUrl};
use crate::wire::{Incoming, Request};
use deadlines::Deadlines;
pub(crate) use subscription::Outstanding;
use subscription::{Offered, TypeState};

mod deadlines;
mod holdings;
#[cfg(test)]
mod lifetimes;
#[cfg(test)]
mod model;
mod subscription;
#[cfg(test)]
mod tests;

/// The name that stands for everything, where the wildcard must be said rather than implied.
const WILDCARD: &str = "*";

/// Requests that may wait for a server that sends without reading; a stream with more is not read on.
const MAX_WAITING: usize = 1024;

pub(crate) struct Machine {
    mode: Mode,
    /// The only type that a single-type stream carries.
    only: Option<TypeUrl>,
    node_once: bool,
    /// Counts streams, so that answers to messages of an earlier stream are known as such.
    stream: u64,
    live: bool,
    node_told: bool,
    /// In the order of first subscription, which is the order in which a new stream asks again. Never shrinks.
    types: Vec<TypeState>,
    outbox: VecDeque<Outgoing>,
    /// Counts responses; a later one has the higher number.
    received: u64,
    /// Of resources that the consumer has.
    deadlines: Deadlines,
    /// That this stream brings types nobody asked for was said.
    foreign_said: bool,
}

enum Outgoing {
    /// The subscription of a type (by index) changed.
    Subscription(usize),
    /// An answer to a response of a known type.
    Answer { index: usize, nonce: String, version: Option<String>, number: u64, error: Option<String> },
}

/// What a stream shall do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Send(Request),
    /// Nothing to say now.
    Wait,
    /// Another stream took this one's place.
    Ended,
}

impl Machine {
    pub(crate) fn new(mode: Mode, only: Option<TypeUrl>, node_once: bool) -> Self {
        Machine {
            mode,
            only,
            node_once,
            stream: 0,
            live: false,
            node_told: false,
            types: Vec::new(),
            outbox: VecDeque::new(),
            received: 0,
            deadlines: Deadlines::default(),
            foreign_said: false,
        }
    }

    /// Adds to the subscription of a type, and says whether that changed anything.
    ///
    /// # Errors
    /// Nothing happens.
    pub(crate) fn subscribe(&mut self, type_url: &TypeUrl, subscription: Subscription) -> Result<bool, SubscribeError> {
        if let Some(only) = self.only.as_ref().filter(|only| *only != type_url) {
            return Err(SubscribeError::OtherType { wanted: type_url.clone(), only: only.clone() });
        }
        let names = match subscription {
            Subscription::Wildcard => vec![WILDCARD.to_string()],
            Subscription::Names(names) => names,
        };
        if let Some(name) = names.iter().find(|name| name.starts_with("xdstp:")) {
            return Err(SubscribeError::Xdstp { name: name.clone() });
        }
        let index = self.index_of(type_url);
        let newest = self.received;
        let mut more = false;
        if let Some(t) = self.types.get_mut(index) {
            for name in names {
                if t.wanted.insert(name.clone()) {
                    more = true;
                    if t.owed > 0 {
                        t.held.wanted(&name, newest);
                    }
                    if t.opened {
                        t.added.insert(name);
                    }
                }
            }
        }
        self.queue_subscription(index);
        Ok(more)
    }

    /// Takes names (or `*`) from the subscription of a type and forgets what is held of them.
    pub(crate) fn unsubscribe<S: AsRef<str>>(&mut self, type_url: &TypeUrl, names: &[S]) {
        let Some(index) = self.find(type_url) else { return };
        let newest = self.received;
        if let Some(t) = self.types.get_mut(index) {
            for name in names.iter().map(AsRef::as_ref) {
                if !t.wanted.remove(name) {
                    continue;
                }
                // What the server was never told it need not be told back. If the name also stands in `removed`, then
                // the server knows it from before, and that entry stays.
                if t.opened && !t.added.remove(name) {
                    t.removed.insert(name.to_string());
                }
                t.opening.remove(name);
                t.held.unwanted(name, &t.wanted, (t.owed > 0).then_some(newest));
            }
            self.deadlines.retain(index, None, |name| t.wants(name, t.held.aliases(name)));
        }
        self.queue_subscription(index);
    }

    /// Holds back the requests of a type, until `resume` was called as often.
    pub(crate) fn pause(&mut self, type_url: &TypeUrl) {
        let index = self.index_of(type_url);
        if let Some(t) = self.types.get_mut(index) {
            t.paused += 1;
        }
    }

    /// Lets the requests of a type go on, if nobody else holds them back.
    pub(crate) fn resume(&mut self, type_url: &TypeUrl) {
        if let Some(t) = self.find(type_url).and_then(|index| self.types.get_mut(index)) {
            t.paused = t.paused.saturating_sub(1);
        }
    }

    /// A stream is there. Returns its number, which `next_request` wants.
    pub(crate) fn open(&mut self) -> u64 {
        self.close();
        self.stream += 1;
        self.live = true;
        self.node_told = false;
        self.foreign_said = false;
        for index in 0..self.types.len() {
            self.queue_subscription(index);
        }
        self.stream
    }

    /// The stream is gone. What it was not told is part of what the next one is told first.
    pub(crate) fn close(&mut self) {
        self.live = false;
        self.outbox.clear();
        for t in &mut self.types {
            t.added.clear();
            t.removed.clear();
            t.opened = false;
            t.named = false;
            t.queued = false;
            t.nonce.text.clear();
        }
    }

    /// Whether the stream may be read on.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() < MAX_WAITING
    }

    /// A response arrived. `None` if it is not for the consumer, because its type was not asked for on this stream.
    pub(crate) fn received(&mut self, response: &mut Incoming) -> Option<Outstanding> {
        self.received += 1;
        // Servers of one type may leave out what the method says already.
        if let Some(only) = self.only.as_ref().filter(|_| response.type_url.as_str().is_empty()) {
            response.type_url = only.clone();
        }
        let index = self.types.iter().position(|t| t.opened && t.type_url == response.type_url);
        let Some(index) = index else {
            self.foreign(response);
            return None;
        };
        let t = self.types.get_mut(index)?;
        t.owed += 1;
        let delta = self.mode == Mode::Delta;
        t.timed |= response.resources.iter().any(|r| r.ttl.is_some());
        for r in response.resources.iter_mut().filter(|r| r.body.is_none()) {
            // Renewed is what the consumer has, in this very version.
            let version = if delta { &r.version } else { &response.version };
            let same = t.held.version(&r.name) == Some(version);
            r.heartbeat = r.ttl.is_some() || (delta && same);
            if same && let Some(at) = r.ttl.and_then(|ttl| response.received.checked_add(ttl)) {
                self.deadlines.renew(index, &r.name, at);
            }
        }
        let full = response.kind == Kind::Full;
        if full && !response.resources.is_empty() && response.resources.iter().all(|r| r.heartbeat) {
            // It says of those it names that they live, and nothing of others.
            response.kind = Kind::Delta;
        }
        let mut resources = Vec::new();
        // Where everything is wanted, the state of the world needs no names.
        if delta || t.timed || t.wanted.iter().any(|name| name != WILDCARD) {
            resources.reserve(response.resources.len());
            for r in &response.resources {
                if t.timed && r.body.is_some() {
                    self.deadlines.suspend(index, &r.name);
                }
                resources.push(Offered {
                    name: r.name.clone(),
                    aliases: r.aliases.clone(),
                    version: r.version.clone(),
                    has_body: r.body.is_some(),
                    ttl: r.ttl,
                });
            }
        }
        let duplicates = if delta { duplicates(&response.resources, &response.removed) } else { Vec::new() };
        Some(Outstanding {
            stream: self.stream,
            index,
            number: self.received,
            nonce: response.nonce.clone(),
            version: response.version.clone(),
            full: response.kind == Kind::Full,
            timed: t.timed,
            resources,
            removed: response.removed.clone(),
            duplicates: duplicates.into_iter().map(String::from).collect(),
        })
    }

    /// A response of a type that was not asked for on this stream. A stream of one type refuses it, in the name of that
    /// type. On the aggregated stream it is passed over, as by Envoy: a refusal would be the first request of its type, and
    /// one without names subscribes to everything.
    fn foreign(&mut self, response: &Incoming) {
        let Incoming { type_url, nonce, .. } = response;
        let number = self.received;
        let only = self.only.as_ref().and_then(|only| self.types.iter().position(|t| t.opened && t.type_url == *only));
        let (error, index) = match (&self.only, only) {
            (Some(only), index) => {
                (format!("this stream is for {only}, but the response is of type {type_url}"), index)
            }
            (None, _) => (format!("type {type_url} was never subscribed on this stream"), None),
        };
        if std::mem::replace(&mut self.foreign_said, true) {
            tracing::debug!(%nonce, "not taking a discovery response: {error}");
        } else {
            tracing::warn!(%nonce, "not taking a discovery response: {error}");
        }
        if let Some(index) = index {
            let (nonce, error) = (nonce.clone(), Some(error));
            self.outbox.push_back(Outgoing::Answer { index, nonce, version: None, number, error });
        }
    }

    /// The consumer answered.
    pub(crate) fn answer(&mut self, response: Outstanding, verdict: Verdict, now: Instant) {
        let Outstanding { stream, index, number, nonce, version, full, timed, resources, removed, duplicates } =
            response;
        let live = self.is_live(stream);
        let delta = self.mode == Mode::Delta;
        let Some(t) = self.types.get_mut(index) else { return };
        t.owed = t.owed.saturating_sub(1);
        let none_taken = matches!(&verdict, Verdict::Nack { refused, .. } if refused.is_empty());
        let (error, mut refused) = match verdict {
            Verdict::Nack { detail, refused } => (Some(detail), refused),
            Verdict::Ack if duplicates.is_empty() => (None, Vec::new()),
            Verdict::Ack => {
                let names = duplicates.join(", ");
                (Some(format!("duplicate name {names} found in the union of added+removed resources")), Vec::new())
            }
        };
        refused.extend(duplicates.iter().cloned());
        let refused: BTreeSet<&str> = refused.iter().map(String::as_str).collect();
        let is_taken = |name: &str| !none_taken && !refused.contains(name);
        if full && !none_taken && t.wanted.contains(WILDCARD) && (timed || !resources.is_empty()) {
            let named: BTreeSet<&str> = resources.iter().map(|r| r.name.as_str()).collect();
            self.deadlines.retain(index, Some(number), |name| named.contains(name));
            t.held.retain(number, |name| named.contains(name) || t.wanted.contains(name));
        }
        for name in removed.iter().filter(|n| is_taken(n)) {
            t.held.absent(name, number);
            self.deadlines.gone(index, name, number);
        }
        for name in &duplicates {
            // the response says two things of it
            if t.held.knows(name) || t.wants(name, &[]) {
                t.held.doubt(name, number);
            }
            self.deadlines.gone(index, name, number);
        }
        let whole: Arc<str> = version.as_str().into();
        for r in resources.into_iter().filter(|r| r.has_body) {
            let taken = is_taken(&r.name);
            if timed {
                // Counted from now: while it was being applied, it could not expire.
                let renewed = taken.then(|| r.ttl.and_then(|ttl| now.checked_add(ttl)));
                self.deadlines.answered(index, &r.name, number, renewed, t.wants(&r.name, &r.aliases));
            }
            if !taken {
                t.held.refuse(&r.name, number);
                if !t.held.knows(&r.name) {
                    t.opening.remove(&r.name);
                }
                continue;
            }
            let version = if delta { r.version.into() } else { whole.clone() };
            t.held.take(r.name, r.aliases, version, number, &t.wanted);
        }
        // A heartbeat is answered, but it is not of its version that it speaks.
        if !delta && full {
            t.answered_whole(stream, &version, number, error.is_some().then_some(none_taken));
        }
        if t.owed == 0 {
            t.held.settle(!delta);
        }
        let version = error.is_none().then_some(version);
        if live {
            self.outbox.push_back(Outgoing::Answer { index, nonce, version, number, error });
        } else {
            self.queue_subscription(index);
        }
    }

    /// When the next resource expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// What has expired: removals of one type, as if a server had sent them. There may be more.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Incoming> {
        let (index, removed) = self.deadlines.expired(now)?;
        let t = self.types.get_mut(index)?;
        for name in &removed {
            t.held.forget(name);
        }
        if self.mode == Mode::Sotw {
            // What there is the consumer no longer has.
            t.held.forget(WILDCARD);
        }
        Some(Incoming {
            type_url: t.type_url.clone(),
            version: t.taken.text.clone(),
            nonce: String::new(),
            kind: Kind::Delta,
            resources: Vec::new(),
            removed,
            errors: Vec::new(),
            control_plane: String::new(),
            bytes: 0,
            received: now,
        })
    }

    /// Requests that wait, of types that are not held back.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.iter().filter(|o| !self.is_paused(o)).count()
    }

    /// What stream number `stream` says next.
    pub(crate) fn next_request(&mut self, stream: u64) -> Next {
        if !self.is_live(stream) {
            return Next::Ended;
        }
        // Where nothing is held back, and that is nearly always, it is the first.
        while let Some(at) = self.outbox.iter().position(|o| !self.is_paused(o))
            && let Some(outgoing) = self.outbox.remove(at)
        {
            let mode = self.mode;
            let request = match outgoing {
                Outgoing::Subscription(index) => {
                    let Some(t) = self.types.get_mut(index) else { continue };
                    let request = t.subscription_request(mode, self.stream);
                    // Names that were dropped and wanted again: their second half follows at once.
                    t.queued = !t.added.is_empty();
                    if t.queued {
                        self.outbox.push_front(Outgoing::Subscription(index));
                    }
                    request
                }
                Outgoing::Answer { index, nonce, version, number, error } => {
                    self.types.get_mut(index).map(|t| t.answer_request(mode, nonce, version, number, error))
                }
            };
            if let Some(mut request) = request {
                request.node = !(self.node_told && self.node_once);
                self.node_told = true;
                return Next::Send(request);
            }
        }
        Next::Wait
    }

    fn is_paused(&self, outgoing: &Outgoing) -> bool {
        match outgoing {
            Outgoing::Subscription(index) | Outgoing::Answer { index, .. } => {
                self.types.get(*index).is_some_and(|t| t.paused > 0)
            }
        }
    }

    pub(crate) fn is_live(&self, stream: u64) -> bool {
        self.live && self.stream == stream
    }

    fn find(&self, type_url: &TypeUrl) -> Option<usize> {
        // A node has a handful of types.
        self.types.iter().position(|t| t.type_url == *type_url)
    }

    /// The place of a type, made if there is none.
    fn index_of(&mut self, type_url: &TypeUrl) -> usize {
        self.find(type_url).unwrap_or_else(|| {
            self.types.push(TypeState::new(type_url.clone()));
            self.types.len() - 1
        })
    }

    fn queue_subscription(&mut self, index: usize) {
        if !self.live {
            return;
        }
        let mode = self.mode;
        if let Some(t) = self.types.get_mut(index)
            && !t.queued
            && t.has_change()
            // A delta stream begins with what is held. While a response of the last stream is still being applied, that is
            // not known, and a resource taken from it that the server deleted meanwhile would stay for ever.
            && (t.opened || t.owed == 0 || mode == Mode::Sotw)
        {
            t.queued = true;
            self.outbox.push_back(Outgoing::Subscription(index));
        }
    }
}
