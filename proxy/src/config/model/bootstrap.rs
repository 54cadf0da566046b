//! `envoy.config.bootstrap.v3.Bootstrap`.

use super::*;
use crate::runtime::Runtime;

#[derive(Debug, Clone)]
pub struct Bootstrap {
    pub node: Node,
    pub admin: Option<AdminConfig>,
    pub clusters: Vec<Arc<ClusterConfig>>,
    pub listeners: Vec<Arc<ListenerConfig>>,
    pub secrets: Vec<SecretConfig>,
    pub ads: Option<Arc<ApiConfigSource>>,
    pub cds: Option<ConfigSource>,
    pub lds: Option<ConfigSource>,
    pub stats: StatsConfig,
    /// Default 5 s.
    pub stats_flush_interval: Duration,
    /// The runtime layers, loaded.
    pub runtime: Arc<Runtime>,
    /// Where the RTDS layers come from: resource names and sources.
    pub rtds: Vec<(Arc<str>, ConfigSource)>,
    /// `application_log_config.log_format`, when set.
    pub log_format: Option<LogFormat>,
}

/// Who we are to the control plane. `message` is the `Node` protobuf message to send, opaque outside conversion.
#[derive(Debug, Clone, Default)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    pub zone: String,
    pub message: xds_protos::pb::envoy::config::core::v3::Node,
}

#[derive(Debug, Clone)]
pub enum LogFormat {
    Text(String),
    /// Keys and format strings, in the order given.
    Json(Vec<(String, String)>),
}

#[derive(Debug, Clone)]
pub struct AdminConfig {
    pub address: Address,
    pub access_log: Vec<AccessLogConfig>,
}

/// `envoy.config.metrics.v3.StatsConfig`.
#[derive(Debug, Clone)]
pub struct StatsConfig {
    pub use_all_default_tags: bool,
    pub tags: Vec<TagSpecifier>,
    pub matcher: StatsMatcher,
    /// First match wins; names that match none get Envoy's default buckets. Bounds are in the histogram's own unit (ms for times).
    pub histogram_buckets: Vec<(StringMatch, Vec<f64>)>,
}

impl Default for StatsConfig {
    fn default() -> Self {
        StatsConfig {
            use_all_default_tags: true,
            tags: Vec::new(),
            matcher: StatsMatcher::All,
            histogram_buckets: Vec::new(),
        }
    }
}

/// A tag: either taken out of the name by a regex (group 1 is removed, group 2, else 1, is the value) or fixed.
#[derive(Debug, Clone)]
pub enum TagSpecifier {
    Regex {
        name: String,
        regex: String,
    },
    Fixed {
        name: String,
        value: String,
    },
    /// A default tag of Envoy's, named without a regex.
    Default {
        name: String,
    },
}

/// Which stats exist at all.
#[derive(Debug, Clone)]
pub enum StatsMatcher {
    All,
    None,
    Inclusion(Vec<StringMatch>),
    Exclusion(Vec<StringMatch>),
}

impl StatsMatcher {
    pub fn accepts(&self, name: &str) -> bool {
        let any = |list: &[StringMatch]| list.iter().any(|m| m.matches(name.as_bytes()));
        match self {
            StatsMatcher::All => true,
            StatsMatcher::None => false,
            StatsMatcher::Inclusion(list) => any(list),
            StatsMatcher::Exclusion(list) => !any(list),
        }
    }
}
