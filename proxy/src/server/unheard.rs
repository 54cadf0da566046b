//! What a configuration says in places that have no effect here, and that Envoy would refuse it for: patterns, formats,
//! header names, mirrors. Conversion does not read such places, and a served configuration need not be held up for them;
//! `--mode validate` says what Envoy would say.

use crate::access_log::Formatter;
use crate::config::{ConfigError, check_regex};
use std::collections::HashSet;
use xds_protos::MAX_DEPTH;
use xds_protos::pb::envoy::config::core::v3::substitution_format_string::Format;
use xds_protos::pb::envoy::config::core::v3::{HeaderValueOption, SubstitutionFormatString, data_source};
use xds_protos::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use xds_protos::pb::envoy::config::route::v3::{RouteConfiguration, VirtualCluster};
use xds_protos::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};
use xds_protos::table::{FieldType, Message, Special};
use xds_protos::wire::{Raw, take_field};

/// Extensions that Envoy reads without a look at their rules, a message that may name any header, and metadata, which
/// nobody reads before it is asked for.
const UNREAD: [&str; 3] = [
    "envoy.extensions.load_balancing_policies.",
    "envoy.config.common.mutation_rules.v3.HeaderMutation",
    "envoy.config.core.v3.Metadata",
];

/// Problems that are collected.
const MAX_PROBLEMS: usize = 10_000;

/// Walks a message for what is wrong in it by Envoy's measure. `clusters` are those that there are.
pub(super) fn problems(full_name: &str, bytes: &[u8], clusters: &HashSet<&str>) -> Vec<ConfigError> {
    let mut walk = Walk { clusters, path: String::new(), depth: 0, validate_clusters: true, found: Vec::new() };
    if let Some(message) = Message::find(full_name) {
        walk.message(message, bytes);
    }
    walk.found
}

struct Walk<'a> {
    clusters: &'a HashSet<&'a str>,
    path: String,
    depth: usize,
    /// Whether routes may only name clusters that exist.
    validate_clusters: bool,
    found: Vec<ConfigError>,
}

fn decode<M: prost::Message + Default>(bytes: &[u8]) -> M {
    // what does not decode is reported where it is converted
    M::decode(bytes).unwrap_or_default()
}

impl Walk<'_> {
    fn say(&mut self, field: &str, message: impl Into<String>) {
        if self.found.len() < MAX_PROBLEMS {
            self.found.push(ConfigError::new(field, message).inside(&self.path));
        }
    }

    fn message(&mut self, message: Message, bytes: &[u8]) {
        let name = message.name();
        if self.depth > MAX_DEPTH || UNREAD.iter().any(|unread| name.starts_with(unread)) {
            return;
        }
        let outer = self.validate_clusters;
        self.check(name, bytes);
        self.depth += 1;
        match message.special() {
            Special::Any => self.any(bytes),
            Special::None => self.fields(message, bytes),
            _ => {}
        }
        self.depth -= 1;
        self.validate_clusters = outer;
    }

    fn fields(&mut self, message: Message, mut bytes: &[u8]) {
        let mut counts: Vec<(u32, usize)> = Vec::new();
        while let Some((number, raw)) = take_field(&mut bytes) {
            let Some(field) = message.field_by_number(number) else { continue };
            let (FieldType::Message(inner), Raw::Bytes(value)) = (field.field_type(), raw) else { continue };
            let outer = self.path.len();
            if outer > 0 {
                self.path.push('.');
            }
            self.path.push_str(field.name());
            if let Some(entry) = field.map_entry() {
                let (key, value) = entry_of(value);
                self.path.push_str(&format!("[{}]", String::from_utf8_lossy(key)));
                if let Some(FieldType::Message(inner)) = entry.field_by_number(2).map(|field| field.field_type()) {
                    self.message(inner, value);
                }
            } else {
                if field.is_repeated() {
                    let at = match counts.iter_mut().find(|(known, _)| *known == number) {
                        Some((_, count)) => {
                            *count += 1;
                            *count
                        }
                        None => {
                            counts.push((number, 0));
                            0
                        }
                    };
                    self.path.push_str(&format!("[{at}]"));
                }
                self.message(inner, value);
            }
            self.path.truncate(outer);
        }
    }

    fn any(&mut self, bytes: &[u8]) {
        let any: xds_protos::pb::google::protobuf::Any = decode(bytes);
        if let Some(message) = Message::find(any.type_url.rsplit('/').next().unwrap_or_default()) {
            self.message(message, &any.value);
        }
    }

    fn check(&mut self, name: &str, bytes: &[u8]) {
        match name {
            "envoy.type.matcher.v3.RegexMatcher" => {
                let RegexMatcher { regex, .. } = decode(bytes);
                if let Err(why) = check_regex(&regex)
                    && !regex.is_empty()
                {
                    self.say("", format!("found {regex:?}, which is no pattern of RE2: {why}"));
                }
            }
            "envoy.type.matcher.v3.StringMatcher" => {
                let StringMatcher { ignore_case, match_pattern } = decode(bytes);
                if ignore_case && matches!(match_pattern, Some(string_matcher::MatchPattern::SafeRegex(_))) {
                    self.say("ignore_case", "ignore_case has no effect for safe_regex.");
                }
            }
            "envoy.config.core.v3.SubstitutionFormatString" => self.format(&decode(bytes)),
            "envoy.config.core.v3.HeaderValueOption" => {
                let HeaderValueOption { header, .. } = decode(bytes);
                let key = header.map(|header| header.key).unwrap_or_default();
                if key.starts_with(':') || key.eq_ignore_ascii_case("host") {
                    self.say("header.key", ":-prefixed or host headers may not be modified");
                }
            }
            "envoy.config.route.v3.RouteConfiguration" => {
                let RouteConfiguration { validate_clusters, .. } = decode(bytes);
                self.validate_clusters = validate_clusters.is_none_or(|validate| validate.value);
            }
            "envoy.config.route.v3.VirtualCluster" => {
                let VirtualCluster { headers, .. } = decode(bytes);
                if headers.is_empty() {
                    self.say("headers", "virtual clusters must define 'headers'");
                }
            }
            "envoy.config.route.v3.RouteAction.RequestMirrorPolicy" => self.mirror(&decode(bytes)),
            _ => {}
        }
    }

    fn mirror(&mut self, policy: &RequestMirrorPolicy) {
        let RequestMirrorPolicy { cluster, cluster_header, .. } = policy;
        match (cluster.is_empty(), cluster_header.is_empty()) {
            (true, true) => {
                self.say("cluster", "Exactly one of cluster or cluster_header in request mirror policy need to be specified");
            }
            (false, false) => self.say(
                "cluster",
                format!("Only one of cluster '{cluster}' or cluster_header '{cluster_header}' in request mirror policy can be specified"),
            ),
            (false, true) if self.validate_clusters && !self.clusters.contains(cluster.as_str()) => {
                self.say("cluster", format!("route: unknown shadow cluster '{cluster}'"));
            }
            _ => {}
        }
    }

    #[allow(deprecated, reason = "configuration may still say it the old way")]
    fn format(&mut self, format: &SubstitutionFormatString) {
        // a formatter brings operators of its own
        if !format.formatters.is_empty() {
            return;
        }
        let (field, text) = match &format.format {
            Some(Format::TextFormat(text)) => ("text_format", text),
            Some(Format::TextFormatSource(source)) => match &source.specifier {
                Some(data_source::Specifier::InlineString(text)) => ("text_format_source.inline_string", text),
                _ => return,
            },
            _ => return,
        };
        // an operator that only Envoy has is no mistake
        if let Err(error) = Formatter::compile(text)
            && !error.message.contains("not supported by this proxy")
        {
            self.say(field, error.message);
        }
    }
}

/// Key and value of a map's entry.
fn entry_of(mut entry: &[u8]) -> (&[u8], &[u8]) {
    let (mut key, mut value) = (&[][..], &[][..]);
    while let Some((number, raw)) = take_field(&mut entry) {
        match (number, raw) {
            (1, Raw::Bytes(bytes)) => key = bytes,
            (2, Raw::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    (key, value)
}
