//! Names of things on the wire: resource types, the two wire modes, and the gRPC method a stream uses.
//! Knows which service serves which type; knows nothing of what a resource means.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The type URL of a resource, `type.googleapis.com/<message name>`. Cheap to clone.
///
/// ```
/// use xds_client::TypeUrl;
/// let t = TypeUrl::from("type.googleapis.com/envoy.config.cluster.v3.Cluster");
/// assert_eq!(t, TypeUrl::CLUSTER);
/// assert_eq!(t.message_name(), "envoy.config.cluster.v3.Cluster");
/// ```
#[derive(Clone)]
pub struct TypeUrl(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

impl TypeUrl {
    /// CDS.
    pub const CLUSTER: TypeUrl = TypeUrl::from_static("type.googleapis.com/envoy.config.cluster.v3.Cluster");
    /// EDS.
    pub const ENDPOINT: TypeUrl =
        TypeUrl::from_static("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    /// LDS.
    pub const LISTENER: TypeUrl = TypeUrl::from_static("type.googleapis.com/envoy.config.listener.v3.Listener");
    /// RDS.
    pub const ROUTE: TypeUrl = TypeUrl::from_static("type.googleapis.com/envoy.config.route.v3.RouteConfiguration");
    /// SRDS.
    pub const SCOPED_ROUTE: TypeUrl =
        TypeUrl::from_static("type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration");
    /// VHDS. There is a delta service for it only.
    pub const VIRTUAL_HOST: TypeUrl = TypeUrl::from_static("type.googleapis.com/envoy.config.route.v3.VirtualHost");
    /// SDS.
    pub const SECRET: TypeUrl =
        TypeUrl::from_static("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
    /// ECDS.
    pub const EXTENSION: TypeUrl =
        TypeUrl::from_static("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
    /// RTDS.
    pub const RUNTIME: TypeUrl = TypeUrl::from_static("type.googleapis.com/envoy.service.runtime.v3.Runtime");

    /// A type URL known at compile time.
    pub const fn from_static(url: &'static str) -> Self {
        TypeUrl(Repr::Static(url))
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(s) => s,
            Repr::Shared(s) => s,
        }
    }

    /// What follows the last slash: the full name of the protobuf message.
    pub fn message_name(&self) -> &str {
        let url = self.as_str();
        url.rsplit_once('/').map_or(url, |(_, name)| name)
    }
}

impl PartialEq for TypeUrl {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}
impl Eq for TypeUrl {}

impl PartialEq<str> for TypeUrl {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

// The same hash as `str`, so that a map keyed by `TypeUrl` can be asked with a `&str`.
impl Hash for TypeUrl {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}
impl Borrow<str> for TypeUrl {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for TypeUrl {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for TypeUrl {
    fn from(url: &str) -> Self {
        TypeUrl(Repr::Shared(url.into()))
    }
}

impl From<String> for TypeUrl {
    fn from(url: String) -> Self {
        TypeUrl(Repr::Shared(url.into()))
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The two forms of the protocol (Envoy docs, "xDS REST and gRPC protocol").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Incremental: a response carries what changed, and names what is gone.
    Delta,
    /// State of the world: a response carries everything of its type that the server wants the client to have.
    Sotw,
}

/// Which gRPC method carries the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// One stream for every type (`AggregatedDiscoveryService`).
    Aggregated,
    /// The service of this one type, such as `SecretDiscoveryService`.
    Type(TypeUrl),
}

/// Services that serve one type: message name, service, its state-of-the-world method, its delta method.
const SERVICES: &[(&TypeUrl, Option<&str>, Option<&str>)] = &[
    (
        &TypeUrl::CLUSTER,
        Some("/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"),
        Some("/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters"),
    ),
    (
        &TypeUrl::ENDPOINT,
        Some("/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"),
        Some("/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"),
    ),
    (
        &TypeUrl::LISTENER,
        Some("/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"),
        Some("/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners"),
    ),
    (
        &TypeUrl::ROUTE,
        Some("/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes"),
        Some("/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes"),
    ),
    (
        &TypeUrl::SCOPED_ROUTE,
        Some("/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes"),
        Some("/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes"),
    ),
    (&TypeUrl::VIRTUAL_HOST, None, Some("/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts")),
    (
        &TypeUrl::SECRET,
        Some("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"),
        Some("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"),
    ),
    (
        &TypeUrl::EXTENSION,
        Some("/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"),
        Some("/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"),
    ),
    (
        &TypeUrl::RUNTIME,
        Some("/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime"),
        Some("/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime"),
    ),
];

/// REST services, by type (the HTTP annotations of Envoy's service definitions).
const REST_PATHS: &[(&TypeUrl, &str)] = &[
    (&TypeUrl::CLUSTER, "/v3/discovery:clusters"),
    (&TypeUrl::ENDPOINT, "/v3/discovery:endpoints"),
    (&TypeUrl::LISTENER, "/v3/discovery:listeners"),
    (&TypeUrl::ROUTE, "/v3/discovery:routes"),
    (&TypeUrl::SCOPED_ROUTE, "/v3/discovery:scoped-routes"),
    (&TypeUrl::SECRET, "/v3/discovery:secrets"),
    (&TypeUrl::EXTENSION, "/v3/discovery:extension_configs"),
    (&TypeUrl::RUNTIME, "/v3/discovery:runtime"),
];

impl Method {
    /// The path of the REST service of this type; `None` where there is none, as for everything at once.
    ///
    /// ```
    /// use xds_client::{Method, TypeUrl};
    /// assert_eq!(Method::Type(TypeUrl::CLUSTER).rest_path(), Some("/v3/discovery:clusters"));
    /// assert_eq!(Method::Aggregated.rest_path(), None);
    /// ```
    pub fn rest_path(&self) -> Option<&'static str> {
        let Method::Type(type_url) = self else { return None };
        REST_PATHS.iter().find(|(known, _)| *known == type_url).map(|(_, path)| *path)
    }

    /// The gRPC path of this method in this mode; `None` where no such service exists, which a reader of configuration
    /// can check before starting a client.
    ///
    /// ```
    /// use xds_client::{Method, Mode, TypeUrl};
    /// let sds = Method::Type(TypeUrl::SECRET);
    /// assert_eq!(sds.path(Mode::Sotw), Some("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"));
    /// assert_eq!(Method::Type(TypeUrl::VIRTUAL_HOST).path(Mode::Sotw), None);
    /// ```
    pub fn path(&self, mode: Mode) -> Option<&'static str> {
        match (self, mode) {
            (Method::Aggregated, Mode::Delta) => {
                Some("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
            }
            (Method::Aggregated, Mode::Sotw) => {
                Some("/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources")
            }
            (Method::Type(t), mode) => {
                let (_, sotw, delta) = SERVICES.iter().find(|(known, ..)| *known == t)?;
                if mode == Mode::Delta { *delta } else { *sotw }
            }
        }
    }
}

/// What a consumer wants of a type. See [`Client::subscribe`](crate::Client::subscribe).
///
/// ```
/// use xds_client::Subscription;
/// assert_eq!(Subscription::names(["a", "b"]), Subscription::Names(vec!["a".into(), "b".into()]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscription {
    /// Whatever the server thinks this node should have (the usual one for clusters and listeners).
    Wildcard,
    /// These names, in addition to what is subscribed already. The name `*` is the wildcard.
    Names(Vec<String>),
}

impl Subscription {
    /// `Subscription::Names` from anything that yields names.
    pub fn names<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Subscription::Names(names.into_iter().map(Into::into).collect())
    }
}

/// A subscription that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The stream is for one type, and this is another.
    #[error("{wanted} cannot be subscribed: this stream carries {only} only")]
    OtherType {
        /// What was to be subscribed.
        wanted: TypeUrl,
        /// What the stream carries.
        only: TypeUrl,
    },
    /// A name of the `xdstp:` scheme, or a collection of them.
    #[error("{name:?} cannot be subscribed: names and collections of the xdstp scheme are not supported")]
    Xdstp {
        /// The name.
        name: String,
    },
}
