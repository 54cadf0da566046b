//! The crate as its users see it: configuration files that Envoy 1.40 takes or refuses, Istio's bootstraps, and
//! configuration dumps that survive the way to the wire and back.

use prost::Message as _;
use serde_json::{Value as Json, json};

use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::google::protobuf::Any;
use crate::{Descriptors, Format, ParseOptions, Parsed, Style, TypedStruct, extra::istio, to_pretty};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

fn parse(name: &str, text: &str) -> Result<Parsed, Vec<crate::LoadError>> {
    Descriptors::load().parse(
        name,
        text,
        Format::Yaml,
        ParseOptions { file: Some("c.yaml"), ..ParseOptions::default() },
    )
}

/// What a YAML text becomes, printed again.
fn read(name: &str, text: &str) -> Json {
    let parsed = parse(name, text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
    Descriptors::load().to_json(name, &parsed.bytes, Style::default())
}

/// The first error's line.
fn refused(name: &str, text: &str) -> String {
    match parse(name, text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors[0].to_string(),
    }
}

#[test]
fn durations_come_as_text_or_as_an_object() {
    for (text, printed) in [
        ("connect_timeout: 0.25s", json!({"connect_timeout": "0.250s"})),
        ("connect_timeout: {seconds: 1}", json!({"connect_timeout": "1s"})),
        ("connect_timeout: {seconds: '1', nanos: 1.0}", json!({"connect_timeout": "1.000000001s"})),
        ("connect_timeout: null", json!({})),
    ] {
        assert_eq!(read(CLUSTER, text), printed, "{text}");
    }
    assert_eq!(
        refused(CLUSTER, "name: x\nconnect_timeout: 1\n"),
        "c.yaml:2:18: connect_timeout: found the number 1, expected a duration like \"0.25s\""
    );
    assert_eq!(
        refused(CLUSTER, "connect_timeout: 250ms"),
        "c.yaml:1:18: connect_timeout: found \"250ms\", expected a duration like \"0.25s\""
    );
}

#[test]
fn numbers_come_quoted_or_with_a_fraction_of_zero() {
    let address = "envoy.config.core.v3.SocketAddress";
    for text in [
        "port_value: 80",
        "port_value: '80'",
        "port_value: 80.0",
        "port_value: 8e1",
        "port_value: '8e1'",
        "port_value: '+80'",
        "port_value: .8e2",
        "portValue: 0x50",
    ] {
        assert_eq!(read(address, text), json!({"port_value": 80}), "{text}");
    }
    for text in ["per_connection_buffer_limit_bytes: 10", "per_connection_buffer_limit_bytes: {value: '10'}"] {
        assert_eq!(read(CLUSTER, text), json!({"per_connection_buffer_limit_bytes": 10}), "{text}");
    }
    for wrong in ["-1", "1.5", "''", "' 5 '", "1_000", "4294967296", "true", "[]", "x"] {
        let line = refused(CLUSTER, &format!("per_connection_buffer_limit_bytes: {wrong}"));
        assert!(line.contains("per_connection_buffer_limit_bytes: found "), "{line}");
    }
    assert_eq!(
        refused(CLUSTER, "per_connection_buffer_limit_bytes: -1"),
        "c.yaml:1:36: per_connection_buffer_limit_bytes: found the number -1, expected a whole number from 0 to 4294967295"
    );
    let any = "google.protobuf.UInt64Value";
    assert_eq!(read(any, "18446744073709551615"), json!("18446744073709551615"));
}

#[test]
fn booleans_come_in_many_words() {
    for word in ["true", "yes", "on", "Y", "'true'", "'yes'", "'TRUE'", "'1'"] {
        let text = format!("ignore_health_on_host_removal: {word}");
        assert_eq!(read(CLUSTER, &text), json!({"ignore_health_on_host_removal": true}), "{text}");
    }
    assert_eq!(read(CLUSTER, "ignore_health_on_host_removal: off"), json!({}));
    for word in ["1", "'on'", "maybe"] {
        refused(CLUSTER, &format!("ignore_health_on_host_removal: {word}"));
    }
}

#[test]
fn enums_come_in_any_case_or_as_numbers() {
    for word in ["LEAST_REQUEST", "least_request", "Least_Request", "1", "'1'"] {
        assert_eq!(read(CLUSTER, &format!("lb_policy: {word}")), json!({"lb_policy": "LEAST_REQUEST"}), "{word}");
    }
    assert_eq!(read(CLUSTER, "lb_policy: 77"), json!({"lb_policy": 77}));
    for wrong in ["1.0", "least-request", "leastRequest", "true", "{}"] {
        refused(CLUSTER, &format!("lb_policy: {wrong}"));
    }
    assert_eq!(
        refused(CLUSTER, "lb_policy: LEAST_REQUESTS"),
        "c.yaml:1:12: lb_policy: found \"LEAST_REQUESTS\", expected one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, \
         RANDOM, MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG (did you mean \"LEAST_REQUEST\"?)"
    );
}

#[test]
fn field_names_come_in_both_spellings_and_null_is_absence() {
    let text = "connectTimeout: 1s\nconnect_timeout: 2s\naltStatName: x\nhealth_checks: null\nedsClusterConfig: ~";
    assert_eq!(read(CLUSTER, text), json!({"connect_timeout": "2s", "alt_stat_name": "x"}));
    assert_eq!(read(CLUSTER, "name: a\nname: b"), json!({"name": "b"}));
}

#[test]
fn an_unquoted_word_or_number_is_no_string() {
    let node = "envoy.config.core.v3.Node";
    for (text, found) in [("id: n", "the boolean false"), ("id: 5", "the number 5")] {
        let line = format!("c.yaml:1:5: id: found {found}, expected a string (numbers and booleans must be quoted)");
        assert_eq!(refused(node, text), line);
    }
    // These two are strings to the YAML reader already.
    assert_eq!(read(node, "id: 0.5"), json!({"id": "0.5"}));
    assert_eq!(read(node, "id: 5000000000"), json!({"id": "5000000000"}));
}

#[test]
fn one_value_stands_for_a_list() {
    let text = "load_assignment: {cluster_name: c, endpoints: {lb_endpoints: {endpoint: {hostname: h}}}}";
    let endpoint = json!([{"lb_endpoints": [{"endpoint": {"hostname": "h"}}]}]);
    assert_eq!(read(CLUSTER, text), json!({"load_assignment": {"cluster_name": "c", "endpoints": endpoint}}));
    assert_eq!(read(CLUSTER, "health_checks: [null]"), json!({"health_checks": [{}]}));
    assert_eq!(read(CLUSTER, "health_checks: [[], [[{}]]]"), json!({"health_checks": [{}]}));
    let list = "google.protobuf.ListValue";
    assert_eq!(read(list, "[a, [b, null]]"), json!(["a", ["b", null]]));
}

#[test]
fn two_members_of_a_oneof_are_refused() {
    let line = refused(CLUSTER, "type: STATIC\ncluster_type: {name: foo}");
    assert_eq!(line, "c.yaml:2:1: cluster_type: found both, expected only one of `type` and `cluster_type`");
    assert_eq!(read(CLUSTER, "type: EDS\ncluster_type: null"), json!({"type": "EDS"}));
    // A member set to its default is set all the same.
    assert_eq!(read(CLUSTER, "type: STATIC"), json!({"type": "STATIC"}));
}

#[test]
fn an_unknown_field_is_named_with_what_was_meant() {
    let text = "static_resources:\n  clusters:\n  - name: c\n    connect_timout: 1s\n";
    assert_eq!(
        refused(BOOTSTRAP, text),
        "c.yaml:4:5: static_resources.clusters[0].connect_timout: found an unknown field, \
         expected a field of envoy.config.cluster.v3.Cluster (did you mean \"connect_timeout\"?); \
         no such field: 'connect_timout', the message has unknown fields"
    );
    let options = ParseOptions { allow_unknown_fields: true, file: None };
    let parsed = Descriptors::load().parse(BOOTSTRAP, text, Format::Yaml, options).unwrap();
    assert_eq!(parsed.unknown_fields[0].path, "static_resources.clusters[0].connect_timout");
    assert_eq!(parsed.unknown_fields[0].name, "envoy.config.cluster.v3.Cluster.connect_timout");
    assert!(refused(CLUSTER, "<<: {name: x}").starts_with("c.yaml:1:1: <<: found an unknown field"));
    let parsed = Descriptors::load().parse(CLUSTER, "lb_policy: FOO", Format::Yaml, options).unwrap();
    assert_eq!((parsed.bytes.len(), parsed.unknown_fields.len()), (0, 1));
}

#[test]
fn errors_inside_an_any_have_their_whole_path() {
    let text = "
static_resources:
  listeners:
  - filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: 5
";
    assert_eq!(
        refused(BOOTSTRAP, text),
        "c.yaml:9:24: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefix: \
         found the number 5, expected a string (numbers and booleans must be quoted)"
    );
    let options = "typed_extension_protocol_options";
    for (any, line) in [
        ("{'@type': t/foo.Bar}", "[\"a\"].@type: found \"t/foo.Bar\", expected a type that Envoy's API has"),
        ("{x: 1}", "[\"a\"]: found an object without \"@type\", expected \"@type\" beside the fields of the message"),
        (
            "{'@type': google.protobuf.Struct}",
            "[\"a\"]: found \"google.protobuf.Struct\", expected a type URL like \"type.googleapis.com/google.protobuf.Struct\"",
        ),
    ] {
        let found = refused(CLUSTER, &format!("{options}: {{a: {any}}}"));
        assert!(found.ends_with(&format!("{options}{line}")), "{found}");
    }
    assert_eq!(
        read(CLUSTER, "metadata: {typed_filter_metadata: {a: {}}}")["metadata"]["typed_filter_metadata"],
        json!({"a": {}})
    );
}

#[test]
fn texts_that_are_no_message_are_refused() {
    assert_eq!(refused(BOOTSTRAP, ""), format!("c.yaml:1:1: found nothing, expected an object ({BOOTSTRAP})"));
    assert_eq!(refused(BOOTSTRAP, "[]"), format!("c.yaml:1:1: found a list, expected an object ({BOOTSTRAP})"));
    assert!(refused(BOOTSTRAP, "a: [").starts_with("c.yaml:"));
    assert!(refused("foo.Bar", "{}").contains("foo.Bar"));
    let errors = parse(CLUSTER, "name: 5\nconnect_timeout: 5\ntype: 1.5").unwrap_err();
    assert_eq!(errors.len(), 3);
}

#[test]
fn well_known_types_inside_an_any_and_alone() {
    let url = "type.googleapis.com/google.protobuf";
    for (text, printed) in [
        (
            format!("{{'@type': {url}.Duration, value: 1.5s}}"),
            json!({"@type": format!("{url}.Duration"), "value": "1.500s"}),
        ),
        (
            format!("{{'@type': {url}.Struct, value: {{a: [1, b]}}}}"),
            json!({"@type": format!("{url}.Struct"), "value": {"a": [1, "b"]}}),
        ),
        (
            format!("{{'@type': {url}.StringValue, value: x}}"),
            json!({"@type": format!("{url}.StringValue"), "value": "x"}),
        ),
        (
            format!("{{'@type': {url}.FieldMask, value: 'a,fooBar.baz'}}"),
            json!({"@type": format!("{url}.FieldMask"), "value": "a,fooBar.baz"}),
        ),
    ] {
        assert_eq!(read("google.protobuf.Any", &text), printed);
    }
    assert_eq!(read("google.protobuf.Timestamp", "'2026-11-22T00:00:00Z'"), json!("2026-11-22T00:00:00Z"));
    assert_eq!(read("google.protobuf.BytesValue", "aGk"), json!("aGk="));
    assert_eq!(read("google.protobuf.DoubleValue", "0.1"), json!(0.1));
    assert_eq!(read("google.protobuf.FloatValue", "0.1"), json!(0.1));
    assert_eq!(read("google.protobuf.DoubleValue", "Infinity"), json!("Infinity"));
    refused("google.protobuf.FloatValue", "1e300");
    refused("google.protobuf.BytesValue", "'#'");
    // Numbers with a fraction are strings to Envoy's YAML reader, and stay so where no field gives them a type.
    assert_eq!(read("google.protobuf.Struct", "{a: 0.5, b: 5, c: no}"), json!({"a": "0.5", "b": 5, "c": false}));
}

#[test]
fn deprecated_fields_are_noticed() {
    let parsed = parse(BOOTSTRAP, "static_resources: {clusters: {http2ProtocolOptions: {}}}").unwrap();
    assert_eq!(parsed.deprecated[0].path, "static_resources.clusters[0].http2_protocol_options".replace("[0]", ""));
    assert_eq!(parsed.deprecated[0].name, "envoy.config.cluster.v3.Cluster.http2_protocol_options");
}

#[test]
fn a_second_text_is_merged_on_top() {
    let mut base = parse(BOOTSTRAP, "node: {id: a, cluster: b}\nstatic_resources: {clusters: [{name: x}]}").unwrap();
    base.merge(parse(BOOTSTRAP, "node: {id: c}\nstatic_resources: {clusters: [{name: z}]}").unwrap());
    let merged =
        json!({"node": {"id": "c", "cluster": "b"}, "static_resources": {"clusters": [{"name": "x"}, {"name": "z"}]}});
    assert_eq!(Descriptors::load().to_json(BOOTSTRAP, &base.bytes, Style::default()), merged);
    let typed: Bootstrap = base.decode().unwrap();
    assert_eq!(typed.node.unwrap().id, "c");
    assert_eq!(typed.static_resources.unwrap().clusters.len(), 2);
}

const ISTIO_BOOTSTRAPS: [&str; 5] = [
    include_str!("../testdata/istiod/gateway-ingress-bootstrap.json"),
    include_str!("../testdata/istiod/permissive-client-bootstrap.json"),
    include_str!("../testdata/istiod/permissive-server-v1-bootstrap.json"),
    include_str!("../testdata/istiod/policy-api-v1-bootstrap.json"),
    include_str!("../testdata/istiod/traffic-client-bootstrap.json"),
];

#[test]
fn istios_bootstraps_are_read_whole() {
    for text in ISTIO_BOOTSTRAPS {
        let (typed, parsed) =
            Descriptors::load().parse_as::<Bootstrap>(text, Format::Json, ParseOptions::default()).unwrap();
        assert!(parsed.unknown_fields.is_empty());
        assert_eq!(typed.encoded_len(), typed.encode_to_vec().len());
        let printed = Descriptors::load().to_json(BOOTSTRAP, &parsed.bytes, Style::default());
        assert_eq!(printed, Descriptors::load().print(&typed, Style::default()));
        let again = Descriptors::load().parse(BOOTSTRAP, &to_pretty(&printed), Format::Json, ParseOptions::default());
        assert_eq!(Descriptors::load().to_json(BOOTSTRAP, &again.unwrap().bytes, Style::default()), printed);
        // As YAML, which JSON is, the same comes out, but for the fractions in a Struct.
        let yaml = Descriptors::load().parse(BOOTSTRAP, text, Format::Yaml, ParseOptions::default()).unwrap();
        let yaml = Descriptors::load().to_json(BOOTSTRAP, &yaml.bytes, Style::default());
        assert_eq!(yaml["static_resources"], printed["static_resources"]);
    }
}

#[test]
fn a_dump_of_envoy_comes_back_as_envoy_printed_it() {
    let text = include_str!("../testdata/envoy-config_dump.json");
    let name = "envoy.admin.v3.ConfigDump";
    let parsed = Descriptors::load().parse(name, text, Format::Json, ParseOptions::default()).unwrap();
    let printed = Descriptors::load().to_json(name, &parsed.bytes, Style::default());
    assert_eq!(printed, serde_json::from_str::<Json>(text).unwrap());
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(|line| line.trim_end_matches(',').to_owned()).collect();
        lines.sort();
        lines
    };
    // Line for line, but for the order of maps.
    assert_eq!(sorted(&to_pretty(&printed)), sorted(text));
}

#[test]
fn admin_pages_come_back_byte_for_byte() {
    for (name, text, defaults) in [
        ("envoy.admin.v3.Clusters", include_str!("../testdata/envoy-clusters.json"), false),
        ("envoy.admin.v3.Certificates", include_str!("../testdata/envoy-certs.json"), true),
    ] {
        let parsed = Descriptors::load().parse(name, text, Format::Json, ParseOptions::default()).unwrap();
        let printed = Descriptors::load().to_json(name, &parsed.bytes, Style { defaults, redact: false });
        assert_eq!(to_pretty(&printed), text.trim_end());
    }
}

#[test]
fn dumps_of_istiod_come_back_whole() {
    for text in [
        include_str!("../testdata/istiod/gateway-ingress-config_dump.json"),
        include_str!("../testdata/istiod/permissive-client-config_dump.json"),
        include_str!("../testdata/istiod/permissive-server-v1-config_dump.json"),
        include_str!("../testdata/istiod/policy-api-v1-config_dump.json"),
    ] {
        let name = "envoy.admin.v3.ConfigDump";
        let parsed = Descriptors::load().parse(name, text, Format::Json, ParseOptions::default()).unwrap();
        let printed = Descriptors::load().to_json(name, &parsed.bytes, Style::default());
        let original: Json = serde_json::from_str(text).unwrap();
        assert_eq!(leaves(&printed), leaves(&original));
        // What is printed is plain protobuf JSON: it is read again without a word.
        let again = Descriptors::load().parse(name, &to_pretty(&printed), Format::Json, ParseOptions::default());
        assert_eq!(Descriptors::load().to_json(name, &again.unwrap().bytes, Style::default()), printed);
    }
}

/// Every scalar in a tree with its path, the names in one spelling, defaults left out.
fn leaves(json: &Json) -> Vec<String> {
    fn walk(path: &str, json: &Json, out: &mut Vec<String>) {
        match json {
            Json::Object(members) => members.iter().for_each(|(name, member)| {
                walk(&format!("{path}.{}", name.replace('_', "").to_lowercase()), member, out);
            }),
            Json::Array(items) => items.iter().for_each(|item| walk(&format!("{path}[]"), item, out)),
            Json::Null | Json::Bool(false) => {}
            Json::String(text) if text.is_empty() => {}
            Json::Number(number) if number.as_f64() == Some(0.0) => {}
            leaf => out.push(format!("{path} = {leaf}")),
        }
    }
    let mut out = Vec::new();
    walk("", json, &mut out);
    out.sort();
    out
}

#[test]
fn a_typed_struct_becomes_the_message_it_describes() {
    let text = "
'@type': type.googleapis.com/udpa.type.v1.TypedStruct
type_url: type.googleapis.com/io.istio.http.peer_metadata.Config
value: {upstream_discovery: [{istio_headers: {}}, {workload_discovery: {}}], additional_labels: [a], later: 1}
";
    let any = Any::decode(parse("google.protobuf.Any", text).unwrap().bytes.as_slice()).unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/udpa.type.v1.TypedStruct");
    let inner = Descriptors::load().typed_struct_to_any(any.clone()).unwrap();
    assert_eq!(inner.type_url, "type.googleapis.com/io.istio.http.peer_metadata.Config");
    let config = istio::PeerMetadata::decode(inner.value.as_slice()).unwrap();
    assert_eq!((config.upstream_discovery.len(), config.additional_labels.len()), (2, 1));
    assert!(matches!(config.upstream_discovery[0].method_specifier, Some(istio::Discovery::IstioHeaders(_))));
    let errors = Descriptors::load().typed_struct(&any, ParseOptions::default()).unwrap_err();
    assert!(errors[0].to_string().starts_with("later: found an unknown field"), "{errors:?}");

    let unknown = TypedStruct { type_url: "t/foo.Bar".into(), value: None };
    let any = Any { type_url: "t/xds.type.v3.TypedStruct".into(), value: unknown.encode_to_vec() };
    let error = Descriptors::load().typed_struct_to_any(any).unwrap_err();
    assert_eq!(error.to_string(), "type_url: found \"t/foo.Bar\", expected a type that Envoy's API has");
    let other = Any { type_url: "t/foo.Bar".into(), value: vec![1] };
    assert_eq!(Descriptors::load().typed_struct_to_any(other.clone()).unwrap(), other);
}

#[test]
fn secrets_are_redacted() {
    let name = "envoy.extensions.transport_sockets.tls.v3.Secret";
    let text = "
name: s
tls_certificate:
  certificate_chain: {inline_string: public}
  private_key: {inline_string: hidden}
  password: {inline_bytes: aGlkZGVu}
";
    let parsed = parse(name, text).unwrap();
    let printed = Descriptors::load().to_json(name, &parsed.bytes, Style { redact: true, defaults: false });
    let expected = json!({"name": "s", "tls_certificate": {
        "certificate_chain": {"inline_string": "public"},
        "private_key": {"inline_string": "[redacted]"},
        "password": {"inline_bytes": "W3JlZGFjdGVkXQ=="},
    }});
    assert_eq!(printed, expected);
    assert_eq!(read(name, text)["tls_certificate"]["private_key"], json!({"inline_string": "hidden"}));
}

#[test]
fn errors_do_not_say_what_is_secret() {
    let secret = "envoy.extensions.transport_sockets.tls.v3.Secret";
    let wrong = [
        ("tls_certificate: {private_key: hunter2}", "tls_certificate.private_key: found a string, expected an object"),
        ("tls_certificate: {private_key: {inline_bytes: '!hunter2'}}", "found a string, expected a string in base64"),
        ("tls_certificate: {private_key: {inline_string: 4711}}", "inline_string: found a number, expected a string"),
        ("tls_certificate: {private_key: {hunter2: x}}", "tls_certificate.private_key: found an unknown field"),
        ("tls_certificate: {private_key: {inline_sting: x}}", "private_key.inline_sting: found an unknown field"),
        ("tls_certificate: hunter2", "tls_certificate: found a string, expected an object"),
        ("session_ticket_keys: {keys: [hunter2]}", "session_ticket_keys.keys[0]: found a string, expected an object"),
        ("tls_certificate: {certificate_chain: shown}", "tls_certificate.certificate_chain: found \"shown\""),
    ];
    for (text, expected) in wrong {
        let error = refused(secret, text);
        assert!(error.contains(expected) && !error.contains("hunter2") && !error.contains("4711"), "{text}: {error}");
    }
}

#[test]
fn what_cannot_be_expanded_is_kept() {
    let unknown = Any { type_url: "t/foo.Bar".into(), value: vec![1, 2, 3] };
    let broken = Any { type_url: format!("t/{CLUSTER}"), value: vec![0xff] };
    for any in [unknown, broken] {
        let printed = Descriptors::load().print(&any, Style::default());
        let value = if any.value.len() == 3 { "AQID" } else { "/w==" };
        assert_eq!(printed, json!({"@type": any.type_url, "value": value}));
    }
    // An unknown field is skipped.
    let bytes = [0x0a, 1, b'x', 0xfa, 0x7f, 1, 0];
    assert_eq!(Descriptors::load().to_json(CLUSTER, &bytes, Style::default()), json!({"name": "x"}));
}

#[test]
fn defaults_are_printed_where_asked_for() {
    let style = Style { defaults: true, redact: false };
    let printed = Descriptors::load().to_json("envoy.admin.v3.ServerInfo", &[], style);
    assert_eq!(
        printed,
        json!({"version": "", "state": "LIVE", "hot_restart_version": "", "hot_restart_initializing": false})
    );
    let printed = Descriptors::load().to_json("stats.MetricConfig", &[], style);
    assert_eq!(printed, json!({"dimensions": {}, "name": "", "tags_to_remove": [], "match": "", "drop": false}));
}

/// A small generator of arbitrary bytes (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below.max(1)
    }
}

#[test]
fn no_input_makes_it_panic() {
    let mut random = Random(7);
    let descriptors = Descriptors::load();
    let yaml =
        "node: {id: a}\nstatic_resources:\n  clusters:\n  - &a name: 'c'\n    connect_timeout: 0.25s\n    x: *a\n";
    let wire = descriptors.parse(BOOTSTRAP, ISTIO_BOOTSTRAPS[0], Format::Json, ParseOptions::default()).unwrap().bytes;
    for _ in 0..400 {
        for (text, format) in [(yaml, Format::Yaml), (&ISTIO_BOOTSTRAPS[0][..2_000], Format::Json)] {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..1 + random.next(4) {
                let at = random.next(bytes.len());
                match random.next(3) {
                    0 => bytes[at] = random.next(128) as u8,
                    1 => bytes.truncate(at + 1),
                    _ => bytes.insert(at, b"{}[]:,'\"\\&*!-#\n u"[random.next(17)]),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let _ =
                descriptors.parse(BOOTSTRAP, &text, format, ParseOptions { allow_unknown_fields: true, file: None });
        }
        let mut bytes = wire.clone();
        for _ in 0..1 + random.next(8) {
            let at = random.next(bytes.len());
            bytes[at] = random.next(256) as u8;
        }
        let printed = descriptors.to_json(
            BOOTSTRAP,
            &bytes,
            Style { redact: random.next(2) == 0, defaults: random.next(2) == 0 },
        );
        let _ = to_pretty(&printed);
        let noise: Vec<u8> = (0..random.next(64)).map(|_| random.next(256) as u8).collect();
        let _ = descriptors.to_json("google.protobuf.Struct", &noise, Style::default());
        let any = Any { type_url: "t/udpa.type.v1.TypedStruct".into(), value: noise };
        let _ = descriptors.typed_struct_to_any(any);
    }
}

#[test]
fn nesting_is_bounded() {
    let deep = |open: &str, close: &str, levels: usize| open.repeat(levels) + "{}" + &close.repeat(levels);
    let url = "type.googleapis.com/google.protobuf.Any";
    let text = deep(&format!("{{\"@type\": \"{url}\", \"value\": "), "}", 90);
    let descriptors = Descriptors::load();
    let _ = descriptors.parse("google.protobuf.Any", &text, Format::Json, ParseOptions::default());
    let text = deep("{\"a\":", "}", 95);
    let parsed = descriptors.parse("google.protobuf.Struct", &text, Format::Json, ParseOptions::default()).unwrap();
    let json: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(descriptors.to_json("google.protobuf.Struct", &parsed.bytes, Style::default()), json);
    let mut bytes = Vec::new();
    for _ in 0..10_000 {
        let inner = Any { type_url: url.into(), value: bytes };
        bytes = inner.encode_to_vec();
        if bytes.len() > 1_000_000 {
            break;
        }
    }
    let _ = descriptors.to_json("google.protobuf.Any", &bytes, Style::default());
}
