//! Filters that routes enable, and filters that ECDS delivers.

use super::*;

/// A connection manager with these filters before its router, whose routes have this `typed_per_filter_config`.
fn enabling(filters: &str, per_filter: &str) -> Result<ListenerConfig, ConfigError> {
    listener_of(&format!(
        "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: [{{filters: [{{
        name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: s, http_filters: [{filters}, {ROUTER}], route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'],
        routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}, typed_per_filter_config: {{{per_filter}}}}}]}}]}}}}}}]}}]}}"
    ))
    .0
}

#[test]
fn no_route_enables_a_guard_that_is_not_built() {
    let guard = http_filter("guard", "envoy.extensions.filters.http.rbac.v3.RBAC", ", disabled: true");
    let faults = http_filter("faults", "envoy.extensions.filters.http.fault.v3.HTTPFault", ", disabled: true");
    let filters = format!("{guard}, {faults}");
    let config =
        |fields: &str| format!("{{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, {fields}}}");
    let fault = "{'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}";
    // to Envoy any configuration enables the filter of its name, whatever its type
    for enables in [config("config: {}"), config("is_optional: true, config: {}"), fault.to_owned()] {
        let error = enabling(&filters, &format!("guard: {enables}")).unwrap_err().to_string();
        assert!(error.contains("route configuration 'r' enables HTTP filter guard"), "{error}");
        assert!(enabling(&filters, &format!("faults: {enables}, nobody: {enables}")).is_ok());
    }
    assert!(enabling(&filters, &format!("guard: {}", config("disabled: true"))).is_ok());
    let unknown = config(
        "is_optional: true, config: {'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/no.such.Filter}",
    );
    assert!(enabling(&filters, &format!("guard: {unknown}")).is_ok(), "it configures nothing");
    assert!(enabling(&filters, &format!("guard: {}", config("is_optional: true"))).is_err());
    assert!(enabling("{name: x, is_optional: true, typed_config: {}}", "").is_err());
}

#[test]
fn what_ecds_may_deliver_is_said_beforehand() {
    let filter = |fields: &str| {
        format!("{{name: x, config_discovery: {{config_source: {{ads: {{}}, resource_api_version: V3}}, {fields}}}}}")
    };
    const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
    const CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
    const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    const ROUTED: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let of = |filters: String| manager(&format!(", http_filters: [{filters}]")).0.map(drop);
    let middle = |fields: &str| of(format!("{}, {ROUTER}", filter(fields)));
    middle(&format!("type_urls: ['{FAULT}', '{RBAC}']")).unwrap();
    middle(&format!("type_urls: ['{FAULT}'], default_config: {{'@type': {FAULT}}}")).unwrap();
    of(filter(&format!("type_urls: ['{ROUTED}']"))).unwrap();
    for (refused, why) in [
        (middle("type_urls: []"), "type_urls"),
        (middle("type_urls: [no.such.Filter]"), "Error: no factory found for a required type URL no.such.Filter."),
        (middle(&format!("type_urls: ['{TCP}']")), "Error: no factory found for a required type URL envoy.extensions"),
        (
            middle(&format!("type_urls: ['{FAULT}'], apply_default_config_without_warming: true")),
            "Error: filter config x applied without warming but has no default config.",
        ),
        (
            middle(&format!("type_urls: ['{FAULT}'], default_config: {{'@type': {CORS}}}")),
            "Error: filter config has type URL envoy.extensions.filters.http.cors.v3.Cors but expect \
             envoy.extensions.filters.http.fault.v3.HTTPFault.",
        ),
        (
            middle(&format!("type_urls: ['{ROUTED}'], default_config: {{'@type': {ROUTED}}}")),
            "must be the last filter in a http filter chain.",
        ),
        (
            of(filter(&format!("type_urls: ['{FAULT}'], default_config: {{'@type': {FAULT}}}"))),
            "is the last filter in a http filter chain.",
        ),
        (middle(&format!("type_urls: ['{RBAC}'], default_config: {{'@type': {RBAC}}}")), "must not pass it by"),
        (
            of(format!("{{disabled: true, {}", &filter(&format!("type_urls: ['{ROUTED}']"))[1..])),
            "Error: the last (terminal) filter (x) in the chain cannot be disabled by default.",
        ),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(why), "{error}\nexpected: {why}");
    }
}
