//! The table against the descriptors (nothing is forgotten), against the conversion (what acts is read) and against the
//! list of what guards security (nothing of it is only warned about).

use super::table::{Answer, MessageAnswers, SUBJECTS, Table, is_value, table};
use super::walk::walk;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use syn::visit::Visit;
use xds_protos::table::{Field, FieldType, Message, Special};
use xds_protos::wire::Raw;

/// Where configuration starts: what a file or a control plane may send.
const ROOTS: [&str; 9] = [
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.route.v3.VirtualHost",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.core.v3.TypedExtensionConfig",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.service.runtime.v3.Runtime",
];

#[test]
fn the_table_reads() {
    let (_, problems) = Table::read(SUBJECTS);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_field_that_configuration_can_reach_has_an_answer() {
    let mut missing: BTreeSet<String> =
        ROOTS.into_iter().filter(|root| table().find(root).is_none()).map(|root| format!("message {root}")).collect();
    for answers in table().messages().iter().filter(|answers| acts(answers.whole)) {
        for field in answers.message.fields() {
            match answers.answer(field) {
                None => drop(missing.insert(format!("{}.{}", answers.message.name(), field.name()))),
                Some(answer) if acts(answer) => {
                    missing.extend(below(field).filter(|inner| table().find(inner.name()).is_none()).map(|inner| {
                        format!("message {} (below {}.{})", inner.name(), answers.message.name(), field.name())
                    }))
                }
                Some(_) => {}
            }
        }
    }
    assert!(missing.is_empty(), "no answer for:\n{}", missing.into_iter().collect::<Vec<_>>().join("\n"));
}

fn acts(answer: Answer) -> bool {
    matches!(answer, Answer::Act { .. })
}

/// The message that a field holds, when it is one with fields of its own.
fn below(field: Field) -> impl Iterator<Item = Message> {
    let value = field.map_entry().and_then(|entry| entry.field_by_number(2)).unwrap_or(field);
    match value.field_type() {
        FieldType::Message(inner) if inner.special() == Special::None => Some(inner),
        _ => None,
    }
    .into_iter()
}

/// A destructuring pattern in the sources of the conversion.
#[derive(Debug)]
struct Pattern {
    file: String,
    name: String,
    /// Fields by name; whether they are bound to something.
    fields: BTreeMap<String, bool>,
    exhaustive: bool,
}

struct Patterns {
    file: String,
    found: Vec<Pattern>,
}

impl<'ast> Visit<'ast> for Patterns {
    fn visit_pat_struct(&mut self, pattern: &'ast syn::PatStruct) {
        let plain = |ident: &syn::Ident| ident.to_string().trim_start_matches("r#").to_owned();
        let fields = pattern.fields.iter().filter_map(|field| match &field.member {
            syn::Member::Named(name) => Some((plain(name), !matches!(*field.pat, syn::Pat::Wild(_)))),
            syn::Member::Unnamed(_) => None,
        });
        if let Some(last) = pattern.path.segments.last() {
            self.found.push(Pattern {
                file: self.file.clone(),
                name: plain(&last.ident),
                fields: fields.collect(),
                exhaustive: pattern.rest.is_none(),
            });
        }
        syn::visit::visit_pat_struct(self, pattern);
    }
}

fn patterns() -> Vec<Pattern> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let mut visitor = Patterns { file, found: Vec::new() };
            visitor.visit_file(&syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap());
            found.append(&mut visitor.found);
        }
    }
    found
}

/// The names that the fields of a message have in Rust: a oneof is one field.
fn rust_names(message: Message) -> BTreeSet<String> {
    message.fields().filter(|field| !field.is_added()).map(|field| rust_name(message, field)).collect()
}

fn rust_name(message: Message, field: Field) -> String {
    // A oneof of one optional field is protobuf's way to say `optional`.
    match field.oneof().and_then(|at| message.oneofs().nth(at)) {
        Some((oneof, _)) if !oneof.starts_with('_') => oneof.to_owned(),
        _ => field.name().to_owned(),
    }
}

#[test]
fn what_the_rust_types_lack_does_not_act() {
    for answers in table().messages() {
        for (field, answer) in answers.fields.iter().filter(|(field, _)| field.is_added()) {
            assert!(!acts(*answer), "{}.{}", answers.message.name(), field.name());
        }
    }
}

#[test]
fn what_acts_is_read_and_nothing_else_is() {
    let patterns = patterns();
    assert!(patterns.len() > 80, "{} patterns", patterns.len());
    let mut wrong = Vec::new();
    for answers in table().messages().iter().filter(|answers| acts(answers.whole)) {
        wrong.extend(against_sources(answers, &patterns));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn against_sources(answers: &MessageAnswers, patterns: &[Pattern]) -> Vec<String> {
    let message = answers.message;
    let names = rust_names(message);
    let short = message.name().rsplit('.').next().unwrap_or_default();
    let own: Vec<&Pattern> = patterns
        .iter()
        .filter(|p| p.exhaustive && p.name.eq_ignore_ascii_case(short) && p.fields.keys().eq(names.iter()))
        .collect();
    if own.is_empty() {
        return vec![format!("{}: no conversion takes it apart field by field", message.name())];
    }
    let mut wrong = Vec::new();
    for name in names {
        let acts = message
            .fields()
            .filter(|field| rust_name(message, *field) == name)
            .any(|field| answers.answer(field).is_some_and(acts));
        let readers: Vec<&str> = own.iter().filter(|p| p.fields[&name]).map(|p| p.file.as_str()).collect();
        match (acts, readers.is_empty()) {
            (true, true) => wrong.push(format!("{}.{name} is to act, but is not read", message.name())),
            (false, false) => wrong.push(format!("{}.{name} is not to act, but {readers:?} reads it", message.name())),
            _ => {}
        }
    }
    wrong
}

/// Public fields of the model, and those that somebody outside of the conversion reads.
#[derive(Default)]
struct ModelFields {
    public: BTreeMap<String, String>,
    read: BTreeSet<String>,
}

/// Reads one file: its own types when it is part of the model, and what it reads of others.
struct ModelReader<'a> {
    fields: &'a mut ModelFields,
    is_model: bool,
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("cfg") && quoted(a).contains("test"))
}

fn quoted(attribute: &syn::Attribute) -> String {
    match &attribute.meta {
        syn::Meta::List(list) => list.tokens.to_string(),
        _ => String::new(),
    }
}

impl<'ast> Visit<'ast> for ModelReader<'_> {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            syn::visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if self.is_model {
            let public = item.fields.iter().filter(|f| matches!(f.vis, syn::Visibility::Public(_)));
            let named = public.filter_map(|field| field.ident.as_ref());
            self.fields.public.extend(named.map(|name| (name.to_string(), item.ident.to_string())));
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        if self.is_model {
            let named = item.variants.iter().flat_map(|v| &v.fields).filter_map(|field| field.ident.as_ref());
            self.fields.public.extend(named.map(|name| (name.to_string(), item.ident.to_string())));
        }
    }

    fn visit_expr_field(&mut self, access: &'ast syn::ExprField) {
        if let syn::Member::Named(name) = &access.member {
            self.fields.read.insert(name.to_string());
        }
        syn::visit::visit_expr_field(self, access);
    }

    fn visit_pat_struct(&mut self, pattern: &'ast syn::PatStruct) {
        for field in &pattern.fields {
            if let (syn::Member::Named(name), false) = (&field.member, matches!(*field.pat, syn::Pat::Wild(_))) {
                self.fields.read.insert(name.to_string());
            }
        }
        syn::visit::visit_pat_struct(self, pattern);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        // arguments of macros are tokens: a name behind a dot
        let text = call.tokens.to_string();
        let names = text.split('.').skip(1).map(|rest| rest.trim_start());
        self.fields.read.extend(
            names.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()),
        );
    }
}

fn read_folder(folder: &Path, fields: &mut ModelFields) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let at = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap().to_owned();
        if path.is_dir() {
            read_folder(&path, fields);
            continue;
        }
        let is_model = at.starts_with("config/model");
        let is_source = path.extension().is_some_and(|e| e == "rs");
        if !is_source
            || at.ends_with("tests.rs")
            || at.ends_with("testing.rs")
            || at.starts_with("config") && !is_model && at != Path::new("config/mod.rs")
        {
            continue;
        }
        let file = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap();
        if !is_for_tests(&file.attrs) {
            ModelReader { fields, is_model }.visit_file(&file);
        }
    }
}

#[test]
fn what_conversion_yields_is_read_by_somebody() {
    let mut fields = ModelFields::default();
    read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut fields);
    assert!(fields.public.len() > 150, "{}", fields.public.len());
    let unread: Vec<String> = fields
        .public
        .iter()
        .filter(|(name, _)| !fields.read.contains(*name))
        .map(|(name, holder)| format!("{holder}.{name}"))
        .collect();
    assert!(unread.is_empty(), "nobody outside of src/config reads:\n{}", unread.join("\n"));
}

/// A field that is bound only to be dropped looks as if it were read.
struct Drops(Vec<String>);

impl<'ast> Visit<'ast> for Drops {
    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        let is_drop = matches!(&*call.func, syn::Expr::Path(function) if function.path.is_ident("drop"));
        if let (true, Some(syn::Expr::Path(dropped))) = (is_drop, call.args.first()) {
            self.0.extend(dropped.path.get_ident().map(ToString::to_string));
        }
        syn::visit::visit_expr_call(self, call);
    }
}

#[test]
fn no_field_is_bound_to_be_dropped() {
    let mut drops = Drops(Vec::new());
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "rs") {
            drops.visit_file(&syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap());
        }
    }
    assert!(drops.0.is_empty(), "{:?}", drops.0);
}

#[test]
fn nothing_that_guards_security_is_only_warned_about() {
    let lines = || include_str!("guards.txt").lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let exempt: BTreeSet<&str> =
        lines().filter_map(|l| l.strip_prefix('!')).filter_map(|l| l.split_whitespace().next()).collect();
    let guards: Vec<regex::Regex> = lines()
        .filter(|l| !l.starts_with('!'))
        .map(|glob| regex::Regex::new(&format!("^{}$", regex::escape(glob).replace(r"\*", ".*"))).unwrap())
        .collect();
    assert!(guards.len() > 5);
    let warned = |answer: &Answer| matches!(answer, Answer::Warn { .. } | Answer::Idle { .. });
    let mut wrong = Vec::new();
    for answers in table().messages() {
        let name = answers.message.name();
        let fields = answers.fields.iter().filter(|(_, answer)| warned(answer));
        let fields = fields.map(|(field, _)| format!("{name}.{}", field.name()));
        let whole = warned(&answers.whole).then(|| name.to_owned());
        for suspect in fields.chain(whole) {
            if guards.iter().any(|guard| guard.is_match(&suspect)) && !exempt.contains(suspect.as_str()) {
                wrong.push(suspect);
            }
        }
    }
    assert!(wrong.is_empty(), "these guard security, so they act or are refused:\n{}", wrong.join("\n"));
}

#[test]
fn a_value_that_is_as_good_as_absent_is_recognised() {
    let field = |message: &str, name: &str| Message::find(message).unwrap().field_by_name(name).unwrap();
    let cluster = |name: &str| field("envoy.config.cluster.v3.Cluster", name);
    let (timeout, policy) = (cluster("connect_timeout"), cluster("lb_policy"));
    assert!(is_value(timeout, Raw::Bytes(&[8, 5]), "5s"));
    assert!(is_value(timeout, Raw::Bytes(&[0x10, 0xc0, 0xf0, 0xf5, 0x0b]), "0.025s"));
    assert!(!is_value(timeout, Raw::Bytes(&[8, 5, 16, 1]), "5s"));
    assert!(is_value(policy, Raw::Varint(1), "LEAST_REQUEST") && !is_value(policy, Raw::Varint(2), "LEAST_REQUEST"));
    let wrapped = cluster("per_connection_buffer_limit_bytes");
    assert!(is_value(wrapped, Raw::Bytes(&[8, 7]), "7") && is_value(wrapped, Raw::Bytes(&[]), "0"));
    let flag = cluster("close_connections_on_host_health_failure");
    assert!(is_value(flag, Raw::Varint(1), "true") && is_value(flag, Raw::Varint(0), "false"));
    assert!(is_value(cluster("metadata"), Raw::Bytes(&[]), "empty"));
}

/// A bootstrap of that many clusters, each with the same two fields.
fn of_clusters(count: usize, fields: &str) -> Vec<u8> {
    let clusters: Vec<String> = (0..count).map(|n| format!("{{ name: c{n}, {fields} }}")).collect();
    let text = format!("static_resources: {{ clusters: [{}] }}", clusters.join(", "));
    let options = xds_protos::ParseOptions::default();
    let bootstrap = "envoy.config.bootstrap.v3.Bootstrap";
    xds_protos::Descriptors::shared().parse(bootstrap, &text, xds_protos::Format::Yaml, options).unwrap().bytes
}

#[test]
fn nothing_falls_silent_after_the_first_findings() {
    let resolvers = "dns_resolvers: [{ pipe: { path: a } }, { pipe: { path: b } }]";
    let bytes = of_clusters(120, &format!("outlier_detection: {{}}, {resolvers}"));
    let found = walk("envoy.config.bootstrap.v3.Bootstrap", &bytes);
    let of: Vec<_> = found.warned.iter().filter(|warned| warned.path.contains("dns_resolvers")).collect();
    assert_eq!((of.len(), found.warned.len()), (120, 240), "each resource hears of its own");
    assert_eq!((of[119].path.as_str(), of[119].count), ("static_resources.clusters[119].dns_resolvers[0]", 2));
}

#[test]
fn what_is_refused_is_found_behind_any_number_of_others() {
    let mut bytes = of_clusters(0, "");
    for number in 0..3_000u32 {
        prost::encoding::encode_varint(u64::from(5_000 + number) << 3, &mut bytes);
        bytes.push(1);
    }
    let later = of_clusters(1, "transport_socket_matcher: { matcher_list: { matchers: [] } }");
    bytes.extend(later);
    let found = walk("envoy.config.bootstrap.v3.Bootstrap", &bytes);
    assert_eq!(found.rejected.len(), 1, "{:?}", found.rejected);
    assert!(found.unknown.len() <= 1_000 && found.unknown.len() + found.more_unknown == 3_000);
}

#[test]
fn a_field_in_a_list_is_said_once_and_counted() {
    let listener = |count: usize| {
        let chain = "{ filters: [], transport_socket_connect_timeout: 1s, use_proxy_proto: true }";
        let text = format!("filter_chains: [{}]", vec![chain; count].join(", "));
        let options = xds_protos::ParseOptions::default();
        let descriptors = xds_protos::Descriptors::shared();
        descriptors.parse("envoy.config.listener.v3.Listener", &text, xds_protos::Format::Yaml, options).unwrap().bytes
    };
    let found = walk("envoy.config.listener.v3.Listener", &listener(200));
    assert_eq!(found.deprecated.len(), 1);
    assert_eq!(
        (found.deprecated[0].path.as_str(), found.deprecated[0].count),
        ("filter_chains[0].use_proxy_proto", 200)
    );
    assert_eq!(found.rejected.len(), 1);
}

#[test]
fn a_message_without_answers_is_walked_in_silence() {
    assert!(walk("google.protobuf.Struct", &[0xff]).unknown.is_empty());
}
