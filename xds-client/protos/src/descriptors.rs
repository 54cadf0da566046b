//! The front of the crate: texts in, wire bytes out, and back.

use prost::{Message as _, Name};

use crate::encode::{Encoder, expected_type};
use crate::error::{FieldPath, LoadError};
use crate::inspect::{self, Findings};
use crate::json::load_json;
use crate::node::{Node, Value, quote};
use crate::pb::google::protobuf::{Any, Struct};
use crate::print::{self, Style};
use crate::redact;
use crate::rules::{self, Violation};
use crate::table::Message;
use crate::yaml::load_yaml;
use crate::{TypedStruct, convert};

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML, read as Envoy reads it.
    Yaml,
    /// JSON, read as protobuf reads it.
    Json,
}

impl Format {
    /// The format that Envoy would take a file of that name to have: YAML by its ending, else JSON.
    pub fn of_file(name: &str) -> Format {
        let lower = name.to_ascii_lowercase();
        if lower.ends_with(".yaml") || lower.ends_with(".yml") { Format::Yaml } else { Format::Json }
    }
}

/// How to read a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParseOptions<'a> {
    /// Collect unknown fields and enum names instead of refusing them.
    pub allow_unknown_fields: bool,
    /// Name of the file, for errors.
    pub file: Option<&'a str>,
}

/// A message read from a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Its wire form.
    pub bytes: Vec<u8>,
    /// Fields that no message has; empty unless they are allowed.
    pub unknown_fields: Vec<FieldPath>,
    /// Fields in use that the API calls deprecated.
    pub deprecated: Vec<FieldPath>,
}

impl Parsed {
    /// Lays another message of the same type over this one, as `--config-yaml` does: scalars are replaced, messages
    /// merged, lists appended. (Protobuf defines the merge of two messages as the concatenation of their bytes.)
    pub fn merge(&mut self, mut over: Parsed) {
        self.bytes.append(&mut over.bytes);
        self.unknown_fields.append(&mut over.unknown_fields);
        self.deprecated.append(&mut over.deprecated);
    }

    /// The message itself.
    ///
    /// # Errors
    /// When `T` is not the type that was parsed and does not fit.
    pub fn decode<T: prost::Message + Default>(&self) -> Result<T, prost::DecodeError> {
        T::decode(self.bytes.as_slice())
    }
}

/// Descriptors of Envoy's API, of xDS and of Istio's messages.
///
/// They live in the binary and are read in place, so a value of this type costs nothing to make or keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptors;

impl Descriptors {
    /// The descriptors.
    pub fn load() -> Descriptors {
        Descriptors
    }

    /// The descriptors, for those who want to share them.
    pub fn shared() -> &'static Descriptors {
        &Descriptors
    }

    /// The message type of that full name.
    pub fn message(&self, full_name: &str) -> Option<Message> {
        Message::find(full_name)
    }

    /// Reads a text into a message.
    ///
    /// # Errors
    /// A syntax error alone, or every field that does not fit.
    pub fn parse(
        &self,
        full_name: &str,
        text: &str,
        format: Format,
        options: ParseOptions<'_>,
    ) -> Result<Parsed, Vec<LoadError>> {
        let node = match format {
            Format::Yaml => load_yaml(text, options.file),
            Format::Json => load_json(text, options.file),
        };
        self.parse_node(full_name, &node.map_err(|error| vec![error])?, options)
    }

    /// Reads a tree into a message.
    ///
    /// # Errors
    /// Every field that does not fit (10,000 at most).
    pub fn parse_node(
        &self,
        full_name: &str,
        node: &Node,
        options: ParseOptions<'_>,
    ) -> Result<Parsed, Vec<LoadError>> {
        let (parsed, errors) = self.read_node(full_name, node, options);
        if errors.is_empty() { Ok(parsed) } else { Err(errors) }
    }

    /// As [`Descriptors::parse_node`], with what could be read beside the errors: for those who look for further ones.
    pub fn read_node(&self, full_name: &str, node: &Node, options: ParseOptions<'_>) -> (Parsed, Vec<LoadError>) {
        let fail = |found: String, expected: String| {
            let file = options.file.map(str::to_owned);
            (Parsed::default(), vec![LoadError { file, found, expected, at: node.at, ..LoadError::default() }])
        };
        let Some(message) = Message::find(full_name) else {
            return fail(format!("the message type \"{full_name}\""), "a type that Envoy's API has".into());
        };
        if node.value == Value::Null {
            return fail("nothing".into(), format!("an object ({full_name})"));
        }
        let mut encoder = Encoder::new(options.file, options.allow_unknown_fields);
        let mut bytes = Vec::new();
        encoder.message(message, node, &mut bytes);
        let Encoder { unknown, deprecated, errors, .. } = encoder;
        (Parsed { bytes, unknown_fields: unknown, deprecated }, errors)
    }

    /// Reads a text into a message of a Rust type.
    ///
    /// # Errors
    /// As [`Descriptors::parse`].
    pub fn parse_as<T: prost::Message + Default + Name>(
        &self,
        text: &str,
        format: Format,
        options: ParseOptions<'_>,
    ) -> Result<(T, Parsed), Vec<LoadError>> {
        let parsed = self.parse(&T::full_name(), text, format, options)?;
        match parsed.decode() {
            Ok(message) => Ok((message, parsed)),
            Err(error) => {
                let (file, found) = (options.file.map(str::to_owned), format!("bytes that do not decode ({error})"));
                Err(vec![LoadError { file, found, expected: T::full_name(), ..LoadError::default() }])
            }
        }
    }

    /// Prints a message as Envoy's admin pages do. An unknown type, or bytes that are none of it, print as null.
    pub fn to_json(&self, full_name: &str, bytes: &[u8], style: Style) -> serde_json::Value {
        let printed = Message::find(full_name).and_then(|message| print::print(message, bytes, style));
        printed.unwrap_or(serde_json::Value::Null)
    }

    /// Prints a message of a Rust type as Envoy's admin pages do.
    pub fn print<T: prost::Message + Name>(&self, message: &T, style: Style) -> serde_json::Value {
        self.to_json(&T::full_name(), &message.encode_to_vec(), style)
    }

    /// Takes the secrets out of what an Any holds, as [`Style::redact`] does in print.
    pub fn redact(&self, any: &mut Any) {
        redact::redact_any(any);
    }

    /// Looks for fields that a message on the wire has and its type does not, and for deprecated ones. `None` when the
    /// type is not known or the bytes are none of it.
    pub fn inspect(&self, full_name: &str, bytes: &[u8]) -> Option<Findings> {
        inspect::inspect(Message::find(full_name)?, bytes)
    }

    /// Checks the API's own constraints, here and in every Any whose type is known, and collects what breaks them (up
    /// to [`MAX_VIOLATIONS`](crate::MAX_VIOLATIONS)), the first being the one that Envoy would name. `None` when the
    /// type is not known or the bytes are none of it.
    pub fn violations(&self, full_name: &str, bytes: &[u8]) -> Option<Vec<Violation>> {
        rules::violations(Message::find(full_name)?, bytes)
    }

    /// Unpacks a `TypedStruct` (either spelling) into the message it describes, dropping fields that are not known, as
    /// they would be on the wire. Any other Any is handed back as it is.
    ///
    /// # Errors
    /// When the inner type is not known or a field does not fit.
    pub fn typed_struct_to_any(&self, any: Any) -> Result<Any, LoadError> {
        let options = ParseOptions { allow_unknown_fields: true, file: None };
        match self.typed_struct(&any, options) {
            Ok(Some((inner, _))) => Ok(inner),
            Ok(None) => Ok(any),
            Err(mut errors) => Err(errors.swap_remove(0)),
        }
    }

    /// As [`Descriptors::typed_struct_to_any`], with what was noticed on the way; `None` when it is no `TypedStruct`.
    ///
    /// # Errors
    /// At least one: the inner type is not known, or fields do not fit.
    pub fn typed_struct(&self, any: &Any, options: ParseOptions<'_>) -> Result<Option<(Any, Parsed)>, Vec<LoadError>> {
        let name = any.type_url.rsplit('/').next().unwrap_or("");
        if !TypedStruct::NAMES.contains(&name) {
            return Ok(None);
        }
        let fail = |path: &str, found: String, expected: &str| {
            let file = options.file.map(str::to_owned);
            Err(vec![LoadError { file, path: path.into(), found, expected: expected.into(), ..LoadError::default() }])
        };
        let typed = match TypedStruct::decode(any.value.as_slice()) {
            Ok(typed) => typed,
            Err(error) => return fail("value", format!("bytes that do not decode ({error})"), name),
        };
        let inner = typed.type_url.rsplit('/').next().unwrap_or("");
        if Message::find(inner).is_none() {
            return fail("type_url", quote(&typed.type_url), &expected_type(inner));
        }
        let json = convert::struct_to_json(&typed.value.unwrap_or_else(Struct::default));
        let parsed = self.parse_node(inner, &Node::from_json(&json), options)?;
        Ok(Some((Any { type_url: typed.type_url, value: parsed.bytes.clone() }, parsed)))
    }
}
