//! The protocol's messages as texts: what files hold and REST services speak.

use std::path::Path;

use xds_protos::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use xds_protos::{Descriptors, Format, ParseOptions, Style};

/// What is wrong is listed up to this many times: the rest is likely of the same kind.
const MAX_ERRORS: usize = 5;

/// How a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding(Format);

impl Encoding {
    pub const JSON: Encoding = Encoding(Format::Json);

    /// By the ending of the name.
    pub fn of_file(path: &Path) -> Encoding {
        Encoding(Format::of_file(&path.to_string_lossy()))
    }
}

/// Reads a response.
///
/// # Errors
/// Where the text does not fit, for a person.
pub(crate) fn response(bytes: &[u8], encoding: Encoding, strict: bool) -> Result<DiscoveryResponse, String> {
    let text =
        std::str::from_utf8(bytes).map_err(|e| format!("found bytes that are not UTF-8 ({e}), expected text"))?;
    let options = ParseOptions { allow_unknown_fields: !strict, file: None };
    match Descriptors::shared().parse_as::<DiscoveryResponse>(text, encoding.0, options) {
        Ok((response, parsed)) => {
            for field in parsed.unknown_fields {
                tracing::warn!("{}: an unknown field is left out", field.path);
            }
            Ok(response)
        }
        Err(errors) => {
            let more = errors.len().saturating_sub(MAX_ERRORS);
            let mut lines: Vec<String> = errors.iter().take(MAX_ERRORS).map(ToString::to_string).collect();
            if more > 0 {
                lines.push(format!("and {more} more"));
            }
            Err(lines.join("; "))
        }
    }
}

/// Writes a request as JSON.
pub(crate) fn request(request: &DiscoveryRequest) -> String {
    Descriptors::shared().print(request, Style::default()).to_string()
}
