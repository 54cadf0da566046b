//! The machine against a strict server, in random interleavings: pushes, whole or in part, removals, bad resources, names
//! given twice or by an alias, types nobody asked for, worlds that go back to what they were, cut streams, answers given
//! late, out of order or not at all, times to live that are renewed or not, types held back for a while. Whatever happens,
//! both sides end with the same state, every response that reached the client is answered exactly once, and no rule of the
//! protocol is broken on the way. The server sends nothing of which a new stream says that the client has it.
//!
//! A run that fails is made as short as it will go and remembered in `proptest-regressions`; `MODEL_LOG=1` prints what was
//! said in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::tests::shown;
use super::*;
use crate::event::{Kind, Resource};

const TYPES: [TypeUrl; 3] = [TypeUrl::CLUSTER, TypeUrl::ENDPOINT, TypeUrl::ROUTE];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Of every other version of two of the types.
const TTL: Duration = Duration::from_secs(10);

fn ttl_of(index: usize, version: &str) -> Option<Duration> {
    // A client that does not know which version it has names one that there is not.
    let number: u64 = version.trim_end_matches('!').parse().ok()?;
    (index > 0 && number.is_multiple_of(2)).then_some(TTL)
}

/// The name that an alias stands for; routes have one each.
fn base(name: &str) -> &str {
    name.trim_start_matches('@')
}

/// Whether a resource is among those.
fn is_among(names: &BTreeSet<String>, name: &str) -> bool {
    names.contains("*") || names.contains(name) || names.contains(&format!("@{name}"))
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    Change { index: usize, name: usize, kind: u8 },
    Remember { index: usize },
    Revert { index: usize },
    Subscribe { index: usize, names: Vec<usize>, wildcard: bool, alias: bool },
    Unsubscribe { index: usize, name: usize, wildcard: bool, alias: bool },
    Pause { index: usize },
    Resume { index: usize },
    Request,
    Push { index: usize, partial: bool, twice: u8 },
    Beat { index: usize, skip: usize },
    Foreign { index: usize },
    Deliver,
    Apply { drop: bool },
    Answer { at: usize },
    Time { seconds: u64 },
    Cut,
}

fn op() -> impl Strategy<Value = Op> {
    let index = || 0..TYPES.len();
    let name = || 0..NAMES.len();
    let one_in = |n: u8| (0..n).prop_map(|n| n == 0);
    prop_oneof![
        15 => (index(), name(), 0..10u8).prop_map(|(index, name, kind)| Op::Change { index, name, kind }),
        2 => index().prop_map(|index| Op::Remember { index }),
        2 => index().prop_map(|index| Op::Revert { index }),
        10 => (index(), prop::collection::vec(name(), 1..4), one_in(6), one_in(4))
            .prop_map(|(index, names, wildcard, alias)| Op::Subscribe { index, names, wildcard, alias }),
        7 => (index(), name(), one_in(6), one_in(4))
            .prop_map(|(index, name, wildcard, alias)| Op::Unsubscribe { index, name, wildcard, alias }),
        1 => index().prop_map(|index| Op::Pause { index }),
        2 => index().prop_map(|index| Op::Resume { index }),
        20 => Just(Op::Request),
        15 => (index(), any::<bool>(), 0..12u8).prop_map(|(index, partial, twice)| Op::Push { index, partial, twice }),
        4 => (index(), 0..4usize).prop_map(|(index, skip)| Op::Beat { index, skip }),
        2 => index().prop_map(|index| Op::Foreign { index }),
        15 => Just(Op::Deliver),
        15 => one_in(20).prop_map(|drop| Op::Apply { drop }),
        15 => (0..8usize).prop_map(|at| Op::Answer { at: at.saturating_sub(4) }),
        6 => (1..6u64).prop_map(|seconds| Op::Time { seconds }),
        3 => Just(Op::Cut),
    ]
}

/// What the server would like the client to have: name to version. A version that ends in `!` is one the client refuses.
type World = BTreeMap<String, String>;

/// What a server knows of one type on one stream.
#[derive(Default)]
struct Watch {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Versions the server believes the client has or has been offered.
    sent: World,
    /// Names just asked for: what of them does not exist is said to be gone.
    asked: BTreeSet<String>,
    /// Names that were sent and dropped with the wildcard: they may be under way when it is subscribed again.
    given_up: BTreeSet<String>,
    /// State of the world: names were said in a request that was not stale.
    said_names: bool,
    /// Nonces not yet answered.
    open: BTreeSet<String>,
    last_nonce: String,
    last_version: String,
    /// State of the world: the request that a name list repeats.
    last_request: Option<Request>,
    must_answer: bool,
}

#[derive(Default)]
struct Server {
    truth: [World; 3],
    watches: [Option<Watch>; 3],
    nonces: u64,
    versions: u64,
    node_seen: bool,
    /// What was refused: the client's state is only comparable once it got a newer version.
    dirty: [BTreeSet<String>; 3],
    /// A removal was refused: only a new stream tells the client again.
    needs_resume: bool,
    /// What there was.
    past: [World; 3],
}

/// A response on its way, with what the consumer will find in it.
struct Push {
    index: usize,
    nonce: String,
    version: String,
    resources: World,
    removed: Vec<String>,
    /// Heartbeats; then there is nothing else.
    beats: World,
    /// Names that are in it twice.
    twice: Vec<String>,
}

/// A response in the consumer's hands.
struct InHand {
    number: u64,
    push: Push,
    outstanding: Outstanding,
    /// What it came to, once it is applied.
    verdict: Option<Verdict>,
}

/// When something expires, and the number of the response that says so.
struct Expiry {
    number: u64,
    /// At the earliest, at the latest.
    due: Option<(Instant, Instant)>,
}

struct Run {
    mode: Mode,
    machine: Machine,
    stream: u64,
    server: Server,
    to_client: VecDeque<Push>,
    in_hand: Vec<InHand>,
    /// What the consumer runs.
    applied: [World; 3],
    wanted: [BTreeSet<String>; 3],
    /// Names that were subscribed on this stream and taken back.
    taken_back: [BTreeSet<String>; 3],
    now: Instant,
    /// Of what is applied and answered.
    expiries: [BTreeMap<String, Expiry>; 3],
    delivered: u64,
    paused: [usize; 3],
    log: Vec<String>,
}

impl Server {
    fn version(&mut self) -> String {
        self.versions += 1;
        self.versions.to_string()
    }

    fn new_stream(&mut self) {
        self.watches = Default::default();
        self.node_seen = false;
    }

    /// A request as a strict server reads it.
    fn request(&mut self, mode: Mode, r: Request) {
        assert_ne!(r.node, self.node_seen, "the node comes first and only once");
        self.node_seen = true;
        let index = TYPES.iter().position(|t| *t == *r.type_url).expect("a type of this test");
        let watch = &mut self.watches[index];
        let first = watch.is_none();
        let watch = watch.get_or_insert_default();
        match mode {
            Mode::Delta if !r.nonce.is_empty() => {
                assert!(!first, "an answer cannot open a type");
                assert!(watch.open.remove(&r.nonce), "each nonce is answered once, and only nonces of this stream");
                assert!(r.names.is_empty() && r.unsubscribe.is_empty(), "no subscription inside an answer");
                assert!(r.initial_versions.is_empty());
            }
            Mode::Delta => {
                assert!(r.error.is_none());
                if first {
                    assert!(r.unsubscribe.is_empty());
                    watch.wildcard = r.names.is_empty() || r.names.iter().any(|n| n == "*");
                    watch.sent = r.initial_versions.into_iter().collect();
                    watch.must_answer = true;
                } else {
                    assert!(r.initial_versions.is_empty(), "versions are told when a type opens");
                    assert!(!(r.names.is_empty() && r.unsubscribe.is_empty()), "a request must change something");
                }
                for name in r.unsubscribe {
                    let known =
                        if name == "*" { std::mem::take(&mut watch.wildcard) } else { watch.names.remove(&name) };
                    assert!(known, "{name} was not subscribed");
                    if !watch.wildcard {
                        let names = &watch.names;
                        watch.given_up.extend(watch.sent.keys().filter(|held| !is_among(names, held)).cloned());
                        watch.sent.retain(|held, _| is_among(names, held));
                    }
                }
                for name in r.names {
                    if name == "*" {
                        assert!(first || !watch.wildcard, "the wildcard was subscribed");
                        watch.wildcard = true;
                        if !first {
                            // All of it is sent again, or said to be gone.
                            watch.sent.values_mut().for_each(String::clear);
                            watch.asked.append(&mut watch.given_up);
                        }
                    } else {
                        assert!(watch.names.insert(name.clone()), "{name} was subscribed");
                        if !first {
                            // Asking again must be answered.
                            watch.sent.remove(base(&name));
                            watch.asked.insert(base(&name).to_string());
                        }
                    }
                }
            }
            Mode::Sotw => {
                let stale = !first && r.nonce != watch.last_nonce;
                let answers = watch.open.remove(&r.nonce);
                if !answers && let Some(last) = &watch.last_request {
                    // The wildcard that was implied may be asked for anew by its name.
                    assert!(*last.names != r.names, "a request that answers nothing must change the names");
                    assert!(r.error.is_none());
                }
                assert!(r.unsubscribe.is_empty() && r.initial_versions.is_empty());
                if !stale || r.nonce.is_empty() {
                    let names: BTreeSet<_> = r.names.iter().filter(|n| *n != "*").cloned().collect();
                    let said_names = std::mem::replace(&mut watch.said_names, !r.names.is_empty());
                    let explicit = r.names.iter().any(|n| n == "*");
                    let asked_again = explicit && !first && !said_names;
                    let wildcard = explicit || (r.names.is_empty() && !said_names && { first || watch.wildcard });
                    let added: Vec<String> = names.difference(&watch.names).cloned().collect();
                    watch.must_answer |= first || !added.is_empty() || asked_again || (wildcard && !watch.wildcard);
                    if wildcard && !watch.wildcard || asked_again {
                        watch.sent.clear();
                    }
                    for name in added {
                        watch.sent.remove(&name);
                    }
                    watch.wildcard = wildcard;
                    watch.names = names;
                    if first && !r.version.is_empty() && r.version == world_version(&self.truth[index]) {
                        // It has all of this already, it says.
                        watch.must_answer = false;
                        let truth = &self.truth[index];
                        let seen = truth.iter().filter(|(n, _)| watch.wildcard || watch.names.contains(*n));
                        watch.sent = seen.map(|(n, v)| (n.clone(), v.clone())).collect();
                        watch.last_version.clone_from(&r.version);
                    }
                }
                watch.last_request = Some(r);
            }
        }
    }

    /// The next push of a type, if there is something to say. `twice` is which of its names is in it twice, if any.
    fn push(&mut self, mode: Mode, index: usize, partial: bool, twice: Option<usize>) -> Option<Push> {
        let watch = self.watches[index].as_mut()?;
        let visible = |name: &String| watch.wildcard || is_among(&watch.names, name);
        let truth: World =
            self.truth[index].iter().filter(|(n, _)| visible(n)).map(|(n, v)| (n.clone(), v.clone())).collect();
        let changed: World =
            truth.iter().filter(|(n, v)| watch.sent.get(*n) != Some(v)).map(|(n, v)| (n.clone(), v.clone())).collect();
        // Where a wildcard is subscribed, what is not there is gone.
        let partial = partial && mode == Mode::Sotw && !watch.wildcard;
        let (resources, removed) = match mode {
            Mode::Delta => {
                let known: BTreeSet<_> = watch.sent.keys().chain(&watch.asked).collect();
                let removed = known.into_iter().filter(|n| !truth.contains_key(*n)).cloned().collect();
                (changed, removed)
            }
            Mode::Sotw if partial => (changed, Vec::new()),
            Mode::Sotw => (truth.clone(), Vec::new()),
        };
        let silent = match mode {
            Mode::Delta => resources.is_empty() && removed.is_empty(),
            Mode::Sotw => truth == watch.sent,
        };
        if silent && !watch.must_answer {
            return None;
        }
        watch.must_answer = false;
        watch.asked.clear();
        watch.sent = truth;
        self.nonces += 1;
        let nonce = format!("n{}", self.nonces);
        watch.open.insert(nonce.clone());
        watch.last_nonce.clone_from(&nonce);
        let version = match mode {
            Mode::Delta => format!("s{}", self.nonces),
            Mode::Sotw => world_version(&self.truth[index]),
        };
        watch.last_version.clone_from(&version);
        let twice = twice.filter(|_| mode == Mode::Delta).and_then(|at| resources.keys().nth(at)).cloned();
        let twice = twice.into_iter().collect();
        Some(Push { index, nonce, version, resources, removed, beats: World::new(), twice })
    }

    /// Renews what was sent of a type.
    fn heartbeat(&mut self, index: usize, skip: usize) -> Option<Push> {
        let watch = self.watches[index].as_mut()?;
        let with_ttl = watch.sent.iter().filter(|(_, version)| ttl_of(index, version).is_some());
        let beats: World = with_ttl.skip(skip).map(|(n, v)| (n.clone(), v.clone())).collect();
        if beats.is_empty() {
            return None;
        }
        self.nonces += 1;
        let nonce = format!("n{}", self.nonces);
        watch.open.insert(nonce.clone());
        watch.last_nonce.clone_from(&nonce);
        let version = watch.last_version.clone();
        let (resources, removed, twice) = (World::new(), Vec::new(), Vec::new());
        Some(Push { index, nonce, version, resources, removed, beats, twice })
    }
}

/// The version of everything of a type: two worlds that are the same have the same.
fn world_version(world: &World) -> String {
    let all: Vec<String> = world.iter().map(|(name, version)| format!("{name}{version}")).collect();
    format!("w{}", all.join(","))
}

impl Run {
    fn new(mode: Mode) -> Self {
        let mut machine = Machine::new(mode, None, true);
        let stream = machine.open();
        Run {
            mode,
            machine,
            stream,
            server: Server::default(),
            to_client: VecDeque::new(),
            in_hand: Vec::new(),
            applied: Default::default(),
            wanted: Default::default(),
            taken_back: Default::default(),
            now: Instant::now(),
            expiries: Default::default(),
            delivered: 0,
            paused: [0; 3],
            log: Vec::new(),
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Change { index, name, kind } => self.change_truth(index, NAMES[name], kind),
            Op::Remember { index } => self.server.past[index] = self.server.truth[index].clone(),
            Op::Revert { index } => self.server.truth[index] = self.server.past[index].clone(),
            Op::Subscribe { index, names, wildcard, alias } => self.subscribe(index, &names, wildcard, alias),
            Op::Unsubscribe { index, name, wildcard, alias } => self.unsubscribe(index, name, wildcard, alias),
            Op::Pause { index } => {
                self.machine.pause(&TYPES[index]);
                self.paused[index] += 1;
            }
            Op::Resume { index } if self.paused[index] > 0 => {
                self.machine.resume(&TYPES[index]);
                self.paused[index] -= 1;
            }
            Op::Resume { .. } => {}
            Op::Request => _ = self.send_request(),
            Op::Push { index, partial, twice } => {
                _ = self.server_push(index, partial, Some(usize::from(twice)).filter(|at| *at < 3));
            }
            Op::Beat { index, skip } => {
                if let Some(push) = self.server.heartbeat(index, skip) {
                    self.log.push(format!("BEAT {index} {} {:?}", push.nonce, push.beats));
                    self.to_client.push_back(push);
                }
            }
            Op::Foreign { index } => self.foreign(index),
            Op::Deliver => _ = self.deliver(),
            Op::Apply { drop } => _ = self.apply(drop),
            Op::Answer { at } => _ = self.answer(at),
            Op::Time { seconds } => self.pass_time(seconds),
            Op::Cut => self.cut(),
        }
    }

    fn change_truth(&mut self, index: usize, name: &str, kind: u8) {
        let version = self.server.version();
        let world = &mut self.server.truth[index];
        match kind {
            0..=2 => drop(world.remove(name)),
            3 => drop(world.insert(name.to_string(), format!("{version}!"))),
            _ => drop(world.insert(name.to_string(), version)),
        }
    }

    /// A name, or where there are any an alias.
    fn called(&self, index: usize, name: usize, alias: bool) -> String {
        let alias = alias && index == 2 && self.mode == Mode::Delta;
        format!("{}{}", if alias { "@" } else { "" }, NAMES[name])
    }

    fn subscribe(&mut self, index: usize, names: &[usize], wildcard: bool, alias: bool) {
        // Clusters are a wildcard, with names beside it at times; the other types go by name, and rarely by both.
        let (names, subscription) = if (index == 0 && !self.wanted[0].contains("*")) || wildcard {
            (vec!["*".to_string()], Subscription::Wildcard)
        } else {
            let names: Vec<_> = names.iter().map(|name| self.called(index, *name, alias)).collect();
            (names.clone(), Subscription::Names(names))
        };
        // State of the world has no words for a name that is taken back and wanted again while a response is under way: the
        // server passes over what says so, as its nonce is stale by then.
        let under_way = self.to_client.iter().any(|push| push.index == index)
            || self.in_hand.iter().any(|held| held.push.index == index);
        if self.mode == Mode::Sotw && under_way && names.iter().any(|name| self.taken_back[index].contains(name)) {
            return;
        }
        self.log.push(format!("subscribe {index} {names:?}"));
        self.wanted[index].extend(names);
        self.machine.subscribe(&TYPES[index], subscription).unwrap();
    }

    fn unsubscribe(&mut self, index: usize, name: usize, wildcard: bool, alias: bool) {
        let name = if wildcard { "*".to_string() } else { self.called(index, name, alias) };
        self.log.push(format!("unsubscribe {index} {name}"));
        self.machine.unsubscribe(&TYPES[index], &[&name]);
        self.wanted[index].remove(&name);
        self.taken_back[index].insert(name);
        let wanted = &self.wanted[index];
        self.applied[index].retain(|name, _| is_among(wanted, name));
        self.expiries[index].retain(|name, _| is_among(wanted, name));
    }

    fn is_in_hand(&self, index: usize, name: &str) -> bool {
        self.in_hand.iter().any(|h| h.push.index == index && h.push.resources.contains_key(name))
    }

    fn pass_time(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        while let Some(expired) = self.machine.expire(self.now) {
            let index = TYPES.iter().position(|t| *t == expired.type_url).expect("a type of this test");
            self.log.push(format!("expired {index} {:?}", expired.removed));
            for name in expired.removed {
                let due = self.expiries[index].remove(&name).and_then(|expiry| expiry.due);
                let (earliest, _) = due.expect("it had a time to live");
                assert!(earliest <= self.now, "{name} expired early");
                self.applied[index].remove(&name);
                // The server does not know, and says it again only when it has something new to say.
                self.server.dirty[index].insert(name);
            }
        }
        for index in 0..TYPES.len() {
            for (name, expiry) in &self.expiries[index] {
                let over = expiry.due.is_some_and(|(_, latest)| latest <= self.now);
                assert!(!over || self.is_in_hand(index, name), "{name} of type {index} should have expired");
            }
        }
    }

    /// The server sends what nobody asked for on this stream. Nothing may come of it.
    fn foreign(&mut self, index: usize) {
        let known = &TYPES[index];
        let type_url = match self.server.watches[index] {
            Some(_) => TypeUrl::from("type.googleapis.com/garbage.Garbage"),
            None => known.clone(),
        };
        if self.server.watches[index].is_none() && !self.to_client.is_empty() {
            return;
        }
        self.log.push(format!("FOREIGN {type_url}"));
        let waiting = self.machine.outbox.len();
        let mut incoming = self.incoming(type_url, "f", "f", Vec::new(), Vec::new());
        assert!(self.machine.received(&mut incoming).is_none());
        assert_eq!(self.machine.outbox.len(), waiting, "a type that was not asked for is not spoken of");
    }

    fn incoming(
        &self,
        type_url: TypeUrl,
        version: &str,
        nonce: &str,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> Incoming {
        Incoming {
            type_url,
            version: version.to_string(),
            nonce: nonce.to_string(),
            kind: if self.mode == Mode::Delta { Kind::Delta } else { Kind::Full },
            resources,
            removed,
            errors: Vec::new(),
            control_plane: String::new(),
            bytes: 0,
            received: self.now,
        }
    }

    fn send_request(&mut self) -> bool {
        match self.machine.next_request(self.stream) {
            Next::Send(request) => {
                self.log.push(format!("REQ {}", shown(self.mode, &request)));
                self.server.request(self.mode, request);
                true
            }
            Next::Wait => false,
            Next::Ended => panic!("the stream is the live one"),
        }
    }

    fn server_push(&mut self, index: usize, partial: bool, twice: Option<usize>) -> bool {
        let Some(push) = self.server.push(self.mode, index, partial, twice) else { return false };
        self.log.push(format!(
            "SEND {index} {} {} {:?} removed {:?} twice {:?}",
            push.nonce, push.version, push.resources, push.removed, push.twice
        ));
        self.to_client.push_back(push);
        true
    }

    fn deliver(&mut self) -> bool {
        let Some(push) = self.to_client.pop_front() else { return false };
        let index = push.index;
        let resource = |(name, version): (&String, &String)| Resource {
            name: name.clone(),
            aliases: if index == 2 { vec![format!("@{name}")] } else { Vec::new() },
            version: version.clone(),
            body: Some(Default::default()),
            ttl: ttl_of(index, version),
            ..Resource::default()
        };
        let beats = push.beats.iter().map(|beat| Resource { body: None, ..resource(beat) });
        let resources = push.resources.iter().map(resource).chain(beats).collect();
        // Some are in `resources` and in `removed`, the others twice in `resources`.
        let mut removed = push.removed.clone();
        let mut incoming = self.incoming(TYPES[index].clone(), &push.version, &push.nonce, resources, Vec::new());
        for name in &push.twice {
            match name.as_str() {
                "a" | "b" | "c" => removed.push(name.clone()),
                _ => incoming.resources.push(resource((name, &push.resources[name]))),
            }
        }
        incoming.removed = removed;
        for (name, version) in &push.beats {
            let in_hand = self.is_in_hand(index, name);
            if self.applied[index].get(name) == Some(version)
                && let Some(Expiry { due: Some((earliest, latest)), .. }) = self.expiries[index].get_mut(name)
            {
                *latest = self.now + TTL;
                // A server of the state of the world may name a version that was not taken as a whole.
                if self.mode == Mode::Delta && !in_hand {
                    *earliest = *latest;
                }
            }
        }
        let outstanding = self.machine.received(&mut incoming).expect("the type was opened by a request");
        assert!(incoming.resources.iter().all(|r| r.heartbeat == r.body.is_none()));
        if !push.beats.is_empty() {
            assert_eq!(incoming.kind, Kind::Delta, "heartbeats take nothing away");
        }
        self.delivered += 1;
        self.in_hand.push(InHand { number: self.delivered, push, outstanding, verdict: None });
        true
    }

    /// The consumer applies what is good of the oldest response; now and then it drops all of it.
    fn apply(&mut self, drop: bool) -> bool {
        let Some(InHand { push, verdict, .. }) = self.in_hand.iter_mut().find(|h| h.verdict.is_none()) else {
            return false;
        };
        let index = push.index;
        let dirty = &mut self.server.dirty[index];
        if drop {
            dirty.extend(push.resources.keys().cloned());
            let heartbeat = !push.beats.is_empty();
            self.server.needs_resume |= !push.removed.is_empty() || (self.mode == Mode::Sotw && !heartbeat);
            *verdict = Some(Verdict::Nack { detail: "dropped".into(), refused: Vec::new() });
            return true;
        }
        let wanted = &self.wanted[index];
        let applied = &mut self.applied[index];
        let mut refused = Vec::new();
        if self.mode == Mode::Sotw && wanted.contains("*") && push.beats.is_empty() {
            applied.retain(|name, _| push.resources.contains_key(name));
        }
        for name in &push.removed {
            applied.remove(name);
        }
        for (name, version) in &push.resources {
            if push.twice.contains(name) {
                dirty.insert(name.clone());
            } else if version.ends_with('!') {
                refused.push(name.clone());
            } else if is_among(wanted, name) {
                applied.insert(name.clone(), version.clone());
            }
        }
        dirty.extend(refused.iter().cloned());
        *verdict = Some(match refused.is_empty() {
            true => Verdict::Ack,
            false => Verdict::Nack { detail: "bad".into(), refused },
        });
        true
    }

    /// The consumer answers one of those it has applied.
    fn answer(&mut self, at: usize) -> bool {
        let applied = self.in_hand.iter().enumerate().filter(|(_, h)| h.verdict.is_some());
        let Some((at, _)) = applied.map(|(at, h)| (at, h.number)).nth(at) else { return false };
        let InHand { number, push, outstanding, verdict } = self.in_hand.remove(at);
        let (index, now, verdict) = (push.index, self.now, verdict.expect("it is applied"));
        self.log.push(format!("answer {} {verdict:?}", push.nonce));
        let (none_taken, refused) = match &verdict {
            Verdict::Ack => (false, Vec::new()),
            Verdict::Nack { refused, .. } => (refused.is_empty(), refused.clone()),
        };
        let wanted = &self.wanted[index];
        let expiries = &mut self.expiries[index];
        if !none_taken {
            if self.mode == Mode::Sotw && wanted.contains("*") && push.beats.is_empty() {
                for name in NAMES.into_iter().filter(|name| !push.resources.contains_key(*name)) {
                    if expiries.get(name).is_none_or(|e| e.number <= number) {
                        expiries.insert(name.to_string(), Expiry { number, due: None });
                    }
                }
            }
            for name in push.removed.iter().chain(&push.twice) {
                if expiries.get(name).is_none_or(|e| e.number <= number) {
                    expiries.insert(name.clone(), Expiry { number, due: None });
                }
            }
            for (name, version) in &push.resources {
                let newest = expiries.get(name).is_none_or(|e| e.number <= number);
                if newest && is_among(wanted, name) && !refused.contains(name) && !push.twice.contains(name) {
                    let due = ttl_of(index, version).map(|ttl| (now + ttl, now + ttl));
                    expiries.insert(name.clone(), Expiry { number, due });
                }
            }
        } else {
            for name in &push.twice {
                if expiries.get(name).is_none_or(|e| e.number <= number) {
                    expiries.insert(name.clone(), Expiry { number, due: None });
                }
            }
        }
        self.machine.answer(outstanding, verdict, now);
        true
    }

    fn cut(&mut self) {
        self.log.push("--- cut".into());
        self.machine.close();
        // Requests and responses under way are lost; what the consumer has in hand is not.
        self.to_client.clear();
        self.taken_back = Default::default();
        self.server.new_stream();
        // What was refused or has expired comes with the new stream, and what is still in hand is waited for.
        self.server.needs_resume = false;
        self.server.dirty = Default::default();
        self.stream = self.machine.open();
    }

    fn settle(&mut self) {
        loop {
            let mut busy = false;
            while self.send_request() {
                busy = true;
            }
            for index in 0..TYPES.len() {
                busy |= self.server_push(index, false, None);
            }
            while self.deliver() || self.apply(false) || self.answer(0) {
                busy = true;
            }
            if !busy {
                return;
            }
        }
    }

    /// The server repairs what was refused; then both must agree.
    fn finish(&mut self) {
        for (index, paused) in std::mem::take(&mut self.paused).into_iter().enumerate() {
            (0..paused).for_each(|_| self.machine.resume(&TYPES[index]));
        }
        // Answers may be dropped while settling, which needs repair in turn.
        for _ in 0..50 {
            self.settle();
            let resume = std::mem::take(&mut self.server.needs_resume);
            let mut repaired = false;
            for index in 0..TYPES.len() {
                let dirty = std::mem::take(&mut self.server.dirty[index]);
                repaired |= !dirty.is_empty();
                let bad: Vec<_> =
                    self.server.truth[index].iter().filter(|(_, v)| v.ends_with('!')).map(|(n, _)| n.clone()).collect();
                for name in dirty.into_iter().chain(bad) {
                    let version = self.server.version();
                    if let Some(v) = self.server.truth[index].get_mut(&name) {
                        *v = version;
                    }
                }
            }
            if resume {
                self.cut();
            }
            if !resume && !repaired {
                break;
            }
        }
        for index in 0..TYPES.len() {
            let wanted = &self.wanted[index];
            let should: World = self.server.truth[index]
                .iter()
                .filter(|(n, _)| is_among(wanted, n))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect();
            let mut has = self.applied[index].clone();
            if self.mode == Mode::Sotw && !wanted.contains("*") {
                // By name, state of the world has no words for "gone".
                has.retain(|name, _| should.contains_key(name));
            }
            assert_eq!(has, should, "type {index}");
            if let Some(watch) = &self.server.watches[index] {
                assert!(watch.open.is_empty(), "unanswered: {:?}", watch.open);
            }
        }
    }
}

/// Prints the history of a run that fails, for those who ask.
impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("MODEL_LOG").is_some() {
            eprintln!("{:?}:\n{}\n", self.mode, self.log.join("\n"));
        }
    }
}

fn run(mode: Mode, ops: Vec<Op>) {
    let mut run = Run::new(mode);
    for op in ops {
        run.step(op);
    }
    run.finish();
}

fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    let rng_seed = match asked.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        seed @ RngSeed::Fixed(_) => seed,
    };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { asked.cases } else { 400 };
    ProptestConfig { rng_seed, cases, ..asked }
}

proptest! {
    // The same cases in every run, so that a red run is due to a change; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` ask for others.
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..config() })]

    #[test]
    fn delta_converges_whatever_happens(ops in prop::collection::vec(op(), 0..300)) {
        run(Mode::Delta, ops);
    }

    #[test]
    fn sotw_converges_whatever_happens(ops in prop::collection::vec(op(), 0..300)) {
        run(Mode::Sotw, ops);
    }
}
