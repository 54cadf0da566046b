//! Protobuf in, checked model out. The only rooms that name an Envoy message.

mod error;
pub mod model;

pub use error::{ConfigError, Notices};
