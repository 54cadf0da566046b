//! Header operations of a route, compiled: literals are values ready to insert, the rest are formatters.

use crate::access_log::Formatter;
use crate::config::model::{AppendAction, HeaderOps};
use crate::config::{ConfigError, each_of};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The operations of one level.
#[derive(Default)]
pub(in crate::http) struct Ops {
    add: Vec<Add>,
    remove: Vec<HeaderName>,
    request_headers: Vec<HeaderName>,
}

struct Add {
    name: HeaderName,
    value: Value,
    action: AppendAction,
    keep_empty: bool,
}

enum Value {
    Literal(HeaderValue),
    Format(Formatter),
}

/// Evaluates formats: given a formatter and the headers as they are now, appends the text.
pub(in crate::http) trait Templates {
    fn write(&self, format: &Formatter, headers: &HeaderMap, out: &mut Vec<u8>);
}

impl Ops {
    pub fn compile(ops: &HeaderOps) -> Result<Ops, ConfigError> {
        let add = each_of("", &ops.add, |add| {
            let value = if add.value.contains('%') {
                // unlike in logs, what is absent leaves nothing behind
                let format = Formatter::compile(&add.value)?.omitting_empty(true);
                match format.literal().map(HeaderValue::from_str) {
                    Some(Ok(value)) => Value::Literal(value),
                    Some(Err(_)) => return Err(not_a_value(&add.value)),
                    None => Value::Format(format),
                }
            } else {
                Value::Literal(HeaderValue::from_str(&add.value).map_err(|_| not_a_value(&add.value))?)
            };
            Ok(Add { name: add.name.clone(), value, action: add.action, keep_empty: add.keep_empty })
        })?;
        let request_headers = add
            .iter()
            .filter_map(|add| match &add.value {
                Value::Literal(_) => None,
                Value::Format(format) => Some(format.request_headers()),
            })
            .flatten()
            .cloned()
            .collect();
        Ok(Ops { add, remove: ops.remove.clone(), request_headers })
    }

    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// Request headers that its formats will ask for.
    pub fn request_headers(&self) -> &[HeaderName] {
        &self.request_headers
    }

    /// Applies all operations, additions first.
    pub fn apply(&self, headers: &mut HeaderMap, templates: &dyn Templates) {
        for add in &self.add {
            let value = match &add.value {
                Value::Literal(value) => value.clone(),
                Value::Format(format) => {
                    let mut text = Vec::with_capacity(64);
                    templates.write(format, headers, &mut text);
                    let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) else { continue };
                    value
                }
            };
            if value.is_empty() && !add.keep_empty {
                continue;
            }
            put(headers, &add.name, value, add.action);
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn put(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, action: AppendAction) {
    let present = headers.contains_key(name);
    match action {
        AppendAction::AppendIfExistsOrAdd => {
            headers.append(name.clone(), value);
        }
        AppendAction::AddIfAbsent if present => {}
        AppendAction::OverwriteIfExists if !present => {}
        AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists | AppendAction::OverwriteIfExistsOrAdd => {
            headers.insert(name.clone(), value);
        }
    }
}

fn not_a_value(text: &str) -> ConfigError {
    ConfigError::new("header.value", format!("{text:?} has bytes that a header value cannot have"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::HeaderAdd;

    struct NoTemplates;

    impl Templates for NoTemplates {
        fn write(&self, _: &Formatter, _: &HeaderMap, _: &mut Vec<u8>) {}
    }

    fn apply(action: AppendAction, value: &str, before: &[&'static str]) -> Vec<String> {
        let ops = HeaderOps {
            add: vec![HeaderAdd { name: HeaderName::from_static("x"), value: value.into(), action, keep_empty: false }],
            remove: vec![HeaderName::from_static("gone")],
        };
        let mut headers = HeaderMap::new();
        headers.insert("gone", HeaderValue::from_static("1"));
        for v in before {
            headers.append("x", HeaderValue::from_static(v));
        }
        Ops::compile(&ops).unwrap().apply(&mut headers, &NoTemplates);
        assert!(!headers.contains_key("gone"));
        headers.get_all("x").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn actions_do_what_their_names_say() {
        use AppendAction::*;
        assert_eq!(apply(AppendIfExistsOrAdd, "n", &["a"]), ["a", "n"]);
        assert_eq!(apply(AddIfAbsent, "n", &["a"]), ["a"]);
        assert_eq!(apply(AddIfAbsent, "n", &[]), ["n"]);
        assert_eq!(apply(OverwriteIfExistsOrAdd, "n", &["a", "b"]), ["n"]);
        assert_eq!(apply(OverwriteIfExists, "n", &[]), [""; 0]);
        assert_eq!(apply(OverwriteIfExists, "n", &["a"]), ["n"]);
        assert_eq!(apply(AppendIfExistsOrAdd, "", &["a"]), ["a"]);
    }

    #[test]
    fn a_value_that_is_no_header_value_is_refused() {
        let ops = HeaderOps {
            add: vec![HeaderAdd {
                name: HeaderName::from_static("x"),
                value: "a\nb".into(),
                action: AppendAction::AddIfAbsent,
                keep_empty: false,
            }],
            remove: Vec::new(),
        };
        assert_eq!(Ops::compile(&ops).err().unwrap().path, "[0].header.value");
    }
}
