//! The protocol, without IO: what is subscribed, what is held, what is owed to the server, and in which order it is said.
//! One machine serves both wire modes. It is fed by the consumer (subscriptions, answers) and by the stream (opened,
//! received, closed), and asked for the next request whenever the stream can take one: so nothing is queued as bytes,
//! and changes made between two requests go out as one.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use crate::event::{Kind, Verdict};
use crate::types::{Mode, SubscribeError, Subscription, TypeUrl};
use crate::wire::{Incoming, Request};
use deadlines::Deadlines;
pub(crate) use subscription::Outstanding;
use subscription::{Offered, TypeState};

mod deadlines;
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
}

enum Outgoing {
    /// The subscription of a type (by index) changed.
    Subscription(usize),
    /// An answer to a response of a known type.
    Answer { index: usize, nonce: String, version: Option<String>, number: u64, error: Option<String> },
    /// An answer to a response of a type that nobody subscribed.
    Refusal { type_url: String, nonce: String, error: String },
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
        let mut more = false;
        if let Some(t) = self.types.get_mut(index) {
            for name in names {
                if t.wanted.insert(name.clone()) {
                    more = true;
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
                t.forget_unwanted(name);
            }
            self.deadlines.retain(index, |name| t.wants(name, t.aliases.get(name).map_or(&[], Vec::as_slice)));
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
            t.version = t.taken.clone();
            t.nonce.text.clear();
        }
    }

    /// Whether the stream may be read on.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() < MAX_WAITING
    }

    /// A response arrived. `None` if it is refused here, because its type was not asked for on this stream.
    pub(crate) fn received(&mut self, response: &mut Incoming) -> Option<Outstanding> {
        self.received += 1;
        // Servers of one type may leave out what the method says already.
        if let Some(only) = self.only.as_ref().filter(|_| response.type_url.as_str().is_empty()) {
            response.type_url = only.clone();
        }
        let index = self.types.iter().position(|t| t.opened && t.type_url == response.type_url);
        let Some(index) = index else {
            let error = match &self.only {
                Some(only) => format!("this stream is for {only}, but the response is of type {}", response.type_url),
                None => format!("type {} was never subscribed on this stream", response.type_url),
            };
            tracing::warn!(nonce = %response.nonce, "refusing a discovery response: {error}");
            let type_url = self.only.as_ref().unwrap_or(&response.type_url).to_string();
            self.outbox.push_back(Outgoing::Refusal { type_url, nonce: response.nonce.clone(), error });
            return None;
        };
        let t = self.types.get_mut(index)?;
        t.owed += 1;
        let delta = self.mode == Mode::Delta;
        t.timed |= response.resources.iter().any(|r| r.ttl.is_some());
        for r in response.resources.iter_mut().filter(|r| r.body.is_none()) {
            // Renewed is what the consumer has, in this very version.
            let same = match delta {
                true => t.held.get(&r.name).is_some_and(|version| *version == r.version),
                false => response.version == t.taken.text,
            };
            r.heartbeat = r.ttl.is_some() || (delta && same);
            if same
                && self.deadlines.has(index, &r.name)
                && let Some(at) = r.ttl.and_then(|ttl| response.received.checked_add(ttl))
            {
                self.deadlines.set(index, &r.name, at);
            }
        }
        let full = response.kind == Kind::Full;
        if full && !response.resources.is_empty() && response.resources.iter().all(|r| r.heartbeat) {
            // It says of those it names that they live, and nothing of others.
            response.kind = Kind::Delta;
        }
        let mut resources = Vec::new();
        if delta || t.timed {
            resources.reserve(response.resources.len());
            for r in &response.resources {
                let suspended = if r.body.is_some() { self.deadlines.take(index, &r.name) } else { None };
                resources.push(Offered {
                    name: r.name.clone(),
                    aliases: r.aliases.clone(),
                    version: r.version.clone(),
                    has_body: r.body.is_some(),
                    ttl: r.ttl,
                    suspended,
                });
            }
        }
        Some(Outstanding {
            stream: self.stream,
            index,
            number: self.received,
            nonce: response.nonce.clone(),
            version: response.version.clone(),
            full: response.kind == Kind::Full,
            resources,
            removed: response.removed.clone(),
        })
    }

    /// The consumer answered.
    pub(crate) fn answer(&mut self, response: Outstanding, verdict: Verdict, now: Instant) {
        let Outstanding { stream, index, number, nonce, version, full, resources, removed } = response;
        let live = self.is_live(stream);
        let Some(t) = self.types.get_mut(index) else { return };
        t.owed = t.owed.saturating_sub(1);
        let (error, refused) = match verdict {
            Verdict::Ack => (None, Vec::new()),
            Verdict::Nack { detail, refused } => (Some(detail), refused),
        };
        let none_taken = error.is_some() && refused.is_empty();
        let refused: BTreeSet<&str> = refused.iter().map(String::as_str).collect();
        let is_taken = |name: &str| !none_taken && !refused.contains(name);
        if full && !none_taken && t.wanted.contains(WILDCARD) && t.timed {
            let named: BTreeSet<&str> = resources.iter().map(|r| r.name.as_str()).collect();
            self.deadlines.retain(index, |name| named.contains(name));
        }
        for name in removed.iter().filter(|n| is_taken(n)) {
            t.forget(name);
            self.deadlines.take(index, name);
        }
        for r in resources.into_iter().filter(|r| r.has_body) {
            let wanted = t.wants(&r.name, &r.aliases);
            // Counted from now: while it was being applied, it could not expire.
            let renewed = r.ttl.filter(|_| wanted).and_then(|ttl| now.checked_add(ttl));
            match (is_taken(&r.name), renewed, r.suspended.filter(|_| wanted)) {
                (true, Some(at), _) | (false, _, Some(at)) => self.deadlines.set(index, &r.name, at),
                (true, None, _) => _ = self.deadlines.take(index, &r.name),
                (false, _, None) => {}
            }
            if self.mode == Mode::Delta && is_taken(&r.name) {
                t.hold(r);
            }
        }
        if error.is_none() {
            t.taken.advance(&version, number);
            if !t.opened {
                // The stream it came on cannot be told any more, but the next one is when it asks for the type.
                t.version = t.taken.clone();
            }
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
            t.forget(name);
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
                    let request = t.subscription_request(mode);
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
                Outgoing::Refusal { type_url, nonce, error } => {
                    Some(Request { type_url, nonce, error: Some(error), ..Request::default() })
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
            Outgoing::Refusal { .. } => false,
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
