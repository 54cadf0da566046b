//! What conversion says of a configuration: errors that refuse it, and notices of fields that have no effect.

use super::answers::{Deprecated, Unknown};
use std::collections::BTreeMap;
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

/// Warnings that are kept of one conversion; the rest is counted.
const MAX_WARNINGS: usize = 10_000;

/// What a person should hear of a resource that is not refused. Collected while it is converted.
#[derive(Debug, Default)]
pub struct Notices {
    /// Fields that were set and have no effect here.
    pub warnings: Vec<Warning>,
    /// Fields that the API does not have.
    pub unknown: Vec<Unknown>,
    /// Deprecated fields in use.
    pub deprecated: Vec<Deprecated>,
    /// Warnings and unknown fields past those that are listed.
    pub more_warnings: usize,
    pub more_unknown: usize,
    /// Where the warning stands that says this of a field, whatever its places in lists.
    said: BTreeMap<(String, String), usize>,
}

/// A field without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where it was met first.
    pub path: String,
    /// What a person loses by that.
    pub meaning: String,
    /// How often it was met, whatever its places in lists.
    pub count: usize,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.meaning)?;
        match self.count {
            0 | 1 => Ok(()),
            count => write!(f, " ({count} times, this is the first)"),
        }
    }
}

impl Notices {
    /// Says what a field means that has no effect: once for each way that leads to it in its resource.
    pub(super) fn warn(&mut self, path: String, meaning: String, count: usize) {
        let identity = (way_of(&path), meaning);
        if let Some(known) = self.said.get(&identity).and_then(|known| self.warnings.get_mut(*known)) {
            known.count += count;
        } else if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(Warning { path, meaning: identity.1.clone(), count });
            self.said.insert(identity, self.warnings.len() - 1);
        } else {
            self.more_warnings += count;
        }
    }

    /// How many fields have no effect.
    pub fn warned(&self) -> usize {
        self.more_warnings + self.warnings.iter().map(|warning| warning.count).sum::<usize>()
    }
}

/// A path without places in lists; the place of a static resource stays, for each hears of its own fields.
fn way_of(path: &str) -> String {
    let own = match path.strip_prefix("static_resources.").and_then(|rest| rest.find(']')) {
        Some(end) => "static_resources.".len() + end,
        None => 0,
    };
    let (resource, rest) = path.split_at(own);
    let mut way = resource.to_owned();
    let mut pieces = rest.split('[');
    way.extend(pieces.next());
    for piece in pieces {
        way.push('[');
        way.push_str(piece.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    way
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
    fn a_warning_is_said_once_for_each_way_and_counted() {
        let mut notices = Notices::default();
        for path in ["a[0].b", "a[1].b", "a[1].c", "static_resources.x[0].a[0]", "static_resources.x[1].a[7]"] {
            notices.warn(path.into(), "boom".into(), 1);
        }
        notices.warn("a[2].b".into(), "other".into(), 3);
        let said: Vec<String> = notices.warnings.iter().map(Warning::to_string).collect();
        assert_eq!(
            said,
            [
                "a[0].b: boom (2 times, this is the first)",
                "a[1].c: boom",
                "static_resources.x[0].a[0]: boom",
                "static_resources.x[1].a[7]: boom",
                "a[2].b: other (3 times, this is the first)",
            ]
        );
        assert_eq!(notices.warned(), 8);
        for n in 0..=MAX_WARNINGS {
            notices.warn("a".into(), n.to_string(), 1);
        }
        assert_eq!((notices.warnings.len(), notices.warned()), (MAX_WARNINGS, MAX_WARNINGS + 9));
    }

    #[test]
    fn a_long_list_has_an_end() {
        let error = ConfigError::all((0..50).map(|n| ConfigError::new(format!("f[{n}]"), "boom"))).unwrap();
        assert!(error.to_string().ends_with("; f[19]: boom; and 30 more"), "{error}");
    }
}
