//! The tree that YAML and JSON texts become before anybody knows which message they are: values with their places.

use crate::error::Position;

/// Objects and lists nested deeper than this are refused, as protobuf's parsers do.
pub const MAX_DEPTH: usize = 100;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it begins.
    pub at: Position,
}

/// The name of a member of an object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The name.
    pub name: String,
    /// Where it begins.
    pub at: Position,
}

/// A value of YAML or JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number above `i64::MAX`.
    Uint(u64),
    /// Any other number.
    Float(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// An object. In YAML every name occurs once; JSON may repeat one, which to protobuf is the field set again.
    Map(Vec<(Key, Node)>),
}

impl Node {
    /// A value from nowhere.
    pub fn new(value: Value) -> Node {
        Node { value, at: Position::default() }
    }

    /// The member of that name, when this is an object.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The same without places.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Uint(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(value) => value.as_str().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
        }
    }

    /// The same as a tree from nowhere.
    pub fn from_json(json: &serde_json::Value) -> Node {
        Node::new(match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Value::Int(value),
                (None, Some(value)) => Value::Uint(value),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(value) => Value::Text(value.clone()),
            serde_json::Value::Array(items) => Value::List(items.iter().map(Node::from_json).collect()),
            serde_json::Value::Object(members) => {
                let entry = |(name, member): (&String, _)| {
                    (Key { name: name.clone(), at: Position::default() }, Node::from_json(member))
                };
                Value::Map(members.iter().map(entry).collect())
            }
        })
    }

    /// What an error message calls it that must not say what it is.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Uint(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "an object",
        }
    }

    /// What an error message calls it.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Int(value) => format!("the number {value}"),
            Value::Uint(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(value) => quote(value),
            Value::Null | Value::List(_) | Value::Map(_) => self.kind().into(),
        }
    }
}

/// A string as an error message shows it: quoted, on one line, not too long.
pub(crate) fn quote(text: &str) -> String {
    /// Enough to recognise it by.
    const SHOWN: usize = 60;
    match (text.char_indices().nth(SHOWN), text.char_indices().nth_back(SHOWN - 1)) {
        // type URLs differ at their end
        (Some((cut, _)), Some((resume, _))) if cut < resume => format!("{:?}...{:?}", &text[..cut], &text[resume..]),
        _ => format!("{text:?}"),
    }
}

/// The first entry whose name another one before it has.
pub(crate) fn repeated(entries: &[(Key, Node)]) -> Option<&Key> {
    /// Up to here comparing all with all is quicker than hashing.
    const FEW: usize = 16;
    let mut keys = entries.iter().map(|(key, _)| key);
    if entries.len() <= FEW {
        keys.enumerate()
            .find(|(at, key)| entries[..*at].iter().any(|(other, _)| other.name == key.name))
            .map(|(_, key)| key)
    } else {
        let mut seen = std::collections::HashSet::with_capacity(entries.len());
        keys.find(|key| !seen.insert(key.name.as_str()))
    }
}

/// Drops all but the last entry of every name: Envoy reads YAML into a map, where the last one stays.
pub(crate) fn last_wins(entries: &mut Vec<(Key, Node)>) {
    if repeated(entries).is_some() {
        let mut seen = std::collections::HashSet::new();
        let mut kept: Vec<_> = entries.drain(..).rev().filter(|(key, _)| seen.insert(key.name.clone())).collect();
        kept.reverse();
        *entries = kept;
    }
}
