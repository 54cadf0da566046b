//! Opening `Any`: typed configuration, plain or wrapped in a `TypedStruct`.

use super::ConfigError;
use super::context::{Context, Result};
use super::pb::{core, google};
use prost::{Message, Name};
use xds_protos::{Descriptors, ParseOptions, TypedStruct};

/// The part of a `TypedStruct` that names what it holds.
#[derive(Clone, PartialEq, Message)]
struct TypedStructHead {
    #[prost(string, tag = "1")]
    type_url: String,
}

/// The name behind the last slash of a type URL.
pub(super) fn type_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// The type of what an `Any` holds, seen through a `TypedStruct`.
pub(super) fn inner_type(any: &google::Any, cx: &Context) -> Result<String> {
    let name = type_name(&any.type_url);
    if !TypedStruct::NAMES.contains(&name) {
        return Ok(name.to_owned());
    }
    let head = TypedStructHead::decode(any.value.as_slice())
        .map_err(|e| cx.error_at("value", format!("found bytes that do not decode as {name}: {e}")))?;
    Ok(type_name(&head.type_url).to_owned())
}

/// Takes a message of a known type out of an `Any`.
pub(super) fn unpack<M: Message + Default + Name>(any: google::Any, cx: &mut Context) -> Result<M> {
    let any = match TypedStruct::NAMES.contains(&type_name(&any.type_url)) {
        true => open(any, cx)?,
        false => any,
    };
    let (found, expected) = (type_name(&any.type_url), M::full_name());
    if found != expected {
        return Err(cx.error_at("@type", format!("found {found:?}, expected {expected}")));
    }
    decode(any.value.as_slice(), cx)
}

fn open(any: google::Any, cx: &Context) -> Result<google::Any> {
    let options = ParseOptions { allow_unknown_fields: true, file: None };
    match Descriptors::shared().typed_struct(&any, options) {
        Ok(None) => Ok(any),
        Ok(Some((inner, _))) => Ok(inner),
        Err(errors) => Err(match errors.into_iter().next() {
            Some(error) => cx.error_at(
                &format!("value.{}", error.path),
                format!("found {}, expected {}", error.found, error.expected),
            ),
            None => cx.error_at("value", "does not describe the message of type_url"),
        }),
    }
}

/// The error for a member of a oneof that the table of answers refuses. The walk over the table comes first and says why.
pub(super) fn refused(field: &str, cx: &Context) -> ConfigError {
    cx.error_at(field, "is not supported")
}

/// Reads the bytes of a message.
pub(super) fn decode<M: Message + Default + Name>(bytes: &[u8], cx: &Context) -> Result<M> {
    M::decode(bytes).map_err(|e| cx.error(format!("found bytes that do not decode as {}: {e}", M::full_name())))
}

/// Reads the bytes of an `Any`.
pub(super) fn decode_any(bytes: &[u8]) -> std::result::Result<google::Any, prost::DecodeError> {
    google::Any::decode(bytes)
}

/// Refuses an `Any` that should be there and is not; otherwise hands on what it holds.
pub(super) fn typed_config(extension: core::TypedExtensionConfig, cx: &Context) -> Result<(String, google::Any)> {
    let core::TypedExtensionConfig { name, typed_config } = extension;
    let any = typed_config.ok_or_else(|| cx.error_at("typed_config", "is missing, expected a typed message"))?;
    Ok((name, any))
}
