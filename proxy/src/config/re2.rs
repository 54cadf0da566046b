//! What RE2, Envoy's engine, refuses and the regex crate takes. Knows no configuration.

/// RE2's bound of one repetition, and of repetitions inside repetitions together.
const MAX_REPEAT: u32 = 1000;

/// Names of classes in `[[:name:]]`.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

/// Why RE2 would refuse a pattern, where the crate does not.
pub(super) fn refusal(pattern: &str) -> Option<String> {
    let mut rest = pattern;
    // where the repetition starts that stands right before, and the largest product of repetitions in each open group
    let mut before: Option<usize> = None;
    let mut groups: Vec<u32> = vec![1];
    let mut atom = 1;
    while let Some(c) = rest.chars().next() {
        let start = pattern.len() - rest.len();
        let after = &rest[c.len_utf8()..];
        let mut repeated = None;
        rest = match c {
            '\\' => {
                let escaped = after.chars().next();
                if let Some(letter @ ('u' | 'U')) = escaped {
                    return Some(format!("invalid escape sequence: \\{letter}"));
                }
                atom = 1;
                match after.strip_prefix('Q') {
                    Some(quoted) => quoted.split_once("\\E").map_or("", |(_, rest)| rest),
                    None => after.get(escaped.map_or(0, char::len_utf8)..).unwrap_or_default(),
                }
            }
            '[' => {
                atom = 1;
                match class(after) {
                    Ok(rest) => rest,
                    Err(name) => return Some(format!("invalid character class range: [:{name}:]")),
                }
            }
            '(' => {
                groups.push(1);
                let flags = after.strip_prefix('?').unwrap_or_default();
                let end = flags.find(|c: char| !c.is_ascii_alphabetic() && c != '-').unwrap_or(flags.len());
                let is_flags = flags.get(end..).is_some_and(|rest| rest.starts_with([')', ':']));
                if is_flags && let Some(wrong) = flags[..end].find(|c| !"imsU-".contains(c)) {
                    return Some(format!("invalid perl operator: (?{}", &flags[..=wrong]));
                }
                after
            }
            ')' => {
                atom = groups.pop().unwrap_or(1);
                if groups.is_empty() {
                    groups.push(1);
                }
                after
            }
            '*' | '+' | '?' => {
                let lazy = after.strip_prefix('?');
                repeated = Some(1);
                lazy.unwrap_or(after)
            }
            '{' => match counted(after) {
                Some((most, after)) => {
                    repeated = Some(most);
                    after.strip_prefix('?').unwrap_or(after)
                }
                None => {
                    atom = 1;
                    after
                }
            },
            '|' | '^' | '$' => after,
            _ => {
                atom = 1;
                after
            }
        };
        if let Some(most) = repeated {
            if let Some(first) = before {
                return Some(format!("bad repetition operator: {}", &pattern[first..pattern.len() - rest.len()]));
            }
            if most > MAX_REPEAT || most.max(1).saturating_mul(atom) > MAX_REPEAT {
                return Some(format!("invalid repetition size: {{{most}}}"));
            }
            atom = most.max(1).saturating_mul(atom);
            before = Some(start);
        } else {
            before = None;
        }
        if let Some(group) = groups.last_mut().filter(|_| c != '(') {
            *group = (*group).max(atom);
        }
    }
    None
}

/// `{2}`, `{2,}` or `{2,3}` behind its brace: the largest number, and what follows.
fn counted(text: &str) -> Option<(u32, &str)> {
    let (inside, rest) = text.split_once('}')?;
    let (low, high) = inside.split_once(',').unwrap_or((inside, inside));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().unwrap_or(u32::MAX));
    let low = number(low).filter(|_| !low.is_empty())?;
    Some((low.max(if high.is_empty() { 0 } else { number(high)? }), rest))
}

/// What follows a class, from behind its bracket; the name of a class that does not exist.
fn class(text: &str) -> Result<&str, &str> {
    let text = text.strip_prefix('^').unwrap_or(text);
    let mut rest = text.strip_prefix(']').unwrap_or(text);
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            ']' => return Ok(after),
            '\\' => after.get(after.chars().next().map_or(0, char::len_utf8)..).unwrap_or_default(),
            '[' if after.starts_with(':') => match after[1..].split_once(":]") {
                Some((name, rest)) if CLASSES.contains(&name.trim_start_matches('^')) => rest,
                Some((name, _)) if name.bytes().all(|b| b.is_ascii_alphabetic() || b == b'^') => return Err(name),
                _ => after,
            },
            _ => after,
        };
    }
    // without its end: the crate says so
    Ok("")
}

#[cfg(test)]
mod tests {
    use super::refusal;

    #[test]
    fn what_re2_refuses_is_refused() {
        for (pattern, why) in [
            ("a**", "bad repetition operator: **"),
            ("a++", "bad repetition operator: ++"),
            ("a???", "bad repetition operator: ???"),
            ("x{2}{3}", "bad repetition operator: {2}{3}"),
            ("a{1001}", "invalid repetition size: {1001}"),
            ("(a{100}){100}", "invalid repetition size: {100}"),
            ("(?x)a", "invalid perl operator: (?x"),
            ("(?u)a", "invalid perl operator: (?u"),
            (r"\u0041", r"invalid escape sequence: \u"),
            ("[[:foo:]]", "invalid character class range: [:foo:]"),
        ] {
            assert_eq!(refusal(pattern).as_deref(), Some(why), "{pattern}");
        }
    }

    #[test]
    fn what_re2_takes_is_taken() {
        for pattern in [
            "a*?",
            "a+?",
            "a??",
            "(a*)*",
            "(?:a+)+",
            "x{2,3}?",
            "[*+?]+",
            r"\*\*",
            r"\Qa**\E+",
            "(?i)a",
            "(?im-s:a)",
            "(?P<n>a)",
            "(?<n>a)",
            "[[:alpha:]x]+",
            "[[:^digit:]]",
            "[]a]*",
            "a{,2}{",
            "/items/{id}{x}",
            "(a{10}){10}",
            "a|b*|c",
            "é*",
            "",
            "(",
            ")",
            "[",
            "\\",
            "(?",
            "{",
            "a{2",
            r"[\]*]*",
            "^*",
        ] {
            assert_eq!(refusal(pattern), None, "{pattern}");
        }
    }
}
