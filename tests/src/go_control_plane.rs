//! A control plane made with the go-control-plane library, as many real ones are: its own program, built on demand from
//! `tests/go-control-plane` with `go build`, which must be installed.
//!
//! It serves ADS, separate streams and REST from one snapshot that the test sets, in either wire mode, and tells of
//! every stream and request. What it sends when is the library's: in contrast to [`crate::control_plane`], nothing here
//! decides it. Beside it stands a strict parser of protobuf's JSON with the library's types ([`strictly_parsed`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use prost::{Message, Name};
use serde_json::{Value, json};
use tokio::sync::watch;
use xds_protos::{Descriptors, Style};

use crate::control_plane::PATIENCE;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/go-control-plane");

/// All resources that a control plane is to have, by type, each type with its version.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: String,
    types: BTreeMap<String, (String, Vec<Value>)>,
}

impl Snapshot {
    /// An empty snapshot; types get this version unless [`Snapshot::version`] says otherwise.
    pub fn new(version: impl ToString) -> Self {
        Self { version: version.to_string(), types: BTreeMap::new() }
    }

    /// Adds a resource.
    #[must_use]
    pub fn with<M: Message + Name>(mut self, message: &M) -> Self {
        let mut printed = Descriptors::shared().print(message, Style { redact: false, defaults: false });
        if let Some(fields) = printed.as_object_mut() {
            fields.insert("@type".to_owned(), M::type_url().into());
        }
        let (_, resources) = self.types.entry(M::type_url()).or_insert_with(|| (self.version.clone(), Vec::new()));
        resources.push(printed);
        self
    }

    /// Gives a type another version than the snapshot's. The library pushes a type when its version changes (state of
    /// the world); for delta it compares the resources themselves.
    #[must_use]
    pub fn version(mut self, type_url: &str, version: impl ToString) -> Self {
        self.types.entry(type_url.to_owned()).or_default().0 = version.to_string();
        self
    }

    fn line(&self, number: u64) -> String {
        let types: serde_json::Map<String, Value> = self
            .types
            .iter()
            .map(|(type_url, (version, resources))| {
                (type_url.clone(), json!({ "version": version, "resources": resources }))
            })
            .collect();
        json!({ "set": number, "types": types }).to_string()
    }
}

/// Something that happened on a stream, as the library's callbacks tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// `open`, `closed`, `request`, or `fetch` for a request of REST.
    pub event: String,
    /// The stream; streams of each wire mode count from 1. 0 for REST.
    pub stream: u64,
    /// Whether it is a delta stream.
    pub delta: bool,
    /// Of the stream when it opens (empty: aggregated), else of the request.
    pub type_url: String,
    /// `node.id`, of requests that carry a node or follow one that did.
    pub node: String,
    /// What a state-of-the-world request says it holds.
    pub version: String,
    /// The response it answers; empty when it answers none.
    pub nonce: String,
    /// The names asked for: all of them (state of the world), or those added (delta).
    pub names: Vec<String>,
    /// The text of a refusal; empty when it refuses nothing.
    pub error: String,
}

impl Event {
    fn of(line: &Value) -> Self {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let names = line["names"].as_array().into_iter().flatten();
        Self {
            event: text("event"),
            stream: line["stream"].as_u64().unwrap_or_default(),
            delta: line["delta"].as_bool().unwrap_or_default(),
            type_url: text("type_url"),
            node: text("node"),
            version: text("version"),
            nonce: text("nonce"),
            names: names.filter_map(Value::as_str).map(str::to_owned).collect(),
            error: text("error"),
        }
    }

    /// Whether it is a request that accepts a response.
    pub fn is_ack(&self) -> bool {
        self.event == "request" && !self.nonce.is_empty() && self.error.is_empty()
    }
}

/// What the program said: addresses, answers to snapshots, events.
#[derive(Debug, Default)]
struct Said {
    addresses: Option<(SocketAddr, SocketAddr)>,
    /// The last snapshot that was answered, and every one that was not taken.
    set: u64,
    refused: Vec<String>,
    events: Vec<Event>,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    said: Mutex<Said>,
    changes: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a control plane is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Serves one aggregated stream: responses wait until all their resources are asked for.
    pub ads: bool,
    /// Where to serve gRPC; a free port if `None`.
    pub grpc: Option<SocketAddr>,
    /// Where to serve REST; a free port if `None`.
    pub rest: Option<SocketAddr>,
}

/// A running control plane. Dropping it kills the process.
#[derive(Debug)]
pub struct GoControlPlane {
    child: Child,
    stdin: ChildStdin,
    shared: Arc<Shared>,
    grpc: SocketAddr,
    rest: SocketAddr,
    sets: u64,
}

impl GoControlPlane {
    /// Starts it with a snapshot.
    ///
    /// # Errors
    /// When it cannot be built or started, or does not take the snapshot.
    pub async fn start(options: Options, first: &Snapshot) -> io::Result<Self> {
        let mut command = Command::new(program()?);
        command.arg(format!("-ads={}", options.ads));
        for (flag, address) in [("-grpc", options.grpc), ("-rest", options.rest)] {
            if let Some(address) = address {
                command.arg(flag).arg(address.to_string());
            }
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the control plane has no standard streams"));
        };
        let shared = Arc::new(Shared { said: Mutex::default(), changes: watch::Sender::new(0) });
        listen(stdout, Arc::clone(&shared));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut started = Self { child, stdin, shared, grpc: nowhere, rest: nowhere, sets: 0 };
        started.set(first).await?;
        (started.grpc, started.rest) = started.wait("its addresses", |said| said.addresses).await?;
        Ok(started)
    }

    /// Where it serves gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where it serves REST.
    pub fn rest(&self) -> SocketAddr {
        self.rest
    }

    /// Replaces the snapshot; returns when the library has it.
    ///
    /// # Errors
    /// When it is not taken, with the reason.
    pub async fn set(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.sets += 1;
        let (number, line) = (self.sets, snapshot.line(self.sets));
        writeln!(self.stdin, "{line}")?;
        self.wait("an answer to a snapshot", |said| (said.set >= number).then_some(())).await?;
        match self.shared.lock().refused.pop() {
            Some(reason) => Err(io::Error::other(format!("go-control-plane does not take the snapshot: {reason}"))),
            None => Ok(()),
        }
    }

    /// Ends its process at once; connections break.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }

    /// Every event so far.
    pub fn events(&self) -> Vec<Event> {
        self.shared.lock().events.clone()
    }

    /// The refusals so far: type and text, equal ones once. (The library answers a refusal of a state of the world
    /// with the same again.)
    pub fn nacks(&self) -> BTreeSet<(String, String)> {
        let said = self.shared.lock();
        let refusals = said.events.iter().filter(|event| !event.error.is_empty());
        refusals.map(|event| (event.type_url.clone(), event.error.clone())).collect()
    }

    /// The first event, past or future, that fits; `what` names it in the error.
    ///
    /// # Errors
    /// When none came within [`PATIENCE`]; the error lists the last events.
    pub async fn wait_for(&self, what: &str, fits: impl Fn(&Event) -> bool) -> io::Result<Event> {
        self.wait(what, |said| said.events.iter().find(|event| fits(event)).cloned()).await
    }

    async fn wait<T>(&self, what: &str, found: impl Fn(&Said) -> Option<T>) -> io::Result<T> {
        let mut changes = self.shared.changes.subscribe();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            changes.borrow_and_update();
            let ended = {
                let said = self.shared.lock();
                if let Some(found) = found(&said) {
                    return Ok(found);
                }
                said.ended
            };
            if ended {
                return Err(io::Error::other(format!("go-control-plane ended before {what}")));
            }
            // The sender lives in `self`, so only time can end this.
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, self.timed_out(what)));
            }
        }
    }

    fn timed_out(&self, what: &str) -> String {
        let said = self.shared.lock();
        let last = said.events.iter().rev().take(12).rev().map(|event| format!("\n  {event:?}"));
        let count = said.events.len();
        format!("waited {PATIENCE:?} in vain for {what}; {count} events came, the last:{}", last.collect::<String>())
    }
}

impl Drop for GoControlPlane {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

fn listen(stdout: ChildStdout, shared: Arc<Shared>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            let mut said = shared.lock();
            let address = |name: &str| line[name].as_str().and_then(|text| text.parse().ok());
            if let Some(number) = line["set"].as_u64() {
                said.set = number;
                said.refused.extend(line["error"].as_str().map(str::to_owned));
            } else if let (Some(grpc), Some(rest)) = (address("grpc"), address("rest")) {
                said.addresses = Some((grpc, rest));
            } else {
                said.events.push(Event::of(&line));
            }
            drop(said);
            shared.changes.send_modify(|count| *count += 1);
        }
        shared.lock().ended = true;
        shared.changes.send_modify(|count| *count += 1);
    });
}

/// Whether Go is there to build the program with.
///
/// # Errors
/// What is missing.
pub fn available() -> Result<(), String> {
    match Command::new("go").arg("version").output() {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("cannot run go ({e}); install the version that {SOURCES}/go.mod names")),
    }
}

/// Reads messages from protobuf's JSON with the strict parser of Go's library: `(type, text)` each, with the error where
/// a text is no such message. Unknown fields are errors, as are types in an Any that are not linked in
/// (`go-control-plane/parse/types.go`).
///
/// # Errors
/// When the program cannot be built or run.
pub fn strictly_parsed(messages: &[(&str, &str)]) -> io::Result<Vec<Result<(), String>>> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| build("go-strict-parse", "./parse")).clone().map_err(io::Error::other)?;
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the parser has no standard streams"));
    };
    let mut answers = BufReader::new(stdout).lines();
    let mut parsed = Vec::new();
    for (of_type, text) in messages {
        writeln!(stdin, "{}", json!({ "type": of_type, "text": text }))?;
        let line = answers.next().ok_or_else(|| io::Error::other("the parser ended"))??;
        let answer: Value = serde_json::from_str(&line)?;
        match answer["error"].as_str() {
            Some("") => parsed.push(Ok(())),
            Some(error) => parsed.push(Err(error.to_owned())),
            None => return Err(io::Error::other(format!("the parser said {line}"))),
        }
    }
    drop(stdin);
    child.wait().map(|_| parsed)
}

/// The program, built once per process.
fn program() -> io::Result<PathBuf> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PROGRAM.get_or_init(|| build("go-control-plane", ".")).clone().map_err(io::Error::other)
}

fn build(name: &str, package: &str) -> Result<PathBuf, String> {
    let target = crate::proxy::target_dir()?;
    let program = target.join(name);
    let mut go = Command::new("go");
    go.args(["build", "-buildvcs=false", "-o"]).arg(&program).arg(package).current_dir(Path::new(SOURCES));
    let built = go.output().map_err(|e| format!("cannot run go: {e}"))?;
    match built.status.success() {
        true => Ok(program),
        false => Err(format!("`go build` failed in {SOURCES}:\n{}", String::from_utf8_lossy(&built.stderr))),
    }
}
