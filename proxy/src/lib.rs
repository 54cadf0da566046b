//! Outrigger: an Envoy-compatible data plane, driven by xDS.
//!
//! The rooms, from the top: `server` and `discovery` know all others; `listener` accepts connections and gives them to
//! `network` and `http`; these reach endpoints through `upstream` and `tls`; `stats`, `access_log`, `net`,
//! `runtime` and `config::model` know nothing of who uses them.

pub mod access_log;
pub mod admin;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod drain;
mod dynamic_filter;
pub mod http;
pub mod listener;
pub mod net;
pub mod network;
pub mod runtime;
pub mod server;
pub mod services;
pub mod slots;
pub mod stats;
pub mod tls;
pub mod upstream;
