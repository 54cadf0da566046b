//! The xDS transport protocol, client side: keeps a stream to a control plane, says what is wanted, hands over what comes,
//! and answers it once the consumer has applied it.
//!
//! - Both wire modes ([`Mode::Delta`], [`Mode::Sotw`]), over the aggregated stream or the service of one type
//!   ([`Method`]), through any byte stream ([`Connect`]): TCP and Unix sockets are here, TLS is a connector or a
//!   [`Handshake`] of yours. Files ([`Client::watch_file`]) and REST services ([`Client::poll`]) yield the same events.
//! - Every response is answered exactly once, when the consumer says so: [`Response::ack`] after it was applied,
//!   [`Response::nack`] if something was refused. Dropping a response refuses it.
//! - Streams that end or never come about are tried again for ever, with full-jitter back-off; a new delta stream tells
//!   the server what is held, so that only what changed is sent again. What was refused does not count as held.
//! - Subscription changes never travel in an acknowledgement, and carry no nonce in delta: servers such as Istio's
//!   ignore or log them otherwise.
//! - A new state-of-the-world stream names the version that was taken last, if the consumer has everything it stands for;
//!   where names were added since, dropped and wanted again, have expired, or were refused in part, it names none, and the
//!   server sends all of it. So what a server believes to have been seen leaves no gap.
//! - A consumer that is slow slows the server: queues are bounded.
//!
//! **Order of answers.** Responses are handed over in the order in which they came, and should be applied in it. Their answers
//! may be given in any order and at any time: what is held, and what expires, follows the order of the responses.
//!
//! **Memory.** A client holds [`Options::event_queue`] responses and one more, each of at most
//! [`Options::max_message_bytes`] and [`Options::max_resources`], what the HTTP/2 windows let the server send, the names and
//! versions that the consumer has, and at most 1,024 answers that the server has not read: behind these the stream is not
//! read on, nor is it if answers of a type that is [held back](Client::pause) pile up so far.
//!
//! **Closing.** Dropping the last [`Client`] ends the stream; what is queued for [`Events`] by then is still handed over.
//! Answers that are owed may be given later, and lead nowhere.
//!
//! This crate knows the names of the resource types and of the services that carry them. What a cluster or a listener
//! is, it does not know: bodies are handed over as they came.
//!
//! | Of the protocol | Here |
//! |---|---|
//! | delta and state of the world; aggregated, or one type | [`Options::mode`], [`Options::method`] |
//! | `envoy_grpc` | a [`Connect`] of yours; [`TcpConnector`], [`UnixConnector`] |
//! | `google_grpc` `target_uri` | [`Target`], [`TargetConnector`]; credentials are yours to give ([`Handshake`]) or refuse |
//! | REST polling | [`Client::poll`], [`RestOptions`]; JSON |
//! | `path_config_source`, `watched_directory` | [`Client::watch_file`], [`FileOptions`]; YAML, JSON, binary, not text format |
//! | wildcard, names, both | [`Subscription`]; the wildcard beside names is the name `*` |
//! | names and collections of `xdstp:` | refused: [`SubscribeError`] |
//! | on demand, aliases (VHDS) | subscribe `route_config/domain`; [`Resource::aliases`]; [`Resource::body`] is `None` if there is none |
//! | types nobody asked for | on the aggregated stream passed over, as by Envoy; on a stream of one type refused |
//! | a name twice in a delta response | [`Response::duplicates`]; refused, and not held |
//! | resources that do not exist | delta: in [`Response::removed`]; else they do not come, and waiting is the consumer's |
//! | `Resource` in state of the world, times to live, heartbeats | [`Options::announce_resource_ttl`], [`Response::expired`], [`Resource::heartbeat`] |
//! | `initial_resource_versions` | at the begin of each delta stream, once every response of the last is answered |
//! | `set_node_on_first_message_only` | [`Options::set_node_on_first_message_only`], on by default |
//! | `rate_limit_settings` | [`Options::rate_limit`], off by default |
//! | pausing of types | [`Client::pause`] |
//! | partial refusal | [`Response::nack`] with the names that were refused |
//! | stats | [`Stats`] |
//! | `initial_fetch_timeout`, warming | the consumer's |
//! | load reports, `dynamic_parameter_constraints`, xDS failover | not here |
//!
//! ```no_run
//! use std::sync::Arc;
//! use xds_client::{Client, Event, Method, Mode, Options, Subscription, TypeUrl, UnixConnector};
//!
//! # async fn run(node: xds_client::pb::envoy::config::core::v3::Node) {
//! // Certificates from an agent beside us.
//! let options = Options { mode: Mode::Sotw, method: Method::Type(TypeUrl::SECRET), ..Options::new(node) };
//! let (client, mut events) = Client::start(options, Arc::new(UnixConnector::new("/run/agent/sds.sock")));
//! client.subscribe(&TypeUrl::SECRET, Subscription::names(["default", "ROOTCA"]));
//! while let Some(event) = events.next().await {
//!     if let Event::Response(response) = event {
//!         match response.resources.iter().find(|r| r.body.is_none()) {
//!             None => response.ack(),
//!             Some(empty) => {
//!                 let name = empty.name.clone();
//!                 response.nack(format!("secret {name} has no body"), &[name]);
//!             }
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! Files are watched with Linux's inotify; the crate is for Linux.
//!
//! What it follows: Envoy's documentation page "xDS REST and gRPC protocol", and what Envoy 1.40 does on the wire.

mod client;
mod connect;
mod directory;
mod event;
mod file;
mod grpc;
mod limit;
mod options;
mod rest;
mod state;
mod stats;
mod target;
mod text;
mod types;
mod wire;

pub use client::{Client, Events, Paused};
pub use connect::{BoxIo, Connect, Io, TcpConnector, UnixConnector};
pub use directory::{Directory, Moves};
pub use event::{Answer, Event, Kind, Resource, ResourceError, Response, Verdict, VerdictSlot};
pub use file::FileOptions;
pub use futures_util::future::BoxFuture;
pub use options::{Backoff, Keepalive, Options, RateLimit};
pub use rest::RestOptions;
pub use stats::{Said, Stats};
pub use target::{Handshake, Target, TargetConnector, TargetError};
pub use tonic::Code;
pub use types::{Method, Mode, SubscribeError, Subscription, TypeUrl};
pub use xds_protos::pb;
pub use xds_protos::pb::google::protobuf::Any;
