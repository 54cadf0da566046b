//! The resources that a bootstrap carries itself, converted each by itself, and those of a file of a control plane.

use super::cluster::cluster;
use super::context::{Context, Result, SecretSort};
use super::listener::listener;
use super::model::{ClusterConfig, ListenerConfig, SecretConfig};
use super::pb::bootstrap::bootstrap;
use super::pb::cluster::Cluster;
use super::pb::tls::Secret;
use super::pb::tls::secret::Type;
use super::secret::secret;
use super::tls::static_name;
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
    /// Listeners with problems, as far as they could be converted: not to be served, but there may be more to say.
    pub listener_parts: Vec<(usize, Arc<ListenerConfig>)>,
    /// Elements of lists that have no place in them, by path: those behind have moved up.
    pub left_out: Vec<String>,
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
        // an empty name is another problem, which the resource itself has
        unique("clusters", clusters.iter().map(|c| Some(&c.name).filter(|name| !name.is_empty())), cx, |at| {
            format!("cluster manager: duplicate cluster '{}'", clusters[at].name)
        });
        let sort = |secret: &Secret| match &secret.r#type {
            Some(Type::TlsCertificate(_)) => Some(SecretSort::Certificate),
            Some(Type::ValidationContext(_)) => Some(SecretSort::Validation),
            Some(Type::SessionTicketKeys(_) | Type::GenericSecret(_)) => Some(SecretSort::Other),
            None => None,
        };
        unique("secrets", secrets.iter().map(|s| Some((sort(s)?, &s.name))), cx, |at| {
            format!("Duplicate static secret name {}", secrets[at].name)
        });
        let known = secrets.iter().filter_map(|s| Some((sort(s)?, s.name.clone()))).collect();
        cx.static_secrets = Some(known);
        let cluster_names = clusters.iter().map(|c| c.name.clone()).collect();
        let listener_names = listeners.iter().map(|l| l.name.clone()).collect();
        let secret_names = secrets.iter().map(|s| s.name.clone()).collect();
        let (clusters, _) = each("clusters", clusters, cx, |message, cx| cluster(message, cx).map(Arc::new));
        cx.take_left_out();
        let (listeners, listener_parts) =
            each("listeners", listeners, cx, |message, cx| listener(message, cx).map(Arc::new));
        let left_out = cx.take_left_out();
        let (secrets, _) = each("secrets", secrets, cx, |message, cx| {
            let sort = sort(&message);
            let mut converted = secret(message, cx)?;
            if let Some(sort) = sort {
                converted.name = static_name(converted.name.to_string(), sort, cx);
            }
            Ok(converted)
        });
        StaticResources {
            clusters,
            listeners,
            secrets,
            listener_parts,
            left_out,
            cluster_names,
            listener_names,
            secret_names,
        }
    })
}

/// Resources with their places in the list.
type Placed<T> = Vec<(usize, T)>;

/// Converts each by itself: those without problems, and those that have some.
fn each<T, U>(
    field: &str,
    messages: Vec<T>,
    cx: &mut Context,
    mut convert: impl FnMut(T, &mut Context) -> Result<U>,
) -> (Placed<U>, Placed<U>) {
    let (mut whole, mut parts) = (Vec::with_capacity(messages.len()), Vec::new());
    for (place, message) in messages.into_iter().enumerate() {
        let (converted, is_whole) = cx.at(&format!("{field}[{place}]"), |cx| cx.as_far(|cx| convert(message, cx)));
        let list = if is_whole { &mut whole } else { &mut parts };
        list.extend(converted.map(|resource| (place, resource)));
    }
    (whole, parts)
}

/// Records every key that an earlier resource has already.
fn unique<K: Eq + std::hash::Hash>(
    field: &str,
    keys: impl Iterator<Item = Option<K>>,
    cx: &Context,
    message: impl Fn(usize) -> String,
) {
    let mut seen = HashSet::new();
    let twins = keys.enumerate().filter_map(|(place, key)| (!seen.insert(key?)).then_some(place));
    cx.record_all(twins.map(|place| cx.error_at(&format!("{field}[{place}].name"), message(place))));
}

/// The resources of a discovery response.
pub fn resources_of(response: &[u8]) -> Vec<Any> {
    DiscoveryResponse::decode(response).map(|response| response.resources).unwrap_or_default()
}
