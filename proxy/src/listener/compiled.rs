//! A listener ready to serve: everything its configuration allows to be computed beforehand.

use super::chain_match::ChainMatch;
use super::stats::ListenerStats;
use crate::access_log::AccessLogs;
use crate::config::model::{
    Address, DeliveredFilter, DownstreamTransport, ExtensionConfig, FilterChainConfig, ListenerConfig,
    ListenerFilterConfig, ListenerFilterKind,
};
use crate::config::{ConfigError, both, each_of};
use crate::drain::Drain;
use crate::dynamic_filter::DynamicFilter;
use crate::network::NetworkChain;
use crate::services::Services;
use crate::stats::Scope;
use crate::tls::DownstreamContext;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// One filter chain, compiled. Kept as it is, with its connections, by updates that leave it equal.
pub(super) struct Chain {
    pub name: Arc<str>,
    hash: u64,
    pub tls: Option<Arc<DownstreamContext>>,
    pub connect_timeout: Option<Duration>,
    pub network: NetworkChain,
    pub drain: Drain,
}

/// A listener, compiled.
pub(super) struct Listener {
    pub config: Arc<ListenerConfig>,
    chain_match: ChainMatch,
    chains: Vec<Arc<Chain>>,
    default_chain: Option<Arc<Chain>>,
    /// Whether the destination is restored before anything is judged, as far as filters that stand in place say.
    restores_destination: bool,
    /// Listener filters that come by ECDS, in order.
    dynamic: Vec<DynamicFilter<ExtensionConfig>>,
    pub access_logs: Option<AccessLogs>,
    pub stats: Arc<ListenerStats>,
    pub drain: Drain,
}

/// Builds everything that a listener would be served with, binds nothing, and lets it go again.
///
/// # Errors
/// The path of what cannot be compiled.
pub fn check(config: &Arc<ListenerConfig>, services: &Arc<Services>) -> Result<(), ConfigError> {
    Listener::compile(config.clone(), None, services, 1).map(drop)
}

impl Listener {
    /// `kept` is the running listener when only filter chains differ: its drain, counters and equal chains live on.
    ///
    /// # Errors
    /// The path of what cannot be compiled.
    pub fn compile(
        config: Arc<ListenerConfig>,
        kept: Option<&Listener>,
        services: &Arc<Services>,
        workers: usize,
    ) -> Result<Listener, ConfigError> {
        let scope = services.registry.scope(&format!("listener.{}.", stat_name(&config)));
        let drain = kept.map_or_else(|| services.drain.child(), |old| old.drain.clone());
        let make = |chain: &FilterChainConfig| -> Result<Arc<Chain>, ConfigError> {
            let same = |old: &&Arc<Chain>| old.hash == chain.hash && old.name == chain.name;
            match kept.and_then(|old| old.all_chains().find(same)) {
                Some(old) => Ok(old.clone()),
                None => Chain::compile(chain, &scope, services, &drain).map(Arc::new),
            }
        };
        let chain_match = ChainMatch::compile(&config.filter_chains);
        let chains = each_of("filter_chains", &config.filter_chains, make);
        let default_chain =
            config.default_filter_chain.as_ref().map(make).transpose().map_err(|e| e.inside("default_filter_chain"));
        let access_logs = match config.access_log.as_slice() {
            [] => Ok(None),
            logs => AccessLogs::compile(logs, &services.log_files).map(Some).map_err(|e| e.inside("access_log")),
        };
        let ((chain_match, chains), (default_chain, access_logs)) =
            both(both(chain_match, chains), both(default_chain, access_logs))?;
        let stats = kept.map_or_else(|| Arc::new(ListenerStats::new(&scope, workers)), |old| old.stats.clone());
        let restores_destination = config.use_original_dst
            || config.listener_filters.iter().any(|f| matches!(f, ListenerFilterConfig::OriginalDst));
        let mut dynamic = Vec::new();
        for filter in &config.listener_filters {
            if let ListenerFilterConfig::Dynamic(filter, _) = filter {
                let filter = DynamicFilter::new(filter, services, |delivered| Ok(delivered.clone()));
                dynamic.push(filter.map_err(|e| e.inside("listener_filters"))?);
            }
        }
        Ok(Listener {
            chain_match,
            chains,
            default_chain,
            restores_destination,
            dynamic,
            access_logs,
            stats,
            drain,
            config,
        })
    }

    /// Whether the destination is restored before anything is judged.
    pub fn restores_destination(&self) -> bool {
        let is_original_dst = |filter: &DynamicFilter<ExtensionConfig>| {
            let kind = filter.load().map(|delivered| listener_filter(&delivered));
            kind.flatten() == Some(ListenerFilterKind::OriginalDst)
        };
        self.restores_destination || self.dynamic.iter().any(is_original_dst)
    }

    /// The listener filters as they are now; `None` when one was not delivered: connections must not do without it.
    pub fn filters(&self) -> Option<Cow<'_, [ListenerFilterConfig]>> {
        if self.dynamic.is_empty() {
            return Some(Cow::Borrowed(&self.config.listener_filters));
        }
        let mut dynamic = self.dynamic.iter();
        let now = self.config.listener_filters.iter().map(|filter| {
            let ListenerFilterConfig::Dynamic(_, disabled) = filter else { return Some(filter.clone()) };
            Some(match listener_filter(&*dynamic.next()?.load()?)? {
                ListenerFilterKind::OriginalDst => ListenerFilterConfig::OriginalDst,
                ListenerFilterKind::TlsInspector => ListenerFilterConfig::TlsInspector(disabled.clone()),
                ListenerFilterKind::HttpInspector => ListenerFilterConfig::HttpInspector(disabled.clone()),
            })
        });
        now.collect::<Option<Vec<_>>>().map(Cow::Owned)
    }

    fn all_chains(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// The chain for a connection, the default one included.
    pub fn chain(&self, facts: &super::chain_match::Facts<'_>) -> Option<&Arc<Chain>> {
        self.chain_match.find(facts).and_then(|at| self.chains.get(at)).or(self.default_chain.as_ref())
    }

    /// Chains that `newer` does not have any more.
    pub fn chains_gone_in<'a>(&'a self, newer: &'a Listener) -> impl Iterator<Item = &'a Arc<Chain>> {
        self.all_chains().filter(|old| !newer.all_chains().any(|new| Arc::ptr_eq(old, new)))
    }

    /// Whether `config` would make the same listener.
    pub fn is_equal_to(&self, config: &ListenerConfig) -> bool {
        let hashes = |c: &ListenerConfig| -> Vec<(Arc<str>, u64)> {
            c.filter_chains.iter().map(|chain| (chain.name.clone(), chain.hash)).collect()
        };
        let default =
            |c: &ListenerConfig| c.default_filter_chain.as_ref().map(|chain| (chain.name.clone(), chain.hash));
        self.config.shell_hash == config.shell_hash
            && hashes(&self.config) == hashes(config)
            && default(&self.config) == default(config)
    }

    pub fn is_settled(&self) -> bool {
        self.dynamic.iter().all(DynamicFilter::is_settled)
            && self.all_chains().all(|c| c.network.is_settled() && c.tls.as_ref().is_none_or(|tls| tls.is_settled()))
    }

    /// What it waits for, as Envoy names such targets.
    pub fn awaited(&self) -> Vec<String> {
        let mut targets: Vec<String> = self.dynamic.iter().filter_map(DynamicFilter::awaited).collect();
        for chain in self.all_chains() {
            targets.extend(chain.network.awaited());
            let secrets = chain.tls.iter().flat_map(|tls| tls.awaited());
            targets.extend(secrets.map(|name| format!("target SdsApi {name}")));
        }
        targets.dedup();
        targets
    }

    pub async fn settled(&self) {
        for filter in &self.dynamic {
            filter.settled().await;
        }
        for chain in self.all_chains() {
            chain.network.settled().await;
            if let Some(tls) = &chain.tls {
                tls.settled().await;
            }
        }
    }
}

fn listener_filter(delivered: &ExtensionConfig) -> Option<ListenerFilterKind> {
    match &delivered.filter {
        DeliveredFilter::Listener(kind) => Some(*kind),
        DeliveredFilter::Passed | DeliveredFilter::Router(_) | DeliveredFilter::Network(_) => None,
    }
}

impl Chain {
    fn compile(
        config: &FilterChainConfig,
        scope: &Scope,
        services: &Arc<Services>,
        listener_drain: &Drain,
    ) -> Result<Chain, ConfigError> {
        let tls = match &config.transport {
            DownstreamTransport::Raw => Ok(None),
            DownstreamTransport::Tls(tls) => DownstreamContext::new(tls.clone(), &services.secrets, scope)
                .map(Some)
                .map_err(|e| e.inside("typed_config").inside("transport_socket")),
        };
        let network = NetworkChain::compile(&config.filters, config.terminal, scope.prefix(), services);
        let (tls, network) = both(tls, network)?;
        Ok(Chain {
            name: config.name.clone(),
            hash: config.hash,
            tls,
            connect_timeout: config.transport_connect_timeout,
            network,
            drain: listener_drain.child(),
        })
    }
}

/// The listener's part of its stats' names: its address with `_` for `:`, unless it has a name of its own.
fn stat_name(config: &ListenerConfig) -> String {
    match (&config.stat_prefix, &config.address) {
        (Some(prefix), _) => prefix.to_string(),
        (None, Address::Socket(address)) => address.to_string().replace(':', "_"),
        (None, Address::Pipe { path, .. }) => path.display().to_string().replace(':', "_"),
    }
}
