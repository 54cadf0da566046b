//! A cluster's live endpoints as `ClusterLoadAssignment`, in the shape that Envoy prints them in.

use crate::config::model::{Address, ClusterDiscovery};
use crate::discovery::ledger::{Api, Ledger, Record};
use crate::upstream::{Cluster, Health, Host};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use xds_protos::json_to_struct;
use xds_protos::pb::envoy::config::cluster::v3::Cluster as ClusterMessage;
use xds_protos::pb::envoy::config::core::v3::address::Address as OneAddress;
use xds_protos::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use xds_protos::pb::envoy::config::core::v3::{self as core, Locality, Metadata, Pipe, SocketAddress};
use xds_protos::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use xds_protos::pb::envoy::config::endpoint::v3::cluster_load_assignment::policy::DropOverload;
use xds_protos::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use xds_protos::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use xds_protos::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use xds_protos::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use xds_protos::pb::google::protobuf::{Any, UInt32Value};

/// Envoy's default, in percent.
const OVERPROVISIONING: u32 = 140;
/// Endpoints of a cluster that are shown in the order of their configuration.
const MOST_ORDERED: usize = 256;

/// A cluster whose endpoints are to be shown.
pub struct Shown {
    cluster: Arc<Cluster>,
    name: Arc<str>,
    /// Of the assignment, for EDS clusters.
    record: Option<Record>,
    /// The cluster's own message, which has the assignment of other clusters.
    message: Option<bytes::Bytes>,
}

impl Shown {
    pub fn of(cluster: &Arc<Cluster>, ledger: &Ledger) -> Shown {
        let config = &cluster.config;
        let own = || ledger.named(&Api::Cds.type_url(), &config.name)?.running.as_ref().map(|c| c.bytes.clone());
        let (name, record, message) = match &config.discovery {
            ClusterDiscovery::Eds { service_name, source, .. } => {
                let record = ledger.from_source(&Api::Eds.type_url(), &source.kind, service_name);
                (service_name, record.cloned(), None)
            }
            _ => (&config.name, None, own()),
        };
        Shown { cluster: Arc::clone(cluster), name: Arc::clone(name), record, message }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// What was configured: the weights of localities and the policy stand there only.
    fn configured(&self) -> ClusterLoadAssignment {
        let given = self.record.as_ref().and_then(|record| record.running.as_ref());
        let decoded = match (given, &self.message) {
            (Some(config), _) => ClusterLoadAssignment::decode(config.bytes.clone()).ok(),
            (None, Some(message)) => {
                ClusterMessage::decode(message.clone()).ok().and_then(|cluster| cluster.load_assignment)
            }
            (None, None) => None,
        };
        decoded.unwrap_or_default()
    }

    pub fn assignment(&self) -> Any {
        let configured = self.configured();
        let policy = configured.policy.clone().unwrap_or_default();
        let weights: BTreeMap<(u32, Place), u32> = configured
            .endpoints
            .iter()
            .filter_map(|one| {
                let locality = one.locality.clone().unwrap_or_default();
                let place = (locality.region, locality.zone, locality.sub_zone);
                Some(((one.priority, place), one.load_balancing_weight?.value))
            })
            .collect();
        let order = |host: &Host| {
            let address = Some(address(&host.address.0));
            let mut all = configured.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
            all.position(|one| match &one.host_identifier {
                Some(HostIdentifier::Endpoint(endpoint)) => endpoint.address == address,
                _ => false,
            })
        };
        let endpoints = self.cluster.endpoints();
        let mut hosts: Vec<&Arc<Host>> = endpoints.hosts().collect();
        // a linear search each: larger sets stay in the order of their health
        if hosts.len() <= MOST_ORDERED {
            hosts.sort_by_cached_key(|host| order(host));
        }
        let discovery = &self.cluster.config.discovery;
        let of_dns = matches!(discovery, ClusterDiscovery::StrictDns { .. } | ClusterDiscovery::LogicalDns { .. });
        // by priority and locality, the way Envoy sorts them
        let mut groups: BTreeMap<(u32, Place), Vec<LbEndpoint>> = BTreeMap::new();
        for host in hosts {
            let facts = host.facts();
            let l = &facts.locality;
            let place = (l.region.to_string(), l.zone.to_string(), l.sub_zone.to_string());
            let mut shown = lb_endpoint(host);
            if of_dns {
                // Envoy has metadata of these hosts always
                shown.metadata.get_or_insert_default();
            }
            groups.entry((facts.priority, place)).or_default().push(shown);
        }
        let endpoints = groups.into_iter().map(|(key, lb_endpoints)| {
            let weight = weights.get(&key).copied().unwrap_or_default();
            let (priority, (region, zone, sub_zone)) = key;
            LocalityLbEndpoints {
                locality: Some(Locality { region, zone, sub_zone }),
                lb_endpoints,
                load_balancing_weight: Some(UInt32Value { value: weight }),
                priority,
                ..Default::default()
            }
        });
        let assignment = ClusterLoadAssignment {
            cluster_name: self.name.to_string(),
            endpoints: endpoints.collect(),
            policy: Some(Policy {
                drop_overloads: policy.drop_overloads.into_iter().filter_map(in_millionths).collect(),
                overprovisioning_factor: policy
                    .overprovisioning_factor
                    .or(Some(UInt32Value { value: OVERPROVISIONING })),
                ..Default::default()
            }),
            ..Default::default()
        };
        Any { type_url: Api::Eds.type_url().as_str().to_owned(), value: assignment.encode_to_vec() }
    }
}

/// A share of requests to drop, as Envoy shows it; none of nothing.
fn in_millionths(mut drop: DropOverload) -> Option<DropOverload> {
    const MILLION: u64 = 1_000_000;
    let share = drop.drop_percentage.as_mut().filter(|share| share.numerator > 0)?;
    let of = match share.denominator() {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => MILLION,
    };
    // more than all is all
    share.numerator = u32::try_from((u64::from(share.numerator) * MILLION / of).min(MILLION)).unwrap_or_default();
    share.set_denominator(DenominatorType::Million);
    Some(drop)
}

/// Region, zone, sub-zone.
type Place = (String, String, String);

fn lb_endpoint(host: &Host) -> LbEndpoint {
    let facts = host.facts();
    let health = match host.health() {
        Health::Healthy => core::HealthStatus::Healthy,
        Health::Degraded => core::HealthStatus::Degraded,
        Health::Unhealthy => core::HealthStatus::Unhealthy,
    };
    let metadata = facts.metadata.as_ref().map(|metadata| Metadata {
        filter_metadata: metadata
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), json_to_struct(value)?)))
            .collect(),
        ..Default::default()
    });
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address(&host.address.0)),
            health_check_config: Some(HealthCheckConfig::default()),
            hostname: host.hostname.to_string(),
            ..Default::default()
        })),
        health_status: health as i32,
        metadata,
        load_balancing_weight: Some(UInt32Value { value: facts.weight }),
    }
}

fn address(address: &Address) -> core::Address {
    let one = match address {
        Address::Socket(socket) => OneAddress::SocketAddress(SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(socket.port()))),
            ..Default::default()
        }),
        Address::Pipe { path, mode } => OneAddress::Pipe(Pipe { path: path.display().to_string(), mode: *mode }),
    };
    core::Address { address: Some(one) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xds_protos::pb::envoy::r#type::v3::FractionalPercent;

    #[test]
    fn shares_to_drop_are_shown_in_millionths() {
        let shown = |numerator: u32, denominator: DenominatorType| {
            let share = FractionalPercent { numerator, denominator: denominator.into() };
            let drop = DropOverload { category: "x".into(), drop_percentage: Some(share) };
            in_millionths(drop)
                .and_then(|drop| drop.drop_percentage)
                .map(|share| (share.numerator, share.denominator()))
        };
        let million = |numerator| Some((numerator, DenominatorType::Million));
        assert_eq!(shown(30, DenominatorType::Hundred), million(300_000));
        assert_eq!(shown(u32::MAX, DenominatorType::TenThousand), million(1_000_000));
        assert_eq!(shown(7, DenominatorType::Million), million(7));
        assert_eq!(shown(0, DenominatorType::Million), None);
    }
}
