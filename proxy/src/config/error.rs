//! What conversion says of a configuration: errors that refuse it, and notices of fields that have no effect.

use super::answers::Deprecated;
use std::fmt;

/// Why a resource is refused. One line: where, what was found, what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Path of the field inside its resource, e.g. `filter_chains[0].filters[1].typed_config.route_config`.
    pub path: String,
    pub message: String,
}

impl ConfigError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { path: path.into(), message: message.into() }
    }

    /// The same error seen from the message that holds `field`.
    #[must_use]
    pub fn inside(mut self, field: &str) -> ConfigError {
        self.path = match self.path.as_str() {
            "" => field.to_owned(),
            rest if rest.starts_with('[') => format!("{field}{rest}"),
            rest => format!("{field}.{rest}"),
        };
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// What a person should hear of a resource that is not refused. Collected while it is converted.
#[derive(Debug, Default)]
pub struct Notices {
    /// Fields that were set and have no effect here: path, and what that means.
    pub warnings: Vec<(String, String)>,
    /// Paths of fields that the API does not have.
    pub unknown: Vec<String>,
    /// Deprecated fields in use.
    pub deprecated: Vec<Deprecated>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_grows_outwards() {
        let e = ConfigError::new("", "boom").inside("c").inside("[1]").inside("b").inside("a");
        assert_eq!(e.to_string(), "a.b[1].c: boom");
    }
}
