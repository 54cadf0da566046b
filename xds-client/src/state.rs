//! The protocol, without IO: what is subscribed, what is held, what is owed to the server, and in which order it is said.
//! One machine serves both wire modes. It is fed by the consumer (subscriptions, answers) and by the stream (opened,
//! received, closed), and asked for the next request whenever the stream can take one: so nothing is queued as bytes,
//! and changes made between two requests go out as one.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::event::Verdict;
use crate::types::{Mode, Subscription, TypeUrl};
use crate::wire::{Incoming, Request};

#[cfg(test)]
mod model;
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
}

struct TypeState {
    type_url: TypeUrl,
    /// What the consumer wants; `*` is the wildcard.
    wanted: BTreeSet<String>,
    /// Changes of `wanted` that this stream has not been told. A name in both was dropped and wanted again: the server
    /// must hear both, or it would see no reason to send the resource anew.
    added: BTreeSet<String>,
    removed: BTreeSet<String>,
    /// The first request of this type went out on this stream.
    opened: bool,
    /// A request of this stream named names: from then on, an empty list no longer means the wildcard (state of the world).
    named: bool,
    /// A subscription change waits in the outbox.
    queued: bool,
    /// Responses that the consumer has not answered, of whichever stream.
    owed: usize,
    /// Delta: versions of what the consumer took.
    held: HashMap<String, String>,
    /// State of the world: the newest response that the consumer took.
    taken: Said,
    /// State of the world: version of the newest acknowledgement that this stream was told; at its start, `taken`.
    version: Said,
    /// State of the world: nonce of the newest answer that this stream was told.
    nonce: Said,
}

/// A version or nonce, and the number of the response it came with.
#[derive(Clone, Default)]
struct Said {
    text: String,
    number: u64,
}

impl Said {
    /// Takes a newer one. Answers may be given in another order than the responses came in.
    fn advance(&mut self, text: &str, number: u64) {
        if number > self.number {
            *self = Said { text: text.to_string(), number };
        }
    }
}

enum Outgoing {
    /// The subscription of a type (by index) changed.
    Subscription(usize),
    /// An answer to a response of a known type.
    Answer { index: usize, nonce: String, version: Option<String>, number: u64, error: Option<String> },
    /// An answer to a response of a type that nobody subscribed.
    Refusal { type_url: String, nonce: String, error: String },
}

/// A response that the consumer has not answered yet: what the machine must know of it then.
#[derive(Debug)]
pub(crate) struct Outstanding {
    stream: u64,
    index: usize,
    number: u64,
    nonce: String,
    version: String,
    resources: Vec<Offered>,
    removed: Vec<String>,
}

#[derive(Debug)]
struct Offered {
    name: String,
    aliases: Vec<String>,
    version: String,
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
        }
    }

    /// Adds to the subscription of a type, and says whether that changed anything.
    ///
    /// # Errors
    /// On a stream of another type nothing happens, and that type is returned.
    pub(crate) fn subscribe(&mut self, type_url: &TypeUrl, subscription: Subscription) -> Result<bool, TypeUrl> {
        if let Some(only) = self.only.as_ref().filter(|only| *only != type_url) {
            return Err(only.clone());
        }
        let index = match self.find(type_url) {
            Some(index) => index,
            None => {
                self.types.push(TypeState::new(type_url.clone()));
                self.types.len() - 1
            }
        };
        let names = match subscription {
            Subscription::Wildcard => vec![WILDCARD.to_string()],
            Subscription::Names(names) => names,
        };
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
                if name == WILDCARD {
                    let wanted = &t.wanted;
                    t.held.retain(|held, _| wanted.contains(held));
                } else if !t.wanted.contains(WILDCARD) {
                    t.held.remove(name);
                }
            }
        }
        self.queue_subscription(index);
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
        if let Some(t) = self.types.get_mut(index) {
            t.owed += 1;
        }
        let delta = self.mode == Mode::Delta;
        let offered = response.resources.iter().filter(|r| delta && r.body.is_some());
        Some(Outstanding {
            stream: self.stream,
            index,
            number: self.received,
            nonce: response.nonce.clone(),
            version: if delta { String::new() } else { response.version.clone() },
            resources: offered
                .map(|r| Offered { name: r.name.clone(), aliases: r.aliases.clone(), version: r.version.clone() })
                .collect(),
            removed: response.removed.clone(),
        })
    }

    /// The consumer answered.
    pub(crate) fn answer(&mut self, response: Outstanding, verdict: Verdict) {
        let Outstanding { stream, index, number, nonce, version, resources, removed } = response;
        let live = self.is_live(stream);
        let Some(t) = self.types.get_mut(index) else { return };
        t.owed = t.owed.saturating_sub(1);
        let (error, refused) = match verdict {
            Verdict::Ack => (None, Vec::new()),
            Verdict::Nack { detail, refused } => (Some(detail), refused),
        };
        let none_taken = error.is_some() && refused.is_empty();
        if !none_taken {
            let refused: BTreeSet<&str> = refused.iter().map(String::as_str).collect();
            for name in removed.iter().filter(|n| !refused.contains(n.as_str())) {
                t.held.remove(name);
            }
            for r in resources {
                if !refused.contains(r.name.as_str()) && t.wants(&r) {
                    t.held.insert(r.name, r.version);
                }
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

    /// What stream number `stream` says next.
    pub(crate) fn next_request(&mut self, stream: u64) -> Next {
        if !self.is_live(stream) {
            return Next::Ended;
        }
        while let Some(outgoing) = self.outbox.pop_front() {
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

    fn is_live(&self, stream: u64) -> bool {
        self.live && self.stream == stream
    }

    fn find(&self, type_url: &TypeUrl) -> Option<usize> {
        // A node has a handful of types.
        self.types.iter().position(|t| t.type_url == *type_url)
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

impl TypeState {
    fn new(type_url: TypeUrl) -> Self {
        TypeState {
            type_url,
            wanted: BTreeSet::new(),
            added: BTreeSet::new(),
            removed: BTreeSet::new(),
            opened: false,
            named: false,
            queued: false,
            owed: 0,
            held: HashMap::new(),
            taken: Said::default(),
            version: Said::default(),
            nonce: Said::default(),
        }
    }

    fn has_change(&self) -> bool {
        if self.opened { !(self.added.is_empty() && self.removed.is_empty()) } else { !self.wanted.is_empty() }
    }

    /// Whether the resource is subscribed. A server that counts what a client says it holds as subscribed (Istio's does)
    /// would otherwise go on sending what arrived late.
    fn wants(&self, r: &Offered) -> bool {
        self.wanted.contains(WILDCARD)
            || self.wanted.contains(&r.name)
            || r.aliases.iter().any(|alias| self.wanted.contains(alias))
    }

    /// The request that tells the stream of the subscription, or of what changed in it.
    fn subscription_request(&mut self, mode: Mode) -> Option<Request> {
        if !self.has_change() {
            return None;
        }
        let first = !self.opened;
        self.opened = true;
        let again: BTreeSet<String> = self.added.intersection(&self.removed).cloned().collect();
        let added = std::mem::replace(&mut self.added, again);
        let removed = std::mem::take(&mut self.removed);
        let mut request = Request { type_url: self.type_url.to_string(), ..Request::default() };
        match mode {
            Mode::Delta => {
                if first {
                    request.names = self.told();
                    request.initial_versions = self.held.clone();
                } else {
                    request.names = added.into_iter().filter(|name| !self.added.contains(name)).collect();
                    request.unsubscribe = removed.into_iter().collect();
                }
            }
            Mode::Sotw => {
                request.names = self.told();
                request.version.clone_from(&self.version.text);
                request.nonce.clone_from(&self.nonce.text);
                // A wildcard that was implied cannot be taken back: an empty list says it once more.
                if !first && request.names.is_empty() && !self.named {
                    return None;
                }
            }
        }
        self.named |= !request.names.is_empty();
        Some(request)
    }

    fn answer_request(
        &mut self,
        mode: Mode,
        nonce: String,
        version: Option<String>,
        number: u64,
        error: Option<String>,
    ) -> Request {
        let mut request = Request { type_url: self.type_url.to_string(), nonce, error, ..Request::default() };
        if mode == Mode::Sotw {
            // Only what was said may stand here: a nonce or version taken earlier would turn a subscription change that
            // goes out before into a second answer to the same response.
            self.nonce.advance(&request.nonce, number);
            match version {
                Some(version) => {
                    self.version.advance(&version, number);
                    request.version = version;
                }
                None => request.version.clone_from(&self.version.text),
            }
            request.names = self.told();
        }
        request
    }

    /// The names that the stream has been told, or is being told now. Empty if all of it is the wildcard and no name was
    /// ever said: then servers take the absence of names for the wildcard.
    fn told(&self) -> Vec<String> {
        let names = self.wanted.difference(&self.added).chain(&self.removed).cloned();
        let mut names: Vec<String> = names.collect();
        if !self.named && names.iter().all(|name| name == WILDCARD) {
            names.clear();
        }
        names
    }
}
