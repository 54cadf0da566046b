//! The sections of the page: which resources stand in which list, and in what shape.

use super::entries::{any, any_or_named, failure, named, status, time};
use super::mask::find_all;
use super::{Element, List, Parts, Section};
use crate::discovery::ledger::{Api, Config, Record, State};
use prost::Message as _;
use std::collections::HashSet;
use std::sync::Arc;
use xds_protos::pb::envoy::admin::v3::clusters_config_dump::{DynamicCluster, StaticCluster};
use xds_protos::pb::envoy::admin::v3::ecds_config_dump::EcdsFilterConfig;
use xds_protos::pb::envoy::admin::v3::endpoints_config_dump::{DynamicEndpointConfig, StaticEndpointConfig};
use xds_protos::pb::envoy::admin::v3::listeners_config_dump::{DynamicListener, DynamicListenerState, StaticListener};
use xds_protos::pb::envoy::admin::v3::routes_config_dump::{DynamicRouteConfig, StaticRouteConfig};
use xds_protos::pb::envoy::admin::v3::scoped_routes_config_dump::{
    DynamicScopedRouteConfigs, InlineScopedRouteConfigs,
};
use xds_protos::pb::envoy::admin::v3::secrets_config_dump::{DynamicSecret, StaticSecret};
use xds_protos::pb::envoy::extensions::filters::network::http_connection_manager::v3::ScopedRoutes;
use xds_protos::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::ConfigSpecifier;
use xds_protos::pb::google::protobuf::Any;
use xds_protos::table::Message;

const ROUTE: &str = "envoy.config.route.v3.RouteConfiguration";
const CONNECTION_MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const SCOPED_ROUTES: &str = "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes";
/// What Envoy shows as the version of a secret that has not come yet.
const UNINITIALIZED: &str = "uninitialized";

pub fn clusters(parts: &Parts<'_>) -> Section {
    let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
    for (_, record) in parts.records(Api::Cds) {
        if record.is_static {
            fixed.extend(record.running.clone().map(|config| {
                element(move || StaticCluster {
                    cluster: Some(any(Api::Cds, &config)),
                    last_updated: Some(time(config.taken)),
                })
            }));
            continue;
        }
        let dynamic = |config: Option<Config>| {
            let record = record.clone();
            element(move || DynamicCluster {
                version_info: version(config.as_ref()),
                cluster: config.as_ref().map(|config| any(Api::Cds, config)),
                last_updated: config.as_ref().map(|config| time(config.taken)),
                error_state: failure(Api::Cds, &record),
                client_status: status(&record),
            })
        };
        if let Some(config) = &record.running {
            active.push(dynamic(Some(config.clone())));
        }
        // what never was good stands here, too: it is not active
        if record.warming().is_some() || (record.running.is_none() && record.state() == State::Rejected) {
            warming.push(dynamic(record.warming().cloned()));
        }
    }
    Section {
        message: "ClustersConfigDump",
        version: Some(parts.ledger.version(&Api::Cds.type_url()).into()),
        lists: vec![
            List { field: "static_clusters", element: "StaticCluster", inner: Api::Cds, items: fixed },
            List { field: "dynamic_active_clusters", element: "DynamicCluster", inner: Api::Cds, items: active },
            List { field: "dynamic_warming_clusters", element: "DynamicCluster", inner: Api::Cds, items: warming },
        ],
    }
}

pub fn ecds(parts: &Parts<'_>) -> Section {
    let shown = parts.records(Api::Ecds).filter(|(_, record)| is_shown(record));
    let items = shown.map(|(name, record)| {
        let (name, record) = (name.clone(), record.clone());
        element(move || EcdsFilterConfig {
            version_info: version(record.running.as_ref()),
            ecds_filter: Some(any_or_named(Api::Ecds, &name, &record)),
            last_updated: record.running.as_ref().map(|config| time(config.taken)),
            error_state: failure(Api::Ecds, &record),
            client_status: status(&record),
        })
    });
    let items = items.collect();
    Section {
        message: "EcdsConfigDump",
        version: None,
        lists: vec![List { field: "ecds_filters", element: "EcdsFilterConfig", inner: Api::Ecds, items }],
    }
}

/// From the live endpoints, as Envoy: weights and health are those in use.
pub fn endpoints(parts: &Parts<'_>) -> Section {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    let mut told = HashSet::new();
    for cluster in parts.clusters {
        let shown = super::endpoints::Shown::of(cluster, parts.ledger);
        told.extend(shown.record().and_then(Record::refusal).map(|refusal| (shown.name().clone(), refusal.at)));
        if !parts.fits(shown.name()) {
            continue;
        }
        if cluster.added_via_api {
            dynamic.push(element(move || {
                let record = shown.record();
                let config = record.and_then(|record| record.running.as_ref());
                DynamicEndpointConfig {
                    version_info: version(config),
                    endpoint_config: Some(shown.assignment()),
                    last_updated: config.map(|config| time(config.taken)),
                    error_state: record.and_then(|record| failure(Api::Eds, record)),
                    client_status: record.map(status).unwrap_or_default(),
                }
            }));
        } else {
            fixed.push(element(move || StaticEndpointConfig {
                endpoint_config: Some(shown.assignment()),
                last_updated: None,
            }));
        }
    }
    // a cluster whose endpoints are refused warms for it, and is not among the live ones
    let is_told = |name: &Arc<str>, record: &Record| {
        record.refusal().is_some_and(|refusal| told.contains(&(name.clone(), refusal.at)))
    };
    for (name, record) in parts.refused_endpoints() {
        if is_told(name, record) || !parts.fits(name) {
            continue;
        }
        let (name, record) = (name.clone(), record.clone());
        dynamic.push(element(move || DynamicEndpointConfig {
            version_info: version(record.running.as_ref()),
            endpoint_config: Some(any_or_named(Api::Eds, &name, &record)),
            last_updated: record.running.as_ref().map(|config| time(config.taken)),
            error_state: failure(Api::Eds, &record),
            client_status: status(&record),
        }));
    }
    Section {
        message: "EndpointsConfigDump",
        version: None,
        lists: vec![
            List { field: "static_endpoint_configs", element: "StaticEndpointConfig", inner: Api::Eds, items: fixed },
            List {
                field: "dynamic_endpoint_configs",
                element: "DynamicEndpointConfig",
                inner: Api::Eds,
                items: dynamic,
            },
        ],
    }
}

pub fn listeners(parts: &Parts<'_>) -> Section {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    for (name, record) in parts.records(Api::Lds) {
        if record.is_static {
            fixed.extend(record.running.clone().map(|config| {
                element(move || StaticListener {
                    listener: Some(any(Api::Lds, &config)),
                    last_updated: Some(time(config.taken)),
                })
            }));
            continue;
        }
        let (name, record) = (name.clone(), record.clone());
        let state = |config: Option<&Config>| {
            config.map(|config| DynamicListenerState {
                version_info: config.version.to_string(),
                listener: Some(any(Api::Lds, config)),
                last_updated: Some(time(config.taken)),
            })
        };
        dynamic.push(element(move || DynamicListener {
            name: name.to_string(),
            active_state: state(record.running.as_ref()),
            warming_state: state(record.warming()),
            draining_state: state(record.draining()),
            error_state: failure(Api::Lds, &record),
            client_status: status(&record),
        }));
    }
    Section {
        message: "ListenersConfigDump",
        version: Some(parts.ledger.version(&Api::Lds.type_url()).into()),
        lists: vec![
            List { field: "static_listeners", element: "StaticListener", inner: Api::Lds, items: fixed },
            List { field: "dynamic_listeners", element: "DynamicListener", inner: Api::Lds, items: dynamic },
        ],
    }
}

pub fn scoped_routes(parts: &Parts<'_>) -> Section {
    let (mut inline, mut dynamic) = (Vec::new(), Vec::new());
    for (config, bytes) in parts.inside_listeners(SCOPED_ROUTES) {
        let Ok(routes) = ScopedRoutes::decode(bytes) else { continue };
        if !parts.fits(&routes.name) {
            continue;
        }
        let of_type = |value: Vec<u8>| Any { type_url: Api::Srds.type_url().as_str().to_owned(), value };
        match routes.config_specifier {
            Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
                inline.push(element(move || InlineScopedRouteConfigs {
                    name: routes.name,
                    scoped_route_configs: list
                        .scoped_route_configurations
                        .iter()
                        .map(|one| of_type(one.encode_to_vec()))
                        .collect(),
                    last_updated: Some(time(config.taken)),
                }));
            }
            Some(ConfigSpecifier::ScopedRds(_)) => {
                let records: Vec<&Record> = parts.ledger.of(&Api::Srds.type_url()).map(|(_, record)| record).collect();
                let scopes: Vec<Config> = records.iter().filter_map(|record| record.running.clone()).collect();
                let newest = scopes.iter().max_by_key(|scope| scope.taken).cloned();
                // there is room for one
                let refused = records.into_iter().filter(|record| record.refusal().is_some());
                let refused = refused.max_by_key(|record| record.refusal().map(|refusal| refusal.at)).cloned();
                if newest.is_none() && refused.is_none() {
                    continue;
                }
                dynamic.push(element(move || DynamicScopedRouteConfigs {
                    name: routes.name,
                    version_info: version(newest.as_ref()),
                    scoped_route_configs: scopes.iter().map(|scope| any(Api::Srds, scope)).collect(),
                    last_updated: newest.as_ref().map(|newest| time(newest.taken)),
                    error_state: refused.as_ref().and_then(|record| failure(Api::Srds, record)),
                    client_status: refused.as_ref().map(status).unwrap_or_default(),
                }));
            }
            None => {}
        }
    }
    Section {
        message: "ScopedRoutesConfigDump",
        version: None,
        lists: vec![
            List {
                field: "inline_scoped_route_configs",
                element: "InlineScopedRouteConfigs",
                inner: Api::Srds,
                items: inline,
            },
            List {
                field: "dynamic_scoped_route_configs",
                element: "DynamicScopedRouteConfigs",
                inner: Api::Srds,
                items: dynamic,
            },
        ],
    }
}

pub fn routes(parts: &Parts<'_>) -> Section {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    for (config, bytes) in parts.inside_listeners(ROUTE) {
        if !parts.fits(&super::mask::name_of(&bytes)) {
            continue;
        }
        fixed.push(element(move || StaticRouteConfig {
            route_config: Some(any(Api::Rds, &Config { bytes, ..config.clone() })),
            last_updated: Some(time(config.taken)),
        }));
    }
    for (name, record) in parts.records(Api::Rds).filter(|(_, record)| is_shown(record)) {
        let (name, record) = (name.clone(), record.clone());
        dynamic.push(element(move || DynamicRouteConfig {
            version_info: version(record.running.as_ref()),
            route_config: Some(any_or_named(Api::Rds, &name, &record)),
            last_updated: record.running.as_ref().map(|config| time(config.taken)),
            error_state: failure(Api::Rds, &record),
            client_status: status(&record),
        }));
    }
    Section {
        message: "RoutesConfigDump",
        version: None,
        lists: vec![
            List { field: "static_route_configs", element: "StaticRouteConfig", inner: Api::Rds, items: fixed },
            List { field: "dynamic_route_configs", element: "DynamicRouteConfig", inner: Api::Rds, items: dynamic },
        ],
    }
}

pub fn secrets(parts: &Parts<'_>) -> Section {
    let (mut fixed, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
    for (name, record) in parts.records(Api::Sds) {
        let (name, record) = (name.clone(), record.clone());
        if record.is_static {
            fixed.push(element(move || StaticSecret {
                name: name.to_string(),
                last_updated: record.running.as_ref().map(|config| time(config.taken)),
                secret: record.running.as_ref().map(|config| any(Api::Sds, config)),
            }));
            continue;
        }
        let list = if record.running.is_some() { &mut active } else { &mut warming };
        list.push(element(move || match &record.running {
            Some(config) => DynamicSecret {
                name: name.to_string(),
                version_info: config.version.to_string(),
                last_updated: Some(time(config.taken)),
                secret: Some(any(Api::Sds, config)),
                error_state: failure(Api::Sds, &record),
                client_status: status(&record),
            },
            None => DynamicSecret {
                name: name.to_string(),
                version_info: UNINITIALIZED.to_owned(),
                last_updated: record.requested.or(record.offered_at()).map(time),
                secret: Some(named(Api::Sds, &name)),
                error_state: failure(Api::Sds, &record),
                client_status: status(&record),
            },
        }));
    }
    Section {
        message: "SecretsConfigDump",
        version: None,
        lists: vec![
            List { field: "static_secrets", element: "StaticSecret", inner: Api::Sds, items: fixed },
            List { field: "dynamic_active_secrets", element: "DynamicSecret", inner: Api::Sds, items: active },
            List { field: "dynamic_warming_secrets", element: "DynamicSecret", inner: Api::Sds, items: warming },
        ],
    }
}

/// Whether there is something to say of it: what is only asked for is nobody's configuration yet.
fn is_shown(record: &Record) -> bool {
    record.running.is_some() || record.refusal().is_some()
}

fn version(config: Option<&Config>) -> String {
    config.map(|config| config.version.to_string()).unwrap_or_default()
}

/// An element that is made when it is printed.
fn element<M: prost::Message>(make: impl FnOnce() -> M + 'static) -> Element {
    Box::new(move || make().encode_to_vec())
}

impl<'a> Parts<'a> {
    pub fn fits(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|regex| regex.is_match(name))
    }

    fn records(&self, api: Api) -> impl Iterator<Item = (&'a Arc<str>, &'a Record)> + '_ {
        let all = self.ledger.of(&api.type_url()).map(|(id, record)| (&id.name, record));
        all.filter(|(name, _)| self.fits(name))
    }

    /// What stands in the ledger of endpoints that were refused, if endpoints are asked for.
    pub fn refused_endpoints(&self) -> impl Iterator<Item = (&'a Arc<str>, &'a Record)> + use<'a> {
        let asked = self.include_eds.then(|| self.ledger.of(&Api::Eds.type_url()));
        let refused = asked.into_iter().flatten().filter(|(_, record)| record.refusal().is_some());
        refused.map(|(id, record)| (&id.name, record))
    }

    /// Whether a listener has an HTTP connection manager, or had one that asked for routes.
    pub fn has_http(&self) -> bool {
        let asked = |api: Api| self.ledger.of(&api.type_url()).next().is_some();
        asked(Api::Rds) || asked(Api::Srds) || !self.inside_listeners(CONNECTION_MANAGER).is_empty()
    }

    /// Messages of a type inside the listeners that run, with the listener's version.
    fn inside_listeners(&self, type_name: &str) -> Vec<(Config, bytes::Bytes)> {
        let types = Message::find(Api::Lds.type_url().message_name()).zip(Message::find(type_name));
        let Some((listener, wanted)) = types else { return Vec::new() };
        let running = self.ledger.of(&Api::Lds.type_url()).filter_map(|(_, record)| record.running.as_ref());
        running
            .flat_map(|config| {
                find_all(listener, &config.bytes, wanted).into_iter().map(move |found| (config.clone(), found))
            })
            .collect()
    }
}
