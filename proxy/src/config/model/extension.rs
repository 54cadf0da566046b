//! Filters whose configuration comes by ECDS.

use super::*;

/// Where a filter stands, which decides what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterPlace {
    Http,
    Network,
    Listener,
}

/// A filter in whose place `config_discovery` stands.
#[derive(Debug)]
pub struct DynamicFilterConfig {
    /// Of the filter, and of the resource.
    pub name: Arc<str>,
    pub place: FilterPlace,
    pub source: ConfigSource,
    /// Full names of the messages that it may be configured with; at least one.
    pub types: Box<[Box<str>]>,
    /// What it is while nothing was delivered.
    pub default: Option<Arc<ExtensionConfig>>,
    /// The default is used at once: nothing waits for the first delivery.
    pub without_warming: bool,
    /// It ends its chain: only a terminal filter may come, which may come nowhere else.
    pub last: bool,
}

/// A filter's configuration as ECDS delivers it (`envoy.config.core.v3.TypedExtensionConfig`).
#[derive(Debug)]
pub struct ExtensionConfig {
    pub name: Arc<str>,
    /// Full name of its message.
    pub kind: Box<str>,
    pub filter: DeliveredFilter,
}

#[derive(Debug)]
pub enum DeliveredFilter {
    /// An HTTP or network filter that may be passed by, and is.
    Passed,
    Router(RouterConfig),
    Network(NetworkFilterConfig),
    Listener(ListenerFilterKind),
}

impl DeliveredFilter {
    /// Whether it ends a chain.
    pub fn is_terminal(&self) -> bool {
        matches!(self, DeliveredFilter::Router(_) | DeliveredFilter::Network(_))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerFilterKind {
    OriginalDst,
    TlsInspector,
    HttpInspector,
}
