//! Protobuf in, checked model out. The only rooms that name an Envoy message.

pub mod model;
