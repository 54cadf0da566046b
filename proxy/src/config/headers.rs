//! Header operations and header names.

use super::context::{Context, Result};
use super::model::{AppendAction, HeaderAdd, HeaderOps};
use super::pb::core;
use ::http::{HeaderName, HeaderValue};

/// One level's operations: `request_headers_to_add` and `_to_remove`, or those for responses. `kind` is `request` or
/// `response`.
pub(super) fn header_ops(
    add: Vec<core::HeaderValueOption>,
    remove: Vec<String>,
    kind: &str,
    cx: &mut Context,
) -> Result<HeaderOps> {
    let add = cx.each(&format!("{kind}_headers_to_add"), add, header_add)?;
    let remove = cx.each(&format!("{kind}_headers_to_remove"), remove, |name, cx| {
        if is_protected(&name) {
            return Err(cx.error(":-prefixed or host headers may not be removed"));
        }
        header_name(&name, "", cx)
    })?;
    Ok(HeaderOps { add, remove })
}

pub(super) fn header_add(message: core::HeaderValueOption, cx: &mut Context) -> Result<HeaderAdd> {
    use core::header_value_option::HeaderAppendAction as Action;
    let core::HeaderValueOption { header, append, append_action, keep_empty_value } = message;
    let core::HeaderValue { key, value, raw_value } = cx.required("header", header)?;
    if is_protected(&key) {
        return Err(cx.error_at("header.key", ":-prefixed or host headers may not be modified"));
    }
    let name = header_name(&key, "header.key", cx)?;
    let value = match (value.is_empty(), raw_value.is_empty()) {
        (_, true) => value,
        (false, false) => return Err(cx.error_at("header", "found both value and raw_value, expected one of them")),
        // it is no format: nothing in it is an operator
        (true, false) => String::from_utf8(raw_value)
            .map_err(|_| cx.error_at("header.raw_value", "found bytes that are not UTF-8, expected text"))?
            .replace('%', "%%"),
    };
    if HeaderValue::from_str(&value).is_err() {
        return Err(cx.error_at("header.value", "found control characters, expected a header value"));
    }
    let action = match (append, cx.enumeration::<Action>("append_action", append_action)?) {
        (Some(_), set) if set != Action::AppendIfExistsOrAdd => {
            return Err(cx.error_at("append", "found both append and append_action, expected one of them"));
        }
        (Some(append), _) if !append.value => AppendAction::OverwriteIfExistsOrAdd,
        (_, Action::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        (_, Action::AddIfAbsent) => AppendAction::AddIfAbsent,
        (_, Action::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        (_, Action::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    Ok(HeaderAdd { name, value: value.into(), action, keep_empty: keep_empty_value })
}

fn is_protected(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

pub(super) fn header_name(name: &str, field: &str, cx: &Context) -> Result<HeaderName> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| cx.error_at(field, format!("found {name:?}, expected a header name")))
}

pub(super) fn header_value(value: &str, field: &str, cx: &Context) -> Result<HeaderValue> {
    HeaderValue::from_str(value).map_err(|_| cx.error_at(field, format!("found {value:?}, expected a header value")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pb::google;

    fn add(key: &str) -> core::HeaderValueOption {
        core::HeaderValueOption {
            header: Some(core::HeaderValue { key: key.into(), value: "v".into(), raw_value: Vec::new() }),
            ..Default::default()
        }
    }

    #[test]
    fn pseudo_headers_and_host_are_out_of_reach() {
        let mut cx = Context::default();
        for name in [":path", "Host"] {
            assert_eq!(
                header_ops(vec![add(name)], vec![], "request", &mut cx).unwrap_err().to_string(),
                "request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified"
            );
        }
        let converted = header_ops(vec![], vec!["x".into(), "host".into()], "response", &mut cx);
        assert_eq!(
            cx.finish(converted).unwrap_err().to_string(),
            "response_headers_to_remove[1]: :-prefixed or host headers may not be removed"
        );
    }

    #[test]
    fn a_raw_value_is_no_format() {
        let mut option = add("x");
        let header = option.header.as_mut().unwrap();
        (header.value, header.raw_value) = (String::new(), b"50%REQ(x)%".to_vec());
        assert_eq!(&*header_add(option, &mut Context::default()).unwrap().value, "50%%REQ(x)%%");
    }

    #[test]
    fn the_old_append_flag_is_understood() {
        let mut cx = Context::default();
        let mut option = add("x");
        option.append = Some(google::BoolValue { value: false });
        assert_eq!(header_add(option.clone(), &mut cx).unwrap().action, AppendAction::OverwriteIfExistsOrAdd);
        option.append_action = 1;
        assert!(header_add(option, &mut cx).unwrap_err().to_string().contains("expected one of them"));
        assert_eq!(header_add(add("x"), &mut cx).unwrap().action, AppendAction::AppendIfExistsOrAdd);
    }
}
