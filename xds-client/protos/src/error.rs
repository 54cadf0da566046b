//! What is wrong with a configuration file, told in one line.

use std::fmt;

/// A place in a text; both count from 1, and 0 means unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// One thing that keeps a text from becoming a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadError {
    /// The file, when the text came from one.
    pub file: Option<String>,
    /// Path of the field, like `static_resources.clusters[0].connect_timeout`; empty for the text as a whole.
    pub path: String,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub expected: String,
    /// Where it stands.
    pub at: Position,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            f.write_str(file)?;
            if self.at.line != 0 {
                write!(f, ":{}:{}", self.at.line, self.at.column)?;
            }
            f.write_str(": ")?;
        } else if self.at.line != 0 {
            write!(f, "line {} column {}: ", self.at.line, self.at.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

impl std::error::Error for LoadError {}

/// A field that a check is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath {
    /// Where it was set, like `static_resources.clusters[0].http2_protocol_options`.
    pub path: String,
    /// Its full name, like `envoy.config.cluster.v3.Cluster.http2_protocol_options`.
    pub name: String,
}
