//! A listener ready to serve: everything its configuration allows to be computed beforehand.

use super::chain_match::ChainMatch;
use super::stats::ListenerStats;
use crate::access_log::AccessLogs;
use crate::config::model::{Address, DownstreamTransport, FilterChainConfig, ListenerConfig, ListenerFilterConfig};
use crate::config::{ConfigError, both, each_of};
use crate::drain::Drain;
use crate::network::NetworkChain;
use crate::services::Services;
use crate::stats::Scope;
use crate::tls::DownstreamContext;
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
    /// Whether the destination is restored before anything is judged.
    pub restores_destination: bool,
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
        Ok(Listener { chain_match, chains, default_chain, restores_destination, access_logs, stats, drain, config })
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
        self.all_chains().all(|c| c.network.is_settled() && c.tls.as_ref().is_none_or(|tls| tls.is_settled()))
    }

    /// What it waits for, as Envoy names such targets.
    pub fn awaited(&self) -> Vec<String> {
        let mut targets = Vec::new();
        for chain in self.all_chains() {
            let routes = chain.network.awaited();
            targets
                .extend(routes.map(|name| format!("target RdsRouteConfigSubscription RDS local-init-target {name}")));
            let secrets = chain.tls.iter().flat_map(|tls| tls.awaited());
            targets.extend(secrets.map(|name| format!("target SdsApi {name}")));
        }
        targets.dedup();
        targets
    }

    pub async fn settled(&self) {
        for chain in self.all_chains() {
            chain.network.settled().await;
            if let Some(tls) = &chain.tls {
                tls.settled().await;
            }
        }
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
