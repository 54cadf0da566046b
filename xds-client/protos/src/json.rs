//! JSON to a [`Node`] tree, as lenient as protobuf's own parser: trailing commas (Istio's bootstrap template leaves
//! one), single quotes, bare words as keys, line breaks and tabs in strings; comments are refused.

use crate::error::{LoadError, Position};
use crate::node::{Key, MAX_DEPTH, Node, Value};
use std::cell::Cell;

/// Reads a JSON text.
///
/// # Errors
/// Syntax errors with line and column; nesting beyond [`MAX_DEPTH`].
pub fn load_json(text: &str, file: Option<&str>) -> Result<Node, LoadError> {
    let mut reader = Reader { text, at: 0, line: 1, line_start: 0, counted: Cell::new((0, 0)) };
    let node = reader.value(0).and_then(|node| match reader.peek() {
        None => Ok(node),
        Some(_) => Err(reader.unexpected("the end of the text")),
    });
    node.map_err(|mut error| {
        error.file = file.map(str::to_owned);
        error
    })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    /// Where the current line begins.
    line_start: usize,
    /// A place of the current line and the characters before it: a file may be one line of many megabytes.
    counted: Cell<(usize, usize)>,
}

impl<'a> Reader<'a> {
    /// The next byte that is not white space; the reader stands before it.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            match byte {
                b'\n' => {
                    self.line = self.line.saturating_add(1);
                    self.line_start = self.at + 1;
                }
                b' ' | b'\t' | b'\r' => {}
                _ => return Some(byte),
            }
            self.at += 1;
        }
    }

    fn position(&self) -> Position {
        let (from, before) = match self.counted.get() {
            (place, before) if (self.line_start..=self.at).contains(&place) => (place, before),
            _ => (self.line_start, 0),
        };
        let column = before + self.text.get(from..self.at).map_or(0, |part| part.chars().count());
        self.counted.set((self.at, column));
        Position { line: self.line, column: u32::try_from(column).unwrap_or(u32::MAX).saturating_add(1) }
    }

    fn unexpected(&mut self, expected: &str) -> LoadError {
        let found = match self.peek() {
            None => "the end of the text".to_owned(),
            Some(_) => format!("`{}`", self.text.get(self.at..).and_then(|rest| rest.chars().next()).unwrap_or(' ')),
        };
        LoadError { found, expected: expected.into(), at: self.position(), ..LoadError::default() }
    }

    fn take(&mut self, wanted: u8) -> bool {
        let taken = self.peek() == Some(wanted);
        self.at += usize::from(taken);
        taken
    }

    fn value(&mut self, depth: usize) -> Result<Node, LoadError> {
        let first = self.peek();
        let at = self.position();
        if depth >= MAX_DEPTH && matches!(first, Some(b'{' | b'[')) {
            return Err(self.unexpected(&format!("at most {MAX_DEPTH} levels of nesting")));
        }
        let value = match first {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.take(b']') {
                    items.push(self.value(depth + 1)?);
                    if !self.take(b',') && self.peek() != Some(b']') {
                        return Err(self.unexpected("`,` or `]`"));
                    }
                }
                Value::List(items)
            }
            Some(quote @ (b'"' | b'\'')) => Value::Text(self.string(quote)?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => match self.word() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                word => {
                    self.at -= word.len();
                    return Err(self.unexpected("a JSON value"));
                }
            },
        };
        Ok(Node { value, at })
    }

    fn object(&mut self, depth: usize) -> Result<Value, LoadError> {
        self.at += 1;
        let mut entries = Vec::new();
        while !self.take(b'}') {
            let first = self.peek();
            let at = self.position();
            let name = match first {
                Some(quote @ (b'"' | b'\'')) => self.string(quote)?,
                _ => self.word().to_owned(),
            };
            if name.is_empty() && !matches!(first, Some(b'"' | b'\'')) {
                return Err(self.unexpected("a field name or `}`"));
            }
            if !self.take(b':') {
                return Err(self.unexpected("`:`"));
            }
            entries.push((Key { name, at }, self.value(depth + 1)?));
            if !self.take(b',') && self.peek() != Some(b'}') {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
        Ok(Value::Map(entries))
    }

    /// A bare word; empty when none stands here.
    fn word(&mut self) -> &'a str {
        let rest = self.text.get(self.at..).unwrap_or("");
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        let word = rest.split(|c| !is_word(c)).next().unwrap_or("");
        self.at += word.len();
        word
    }

    fn number(&mut self) -> Result<Value, LoadError> {
        let rest = self.text.get(self.at..).unwrap_or("");
        let digits = rest.split(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))).next().unwrap_or("");
        let whole = digits.strip_prefix('-').unwrap_or(digits);
        let figures = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        // No leading zeros, and no point without a digit behind it.
        let dangling = whole.split_once('.').is_some_and(|(_, rest)| figures(rest) == 0);
        if dangling || (whole.starts_with('0') && figures(whole) > 1) {
            return Err(self.unexpected("a number"));
        }
        let plain = !whole.is_empty() && whole.bytes().all(|b| b.is_ascii_digit());
        let value = match (digits.parse::<i64>(), digits.parse::<u64>(), digits.parse::<f64>()) {
            (Ok(value), _, _) if plain => Value::Int(value),
            (_, Ok(value), _) if plain => Value::Uint(value),
            (_, _, Ok(value)) if value.is_finite() && whole.starts_with(|c: char| c.is_ascii_digit()) => {
                Value::Float(value)
            }
            _ => return Err(self.unexpected("a number")),
        };
        self.at += digits.len();
        Ok(value)
    }

    fn string(&mut self, quote: u8) -> Result<String, LoadError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or("");
            let Some(end) = rest.bytes().position(|b| b == quote || b == b'\\' || b == b'\n') else {
                self.at = self.text.len();
                return Err(self.unexpected("a closing quote"));
            };
            out.push_str(rest.get(..end).unwrap_or(""));
            self.at += end + 1;
            match rest.as_bytes().get(end) {
                Some(b'\\') => out.push(self.escape()?),
                Some(b'\n') => {
                    out.push('\n');
                    self.line = self.line.saturating_add(1);
                    self.line_start = self.at;
                }
                _ => return Ok(out),
            }
        }
    }

    fn escape(&mut self) -> Result<char, LoadError> {
        let letter = self.text.as_bytes().get(self.at).copied();
        let plain = match letter {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(byte @ (b'"' | b'\'' | b'\\' | b'/')) => char::from(byte),
            Some(b'u') => return self.unicode(),
            _ => return Err(self.unexpected("an escape that JSON knows")),
        };
        self.at += 1;
        Ok(plain)
    }

    /// `uXXXX`, or two of them when the first is half of a surrogate pair.
    fn unicode(&mut self) -> Result<char, LoadError> {
        let unit = |text: &str, at: usize| {
            let digits = text.get(at..)?.strip_prefix('u')?.get(..4)?;
            if digits.bytes().all(|b| b.is_ascii_hexdigit()) { u32::from_str_radix(digits, 16).ok() } else { None }
        };
        let decoded = unit(self.text, self.at).and_then(|high| {
            if !(0xd800..0xdc00).contains(&high) {
                return Some((char::from_u32(high)?, 5));
            }
            let low = self.text.get(self.at + 5..)?.strip_prefix('\\').and_then(|_| unit(self.text, self.at + 6))?;
            let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
            Some((char::from_u32(0x10000 + ((high - 0xd800) << 10) + low)?, 11))
        });
        let Some((letter, length)) = decoded else {
            return Err(self.unexpected("four hexadecimal digits of a character"));
        };
        self.at += length;
        Ok(letter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_counted_in_characters_on_every_line() {
        let error = load_json("{\"ä\": [\"ö\",\n \"ü\", x y]}", None).unwrap_err();
        assert_eq!((error.at.line, error.at.column), (2, 9));
    }
    use serde_json::json;

    #[test]
    fn plain_json_is_read() {
        let text = r#"{"a": [1, -2.5, 1e3, 18446744073709551615, true, null], "b": {"c\u00e9\ud83d\ude00\n": "\/"}}"#;
        assert_eq!(load_json(text, None).unwrap().to_json(), serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn what_protobuf_forgives_is_forgiven() {
        let text = "{'a': 'x', b: [1, 2,], \"a\": 'y\t\n',}";
        assert_eq!(load_json(text, None).unwrap().to_json(), json!({"a": "y\t\n", "b": [1, 2]}));
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        for (text, line) in [
            ("{\n \"a\": 1\n \"b\": 2}", "x.json:3:2: found `\"`, expected `,` or `}`"),
            ("{\"a\": }", "x.json:1:7: found `}`, expected a JSON value"),
            ("{\"a\": 1", "x.json:1:8: found the end of the text, expected `,` or `}`"),
            ("{\"a\n\": }", "x.json:2:4: found `}`, expected a JSON value"),
            ("{/*c*/}", "x.json:1:2: found `/`, expected a field name or `}`"),
            ("{\"a\": 1} x", "x.json:1:10: found `x`, expected the end of the text"),
            ("\"\\ud800\"", "x.json:1:3: found `u`, expected four hexadecimal digits of a character"),
            ("01x", "x.json:1:1: found `0`, expected a number"),
        ] {
            assert_eq!(load_json(text, Some("x.json")).unwrap_err().to_string(), line);
        }
        assert!(load_json(&"[".repeat(100_000), None).is_err());
    }
}
