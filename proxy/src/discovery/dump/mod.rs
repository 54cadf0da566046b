//! `/config_dump`: the ledger in the shape of `envoy.admin.v3.ConfigDump`.
//!
//! Resources are printed from the bytes they came as.

mod json;

pub use json::write_json;

use super::ledger::{Ledger, Record, State};
use crate::admin::ConfigDumpQuery;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::SystemTime;
use time::OffsetDateTime;
use xds_client::TypeUrl;
use xds_protos::{Descriptors, Style};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
/// Secrets never leave the process.
const REDACTED: Style = Style { redact: true, defaults: false };

/// What the bootstrap was, for its section.
pub struct StaticConfig {
    pub bytes: Bytes,
    pub loaded: SystemTime,
}

impl Ledger {
    /// The page.
    ///
    /// # Errors
    /// A bad query, for a 400 reply.
    pub fn dump(&self, config: &StaticConfig, query: &ConfigDumpQuery) -> Result<Value, String> {
        let name_regex = name_matcher(query.name_regex.as_deref())?;
        let page = Page { ledger: self, descriptors: Descriptors::shared(), name_regex };
        let mut sections = vec![page.bootstrap(config), page.clusters()];
        if query.include_eds {
            sections.push(page.endpoints());
        }
        sections.extend([
            page.listeners(),
            section("ScopedRoutesConfigDump", Map::new()),
            page.routes(),
            page.secrets(),
        ]);
        if let Some(resource) = &query.resource {
            sections = elements(sections, resource)?;
        }
        if let Some(mask) = &query.mask {
            let paths: Vec<Vec<&str>> = mask.split(',').map(|path| path.split('.').collect()).collect();
            let keep = |v: Value| masked(v, &paths);
            sections = sections.into_iter().filter_map(keep).collect();
        }
        Ok(if sections.is_empty() { json!({}) } else { json!({ "configs": sections }) })
    }
}

struct Page<'a> {
    ledger: &'a Ledger,
    descriptors: &'static Descriptors,
    name_regex: Option<regex::Regex>,
}

impl Page<'_> {
    /// A message as JSON, with its type.
    fn message(&self, type_name: &str, bytes: &[u8]) -> Value {
        let body = self.descriptors.to_json(type_name, bytes, REDACTED);
        let mut object = Map::new();
        object.insert("@type".into(), format!("type.googleapis.com/{type_name}").into());
        if let Value::Object(fields) = body {
            object.extend(fields);
        }
        Value::Object(object)
    }

    fn records(&self, type_url: &TypeUrl) -> Vec<(&Arc<str>, &Record)> {
        let fits = |name: &str| self.name_regex.as_ref().is_none_or(|r| r.is_match(name));
        self.ledger.of(type_url).filter(|(name, _)| fits(name)).collect()
    }

    fn bootstrap(&self, config: &StaticConfig) -> Value {
        let mut fields = Map::new();
        let bootstrap = self.descriptors.to_json(BOOTSTRAP, &config.bytes, REDACTED);
        fields.insert("bootstrap".into(), bootstrap);
        fields.insert("last_updated".into(), timestamp(config.loaded).into());
        section("BootstrapConfigDump", fields)
    }

    /// One resource: its version, the message under `field`, and when it came.
    fn resource(&self, type_url: &TypeUrl, field: &str, record: &Record) -> Map<String, Value> {
        let mut object = Map::new();
        if let Some(running) = record.running.as_ref().or(record.warming()) {
            if !running.version.is_empty() {
                object.insert("version_info".into(), (&*running.version).into());
            }
            object.insert(field.into(), self.message(type_url.message_name(), &running.bytes));
            object.insert("last_updated".into(), timestamp(running.taken).into());
        }
        object
    }

    fn clusters(&self) -> Value {
        let mut lists = Lists::default();
        for (_, record) in self.records(&TypeUrl::CLUSTER) {
            let mut object = self.resource(&TypeUrl::CLUSTER, "cluster", record);
            let list = match record {
                Record { is_static: true, .. } => "static_clusters",
                _ if record.running.is_none() => "dynamic_warming_clusters",
                _ => "dynamic_active_clusters",
            };
            if !record.is_static {
                add_status(&mut object, record);
            }
            lists.push(list, object);
        }
        lists.into_section("ClustersConfigDump", self.ledger.version(&TypeUrl::CLUSTER))
    }

    fn listeners(&self) -> Value {
        let mut lists = Lists::default();
        for (name, record) in self.records(&TypeUrl::LISTENER) {
            let state = self.resource(&TypeUrl::LISTENER, "listener", record);
            if record.is_static {
                lists.push("static_listeners", state);
                continue;
            }
            let mut object = Map::new();
            object.insert("name".into(), (&**name).into());
            if !state.is_empty() {
                let which = if record.running.is_some() { "active_state" } else { "warming_state" };
                object.insert(which.into(), state.into());
            }
            add_status(&mut object, record);
            lists.push("dynamic_listeners", object);
        }
        lists.into_section("ListenersConfigDump", self.ledger.version(&TypeUrl::LISTENER))
    }

    fn routes(&self) -> Value {
        let mut lists = Lists::default();
        for (_, record) in self.records(&TypeUrl::LISTENER) {
            let Some(running) = &record.running else { continue };
            let listener = self.message(TypeUrl::LISTENER.message_name(), &running.bytes);
            let mut inline = Vec::new();
            find_all(&listener, "route_config", &mut inline);
            for route in inline {
                let mut object = Map::new();
                let mut config = Map::new();
                config.insert("@type".into(), TypeUrl::ROUTE.as_str().into());
                config.extend(route.as_object().cloned().unwrap_or_default());
                object.insert("route_config".into(), config.into());
                object.insert("last_updated".into(), timestamp(running.taken).into());
                lists.push("static_route_configs", object);
            }
        }
        for (_, record) in self.records(&TypeUrl::ROUTE) {
            let mut object = self.resource(&TypeUrl::ROUTE, "route_config", record);
            add_status(&mut object, record);
            lists.push("dynamic_route_configs", object);
        }
        lists.into_section("RoutesConfigDump", "")
    }

    fn endpoints(&self) -> Value {
        let mut lists = Lists::default();
        for (_, record) in self.records(&TypeUrl::CLUSTER) {
            let Some(running) = &record.running else { continue };
            let cluster = self.message(TypeUrl::CLUSTER.message_name(), &running.bytes);
            if let Some(assignment) = cluster.get("load_assignment").and_then(Value::as_object) {
                let mut config = Map::new();
                config.insert("@type".into(), TypeUrl::ENDPOINT.as_str().into());
                config.extend(assignment.clone());
                let list = if record.is_static { "static_endpoint_configs" } else { "dynamic_endpoint_configs" };
                lists.push(list, Map::from_iter([("endpoint_config".to_owned(), config.into())]));
            }
        }
        for (_, record) in self.records(&TypeUrl::ENDPOINT) {
            let mut object = self.resource(&TypeUrl::ENDPOINT, "endpoint_config", record);
            add_status(&mut object, record);
            lists.push("dynamic_endpoint_configs", object);
        }
        lists.into_section("EndpointsConfigDump", "")
    }

    fn secrets(&self) -> Value {
        let mut lists = Lists::default();
        for (name, record) in self.records(&TypeUrl::SECRET) {
            let mut object = Map::from_iter([("name".to_owned(), Value::from(&**name))]);
            object.extend(self.resource(&TypeUrl::SECRET, "secret", record));
            let list = match record {
                Record { is_static: true, .. } => "static_secrets",
                Record { running: None, .. } => "dynamic_warming_secrets",
                _ => "dynamic_active_secrets",
            };
            if !record.is_static {
                add_status(&mut object, record);
            }
            lists.push(list, object);
        }
        lists.into_section("SecretsConfigDump", "")
    }
}

/// The lists of a section, in the order of first use.
#[derive(Default)]
struct Lists(Map<String, Value>);

impl Lists {
    fn push(&mut self, list: &str, object: Map<String, Value>) {
        let entry = self.0.entry(list).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(items) = entry {
            items.push(object.into());
        }
    }

    fn into_section(self, name: &str, version: &str) -> Value {
        let mut fields = Map::new();
        if !version.is_empty() {
            fields.insert("version_info".into(), version.into());
        }
        fields.extend(self.0);
        section(name, fields)
    }
}

fn section(name: &str, fields: Map<String, Value>) -> Value {
    let mut object =
        Map::from_iter([("@type".to_owned(), Value::from(format!("type.googleapis.com/envoy.admin.v3.{name}")))]);
    object.extend(fields);
    object.into()
}

/// `error_state` and `client_status` of a dynamic resource.
fn add_status(object: &mut Map<String, Value>, record: &Record) {
    if let Some(refusal) = record.refusal() {
        object.insert(
            "error_state".into(),
            json!({
                "last_update_attempt": timestamp(refusal.at),
                "details": refusal.detail,
                "version_info": &*refusal.version,
            }),
        );
    }
    let status = match record.state() {
        State::Rejected => "NACKED",
        _ => "ACKED",
    };
    object.insert("client_status".into(), status.into());
}

/// `?name_regex=`, which must match a whole name.
///
/// # Errors
/// The text of a 400 reply.
pub fn name_matcher(regex: Option<&str>) -> Result<Option<regex::Regex>, String> {
    let compile = |regex: &str| regex::Regex::new(&format!("^(?:{regex})$"));
    let Some(regex) = regex else { return Ok(None) };
    compile(regex).map(Some).map_err(|e| format!("Error while parsing name_regex from {regex}: {e}"))
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

/// Every object under a key of this name, at any depth.
fn find_all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                if name == key && inner.is_object() {
                    found.push(inner);
                } else {
                    find_all(inner, key, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| find_all(item, key, found)),
        _ => {}
    }
}

/// Fields of the dump's sections that may be asked for, with the message type of their elements.
const RESOURCES: &[(&str, &str)] = &[
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    ("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster"),
    ("dynamic_warming_clusters", "ClustersConfigDump.DynamicCluster"),
    ("static_endpoint_configs", "EndpointsConfigDump.StaticEndpointConfig"),
    ("dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig"),
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    ("dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig"),
    ("inline_scoped_route_configs", "ScopedRoutesConfigDump.InlineScopedRouteConfigs"),
    ("dynamic_scoped_route_configs", "ScopedRoutesConfigDump.DynamicScopedRouteConfigs"),
    ("static_secrets", "SecretsConfigDump.StaticSecret"),
    ("dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
    ("dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
];

/// `?resource=`: the elements of one field of the sections.
fn elements(sections: Vec<Value>, resource: &str) -> Result<Vec<Value>, String> {
    if resource == "bootstrap" {
        return Ok(sections.into_iter().take(1).collect());
    }
    let Some((_, element)) = RESOURCES.iter().find(|(field, _)| *field == resource) else {
        return Err(format!("{resource} not found in config dump"));
    };
    let mut found = Vec::new();
    for mut part in sections {
        if let Some(Value::Array(items)) = part.get_mut(resource).map(Value::take) {
            found.extend(items.into_iter().filter_map(|item| match item {
                Value::Object(fields) => Some(section(element, fields)),
                _ => None,
            }));
        }
    }
    Ok(found)
}

/// What a field mask leaves of a value; `None` when nothing is left. `@type` always stays.
fn masked(value: Value, paths: &[Vec<&str>]) -> Option<Value> {
    let Value::Object(fields) = value else { return Some(value) };
    let mut kept = Map::new();
    for (name, inner) in fields {
        if name == "@type" {
            kept.insert(name, inner);
            continue;
        }
        let below: Vec<Vec<&str>> =
            paths.iter().filter(|p| p.first() == Some(&name.as_str())).map(|p| p[1..].to_vec()).collect();
        if below.is_empty() {
            continue;
        }
        if below.iter().any(Vec::is_empty) {
            kept.insert(name, inner);
            continue;
        }
        let inner = match inner {
            Value::Array(items) => Value::Array(items.into_iter().filter_map(|i| masked(i, &below)).collect()),
            other => match masked(other, &below) {
                Some(inner) => inner,
                None => continue,
            },
        };
        kept.insert(name, inner);
    }
    let only_type = kept.keys().all(|k| k == "@type");
    (!only_type).then_some(Value::Object(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_keeps_its_paths() {
        let value = json!({"@type": "t", "bootstrap": {"node": {"id": "x", "cluster": "c"}, "admin": {}}, "last_updated": "now"});
        let left = masked(value.clone(), &[vec!["bootstrap", "node", "id"]]).unwrap();
        assert_eq!(left, json!({"@type": "t", "bootstrap": {"node": {"id": "x"}}}));
        assert_eq!(masked(value, &[vec!["nothing"]]), None);
    }

    #[test]
    fn one_resource_field_is_taken_apart() {
        let sections =
            vec![json!({"@type": "a", "static_clusters": [{"cluster": 1}, {"cluster": 2}]}), json!({"@type": "b"})];
        let found = elements(sections.clone(), "static_clusters").unwrap();
        assert_eq!(
            found[1],
            json!({"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster", "cluster": 2})
        );
        assert!(elements(sections.clone(), "dynamic_listeners").unwrap().is_empty());
        assert_eq!(elements(sections, "nope").unwrap_err(), "nope not found in config dump");
    }

    #[test]
    fn times_print_in_rfc_3339() {
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
    }
}
