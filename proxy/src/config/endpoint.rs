//! Endpoints: `ClusterLoadAssignment`, by EDS or inside a cluster.

use super::address::{Place, place};
use super::context::{Context, Result};
use super::health::endpoint_check;
use super::model::{Address, DnsLocality, Endpoint, HealthStatus, LoadAssignment, Locality, LocalityEndpoints};
use super::pb::{core, endpoint};
use super::source::metadata;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Envoy's bound of `priority`.
const MAX_PRIORITY: u32 = 128;

/// Percent by which a priority with unhealthy endpoints is still trusted with all its traffic.
const OVERPROVISIONING_FACTOR: u32 = 140;

/// Endpoints with addresses.
pub(super) fn assignment(message: endpoint::ClusterLoadAssignment, cx: &mut Context) -> Result<LoadAssignment> {
    let (cluster_name, localities, overprovisioning_factor) = walk(message, cx, |place, cx| match place {
        Place::Address(address) => Ok(address),
        Place::Name(name, _) => Err(cx.error_at(
            "endpoint.address",
            format!("malformed IP address: {name}. Consider a cluster type STRICT_DNS or LOGICAL_DNS"),
        )),
    })?;
    let localities = localities
        .into_iter()
        .map(|Group { locality, priority, endpoints }| LocalityEndpoints {
            locality,
            priority,
            endpoints: endpoints.into_iter().map(|(address, endpoint)| Endpoint { address, ..endpoint }).collect(),
        })
        .collect();
    Ok(LoadAssignment { cluster_name: cluster_name.into(), localities, overprovisioning_factor })
}

/// Endpoints that DNS has still to resolve. IP addresses resolve to themselves.
pub(super) fn names(message: endpoint::ClusterLoadAssignment, cx: &mut Context) -> Result<Vec<DnsLocality>> {
    let (_, localities, overprovisioning_factor) = walk(message, cx, |place, cx| match place {
        Place::Name(name, port) => Ok((Arc::from(name), port)),
        Place::Address(Address::Socket(socket)) => Ok((Arc::from(socket.ip().to_string()), socket.port())),
        Place::Address(Address::Pipe { .. }) => {
            Err(cx.error_at("endpoint.address", "found a pipe, expected a socket_address: DNS cannot resolve a pipe"))
        }
    })?;
    if overprovisioning_factor != OVERPROVISIONING_FACTOR {
        cx.warn("policy.overprovisioning_factor", "clusters by DNS use the default, 140");
    }
    Ok(localities
        .into_iter()
        .map(|Group { locality, priority, endpoints }| DnsLocality {
            locality,
            priority,
            names: endpoints.into_iter().map(|((host, port), endpoint)| (host, port, endpoint)).collect(),
        })
        .collect())
}

/// A locality, its endpoints still beside the place that `T` makes of their address.
struct Group<T> {
    locality: Locality,
    priority: u32,
    endpoints: Vec<(T, Endpoint)>,
}

fn walk<T>(
    message: endpoint::ClusterLoadAssignment,
    cx: &mut Context,
    mut target: impl FnMut(Place, &Context) -> Result<T>,
) -> Result<(String, Vec<Group<T>>, u32)> {
    let endpoint::ClusterLoadAssignment { cluster_name, endpoints, named_endpoints, policy } = message;
    let overprovisioning_factor = cx.at("policy", |cx| load_policy(policy.unwrap_or_default(), cx))?;
    let localities = cx.each("endpoints", endpoints, |group, cx| locality(group, &named_endpoints, cx, &mut target))?;
    Ok((cluster_name, localities, overprovisioning_factor))
}

fn load_policy(message: endpoint::cluster_load_assignment::Policy, cx: &Context) -> Result<u32> {
    let endpoint::cluster_load_assignment::Policy {
        drop_overloads: _,
        overprovisioning_factor,
        endpoint_stale_after: _,
        weighted_priority_health: _,
    } = message;
    match overprovisioning_factor.map(|v| v.value) {
        Some(0) => Err(cx.error_at("overprovisioning_factor", "found 0, expected more than 0")),
        other => Ok(other.unwrap_or(OVERPROVISIONING_FACTOR)),
    }
}

fn locality<T>(
    message: endpoint::LocalityLbEndpoints,
    named: &HashMap<String, endpoint::Endpoint>,
    cx: &mut Context,
    target: &mut impl FnMut(Place, &Context) -> Result<T>,
) -> Result<Group<T>> {
    use endpoint::locality_lb_endpoints::{LbConfig, LbEndpointList};
    let endpoint::LocalityLbEndpoints {
        locality,
        metadata: _,
        lb_endpoints,
        load_balancing_weight: _,
        priority,
        proximity: _,
        lb_config,
    } = message;
    if priority > MAX_PRIORITY {
        return Err(cx.error_at("priority", format!("found {priority}, expected at most {MAX_PRIORITY}")));
    }
    let lb_endpoints = match lb_config {
        None => lb_endpoints,
        Some(LbConfig::LoadBalancerEndpoints(LbEndpointList { lb_endpoints })) => lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            return Err(cx.error_at("leds_cluster_locality_config", "is not supported: endpoints come by EDS"));
        }
    };
    let core::Locality { region, zone, sub_zone } = locality.unwrap_or_default();
    Ok(Group {
        locality: Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() },
        priority,
        endpoints: cx.each("lb_endpoints", lb_endpoints, |message, cx| lb_endpoint(message, named, cx, target))?,
    })
}

fn lb_endpoint<T>(
    message: endpoint::LbEndpoint,
    named: &HashMap<String, endpoint::Endpoint>,
    cx: &mut Context,
    target: &mut impl FnMut(Place, &Context) -> Result<T>,
) -> Result<(T, Endpoint)> {
    use endpoint::lb_endpoint::HostIdentifier;
    let endpoint::LbEndpoint { health_status, metadata: endpoint_metadata, load_balancing_weight, host_identifier } =
        message;
    let endpoint = match cx.required("endpoint", host_identifier)? {
        HostIdentifier::Endpoint(endpoint) => endpoint,
        HostIdentifier::EndpointName(name) => named.get(&name).cloned().ok_or_else(|| {
            cx.error_at("endpoint_name", format!("found {name:?}, expected a name of named_endpoints"))
        })?,
    };
    let endpoint::Endpoint { address, health_check_config, hostname, additional_addresses: _, observability_name: _ } =
        endpoint;
    let (place, _) = cx.at("endpoint", |cx| place(address, "address", cx))?;
    let check = cx.at("endpoint", |cx| endpoint_check(health_check_config, cx))?;
    let has_port = check.as_ref().is_some_and(|c| c.port != 0 && c.address.is_none());
    if has_port && matches!(place, Place::Address(Address::Pipe { .. })) {
        return Err(cx.error_at("endpoint.health_check_config.port_value", "a pipe has no port"));
    }
    let weight = load_balancing_weight.map_or(1, |v| v.value);
    if weight == 0 {
        return Err(cx.error_at("load_balancing_weight", "found 0, expected at least 1"));
    }
    let health = match cx.enumeration::<core::HealthStatus>("health_status", health_status)? {
        core::HealthStatus::Unknown => HealthStatus::Unknown,
        core::HealthStatus::Healthy => HealthStatus::Healthy,
        core::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
        core::HealthStatus::Draining => HealthStatus::Draining,
        core::HealthStatus::Timeout => HealthStatus::Timeout,
        core::HealthStatus::Degraded => HealthStatus::Degraded,
    };
    let fields = metadata(endpoint_metadata);
    let endpoint = Endpoint {
        address: Address::Socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
        hostname: hostname.into(),
        health,
        weight,
        metadata: (!fields.is_empty()).then(|| Arc::new(fields)),
        check,
    };
    Ok((target(place, cx)?, endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pb::google;

    fn load(host: &str, weight: Option<u32>) -> endpoint::ClusterLoadAssignment {
        let address = core::Address {
            address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                address: host.into(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(80)),
                ..Default::default()
            })),
        };
        let endpoint = endpoint::Endpoint { address: Some(address), ..Default::default() };
        endpoint::ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![endpoint::LocalityLbEndpoints {
                lb_endpoints: vec![endpoint::LbEndpoint {
                    load_balancing_weight: weight.map(|value| google::UInt32Value { value }),
                    host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn defaults_are_envoys() {
        let mut cx = Context::default();
        let converted = assignment(load("10.0.0.1", None), &mut cx).unwrap();
        assert_eq!(converted.overprovisioning_factor, 140);
        let endpoint = &converted.localities[0].endpoints[0];
        assert_eq!(
            (endpoint.weight, endpoint.health, endpoint.address.to_string().as_str()),
            (1, HealthStatus::Unknown, "10.0.0.1:80")
        );
        assert!(cx.notices.warnings.is_empty());
    }

    #[test]
    fn names_are_for_dns_only() {
        let mut cx = Context::default();
        assert_eq!(
            assignment(load("localhost", None), &mut cx).unwrap_err().to_string(),
            "endpoints[0].lb_endpoints[0].endpoint.address: malformed IP address: localhost. Consider a cluster type STRICT_DNS or LOGICAL_DNS"
        );
        let localities = names(load("localhost", Some(3)), &mut cx).unwrap();
        let (host, port, endpoint) = &localities[0].names[0];
        assert_eq!((host.as_ref(), *port, endpoint.weight), ("localhost", 80, 3));
    }

    #[test]
    fn a_weight_of_zero_is_refused() {
        let mut cx = Context::default();
        assert_eq!(
            assignment(load("10.0.0.1", Some(0)), &mut cx).unwrap_err().to_string(),
            "endpoints[0].lb_endpoints[0].load_balancing_weight: found 0, expected at least 1"
        );
    }
}
