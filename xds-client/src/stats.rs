//! What can be counted of a stream, for a user that counts. Knows no stats library.

use std::fmt;

use crate::types::TypeUrl;

/// Told of what happens on a stream, a polled service or a watched file, as it happens, by the client's task: it must return quickly and not call the client.
/// What it does not want to know it leaves out.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use xds_client::{Said, Stats, TypeUrl};
///
/// #[derive(Debug, Default)]
/// struct Refusals(AtomicU64);
/// impl Stats for Refusals {
///     fn request_sent(&self, _: &TypeUrl, said: Said, _: usize) {
///         if said == Said::Nack {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// let options = xds_client::Options { stats: std::sync::Arc::new(Refusals::default()), ..Default::default() };
/// ```
pub trait Stats: fmt::Debug + Send + Sync + 'static {
    /// There is a connection, and a stream is opened on it; or a service or a file gave something that can be used, after it
    /// did not.
    fn connected(&self) {}
    /// The stream ended, or an attempt to have one failed, or a poll or a file did not give what it should.
    fn disconnected(&self) {}
    /// A request went out, of so many bytes.
    fn request_sent(&self, _type_url: &TypeUrl, _said: Said, _bytes: usize) {}
    /// A response came in, of so many bytes.
    fn response_received(&self, _type_url: &TypeUrl, _bytes: usize) {}
    /// A response was not handed over, because nobody asked for its type on this stream. It was counted as received.
    fn response_unwanted(&self, _type_url: &TypeUrl, _bytes: usize) {}
    /// A request was held back for want of a token: Envoy's `control_plane.rate_limit_enforced`.
    fn rate_limited(&self) {}
    /// So many requests wait for a token: Envoy's gauge `control_plane.pending_requests`. Told on limited streams only.
    fn pending_requests(&self, _waiting: usize) {}
    /// The time to live of so many resources ran out.
    fn expired(&self, _type_url: &TypeUrl, _resources: usize) {}
}

/// What a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// What is wanted.
    Subscription,
    /// A response was applied.
    Ack,
    /// A response was refused, in whole or in part.
    Nack,
}

/// Nobody counts.
#[derive(Debug)]
pub(crate) struct NoStats;

impl Stats for NoStats {}
