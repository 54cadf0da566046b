//! YAML to a [`Node`] tree, reading scalars as Envoy does.
//!
//! Envoy takes yaml-cpp's idea of a boolean (`yes`, `on`, `n`) and of a whole number (hexadecimal and octal too), and
//! leaves every other unquoted scalar a string, to be read by the type of its field. Whole numbers beyond 32 bits
//! become strings as well. So `0.5` in a `Struct` is a string, and the unquoted id `n` is a boolean: both surprise, both
//! are kept. Keys tagged `!ignore` are dropped with their value; of equal keys the last stays; of several documents
//! the first counts. (Envoy's source/common/protobuf/yaml_utility.cc.)

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, StrInput, Tag};

use crate::error::{LoadError, Position};
use crate::node::{Key, MAX_DEPTH, Node, Value, last_wins};

/// Values that aliases may add to a document: far above any configuration, far below what a nest of aliases makes.
const MAX_ALIASED: usize = 1_000_000;

/// Reads the first document of a YAML text.
///
/// # Errors
/// Syntax errors with line and column; aliases that multiply beyond reason; nesting beyond [`MAX_DEPTH`].
pub fn load_yaml(text: &str, file: Option<&str>) -> Result<Node, LoadError> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        aliased: 0,
        end: Position::default(),
    };
    reader.document().map_err(|mut error| {
        error.file = file.map(str::to_owned);
        error
    })
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// Anchored nodes, with the values in each.
    anchors: HashMap<usize, (Node, usize)>,
    aliased: usize,
    end: Position,
}

fn position(span: &Span) -> Position {
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: clamp(span.start.line()), column: clamp(span.start.col().saturating_add(1)) }
}

fn syntax(found: impl Into<String>, at: Position) -> LoadError {
    LoadError { found: found.into(), expected: "valid YAML".into(), at, ..LoadError::default() }
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Position), LoadError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                self.end = position(&span);
                Ok((event, self.end))
            }
            Some(Err(error)) => {
                let at = position(&Span::empty(*error.marker()));
                Err(syntax(format!("a syntax error ({})", error.info()), at))
            }
            None => Err(syntax("the end of the text", self.end)),
        }
    }

    fn document(&mut self) -> Result<Node, LoadError> {
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) => {}
                Event::StreamEnd | Event::DocumentEnd => return Ok(Node { value: Value::Null, at }),
                event => return self.node(event, at, 0),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, at: Position, depth: usize) -> Result<Node, LoadError> {
        if depth >= MAX_DEPTH && matches!(event, Event::SequenceStart(..) | Event::MappingStart(..)) {
            return Err(syntax(format!("more than {MAX_DEPTH} levels of nesting"), at));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (scalar(text, style, tag.as_deref()), anchor),
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, at) => items.push(self.node(event, at, depth + 1)?),
                    }
                }
                (Value::List(items), anchor)
            }
            Event::MappingStart(_, anchor, _) => (Value::Map(self.entries(depth)?), anchor),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    return Err(syntax("an alias inside the value it names", at));
                };
                self.aliased += size;
                if self.aliased > MAX_ALIASED {
                    return Err(syntax(format!("aliases that make more than {MAX_ALIASED} values"), at));
                }
                return Ok(Node { value: node.value.clone(), at });
            }
            _ => return Err(syntax("a misplaced token", at)),
        };
        let node = Node { value, at };
        if anchor != 0 {
            let size = size(&node);
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(node)
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, LoadError> {
        let mut entries = Vec::new();
        loop {
            let (event, at) = self.next()?;
            let (name, ignored) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, anchor, tag) => {
                    if anchor != 0 {
                        let node = Node { value: scalar(text.clone(), style, tag.as_deref()), at };
                        self.anchors.insert(anchor, (node, 1));
                    }
                    (text.into_owned(), tag.is_some_and(|tag| tag.handle() == "!" && tag.suffix() == "ignore"))
                }
                Event::Alias(anchor) => match self.anchors.get(&anchor) {
                    Some((Node { value: Value::Text(text), .. }, _)) => (text.clone(), false),
                    _ => return Err(syntax("an alias for a key that is no string", at)),
                },
                _ => return Err(syntax("a list or an object as a key", at)),
            };
            let (event, value_at) = self.next()?;
            let node = self.node(event, value_at, depth + 1)?;
            if !ignored {
                entries.push((Key { name, at }, node));
            }
        }
        last_wins(&mut entries);
        Ok(entries)
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
        _ => 0,
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let unspecific = tag.is_some_and(|tag| tag.original() == "!");
    if style != ScalarStyle::Plain || unspecific {
        return Value::Text(text.into_owned());
    }
    if tag.is_none() && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(value) = boolean(&text) {
        return Value::Bool(value);
    }
    match whole(&text) {
        Some(value) if i32::try_from(value).is_ok() => Value::Int(value),
        // The decimal spelling, whatever the text had: fields of 64 bits take quoted numbers.
        Some(value) => Value::Text(value.to_string()),
        None => Value::Text(text.into_owned()),
    }
}

/// The booleans of YAML 1.1, in lower case, upper case or capitalised.
fn boolean(text: &str) -> Option<bool> {
    if text.len() > 5 {
        return None;
    }
    let flexible = text.bytes().all(|b| b.is_ascii_lowercase())
        || text.bytes().all(|b| b.is_ascii_uppercase())
        || (text.as_bytes()[..1.min(text.len())].iter().all(u8::is_ascii_uppercase)
            && text.bytes().skip(1).all(|b| b.is_ascii_lowercase()));
    if !flexible {
        return None;
    }
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "true" | "on" => Some(true),
        "n" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// A whole number as C++ streams read it with no base set: `0x` is hexadecimal, a leading `0` octal.
fn whole(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hexadecimal) => (hexadecimal, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> serde_json::Value {
        load_yaml(text, None).unwrap().to_json()
    }

    #[test]
    fn scalars_are_read_as_envoy_reads_them() {
        for (text, value) in [
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("n", json!(false)),
            ("yEs", json!("yEs")),
            ("\"yes\"", json!("yes")),
            ("'5'", json!("5")),
            ("5", json!(5)),
            ("-5", json!(-5)),
            ("0x1F", json!(31)),
            ("010", json!(8)),
            ("08", json!("08")),
            ("1_000", json!("1_000")),
            ("5000000000", json!("5000000000")),
            ("0.5", json!("0.5")),
            ("1e3", json!("1e3")),
            (".inf", json!(".inf")),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("\"\"", json!("")),
            ("!!str 5", json!(5)),
            ("! 5", json!("5")),
            ("|\n  5", json!("5\n")),
        ] {
            assert_eq!(read(&format!("a: {text}\n")), json!({"a": value}), "{text}");
        }
    }

    #[test]
    fn the_last_of_equal_keys_stays() {
        assert_eq!(read("a: 1\nb: 2\na: 3\n"), json!({"b": 2, "a": 3}));
        let many: String = (0..40).map(|i| format!("k{}: {i}\n", i % 20)).collect();
        assert_eq!(read(&many)["k3"], json!(23));
    }

    #[test]
    fn ignored_keys_anchors_and_further_documents() {
        assert_eq!(read("!ignore x: &a {b: 1}\nc: *a\n"), json!({"c": {"b": 1}}));
        assert_eq!(read("a: 1\n---\nb: 2\n"), json!({"a": 1}));
        assert_eq!(read(""), json!(null));
        // A merge key is an ordinary key to yaml-cpp.
        assert_eq!(read("<<: {a: 1}\n"), json!({"<<": {"a": 1}}));
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = load_yaml("a:\n  b: [1, 2\nc: 3\n", Some("x.yaml")).unwrap_err();
        assert!(error.to_string().starts_with("x.yaml:3:"), "{error}");
        assert!(load_yaml("a: *b\n", None).is_err());
    }

    #[test]
    fn aliases_cannot_multiply_without_bound() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let item = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![item; 10].join(", "));
        }
        assert!(load_yaml(&text, None).unwrap_err().found.contains("aliases"));
        assert!(load_yaml(&"[".repeat(200), None).is_err());
        assert!(load_yaml(&("[".repeat(150) + &"]".repeat(150)), None).unwrap_err().found.contains("nesting"));
    }
}
