//! The xDS transport protocol, client side: keeps a stream to a control plane, says what is wanted, hands over what comes,
//! and answers it once the consumer has applied it.
//!
//! - Both wire modes ([`Mode::Delta`], [`Mode::Sotw`]), over the aggregated stream or the service of one type
//!   ([`Method`]), through any byte stream ([`Connect`]): TCP and Unix sockets are here, TLS is a connector of yours.
//! - Every response is answered exactly once, when the consumer says so: [`Response::ack`] after it was applied,
//!   [`Response::nack`] if something was refused. Dropping a response refuses it.
//! - Streams that end or never come about are tried again for ever, with full-jitter back-off; a new delta stream tells
//!   the server what is held, so that only what changed is sent again. What was refused does not count as held.
//! - Subscription changes never travel in an acknowledgement, and carry no nonce in delta: servers such as Istio's
//!   ignore or log them otherwise.
//! - A consumer that is slow slows the server: queues are bounded.
//!
//! This crate knows the names of the resource types and of the services that carry them. What a cluster or a listener
//! is, it does not know: bodies are handed over as they came.
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
