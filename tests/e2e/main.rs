//! The binary as a client, an upstream or an operator sees it.
//!
//! Every test runs a real proxy with Envoy's configuration and flags. `OUTRIGGER_BIN=<path of Envoy 1.40>` runs the
//! same bodies on the real Envoy, which all of them but `cli` pass: what they assert is Envoy's behaviour.

mod support;

mod access_log;
mod admin;
mod answers;
mod bad_input;
mod cli;
mod discovery;
mod ecds;
mod failures;
mod go_control_plane;
mod health;
mod make_before_break;
mod messages;
mod netns;
mod pages;
mod reach;
mod routing;
mod sources;
mod tcp;
mod tls;
mod upstream;
mod validate;
mod xds;
