//! What the control plane holds, what each stream asked for, and which answers are due: no socket here.
//!
//! Rules are istiod's (`shouldRespond`, `shouldRespondDelta`, push order) and those of the xDS protocol page.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use xds_protos::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use xds_protos::pb::google::protobuf::Any;

use super::{CDS, EDS, LDS, Order, Request, Seen, Sent};

/// Requests and responses remembered; a run that makes more has a loop in it, and the first ones show it.
const MAX_RECORDS: usize = 200_000;

pub(super) type Names = BTreeMap<String, (u64, Any)>;

#[derive(Default)]
pub(super) struct State {
    pub(super) store: BTreeMap<String, Names>,
    pub(super) last_version: u64,
    pub(super) requests: Vec<Seen>,
    pub(super) sent: Vec<Sent>,
    pub(super) violations: Vec<String>,
    pub(super) withheld: BTreeSet<String>,
    pub(super) order: Order,
    pub(super) delay: Duration,
    pub(super) streams: BTreeMap<u64, StreamState>,
    pub(super) last_stream: u64,
    next_nonce: u64,
}

/// A response on its way out.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Sotw(DiscoveryResponse),
    Delta(DeltaDiscoveryResponse),
}

/// One open stream.
pub(super) struct StreamState {
    delta: bool,
    has_node: bool,
    watches: BTreeMap<String, Watch>,
    /// Crafted responses waiting to go out.
    pub(super) raw: Vec<Answer>,
}

/// What one stream asked for of one type.
#[derive(Default)]
struct Watch {
    wildcard: bool,
    names: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    nonce: String,
    answered: bool,
    /// The client waits for an answer, even one without resources.
    owed: bool,
}

impl Watch {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

impl State {
    pub(super) fn open_stream(&mut self, delta: bool) -> u64 {
        self.last_stream += 1;
        let stream = StreamState { delta, has_node: false, watches: BTreeMap::new(), raw: Vec::new() };
        self.streams.insert(self.last_stream, stream);
        self.last_stream
    }

    pub(super) fn set(&mut self, type_url: &str, name: &str, any: Any) {
        let names = self.store.entry(type_url.to_owned()).or_default();
        if names.get(name).is_some_and(|(_, current)| *current == any) {
            return;
        }
        self.last_version += 1;
        names.insert(name.to_owned(), (self.last_version, any));
    }

    /// Takes a request in: records it, and notes what it asks for.
    pub(super) fn take(&mut self, id: u64, request: Request) -> Result<(), tonic::Status> {
        let type_url = request.type_url().to_owned();
        let nonce = request.nonce().to_owned();
        let has_node = request.node().is_some_and(|node| !node.id.is_empty());
        if self.requests.len() < MAX_RECORDS {
            self.requests.push(Seen { stream: id, at: Instant::now(), request: request.clone() });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if !stream.has_node && !has_node {
            self.violations.push(format!("stream {id}: the first request has no node with an id"));
            return Err(tonic::Status::invalid_argument("missing node information"));
        }
        stream.has_node = true;

        let first = !stream.watches.contains_key(&type_url);
        let watch = stream.watches.entry(type_url.clone()).or_default();
        if request.error().is_some() {
            watch.answered = true;
            return Ok(());
        }
        if !nonce.is_empty() && nonce != watch.nonce && !first {
            return Ok(());
        }
        watch.answered = true;
        let asked = match request {
            Request::Sotw(request) => watch.ask_sotw(request, first),
            Request::Delta(request) => {
                let changes =
                    !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty();
                if !nonce.is_empty() && changes {
                    let text = format!("stream {id}: an ACK of {type_url} changes the subscription");
                    self.violations.push(text);
                }
                watch.ask_delta(request, first)
            }
        };
        // istiod sends all watched endpoints again when clusters are asked for, so that warming clusters complete.
        if asked && type_url == CDS {
            stream.forget_endpoints();
        }
        Ok(())
    }

    /// The responses due on a stream, in push order. They count as sent.
    pub(super) fn due(&mut self, id: u64) -> Vec<Answer> {
        let Some(stream) = self.streams.get_mut(&id) else { return Vec::new() };
        let mut answers: Vec<Answer> = stream.raw.drain(..).collect();
        let mut types: Vec<String> = stream.watches.keys().cloned().collect();
        types.sort_by_key(|type_url| self.order.position(type_url));
        let empty = Names::new();
        for type_url in types {
            if self.withheld.contains(&type_url) {
                continue;
            }
            let names = self.store.get(&type_url).unwrap_or(&empty);
            let delta = stream.delta;
            let Some(watch) = stream.watches.get_mut(&type_url) else { continue };
            let Some((resources, removed)) = watch.take_due(names, delta) else { continue };
            // Clusters that change warm again and wait for endpoints: push those after every cluster push.
            if type_url == CDS {
                stream.forget_endpoints();
            }
            let system_version = self.last_version.to_string();
            answers.push(match delta {
                true => Answer::Delta(DeltaDiscoveryResponse {
                    system_version_info: system_version,
                    resources,
                    type_url,
                    removed_resources: removed,
                    ..DeltaDiscoveryResponse::default()
                }),
                false => Answer::Sotw(DiscoveryResponse {
                    version_info: system_version,
                    resources: resources.into_iter().filter_map(|r| r.resource).collect(),
                    type_url,
                    ..DiscoveryResponse::default()
                }),
            });
        }
        for answer in &mut answers {
            self.stamp(id, answer);
        }
        answers
    }

    /// Gives an answer its nonce and records it.
    fn stamp(&mut self, id: u64, answer: &mut Answer) {
        self.next_nonce += 1;
        let fresh = format!("n{}", self.next_nonce);
        let (type_url, nonce, names) = match answer {
            Answer::Sotw(a) => (&a.type_url, &mut a.nonce, vec![format!("{} resources", a.resources.len())]),
            Answer::Delta(a) => {
                let removed = a.removed_resources.iter().map(|name| format!("-{name}"));
                (&a.type_url, &mut a.nonce, a.resources.iter().map(|r| r.name.clone()).chain(removed).collect())
            }
        };
        if nonce.is_empty() {
            *nonce = fresh;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            let watch = stream.watches.entry(type_url.clone()).or_default();
            watch.nonce.clone_from(nonce);
            watch.answered = false;
        }
        if self.sent.len() < MAX_RECORDS {
            let sent = Sent { stream: id, at: Instant::now(), type_url: type_url.clone(), nonce: nonce.clone(), names };
            self.sent.push(sent);
        }
    }

    /// Whether some stream watches `type_url`, all that is due was sent, and every response was acknowledged or refused.
    pub(super) fn settled(&self, type_url: &str) -> bool {
        let empty = Names::new();
        let names = self.store.get(type_url).unwrap_or(&empty);
        let mut watches = self.streams.values().filter_map(|stream| stream.watches.get(type_url)).peekable();
        watches.peek().is_some() && watches.all(|watch| watch.answered && !watch.has_due(names))
    }
}

impl StreamState {
    fn forget_endpoints(&mut self) {
        if let Some(endpoints) = self.watches.get_mut(EDS) {
            endpoints.sent.clear();
        }
    }
}

impl Watch {
    /// True when the request asks for an answer.
    fn ask_sotw(&mut self, request: DiscoveryRequest, first: bool) -> bool {
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let added = names.iter().any(|name| !self.names.contains(name));
        let fresh = first || request.response_nonce.is_empty();
        self.wildcard = names.contains("*") || (names.is_empty() && is_wildcard_type(&request.type_url));
        self.names = names;
        if fresh {
            self.sent.clear();
        }
        self.sent.retain(|name, _| self.wildcard || self.names.contains(name));
        self.owed = self.owed || fresh || added;
        fresh || added
    }

    /// True when the request asks for an answer.
    fn ask_delta(&mut self, request: DeltaDiscoveryRequest, first: bool) -> bool {
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
            }
            self.names.remove(&name);
            self.sent.remove(&name);
        }
        let asks = first || !request.resource_names_subscribe.is_empty();
        if first && request.resource_names_subscribe.is_empty() {
            self.wildcard = true;
        }
        for name in request.resource_names_subscribe {
            self.sent.remove(&name);
            match name.as_str() {
                "*" => self.wildcard = true,
                _ => drop(self.names.insert(name)),
            }
        }
        // A version of 0 is never given out, so what the client holds is sent in full, as istiod does, and what is
        // gone meanwhile is told as removed.
        for name in request.initial_resource_versions.into_keys() {
            if !self.wildcard {
                self.names.insert(name.clone());
            }
            self.sent.insert(name, 0);
        }
        self.owed = self.owed || asks;
        asks
    }

    fn has_due(&self, names: &Names) -> bool {
        let changed =
            |(name, (version, _)): (&String, &(u64, Any))| self.wants(name) && self.sent.get(name) != Some(version);
        names.iter().any(changed) || (self.owed && self.wildcard) || self.sent.keys().any(|n| !names.contains_key(n))
    }

    /// The resources due and the names removed, marked as sent; `None` when no response is due.
    fn take_due(&mut self, names: &Names, delta: bool) -> Option<(Vec<Resource>, Vec<String>)> {
        if !self.has_due(names) {
            return None;
        }
        // State of the world means all of it for clusters and listeners; other types may come in parts.
        let whole = !delta && (self.wildcard || self.owed);
        let mut resources = Vec::new();
        for (name, (version, any)) in names {
            if !self.wants(name) || (!whole && self.sent.get(name) == Some(version)) {
                continue;
            }
            self.sent.insert(name.clone(), *version);
            resources.push(Resource {
                name: name.clone(),
                version: version.to_string(),
                resource: Some(any.clone()),
                ..Resource::default()
            });
        }
        let removed: Vec<String> = self.sent.keys().filter(|name| !names.contains_key(*name)).cloned().collect();
        for name in &removed {
            self.sent.remove(name);
        }
        let answer_empty = self.owed && self.wildcard;
        self.owed = false;
        let silent = resources.is_empty() && !answer_empty && (removed.is_empty() || (!delta && !self.wildcard));
        (!silent).then_some((resources, removed))
    }
}

fn is_wildcard_type(type_url: &str) -> bool {
    type_url == CDS || type_url == LDS
}
