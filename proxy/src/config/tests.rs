//! Conversion as a whole: what a real istiod sends, the defaults of near-empty messages, and bytes that are no message.

use super::model::*;
use super::pb;
use super::*;
use prost::Message;
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::time::Duration;
use xds_protos::{Descriptors, Format, ParseOptions};

mod filters;

const SIDECAR: &str = include_str!("testdata/istio-bootstrap-sidecar.json");
const GATEWAY: &str = include_str!("testdata/istio-bootstrap-gateway.json");
const CLUSTERS: &str = include_str!("testdata/istio-clusters.json");
const LISTENERS: &str = include_str!("testdata/istio-listeners.json");
const GUARDED: &str = include_str!("testdata/istio-guarded-listeners.json");

/// Reads YAML (or JSON) as a message of a type.
fn read<M: Message + Default + Name>(text: &str) -> M {
    Descriptors::shared()
        .parse_as::<M>(text, Format::Yaml, ParseOptions::default())
        .unwrap_or_else(|errors| panic!("{}: {}", M::full_name(), errors[0]))
        .0
}

/// What the table says of a message, before it is converted.
fn examined<M: Message + Name>(message: M, cx: &mut Context) -> Result<M, ConfigError> {
    examine(&M::full_name(), &message.encode_to_vec(), cx).map(|()| message)
}

fn parts(list: &str) -> Vec<Json> {
    serde_json::from_str(list).unwrap()
}

fn listener_of(text: &str) -> (Result<ListenerConfig, ConfigError>, Vec<(String, String)>) {
    let mut cx = Context::default();
    let converted =
        examined(read::<pb::listener::Listener>(text), &mut cx).and_then(|message| listener(message, &mut cx));
    (converted, said(cx))
}

fn cluster_of(text: &str) -> (Result<ClusterConfig, ConfigError>, Vec<(String, String)>) {
    let mut cx = Context::default();
    let converted = examined(read::<pb::cluster::Cluster>(text), &mut cx).and_then(|message| cluster(message, &mut cx));
    (converted, said(cx))
}

fn route_of(text: &str) -> (Result<RouteConfig, ConfigError>, Vec<(String, String)>) {
    let mut cx = Context::default();
    let converted =
        examined(read::<pb::route::RouteConfiguration>(text), &mut cx).and_then(|message| route(message, &mut cx));
    (converted, said(cx))
}

/// The warnings: path and meaning.
fn said(cx: Context) -> Vec<(String, String)> {
    cx.notices.warnings.into_iter().map(|warning| (warning.path, warning.meaning)).collect()
}

fn meanings(warnings: &[(String, String)]) -> BTreeSet<&str> {
    warnings.iter().map(|(_, meaning)| meaning.as_str()).collect()
}

#[test]
fn istios_bootstraps_convert() {
    for text in [SIDECAR, GATEWAY] {
        let mut cx = Context::default();
        let converted = bootstrap(&read::<pb::bootstrap::Bootstrap>(text).encode_to_vec(), &mut cx).unwrap();
        let names: Vec<&str> = converted.clusters.iter().map(|c| &*c.name).collect();
        assert_eq!(names, ["prometheus_stats", "agent", "sds-grpc", "xds-grpc"]);
        let xds = &converted.clusters[3];
        assert_eq!(xds.http.protocol, UpstreamProtocol::Http2);
        assert_eq!(xds.http.max_requests_per_connection, 1);
        assert_eq!(xds.circuit_breakers[Priority::High as usize].max_requests, 100_000);
        assert_eq!(xds.tcp_keepalive.unwrap().time, Some(Duration::from_secs(300)));
        let ads = converted.ads.unwrap();
        assert!(ads.delta && ads.set_node_on_first_message_only);
        assert_eq!(ads.target, GrpcTarget::Cluster { name: "xds-grpc".into(), authority: None });
        let cds = converted.cds.unwrap();
        assert_eq!((cds.kind, cds.initial_fetch_timeout), (ConfigSourceKind::Ads, None));
        assert_eq!(converted.admin.unwrap().address.to_string(), "127.0.0.1:15000");
        assert!(!converted.stats.use_all_default_tags && converted.stats.tags.len() > 10);
        assert!(
            converted.stats.matcher.accepts("cluster.xds-grpc;.x") && !converted.stats.matcher.accepts("cluster.x")
        );
        let NetworkFilterConfig::HttpConnectionManager(manager) = &converted.listeners[0].filter_chains[0].filters[0]
        else {
            panic!("no manager")
        };
        assert!(manager.router.is_some());
        assert!(matches!(converted.log_format, Some(LogFormat::Text(_))));
        assert_eq!(converted.node.message.user_agent_name, "outrigger");
        assert!(converted.node.message.metadata.is_some());
        assert_eq!(
            meanings(&said(cx)).into_iter().filter(|m| !m.starts_with("envoy.filters.")).collect::<Vec<_>>(),
            [
                "it switches code of Envoy's that does not exist here",
                "no profiles are written",
                "patterns have a built-in bound",
                "there are no bootstrap extensions",
                "there is no overload manager",
            ]
        );
    }
}

#[test]
fn istios_clusters_convert() {
    let mut warned = BTreeSet::new();
    for part in parts(CLUSTERS) {
        let (converted, warnings) = cluster_of(&part.to_string());
        let converted = converted.unwrap();
        assert_eq!(&*converted.name, part["name"].as_str().unwrap());
        if converted.name.starts_with("outbound|") {
            let tls = &converted.transport_matches[0];
            assert_eq!(tls.criteria, [("tlsMode".to_owned(), Json::from("istio"))]);
            let UpstreamTransport::Tls(tls) = &tls.transport else { panic!("{}: no TLS", converted.name) };
            assert!(tls.sni.starts_with("outbound_."));
            let ValidationSource::Combined { default, secret } = &tls.common.validation else { panic!("unverified") };
            assert_eq!((&*secret.name, default.san_matchers.len()), ("ROOTCA", 1));
            assert!(matches!(&tls.common.certificates, CertificateSource::Sds(s) if &*s.name == "default"));
        }
        warned.extend(warnings.into_iter().map(|(_, meaning)| meaning));
    }
    assert_eq!(
        warned.into_iter().collect::<Vec<_>>(),
        [
            "RING_HASH: there is no consistent hashing yet: endpoints are picked at random, nothing sticks to one",
            "istio.metadata_exchange (envoy.tcp.metadataexchange.config.MetadataExchange) does not exist here: \
             connections pass it by: the peer's workload is not learnt from its connections",
            "there is no consistent hashing yet",
        ]
    );
}

#[test]
fn istios_listeners_convert() {
    for part in parts(LISTENERS) {
        let (converted, warnings) = listener_of(&part.to_string());
        let converted = converted.unwrap_or_else(|e| panic!("{}: {e}", part["name"]));
        assert_eq!(&*converted.name, part["name"].as_str().unwrap());
        if &*converted.name == "virtualOutbound" {
            assert!(converted.use_original_dst && converted.bind_to_port);
        }
        if &*converted.name == "virtualInbound" {
            let strict = converted.filter_chains.iter().filter_map(|c| match &c.transport {
                DownstreamTransport::Tls(tls) => Some(tls),
                DownstreamTransport::Raw => None,
            });
            for tls in strict {
                assert!(tls.require_client_certificate);
                assert_eq!(tls.common.cipher_suites.len(), 4, "without the two that lack forward secrecy");
                assert!(matches!(tls.common.validation, ValidationSource::Combined { .. }));
            }
        }
        for (path, meaning) in warnings {
            let known = meaning.contains(" pass it by: ")
                || meaning.contains("there is no tracing yet")
                || path.ends_with(".proxy_100_continue")
                || path.ends_with(".initial_read_buffer_size");
            assert!(known, "{path}: {meaning}");
        }
    }
}

#[test]
fn listeners_with_guards_that_do_not_exist_yet_are_refused() {
    for part in parts(GUARDED) {
        let (converted, _) = listener_of(&part.to_string());
        let error = converted.unwrap_err();
        assert!(error.path.starts_with("filter_chains[0].filters["), "{error}");
        assert!(error.message.contains("rbac") || error.message.contains("jwt_authn"), "{error}");
    }
}

/// Fields of Istio's messages that may be taken away without a difference, each for a reason.
const WITHOUT_EFFECT: [&str; 22] = [
    // Names of extensions: the type decides.
    ".filters[].name",
    ".httpFilters[].name",
    ".listenerFilters[].name",
    ".accessLog[].name",
    ".transportSocket.name",
    // Set to what is the default.
    ".useRequestIdForTraceSampling",
    ".resourceApiVersion",
    ".transportApiVersion",
    ".tlsParams.tlsMinimumProtocolVersion",
    "..filterChains[].transportSocket.typedConfig.commonTlsContext.tlsParams.tlsMaximumProtocolVersion",
    "..edsClusterConfig.serviceName",
    // Part of what is warned about, or refused, as a whole.
    ".tracing.",
    ".decorator.",
    ".typedConfig.alpnOverride[]",
    ".typedConfig.disableHostHeaderFallback",
    ".typedConfig.emitFilterState",
    ".typedConfig.value.",
    "..ringHashLbConfig.",
    // Idle, says the table.
    ".metadata.filterMetadata",
    ".transportSocketMatches[].name",
    ".loadAssignment.endpoints[].loadBalancingWeight",
    // Of a cluster inside the cluster of that name.
    ".loadAssignment.clusterName",
];

/// The rule of this room, tested on all that istiod sends: take away any one field, and the model, the notices or the
/// verdict differ.
#[test]
fn no_field_is_dropped_in_silence() {
    let mut shapes = BTreeSet::new();
    let mut silent = BTreeSet::new();
    for (list, convert) in [(CLUSTERS, cluster_outcome as fn(&Json) -> String), (LISTENERS, listener_outcome)] {
        for part in parts(list) {
            let whole = convert(&part);
            let mut leaves = Vec::new();
            collect_leaves(&part, String::new(), &mut leaves);
            for pointer in leaves {
                let shape: String = pointer
                    .split('/')
                    .map(|p| if p.parse::<usize>().is_ok() { "[]".into() } else { format!(".{p}") })
                    .collect();
                if !shapes.insert((list.len(), shape.clone())) {
                    continue;
                }
                if WITHOUT_EFFECT.iter().any(|known| shape.contains(known)) || is_default(&part, &pointer) {
                    continue;
                }
                let mut without = part.clone();
                remove(&mut without, &pointer);
                if convert(&without) == whole {
                    silent.insert(format!("{shape} = {}", part.pointer(&pointer).unwrap()));
                }
            }
        }
    }
    assert!(shapes.len() > 150, "{}", shapes.len());
    assert!(silent.is_empty(), "{silent:#?}");
}

/// Values that protobuf does not even encode, or encodes as a wrapper around the default.
fn is_default(part: &Json, pointer: &str) -> bool {
    matches!(part.pointer(pointer), Some(Json::Bool(false)))
        || matches!(part.pointer(pointer), Some(Json::Object(o)) if o.is_empty())
        || matches!(part.pointer(pointer).and_then(Json::as_str), Some("" | "KEEP_UNCHANGED" | "ROUND_ROBIN" | "AUTO"))
}

fn collect_leaves(value: &Json, at: String, leaves: &mut Vec<String>) {
    match value {
        Json::Object(members) if !members.is_empty() => {
            for (name, member) in members.iter().filter(|(name, _)| *name != "@type") {
                collect_leaves(member, format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), leaves);
            }
        }
        Json::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                collect_leaves(item, format!("{at}/{i}"), leaves);
            }
        }
        _ => leaves.push(at),
    }
}

fn remove(value: &mut Json, pointer: &str) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Json::Object(members) => {
            members.shift_remove(&last.replace("~1", "/").replace("~0", "~"));
        }
        Json::Array(items) => {
            items.remove(last.parse().unwrap());
        }
        _ => {}
    }
}

fn cluster_outcome(part: &Json) -> String {
    match Descriptors::shared().parse_as(&part.to_string(), Format::Json, ParseOptions::default()) {
        Ok((message, _)) => {
            let mut cx = Context::default();
            let converted = examined(message, &mut cx)
                .and_then(|message| cluster(message, &mut cx))
                .map(|c| ClusterConfig { hash: 0, ..c });
            format!("{converted:?} {:?}", cx.notices)
        }
        Err(errors) => format!("{errors:?}"),
    }
}

fn listener_outcome(part: &Json) -> String {
    match Descriptors::shared().parse_as(&part.to_string(), Format::Json, ParseOptions::default()) {
        Ok((message, _)) => {
            let mut cx = Context::default();
            let converted = examined(message, &mut cx).and_then(|message| listener(message, &mut cx)).map(|mut l| {
                l.shell_hash = 0;
                l.filter_chains.iter_mut().chain(&mut l.default_filter_chain).for_each(|chain| chain.hash = 0);
                l
            });
            format!("{converted:?} {:?}", cx.notices)
        }
        Err(errors) => format!("{errors:?}"),
    }
}

#[test]
fn a_plain_cluster_has_envoys_defaults() {
    let (converted, warnings) = cluster_of("{name: c}");
    let converted = converted.unwrap();
    assert!(matches!(&converted.discovery, ClusterDiscovery::Static(load) if load.localities.is_empty()));
    assert_eq!(converted.stat_name, converted.name);
    assert_eq!(converted.connect_timeout, Duration::from_secs(5));
    assert_eq!(converted.lb, LbPolicy::RoundRobin);
    assert_eq!(converted.circuit_breakers, [Thresholds::default(); 2]);
    assert_eq!(converted.panic_threshold, 50.0);
    assert_eq!(converted.http.protocol, UpstreamProtocol::Http1);
    assert_eq!(converted.http.idle_timeout, Some(Duration::from_secs(3600)));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn clusters_that_make_no_sense_are_refused() {
    let rule = |path: &str, broken: &str| {
        format!("{path}: Proto constraint validation failed (ClusterValidationError.{broken})")
    };
    let refused = |text: &str| cluster_of(text).0.unwrap_err().to_string();
    assert_eq!(refused("{type: STATIC}"), rule("name", "Name: value length must be at least 1 characters"));
    assert_eq!(
        refused("{name: c, connect_timeout: 0s}"),
        rule("connect_timeout", "ConnectTimeout: value must be greater than 0s")
    );
    assert_eq!(
        refused("{name: c, lb_policy: LOAD_BALANCING_POLICY_CONFIG}"),
        "lb_policy: found LOAD_BALANCING_POLICY_CONFIG, expected ROUND_ROBIN, LEAST_REQUEST, RANDOM or CLUSTER_PROVIDED"
    );
    assert_eq!(refused("{name: c, type: EDS}"), "eds_cluster_config: is missing, expected a value");
    assert_eq!(
        refused("{name: c, type: ORIGINAL_DST}"),
        "lb_policy: CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST, and those take no other policy"
    );
    assert_eq!(
        refused("{name: c, type: LOGICAL_DNS, load_assignment: {cluster_name: c}}"),
        "load_assignment: LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint"
    );
    assert!(
        refused(
            "{name: c, transport_socket: {name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}"
        )
        .starts_with("transport_socket.typed_config: Didn't find a registered implementation for 'x'")
    );
}

#[test]
fn the_first_supported_policy_of_the_list_wins() {
    let list =
        |policies: &str| cluster_of(&format!("{{name: c, load_balancing_policy: {{policies: [{policies}]}}}}")).0;
    let policy = |name: &str, kind: &str| {
        format!(
            "{{typed_extension_config: {{name: x, typed_config: {{'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{kind}}}}}}}"
        )
    };
    let (maglev, least) = (policy("maglev", "Maglev"), policy("least_request", "LeastRequest"));
    let chosen = list(&format!("{maglev}, {least}")).unwrap().lb;
    assert_eq!(chosen, LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 });
    assert_eq!(list(&maglev).unwrap().lb, LbPolicy::Random, "known, and none of it here: still endpoints are picked");
    let unknown =
        "{typed_extension_config: {name: x, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}}";
    assert!(
        list(unknown)
            .unwrap_err()
            .to_string()
            .starts_with("load_balancing_policy.policies: didn't find a registered load balancer factory")
    );
}

#[test]
fn dns_also_comes_as_an_extension() {
    let text = "{name: c, cluster_type: {name: envoy.clusters.dns, typed_config: {
        '@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, dns_refresh_rate: 7s,
        dns_lookup_family: V4_ONLY, all_addresses_in_single_endpoint: true}},
        load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {
        socket_address: {address: example.com, port_value: 80}}}}]}]}}";
    let ClusterDiscovery::LogicalDns { endpoints, dns } = cluster_of(text).0.unwrap().discovery else {
        panic!("no LOGICAL_DNS")
    };
    assert_eq!((&*endpoints[0].names[0].0, endpoints[0].names[0].1), ("example.com", 80));
    assert_eq!((dns.refresh_rate, dns.family), (Duration::from_secs(7), DnsFamily::V4Only));
}

/// A listener around one HTTP connection manager with these fields.
fn manager(fields: &str) -> (Result<ListenerConfig, ConfigError>, Vec<(String, String)>) {
    listener_of(&format!(
        "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: [{{filters: [{{
        name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: s, route_config: {{name: r}}{fields}}}}}]}}]}}"
    ))
}

fn http_filter(name: &str, kind: &str, rest: &str) -> String {
    format!("{{name: {name}, typed_config: {{'@type': type.googleapis.com/{kind}}}{rest}}}")
}

const ROUTER: &str =
    "{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";

#[test]
fn a_plain_listener_and_manager_have_envoys_defaults() {
    let (converted, warnings) = manager("");
    let converted = converted.unwrap();
    assert!(converted.bind_to_port && converted.reuse_port && !converted.use_original_dst);
    assert_eq!(converted.listener_filters_timeout, Some(Duration::from_secs(15)));
    assert_eq!(converted.per_connection_buffer_limit_bytes, 1 << 20);
    let NetworkFilterConfig::HttpConnectionManager(manager) = &converted.filter_chains[0].filters[0] else {
        panic!("no manager")
    };
    assert_eq!(manager.server_name, "envoy");
    assert_eq!(manager.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(manager.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((manager.max_request_headers_bytes, manager.max_headers_count), (60 << 10, 100));
    assert!(manager.generate_request_id && !manager.normalize_path);
    assert_eq!(manager.forward_client_cert, ForwardClientCert::Sanitize);
    assert!(matches!(&manager.routes, RouteSource::Inline(routes) if routes.validate_clusters));
    assert!(manager.router.is_none());
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn what_the_proxy_cannot_act_on_is_said() {
    let defaults = ", drain_timeout: 5s, delayed_close_timeout: 2s";
    assert!(manager(defaults).1.is_empty(), "these are what happens");
    let (converted, warnings) = manager(
        ", drain_timeout: 6s, proxy_100_continue: true, \
         stream_error_on_invalid_http_message: true",
    );
    assert!(converted.is_ok());
    let fields: Vec<&str> = warnings.iter().filter_map(|(path, _)| path.rsplit('.').next()).collect();
    assert_eq!(fields, ["drain_timeout", "proxy_100_continue", "stream_error_on_invalid_http_message"]);
    let (converted, warnings) = cluster_of(
        "{name: c, connect_timeout: 1s, per_connection_buffer_limit_bytes: 1024, ignore_health_on_host_removal: true, \
         common_http_protocol_options: {max_stream_duration: 1s}, \
         http_protocol_options: {accept_http_10: true, enable_trailers: true}, \
         http2_protocol_options: {override_stream_error_on_invalid_http_message: true}}",
    );
    assert!(converted.is_ok());
    let fields: Vec<&str> = warnings.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        fields,
        [
            "per_connection_buffer_limit_bytes",
            "http2_protocol_options.override_stream_error_on_invalid_http_message",
            "common_http_protocol_options.max_stream_duration",
            "http_protocol_options.accept_http_10",
            "http_protocol_options.enable_trailers"
        ]
    );
}

#[test]
fn options_of_a_cluster_are_named_by_their_full_path() {
    let options = |fields: &str| {
        cluster_of(&format!(
            "{{name: c, transport_socket: {{name: tls, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}}}, \
             typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
             {{'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, {fields}}}}}}}"
        ))
    };
    const AT: &str = "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions]";
    let (converted, warnings) = options(
        "auto_config: {http_protocol_options: {accept_http_10: true, send_fully_qualified_url: true}}, \
         common_http_protocol_options: {max_response_headers_kb: 96}",
    );
    assert!(converted.is_ok());
    let paths: Vec<&str> = warnings.iter().map(|(path, _)| path.strip_prefix(AT).unwrap()).collect();
    assert_eq!(
        paths,
        [
            ".auto_config.http_protocol_options.send_fully_qualified_url",
            ".common_http_protocol_options.max_response_headers_kb",
            ".auto_config.http_protocol_options.accept_http_10"
        ]
    );
    assert_eq!(
        options("explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 0}}").0.unwrap_err().path,
        format!("{AT}.explicit_http_config.http2_protocol_options.max_concurrent_streams")
    );
}

#[test]
fn guards_of_tls_are_refused_by_name() {
    let refused = |fields: &str| {
        cluster_of(&format!(
            "{{name: c, transport_socket: {{name: tls, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             common_tls_context: {{{fields}}}}}}}}}"
        ))
        .0
        .unwrap_err()
        .to_string()
    };
    const AT: &str = "transport_socket.typed_config.common_tls_context";
    assert_eq!(
        refused("validation_context: {trusted_ca: {inline_string: x}, only_verify_leaf_cert_crl: true}"),
        format!(
            "{AT}.validation_context.only_verify_leaf_cert_crl: is not supported: revocation is checked for the whole chain"
        )
    );
    assert_eq!(
        refused("key_log: {path: /tmp/keys}"),
        format!("{AT}.key_log: is not supported: session keys are never written to a file")
    );
    assert_eq!(
        refused("validation_context_certificate_provider_instance: {instance_name: a}"),
        format!(
            "{AT}.validation_context_certificate_provider_instance: is not supported: there are no certificate providers"
        )
    );
}

#[test]
fn tags_that_could_never_be_found_are_refused() {
    let refused = |tag: &str| {
        let text = format!("{{stats_config: {{stats_tags: [{tag}]}}}}");
        bootstrap(&read::<pb::bootstrap::Bootstrap>(&text).encode_to_vec(), &mut Context::default())
            .unwrap_err()
            .to_string()
    };
    assert!(refused("{tag_name: a, regex: '('}").starts_with("stats_config.stats_tags[0].regex: \"(\": "));
    assert_eq!(
        refused("{tag_name: nobodys}"),
        "stats_config.stats_tags[0].tag_name: No regex specified for tag specifier and no default regex for name: \
         'nobodys'"
    );
}

#[test]
fn guards_are_refused_unless_disabled() {
    const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
    let with = |filter: String| manager(&format!(", http_filters: [{filter}, {ROUTER}]"));
    assert_eq!(
        with(http_filter("guard", RBAC, "")).0.unwrap_err().to_string(),
        "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: guard \
         (envoy.extensions.filters.http.rbac.v3.RBAC) is not supported: requests must not pass it by"
    );
    assert!(with(http_filter("guard", RBAC, ", is_optional: true")).0.is_err());
    let (converted, warnings) = with(http_filter("guard", RBAC, ", disabled: true"));
    assert!(converted.is_ok() && warnings.len() == 1, "{warnings:?}");
    for guard in [
        "jwt_authn.v3.JwtAuthentication",
        "ext_authz.v3.ExtAuthz",
        "oauth2.v3.OAuth2",
        "csrf.v3.CsrfPolicy",
        "basic_auth.v3.BasicAuth",
        "ext_proc.v3.ExternalProcessor",
        "wasm.v3.Wasm",
        "lua.v3.Lua",
        "local_ratelimit.v3.LocalRateLimit",
        "header_mutation.v3.HeaderMutation",
    ] {
        let mut cx = Context::default();
        let any = pb::google::Any { type_url: format!("x/envoy.extensions.filters.http.{guard}"), value: Vec::new() };
        let filter = pb::hcm::HttpFilter {
            name: "guard".into(),
            config_type: Some(pb::hcm::http_filter::ConfigType::TypedConfig(any)),
            ..Default::default()
        };
        assert!(http_filters::http_filters(vec![filter], &mut cx).unwrap_err().message.contains(guard), "{guard}");
    }
}

#[test]
fn filters_without_work_pass_in_silence_and_others_with_a_warning() {
    let fault = http_filter("fault", "envoy.extensions.filters.http.fault.v3.HTTPFault", "");
    let cors = http_filter("cors", "envoy.extensions.filters.http.cors.v3.Cors", "");
    let (converted, warnings) = manager(&format!(", http_filters: [{fault}, {cors}, {ROUTER}]"));
    assert!(converted.is_ok() && warnings.is_empty(), "{warnings:?}");
    let grpc_web = http_filter("gw", "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", "");
    let (converted, warnings) = manager(&format!(", http_filters: [{grpc_web}, {ROUTER}]"));
    assert!(converted.is_ok());
    assert_eq!(
        warnings,
        [(
            "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config".to_owned(),
            "gw (envoy.extensions.filters.http.grpc_web.v3.GrpcWeb) does not exist here: requests pass it by: \
             gRPC-Web is not translated"
                .to_owned()
        )]
    );
    let (converted, _) = manager(&format!(", http_filters: [{ROUTER}, {fault}]"));
    assert!(converted.unwrap_err().message.contains("must be the last filter"));
    let (converted, _) = manager(&format!(", http_filters: [{fault}]"));
    assert!(converted.unwrap_err().message.starts_with("non-terminal filter named fault is the last filter"));
}

#[test]
fn listeners_that_make_no_sense_are_refused() {
    let refused = |text: &str| listener_of(text).0.unwrap_err().to_string();
    const ADDRESS: &str = "address: {socket_address: {address: 127.0.0.1, port_value: 80}}";
    assert_eq!(refused(&format!("{{name: l, {ADDRESS}}}")), "filter_chains: no filter chains specified");
    assert_eq!(
        refused(&format!("{{name: l, {ADDRESS}, filter_chains: [{{name: a}}, {{name: b}}]}}")),
        "filter_chains[1].filter_chain_match: filter chain 'b' has the same matching rules defined as 'a'"
    );
    assert_eq!(
        refused(
            "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80, ipv4_compat: true}}, filter_chains: [{}]}"
        ),
        "address: Only IPv6 address '::' or valid IPv4-mapped IPv6 address can set ipv4_compat: 127.0.0.1:80"
    );
    for (filter, kind) in [("proxy_protocol", "ProxyProtocol"), ("original_src", "OriginalSrc")] {
        let error = refused(&format!(
            "{{name: l, {ADDRESS}, filter_chains: [{{}}], listener_filters: [{{name: f, typed_config: {{
            '@type': type.googleapis.com/envoy.extensions.filters.listener.{filter}.v3.{kind}}}}}]}}"
        ));
        assert!(error.starts_with("listener_filters[0].typed_config: f (envoy"), "{error}");
    }
    assert!(
        refused(&format!(
            "{{name: l, {ADDRESS}, filter_chains: [{{filter_chain_match: {{server_names: ['a.*.b']}}}}]}}"
        ))
        .ends_with("partial wildcards are not supported in \"server_names\"")
    );
}

#[test]
fn listener_filters_may_be_left_out_by_port() {
    let (converted, warnings) = listener_of(
        "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [{}],
        listener_filters: [{name: f, filter_disabled: {or_match: {rules: [{destination_port_range: {start: 80, end: 81}},
        {not_match: {destination_port_range: {start: 1, end: 65536}}}]}}, typed_config: {
        '@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}]}",
    );
    let converted = converted.unwrap();
    let ListenerFilterConfig::HttpInspector(ListenerFilterPredicate::Or(rules)) = &converted.listener_filters[0] else {
        panic!("no predicate")
    };
    assert!(matches!(rules[0], ListenerFilterPredicate::DestinationPort { start: 80, end: 81 }));
    assert!(matches!(rules[1], ListenerFilterPredicate::Not(_)));
    assert!(warnings.is_empty());
}

#[test]
fn a_route_has_envoys_defaults() {
    let (converted, warnings) = route_of(
        "{name: r, virtual_hosts: [{name: v, domains: ['A.com'], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}",
    );
    let converted = converted.unwrap();
    assert!(!converted.validate_clusters, "by RDS");
    assert_eq!(&*converted.virtual_hosts[0].domains[0], "a.com");
    let RouteAction::Forward(forward) = &converted.virtual_hosts[0].routes[0].action else { panic!("no forward") };
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    assert_eq!((forward.idle_timeout, forward.max_stream_duration, forward.grpc_timeout_max), (None, None, None));
    assert_eq!(forward.cluster_not_found, 503);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn istios_routes_convert() {
    let (converted, warnings) = route_of(
        "{name: '80', validate_clusters: false, max_direct_response_body_size_bytes: 1048576, ignore_port_in_host_matching: true,
        virtual_hosts: [{name: 'reviews:80', domains: [reviews, 10.96.0.1], include_request_attempt_count: true, routes: [{
        name: canary, match: {path_separated_prefix: /a, case_sensitive: true,
          headers: [{name: ':method', string_match: {exact: GET}}, {name: x, string_match: {safe_regex: {regex: 'a.*'}}, invert_match: true}]},
        route: {weighted_clusters: {clusters: [{name: v1, weight: 90}, {name: v2, weight: 10}]}, timeout: 0s, max_grpc_timeout: 0s,
          retry_policy: {retry_on: 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes', num_retries: 2,
            retry_host_predicate: [{name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}],
            host_selection_retry_max_attempts: 5},
          regex_rewrite: {pattern: {regex: '^/a/(.*)'}, substitution: '/b/\\1'},
          hash_policy: [{header: {header_name: x}}, {connection_properties: {source_ip: true}}]},
        request_headers_to_add: [{header: {key: x, value: '%REQ(y)%'}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}],
        response_headers_to_remove: [z]},
        {match: {prefix: /}, redirect: {https_redirect: true, port_redirect: 443, response_code: PERMANENT_REDIRECT}},
        {match: {path: /x}, direct_response: {status: 502, body: {inline_string: nope}}}]}]}",
    );
    let converted = converted.unwrap();
    assert_eq!(meanings(&warnings).into_iter().collect::<Vec<_>>(), ["no balancer hashes"]);
    assert!(converted.ignore_port_in_host_matching);
    let routes = &converted.virtual_hosts[0].routes;
    let RouteAction::Forward(forward) = &routes[0].action else { panic!("no forward") };
    assert_eq!((forward.timeout, forward.grpc_timeout_max), (None, Some(None)));
    let ClusterChoice::Weighted(clusters) = &forward.cluster else { panic!("no weights") };
    assert_eq!(clusters.iter().map(|c| (&*c.name, c.weight)).collect::<Vec<_>>(), [("v1", 90), ("v2", 10)]);
    assert!(forward.retry_policy.as_ref().unwrap().avoid_previous_hosts);
    assert!(matches!(&forward.path_rewrite, PathRewrite::Regex { substitution, .. } if &**substitution == "/b/${1}"));
    assert_eq!(forward.hash_policy.len(), 2);
    assert!(matches!(&routes[1].action, RouteAction::Redirect(r) if r.https && r.port == Some(443) && r.status == 308));
    assert!(matches!(&routes[2].action, RouteAction::Direct(d) if d.status == 502 && &d.body[..] == b"nope"));
}

#[test]
fn routes_that_make_no_sense_are_refused() {
    let refused = |route: &str| {
        let text = format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{route}]}}]}}");
        route_of(&text).0.unwrap_err().to_string()
    };
    const AT: &str = "virtual_hosts[0].routes[0]";
    assert_eq!(
        refused("{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}}"),
        format!("{AT}.route.weighted_clusters: Sum of weights in the weighted_cluster must be greater than 0.")
    );
    assert_eq!(
        refused("{match: {prefix: /}, route: {cluster: c, prefix_rewrite: /x, regex_rewrite: {pattern: {regex: a}}}}"),
        format!("{AT}.route: Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy")
    );
    assert_eq!(
        refused("{match: {safe_regex: {regex: '('}}, route: {cluster: c}}"),
        format!("{AT}.match.safe_regex: found \"(\", which is no pattern of RE2: unclosed group")
    );
    assert!(refused("{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: AAA}}, typed_per_filter_config: {
        guard: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute}}}")
        .starts_with(&format!("{AT}.typed_per_filter_config[guard]: guard (envoy.")));
    let twice = route_of("{name: r, virtual_hosts: [{name: v, domains: [a.com]}, {name: w, domains: [A.COM]}]}").0;
    assert_eq!(
        twice.unwrap_err().to_string(),
        "virtual_hosts[1].domains[0]: Only unique values for domains are permitted. Duplicate entry of domain a.com in route r"
    );
}

#[test]
fn mirrors_faults_and_cors_warn() {
    let (converted, warnings) = route_of(
        "{name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: c,
        request_mirror_policies: [{cluster: m}]}, typed_per_filter_config: {
        envoy.filters.http.fault: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault,
          abort: {http_status: 500, percentage: {numerator: 100}}},
        envoy.filters.http.cors: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_methods: GET}}}]}]}",
    );
    assert!(converted.is_ok());
    assert_eq!(
        meanings(&warnings).into_iter().collect::<Vec<_>>(),
        [
            "envoy.filters.http.cors (envoy.extensions.filters.http.cors.v3.CorsPolicy) does not exist here: there is no \
             CORS filter yet: preflights reach the endpoint",
            "no faults are injected",
            "requests are not mirrored",
        ]
    );
}

#[test]
fn unknown_types_and_garbage_are_named() {
    let mut cx = Context::default();
    assert_eq!(
        decode("type.googleapis.com/istio.workload.Workload", &[], &mut cx).unwrap_err().to_string(),
        "found a resource of type \"istio.workload.Workload\", expected envoy.config.cluster.v3.Cluster, \
         envoy.config.listener.v3.Listener, envoy.config.route.v3.RouteConfiguration, \
         envoy.config.endpoint.v3.ClusterLoadAssignment, envoy.extensions.transport_sockets.tls.v3.Secret, \
         envoy.config.core.v3.TypedExtensionConfig or envoy.service.runtime.v3.Runtime"
    );
    let error = decode(CLUSTER, &[0xff; 7], &mut cx).unwrap_err().to_string();
    assert!(error.starts_with("found bytes that do not decode as envoy.config.cluster.v3.Cluster: "), "{error}");
    assert!(decode(LISTENER, &[], &mut cx).unwrap_err().to_string().starts_with("name: "));
}

#[test]
fn unknown_fields_are_noticed() {
    let mut cx = Context::default();
    let mut bytes = pb::cluster::Cluster { name: "c".into(), ..Default::default() }.encode_to_vec();
    // Field 9999, a varint.
    bytes.extend([0xf8, 0xf0, 0x04, 0x01]);
    assert_eq!(decode(CLUSTER, &bytes, &mut cx).unwrap().name(), "c");
    assert_eq!(cx.notices.unknown[0].path, "#9999");
    cx.refuse_unknown = Some("the flag is set");
    assert_eq!(
        decode(CLUSTER, &bytes, &mut cx).unwrap_err().to_string(),
        "#9999: Protobuf message (type envoy.config.cluster.v3.Cluster with unknown field set {9999}) has unknown fields; \
         the flag is set"
    );
}

/// Random bytes, and real messages with random damage: an error or a resource, never a panic.
#[test]
fn damaged_bytes_never_panic() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut seeds: Vec<(&str, Vec<u8>)> = Vec::new();
    for part in parts(CLUSTERS).iter().take(8) {
        seeds.push((CLUSTER, read::<pb::cluster::Cluster>(&part.to_string()).encode_to_vec()));
    }
    for part in parts(LISTENERS).iter().filter(|p| p.to_string().len() < 20_000) {
        seeds.push((LISTENER, read::<pb::listener::Listener>(&part.to_string()).encode_to_vec()));
    }
    for kind in [CLUSTER, LISTENER, ROUTE, ASSIGNMENT, SECRET, EXTENSION] {
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..random.usize(..64)).map(|_| random.u8(..)).collect();
            let _ = decode(kind, &bytes, &mut Context::default());
        }
    }
    for (kind, bytes) in seeds {
        for _ in 0..100 {
            let mut damaged = bytes.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..damaged.len());
                damaged[at] = random.u8(..);
            }
            let _ = decode(kind, &damaged, &mut Context::default());
        }
    }
}
