//! ECDS: `ExtensionConfigSource` in the place of a filter's configuration, and what such a source delivers.

use super::answers::table;
use super::any;
use super::context::{Context, Result};
use super::filter_chain::network_filter_config;
use super::http_filters::delivered_http_filter;
use super::listener::listener_filter_kind;
use super::model::{DeliveredFilter, DynamicFilterConfig, ExtensionConfig, FilterPlace};
use super::pb::{core, google};
use super::source::config_source;
use std::sync::Arc;

/// Where Envoy's own filters live.
const HTTP: &str = "envoy.extensions.filters.http.";
const NETWORK: &str = "envoy.extensions.filters.network.";
const LISTENER: &str = "envoy.extensions.filters.listener.";

impl FilterPlace {
    fn prefix(self) -> &'static str {
        match self {
            FilterPlace::Http => HTTP,
            FilterPlace::Network => NETWORK,
            FilterPlace::Listener => LISTENER,
        }
    }

    /// What Envoy calls a chain of such filters.
    fn chain(self) -> &'static str {
        match self {
            FilterPlace::Http => "http filter",
            FilterPlace::Network => "network filter",
            FilterPlace::Listener => "listener filter",
        }
    }

    /// Whether a filter of this type, built or not, may stand here.
    fn knows(self, kind: &str) -> bool {
        let elsewhere = [HTTP, NETWORK, LISTENER].into_iter().filter(|prefix| *prefix != self.prefix());
        table().find(kind).is_some() && !elsewhere.into_iter().any(|prefix| kind.starts_with(prefix))
    }
}

impl DynamicFilterConfig {
    /// Whether what was delivered, or is the default, may be this filter.
    ///
    /// # Errors
    /// Envoy's words for why not.
    pub fn admits(&self, offered: &ExtensionConfig) -> std::result::Result<(), super::ConfigError> {
        let refuse = |message: String| Err(super::ConfigError::new("", message));
        if !self.types.contains(&offered.kind) {
            return refuse(format!(
                "Error: filter config has type URL {} but expect {}.",
                offered.kind,
                self.types.join(", ")
            ));
        }
        let fits = match (self.place, &offered.filter) {
            (FilterPlace::Http, DeliveredFilter::Router(_) | DeliveredFilter::Passed)
            | (FilterPlace::Network, DeliveredFilter::Network(_) | DeliveredFilter::Passed)
            | (FilterPlace::Listener, DeliveredFilter::Listener(_)) => true,
            (FilterPlace::Http | FilterPlace::Network | FilterPlace::Listener, _) => false,
        };
        let (name, chain) = (&self.name, self.place.chain());
        if !fits {
            return refuse(format!("{name} ({}) is no {chain}", offered.kind));
        }
        match (offered.filter.is_terminal(), self.last) {
            (true, false) => refuse(format!(
                "Error: terminal filter named {name} of type {} must be the last filter in a {chain} chain.",
                offered.kind
            )),
            (false, true) if self.place != FilterPlace::Listener => refuse(format!(
                "Error: non-terminal filter named {name} of type {} is the last filter in a {chain} chain.",
                offered.kind
            )),
            _ => Ok(()),
        }
    }
}

/// `config_discovery` of the filter `name`. `last`: it ends its chain.
pub(super) fn dynamic_filter(
    name: &str,
    message: core::ExtensionConfigSource,
    place: FilterPlace,
    last: bool,
    cx: &mut Context,
) -> Result<Arc<DynamicFilterConfig>> {
    let name: Arc<str> = cx.non_empty("name", name.to_owned())?.into();
    cx.at("config_discovery", |cx| {
        let core::ExtensionConfigSource {
            config_source: source,
            default_config,
            apply_default_config_without_warming,
            type_urls,
        } = message;
        let source = cx.required("config_source", source)?;
        let source = cx.at("config_source", |cx| config_source(source, cx))?;
        if apply_default_config_without_warming && default_config.is_none() {
            return Err(cx.error_at(
                "apply_default_config_without_warming",
                format!("Error: filter config {name} applied without warming but has no default config."),
            ));
        }
        let types = cx.each("type_urls", type_urls, |url, cx| match any::type_name(&url) {
            kind if place.knows(kind) => Ok(Box::from(kind)),
            kind => Err(cx.error(format!("Error: no factory found for a required type URL {kind}."))),
        })?;
        if types.is_empty() {
            return Err(cx.error_at("type_urls", "found none, expected at least one"));
        }
        let default = default_config.map(|config| cx.at("default_config", |cx| delivered(&name, config, cx)));
        let default = default.transpose()?.map(Arc::new);
        let without_warming = apply_default_config_without_warming;
        let filter = DynamicFilterConfig { name, place, source, types: types.into(), default, without_warming, last };
        if let Some(default) = &filter.default {
            filter.admits(default).map_err(|e| cx.error_at("default_config", e.to_string()))?;
        }
        Ok(Arc::new(filter))
    })
}

/// A resource of ECDS.
pub(super) fn extension(message: core::TypedExtensionConfig, cx: &mut Context) -> Result<ExtensionConfig> {
    let (name, config) = any::typed_config(message, cx)?;
    let name: Arc<str> = cx.non_empty("name", name)?.into();
    cx.at("typed_config", |cx| delivered(&name, config, cx))
}

/// A filter of whichever place its type belongs to. One that must not be passed by and is not built is refused.
fn delivered(name: &Arc<str>, config: google::Any, cx: &mut Context) -> Result<ExtensionConfig> {
    let kind = any::inner_type(&config, cx)?;
    let filter = if kind.starts_with(LISTENER) {
        DeliveredFilter::Listener(listener_filter_kind(name, config, cx)?)
    } else if kind.starts_with(NETWORK) {
        network_filter_config(name, config, cx)?.map_or(DeliveredFilter::Passed, DeliveredFilter::Network)
    } else {
        delivered_http_filter(name, config, cx)?
    };
    Ok(ExtensionConfig { name: name.clone(), kind: kind.into(), filter })
}
