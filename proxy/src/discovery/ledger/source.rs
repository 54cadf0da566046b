//! Where a resource comes from: two sources may each have one of the same type and name, and those are two resources.

use crate::config::model::{ConfigSourceKind, GrpcTarget};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

/// What the source of static resources is called.
pub const BOOTSTRAP: &str = "bootstrap";

/// What tells a record from the others of its type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub name: Arc<str>,
    /// As people know it.
    pub source: Arc<str>,
}

/// Name and source, borrowed: a look-up allocates nothing.
pub(super) trait Named {
    fn parts(&self) -> (&str, &str);
}

impl Named for Id {
    fn parts(&self) -> (&str, &str) {
        (&self.name, &self.source)
    }
}

impl Named for (&str, &str) {
    fn parts(&self) -> (&str, &str) {
        *self
    }
}

impl<'a> Borrow<dyn Named + 'a> for Id {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Named + '_ {}

impl PartialOrd for dyn Named + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Named + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

/// The sources that records come from, each under a name of its own.
pub(super) struct Sources {
    bootstrap: Arc<str>,
    names: HashMap<ConfigSourceKind, Arc<str>>,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources { bootstrap: BOOTSTRAP.into(), names: HashMap::new() }
    }
}

impl Sources {
    pub fn bootstrap(&self) -> Arc<str> {
        self.bootstrap.clone()
    }

    pub fn known(&self, source: &ConfigSourceKind) -> Option<&Arc<str>> {
        self.names.get(source)
    }

    pub fn name(&mut self, source: &ConfigSourceKind) -> Arc<str> {
        if let Some(known) = self.names.get(source) {
            return known.clone();
        }
        // cleaned out where the table would double: a control plane may name ever new sources
        if self.names.len().is_power_of_two() {
            self.names.retain(|_, name| Arc::strong_count(name) > 1);
        }
        let plain = match source {
            ConfigSourceKind::Ads => "ads".to_owned(),
            ConfigSourceKind::Path(file) => file.path.display().to_string(),
            ConfigSourceKind::Api(api) => match &api.target {
                GrpcTarget::Cluster { name, .. } => name.to_string(),
                GrpcTarget::Uri { uri, .. } => uri.to_string(),
            },
        };
        let taken = |name: &str| name == BOOTSTRAP || self.names.values().any(|known| **known == *name);
        // the same server, asked in another way
        let numbered = (2..).map(|n| format!("{plain} (#{n})"));
        let free = std::iter::once(plain.clone()).chain(numbered).find(|name| !taken(name));
        let name: Arc<str> = free.unwrap_or(plain).into();
        self.names.insert(source.clone(), name.clone());
        name
    }
}
