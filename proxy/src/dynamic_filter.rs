//! A filter that ECDS configures, as the chain that holds it sees it: what it is now, and whether to wait for it.
//!
//! What is delivered is judged and built by every holder before any of them uses it, on the control thread; on the path
//! of a connection or a request there is one load.

use crate::config::ConfigError;
use crate::config::model::{DynamicFilterConfig, ExtensionConfig, FilterPlace};
use crate::services::Services;
use crate::slots::{Commit, Follower, Key, Slot};
use arc_swap::ArcSwapOption;
use std::sync::Arc;

/// Makes of a delivered configuration what its holder runs.
type Build<C> = Box<dyn Fn(&Arc<ExtensionConfig>) -> Result<Arc<C>, ConfigError> + Send + Sync>;

/// The filter; `C` is what its holder runs.
pub struct DynamicFilter<C> {
    slot: Arc<Slot<ExtensionConfig>>,
    place: Arc<Place<C>>,
    default: Option<Arc<C>>,
}

struct Place<C> {
    config: Arc<DynamicFilterConfig>,
    build: Build<C>,
    current: Arc<ArcSwapOption<C>>,
}

impl<C: Send + Sync + 'static> DynamicFilter<C> {
    /// Subscribes to the filter's configuration.
    ///
    /// # Errors
    /// What is wrong with its default.
    pub fn new(
        config: &Arc<DynamicFilterConfig>,
        services: &Services,
        build: impl Fn(&Arc<ExtensionConfig>) -> Result<Arc<C>, ConfigError> + Send + Sync + 'static,
    ) -> Result<DynamicFilter<C>, ConfigError> {
        let default = config.default.as_ref().map(&build).transpose();
        let default = default.map_err(|e| e.inside("default_config").inside("config_discovery"))?;
        let kind = match config.place {
            FilterPlace::Http => "http_filter",
            FilterPlace::Network => "network_filter",
            FilterPlace::Listener => "tcp_listener_filter",
        };
        let key = Key { name: config.name.clone(), source: Some(config.source.clone()) };
        let slot = services.extensions.slot_counted(key, &format!("extension_config_discovery.{kind}."));
        let place = Arc::new(Place {
            config: config.clone(),
            build: Box::new(build),
            current: Arc::new(ArcSwapOption::empty()),
        });
        let follower: Arc<dyn Follower<ExtensionConfig>> = place.clone();
        if let Err(error) = slot.follow(&follower) {
            // as in Envoy, the chain waits for a better one, with its default or without
            tracing::warn!("{}: what others use cannot be used here: {error}", config.name);
        }
        Ok(DynamicFilter { slot, place, default })
    }
}

impl<C> DynamicFilter<C> {
    pub fn config(&self) -> &DynamicFilterConfig {
        &self.place.config
    }

    /// What it is now; `None`: nothing, and whoever depends on it must not be served.
    pub fn load(&self) -> Option<Arc<C>> {
        self.place.current.load_full().or_else(|| self.default.clone())
    }

    pub fn is_missing(&self) -> bool {
        self.default.is_none() && self.place.current.load().is_none()
    }

    /// Whether warming need not wait for it any longer.
    pub fn is_settled(&self) -> bool {
        self.place.config.without_warming || self.slot.is_settled()
    }

    /// What it waits for, as Envoy names such targets.
    pub fn awaited(&self) -> Option<String> {
        (!self.is_settled()).then(|| format!("shared target FilterConfigSubscription init {}", self.place.config.name))
    }

    pub async fn settled(&self) {
        if !self.place.config.without_warming {
            self.slot.settled().await;
        }
    }
}

impl<C: Send + Sync + 'static> Follower<ExtensionConfig> for Place<C> {
    fn prepare(&self, offered: &Arc<ExtensionConfig>) -> Result<Commit, ConfigError> {
        self.config.admits(offered)?;
        let built = (self.build)(offered)?;
        let current = self.current.clone();
        Ok(Box::new(move || current.store(Some(built))))
    }

    fn removed(&self) {
        self.current.store(None);
    }
}
