//! HTTP: the connection manager, one exchange at a time, its routes and its rules for paths and headers.
//!
//! A connection (`connection`) turns each request into an [`exchange::Exchange`], which passes through path and header
//! rules, is routed (`routes`) and then answered here (`local_reply`) or sent to an endpoint (`forward`).

mod alarm;
mod body;
mod connection;
mod exchange;
mod forward;
mod head;
mod headers;
mod io;
mod linger;
mod local_reply;
mod manager;
mod names;
mod path;
mod request_body;
mod retry;
mod rewrite;
mod routes;
mod rules;
mod stats;
#[cfg(test)]
mod tests;
mod timeouts;
mod upgrade;
mod upstream_stats;
mod xfcc;

pub use manager::ConnectionManager;
pub use routes::RouteTable;
