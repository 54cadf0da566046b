//! Protobuf in, checked model out. The only rooms that name an Envoy message.
//!
//! Every message is taken apart field by field, so that a field that a newer API brings is a compile error here, and
//! each field gets one of three answers: it is acted on (it reaches the model), warned about (a notice with its path)
//! or refused (an error with its path). What guards security is never only warned about.

// Control planes still send deprecated fields, so conversion reads them.
#![allow(deprecated)]

pub mod answers;
mod context;
mod error;
pub mod model;

mod access_log;
mod address;
mod any;
mod bootstrap;
mod checked;
mod cluster;
mod dns;
mod endpoint;
mod extension;
mod filter_chain;
mod hash;
mod hcm;
mod headers;
mod health;
mod http_filters;
mod http_options;
mod listener;
mod load_balancing;
mod matcher;
mod pb;
mod re2;
mod retry;
mod route;
mod route_action;
mod route_match;
mod secret;
mod source;
mod static_resources;
mod tls;
mod upstream_http;

#[cfg(test)]
mod tests;

pub use bootstrap::{UNREAD as UNREAD_KEY, unread as unread_runtime_keys};
pub use checked::{StaticResources, resources_of};
pub use context::{Context, Servers};
pub use error::{ConfigError, Notices, ProblemKind, Warning, both, each_of};
pub(crate) use http_filters::refuse_enabled;
pub use matcher::check_regex;
pub use static_resources::static_resources;

/// Converts a matcher of strings that stands in no resource.
///
/// # Errors
/// As in a resource.
pub fn string_match(message: pb::matcher::StringMatcher) -> context::Result<model::StringMatch> {
    matcher::string_match(message, &mut Context::default())
}

use model::{ClusterConfig, ExtensionConfig, ListenerConfig, LoadAssignment, RouteConfig, SecretConfig};
use prost::Name;
use std::sync::Arc;
use xds_protos::Descriptors;

/// Type URLs of the resources that [`decode`] reads.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// A resource of a control plane, checked.
#[derive(Debug, Clone)]
pub enum Resource {
    Cluster(Arc<ClusterConfig>),
    Listener(Arc<ListenerConfig>),
    Route(Arc<RouteConfig>),
    Assignment(Arc<LoadAssignment>),
    Secret(Arc<SecretConfig>),
    Extension(Arc<ExtensionConfig>),
    /// The values of an RTDS layer.
    Runtime {
        name: Arc<str>,
        values: crate::runtime::Values,
    },
}

impl Resource {
    /// The name under which the resource is subscribed to.
    pub fn name(&self) -> &str {
        match self {
            Resource::Cluster(cluster) => &cluster.name,
            Resource::Listener(listener) => &listener.name,
            Resource::Route(route) => &route.name,
            Resource::Assignment(assignment) => &assignment.cluster_name,
            Resource::Secret(secret) => &secret.name,
            Resource::Extension(extension) => &extension.name,
            Resource::Runtime { name, .. } => name,
        }
    }
}

/// Reads a resource as it came in an xDS answer.
///
/// # Errors
/// Bytes that are no such message, a type that is not supported, and all that the conversion of the type refuses.
pub fn decode(type_url: &str, bytes: &[u8], cx: &mut Context) -> Result<Resource, ConfigError> {
    examine(any::type_name(type_url), bytes, cx)?;
    refuse_deprecated(cx);
    match type_url {
        CLUSTER => cluster(any::decode(bytes, cx)?, cx).map(|c| Resource::Cluster(Arc::new(c))),
        LISTENER => {
            let message: pb::listener::Listener = any::decode(bytes, cx)?;
            // Only the bootstrap may leave out the name: nothing could update such a listener.
            cx.non_empty("name", message.name.clone())?;
            listener(message, cx).map(|l| Resource::Listener(Arc::new(l)))
        }
        ROUTE => route(any::decode(bytes, cx)?, cx).map(|r| Resource::Route(Arc::new(r))),
        ASSIGNMENT => assignment(any::decode(bytes, cx)?, cx).map(|a| Resource::Assignment(Arc::new(a))),
        SECRET => secret(any::decode(bytes, cx)?, cx).map(|s| Resource::Secret(Arc::new(s))),
        EXTENSION => extension(any::decode(bytes, cx)?, cx).map(|e| Resource::Extension(Arc::new(e))),
        RUNTIME => {
            let converted = bootstrap::runtime_layer(any::decode(bytes, cx)?, cx);
            cx.finish(converted)
        }
        other => Err(cx.error(format!(
            "found a resource of type {:?}, expected {}, {}, {}, {}, {}, {} or {}",
            any::type_name(other),
            pb::cluster::Cluster::full_name(),
            pb::listener::Listener::full_name(),
            pb::route::RouteConfiguration::full_name(),
            pb::endpoint::ClusterLoadAssignment::full_name(),
            pb::tls::Secret::full_name(),
            pb::core::TypedExtensionConfig::full_name(),
            pb::runtime::Runtime::full_name(),
        ))),
    }
}

/// Converts the bootstrap, and leaves its runtime values in the context.
///
/// # Errors
/// Every problem that was found.
pub fn bootstrap(bytes: &[u8], cx: &mut Context) -> Result<model::Bootstrap, ConfigError> {
    let Checked { bootstrap, problems, .. } = check_bootstrap(bytes, cx);
    match (bootstrap, problems) {
        (Some(bootstrap), None) => Ok(bootstrap),
        (_, Some(problems)) => Err(problems),
        (None, None) => Err(ConfigError::new("", "cannot be converted")),
    }
}

/// A bootstrap, as far as it could be converted.
#[derive(Debug, Default)]
pub struct Checked {
    /// Its static resources are those without problems; `None` when nothing but them could be converted.
    pub bootstrap: Option<model::Bootstrap>,
    /// The static resources without problems.
    pub resources: StaticResources,
    pub problems: Option<ConfigError>,
}

/// Converts the bootstrap as far as that is possible, each static resource by itself, and leaves its runtime values in
/// the context.
pub fn check_bootstrap(bytes: &[u8], cx: &mut Context) -> Checked {
    let mut resources = StaticResources::default();
    let converted = any::decode(bytes, cx).and_then(|message| {
        examine(&pb::bootstrap::Bootstrap::full_name(), bytes, cx)?;
        bootstrap::bootstrap(message, &mut resources, cx)
    });
    refuse_deprecated(cx);
    let (bootstrap, last) = match converted {
        Ok(bootstrap) => (Some(bootstrap), Ok(())),
        Err(error) => (None, Err(error)),
    };
    Checked { bootstrap, resources, problems: cx.finish(last).err() }
}

/// What the API's own rules and the table of answers say of a message: notices and refusals, into the context.
fn examine(full_name: &str, bytes: &[u8], cx: &mut Context) -> Result<(), ConfigError> {
    let violations = Descriptors::shared().violations(full_name, bytes).unwrap_or_default();
    cx.record_all(violations.into_iter().map(|violation| {
        let message = violation.to_string();
        // keys of maps stand in quotes there, and bare in all other paths
        let path = violation.path.replace("[\"", "[").replace("\"]", "]");
        ConfigError::new(path, message).of_kind(ProblemKind::Rule)
    }));
    let found = answers::walk(full_name, bytes);
    for warned in found.warned {
        cx.warn_of_all(&warned.path, warned.meaning, warned.count);
    }
    match cx.refuse_unknown {
        Some(flag) => cx.record_all(found.unknown.iter().map(|unknown| {
            let message = format!("{}; {flag}", unknown.refusal());
            ConfigError::new(unknown.path.clone(), message).of_kind(ProblemKind::Syntax)
        })),
        None => {
            cx.notices.unknown.extend(found.unknown);
            cx.notices.more_unknown += found.more_unknown;
        }
    }
    cx.notices.deprecated.extend(found.deprecated);
    cx.record_all(found.rejected.into_iter().map(|(path, reason)| {
        ConfigError::new(path, format!("is not supported: {reason}")).of_kind(ProblemKind::Unsupported)
    }));
    Ok(())
}

/// Refuses deprecated fields that Envoy refuses unless runtime values allow them. Called once those are known.
fn refuse_deprecated(cx: &mut Context) {
    let none = cx.runtime_flag("envoy.features.fail_on_any_deprecated_feature", false);
    let all = cx.runtime_flag("envoy.features.enable_all_deprecated_features", false);
    let allowed = |name: &str| all || cx.runtime_flag(&format!("envoy.deprecated_features:{name}"), false);
    let refused: Vec<ConfigError> = cx
        .notices
        .deprecated
        .iter()
        .filter(|field| (field.disallowed || none) && !allowed(&field.full_name))
        .map(|field| ConfigError::new(field.path.clone(), field.to_string()).of_kind(ProblemKind::Rule))
        .collect();
    cx.record_all(refused);
}

/// Converts a cluster.
///
/// # Errors
/// Every problem that was found.
pub fn cluster(message: pb::cluster::Cluster, cx: &mut Context) -> Result<ClusterConfig, ConfigError> {
    let converted = cluster::cluster(message, cx);
    cx.finish(converted)
}

/// Converts a listener.
///
/// # Errors
/// Every problem that was found.
pub fn listener(message: pb::listener::Listener, cx: &mut Context) -> Result<ListenerConfig, ConfigError> {
    let converted = listener::listener(message, cx);
    cx.finish(converted)
}

/// Converts a route configuration that comes by RDS: unknown clusters are allowed unless it says otherwise.
///
/// # Errors
/// Every problem that was found.
pub fn route(message: pb::route::RouteConfiguration, cx: &mut Context) -> Result<RouteConfig, ConfigError> {
    let converted = route::route_configuration(message, false, cx);
    cx.finish(converted)
}

/// Converts the endpoints of a cluster.
///
/// # Errors
/// Every problem that was found.
pub fn assignment(
    message: pb::endpoint::ClusterLoadAssignment,
    cx: &mut Context,
) -> Result<LoadAssignment, ConfigError> {
    let converted = endpoint::assignment(message, cx);
    cx.finish(converted)
}

/// Converts a secret.
///
/// # Errors
/// Every problem that was found.
pub fn secret(message: pb::tls::Secret, cx: &mut Context) -> Result<SecretConfig, ConfigError> {
    let converted = secret::secret(message, cx);
    cx.finish(converted)
}

/// Converts the configuration of a filter that comes by ECDS.
///
/// # Errors
/// Every problem that was found.
pub fn extension(message: pb::core::TypedExtensionConfig, cx: &mut Context) -> Result<ExtensionConfig, ConfigError> {
    let converted = extension::extension(message, cx);
    cx.finish(converted)
}
