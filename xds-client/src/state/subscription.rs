//! One resource type: what is wanted of it, what is held, and the requests that say so.

use std::collections::BTreeSet;
use std::time::Duration;

use super::WILDCARD;
use super::holdings::Holdings;
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
    /// What the consumer has. In state of the world, also what it is known not to have, and `*` for all there is.
    pub held: Holdings,
    /// State of the world: names of the first request on the stream `opening_stream` of which no response was taken yet.
    /// What is then taken speaks for these names, also if it does not bring them: they do not exist. Of a name that was
    /// added later, only its resource shows that the server had heard of it. `*` stays.
    pub opening: BTreeSet<String>,
    pub opening_stream: u64,
    /// State of the world: the wildcard was taken back on a stream that has no words for it.
    pub mute: bool,
    /// State of the world: the newest response that the consumer took.
    pub taken: Said,
    /// State of the world: version of the newest acknowledgement that this stream was told; at its start, `taken`, if that
    /// speaks for everything that is wanted.
    pub version: Said,
    /// State of the world: nonce of the newest answer that this stream was told.
    pub nonce: Said,
}

/// A version or nonce, and the number of the response it came with.
#[derive(Clone, Default)]
pub(super) struct Said {
    pub text: String,
    pub number: u64,
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
            held: Holdings::default(),
            opening: BTreeSet::new(),
            opening_stream: 0,
            mute: false,
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

    /// State of the world: the consumer answered a response that came on `stream`. `refused` is whether nothing of it was
    /// taken, if it was refused.
    pub fn answered_whole(&mut self, stream: u64, version: &str, number: u64, refused: Option<bool>) {
        match refused {
            None => {
                self.taken.advance(version, number);
                if stream == self.opening_stream {
                    let all = self.opening.contains(WILDCARD);
                    for name in std::mem::take(&mut self.opening) {
                        if name == WILDCARD || !self.held.knows(&name) {
                            self.held.absent(&name, number);
                        }
                    }
                    if all {
                        self.opening.insert(WILDCARD.to_string());
                    }
                }
            }
            // What the consumer has is of two versions now.
            Some(false) => self.held.forget(WILDCARD),
            Some(true) => self.held.refuse(WILDCARD, number),
        }
    }

    /// State of the world: whether the consumer has of every wanted name what `taken` has. If it has not, or that is not
    /// known as something newer is being applied, a server that is told this version might send nothing.
    fn is_all_taken(&self) -> bool {
        self.owed == 0 && self.wanted.iter().all(|name| self.held.is_current(name, self.taken.number))
    }

    /// The request that tells the stream of the subscription, or of what changed in it.
    pub fn subscription_request(&mut self, mode: Mode, stream: u64) -> Option<Request> {
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
                    request.initial_versions = self.held.versions();
                } else {
                    request.names = added.into_iter().filter(|name| !self.added.contains(name)).collect();
                    request.unsubscribe = removed.into_iter().collect();
                }
            }
            Mode::Sotw => {
                request.names = self.told();
                if first {
                    self.version = if self.is_all_taken() { self.taken.clone() } else { Said::default() };
                    self.opening.clone_from(&self.wanted);
                    self.opening_stream = stream;
                    self.mute = false;
                } else if request.names.is_empty() && !self.named {
                    // A wildcard that was implied cannot be taken back: an empty list says it once more.
                    self.mute |= removed.contains(WILDCARD);
                    if !self.mute || !added.contains(WILDCARD) || self.added.contains(WILDCARD) {
                        return None;
                    }
                    // It was given up, and is wanted again: so all of it is asked for, by its name.
                    self.mute = false;
                    self.version = Said::default();
                    request.names.push(WILDCARD.to_string());
                }
                request.version.clone_from(&self.version.text);
                request.nonce.clone_from(&self.nonce.text);
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
    /// Whether resources of the type had a time to live by then.
    pub(super) timed: bool,
    pub(super) resources: Vec<Offered>,
    pub(super) removed: Vec<String>,
    /// Names that the response has more than once (delta).
    pub(super) duplicates: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Offered {
    pub name: String,
    pub aliases: Vec<String>,
    pub version: String,
    pub has_body: bool,
    pub ttl: Option<Duration>,
}
