//! The table of answers: for every field of every message that configuration may hold, what becomes of it here.
//!
//! The table is text beside the conversion code, one file per subject: `act` (conversion reads it), `warn` (known, set,
//! without effect), `reject` (refused, with the reason) or `idle` (nothing that exists here depends on it: no effect is
//! lost). One walk over the wire bytes says all that the table has to
//! say; conversion adds only what depends on values. Tests hold the table against the descriptors and the conversion.

mod runtime;
#[cfg(test)]
mod support;
mod table;
#[cfg(test)]
mod tests;
mod walk;

pub use runtime::runtime_key;
pub use table::{Answer, MessageAnswers, table};
pub use walk::{Deprecated, Findings, Unknown, Warned, walk};
