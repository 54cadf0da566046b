//! Outrigger: an Envoy-compatible data plane.
pub mod config;
