//! The end-to-end harness: everything around a proxy that a test, an example or a benchmark needs.
//!
//! - [`proxy`]: starts our binary (and, for parity, the real Envoy) and talks to its admin page
//! - [`load`]: an open-loop load generator
//! - [`origin`]: servers that answer with their version and misbehave on demand
//! - [`client`]: raw bytes, HTTP/1.1, HTTP/2, gRPC and WebSocket clients, plain and TLS
//! - [`netns`]: network namespaces with the real redirect rules (root only)
//! - [`control_plane`]: an ADS server that keeps istiod's rules and breaks them on demand
//! - [`go_control_plane`]: a control plane made with the go-control-plane library, in a process of its own
//! - [`config`]: the usual resources as protobuf messages, and bootstraps as YAML
//!
//! Servers here run on threads of their own and listen on port 0; dropping one closes its sockets at once, as if its
//! process had died. Nothing here knows how the proxy is built: only what it shows on the wire and on its admin page.

pub mod client;
pub mod config;
pub mod control_plane;
pub mod go_control_plane;
pub mod load;
pub mod netns;
pub mod origin;
pub mod proxy;
mod runtime;
