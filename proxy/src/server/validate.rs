//! `--mode validate`: every problem of a file at once, found by building all that serving would build and binding
//! nothing. Reads bootstraps, and bare resources as a file of a control plane holds them.

use super::load::{self, Input, Notices};
use super::unheard;
use super::{Foundation, foundation};
use crate::cli::{Options, OutputFormat};
use crate::config::model::{Address, Bootstrap, ConfigSource, ConfigSourceKind, GrpcTarget};
use crate::config::{self, Checked, ConfigError, Context, ProblemKind, Resource, StaticResources};
use crate::http::RouteTable;
use crate::services::Services;
use crate::slots::{Key as SlotKey, Kind, Want};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use xds_protos::{Key, Node, Value};

/// What a file as `path_config_source` reads it holds.
const RESPONSE: &str = "envoy.service.discovery.v3.DiscoveryResponse";

/// Everything there is to say of a file.
#[derive(Default)]
struct Report {
    problems: Vec<ConfigError>,
    notices: Notices,
}

/// Checks the configuration and says what was found. Must run on a `LocalRuntime`: clusters warm by themselves.
pub fn run(options: &Options) -> ExitCode {
    let mut input = load::read(options);
    let source = std::mem::take(&mut input.source);
    let report = match input.resources.take() {
        Some(node) => resources(node, options),
        None => bootstrap(input, options),
    };
    let valid = report.problems.is_empty();
    match options.format {
        OutputFormat::Text => {
            super::log_notices(&report.notices, options);
            for problem in &report.problems {
                eprintln!("{source}: {problem}");
            }
            match report.problems.len() {
                0 => println!("configuration '{source}' OK"),
                1 => eprintln!("configuration '{source}': 1 problem"),
                n => eprintln!("configuration '{source}': {n} problems"),
            }
        }
        OutputFormat::Json => println!("{}", report.json()),
    }
    if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Report {
    fn json(&self) -> serde_json::Value {
        let problems = self.problems.iter();
        let warnings = self.notices.warnings.iter();
        let deprecated = self.notices.deprecated_fields.iter();
        json!({
            "valid": self.problems.is_empty(),
            "problems": problems.map(|p| json!({ "path": p.path, "message": p.message, "kind": p.kind.name() })).collect::<Vec<_>>(),
            "warnings": warnings.map(|w| json!({ "path": w.of.path, "meaning": w.of.meaning, "count": w.of.count })).collect::<Vec<_>>(),
            "unknown_fields": self.notices.unknown_fields,
            "deprecated_fields": deprecated.map(|d| json!({ "path": d.path, "name": d.full_name })).collect::<Vec<_>>(),
        })
    }

    fn add(&mut self, error: ConfigError, path: &str) {
        self.problems.extend(error.inside(path).into_problems());
    }
}

fn bootstrap(input: Input, options: &Options) -> Report {
    let unread = Unread::of(&input.problems);
    let mut report = Report { problems: input.problems, notices: Notices::default() };
    report.notices.unknown_fields = input.unknown_fields;
    let mut context = load::context(options);
    let Checked { bootstrap, resources, problems } = config::check_bootstrap(&input.bytes, &mut context);
    let problems = problems.into_iter().flat_map(ConfigError::into_problems);
    report.problems.extend(problems.filter(|problem| !unread.explains(problem)));
    report.notices.add(context.notices, &resources);
    // where the rest of it has problems, static resources are still built, as in a bootstrap of nothing else
    let Some(mut base) = bootstrap.or_else(|| config::bootstrap(&[], &mut Context::default()).ok()) else {
        return report;
    };
    load::override_node(&mut base.node, options);
    let Foundation { services, wants, .. } = foundation(options, &base);
    let mut build = Build {
        report,
        services,
        wants,
        resources: &resources,
        base: &base,
        node_reported: false,
        served: HashMap::new(),
    };
    build.sources();
    build.secrets();
    build.clusters();
    build.listeners();
    let clusters = resources.cluster_names.iter().map(String::as_str).collect();
    build.unheard("envoy.config.bootstrap.v3.Bootstrap", &input.bytes, &clusters);
    build.report.problems.sort_by_cached_key(|problem| (problem.kind != ProblemKind::Syntax, place(&problem.path)));
    build.report
}

/// Order of problems: by static resource, else as they were found.
fn place(path: &str) -> Option<(usize, usize)> {
    let (list, rest) = path.strip_prefix("static_resources.")?.split_once('[')?;
    let list = ["secrets", "clusters", "listeners"].iter().position(|name| *name == list)?;
    Some((list, rest.split_once(']')?.0.parse().ok()?))
}

/// Builds what a bootstrap describes, and gathers what cannot be.
struct Build<'a> {
    report: Report,
    services: Arc<Services>,
    wants: UnboundedReceiver<Want>,
    resources: &'a StaticResources,
    base: &'a Bootstrap,
    /// Every source misses the node's names; one problem is enough.
    node_reported: bool,
    /// Clusters that can serve configuration: static, and not of endpoints that come by it. By name: whether it can.
    served: HashMap<Arc<str>, bool>,
}

impl Build<'_> {
    fn say(&mut self, path: &str, message: String) {
        self.report.problems.push(ConfigError::new(path, message));
    }

    /// What Envoy would refuse in places that nobody reads here.
    fn unheard(&mut self, full_name: &str, bytes: &[u8], clusters: &HashSet<&str>) {
        let known: HashSet<String> = self.report.problems.iter().map(|problem| problem.path.clone()).collect();
        let found = unheard::problems(full_name, bytes, clusters);
        let is_new = |problem: &ConfigError| !above(&problem.path).any(|holder| known.contains(holder));
        self.report.problems.extend(found.into_iter().filter(is_new));
    }

    /// What concerns the process as a whole: its node, its streams, the cluster it belongs to.
    fn sources(&mut self) {
        use crate::config::model::ClusterDiscovery;
        for (_, cluster) in &self.resources.clusters {
            self.served.insert(cluster.name.clone(), !matches!(cluster.discovery, ClusterDiscovery::Eds { .. }));
        }
        for name in &self.resources.cluster_names {
            // one with problems of its own is not also reported as missing
            self.served.entry(name.as_str().into()).or_insert(true);
        }
        let base = self.base;
        // that its cluster exists is for conversion to say
        if base.ads.is_some() {
            self.node("ads");
        }
        for (name, source) in &base.rtds {
            self.source(source, config::RUNTIME, &format!("layered_runtime (rtds_layer '{name}')"));
        }
        for (source, type_url, field) in
            [(&base.cds, config::CLUSTER, "cds_config"), (&base.lds, config::LISTENER, "lds_config")]
        {
            if let Some(source) = source {
                self.source(source, type_url, &format!("dynamic_resources.{field}"));
            }
        }
    }

    fn node(&mut self, for_what: &str) {
        let node = &self.base.node;
        if (node.id.is_empty() || node.cluster.is_empty()) && !self.node_reported {
            self.node_reported = true;
            let message = format!(
                "{for_what}: node 'id' and 'cluster' are required. Set it either in 'node' config or via --service-node and --service-cluster options."
            );
            self.say("node", message);
        }
    }

    fn source(&mut self, source: &ConfigSource, type_url: &str, path: &str) {
        match &source.kind {
            ConfigSourceKind::Ads => self.node(type_url),
            ConfigSourceKind::Api(api) => {
                self.node(type_url);
                if let GrpcTarget::Cluster { name, .. } = &api.target
                    && self.served.get(name) != Some(&true)
                {
                    let message = format!(
                        "envoy.config.core.v3.ApiConfigSource must have a statically defined non-EDS cluster: '{name}' does not exist, was added via api, or is an EDS cluster"
                    );
                    self.say(path, message);
                }
            }
            ConfigSourceKind::Path(file) => {
                if !file.path.exists() {
                    let message = format!(
                        "paths must refer to an existing path in the system: '{}' does not exist",
                        file.path.display()
                    );
                    self.say(path, message);
                }
            }
        }
    }

    fn secrets(&mut self) {
        for (place, secret) in &self.resources.secrets {
            let key = SlotKey { name: secret.name.clone(), source: None };
            if let Err(error) = self.services.secrets.update(&key, secret.kind.clone()) {
                self.report.add(error, &format!("static_resources.secrets[{place}]"));
            }
        }
    }

    fn clusters(&mut self) {
        for stand_in in self.resources.stand_ins() {
            // without TLS there is nothing that could fail
            let _ = self.services.clusters.add_or_update(stand_in.into(), false);
        }
        let mut built = HashSet::new();
        for (place, cluster) in &self.resources.clusters {
            let path = format!("static_resources.clusters[{place}]");
            // a second one of the name is reported already, and would be an update here
            if built.insert(&cluster.name)
                && let Err(error) = self.services.clusters.add_or_update(cluster.clone(), false)
            {
                self.report.add(error, &path);
            }
            self.wanted(&path);
        }
    }

    fn listeners(&mut self) {
        let (mut names, mut addresses) = (HashSet::new(), HashMap::new());
        for (place, listener) in &self.resources.listeners {
            let path = format!("static_resources.listeners[{place}]");
            if !names.insert(&listener.name) {
                // as in Envoy: what is static is not updated, not even by what is static
                continue;
            }
            for address in std::iter::once(&listener.address).chain(&listener.additional_addresses) {
                // any number of listeners may have the kernel choose
                if !matches!(address, Address::Socket(socket) if socket.port() == 0)
                    && let Some(other) = addresses.insert(address, &listener.name)
                {
                    let message = format!(
                        "error adding listener: '{}' has duplicate address '{address}' as existing listener '{other}'",
                        listener.name
                    );
                    self.report.problems.push(ConfigError::new(format!("{path}.address"), message));
                }
            }
            if let Err(error) = crate::listener::check(listener, &self.services) {
                self.report.add(error, &path);
            }
            self.wanted(&path);
        }
        self.listener_parts();
    }

    /// What can be said of listeners that have problems already: of their other parts.
    fn listener_parts(&mut self) {
        let left_out: HashSet<&str> = self.resources.left_out.iter().map(String::as_str).collect();
        let known: HashSet<String> = self.report.problems.iter().map(|problem| problem.path.clone()).collect();
        for (place, listener) in &self.resources.listener_parts {
            let path = format!("static_resources.listeners[{place}]");
            if let Err(error) = crate::listener::check(listener, &self.services) {
                let problems = error.inside(&path).into_problems().map(|mut problem| {
                    problem.path = place_in_message(&problem.path, &left_out);
                    problem
                });
                let is_new = |problem: &ConfigError| !above(&problem.path).any(|holder| known.contains(holder));
                self.report.problems.extend(problems.filter(is_new));
            }
            self.wanted(&path);
        }
    }

    /// Looks at what the resource at `path` asked for while it was built: whether it could ever come.
    fn wanted(&mut self, path: &str) {
        while let Ok(want) = self.wants.try_recv() {
            let Want::Subscribe(kind, key) = want else { continue };
            let type_url = match kind {
                Kind::Route => config::ROUTE,
                Kind::Assignment => config::ASSIGNMENT,
                Kind::Secret => config::SECRET,
                Kind::Extension => config::EXTENSION,
            };
            // conversion knows the static ones
            if let Some(source) = &key.source {
                self.source(source, type_url, path);
            }
        }
    }
}

/// A path and all those that it leads through, ends of names only.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices(['.', '[']).map(|(at, _)| &path[..at]).chain([path])
}

/// The path in the message of what stands at `path` in its model, from which elements of lists were left out.
fn place_in_message(path: &str, left_out: &HashSet<&str>) -> String {
    let mut whole = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('[') {
        whole.push_str(before);
        let Some((index, after)) = after.split_once(']') else { break };
        let mut left = index.parse::<usize>().unwrap_or(0);
        // a list has at most as many gaps as there are in all
        let at = (0..=left + left_out.len()).find(|at| {
            let gap = left_out.contains(format!("{whole}[{at}]").as_str());
            let found = !gap && left == 0;
            left -= usize::from(!gap && left > 0);
            found
        });
        match at {
            Some(at) => whole.push_str(&format!("[{at}]")),
            None => whole.push_str(&format!("[{index}]")),
        }
        rest = after;
    }
    whole.push_str(rest);
    whole
}

/// Where a text could not be read. What later steps say of such places is not another problem.
struct Unread {
    /// Paths whose values were not read.
    places: HashSet<String>,
    /// The messages that hold them.
    holders: HashSet<String>,
}

impl Unread {
    fn of(problems: &[ConfigError]) -> Unread {
        // a field that nobody knows says nothing of the others
        let lost =
            problems.iter().filter(|problem| !problem.path.is_empty() && !problem.message.contains("unknown field"));
        let places: HashSet<String> = lost.map(|problem| problem.path.trim_end_matches(".@type").to_owned()).collect();
        let holder = |path: &String| path.rsplit_once('.').map_or("", |(holder, _)| holder).to_owned();
        Unread { holders: places.iter().map(holder).collect(), places }
    }

    fn explains(&self, problem: &ConfigError) -> bool {
        let holder = problem.path.rsplit_once('.').map_or("", |(holder, _)| holder);
        let misses = ["is required", "is missing"].iter().any(|word| problem.message.contains(word));
        above(&problem.path).any(|place| self.places.contains(place)) || (misses && self.holders.contains(holder))
    }
}

/// Whether an object is of a type whose name ends so, or does not say of which it is.
fn is_of(node: &Node, kind: &str) -> bool {
    match node.get("@type").map(|node| &node.value) {
        Some(Value::Text(url)) => url.ends_with(kind),
        Some(_) => false,
        None => true,
    }
}

/// Takes a resource out of the `Resource` around it, as delta answers have it.
fn unwrap(item: &mut Node) {
    if let Some(inner) = item.get("resource").filter(|_| is_of(item, ".discovery.v3.Resource")).cloned() {
        *item = inner;
    }
}

/// Checks resources as if a control plane had sent them.
fn resources(node: Node, options: &Options) -> Report {
    let mut report = Report::default();
    let response = node.get("resources").filter(|_| is_of(&node, "DiscoveryResponse")).cloned();
    let alone = response.is_none() && node.get("@type").is_some();
    let mut list = match response {
        Some(list) => list,
        None if alone => Node::new(Value::List(vec![node])),
        None => node,
    };
    if let Value::List(items) = &mut list.value {
        items.iter_mut().for_each(unwrap);
    }
    let response = Node::new(Value::Map(vec![(Key { name: "resources".into(), at: list.at }, list)]));
    let allowed = !options.reject_unknown_dynamic_fields;
    let parsed = load::parse(RESPONSE, &response, allowed, &mut report.problems);
    report.notices.unknown_fields.extend(parsed.unknown_fields.into_iter().map(|field| field.path));
    let unread = Unread::of(&report.problems);
    let Ok(base) = config::bootstrap(&[], &mut Context::default()) else { return report };
    let Foundation { services, .. } = foundation(options, &base);
    let mut seen = HashSet::new();
    for (place, any) in config::resources_of(&parsed.bytes).into_iter().enumerate() {
        let path = format!("resources[{place}]");
        match resource(&any.type_url, &any.value, &services, options, &mut report.notices, &path) {
            Ok(name) if seen.insert((any.type_url.clone(), name.clone())) => {}
            Ok(name) => {
                let kind = any.type_url.rsplit('.').next().unwrap_or_default();
                report.problems.push(ConfigError::new(path, format!("duplicate {kind} {name} found")));
            }
            Err(error) => {
                let problems = error.inside(&path).into_problems();
                report.problems.extend(problems.filter(|problem| !unread.explains(problem)));
            }
        }
    }
    if alone {
        report.alone();
    }
    report
}

impl Report {
    /// A resource that stands by itself: its fields are named from its own root.
    fn alone(&mut self) {
        let cut = |path: &mut String| {
            if let Some(rest) = path.strip_prefix("resources[0]") {
                *path = rest.trim_start_matches('.').to_owned();
            }
        };
        self.problems.iter_mut().for_each(|problem| cut(&mut problem.path));
        self.notices.warnings.iter_mut().for_each(|warning| cut(&mut warning.of.path));
        self.notices.deprecated_fields.iter_mut().for_each(|field| cut(&mut field.path));
        self.notices.unknown_fields.iter_mut().for_each(cut);
    }
}

/// Converts and builds one resource; hands back its name.
fn resource(
    type_url: &str,
    bytes: &[u8],
    services: &Arc<Services>,
    options: &Options,
    notices: &mut Notices,
    path: &str,
) -> Result<String, ConfigError> {
    let refuse_unknown = options.reject_unknown_dynamic_fields.then_some("--reject-unknown-dynamic-fields is set");
    let mut context = Context::default().refusing_unknown(refuse_unknown);
    let decoded = config::decode(type_url, bytes, &mut context);
    let mut found = context.notices;
    let inside = |inner: &mut String| *inner = format!("{path}.{inner}");
    found.warnings.iter_mut().for_each(|warning| inside(&mut warning.path));
    found.unknown.iter_mut().for_each(|unknown| inside(&mut unknown.path));
    found.deprecated.iter_mut().for_each(|field| inside(&mut field.path));
    notices.add(found, &StaticResources::default());
    let resource = decoded?;
    match &resource {
        Resource::Cluster(cluster) => services.clusters.add_or_update(cluster.clone(), true).map(drop),
        Resource::Listener(listener) => crate::listener::check(listener, services),
        Resource::Route(route) => RouteTable::compile(route.clone(), services).map(drop),
        Resource::Secret(secret) => {
            services.secrets.update(&SlotKey { name: secret.name.clone(), source: None }, secret.kind.clone())
        }
        Resource::Assignment(_) | Resource::Runtime { .. } | Resource::Extension(_) => Ok(()),
    }?;
    Ok(resource.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_in_lists_are_counted() {
        let gaps = HashSet::from(["l[0].hosts[0]", "l[0].hosts[2]", "l[0].hosts[1].routes[0]"]);
        for (path, place) in [
            ("l[0].hosts[0].name", "l[0].hosts[1].name"),
            ("l[0].hosts[1].routes[0]", "l[0].hosts[3].routes[0]"),
            ("l[0].hosts[0].routes[1].a", "l[0].hosts[1].routes[2].a"),
            ("l[1].hosts[0]", "l[1].hosts[0]"),
            ("name", "name"),
        ] {
            assert_eq!(place_in_message(path, &gaps), place);
        }
    }

    #[test]
    fn what_was_not_read_is_not_reported_again() {
        let syntax = |path: &str| ConfigError::new(path, "found 1, expected 2").of_kind(ProblemKind::Syntax);
        let unread = Unread::of(&[syntax("a.b.port_value"), syntax("c.typed_config.@type")]);
        let explains = |path: &str, message: &str| unread.explains(&ConfigError::new(path, message));
        assert!(explains("a.b.port_specifier", "is required") && !explains("a.b.name", "is too short"));
        assert!(explains("c.typed_config", "boom") && explains("c.typed_config.d", "boom") && !explains("c", "boom"));
        assert!(!explains("d.name", "is missing"));
    }
}
