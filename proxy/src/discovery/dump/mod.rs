//! `/config_dump`: the ledger in the shape of `envoy.admin.v3.ConfigDump`.
//!
//! Resources are printed from the bytes they came as, one at a time and only as fast as the page is read: it may be a
//! hundred times larger than what the ledger keeps.

mod endpoints;
mod entries;
mod mask;
mod sections;
#[cfg(test)]
mod tests;

pub(super) use entries::{any, failure, status, time};

use crate::admin::{ConfigDumpQuery, write_json};
use crate::discovery::ledger::{Api, Ledger};
use crate::upstream::Cluster;
use bytes::Bytes;
use mask::Mask;
use prost::Message as _;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::SystemTime;
use time::OffsetDateTime;
use xds_protos::pb::envoy::admin::v3::BootstrapConfigDump;
use xds_protos::pb::envoy::config::bootstrap::v3::Bootstrap;
use xds_protos::pb::envoy::config::core::v3::Node;
use xds_protos::table::Message;
use xds_protos::{Descriptors, Style};

/// Secrets never leave the process.
const REDACTED: Style = Style { redact: true, defaults: false };
/// Text made at once.
const CHUNK: usize = 32 * 1024;

/// What the bootstrap was, for its section.
pub struct StaticConfig {
    pub bytes: Bytes,
    pub loaded: SystemTime,
}

/// Why there is no page.
#[derive(Debug, PartialEq, Eq)]
pub struct DumpError {
    /// 400, or 404 for a resource that no section has.
    pub status: u16,
    pub message: String,
}

/// What the page is made of.
pub struct Parts<'a> {
    pub ledger: &'a Ledger,
    pub bootstrap: &'a StaticConfig,
    /// As it is told to control planes.
    pub node: &'a Node,
    /// The live ones; asked for with `include_eds`.
    pub clusters: &'a [Arc<Cluster>],
    include_eds: bool,
    names: Option<regex::Regex>,
}

/// A message of `envoy.admin.v3` that stands in the page.
struct Section {
    message: &'static str,
    /// `version_info`, for those that have it.
    version: Option<Arc<str>>,
    lists: Vec<List>,
}

/// One repeated field of a section.
struct List {
    field: &'static str,
    /// The type of its elements, a message inside the section's.
    element: &'static str,
    /// What the elements hold in their Any.
    inner: Api,
    items: Vec<Element>,
}

/// Makes the wire form of one element.
type Element = Box<dyn FnOnce() -> Vec<u8>>;

/// Gathers a section.
type Gather = fn(&Parts<'_>) -> Section;

/// The sections that Envoy's page may have, in its order.
const SECTIONS: [(&str, Gather); 7] = [
    ("ClustersConfigDump", sections::clusters),
    ("EcdsConfigDump", sections::ecds),
    ("EndpointsConfigDump", sections::endpoints),
    ("ListenersConfigDump", sections::listeners),
    ("ScopedRoutesConfigDump", sections::scoped_routes),
    ("RoutesConfigDump", sections::routes),
    ("SecretsConfigDump", sections::secrets),
];
const BOOTSTRAP: &str = "BootstrapConfigDump";

impl<'a> Parts<'a> {
    /// `clusters`: the live ones if the query has `include_eds`, else none.
    ///
    /// # Errors
    /// A bad `name_regex`.
    pub fn new(
        ledger: &'a Ledger,
        bootstrap: &'a StaticConfig,
        node: &'a Node,
        clusters: &'a [Arc<Cluster>],
        query: &ConfigDumpQuery,
    ) -> Result<Parts<'a>, DumpError> {
        let names = name_matcher(query.name_regex.as_deref())
            .map_err(|e| DumpError { status: 400, message: format!("INVALID_ARGUMENT: {e}") })?;
        Ok(Parts { ledger, bootstrap, node, clusters, include_eds: query.include_eds, names })
    }

    /// The page.
    ///
    /// # Errors
    /// What the query asks for does not exist, or its mask leads nowhere.
    pub fn dump(&self, query: &ConfigDumpQuery) -> Result<Dump, DumpError> {
        match &query.resource {
            Some(resource) => self.elements(resource, query.mask.as_deref()),
            None => self.everything(query.mask.as_deref()),
        }
    }

    /// Envoy leaves out these where there is nothing of the kind at all.
    fn has(&self, section: &str) -> bool {
        match section {
            "EcdsConfigDump" => self.ledger.of(&Api::Ecds.type_url()).next().is_some(),
            "EndpointsConfigDump" => !self.clusters.is_empty() || self.refused_endpoints().next().is_some(),
            "RoutesConfigDump" | "ScopedRoutesConfigDump" => self.has_http(),
            _ => true,
        }
    }

    fn everything(&self, mask: Option<&str>) -> Result<Dump, DumpError> {
        let given = mask;
        let mask = Mask::parse(mask.unwrap_or_default());
        let mut page = Page::default();
        let fits = |section: &str| message(section).filter(|message| mask.fits(*message));
        if let Some(message) = fits(BOOTSTRAP) {
            page.whole(message, mask.trim(message, self.bootstrap()));
        }
        for (name, make) in SECTIONS {
            if fits(name).is_some() && self.has(name) {
                page.section(make(self), &mask);
            }
        }
        match given {
            Some(given) if page.is_empty() => Err(DumpError {
                status: 400,
                message: format!("FieldMask {given} could not be successfully applied to any configs."),
            }),
            _ => Ok(page.end()),
        }
    }

    /// `?resource=`: the elements of one list.
    fn elements(&self, resource: &str, mask: Option<&str>) -> Result<Dump, DumpError> {
        let bad = |status, message| Err(DumpError { status, message });
        let field = |section: &str| message(section).and_then(|m| m.field_by_name(resource));
        let all = std::iter::once(BOOTSTRAP).chain(SECTIONS.iter().map(|(name, _)| *name));
        let holder = all.filter(|name| self.has(name)).find(|name| field(name).is_some_and(|f| f.name() == resource));
        let Some(holder) = holder else { return bad(404, format!("{resource} not found in config dump")) };
        let section = SECTIONS.iter().find(|(name, _)| *name == holder);
        let list = section.and_then(|(_, make)| make(self).lists.into_iter().find(|list| list.field == resource));
        let Some(list) = list else {
            let text = format!("{resource} is not a repeated field. Use ?mask={resource} to get only this field");
            return bad(400, text);
        };
        let parsed = Mask::parse(mask.unwrap_or_default());
        if let Some((element, inner)) = list.types(holder)
            && !list.items.is_empty()
            && !parsed.fits_element(element, inner)
        {
            let paths = mask.unwrap_or_default().split(',').filter(|path| !path.is_empty());
            let paths: String = paths.map(|path| format!("paths: \"{path}\"\n")).collect();
            return bad(400, format!("FieldMask {paths} could not be successfully used."));
        }
        let mut page = Page::default();
        page.elements(holder, list, parsed);
        Ok(page.end())
    }

    /// The node is shown as control planes see it, with what the command line says of it.
    fn bootstrap(&self) -> Vec<u8> {
        let mut bootstrap = Bootstrap::decode(self.bootstrap.bytes.clone()).unwrap_or_default();
        bootstrap.node = Some(self.node.clone());
        let dump = BootstrapConfigDump { bootstrap: Some(bootstrap), last_updated: Some(time(self.bootstrap.loaded)) };
        dump.encode_to_vec()
    }
}

impl List {
    fn types(&self, section: &str) -> Option<(Message, Message)> {
        let element = Message::find(&format!("envoy.admin.v3.{section}.{}", self.element))?;
        Some((element, Message::find(self.inner.type_url().message_name())?))
    }
}

fn message(section: &str) -> Option<Message> {
    Message::find(&format!("envoy.admin.v3.{section}"))
}

/// The page as it is put together.
#[derive(Default)]
struct Page {
    steps: Vec<Step>,
}

/// A piece of the page.
enum Step {
    Text(String),
    /// Elements of a list, separated by commas; on their own lines, indented by so many levels.
    Elements {
        types: Option<(Message, Message)>,
        items: std::vec::IntoIter<Element>,
        mask: Mask,
        level: usize,
        typed: bool,
        first: bool,
    },
}

impl Page {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Begins the next entry of `configs`.
    fn next(&mut self) -> String {
        (if self.is_empty() { "{\n \"configs\": [\n  " } else { ",\n  " }).to_owned()
    }

    fn whole(&mut self, message: Message, bytes: Vec<u8>) {
        let mut text = self.next();
        write_json(&mut text, &typed(message, &bytes), 2);
        self.steps.push(Step::Text(text));
    }

    fn section(&mut self, section: Section, mask: &Mask) {
        let mut text = self.next();
        text.push_str("{\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.");
        text.push_str(section.message);
        text.push('"');
        if let Some(version) = section.version.as_ref().filter(|v| !v.is_empty() && mask.shows("version_info")) {
            text.push_str(",\n   \"version_info\": ");
            write_json(&mut text, &Value::from(&**version), 3);
        }
        for list in section.lists.into_iter().filter(|list| !list.items.is_empty() && mask.shows(list.field)) {
            text.push_str(",\n   \"");
            text.push_str(list.field);
            text.push_str("\": [");
            self.steps.push(Step::Text(std::mem::take(&mut text)));
            let types = list.types(section.message);
            let items = list.items.into_iter();
            self.steps.push(Step::Elements {
                types,
                items,
                mask: Mask::parse(""),
                level: 4,
                typed: false,
                first: true,
            });
            text.push_str("\n   ]");
        }
        text.push_str("\n  }");
        self.steps.push(Step::Text(text));
    }

    fn elements(&mut self, section: &str, list: List, mask: Mask) {
        let types = list.types(section);
        if list.items.is_empty() {
            return;
        }
        self.steps.push(Step::Text("{\n \"configs\": [".to_owned()));
        let items = list.items.into_iter();
        self.steps.push(Step::Elements { types, items, mask, level: 2, typed: true, first: true });
    }

    fn end(mut self) -> Dump {
        let text = if self.is_empty() { "{}\n" } else { "\n ]\n}\n" };
        self.steps.push(Step::Text(text.to_owned()));
        Dump { steps: self.steps.into_iter().collect() }
    }
}

/// A page that is made as it is read.
pub struct Dump {
    steps: std::collections::VecDeque<Step>,
}

impl Iterator for Dump {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        while out.len() < CHUNK {
            match self.steps.front_mut() {
                None => break,
                Some(Step::Text(text)) => out.push_str(&std::mem::take(text)),
                Some(Step::Elements { types, items, mask, level, typed, first }) => {
                    if let Some((make, (element, inner))) = items.next().zip(*types) {
                        out.push_str(if std::mem::take(first) { "\n" } else { ",\n" });
                        out.extend(std::iter::repeat_n(' ', *level));
                        let bytes = mask.trim_element(element, inner, make());
                        let value = if *typed { self::typed(element, &bytes) } else { plain(element, &bytes) };
                        write_json(&mut out, &value, *level);
                        continue;
                    }
                }
            }
            self.steps.pop_front();
        }
        (!out.is_empty()).then(|| out.into())
    }
}

fn plain(message: Message, bytes: &[u8]) -> Value {
    Descriptors.to_json(message.name(), bytes, REDACTED)
}

/// A message as JSON, with its type.
fn typed(message: Message, bytes: &[u8]) -> Value {
    let mut object = Map::new();
    object.insert("@type".into(), format!("type.googleapis.com/{}", message.name()).into());
    if let Value::Object(fields) = plain(message, bytes) {
        object.extend(fields);
    }
    object.into()
}

/// `?name_regex=`, which must match a whole name.
///
/// # Errors
/// The text of a 400 reply.
pub fn name_matcher(regex: Option<&str>) -> Result<Option<regex::Regex>, String> {
    let Some(regex) = regex else { return Ok(None) };
    let compiled = regex::Regex::new(regex).and_then(|_| regex::Regex::new(&format!("^(?:{regex})$")));
    compiled.map(Some).map_err(|e| {
        let why = e.to_string();
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("Error while parsing name_regex from {regex}: {why}")
    })
}

/// RFC 3339 with milliseconds, as Envoy prints it.
pub fn timestamp(time: SystemTime) -> String {
    let t = OffsetDateTime::from(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    )
}
