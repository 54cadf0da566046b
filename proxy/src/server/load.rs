//! Reading the bootstrap: files and text in, one message and its checked model out.

use crate::cli::Options;
use crate::config::{self, Context, model};
use bytes::Bytes;
use std::path::Path;
use std::time::SystemTime;
use xds_protos::{Descriptors, Format, LoadError, ParseOptions};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// A bootstrap that was read and checked.
pub struct Loaded {
    pub model: model::Bootstrap,
    /// The message, for /config_dump.
    pub bytes: Bytes,
    /// Paths of unknown fields that were allowed.
    pub unknown_fields: Vec<String>,
    /// Deprecated fields in use: path and full name.
    pub deprecated_fields: Vec<(String, String)>,
    /// Fields without effect: path and meaning.
    pub warnings: Vec<(String, String)>,
    pub at: SystemTime,
}

/// Reads `--config-path`, merges `--config-yaml` over it and checks the result.
///
/// # Errors
/// One line: the file, the field's path, what was found and what is expected.
pub fn load(options: &Options) -> Result<Loaded, String> {
    let descriptors = Descriptors::shared();
    let mut bytes = Vec::new();
    let mut unknown_fields = Vec::new();
    let mut source = "--config-yaml".to_owned();
    let mut deprecated_fields = Vec::new();
    let mut parse = |text: &str, name: &str, format: Format| -> Result<Vec<u8>, String> {
        let allow_unknown_fields = options.allow_unknown_static_fields;
        let parse_options = ParseOptions { allow_unknown_fields, file: Some(name) };
        let parsed = descriptors.parse(BOOTSTRAP, text, format, parse_options).map_err(|errors| one_line(&errors))?;
        unknown_fields.extend(parsed.unknown_fields.into_iter().map(|f| f.path));
        deprecated_fields.extend(parsed.deprecated.into_iter().map(|f| (f.path, f.name)));
        Ok(parsed.bytes)
    };
    if let Some(path) = &options.config_path {
        source = path.display().to_string();
        let content = std::fs::read(path)
            .map_err(|e| format!("{source}: {}; pass a readable file to --config-path", plain(&e)))?;
        bytes = match extension(path) {
            "pb" => content,
            "pb_text" | "textproto" => {
                return Err(format!("{source}: protobuf text is not read here; convert it to YAML or JSON"));
            }
            _ => {
                let text = String::from_utf8(content).map_err(|e| {
                    format!("{source}: not UTF-8 at byte {}; expected YAML or JSON", e.utf8_error().valid_up_to())
                })?;
                parse(&text, &source, Format::of_file(&source))?
            }
        };
    }
    if let Some(text) = &options.config_yaml {
        // protobuf merges a second message by decoding it after the first: scalars replaced, messages merged, lists joined
        bytes.extend(parse(text, "--config-yaml", Format::Yaml)?);
    }
    let mut context = Context::default();
    let mut model = config::bootstrap(&bytes, &mut context).map_err(|e| format!("{source}: {e}"))?;
    override_node(&mut model.node, options);
    Ok(Loaded {
        model,
        bytes: bytes.into(),
        unknown_fields,
        deprecated_fields,
        warnings: context.notices.warnings,
        at: SystemTime::now(),
    })
}

fn override_node(node: &mut model::Node, options: &Options) {
    if !options.service_node.is_empty() {
        node.id.clone_from(&options.service_node);
        node.message.id.clone_from(&options.service_node);
    }
    if !options.service_cluster.is_empty() {
        node.cluster.clone_from(&options.service_cluster);
        node.message.cluster.clone_from(&options.service_cluster);
    }
    if !options.service_zone.is_empty() {
        node.zone.clone_from(&options.service_zone);
        node.message.locality.get_or_insert_default().zone.clone_from(&options.service_zone);
    }
}

/// One line for several problems: the first, and how many more there are.
fn one_line(errors: &[LoadError]) -> String {
    let first = errors.first().map_or_else(|| "cannot be read".to_owned(), LoadError::to_string);
    let more = errors.len().saturating_sub(1);
    if more > 0 { format!("{first} (and {more} more)") } else { first }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

/// An I/O error without its OS error number.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
