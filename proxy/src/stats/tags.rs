//! Tags: the parts of a stat's name that are values (a cluster, a response code), taken out of it for Prometheus.
//!
//! The default patterns are the table of Envoy's documentation page "Statistics: tag extraction" as the proxy itself
//! applies it. All patterns see the whole name; what they match is cut out afterwards. Patterns without a literal first
//! segment are asked first, then those whose first segment is the name's; the labels come in that order.

use crate::config::model::TagSpecifier;
use regex::bytes::{Regex, RegexBuilder};
use std::ops::Range;
use std::sync::OnceLock;

/// How a default tag is found.
enum Pattern {
    /// A regex: group 1 is cut out, group 2 is the value. The text must occur in the name for the regex to be tried.
    Regex { contains: &'static str, regex: &'static str },
    /// Segments: `*` is any one, `$` is the value and is cut out, `**` at the end is any number, at least one.
    Segments(&'static str),
}
use Pattern::{Regex as Re, Segments};

/// Envoy's default tags, in the order in which they are tried. In the regexes `<V>` is a segment, `<A>` an address and port
/// as listeners are named, `<C>` the name of a cipher or curve.
const DEFAULTS: &[(&str, Pattern)] = &[
    ("envoy.response_code", Re { contains: "_rq_", regex: r"_rq(_(\d{3}))$" }),
    ("envoy.response_code_class", Re { contains: "_rq_", regex: r"_rq_((\d))xx$" }),
    (
        "envoy.dynamo_partition_id",
        Re {
            contains: ".dynamodb.table.",
            regex: r"^http\.<V>\.dynamodb\.table\.<V>\.capacity\.<V>(\.__partition_id=(\w{7}))$",
        },
    ),
    (
        "envoy.dynamo_operation",
        Re {
            contains: ".dynamodb.",
            regex: r"^http\.<V>\.dynamodb.(?:operation|table\.<V>\.capacity)(\.(<V>))(?:\.|$)",
        },
    ),
    ("envoy.dynamo_table", Re { contains: ".dynamodb.", regex: r"^http\.<V>\.dynamodb.(?:table|error)\.((<V>)\.)" }),
    ("envoy.ssl_cipher", Re { contains: ".ssl.ciphers.", regex: r"^listener\..*?\.ssl\.ciphers(\.(<C>))$" }),
    ("envoy.ssl_curve", Re { contains: ".ssl.curves.", regex: r"^(?:listener|cluster)\..*?\.ssl\.curves(\.(<C>))$" }),
    (
        "envoy.ssl_sigalg",
        Re { contains: ".ssl.sigalgs.", regex: r"^(?:listener|cluster)\..*?\.ssl\.sigalgs(\.(<C>))$" },
    ),
    (
        "envoy.ssl_version",
        Re { contains: ".ssl.versions.", regex: r"^(?:listener|cluster)\..*?\.ssl\.versions(\.(TLSv\d\.\d))$" },
    ),
    (
        "envoy.tls_certificate",
        Re { contains: ".ssl.certificate.", regex: r"^(?:listener|cluster)\..*?\.ssl\.certificate\.((<V>)\.).*$" },
    ),
    ("cipher_suite", Re { contains: ".ssl.ciphers.", regex: r"^cluster\.<V>\.ssl\.ciphers(\.(<C>))$" }),
    (
        "envoy.health_check_name",
        Re { contains: ".health_check.name.", regex: r"^cluster\.<V>\.health_check(\.name\.(<V>))\..+" },
    ),
    ("envoy.http_conn_manager_prefix", Re { contains: ".http.", regex: r"^listener\..*?\.http\.((<V>)\.)" }),
    (
        "envoy.worker_id",
        Re {
            contains: ".worker_",
            regex: concat!(
                r"^(?:listener\.(?:<A>|<V>)|server|listener_manager|thread_local_cluster_manager)",
                r"\.worker_((\d+)\.)"
            ),
        },
    ),
    ("envoy.listener_address", Re { contains: "listener.", regex: r"^listener\.((<A>|<V>)\.)" }),
    ("envoy.rds_route_config", Re { contains: ".rds.", regex: r"^http\.<V>\.rds\.(([\w.-]+)\.)\w+?$" }),
    ("envoy.scoped_rds_config", Re { contains: ".scoped_rds.", regex: r"^http\.<V>\.scoped_rds\.(([\w./-]+)\.)\w+?$" }),
    (
        "envoy.rbac_policy_name",
        Re {
            contains: ".policy.",
            regex: concat!(
                r"^http\.<V>\.rbac\.(?:<V>\.)?policy\.((<V>)\.)",
                r"(allowed|shadow_allowed|denied|shadow_denied)$"
            ),
        },
    ),
    ("envoy.rbac_http_prefix", Re { contains: ".rbac.", regex: r"^http\.<V>\.rbac\.((<V>)\.)" }),
    (
        "envoy.proxy_protocol_version",
        Re { contains: "proxy_proto.", regex: r"^proxy_proto\.((?:<V>\.)?versions\.v(\d)\.)\w+$" },
    ),
    ("envoy.xds_resource_name", Re { contains: "sds.", regex: r"^sds\.((<V>)\.).+" }),
    ("envoy.mongo_callsite", Segments("mongo.*.collection.*.callsite.$.query.**")),
    ("envoy.mongo_collection", Segments("mongo.*.collection.$.**")),
    ("envoy.mongo_cmd", Segments("mongo.*.cmd.$.**")),
    ("envoy.grpc_bridge_method", Segments("cluster.*.grpc.*.$.**")),
    ("envoy.http_user_agent", Segments("http.*.user_agent.$.**")),
    ("envoy.virtual_cluster", Segments("vhost.*.vcluster.$.**")),
    ("envoy.fault_downstream_cluster", Segments("http.*.fault.$.**")),
    ("envoy.grpc_bridge_service", Segments("cluster.*.grpc.$.**")),
    ("envoy.tcp_prefix", Segments("tcp.$.**")),
    ("envoy.udp_prefix", Segments("udp.$.**")),
    ("envoy.clientssl_prefix", Segments("auth.clientssl.$.**")),
    ("envoy.ratelimit_prefix", Segments("ratelimit.$.**")),
    ("envoy.cluster_name", Segments("cluster.$.**")),
    ("envoy.ext_authz_prefix", Segments("cluster.*.ext_authz.$.**")),
    ("envoy.ext_authz_prefix", Segments("http.*.ext_authz.$.**")),
    ("envoy.http_conn_manager_prefix", Segments("http.$.**")),
    ("envoy.virtual_host", Segments("vhost.$.**")),
    ("envoy.mongo_prefix", Segments("mongo.$.**")),
    ("envoy.route", Segments("vhost.*.route.$.**")),
    ("envoy.thrift_prefix", Segments("thrift.$.**")),
    ("envoy.redis_prefix", Segments("redis.$.**")),
    ("envoy.local_http_ratelimit_prefix", Segments("$.http_local_rate_limit.**")),
    ("envoy.local_network_ratelimit_prefix", Segments("local_rate_limit.$.**")),
    ("envoy.local_listener_ratelimit_prefix", Segments("listener_local_ratelimit.$.**")),
    ("envoy.dns_filter_prefix", Segments("dns_filter.$.**")),
    ("envoy.connection_limit_prefix", Segments("connection_limit.$.**")),
    ("envoy.google_grpc_client_prefix", Segments("grpc.$.**")),
];

/// Values that a tag does not have: what stands in its place then is part of the name.
const NOT_VALUES: &[(&str, &str)] = &[("envoy.listener_address", "admin"), ("envoy.rbac_http_prefix", "policy")];

enum Finder {
    /// Compiled when a name first contains the text.
    Default {
        contains: &'static str,
        regex: &'static str,
        compiled: OnceLock<Option<Regex>>,
    },
    Segments(&'static str),
    Plain(Regex),
    /// Patterns with look-around, which the linear engine does not have.
    Fancy(fancy_regex::Regex),
}

struct Extractor {
    tag: String,
    finder: Finder,
}

/// All extractors of a configuration.
pub(super) struct Tags {
    /// Those that any name may match.
    general: Vec<Extractor>,
    /// Those that only names with this first segment match.
    by_first_segment: Vec<(String, Vec<Extractor>)>,
    fixed: Vec<(String, String)>,
}

/// A name without its tags, and the tags.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extraction {
    pub name: String,
    pub tags: Vec<(String, String)>,
}

impl Tags {
    /// Specifiers that cannot be used are logged and left out: conversion has refused them already.
    pub fn new(use_all_defaults: bool, specifiers: &[TagSpecifier]) -> Tags {
        let mut tags = Tags { general: Vec::new(), by_first_segment: Vec::new(), fixed: Vec::new() };
        if use_all_defaults {
            tags.add_defaults(|_| true);
        }
        for specifier in specifiers {
            match specifier {
                TagSpecifier::Fixed { name, value } => tags.fixed.push((name.clone(), value.clone())),
                TagSpecifier::Default { name } => tags.add_defaults(|default| default == name),
                TagSpecifier::Regex { name, regex } => match compile(regex) {
                    Ok(finder) => tags.add(first_segment_of_regex(regex), Extractor { tag: name.clone(), finder }),
                    Err(error) => tracing::warn!(target: "stats", "tag {name} is not extracted: {error}"),
                },
            }
        }
        tags
    }

    fn add_defaults(&mut self, wanted: impl Fn(&str) -> bool) {
        for (tag, pattern) in DEFAULTS.iter().filter(|(tag, _)| wanted(tag)) {
            let (first, finder) = match pattern {
                Re { contains, regex } => {
                    (first_segment_of_regex(regex), Finder::Default { contains, regex, compiled: OnceLock::new() })
                }
                Segments(pattern) => (first_segment(pattern), Finder::Segments(pattern)),
            };
            self.add(first, Extractor { tag: (*tag).to_owned(), finder });
        }
    }

    fn add(&mut self, first: Option<&str>, extractor: Extractor) {
        let Some(first) = first else { return self.general.push(extractor) };
        match self.by_first_segment.iter_mut().find(|(segment, _)| segment == first) {
            Some((_, list)) => list.push(extractor),
            None => self.by_first_segment.push((first.to_owned(), vec![extractor])),
        }
    }

    pub fn extract(&self, name: &str) -> Extraction {
        let first = name.split_once('.').map(|(first, _)| first);
        let list = self.by_first_segment.iter().find(|(segment, _)| Some(segment.as_str()) == first);
        let mut tags: Vec<(String, String)> = Vec::new();
        let mut cuts: Vec<Range<usize>> = Vec::new();
        for extractor in self.general.iter().chain(list.into_iter().flat_map(|(_, list)| list)) {
            if tags.iter().any(|(tag, _)| *tag == extractor.tag) {
                continue;
            }
            let Some((cut, value)) = extractor.find(name) else { continue };
            if let Some(value) = name.get(value) {
                tags.push((extractor.tag.clone(), value.to_owned()));
                cuts.push(cut);
            }
        }
        tags.extend(self.fixed.iter().cloned());
        let cut = |at: usize| cuts.iter().any(|range| range.contains(&at));
        Extraction { name: name.char_indices().filter(|(at, _)| !cut(*at)).map(|(_, c)| c).collect(), tags }
    }
}

impl Extractor {
    /// What to cut out and where the value is.
    fn find(&self, name: &str) -> Option<(Range<usize>, Range<usize>)> {
        let plain = |regex: &Regex| {
            let groups = regex.captures(name.as_bytes())?;
            let cut = groups.get(1)?.range();
            let value = if groups.len() > 2 { groups.get(2)?.range() } else { cut.clone() };
            Some((cut, value))
        };
        match &self.finder {
            Finder::Default { contains, regex, compiled } => {
                if !name.contains(contains) {
                    return None;
                }
                let regex = compiled.get_or_init(|| plain_regex(&expand(regex)).ok()).as_ref()?;
                plain(regex).filter(|(_, value)| {
                    let value = name.get(value.clone());
                    !NOT_VALUES.iter().any(|(tag, not)| *tag == self.tag && Some(*not) == value)
                })
            }
            Finder::Segments(pattern) => find_segment(pattern, name),
            Finder::Plain(regex) => plain(regex),
            Finder::Fancy(regex) => {
                let groups = regex.captures(name).ok()??;
                let cut = groups.get(1)?.range();
                let value = if groups.len() > 2 { groups.get(2)?.range() } else { cut.clone() };
                Some((cut, value))
            }
        }
    }
}

/// Matches a segment pattern; the cut takes the dot behind the value along.
fn find_segment(pattern: &str, name: &str) -> Option<(Range<usize>, Range<usize>)> {
    let mut at = 0;
    let mut found = None;
    for want in pattern.split('.') {
        let rest = name.get(at..)?;
        if want == "**" {
            return if rest.is_empty() { None } else { found };
        }
        let segment = rest.split('.').next().unwrap_or(rest);
        match want {
            "*" if !segment.is_empty() => {}
            "$" if !segment.is_empty() => found = Some((at..at + segment.len() + 1, at..at + segment.len())),
            literal if literal == segment => {}
            _ => return None,
        }
        at += segment.len() + 1;
    }
    (at > name.len()).then_some(found).flatten()
}

fn first_segment(pattern: &str) -> Option<&str> {
    pattern.split('.').next().filter(|first| !matches!(*first, "*" | "$" | "**"))
}

/// The literal between `^` and an escaped dot (or a look-ahead for one), when the pattern begins so.
fn first_segment_of_regex(regex: &str) -> Option<&str> {
    let rest = regex.strip_prefix('^')?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let (word, rest) = rest.split_at(end);
    (!word.is_empty() && (rest.starts_with(r"\.") || rest.starts_with(r"(?=\.)") || rest == "$")).then_some(word)
}

fn expand(regex: &str) -> String {
    regex
        .replace("<A>", r"(?:(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[[a-fA-F_\d]+\])_\d+)")
        .replace("<V>", r"[^.]+")
        .replace("<C>", r"[\w-]+")
}

/// Names are ASCII where patterns look: Unicode classes would cost memory and find nothing more.
fn plain_regex(regex: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(regex).unicode(false).build()
}

fn compile(regex: &str) -> Result<Finder, String> {
    match plain_regex(regex) {
        Ok(regex) => Ok(Finder::Plain(regex)),
        Err(_) => fancy_regex::Regex::new(regex).map(Finder::Fancy).map_err(|e| e.to_string()),
    }
}

/// Whether a configured tag regex can be used.
///
/// # Errors
/// What is wrong with it.
pub fn check_tag_regex(regex: &str) -> Result<(), String> {
    compile(regex).map(drop)
}

/// Whether Envoy has a default tag of this name.
pub fn is_default_tag(name: &str) -> bool {
    DEFAULTS.iter().any(|(tag, _)| *tag == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(extraction: &Extraction) -> String {
        extraction.tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect::<Vec<_>>().join(",")
    }

    fn check(tags: &Tags, name: &str, extracted: &str, expected: &str) {
        let found = tags.extract(name);
        assert_eq!((found.name.as_str(), labels(&found).as_str()), (extracted, expected), "{name}");
    }

    #[test]
    fn default_tags_leave_the_name() {
        let tags = Tags::new(true, &[]);
        let is = |name, extracted, expected| check(&tags, name, extracted, expected);
        is("cluster.a.upstream_rq_503", "cluster.upstream_rq", "envoy.response_code=503,envoy.cluster_name=a");
        is("cluster.a.upstream_rq_5xx", "cluster.upstream_rq_xx", "envoy.response_code_class=5,envoy.cluster_name=a");
        is(
            "listener.127.0.0.1_80.worker_0.downstream_cx_total",
            "listener.worker_downstream_cx_total",
            "envoy.worker_id=0,envoy.listener_address=127.0.0.1_80",
        );
        is("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total", "");
        is(
            "vhost.main.vcluster.vc1.upstream_rq_200",
            "vhost.vcluster.upstream_rq",
            "envoy.response_code=200,envoy.virtual_cluster=vc1,envoy.virtual_host=main",
        );
        is(
            "listener.[__1]_80.http.in.downstream_rq_2xx",
            "listener.http.downstream_rq_xx",
            "envoy.response_code_class=2,envoy.http_conn_manager_prefix=in,envoy.listener_address=[__1]_80",
        );
        is("server.live", "server.live", "");
    }

    #[test]
    fn istio_s_tags_are_understood() {
        let regex = |name: &str, regex: &str| TagSpecifier::Regex { name: name.into(), regex: regex.into() };
        let specifiers = [
            regex("cluster_name", r"^cluster(\.(.+);)"),
            regex("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
            regex("response_code", r"_rq(_(\d{3}))$"),
            regex("response_code_class", r"_rq(_(\dxx))$"),
            regex(
                "http_conn_manager_listener_prefix",
                r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
            ),
            regex("http_conn_manager_prefix", r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)"),
            regex("authz_enforce_result", r"rbac(\.(allowed|denied))"),
            TagSpecifier::Fixed { name: "mesh".into(), value: "m".into() },
        ];
        for specifier in &specifiers {
            if let TagSpecifier::Regex { regex, .. } = specifier {
                assert_eq!(check_tag_regex(regex), Ok(()));
            }
        }
        let tags = Tags::new(false, &specifiers);
        check(
            &tags,
            "cluster.outbound|80||a.b.svc.cluster.local;.upstream_rq_200",
            "cluster.upstream_rq",
            "cluster_name=outbound|80||a.b.svc.cluster.local,response_code=200,mesh=m",
        );
        check(
            &tags,
            "http.inbound_0.0.0.0_80;.rbac.allowed",
            "http.rbac",
            "authz_enforce_result=allowed,http_conn_manager_prefix=inbound_0.0.0.0_80,mesh=m",
        );
        check(
            &tags,
            "listener.0.0.0.0_80.http.10.0.0.1_80.downstream_rq_2xx",
            "listener.0.0.0.0_80.http.downstream_rq",
            "response_code_class=2xx,http_conn_manager_listener_prefix=10.0.0.1_80,mesh=m",
        );
    }

    #[test]
    fn a_bad_regex_is_named() {
        assert!(check_tag_regex("(").is_err());
        assert!(is_default_tag("envoy.cluster_name") && !is_default_tag("cluster_name"));
    }
}
