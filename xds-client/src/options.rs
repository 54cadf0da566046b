//! What a user of the library may choose about a stream, with Envoy's values as the defaults.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use xds_protos::pb::envoy::config::core::v3::Node;

use crate::stats::{NoStats, Stats};
use crate::types::{Method, Mode};

/// Features of a client that a server may want to know of (Envoy docs, "Well Known Client Features").
const RESOURCE_TTL: &str = "xds.config.supports-resource-ttl";
const RESOURCE_IN_SOTW: &str = "xds.config.resource-in-sotw";

/// How one client speaks to its server.
///
/// ```
/// use xds_client::{Method, Mode, Options, TypeUrl, pb::envoy::config::core::v3::Node};
/// let node = Node { id: "sidecar~10.0.0.1~a.default~default.svc".into(), ..Default::default() };
/// let ads = Options::new(node.clone());
/// assert_eq!((ads.mode, ads.method), (Mode::Delta, Method::Aggregated));
/// let sds = Options { mode: Mode::Sotw, method: Method::Type(TypeUrl::SECRET), ..Options::new(node) };
/// assert!(sds.set_node_on_first_message_only);
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// Delta or state of the world.
    pub mode: Mode,
    /// The aggregated stream, or the service of one type.
    pub method: Method,
    /// Who asks. Istio's server refuses a stream whose first message has no node id.
    pub node: Node,
    /// Waits between attempts to have a stream.
    pub backoff: Backoff,
    /// Send `node` once per stream rather than in every request. Envoy's `ApiConfigSource` field of that name.
    pub set_node_on_first_message_only: bool,
    /// Largest response accepted, in bytes; a larger one ends the stream with `OUT_OF_RANGE`.
    pub max_message_bytes: usize,
    /// Most resources in a response, and names of removed ones; more end the stream with `OUT_OF_RANGE`. Small ones take
    /// hundreds of times their size once they are decoded.
    pub max_resources: usize,
    /// HTTP/2 receive window of the stream, in bytes. Below 16 MB large pushes pay round trips, and h2 counts a peer
    /// that sends many small DATA frames as hostile (its budget is half of the connection window).
    pub stream_window_bytes: u32,
    /// HTTP/2 receive window of the connection, in bytes.
    pub connection_window_bytes: u32,
    /// Longest wait for transport and HTTP/2 connection of one attempt. Envoy's default cluster `connect_timeout`.
    pub connect_timeout: Duration,
    /// HTTP/2 pings, which find a server that vanished without closing its connection; `None` sends none.
    pub keepalive: Option<Keepalive>,
    /// Events that may wait for a slow consumer; when they do, the stream is no longer read. At least 1; one more is in the
    /// reader's hands.
    pub event_queue: usize,
    /// Value of the `user-agent` header, in front of the name and version of the gRPC library. Must be a legal header
    /// value, or it is left out.
    pub user_agent: String,
    /// Headers sent with each stream, such as `authorization`. Those of gRPC itself (`content-type`, `te`, `user-agent`) cannot
    /// be set here. Envoy's `initial_metadata`.
    pub metadata: HeaderMap,
    /// Most requests in a time, all together; `None` for no limit. Envoy's `rate_limit_settings`.
    pub rate_limit: Option<RateLimit>,
    /// Announce in the node that resources may have a time to live, and in state of the world a wrapper that says so. What
    /// comes with one is honoured in any case.
    pub announce_resource_ttl: bool,
    /// Who counts.
    pub stats: Arc<dyn Stats>,
}

impl Options {
    /// An aggregated delta stream for this node, with Envoy's defaults.
    pub fn new(node: Node) -> Self {
        Options {
            mode: Mode::Delta,
            method: Method::Aggregated,
            node,
            backoff: Backoff::default(),
            set_node_on_first_message_only: true,
            max_message_bytes: 64 << 20,
            max_resources: 250_000,
            stream_window_bytes: 16 << 20,
            connection_window_bytes: 16 << 20,
            connect_timeout: Duration::from_secs(5),
            keepalive: Some(Keepalive::default()),
            event_queue: 4,
            user_agent: "xds-client".into(),
            metadata: HeaderMap::new(),
            rate_limit: None,
            announce_resource_ttl: false,
            stats: Arc::new(NoStats),
        }
    }

    /// The node with the features it announces.
    pub(crate) fn announced_node(&self) -> Node {
        let mut node = self.node.clone();
        let sotw = (self.mode == Mode::Sotw).then_some(RESOURCE_IN_SOTW);
        let features = std::iter::once(RESOURCE_TTL).chain(sotw).filter(|_| self.announce_resource_ttl);
        for feature in features {
            if !node.client_features.iter().any(|known| known == feature) {
                node.client_features.push(feature.into());
            }
        }
        node
    }
}

impl Default for Options {
    /// [`Options::new`] with an empty node.
    fn default() -> Self {
        Options::new(Node::default())
    }
}

/// HTTP/2 ping keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Between pings. The default is 6 minutes: servers of grpc-go close connections that ping more often than every
    /// 5 minutes (`too_many_pings`) unless they were told otherwise.
    pub interval: Duration,
    /// Longest wait for the answer, after which the connection counts as dead. Default 20 s.
    pub timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Keepalive { interval: Duration::from_secs(360), timeout: Duration::from_secs(20) }
    }
}

/// A token bucket: `burst` requests at once, and `per_second` in the long run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Tokens that the bucket holds, and starts with; `max_tokens` of Envoy. At least 1 is used.
    pub burst: u32,
    /// Tokens added in a second; `fill_rate` of Envoy. What is not above zero counts as one in ten years.
    pub per_second: f64,
}

impl Default for RateLimit {
    /// Envoy's: 100 at once, 10 per second.
    fn default() -> Self {
        RateLimit { burst: 100, per_second: 10.0 }
    }
}

/// Exponential back-off with full jitter: the n-th wait is drawn evenly from `0 .. min(base * 2^n, max)`, which spreads
/// the clients of a restarted server best (Envoy's `JitteredExponentialBackOffStrategy`).
///
/// ```
/// use std::time::Duration;
/// let backoff = xds_client::Backoff::default();
/// assert_eq!((backoff.base, backoff.max), (Duration::from_millis(500), Duration::from_secs(30)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first wait.
    pub base: Duration,
    /// Upper bound of every wait.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// Upper bound of the wait after `failures` failures in a row before this one.
    pub fn bound(&self, failures: u32) -> Duration {
        self.base.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(self.max)
    }

    /// A wait drawn for that attempt.
    pub(crate) fn draw(&self, failures: u32) -> Duration {
        self.bound(failures).mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_stay_there() {
        let b = Backoff::default();
        let bounds: Vec<_> = (0..8).map(|n| b.bound(n).as_millis()).collect();
        assert_eq!(bounds, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(b.bound(u32::MAX), b.max);
        for n in [0, 3, 40] {
            assert!((0..100).all(|_| b.draw(n) <= b.bound(n)));
        }
    }
}
