//! The API's own constraints (protoc-gen-validate's), checked on a message's wire form.
//!
//! Envoy has code generated from these rules and refuses what breaks them; this reads them from the descriptors instead
//! and says the same in the same words, but says all of it at once. It looks into every Any whose type is known, as
//! Envoy does when the extension is made, but for the few that Envoy makes without a look at the rules. It also holds
//! every duration to what Envoy can count.

mod bounds;
mod check;
mod compile;
#[cfg(test)]
mod tests;
mod text;
mod walk;

use std::fmt;

use crate::table::Message;

/// More violations than this are not collected: each holds strings, and a message may have as many as it has bytes.
pub const MAX_VIOLATIONS: usize = 10_000;

/// A constraint that a message breaks. As text it reads as Envoy's own error does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where, like `static_resources.clusters[0].connect_timeout` or `typed_per_filter_config["k"].abort`.
    pub path: String,
    /// What Envoy calls it: `ClusterValidationError.ConnectTimeout`, or the bare name of a oneof.
    pub field: String,
    /// What is wrong: `value must be greater than 0s`.
    pub reason: String,
    /// The same for the messages around it, outermost first, up to the nearest Any: Envoy checks what that holds alone.
    pub outer: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proto constraint validation failed (")?;
        for outer in &self.outer {
            write!(f, "{outer}: embedded message failed validation | caused by ")?;
        }
        if self.field.contains('.') {
            write!(f, "{}: {})", self.field, self.reason)
        } else {
            write!(f, "field: \"{}\", reason: {})", self.field, self.reason)
        }
    }
}

/// All that a message breaks, in Envoy's order, so that the first is the one that Envoy names; `None` when the bytes
/// are no message.
pub(crate) fn violations(message: Message, bytes: &[u8]) -> Option<Vec<Violation>> {
    walk::walk(message, bytes)
}
