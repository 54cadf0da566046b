//! The answers for the keys of runtime that Envoy itself reads. Other keys are for configuration to name.

use super::table::{Answer, answer, split_word};
use std::sync::OnceLock;

/// One key in each line, where `*` stands for any characters; then the answer as in the other files.
pub(super) const KEYS: &str = include_str!("runtime.txt");

/// The answer for a key; `None`: Envoy has no such key.
pub fn runtime_key(key: &str) -> Option<Answer> {
    known().iter().find(|(pattern, _)| fits(pattern, key)).map(|(_, answer)| *answer)
}

/// All patterns with their answers, in the order of the file.
pub(super) fn known() -> &'static [(&'static str, Answer)] {
    static KNOWN: OnceLock<Vec<(&str, Answer)>> = OnceLock::new();
    // a test sees to it that every line can be read
    KNOWN.get_or_init(|| lines().filter_map(|(pattern, answer)| Some((pattern, answer.ok()?))).collect())
}

pub(super) fn lines() -> impl Iterator<Item = (&'static str, Result<Answer, String>)> {
    let lines = KEYS.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(split_word).map(|(pattern, rest)| (pattern, answer(rest)))
}

/// Whether the pieces between the stars follow each other in the key.
fn fits(pattern: &str, key: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == key };
    let Some(mut key) = key.strip_prefix(first) else { return false };
    let mut pieces = rest.split('*').peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return key.ends_with(piece);
        }
        let Some((_, after)) = key.split_once(piece) else { return false };
        key = after;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_reads() {
        let wrong: Vec<_> = lines().filter(|(_, answer)| answer.is_err()).collect();
        assert!(wrong.is_empty() && known().len() > 30, "{wrong:?}");
    }

    #[test]
    fn keys_are_found_by_their_pattern() {
        let acts = |key| matches!(runtime_key(key), Some(Answer::Act { .. }));
        assert!(acts("envoy.resource_limits.listener.a.b.connection_limit"));
        assert!(acts("circuit_breakers.outbound|80||a.default.max_requests"));
        assert!(!acts("circuit_breakers.a.default.max_connection_pools"));
        assert!(matches!(runtime_key("envoy.reloadable_features.x"), Some(Answer::Warn { .. })));
        assert_eq!(runtime_key("canary"), None);
        assert_eq!(runtime_key("envoy.resource_limits.listener.a.other"), None);
    }

    #[test]
    fn no_limit_is_only_warned_about() {
        for (pattern, answer) in known() {
            let guards = ["limit", "max_connections", "max_requests", "max_pending", "normalize", "escaped_slashes"];
            let guards = guards.iter().any(|word| pattern.contains(word));
            assert!(!guards || !matches!(answer, Answer::Warn { .. } | Answer::Idle { .. }), "{pattern}");
        }
    }
}
