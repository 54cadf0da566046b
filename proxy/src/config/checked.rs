//! The resources that a bootstrap carries itself, converted each by itself, and those of a file of a control plane.

use super::cluster::cluster;
use super::context::{Context, Result};
use super::listener::listener;
use super::model::{ClusterConfig, ListenerConfig, SecretConfig};
use super::pb::bootstrap::bootstrap;
use super::pb::cluster::Cluster;
use super::secret::secret;
use prost::Message;
use std::collections::HashSet;
use std::sync::Arc;
use xds_protos::pb::envoy::service::discovery::v3::DiscoveryResponse;
use xds_protos::pb::google::protobuf::Any;

/// The static resources that could be converted, each with its place in the bootstrap's list.
#[derive(Debug, Default)]
pub struct StaticResources {
    pub clusters: Vec<(usize, Arc<ClusterConfig>)>,
    pub listeners: Vec<(usize, Arc<ListenerConfig>)>,
    pub secrets: Vec<(usize, SecretConfig)>,
    /// Names of all of them, those with problems included, by place.
    pub cluster_names: Vec<String>,
    pub listener_names: Vec<String>,
    pub secret_names: Vec<String>,
}

impl StaticResources {
    /// Empty clusters of the names whose own clusters have problems: what refers to them is not wrong for that.
    pub fn stand_ins(&self) -> Vec<ClusterConfig> {
        let whole: HashSet<usize> = self.clusters.iter().map(|(place, _)| *place).collect();
        let names =
            self.cluster_names.iter().enumerate().filter(|(place, name)| !whole.contains(place) && !name.is_empty());
        let stand_in =
            |name: &String| cluster(Cluster { name: name.clone(), ..Cluster::default() }, &mut Context::default());
        names.filter_map(|(_, name)| stand_in(name).ok()).collect()
    }

    /// What a person calls the resource that a path of the bootstrap leads into: `cluster 'a'`.
    pub fn name_of(&self, path: &str) -> Option<String> {
        let (list, rest) = path.strip_prefix("static_resources.")?.split_once('[')?;
        let (kind, names) = match list {
            "clusters" => ("cluster", &self.cluster_names),
            "listeners" => ("listener", &self.listener_names),
            "secrets" => ("secret", &self.secret_names),
            _ => return None,
        };
        let place: usize = rest.split_once(']')?.0.parse().ok()?;
        names.get(place).filter(|name| !name.is_empty()).map(|name| format!("{kind} '{name}'"))
    }
}

/// Converts each resource, whatever the others say; those with problems are left out and their problems recorded.
pub(super) fn convert(message: bootstrap::StaticResources, cx: &mut Context) -> StaticResources {
    let bootstrap::StaticResources { listeners, clusters, secrets } = message;
    cx.at("static_resources", |cx| {
        unique("clusters", clusters.iter().map(|c| c.name.as_str()), cx, |name| {
            format!("cluster manager: duplicate cluster '{name}'")
        });
        unique("secrets", secrets.iter().map(|s| s.name.as_str()), cx, |name| {
            format!("Duplicate static secret name {name}")
        });
        StaticResources {
            cluster_names: clusters.iter().map(|c| c.name.clone()).collect(),
            listener_names: listeners.iter().map(|l| l.name.clone()).collect(),
            secret_names: secrets.iter().map(|s| s.name.clone()).collect(),
            clusters: each("clusters", clusters, cx, |message, cx| cluster(message, cx).map(Arc::new)),
            listeners: each("listeners", listeners, cx, |message, cx| listener(message, cx).map(Arc::new)),
            secrets: each("secrets", secrets, cx, secret),
        }
    })
}

fn each<T, U>(
    field: &str,
    messages: Vec<T>,
    cx: &mut Context,
    mut convert: impl FnMut(T, &mut Context) -> Result<U>,
) -> Vec<(usize, U)> {
    let mut converted = Vec::with_capacity(messages.len());
    for (place, message) in messages.into_iter().enumerate() {
        let resource = cx.at(&format!("{field}[{place}]"), |cx| cx.whole(|cx| convert(message, cx)));
        converted.extend(resource.map(|resource| (place, resource)));
    }
    converted
}

/// Records every name that an earlier resource has already.
fn unique<'a>(field: &str, names: impl Iterator<Item = &'a str>, cx: &Context, message: impl Fn(&str) -> String) {
    let mut seen = HashSet::new();
    // an empty name is another problem, which the resource itself has
    let twins = names.enumerate().filter(|(_, name)| !name.is_empty() && !seen.insert(*name));
    cx.record_all(twins.map(|(place, name)| cx.error_at(&format!("{field}[{place}].name"), message(name))));
}

/// The resources of a discovery response.
pub fn resources_of(response: &[u8]) -> Vec<Any> {
    DiscoveryResponse::decode(response).map(|response| response.resources).unwrap_or_default()
}
