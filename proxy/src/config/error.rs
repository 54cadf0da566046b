//! What conversion says of a configuration: errors that refuse it, and notices of fields that have no effect.

use super::answers::Deprecated;
use std::fmt;

/// Problems that the text of an error lists; further ones are only counted, so that a NACK stays readable.
const LISTED: usize = 20;

/// What sort of problem it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProblemKind {
    /// The text or the bytes are no such message.
    Syntax,
    /// A rule that the API itself states for the field is broken.
    Rule,
    /// Valid, and refused here because it would not be honoured.
    Unsupported,
    /// Anything else that makes no sense: values, references, duplicates, files.
    #[default]
    Invalid,
}

impl ProblemKind {
    /// As `--mode validate --format json` prints it.
    pub fn name(self) -> &'static str {
        match self {
            ProblemKind::Syntax => "syntax",
            ProblemKind::Rule => "rule",
            ProblemKind::Unsupported => "unsupported",
            ProblemKind::Invalid => "invalid",
        }
    }
}

/// Why a resource is refused: where, what was found, what is expected. It may be more than one problem; then the
/// others follow the first, each with a path of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Path of the field inside its resource, e.g. `filter_chains[0].filters[1].typed_config.route_config`.
    pub path: String,
    /// One line.
    pub message: String,
    pub kind: ProblemKind,
    /// Further problems; these have no `more` of their own.
    more: Vec<ConfigError>,
}

impl ConfigError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> ConfigError {
        ConfigError { path: path.into(), message: message.into(), kind: ProblemKind::Invalid, more: Vec::new() }
    }

    /// The same problem as one of a certain kind.
    #[must_use]
    pub fn of_kind(mut self, kind: ProblemKind) -> ConfigError {
        self.kind = kind;
        self
    }

    /// All problems as one error; `None` when there are none.
    pub fn all(problems: impl IntoIterator<Item = ConfigError>) -> Option<ConfigError> {
        let mut problems = problems.into_iter().flat_map(ConfigError::into_problems);
        let first = problems.next()?;
        Some(ConfigError { more: problems.collect(), ..first })
    }

    /// The problems one by one.
    pub fn into_problems(mut self) -> impl Iterator<Item = ConfigError> {
        let more = std::mem::take(&mut self.more);
        std::iter::once(self).chain(more)
    }

    /// The same error seen from the message that holds `field`.
    #[must_use]
    pub fn inside(mut self, field: &str) -> ConfigError {
        for problem in std::iter::once(&mut self.path).chain(self.more.iter_mut().map(|p| &mut p.path)) {
            *problem = match problem.as_str() {
                "" => field.to_owned(),
                rest if rest.starts_with('[') => format!("{field}{rest}"),
                rest => format!("{field}.{rest}"),
            };
        }
        self
    }

    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line(f)?;
        for problem in self.more.iter().take(LISTED - 1) {
            f.write_str("; ")?;
            problem.line(f)?;
        }
        match self.more.len().saturating_sub(LISTED - 1) {
            0 => Ok(()),
            rest => write!(f, "; and {rest} more"),
        }
    }
}

/// Converts or compiles every item, whatever the others say, and puts the item's place before the paths of its
/// problems: `field[3].name`.
///
/// # Errors
/// The problems of all items together.
pub fn each_of<T, U>(
    field: &str,
    items: impl IntoIterator<Item = T>,
    mut make: impl FnMut(T) -> Result<U, ConfigError>,
) -> Result<Vec<U>, ConfigError> {
    let (mut made, mut problems) = (Vec::new(), Vec::new());
    for (i, item) in items.into_iter().enumerate() {
        match make(item) {
            Ok(item) => made.push(item),
            Err(error) => problems.push(error.inside(&format!("{field}[{i}]"))),
        }
    }
    ConfigError::all(problems).map_or(Ok(made), Err)
}

/// Two outcomes as one.
///
/// # Errors
/// The problems of both.
pub fn both<A, B>(a: Result<A, ConfigError>, b: Result<B, ConfigError>) -> Result<(A, B), ConfigError> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err(ConfigError::all([a, b.clone()]).unwrap_or(b)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
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

    #[test]
    fn problems_stay_together_and_each_keeps_its_path() {
        let check = |n: u32| if n == 1 { Ok(n) } else { Err(ConfigError::new("x", format!("found {n}"))) };
        assert_eq!(each_of("items", [1, 1], check), Ok(vec![1, 1]));
        let error = each_of("items", [0, 1, 2], check).unwrap_err().inside("a");
        assert_eq!(error.to_string(), "a.items[0].x: found 0; a.items[2].x: found 2");
        assert_eq!(ConfigError::all([error.clone(), error]).unwrap().into_problems().count(), 4);
    }

    #[test]
    fn a_long_list_has_an_end() {
        let error = ConfigError::all((0..50).map(|n| ConfigError::new(format!("f[{n}]"), "boom"))).unwrap();
        assert!(error.to_string().ends_with("; f[19]: boom; and 30 more"), "{error}");
    }
}
