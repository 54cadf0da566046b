//! What the fuzz targets share: the limit on memory, messages made by descriptor, and the types under test.

mod memory;
mod message;

pub use memory::{Limited, limited};
pub use message::{Random, mutate};

use outrigger::config;

/// The resources under test; the first byte of an input chooses among them.
pub const TYPES: [&str; 5] = [config::CLUSTER, config::LISTENER, config::ROUTE, config::ASSIGNMENT, config::SECRET];

/// The bootstrap's full name.
pub const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// The type that an input is about, and its body.
pub fn split(input: &[u8]) -> Option<(&'static str, &[u8])> {
    let (first, body) = input.split_first()?;
    Some((TYPES[usize::from(*first) % TYPES.len()], body))
}

/// The full name in a type URL.
pub fn full_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// A context that finds no file, whatever an input names.
pub fn context() -> config::Context {
    let mut context = config::Context::default();
    context.base_dir = "/nonexistent".into();
    context
}
