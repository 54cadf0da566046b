//! The machine against a strict server, in random interleavings: pushes, removals, bad resources, cut streams, answers
//! given late, out of order or not at all, times to live that are renewed or not, types held back for a while. Whatever happens, both sides end with the same state, every response that
//! reached the client is answered exactly once, and no rule of the protocol is broken on the way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::tests::shown;
use super::*;
use crate::event::{Kind, Resource};

const TYPES: [TypeUrl; 3] = [TypeUrl::CLUSTER, TypeUrl::ENDPOINT, TypeUrl::ROUTE];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Of every other version of two of the types.
const TTL: Duration = Duration::from_secs(10);

fn ttl_of(index: usize, version: &str) -> Option<Duration> {
    let number: u64 = version.trim_end_matches('!').parse().expect("a version of this test");
    (index > 0 && number.is_multiple_of(2)).then_some(TTL)
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
}

/// A response in the consumer's hands.
struct InHand {
    push: Push,
    outstanding: Outstanding,
}

struct Run {
    mode: Mode,
    rng: Rng,
    machine: Machine,
    stream: u64,
    server: Server,
    to_client: VecDeque<Push>,
    in_hand: Vec<InHand>,
    /// What the consumer runs.
    applied: [World; 3],
    wanted: [BTreeSet<String>; 3],
    now: Instant,
    /// Of what is applied: when it may expire first, and when it must have.
    deadlines: [BTreeMap<String, (Instant, Instant)>; 3],
    paused: [u32; 3],
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
                        watch.sent.retain(|held, _| names.contains(held));
                    }
                }
                for name in r.names {
                    if name == "*" {
                        assert!(first || !watch.wildcard, "the wildcard was subscribed");
                        watch.wildcard = true;
                    } else {
                        assert!(watch.names.insert(name.clone()), "{name} was subscribed");
                        if !first {
                            // Asking again must be answered.
                            watch.sent.remove(&name);
                            watch.asked.insert(name);
                        }
                    }
                }
            }
            Mode::Sotw => {
                let stale = !first && r.nonce != watch.last_nonce;
                let answers = watch.open.remove(&r.nonce);
                if !answers && let Some(last) = &watch.last_request {
                    assert!(*last.names != r.names, "a request that answers nothing must change the names");
                    assert!(r.error.is_none());
                }
                assert!(r.unsubscribe.is_empty() && r.initial_versions.is_empty());
                if !stale || r.nonce.is_empty() {
                    let names: BTreeSet<_> = r.names.iter().filter(|n| *n != "*").cloned().collect();
                    let said_names = watch.last_request.as_ref().is_some_and(|last| !last.names.is_empty());
                    watch.wildcard = r.names.iter().any(|n| n == "*")
                        || (r.names.is_empty() && !said_names && { first || watch.wildcard });
                    watch.must_answer |= first || names.difference(&watch.names).next().is_some();
                    watch.names = names;
                }
                watch.last_request = Some(r);
            }
        }
    }

    /// The next push of a type, if there is something to say.
    fn push(&mut self, mode: Mode, index: usize) -> Option<Push> {
        let watch = self.watches[index].as_mut()?;
        let visible = |name: &String| watch.wildcard || watch.names.contains(name);
        let truth: World =
            self.truth[index].iter().filter(|(n, _)| visible(n)).map(|(n, v)| (n.clone(), v.clone())).collect();
        let (resources, removed) = match mode {
            Mode::Delta => {
                let changed =
                    truth.iter().filter(|(n, v)| watch.sent.get(*n) != Some(v)).map(|(n, v)| (n.clone(), v.clone()));
                let known: BTreeSet<_> = watch.sent.keys().chain(&watch.asked).collect();
                let removed = known.into_iter().filter(|n| !truth.contains_key(*n)).cloned().collect();
                (changed.collect::<World>(), removed)
            }
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
        let version = format!("s{}", self.nonces);
        watch.last_version.clone_from(&version);
        Some(Push { index, nonce, version, resources, removed, beats: World::new() })
    }

    /// Renews what was sent of a type.
    fn heartbeat(&mut self, index: usize, pick: impl FnMut(&(&String, &String)) -> bool) -> Option<Push> {
        let watch = self.watches[index].as_mut()?;
        let with_ttl = watch.sent.iter().filter(|(_, version)| ttl_of(index, version).is_some());
        let beats: World = with_ttl.filter(pick).map(|(n, v)| (n.clone(), v.clone())).collect();
        if beats.is_empty() {
            return None;
        }
        self.nonces += 1;
        let nonce = format!("n{}", self.nonces);
        watch.open.insert(nonce.clone());
        watch.last_nonce.clone_from(&nonce);
        let version = watch.last_version.clone();
        Some(Push { index, nonce, version, resources: World::new(), removed: Vec::new(), beats })
    }
}

impl Run {
    fn new(mode: Mode, seed: u64) -> Self {
        let mut machine = Machine::new(mode, None, true);
        let stream = machine.open();
        Run {
            mode,
            rng: Rng::with_seed(seed),
            machine,
            stream,
            server: Server::default(),
            to_client: VecDeque::new(),
            in_hand: Vec::new(),
            applied: Default::default(),
            wanted: Default::default(),
            now: Instant::now(),
            deadlines: Default::default(),
            paused: [0; 3],
            log: Vec::new(),
        }
    }

    fn name(&mut self) -> String {
        NAMES[self.rng.usize(..NAMES.len())].to_string()
    }

    fn step(&mut self) {
        let index = self.rng.usize(..TYPES.len());
        match self.rng.u32(..115) {
            100..=105 => self.pass_time(),
            106..=108 => self.pause(index),
            109..=112 => self.server_heartbeat(index),
            0..=14 => self.change_truth(index),
            15..=24 => self.subscribe(index),
            25..=31 => self.unsubscribe(index),
            32..=51 => _ = self.send_request(),
            52..=66 => _ = self.server_push(index),
            67..=81 => _ = self.deliver(),
            82..=96 => {
                if !self.in_hand.is_empty() {
                    // Mostly in order.
                    let at = if self.rng.u32(..8) == 0 { self.rng.usize(..self.in_hand.len()) } else { 0 };
                    // An answer out of order to a delta response would apply old on top of new: a consumer does not.
                    let type_before = self.in_hand[..at].iter().any(|h| h.push.index == self.in_hand[at].push.index);
                    if !type_before {
                        self.answer(at);
                    }
                }
            }
            _ => self.cut(),
        }
    }

    fn change_truth(&mut self, index: usize) {
        let name = self.name();
        let version = self.server.version();
        let world = &mut self.server.truth[index];
        match self.rng.u32(..10) {
            0..=2 => drop(world.remove(&name)),
            3 => drop(world.insert(name, format!("{version}!"))),
            _ => drop(world.insert(name, version)),
        }
    }

    fn subscribe(&mut self, index: usize) {
        // Clusters are a wildcard, with names beside it at times; the other types go by name.
        let (names, subscription) = if index == 0 && !self.wanted[0].contains("*") {
            (vec!["*".to_string()], Subscription::Wildcard)
        } else {
            let names: Vec<_> = (0..self.rng.usize(1..4)).map(|_| self.name()).collect();
            (names.clone(), Subscription::Names(names))
        };
        self.log.push(format!("subscribe {index} {names:?}"));
        self.wanted[index].extend(names);
        self.machine.subscribe(&TYPES[index], subscription).unwrap();
    }

    fn unsubscribe(&mut self, index: usize) {
        let name = self.name();
        self.log.push(format!("unsubscribe {index} {name}"));
        self.machine.unsubscribe(&TYPES[index], &[&name]);
        if self.wanted[index].remove(&name) && !self.wanted[index].contains("*") {
            self.applied[index].remove(&name);
        }
        self.forget_deadlines(index);
    }

    /// What is not there cannot expire.
    fn forget_deadlines(&mut self, index: usize) {
        let applied = &self.applied[index];
        self.deadlines[index].retain(|name, _| applied.contains_key(name));
    }

    fn pause(&mut self, index: usize) {
        if self.paused[index] > 0 && self.rng.bool() {
            self.log.push(format!("resume {index}"));
            self.machine.resume(&TYPES[index]);
            self.paused[index] -= 1;
        } else {
            self.log.push(format!("pause {index}"));
            self.machine.pause(&TYPES[index]);
            self.paused[index] += 1;
        }
    }

    fn is_in_hand(&self, index: usize, name: &str) -> bool {
        self.in_hand.iter().any(|h| h.push.index == index && h.push.resources.contains_key(name))
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_secs(self.rng.u64(1..6));
        while let Some(expired) = self.machine.expire(self.now) {
            let index = TYPES.iter().position(|t| *t == expired.type_url).expect("a type of this test");
            self.log.push(format!("expired {index} {:?}", expired.removed));
            for name in expired.removed {
                let (earliest, _) = self.deadlines[index].remove(&name).expect("it had a time to live");
                assert!(earliest <= self.now, "{name} expired early");
                self.applied[index].remove(&name);
                // The server does not know, and says it again only when it has something new to say.
                self.server.dirty[index].insert(name);
            }
        }
        for index in 0..TYPES.len() {
            for (name, (_, latest)) in &self.deadlines[index] {
                assert!(
                    *latest > self.now || self.is_in_hand(index, name),
                    "{name} of type {index} should have expired"
                );
            }
        }
    }

    fn server_heartbeat(&mut self, index: usize) {
        let rng = &mut self.rng;
        if let Some(push) = self.server.heartbeat(index, |_| rng.u32(..4) > 0) {
            self.log.push(format!("BEAT {index} {} {:?}", push.nonce, push.beats));
            self.to_client.push_back(push);
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

    fn server_push(&mut self, index: usize) -> bool {
        let Some(push) = self.server.push(self.mode, index) else { return false };
        self.log.push(format!("SEND {index} {} {:?} removed {:?}", push.nonce, push.resources, push.removed));
        self.to_client.push_back(push);
        true
    }

    fn deliver(&mut self) -> bool {
        let Some(push) = self.to_client.pop_front() else { return false };
        let resource = |(name, version): (&String, &String)| Resource {
            name: name.clone(),
            version: version.clone(),
            body: Some(Default::default()),
            ttl: ttl_of(push.index, version),
            ..Resource::default()
        };
        let beats = push.beats.iter().map(|beat| Resource { body: None, ..resource(beat) });
        let mut incoming = Incoming {
            type_url: TYPES[push.index].clone(),
            version: push.version.clone(),
            nonce: push.nonce.clone(),
            kind: if self.mode == Mode::Delta { Kind::Delta } else { Kind::Full },
            resources: push.resources.iter().map(resource).chain(beats).collect(),
            removed: push.removed.clone(),
            errors: Vec::new(),
            control_plane: String::new(),
            bytes: 0,
            received: self.now,
        };
        for (name, version) in &push.beats {
            let in_hand = self.is_in_hand(push.index, name);
            if self.applied[push.index].get(name) == Some(version)
                && let Some((earliest, latest)) = self.deadlines[push.index].get_mut(name)
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
        self.in_hand.push(InHand { push, outstanding });
        true
    }

    /// The consumer applies what is good and answers; now and then it drops the response.
    fn answer(&mut self, at: usize) {
        let InHand { push, outstanding } = self.in_hand.remove(at);
        let (index, now) = (push.index, self.now);
        if self.rng.u32(..20) == 0 {
            self.log.push(format!("drop {}", push.nonce));
            self.server.dirty[index].extend(push.resources.into_keys());
            let heartbeat = !push.beats.is_empty();
            self.server.needs_resume |= !push.removed.is_empty() || (self.mode == Mode::Sotw && !heartbeat);
            self.machine.answer(
                outstanding,
                Verdict::Nack { detail: "dropped".into(), refused: Vec::new() },
                Instant::now(),
            );
            return;
        }
        let wanted = &self.wanted[index];
        let visible = |name: &str| wanted.contains("*") || wanted.contains(name);
        let applied = &mut self.applied[index];
        let mut refused = Vec::new();
        if self.mode == Mode::Sotw && wanted.contains("*") && push.beats.is_empty() {
            applied.retain(|name, _| push.resources.contains_key(name));
        }
        for name in &push.removed {
            applied.remove(name);
        }
        for (name, version) in push.resources {
            if version.ends_with('!') {
                refused.push(name);
            } else if visible(&name) {
                let deadline = ttl_of(index, &version).map(|ttl| now + ttl);
                match deadline {
                    Some(at) => _ = self.deadlines[index].insert(name.clone(), (at, at)),
                    None => _ = self.deadlines[index].remove(&name),
                }
                applied.insert(name, version);
            }
        }
        let verdict = if refused.is_empty() {
            Verdict::Ack
        } else {
            self.server.dirty[index].extend(refused.iter().cloned());
            Verdict::Nack { detail: "bad".into(), refused }
        };
        self.log.push(format!("answer {} {verdict:?}", push.nonce));
        self.machine.answer(outstanding, verdict, now);
        self.forget_deadlines(index);
    }

    fn cut(&mut self) {
        self.log.push("--- cut".into());
        self.machine.close();
        // Requests and responses under way are lost; what the consumer has in hand is not.
        self.to_client.clear();
        self.server.new_stream();
        self.stream = self.machine.open();
    }

    fn settle(&mut self) {
        loop {
            let mut busy = false;
            while self.send_request() {
                busy = true;
            }
            for index in 0..TYPES.len() {
                busy |= self.server_push(index);
            }
            while self.deliver() {
                busy = true;
            }
            while !self.in_hand.is_empty() {
                self.answer(0);
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
                .filter(|(n, _)| wanted.contains("*") || wanted.contains(*n))
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

/// Prints the history of a run that fails.
impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}:\n{}", self.mode, self.log.join("\n"));
        }
    }
}

fn runs(mode: Mode) {
    for seed in 0..1500 {
        let mut run = Run::new(mode, seed);
        run.log.push(format!("seed {seed}"));
        for _ in 0..run.rng.usize(20..400) {
            run.step();
        }
        run.finish();
    }
}

#[test]
fn delta_converges_whatever_happens() {
    runs(Mode::Delta);
}

#[test]
fn sotw_converges_whatever_happens() {
    runs(Mode::Sotw);
}
