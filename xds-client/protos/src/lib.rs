//! Envoy's message types, their descriptors, and JSON and YAML to and from protobuf.
//!
//! [`pb`] has the types themselves (prost and tonic), [`extra`] the few that Envoy's own tree lacks: `TypedStruct` and
//! Istio's. [`Descriptors`] reads configuration files with every leniency of Envoy's loader and prints messages as its
//! admin pages do. Nothing here knows what a message means.

mod convert;
mod descriptors;
mod encode;
mod error;
pub mod extra;
mod inspect;
mod json;
#[allow(dead_code, reason = "shared with the build script, which uses the other half")]
mod layout;
mod near;
mod node;
mod print;
#[cfg(test)]
mod quirks;
mod redact;
mod rules;
mod scalar;
pub mod table;
#[cfg(test)]
mod tests;
mod text;
pub mod wire;
mod yaml;

pub use convert::{duration, json_to_struct, json_to_value, struct_to_json, to_proto_duration, value_to_json};
pub use descriptors::{Descriptors, Format, ParseOptions, Parsed};
pub use envoy_types::pb;
pub use error::{FieldPath, LoadError, Position};
pub use extra::TypedStruct;
pub use inspect::{Findings, MAX_FINDINGS};
pub use json::load_json;
pub use near::{nearest, nearest_type};
pub use node::{Key, MAX_DEPTH, Node, Value};
pub use print::{Style, to_pretty};
pub use rules::{MAX_VIOLATIONS, Violation};
pub use yaml::load_yaml;
