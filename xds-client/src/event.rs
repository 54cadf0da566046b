//! What a consumer sees of a stream: its state, and responses that must each be answered once.

use std::fmt;
use std::time::{Duration, Instant};

use xds_protos::pb::google::protobuf::Any;

use crate::types::TypeUrl;

/// Something that happened on the stream. See [`Events`](crate::Events).
#[derive(Debug)]
pub enum Event {
    /// There is a connection and requests flow. Whether the server accepts the stream shows later. Of a source that is
    /// polled or read: it gave something that can be used.
    Connected,
    /// No stream any more, or the attempt to have one failed, or a poll or a file did not give what it should. The client
    /// tries again by itself, for ever; what was received stays valid.
    Disconnected {
        /// For a person: what happened, with its causes.
        error: String,
        /// The gRPC status; `None` if the failure was below gRPC, that is no connection came about.
        code: Option<tonic::Code>,
        /// When the next attempt begins; `Duration::MAX` for a file, which is read again when it is replaced.
        retry_in: Duration,
    },
    /// The server sent resources.
    Response(Response),
}

/// What the resources of a response stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// State of the world. For types whose subscription is a wildcard, what is absent is gone. For subscriptions by name
    /// (endpoints, routes, secrets) servers may leave out what did not change.
    Full,
    /// What changed. What is gone is named in [`Response::removed`].
    Delta,
}

/// One message of the server. Apply it, then [`ack`](Response::ack) or [`nack`](Response::nack) it: the server counts the
/// answer as "runs with it", not as "received it". A response that is dropped is refused, with a detail that says so.
///
/// All fields may be moved out; `answer` then takes the place of the two methods:
/// ```
/// use xds_client::{Kind, Response, Resource, TypeUrl, Verdict};
/// let (response, verdict) = Response::new(TypeUrl::SECRET, "1", Kind::Full, vec![Resource::default()]);
/// let Response { resources, answer, .. } = response;
/// assert_eq!(resources.len(), 1);
/// answer.nack("bad key", &["default".to_string()]);
/// assert!(matches!(verdict.get(), Some(Verdict::Nack { detail, .. }) if detail == "bad key"));
/// ```
#[derive(Debug)]
pub struct Response {
    /// Type of the resources. That each resource's own `Any` names this type is for the consumer to check as it decodes.
    pub type_url: TypeUrl,
    /// `system_version_info` (delta) or `version_info`.
    pub version: String,
    /// The server's name for this message.
    pub nonce: String,
    /// Everything, or what changed.
    pub kind: Kind,
    /// New and changed resources.
    pub resources: Vec<Resource>,
    /// Names of resources that are gone (delta). One that never was there was asked for and does not exist.
    pub removed: Vec<String>,
    /// The time to live of what is `removed` ran out. The server did not say that, and awaits no answer; in state of the
    /// world, too, such a response is of [`Kind::Delta`].
    pub expired: bool,
    /// Resources the server could not give, and why.
    pub errors: Vec<ResourceError>,
    /// `control_plane.identifier`, empty if the server gave none.
    pub control_plane: String,
    /// Size of the message on the wire, uncompressed, without gRPC framing.
    pub bytes: usize,
    /// When its last byte was there.
    pub received: Instant,
    /// The answer still owed.
    pub answer: Answer,
}

impl Response {
    /// A response that did not come from a stream (for a file watcher, or a test), and a view of its answer.
    pub fn new(
        type_url: TypeUrl,
        version: impl Into<String>,
        kind: Kind,
        resources: Vec<Resource>,
    ) -> (Response, VerdictSlot) {
        let slot = VerdictSlot::default();
        let filled = slot.clone();
        let response = Response {
            type_url,
            version: version.into(),
            nonce: String::new(),
            kind,
            bytes: resources.iter().filter_map(|r| r.body.as_ref()).map(|any| any.value.len()).sum(),
            resources,
            removed: Vec::new(),
            expired: false,
            errors: Vec::new(),
            control_plane: String::new(),
            received: Instant::now(),
            answer: Answer::new(move |verdict| {
                *filled.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(verdict);
            }),
        };
        (response, slot)
    }

    /// The names that occur more than once among `resources` and `removed`: which of them holds cannot be known. Of a delta
    /// response they are refused even if the response is acknowledged, and count as not held; in state of the world it is
    /// for the consumer to refuse them.
    ///
    /// ```
    /// use xds_client::{Kind, Resource, Response, TypeUrl};
    /// let named = |name: &str| Resource { name: name.into(), ..Resource::default() };
    /// let resources = vec![named("a"), named("b"), named("c"), named("a")];
    /// let (mut response, _) = Response::new(TypeUrl::CLUSTER, "1", Kind::Delta, resources);
    /// response.removed = vec!["c".into(), "d".into()];
    /// assert_eq!(response.duplicates(), ["a", "c"]);
    /// ```
    pub fn duplicates(&self) -> Vec<&str> {
        duplicates(&self.resources, &self.removed)
    }

    /// Everything was applied.
    pub fn ack(self) {
        self.answer.ack();
    }

    /// Something was refused. `detail` tells the server's operator what and why. `refused` names the resources (also of
    /// `removed`) that were not taken: what is in the response and not in the list counts as applied. An empty list
    /// means that nothing of the response was taken.
    pub fn nack(self, detail: impl Into<String>, refused: &[String]) {
        self.answer.nack(detail, refused);
    }
}

/// See [`Response::duplicates`]; sorted.
pub(crate) fn duplicates<'a>(resources: &'a [Resource], removed: &'a [String]) -> Vec<&'a str> {
    let mut names: Vec<&str> = resources.iter().map(|r| r.name.as_str()).collect();
    names.sort_unstable();
    let mut more: Vec<&str> = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    more.extend(removed.iter().map(String::as_str).filter(|name| names.binary_search(name).is_ok()));
    more.sort_unstable();
    more.dedup();
    more
}

/// Where the answer to a response made by [`Response::new`] arrives.
#[derive(Clone, Debug, Default)]
pub struct VerdictSlot(std::sync::Arc<std::sync::Mutex<Option<Verdict>>>);

impl VerdictSlot {
    /// The answer, if it was given.
    pub fn get(&self) -> Option<Verdict> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Applied.
    Ack,
    /// Refused, in whole or in part; see [`Response::nack`].
    Nack {
        /// For the server's operator.
        detail: String,
        /// What was not taken; empty for everything.
        refused: Vec<String>,
    },
}

/// The answer owed for a response: given once, and given as a refusal if it is dropped.
pub struct Answer(Option<Box<dyn FnOnce(Verdict) + Send>>);

impl Answer {
    /// An answer that is handed to `give`.
    pub fn new(give: impl FnOnce(Verdict) + Send + 'static) -> Self {
        Answer(Some(Box::new(give)))
    }

    /// Nobody waits for it.
    pub(crate) fn none() -> Self {
        Answer(None)
    }

    /// See [`Response::ack`].
    pub fn ack(mut self) {
        self.give(Verdict::Ack);
    }

    /// See [`Response::nack`].
    pub fn nack(mut self, detail: impl Into<String>, refused: &[String]) {
        self.give(Verdict::Nack { detail: detail.into(), refused: refused.to_vec() });
    }

    fn give(&mut self, verdict: Verdict) {
        if let Some(give) = self.0.take() {
            give(verdict);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let detail = "the client dropped this response without applying it".to_string();
        self.give(Verdict::Nack { detail, refused: Vec::new() });
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Answer(owed)" } else { "Answer(given)" })
    }
}

/// One resource of a response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    /// Its name. For a plain state-of-the-world resource it is read from field 1 of the message, where every xDS type
    /// keeps it, without decoding the rest; empty if there is no such field.
    pub name: String,
    /// Other names by which it may have been asked for.
    pub aliases: Vec<String>,
    /// Its own version (delta), else empty: the response's version holds.
    pub version: String,
    /// After this long without a new response or heartbeat it counts as removed: the client then makes a response that
    /// says so (see [`Response::expired`]).
    pub ttl: Option<Duration>,
    /// The message. `None` is a heartbeat, or the news that there is no such resource: so a server answers who asked for
    /// a virtual host by one of its `aliases`.
    pub body: Option<Any>,
    /// The resource is alive and as it was: this only renews its time to live. In a response of [`Kind::Full`] it counts
    /// as present.
    pub heartbeat: bool,
}

/// A resource the server could not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceError {
    /// Its name.
    pub name: String,
    /// A gRPC code, such as `NotFound`.
    pub code: tonic::Code,
    /// For a person.
    pub message: String,
}
