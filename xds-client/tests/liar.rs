//! A control plane that lies: it repeats and reorders, sends other types, duplicates, garbage and too much, removes what
//! never was, and cuts the stream anywhere, also between a response and its answer. Once it tells the truth, the client
//! has it; and of what reached it, each response was answered once.

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use fastrand::Rng;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use xds_client::pb::envoy::config::core::v3::Node;
use xds_client::pb::envoy::service::discovery::v3 as discovery;
use xds_client::{
    Any, Backoff, Client, Event, Events, Kind, Mode, Options, Subscription, TcpConnector, TypeUrl, Verdict,
};

const CDS: TypeUrl = TypeUrl::CLUSTER;
const LDS: TypeUrl = TypeUrl::LISTENER;
const LIMIT: usize = 64 << 10;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// What there is, by name.
type World = BTreeMap<String, Any>;

/// A cluster that differs from others of its name.
fn cluster(name: &str, content: u32) -> Any {
    use prost::Message;
    let message = xds_client::pb::envoy::config::cluster::v3::Cluster {
        name: name.into(),
        alt_stat_name: content.to_string(),
        ..Default::default()
    };
    Any { type_url: CDS.to_string(), value: message.encode_to_vec() }
}

/// Applies what is sound and refuses the rest by name; now and then it answers late.
async fn consume(mut events: Events, applied: Arc<Mutex<World>>, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut late: Option<(xds_client::Answer, Verdict)> = None;
    loop {
        let patience = if late.is_some() { Duration::from_millis(3) } else { Duration::from_secs(3600) };
        let event = tokio::time::timeout(patience, events.next()).await;
        if let Some((answer, verdict)) = late.take() {
            give(answer, verdict);
        }
        let response = match event {
            Ok(Some(Event::Response(response))) => response,
            Ok(Some(_)) | Err(_) => continue,
            Ok(None) => return,
        };
        let verdict = apply(&mut applied.lock().unwrap(), &response);
        match rng.u32(..4) {
            0 => late = Some((response.answer, verdict)),
            _ => give(response.answer, verdict),
        }
    }
}

fn apply(applied: &mut World, response: &xds_client::Response) -> Verdict {
    let mut refused = Vec::new();
    let mut seen = BTreeSet::new();
    for name in &response.removed {
        applied.remove(name);
    }
    for r in &response.resources {
        match &r.body {
            Some(any) if any.type_url == CDS.as_str() && !r.name.is_empty() && seen.insert(r.name.clone()) => {
                applied.insert(r.name.clone(), any.clone());
            }
            _ => refused.push(r.name.clone()),
        }
    }
    if response.kind == Kind::Full {
        applied.retain(|name, _| seen.contains(name));
    }
    match refused.is_empty() {
        true => Verdict::Ack,
        false => Verdict::Nack { detail: "unsound".into(), refused },
    }
}

fn give(answer: xds_client::Answer, verdict: Verdict) {
    match verdict {
        Verdict::Ack => answer.ack(),
        Verdict::Nack { detail, refused } => answer.nack(detail, &refused),
    }
}

enum Line {
    Delta(Delta),
    Sotw(Sotw),
}

impl Line {
    async fn open(server: &mut Server, mode: Mode) -> Line {
        match mode {
            Mode::Delta => Line::Delta(server.delta().await),
            Mode::Sotw => Line::Sotw(server.sotw().await),
        }
    }

    async fn send(&self, m: Message) {
        assert!(self.try_send(m).await, "the stream lives");
    }

    /// `false` if the stream is gone.
    async fn try_send(&self, m: Message) -> bool {
        match self {
            Line::Delta(line) => {
                let resource = |(name, any)| discovery::Resource {
                    name,
                    version: m.version.clone(),
                    resource: Some(any),
                    ..Default::default()
                };
                line.offer(discovery::DeltaDiscoveryResponse {
                    type_url: m.type_url.to_string(),
                    system_version_info: m.version.clone(),
                    nonce: m.nonce,
                    resources: m.resources.into_iter().map(resource).collect(),
                    removed_resources: m.removed,
                    ..Default::default()
                })
                .await
            }
            Line::Sotw(line) => {
                line.offer(discovery::DiscoveryResponse {
                    type_url: m.type_url.to_string(),
                    version_info: m.version,
                    nonce: m.nonce,
                    resources: m.resources.into_iter().map(|(_, any)| any).collect(),
                    ..Default::default()
                })
                .await
            }
        }
    }

    /// The next request, or `None` at the end of the stream.
    async fn try_request(&mut self) -> Option<(String, String, bool)> {
        match self {
            Line::Delta(line) => line.next().await.map(|r| (r.type_url, r.response_nonce, r.error_detail.is_some())),
            Line::Sotw(line) => line.next().await.map(|r| (r.type_url, r.response_nonce, r.error_detail.is_some())),
        }
    }

    /// The next request: its type, its nonce, and whether it refuses.
    async fn request(&mut self) -> (String, String, bool) {
        self.try_request().await.expect("a request, not the end")
    }

    async fn end(self, status: Status) {
        match self {
            Line::Delta(line) => line.end(status).await,
            Line::Sotw(line) => line.end(status).await,
        }
    }
}

#[derive(Clone)]
struct Message {
    type_url: TypeUrl,
    version: String,
    nonce: String,
    resources: Vec<(String, Any)>,
    removed: Vec<String>,
}

struct Liar {
    mode: Mode,
    rng: Rng,
    server: Server,
    /// `None` between two streams.
    line: Option<Line>,
    truth: World,
    counter: u32,
    /// Nonces of this stream that are to be answered.
    owed: Vec<String>,
    history: Vec<Message>,
}

impl Liar {
    fn message(&mut self, resources: Vec<(String, Any)>, removed: Vec<String>) -> Message {
        self.counter += 1;
        let version = self.counter.to_string();
        Message { type_url: CDS, nonce: format!("n{version}"), version, resources, removed }
    }

    fn name(&mut self) -> String {
        NAMES[self.rng.usize(..NAMES.len())].to_string()
    }

    fn clusters(&mut self) -> Vec<(String, Any)> {
        let names: BTreeSet<String> = (0..self.rng.usize(1..4)).map(|_| self.name()).collect();
        names.into_iter().map(|name| (name.clone(), cluster(&name, self.rng.u32(..)))).collect()
    }

    /// All there is, and all there is not.
    fn whole_truth(&mut self) -> Message {
        let resources = self.truth.clone().into_iter().collect();
        let removed = NAMES.iter().filter(|n| !self.truth.contains_key(**n)).map(|n| n.to_string()).collect();
        self.message(resources, removed)
    }

    async fn send(&mut self, message: Message) {
        self.owed.push(message.nonce.clone());
        self.line.as_ref().expect("a stream is open").send(message).await;
    }

    /// The client comes (back).
    async fn open(&mut self) {
        self.owed.clear();
        let mut line = Line::open(&mut self.server, self.mode).await;
        let (type_url, nonce, refuses) = line.request().await;
        assert_eq!((type_url.as_str(), nonce.as_str(), refuses), (CDS.as_str(), "", false), "how a stream begins");
        self.line = Some(line);
    }

    /// With a word, or without.
    async fn cut(&mut self) {
        let line = self.line.take().expect("a stream is open");
        match self.rng.u32(..3) {
            0 => drop(line),
            1 => line.end(Status::ok("")).await,
            _ => line.end(Status::unavailable("away")).await,
        }
        self.open().await;
    }

    async fn lie(&mut self) {
        let clusters = self.clusters();
        match self.rng.u32(..12) {
            0..=2 => {
                self.truth = clusters.into_iter().collect();
                let message = self.whole_truth();
                self.history.push(message.clone());
                self.send(message).await;
            }
            3 => {
                // Nobody asked for this type, and nobody answers.
                let other = Message { type_url: LDS, ..self.message(clusters, Vec::new()) };
                self.line.as_ref().expect("a stream is open").send(other).await;
            }
            4 => {
                let mut twice = clusters.clone();
                twice.extend(clusters.into_iter().map(|(name, _)| (name.clone(), cluster(&name, 7))));
                let message = self.message(twice, Vec::new());
                self.send(message).await;
            }
            5 => {
                let mut wrong = clusters;
                wrong[0].1.type_url = LDS.to_string();
                let message = self.message(wrong, Vec::new());
                self.send(message).await;
            }
            6 => {
                // Said before: the last one, or any other, with its old nonce and version.
                let Some(old) = self.rng.choice(&self.history).cloned() else { return };
                self.send(old).await;
            }
            7 => {
                let garbage = Any { type_url: CDS.to_string(), value: vec![0xff; 9] };
                let message = self.message(vec![(String::new(), garbage)], vec![String::new()]);
                self.send(message).await;
            }
            8 => {
                let removed = vec!["never".into(), self.name(), clusters[0].0.clone()];
                let message = self.message(clusters, removed);
                self.send(message).await;
            }
            9 => {
                let message = self.message(vec![("a".into(), cluster(&"a".repeat(LIMIT), 0))], Vec::new());
                self.send(message).await;
                self.line = None;
                self.open().await;
            }
            10 => self.cut().await,
            _ => {
                let message = self.message(clusters, Vec::new());
                self.send(message).await;
                self.cut().await;
            }
        }
    }
}

async fn runs(mode: Mode) {
    for seed in 0..25 {
        let (server, address) = Server::tcp().await;
        let options = Options {
            mode,
            backoff: Backoff { base: Duration::from_millis(2), max: Duration::from_millis(4) },
            max_message_bytes: LIMIT,
            ..Options::new(Node { id: "n1".into(), ..Default::default() })
        };
        let (client, events) = Client::start(options, Arc::new(TcpConnector::new(&address)));
        client.subscribe(&CDS, Subscription::Wildcard);
        let applied = Arc::new(Mutex::new(World::new()));
        let consumer = tokio::spawn(consume(events, applied.clone(), seed));
        let mut liar = Liar {
            mode,
            rng: Rng::with_seed(seed),
            server,
            line: None,
            truth: World::new(),
            counter: 0,
            owed: Vec::new(),
            history: Vec::new(),
        };
        liar.open().await;
        for _ in 0..liar.rng.usize(5..40) {
            liar.lie().await;
        }
        let truth = liar.whole_truth();
        liar.send(truth).await;
        let mut line = liar.line.take().expect("a stream is open");
        while !liar.owed.is_empty() {
            let (_, nonce, _) = line.request().await;
            let at = liar.owed.iter().position(|owed| *owed == nonce);
            liar.owed.swap_remove(at.unwrap_or_else(|| panic!("seed {seed}: {nonce:?} is not owed an answer")));
        }
        assert_eq!(*applied.lock().unwrap(), liar.truth, "seed {seed}");
        // Nothing else is waiting to be said.
        client.subscribe(&TypeUrl::ENDPOINT, Subscription::names(["x"]));
        assert_eq!(line.request().await.0, TypeUrl::ENDPOINT.as_str(), "seed {seed}");
        drop(client);
        soon("the consumer's end", consumer).await.unwrap();
    }
}

/// Relays connections to the server; each next one is cut after so many bytes of either side, until the limits are used up.
async fn relay(server: String, limits: Vec<(u64, u64)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut limits = limits.into_iter();
        while let Ok((client, _)) = listener.accept().await {
            let upstream = TcpStream::connect(&server).await.unwrap();
            let (from_client_limit, from_server_limit) = limits.next().unwrap_or((u64::MAX, u64::MAX));
            tokio::spawn(async move {
                let (from_client, mut to_client) = client.into_split();
                let (from_server, mut to_server) = upstream.into_split();
                let mut from_client = from_client.take(from_client_limit);
                let mut from_server = from_server.take(from_server_limit);
                tokio::select! {
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    front
}

/// A connection that breaks at any byte, of either side, costs nothing but time.
#[tokio::test]
async fn a_cut_at_any_byte_is_survived() {
    let mut rng = Rng::with_seed(1);
    for mode in [Mode::Delta, Mode::Sotw] {
        let (mut server, address) = Server::tcp().await;
        // Everything that is said takes less than 900 bytes in either direction.
        let limits: Vec<(u64, u64)> =
            (0..900).step_by(15).map(|at| if rng.bool() { (at, u64::MAX) } else { (u64::MAX, at) }).collect();
        let cuts = limits.len();
        let front = relay(address, limits).await;
        let backoff = Backoff { base: Duration::from_millis(2), max: Duration::from_millis(4) };
        let options = Options { mode, backoff, ..Options::new(Node { id: "n1".into(), ..Default::default() }) };
        let (client, events) = Client::start(options, Arc::new(TcpConnector::new(&front)));
        client.subscribe(&CDS, Subscription::Wildcard);
        let applied = Arc::new(Mutex::new(World::new()));
        let consumer = tokio::spawn(consume(events, applied.clone(), 1));
        let truth: World = NAMES.iter().map(|name| (name.to_string(), cluster(name, 1))).collect();
        let resources: Vec<_> = truth.clone().into_iter().collect();
        let mut streams = 0;
        // Each stream is told everything, in two messages, and leaves when both are answered: the client opens the next.
        loop {
            let mut line = Line::open(&mut server, mode).await;
            streams += 1;
            let mut owed = BTreeSet::new();
            let mut answered = 0;
            while let Some((_, nonce, refuses)) = line.try_request().await {
                assert!(!refuses, "there is nothing to refuse");
                if nonce.is_empty() {
                    for nonce in ["n1", "n2"] {
                        owed.insert(nonce.to_string());
                        let resources = resources.clone();
                        let (type_url, version, removed) = (CDS, "1".into(), Vec::new());
                        let message = Message { type_url, version, nonce: nonce.into(), resources, removed };
                        if !line.try_send(message).await {
                            break;
                        }
                    }
                } else {
                    assert!(owed.remove(&nonce), "{nonce} was answered before");
                    answered += 1;
                }
                if answered == 2 {
                    break;
                }
            }
            if answered == 2 && streams > cuts {
                break;
            }
        }
        assert_eq!(*applied.lock().unwrap(), truth);
        drop(client);
        soon("the consumer's end", consumer).await.unwrap();
    }
}

#[tokio::test]
async fn delta_has_the_truth_in_the_end() {
    runs(Mode::Delta).await;
}

#[tokio::test]
async fn sotw_has_the_truth_in_the_end() {
    runs(Mode::Sotw).await;
}
