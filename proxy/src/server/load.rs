//! Reading configuration: files and text in, one message and its checked model out.

use crate::cli::{Mode, Options};
use crate::config::answers::Deprecated;
use crate::config::{self, Checked, ConfigError, Context, ProblemKind, StaticResources, model};
use bytes::Bytes;
use std::path::Path;
use std::time::SystemTime;
use xds_protos::{Descriptors, Format, LoadError, Node, ParseOptions, Parsed, Value, load_json, load_yaml};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// A bootstrap that was read and checked.
pub struct Loaded {
    pub model: model::Bootstrap,
    /// The message, for /config_dump.
    pub bytes: Bytes,
    pub notices: Notices,
    pub at: SystemTime,
}

/// What a person should hear of a configuration that is not refused for it.
#[derive(Default)]
pub struct Notices {
    /// Unknown fields that were allowed: paths.
    pub unknown_fields: Vec<String>,
    /// Deprecated fields in use.
    pub deprecated_fields: Vec<Deprecated>,
    /// Fields without effect.
    pub warnings: Vec<Warning>,
    /// Fields without effect and unknown ones, those past the lists included.
    pub warned: usize,
    pub unknown: usize,
}

/// A field without effect.
pub struct Warning {
    /// The resource that has it, as a person calls it: `cluster 'a'`; empty outside of static resources.
    pub resource: String,
    pub of: config::Warning,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.resource.is_empty() {
            write!(f, "{}: ", self.resource)?;
        }
        write!(f, "{}", self.of)
    }
}

impl Notices {
    /// Adds what a conversion noticed.
    pub fn add(&mut self, notices: config::Notices, resources: &StaticResources) {
        self.warned += notices.warned();
        self.unknown += notices.unknown.len() + notices.more_unknown;
        self.unknown_fields.extend(notices.unknown.into_iter().map(|unknown| unknown.path));
        self.deprecated_fields.extend(notices.deprecated);
        self.warnings.extend(notices.warnings.into_iter().map(|warning| {
            let resource = resources.name_of(&warning.path).unwrap_or_default();
            Warning { resource, of: warning }
        }));
    }
}

/// Text that was read into a message, as far as it could be.
pub struct Input {
    /// What a person calls it: the file's path, or the flag.
    pub source: String,
    pub bytes: Vec<u8>,
    pub unknown_fields: Vec<String>,
    /// What is wrong with the text itself.
    pub problems: Vec<ConfigError>,
    /// What stands there instead of a bootstrap: resources. Only `--mode validate` takes them.
    pub resources: Option<Node>,
}

/// Name of what `options` have us read.
pub fn source(options: &Options) -> String {
    options.config_path.as_ref().map_or_else(|| "--config-yaml".to_owned(), |path| path.display().to_string())
}

/// Reads `--config-path` and merges `--config-yaml` over it.
pub fn read(options: &Options) -> Input {
    let mut input = Input {
        source: source(options),
        bytes: Vec::new(),
        unknown_fields: Vec::new(),
        problems: Vec::new(),
        resources: None,
    };
    if let Some(path) = &options.config_path {
        match extension(path) {
            "pb" => match std::fs::read(path) {
                Ok(content) => input.bytes = content,
                Err(e) => input.problems.push(unreadable(&e)),
            },
            _ => match read_text(path) {
                Ok(text) => input.take(&text, Format::of_file(&input.source), options),
                Err(problem) => input.problems.push(problem),
            },
        }
    }
    if let Some(text) = &options.config_yaml {
        // protobuf merges a second message by decoding it after the first: scalars replaced, messages merged, lists joined
        input.take(text, Format::Yaml, options);
    }
    input
}

impl Input {
    fn take(&mut self, text: &str, format: Format, options: &Options) {
        let allowed = options.allow_unknown_static_fields;
        let node = match tree(text, format) {
            Ok(node) if options.mode == Mode::Validate && holds_resources(&node) => {
                self.resources = Some(node);
                return;
            }
            other => other,
        };
        match node {
            Ok(node) => {
                let parsed = parse(BOOTSTRAP, &node, allowed, &mut self.problems);
                self.bytes.extend(parsed.bytes);
                self.unknown_fields.extend(parsed.unknown_fields.into_iter().map(|field| field.path));
            }
            Err(error) => self.problems.push(problem(error)),
        }
    }
}

/// An object with `@type`, a list of such, or a discovery response.
fn holds_resources(node: &Node) -> bool {
    matches!(node.value, Value::List(_)) || node.get("@type").is_some() || node.get("resources").is_some()
}

/// Reads a text as YAML or JSON.
fn tree(text: &str, format: Format) -> Result<Node, LoadError> {
    match format {
        Format::Yaml => load_yaml(text, None),
        Format::Json => load_json(text, None),
    }
}

/// Reads a tree as a message. What does not fit is a problem, but not the end: the rest is read.
pub fn parse(full_name: &str, node: &Node, allow_unknown_fields: bool, problems: &mut Vec<ConfigError>) -> Parsed {
    let options = ParseOptions { allow_unknown_fields, file: None };
    let (parsed, errors) = Descriptors::shared().read_node(full_name, node, options);
    problems.extend(errors.into_iter().map(problem));
    parsed
}

/// A file's text.
///
/// # Errors
/// Files that cannot be read, that are no UTF-8, or whose format is not read here.
fn read_text(path: &Path) -> Result<String, ConfigError> {
    if matches!(extension(path), "pb_text" | "textproto") {
        let message = "protobuf text is not read here; convert it to YAML or JSON";
        return Err(ConfigError::new("", message).of_kind(ProblemKind::Syntax));
    }
    let content = std::fs::read(path).map_err(|e| unreadable(&e))?;
    String::from_utf8(content).map_err(|e| {
        let message = format!("not UTF-8 at byte {}; expected YAML or JSON", e.utf8_error().valid_up_to());
        ConfigError::new("", message).of_kind(ProblemKind::Syntax)
    })
}

fn unreadable(error: &std::io::Error) -> ConfigError {
    ConfigError::new("", format!("{}; pass a readable file to --config-path", plain(error)))
}

/// What the loader found, as a problem like all others.
pub fn problem(error: LoadError) -> ConfigError {
    let place = match error.at.line {
        0 => String::new(),
        line => format!(" (line {line}, column {})", error.at.column),
    };
    let message = format!("found {}, expected {}{place}", error.found, error.expected);
    ConfigError::new(error.path, message).of_kind(ProblemKind::Syntax)
}

/// The context of a bootstrap: it refuses fields that the API does not have unless a flag says otherwise.
pub fn context(options: &Options) -> Context {
    let refuse_unknown =
        (!options.allow_unknown_static_fields).then_some("pass --allow-unknown-static-fields to have it ignored");
    let mut context = Context::default().refusing_unknown(refuse_unknown);
    context.check_sources = true;
    context
}

/// Reads the bootstrap and checks it.
///
/// # Errors
/// One line per problem: the file, the field's path, what was found and what is expected.
pub fn load(options: &Options) -> Result<Loaded, String> {
    let Input { source, bytes, unknown_fields, mut problems, resources: _ } = read(options);
    let mut context = context(options);
    context.service_cluster = Some(options.service_cluster.clone()).filter(|name| !name.is_empty());
    let checked = if problems.is_empty() { config::check_bootstrap(&bytes, &mut context) } else { Checked::default() };
    problems.extend(checked.problems.into_iter().flat_map(ConfigError::into_problems));
    let Some(mut model) = checked.bootstrap.filter(|_| problems.is_empty()) else {
        let lines: Vec<String> = problems.iter().map(|problem| format!("{source}: {problem}")).collect();
        return Err(lines.join("\n"));
    };
    override_node(&mut model.node, options);
    let mut notices = Notices { unknown: unknown_fields.len(), unknown_fields, ..Notices::default() };
    notices.add(context.notices, &checked.resources);
    Ok(Loaded { model, bytes: bytes.into(), notices, at: SystemTime::now() })
}

/// What the flags say of the node stands above what the bootstrap says.
pub fn override_node(node: &mut model::Node, options: &Options) {
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

fn extension(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

/// An I/O error without its OS error number.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
