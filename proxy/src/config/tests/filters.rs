//! Filters that routes enable.

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
