//! Format strings and JSON formats, compiled.

use super::Entry;
use super::operators::{Headers, Operator, Wrote};
use crate::config::ConfigError;
use http::HeaderName;
use serde_json::Value;

/// A compiled format string: of a text log, or of a header value.
#[derive(Debug, Clone)]
pub struct Formatter {
    parts: Vec<Part>,
    omit_empty: bool,
    request: Vec<HeaderName>,
    response: Vec<HeaderName>,
    trailers: Vec<HeaderName>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<str>),
    Operator {
        operator: Operator,
        /// At most this many bytes of it.
        most: Option<usize>,
    },
}

impl Formatter {
    /// # Errors
    /// An unknown or unsupported operator, by name, or a stray `%` with its position.
    pub fn compile(format: &str) -> Result<Formatter, ConfigError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(rest) = format.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(percent) = rest.find('%') else {
                literal.push_str(rest);
                break;
            };
            literal.push_str(&rest[..percent]);
            at += percent;
            let command = &rest[percent..];
            if command.starts_with("%%") {
                literal.push('%');
                at += 2;
                continue;
            }
            let Some(command) = Command::parse(command) else {
                let message =
                    format!("Incorrect configuration: {format}. Couldn't find valid command at position {at}");
                return Err(ConfigError::new("", message));
            };
            at += command.bytes;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            let operator = Operator::compile(command.name, command.parameters, command.most.is_some())?;
            parts.push(Part::Operator { operator, most: command.most });
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        let headers = |from| {
            let mut wanted = Vec::new();
            for part in &parts {
                if let Part::Operator { operator, .. } = part {
                    operator.headers(from, &mut wanted);
                }
            }
            wanted
        };
        let (request, response, trailers) =
            (headers(Headers::Request), headers(Headers::Response), headers(Headers::Trailers));
        Ok(Formatter { parts, omit_empty: false, request, response, trailers })
    }

    /// The same format with absent values left out, not shown as `-`.
    #[must_use]
    pub fn omitting_empty(mut self, omit: bool) -> Formatter {
        self.omit_empty = omit;
        self
    }

    /// The text, when it has no operators: then it need never be evaluated again.
    pub fn literal(&self) -> Option<&str> {
        match &self.parts[..] {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Request headers whose values it will want.
    pub fn request_headers(&self) -> &[HeaderName] {
        &self.request
    }

    /// Response headers whose values it will want.
    pub fn response_headers(&self) -> &[HeaderName] {
        &self.response
    }

    /// Response trailers whose values it will want.
    pub fn response_trailers(&self) -> &[HeaderName] {
        &self.trailers
    }

    /// Appends the formatted text; absent values are `-`.
    pub fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Operator { operator, most } => {
                    if write_cut(operator, *most, entry, out) == Wrote::Nothing && !self.omit_empty {
                        out.push(b'-');
                    }
                }
            }
        }
    }
}

fn write_cut(operator: &Operator, most: Option<usize>, entry: &Entry<'_>, out: &mut Vec<u8>) -> Wrote {
    let start = out.len();
    let wrote = operator.write(entry, out);
    if let Some(most) = most {
        out.truncate(start + most);
    }
    wrote
}

/// `%NAME(parameters):length%`.
struct Command<'a> {
    name: &'a str,
    parameters: Option<&'a str>,
    most: Option<usize>,
    bytes: usize,
}

impl<'a> Command<'a> {
    fn parse(text: &'a str) -> Option<Command<'a>> {
        let body = text.strip_prefix('%')?;
        let end = body.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_')?;
        let (name, rest) = body.split_at(end);
        if name.is_empty() {
            return None;
        }
        let done = |parameters, tail: &'a str| {
            let (most, tail) = Self::end(tail)?;
            Some(Command { name, parameters, most, bytes: text.len() - tail.len() })
        };
        let Some(inner) = rest.strip_prefix('(') else { return done(None, rest) };
        // Parameters may hold parentheses and percent signs: they end at the first `)` that can end the command.
        inner.match_indices(')').find_map(|(close, _)| done(Some(&inner[..close]), &inner[close + 1..]))
    }

    /// `:N%` or `%`; gives what follows.
    fn end(tail: &str) -> Option<(Option<usize>, &str)> {
        if let Some(rest) = tail.strip_prefix('%') {
            return Some((None, rest));
        }
        let (digits, rest) = tail.strip_prefix(':')?.split_once('%')?;
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| (Some(digits.parse().unwrap_or(usize::MAX)), rest))
    }
}

/// A compiled JSON format. Keys are sorted; a value that is one operator keeps its type.
#[derive(Debug, Clone)]
pub(super) struct JsonFormatter {
    root: Node,
    omit_empty: bool,
}

#[derive(Debug, Clone)]
enum Node {
    /// JSON that is the same for every entry.
    Fixed(Box<[u8]>),
    /// One operator and nothing else.
    Typed {
        operator: Operator,
        most: Option<usize>,
    },
    Text(Formatter),
    /// Keys with their quotes and colon.
    Object(Vec<(Box<[u8]>, Node)>),
    List(Vec<Node>),
}

impl JsonFormatter {
    /// # Errors
    /// As for [`Formatter::compile`], with the path of keys.
    pub fn compile(format: &serde_json::Map<String, Value>, omit_empty: bool) -> Result<JsonFormatter, ConfigError> {
        Ok(JsonFormatter { root: Node::object(format)?, omit_empty })
    }

    pub fn headers(&self, from: Headers, wanted: &mut Vec<HeaderName>) {
        self.root.headers(from, wanted);
    }

    /// Appends the object and a newline.
    pub fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        self.root.write(entry, self.omit_empty, out);
        out.push(b'\n');
    }
}

impl Node {
    fn compile(value: &Value) -> Result<Node, ConfigError> {
        Ok(match value {
            Value::Object(map) => Node::object(map)?,
            Value::Array(list) => {
                let item = |(at, item)| Node::compile(item).map_err(|e| e.inside(&format!("[{at}]")));
                Node::List(list.iter().enumerate().map(item).collect::<Result<_, _>>()?)
            }
            Value::String(format) => {
                let mut formatter = Formatter::compile(format)?;
                if let Some(literal) = formatter.literal() {
                    return Ok(Node::Fixed(Value::from(literal).to_string().into_bytes().into()));
                }
                match (formatter.parts.pop(), formatter.parts.is_empty()) {
                    (Some(Part::Operator { operator, most }), true) => Node::Typed { operator, most },
                    (last, _) => {
                        formatter.parts.extend(last);
                        Node::Text(formatter)
                    }
                }
            }
            fixed => Node::Fixed(fixed.to_string().into_bytes().into()),
        })
    }

    fn object(map: &serde_json::Map<String, Value>) -> Result<Node, ConfigError> {
        let mut sorted: Vec<_> = map.iter().collect();
        sorted.sort_by_key(|(key, _)| *key);
        let member = |(key, value): (&String, &Value)| {
            let node = Node::compile(value).map_err(|e| e.inside(key))?;
            Ok((format!("{}:", Value::from(key.as_str())).into_bytes().into(), node))
        };
        Ok(Node::Object(sorted.into_iter().map(member).collect::<Result<_, ConfigError>>()?))
    }

    fn headers(&self, from: Headers, wanted: &mut Vec<HeaderName>) {
        match self {
            Node::Fixed(_) => {}
            Node::Typed { operator, .. } => operator.headers(from, wanted),
            Node::Text(formatter) => wanted.extend_from_slice(match from {
                Headers::Request => &formatter.request,
                Headers::Response => &formatter.response,
                Headers::Trailers => &formatter.trailers,
            }),
            Node::Object(members) => members.iter().for_each(|(_, node)| node.headers(from, wanted)),
            Node::List(items) => items.iter().for_each(|node| node.headers(from, wanted)),
        }
    }

    /// Returns whether there was a value; without one, `null` was written.
    fn write(&self, entry: &Entry<'_>, omit_empty: bool, out: &mut Vec<u8>) -> bool {
        match self {
            Node::Fixed(json) => {
                out.extend_from_slice(json);
                **json != *b"null"
            }
            Node::Typed { operator, most } => {
                let start = out.len();
                match write_cut(operator, *most, entry, out) {
                    Wrote::Nothing => out.extend_from_slice(b"null"),
                    Wrote::Number => return true,
                    Wrote::Text => {
                        quote(start, out);
                        return true;
                    }
                }
                false
            }
            Node::Text(formatter) => {
                let start = out.len();
                formatter.write(entry, out);
                quote(start, out);
                true
            }
            Node::Object(members) => {
                out.push(b'{');
                let first = out.len();
                for (key, node) in members {
                    let before = out.len();
                    if before > first {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    if !node.write(entry, omit_empty, out) && omit_empty {
                        out.truncate(before);
                    }
                }
                out.push(b'}');
                true
            }
            Node::List(items) => {
                out.push(b'[');
                for (at, node) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    node.write(entry, omit_empty, out);
                }
                out.push(b']');
                true
            }
        }
    }
}

/// Makes a JSON string of what was appended since `start`.
fn quote(start: usize, out: &mut Vec<u8>) {
    let plain = out[start..].iter().all(|b| matches!(b, 0x20..=0x7e) && *b != b'"' && *b != b'\\');
    if plain {
        out.insert(start, b'"');
        out.push(b'"');
        return;
    }
    // Bytes that are no UTF-8 cannot be said in JSON.
    let escaped = Value::from(String::from_utf8_lossy(&out[start..])).to_string();
    out.truncate(start);
    out.extend_from_slice(escaped.as_bytes());
}
