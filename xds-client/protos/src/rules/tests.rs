//! What is refused, and in which words: those of Envoy 1.40, where Envoy was asked.

use crate::table::Message;
use crate::{Descriptors, Format, MAX_VIOLATIONS, ParseOptions, Violation};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

fn bytes(name: &str, text: &str) -> Vec<u8> {
    let parsed = Descriptors::load().parse(name, text, Format::Yaml, ParseOptions::default());
    parsed.unwrap_or_else(|errors| panic!("{text}: {errors:?}")).bytes
}

fn violations(name: &str, text: &str) -> Vec<Violation> {
    Descriptors::load().violations(name, &bytes(name, text)).unwrap()
}

/// `path: field: reason` of every violation.
fn lines(name: &str, text: &str) -> Vec<String> {
    violations(name, text).iter().map(|v| format!("{}: {}: {}", v.path, v.field, v.reason)).collect()
}

#[test]
fn violations_read_as_envoys_errors_do() {
    let within = |rest: &str| {
        format!(
            "BootstrapValidationError.StaticResources: embedded message failed validation | caused by \
             StaticResourcesValidationError.{rest}"
        )
    };
    let cluster = |rest: &str| {
        within(&format!("Clusters[0]: embedded message failed validation | caused by ClusterValidationError.{rest}"))
    };
    let nested = "embedded message failed validation | caused by";
    for (text, expected) in [
        (
            "{clusters: [{name: c, type: STATIC, connect_timeout: 0s}]}",
            cluster("ConnectTimeout: value must be greater than 0s"),
        ),
        ("{clusters: [{name: ''}]}", cluster("Name: value length must be at least 1 characters")),
        ("{clusters: [{name: c, lb_policy: 77}]}", cluster("LbPolicy: value must be one of the defined enum values")),
        (
            "{clusters: [{name: c, health_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1}]}]}",
            cluster(&format!("HealthChecks[0]: {nested} field: \"health_checker\", reason: is required")),
        ),
        (
            "{clusters: [{name: c, health_checks: [{timeout: 1s, interval: 1s, http_health_check: {path: /}}]}]}",
            cluster(&format!(
                "HealthChecks[0]: {nested} HealthCheckValidationError.UnhealthyThreshold: value is required"
            )),
        ),
        (
            "{clusters: [{name: c, outlier_detection: {max_ejection_percent: 101}}]}",
            cluster(&format!(
                "OutlierDetection: {nested} OutlierDetectionValidationError.MaxEjectionPercent: \
                 value must be less than or equal to 100"
            )),
        ),
        (
            "{clusters: [{name: c, common_lb_config: {healthy_panic_threshold: {value: 101}}}]}",
            cluster(&format!(
                "CommonLbConfig: {nested} CommonLbConfigValidationError.HealthyPanicThreshold: {nested} \
                 PercentValidationError.Value: value must be inside range [0, 100]"
            )),
        ),
        (
            "{clusters: [{name: c, load_assignment: {cluster_name: x, named_endpoints: {k: {address: {}}}}}]}",
            cluster(&format!(
                "LoadAssignment: {nested} ClusterLoadAssignmentValidationError.NamedEndpoints[k]: {nested} \
                 EndpointValidationError.Address: {nested} field: \"address\", reason: is required"
            )),
        ),
        (
            "{secrets: [{name: x, tls_certificate: {certificate_chain: {filename: ''}}}]}",
            within(&format!(
                "Secrets[0]: {nested} SecretValidationError.TlsCertificate: {nested} \
                 TlsCertificateValidationError.CertificateChain: {nested} \
                 DataSourceValidationError.Filename: value length must be at least 1 characters"
            )),
        ),
    ] {
        let found = violations(BOOTSTRAP, &format!("static_resources: {text}"));
        assert_eq!(found[0].to_string(), format!("Proto constraint validation failed ({expected})"), "{text}");
    }
}

#[test]
fn what_an_any_holds_is_checked_on_its_own() {
    let text = "
name: l
filter_chains:
- filters:
  - name: hcm
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: x
      http_filters: [{name: ''}]
      route_config: {virtual_hosts: [{name: x, domains: [a], request_headers_to_remove: [a, \"\\n\"]}]}
";
    let found = violations(LISTENER, text);
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "Proto constraint validation failed (HttpConnectionManagerValidationError.HttpFilters[0]: embedded message \
             failed validation | caused by HttpFilterValidationError.Name: value length must be at least 1 characters)",
            "Proto constraint validation failed (HttpConnectionManagerValidationError.RouteConfig: embedded message \
             failed validation | caused by RouteConfigurationValidationError.VirtualHosts[0]: embedded message failed \
             validation | caused by VirtualHostValidationError.RequestHeadersToRemove[1]: value does not match regex \
             pattern \"^[^\\x00\\n\\r]*$\")",
        ]
    );
    let manager = "filter_chains[0].filters[0].typed_config";
    assert_eq!(found[0].path, format!("{manager}.http_filters[0].name"));
    assert_eq!(found[1].path, format!("{manager}.route_config.virtual_hosts[0].request_headers_to_remove[1]"));
}

#[test]
fn a_typed_struct_is_checked_as_what_it_describes() {
    let text = "
name: c
typed_extension_protocol_options:
  a:
    '@type': type.googleapis.com/xds.type.v3.TypedStruct
    type_url: type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    value: {common_http_protocol_options: {max_headers_count: 0}}
";
    assert_eq!(
        lines(CLUSTER, text),
        [
            "typed_extension_protocol_options[\"a\"].common_http_protocol_options.max_headers_count: \
             HttpProtocolOptionsValidationError.MaxHeadersCount: value must be greater than or equal to 1",
            "typed_extension_protocol_options[\"a\"].upstream_protocol_options: upstream_protocol_options: is required",
        ]
    );
}

#[test]
fn every_kind_of_rule_is_checked() {
    let host = |rest: &str| format!("virtual_hosts: [{{name: x, domains: [a], {rest}}}]");
    let route = |rest: &str| host(&format!("routes: [{{match: {{prefix: /}}, {rest}}}]"));
    for (name, text, expected) in [
        (
            ROUTES,
            "virtual_hosts: [{name: x}]".to_owned(),
            "VirtualHostValidationError.Domains: value must contain at least 1 item(s)",
        ),
        (
            ROUTES,
            route("direct_response: {status: 600}"),
            "DirectResponseActionValidationError.Status: value must be inside range [200, 600)",
        ),
        (
            ROUTES,
            route("redirect: {response_code: 77}"),
            "RedirectActionValidationError.ResponseCode: value must be one of the defined enum values",
        ),
        (
            ROUTES,
            route("redirect: {host_redirect: \"a\\nb\"}"),
            "RedirectActionValidationError.HostRedirect: value does not match regex pattern \"^[^\\x00\\n\\r]*$\"",
        ),
        (ROUTES, host("routes: [{match: {prefix: /}}]"), "action: is required"),
        (
            ROUTES,
            host("routes: [{match: {path_separated_prefix: a/}, redirect: {}}]"),
            "RouteMatchValidationError.PathSeparatedPrefix: value does not match regex pattern \"^[^?#]+[^?#/]$\"",
        ),
        (
            "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
            "{}".to_owned(),
            "UriTemplateMatchConfigValidationError.PathTemplate: value must have between 1 and 256 characters inclusive",
        ),
        (
            "envoy.config.core.v3.Http2ProtocolOptions.SettingsParameter",
            "{value: 1}".to_owned(),
            "SettingsParameterValidationError.Identifier: value is required and must not be nil.",
        ),
        (
            "envoy.config.core.v3.Http2ProtocolOptions.SettingsParameter",
            "{value: 1, identifier: 65536}".to_owned(),
            "SettingsParameterValidationError.Identifier: value must be inside range [0, 65535]",
        ),
        (
            "envoy.config.metrics.v3.HistogramBucketSettings",
            "{match: {exact: a}, buckets: [1, 2, 1]}".to_owned(),
            "HistogramBucketSettingsValidationError.Buckets[2]: repeated value must contain unique items",
        ),
        (
            "envoy.config.metrics.v3.HistogramBucketSettings",
            "{match: {exact: a}, buckets: [1, 0]}".to_owned(),
            "HistogramBucketSettingsValidationError.Buckets[1]: value must be greater than 0",
        ),
        (
            "envoy.config.core.v3.Metadata",
            "{filter_metadata: {'': {}}}".to_owned(),
            "MetadataValidationError.FilterMetadata[]: value length must be at least 1 characters",
        ),
        (
            "envoy.config.core.v3.HeaderValue",
            format!("{{key: a, value: {}}}", "x".repeat(16_385)),
            "HeaderValueValidationError.Value: value length must be at most 16384 bytes",
        ),
        (
            "xds.core.v3.TypedExtensionConfig",
            "{name: a}".to_owned(),
            "TypedExtensionConfigValidationError.TypedConfig: value is required",
        ),
        (
            "envoy.config.route.v3.RateLimit.HitsAddend",
            "{format: 'a%'}".to_owned(),
            "HitsAddendValidationError.Format: value does not have prefix \"%\"",
        ),
        (
            "xds.type.matcher.v3.Matcher.MatcherTree.MatchMap",
            "{}".to_owned(),
            "MatchMapValidationError.Map: value must contain at least 1 pair(s)",
        ),
        (
            "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig",
            "{header_name: 'a b'}".to_owned(),
            "CustomHeaderConfigValidationError.HeaderName: value does not match regex pattern \"^:?[0-9a-zA-Z!#$%&'*+-.^_|~`]+$\"",
        ),
        (
            "envoy.config.core.v3.ExtensionConfigSource",
            "{type_urls: [a]}".to_owned(),
            "ExtensionConfigSourceValidationError.ConfigSource: value is required",
        ),
    ] {
        let found = lines(name, &text);
        assert!(found.iter().any(|line| line.ends_with(&format!(": {expected}"))), "{text}: {found:?}");
    }
}

#[test]
fn what_envoy_does_not_look_into_is_not_looked_into() {
    let source = "{config_source: {api_config_source: {api_type: GRPC, grpc_services: [{}]}}, type_urls: [a]}";
    assert_eq!(lines("envoy.config.core.v3.ExtensionConfigSource", source), Vec::<String>::new());
    assert_eq!(lines("envoy.config.core.v3.ConfigSource", "{api_config_source: {grpc_services: [{}]}}").len(), 1);
}

#[test]
fn pieces_of_a_message_are_read_as_one() {
    // As --config-yaml does: each text alone lacks what the other has.
    let check = "health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}]";
    let mut whole = bytes(CLUSTER, &format!("{{name: c, connect_timeout: 0s, {check}}}"));
    assert_eq!(Descriptors::load().violations(CLUSTER, &whole).unwrap().len(), 1);
    whole.extend(bytes(CLUSTER, "{name: d, connect_timeout: {seconds: 5}}"));
    assert_eq!(Descriptors::load().violations(CLUSTER, &whole).unwrap(), []);
    let name = "envoy.config.core.v3.Address";
    let mut address = bytes(name, "socket_address: {address: a}");
    assert!(!Descriptors::load().violations(name, &address).unwrap().is_empty());
    address.extend(bytes(name, "socket_address: {port_value: 5}"));
    assert_eq!(Descriptors::load().violations(name, &address).unwrap(), []);
    // The last member of a oneof is the one that counts.
    let mut address = bytes(name, "socket_address: {address: ''}");
    address.extend(bytes(name, "pipe: {path: /a}"));
    assert_eq!(Descriptors::load().violations(name, &address).unwrap(), []);
}

#[test]
fn violations_are_bounded_and_come_in_envoys_order() {
    let clusters = "{name: ''}, ".repeat(MAX_VIOLATIONS + 100);
    let found = violations(BOOTSTRAP, &format!("static_resources: {{clusters: [{clusters}]}}"));
    assert_eq!(found.len(), MAX_VIOLATIONS);
    assert_eq!(found[49].path, "static_resources.clusters[49].name");
    let found = lines(CLUSTER, "{name: '', connect_timeout: 0s, lb_policy: 77, health_checks: [{}]}");
    let paths: Vec<&str> = found.iter().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(
        paths,
        [
            "name",
            "connect_timeout",
            "lb_policy",
            "health_checks[0].timeout",
            "health_checks[0].interval",
            "health_checks[0].unhealthy_threshold",
            "health_checks[0].healthy_threshold",
            "health_checks[0].health_checker"
        ]
    );
}

#[test]
fn durations_are_what_envoy_can_count() {
    let field = "per_connection_buffer_high_watermark_timeout";
    for (value, allowed) in [("0s", true), ("-1s", false), ("9223372035.9s", true), ("9223372036s", false)] {
        assert_eq!(lines(CLUSTER, &format!("{{name: c, {field}: {value}}}")).is_empty(), allowed, "{value}");
    }
    let nested = "route: {cluster: a, retry_policy: {per_try_idle_timeout: -1s}}, match: {prefix: /}";
    assert_eq!(lines("envoy.config.route.v3.Route", &format!("{{{nested}}}")).len(), 1);
}

#[test]
fn rules_that_envoy_does_not_apply_are_not_applied() {
    let policy = |fields: &str| {
        format!(
            "{{name: c, load_balancing_policy: {{policies: [{{typed_extension_config: {{name: p, typed_config: \
             {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{fields}}}}}}}]}}}}"
        )
    };
    assert_eq!(lines(CLUSTER, &policy("least_request.v3.LeastRequest, choice_count: 1")), Vec::<String>::new());
    let negative = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin, blackout_period: -1s";
    assert_eq!(lines(CLUSTER, &policy(negative)).len(), 1);
    let metadata = "{name: c, metadata: {typed_filter_metadata: {a: \
                    {'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, connect_timeout: 0s}}}}";
    assert_eq!(lines(CLUSTER, metadata), Vec::<String>::new());
}

#[test]
fn what_is_no_message_is_none() {
    let descriptors = Descriptors::load();
    assert_eq!(descriptors.violations("foo.Bar", b""), None);
    assert_eq!(descriptors.violations(CLUSTER, &[0xff]), None);
    let mut bytes = Vec::new();
    for _ in 0..1_000 {
        let mut outer = Vec::new();
        crate::wire::put_bytes(&mut outer, 1, b"t/google.protobuf.Any");
        crate::wire::put_bytes(&mut outer, 2, &bytes);
        bytes = outer;
    }
    assert_eq!(descriptors.violations("google.protobuf.Any", &bytes), None);
}

#[test]
fn configuration_in_use_breaks_no_rule() {
    for text in [
        include_str!("../../testdata/istiod/gateway-ingress-config_dump.json"),
        include_str!("../../testdata/istiod/permissive-client-config_dump.json"),
        include_str!("../../testdata/istiod/permissive-server-v1-config_dump.json"),
        include_str!("../../testdata/istiod/policy-api-v1-config_dump.json"),
        include_str!("../../testdata/envoy-config_dump.json"),
    ] {
        let name = "envoy.admin.v3.ConfigDump";
        let parsed = Descriptors::load().parse(name, text, Format::Json, ParseOptions::default()).unwrap();
        let mut found = Descriptors::load().violations(name, &parsed.bytes).unwrap();
        // What Envoy prints of endpoints is its own, and has weights that it would not take.
        found.retain(|violation| violation.field != "LocalityLbEndpointsValidationError.LoadBalancingWeight");
        assert_eq!(found, []);
    }
}

#[test]
fn every_rule_of_the_api_is_understood() {
    for message in Message::all() {
        assert!(message.fields().len() <= super::compile::Mask::CAPACITY, "{}", message.name());
        assert!(super::compile::unknown_rules(message).is_empty(), "{}", message.name());
        // An empty message of every type, which compiles all of its rules.
        assert!(Descriptors::load().violations(message.name(), b"").is_some());
    }
}
