//! Paths with parameters: `/stats?usedonly&filter=a.b`.

use std::borrow::Cow;

/// A path and its decoded parameters, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub path: String,
    pub parameters: Vec<(String, String)>,
}

impl Target {
    pub fn parse(path: &str, query: Option<&str>) -> Target {
        Target { path: path.to_owned(), parameters: query.map(parameters).unwrap_or_default() }
    }

    /// The first value of a parameter; empty when it has none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of a parameter that has one.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Whether a parameter is there, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

/// Reads a query or a form.
pub(super) fn parameters(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    };
    pairs.map(pair).collect()
}

/// Percent-decoding. A plus sign stays: filters are regular expressions.
fn decode(text: &str) -> String {
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `?filter=`, a regular expression that may match anywhere.
///
/// # Errors
/// The line of a 400 reply.
pub(super) fn filter(text: &str) -> Result<regex::Regex, String> {
    regex::Regex::new(text).map_err(|error| {
        // the last line says what is wrong; those before it draw the pattern
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("Invalid re2 regex: {reason}")
    })
}

/// A name on a page of lines: one with a line's end in it must not look like two.
pub(super) fn one_line(name: &str) -> Cow<'_, str> {
    if !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(name.chars().map(escaped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let target = Target::parse("/stats", Some("usedonly&filter=%5Ea%2eb+c&x=1=2&&bad=%zz"));
        assert!(target.has("usedonly") && target.value("usedonly").is_none());
        assert_eq!(target.value("filter"), Some("^a.b+c"));
        assert_eq!((target.get("x"), target.get("bad"), target.get("none")), (Some("1=2"), Some("%zz"), None));
    }
}
