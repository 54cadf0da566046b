//! One resource type: what is wanted of it, what is held, and the requests that say so.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::WILDCARD;
use crate::types::{Mode, TypeUrl};
use crate::wire::Request;

pub(super) struct TypeState {
    pub type_url: TypeUrl,
    /// What the consumer wants; `*` is the wildcard.
    pub wanted: BTreeSet<String>,
    /// Changes of `wanted` that this stream has not been told. A name in both was dropped and wanted again: the server
    /// must hear both, or it would see no reason to send the resource anew.
    pub added: BTreeSet<String>,
    pub removed: BTreeSet<String>,
    /// The first request of this type went out on this stream.
    pub opened: bool,
    /// A request of this stream named names: from then on, an empty list no longer means the wildcard (state of the world).
    pub named: bool,
    /// A subscription change waits in the outbox.
    pub queued: bool,
    /// Responses that the consumer has not answered, of whichever stream.
    pub owed: usize,
    /// Requests of this type that wait for someone to say go on.
    pub paused: usize,
    /// Resources of this type had a time to live. From then on it is known of every response what it brought: one without
    /// may follow on one with, before that is applied.
    pub timed: bool,
    /// Delta: versions of what the consumer took.
    pub held: HashMap<String, String>,
    /// Delta: other names of what is held, where there are any.
    pub aliases: HashMap<String, Vec<String>>,
    /// State of the world: the newest response that the consumer took.
    pub taken: Said,
    /// State of the world: version of the newest acknowledgement that this stream was told; at its start, `taken`.
    pub version: Said,
    /// State of the world: nonce of the newest answer that this stream was told.
    pub nonce: Said,
}

/// A version or nonce, and the number of the response it came with.
#[derive(Clone, Default)]
pub(super) struct Said {
    pub text: String,
    number: u64,
}

impl Said {
    /// Takes a newer one. Answers may be given in another order than the responses came in.
    pub fn advance(&mut self, text: &str, number: u64) {
        if number > self.number {
            *self = Said { text: text.to_string(), number };
        }
    }
}

impl TypeState {
    pub fn new(type_url: TypeUrl) -> Self {
        TypeState {
            type_url,
            wanted: BTreeSet::new(),
            added: BTreeSet::new(),
            removed: BTreeSet::new(),
            opened: false,
            named: false,
            queued: false,
            owed: 0,
            paused: 0,
            timed: false,
            held: HashMap::new(),
            aliases: HashMap::new(),
            taken: Said::default(),
            version: Said::default(),
            nonce: Said::default(),
        }
    }

    pub fn has_change(&self) -> bool {
        if self.opened { !(self.added.is_empty() && self.removed.is_empty()) } else { !self.wanted.is_empty() }
    }

    /// Whether the resource is subscribed. A server that counts what a client says it holds as subscribed (Istio's does)
    /// would otherwise go on sending what arrived late.
    pub fn wants(&self, name: &str, aliases: &[String]) -> bool {
        self.wanted.contains(WILDCARD)
            || self.wanted.contains(name)
            || aliases.iter().any(|alias| self.wanted.contains(alias))
    }

    /// The consumer took a resource (delta).
    pub fn hold(&mut self, r: Offered) {
        if !self.wants(&r.name, &r.aliases) {
            return;
        }
        match r.aliases.is_empty() {
            true => _ = self.aliases.remove(&r.name),
            false => _ = self.aliases.insert(r.name.clone(), r.aliases),
        }
        self.held.insert(r.name, r.version);
    }

    /// A resource is gone.
    pub fn forget(&mut self, name: &str) {
        self.held.remove(name);
        self.aliases.remove(name);
    }

    /// A name (or `*`) is no longer wanted: neither is what it stood for, unless another name does.
    pub fn forget_unwanted(&mut self, name: &str) {
        if self.wanted.contains(WILDCARD) {
            return;
        }
        let (wanted, aliases) = (&self.wanted, &self.aliases);
        let wants = |held: &str| {
            wanted.contains(held) || aliases.get(held).is_some_and(|names| names.iter().any(|n| wanted.contains(n)))
        };
        if name == WILDCARD {
            self.held.retain(|held, _| wants(held));
        } else {
            let known_by_it = aliases.iter().filter(|(_, names)| names.iter().any(|n| n == name));
            let candidates = known_by_it.map(|(held, _)| held.as_str()).chain([name]);
            let gone: Vec<String> = candidates.filter(|n| !wants(n)).map(String::from).collect();
            for name in gone {
                self.held.remove(&name);
            }
        }
        let held = &self.held;
        self.aliases.retain(|name, _| held.contains_key(name));
    }

    /// The request that tells the stream of the subscription, or of what changed in it.
    pub fn subscription_request(&mut self, mode: Mode) -> Option<Request> {
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

    pub fn answer_request(
        &mut self,
        mode: Mode,
        nonce: String,
        version: Option<String>,
        number: u64,
        error: Option<String>,
    ) -> Request {
        let mut request =
            Request { type_url: self.type_url.to_string(), answers: true, nonce, error, ..Request::default() };
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

/// A response that the consumer has not answered yet: what the machine must know of it then.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(super) stream: u64,
    pub(super) index: usize,
    pub(super) number: u64,
    pub(super) nonce: String,
    pub(super) version: String,
    /// Everything of the type is in this response (state of the world).
    pub(super) full: bool,
    pub(super) resources: Vec<Offered>,
    pub(super) removed: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Offered {
    pub name: String,
    pub aliases: Vec<String>,
    pub version: String,
    pub has_body: bool,
    pub ttl: Option<Duration>,
    /// When the state of this resource before would have expired: it does not as long as its successor is being applied.
    pub suspended: Option<Instant>,
}
